//! Checks before anything is opened or handed over.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use log::warn;
use pingora_core::tls::{
    install_default_crypto_provider, load_certs_and_key_files, version, CertificateDer,
    ServerConfig,
};
use rustix::fs::{access, Access};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::config::{Config, Tls};

/// A setting that is valid but does not fit this machine: one line with the key and the
/// remedy.
#[derive(Debug)]
pub struct Unfit(String);

// === impl Unfit ===

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// Check that what `config` names can be used: the certificate and the key, as the
/// listener will load them, and the folders of the cache and of the upgrade socket.
///
/// # Errors
/// The first thing that cannot be used. A certificate that has expired, or is not valid
/// yet, is only logged, because a client may accept it.
pub fn check(config: &Config) -> Result<(), Unfit> {
    if let Some(tls) = &config.server.tls {
        check_tls(tls)?;
    }
    let disk = &config.cache.disk;
    if disk.enabled {
        check_folder("cache.disk.path", &disk.path)?;
    }
    match &config.server.upgrade_sock {
        // The cache creates its own folder.
        Some(sock) if !(disk.enabled && sock.starts_with(&disk.path)) => check_socket(sock),
        _ => Ok(()),
    }
}

fn check_tls(tls: &Tls) -> Result<(), Unfit> {
    let (certificate, key) = (tls.certificate.display(), tls.key.display());
    let unfit = |problem: &str, remedy: &str| {
        Unfit(format!(
            "server.tls: {certificate} and {key}: {problem}; {remedy}"
        ))
    };
    let loaded = load_certs_and_key_files(
        &tls.certificate.to_string_lossy(),
        &tls.key.to_string_lossy(),
    );
    let (chain, private_key) = loaded
        .map_err(|e| {
            unfit(
                &format!("cannot be read: {e}"),
                "write the paths of PEM files",
            )
        })?
        .ok_or_else(|| {
            unfit(
                "do not hold a certificate and a private key",
                "write the paths of PEM files, the certificate first",
            )
        })?;
    if let Some(leaf) = chain.first() {
        warn_of_validity(tls, leaf);
    }
    install_default_crypto_provider();
    ServerConfig::builder_with_protocol_versions(&[&version::TLS12, &version::TLS13])
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .map_err(|e| {
            unfit(
                &format!("cannot be used together: {e}"),
                "write a certificate and its own private key",
            )
        })?;
    Ok(())
}

fn warn_of_validity(tls: &Tls, leaf: &CertificateDer<'_>) {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        // The TLS library checks the certificate itself.
        return;
    };
    let validity = leaf.validity();
    if !validity.is_valid() {
        warn!(
            "server.tls: {}: the certificate is valid from {} to {}, not now; clients will refuse it",
            tls.certificate.display(),
            validity.not_before,
            validity.not_after
        );
    }
}

/// Check that `path` is a folder, or can become one.
fn check_folder(key: &str, path: &Path) -> Result<(), Unfit> {
    for ancestor in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        match fs::metadata(ancestor) {
            Ok(found) if found.is_dir() => {
                return access(ancestor, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| {
                    Unfit(format!(
                        "{key}: {} cannot be written to: {e}; let the proxy's user write there",
                        ancestor.display()
                    ))
                })
            }
            Ok(_) => {
                return Err(Unfit(format!(
                    "{key}: {} is not a folder; write the path of one",
                    ancestor.display()
                )))
            }
            // An ancestor further up tells why.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => {
                return Err(Unfit(format!(
                    "{key}: {} cannot be used: {e}; write the path of a folder of the proxy's own",
                    ancestor.display()
                )))
            }
        }
    }
    Ok(())
}

fn check_socket(sock: &Path) -> Result<(), Unfit> {
    const REMEDY: &str = "write the path of a socket in a folder of the proxy's own";
    let parent = match sock.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !fs::metadata(parent).is_ok_and(|found| found.is_dir()) {
        return Err(Unfit(format!(
            "server.upgrade_sock: there is no folder {}; {REMEDY}",
            parent.display()
        )));
    }
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(sock) {
        Ok(found) if !found.file_type().is_socket() => Err(Unfit(format!(
            "server.upgrade_sock: {} is not a socket; {REMEDY}",
            sock.display()
        ))),
        _ => Ok(()),
    }
}
