//! The cache as Pingora sees it.

use std::any::Any;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use async_trait::async_trait;
use log::warn;
use pingora_cache::eviction::lru::Manager;
use pingora_cache::eviction::EvictionManager;
use pingora_cache::key::{CacheHashKey, CompactCacheKey};
use pingora_cache::trace::SpanHandle;
use pingora_cache::{
    CacheEntryId, CacheEntryKey, CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome,
    PurgeTarget, PurgeType, Storage,
};
use pingora_core::{Error, ErrorType, OrErr, Result};

use super::format::EntryMeta;
use super::hit::DiskHit;
use super::index::Index;
use super::miss::DiskMiss;
use super::{
    load, DiskBackend, EntryId, OpenEntry, SendfileCapable, SendfileConfig, SendfileResponse,
    TokioFsBackend,
};

/// Longest body that is read together with its metadata, in bytes.
const PREFETCH: u64 = 64 * 1024;

/// Where the cache is and how large it may become.
#[derive(Debug, Clone)]
pub struct DiskCacheConfig {
    /// The cache's own folder; created if need be.
    pub path: PathBuf,
    /// Limit for bodies and metadata, in bytes. The least recently used entries
    /// leave when it is passed.
    pub max_size_bytes: u64,
    /// Which hits may go by sendfile.
    pub sendfile: SendfileConfig,
}

/// A disk cache for Pingora: one immutable body file an entry, metadata beside
/// it, found again after a restart.
pub struct DiskCache {
    backend: Arc<dyn DiskBackend>,
    sendfile: SendfileConfig,
    pub(super) index: Index,
    eviction: Manager<1>,
    next_generation: AtomicU64,
    max_size_bytes: u64,
    /// Held as long as the process lives, so that no second one uses the folder.
    _lock: File,
}

/// What cannot be used as a cache folder, and why.
fn in_folder(path: &Path, doing: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: cannot {doing}: {e}", path.display()))
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
        let lock = lock(path)?;
        let first_generation =
            next_epoch(path).map_err(|e| in_folder(path, "write to the cache folder", e))?;
        let backend =
            TokioFsBackend::new(path).map_err(|e| in_folder(path, "create folders", e))?;
        let entries = backend.entries().to_owned();
        let cache: &'static DiskCache = Box::leak(Box::new(DiskCache {
            backend: Arc::new(backend),
            sendfile: config.sendfile,
            index: Index::default(),
            eviction: Manager::with_capacity(
                usize::try_from(config.max_size_bytes).unwrap_or(usize::MAX),
                1024,
            ),
            next_generation: AtomicU64::new(first_generation),
            max_size_bytes: config.max_size_bytes,
            _lock: lock,
        }));
        std::thread::Builder::new()
            .name("cache-load".into())
            .spawn(move || load::load(cache, &entries, first_generation))?;
        Ok(cache)
    }

    /// Pingora's eviction manager for this cache, see
    /// [`HttpCache::enable`](pingora_cache::HttpCache::enable).
    pub fn eviction(&'static self) -> &'static (dyn EvictionManager + Sync) {
        &self.eviction
    }

    /// The configured limit, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_bytes
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.index.len()
    }

    /// Bytes that the entries take.
    pub fn size_bytes(&self) -> usize {
        self.eviction.total_size()
    }

    /// Where the body for a key is, see [`DiskBackend::get_file_path`].
    pub fn get_file_path(&self, key: &CacheKey) -> Option<PathBuf> {
        let id = self.index.get(&key.combined_bin())?;
        Some(self.backend.get_file_path(&id))
    }

    /// Forget what is stored for a key, because it turned out to be unusable.
    pub async fn drop_entry(&self, key: &CacheKey) {
        if let Some(id) = self.index.get(&key.combined_bin()) {
            self.remove(&key.to_compact(), id).await;
        }
    }

    pub(super) fn backend(&self) -> &Arc<dyn DiskBackend> {
        &self.backend
    }

    /// Note an entry in the index, and return the one that it replaces.
    pub(super) fn publish(&self, key: &CompactCacheKey, id: EntryId) -> Option<EntryId> {
        let replaced = self.index.insert(id)?;
        self.forget(key, replaced);
        Some(replaced)
    }

    /// Track an entry of an earlier run, and return those that have to go for it.
    pub(super) fn admit(
        &self,
        key: CompactCacheKey,
        weight: usize,
        id: EntryId,
    ) -> Vec<CacheEntryKey> {
        let key = CacheEntryKey::identified(key, CacheEntryId::new(id.generation));
        // How fresh it is plays no part in least-recently-used order.
        self.eviction
            .admit(key, weight, std::time::SystemTime::UNIX_EPOCH)
    }

    fn forget(&self, key: &CompactCacheKey, id: EntryId) {
        let id = CacheEntryId::new(id.generation);
        self.eviction
            .remove((&CacheEntryKey::identified(key.clone(), id)).into());
    }

    async fn remove(&self, key: &CompactCacheKey, id: EntryId) -> bool {
        let was_current = self.index.remove(&id);
        self.forget(key, id);
        if let Err(e) = self.backend.remove(id).await {
            warn!("cache entry {id}: cannot remove its files: {e}");
        }
        was_current
    }

    /// The current entry for a key, opened and checked. One that is damaged is
    /// dropped, and as good as none.
    async fn open_entry(&self, key: &CacheKey, prefetch: u64) -> Option<(CacheMeta, OpenEntry)> {
        let id = self.index.get(&key.combined_bin())?;
        let opened = match self.backend.open(id, prefetch).await {
            Ok(entry) => {
                let compact = key.to_compact();
                if entry.meta.key.primary != compact.primary
                    || entry.meta.key.variance != compact.variance
                {
                    Err("it is for another key".to_owned())
                } else {
                    CacheMeta::deserialize(&entry.meta.internal, &entry.meta.header)
                        .map(|meta| (meta, entry))
                        .map_err(|e| e.to_string())
                }
            }
            // Replaced or evicted since the index was asked.
            Err(_) if !self.index.contains(&id) => return None,
            // Says nothing about the entry.
            Err(e) if out_of_descriptors(&e) => {
                warn!(
                    "cache entry {id}: {e}; raise the limit on open files (LimitNOFILE, ulimit -n)"
                );
                return None;
            }
            Err(e) => Err(e.to_string()),
        };
        match opened {
            Ok(opened) => Some(opened),
            Err(why) => {
                warn!("cache entry {id} is dropped: {why}");
                self.remove(&key.to_compact(), id).await;
                None
            }
        }
    }
}

