//! An entry being written, and followed by readers meanwhile.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use log::{debug, warn};
use parking_lot::Mutex;
use pingora_cache::key::CompactCacheKey;
use tokio::sync::{mpsc, oneshot, watch, Notify};

use crate::cache::disk::OTHER_WRITES;
use crate::cache::state::body_file::BodyFile;
use crate::cache::state::permits::Turn;
use crate::cache::state::readers::{Audience, Readers};
use crate::cache::state::room::Claim;
use crate::cache::state::stats::Cause;
use crate::cache::state::window::{self, Window};
use crate::cache::store::format::EntryMeta;
use crate::cache::write::block_writer::{Block, Gather};
use crate::cache::write::miss::ForParts;
use crate::cache::{DiskCache, EntryId};

/// How many pieces of a body may wait for the disk. Meanwhile a block of 256 KiB is
/// being written, a piece waits to join them, and one is left for the next block.
/// Pingora's are of 64 KiB at most, so this is 0.7 MB a fill.
const QUEUE: usize = 4;

/// Fills without readers may together have at most one in this many bytes of the limit
/// still to come.
const DESERTED_SHARE: u64 = 8;

/// How far a fill has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that can be read from the file.
    pub written: u64,
    /// Whether more will follow.
    pub state: State,
}

/// Whether a fill goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// More may follow.
    Writing,
    /// The body is all there.
    Complete,
    /// There will not be more, though there should; see [`Fill::broken`].
    Broken,
}

/// One entry being written.
///
/// The work is done by a task of the cache's own runtime: it goes on when the
/// request that began it is slow, or dropped after its last byte. Readers follow
/// [`progress`](Self::progress) and read the same file.
#[derive(Debug)]
pub struct Fill {
    /// Which entry it becomes.
    pub id: EntryId,
    /// Its key.
    pub key: CompactCacheKey,
    /// Its key in clear text.
    pub primary_key: Vec<u8>,
    /// Its length, if the origin told.
    pub promised: Option<u64>,
    /// Its body.
    pub body: Arc<BodyFile>,
    /// When the header of its response had come.
    pub begun: Instant,
    /// When its response was made: what tells it from others of its key.
    created: SystemTime,
    stored_at: u64,
    /// Pingora's metadata; a revalidation may replace it.
    meta: Mutex<Serialized>,
    progress: watch::Sender<Progress>,
    broken: OnceLock<(Cause, String)>,
    /// It must not become an entry: it was purged.
    void: AtomicBool,
    /// Bytes that it stands for in the sums over all fills.
    counted: AtomicU64,
    /// The number of requests for it.
    uses: u8,
    readers: Readers,
    /// Bytes of the body that the origin has sent.
    received: AtomicU64,
    /// Set when the fill goes on without readers.
    deserted: Mutex<Option<Deserted>>,
    /// The fill never had readers, and does not count among those without.
    in_background: bool,
    /// The fill was begun for parts of the body. Who has got one does not keep it going.
    for_parts: Option<ForParts>,
    /// Notified when the last reader leaves.
    left: Notify,
    /// The rest of the body, once the file has no more room.
    window: OnceLock<Window>,
}

/// [`pingora_cache::CacheMeta::serialize`]: its internal part and the header.
pub type Serialized = (Vec<u8>, Vec<u8>);

/// What the task is told. When the sender is dropped before it says `Finish`,
/// the origin has broken off.
pub enum Piece {
    /// A piece of the body, and its turn to wait for the disk.
    Data(Bytes, Option<Turn>),
    /// That was all. The answer comes when all is written, before the commit.
    Finish(oneshot::Sender<io::Result<u64>>),
}

