//! Purges, bans and other invalidations.

use std::io;

use log::warn;
use pingora_cache::key::{CacheHashKey, CompactCacheKey, HashBinary};
use pingora_cache::CacheKey;

use crate::cache::state::fill::Fill;
use crate::cache::state::stats::Eviction;
use crate::cache::state::Core;
use crate::cache::store::bans::Banned;

/// Remove the entries of a key, in all variants, and keep its fills from becoming entries.
/// No crash brings them back after this returns. True if there were any.
pub(crate) async fn purge(core: &'static Core, key: CompactCacheKey) -> io::Result<bool> {
    check_writable(core)?;
    core.count_purge();
    let primary = key.primary;
    let has_fill = core.fills.get(&key.combined_bin()).is_some();
    let found = core.index.get(&key.combined_bin());
    // This also applies to requests that the origin has not answered yet.
    let generation = core.generations.next();
    core.recent_invalidations.record(generation, primary);
    let absent = found.is_none()
        && !has_fill
        && !core.fills.may_leave(&primary)
        && core.recovery.is_complete();
    let ban = move |generation| match absent {
        true => core.bans.ban_absent(generation, primary),
        false => core.bans.ban(generation, Banned::Exact(primary)),
    };
    ban_with(core, ban, move |fill| fill.key.primary == primary).await?;
    if let Some(entry) = found {
        core.evict(entry.id, Eviction::Purged);
    }
    Ok(found.is_some() || has_fill)
}

/// Invalidate what is stored for a key, as [`purge`] does, and the responses that the origin
/// has been asked for. Nothing is written if nothing is stored.
pub(crate) async fn invalidate(core: &'static Core, key: &CacheKey) -> io::Result<()> {
    let primary = key.primary_bin();
    invalidate_fills(core, &primary);
    // A crash could bring back what a fill has recorded.
    if core.may_have(key) || core.fills.may_leave(&primary) {
        purge(core, key.to_compact()).await?;
    }
    Ok(())
}

/// [`invalidate`] before this returns. A crash soon after may bring back what was stored.
pub(crate) fn invalidate_nowait(core: &'static Core, key: &CacheKey) {
    let primary = key.primary_bin();
    invalidate_fills(core, &primary);
    core.count_purge();
    match core.index.get(&key.combined_bin()) {
        Some(entry) => core.evict(entry.id, Eviction::Purged),
        None if core.fills.may_leave(&primary) => {}
        None => return,
    }
    let key = key.to_compact();
    core.io.runtime().spawn(async move {
        if let Err(e) = purge(core, key).await {
            warn!("an entry that was invalidated may come back after a crash: {e}");
        }
    });
}

/// Keep the fills of a key, in all variants, from becoming entries, and the responses that
/// the origin has been asked for.
fn invalidate_fills(core: &Core, primary: &HashBinary) {
    let generation = core.generations.next();
    core.recent_invalidations.record(generation, *primary);
    core.invalidate_fills(|fill| fill.id.generation < generation && fill.key.primary == *primary);
}

/// Invalidate all entries and fills of `user_tag` whose key begins with `prefix`. In force at
/// once, and durable when this returns. Their files are removed in the background.
pub(crate) async fn ban_prefix(
    core: &'static Core,
    user_tag: &str,
    prefix: &[u8],
) -> io::Result<()> {
    check_writable(core)?;
    core.count_purge();
    let (tag, bytes) = (user_tag.to_owned(), prefix.to_vec());
    let banned = Banned::Prefix(tag.clone(), bytes.clone());
    ban_with(
        core,
        move |generation| core.bans.ban(generation, banned),
        move |fill| *fill.key.user_tag == *tag && fill.primary_key.starts_with(&bytes),
    )
    .await
}

async fn ban_with(
    core: &'static Core,
    ban: impl FnOnce(u64) -> io::Result<()> + Send + 'static,
    matches: impl Fn(&Fill) -> bool,
) -> io::Result<()> {
    let generation = core.generations.next();
    let invalidate = || {
        core.invalidate_fills(|fill| fill.id.generation < generation && matches(fill));
    };
    invalidate();
    let banned = core
        .io
        .runtime()
        .spawn_blocking(move || ban(generation))
        .await
        .map_err(io::Error::other)?
        .map_err(|e| {
            let path = core.path.display();
            io::Error::new(e.kind(), format!("{path}: cannot write the ban list: {e}"))
        });
    // Fills that were about to begin have not seen the ban, or are in the table now.
    invalidate();
    banned
}

fn check_writable(core: &Core) -> io::Result<()> {
    if core.is_writable() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{}: another process still writes to this cache folder; purge there, or again when it has ended",
        core.path.display()
    )))
}
