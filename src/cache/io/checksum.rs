//! Checksums of files, read past the page cache.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use crate::cache::io::page_cache::read_exact_at;
use crate::cache::io::regular::{self, invalid};

/// Bytes of a read past the page cache.
const PIECE: usize = 128 * 1024;

/// Bytes of a read through the page cache.
const BUFFERED_PIECE: usize = 256 * 1024;

/// Alignment that O_DIRECT demands of buffers, offsets and lengths.
const ALIGNMENT: usize = 4096;

/// See [`FolderAccess::checksum`](crate::cache::io::folder::FolderAccess::checksum).
pub(crate) fn from_disk(
    path: &Path,
    len: u64,
    range: Range<u64>,
    read: &mut dyn FnMut(u64),
) -> io::Result<u32> {
    debug_assert_eq!(range.start % ALIGNMENT as u64, 0);
    let file = open_direct(path)?;
    if file.metadata()?.len() != len {
        return Err(invalid("body file does not have the recorded length"));
    }
    let mut buf = vec![0; PIECE + ALIGNMENT];
    let start = buf.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let buf = &mut buf[start..start + PIECE];
    let mut crc = crc32fast::Hasher::new();
    let mut at = range.start;
    while at < range.end {
        let piece = (range.end - at).min(PIECE as u64) as usize;
        // The last read returns fewer bytes than asked for.
        let got = read_some_at(&file, at, buf)?.min(piece);
        if got < piece && got % ALIGNMENT != 0 {
            read_exact_at(&open_buffered(path)?, at, &mut buf[..piece])?;
            crc.update(&buf[..piece]);
            at += piece as u64;
        } else if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        } else {
            crc.update(&buf[..got]);
            at += got as u64;
        }
        read(piece as u64);
    }
    Ok(crc.finalize())
}

fn open_buffered(path: &Path) -> io::Result<File> {
    regular::open(path)
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    let direct = regular::open_with_flags(File::options().read(true), libc::O_DIRECT, path);
    match direct {
        // Not every file system supports O_DIRECT.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open_buffered(path),
        opened => opened,
    }
}

#[cfg(not(target_os = "linux"))]
fn open_direct(path: &Path) -> io::Result<File> {
    open_buffered(path)
}

#[cfg(unix)]
fn read_some_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match std::os::unix::fs::FileExt::read_at(file, buf, offset) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Length and CRC-32 of a regular file, read through the page cache. `progress` gets the
/// length of each piece.
pub(crate) fn buffered(path: &Path, progress: &mut impl FnMut(u64)) -> io::Result<(u64, u32)> {
    let mut file = open_buffered(path)?;
    let mut crc = crc32fast::Hasher::new();
    let mut buf = vec![0; BUFFERED_PIECE];
    let mut len = 0;
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Ok((len, crc.finalize())),
            Ok(read) => {
                crc.update(&buf[..read]);
                len += read as u64;
                progress(read as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::io::backend_suite::make_pipe;

    #[test]
    fn checksums_of_all_lengths_are_those_of_the_bytes() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for len in [
            0,
            1,
            511,
            512,
            513,
            4095,
            4096,
            4097,
            PIECE - 1,
            PIECE,
            PIECE + 1,
            3 * PIECE + 5000,
        ] {
            let body: Vec<u8> = (0..len).map(|i| (i / 7 + i % 251) as u8).collect();
            std::fs::write(file.path(), &body).unwrap();
            let mut read = 0;
            let found = from_disk(file.path(), len as u64, 0..len as u64, &mut |n| read += n);
            let found = found.unwrap();
            assert_eq!(found, crc32fast::hash(&body), "{len} bytes");
            assert_eq!(read, len as u64);
            assert!(from_disk(file.path(), len as u64 + 1, 0..1, &mut |_| ()).is_err());
            let middle = len / 3 / ALIGNMENT * ALIGNMENT..len / 2;
            let range = middle.start as u64..middle.end as u64;
            let found = from_disk(file.path(), len as u64, range, &mut |_| ()).unwrap();
            assert_eq!(found, crc32fast::hash(&body[middle]), "the middle of {len}");
        }
    }

    #[test]
    fn a_pipe_has_no_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        make_pipe(&path);
        for open in [open_direct, open_buffered] {
            let e = open(&path).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
        }
    }
}
