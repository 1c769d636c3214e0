//! The index: the current generation of each key, and the order of eviction.
//!
//! The order is that of S3-FIFO (Yang et al., SOSP 2023): an entry begins in the queue of new
//! ones. If it is used there, it moves to the main queue, otherwise it leaves first. A key that
//! is stored again soon after that begins in the main queue. So entries that are used once, as
//! in a scan, displace a tenth of the cache.
//!
//! Uses of entries in the newer half of the new queue do not count: clients download an object in
//! parts, and its last parts come when it is stored already (Clock2Q+ has this window).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::hash_table::{Entry, HashTable};
use parking_lot::Mutex;

use crate::cache::store::chunked_vec::ChunkedVec;
use crate::cache::store::entry_id::EntryId;

const SHARDS: usize = 32;

/// End of a list.
const NONE: u32 = u32::MAX;

/// The generation of no entry.
const NO_GENERATION: u64 = u64::MAX;

/// Half-life, in microseconds, of the use count of an entry that gets no requests.
const HALF_LIFE: u64 = 60_000_000;

/// Entries at the end of each queue of a shard that are searched for a victim, and that are given
/// another turn at a time.
const CANDIDATES: usize = 8;

/// Most nodes that a search looks at each time it holds the lock of a shard: some microseconds.
const SEARCH_STEP: usize = 256;

/// Divisor of the limit in bytes that gives the share of new entries.
const NEW_SHARE: u64 = 10;

/// Most turns that the uses of an entry earn it.
const MAX_TURNS: u8 = 3;

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
/// their eviction.
///
/// An entry takes one `Node` (56 bytes) and one slot of a hash table (5 bytes
/// and the free slots around it); see the test `an_entry_takes_at_most_75_bytes`.
/// Locks are held for one operation on one of 32 shards, never over I/O.
#[derive(Debug)]
pub struct Index {
    shards: [Mutex<Shard>; SHARDS],
    /// Number of entries.
    entries: AtomicUsize,
    /// The highest generation of an entry that this run has written.
    newest: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    hash: [u8; 16],
    generation: u64,
    weight: u64,
    used: u64,
    /// Next node towards the newest of the queue; in a free node, the next free one.
    newer: u32,
    /// Next node towards the oldest of the queue.
    older: u32,
    /// Mark of a key whose entry has left the new queue, see [`Shard::ghost`]. It fits into the padding
    /// of the node.
    ghost: u32,
    /// Use count at the last use.
    uses: u8,
    /// Turns that the entry is given before it is evicted.
    turns: u8,
    place: Place,
}

/// The queue of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Entries that have not been used since they were stored.
    New,
    /// Entries that have been used again, and those of earlier runs.
    Main,
    /// No entry.
    Free,
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
    nodes: ChunkedVec<Node>,
    free: u32,
    new: Queue,
    main: Queue,
}

