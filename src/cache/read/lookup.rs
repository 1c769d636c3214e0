//! Lookups: from a key to an entry that is ready to be served, or to a fill.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use log::debug;
use pingora_cache::key::{CacheHashKey, HashBinary};
use pingora_cache::{CacheKey, CacheMeta};
use pingora_core::Result;

use crate::cache::io::backend::OpenBody;
use crate::cache::io::nowait::{open_body_nowait, open_nowait, read_body_nowait};
use crate::cache::io::regular::{check_len, invalid, wrong_length};
use crate::cache::read::hit::DiskHit;
use crate::cache::state::body_file::BodyFile;
use crate::cache::state::change_counts::Changes;
use crate::cache::state::fast_header::FastHeader;
use crate::cache::state::fill::Fill;
use crate::cache::state::generations::LookupSnapshot;
use crate::cache::state::known_entry::KnownEntry;
use crate::cache::state::open_entries::{ReadyBody, ReadyEntry};
use crate::cache::state::reader::Reader;
use crate::cache::state::sparse_body::SparseBody;
use crate::cache::state::stats::Eviction;
use crate::cache::state::{is_for, Core};
use crate::cache::store::entry::OpenEntry;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::index::Indexed;
use crate::cache::store::layout::Layout;

/// Longest body that is read together with its metadata, in bytes, where none is sent by
/// sendfile.
const PREFETCH: u64 = 64 * 1024;

/// Bytes of a body that are read when an entry is opened, if they have to come from the disk.
const FIRST_READ: u64 = 16 * 1024;

/// Most times that the files of an entry are opened, if blocks of it are recorded meanwhile.
const MAX_OPENS: u32 = 8;

/// The entry or the fill of a key.
pub(crate) async fn lookup(
    core: &'static Core,
    key: &CacheKey,
) -> Result<Option<(CacheMeta, DiskHit)>> {
    let fill = newest_fill(core, &key.combined_bin(), key);
    if let Some(reader) = fill.and_then(|fill| Reader::join(fill, false)) {
        core.stats.fill_followers.inc();
        return follow(core, reader).map(Some);
    }
    let Some((meta, entry)) = find(core, key).await else {
        return Ok(None);
    };
    let sendfile = core.sends_file(Some(entry.meta.body_len));
    Ok(Some((meta, DiskHit::of_entry(core, entry, sendfile))))
}

/// The fill of a generation, for the request that writes it.
pub(crate) fn lookup_own_fill(
    core: &'static Core,
    generation: u64,
) -> Result<Option<(CacheMeta, DiskHit)>> {
    let fill = core.fills.by_generation(generation);
    let reader = fill.and_then(|fill| Reader::join(fill, true));
    reader.map(|reader| follow(core, reader)).transpose()
}

/// The hit that [`lookup`] would return, if it is an entry in use, or one whose file the kernel
/// opens without the disk, and its prepared header satisfies `is_usable`. Waits for nothing. Not
/// for keys of variants.
pub(crate) fn lookup_fast(
    core: &'static Core,
    key: &CacheKey,
    is_usable: impl FnOnce(&FastHeader) -> bool,
) -> Option<DiskHit> {
    let primary = key.primary_bin();
    if key.variance_bin().is_some() || newest_fill(core, &primary, key).is_some() {
        return None;
    }
    let indexed = current(core, key, &primary)?;
    let is_usable = |header: &FastHeader| is_usable(header) && header.has_tag(&key.user_tag);
    // An entry without a variance has the hash of its key, which is that of the index.
    let entry = match find_in_memory(core, &indexed)? {
        Found::Ready(entry) => {
            let header = entry.fast_header()?;
            let is_whole = entry.incomplete().is_none();
            if entry.is_variant() || !is_whole || !is_usable(header) || !is_sound(core, &entry) {
                return None;
            }
            entry
        }
        Found::Known(known, since) => {
            let header = known.fast_header()?;
            if known.is_variant() || !is_usable(header) {
                return None;
            }
            let entry = reopen_nowait(core, indexed.id, &known, since)?;
            core.stats.opens.inc();
            core.stats.body_opens.inc();
            entry
        }
    };
    let sendfile = core.sends_file(Some(entry.body_len()));
    Some(DiskHit::of_entry(core, entry, sendfile))
}

/// True if there is an entry of a key, or a fill with readers, that a lookup could not find
/// when the key's request was made.
pub(crate) fn is_new(core: &Core, key: &CacheKey) -> bool {
    let findable = key
        .extensions
        .get()
        .map_or(0, |snapshot: &LookupSnapshot| snapshot.findable());
    let hash = key.combined_bin();
    let fill = core.fills.get(&hash);
    let fill = fill
        .filter(|fill| is_for(&fill.primary_key, &fill.key, key))
        .filter(|fill| !fill.readers().has_ended())
        .map(|fill| fill.id);
    let entry = core.index.get(&hash).map(|entry| entry.id);
    let newest = fill.into_iter().chain(entry).map(|id| id.generation);
    newest.max().is_some_and(|generation| generation > findable)
}

