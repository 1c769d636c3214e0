//! The recovery of the entries of earlier runs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::Instant;

use log::{info, warn};

use crate::cache::io::folder::FileStat;
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::{disk_len, FIXED_LEN, MIN_BLOCK};
use crate::cache::store::index::{Indexed, Inserted};
use crate::cache::store::layout::{parse_name, FileKind, VERSION_FOLDER};
use crate::cache::write::space;

/// Most leftovers whose removal is tried again. The next start finds the others.
const MAX_FAILED: usize = 4096;

/// Treatment of files that make no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// Remove those of a lower generation than this: no process writes to them.
    RemoveBelow(u64),
    /// Keep them: this process or another may still be writing.
    Keep,
}

/// Index the entries in the cache folder, from names and sizes alone. Their content is checked
/// when they are opened. Blocks; runs on a thread of its own.
pub(crate) fn recover(core: &Core, leftovers: Leftovers) {
    let running = core.recovery.begin(false);
    list(core, leftovers);
    drop(running);
}

/// [`recover`] that was requested, if need be while this process stores entries: see [`RecoveryProgress::request`].
///
/// [`RecoveryProgress::request`]: crate::cache::state::recovery_progress::RecoveryProgress::request
pub(crate) fn recover_again(core: &Core, leftovers: Leftovers) {
    let running = core.recovery.begin(true);
    list(core, leftovers);
    drop(running);
}

fn list(core: &Core, leftovers: Leftovers) {
    let start = Instant::now();
    // Only a successor has any: entries that its predecessor may have removed meanwhile.
    let known: HashSet<EntryId> = (0..core.index.parts())
        .flat_map(|part| core.index.part(part))
        .collect();
    let mut recovery = Recovery {
        core,
        leftovers,
        known,
        found: 0,
        removed: 0,
        failed: 0,
    };
    for shard in 0..=u8::MAX {
        recovery.recover_shard(shard);
        core.recovery.add_shard();
    }
    if !core.recovery.has_gaps() {
        for id in recovery.known {
            core.forget(id);
        }
    }
    core.index.sort();
    space::enforce_limit(core);
    info!(
        "cache: {} entries found in {:?}, {} leftovers removed",
        recovery.found,
        start.elapsed(),
        recovery.removed
    );
}

struct Recovery<'a> {
    core: &'a Core,
    leftovers: Leftovers,
    /// Entries in the index that were not found on the disk so far.
    known: HashSet<EntryId>,
    /// Number of entries found.
    found: usize,
    /// Number of leftovers removed.
    removed: usize,
    /// Number of leftovers that could not be removed.
    failed: usize,
}

/// The files that an entry has.
#[derive(Default)]
struct Files {
    body: bool,
    meta: bool,
}

// === impl Recovery ===

