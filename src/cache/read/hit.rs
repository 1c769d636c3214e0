//! An entry being read.

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

use crate::cache::read::rest::{Leave, Rest};
use crate::cache::state::body_file::{read_now, BodyFile};
use crate::cache::state::open_entries::{HotBody, HotEntry};
use crate::cache::state::readers::Reader;
use crate::cache::state::window::Window;
use crate::cache::write::fill::{Progress, State};
use crate::cache::{DiskCache, EntryId, Prepared};

/// Longest piece of a body that is handed out as bytes. A slow client holds one
/// for as long as it reads.
const PIECE: u64 = 32 * 1024;

/// And for a client that no file can be sent to: with its header of 5 bytes, its
/// type and its tag, the TLS record (RFC 8446 §5.2) still fits in 16 KiB. To one of
/// 16 KiB of content the allocator would give 20.
const RECORD: u64 = 16 * 1024 - 64;

/// Up to so many bytes more are the last piece, not one of their own.
const REST: u64 = 1024;

/// Longest range of a file that is handed out at once: what one `sendfile(2)`
/// takes, and what is checked to be in the page cache.
const PART: u64 = 2 << 20;

/// The error of a reader whose fill broke off, or is too short.
pub const FILL_BROKEN: ErrorType = ErrorType::new("CacheFillBroken");

/// A hit. What it reads was opened at lookup, and stays readable whatever
/// happens to the entry.
pub struct DiskHit {
    cache: &'static DiskCache,
    source: Source,
    /// What is left to be read. For a fill of unknown length the end is
    /// `u64::MAX`.
    remaining: Range<u64>,
    sendfile: bool,
    /// Longest piece that is read into memory.
    piece: u64,
    /// Whether the disk was waited for.
    waited: bool,
    /// A read from the disk. Kept here, so that a caller who gives up waiting
    /// and comes back finds it.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// The way to leave the other readers of a fill.
    leave: Option<Box<Leave>>,
}

/// How far a fill has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filling {
    /// Bytes that can be read.
    pub written: u64,
    /// How many there will be, if that is known.
    pub promised: Option<u64>,
    /// The time since the header had come.
    pub age: Duration,
}

enum Source {
    Entry(Arc<HotEntry>),
    Fill(Reader, watch::Receiver<Progress>),
    /// The rest of a body after leaving its fill, with the body's length if it is known.
    Rest(EntryId, Option<u64>, Box<dyn Rest>),
}

/// The body of an entry that is kept in memory.
///
/// It counts as a reference to the entry, which the hit has just counted. The body's
/// own count is elsewhere in memory, and mostly in no cache of the processor: to wait
/// for it takes longer than the allocation that this costs.
struct KeptBody(Arc<HotEntry>);

impl AsRef<[u8]> for KeptBody {
    fn as_ref(&self) -> &[u8] {
        match &self.0.body {
            HotBody::Memory(body) => body,
            HotBody::File(_) => &[],
        }
    }
}

impl DiskHit {
    pub(crate) fn of_entry(
        cache: &'static DiskCache,
        entry: Arc<HotEntry>,
        sendfile: bool,
    ) -> Self {
        DiskHit {
            cache,
            remaining: 0..entry.meta.body_len,
            sendfile,
            piece: PIECE,
            source: Source::Entry(entry),
            waited: false,
            reading: None,
            leave: None,
        }
    }

    pub(crate) fn of_fill(cache: &'static DiskCache, reader: Reader, sendfile: bool) -> Self {
        let progress = reader.fill().progress();
        DiskHit {
            cache,
            remaining: 0..reader.fill().promised.unwrap_or(u64::MAX),
            sendfile,
            piece: PIECE,
            source: Source::Fill(reader, progress),
            waited: false,
            reading: None,
            leave: None,
        }
    }

    /// How far the fill is that this hit follows; `None`: it is complete.
    pub fn filling(&self) -> Option<Filling> {
        match &self.source {
            Source::Fill(reader, progress) => Some(Filling {
                written: progress.borrow().written,
                promised: reader.fill().promised,
                age: reader.fill().begun.elapsed(),
            }),
            Source::Entry(_) | Source::Rest(..) => None,
        }
    }

