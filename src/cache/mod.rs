//! The disk cache: a [`pingora_cache::Storage`] whose entries are immutable
//! files, so that a hit can leave by `sendfile(2)`.
//!
//! By layer:
//! - `io`: access to files
//! - `store`: the format of the cache folder, the index, bans
//! - `state`: what the parts of a cache share
//! - `read`, `write`: hits and misses
//! - `jobs`: what happens to entries without a request
//! - `lifecycle`: who owns the cache folder
//! - [`disk`]: [`DiskCache`], what Pingora talks to
//!
//! Nothing here knows of S3, of a proxy or of a configuration file.

pub mod disk;
pub mod io;
pub mod jobs;
mod lifecycle;
pub mod read;
pub mod sendfile;
pub mod state;
pub mod store;
pub mod write;

pub use disk::{AskedAt, BackendChoice, DiskCache, DiskCacheConfig};
pub use io::backend::{DiskBackend, EntryId, OpenEntry};
pub use io::tokio_fs::TokioFsBackend;
#[cfg(all(
    feature = "uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
pub use io::uring::UringBackend;
pub use read::hit::{self, DiskHit, Filling};
pub(crate) use read::rest;
pub use sendfile::{SendfileCapable, SendfileConfig, SendfileResponse};
pub(crate) use state::fast_header::Prepared;
pub use state::stats::{self, Cause, Eviction, Stats};
pub use store::{bans, format, inspect, layout};
pub use write::miss;
