//! The backend on tokio's blocking thread pool.

use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::cache::io::backend::{DiskBackend, OpenBody, OpenFiles};
use crate::cache::io::files::{EntryFiles, MAX_META_LEN};
use crate::cache::io::folder::{read_open_file, remove_if_there, FolderAccess};
use crate::cache::io::page_cache::{self, load, read_exact_at};
use crate::cache::io::regular;

/// Files on a local file system, accessed by tokio's blocking thread pool.
#[derive(Debug, Clone)]
pub struct TokioFsBackend {
    runtime: Handle,
}

impl TokioFsBackend {
    /// A backend that uses the blocking threads of `runtime`.
    pub fn new(runtime: Handle) -> Self {
        TokioFsBackend { runtime }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let done = self.runtime.spawn_blocking(work).await;
        done.map_err(io::Error::other)?
    }
}

impl FolderAccess for TokioFsBackend {}

#[async_trait]
impl DiskBackend for TokioFsBackend {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn supports_sendfile(&self) -> bool {
        cfg!(target_os = "linux")
    }

    async fn open(&self, files: &EntryFiles, prefetch: u64) -> io::Result<OpenFiles> {
        let files = files.clone();
        self.blocking(move || open(&files, prefetch)).await
    }

    async fn open_body(&self, files: &EntryFiles) -> io::Result<OpenBody> {
        let path = files.body();
        self.blocking(move || open_body(&path)).await
    }

    async fn read_body(&self, files: &EntryFiles, len: usize) -> io::Result<Bytes> {
        let path = files.body();
        self.blocking(move || {
            let file = regular::open(&path)?;
            regular::check_len(file.metadata()?.len(), len as u64)?;
            page_cache::no_access_time(&file);
            let mut body = vec![0; len];
            read_exact_at(&file, 0, &mut body)?;
            Ok(body.into())
        })
        .await
    }

    async fn create(&self, files: &EntryFiles, reserve: Option<u64>) -> io::Result<Arc<File>> {
        let files = files.clone();
        self.blocking(move || {
            let path = files.body_tmp();
            let open = || {
                File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
            };
            let file = match open() {
                // The cache folder was emptied.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match fs::create_dir(files.folder()) {
                        // Another fill was faster.
                        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                        made => made?,
                    }
                    open()?
                }
                file => file?,
            };
            if let Err(e) = reserve_space(&file, reserve.unwrap_or(0)) {
                let _ = fs::remove_file(&path);
                return Err(e);
            }
            Ok(Arc::new(file))
        })
        .await
    }

    async fn write(&self, file: &Arc<File>, offset: u64, data: Vec<Bytes>) -> io::Result<()> {
        let file = file.clone();
        self.blocking(move || write_all_at(&file, offset, data))
            .await
    }

    async fn read(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = file.clone();
        self.blocking(move || {
            let mut buf = vec![0; len];
            read_exact_at(&file, offset, &mut buf)?;
            Ok(buf.into())
        })
        .await
    }

    async fn load(&self, file: &Arc<File>, offset: u64, len: u64) -> io::Result<()> {
        let file = file.clone();
        self.blocking(move || load(&file, offset..offset + len))
            .await
    }

    async fn commit(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()> {
        let (files, body) = (files.clone(), body.clone());
        self.blocking(move || {
            let committed = body
                .sync_data()
                .and_then(|()| fs::rename(files.body_tmp(), files.body()))
                .and_then(|()| write_meta(&files, &meta, |_| Ok(())));
            if committed.is_err() {
                let _ = remove_if_there(&files.body_tmp());
                let _ = remove_if_there(&files.body());
            }
            committed
        })
        .await
    }

    async fn open_to_write(&self, files: &EntryFiles) -> io::Result<Arc<File>> {
        let path = files.body();
        let open = move || regular::open_with(File::options().write(true), &path).map(Arc::new);
        self.blocking(open).await
    }

    async fn set_len(&self, file: &Arc<File>, len: u64) -> io::Result<()> {
        let file = file.clone();
        self.blocking(move || file.set_len(len)).await
    }

    async fn record(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()> {
        let (files, body) = (files.clone(), body.clone());
        self.blocking(move || {
            body.sync_data()?;
            write_meta(&files, &meta, File::sync_data)
        })
        .await
    }

    async fn discard(&self, files: &EntryFiles) -> io::Result<()> {
        let body = files.body_tmp();
        self.blocking(move || remove_if_there(&body)).await
    }

    async fn write_meta(&self, files: &EntryFiles, meta: Vec<u8>) -> io::Result<()> {
        let files = files.clone();
        self.blocking(move || write_meta(&files, &meta, |_| Ok(())))
            .await
    }

    async fn remove(&self, files: &EntryFiles) -> io::Result<()> {
        let files = files.clone();
        self.blocking(move || {
            // Without metadata, what is left is no entry.
            let meta = remove_if_there(&files.meta());
            remove_if_there(&files.body())?;
            meta
        })
        .await
    }
}

fn open(files: &EntryFiles, prefetch: u64) -> io::Result<OpenFiles> {
    let meta = regular::open(&files.meta())?;
    let OpenBody { body, body_len } = open_body(&files.body())?;
    if body_len <= prefetch {
        // The disk reads it and the metadata at the same time.
        page_cache::read_ahead(&body, 0, body_len);
    }
    let meta = read_open_file(meta, MAX_META_LEN)?;
    let prefetched = if body_len <= prefetch {
        let mut buf = vec![0; body_len as usize];
        // At an offset, so that the position of the descriptor stays at 0: see
        // `BodyFile::has_len()`.
        read_exact_at(&body, 0, &mut buf)?;
        Some(buf.into())
    } else {
        None
    };
    Ok(OpenFiles {
        meta,
        body,
        body_len,
        prefetched,
    })
}

fn open_body(path: &Path) -> io::Result<OpenBody> {
    let body = regular::open(path)?;
    let body_len = body.metadata()?.len();
    page_cache::prepare(&body);
    Ok(OpenBody {
        body: Arc::new(body),
        body_len,
    })
}

fn write_meta(
    files: &EntryFiles,
    meta: &[u8],
    sync: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = files.meta_tmp();
    let written = File::create_new(&temporary)
        .and_then(|mut file| {
            file.write_all(meta)?;
            sync(&file)
        })
        .and_then(|()| fs::rename(&temporary, files.meta()));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Write all pieces with as few calls as possible: the fewer calls, the larger the folios in the
/// page cache.
#[cfg(unix)]
fn write_all_at(file: &File, mut offset: u64, data: Vec<Bytes>) -> io::Result<()> {
    let mut slices: Vec<_> = data.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut slices = &mut slices[..];
    // Empty pieces are skipped: a write of nothing would look like an error.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match rustix::io::pwritev(file, slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Reserve disk space. The length of the file does not change.
#[cfg(target_os = "linux")]
fn reserve_space(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{fallocate, FallocateFlags};
    use rustix::io::Errno;
    if len == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, len) {
            Err(Errno::INTR) => continue,
            // The file system cannot reserve; a write finds out whether there is space.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve_space(_file: &File, _len: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::io::backend_suite::backend_suite;

    backend_suite!(TokioFsBackend::new(Handle::current()));
}
