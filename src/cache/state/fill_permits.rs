//! Limits of the fills in flight, and of their bytes that wait for the disk.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// The time that a response waits for a permit if the most fills are in flight. After that it
/// is passed on without being stored.
const PATIENCE: Duration = match cfg!(test) {
    true => Duration::from_millis(200),
    false => Duration::from_secs(3),
};

/// Most units of all fills of a cache together that wait for the disk.
const QUEUED: usize = 1 << 10;

/// Bytes of a unit: the most that Pingora reads at once.
const UNIT: usize = 64 << 10;

/// Permits to store.
#[derive(Debug)]
pub(crate) struct FillPermits {
    filling: Semaphore,
    queued: Semaphore,
    /// Most units that wait for the disk.
    most_queued: usize,
}

/// A permit, which is returned when this is dropped.
pub(crate) type Permit = SemaphorePermit<'static>;

impl FillPermits {
    /// The permits of one of the `folders` of a cache. Each has its own, so that a disk that hangs
    /// holds up the fills of its folder alone.
    pub(crate) fn new(max_fills: usize, folders: usize) -> FillPermits {
        let queued = QUEUED / folders.clamp(1, QUEUED);
        FillPermits {
            filling: Semaphore::new(max_fills.div_ceil(folders.max(1))),
            queued: Semaphore::new(queued),
            most_queued: queued,
        }
    }

    /// Wait for the permit to store a response whose header has arrived: an origin that does
    /// not answer holds no permits. `None`: it took too long.
    pub(crate) async fn fill(&'static self) -> Option<Permit> {
        let turn = timeout(PATIENCE, self.filling.acquire()).await;
        turn.ok()?.ok()
    }

    /// Wait for the permit to let `bytes` wait for the disk.
    pub(crate) async fn queue(&'static self, bytes: usize) -> Option<Permit> {
        let units = bytes.div_ceil(UNIT).clamp(1, self.most_queued) as u32;
        self.queued.acquire_many(units).await.ok()
    }
}

#[cfg(test)]
impl FillPermits {
    /// True if all permits are free.
    pub(crate) fn are_free(&self, max_fills: usize) -> bool {
        self.filling.available_permits() == max_fills
            && self.queued.available_permits() == self.most_queued
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(max_fills: usize) -> &'static FillPermits {
        Box::leak(Box::new(FillPermits::new(max_fills, 1)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_stores_waits_for_a_fill_to_end() {
        let permits = permits(2);
        let first = permits.fill().await;
        let second = permits.fill().await;
        assert!(first.is_some() && second.is_some());
        let mut third = Box::pin(permits.fill());
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        assert!(third.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let permits = permits(1);
        let _fill = permits.fill().await;
        let start = tokio::time::Instant::now();
        assert!(permits.fill().await.is_none());
        assert!(start.elapsed() < 2 * PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_the_disk_is_bounded() {
        let permits = permits(1);
        let half = permits.queue(QUEUED / 2 * UNIT).await;
        let rest = permits.queue(QUEUED / 2 * UNIT - 1).await;
        let mut more = Box::pin(permits.queue(1));
        assert!(futures::poll!(&mut more).is_pending());
        drop(half);
        assert!(more.await.is_some());
        drop(rest);
        assert!(permits.queue(usize::MAX).await.is_some());
    }
}
