//! The state that the parts of a cache share.

pub(crate) mod body_file;
pub(crate) mod change_counts;
pub(crate) mod clock;
pub(crate) mod cores;
pub(crate) mod fast_header;
pub(crate) mod fill;
pub(crate) mod fill_extensions;
pub(crate) mod fill_permits;
pub(crate) mod found_resident;
pub(crate) mod generations;
pub(crate) mod health;
pub(crate) mod known_entry;
pub(crate) mod miss_counts;
pub(crate) mod open_bodies;
pub(crate) mod open_entries;
pub(crate) mod peers;
pub(crate) mod quota;
pub(crate) mod reader;
pub(crate) mod readers;
pub(crate) mod recent_changes;
pub(crate) mod recovery_progress;
pub(crate) mod refusals;
pub(crate) mod removals;
pub(crate) mod reopened;
pub(crate) mod routing;
pub(crate) mod sparse_body;
pub(crate) mod stats;
pub(crate) mod window;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use parking_lot::Mutex;
use pingora_cache::key::{CacheHashKey, CompactCacheKey};
use pingora_cache::CacheKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::cache::config::{BlocksConfig, DiskCacheConfig, FolderConfig, SendfileConfig};
use crate::cache::io::backend::DiskBackend;
use crate::cache::io::disk_io::DiskIo;
use crate::cache::io::files::EntryFiles;
use crate::cache::io::folder_fd::FolderFd;
use crate::cache::io::folder_lock::Mount;
use crate::cache::io::patience::Patience;
use crate::cache::state::clock::Clock;
use crate::cache::state::fill::{Fill, Fills};
use crate::cache::state::fill_permits::FillPermits;
use crate::cache::state::generations::Generations;
use crate::cache::state::health::Health;
use crate::cache::state::miss_counts::MissCounts;
use crate::cache::state::open_bodies::OpenBodies;
use crate::cache::state::open_entries::OpenEntries;
use crate::cache::state::peers::Peers;
use crate::cache::state::quota::{Quota, Reservation};
use crate::cache::state::recent_changes::RecentChanges;
use crate::cache::state::recovery_progress::RecoveryProgress;
use crate::cache::state::refusals::{Refused, TooLarge};
use crate::cache::state::removals::{Removal, Removals, Which};
use crate::cache::state::sparse_body::{Recordings, SparseBodies};
use crate::cache::state::stats::{Cause, Eviction, Stats};
use crate::cache::store::bans::Bans;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::index::Index;
use crate::cache::store::layout::Layout;

/// The error of operations that write while another process has the lock.
pub(crate) const NOT_WRITABLE: &str = "another process writes to the cache folder";

/// The state of a folder of a cache, which all of its parts share.
pub(crate) struct Core {
    pub path: PathBuf,
    pub mount: Mount,
    pub io: DiskIo,
    pub patience: Patience,
    pub layout: Layout,
    pub folder: FolderFd,
    pub sendfile: SendfileConfig,
    pub blocks: BlocksConfig,
    pub max_size_bytes: u64,
    /// Longest body that is stored.
    pub max_object_bytes: u64,
    /// Bytes of the file system that are left free.
    pub min_free_bytes: u64,
    pub index: Index,
    pub fills: Fills,
    pub fill_permits: FillPermits,
    pub open_entries: Arc<OpenEntries>,
    pub open_bodies: OpenBodies,
    pub sparse_bodies: SparseBodies,
    pub recordings: Recordings,
    pub quota: Arc<Quota>,
    pub removals: Removals,
    pub bans: Bans,
    /// Invalidations by the hash of the primary key. Keys of which something is stored are banned
    /// as well.
    pub recent_invalidations: RecentChanges,
    /// Revalidations by the hash of the key with its variance.
    pub recent_revalidations: RecentChanges,
    pub generations: Arc<Generations>,
    pub recovery: RecoveryProgress,
    pub miss_counts: MissCounts,
    pub too_large: TooLarge,
    pub refused: Refused,
    pub clock: Clock,
    pub stats: Arc<Stats>,
    pub health: Arc<Health>,
    /// Entries that could not be read, and the number of examinations of the folder that had begun by
    /// then.
    unreadable: Mutex<HashMap<EntryId, u64>>,
    pub peers: Arc<Peers>,
    /// Entries of a lower generation are not part of the cache.
    floor: AtomicU64,
    /// True while this process holds the lock.
    writable: AtomicBool,
    /// Bytes of entries that this run has written.
    bytes_written: AtomicU64,
    /// Number of purges and bans that were requested.
    purges: AtomicU64,
    /// Requests to create missing folders.
    repairs: mpsc::Sender<Repair>,
}

