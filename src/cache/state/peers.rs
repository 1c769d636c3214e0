//! The folders of a cache, as they list each other in their files `members`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cache::io::folder::FolderAccess;
use crate::cache::io::folder_lock::FolderLock;
use crate::cache::io::patience::{self, Patience};
use crate::cache::state::health::{Condition, Health};
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
    /// Folders of the configuration that could not be opened, with each epoch that they may have.
    absent: Vec<Member>,
    /// True if the files may list folders that were struck off, or with epochs that they do not have any
    /// more.
    is_outdated: bool,
    /// Number of changes so far.
    changes: u64,
}

struct Listed {
    peer: Arc<Peer>,
    /// Its epoch is the one that its file gets next.
    own: Member,
    /// Other epochs that its file may have.
    earlier: Vec<u32>,
    floor: u64,
    /// False while it is struck off.
    is_listed: bool,
}

/// A folder that was opened.
pub(crate) struct Peer {
    path: PathBuf,
    access: &'static dyn FolderAccess,
    health: Arc<Health>,
    patience: Patience,
    lock: Arc<FolderLock>,
}

// === impl Peer ===

impl Peer {
    pub(crate) fn new(
        path: &Path,
        access: &'static dyn FolderAccess,
        health: Arc<Health>,
        patience: Patience,
        lock: Arc<FolderLock>,
    ) -> Arc<Peer> {
        Arc::new(Peer {
            path: path.into(),
            access,
            health,
            patience,
            lock,
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
            earlier: Vec::new(),
            floor: members.floor,
            is_listed: true,
        });
        *self.list.lock() = List {
            is_kept,
            peers: peers.collect(),
            absent,
            is_outdated: is_kept,
            changes: 0,
        };
    }

    /// The present epoch.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// True if every folder of the configuration is open, works, and has all bans.
    pub(crate) fn are_all_current(&self) -> bool {
        self.list.lock().is_complete()
    }

    /// Note a new epoch in the files of all folders, before it begins. A folder that fails gets it when
    /// it works again. Blocks.
    pub(crate) fn raise(self: &Arc<Self>, epoch: u32) {
        let peers = {
            let mut list = self.list.lock();
            self.epoch.store(epoch, Ordering::Release);
            if !list.is_kept {
                return;
            }
            let up = list.peers.iter_mut().filter(|of| of.peer.health.is_up());
            up.for_each(|listed| listed.set_epoch(epoch));
            list.change();
            list.working()
        };
        for peer in peers {
            match self.store(&peer) {
                Ok(()) => self.list.lock().has_stored(&peer, epoch),
                Err(e) => peer.health.fail(match Condition::of(&Err(e)) {
                    // Its entries must not be numbered by an epoch that it does not know.
                    Condition::Up => Condition::Down,
                    condition => condition,
                }),
            }
        }
    }

    /// True if bans may be forgotten of which no entry is left in the folders that work. Folders that may
    /// have such entries nevertheless are struck off first, if there are more than [`MAX_KEPT`] `bans`.
    /// Blocks.
    pub(crate) fn may_forget(self: &Arc<Self>, bans: usize) -> io::Result<bool> {
        let (peers, changes, epoch) = {
            let mut list = self.list.lock();
            let is_complete = list.is_complete();
            if is_complete && !list.is_outdated {
                return Ok(true);
            }
            if list.is_kept && bans <= MAX_KEPT && !is_complete {
                return Ok(false);
            }
            if !is_complete {
                list.absent.clear();
                for listed in &mut list.peers {
                    listed.is_listed = listed.peer.health.is_current();
                }
                list.change();
            }
            (list.working(), list.changes, self.epoch())
        };
        let store = |peer: &Arc<Peer>| {
            let stored = self.store(peer);
            stored.inspect_err(|e| peer.health.suspect(Cause::of(e)))
        };
        // Twice: a folder must have its epoch before the others list it with no other.
        for peer in &peers {
            store(peer)?;
            self.list.lock().has_stored(peer, epoch);
        }
        peers.iter().try_for_each(store)?;
        let mut list = self.list.lock();
        if list.changes != changes {
            return Ok(false);
        }
        list.is_outdated = false;
        Ok(true)
    }

