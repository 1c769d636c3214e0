//! The entries in use: small bodies in memory, open files of the others, and metadata and headers of
//! entries whose bodies may be neither.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use pingora_cache::CacheMeta;
use pingora_core::Result;
use quick_cache::sync::Cache;
use quick_cache::Weighter;

use crate::cache::state::body_file::BodyFile;
use crate::cache::state::change_counts::{ChangeCounts, Changes};
use crate::cache::state::fast_header::FastHeader;
use crate::cache::state::known_entry::KnownEntry;
use crate::cache::state::reopened::Reopened;
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
///
/// A hit with a prepared header reads nothing of the metadata: what it needs is repeated here, see
/// [`FastHeader`].
#[derive(Debug)]
pub struct ReadyEntry {
    /// The entry.
    pub id: EntryId,
    body_len: u64,
    is_variant: bool,
    /// Content of the metadata file.
    pub meta: Arc<EntryMeta>,
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
        Self::with(id, Arc::new(meta), OnceLock::new(), body)
    }

    /// A known entry whose body was opened or read.
    pub(crate) fn reopened(id: EntryId, known: &KnownEntry, body: ReadyBody) -> Arc<Self> {
        // A copy, because what HTTP/2 adds to it is not counted as memory.
        let fast_header = known.fast_header().map(FastHeader::compact);
        let fast_header = fast_header.map_or_else(OnceLock::new, OnceLock::from);
        Self::with(id, known.meta.clone(), fast_header, body)
    }

    fn with(
        id: EntryId,
        meta: Arc<EntryMeta>,
        fast_header: OnceLock<FastHeader>,
        body: ReadyBody,
    ) -> Arc<ReadyEntry> {
        Arc::new(ReadyEntry {
            id,
            body_len: meta.body_len,
            is_variant: meta.key.variance.is_some(),
            meta,
            parsed: OnceLock::new(),
            fast_header,
            body,
        })
    }

    /// Length of the body, in bytes.
    pub fn body_len(&self) -> u64 {
        self.body_len
    }

    /// True if its key has a variance.
    pub fn is_variant(&self) -> bool {
        self.is_variant
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
            // The map of blocks grows, so it is not counted. It takes 20 bytes for each MiB that is
            // stored.
            ReadyBody::File(_) | ReadyBody::Sparse(_) => 0,
        };
        let meta = self.meta.encoded_len();
        let structs = size_of::<ReadyEntry>() + size_of::<EntryMeta>();
        structs as u64 + meta + parsed_len(meta) + body as u64
    }
}

/// Longest metadata that is kept with an open file, or without its file.
const MAX_META_KEPT: u64 = 64 * 1024;

/// Memory that an open file may take with its entry on average, in bytes. One that takes more counts
/// as several files, so that the limit on files is a limit on memory as well.
const MEMORY_PER_FILE: u64 = 16 * 1024;

#[derive(Clone)]
struct ByMemory;

impl Weighter<EntryId, Arc<ReadyEntry>> for ByMemory {
    fn weight(&self, _: &EntryId, entry: &Arc<ReadyEntry>) -> u64 {
        entry.memory()
    }
}

#[derive(Clone)]
struct ByFile;

impl Weighter<EntryId, Arc<ReadyEntry>> for ByFile {
    fn weight(&self, _: &EntryId, entry: &Arc<ReadyEntry>) -> u64 {
        entry.memory().div_ceil(MEMORY_PER_FILE)
    }
}

#[derive(Clone)]
struct ByMetadata;

impl Weighter<EntryId, KnownEntry> for ByMetadata {
    fn weight(&self, _: &EntryId, entry: &KnownEntry) -> u64 {
        entry.memory()
    }
}

/// Entries that are ready to be served.
struct Tier<W> {
    entries: Cache<EntryId, Arc<ReadyEntry>, W>,
    reopened: Reopened,
}

impl<W: Weighter<EntryId, Arc<ReadyEntry>> + Clone> Tier<W> {
    /// A tier for about so many entries.
    fn new(expected: usize, capacity: u64, weighter: W) -> Self {
        Tier {
            entries: Cache::with_weighter(expected, capacity, weighter),
            reopened: Reopened::new(expected),
        }
    }

