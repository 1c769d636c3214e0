//! A reader of a body in blocks, which has the missing ones fetched.

use std::ops::Range;
use std::sync::Arc;

use pingora_core::{Error, ErrorType, Result};

use crate::cache::read::remainder::{Remainder, FILL_BROKEN};
use crate::cache::state::open_entries::ReadyEntry;
use crate::cache::state::sparse_body::{BlocksWanted, Found, Run, RunState, SparseBody};

/// The error of a part that the origin does not have any more: it has another version, or nothing.
pub const OUTDATED: ErrorType = ErrorType::new("CacheEntryOutdated");

/// A source of parts of a body: requests to the origin.
pub(crate) trait PartSource: Send + Sync {
    /// A request for a part. Nothing is asked for yet.
    ///
    /// [`begin`](Remainder::begin) fails with [`OUTDATED`] if the origin has another version.
    fn request(&self) -> Box<dyn Remainder>;
}

/// The way in which a hit gets blocks that are not stored.
pub(crate) trait FetchBlocks: Send + Sync {
    /// Fetch the blocks of a run, on a task of their own.
    fn fetch(&self, body: &Arc<SparseBody>, run: Arc<Run>);

    /// A request for a part that is not to be stored.
    fn request(&self) -> Box<dyn Remainder>;

    /// Most bytes of missing blocks that a run has, unless a block is longer.
    fn max_run(&self) -> u64;
}

/// A reader of a body in blocks.
pub(crate) struct BlockReader {
    fetcher: Box<dyn FetchBlocks>,
    /// Position at which the origin broke off last.
    broken_at: Option<u64>,
    /// The entry, while a part of it comes past the cache.
    parked: Option<Arc<ReadyEntry>>,
    _wanted: BlocksWanted,
}

// === impl BlockReader ===

impl BlockReader {
    pub(crate) fn new(body: &SparseBody, fetcher: Box<dyn FetchBlocks>) -> Self {
        BlockReader {
            fetcher,
            broken_at: None,
            parked: None,
            _wanted: body.want(),
        }
    }

    /// Keep the entry while a part of it comes past the cache.
    pub(crate) fn park(&mut self, entry: Arc<ReadyEntry>) {
        self.parked = Some(entry);
    }

    /// The entry, for the next part.
    pub(crate) fn unpark(&mut self) -> Option<Arc<ReadyEntry>> {
        self.parked.take()
    }

    /// A request for a part that is not to be stored.
    pub(crate) fn request(&self) -> Box<dyn Remainder> {
        self.fetcher.request()
    }

    /// The end of what can be read at the start of `range`. Waits until there is something.
    /// `None`: there is no room for it. `reads_on`: the next blocks of the range are fetched
    /// meanwhile.
    ///
    /// # Errors
    /// The origin does not send it.
    pub(crate) async fn available(
        &mut self,
        body: &Arc<SparseBody>,
        range: Range<u64>,
        reads_on: bool,
    ) -> Result<Option<u64>> {
        let start = range.start;
        loop {
            let run = match body.find(&range) {
                Found::Stored(end) => {
                    if reads_on {
                        self.fetch_ahead(body, end..range.end);
                    }
                    return Ok(Some(end));
                }
                Found::Coming(run) => run,
                Found::Missing(missing) => match self.begin_run(body, missing) {
                    Some(run) => run,
                    // Another reader was faster.
                    None => continue,
                },
            };
            if reads_on {
                self.fetch_ahead(body, run.range().end..range.end);
            }
            let mut progress = run.progress();
            let more =
                progress.wait_for(|now| now.written > start || now.state != RunState::Writing);
            let now = match more.await {
                Ok(now) => now.clone(),
                Err(_) => continue,
            };
            if now.written > start {
                return Ok(Some(range.end.min(now.written)));
            }
            match now.state {
                // A request that made progress is repeated once from where it broke off.
                RunState::Failed(why)
                    if now.written == run.range().start || self.broken_at == Some(start) =>
                {
                    let why = format!("cache entry {}: {why}", body.id);
                    return Err(Error::explain(FILL_BROKEN, why).into_up());
                }
                RunState::Failed(_) => self.broken_at = Some(start),
                RunState::NoRoom => return Ok(None),
                RunState::Writing | RunState::Complete => {}
            }
        }
    }

    /// Begin to fetch missing blocks. `None`: another reader has begun to.
    fn begin_run(&self, body: &Arc<SparseBody>, missing: Range<u64>) -> Option<Arc<Run>> {
        let end = missing
            .end
            .min(missing.start.saturating_add(self.fetcher.max_run()));
        // Runs end where a block ends.
        let (_, last) = body.block_at(end - 1);
        let end = match last.end > end && last.start > missing.start {
            true => last.start,
            false => last.end,
        };
        let run = body.begin_run(missing.start..end)?;
        self.fetcher.fetch(body, run.clone());
        Some(run)
    }

    /// Begin to fetch the start of a range, if it is missing.
    fn fetch_ahead(&self, body: &Arc<SparseBody>, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Found::Missing(missing) = body.find(&range) {
            if !body.has_failed_at(missing.start) {
                self.begin_run(body, missing);
            }
        }
    }
}
