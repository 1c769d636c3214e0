//! How a cache entry's files are opened, read, written and removed.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_cache::key::CacheHashKey;
use pingora_cache::CacheKey;

use crate::cache::store::format::{invalid, EntryMeta};
use crate::cache::store::layout::Layout;

/// Which files: one generation of one key.
///
/// A refill of a key is a new generation, so no file is ever written twice and
/// the removal of an old generation can not hit the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// Hash of the cache key with its variance.
    pub hash: [u8; 16],
    /// Increases with every fill, also across restarts.
    pub generation: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.hash {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ".{:016x}", self.generation)
    }
}

/// An entry that has been opened and found complete.
#[derive(Debug)]
pub struct OpenEntry {
    /// What the metadata file says.
    pub meta: EntryMeta,
    /// The body file.
    pub body: Arc<File>,
    /// The whole body, if it was short enough to be read along. Its checksum has
    /// been verified.
    pub prefetched: Option<Bytes>,
}

impl OpenEntry {
    /// Check an entry that was just opened: its files must belong together.
    /// `body_len` is the length of the body file.
    pub fn checked(
        id: &EntryId,
        meta: EntryMeta,
        body: impl Into<Arc<File>>,
        body_len: u64,
        prefetched: Option<Bytes>,
    ) -> io::Result<OpenEntry> {
        if meta.generation != id.generation || meta.hash() != id.hash {
            return Err(invalid("metadata file is that of another entry"));
        }
        if body_len != meta.body_len {
            return Err(invalid("body file does not have the recorded length"));
        }
        if let Some(body) = &prefetched {
            if body.len() as u64 != meta.body_len || crc32fast::hash(body) != meta.body_crc32 {
                return Err(invalid("body file has a wrong checksum"));
            }
        }
        Ok(OpenEntry {
            meta,
            body: body.into(),
            prefetched,
        })
    }
}

/// File access of the disk cache. None of the futures blocks the thread that
/// polls it.
///
/// An operation that was begun goes on when its future is dropped, and what it
/// works on (buffers, files) is kept for it.
#[async_trait]
pub trait DiskBackend: Send + Sync + 'static {
    /// `tokio` or `uring`, as in the configuration.
    fn name(&self) -> &'static str;

    /// Whether the files it opens can be handed to `sendfile(2)`.
    fn supports_sendfile(&self) -> bool;

    /// The names of the files.
    fn layout(&self) -> &Layout;

    /// Where the body stored for a key is. For operators and tools: it lists a
    /// folder, so it blocks, and the file may be gone as soon as it returns.
    /// Serving uses [`open`](Self::open).
    fn get_file_path(&self, key: &CacheKey) -> Option<PathBuf> {
        self.layout().newest_body(&key.combined_bin())
    }

    /// Open an entry and check that it is complete. Bodies of at most
    /// `prefetch` bytes are read along, and their checksum is verified.
    ///
    /// `NotFound`: there is no such entry. `InvalidData`: its files contradict
    /// each other (truncated, foreign, flipped bits).
    async fn open(&self, id: EntryId, prefetch: u64) -> io::Result<OpenEntry>;

    /// Start the body of a new entry. With `reserve`, disk space for so many
    /// bytes is set aside; `StorageFull` if there is none, and nothing is left.
    /// A file system that cannot reserve is no error. The caller has seen that
    /// there is that much space: else a file system may fill up before it
    /// notices (ext4 allocates what it has).
    ///
    /// The file can be read as well. If the shard's folder is gone, it is made
    /// again; the folders above it are not, since they may be a mount point.
    async fn create(&self, id: EntryId, reserve: Option<u64>) -> io::Result<Arc<File>>;

    /// Write all of `data` at `offset`.
    async fn write(&self, file: &Arc<File>, offset: u64, data: Vec<Bytes>) -> io::Result<()>;

    /// Read `len` bytes at `offset`; `UnexpectedEof` if there are fewer.
    async fn read(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Return when `len` bytes at `offset` are in the page cache;
    /// `UnexpectedEof` if there are fewer.
    async fn load(&self, file: &Arc<File>, offset: u64, len: u64) -> io::Result<()>;

    /// Make an entry of the body that was written: body data to the disk, its
    /// name, then the metadata that makes it an entry. If that fails, nothing
    /// is left of it.
    async fn commit(&self, id: EntryId, file: &Arc<File>, meta: EntryMeta) -> io::Result<()>;

    /// Remove the body of an entry that was not committed.
    async fn discard(&self, id: EntryId) -> io::Result<()>;

    /// Replace the metadata of an entry, the body stays.
    async fn write_meta(&self, id: EntryId, meta: EntryMeta) -> io::Result<()>;

    /// Remove an entry, the metadata first. It is no error if there is none.
    async fn remove(&self, id: EntryId) -> io::Result<()>;
}