fn out_of_descriptors(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn lock(path: &Path) -> io::Result<File> {
    let lock = File::create(path.join("lock"))
        .map_err(|e| in_folder(path, "write to the cache folder", e))?;
    lock.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "{}: another process uses this cache folder; stop it, or give each its own cache.disk.path",
                path.display()
            ),
        ),
        TryLockError::Error(e) => in_folder(path, "lock the cache folder", e),
    })?;
    Ok(lock)
}

/// The first generation of this run: greater than any of an earlier run, however
/// the clock jumps.
fn next_epoch(path: &Path) -> io::Result<u64> {
    let file = path.join("epoch");
    let last = match fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    // A damaged file would start over; the generations on disk still tell.
    let found = highest_epoch_on_disk(path, last);
    let epoch: u32 = found.checked_add(1).ok_or_else(|| {
        io::Error::other("the cache has been opened 2^32 times; delete the folder")
    })?;
    let temporary = path.join("epoch.tmp");
    fs::write(&temporary, format!("{epoch}\n"))?;
    fs::rename(temporary, file)?;
    Ok(u64::from(epoch) << 32)
}

fn highest_epoch_on_disk(path: &Path, last: u32) -> u32 {
    if last > 0 {
        return last;
    }
    load::generations(&path.join("entries"))
        .map(|generation| (generation >> 32) as u32)
        .max()
        .unwrap_or(0)
}

#[async_trait]
impl SendfileCapable for DiskCache {
    async fn get_sendfile(&self, key: &CacheKey) -> Result<Option<SendfileResponse>> {
        let Some((meta, entry)) = self.open_entry(key, 0).await else {
            return Ok(None);
        };
        let len = entry.meta.body_len;
        let possible = self.backend.supports_sendfile() && self.sendfile.applies_to(len);
        Ok(possible.then_some(SendfileResponse {
            meta,
            file: entry.body,
            len,
        }))
    }
}

#[async_trait]
impl Storage for DiskCache {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let sendfile = self.backend.supports_sendfile();
        let prefetch = if sendfile && self.sendfile.enabled {
            PREFETCH.min(self.sendfile.threshold_bytes)
        } else {
            PREFETCH
        };
        let Some((meta, entry)) = self.open_entry(key, prefetch).await else {
            return Ok(None);
        };
        let sendfile = sendfile && self.sendfile.applies_to(entry.meta.body_len);
        Ok(Some((meta, Box::new(DiskHit::new(entry, sendfile)))))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<MissHandler> {
        let id = EntryId {
            hash: key.combined_bin(),
            generation: self.next_generation.fetch_add(1, Ordering::Relaxed),
        };
        let writer = self
            .backend
            .create(id)
            .await
            .or_err_with(ErrorType::FileCreateError, || {
                format!("creating cache entry {id}")
            })?;
        Ok(Box::new(DiskMiss::new(self, key, id, meta, writer)?))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        _purge_type: PurgeType,
        _trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        let hash = target.key().combined_bin();
        let id = match target {
            PurgeTarget::Active(_) => self.index.get(&hash),
            PurgeTarget::Exact(entry) => entry.entry_id().map(|id| EntryId {
                hash,
                generation: id.get(),
            }),
        };
        let Some(id) = id else {
            return Ok(PurgeOutcome::NotFound);
        };
        Ok(if self.remove(target.key(), id).await {
            PurgeOutcome::Purged(Some(CacheEntryId::new(id.generation)))
        } else {
            PurgeOutcome::NotFound
        })
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<bool> {
        let Some(id) = self.index.get(&key.combined_bin()) else {
            return Ok(false);
        };
        let what = || format!("updating cache entry {id}");
        let old = self
            .backend
            .open(id, 0)
            .await
            .or_err_with(ErrorType::FileOpenError, what)?;
        let (internal, header) = meta.serialize()?;
        let new = EntryMeta {
            internal,
            header,
            ..old.meta
        };
        self.backend
            .write_meta(id, new)
            .await
            .or_err_with(ErrorType::FileWriteError, what)?;
        if !self.index.contains(&id) {
            // Purged or replaced meanwhile: take back the file just written.
            self.remove(&key.to_compact(), id).await;
            return Ok(false);
        }
        Ok(true)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

impl DiskCache {
    /// Fail unless the body has the length that its header promises: a cache must
    /// not make a complete response of an incomplete one.
    pub(super) fn check_length(promised: Option<u64>, written: u64) -> Result<()> {
        match promised {
            Some(promised) if promised != written => Error::e_explain(
                ErrorType::InternalError,
                format!("the body has {written} bytes, its Content-Length says {promised}"),
            ),
            _ => Ok(()),
        }
    }
}