/// Nodes in the order in which they were put there.
#[derive(Debug)]
struct Queue {
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

impl Default for Queue {
    fn default() -> Self {
        Queue {
            newest: NONE,
            oldest: NONE,
            bytes: 0,
        }
    }
}

impl Default for Shard {
    fn default() -> Self {
        Shard {
            slots: HashTable::new(),
            nodes: ChunkedVec::default(),
            free: NONE,
            new: Queue::default(),
            main: Queue::default(),
        }
    }
}

/// Hash for the table: the key is a cryptographic hash already.
fn slot_hash(hash: &[u8; 16]) -> u64 {
    let [_, low @ .., _, _, _, _, _, _, _] = hash;
    u64::from_le_bytes(*low)
}

/// Mark of a key, by which it is recognized after its entry has left.
fn mark(hash: &[u8; 16]) -> u32 {
    let [_, _, _, _, _, _, _, _, _, mark @ .., _, _, _] = hash;
    u32::from_le_bytes(*mark)
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

    fn queue(&mut self, place: Place) -> &mut Queue {
        match place {
            Place::New => &mut self.new,
            Place::Main | Place::Free => &mut self.main,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Node {
            newer,
            older,
            place,
            weight,
            ..
        } = self.nodes[slot as usize];
        match newer {
            NONE => self.queue(place).newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NONE => self.queue(place).oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        self.queue(place).bytes -= weight;
    }

    fn link_newest(&mut self, slot: u32, place: Place) {
        let newest = self.queue(place).newest;
        let node = &mut self.nodes[slot as usize];
        node.place = place;
        node.newer = NONE;
        node.older = newest;
        let weight = node.weight;
        match newest {
            NONE => self.queue(place).oldest = slot,
            newest => self.nodes[newest as usize].newer = slot,
        }
        let queue = self.queue(place);
        queue.newest = slot;
        queue.bytes += weight;
    }

    fn allocate(&mut self, node: Node) -> u32 {
        match self.free {
            NONE => {
                let slot = self.nodes.len() as u32;
                // A shard of 2^32 entries would take 240 GB of memory.
                assert_ne!(slot, NONE, "the index is full");
                self.nodes.push(node);
                slot
            }
            slot => {
                let free = &mut self.nodes[slot as usize];
                self.free = free.newer;
                let ghost = free.ghost;
                *free = Node { ghost, ..node };
                slot
            }
        }
    }

    /// Insert an entry. `None`: its queue is the main one if its key has left the new one recently.
    fn insert(&mut self, entry: Indexed, place: Option<Place>) -> Inserted {
        let Indexed { id, weight, used } = entry;
        if let Some(slot) = self.find(&id.hash) {
            return self.replace(slot, entry);
        }
        let place = place.unwrap_or(match self.is_ghost(&id.hash) {
            true => Place::Main,
            false => Place::New,
        });
        let slot = self.allocate(Node {
            hash: id.hash,
            generation: id.generation,
            weight,
            used,
            newer: NONE,
            older: NONE,
            ghost: 0,
            uses: 1,
            turns: 0,
            place,
        });
        let nodes = &self.nodes;
        self.slots.insert_unique(slot_hash(&id.hash), slot, |slot| {
            slot_hash(&nodes[*slot as usize].hash)
        });
        self.link_newest(slot, place);
        Inserted::New
    }

    fn replace(&mut self, slot: u32, entry: Indexed) -> Inserted {
        let Indexed { id, weight, used } = entry;
        let old = self.nodes[slot as usize].generation;
        if old == id.generation {
            return Inserted::Known;
        }
        if old > id.generation {
            return Inserted::Outdated;
        }
        self.unlink(slot);
        let node = &mut self.nodes[slot as usize];
        node.generation = id.generation;
        node.weight = weight;
        node.used = used;
        node.uses = node.uses.saturating_add(1);
        let place = node.place;
        self.link_newest(slot, place);
        Inserted::Replaced(EntryId {
            generation: old,
            ..id
        })
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
        if self.nodes[slot as usize].place == Place::New {
            self.note_ghost(&id.hash);
        }
        let node = &mut self.nodes[slot as usize];
        node.place = Place::Free;
        node.newer = self.free;
        self.free = slot;
        Some(removed)
    }

    /// Place of the mark of a key whose entry has left the new queue. The number of places is that of
    /// the nodes, rounded down to a power of two. A mark stays until another key takes its place: on
    /// average, for as many evictions as there are places.
    fn ghost(&mut self, hash: &[u8; 16]) -> Option<&mut u32> {
        let places = 1 << self.nodes.len().checked_ilog2()?;
        let place = slot_hash(hash) % places;
        Some(&mut self.nodes[place as usize].ghost)
    }

    /// Remember a key whose entry leaves the new queue.
    fn note_ghost(&mut self, hash: &[u8; 16]) {
        if let Some(ghost) = self.ghost(hash) {
            *ghost = mark(hash);
        }
    }

    /// True if the entry of a key has left the new queue recently. One key in 2^32 is taken for
    /// another one.
    fn is_ghost(&mut self, hash: &[u8; 16]) -> bool {
        self.ghost(hash).is_some_and(|ghost| *ghost == mark(hash))
    }

    /// Note a use of an entry. It counts if the entry is of the generation `counted` or before, or
    /// in the older half of the new queue.
    fn touch(&mut self, slot: u32, now: u64, counted: u64) {
        let node = &self.nodes[slot as usize];
        let counts = node.place != Place::New
            || node.generation <= counted
            || node.generation <= self.middle_of_new();
        let node = &mut self.nodes[slot as usize];
        node.uses = node.frequency(now).saturating_add(1);
        node.used = now;
        if counts {
            node.turns = node.turns.saturating_add(1).min(MAX_TURNS);
        }
    }

    /// The generation in the middle of the new queue, which must not be empty.
    fn middle_of_new(&self) -> u64 {
        let [oldest, newest] =
            [self.new.oldest, self.new.newest].map(|slot| self.nodes[slot as usize].generation);
        oldest.midpoint(newest)
    }

    /// Give the oldest entries of a queue the turns that they have earned. `false`: there are more to
    /// give. Their number is limited, because the lock is held.
    fn give_turns(&mut self, place: Place) -> bool {
        for _ in 0..CANDIDATES {
            let slot = self.queue(place).oldest;
            if slot == NONE || self.nodes[slot as usize].turns == 0 {
                return true;
            }
            let node = &mut self.nodes[slot as usize];
            node.turns = match place {
                Place::New => 0,
                Place::Main | Place::Free => node.turns - 1,
            };
            self.unlink(slot);
            self.link_newest(slot, Place::Main);
        }
        false
    }

    /// The first entries of a queue to evict, the oldest one first.
    fn candidates(&self, place: Place) -> impl Iterator<Item = u32> + '_ {
        let oldest = match place {
            Place::New => self.new.oldest,
            Place::Main | Place::Free => self.main.oldest,
        };
        let is_entry = |slot: &u32| *slot != NONE;
        let newer = move |slot: &u32| Some(self.nodes[*slot as usize].newer).filter(is_entry);
        std::iter::successors(Some(oldest).filter(is_entry), newer).take(CANDIDATES)
    }

    /// The candidate to evict for an object that may displace any other: the oldest one that is not
    /// of the generation `spared`.
    fn victim(&self, place: Place, spared: u64) -> Option<u32> {
        self.candidates(place)
            .find(|slot| self.nodes[*slot as usize].generation != spared)
    }

    /// The candidate to evict for an object with a use count of `uses`: of those with no higher count,
    /// and not of the generation `spared`, the oldest one with the fewest turns. No turns are given,
    /// because entries with a higher count must not pay for an object that yields to them. Returns
    /// its turns as well.
    fn rare_victim(&self, place: Place, now: u64, uses: u8, spared: u64) -> Option<(u8, u32)> {
        self.candidates(place)
            .map(|slot| (&self.nodes[slot as usize], slot))
            .filter(|(node, _)| node.frequency(now) <= uses && node.generation != spared)
            .map(|(node, slot)| (node.turns, slot))
            .min_by_key(|(turns, _)| *turns)
    }

    /// The wanted entries of [`SEARCH_STEP`] nodes, the first of which is `from`. `None`: there are no
    /// more nodes.
    fn search(&self, from: usize, wanted: impl Fn(&Node) -> bool) -> Option<Vec<EntryId>> {
        let to = self.nodes.len().min(from.saturating_add(SEARCH_STEP));
        if from >= to {
            return None;
        }
        let found = (from..to)
            .map(|slot| &self.nodes[slot])
            .filter(|node| node.place != Place::Free && wanted(node))
            .map(|node| EntryId {
                hash: node.hash,
                generation: node.generation,
            });
        Some(found.collect())
    }

    /// Sort the main queue by time of use, and entries of earlier runs by generation.
    fn sort(&mut self) {
        let main = |slot: &u32| self.nodes[*slot as usize].place == Place::Main;
        let mut order: Vec<u32> = self.slots.iter().copied().filter(main).collect();
        order.sort_unstable_by_key(|slot| {
            let node = &self.nodes[*slot as usize];
            (node.used, node.generation)
        });
        self.main = Queue::default();
        for slot in order {
            self.link_newest(slot, Place::Main);
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Index {
            shards: std::array::from_fn(|_| Mutex::default()),
            entries: AtomicUsize::new(0),
            newest: AtomicU64::new(0),
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

    /// Use count now of the current entry for a key.
    pub fn uses(&self, hash: &[u8; 16], now: u64) -> Option<u8> {
        let shard = self.shard(hash).lock();
        let slot = shard.find(hash)?;
        Some(shard.nodes[slot as usize].frequency(now))
    }

    /// The current entry for a key, which is used `now`.
    pub fn touch(&self, hash: &[u8; 16], now: u64) -> Option<Indexed> {
        let counted = self.newest_counted();
        let mut shard = self.shard(hash).lock();
        let slot = shard.find(hash)?;
        shard.touch(slot, now, counted);
        Some(shard.indexed(slot))
    }

    /// The newest generation whose uses count in any queue. In a full cache, half of the new queue is
    /// newer; in a cache of a few entries, no entry is.
    fn newest_counted(&self) -> u64 {
        let window = self.len() as u64 / (2 * NEW_SHARE);
        let newest = self.newest.load(Ordering::Relaxed);
        newest.saturating_sub(window)
    }

    /// True if this entry is current.
    pub fn contains(&self, id: &EntryId) -> bool {
        self.get(&id.hash).is_some_and(|entry| entry.id == *id)
    }

    /// Insert an entry that has just been written, unless there is a newer one.
    pub fn insert(&self, entry: Indexed) -> Inserted {
        let inserted = self.insert_into(entry, None);
        self.newest
            .fetch_max(entry.id.generation, Ordering::Relaxed);
        inserted
    }

    /// Insert an entry of an earlier run, in no order until [`sort`](Self::sort).
    pub fn insert_found(&self, entry: Indexed) -> Inserted {
        self.insert_into(entry, Some(Place::Main))
    }

    fn insert_into(&self, entry: Indexed, place: Option<Place>) -> Inserted {
        let mut shard = self.shard(&entry.id.hash).lock();
        let inserted = shard.insert(entry, place);
        // With the lock held, so that no removal of the entry comes first.
        if inserted == Inserted::New {
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
        inserted
    }

    /// Sort the entries of earlier runs: those that were stored first are evicted first.
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
            let place = node.place;
            let queue = shard.queue(place);
            queue.bytes = queue.bytes - old + weight;
        }
    }

    /// Remove this entry. A newer one of the same key stays.
    pub fn remove(&self, id: &EntryId) -> Option<Indexed> {
        let mut shard = self.shard(&id.hash).lock();
        let removed = shard.remove(id);
        if removed.is_some() {
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    /// The entry to evict for an object with a use count of `uses`: none with a higher count.
    /// `u8::MAX`: any. `None`: all entries searched have a higher one, and nothing has changed.
    pub fn victim(&self, now: u64, uses: u8) -> Option<Indexed> {
        let [new, all] = self.sum(|shard| [shard.new.bytes, shard.new.bytes + shard.main.bytes]);
        let places = match new >= all / NEW_SHARE {
            true => [Place::New, Place::Main],
            false => [Place::Main, Place::New],
        };
        // If the limit is exceeded when an entry has been written, another one goes.
        let newest = self.newest.load(Ordering::Relaxed);
        [newest, NO_GENERATION].into_iter().find_map(|spared| {
            places.into_iter().find_map(|place| match uses {
                u8::MAX => self.victim_in(place, spared),
                uses => self.rare_victim_in(place, now, uses, spared),
            })
        })
    }

    /// The least recently used of the candidates of all shards. Entries before it that have turns left
    /// are given one.
    fn victim_in(&self, place: Place, spared: u64) -> Option<Indexed> {
        loop {
            let mut all_turns_given = true;
            let candidates = self.shards.iter().filter_map(|shard| {
                let mut shard = shard.lock();
                if !shard.give_turns(place) {
                    all_turns_given = false;
                    return None;
                }
                let slot = shard.victim(place, spared)?;
                Some(shard.indexed(slot))
            });
            let victim = candidates.min_by_key(|entry| (entry.used, entry.id.generation));
            if victim.is_some() || all_turns_given {
                return victim;
            }
        }
    }

    /// The least recently used of the candidates with the fewest turns of all shards, see
    /// [`Shard::rare_victim`].
    fn rare_victim_in(&self, place: Place, now: u64, uses: u8, spared: u64) -> Option<Indexed> {
        let candidates = self.shards.iter().filter_map(|shard| {
            let shard = shard.lock();
            let (turns, slot) = shard.rare_victim(place, now, uses, spared)?;
            Some((turns, shard.indexed(slot)))
        });
        let victim =
            candidates.min_by_key(|(turns, entry)| (*turns, entry.used, entry.id.generation));
        victim.map(|(_, entry)| entry)
    }

    fn sum<const N: usize>(&self, of: impl Fn(&Shard) -> [u64; N]) -> [u64; N] {
        let mut sums = [0; N];
        for shard in &self.shards {
            let of_shard = of(&shard.lock());
            for (sum, part) in sums.iter_mut().zip(of_shard) {
                *sum += part;
            }
        }
        sums
    }

    /// The entries of one of the [`parts`](Self::parts) that were last used before `time`, see
    /// [`part`](Self::part).
    pub fn unused_since(&self, part: usize, time: u64) -> impl Iterator<Item = EntryId> + '_ {
        self.search(part, move |node| node.used < time)
    }

    /// The entries of one of the [`parts`](Self::parts), in no order. One that comes or goes meanwhile
    /// may be among them or not. No lock is held between them.
    pub fn part(&self, part: usize) -> impl Iterator<Item = EntryId> + '_ {
        self.search(part, |_| true)
    }

    fn search<'a>(
        &'a self,
        part: usize,
        wanted: impl Fn(&Node) -> bool + 'a,
    ) -> impl Iterator<Item = EntryId> + 'a {
        let mut from = 0;
        let steps = std::iter::from_fn(move || {
            let found = self.shards[part].lock().search(from, &wanted)?;
            from += SEARCH_STEP;
            Some(found)
        });
        steps.flatten()
    }

    /// Number of parts in which the entries can be listed.
    pub fn parts(&self) -> usize {
        SHARDS
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// True if there are no entries.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all entries on the disk.
    pub fn bytes(&self) -> u64 {
        let [bytes] = self.sum(|shard| [shard.new.bytes + shard.main.bytes]);
        bytes
    }

    /// Memory that the index takes, in bytes.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                let shard = shard.lock();
                shard.nodes.memory_bytes() + shard.slots.allocation_size()
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

    /// Evict all entries that are left at `now`.
    fn drain(index: &Index, now: u64) -> Vec<u8> {
        std::iter::from_fn(|| {
            let victim = index.victim(now, u8::MAX)?;
            index.remove(&victim.id).map(|entry| entry.id.hash[0])
        })
        .collect()
    }

    #[test]
    fn the_oldest_of_all_shards_goes_first_and_what_was_used_goes_last() {
        let index = Index::default();
        for key in 0..100 {
            index.insert(entry(key, 1, 1, u64::from(key)));
        }
        index.touch(&[0; 16], 200);
        index.touch(&[50; 16], 201);
        let mut expected: Vec<u8> = (1..100).filter(|key| *key != 50).collect();
        expected.extend([0, 50]);
        assert_eq!(drain(&index, 300), expected);
    }

    #[test]
    fn entries_of_an_earlier_run_go_in_the_order_in_which_they_were_stored() {
        let index = Index::default();
        // All of one shard.
        let keys = [0, 32, 64, 96];
        for (generation, key) in [30, 10, 40, 20].into_iter().zip(keys) {
            index.insert_found(entry(key, generation, 1000, 5));
        }
        // Another shard, with entries of both runs.
        index.insert_found(entry(1, 25, 1000, 5));
        index.insert(entry(33, 50, 100, 6));
        index.touch(&[32; 16], 7);
        index.sort();
        assert_eq!(drain(&index, 8), [96, 1, 0, 64, 32, 33]);
    }

    fn number_of(number: u64) -> [u8; 16] {
        let hash = (u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        (hash ^ (hash >> 64)).to_le_bytes()
    }

    /// A cache with room for 1000 entries.
    #[derive(Default)]
    struct Cache {
        index: Index,
        now: u64,
        stored: u64,
    }

    impl Cache {
        fn request(&mut self, number: u64) -> bool {
            self.now += 1;
            let hash = number_of(number);
            if self.index.touch(&hash, self.now).is_some() {
                return true;
            }
            while self.index.bytes() >= 1000 {
                let victim = self.index.victim(self.now, u8::MAX).unwrap();
                self.index.remove(&victim.id);
            }
            self.stored += 1;
            let id = EntryId {
                hash,
                generation: self.stored,
            };
            self.index.insert(Indexed {
                id,
                weight: 1,
                used: self.now,
            });
            false
        }

        fn hits(&mut self, numbers: std::ops::Range<u64>) -> usize {
            numbers.filter(|number| self.request(*number)).count()
        }
    }

    #[test]
    fn a_scan_displaces_no_more_than_the_share_of_new_entries() {
        for parts in [1, 5] {
            let mut cache = Cache::default();
            // The others make the last of these older than the window.
            for others in [5_000..5_200, 6_000..6_000] {
                cache.hits(0..800);
                cache.hits(others);
            }
            // Clients request the parts of an object one after the other.
            for number in 10_000..30_000 {
                for _ in 0..parts {
                    cache.request(number);
                }
            }
            let hits = cache.hits(0..800);
            assert!(hits >= 780, "{hits} hits after a scan in {parts} parts");
        }
    }

    #[test]
    fn in_a_cache_of_a_few_entries_every_use_counts() {
        let index = Index::default();
        // All in one shard.
        for (generation, key) in (1..).zip([0, 32, 64]) {
            index.insert(entry(key, generation, 1, generation));
        }
        index.touch(&[64; 16], 10);
        index.touch(&[0; 16], 11);
        assert_eq!(drain(&index, 12), [32, 0, 64]);
    }

    #[test]
    fn what_was_just_stored_goes_last() {
        let index = Index::default();
        for (generation, key) in (1..).zip([0, 1, 2]) {
            index.insert(entry(key, generation, 1, generation));
            index.touch(&[key; 16], 10 + generation);
        }
        index.insert(entry(3, 4, 1, 20));
        assert_eq!(drain(&index, 21), [0, 1, 2, 3]);
        index.insert(entry(4, 5, 1, 22));
        assert_eq!(drain(&index, 23), [4], "if there is no other");
    }

    #[test]
    fn what_is_stored_again_soon_stays_longer() {
        let mut cache = Cache::default();
        cache.hits(10_000..11_000);
        // Each of these leaves before it is used.
        for again in 0..2 {
            cache.hits(0..50);
            cache.hits(20_000 + 1_000 * again..21_000 + 1_000 * again);
        }
        let hits = cache.hits(0..50);
        assert!(hits >= 40, "{hits} hits");
        assert_eq!(cache.hits(20_000..20_050), 0);
    }

    #[test]
    fn each_use_earns_a_turn() {
        let index = Index::default();
        // All in one shard.
        let [often, second, third, fourth] = [0, 32, 64, 96];
        let victim = || {
            let victim = index.victim(10, u8::MAX)?;
            index.remove(&victim.id).map(|entry| entry.id.hash[0])
        };
        for (generation, key) in (1..).zip([often, second, third]) {
            index.insert_found(entry(key, generation, 1, 1));
        }
        index.touch(&[often; 16], 2);
        index.touch(&[often; 16], 3);
        assert_eq!(victim(), Some(second));
        index.insert_found(entry(fourth, 4, 1, 1));
        assert_eq!(victim(), Some(third));
        assert_eq!(victim(), Some(fourth));
        assert_eq!(victim(), Some(often));
    }

    #[test]
    fn one_leaves_even_if_all_are_used() {
        let index = Index::default();
        let count = 3 * CANDIDATES as u64;
        let in_one_shard = |number| {
            let mut hash = number_of(number);
            hash[15] = 0;
            hash
        };
        for number in 0..count {
            let id = EntryId {
                hash: in_one_shard(number),
                generation: 1,
            };
            index.insert_found(Indexed {
                id,
                weight: 1,
                used: 1,
            });
        }
        for number in 0..count {
            index.touch(&in_one_shard(number), 2 + number);
        }
        let victim = index.victim(100, u8::MAX).map(|victim| victim.id.hash);
        assert_eq!(victim, Some(in_one_shard(0)));
    }

    #[test]
    fn entries_unused_since_a_time_are_found() {
        let index = Index::default();
        for key in 0..100 {
            index.insert(entry(key, 1, 1, u64::from(key)));
        }
        index.touch(&[5; 16], 200);
        index.remove(&entry(6, 1, 0, 0).id);
        let unused = (0..index.parts()).flat_map(|part| index.unused_since(part, 40));
        let mut keys: Vec<u8> = unused.map(|id| id.hash[0]).collect();
        keys.sort_unstable();
        let expected: Vec<u8> = (0..40).filter(|key| ![5, 6].contains(key)).collect();
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_search_looks_at_a_few_entries_at_a_time() {
        let index = Index::default();
        let count = 3 * SEARCH_STEP as u64;
        let in_one_shard = |number| {
            let mut hash = number_of(number);
            hash[15] = 0;
            hash
        };
        let entry = |number| Indexed {
            id: EntryId {
                hash: in_one_shard(number),
                generation: 1,
            },
            weight: 1,
            used: 1,
        };
        for number in 0..count {
            index.insert(entry(number));
        }
        let mut unused = index.unused_since(0, 2);
        let first = unused.next().expect("an entry");
        assert_eq!(first.hash, in_one_shard(0));
        // The search has not come to these two.
        index.touch(&in_one_shard(count - 1), 3);
        index.remove(&entry(count - 2).id);
        let rest: Vec<_> = unused.map(|id| id.hash).collect();
        let expected: Vec<_> = (1..count - 2).map(in_one_shard).collect();
        assert_eq!(rest, expected);
        assert_eq!(index.part(0).count() as u64, count - 1);
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
    fn an_object_that_is_refused_takes_no_turns() {
        let filled = || {
            let index = Index::default();
            // All in one shard.
            let [often, again, new] = [0, 32, 64];
            index.insert_found(entry(often, 1, 1, 1));
            index.insert_found(entry(again, 2, 1, 1));
            index.insert(entry(new, 3, 1, 1));
            for key in [often, often, often, again, new] {
                index.touch(&[key; 16], 2);
            }
            index
        };
        let (index, undisturbed) = (filled(), filled());
        for _ in 0..10 {
            assert_eq!(index.victim(3, 1), None);
        }
        let cold = entry(96, 4, 1, 1);
        for index in [&index, &undisturbed] {
            index.insert_found(cold);
        }
        let left = drain(&index, 4);
        assert_eq!(left[0], 96);
        assert_eq!(left, drain(&undisturbed, 4));
    }

    #[test]
    fn a_rare_object_displaces_what_is_rare_by_now_and_takes_no_turns_of_others() {
        let index = Index::default();
        // All in one shard.
        let [often, before, cold] = [0, 32, 64];
        for (generation, key) in (1..).zip([often, before, cold]) {
            index.insert_found(entry(key, generation, 1, 1));
        }
        for _ in 0..3 {
            index.touch(&[before; 16], 2);
        }
        let now = 3 * HALF_LIFE;
        for _ in 0..2 {
            index.touch(&[often; 16], now);
        }
        let evict = |uses| {
            let victim = index.victim(now, uses)?;
            index.remove(&victim.id).map(|entry| entry.id.hash[0])
        };
        assert_eq!(evict(1), Some(cold), "it has no turns");
        assert_eq!(evict(1), Some(before), "its uses were long ago");
        assert_eq!(evict(1), None);
        assert_eq!(evict(u8::MAX), Some(often));
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
                    let victim = index.victim(step, u8::MAX).map(|victim| victim.id);
                    assert!(victim.is_none_or(|id| index.contains(&id)));
                    assert_eq!(victim.is_none(), model.is_empty());
                }
            }
            assert_eq!(index.len(), model.len());
        }
        assert_eq!(
            index.bytes(),
            model.values().map(|known| known.1).sum::<u64>()
        );
        let mut left = drain(&index, 20_000);
        left.sort_unstable();
        let mut expected: Vec<u8> = model.into_keys().collect();
        expected.sort_unstable();
        assert_eq!(left, expected);
        assert_eq!((index.len(), index.bytes()), (0, 0));
    }

    #[test]
    fn an_entry_takes_at_most_75_bytes() {
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
        assert!(worst <= 75, "{worst} bytes an entry");
        assert_eq!(index.len(), 1_000_000);
    }
}
