//! Several folders: the spread of keys, purges, and folders that fail or are absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pingora_cache::key::HashBinary;
use pingora_cache::trace::Span;
use pingora_cache::{CacheKey, CacheMeta, Storage};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use tempfile::TempDir;

use crate::cache::io::faulty::{Fault, Faults, FaultyBackend, Op};
use crate::cache::io::folder_lock::FolderLock;
use crate::cache::io::patience::Patience;
use crate::cache::jobs::{maintenance, misplaced};
use crate::cache::store::entry_id::EntryId;
use crate::cache::{Cause, DiskCache, DiskCacheConfig, Eviction, FolderConfig, Resumable, NO_ROOM};

const LIMIT: u64 = 4 << 20;
const KEYS: usize = 40;

/// The time limit for a disk that hangs.
const SHORT: Duration = Duration::from_millis(100);

/// The time limit for a disk that works: none, however slow the machine is.
const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Folders that caches are opened in, one after the other.
struct Disks {
    dir: TempDir,
    faults: Vec<Faults>,
    patience: Vec<Patience>,
}

impl Disks {
    fn new(count: usize) -> Disks {
        let disks = Disks {
            dir: tempfile::tempdir().unwrap(),
            faults: (0..count).map(|_| Faults::new()).collect(),
            patience: (0..count).map(|_| Patience::default()).collect(),
        };
        (0..count).for_each(|disk| disks.patience[disk].set(NO_LIMIT));
        disks
    }

    fn path(&self, disk: usize) -> PathBuf {
        self.dir.path().join(format!("disk{disk}"))
    }

    fn config(&self, disks: &[usize]) -> DiskCacheConfig {
        let folders = disks.iter().map(|disk| FolderConfig {
            path: self.path(*disk),
            max_size_bytes: LIMIT,
        });
        DiskCacheConfig {
            scrub_bytes_per_second: 0,
            memory_bytes: 0,
            ..DiskCacheConfig::spread(folders.collect())
        }
    }

    fn open(&self, disks: &[usize]) -> &'static DiskCache {
        self.open_with(self.config(disks), disks)
    }

    fn open_with(&self, config: DiskCacheConfig, disks: &[usize]) -> &'static DiskCache {
        let cache = self.try_open(config, disks).unwrap();
        cache.wait_recovered();
        cache
    }

    fn try_open(&self, config: DiskCacheConfig, disks: &[usize]) -> io::Result<&'static DiskCache> {
        let faults: Vec<_> = disks
            .iter()
            .map(|disk| self.faults[*disk].clone())
            .collect();
        let patience = |position: usize| self.patience[disks[position]].clone();
        DiskCache::open_within(config, patience, move |position, runtime| {
            let faults = faults[position].clone();
            Ok(Box::new(FaultyBackend::new(runtime.clone(), faults)))
        })
    }

    /// Makes a disk fail in every way.
    fn break_disk(&self, disk: usize) {
        for op in ALL {
            self.faults[disk].always(op, libc::EIO);
        }
    }

    /// Leaves a disk no space for new files.
    fn fill_disk(&self, disk: usize) {
        for op in [Op::Create, Op::Append, Op::Replace] {
            self.faults[disk].always(op, libc::ENOSPC);
        }
    }

    /// Has operations of a disk hang until they are [released](Self::release). It alone has a time limit.
    fn hold(&self, disk: usize, ops: &[Op]) {
        self.patience[disk].set(SHORT);
        ops.iter().for_each(|op| self.faults[disk].hold(*op));
    }

    fn release(&self, disk: usize, ops: &[Op]) {
        self.patience[disk].set(NO_LIMIT);
        ops.iter().for_each(|op| self.faults[disk].release(*op));
    }

    fn mend_disk(&self, disk: usize) {
        for op in ALL {
            self.faults[disk].clear(op);
        }
    }
}

const ALL: [Op; 20] = [
    Op::Open,
    Op::OpenBody,
    Op::Create,
    Op::Write,
    Op::Read,
    Op::Load,
    Op::Commit,
    Op::Discard,
    Op::WriteMeta,
    Op::Record,
    Op::OpenToWrite,
    Op::Remove,
    Op::ReadFile,
    Op::Append,
    Op::Replace,
    Op::List,
    Op::Stat,
    Op::CreateFolder,
    Op::RemoveFile,
    Op::SyncFolder,
];

fn key(n: usize) -> CacheKey {
    CacheKey::new(format!("/key/{n}"), "bucket")
}

fn variant(n: usize, variance: u8) -> CacheKey {
    let mut key = key(n);
    key.set_variance_key(HashBinary::from([variance; 16]));
    key
}

async fn close(cache: &'static DiskCache) {
    let close = move || cache.close(Duration::from_secs(30));
    tokio::task::spawn_blocking(close).await.unwrap();
}

async fn store_at(cache: &'static DiskCache, key: &CacheKey, body: &str) -> Result<()> {
    try_store(cache, key, body).await?;
    cache.settle().await;
    Ok(())
}

async fn try_store(cache: &'static DiskCache, key: &CacheKey, body: &str) -> Result<()> {
    let mut header = ResponseHeader::build(200, None).unwrap();
    header.insert_header("content-length", body.len()).unwrap();
    let created = SystemTime::now();
    let meta = CacheMeta::new(created, created, 0, 0, header);
    let span = Span::inactive().handle();
    let mut miss = cache.get_miss_handler(key, &meta, &span).await?;
    miss.write_body(Bytes::from(body.to_owned()), true).await?;
    miss.finish().await?;
    Ok(())
}

async fn store(cache: &'static DiskCache, n: usize) {
    store_at(cache, &key(n), &format!("body {n}"))
        .await
        .unwrap();
}

async fn store_all(cache: &'static DiskCache) {
    for n in 0..KEYS {
        store(cache, n).await;
    }
}

/// The body that is found for a key.
async fn found_at(cache: &'static DiskCache, key: &CacheKey) -> Option<String> {
    let span = Span::inactive().handle();
    let (_, mut hit) = cache.lookup(key, &span).await.unwrap()?;
    let mut body = Vec::new();
    while let Some(bytes) = hit.read_body().await.unwrap() {
        body.extend_from_slice(&bytes);
    }
    Some(String::from_utf8(body).unwrap())
}

