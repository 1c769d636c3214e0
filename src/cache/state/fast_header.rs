//! The prepared header of a hit, as long as its entry is fresh.

use std::time::SystemTime;

use pingora_cache::CacheMeta;
use pingora_core::protocols::http::prepared_header::PreparedHeader;
use pingora_http::ResponseHeader;

/// A prepared header that each hit of an entry sends.
///
/// The times are those of the entry's metadata. They are repeated here so that a hit finds
/// them next to the header: few entries of a large cache are in a cache of the processor, and
/// each other place that is read costs a wait for memory. For the same reason this is a part
/// of the [entry](crate::cache::state::open_entries::ReadyEntry).
#[derive(Debug, Clone)]
pub(crate) struct FastHeader {
    pub header: PreparedHeader,
    pub fresh_until: SystemTime,
    pub updated: SystemTime,
    pub epoch: SystemTime,
    /// The rules of the proxy that the header was prepared by, as a tag.
    pub rules: u32,
    /// Length and CRC-32 of the user tag of the entry's key.
    tag: (usize, u32),
}

impl FastHeader {
    /// A header from `response`, to which nothing that depends on the time was added, of an
    /// entry with this metadata. `None`: it cannot be sent as it is.
    pub fn new(response: ResponseHeader, meta: &CacheMeta) -> Option<Self> {
        Some(FastHeader {
            header: PreparedHeader::new(response)?,
            fresh_until: meta.fresh_until(),
            updated: meta.updated(),
            epoch: meta.epoch(),
            rules: 0,
            tag: sum(""),
        })
    }

    /// A copy that shares nothing, in the least memory.
    pub fn compact(&self) -> Self {
        FastHeader {
            header: self.header.compact(),
            ..*self
        }
    }

    /// Set the user tag of the entry's key.
    pub fn set_tag(&mut self, tag: &str) {
        self.tag = sum(tag);
    }

    /// True if the entry is for keys with this user tag, which is not part of their hash.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tag == sum(tag)
    }
}

fn sum(tag: &str) -> (usize, u32) {
    (tag.len(), crc32fast::hash(tag.as_bytes()))
}
