//! The queue of files to be removed.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::cache::state::quota::Reservation;
use crate::cache::store::entry_id::EntryId;

/// A message to the task that removes files.
#[derive(Debug)]
pub(crate) enum Removal {
    /// Remove files.
    Files(Files),
    /// Answer when everything that was queued before is done.
    Barrier(oneshot::Sender<()>),
}

/// Files to be removed.
#[derive(Debug)]
pub(crate) struct Files {
    pub id: EntryId,
    /// The space that they take.
    pub reservation: Option<Reservation>,
    pub which: Which,
}

/// The files of an ID that are to be removed.
#[derive(Debug)]
pub(crate) enum Which {
    Entry,
    /// Those of a fill, which has no entry yet.
    Fill,
    /// A file that an earlier run has left, and no other.
    Leftover(Box<Path>),
}

/// The queue of files to be removed.
#[derive(Debug)]
pub(crate) struct Removals {
    /// Less than 200 bytes an entry; at most as many as the index had entries, and some
    /// thousand leftovers.
    queue: mpsc::UnboundedSender<Removal>,
    /// Number of entries whose files could not be removed so far.
    failed: AtomicUsize,
}

impl Removals {
    /// A queue, and its end for the task that removes files.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Removal>) {
        let (queue, removals) = mpsc::unbounded_channel();
        let failed = AtomicUsize::new(0);
        (Removals { queue, failed }, removals)
    }

    /// Have files removed, and their reservation released after that.
    pub(crate) fn add(&self, id: EntryId, reservation: Option<Reservation>, which: Which) {
        let _ = self.queue.send(Removal::Files(Files {
            id,
            reservation,
            which,
        }));
    }

    /// Wait until everything is removed that was queued before.
    pub(crate) async fn done(&self) {
        let (done, removed) = oneshot::channel();
        if self.queue.send(Removal::Barrier(done)).is_ok() {
            let _ = removed.await;
        }
    }

    /// Note the number of entries whose files could not be removed so far.
    pub(crate) fn set_failed(&self, count: usize) {
        self.failed.store(count, Ordering::Release);
    }

    /// True if files could not be removed so far.
    pub(crate) fn have_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) > 0
    }
}
