//! The cache as Pingora sees it.

use std::any::Any;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::header::CONTENT_LENGTH;
use log::{error, info, warn};
use parking_lot::{Condvar, Mutex};
use pingora_cache::admission::AdmissionPolicy;
use pingora_cache::key::{CacheHashKey, CompactCacheKey, HashBinary};
use pingora_cache::trace::SpanHandle;
use pingora_cache::{
    CacheEntryId, CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget,
    PurgeType, Storage,
};
use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot, Semaphore, SemaphorePermit};

use crate::cache::io::regular;
use crate::cache::jobs::maintenance;
use crate::cache::jobs::maintenance::{Files, Removal, Which};
use crate::cache::jobs::recovery::{self, Leftovers};
use crate::cache::jobs::scrub;
use crate::cache::lifecycle::lock::{FolderLock, Renewed};
use crate::cache::read::hit::DiskHit;
use crate::cache::state::admission::{MinUses, Misses};
use crate::cache::state::body_file::BodyFile;
use crate::cache::state::clock::Clock;
use crate::cache::state::open_bodies::OpenBodies;
use crate::cache::state::open_entries::{Hot, HotBody, HotEntry};
use crate::cache::state::permits::Turns;
use crate::cache::state::readers::Reader;
use crate::cache::state::recent_invalidations::Changes;
use crate::cache::state::room::{self, Claim, Room};
use crate::cache::state::stats::{Cause, Eviction, Stats};
use crate::cache::store::bans::{Banned, Bans};
use crate::cache::store::format::EntryMeta;
use crate::cache::store::index::{Index, Indexed, Inserted};
use crate::cache::store::layout::Layout;
use crate::cache::write::fill::{Fill, Fills, NewFill};
use crate::cache::write::miss::{DiskMiss, ForParts, InBackground};
use crate::cache::{
    DiskBackend, EntryId, OpenEntry, Prepared, SendfileCapable, SendfileConfig, SendfileResponse,
    TokioFsBackend,
};

/// Longest body that is read together with its metadata, in bytes, where none
/// goes by sendfile.
const PREFETCH: u64 = 64 * 1024;

/// How many reads from the disk may be under way for bodies that are being sent.
const CONCURRENT_LOADS: usize = 64;

/// Threads of the cache's own runtime: they pass on what is done elsewhere.
const RUNTIME_THREADS: usize = 2;

/// How many files may be in the process of being opened, written or removed.
const BLOCKING_THREADS: usize = 256;

/// Longest body whose space is reserved without asking how much there is.
const UNCHECKED_RESERVATION: u64 = 1 << 20;

/// How often a successor looks whether the folder is free, and what was purged.
const TAKE_OVER_INTERVAL: Duration = Duration::from_millis(250);

/// More bytes than an entry's metadata takes without Pingora's part and the key, and
/// more than most keys take.
const META_LEN: u64 = 512;

/// The error of a response for which there is no room, now or at all. The response comes
/// from the origin as if there were no cache. The error is counted and harmless.
pub const NO_ROOM: ErrorType = ErrorType::new("NoRoomInCache");

/// Reason for which nothing is stored.
pub(crate) const OTHER_WRITES: &str = "another process writes to the cache folder";

/// How much of a body is read when an entry is opened, if it has to come from
/// the disk, in bytes.
const FIRST_READ: u64 = 16 * 1024;

/// How the files are accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// What `benches/disk_cache.rs` shows to be better: tokio.
    #[default]
    Auto,
    /// [`TokioFsBackend`].
    Tokio,
    /// `UringBackend`; where the kernel forbids it, tokio.
    Uring,
}

/// Where the cache is, how large it may become, and how it is kept.
#[derive(Debug, Clone)]
pub struct DiskCacheConfig {
    /// The cache's own folder; created if need be.
    pub path: PathBuf,
    /// Limit for bodies and metadata, in bytes. The least recently used entries
    /// leave when it is passed.
    pub max_size_bytes: u64,
    /// Which hits may go by sendfile.
    pub sendfile: SendfileConfig,
    /// How the files are accessed.
    pub backend: BackendChoice,
    /// Memory for bodies that do not go by sendfile, in bytes; 0: none.
    pub memory_bytes: u64,
    /// How many files of entries in use are kept open; never more than a
    /// quarter of what the process may open.
    pub max_open_files: usize,
    /// Entries that nobody asked for so long leave.
    pub inactive: Option<Duration>,
    /// An object is stored from this request on; 1: at once.
    pub min_uses: u8,
    /// A fill whose readers are all gone goes on if this share of its body has been
    /// fetched, from 0 to 1. 0: always; 1: never. A fill of unknown length goes on only
    /// with 0.
    pub fill_without_readers: f64,
    /// Most fills in flight.
    pub max_fills: usize,
    /// How fast the scrubber reads; 0: not at all.
    pub scrub_bytes_per_second: u64,
    /// If another process has the folder, read what it writes, and take over
    /// when it lets go. Without that, it is an error.
    pub successor: bool,
}

impl DiskCacheConfig {
    /// The defaults.
    pub fn new(path: impl Into<PathBuf>, max_size_bytes: u64) -> Self {
        DiskCacheConfig {
            path: path.into(),
            max_size_bytes,
            sendfile: SendfileConfig::default(),
            backend: BackendChoice::default(),
            memory_bytes: 256_000_000,
            max_open_files: 1024,
            inactive: None,
            min_uses: 1,
            fill_without_readers: 0.5,
            max_fills: 128,
            scrub_bytes_per_second: 8_000_000,
            successor: false,
        }
    }
}

/// When a request was made, in the cache's generations. An extension of its
/// [`CacheKey`]: what the origin answers to it is not stored if the key is purged
/// in between. See [`DiskCache::asked_now`].
#[derive(Debug, Clone, Copy)]
pub struct AskedAt {
    generation: u64,
    /// Fills up to this generation are found by who looks. Those that have theirs, and
    /// no file yet, are not.
    findable: u64,
}

/// A disk cache for Pingora: one immutable body file an entry, metadata beside
/// it, found again after a restart.
///
/// [`HttpCaching`](crate::http::HttpCaching) uses it as a shared HTTP cache must. A proxy
/// that hands it to [`HttpCache::enable`](pingora_cache::HttpCache::enable) itself also
/// needs the following, as in `tests/export/proxy.rs`:
///
/// - a [`CacheKey`] whose first argument tells all objects apart: `CacheKey::new` hashes
///   nothing else. An entry found for another key, or another `user_tag`, is a miss, and
///   is dropped.
/// - [`asked_now`](Self::asked_now) in the extensions of every key
/// - a lock, [`FillLock`](crate::http::FillLock)
/// - [`admission`](Self::admission) and [`max_size_bytes`](Self::max_size_bytes), which
///   say what is stored
/// - [`close`](Self::close) at the end of the process
pub struct DiskCache {
    path: PathBuf,
    runtime: Runtime,
    backend: Box<dyn DiskBackend>,
    sendfile: SendfileConfig,
    max_size_bytes: u64,
    room: Arc<Room>,
    open_bodies: OpenBodies,
    misses: Misses,
    fill_without_readers: f64,
    turns: Turns,
    outgrown: Outgrown,
    refused: Refused,
    index: Index,
    fills: Fills,
    hot: Hot,
    bans: Bans,
    changes: Changes,
    clock: Clock,
    stats: Stats,
    loaded: recovery::Progress,
    loaded_signal: (Mutex<bool>, Condvar),
    loads: Semaphore,
    admission: Admission,
    next_generation: AtomicU64,
    /// Of fills that nobody finds yet.
    beginning: Mutex<BTreeSet<u64>>,
    /// Whether this process holds the lock.
    writable: AtomicBool,
    lock: FolderLock,
    /// Files to be removed, less than 200 bytes each; at most as many as the index had
    /// entries, and some thousand leftovers.
    removals: mpsc::UnboundedSender<Removal>,
    /// Entries whose files could not be removed so far.
    failed_removals: AtomicUsize,
    loading: Mutex<Loading>,
    /// Bytes of entries that this run has written.
    bytes_written: AtomicU64,
    purges: AtomicU64,
}

/// State until the index is loaded.
#[derive(Debug, Clone, Copy)]
struct Loading {
    since: Instant,
    /// Bytes that they take, if the last run could say.
    size: Option<u64>,
}