/// The keys that are found, each with its own body.
async fn found(cache: &'static DiskCache) -> Vec<usize> {
    let mut found = Vec::new();
    for n in 0..KEYS {
        if let Some(body) = found_at(cache, &key(n)).await {
            assert_eq!(body, format!("body {n}"));
            found.push(n);
        }
    }
    found
}

/// The position of the folder of a key.
fn folder_of(cache: &'static DiskCache, key: &CacheKey) -> usize {
    let core = cache.cores().of(key).expect("a folder");
    let all = cache.cores().all();
    let mut positions = 0..all.len();
    let is_it = |at: &usize| all[*at].is_some_and(|other| other.path == core.path);
    positions.find(is_it).expect("one of the folders")
}

/// The keys of the folder at a position.
fn keys_of(cache: &'static DiskCache, position: usize) -> Vec<usize> {
    let of = |n: &usize| folder_of(cache, &key(*n)) == position;
    (0..KEYS).filter(of).collect()
}

fn all() -> Vec<usize> {
    (0..KEYS).collect()
}

fn without(keys: &[usize]) -> Vec<usize> {
    (0..KEYS).filter(|n| !keys.contains(n)).collect()
}

/// Purges more keys than bans are kept for a folder that is absent, the last of them `n`.
async fn purge_many(cache: &'static DiskCache, n: usize) {
    for other in KEYS..KEYS + 30 {
        cache.purge_key(&key(other)).await.unwrap();
    }
    cache.purge_key(&key(n)).await.unwrap();
}

/// Has the folders forget the bans that no entry needs.
async fn forget_bans(cache: &'static DiskCache) {
    for core in cache.cores().iter() {
        maintenance::evict_banned(core, u64::MAX).await;
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => copy_folder(&file.path(), &to),
            false => fs::copy(file.path(), to).map(drop).unwrap(),
        }
    }
}

/// A folder that can take the place of the second of `disks`: a backup of it, or a folder of another cache
/// with the same keys.
async fn in_place_of_second(disks: &Disks, is_backup: bool) -> PathBuf {
    let other = disks.dir.path().join("other");
    if is_backup {
        copy_folder(&disks.path(1), &other);
        return other;
    }
    let cache = disks.open(&[2]);
    for n in 0..KEYS {
        store_at(cache, &key(n), "of another").await.unwrap();
    }
    close(cache).await;
    fs::rename(disks.path(2), &other).unwrap();
    other
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(120), wait).await;
    waited.unwrap_or_else(|_| panic!("{what}"));
}

fn is_up(cache: &DiskCache, position: usize) -> bool {
    cache.folders().nth(position).unwrap().is_up
}

/// Waits until an examination that begins later than now has found a folder up. None that had a time
/// limit is in progress then.
async fn examined_up(cache: &'static DiskCache, position: usize) {
    let health = &cache.cores().all()[position].unwrap().health;
    let examined = health.examinations();
    health.suspect(Cause::Io);
    eventually("the folder is up", || {
        health.was_up_after(examined) && health.is_up()
    })
    .await;
    usable(cache, position).await;
}

