//! The limit of stored variants of a response.

use std::sync::Arc;

use parking_lot::Mutex;
use pingora_cache::key::HashBinary;
use quick_cache::sync::Cache;

/// The most keys whose variants are counted. The least used ones are evicted first.
const KEYS: usize = 4096;

/// The stored variants of each key, oldest first. The origin decides on `Vary`, but clients choose
/// the values of the fields that it names. Without a limit, any client could have a response
/// fetched and stored once for every value of a field.
pub(super) struct Variants {
    limit: usize,
    keys: Cache<HashBinary, Arc<Mutex<Vec<HashBinary>>>>,
}

// === impl Variants ===

impl Variants {
    /// At most `limit` variants for each key, and at least one.
    pub(super) fn new(limit: usize) -> Self {
        Variants {
            limit: limit.max(1),
            keys: Cache::new(KEYS),
        }
    }

    /// Note that a variant of a key is about to be stored. Returns the variant to evict for it.
    pub(super) fn admit(&self, key: HashBinary, variant: HashBinary) -> Option<HashBinary> {
        let stored = self
            .keys
            .get_or_insert_with(&key, || Ok::<_, ()>(Arc::default()))
            .ok()?;
        let mut stored = stored.lock();
        stored.retain(|other| *other != variant);
        stored.push(variant);
        (stored.len() > self.limit).then(|| stored.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_leaves() {
        let variants = Variants::new(2);
        let key = [0; 16];
        assert_eq!(variants.admit(key, [1; 16]), None);
        assert_eq!(variants.admit(key, [2; 16]), None);
        assert_eq!(variants.admit(key, [1; 16]), None, "stored again");
        assert_eq!(variants.admit(key, [3; 16]), Some([2; 16]));
        assert_eq!(variants.admit([1; 16], [2; 16]), None, "another key");
    }

    #[test]
    fn strangers_do_not_make_it_grow() {
        let variants = Variants::new(2);
        for number in 0..3 * KEYS as u64 {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&number.to_le_bytes());
            variants.admit(key, [1; 16]);
        }
        assert!(variants.keys.len() <= KEYS);
    }
}
