//! The entries that are being written, and what their readers follow.
//!
//! The task that writes a fill is in `write::fill`.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use pingora_cache::key::{CompactCacheKey, HashBinary};
use tokio::sync::{watch, Notify};

use crate::cache::state::body_file::BodyFile;
use crate::cache::state::fill_extensions::ForParts;
use crate::cache::state::readers::{Audience, Readers};
use crate::cache::state::stats::Cause;
use crate::cache::state::window::Window;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;

/// Fills without readers may together have at most one in this many bytes of the limit still
/// to come.
const ORPHAN_SHARE: u64 = 8;

/// Progress of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that can be read from the file.
    pub written: u64,
    /// State of the fill.
    pub state: State,
}

/// State of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// More bytes may follow.
    Writing,
    /// The body is complete.
    Complete,
    /// The body ended early; see [`Fill::broken`].
    Broken,
}

/// An entry that is being written.
///
/// A task of the cache's own runtime writes it, so it continues when the request that began
/// it is slow, or dropped after it has told that the body is complete. Readers follow [`progress`](Self::progress)
/// and read the same file.
#[derive(Debug)]
pub struct Fill {
    /// The entry that it becomes.
    pub id: EntryId,
    /// The key.
    pub key: CompactCacheKey,
    /// The key in clear text.
    pub primary_key: Vec<u8>,
    /// Length of the body, if the origin announced it.
    pub promised: Option<u64>,
    /// The body.
    pub body: Arc<BodyFile>,
    /// Arrival of the response header.
    pub begun: Instant,
    /// [`pingora_cache::CacheMeta::created`], which distinguishes it from others of its key.
    created: SystemTime,
    stored_at: u64,
    /// Pingora's metadata; a revalidation may replace it.
    meta: Mutex<Serialized>,
    progress: watch::Sender<Progress>,
    broken: OnceLock<(Cause, String)>,
    /// True if it was purged and must not become an entry.
    invalidated: AtomicBool,
    /// Bytes that it counts for in the sums over all fills.
    counted: AtomicU64,
    /// Number of requests for the key.
    uses: u8,
    readers: Readers,
    /// Bytes of the body that the origin has sent.
    received: AtomicU64,
    /// Set when the fill continues without readers.
    orphaned: Mutex<Option<Orphaned>>,
    /// True if it never had readers; it does not count among the fills without readers.
    in_background: bool,
    /// True if nothing is evicted for it that is requested more often.
    pub yields_room: bool,
    /// Set if it was begun for parts of the body. A reader that has its part does not keep it
    /// going.
    for_parts: Option<ForParts>,
    /// True if the blocks that have arrived are kept if it breaks off.
    pub is_resumable: bool,
    /// True once a checkpoint gives the body the name that it has in an entry.
    is_named: AtomicBool,
    /// Notified when the last reader leaves.
    left: Arc<Notify>,
    /// The rest of the body, once there is no space to store it.
    window: OnceLock<Window>,
}

impl fmt::Display for Fill {
    /// The name and the key, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(&self.primary_key);
        write!(f, "{} of {key:?}", self.id)
    }
}

/// [`pingora_cache::CacheMeta::serialize`]: its internal part and the header.
pub type Serialized = (Vec<u8>, Vec<u8>);

/// Properties of a new fill.
pub(crate) struct NewFill {
    /// The entry that it becomes.
    pub id: EntryId,
    /// The key.
    pub key: CompactCacheKey,
    /// The key in clear text.
    pub primary_key: Vec<u8>,
    /// Length of the body, if the origin announced it.
    pub promised: Option<u64>,
    /// Number of requests for the key.
    pub uses: u8,
    /// The body file, empty.
    pub body: Arc<BodyFile>,
    /// [`pingora_cache::CacheMeta::created`].
    pub created: SystemTime,
    /// Seconds since 1970.
    pub stored_at: u64,
    /// Pingora's metadata.
    pub meta: Serialized,
    /// True if it is fetched in the background and will have no readers.
    pub in_background: bool,
    /// True if nothing is evicted for it that is requested more often.
    pub yields_room: bool,
    /// Set if it is fetched for requests for its parts.
    pub for_parts: Option<ForParts>,
    /// True if the blocks that have arrived are kept if it breaks off.
    pub is_resumable: bool,
}

impl Fill {
    pub(crate) fn new(new: NewFill) -> Arc<Fill> {
        let fill = Fill {
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
            invalidated: AtomicBool::new(false),
            counted: AtomicU64::new(0),
            uses: new.uses,
            readers: Readers::default(),
            received: AtomicU64::new(0),
            orphaned: Mutex::default(),
            in_background: new.in_background,
            yields_room: new.yields_room,
            for_parts: new.for_parts,
            is_resumable: new.is_resumable,
            is_named: AtomicBool::new(false),
            begun: Instant::now(),
            left: Arc::default(),
            window: OnceLock::new(),
        };
        if let Some(for_parts) = &fill.for_parts {
            for_parts.notify_at_end(&fill.left);
        }
        Arc::new(fill)
    }

