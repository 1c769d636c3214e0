//! What happens to entries without a request: removal, inactivity, bans.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use log::{info, warn};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::cache::io::regular::open_folder;
use crate::cache::io::tokio_fs::{read_meta, remove_if_there};
use crate::cache::state::room::Claim;
use crate::cache::state::stats::Eviction;
use crate::cache::{DiskCache, EntryId};

/// How many entries are removed at once.
const CONCURRENT_REMOVALS: usize = 8;

/// How often inactive entries are looked for, at least.
const INACTIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How many of them are removed at once: those of an earlier run become inactive
/// all at the same time.
const INACTIVE_BATCH: usize = 10_000;

/// The time from the end of one search for banned entries to the next.
const BAN_INTERVAL: Duration = Duration::from_secs(60);

/// The share of its time that the search for banned entries may take: one in so
/// many.
const BAN_DUTY: u32 = 20;

/// The time from one look at the lock file to the next.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

/// The time after which a removal that has failed is tried again. It doubles each time.
const FIRST_RETRY: Duration = match cfg!(test) {
    true => Duration::from_millis(20),
    false => Duration::from_secs(1),
};

/// The longest time between two attempts.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What the task that removes files is told.
#[derive(Debug)]
pub(crate) enum Removal {
    /// Remove files.
    Files(Files),
    /// Say when all that was asked before is done.
    Barrier(oneshot::Sender<()>),
}

/// Files to be removed.
#[derive(Debug)]
pub(crate) struct Files {
    pub id: EntryId,
    /// The space that they take.
    pub claim: Option<Claim>,
    pub which: Which,
}

/// The files of an ID that are to be removed.
#[derive(Debug)]
pub(crate) enum Which {
    Entry,
    /// Those of a fill, which has no entry yet.
    Fill,
    /// A file that an earlier run has left, and no other.
    Leftover(Box<Path>),
}

/// Files that could not be removed. They still take their space, and a restart would find
/// them, so they are tried again for as long as the cache lives.
struct Failed {
    files: Vec<Files>,
    pause: Duration,
    next: tokio::time::Instant,
}

/// Remove the files of entries that the index has let go, and of fills that were given up.
pub(crate) async fn remove_files(
    cache: &'static DiskCache,
    mut removals: mpsc::UnboundedReceiver<Removal>,
) {
    let mut batch = Vec::new();
    let mut files = Vec::new();
    let mut failed = Failed {
        files: Vec::new(),
        pause: FIRST_RETRY,
        next: tokio::time::Instant::now(),
    };
    loop {
        let received = removals.recv_many(&mut batch, 1024);
        let received = match failed.files.is_empty() {
            true => Some(received.await),
            false => timeout_at(failed.next, received).await.ok(),
        };
        if received == Some(0) {
            return;
        }
        for removal in batch.drain(..) {
            match removal {
                Removal::Files(more) => files.push(more),
                Removal::Barrier(done) => {
                    failed.add(cache, remove_all(cache, &mut files, true).await);
                    let _ = done.send(());
                }
            }
        }
        failed.add(cache, remove_all(cache, &mut files, true).await);
        failed.retry(cache).await;
    }
}

/// Returns those that could not be removed.
async fn remove_all(
    cache: &'static DiskCache,
    files: &mut Vec<Files>,
    is_first_try: bool,
) -> Vec<Files> {
    futures::stream::iter(files.drain(..))
        .map(|files| async move {
            let Err(e) = remove(cache, &files).await else {
                cache.files_removed(files.id, files.claim);
                return None;
            };
            let id = files.id;
            if is_first_try {
                warn!("cache entry {id}: cannot remove its files; trying again: {e}");
            }
            // Nobody waits for their space.
            let claim = files.claim.map(Claim::held);
            Some(Files { claim, ..files })
        })
        .buffer_unordered(CONCURRENT_REMOVALS)
        .filter_map(futures::future::ready)
        .collect()
        .await
}

