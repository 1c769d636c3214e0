//! The folders of a cache.

use std::sync::Arc;

use pingora_cache::key::{CacheHashKey, HashBinary};

use crate::cache::config::FolderConfig;
use crate::cache::state::generations::Generations;
use crate::cache::state::open_entries::OpenEntries;
use crate::cache::state::peers::Peers;
use crate::cache::state::routing::Routing;
use crate::cache::state::stats::Stats;
use crate::cache::state::{Core, Shared};

/// The folders of a cache, and the choice of the one that a key belongs to.
pub(crate) struct Cores {
    /// In the order of the configuration. `None`: a folder that could not be opened.
    all: Box<[Option<&'static Core>]>,
    /// The only folder.
    only: Option<&'static Core>,
    routing: Routing,
    pub open_entries: Arc<OpenEntries>,
    pub generations: Arc<Generations>,
    pub stats: Arc<Stats>,
    pub peers: Arc<Peers>,
}

// === impl Cores ===

impl Cores {
    /// The cores of these folders, one each.
    pub(crate) fn new(
        folders: &[FolderConfig],
        all: Vec<Option<&'static Core>>,
        shared: Shared,
    ) -> Self {
        let only = match all[..] {
            [only] => only,
            _ => None,
        };
        Cores {
            all: all.into(),
            only,
            routing: Routing::new(folders),
            open_entries: shared.open_entries,
            generations: shared.generations,
            stats: shared.stats,
            peers: shared.peers,
        }
    }

    /// The folder of a key; `None`: it could not be opened, so nothing is stored for the key.
    #[inline]
    pub(crate) fn of(&self, key: &impl CacheHashKey) -> Option<&'static Core> {
        match self.only {
            Some(only) => Some(only),
            None => self.all[self.routing.folder_of(&key.primary_bin())],
        }
    }

    /// True if the keys with this primary hash belong to a folder.
    pub(crate) fn is_at(&self, primary: &HashBinary, core: &Core) -> bool {
        match self.only {
            Some(_) => true,
            None => self.all[self.routing.folder_of(primary)]
                .is_some_and(|other| std::ptr::eq(other, core)),
        }
    }

    /// The folders that could be opened.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static Core> + '_ {
        self.all.iter().filter_map(|core| *core)
    }

    /// Each folder, in the order of the configuration.
    pub(crate) fn all(&self) -> &[Option<&'static Core>] {
        &self.all
    }

    /// True if there are several folders, opened or not.
    pub(crate) fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// True if entries may be stored in another folder, which is absent or does not work, or lacks
    /// bans.
    pub(crate) fn lack_one(&self) -> bool {
        self.are_several() && !self.peers.are_all_current()
    }
}