/// How a fill is begun.
pub struct NewFill {
    /// Which entry it becomes.
    pub id: EntryId,
    /// Its key.
    pub key: CompactCacheKey,
    /// Its key in clear text.
    pub primary_key: Vec<u8>,
    /// Its length, if the origin told.
    pub promised: Option<u64>,
    /// The number of requests for it.
    pub uses: u8,
    /// Its room; the rest of a body of known length is promised to it.
    pub claim: Claim,
    /// Its turn to store.
    pub turn: Turn,
    /// Its body file, empty.
    pub body: Arc<BodyFile>,
    /// [`pingora_cache::CacheMeta::created`].
    pub created: SystemTime,
    /// Seconds since 1970.
    pub stored_at: u64,
    /// Pingora's metadata.
    pub meta: Serialized,
    /// It is fetched in the background, and will have no readers.
    pub in_background: bool,
    /// It is fetched for parts of it.
    pub(crate) for_parts: Option<ForParts>,
}

impl Fill {
    /// Begin: readers find it from now on.
    pub(crate) fn begin(
        cache: &'static DiskCache,
        new: NewFill,
    ) -> (Arc<Fill>, mpsc::Sender<Piece>) {
        let fill = Arc::new(Fill {
            id: new.id,
            key: new.key,
            primary_key: new.primary_key,
            promised: new.promised,
            body: new.body,
            created: new.created,
            stored_at: new.stored_at,
            meta: Mutex::new(new.meta),
            progress: watch::Sender::new(Progress {
                written: 0,
                state: State::Writing,
            }),
            broken: OnceLock::new(),
            void: AtomicBool::new(false),
            counted: AtomicU64::new(0),
            uses: new.uses,
            readers: Readers::default(),
            received: AtomicU64::new(0),
            deserted: Mutex::default(),
            in_background: new.in_background,
            for_parts: new.for_parts,
            begun: Instant::now(),
            left: Notify::new(),
            window: OnceLock::new(),
        });
        if let Some(for_parts) = &fill.for_parts {
            for_parts.set_fill(&fill);
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        cache.fills().add(&fill);
        // Purged while its file was being created: the purge has not seen it.
        if cache.is_banned_fill(&fill) {
            cache.fills().void(|other| other.id == fill.id);
        }
        let task = run(cache, fill.clone(), receiver, new.claim, new.turn);
        cache.runtime().spawn(task);
        (fill, sender)
    }

    /// How far it has come, and how to wait for more.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Why it broke off.
    pub fn broken(&self) -> String {
        self.broken.get().map_or_else(
            || "the fill was given up".to_owned(),
            |(_, why)| why.clone(),
        )
    }

    /// Pingora's metadata.
    pub fn meta(&self) -> Serialized {
        self.meta.lock().clone()
    }

    pub(crate) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// The window behind the end of the file, if there is one.
    pub(crate) fn window(&self) -> Option<&Window> {
        self.window.get()
    }

    /// Note that the origin has sent so many bytes more.
    pub(crate) fn has_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// True if the origin has sent as many bytes as it promised.
    pub(crate) fn has_received_all(&self) -> bool {
        self.promised == Some(self.received.load(Ordering::Relaxed))
    }

    /// True if more of the body is to be fetched. Otherwise no reader can join any more.
    pub(crate) fn is_wanted(&self, cache: &'static DiskCache) -> bool {
        let received = self.received.load(Ordering::Relaxed);
        let mut deserted = self.deserted.lock();
        let audience = match self.readers.audience() {
            Audience::Present => return true,
            _ if self.promised == Some(received) => return true,
            // A body that is no longer stored is for its readers alone.
            _ if self.window().is_some() => return !self.readers.end(),
            _ if self.in_background || deserted.is_some() => return true,
            _ if self.for_parts.as_ref().is_some_and(ForParts::want_it) => return true,
            audience => audience,
        };
        let share = cache.fill_without_readers();
        let enough = match self.promised {
            Some(promised) => received as f64 >= share * promised as f64,
            None => share == 0.0,
        };
        let limit = cache.max_size_bytes() / DESERTED_SHARE;
        if enough || (audience == Audience::Satisfied && self.for_parts.is_none()) {
            let rest = match self.promised {
                Some(promised) => promised.saturating_sub(received),
                None => limit / 2,
            };
            *deserted = cache.fills().desert(rest, limit);
        }
        deserted.is_some() || !self.readers.end()
    }

    /// Note that the last reader has left.
    pub(crate) fn reader_left(&self) {
        self.left.notify_one();
    }

    /// The next pieces; `None`: there are none, because the origin has broken off, or all
    /// readers have left. A stalled origin does not keep a fill that nobody wants.
    async fn next(
        &self,
        cache: &'static DiskCache,
        pieces: &mut Gather,
        offset: u64,
    ) -> Option<Block> {
        let next = pieces.next(offset, self.promised);
        tokio::pin!(next);
        loop {
            tokio::select! {
                biased;
                block = &mut next => return block,
                () = self.left.notified() => {
                    // Others may come and go before the request that writes reads.
                    let has_begun = self.readers.has_led() || self.received.load(Ordering::Relaxed) > 0;
                    if has_begun && !self.is_wanted(cache) {
                        return None;
                    }
                }
            }
        }
    }

    pub(crate) fn reader_moved(&self) {
        if let Some(window) = self.window.get() {
            window.moved();
        }
    }

    /// True if the request that writes has to read before it writes on.
    pub(crate) fn is_full(&self) -> bool {
        let window = self.window.get();
        window.is_some_and(|window| window.is_full(&self.readers))
    }

    /// True if the rest of the body waits for the slowest reader.
    pub(crate) fn waits_for_readers(&self) -> bool {
        let window = self.window.get();
        window.is_some_and(|window| window.waits(&self.readers))
    }

    fn is_void(&self) -> bool {
        self.void.load(Ordering::Acquire)
    }

    fn advance(&self, written: u64, state: State) {
        self.progress.send_replace(Progress { written, state });
    }
}

/// Work a fill off: write what comes, then commit it or clean up.
async fn run(
    cache: &'static DiskCache,
    fill: Arc<Fill>,
    pieces: mpsc::Receiver<Piece>,
    mut claim: Claim,
    turn: Turn,
) {
    let mut pieces = Gather::new(pieces);
    let written = write(cache, &fill, &mut pieces, &mut claim).await;
    // Nothing more is to come.
    fill.deserted.lock().take();
    let (cause, why, rest) = match written {
        Ok((body_len, body_crc32)) => {
            return commit(cache, &fill, body_len, body_crc32, claim).await;
        }
        Err(given_up) => given_up,
    };
    let cause = match cause {
        Cause::Origin if fill.readers.has_ended() => Cause::Deserted,
        cause => cause,
    };
    give_up(cache, &fill, cause, &why);
    let _ = fill.broken.set((cause, why));
    // The fill leaves the table before its readers are told.
    cache.fills().remove(&fill);
    let written = fill.progress.borrow().written;
    match rest {
        Some(block) => {
            let _ = fill.window.set(Window::new(written));
            discard(cache, &fill, claim).await;
            // The rest takes as long as its slowest reader, and no disk.
            drop(turn);
            pieces.wait_no_more();
            pass(cache, &fill, &mut pieces, written, block).await;
        }
        None => {
            fill.advance(written, State::Broken);
            discard(cache, &fill, claim).await;
        }
    }
}

/// Count a fill that is given up. Log a warning unless clients decide how often that
/// happens.
fn give_up(cache: &DiskCache, fill: &Fill, cause: Cause, why: &str) {
    cache.stats().fill_errors(cause).inc();
    match cause {
        Cause::NoSpace | Cause::Deserted => {
            debug!("cache fill {} is given up: {why}", describe(fill));
        }
        _ => warn!("cache fill {} is given up: {why}", describe(fill)),
    }
}

/// Pass the body on, unstored, to the readers that have already joined.
async fn pass(
    cache: &'static DiskCache,
    fill: &Arc<Fill>,
    pieces: &mut Gather,
    mut passed: u64,
    mut block: Block,
) {
    let Some(window) = fill.window() else { return };
    let mut patience = window::PATIENCE;
    loop {
        block.turns.clear();
        let end = passed + block.len;
        let whole = check_len(fill, end, block.finish.is_some());
        let goes_on = match &whole {
            Ok(()) if block.len == 0 => true,
            Ok(()) => {
                let pushed = window.push(&fill.readers, block.data, &mut patience);
                pushed.await
            }
            Err(_) => false,
        };
        if !goes_on {
            if let Err((cause, why)) = whole {
                give_up(cache, fill, cause, &why);
            }
            fill.readers.end();
            return fill.advance(passed, State::Broken);
        }
        passed = end;
        if let Some(answer) = block.finish {
            fill.advance(passed, State::Complete);
            let _ = answer.send(Ok(passed));
            return;
        }
        fill.advance(passed, State::Writing);
        match fill.next(cache, pieces, passed).await {
            Some(next) => block = next,
            None => return fill.advance(passed, State::Broken),
        }
    }
}

fn describe(fill: &Fill) -> String {
    format!(
        "{} of {:?}",
        fill.id,
        String::from_utf8_lossy(&fill.primary_key)
    )
}

/// Cause and reason of giving up a fill. If there was only no room for it, the block that
/// was to be written comes along.
type GivenUp = (Cause, String, Option<Block>);

async fn write(
    cache: &'static DiskCache,
    fill: &Arc<Fill>,
    pieces: &mut Gather,
    claim: &mut Claim,
) -> Result<(u64, u32), GivenUp> {
    let mut written = 0;
    let meta_len = claim.meta_len();
    let mut crc = crc32fast::Hasher::new();
    loop {
        let Some(block) = fill.next(cache, pieces, written).await else {
            let why = "the origin's response broke off".to_owned();
            return Err((Cause::Origin, why, None));
        };
        let end = written + block.len;
        if let Err((cause, why)) = check_len(fill, end, block.finish.is_some()) {
            return Err((cause, why, None));
        }
        for piece in &block.data {
            crc.update(piece);
        }
        if block.len > 0 {
            if fill.promised.is_none() {
                cache.fills().count(fill, end);
            }
            // A fill without readers does not evict entries that are asked for more
            // often.
            let uses = match fill.readers.audience() {
                Audience::Present => u8::MAX,
                Audience::Gone | Audience::Satisfied => fill.uses,
            };
            if !cache.grow(claim, end + meta_len, uses).await {
                if fill.promised.is_none() && end + meta_len > cache.max_size_bytes() {
                    cache.note_outgrown(&fill.id.hash);
                }
                let why = "there is no room for it in the cache".to_owned();
                return Err((Cause::NoSpace, why, Some(block)));
            }
            let write = || {
                let data = block.data.clone();
                cache.backend().write(fill.body.file(), written, data)
            };
            if let Err(e) = cache.with_disk_space(block.len, uses, write).await {
                let cause = Cause::of(&e);
                let why = format!("writing its body: {e}");
                return Err((cause, why, Some(block).filter(|_| cause == Cause::NoSpace)));
            }
        }
        written = end;
        if let Some(answer) = block.finish {
            fill.advance(end, State::Complete);
            let _ = answer.send(Ok(end));
            return Ok((end, crc.finalize()));
        }
        fill.advance(written, State::Writing);
    }
}

/// Check that a body may have this length, and if `ends`, that it may end here.
fn check_len(fill: &Fill, len: u64, ends: bool) -> Result<(), (Cause, String)> {
    match fill.promised {
        Some(promised) if len > promised => Err(wrong_length(fill, "more")),
        Some(promised) if ends && len < promised => Err(wrong_length(fill, "fewer")),
        _ => Ok(()),
    }
}

fn wrong_length(fill: &Fill, more_or_fewer: &str) -> (Cause, String) {
    let promised = fill.promised.unwrap_or(0);
    let why = format!("the body has {more_or_fewer} bytes than its Content-Length, {promised}");
    (Cause::Origin, why)
}

async fn commit(
    cache: &'static DiskCache,
    fill: &Arc<Fill>,
    body_len: u64,
    body_crc32: u32,
    claim: Claim,
) {
    if cache.is_banned_fill(fill) {
        cache.fills().remove(fill);
        return discard(cache, fill, claim).await;
    }
    let mut claim = Some(claim);
    let (internal, header) = fill.meta();
    let mut meta = EntryMeta {
        key: fill.key.clone(),
        primary_key: fill.primary_key.clone(),
        generation: fill.id.generation,
        stored_at: fill.stored_at,
        body_len,
        body_crc32,
        internal,
        header,
    };
    let backend = cache.backend();
    let mut committed = match cache.is_writable() {
        true => {
            backend
                .commit(fill.id, fill.body.file(), meta.clone())
                .await
        }
        false => Err(io::Error::other(OTHER_WRITES)),
    };
    while committed.is_ok() && !cache.publish(fill, &meta, &mut claim) {
        // A revalidation came between: the entry has its metadata from the start.
        (meta.internal, meta.header) = fill.meta();
        committed = backend.write_meta(fill.id, meta.clone()).await;
        if committed.is_err() {
            cache.remove_files(fill.id, claim.take());
        }
    }
    if let Err(e) = committed {
        cache.stats().fill_errors(Cause::of(&e)).inc();
        warn!(
            "cache fill {} is given up: committing it: {e}",
            describe(fill)
        );
        cache.fills().remove(fill);
        if Cause::of(&e) == Cause::NoSpace {
            cache.make_disk_space(fill.uses).await;
        }
        if let Some(claim) = claim.take() {
            cache.remove_fill(fill.id, Some(claim));
        }
    }
    cache.limit_kept().await;
}

async fn discard(cache: &'static DiskCache, fill: &Fill, claim: Claim) {
    match cache.backend().discard(fill.id).await {
        Ok(()) => cache.open_bodies().hold(&fill.id, claim),
        // It is tried again.
        Err(_) => cache.remove_fill(fill.id, Some(claim)),
    }
}

/// The fills in flight.
#[derive(Debug, Default)]
pub struct Fills {
    /// What a lookup asks first.
    count: AtomicUsize,
    bytes: AtomicU64,
    /// Bytes still to come of fills without readers.
    deserted: AtomicU64,
    table: Mutex<Table>,
    idle: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Table {
    /// What a lookup finds: the newest of a key that is not void.
    by_hash: HashMap<[u8; 16], Arc<Fill>>,
    by_generation: HashMap<u64, Arc<Fill>>,
}

impl Table {
    fn hide(&mut self, fill: &Fill) {
        let current = self.by_hash.get(&fill.id.hash);
        if current.is_some_and(|current| current.id == fill.id) {
            self.by_hash.remove(&fill.id.hash);
        }
    }

