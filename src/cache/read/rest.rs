//! The rest of a body for a reader that leaves the others.
//!
//! A body without room on the disk passes its readers by a [window](crate::cache::state::window), and
//! those at different paces would hold each other up. A reader that is not the first one
//! leaves instead: it gets the rest by a request of its own to the origin.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::Result;
use tokio::time::Instant;

use crate::cache::state::window::REFILL;

/// The time that a reader is held up by slower ones, in sum, before it leaves.
pub(crate) const HELD_PATIENCE: Duration = match cfg!(test) {
    true => Duration::from_millis(100),
    false => Duration::from_secs(2),
};

/// A way to get the rest of a body from the origin.
#[async_trait]
pub(crate) trait Rest: Send + Sync {
    /// Ask for a range, whose end is `u64::MAX` if the length is not known, and wait for the
    /// response. If the future is dropped, the next call goes on with the same range.
    ///
    /// # Errors
    /// The origin does not answer with this range of the same version.
    async fn begin(&mut self, range: Range<u64>) -> Result<()>;

    /// The next bytes; `None`: these were all.
    ///
    /// # Errors
    /// The origin breaks off.
    async fn next(&mut self) -> Result<Option<Bytes>>;
}

/// A reader's way to leave.
pub(crate) struct Leave {
    rest: Box<dyn Rest>,
    /// Time left of [`HELD_PATIENCE`].
    patience: Duration,
    /// Since when the reader is held up. Kept here, because who reads may give up and come
    /// back.
    held_since: Option<Instant>,
    /// When the reader leaves if it has got nothing by then.
    first_by: Option<Instant>,
    asked: bool,
}

// === impl Leave ===

impl Leave {
    pub(crate) fn new(rest: Box<dyn Rest>) -> Leave {
        Leave {
            rest,
            patience: HELD_PATIENCE,
            held_since: None,
            first_by: None,
            asked: false,
        }
    }

    /// True if the origin has been asked.
    pub(crate) fn has_begun(&self) -> bool {
        self.asked
    }

    /// Leave if nothing can be read after so long.
    pub(crate) fn waits_at_most(&mut self, time: Duration) {
        self.first_by = Some(Instant::now() + time);
    }

    /// The instant at which the reader leaves if it still has got nothing.
    pub(crate) fn first_by(&self) -> Option<Instant> {
        self.first_by
    }

    /// Note that the reader is held up. Returns the instant at which it leaves.
    pub(crate) fn is_held(&mut self) -> Instant {
        *self.held_since.get_or_insert_with(Instant::now) + self.patience
    }

    /// Note that the reader is not held up any more.
    pub(crate) fn is_free(&mut self) {
        self.first_by = None;
        if let Some(since) = self.held_since.take() {
            self.patience = self.patience.saturating_sub(since.elapsed());
        }
    }

    /// Note that the reader has got bytes.
    pub(crate) fn has_read(&mut self, bytes: usize) {
        let again = HELD_PATIENCE.mul_f64(bytes as f64 / REFILL as f64);
        self.patience = HELD_PATIENCE.min(self.patience + again);
    }

    /// [`Rest::begin`]
    pub(crate) async fn begin(&mut self, range: Range<u64>) -> Result<()> {
        self.asked = true;
        self.rest.begin(range).await
    }

    pub(crate) fn into_rest(self) -> Box<dyn Rest> {
        self.rest
    }
}
