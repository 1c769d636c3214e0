//! The disk cache without a proxy around it, for what no client can ask for.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use pingora_cache::{
    storage::MissHandler,
    trace::{Span, SpanHandle},
    CacheKey, CacheMeta, HitHandler, Storage,
};
use pingora_http::ResponseHeader;
use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};
use test_support::{Pattern, PATIENCE};

/// The bucket of every key.
pub const TAG: &str = "bucket";

const HOUR: Duration = Duration::from_secs(3600);

/// An object whose content is a pattern, and that says so in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    pub seed: u64,
    pub len: u64,
    /// True if it has a Content-Length.
    pub tells_len: bool,
}

/// A configuration in which nothing happens on its own.
pub fn config(folder: &Path, max_size_bytes: u64) -> DiskCacheConfig {
    DiskCacheConfig {
        scrub_bytes_per_second: 0,
        ..DiskCacheConfig::new(folder, max_size_bytes)
    }
}

/// Opens a cache and waits until it knows its entries.
pub fn open(config: DiskCacheConfig) -> &'static DiskCache {
    let cache = DiskCache::open(config).expect("open the cache");
    cache.wait_recovered();
    cache
}

/// Lets the folder go, so that it can be opened again.
pub fn close(cache: &'static DiskCache) {
    block_on(cache.settle());
    cache.close(PATIENCE);
}

pub fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("make a runtime")
        .block_on(async { tokio::time::timeout(PATIENCE, future).await })
        .expect("done in time")
}

pub fn key(name: &str) -> CacheKey {
    CacheKey::new(name, TAG)
}

pub fn trace() -> SpanHandle {
    Span::inactive().handle()
}

/// Stores an object, and waits for its last byte, not for the commit.
pub async fn fill(cache: &'static DiskCache, name: &str, object: Object) {
    let mut miss = begin(cache, name, object).await;
    write(&mut miss, object, 0, object.len).await;
    miss.finish().await.expect("finish a fill");
}

/// Begins to store an object.
pub async fn begin(cache: &'static DiskCache, name: &str, object: Object) -> MissHandler {
    let begun = try_begin(cache, name, object).await;
    begun.expect("begin a fill")
}

/// As [`begin`], where the cache may have no room.
pub async fn try_begin(
    cache: &'static DiskCache,
    name: &str,
    object: Object,
) -> pingora_core::Result<MissHandler> {
    cache
        .get_miss_handler(&key(name), &object.meta(), &trace())
        .await
}

/// Writes a part of the body, in pieces.
pub async fn write(miss: &mut MissHandler, object: Object, start: u64, end: u64) {
    const PIECE: u64 = 16 * 1024;
    let mut at = start;
    while at < end {
        let mut piece = vec![0; PIECE.min(end - at) as usize];
        Pattern::new(object.seed).fill(at, &mut piece);
        at += piece.len() as u64;
        miss.write_body(Bytes::from(piece), at == object.len)
            .await
            .expect("write a part of a body");
    }
}

/// The object that is stored under a name, read to its end and checked.
pub async fn stored(cache: &'static DiskCache, name: &str) -> Option<Object> {
    let (meta, hit) = lookup(cache, name).await?;
    let object = Object::of(&meta);
    let body = read(hit).await.expect("read an entry");
    assert_eq!(body.len() as u64, object.len, "{name}: {object:?}");
    Pattern::new(object.seed).check(0, &body);
    Some(object)
}

pub async fn lookup(cache: &'static DiskCache, name: &str) -> Option<(CacheMeta, HitHandler)> {
    cache
        .lookup(&key(name), &trace())
        .await
        .expect("look an entry up")
}

/// Reads to the end.
pub async fn read(mut hit: HitHandler) -> pingora_core::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(bytes) = hit.read_body().await? {
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

// === impl Object ===

impl Object {
    pub fn new(seed: u64, len: u64) -> Self {
        Self {
            seed,
            len,
            tells_len: true,
        }
    }

    /// The same object, of a length that it does not tell.
    pub fn chunked(self) -> Self {
        Self {
            tells_len: false,
            ..self
        }
    }

    /// The origin's metadata: fresh for an hour.
    pub fn meta(&self) -> CacheMeta {
        let mut header = ResponseHeader::build(200, None).expect("a header");
        for (name, value) in [("x-seed", self.seed), ("x-len", self.len)] {
            header.insert_header(name, value).expect("a field");
        }
        if self.tells_len {
            header
                .insert_header("content-length", self.len)
                .expect("a field");
        }
        let now = SystemTime::now();
        CacheMeta::new(now + HOUR, now, 0, 0, header)
    }

    /// The object that an entry's header names.
    pub fn of(meta: &CacheMeta) -> Self {
        let number = |name| {
            let value = meta.headers().get(name).expect("a field");
            value.to_str().expect("text").parse().expect("a number")
        };
        Self {
            seed: number("x-seed"),
            len: number("x-len"),
            tells_len: meta.headers().contains_key("content-length"),
        }
    }
}
