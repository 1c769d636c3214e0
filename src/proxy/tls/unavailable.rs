//! No TLS. The configuration may not ask for it.

use std::path::Path;
use std::sync::Arc;

use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::tls::CaType;

use super::problem::Unusable;

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
pub(in crate::proxy) fn check_pair(_: &Path, _: &Path) -> Result<Vec<u8>, Unusable> {
    Err((
        "this build has no TLS".to_owned(),
        "remove server.tls, or build s3-proxy with the Cargo feature rustls",
    ))
}

/// # Errors
/// Always.
pub(in crate::proxy) fn listener(_: &Path, _: &Path, _: usize) -> Result<TlsSettings, String> {
    Err("this build has no TLS".to_owned())
}

pub(in crate::proxy) fn install_provider() {}

/// # Errors
/// Always.
pub(in crate::proxy) fn kernel_tls() -> Result<String, String> {
    Err("this build has no TLS".to_owned())
}

pub(in crate::proxy) fn enable_kernel_tls(_: &mut TlsSettings) {}
