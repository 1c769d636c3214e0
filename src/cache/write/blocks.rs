//! Entries in blocks: their creation, and the fetching of blocks.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use log::{debug, warn};
use pingora_cache::key::CacheHashKey;
use pingora_cache::{CacheKey, CacheMeta};
use pingora_core::Result;
use tokio::time::timeout;

use crate::cache::io::{folder, page_cache};
use crate::cache::read::blocks::{FetchBlocks, PartSource, OUTDATED};
use crate::cache::read::remainder::Remainder;
use crate::cache::state::body_file::BodyFile;
use crate::cache::state::open_entries::{ReadyBody, ReadyEntry};
use crate::cache::state::quota::Reservation;
use crate::cache::state::sparse_body::{Run, RunState, SparseBody};
use crate::cache::state::stats::{Cause, Eviction};
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::{self, BlockMap, EntryMeta};
use crate::cache::store::index::{Indexed, Inserted};
use crate::cache::write::{pending, space};

/// Blocks of one body take at most this fraction of the cache. More would evict all other entries,
/// and then the body's own.
const MAX_SHARE: u64 = 2;

/// Most bytes that are written at once.
const WRITE: u64 = 256 << 10;

/// Most pieces that are written at once, however small they are.
const MAX_PIECES: usize = 256;

/// Longest time that bytes, and their readers, wait for the rest of a write.
const PATIENCE: Duration = Duration::from_millis(20);

/// The same for the first bytes of a run, for which a client may wait that has nothing yet.
const FIRST_PATIENCE: Duration = Duration::from_millis(2);

/// Longer than any origin is waited for.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// Begin an entry in blocks for a body of `len` bytes, of which nothing is stored yet. `false`: it
/// cannot be stored, or was purged meanwhile.
///
/// Continues when the future is dropped.
pub(crate) async fn create(
    core: &'static Core,
    key: &CacheKey,
    meta: &CacheMeta,
    len: u64,
) -> Result<bool> {
    if !core.is_writable() || core.health.is_down() || !core.recovery.is_complete() {
        return Ok(false);
    }
    let (internal, header) = meta.serialize()?;
    let key = key.clone();
    let stored_at = pending::now();
    let created = core.io.runtime().spawn(async move {
        let pending = core.generations.begin_fill();
        let id = EntryId {
            hash: key.combined_bin(),
            generation: pending.generation(),
        };
        // Something may have been stored since the caller has looked.
        let is_stored = core.fills.get(&id.hash).is_some() || core.index.get(&id.hash).is_some();
        if is_stored || pending::is_purged_since(core, &key) {
            return false;
        }
        let block_len = format::block_len(len, core.blocks.block_bytes);
        let Some(block_len) = block_len.filter(|_| len <= core.max_object_bytes) else {
            return false;
        };
        let meta = EntryMeta {
            key: key.to_compact(),
            primary_key: key.primary_key().to_vec(),
            generation: id.generation,
            stored_at,
            body_len: len,
            body_crc32: 0,
            blocks: Some(BlockMap {
                block_len,
                checksums: BTreeMap::new(),
            }),
            internal,
            header,
        };
        let uses = core.miss_counts.count(&id.hash);
        let Some(reservation) = space::reserve(core, meta.weight(), uses).await else {
            core.count_fill_error(Cause::NoSpace);
            return false;
        };
        match commit(core, id, &key, meta, reservation).await {
            Ok(published) => published,
            Err(e) => {
                let cause = Cause::of(&e);
                core.count_fill_error(cause);
                match cause {
                    // As often as clients ask.
                    Cause::NoSpace => debug!("cache entry {id}: cannot begin it: {e}"),
                    _ => warn!("cache entry {id}: cannot begin it: {e}"),
                }
                false
            }
        }
    });
    Ok(created.await.unwrap_or(false))
}

