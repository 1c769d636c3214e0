//! Metadata and header of an entry whose file may be closed.

use std::sync::Arc;

use crate::cache::state::fast_header::FastHeader;
use crate::cache::store::format::EntryMeta;

/// Metadata and header of an entry: enough to serve it once its body is opened. The body of a
/// generation that is stored whole never changes, so only its length has to be checked. Bodies in
/// blocks grow, so their entries are not kept.
///
/// It is compact, because many more entries are hot than files may be open: the metadata as it is
/// stored, and the header as HTTP/1 sends it. With the fields that MinIO sends, it takes 1.6 KB.
#[derive(Debug, Clone)]
pub(crate) struct KnownEntry {
    /// Content of the metadata file.
    pub meta: Arc<EntryMeta>,
    fast_header: Option<FastHeader>,
}

/// Memory that an entry takes beside the bytes of its metadata and its header: a slot of the table
/// (150 bytes), the structures, and what the allocator adds to six allocations.
const FIXED_LEN: u64 = 480;

impl KnownEntry {
    /// An entry with this metadata, and with its prepared header where there is one.
    pub fn new(meta: Arc<EntryMeta>, fast_header: Option<FastHeader>) -> Self {
        KnownEntry { meta, fast_header }
    }

    /// The prepared header.
    pub fn fast_header(&self) -> Option<&FastHeader> {
        self.fast_header.as_ref()
    }

    /// True if its key has a variance.
    pub fn is_variant(&self) -> bool {
        self.meta.key.variance.is_some()
    }

    /// Size in memory, in bytes.
    pub fn memory(&self) -> u64 {
        let header = self.fast_header.as_ref();
        let header = header.map_or(0, |header| header.header.h1_len() as u64);
        FIXED_LEN + self.meta.encoded_len() + header
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pingora_cache::{CacheKey, CacheMeta};
    use pingora_http::ResponseHeader;

    use super::*;

    /// An entry with the fields that MinIO sends, and its header as hits send it.
    fn of_minio() -> KnownEntry {
        let mut header = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Accept-Ranges", "bytes"),
            ("Content-Length", "65536"),
            ("Content-Type", "application/octet-stream"),
            ("ETag", "\"5d41402abc4b2a76b9719d911017c592\""),
            ("Last-Modified", "Sun, 29 Nov 2026 22:48:41 GMT"),
            ("Server", "MinIO"),
            (
                "Strict-Transport-Security",
                "max-age=31536000; includeSubDomains",
            ),
            ("Vary", "Origin"),
            ("Vary", "Accept-Encoding"),
            (
                "X-Amz-Id-2",
                "dd9025bab4ad464b049177c95eb6ebf374d3b3fd1af9251148b658df7ac2e3e8",
            ),
            ("X-Amz-Request-Id", "187C6A4B2E5F1D30"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Xss-Protection", "1; mode=block"),
            ("Date", "Sun, 29 Nov 2026 23:53:28 GMT"),
        ] {
            header.append_header(name, value).unwrap();
        }
        let now = SystemTime::now();
        let meta = CacheMeta::new(now, now, 0, 0, header.clone());
        header.insert_header("X-Cache", "HIT").unwrap();
        let fast_header = FastHeader::new(header, &meta).expect("a header to prepare");
        let (internal, header) = meta.serialize().unwrap();
        let key = CacheKey::new("bucket/prefix/object-12345", "bucket");
        let meta = EntryMeta {
            key: key.to_compact(),
            primary_key: key.primary_key().to_vec(),
            generation: 1,
            stored_at: 0,
            body_len: 65_536,
            body_crc32: 0,
            blocks: None,
            internal,
            header,
        };
        KnownEntry::new(Arc::new(meta), Some(fast_header.compact()))
    }

    #[test]
    fn a_known_entry_takes_less_than_1700_bytes() {
        let memory = of_minio().memory();
        println!("a known entry takes {memory} bytes");
        assert!((1_300..1_700).contains(&memory), "{memory} bytes");
    }
}
