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
pub(crate) mod folder_lock;
pub(crate) mod nowait;
pub(crate) mod page_cache;
pub(crate) mod regular;
pub(crate) mod select;
#[cfg(target_os = "linux")]
pub(crate) mod sys;
pub(crate) mod tokio_fs;
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
pub(crate) mod uring;
