//! How many responses are stored at the same time, and how much of them waits for the
//! disk.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a miss waits before the origin is asked, where as many fills as may be are
/// in flight. Then it passes without being stored.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of all fills that may wait for the disk, in units.
const QUEUED: usize = 1 << 10;

/// The unit: 64 KiB, as much as Pingora reads at once.
const UNIT: usize = 64 << 10;

/// Turns to fetch and store.
#[derive(Debug)]
pub(crate) struct Turns {
    filling: Semaphore,
    queued: Semaphore,
}

/// A turn that lasts until this is dropped.
pub(crate) type Turn = SemaphorePermit<'static>;

/// A turn on its way to the fill: an extension of the metadata of a response that is
/// to be stored.
#[derive(Debug, Clone)]
pub(crate) struct Handed(Arc<Mutex<Option<Turn>>>);

impl Handed {
    pub(crate) fn new(turn: Turn) -> Handed {
        Handed(Arc::new(Mutex::new(Some(turn))))
    }

    pub(super) fn take(&self) -> Option<Turn> {
        self.0.lock().take()
    }
}

impl Turns {
    pub(super) fn new(max_fills: usize) -> Turns {
        Turns {
            filling: Semaphore::new(max_fills),
            queued: Semaphore::new(QUEUED),
        }
    }

    /// The turn to ask the origin for something that will be stored, and to store it.
    /// `None`: it took too long; ask all the same.
    pub(crate) async fn to_ask(&'static self) -> Option<Turn> {
        let turn = timeout(PATIENCE, self.filling.acquire()).await;
        turn.ok()?.ok()
    }

    /// The turn to store, if there is one.
    pub(super) fn to_fill(&'static self) -> Option<Turn> {
        self.filling.try_acquire().ok()
    }

    /// The turn to have so many bytes wait for the disk.
    pub(super) async fn to_queue(&'static self, bytes: usize) -> Option<Turn> {
        let units = bytes.div_ceil(UNIT).clamp(1, QUEUED) as u32;
        self.queued.acquire_many(units).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(max_fills: usize) -> &'static Turns {
        Box::leak(Box::new(Turns::new(max_fills)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_waits_for_a_fill_to_end() {
        let turns = turns(2);
        let fills = [turns.to_fill(), turns.to_fill()];
        assert!(fills.iter().all(Option::is_some));
        assert!(turns.to_fill().is_none());
        let mut asking = Box::pin(turns.to_ask());
        assert!(futures::poll!(&mut asking).is_pending());
        drop(fills);
        let handed = Handed::new(asking.await.expect("a turn"));
        let other = turns.to_fill();
        assert!(other.is_some() && turns.to_fill().is_none());
        drop(handed.take());
        assert!(handed.take().is_none());
        assert!(turns.to_fill().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let turns = turns(1);
        let _fill = turns.to_fill();
        let start = tokio::time::Instant::now();
        assert!(turns.to_ask().await.is_none());
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
