//! Which misses are worth storing.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use pingora_cache::admission::{AdmissionPolicy, Decision};
use pingora_cache::key::{CacheHashKey, HashBinary};
use pingora_cache::CacheKey;

/// How many counters there are: a megabyte of them.
const CELLS: usize = 1 << 20;

/// Counts of unsuccessful requests for keys.
///
/// Requests are counted in a sketch of fixed size (two counters a key, the lower
/// one counts), so a flood of keys that are asked for once takes no memory. Each
/// observation also halves one counter in turn: what is asked for rarely is
/// forgotten after about a million other misses. Two keys that share both
/// counters are counted as one, which at worst stores an object early.
pub(crate) struct Misses {
    cells: Box<[AtomicU8]>,
    aging: AtomicUsize,
}

impl Default for Misses {
    fn default() -> Self {
        Misses {
            cells: (0..CELLS).map(|_| AtomicU8::new(0)).collect(),
            aging: AtomicUsize::new(0),
        }
    }
}

impl Misses {
    /// Count one more request. Returns the number so far.
    pub(crate) fn count(&self, hash: &HashBinary) -> u8 {
        let turn = self.aging.fetch_add(1, Ordering::Relaxed) % CELLS;
        let _ = self.cells[turn].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count > 0).then_some(count / 2)
        });
        let cell = |at: usize| {
            let [a, b, c, d]: [u8; 4] = hash[at..at + 4].try_into().unwrap_or_default();
            &self.cells[u32::from_le_bytes([a, b, c, d]) as usize % CELLS]
        };
        let count = |cell: &AtomicU8| {
            let update = |count: u8| Some(count.saturating_add(1));
            match cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update) {
                Ok(old) | Err(old) => old.saturating_add(1),
            }
        };
        count(cell(0)).min(count(cell(4)))
    }
}

/// Stores an object from its n-th request on, like nginx's `proxy_cache_min_uses`.
pub struct MinUses {
    min_uses: u8,
    misses: Misses,
}

impl MinUses {
    /// Store from this request on; 1 stores at once.
    pub fn new(min_uses: u8) -> Self {
        MinUses {
            min_uses,
            misses: Misses::default(),
        }
    }
}

impl AdmissionPolicy for MinUses {
    fn observe(&self, key: &CacheKey) -> Decision {
        let uses = self.misses.count(&key.combined_bin());
        let observed = u32::from(uses);
        if uses >= self.min_uses {
            Decision::Ready { observed }
        } else {
            Decision::Defer { observed }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_ready_at_its_nth_request() {
        let policy = MinUses::new(3);
        for key in ["a", "b"] {
            let key = CacheKey::new(key, "");
            assert!(policy.observe(&key).is_deferred());
            assert!(policy.observe(&key).is_deferred());
            assert!(!policy.observe(&key).is_deferred());
            assert!(!policy.observe(&key).is_deferred());
        }
        assert!(!MinUses::new(1)
            .observe(&CacheKey::new("c", ""))
            .is_deferred());
    }

    #[test]
    fn what_is_asked_for_once_is_forgotten() {
        let policy = MinUses::new(2);
        let key = CacheKey::new("once", "");
        assert!(policy.observe(&key).is_deferred());
        let other = CacheKey::new("other", "");
        for _ in 0..CELLS {
            policy.observe(&other);
        }
        assert!(policy.observe(&key).is_deferred());
    }
}
