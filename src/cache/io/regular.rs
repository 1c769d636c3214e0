//! Opening regular files, and nothing that was put in their place.
//!
//! open(2) of a named pipe waits for its other end, possibly for ever, and the thread that
//! waits would be lost.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Flags that keep open(2) from waiting and from following a link out of the folder. They have
/// no effect on regular files. `File` sets O_CLOEXEC itself.
pub(crate) const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOFOLLOW;

/// Open a file for reading. `InvalidData`: it is not a regular file. Blocks.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_with(File::options().read(true), path)
}

/// Open a file with these options, as [`open`] does.
pub(crate) fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_with_flags(options, 0, path)
}

/// [`open_with`] with more flags of open(2).
pub(crate) fn open_with_flags(
    options: &mut OpenOptions,
    flags: i32,
    path: &Path,
) -> io::Result<File> {
    let file = options
        .custom_flags(FLAGS | flags)
        .open(path)
        .map_err(not_regular)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(irregular()),
    }
}

/// Read a whole file, as [`open`] opens it.
#[cfg(test)]
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    io::Read::read_to_end(&mut open(path)?, &mut data)?;
    Ok(data)
}

/// Create a file that no other process has open, in place of a leftover of an earlier run.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            File::create_new(path)
        }
        created => created,
    }
}

/// Open a folder, for a sync or to open files relative to it. The error is that of open(2) if it is not a folder. Blocks.
pub(crate) fn open_folder(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
}

/// An error of open(2) with [`FLAGS`]. That of a link, a socket, a folder or a pipe becomes the
/// error of a damaged file.
pub(crate) fn not_regular(e: io::Error) -> io::Error {
    match e.raw_os_error() {
        Some(libc::ELOOP | libc::ENXIO | libc::EISDIR) => irregular(),
        _ => e,
    }
}

/// The error of a file that is not a regular file.
pub(crate) fn irregular() -> io::Error {
    invalid("is not a regular file")
}

/// An error unless a body file has the recorded length.
pub(crate) fn check_len(found: u64, recorded: u64) -> io::Result<()> {
    match found == recorded {
        true => Ok(()),
        false => Err(wrong_length()),
    }
}

/// The error of a body file that does not have the recorded length.
pub(crate) fn wrong_length() -> io::Error {
    invalid("body file does not have the recorded length")
}

/// The error of a file whose content or type is wrong.
pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::io::backend_suite::make_pipe;

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "data").unwrap();
        make_pipe(&at("pipe"));
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

        assert_eq!(read(&at("file")).unwrap(), b"data");
        assert_eq!(
            open(&at("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        for name in ["pipe", "link", "folder", "socket"] {
            for options in [
                File::options().read(true),
                File::options().write(true),
                File::options().append(true),
            ] {
                let e = open_with(options, &at(name)).unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{name}: {e}");
            }
        }
        for name in ["file", "pipe", "link", "socket"] {
            assert!(open_folder(&at(name)).is_err(), "{name}");
        }
        open_folder(&at("folder")).unwrap();

        // A link is replaced, not its target.
        fs::write(at("target"), "data").unwrap();
        fs::remove_file(at("link")).unwrap();
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        for name in ["file", "pipe", "link", "socket", "none"] {
            create(&at(name)).unwrap();
            assert_eq!(read(&at(name)).unwrap(), b"", "{name}");
        }
        assert_eq!(read(&at("target")).unwrap(), b"data");
        assert!(create(&at("folder")).is_err());
    }
}
