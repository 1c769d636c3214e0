//! Open body files, which keep their space when they are removed.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::cache::state::body_file::BodySpace;
use crate::cache::state::quota::Reservation;
use crate::cache::store::entry_id::EntryId;

/// Entries that a table remembers before those with closed bodies are dropped.
const MIN_PRUNE: usize = 32;

/// Number of tables, so that hits seldom wait for one another, nor long while one is pruned.
const TABLES: usize = 256;

/// The open body files by entry: one that the readers of a fill share, and perhaps others that
/// were opened after the fill had become an entry.
#[derive(Debug)]
pub(crate) struct OpenBodies([Mutex<Table>; TABLES]);

#[derive(Debug, Default)]
struct Table {
    spaces: HashMap<EntryId, Vec<Weak<BodySpace>>>,
    prune_at: usize,
}

impl Default for OpenBodies {
    fn default() -> Self {
        OpenBodies(std::array::from_fn(|_| Mutex::default()))
    }
}

impl OpenBodies {
    fn table(&self, id: &EntryId) -> &Mutex<Table> {
        // As for the folders of the files.
        &self.0[usize::from(id.hash[0])]
    }

    /// Note that a body is about to be opened. A note after the open(2) could come after the
    /// removal.
    pub(crate) fn open(&self, id: EntryId) -> Arc<BodySpace> {
        let space = Arc::default();
        let mut table = self.table(&id).lock();
        if table.spaces.len() >= table.prune_at {
            table.spaces.retain(|_, spaces| {
                spaces.retain(|space| space.strong_count() > 0);
                !spaces.is_empty()
            });
            table.prune_at = MIN_PRUNE.max(2 * table.spaces.len());
        }
        let spaces = table.spaces.entry(id).or_default();
        spaces.retain(|space| space.strong_count() > 0);
        spaces.push(Arc::downgrade(&space));
        space
    }

    /// Note that the files of an entry are removed. Their bytes stay reserved until its bodies
    /// are closed.
    pub(crate) fn hold(&self, id: &EntryId, reservation: Reservation) {
        let spaces = self.table(id).lock().spaces.remove(id).unwrap_or_default();
        let open: Vec<_> = spaces.iter().filter_map(Weak::upgrade).collect();
        BodySpace::hold(&open, reservation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_with_closed_bodies_are_forgotten() {
        let bodies = OpenBodies::default();
        let mut open = Vec::new();
        for generation in 0..10 * MIN_PRUNE as u64 {
            let id = EntryId {
                hash: [7; 16],
                generation,
            };
            let space = bodies.open(id);
            if generation < 10 {
                open.push(space);
            }
        }
        let table = bodies.0[7].lock();
        assert!(table.spaces.len() <= MIN_PRUNE, "{}", table.spaces.len());
        let is_open = |spaces: &&Vec<Weak<BodySpace>>| spaces[0].strong_count() > 0;
        assert_eq!(table.spaces.values().filter(is_open).count(), open.len());
    }
}
