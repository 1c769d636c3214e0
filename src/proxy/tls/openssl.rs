//! OpenSSL and BoringSSL.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::tls::CaType;
use pingora_core::tls::pkey::PKey;
use pingora_core::tls::ssl::SslVersion;
use pingora_core::tls::x509::X509;
use pingora_core::Error;

use super::certificate::{Facts, Warned};
use super::no_reload::Reload;
use super::problem::Unusable;
use crate::config::{Tls, TlsVersion};
use crate::metrics::METRICS;

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

/// Checks the files of a listener.
///
/// # Errors
/// All files that cannot be used, and keys that only rustls supports.
pub(in crate::proxy) fn check(settings: &Tls) -> Result<(), Vec<Unusable>> {
    let unsupported = [
        ("certificates", !settings.certificates.is_empty()),
        ("client_ca", settings.client_ca.is_some()),
    ];
    let unsupported = unsupported.into_iter().filter(|(_, is_given)| *is_given);
    let unsupported: Vec<_> = unsupported
        .map(|(key, _)| Unusable {
            key: key.to_owned(),
            what: "is not supported with this TLS backend; leave the key out, or build s3-proxy \
                   with the Cargo feature rustls"
                .to_owned(),
        })
        .collect();
    if !unsupported.is_empty() {
        return Err(unsupported);
    }
    let checked = check_pair(&settings.certificate, &settings.key);
    checked.map(|_| ()).map_err(|problem| vec![problem])
}

/// Logs a certificate that clients refuse, or will refuse soon.
pub(in crate::proxy) fn warn_of_expiry(settings: &Tls) {
    if let Ok(facts) = check_pair(&settings.certificate, &settings.key) {
        Warned::default().warn_of(&[facts]);
    }
}

fn check_pair(certificate: &Path, key: &Path) -> Result<Facts, Unusable> {
    let unusable = |name: &str, file: &Path, problem: String, remedy: &str| Unusable {
        key: name.to_owned(),
        what: format!("{} {problem}; {remedy}", file.display()),
    };
    let of_certificate = |problem| {
        let remedy = "write the path of a PEM file with the certificate first";
        unusable("certificate", certificate, problem, remedy)
    };
    let of_key = |problem| {
        let remedy = "write the path of a PEM file with a private key that has no passphrase";
        unusable("key", key, problem, remedy)
    };
    let read = |path: &Path| fs::read(path).map_err(|e| format!("cannot be read: {e}"));
    let chain = read(certificate).map_err(of_certificate)?;
    let chain = X509::stack_from_pem(&chain).unwrap_or_default();
    let Some(leaf) = chain.first() else {
        return Err(of_certificate("holds no certificate".to_owned()));
    };
    let der = leaf
        .to_der()
        .map_err(|e| of_certificate(format!("cannot be used: {e}")))?;
    let facts = Facts::read(certificate, &der).map_err(of_certificate)?;
    let public = leaf.public_key();
    let public = public.map_err(|e| of_certificate(format!("cannot be used: {e}")))?;
    let pem = read(key).map_err(of_key)?;
    // Without the callback, an encrypted key would be asked for its passphrase on the terminal.
    let private = PKey::private_key_from_pem_callback(&pem, |_| Ok(0))
        .map_err(|e| of_key(format!("holds no private key that can be used: {e}")))?;
    if !public.public_eq(&private) {
        return Err(unusable(
            "key",
            key,
            format!(
                "is not the key of the first certificate in {}",
                certificate.display()
            ),
            "write a certificate and its own private key",
        ));
    }
    Ok(facts)
}

/// The settings of a listener. OpenSSL encrypts one record at a time: no limit is needed.
///
/// # Errors
/// A file cannot be used.
pub(in crate::proxy) fn listener(tls: &Tls) -> Result<(TlsSettings, Option<Reload>), Unusable> {
    let unusable = |e: String| Unusable {
        key: "certificate".to_owned(),
        what: format!("cannot be used: {e}; write the path of another file"),
    };
    METRICS
        .tls
        .watch(&[check_pair(&tls.certificate, &tls.key)?.expiry()]);
    warn_of_expiry(tls);
    let (certificate, key) = (tls.certificate.to_string_lossy(), tls.key.to_string_lossy());
    let mut settings =
        TlsSettings::intermediate(&certificate, &key).map_err(|e| unusable(e.to_string()))?;
    if tls.http2 {
        settings.enable_h2();
    }
    if tls.min_version == TlsVersion::V1_3 {
        let set = settings.set_min_proto_version(Some(SslVersion::TLS1_3));
        set.map_err(|e| unusable(e.to_string()))?;
    }
    Ok((settings, None))
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

/// The reason that a handshake has failed.
pub(in crate::proxy) fn failure(_: &Error) -> &'static str {
    "other"
}

/// Nothing is lent: OpenSSL encrypts one record at a time.
pub(in crate::proxy) fn lent_bytes() -> usize {
    0
}
