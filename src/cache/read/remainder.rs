//! The remainder of a body, for a reader that leaves the others.
//!
//! A body that has no space on the disk passes its readers through a
//! [window](crate::cache::state::window), where readers of different speed hold each other up.
//! A reader other than the first one leaves instead: it gets the remainder by a request of its
//! own to the origin.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::{ErrorType, Result};
use tokio::time::Instant;

use crate::cache::state::window::{FIRST_PATIENCE, REFILL};

/// The error of a reader whose fill broke off or is too short.
pub const FILL_BROKEN: ErrorType = ErrorType::new("CacheFillBroken");

/// A source of the remainder of a body: the origin.
#[async_trait]
pub(crate) trait Remainder: Send + Sync {
    /// Ask for a range, whose end is `u64::MAX` if the length is not known, and wait for the
    /// response. If the future is dropped, the next call continues with the same range.
    ///
    /// # Errors
    /// The origin does not answer with this range of the same version.
    async fn begin(&mut self, range: Range<u64>) -> Result<()>;

    /// The next bytes; `None`: the end of the range. Nothing is lost if the future is dropped before it
    /// is ready.
    ///
    /// # Errors
    /// The origin breaks off.
    async fn next(&mut self) -> Result<Option<Bytes>>;
}

/// A reader's means to leave.
pub(crate) struct Leave {
    remainder: Box<dyn Remainder>,
    /// Time left of [`FIRST_PATIENCE`].
    patience: Duration,
    /// Start of the time in which the reader is held up. Kept here, because the reading future
    /// may be dropped and made again.
    held_since: Option<Instant>,
    /// Instant at which the reader leaves if it has received nothing.
    first_by: Option<Instant>,
    asked: bool,
}

// === impl Leave ===

impl Leave {
    pub(crate) fn new(remainder: Box<dyn Remainder>) -> Leave {
        Leave {
            remainder,
            patience: FIRST_PATIENCE,
            held_since: None,
            first_by: None,
            asked: false,
        }
    }

    /// True if the origin has been asked.
    pub(crate) fn has_begun(&self) -> bool {
        self.asked
    }

    /// Leave if nothing can be read within `time`.
    pub(crate) fn waits_at_most(&mut self, time: Duration) {
        self.first_by = Some(Instant::now() + time);
    }

    /// Instant at which the reader leaves if it has received nothing.
    pub(crate) fn first_by(&self) -> Option<Instant> {
        self.first_by
    }

    /// Note that the reader is held up. Returns the instant at which it leaves.
    pub(crate) fn is_held(&mut self) -> Instant {
        *self.held_since.get_or_insert_with(Instant::now) + self.patience
    }

    /// Note that the reader is no longer held up.
    pub(crate) fn is_free(&mut self) {
        self.first_by = None;
        if let Some(since) = self.held_since.take() {
            self.patience = self.patience.saturating_sub(since.elapsed());
        }
    }

    /// Note that the reader has received bytes.
    pub(crate) fn has_read(&mut self, bytes: usize) {
        let again = FIRST_PATIENCE.mul_f64(bytes as f64 / REFILL as f64);
        self.patience = FIRST_PATIENCE.min(self.patience + again);
    }

    /// [`Remainder::begin`]
    pub(crate) async fn begin(&mut self, range: Range<u64>) -> Result<()> {
        self.asked = true;
        self.remainder.begin(range).await
    }

    pub(crate) fn into_remainder(self) -> Box<dyn Remainder> {
        self.remainder
    }
}
