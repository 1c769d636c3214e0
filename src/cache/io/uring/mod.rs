//! The backend on io_uring(7), for Linux 5.15 and later.
//!
//! There are two rings, so that fills can not queue in front of hits. Whoever
//! starts an operation puts it into the submission queue and enters the kernel,
//! which leaves it to workers of its own: what reaches a backend is expected to
//! need the disk, and without being told the kernel would first try it on the
//! thread that submits. One thread a ring waits for completions.
//!
//! An operation, and the memory, paths and files that it names, belong to the
//! table of its ring until the kernel has answered, whatever becomes of the
//! future that waits for it. Operations of several steps are tasks of a tokio
//! runtime, for the same reason.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue, EnterFlags, IoUring, Probe, SubmissionQueue};
use parking_lot::Mutex;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::cache::io::backend::{DiskBackend, OpenFiles};
use crate::cache::io::files::{EntryFiles, MAX_META_LEN};
use crate::cache::io::folder::FolderAccess;
use crate::cache::io::page_cache::no_read_ahead;
use crate::cache::io::regular;

/// Places in a submission queue.
const QUEUE: u32 = 256;

/// How many operations of a ring the kernel has at most. The others wait in the
/// ring's table, without the memory that they will read into.
const MAX_IN_FLIGHT: usize = 512;

/// How many of the kernel's workers may wait for disks on behalf of one thread
/// that submits. Its own choice, four a processor, lets a few slow fsyncs of
/// fills hold up everybody on a small machine.
const MAX_WORKERS: u32 = 64;

/// How much is read at once to bring a file into the page cache, in bytes.
const LOAD_PIECE: u64 = 64 * 1024;

/// How much the disk is told to read ahead of that, in bytes.
const LOAD_WINDOW: u64 = 1024 * 1024;

/// Where what is read to bring it into the page cache goes. Nobody looks at it,
/// so all share one place, however many load.
static LOAD_SCRATCH: [AtomicU8; LOAD_PIECE as usize] =
    [const { AtomicU8::new(0) }; LOAD_PIECE as usize];

/// Longest read that one request asks for, in bytes. The kernel does less than
/// 2 GiB at once, see read(2).
const MAX_READ: usize = 1 << 30;

/// Most pieces that one request writes: `UIO_MAXIOV` of `<linux/uio.h>`.
const MAX_PIECES: usize = 1024;

/// The first read of a metadata file, in bytes. Most fit.
const META_PIECE: usize = 4096;

/// How a file system says that it has no fallocate(2).
const CANNOT_RESERVE: [i32; 3] = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL];

/// All opcodes that are used.
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

/// Files on a local file system, used through io_uring.
#[derive(Debug, Clone)]
pub struct UringBackend {
    runtime: Handle,
    rings: Arc<Rings>,
}

#[derive(Debug)]
struct Rings {
    /// What a client waits for.
    hits: RingHandle,
    /// What makes and removes entries.
    fills: RingHandle,
}

impl UringBackend {
    /// A backend whose operations of several steps run on `runtime`.
    ///
    /// `Unsupported`: the kernel has no io_uring, lacks an operation, or forbids it to this
    /// process.
    pub fn new(runtime: Handle) -> io::Result<Self> {
        let rings = Rings {
            hits: Ring::start("cache-uring-0")?.0,
            fills: Ring::start("cache-uring-1")?.0,
        };
        Ok(UringBackend {
            runtime,
            rings: Arc::new(rings),
        })
    }

    /// Do something that has to go on when its future is dropped.
    async fn detached<T, F>(&self, work: impl FnOnce(UringBackend) -> F) -> io::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
    {
        self.runtime
            .spawn(work(self.clone()))
            .await
            .map_err(io::Error::other)?
    }

