//! The end of a fill: it becomes an entry, or leaves nothing.

use std::io;
use std::sync::Arc;

use log::warn;

use crate::cache::io::folder;
use crate::cache::state::fill::Fill;
use crate::cache::state::quota::Reservation;
use crate::cache::state::stats::{Cause, Eviction};
use crate::cache::state::{Core, NOT_WRITABLE};
use crate::cache::store::format::{BlockMap, EntryMeta};
use crate::cache::store::index::{Indexed, Inserted};
use crate::cache::write::space;

/// What a fill has stored.
pub(crate) enum Content {
    /// All of the body, which has this CRC-32.
    Whole(u32),
    /// Blocks of it.
    Blocks(BlockMap),
}

/// The metadata of the entry that a fill becomes.
pub(crate) fn entry_meta(fill: &Fill, body_len: u64, content: Content) -> EntryMeta {
    let (internal, header) = fill.meta();
    let (body_crc32, blocks) = match content {
        Content::Whole(crc32) => (crc32, None),
        Content::Blocks(map) => (0, Some(map)),
    };
    EntryMeta {
        key: fill.key.clone(),
        primary_key: fill.primary_key.clone(),
        generation: fill.id.generation,
        stored_at: fill.stored_at(),
        body_len,
        body_crc32,
        blocks,
        internal,
        header,
    }
}

/// Make a fill an entry: a complete one, or one that has broken off and leaves blocks.
/// `checkpoint` is the result of the last checkpoint.
pub(crate) async fn commit(
    core: &'static Core,
    fill: &Arc<Fill>,
    body_len: u64,
    content: Content,
    reservation: Reservation,
    checkpoint: io::Result<()>,
) {
    if core.is_banned_fill(fill) {
        core.fills.remove(fill);
        return discard(core, fill, reservation).await;
    }
    let mut reservation = Some(reservation);
    let mut meta = entry_meta(fill, body_len, content);
    let files = core.files(&fill.id);
    let backend = core.backend();
    let commit = async {
        if !core.is_writable() {
            return Err(io::Error::other(NOT_WRITABLE));
        }
        checkpoint?;
        let file = fill.body.file();
        if fill.has_name() {
            return backend.record(&files, file, meta.encode()).await;
        }
        if meta.blocks.is_some() {
            backend.set_len(file, body_len).await?;
        }
        backend.commit(&files, file, meta.encode()).await
    };
    let mut committed = commit.await;
    while committed.is_ok() && !publish(core, fill, &meta, &mut reservation) {
        // A revalidation came in between: the entry has its metadata from the start.
        (meta.internal, meta.header) = fill.meta();
        committed = backend.write_meta(&files, meta.encode()).await;
        if committed.is_err() {
            core.remove_files(fill.id, reservation.take());
        }
    }
    if let Err(e) = committed {
        core.count_fill_error(Cause::of(&e));
        warn!("cache fill {fill} is given up: committing it: {e}");
        core.fills.remove(fill);
        if folder::is_full(&e) {
            space::make_disk_space(core, fill.uses()).await;
        }
        if let Some(reservation) = reservation.take() {
            match belongs_to_another(core, fill) {
                true => drop(reservation),
                false => core.remove_fill(fill.id, Some(reservation)),
            }
        }
    }
    space::limit_enforced(core).await;
}

/// Make a committed fill the current entry of its key, unless it was purged meanwhile, and set
/// `reservation` to `None`. `false`: its metadata is no longer `meta`.
fn publish(
    core: &Core,
    fill: &Fill,
    meta: &EntryMeta,
    reservation: &mut Option<Reservation>,
) -> bool {
    let entry = Indexed {
        id: fill.id,
        weight: meta.weight(),
        used: core.clock.now(),
    };
    let published = core.fills.publish(fill, meta, |invalidated| {
        let inserted = (!invalidated && !core.is_banned_fill(fill))
            .then(|| core.quota.insert(&core.index, entry));
        // Before anybody sees that the fill has ended.
        if inserted
            .as_ref()
            .is_some_and(|(inserted, _)| *inserted != Inserted::Outdated)
        {
            *reservation = None;
        }
        inserted
    });
    let Some(inserted) = published else {
        return false;
    };
    match inserted {
        Some((Inserted::New | Inserted::Known, _)) => count_fill(core, meta),
        Some((Inserted::Replaced(older), removing)) => {
            count_fill(core, meta);
            core.stats.evictions(Eviction::Replaced).inc();
            core.open_entries.forget(&older);
            core.remove_files(older, removing);
        }
        Some((Inserted::Outdated, _)) | None => core.remove_files(fill.id, reservation.take()),
    }
    *reservation = None;
    true
}

fn count_fill(core: &Core, meta: &EntryMeta) {
    if meta.blocks.is_none() {
        core.stats.fills.inc();
    }
    core.count_written(meta.weight());
}

/// True if another process may have found the last checkpoint of a fill, and use it as an entry.
fn belongs_to_another(core: &Core, fill: &Fill) -> bool {
    fill.has_name() && !core.is_writable()
}

/// Remove the files of a fill that does not become an entry.
pub(crate) async fn discard(core: &'static Core, fill: &Fill, reservation: Reservation) {
    if belongs_to_another(core, fill) {
        return;
    }
    let (backend, files) = (core.backend(), core.files(&fill.id));
    let discarded = match fill.has_name() {
        true => backend.remove(&files).await,
        false => backend.discard(&files).await,
    };
    match discarded {
        Ok(()) => core.open_bodies.hold(&fill.id, reservation),
        // It is tried again.
        Err(_) => core.remove_fill(fill.id, Some(reservation)),
    }
}
