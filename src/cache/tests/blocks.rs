//! Entries in blocks: what is stored of them after faults of the disk and of the origin.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora_cache::key::CacheHashKey;
use pingora_cache::storage::MissHandler;
use pingora_cache::trace::Span;
use pingora_cache::{CacheKey, CacheMeta, HitHandler, Storage};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use tempfile::TempDir;

use crate::cache::io::faulty::{Fault, Faults, FaultyBackend, Op};
use crate::cache::jobs::scrub;
use crate::cache::read::blocks::{PartSource, OUTDATED};
use crate::cache::read::remainder::{Remainder, FILL_BROKEN};
use crate::cache::state::fill_extensions::Resumable;
use crate::cache::store::format::EntryMeta;
use crate::cache::store::index::Indexed;
use crate::cache::store::layout::VERSION_FOLDER;
use crate::cache::{DiskCache, DiskCacheConfig, DiskHit, SendfileCapable};

const MIB: u64 = 1 << 20;
const LEN: u64 = 20 * MIB + 1000;
const LIMIT: u64 = 64 * MIB;

/// An origin, and a cache in front of it.
struct Disk {
    dir: TempDir,
    faults: Faults,
    cache: &'static DiskCache,
    origin: Arc<Origin>,
}

#[derive(Default)]
struct Origin {
    /// The ranges that it was asked for.
    asked: Mutex<Vec<(u64, u64)>>,
    /// Bytes after which it breaks off; 0: it does not.
    breaks_after: AtomicU64,
    is_outdated: std::sync::atomic::AtomicBool,
}

struct Request {
    origin: Arc<Origin>,
    range: Range<u64>,
    sent: u64,
}

fn bytes(range: Range<u64>) -> Vec<u8> {
    const PERIOD: u64 = 13 * 251;
    let len = (range.end - range.start) as usize;
    let period: Vec<u8> = (0..PERIOD).map(|at| (at / 13) as u8).collect();
    let begun = &period[(range.start % PERIOD) as usize..];
    let mut bytes = begun[..begun.len().min(len)].to_vec();
    while bytes.len() < len {
        let more = period.len().min(len - bytes.len());
        bytes.extend_from_slice(&period[..more]);
    }
    bytes
}

impl PartSource for Arc<Origin> {
    fn request(&self) -> Box<dyn Remainder> {
        Box::new(Request {
            origin: self.clone(),
            range: 0..0,
            sent: 0,
        })
    }
}

#[async_trait]
impl Remainder for Request {
    async fn begin(&mut self, range: Range<u64>) -> Result<()> {
        self.origin.asked.lock().push((range.start, range.end));
        self.range = range;
        match self.origin.is_outdated.load(Ordering::Acquire) {
            true => Error::e_explain(OUTDATED, "another version"),
            false => Ok(()),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        tokio::task::yield_now().await;
        // Of a length that fits nothing.
        let mut end = self.range.end.min(self.range.start + 50_001);
        let breaks_after = self.origin.breaks_after.load(Ordering::Acquire);
        if breaks_after > 0 {
            end = end.min(self.range.start + breaks_after - self.sent);
            if end == self.range.start {
                return Error::e_explain(ErrorType::ReadError, "it breaks off");
            }
        }
        let piece = self.range.start..end;
        self.range.start = end;
        self.sent += piece.end - piece.start;
        Ok((!piece.is_empty()).then(|| bytes(piece).into()))
    }
}

fn open(path: &Path, faults: &Faults) -> &'static DiskCache {
    let config = DiskCacheConfig {
        scrub_bytes_per_second: 0,
        ..DiskCacheConfig::new(path, LIMIT)
    };
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

fn key() -> CacheKey {
    CacheKey::new("key", "bucket")
}

fn meta() -> CacheMeta {
    let mut header = ResponseHeader::build(200, None).unwrap();
    header.insert_header("content-length", LEN).unwrap();
    let now = SystemTime::now();
    CacheMeta::new(now, now, 0, 0, header)
}

async fn send(miss: &mut MissHandler, range: Range<u64>) {
    for start in range.clone().step_by(64 << 10) {
        let piece = bytes(start..range.end.min(start + (64 << 10)));
        miss.write_body(piece.into(), false).await.unwrap();
    }
}

// A cache makes its folder anew when that is removed.
impl Drop for Disk {
    fn drop(&mut self) {
        self.cache.kill();
    }
}

impl Disk {
    /// A cache with an entry of which nothing is stored.
    async fn new() -> Disk {
        let disk = Disk::empty();
        assert!(disk.create().await);
        disk
    }

