//! Open bodies, which keep their space when they are removed.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::cache::state::body_file::Space;
use crate::cache::state::room::Claim;
use crate::cache::EntryId;

/// Entries that are remembered before those with closed bodies are dropped.
const MIN_PRUNE: usize = 1024;

/// The open bodies by entry: one that the readers of a fill share, and perhaps others
/// that were opened after the fill had become an entry.
#[derive(Debug, Default)]
pub(crate) struct OpenBodies(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    spaces: HashMap<EntryId, Vec<Weak<Space>>>,
    prune_at: usize,
}

impl OpenBodies {
    /// Note that a body is about to be opened: what is noted after the open(2) could come
    /// after the removal.
    pub(crate) fn open(&self, id: EntryId) -> Arc<Space> {
        let space = Arc::default();
        let mut table = self.0.lock();
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

    /// Note that the files of an entry are gone. Their bytes stay claimed until its bodies
    /// are closed.
    pub(crate) fn hold(&self, id: &EntryId, claim: Claim) {
        let spaces = self.0.lock().spaces.remove(id).unwrap_or_default();
        let open: Vec<_> = spaces.iter().filter_map(Weak::upgrade).collect();
        Space::hold(&open, claim);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::cache::state::body_file::{stop_closer, BodyFile};
    use crate::cache::{DiskCache, DiskCacheConfig};

    const LIMIT: u64 = 1 << 20;
    const ID: EntryId = EntryId {
        hash: [7; 16],
        generation: 1,
    };

    fn cache(dir: &tempfile::TempDir) -> &'static DiskCache {
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), LIMIT)).unwrap();
        cache.wait_loaded();
        cache
    }

    async fn is_free(cache: &'static DiskCache) -> bool {
        cache.claim(LIMIT, u8::MAX).await.is_some()
    }

    #[tokio::test]
    async fn a_body_that_waits_to_be_closed_keeps_its_space() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir);
        let bodies = cache.open_bodies();
        let file = Arc::new(tempfile::tempfile_in(&dir).unwrap());
        let body = BodyFile::in_space(file, bodies.open(ID));
        let barrier = Arc::new(Barrier::new(2));
        stop_closer(&barrier);
        // Its last reader is gone, but it is open still.
        drop(body);
        let claim = cache.claim(LIMIT, u8::MAX).await.unwrap();
        bodies.hold(&ID, claim);
        // A fill waits for it.
        let waits = cache.claim(LIMIT, u8::MAX);
        tokio::pin!(waits);
        assert!(futures::poll!(&mut waits).is_pending());
        barrier.wait();
        assert!(waits.await.is_some());
    }

    #[tokio::test]
    async fn a_body_that_is_removed_while_it_is_opened_keeps_its_space() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir);
        let bodies = cache.open_bodies();
        let space = bodies.open(ID);
        let file = Arc::new(tempfile::tempfile_in(&dir).unwrap());
        let claim = cache.claim(LIMIT, u8::MAX).await.unwrap();
        bodies.hold(&ID, claim);
        let body = BodyFile::in_space(file, space);
        assert!(!is_free(cache).await);
        drop(body);
        while !is_free(cache).await {}
    }

    #[tokio::test]
    async fn a_body_that_could_not_be_opened_takes_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir);
        let space = cache.open_bodies().open(ID);
        let claim = cache.claim(LIMIT, u8::MAX).await.unwrap();
        cache.open_bodies().hold(&ID, claim);
        drop(space);
        assert!(is_free(cache).await);
    }

    #[test]
    fn entries_with_closed_bodies_are_forgotten() {
        let bodies = OpenBodies::default();
        for generation in 0..10 * MIN_PRUNE as u64 {
            bodies.open(EntryId { generation, ..ID });
        }
        assert!(bodies.0.lock().spaces.len() <= MIN_PRUNE);
    }
}
