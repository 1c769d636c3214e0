//! The removal of the files of evicted entries and of fills that were given up.

use std::io;
use std::time::Duration;

use futures::StreamExt;
use log::warn;
use tokio::sync::mpsc;
use tokio::time::{timeout_at, Instant};

use crate::cache::state::removals::{Files, Removal, Which};
use crate::cache::state::stats::Cause;
use crate::cache::state::Core;

/// Most entries that are removed at the same time.
const CONCURRENT_REMOVALS: usize = 8;

/// Time after which a failed removal is tried again. It doubles each time.
const FIRST_RETRY: Duration = match cfg!(test) {
    true => Duration::from_millis(20),
    false => Duration::from_secs(1),
};

/// The longest time between two attempts.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Files that could not be removed. They still take their space, and a restart would find
/// them, so they are tried again for as long as the cache lives.
struct Failed {
    files: Vec<Files>,
    pause: Duration,
    next: Instant,
}

/// Remove the files in the queue, as long as the cache lives.
pub(crate) async fn run(core: &'static Core, mut removals: mpsc::UnboundedReceiver<Removal>) {
    let mut batch = Vec::new();
    let mut files = Vec::new();
    let mut failed = Failed {
        files: Vec::new(),
        pause: FIRST_RETRY,
        next: Instant::now(),
    };
    loop {
        let received = removals.recv_many(&mut batch, 1024);
        let received = match failed.files.is_empty() {
            true => Some(received.await),
            false => timeout_at(failed.next, received).await.ok(),
        };
        if received == Some(0) {
            return;
        }
        for removal in batch.drain(..) {
            match removal {
                Removal::Files(more) => files.push(more),
                Removal::Barrier(done) => {
                    failed.add(core, remove_all(core, &mut files, true).await);
                    let _ = done.send(());
                }
            }
        }
        failed.add(core, remove_all(core, &mut files, true).await);
        failed.retry(core).await;
    }
}

/// Remove files. Returns those that could not be removed.
async fn remove_all(core: &'static Core, files: &mut Vec<Files>, is_first_try: bool) -> Vec<Files> {
    futures::stream::iter(files.drain(..))
        .map(|files| async move {
            let Err(e) = remove(core, &files).await else {
                core.files_removed(files.id, files.reservation);
                return None;
            };
            let id = files.id;
            if is_first_try {
                warn!("cache entry {id}: cannot remove its files; trying again: {e}");
            }
            // No fill waits for their space.
            let reservation = files.reservation.map(|mut reservation| {
                reservation.set_unlinked();
                reservation
            });
            Some(Files {
                reservation,
                ..files
            })
        })
        .buffer_unordered(CONCURRENT_REMOVALS)
        .filter_map(futures::future::ready)
        .collect()
        .await
}

async fn remove(core: &'static Core, files: &Files) -> io::Result<()> {
    let names = core.files(&files.id);
    let body = match &files.which {
        Which::Entry => Ok(()),
        Which::Fill => core.backend().discard(&names).await,
        Which::Leftover(path) => {
            let path = path.clone();
            let remove = move || core.backend().remove_file(&path);
            let removed = core.io.runtime().spawn_blocking(remove).await;
            removed.map_err(io::Error::other)??;
            return check_present(core).await;
        }
    };
    core.backend().remove(&names).await.and(body)?;
    check_present(core).await
}

/// Fails if the files may only be hidden. A restart would find them.
async fn check_present(core: &'static Core) -> io::Result<()> {
    if !core.health.has_others() {
        return Ok(());
    }
    let is_missing = core.io.runtime().spawn_blocking(|| core.is_missing());
    if !is_missing.await.map_err(io::Error::other)? {
        return Ok(());
    }
    core.health.suspect(Cause::Missing);
    let why = "the cache folder fails, or is not mounted";
    Err(io::Error::new(io::ErrorKind::NotConnected, why))
}

// === impl Failed ===

impl Failed {
    fn add(&mut self, core: &Core, files: Vec<Files>) {
        if files.is_empty() {
            return;
        }
        if self.files.is_empty() {
            self.pause = FIRST_RETRY;
            self.next = Instant::now() + self.pause;
        }
        self.files.extend(files);
        core.removals.set_failed(self.files.len());
    }

    async fn retry(&mut self, core: &'static Core) {
        if self.files.is_empty() || Instant::now() < self.next {
            return;
        }
        let failed = remove_all(core, &mut self.files, false).await;
        self.files = failed;
        self.pause = LAST_RETRY.min(self.pause * 2);
        self.next = Instant::now() + self.pause;
        core.removals.set_failed(self.files.len());
    }
}
