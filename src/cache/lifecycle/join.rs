//! The start of a run in the folders of a cache: which of them belong together, and their bans.

use std::io;
use std::path::Path;

use crate::cache::io::folder::{is_full, FolderAccess};
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
    /// True for a folder that is not the one whose identity it has.
    is_copy: bool,
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
    /// Folders of the configuration that were not opened. One whose last epoch is uncertain is there
    /// with each.
    pub absent: Vec<Member>,
    /// False for a single folder that has always been one: it gets no file `members`.
    pub is_kept: bool,
    /// Each folder with its epoch before the run; `None`: the others must not list it so.
    before: Vec<Option<Member>>,
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
        let last = epoch::last(access, path, layout)?;
        // A program that does not know the file has used the folder since. The other way round, a crash
        // came between the two files of a start.
        let is_current = |members: &Members| last.epoch() <= Some(members.own.epoch);
        Ok(Past {
            members: Members::load(access, path)?.filter(is_current),
            last,
            is_copy: false,
        })
    }

    /// The last epoch in which the folder was used; `None`: there is nothing in it.
    fn epoch(&self) -> Option<u32> {
        let listed = self.members.as_ref().map(|members| members.own.epoch);
        listed.or(self.last.epoch())
    }

    /// The newest epoch that the files of the folder know of.
    pub(crate) fn newest(&self, bans: &Bans) -> u32 {
        let others = self.members.iter().flat_map(|members| &members.others);
        let listed = others.map(|other| other.epoch);
        let known = self.epoch().into_iter().chain(listed);
        known.fold(epoch::epoch_of(bans.newest()), u32::max)
    }

    /// Fails if no epoch can follow: the other folders must not fail with this one.
    pub(crate) fn check(&self, bans: &Bans) -> io::Result<()> {
        epoch::after([self.newest(bans)]).map(drop)
    }

    fn id(&self) -> Option<u128> {
        self.members.as_ref().map(|members| members.own.id)
    }

    /// True if this folder lists `other` with the last epoch of that: it knows of every ban that the
    /// entries of `other` need and that `other` lacks.
    fn lists(&self, other: &Past) -> bool {
        match (&self.members, &other.members) {
            (Some(own), Some(other)) => own.lists(other.own.id, other.own.epoch),
            _ => false,
        }
    }

    /// True if another folder has given this one up: both were used last in the same epoch, and that
    /// one does not list this one any more.
    fn is_struck_off_by(&self, other: &Past) -> bool {
        self.epoch() == other.epoch() && self.lists(other) && !other.lists(self)
    }

    /// The first generation of the bans that `reference` may never have had.
    fn own_bans_from(&self, reference: &Past) -> u64 {
        let (Some(members), Some(reference)) = (&self.members, reference.id()) else {
            return 0;
        };
        let last_common = members.first_epoch_of(reference);
        last_common.map_or(0, |last| epoch::first_generation(last.saturating_add(1)))
    }
}

// === impl Join ===

impl Join {
    /// The first generation of the run.
    pub(crate) fn first_generation(&self) -> u64 {
        epoch::first_generation(self.epoch)
    }

    /// Begin the run in a folder. False: its disk is full, and has an older list of bans or members.
    /// Blocks.
    pub(crate) fn write(&self, at: usize, folder: &Joining) -> io::Result<bool> {
        let mut is_current = true;
        if self.is_kept {
            is_current &= unless_full(folder.bans.replace_all(&self.bans))?;
            is_current &= unless_full(self.members[at].store(folder.access, folder.path))?;
        }
        epoch::begin(folder.access, folder.path, self.epoch)?;
        Ok(is_current)
    }

    /// A folder as the others list it: with the new epoch, and with the one before, as long as it may not
    /// have begun the run.
    pub(crate) fn listed(&self, at: usize) -> impl Iterator<Item = Member> + '_ {
        std::iter::once(self.members[at].own).chain(self.before[at])
    }

    /// Have the bans of all folders in force in one. Nothing is written.
    pub(crate) fn share_bans(&self, folder: &Joining) {
        folder.bans.add_all(&self.bans);
    }
}

/// False: the disk is full, which is no fault.
pub(crate) fn unless_full(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Err(e) if is_full(&e) => Ok(false),
        written => written.map(|()| true),
    }
}