    /// The progress, and a way to wait for more.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The reason why it broke off.
    pub fn broken(&self) -> String {
        self.broken.get().map_or_else(
            || "the fill was given up".to_owned(),
            |(_, why)| why.clone(),
        )
    }

    /// The cause and the reason for which it broke off, if it did.
    pub(crate) fn broken_by(&self) -> Option<(Cause, String)> {
        self.broken.get().cloned()
    }

    /// Pingora's metadata.
    pub fn meta(&self) -> Serialized {
        self.meta.lock().clone()
    }

    pub(crate) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// The part of the body that follows the file, if there is no space to store it.
    pub(crate) fn window(&self) -> Option<&Window> {
        self.window.get()
    }

    /// Note that the origin has sent more bytes.
    pub(crate) fn has_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// True if more of the body is to be fetched. If false, no reader can join any more.
    pub(crate) fn is_wanted(&self, fills: &'static Fills) -> bool {
        let received = self.received.load(Ordering::Relaxed);
        let mut orphaned = self.orphaned.lock();
        let audience = match self.readers.audience() {
            Audience::Present => return true,
            _ if self.promised == Some(received) => return true,
            // A body that is no longer stored is for its readers alone.
            _ if self.window().is_some() => return !self.readers.end(),
            _ if self.in_background || orphaned.is_some() => return true,
            _ if self.for_parts.as_ref().is_some_and(ForParts::want_it) => return true,
            audience => audience,
        };
        let share = fills.without_readers;
        let enough = match self.promised {
            Some(promised) => received as f64 >= share * promised as f64,
            None => share == 0.0,
        };
        if enough || (audience == Audience::Satisfied && self.for_parts.is_none()) {
            let limit = fills.max_orphaned;
            let missing = match self.promised {
                Some(promised) => promised.saturating_sub(received),
                None => limit / 2,
            };
            *orphaned = fills.orphan(missing);
        }
        orphaned.is_some() || !self.readers.end()
    }

    /// Note that the last reader has left.
    pub(crate) fn reader_left(&self) {
        self.left.notify_one();
    }

    /// Wait until the last reader leaves.
    pub(crate) async fn left(&self) {
        self.left.notified().await;
    }

    /// Note that the fill ends, so that it no longer counts among those without readers.
    pub(crate) fn ends(&self) {
        self.orphaned.lock().take();
    }

    /// True once the origin has sent a part of the body.
    pub(crate) fn has_received_any(&self) -> bool {
        self.received.load(Ordering::Relaxed) > 0
    }

    /// Seconds from 1970 to the start of the fill.
    pub(crate) fn stored_at(&self) -> u64 {
        self.stored_at
    }

    /// Number of requests for the key.
    pub(crate) fn uses(&self) -> u8 {
        self.uses
    }

    /// Note why it breaks off. The first reason stays.
    pub(crate) fn set_broken(&self, cause: Cause, why: String) {
        let _ = self.broken.set((cause, why));
    }

    /// Bytes that can be read.
    pub(crate) fn written(&self) -> u64 {
        self.progress.borrow().written
    }

    /// Pass the rest of the body to the readers without storing it.
    pub(crate) fn open_window(&self, window: Window) {
        let _ = self.window.set(window);
    }

    /// Note that a reader has read on, or has left.
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

    /// True if the origin waits for the slowest reader.
    pub(crate) fn waits_for_readers(&self) -> bool {
        let window = self.window.get();
        window.is_some_and(|window| window.waits(&self.readers))
    }

    /// True if it must not become an entry.
    pub(crate) fn is_invalidated(&self) -> bool {
        self.invalidated.load(Ordering::SeqCst)
    }

    /// Note that a checkpoint gives the body the name that it has in an entry.
    pub(crate) fn set_named(&self) {
        self.is_named.store(true, Ordering::SeqCst);
    }

    /// True if a checkpoint has given the body its final name. If the checkpoint has failed, files of
    /// both names may exist.
    pub(crate) fn has_name(&self) -> bool {
        self.is_named.load(Ordering::SeqCst)
    }

    /// Publish the progress.
    pub(crate) fn advance(&self, written: u64, state: State) {
        self.progress.send_replace(Progress { written, state });
    }
}