/// What cannot be used as a cache folder, and why.
fn in_folder(path: &Path, doing: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: cannot {doing}: {e}", path.display()))
}

/// The admission policy, and the reason to admit nothing at all.
struct Admission {
    min_uses: Option<MinUses>,
    cache: std::sync::OnceLock<&'static DiskCache>,
}

impl AdmissionPolicy for Admission {
    fn observe(&self, key: &CacheKey) -> pingora_cache::admission::Decision {
        use pingora_cache::admission::Decision;
        let admits = self.cache.get().is_none_or(|cache| cache.admits());
        let decision = match &self.min_uses {
            Some(policy) => policy.observe(key),
            None => Decision::Ready { observed: 1 },
        };
        let decision = match decision {
            Decision::Ready { observed } if !admits => Decision::Defer { observed },
            decision => decision,
        };
        if decision.is_deferred() {
            if let Some(cache) = self.cache.get() {
                cache.stats.not_admitted.inc();
            }
        }
        decision
    }
}

impl DiskCache {
    /// Open the cache. Blocks until the folder is ready for new entries; the
    /// entries of earlier runs are found by a thread of its own, and served as
    /// soon as they are found.
    ///
    /// Pingora wants storages that live as long as the process, hence the leak.
    pub fn open(config: DiskCacheConfig) -> io::Result<&'static DiskCache> {
        let path = &config.path;
        fs::create_dir_all(path).map_err(|e| in_folder(path, "create the cache folder", e))?;
        // Else nothing in it is ours to remove.
        let was_cache = path.join("epoch").exists();
        let lock = take_lock(path, config.successor)?;
        let writable = lock.is_held();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("cache-io")
            .enable_all()
            .build()?;
        let backend = backend(config.backend, path, runtime.handle())
            .map_err(|e| in_folder(path, "create folders", e))?;
        let bans = Bans::load(path, writable)
            .map_err(|e| in_folder(&path.join("bans"), "read the ban list", e))?;
        let first_generation = match writable {
            true => next_epoch(path, backend.layout(), bans.newest())
                .map_err(|e| in_folder(path, "write to the cache folder", e))?,
            false => 0,
        };
        let size = match was_cache {
            true => closed_size(path, first_generation),
            false => Some(0),
        };
        let (removals, removed) = mpsc::unbounded_channel();
        let cache: &'static DiskCache = Box::leak(Box::new(DiskCache {
            path: path.clone(),
            runtime,
            backend,
            sendfile: config.sendfile,
            max_size_bytes: config.max_size_bytes,
            room: Room::new(config.max_size_bytes),
            open_bodies: OpenBodies::default(),
            misses: Misses::default(),
            fill_without_readers: config.fill_without_readers,
            turns: Turns::new(config.max_fills),
            outgrown: Outgrown::default(),
            refused: Refused::default(),
            index: Index::default(),
            fills: Fills::default(),
            hot: Hot::new(
                config.memory_bytes,
                config.max_open_files.min(open_files_limit() / 4),
            ),
            bans,
            changes: Changes::default(),
            clock: Clock::start(),
            stats: Stats::default(),
            loaded: recovery::Progress::default(),
            loaded_signal: (Mutex::new(false), Condvar::new()),
            loads: Semaphore::new(CONCURRENT_LOADS),
            admission: Admission {
                min_uses: (config.min_uses > 1).then(|| MinUses::new(config.min_uses)),
                cache: std::sync::OnceLock::new(),
            },
            next_generation: AtomicU64::new(first_generation),
            beginning: Mutex::default(),
            writable: AtomicBool::new(writable),
            lock,
            removals,
            failed_removals: AtomicUsize::new(0),
            loading: Mutex::new(Loading {
                since: Instant::now(),
                size,
            }),
            bytes_written: AtomicU64::new(0),
            purges: AtomicU64::new(0),
        }));
        let _ = cache.admission.cache.set(cache);
        cache
            .runtime
            .spawn(maintenance::remove_files(cache, removed));
        cache
            .runtime
            .spawn(maintenance::run(cache, config.inactive));
        std::thread::Builder::new()
            .name("cache-load".into())
            .spawn(move || {
                cache.load_and_take_over(first_generation);
                if was_cache && cache.is_writable() {
                    recovery::remove_other_versions(&cache.path);
                }
            })?;
        if config.scrub_bytes_per_second > 0 {
            scrub::spawn(cache, config.scrub_bytes_per_second);
        }
        Ok(cache)
    }

    /// Load the index; as a successor, read along until the folder is free.
    /// Blocks.
    fn load_and_take_over(&'static self, first_generation: u64) {
        if self.is_writable() {
            recovery::load(self, Leftovers::RemoveBelow(first_generation));
            self.set_loaded();
            return;
        }
        recovery::load(self, Leftovers::Keep);
        self.set_loaded();
        info!(
            "{}: another process writes to this cache folder; nothing is stored until it lets go",
            self.path.display()
        );
        let taken = self.wait_for_lock().and_then(|()| {
            self.bans.reload(true)?;
            next_epoch(&self.path, self.backend.layout(), self.bans.newest())
        });
        match taken {
            Ok(first) => {
                self.next_generation.store(first, Ordering::Release);
                *self.loading.lock() = Loading {
                    since: Instant::now(),
                    size: closed_size(&self.path, first),
                };
                self.bytes_written.store(0, Ordering::Release);
                self.loaded.restart();
                self.writable.store(true, Ordering::Release);
                info!("{}: taken over", self.path.display());
                // What the other process has written meanwhile, and left.
                recovery::load(self, Leftovers::RemoveBelow(first));
            }
            Err(e) => warn!(
                "{}: cannot take the cache folder over: {e}; nothing will be stored until a restart",
                self.path.display()
            ),
        }
    }

    /// Wait until the other process lets the folder go, and heed what is purged
    /// there meanwhile. Blocks.
    fn wait_for_lock(&self) -> io::Result<()> {
        loop {
            let taken = self.lock.take_over();
            if taken.map_err(|e| lock_error(&self.path, e))? {
                return Ok(());
            }
            if let Err(e) = self.bans.reload(false) {
                warn!("{}: cannot read the ban list: {e}", self.path.display());
            }
            std::thread::sleep(TAKE_OVER_INTERVAL);
        }
    }

    fn set_loaded(&self) {
        *self.loaded_signal.0.lock() = true;
        self.loaded_signal.1.notify_all();
        self.room.notify();
    }

    /// Wait until all entries of earlier runs are known. Blocks.
    pub fn wait_loaded(&self) {
        let mut loaded = self.loaded_signal.0.lock();
        while !*loaded {
            self.loaded_signal.1.wait(&mut loaded);
        }
    }

    /// Wait, at most so long, until what is complete is committed, and let the
    /// folder go. Blocks: for the end of a process.
    pub fn close(&self, timeout: Duration) {
        let settled = self
            .runtime
            .block_on(async { tokio::time::timeout(timeout, self.settle()).await });
        if settled.is_err() {
            warn!(
                "{}: {} fills were not complete, and are lost",
                self.path.display(),
                self.fills.len()
            );
        }
        let was_writable = self.writable.swap(false, Ordering::AcqRel);
        let is_exact = settled.is_ok()
            && self.loaded.is_complete()
            && !self.loaded.has_gaps()
            && !self.has_failed_removals();
        if was_writable && is_exact {
            self.note_size();
        }
        self.lock.close();
    }

    /// Notice that the lock file was removed, and take the lock anew; stop writing if
    /// another process was faster. Blocks.
    pub(crate) fn keep_lock(&'static self) {
        match self.lock.renew() {
            Renewed::Same => {}
            Renewed::Lost => {
                self.writable.store(false, Ordering::Release);
                error!(
                    "{}: the lock file was removed, and another process has taken this cache folder; \
                     nothing is stored until it ends: stop it, or give each its own cache.disk.path",
                    self.path.display()
                );
            }
            Renewed::Taken { is_new } => match self.start_epoch() {
                Ok(()) => {
                    // It may have been closed meanwhile.
                    self.writable.store(self.lock.is_held(), Ordering::Release);
                    warn!(
                        "{}: the lock file was replaced; this process holds the lock again",
                        self.path.display()
                    );
                    if !is_new && self.loaded.is_complete() {
                        self.load_again();
                    }
                }
                Err(e) => {
                    self.writable.store(false, Ordering::Release);
                    self.lock.lose();
                    error!(
                        "{}: cannot start a new epoch in the cache folder; trying again: {e}",
                        self.path.display()
                    );
                }
            },
        }
    }

    /// Number the next entries above those that another process may have written
    /// meanwhile, and bring the files back that a start would have made. Blocks.
    fn start_epoch(&self) -> io::Result<()> {
        self.bans.restore()?;
        let newest = self.bans.newest().max(self.last_generation());
        let first = next_epoch(&self.path, self.backend.layout(), newest)?;
        self.next_generation.fetch_max(first, Ordering::AcqRel);
        Ok(())
    }

    /// Find what another process has stored in the meantime.
    fn load_again(&'static self) {
        *self.loading.lock() = Loading {
            since: Instant::now(),
            size: None,
        };
        self.bytes_written.store(0, Ordering::Release);
        let spawned = std::thread::Builder::new()
            .name("cache-load".into())
            // Fills of this process have temporary files there.
            .spawn(move || recovery::load(self, Leftovers::Keep));
        if let Err(e) = spawned {
            warn!("{}: cannot list it again: {e}", self.path.display());
        }
    }

    /// Make the folders that a new entry needs, in a cache folder that somebody has
    /// emptied. Blocks.
    fn mend_folder(&'static self, id: EntryId) -> io::Result<()> {
        self.keep_lock();
        if !self.is_writable() {
            return Err(io::Error::other(OTHER_WRITES));
        }
        if !self.lock.is_mounted() {
            return Err(io::ErrorKind::NotFound.into());
        }
        fs::create_dir_all(self.backend.layout().shard(id.hash[0]))
    }

    /// Let the next run know what the entries take.
    fn note_size(&self) {
        let (epoch, size) = (
            epoch_of(self.last_generation()),
            self.room.taken(&self.index),
        );
        let text = format!("{epoch} {size} {epoch} {size}\n");
        if let Err(e) = write_epoch(&self.path.join("size"), text.as_bytes()) {
            warn!("{}: cannot note its size: {e}", self.path.display());
        }
    }

    /// Wait until no fill is in flight, and all files that had to go are gone.
    pub async fn settle(&self) {
        self.fills.wait_idle().await;
        self.removed_all().await;
    }

    /// Which misses to store, see
    /// [`HttpCache::set_admission_policy`](pingora_cache::HttpCache::set_admission_policy).
    pub fn admission(&'static self) -> &'static dyn AdmissionPolicy {
        &self.admission
    }

    /// What to add to the extensions of a request's [`CacheKey`].
    pub fn asked_now(&self) -> AskedAt {
        // Under the lock, in which fills get their generations.
        let beginning = self.beginning.lock();
        let generation = self.last_generation();
        AskedAt {
            generation,
            findable: beginning
                .first()
                .map_or(generation, |first| first.saturating_sub(1)),
        }
    }

    /// Give a fill its generation.
    fn begin(&self) -> Beginning<'_> {
        let mut beginning = self.beginning.lock();
        let generation = self.next_generation();
        beginning.insert(generation);
        Beginning {
            cache: self,
            generation,
        }
    }

    /// The configured limit, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_bytes
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.index.len()
    }

    /// Bytes that the entries take, and the fills in flight will.
    pub fn size_bytes(&self) -> u64 {
        self.index.bytes() + self.fills.bytes()
    }

    /// How many fills are in flight.
    pub fn fills_in_flight(&self) -> usize {
        self.fills.len()
    }

    /// How far the entries of earlier runs are known.
    pub fn load_progress(&self) -> &recovery::Progress {
        &self.loaded
    }

    /// The number of purges and bans requested so far. Answers of the origin that are
    /// remembered elsewhere are valid only while this number stays the same.
    pub fn purges(&self) -> u64 {
        self.purges.load(Ordering::Acquire)
    }

    /// How many bans are in force.
    pub fn bans(&self) -> usize {
        self.bans.len()
    }

    /// Bytes of memory that small bodies take.
    pub fn memory_bytes(&self) -> u64 {
        self.hot.memory_bytes()
    }

    /// How many files are kept open.
    pub fn open_files(&self) -> usize {
        self.hot.open_files()
    }

    /// What was counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The backend in use.
    pub fn backend(&self) -> &dyn DiskBackend {
        &*self.backend
    }

    /// Whether this process may write to the folder.
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Whether there is an entry for a key, or a fill that can be followed, that
    /// could not be found when the key's request was made
    /// ([`asked_now`](Self::asked_now)). What was there before has been looked up, and
    /// was of no use.
    pub fn is_new(&self, key: &CacheKey) -> bool {
        let asked = key
            .extensions
            .get()
            .map_or(0, |asked: &AskedAt| asked.findable);
        let hash = key.combined_bin();
        let fill = self.fills.get(&hash);
        let fill = fill
            .filter(|fill| is_for(&fill.primary_key, &fill.key, key))
            .filter(|fill| !fill.readers().has_ended())
            .map(|fill| fill.id);
        let entry = self.index.get(&hash).map(|entry| entry.id);
        let newest = fill.into_iter().chain(entry).map(|id| id.generation);
        newest.max().is_some_and(|generation| generation > asked)
    }

    /// True if an object of unknown length turned out larger than the whole cache.
    pub fn was_outgrown(&self, key: &CacheKey) -> bool {
        self.outgrown.has(&key.combined_bin())
    }

    /// Forget that the object was too large; it may have become smaller.
    pub fn forget_outgrown(&self, key: &CacheKey) {
        self.outgrown.forget(&key.combined_bin());
    }

    /// Whether a fill of this very key is in flight.
    pub fn is_filling(&self, key: &CacheKey) -> bool {
        self.fills.get(&key.combined_bin()).is_some()
    }

    /// Whether anything may be stored for a key, or about to be.
    pub(crate) fn may_have(&self, key: &CacheKey) -> bool {
        let hash = key.combined_bin();
        // In this order: a fill is an entry before it is none any more.
        !self.loaded.is_complete()
            || self.fills.get(&hash).is_some()
            || self.index.get(&hash).is_some()
    }

    /// Where the body for a key is, see [`DiskBackend::get_file_path`].
    pub fn get_file_path(&self, key: &CacheKey) -> Option<PathBuf> {
        self.backend.get_file_path(key)
    }

    /// Forget what is stored for a key, because it turned out to be unusable.
    pub fn drop_entry(&'static self, key: &CacheKey, why: &str) {
        if let Some(entry) = self.index.get(&key.combined_bin()) {
            self.drop_damaged(entry.id, &crate::cache::store::format::invalid(why));
        }
    }

    /// Evict the one variant that a key names; others stay.
    pub fn evict_variant(&self, key: &CacheKey) {
        if let Some(entry) = self.index.get(&key.combined_bin()) {
            self.evict(entry.id, Eviction::Replaced);
        }
    }

    /// Remove what is stored for a key, in all variants, and keep a fill in
    /// flight from becoming an entry. When this returns, no crash brings it
    /// back. Whether there was something.
    pub async fn purge_key(&'static self, key: &CacheKey) -> io::Result<bool> {
        self.purge_primary(key.to_compact()).await
    }

    async fn purge_primary(&'static self, key: CompactCacheKey) -> io::Result<bool> {
        self.check_writable()?;
        self.purges.fetch_add(1, Ordering::AcqRel);
        let primary = key.primary;
        let fill = self.fills.get(&key.combined_bin()).is_some();
        let found = self.index.get(&key.combined_bin());
        // This also covers requests that the origin has not answered yet.
        self.changes.record(self.next_generation(), primary);
        let absent = found.is_none() && !fill && self.loaded.is_complete();
        let ban = move |generation| match absent {
            true => self.bans.ban_absent(generation, primary),
            false => self.bans.ban(generation, Banned::Exact(primary)),
        };
        self.ban(ban, move |fill| fill.key.primary == primary)
            .await?;
        if let Some(entry) = found {
            self.evict(entry.id, Eviction::Purged);
        }
        Ok(found.is_some() || fill)
    }

    /// What a key stands for has changed at the origin: void what is stored, as
    /// [`purge_key`](Self::purge_key) does, and what the origin has been asked for
    /// and not answered yet. Nothing is written where nothing is stored.
    pub async fn invalidate(&'static self, key: &CacheKey) -> io::Result<()> {
        let generation = self.next_generation();
        let primary = key.primary_bin();
        self.changes.record(generation, primary);
        // Of all variants.
        self.fills
            .void(|fill| fill.id.generation < generation && fill.key.primary == primary);
        if self.may_have(key) {
            self.purge_key(key).await?;
        }
        Ok(())
    }

    /// Like [`invalidate`](Self::invalidate), before this returns: but a crash soon after may
    /// bring back what was stored.
    pub fn invalidate_now(&'static self, key: &CacheKey) {
        let generation = self.next_generation();
        let primary = key.primary_bin();
        self.changes.record(generation, primary);
        self.purges.fetch_add(1, Ordering::AcqRel);
        self.fills
            .void(|fill| fill.id.generation < generation && fill.key.primary == primary);
        let Some(entry) = self.index.get(&key.combined_bin()) else {
            return;
        };
        self.evict(entry.id, Eviction::Purged);
        let key = key.clone();
        self.runtime.handle().spawn(async move {
            if let Err(e) = self.purge_key(&key).await {
                warn!("what has changed may come back after a crash: {e}");
            }
        });
    }

    /// Void answers of the origin that are remembered elsewhere, see [`purges`](Self::purges).
    pub fn forget_answers(&self) {
        self.purges.fetch_add(1, Ordering::AcqRel);
    }

    /// Void all entries of `user_tag` whose key begins with `prefix`, and the
    /// fills in flight. Holds at once, and durably when this returns; their
    /// files are removed in the background.
    pub async fn ban_prefix(&'static self, user_tag: &str, prefix: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.purges.fetch_add(1, Ordering::AcqRel);
        let (tag, bytes) = (user_tag.to_owned(), prefix.to_vec());
        let banned = Banned::Prefix(tag.clone(), bytes.clone());
        self.ban(
            move |generation| self.bans.ban(generation, banned),
            move |fill| *fill.key.user_tag == *tag && fill.primary_key.starts_with(&bytes),
        )
        .await
    }

    async fn ban(
        &'static self,
        ban: impl FnOnce(u64) -> io::Result<()> + Send + 'static,
        matches: impl Fn(&Fill) -> bool,
    ) -> io::Result<()> {
        let generation = self.next_generation.fetch_add(1, Ordering::AcqRel);
        self.fills
            .void(|fill| fill.id.generation < generation && matches(fill));
        let banned = self
            .runtime
            .spawn_blocking(move || ban(generation))
            .await
            .map_err(io::Error::other)?
            .map_err(|e| in_folder(&self.path, "write the ban list", e));
        // Those that were about to begin have not seen the ban, or are seen now.
        self.fills
            .void(|fill| fill.id.generation < generation && matches(fill));
        banned
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable() {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "{}: another process still writes to this cache folder; purge there, or again when it has ended",
            self.path.display()
        )))
    }

    // === for the cache's own modules ===

    pub(crate) fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn fills(&self) -> &Fills {
        &self.fills
    }

    pub(crate) fn fill_without_readers(&self) -> f64 {
        self.fill_without_readers
    }

    /// Turns to fetch and to store.
    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(crate) fn note_outgrown(&self, hash: &HashBinary) {
        self.outgrown.note(hash);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    pub(crate) fn open_bodies(&self) -> &OpenBodies {
        &self.open_bodies
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    /// Bytes of all entries while those of earlier runs are not known; `None`: nobody can
    /// tell, because the last run was not closed.
    pub(crate) fn bytes_while_loading(&self) -> Option<u64> {
        let size = self.loading.lock().size?;
        Some(size.saturating_add(self.bytes_written()))
    }

    /// The time since loading began.
    pub(crate) fn loading_for(&self) -> Duration {
        self.loading.lock().since.elapsed()
    }

    pub(crate) fn ban_list(&self) -> &Bans {
        &self.bans
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The last generation so far.
    pub(crate) fn last_generation(&self) -> u64 {
        self.next_generation
            .load(Ordering::Acquire)
            .saturating_sub(1)
    }

    /// The next generation: greater than that of every entry so far.
    pub(crate) fn next_generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::AcqRel)
    }

    /// Wait for the turn to read from the disk.
    pub(crate) async fn load_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.loads.acquire().await.ok()
    }

    /// Remove this very entry. Who reads it may go on.
    pub(crate) fn evict(&self, id: EntryId, reason: Eviction) {
        if let Some(claim) = self.room.leave(&self.index, &id) {
            self.stats.evictions(reason).inc();
            self.hot.forget(&id);
            self.remove_files(id, Some(claim));
        }
    }

    /// Have the files of an entry that the index does not know removed, and then their
    /// claim released.
    pub(crate) fn remove_files(&self, id: EntryId, claim: Option<Claim>) {
        if self.is_writable() {
            let which = Which::Entry;
            let _ = self
                .removals
                .send(Removal::Files(Files { id, claim, which }));
        }
    }

    /// Queue a leftover of an earlier run whose first removal failed.
    pub(crate) fn remove_leftover(&self, id: EntryId, path: &Path) {
        let (claim, which) = (None, Which::Leftover(path.into()));
        let _ = self
            .removals
            .send(Removal::Files(Files { id, claim, which }));
    }

    /// Have all files of a fill removed that was given up, and then its claim released.
    pub(crate) fn remove_fill(&self, id: EntryId, claim: Option<Claim>) {
        let which = Which::Fill;
        let _ = self
            .removals
            .send(Removal::Files(Files { id, claim, which }));
    }

    /// Note that files are removed. Their claim is released once they are closed.
    pub(crate) fn files_removed(&self, id: EntryId, claim: Option<Claim>) {
        if let Some(claim) = claim {
            self.open_bodies.hold(&id, claim);
        }
    }

    pub(crate) fn set_failed_removals(&self, count: usize) {
        self.failed_removals.store(count, Ordering::Release);
    }

    pub(crate) fn has_failed_removals(&self) -> bool {
        self.failed_removals.load(Ordering::Acquire) > 0
    }

    /// Wait until all files are gone that had to go when this was called.
    pub(crate) async fn removed_all(&self) {
        let (done, removed) = oneshot::channel();
        if self.removals.send(Removal::Barrier(done)).is_ok() {
            let _ = removed.await;
        }
    }

    /// Let go of an entry whose files are gone.
    pub(crate) fn forget(&self, id: EntryId) {
        self.index.remove(&id);
        self.hot.forget(&id);
    }

    /// An entry's files are not what they should be: it goes.
    pub(crate) fn drop_damaged(&self, id: EntryId, why: &io::Error) {
        if !self.index.contains(&id) {
            return;
        }
        let cause = Cause::of(why);
        self.stats.read_errors(cause).inc();
        if cause == Cause::Descriptors {
            // Says nothing about the entry.
            self.hot.close_files();
            warn!(
                "cache entry {id}: {why}; raise the limit on open files (LimitNOFILE, ulimit -n)"
            );
            return;
        }
        warn!("cache entry {id} is dropped: {why}");
        self.evict(id, Eviction::Damaged);
    }

    pub(crate) fn is_banned_fill(&self, fill: &Fill) -> bool {
        let generation = fill.id.generation;
        self.bans.void(generation, &fill.key.primary, || {
            (&fill.key.user_tag, &fill.primary_key)
        }) || (fill.key.variance.is_some() && self.bans.voids_variant(generation))
    }

    /// Make a committed fill the current entry of its key, unless it was purged
    /// meanwhile, and set `claim` to `None`. `false`: its metadata is no longer `meta`.
    pub(crate) fn publish(&self, fill: &Fill, meta: &EntryMeta, claim: &mut Option<Claim>) -> bool {
        let entry = Indexed {
            id: fill.id,
            weight: meta.weight(),
            used: self.clock.now(),
        };
        let published = self.fills.publish(fill, meta, |void| {
            let entered =
                (!void && !self.is_banned_fill(fill)).then(|| self.room.enter(&self.index, entry));
            // Before anybody sees that the fill is over.
            if entered
                .as_ref()
                .is_some_and(|(inserted, _)| *inserted != Inserted::Outdated)
            {
                *claim = None;
            }
            entered
        });
        let Some(inserted) = published else {
            return false;
        };
        match inserted {
            Some((Inserted::New | Inserted::Known, _)) => self.count_fill(meta),
            Some((Inserted::Replaced(older), gone)) => {
                self.count_fill(meta);
                self.stats.evictions(Eviction::Replaced).inc();
                self.hot.forget(&older);
                self.remove_files(older, gone);
            }
            Some((Inserted::Outdated, _)) | None => self.remove_files(fill.id, claim.take()),
        }
        *claim = None;
        true
    }

    fn count_fill(&self, meta: &EntryMeta) {
        self.stats.fills.inc();
        self.bytes_written
            .fetch_add(meta.weight(), Ordering::Relaxed);
    }

    /// Whether new entries may be written. While the entries of earlier runs are
    /// not known none can be evicted, so only free room is used.
    fn admits(&self) -> bool {
        self.is_writable()
            && (self.loaded.is_complete()
                || self.loading_for() < room::LOAD_PATIENCE
                || (self.bytes_while_loading()).is_some_and(|bytes| bytes < self.max_size_bytes))
    }

    /// Replace the metadata of an entry. Whether it is still current.
    pub(crate) async fn store_meta(&self, id: EntryId, meta: EntryMeta) -> bool {
        let weight = meta.weight();
        if let Err(e) = self.backend.write_meta(id, meta.clone()).await {
            self.stats.read_errors(Cause::of(&e)).inc();
            warn!("cache entry {id}: cannot update its metadata: {e}");
            return false;
        }
        if !self.index.contains(&id) {
            // Purged or replaced meanwhile: take back the file just written.
            self.remove_files(id, None);
            return false;
        }
        self.index.set_weight(&id, weight);
        if let Some(kept) = self.hot.get(&id, false) {
            self.hot.replace(HotEntry::new(id, meta, kept.body.clone()));
            // Evicted meanwhile: then nobody else forgets it.
            if !self.index.contains(&id) {
                self.hot.forget(&id);
            }
        }
        true
    }

    /// An entry, from memory or opened. One that is damaged is dropped, and as
    /// good as none.
    async fn open_entry(&'static self, indexed: Indexed) -> Option<Arc<HotEntry>> {
        let id = indexed.id;
        if let Some(entry) = self.in_use(&indexed) {
            return self.is_sound(&entry).then_some(entry);
        }
        self.stats.opens.inc();
        let prefetch = self.prefetch();
        let space = self.open_bodies.open(id);
        let opened = match crate::cache::io::nowait::open_now(self.backend.layout(), &id, prefetch)
        {
            Some(opened) => Ok(opened),
            None => self.backend.open(id, prefetch).await,
        };
        match opened {
            Ok(OpenEntry {
                meta,
                body,
                prefetched,
            }) => {
                let body = match prefetched {
                    Some(body) if self.hot.keeps_bodies() || meta.body_len == 0 => {
                        HotBody::Memory(body)
                    }
                    _ => {
                        let body = Arc::new(BodyFile::in_space(body, space));
                        // A disk that fails is noticed while the origin can
                        // still answer in its place.
                        let start = 0..meta.body_len.min(FIRST_READ);
                        if !body.is_resident(&start) {
                            if let Err(e) = body.load(self, &start).await {
                                self.drop_damaged(id, &e);
                                return None;
                            }
                        }
                        HotBody::File(body)
                    }
                };
                let entry = HotEntry::new(id, meta, body);
                self.hot.keep(&entry);
                // Evicted while it was opened: then nobody else forgets it.
                if !self.index.contains(&id) {
                    self.hot.forget(&id);
                }
                Some(entry)
            }
            Err(e) => {
                self.drop_damaged(id, &e);
                None
            }
        }
    }

    fn in_use(&self, entry: &Indexed) -> Option<Arc<HotEntry>> {
        // Metadata is seldom that long.
        let large = entry.weight > 2 * self.prefetch();
        self.hot.get(&entry.id, large)
    }

    /// Whether a kept entry can be served; counts that it is. One whose file was
    /// tampered with is dropped: found out now, it costs the client nothing.
    fn is_sound(&self, entry: &HotEntry) -> bool {
        match &entry.body {
            HotBody::Memory(_) => self.stats.memory_hits.inc(),
            HotBody::File(body) => {
                if !body.has_len(entry.meta.body_len) {
                    let why = "body file does not have the recorded length";
                    self.drop_damaged(entry.id, &crate::cache::store::format::invalid(why));
                    return false;
                }
                self.stats.descriptor_hits.inc();
            }
        }
        true
    }

    /// Bodies up to this length are copied to the client, so they may as well be
    /// read at once.
    fn prefetch(&self) -> u64 {
        if self.backend.supports_sendfile() && self.sendfile.enabled {
            PREFETCH.min(self.sendfile.threshold_bytes)
        } else {
            PREFETCH
        }
    }

    fn sends_files(&self, body_len: Option<u64>) -> bool {
        self.backend.supports_sendfile()
            && match body_len {
                Some(len) => self.sendfile.applies_to(len),
                None => self.sendfile.enabled,
            }
    }

    /// The current entry of a key, which is used now. `primary`: the hash of the
    /// key without its variance.
    fn current(&self, key: &CacheKey, primary: &HashBinary) -> Option<Indexed> {
        let hash = match key.variance_bin() {
            None => *primary,
            Some(_) => key.combined_bin(),
        };
        let indexed = self.index.touch(&hash, self.clock.now())?;
        let generation = indexed.id.generation;
        if self
            .bans
            .void(generation, primary, || (&key.user_tag, key.primary_key()))
            || (hash != *primary && self.bans.voids_variant(generation))
        {
            self.evict(indexed.id, Eviction::Purged);
            return None;
        }
        Some(indexed)
    }

    /// What is stored for a key: entry and metadata.
    async fn find(&'static self, key: &CacheKey) -> Option<(CacheMeta, Arc<HotEntry>)> {
        let primary = key.primary_bin();
        let indexed = self.current(key, &primary)?;
        let entry = self.open_entry(indexed).await?;
        let meta = if !is_of(&entry, key, &primary) {
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
                self.drop_damaged(indexed.id, &crate::cache::store::format::invalid(&why));
                None
            }
        }
    }

    /// What [`lookup`](Storage::lookup) would find, if it is an entry in use whose
    /// [answer](DiskHit::prepare) was prepared and is of use. Nothing is waited for,
    /// and nothing copied. Not for keys of variants.
    pub(crate) fn lookup_prepared(
        &'static self,
        key: &CacheKey,
        is_of_use: impl FnOnce(&Prepared) -> bool,
    ) -> Option<DiskHit> {
        let primary = key.primary_bin();
        if key.variance_bin().is_some() || self.newest_fill(&primary, key).is_some() {
            return None;
        }
        let indexed = self.current(key, &primary)?;
        let entry = self.in_use(&indexed)?;
        let prepared = entry.prepared()?;
        let usable = is_of_use(prepared)
            && prepared.has_tag(&key.user_tag)
            && is_of(&entry, key, &primary)
            && self.is_sound(&entry);
        usable.then(|| {
            let sendfile = self.sends_files(Some(entry.meta.body_len));
            DiskHit::of_entry(self, entry, sendfile)
        })
    }

    /// The fill that a reader of this key follows. One that was overtaken by a
    /// newer fill of the key, which is an entry already, has no readers.
    fn newest_fill(&self, hash: &[u8; 16], key: &CacheKey) -> Option<Arc<Fill>> {
        let fill = self.fills.get(hash)?;
        if !is_for(&fill.primary_key, &fill.key, key) {
            return None;
        }
        let entry = self.index.get(hash);
        entry
            .is_none_or(|entry| entry.id.generation < fill.id.generation)
            .then_some(fill)
    }

    fn follow(&'static self, reader: Reader) -> Result<(CacheMeta, HitHandler)> {
        let (internal, header) = reader.fill().meta();
        let meta = CacheMeta::deserialize(&internal, &header)?;
        let sendfile = self.sends_files(reader.fill().promised);
        Ok((meta, Box::new(DiskHit::of_fill(self, reader, sendfile))))
    }

    /// True if a fill of this key has just been refused, which is forgotten then.
    pub(crate) fn was_refused(&self, key: &CacheKey) -> bool {
        self.refused.take(&key.primary_bin())
    }

    fn refuse(&self, key: &CacheKey, id: EntryId, cause: Cause) -> Result<MissHandler> {
        self.refused.note(key.primary_bin());
        self.stats.fill_errors(cause).inc();
        let cause = cause.label();
        Error::e_explain(NO_ROOM, format!("no room for cache entry {id}: {cause}"))
    }

    /// Create the body file of a fill, with the space it will need.
    async fn create(&'static self, id: EntryId, promised: Option<u64>) -> io::Result<Arc<File>> {
        // A long body takes its space as it comes, because it may never come.
        let reserve = promised.map(|len| len.min(self.step()));
        let free = match promised {
            Some(len) if len > UNCHECKED_RESERVATION => self.free_space().await,
            _ => u64::MAX,
        };
        if free.saturating_add(self.size_bytes()) < promised.unwrap_or(0) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let create = || async move {
            if reserve.is_some_and(|len| len > UNCHECKED_RESERVATION)
                && Some(self.free_space().await) < reserve
            {
                return Err(io::ErrorKind::StorageFull.into());
            }
            match self.backend.create(id, reserve).await {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.runtime
                        .spawn_blocking(move || self.mend_folder(id))
                        .await
                        .map_err(io::Error::other)??;
                    self.backend.create(id, reserve).await
                }
                created => created,
            }
        };
        self.with_disk_space(reserve.unwrap_or(0), u8::MAX, create)
            .await
    }

    /// [`create`](Self::create), which goes on if the future is dropped: then the file is
    /// removed.
    async fn create_detached(
        &'static self,
        id: EntryId,
        promised: Option<u64>,
        claim: Claim,
    ) -> io::Result<Created> {
        let created = self.runtime.spawn(async move {
            let file = self.create(id, promised).await?;
            Ok(Created {
                cache: self,
                id,
                parts: Some((file, claim)),
            })
        });
        created.await.map_err(io::Error::other)?
    }

    /// Bytes that the file system has left; `u64::MAX`: unknown.
    async fn free_space(&'static self) -> u64 {
        let seen = self.runtime.spawn_blocking(|| room::free_space(&self.path));
        seen.await.ok().flatten().unwrap_or(u64::MAX)
    }
}

