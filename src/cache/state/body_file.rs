//! An open body, and which of it is in the page cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{mpsc, Arc, LazyLock};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::state::room::Claim;
use crate::cache::DiskCache;

/// How much of a body is read from the disk at once, in bytes.
pub const BLOCK: u64 = 2 << 20;

/// A body file that is open for reading.
///
/// `sendfile(2)` of a page that is not in the page cache waits for the disk, on
/// the thread that serves hundreds of other clients. So what is to be sent is
/// [`is_resident`](Self::is_resident) or has been loaded
/// before. The kernel's own read-ahead is off for these files (see
/// `no_read_ahead`): the only pages that are cached but not yet read are then
/// those of loads that this type knows.
#[derive(Debug)]
pub struct BodyFile {
    /// Gone only when it is dropped.
    file: Option<Arc<File>>,
    loads: Mutex<Vec<Load>>,
    space: Arc<Space>,
}

/// The space that an open file takes. There is one from before the file is opened until it
/// is closed, so that a removal in between finds it.
#[derive(Debug, Default)]
pub(crate) struct Space(Mutex<SpaceState>);

#[derive(Debug, Default)]
struct SpaceState {
    /// Nobody reads the file any more.
    is_closing: bool,
    /// The claim on the space, once the file is removed.
    claim: Option<Arc<SharedClaim>>,
}

/// The claim on the space of a removed file that is open several times.
#[derive(Debug)]
struct SharedClaim(Mutex<Removed>);

#[derive(Debug)]
struct Removed {
    claim: Claim,
    /// Those that read the file.
    open: usize,
}

#[derive(Debug)]
struct Load {
    range: Range<u64>,
    done: watch::Receiver<Option<Result<(), LoadError>>>,
}

/// An error that all who waited for a load are told.
#[derive(Debug, Clone)]
struct LoadError {
    kind: io::ErrorKind,
    errno: Option<i32>,
    text: String,
}

impl BodyFile {
    /// Track an open file, whose space is nobody's concern.
    pub fn new(file: Arc<File>) -> Self {
        Self::in_space(file, Arc::default())
    }

    /// Track an open file.
    pub(crate) fn in_space(file: Arc<File>, space: Arc<Space>) -> Self {
        BodyFile {
            file: Some(file),
            loads: Mutex::default(),
            space,
        }
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        match &self.file {
            Some(file) => file,
            None => unreachable!("the file is there until the drop"),
        }
    }

    /// Whether the file is as long as that, as the kernel knows it without asking a
    /// server.
    pub fn has_len(&self, len: u64) -> bool {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{statx, AtFlags, StatxFlags};
            use rustix::io::ioctl_fionread;
            // How much there is behind the position of the descriptor, in 32 bits: of
            // a regular file it is known without its file system (`do_vfs_ioctl()` of
            // `fs/ioctl.c`), in half of the time. Whoever has the file may have moved
            // the position, so only a file that is as long as it should be is told by
            // it; one that has grown by a multiple of 4 GiB too, which does no harm.
            let left = ioctl_fionread(self.file()).map(|left| left as u32);
            if left.is_ok_and(|left| u64::from(left) == len) {
                return true;
            }
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            statx(self.file(), "", flags, StatxFlags::SIZE).is_ok_and(|stat| stat.stx_size == len)
        }
        #[cfg(not(target_os = "linux"))]
        self.file().metadata().is_ok_and(|stat| stat.len() == len)
    }

    /// Whether a range can be sent without waiting for the disk. Never waits.
    pub fn is_resident(&self, range: &Range<u64>) -> bool {
        let being_loaded = self
            .loads
            .lock()
            .iter()
            .any(|load| load.range.start < range.end && range.start < load.range.end);
        !being_loaded && residency::is_cached(self.file(), range)
    }

    /// Bring the first block of `range` into the page cache, off this thread,
    /// and return up to where it reaches. Loads of the same block are one.
    ///
    /// Goes on when the future is dropped.
    pub(crate) async fn load(
        self: &Arc<Self>,
        cache: &'static DiskCache,
        range: &Range<u64>,
    ) -> io::Result<u64> {
        let (end, mut done) = self.start_load(cache, range);
        let result = match done.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => return Err(io::Error::other("the cache is shutting down")),
        };
        match result {
            Some(Err(e)) => Err(e.into()),
            _ => Ok(end),
        }
    }

    /// Start to bring the first block of `range` into the page cache.
    pub(crate) fn read_ahead(self: &Arc<Self>, cache: &'static DiskCache, range: &Range<u64>) {
        if !range.is_empty() && !self.is_resident(&(range.start..block_end(range))) {
            self.start_load(cache, range);
        }
    }

    fn start_load(
        self: &Arc<Self>,
        cache: &'static DiskCache,
        range: &Range<u64>,
    ) -> (u64, watch::Receiver<Option<Result<(), LoadError>>>) {
        let range = range.start..block_end(range);
        let mut loads = self.loads.lock();
        if let Some(load) = loads
            .iter()
            .find(|load| load.range.start <= range.start && range.start < load.range.end)
        {
            return (load.range.end.min(range.end), load.done.clone());
        }
        let (sender, done) = watch::channel(None);
        loads.push(Load {
            range: range.clone(),
            done: done.clone(),
        });
        drop(loads);
        let (this, end) = (self.clone(), range.end);
        cache.runtime().spawn(async move {
            let result = {
                let _permit = cache.load_permit().await;
                cache
                    .backend()
                    .load(this.file(), range.start, range.end - range.start)
                    .await
            };
            this.loads.lock().retain(|load| load.range != range);
            sender.send_replace(Some(result.map_err(|e| LoadError {
                kind: e.kind(),
                errno: e.raw_os_error(),
                text: e.to_string(),
            })));
        });
        (end, done)
    }
}

