//! No TLS. The configuration may not ask for it.

use std::sync::Arc;

use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::tls::CaType;
use pingora_core::Error;

use super::no_reload::Reload;
use super::problem::Unusable;
use crate::config::Tls;

pub(in crate::proxy) const AVAILABLE: bool = false;

/// The certificate of an authority, of which there is none.
pub(in crate::proxy) enum Authority {}

/// # Errors
/// Always.
pub(in crate::proxy) fn authority(_: Vec<u8>) -> Result<Authority, String> {
    Err("this build has no TLS".to_owned())
}

pub(in crate::proxy) fn authorities(_: Vec<Authority>) -> Arc<CaType> {
    Arc::new([])
}

/// # Errors
/// Always.
pub(in crate::proxy) fn check(_: &Tls) -> Result<(), Vec<Unusable>> {
    Err(vec![unsupported()])
}

pub(in crate::proxy) fn warn_of_expiry(_: &Tls) {}

/// # Errors
/// Always.
pub(in crate::proxy) fn listener(_: &Tls) -> Result<(TlsSettings, Option<Reload>), Unusable> {
    Err(unsupported())
}

fn unsupported() -> Unusable {
    Unusable {
        key: "address".to_owned(),
        what: "needs TLS, which this build has not; remove server.tls, or build s3-proxy with the \
               Cargo feature rustls"
            .to_owned(),
    }
}

pub(in crate::proxy) fn install_provider() {}

/// # Errors
/// Always.
pub(in crate::proxy) fn kernel_tls() -> Result<String, String> {
    Err("this build has no TLS".to_owned())
}

pub(in crate::proxy) fn enable_kernel_tls(_: &mut TlsSettings) {}

/// The reason that a handshake has failed.
pub(in crate::proxy) fn failure(_: &Error) -> &'static str {
    "other"
}

/// Nothing is lent.
pub(in crate::proxy) fn lent_bytes() -> usize {
    0
}
