//! An open body file, its loads into the page cache, and its space.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{mpsc, Arc, LazyLock};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::io::disk_io::DiskIo;
use crate::cache::io::nowait;
use crate::cache::io::page_cache::{self, block_end};
use crate::cache::state::quota::Reservation;

/// A body file that is open for reading.
///
/// `sendfile(2)` of a page that is not in the page cache waits for the disk, on a thread that
/// serves hundreds of other clients. A range is therefore only sent if it
/// [is resident](Self::is_resident) or has been loaded. The kernel's own read-ahead is off for
/// these files (see `no_read_ahead`), so that the only cached pages that are not yet read are
/// those of loads that this type knows.
#[derive(Debug)]
pub struct BodyFile {
    /// `None` only while this is dropped.
    file: Option<Arc<File>>,
    loads: Mutex<Vec<Load>>,
    space: Arc<BodySpace>,
}

/// The space that an open file takes. It exists from before the file is opened until it is
/// closed, so that a removal in between finds it.
#[derive(Debug, Default)]
pub(crate) struct BodySpace(Mutex<BodySpaceState>);

#[derive(Debug, Default)]
struct BodySpaceState {
    /// True if the file has no reader left.
    is_closing: bool,
    /// The reservation, once the file is removed.
    reservation: Option<Arc<SharedReservation>>,
}

/// The reservation of a removed file that is open several times.
#[derive(Debug)]
struct SharedReservation(Mutex<Removed>);

#[derive(Debug)]
struct Removed {
    reservation: Reservation,
    /// Number of its readers.
    open: usize,
}

#[derive(Debug)]
struct Load {
    range: Range<u64>,
    done: watch::Receiver<Option<Result<(), LoadError>>>,
}

/// The error of a load, for all that wait for it.
#[derive(Debug, Clone)]
struct LoadError {
    kind: io::ErrorKind,
    errno: Option<i32>,
    text: String,
}

impl BodyFile {
    /// Track an open file whose space is not counted.
    #[cfg(test)]
    pub fn new(file: Arc<File>) -> Self {
        Self::in_space(file, Arc::default())
    }

    /// Track an open file.
    pub(crate) fn in_space(file: Arc<File>, space: Arc<BodySpace>) -> Self {
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

    /// Close another descriptor of the file, on the thread that closes files. Its space stays taken
    /// until then.
    pub(crate) fn close_other(&self, file: Arc<File>) {
        if let Some(closer) = &*CLOSER {
            let _ = closer.send(Closed::File(file, self.space.clone()));
        }
    }

    /// True if the file has this length, as far as the kernel knows without asking a server.
    pub fn has_len(&self, len: u64) -> bool {
        nowait::has_len(self.file(), len)
    }

    /// True if a range can be sent without waiting for the disk. Never waits.
    pub(crate) fn is_resident(&self, io: &DiskIo, range: &Range<u64>) -> bool {
        let being_loaded = self
            .loads
            .lock()
            .iter()
            .any(|load| load.range.start < range.end && range.start < load.range.end);
        !being_loaded && io.has_page_cache() && page_cache::is_resident(self.file(), range)
    }

    /// Bring the first block of `range` into the page cache, on another thread, and return the
    /// end of the block. Loads of the same block are one.
    ///
    /// Continues when the future is dropped.
    pub(crate) async fn load(
        self: &Arc<Self>,
        io: &'static DiskIo,
        range: &Range<u64>,
    ) -> io::Result<u64> {
        let (end, mut done) = self.start_load(io, range);
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
    pub(crate) fn read_ahead(self: &Arc<Self>, io: &'static DiskIo, range: &Range<u64>) {
        if !range.is_empty() && !self.is_resident(io, &(range.start..block_end(range))) {
            self.start_load(io, range);
        }
    }

    fn start_load(
        self: &Arc<Self>,
        io: &'static DiskIo,
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
        io.runtime().spawn(async move {
            let result = {
                let _permit = io.read_permit().await;
                io.backend()
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

/// The thread that closes files. The last close of a removed file frees its pages and its disk
/// space, which takes 0.4 s for half a gigabyte on ext4.
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
    /// Close a file, and then release its space.
    File(Arc<File>, Arc<BodySpace>),
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

impl BodySpace {
    /// Note that a file is removed that is open in these spaces. It keeps its space until it is
    /// closed.
    pub(crate) fn hold(spaces: &[Arc<BodySpace>], mut reservation: Reservation) {
        if spaces.is_empty() {
            return;
        }
        // Without readers, it is closed soon.
        reservation.set_removing();
        let open = spaces.len();
        let shared = Arc::new(SharedReservation(Mutex::new(Removed { reservation, open })));
        for space in spaces {
            let mut state = space.0.lock();
            state.reservation = Some(shared.clone());
            if state.is_closing {
                shared.0.lock().open -= 1;
            }
        }
        let mut removed = shared.0.lock();
        if removed.open > 0 {
            removed.reservation.set_unlinked();
        }
    }

    /// Note that the file has no reader left.
    fn close(&self) {
        let mut state = self.0.lock();
        if std::mem::replace(&mut state.is_closing, true) {
            return;
        }
        if let Some(shared) = &state.reservation {
            let mut removed = shared.0.lock();
            removed.open -= 1;
            if removed.open == 0 {
                removed.reservation.set_removing();
            }
        }
    }
}

impl Drop for BodySpace {
    fn drop(&mut self) {
        // The file may never have been opened.
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

impl From<LoadError> for io::Error {
    fn from(e: LoadError) -> Self {
        match e.errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(e.kind, e.text),
        }
    }
}