/// True if the stored response of a key was validated or replaced after the key's request was
/// made.
pub(crate) fn is_renewed(core: &Core, key: &CacheKey) -> bool {
    let Some(snapshot) = key.extensions.get::<LookupSnapshot>() else {
        return false;
    };
    let asked = snapshot.generation();
    core.recent_revalidations.since(asked, &key.combined_bin()) || is_new(core, key)
}

/// The entry of a key, with its metadata.
pub(crate) async fn find(
    core: &'static Core,
    key: &CacheKey,
) -> Option<(CacheMeta, Arc<ReadyEntry>)> {
    let primary = key.primary_bin();
    let indexed = current(core, key, &primary)?;
    let entry = open_entry(core, indexed).await?;
    let meta = if !matches_index(&entry, key, &primary) {
        Err("it is for another key".to_owned())
    } else if !is_for(&entry.meta.primary_key, &entry.meta.key, key) {
        Err(format!(
            "it is for another key than {:?} of {:?}; only the first argument of CacheKey::new() is hashed",
            String::from_utf8_lossy(key.primary_key()),
            key.user_tag
        ))
    } else {
        entry.cache_meta().cloned().map_err(|e| e.to_string())
    };
    match meta {
        Ok(meta) => Some((meta, entry)),
        Err(why) => {
            core.drop_damaged(indexed.id, &invalid(&why));
            None
        }
    }
}

/// The extent of a body that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredBody {
    /// Length of the whole body, in bytes.
    pub len: u64,
    /// Bytes of it that are missing.
    pub missing: u64,
}

/// The body that is stored for a key. Does not count as a use.
pub(crate) async fn stored(core: &'static Core, key: &CacheKey) -> Option<StoredBody> {
    let primary = key.primary_bin();
    let indexed = core.index.get(&key.combined_bin())?;
    let key_of = || (&*key.user_tag, key.primary_key());
    if core.bans.is_banned(indexed.id.generation, &primary, key_of) {
        return None;
    }
    let entry = open_entry(core, indexed).await?;
    matches_index(&entry, key, &primary).then(|| StoredBody {
        len: entry.meta.body_len,
        missing: entry.incomplete().map_or(0, |body| body.missing()),
    })
}

/// An entry, from memory or opened. A damaged one is dropped and is no entry.
pub(crate) async fn open_entry(core: &'static Core, indexed: Indexed) -> Option<Arc<ReadyEntry>> {
    let id = indexed.id;
    match find_in_memory(core, &indexed) {
        Some(Found::Ready(entry)) => return is_sound(core, &entry).then_some(entry),
        Some(Found::Known(..)) if core.health.is_down() => return None,
        Some(Found::Known(known, since)) if is_for_memory(core, known.meta.body_len) => {
            core.stats.opens.inc();
            core.stats.body_opens.inc();
            let reread = reread(core, id, &known, since).await;
            return reread.inspect_err(|e| core.drop_damaged(id, e)).ok();
        }
        Some(Found::Known(known, since)) => {
            core.stats.opens.inc();
            core.stats.body_opens.inc();
            let reopened = reopen(core, id, &known, since).await;
            return reopened.inspect_err(|e| core.drop_damaged(id, e)).ok();
        }
        None if core.health.is_down() => return None,
        None => core.stats.opens.inc(),
    }
    for _ in 0..MAX_OPENS {
        match open_files(core, id).await {
            Opened::Entry(entry) => return Some(entry),
            Opened::Damaged => return None,
            Opened::Outdated => {}
        }
    }
    debug!("cache entry {id}: its blocks changed each time it was opened");
    None
}

/// The result of opening the files of an entry.
enum Opened {
    Entry(Arc<ReadyEntry>),
    /// They were damaged. The entry is dropped.
    Damaged,
    /// Blocks were recorded after the metadata was read.
    Outdated,
}

