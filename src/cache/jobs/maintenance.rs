//! Maintenance: eviction of banned and inactive entries, and of entries on a file system that is too full.

use std::io;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::cache::io::files::MAX_META_LEN;
use crate::cache::state::stats::Eviction;
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;
use crate::cache::write::space::{self, FreedLate};

/// The longest time between two searches for inactive entries. Each looks at all entries.
const INACTIVE_INTERVAL: Duration = Duration::from_secs(60);

/// Most inactive entries that are evicted at once. Those of an earlier run become inactive at
/// the same time.
const INACTIVE_BATCH: usize = 10_000;

/// The time between two checks of the free space of the file system.
const FREE_INTERVAL: Duration = match cfg!(test) {
    true => Duration::from_millis(20),
    false => Duration::from_secs(1),
};

/// The shortest time between two warnings of too little free space.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// The time from the end of one search for banned entries to the next.
const BAN_INTERVAL: Duration = Duration::from_secs(60);

/// The search for banned entries takes at most one in this many parts of the time.
const BAN_DUTY: u32 = 20;

/// Evict banned and inactive entries, as long as the cache lives.
pub(crate) async fn run(core: &'static Core, inactive: Option<Duration>) {
    tokio::join!(
        evict_all_banned(core),
        evict_all_inactive(core, inactive),
        keep_disk_free(core)
    );
}

/// Evict entries while the file system has too little free space, as long as the cache lives.
async fn keep_disk_free(core: &'static Core) {
    if core.min_free_bytes == 0 {
        return;
    }
    let mut warned: Option<Instant> = None;
    let mut late = FreedLate::default();
    let mut tick = tokio::time::interval(FREE_INTERVAL);
    loop {
        tick.tick().await;
        let keep = move || {
            let free = space::keep_disk_free(core, &mut late);
            (free, late)
        };
        let kept = core.io.runtime().spawn_blocking(keep).await;
        let free;
        (free, late) = kept.unwrap_or_default();
        let Some(free) = free else { continue };
        let is_due = warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL);
        if free < core.min_free_bytes && is_due {
            warned = Some(Instant::now());
            warn!(
                "{}: {free} bytes of the file system are free, fewer than min_free_gb ({} bytes); the \
                 cache evicts entries and does not grow",
                core.path.display(),
                core.min_free_bytes
            );
        }
    }
}

async fn evict_all_banned(core: &'static Core) {
    let mut pause = BAN_INTERVAL;
    let mut settled = 0;
    loop {
        let next = core.generations.last();
        tokio::time::sleep(pause).await;
        let start = Instant::now();
        evict_banned(core, settled).await;
        settled = next;
        pause = BAN_INTERVAL.max(start.elapsed() * BAN_DUTY);
    }
}

async fn evict_all_inactive(core: &'static Core, inactive: Option<Duration>) {
    let Some(idle) = inactive else { return };
    let mut tick = tokio::time::interval((idle / 4).min(INACTIVE_INTERVAL));
    loop {
        tick.tick().await;
        let evict = move || evict_inactive(core, idle);
        if let Err(e) = core.io.runtime().spawn_blocking(evict).await {
            warn!("cannot search for inactive cache entries: {e}");
        }
    }
}

fn evict_inactive(core: &Core, idle: Duration) {
    if !core.recovery.is_complete() || !core.is_writable() || core.is_missing() {
        return;
    }
    let time = core.clock.idle_since(idle);
    let mut left = INACTIVE_BATCH;
    for part in 0..core.index.parts() {
        for id in core.index.unused_since(part, time).take(left) {
            core.evict(id, Eviction::Inactive);
            left -= 1;
        }
    }
}

/// Evict the entries that are banned, and forget the bans that are no longer needed: those of
/// the generation `settled` or before. It is the one of two searches ago, so that no request
/// is in flight that asked the origin before the ban.
pub(crate) async fn evict_banned(core: &'static Core, settled: u64) {
    if core.bans.is_empty() || !core.recovery.is_complete() || !core.is_writable() {
        return;
    }
    let recoveries = core.recovery.count();
    let newest = core.bans.newest();
    let search = core
        .io
        .runtime()
        .spawn_blocking(move || match core.is_missing() {
            true => None,
            false => Some(search(core, newest)),
        });
    let Ok(Some(found)) = search.await else {
        return;
    };
    core.removals.done().await;
    // Files that could not be examined, or not be removed, may be found after a restart.
    if core.recovery.has_gaps() || core.removals.have_failed() {
        return;
    }
    // A fill older than a ban may still be committed and then removed. If the ban were
    // forgotten, a crash between the two would keep the entry.
    let bounds = [
        Some(settled),
        core.fills.oldest_generation(),
        found.unreadable,
    ];
    let bound = bounds.into_iter().flatten().fold(newest, u64::min);
    let forgotten = core.io.runtime().spawn_blocking(move || {
        if !core.peers.may_forget(core.bans.len())? {
            return Ok(());
        }
        for shard in 0..=u8::MAX {
            core.backend().sync_folder(&core.layout.shard(shard))?;
        }
        // The folder may have been absent meanwhile, and have entries that were not found.
        if core.is_missing() || core.recovery.count() != recoveries {
            return Ok(());
        }
        core.bans.forget_below(bound + 1)
    });
    match forgotten.await {
        Ok(Ok(())) if found.evicted == 0 => {}
        Ok(Ok(())) => info!("cache: {} banned entries removed", found.evicted),
        Ok(Err(e)) => warn!("cache: cannot shorten the ban list: {e}"),
        Err(e) => warn!("cache: cannot shorten the ban list: {e}"),
    }
}

/// Result of a search for banned entries.
struct Found {
    evicted: usize,
    /// The lowest generation whose metadata cannot be read.
    unreadable: Option<u64>,
}

fn search(core: &'static Core, newest: u64) -> Found {
    let mut found = Found {
        evicted: 0,
        unreadable: None,
    };
    for part in 0..core.index.parts() {
        for id in core.index.part(part) {
            if id.generation >= newest {
                continue;
            }
            match is_banned(core, &id) {
                Ok(true) => {
                    core.evict(id, Eviction::Purged);
                    found.evicted += 1;
                }
                Ok(false) => {}
                // No entry, as its next lookup will show.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                    ) => {}
                Err(_) => {
                    let lowest = found.unreadable.unwrap_or(u64::MAX);
                    found.unreadable = Some(lowest.min(id.generation));
                }
            }
        }
    }
    found
}

fn is_banned(core: &Core, id: &EntryId) -> io::Result<bool> {
    let data = core
        .backend()
        .read_file(&core.layout.meta(id), MAX_META_LEN)?;
    let meta = EntryMeta::decode(&data)?;
    let key = || (&*meta.key.user_tag, &*meta.primary_key);
    let bans = &core.bans;
    Ok(bans.is_banned(id.generation, &meta.key.primary, key)
        || (meta.key.variance.is_some() && bans.is_banned_variant(id.generation)))
}