    /// A regular file and its length.
    async fn open_to_read(&self, path: &Path) -> io::Result<(Arc<File>, u64)> {
        let hits = &self.rings.hits;
        let opened = hits.run(open(path, libc::O_RDONLY | regular::FLAGS)?).await;
        let file = Arc::new(opened.map_err(regular::not_regular)?);
        match hits.run(length(&file)).await? {
            Some(len) => Ok((file, len)),
            None => Err(regular::irregular()),
        }
    }

    async fn read_meta(&self, path: &Path) -> io::Result<Vec<u8>> {
        let hits = &self.rings.hits;
        let (file, _) = self.open_to_read(path).await?;
        let mut data = hits.run(Read::up_to(&file, 0, META_PIECE)).await?;
        if data.len() == META_PIECE {
            let rest = MAX_META_LEN as usize - META_PIECE;
            let rest = Read::up_to(&file, META_PIECE as u64, rest);
            data.append(&mut hits.run(rest).await?);
        }
        Ok(data)
    }

    async fn create_body(&self, files: &EntryFiles, reserve: u64) -> io::Result<Arc<File>> {
        let fills = &self.rings.fills;
        let path = files.body_tmp();
        let file = match fills.run(create_new(&path)?).await {
            // Somebody has emptied the cache folder.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let shard = make_folder(files.folder())?;
                match fills.run(shard).await {
                    // By somebody else, meanwhile.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
                fills.run(create_new(&path)?).await?
            }
            file => file?,
        };
        let file = Arc::new(file);
        if reserve > 0 {
            match fills.run(reserve_space(&file, reserve)).await {
                // The file system cannot: space is found, or not, when writing.
                Err(e) if CANNOT_RESERVE.map(Some).contains(&e.raw_os_error()) => {}
                Err(e) => {
                    let _ = fills.run(unlink(&path)?).await;
                    return Err(e);
                }
                Ok(()) => {}
            }
        }
        Ok(file)
    }

    async fn commit_body(
        &self,
        files: &EntryFiles,
        file: Arc<File>,
        meta: Vec<u8>,
    ) -> io::Result<()> {
        let fills = &self.rings.fills;
        let (temporary, body) = (files.body_tmp(), files.body());
        let committed = async {
            fills.run(sync_data(&file)).await?;
            fills.run(rename(&temporary, &body)?).await?;
            self.replace_meta(files, meta).await
        }
        .await;
        if committed.is_err() {
            let _ = self.remove_if_there(&temporary).await;
            let _ = self.remove_if_there(&body).await;
        }
        committed
    }

    async fn replace_meta(&self, files: &EntryFiles, meta: Vec<u8>) -> io::Result<()> {
        let fills = &self.rings.fills;
        let temporary = files.meta_tmp();
        let written = async {
            let file = Arc::new(fills.run(create_new(&temporary)?).await?);
            fills.run(Write::new(&file, 0, vec![meta.into()])).await?;
            fills.run(rename(&temporary, &files.meta())?).await
        }
        .await;
        if written.is_err() {
            let _ = fills.run(unlink(&temporary)?).await;
        }
        written
    }

    async fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.rings.fills.run(unlink(path)?).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

impl FolderAccess for UringBackend {}

#[async_trait]
impl DiskBackend for UringBackend {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn supports_sendfile(&self) -> bool {
        true
    }

    async fn open(&self, files: &EntryFiles, prefetch: u64) -> io::Result<OpenFiles> {
        let (meta, body) = (files.meta(), files.body());
        let (meta, body) = tokio::join!(self.read_meta(&meta), self.open_to_read(&body));
        let meta = meta?;
        let (body, body_len) = body?;
        let prefetched = if body_len <= prefetch {
            Some(self.read(&body, 0, body_len as usize).await?)
        } else {
            None
        };
        no_read_ahead(&body);
        Ok(OpenFiles {
            meta,
            body,
            body_len,
            prefetched,
        })
    }

    async fn create(&self, files: &EntryFiles, reserve: Option<u64>) -> io::Result<Arc<File>> {
        let files = files.clone();
        let reserve = reserve.unwrap_or(0);
        self.detached(|backend| async move { backend.create_body(&files, reserve).await })
            .await
    }