async fn open_files(core: &'static Core, id: EntryId) -> Opened {
    let prefetch = prefetch(core);
    // Before the open(2): a removal in between finds it.
    let space = core.open_bodies.open(id);
    let since = core.open_entries.changes(&id);
    let recorded_since = core.sparse_bodies.changes(&id);
    let cached = match core.io.has_page_cache() {
        // A cached file that is no entry is reported by the backend.
        true => open_nowait(&core.folder, &Layout::files_below(&id), prefetch)
            .and_then(|open| OpenEntry::checked(&id, open).ok()),
        false => None,
    };
    let opened = match cached {
        Some(opened) => Ok(opened),
        None => {
            let files = core.files(&id);
            let opened = core.backend().open(&files, prefetch);
            let opened = core.patiently(core.patience.short(), opened).await;
            opened.and_then(|open| OpenEntry::checked(&id, open))
        }
    };
    let OpenEntry {
        mut meta,
        body,
        prefetched,
    } = match opened {
        Ok(opened) => opened,
        Err(e) => {
            core.drop_damaged(id, &e);
            return Opened::Damaged;
        }
    };
    let body = match (meta.blocks.take(), prefetched) {
        (Some(blocks), _) => {
            let file = Arc::new(BodyFile::in_space(body, space));
            let opened = SparseBody::new(id, file, meta.clone(), blocks);
            match core.sparse_bodies.share(opened, recorded_since) {
                Some(body) => ReadyBody::Sparse(body),
                None => return Opened::Outdated,
            }
        }
        (None, Some(body)) if is_for_memory(core, meta.body_len) => ReadyBody::Memory(body),
        _ => {
            let body = Arc::new(BodyFile::in_space(body, space));
            if let Err(e) = load_start(core, &body, meta.body_len).await {
                core.drop_damaged(id, &e);
                return Opened::Damaged;
            }
            ReadyBody::File(body)
        }
    };
    let entry = ReadyEntry::new(id, meta, body);
    core.open_entries.keep(&entry, since);
    // If it was evicted while it was opened, nothing else forgets it.
    if !core.index.contains(&id) {
        core.open_entries.forget(&id);
    }
    Opened::Entry(entry)
}

/// Bring the start of a body into the page cache. A disk that fails is noticed while the origin can
/// still answer instead.
async fn load_start(core: &'static Core, body: &Arc<BodyFile>, body_len: u64) -> io::Result<()> {
    let start = 0..body_len.min(FIRST_READ);
    if !body.is_resident(&core.io, &start) {
        body.load(&core.io, &start).await?;
    }
    Ok(())
}

/// Read the body of a known entry into memory.
async fn reread(
    core: &'static Core,
    id: EntryId,
    known: &KnownEntry,
    since: Changes,
) -> io::Result<Arc<ReadyEntry>> {
    let is_kept = core.open_entries.is_worth_keeping(&id);
    let body = match reread_nowait(core, id, known, is_kept) {
        Some(body) => body,
        None => {
            let (files, len) = (core.files(&id), known.meta.body_len as usize);
            let body = core.backend().read_body(&files, len);
            let body = core.patiently(core.patience.short(), body).await?;
            known.meta.check_body(&body)?;
            body
        }
    };
    Ok(keep_reread(core, id, known, since, body, is_kept))
}

/// [`reread`] without waiting. `None`: it needs the disk, or something is wrong. `is_kept`: the body stays
/// in memory.
fn reread_nowait(core: &Core, id: EntryId, known: &KnownEntry, is_kept: bool) -> Option<Bytes> {
    if !core.io.has_page_cache() {
        return None;
    }
    let (files, len) = (Layout::files_below(&id), known.meta.body_len);
    let body = read_body_nowait(&core.folder, files, len, !is_kept)?;
    known.meta.check_body(&body).is_ok().then_some(body)
}

fn keep_reread(
    core: &Core,
    id: EntryId,
    known: &KnownEntry,
    since: Changes,
    body: Bytes,
    is_kept: bool,
) -> Arc<ReadyEntry> {
    let entry = ReadyEntry::reopened(id, known, ReadyBody::Memory(body));
    // Noted once it is read: a look that finds it cold is followed by another one.
    if core.open_entries.note_reread(&id) && is_kept {
        core.open_entries.keep_reopened(&entry, since);
    }
    entry
}

/// Open the body of a known entry.
async fn reopen(
    core: &'static Core,
    id: EntryId,
    known: &KnownEntry,
    since: Changes,
) -> io::Result<Arc<ReadyEntry>> {
    let entry = match reopen_nowait(core, id, known, since) {
        Some(entry) => entry,
        None => {
            let space = core.open_bodies.open(id);
            let files = core.files(&id);
            let opened = core.backend().open_body(&files);
            let OpenBody { body, body_len } = core.patiently(core.patience.short(), opened).await?;
            check_len(body_len, known.meta.body_len)?;
            keep_reopened(core, id, known, since, BodyFile::in_space(body, space))
        }
    };
    if let ReadyBody::File(body) = &entry.body {
        load_start(core, body, entry.body_len()).await?;
    }
    Ok(entry)
}

