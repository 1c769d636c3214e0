//! What happens to entries without a request: removal, inactivity, bans.

use std::time::{Duration, Instant};

use futures::StreamExt;
use log::{info, warn};
use tokio::sync::mpsc;

use super::stats::Eviction;
use super::tokio_fs::read_meta;
use super::{DiskCache, EntryId};

/// How many entries are removed at once.
const CONCURRENT_REMOVALS: usize = 8;

/// How often inactive entries are looked for, at least.
const INACTIVE_INTERVAL: Duration = Duration::from_secs(10);

/// The time from the end of one search for banned entries to the next.
const BAN_INTERVAL: Duration = Duration::from_secs(60);

/// The share of its time that the search for banned entries may take: one in so
/// many.
const BAN_DUTY: u32 = 20;

/// Remove the files of entries that the index has let go.
pub(super) async fn remove_files(
    cache: &'static DiskCache,
    mut removals: mpsc::UnboundedReceiver<EntryId>,
) {
    let mut batch = Vec::new();
    while removals.recv_many(&mut batch, 1024).await > 0 {
        futures::stream::iter(batch.drain(..))
            .for_each_concurrent(CONCURRENT_REMOVALS, |id| async move {
                if let Err(e) = cache.backend().remove(id).await {
                    warn!("cache entry {id}: cannot remove its files: {e}");
                }
                cache.files_removed(1);
            })
            .await;
    }
}

/// Look after the entries, as long as the cache lives.
pub(super) async fn run(cache: &'static DiskCache, inactive: Option<Duration>) {
    let bans = async {
        let mut pause = BAN_INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            let start = Instant::now();
            remove_banned(cache).await;
            pause = BAN_INTERVAL.max(start.elapsed() * BAN_DUTY);
        }
    };
    let inactive = async {
        let Some(idle) = inactive else { return };
        let mut tick = tokio::time::interval((idle / 4).min(INACTIVE_INTERVAL));
        loop {
            tick.tick().await;
            remove_inactive(cache, idle);
        }
    };
    tokio::join!(bans, inactive);
}

fn remove_inactive(cache: &DiskCache, idle: Duration) {
    if !cache.load_progress().is_complete() || !cache.is_writable() {
        return;
    }
    while let Some(oldest) = cache.index().oldest() {
        if !cache.clock().is_idle(oldest.used, idle) {
            return;
        }
        cache.evict(oldest.id, Eviction::Inactive);
    }
}

/// Find the entries that bans have voided, remove them, and forget the bans.
pub(super) async fn remove_banned(cache: &'static DiskCache) {
    if cache.ban_list().is_empty() || !cache.load_progress().is_complete() || !cache.is_writable() {
        return;
    }
    let newest = cache.ban_list().newest();
    let search = cache.runtime().spawn_blocking(move || {
        let mut removed = 0;
        for part in 0..cache.index().parts() {
            for id in cache.index().part(part) {
                if id.generation < newest && is_banned(cache, id) {
                    cache.evict(id, Eviction::Purged);
                    removed += 1;
                }
            }
        }
        removed
    });
    let Ok(removed) = search.await else { return };
    cache.removed_all().await;
    // A fill older than a ban may still be committed, and then be removed. Were
    // the ban forgotten, a crash between the two would keep it.
    let bound = cache
        .fills()
        .oldest_generation()
        .map_or(newest, |oldest| oldest.min(newest));
    let forgotten = cache
        .runtime()
        .spawn_blocking(move || cache.ban_list().forget_below(bound + 1));
    match forgotten.await {
        Ok(Ok(())) => info!("cache: {removed} banned entries removed"),
        Ok(Err(e)) => warn!("cache: cannot shorten the ban list: {e}"),
        Err(e) => warn!("cache: cannot shorten the ban list: {e}"),
    }
}

fn is_banned(cache: &DiskCache, id: EntryId) -> bool {
    // What cannot be read is found out when it is asked for.
    read_meta(&cache.backend().layout().meta(&id)).is_ok_and(|meta| {
        cache.ban_list().void(id.generation, &meta.key.primary, || {
            (&meta.key.user_tag, &meta.primary_key)
        })
    })
}
