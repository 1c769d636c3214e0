//! Objects that the origin does not have.

use std::time::{Duration, Instant};

use http::StatusCode;
use pingora_cache::key::{CacheHashKey, HashBinary};
use pingora_cache::CacheKey;
use quick_cache::sync::Cache;

use crate::cache::DiskCache;

/// The most keys that are remembered, 64 bytes each. The least requested ones are evicted first.
const CAPACITY: usize = 16 * 1024;

/// Remembers for a short time that the origin does not have an object, so that repeated requests
/// for it do not reach the origin each time.
///
/// It is kept in memory; on disk, any client could fill the cache with names of missing objects. A
/// purge of any object clears it.
pub(super) struct NegativeCache {
    cache: Option<&'static DiskCache>,
    keys: Cache<HashBinary, Answer>,
}

/// An answer of the origin.
#[derive(Clone, Copy)]
struct Answer {
    status: StatusCode,
    until: Instant,
    purges: u64,
    access: u64,
}

// === impl NegativeCache ===

impl NegativeCache {
    pub(super) fn new(cache: Option<&'static DiskCache>) -> Self {
        NegativeCache {
            cache,
            keys: Cache::new(CAPACITY),
        }
    }

    /// The number of purges, for [`insert`](Self::insert). Take it before the origin is asked.
    pub(super) fn purges(&self) -> u64 {
        self.cache.map_or(0, DiskCache::purges)
    }

    /// Remember for `ttl` that there is no object. A purge since the request was made, when there
    /// were `purges`, invalidates the answer. `access`: the number of the way to the origin.
    pub(super) fn insert(
        &self,
        key: &CacheKey,
        access: u64,
        status: StatusCode,
        ttl: Duration,
        purges: u64,
    ) {
        let answer = Answer {
            status,
            until: Instant::now() + ttl,
            purges,
            access,
        };
        self.keys.insert(key.combined_bin(), answer);
    }

    /// The last answer of the origin on the way `access`, and the time for which it is still valid.
    pub(super) fn get(&self, key: &CacheKey, access: u64) -> Option<(StatusCode, Duration)> {
        if self.keys.is_empty() {
            return None;
        }
        let answer = self.keys.get(&key.combined_bin())?;
        let left = answer.until.checked_duration_since(Instant::now())?;
        let is_valid = answer.purges == self.purges() && answer.access == access;
        is_valid.then_some((answer.status, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DiskCacheConfig;

    const ACCESS: u64 = 1;
    const LONG: Duration = Duration::from_secs(60);

    fn key(of: &str) -> CacheKey {
        CacheKey::new(of, "bucket")
    }

    fn status(absent: &NegativeCache, of: &str) -> Option<u16> {
        absent
            .get(&key(of), ACCESS)
            .map(|(status, _)| status.as_u16())
    }

    #[test]
    fn it_is_forgotten_in_time() {
        let absent = NegativeCache::new(None);
        let short = Duration::from_nanos(1);
        absent.insert(&key("a"), ACCESS, StatusCode::NOT_FOUND, short, 0);
        absent.insert(&key("b"), ACCESS, StatusCode::GONE, LONG, 0);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(status(&absent, "a"), None);
        assert_eq!(status(&absent, "b"), Some(410));
        assert_eq!(status(&absent, "c"), None);
    }

    #[test]
    fn it_is_forgotten_when_the_origin_is_asked_in_another_way() {
        let absent = NegativeCache::new(None);
        absent.insert(&key("a"), ACCESS, StatusCode::FORBIDDEN, LONG, 0);
        assert_eq!(status(&absent, "a"), Some(403));
        assert_eq!(absent.get(&key("a"), ACCESS + 1), None);
    }

    #[test]
    fn strangers_do_not_make_it_grow() {
        let absent = NegativeCache::new(None);
        for number in 0..3 * CAPACITY {
            absent.insert(
                &key(&number.to_string()),
                ACCESS,
                StatusCode::NOT_FOUND,
                LONG,
                0,
            );
        }
        assert!(absent.keys.len() <= CAPACITY);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_purge_voids_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), 1 << 20)).unwrap();
        let absent = NegativeCache::new(Some(cache));
        let asked_at = absent.purges();
        absent.insert(&key("a"), ACCESS, StatusCode::NOT_FOUND, LONG, asked_at);
        assert_eq!(status(&absent, "a"), Some(404));
        cache.purge_key(&key("a")).await.unwrap();
        assert_eq!(status(&absent, "a"), None);
        // Asked before, answered after.
        absent.insert(&key("a"), ACCESS, StatusCode::NOT_FOUND, LONG, asked_at);
        assert_eq!(status(&absent, "a"), None);
        let asked_at = absent.purges();
        absent.insert(&key("a"), ACCESS, StatusCode::NOT_FOUND, LONG, asked_at);
        assert_eq!(status(&absent, "a"), Some(404));
        cache.ban_prefix("bucket", b"").await.unwrap();
        assert_eq!(status(&absent, "a"), None);
    }
}
