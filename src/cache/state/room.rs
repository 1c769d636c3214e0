//! Room on the disk: the shares of the limit.
//!
//! The index knows what the entries take. Everything else is a [`Claim`]: the room of a
//! fill, the files of entries that have left but are not removed yet, and files that are
//! removed but still being read, whose blocks the file system frees at the last close(2).
//! A claim is granted in one step, against the sum of all these.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{timeout, timeout_at, Instant};

use crate::cache::state::stats::{Cause, Eviction};
use crate::cache::store::index::{Index, Indexed, Inserted};
use crate::cache::{DiskCache, EntryId};

/// The longest time that a fill waits for files evicted for it to be gone. Its client
/// waits as long for the first byte.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time from the start for which a fill waits while the entries of earlier runs are not
/// known; none of those can be evicted.
pub(crate) const LOAD_PATIENCE: Duration = Duration::from_millis(200);

/// Most bytes by which files about to be removed may exceed the limit, so that small fills
/// do not wait for unlink(2).
const MAX_SLACK: u64 = 16 << 20;

/// The slack is at most one in this many bytes of the limit.
const SLACK_SHARE: u64 = 64;

/// Most bytes that a fill takes at a time.
const STEP: u64 = 4 << 20;

/// Attempts to make room on a full disk before a fill is given up. Each evicts twice as
/// much as the one before.
const DISK_FULL_TRIES: u32 = 4;

/// The longest time that a fill waits, on a full disk, for removed files to be closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Fewest bytes that are evicted at once on a full disk.
const DISK_FULL_STEP: u64 = 64 << 10;

/// Pause after evictions that did not help on a full disk, because something other than
/// the cache fills it.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(10);

/// The limit, and the shares of it that are not entries.
#[derive(Debug)]
pub(crate) struct Room {
    max: u64,
    /// Bytes of the cache that the disk had room for, in all, when it was last seen full;
    /// `u64::MAX`: it is not known to be full.
    disk: AtomicU64,
    ledger: Mutex<Ledger>,
    /// Notified when a claim is released.
    freed: Notify,
    /// Held by the fill that room is made for.
    turn: tokio::sync::Mutex<()>,
    /// Until then, nothing is evicted for a full disk.
    pause_until: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Ledger {
    /// The sum of all claims.
    claimed: u64,
    /// The claims of files that are about to be removed.
    going: u64,
    /// The claims of files that are removed but still read.
    held: u64,
    /// Bytes that the fills in flight will take in all. There is always room for this
    /// much without any entries, so every fill can come to its end.
    promised: u64,
}

/// Bytes that are, or will be, on the disk, and belong to no entry. Dropping this
/// releases them.
#[derive(Debug)]
pub struct Claim {
    room: Arc<Room>,
    bytes: u64,
    going: bool,
    held: bool,
    promised: u64,
    meta_len: u64,
}

// === impl Room ===

impl Room {
    pub(crate) fn new(max: u64) -> Arc<Room> {
        Arc::new(Room {
            max,
            disk: AtomicU64::new(u64::MAX),
            ledger: Mutex::default(),
            freed: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            pause_until: Mutex::default(),
        })
    }

    /// The configured limit, or what the disk has room for if that is less.
    fn limit(&self) -> u64 {
        self.max.min(self.disk.load(Ordering::Relaxed))
    }

    /// Claim `bytes`, if they are within `limit` together with everything else.
    fn claim(self: &Arc<Self>, entries: impl Fn() -> u64, limit: u64, bytes: u64) -> Option<Claim> {
        let mut ledger = self.ledger.lock();
        let slack = ledger.going.min(MAX_SLACK).min(limit / SLACK_SHARE);
        let taken = entries() + ledger.claimed - slack;
        if taken.saturating_add(bytes) > limit {
            return None;
        }
        ledger.claimed += bytes;
        Some(self.claim_of(bytes))
    }

    fn claim_of(self: &Arc<Self>, bytes: u64) -> Claim {
        Claim {
            room: self.clone(),
            bytes,
            going: false,
            held: false,
            promised: 0,
            meta_len: 0,
        }
    }

    /// A claim of nothing yet, for a fill that will take `bytes` in all.
    fn promise(self: &Arc<Self>, bytes: u64) -> Option<Claim> {
        let mut claim = self.claim_of(0);
        claim.promise(bytes).then_some(claim)
    }

    /// Bytes that everything takes.
    pub(crate) fn taken(&self, index: &Index) -> u64 {
        let ledger = self.ledger.lock();
        index.bytes() + ledger.claimed
    }

    /// True if `bytes` more are too many even after all files to be removed are gone.
    fn lacks(&self, index: &Index, bytes: u64) -> bool {
        let ledger = self.ledger.lock();
        let staying = index.bytes() + ledger.claimed - ledger.going;
        staying.saturating_add(bytes) > self.limit()
    }