    async fn write(&self, file: &Arc<File>, offset: u64, data: Vec<Bytes>) -> io::Result<()> {
        let write = Write::new(file, offset, data);
        if write.data.is_empty() {
            return Ok(());
        }
        self.rings.fills.run(write).await
    }

    async fn read(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let data = self.rings.hits.run(Read::exact(file, offset, len)).await?;
        Ok(data.into())
    }

    async fn load(&self, file: &Arc<File>, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.rings.hits.run(Load::new(file, offset, len)).await
    }

    async fn commit(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()> {
        let (files, body) = (files.clone(), body.clone());
        self.detached(|backend| async move { backend.commit_body(&files, body, meta).await })
            .await
    }

    async fn discard(&self, files: &EntryFiles) -> io::Result<()> {
        self.remove_if_there(&files.body_tmp()).await
    }

    async fn write_meta(&self, files: &EntryFiles, meta: Vec<u8>) -> io::Result<()> {
        let files = files.clone();
        self.detached(|backend| async move { backend.replace_meta(&files, meta).await })
            .await
    }

    async fn remove(&self, files: &EntryFiles) -> io::Result<()> {
        let files = files.clone();
        self.detached(|backend| async move {
            // Without metadata, what is left is no entry.
            let meta = backend.remove_if_there(&files.meta()).await;
            backend.remove_if_there(&files.body()).await?;
            meta
        })
        .await
    }
}

// === Operations ===

/// Something that the kernel is asked to do, in one request or in several, one
/// after the other.
///
/// # Safety
///
/// A request names only memory and files that the operation owns, and that stay
/// where they are, and as they are, when the operation is moved.
unsafe trait Operation: Send + 'static {
    type Output: Send;

    /// What to ask the kernel for next.
    fn request(&mut self) -> squeue::Entry;

    /// Take the kernel's answer. `None`: there is more to ask for.
    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<Self::Output>>;
}

/// An operation of one request, which names what is kept along with it.
struct Single<K, T> {
    request: squeue::Entry,
    kept: Option<K>,
    output: fn(K, u32) -> T,
}

// SAFETY: the functions below that make one keep what its request names, and
// keep it on the heap.
unsafe impl<K: Send + 'static, T: Send + 'static> Operation for Single<K, T> {
    type Output = T;

