//! A backend for tests, which fails, is slow, and counts, as told.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cache::io::backend::{DiskBackend, OpenBody, OpenFiles};
use crate::cache::io::files::EntryFiles;
use crate::cache::io::folder::{FileStat, FolderAccess, LocalFolder};
use crate::cache::io::tokio_fs::TokioFsBackend;

/// An operation of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Open,
    OpenBody,
    Create,
    Write,
    Read,
    Load,
    Commit,
    Discard,
    WriteMeta,
    Record,
    OpenToWrite,
    Remove,
    ReadFile,
    Append,
    Replace,
    List,
    Stat,
    CreateFolder,
    RemoveFile,
    SyncFolder,
    Checksum,
}

/// A fault of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails with this error number.
    Errno(i32),
    /// It does half of its work. A write then fails with `ENOSPC`; a read ends early.
    Short,
}

/// The faults of a backend, as a test sets them.
#[derive(Debug, Clone)]
pub(crate) struct Faults(Arc<State>);

#[derive(Debug)]
struct State {
    faults: Mutex<HashMap<Op, (Fault, usize)>>,
    delays: Mutex<HashMap<Op, Duration>>,
    /// Operations that wait until they are released.
    held: watch::Sender<Vec<Op>>,
    counts: Mutex<HashMap<Op, usize>>,
    free: Mutex<Option<Free>>,
}

/// The bytes that the disk has left.
#[derive(Clone, Copy, Debug)]
enum Free {
    Always(u64),
    /// What the files in the folder leave of so many.
    Of(u64),
}

/// [`TokioFsBackend`] with [`Faults`].
pub(crate) struct FaultyBackend {
    files: TokioFsBackend,
    faults: Faults,
}

// === impl Faults ===

impl Faults {
    pub(crate) fn new() -> Self {
        Faults(Arc::new(State {
            faults: Mutex::default(),
            delays: Mutex::default(),
            held: watch::Sender::default(),
            counts: Mutex::default(),
            free: Mutex::default(),
        }))
    }

    /// Have an operation fail the next `times` times.
    pub(crate) fn set(&self, op: Op, fault: Fault, times: usize) {
        self.0.faults.lock().insert(op, (fault, times));
    }

    /// Have an operation fail until it is [cleared](Self::clear).
    pub(crate) fn always(&self, op: Op, errno: i32) {
        self.set(op, Fault::Errno(errno), usize::MAX);
    }

    /// Have an operation succeed.
    pub(crate) fn clear(&self, op: Op) {
        self.0.faults.lock().remove(&op);
    }

    /// Have an operation take longer.
    pub(crate) fn delay(&self, op: Op, by: Duration) {
        self.0.delays.lock().insert(op, by);
    }

    /// Have an operation wait until it is [released](Self::release).
    pub(crate) fn hold(&self, op: Op) {
        self.0.held.send_modify(|held| held.push(op));
    }

    pub(crate) fn release(&self, op: Op) {
        self.0.held.send_modify(|held| held.retain(|o| *o != op));
    }

    /// Number of calls of an operation so far.
    pub(crate) fn count(&self, op: Op) -> usize {
        self.0.counts.lock().get(&op).copied().unwrap_or(0)
    }

    /// Set the bytes that the disk has left.
    pub(crate) fn set_free(&self, bytes: u64) {
        *self.0.free.lock() = Some(Free::Always(bytes));
    }

    /// Set the bytes that the disk has left beside the files in `folder`, now. It has more when some are
    /// removed.
    pub(crate) fn set_free_beside(&self, folder: &Path, bytes: u64) {
        *self.0.free.lock() = Some(Free::Of(bytes + allocated(folder)));
    }

    fn take(&self, op: Op) -> Option<Fault> {
        *self.0.counts.lock().entry(op).or_default() += 1;
        let mut faults = self.0.faults.lock();
        let (fault, times) = faults.get_mut(&op)?;
        *times = times.checked_sub(1)?;
        Some(*fault)
    }

    /// Begin an operation. True if it is to do half of its work.
    async fn begin(&self, op: Op) -> io::Result<bool> {
        let fault = self.take(op);
        let mut held = self.0.held.subscribe();
        let _ = held.wait_for(|held| !held.contains(&op)).await;
        let delay = self.0.delays.lock().get(&op).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        is_short(fault)
    }

    /// [`begin`](Self::begin) for operations that block.
    fn begin_blocking(&self, op: Op) -> io::Result<bool> {
        let fault = self.take(op);
        let mut held = self.0.held.subscribe();
        if held.borrow().contains(&op) {
            let released = held.wait_for(|held| !held.contains(&op));
            let _ = futures::executor::block_on(released);
        }
        let delay = self.0.delays.lock().get(&op).copied();
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
        is_short(fault)
    }
}

fn is_short(fault: Option<Fault>) -> io::Result<bool> {
    match fault {
        Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some(Fault::Short) => Ok(true),
        None => Ok(false),
    }
}

// === impl FaultyBackend ===

impl FaultyBackend {
    pub(crate) fn new(runtime: Handle, faults: Faults) -> Self {
        let files = TokioFsBackend::new(runtime);
        FaultyBackend { files, faults }
    }
}

