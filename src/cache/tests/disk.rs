//! Lookups, fills and revalidations.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::StatusCode;
use pingora_cache::key::CacheHashKey;
use pingora_cache::trace::Span;
use pingora_cache::{BodyPart, CacheKey, CacheMeta, MissHandler, Storage};
use pingora_http::ResponseHeader;

use crate::cache::read::lookup;
use crate::cache::write::{admission, space};
use crate::cache::{DiskCache, DiskCacheConfig, DiskHit, FastHeader};

fn cache(path: &Path) -> &'static DiskCache {
    DiskCache::open(DiskCacheConfig {
        scrub_bytes_per_second: 0,
        ..DiskCacheConfig::new(path, 1_000_000)
    })
    .unwrap()
}

fn key() -> CacheKey {
    CacheKey::new("key", "bucket")
}

/// A response of this version, made at `created`.
fn meta(version: &str, created: SystemTime) -> CacheMeta {
    let mut header = ResponseHeader::build(StatusCode::OK, None).unwrap();
    header.insert_header("etag", version).unwrap();
    CacheMeta::new(created, created, 0, 0, header)
}

async fn begin(cache: &'static DiskCache, meta: &CacheMeta) -> MissHandler {
    let span = Span::inactive().handle();
    cache.get_miss_handler(&key(), meta, &span).await.unwrap()
}

async fn finish(mut miss: MissHandler, body: &'static str) {
    miss.write_body(Bytes::from(body), true).await.unwrap();
    miss.finish().await.unwrap();
}

/// The version and the body of what is found.
async fn found(cache: &'static DiskCache) -> (String, String) {
    let found = tokio::time::timeout(Duration::from_secs(30), read(cache)).await;
    found.expect("a body that comes to its end")
}

async fn read(cache: &'static DiskCache) -> (String, String) {
    let span = Span::inactive().handle();
    let (meta, mut hit) = cache.lookup(&key(), &span).await.unwrap().unwrap();
    let mut body = Vec::new();
    while let Some(bytes) = hit.read_body().await.unwrap() {
        body.extend_from_slice(&bytes);
    }
    let version = meta.headers()["etag"].to_str().unwrap().to_owned();
    (version, String::from_utf8(body).unwrap())
}

async fn update(cache: &'static DiskCache, meta: &CacheMeta) -> bool {
    let span = Span::inactive().handle();
    cache.update_meta(&key(), meta, &span).await.unwrap()
}

/// A cache in which the entries of earlier runs are not known yet.
fn while_loading(path: &Path) -> &'static DiskCache {
    let cache = cache(path);
    cache.wait_recovered();
    // The patience at the start is over.
    cache.core().recovery.backdate(Duration::from_secs(60));
    cache.core().recovery.restart();
    cache
}

async fn close(cache: &'static DiskCache) {
    let closed = tokio::task::spawn_blocking(|| cache.close(Duration::from_secs(30)));
    closed.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_also_holds_while_the_index_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let first = cache(dir.path());
    first.wait_recovered();
    let mut miss = begin(first, &meta("1", SystemTime::now())).await;
    miss.write_body(vec![7; 900_000].into(), false)
        .await
        .unwrap();
    miss.finish().await.unwrap();
    close(first).await;
    assert!(first.size_bytes() > 900_000);

    let second = while_loading(dir.path());
    assert!(admission::admits(second.core()));
    assert!(space::reserve(second.core(), 100_000, u8::MAX)
        .await
        .is_none());
    let rest = space::reserve(second.core(), 90_000, u8::MAX)
        .await
        .expect("free room");
    assert!(space::reserve(second.core(), 10_000, u8::MAX)
        .await
        .is_none());
    drop(rest);
    // As a kill does, this leaves no size of its epoch.
    second.kill();

    let third = while_loading(dir.path());
    assert!(!admission::admits(third.core()));
    assert!(
        space::reserve(third.core(), 1, u8::MAX).await.is_none(),
        "nobody can tell"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_becomes_an_entry_is_never_overlooked() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    cache.wait_recovered();
    let span = Span::inactive().handle();
    for round in 0..200 {
        let miss = begin(cache, &meta("1", SystemTime::now())).await;
        let done = Arc::new(AtomicBool::new(false));
        let watcher = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut there = true;
                while !done.load(Ordering::Acquire) {
                    there &= cache.may_have(&key());
                }
                there
            }
        });
        finish(miss, "body").await;
        cache.settle().await;
        done.store(true, Ordering::Release);
        assert!(watcher.join().unwrap(), "round {round}");
        cache.invalidate(&key()).await.unwrap();
        let found = cache.lookup(&key(), &span).await.unwrap();
        assert!(found.is_none(), "round {round}");
    }
    close(cache).await;
}

