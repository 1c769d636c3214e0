//! Whether the header of a hit may be sent again, and with what.

use std::time::SystemTime;

use super::rules::freshness::{is_from_the_future, ttl};
use crate::cache::Prepared;

impl Prepared {
    /// Whether it may be sent now (RFC 9111 §4.2).
    pub(super) fn is_usable(&self, now: SystemTime) -> bool {
        self.fresh_until >= now && !is_from_the_future(self.updated, now)
    }

    /// In seconds (RFC 9111 §4.2.3).
    pub(super) fn age(&self, now: SystemTime) -> u64 {
        now.duration_since(self.epoch).unwrap_or_default().as_secs()
    }

    /// Seconds for which it is fresh.
    pub(super) fn ttl(&self, now: SystemTime) -> i64 {
        ttl(self.fresh_until, now)
    }
}