/// Objects of unknown length that turned out larger than the whole cache. Another
/// attempt to store one would evict all entries again.
#[derive(Debug, Default)]
struct Outgrown(Mutex<HashSet<HashBinary>>);

/// Most such objects that are remembered.
const MAX_OUTGROWN: usize = 16_384;

impl Outgrown {
    fn note(&self, hash: &HashBinary) {
        let mut hashes = self.0.lock();
        if hashes.len() >= MAX_OUTGROWN {
            hashes.clear();
        }
        hashes.insert(*hash);
    }

    fn has(&self, hash: &HashBinary) -> bool {
        self.0.lock().contains(hash)
    }

    fn forget(&self, hash: &HashBinary) {
        self.0.lock().remove(hash);
    }
}

/// The keys of which a fill was refused that would have been stored, and when.
#[derive(Debug, Default)]
struct Refused(Mutex<HashMap<HashBinary, Instant>>);

/// The most that are remembered.
const MAX_REFUSED: usize = 4096;

/// The time for which they are. Whoever fills releases the lock of the key at once.
const REFUSED_FOR: Duration = Duration::from_secs(1);

impl Refused {
    fn note(&self, hash: HashBinary) {
        let mut hashes = self.0.lock();
        if hashes.len() >= MAX_REFUSED {
            hashes.clear();
        }
        hashes.insert(hash, Instant::now());
    }