    /// Note that an entry was opened again. True if it is worth keeping.
    fn note_reopened(&self, id: &EntryId) -> bool {
        self.reopened.note(id, || {
            let room = self.entries.capacity() / 8;
            let is_full = self.entries.weight() + room >= self.entries.capacity();
            is_full.then(|| self.entries.len())
        })
    }
}

/// Three bounded tiers: small bodies in memory, open files of the others, and metadata and headers of
/// both, except those of entries in blocks.
pub struct OpenEntries {
    memory: Option<Tier<ByMemory>>,
    files: Option<Tier<ByFile>>,
    known: Option<Cache<EntryId, KnownEntry, ByMetadata>>,
    /// Entries that were forgotten, or have got new metadata. A change is counted before the tiers
    /// are searched for the entry, and once more between `known` and the others.
    changes: ChangeCounts,
    /// Held while metadata is replaced, so that no header is kept with other metadata.
    renewing: Mutex<()>,
}

/// Number of entries that a tier is laid out for. It grows and shrinks with their size.
fn expected(memory_bytes: u64, bytes_an_entry: u64) -> usize {
    (memory_bytes / bytes_an_entry).clamp(16, 1 << 20) as usize
}

impl OpenEntries {
    /// Keep bodies in at most `memory_bytes`, metadata and headers in `metadata_bytes`, and at
    /// most `max_open_files` files open. 0: none.
    pub fn new(memory_bytes: u64, metadata_bytes: u64, max_open_files: usize) -> Self {
        let bodies = || {
            let expected = expected(memory_bytes, 8192);
            Tier::new(expected, memory_bytes, ByMemory)
        };
        let known = || {
            let expected = expected(metadata_bytes, 1024);
            Cache::with_weighter(expected, metadata_bytes, ByMetadata)
        };
        let files = || Tier::new(max_open_files, max_open_files as u64, ByFile);
        OpenEntries {
            memory: (memory_bytes > 0).then(bodies),
            files: (max_open_files > 0).then(files),
            known: (metadata_bytes > 0).then(known),
            changes: ChangeCounts::default(),
            renewing: Mutex::default(),
        }
    }

    /// True if there is a tier for small bodies.
    pub fn keeps_bodies(&self) -> bool {
        self.memory.is_some()
    }

    /// An entry whose file is open.
    pub fn file(&self, id: &EntryId) -> Option<Arc<ReadyEntry>> {
        self.files.as_ref()?.entries.get(id)
    }

    /// An entry whose body is in memory, or whose file is open.
    pub fn get(&self, id: &EntryId) -> Option<Arc<ReadyEntry>> {
        let memory = self.memory.as_ref().and_then(|tier| tier.entries.get(id));
        memory.or_else(|| self.file(id))
    }

    /// The changes to an entry so far.
    pub(crate) fn changes(&self, id: &EntryId) -> Changes {
        self.changes.of(id)
    }

    /// The known entry, whose file may be closed, and the changes to it so far.
    pub(crate) fn known(&self, id: &EntryId) -> Option<(KnownEntry, Changes)> {
        let known = self.known.as_ref()?;
        let changes = self.changes(id);
        Some((known.get(id)?, changes))
    }

    /// Keep an entry that was opened, unless it is kept already. `since`: the changes before its
    /// metadata was read. It is not kept if it was forgotten meanwhile, or has got new metadata.
    pub(crate) fn keep(&self, entry: &Arc<ReadyEntry>, since: Changes) {
        if self.get(&entry.id).is_none() {
            self.replace(entry.clone());
        }
        if self.changes(&entry.id) != since {
            self.forget(&entry.id);
        }
    }

    /// Note that the file of a known entry is opened. True if it is worth keeping open: there is room, or
    /// it was opened not long ago.
    pub(crate) fn note_reopened(&self, id: &EntryId) -> bool {
        let files = self.files.as_ref();
        files.is_some_and(|tier| tier.note_reopened(id))
    }

