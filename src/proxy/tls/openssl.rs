//! OpenSSL and BoringSSL.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::tls::CaType;
use pingora_core::tls::pkey::PKey;
use pingora_core::tls::x509::X509;

use super::problem::{Unusable, WRITE_A_PAIR, WRITE_PATHS};

pub(in crate::proxy) const AVAILABLE: bool = true;

pub(in crate::proxy) type Authority = X509;

/// # Errors
/// The certificate cannot be used.
pub(in crate::proxy) fn authority(der: Vec<u8>) -> Result<Authority, String> {
    X509::from_der(&der).map_err(|e| e.to_string())
}

pub(in crate::proxy) fn authorities(all: Vec<Authority>) -> Arc<CaType> {
    Arc::new(all.into_boxed_slice())
}

/// Returns the certificate of the server itself, in DER.
pub(in crate::proxy) fn check_pair(certificate: &Path, key: &Path) -> Result<Vec<u8>, Unusable> {
    let read = |path: &Path| {
        let unreadable = |e| {
            (
                format!("cannot be read: {e}"),
                "write the paths of PEM files",
            )
        };
        fs::read(path).map_err(unreadable)
    };
    let (certificate, key) = (read(certificate)?, read(key)?);
    let chain = X509::stack_from_pem(&certificate).unwrap_or_default();
    let (Some(leaf), Ok(key)) = (chain.first(), PKey::private_key_from_pem(&key)) else {
        let what = "do not hold a certificate and a private key";
        return Err((what.to_owned(), WRITE_PATHS));
    };
    let unusable = |e: String| (format!("cannot be used together: {e}"), WRITE_A_PAIR);
    let public = leaf.public_key().map_err(|e| unusable(e.to_string()))?;
    if !public.public_eq(&key) {
        return Err(unusable("the key is another certificate's".to_owned()));
    }
    leaf.to_der().map_err(|e| unusable(e.to_string()))
}

/// OpenSSL encrypts one record at a time: no limit is needed.
pub(in crate::proxy) fn listener(
    certificate: &Path,
    key: &Path,
    _write_buffer: usize,
) -> Result<TlsSettings, String> {
    let mut settings =
        TlsSettings::intermediate(&certificate.to_string_lossy(), &key.to_string_lossy())
            .map_err(|e| e.to_string())?;
    settings.enable_h2();
    Ok(settings)
}

/// Nothing to do: OpenSSL has its own ciphers.
pub(in crate::proxy) fn install_provider() {}

/// # Errors
/// Always.
pub(in crate::proxy) fn kernel_tls() -> Result<String, String> {
    let why =
        "this build uses OpenSSL or BoringSSL, while kernel TLS needs the Cargo feature rustls";
    Err(why.to_owned())
}

pub(in crate::proxy) fn enable_kernel_tls(_: &mut TlsSettings) {}
