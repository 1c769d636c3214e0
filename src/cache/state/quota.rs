//! The limit on disk space, and the shares of it.
//!
//! The index knows the space of the entries. Every other share is a [`Reservation`]: that of
//! a fill, of evicted entries whose files are not removed yet, and of files that are removed
//! but still open, whose blocks the file system frees at the last close(2). A reservation is
//! granted in one step, against the sum of all shares.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{MutexGuard, Notify};
use tokio::time::Instant;

use crate::cache::store::entry_id::EntryId;
use crate::cache::store::index::{Index, Indexed, Inserted};

/// Most bytes by which files about to be removed may exceed the limit, so that small fills
/// do not wait for unlink(2).
const MAX_SLACK: u64 = 16 << 20;

/// The slack is at most one in this many bytes of the limit.
const SLACK_SHARE: u64 = 64;

/// Most bytes by which the reservation of a fill grows at a time.
const STEP: u64 = 4 << 20;

/// The limit, and the shares of it that are not entries.
#[derive(Debug)]
pub(crate) struct Quota {
    max: u64,
    /// Bytes that the whole cache could take when the disk was last seen full; `u64::MAX`:
    /// the disk is not known to be full.
    disk: AtomicU64,
    ledger: Mutex<Ledger>,
    /// Notified when a reservation is released.
    freed: Notify,
    /// Held by the fill that evicts.
    evicting: tokio::sync::Mutex<()>,
    /// End of a pause in which nothing is evicted for a full disk.
    paused_until: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Ledger {
    /// Sum of all reservations.
    reserved: u64,
    /// Reservations of files that are about to be removed.
    removing: u64,
    /// Reservations of files that are removed but still read.
    unlinked: u64,
    /// Bytes that the fills in flight will take in all. This much fits even without evicting
    /// anything else, so every fill can complete.
    promised: u64,
}

/// Bytes that are, or will be, on the disk and belong to no entry. Dropping this releases
/// them.
#[derive(Debug)]
pub struct Reservation {
    quota: Arc<Quota>,
    bytes: u64,
    is_removing: bool,
    is_unlinked: bool,
    promised: u64,
    meta_len: u64,
}

// === impl Quota ===

impl Quota {
    pub(crate) fn new(max: u64) -> Arc<Quota> {
        Arc::new(Quota {
            max,
            disk: AtomicU64::new(u64::MAX),
            ledger: Mutex::default(),
            freed: Notify::new(),
            evicting: tokio::sync::Mutex::new(()),
            paused_until: Mutex::default(),
        })
    }

    /// The configured limit, or the capacity of a full disk if that is less.
    fn limit(&self) -> u64 {
        self.max.min(self.disk.load(Ordering::Relaxed))
    }

    /// Most bytes of a step in which a reservation grows: large enough to be rare, small in a
    /// small cache.
    pub(crate) fn step(&self) -> u64 {
        STEP.min(self.max / SLACK_SHARE)
    }

    /// Reserve `bytes` if they fit into the limit with everything else. `entries` is the
    /// space of the entries.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        entries: impl Fn() -> u64,
        bytes: u64,
    ) -> Option<Reservation> {
        let limit = self.limit();
        let mut ledger = self.ledger.lock();
        let slack = ledger.removing.min(MAX_SLACK).min(limit / SLACK_SHARE);
        let taken = entries() + ledger.reserved - slack;
        if taken.saturating_add(bytes) > limit {
            return None;
        }
        ledger.reserved += bytes;
        Some(self.reservation(bytes))
    }

    fn reservation(self: &Arc<Self>, bytes: u64) -> Reservation {
        Reservation {
            quota: self.clone(),
            bytes,
            is_removing: false,
            is_unlinked: false,
            promised: 0,
            meta_len: 0,
        }
    }

    /// An empty reservation for a fill that will take `bytes` in all, of which the metadata
    /// takes `meta_len`. `None`: they will not fit.
    pub(crate) fn promise(self: &Arc<Self>, bytes: u64, meta_len: u64) -> Option<Reservation> {
        let mut reservation = self.reservation(0);
        reservation.meta_len = meta_len;
        reservation.promise(bytes).then_some(reservation)
    }

    /// Bytes of all entries and reservations.
    pub(crate) fn taken(&self, index: &Index) -> u64 {
        let ledger = self.ledger.lock();
        index.bytes() + ledger.reserved
    }

