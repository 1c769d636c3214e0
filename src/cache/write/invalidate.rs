//! Purges, bans and other invalidations.

use std::io;

use futures::future::join_all;
use log::warn;
use pingora_cache::key::{CacheHashKey, CompactCacheKey, HashBinary};
use pingora_cache::CacheKey;
use tokio::time::timeout;

use crate::cache::state::cores::Cores;
use crate::cache::state::fill::Fill;
use crate::cache::state::health::Condition;
use crate::cache::state::stats::{Cause, Eviction};
use crate::cache::state::Core;
use crate::cache::store::bans::Banned;

/// Remove the entries of a key, in all variants, and keep its fills from becoming entries.
/// No crash brings them back after this returns. True if there were any.
pub(crate) async fn purge(cores: &'static Cores, key: CompactCacheKey) -> io::Result<bool> {
    check_writable(cores)?;
    cores.iter().for_each(Core::count_purge);
    let primary = key.primary;
    let hash = key.combined_bin();
    // This also applies to requests that the origin has not answered yet.
    let generation = cores.generations.next();
    // A folder that is absent, or cannot be written to, may have it.
    let mut absent = !cores.lack_one();
    let mut entries = Vec::new();
    let mut has_fill = false;
    for core in cores.iter() {
        core.recent_invalidations.record(generation, primary);
        has_fill |= core.fills.get(&hash).is_some();
        entries.extend(core.index.get(&hash).map(|entry| (core, entry.id)));
        absent &= core.recovery.is_complete() && !core.fills.may_leave(&primary);
    }
    absent &= entries.is_empty() && !has_fill;
    let ban = Ban {
        banned: Banned::Exact(primary),
        absent,
    };
    ban_with(cores, ban, move |fill| fill.key.primary == primary).await?;
    let is_found = has_fill || !entries.is_empty();
    for (core, id) in entries {
        core.evict(id, Eviction::Purged);
    }
    Ok(is_found)
}

/// Invalidate what is stored for a key, as [`purge`] does, and the responses that the origin
/// has been asked for. Nothing is written if nothing is stored.
pub(crate) async fn invalidate(cores: &'static Cores, key: &CacheKey) -> io::Result<()> {
    let primary = key.primary_bin();
    invalidate_fills(cores, &primary);
    // A crash could bring back what a fill has recorded.
    let may_come_back = |core: &Core| core.may_have(key) || core.fills.may_leave(&primary);
    if cores.lack_one() || cores.iter().any(may_come_back) {
        purge(cores, key.to_compact()).await?;
    }
    Ok(())
}

/// [`invalidate`] before this returns. A crash soon after may bring back what was stored.
pub(crate) fn invalidate_nowait(cores: &'static Cores, key: &CacheKey) {
    let primary = key.primary_bin();
    invalidate_fills(cores, &primary);
    cores.iter().for_each(Core::count_purge);
    let hash = key.combined_bin();
    let mut may_come_back = cores.lack_one();
    for core in cores.iter() {
        match core.index.get(&hash) {
            Some(entry) => {
                core.evict(entry.id, Eviction::Purged);
                may_come_back = true;
            }
            None => may_come_back |= core.fills.may_leave(&primary),
        }
    }
    let Some(core) = cores.iter().next().filter(|_| may_come_back) else {
        return;
    };
    let key = key.to_compact();
    core.io.runtime().spawn(async move {
        if let Err(e) = purge(cores, key).await {
            warn!("an entry that was invalidated may come back after a crash: {e}");
        }
    });
}

/// Keep the fills of a key, in all variants, from becoming entries, and the responses that
/// the origin has been asked for.
fn invalidate_fills(cores: &Cores, primary: &HashBinary) {
    let generation = cores.generations.next();
    for core in cores.iter() {
        core.recent_invalidations.record(generation, *primary);
        core.invalidate_fills(|fill| {
            fill.id.generation < generation && fill.key.primary == *primary
        });
    }
}

/// Invalidate all entries and fills of `user_tag` whose key begins with `prefix`. In force at
/// once, and durable when this returns. Their files are removed in the background.
pub(crate) async fn ban_prefix(
    cores: &'static Cores,
    user_tag: &str,
    prefix: &[u8],
) -> io::Result<()> {
    check_writable(cores)?;
    cores.iter().for_each(Core::count_purge);
    let (tag, bytes) = (user_tag.to_owned(), prefix.to_vec());
    let ban = Ban {
        banned: Banned::Prefix(tag.clone(), bytes.clone()),
        absent: false,
    };
    let matches = |fill: &Fill| *fill.key.user_tag == *tag && fill.primary_key.starts_with(&bytes);
    ban_with(cores, ban, matches).await
}

