//! Lines on their way from the workers to the writer.
//!
//! They are bytes in chunks of one size: a channel of lines would take an allocation for each, and the
//! writer would be woken for each. A chunk holds whole lines, and is used again once it is written. A
//! worker holds the lock while it copies a line, the writer while it takes a chunk.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::metrics::METRICS;

/// The time for which the writer gathers lines before it writes them.
const GATHER: Duration = Duration::from_millis(100);

/// The size of a chunk.
const CHUNK: usize = 256 * 1024;

/// The least number of chunks. While one of them is written, there is room in the others.
const MIN_CHUNKS: usize = 4;

/// The most unused chunks that are kept.
const MAX_SPARE: usize = 4;

/// Lines that wait for the writer.
pub(super) struct Queue {
    state: Mutex<State>,
    /// The writer waits for lines and orders.
    for_writer: Condvar,
    /// The end of the log waits for the writer.
    for_end: Condvar,
    chunk_len: usize,
    /// The most chunks in memory: waiting, being written, or kept for the next lines.
    max_chunks: usize,
}

/// Whole lines.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub lines: Vec<u8>,
    /// The number of lines.
    pub count: u64,
}

#[derive(Default)]
struct State {
    /// Lines are appended to the last chunk.
    waiting: VecDeque<Chunk>,
    /// Buffers of chunks that are written.
    spare: Vec<Vec<u8>>,
    /// The number of chunks in memory.
    chunks: usize,
    /// Lines that were dropped since the writer last asked.
    dropped: u64,
    /// The number of chunks that the writer takes before it opens its file again.
    reopens_after: Option<usize>,
    closes: bool,
    has_ended: bool,
}

/// Orders to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orders {
    /// Open the file again.
    pub reopens: bool,
    /// Write what is there, and end.
    pub closes: bool,
    /// Lines that were dropped since the last orders.
    pub dropped: u64,
}

// === impl Queue ===

impl Queue {
    /// A queue of at most `limit` bytes, waiting or being written.
    pub fn new(limit: usize) -> Queue {
        let chunk_len = CHUNK.min(limit / MIN_CHUNKS);
        Queue::with_chunks(chunk_len, limit / chunk_len.max(1))
    }

    fn with_chunks(chunk_len: usize, max_chunks: usize) -> Queue {
        Queue {
            state: Mutex::default(),
            for_writer: Condvar::new(),
            for_end: Condvar::new(),
            chunk_len,
            max_chunks,
        }
    }

    /// Append a line, or drop and count it if there is no room.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let last = state.waiting.back();
        let begins_chunk = last.is_none_or(|chunk| chunk.lines.len() + line.len() > self.chunk_len);
        if state.has_ended
            || line.len() > self.chunk_len
            || (begins_chunk && !state.begin_chunk(self.chunk_len, self.max_chunks))
        {
            state.dropped += 1;
            drop(state);
            METRICS.access_log_dropped.inc();
            return;
        }
        if let Some(chunk) = state.waiting.back_mut() {
            chunk.lines.extend_from_slice(line);
            chunk.count += 1;
        }
        let waiting = state.waiting.len();
        drop(state);
        // The writer waits for the first line, and then for a full chunk.
        if begins_chunk && waiting <= 2 {
            self.for_writer.notify_one();
        }
    }

    /// Have the writer open its file again, once the lines until now are written.
    pub fn reopen(&self) {
        let mut state = self.state.lock();
        state.reopens_after = Some(state.waiting.len());
        drop(state);
        self.for_writer.notify_one();
    }

    /// Have the writer write all lines and end. `false`: it has not ended within `timeout`.
    pub fn close(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        state.closes = true;
        self.for_writer.notify_one();
        let is_open = |state: &mut State| !state.has_ended;
        !self
            .for_end
            .wait_while_for(&mut state, is_open, timeout)
            .timed_out()
    }

    /// For the writer: give a chunk back, and wait for the next one or for orders. The next one may be
    /// empty.
    pub fn take(&self, written: Chunk) -> (Chunk, Orders) {
        self.give_back(written);
        let mut state = self.state.lock();
        while state.waiting.is_empty() && !state.is_ordered() {
            self.for_writer.wait(&mut state);
        }
        let deadline = Instant::now() + GATHER;
        while state.waiting.len() < 2 && !state.is_ordered() {
            if self.for_writer.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        let chunk = state.waiting.pop_front();
        if let (Some(_), Some(left)) = (&chunk, &mut state.reopens_after) {
            *left = left.saturating_sub(1);
        }
        let reopens = state.reopens_after == Some(0);
        (chunk.unwrap_or_default(), state.orders(reopens))
    }

    /// Keep the buffer of a chunk for the next one.
    fn give_back(&self, mut written: Chunk) {
        if written.lines.capacity() == 0 {
            return;
        }
        written.lines.clear();
        let mut state = self.state.lock();
        if state.spare.len() < MAX_SPARE {
            state.spare.push(written.lines);
            return;
        }
        state.chunks -= 1;
        drop(state);
        // Freed without the lock.
        drop(written);
    }

    /// For the writer: wait for `time`, or for orders. Those to open the file again do not wait for
    /// the lines that the former file does not take.
    pub fn pause(&self, time: Duration) -> Orders {
        let mut state = self.state.lock();
        let is_idle = |state: &mut State| !state.is_ordered();
        self.for_writer.wait_while_for(&mut state, is_idle, time);
        let reopens = state.reopens_after.is_some();
        state.orders(reopens)
    }

    /// For the writer: take no more lines.
    pub fn end(&self) {
        self.state.lock().has_ended = true;
        self.for_end.notify_all();
    }
}

