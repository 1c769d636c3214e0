//! The entries in use: small bodies in memory, open files of the others.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use pingora_cache::CacheMeta;
use pingora_core::Result;
use quick_cache::sync::Cache;
use quick_cache::Weighter;

use crate::cache::state::body_file::BodyFile;
use crate::cache::state::fast_header::FastHeader;
use crate::cache::state::sparse_body::SparseBody;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;

/// The body of an entry that is ready to be served.
#[derive(Debug, Clone)]
pub enum ReadyBody {
    /// The whole body in memory.
    Memory(Bytes),
    /// The open file.
    File(Arc<BodyFile>),
    /// The open file of a body in blocks. The metadata has no map of them.
    Sparse(Arc<SparseBody>),
}

/// An entry that was opened and checked, ready to be served.
#[derive(Debug)]
pub struct ReadyEntry {
    /// The entry.
    pub id: EntryId,
    /// Content of the metadata file.
    pub meta: EntryMeta,
    /// The metadata in the form of Pingora, made on first use.
    parsed: OnceLock<CacheMeta>,
    /// Set by the first hit that can prepare it.
    fast_header: OnceLock<FastHeader>,
    /// The body.
    pub body: ReadyBody,
}

/// Approximate size of parsed metadata and a prepared header: two maps of the fields and
/// their values, whose encoded form is compressed.
fn parsed_len(encoded_len: u64) -> u64 {
    2 * (1024 + 4 * encoded_len)
}

impl ReadyEntry {
    /// An entry that was opened.
    pub fn new(id: EntryId, meta: EntryMeta, body: ReadyBody) -> Arc<ReadyEntry> {
        Arc::new(ReadyEntry {
            id,
            meta,
            parsed: OnceLock::new(),
            fast_header: OnceLock::new(),
            body,
        })
    }

    /// The open file, if the body is not in memory.
    pub(crate) fn file(&self) -> Option<&Arc<BodyFile>> {
        match &self.body {
            ReadyBody::Memory(_) => None,
            ReadyBody::File(file) => Some(file),
            ReadyBody::Sparse(body) => Some(&body.file),
        }
    }

    /// The body, if blocks of it are missing.
    pub(crate) fn incomplete(&self) -> Option<&Arc<SparseBody>> {
        match &self.body {
            ReadyBody::Sparse(body) if !body.is_complete() => Some(body),
            _ => None,
        }
    }

    /// Pingora's metadata.
    pub fn cache_meta(&self) -> Result<&CacheMeta> {
        if let Some(parsed) = self.parsed.get() {
            return Ok(parsed);
        }
        let meta = CacheMeta::deserialize(&self.meta.internal, &self.meta.header)?;
        // Another lookup may have been faster.
        Ok(self.parsed.get_or_init(|| meta))
    }

    /// The prepared header that hits send.
    pub(crate) fn fast_header(&self) -> Option<&FastHeader> {
        self.fast_header.get()
    }

    /// Set the prepared header. The first one stays.
    pub(crate) fn set_fast_header(&self, mut header: FastHeader) {
        header.set_tag(&self.meta.key.user_tag);
        let _ = self.fast_header.set(header);
    }

    /// Size in memory, in bytes.
    fn memory(&self) -> u64 {
        let body = match &self.body {
            ReadyBody::Memory(body) => body.len(),
            ReadyBody::File(_) | ReadyBody::Sparse(_) => 0,
        };
        let meta = self.meta.encoded_len();
        size_of::<ReadyEntry>() as u64 + meta + parsed_len(meta) + body as u64
    }
}

/// Longest metadata that is kept with an open file, so that the limit on files is a limit on
/// memory as well.
const MAX_META_KEPT: u64 = 64 * 1024;

#[derive(Clone)]
struct ByMemory;

impl Weighter<EntryId, Arc<ReadyEntry>> for ByMemory {
    fn weight(&self, _: &EntryId, entry: &Arc<ReadyEntry>) -> u64 {
        entry.memory()
    }
}

/// Two bounded tiers: small bodies in memory, and open files of the others.
pub struct OpenEntries {
    memory: Option<Cache<EntryId, Arc<ReadyEntry>, ByMemory>>,
    files: Option<Cache<EntryId, Arc<ReadyEntry>>>,
}

/// Number of entries that a tier is laid out for. It grows and shrinks with their size.
fn expected(memory_bytes: u64) -> usize {
    (memory_bytes / 8192).clamp(16, 1 << 20) as usize
}

impl OpenEntries {
    /// Keep bodies in at most `memory_bytes`, and at most `max_open_files` files open. 0: none.
    pub fn new(memory_bytes: u64, max_open_files: usize) -> Self {
        OpenEntries {
            memory: (memory_bytes > 0)
                .then(|| Cache::with_weighter(expected(memory_bytes), memory_bytes, ByMemory)),
            files: (max_open_files > 0).then(|| Cache::new(max_open_files)),
        }
    }

