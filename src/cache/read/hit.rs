//! The hit handler of Pingora.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use log::debug;
use pingora_cache::storage::HandleHit;
use pingora_cache::trace::SpanHandle;
use pingora_cache::{BodyPart, CacheEntryId, CacheKey, CacheMeta, Storage};
use pingora_core::{Error, ErrorType, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::cache::io::page_cache::{read_nowait, BLOCK};
use crate::cache::io::regular::invalid;
use crate::cache::read::blocks::{BlockReader, FetchBlocks, OUTDATED};
use crate::cache::read::remainder::{Leave, Remainder, FILL_BROKEN};
use crate::cache::state::body_file::BodyFile;
use crate::cache::state::fast_header::FastHeader;
use crate::cache::state::fill::{Fill, Progress, State};
use crate::cache::state::open_entries::{ReadyBody, ReadyEntry};
use crate::cache::state::reader::Reader;
use crate::cache::state::sparse_body::SparseBody;
use crate::cache::state::stats::Eviction;
use crate::cache::state::window::Window;
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;

/// Longest piece of a body that is returned as bytes. A slow client holds one in memory for as
/// long as it reads.
const PIECE: u64 = 32 * 1024;

/// Longest piece for a client to which no file can be sent. With its header of 5 bytes, its
/// type and its tag, the TLS record (RFC 8446 §5.2) still fits in 16 KiB; for one of 16 KiB of
/// content, the allocator would use 20 KiB.
const RECORD: u64 = 16 * 1024 - 64;

/// Most bytes by which the last piece may be longer, so that they are no piece of their own.
const TAIL: u64 = 1024;

/// Longest range of a file that is returned at once: the range that one `sendfile(2)` sends and
/// that is checked to be in the page cache.
const PART: u64 = 2 << 20;

/// A hit. Its files were opened at lookup and stay readable whatever happens to the entry.
pub struct DiskHit {
    core: &'static Core,
    source: Source,
    /// Bytes that remain to be read. For a fill of unknown length, the end is `u64::MAX`.
    remaining: Range<u64>,
    sendfile: bool,
    /// Longest piece that is read into memory.
    piece: u64,
    /// True once a read had to wait for the disk.
    waited: bool,
    /// A read from the disk. Kept here, so that a caller that drops the reading future and makes
    /// it again continues with it.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// The means to leave the other readers of a fill.
    leave: Option<Box<Leave>>,
    /// The means to get blocks that are not stored.
    blocks: Option<Box<BlockReader>>,
}

/// Progress of the fill that a hit follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filling {
    /// Bytes that can be read.
    pub written: u64,
    /// Length of the body, if it is known.
    pub promised: Option<u64>,
    /// Time since the arrival of the response header.
    pub age: Duration,
}

/// A fill, for someone who waits for its end.
#[derive(Debug, Clone)]
pub(crate) struct FollowedFill(pub(crate) Arc<Fill>);

enum Source {
    Entry(Arc<ReadyEntry>),
    Fill(Reader, watch::Receiver<Progress>),
    /// The remainder of a body after leaving its fill, with the length of the body if it is known.
    Remainder(EntryId, Option<u64>, Box<dyn Remainder>),
}

/// The body of an entry that is kept in memory.
///
/// It is a reference to the entry, whose count the hit has just changed. The body's own count
/// is elsewhere in memory and mostly in no cache of the processor: waiting for it takes longer
/// than the allocation that this costs.
struct KeptBody(Arc<ReadyEntry>);

impl AsRef<[u8]> for KeptBody {
    fn as_ref(&self) -> &[u8] {
        match &self.0.body {
            ReadyBody::Memory(body) => body,
            ReadyBody::File(_) | ReadyBody::Sparse(_) => &[],
        }
    }
}

