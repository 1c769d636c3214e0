//! The space of removed files that are still open.

use std::sync::{Arc, Barrier};

use crate::cache::state::body_file::{stop_closer, BodyFile};
use crate::cache::state::quota::Reservation;
use crate::cache::write::space;
use crate::cache::{DiskCache, DiskCacheConfig, EntryId};

const LIMIT: u64 = 1 << 20;
const ID: EntryId = EntryId {
    hash: [7; 16],
    generation: 1,
};

fn cache(dir: &tempfile::TempDir) -> &'static DiskCache {
    let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), LIMIT)).unwrap();
    cache.wait_recovered();
    cache
}

async fn reserve_all(cache: &'static DiskCache) -> Option<Reservation> {
    space::reserve(cache.core(), LIMIT, u8::MAX).await
}

async fn is_free(cache: &'static DiskCache) -> bool {
    reserve_all(cache).await.is_some()
}

#[tokio::test]
async fn a_body_that_waits_to_be_closed_keeps_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir);
    let bodies = &cache.core().open_bodies;
    let file = Arc::new(tempfile::tempfile_in(&dir).unwrap());
    let body = BodyFile::in_space(file, bodies.open(ID));
    let barrier = Arc::new(Barrier::new(2));
    stop_closer(&barrier);
    // Its last reader is gone, but it is open still.
    drop(body);
    let reservation = reserve_all(cache).await.unwrap();
    bodies.hold(&ID, reservation);
    // A fill waits for it.
    let waits = reserve_all(cache);
    tokio::pin!(waits);
    assert!(futures::poll!(&mut waits).is_pending());
    barrier.wait();
    assert!(waits.await.is_some());
}

#[tokio::test]
async fn a_body_that_is_removed_while_it_is_opened_keeps_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir);
    let bodies = &cache.core().open_bodies;
    let space = bodies.open(ID);
    let file = Arc::new(tempfile::tempfile_in(&dir).unwrap());
    let reservation = reserve_all(cache).await.unwrap();
    bodies.hold(&ID, reservation);
    let body = BodyFile::in_space(file, space);
    assert!(!is_free(cache).await);
    drop(body);
    while !is_free(cache).await {}
}

#[tokio::test]
async fn a_body_that_could_not_be_opened_takes_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir);
    let space = cache.core().open_bodies.open(ID);
    let reservation = reserve_all(cache).await.unwrap();
    cache.core().open_bodies.hold(&ID, reservation);
    drop(space);
    assert!(is_free(cache).await);
}
