//! An entry being read.

use std::any::Any;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_cache::storage::HandleHit;
use pingora_cache::trace::SpanHandle;
use pingora_cache::{BodyPart, CacheEntryId, CacheKey, Storage};
use pingora_core::protocols::http::file_body::FileBodyReader;
use pingora_core::{Error, ErrorType, Result};

use super::OpenEntry;

/// A hit: the entry's files were opened once, at lookup, and stay readable
/// whatever happens to the entry.
pub struct DiskHit {
    body: Arc<File>,
    prefetched: Option<Bytes>,
    body_len: u64,
    /// What is left to be read.
    remaining: Range<u64>,
    reader: Option<FileBodyReader>,
    sendfile: bool,
    weight: usize,
    generation: u64,
}

impl DiskHit {
    pub(super) fn new(entry: OpenEntry, sendfile: bool) -> Self {
        DiskHit {
            body_len: entry.meta.body_len,
            remaining: 0..entry.meta.body_len,
            weight: entry.meta.weight(),
            generation: entry.meta.generation,
            body: entry.body,
            prefetched: entry.prefetched,
            reader: None,
            sendfile,
        }
    }

    fn take_remaining(&mut self) -> Range<u64> {
        std::mem::replace(&mut self.remaining, self.body_len..self.body_len)
    }
}

#[async_trait]
impl HandleHit for DiskHit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        if let Some(body) = &self.prefetched {
            let body = body.clone();
            let range = self.take_remaining();
            return Ok(
                (!range.is_empty()).then(|| body.slice(range.start as usize..range.end as usize))
            );
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            reader => reader.insert(FileBodyReader::new(
                &self.body,
                self.remaining.start,
                self.remaining.end - self.remaining.start,
            )),
        };
        let piece = reader.next().await?;
        self.remaining.start += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Ok(piece)
    }

    async fn read_body_part(&mut self) -> Result<Option<BodyPart>> {
        if !self.sendfile {
            return Ok(self.read_body().await?.map(BodyPart::Bytes));
        }
        self.reader = None;
        let range = self.take_remaining();
        Ok((!range.is_empty()).then(|| BodyPart::File {
            file: self.body.clone(),
            offset: range.start,
            len: range.end - range.start,
        }))
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let start = start as u64;
        let end = end
            .map_or(self.body_len, |end| end as u64)
            .min(self.body_len);
        if start > end {
            return Error::e_explain(
                ErrorType::InternalError,
                format!(
                    "seek to {start}..{end} in a body of {} bytes",
                    self.body_len
                ),
            );
        }
        self.remaining = start..end;
        self.reader = None;
        Ok(())
    }

    fn get_eviction_weight(&self) -> usize {
        self.weight
    }

    fn entry_id(&self) -> Option<CacheEntryId> {
        Some(CacheEntryId::new(self.generation))
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}