    /// True if `bytes` more are too many even without a single entry.
    fn never_has(&self, bytes: u64) -> bool {
        let ledger = self.ledger.lock();
        let staying = ledger.claimed - ledger.going;
        staying.saturating_add(bytes) > self.limit()
    }

    /// Take an entry out of the index; its files have to go.
    pub(crate) fn leave(self: &Arc<Self>, index: &Index, id: &EntryId) -> Option<Claim> {
        let mut ledger = self.ledger.lock();
        let entry = index.remove(id)?;
        Some(self.go(&mut ledger, entry.weight))
    }

    /// Put an entry into the index. If it replaces one, the files of that have to go.
    pub(crate) fn enter(
        self: &Arc<Self>,
        index: &Index,
        entry: Indexed,
    ) -> (Inserted, Option<Claim>) {
        let mut ledger = self.ledger.lock();
        let before = index.get(&entry.id.hash).map_or(0, |before| before.weight);
        let inserted = index.insert(entry);
        let replaced = matches!(inserted, Inserted::Replaced(_));
        (inserted, replaced.then(|| self.go(&mut ledger, before)))
    }

    fn go(self: &Arc<Self>, ledger: &mut Ledger, bytes: u64) -> Claim {
        ledger.claimed += bytes;
        ledger.going += bytes;
        let mut claim = self.claim_of(bytes);
        claim.going = true;
        claim
    }

    /// Wake those who wait for room: there may be some now.
    pub(crate) fn notify(&self) {
        self.freed.notify_waiters();
    }
}

// === impl Claim ===

impl Claim {
    fn merge(&mut self, mut other: Claim) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Note that the files are removed but still read, so their bytes are still taken.
    pub(crate) fn held(mut self) -> Claim {
        self.hold();
        self
    }

    /// [`held`](Self::held)
    pub(crate) fn hold(&mut self) {
        self.change(false, true);
    }

    /// Note that the files will be gone in a moment: they are about to be removed, or are
    /// removed and about to be closed.
    pub(crate) fn go(&mut self) {
        self.change(true, false);
    }

    fn change(&mut self, going: bool, held: bool) {
        {
            let mut ledger = self.room.ledger.lock();
            if std::mem::replace(&mut self.going, going) {
                ledger.going -= self.bytes;
            }
            if std::mem::replace(&mut self.held, held) {
                ledger.held -= self.bytes;
            }
            ledger.promised -= std::mem::take(&mut self.promised);
            if going {
                ledger.going += self.bytes;
            }
            if held {
                ledger.held += self.bytes;
            }
        }
        self.room.notify();
    }

    /// Bytes of the claim that the metadata takes.
    pub(crate) fn meta_len(&self) -> u64 {
        self.meta_len
    }

    /// Note that the claim will grow to `bytes`; `false`: there will not be room.
    fn promise(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.promised);
        let mut ledger = self.room.ledger.lock();
        let taken = ledger.promised.saturating_add(ledger.held);
        if taken.saturating_add(more) > self.room.limit() {
            return false;
        }
        ledger.promised += more;
        self.promised += more;
        true
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.bytes == 0 && self.promised == 0 {
            return;
        }
        {
            let mut ledger = self.room.ledger.lock();
            ledger.claimed -= self.bytes;
            ledger.promised -= self.promised;
            if self.going {
                ledger.going -= self.bytes;
            }
            if self.held {
                ledger.held -= self.bytes;
            }
        }
        self.room.notify();
    }
}

// === impl DiskCache ===

impl DiskCache {
    /// Claim `bytes` for an object with a use count of `uses`. The least recently used
    /// entries leave for it, but none with a higher count. `None`: there is no room, or
    /// not soon.
    pub(crate) async fn claim(&'static self, bytes: u64, uses: u8) -> Option<Claim> {
        if let Some(claim) = self.try_claim(bytes) {
            return Some(claim);
        }
        let patience = match self.load_progress().is_complete() {
            true => PATIENCE,
            false => LOAD_PATIENCE.saturating_sub(self.loading_for()),
        };
        let deadline = Instant::now() + patience;
        let made = timeout_at(deadline, self.make_room_for(bytes, uses));
        made.await.ok().flatten()
    }

    /// The room that a fill begins with, for its metadata and the first bytes of its body.
    /// The rest is promised to it, if the length is known.
    pub(crate) async fn claim_for(&'static self, body: u64, meta_len: u64) -> Option<Claim> {
        let mut claim = self.promise_kept(body.saturating_add(meta_len)).await?;
        claim.meta_len = meta_len;
        let first = body.min(self.step()).saturating_add(meta_len);
        self.grow(&mut claim, first, u8::MAX).await.then_some(claim)
    }

