//! Calls to the kernel that neither std nor rustix has.

#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::fd::AsRawFd;

    /// `struct cachestat_range` of `<linux/mman.h>`.
    #[repr(C)]
    struct CachestatRange {
        off: u64,
        len: u64,
    }

    /// `struct cachestat` of `<linux/mman.h>`.
    #[repr(C)]
    #[derive(Default)]
    struct Cachestat {
        nr_cache: u64,
        nr_dirty: u64,
        nr_writeback: u64,
        nr_evicted: u64,
        nr_recently_evicted: u64,
    }

    /// cachestat(2) has the same number on all architectures but alpha.
    const SYS_CACHESTAT: libc::c_long = 451;

    /// Number of pages of a range of a file in the page cache. Pages that are being read count
    /// as well. Linux 6.5. Never waits for the disk.
    pub fn cached_pages(file: &File, offset: u64, len: u64) -> io::Result<u64> {
        let mut range = CachestatRange { off: offset, len };
        let mut stat = Cachestat::default();
        // SAFETY: both structures have the kernel's layout and outlive the call,
        // and the descriptor is open as long as `file` is borrowed.
        let result = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                file.as_raw_fd(),
                &raw mut range,
                &raw mut stat,
                0u32,
            )
        };
        match result {
            0 => Ok(stat.nr_cache),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Append a whole file of length `len` to an empty buffer, from the page cache, in one call
    /// (preadv2(2), RWF_NOWAIT). `false`: the file has another length, or not all of it is cached; the
    /// buffer stays empty. Never waits for the disk.
    pub fn read_whole_nowait(file: &File, buf: &mut Vec<u8>, len: usize) -> io::Result<bool> {
        let room = &mut buf.spare_capacity_mut()[..len];
        let mut beyond = 0u8;
        let parts = [
            libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: len,
            },
            libc::iovec {
                iov_base: (&raw mut beyond).cast(),
                iov_len: 1,
            },
        ];
        // SAFETY: both parts are writable for their lengths and outlive the call, and the descriptor is
        // open as long as `file` is borrowed.
        let read = unsafe {
            libc::preadv2(
                file.as_raw_fd(),
                parts.as_ptr(),
                parts.len() as libc::c_int,
                0,
                libc::RWF_NOWAIT,
            )
        };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        let is_whole = read as usize == len;
        if is_whole {
            // SAFETY: the call has initialized so many bytes.
            unsafe { buf.set_len(len) };
        }
        Ok(is_whole)
    }

    /// A mapped part of a file, which is never read through the mapping.
    struct Mapping {
        start: *mut libc::c_void,
        len: usize,
    }

    impl Mapping {
        /// Map a range. `range.start` is a multiple of the page size.
        fn of(file: &File, range: &Range<u64>) -> io::Result<Mapping> {
            let len = (range.end - range.start) as usize;
            let offset = libc::off_t::try_from(range.start).map_err(io::Error::other)?;
            // SAFETY: the kernel chooses the addresses, so nothing else is there, and the
            // descriptor is open as long as `file` is borrowed.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len,
                    libc::PROT_READ,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    offset,
                )
            };
            match start {
                libc::MAP_FAILED => Err(io::Error::last_os_error()),
                start => Ok(Mapping { start, len }),
            }
        }

        fn advise(&self, advice: libc::c_int) -> io::Result<()> {
            // SAFETY: the addresses are those of this mapping, which this borrows, and no advice
            // used here changes the content.
            match unsafe { libc::madvise(self.start, self.len, advice) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: the addresses are those of this mapping, and no reference to them
            // was ever made.
            unsafe { libc::munmap(self.start, self.len) };
        }
    }

    /// Bring a range of a file into the page cache in the largest possible folios, up to the
    /// size that one entry of the middle level of a page table maps. Waits for the disk. The
    /// kernel reads from the last multiple of that size on.
    ///
    /// read(2) and posix_fadvise(2) load ranges out of sequence page by page. For a mapping with
    /// MADV_HUGEPAGE the kernel reads large folios, and with MADV_RANDOM only one
    /// (`do_sync_mmap_readahead()` of `mm/filemap.c`).
    ///
    /// # Errors
    /// `EINVAL`: the kernel does not know MADV_POPULATE_READ (Linux 5.14) or large pages.
    /// `EFAULT`: the file cannot be read there, or ends earlier; read(2) reports which.
    pub fn load_in_large_folios(file: &File, range: &Range<u64>) -> io::Result<()> {
        let page = rustix::param::page_size() as u64;
        let mapping = Mapping::of(file, &(range.start / page * page..range.end))?;
        mapping.advise(libc::MADV_HUGEPAGE)?;
        mapping.advise(libc::MADV_RANDOM)?;
        mapping.advise(libc::MADV_POPULATE_READ)
    }

    /// Let disk reads of the calling thread wait for those of all others, see ioprio_set(2).
    /// Only some I/O schedulers support it.
    pub fn set_idle_io_priority() -> io::Result<()> {
        const IOPRIO_WHO_PROCESS: libc::c_int = 1;
        const THIS_THREAD: libc::c_int = 0;
        const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
        // SAFETY: takes three integers and only changes a priority.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ioprio_set,
                IOPRIO_WHO_PROCESS,
                THIS_THREAD,
                IOPRIO_CLASS_IDLE,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(target_os = "linux")]
pub use linux::{cached_pages, load_in_large_folios, read_whole_nowait, set_idle_io_priority};

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_file_just_written_are_cached() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 10 * 4096]).unwrap();
        let open = std::fs::File::open(file.path()).unwrap();
        assert_eq!(cached_pages(&open, 0, 10 * 4096).unwrap(), 10);
        assert_eq!(cached_pages(&open, 4096, 4096).unwrap(), 1);
        assert_eq!(cached_pages(&open, 1 << 20, 4096).unwrap(), 0);
    }

    #[test]
    fn a_file_is_read_if_it_has_the_length() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = std::fs::File::open(file.path()).unwrap();
        for content in [&b""[..], b"1", &[7; 10_000]] {
            std::fs::write(file.path(), content).unwrap();
            for len in [0, 1, 2, 9999, 10_000, 10_001] {
                let mut buf = Vec::with_capacity(len);
                let is_whole = read_whole_nowait(&open, &mut buf, len).unwrap();
                assert_eq!(is_whole, len == content.len(), "{len}");
                assert_eq!(buf, if is_whole { content } else { b"" });
            }
        }
    }

    #[test]
    fn a_thread_may_lower_its_priority() {
        std::thread::spawn(|| set_idle_io_priority().unwrap())
            .join()
            .unwrap();
    }
}