async fn commit(
    core: &'static Core,
    id: EntryId,
    key: &CacheKey,
    mut meta: EntryMeta,
    reservation: Reservation,
) -> std::io::Result<bool> {
    let backend = core.backend();
    let files = core.files(&id);
    // Before the file exists: a removal in between finds it.
    let space = core.open_bodies.open(id);
    let file = backend.create(&files, None).await?;
    page_cache::prepare(&file);
    let committed = async {
        backend.set_len(&file, meta.body_len).await?;
        backend.commit(&files, &file, meta.encode()).await
    };
    if let Err(e) = committed.await {
        core.remove_fill(id, Some(reservation));
        return Err(e);
    }
    let entry = Indexed {
        id,
        weight: meta.weight(),
        used: core.clock.now(),
    };
    let file = Arc::new(BodyFile::in_space(file, space));
    let weight = meta.weight();
    let since = core.sparse_bodies.changes(&id);
    let body = meta.blocks.take().and_then(|blocks| {
        let opened = SparseBody::new(id, file, meta.clone(), blocks);
        core.sparse_bodies.share(opened, since)
    });
    let since = core.open_entries.changes(&id);
    // From here on, invalidations find the entry.
    let (inserted, replaced) = core.quota.insert(&core.index, entry);
    match inserted {
        Inserted::New | Inserted::Known => {}
        Inserted::Replaced(older) => {
            core.stats.evictions(Eviction::Replaced).inc();
            core.open_entries.forget(&older);
            core.remove_files(older, replaced);
        }
        Inserted::Outdated => {
            core.remove_files(id, Some(reservation));
            return Ok(false);
        }
    }
    core.stats.fills.inc();
    core.count_written(weight);
    drop(reservation);
    if pending::is_purged_since(core, key) || core.is_banned(id.generation, key) {
        core.evict(id, Eviction::Purged);
        return Ok(false);
    }
    if let Some(body) = body {
        let entry = ReadyEntry::new(id, meta, ReadyBody::Sparse(body));
        core.open_entries.keep(&entry, since);
        // If it was evicted meanwhile, nothing else forgets it.
        if !core.index.contains(&id) {
            core.open_entries.forget(&id);
        }
    }
    Ok(true)
}

/// Fetches missing blocks for the hits of one request.
pub(crate) struct Fetcher {
    core: &'static Core,
    source: Box<dyn PartSource>,
    /// True if nobody waits for the blocks. They evict nothing that is requested more often.
    in_background: bool,
}

/// Ends a run, whatever becomes of its task.
struct RunGuard {
    body: Arc<SparseBody>,
    run: Arc<Run>,
    end: RunState,
}

// === impl Fetcher ===

impl Fetcher {
    pub(crate) fn new(
        core: &'static Core,
        source: Box<dyn PartSource>,
        in_background: bool,
    ) -> Self {
        Fetcher {
            core,
            source,
            in_background,
        }
    }
}

impl FetchBlocks for Fetcher {
    fn fetch(&self, body: &Arc<SparseBody>, run: Arc<Run>) {
        let request = self.source.request();
        // On the runtime of the request, because the request to the origin runs there.
        let fetch = fetch(self.core, body.clone(), run, request, self.in_background);
        tokio::spawn(fetch);
    }

    fn request(&self) -> Box<dyn Remainder> {
        self.source.request()
    }

    fn max_run(&self) -> u64 {
        self.core.blocks.read_ahead_bytes
    }
}

// === impl RunGuard ===

impl Drop for RunGuard {
    fn drop(&mut self) {
        let end = std::mem::replace(&mut self.end, RunState::NoRoom);
        self.body.end_run(&self.run, end);
    }
}

