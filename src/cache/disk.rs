//! The disk cache as Pingora sees it.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use pingora_cache::admission::AdmissionPolicy;
use pingora_cache::key::CacheHashKey;
use pingora_cache::trace::SpanHandle;
use pingora_cache::{
    CacheEntryId, CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget,
    PurgeType, Storage,
};
use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::runtime::Handle;

use crate::cache::config::DiskCacheConfig;
use crate::cache::io::backend::DiskBackend;
use crate::cache::io::patience::Patience;
use crate::cache::io::regular::invalid;
use crate::cache::io::select;
use crate::cache::jobs::{maintenance, removal, scrub};
use crate::cache::lifecycle::{self, Begun, Lifecycle};
use crate::cache::read::blocks::PartSource;
use crate::cache::read::hit::{DiskHit, FollowedFill};
use crate::cache::read::lookup::{self, StoredBody};
use crate::cache::sendfile::{SendfileCapable, SendfileResponse};
use crate::cache::state::cores::Cores;
use crate::cache::state::fast_header::FastHeader;
use crate::cache::state::generations::LookupSnapshot;
use crate::cache::state::stats::{Cause, Eviction, Stats};
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::write::admission::Admission;
use crate::cache::write::blocks::{self, Fetcher};
use crate::cache::write::pending::NO_ROOM;
use crate::cache::write::{invalidate, pending, update};

/// A disk cache for Pingora: one immutable body file an entry, with a metadata file, found
/// again after a restart.
///
/// [`HttpCaching`](crate::http::HttpCaching) uses it as a shared HTTP cache must. A proxy that
/// passes it to [`HttpCache::enable`](pingora_cache::HttpCache::enable) itself also needs the
/// following, as in `examples/embedded.rs`:
///
/// - a [`CacheKey`] whose first argument distinguishes all objects: `CacheKey::new` hashes
///   nothing else. An entry found for another key, or another `user_tag`, is a miss, and is
///   dropped.
/// - [`lookup_snapshot`](Self::lookup_snapshot) in the extensions of every key
/// - a lock, [`FillLock`](crate::http::FillLock)
/// - [`admission`](Self::admission) and [`max_whole_bytes`](Self::max_whole_bytes), which
///   determine what is stored
/// - [`close`](Self::close) at the end of the process
///
/// A cache may have several folders, one a device: see [`DiskCacheConfig::folders`]. Each key belongs to
/// one of them, with all of its variants. A folder that fails costs only its entries; purges apply to all
/// folders, also to those that are absent at that time.
pub struct DiskCache {
    cores: Cores,
    lifecycle: Lifecycle,
    admission: Admission,
    admission_at_once: Admission,
    /// That of the first folder; the others have one of the same kind.
    backend: &'static dyn DiskBackend,
    max_size_bytes: u64,
    max_object_bytes: u64,
    max_whole_bytes: u64,
}

/// The state of a folder of a cache.
#[derive(Debug, Clone)]
pub struct FolderState<'a> {
    /// The path, as configured.
    pub path: &'a Path,
    /// False if the folder could not be opened, or cannot be written to.
    pub is_up: bool,
    /// Number of entries.
    pub entries: usize,
    /// Bytes that the entries take and that the fills in flight take or will take.
    pub size_bytes: u64,
}

