//! Fills that no client waits for.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use pingora_cache::key::HashBinary;

/// Limits for fetching whole objects of which clients have asked for parts.
#[derive(Debug, Clone, Copy)]
pub struct BackgroundFills {
    /// How many may be in flight; 0: none, which switches them off.
    pub in_flight: usize,
    /// The longest body that is fetched, in bytes.
    pub max_bytes: u64,
}

impl Default for BackgroundFills {
    fn default() -> Self {
        BackgroundFills {
            in_flight: 32,
            max_bytes: u64::MAX,
        }
    }
}

/// Which keys are being filled in the background.
#[derive(Debug, Default, Clone)]
pub struct InFlight(Arc<Mutex<HashSet<HashBinary>>>);

/// A fill in flight; it is over when this is dropped.
#[derive(Debug)]
pub struct FillGuard {
    fills: InFlight,
    key: HashBinary,
}

impl InFlight {
    /// Begin a fill, unless there is one of this key, or as many as may be.
    pub fn begin(&self, key: HashBinary, limit: usize) -> Option<FillGuard> {
        let mut fills = self.0.lock();
        (fills.len() < limit && fills.insert(key)).then(|| FillGuard {
            fills: self.clone(),
            key,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.fills.0.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_filled_once_and_only_so_many_at_a_time() {
        let fills = InFlight::default();
        let first = fills.begin([1; 16], 2);
        assert!(first.is_some());
        assert!(fills.begin([1; 16], 2).is_none(), "the same key");
        let second = fills.begin([2; 16], 2);
        assert!(second.is_some());
        assert!(fills.begin([3; 16], 2).is_none(), "the third");
        drop(first);
        assert!(fills.begin([1; 16], 2).is_some());
        drop(second);
        assert!(fills.is_empty());
        assert!(fills.begin([1; 16], 0).is_none(), "switched off");
    }
}