impl DiskHit {
    /// The folder of the hit.
    pub(crate) fn core(&self) -> &'static Core {
        self.core
    }

    pub(crate) fn of_entry(core: &'static Core, entry: Arc<ReadyEntry>, sendfile: bool) -> Self {
        DiskHit {
            core,
            remaining: 0..entry.body_len(),
            sendfile,
            piece: PIECE,
            source: Source::Entry(entry),
            waited: false,
            reading: None,
            leave: None,
            blocks: None,
        }
    }

    pub(crate) fn of_fill(core: &'static Core, reader: Reader, sendfile: bool) -> Self {
        let progress = reader.fill().progress();
        DiskHit {
            core,
            remaining: 0..reader.fill().promised.unwrap_or(u64::MAX),
            sendfile,
            piece: PIECE,
            source: Source::Fill(reader, progress),
            waited: false,
            reading: None,
            leave: None,
            blocks: None,
        }
    }

    /// True if the body is kept in memory.
    pub(crate) fn is_in_memory(&self) -> bool {
        match &self.source {
            Source::Entry(entry) => matches!(entry.body, ReadyBody::Memory(_)),
            Source::Fill(..) | Source::Remainder(..) => false,
        }
    }

    /// Progress of the fill that this hit follows; `None`: it is a complete entry.
    pub fn filling(&self) -> Option<Filling> {
        match &self.source {
            Source::Fill(reader, progress) => Some(Filling {
                written: progress.borrow().written,
                promised: reader.fill().promised,
                age: reader.fill().begun.elapsed(),
            }),
            Source::Entry(_) | Source::Remainder(..) => None,
        }
    }

    /// Get the remainder of the body from `rest`, if this follows a fill that has no space on the
    /// disk and other readers hold it up or are held up by it.
    pub(crate) fn leave_by(&mut self, rest: Box<dyn Remainder>) {
        if let Source::Fill(reader, _) = &self.source {
            if !reader.leads() {
                reader.set_can_leave(true);
                self.leave = Some(Box::new(Leave::new(rest)));
            }
        }
    }

    /// Leave, if that is possible, if the first byte of the range has not arrived within `time`.
    pub(crate) fn waits_at_most(&mut self, time: Duration) {
        if let Some(leave) = &mut self.leave {
            leave.waits_at_most(time);
        }
    }

    /// Get blocks that are not stored by `fetcher`.
    pub(crate) fn fetch_by(&mut self, fetcher: Box<dyn FetchBlocks>) {
        if let Some(body) = self.entry().and_then(ReadyEntry::incomplete) {
            self.blocks = Some(Box::new(BlockReader::new(body, fetcher)));
        }
    }

    /// The length of the body, if blocks of it are not stored.
    pub(crate) fn incomplete_len(&self) -> Option<u64> {
        let body = self.entry()?.incomplete()?;
        Some(body.len)
    }

    /// True if all blocks of a range are stored.
    pub(crate) fn has_all(&self, range: &Range<u64>) -> bool {
        let incomplete = self.entry().and_then(ReadyEntry::incomplete);
        incomplete.is_none_or(|body| body.has_all(range))
    }

    /// The bytes beyond these ranges that are fetched with them, because blocks are missing.
    pub(crate) fn excess(&self, ranges: &[Range<u64>]) -> u64 {
        let incomplete = self.entry().and_then(ReadyEntry::incomplete);
        incomplete.map_or(0, |body| body.excess(ranges))
    }

    /// Wait until the first byte of a range can be read.
    ///
    /// # Errors
    /// The origin does not send it, or there is no room for it.
    pub(crate) async fn prepare(&mut self, range: Range<u64>) -> Result<()> {
        let incomplete = self.entry().and_then(ReadyEntry::incomplete).cloned();
        let (Some(body), Some(reader)) = (incomplete, &mut self.blocks) else {
            return Ok(());
        };
        if range.is_empty() {
            return Ok(());
        }
        self.waited |= !body.has(range.start);
        match reader.available(&body, range, false).await? {
            Some(_) => Ok(()),
            None => {
                let why = format!("cache entry {}: no room for its blocks", body.id);
                Error::e_explain(FILL_BROKEN, why)
            }
        }
    }

    /// Have all blocks fetched that are not stored, and wait for them. `false`: there is no room.
    ///
    /// # Errors
    /// The origin does not send them. Those that have arrived are stored.
    pub(crate) async fn fetch_missing(&mut self) -> Result<bool> {
        let incomplete = self.entry().and_then(ReadyEntry::incomplete).cloned();
        let (Some(body), Some(reader)) = (incomplete, &mut self.blocks) else {
            return Ok(true);
        };
        self.waited = true;
        let mut at = 0;
        while at < body.len {
            match reader.available(&body, at..body.len, true).await? {
                Some(end) => at = end,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The fill that this hit follows, if it follows one.
    pub(crate) fn followed_fill(&self) -> Option<FollowedFill> {
        match &self.source {
            Source::Fill(reader, _) => Some(FollowedFill(reader.fill().clone())),
            Source::Entry(_) | Source::Remainder(..) => None,
        }
    }

    /// Length of the body of an entry; `None`: it is a fill.
    pub fn complete_len(&self) -> Option<u64> {
        self.entry().map(|entry| entry.body_len())
    }

    /// Pingora's metadata of a complete entry.
    pub(crate) fn meta(&self) -> Option<&CacheMeta> {
        self.entry()?.cache_meta().ok()
    }

    /// The prepared header of this entry, if it was [set](Self::set_fast_header).
    pub(crate) fn fast_header(&self) -> Option<&FastHeader> {
        self.entry()?.fast_header()
    }

    /// Set the prepared header for as long as the entry is in use and its metadata does not
    /// change. The first one stays. Does nothing for a fill.
    ///
    /// Where it is kept with an open file or a body, the header is not counted as memory; it
    /// should take no more than the metadata.
    pub(crate) fn set_fast_header(&self, header: FastHeader) {
        if let Some(entry) = self.entry() {
            entry.set_fast_header(header);
            self.core.open_entries.keep_header(entry);
        }
    }

    /// Evict this entry, which cannot be sent. An entry that has replaced it stays.
    pub fn drop_entry(&self, why: &str) {
        self.core.drop_damaged(self.id(), &invalid(why));
    }

    /// Read the body into memory, for a client to which no file can be sent.
    pub(crate) fn copy_body(&mut self) {
        self.sendfile = false;
        self.piece = RECORD;
    }

    /// True if a read had to wait for the disk, so that time has passed.
    pub(crate) fn has_waited(&self) -> bool {
        self.waited
    }

    /// True if bytes remain to be read, as far as is known.
    pub(crate) fn has_more(&self) -> bool {
        !self.remaining.is_empty()
    }

    /// The fill that this hit follows.
    #[cfg(test)]
    pub(crate) fn fill(&self) -> Option<&Arc<Fill>> {
        match &self.source {
            Source::Fill(reader, _) => Some(reader.fill()),
            Source::Entry(_) | Source::Remainder(..) => None,
        }
    }

    fn entry(&self) -> Option<&ReadyEntry> {
        match &self.source {
            Source::Entry(entry) => Some(entry),
            Source::Fill(..) | Source::Remainder(..) => None,
        }
    }

    fn id(&self) -> EntryId {
        match &self.source {
            Source::Entry(entry) => entry.id,
            Source::Fill(reader, _) => reader.fill().id,
            Source::Remainder(id, ..) => *id,
        }
    }

    fn body_len(&self) -> u64 {
        match &self.source {
            Source::Entry(entry) => entry.body_len(),
            Source::Fill(reader, _) => reader.fill().promised.unwrap_or(u64::MAX),
            Source::Remainder(_, promised, _) => promised.unwrap_or(u64::MAX),
        }
    }

    /// The part of the remaining bytes that can be read now. Waits for a fill that has not
    /// arrived there. Empty at the end.
    async fn available(&mut self) -> Result<Range<u64>> {
        match &self.source {
            _ if self.remaining.is_empty() => return Ok(self.remaining.clone()),
            Source::Fill(..) => {}
            Source::Entry(entry) => {
                let Some(body) = entry.incomplete().cloned() else {
                    return Ok(self.remaining.clone());
                };
                return Box::pin(self.available_blocks(&body)).await;
            }
            Source::Remainder(..) => return Ok(self.remaining.clone()),
        }
        let start = self.remaining.start;
        // Boxed, because only fills need it and the future of every hit would contain it.
        let Some(now) = Box::pin(self.progress()).await? else {
            // The remainder comes from the origin.
            return Ok(self.remaining.clone());
        };
        let Source::Fill(reader, _) = &self.source else {
            return Ok(self.remaining.clone());
        };
        let fill = reader.fill();
        match now.state {
            State::Broken if now.written <= start => {
                let why = format!("cache fill {}: {}", fill.id, fill.broken());
                Err(Error::explain(FILL_BROKEN, why).into_up())
            }
            State::Complete if now.written <= start => Ok(start..start),
            _ => {
                let file_end = fill.window().map_or(u64::MAX, Window::start);
                let end = match start < file_end {
                    true => now.written.min(file_end),
                    false => now.written,
                };
                Ok(start..self.remaining.end.min(end))
            }
        }
    }

    /// The part of the remaining bytes that can be read of a body in blocks.
    async fn available_blocks(&mut self, body: &Arc<SparseBody>) -> Result<Range<u64>> {
        let Some(reader) = &mut self.blocks else {
            let why = format!("cache entry {}: blocks are missing", body.id);
            return Err(Error::explain(FILL_BROKEN, why));
        };
        self.waited |= !body.has(self.remaining.start);
        if let Some(end) = reader.available(body, self.remaining.clone(), true).await? {
            return Ok(self.remaining.start..end);
        }
        let mut remainder = reader.request();
        if let Err(e) = remainder.begin(self.remaining.clone()).await {
            if *e.etype() == OUTDATED {
                self.core.evict(body.id, Eviction::Replaced);
            }
            return Err(e);
        }
        let rest = Source::Remainder(body.id, Some(body.len), remainder);
        if let Source::Entry(entry) = std::mem::replace(&mut self.source, rest) {
            reader.park(entry);
        }
        Ok(self.remaining.clone())
    }

    /// Wait until a fill has more bytes than this reader has read. `None`: the reader has left,
    /// because slower ones hold it up.
    async fn progress(&mut self) -> Result<Option<Progress>> {
        let start = self.remaining.start;
        let broken = Progress {
            written: 0,
            state: State::Broken,
        };
        loop {
            {
                let Source::Fill(reader, progress) = &mut self.source else {
                    return Ok(None);
                };
                reader.set_position(start);
                let more =
                    progress.wait_for(|now| now.written > start || now.state != State::Writing);
                match &mut self.leave {
                    Some(leave) if leave.has_begun() => {}
                    Some(leave)
                        if leave.first_by().is_some() || reader.fill().waits_for_readers() =>
                    {
                        let patience = match leave.first_by() {
                            Some(first_by) => first_by,
                            None => leave.is_held(),
                        };
                        if let Ok(now) = timeout_at(patience, more).await {
                            leave.is_free();
                            return Ok(Some(now.map_or(broken, |now| *now)));
                        }
                    }
                    _ => return Ok(Some(more.await.map_or(broken, |now| *now))),
                }
            }
            if self.leave().await? {
                return Ok(None);
            }
        }
    }

    /// Get the remainder from the origin. `false`: the origin does not have it, and this reader
    /// stays with the others.
    async fn leave(&mut self) -> Result<bool> {
        let (Source::Fill(reader, _), Some(leave)) = (&self.source, &mut self.leave) else {
            return Ok(false);
        };
        let begun = leave.begin(self.remaining.clone()).await;
        let leave = self.leave.take();
        let is_lost = reader.is_lost();
        let fill = reader.fill();
        match (begun, leave) {
            (Ok(()), Some(leave)) => {
                self.source = Source::Remainder(fill.id, fill.promised, leave.into_remainder());
                Ok(true)
            }
            (Err(e), _) if is_lost => Err(e),
            (begun, _) => {
                if let Err(e) = begun {
                    debug!("cache fill {}: a reader cannot leave it: {e}", fill.id);
                }
                reader.set_can_leave(false);
                Ok(false)
            }
        }
    }

    /// The next bytes of the remainder, from the origin.
    async fn read_remainder(&mut self) -> Result<Option<Bytes>> {
        let Source::Remainder(_, _, rest) = &mut self.source else {
            return Ok(None);
        };
        let bytes = rest.next().await?;
        match &bytes {
            Some(bytes) => self.remaining.start += bytes.len() as u64,
            None => self.remaining.end = self.remaining.start,
        }
        Ok(bytes)
    }

    /// Bytes that can be read now, if the position is behind the end of the file.
    async fn read_window(&mut self, range: &Range<u64>) -> Option<Result<Bytes>> {
        let Source::Fill(reader, _) = &self.source else {
            return None;
        };
        let window = reader.fill().window()?;
        if range.start < window.start() {
            return None;
        }
        let len = (range.end - range.start).min(self.piece) as usize;
        let read = window.read(range.start, len).filter(|_| !reader.is_lost());
        if let Some(bytes) = read {
            self.remaining.start += bytes.len() as u64;
            if let Some(leave) = &mut self.leave {
                leave.has_read(bytes.len());
            }
            return Some(Ok(bytes));
        }
        let id = reader.fill().id;
        let bytes = match Box::pin(self.leave()).await {
            Ok(true) => self.read_remainder().await,
            Ok(false) => Ok(None),
            Err(e) => Err(e),
        };
        let too_slow = || {
            let why = format!("cache fill {id}: the client is too slow");
            Error::explain(FILL_BROKEN, why).into_down()
        };
        Some(bytes.and_then(|bytes| bytes.ok_or_else(too_slow)))
    }

    fn body(&self) -> Option<&Arc<BodyFile>> {
        match &self.source {
            Source::Entry(entry) => entry.file(),
            Source::Fill(reader, _) => Some(&reader.fill().body),
            Source::Remainder(..) => None,
        }
    }

    /// The error of a file that cannot be read. The entry is evicted.
    fn damaged(&self, e: &io::Error) -> Box<Error> {
        if let Some(entry) = self.entry() {
            self.core.drop_damaged(entry.id, e);
        }
        let why = format!("reading cache entry {}: {e}", self.id());
        Error::explain(ErrorType::FileReadError, why).into_in()
    }

    async fn read_file(&mut self, range: Range<u64>) -> Result<Bytes> {
        let Some(body) = self.body().cloned() else {
            return Ok(Bytes::new());
        };
        let available = range.end - range.start;
        let len = if available <= self.piece + TAIL {
            available as usize
        } else {
            self.piece as usize
        };
        if self.reading.is_none() {
            let cached = match self.core.io.has_page_cache() {
                true => read_nowait(body.file(), range.start, len),
                false => None,
            };
            if let Some(bytes) = cached {
                self.remaining.start += bytes.len() as u64;
                return Ok(bytes.into());
            }
        }
        self.waited = true;
        let core = self.core;
        let reading = self.reading.get_or_insert_with(|| {
            core.io.runtime().spawn(async move {
                let _permit = core.io.read_permit().await;
                core.backend().read(body.file(), range.start, len).await
            })
        });
        let read = reading.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        self.reading = None;
        match read {
            Ok(bytes) => {
                self.remaining.start += bytes.len() as u64;
                Ok(bytes)
            }
            Err(e) => Err(self.damaged(&e)),
        }
    }

    /// The remaining bytes of a body that is in memory; `Some(None)` if none remain. `None`: the
    /// body is not in memory.
    pub(crate) fn next_in_memory(&mut self) -> Option<Option<Bytes>> {
        let Source::Entry(entry) = &self.source else {
            return None;
        };
        let ReadyBody::Memory(_) = &entry.body else {
            return None;
        };
        let Range { start, end } = self.remaining;
        self.remaining.start = end;
        Some((start < end).then(|| {
            let mut piece = Bytes::from_owner(KeptBody(entry.clone()));
            debug_assert!(end <= piece.len() as u64);
            piece.truncate(end as usize);
            piece.advance(start as usize);
            piece
        }))
    }

    /// [`read_body`](HandleHit::read_body), without the box in which the trait returns its
    /// future.
    async fn next_bytes(&mut self) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.next_in_memory() {
            return Ok(bytes);
        }
        let range = self.available().await?;
        if range.is_empty() {
            self.remaining.end = self.remaining.start;
            return Ok(None);
        }
        if matches!(self.source, Source::Remainder(..)) {
            return self.read_remainder().await;
        }
        if let Some(bytes) = self.read_window(&range).await {
            return bytes.map(Some);
        }
        self.read_file(range).await.map(Some)
    }

    /// [`read_body_part`](HandleHit::read_body_part), without that box.
    pub(crate) async fn next_part(&mut self) -> Result<Option<BodyPart>> {
        let body = match self.body() {
            Some(body) if self.sendfile => body.clone(),
            _ => return Ok(self.next_bytes().await?.map(BodyPart::Bytes)),
        };
        self.reading = None;
        let mut range = self.available().await?;
        if range.is_empty() {
            self.remaining.end = self.remaining.start;
            return Ok(None);
        }
        if matches!(self.source, Source::Remainder(..)) {
            return Ok(self.read_remainder().await?.map(BodyPart::Bytes));
        }
        if let Some(bytes) = self.read_window(&range).await {
            return bytes.map(|bytes| Some(BodyPart::Bytes(bytes)));
        }
        range.end = range.end.min(range.start + PART);
        if !body.is_resident(&self.core.io, &range) {
            self.waited = true;
            self.core.stats.cold_sends.inc();
            range.end = body
                .load(&self.core.io, &range)
                .await
                .map_err(|e| self.damaged(&e))?;
            // The next block, while this one is sent.
            let end = self.remaining.end.min(range.end + BLOCK);
            if self
                .entry()
                .is_some_and(|entry| entry.incomplete().is_none())
            {
                body.read_ahead(&self.core.io, &(range.end..end));
            }
        }
        self.remaining.start = range.end;
        Ok(Some(BodyPart::File {
            file: body.file().clone(),
            offset: range.start,
            len: range.end - range.start,
            resident: true,
        }))
    }
}

#[async_trait]
impl HandleHit for DiskHit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        self.next_bytes().await
    }

    async fn read_body_part(&mut self) -> Result<Option<BodyPart>> {
        self.next_part().await
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        if let Source::Fill(reader, _) = &self.source {
            reader.set_satisfied();
        }
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let body_len = self.body_len();
        let start = start as u64;
        let end = end.map_or(body_len, |end| end as u64).min(body_len);
        if start > end {
            return Error::e_explain(
                ErrorType::InternalError,
                format!("seek to {start}..{end} in a body of {body_len} bytes"),
            );
        }
        if let Some(entry) = self.blocks.as_mut().and_then(|blocks| blocks.unpark()) {
            self.source = Source::Entry(entry);
        }
        let moves = self.remaining != (start..end);
        let has_left = matches!(self.source, Source::Remainder(..))
            || self.leave.as_ref().is_some_and(|leave| leave.has_begun());
        if moves && has_left {
            let why = format!("cache fill {}: the rest is on its way", self.id());
            return Err(Error::explain(FILL_BROKEN, why).into_up());
        }
        self.remaining = start..end;
        self.reading = None;
        if let Source::Fill(reader, _) = &self.source {
            reader.set_position(start);
        }
        Ok(())
    }

    fn get_eviction_weight(&self) -> usize {
        let weight = self.entry().map_or(0, |entry| entry.meta.weight());
        usize::try_from(weight).unwrap_or(usize::MAX)
    }

    fn entry_id(&self) -> Option<CacheEntryId> {
        Some(CacheEntryId::new(self.id().generation))
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}