    fn request(&mut self) -> squeue::Entry {
        self.request.clone()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<T>> {
        let kept = self.kept.take()?;
        Some(answer.map(|value| (self.output)(kept, value)))
    }
}

const HERE: Fd = Fd(libc::AT_FDCWD);

fn fd(file: &File) -> Fd {
    Fd(file.as_raw_fd())
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn single<K>(request: squeue::Entry, kept: K) -> Single<K, ()> {
    Single {
        request,
        kept: Some(kept),
        output: |_, _| (),
    }
}

fn open(path: &Path, flags: i32) -> io::Result<Single<CString, File>> {
    let path = c_path(path)?;
    Ok(Single {
        request: opcode::OpenAt::new(HERE, path.as_ptr())
            .flags(flags | libc::O_CLOEXEC | libc::O_LARGEFILE)
            .mode(0o666)
            .build(),
        kept: Some(path),
        output: |_, descriptor| {
            // SAFETY: the kernel has just opened it, and told nobody else.
            unsafe { File::from_raw_fd(descriptor as i32) }
        },
    })
}

fn create_new(path: &Path) -> io::Result<Single<CString, File>> {
    open(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)
}

/// Memory that statx(2) fills.
type StatBuffer = Box<MaybeUninit<libc::statx>>;

/// The length of a file. `None`: it is not a regular file.
fn length(file: &Arc<File>) -> Single<(Arc<File>, StatBuffer), Option<u64>> {
    let mut stat = Box::new(MaybeUninit::<libc::statx>::uninit());
    Single {
        request: opcode::Statx::new(fd(file), c"".as_ptr(), stat.as_mut_ptr().cast())
            .flags(libc::AT_EMPTY_PATH)
            .mask(libc::STATX_TYPE | libc::STATX_SIZE)
            .build(),
        kept: Some((file.clone(), stat)),
        output: |(_, stat), _| {
            // SAFETY: statx(2) has succeeded, and then fills all of it.
            let stat = unsafe { stat.assume_init() };
            (u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG).then_some(stat.stx_size)
        },
    }
}

/// Set disk space aside; the file's length stays.
fn reserve_space(file: &Arc<File>, len: u64) -> Single<Arc<File>, ()> {
    let request = opcode::Fallocate::new(fd(file), len)
        .mode(libc::FALLOC_FL_KEEP_SIZE)
        .build();
    single(request, file.clone())
}

fn sync_data(file: &Arc<File>) -> Single<Arc<File>, ()> {
    let request = opcode::Fsync::new(fd(file))
        .flags(FsyncFlags::DATASYNC)
        .build();
    single(request, file.clone())
}

fn rename(from: &Path, to: &Path) -> io::Result<Single<(CString, CString), ()>> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    let request = opcode::RenameAt::new(HERE, from.as_ptr(), HERE, to.as_ptr()).build();
    Ok(single(request, (from, to)))
}

fn unlink(path: &Path) -> io::Result<Single<CString, ()>> {
    let path = c_path(path)?;
    let request = opcode::UnlinkAt::new(HERE, path.as_ptr()).build();
    Ok(single(request, path))
}

fn make_folder(path: &Path) -> io::Result<Single<CString, ()>> {
    let path = c_path(path)?;
    let request = opcode::MkDirAt::new(HERE, path.as_ptr())
        .mode(0o777)
        .build();
    Ok(single(request, path))
}

/// Read into memory.
struct Read {
    file: Arc<File>,
    offset: u64,
    len: usize,
    /// Whether less than `len` is an error.
    exact: bool,
    data: Vec<u8>,
}

impl Read {
    fn exact(file: &Arc<File>, offset: u64, len: usize) -> Self {
        Read {
            file: file.clone(),
            offset,
            len,
            exact: true,
            data: Vec::new(),
        }
    }

    /// Read to the end of the file, but no more than `len` bytes.
    fn up_to(file: &Arc<File>, offset: u64, len: usize) -> Self {
        Read {
            exact: false,
            ..Read::exact(file, offset, len)
        }
    }
}

// SAFETY: `data` is on the heap, and not touched between request and answer;
// `file` is open as long as it is owned.
unsafe impl Operation for Read {
    type Output = Vec<u8>;

    fn request(&mut self) -> squeue::Entry {
        let rest = self.len - self.data.len();
        self.data.reserve_exact(rest);
        let free = self.data.spare_capacity_mut().as_mut_ptr().cast();
        let offset = self.offset + self.data.len() as u64;
        opcode::Read::new(fd(&self.file), free, rest.min(MAX_READ) as u32)
            .offset(offset)
            .build()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<Vec<u8>>> {
        match answer {
            Err(e) => return Some(Err(e)),
            Ok(0) if self.exact => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(0) => return Some(Ok(mem::take(&mut self.data))),
            Ok(read) => {
                let len = self.data.len() + read as usize;
                // SAFETY: the kernel has written so many bytes behind the old
                // end, and was asked for no more than there is room for.
                unsafe { self.data.set_len(len) };
            }
        }
        (self.data.len() == self.len).then(|| Ok(mem::take(&mut self.data)))
    }
}

/// Write all pieces, one behind the other.
struct Write {
    file: Arc<File>,
    offset: u64,
    data: VecDeque<Bytes>,
    pieces: Pieces,
}

/// What a request says of the pieces: where they are.
struct Pieces(Vec<libc::iovec>);

// SAFETY: what the pointers point to is owned by the same `Write`.
unsafe impl Send for Pieces {}

impl Write {
    fn new(file: &Arc<File>, offset: u64, mut data: Vec<Bytes>) -> Self {
        data.retain(|piece| !piece.is_empty());
        Write {
            file: file.clone(),
            offset,
            data: data.into(),
            pieces: Pieces(Vec::new()),
        }
    }
}

// SAFETY: `pieces` and the bytes of `data` are on the heap, and not touched
// between request and answer; `file` is open as long as it is owned.
unsafe impl Operation for Write {
    type Output = ();

