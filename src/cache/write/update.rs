//! New metadata for an entry or a fill, after a revalidation.

use std::sync::Arc;

use log::warn;
use pingora_cache::key::{CacheHashKey, HashBinary};
use pingora_cache::{CacheKey, CacheMeta};
use pingora_core::Result;

use crate::cache::read::lookup;
use crate::cache::state::open_entries::ReadyBody;
use crate::cache::state::sparse_body::SparseBody;
use crate::cache::state::stats::Cause;
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;
use crate::cache::write::blocks;

/// Replace the metadata stored for a key. `false`: there is none of this response.
pub(crate) async fn update_meta(
    core: &'static Core,
    key: &CacheKey,
    meta: &CacheMeta,
) -> Result<bool> {
    let hash = key.combined_bin();
    let serialized = meta.serialize()?;
    // A revalidation keeps the time at which its response was made. Another response may have
    // been stored for the key meanwhile, with another body.
    let created = meta.created();
    if core.fills.set_meta(&hash, created, &serialized) {
        record_revalidation(core, hash);
        return Ok(true);
    }
    let (internal, header) = serialized;
    if !core.is_writable() {
        return Ok(false);
    }
    let Some(indexed) = core.index.get(&hash) else {
        return Ok(false);
    };
    let Some(entry) = lookup::open_entry(core, indexed).await else {
        return Ok(false);
    };
    if entry.cache_meta()?.created() != created {
        return Ok(false);
    }
    if let ReadyBody::Sparse(body) = &entry.body {
        return Ok(store_header(core, body.clone(), internal, header).await);
    }
    let new = EntryMeta {
        internal,
        header,
        ..EntryMeta::clone(&entry.meta)
    };
    // Continues when the request is dropped.
    let store = store_meta(core, indexed.id, new);
    let stored = core.io.runtime().spawn(store).await;
    Ok(stored.unwrap_or(false))
}

/// Replace the header of an entry in blocks. True if the entry is still current.
async fn store_header(
    core: &'static Core,
    body: Arc<SparseBody>,
    internal: Vec<u8>,
    header: Vec<u8>,
) -> bool {
    let meta = body.set_header(internal, header);
    // Continues when the request is dropped.
    let recorded = core.io.runtime().spawn(async move {
        let is_current = blocks::record(core, &body).await;
        if is_current {
            renew(core, body.id, meta);
        }
        is_current
    });
    recorded.await.unwrap_or(false)
}

/// Replace the metadata of an entry. True if the entry is still current.
async fn store_meta(core: &'static Core, id: EntryId, meta: EntryMeta) -> bool {
    let weight = meta.weight();
    let files = core.files(&id);
    let written = core.backend().write_meta(&files, meta.encode());
    if let Err(e) = core.patiently(core.patience.short(), written).await {
        core.stats.read_errors(Cause::of(&e)).inc();
        warn!("cache entry {id}: cannot update its metadata: {e}");
        return false;
    }
    if !core.index.contains(&id) {
        // Purged or replaced meanwhile: remove the file just written.
        core.remove_files(id, None);
        return false;
    }
    core.index.set_weight(&id, weight);
    renew(core, id, meta);
    true
}

/// Have lookups find new metadata, which is stored.
fn renew(core: &Core, id: EntryId, meta: EntryMeta) {
    core.open_entries.set_meta(id, meta);
    // If it was evicted meanwhile, nothing else forgets it.
    if !core.index.contains(&id) {
        core.open_entries.forget(&id);
    }
    record_revalidation(core, id.hash);
}

/// Note that lookups find new metadata from now on.
fn record_revalidation(core: &Core, hash: HashBinary) {
    let generation = core.generations.next();
    core.recent_revalidations.record(generation, hash);
}
