//! The rest of a body that is passed to its readers because there is no space to store it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{timeout, Instant};

use crate::cache::state::readers::{Readers, Slow, Slowest};

/// Most bytes that are kept for the slowest reader.
const CAPACITY: u64 = 512 * 1024;

/// Distance at which a reader holds up the fastest one: with the bytes that arrive at once,
/// at most 256 KiB, the window is full then.
const BEHIND: u64 = CAPACITY / 2;

/// The total time that readers wait for slower ones that can leave before those are dropped.
/// A reader that is held up that long leaves itself.
pub(crate) const FIRST_PATIENCE: Duration = match cfg!(test) {
    true => Duration::from_millis(100),
    false => Duration::from_secs(2),
};

/// The same for all readers that are slower than the others.
pub(crate) const PATIENCE: Duration = match cfg!(test) {
    true => Duration::from_millis(200),
    false => Duration::from_secs(10),
};

/// Bytes that have to pass until patience that was used up is restored.
pub(crate) const REFILL: u64 = 64 << 20;

/// The bytes after the end of the file. Readers get them from here, in order, and the origin
/// waits for the slowest reader.
///
/// The window never waits for the request that writes, which reads only when it does not
/// write. That request checks whether the window [is full](Self::is_full), and then writes
/// no more.
#[derive(Debug)]
pub(crate) struct Window {
    /// The length of the file.
    start: u64,
    queue: Mutex<Queue>,
    moved: Notify,
}

#[derive(Debug)]
struct Queue {
    start: u64,
    end: u64,
    pieces: VecDeque<Bytes>,
}

impl Window {
    /// A window behind a file of this length.
    pub(crate) fn new(start: u64) -> Window {
        Window {
            start,
            queue: Mutex::new(Queue {
                start,
                end: start,
                pieces: VecDeque::new(),
            }),
            moved: Notify::new(),
        }
    }

    /// The position where the window begins and the file ends.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Note that a reader has read on, or is gone.
    pub(crate) fn moved(&self) {
        self.moved.notify_waiters();
    }

    /// At most `len` bytes from a position on; `None`: they are gone, or not there yet.
    pub(crate) fn read(&self, at: u64, len: usize) -> Option<Bytes> {
        let queue = self.queue.lock();
        let mut skip = at.checked_sub(queue.start)? as usize;
        for piece in &queue.pieces {
            if skip < piece.len() {
                let end = piece.len().min(skip.saturating_add(len));
                return Some(piece.slice(skip..end));
            }
            skip -= piece.len();
        }
        None
    }

    /// True if the request that writes has to read first.
    pub(crate) fn is_full(&self, readers: &Readers) -> bool {
        let slowest = readers.slowest();
        slowest.is_some_and(|slowest| self.leader_is_behind(slowest) && self.waits_for(slowest))
    }

    /// True if the origin waits for the slowest reader.
    pub(crate) fn waits(&self, readers: &Readers) -> bool {
        let slowest = readers.slowest();
        slowest.is_some_and(|slowest| self.waits_for(slowest))
    }

    fn waits_for(&self, slowest: Slowest) -> bool {
        self.used(slowest.at) >= CAPACITY
    }

    /// True if the leader has that much to read that no reader is [`BEHIND`] it although the
    /// window is full. Nobody could be dropped for holding it up.
    fn leader_is_behind(&self, slowest: Slowest) -> bool {
        let end = self.queue.lock().end;
        let leader = slowest.leader;
        leader.is_some_and(|at| end.saturating_sub(at) > CAPACITY - BEHIND)
    }

    /// Append `data` as soon as there is room. `false`: there are no readers. `patience` is
    /// the part of [`PATIENCE`] that is left.
    pub(crate) async fn push(
        &self,
        readers: &Readers,
        data: Vec<Bytes>,
        patience: &mut Duration,
    ) -> bool {
        let piece = match &data[..] {
            [one] => one.clone(),
            many => many.concat().into(),
        };
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let Some(slowest) = readers.slowest() else {
                return false;
            };
            // A leader that waits here does not read.
            if self.leader_is_behind(slowest) || !self.waits_for(slowest) {
                break;
            }
            // Readers that can leave are dropped first.
            let rest = PATIENCE - FIRST_PATIENCE;
            if *patience <= rest && readers.drop_slow(BEHIND, Slow::CanLeave) {
                continue;
            }
            let start = Instant::now();
            let wait = match *patience > rest {
                true => *patience - rest,
                false => *patience,
            };
            if timeout(wait, moved.as_mut()).await.is_ok() {
                *patience = patience.saturating_sub(start.elapsed());
                continue;
            }
            *patience -= wait;
            if !patience.is_zero() {
                continue;
            }
            // All at once: otherwise each would be waited for in turn.
            if !readers.drop_slow(BEHIND, Slow::Any) {
                // All are equally slow, so none holds up another.
                moved.await;
            }
        }
        let again = PATIENCE.mul_f64(piece.len() as f64 / REFILL as f64);
        *patience = PATIENCE.min(*patience + again);
        let mut queue = self.queue.lock();
        queue.end += piece.len() as u64;
        queue.pieces.push_back(piece);
        true
    }

    /// Bytes that the slowest reader, which is at `at`, has not read. Drops those that all
    /// have read.
    fn used(&self, at: u64) -> u64 {
        let mut queue = self.queue.lock();
        while let Some(first) = queue.pieces.front() {
            let end = queue.start + first.len() as u64;
            if end > at {
                break;
            }
            queue.start = end;
            queue.pieces.pop_front();
        }
        queue.end - queue.start
    }
}
