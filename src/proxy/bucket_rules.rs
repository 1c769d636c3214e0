//! The rules of buckets for requests that are no downloads.

use std::time::Duration;

use crate::config::{self, Config};

/// The rules of a bucket for lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListRules {
    /// Clients may list the bucket.
    pub(super) is_open: bool,
    /// The time for which a stored list answers other requests; zero to store none.
    pub(super) ttl: Duration,
}

/// The configuration of the buckets for relayed requests.
#[derive(PartialEq, Eq)]
pub(super) struct RelayRules {
    /// `auth_ttl`, by the bucket's place in the configuration.
    pub(super) ttls: Box<[Duration]>,
    /// True for a bucket whose lists are stored, by the same place.
    pub(super) store_lists: Box<[bool]>,
}

// === impl ListRules ===

impl ListRules {
    pub(super) fn of(bucket: &config::Bucket) -> ListRules {
        ListRules {
            is_open: bucket.list,
            ttl: *bucket.list_ttl,
        }
    }
}

// === impl RelayRules ===

impl RelayRules {
    pub(super) fn new(config: &Config) -> RelayRules {
        let ttls = config.buckets.iter().map(|bucket| *bucket.auth_ttl);
        let store_lists = config.buckets.iter().map(|bucket| {
            let ttl: Duration = *bucket.list_ttl;
            bucket.list && !ttl.is_zero()
        });
        RelayRules {
            ttls: ttls.collect(),
            store_lists: store_lists.collect(),
        }
    }
}
