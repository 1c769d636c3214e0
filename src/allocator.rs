//! The allocator of `s3-proxy`.

#![allow(unsafe_code)]

/// A hit makes some dozens of small allocations; glibc's take longer, and keep more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

extern "C" {
    /// mimalloc.h; the crate declares it only together with all the rest.
    fn mi_collect(force: bool);
}

/// Give up what this thread has free; what is free for a short time only if `all`.
pub fn release(all: bool) {
    // SAFETY: it takes no pointer, and may be called on any thread at any time.
    unsafe { mi_collect(all) }
}
