//! Residency of bodies in the page cache, and loads into it.
//!
//! The folios that a load creates are used by all later sends of the body. `sendfile(2)` of
//! folios of one page takes half as long again as of folios of 2 MiB, and read(2) creates only
//! folios of one page unless a file is read in sequence.

use std::fs::File;
use std::io;
use std::ops::Range;

/// Bytes of a body that are read from the disk at once.
pub(crate) const BLOCK: u64 = 2 << 20;

/// Bytes that are read at once where folios cannot be large.
const PIECE: usize = 64 * 1024;

/// Bring a range of a file into the page cache. Blocks.
///
/// # Errors
/// Those of read(2); `UnexpectedEof`: the file ends within the range.
pub(crate) fn load(file: &File, range: Range<u64>) -> io::Result<()> {
    let mut rest = range;
    while !rest.is_empty() {
        let block = rest.start..block_end(&rest);
        #[cfg(target_os = "linux")]
        let loaded = large_folios::fit(file, &block)? && large_folios::load(file, &block)?;
        #[cfg(not(target_os = "linux"))]
        let loaded = false;
        if !loaded {
            load_by_pages(file, &block)?;
        }
        rest.start = block.end;
    }
    Ok(())
}

fn load_by_pages(file: &File, range: &Range<u64>) -> io::Result<()> {
    read_ahead(file, range.start, range.end - range.start);
    let mut scratch = vec![0; PIECE.min((range.end - range.start) as usize)];
    let mut at = range.start;
    while at < range.end {
        let piece = scratch.len().min((range.end - at) as usize);
        read_exact_at(file, at, &mut scratch[..piece])?;
        at += piece as u64;
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod large_folios {
    use std::fs::{self, File};
    use std::io;
    use std::ops::Range;
    use std::os::unix::fs::MetadataExt;
    use std::sync::LazyLock;

    use super::BLOCK;
    use crate::cache::io::sys;

    /// True if a range within one block should be loaded this way: the kernel reads the whole
    /// block and no more.
    pub fn fit(file: &File, range: &Range<u64>) -> io::Result<bool> {
        let stat = file.metadata()?;
        if stat.len() < range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let block = range.start / BLOCK * BLOCK;
        let block_len = stat.len().min(block + BLOCK) - block;
        let is_most = 2 * (range.end - range.start) >= block_len;
        Ok(is_most && *KERNEL_CAN && read_ahead_len(stat.dev()).is_some_and(|len| len < BLOCK))
    }

    /// Load a range. `false`: the kernel cannot do it.
    pub fn load(file: &File, range: &Range<u64>) -> io::Result<bool> {
        match sys::load_in_large_folios(file, range) {
            Ok(()) => Ok(true),
            // The kernel does not say why; it has tried several times. A file that has become
            // shorter meanwhile is damaged as well.
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Err(_) => Ok(false),
        }
    }

    /// True if the kernel reads blocks at once, which are of 512 MiB on some processors, and is
    /// Linux 6.9 or later, where MADV_POPULATE_READ ends if the disk fails and page faults do
    /// not wait for processes that map files.
    pub static KERNEL_CAN: LazyLock<bool> = LazyLock::new(|| {
        let size = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
        let reads_blocks = size.is_ok_and(|size| size.trim().parse() == Ok(BLOCK));
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        reads_blocks && version(&release) >= Some((6, 9))
    });

    fn version(release: &str) -> Option<(u32, u32)> {
        let mut numbers = release.split(['.', '-']);
        let mut next = || numbers.next()?.parse().ok();
        Some((next()?, next()?))
    }

    /// Bytes that the kernel reads ahead of a file on this device; `None`: unknown.
    ///
    /// The kernel marks the first page of the range that it was made to read, and reads ahead
    /// as soon as that page is sent, unless everything up to the end of the read-ahead is
    /// cached, which is less than a block. The default is 128 KiB; it can be changed at any
    /// time.
    fn read_ahead_len(dev: u64) -> Option<u64> {
        let dev = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        let file = [
            format!("/sys/class/bdi/{dev}/read_ahead_kb"),
            // A partition has the value of its disk.
            format!("/sys/dev/block/{dev}/../bdi/read_ahead_kb"),
        ];
        let kib = file.iter().find_map(|file| fs::read_to_string(file).ok())?;
        Some(1024 * kib.trim().parse::<u64>().ok()?)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn versions_are_read() {
            for (release, expected) in [
                ("6.18.44-fc-v782", Some((6, 18))),
                ("6.9", Some((6, 9))),
                ("6.8.0-31-generic", Some((6, 8))),
                ("10.0.1", Some((10, 0))),
                ("6", None),
                ("", None),
            ] {
                assert_eq!(version(release), expected, "{release}");
            }
            assert!(Some((6, 10)) > Some((6, 9)) && None < Some((6, 9)));
        }

        #[test]
        fn the_read_ahead_of_a_disk_is_found() {
            let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let dev = file.metadata().unwrap().dev();
            let dev_name = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
            if !fs::exists(format!("/sys/dev/block/{dev_name}")).unwrap() {
                println!("{dev_name} is no disk");
                return;
            }
            assert!(read_ahead_len(dev).is_some(), "{dev_name}");
            assert_eq!(read_ahead_len(0), None);
        }
    }
}

/// End of the block in which a range begins, or of the range if that is first.
pub(crate) fn block_end(range: &Range<u64>) -> u64 {
    range.end.min((range.start / BLOCK + 1) * BLOCK)
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

/// Keep the kernel from reading ahead. Pages that are being read look as if they were cached,
/// and sending one would wait for the disk. The cache reads ahead itself and knows when that is
/// done.
#[cfg(target_os = "linux")]
pub(crate) fn no_read_ahead(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
}

/// Prepare a body that was opened or created, so that hits can be served from it.
pub(crate) fn prepare(body: &File) {
    no_read_ahead(body);
    no_access_time(body);
}

/// Keep the kernel from noting when a file is read, which costs as much as a small system call. The
/// file must belong to the user of this process (`O_NOATIME` of open(2)); otherwise, times are noted.
#[cfg(target_os = "linux")]
pub(crate) fn no_access_time(file: &File) {
    let _ = rustix::fs::fcntl_setfl(file, rustix::fs::OFlags::NOATIME);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn no_access_time(_file: &File) {}

#[cfg(not(target_os = "linux"))]
pub(crate) fn no_read_ahead(_file: &File) {}

/// Make the kernel start to read a range.
#[cfg(target_os = "linux")]
pub(crate) fn read_ahead(file: &File, offset: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read_ahead(_file: &File, _offset: u64, _len: u64) {}

/// Read a range from the page cache. `None`: a part of it is not cached, or the file system
/// cannot tell. Never waits for the disk (preadv2(2), RWF_NOWAIT).
#[cfg(target_os = "linux")]
pub(crate) fn read_nowait(file: &File, offset: u64, len: usize) -> Option<Vec<u8>> {
    let mut buf = vec![0; len];
    residency::read_nowait(file, offset, &mut buf).then_some(buf)
}

/// Other systems cannot tell.
#[cfg(not(target_os = "linux"))]
pub(crate) fn read_nowait(_file: &File, _offset: u64, _len: usize) -> Option<Vec<u8>> {
    None
}

/// Append a file to an empty buffer, which has room for it, from the page cache, if it has this length.
/// `false`: as for [`read_nowait`], or it has another length; the buffer stays empty.
#[cfg(target_os = "linux")]
pub(crate) fn read_whole_nowait(file: &File, len: usize, buf: &mut Vec<u8>) -> bool {
    // One call reads it and finds its end.
    crate::cache::io::sys::read_whole_nowait(file, buf, len).unwrap_or(false)
}

/// True if a range is in the page cache. Pages that are being read count as well. Never
/// waits for the disk.
pub(crate) fn is_resident(file: &File, range: &Range<u64>) -> bool {
    residency::is_cached(file, range)
}

#[cfg(target_os = "linux")]
mod residency {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::ops::Range;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::io::{preadv2, Errno, ReadWriteFlags};

    use crate::cache::io::sys;

    /// True if the kernel has no cachestat(2), or forbids it.
    static NO_CACHESTAT: AtomicBool = AtomicBool::new(false);

    /// Distance of probes where cachestat(2) is missing, in bytes.
    const PROBE: u64 = 64 * 1024;

    pub fn is_cached(file: &File, range: &Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        if !NO_CACHESTAT.load(Ordering::Relaxed) {
            let page = rustix::param::page_size() as u64;
            let pages = (range.end - 1) / page - range.start / page + 1;
            match sys::cached_pages(file, range.start, range.end - range.start) {
                Ok(cached) => return cached >= pages,
                Err(e) => {
                    if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
                        NO_CACHESTAT.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        probe(file, range)
    }

    /// True if the probed pages are cached; a page between two of them may be missing.
    pub fn probe(file: &File, range: &Range<u64>) -> bool {
        let mut byte = [0];
        let mut at = range.start;
        while at < range.end {
            if !read_nowait(file, at, &mut byte) {
                return false;
            }
            at += PROBE;
        }
        read_nowait(file, range.end - 1, &mut byte)
    }

    pub fn read_nowait(file: &File, offset: u64, buf: &mut [u8]) -> bool {
        let mut done = 0;
        while done < buf.len() {
            let mut slices = [IoSliceMut::new(&mut buf[done..])];
            let at = offset + done as u64;
            match preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => return false,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(not(target_os = "linux"))]
mod residency {
    pub fn is_cached(_file: &std::fs::File, _range: &std::ops::Range<u64>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file on a disk that is not in the page cache, as far as the file system allows.
    fn cold_file(len: u64) -> File {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![7; len as usize]).unwrap();
        file.sync_all().unwrap();
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        no_read_ahead(&file);
        file
    }

    /// Checks that a way to load caches ranges within blocks.
    #[cfg(target_os = "linux")]
    fn brings_all_there_is(load: impl Fn(&File, &Range<u64>)) {
        let len = 3 * BLOCK + 12_345;
        for range in [
            0..BLOCK,
            BLOCK..BLOCK + 1,
            BLOCK + 4097..2 * BLOCK,
            2 * BLOCK..3 * BLOCK,
        ] {
            let body = cold_file(len);
            if is_resident(&body, &range) {
                println!("this file system keeps its pages: nothing to tell apart");
                return;
            }
            load(&body, &range);
            assert!(is_resident(&body, &range), "{range:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_loaded() {
        brings_all_there_is(|body, range| load_by_pages(body, range).unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn large_folios_are_loaded() {
        if !*large_folios::KERNEL_CAN {
            println!("this kernel cannot");
            return;
        }
        brings_all_there_is(|body, range| {
            assert!(large_folios::load(body, range).unwrap());
            let next = block_end(&(range.start..u64::MAX));
            assert!(
                !is_resident(body, &(next..next + 1)),
                "no more than the block"
            );
        });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_most_of_a_block_is_loaded_as_one() {
        let file = cold_file(BLOCK + 100);
        for small in [0..BLOCK / 2 - 1, 5..10, BLOCK..BLOCK + 49] {
            assert!(!large_folios::fit(&file, &small).unwrap(), "{small:?}");
        }
    }

    #[test]
    fn blocks_are_loaded_one_after_another() {
        let len = 3 * BLOCK + 12_345;
        for range in [0..len, BLOCK - 1..BLOCK + 1, len - 1..len, 10..10] {
            let body = cold_file(len);
            load(&body, range.clone()).unwrap();
            // Other systems cannot tell.
            let is_resident = is_resident(&body, &range);
            assert!(is_resident || !cfg!(target_os = "linux"), "{range:?}");
        }
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        for (len, range) in [
            (BLOCK, 0..BLOCK + 1),
            (100, 0..101),
            (100, 4096..8192),
            (0, 0..1),
        ] {
            let e = load(&cold_file(len), range.clone()).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof, "{range:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn absent_pages_are_told_from_present_ones() {
        let len = 4 * BLOCK;
        let file = cold_file(len);
        if residency::is_cached(&file, &(0..len)) {
            println!("this file system keeps its pages: nothing to tell apart");
            return;
        }
        let mut buf = vec![0; BLOCK as usize];
        read_exact_at(&file, BLOCK, &mut buf).unwrap();
        let loaded = BLOCK..2 * BLOCK;
        assert!(residency::is_cached(&file, &loaded));
        assert!(residency::probe(&file, &loaded));
        assert_eq!(read_nowait(&file, BLOCK, 10).unwrap(), [7; 10]);
        for range in [0..BLOCK, BLOCK - 1..2 * BLOCK, BLOCK..2 * BLOCK + 1] {
            assert!(!residency::is_cached(&file, &range), "{range:?}");
        }
        // A probe of an absent page starts to read it, and a fast disk may finish before the
        // kernel checks again: but not for each of them.
        assert!(!residency::probe(&file, &(0..BLOCK)));
        assert!(read_nowait(&file, 2 * BLOCK, 10).is_none_or(|read| read == [7; 10]));
    }

    #[test]
    fn blocks_are_aligned() {
        assert_eq!(block_end(&(0..10)), 10);
        assert_eq!(block_end(&(0..5 * BLOCK)), BLOCK);
        assert_eq!(block_end(&(BLOCK + 5..5 * BLOCK)), 2 * BLOCK);
        assert_eq!(block_end(&(BLOCK - 1..BLOCK)), BLOCK);
    }
}
