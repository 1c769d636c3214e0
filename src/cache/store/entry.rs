//! An entry whose files have been checked.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::io::backend::OpenFiles;
use crate::cache::io::regular::check_len;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;

/// An entry that has been opened and found complete.
#[derive(Debug)]
pub struct OpenEntry {
    /// Content of the metadata file.
    pub meta: EntryMeta,
    /// The body file.
    pub body: Arc<File>,
    /// The whole body, if it was short enough to be read with the metadata. Its checksum has
    /// been verified.
    pub prefetched: Option<Bytes>,
}

impl OpenEntry {
    /// Check that opened files belong together.
    ///
    /// `InvalidData`: they contradict each other (truncated, foreign, flipped bits).
    pub fn checked(id: &EntryId, files: OpenFiles) -> io::Result<OpenEntry> {
        let meta = EntryMeta::decode(&files.meta)?;
        meta.check_id(id)?;
        check_len(files.body_len, meta.body_len)?;
        if let Some(body) = &files.prefetched {
            meta.check_body(body)?;
        }
        Ok(OpenEntry {
            meta,
            body: files.body,
            prefetched: files.prefetched,
        })
    }
}

#[cfg(test)]
mod tests {
    use pingora_cache::key::CacheHashKey;
    use pingora_cache::CacheKey;

    use super::*;

    const BODY: &[u8] = b"0123456789";

    fn entry() -> (EntryId, EntryMeta) {
        let key = CacheKey::new("host\n/bucket/key", "bucket").to_compact();
        let id = EntryId {
            hash: key.combined_bin(),
            generation: 1,
        };
        let meta = EntryMeta {
            key,
            primary_key: b"host\n/bucket/key".to_vec(),
            generation: 1,
            stored_at: 0,
            body_len: BODY.len() as u64,
            body_crc32: crc32fast::hash(BODY),
            blocks: None,
            internal: vec![1],
            header: vec![2],
        };
        (id, meta)
    }

    fn files(meta: &EntryMeta, body_len: u64, prefetched: Option<&'static [u8]>) -> OpenFiles {
        OpenFiles {
            meta: meta.encode(),
            body: Arc::new(tempfile::tempfile().unwrap()),
            body_len,
            prefetched: prefetched.map(Bytes::from_static),
        }
    }

    fn refused(id: &EntryId, files: OpenFiles) {
        let e = OpenEntry::checked(id, files).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn files_that_belong_together_are_an_entry() {
        let (id, meta) = entry();
        for prefetched in [None, Some(BODY)] {
            let open = OpenEntry::checked(&id, files(&meta, 10, prefetched)).unwrap();
            assert_eq!(open.meta, meta);
            assert_eq!(open.prefetched.as_deref(), prefetched);
        }
    }

    #[test]
    fn a_body_of_another_length_or_content_is_no_entry() {
        let (id, meta) = entry();
        for len in [0, 9, 11] {
            refused(&id, files(&meta, len, None));
        }
        refused(&id, files(&meta, 10, Some(b"0123456788")));
        refused(&id, files(&meta, 10, Some(b"012345678")));
    }

    #[test]
    fn files_of_another_entry_are_no_entry() {
        let (id, meta) = entry();
        let other = EntryId {
            generation: 2,
            ..id
        };
        refused(&other, files(&meta, 10, None));
        let other = EntryId {
            hash: [id.hash[0]; 16],
            ..id
        };
        refused(&other, files(&meta, 10, None));
    }
}
