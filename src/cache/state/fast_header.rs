//! What a hit is answered with as long as its entry is fresh.

use std::time::SystemTime;

use pingora_cache::CacheMeta;
use pingora_core::protocols::http::prepared_header::PreparedHeader;
use pingora_http::ResponseHeader;

/// The header of a hit that is sent again.
///
/// Its times are those of the entry's metadata. They stand here once more because a
/// hit then finds them where it finds the header: of the entries of a large cache, few
/// are in a cache of the processor, and each other place that is read costs a wait for
/// memory. For the same reason it is a part of the [entry](crate::cache::state::open_entries::HotEntry).
#[derive(Debug)]
pub(crate) struct Prepared {
    pub header: PreparedHeader,
    pub fresh_until: SystemTime,
    pub updated: SystemTime,
    pub epoch: SystemTime,
    /// Length and CRC-32 of the user tag of the entry's key.
    tag: (usize, u32),
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
            tag: sum(""),
        })
    }

    /// Note the user tag of the entry's key.
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
