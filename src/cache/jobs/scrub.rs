//! Finds bits that have flipped on the disk, slowly.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::cache::io::regular;
use crate::cache::io::tokio_fs::{read_exact_at, read_meta};
use crate::cache::{DiskCache, EntryId};

/// How much is read at once, in bytes.
const PIECE: usize = 128 * 1024;

/// What O_DIRECT wants of buffers, offsets and lengths.
const ALIGNMENT: usize = 4096;

/// The time from the start of one pass to that of the next.
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Read all entries over and over, at most `bytes_per_second` of them. Never
/// returns; runs on a thread of its own, whose reads wait for all others.
pub(crate) fn run(cache: &'static DiskCache, bytes_per_second: u64) {
    #[cfg(target_os = "linux")]
    if let Err(e) = crate::cache::io::sys::set_idle_io_priority() {
        info!("the scrubber runs with the priority of others: {e}");
    }
    cache.wait_loaded();
    loop {
        let start = Instant::now();
        pass(cache, &mut Pace::new(bytes_per_second));
        std::thread::sleep(PASS_INTERVAL.saturating_sub(start.elapsed()));
    }
}

fn pass(cache: &'static DiskCache, pace: &mut Pace) {
    for part in 0..cache.index().parts() {
        for id in cache.index().part(part) {
            let result = check(cache, id, pace);
            // Evicted or replaced since it was listed: nothing to say.
            if !cache.index().contains(&id) {
                continue;
            }
            match result {
                Ok(()) => cache.stats().scrubbed_ok.inc(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    cache.stats().scrubbed_damaged.inc();
                    cache.drop_damaged(id, &e);
                }
            }
        }
    }
}

/// Compare an entry with its checksum.
fn check(cache: &'static DiskCache, id: EntryId, pace: &mut Pace) -> io::Result<()> {
    let layout = cache.backend().layout();
    let meta = read_meta(&layout.meta(&id))?;
    if meta.generation != id.generation || meta.hash() != id.hash {
        return Err(crate::cache::store::format::invalid(
            "metadata file is that of another entry",
        ));
    }
    let found = checksum(&layout.body(&id), meta.body_len, |read| {
        cache.stats().scrubbed_bytes.add(read);
        pace.took(read);
    })?;
    if found != meta.body_crc32 {
        return Err(crate::cache::store::format::invalid(
            "body file has a wrong checksum",
        ));
    }
    Ok(())
}

/// CRC-32 of a file, from the disk where that is possible: so the page cache is
/// neither trusted nor disturbed. `read` is told of each piece.
fn checksum(path: &Path, len: u64, mut read: impl FnMut(u64)) -> io::Result<u32> {
    let file = open_direct(path)?;
    if file.metadata()?.len() != len {
        return Err(crate::cache::store::format::invalid(
            "body file does not have the recorded length",
        ));
    }
    let mut buf = vec![0; PIECE + ALIGNMENT];
    let start = buf.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let buf = &mut buf[start..start + PIECE];
    let mut crc = crc32fast::Hasher::new();
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(PIECE as u64) as usize;
        // The last piece is shorter than what is asked for.
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
        // Not every file system can.
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

/// Keeps to a rate.
struct Pace {
    bytes_per_second: u64,
    start: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Pace {
            bytes_per_second: bytes_per_second.max(1),
            start: Instant::now(),
            bytes: 0,
        }
    }

    /// Wait until that much may have been read.
    fn took(&mut self, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        let wait = due.saturating_sub(self.start.elapsed());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
}

/// Log what a pass could not start for.
pub(crate) fn spawn(cache: &'static DiskCache, bytes_per_second: u64) {
    let spawned = std::thread::Builder::new()
        .name("cache-scrub".into())
        .spawn(move || run(cache, bytes_per_second));
    if let Err(e) = spawned {
        warn!("the scrubber cannot run: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found = checksum(file.path(), len as u64, |n| read += n).unwrap();
            assert_eq!(found, crc32fast::hash(&body), "{len} bytes");
            assert_eq!(read, len as u64);
            assert!(checksum(file.path(), len as u64 + 1, |_| ()).is_err());
        }
    }

    #[test]
    fn a_pipe_has_no_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        crate::cache::io::backend_suite::make_pipe(&path);
        for open in [open_direct, open_buffered] {
            let e = open(&path).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
        }
    }
}
