//! The disk cache: a [`pingora_cache::Storage`] whose entries are immutable files, so that a
//! hit can be sent by `sendfile(2)`.
//!
//! By layer; a layer imports only from those above it:
//!
//! | layer | content |
//! |---|---|
//! | `config` | [`DiskCacheConfig`] |
//! | `io` | [`DiskBackend`] and all access to files |
//! | `store` | format, names, index and bans of a cache directory |
//! | `state` | the state that the parts of a cache share |
//! | `read` | lookups and hits |
//! | `write` | misses, fills, purges, and room for them |
//! | `jobs` | recovery, maintenance, removal, scrubbing |
//! | `sendfile`, `lifecycle` | responses with an open file; the ownership of a cache directory |
//! | `disk` | [`DiskCache`], the facade |
//!
//! Nothing here knows of S3, of a proxy or of a configuration file.

mod config;
mod disk;
mod io;
mod jobs;
#[cfg(test)]
mod layers;
mod lifecycle;
mod read;
mod sendfile;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use config::{
    BackendChoice, BlocksConfig, DiskCacheConfig, FolderConfig, SendfileConfig, MAX_OPEN_FILES,
};
pub use disk::{DiskCache, FolderState};
pub use io::backend::{DiskBackend, OpenBody, OpenFiles};
pub use io::files::EntryFiles;
pub use io::folder::{FileStat, FolderAccess};
#[cfg(feature = "s3-proxy")]
pub(crate) use io::patience;
pub use io::tokio_fs::TokioFsBackend;
#[cfg(io_uring)]
pub use io::uring::UringBackend;
pub(crate) use read::blocks::{PartSource, OUTDATED};
pub(crate) use read::hit::FollowedFill;
pub use read::hit::{DiskHit, Filling};
pub(crate) use read::lookup::StoredBody;
pub(crate) use read::remainder::Remainder;
pub use read::remainder::FILL_BROKEN;
pub use sendfile::{SendfileCapable, SendfileResponse};
pub(crate) use state::fast_header::FastHeader;
pub(crate) use state::fill_extensions::{ForParts, InBackground, Resumable, YieldsRoom};
pub use state::generations::LookupSnapshot;
pub use state::stats::{Cause, Counter, Eviction, Stats};
pub use store::entry_id::EntryId;
pub use store::format::{BlockMap, EntryMeta};
pub use store::inspect;
#[cfg(feature = "s3-proxy")]
pub(crate) use store::members::MAX_FOLDERS;
pub(crate) use write::fill::{NO_ROOM_FOR_IT, TOO_LARGE};
pub use write::miss::DESERTED;
pub use write::pending::{NO_ROOM, TOO_MANY_FILLS};

/// Internals for the fuzz targets. Not part of the API.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub use super::store::bans::{encode, Banned, List, Records};
}
