//! The entries of an earlier run.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use log::{info, warn};

use crate::cache::io::tokio_fs::remove_if_there;
use crate::cache::store::index::{Indexed, Inserted};
use crate::cache::store::layout::{self, FileKind, Layout, SHARDS, VERSION_FOLDER};
use crate::cache::{DiskCache, EntryId};

/// How far the index has been loaded.
#[derive(Debug, Default)]
pub struct Progress {
    shards: AtomicUsize,
    gaps: AtomicBool,
}

impl Progress {
    /// From 0 to 1.
    pub fn ratio(&self) -> f64 {
        self.shards.load(Ordering::Acquire) as f64 / SHARDS as f64
    }

    /// Whether there may be entries that could not be looked at.
    pub fn has_gaps(&self) -> bool {
        self.gaps.load(Ordering::Acquire)
    }

    pub(crate) fn restart(&self) {
        self.shards.store(0, Ordering::Release);
    }

    /// Whether all entries of earlier runs are known.
    pub fn is_complete(&self) -> bool {
        self.shards.load(Ordering::Acquire) >= SHARDS
    }
}

/// Most leftovers whose removal is tried again. The next start finds the others.
const MAX_FAILED: usize = 4096;

/// What to do with files that make no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// Remove those of a lower generation than this: nobody writes to them.
    RemoveBelow(u64),
    /// Leave them: another process may still be writing.
    Keep,
}

/// Index what is in the cache folder, from names and sizes alone: what is in the
/// files is checked when they are opened. Blocks; runs on a thread of its own.
pub(crate) fn load(cache: &DiskCache, leftovers: Leftovers) {
    let start = Instant::now();
    let progress = cache.load_progress();
    progress.restart();
    // Only a successor knows any: what its predecessor has removed meanwhile.
    let mut known: HashSet<EntryId> = (0..cache.index().parts())
        .flat_map(|part| cache.index().part(part))
        .collect();
    let mut counted = Counted::default();
    for shard in 0..=u8::MAX {
        load_shard(cache, shard, leftovers, &mut known, &mut counted);
        progress.shards.fetch_add(1, Ordering::AcqRel);
    }
    if !progress.has_gaps() {
        for id in known {
            cache.forget(id);
        }
    }
    cache.index().sort();
    cache.keep_limit();
    info!(
        "cache: {} entries found in {:?}, {} leftovers removed",
        counted.entries,
        start.elapsed(),
        counted.leftovers
    );
}

#[derive(Default)]
struct Counted {
    entries: usize,
    leftovers: usize,
    /// Leftovers that could not be removed.
    failed: usize,
}

/// Which of its files an entry has.
#[derive(Default)]
struct Files {
    body: bool,
    meta: bool,
}

fn load_shard(
    cache: &DiskCache,
    shard: u8,
    leftovers: Leftovers,
    known: &mut HashSet<EntryId>,
    counted: &mut Counted,
) {
    let layout = cache.backend().layout();
    let folder = layout.shard(shard);
    let names = match fs::read_dir(&folder) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => {
            cache.load_progress().gaps.store(true, Ordering::Release);
            warn!("{}: cannot list the cache folder: {e}", folder.display());
            return;
        }
    };
    let remove = |path: &Path, id: &EntryId, counted: &mut Counted| {
        let Leftovers::RemoveBelow(generation) = leftovers else {
            return;
        };
        if id.generation < generation {
            counted.leftovers += 1;
            if let Err(e) = remove_if_there(path) {
                counted.failed += 1;
                if counted.failed <= MAX_FAILED {
                    cache.remove_leftover(*id, path);
                } else {
                    warn!("{}: cannot remove a leftover: {e}", path.display());
                }
            }
        }
    };
    let mut entries: HashMap<EntryId, Files> = HashMap::new();
    for name in names {
        let name = match name {
            Ok(name) => name,
            Err(e) => {
                cache.load_progress().gaps.store(true, Ordering::Release);
                warn!("{}: cannot list the cache folder: {e}", folder.display());
                return;
            }
        };
        let Some((id, kind)) = name.file_name().to_str().and_then(layout::parse_name) else {
            continue;
        };
        if id.hash[0] != shard {
            continue;
        }
        match kind {
            FileKind::Body => entries.entry(id).or_default().body = true,
            FileKind::Meta => entries.entry(id).or_default().meta = true,
            FileKind::Temporary => remove(&name.path(), &id, counted),
        }
    }
    for (id, files) in entries {
        known.remove(&id);
        match files {
            Files {
                body: true,
                meta: true,
            } => found(cache, layout, id, leftovers, counted),
            Files { meta: true, .. } => remove(&layout.meta(&id), &id, counted),
            Files { .. } => remove(&layout.body(&id), &id, counted),
        }
    }
}