// === impl State ===

impl State {
    /// `false`: there is no room for one more chunk.
    fn begin_chunk(&mut self, len: usize, max: usize) -> bool {
        let lines = match self.spare.pop() {
            Some(lines) => lines,
            None if self.chunks < max => {
                self.chunks += 1;
                Vec::with_capacity(len)
            }
            None => return false,
        };
        self.waiting.push_back(Chunk { lines, count: 0 });
        true
    }

    fn is_ordered(&self) -> bool {
        self.reopens_after.is_some() || self.closes
    }

    fn orders(&mut self, reopens: bool) -> Orders {
        if reopens {
            self.reopens_after = None;
        }
        Orders {
            reopens,
            closes: self.closes,
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_dropped_and_counted() {
        let queue = Queue::with_chunks(10, 2);
        for line in ["12345678\n", "1234\n", "123\n", "12\n", "12345678901\n"] {
            queue.push(line.as_bytes());
        }
        let (first, orders) = queue.take(Chunk::default());
        assert_eq!(first.lines, b"12345678\n");
        assert_eq!((first.count, orders.dropped), (1, 2));
        // A chunk that is being written takes room too.
        queue.push(b"12345678\n");
        let (second, orders) = queue.take(first);
        assert_eq!(second.lines, b"1234\n123\n");
        assert_eq!((second.count, orders.dropped), (2, 1));
        queue.push(b"12345678\n");
        queue.push(b"87654321\n");
        assert_eq!(queue.take(second).1.dropped, 1);
    }

    #[test]
    fn no_more_memory_is_taken_than_the_limit() {
        for limit in [64 * 1024, 1_000_000, 4 << 20] {
            let queue = Queue::new(limit);
            let line = [&[b'a'; 299][..], b"\n"].concat();
            let fill = || {
                let mut pushed = 0;
                while queue.state.lock().dropped == 0 {
                    queue.push(&line);
                    pushed += line.len();
                }
                pushed
            };
            let pushed = fill();
            let memory = || {
                let state = queue.state.lock();
                let waiting = state.waiting.iter().map(|chunk| chunk.lines.capacity());
                let spare = state.spare.iter().map(Vec::capacity);
                waiting.chain(spare).sum::<usize>()
            };
            assert!(memory() <= limit && pushed > limit * 3 / 4, "{pushed}");
            // The order to close keeps the writer from waiting for more.
            queue.state.lock().closes = true;
            let mut chunk = Chunk::default();
            loop {
                chunk = queue.take(chunk).0;
                if chunk.lines.is_empty() {
                    break;
                }
            }
            assert!(memory() <= MAX_SPARE * CHUNK);
            assert_eq!(fill(), pushed, "chunks are used again");
            assert!(memory() <= limit);
        }
    }

    #[test]
    fn lines_before_a_reopening_are_taken_before_it() {
        let queue = Queue::with_chunks(4, 4);
        queue.push(b"1\n1\n");
        queue.push(b"2\n2\n");
        queue.reopen();
        queue.push(b"3\n3\n");
        let mut chunk = Chunk::default();
        for (lines, reopens) in [("1\n1\n", false), ("2\n2\n", true), ("3\n3\n", false)] {
            let (next, orders) = queue.take(chunk);
            assert_eq!(next.lines, lines.as_bytes());
            assert_eq!(orders.reopens, reopens, "{lines}");
            chunk = next;
        }
    }

    #[test]
    fn the_writer_is_woken_by_lines_and_orders() {
        let queue = Arc::new(Queue::new(1000));
        let writer = thread::spawn({
            let queue = queue.clone();
            move || {
                let (mut all, mut chunk, mut reopened) = (Vec::new(), Chunk::default(), 0);
                loop {
                    let (next, orders) = queue.take(chunk);
                    all.extend_from_slice(&next.lines);
                    chunk = next;
                    reopened += u32::from(orders.reopens);
                    if orders.closes && chunk.lines.is_empty() {
                        queue.end();
                        return (all, reopened);
                    }
                }
            }
        });
        queue.push(b"1\n");
        queue.reopen();
        queue.push(b"2\n");
        assert!(queue.close(Duration::from_secs(60)));
        // There is nobody to write it.
        queue.push(b"3\n");
        assert_eq!(writer.join().unwrap(), (b"1\n2\n".to_vec(), 1));
    }

    #[test]
    fn a_writer_that_hangs_is_not_waited_for() {
        let queue = Queue::new(1000);
        assert!(!queue.close(Duration::from_millis(1)));
    }
}