    async fn promise_kept(&'static self, bytes: u64) -> Option<Claim> {
        let promise = self.room().promise(bytes);
        if promise.is_none() && self.room().disk.load(Ordering::Relaxed) != u64::MAX {
            let seen = self.runtime().spawn_blocking(|| self.look_at_disk());
            let _ = seen.await;
            return self.room().promise(bytes);
        }
        promise
    }

    /// Bytes that a fill takes at a time: enough to ask seldom, and few in a small cache.
    pub(crate) fn step(&self) -> u64 {
        STEP.min(self.max_size_bytes() / SLACK_SHARE)
    }

    /// [`claim`](Self::claim) for a fill that goes on, up to `bytes` in all.
    pub(crate) async fn grow(&'static self, claim: &mut Claim, bytes: u64, uses: u8) -> bool {
        let missing = bytes.saturating_sub(claim.bytes);
        if missing == 0 {
            return true;
        }
        if !claim.promise(bytes) {
            return false;
        }
        // Not more than was promised to it.
        let step = match claim.promised > bytes {
            true => missing.max(self.step().min(claim.promised - claim.bytes)),
            false => missing,
        };
        let more = match self.try_claim(step) {
            Some(more) => Some(more),
            None => self.claim(missing, uses).await,
        };
        more.map(|more| claim.merge(more)).is_some()
    }

    fn try_claim(&self, bytes: u64) -> Option<Claim> {
        if self.load_progress().is_complete() {
            let entries = || self.index().bytes();
            return self.room().claim(entries, self.room().limit(), bytes);
        }
        // Nothing can be evicted yet.
        let entries = self.bytes_while_loading()?;
        self.room().claim(|| entries, self.room().limit(), bytes)
    }

    async fn make_room_for(&'static self, bytes: u64, uses: u8) -> Option<Claim> {
        let room = self.room();
        let _turn = room.turn.lock().await;
        if room.disk.load(Ordering::Relaxed) != u64::MAX {
            let seen = self.runtime().spawn_blocking(|| self.look_at_disk());
            let _ = seen.await;
        }
        loop {
            let freed = room.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(claim) = self.try_claim(bytes) {
                return Some(claim);
            }
            if self.load_progress().is_complete() {
                let evict = move || self.evict_for(bytes, uses);
                if !self.runtime().spawn_blocking(evict).await.unwrap_or(false) {
                    return None;
                }
                if let Some(claim) = self.try_claim(bytes) {
                    return Some(claim);
                }
            }
            freed.await;
        }
    }

    /// Evict until there will be room for `bytes` more once the files are gone. `false`:
    /// there will not be. May take long, because a large object can take the place of a
    /// hundred thousand small ones.
    fn evict_for(&self, bytes: u64, uses: u8) -> bool {
        if self.room().never_has(bytes) {
            return false;
        }
        while self.room().lacks(self.index(), bytes) {
            if self.evict_one(uses).is_none() {
                return false;
            }
        }
        true
    }

    /// Evict one entry. Returns the bytes that it takes.
    fn evict_one(&self, uses: u8) -> Option<u64> {
        let now = self.clock().now();
        let victim = self.index().victim(now, uses)?;
        self.evict(victim.id, Eviction::Size);
        Some(victim.weight)
    }

    /// Evict until the cache is within the limit. Blocks.
    pub(crate) fn keep_limit(&self) {
        // The order of the entries is unknown until all are known.
        if self.load_progress().is_complete() && self.is_writable() {
            self.evict_for(0, u8::MAX);
        }
    }

    /// [`keep_limit`](Self::keep_limit), but not on the caller's thread.
    pub(crate) async fn limit_kept(&'static self) {
        if self.load_progress().is_complete() && self.room().lacks(self.index(), 0) {
            let kept = self.runtime().spawn_blocking(|| self.keep_limit());
            if let Err(e) = kept.await {
                warn!("cannot make room in the cache: {e}");
            }
        }
    }

    /// Do `work`, which needs `bytes` of the disk. If the disk is full, entries are evicted
    /// as for the limit, and `work` is tried again.
    pub(crate) async fn with_disk_space<T, F>(
        &'static self,
        bytes: u64,
        uses: u8,
        work: impl Fn() -> F,
    ) -> io::Result<T>
    where
        F: std::future::Future<Output = io::Result<T>>,
    {
        let mut tries = 0;
        loop {
            match work().await {
                Err(e) if Cause::of(&e) == Cause::NoSpace && tries < DISK_FULL_TRIES => {
                    let most = bytes.max(DISK_FULL_STEP) << tries;
                    if !self.free_disk_space(most, uses).await {
                        return Err(e);
                    }
                    tries += 1;
                }
                Err(e) => {
                    if tries > 0 {
                        let pause = Instant::now() + DISK_FULL_PAUSE;
                        *self.room().pause_until.lock() = Some(pause);
                    }
                    return Err(e);
                }
                done => return done,
            }
        }
    }

