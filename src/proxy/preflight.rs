//! Checks before anything is opened or handed over.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use log::warn;
use rustix::fs::{access, Access};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{authorities, tls};
use crate::config::{Bucket, Config, KernelTls, Tls};

/// A setting that is valid but does not fit this machine: the key, and one line with the
/// problem and the remedy.
#[derive(Debug)]
pub struct Unfit {
    key: String,
    what: String,
}

// === impl Unfit ===

impl Unfit {
    /// The key of the setting.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The problem and the remedy.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

impl std::error::Error for Unfit {}

/// Check that the files of `config` can be used: the certificate and the key, as the listener will
/// load them, the folders of the cache and of the upgrade socket, and the authorities of origins.
///
/// Returns everything that cannot be used. A certificate that has expired, or is not valid yet, is
/// only logged, because a client may accept it.
pub fn check(config: &Config) -> Vec<Unfit> {
    let tls = config.server.tls.as_ref().map(check_tls);
    let folder = config.cache.disk.folder();
    let cache = folder.map(|folder| check_folder("cache.disk.path", folder));
    let sock = config.server.upgrade_sock.as_deref();
    // The cache creates its own folder.
    let sock = sock.filter(|sock| !folder.is_some_and(|folder| sock.starts_with(folder)));
    let checked = [tls, cache, sock.map(check_socket)];
    checked
        .into_iter()
        .flatten()
        .chain(config.buckets.iter().enumerate().map(check_origin))
        .filter_map(Result::err)
        .collect()
}

fn check_tls(settings: &Tls) -> Result<(), Unfit> {
    let (certificate, key) = (settings.certificate.display(), settings.key.display());
    let leaf =
        tls::check_pair(&settings.certificate, &settings.key).map_err(|(problem, remedy)| {
            Unfit {
                key: "server.tls".to_owned(),
                what: format!("{certificate} and {key}: {problem}; {remedy}"),
            }
        })?;
    warn_of_validity(settings, &leaf);
    if settings.ktls == KernelTls::On {
        tls::kernel_tls().map_err(|why| Unfit {
            key: "server.tls.ktls".to_owned(),
            what: format!("is on, and {why}; write auto to do without kernel TLS"),
        })?;
    }
    Ok(())
}

fn check_origin((index, bucket): (usize, &Bucket)) -> Result<(), Unfit> {
    if !tls::AVAILABLE && bucket.endpoint.as_ref().is_none_or(|service| service.tls()) {
        return Err(Unfit {
            key: format!("buckets[{index}].endpoint"),
            what: "needs https, and this build has no TLS; write one with http://, or build \
                   s3-proxy with the Cargo feature rustls"
                .to_owned(),
        });
    }
    let Some(file) = bucket.ca_file.as_deref() else {
        return Ok(());
    };
    authorities::read(file).map(|_| ()).map_err(|why| Unfit {
        key: format!("buckets[{index}].ca_file"),
        what: format!(
            "{} {why}; write the path of a PEM file with certificates of authorities",
            file.display()
        ),
    })
}

fn warn_of_validity(tls: &Tls, leaf: &[u8]) {
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
    let unfit = |what| Unfit {
        key: key.to_owned(),
        what,
    };
    for ancestor in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        match fs::metadata(ancestor) {
            Ok(found) if found.is_dir() => {
                let may = access(ancestor, Access::WRITE_OK | Access::EXEC_OK);
                return may.map_err(|e| {
                    let what = format!(
                        "{} cannot be written to: {e}; let the proxy's user write there",
                        ancestor.display()
                    );
                    unfit(what)
                });
            }
            Ok(_) => {
                let what = format!(
                    "{} is not a folder; write the path of one",
                    ancestor.display()
                );
                return Err(unfit(what));
            }
            // The error of an ancestor further up is more specific.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => {
                let what = format!(
                    "{} cannot be used: {e}; write the path of a folder of the proxy's own",
                    ancestor.display()
                );
                return Err(unfit(what));
            }
        }
    }
    Ok(())
}

fn check_socket(sock: &Path) -> Result<(), Unfit> {
    const REMEDY: &str = "write the path of a socket in a folder of the proxy's own";
    let unfit = |problem: String| Unfit {
        key: "server.upgrade_sock".to_owned(),
        what: format!("{problem}; {REMEDY}"),
    };
    let parent = match sock.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !fs::metadata(parent).is_ok_and(|found| found.is_dir()) {
        return Err(unfit(format!("there is no folder {}", parent.display())));
    }
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(sock) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(unfit(format!("{} is not a socket", sock.display())))
        }
        _ => Ok(()),
    }
}
