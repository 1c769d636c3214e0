//! A body that has no room on the disk any more, on its way to those who read it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{timeout_at, Instant};

use super::readers::Readers;

/// Bytes that wait for the slowest reader.
const CAPACITY: u64 = 512 * 1024;

/// How long all wait for one that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// What comes after the end of the file: the readers get it from here, in order, and
/// the origin waits for the slowest of them.
///
/// The request that writes is not waited for in here: it reads only when it does not
/// write. It sees whether the window [is full](Self::is_full), and then writes no more.
#[derive(Debug)]
pub(super) struct Window {
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
    pub(super) fn new(start: u64) -> Window {
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

    /// Where it begins, and the file ends.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// A reader has read on, or is gone.
    pub(super) fn moved(&self) {
        self.moved.notify_waiters();
    }

    /// At most `len` bytes from a position on; `None`: they are gone, or not there yet.
    pub(super) fn read(&self, at: u64, len: usize) -> Option<Bytes> {
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

    /// Whether the request that writes has to read first.
    pub(super) fn is_full(&self, readers: &Readers) -> bool {
        let slowest = readers.slowest();
        slowest.is_some_and(|(at, leads)| leads && self.used(at) >= CAPACITY)
    }

    /// Append what came, when there is room. `false`: nobody reads it.
    pub(super) async fn push(&self, readers: &Readers, data: Vec<Bytes>) -> bool {
        let piece = match &data[..] {
            [one] => one.clone(),
            many => many.concat().into(),
        };
        let mut waits_for = None;
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let Some((at, leads)) = readers.slowest() else {
                return false;
            };
            if leads || self.used(at) < CAPACITY {
                break;
            }
            let (_, deadline) = *waits_for.get_or_insert_with(|| (at, Instant::now() + PATIENCE));
            if waits_for.is_some_and(|(before, _)| before < at) {
                waits_for = None;
            } else if timeout_at(deadline, moved).await.is_err() {
                readers.lose(at);
                waits_for = None;
                if readers.slowest().is_some_and(|(still, _)| still == at) {
                    // The last one has all the time that it needs.
                    waits_for = Some((at, Instant::now() + PATIENCE));
                }
            }
        }
        let mut queue = self.queue.lock();
        queue.end += piece.len() as u64;
        queue.pieces.push_back(piece);
        true
    }

    /// Bytes that the slowest, who is here, has not read; what all have read goes.
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