impl DiskCache {
    /// Open the cache. Blocks until the folder is ready for new entries. The entries of earlier
    /// runs are recovered by a thread of their own, and served as soon as they are found.
    ///
    /// The cache is leaked, because Pingora requires storages that live as long as the process.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let folder = tempfile::tempdir()?;
    /// # let folder = folder.path();
    /// let cache = DiskCache::open(DiskCacheConfig::new(folder, 1 << 30))?;
    /// assert_eq!(cache.entries(), 0);
    /// cache.close(Duration::from_secs(5));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(config: DiskCacheConfig) -> io::Result<&'static DiskCache> {
        let choice = config.backend;
        DiskCache::open_with(config, move |_, runtime| select::backend(choice, runtime))
    }

    /// [`open`](Self::open) with a backend of the caller's for each folder, by its position.
    pub(crate) fn open_with(
        config: DiskCacheConfig,
        backend: impl Fn(usize, &Handle) -> io::Result<Box<dyn DiskBackend>> + Send + Sync + 'static,
    ) -> io::Result<&'static DiskCache> {
        DiskCache::open_within(config, |_| Patience::default(), backend)
    }

    /// [`open_with`](Self::open_with) with time limits for each folder, by its position.
    pub(crate) fn open_within(
        config: DiskCacheConfig,
        patience: impl Fn(usize) -> Patience,
        backend: impl Fn(usize, &Handle) -> io::Result<Box<dyn DiskBackend>> + Send + Sync + 'static,
    ) -> io::Result<&'static DiskCache> {
        let mut prepared = Vec::new();
        let mut failures = Vec::new();
        for folder in lifecycle::prepare_all(&config, patience, backend) {
            match folder {
                Ok(folder) => prepared.push(Some(folder)),
                // A mistake, and no fault of the disk.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err(e),
                Err(e) => {
                    failures.push(e);
                    prepared.push(None);
                }
            }
        }
        if prepared.iter().all(Option::is_none) {
            let first = failures.into_iter().next();
            return Err(first.unwrap_or_else(|| invalid("a cache needs a folder")));
        }
        failures.iter().for_each(lifecycle::warn_unusable);
        let Begun {
            cores,
            lifecycle,
            queues,
        } = lifecycle::begin(&config, prepared)?;
        let Some(first) = cores.iter().next() else {
            return Err(invalid("a cache needs a folder"));
        };
        let sizes = config.folders.iter().map(|folder| folder.max_size_bytes);
        let max_object_bytes = config.max_object_bytes.unwrap_or(u64::MAX);
        let cache: &'static DiskCache = Box::leak(Box::new(DiskCache {
            cores,
            lifecycle,
            admission: Admission::new(config.min_uses),
            admission_at_once: Admission::new(1),
            backend: first.backend(),
            max_size_bytes: sizes.clone().fold(0, u64::saturating_add),
            max_object_bytes,
            max_whole_bytes: sizes.fold(max_object_bytes, u64::min),
        }));
        cache.admission.set_cores(&cache.cores);
        cache.admission_at_once.set_cores(&cache.cores);
        let mut repairs = Vec::new();
        for (core, queues) in cache.cores.iter().zip(queues) {
            let runtime = core.io.runtime();
            runtime.spawn(removal::run(core, queues.removals));
            runtime.spawn(maintenance::run(core, config.inactive));
            repairs.push(queues.repairs);
        }
        cache.lifecycle.start(&cache.cores, repairs)?;
        if config.scrub_bytes_per_second > 0 {
            for core in cache.cores.iter() {
                scrub::spawn(core, config.scrub_bytes_per_second);
            }
        }
        Ok(cache)
    }

    /// Wait until all entries of earlier runs are known. Blocks.
    pub fn wait_recovered(&self) {
        self.cores.iter().for_each(|core| core.recovery.wait());
    }

    /// [`wait_recovered`](Self::wait_recovered), but do not wait for one of several folders that hangs.
    pub fn wait_listed(&self) {
        if !self.cores.are_several() {
            return self.wait_recovered();
        }
        for core in self.cores.iter() {
            core.recovery.wait_while_it_advances(core.patience.long());
        }
    }

    /// Wait, at most `timeout`, until complete fills are committed, and release the folders.
    /// Blocks; for the end of a process.
    pub fn close(&self, timeout: Duration) {
        self.lifecycle.close(timeout);
    }

    /// Wait until no fill is in flight and all files of evicted entries are removed.
    pub async fn settle(&self) {
        for core in self.cores.iter() {
            lifecycle::settle(core).await;
        }
    }

    /// The policy that determines which misses are stored, see
    /// [`HttpCache::set_admission_policy`](pingora_cache::HttpCache::set_admission_policy).
    pub fn admission(&'static self) -> &'static dyn AdmissionPolicy {
        &self.admission
    }

    /// [`admission`](Self::admission) that does not ask how often a miss was requested.
    pub(crate) fn admission_at_once(&'static self) -> &'static dyn AdmissionPolicy {
        &self.admission_at_once
    }

    /// The present state of the cache, for the extensions of the [`CacheKey`] of a request
    /// that is being made.
    pub fn lookup_snapshot(&self) -> LookupSnapshot {
        self.cores.generations.snapshot()
    }

    /// The limit of all folders together, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_bytes
    }

    /// The length of the longest body that is stored, in bytes.
    pub fn max_object_bytes(&self) -> u64 {
        self.max_object_bytes
    }

    /// The length of the longest body that is stored as a whole, in bytes: the limit of the smallest
    /// folder, if [`max_object_bytes`](Self::max_object_bytes) is not less.
    pub fn max_whole_bytes(&self) -> u64 {
        self.max_whole_bytes
    }

    /// The folders, in the order of the configuration.
    pub fn folders(&self) -> impl Iterator<Item = FolderState<'_>> {
        let folders = self.lifecycle.configured().iter().zip(self.cores.all());
        folders.map(|(folder, core)| FolderState {
            path: &folder.path,
            is_up: core.is_some_and(|core| core.health.is_up()),
            entries: core.map_or(0, |core| core.index.len()),
            size_bytes: core.map_or(0, Core::size_bytes),
        })
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.cores.iter().map(|core| core.index.len()).sum()
    }

    /// Bytes that the entries take and that the fills in flight take or will take.
    pub fn size_bytes(&self) -> u64 {
        self.cores.iter().map(Core::size_bytes).sum()
    }

    /// Number of fills in flight.
    pub fn fills_in_flight(&self) -> usize {
        self.cores.iter().map(|core| core.fills.len()).sum()
    }

    /// Progress of the recovery of the entries of earlier runs, from 0 to 1.
    pub fn recovery_ratio(&self) -> f64 {
        let ratios = self.cores.iter().map(|core| core.recovery.ratio());
        let (sum, folders) = ratios.fold((0.0, 0.0), |(sum, n), ratio| (sum + ratio, n + 1.0));
        sum / folders
    }

    /// True if all entries of earlier runs are known.
    pub(crate) fn is_recovered(&self) -> bool {
        self.cores.iter().all(|core| core.recovery.is_complete())
    }

    /// True if all entries of earlier runs are known in the folders that can be used.
    #[cfg(feature = "s3-proxy")]
    pub(crate) fn is_listed(&self) -> bool {
        let mut cores = self.cores.iter().filter(|core| core.health.is_up());
        cores.all(|core| core.recovery.is_complete())
    }

    /// Number of purges and bans that were requested so far. Responses of the origin that are
    /// remembered elsewhere are valid only while this number does not change.
    pub fn purges(&self) -> u64 {
        self.cores.iter().map(Core::purges).sum()
    }

    /// Number of bans in force. Each folder has its own list of them; this is the longest.
    pub fn bans(&self) -> usize {
        let bans = self.cores.iter().map(|core| core.bans.len());
        bans.max().unwrap_or(0)
    }

    /// Memory that small bodies take, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.cores.open_entries.memory_bytes()
    }

    /// Memory for what is known of entries whose files may be closed, in bytes.
    pub fn metadata_bytes(&self) -> u64 {
        self.cores.open_entries.metadata_bytes()
    }

    /// Number of files that are kept open.
    pub fn open_files(&self) -> usize {
        self.cores.open_entries.open_files()
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.cores.stats
    }

    /// The backend in use.
    pub fn backend(&self) -> &dyn DiskBackend {
        self.backend
    }

    /// True if this process may write to all folders that could be opened.
    pub fn is_writable(&self) -> bool {
        self.cores.iter().all(Core::is_writable)
    }

    /// True if there is an entry of a key, or a fill with readers, that a lookup could not find
    /// when the key's request was made ([`lookup_snapshot`](Self::lookup_snapshot)). An entry
    /// that it could find has been looked up and was of no use.
    pub fn is_new(&self, key: &CacheKey) -> bool {
        let core = self.cores.of(key);
        core.is_some_and(|core| lookup::is_new(core, key))
    }

    /// True if the stored response of a key was validated or replaced after the key's request was
    /// made ([`lookup_snapshot`](Self::lookup_snapshot)): a lookup that found it stale may have
    /// been too early.
    pub fn is_renewed(&self, key: &CacheKey) -> bool {
        let core = self.cores.of(key);
        core.is_some_and(|core| lookup::is_renewed(core, key))
    }

    /// True if an object of unknown length turned out larger than its folder.
    pub fn is_too_large(&self, key: &CacheKey) -> bool {
        let core = self.cores.of(key);
        core.is_some_and(|core| core.too_large.contains(&key.combined_bin()))
    }

    /// Forget that an object was too large; it may have become smaller.
    pub fn forget_too_large(&self, key: &CacheKey) {
        if let Some(core) = self.cores.of(key) {
            core.too_large.remove(&key.combined_bin());
        }
    }

    /// True if a fill of a key is in flight.
    pub fn is_filling(&self, key: &CacheKey) -> bool {
        let core = self.cores.of(key);
        core.is_some_and(|core| core.fills.get(&key.combined_bin()).is_some())
    }

    /// Begin an entry for a body of `len` bytes, of which hits fetch and store what they need.
    /// `false`: it cannot be stored.
    pub(crate) async fn create_in_blocks(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        len: u64,
    ) -> Result<bool> {
        match self.cores.of(key) {
            Some(core) => blocks::create(core, key, meta, len).await,
            None => Ok(false),
        }
    }

    /// Let a hit fetch blocks that are not stored from `source`. `in_background`: nobody waits for
    /// them.
    pub(crate) fn let_fetch(
        &'static self,
        hit: &mut DiskHit,
        source: Box<dyn PartSource>,
        in_background: bool,
    ) {
        hit.fetch_by(Box::new(Fetcher::new(hit.core(), source, in_background)));
    }

    /// The body that is stored for a key. Does not count as a use.
    pub(crate) async fn stored(&'static self, key: &CacheKey) -> Option<StoredBody> {
        lookup::stored(self.cores.of(key)?, key).await
    }

    /// Wait until a fill is an entry or is given up. Returns the reason if it is given up.
    pub(crate) async fn fill_end(&'static self, fill: &FollowedFill) -> Option<(Cause, String)> {
        let FollowedFill(fill) = fill;
        if let Some(core) = self.cores.of(&fill.key) {
            core.fills.ended(fill).await;
        }
        fill.broken_by()
    }

    /// True if something may be stored for a key, or may be stored soon.
    pub(crate) fn may_have(&self, key: &CacheKey) -> bool {
        let core = self.cores.of(key);
        core.is_some_and(|core| core.may_have(key))
    }

    /// True if a fill of a key has just been refused, which is forgotten now.
    pub(crate) fn was_refused(&self, key: &CacheKey) -> bool {
        match self.cores.of(key) {
            Some(core) => core.refused.take(&key.primary_bin()),
            None => true,
        }
    }

    /// Path of the body that is stored for a key, for operators and tools. Lists a folder, so
    /// it blocks. The file may be gone as soon as this returns.
    pub fn get_file_path(&self, key: &CacheKey) -> Option<PathBuf> {
        let core = self.cores.of(key)?;
        let backend = core.backend();
        let id = core.layout.newest(backend, &key.combined_bin())?;
        Some(backend.get_file_path(&core.files(&id)))
    }

    /// Evict the entry of a key, because it turned out to be unusable.
    pub fn drop_entry(&'static self, key: &CacheKey, why: &str) {
        let Some(core) = self.cores.of(key) else {
            return;
        };
        if let Some(entry) = core.index.get(&key.combined_bin()) {
            core.drop_damaged(entry.id, &invalid(why));
        }
    }

    /// Evict one variant of a key; others stay.
    pub fn evict_variant(&self, key: &CacheKey) {
        let Some(core) = self.cores.of(key) else {
            return;
        };
        if let Some(entry) = core.index.get(&key.combined_bin()) {
            core.evict(entry.id, Eviction::Replaced);
        }
    }

    /// Remove the entries of a key, in all variants, and keep its fills from becoming entries.
    /// No crash brings them back after this returns. True if there were any.
    pub async fn purge_key(&'static self, key: &CacheKey) -> io::Result<bool> {
        invalidate::purge(&self.cores, key.to_compact()).await
    }

    /// Invalidate what is stored for a key whose object has changed at the origin, as
    /// [`purge_key`](Self::purge_key) does, and the responses that the origin has been asked
    /// for. Nothing is written if nothing is stored.
    pub async fn invalidate(&'static self, key: &CacheKey) -> io::Result<()> {
        invalidate::invalidate(&self.cores, key).await
    }

    /// [`invalidate`](Self::invalidate) before this returns. A crash soon after may bring back
    /// what was stored.
    pub fn invalidate_nowait(&'static self, key: &CacheKey) {
        invalidate::invalidate_nowait(&self.cores, key);
    }

    /// Invalidate responses of the origin that are remembered elsewhere, see
    /// [`purges`](Self::purges).
    pub fn forget_answers(&self) {
        self.cores.iter().for_each(Core::count_purge);
    }

    /// Invalidate all entries and fills of `user_tag` whose key begins with `prefix`. In force
    /// at once, and durable when this returns. Their files are removed in the background.
    pub async fn ban_prefix(&'static self, user_tag: &str, prefix: &[u8]) -> io::Result<()> {
        invalidate::ban_prefix(&self.cores, user_tag, prefix).await
    }

    /// The hit that [`lookup`](Storage::lookup) would return, if it is an entry in use, or one whose
    /// file the kernel opens without the disk, and its
    /// [prepared header](DiskHit::set_fast_header) satisfies `is_usable`. Waits for nothing. Not for
    /// keys of variants.
    pub(crate) fn lookup_fast(
        &'static self,
        key: &CacheKey,
        is_usable: impl FnOnce(&FastHeader) -> bool,
    ) -> Option<DiskHit> {
        lookup::lookup_fast(self.cores.of(key)?, key, is_usable)
    }
}