    /// Make room after the disk was too full to commit a fill, so that the next one fits.
    pub(crate) async fn make_disk_space(&'static self, uses: u8) {
        self.free_disk_space(DISK_FULL_STEP, uses).await;
    }

    /// Evict entries of `bytes`, wait until they are gone, and note that the disk has room
    /// for no more than what is left. `false`: there are none to evict.
    async fn free_disk_space(&'static self, bytes: u64, uses: u8) -> bool {
        let room = self.room();
        let paused = *room.pause_until.lock();
        let (going, held) = {
            let ledger = room.ledger.lock();
            (ledger.going, ledger.held)
        };
        if going == 0 && paused.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        let evict = move || {
            let mut freed = going;
            while freed < bytes {
                let Some(bytes) = self.evict_one(uses) else {
                    break;
                };
                freed += bytes;
            }
            freed > 0
        };
        let writable = self.load_progress().is_complete() && self.is_writable();
        let evicted = writable && self.runtime().spawn_blocking(evict).await.unwrap_or(false);
        if evicted {
            self.removed_all().await;
            // A file without readers is closed in a moment, on another thread.
            let closed = async {
                loop {
                    let freed = room.freed.notified();
                    tokio::pin!(freed);
                    freed.as_mut().enable();
                    if room.ledger.lock().held <= held {
                        return;
                    }
                    freed.await;
                }
            };
            let _ = timeout(CLOSE_PATIENCE, closed).await;
            let taken = self.index().bytes() + room.ledger.lock().claimed;
            room.disk.store(taken, Ordering::Relaxed);
        }
        evicted
    }

    /// Look how much a disk that was full has room for now. Blocks.
    fn look_at_disk(&self) {
        let room = self.room();
        let Some(free) = free_space(self.path()) else {
            return;
        };
        let taken = self.index().bytes() + room.ledger.lock().claimed;
        let takes = taken.saturating_add(free);
        let takes = if takes < room.max { takes } else { u64::MAX };
        room.disk.store(takes, Ordering::Relaxed);
    }
}

/// Bytes that the file system has left for this process. Blocks.
#[cfg(target_os = "linux")]
pub(crate) fn free_space(path: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn free_space(_path: &std::path::Path) -> Option<u64> {
    None
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
        let room = Room::new(6400);
        let index = Index::default();
        let claim = |bytes| room.claim(|| index.bytes(), room.limit(), bytes);
        assert_eq!(room.enter(&index, entry(1, 3000)).0, Inserted::New);
        let first = claim(3000).expect("room");
        assert!(claim(401).is_none());
        drop(claim(400).expect("room"));

        // An entry that leaves counts until its file is gone, except for the slack.
        let gone = room.leave(&index, &entry(1, 0).id).expect("an entry");
        assert!(!room.lacks(&index, 3400));
        assert!(claim(501).is_none());
        drop(claim(500).expect("the slack of 100"));
        let held = gone.held();
        assert!(room.lacks(&index, 3400), "somebody reads it");
        assert!(room.never_has(401) && !room.never_has(400));
        assert!(claim(401).is_none(), "nothing is going any more");
        drop(held);
        drop(claim(3400).expect("room"));
        drop(first);
        assert!(claim(6401).is_none());
        assert!(claim(6400).is_some());
    }

    #[test]
    fn what_is_replaced_counts_until_it_is_gone() {
        let room = Room::new(1000);
        let index = Index::default();
        room.enter(&index, entry(1, 300));
        let mut newer = entry(1, 100);
        newer.id.generation = 2;
        let (inserted, gone) = room.enter(&index, newer);
        assert_eq!(inserted, Inserted::Replaced(entry(1, 0).id));
        assert_eq!(gone.as_ref().map(|claim| claim.bytes), Some(300));
        assert_eq!(index.bytes() + room.ledger.lock().claimed, 400);
        drop(gone);
        assert_eq!(room.ledger.lock().claimed, 0);
    }

    #[test]
    fn claims_are_granted_in_one_step() {
        let room = Room::new(1000);
        let granted: u64 = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let claims = (0..100).filter_map(|_| room.claim(|| 0, 1000, 7));
                        claims.collect::<Vec<_>>()
                    })
                })
                .collect();
            let claims = claims.into_iter().flat_map(|t| t.join().expect("claims"));
            let claims: Vec<_> = claims.collect();
            claims.iter().map(|claim| claim.bytes).sum()
        });
        assert_eq!(granted, 994);
        assert_eq!(room.ledger.lock().claimed, 0);
    }
}
