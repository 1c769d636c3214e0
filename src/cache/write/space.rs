//! Space for fills: reservations, and the evictions that make room for them.

use std::future::Future;
use std::io;
use std::time::Duration;

use log::warn;
use tokio::time::{timeout, timeout_at, Instant};

use crate::cache::io::folder;
use crate::cache::state::quota::Reservation;
use crate::cache::state::stats::Eviction;
use crate::cache::state::Core;

/// The longest time that a fill waits for the files evicted for it to be removed. Its client
/// waits as long for the first byte.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time from the start of a recovery for which a fill waits for it: until its end,
/// nothing can be evicted.
pub(crate) const RECOVERY_PATIENCE: Duration = Duration::from_millis(200);

/// Attempts to make room on a full disk before a fill is given up. Each evicts twice as much
/// as the one before.
const DISK_FULL_TRIES: u32 = 4;

/// Pause before more is evicted, because some file systems free blocks a moment after the last
/// close(2): XFS in the background, FUSE when its daemon gets to it. It doubles each time.
const FREEING_PAUSE: Duration = Duration::from_millis(5);

/// The longest time that a fill waits, on a full disk, for removed files to be closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Fewest bytes that are evicted at once on a full disk.
const DISK_FULL_STEP: u64 = 64 << 10;

/// Pause after evictions that did not help on a full disk, because something other than the
/// cache fills it.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(10);

/// Reserve `bytes` for an object with a use count of `uses`. Entries are evicted for it, except
/// those with a higher count. `None`: there is no space, or not soon.
pub(crate) async fn reserve(core: &'static Core, bytes: u64, uses: u8) -> Option<Reservation> {
    if let Some(reservation) = try_reserve(core, bytes) {
        return Some(reservation);
    }
    let patience = match core.recovery.is_complete() {
        true => PATIENCE,
        false => RECOVERY_PATIENCE.saturating_sub(core.recovery.elapsed()),
    };
    let deadline = Instant::now() + patience;
    let made = timeout_at(deadline, make_room(core, bytes, uses));
    made.await.ok().flatten()
}

/// The reservation that a fill begins with: for its metadata and the first bytes of its body.
/// The rest is promised to it, if the length is known. `uses`: see [`reserve`].
pub(crate) async fn reserve_for_fill(
    core: &'static Core,
    body: u64,
    meta_len: u64,
    uses: u8,
) -> Option<Reservation> {
    let mut reservation = promise(core, body.saturating_add(meta_len), meta_len).await?;
    let first = body.min(core.quota.step()).saturating_add(meta_len);
    let grown = grow(core, &mut reservation, first, uses).await;
    grown.then_some(reservation)
}

async fn promise(core: &'static Core, bytes: u64, meta_len: u64) -> Option<Reservation> {
    let promise = core.quota.promise(bytes, meta_len);
    if promise.is_none() && core.quota.is_disk_full() {
        look_at_disk(core).await;
        return core.quota.promise(bytes, meta_len);
    }
    promise
}

/// [`reserve`] for a fill that continues, up to `bytes` in all. `false`: there is no space.
pub(crate) async fn grow(
    core: &'static Core,
    reservation: &mut Reservation,
    bytes: u64,
    uses: u8,
) -> bool {
    let missing = bytes.saturating_sub(reservation.bytes());
    if missing == 0 {
        return true;
    }
    if !reservation.promise(bytes) {
        return false;
    }
    // At most what was promised.
    let step = match reservation.promised() > bytes {
        true => missing.max(
            core.quota
                .step()
                .min(reservation.promised() - reservation.bytes()),
        ),
        false => missing,
    };
    let more = match try_reserve(core, step) {
        Some(more) => Some(more),
        None => reserve(core, missing, uses).await,
    };
    more.map(|more| reservation.merge(more)).is_some()
}

fn try_reserve(core: &Core, bytes: u64) -> Option<Reservation> {
    if core.recovery.is_complete() {
        return core.quota.reserve(|| core.index.bytes(), bytes);
    }
    // Nothing can be evicted yet.
    let entries = core.bytes_in_recovery()?;
    core.quota.reserve(|| entries, bytes)
}

