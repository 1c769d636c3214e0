//! What is kept of entries that are in use: bodies in memory, open files.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use pingora_cache::CacheMeta;
use pingora_core::Result;
use quick_cache::sync::Cache;
use quick_cache::Weighter;

use crate::cache::state::body_file::BodyFile;
use crate::cache::store::format::EntryMeta;
use crate::cache::{EntryId, Prepared};

/// The body of an entry that is ready to be served.
#[derive(Debug, Clone)]
pub enum HotBody {
    /// The whole of it.
    Memory(Bytes),
    /// Its open file.
    File(Arc<BodyFile>),
}

/// An entry that was opened and checked.
#[derive(Debug)]
pub struct HotEntry {
    /// Which entry.
    pub id: EntryId,
    /// What its metadata file says.
    pub meta: EntryMeta,
    /// The same as Pingora wants it, made when it is first asked for.
    parsed: OnceLock<CacheMeta>,
    /// See [`DiskHit::prepare`](crate::cache::DiskHit::prepare).
    prepared: OnceLock<Prepared>,
    /// Its body.
    pub body: HotBody,
}

/// About what parsed metadata takes, and a prepared header: two maps of the fields
/// and their values, of which the encoded form is compressed.
fn parsed_len(encoded_len: u64) -> u64 {
    2 * (1024 + 4 * encoded_len)
}

impl HotEntry {
    /// An entry that was opened.
    pub fn new(id: EntryId, meta: EntryMeta, body: HotBody) -> Arc<HotEntry> {
        Arc::new(HotEntry {
            id,
            meta,
            parsed: OnceLock::new(),
            prepared: OnceLock::new(),
            body,
        })
    }

    /// Pingora's metadata.
    pub fn cache_meta(&self) -> Result<&CacheMeta> {
        if let Some(parsed) = self.parsed.get() {
            return Ok(parsed);
        }
        let meta = CacheMeta::deserialize(&self.meta.internal, &self.meta.header)?;
        // Another lookup may have been first.
        Ok(self.parsed.get_or_init(|| meta))
    }

    /// What hits are answered with.
    pub(crate) fn prepared(&self) -> Option<&Prepared> {
        self.prepared.get()
    }

    /// Set it, unless it is.
    pub(crate) fn prepare(&self, mut prepared: Prepared) {
        prepared.set_tag(&self.meta.key.user_tag);
        let _ = self.prepared.set(prepared);
    }

    /// Bytes of memory that it takes.
    fn memory(&self) -> u64 {
        let body = match &self.body {
            HotBody::Memory(body) => body.len(),
            HotBody::File(_) => 0,
        };
        let meta = self.meta.encoded_len();
        size_of::<HotEntry>() as u64 + meta + parsed_len(meta) + body as u64
    }
}

/// Metadata longer than this is not kept with an open file, so that a number of
/// files is a number of bytes too.
const MAX_META_KEPT: u64 = 64 * 1024;

#[derive(Clone)]
struct ByMemory;

impl Weighter<EntryId, Arc<HotEntry>> for ByMemory {
    fn weight(&self, _: &EntryId, entry: &Arc<HotEntry>) -> u64 {
        entry.memory()
    }
}

/// Two bounded tiers: small bodies in memory, and open files of the others.
pub struct Hot {
    memory: Option<Cache<EntryId, Arc<HotEntry>, ByMemory>>,
    files: Option<Cache<EntryId, Arc<HotEntry>>>,
}

/// Entries that a tier is laid out for; it grows and shrinks with their size.
fn expected(memory_bytes: u64) -> usize {
    (memory_bytes / 8192).clamp(16, 1 << 20) as usize
}

impl Hot {
    /// Keep bodies in so many bytes, and so many files open. 0: none.
    pub fn new(memory_bytes: u64, max_open_files: usize) -> Self {
        Hot {
            memory: (memory_bytes > 0)
                .then(|| Cache::with_weighter(expected(memory_bytes), memory_bytes, ByMemory)),
            files: (max_open_files > 0).then(|| Cache::new(max_open_files)),
        }
    }

