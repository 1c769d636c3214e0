//! How a cache entry's files are opened, written and removed.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::format::EntryMeta;

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
    /// The whole body, if it was short enough to be read along.
    pub prefetched: Option<Bytes>,
}

/// An entry being written. Dropped before [`commit`](Self::commit), it is removed.
#[async_trait]
pub trait EntryWriter: Send + Sync {
    /// Append to the body.
    async fn write(&mut self, data: Bytes) -> io::Result<()>;

    /// Make the entry durable and visible: body first, then the metadata that
    /// makes it an entry. `published` runs right after that, on whichever thread
    /// does the work, even if the returned future is dropped.
    async fn commit(
        self: Box<Self>,
        meta: EntryMeta,
        published: Box<dyn FnOnce() + Send>,
    ) -> io::Result<()>;
}

/// File access of the disk cache. Nothing here blocks the caller's thread.
#[async_trait]
pub trait DiskBackend: Send + Sync + 'static {
    /// Whether the files it opens can be handed to `sendfile(2)`.
    fn supports_sendfile(&self) -> bool;

    /// Where the body of an entry is. For operators and tools: the file may be
    /// gone as soon as this returns, so serving uses [`open`](Self::open).
    fn get_file_path(&self, id: &EntryId) -> PathBuf;

    /// Open an entry and check that it is complete. Bodies of at most
    /// `prefetch` bytes are read along, which saves a second wait.
    ///
    /// `NotFound`: there is no such entry. `InvalidData`: its files contradict
    /// each other (truncated, foreign, flipped bits in the metadata).
    async fn open(&self, id: EntryId, prefetch: u64) -> io::Result<OpenEntry>;

    /// Start a new entry.
    async fn create(&self, id: EntryId) -> io::Result<Box<dyn EntryWriter>>;

    /// Replace the metadata of an entry, the body stays.
    async fn write_meta(&self, id: EntryId, meta: EntryMeta) -> io::Result<()>;

    /// Remove an entry. It is no error if there is none.
    async fn remove(&self, id: EntryId) -> io::Result<()>;
}