#[cfg(test)]
impl DiskCache {
    /// The first folder.
    pub(crate) fn core(&'static self) -> &'static Core {
        self.cores.iter().next().expect("a folder")
    }

    pub(crate) fn cores(&'static self) -> &'static Cores {
        &self.cores
    }

    /// Release the locks as a killed process does.
    pub(crate) fn kill(&self) {
        self.lifecycle.kill();
    }
}

#[async_trait]
impl SendfileCapable for DiskCache {
    async fn get_sendfile(&'static self, key: &CacheKey) -> Result<Option<SendfileResponse>> {
        let Some(core) = self.cores.of(key) else {
            return Ok(None);
        };
        let Some((meta, entry)) = lookup::find(core, key).await else {
            return Ok(None);
        };
        let len = entry.body_len();
        Ok(match entry.file() {
            Some(body) if entry.incomplete().is_none() && core.sends_file(Some(len)) => {
                Some(SendfileResponse {
                    meta,
                    file: body.file().clone(),
                    len,
                })
            }
            _ => None,
        })
    }
}

fn boxed(found: (CacheMeta, DiskHit)) -> (CacheMeta, HitHandler) {
    let (meta, hit) = found;
    (meta, Box::new(hit))
}

#[async_trait]
impl Storage for DiskCache {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(core) = self.cores.of(key) else {
            return Ok(None);
        };
        let found = lookup::lookup(core, key).await?;
        Ok(found.map(boxed))
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
        let Ok(tag) = <[u8; 8]>::try_from(tag) else {
            return Ok(None);
        };
        let Some(core) = self.cores.of(key) else {
            return Ok(None);
        };
        let found = lookup::lookup_own_fill(core, u64::from_be_bytes(tag))?;
        Ok(found.map(boxed))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<MissHandler> {
        let Some(core) = self.cores.of(key) else {
            return Error::e_explain(NO_ROOM, "its cache folder could not be opened");
        };
        let miss = pending::begin(core, key, meta).await?;
        Ok(Box::new(miss))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        _purge_type: PurgeType,
        _trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        let hash = target.key().combined_bin();
        let core = self.cores.of(target.key());
        match target {
            PurgeTarget::Active(key) => {
                let current = core.and_then(|core| core.index.get(&hash));
                let purged = invalidate::purge(&self.cores, key.clone())
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
                let Some(core) = core.filter(|core| core.index.contains(&id)) else {
                    return Ok(PurgeOutcome::NotFound);
                };
                core.evict(id, Eviction::Purged);
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
        match self.cores.of(key) {
            Some(core) => update::update_meta(core, key, meta).await,
            None => Ok(false),
        }
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}