fn found(
    cache: &DiskCache,
    layout: &Layout,
    id: EntryId,
    leftovers: Leftovers,
    counted: &mut Counted,
) {
    let stat = || {
        Ok::<_, io::Error>((
            fs::symlink_metadata(layout.body(&id))?,
            fs::symlink_metadata(layout.meta(&id))?,
        ))
    };
    let (body, meta) = match stat() {
        Ok(stat) => stat,
        // Removed since the folder was listed.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => {
            cache.load_progress().gaps.store(true, Ordering::Release);
            warn!("cache entry {id} is left out: {e}");
            return;
        }
    };
    let entry = Indexed {
        id,
        weight: body.len().saturating_add(meta.len()),
        used: cache.clock().past(last_used(&body)),
    };
    match cache.index().insert_found(entry) {
        Inserted::New => counted.entries += 1,
        Inserted::Known => {}
        // Two generations of a key: a crash came between a refill and the
        // removal of what it replaced.
        Inserted::Replaced(older) => remove_older(cache, older, leftovers, counted),
        Inserted::Outdated => remove_older(cache, id, leftovers, counted),
    }
}

fn remove_older(cache: &DiskCache, id: EntryId, leftovers: Leftovers, counted: &mut Counted) {
    if leftovers == Leftovers::Keep {
        return;
    }
    counted.leftovers += 1;
    cache.forget(id);
    cache.remove_files(id, None);
}

/// With relatime, the access time lags by a day at most.
fn last_used(body: &Metadata) -> SystemTime {
    let times = [body.accessed(), body.modified()];
    times
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Remove the entries of other versions of the format, from a folder that was a
/// cache before. Blocks.
pub(crate) fn remove_other_versions(path: &Path) {
    let Ok(names) = fs::read_dir(path) else {
        return;
    };
    for name in names.flatten() {
        let file_name = name.file_name();
        let Some(text) = file_name.to_str() else {
            continue;
        };
        let is_version = text.strip_prefix('v').is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        });
        if (is_version || text == "entries")
            && text != VERSION_FOLDER
            && holds_only_shards(&name.path())
        {
            info!("{}: of another version, removed", name.path().display());
            if let Err(e) = fs::remove_dir_all(name.path()) {
                warn!("{}: cannot remove it: {e}", name.path().display());
            }
        }
    }
}

/// Whether a folder is what every version has made: folders named by a byte.
fn holds_only_shards(folder: &Path) -> bool {
    let is_byte = |name: &str| name.len() == 2 && u8::from_str_radix(name, 16).is_ok();
    fs::read_dir(folder).is_ok_and(|names| {
        names
            .flatten()
            .all(|name| name.file_name().to_str().is_some_and(is_byte))
    })
}

/// The generations of all entries on disk. Blocks.
pub(crate) fn generations(layout: &Layout) -> impl Iterator<Item = u64> + '_ {
    (0..=u8::MAX)
        .filter_map(|shard| fs::read_dir(layout.shard(shard)).ok())
        .flat_map(|names| names.flatten())
        .filter_map(|name| layout::parse_name(name.file_name().to_str()?))
        .map(|(id, _)| id.generation)
}