async fn make_room(core: &'static Core, bytes: u64, uses: u8) -> Option<Reservation> {
    let _evicting = core.quota.evicting().await;
    if core.quota.is_disk_full() {
        look_at_disk(core).await;
    }
    loop {
        let freed = core.quota.freed();
        tokio::pin!(freed);
        freed.as_mut().enable();
        if let Some(reservation) = try_reserve(core, bytes) {
            return Some(reservation);
        }
        if core.recovery.is_complete() {
            let evict = move || evict_for(core, bytes, uses);
            let evicted = core.io.runtime().spawn_blocking(evict).await;
            if !evicted.unwrap_or(false) {
                return None;
            }
            if let Some(reservation) = try_reserve(core, bytes) {
                return Some(reservation);
            }
        }
        freed.await;
    }
}

/// Evict until `bytes` more will fit once the files are removed. `false`: they will not. May
/// take long, because a large object can displace a hundred thousand small ones.
fn evict_for(core: &Core, bytes: u64, uses: u8) -> bool {
    if core.quota.never_fits(bytes) {
        return false;
    }
    while core.quota.lacks(&core.index, bytes) {
        if evict_one(core, uses).is_none() {
            return false;
        }
    }
    true
}

/// Evict one entry. Returns its size in bytes.
fn evict_one(core: &Core, uses: u8) -> Option<u64> {
    let victim = core.index.victim(core.clock.now(), uses)?;
    core.evict(victim.id, Eviction::Size);
    Some(victim.weight)
}

/// Evict until the cache is within its limit. Blocks.
pub(crate) fn enforce_limit(core: &Core) {
    // The order of the entries is unknown until all are recovered.
    if core.recovery.is_complete() && core.is_writable() {
        evict_for(core, 0, u8::MAX);
    }
}

/// [`enforce_limit`] on a thread that may block, if the limit is exceeded.
pub(crate) async fn limit_enforced(core: &'static Core) {
    if core.recovery.is_complete() && core.quota.lacks(&core.index, 0) {
        let enforce = || enforce_limit(core);
        if let Err(e) = core.io.runtime().spawn_blocking(enforce).await {
            warn!("cannot make room in the cache: {e}");
        }
    }
}

/// Do `work`, which needs `bytes` of the disk. If the disk is full, entries are evicted as for
/// the limit, and `work` is tried again.
pub(crate) async fn with_disk_space<T, F>(
    core: &'static Core,
    bytes: u64,
    uses: u8,
    work: impl Fn() -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut tries = 0;
    let mut has_waited = true;
    loop {
        match work().await {
            Err(e) if folder::is_full(&e) && !has_waited => {
                tokio::time::sleep(FREEING_PAUSE * (1 << tries)).await;
                has_waited = true;
            }
            Err(e) if folder::is_full(&e) && tries < DISK_FULL_TRIES => {
                let most = bytes.max(DISK_FULL_STEP) << tries;
                if !free_disk_space(core, most, uses).await {
                    return Err(e);
                }
                tries += 1;
                has_waited = false;
            }
            Err(e) => {
                if tries > 0 {
                    core.quota.pause(Instant::now() + DISK_FULL_PAUSE);
                }
                return Err(e);
            }
            done => return done,
        }
    }
}

/// Make room after the disk was too full to commit a fill, so that the next one fits.
pub(crate) async fn make_disk_space(core: &'static Core, uses: u8) {
    free_disk_space(core, DISK_FULL_STEP, uses).await;
}

/// Evict entries of `bytes`, wait until they are removed, and note that the disk is full with
/// what is left. `false`: there are none to evict.
async fn free_disk_space(core: &'static Core, bytes: u64, uses: u8) -> bool {
    let quota = &core.quota;
    let (removing, unlinked) = quota.leaving_bytes();
    if removing == 0 && quota.is_paused() {
        return false;
    }
    let evict = move || {
        let mut freed = removing;
        while freed < bytes {
            let Some(bytes) = evict_one(core, uses) else {
                break;
            };
            freed += bytes;
        }
        freed > 0
    };
    let may_evict = core.recovery.is_complete() && core.is_writable();
    let evicted = may_evict
        && core
            .io
            .runtime()
            .spawn_blocking(evict)
            .await
            .unwrap_or(false);
    if evicted {
        core.removals.done().await;
        // A file without readers is closed soon, on another thread.
        let closed = async {
            loop {
                let freed = quota.freed();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if quota.unlinked_bytes() <= unlinked {
                    return;
                }
                freed.await;
            }
        };
        let _ = timeout(CLOSE_PATIENCE, closed).await;
        quota.note_full_disk(&core.index);
    }
    evicted
}

