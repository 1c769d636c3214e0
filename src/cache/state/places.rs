//! A table of what exists of each entry, as long as it exists.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::cache::store::entry_id::EntryId;

/// Weak references by entry. Most entries have one.
#[derive(Debug)]
pub(crate) struct Places<T>(Arc<Mutex<Table<T>>>);

type Table<T> = HashMap<EntryId, SmallVec<[Weak<T>; 1]>>;

/// A place in the table. Its owner has it as long as it exists, and nothing else does.
#[derive(Debug)]
pub(crate) struct Place<T> {
    places: Places<T>,
    id: EntryId,
}

impl<T> Places<T> {
    /// Make something that has a place here.
    pub(crate) fn add(&self, id: EntryId, make: impl FnOnce(Place<T>) -> T) -> Arc<T> {
        let added = Arc::new(make(Place {
            places: self.clone(),
            id,
        }));
        let mut table = self.0.lock();
        table.entry(id).or_default().push(Arc::downgrade(&added));
        added
    }

    /// Take what exists of an entry out of the table.
    pub(crate) fn take(&self, id: &EntryId) -> Vec<Arc<T>> {
        let taken = self.0.lock().remove(id).unwrap_or_default();
        taken.iter().filter_map(Weak::upgrade).collect()
    }
}

impl<T> Clone for Places<T> {
    fn clone(&self) -> Self {
        Places(self.0.clone())
    }
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Places(Arc::default())
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let mut table = self.places.0.lock();
        // Nothing is there any more if it was taken out.
        if let Some(existing) = table.get_mut(&self.id) {
            existing.retain(|reference| reference.strong_count() > 0);
            if existing.is_empty() {
                table.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EntryId = EntryId {
        hash: [7; 16],
        generation: 1,
    };

    struct Thing {
        _place: Place<Thing>,
    }

    fn add(places: &Places<Thing>) -> Arc<Thing> {
        places.add(ID, |place| Thing { _place: place })
    }

    fn count(places: &Places<Thing>) -> usize {
        places.0.lock().get(&ID).map_or(0, SmallVec::len)
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let places = Places::default();
        let [first, second] = [add(&places), add(&places)];
        assert_eq!(count(&places), 2);
        drop(first);
        assert_eq!(count(&places), 1);
        drop(second);
        assert!(places.0.lock().is_empty());
    }

    #[test]
    fn what_is_taken_has_no_place_any_more() {
        let places = Places::default();
        let first = add(&places);
        assert_eq!(places.take(&ID).len(), 1);
        assert_eq!(count(&places), 0);
        let second = add(&places);
        drop(first);
        assert_eq!(count(&places), 1);
        drop(second);
        assert_eq!(count(&places), 0);
        assert!(places.take(&ID).is_empty());
    }
}
