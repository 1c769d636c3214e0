//! Rustls.

use std::path::Path;
use std::sync::Arc;

use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::tls::CaType;
use pingora_core::tls::{
    install_default_crypto_provider, load_certs_and_key_files, version, CertificateDer,
    RootCertStore, ServerConfig,
};
use pingora_core::utils::tls::{parse_x509, WrappedX509};

use super::problem::{Unusable, WRITE_A_PAIR, WRITE_PATHS};

pub(in crate::proxy) const AVAILABLE: bool = true;

pub(in crate::proxy) type Authority = WrappedX509;

/// # Errors
/// The certificate cannot be used. The caller has parsed it: a peer makes its own copy later,
/// which cannot fail then.
pub(in crate::proxy) fn authority(der: Vec<u8>) -> Result<Authority, String> {
    let certificate = CertificateDer::from(der.as_slice());
    RootCertStore::empty()
        .add(certificate)
        .map_err(|e| e.to_string())?;
    Ok(WrappedX509::new(der, parse_x509))
}

pub(in crate::proxy) fn authorities(all: Vec<Authority>) -> Arc<CaType> {
    all.into()
}

/// Returns the certificate of the server itself, in DER.
pub(in crate::proxy) fn check_pair(certificate: &Path, key: &Path) -> Result<Vec<u8>, Unusable> {
    let loaded = load_certs_and_key_files(&certificate.to_string_lossy(), &key.to_string_lossy());
    let (chain, key) = loaded
        .map_err(|e| {
            (
                format!("cannot be read: {e}"),
                "write the paths of PEM files",
            )
        })?
        .ok_or_else(|| {
            let what = "do not hold a certificate and a private key";
            (what.to_owned(), WRITE_PATHS)
        })?;
    let leaf = chain.first().map_or(Vec::new(), |leaf| leaf.to_vec());
    install_default_crypto_provider();
    ServerConfig::builder_with_protocol_versions(&[&version::TLS12, &version::TLS13])
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| (format!("cannot be used together: {e}"), WRITE_A_PAIR))?;
    Ok(leaf)
}

pub(in crate::proxy) fn limit_write_buffer(settings: &mut TlsSettings, bytes: usize) {
    settings.set_write_buffer_limit(bytes);
}