    /// True if there is a tier for small bodies.
    pub fn keeps_bodies(&self) -> bool {
        self.memory.is_some()
    }

    /// An entry, if it is in use. `large`: its body is more likely a file than in memory, so
    /// that tier is searched first.
    pub fn get(&self, id: &EntryId, large: bool) -> Option<Arc<ReadyEntry>> {
        let memory = || self.memory.as_ref().and_then(|tier| tier.get(id));
        let files = || self.files.as_ref().and_then(|tier| tier.get(id));
        if large {
            files().or_else(memory)
        } else {
            memory().or_else(files)
        }
    }

    /// Keep an entry, unless it is kept already.
    pub fn keep(&self, entry: &Arc<ReadyEntry>) {
        if self.get(&entry.id, false).is_none() {
            self.replace(entry.clone());
        }
    }

    /// Keep an entry, replacing an older state of it.
    pub fn replace(&self, entry: Arc<ReadyEntry>) {
        match (&entry.body, &self.memory, &self.files) {
            (ReadyBody::Memory(_), Some(memory), _) => memory.insert(entry.id, entry),
            (ReadyBody::File(_) | ReadyBody::Sparse(_), _, Some(files))
                if entry.meta.encoded_len() <= MAX_META_KEPT =>
            {
                files.insert(entry.id, entry);
            }
            _ => self.forget(&entry.id),
        }
    }

    /// Forget an entry.
    pub fn forget(&self, id: &EntryId) {
        if let Some(memory) = &self.memory {
            memory.remove(id);
        }
        if let Some(files) = &self.files {
            files.remove(id);
        }
    }

    /// Close all files that are not being sent.
    pub fn close_files(&self) {
        if let Some(files) = &self.files {
            files.clear();
        }
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, Cache::weight)
    }

    /// Files that are kept open.
    pub fn open_files(&self) -> usize {
        self.files.as_ref().map_or(0, Cache::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_cache::key::CompactCacheKey;

    fn entry(number: u64, body: ReadyBody) -> Arc<ReadyEntry> {
        let mut hash = [0; 16];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        let id = EntryId {
            hash,
            generation: 1,
        };
        let meta = EntryMeta {
            key: CompactCacheKey::default(),
            primary_key: vec![],
            generation: 1,
            stored_at: 0,
            body_len: 0,
            body_crc32: 0,
            blocks: None,
            internal: vec![0; 20],
            header: vec![0; 100],
        };
        ReadyEntry::new(id, meta, body)
    }

    fn file() -> ReadyBody {
        let file = std::fs::File::open("/dev/null").unwrap();
        ReadyBody::File(Arc::new(BodyFile::new(Arc::new(file))))
    }

    #[test]
    fn memory_is_bounded_by_bytes() {
        let entries = OpenEntries::new(1_000_000, 10);
        for number in 0..1000 {
            entries.keep(&entry(number, ReadyBody::Memory(vec![0; 10_000].into())));
            assert!(entries.memory_bytes() <= 1_000_000);
        }
        assert!(entries.memory_bytes() > 500_000);
        assert_eq!(entries.open_files(), 0);
    }

    #[test]
    fn open_files_are_bounded_by_number() {
        let entries = OpenEntries::new(0, 10);
        for number in 0..1000 {
            entries.keep(&entry(number, file()));
            assert!(entries.open_files() <= 10);
        }
        entries.close_files();
        assert_eq!(entries.open_files(), 0);
        entries.keep(&entry(1, ReadyBody::Memory(Bytes::new())));
        assert!(
            entries.get(&entry(1, file()).id, false).is_none(),
            "no memory tier"
        );
    }

    #[test]
    fn what_is_kept_can_be_replaced_and_forgotten() {
        let entries = OpenEntries::new(1_000_000, 10);
        for body in [ReadyBody::Memory(Bytes::from_static(b"x")), file()] {
            let entry = entry(1, body);
            entries.keep(&entry);
            let header = |entries: &OpenEntries| {
                entries
                    .get(&entry.id, false)
                    .map(|kept| kept.meta.header.len())
            };
            assert_eq!(header(&entries), Some(100));
            let meta = EntryMeta {
                header: vec![0; 7],
                ..entry.meta.clone()
            };
            let newer = ReadyEntry::new(entry.id, meta, entry.body.clone());
            entries.keep(&newer);
            assert_eq!(header(&entries), Some(100), "the first stays");
            entries.replace(newer);
            assert_eq!(header(&entries), Some(7));
            entries.forget(&entry.id);
            assert_eq!(header(&entries), None);
        }
    }
}