async fn remove(cache: &'static DiskCache, files: &Files) -> io::Result<()> {
    let body = match &files.which {
        Which::Entry => Ok(()),
        Which::Fill => cache.backend().discard(files.id).await,
        Which::Leftover(path) => {
            let path = path.clone();
            let removed = cache
                .runtime()
                .spawn_blocking(move || remove_if_there(&path));
            return removed.await.map_err(io::Error::other)?;
        }
    };
    cache.backend().remove(files.id).await.and(body)
}

// === impl Failed ===

impl Failed {
    fn add(&mut self, cache: &DiskCache, files: Vec<Files>) {
        if files.is_empty() {
            return;
        }
        if self.files.is_empty() {
            self.pause = FIRST_RETRY;
            self.next = tokio::time::Instant::now() + self.pause;
        }
        self.files.extend(files);
        cache.set_failed_removals(self.files.len());
    }

    async fn retry(&mut self, cache: &'static DiskCache) {
        if self.files.is_empty() || tokio::time::Instant::now() < self.next {
            return;
        }
        let failed = remove_all(cache, &mut self.files, false).await;
        self.files = failed;
        self.pause = LAST_RETRY.min(self.pause * 2);
        self.next = tokio::time::Instant::now() + self.pause;
        cache.set_failed_removals(self.files.len());
    }
}

/// Look after the entries, as long as the cache lives.
pub(crate) async fn run(cache: &'static DiskCache, inactive: Option<Duration>) {
    let bans = async {
        let mut pause = BAN_INTERVAL;
        let mut ripe = 0;
        loop {
            let next = cache.last_generation();
            tokio::time::sleep(pause).await;
            let start = Instant::now();
            remove_banned(cache, ripe).await;
            ripe = next;
            pause = BAN_INTERVAL.max(start.elapsed() * BAN_DUTY);
        }
    };
    let inactive = async {
        let Some(idle) = inactive else { return };
        let mut tick = tokio::time::interval((idle / 4).min(INACTIVE_INTERVAL));
        loop {
            tick.tick().await;
            let search = cache
                .runtime()
                .spawn_blocking(move || remove_inactive(cache, idle));
            if let Err(e) = search.await {
                warn!("cannot look for inactive cache entries: {e}");
            }
        }
    };
    let lock = async {
        loop {
            tokio::time::sleep(LOCK_INTERVAL).await;
            let kept = cache.runtime().spawn_blocking(|| cache.keep_lock());
            if let Err(e) = kept.await {
                warn!("cannot check the lock of the cache folder: {e}");
            }
        }
    };
    tokio::join!(bans, inactive, lock);
}

fn remove_inactive(cache: &DiskCache, idle: Duration) {
    if !cache.load_progress().is_complete() || !cache.is_writable() {
        return;
    }
    for _ in 0..INACTIVE_BATCH {
        let Some(oldest) = cache.index().oldest() else {
            return;
        };
        if !cache.clock().is_idle(oldest.used, idle) {
            return;
        }
        cache.evict(oldest.id, Eviction::Inactive);
    }
}

/// Find the entries that bans have voided, remove them, and forget those bans
/// that are not needed any more: of the generation `ripe` or before. That is one
/// of two searches ago, so that no request is under way that asked the origin
/// before the ban.
pub(crate) async fn remove_banned(cache: &'static DiskCache, ripe: u64) {
    if cache.ban_list().is_empty() || !cache.load_progress().is_complete() || !cache.is_writable() {
        return;
    }
    let newest = cache.ban_list().newest();
    let search = cache
        .runtime()
        .spawn_blocking(move || search_banned(cache, newest));
    let Ok(found) = search.await else { return };
    cache.removed_all().await;
    // Files that could not be looked at, or not be removed, may be found again
    // after a restart.
    if cache.load_progress().has_gaps() || cache.has_failed_removals() {
        return;
    }
    // A fill older than a ban may still be committed, and then be removed. Were
    // the ban forgotten, a crash between the two would keep it.
    let bound = [Some(ripe), cache.fills().oldest_generation(), found.unknown]
        .into_iter()
        .flatten()
        .fold(newest, u64::min);
    let forgotten = cache.runtime().spawn_blocking(move || {
        for shard in 0..=u8::MAX {
            sync_folder(&cache.backend().layout().shard(shard))?;
        }
        cache.ban_list().forget_below(bound + 1)
    });
    match forgotten.await {
        Ok(Ok(())) if found.removed == 0 => {}
        Ok(Ok(())) => info!("cache: {} banned entries removed", found.removed),
        Ok(Err(e)) => warn!("cache: cannot shorten the ban list: {e}"),
        Err(e) => warn!("cache: cannot shorten the ban list: {e}"),
    }
}

