//! Access to files: [`DiskBackend`](backend::DiskBackend) and its implementations.

pub(crate) mod backend;
#[cfg(test)]
pub(crate) mod backend_suite;
pub(crate) mod checksum;
pub(crate) mod disk_io;
#[cfg(test)]
pub(crate) mod faulty;
pub(crate) mod files;
pub(crate) mod folder;
pub(crate) mod folder_fd;
pub(crate) mod folder_lock;
pub(crate) mod nowait;
pub(crate) mod page_cache;
pub(crate) mod patience;
#[cfg(target_os = "linux")]
pub(crate) mod read_buffers;
pub(crate) mod regular;
pub(crate) mod select;
#[cfg(target_os = "linux")]
pub(crate) mod sys;
pub(crate) mod tokio_fs;
#[cfg(io_uring)]
pub(crate) mod uring;
