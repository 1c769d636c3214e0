//! Answers to HEAD.
//!
//! They are kept in memory and apart from stored responses, so that none of them can answer a GET
//! or replace a body. A stored response takes precedence over them. An answer is dropped when the
//! origin sends another validator for its object or no longer has it, and on any purge.

use std::time::{Duration, Instant, SystemTime};

use http::header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED};
use http::StatusCode;
use pingora_cache::key::HashBinary;
use pingora_cache::CacheMeta;
use pingora_http::ResponseHeader;
use quick_cache::sync::Cache;
use quick_cache::Weighter;

use super::rules::freshness::ttl;

/// The size of all kept headers, in bytes. The least requested ones are evicted first.
const CAPACITY: u64 = 16 << 20;

/// The size of an entry without its fields, in bytes.
const OVERHEAD: usize = 512;

/// The size of a field without its name and value, in bytes.
const FIELD_OVERHEAD: usize = 64;

/// The largest header that is kept, in bytes.
const MAX_WEIGHT: usize = 16 << 10;

/// The expected number of entries.
const EXPECTED: usize = 8192;

/// The answers of the origin to HEAD.
pub(super) struct HeadCache {
    ttl: Duration,
    answers: Cache<HashBinary, Head, ByWeight>,
}

#[derive(Clone)]
struct Head {
    meta: CacheMeta,
    weight: usize,
    until: Instant,
    purges: u64,
}

#[derive(Clone)]
struct ByWeight;

/// A HEAD that goes to the origin.
pub(super) struct HeadLookup {
    pub key: HashBinary,
    /// The number of purges at the time of the request.
    pub purges: u64,
}

impl Weighter<HashBinary, Head> for ByWeight {
    fn weight(&self, _key: &HashBinary, head: &Head) -> u64 {
        head.weight as u64
    }
}

// === impl HeadCache ===

impl HeadCache {
    /// Keep answers for `ttl`; zero to keep none.
    pub(super) fn new(ttl: Duration) -> HeadCache {
        HeadCache {
            ttl,
            answers: Cache::with_weighter(EXPECTED, CAPACITY, ByWeight),
        }
    }

    pub(super) fn are_kept(&self) -> bool {
        !self.ttl.is_zero()
    }

    /// Keep the answer to a HEAD, with its freshness.
    pub(super) fn insert(&self, asked: &HeadLookup, meta: CacheMeta) {
        let fresh = ttl(meta.fresh_until(), SystemTime::now());
        let fresh = Duration::from_secs(u64::try_from(fresh).unwrap_or(0));
        let weight = weight(meta.response_header());
        if !self.are_kept() || fresh.is_zero() || weight > MAX_WEIGHT {
            return;
        }
        let head = Head {
            meta,
            weight,
            until: Instant::now() + fresh.min(self.ttl),
            purges: asked.purges,
        };
        self.answers.insert(asked.key, head);
    }

    /// The kept answer for an object. `purges`: the current number of purges.
    pub(super) fn get(&self, key: &HashBinary, purges: u64) -> Option<CacheMeta> {
        let head = self.answers.get(key)?;
        let is_usable = head.purges == purges && Instant::now() < head.until;
        is_usable.then_some(head.meta)
    }

    /// Drop the answer for an object if the origin now describes the object differently.
    pub(super) fn observe(&self, key: &HashBinary, response: &ResponseHeader) {
        if self.answers.is_empty() {
            return;
        }
        let is_gone = matches!(response.status, StatusCode::NOT_FOUND | StatusCode::GONE);
        let is_there = matches!(
            response.status,
            StatusCode::OK | StatusCode::PARTIAL_CONTENT
        );
        let Some(head) = self.answers.get(key).filter(|_| is_gone || is_there) else {
            return;
        };
        let kept = head.meta.headers();
        let is_same = |name| kept.get(&name) == response.headers.get(&name);
        let same_len = response.status != StatusCode::OK || is_same(CONTENT_LENGTH);
        if is_gone || !(is_same(ETAG) && is_same(LAST_MODIFIED) && same_len) {
            self.answers.remove(key);
        }
    }
}

fn weight(header: &ResponseHeader) -> usize {
    let fields = header.headers.iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
    OVERHEAD + fields.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> HashBinary {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    fn answer(status: u16, etag: &str) -> ResponseHeader {
        let mut header = ResponseHeader::build(status, None).unwrap();
        header.insert_header(ETAG, etag).unwrap();
        header.insert_header(CONTENT_LENGTH, 5).unwrap();
        header
    }

    fn fresh_for(secs: u64, etag: &str) -> CacheMeta {
        let now = SystemTime::now();
        let until = now + Duration::from_secs(secs);
        CacheMeta::new(until, now, 0, 0, answer(200, etag))
    }

    fn asked(number: u64) -> HeadLookup {
        HeadLookup {
            key: key(number),
            purges: 0,
        }
    }

    #[test]
    fn an_answer_is_kept_no_longer_than_it_is_fresh() {
        let heads = HeadCache::new(Duration::from_secs(60));
        heads.insert(&asked(1), fresh_for(60, "a"));
        assert!(heads.get(&key(1), 0).is_some());
        assert!(heads.get(&key(1), 1).is_none(), "after a purge");
        assert!(heads.get(&key(2), 0).is_none());
        heads.insert(&asked(2), fresh_for(0, "a"));
        assert!(heads.get(&key(2), 0).is_none());
        let off = HeadCache::new(Duration::ZERO);
        off.insert(&asked(1), fresh_for(60, "a"));
        assert!(off.get(&key(1), 0).is_none());
    }

    #[test]
    fn another_version_and_absence_void_it() {
        for (later, stays) in [
            (answer(200, "a"), true),
            (answer(206, "a"), true),
            (answer(200, "b"), false),
            (answer(206, "b"), false),
            (answer(404, "a"), false),
            (answer(410, "a"), false),
            (answer(500, "b"), true),
            (answer(403, "b"), true),
        ] {
            let heads = HeadCache::new(Duration::from_secs(60));
            heads.insert(&asked(1), fresh_for(60, "a"));
            heads.observe(&key(1), &later);
            assert_eq!(heads.get(&key(1), 0).is_some(), stays, "{later:?}");
        }
    }

    #[test]
    fn strangers_do_not_make_it_grow() {
        let heads = HeadCache::new(Duration::from_secs(60));
        for number in 0..100_000 {
            heads.insert(&asked(number), fresh_for(60, "a"));
        }
        assert!(heads.answers.weight() <= CAPACITY);
        assert!(heads.answers.len() < 100_000);
        let mut long = answer(200, "a");
        long.insert_header("x-amz-meta-a", "a".repeat(MAX_WEIGHT))
            .unwrap();
        let now = SystemTime::now();
        let meta = CacheMeta::new(now + Duration::from_secs(60), now, 0, 0, long);
        heads.insert(&asked(u64::MAX), meta);
        assert!(heads.get(&key(u64::MAX), 0).is_none());
    }
}