    /// The result that [`note_reread`](Self::note_reread) has, unless the tier has just become full.
    pub(crate) fn is_worth_keeping(&self, id: &EntryId) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|tier| tier.reopened.is_worth_keeping(id))
    }

    /// [`note_reopened`](Self::note_reopened) of a body that was read into memory.
    pub(crate) fn note_reread(&self, id: &EntryId) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|tier| tier.note_reopened(id))
    }

    /// Keep the body of an entry that was [known](Self::known) at the time of `since`. It is not kept if
    /// the entry was forgotten meanwhile, or has got new metadata.
    pub(crate) fn keep_reopened(&self, entry: &Arc<ReadyEntry>, since: Changes) {
        match (&entry.body, &self.memory, &self.files) {
            (ReadyBody::Memory(_), Some(memory), _) => self.keep_in(memory, entry, since),
            (ReadyBody::File(_), _, Some(files)) => self.keep_in(files, entry, since),
            _ => {}
        }
    }

    fn keep_in<W>(&self, tier: &Tier<W>, entry: &Arc<ReadyEntry>, since: Changes)
    where
        W: Weighter<EntryId, Arc<ReadyEntry>> + Clone,
    {
        tier.entries.insert(entry.id, entry.clone());
        if self.changes(&entry.id) != since && !self.is_known(entry) {
            tier.entries.remove(&entry.id);
        }
    }

    /// Keep the prepared header of an entry for when its file is closed.
    pub(crate) fn keep_header(&self, entry: &ReadyEntry) {
        let (Some(known), Some(header)) = (&self.known, entry.fast_header()) else {
            return;
        };
        let _renewing = self.renewing.lock();
        if self.is_known(entry) {
            let with_header = KnownEntry::new(entry.meta.clone(), Some(header.compact()));
            // One that has just been forgotten stays so.
            let _ = known.replace(entry.id, with_header, true);
        }
    }

    /// True if this is the latest metadata of a known entry.
    fn is_known(&self, entry: &ReadyEntry) -> bool {
        let known = self.known.as_ref().and_then(|known| known.peek(&entry.id));
        known.is_some_and(|known| Arc::ptr_eq(&known.meta, &entry.meta))
    }

    /// Keep an entry, replacing an older state of it.
    fn replace(&self, entry: Arc<ReadyEntry>) {
        let fits = entry.meta.encoded_len() <= MAX_META_KEPT;
        // Blocks are added to a sparse body, so nothing of it is known once it is closed.
        let is_constant = !matches!(entry.body, ReadyBody::Sparse(_));
        if let Some(known) = self.known.as_ref().filter(|_| fits && is_constant) {
            known.insert(entry.id, KnownEntry::new(entry.meta.clone(), None));
        }
        match (&entry.body, &self.memory) {
            (ReadyBody::Memory(_), Some(memory)) => memory.entries.insert(entry.id, entry),
            (ReadyBody::File(_) | ReadyBody::Sparse(_), _) if fits => {
                if let Some(files) = &self.files {
                    files.entries.insert(entry.id, entry);
                }
            }
            _ => self.forget(&entry.id),
        }
    }

    /// Replace the metadata of an entry, if it is kept.
    pub fn set_meta(&self, id: EntryId, mut meta: EntryMeta) {
        // Serialization leaves room, which is not counted.
        meta.internal.shrink_to_fit();
        meta.header.shrink_to_fit();
        let meta = Arc::new(meta);
        let _renewing = self.renewing.lock();
        self.changes.add(&id);
        if let Some(known) = &self.known {
            // One that is not known stays so.
            let _ = known.replace(id, KnownEntry::new(meta.clone(), None), true);
        }
        self.changes.add(&id);
        if let Some(kept) = self.get(&id) {
            let entry = ReadyEntry::with(id, meta, OnceLock::new(), kept.body.clone());
            self.replace(entry);
        }
    }

    /// Forget an entry.
    pub fn forget(&self, id: &EntryId) {
        self.changes.add(id);
        if let Some(known) = &self.known {
            known.remove(id);
        }
        self.changes.add(id);
        if let Some(memory) = &self.memory {
            memory.entries.remove(id);
        }
        if let Some(files) = &self.files {
            files.entries.remove(id);
        }
    }

    /// Forget all entries.
    pub fn forget_all(&self) {
        self.changes.add_to_all();
        if let Some(known) = &self.known {
            known.clear();
        }
        self.changes.add_to_all();
        if let Some(memory) = &self.memory {
            memory.entries.clear();
        }
        self.close_files();
    }

    /// Close all files that are not being sent.
    pub fn close_files(&self) {
        if let Some(files) = &self.files {
            files.entries.clear();
        }
    }

    /// Drop the bodies in memory, and close the files.
    #[cfg(test)]
    pub(crate) fn drop_bodies(&self) {
        self.close_files();
        if let Some(memory) = &self.memory {
            memory.entries.clear();
        }
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |tier| tier.entries.weight())
    }

    /// Bytes of what is known of entries whose bodies may be neither in memory nor open.
    pub fn metadata_bytes(&self) -> u64 {
        self.known.as_ref().map_or(0, Cache::weight)
    }

    /// Files that are kept open.
    pub fn open_files(&self) -> usize {
        self.files.as_ref().map_or(0, |tier| tier.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::store::format::BlockMap;
    use pingora_cache::key::CompactCacheKey;

    fn entry(number: u64, body: ReadyBody) -> Arc<ReadyEntry> {
        // Spread as a hash is.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut hash = [0; 16];
        hash[..8].copy_from_slice(&spread.to_le_bytes());
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

    fn keep(entries: &OpenEntries, entry: &Arc<ReadyEntry>) {
        entries.keep(entry, entries.changes(&entry.id));
    }

    fn file() -> ReadyBody {
        let file = std::fs::File::open("/dev/null").unwrap();
        ReadyBody::File(Arc::new(BodyFile::new(Arc::new(file))))
    }

    #[test]
    fn memory_is_bounded_by_bytes() {
        let entries = OpenEntries::new(1_000_000, 1_000_000, 10);
        for number in 0..1000 {
            keep(
                &entries,
                &entry(number, ReadyBody::Memory(vec![0; 10_000].into())),
            );
            assert!(entries.memory_bytes() <= 1_000_000);
        }
        assert!(entries.memory_bytes() > 500_000);
        assert_eq!(entries.open_files(), 0);
    }

    #[test]
    fn open_files_are_bounded_by_number() {
        let entries = OpenEntries::new(0, 0, 10);
        for number in 0..1000 {
            keep(&entries, &entry(number, file()));
            assert!(entries.open_files() <= 10);
        }
        entries.close_files();
        assert_eq!(entries.open_files(), 0);
        keep(&entries, &entry(1, ReadyBody::Memory(Bytes::new())));
        assert!(
            entries.get(&entry(1, file()).id).is_none(),
            "no memory tier"
        );
    }

    #[test]
    fn what_is_kept_can_be_replaced_and_forgotten() {
        let entries = OpenEntries::new(1_000_000, 1_000_000, 10);
        for body in [ReadyBody::Memory(Bytes::from_static(b"x")), file()] {
            let entry = entry(1, body);
            keep(&entries, &entry);
            let header =
                |entries: &OpenEntries| entries.get(&entry.id).map(|kept| kept.meta.header.len());
            assert_eq!(header(&entries), Some(100));
            let meta = EntryMeta {
                header: vec![0; 7],
                ..EntryMeta::clone(&entry.meta)
            };
            let newer = ReadyEntry::new(entry.id, meta.clone(), entry.body.clone());
            keep(&entries, &newer);
            assert_eq!(header(&entries), Some(100), "the first stays");
            entries.set_meta(entry.id, meta.clone());
            assert_eq!(header(&entries), Some(7));
            entries.forget(&entry.id);
            assert_eq!(header(&entries), None);
            entries.set_meta(entry.id, meta);
            assert_eq!(header(&entries), None);
            assert!(entries.known(&entry.id).is_none());
        }
    }

    fn fast_header() -> FastHeader {
        use pingora_http::ResponseHeader;
        use std::time::SystemTime;

        let mut header = ResponseHeader::build(200, None).unwrap();
        header.insert_header("Content-Length", 0).unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let meta = CacheMeta::new(now, now, 0, 0, header.clone());
        FastHeader::new(header, &meta).expect("a header to prepare")
    }

    #[test]
    fn more_entries_are_known_than_files_are_open() {
        const ENTRIES: u64 = 1000;
        let entries = OpenEntries::new(0, 1_000_000, 10);
        for number in 0..ENTRIES {
            keep(&entries, &entry(number, file()));
        }
        assert!(entries.open_files() <= 10);
        let known = (0..ENTRIES).filter(|number| {
            let id = entry(*number, file()).id;
            entries.known(&id).is_some()
        });
        assert_eq!(known.count() as u64, ENTRIES);
        assert!(entries.metadata_bytes() <= 1_000_000);
        // Beyond the limit, there are fewer.
        for number in ENTRIES..10 * ENTRIES {
            keep(&entries, &entry(number, file()));
            assert!(entries.metadata_bytes() <= 1_000_000);
        }
        assert!(entries.metadata_bytes() > 900_000);
    }

    #[test]
    fn what_is_known_changes_with_the_entry() {
        let in_memory = || ReadyBody::Memory(Bytes::from_static(b"x"));
        for body in [file as fn() -> ReadyBody, in_memory] {
            check_changes(body);
        }
    }

    fn check_changes(body: fn() -> ReadyBody) {
        let entries = OpenEntries::new(1_000_000, 1_000_000, 10);
        let first = entry(1, body());
        let id = first.id;
        let is_kept = || entries.get(&id).is_some();
        first.set_fast_header(fast_header());
        entries.keep_header(&first);
        assert!(entries.known(&id).is_none(), "it is not kept");
        keep(&entries, &first);
        entries.keep_header(&first);
        let (before, since) = entries.known(&id).expect("it is kept");
        assert!(before.fast_header().is_some());
        entries.drop_bodies();

        // A body that was opened with former metadata is not kept.
        entries.keep_reopened(&ReadyEntry::reopened(id, &before, body()), since);
        assert!(is_kept());
        entries.drop_bodies();
        let meta = EntryMeta {
            header: vec![0; 7],
            ..EntryMeta::clone(&before.meta)
        };
        entries.set_meta(id, meta);
        let former = ReadyEntry::reopened(id, &before, body());
        assert!(former.fast_header().is_some());
        entries.keep_reopened(&former, since);
        assert!(!is_kept());
        entries.keep_header(&former);
        let (after, since) = entries.known(&id).expect("it is kept");
        assert_eq!(after.meta.header.len(), 7);
        assert!(after.fast_header().is_none());

        // Nor is one of an entry that was forgotten, but others are no obstacle.
        let other = entry(2, body());
        keep(&entries, &other);
        entries.drop_bodies();
        entries.forget(&other.id);
        entries.keep_reopened(&ReadyEntry::reopened(id, &after, body()), since);
        assert!(is_kept());
        entries.forget(&id);
        entries.keep_reopened(&ReadyEntry::reopened(id, &after, body()), since);
        assert!(!is_kept());
    }

    #[test]
    fn a_full_tier_keeps_what_is_opened_again_soon() {
        let in_memory = || ReadyBody::Memory(vec![0; 1000].into());
        for (body, memory) in [(file as fn() -> ReadyBody, 0), (in_memory, 200_000)] {
            let entries = OpenEntries::new(memory, 10_000_000, 100);
            for number in 0..1000 {
                keep(&entries, &entry(number, body()));
            }
            let reopen = |number| {
                let id = entry(number, body()).id;
                let (known, since) = entries.known(&id).expect("it is known");
                let reopened = ReadyEntry::reopened(id, &known, body());
                let is_worth_it = match &reopened.body {
                    ReadyBody::Memory(_) => {
                        // A look that comes to nothing is no open.
                        // Two looks that come to nothing are no reads.
                        let looks = [(); 2].map(|()| entries.is_worth_keeping(&id));
                        assert_eq!(looks[0], looks[1]);
                        entries.note_reread(&id) && looks[0]
                    }
                    _ => entries.note_reopened(&id),
                };
                if is_worth_it {
                    entries.keep_reopened(&reopened, since);
                }
                entries.get(&id).is_some()
            };
            let is_kept = |number: &u64| entries.get(&entry(*number, file()).id).is_some();
            let closed: Vec<_> = (0..1000).filter(|number| !is_kept(number)).collect();
            assert!(closed.len() > 500);
            assert!(!closed.iter().any(|number| reopen(*number)));
            // The tier may have others that are worth more than one of them.
            let last = &closed[closed.len() - 10..];
            assert!(last.iter().any(|number| reopen(*number)));
        }
    }

    #[test]
    fn what_changed_while_it_was_opened_is_not_kept() {
        let entries = OpenEntries::new(1_000_000, 1_000_000, 10);
        for body in [ReadyBody::Memory(Bytes::from_static(b"x")), file()] {
            let opened = entry(1, body);
            let changes: [&dyn Fn(); 3] = [
                &|| entries.set_meta(opened.id, EntryMeta::clone(&opened.meta)),
                &|| entries.forget(&opened.id),
                &|| entries.forget_all(),
            ];
            for change in changes {
                let since = entries.changes(&opened.id);
                change();
                entries.keep(&opened, since);
                assert!(entries.get(&opened.id).is_none());
                assert!(entries.known(&opened.id).is_none());
            }
            keep(&entries, &opened);
            assert!(entries.get(&opened.id).is_some());
            entries.forget_all();
            assert!(entries.get(&opened.id).is_none());
            assert!(entries.known(&opened.id).is_none());
        }
    }

    #[test]
    fn nothing_old_is_kept_whatever_happens_at_once() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use std::sync::Barrier;
        use std::thread;

        const OLD: usize = 100;
        const NEW: usize = 7;
        let entries = OpenEntries::new(0, 10_000_000, 10);
        for number in 0..2000 {
            // Content of the metadata file.
            let on_disk = AtomicUsize::new(OLD);
            let opened = |len| {
                let entry = entry(number, file());
                let meta = EntryMeta {
                    header: vec![0; len],
                    ..EntryMeta::clone(&entry.meta)
                };
                ReadyEntry::new(entry.id, meta, file())
            };
            let first = opened(OLD);
            let id = first.id;
            keep(&entries, &first);
            let barrier = Barrier::new(3);
            thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    on_disk.store(NEW, Ordering::SeqCst);
                    entries.set_meta(id, EntryMeta::clone(&opened(NEW).meta));
                });
                scope.spawn(|| {
                    barrier.wait();
                    let since = entries.changes(&id);
                    entries.keep(&opened(on_disk.load(Ordering::SeqCst)), since);
                    entries.close_files();
                });
                scope.spawn(|| {
                    barrier.wait();
                    first.set_fast_header(fast_header());
                    entries.keep_header(&first);
                    if let Some((known, since)) = entries.known(&id) {
                        let reopened = ReadyEntry::reopened(id, &known, file());
                        entries.keep_reopened(&reopened, since);
                    }
                });
            });
            let file = entries.file(&id).map(|entry| entry.meta.header.len());
            let known = entries.known(&id).map(|(known, _)| known);
            assert!(file.is_none_or(|len| len == NEW), "{number}: its file");
            assert!(known
                .as_ref()
                .is_none_or(|known| known.meta.header.len() == NEW));
            let has_header = known.is_some_and(|known| known.fast_header().is_some());
            assert!(
                !has_header,
                "{number}: the header is that of older metadata"
            );
        }
    }

    #[test]
    fn of_a_body_in_blocks_nothing_is_known_once_its_file_is_closed() {
        let entries = OpenEntries::new(1_000_000, 1_000_000, 10);
        let whole = entry(1, file());
        let body = SparseBody::new(
            whole.id,
            Arc::new(BodyFile::new(Arc::new(
                std::fs::File::open("/dev/null").unwrap(),
            ))),
            EntryMeta::clone(&whole.meta),
            BlockMap {
                block_len: 1 << 20,
                checksums: Default::default(),
            },
        );
        let in_blocks = ReadyEntry::new(
            whole.id,
            EntryMeta::clone(&whole.meta),
            ReadyBody::Sparse(Arc::new(body)),
        );
        keep(&entries, &in_blocks);
        in_blocks.set_fast_header(fast_header());
        entries.keep_header(&in_blocks);
        let meta = EntryMeta {
            header: vec![0; 7],
            ..EntryMeta::clone(&in_blocks.meta)
        };
        entries.set_meta(whole.id, meta);
        let kept = entries.file(&whole.id).expect("its file is open");
        assert_eq!(kept.meta.header.len(), 7);
        assert!(matches!(kept.body, ReadyBody::Sparse(_)));
        assert!(entries.known(&whole.id).is_none());
        entries.close_files();
        assert!(entries.get(&whole.id).is_none());
        assert!(entries.known(&whole.id).is_none());
        assert_eq!(entries.metadata_bytes(), 0);
    }

    #[test]
    fn long_metadata_counts_as_several_files() {
        let entries = OpenEntries::new(0, 0, 100);
        for number in 0..100 {
            let short = entry(number, file());
            let meta = EntryMeta {
                header: vec![0; 60_000],
                ..EntryMeta::clone(&short.meta)
            };
            keep(&entries, &ReadyEntry::new(short.id, meta, file()));
            assert!(entries.open_files() <= 3);
        }
    }
}
