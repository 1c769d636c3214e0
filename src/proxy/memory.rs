//! Return of free memory to the system.
//!
//! The allocator keeps the memory that a thread has freed for that thread, and the memory that
//! other threads have freed for it until the thread collects it. After many concurrent requests,
//! this is most of their memory. Each worker thread has to release its own memory.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::yield_now;

/// Makes the allocator release the calling thread's free memory: all of it if the argument is true,
/// otherwise the part that has been free for some time.
pub type Release = fn(bool);

/// The time from the end of a request to the release.
const INTERVAL: Duration = Duration::from_secs(2);

/// The most times a task yields so that other worker threads get their turn.
const TURNS: usize = 1000;

/// The most rounds without a request in which some thread got no turn.
const TRIES: usize = 5;

static RELEASE: OnceLock<Release> = OnceLock::new();
static REQUESTS_ENDED: AtomicU64 = AtomicU64::new(0);
static IS_WATCHED: AtomicBool = AtomicBool::new(false);
static ROUND: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static LAST_ROUND: Cell<u64> = const { Cell::new(0) };
}

/// Set the function that is called while requests end, and once more when they have ended.
pub fn release_by(release: Release) {
    // The first function stays, because there is only one allocator.
    let _ = RELEASE.set(release);
}

/// Note, on a worker thread, the end of a request that took much memory.
pub(super) fn request_ended() {
    REQUESTS_ENDED.fetch_add(1, Ordering::Relaxed);
    watch();
}

fn watch() {
    let Some(&release) = RELEASE.get() else {
        return;
    };
    if IS_WATCHED.load(Ordering::Relaxed) || IS_WATCHED.swap(true, Ordering::AcqRel) {
        return;
    }
    tokio::spawn(async move {
        let mut tries = 0;
        let mut ended = REQUESTS_ENDED.load(Ordering::Relaxed);
        while tries < TRIES {
            tokio::time::sleep(INTERVAL).await;
            let now = REQUESTS_ENDED.load(Ordering::Relaxed);
            let is_quiet = now == ended;
            ended = now;
            let complete = on_each_worker(move || release(is_quiet)).await;
            if !is_quiet {
                tries = 0;
            } else if complete {
                break;
            } else {
                tries += 1;
            }
        }
        IS_WATCHED.store(false, Ordering::Release);
        // A request that ended meanwhile has started no watch.
        if REQUESTS_ENDED.load(Ordering::Relaxed) != ended {
            watch();
        }
    });
}

/// Call `work` on each worker thread of this runtime that takes a task in time. False if some did
/// not.
async fn on_each_worker(work: impl Fn() + Copy + Send + 'static) -> bool {
    let workers = Handle::current().metrics().num_workers();
    let round = ROUND.fetch_add(1, Ordering::Relaxed) + 1;
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..workers)
        .map(|_| {
            let done = done.clone();
            tokio::spawn(async move {
                for _ in 0..TURNS {
                    if LAST_ROUND.replace(round) != round {
                        work();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    if done.load(Ordering::Relaxed) >= workers {
                        break;
                    }
                    // An idle worker takes one of the tasks.
                    yield_now().await;
                }
            })
        })
        .collect();
    for task in tasks {
        // A task that has panicked needs no wait.
        let _ = task.await;
    }
    done.load(Ordering::Relaxed) >= workers
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread::{self, ThreadId};

    use super::*;

    static THREADS: Mutex<Option<HashSet<ThreadId>>> = Mutex::new(None);

    #[test]
    fn each_worker_has_its_turn() {
        const WORKERS: usize = 3;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .build()
            .expect("a runtime");
        let work = || {
            let mut threads = THREADS.lock().expect("no panic");
            threads
                .get_or_insert_default()
                .insert(thread::current().id());
        };
        let complete = runtime.block_on(async move {
            // As a request would have it: from a worker.
            tokio::spawn(async move {
                for _ in 0..1000 {
                    if on_each_worker(work).await {
                        return true;
                    }
                }
                false
            })
            .await
            .expect("no panic")
        });
        assert!(complete);
        let threads = THREADS.lock().expect("no panic");
        assert_eq!(threads.as_ref().map(HashSet::len), Some(WORKERS));
    }
}
