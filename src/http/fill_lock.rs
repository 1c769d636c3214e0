//! One request to the origin for a key, however many clients ask at once.

use std::time::Duration;

use pingora_cache::lock::{CacheKeyLock, CacheLock, LockStatus, Locked, WritePermit};
use pingora_cache::CacheKey;

use crate::cache::DiskCache;

/// Pingora's cache lock, which forgets a key when its fill begins: from then on
/// there is something to follow.
///
/// A request that looked up before that, and comes here after, would find neither
/// the fill nor the lock, and ask the origin once more. It is told to look up
/// again.
pub(super) struct FillLock {
    lock: CacheLock,
    cache: &'static DiskCache,
}

impl FillLock {
    /// `timeout`: how long a request waits for another one that fills the same
    /// key, before it asks the origin itself.
    pub(super) fn new(cache: &'static DiskCache, timeout: Duration) -> Self {
        FillLock {
            lock: CacheLock::new(timeout),
            cache,
        }
    }
}

impl CacheKeyLock for FillLock {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        match self.lock.lock(key, stale_writer) {
            // What is stale was found, and is still there.
            Locked::Write(permit) if !stale_writer && self.cache.is_new(key) => {
                let over_at_once = self.lock.lock(key, stale_writer);
                self.lock.release(key, permit, LockStatus::Done);
                over_at_once
            }
            locked => locked,
        }
    }

    fn release(&self, key: &CacheKey, permit: WritePermit, reason: LockStatus) {
        self.lock.release(key, permit, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DiskCacheConfig;
    use pingora_cache::{trace::Span, CacheMeta, Storage};
    use pingora_http::ResponseHeader;
    use std::time::SystemTime;

    /// Whether who asks now may ask the origin; `false`: it looks up again.
    fn may_ask(lock: &FillLock, key: &CacheKey, stale: bool) -> bool {
        match lock.lock(key, stale) {
            Locked::Write(permit) => {
                lock.release(key, permit, LockStatus::Done);
                true
            }
            Locked::Read(over) => {
                assert_eq!(over.lock_status(), LockStatus::Done);
                assert!(!over.locked());
                false
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_missed_the_start_of_a_fill_looks_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), 1 << 20)).unwrap();
        let lock = FillLock::new(cache, Duration::from_secs(60));
        let key = CacheKey::new("key", "tag");
        let Locked::Write(leader) = lock.lock(&key, false) else {
            panic!("nobody else asks");
        };
        let Locked::Read(follower) = lock.lock(&key, false) else {
            panic!("the leader asks");
        };
        assert!(follower.locked());

        let header = ResponseHeader::build(200, None).unwrap();
        let meta = CacheMeta::new(SystemTime::now(), SystemTime::now(), 0, 0, header);
        let span = Span::inactive().handle();
        let miss = cache.get_miss_handler(&key, &meta, &span).await.unwrap();
        lock.release(&key, leader, LockStatus::Done);
        assert!(!follower.locked());
        for _ in 0..2 {
            assert!(!may_ask(&lock, &key, false), "it is being stored");
        }
        assert!(may_ask(&lock, &key, true), "it is stale");

        miss.finish().await.unwrap();
        cache.settle().await;
        assert!(!may_ask(&lock, &key, false), "it is stored");
        assert!(cache.purge_key(&key).await.unwrap());
        assert!(may_ask(&lock, &key, false), "it is gone");
    }
}
