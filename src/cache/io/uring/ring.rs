//! A ring: its queues, the table of its operations, and its thread.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use io_uring::{opcode, squeue, EnterFlags, IoUring, Probe, SubmissionQueue};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::oneshot;

use crate::cache::io::uring::operation::Operation;

/// Places in a submission queue.
const QUEUE: u32 = 256;

/// Most operations of a ring that the kernel has at the same time. The others wait in the table
/// of the ring, without the memory that they will read into.
pub(super) const MAX_IN_FLIGHT: usize = 512;

/// Most workers of the kernel that wait for disks on behalf of one thread that submits. With the
/// default, four a processor, a few slow fsyncs of fills hold up everything on a small machine.
const MAX_WORKERS: u32 = 64;

/// The opcodes in use.
const OPCODES: [u8; 11] = [
    opcode::Fadvise::CODE,
    opcode::Fallocate::CODE,
    opcode::Fsync::CODE,
    opcode::MkDirAt::CODE,
    opcode::Nop::CODE,
    opcode::OpenAt::CODE,
    opcode::Read::CODE,
    opcode::RenameAt::CODE,
    opcode::Statx::CODE,
    opcode::UnlinkAt::CODE,
    opcode::Writev::CODE,
];

/// A submission and a completion queue, and the operations in flight between them.
pub(super) struct Ring {
    uring: IoUring,
    /// Held while the submission queue is used.
    submission: Mutex<()>,
    pub(super) table: Mutex<Table>,
    closing: AtomicBool,
}

/// The operations in flight or waiting.
#[derive(Default)]
pub(super) struct Table {
    /// Operations in flight, by the number of their requests.
    asked: Slab<Box<dyn InFlight>>,
    /// Number of requests without an answer, including those whose answer is being processed. At
    /// most [`MAX_IN_FLIGHT`], so that all answers have a place in the completion queue.
    pub(super) in_flight: usize,
    /// Operations that have not begun.
    pub(super) waiting: VecDeque<Box<dyn InFlight>>,
}

/// A handle that keeps a ring open. Its thread ends, and the ring is closed, when this is
/// dropped and all operations have ended.
#[derive(Debug)]
pub(super) struct RingHandle(pub(super) Arc<Ring>);

/// An operation, and the receiver of its result.
pub(super) struct Pending<O: Operation> {
    pub(super) operation: O,
    pub(super) done: Option<oneshot::Sender<io::Result<O::Output>>>,
}

/// [`Pending`] of any operation.
pub(super) trait InFlight: Send {
    fn request(&mut self) -> squeue::Entry;

    /// Take the answer of the kernel. `Some`: another request follows.
    fn answer(self: Box<Self>, answer: i32) -> Option<Box<dyn InFlight>>;

    /// Report that the kernel cannot be asked.
    fn fail(&mut self, error: io::Error);
}

impl<O: Operation> InFlight for Pending<O> {
    fn request(&mut self) -> squeue::Entry {
        // ASYNC: by a worker, not on the thread that submits.
        self.operation.request().flags(squeue::Flags::ASYNC)
    }

    fn answer(mut self: Box<Self>, answer: i32) -> Option<Box<dyn InFlight>> {
        let result = match u32::try_from(answer) {
            Ok(value) => Ok(value),
            // Only the kernel cancels, when the thread that submitted has exited. From here on,
            // the thread of the ring submits.
            Err(_) if [libc::EINTR, libc::ECANCELED].contains(&-answer) => return Some(self),
            // Also EAGAIN: a worker does not get it for having to wait.
            Err(_) => Err(io::Error::from_raw_os_error(-answer)),
        };
        let Some(output) = self.operation.answer(result) else {
            return Some(self);
        };
        let Pending {
            operation, done, ..
        } = *self;
        // Before the result is sent: then nothing uses the file any more.
        drop(operation);
        if let Some(done) = done {
            let _ = done.send(output);
        }
        None
    }

    fn fail(&mut self, error: io::Error) {
        if let Some(done) = self.done.take() {
            let _ = done.send(Err(error));
        }
    }
}

impl Table {
    /// Add an operation. Returns its next request.
    fn ask(&mut self, mut operation: Box<dyn InFlight>) -> squeue::Entry {
        let request = operation.request();
        let number = self.asked.insert(operation);
        request.user_data(number as u64)
    }
}