    fn request(&mut self) -> squeue::Entry {
        let pieces = &mut self.pieces.0;
        pieces.clear();
        pieces.extend(self.data.iter().take(MAX_PIECES).map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        }));
        opcode::Writev::new(fd(&self.file), pieces.as_ptr(), pieces.len() as u32)
            .offset(self.offset)
            .build()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<()>> {
        let mut written = match answer {
            Err(e) => return Some(Err(e)),
            Ok(0) => return Some(Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => written as usize,
        };
        self.offset += written as u64;
        while let Some(piece) = self.data.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return None;
            }
            written -= piece.len();
            self.data.pop_front();
        }
        Some(Ok(()))
    }
}

/// Have the page cache read a range, and read it to know when it has.
struct Load {
    file: Arc<File>,
    offset: u64,
    end: u64,
    /// Up to where the disk has been told to read.
    told: u64,
    telling: bool,
}

impl Load {
    fn new(file: &Arc<File>, offset: u64, len: u64) -> Self {
        Load {
            file: file.clone(),
            offset,
            end: offset + len,
            told: offset,
            telling: false,
        }
    }
}

// SAFETY: `LOAD_SCRATCH` may be written by anybody at any time; `file` is open
// as long as it is owned.
unsafe impl Operation for Load {
    type Output = ();

    fn request(&mut self) -> squeue::Entry {
        let file = fd(&self.file);
        self.telling = self.offset == self.told;
        if self.telling {
            let window = LOAD_WINDOW.min(self.end - self.offset);
            return opcode::Fadvise::new(file, window as libc::off_t, libc::POSIX_FADV_WILLNEED)
                .offset(self.offset)
                .build();
        }
        let piece = LOAD_PIECE.min(self.told - self.offset);
        opcode::Read::new(file, LOAD_SCRATCH.as_ptr().cast_mut().cast(), piece as u32)
            .offset(self.offset)
            .build()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<()>> {
        if self.telling {
            // It was no more than advice.
            self.told = self.end.min(self.offset + LOAD_WINDOW);
            return None;
        }
        match answer {
            Err(e) => return Some(Err(e)),
            Ok(0) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => self.offset += u64::from(read),
        }
        (self.offset == self.end).then_some(Ok(()))
    }
}

// === Rings ===

/// A submission and a completion queue, and what is under way between them.
struct Ring {
    uring: IoUring,
    /// Held by who uses the submission queue.
    submission: Mutex<()>,
    table: Mutex<Table>,
    closing: AtomicBool,
}

/// The operations that were begun.
#[derive(Default)]
struct Table {
    /// By the number that their requests carry.
    asked: Slab<Box<dyn InFlight>>,
    /// How many have been asked for, those included whose answer is being
    /// looked at. At most [`MAX_IN_FLIGHT`], so that all answers have a place
    /// in the completion queue.
    in_flight: usize,
    /// Those whose turn has not come.
    waiting: VecDeque<Box<dyn InFlight>>,
}

/// Keeps a ring going; its thread ends, and the ring is closed, when this is
/// dropped and everything that was begun has ended.
#[derive(Debug)]
struct RingHandle(Arc<Ring>);

/// An operation, and who waits for it.
struct Pending<O: Operation> {
    operation: O,
    done: Option<oneshot::Sender<io::Result<O::Output>>>,
}

/// [`Pending`], whatever the operation.
trait InFlight: Send {
    fn request(&mut self) -> squeue::Entry;

    /// Take the kernel's answer; `Some` if there is more to ask for.
    fn answer(self: Box<Self>, answer: i32) -> Option<Box<dyn InFlight>>;

