//! Which keys were invalidated lately.

use std::collections::HashMap;

use parking_lot::Mutex;
use pingora_cache::key::HashBinary;

/// How many keys are remembered.
const CAPACITY: usize = 4096;

/// For answers that come after what they are about has changed. Those of which
/// something is stored are banned besides; this is lost at a restart, as all
/// requests in flight are.
#[derive(Debug, Default)]
pub struct Changes(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    generations: HashMap<HashBinary, u64>,
    /// Keys that are not remembered may have changed up to here.
    forgotten: u64,
}

impl Changes {
    /// A key has changed in this generation.
    pub fn record(&self, generation: u64, primary: HashBinary) {
        let mut recent = self.0.lock();
        if recent.generations.len() >= CAPACITY && !recent.generations.contains_key(&primary) {
            recent.generations.clear();
            recent.forgotten = generation;
        }
        recent.generations.insert(primary, generation);
    }

    /// Whether a key may have changed after this generation.
    pub fn since(&self, asked: u64, primary: &HashBinary) -> bool {
        let recent = self.0.lock();
        let changed = recent.generations.get(primary).copied().unwrap_or(0);
        changed.max(recent.forgotten) > asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_before_is_void() {
        let changes = Changes::default();
        assert!(!changes.since(0, &[1; 16]));
        changes.record(7, [1; 16]);
        assert!(changes.since(6, &[1; 16]));
        assert!(!changes.since(7, &[1; 16]));
        assert!(!changes.since(6, &[2; 16]), "another key");
    }

    #[test]
    fn what_is_forgotten_counts_as_changed() {
        let changes = Changes::default();
        for number in 0..=CAPACITY as u64 {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&number.to_le_bytes());
            changes.record(number + 1, key);
        }
        assert!(changes.since(CAPACITY as u64, &[9; 16]));
        assert!(!changes.since(CAPACITY as u64 + 1, &[9; 16]));
        assert!(changes.0.lock().generations.len() <= CAPACITY);
    }
}
