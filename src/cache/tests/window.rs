//! Bodies that have no space on the disk.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pingora_cache::storage::MissHandler;
use pingora_cache::trace::Span;
use pingora_cache::{CacheKey, CacheMeta, HitHandler, Storage};
use pingora_http::ResponseHeader;
use tokio::time::timeout;

use crate::cache::{DiskCache, DiskCacheConfig, DiskHit, Remainder, FILL_BROKEN};

const LIMIT: u64 = 1 << 20;
const LEN: usize = 8 << 20;

fn body() -> Bytes {
    static BODY: LazyLock<Bytes> =
        LazyLock::new(|| (0..LEN as u32 / 4).flat_map(u32::to_le_bytes).collect());
    BODY.clone()
}

struct Setting {
    _folder: Folder,
    cache: &'static DiskCache,
    miss: MissHandler,
}

/// The folder of a cache, which makes it anew when it is removed.
struct Folder {
    _dir: tempfile::TempDir,
    cache: &'static DiskCache,
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.cache.kill();
    }
}

/// A cache that is smaller than an object of unknown length.
async fn begin() -> Setting {
    let dir = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), LIMIT)).unwrap();
    cache.wait_recovered();
    let header = ResponseHeader::build(200, None).unwrap();
    let meta = CacheMeta::new(SystemTime::now(), SystemTime::now(), 0, 0, header);
    let span = Span::inactive().handle();
    let miss = cache.get_miss_handler(&key(), &meta, &span).await.unwrap();
    Setting {
        _folder: Folder { _dir: dir, cache },
        cache,
        miss,
    }
}

fn key() -> CacheKey {
    CacheKey::new("key", "tag")
}

async fn follow(cache: &'static DiskCache, tag: Option<&[u8]>) -> HitHandler {
    let span = Span::inactive().handle();
    let found = cache.lookup_streaming_write(&key(), tag, &span).await;
    found.unwrap().unwrap().1
}

async fn write(miss: &mut MissHandler) {
    for piece in body().chunks(64 << 10) {
        let piece = Bytes::copy_from_slice(piece);
        miss.write_body(piece, false).await.unwrap();
    }
}

async fn read_all(mut hit: HitHandler) -> pingora_core::Result<Vec<u8>> {
    let mut read = Vec::new();
    while let Some(bytes) = hit.read_body().await? {
        read.extend_from_slice(&bytes);
    }
    Ok(read)
}

#[tokio::test]
async fn all_who_read_get_what_has_no_room() {
    let Setting {
        cache, mut miss, ..
    } = begin().await;
    let readers = [follow(cache, None).await, follow(cache, None).await];
    let write = async {
        write(&mut miss).await;
        miss.finish().await.unwrap();
    };
    let reads = futures::future::join_all(readers.map(read_all));
    let (_, reads) = tokio::join!(write, reads);
    for read in reads {
        assert!(read.unwrap() == body());
    }
    cache.settle().await;
    assert_eq!((cache.entries(), cache.size_bytes()), (0, 0));
    assert!(cache.is_too_large(&key()));
}

