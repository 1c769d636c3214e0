//! The start of a run in the folders of a cache: which of them belong together, and their bans.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use crate::cache::io::folder::FolderAccess;
use crate::cache::lifecycle::epoch::{self, Last};
use crate::cache::state::routing::path_hash;
use crate::cache::store::bans::{Banned, Bans};
use crate::cache::store::layout::Layout;
use crate::cache::store::members::{new_id, Member, Members};

/// The traces of earlier runs in a folder.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub last: Last,
    members: Option<Members>,
}

/// A folder that a run starts in.
pub(crate) struct Joining<'a> {
    pub path: &'a Path,
    pub access: &'static dyn FolderAccess,
    pub bans: &'a Bans,
    pub past: Past,
}

/// A run that starts.
#[derive(Debug)]
pub(crate) struct Join {
    pub epoch: u32,
    /// The files `members`, one for each folder.
    pub members: Vec<Members>,
    /// Folders of the configuration that were not opened.
    pub absent: Vec<Member>,
    /// False for a single folder that has always been one: it gets no file `members`.
    pub is_kept: bool,
    /// The bans of all folders.
    bans: Vec<(u64, Banned)>,
}

// === impl Past ===

impl Past {
    /// Blocks.
    pub(crate) fn load(
        access: &dyn FolderAccess,
        path: &Path,
        layout: &Layout,
    ) -> io::Result<Past> {
        Ok(Past {
            last: epoch::last(access, path, layout)?,
            members: Members::load(access, path)?,
        })
    }

    /// The last epoch in which the folder was used; `None`: there is nothing in it.
    fn epoch(&self) -> Option<u32> {
        let listed = self.members.as_ref().map(|members| members.own.epoch);
        self.last.epoch().max(listed)
    }

    /// True if this folder knows of every ban that the entries of `other` need: they were used
    /// together, and `other` was not used since without this one.
    fn covers(&self, other: &Past) -> bool {
        let Some(epoch) = other.epoch() else {
            return true;
        };
        let (Some(own), Some(theirs)) = (&self.members, &other.members) else {
            return false;
        };
        let is_copy = own.own.id == theirs.own.id;
        !is_copy
            && own
                .epoch_of(theirs.own.id)
                .is_some_and(|common| epoch <= common)
    }
}

// === impl Join ===

impl Join {
    /// The first generation of the run.
    pub(crate) fn first_generation(&self) -> u64 {
        epoch::first_generation(self.epoch)
    }

    /// Begin the run in a folder. Blocks.
    pub(crate) fn write(&self, at: usize, folder: &Joining) -> io::Result<()> {
        if self.is_kept {
            folder.bans.replace_all(&self.bans)?;
            self.members[at].store(folder.access, folder.path)?;
        }
        epoch::begin(folder.access, folder.path, self.epoch)
    }

    /// Have the bans of all folders in force in one. Nothing is written.
    pub(crate) fn share_bans(&self, folder: &Joining) {
        folder.bans.add_all(&self.bans);
    }
}

/// Join folders for a run that is later than the epoch `newest`. `configured`: the paths of all
/// folders, opened or not.
///
/// A folder that was used without the others has entries that their bans do not reach. So the largest
/// group of folders that belong together keeps its entries, the first one of the configuration if there
/// are several; the entries of other folders are given up.
pub(crate) fn join(folders: &[Joining], configured: &[&Path], newest: u32) -> io::Result<Join> {
    let is_kept = configured.len() > 1 || folders.iter().any(|f| f.past.members.is_some());
    let is_member = match configured {
        [_] => vec![true; folders.len()],
        _ => largest_group(folders),
    };
    let epochs = folders.iter().flat_map(|folder| {
        let members = folder.past.members.iter();
        let listed = members.flat_map(|members| members.others.iter().map(|other| other.epoch));
        let banned = epoch::epoch_of(folder.bans.newest());
        folder
            .past
            .epoch()
            .into_iter()
            .chain(listed)
            .chain([banned])
    });
    let epoch = epoch::after(epochs.chain([newest]))?;

    let mut own: Vec<Member> = Vec::new();
    let mut floors = Vec::new();
    for (folder, is_member) in folders.iter().zip(&is_member) {
        let members = folder.past.members.as_ref().filter(|_| *is_member);
        own.push(Member {
            id: members.map_or_else(new_id, |members| members.own.id),
            epoch,
            path: path_hash(folder.path),
        });
        floors.push(match (is_member, members) {
            (false, _) => epoch::first_generation(epoch),
            (true, members) => members.map_or(0, |members| members.floor),
        });
    }
    let absent = absent(folders, &is_member, configured, &own);
    let members = own.iter().zip(floors).map(|(own_member, floor)| {
        let others = own.iter().filter(|other| other.id != own_member.id);
        Members {
            own: *own_member,
            floor,
            others: others.chain(&absent).copied().collect(),
        }
    });
    let bans = folders.iter().zip(&is_member).filter(|(_, is)| **is);
    Ok(Join {
        epoch,
        members: members.collect(),
        is_kept,
        bans: bans.flat_map(|(folder, _)| folder.bans.all()).collect(),
        absent,
    })
}

/// The folders of the configuration that were not opened, as the others remember them.
fn absent(
    folders: &[Joining],
    is_member: &[bool],
    configured: &[&Path],
    own: &[Member],
) -> Vec<Member> {
    let mut absent: HashMap<u128, Member> = HashMap::new();
    let members = folders.iter().zip(is_member).filter(|(_, is)| **is);
    let lists = members.filter_map(|(folder, _)| folder.past.members.as_ref());
    for member in lists.flat_map(|members| &members.others) {
        let is_open = own
            .iter()
            .any(|own| own.id == member.id || own.path == member.path);
        let is_configured = configured.iter().any(|path| path_hash(path) == member.path);
        if is_configured && !is_open {
            let known = absent.entry(member.id).or_insert(*member);
            known.epoch = known.epoch.max(member.epoch);
        }
    }
    absent.into_values().collect()
}

/// For each folder, if it is one of the largest group whose entries the bans of one folder reach.
fn largest_group(folders: &[Joining]) -> Vec<bool> {
    let mut largest = Vec::new();
    let mut most = 0;
    for (at, reference) in folders.iter().enumerate() {
        let is_covered =
            |(other, folder): (usize, &Joining)| other == at || reference.past.covers(&folder.past);
        let group: Vec<bool> = folders.iter().enumerate().map(is_covered).collect();
        let filled = |(folder, is_member): (&Joining, &bool)| {
            usize::from(*is_member && folder.past.epoch().is_some())
        };
        let count: usize = folders.iter().zip(&group).map(filled).sum();
        if count > most || largest.is_empty() {
            (largest, most) = (group, count);
        }
    }
    largest
}
