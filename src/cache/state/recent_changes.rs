//! The keys of which something has changed recently.

use std::collections::HashMap;

use parking_lot::Mutex;
use pingora_cache::key::HashBinary;

/// Most keys that are remembered.
const CAPACITY: usize = 4096;

/// Generations of recent changes, for requests that were made before them. Lost at a restart,
/// as all requests in flight are.
#[derive(Debug, Default)]
pub struct RecentChanges(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    generations: HashMap<HashBinary, u64>,
    /// Generation up to which keys that are not remembered may have changed.
    forgotten: u64,
}

impl RecentChanges {
    /// Note that a key has changed in this generation.
    pub fn record(&self, generation: u64, hash: HashBinary) {
        let mut recent = self.0.lock();
        if recent.generations.len() >= CAPACITY && !recent.generations.contains_key(&hash) {
            recent.generations.clear();
            recent.forgotten = generation;
        }
        recent.generations.insert(hash, generation);
    }

    /// True if a key may have changed after this generation.
    pub fn since(&self, asked: u64, hash: &HashBinary) -> bool {
        let recent = self.0.lock();
        let changed = recent.generations.get(hash).copied().unwrap_or(0);
        changed.max(recent.forgotten) > asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_made_before_is_told() {
        let recent = RecentChanges::default();
        assert!(!recent.since(0, &[1; 16]));
        recent.record(7, [1; 16]);
        assert!(recent.since(6, &[1; 16]));
        assert!(!recent.since(7, &[1; 16]));
        assert!(!recent.since(6, &[2; 16]), "another key");
    }

    #[test]
    fn what_is_forgotten_counts_as_changed() {
        let recent = RecentChanges::default();
        for number in 0..=CAPACITY as u64 {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&number.to_le_bytes());
            recent.record(number + 1, key);
        }
        assert!(recent.since(CAPACITY as u64, &[9; 16]));
        assert!(!recent.since(CAPACITY as u64 + 1, &[9; 16]));
        assert!(recent.0.lock().generations.len() <= CAPACITY);
    }
}
