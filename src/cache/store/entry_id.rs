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

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.hash {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ".{:016x}", self.generation)
    }
}