/// [`reopen`] without waiting, also for a body that is read into memory. `None`: it needs the disk, or
/// something is wrong.
fn reopen_nowait(
    core: &Core,
    id: EntryId,
    known: &KnownEntry,
    since: Changes,
) -> Option<Arc<ReadyEntry>> {
    let body_len = known.meta.body_len;
    if is_for_memory(core, body_len) {
        let is_kept = core.open_entries.is_worth_keeping(&id);
        let body = reread_nowait(core, id, known, is_kept)?;
        return Some(keep_reread(core, id, known, since, body, is_kept));
    }
    if !core.io.has_page_cache() {
        return None;
    }
    // Before the open(2): a removal in between finds it.
    let space = core.open_bodies.open(id);
    let body = open_body_nowait(&core.folder, Layout::files_below(&id), body_len)?;
    let body = BodyFile::opened_nowait(body, body_len, space);
    Some(keep_reopened(core, id, known, since, body))
}

fn keep_reopened(
    core: &Core,
    id: EntryId,
    known: &KnownEntry,
    since: Changes,
    body: BodyFile,
) -> Arc<ReadyEntry> {
    let entry = ReadyEntry::reopened(id, known, ReadyBody::File(Arc::new(body)));
    if core.open_entries.note_reopened(&id) {
        core.open_entries.keep_reopened(&entry, since);
    }
    entry
}

/// An entry in memory.
enum Found {
    Ready(Arc<ReadyEntry>),
    /// Its body is neither in memory nor open.
    Known(KnownEntry, Changes),
}

fn find_in_memory(core: &Core, entry: &Indexed) -> Option<Found> {
    let open_entries = &core.open_entries;
    let id = &entry.id;
    let known = || {
        let (known, since) = open_entries.known(id)?;
        Some(Found::Known(known, since))
    };
    // Metadata is rarely that long, so the body is more likely in a file than in memory.
    if entry.weight > 2 * prefetch(core) {
        let file = open_entries.file(id).map(Found::Ready);
        let memory = || open_entries.get(id).map(Found::Ready);
        file.or_else(known).or_else(memory)
    } else {
        let in_use = open_entries.get(id).map(Found::Ready);
        in_use.or_else(known)
    }
}

/// True if a kept entry can be served, which is counted. An entry whose file was changed
/// from outside is dropped: at this point, that costs the client nothing.
fn is_sound(core: &Core, entry: &ReadyEntry) -> bool {
    match entry.file() {
        None => core.stats.memory_hits.inc(),
        Some(body) => {
            if !body.has_len(entry.body_len()) {
                core.drop_damaged(entry.id, &wrong_length());
                return false;
            }
            core.stats.descriptor_hits.inc();
        }
    }
    true
}

/// True if a body of this length is read as a whole, verified, and kept in memory.
fn is_for_memory(core: &Core, body_len: u64) -> bool {
    let is_kept = core.open_entries.keeps_bodies() || body_len == 0;
    is_kept && body_len <= prefetch(core)
}

/// Longest body that is read with its metadata: such bodies are copied to the client anyway.
fn prefetch(core: &Core) -> u64 {
    if core.io.supports_sendfile() && core.sendfile.enabled {
        PREFETCH.min(core.sendfile.threshold_bytes)
    } else {
        PREFETCH
    }
}

/// The current entry of a key, which is used now. `primary`: the hash of the key without its
/// variance.
fn current(core: &Core, key: &CacheKey, primary: &HashBinary) -> Option<Indexed> {
    let hash = match key.variance_bin() {
        None => *primary,
        Some(_) => key.combined_bin(),
    };
    let indexed = core.index.touch(&hash, core.clock.now())?;
    let generation = indexed.id.generation;
    let is_banned = core
        .bans
        .is_banned(generation, primary, || (&key.user_tag, key.primary_key()))
        || (hash != *primary && core.bans.is_banned_variant(generation));
    if is_banned {
        core.evict(indexed.id, Eviction::Purged);
        return None;
    }
    Some(indexed)
}

/// The fill that readers of a key follow. A fill that was overtaken by a newer one, which is
/// an entry already, has no readers.
fn newest_fill(core: &Core, hash: &HashBinary, key: &CacheKey) -> Option<Arc<Fill>> {
    let fill = core.fills.get(hash)?;
    if !is_for(&fill.primary_key, &fill.key, key) {
        return None;
    }
    let entry = core.index.get(hash);
    entry
        .is_none_or(|entry| entry.id.generation < fill.id.generation)
        .then_some(fill)
}

fn follow(core: &'static Core, reader: Reader) -> Result<(CacheMeta, DiskHit)> {
    let (internal, header) = reader.fill().meta();
    let meta = CacheMeta::deserialize(&internal, &header)?;
    let sendfile = core.sends_file(reader.fill().promised);
    Ok((meta, DiskHit::of_fill(core, reader, sendfile)))
}

/// True if an entry is the one that the index has. `primary`: see [`current`].
fn matches_index(entry: &ReadyEntry, key: &CacheKey, primary: &HashBinary) -> bool {
    entry.meta.key.primary == *primary && entry.meta.key.variance_bin() == key.variance_bin()
}