    fn remove(&mut self, fills: &Fills, fill: &Fill) {
        if self.by_generation.remove(&fill.id.generation).is_some() {
            let counted = fill.counted.load(Ordering::Relaxed);
            fills.bytes.fetch_sub(counted, Ordering::Relaxed);
        }
        self.hide(fill);
        fills
            .count
            .store(self.by_generation.len(), Ordering::Release);
        fills.idle.send_replace(self.by_generation.len());
    }
}

impl Fills {
    fn add(&self, fill: &Arc<Fill>) {
        self.count(fill, fill.promised.unwrap_or(0));
        let mut table = self.table.lock();
        let newest = table
            .by_hash
            .entry(fill.id.hash)
            .or_insert_with(|| fill.clone());
        if newest.id.generation < fill.id.generation {
            *newest = fill.clone();
        }
        table.by_generation.insert(fill.id.generation, fill.clone());
        self.count
            .store(table.by_generation.len(), Ordering::Release);
        self.idle.send_replace(table.by_generation.len());
    }

    /// Let no lookup find a fill. Its task goes on, and removes it.
    pub(crate) fn hide(&self, fill: &Fill) {
        self.table.lock().hide(fill);
    }

    /// Let nobody find a fill any more.
    pub(crate) fn remove(&self, fill: &Fill) {
        self.table.lock().remove(self, fill);
    }

