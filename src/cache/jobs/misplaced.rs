//! The removal of entries that a change of the folders has left in one that their key no longer belongs
//! to.

use std::io;

use log::info;

use crate::cache::io::files::MAX_META_LEN;
use crate::cache::state::cores::Cores;
use crate::cache::state::stats::Eviction;
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;

/// Evict the entries that were recovered in a folder that their key does not belong to. No lookup finds
/// them, and a later change of the folders must not bring them back. Blocks.
pub(crate) fn evict(cores: &Cores, core: &Core) {
    if !cores.are_several() || !core.is_writable() {
        return;
    }
    let mut evicted = 0;
    for part in 0..core.index.parts() {
        for id in core.index.part(part) {
            // The name of an entry without a variance has the hash of its key. That of a variant does
            // not tell where the key belongs.
            if cores.is_at(&id.hash, core) || !is_misplaced(cores, core, &id).unwrap_or(false) {
                continue;
            }
            core.evict(id, Eviction::Replaced);
            evicted += 1;
        }
    }
    if evicted > 0 {
        info!(
            "{}: {evicted} entries belong to other cache folders now, removed",
            core.path.display()
        );
    }
}

fn is_misplaced(cores: &Cores, core: &Core, id: &EntryId) -> io::Result<bool> {
    let meta = core.files(id).meta();
    let meta = core.backend().read_file(&meta, MAX_META_LEN)?;
    let meta = EntryMeta::decode(&meta)?;
    Ok(!cores.is_at(&meta.key.primary, core))
}
