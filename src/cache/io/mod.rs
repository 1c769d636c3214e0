//! Access to files.

pub mod backend;
#[cfg(test)]
pub(crate) mod backend_suite;
pub(crate) mod nowait;
pub(crate) mod page_cache;
pub(crate) mod regular;
#[cfg(target_os = "linux")]
pub(crate) mod sys;
pub mod tokio_fs;
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
pub mod uring;
