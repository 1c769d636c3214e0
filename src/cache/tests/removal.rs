//! Removals that fail at first.

use std::fs;
use std::time::Duration;

use rustix::fs::{renameat_with, RenameFlags, CWD};

use crate::cache::store::layout::Layout;
use crate::cache::write::space;
use crate::cache::{DiskCache, DiskCacheConfig, EntryId};

const LIMIT: u64 = 1 << 20;

#[tokio::test]
async fn a_leftover_that_cannot_be_removed_at_the_start_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let id = EntryId {
        hash: [7; 16],
        generation: 1,
    };
    let leftovers = [
        layout.files(&id).body_tmp(),
        layout.files(&id).meta_tmp(),
        layout.body(&EntryId {
            generation: 2,
            ..id
        }),
    ];
    for path in &leftovers {
        fs::create_dir_all(path).unwrap();
    }
    let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), LIMIT)).unwrap();
    cache.wait_recovered();
    cache.core().removals.done().await;
    assert!(cache.core().removals.have_failed());
    for path in &leftovers {
        // In one step: a removal in between would find nothing to remove.
        let file = dir.path().join("left");
        fs::write(&file, "left").unwrap();
        renameat_with(CWD, &file, CWD, path, RenameFlags::EXCHANGE).unwrap();
        fs::remove_dir(&file).unwrap();
    }
    while cache.core().removals.have_failed() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for path in &leftovers {
        assert!(!path.exists(), "{}", path.display());
    }
}

/// In place of a file, a folder, which is no file to unlink(2).
#[tokio::test]
async fn files_that_cannot_be_removed_keep_their_space_and_are_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), LIMIT)).unwrap();
    cache.wait_recovered();
    let layout = &cache.core().layout;
    for is_fill in [false, true] {
        let id = EntryId {
            hash: [7; 16],
            generation: cache.core().generations.next(),
        };
        let path = match is_fill {
            true => layout.files(&id).body_tmp(),
            false => layout.body(&id),
        };
        fs::create_dir_all(&path).unwrap();
        let reservation = space::reserve(cache.core(), LIMIT / 2, u8::MAX).await;
        assert!(reservation.is_some());
        match is_fill {
            true => cache.core().remove_fill(id, reservation),
            false => cache.core().remove_files(id, reservation),
        }
        cache.core().removals.done().await;
        assert!(cache.core().removals.have_failed());
        assert!(
            space::reserve(cache.core(), LIMIT / 2 + 1, u8::MAX)
                .await
                .is_none(),
            "the space is still taken"
        );

        fs::remove_dir(&path).unwrap();
        while cache.core().removals.have_failed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(
            space::reserve(cache.core(), LIMIT, u8::MAX).await.is_some(),
            "all is free"
        );
    }
}