    fn take(&self, hash: &HashBinary) -> bool {
        let at = self.0.lock().remove(hash);
        at.is_some_and(|at| at.elapsed() < REFUSED_FOR)
    }
}

/// The body file of a fill that has not begun, and its room. The file is removed when this
/// is dropped.
struct Created {
    cache: &'static DiskCache,
    id: EntryId,
    parts: Option<(Arc<File>, Claim)>,
}

impl Created {
    fn into_parts(mut self) -> Result<(Arc<File>, Claim)> {
        let parts = self.parts.take();
        parts.ok_or_else(|| Error::explain(ErrorType::InternalError, "the file was taken"))
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some((file, claim)) = self.parts.take() {
            drop(file);
            self.cache.remove_fill(self.id, Some(claim));
        }
    }
}

/// A fill that has its generation, and is not among the fills yet.
struct Beginning<'a> {
    cache: &'a DiskCache,
    generation: u64,
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        self.cache.beginning.lock().remove(&self.generation);
    }
}

/// Whether an entry is what the index says. `primary`: see `DiskCache::current`.
fn is_of(entry: &HotEntry, key: &CacheKey, primary: &HashBinary) -> bool {
    entry.meta.key.primary == *primary && entry.meta.key.variance_bin() == key.variance_bin()
}