/// Waits until a folder is up and its entries are known. Until then, the space that they leave is not, and
/// nothing may be stored.
async fn usable(cache: &'static DiskCache, position: usize) {
    let core = cache.cores().all()[position].unwrap();
    eventually("the folder is usable", || {
        core.health.is_up() && core.recovery.is_complete()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_spread_and_found_again_in_any_order() {
    let disks = Disks::new(3);
    let cache = disks.open(&[0, 1, 2]);
    store_all(cache).await;
    assert_eq!(cache.entries(), KEYS);
    assert_eq!(cache.max_size_bytes(), 3 * LIMIT);
    assert_eq!(cache.max_whole_bytes(), LIMIT);
    let folders: Vec<_> = cache.folders().collect();
    for (position, folder) in folders.iter().enumerate() {
        assert_eq!(folder.path, disks.path(position));
        assert_eq!(folder.entries, keys_of(cache, position).len());
        // The paths, which determine the shares, are random.
        assert!(folder.entries > 0, "{folders:?}");
        assert!(folder.is_up && folder.size_bytes > 0);
    }
    assert_eq!(
        cache.size_bytes(),
        folders.iter().map(|f| f.size_bytes).sum::<u64>()
    );
    close(cache).await;

    let cache = disks.open(&[2, 0, 1]);
    assert_eq!(found(cache).await, all());
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_folder_takes_its_share_and_others_keep_theirs() {
    let disks = Disks::new(3);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    close(cache).await;

    let cache = disks.open(&[0, 1, 2]);
    let moved = keys_of(cache, 2);
    assert!(!moved.is_empty());
    assert_eq!(found(cache).await, without(&moved));
    // Their copies elsewhere are not used, and are removed.
    eventually(
        "no entry is left in a folder that it does not belong to",
        || cache.entries() == KEYS - moved.len(),
    )
    .await;
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn variants_are_in_the_folder_of_their_key_and_are_purged_with_it() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    for n in 0..10 {
        store(cache, n).await;
        for variance in [1, 2] {
            let key = variant(n, variance);
            assert_eq!(
                folder_of(cache, &key),
                folder_of(cache, &super::folders::key(n))
            );
            store_at(cache, &key, "a variant").await.unwrap();
        }
    }
    assert!(cache.purge_key(&key(3)).await.unwrap());
    for n in 0..10 {
        for key in [key(n), variant(n, 1), variant(n, 2)] {
            assert_eq!(found_at(cache, &key).await.is_some(), n != 3);
        }
    }
    // Nothing of them is mistaken for an entry of another folder.
    close(cache).await;
    let cache = disks.open(&[0, 1]);
    let evict = || {
        let cores = cache.cores();
        cores.iter().for_each(|core| misplaced::evict(cores, core));
    };
    tokio::task::spawn_blocking(evict).await.unwrap();
    for n in 0..10 {
        for key in [key(n), variant(n, 1), variant(n, 2)] {
            assert_eq!(found_at(cache, &key).await.is_some(), n != 3);
        }
    }
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_reaches_all_folders_and_survives_a_crash() {
    let disks = Disks::new(3);
    let cache = disks.open(&[0, 1, 2]);
    store_all(cache).await;
    cache.ban_prefix("bucket", b"/key/1").await.unwrap();
    let left: Vec<_> = (0..KEYS)
        .filter(|n| !n.to_string().starts_with('1'))
        .collect();
    assert_eq!(found(cache).await, left);
    cache.kill();

    let cache = disks.open(&[0, 1, 2]);
    assert_eq!(found(cache).await, left);
    for n in [1, 10, 11] {
        store(cache, n).await;
    }
    assert_eq!(found(cache).await.len(), left.len() + 3);
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_in_mid_fill_is_banned_in_every_folder() {
    for at_once in [false, true] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        for position in [0, 1] {
            let key = key(keys_of(cache, position)[0]);
            let mut header = ResponseHeader::build(200, None).unwrap();
            header.insert_header("content-length", 1_000).unwrap();
            let created = SystemTime::now();
            let mut meta = CacheMeta::new(created, created, 0, 0, header);
            // Its checkpoints would survive a crash.
            meta.extensions_mut().insert(Resumable);
            let span = Span::inactive().handle();
            let fill = cache.get_miss_handler(&key, &meta, &span).await.unwrap();
            match at_once {
                true => cache.invalidate_nowait(&key),
                false => cache.invalidate(&key).await.unwrap(),
            }
            eventually("every folder has the ban", || {
                let mut cores = cache.cores().iter();
                cores.all(|core| core.bans.len() == position + 1)
            })
            .await;
            drop(fill);
        }
        cache.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_fails_costs_its_entries_until_it_works_again() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let lost = keys_of(cache, 1);
    cache.core().open_entries.forget_all();

    disks.break_disk(1);
    assert!(found_at(cache, &key(lost[0])).await.is_none());
    eventually("the folder is down", || !is_up(cache, 1)).await;
    let dropped = cache.stats().evictions(Eviction::Damaged).get();
    assert_eq!(dropped, 0);
    // Its entries are misses that are not stored; the others stay hits.
    assert_eq!(found(cache).await, without(&lost));
    for n in &lost {
        assert!(cache.admission().observe(&key(*n)).is_deferred());
        let refused = store_at(cache, &key(*n), "new").await.unwrap_err();
        assert_eq!(*refused.etype(), NO_ROOM);
    }
    assert!(is_up(cache, 0));
    let kept = keys_of(cache, 0)[0];
    assert!(!cache.admission().observe(&key(kept)).is_deferred());
    store(cache, kept).await;

    disks.mend_disk(1);
    usable(cache, 1).await;
    let found = found(cache).await;
    assert_eq!(found.len() as u64, KEYS as u64 - dropped);
    for n in lost {
        store(cache, n).await;
    }
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_is_dropped_once_its_folder_is_found_to_work() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let unreadable = key(keys_of(cache, 1)[0]);
    cache.core().open_entries.forget_all();
    for op in [Op::Open, Op::OpenBody, Op::Load, Op::Read] {
        disks.faults[1].always(op, libc::EIO);
    }
    let dropped = || cache.stats().evictions(Eviction::Damaged).get();
    assert!(found_at(cache, &unreadable).await.is_none());
    assert_eq!(dropped(), 0);
    let core = cache.cores().of(&unreadable).unwrap();
    eventually("the folder is examined", || core.health.was_up_after(0)).await;
    while dropped() == 0 {
        assert!(found_at(cache, &unreadable).await.is_none());
    }
    assert!(is_up(cache, 1));
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_is_read() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let faults = &disks.faults[1];
    for op in [Op::Create, Op::Append, Op::Replace, Op::WriteMeta] {
        faults.always(op, libc::EROFS);
    }
    let n = keys_of(cache, 1)[0];
    store_at(cache, &key(n), "new").await.unwrap_err();
    eventually("the folder is not up", || !is_up(cache, 1)).await;
    cache.core().open_entries.forget_all();
    assert_eq!(found(cache).await, all());
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_no_fault() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    let n = keys_of(cache, 1)[0];
    disks.fill_disk(1);
    store_at(cache, &key(n), "new").await.unwrap_err();
    // The second examination begins when the result of the first is noted.
    for _ in 0..2 {
        let before = disks.faults[1].count(Op::Replace);
        let core = cache.cores().of(&key(n)).unwrap();
        core.health.suspect(Cause::Io);
        eventually("the folder is examined", || {
            disks.faults[1].count(Op::Replace) > before
        })
        .await;
    }
    assert!(is_up(cache, 1));
    // A purge is durable on the other disk.
    cache.purge_key(&key(n)).await.unwrap();
    assert!(is_up(cache, 1));
    disks.fill_disk(0);
    cache.purge_key(&key(n)).await.unwrap_err();
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stays_full_costs_neither_hits_nor_purges() {
    for full in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let of_full = keys_of(cache, full);
        disks.fill_disk(full);
        cache.purge_key(&key(of_full[0])).await.unwrap();
        assert!(is_up(cache, full));
        cache.kill();

        // The lists of bans differ, and that of the full disk cannot be written.
        let cache = disks.open(&[0, 1]);
        assert!(is_up(cache, full));
        assert_eq!(found(cache).await, without(&of_full[..1]));
        cache.purge_key(&key(of_full[1])).await.unwrap();
        assert_eq!(found(cache).await, without(&of_full[..2]));
        // The other folder keeps the bans that this one could not write.
        forget_bans(cache).await;
        assert_eq!(cache.bans(), 2);
        cache.kill();

        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, without(&of_full[..2]));
        disks.faults[full].clear(Op::Replace);
        let core = cache.cores().all()[full].unwrap();
        eventually("the bans are written", || core.health.is_current()).await;
        cache.kill();
        // Alone, from its own list.
        disks.break_disk(1 - full);
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, of_full[2..]);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_for_too_many_purges_loses_its_entries_in_a_crash() {
    for full in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let (kept, of_full) = (keys_of(cache, 1 - full), keys_of(cache, full));
        disks.fill_disk(full);
        purge_many(cache, of_full[0]).await;
        let other = cache.cores().all()[1 - full].unwrap();
        maintenance::evict_banned(other, u64::MAX).await;
        assert!(other.bans.is_empty());
        assert_eq!(found(cache).await, without(&of_full[..1]));
        cache.kill();
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, kept);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_works_again_on_a_full_disk_lacks_bans() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let lost = keys_of(cache, 1);
    disks.break_disk(1);
    cache.purge_key(&key(lost[0])).await.unwrap();
    assert!(!is_up(cache, 1));
    disks.mend_disk(1);
    disks.fill_disk(1);
    eventually("the folder is up", || is_up(cache, 1)).await;
    assert_eq!(found(cache).await, without(&lost[..1]));
    forget_bans(cache).await;
    cache.kill();
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, without(&lost[..1]));
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_a_folder_that_failed_meanwhile() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let lost = keys_of(cache, 1);
    disks.break_disk(1);
    // The purge itself finds out.
    cache.purge_key(&key(lost[0])).await.unwrap();
    assert!(!is_up(cache, 1));
    cache.invalidate(&key(lost[1])).await.unwrap();
    cache.invalidate_nowait(&key(lost[2]));
    cache.settle().await;
    eventually("all three are banned", || cache.bans() == 3).await;
    cache.kill();

    // The list of the first folder has them.
    disks.mend_disk(1);
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, without(&lost[..3]));
    cache.kill();
    // By now, so has that of the second.
    disks.break_disk(0);
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, lost[3..]);
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_works_again_has_the_bans_before_it_is_used() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let lost = keys_of(cache, 1);
    disks.break_disk(1);
    cache.purge_key(&key(lost[0])).await.unwrap();
    disks.mend_disk(1);
    eventually("the folder is up", || is_up(cache, 1)).await;
    cache.kill();
    // Alone, from its own list.
    disks.break_disk(0);
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, lost[1..]);
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_hangs_holds_up_no_purge() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let (kept, lost) = (keys_of(cache, 0), keys_of(cache, 1));
    assert_eq!(found(cache).await, all(), "all files are open");
    disks.hold(1, &[Op::Append, Op::Replace]);
    for key in [kept[0], lost[0], lost[1]].map(key) {
        assert!(cache.purge_key(&key).await.unwrap());
        assert!(found_at(cache, &key).await.is_none());
    }
    assert!(is_up(cache, 0) && !is_up(cache, 1));
    assert_eq!(found(cache).await.len(), KEYS - 3);
    disks.release(1, &[Op::Append, Op::Replace]);
    examined_up(cache, 1).await;
    cache.kill();
    // Alone, from its own list.
    disks.break_disk(0);
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, lost[2..]);
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_hangs_holds_up_no_start_and_no_end() {
    // The folder hangs as it is prepared, as the run begins in it, or as it is listed.
    for (op, is_absent) in [(Op::ReadFile, true), (Op::Replace, true), (Op::List, false)] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let kept = keys_of(cache, 0);
        close(cache).await;
        match is_absent {
            true => disks.hold(1, &[op]),
            // It is opened, so it needs its time.
            false => disks.faults[1].hold(op),
        }
        let open = || disks.try_open(disks.config(&[0, 1]), &[0, 1]);
        let cache = tokio::task::block_in_place(open).unwrap();
        cache.core().recovery.wait();
        assert!(is_up(cache, 0));
        assert_eq!(is_up(cache, 1), !is_absent, "{op:?}");
        assert_eq!(found(cache).await, kept);
        store(cache, kept[0]).await;
        cache.purge_key(&key(kept[1])).await.unwrap();
        close(cache).await;

        disks.release(1, &[op]);
        // A start that was given up has the lock until it notices.
        let reopened = || tokio::task::block_in_place(open).ok();
        let mut cache = reopened();
        while cache.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            cache = reopened();
        }
        let cache = cache.unwrap();
        cache.wait_recovered();
        assert_eq!(found(cache).await, without(&kept[1..2]));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_hangs_holds_up_no_takeover() {
    for op in [Op::ReadFile, Op::Replace, Op::List] {
        let disks = Disks::new(2);
        let first = disks.open(&[0, 1]);
        store_all(first).await;
        let (kept, lost) = (keys_of(first, 0), keys_of(first, 1));
        let config = DiskCacheConfig {
            successor: true,
            ..disks.config(&[0, 1])
        };
        let second = match op {
            Op::List => {
                disks.faults[1].hold(op);
                disks.try_open(config, &[0, 1]).unwrap()
            }
            _ => {
                let second = disks.open_with(config, &[0, 1]);
                disks.patience[1].set(SHORT);
                // An attempt that has begun before has no limit.
                let attempts = disks.faults[0].count(Op::ReadFile);
                eventually("the next attempt to take over begins", || {
                    disks.faults[0].count(Op::ReadFile) > attempts + 1
                })
                .await;
                disks.hold(1, &[op]);
                second
            }
        };
        close(first).await;
        let taken = second.core();
        eventually("the other folder is taken over", || {
            taken.is_writable() && taken.recovery.is_complete()
        })
        .await;
        let found_now = found(second).await;
        assert!(kept.iter().all(|n| found_now.contains(n)), "{op:?}");
        store(second, kept[0]).await;
        second.purge_key(&key(lost[0])).await.unwrap();
        assert!(!found(second).await.contains(&lost[0]));
        close(second).await;
        disks.release(1, &[op]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_process_does_not_release_holds_up_no_takeover() {
    let disks = Disks::new(2);
    let first = disks.open(&[0, 1]);
    store_all(first).await;
    let (kept, lost) = (keys_of(first, 0), keys_of(first, 1));
    let config = DiskCacheConfig {
        successor: true,
        ..disks.config(&[0, 1])
    };
    let second = disks.open_with(config, &[0, 1]);
    // An examination that hangs keeps the lock.
    disks.hold(1, &[Op::Replace]);
    first.cores().all()[1].unwrap().health.suspect(Cause::Io);
    eventually("the folder is down", || !is_up(first, 1)).await;
    close(first).await;
    eventually("the other folder is taken over", || {
        second.core().is_writable()
    })
    .await;
    assert_eq!(found(second).await, kept);
    second.purge_key(&key(lost[0])).await.unwrap();
    close(second).await;
    disks.release(1, &[Op::Replace]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_hangs_holds_up_no_other_that_renews_its_lock_or_forgets_bans() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let kept = keys_of(cache, 0);
    cache.purge_key(&key(kept[0])).await.unwrap();
    let [core, hanging] = [0, 1].map(|at| cache.cores().all()[at].unwrap());
    disks.hold(1, &[Op::Replace]);
    maintenance::evict_banned(core, u64::MAX).await;
    eventually("the folder is down", || hanging.health.is_down()).await;
    assert_eq!(core.bans.len(), 1);

    let epoch = || fs::read_to_string(disks.path(0).join("epoch")).unwrap();
    let before = epoch();
    fs::remove_file(disks.path(0).join("lock")).unwrap();
    eventually("the folder has a new epoch", || epoch() != before).await;
    usable(cache, 0).await;
    store(cache, kept[0]).await;
    disks.release(1, &[Op::Replace]);
    examined_up(cache, 1).await;
    cache.kill();
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, all());
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_a_folder_that_hangs_are_misses_that_are_not_stored() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let (kept, lost) = (keys_of(cache, 0), keys_of(cache, 1));
    cache.core().open_entries.forget_all();
    disks.hold(1, &ALL);
    assert!(found_at(cache, &key(lost[0])).await.is_none());
    eventually("the folder is down", || !is_up(cache, 1)).await;
    assert_eq!(found(cache).await, kept);
    let refused = store_at(cache, &key(lost[0]), "new").await.unwrap_err();
    assert_eq!(*refused.etype(), NO_ROOM);
    disks.release(1, &ALL);
    examined_up(cache, 1).await;
    assert_eq!(found(cache).await, all());
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_on_a_disk_that_hangs_is_given_up() {
    for op in [Op::Create, Op::Write] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        let n = keys_of(cache, 1)[0];
        disks.hold(1, &[op]);
        assert!(try_store(cache, &key(n), "new").await.is_err(), "{op:?}");
        assert!(found_at(cache, &key(n)).await.is_none());
        disks.release(1, &[op]);
        cache.settle().await;
        examined_up(cache, 1).await;
        store(cache, n).await;
        assert!(found_at(cache, &key(n)).await.is_some());
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_gone_for_a_while_does_not_bring_back_what_was_purged() {
    for (gone, forget) in [(0, false), (1, false), (1, true)] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let lost = keys_of(cache, gone);
        let elsewhere = disks.dir.path().join("elsewhere");
        fs::rename(disks.path(gone), &elsewhere).unwrap();
        // The purge itself finds out.
        cache.purge_key(&key(lost[0])).await.unwrap();
        assert!(!is_up(cache, gone));
        purge_many(cache, lost[1]).await;
        forget_bans(cache).await;

        fs::rename(&elsewhere, disks.path(gone)).unwrap();
        eventually("the folder is up", || is_up(cache, gone)).await;
        if forget {
            let core = cache.cores().all()[gone].unwrap();
            eventually("its files are removed", || {
                core.recovery.is_complete() && !core.removals.have_failed()
            })
            .await;
            assert_eq!(found(cache).await, without(&lost[..2]));
            forget_bans(cache).await;
            assert_eq!(cache.bans(), 0);
        }
        cache.kill();
        // Alone, from its own list.
        disks.break_disk(1 - gone);
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, lost[2..]);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_absent_at_the_start_leaves_the_others_their_keys() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let (kept, lost) = (keys_of(cache, 0), keys_of(cache, 1));
    close(cache).await;

    disks.break_disk(1);
    let cache = disks.open(&[0, 1]);
    let up: Vec<_> = cache.folders().map(|folder| folder.is_up).collect();
    assert_eq!(up, [true, false]);
    assert_eq!(found(cache).await, kept);
    let refused = store_at(cache, &key(lost[0]), "new").await.unwrap_err();
    assert_eq!(*refused.etype(), NO_ROOM);
    assert!(cache.admission().observe(&key(lost[0])).is_deferred());
    assert!(!cache.may_have(&key(lost[0])) && !cache.is_new(&key(lost[0])));
    // These reach it when it is back.
    assert!(!cache.purge_key(&key(lost[0])).await.unwrap());
    cache.invalidate(&key(lost[1])).await.unwrap();
    cache.ban_prefix("bucket", b"/key/1").await.unwrap();
    let banned = |n: &usize| n.to_string().starts_with('1') || lost[..2].contains(n);
    // Bans are kept for it, although no entry here needs them.
    maintenance::evict_banned(cache.core(), u64::MAX).await;
    assert_eq!(cache.bans(), 3);
    cache.kill();

    disks.mend_disk(1);
    let cache = disks.open(&[0, 1]);
    let expected: Vec<_> = (0..KEYS).filter(|n| !banned(n)).collect();
    assert_eq!(found(cache).await, expected);
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_whose_epoch_is_the_last_one_is_absent() {
    for broken in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let kept = keys_of(cache, 1 - broken);
        close(cache).await;
        let last = format!("{0} {0}\n", u32::MAX);
        fs::write(disks.path(broken).join("epoch"), last).unwrap();
        let cache = disks.open(&[0, 1]);
        assert!(!is_up(cache, broken));
        assert_eq!(found(cache).await, kept);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_folder_there_is_no_cache() {
    let disks = Disks::new(2);
    disks.break_disk(0);
    disks.break_disk(1);
    let opened = disks.try_open(disks.config(&[0, 1]), &[0, 1]);
    let e = opened.map(drop).unwrap_err();
    assert!(e.to_string().contains("disk0"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_misses_forgotten_bans_loses_its_entries() {
    for stale in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let (kept, lost) = (keys_of(cache, 1 - stale), keys_of(cache, stale));
        close(cache).await;

        disks.break_disk(stale);
        let cache = disks.open(&[0, 1]);
        purge_many(cache, lost[0]).await;
        forget_bans(cache).await;
        assert_eq!(cache.bans(), 0);
        cache.kill();

        disks.mend_disk(stale);
        for _ in 0..2 {
            let cache = disks.open(&[0, 1]);
            assert_eq!(found(cache).await, kept);
            cache.kill();
        }
        assert!(files_of(&disks, stale).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_miss_forgotten_bans_do_not_outnumber_the_others() {
    for live in [0, 1, 2] {
        let disks = Disks::new(3);
        let cache = disks.open(&[0, 1, 2]);
        store_all(cache).await;
        let kept = keys_of(cache, live);
        close(cache).await;

        let stale = [0, 1, 2].into_iter().filter(|disk| *disk != live);
        stale.clone().for_each(|disk| disks.break_disk(disk));
        let cache = disks.open(&[0, 1, 2]);
        purge_many(cache, without(&kept)[0]).await;
        forget_bans(cache).await;
        assert_eq!(cache.bans(), 0);
        cache.kill();

        stale.for_each(|disk| disks.mend_disk(disk));
        let cache = disks.open(&[0, 1, 2]);
        assert_eq!(found(cache).await, kept);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_does_not_bring_back_a_folder_that_was_struck_off() {
    for stale in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let (kept, lost) = (keys_of(cache, 1 - stale), keys_of(cache, stale));
        disks.break_disk(stale);
        purge_many(cache, lost[0]).await;
        let live = cache.cores().all()[1 - stale].unwrap();
        maintenance::evict_banned(live, u64::MAX).await;
        assert!(live.bans.is_empty());
        cache.kill();

        disks.mend_disk(stale);
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, kept);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_struck_off_and_works_again_is_listed_again() {
    for failing in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let lost = keys_of(cache, failing);
        disks.break_disk(failing);
        purge_many(cache, lost[0]).await;
        let live = cache.cores().all()[1 - failing].unwrap();
        maintenance::evict_banned(live, u64::MAX).await;
        disks.mend_disk(failing);
        eventually("the folder is up", || is_up(cache, failing)).await;
        cache.kill();
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, without(&lost[..1]));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_files_of_a_start_costs_nothing() {
    for written in [0, 1] {
        for epoch_alone in [false, true] {
            let disks = Disks::new(2);
            let cache = disks.open(&[0, 1]);
            store_all(cache).await;
            close(cache).await;
            let names: &[&str] = match epoch_alone {
                true => &["epoch"],
                false => &["members", "epoch"],
            };
            let files = names.iter().map(|name| disks.path(1 - written).join(name));
            let before: Vec<_> = files.map(|file| (fs::read(&file).unwrap(), file)).collect();
            for _ in 0..2 {
                disks.open(&[0, 1]).kill();
                for (content, file) in &before {
                    fs::write(file, content).unwrap();
                }
            }
            let cache = disks.open(&[0, 1]);
            assert_eq!(found(cache).await, all());
            close(cache).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_an_older_version_has_used_alone_is_found_out() {
    for used in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let (kept, purged) = (keys_of(cache, used), keys_of(cache, 1 - used)[0]);
        close(cache).await;
        // The older version leaves the list as it is.
        let list = disks.path(used).join("members");
        let before = fs::read(&list).unwrap();
        let cache = disks.open(&[used]);
        cache.purge_key(&key(purged)).await.unwrap();
        forget_bans(cache).await;
        close(cache).await;
        fs::write(list, before).unwrap();

        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, kept);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_folder_does_not_bring_back_what_was_purged() {
    for stale in [0, 1] {
        for restarts in [0, 1] {
            let disks = Disks::new(2);
            let cache = disks.open(&[0, 1]);
            store_all(cache).await;
            let (kept, lost) = (keys_of(cache, 1 - stale), keys_of(cache, stale));
            close(cache).await;
            let backup = disks.dir.path().join("backup");
            copy_folder(&disks.path(stale), &backup);

            let cache = disks.open(&[0, 1]);
            cache.purge_key(&key(lost[0])).await.unwrap();
            forget_bans(cache).await;
            assert_eq!(cache.bans(), 0);
            close(cache).await;
            for _ in 0..restarts {
                close(disks.open(&[0, 1])).await;
            }
            fs::remove_dir_all(disks.path(stale)).unwrap();
            fs::rename(&backup, disks.path(stale)).unwrap();
            let cache = disks.open(&[0, 1]);
            assert_eq!(found(cache).await, kept);
            close(cache).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_taken_out_of_the_configuration_comes_back_empty() {
    for kept in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        close(cache).await;
        // Nothing is stored for the key here, so nothing is written.
        let cache = disks.open(&[kept]);
        store_all(cache).await;
        close(cache).await;

        let cache = disks.open(&[0, 1]);
        let moved = keys_of(cache, 1 - kept);
        assert_eq!(found(cache).await, without(&moved));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_former_caches_the_one_used_in_more_runs_keeps_its_entries() {
    for (first, second, keeps) in [(1, 3, 1), (3, 1, 0), (2, 2, 0)] {
        let disks = Disks::new(2);
        let runs = [vec![0; first], vec![1; second]].concat();
        for disk in runs {
            let cache = disks.open(&[disk]);
            store_all(cache).await;
            cache.ban_prefix("bucket", b"/other").await.unwrap();
            if disk == keeps {
                cache.ban_prefix("bucket", b"/key").await.unwrap();
                store_all(cache).await;
            }
            close(cache).await;
        }
        let cache = disks.open(&[0, 1]);
        let kept = keys_of(cache, keeps);
        assert_eq!(found(cache).await, kept);
        for n in 0..KEYS {
            store(cache, n).await;
        }
        close(cache).await;
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, all());
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_went_separate_ways_do_not_bring_back_what_was_purged() {
    for stale in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let of_other = keys_of(cache, 1 - stale);
        close(cache).await;
        // The other folder alone stores all keys, in later epochs than the purge in this one.
        for _ in 0..3 {
            let cache = disks.open(&[1 - stale]);
            store_all(cache).await;
            close(cache).await;
        }
        let cache = disks.open(&[stale]);
        cache.purge_key(&key(of_other[0])).await.unwrap();
        close(cache).await;

        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, of_other[1..]);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_disk_takes_the_keys_of_the_one_before() {
    for replaced in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let lost = keys_of(cache, replaced);
        close(cache).await;
        let old = disks.dir.path().join("old");
        fs::rename(disks.path(replaced), &old).unwrap();

        let cache = disks.open(&[0, 1]);
        assert_eq!(keys_of(cache, replaced), lost);
        assert_eq!(found(cache).await, without(&lost));
        cache.purge_key(&key(lost[0])).await.unwrap();
        store(cache, lost[1]).await;
        close(cache).await;

        // The old disk is no part of the cache any more.
        fs::remove_dir_all(disks.path(replaced)).unwrap();
        fs::rename(&old, disks.path(replaced)).unwrap();
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, without(&lost));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_folder_is_not_used_beside_it() {
    for copy in [0, 1, 2] {
        let disks = Disks::new(3);
        let cache = disks.open(&[0, 1, 2]);
        store_all(cache).await;
        let lost = keys_of(cache, copy);
        close(cache).await;
        let original = (copy + 1) % 3;
        fs::copy(
            disks.path(original).join("members"),
            disks.path(copy).join("members"),
        )
        .unwrap();
        let cache = disks.open(&[0, 1, 2]);
        assert_eq!(found(cache).await, without(&lost));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_list_costs_the_entries_of_its_folder_only() {
    for damaged in [0, 1, 2] {
        let disks = Disks::new(3);
        let cache = disks.open(&[0, 1, 2]);
        store_all(cache).await;
        let lost = keys_of(cache, damaged);
        close(cache).await;
        fs::write(disks.path(damaged).join("members"), "damaged").unwrap();
        let cache = disks.open(&[0, 1, 2]);
        assert_eq!(found(cache).await, without(&lost));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_folder_has_no_list() {
    let disks = Disks::new(1);
    let cache = disks.open(&[0]);
    store_all(cache).await;
    close(cache).await;
    assert!(!disks.path(0).join("members").exists());
    let cache = disks.open(&[0]);
    assert_eq!(found(cache).await, all());
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_folder_keeps_its_own_limit() {
    let disks = Disks::new(2);
    let mut config = disks.config(&[0, 1]);
    config.folders[0].max_size_bytes = 100_000;
    config.folders[1].max_size_bytes = 300_000;
    let cache = disks.open_with(config, &[0, 1]);
    for n in 0..120 {
        let body = "x".repeat(8_000);
        store_at(cache, &key(n), &body).await.unwrap();
    }
    let sizes: Vec<_> = cache.folders().map(|folder| folder.size_bytes).collect();
    assert!(sizes[0] <= 100_000 && sizes[1] <= 300_000, "{sizes:?}");
    assert!(sizes[0] > 70_000 && sizes[1] > 250_000, "{sizes:?}");
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_shares_all_folders_and_takes_them_over() {
    let disks = Disks::new(3);
    let first = disks.open(&[0, 1]);
    store_all(first).await;
    // The new process has one more folder.
    let config = DiskCacheConfig {
        successor: true,
        ..disks.config(&[0, 1, 2])
    };
    let second = disks.open_with(config, &[0, 1, 2]);
    assert!(!second.is_writable());
    let moved = keys_of(second, 2);
    let left = without(&moved);
    assert_eq!(found(second).await, left);
    assert!(second.purge_key(&key(left[0])).await.is_err());
    assert!(second.admission().observe(&key(left[0])).is_deferred());
    first.purge_key(&key(left[0])).await.unwrap();
    close(first).await;
    eventually("the folders are taken over", || second.is_writable()).await;
    assert_eq!(found(second).await, left[1..]);
    usable(second, 2).await;
    for n in &moved {
        store(second, *n).await;
    }
    close(second).await;

    let third = disks.open(&[0, 1, 2]);
    let mut expected = all();
    expected.retain(|n| *n != left[0]);
    assert_eq!(found(third).await, expected);
    close(third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_gives_up_what_missed_bans_of_its_predecessor() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let (kept, lost) = (keys_of(cache, 0), keys_of(cache, 1));
    close(cache).await;

    disks.break_disk(1);
    let first = disks.open(&[0, 1]);
    disks.mend_disk(1);
    let config = DiskCacheConfig {
        successor: true,
        ..disks.config(&[0, 1])
    };
    let second = disks.open_with(config, &[0, 1]);
    assert_eq!(second.entries(), KEYS);
    for n in 0..30 {
        first.purge_key(&key(KEYS + n)).await.unwrap();
    }
    first.purge_key(&key(lost[0])).await.unwrap();
    maintenance::evict_banned(first.core(), u64::MAX).await;
    assert_eq!(first.bans(), 0);
    close(first).await;
    eventually("the folders are taken over", || second.is_writable()).await;
    assert_eq!(second.entries(), kept.len());
    assert_eq!(found(second).await, kept);
    close(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_taken_over_is_absent() {
    for failing in [0, 1] {
        let disks = Disks::new(2);
        let first = disks.open(&[0, 1]);
        store_all(first).await;
        let (kept, lost) = (keys_of(first, 1 - failing), keys_of(first, failing));
        let config = DiskCacheConfig {
            successor: true,
            ..disks.config(&[0, 1])
        };
        let second = disks.open_with(config, &[0, 1]);
        assert_eq!(found(second).await, all());
        disks.faults[failing].always(Op::Replace, libc::EIO);
        close(first).await;
        let taken = second.cores().all()[1 - failing].unwrap();
        eventually("the other folder is taken over", || taken.is_writable()).await;
        assert!(!is_up(second, failing));
        assert_eq!(found(second).await, kept);
        second.purge_key(&key(lost[0])).await.unwrap();
        forget_bans(second).await;
        second.kill();

        disks.mend_disk(failing);
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, without(&lost[..1]));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_process_has_taken_is_absent_until_it_lets_go() {
    for taken in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let lost = keys_of(cache, taken);
        fs::remove_file(disks.path(taken).join("lock")).unwrap();
        let other = FolderLock::take(&disks.path(taken)).unwrap();
        match other.is_held() {
            true => eventually("the folder is down", || !is_up(cache, taken)).await,
            // The cache was faster.
            false => continue,
        }
        assert_eq!(found(cache).await, without(&lost));
        cache.purge_key(&key(lost[0])).await.unwrap();
        other.close();
        eventually("the folder is up", || is_up(cache, taken)).await;
        assert_eq!(found(cache).await, without(&lost[..1]));
        cache.kill();
        // Alone, from its own list.
        disks.break_disk(1 - taken);
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, lost[1..]);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_the_place_of_another_is_not_used() {
    // A folder of another cache, and a backup of the folder itself.
    for is_backup in [false, true] {
        let disks = Disks::new(3);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let lost = keys_of(cache, 1);
        close(cache).await;
        let other = in_place_of_second(&disks, is_backup).await;
        let cache = disks.open(&[0, 1]);
        cache.purge_key(&key(lost[0])).await.unwrap();
        assert_eq!(found(cache).await, without(&lost[..1]));
        let core = cache.cores().all()[1].unwrap();
        let away = disks.dir.path().join("away");
        fs::rename(disks.path(1), &away).unwrap();
        fs::rename(&other, disks.path(1)).unwrap();
        let before = files_of(&disks, 1);
        // Until the lock is checked, its entries are hits if their files are open.
        let is_open = |id: &EntryId| {
            let entries = &core.open_entries;
            entries.get(id).is_some() || entries.file(id).is_some()
        };
        let parts = 0..core.index.parts();
        let ids: Vec<_> = parts.flat_map(|part| core.index.part(part)).collect();
        eventually("the folder is down, and no file of it is open", || {
            core.health.is_down() && !ids.iter().any(is_open)
        })
        .await;
        assert_eq!(found(cache).await, without(&lost));
        store_at(cache, &key(lost[1]), "new").await.unwrap_err();
        // It stays so, and nothing changes there.
        let examined = core.health.examinations();
        eventually("the folder is examined", || {
            core.health.examinations() > examined + 2
        })
        .await;
        assert!(!is_up(cache, 1));
        assert_eq!(files_of(&disks, 1), before);
        cache.purge_key(&key(lost[1])).await.unwrap();

        fs::rename(disks.path(1), &other).unwrap();
        fs::rename(&away, disks.path(1)).unwrap();
        eventually("the folder is up", || is_up(cache, 1)).await;
        eventually("its entries are known", || core.recovery.is_complete()).await;
        assert_eq!(found(cache).await, without(&lost[..2]));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_examination_of_a_folder_in_the_place_of_another_writes_nothing() {
    for is_backup in [false, true] {
        let disks = Disks::new(3);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let lost = keys_of(cache, 1);
        close(cache).await;
        let other = in_place_of_second(&disks, is_backup).await;
        let files = ["bans", "members", "epoch"].map(|name| disks.path(1).join(name));
        let contents = || files.clone().map(|file| fs::read(file).ok());
        let cache = disks.open(&[0, 1]);
        cache.purge_key(&key(lost[0])).await.unwrap();
        let core = cache.cores().all()[1].unwrap();
        let away = disks.dir.path().join("away");
        // The folder is examined all the time while it is down.
        fs::rename(disks.path(1), &away).unwrap();
        core.health.suspect(Cause::Missing);
        eventually("the folder is down", || core.health.is_down()).await;
        fs::rename(&other, disks.path(1)).unwrap();
        let before = contents();
        let examined = core.health.examinations();
        eventually("the folder is examined", || {
            core.health.examinations() > examined + 2
        })
        .await;
        eventually("its lock is checked", || !core.is_writable()).await;
        assert!(!is_up(cache, 1));
        assert_eq!(contents(), before);

        fs::rename(disks.path(1), &other).unwrap();
        fs::rename(&away, disks.path(1)).unwrap();
        eventually("the folder is up", || is_up(cache, 1)).await;
        eventually("its entries are known", || core.recovery.is_complete()).await;
        assert_eq!(found(cache).await, without(&lost[..1]));
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_emptied_is_used_again() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let lost = keys_of(cache, 1);
    fs::remove_dir_all(disks.path(1)).unwrap();
    fs::create_dir(disks.path(1)).unwrap();
    eventually("it has a list", || disks.path(1).join("members").exists()).await;
    examined_up(cache, 1).await;
    for n in &lost {
        store(cache, *n).await;
    }
    close(cache).await;
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, all());
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_is_an_error() {
    let disks = Disks::new(2);
    let first = disks.open(&[1]);
    let opened = DiskCache::open(disks.config(&[0, 1]));
    let e = opened.map(drop).unwrap_err();
    let said = format!(
        "{}: another process uses this cache folder; stop it, or give each its own cache.disk.paths",
        disks.path(1).display()
    );
    assert_eq!(e.to_string(), said);
    // A single folder has another key.
    let opened = DiskCache::open(disks.config(&[1]));
    let e = opened.map(drop).unwrap_err();
    assert_eq!(e.to_string(), said.strip_suffix('s').unwrap());
    close(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_that_is_removed_renews_the_epoch_of_all_folders() {
    let disks = Disks::new(2);
    let cache = disks.open(&[0, 1]);
    store_all(cache).await;
    let epoch = |disk: usize| fs::read_to_string(disks.path(disk).join("epoch")).unwrap();
    let before = epoch(0);
    fs::remove_file(disks.path(1).join("lock")).unwrap();
    eventually("both folders have the new epoch", || {
        epoch(0) != before && epoch(0) == epoch(1)
    })
    .await;
    store(cache, 0).await;
    cache.kill();
    let cache = disks.open(&[0, 1]);
    assert_eq!(found(cache).await, all());
    close(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_fails_as_the_run_begins_is_absent() {
    for absent in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let kept = keys_of(cache, 1 - absent);
        close(cache).await;
        disks.faults[absent].set(Op::Replace, Fault::Errno(libc::EIO), usize::MAX);
        for _ in 0..2 {
            let cache = disks.open(&[0, 1]);
            assert!(!is_up(cache, absent));
            assert_eq!(found(cache).await, kept);
            close(cache).await;
        }
        disks.faults[absent].clear(Op::Replace);
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, all());
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_a_folder_that_failed_as_the_run_began() {
    for absent in [0, 1] {
        let disks = Disks::new(2);
        let cache = disks.open(&[0, 1]);
        store_all(cache).await;
        let lost = keys_of(cache, absent);
        close(cache).await;
        disks.faults[absent].always(Op::Replace, libc::EIO);
        let cache = disks.open(&[0, 1]);
        cache.purge_key(&key(lost[0])).await.unwrap();
        cache.invalidate(&key(lost[1])).await.unwrap();
        // No entry of the other folder needs these bans.
        forget_bans(cache).await;
        cache.kill();
        disks.mend_disk(absent);
        let cache = disks.open(&[0, 1]);
        assert_eq!(found(cache).await, without(&lost[..2]));
        close(cache).await;
    }
}

/// The files of entries on a disk.
fn files_of(disks: &Disks, disk: usize) -> Vec<PathBuf> {
    let shards = fs::read_dir(disks.path(disk).join("v2")).unwrap();
    let files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}
