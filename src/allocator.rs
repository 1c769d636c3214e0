//! The allocator of `s3-proxy`.

#![allow(unsafe_code)]

/// A hit makes some dozens of small allocations. glibc's allocator is slower at them and keeps
/// more memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

extern "C" {
    /// From mimalloc.h. The crate declares it only together with all other functions.
    fn mi_collect(force: bool);
}

/// Returns free memory of this thread to the system; with `all`, also memory that was freed only
/// recently.
pub fn release(all: bool) {
    // SAFETY: it takes no pointer, and may be called on any thread at any time.
    unsafe { mi_collect(all) }
}
