//! Counts of changes to what memory has of entries.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::store::entry_id::EntryId;

/// Number of counters: 8 KiB. Entries share them, so a count may grow for another entry.
const COUNTERS: usize = 1024;

/// Counts of changes, by a part of the hash and of the generation.
///
/// A file is opened and read while its entry may be evicted, or may get new metadata. The counts tell
/// whether that may have happened.
#[derive(Debug)]
pub(crate) struct ChangeCounts(Box<[AtomicU64]>);

/// The number of changes to an entry, and to those that share its counter, at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changes(u64);

impl ChangeCounts {
    /// The changes so far.
    pub fn of(&self, id: &EntryId) -> Changes {
        Changes(self.counter(id).load(Ordering::SeqCst))
    }

    /// Count a change.
    pub fn add(&self, id: &EntryId) {
        self.counter(id).fetch_add(1, Ordering::SeqCst);
    }

    /// Count a change of each entry.
    pub fn add_to_all(&self) {
        for counter in &self.0 {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counter(&self, id: &EntryId) -> &AtomicU64 {
        let [a, b, ..] = id.hash;
        // A change to an older generation of a key does not count for the newer one.
        let number = u16::from_le_bytes([a, b]) ^ id.generation as u16;
        &self.0[usize::from(number) % COUNTERS]
    }
}

impl Default for ChangeCounts {
    fn default() -> Self {
        ChangeCounts((0..COUNTERS).map(|_| AtomicU64::new(0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: u16) -> EntryId {
        let mut hash = [7; 16];
        hash[..2].copy_from_slice(&first.to_le_bytes());
        let generation = 1;
        EntryId { hash, generation }
    }

    #[test]
    fn a_change_counts_for_its_entry_and_for_few_others() {
        let counts = ChangeCounts::default();
        let before = counts.of(&id(1));
        let changed = |counts: &ChangeCounts| {
            let all = (0..=u16::MAX).map(id);
            all.filter(|id| counts.of(id) != before).count()
        };
        counts.add(&id(1));
        assert!(counts.of(&id(1)) != before);
        assert_eq!(changed(&counts), 1 << 6);
        let newer = EntryId {
            generation: 2,
            ..id(1)
        };
        assert_eq!(counts.of(&newer), before);
        counts.add_to_all();
        assert_eq!(changed(&counts), 1 << 16);
    }
}
