//! The backend, the threads it works on, and the limit of reads at the same time.

use std::future::Future;

use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::io::backend::DiskBackend;

/// Most reads from the disk at the same time for bodies that are being sent.
const CONCURRENT_READS: usize = 64;

/// Threads of the cache's own runtime: they pass on work that is done elsewhere.
const RUNTIME_THREADS: usize = 2;

/// Most files that are being opened, written or removed at the same time.
const BLOCKING_THREADS: usize = 256;

/// Access to the disk, as the parts of a cache share it.
pub(crate) struct DiskIo {
    backend: &'static dyn DiskBackend,
    threads: Threads,
    reads: Semaphore,
    has_page_cache: bool,
    supports_sendfile: bool,
}

/// The runtime that a cache folder works on, so that its work outlives requests.
pub(crate) struct Threads {
    runtime: Option<Runtime>,
    handle: Handle,
}

// === impl Threads ===

impl Threads {
    pub(crate) fn start() -> std::io::Result<Threads> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("cache-io")
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(Threads {
            runtime: Some(runtime),
            handle,
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Threads {
    /// Only a folder that cannot be used is dropped. Nothing waits for its disk.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

// === impl DiskIo ===

impl DiskIo {
    pub(crate) fn new(backend: &'static dyn DiskBackend, threads: Threads) -> Self {
        DiskIo {
            backend,
            threads,
            reads: Semaphore::new(CONCURRENT_READS),
            has_page_cache: backend.has_page_cache(),
            supports_sendfile: backend.supports_sendfile(),
        }
    }

    pub(crate) fn backend(&self) -> &'static dyn DiskBackend {
        self.backend
    }

    pub(crate) fn runtime(&self) -> &Handle {
        self.threads.handle()
    }

    /// Run a future to its end. Blocks; not for threads of a runtime.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.threads.handle().block_on(future)
    }

    /// See [`DiskBackend::has_page_cache`].
    pub(crate) fn has_page_cache(&self) -> bool {
        self.has_page_cache
    }

    /// See [`DiskBackend::supports_sendfile`].
    pub(crate) fn supports_sendfile(&self) -> bool {
        self.supports_sendfile
    }

    /// Wait for a permit to read from the disk.
    pub(crate) async fn read_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.reads.acquire().await.ok()
    }
}