/// True if an entry, or a fill, was stored for this key. The keys are compared in clear
/// text, because [`CacheKey::new`] hashes its first argument only: even a proxy that tells
/// objects apart by the second argument never gets one for another.
fn is_for(primary_key: &[u8], stored: &CompactCacheKey, key: &CacheKey) -> bool {
    primary_key == key.primary_key() && *stored.user_tag == *key.user_tag
}

fn take_lock(path: &Path, successor: bool) -> io::Result<FolderLock> {
    let lock = FolderLock::take(path).map_err(|e| lock_error(path, e))?;
    if lock.is_held() || successor {
        return Ok(lock);
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "{}: another process uses this cache folder; stop it, or give each its own cache.disk.path",
            path.display()
        ),
    ))
}

fn lock_error(path: &Path, e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::InvalidData => in_folder(&path.join("lock"), "lock it; remove it", e),
        _ => in_folder(path, "lock the cache folder", e),
    }
}

fn backend(
    choice: BackendChoice,
    path: &Path,
    runtime: &Handle,
) -> io::Result<Box<dyn DiskBackend>> {
    if choice == BackendChoice::Uring {
        match uring(path, runtime) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                warn!("cache.disk.backend: tokio is used instead of uring: {e}");
            }
            backend => return backend,
        }
    }
    Ok(Box::new(TokioFsBackend::new(path, runtime.clone())?))
}

