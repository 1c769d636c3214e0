//! The limit of requests that wait for the origin or pass its response on.
//!
//! Such a request holds up to 0.3 MB of the response that the client has not taken yet. A request
//! beyond the limit has not asked the origin, and holds no more than an idle connection. A response
//! of known length that is being stored has another limit, and gives its turn back. One of unknown
//! length keeps its turn: it may outgrow the cache and pass.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Turns to ask the origin, given in the order of the requests.
#[derive(Debug)]
pub struct OriginTurns {
    limit: usize,
    free: Arc<Semaphore>,
    patience: Duration,
    waiting: AtomicUsize,
    refused: AtomicU64,
}

/// A turn that lasts until this is dropped.
pub(super) type OriginTurn = OwnedSemaphorePermit;

/// A waiting request. It is counted until this is dropped.
struct Waiting<'a>(&'a AtomicUsize);

// === impl OriginTurns ===

impl OriginTurns {
    /// At most `limit` turns at a time. A request waits for `patience`.
    pub(super) fn new(limit: usize, patience: Duration) -> OriginTurns {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        OriginTurns {
            limit,
            free: Arc::new(Semaphore::new(limit)),
            patience,
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Wait for a turn. `at_once`: take a free one or none. `None` if there was none.
    pub(super) async fn take(&self, at_once: bool) -> Option<OriginTurn> {
        let turn = match self.free.clone().try_acquire_owned() {
            Ok(turn) => Some(turn),
            Err(_) if at_once => None,
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                let turn = timeout(self.patience, self.free.clone().acquire_owned());
                turn.await.ok().and_then(Result::ok)
            }
        };
        if turn.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        turn
    }

    /// True if more than half of the turns are taken.
    pub(super) fn are_scarce(&self) -> bool {
        self.taken() > self.limit.div_ceil(2)
    }

    /// The number of turns that are taken.
    pub fn taken(&self) -> usize {
        self.limit.saturating_sub(self.free.available_permits())
    }

    /// The number of requests that wait for a turn.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The number of requests so far that got no turn in time.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

// === impl Waiting ===

impl Waiting<'_> {
    fn new(waiting: &AtomicUsize) -> Waiting<'_> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn turns_are_given_in_order() {
        let turns = OriginTurns::new(1, PATIENCE);
        let first = turns.take(false).await;
        assert!(first.is_some());
        let mut second = Box::pin(turns.take(false));
        let mut third = Box::pin(turns.take(false));
        assert!(futures::poll!(&mut second).is_pending());
        assert!(futures::poll!(&mut third).is_pending());
        assert_eq!((turns.taken(), turns.waiting()), (1, 2));
        drop(first);
        assert!(turns.take(true).await.is_none(), "others wait");
        assert!(futures::poll!(&mut third).is_pending());
        let second = second.await;
        assert!(second.is_some());
        // A request that is gone does not keep its place.
        drop(third);
        assert_eq!((turns.taken(), turns.waiting()), (1, 0));
        drop(second);
        assert_eq!(turns.taken(), 0);
    }

    #[tokio::test]
    async fn the_second_half_of_the_turns_is_scarce() {
        for (limit, plenty) in [(1, 1), (2, 1), (3, 2), (4, 2), (1024, 512)] {
            let turns = OriginTurns::new(limit, PATIENCE);
            let mut taken = Vec::new();
            for turn in 1..=limit {
                taken.push(turns.take(true).await.expect("a turn"));
                assert_eq!(turns.are_scarce(), turn > plenty, "{turn} of {limit}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let turns = OriginTurns::new(1, PATIENCE);
        let _turn = turns.take(false).await;
        assert!(turns.take(false).await.is_none());
        assert_eq!((turns.refused(), turns.waiting()), (1, 0));
    }
}
