//! The engine's policy: its own index, with the loop around it that makes room for a fill.

use crate::index::{Index, Indexed};
use crate::miss_counts::MissCounts;
use crate::policies::Policy;
use crate::EntryId;

/// Requests between two restarts.
const RUN: u64 = 100_000;

/// The engine's index, in a cache where each miss is stored at once.
pub struct Engine<'a> {
    index: Index,
    misses: MissCounts,
    sizes: &'a [u64],
    capacity: u64,
    requests: u64,
    fills: u64,
    /// True if clients receive the fills.
    clients: bool,
    restarts: bool,
}

// === impl Engine ===

impl<'a> Engine<'a> {
    pub fn new(sizes: &'a [u64], capacity: u64) -> Self {
        Self {
            index: Index::default(),
            misses: MissCounts::default(),
            sizes,
            capacity,
            requests: 0,
            fills: 0,
            clients: true,
            restarts: false,
        }
    }

    /// All fills continue after their clients have left.
    pub fn without_clients(self) -> Self {
        Self {
            clients: false,
            ..self
        }
    }

    /// The process restarts now and then.
    pub fn with_restarts(self) -> Self {
        Self {
            restarts: true,
            ..self
        }
    }

    /// As `evict_for` in src/cache/write/space.rs does it.
    fn make_room(&self, bytes: u64, uses: u8, now: u64) -> bool {
        while self.index.bytes() + bytes > self.capacity {
            let Some(victim) = self.index.victim(now, uses) else {
                return false;
            };
            self.index.remove(&victim.id);
        }
        true
    }

    /// As src/cache/jobs/recovery.rs does it.
    fn restart(&mut self, now: u64) {
        let old = std::mem::take(&mut self.index);
        let entries = (0..old.parts()).flat_map(|part| old.part(part));
        for entry in entries.filter_map(|id| old.get(&id.hash)) {
            self.index.insert_found(Indexed { used: now, ..entry });
        }
        self.index.sort();
        self.misses = MissCounts::default();
    }
}

impl Policy for Engine<'_> {
    fn request(&mut self, object: u32, now: u64) -> bool {
        self.requests += 1;
        if self.restarts && self.requests.is_multiple_of(RUN) {
            self.restart(now);
        }
        let hash = hash(object);
        if self.index.touch(&hash, now).is_some() {
            return true;
        }
        let count = self.misses.count(&hash);
        let uses = if self.clients { u8::MAX } else { count };
        let weight = self.sizes[object as usize];
        if weight <= self.capacity && self.make_room(weight, uses, now) {
            self.fills += 1;
            let id = EntryId {
                hash,
                generation: self.fills,
            };
            self.index.insert(Indexed {
                id,
                weight,
                used: now,
            });
        }
        false
    }
}

/// A hash like that of a cache key.
fn hash(object: u32) -> [u8; 16] {
    let mut hash = u128::from(object) + 1;
    for _ in 0..3 {
        hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        hash ^= hash >> 67;
    }
    hash.to_le_bytes()
}