/// `CacheKey::new` hashes its first argument only.
#[tokio::test]
async fn an_entry_is_not_found_by_another_key_of_the_same_hash() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    cache.wait_recovered();
    let span = Span::inactive().handle();
    let mut overridden = CacheKey::new("other", "bucket");
    overridden.set_primary_bin_override(key().primary_bin());
    for other in [CacheKey::new("key", "/b.bin"), overridden] {
        assert_eq!(other.combined_bin(), key().combined_bin());
        let miss = begin(cache, &meta("1", SystemTime::now())).await;
        let found_by = |key: CacheKey| {
            let span = &span;
            async move { cache.lookup(&key, span).await.unwrap().is_some() }
        };
        assert!(!found_by(other.clone()).await, "while it is filled");
        assert!(!cache.is_new(&other), "nobody is told to look again");
        finish(miss, "body").await;
        cache.settle().await;
        assert!(found_by(key()).await);

        let (cache_meta, entry) = lookup::find(cache.core(), &key()).await.unwrap();
        let mut header = cache_meta.response_header_copy();
        header.insert_header(CONTENT_LENGTH, 4).unwrap();
        let prepared = FastHeader::new(header, &cache_meta).expect("a header to prepare");
        entry.set_fast_header(prepared);
        assert!(cache.lookup_fast(&key(), |_| true).is_some());
        // It compares the tag only: the caller vouches for a hash that it overrides.
        let hit = cache.lookup_fast(&other, |_| true);
        assert_eq!(hit.is_none(), other.user_tag != key().user_tag);

        assert!(!found_by(other.clone()).await, "when it is an entry");
        assert!(!cache.is_new(&other), "nobody is told to look again");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_body_of_a_prepared_hit_is_opened_without_waiting() {
    // One in a file, and one in memory.
    for len in [100_000, 1_000] {
        open_without_waiting(len).await;
    }
}

#[cfg(target_os = "linux")]
async fn open_without_waiting(len: usize) {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    cache.wait_recovered();
    let body: &str = "0123456789".repeat(len / 10).leak();
    finish(begin(cache, &meta("1", SystemTime::now())).await, body).await;
    cache.settle().await;
    assert!(cache.lookup_fast(&key(), |_| true).is_none(), "unknown");
    let span = Span::inactive().handle();
    let (cache_meta, hit) = cache.lookup(&key(), &span).await.unwrap().unwrap();
    let mut header = cache_meta.response_header_copy();
    header.insert_header(CONTENT_LENGTH, len).unwrap();
    let prepared = FastHeader::new(header, &cache_meta).expect("a header to prepare");
    let hit = hit.as_any().downcast_ref::<DiskHit>().expect("a hit");
    hit.set_fast_header(prepared);

    let open_entries = &cache.core().open_entries;
    let id = cache.core().index.get(&key().combined_bin()).unwrap().id;
    let files = cache.core().files(&id);
    let opens = || (cache.stats().opens.get(), cache.stats().body_opens.get());
    assert_eq!(opens(), (1, 0));
    std::fs::remove_file(files.meta()).unwrap();
    for number in 1..=2 {
        open_entries.drop_bodies();
        assert!(cache.lookup_fast(&key(), |_| false).is_none());
        let mut hit = cache.lookup_fast(&key(), |_| true).expect("a hit");
        assert_eq!(opens(), (1 + number, number));
        assert_eq!(hit.fast_header().unwrap().header.content_length(), len);
        let mut read = 0;
        while let Some(part) = hit.next_part().await.unwrap() {
            read += match part {
                BodyPart::File { len, .. } => len,
                BodyPart::Bytes(bytes) => bytes.len() as u64,
                other => panic!("{other:?}"),
            };
        }
        assert_eq!(read, len as u64);
        // It is kept open.
        assert!(cache.lookup_fast(&key(), |_| true).is_some());
        assert_eq!(opens(), (1 + number, number));
    }
    let other = CacheKey::new(key().primary_key(), "other");
    open_entries.drop_bodies();
    assert_eq!(other.combined_bin(), key().combined_bin());
    assert!(cache.lookup_fast(&other, |_| true).is_none());

    // A body of another length is left to the lookup that may wait, which drops it.
    let body = std::fs::File::options().write(true).open(files.body());
    body.unwrap().set_len(len as u64 - 1).unwrap();
    assert!(cache.lookup_fast(&key(), |_| true).is_none());
    assert!(cache.lookup(&key(), &span).await.unwrap().is_none());
    assert_eq!(cache.entries(), 0);
    assert_eq!(cache.metadata_bytes(), 0);
}

#[tokio::test]
async fn who_asks_while_a_fill_begins_has_not_seen_it() {
    use std::task::Poll;

    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    cache.wait_recovered();
    let asked_now = || {
        let mut key = key();
        key.extensions.insert(cache.lookup_snapshot());
        key
    };
    let meta = meta("1", SystemTime::now());
    let span = Span::inactive().handle();
    let key = key();
    let before = asked_now();
    // Its file is made on another thread, and nobody finds it yet.
    let mut begins = cache.get_miss_handler(&key, &meta, &span);
    while let Poll::Ready(begun) = futures::poll!(&mut begins) {
        drop(begun);
        begins = cache.get_miss_handler(&key, &meta, &span);
    }
    let meanwhile = asked_now();
    let miss = begins.await.unwrap();
    let after = asked_now();
    assert!(cache.is_filling(&key));
    let expect_new = |when: &str| {
        assert!(cache.is_new(&before), "{when}");
        assert!(cache.is_new(&meanwhile), "{when}");
        assert!(!cache.is_new(&after), "{when}");
    };
    expect_new("while it is filled");
    finish(miss, "body").await;
    cache.settle().await;
    expect_new("when it is an entry");
    // One that is given up before it begins is waited for by nobody.
    let mut given_up = cache.get_miss_handler(&key, &meta, &span);
    let _ = futures::poll!(&mut given_up);
    drop(given_up);
    assert!(cache.core().generations.has_no_pending());
}

#[tokio::test]
async fn a_revalidation_changes_no_other_response() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let long_ago = UNIX_EPOCH + Duration::from_secs(1);
    let old = meta("old", long_ago);
    finish(begin(cache, &old).await, "old body").await;
    cache.settle().await;
    assert!(update(cache, &old).await);

    // The origin says that the old version is still good, and then that it
    // is not; the latter is heard first.
    let new = meta("new", long_ago + Duration::from_nanos(1));
    let miss = begin(cache, &new).await;
    let follower = tokio::spawn(found(cache));
    update(cache, &old).await;
    finish(miss, "new body").await;
    assert_eq!(follower.await.unwrap(), ("new".into(), "new body".into()));
    cache.settle().await;
    assert!(!update(cache, &old).await);
    assert_eq!(found(cache).await, ("new".into(), "new body".into()));
}