impl Ring {
    /// Set up a ring, and the thread that waits for its completions.
    pub(super) fn start(name: &str) -> io::Result<(RingHandle, JoinHandle<()>)> {
        let ring = Arc::new(Ring {
            uring: set_up(QUEUE)?,
            submission: Mutex::default(),
            table: Mutex::default(),
            closing: AtomicBool::new(false),
        });
        let thread = {
            let ring = ring.clone();
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || ring.serve())?
        };
        Ok((RingHandle(ring), thread))
    }

    /// Process completions, on the thread of the ring.
    fn serve(&self) {
        loop {
            self.take_answers();
            if self.closing.load(Ordering::Acquire) && self.table.lock().in_flight == 0 {
                return;
            }
            // SAFETY: submits nothing and passes no pointer. After any error (EINTR, EBUSY), the
            // queue is read again.
            let _ = unsafe {
                self.uring.submitter().enter::<libc::sigset_t>(
                    0,
                    1,
                    EnterFlags::GETEVENTS.bits(),
                    None,
                )
            };
        }
    }

    /// Run an operation. It continues when the future is dropped.
    pub(super) async fn run<O: Operation>(&self, operation: O) -> io::Result<O::Output> {
        let (done, output) = oneshot::channel();
        self.begin(Box::new(Pending {
            operation,
            done: Some(done),
        }));
        output.await.map_err(io::Error::other)?
    }

    pub(super) fn begin(&self, operation: Box<dyn InFlight>) {
        let request = {
            let mut table = self.table.lock();
            if table.in_flight == MAX_IN_FLIGHT {
                table.waiting.push_back(operation);
                return;
            }
            table.in_flight += 1;
            table.ask(operation)
        };
        self.submit(&[request]);
    }

    /// Process all completions in the queue.
    fn take_answers(&self) {
        // SAFETY: there is no other, since only the thread of the ring calls this.
        let completions = unsafe { self.uring.completion_shared() };
        let mut requests = Vec::new();
        for completion in completions {
            let number = completion.user_data() as usize;
            let asked = self.table.lock().asked.try_remove(number);
            // The request of a dropped handle is in no table.
            let Some(operation) = asked else { continue };
            let unfinished = operation.answer(completion.result());
            let mut table = self.table.lock();
            match unfinished.or_else(|| table.waiting.pop_front()) {
                Some(next) => requests.push(table.ask(next)),
                None => table.in_flight -= 1,
            }
        }
        self.submit(&requests);
    }

    fn submit(&self, requests: &[squeue::Entry]) {
        if requests.is_empty() {
            return;
        }
        if let Err(error) = self.enter(requests) {
            // The operations stay in the table: their requests are still in the queue, and the
            // next thread that submits may be allowed to.
            let mut table = self.table.lock();
            for request in requests {
                if let Some(operation) = table.asked.get_mut(request.get_user_data() as usize) {
                    operation.fail(io::Error::new(error.kind(), error.to_string()));
                }
            }
        }
    }

    /// Put requests into the submission queue, and pass them to the kernel.
    fn enter(&self, requests: &[squeue::Entry]) -> io::Result<()> {
        let _queue = self.submission.lock();
        // SAFETY: the lock excludes another one.
        let mut queue = unsafe { self.uring.submission_shared() };
        for request in requests {
            // SAFETY: the values that it names stay in the table until it is answered, see
            // `Operation`.
            while unsafe { queue.push(request) }.is_err() {
                self.flush(&mut queue)?;
            }
        }
        self.flush(&mut queue)
    }

    fn flush(&self, queue: &mut SubmissionQueue<'_>) -> io::Result<()> {
        loop {
            queue.sync();
            if queue.is_empty() {
                return Ok(());
            }
            if let Err(e) = self.uring.submit() {
                match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Short of memory, or of places for completions.
                    Some(libc::EAGAIN | libc::EBUSY) => thread::yield_now(),
                    _ => return Err(e),
                }
            }
        }
    }
}

/// Create a ring that supports all operations in use.
fn set_up(queue: u32) -> io::Result<IoUring> {
    let refused = |e: io::Error| {
        let what = format!(
            "io_uring cannot be used: {e}; the kernel must be 5.15 or later, with \
             kernel.io_uring_disabled = 0, and a container's seccomp profile must allow it"
        );
        io::Error::new(io::ErrorKind::Unsupported, what)
    };
    let uring = IoUring::builder()
        .setup_cqsize(2 * MAX_IN_FLIGHT as u32)
        .build(queue)
        .map_err(refused)?;
    let mut probe = Probe::new();
    uring
        .submitter()
        .register_probe(&mut probe)
        .map_err(refused)?;
    if let Some(missing) = OPCODES.into_iter().find(|code| !probe.is_supported(*code)) {
        return Err(refused(io::Error::other(format!(
            "it lacks operation {missing}"
        ))));
    }
    uring
        .submitter()
        .register_iowq_max_workers(&mut [MAX_WORKERS, 0])
        .map_err(refused)?;
    // A policy may allow setup and forbid entering.
    uring.submit().map_err(refused)?;
    Ok(uring)
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.table.lock().in_flight;
        f.debug_struct("Ring")
            .field("in_flight", &in_flight)
            .finish_non_exhaustive()
    }
}

impl Deref for RingHandle {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        &self.0
    }
}

impl Drop for RingHandle {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        // Wakes the thread.
        self.submit(&[opcode::Nop::new().build().user_data(u64::MAX)]);
    }
}
