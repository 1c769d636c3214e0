//! The backend on io_uring(7), for Linux 5.15 and later.
//!
//! There are two rings, so that fills cannot queue in front of hits. The thread that starts an
//! operation puts it into the submission queue and enters the kernel, which passes it to its own
//! workers: operations of a backend usually need the disk, and by default the kernel would first
//! try them on the thread that submits. One thread per ring waits for completions.
//!
//! An operation, and the memory, paths and files that it names, belong to the table of its ring
//! until the kernel has answered, even if the future that waits for it is dropped. Operations of
//! several steps are tasks of a tokio runtime, for the same reason.

#![allow(unsafe_code)]

mod operation;
mod ring;

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::cache::io::backend::{DiskBackend, OpenBody, OpenFiles};
use crate::cache::io::files::{EntryFiles, MAX_META_LEN};
use crate::cache::io::folder::FolderAccess;
use crate::cache::io::page_cache;
use crate::cache::io::regular;
use crate::cache::io::uring::operation::{
    create_new, length, make_folder, open, rename, reserve_space, sync_data, unlink, Load, Read,
    Write,
};
use crate::cache::io::uring::ring::{Ring, RingHandle};

/// First read of a metadata file, in bytes. Most files fit.
const META_PIECE: usize = 4096;

/// Errors of file systems without fallocate(2).
const CANNOT_RESERVE: [i32; 3] = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL];

/// Files on a local file system, used through io_uring.
#[derive(Debug, Clone)]
pub struct UringBackend {
    runtime: Handle,
    rings: Arc<Rings>,
}

#[derive(Debug)]
struct Rings {
    /// Operations that a client waits for.
    hits: RingHandle,
    /// Operations that create and remove entries.
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

    /// Do work that has to continue when its future is dropped.
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
            // The cache folder was emptied.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let shard = make_folder(files.folder())?;
                match fills.run(shard).await {
                    // Another fill was faster.
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
                // The file system cannot reserve; a write finds out whether there is space.
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
            self.replace_meta(files, meta, false).await
        }
        .await;
        if committed.is_err() {
            let _ = self.remove_if_there(&temporary).await;
            let _ = self.remove_if_there(&body).await;
        }
        committed
    }

    async fn replace_meta(&self, files: &EntryFiles, meta: Vec<u8>, sync: bool) -> io::Result<()> {
        let fills = &self.rings.fills;
        let temporary = files.meta_tmp();
        let written = async {
            let file = Arc::new(fills.run(create_new(&temporary)?).await?);
            fills.run(Write::new(&file, 0, vec![meta.into()])).await?;
            if sync {
                fills.run(sync_data(&file)).await?;
            }
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
        page_cache::prepare(&body);
        Ok(OpenFiles {
            meta,
            body,
            body_len,
            prefetched,
        })
    }

    async fn open_body(&self, files: &EntryFiles) -> io::Result<OpenBody> {
        let (body, body_len) = self.open_to_read(&files.body()).await?;
        page_cache::prepare(&body);
        Ok(OpenBody { body, body_len })
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

    async fn open_to_write(&self, files: &EntryFiles) -> io::Result<Arc<File>> {
        let body = open(&files.body(), libc::O_WRONLY | regular::FLAGS)?;
        let file = self.rings.fills.run(body).await;
        Ok(Arc::new(file.map_err(regular::not_regular)?))
    }

    /// On a thread that may block: io_uring has no such operation before Linux 6.9.
    async fn set_len(&self, file: &Arc<File>, len: u64) -> io::Result<()> {
        let file = file.clone();
        let set = self.runtime.spawn_blocking(move || file.set_len(len));
        set.await.map_err(io::Error::other)?
    }

    async fn record(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()> {
        let (files, body) = (files.clone(), body.clone());
        self.detached(|backend| async move {
            backend.rings.fills.run(sync_data(&body)).await?;
            backend.replace_meta(&files, meta, true).await
        })
        .await
    }

    async fn discard(&self, files: &EntryFiles) -> io::Result<()> {
        self.remove_if_there(&files.body_tmp()).await
    }

    async fn write_meta(&self, files: &EntryFiles, meta: Vec<u8>) -> io::Result<()> {
        let files = files.clone();
        self.detached(|backend| async move { backend.replace_meta(&files, meta, false).await })
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::OwnedFd;
    use std::thread::{self, JoinHandle};

    use futures::future::join_all;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    use super::ring::{Pending, MAX_IN_FLIGHT};
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

    /// Make the kernel refuse a system call of this thread.
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

        // The runtime has one thread: nothing continues before the future is dropped.
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