/// The fills in flight.
#[derive(Debug)]
pub struct Fills {
    /// Number of fills. A lookup reads it before it takes the lock.
    count: AtomicUsize,
    bytes: AtomicU64,
    /// Bytes still to come of fills without readers.
    orphaned: AtomicU64,
    /// Most bytes of that.
    max_orphaned: u64,
    /// Share of a body that must have been fetched for its fill to continue without readers.
    without_readers: f64,
    table: Mutex<Table>,
    idle: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Table {
    /// The newest fill of each key that was not invalidated. Lookups find these.
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
    /// No fills yet. `without_readers` is the share of a body that must have been fetched for
    /// its fill to continue without readers; `max_size_bytes` is the limit of the cache.
    pub(crate) fn new(without_readers: f64, max_size_bytes: u64) -> Self {
        Fills {
            count: AtomicUsize::default(),
            bytes: AtomicU64::default(),
            orphaned: AtomicU64::default(),
            max_orphaned: max_size_bytes / ORPHAN_SHARE,
            without_readers,
            table: Mutex::default(),
            idle: watch::Sender::default(),
        }
    }

    /// Let lookups find a fill.
    pub(crate) fn add(&self, fill: &Arc<Fill>) {
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

    /// Hide a fill from lookups. Its task continues and removes it.
    pub(crate) fn hide(&self, fill: &Fill) {
        self.table.lock().hide(fill);
    }

    /// Remove a fill from the table.
    pub(crate) fn remove(&self, fill: &Fill) {
        self.table.lock().remove(self, fill);
    }

    /// Remove a fill and, in the same instant, call `then`, which makes it an entry. Its
    /// argument is true if the fill was invalidated. `None`: the metadata is no longer `meta`,
    /// and nothing was done.
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
        // Insert there before removing here: a lookup asks here first, and takes no lock if
        // nothing is here.
        let result = then(fill.is_invalidated());
        table.remove(self, fill);
        Some(result)
    }

    /// The fill that readers of a key follow.
    pub fn get(&self, hash: &[u8; 16]) -> Option<Arc<Fill>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.table.lock().by_hash.get(hash).cloned()
    }

    /// Replace Pingora's metadata of the fill whose response was `created` then. True if
    /// there is one: it is not an entry yet, and becomes one with this metadata.
    pub fn set_meta(&self, hash: &[u8; 16], created: SystemTime, meta: &Serialized) -> bool {
        let table = self.table.lock();
        let mut fills = table.by_generation.values();
        let fill = fills.find(|fill| fill.id.hash == *hash && fill.created == created);
        if let Some(fill) = fill {
            *fill.meta.lock() = meta.clone();
        }
        fill.is_some()
    }

    /// The fill of a generation, even if it was purged.
    pub fn by_generation(&self, generation: u64) -> Option<Arc<Fill>> {
        self.table.lock().by_generation.get(&generation).cloned()
    }

    /// Keep the fills that `matches` from becoming entries and from being found. Their readers
    /// may continue. Returns those whose checkpoints have to be removed.
    pub fn invalidate(&self, matches: impl Fn(&Fill) -> bool) -> Vec<EntryId> {
        let mut table = self.table.lock();
        let mut named = Vec::new();
        for fill in table.by_generation.values() {
            if matches(fill) && !fill.invalidated.swap(true, Ordering::SeqCst) && fill.has_name() {
                named.push(fill.id);
            }
        }
        table.by_hash.retain(|_, fill| !fill.is_invalidated());
        named
    }

    /// True if a fill of this primary key may leave a checkpoint, even one that was invalidated.
    pub fn may_leave(&self, primary: &HashBinary) -> bool {
        let leaves = |fill: &Arc<Fill>| fill.is_resumable && fill.key.primary == *primary;
        self.len() > 0 && self.table.lock().by_generation.values().any(leaves)
    }

    /// The lowest generation.
    pub fn oldest_generation(&self) -> Option<u64> {
        self.table.lock().by_generation.keys().min().copied()
    }

    /// Number of fills.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Note the bytes that a fill takes or will take. Only its task calls this.
    pub(crate) fn count(&self, fill: &Fill, bytes: u64) {
        let more = bytes - fill.counted.swap(bytes, Ordering::Relaxed).min(bytes);
        self.bytes.fetch_add(more, Ordering::Relaxed);
    }

    /// Bytes that all fills take or will take.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Let a fill continue without readers, with `bytes` still to come, unless all such fills
    /// together would have too many bytes to come.
    fn orphan(&'static self, bytes: u64) -> Option<Orphaned> {
        // A single fill may be larger.
        let more = |sum: u64| {
            let after = sum.checked_add(bytes)?;
            (sum == 0 || after <= self.max_orphaned).then_some(after)
        };
        let added = self
            .orphaned
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        added.ok().map(|_| Orphaned { fills: self, bytes })
    }

    /// Wait until a fill is an entry, or is given up.
    pub(crate) async fn ended(&self, fill: &Fill) {
        let mut changes = self.idle.subscribe();
        while self.by_generation(fill.id.generation).is_some() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Wait until there are no fills.
    pub async fn wait_idle(&self) {
        let mut idle = self.idle.subscribe();
        let _ = idle.wait_for(|count| *count == 0).await;
    }
}

/// The bytes still to come of a fill without readers.
#[derive(Debug)]
struct Orphaned {
    fills: &'static Fills,
    bytes: u64,
}

impl Drop for Orphaned {
    fn drop(&mut self) {
        self.fills.orphaned.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
