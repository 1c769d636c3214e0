//! The backend on tokio's blocking thread pool.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::cache::io::page_cache::load;
use crate::cache::io::regular;
use crate::cache::store::format::{EntryMeta, MAX_META_LEN};
use crate::cache::store::layout::Layout;
use crate::cache::{DiskBackend, EntryId, OpenEntry};

/// Files on a local file system, used through tokio's blocking thread pool.
#[derive(Debug, Clone)]
pub struct TokioFsBackend {
    layout: Layout,
    runtime: Handle,
}

impl TokioFsBackend {
    /// Use the entries under the cache folder `path`; work on the blocking
    /// threads of `runtime`. Blocks, to create the folders that are missing.
    pub fn new(path: &Path, runtime: Handle) -> io::Result<Self> {
        let layout = Layout::new(path);
        layout.create_folders()?;
        Ok(TokioFsBackend { layout, runtime })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let layout = self.layout.clone();
        self.runtime
            .spawn_blocking(move || work(&layout))
            .await
            .map_err(io::Error::other)?
    }
}

#[async_trait]
impl DiskBackend for TokioFsBackend {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn supports_sendfile(&self) -> bool {
        cfg!(target_os = "linux")
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    async fn open(&self, id: EntryId, prefetch: u64) -> io::Result<OpenEntry> {
        self.blocking(move |layout| open(layout, &id, prefetch))
            .await
    }

    async fn create(&self, id: EntryId, reserve: Option<u64>) -> io::Result<Arc<File>> {
        self.blocking(move |layout| {
            let path = layout.body_tmp(&id);
            let open = || {
                File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
            };
            let file = match open() {
                // Somebody has emptied the cache folder.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match fs::create_dir(layout.shard(id.hash[0])) {
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
        self.blocking(move |_| write_all_at(&file, offset, data))
            .await
    }

    async fn read(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = file.clone();
        self.blocking(move |_| {
            let mut buf = vec![0; len];
            read_exact_at(&file, offset, &mut buf)?;
            Ok(buf.into())
        })
        .await
    }

    async fn load(&self, file: &Arc<File>, offset: u64, len: u64) -> io::Result<()> {
        let file = file.clone();
        self.blocking(move |_| load(&file, offset..offset + len))
            .await
    }

    async fn commit(&self, id: EntryId, file: &Arc<File>, meta: EntryMeta) -> io::Result<()> {
        let file = file.clone();
        self.blocking(move |layout| {
            let committed = file
                .sync_data()
                .and_then(|()| fs::rename(layout.body_tmp(&id), layout.body(&id)))
                .and_then(|()| write_meta(layout, &id, &meta));
            if committed.is_err() {
                let _ = remove_if_there(&layout.body_tmp(&id));
                let _ = remove_if_there(&layout.body(&id));
            }
            committed
        })
        .await
    }

    async fn discard(&self, id: EntryId) -> io::Result<()> {
        self.blocking(move |layout| remove_if_there(&layout.body_tmp(&id)))
            .await
    }

    async fn write_meta(&self, id: EntryId, meta: EntryMeta) -> io::Result<()> {
        self.blocking(move |layout| write_meta(layout, &id, &meta))
            .await
    }

    async fn remove(&self, id: EntryId) -> io::Result<()> {
        self.blocking(move |layout| remove(layout, &id)).await
    }
}

fn open(layout: &Layout, id: &EntryId, prefetch: u64) -> io::Result<OpenEntry> {
    let meta = read_meta(&layout.meta(id))?;
    let body = regular::open(&layout.body(id))?;
    let body_len = body.metadata()?.len();
    let prefetched = if meta.body_len <= prefetch && body_len == meta.body_len {
        let mut buf = vec![0; meta.body_len as usize];
        // Not from its position, at which it stays: see `BodyFile::has_len()`.
        read_exact_at(&body, 0, &mut buf)?;
        Some(buf.into())
    } else {
        None
    };
    no_read_ahead(&body);
    OpenEntry::checked(id, meta, body, body_len, prefetched)
}

fn write_meta(layout: &Layout, id: &EntryId, meta: &EntryMeta) -> io::Result<()> {
    let temporary = layout.meta_tmp(id);
    let written = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(&meta.encode()))
        .and_then(|()| fs::rename(&temporary, layout.meta(id)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Remove an entry, the metadata first: without it, what is left is no entry.
/// Blocks.
pub(crate) fn remove(layout: &Layout, id: &EntryId) -> io::Result<()> {
    let meta = remove_if_there(&layout.meta(id));
    remove_if_there(&layout.body(id))?;
    meta
}

/// Read one metadata file. Blocks.
pub(crate) fn read_meta(path: &Path) -> io::Result<EntryMeta> {
    // Most fit, and are then read in one go.
    let mut data = Vec::with_capacity(4096);
    regular::open(path)?
        .take(MAX_META_LEN)
        .read_to_end(&mut data)?;
    EntryMeta::decode(&data)
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

/// Write all pieces with as few calls as possible: the fewer, the larger are the
/// folios of the page cache.
#[cfg(unix)]
fn write_all_at(file: &File, mut offset: u64, data: Vec<Bytes>) -> io::Result<()> {
    let mut slices: Vec<_> = data.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut slices = &mut slices[..];
    // Without the empty ones: writing nothing is no error.
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

/// Set disk space aside; the file's length stays.
#[cfg(target_os = "linux")]
pub(crate) fn reserve_space(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{fallocate, FallocateFlags};
    use rustix::io::Errno;
    if len == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, len) {
            Err(Errno::INTR) => continue,
            // The file system cannot: space is found, or not, when writing.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn reserve_space(_file: &File, _len: u64) -> io::Result<()> {
    Ok(())
}

/// The kernel shall read what it is asked for, and no more on its own: pages
/// that are being read look as if they were there, and sending one would wait
/// for it. The cache reads ahead itself, and knows when it is done.
#[cfg(target_os = "linux")]
pub(crate) fn no_read_ahead(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn no_read_ahead(_file: &File) {}

/// Have the kernel start to read a range.
#[cfg(target_os = "linux")]
pub(crate) fn read_ahead(file: &File, offset: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read_ahead(_file: &File, _offset: u64, _len: u64) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::io::backend_suite::backend_suite;

    backend_suite!(|path| TokioFsBackend::new(path, Handle::current()).unwrap());
}
