//! Faults of the disk, injected behind the backend. After each of them, the cache works on,
//! and the files, the index and the reserved space agree.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pingora_cache::key::CacheHashKey;
use pingora_cache::trace::Span;
use pingora_cache::{BodyPart, CacheKey, CacheMeta, HitHandler, MissHandler, Storage};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::cache::io::faulty::{Fault, Faults, FaultyBackend, Op};
use crate::cache::jobs::{maintenance, scrub};
use crate::cache::store::format::disk_len;
use crate::cache::{Cause, DiskCache, DiskCacheConfig, Eviction, FILL_BROKEN, NO_ROOM};

const LIMIT: u64 = 4 << 20;

/// Length of a body that is neither kept in memory nor read with its metadata.
const LARGE: usize = 600_000;

/// Length of a body that is read as a whole.
const SMALL: usize = 5_000;

/// A cache on a disk with faults.
struct Disk {
    dir: TempDir,
    faults: Faults,
    cache: &'static DiskCache,
}

// A cache makes its folder anew when that is removed.
impl Drop for Disk {
    fn drop(&mut self) {
        self.cache.kill();
    }
}

impl Disk {
    fn new() -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new();
        let cache = open(dir.path(), &faults);
        Disk { dir, faults, cache }
    }

    /// Waits until entries have been evicted.
    async fn until_fewer_than(&self, entries: usize) {
        let evicted = async {
            while self.cache.entries() >= entries {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), evicted).await.unwrap();
    }

    /// Closes the cache and opens it again.
    async fn reopen(&mut self) {
        let cache = self.cache;
        let close = move || cache.close(Duration::from_secs(30));
        tokio::task::spawn_blocking(close).await.unwrap();
        self.cache = open(self.dir.path(), &self.faults);
    }

    /// Begins to store a body, whose length is announced if `promised`.
    async fn begin(&self, name: &str, promised: Option<usize>) -> Result<MissHandler> {
        let mut header = ResponseHeader::build(200, None).unwrap();
        if let Some(len) = promised {
            header.insert_header("content-length", len).unwrap();
        }
        let created = SystemTime::now();
        let meta = CacheMeta::new(created, created, 0, 0, header);
        let span = Span::inactive().handle();
        self.cache.get_miss_handler(&key(name), &meta, &span).await
    }

    /// Stores a body of `len` bytes.
    async fn try_store(&self, name: &str, len: usize) -> Result<()> {
        let mut miss = self.begin(name, Some(len)).await?;
        for piece in body(name, len).chunks(64 << 10) {
            let piece = Bytes::copy_from_slice(piece);
            miss.write_body(piece, false).await?;
        }
        miss.finish().await.map(drop)
    }

    async fn store(&self, name: &str, len: usize) {
        self.try_store(name, len).await.unwrap();
        self.cache.settle().await;
        assert!(self.has(name), "{name} is stored");
    }

    /// True if the index has an entry.
    fn has(&self, name: &str) -> bool {
        let hash = key(name).combined_bin();
        self.cache.core().index.get(&hash).is_some()
    }

    async fn lookup(&self, name: &str) -> Option<HitHandler> {
        let span = Span::inactive().handle();
        let found = self.cache.lookup(&key(name), &span).await.unwrap();
        found.map(|(_, hit)| hit)
    }

    /// Asserts that an entry is found and has its whole body.
    async fn assert_served(&self, name: &str, len: usize) {
        let hit = self.lookup(name).await.expect("an entry");
        assert!(read_all(hit).await.unwrap() == body(name, len), "{name}");
    }

    /// Asserts that the files, the index and the reserved space agree.
    async fn assert_consistent(&self) {
        self.cache.settle().await;
        let core = self.cache.core();
        let mut expected = BTreeSet::new();
        let mut bytes = 0;
        for part in 0..core.index.parts() {
            for id in core.index.part(part) {
                let files = core.files(&id);
                for file in [files.body(), files.meta()] {
                    bytes += disk_len(fs::metadata(&file).unwrap().len());
                    expected.insert(file);
                }
            }
        }
        let mut found = BTreeSet::new();
        for shard in fs::read_dir(core.layout.entries()).unwrap() {
            let files = fs::read_dir(shard.unwrap().path()).unwrap();
            found.extend(files.map(|file| file.unwrap().path()));
        }
        assert_eq!(found, expected);
        assert_eq!(core.index.bytes(), bytes);
        // Files without readers are closed by another thread.
        let closed = async {
            while core.quota.taken(&core.index) != bytes {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let closed = timeout(Duration::from_secs(10), closed).await;
        closed.expect("no space is reserved for what is gone");
    }

    fn fill_errors(&self, cause: Cause) -> u64 {
        self.cache.stats().fill_errors(cause).get()
    }

    fn read_errors(&self, cause: Cause) -> u64 {
        self.cache.stats().read_errors(cause).get()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn space_that_others_take_is_left_to_them() {
    const MIN_FREE: u64 = 10 << 20;
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    faults.set_free(MIN_FREE + LIMIT);
    let config = DiskCacheConfig {
        min_free_bytes: MIN_FREE,
        ..config(dir.path())
    };
    let cache = open_with(config, &faults);
    let disk = Disk { dir, faults, cache };
    for name in ["a", "b", "c", "d", "e"] {
        disk.store(name, LARGE).await;
    }
    // Somebody takes all that the cache has left, and a bit more.
    disk.faults
        .set_free_beside(disk.dir.path(), MIN_FREE - LARGE as u64);
    disk.until_fewer_than(5).await;
    disk.assert_consistent().await;
    let left = disk.cache.entries();
    assert!(left > 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(disk.cache.entries(), left);
    let evicted = disk.cache.stats().evictions(Eviction::Size).get();
    assert_eq!(evicted, 5 - left as u64);

    // There is no space for more, although the limit of the cache is not reached.
    disk.faults.set_free(MIN_FREE - 1);
    // Its files make up for nothing, so that the next look finds no more.
    disk.until_fewer_than(1).await;
    assert!(disk.try_store("f", LARGE).await.is_err());
    disk.faults.set_free(MIN_FREE + LIMIT);
    disk.store("f", LARGE).await;
    disk.assert_consistent().await;
}

fn open(path: &Path, faults: &Faults) -> &'static DiskCache {
    open_with(config(path), faults)
}

fn config(path: &Path) -> DiskCacheConfig {
    DiskCacheConfig {
        scrub_bytes_per_second: 0,
        ..DiskCacheConfig::new(path, LIMIT)
    }
}

fn open_with(config: DiskCacheConfig, faults: &Faults) -> &'static DiskCache {
    let faults = faults.clone();
    let cache = DiskCache::open_with(config, move |_, runtime| {
        Ok(Box::new(FaultyBackend::new(
            runtime.clone(),
            faults.clone(),
        )))
    });
    let cache = cache.unwrap();
    cache.wait_recovered();
    cache
}

fn key(name: &str) -> CacheKey {
    CacheKey::new(name, "bucket")
}

fn body(name: &str, len: usize) -> Vec<u8> {
    let pattern = name.bytes().cycle().zip(0u32..);
    let bytes = pattern.map(|(byte, at)| byte ^ (at / 7 % 251) as u8);
    bytes.take(len).collect()
}

async fn read_all(mut hit: HitHandler) -> Result<Vec<u8>> {
    let mut read = Vec::new();
    while let Some(bytes) = hit.read_body().await? {
        read.extend_from_slice(&bytes);
    }
    Ok(read)
}

#[tokio::test]
async fn a_disk_that_is_full_for_a_moment_costs_old_entries() {
    let disk = Disk::new();
    for name in ["oldest", "older", "old"] {
        disk.store(name, LARGE).await;
    }
    disk.faults.set(Op::Write, Fault::Errno(libc::ENOSPC), 1);
    disk.store("new", LARGE).await;
    disk.assert_served("new", LARGE).await;
    assert!(!disk.has("oldest"), "it made room");
    assert!(disk.has("old"), "no more than needed is evicted");
    assert_eq!(disk.cache.stats().evictions(Eviction::Size).get(), 1);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_write_that_ends_early_is_repeated_from_its_start() {
    let disk = Disk::new();
    for name in ["oldest", "older", "old"] {
        disk.store(name, LARGE).await;
    }
    disk.faults.set(Op::Write, Fault::Short, 1);
    disk.store("new", LARGE).await;
    disk.assert_served("new", LARGE).await;
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_disk_that_stays_full_stores_nothing_and_readers_get_the_body() {
    let disk = Disk::new();
    disk.faults.always(Op::Write, libc::ENOSPC);
    let mut miss = disk.begin("body", Some(LARGE)).await.unwrap();
    let reader = disk.lookup("body").await.expect("a fill");
    let write = async {
        for piece in body("body", LARGE).chunks(64 << 10) {
            let piece = Bytes::copy_from_slice(piece);
            miss.write_body(piece, false).await.unwrap();
        }
        miss.finish().await.unwrap();
    };
    let (read, ()) = tokio::join!(read_all(reader), write);
    assert!(read.unwrap() == body("body", LARGE));
    assert_eq!(disk.fill_errors(Cause::NoSpace), 1);
    disk.assert_consistent().await;
    assert_eq!(disk.cache.entries(), 0);

    disk.faults.clear(Op::Write);
    disk.store("body", LARGE).await;
    disk.assert_served("body", LARGE).await;
}

#[tokio::test]
async fn a_body_for_which_the_disk_has_no_space_is_refused_before_it_is_created() {
    let disk = Disk::new();
    disk.faults.set_free(100_000);
    let len = 2 << 20;
    let refused = disk.begin("large", Some(len)).await.err().expect("refused");
    assert_eq!(*refused.etype(), NO_ROOM);
    assert_eq!(disk.faults.count(Op::Create), 0);
    assert!(disk.cache.was_refused(&key("large")));
    disk.faults.set_free(u64::MAX);
    disk.store("large", len).await;
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_write_that_fails_breaks_the_fill_and_leaves_nothing() {
    let disk = Disk::new();
    disk.faults.set(Op::Write, Fault::Errno(libc::EIO), 1);
    let mut miss = disk.begin("body", Some(LARGE)).await.unwrap();
    let reader = disk.lookup("body").await.expect("a fill");
    let write = async {
        miss.write_body(body("body", LARGE).into(), false).await?;
        miss.finish().await
    };
    let (read, written) = tokio::join!(read_all(reader), write);
    assert!(written.is_err());
    assert_eq!(*read.unwrap_err().etype(), FILL_BROKEN);
    assert_eq!(disk.fill_errors(Cause::Io), 1);
    disk.assert_consistent().await;
    disk.store("body", LARGE).await;
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_commit_that_fails_costs_the_client_nothing() {
    let disk = Disk::new();
    for errno in [libc::EIO, libc::ENOSPC, libc::EROFS] {
        disk.faults.set(Op::Commit, Fault::Errno(errno), 1);
        let mut miss = disk.begin("body", Some(LARGE)).await.unwrap();
        let client = disk.lookup("body").await.expect("a fill");
        let write = async {
            miss.write_body(body("body", LARGE).into(), false).await?;
            miss.finish().await
        };
        let (read, written) = tokio::join!(read_all(client), write);
        assert!(read.unwrap() == body("body", LARGE));
        assert!(written.is_ok());
        disk.assert_consistent().await;
        assert!(!disk.has("body"));
    }
    for cause in [Cause::Io, Cause::NoSpace, Cause::ReadOnly] {
        assert_eq!(disk.fill_errors(cause), 1, "{cause:?}");
    }
    disk.store("body", LARGE).await;
    disk.assert_served("body", LARGE).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_created_is_an_error_of_the_fill_alone() {
    let disk = Disk::new();
    disk.faults.set(Op::Create, Fault::Errno(libc::EMFILE), 1);
    assert!(disk.begin("body", Some(LARGE)).await.is_err());
    assert_eq!(disk.fill_errors(Cause::Descriptors), 1);
    disk.assert_consistent().await;
    disk.store("body", LARGE).await;
}

#[tokio::test]
async fn a_missing_folder_is_created_for_the_fill_that_needs_it() {
    let disk = Disk::new();
    let before = disk.faults.count(Op::CreateFolder);
    disk.faults.set(Op::Create, Fault::Errno(libc::ENOENT), 1);
    disk.store("body", LARGE).await;
    assert_eq!(disk.faults.count(Op::CreateFolder), before + 1);
    disk.assert_served("body", LARGE).await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_opened_is_a_miss_and_is_dropped() {
    let faults = [
        (Op::Open, Fault::Errno(libc::EIO), Cause::Io),
        (Op::Open, Fault::Errno(libc::ENOENT), Cause::Missing),
        (Op::Open, Fault::Short, Cause::Damaged),
        (Op::Load, Fault::Errno(libc::EIO), Cause::Io),
        (Op::Load, Fault::Short, Cause::Damaged),
    ];
    for (op, fault, cause) in faults {
        let disk = Disk::new();
        disk.store("body", LARGE).await;
        disk.faults.set(op, fault, 1);
        assert!(disk.lookup("body").await.is_none(), "{op:?} {fault:?}");
        assert_eq!(disk.read_errors(cause), 1, "{op:?} {fault:?}");
        assert_eq!(disk.cache.stats().evictions(Eviction::Damaged).get(), 1);
        disk.assert_consistent().await;
        disk.store("body", LARGE).await;
        disk.assert_served("body", LARGE).await;
    }
}

#[tokio::test]
async fn without_descriptors_an_entry_is_a_miss_and_is_kept() {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    disk.faults.set(Op::Open, Fault::Errno(libc::EMFILE), 1);
    assert!(disk.lookup("body").await.is_none());
    assert_eq!(disk.read_errors(Cause::Descriptors), 1);
    disk.assert_served("body", LARGE).await;
    disk.assert_consistent().await;
}

/// A disk with an entry that was read, and whose file was closed.
async fn known() -> Disk {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    disk.assert_served("body", LARGE).await;
    disk.cache.core().open_entries.close_files();
    assert_eq!(disk.faults.count(Op::Open), 1);
    disk
}

#[tokio::test]
async fn metadata_is_read_once_however_often_a_file_is_opened() {
    let disk = known().await;
    for opens in 1..=3 {
        disk.assert_served("body", LARGE).await;
        assert_eq!(disk.faults.count(Op::OpenBody), opens);
        disk.cache.core().open_entries.close_files();
    }
    assert_eq!(disk.faults.count(Op::Open), 1);
    assert_eq!(disk.cache.stats().opens.get(), 4);
    assert_eq!(disk.cache.stats().body_opens.get(), 3);
    disk.assert_consistent().await;
}

/// A disk with a small entry that was read, and whose body is no longer in memory.
async fn known_small() -> Disk {
    let disk = Disk::new();
    disk.store("body", SMALL).await;
    disk.assert_served("body", SMALL).await;
    disk.cache.core().open_entries.drop_bodies();
    assert_eq!(disk.faults.count(Op::Open), 1);
    disk
}

#[tokio::test]
async fn metadata_is_read_once_however_often_a_small_body_is_read() {
    let disk = known_small().await;
    for reads in 1..=3 {
        disk.assert_served("body", SMALL).await;
        assert_eq!(disk.faults.count(Op::OpenBody), reads);
        disk.cache.core().open_entries.drop_bodies();
    }
    assert_eq!(disk.faults.count(Op::Open), 1);
    assert_eq!(disk.cache.stats().opens.get(), 4);
    assert_eq!(disk.cache.stats().body_opens.get(), 3);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_small_known_entry_that_cannot_be_read_is_a_miss_and_is_dropped() {
    let faults = [
        (Op::OpenBody, Fault::Errno(libc::EIO), Cause::Io),
        (Op::OpenBody, Fault::Errno(libc::ENOENT), Cause::Missing),
        (Op::OpenBody, Fault::Short, Cause::Damaged),
        (Op::Read, Fault::Errno(libc::EIO), Cause::Io),
    ];
    for (op, fault, cause) in faults {
        let disk = known_small().await;
        disk.faults.set(op, fault, 1);
        assert!(disk.lookup("body").await.is_none(), "{op:?} {fault:?}");
        assert_eq!(disk.read_errors(cause), 1, "{op:?} {fault:?}");
        assert_eq!(disk.cache.metadata_bytes(), 0, "{op:?} {fault:?}");
        disk.assert_consistent().await;
        disk.store("body", SMALL).await;
        disk.assert_served("body", SMALL).await;
    }
}

#[tokio::test]
async fn a_small_known_body_with_flipped_bits_is_a_miss() {
    let disk = known_small().await;
    let id = disk.cache.core().index.get(&key("body").combined_bin());
    let body = disk.cache.core().files(&id.unwrap().id).body();
    let mut bytes = fs::read(&body).unwrap();
    bytes[SMALL / 2] ^= 1;
    fs::write(&body, bytes).unwrap();
    assert!(disk.lookup("body").await.is_none());
    assert_eq!(disk.read_errors(Cause::Damaged), 1);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_known_entry_that_cannot_be_opened_is_a_miss_and_is_dropped() {
    let faults = [
        (Op::OpenBody, Fault::Errno(libc::EIO), Cause::Io),
        (Op::OpenBody, Fault::Errno(libc::ENOENT), Cause::Missing),
        (Op::OpenBody, Fault::Short, Cause::Damaged),
        (Op::Load, Fault::Errno(libc::EIO), Cause::Io),
    ];
    for (op, fault, cause) in faults {
        let disk = known().await;
        disk.faults.set(op, fault, 1);
        assert!(disk.lookup("body").await.is_none(), "{op:?} {fault:?}");
        assert_eq!(disk.read_errors(cause), 1, "{op:?} {fault:?}");
        assert_eq!(disk.cache.metadata_bytes(), 0, "{op:?} {fault:?}");
        disk.assert_consistent().await;
        disk.store("body", LARGE).await;
        disk.assert_served("body", LARGE).await;
    }
}

#[tokio::test]
async fn without_descriptors_a_known_entry_is_a_miss_and_stays_known() {
    let disk = known().await;
    disk.faults.set(Op::OpenBody, Fault::Errno(libc::EMFILE), 1);
    assert!(disk.lookup("body").await.is_none());
    assert_eq!(disk.read_errors(Cause::Descriptors), 1);
    disk.assert_served("body", LARGE).await;
    assert_eq!(disk.faults.count(Op::Open), 1);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn an_entry_purged_while_its_file_is_opened_is_not_known() {
    let disk = known().await;
    disk.faults.hold(Op::OpenBody);
    let mut lookup = Box::pin(disk.lookup("body"));
    assert!(futures::poll!(&mut lookup).is_pending());
    while disk.faults.count(Op::OpenBody) == 0 {
        assert!(futures::poll!(&mut lookup).is_pending());
    }
    disk.cache.purge_key(&key("body")).await.unwrap();
    disk.faults.release(Op::OpenBody);
    let hit = lookup.await;
    assert_eq!(disk.cache.metadata_bytes(), 0);
    assert_eq!(disk.cache.open_files(), 0);
    drop(hit);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_known_entry_has_the_metadata_of_its_last_revalidation() {
    let disk = known().await;
    let span = Span::inactive().handle();
    let found = || async {
        let found = disk.cache.lookup(&key("body"), &span).await.unwrap();
        let (meta, _) = found.expect("an entry");
        disk.cache.core().open_entries.close_files();
        meta
    };
    let before = found().await;
    for etag in ["\"1\"", "\"2\""] {
        let mut meta = before.clone();
        meta.response_header_mut()
            .insert_header("etag", etag)
            .unwrap();
        let updated = disk.cache.update_meta(&key("body"), &meta, &span).await;
        assert!(updated.unwrap());
        disk.cache.core().open_entries.close_files();
        assert_eq!(found().await.response_header().headers["etag"], etag);
    }
    assert_eq!(disk.faults.count(Op::Open), 1);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn metadata_replaced_while_an_entry_is_opened_is_not_kept_as_it_was() {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    let span = Span::inactive().handle();
    let found = || async {
        let found = disk.cache.lookup(&key("body"), &span).await.unwrap();
        let (meta, _) = found.expect("an entry");
        meta.response_header().headers.get("etag").cloned()
    };
    let (mut meta, _) = disk
        .cache
        .lookup(&key("body"), &span)
        .await
        .unwrap()
        .unwrap();
    let header = meta.response_header_mut();
    header.insert_header("etag", "\"1\"").unwrap();

    // It is opened once its new metadata is about to be written, and before it is.
    let written = disk.faults.count(Op::WriteMeta);
    disk.faults.hold(Op::WriteMeta);
    let renewed = key("body");
    let mut update = Box::pin(disk.cache.update_meta(&renewed, &meta, &span));
    while disk.faults.count(Op::WriteMeta) == written {
        assert!(futures::poll!(&mut update).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    disk.cache.core().open_entries.forget_all();
    let loads = disk.faults.count(Op::Load);
    disk.faults.hold(Op::Load);
    let mut lookup = Box::pin(found());
    while disk.faults.count(Op::Load) == loads {
        assert!(futures::poll!(&mut lookup).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    disk.faults.release(Op::WriteMeta);
    assert!(update.await.unwrap());
    disk.faults.release(Op::Load);
    assert_eq!(lookup.await, None, "it was read before");
    for _ in 0..2 {
        assert_eq!(found().await.expect("an entry"), "\"1\"");
        disk.cache.core().open_entries.close_files();
    }
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_hit_that_cannot_be_read_breaks_and_drops_the_entry() {
    for fault in [Fault::Errno(libc::EIO), Fault::Short] {
        let disk = Disk::new();
        disk.store("body", LARGE).await;
        let mut hit = disk.lookup("body").await.expect("an entry");
        assert!(hit.read_body().await.unwrap().is_some());
        disk.faults.set(Op::Read, fault, 1);
        assert!(hit.read_body().await.is_err(), "{fault:?}");
        assert!(!disk.has("body"), "{fault:?}");
        drop(hit);
        disk.assert_consistent().await;
        disk.store("body", LARGE).await;
        disk.assert_served("body", LARGE).await;
    }
}

#[tokio::test]
async fn a_part_that_cannot_be_loaded_breaks_and_drops_the_entry() {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    let mut hit = disk.lookup("body").await.expect("an entry");
    disk.faults.set(Op::Load, Fault::Errno(libc::EIO), 1);
    assert!(hit.read_body_part().await.is_err());
    assert!(!disk.has("body"));
    assert_eq!(disk.read_errors(Cause::Io), 1);
    drop(hit);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn metadata_that_cannot_be_replaced_stays_as_it_is() {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    let span = Span::inactive().handle();
    let (meta, _) = disk
        .cache
        .lookup(&key("body"), &span)
        .await
        .unwrap()
        .unwrap();
    let update = || async {
        let span = Span::inactive().handle();
        disk.cache.update_meta(&key("body"), &meta, &span).await
    };
    disk.faults
        .set(Op::WriteMeta, Fault::Errno(libc::ENOSPC), 1);
    assert!(!update().await.unwrap());
    assert_eq!(disk.read_errors(Cause::NoSpace), 1);
    disk.assert_served("body", LARGE).await;
    assert!(update().await.unwrap());
    disk.assert_consistent().await;
}

#[tokio::test]
async fn files_that_cannot_be_removed_keep_their_space_until_they_are() {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    let taken = disk.cache.size_bytes();
    let core = disk.cache.core();
    disk.faults.always(Op::Remove, libc::EIO);
    assert!(disk.cache.purge_key(&key("body")).await.unwrap());
    core.removals.done().await;
    assert!(core.removals.have_failed());
    assert!(disk.lookup("body").await.is_none());
    assert_eq!(core.quota.taken(&core.index), taken);
    let tries = disk.faults.count(Op::Remove);
    while disk.faults.count(Op::Remove) == tries {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    disk.faults.clear(Op::Remove);
    while core.removals.have_failed() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_discard_that_fails_is_repeated() {
    let disk = Disk::new();
    disk.faults.set(Op::Write, Fault::Errno(libc::EIO), 1);
    disk.faults.set(Op::Discard, Fault::Errno(libc::EIO), 1);
    assert!(disk.try_store("body", LARGE).await.is_err());
    disk.assert_consistent().await;
    assert!(disk.faults.count(Op::Discard) > 1);
}

#[tokio::test]
async fn the_scrubber_drops_what_cannot_be_read() {
    let faults = [
        (Op::Checksum, Fault::Errno(libc::EIO)),
        (Op::Checksum, Fault::Short),
        (Op::ReadFile, Fault::Errno(libc::EIO)),
        (Op::ReadFile, Fault::Short),
    ];
    for (op, fault) in faults {
        let disk = Disk::new();
        disk.store("body", LARGE).await;
        disk.faults.set(op, fault, 1);
        scrub(disk.cache).await;
        let stats = disk.cache.stats();
        assert_eq!(stats.scrubbed_damaged.get(), 1, "{op:?} {fault:?}");
        assert!(!disk.has("body"), "{op:?} {fault:?}");
        disk.assert_consistent().await;
        disk.store("body", LARGE).await;
        scrub(disk.cache).await;
        assert_eq!(
            (stats.scrubbed_ok.get(), stats.scrubbed_damaged.get()),
            (1, 1)
        );
    }
}

async fn scrub(cache: &'static DiskCache) {
    let pass = || scrub::pass(cache.core(), u64::MAX);
    tokio::task::spawn_blocking(pass).await.unwrap();
}

#[tokio::test]
async fn an_entry_that_cannot_be_examined_at_the_start_is_left_alone() {
    for op in [Op::List, Op::Stat] {
        let mut disk = Disk::new();
        disk.store("body", LARGE).await;
        disk.faults.set(op, Fault::Errno(libc::EIO), 256);
        disk.reopen().await;
        assert!(!disk.has("body"), "{op:?}");
        assert!(disk.cache.core().recovery.has_gaps(), "{op:?}");

        // Its ban is still needed: a restart may find it.
        assert!(disk.cache.ban_prefix("bucket", b"bo").await.is_ok());
        let newest = disk.cache.core().generations.last();
        maintenance::evict_banned(disk.cache.core(), newest).await;
        assert_eq!(disk.cache.bans(), 1, "{op:?}");

        disk.faults.clear(op);
        disk.reopen().await;
        assert!(disk.has("body"), "{op:?}");
        assert!(disk.lookup("body").await.is_none(), "it is banned");
        disk.assert_consistent().await;
    }
}

#[tokio::test]
async fn a_ban_is_in_force_though_it_cannot_be_written_and_the_next_one_writes_both() {
    let mut disk = Disk::new();
    disk.cache.ban_prefix("bucket", b"x").await.unwrap();
    disk.store("one", LARGE).await;
    disk.store("two", LARGE).await;
    // A piece of a record is left at the end of the file.
    disk.faults.set(Op::Append, Fault::Short, 1);
    disk.faults.set(Op::Replace, Fault::Errno(libc::EIO), 1);
    let e = disk.cache.ban_prefix("bucket", b"one").await.unwrap_err();
    assert!(e.to_string().contains("cannot write the ban list"), "{e}");
    assert!(disk.lookup("one").await.is_none());

    disk.cache.ban_prefix("bucket", b"two").await.unwrap();
    assert!(disk.lookup("two").await.is_none());
    disk.reopen().await;
    assert_eq!(disk.cache.bans(), 3);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn a_ban_is_kept_until_removals_are_durable() {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    disk.cache.ban_prefix("bucket", b"bo").await.unwrap();
    let newest = disk.cache.core().generations.last();
    disk.faults.set(Op::SyncFolder, Fault::Errno(libc::EIO), 1);
    maintenance::evict_banned(disk.cache.core(), newest).await;
    assert!(!disk.has("body"));
    assert_eq!(disk.cache.bans(), 1);
    maintenance::evict_banned(disk.cache.core(), newest).await;
    assert_eq!(disk.cache.bans(), 0);
    disk.assert_consistent().await;
}

#[tokio::test]
async fn slow_reads_delay_no_other_hits_and_are_bounded() {
    const READS: usize = 100;
    const MOST: usize = 64;
    let disk = Arc::new(Disk::new());
    disk.store("small", 1000).await;
    disk.assert_served("small", 1000).await;
    disk.store("cold", LARGE).await;
    let hits: Vec<_> = futures::future::join_all((0..READS).map(|_| disk.lookup("cold"))).await;
    let before = disk.faults.count(Op::Read);
    disk.faults.hold(Op::Read);
    let reads = hits.into_iter().map(|hit| {
        let mut hit = hit.expect("an entry");
        tokio::spawn(async move { hit.read_body().await.map(|bytes| bytes.unwrap().len()) })
    });
    let reads: Vec<_> = reads.collect();
    while disk.faults.count(Op::Read) < before + MOST {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..100 {
        let served = disk.assert_served("small", 1000);
        let served = timeout(Duration::from_secs(10), served).await;
        served.expect("a hit from memory waits for no disk");
    }
    assert_eq!(disk.faults.count(Op::Read), before + MOST);
    disk.faults.release(Op::Read);
    for read in reads {
        assert!(read.await.unwrap().unwrap() > 0);
    }
    disk.assert_consistent().await;
}

#[tokio::test]
async fn loads_of_one_block_are_one_read_whoever_waits() {
    let disk = Disk::new();
    disk.store("body", LARGE).await;
    let mut first = disk.lookup("body").await.expect("an entry");
    let mut second = disk.lookup("body").await.expect("an entry");
    let before = disk.faults.count(Op::Load);
    disk.faults.hold(Op::Load);
    let (a, b) = (first.read_body_part(), second.read_body_part());
    let released = async {
        while disk.faults.count(Op::Load) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        disk.faults.release(Op::Load);
    };
    let (a, b, ()) = tokio::join!(a, b, released);
    for part in [a, b] {
        match part.unwrap().unwrap() {
            BodyPart::File { offset, len, .. } => assert_eq!((offset, len), (0, LARGE as u64)),
            _ => panic!("bytes in place of a file"),
        }
    }
    assert_eq!(disk.faults.count(Op::Load), before + 1);
}

#[tokio::test]
async fn a_slow_disk_slows_the_fill_and_loses_nothing() {
    let disk = Disk::new();
    disk.faults.delay(Op::Write, Duration::from_millis(20));
    disk.faults.delay(Op::Commit, Duration::from_millis(20));
    let stores = ["a", "b", "c"].map(|name| disk.try_store(name, LARGE));
    for stored in futures::future::join_all(stores).await {
        stored.unwrap();
    }
    disk.assert_consistent().await;
    for name in ["a", "b", "c"] {
        disk.assert_served(name, LARGE).await;
    }
}

#[tokio::test]
async fn a_crash_before_the_commit_leaves_nothing_after_the_next_start() {
    let mut disk = Disk::new();
    disk.store("kept", LARGE).await;
    disk.faults.hold(Op::Commit);
    disk.try_store("lost", LARGE).await.unwrap();
    disk.cache.kill();
    disk.cache = open(disk.dir.path(), &disk.faults);
    assert!(disk.has("kept") && !disk.has("lost"));
    disk.assert_consistent().await;
    disk.assert_served("kept", LARGE).await;
    disk.faults.release(Op::Commit);
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    faults.always(Op::ReadFile, libc::EIO);
    let opened = DiskCache::open_with(
        DiskCacheConfig::new(dir.path(), LIMIT),
        move |_, runtime| {
            Ok(Box::new(FaultyBackend::new(
                runtime.clone(),
                faults.clone(),
            )))
        },
    );
    let e = opened.err().expect("an error");
    assert_ne!(e.kind(), io::ErrorKind::NotFound);
    let named = dir.path().join("bans").display().to_string();
    assert!(e.to_string().starts_with(&named), "{e}");
}
