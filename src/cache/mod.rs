//! The disk cache: a [`pingora_cache::Storage`] whose entries are immutable
//! files, so that a hit can leave by `sendfile(2)`.
//!
//! - [`disk`]: [`DiskCache`], what Pingora talks to
//! - [`hit`], [`miss`]: an entry being read, an entry being written
//! - [`index`]: which generation of which key is current
//! - [`mod@format`]: the metadata file
//! - [`backend`], [`tokio_fs`]: how files are opened, written and removed
//! - [`load`]: the entries of an earlier run
//! - [`sendfile`]: which hits may skip user space, and what carries them

pub mod backend;
pub mod disk;
pub mod format;
pub mod hit;
pub mod index;
pub mod load;
pub mod miss;
pub mod sendfile;
pub mod tokio_fs;

pub use backend::{DiskBackend, EntryId, OpenEntry};
pub use disk::{DiskCache, DiskCacheConfig};
pub use sendfile::{SendfileCapable, SendfileConfig, SendfileResponse};
pub use tokio_fs::TokioFsBackend;
