//! The path of a Unix socket to listen at.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::listener::StartError;

/// Check that a Unix socket can be made at `path`. The socket of a process that has ended is replaced,
/// any other file stays.
///
/// # Errors
/// There is another file, a process listens there, or the directory is missing. `key` names the
/// setting to change.
pub(super) fn check(path: &Path, key: &str) -> Result<(), StartError> {
    let fail = |why: String| {
        Err(StartError(format!(
            "{key}: cannot listen on {}: {why}",
            path.display()
        )))
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            fail("there is another file; remove it, or choose another path".into())
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => fail("a process listens there; stop it, or choose another path".into()),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(e) => fail(format!("{e}; choose another path")),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => match path.parent() {
            // A path without a slash starts at the working directory.
            Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                fail(format!("{} is not a directory; make it", folder.display()))
            }
            _ => Ok(()),
        },
        Err(e) => fail(format!("{e}; choose another path")),
    }
}

/// Wait until a Unix socket accepts a connection.
pub(super) fn wait_for(path: &Path) {
    while UnixStream::connect(path).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_the_socket_of_an_ended_process_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str| {
            let checked = super::check(&folder.path().join(name), "admin.socket");
            checked.map_err(|e| e.to_string())
        };
        assert_eq!(check("new"), Ok(()));
        let listening = UnixListener::bind(folder.path().join("used")).unwrap();
        assert!(check("used").unwrap_err().contains("a process listens"));
        drop(listening);
        assert_eq!(check("used"), Ok(()));
        fs::write(folder.path().join("file"), "precious").unwrap();
        let e = check("file").unwrap_err();
        assert!(
            e.starts_with("admin.socket: ") && e.contains("another file"),
            "{e}"
        );
        assert!(check("absent/new").unwrap_err().contains("not a directory"));
    }
}
