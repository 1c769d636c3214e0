//! Progress of the recovery of the entries of earlier runs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::cache::store::layout::SHARDS;

/// Progress of the recovery, during which the index is incomplete.
#[derive(Debug)]
pub struct RecoveryProgress {
    shards: AtomicUsize,
    /// Number of recoveries that were requested so far, and of those that began.
    requested: AtomicUsize,
    begun: AtomicUsize,
    /// Held during a recovery, on a thread of its own.
    running: Mutex<()>,
    gaps: AtomicBool,
    /// True once the first recovery has ended.
    ended: Mutex<bool>,
    signal: Condvar,
    start: Mutex<Start>,
}

/// Start of the recovery.
#[derive(Debug, Clone, Copy)]
struct Start {
    since: Instant,
    /// Bytes of the entries, if the last run could note them.
    size: Option<u64>,
}

impl RecoveryProgress {
    /// A recovery that starts now, of entries that take `size` bytes, if that is known.
    pub(crate) fn new(size: Option<u64>) -> Self {
        RecoveryProgress {
            shards: AtomicUsize::default(),
            requested: AtomicUsize::default(),
            begun: AtomicUsize::default(),
            running: Mutex::default(),
            gaps: AtomicBool::default(),
            ended: Mutex::default(),
            signal: Condvar::new(),
            start: Mutex::new(Start {
                since: Instant::now(),
                size,
            }),
        }
    }

    /// Progress from 0 to 1.
    pub fn ratio(&self) -> f64 {
        self.shards.load(Ordering::Acquire) as f64 / SHARDS as f64
    }

    /// True if there may be entries that could not be examined.
    pub fn has_gaps(&self) -> bool {
        self.gaps.load(Ordering::Acquire)
    }

    /// True if all entries of earlier runs are known.
    pub fn is_complete(&self) -> bool {
        let begun = self.begun.load(Ordering::Acquire);
        // In this order: a recovery that begins in between has no shard yet.
        self.shards.load(Ordering::Acquire) >= SHARDS
            && begun == self.requested.load(Ordering::Acquire)
    }

    /// Number of recoveries after the first that were requested so far.
    pub(crate) fn count(&self) -> usize {
        self.requested.load(Ordering::Acquire)
    }

    /// Have all entries count as unknown until a recovery has ended that begins with
    /// [`begin`](Self::begin).
    pub(crate) fn request(&self) {
        self.requested.fetch_add(1, Ordering::AcqRel);
    }

    /// Withdraw a [`request`](Self::request).
    pub(crate) fn cancel(&self) {
        self.requested.fetch_sub(1, Ordering::AcqRel);
    }

    /// Begin with the first shard, once no other recovery runs. Blocks. `is_requested`: see
    /// [`request`](Self::request).
    pub(crate) fn begin(&self, is_requested: bool) -> MutexGuard<'_, ()> {
        let running = self.running.lock();
        self.gaps.store(false, Ordering::Release);
        self.restart();
        if is_requested {
            self.begun.fetch_add(1, Ordering::AcqRel);
        }
        running
    }

    /// Note that files could not be examined.
    pub(crate) fn add_gap(&self) {
        self.gaps.store(true, Ordering::Release);
    }

    /// Note that a shard is recovered.
    pub(crate) fn add_shard(&self) {
        self.shards.fetch_add(1, Ordering::AcqRel);
    }

    /// Begin with the first shard.
    pub(crate) fn restart(&self) {
        self.shards.store(0, Ordering::Release);
    }

    /// Note that a recovery starts now, of entries that take `size` bytes, if that is known.
    pub(crate) fn start(&self, size: Option<u64>) {
        *self.start.lock() = Start {
            since: Instant::now(),
            size,
        };
    }

    /// Bytes of the entries of earlier runs; `None`: unknown, because the last run was not
    /// closed.
    pub(crate) fn size(&self) -> Option<u64> {
        self.start.lock().size
    }

    /// Time since the recovery started.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.lock().since.elapsed()
    }

    /// Note that the first recovery has ended.
    pub(crate) fn end(&self) {
        *self.ended.lock() = true;
        self.signal.notify_all();
    }

    /// Wait for the end of the first recovery. Blocks.
    pub(crate) fn wait(&self) {
        let mut ended = self.ended.lock();
        while !*ended {
            self.signal.wait(&mut ended);
        }
    }

    /// Wait for the end of the first recovery, as long as no shard takes longer than `limit`. Blocks.
    pub(crate) fn wait_while_it_advances(&self, limit: Duration) {
        let mut ended = self.ended.lock();
        let mut before = self.shards.load(Ordering::Acquire);
        while !*ended {
            let is_late = self.signal.wait_for(&mut ended, limit).timed_out();
            let shards = self.shards.load(Ordering::Acquire);
            if is_late && shards == before {
                return;
            }
            before = shards;
        }
    }

    /// Pretend that the recovery started earlier.
    #[cfg(test)]
    pub(crate) fn backdate(&self, by: Duration) {
        self.start.lock().since -= by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_that_hangs_is_not_waited_for() {
        let progress = RecoveryProgress::new(None);
        progress.wait_while_it_advances(Duration::from_millis(10));
        progress.end();
        progress.wait_while_it_advances(Duration::MAX);
    }

    #[test]
    fn a_recovery_is_waited_for_as_long_as_it_advances() {
        // On a busy machine, it may seem to hang with a short limit.
        let limits = [200, 1_000, 5_000, 25_000].map(Duration::from_millis);
        assert!(limits.into_iter().any(|limit| {
            let progress = RecoveryProgress::new(None);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..4 {
                        std::thread::sleep(limit / 2);
                        progress.add_shard();
                    }
                    progress.end();
                });
                progress.wait_while_it_advances(limit);
                let is_ended = *progress.ended.lock();
                is_ended
            })
        }));
    }
}
