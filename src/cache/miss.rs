//! An entry being written.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use pingora_cache::key::CompactCacheKey;
use pingora_cache::storage::{HandleMiss, MissFinishType};
use pingora_cache::{CacheEntryId, CacheKey, CacheMeta};
use pingora_core::{ErrorType, OrErr, Result};

use super::backend::EntryWriter;
use super::format::EntryMeta;
use super::{DiskCache, EntryId};

/// A miss being stored. Dropped before `finish`, it leaves nothing behind.
pub struct DiskMiss {
    cache: &'static DiskCache,
    key: CompactCacheKey,
    id: EntryId,
    internal: Vec<u8>,
    header: Vec<u8>,
    promised: Option<u64>,
    written: u64,
    writer: Box<dyn EntryWriter>,
}

impl DiskMiss {
    pub(super) fn new(
        cache: &'static DiskCache,
        key: &CacheKey,
        id: EntryId,
        meta: &CacheMeta,
        writer: Box<dyn EntryWriter>,
    ) -> Result<Self> {
        let (internal, header) = meta.serialize()?;
        let promised = meta
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(DiskMiss {
            cache,
            key: key.to_compact(),
            id,
            internal,
            header,
            promised,
            written: 0,
            writer,
        })
    }
}

#[async_trait]
impl HandleMiss for DiskMiss {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        self.written += data.len() as u64;
        self.writer
            .write(data)
            .await
            .or_err_with(ErrorType::FileWriteError, || {
                format!("writing cache entry {}", self.id)
            })
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        DiskCache::check_length(self.promised, self.written)?;
        let meta = EntryMeta {
            key: self.key.clone(),
            generation: self.id.generation,
            body_len: self.written,
            internal: self.internal,
            header: self.header,
        };
        let weight = meta.weight();
        let (cache, key, id) = (self.cache, self.key, self.id);
        let runtime = tokio::runtime::Handle::current();
        let published = Box::new(move || {
            if let Some(replaced) = cache.publish(&key, id) {
                runtime.spawn(async move {
                    if let Err(e) = cache.backend().remove(replaced).await {
                        log::warn!("cache entry {replaced}: cannot remove its files: {e}");
                    }
                });
            }
        });
        self.writer
            .commit(meta, published)
            .await
            .or_err_with(ErrorType::FileWriteError, || {
                format!("committing cache entry {id}")
            })?;
        Ok(MissFinishType::Created(weight))
    }

    fn entry_id(&self) -> Option<CacheEntryId> {
        Some(CacheEntryId::new(self.id.generation))
    }
}
