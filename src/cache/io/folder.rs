//! Blocking access to the cache folder: lists, small files, removal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;

use crate::cache::io::{checksum, regular};

/// Properties of a file.
#[derive(Debug, Clone, Copy)]
pub struct FileStat {
    /// Length in bytes.
    pub len: u64,
    /// Bytes that it takes on the disk, without holes.
    pub allocated: u64,
    /// True for a regular file; a link is none.
    pub is_file: bool,
    /// True for a folder.
    pub is_folder: bool,
}

/// Blocking access to the files of a cache folder.
///
/// The provided methods access the local file system. A backend may replace them, as one for
/// tests does.
pub trait FolderAccess: Send + Sync + 'static {
    /// Content of a regular file, at most its first `max_len` bytes. `InvalidData`: it is
    /// not a regular file.
    fn read_file(&self, path: &Path, max_len: u64) -> io::Result<Vec<u8>> {
        read_file(path, max_len)
    }

    /// Append to a file that exists, durably.
    fn append(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let mut file = regular::open_with(File::options().append(true), path)?;
        file.write_all(data)?;
        file.sync_all()
    }

    /// Replace a file in one step, durably. A failure leaves the old content.
    fn replace(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = regular::create(&temporary)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) => regular::open_folder(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Replace a file of a few bytes in one step, without a sync. Where there is no space for
    /// a second file, overwrite it: a full disk must not keep the cache from being opened. A
    /// crash in between leaves a damaged file.
    fn replace_or_overwrite(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let replaced = regular::create(&temporary)
            .and_then(|mut file| file.write_all(data))
            .and_then(|()| fs::rename(&temporary, path));
        match replaced {
            Err(e) if is_full(&e) => {
                let _ = fs::remove_file(&temporary);
                let file = regular::open_with(File::options().write(true), path);
                let mut file = file.map_err(|_| e)?;
                // Truncating first would give its space away.
                file.write_all(data)?;
                file.set_len(data.len() as u64)
            }
            replaced => replaced,
        }
    }

    /// Call `found` with the name of each file in a folder. After an error, some names may
    /// be missing.
    fn list(&self, folder: &Path, found: &mut dyn FnMut(OsString)) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            found(entry?.file_name());
        }
        Ok(())
    }

    /// Properties of a file. Links are not followed.
    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        stat(path)
    }

    /// Create a folder and those above it. An existing folder is no error.
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    /// Remove a file. A missing file is no error.
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        remove_if_there(path)
    }

    /// Remove a folder and everything in it.
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    /// Make removals in a folder survive a power failure. A missing folder is no error.
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        match regular::open_folder(path) {
            Ok(folder) => folder.sync_all(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Bytes that the file system has left for this process; `None`: unknown.
    fn free_space(&self, path: &Path) -> Option<u64> {
        free_space(path)
    }

    /// CRC-32 of `range` in a file of `len` bytes. The range begins at a multiple of 4096. Read from
    /// the disk where that is possible, so that the page cache is neither trusted nor disturbed. `read` gets the length of each piece.
    /// `InvalidData`: the file has another length.
    fn checksum(
        &self,
        path: &Path,
        len: u64,
        range: Range<u64>,
        read: &mut dyn FnMut(u64),
    ) -> io::Result<u32> {
        checksum::from_disk(path, len, range, read)
    }
}

/// The cache folder on a local file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalFolder;

impl FolderAccess for LocalFolder {}

/// True if the disk, a quota or a limit on file sizes leaves no space.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// [`FolderAccess::replace`], but on a full disk [`FolderAccess::replace_or_overwrite`].
pub(crate) fn replace_small(access: &dyn FolderAccess, path: &Path, data: &[u8]) -> io::Result<()> {
    match access.replace(path, data) {
        Err(e) if is_full(&e) => access.replace_or_overwrite(path, data),
        replaced => replaced,
    }
}

/// [`FolderAccess::read_file`]
pub(crate) fn read_file(path: &Path, max_len: u64) -> io::Result<Vec<u8>> {
    read_open_file(regular::open(path)?, max_len)
}

/// [`read_file`] of a file that is open.
pub(crate) fn read_open_file(file: File, max_len: u64) -> io::Result<Vec<u8>> {
    // Most metadata fits, and is then read by one call.
    let mut data = Vec::with_capacity(4096);
    file.take(max_len).read_to_end(&mut data)?;
    Ok(data)
}

/// [`FolderAccess::remove_file`]
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn stat(path: &Path) -> io::Result<FileStat> {
    let stat = fs::symlink_metadata(path)?;
    Ok(FileStat {
        len: stat.len(),
        allocated: allocated(&stat),
        is_file: stat.is_file(),
        is_folder: stat.is_dir(),
    })
}

#[cfg(unix)]
fn allocated(stat: &fs::Metadata) -> u64 {
    // stat(2): blocks of 512 bytes
    std::os::unix::fs::MetadataExt::blocks(stat).saturating_mul(512)
}

#[cfg(not(unix))]
fn allocated(stat: &fs::Metadata) -> u64 {
    stat.len()
}

#[cfg(target_os = "linux")]
fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(target_os = "linux"))]
fn free_space(_path: &Path) -> Option<u64> {
    None
}
