//! The choice of a backend.

use std::io;

use log::warn;
use tokio::runtime::Handle;

use crate::cache::config::BackendChoice;
use crate::cache::io::backend::DiskBackend;
use crate::cache::io::tokio_fs::TokioFsBackend;

/// The configured backend, or tokio where the kernel forbids io_uring.
pub(crate) fn backend(choice: BackendChoice, runtime: &Handle) -> io::Result<Box<dyn DiskBackend>> {
    if choice == BackendChoice::Uring {
        match uring(runtime) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                warn!("cache.disk.backend: tokio is used instead of uring: {e}");
            }
            backend => return backend,
        }
    }
    Ok(Box::new(TokioFsBackend::new(runtime.clone())))
}

#[cfg(io_uring)]
fn uring(runtime: &Handle) -> io::Result<Box<dyn DiskBackend>> {
    use crate::cache::io::uring::UringBackend;

    Ok(Box::new(UringBackend::new(runtime.clone())?))
}

#[cfg(not(io_uring))]
fn uring(_runtime: &Handle) -> io::Result<Box<dyn DiskBackend>> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this build has no io_uring: it needs Linux and the Cargo feature uring",
    ))
}