/// A request to create the folder of an entry, in a cache folder that was emptied.
#[derive(Debug)]
pub(crate) struct Repair {
    pub id: EntryId,
    pub done: oneshot::Sender<io::Result<()>>,
}

/// The state that all folders of a cache share. One counter numbers the entries and bans of all of
/// them, so the bans of one folder also apply to the entries of another.
#[derive(Clone)]
pub(crate) struct Shared {
    pub open_entries: Arc<OpenEntries>,
    pub generations: Arc<Generations>,
    pub stats: Arc<Stats>,
    pub peers: Arc<Peers>,
}

/// The parts of a new [`Core`] that depend on the cache folder.
pub(crate) struct Opened {
    pub mount: Mount,
    pub io: DiskIo,
    pub patience: Patience,
    pub layout: Layout,
    pub folder: FolderFd,
    pub bans: Bans,
    /// Entries of a lower generation are not part of the cache.
    pub floor: u64,
    /// Bytes of the entries of earlier runs, if they are known.
    pub size: Option<u64>,
    /// True if this process holds the lock.
    pub writable: bool,
}

/// Ends of the queues of a new [`Core`], for the tasks that work them off.
pub(crate) struct Queues {
    pub removals: mpsc::UnboundedReceiver<Removal>,
    pub repairs: mpsc::Receiver<Repair>,
}

/// Divisor of the limit of the cache that gives the most bytes of blocks in one request to the
/// origin. Their space is reserved at once.
const RUN_SHARE: u64 = 4;

/// Most entries that could not be read and are kept until the folder is examined.
const MAX_UNREADABLE: usize = 1024;

/// Most requests for missing folders that wait.
const MAX_REPAIRS: usize = 16;

impl Shared {
    /// The shared state of a cache whose next generation is `first_generation`.
    pub(crate) fn new(config: &DiskCacheConfig, first_generation: u64) -> Self {
        let open_entries = OpenEntries::new(
            config.memory_bytes,
            config.metadata_bytes,
            config.open_files(open_files_limit()),
        );
        Shared {
            open_entries: Arc::new(open_entries),
            generations: Arc::new(Generations::new(first_generation)),
            stats: Arc::default(),
            peers: Arc::default(),
        }
    }
}

impl Core {
    pub(crate) fn new(
        config: &DiskCacheConfig,
        folder: &FolderConfig,
        shared: Shared,
        opened: Opened,
    ) -> (Core, Queues) {
        let (removals, removal_queue) = Removals::new();
        let (repairs, repair_queue) = mpsc::channel(MAX_REPAIRS);
        let core = Core {
            path: folder.path.clone(),
            mount: opened.mount,
            io: opened.io,
            patience: opened.patience,
            layout: opened.layout,
            folder: opened.folder,
            sendfile: config.sendfile,
            blocks: BlocksConfig {
                read_ahead_bytes: config
                    .blocks
                    .read_ahead_bytes
                    .min(folder.max_size_bytes / RUN_SHARE),
                ..config.blocks
            },
            max_size_bytes: folder.max_size_bytes,
            max_object_bytes: config.max_object_bytes.unwrap_or(u64::MAX),
            min_free_bytes: config.min_free_bytes,
            index: Index::default(),
            fills: Fills::new(config.fill_without_readers, folder.max_size_bytes),
            fill_permits: FillPermits::new(config.max_fills, config.folders.len()),
            open_entries: shared.open_entries,
            open_bodies: OpenBodies::default(),
            sparse_bodies: SparseBodies::default(),
            recordings: Recordings::default(),
            quota: Quota::new(folder.max_size_bytes),
            removals,
            bans: opened.bans,
            recent_invalidations: RecentChanges::default(),
            recent_revalidations: RecentChanges::default(),
            generations: shared.generations,
            recovery: RecoveryProgress::new(opened.size),
            miss_counts: MissCounts::default(),
            too_large: TooLarge::default(),
            refused: Refused::default(),
            clock: Clock::start(),
            stats: shared.stats,
            health: Arc::new(Health::new(config.folders.len() > 1)),
            unreadable: Mutex::default(),
            peers: shared.peers,
            floor: AtomicU64::new(opened.floor),
            writable: AtomicBool::new(opened.writable),
            bytes_written: AtomicU64::new(0),
            purges: AtomicU64::new(0),
            repairs,
        };
        let queues = Queues {
            removals: removal_queue,
            repairs: repair_queue,
        };
        (core, queues)
    }