#[tokio::test]
async fn one_who_does_not_read_is_not_waited_for_forever() {
    let Setting {
        cache, mut miss, ..
    } = begin().await;
    let stalls = follow(cache, None).await;
    let reads = follow(cache, None).await;
    let write = async {
        write(&mut miss).await;
        miss.finish().await.unwrap();
    };
    let (_, reads) = tokio::join!(write, read_all(reads));
    assert!(reads.unwrap() == body());
    let e = read_all(stalls).await.unwrap_err();
    assert_eq!(*e.etype(), FILL_BROKEN, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_takes_no_turn() {
    let Setting {
        cache,
        mut miss,
        _folder,
    } = begin().await;
    // This reader belongs to the request that writes. It does not read, and is not waited for.
    let tag = miss.streaming_write_tag().unwrap().to_vec();
    let _leads = follow(cache, Some(&tag)).await;
    write(&mut miss).await;
    let free = async {
        while !cache
            .core()
            .fill_permits
            .are_free(DiskCacheConfig::new("", 0).max_fills)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let free = timeout(Duration::from_secs(10), free).await;
    free.expect("its turns are free before its end");
    drop(miss);
}

#[tokio::test]
async fn those_who_do_not_read_are_waited_for_once_and_not_one_after_the_other() {
    const STALLED: usize = 12;
    let Setting {
        cache,
        mut miss,
        _folder,
    } = begin().await;
    let mut stalled = Vec::new();
    let mut offset = 0;
    let body = body();
    for number in 0..STALLED {
        let mut hit = follow(cache, None).await;
        // Each of them has got a bit further than the one before.
        while offset < (number + 1) * (64 << 10) {
            let piece = body.slice(offset..offset + (64 << 10));
            miss.write_body(piece, false).await.unwrap();
            offset += 64 << 10;
        }
        let mut read = 0;
        while read < offset {
            read += hit.read_body().await.unwrap().unwrap().len();
        }
        stalled.push(hit);
    }
    let reads = follow(cache, None).await;
    let write = async {
        miss.write_body(body.slice(offset..), true).await.unwrap();
        miss.finish().await.unwrap();
    };
    let (_, read) = tokio::join!(write, read_all(reads));
    assert!(read.unwrap() == body);
    let hit = stalled[0].as_any().downcast_ref::<DiskHit>().unwrap();
    assert_eq!(hit.fill().unwrap().readers().losses(), 1);
    for mut hit in stalled {
        let e = loop {
            if let Err(e) = hit.read_body().await {
                break e;
            }
        };
        assert_eq!(*e.etype(), FILL_BROKEN, "{e}");
    }
}

/// An origin that has the remainder of the body, and takes a moment until it begins.
#[derive(Default)]
struct Origin(std::ops::Range<usize>, u32);

#[async_trait::async_trait]
impl Remainder for Origin {
    async fn begin(&mut self, range: std::ops::Range<u64>) -> pingora_core::Result<()> {
        if self.0.is_empty() {
            self.0 = range.start as usize..LEN;
        }
        assert_eq!(self.0, range.start as usize..LEN, "the same range");
        self.1 += 1;
        match self.1 {
            1 => std::future::pending().await,
            _ => Ok(()),
        }
    }

    async fn next(&mut self) -> pingora_core::Result<Option<Bytes>> {
        let end = self.0.end.min(self.0.start + (64 << 10));
        let bytes = body().slice(self.0.start..end);
        self.0.start = end;
        Ok((!bytes.is_empty()).then_some(bytes))
    }
}

fn with_rest(mut hit: HitHandler) -> HitHandler {
    let disk_hit = hit.as_any_mut().downcast_mut::<DiskHit>().unwrap();
    disk_hit.leave_by(Box::<Origin>::default());
    hit
}

#[tokio::test]
async fn a_follower_that_the_leader_holds_up_leaves() {
    let Setting {
        cache, mut miss, ..
    } = begin().await;
    let tag = miss.streaming_write_tag().unwrap().to_vec();
    let leader = with_rest(follow(cache, Some(&tag)).await);
    let mut follower = with_rest(follow(cache, None).await);
    let body = body();
    let mut written = 0;
    while !miss.is_full() {
        let piece = body.slice(written..written + (64 << 10));
        miss.write_body(piece, false).await.unwrap();
        written += 64 << 10;
    }
    let mut read = Vec::new();
    loop {
        // The reading future may be dropped and made again.
        let next = timeout(Duration::from_millis(20), follower.read_body()).await;
        match next {
            Err(_) => {}
            Ok(next) => match next.unwrap() {
                Some(bytes) => read.extend_from_slice(&bytes),
                None => break,
            },
        }
    }
    assert!(read == body);
    let rest = async {
        miss.write_body(body.slice(written..), true).await.unwrap();
        miss.finish().await.unwrap();
    };
    let (_, read) = tokio::join!(rest, read_all(leader));
    assert!(read.unwrap() == body);
}

#[tokio::test]
async fn the_request_that_writes_is_told_to_read() {
    let Setting {
        cache, mut miss, ..
    } = begin().await;
    let tag = miss.streaming_write_tag().unwrap().to_vec();
    let mut leader = follow(cache, Some(&tag)).await;
    let body = body();
    let mut read = Vec::new();
    let mut most = 0;
    for piece in body.chunks(64 << 10) {
        while miss.is_full() {
            let bytes = leader.read_body().await.unwrap().unwrap();
            read.extend_from_slice(&bytes);
        }
        let piece = Bytes::copy_from_slice(piece);
        miss.write_body(piece, false).await.unwrap();
        most = most.max(read.len() as u64);
    }
    assert!(most > LIMIT, "it had to read");
    let rest = async {
        while let Some(bytes) = leader.read_body().await.unwrap() {
            read.extend_from_slice(&bytes);
        }
    };
    let (finished, ()) = tokio::join!(miss.finish(), rest);
    finished.unwrap();
    assert!(read == body);
}

#[tokio::test]
async fn a_leader_is_not_held_up_by_a_follower_that_is_as_far() {
    let Setting {
        cache,
        mut miss,
        _folder,
    } = begin().await;
    let tag = miss.streaming_write_tag().unwrap().to_vec();
    let mut leader = follow(cache, Some(&tag)).await;
    let mut stalls = follow(cache, None).await;
    let body = body();
    // Neither has read the file when the rest of the body begins to pass the window.
    miss.write_body(body.slice(..64 << 10), false)
        .await
        .unwrap();
    stalls.read_body().await.unwrap();
    let mut read = leader.read_body().await.unwrap().unwrap().to_vec();
    let all = async {
        for piece in body[64 << 10..].chunks(64 << 10) {
            miss.write_body(Bytes::copy_from_slice(piece), false)
                .await
                .unwrap();
            // As a request does, the leader reads only while it does not write.
            while miss.is_full() {
                read.extend_from_slice(&leader.read_body().await.unwrap().unwrap());
            }
        }
        let rest = async {
            while let Some(bytes) = leader.read_body().await.unwrap() {
                read.extend_from_slice(&bytes);
            }
        };
        let (finished, ()) = tokio::join!(miss.finish(), rest);
        finished.unwrap();
    };
    let all = timeout(Duration::from_secs(20), all).await;
    all.expect("the follower is dropped");
    assert!(read == body);
}
