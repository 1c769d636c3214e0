//! The disk cache as Pingora sees it.

use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use pingora_cache::admission::AdmissionPolicy;
use pingora_cache::key::CacheHashKey;
use pingora_cache::trace::SpanHandle;
use pingora_cache::{
    CacheEntryId, CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget,
    PurgeType, Storage,
};
use pingora_core::{ErrorType, OrErr, Result};
use tokio::runtime::Handle;

use crate::cache::config::DiskCacheConfig;
use crate::cache::io::backend::DiskBackend;
use crate::cache::io::disk_io::{self, DiskIo};
use crate::cache::io::regular::invalid;
use crate::cache::io::select;
use crate::cache::jobs::{maintenance, removal, scrub};
use crate::cache::lifecycle::{self, Lifecycle};
use crate::cache::read::blocks::PartSource;
use crate::cache::read::hit::{DiskHit, FollowedFill};
use crate::cache::read::lookup::{self, StoredBody};
use crate::cache::sendfile::{SendfileCapable, SendfileResponse};
use crate::cache::state::fast_header::FastHeader;
use crate::cache::state::generations::LookupSnapshot;
use crate::cache::state::recovery_progress::RecoveryProgress;
use crate::cache::state::stats::{Cause, Eviction, Stats};
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::write::admission::Admission;
use crate::cache::write::blocks::{self, Fetcher};
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
/// - [`admission`](Self::admission) and [`max_size_bytes`](Self::max_size_bytes), which
///   determine what is stored
/// - [`close`](Self::close) at the end of the process
pub struct DiskCache {
    core: Core,
    lifecycle: Lifecycle,
    admission: Admission,
    admission_at_once: Admission,
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
        DiskCache::open_with(config, |runtime| select::backend(choice, runtime))
    }

    /// [`open`](Self::open) with a backend of the caller's.
    pub(crate) fn open_with(
        config: DiskCacheConfig,
        backend: impl FnOnce(&Handle) -> io::Result<Box<dyn DiskBackend>>,
    ) -> io::Result<&'static DiskCache> {
        let lifecycle = lifecycle::lock_folder(&config)?;
        let runtime = disk_io::runtime()?;
        let backend = Box::leak(backend(runtime.handle())?);
        let opened = lifecycle.open(&config.path, DiskIo::new(backend, runtime))?;
        let first_generation = opened.first_generation;
        let (core, queues) = Core::new(&config, opened);
        let cache: &'static DiskCache = Box::leak(Box::new(DiskCache {
            core,
            lifecycle,
            admission: Admission::new(config.min_uses),
            admission_at_once: Admission::new(1),
        }));
        let core = &cache.core;
        cache.admission.set_core(core);
        cache.admission_at_once.set_core(core);
        let runtime = core.io.runtime();
        runtime.spawn(removal::run(core, queues.removals));
        runtime.spawn(maintenance::run(core, config.inactive));
        cache
            .lifecycle
            .start(core, queues.repairs, first_generation)?;
        if config.scrub_bytes_per_second > 0 {
            scrub::spawn(core, config.scrub_bytes_per_second);
        }
        Ok(cache)
    }

    /// Wait until all entries of earlier runs are known. Blocks.
    pub fn wait_recovered(&self) {
        self.core.recovery.wait();
    }

    /// Wait, at most `timeout`, until complete fills are committed, and release the folder.
    /// Blocks; for the end of a process.
    pub fn close(&self, timeout: Duration) {
        self.lifecycle.close(&self.core, timeout);
    }

    /// Wait until no fill is in flight and all files of evicted entries are removed.
    pub async fn settle(&self) {
        lifecycle::settle(&self.core).await;
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
        self.core.generations.snapshot()
    }

    /// The configured limit, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.core.max_size_bytes
    }

    /// The length of the longest body that is stored, in bytes.
    pub fn max_object_bytes(&self) -> u64 {
        self.core.max_object_bytes
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.core.index.len()
    }

    /// Bytes that the entries take and that the fills in flight take or will take.
    pub fn size_bytes(&self) -> u64 {
        self.core.size_bytes()
    }

    /// Number of fills in flight.
    pub fn fills_in_flight(&self) -> usize {
        self.core.fills.len()
    }

    /// Progress of the recovery of the entries of earlier runs.
    pub fn recovery_progress(&self) -> &RecoveryProgress {
        &self.core.recovery
    }

    /// Number of purges and bans that were requested so far. Responses of the origin that are
    /// remembered elsewhere are valid only while this number does not change.
    pub fn purges(&self) -> u64 {
        self.core.purges()
    }

    /// Number of bans in force.
    pub fn bans(&self) -> usize {
        self.core.bans.len()
    }

    /// Memory that small bodies take, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.core.open_entries.memory_bytes()
    }

    /// Memory for what is known of entries whose files may be closed, in bytes.
    pub fn metadata_bytes(&self) -> u64 {
        self.core.open_entries.metadata_bytes()
    }

    /// Number of files that are kept open.
    pub fn open_files(&self) -> usize {
        self.core.open_entries.open_files()
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.core.stats
    }

    /// The backend in use.
    pub fn backend(&self) -> &dyn DiskBackend {
        self.core.backend()
    }

    /// True if this process may write to the folder.
    pub fn is_writable(&self) -> bool {
        self.core.is_writable()
    }

    /// True if there is an entry of a key, or a fill with readers, that a lookup could not find
    /// when the key's request was made ([`lookup_snapshot`](Self::lookup_snapshot)). An entry
    /// that it could find has been looked up and was of no use.
    pub fn is_new(&self, key: &CacheKey) -> bool {
        lookup::is_new(&self.core, key)
    }

    /// True if the stored response of a key was validated or replaced after the key's request was
    /// made ([`lookup_snapshot`](Self::lookup_snapshot)): a lookup that found it stale may have
    /// been too early.
    pub fn is_renewed(&self, key: &CacheKey) -> bool {
        lookup::is_renewed(&self.core, key)
    }

    /// True if an object of unknown length turned out larger than the whole cache.
    pub fn is_too_large(&self, key: &CacheKey) -> bool {
        self.core.too_large.contains(&key.combined_bin())
    }

    /// Forget that an object was too large; it may have become smaller.
    pub fn forget_too_large(&self, key: &CacheKey) {
        self.core.too_large.remove(&key.combined_bin());
    }

    /// True if a fill of a key is in flight.
    pub fn is_filling(&self, key: &CacheKey) -> bool {
        self.core.fills.get(&key.combined_bin()).is_some()
    }

    /// Begin an entry for a body of `len` bytes, of which hits fetch and store what they need.
    /// `false`: it cannot be stored.
    pub(crate) async fn create_in_blocks(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        len: u64,
    ) -> Result<bool> {
        blocks::create(&self.core, key, meta, len).await
    }

    /// Let a hit fetch blocks that are not stored from `source`. `in_background`: nobody waits for
    /// them.
    pub(crate) fn let_fetch(
        &'static self,
        hit: &mut DiskHit,
        source: Box<dyn PartSource>,
        in_background: bool,
    ) {
        hit.fetch_by(Box::new(Fetcher::new(&self.core, source, in_background)));
    }

    /// The body that is stored for a key. Does not count as a use.
    pub(crate) async fn stored(&'static self, key: &CacheKey) -> Option<StoredBody> {
        lookup::stored(&self.core, key).await
    }

    /// Wait until a fill is an entry or is given up. Returns the reason if it is given up.
    pub(crate) async fn fill_end(&'static self, fill: &FollowedFill) -> Option<(Cause, String)> {
        self.core.fills.ended(&fill.0).await;
        fill.0.broken_by()
    }

    /// True if something may be stored for a key, or may be stored soon.
    pub(crate) fn may_have(&self, key: &CacheKey) -> bool {
        self.core.may_have(key)
    }

    /// True if a fill of a key has just been refused, which is forgotten now.
    pub(crate) fn was_refused(&self, key: &CacheKey) -> bool {
        self.core.refused.take(&key.primary_bin())
    }

    /// Path of the body that is stored for a key, for operators and tools. Lists a folder, so
    /// it blocks. The file may be gone as soon as this returns.
    pub fn get_file_path(&self, key: &CacheKey) -> Option<PathBuf> {
        let backend = self.core.backend();
        let id = self.core.layout.newest(backend, &key.combined_bin())?;
        Some(backend.get_file_path(&self.core.files(&id)))
    }

    /// Evict the entry of a key, because it turned out to be unusable.
    pub fn drop_entry(&'static self, key: &CacheKey, why: &str) {
        if let Some(entry) = self.core.index.get(&key.combined_bin()) {
            self.core.drop_damaged(entry.id, &invalid(why));
        }
    }

    /// Evict one variant of a key; others stay.
    pub fn evict_variant(&self, key: &CacheKey) {
        if let Some(entry) = self.core.index.get(&key.combined_bin()) {
            self.core.evict(entry.id, Eviction::Replaced);
        }
    }

    /// Remove the entries of a key, in all variants, and keep its fills from becoming entries.
    /// No crash brings them back after this returns. True if there were any.
    pub async fn purge_key(&'static self, key: &CacheKey) -> io::Result<bool> {
        invalidate::purge(&self.core, key.to_compact()).await
    }

    /// Invalidate what is stored for a key whose object has changed at the origin, as
    /// [`purge_key`](Self::purge_key) does, and the responses that the origin has been asked
    /// for. Nothing is written if nothing is stored.
    pub async fn invalidate(&'static self, key: &CacheKey) -> io::Result<()> {
        invalidate::invalidate(&self.core, key).await
    }

    /// [`invalidate`](Self::invalidate) before this returns. A crash soon after may bring back
    /// what was stored.
    pub fn invalidate_nowait(&'static self, key: &CacheKey) {
        invalidate::invalidate_nowait(&self.core, key);
    }

    /// Invalidate responses of the origin that are remembered elsewhere, see
    /// [`purges`](Self::purges).
    pub fn forget_answers(&self) {
        self.core.count_purge();
    }

    /// Invalidate all entries and fills of `user_tag` whose key begins with `prefix`. In force
    /// at once, and durable when this returns. Their files are removed in the background.
    pub async fn ban_prefix(&'static self, user_tag: &str, prefix: &[u8]) -> io::Result<()> {
        invalidate::ban_prefix(&self.core, user_tag, prefix).await
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
        lookup::lookup_fast(&self.core, key, is_usable)
    }
}