    fn empty() -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new();
        let cache = open(dir.path(), &faults);
        Disk {
            dir,
            faults,
            cache,
            origin: Arc::default(),
        }
    }

    async fn create(&self) -> bool {
        let created = self.cache.create_in_blocks(&key(), &meta(), LEN).await;
        created.unwrap()
    }

    /// Begins a fill whose blocks are kept if it breaks off, and has `len` bytes of it arrive.
    async fn begin_fill(&self, len: u64) -> MissHandler {
        let mut meta = meta();
        meta.extensions_mut().insert(Resumable);
        let span = Span::inactive().handle();
        let miss = self.cache.get_miss_handler(&key(), &meta, &span).await;
        let mut miss = miss.unwrap();
        send(&mut miss, 0..len).await;
        miss
    }

    /// Names of the files of entries.
    fn files(&self) -> Vec<PathBuf> {
        let shards = std::fs::read_dir(self.dir.path().join(VERSION_FOLDER)).unwrap();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }

    /// Waits for the first checkpoint of a fill. Returns the number of blocks that it has.
    async fn checkpoint(&self) -> u64 {
        let blocks = || {
            let meta = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "meta");
            let meta = std::fs::read(self.files().into_iter().find(meta)?).ok()?;
            let blocks = EntryMeta::decode(&meta).ok()?.blocks?;
            Some(blocks.checksums.len() as u64)
        };
        let found = async {
            loop {
                match blocks() {
                    Some(blocks) => break blocks,
                    None => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        found.expect("what has arrived is recorded")
    }

    async fn lookup(&self) -> Option<HitHandler> {
        let span = Span::inactive().handle();
        let (_, mut hit) = self.cache.lookup(&key(), &span).await.unwrap()?;
        let of_disk: &mut DiskHit = hit.as_any_mut().downcast_mut().unwrap();
        self.cache
            .let_fetch(of_disk, Box::new(self.origin.clone()), false);
        Some(hit)
    }

    async fn try_read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut hit = self.lookup().await.expect("an entry");
        hit.seek(range.start as usize, Some(range.end as usize))?;
        let mut read = Vec::new();
        while let Some(bytes) = hit.read_body().await? {
            read.extend_from_slice(&bytes);
        }
        Ok(read)
    }

    /// Asserts that a range can be read, and returns what the origin was asked for.
    async fn reads(&self, range: Range<u64>) -> Vec<(u64, u64)> {
        let read = self.try_read(range.clone()).await.unwrap();
        assert!(read == bytes(range.clone()), "{range:?}");
        std::mem::take(&mut *self.origin.asked.lock())
    }

    fn indexed(&self) -> Option<Indexed> {
        self.cache.core().index.get(&key().combined_bin())
    }

    fn is_stored(&self) -> bool {
        self.indexed().is_some()
    }

    fn weight(&self) -> u64 {
        self.indexed().map_or(0, |entry| entry.weight)
    }

    /// Waits until so many blocks are recorded.
    async fn recorded(&self, blocks: u64) {
        let recorded = async {
            while self.weight() / MIB != blocks {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let recorded = tokio::time::timeout(Duration::from_secs(20), recorded).await;
        assert!(recorded.is_ok(), "{} bytes", self.weight());
    }

    /// Closes the file of the body, and waits until nothing but the disk has the map of blocks.
    async fn close_files(&self) {
        self.cache.settle().await;
        let core = self.cache.core();
        core.open_entries.close_files();
        let closed = async {
            while core.sparse_bodies.in_use() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let closed = tokio::time::timeout(Duration::from_secs(20), closed).await;
        closed.expect("nobody uses the body");
    }

    /// Stores the whole body, as a miss does.
    async fn store_whole(&self) {
        let span = Span::inactive().handle();
        let miss = self.cache.get_miss_handler(&key(), &meta(), &span).await;
        let mut miss = miss.unwrap();
        let body = bytes(0..LEN);
        for piece in body.chunks(1 << 20) {
            let piece = Bytes::copy_from_slice(piece);
            miss.write_body(piece, false).await.unwrap();
        }
        miss.finish().await.unwrap();
        self.cache.settle().await;
    }

    /// Ends as a killed process does, and starts again.
    fn crash(&mut self) {
        self.cache.kill();
        self.cache = open(self.dir.path(), &self.faults);
    }

    async fn assert_consistent(&self) {
        self.cache.settle().await;
        let core = self.cache.core();
        let freed = async {
            while core.quota.taken(&core.index) != core.index.bytes() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let freed = tokio::time::timeout(Duration::from_secs(20), freed).await;
        freed.expect("no space is reserved for what is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_blocks_are_fetched_and_stored() {
    let disk = Disk::new().await;
    assert_eq!(disk.reads(5..10).await, [(0, MIB)]);
    assert_eq!(disk.reads(0..MIB).await, []);
    assert_eq!(disk.reads(MIB - 1..2 * MIB + 1).await, [(MIB, 3 * MIB)]);
    assert_eq!(disk.reads(LEN - 1..LEN).await, [(20 * MIB, LEN)]);
    // Runs of 16 MiB, of which the next one is fetched ahead.
    let mut asked = disk.reads(0..LEN).await;
    asked.sort();
    assert_eq!(asked, [(3 * MIB, 19 * MIB), (19 * MIB, 20 * MIB)]);
    assert_eq!(disk.reads(0..LEN).await, []);
    disk.recorded(20).await;
    disk.assert_consistent().await;
    let whole = disk.cache.get_sendfile(&key()).await.unwrap();
    assert_eq!(whole.expect("all blocks are stored").len, LEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_with_holes_is_not_handed_out_as_a_file() {
    let disk = Disk::new().await;
    disk.reads(0..MIB).await;
    assert!(disk.cache.get_sendfile(&key()).await.unwrap().is_none());
    // Without the means to fetch, a hole is an error.
    let span = Span::inactive().handle();
    let (_, mut hit) = disk.cache.lookup(&key(), &span).await.unwrap().unwrap();
    assert!(hit.read_body().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_stored_before_a_file_was_closed_are_found_again() {
    let disk = Disk::new().await;
    for blocks in 1..=3 {
        let block = (blocks - 1) * MIB..blocks * MIB;
        let asked = (block.start, block.end);
        assert_eq!(disk.reads(block).await, [asked]);
        disk.recorded(blocks).await;
        disk.close_files().await;
        assert_eq!(disk.reads(0..blocks * MIB).await, []);
        disk.close_files().await;
        let incomplete = disk.cache.get_sendfile(&key()).await.unwrap();
        assert!(incomplete.is_none(), "{blocks} blocks");
    }
    disk.reads(3 * MIB..LEN).await;
    disk.cache.settle().await;
    let opens = disk.cache.stats().opens.get();
    for _ in 0..2 {
        disk.close_files().await;
        assert_eq!(disk.reads(0..LEN).await, []);
        let whole = disk.cache.get_sendfile(&key()).await.unwrap();
        assert_eq!(whole.expect("all blocks are stored").len, LEN);
    }
    // The map of blocks is read each time.
    assert_eq!(disk.cache.stats().opens.get(), opens + 2);
    assert_eq!(disk.cache.stats().body_opens.get(), 0);
    assert_eq!(disk.cache.metadata_bytes(), 0);
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_whole_body_is_not_mistaken_for_one_in_blocks_of_its_key() {
    let disk = Disk::new().await;
    for _ in 0..2 {
        // In blocks, then whole, and known, then in blocks again.
        assert_eq!(disk.reads(0..MIB).await, [(0, MIB)]);
        disk.close_files().await;
        assert_eq!(disk.cache.metadata_bytes(), 0);

        disk.store_whole().await;
        assert_eq!(disk.reads(0..LEN).await, []);
        assert!(disk.cache.metadata_bytes() > 0);
        disk.close_files().await;
        let opens = disk.cache.stats().body_opens.get();
        assert_eq!(disk.reads(0..LEN).await, []);
        assert_eq!(disk.cache.stats().body_opens.get(), opens + 1);
        disk.close_files().await;

        assert!(disk.cache.purge_key(&key()).await.unwrap());
        assert_eq!(disk.cache.metadata_bytes(), 0);
        assert!(disk.create().await);
    }
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revalidation_of_a_body_in_blocks_is_seen_with_its_file_open_and_closed() {
    let disk = Disk::new().await;
    disk.reads(0..MIB).await;
    let span = Span::inactive().handle();
    let found = || async {
        let found = disk.cache.lookup(&key(), &span).await.unwrap();
        found.expect("an entry").0
    };
    let mut reader = disk.lookup().await.unwrap();
    reader.seek(0, Some(MIB as usize)).unwrap();
    for (etag, is_closed) in [("\"1\"", false), ("\"2\"", true)] {
        let mut meta = found().await;
        if is_closed {
            disk.cache.core().open_entries.close_files();
        }
        let header = meta.response_header_mut();
        header.insert_header("etag", etag).unwrap();
        assert!(disk.cache.update_meta(&key(), &meta, &span).await.unwrap());
        // While a reader has the body open, and once it is read from the disk.
        assert_eq!(found().await.response_header().headers["etag"], etag);
        disk.cache.core().open_entries.close_files();
        assert_eq!(found().await.response_header().headers["etag"], etag);
        assert_eq!(disk.reads(0..MIB).await, []);
    }
    assert!(reader.read_body().await.unwrap().is_some());
    drop(reader);
    disk.close_files().await;
    assert_eq!(found().await.response_header().headers["etag"], "\"2\"");
    assert_eq!(disk.reads(0..MIB).await, []);
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_the_recorded_blocks_are_there_and_no_others() {
    let mut disk = Disk::new().await;
    disk.reads(0..2 * MIB).await;
    disk.recorded(2).await;
    disk.faults.hold(Op::Record);
    let held = disk.faults.count(Op::Record);
    disk.reads(4 * MIB..5 * MIB).await;
    while disk.faults.count(Op::Record) == held {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    disk.crash();
    assert_eq!(disk.reads(0..2 * MIB).await, []);
    assert_eq!(disk.reads(4 * MIB..5 * MIB).await, [(4 * MIB, 5 * MIB)]);
    disk.faults.release(Op::Record);
    disk.recorded(3).await;
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_blocks_cannot_be_recorded_is_dropped() {
    let disk = Disk::new().await;
    // The kernel reports once that it has lost data.
    disk.faults.set(Op::Record, Fault::Errno(libc::EIO), 1);
    disk.reads(0..MIB).await;
    disk.assert_consistent().await;
    assert!(!disk.is_stored());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_breaks_off_is_asked_for_the_rest() {
    let disk = Disk::new().await;
    let breaks = &disk.origin.breaks_after;
    breaks.store(5 * MIB / 2, Ordering::Release);
    // It gets on each time.
    let asked = disk.reads(0..6 * MIB).await;
    assert_eq!(
        asked,
        [(0, 6 * MIB), (2 * MIB, 6 * MIB), (4 * MIB, 6 * MIB)]
    );
    // Then it does not.
    breaks.store(1000, Ordering::Release);
    let e = disk.try_read(8 * MIB..9 * MIB).await.unwrap_err();
    assert_eq!(*e.etype(), FILL_BROKEN);
    assert!(disk.origin.asked.lock().len() <= 2);
    breaks.store(0, Ordering::Release);
    disk.origin.asked.lock().clear();
    assert_eq!(disk.reads(0..6 * MIB).await, []);
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_ends_the_entry() {
    let disk = Disk::new().await;
    disk.reads(0..MIB).await;
    disk.origin.is_outdated.store(true, Ordering::Release);
    assert!(disk.try_read(2 * MIB..3 * MIB).await.is_err());
    assert!(!disk.is_stored());
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_passed_on() {
    let disk = Disk::new().await;
    for fault in [libc::ENOSPC, libc::EDQUOT] {
        disk.faults.always(Op::Write, fault);
        assert!(disk.try_read(0..2 * MIB).await.unwrap() == bytes(0..2 * MIB));
        disk.faults.clear(Op::Write);
        // Entries are evicted for the space, this one at last.
        assert!(disk.is_stored() || disk.create().await);
    }
    disk.origin.asked.lock().clear();
    assert_eq!(disk.reads(0..2 * MIB).await, [(0, 2 * MIB)]);
    // A disk that fails breaks the response off.
    disk.faults
        .set(Op::Write, Fault::Errno(libc::EIO), usize::MAX);
    assert!(disk.try_read(4 * MIB..5 * MIB).await.is_err());
    disk.faults.clear(Op::Write);
    disk.origin.asked.lock().clear();
    assert_eq!(disk.reads(0..2 * MIB).await, []);
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_evicted_under_its_readers_is_read_to_its_end() {
    let disk = Disk::new().await;
    disk.reads(0..MIB).await;
    let mut hit = disk.lookup().await.unwrap();
    let mut read = hit.read_body().await.unwrap().unwrap().to_vec();
    assert!(disk.cache.purge_key(&key()).await.unwrap());
    while let Some(bytes) = hit.read_body().await.unwrap() {
        read.extend_from_slice(&bytes);
    }
    assert!(read == bytes(0..LEN));
    drop(hit);
    assert!(disk.lookup().await.is_none());
    disk.assert_consistent().await;
    assert_eq!(disk.cache.size_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_block_is_found() {
    let disk = Disk::new().await;
    disk.reads(0..3 * MIB).await;
    disk.recorded(3).await;
    let scrub = || async {
        let cache = disk.cache;
        tokio::task::spawn_blocking(move || scrub::pass(cache.core(), u64::MAX))
            .await
            .unwrap();
    };
    scrub().await;
    assert!(disk.is_stored());
    let id = disk.indexed().unwrap().id;
    let path = disk.cache.core().layout.body(&id);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 2 * MIB + 77).unwrap();
    file.sync_all().unwrap();
    scrub().await;
    assert!(!disk.is_stored());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_body_does_not_take_the_whole_cache() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    let config = DiskCacheConfig {
        scrub_bytes_per_second: 0,
        ..DiskCacheConfig::new(dir.path(), 10 * MIB)
    };
    let with_faults = faults.clone();
    let cache = DiskCache::open_with(config, move |_, runtime| {
        Ok(Box::new(FaultyBackend::new(
            runtime.clone(),
            with_faults.clone(),
        )))
    });
    let cache = cache.unwrap();
    cache.wait_recovered();
    let disk = Disk {
        dir,
        faults,
        cache,
        origin: Arc::default(),
    };
    assert!(disk.create().await);
    for block in 0..20 {
        disk.reads(block * MIB..(block + 1) * MIB).await;
    }
    assert!(disk.is_stored());
    disk.cache.settle().await;
    assert_eq!(disk.weight() / MIB, 5);
    assert_eq!(disk.reads(0..MIB).await, []);
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_mid_fill_costs_what_has_arrived_since_the_last_checkpoint() {
    let mut disk = Disk::empty();
    let _miss = disk.begin_fill(5 * MIB / 2).await;
    let blocks = disk.checkpoint().await;
    assert!((1..=2).contains(&blocks), "{blocks}");
    disk.crash();
    assert_eq!(disk.reads(0..blocks * MIB).await, []);
    let asked = disk.reads(0..LEN).await;
    let missing: u64 = asked.iter().map(|(start, end)| end - start).sum();
    assert_eq!(missing, LEN - blocks * MIB);
    disk.assert_consistent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_no_entry_while_its_fill_goes_on() {
    let disk = Disk::empty();
    let mut miss = disk.begin_fill(5 * MIB).await;
    disk.checkpoint().await;
    assert!(!disk.is_stored());
    send(&mut miss, 5 * MIB..LEN).await;
    miss.finish().await.unwrap();
    disk.assert_consistent().await;
    assert_eq!(disk.reads(0..LEN).await, []);
    // The metadata is that of a whole body.
    let files = disk.files();
    assert_eq!(files.len(), 2, "{files:?}");
    let whole = disk.cache.get_sendfile(&key()).await.unwrap();
    assert_eq!(whole.expect("it is whole").len, LEN);
    let id = disk.indexed().unwrap().id;
    let meta = std::fs::read(disk.cache.core().files(&id).meta()).unwrap();
    let meta = EntryMeta::decode(&meta).unwrap();
    assert!(meta.blocks.is_none());
    assert_eq!(meta.body_crc32, crc32fast::hash(&bytes(0..LEN)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_in_mid_fill_holds_after_a_kill() {
    let mut disk = Disk::empty();
    let _miss = disk.begin_fill(5 * MIB).await;
    disk.checkpoint().await;
    assert!(disk.cache.purge_key(&key()).await.unwrap());
    disk.crash();
    assert!(disk.lookup().await.is_none());
    disk.assert_consistent().await;
    assert_eq!(disk.files(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_cannot_be_an_entry_takes_its_checkpoints_along() {
    let disk = Disk::empty();
    for is_purged in [false, true] {
        let miss = disk.begin_fill(5 * MIB).await;
        disk.checkpoint().await;
        if is_purged {
            assert!(disk.cache.purge_key(&key()).await.unwrap());
        }
        // The origin says that this is all.
        assert!(miss.finish().await.is_err());
        disk.assert_consistent().await;
        assert!(!disk.is_stored());
        assert_eq!(disk.files(), Vec::<PathBuf>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_fails_costs_the_clients_nothing() {
    for op in [Op::Commit, Op::Record] {
        let disk = Disk::empty();
        disk.faults.set(op, Fault::Errno(libc::EIO), 1);
        let mut miss = disk.begin_fill(MIB).await;
        let mut hit = disk.lookup().await.expect("the fill");
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            while let Some(bytes) = hit.read_body().await.unwrap() {
                read.extend_from_slice(&bytes);
            }
            read
        });
        send(&mut miss, MIB..LEN).await;
        miss.finish().await.unwrap();
        assert!(reading.await.unwrap() == bytes(0..LEN), "{op:?}");
        // The kernel may have lost some of it.
        disk.assert_consistent().await;
        assert!(!disk.is_stored(), "{op:?}");
        assert_eq!(disk.files(), Vec::<PathBuf>::new(), "{op:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_in_mid_fill_does_not_come_back_after_a_kill() {
    for at_once in [false, true] {
        let mut disk = Disk::empty();
        let mut miss = disk.begin_fill(5 * MIB).await;
        disk.checkpoint().await;
        let read = |file: PathBuf| {
            // The temporary file of the next checkpoint comes and goes.
            let content = std::fs::read(&file).ok()?;
            Some((file, content))
        };
        let recorded: Vec<_> = disk.files().into_iter().filter_map(read).collect();
        match at_once {
            true => disk.cache.invalidate_nowait(&key()),
            false => disk.cache.invalidate(&key()).await.unwrap(),
        }
        // What it has recorded is removed at once, and nothing more is recorded.
        let removed = async {
            while !disk.files().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let removed = tokio::time::timeout(Duration::from_secs(20), removed).await;
        removed.expect("no file has a name");
        send(&mut miss, 5 * MIB..10 * MIB).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(disk.files(), Vec::<PathBuf>::new());
        let bans = &disk.cache.core().bans;
        let banned = async {
            while bans.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let banned = tokio::time::timeout(Duration::from_secs(20), banned).await;
        banned.expect("a ban");
        // A power failure may bring the files back.
        disk.cache.kill();
        for (file, content) in recorded {
            std::fs::write(file, content).unwrap();
        }
        disk.cache = open(disk.dir.path(), &disk.faults);
        assert!(disk.lookup().await.is_none());
        disk.assert_consistent().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_the_lock_leaves_checkpoints_to_its_successor() {
    let mut disk = Disk::empty();
    let miss = disk.begin_fill(5 * MIB).await;
    let blocks = disk.checkpoint().await;
    let before = disk.cache;
    disk.crash();
    drop(miss);
    before.core().fills.wait_idle().await;
    before.settle().await;
    assert_eq!(disk.reads(0..blocks * MIB).await, []);
    assert_eq!(disk.files().len(), 2);
}
