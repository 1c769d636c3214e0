//! Counts of misses by key.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use pingora_cache::key::HashBinary;

/// Number of counters, of one byte each.
pub(crate) const CELLS: usize = 1 << 20;

/// Number of counters in a row. The counters are made by the row: one by one, they take a third of
/// the start of a build that is not optimized.
const ROW: usize = 1 << 10;

/// Counts of misses by key.
///
/// The counts are a sketch of fixed size (two counters a key, of which the lower one is
/// valid), so a flood of keys that are requested once takes no memory. Each miss also halves
/// one counter in turn: a key that is requested rarely is forgotten after about a million
/// other misses. Two keys that share both counters are counted as one, which at worst stores
/// an object early.
pub(crate) struct MissCounts {
    rows: Box<[[AtomicU8; ROW]]>,
    aging: AtomicUsize,
}

impl Default for MissCounts {
    fn default() -> Self {
        MissCounts {
            rows: (0..CELLS / ROW)
                .map(|_| [const { AtomicU8::new(0) }; ROW])
                .collect(),
            aging: AtomicUsize::new(0),
        }
    }
}

impl MissCounts {
    /// Count a request. Returns the number of requests so far.
    pub(crate) fn count(&self, hash: &HashBinary) -> u8 {
        let cells = self.rows.as_flattened();
        let turn = self.aging.fetch_add(1, Ordering::Relaxed) % CELLS;
        let _ = cells[turn].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count > 0).then_some(count / 2)
        });
        let cell = |at: usize| {
            let [a, b, c, d]: [u8; 4] = hash[at..at + 4].try_into().unwrap_or_default();
            &cells[u32::from_le_bytes([a, b, c, d]) as usize % CELLS]
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
