//! The trait through which the cache accesses its files.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::cache::io::files::EntryFiles;
use crate::cache::io::folder::FolderAccess;
use crate::cache::io::regular::check_len;

/// The files of an entry, opened and not yet checked.
#[derive(Debug)]
pub struct OpenFiles {
    /// Content of the metadata file.
    pub meta: Vec<u8>,
    /// The body file.
    pub body: Arc<File>,
    /// Length of the body file, in bytes.
    pub body_len: u64,
    /// The whole body, if it was short enough to be read with the metadata.
    pub prefetched: Option<Bytes>,
}

/// The body of an entry, opened and not yet checked.
#[derive(Debug)]
pub struct OpenBody {
    /// The body file.
    pub body: Arc<File>,
    /// Length of the body file, in bytes.
    pub body_len: u64,
}

/// File access of the disk cache. None of the futures blocks the thread that polls it.
///
/// An operation that was begun continues when its future is dropped, and its buffers and
/// files are kept until it ends.
///
/// The methods of [`FolderAccess`] block. The cache calls them on threads that may wait.
#[async_trait]
pub trait DiskBackend: FolderAccess {
    /// Value of `cache.disk.backend` that selects this backend: `tokio` or `uring`.
    fn name(&self) -> &'static str;

    /// True if the files that it opens can be passed to `sendfile(2)`.
    fn supports_sendfile(&self) -> bool;

    /// True if cached pages of the files may be read and sent directly, without this trait.
    /// If false, every byte comes by [`open`](Self::open), [`read`](Self::read) and
    /// [`load`](Self::load).
    fn has_page_cache(&self) -> bool {
        true
    }

    /// Path of the body of an entry, for operators and tools. The file may be gone as soon
    /// as this returns; serving uses [`open`](Self::open).
    fn get_file_path(&self, files: &EntryFiles) -> PathBuf {
        files.body()
    }

    /// Open an entry. Bodies of at most `prefetch` bytes are read as well.
    ///
    /// `NotFound`: there is no such entry. `InvalidData`: a file is not a regular file.
    async fn open(&self, files: &EntryFiles, prefetch: u64) -> io::Result<OpenFiles>;

    /// Open the body of an entry whose metadata is known. The errors are those of
    /// [`open`](Self::open).
    async fn open_body(&self, files: &EntryFiles) -> io::Result<OpenBody>;

    /// Read the whole body of an entry whose metadata is known. `InvalidData`: it has another length.
    /// Other errors are those of [`open`](Self::open).
    async fn read_body(&self, files: &EntryFiles, len: usize) -> io::Result<Bytes> {
        let OpenBody { body, body_len } = self.open_body(files).await?;
        check_len(body_len, len as u64)?;
        self.read(&body, 0, len).await
    }

    /// Create the body file of a new entry, for writing and reading. `reserve` sets aside
    /// disk space for that many bytes; the error is `StorageFull` if there is none, and no
    /// file is left. A file system that cannot reserve space is no error. The caller has
    /// checked that the space is there: some file systems (ext4) otherwise allocate
    /// everything they have before they fail.
    ///
    /// If the folder of the entry is gone, it is created again. The folders above it are
    /// not, since they may be a mount point.
    async fn create(&self, files: &EntryFiles, reserve: Option<u64>) -> io::Result<Arc<File>>;

    /// Write all of `data` at `offset`.
    async fn write(&self, file: &Arc<File>, offset: u64, data: Vec<Bytes>) -> io::Result<()>;

    /// Read `len` bytes at `offset`; `UnexpectedEof` if there are fewer.
    async fn read(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Bring `len` bytes at `offset` into the page cache; `UnexpectedEof` if there are fewer.
    async fn load(&self, file: &Arc<File>, offset: u64, len: u64) -> io::Result<()>;

    /// Make an entry of a body that was written: sync the data, give the body its name, then
    /// write the metadata, which makes it an entry. If that fails, no file is left.
    async fn commit(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()>;

    /// Open the body of a committed entry, to write blocks that are missing.
    async fn open_to_write(&self, files: &EntryFiles) -> io::Result<Arc<File>>;

    /// Make a body as long as this. What is added is a hole.
    async fn set_len(&self, file: &Arc<File>, len: u64) -> io::Result<()>;

    /// Note which blocks of a committed body are stored: sync the data, then replace the metadata,
    /// which names them, by a file that is synced too. If that fails, the metadata stays.
    async fn record(&self, files: &EntryFiles, body: &Arc<File>, meta: Vec<u8>) -> io::Result<()>;

    /// Remove the body of an entry that was not committed.
    async fn discard(&self, files: &EntryFiles) -> io::Result<()>;

    /// Replace the metadata of an entry. The body stays.
    async fn write_meta(&self, files: &EntryFiles, meta: Vec<u8>) -> io::Result<()>;

    /// Remove an entry, the metadata first. A missing entry is no error.
    async fn remove(&self, files: &EntryFiles) -> io::Result<()>;
}