#[cfg(all(
    feature = "uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
fn uring(path: &Path, runtime: &Handle) -> io::Result<Box<dyn DiskBackend>> {
    Ok(Box::new(crate::cache::UringBackend::new(
        path,
        runtime.clone(),
    )?))
}

#[cfg(not(all(
    feature = "uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
)))]
fn uring(_path: &Path, _runtime: &Handle) -> io::Result<Box<dyn DiskBackend>> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this build has no io_uring: it needs Linux and the Cargo feature uring",
    ))
}

/// How many files this process may have open.
#[cfg(target_os = "linux")]
fn open_files_limit() -> usize {
    rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| limit as usize)
}

#[cfg(not(target_os = "linux"))]
fn open_files_limit() -> usize {
    // What most systems allow at least.
    256
}

/// The first generation of this run: greater than any of an earlier run, however
/// the clock jumps. `newest_ban` is the highest that a ban speaks of.
fn next_epoch(path: &Path, layout: &Layout, newest_ban: u64) -> io::Result<u64> {
    let file = path.join("epoch");
    let last = match regular::read(&file) {
        Ok(text) => parse_epoch(&text),
        // It is replaced.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    // Without it, the generations on disk still tell, and those of the bans.
    let last = last
        .unwrap_or_else(|| {
            recovery::generations(layout)
                .map(epoch_of)
                .max()
                .unwrap_or(0)
        })
        .max(epoch_of(newest_ban));
    let epoch = last.checked_add(1).ok_or_else(|| {
        io::Error::other("the cache has been opened 2^32 times; delete the folder")
    })?;
    write_epoch(&file, format!("{epoch} {epoch}\n").as_bytes())?;
    Ok(u64::from(epoch) << 32)
}

/// Bytes that the entries took when the run before `first_generation` was closed; `None`: it
/// was not, or something is unclear.
fn closed_size(path: &Path, first_generation: u64) -> Option<u64> {
    let text = regular::read(&path.join("size")).ok()?;
    let (epoch, size) = parse_size(&text)?;
    (epoch.checked_add(1)? == epoch_of(first_generation)).then_some(size)
}

/// Epoch and bytes, which the file holds twice; `None`: it is damaged.
fn parse_size(text: &[u8]) -> Option<(u32, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    let words: Vec<_> = text.strip_suffix('\n')?.split(' ').collect();
    match words[..] {
        [epoch, size, epoch_again, size_again] if (epoch, size) == (epoch_again, size_again) => {
            Some((epoch.parse().ok()?, size.parse().ok()?))
        }
        _ => None,
    }
}

/// Replace the file. Where there is no space for a second one, overwrite it: a
/// full disk shall not keep the cache from being read.
fn write_epoch(file: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    let replaced = regular::create(&temporary)
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| fs::rename(&temporary, file));
    match replaced {
        Err(e) if Cause::of(&e) == Cause::NoSpace => {
            let _ = fs::remove_file(&temporary);
            let mut file = regular::open_with(File::options().write(true), file).map_err(|_| e)?;
            // Not truncated first: that would give its space away. If a crash
            // comes between, the file is damaged, and seen to be.
            file.write_all(text)?;
            file.set_len(text.len() as u64)
        }
        replaced => replaced,
    }
}

