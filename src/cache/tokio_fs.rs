//! The backend on tokio's blocking thread pool.
//!
//! `<path>/entries/<first byte of the hash>/<hash>.<generation>.body` and
//! `….meta`. Files are written as `….tmp` and renamed, the body first: the
//! metadata file is what makes an entry.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_blocking;

use super::backend::EntryWriter;
use super::format::{invalid, EntryMeta, MAX_META_LEN};
use super::{DiskBackend, EntryId, OpenEntry};

/// How much of a body being written waits for the disk, in bytes.
const WRITE_BUFFER: usize = 64 * 1024;

/// Files on a local file system, used through tokio's blocking thread pool.
#[derive(Debug, Clone)]
pub struct TokioFsBackend {
    entries: Arc<Path>,
}

impl TokioFsBackend {
    /// Use, and create if need be, the folder `entries` under `path`. Blocks.
    pub fn new(path: &Path) -> io::Result<Self> {
        let entries = path.join("entries");
        for shard in 0..=u8::MAX {
            fs::create_dir_all(entries.join(format!("{shard:02x}")))?;
        }
        Ok(TokioFsBackend {
            entries: entries.into(),
        })
    }

    /// The folder that holds the entries, in one folder a shard.
    pub fn entries(&self) -> &Path {
        &self.entries
    }

    fn file(&self, id: &EntryId, extension: &str) -> PathBuf {
        self.entries
            .join(format!("{:02x}", id.hash[0]))
            .join(format!("{id}.{extension}"))
    }

    fn open_blocking(&self, id: EntryId, prefetch: u64) -> io::Result<OpenEntry> {
        let meta = read_meta(&self.file(&id, "meta"))?;
        if meta.generation != id.generation {
            return Err(invalid("metadata file has another entry's generation"));
        }
        let mut body = File::open(self.file(&id, "body"))?;
        let stat = body.metadata()?;
        if !stat.is_file() || stat.len() != meta.body_len {
            return Err(invalid("body file does not have the recorded length"));
        }
        let prefetched = if meta.body_len <= prefetch {
            let mut buf = vec![0; meta.body_len as usize];
            body.read_exact(&mut buf)?;
            Some(buf.into())
        } else {
            None
        };
        Ok(OpenEntry {
            meta,
            body: Arc::new(body),
            prefetched,
        })
    }

    fn write_meta_blocking(&self, id: &EntryId, meta: &EntryMeta) -> io::Result<()> {
        let temporary = self.file(id, "meta.tmp");
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(&meta.encode()))
            .and_then(|()| fs::rename(&temporary, self.file(id, "meta")));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn remove_blocking(&self, id: &EntryId) -> io::Result<()> {
        // The metadata first: without it, what is left is no entry.
        let meta = remove_if_there(&self.file(id, "meta"));
        remove_if_there(&self.file(id, "body"))?;
        meta
    }
}

