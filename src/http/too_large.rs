//! Objects that are larger than the whole cache.

use pingora_cache::predictor::{CacheablePredictor, Predictor};
use pingora_cache::{CacheKey, NoCacheReason};

use crate::cache::DiskCache;

const SHARDS: usize = 16;

/// The number of keys that each shard remembers.
const SHARD_CAPACITY: usize = 1024;

/// Remembers the objects that were too large, so that the cache does not try to store them again.
/// The disk cache itself notes those of unknown length. Objects that were not stored for other
/// reasons are tried each time.
pub struct TooLarge {
    predictor: Predictor<SHARDS>,
    cache: &'static DiskCache,
}

impl TooLarge {
    /// A memory of the objects that are too large for `cache`.
    pub fn new(cache: &'static DiskCache) -> Self {
        TooLarge {
            predictor: Predictor::new(SHARD_CAPACITY, None),
            cache,
        }
    }
}

impl CacheablePredictor for TooLarge {
    fn cacheable_prediction(&self, key: &CacheKey) -> bool {
        self.predictor.cacheable_prediction(key) && !self.cache.is_too_large(key)
    }

    fn predicted_uncacheable_reason(&self, key: &CacheKey) -> Option<NoCacheReason> {
        let outgrown = self.cache.is_too_large(key);
        let reason = outgrown.then_some(NoCacheReason::ResponseTooLarge);
        reason.or_else(|| self.predictor.predicted_uncacheable_reason(key))
    }

    fn mark_cacheable(&self, key: &CacheKey) -> bool {
        self.cache.forget_too_large(key);
        self.predictor.mark_cacheable(key)
    }

    fn mark_uncacheable(&self, key: &CacheKey, reason: NoCacheReason) -> Option<bool> {
        match reason {
            NoCacheReason::ResponseTooLarge => self.predictor.mark_uncacheable(key, reason),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DiskCacheConfig;

    #[tokio::test]
    async fn only_size_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let config = DiskCacheConfig::new(dir.path(), 1 << 20);
        let too_large = TooLarge::new(DiskCache::open(config).unwrap());
        let key = CacheKey::new("key", "");
        too_large.mark_uncacheable(&key, NoCacheReason::OriginNotCache);
        assert!(too_large.cacheable_prediction(&key));
        too_large.mark_uncacheable(&key, NoCacheReason::ResponseTooLarge);
        assert!(!too_large.cacheable_prediction(&key));
        too_large.mark_cacheable(&key);
        assert!(too_large.cacheable_prediction(&key));
    }
}
