//! Checkpoints of a fill: what has arrived of a large body, recorded as an entry in blocks.
//!
//! A process that is killed in the middle of a fill leaves the last one, and the next run goes on from
//! there. This process does not read them: while the fill is in flight, its readers follow it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cache::state::fill::Fill;
use crate::cache::state::{Core, NOT_WRITABLE};
use crate::cache::store::format::{BlockMap, BlockSums};
use crate::cache::write::commit::{entry_meta, Content};

/// Fewest bytes between two checkpoints.
const MIN_INTERVAL: u64 = match cfg!(test) {
    true => 2 << 20,
    false => 64 << 20,
};

/// Most checkpoints of a body for its length. Each writes the whole map of blocks.
const MAX_BY_LEN: u64 = 64;

/// Longest time between two checkpoints of a body that grows.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The checkpoints of one fill.
pub(crate) struct Checkpoints {
    /// Bytes between two checkpoints.
    interval: u64,
    /// Bytes that were written at the last one.
    recorded: u64,
    last: Instant,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl Checkpoints {
    /// Those of a body of this length.
    pub(crate) fn new(body_len: u64) -> Self {
        Checkpoints {
            interval: MIN_INTERVAL.max(body_len / MAX_BY_LEN),
            recorded: 0,
            last: Instant::now(),
            running: None,
        }
    }

    /// Begin a checkpoint if one is due after `written` bytes.
    ///
    /// # Errors
    /// The one before has failed: the kernel may have lost some of the body.
    pub(crate) async fn advance(
        &mut self,
        core: &'static Core,
        fill: &Arc<Fill>,
        sums: &BlockSums,
        written: u64,
    ) -> io::Result<()> {
        let more = written - self.recorded;
        let is_due = more >= self.interval
            || (more >= u64::from(sums.map().block_len) && self.last.elapsed() >= MAX_PAUSE);
        let (true, Some(body_len)) = (is_due && fill.is_resumable, fill.promised) else {
            return Ok(());
        };
        if self
            .running
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            return Ok(());
        }
        self.end().await?;
        // The end of the body follows soon.
        if written >= body_len || fill.is_invalidated() || core.is_banned_fill(fill) {
            return Ok(());
        }
        (self.recorded, self.last) = (written, Instant::now());
        let (fill, map) = (fill.clone(), sums.map().clone());
        let record = async move { record(core, &fill, body_len, map).await };
        self.running = Some(core.io.runtime().spawn(record));
        Ok(())
    }

    /// Wait until no checkpoint is being written.
    ///
    /// # Errors
    /// The last one has failed.
    pub(crate) async fn end(&mut self) -> io::Result<()> {
        match self.running.take() {
            Some(running) => running.await.map_err(io::Error::other)?,
            None => Ok(()),
        }
    }
}

async fn record(core: &'static Core, fill: &Fill, body_len: u64, map: BlockMap) -> io::Result<()> {
    if !core.is_writable() {
        return Err(io::Error::other(NOT_WRITABLE));
    }
    let meta = entry_meta(fill, body_len, Content::Blocks(map)).encode();
    let (backend, files) = (core.backend(), core.files(&fill.id));
    let file = fill.body.file();
    if fill.has_name() {
        backend.record(&files, file, meta).await?;
    } else {
        backend.set_len(file, body_len).await?;
        fill.set_named();
        backend.commit(&files, file, meta).await?;
    }
    if fill.is_invalidated() {
        // An invalidation meanwhile may have come before the files had their names.
        backend.remove(&files).await?;
    }
    Ok(())
}
