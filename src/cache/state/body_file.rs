//! An open body file, its loads into the page cache, and its space.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use crate::cache::io::disk_io::DiskIo;
use crate::cache::io::nowait;
use crate::cache::io::page_cache::{self, block_end};
use crate::cache::state::found_resident::FoundResident;
use crate::cache::state::quota::Reservation;

/// A body file that is open for reading.
///
/// `sendfile(2)` of a page that is not in the page cache waits for the disk, on a thread that
/// serves hundreds of other clients. A range is therefore only sent if it
/// [is resident](Self::is_resident) or has been loaded. The kernel's own read-ahead is off for
/// these files (see `no_read_ahead`), so that the only cached pages that are not yet read are
/// those of loads that this type knows.
///
/// A page may leave the page cache between the look and the send. The send then waits for the disk after all, or
/// ends there if the disk fails. A look counts for a tenth of a second, see [`FoundResident`], and the client
/// decides how long the send of a part takes. A page that has just been looked for is among the last that the
/// kernel gives up.
#[derive(Debug)]
pub struct BodyFile {
    /// `None` only while this is dropped.
    file: Option<Arc<File>>,
    loads: Mutex<Vec<Load>>,
    /// The part that was found in the page cache, and the time.
    found: FoundResident,
    space: Arc<BodySpace>,
    /// True if it takes less time to close it than to wake the thread that closes files.
    is_closed_fast: bool,
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
            found: FoundResident::default(),
            space,
            is_closed_fast: false,
        }
    }

    /// Track an open file of this length, which was opened without waiting. Unless it is removed,
    /// a short one is closed without waiting as well.
    pub(crate) fn opened_nowait(file: File, len: u64, space: Arc<BodySpace>) -> Self {
        let mut body = BodyFile::in_space(Arc::new(file), space);
        body.is_closed_fast = len <= MAX_CLOSED_FAST;
        body
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
        if let Some(closer) = Closer::get() {
            closer.add(Closed::Shared(file, self.space.clone()));
        }
    }

    /// True if the file has this length, as far as the kernel knows without asking a server.
    pub fn has_len(&self, len: u64) -> bool {
        nowait::has_len(self.file(), len)
    }

    /// True if a range can be sent without waiting for the disk, as far as was seen a moment ago. Never
    /// waits.
    pub(crate) fn is_resident(&self, io: &DiskIo, range: &Range<u64>) -> bool {
        let now = FoundResident::now();
        if self.found.has(range, now) {
            return true;
        }
        let is_resident = !is_being_loaded(&self.loads.lock(), range)
            && io.has_page_cache()
            && page_cache::is_resident(self.file(), range);
        if is_resident {
            // Pages that a load reads count as cached, and it may have begun before the look.
            let loads = self.loads.lock();
            if !is_being_loaded(&loads, range) {
                self.found.note(range, now);
            }
        }
        is_resident
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
        self.found.forget();
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

fn is_being_loaded(loads: &[Load], range: &Range<u64>) -> bool {
    let mut loads = loads.iter().map(|load| &load.range);
    loads.any(|load| load.start < range.end && range.start < load.end)
}

/// The files to close, and the thread that closes them. The last close of a removed file frees its
/// pages and its disk space, which takes 0.4 s for half a gigabyte on ext4.
///
/// Waking the thread takes longer than a close, so it closes files in batches.
struct Closer {
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Queue {
    tasks: Vec<Closed>,
    /// True if they do not wait for others.
    is_urgent: bool,
    /// True if the closer waits for the first one.
    is_idle: bool,
}

static CLOSER: Closer = Closer {
    queue: Mutex::new(Queue {
        tasks: Vec::new(),
        is_urgent: false,
        is_idle: false,
    }),
    wake: Condvar::new(),
};

/// Longest file that is closed where its last reader ends, in bytes. If it is removed at that very
/// moment, the close frees no more than this.
const MAX_CLOSED_FAST: u64 = 1 << 20;

/// Number of files that are closed at once.
const BATCH: usize = 64;

/// Longest wait for a batch. Removed files do not wait.
const BATCH_TIME: Duration = Duration::from_millis(20);

/// A task of the closer.
enum Closed {
    /// Close a file, and then release its space.
    File(File, Arc<BodySpace>),
    /// The same, unless somebody else has the file too.
    Shared(Arc<File>, Arc<BodySpace>),
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
            Closed::Shared(file, space) => {
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

impl Closer {
    /// The closer; `None`: the system has no thread for it.
    fn get() -> Option<&'static Closer> {
        static IS_RUNNING: LazyLock<bool> = LazyLock::new(|| {
            let thread = thread::Builder::new().name("cache-close".into());
            thread.spawn(|| CLOSER.run()).is_ok()
        });
        IS_RUNNING.then_some(&CLOSER)
    }

    fn run(&self) {
        let mut tasks = Vec::new();
        let mut queue = self.queue.lock();
        loop {
            let end = Instant::now() + BATCH_TIME;
            while queue.tasks.len() < BATCH && !queue.is_urgent {
                if self.wake.wait_until(&mut queue, end).timed_out() {
                    break;
                }
            }
            queue.is_urgent = false;
            std::mem::swap(&mut tasks, &mut queue.tasks);
            if tasks.is_empty() {
                queue.is_idle = true;
                self.wake.wait(&mut queue);
                queue.is_idle = false;
            }
            MutexGuard::unlocked(&mut queue, || tasks.drain(..).for_each(Closed::close));
        }
    }

    fn add(&self, task: Closed) {
        let mut queue = self.queue.lock();
        queue.tasks.push(task);
        let wakes = queue.is_idle || queue.tasks.len() == BATCH;
        drop(queue);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Close all files at once that wait.
    fn hurry(&self) {
        let mut queue = self.queue.lock();
        queue.is_urgent = !queue.tasks.is_empty();
        drop(queue);
        self.wake.notify_one();
    }
}

/// Have the closer wait for the barrier.
#[cfg(test)]
pub(crate) fn stop_closer(barrier: &Arc<std::sync::Barrier>) {
    let closer = Closer::get().expect("a closer");
    closer.add(Closed::Barrier(barrier.clone()));
    closer.hurry();
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
        let mut is_closing = false;
        let shared = Arc::new(SharedReservation(Mutex::new(Removed { reservation, open })));
        for space in spaces {
            let mut state = space.0.lock();
            state.reservation = Some(shared.clone());
            if state.is_closing {
                shared.0.lock().open -= 1;
                is_closing = true;
            }
        }
        let mut removed = shared.0.lock();
        if removed.open > 0 {
            removed.reservation.set_unlinked();
        }
        drop(removed);
        if let Some(closer) = Closer::get().filter(|_| is_closing) {
            closer.hurry();
        }
    }

    /// Note that the file has no reader left. True if it is removed.
    fn close(&self) -> bool {
        let mut state = self.0.lock();
        let was_closing = std::mem::replace(&mut state.is_closing, true);
        let Some(shared) = &state.reservation else {
            return false;
        };
        if !was_closing {
            let mut removed = shared.0.lock();
            removed.open -= 1;
            if removed.open == 0 {
                removed.reservation.set_removing();
            }
        }
        true
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
        let is_removed = self.space.close();
        if self.is_closed_fast && !is_removed {
            return;
        }
        if let (Some(file), Some(closer)) = (self.file.take(), Closer::get()) {
            // Memory that another thread frees costs the allocator more.
            closer.add(match Arc::try_unwrap(file) {
                Ok(file) => Closed::File(file, self.space.clone()),
                Err(file) => Closed::Shared(file, self.space.clone()),
            });
            if is_removed {
                closer.hurry();
            }
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