/// What a search for banned entries has come to.
struct Found {
    removed: usize,
    /// The lowest generation of which nobody can tell.
    unknown: Option<u64>,
}

fn search_banned(cache: &'static DiskCache, newest: u64) -> Found {
    let mut found = Found {
        removed: 0,
        unknown: None,
    };
    for part in 0..cache.index().parts() {
        for id in cache.index().part(part) {
            if id.generation >= newest {
                continue;
            }
            match read_meta(&cache.backend().layout().meta(&id)) {
                Ok(meta) => {
                    let key = || (&*meta.key.user_tag, &*meta.primary_key);
                    let bans = cache.ban_list();
                    if bans.void(id.generation, &meta.key.primary, key)
                        || (meta.key.variance.is_some() && bans.voids_variant(id.generation))
                    {
                        cache.evict(id, Eviction::Purged);
                        found.removed += 1;
                    }
                }
                // No entry, as will turn out when it is asked for.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                    ) => {}
                Err(_) => {
                    let lowest = found.unknown.unwrap_or(u64::MAX);
                    found.unknown = Some(lowest.min(id.generation));
                }
            }
        }
    }
    found
}

/// Make removals in a folder survive a power failure.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match open_folder(folder) {
        Ok(folder) => folder.sync_all(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cache::DiskCacheConfig;

    const LIMIT: u64 = 1 << 20;

    #[tokio::test]
    async fn a_leftover_that_cannot_be_removed_at_the_start_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let layout = crate::cache::store::layout::Layout::new(dir.path());
        let id = EntryId {
            hash: [7; 16],
            generation: 1,
        };
        let leftovers = [
            layout.body_tmp(&id),
            layout.meta_tmp(&id),
            layout.body(&EntryId {
                generation: 2,
                ..id
            }),
        ];
        for path in &leftovers {
            fs::create_dir_all(path).unwrap();
        }
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), LIMIT)).unwrap();
        cache.wait_loaded();
        cache.removed_all().await;
        assert!(cache.has_failed_removals());
        for path in &leftovers {
            fs::remove_dir(path).unwrap();
            fs::write(path, "left").unwrap();
        }
        while cache.has_failed_removals() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for path in &leftovers {
            assert!(!path.exists(), "{}", path.display());
        }
    }

    /// In place of a file, a folder, which is no file to unlink(2).
    #[tokio::test]
    async fn files_that_cannot_be_removed_keep_their_space_and_are_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(DiskCacheConfig::new(dir.path(), LIMIT)).unwrap();
        cache.wait_loaded();
        let layout = cache.backend().layout();
        for is_fill in [false, true] {
            let id = EntryId {
                hash: [7; 16],
                generation: cache.next_generation(),
            };
            let path = match is_fill {
                true => layout.body_tmp(&id),
                false => layout.body(&id),
            };
            fs::create_dir_all(&path).unwrap();
            let claim = cache.claim(LIMIT / 2, u8::MAX).await;
            assert!(claim.is_some());
            match is_fill {
                true => cache.remove_fill(id, claim),
                false => cache.remove_files(id, claim),
            }
            cache.removed_all().await;
            assert!(cache.has_failed_removals());
            assert!(
                cache.claim(LIMIT / 2 + 1, u8::MAX).await.is_none(),
                "the space is still taken"
            );

            fs::remove_dir(&path).unwrap();
            while cache.has_failed_removals() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(cache.claim(LIMIT, u8::MAX).await.is_some(), "all is free");
        }
    }
}
