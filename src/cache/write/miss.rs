//! The miss handler of Pingora.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_cache::storage::{HandleMiss, MissFinishType};
use pingora_cache::CacheEntryId;
use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::sync::{mpsc, oneshot};

use crate::cache::state::fill::Fill;
use crate::cache::state::Core;
use crate::cache::write::block_writer::Piece;

/// The error of a fill that was given up because all readers had left.
pub const DESERTED: ErrorType = ErrorType::new("CacheFillDeserted");

/// A miss that is being stored. Dropped before `finish`, it leaves no files, and breaks the
/// transfers of its readers.
pub struct DiskMiss {
    core: &'static Core,
    fill: Arc<Fill>,
    pieces: mpsc::Sender<Piece>,
    tag: [u8; 8],
    /// True once the task of the fill knows that the body is complete.
    is_finished: bool,
}

impl DiskMiss {
    pub(crate) fn new(core: &'static Core, fill: Arc<Fill>, pieces: mpsc::Sender<Piece>) -> Self {
        DiskMiss {
            core,
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
        if !self.is_finished {
            self.core.fills.hide(&self.fill);
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
        if !self.fill.is_wanted(&self.core.fills) {
            return Err(self.deserted());
        }
        // Bytes that are not written do not wait for the disk.
        let permit = match self.fill.window() {
            None => self.core.fill_permits.queue(data.len()).await,
            Some(_) => None,
        };
        let place = self.pieces.reserve().await;
        let place = place.map_err(|_| self.given_up())?;
        let permit = permit.filter(|_| self.fill.window().is_none());
        place.send(Piece::Data(data, permit));
        Ok(())
    }

    /// Returns when the body is written. It is made durable after that, so that no client waits
    /// for it.
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
