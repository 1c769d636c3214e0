//! The numbers that order fills, purges and requests.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The state of the cache when a request was made. An extension of its
/// [`CacheKey`](pingora_cache::CacheKey): the response of the origin is not stored if the key
/// is purged after that. See [`DiskCache::lookup_snapshot`](crate::cache::DiskCache::lookup_snapshot).
#[derive(Debug, Clone, Copy)]
pub struct LookupSnapshot {
    generation: u64,
    /// Generation up to which a lookup finds all fills. Later ones may have their generation
    /// and no file yet.
    findable: u64,
}

impl LookupSnapshot {
    /// The last generation at that time.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Generation up to which a lookup found all fills.
    pub(crate) fn findable(&self) -> u64 {
        self.findable
    }
}

/// The counter of generations.
#[derive(Debug)]
pub(crate) struct Generations {
    next: AtomicU64,
    /// Generations of fills that no lookup finds yet.
    pending: Mutex<BTreeSet<u64>>,
}

/// A fill that has its generation and is not in the table of fills yet.
#[derive(Debug)]
pub(crate) struct PendingFill<'a> {
    generations: &'a Generations,
    generation: u64,
}

// === impl Generations ===

impl Generations {
    pub(crate) fn new(next: u64) -> Self {
        Generations {
            next: AtomicU64::new(next),
            pending: Mutex::default(),
        }
    }

    /// The last generation so far.
    pub(crate) fn last(&self) -> u64 {
        self.next.load(Ordering::Acquire).saturating_sub(1)
    }

    /// A new generation, greater than that of every entry so far.
    pub(crate) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::AcqRel)
    }

    /// Continue from `next`.
    pub(crate) fn restart(&self, next: u64) {
        self.next.store(next, Ordering::Release);
    }

    /// Continue from `next` at least.
    pub(crate) fn raise(&self, next: u64) {
        self.next.fetch_max(next, Ordering::AcqRel);
    }

    /// Give a fill its generation.
    pub(crate) fn begin_fill(&self) -> PendingFill<'_> {
        let mut pending = self.pending.lock();
        let generation = self.next();
        pending.insert(generation);
        PendingFill {
            generations: self,
            generation,
        }
    }

    /// The present state, for a request that is being made.
    pub(crate) fn snapshot(&self) -> LookupSnapshot {
        // Under the lock in which fills get their generations.
        let pending = self.pending.lock();
        let generation = self.last();
        LookupSnapshot {
            generation,
            findable: pending
                .first()
                .map_or(generation, |first| first.saturating_sub(1)),
        }
    }

    /// True if every fill that has a generation can be found, or has ended.
    #[cfg(test)]
    pub(crate) fn has_no_pending(&self) -> bool {
        self.pending.lock().is_empty()
    }
}

// === impl PendingFill ===

impl PendingFill<'_> {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

impl Drop for PendingFill<'_> {
    fn drop(&mut self) {
        self.generations.pending.lock().remove(&self.generation);
    }
}