impl Recovery<'_> {
    fn recover_shard(&mut self, shard: u8) {
        let folder = self.core.layout.shard(shard);
        let mut entries: HashMap<EntryId, Files> = HashMap::new();
        let mut temporary = Vec::new();
        let listed = self.core.backend().list(&folder, &mut |name| {
            let parsed = name.to_str().and_then(parse_name);
            match parsed.filter(|(id, _)| id.hash[0] == shard) {
                Some((id, FileKind::Body)) => entries.entry(id).or_default().body = true,
                Some((id, FileKind::Meta)) => entries.entry(id).or_default().meta = true,
                Some((id, FileKind::Temporary)) => temporary.push((id, name)),
                None => {}
            }
        });
        match listed {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => {
                self.core.recovery.add_gap();
                warn!("{}: cannot list the cache folder: {e}", folder.display());
                return;
            }
        }
        for (id, name) in temporary {
            self.remove_leftover(id, &folder.join(name));
        }
        let layout = &self.core.layout;
        for (id, files) in entries {
            self.known.remove(&id);
            match files {
                _ if id.generation < self.core.floor() => {
                    self.remove_leftover(id, &layout.meta(&id));
                    self.remove_leftover(id, &layout.body(&id));
                }
                // This process is writing it.
                _ if self.core.fills.by_generation(id.generation).is_some() => {}
                Files {
                    body: true,
                    meta: true,
                } => self.add(id),
                Files { meta: true, .. } => self.remove_leftover(id, &layout.meta(&id)),
                Files { .. } => self.remove_leftover(id, &layout.body(&id)),
            }
        }
    }

    fn remove_leftover(&mut self, id: EntryId, path: &Path) {
        let Leftovers::RemoveBelow(generation) = self.leftovers else {
            return;
        };
        if id.generation >= generation {
            return;
        }
        self.removed += 1;
        if let Err(e) = self.core.backend().remove_file(path) {
            self.failed += 1;
            if self.failed <= MAX_FAILED {
                self.core.remove_leftover(id, path);
            } else {
                warn!("{}: cannot remove a leftover: {e}", path.display());
            }
        }
    }

    fn add(&mut self, id: EntryId) {
        let core = self.core;
        let files = core.files(&id);
        let stat = |path: &Path| core.backend().stat(path);
        let stats = stat(&files.body()).and_then(|body| Ok((body, stat(&files.meta())?)));
        let (body, meta) = match stats {
            Ok(stats) => stats,
            // Removed since the folder was listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => {
                core.recovery.add_gap();
                warn!("cache entry {id} is left out: {e}");
                return;
            }
        };
        // A power failure left the name of the metadata file without its content.
        if meta.len < FIXED_LEN as u64 {
            self.remove_leftover(id, &files.meta());
            return self.remove_leftover(id, &files.body());
        }
        let entry = Indexed {
            id,
            weight: stored_len(&body).saturating_add(disk_len(meta.len)),
            used: core.clock.started(),
        };
        match core.index.insert_found(entry) {
            Inserted::New => self.found += 1,
            // Another process may have stored more of it since it was found first.
            Inserted::Known => core.index.set_weight(&id, entry.weight),
            // Two generations of a key: a crash came between a refill and the removal of the
            // entry that it replaced.
            Inserted::Replaced(older) => self.remove_older(older),
            Inserted::Outdated => self.remove_older(id),
        }
        // A takeover may have given up older entries meanwhile.
        if id.generation < core.floor() {
            core.forget(id);
        }
    }

    fn remove_older(&mut self, id: EntryId) {
        if self.leftovers == Leftovers::Keep {
            return;
        }
        self.removed += 1;
        self.core.forget(id);
        self.core.remove_files(id, None);
    }
}

/// Bytes that a body takes on the disk. One in blocks has holes, each at least as long as a block.
fn stored_len(body: &FileStat) -> u64 {
    match body.len.saturating_sub(body.allocated) >= u64::from(MIN_BLOCK) {
        true => body.allocated,
        false => disk_len(body.len),
    }
}

/// Remove the entries of other versions of the format, from a folder that was a cache before.
/// Blocks.
pub(crate) fn remove_other_versions(core: &Core) {
    let mut names = Vec::new();
    let listed = core
        .backend()
        .list(&core.path, &mut |name| names.extend(name.into_string()));
    if listed.is_err() {
        return;
    }
    for name in names {
        let is_version = name.strip_prefix('v').is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        });
        let path = core.path.join(&name);
        if (is_version || name == "entries")
            && name != VERSION_FOLDER
            && holds_only_shards(core, &path)
        {
            info!("{}: of another version, removed", path.display());
            if let Err(e) = core.backend().remove_folder(&path) {
                warn!("{}: cannot remove it: {e}", path.display());
            }
        }
    }
}

/// True if a folder has only folders named by a byte, as every version has made them.
fn holds_only_shards(core: &Core, folder: &Path) -> bool {
    let is_byte = |name: &str| name.len() == 2 && u8::from_str_radix(name, 16).is_ok();
    let mut only_shards = true;
    let listed = core.backend().list(folder, &mut |name| {
        only_shards &= name.to_str().is_some_and(is_byte);
    });
    listed.is_ok() && only_shards
}