    /// Tell who waits that the kernel can not be asked.
    fn fail(&mut self, error: io::Error);
}

impl<O: Operation> InFlight for Pending<O> {
    fn request(&mut self) -> squeue::Entry {
        // ASYNC: not on the thread that submits.
        self.operation.request().flags(squeue::Flags::ASYNC)
    }

    fn answer(mut self: Box<Self>, answer: i32) -> Option<Box<dyn InFlight>> {
        let result = match u32::try_from(answer) {
            Ok(value) => Ok(value),
            // Nobody cancels but the kernel, when the thread that submitted has
            // exited. From here on the ring's own thread submits.
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
        // Who waits shall find that nothing uses the file any more.
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
    /// Enter an operation, and have its next request.
    fn ask(&mut self, mut operation: Box<dyn InFlight>) -> squeue::Entry {
        let request = operation.request();
        let number = self.asked.insert(operation);
        request.user_data(number as u64)
    }
}

impl Ring {
    /// Set up a ring, and the thread that waits for its completions.
    fn start(name: &str) -> io::Result<(RingHandle, JoinHandle<()>)> {
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

    /// What the ring's thread does.
    fn serve(&self) {
        loop {
            self.take_answers();
            if self.closing.load(Ordering::Acquire) && self.table.lock().in_flight == 0 {
                return;
            }
            // SAFETY: submits nothing, and passes no pointer. All errors
            // (EINTR, EBUSY) are reasons to look at the queue again.
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

    /// Begin an operation; it goes on whatever becomes of the future.
    async fn run<O: Operation>(&self, operation: O) -> io::Result<O::Output> {
        let (done, output) = oneshot::channel();
        self.begin(Box::new(Pending {
            operation,
            done: Some(done),
        }));
        output.await.map_err(io::Error::other)?
    }

    fn begin(&self, operation: Box<dyn InFlight>) {
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

    /// Look at all completions that there are.
    fn take_answers(&self) {
        // SAFETY: there is no other, as only the ring's thread comes here.
        let completions = unsafe { self.uring.completion_shared() };
        let mut requests = Vec::new();
        for completion in completions {
            let number = completion.user_data() as usize;
            let asked = self.table.lock().asked.try_remove(number);
            // What a handle asks for when it is dropped is in no table.
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
            // What the requests name stays in the table: the queue still has
            // them, and who submits next may be allowed to.
            let mut table = self.table.lock();
            for request in requests {
                if let Some(operation) = table.asked.get_mut(request.get_user_data() as usize) {
                    operation.fail(io::Error::new(error.kind(), error.to_string()));
                }
            }
        }
    }

    /// Put requests into the submission queue, and have the kernel take them.
    fn enter(&self, requests: &[squeue::Entry]) -> io::Result<()> {
        let _queue = self.submission.lock();
        // SAFETY: there is no other, by the lock.
        let mut queue = unsafe { self.uring.submission_shared() };
        for request in requests {
            // SAFETY: what it names is kept in the table until it is answered,
            // see `Operation`.
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

/// A ring that can do all that is needed.
fn set_up(queue: u32) -> io::Result<IoUring> {
    let refused = |e: io::Error| {
        let what = format!(
            "io_uring can not be used: {e}; the kernel must be 5.15 or later, with \
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
    // Setting up may be allowed, and entering not.
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::OwnedFd;

    use futures::future::join_all;
    use tokio::task::yield_now;

    use super::*;
    use crate::cache::io::backend_suite::backend_suite;

    backend_suite!(UringBackend::new(Handle::current()).unwrap());

    fn ring() -> (RingHandle, JoinHandle<()>) {
        Ring::start("cache-uring-t").unwrap()
    }

    /// A file whose reads wait until the other one is written to.
    fn pipe() -> (Arc<File>, File) {
        let (read, write) = io::pipe().unwrap();
        let read = File::from(OwnedFd::from(read));
        (Arc::new(read), OwnedFd::from(write).into())
    }

    /// The files of an entry whose folder does not exist.
    fn entry(dir: &Path) -> EntryFiles {
        EntryFiles::new(&dir.join("ab"), "ab.01")
    }

    /// Have the kernel refuse a system call to this thread.
    fn forbid(system_call: libc::c_long) {
        let statement = |code: u32, jt, jf, k| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let mut filter = [
            // The number of the call comes first in `struct seccomp_data`.
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ, 0, 1, system_call as u32),
            statement(libc::BPF_RET, 0, 0, refuse),
            statement(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: takes integers.
        let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(result, 0);
        // SAFETY: `program` and `filter` outlive the call, which copies them.
        let result = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    #[tokio::test]
    async fn what_the_kernel_has_no_place_for_waits_its_turn() {
        const READS: usize = 5000;
        let (ring, thread) = ring();
        let (file, mut writer) = pipe();
        let mut reads: Vec<_> = (0..READS)
            .map(|_| Box::pin(ring.run(Read::exact(&file, 0, 1))))
            .collect();
        for read in &mut reads {
            assert!(futures::poll!(read).is_pending());
        }
        {
            let table = ring.table.lock();
            assert_eq!(table.in_flight, MAX_IN_FLIGHT);
            assert_eq!(table.waiting.len(), READS - MAX_IN_FLIGHT);
        }
        writer.write_all(&[7; READS]).unwrap();
        for read in join_all(reads).await {
            assert_eq!(read.unwrap(), [7]);
        }
        drop(ring);
        thread.join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn thousands_of_reads_at_once_get_what_they_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let backend = UringBackend::new(Handle::current()).unwrap();
        let file = backend.create(&entry(dir.path()), None).await.unwrap();
        let body: Vec<u8> = (0..250_000u32).flat_map(u32::to_le_bytes).collect();
        let data = vec![body.clone().into()];
        backend.write(&file, 0, data).await.unwrap();
        let reads = (0..5000).map(|number| {
            let (backend, file) = (backend.clone(), file.clone());
            let offset = number * 199;
            let read = async move { backend.read(&file, offset as u64, 5000).await };
            async move { (offset, tokio::spawn(read).await.unwrap()) }
        });
        for (offset, read) in join_all(reads).await {
            assert!(read.unwrap() == body[offset..offset + 5000], "{offset}");
        }
    }

    #[tokio::test]
    async fn a_read_in_pieces_is_whole() {
        let (ring, _) = ring();
        let (file, mut writer) = pipe();
        let read = ring.run(Read::exact(&file, 0, 10));
        tokio::pin!(read);
        for piece in [b"01234", b"56789"] {
            assert!(futures::poll!(&mut read).is_pending());
            writer.write_all(piece).unwrap();
        }
        assert_eq!(read.await.unwrap(), b"0123456789");

        let (file, mut writer) = pipe();
        writer.write_all(b"01234").unwrap();
        drop(writer);
        let e = ring.run(Read::exact(&file, 0, 10)).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_write_in_pieces_is_whole() {
        let (ring, _) = ring();
        let (reader, writer) = pipe();
        // More bytes than a pipe takes at once, more pieces than a request.
        let body: Vec<u8> = (0..500_000u32).map(|i| (i / 3 + i % 251) as u8).collect();
        let pieces = body.chunks(333).map(Bytes::copy_from_slice).collect();
        let read = thread::spawn(move || {
            let mut data = Vec::new();
            (&*reader).read_to_end(&mut data).map(|_| data)
        });
        let writer = Arc::new(writer);
        ring.run(Write::new(&writer, 0, pieces)).await.unwrap();
        drop(writer);
        assert!(read.join().unwrap().unwrap() == body);
    }

    #[tokio::test]
    async fn steps_go_on_without_their_future() {
        let dir = tempfile::tempdir().unwrap();
        let backend = UringBackend::new(Handle::current()).unwrap();
        let files = entry(dir.path());
        let file = backend.create(&files, None).await.unwrap();
        let data = vec![Bytes::from_static(b"0123456789")];
        backend.write(&file, 0, data).await.unwrap();

        // The runtime has one thread: nothing goes on before the future is gone.
        assert!(futures::poll!(backend.commit(&files, &file, vec![7])).is_pending());
        while !files.meta().exists() {
            yield_now().await;
        }
        assert!(backend.open(&files, 10).await.is_ok());

        assert!(futures::poll!(backend.remove(&files)).is_pending());
        // The last handle but that of the task.
        drop(backend);
        while files.body().exists() {
            yield_now().await;
        }
        assert!(!files.meta().exists());
    }

    #[tokio::test]
    async fn an_operation_outlives_the_thread_that_began_it() {
        let (ring, _) = ring();
        let (file, mut writer) = pipe();
        let (done, read) = oneshot::channel();
        let pending = Box::new(Pending {
            operation: Read::exact(&file, 0, 3),
            done: Some(done),
        });
        // The kernel cancels what a thread has submitted when it exits.
        thread::scope(|scope| scope.spawn(|| ring.begin(pending)).join()).unwrap();
        writer.write_all(b"abc").unwrap();
        assert_eq!(read.await.unwrap().unwrap(), b"abc");
    }

    #[tokio::test]
    async fn a_ring_ends_with_its_handle_and_its_operations() {
        let (idle, thread) = ring();
        let closed = Arc::downgrade(&idle.0);
        drop(idle);
        thread.join().unwrap();
        assert!(closed.upgrade().is_none());

        let (ring, thread) = ring();
        let (file, mut writer) = pipe();
        let closed = Arc::downgrade(&ring.0);
        let mut read = Box::pin(ring.run(Read::exact(&file, 0, 3)));
        assert!(futures::poll!(&mut read).is_pending());
        drop(read);
        drop(ring);
        let asked = |ring: Arc<Ring>| ring.table.lock().in_flight;
        assert_eq!(closed.upgrade().map(asked), Some(1), "has the buffer");
        writer.write_all(b"abc").unwrap();
        thread.join().unwrap();
        assert!(closed.upgrade().is_none());
        assert_eq!(Arc::strong_count(&file), 1);
    }

    #[tokio::test]
    async fn the_rings_end_with_the_last_clone() {
        let dir = tempfile::tempdir().unwrap();
        let backend = UringBackend::new(Handle::current()).unwrap();
        let rings = [&backend.rings.hits, &backend.rings.fills].map(|ring| Arc::downgrade(&ring.0));
        let clone = backend.clone();
        drop(backend);
        clone.create(&entry(dir.path()), None).await.unwrap();
        drop(clone);
        while rings.iter().any(|ring| ring.strong_count() > 0) {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_kernel_that_forbids_io_uring_is_refused_in_one_line() {
        for system_call in [
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_io_uring_enter,
        ] {
            let runtime = Handle::current();
            let refused = thread::scope(|scope| {
                let new = || {
                    forbid(system_call);
                    UringBackend::new(runtime).unwrap_err()
                };
                scope.spawn(new).join().unwrap()
            });
            assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
            let text = refused.to_string();
            assert!(text.contains("Operation not permitted"), "{text}");
            assert!(text.contains("io_uring_disabled"), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }

    #[tokio::test]
    async fn a_thread_that_may_not_enter_is_told_and_harms_nobody() {
        let (ring, thread) = ring();
        let file = Arc::new(tempfile::tempfile().unwrap());
        (&*file).write_all(b"0123456789").unwrap();
        let runtime = Handle::current();
        let refused = thread::scope(|scope| {
            let read = || {
                forbid(libc::SYS_io_uring_enter);
                runtime.block_on(ring.run(Read::exact(&file, 0, 3)))
            };
            scope.spawn(read).join().unwrap()
        });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let read = ring.run(Read::exact(&file, 5, 5)).await.unwrap();
        assert_eq!(read, b"56789");
        drop(ring);
        thread.join().unwrap();
    }
}