/// Closes files: the last close of one that was removed frees its pages and its
/// disk space, which takes 0.4 s for half a gigabyte on ext4.
static CLOSER: LazyLock<Option<mpsc::Sender<Closed>>> = LazyLock::new(|| {
    let (sender, files) = mpsc::channel::<Closed>();
    std::thread::Builder::new()
        .name("cache-close".into())
        .spawn(move || files.into_iter().for_each(Closed::close))
        .ok()
        .map(|_| sender)
});

/// A task of the closer.
enum Closed {
    /// Close a file, after which its space is free.
    File(Arc<File>, Arc<Space>),
    /// Wait.
    #[cfg(test)]
    Barrier(Arc<std::sync::Barrier>),
}

impl Closed {
    fn close(self) {
        match self {
            Closed::File(file, space) => {
                drop(file);
                drop(space);
            }
            #[cfg(test)]
            Closed::Barrier(barrier) => {
                barrier.wait();
            }
        }
    }
}

/// Have the closer wait for the barrier.
#[cfg(test)]
pub(crate) fn stop_closer(barrier: &Arc<std::sync::Barrier>) {
    let closer = CLOSER.as_ref().expect("a closer");
    let _ = closer.send(Closed::Barrier(barrier.clone()));
}

impl Space {
    /// Note that the file is removed, which is open in these spaces, and keeps its space until
    /// it is closed.
    pub(crate) fn hold(spaces: &[Arc<Space>], mut claim: Claim) {
        if spaces.is_empty() {
            return;
        }
        // If nobody reads it, it is closed in a moment.
        claim.go();
        let open = spaces.len();
        let shared = Arc::new(SharedClaim(Mutex::new(Removed { claim, open })));
        for space in spaces {
            let mut state = space.0.lock();
            state.claim = Some(shared.clone());
            if state.is_closing {
                shared.0.lock().open -= 1;
            }
        }
        let mut removed = shared.0.lock();
        if removed.open > 0 {
            removed.claim.hold();
        }
    }

    /// Note that nobody reads the file any more.
    fn close(&self) {
        let mut state = self.0.lock();
        if std::mem::replace(&mut state.is_closing, true) {
            return;
        }
        if let Some(shared) = &state.claim {
            let mut removed = shared.0.lock();
            removed.open -= 1;
            if removed.open == 0 {
                removed.claim.go();
            }
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // It may never have been opened.
        self.close();
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        self.space.close();
        if let (Some(file), Some(closer)) = (self.file.take(), &*CLOSER) {
            let _ = closer.send(Closed::File(file, self.space.clone()));
        }
    }
}

/// Where the block ends in which a range begins, or the range.
pub(crate) fn block_end(range: &Range<u64>) -> u64 {
    range.end.min((range.start / BLOCK + 1) * BLOCK)
}

impl From<LoadError> for io::Error {
    fn from(e: LoadError) -> Self {
        match e.errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(e.kind, e.text),
        }
    }
}

