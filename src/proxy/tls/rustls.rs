//! Rustls.

use std::path::Path;
use std::sync::Arc;

use pingora_core::listeners::tls::{KernelTlsSupport, TlsSettings};
use pingora_core::protocols::tls::CaType;
use pingora_core::tls::load_certs_and_key_files;
use pingora_core::utils::tls::{parse_x509, WrappedX509};
#[cfg(feature = "aws-lc")]
use rustls::crypto::aws_lc_rs as crypto;
#[cfg(not(feature = "aws-lc"))]
use rustls::crypto::ring as crypto;
use rustls::pki_types::CertificateDer;
use rustls::{RootCertStore, ServerConfig};

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

/// Makes the ciphers of the listener those of connections to origins too. Pingora installs ring's if
/// there is no default yet.
pub(in crate::proxy) fn install_provider() {
    // An error means that the process has a default already, which then stays.
    let _ = crypto::default_provider().install_default();
}

/// Returns the certificate of the server itself, in DER.
pub(in crate::proxy) fn check_pair(certificate: &Path, key: &Path) -> Result<Vec<u8>, Unusable> {
    server_config(certificate, key).map(|(_, leaf)| leaf)
}

/// The settings of a listener.
///
/// # Errors
/// The certificate or the key cannot be used.
pub(in crate::proxy) fn listener(
    certificate: &Path,
    key: &Path,
    write_buffer: usize,
) -> Result<TlsSettings, String> {
    let (config, _) = server_config(certificate, key).map_err(|(problem, _)| problem)?;
    let mut settings = TlsSettings::from_server_config(Arc::new(config));
    settings.set_write_buffer_limit(write_buffer);
    Ok(settings)
}

/// The configuration of a listener, and the certificate of the server itself in DER.
fn server_config(certificate: &Path, key: &Path) -> Result<(ServerConfig, Vec<u8>), Unusable> {
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
    let unusable = |e| (format!("cannot be used together: {e}"), WRITE_A_PAIR);
    let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    // Only kernel TLS takes the secrets, and only of its own connections.
    config.enable_secret_extraction = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((config, leaf))
}

/// The ciphers that the running kernel has for connections of a listener, in words.
///
/// # Errors
/// It has none. The text is the reason and, if there is one, the remedy.
pub(in crate::proxy) fn kernel_tls() -> Result<String, String> {
    KernelTlsSupport::of_this_kernel()
        .map(ToString::to_string)
        .map_err(ToString::to_string)
}

pub(in crate::proxy) fn enable_kernel_tls(settings: &mut TlsSettings) {
    settings.enable_kernel_tls();
}