    pub(crate) fn backend(&self) -> &'static dyn DiskBackend {
        self.io.backend()
    }

    /// The files of an entry.
    pub(crate) fn files(&self, id: &EntryId) -> EntryFiles {
        self.layout.files(id)
    }

    /// True if this process may write to the folder.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Note whether this process may write to the folder. Returns whether it could before.
    pub(crate) fn set_writable(&self, writable: bool) -> bool {
        self.writable.swap(writable, Ordering::AcqRel)
    }

    /// True while what is missing in the folder may come back, because the folder fails or is absent.
    /// Always false without other folders. Blocks.
    pub(crate) fn is_missing(&self) -> bool {
        self.health.has_others() && !(self.health.is_up() && self.mount.is_there())
    }

    /// The result of an operation on the disk. One that takes longer than `limit` is an error, because
    /// the disk may hang, unless there are no other folders.
    pub(crate) async fn patiently<T>(
        &self,
        limit: Duration,
        operation: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        if !self.health.has_others() {
            return operation.await;
        }
        let result = timeout(limit, operation).await;
        result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Entries of a lower generation are not part of the cache.
    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }

    pub(crate) fn set_floor(&self, floor: u64) {
        self.floor.store(floor, Ordering::Release);
    }

    /// Count a response that was not stored.
    pub(crate) fn count_fill_error(&self, cause: Cause) {
        self.stats.fill_errors(cause).inc();
        self.health.suspect(cause);
    }

    /// Number of purges and bans that were requested so far.
    pub(crate) fn purges(&self) -> u64 {
        self.purges.load(Ordering::Acquire)
    }

    pub(crate) fn count_purge(&self) {
        self.purges.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn count_written(&self, bytes: u64) {
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn reset_written(&self) {
        self.bytes_written.store(0, Ordering::Release);
    }

    /// Bytes of all entries during the recovery; `None`: unknown, because the last run was not
    /// closed.
    pub(crate) fn bytes_in_recovery(&self) -> Option<u64> {
        let written = self.bytes_written.load(Ordering::Relaxed);
        Some(self.recovery.size()?.saturating_add(written))
    }

    /// Bytes that the entries take and that the fills in flight take or will take.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.index.bytes() + self.fills.bytes()
    }

    /// True if a body is sent by sendfile; `None`: a body of unknown length.
    pub(crate) fn sends_file(&self, body_len: Option<u64>) -> bool {
        self.io.supports_sendfile()
            && match body_len {
                Some(len) => self.sendfile.applies_to(len),
                None => self.sendfile.enabled,
            }
    }

    /// True if something may be stored for a key, or may be stored soon.
    pub(crate) fn may_have(&self, key: &CacheKey) -> bool {
        let hash = key.combined_bin();
        // In this order: a fill becomes an entry before it ceases to be a fill.
        !self.recovery.is_complete()
            || self.fills.get(&hash).is_some()
            || self.index.get(&hash).is_some()
    }

    /// Evict an entry. Its readers may continue.
    pub(crate) fn evict(&self, id: EntryId, reason: Eviction) {
        if let Some(reservation) = self.quota.evict(&self.index, &id) {
            self.stats.evictions(reason).inc();
            self.open_entries.forget(&id);
            self.remove_files(id, Some(reservation));
        }
    }

    /// Have the files of an entry removed that is not in the index, and its reservation
    /// released after that.
    pub(crate) fn remove_files(&self, id: EntryId, reservation: Option<Reservation>) {
        if self.is_writable() {
            self.removals.add(id, reservation, Which::Entry);
        }
    }

    /// Have a leftover of an earlier run removed whose first removal failed.
    pub(crate) fn remove_leftover(&self, id: EntryId, path: &Path) {
        self.removals.add(id, None, Which::Leftover(path.into()));
    }

    /// Keep the fills that `matches` from becoming entries, and remove what they have recorded.
    pub(crate) fn invalidate_fills(&self, matches: impl Fn(&Fill) -> bool) {
        for id in self.fills.invalidate(matches) {
            self.remove_files(id, None);
        }
    }

    /// Have all files of a fill removed that was given up, and its reservation released after
    /// that.
    pub(crate) fn remove_fill(&self, id: EntryId, reservation: Option<Reservation>) {
        self.removals.add(id, reservation, Which::Fill);
    }

    /// Note that files are removed. Their reservation is released once they are closed.
    pub(crate) fn files_removed(&self, id: EntryId, reservation: Option<Reservation>) {
        if let Some(reservation) = reservation {
            self.open_bodies.hold(&id, reservation);
        }
    }

    /// Forget an entry whose files are gone.
    pub(crate) fn forget(&self, id: EntryId) {
        self.index.remove(&id);
        self.open_entries.forget(&id);
    }

    /// Evict an entry whose files are unusable.
    pub(crate) fn drop_damaged(&self, id: EntryId, why: &io::Error) {
        if !self.index.contains(&id) {
            return;
        }
        let cause = Cause::of(why);
        self.stats.read_errors(cause).inc();
        if cause == Cause::Descriptors {
            // The entry itself may be sound.
            self.open_entries.close_files();
            warn!(
                "cache entry {id}: {why}; raise the limit on open files (LimitNOFILE, ulimit -n)"
            );
            return;
        }
        self.health.suspect(cause);
        let is_spared = match cause {
            Cause::Damaged => false,
            _ if why.kind() == io::ErrorKind::TimedOut => true,
            Cause::Io => self.health.spares_entries() || self.may_be_sound(&id),
            _ => self.health.spares_entries(),
        };
        if is_spared {
            // The entry itself may be sound. Its open file must not be tried again.
            self.open_entries.forget(&id);
            return;
        }
        warn!("cache entry {id} is dropped: {why}");
        self.evict(id, Eviction::Damaged);
    }

    /// True if the folder may be the reason that an entry cannot be read: no examination that began after
    /// the first failure has found the folder up. Always false without other folders.
    fn may_be_sound(&self, id: &EntryId) -> bool {
        if !self.health.has_others() {
            return false;
        }
        let mut unreadable = self.unreadable.lock();
        match unreadable.get(id) {
            Some(before) if self.health.was_up_after(*before) => {
                unreadable.remove(id);
                false
            }
            Some(_) => true,
            None => {
                if unreadable.len() >= MAX_UNREADABLE {
                    unreadable.clear();
                }
                unreadable.insert(*id, self.health.examinations());
                true
            }
        }
    }

    /// True if a ban applies to an entry of this generation.
    pub(crate) fn is_banned(&self, generation: u64, key: &CacheKey) -> bool {
        let primary = key.primary_bin();
        let names = || (&*key.user_tag, key.primary_key());
        self.bans.is_banned(generation, &primary, names)
            || (key.variance_bin().is_some() && self.bans.is_banned_variant(generation))
    }

    /// True if a ban applies to a fill.
    pub(crate) fn is_banned_fill(&self, fill: &Fill) -> bool {
        let generation = fill.id.generation;
        self.bans.is_banned(generation, &fill.key.primary, || {
            (&fill.key.user_tag, &fill.primary_key)
        }) || (fill.key.variance.is_some() && self.bans.is_banned_variant(generation))
    }

    /// Create the folder of an entry, in a cache folder that was emptied.
    pub(crate) async fn repair_folder(&self, id: EntryId) -> io::Result<()> {
        let (done, repaired) = oneshot::channel();
        let sent = self.repairs.send(Repair { id, done }).await;
        sent.map_err(io::Error::other)?;
        repaired.await.map_err(io::Error::other)?
    }
}

/// True if an entry, or a fill, was stored for a key. The keys are compared in clear text,
/// because [`CacheKey::new`] hashes its first argument only: even a proxy that distinguishes
/// objects by the second argument never gets one for another.
pub(crate) fn is_for(primary_key: &[u8], stored: &CompactCacheKey, key: &CacheKey) -> bool {
    primary_key == key.primary_key() && *stored.user_tag == *key.user_tag
}

/// Most files that this process may have open.
#[cfg(target_os = "linux")]
fn open_files_limit() -> usize {
    rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| limit as usize)
}

#[cfg(not(target_os = "linux"))]
fn open_files_limit() -> usize {
    // The least that common systems allow.
    256
}