/// Fetch and store the blocks of a run. What has arrived when the origin breaks off is kept.
async fn fetch(
    core: &'static Core,
    body: Arc<SparseBody>,
    run: Arc<Run>,
    request: Box<dyn Remainder>,
    in_background: bool,
) {
    let recorded = core.recordings.begin();
    let mut guard = RunGuard {
        body: body.clone(),
        run: run.clone(),
        end: RunState::Failed("the request was given up".into()),
    };
    let mut reservation = None;
    guard.end = match write(core, &body, &run, request, in_background, &mut reservation).await {
        Ok(()) => RunState::Complete,
        Err((cause, end)) => {
            core.count_fill_error(cause);
            debug!("cache entry {}: blocks are not fetched: {end:?}", body.id);
            end
        }
    };
    drop(guard);
    let record = async move {
        let _recorded = recorded;
        record(core, &body).await;
        if let Some(reservation) = reservation.filter(|_| !core.index.contains(&body.id)) {
            // The file is removed. Its new blocks take space until it is closed.
            body.keep(reservation);
        }
    };
    core.io.runtime().spawn(record);
}

async fn write(
    core: &'static Core,
    body: &Arc<SparseBody>,
    run: &Run,
    mut request: Box<dyn Remainder>,
    in_background: bool,
    reservation: &mut Option<Reservation>,
) -> Result<(), (Cause, RunState)> {
    let range = run.range();
    let len = range.end - range.start;
    let (hash, now) = (&body.id.hash, core.clock.now());
    let (entry, uses) = match in_background {
        // As the fill of an object that is requested for the first time.
        true => {
            let uses = core.index.uses(hash, now).unwrap_or(0).max(1);
            (core.index.get(hash), uses)
        }
        false => (core.index.touch(hash, now), u8::MAX),
    };
    if entry.is_none_or(|entry| entry.id != body.id) || !core.is_writable() {
        return Err((Cause::Missing, RunState::NoRoom));
    }
    if body.space() > core.max_size_bytes / MAX_SHARE {
        return Err((Cause::NoSpace, RunState::NoRoom));
    }
    let failed = |e: Box<pingora_core::Error>| {
        if *e.etype() == OUTDATED {
            core.evict(body.id, Eviction::Replaced);
        }
        (Cause::Origin, RunState::Failed(e.to_string().into()))
    };
    // First of all: an origin that does not answer holds no permit and no space.
    request.begin(range.clone()).await.map_err(failed)?;
    let Some(_permit) = core.fill_permits.fill().await else {
        return Err((Cause::TooMany, RunState::NoRoom));
    };
    *reservation = space::reserve(core, len, uses).await;
    if reservation.is_none() {
        return Err((Cause::NoSpace, RunState::NoRoom));
    }
    let mut writer = Writer {
        core,
        body,
        run,
        uses,
        at: range.start,
        data: Vec::new(),
        len: 0,
        checksum: crc32fast::Hasher::new(),
    };
    loop {
        let next = timeout(writer.patience(), request.next()).await;
        let Ok(next) = next else {
            // What has arrived does not wait for the rest.
            writer.flush().await?;
            continue;
        };
        let Some(bytes) = next.map_err(failed)? else {
            break;
        };
        writer.push(bytes).await?;
    }
    match writer.at == range.end {
        true => Ok(()),
        false => Err((
            Cause::Origin,
            RunState::Failed("the origin's part is too short".into()),
        )),
    }
}

/// Writes the bytes of a run as they arrive.
struct Writer<'a> {
    core: &'static Core,
    body: &'a SparseBody,
    run: &'a Run,
    /// Entries that are used more often are not evicted.
    uses: u8,
    /// Position up to which the file is written.
    at: u64,
    /// Bytes that follow.
    data: Vec<Bytes>,
    /// Number of those bytes.
    len: u64,
    /// CRC-32 of the current block, including `data`.
    checksum: crc32fast::Hasher,
}

