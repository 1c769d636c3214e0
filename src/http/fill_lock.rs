//! The lock that makes concurrent requests for a key one request to the origin.

use std::time::Duration;

use pingora_cache::lock::{CacheKeyLock, CacheLock, LockStatus, Locked, WritePermit};
use pingora_cache::predictor::{CacheablePredictor, Predictor};
use pingora_cache::{CacheKey, NoCacheReason};

use crate::cache::DiskCache;

const SHARDS: usize = 16;

/// The number of keys that each shard remembers.
const SHARD_CAPACITY: usize = 1024;

/// Pingora's cache lock, which releases a key when its fill begins or its stale response is
/// validated: from then on, requests find what they need.
///
/// A request that looked up before that moment and arrives here after it would find neither that
/// nor the lock, and would ask the origin once more. The lock makes it look up again.
///
/// Requests do not wait for a key whose last response was not stored, because the next response is
/// unlikely to be for all of them.
///
/// They do not wait either for a fill that was refused for lack of room or of a turn. The next fill
/// would wait for the same, and all waiting requests would be served one after the other.
///
/// Every key must have the extension that [`DiskCache::lookup_snapshot`] returns.
pub struct FillLock {
    lock: CacheLock,
    cache: &'static DiskCache,
    not_stored: Predictor<SHARDS>,
    /// Locks that are released at once, although nothing was stored.
    given_up: CacheLock,
}

impl FillLock {
    /// A lock for the fills of `cache`. Requests wait for another one that fills the same key. Each
    /// time `age` has passed, one of them asks the origin too.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use pingora_sendfile::cache::DiskCache;
    /// use pingora_sendfile::http::FillLock;
    ///
    /// fn lock(cache: &'static DiskCache) -> &'static FillLock {
    ///     // Pingora requires locks that live as long as the process.
    ///     Box::leak(Box::new(FillLock::new(cache, Duration::from_secs(10))))
    /// }
    /// ```
    pub fn new(cache: &'static DiskCache, age: Duration) -> Self {
        FillLock {
            lock: CacheLock::new(age),
            cache,
            not_stored: Predictor::new(SHARD_CAPACITY, None),
            given_up: CacheLock::new(age),
        }
    }

    fn looked_up_too_early(&self, key: &CacheKey, found_stale: bool) -> bool {
        match found_stale {
            true => self.cache.is_renewed(key),
            false => self.cache.is_new(key),
        }
    }

    /// True if the last response for a key was not stored.
    pub(super) fn gave_up(&self, key: &CacheKey) -> bool {
        !self.not_stored.cacheable_prediction(key)
    }

    /// A lock that is released at once, for a request that has found that nothing is stored.
    fn give_up(&self, key: &CacheKey) -> Locked {
        match self.given_up.lock(key, false) {
            Locked::Write(permit) => {
                let over = self.given_up.lock(key, false);
                self.given_up.release(key, permit, LockStatus::GiveUp);
                over
            }
            // Another request does the same.
            over => over,
        }
    }
}