    /// True if `bytes` more do not fit even after all files to be removed are gone.
    pub(crate) fn lacks(&self, index: &Index, bytes: u64) -> bool {
        let ledger = self.ledger.lock();
        let staying = index.bytes() + ledger.reserved - ledger.removing;
        staying.saturating_add(bytes) > self.limit()
    }

    /// True if `bytes` more do not fit even without a single entry.
    pub(crate) fn never_fits(&self, bytes: u64) -> bool {
        let ledger = self.ledger.lock();
        let staying = ledger.reserved - ledger.removing;
        staying.saturating_add(bytes) > self.limit()
    }

    /// Remove an entry from the index. The reservation is that of its files, which have to
    /// be removed.
    pub(crate) fn evict(self: &Arc<Self>, index: &Index, id: &EntryId) -> Option<Reservation> {
        let mut ledger = self.ledger.lock();
        let entry = index.remove(id)?;
        Some(self.removing(&mut ledger, entry.weight))
    }

    /// Insert an entry into the index. The reservation is that of the files of an entry that
    /// it replaces, which have to be removed.
    pub(crate) fn insert(
        self: &Arc<Self>,
        index: &Index,
        entry: Indexed,
    ) -> (Inserted, Option<Reservation>) {
        let mut ledger = self.ledger.lock();
        let before = index.get(&entry.id.hash).map_or(0, |before| before.weight);
        let inserted = index.insert(entry);
        let replaced = matches!(inserted, Inserted::Replaced(_));
        let removing = replaced.then(|| self.removing(&mut ledger, before));
        (inserted, removing)
    }

    fn removing(self: &Arc<Self>, ledger: &mut Ledger, bytes: u64) -> Reservation {
        ledger.reserved += bytes;
        ledger.removing += bytes;
        let mut reservation = self.reservation(bytes);
        reservation.is_removing = true;
        reservation
    }

    /// Wake the tasks that wait for space: there may be some now.
    pub(crate) fn notify(&self) {
        self.freed.notify_waiters();
    }

    /// Notified when a reservation is released.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Wait for the turn to evict.
    pub(crate) async fn evicting(&self) -> MutexGuard<'_, ()> {
        self.evicting.lock().await
    }

    /// Bytes of files that are about to be removed, and of those that are removed but still open, at
    /// one moment.
    pub(crate) fn leaving_bytes(&self) -> (u64, u64) {
        let ledger = self.ledger.lock();
        (ledger.removing, ledger.unlinked)
    }

    /// Bytes of files that are removed but still open.
    pub(crate) fn unlinked_bytes(&self) -> u64 {
        self.ledger.lock().unlinked
    }

    /// True if the disk was full when it was last seen.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk.load(Ordering::Relaxed) != u64::MAX
    }

    /// Note that the disk is full with what the cache takes now.
    pub(crate) fn note_full_disk(&self, index: &Index) {
        self.disk.store(self.taken(index), Ordering::Relaxed);
    }

    /// Note how many bytes the disk has left, of which `min_free` stay free.
    pub(crate) fn note_free_disk(&self, index: &Index, free: u64, min_free: u64) {
        let all = self.taken(index).saturating_add(free);
        let capacity = all.saturating_sub(min_free);
        let capacity = if capacity < self.max {
            capacity
        } else {
            u64::MAX
        };
        self.disk.store(capacity, Ordering::Relaxed);
    }

    /// Evict nothing for a full disk before `until`.
    pub(crate) fn pause(&self, until: Instant) {
        *self.paused_until.lock() = Some(until);
    }

    /// True until the end of a [`pause`](Self::pause).
    pub(crate) fn is_paused(&self) -> bool {
        let until = *self.paused_until.lock();
        until.is_some_and(|until| Instant::now() < until)
    }
}

// === impl Reservation ===

impl Reservation {
    /// Bytes that are reserved so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that the fill will take in all.
    pub(crate) fn promised(&self) -> u64 {
        self.promised
    }

    /// Bytes of the reservation that the metadata takes.
    pub(crate) fn meta_len(&self) -> u64 {
        self.meta_len
    }

    pub(crate) fn merge(&mut self, mut other: Reservation) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Note that the files are removed but still open, so that their bytes stay taken.
    pub(crate) fn set_unlinked(&mut self) {
        self.change(false, true);
    }