    /// True if a folder that is found at a path is the one that was opened there, as it was used last.
    /// `found`: its file; `None`: it has none. Always true without other folders.
    pub(crate) fn is_own(&self, path: &Path, found: Option<&Member>) -> bool {
        let list = self.list.lock();
        let mut peers = list.peers.iter().filter(|_| list.is_kept);
        let own = peers.find(|listed| listed.peer.path == path);
        let is_it = |own: Member| found.is_some_and(|of| (own.id, own.epoch) == (of.id, of.epoch));
        own.is_none_or(|own| own.listings().any(is_it))
    }

    /// Note the epoch of a folder that works again, and list it again if it `has_bans`, all of them.
    /// Blocks.
    pub(crate) fn rejoin(self: &Arc<Self>, path: &Path, has_bans: bool) -> io::Result<()> {
        let (own, epoch, others) = {
            let mut list = self.list.lock();
            let epoch = self.epoch();
            let is_kept = list.is_kept;
            let Some(listed) = list.listed_mut(path).filter(|_| is_kept) else {
                return Ok(());
            };
            let before = (listed.is_listed, listed.own.epoch);
            listed.is_listed |= has_bans;
            listed.set_epoch(epoch);
            let is_changed = (listed.is_listed, listed.own.epoch) != before;
            let own = listed.peer.clone();
            if is_changed {
                list.change();
            }
            let mut others = list.working();
            others.retain(|other| is_changed && !Arc::ptr_eq(other, &own));
            (own, epoch, others)
        };
        // The others first: they list it with its former epoch, too.
        for peer in others {
            if let Err(e) = self.store(&peer) {
                peer.health.suspect(Cause::of(&e));
            }
        }
        self.store(&own)?;
        self.list.lock().has_stored(&own, epoch);
        Ok(())
    }

    /// Write the file of a folder. A disk that hangs is an error.
    fn store(self: &Arc<Self>, peer: &Arc<Peer>) -> io::Result<()> {
        let (peers, of) = (self.clone(), peer.clone());
        patience::within(peer.patience.short(), &peer.path, move || {
            // The list of the latest caller is written last.
            of.lock.write(|| {
                let members = peers.list.lock().members_of(&of.path);
                match members {
                    Some(members) => members.store(of.access, &of.path),
                    None => Ok(()),
                }
            })
        })
    }
}

// === impl Listed ===

impl Listed {
    /// Have its file written with this epoch, and not known to have it until then.
    fn set_epoch(&mut self, epoch: u32) {
        let before = std::mem::replace(&mut self.own.epoch, epoch);
        if before != epoch && !self.earlier.contains(&before) {
            self.earlier.push(before);
        }
    }

    /// The folder as the others list it.
    fn listings(&self) -> impl Iterator<Item = Member> + '_ {
        let with = |epoch: &u32| Member {
            epoch: *epoch,
            ..self.own
        };
        std::iter::once(self.own).chain(self.earlier.iter().map(with))
    }
}

// === impl List ===

impl List {
    /// Note that the files do not have what they should have.
    fn change(&mut self) {
        self.changes += 1;
        self.is_outdated = true;
    }

    /// Note that the file of a folder was written with this epoch.
    fn has_stored(&mut self, peer: &Arc<Peer>, epoch: u32) {
        let of = self.peers.iter_mut();
        let mut of = of.filter(|listed| Arc::ptr_eq(&listed.peer, peer));
        if let Some(listed) = of.find(|listed| listed.own.epoch == epoch) {
            listed.earlier.clear();
        }
    }

    fn is_complete(&self) -> bool {
        let has_all = |listed: &Listed| listed.is_listed && listed.peer.health.is_current();
        self.absent.is_empty() && self.peers.iter().all(has_all)
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
        let others = self.peers.iter();
        let others = others.filter(|other| other.is_listed && other.own.id != of.own.id);
        let others = others.flat_map(Listed::listings);
        Some(Members {
            own: of.own,
            floor: of.floor,
            others: others.chain(self.absent.iter().copied()).collect(),
        })
    }
}