#[cfg(test)]
impl DiskCache {
    pub(crate) fn core(&'static self) -> &'static Core {
        &self.core
    }

    /// Release the lock as a killed process does.
    pub(crate) fn kill(&self) {
        self.lifecycle.kill(&self.core);
    }
}

#[async_trait]
impl SendfileCapable for DiskCache {
    async fn get_sendfile(&'static self, key: &CacheKey) -> Result<Option<SendfileResponse>> {
        let Some((meta, entry)) = lookup::find(&self.core, key).await else {
            return Ok(None);
        };
        let len = entry.body_len();
        Ok(match entry.file() {
            Some(body) if entry.incomplete().is_none() && self.core.sends_file(Some(len)) => {
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
        let found = lookup::lookup(&self.core, key).await?;
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
        let found = lookup::lookup_own_fill(&self.core, u64::from_be_bytes(tag))?;
        Ok(found.map(boxed))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<MissHandler> {
        let miss = pending::begin(&self.core, key, meta).await?;
        Ok(Box::new(miss))
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
                let current = self.core.index.get(&hash);
                let purged = invalidate::purge(&self.core, key.clone())
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
                if !self.core.index.contains(&id) {
                    return Ok(PurgeOutcome::NotFound);
                }
                self.core.evict(id, Eviction::Purged);
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
        update::update_meta(&self.core, key, meta).await
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}
