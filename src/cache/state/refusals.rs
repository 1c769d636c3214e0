//! Keys whose fills were refused.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_cache::key::HashBinary;

/// Most objects that are remembered as too large.
const MAX_TOO_LARGE: usize = 16_384;

/// Most keys that are remembered as refused.
const MAX_REFUSED: usize = 4096;

/// Time for which refused keys are remembered. The writer of a fill releases the lock of the
/// key at once.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// Objects of unknown length that turned out larger than the whole cache. Another attempt to
/// store one would evict all entries again.
#[derive(Debug, Default)]
pub(crate) struct TooLarge(Mutex<HashSet<HashBinary>>);

impl TooLarge {
    pub(crate) fn add(&self, hash: &HashBinary) {
        let mut hashes = self.0.lock();
        if hashes.len() >= MAX_TOO_LARGE {
            hashes.clear();
        }
        hashes.insert(*hash);
    }

    pub(crate) fn contains(&self, hash: &HashBinary) -> bool {
        self.0.lock().contains(hash)
    }

    pub(crate) fn remove(&self, hash: &HashBinary) {
        self.0.lock().remove(hash);
    }
}

/// Keys whose fills were refused for lack of space or permits, and the time of that.
#[derive(Debug, Default)]
pub(crate) struct Refused(Mutex<HashMap<HashBinary, Instant>>);

impl Refused {
    pub(crate) fn add(&self, hash: HashBinary) {
        let mut hashes = self.0.lock();
        if hashes.len() >= MAX_REFUSED {
            hashes.clear();
        }
        hashes.insert(hash, Instant::now());
    }

    /// True if a fill of the key was refused recently, which is forgotten now.
    pub(crate) fn take(&self, hash: &HashBinary) -> bool {
        let at = self.0.lock().remove(hash);
        at.is_some_and(|at| at.elapsed() < REFUSED_FOR)
    }
}
