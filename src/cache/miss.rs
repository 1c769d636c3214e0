//! An entry being written, as Pingora sees it.

use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

use pingora_cache::storage::{HandleMiss, MissFinishType};
use pingora_cache::CacheEntryId;
use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::sync::{mpsc, oneshot};

use super::fill::{Fill, Piece};

/// A miss being stored. Dropped before `finish`, it leaves nothing behind, and
/// breaks the transfers of those who follow it.
pub struct DiskMiss {
    fill: Arc<Fill>,
    pieces: mpsc::Sender<Piece>,
    tag: [u8; 8],
}

impl DiskMiss {
    pub(super) fn new(fill: Arc<Fill>, pieces: mpsc::Sender<Piece>) -> Self {
        DiskMiss {
            tag: fill.id.generation.to_be_bytes(),
            fill,
            pieces,
        }
    }

    fn given_up(&self) -> Box<Error> {
        let why = format!("cache fill {}: {}", self.fill.id, self.fill.broken());
        Error::explain(ErrorType::FileWriteError, why)
    }
}

#[async_trait]
impl HandleMiss for DiskMiss {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.pieces
            .send(Piece::Data(data))
            .await
            .map_err(|_| self.given_up())
    }

    /// Returns when the body is written; that it survives a crash is seen to
    /// afterwards, so that no client waits for it.
    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        let (answer, written) = oneshot::channel();
        if self.pieces.send(Piece::Finish(answer)).await.is_err() {
            return Err(self.given_up());
        }
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

    fn streaming_write_tag(&self) -> Option<&[u8]> {
        Some(&self.tag)
    }

    fn entry_id(&self) -> Option<CacheEntryId> {
        Some(CacheEntryId::new(self.fill.id.generation))
    }
}