impl CacheKeyLock for FillLock {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        match self.lock.lock(key, stale_writer) {
            Locked::Write(permit) if self.looked_up_too_early(key, stale_writer) => {
                let over_at_once = self.lock.lock(key, stale_writer);
                self.lock.release(key, permit, LockStatus::Done);
                over_at_once
            }
            Locked::Read(_) if self.gave_up(key) => self.give_up(key),
            locked => locked,
        }
    }

    fn release(&self, key: &CacheKey, permit: WritePermit, reason: LockStatus) {
        match reason {
            // The key is not marked, because the response can be stored once there is room.
            LockStatus::TransientError if self.cache.was_refused(key) => {
                return self.lock.release(key, permit, LockStatus::GiveUp);
            }
            LockStatus::GiveUp => {
                self.not_stored
                    .mark_uncacheable(key, NoCacheReason::OriginNotCache);
            }
            LockStatus::Done => {
                self.not_stored.mark_cacheable(key);
            }
            _ => {}
        }
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

    /// True if this request may ask the origin; false if it has to look up again.
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
    async fn one_who_waits_asks_when_the_first_takes_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), 1 << 20)).unwrap();
        let lock = FillLock::new(cache, Duration::from_millis(50));
        let key = CacheKey::new("key", "tag");
        let permit = || match lock.lock(&key, false) {
            Locked::Write(permit) => permit,
            Locked::Read(_) => panic!("nobody else asks"),
        };
        let wait = || match lock.lock(&key, false) {
            Locked::Read(read) => read,
            Locked::Write(_) => panic!("somebody asks"),
        };
        let hangs = permit();
        let waits = wait();
        waits.wait().await;
        assert_eq!(waits.lock_status(), LockStatus::AgeTimeout);
        let next = permit();
        assert!(wait().locked(), "only one of those who waited asks");
        for permit in [hangs, next] {
            lock.release(&key, permit, LockStatus::Done);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_waits_for_what_is_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), 1 << 20)).unwrap();
        let lock = FillLock::new(cache, Duration::from_secs(60));
        let key = CacheKey::new("key", "tag");
        let leader = |lock: &FillLock| match lock.lock(&key, false) {
            Locked::Write(permit) => permit,
            Locked::Read(_) => panic!("nobody else asks"),
        };
        let follower = |lock: &FillLock| match lock.lock(&key, false) {
            Locked::Write(_) => panic!("the leader asks"),
            Locked::Read(read) => read,
        };
        let first = leader(&lock);
        assert!(follower(&lock).locked(), "it may be stored");
        lock.release(&key, first, LockStatus::GiveUp);

        let second = leader(&lock);
        for _ in 0..3 {
            let over = follower(&lock);
            assert!(!over.locked());
            assert_eq!(over.lock_status(), LockStatus::GiveUp);
        }
        lock.release(&key, second, LockStatus::Done);
        let third = leader(&lock);
        assert!(follower(&lock).locked(), "it was stored");
        lock.release(&key, third, LockStatus::Done);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_go_on_at_once_when_a_fill_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = DiskCacheConfig::new(dir.path(), 1 << 20);
        config.max_fills = 1;
        let cache = DiskCache::open(config).unwrap();
        cache.wait_recovered();
        let lock = FillLock::new(cache, Duration::from_secs(60));
        let header = ResponseHeader::build(200, None).unwrap();
        let meta = CacheMeta::new(SystemTime::now(), SystemTime::now(), 0, 0, header);
        let span = Span::inactive().handle();
        let other = CacheKey::new("other", "tag");
        let _fills = cache.get_miss_handler(&other, &meta, &span).await.unwrap();

        let key = CacheKey::new("key", "tag");
        let leader = || match lock.lock(&key, false) {
            Locked::Write(permit) => permit,
            Locked::Read(_) => panic!("nobody else asks"),
        };
        let follower = || match lock.lock(&key, false) {
            Locked::Write(_) => panic!("the leader asks"),
            Locked::Read(read) => read,
        };
        let (permit, waits) = (leader(), [follower(), follower()]);
        let refused = cache.get_miss_handler(&key, &meta, &span).await;
        assert!(refused.is_err(), "there is no turn");
        lock.release(&key, permit, LockStatus::TransientError);
        for waits in waits {
            assert_eq!(waits.lock_status(), LockStatus::GiveUp);
        }
        assert!(!lock.gave_up(&key), "it may be stored yet");

        // The next one tries again after any other failure.
        let (permit, waits) = (leader(), follower());
        lock.release(&key, permit, LockStatus::TransientError);
        assert_eq!(waits.lock_status(), LockStatus::TransientError);
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

    #[tokio::test(flavor = "multi_thread")]
    async fn who_missed_the_validation_of_a_stale_response_looks_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), 1 << 20)).unwrap();
        let lock = FillLock::new(cache, Duration::from_secs(60));
        let asked_now = |name: &str| {
            let mut key = CacheKey::new(name, "tag");
            key.extensions.insert(cache.lookup_snapshot());
            key
        };
        let header = ResponseHeader::build(200, None).unwrap();
        let meta = CacheMeta::new(SystemTime::now(), SystemTime::now(), 0, 0, header);
        let span = Span::inactive().handle();
        for name in ["key", "other"] {
            let key = asked_now(name);
            let miss = cache.get_miss_handler(&key, &meta, &span).await.unwrap();
            miss.finish().await.unwrap();
        }
        cache.settle().await;

        let (before, other) = (asked_now("key"), asked_now("other"));
        assert!(may_ask(&lock, &before, true), "nobody has asked");
        assert!(cache.update_meta(&before, &meta, &span).await.unwrap());
        let after = asked_now("key");
        assert!(!may_ask(&lock, &before, true), "it was validated");
        assert!(may_ask(&lock, &after, true), "it is stale again");
        assert!(may_ask(&lock, &other, true), "another key");

        let replaced = cache.get_miss_handler(&after, &meta, &span).await.unwrap();
        assert!(!may_ask(&lock, &after, true), "it is being replaced");
        assert!(may_ask(&lock, &asked_now("key"), true));
        replaced.finish().await.unwrap();
    }
}
