//! The identity of an entry.

use std::fmt;

/// One generation of one key.
///
/// A refill of a key is a new generation, so no file is ever written twice and the removal
/// of an old generation cannot affect the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// Hash of the cache key with its variance.
    pub hash: [u8; 16],
    /// Number that increases with every fill, also across restarts.
    pub generation: u64,
}

impl EntryId {
    /// Length of its text form.
    pub(crate) const TEXT_LEN: usize = 2 * 16 + 1 + 2 * 8;

    /// Write its text form, in hexadecimal. Each open of a file needs it, so it is made without a
    /// formatter.
    pub(crate) fn write_to<'b>(&self, text: &'b mut [u8; Self::TEXT_LEN]) -> &'b str {
        let (hash, generation) = text.split_at_mut(2 * self.hash.len());
        write_hex(hash, &self.hash);
        generation[0] = b'.';
        write_hex(&mut generation[1..], &self.generation.to_be_bytes());
        std::str::from_utf8(text).unwrap_or_default()
    }
}

fn write_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (digits, byte) in text.chunks_exact_mut(2).zip(bytes) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.write_to(&mut [0; Self::TEXT_LEN]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_text_is_hexadecimal() {
        let id = EntryId {
            hash: std::array::from_fn(|i| 0x10 * i as u8 + 0x0f),
            generation: 0x0123_4567_89ab_cdef,
        };
        let text = id.to_string();
        let hash = "0f1f2f3f4f5f6f7f8f9fafbfcfdfefff";
        assert_eq!(text, format!("{hash}.{:016x}", id.generation));
        assert_eq!(text.len(), EntryId::TEXT_LEN);
    }
}
