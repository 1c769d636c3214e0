//! Which objects turned out larger than the whole cache.

use pingora_cache::predictor::{CacheablePredictor, Predictor};
use pingora_cache::{CacheKey, NoCacheReason};

const SHARDS: usize = 16;

/// How many keys each shard remembers.
const SHARD_CAPACITY: usize = 1024;

/// Remembers the objects that could not be stored for their size.
///
/// If an object does not tell its length, that is found out when most of it has
/// been sent, and then the transfer breaks: it came out of the file that was
/// given up. The next one shall not have to. Whatever else could not be stored
/// is asked about each time.
pub struct TooLarge(Predictor<SHARDS>);

impl Default for TooLarge {
    fn default() -> Self {
        TooLarge(Predictor::new(SHARD_CAPACITY, None))
    }
}

impl CacheablePredictor for TooLarge {
    fn cacheable_prediction(&self, key: &CacheKey) -> bool {
        self.0.cacheable_prediction(key)
    }

    fn predicted_uncacheable_reason(&self, key: &CacheKey) -> Option<NoCacheReason> {
        self.0.predicted_uncacheable_reason(key)
    }

    fn mark_cacheable(&self, key: &CacheKey) -> bool {
        self.0.mark_cacheable(key)
    }

    fn mark_uncacheable(&self, key: &CacheKey, reason: NoCacheReason) -> Option<bool> {
        match reason {
            NoCacheReason::ResponseTooLarge => self.0.mark_uncacheable(key, reason),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_size_is_remembered() {
        let too_large = TooLarge::default();
        let key = CacheKey::new("key", "");
        too_large.mark_uncacheable(&key, NoCacheReason::OriginNotCache);
        assert!(too_large.cacheable_prediction(&key));
        too_large.mark_uncacheable(&key, NoCacheReason::ResponseTooLarge);
        assert!(!too_large.cacheable_prediction(&key));
        too_large.mark_cacheable(&key);
        assert!(too_large.cacheable_prediction(&key));
    }
}