impl Writer<'_> {
    /// The time for which bytes that have arrived wait for more.
    fn patience(&self) -> Duration {
        match (self.len, self.at == self.run.range().start) {
            (0, _) => FOREVER,
            (_, true) => FIRST_PATIENCE,
            (_, false) => PATIENCE,
        }
    }

    async fn push(&mut self, mut bytes: Bytes) -> Result<(), (Cause, RunState)> {
        while !bytes.is_empty() {
            let at = self.at + self.len;
            let end = self.body.block_at(at).1.end.min(self.run.range().end);
            // Writes end at multiples of their length, so that the pages stay in large folios.
            let stop = end.min((at / WRITE + 1) * WRITE);
            let fits = bytes.len().min((stop - at) as usize);
            let piece = bytes.split_to(fits);
            self.checksum.update(&piece);
            self.len += fits as u64;
            self.data.push(piece);
            if fits == 0 {
                let why = "the origin's part is too long".into();
                return Err((Cause::Origin, RunState::Failed(why)));
            }
            if at + fits as u64 == stop || self.data.len() == MAX_PIECES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), (Cause, RunState)> {
        let (core, at) = (self.core, self.at);
        let data = std::mem::take(&mut self.data);
        let len = std::mem::take(&mut self.len);
        let written = async {
            let file = writer(core, self.body).await?;
            let write = || core.backend().write(file, at, data.clone());
            space::with_disk_space(core, len, self.uses, write).await
        };
        let written = core.patiently(core.patience.long(), written).await;
        written.map_err(|e| match Cause::of(&e) {
            // The name is gone: the entry was evicted.
            cause @ (Cause::NoSpace | Cause::Missing) => (cause, RunState::NoRoom),
            cause => {
                let why = format!("writing its body: {e}");
                (cause, RunState::Failed(why.into()))
            }
        })?;
        let (number, block) = self.body.block_at(at);
        self.at += len;
        if self.at == block.end {
            let checksum = std::mem::replace(&mut self.checksum, crc32fast::Hasher::new());
            self.body.add_block(number, checksum.finalize());
        }
        self.run.advance(self.at);
        match self.at == block.end && self.at < self.run.range().end && !self.body.is_wanted() {
            true => Err((
                Cause::Deserted,
                RunState::Failed("all readers have left".into()),
            )),
            false => Ok(()),
        }
    }
}

/// The file of a body, open for writing.
async fn writer<'b>(core: &'static Core, body: &'b SparseBody) -> std::io::Result<&'b Arc<File>> {
    let open = || async { core.backend().open_to_write(&core.files(&body.id)).await };
    body.writer.get_or_try_init(open).await
}

/// Record the blocks that are in the file, so that they survive a crash. True if the entry is still
/// current.
///
/// An entry whose blocks cannot be recorded is evicted. The kernel reports once that it has lost
/// data: the next fdatasync(2) succeeds, and would count what is lost as stored.
pub(crate) async fn record(core: &'static Core, body: &SparseBody) -> bool {
    let _recording = body.recording.lock().await;
    let id = body.id;
    let Some((meta, change)) = body.to_record() else {
        return core.index.contains(&id);
    };
    // Another process has stored blocks that a body from before the takeover does not know.
    let is_current = core.is_writable() && core.sparse_bodies.has(body);
    if !is_current || !core.index.contains(&id) {
        return false;
    }
    let recorded = async {
        let file = writer(core, body).await?;
        let files = core.files(&id);
        core.backend().record(&files, file, meta.encode()).await
    };
    let recorded = recorded.await;
    match recorded {
        Ok(()) => core.sparse_bodies.set_recorded(body, change),
        Err(e) => {
            core.count_fill_error(Cause::of(&e));
            warn!("cache entry {id} is dropped: cannot record its blocks: {e}");
            core.evict(id, Eviction::Damaged);
            if folder::is_full(&e) {
                space::make_disk_space(core, u8::MAX).await;
            }
            return false;
        }
    }
    if !core.index.contains(&id) {
        // Purged or replaced meanwhile: remove the file just written.
        core.remove_files(id, None);
        return false;
    }
    core.index.set_weight(&id, meta.weight());
    core.index.contains(&id)
}