/// Read what is in the page cache; `None` if anything of it is not, or if the
/// file system can not tell. Never waits for the disk (preadv2(2), RWF_NOWAIT).
#[cfg(target_os = "linux")]
pub fn read_now(file: &File, offset: u64, len: usize) -> Option<Vec<u8>> {
    let mut buf = vec![0; len];
    residency::read_now(file, offset, &mut buf).then_some(buf)
}

/// Elsewhere nobody can tell.
#[cfg(not(target_os = "linux"))]
pub fn read_now(_file: &File, _offset: u64, _len: usize) -> Option<Vec<u8>> {
    None
}

#[cfg(target_os = "linux")]
mod residency {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::ops::Range;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::io::{preadv2, Errno, ReadWriteFlags};

    use crate::cache::io::sys;

    /// Whether the kernel is too old for cachestat(2), or forbids it.
    static NO_CACHESTAT: AtomicBool = AtomicBool::new(false);

    /// One probe in so many bytes, where cachestat(2) is missing.
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

    /// Sampled: a page between two probes may be missing.
    pub fn probe(file: &File, range: &Range<u64>) -> bool {
        let mut byte = [0];
        let mut at = range.start;
        while at < range.end {
            if !read_now(file, at, &mut byte) {
                return false;
            }
            at += PROBE;
        }
        read_now(file, range.end - 1, &mut byte)
    }

    pub fn read_now(file: &File, offset: u64, buf: &mut [u8]) -> bool {
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file on a real disk, of four blocks, of which nothing is in the page cache.
    fn cold_file() -> File {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![7; 4 * BLOCK as usize]).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        crate::cache::io::tokio_fs::no_read_ahead(&file);
        file
    }

    #[test]
    fn absent_pages_are_told_from_present_ones() {
        let file = cold_file();
        let len = 4 * BLOCK;
        if residency::is_cached(&file, &(0..len)) {
            println!("this file system keeps its pages: nothing to tell apart");
            return;
        }
        let mut buf = vec![0; BLOCK as usize];
        crate::cache::io::tokio_fs::read_exact_at(&file, BLOCK, &mut buf).unwrap();
        let loaded = BLOCK..2 * BLOCK;
        assert!(residency::is_cached(&file, &loaded));
        assert!(residency::probe(&file, &loaded));
        assert_eq!(read_now(&file, BLOCK, 10).unwrap(), [7; 10]);
        for range in [0..BLOCK, BLOCK - 1..2 * BLOCK, BLOCK..2 * BLOCK + 1] {
            assert!(!residency::is_cached(&file, &range), "{range:?}");
        }
        // Asking for a page that is absent has it read, and a fast disk may be
        // done before the kernel looks again: but not with each of them.
        assert!(!residency::probe(&file, &(0..BLOCK)));
        assert!(read_now(&file, 2 * BLOCK, 10).is_none_or(|read| read == [7; 10]));
    }

    #[test]
    fn a_length_is_told_wherever_the_descriptor_stands() {
        use std::io::{Seek, SeekFrom};
        let body = BodyFile::new(Arc::new(tempfile::tempfile().unwrap()));
        for len in [0, 1, 4096, u64::from(u32::MAX), 1 << 32, 5 << 30] {
            body.file().set_len(len).unwrap();
            for position in [0, 1, len] {
                let mut file = &**body.file();
                file.seek(SeekFrom::Start(position)).unwrap();
                assert!(body.has_len(len), "{len} at {position}");
                assert!(!body.has_len(len + 1), "{len} at {position}");
                if position == 0 {
                    assert!(!body.has_len(len.wrapping_sub(1)), "{len} at 0");
                }
            }
        }
    }

    #[test]
    fn blocks_are_aligned() {
        assert_eq!(block_end(&(0..10)), 10);
        assert_eq!(block_end(&(0..5 * BLOCK)), BLOCK);
        assert_eq!(block_end(&(BLOCK + 5..5 * BLOCK)), 2 * BLOCK);
        assert_eq!(block_end(&(BLOCK - 1..BLOCK)), BLOCK);
    }
}