impl FolderAccess for FaultyBackend {
    fn read_file(&self, path: &Path, max_len: u64) -> io::Result<Vec<u8>> {
        let is_short = self.faults.begin_blocking(Op::ReadFile)?;
        let mut data = LocalFolder.read_file(path, max_len)?;
        if is_short {
            data.truncate(data.len() / 2);
        }
        Ok(data)
    }

    fn append(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        match self.faults.begin_blocking(Op::Append)? {
            true => {
                LocalFolder.append(path, &data[..data.len() / 2])?;
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            false => LocalFolder.append(path, data),
        }
    }

    fn replace(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        self.faults.begin_blocking(Op::Replace)?;
        LocalFolder.replace(path, data)
    }

    fn list(&self, folder: &Path, found: &mut dyn FnMut(OsString)) -> io::Result<()> {
        self.faults.begin_blocking(Op::List)?;
        LocalFolder.list(folder, found)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        self.faults.begin_blocking(Op::Stat)?;
        LocalFolder.stat(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.faults.begin_blocking(Op::CreateFolder)?;
        LocalFolder.create_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.faults.begin_blocking(Op::RemoveFile)?;
        LocalFolder.remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.faults.begin_blocking(Op::SyncFolder)?;
        LocalFolder.sync_folder(path)
    }

    fn free_space(&self, path: &Path) -> Option<u64> {
        let free = *self.faults.0.free.lock();
        match free {
            Some(Free::Always(bytes)) => Some(bytes),
            Some(Free::Of(bytes)) => Some(bytes.saturating_sub(allocated(path))),
            None => LocalFolder.free_space(path),
        }
    }

    fn checksum(
        &self,
        path: &Path,
        len: u64,
        range: Range<u64>,
        read: &mut dyn FnMut(u64),
    ) -> io::Result<u32> {
        match self.faults.begin_blocking(Op::Checksum)? {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => LocalFolder.checksum(path, len, range, read),
        }
    }
}

#[async_trait]
impl DiskBackend for FaultyBackend {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn supports_sendfile(&self) -> bool {
        true
    }

    fn has_page_cache(&self) -> bool {
        false
    }

    async fn open(&self, files: &EntryFiles, prefetch: u64) -> io::Result<OpenFiles> {
        let is_short = self.faults.begin(Op::Open).await?;
        let mut open = self.files.open(files, prefetch).await?;
        if is_short {
            open.meta.truncate(open.meta.len() / 2);
        }
        Ok(open)
    }

    async fn open_body(&self, files: &EntryFiles) -> io::Result<OpenBody> {
        let is_short = self.faults.begin(Op::OpenBody).await?;
        let mut open = self.files.open_body(files).await?;
        if is_short {
            open.body_len /= 2;
        }
        Ok(open)
    }

    async fn create(&self, files: &EntryFiles, reserve: Option<u64>) -> io::Result<Arc<File>> {
        self.faults.begin(Op::Create).await?;
        self.files.create(files, reserve).await
    }

    async fn write(&self, file: &Arc<File>, offset: u64, data: Vec<Bytes>) -> io::Result<()> {
        match self.faults.begin(Op::Write).await? {
            true => {
                let data = Bytes::from(data.concat());
                let half = data.slice(..data.len() / 2);
                self.files.write(file, offset, vec![half]).await?;
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            false => self.files.write(file, offset, data).await,
        }
    }

    async fn read(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        match self.faults.begin(Op::Read).await? {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => self.files.read(file, offset, len).await,
        }
    }

    async fn load(&self, file: &Arc<File>, offset: u64, len: u64) -> io::Result<()> {
        match self.faults.begin(Op::Load).await? {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => self.files.load(file, offset, len).await,
        }
    }

    async fn commit(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()> {
        if let Err(e) = self.faults.begin(Op::Commit).await {
            // A commit that fails leaves nothing.
            self.files.discard(files).await?;
            return Err(e);
        }
        self.files.commit(files, body, meta).await
    }

    async fn open_to_write(&self, files: &EntryFiles) -> io::Result<Arc<File>> {
        self.faults.begin(Op::OpenToWrite).await?;
        self.files.open_to_write(files).await
    }

    async fn set_len(&self, file: &Arc<File>, len: u64) -> io::Result<()> {
        self.files.set_len(file, len).await
    }

    async fn record(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()> {
        self.faults.begin(Op::Record).await?;
        self.files.record(files, body, meta).await
    }

    async fn discard(&self, files: &EntryFiles) -> io::Result<()> {
        self.faults.begin(Op::Discard).await?;
        self.files.discard(files).await
    }

    async fn write_meta(&self, files: &EntryFiles, meta: Vec<u8>) -> io::Result<()> {
        self.faults.begin(Op::WriteMeta).await?;
        self.files.write_meta(files, meta).await
    }

    async fn remove(&self, files: &EntryFiles) -> io::Result<()> {
        self.faults.begin(Op::Remove).await?;
        self.files.remove(files).await
    }
}

/// Bytes that the files below `folder` take of the disk. Those that are removed meanwhile do not count.
fn allocated(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => allocated(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
