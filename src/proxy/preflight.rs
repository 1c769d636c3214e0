//! Checks before anything is opened or handed over.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use log::warn;
use rustix::fs::{access, Access};

use super::authorities;
use super::tls::{self, Unusable};
use crate::cache::patience::{self, Patience};
use crate::cache::FolderConfig;
use crate::config::{AccessLog, Bucket, Config, KernelTls, Rotate, Tls};

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

/// Check that the files of `config` can be used: the certificates and keys, as the listener will
/// load them, the folders of the cache and of the upgrade socket, the file of the access log, and the
/// authorities of origins.
///
/// Returns everything that cannot be used. A certificate that has expired can be: a client may accept
/// it, see [`warn_of_expiry`].
pub fn check(config: &Config) -> Vec<Unfit> {
    let tls = config.server.tls.as_ref().map_or(Vec::new(), check_tls);
    let folders = config.cache.disk.folders();
    let [upgrade, control] = [&config.server.upgrade_sock, &config.server.control_sock]
        .map(|sock| sock.as_deref())
        // The cache creates its own folders.
        .map(|sock| sock.filter(|sock| !folders.iter().any(|of| sock.starts_with(&of.path))));
    // One mistake is enough for a folder of both.
    let parent = upgrade.and_then(Path::parent);
    let control = control.filter(|sock| parent.is_none() || sock.parent() != parent);
    let socks = [
        ("server.upgrade_sock", upgrade),
        ("server.control_sock", control),
    ];
    let socks = socks
        .into_iter()
        .filter_map(|(key, sock)| Some(check_socket(key, sock?)));
    let log = config.access_log.as_ref();
    let log = log.and_then(|log| log.path.file().map(|path| check_log(log, path)));
    let others = check_folders(&folders, config.cache.disk.path.is_some())
        .into_iter()
        .map(Err)
        .chain(socks)
        .chain(log)
        .chain(config.buckets.iter().enumerate().map(check_origin))
        .filter_map(Result::err);
    tls.into_iter().chain(others).collect()
}

/// Check the files of `config` that a running process opens again, except for those of the HTTPS
/// listener, and returns everything that cannot be used.
pub(super) fn check_reloaded(config: &Config) -> Vec<Unfit> {
    let log = config.access_log.as_ref();
    let log = log.and_then(|log| log.path.file().map(|path| check_log(log, path)));
    let origins = config.buckets.iter().enumerate().map(check_origin);
    origins.chain(log).filter_map(Result::err).collect()
}

/// Log the certificates that have expired, will expire within a week, or are not valid yet. A server
/// does that itself when it starts.
pub fn warn_of_expiry(config: &Config) {
    if let Some(settings) = &config.server.tls {
        tls::warn_of_expiry(settings);
    }
}

fn check_tls(settings: &Tls) -> Vec<Unfit> {
    let unfit = |problem: Unusable| Unfit {
        key: format!("server.tls.{}", problem.key),
        what: problem.what,
    };
    let problems = tls::check(settings).err().unwrap_or_default();
    let mut all: Vec<_> = problems.into_iter().map(unfit).collect();
    if settings.ktls == KernelTls::On {
        let missing = tls::kernel_tls().err().map(|why| Unfit {
            key: "server.tls.ktls".to_owned(),
            what: format!("is on, and {why}; write auto to do without kernel TLS"),
        });
        all.extend(missing);
    }
    all
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

/// Check the folders of the cache. Of several, one that can be used is enough; the others are logged.
/// `is_path`: the only one is `cache.disk.path`.
fn check_folders(folders: &[FolderConfig], is_path: bool) -> Vec<Unfit> {
    let key = |index| match is_path {
        true => "cache.disk.path".to_owned(),
        false => format!("cache.disk.paths[{index}].path"),
    };
    let with_keys = folders.iter().enumerate();
    let with_keys = with_keys.map(|(index, folder)| patience::Folder {
        path: folder.path.clone(),
        limit: Patience::default().short(),
        of: key(index),
    });
    let checked = patience::each(with_keys.collect(), |path, key: String| {
        Ok(check_folder(&key, path).err())
    });
    let unfit = checked
        .into_iter()
        .enumerate()
        .filter_map(|(index, checked)| {
            checked.unwrap_or_else(|e| {
                let (key, what) = (key(index), e.to_string());
                Some(Unfit { key, what })
            })
        });
    let unfit: Vec<_> = unfit.collect();
    if unfit.len() == folders.len() {
        return unfit;
    }
    for unfit in unfit {
        warn!("{unfit}; the others are used without it");
    }
    Vec::new()
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

/// Check that a file can be appended to, or created.
fn check_log(log: &AccessLog, path: &Path) -> Result<(), Unfit> {
    let unfit = |what| Unfit {
        key: "access_log.path".to_owned(),
        what,
    };
    // The name of a daily file is that of a day.
    if log.rotate == Rotate::None {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                let what = format!("{} is a folder; write the path of a file", path.display());
                return Err(unfit(what));
            }
            Ok(_) => {
                return access(path, Access::WRITE_OK).map_err(|e| {
                    unfit(format!(
                        "{} cannot be written to: {e}; let the proxy's user write there",
                        path.display()
                    ))
                })
            }
            Err(_) => {}
        }
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !fs::metadata(parent).is_ok_and(|found| found.is_dir()) {
        return Err(unfit(format!(
            "there is no folder {}; create it, or write the path of a file in another one",
            parent.display()
        )));
    }
    access(parent, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| {
        unfit(format!(
            "{} cannot be written to: {e}; let the proxy's user create files there",
            parent.display()
        ))
    })
}

fn check_socket(key: &str, sock: &Path) -> Result<(), Unfit> {
    const REMEDY: &str = "write the path of a socket in a folder of the proxy's own";
    let unfit = |problem: String| Unfit {
        key: key.to_owned(),
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