    /// Get the rest of the body by `rest`, if this follows a fill that has no room on the disk,
    /// and other readers hold it up, or are held up by it.
    pub(crate) fn leave_by(&mut self, rest: Box<dyn Rest>) {
        if let Source::Fill(reader, _) = &self.source {
            if !reader.leads() {
                reader.set_can_leave(true);
                self.leave = Some(Box::new(Leave::new(rest)));
            }
        }
    }

    /// Leave, if that is possible, when the fill has not come to the first byte after `time`.
    pub(crate) fn waits_at_most(&mut self, time: Duration) {
        if let Some(leave) = &mut self.leave {
            leave.waits_at_most(time);
        }
    }

    /// How long the body is, if all of it is there.
    pub fn complete_len(&self) -> Option<u64> {
        self.entry().map(|entry| entry.meta.body_len)
    }

    /// Pingora's metadata of a complete entry.
    pub(crate) fn meta(&self) -> Option<&CacheMeta> {
        self.entry()?.cache_meta().ok()
    }

    /// What hits of this entry are answered with, if that was [set](Self::prepare).
    pub(crate) fn prepared(&self) -> Option<&Prepared> {
        self.entry()?.prepared()
    }

    /// Set it for as long as the entry is in use and its metadata is what it is. What
    /// was set first stays. Nothing is set for a fill that is followed.
    ///
    /// It counts as memory no more than the entry's metadata does, and should not
    /// take more.
    pub(crate) fn prepare(&self, prepared: Prepared) {
        if let Some(entry) = self.entry() {
            entry.prepare(prepared);
        }
    }

    /// Remove this entry: it can not be sent. Not what has taken its place since.
    pub fn drop_entry(&self, why: &str) {
        self.cache
            .drop_damaged(self.id(), &crate::cache::store::format::invalid(why));
    }

    /// Have the body read into memory: for a client that no file can be sent to.
    pub(crate) fn copy_body(&mut self) {
        self.sendfile = false;
        self.piece = RECORD;
    }

    /// Whether the disk was waited for, so that it is later than it was.
    pub(crate) fn has_waited(&self) -> bool {
        self.waited
    }

    /// Whether anything remains to be read, as far as is known.
    pub(crate) fn has_more(&self) -> bool {
        !self.remaining.is_empty()
    }

    /// The fill that this follows.
    #[cfg(test)]
    pub(crate) fn fill(&self) -> Option<&Arc<crate::cache::write::fill::Fill>> {
        match &self.source {
            Source::Fill(reader, _) => Some(reader.fill()),
            Source::Entry(_) | Source::Rest(..) => None,
        }
    }

    fn entry(&self) -> Option<&HotEntry> {
        match &self.source {
            Source::Entry(entry) => Some(entry),
            Source::Fill(..) | Source::Rest(..) => None,
        }
    }

    fn id(&self) -> EntryId {
        match &self.source {
            Source::Entry(entry) => entry.id,
            Source::Fill(reader, _) => reader.fill().id,
            Source::Rest(id, ..) => *id,
        }
    }

    fn body_len(&self) -> u64 {
        match &self.source {
            Source::Entry(entry) => entry.meta.body_len,
            Source::Fill(reader, _) => reader.fill().promised.unwrap_or(u64::MAX),
            Source::Rest(_, promised, _) => promised.unwrap_or(u64::MAX),
        }
    }