    /// Let nobody find a fill any more, and in the same instant do what makes
    /// it findable elsewhere; the closure is told whether it was voided. `None`,
    /// and nothing is done, if its metadata is not `meta` any more.
    pub(crate) fn publish<T>(
        &self,
        fill: &Fill,
        meta: &EntryMeta,
        then: impl FnOnce(bool) -> T,
    ) -> Option<T> {
        let mut table = self.table.lock();
        {
            let (internal, header) = &*fill.meta.lock();
            if *internal != meta.internal || *header != meta.header {
                return None;
            }
        }
        // First there, then not here: a lookup asks here first, and takes no
        // lock if nothing is here.
        let result = then(fill.is_void());
        table.remove(self, fill);
        Some(result)
    }

    /// The fill that a reader of this key follows.
    pub fn get(&self, hash: &[u8; 16]) -> Option<Arc<Fill>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.table.lock().by_hash.get(hash).cloned()
    }

    /// Replace Pingora's metadata of the fill of the response that was `created`
    /// then. Whether there is one; it has not been published then, and will be
    /// with this metadata.
    pub fn set_meta(&self, hash: &[u8; 16], created: SystemTime, meta: &Serialized) -> bool {
        let table = self.table.lock();
        let mut fills = table.by_generation.values();
        let fill = fills.find(|fill| fill.id.hash == *hash && fill.created == created);
        if let Some(fill) = fill {
            *fill.meta.lock() = meta.clone();
        }
        fill.is_some()
    }