#[tokio::test]
async fn nobody_follows_a_fill_that_was_overtaken() {
    let long_ago = UNIX_EPOCH + Duration::from_secs(1);
    let old = meta("old", long_ago);
    // Its file takes long to create: longer than this thread is away, which
    // on a busy machine can take some attempts.
    let (_dir, cache, slow) = loop {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let mut slow = Box::pin(begin(cache, &old));
        if futures::poll!(&mut slow).is_pending() {
            break (dir, cache, slow);
        }
    };
    let new = meta("new", long_ago + Duration::from_nanos(1));
    finish(begin(cache, &new).await, "new body").await;
    cache.settle().await;
    let slow = slow.await;
    assert_eq!(cache.fills_in_flight(), 1);
    assert_eq!(found(cache).await, ("new".into(), "new body".into()));
    finish(slow, "old body").await;
    cache.settle().await;
    assert_eq!(found(cache).await, ("new".into(), "new body".into()));
}

/// The task of the fill notices later, on a thread of its own.
#[tokio::test]
async fn nobody_follows_a_fill_whose_writer_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let span = Span::inactive().handle();
    let mut meta = meta("1", SystemTime::now());
    meta.response_header_mut()
        .insert_header("content-length", "4")
        .unwrap();
    for body in ["", "bo", "body"].into_iter().cycle().take(60) {
        let mut miss = begin(cache, &meta).await;
        miss.write_body(Bytes::from(body), false).await.unwrap();
        assert!(cache.lookup(&key(), &span).await.unwrap().is_some());
        drop(miss);
        assert!(cache.lookup(&key(), &span).await.unwrap().is_none());
        cache.settle().await;
    }
}