    /// What can be read now of what remains; waits for a fill that has not come
    /// that far. Empty at the end.
    async fn available(&mut self) -> Result<Range<u64>> {
        if self.remaining.is_empty() || !matches!(self.source, Source::Fill(..)) {
            return Ok(self.remaining.clone());
        }
        let start = self.remaining.start;
        // Boxed, because only fills come here, and every hit would have room for it.
        let Some(now) = Box::pin(self.progress()).await? else {
            // All that remains comes from the origin.
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

    /// Wait until a fill has come further than this reader. `None`: the reader has left,
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
                reader.is_at(start);
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

    /// Get the rest from the origin. `false`: the origin does not have it, and this
    /// reader stays with the others.
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
                self.source = Source::Rest(fill.id, fill.promised, leave.into_rest());
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

    /// The next bytes of those that remain, from the origin.
    async fn read_rest(&mut self) -> Result<Option<Bytes>> {
        let Source::Rest(_, _, rest) = &mut self.source else {
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
            Ok(true) => self.read_rest().await,
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
            Source::Entry(entry) => match &entry.body {
                HotBody::Memory(_) => None,
                HotBody::File(body) => Some(body),
            },
            Source::Fill(reader, _) => Some(&reader.fill().body),
            Source::Rest(..) => None,
        }
    }

    /// The file does not yield what it should: this transfer breaks, and the
    /// entry goes.
    fn damaged(&self, e: &io::Error) -> Box<Error> {
        if let Some(entry) = self.entry() {
            self.cache.drop_damaged(entry.id, e);
        }
        let why = format!("reading cache entry {}: {e}", self.id());
        Error::explain(ErrorType::FileReadError, why).into_in()
    }

    async fn read_file(&mut self, range: Range<u64>) -> Result<Bytes> {
        let Some(body) = self.body().cloned() else {
            return Ok(Bytes::new());
        };
        let available = range.end - range.start;
        let len = if available <= self.piece + REST {
            available as usize
        } else {
            self.piece as usize
        };
        if self.reading.is_none() {
            if let Some(bytes) = read_now(body.file(), range.start, len) {
                self.remaining.start += bytes.len() as u64;
                return Ok(bytes.into());
            }
        }
        self.waited = true;
        let cache = self.cache;
        let reading = self.reading.get_or_insert_with(|| {
            cache.runtime().spawn(async move {
                let _permit = cache.load_permit().await;
                cache.backend().read(body.file(), range.start, len).await
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
        let HotBody::Memory(_) = &entry.body else {
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

    /// [`read_body`](HandleHit::read_body), without the box that a trait's method
    /// returns its future in.
    async fn next_bytes(&mut self) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.next_in_memory() {
            return Ok(bytes);
        }
        let range = self.available().await?;
        if range.is_empty() {
            self.remaining.end = self.remaining.start;
            return Ok(None);
        }
        if matches!(self.source, Source::Rest(..)) {
            return self.read_rest().await;
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
        if matches!(self.source, Source::Rest(..)) {
            return Ok(self.read_rest().await?.map(BodyPart::Bytes));
        }
        if let Some(bytes) = self.read_window(&range).await {
            return bytes.map(|bytes| Some(BodyPart::Bytes(bytes)));
        }
        range.end = range.end.min(range.start + PART);
        if !body.is_resident(&range) {
            self.waited = true;
            self.cache.stats().cold_sends.inc();
            range.end = body
                .load(self.cache, &range)
                .await
                .map_err(|e| self.damaged(&e))?;
            // The next block, while this one is sent.
            let end = self
                .remaining
                .end
                .min(range.end + crate::cache::state::body_file::BLOCK);
            if matches!(self.source, Source::Entry(_)) {
                body.read_ahead(self.cache, &(range.end..end));
            }
        }
        self.remaining.start = range.end;
        Ok(Some(BodyPart::File {
            file: body.file().clone(),
            offset: range.start,
            len: range.end - range.start,
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
            reader.is_satisfied();
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
        let moves = self.remaining != (start..end);
        let has_left = matches!(self.source, Source::Rest(..))
            || self.leave.as_ref().is_some_and(|leave| leave.has_begun());
        if moves && has_left {
            let why = format!("cache fill {}: the rest is on its way", self.id());
            return Err(Error::explain(FILL_BROKEN, why).into_up());
        }
        self.remaining = start..end;
        self.reading = None;
        if let Source::Fill(reader, _) = &self.source {
            reader.is_at(start);
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
