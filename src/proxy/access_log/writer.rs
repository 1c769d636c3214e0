//! The thread that writes lines.
//!
//! Lines that cannot be written are kept and tried again each second, from the byte at which the disk was
//! full. Meanwhile the queue fills up, and further lines are dropped. So a disk that is full for a moment
//! costs no line, and breaks none.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, warn};

use super::file::Destination;
use super::queue::{Chunk, Orders, Queue};
use crate::metrics::METRICS;

/// The time between two attempts to write.
const RETRY: Duration = Duration::from_secs(1);

/// The time between two messages about the same trouble.
const REPORT: Duration = Duration::from_secs(60);

pub(super) struct Writer<D> {
    /// The destination in messages.
    pub name: String,
    pub queue: Arc<Queue>,
    pub to: D,
    pub batch: Batch,
    pub troubles: Troubles,
}

/// Lines that are being written.
#[derive(Default)]
pub(super) struct Batch {
    /// Its count is that of the lines that are not counted yet.
    chunk: Chunk,
    /// The number of bytes that are written.
    written: usize,
}

/// The messages about troubles.
#[derive(Default)]
pub(super) struct Troubles {
    reported: Option<Instant>,
    /// Lines that were dropped since the last message.
    dropped: u64,
}

// === impl Writer ===

impl<D: Destination> Writer<D> {
    pub fn new(name: String, queue: Arc<Queue>, to: D) -> Writer<D> {
        Writer {
            name,
            queue,
            to,
            batch: Batch::default(),
            troubles: Troubles::default(),
        }
    }

    /// Write until the queue is closed.
    pub fn run(mut self) {
        loop {
            let orders = match self.batch.is_written() {
                true => self.batch.renew(&self.queue),
                false => self.queue.pause(RETRY),
            };
            self.troubles.dropped += orders.dropped;
            self.write();
            if orders.reopens {
                self.reopen();
            }
            self.report_dropped();
            if orders.closes && self.write_remainder() {
                break;
            }
        }
        self.queue.end();
    }

    /// Write as much of the batch as possible.
    fn write(&mut self) {
        if self.batch.is_written() {
            return;
        }
        if self.batch.is_between_lines() {
            if let Err(e) = self.to.turn() {
                self.report_turn(&e);
            }
        }
        while !self.batch.is_written() {
            match self.to.write(self.batch.rest()) {
                Ok(0) => return self.report(&ErrorKind::WriteZero.into()),
                Ok(len) => self.batch.written += len,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return self.report(&e),
            }
        }
        let count = std::mem::take(&mut self.batch.chunk.count);
        METRICS.access_log_lines.inc_by(count);
    }

    /// Open the file again, and write to it what the former one has not taken.
    fn reopen(&mut self) {
        match self.to.reopen() {
            Ok(is_other) => {
                // The former file has the beginning of the line.
                if is_other && !self.batch.is_between_lines() {
                    self.drop_lines(self.batch.next_line());
                }
                self.write();
            }
            // Reported each time, because an operator has asked for it.
            Err(e) => error!(
                "{} cannot be opened again: {e}; the former file stays in use until the next SIGUSR1",
                self.name
            ),
        }
    }

    /// At the end of the log: drop what cannot be written. `false`: there may be more.
    fn write_remainder(&mut self) -> bool {
        if self.batch.is_written() {
            let orders = self.batch.renew(&self.queue);
            self.troubles.dropped += orders.dropped;
            if self.batch.chunk.lines.is_empty() {
                return true;
            }
            self.write();
        }
        if !self.batch.is_written() {
            self.drop_lines(self.batch.chunk.lines.len());
            self.report_dropped();
        }
        false
    }

    /// Drop the lines up to `end`.
    fn drop_lines(&mut self, end: usize) {
        let chunk = &mut self.batch.chunk;
        let rest = lines(&chunk.lines[end..]);
        let dropped = lines(&chunk.lines[self.batch.written..end]);
        METRICS.access_log_dropped.inc_by(dropped);
        self.troubles.dropped += dropped;
        let written = chunk.count.saturating_sub(rest + dropped);
        METRICS.access_log_lines.inc_by(written);
        chunk.count = rest;
        chunk.lines.drain(..end);
        self.batch.written = 0;
    }

    fn report(&mut self, e: &io::Error) {
        if self.troubles.may_report() {
            error!(
                "{} cannot be written to: {e}; lines wait as long as access_log.buffer_kib has room, \
                 and are dropped then",
                self.name
            );
        }
    }

    fn report_turn(&mut self, e: &io::Error) {
        if self.troubles.may_report() {
            error!(
                "{}: the file of today cannot be opened: {e}; the former one stays in use until then",
                self.name
            );
        }
    }

    fn report_dropped(&mut self) {
        if self.troubles.dropped > 0 && self.troubles.may_report() {
            let dropped = std::mem::take(&mut self.troubles.dropped);
            warn!(
                "{}: {dropped} lines were dropped, because access_log.buffer_kib had no room for them",
                self.name
            );
        }
    }
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

// === impl Batch ===

impl Batch {
    fn is_written(&self) -> bool {
        self.written == self.chunk.lines.len()
    }