/// A ban that is requested.
#[derive(Clone)]
struct Ban {
    banned: Banned,
    /// True if nothing is stored for the key, except perhaps variants.
    absent: bool,
}

/// Ban in all folders: a key may have an entry in one that it no longer belongs to. A folder that fails
/// gets the ban in memory, and writes it before it is used again; one whose disk is full writes it when it
/// can.
async fn ban_with(
    cores: &'static Cores,
    ban: Ban,
    matches: impl Fn(&Fill) -> bool,
) -> io::Result<()> {
    let generation = cores.generations.next();
    let invalidate = || {
        for core in cores.iter() {
            core.invalidate_fills(|fill| fill.id.generation < generation && matches(fill));
        }
    };
    invalidate();
    let may_fail = cores.are_several();
    // Tasks of their own, so that a folder that hangs is noticed even if the requester leaves.
    let written = cores.iter().map(|core| {
        let written = ban_in(core, ban.clone(), generation, may_fail);
        core.io.runtime().spawn(written)
    });
    let written = join_all(written).await;
    // Fills that were about to begin have not seen the ban, or are in the table now.
    invalidate();
    let mut is_durable = false;
    for written in written {
        is_durable |= written.map_err(io::Error::other)??;
    }
    match is_durable {
        true => Ok(()),
        false => Err(io::Error::other(
            "no cache folder can be written to; what was purged may come back after a crash",
        )),
    }
}

/// Ban in one folder. `false`: the folder fails or its disk is full, and has it in memory alone. Where
/// that may not be, as there is no other folder, it is an error.
async fn ban_in(
    core: &'static Core,
    Ban { banned, absent }: Ban,
    generation: u64,
    may_fail: bool,
) -> io::Result<bool> {
    let condition = match core.is_writable() {
        true => core.health.condition(),
        // Another process may write the list.
        false => Condition::Down,
    };
    if may_fail && condition != Condition::Up {
        core.bans.ban_unsaved(generation, banned);
        // An examination that has written the list already does not make the folder usable.
        core.health.fail(condition);
        return Ok(false);
    }
    let unsaved = banned.clone();
    let write = move || match banned {
        Banned::Exact(primary) if absent => core.bans.ban_absent(generation, primary),
        banned => core.bans.ban(generation, banned),
    };
    let written = core.io.runtime().spawn_blocking(write);
    // One of several that hangs is not used after that until it works again.
    let written = match may_fail {
        true => timeout(core.patience.short(), written).await,
        false => Ok(written.await),
    };
    let written = match written {
        Ok(written) => written.map_err(io::Error::other)?,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let condition = Condition::of(&written);
    let Err(e) = written else {
        return Ok(true);
    };
    let path = core.path.display();
    if may_fail {
        warn!("{path}: cannot write the ban list; the cache folder is examined: {e}");
        // One that hangs may wait for others before the ban is in memory.
        core.bans.ban_unsaved(generation, unsaved);
        match condition {
            // The disk is full. The others do not forget the ban before it is written here.
            Condition::Up => core.health.fall_behind(),
            // It is not used with a list that lacks a ban.
            _ => core.health.fail(condition),
        }
        return Ok(false);
    }
    core.health.suspect(Cause::of(&e));
    let why = format!("{path}: cannot write the ban list: {e}");
    Err(io::Error::new(e.kind(), why))
}

/// Refuse a purge while another process writes to all folders, as the predecessor of this one does. A
/// single folder of several is absent instead, and has the ban when it is back.
fn check_writable(cores: &Cores) -> io::Result<()> {
    let has_begun = cores.peers.epoch() > 0;
    if has_begun && cores.iter().any(Core::is_writable) {
        return Ok(());
    }
    let Some(core) = cores.iter().find(|core| !core.is_writable()) else {
        return Ok(());
    };
    Err(io::Error::other(format!(
        "{}: another process still writes to this cache folder; purge there, or again when it has ended",
        core.path.display()
    )))
}
