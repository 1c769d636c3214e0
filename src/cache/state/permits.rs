//! Limits of the responses that are stored at the same time, and of their bytes that wait
//! for the disk.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// The time that a response to be stored waits, where as many fills as may be are in
/// flight. Then it passes without being stored.
const PATIENCE: Duration = match cfg!(test) {
    true => Duration::from_millis(200),
    false => Duration::from_secs(3),
};

/// Units of all fills together that may wait for the disk.
const QUEUED: usize = 1 << 10;

/// Bytes of a unit: as many as Pingora reads at once.
const UNIT: usize = 64 << 10;

/// Turns to store.
#[derive(Debug)]
pub(crate) struct Turns {
    filling: Semaphore,
    queued: Semaphore,
}

/// A turn that lasts until this is dropped.
pub(crate) type Turn = SemaphorePermit<'static>;

impl Turns {
    pub(crate) fn new(max_fills: usize) -> Turns {
        Turns {
            filling: Semaphore::new(max_fills),
            queued: Semaphore::new(QUEUED),
        }
    }

    /// The turn to store a response whose header has come: an origin that does not
    /// answer takes no turns. `None`: it took too long.
    pub(crate) async fn to_fill(&'static self) -> Option<Turn> {
        let turn = timeout(PATIENCE, self.filling.acquire()).await;
        turn.ok()?.ok()
    }

    /// The turn to have so many bytes wait for the disk.
    pub(crate) async fn to_queue(&'static self, bytes: usize) -> Option<Turn> {
        let units = bytes.div_ceil(UNIT).clamp(1, QUEUED) as u32;
        self.queued.acquire_many(units).await.ok()
    }
}

#[cfg(test)]
impl Turns {
    /// True if all turns are free.
    pub(crate) fn are_free(&self, max_fills: usize) -> bool {
        self.filling.available_permits() == max_fills && self.queued.available_permits() == QUEUED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(max_fills: usize) -> &'static Turns {
        Box::leak(Box::new(Turns::new(max_fills)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_stores_waits_for_a_fill_to_end() {
        let turns = turns(2);
        let first = turns.to_fill().await;
        let second = turns.to_fill().await;
        assert!(first.is_some() && second.is_some());
        let mut third = Box::pin(turns.to_fill());
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        assert!(third.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let turns = turns(1);
        let _fill = turns.to_fill().await;
        let start = tokio::time::Instant::now();
        assert!(turns.to_fill().await.is_none());
        assert!(start.elapsed() < 2 * PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_the_disk_is_bounded() {
        let turns = turns(1);
        let half = turns.to_queue(QUEUED / 2 * UNIT).await;
        let rest = turns.to_queue(QUEUED / 2 * UNIT - 1).await;
        let mut more = Box::pin(turns.to_queue(1));
        assert!(futures::poll!(&mut more).is_pending());
        drop(half);
        assert!(more.await.is_some());
        drop(rest);
        assert!(turns.to_queue(usize::MAX).await.is_some());
    }
}
