//! Memory for small bodies that are read to be sent once.
//!
//! Such a body is copied from the page cache and, right after that, to the socket. An allocator hands
//! out memory that was in use long ago, so that each body would be written to other memory, which the
//! processor does not have in its caches.

use std::cell::RefCell;

use bytes::Bytes;

/// Exponents of the smallest and the largest capacity that is kept, of base 2. A smaller body costs an
/// allocator nothing, and a larger one is in a file.
const KEPT_SIZES: std::ops::RangeInclusive<u32> = 12..=16;

/// Most buffers of a capacity that a thread keeps.
const KEPT: usize = 4;

/// Unused buffers, by the exponent of their capacity.
#[derive(Default)]
struct Free([Vec<Vec<u8>>; (*KEPT_SIZES.end() - *KEPT_SIZES.start() + 1) as usize]);

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// A buffer whose memory the next one of the thread uses again.
#[derive(Debug)]
pub(crate) struct ReadBuffer(Vec<u8>);

// === impl ReadBuffer ===

impl ReadBuffer {
    /// An empty buffer with room for `len` bytes. At most half of its memory is room for more, except
    /// for the smallest size.
    pub fn with_room(len: usize) -> Self {
        let exponent = len.next_power_of_two().ilog2().max(*KEPT_SIZES.start());
        let unused = with_free(exponent, Vec::pop).flatten();
        ReadBuffer(unused.unwrap_or_else(|| Vec::with_capacity(1 << exponent)))
    }

    /// The bytes, to be filled.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// The unused buffers of a capacity. `None`: those are not kept, or the thread ends.
fn with_free<R>(exponent: u32, work: impl FnOnce(&mut Vec<Vec<u8>>) -> R) -> Option<R> {
    let at = exponent.checked_sub(*KEPT_SIZES.start())? as usize;
    let done = FREE.try_with(|free| free.borrow_mut().0.get_mut(at).map(work));
    done.ok().flatten()
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let mut unused = std::mem::take(&mut self.0);
        if !unused.capacity().is_power_of_two() {
            return;
        }
        unused.clear();
        with_free(unused.capacity().ilog2(), |free| {
            if free.len() < KEPT {
                free.push(unused);
            }
        });
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<ReadBuffer> for Bytes {
    fn from(buffer: ReadBuffer) -> Bytes {
        Bytes::from_owner(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: usize, byte: u8) -> Bytes {
        let mut buffer = ReadBuffer::with_room(len);
        assert!(buffer.bytes().is_empty() && buffer.bytes().capacity() >= len);
        buffer.bytes().resize(len, byte);
        buffer.into()
    }

    #[test]
    fn the_memory_of_a_buffer_is_used_again() {
        for len in [4096, 10_000, 16_384, 65_536] {
            let first = filled(len, 1);
            let at = first.as_ptr();
            let other = filled(len, 2);
            assert_ne!(other.as_ptr(), at);
            let part = first.slice(1..);
            drop(first);
            let third = filled(len, 3);
            assert_ne!(third.as_ptr(), at, "a part is in use");
            assert_eq!(part, vec![1; len - 1]);
            drop(part);
            assert_eq!(filled(len - 1, 4).as_ptr(), at, "{len}");
            assert_eq!(other, vec![2; len]);
        }
    }

    #[test]
    fn a_thread_keeps_few_buffers() {
        let kept = |len| with_free(len, |free| free.len());
        for len in [0, 1, 4096, 65_536, 65_537, 1 << 20] {
            let many: Vec<_> = (0..100).map(|_| filled(len, 1)).collect();
            drop(many);
        }
        assert_eq!(kept(12), Some(KEPT));
        assert_eq!(kept(16), Some(KEPT));
        for exponent in [0, 11, 17, 20] {
            assert_eq!(kept(exponent), None);
        }
        // They may end in another thread, and with it.
        let sent = filled(5000, 5);
        std::thread::spawn(move || drop(sent)).join().unwrap();
    }
}
