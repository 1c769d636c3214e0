//! The folders of a cache, as they list each other in their files `members`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cache::io::folder::FolderAccess;
use crate::cache::state::health::Health;
use crate::cache::state::stats::Cause;
use crate::cache::store::members::{Member, Members};

/// Most bans that are kept for folders that are absent or fail. Beyond that, their entries are given
/// up instead.
const MAX_KEPT: usize = match cfg!(test) {
    true => 20,
    false => 10_000,
};

/// The folders of a cache.
#[derive(Default)]
pub(crate) struct Peers {
    epoch: AtomicU32,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// False for a single folder that has always been one: it has no such file.
    is_kept: bool,
    peers: Vec<Listed>,
    /// Folders of the configuration that could not be opened.
    absent: Vec<Member>,
    /// True if the files may list folders that were struck off.
    is_outdated: bool,
}

struct Listed {
    peer: Arc<Peer>,
    own: Member,
    floor: u64,
    /// False while it is struck off.
    is_listed: bool,
}

/// A folder that was opened.
pub(crate) struct Peer {
    path: PathBuf,
    access: &'static dyn FolderAccess,
    health: Arc<Health>,
    /// Held while its file is written, never on an async worker.
    file: Mutex<()>,
}

// === impl Peer ===

impl Peer {
    pub(crate) fn new(
        path: &Path,
        access: &'static dyn FolderAccess,
        health: Arc<Health>,
    ) -> Arc<Peer> {
        Arc::new(Peer {
            path: path.into(),
            access,
            health,
            file: Mutex::default(),
        })
    }
}

// === impl Peers ===

impl Peers {
    /// Begin an epoch with these folders, whose files are written already. `is_kept`: they have such
    /// files.
    pub(crate) fn begin(
        &self,
        epoch: u32,
        peers: impl IntoIterator<Item = (Arc<Peer>, Members)>,
        absent: Vec<Member>,
        is_kept: bool,
    ) {
        self.epoch.store(epoch, Ordering::Release);
        let peers = peers.into_iter().map(|(peer, members)| Listed {
            peer,
            own: members.own,
            floor: members.floor,
            is_listed: true,
        });
        *self.list.lock() = List {
            is_kept,
            peers: peers.collect(),
            absent,
            is_outdated: false,
        };
    }

    /// The present epoch.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// True if every folder of the configuration is open and works.
    pub(crate) fn are_all_up(&self) -> bool {
        self.list.lock().is_complete()
    }

    /// Note a new epoch of all folders. Those whose file cannot be written are suspected. Blocks.
    pub(crate) fn raise(&self, epoch: u32) {
        let peers = {
            let mut list = self.list.lock();
            self.epoch.store(epoch, Ordering::Release);
            for listed in &mut list.peers {
                listed.own.epoch = epoch;
            }
            list.working()
        };
        for peer in peers {
            if let Err(e) = self.store(&peer) {
                peer.health.suspect(Cause::of(&e));
            }
        }
    }

    /// True if bans may be forgotten of which no entry is left in the folders that work. If other
    /// folders may have such entries, they are struck off first if there are so many `bans`. Blocks.
    pub(crate) fn may_forget(&self, bans: usize) -> io::Result<bool> {
        let peers = {
            let mut list = self.list.lock();
            if list.is_complete() && !list.is_outdated {
                return Ok(true);
            }
            if list.is_kept && bans <= MAX_KEPT && !list.is_complete() {
                return Ok(false);
            }
            list.absent.clear();
            for listed in &mut list.peers {
                listed.is_listed = listed.peer.health.is_up();
            }
            list.is_outdated = true;
            list.working()
        };
        for peer in &peers {
            self.store(peer)?;
        }
        self.list.lock().is_outdated = false;
        Ok(true)
    }

    /// List a folder again that works again. Blocks.
    pub(crate) fn rejoin(&self, path: &Path) -> io::Result<()> {
        let (own, others) = {
            let list = self.list.lock();
            let own = list.peers.iter().find(|listed| listed.peer.path == path);
            let Some(own) = own.filter(|_| list.is_kept) else {
                return Ok(());
            };
            let others = match own.is_listed {
                true => Vec::new(),
                false => list.working(),
            };
            (own.peer.clone(), others)
        };
        // The folder itself first: the others must not list it with an epoch that it does not know.
        self.store(&own)?;
        if let Some(listed) = self.list.lock().listed_mut(path) {
            listed.is_listed = true;
        }
        for peer in others {
            if let Err(e) = self.store(&peer) {
                peer.health.suspect(Cause::of(&e));
            }
        }
        Ok(())
    }

    /// Write the file of a folder.
    fn store(&self, peer: &Peer) -> io::Result<()> {
        let _file = peer.file.lock();
        let members = self.list.lock().members_of(&peer.path);
        match members {
            Some(members) => members.store(peer.access, &peer.path),
            None => Ok(()),
        }
    }
}

// === impl List ===

impl List {
    fn is_complete(&self) -> bool {
        let is_up = |listed: &Listed| listed.is_listed && listed.peer.health.is_up();
        self.absent.is_empty() && self.peers.iter().all(is_up)
    }

    fn working(&self) -> Vec<Arc<Peer>> {
        let peers = self.peers.iter().map(|listed| &listed.peer);
        let working = peers.filter(|peer| self.is_kept && peer.health.is_up());
        working.cloned().collect()
    }

    fn listed_mut(&mut self, path: &Path) -> Option<&mut Listed> {
        self.peers
            .iter_mut()
            .find(|listed| listed.peer.path == path)
    }

    /// The content of the file of a folder; `None`: it has none.
    fn members_of(&self, path: &Path) -> Option<Members> {
        let of = self.peers.iter().find(|listed| listed.peer.path == path);
        let of = of.filter(|_| self.is_kept)?;
        let others = self.peers.iter().filter(|other| other.is_listed);
        let others = others
            .map(|other| other.own)
            .filter(|other| other.id != of.own.id);
        Some(Members {
            own: of.own,
            floor: of.floor,
            others: others.chain(self.absent.iter().copied()).collect(),
        })
    }
}
