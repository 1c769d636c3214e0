//! The index: the current generation of each key, in the order of last use.

use hashbrown::hash_table::{Entry, HashTable};
use parking_lot::Mutex;

use crate::cache::store::entry_id::EntryId;

const SHARDS: usize = 32;

/// End of a list.
const NONE: u32 = u32::MAX;

/// Half-life, in microseconds, of the use count of an entry that gets no requests.
const HALF_LIFE: u64 = 60_000_000;

/// Entries at the end of each shard's list that are searched for a victim.
const CANDIDATES: usize = 8;

/// An entry in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    /// The entry.
    pub id: EntryId,
    /// Bytes of its files.
    pub weight: u64,
    /// Time of its last use, in microseconds since 1970.
    pub used: u64,
}

/// A map from the hash of a key to its current generation, with all entries in the order of
/// their last use.
///
/// An entry takes one `Node` (56 bytes) and one slot of a hash table (5 bytes
/// and the free slots around it); see the test `an_entry_takes_less_than_200_bytes`.
/// Locks are held for one operation on one of 32 shards, never over I/O.
#[derive(Debug)]
pub struct Index {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Clone, Copy)]
struct Node {
    hash: [u8; 16],
    generation: u64,
    weight: u64,
    used: u64,
    /// Next node towards the most recently used; in a free node, the next free one.
    newer: u32,
    /// Next node towards the least recently used.
    older: u32,
    /// Use count at the last use.
    uses: u8,
}

impl Node {
    /// Use count now, see [`HALF_LIFE`].
    fn frequency(&self, now: u64) -> u8 {
        let half_lives = now.saturating_sub(self.used) / HALF_LIFE;
        self.uses.checked_shr(half_lives.min(8) as u32).unwrap_or(0)
    }
}

#[derive(Debug)]
struct Shard {
    slots: HashTable<u32>,
    nodes: Vec<Node>,
    free: u32,
    newest: u32,
    oldest: u32,
    bytes: u64,
}

/// Result of inserting an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is the only entry of its key.
    New,
    /// It was in the index already.
    Known,
    /// It replaced this older entry, whose files have to be removed.
    Replaced(EntryId),
    /// A newer entry is in the index: its own files have to be removed.
    Outdated,
}

impl Default for Shard {
    fn default() -> Self {
        Shard {
            slots: HashTable::new(),
            nodes: Vec::new(),
            free: NONE,
            newest: NONE,
            oldest: NONE,
            bytes: 0,
        }
    }
}

/// Hash for the table: the key is a cryptographic hash already.
fn slot_hash(hash: &[u8; 16]) -> u64 {
    let [_, low @ .., _, _, _, _, _, _, _] = hash;
    u64::from_le_bytes(*low)
}

impl Shard {
    fn find(&self, hash: &[u8; 16]) -> Option<u32> {
        self.slots
            .find(slot_hash(hash), |slot| {
                self.nodes[*slot as usize].hash == *hash
            })
            .copied()
    }

