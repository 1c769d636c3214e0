//! The entries of an earlier run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use log::{info, warn};
use pingora_cache::key::CacheHashKey;
use pingora_cache::CacheEntryKey;

use super::format::EntryMeta;
use super::tokio_fs::{read_meta, remove_if_there};
use super::{DiskCache, EntryId};

/// Index what is under `entries`, and remove what an interrupted run has left
/// there. Blocks; runs on a thread of its own.
///
/// Files of `first_generation` or later belong to this run and are left alone.
pub(super) fn load(cache: &DiskCache, entries: &Path, first_generation: u64) {
    let start = Instant::now();
    let mut found = Vec::new();
    let mut leftovers = 0;
    for shard in list(entries) {
        for file in list(&shard) {
            match classify(&file, first_generation) {
                Kind::Current => {}
                Kind::Entry(meta, id, used) => {
                    // Two generations of a key: a crash came between a refill
                    // and the removal of what it replaced.
                    if let Some(older) = cache.publish(&meta.key, id) {
                        leftovers += remove(&shard, older);
                    }
                    if cache.index.contains(&id) {
                        found.push((used, meta.key.clone(), id, meta.weight()));
                    }
                }
                Kind::Leftover => {
                    leftovers += 1;
                    if let Err(e) = remove_if_there(&file) {
                        warn!("{}: cannot remove a leftover: {e}", file.display());
                    }
                }
                Kind::Foreign => {}
            }
        }
    }
    // The least recently used first, so that they are the first to go.
    found.sort_by_key(|(used, ..)| *used);
    let total = found.len();
    let mut evicted = 0;
    for (_, key, id, weight) in found {
        if !cache.index.contains(&id) {
            continue;
        }
        for victim in cache.admit(key, weight, id) {
            evicted += 1;
            evict(cache, entries, &victim);
        }
    }
    info!(
        "cache: {total} entries found in {:?}, {leftovers} leftovers removed, {evicted} evicted",
        start.elapsed()
    );
}

fn evict(cache: &DiskCache, entries: &Path, victim: &CacheEntryKey) {
    let Some(generation) = victim.entry_id() else {
        return;
    };
    let id = EntryId {
        hash: victim.key().combined_bin(),
        generation: generation.get(),
    };
    cache.index.remove(&id);
    remove(&entries.join(format!("{:02x}", id.hash[0])), id);
}

/// How many files were removed.
fn remove(shard: &Path, id: EntryId) -> usize {
    ["meta", "body"]
        .into_iter()
        .filter(|extension| fs::remove_file(shard.join(format!("{id}.{extension}"))).is_ok())
        .count()
}

enum Kind {
    /// Written by this run.
    Current,
    /// A metadata file with its complete body, last used then.
    Entry(EntryMeta, EntryId, SystemTime),
    /// Part of what was once to become an entry, or is no longer one.
    Leftover,
    /// A body, which its metadata file answers for; or no file of ours.
    Foreign,
}

fn classify(file: &Path, first_generation: u64) -> Kind {
    let Some((id, extension)) = parse_name(file) else {
        return Kind::Foreign;
    };
    if id.generation >= first_generation {
        return Kind::Current;
    }
    match extension {
        "body" if file.with_extension("meta").exists() => Kind::Foreign,
        "meta" => match read_entry(file, id) {
            Ok((meta, used)) => Kind::Entry(meta, id, used),
            // Its body is found in its own turn, or was before: remove both here.
            Err(e) => {
                warn!("{}: dropped: {e}", file.display());
                let _ = remove_if_there(&file.with_extension("body"));
                Kind::Leftover
            }
        },
        "body" | "body.tmp" | "meta.tmp" => Kind::Leftover,
        _ => Kind::Foreign,
    }
}

fn read_entry(file: &Path, id: EntryId) -> io::Result<(EntryMeta, SystemTime)> {
    let meta = read_meta(file)?;
    let body = fs::metadata(file.with_extension("body"))?;
    if meta.generation != id.generation
        || meta.key.combined_bin() != id.hash
        || meta.body_len != body.len()
    {
        return Err(super::format::invalid("metadata and body do not match"));
    }
    // With relatime the access time lags by a day at most.
    let used = body.accessed().or_else(|_| body.modified())?;
    Ok((meta, used))
}

/// `<hash>.<generation>.<extension>`
fn parse_name(file: &Path) -> Option<(EntryId, &str)> {
    let name = file.file_name()?.to_str()?;
    let (hash, rest) = name.split_once('.')?;
    let (generation, extension) = rest.split_once('.')?;
    Some((
        EntryId {
            hash: pingora_cache::key::str2hex(hash)?,
            generation: u64::from_str_radix(generation, 16).ok()?,
        },
        extension,
    ))
}

/// The generations of all entries on disk.
pub(super) fn generations(entries: &Path) -> impl Iterator<Item = u64> + '_ {
    list(entries)
        .into_iter()
        .flat_map(|shard| list(&shard))
        .filter_map(|file| parse_name(&file).map(|(id, _)| id.generation))
}

fn list(folder: &Path) -> Vec<PathBuf> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => {
            warn!("{}: cannot list the cache folder: {e}", folder.display());
            Vec::new()
        }
    }
}