    /// Whether there is a tier for small bodies.
    pub fn keeps_bodies(&self) -> bool {
        self.memory.is_some()
    }

    /// An entry, if it is in use. `large`: its body is rather a file than in memory,
    /// so it is looked for there first.
    pub fn get(&self, id: &EntryId, large: bool) -> Option<Arc<HotEntry>> {
        let memory = || self.memory.as_ref().and_then(|tier| tier.get(id));
        let files = || self.files.as_ref().and_then(|tier| tier.get(id));
        if large {
            files().or_else(memory)
        } else {
            memory().or_else(files)
        }
    }

    /// Keep an entry, unless it is kept already.
    pub fn keep(&self, entry: &Arc<HotEntry>) {
        if self.get(&entry.id, false).is_none() {
            self.replace(entry.clone());
        }
    }

    /// Keep an entry, also in place of what is kept of it.
    pub fn replace(&self, entry: Arc<HotEntry>) {
        match (&entry.body, &self.memory, &self.files) {
            (HotBody::Memory(_), Some(memory), _) => memory.insert(entry.id, entry),
            (HotBody::File(_), _, Some(files)) if entry.meta.encoded_len() <= MAX_META_KEPT => {
                files.insert(entry.id, entry);
            }
            _ => self.forget(&entry.id),
        }
    }

    /// Drop what is kept of an entry.
    pub fn forget(&self, id: &EntryId) {
        if let Some(memory) = &self.memory {
            memory.remove(id);
        }
        if let Some(files) = &self.files {
            files.remove(id);
        }
    }

    /// Close all files that nobody is being sent.
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

    fn entry(number: u64, body: HotBody) -> Arc<HotEntry> {
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
            internal: vec![0; 20],
            header: vec![0; 100],
        };
        HotEntry::new(id, meta, body)
    }

    fn file() -> HotBody {
        let file = std::fs::File::open("/dev/null").unwrap();
        HotBody::File(Arc::new(BodyFile::new(Arc::new(file))))
    }

    #[test]
    fn memory_is_bounded_by_bytes() {
        let hot = Hot::new(1_000_000, 10);
        for number in 0..1000 {
            hot.keep(&entry(number, HotBody::Memory(vec![0; 10_000].into())));
            assert!(hot.memory_bytes() <= 1_000_000);
        }
        assert!(hot.memory_bytes() > 500_000);
        assert_eq!(hot.open_files(), 0);
    }

    #[test]
    fn open_files_are_bounded_by_number() {
        let hot = Hot::new(0, 10);
        for number in 0..1000 {
            hot.keep(&entry(number, file()));
            assert!(hot.open_files() <= 10);
        }
        hot.close_files();
        assert_eq!(hot.open_files(), 0);
        hot.keep(&entry(1, HotBody::Memory(Bytes::new())));
        assert!(
            hot.get(&entry(1, file()).id, false).is_none(),
            "no memory tier"
        );
    }

    #[test]
    fn what_is_kept_can_be_replaced_and_forgotten() {
        let hot = Hot::new(1_000_000, 10);
        for body in [HotBody::Memory(Bytes::from_static(b"x")), file()] {
            let entry = entry(1, body);
            hot.keep(&entry);
            let header = |hot: &Hot| hot.get(&entry.id, false).map(|kept| kept.meta.header.len());
            assert_eq!(header(&hot), Some(100));
            let meta = EntryMeta {
                header: vec![0; 7],
                ..entry.meta.clone()
            };
            let newer = HotEntry::new(entry.id, meta, entry.body.clone());
            hot.keep(&newer);
            assert_eq!(header(&hot), Some(100), "the first stays");
            hot.replace(newer);
            assert_eq!(header(&hot), Some(7));
            hot.forget(&entry.id);
            assert_eq!(header(&hot), None);
        }
    }
}
