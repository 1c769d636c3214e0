//! The disk cache: a [`pingora_cache::Storage`] whose entries are immutable
//! files, so that a hit can leave by `sendfile(2)`.
//!
//! - [`disk`]: [`DiskCache`], what Pingora talks to
//! - [`hit`], [`miss`]: an entry being read, an entry being written
//! - [`fill`]: an entry being written and followed by readers meanwhile;
//!   `gather`: what is written at once
//! - `turns`: limits of the fills in flight, and of what waits for the disk
//! - `readers`: the readers of a fill; `window`: the rest of a body for which the disk has
//!   no more room; `rest`: the same for a reader that leaves the others
//! - [`index`]: which generation of which key is current, and used last
//! - [`hot`]: what is kept of entries in use: small bodies, open files
//! - `prepared`: the header that hits of an entry are answered with
//! - [`body_file`]: an open body, and which of it is in the page cache;
//!   `load_body`: how it gets there
//! - [`mod@format`], [`layout`]: the metadata file, the names of all files
//! - [`backend`]: how files are opened, written and removed, by [`tokio_fs`] or
//!   by `uring`
//! - [`load`]: the entries of an earlier run
//! - [`inspect`]: a cache folder seen from outside, by tools
//! - `room`: the shares of the limit on the disk; `open_bodies`: bodies that are removed
//!   but still take space
//! - [`bans`], [`admission`], [`keeper`], [`scrub`]: what must not stay, what is
//!   not let in, what leaves on its own, what the disk has damaged
//! - [`changes`]: which keys an answer in flight is void for
//! - [`stats`], [`clock`]: what is counted, and when
//! - [`sendfile`]: which hits may skip user space, and what carries them
//!
//! Nothing here knows of S3, of a proxy or of a configuration file.

pub mod admission;
pub mod backend;
#[cfg(test)]
mod backend_suite;
pub mod bans;
pub mod body_file;
pub mod changes;
pub mod clock;
pub mod disk;
pub mod fill;
mod folder_lock;
pub mod format;
mod gather;
pub mod hit;
pub mod hot;
pub mod index;
pub mod inspect;
pub mod keeper;
pub mod layout;
pub mod load;
mod load_body;
pub mod miss;
mod open_bodies;
pub mod open_now;
mod prepared;
mod readers;
mod regular;
pub(crate) mod rest;
mod room;
pub mod scrub;
pub mod sendfile;
pub mod stats;
#[cfg(target_os = "linux")]
mod sys;
pub mod tokio_fs;
pub(crate) mod turns;
#[cfg(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
pub mod uring;
mod window;

pub use backend::{DiskBackend, EntryId, OpenEntry};
pub use disk::{AskedAt, BackendChoice, DiskCache, DiskCacheConfig};
pub use hit::{DiskHit, Filling};
pub(crate) use prepared::Prepared;
pub use sendfile::{SendfileCapable, SendfileConfig, SendfileResponse};
pub use stats::{Cause, Eviction, Stats};
pub use tokio_fs::TokioFsBackend;
#[cfg(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
pub use uring::UringBackend;