/// The blocks of evicted entries that the file system has not freed yet. XFS, for one, frees the blocks
/// of a large file in the background.
#[derive(Debug, Default)]
pub(crate) struct FreedLate {
    /// Bytes that were evicted after each of the last looks at the free space, the newest first. After
    /// three looks they count as freed: another program may have taken their place.
    evicted: [u64; 3],
    /// Free bytes at the last look.
    free: u64,
}

impl FreedLate {
    /// Look at the free space, of so many bytes. Returns the bytes that are still to be freed.
    fn look(&mut self, free: u64) -> u64 {
        let mut freed = free.saturating_sub(self.free);
        for bytes in self.evicted.iter_mut().rev() {
            let of_these = freed.min(*bytes);
            *bytes -= of_these;
            freed -= of_these;
        }
        self.free = free;
        let to_be_freed = self.evicted.iter().sum();
        self.evicted.rotate_right(1);
        self.evicted[0] = 0;
        to_be_freed
    }

    /// Note an eviction after the last look.
    fn evicted(&mut self, bytes: u64) {
        self.evicted[0] += bytes;
    }
}

/// Evict entries if the file system has too little free space. Returns the free bytes; `None`:
/// unknown. Blocks.
pub(crate) fn keep_disk_free(core: &Core, late: &mut FreedLate) -> Option<u64> {
    if core.is_missing() {
        return None;
    }
    let free = note_free(core)?;
    let (removing, unlinked) = core.quota.leaving_bytes();
    let leaving = removing.saturating_add(unlinked);
    // `late` counts the files evicted here that are not yet removed or closed, too.
    let coming = free.saturating_add(leaving.max(late.look(free)));
    let missing = core.min_free_bytes.saturating_sub(coming);
    let mut evicted = 0;
    while evicted < missing && core.recovery.is_complete() && core.is_writable() {
        let Some(bytes) = evict_one(core, u8::MAX) else {
            break;
        };
        evicted += bytes;
    }
    late.evicted(evicted);
    Some(free)
}

/// Find out how much a disk that was full has left now.
async fn look_at_disk(core: &'static Core) {
    let _ = core.io.runtime().spawn_blocking(|| note_free(core)).await;
}

/// Note how much of the disk the cache may take. Returns the bytes that the file system has left;
/// `None`: unknown. Blocks.
fn note_free(core: &Core) -> Option<u64> {
    // Both figures are of one moment, as far as possible.
    let free = core.backend().free_space(&core.path)?;
    core.quota
        .note_free_disk(&core.index, free, core.min_free_bytes);
    Some(free)
}

/// Bytes that the file system has left for the cache; `None`: unknown.
pub(crate) async fn free_space(core: &'static Core) -> Option<u64> {
    let free = || core.backend().free_space(&core.path);
    let free = core.io.runtime().spawn_blocking(free).await;
    let free = free.ok().flatten();
    free.map(|free| free.saturating_sub(core.min_free_bytes))
}

#[cfg(test)]
mod tests {
    use super::FreedLate;

    #[test]
    fn blocks_that_are_freed_late_are_expected_for_three_looks() {
        let mut late = FreedLate::default();
        assert_eq!(late.look(1_000), 0);
        late.evicted(500);
        assert_eq!(late.look(1_000), 500);
        assert_eq!(late.look(1_200), 300);
        assert_eq!(late.look(900), 300);
        assert_eq!(late.look(900), 0);
        late.evicted(500);
        assert_eq!(late.look(1_400), 0);
    }

    #[test]
    fn a_program_that_takes_what_is_freed_does_not_delay_evictions_for_long() {
        const A_LOOK: u64 = 1_000;
        const MIN_FREE: u64 = 1_000_000;
        let mut late = FreedLate::default();
        let (mut free, mut lowest) = (MIN_FREE, MIN_FREE);
        for _ in 0..1_000 {
            free -= A_LOOK;
            lowest = lowest.min(free);
            let evicted = MIN_FREE.saturating_sub(free + late.look(free));
            late.evicted(evicted);
            free += evicted;
        }
        assert!(lowest >= MIN_FREE - 5 * A_LOOK, "{lowest} bytes were free");
    }
}
