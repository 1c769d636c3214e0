//! The header of a hit that is sent again.

use std::time::SystemTime;

use pingora_cache::CacheMeta;
use pingora_core::protocols::http::prepared_header::PreparedHeader;
use pingora_http::ResponseHeader;

use super::freshness::{is_from_the_future, ttl};

/// What an entry is answered with, as long as it is fresh.
///
/// Its times are those of the entry's metadata. They stand here once more because a
/// hit then finds them beside the header: of the entries of a large cache, few are in
/// a cache of the processor, and each other place that is read costs a wait for memory.
pub(super) struct Prepared {
    header: PreparedHeader,
    fresh_until: SystemTime,
    updated: SystemTime,
    epoch: SystemTime,
}

impl Prepared {
    /// `response` before anything was added that depends on the time, of an entry with
    /// this metadata. `None`: it can not be sent as it is.
    pub fn new(response: ResponseHeader, meta: &CacheMeta) -> Option<Self> {
        Some(Prepared {
            header: PreparedHeader::new(response)?,
            fresh_until: meta.fresh_until(),
            updated: meta.updated(),
            epoch: meta.epoch(),
        })
    }

    /// What is sent.
    pub fn header(&self) -> &PreparedHeader {
        &self.header
    }

    /// Whether it may be sent now (RFC 9111 §4.2).
    pub fn is_usable(&self, now: SystemTime) -> bool {
        self.fresh_until >= now && !is_from_the_future(self.updated, now)
    }

    /// In seconds (RFC 9111 §4.2.3).
    pub fn age(&self, now: SystemTime) -> u64 {
        now.duration_since(self.epoch).unwrap_or_default().as_secs()
    }

    /// Seconds for which it is fresh.
    pub fn ttl(&self, now: SystemTime) -> i64 {
        ttl(self.fresh_until, now)
    }
}