    /// Note that the files will be gone soon: they are about to be removed, or are removed
    /// and about to be closed.
    pub(crate) fn set_removing(&mut self) {
        self.change(true, false);
    }

    fn change(&mut self, removing: bool, unlinked: bool) {
        {
            let mut ledger = self.quota.ledger.lock();
            if std::mem::replace(&mut self.is_removing, removing) {
                ledger.removing -= self.bytes;
            }
            if std::mem::replace(&mut self.is_unlinked, unlinked) {
                ledger.unlinked -= self.bytes;
            }
            ledger.promised -= std::mem::take(&mut self.promised);
            if removing {
                ledger.removing += self.bytes;
            }
            if unlinked {
                ledger.unlinked += self.bytes;
            }
        }
        self.quota.notify();
    }

    /// Note that the reservation will grow to `bytes`; `false`: they will not fit.
    pub(crate) fn promise(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.promised);
        let mut ledger = self.quota.ledger.lock();
        let taken = ledger.promised.saturating_add(ledger.unlinked);
        if taken.saturating_add(more) > self.quota.limit() {
            return false;
        }
        ledger.promised += more;
        self.promised += more;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes == 0 && self.promised == 0 {
            return;
        }
        {
            let mut ledger = self.quota.ledger.lock();
            ledger.reserved -= self.bytes;
            ledger.promised -= self.promised;
            if self.is_removing {
                ledger.removing -= self.bytes;
            }
            if self.is_unlinked {
                ledger.unlinked -= self.bytes;
            }
        }
        self.quota.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u8, weight: u64) -> Indexed {
        Indexed {
            id: EntryId {
                hash: [key; 16],
                generation: 1,
            },
            weight,
            used: 0,
        }
    }

    #[test]
    fn nothing_is_granted_beyond_the_limit() {
        let quota = Quota::new(6400);
        let index = Index::default();
        let reserve = |bytes| quota.reserve(|| index.bytes(), bytes);
        assert_eq!(quota.insert(&index, entry(1, 3000)).0, Inserted::New);
        let first = reserve(3000).expect("room");
        assert!(reserve(401).is_none());
        drop(reserve(400).expect("room"));

        // An entry that leaves counts until its file is gone, except for the slack.
        let mut gone = quota.evict(&index, &entry(1, 0).id).expect("an entry");
        assert!(!quota.lacks(&index, 3400));
        assert!(reserve(501).is_none());
        drop(reserve(500).expect("the slack of 100"));
        gone.set_unlinked();
        let unlinked = gone;
        assert!(quota.lacks(&index, 3400), "somebody reads it");
        assert!(quota.never_fits(401) && !quota.never_fits(400));
        assert!(reserve(401).is_none(), "nothing is going any more");
        drop(unlinked);
        drop(reserve(3400).expect("room"));
        drop(first);
        assert!(reserve(6401).is_none());
        assert!(reserve(6400).is_some());
    }

    #[test]
    fn what_is_replaced_counts_until_it_is_gone() {
        let quota = Quota::new(1000);
        let index = Index::default();
        quota.insert(&index, entry(1, 300));
        let mut newer = entry(1, 100);
        newer.id.generation = 2;
        let (inserted, gone) = quota.insert(&index, newer);
        assert_eq!(inserted, Inserted::Replaced(entry(1, 0).id));
        assert_eq!(gone.as_ref().map(|gone| gone.bytes), Some(300));
        assert_eq!(index.bytes() + quota.ledger.lock().reserved, 400);
        drop(gone);
        assert_eq!(quota.ledger.lock().reserved, 0);
    }

    #[test]
    fn reservations_are_granted_in_one_step() {
        let quota = Quota::new(1000);
        let granted: u64 = std::thread::scope(|scope| {
            let reserved: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let reserved = (0..100).filter_map(|_| quota.reserve(|| 0, 7));
                        reserved.collect::<Vec<_>>()
                    })
                })
                .collect();
            let reserved = reserved
                .into_iter()
                .flat_map(|t| t.join().expect("reserved"));
            let reserved: Vec<_> = reserved.collect();
            reserved.iter().map(|gone| gone.bytes).sum()
        });
        assert_eq!(granted, 994);
        assert_eq!(quota.ledger.lock().reserved, 0);
    }
}