/// The number that the file holds twice; `None`: it is damaged. A lower number
/// would give entries generations that older ones have, and void new ones.
fn parse_epoch(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let (number, again) = text.strip_suffix('\n')?.split_once(' ')?;
    (number == again).then(|| number.parse().ok())?
}

fn epoch_of(generation: u64) -> u32 {
    (generation >> 32) as u32
}

#[async_trait]
impl SendfileCapable for DiskCache {
    async fn get_sendfile(&'static self, key: &CacheKey) -> Result<Option<SendfileResponse>> {
        let Some((meta, entry)) = self.find(key).await else {
            return Ok(None);
        };
        let len = entry.meta.body_len;
        Ok(match &entry.body {
            HotBody::File(body) if self.sends_files(Some(len)) => Some(SendfileResponse {
                meta,
                file: body.file().clone(),
                len,
            }),
            _ => None,
        })
    }
}

#[async_trait]
impl Storage for DiskCache {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let fill = self.newest_fill(&key.combined_bin(), key);
        if let Some(reader) = fill.and_then(|fill| Reader::join(fill, false)) {
            self.stats.fill_followers.inc();
            return self.follow(reader).map(Some);
        }
        let Some((meta, entry)) = self.find(key).await else {
            return Ok(None);
        };
        let sendfile = self.sends_files(Some(entry.meta.body_len));
        Ok(Some((
            meta,
            Box::new(DiskHit::of_entry(self, entry, sendfile)),
        )))
    }

    async fn lookup_streaming_write(
        &'static self,
        key: &CacheKey,
        streaming_write_tag: Option<&[u8]>,
        trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(tag) = streaming_write_tag else {
            return self.lookup(key, trace).await;
        };
        let fill = <[u8; 8]>::try_from(tag)
            .ok()
            .and_then(|tag| self.fills.by_generation(u64::from_be_bytes(tag)));
        let reader = fill.and_then(|fill| Reader::join(fill, true));
        reader.map(|reader| self.follow(reader)).transpose()
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<MissHandler> {
        if !self.is_writable() {
            return Error::e_explain(ErrorType::FileCreateError, OTHER_WRITES);
        }
        // First: what is purged meanwhile must not be stored.
        let turn = self.turns.to_fill().await;
        // Until it is among the fills.
        let beginning = self.begin();
        let id = EntryId {
            hash: key.combined_bin(),
            generation: beginning.generation,
        };
        if let Some(asked) = key.extensions.get::<AskedAt>() {
            let asked = asked.generation;
            let key_of = || (&*key.user_tag, key.primary_key());
            let primary = key.primary_bin();
            if self.bans.void(asked, &primary, key_of) || self.changes.since(asked, &primary) {
                return Error::e_explain(
                    ErrorType::FileCreateError,
                    "it was purged after the origin was asked for it",
                );
            }
        }
        let promised: Option<u64> = meta
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let serialized = meta.serialize()?;
        let uses = self.misses.count(&id.hash);
        let Some(turn) = turn else {
            return self.refuse(key, id, Cause::TooMany);
        };
        let meta_len = META_LEN + (serialized.0.len() + serialized.1.len()) as u64;
        let Some(claim) = self.claim_for(promised.unwrap_or(0), meta_len).await else {
            return self.refuse(key, id, Cause::NoSpace);
        };
        let created = match self.create_detached(id, promised, claim).await {
            Err(e) if Cause::of(&e) == Cause::NoSpace => {
                return self.refuse(key, id, Cause::NoSpace);
            }
            created => created
                .inspect_err(|e| self.stats.fill_errors(Cause::of(e)).inc())
                .or_err_with(ErrorType::FileCreateError, || {
                    format!("creating cache entry {id}")
                })?,
        };
        let (file, claim) = created.into_parts()?;
        let in_background = meta.extensions().get::<InBackground>().is_some();
        let for_parts = meta.extensions().get::<ForParts>().cloned();
        let new = NewFill {
            id,
            key: key.to_compact(),
            primary_key: key.primary_key().to_vec(),
            promised,
            uses,
            claim,
            turn,
            body: {
                crate::cache::io::tokio_fs::no_read_ahead(&file);
                Arc::new(BodyFile::in_space(file, self.open_bodies.open(id)))
            },
            in_background,
            for_parts,
            created: meta.created(),
            stored_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            meta: serialized,
        };
        let (fill, pieces) = Fill::begin(self, new);
        drop(beginning);
        // A change made meanwhile did not find this fill.
        if self.changes.since(id.generation, &key.primary_bin()) {
            self.fills.void(|fill| fill.id == id);
        }
        Ok(Box::new(DiskMiss::new(self, fill, pieces)))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        _purge_type: PurgeType,
        _trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        let hash = target.key().combined_bin();
        match target {
            PurgeTarget::Active(key) => {
                let current = self.index.get(&hash);
                let purged = self
                    .purge_primary(key.clone())
                    .await
                    .or_err(ErrorType::FileWriteError, "purging a cache entry")?;
                let id = current.map(|entry| CacheEntryId::new(entry.id.generation));
                Ok(match purged {
                    true => PurgeOutcome::Purged(id),
                    false => PurgeOutcome::NotFound,
                })
            }
            PurgeTarget::Exact(entry) => {
                let Some(generation) = entry.entry_id().map(|id| id.get()) else {
                    return Ok(PurgeOutcome::NotFound);
                };
                let id = EntryId { hash, generation };
                if !self.index.contains(&id) {
                    return Ok(PurgeOutcome::NotFound);
                }
                self.evict(id, Eviction::Purged);
                Ok(PurgeOutcome::Purged(Some(CacheEntryId::new(generation))))
            }
        }
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<bool> {
        let hash = key.combined_bin();
        let serialized = meta.serialize()?;
        // A revalidation keeps the time when its response was made. By now there
        // may be another response for the key, whose body is another one.
        let created = meta.created();
        if self.fills.set_meta(&hash, created, &serialized) {
            return Ok(true);
        }
        let (internal, header) = serialized;
        if !self.is_writable() {
            return Ok(false);
        }
        let Some(indexed) = self.index.get(&hash) else {
            return Ok(false);
        };
        let Some(entry) = self.open_entry(indexed).await else {
            return Ok(false);
        };
        if entry.cache_meta()?.created() != created {
            return Ok(false);
        }
        let new = EntryMeta {
            internal,
            header,
            ..entry.meta.clone()
        };
        // Goes on when the request is dropped.
        let stored = self
            .runtime
            .spawn(async move { self.store_meta(indexed.id, new).await })
            .await;
        Ok(stored.unwrap_or(false))
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::StatusCode;
    use pingora_cache::trace::Span;
    use pingora_http::ResponseHeader;

    fn cache(path: &Path) -> &'static DiskCache {
        DiskCache::open(DiskCacheConfig {
            scrub_bytes_per_second: 0,
            ..DiskCacheConfig::new(path, 1_000_000)
        })
        .unwrap()
    }

    fn key() -> CacheKey {
        CacheKey::new("key", "bucket")
    }

    /// A response of this version, made at `created`.
    fn meta(version: &str, created: SystemTime) -> CacheMeta {
        let mut header = ResponseHeader::build(StatusCode::OK, None).unwrap();
        header.insert_header("etag", version).unwrap();
        CacheMeta::new(created, created, 0, 0, header)
    }

    async fn begin(cache: &'static DiskCache, meta: &CacheMeta) -> MissHandler {
        let span = Span::inactive().handle();
        cache.get_miss_handler(&key(), meta, &span).await.unwrap()
    }

    async fn finish(mut miss: MissHandler, body: &'static str) {
        miss.write_body(Bytes::from(body), true).await.unwrap();
        miss.finish().await.unwrap();
    }

    /// The version and the body of what is found.
    async fn found(cache: &'static DiskCache) -> (String, String) {
        let found = tokio::time::timeout(Duration::from_secs(30), read(cache)).await;
        found.expect("a body that comes to its end")
    }

    async fn read(cache: &'static DiskCache) -> (String, String) {
        let span = Span::inactive().handle();
        let (meta, mut hit) = cache.lookup(&key(), &span).await.unwrap().unwrap();
        let mut body = Vec::new();
        while let Some(bytes) = hit.read_body().await.unwrap() {
            body.extend_from_slice(&bytes);
        }
        let version = meta.headers()["etag"].to_str().unwrap().to_owned();
        (version, String::from_utf8(body).unwrap())
    }

    async fn update(cache: &'static DiskCache, meta: &CacheMeta) -> bool {
        let span = Span::inactive().handle();
        cache.update_meta(&key(), meta, &span).await.unwrap()
    }

    /// A cache in which the entries of earlier runs are not known yet.
    fn while_loading(path: &Path) -> &'static DiskCache {
        let cache = cache(path);
        cache.wait_loaded();
        // The patience at the start is over.
        cache.loading.lock().since -= Duration::from_secs(60);
        cache.loaded.restart();
        cache
    }

    async fn close(cache: &'static DiskCache) {
        let closed = tokio::task::spawn_blocking(|| cache.close(Duration::from_secs(30)));
        closed.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_limit_also_holds_while_the_index_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let first = cache(dir.path());
        first.wait_loaded();
        let mut miss = begin(first, &meta("1", SystemTime::now())).await;
        miss.write_body(vec![7; 900_000].into(), false)
            .await
            .unwrap();
        miss.finish().await.unwrap();
        close(first).await;
        assert!(first.index.bytes() > 900_000);

        let second = while_loading(dir.path());
        assert!(second.admits());
        assert!(second.claim(100_000, u8::MAX).await.is_none());
        let rest = second.claim(90_000, u8::MAX).await.expect("free room");
        assert!(second.claim(10_000, u8::MAX).await.is_none());
        drop(rest);
        // As a kill does, this leaves no size of its epoch.
        second.writable.store(false, Ordering::Release);
        second.lock.close();

        let third = while_loading(dir.path());
        assert!(!third.admits());
        assert!(third.claim(1, u8::MAX).await.is_none(), "nobody can tell");
    }

    #[test]
    fn a_damaged_size_is_none() {
        assert_eq!(parse_size(b"3 500 3 500\n"), Some((3, 500)));
        for text in [
            "",
            "3 500\n",
            "3 500 3 500",
            "3 500 3 50\n",
            "3 500 2 500\n",
            "a b a b\n",
        ] {
            assert_eq!(parse_size(text.as_bytes()), None, "{text}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fill_that_becomes_an_entry_is_never_overlooked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        cache.wait_loaded();
        let span = Span::inactive().handle();
        for round in 0..200 {
            let miss = begin(cache, &meta("1", SystemTime::now())).await;
            let done = Arc::new(AtomicBool::new(false));
            let watcher = std::thread::spawn({
                let done = done.clone();
                move || {
                    let mut there = true;
                    while !done.load(Ordering::Acquire) {
                        there &= cache.may_have(&key());
                    }
                    there
                }
            });
            finish(miss, "body").await;
            cache.settle().await;
            done.store(true, Ordering::Release);
            assert!(watcher.join().unwrap(), "round {round}");
            cache.invalidate(&key()).await.unwrap();
            let found = cache.lookup(&key(), &span).await.unwrap();
            assert!(found.is_none(), "round {round}");
        }
    }

    /// `CacheKey::new` hashes its first argument only.
    #[tokio::test]
    async fn an_entry_is_not_found_by_another_key_of_the_same_hash() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        cache.wait_loaded();
        let span = Span::inactive().handle();
        let mut overridden = CacheKey::new("other", "bucket");
        overridden.set_primary_bin_override(key().primary_bin());
        for other in [CacheKey::new("key", "/b.bin"), overridden] {
            assert_eq!(other.combined_bin(), key().combined_bin());
            let miss = begin(cache, &meta("1", SystemTime::now())).await;
            let found_by = |key: CacheKey| {
                let span = &span;
                async move { cache.lookup(&key, span).await.unwrap().is_some() }
            };
            assert!(!found_by(other.clone()).await, "while it is filled");
            assert!(!cache.is_new(&other), "nobody is told to look again");
            finish(miss, "body").await;
            cache.settle().await;
            assert!(found_by(key()).await);

            let (cache_meta, entry) = cache.find(&key()).await.unwrap();
            let mut header = cache_meta.response_header_copy();
            header.insert_header(CONTENT_LENGTH, 4).unwrap();
            let prepared = Prepared::new(header, &cache_meta).expect("a header to prepare");
            entry.prepare(prepared);
            assert!(cache.lookup_prepared(&key(), |_| true).is_some());
            // It compares the tag only: the caller vouches for a hash that it overrides.
            let hit = cache.lookup_prepared(&other, |_| true);
            assert_eq!(hit.is_none(), other.user_tag != key().user_tag);

            assert!(!found_by(other.clone()).await, "when it is an entry");
            assert!(!cache.is_new(&other), "nobody is told to look again");
        }
    }

    #[tokio::test]
    async fn who_asks_while_a_fill_begins_has_not_seen_it() {
        use std::task::Poll;

        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        cache.wait_loaded();
        let asked_now = || {
            let mut key = key();
            key.extensions.insert(cache.asked_now());
            key
        };
        let meta = meta("1", SystemTime::now());
        let span = Span::inactive().handle();
        let key = key();
        let before = asked_now();
        // Its file is made on another thread, and nobody finds it yet.
        let mut begins = cache.get_miss_handler(&key, &meta, &span);
        while let Poll::Ready(begun) = futures::poll!(&mut begins) {
            drop(begun);
            begins = cache.get_miss_handler(&key, &meta, &span);
        }
        let meanwhile = asked_now();
        let miss = begins.await.unwrap();
        let after = asked_now();
        assert!(cache.is_filling(&key));
        let expect_new = |when: &str| {
            assert!(cache.is_new(&before), "{when}");
            assert!(cache.is_new(&meanwhile), "{when}");
            assert!(!cache.is_new(&after), "{when}");
        };
        expect_new("while it is filled");
        finish(miss, "body").await;
        cache.settle().await;
        expect_new("when it is an entry");
        // One that is given up before it begins is waited for by nobody.
        let mut given_up = cache.get_miss_handler(&key, &meta, &span);
        let _ = futures::poll!(&mut given_up);
        drop(given_up);
        assert!(cache.beginning.lock().is_empty());
    }

    #[tokio::test]
    async fn a_revalidation_changes_no_other_response() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let long_ago = UNIX_EPOCH + Duration::from_secs(1);
        let old = meta("old", long_ago);
        finish(begin(cache, &old).await, "old body").await;
        cache.settle().await;
        assert!(update(cache, &old).await);

        // The origin says that the old version is still good, and then that it
        // is not; the latter is heard first.
        let new = meta("new", long_ago + Duration::from_nanos(1));
        let miss = begin(cache, &new).await;
        let follower = tokio::spawn(found(cache));
        update(cache, &old).await;
        finish(miss, "new body").await;
        assert_eq!(follower.await.unwrap(), ("new".into(), "new body".into()));
        cache.settle().await;
        assert!(!update(cache, &old).await);
        assert_eq!(found(cache).await, ("new".into(), "new body".into()));
    }

    #[tokio::test]
    async fn nobody_follows_a_fill_that_was_overtaken() {
        let long_ago = UNIX_EPOCH + Duration::from_secs(1);
        let old = meta("old", long_ago);
        // Its file takes long to create: longer than this thread is away, which
        // on a busy machine can take some attempts.
        let (_dir, cache, slow) = loop {
            let dir = tempfile::tempdir().unwrap();
            let cache = cache(dir.path());
            let mut slow = Box::pin(begin(cache, &old));
            if futures::poll!(&mut slow).is_pending() {
                break (dir, cache, slow);
            }
        };
        let new = meta("new", long_ago + Duration::from_nanos(1));
        finish(begin(cache, &new).await, "new body").await;
        cache.settle().await;
        let slow = slow.await;
        assert_eq!(cache.fills_in_flight(), 1);
        assert_eq!(found(cache).await, ("new".into(), "new body".into()));
        finish(slow, "old body").await;
        cache.settle().await;
        assert_eq!(found(cache).await, ("new".into(), "new body".into()));
    }
}