    fn indexed(&self, slot: u32) -> Indexed {
        let node = &self.nodes[slot as usize];
        Indexed {
            id: EntryId {
                hash: node.hash,
                generation: node.generation,
            },
            weight: node.weight,
            used: node.used,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Node { newer, older, .. } = self.nodes[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let node = &mut self.nodes[slot as usize];
        node.newer = NONE;
        node.older = self.newest;
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.nodes[newest as usize].newer = slot,
        }
        self.newest = slot;
    }

    fn link_oldest(&mut self, slot: u32) {
        let node = &mut self.nodes[slot as usize];
        node.older = NONE;
        node.newer = self.oldest;
        match self.oldest {
            NONE => self.newest = slot,
            oldest => self.nodes[oldest as usize].older = slot,
        }
        self.oldest = slot;
    }

    fn allocate(&mut self, node: Node) -> u32 {
        match self.free {
            NONE => {
                let slot = self.nodes.len() as u32;
                // A shard of 2^32 entries would take 200 GB of memory.
                assert_ne!(slot, NONE, "the index is full");
                self.nodes.push(node);
                slot
            }
            slot => {
                self.free = self.nodes[slot as usize].newer;
                self.nodes[slot as usize] = node;
                slot
            }
        }
    }

    fn insert(&mut self, entry: Indexed, at_newest: bool) -> Inserted {
        let Indexed { id, weight, used } = entry;
        let slot = match self.find(&id.hash) {
            Some(slot) => {
                let node = &mut self.nodes[slot as usize];
                let old = node.generation;
                if old == id.generation {
                    return Inserted::Known;
                }
                if old > id.generation {
                    return Inserted::Outdated;
                }
                self.bytes = self.bytes - node.weight + weight;
                node.generation = id.generation;
                node.weight = weight;
                node.used = used;
                node.uses = node.uses.saturating_add(1);
                self.unlink(slot);
                self.link(slot, at_newest);
                return Inserted::Replaced(EntryId {
                    generation: old,
                    ..id
                });
            }
            None => self.allocate(Node {
                hash: id.hash,
                generation: id.generation,
                weight,
                used,
                newer: NONE,
                older: NONE,
                uses: 1,
            }),
        };
        let nodes = &self.nodes;
        self.slots.insert_unique(slot_hash(&id.hash), slot, |slot| {
            slot_hash(&nodes[*slot as usize].hash)
        });
        self.bytes += weight;
        self.link(slot, at_newest);
        Inserted::New
    }

    fn link(&mut self, slot: u32, at_newest: bool) {
        if at_newest {
            self.link_newest(slot);
        } else {
            self.link_oldest(slot);
        }
    }

    fn remove(&mut self, id: &EntryId) -> Option<Indexed> {
        let nodes = &self.nodes;
        let entry = self.slots.entry(
            slot_hash(&id.hash),
            |slot| nodes[*slot as usize].hash == id.hash,
            |slot| slot_hash(&nodes[*slot as usize].hash),
        );
        let Entry::Occupied(occupied) = entry else {
            return None;
        };
        let slot = *occupied.get();
        if self.nodes[slot as usize].generation != id.generation {
            return None;
        }
        occupied.remove();
        let removed = self.indexed(slot);
        self.unlink(slot);
        self.bytes -= removed.weight;
        self.nodes[slot as usize].newer = self.free;
        self.free = slot;
        Some(removed)
    }

    /// The least recently used entry with a use count of at most `uses`.
    fn victim(&self, now: u64, uses: u8) -> Option<u32> {
        let mut slot = self.oldest;
        for _ in 0..CANDIDATES {
            if slot == NONE {
                return None;
            }
            let node = &self.nodes[slot as usize];
            if node.frequency(now) <= uses {
                return Some(slot);
            }
            slot = node.newer;
        }
        None
    }

    /// Sort the list by time of use.
    fn sort(&mut self) {
        let mut order: Vec<u32> = self.slots.iter().copied().collect();
        order.sort_unstable_by_key(|slot| self.nodes[*slot as usize].used);
        self.newest = NONE;
        self.oldest = NONE;
        for slot in order {
            self.link_newest(slot);
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Index {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Index {
    fn shard(&self, hash: &[u8; 16]) -> &Mutex<Shard> {
        &self.shards[hash[15] as usize % SHARDS]
    }

    /// The current entry for a key.
    pub fn get(&self, hash: &[u8; 16]) -> Option<Indexed> {
        let shard = self.shard(hash).lock();
        shard.find(hash).map(|slot| shard.indexed(slot))
    }

    /// The current entry for a key, which is used `now`.
    pub fn touch(&self, hash: &[u8; 16], now: u64) -> Option<Indexed> {
        let mut shard = self.shard(hash).lock();
        let slot = shard.find(hash)?;
        let node = &mut shard.nodes[slot as usize];
        node.uses = node.frequency(now).saturating_add(1);
        node.used = now;
        if shard.newest != slot {
            shard.unlink(slot);
            shard.link_newest(slot);
        }
        Some(shard.indexed(slot))
    }

    /// True if this entry is current.
    pub fn contains(&self, id: &EntryId) -> bool {
        self.get(&id.hash).is_some_and(|entry| entry.id == *id)
    }

    /// Insert an entry that has just been written, unless there is a newer one.
    pub fn insert(&self, entry: Indexed) -> Inserted {
        self.shard(&entry.id.hash).lock().insert(entry, true)
    }

    /// Insert an entry of an earlier run. It counts as least recently used until
    /// [`sort`](Self::sort).
    pub fn insert_found(&self, entry: Indexed) -> Inserted {
        self.shard(&entry.id.hash).lock().insert(entry, false)
    }

    /// Sort all entries by time of use.
    pub fn sort(&self) {
        for shard in &self.shards {
            shard.lock().sort();
        }
    }

    /// Change the size of an entry, whose metadata was replaced.
    pub fn set_weight(&self, id: &EntryId, weight: u64) {
        let mut shard = self.shard(&id.hash).lock();
        let Some(slot) = shard.find(&id.hash) else {
            return;
        };
        let node = &mut shard.nodes[slot as usize];
        if node.generation == id.generation {
            let old = std::mem::replace(&mut node.weight, weight);
            shard.bytes = shard.bytes - old + weight;
        }
    }

    /// Remove this entry. A newer one of the same key stays.
    pub fn remove(&self, id: &EntryId) -> Option<Indexed> {
        self.shard(&id.hash).lock().remove(id)
    }

    /// The least recently used entry.
    pub fn oldest(&self) -> Option<Indexed> {
        self.shards
            .iter()
            .filter_map(|shard| {
                let shard = shard.lock();
                (shard.oldest != NONE).then(|| shard.indexed(shard.oldest))
            })
            .min_by_key(|entry| entry.used)
    }

    /// The entry to evict for an object with a use count of `uses`: the least recently
    /// used entry with no higher count. `None`: all entries searched have a higher one.
    pub fn victim(&self, now: u64, uses: u8) -> Option<Indexed> {
        self.shards
            .iter()
            .filter_map(|shard| {
                let shard = shard.lock();
                shard.victim(now, uses).map(|slot| shard.indexed(slot))
            })
            .min_by_key(|entry| entry.used)
    }

    /// The entries of one of the [`parts`](Self::parts), in no order.
    pub fn part(&self, part: usize) -> Vec<EntryId> {
        let shard = self.shards[part].lock();
        shard
            .slots
            .iter()
            .map(|slot| shard.indexed(*slot).id)
            .collect()
    }

    /// Number of parts in which the entries can be listed.
    pub fn parts(&self) -> usize {
        SHARDS
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().slots.len())
            .sum()
    }

    /// True if there are no entries.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all entries on the disk.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }

    /// Memory that the index takes, in bytes.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                let shard = shard.lock();
                shard.nodes.capacity() * size_of::<Node>() + shard.slots.allocation_size()
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u8, generation: u64, weight: u64, used: u64) -> Indexed {
        Indexed {
            id: EntryId {
                hash: [key; 16],
                generation,
            },
            weight,
            used,
        }
    }

    #[test]
    fn the_newer_generation_wins_in_either_order() {
        let index = Index::default();
        assert_eq!(index.insert(entry(3, 1, 10, 0)), Inserted::New);
        assert_eq!(index.insert(entry(3, 1, 10, 0)), Inserted::Known);
        let replaced = Inserted::Replaced(entry(3, 1, 0, 0).id);
        assert_eq!(index.insert(entry(3, 2, 7, 0)), replaced);
        assert_eq!(index.insert_found(entry(3, 1, 10, 0)), Inserted::Outdated);
        assert_eq!(index.get(&[3; 16]).unwrap().id.generation, 2);
        assert_eq!((index.len(), index.bytes()), (1, 7));
    }

    #[test]
    fn removing_an_old_generation_keeps_its_refill() {
        let index = Index::default();
        index.insert(entry(3, 1, 10, 0));
        index.insert(entry(3, 2, 10, 0));
        assert_eq!(index.remove(&entry(3, 1, 0, 0).id), None);
        assert!(index.contains(&entry(3, 2, 0, 0).id));
        assert!(index.remove(&entry(3, 2, 0, 0).id).is_some());
        assert!(index.is_empty());
        assert_eq!(index.bytes(), 0);
    }

    fn drain(index: &Index) -> Vec<u8> {
        std::iter::from_fn(|| {
            let oldest = index.oldest()?;
            index.remove(&oldest.id).map(|entry| entry.id.hash[0])
        })
        .collect()
    }

    #[test]
    fn the_least_recently_used_of_all_shards_goes_first() {
        let index = Index::default();
        for key in 0..100 {
            index.insert(entry(key, 1, 1, u64::from(key)));
        }
        index.touch(&[0; 16], 200);
        index.touch(&[50; 16], 201);
        let mut expected: Vec<u8> = (1..100).filter(|key| *key != 50).collect();
        expected.extend([0, 50]);
        assert_eq!(drain(&index), expected);
    }

    #[test]
    fn found_entries_are_older_than_used_ones_and_sorted_in() {
        let index = Index::default();
        // All of one shard.
        let keys = [0, 32, 64, 96, 128];
        for (used, key) in [30, 10, 40, 20].into_iter().zip(keys) {
            index.insert_found(entry(key, 1, 1, used));
        }
        index.insert(entry(128, 1, 1, 5));
        assert_ne!(index.oldest().unwrap().id.hash[0], 128);
        index.sort();
        assert_eq!(drain(&index), [128, 32, 96, 0, 64]);
    }

    #[test]
    fn what_is_asked_for_more_often_is_no_victim() {
        let index = Index::default();
        // All in one shard.
        for (used, key) in [0, 32, 64].into_iter().enumerate() {
            index.insert(entry(key, 1, 1, used as u64));
        }
        for _ in 0..3 {
            index.touch(&[0; 16], 10);
        }
        index.touch(&[32; 16], 11);
        let victim = |now, uses| index.victim(now, uses).map(|entry| entry.id.hash[0]);
        assert_eq!(victim(12, u8::MAX), Some(64), "the least recently used");
        assert!(index.remove(&entry(64, 1, 0, 0).id).is_some());
        assert_eq!(victim(12, 1), None, "both were asked for again");
        assert_eq!(victim(12, 2), Some(32));
        assert_eq!(victim(12, 4), Some(0));
        // An entry that used to be popular does not stay for ever.
        assert_eq!(victim(11 + HALF_LIFE, 1), Some(32));
        assert_eq!(victim(10 + 2 * HALF_LIFE, 1), Some(0));
        assert_eq!(victim(1000 * HALF_LIFE, 0), Some(0));
    }

    #[test]
    fn weights_follow_the_metadata() {
        let index = Index::default();
        index.insert(entry(1, 5, 100, 0));
        index.set_weight(&entry(1, 5, 0, 0).id, 150);
        index.set_weight(&entry(1, 4, 0, 0).id, 1);
        index.set_weight(&entry(2, 4, 0, 0).id, 1);
        assert_eq!(index.bytes(), 150);
    }

    #[test]
    fn random_operations_agree_with_a_model() {
        use std::collections::HashMap;
        let index = Index::default();
        let mut model: HashMap<u8, (u64, u64)> = HashMap::new();
        let mut random = 1u64;
        for step in 1..20_000u64 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            let key = (random >> 40) as u8 % 64;
            match (random >> 33) % 4 {
                0 => {
                    index.insert(entry(key, step, step % 100, step));
                    model.insert(key, (step, step % 100));
                }
                1 => {
                    let known = index.touch(&[key; 16], step).map(|e| e.id.generation);
                    assert_eq!(known, model.get(&key).map(|known| known.0));
                }
                2 => {
                    if let Some((generation, _)) = model.remove(&key) {
                        assert!(index.remove(&entry(key, generation, 0, 0).id).is_some());
                    }
                }
                _ => {
                    assert!(index.remove(&entry(key, u64::MAX, 0, 0).id).is_none());
                }
            }
            assert_eq!(index.len(), model.len());
        }
        assert_eq!(
            index.bytes(),
            model.values().map(|known| known.1).sum::<u64>()
        );
        let mut last = 0;
        while let Some(oldest) = index.oldest() {
            assert!(oldest.used >= last);
            last = oldest.used;
            index.remove(&oldest.id);
        }
    }

    #[test]
    fn an_entry_takes_less_than_200_bytes() {
        assert_eq!(size_of::<Node>(), 56);
        let index = Index::default();
        let mut worst = 0;
        for number in 0..1_000_000u64 {
            let mut hash = [0; 16];
            hash[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            hash[8..].copy_from_slice(&number.wrapping_mul(0xc2b2_ae3d_27d4_eb4f).to_be_bytes());
            index.insert(Indexed {
                id: EntryId {
                    hash,
                    generation: 1,
                },
                weight: 1,
                used: number,
            });
            if number % 10_000 == 9_999 && number > 100_000 {
                worst = worst.max(index.memory_bytes() / index.len());
            }
        }
        println!("an entry of the index takes at most {worst} bytes");
        assert!(worst <= 200, "{worst} bytes an entry");
        assert_eq!(index.len(), 1_000_000);
    }
}
