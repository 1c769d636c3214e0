//! An entry being written, as Pingora sees it.

use async_trait::async_trait;
use bytes::Bytes;
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use pingora_cache::storage::{HandleMiss, MissFinishType};
use pingora_cache::CacheEntryId;
use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::sync::{mpsc, oneshot};

use crate::cache::write::fill::{Fill, Piece};
use crate::cache::DiskCache;

/// The error of a fill that was given up because its readers were gone.
pub const DESERTED: ErrorType = ErrorType::new("CacheFillDeserted");

/// An extension of the metadata of a response that is fetched in the background. It will
/// have no readers, and other limits apply to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InBackground;

/// An extension of the metadata of a response that is fetched for requests for its parts.
/// The fill goes on as long as these last, and beyond that if it is [kept](Self::keep).
#[derive(Debug, Clone, Default)]
pub(crate) struct ForParts(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    is_over: AtomicBool,
    kept: OnceLock<Box<dyn Any + Send + Sync>>,
    fill: OnceLock<Weak<Fill>>,
}

impl ForParts {
    /// Have the fill finished, whoever reads it. `guard` lives as long as the fill.
    pub(crate) fn keep(&self, guard: Box<dyn Any + Send + Sync>) {
        let _ = self.0.kept.set(guard);
    }

    /// Note that no request for a part is left.
    pub(crate) fn end(&self) {
        self.0.is_over.store(true, Ordering::Release);
        if let Some(fill) = self.0.fill.get().and_then(Weak::upgrade) {
            fill.reader_left();
        }
    }

    pub(crate) fn set_fill(&self, fill: &Arc<Fill>) {
        let _ = self.0.fill.set(Arc::downgrade(fill));
    }

    /// True if the fill goes on, even without readers.
    pub(crate) fn want_it(&self) -> bool {
        self.0.kept.get().is_some() || !self.0.is_over.load(Ordering::Acquire)
    }
}

/// A miss being stored. Dropped before `finish`, it leaves nothing behind, and
/// breaks the transfers of those who follow it.
pub struct DiskMiss {
    cache: &'static DiskCache,
    fill: Arc<Fill>,
    pieces: mpsc::Sender<Piece>,
    tag: [u8; 8],
    /// The fill's task has been told that the body is complete.
    is_finished: bool,
}

impl DiskMiss {
    pub(crate) fn new(
        cache: &'static DiskCache,
        fill: Arc<Fill>,
        pieces: mpsc::Sender<Piece>,
    ) -> Self {
        DiskMiss {
            cache,
            tag: fill.id.generation.to_be_bytes(),
            fill,
            pieces,
            is_finished: false,
        }
    }

    fn deserted(&self) -> Box<Error> {
        let why = format!("cache fill {}: nobody reads it", self.fill.id);
        Error::explain(DESERTED, why).into_down()
    }

    fn given_up(&self) -> Box<Error> {
        if self.fill.readers().has_ended() {
            return self.deserted();
        }
        let why = format!("cache fill {}: {}", self.fill.id, self.fill.broken());
        Error::explain(ErrorType::FileWriteError, why)
    }
}

impl Drop for DiskMiss {
    /// The client of the broken response may ask again at once. Its next request finds no fill
    /// that is about to break, even before the fill's task has run.
    fn drop(&mut self) {
        if !self.is_finished && !self.fill.has_received_all() {
            self.cache.fills().hide(&self.fill);
        }
    }
}

#[async_trait]
impl HandleMiss for DiskMiss {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.fill.has_received(data.len());
        if !self.fill.is_wanted(self.cache) {
            return Err(self.deserted());
        }
        // Bytes that are not written do not wait for the disk either.
        let turn = match self.fill.window() {
            None => self.cache.turns().to_queue(data.len()).await,
            Some(_) => None,
        };
        let place = self.pieces.reserve().await;
        let place = place.map_err(|_| self.given_up())?;
        let turn = turn.filter(|_| self.fill.window().is_none());
        place.send(Piece::Data(data, turn));
        Ok(())
    }

    /// Returns when the body is written; that it survives a crash is seen to
    /// afterwards, so that no client waits for it.
    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        let (answer, written) = oneshot::channel();
        if self.pieces.send(Piece::Finish(answer)).await.is_err() {
            return Err(self.given_up());
        }
        self.is_finished = true;
        let len = written
            .await
            .map_err(|_| self.given_up())?
            .or_err_with(ErrorType::FileWriteError, || {
                format!("finishing cache fill {}", self.fill.id)
            })?;
        Ok(MissFinishType::Created(
            usize::try_from(len).unwrap_or(usize::MAX),
        ))
    }

    fn is_full(&self) -> bool {
        self.fill.is_full()
    }

    fn streaming_write_tag(&self) -> Option<&[u8]> {
        Some(&self.tag)
    }

    fn entry_id(&self) -> Option<CacheEntryId> {
        Some(CacheEntryId::new(self.fill.id.generation))
    }
}
