//! Which generation of which key is current.

use std::collections::hash_map::Entry;
use std::collections::HashMap;

use parking_lot::Mutex;

use super::EntryId;

const SHARDS: usize = 32;

/// Maps the hash of a key to its current generation. Locks are held for one map
/// operation, never over I/O.
#[derive(Debug)]
pub struct Index {
    shards: [Mutex<HashMap<[u8; 16], u64>>; SHARDS],
}

impl Default for Index {
    fn default() -> Self {
        Index {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Index {
    fn shard(&self, hash: &[u8; 16]) -> &Mutex<HashMap<[u8; 16], u64>> {
        // Any byte will do, they all come from a cryptographic hash.
        &self.shards[hash[0] as usize % SHARDS]
    }

    /// The current entry for a key.
    pub fn get(&self, hash: &[u8; 16]) -> Option<EntryId> {
        let generation = self.shard(hash).lock().get(hash).copied()?;
        Some(EntryId {
            hash: *hash,
            generation,
        })
    }

    /// Whether this very entry is current.
    pub fn contains(&self, id: &EntryId) -> bool {
        self.get(&id.hash).as_ref() == Some(id)
    }

    /// Make `id` the current entry if it is newer than the one that is.
    /// Returns the entry that has to go: the older of the two, if there are two.
    pub fn insert(&self, id: EntryId) -> Option<EntryId> {
        match self.shard(&id.hash).lock().entry(id.hash) {
            Entry::Vacant(vacant) => {
                vacant.insert(id.generation);
                None
            }
            Entry::Occupied(current) if *current.get() == id.generation => None,
            Entry::Occupied(mut current) => {
                let loser = id.generation.min(*current.get());
                let winner = id.generation.max(*current.get());
                current.insert(winner);
                Some(EntryId {
                    generation: loser,
                    ..id
                })
            }
        }
    }

    /// Remove this very entry; a newer one for the same key stays.
    pub fn remove(&self, id: &EntryId) -> bool {
        match self.shard(&id.hash).lock().entry(id.hash) {
            Entry::Occupied(current) if *current.get() == id.generation => {
                current.remove();
                true
            }
            _ => false,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(generation: u64) -> EntryId {
        EntryId {
            hash: [3; 16],
            generation,
        }
    }

    #[test]
    fn the_newer_generation_wins_in_either_order() {
        for order in [[1, 2], [2, 1]] {
            let index = Index::default();
            assert_eq!(index.insert(id(order[0])), None);
            assert_eq!(index.insert(id(order[1])), Some(id(1)));
            assert_eq!(index.get(&[3; 16]), Some(id(2)));
        }
    }

    #[test]
    fn removing_an_old_generation_keeps_its_refill() {
        let index = Index::default();
        index.insert(id(1));
        index.insert(id(2));
        assert!(!index.remove(&id(1)));
        assert!(index.contains(&id(2)));
        assert!(index.remove(&id(2)));
        assert!(index.is_empty());
    }
}