    fn is_between_lines(&self) -> bool {
        self.written == 0 || self.chunk.lines[self.written - 1] == b'\n'
    }

    fn rest(&self) -> &[u8] {
        &self.chunk.lines[self.written..]
    }

    /// The beginning of the line after the one that is being written.
    fn next_line(&self) -> usize {
        let end = self.rest().iter().position(|b| *b == b'\n');
        end.map_or(self.chunk.lines.len(), |end| self.written + end + 1)
    }

    /// Take the next lines.
    fn renew(&mut self, queue: &Queue) -> Orders {
        let written = std::mem::take(&mut self.chunk);
        self.written = 0;
        let (chunk, orders) = queue.take(written);
        self.chunk = chunk;
        orders
    }
}

// === impl Troubles ===

impl Troubles {
    fn may_report(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self
            .reported
            .is_none_or(|reported| now.duration_since(reported) >= REPORT);
        if is_due {
            self.reported = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::thread::{self, JoinHandle};

    use parking_lot::Mutex;

    use super::*;

    /// Files that take what they are told to.
    #[derive(Default)]
    struct Files {
        /// There is only one.
        is_stream: bool,
        /// Bytes that the file has room for.
        room: usize,
        files: Vec<Vec<u8>>,
    }

    struct Scripted {
        files: Arc<Mutex<Files>>,
        refused: Sender<()>,
    }

    impl Destination for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut files = self.files.lock();
            let len = bytes.len().min(files.room);
            if len == 0 {
                let _ = self.refused.send(());
                return Err(ErrorKind::StorageFull.into());
            }
            files.room -= len;
            let file = files.files.last_mut().unwrap();
            file.extend_from_slice(&bytes[..len]);
            Ok(len)
        }

        fn reopen(&mut self) -> io::Result<bool> {
            let mut files = self.files.lock();
            files.room = usize::MAX;
            if files.is_stream {
                return Ok(false);
            }
            files.files.push(Vec::new());
            Ok(true)
        }

        fn turn(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Log {
        queue: Arc<Queue>,
        files: Arc<Mutex<Files>>,
        refused: Receiver<()>,
        writer: JoinHandle<()>,
    }

    impl Log {
        fn with_room(room: usize) -> Log {
            let queue = Arc::new(Queue::new(1000));
            let files = Arc::new(Mutex::new(Files {
                room,
                files: vec![Vec::new()],
                ..Files::default()
            }));
            let (refused, refusals) = mpsc::channel();
            let to = Scripted {
                files: files.clone(),
                refused,
            };
            let writer = Writer::new("log".into(), queue.clone(), to);
            Log {
                queue,
                files,
                refused: refusals,
                writer: thread::spawn(move || writer.run()),
            }
        }

        fn wait_for_refusal(&self) {
            self.refused.recv_timeout(Duration::from_secs(60)).unwrap();
        }

        /// The content of each file at the end.
        fn end(self) -> Vec<String> {
            assert!(self.queue.close(Duration::from_secs(60)));
            self.writer.join().unwrap();
            let files = std::mem::take(&mut self.files.lock().files);
            let text = |file| String::from_utf8(file).unwrap();
            files.into_iter().map(text).collect()
        }
    }

    #[test]
    fn all_lines_are_written_at_the_end() {
        let log = Log::with_room(usize::MAX);
        for line in ["1\n", "2\n", "3\n"] {
            log.queue.push(line.as_bytes());
        }
        assert_eq!(log.end(), ["1\n2\n3\n"]);
    }

    #[test]
    fn a_line_that_found_no_room_is_continued_where_it_broke_off() {
        let log = Log::with_room(6);
        log.queue.push(b"1234\n5678\n");
        log.wait_for_refusal();
        log.queue.push(b"90\n");
        log.files.lock().room = usize::MAX;
        assert_eq!(log.end(), ["1234\n5678\n90\n"]);
    }

    #[test]
    fn another_file_begins_with_a_whole_line() {
        let log = Log::with_room(6);
        log.queue.push(b"1234\n5678\n90\n");
        log.wait_for_refusal();
        log.queue.reopen();
        assert_eq!(log.end(), ["1234\n5", "90\n"]);
    }

    #[test]
    fn a_stream_that_cannot_be_opened_again_keeps_its_line_whole() {
        let log = Log::with_room(6);
        log.files.lock().is_stream = true;
        log.queue.push(b"1234\n5678\n");
        log.wait_for_refusal();
        log.queue.reopen();
        assert_eq!(log.end(), ["1234\n5678\n"]);
    }

    #[test]
    fn a_disk_that_stays_full_does_not_hold_the_end_up() {
        let log = Log::with_room(5);
        log.queue.push(b"1234\n5678\n");
        log.wait_for_refusal();
        log.queue.push(b"90\n");
        assert_eq!(log.end(), ["1234\n"]);
    }
}