    /// This very fill, even if it was purged.
    pub fn by_generation(&self, generation: u64) -> Option<Arc<Fill>> {
        self.table.lock().by_generation.get(&generation).cloned()
    }

    /// Keep the fills that `matches` from becoming entries, and from being
    /// found; who reads one already may go on. Returns how many there are.
    pub fn void(&self, matches: impl Fn(&Fill) -> bool) -> usize {
        let mut table = self.table.lock();
        let mut voided = 0;
        for fill in table.by_generation.values() {
            if matches(fill) && !fill.void.swap(true, Ordering::AcqRel) {
                voided += 1;
            }
        }
        table.by_hash.retain(|_, fill| !fill.is_void());
        voided
    }

    /// The lowest generation of all.
    pub fn oldest_generation(&self) -> Option<u64> {
        self.table.lock().by_generation.keys().min().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A fill will take, or takes, so many bytes. Its task alone says so.
    fn count(&self, fill: &Fill, bytes: u64) {
        let more = bytes - fill.counted.swap(bytes, Ordering::Relaxed).min(bytes);
        self.bytes.fetch_add(more, Ordering::Relaxed);
    }

    /// Bytes that they take, or will.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Let a fill without readers, with `bytes` still to come, go on, unless all such
    /// fills together would have more than `limit` bytes to come.
    pub(crate) fn desert(&'static self, bytes: u64, limit: u64) -> Option<Deserted> {
        // A single fill may be larger.
        let more = |sum: u64| {
            let after = sum.checked_add(bytes)?;
            (sum == 0 || after <= limit).then_some(after)
        };
        let added = self
            .deserted
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        added.ok().map(|_| Deserted { fills: self, bytes })
    }

    /// Wait until there are none.
    pub async fn wait_idle(&self) {
        let mut idle = self.idle.subscribe();
        let _ = idle.wait_for(|count| *count == 0).await;
    }
}

/// The bytes still to come of a fill without readers.
#[derive(Debug)]
pub(crate) struct Deserted {
    fills: &'static Fills,
    bytes: u64,
}

impl Drop for Deserted {
    fn drop(&mut self) {
        self.fills.deserted.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