/// Join folders for a run that is later than the epoch `newest`. `configured`: the paths of all
/// folders, opened or not.
///
/// A folder that was used without the others has entries that their bans do not reach. So one folder is
/// the reference, and those that it lists keep their entries; the entries of the others are given up.
pub(crate) fn join(folders: &[Joining], configured: &[&Path], newest: u32) -> io::Result<Join> {
    let pasts = pasts(folders);
    let is_kept = configured.len() > 1 || pasts.iter().any(|past| past.members.is_some());
    let reference = match configured {
        [_] => pasts.first(),
        _ => reference(&pasts),
    };
    let is_member: Vec<bool> = pasts.iter().map(|past| keeps(reference, past)).collect();
    let epochs = folders.iter().map(|folder| folder.past.newest(folder.bans));
    let epoch = epoch::after(epochs.chain([newest]))?;

    let mut own: Vec<Member> = Vec::new();
    let mut before = Vec::new();
    let mut floors = Vec::new();
    for ((folder, past), is_member) in folders.iter().zip(&pasts).zip(&is_member) {
        let members = past.members.as_ref().filter(|_| *is_member);
        let path = path_hash(folder.path);
        own.push(Member {
            id: members.map_or_else(new_id, |members| members.own.id),
            epoch,
            path,
        });
        before.push(members.map(|members| Member {
            path,
            ..members.own
        }));
        floors.push(match (is_member, members) {
            (false, _) => epoch::first_generation(epoch),
            (true, members) => members.map_or(0, |members| members.floor),
        });
    }
    let mut join = Join {
        epoch,
        members: Vec::new(),
        absent: absent(reference, configured, &own),
        is_kept,
        before,
        bans: bans(folders, &pasts, reference, &is_member, epoch),
    };
    let empty = own.iter().zip(floors).map(|(own, floor)| Members {
        own: *own,
        floor,
        others: Vec::new(),
    });
    join.members = empty.collect();
    for at in 0..folders.len() {
        let others = (0..folders.len()).filter(|other| *other != at);
        let others = others.flat_map(|other| join.listed(other));
        let others = others.chain(join.absent.iter().copied()).collect();
        join.members[at].others = others;
    }
    Ok(join)
}

/// The traces of each folder. Of several with the same identity, all but one are copies; only one in
/// its own place can be told from them.
fn pasts(folders: &[Joining]) -> Vec<Past> {
    let is_copy = |folder: &Joining| {
        let Some(own) = folder.past.members.as_ref().map(|members| members.own) else {
            return false;
        };
        let same = folders
            .iter()
            .filter(|other| other.past.id() == Some(own.id));
        same.count() > 1 && own.path != path_hash(folder.path)
    };
    let past = |folder: &Joining| match is_copy(folder) {
        true => Past {
            last: folder.past.last,
            members: None,
            is_copy: true,
        },
        false => folder.past.clone(),
    };
    folders.iter().map(past).collect()
}

/// The folder whose list decides which others keep their entries; `None`: no folder keeps any.
///
/// It is one of those used last, unless it lists one that does not list it: then bans may have been
/// forgotten without it. Of these, it is the one that keeps most folders, the first of the
/// configuration if there are several.
fn reference(pasts: &[Past]) -> Option<&Past> {
    let genuine = || pasts.iter().filter(|past| !past.is_copy);
    let newest = genuine().filter_map(Past::epoch).max()?;
    let mut best = None;
    for past in genuine().filter(|past| past.epoch() == Some(newest)) {
        if pasts.iter().any(|other| past.is_struck_off_by(other)) {
            continue;
        }
        let kept = pasts.iter().filter(|other| keeps(Some(past), other));
        let kept = kept.filter(|other| other.epoch().is_some()).count();
        if best.is_none_or(|(most, _)| kept > most) {
            best = Some((kept, past));
        }
    }
    best.map(|(_, past)| past)
}

/// True if a folder is part of the cache with what is in it.
fn keeps(reference: Option<&Past>, past: &Past) -> bool {
    let is_listed = |reference: &Past| std::ptr::eq(reference, past) || reference.lists(past);
    past.epoch().is_none() || reference.is_some_and(is_listed)
}

/// The bans of all folders. A folder that is given up may have been used for purges without the
/// reference, and its generations say nothing about the age of entries elsewhere: such bans apply to
/// all entries.
fn bans(
    folders: &[Joining],
    pasts: &[Past],
    reference: Option<&Past>,
    is_member: &[bool],
    epoch: u32,
) -> Vec<(u64, Banned)> {
    let of = folders.iter().zip(pasts).zip(is_member);
    let bans = of.flat_map(|((folder, past), is_member)| {
        let own_from = match reference {
            Some(reference) if !is_member => past.own_bans_from(reference),
            _ => u64::MAX,
        };
        folder.bans.all().into_iter().map(move |(of, banned)| {
            let is_own = of >= own_from;
            let of = if is_own {
                epoch::first_generation(epoch)
            } else {
                of
            };
            (of, banned)
        })
    });
    bans.collect()
}

/// The folders of the configuration that were not opened, as the reference remembers them.
fn absent(reference: Option<&Past>, configured: &[&Path], own: &[Member]) -> Vec<Member> {
    let list = reference.and_then(|reference| reference.members.as_ref());
    let others = list.into_iter().flat_map(|members| &members.others);
    let is_absent = |member: &&Member| {
        let is_it = |own: &Member| own.id == member.id || own.path == member.path;
        let is_configured = configured.iter().any(|path| path_hash(path) == member.path);
        is_configured && !own.iter().any(is_it)
    };
    others.filter(is_absent).copied().collect()
}