/// Read one metadata file. Blocks.
pub(super) fn read_meta(path: &Path) -> io::Result<EntryMeta> {
    // Most fit, and are then read in one go.
    let mut data = Vec::with_capacity(4096);
    File::open(path)?
        .take(MAX_META_LEN)
        .read_to_end(&mut data)?;
    EntryMeta::decode(&data)
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[async_trait]
impl DiskBackend for TokioFsBackend {
    fn supports_sendfile(&self) -> bool {
        cfg!(target_os = "linux")
    }

    fn get_file_path(&self, id: &EntryId) -> PathBuf {
        self.file(id, "body")
    }

    async fn open(&self, id: EntryId, prefetch: u64) -> io::Result<OpenEntry> {
        let backend = self.clone();
        blocking(move || backend.open_blocking(id, prefetch)).await
    }

    async fn create(&self, id: EntryId) -> io::Result<Box<dyn EntryWriter>> {
        let backend = self.clone();
        let file = blocking(move || {
            File::options()
                .write(true)
                .create_new(true)
                .open(backend.file(&id, "body.tmp"))
        })
        .await?;
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(WRITE_BUFFER);
        Ok(Box::new(Writer {
            backend: self.clone(),
            id,
            file: Some(file),
        }))
    }

    async fn write_meta(&self, id: EntryId, meta: EntryMeta) -> io::Result<()> {
        let backend = self.clone();
        blocking(move || backend.write_meta_blocking(&id, &meta)).await
    }

    async fn remove(&self, id: EntryId) -> io::Result<()> {
        let backend = self.clone();
        blocking(move || backend.remove_blocking(&id)).await
    }
}

/// The body of an entry being written.
struct Writer {
    backend: TokioFsBackend,
    id: EntryId,
    /// None once it is committed, or about to be.
    file: Option<tokio::fs::File>,
}

impl Writer {
    fn file(&mut self) -> io::Result<&mut tokio::fs::File> {
        self.file
            .as_mut()
            .ok_or_else(|| io::Error::other("the entry is already committed"))
    }
}

#[async_trait]
impl EntryWriter for Writer {
    async fn write(&mut self, data: Bytes) -> io::Result<()> {
        self.file()?.write_all(&data).await
    }

    async fn commit(
        mut self: Box<Self>,
        meta: EntryMeta,
        published: Box<dyn FnOnce() + Send>,
    ) -> io::Result<()> {
        // Reports the errors of earlier writes as well.
        self.file()?.flush().await?;
        let Some(file) = self.file.take() else {
            return Err(io::Error::other("the entry is already committed"));
        };
        let file = file.into_std().await;
        let backend = self.backend.clone();
        let id = self.id;
        blocking(move || {
            let body = backend.file(&id, "body");
            let committed = file
                .sync_data()
                .and_then(|()| fs::rename(backend.file(&id, "body.tmp"), &body))
                .and_then(|()| backend.write_meta_blocking(&id, &meta));
            if let Err(e) = committed {
                let _ = remove_if_there(&backend.file(&id, "body.tmp"));
                let _ = remove_if_there(&body);
                return Err(e);
            }
            published();
            Ok(())
        })
        .await
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.file.is_none() {
            return;
        }
        let path = self.backend.file(&self.id, "body.tmp");
        let remove = move || {
            if let Err(e) = remove_if_there(&path) {
                log::warn!("{}: cannot remove an unfinished entry: {e}", path.display());
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            // The runtime is gone: nobody is left to be kept waiting.
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_cache::key::CompactCacheKey;

    fn entry(generation: u64, body_len: u64) -> (EntryId, EntryMeta) {
        let id = EntryId {
            hash: [0xab; 16],
            generation,
        };
        let meta = EntryMeta {
            key: CompactCacheKey::default(),
            generation,
            body_len,
            internal: vec![1],
            header: vec![2],
        };
        (id, meta)
    }

    async fn store(backend: &TokioFsBackend, generation: u64, body: &'static [u8]) -> EntryId {
        let (id, meta) = entry(generation, body.len() as u64);
        let mut writer = backend.create(id).await.unwrap();
        for piece in body.chunks(3) {
            writer.write(Bytes::from_static(piece)).await.unwrap();
        }
        writer.commit(meta, Box::new(|| ())).await.unwrap();
        id
    }

    fn names(backend: &TokioFsBackend) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(backend.entries().join("ab"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_committed_entry_is_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let backend = TokioFsBackend::new(dir.path()).unwrap();
        let id = store(&backend, 1, b"0123456789").await;

        let open = backend.open(id, 10).await.unwrap();
        assert_eq!(open.prefetched.as_deref(), Some(&b"0123456789"[..]));
        assert!(backend.open(id, 9).await.unwrap().prefetched.is_none());
        assert!(backend.get_file_path(&id).is_file());

        backend.remove(id).await.unwrap();
        backend.remove(id).await.unwrap();
        assert_eq!(
            backend.open(id, 0).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(names(&backend).is_empty());
    }

    #[tokio::test]
    async fn an_entry_dropped_before_commit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let backend = TokioFsBackend::new(dir.path()).unwrap();
        let (id, _) = entry(1, 3);
        let mut writer = backend.create(id).await.unwrap();
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(names(&backend), [format!("{id}.body.tmp")]);
        drop(writer);
        // The removal is one task of the blocking pool; it has no handle to wait on.
        while !names(&backend).is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_body_of_another_length_is_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let backend = TokioFsBackend::new(dir.path()).unwrap();
        let id = store(&backend, 1, b"0123456789").await;
        let file = File::options()
            .write(true)
            .open(backend.get_file_path(&id))
            .unwrap();
        for len in [9, 0, 11] {
            file.set_len(len).unwrap();
            let e = backend.open(id, 100).await.unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData, "length {len}");
        }
    }

    #[tokio::test]
    async fn an_open_body_outlives_removal() {
        let dir = tempfile::tempdir().unwrap();
        let backend = TokioFsBackend::new(dir.path()).unwrap();
        let id = store(&backend, 1, b"0123456789").await;
        let mut open = backend.open(id, 0).await.unwrap();
        backend.remove(id).await.unwrap();
        let mut body = String::new();
        Arc::get_mut(&mut open.body)
            .unwrap()
            .read_to_string(&mut body)
            .unwrap();
        assert_eq!(body, "0123456789");
    }
}
