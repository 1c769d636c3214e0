//! The ownership of the folders of a cache: locks, epochs, takeover, close.

mod epoch;
mod join;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::cache::config::{DiskCacheConfig, FolderConfig};
use crate::cache::io::backend::DiskBackend;
use crate::cache::io::disk_io::{DiskIo, Threads};
use crate::cache::io::folder::{FolderAccess, LocalFolder};
use crate::cache::io::folder_fd::FolderFd;
use crate::cache::io::folder_lock::{FolderLock, Renewed};
use crate::cache::io::patience::{self, Patience};
use crate::cache::jobs::misplaced;
use crate::cache::jobs::recovery::{self, Leftovers};
use crate::cache::lifecycle::join::{unless_full, Join, Joining, Past};
use crate::cache::state::cores::Cores;
use crate::cache::state::health::Condition;
use crate::cache::state::peers::Peer;
use crate::cache::state::routing::path_hash;
use crate::cache::state::stats::Cause;
use crate::cache::state::{Core, Opened, Queues, Repair, Shared, NOT_WRITABLE};
use crate::cache::store::bans::Bans;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::layout::Layout;
use crate::cache::store::members::Members;

/// Time between two attempts of a successor to take the folders over, beside the time that an attempt
/// takes. Each reads the bans of the other process.
const TAKEOVER_INTERVAL: Duration = Duration::from_millis(250);

/// Time between two checks of the lock file.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two examinations of a folder that fails, or that is suspected to.
const EXAMINE_INTERVAL: Duration = match cfg!(test) {
    true => Duration::from_millis(20),
    false => Duration::from_secs(1),
};

/// The ownership of the folders of a cache.
pub(crate) struct Lifecycle {
    /// The paths of the configuration, including folders that could not be opened.
    configured: Vec<FolderConfig>,
    folders: Vec<&'static Owned>,
    shared: Shared,
}

/// The ownership of a folder.
struct Owned {
    core: &'static Core,
    lock: Arc<FolderLock>,
    /// True if the folder was a cache before. Otherwise nothing in it is ours to remove.
    was_cache: bool,
    /// True once a takeover has failed: the folder is absent until a restart.
    is_given_up: AtomicBool,
    /// True once the folder is released for good.
    is_closed: AtomicBool,
    /// Held while its epoch is written and while its lock is released, never on an async worker.
    epoch: Mutex<()>,
    /// Held while the lock is checked, never on an async worker.
    check: Mutex<()>,
}

/// A folder that is locked, or shared, and not yet part of a run.
pub(crate) struct Prepared {
    lock: Arc<FolderLock>,
    was_cache: bool,
    io: DiskIo,
    patience: Patience,
    layout: Layout,
    folder: FolderFd,
    bans: Bans,
    past: Past,
    /// Bytes of the entries, if they are known.
    size: Option<u64>,
}

/// The folders of a new cache.
pub(crate) struct Begun {
    pub cores: Cores,
    pub lifecycle: Lifecycle,
    /// The queues of each opened folder.
    pub queues: Vec<Queues>,
}

/// Prepare the folders of `config`, each with the time limits and the backend for its position. Blocks.
pub(crate) fn prepare_all(
    config: &DiskCacheConfig,
    patience: impl Fn(usize) -> Patience,
    backend: impl Fn(usize, &Handle) -> io::Result<Box<dyn DiskBackend>> + Send + Sync + 'static,
) -> Vec<io::Result<Prepared>> {
    let (successor, is_one_of_several) = (config.successor, config.folders.len() > 1);
    let paths = config.folders.iter().map(|folder| folder.path.clone());
    let folders = paths.enumerate().map(|(position, path)| {
        let patience = patience(position);
        patience::Folder {
            path,
            limit: patience.long(),
            of: (position, patience),
        }
    });
    patience::each(folders.collect(), move |path, (position, patience)| {
        let backend = |runtime: &Handle| backend(position, runtime);
        prepare(path, patience, successor, is_one_of_several, backend)
    })
}

/// Create a folder, lock it, and read its lists. Blocks.
fn prepare(
    path: &Path,
    patience: Patience,
    successor: bool,
    is_one_of_several: bool,
    backend: impl FnOnce(&Handle) -> io::Result<Box<dyn DiskBackend>>,
) -> io::Result<Prepared> {
    LocalFolder
        .create_folder(path)
        .map_err(|e| in_folder(path, "create the cache folder", e))?;
    let was_cache = match LocalFolder.stat(&path.join("epoch")) {
        Ok(_) => true,
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    };
    let lock = FolderLock::take(path).map_err(|e| lock_error(path, e))?;
    if !lock.is_held() && !successor {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "{}: another process uses this cache folder; stop it, or give each its own {}",
                path.display(),
                path_key(is_one_of_several)
            ),
        ));
    }
    let threads = Threads::start()?;
    let backend = Box::leak(backend(threads.handle())?);
    let io = DiskIo::new(backend, threads);
    let backend = io.backend();
    let layout = Layout::new(path);
    layout
        .create_folders(backend)
        .map_err(|e| in_folder(path, "create folders", e))?;
    let mut bans = Bans::load(backend, path, lock.is_held())
        .map_err(|e| in_folder(&path.join("bans"), "read the ban list", e))?;
    let lock = Arc::new(lock);
    bans.keep_on(lock.mount().clone());
    let past = Past::load(backend, path, &layout)
        .map_err(|e| in_folder(path, "read the files of the cache folder", e))?;
    past.check(&bans)
        .map_err(|e| in_folder(path, "use the cache folder", e))?;
    let size = match was_cache {
        true => past.last.closed_size(backend, path),
        false => Some(0),
    };
    Ok(Prepared {
        lock,
        was_cache,
        io,
        patience,
        layout,
        folder: FolderFd::open(path),
        bans,
        past,
        size,
    })
}

/// Begin a run in the folders of `config`, of which `prepared` has those that could be opened. An
/// epoch starts if this process holds all locks. Blocks.
pub(crate) fn begin(
    config: &DiskCacheConfig,
    prepared: Vec<Option<Prepared>>,
) -> io::Result<Begun> {
    let writable = prepared
        .iter()
        .flatten()
        .all(|folder| folder.lock.is_held());
    let (positions, prepared): (Vec<_>, Vec<_>) = (prepared.into_iter().enumerate())
        .filter_map(|(position, prepared)| Some((position, prepared?)))
        .unzip();
    let path = |position: &usize| &*config.folders[*position].path;
    let joining = positions.iter().map(path).zip(&prepared);
    let joining: Vec<_> = joining.map(|(path, of)| of.joining(path)).collect();
    let join = join::join(&joining, &paths(&config.folders), 0)?;
    drop(joining);
    let join = Arc::new(join);
    let folders = positions.iter().zip(prepared).enumerate();
    let folders = folders.map(|(at, (position, prepared))| patience::Folder {
        path: path(position).into(),
        limit: prepared.patience.long(),
        of: (at, prepared),
    });
    let begun = {
        let join = join.clone();
        patience::each(folders.collect(), move |path, (at, folder)| {
            let is_current = folder.begin(&join, at, path, writable)?;
            Ok((folder, is_current))
        })
    };
    let all_failed = begun.iter().all(io::Result::is_err);
    let mut opened: Vec<_> = config.folders.iter().map(|_| None).collect();
    for (at, (position, begun)) in positions.into_iter().zip(begun).enumerate() {
        match begun {
            Ok(begun) => opened[position] = Some((at, begun)),
            Err(e) if all_failed => return Err(e),
            Err(e) => warn_unusable(&e),
        }
    }

    let first_generation = if writable { join.first_generation() } else { 0 };
    let shared = Shared::new(config, first_generation);
    let (mut all, mut folders, mut queues) = (Vec::new(), Vec::new(), Vec::new());
    for (folder, opened) in config.folders.iter().zip(opened) {
        let Some((at, (prepared, is_current))) = opened else {
            all.push(None);
            continue;
        };
        let floor = join.members[at].floor;
        let (lock, was_cache, opened) = prepared.open(floor, writable);
        let (core, of_core) = Core::new(config, folder, shared.clone(), opened);
        let core: &'static Core = Box::leak(Box::new(core));
        if !is_current {
            core.health.fall_behind();
        }
        all.push(Some(core));
        queues.push(of_core);
        folders.push(&*Box::leak(Box::new(Owned {
            core,
            lock,
            was_cache,
            is_given_up: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            epoch: Mutex::default(),
            check: Mutex::default(),
        })));
    }
    warn_shared(&folders);
    let lifecycle = Lifecycle {
        configured: config.folders.clone(),
        folders,
        shared: shared.clone(),
    };
    if writable {
        lifecycle.set_peers(&join, lifecycle.folders.iter().copied());
    }
    Ok(Begun {
        cores: Cores::new(&config.folders, all, shared),
        lifecycle,
        queues,
    })
}

/// The key of the configuration that names the folder, or all of them.
fn path_key(is_one_of_several: bool) -> &'static str {
    match is_one_of_several {
        true => "cache.disk.paths",
        false => "cache.disk.path",
    }
}

/// Warn of folders on one file system: it has less space than each of them expects.
fn warn_shared(owned: &[&Owned]) {
    for (at, folder) in owned.iter().enumerate() {
        let mount = folder.lock.mount();
        let shares = |other: &&&Owned| other.lock.mount().is_on_same_file_system(mount);
        if let Some(other) = owned[..at].iter().find(shares) {
            warn!(
                "{} and {} are on one file system: it needs space for both, and min_free_gb makes both evict",
                other.core.path.display(),
                folder.core.path.display()
            );
        }
    }
}

/// Warn that a folder cannot be used.
pub(crate) fn warn_unusable(e: &io::Error) {
    error!(
        "{e}; its objects are not cached: mend it or take it out of cache.disk.paths, and restart"
    );
}

fn paths(folders: &[FolderConfig]) -> Vec<&Path> {
    folders.iter().map(|folder| folder.path.as_path()).collect()
}

// === impl Prepared ===

impl Prepared {
    fn joining<'a>(&'a self, path: &'a Path) -> Joining<'a> {
        Joining {
            path,
            access: self.io.backend(),
            bans: &self.bans,
            past: self.past.clone(),
        }
    }

    /// Begin the run in the folder, or have its bans in force if another process writes to it. False:
    /// its disk is full. Blocks.
    fn begin(&self, join: &Join, at: usize, path: &Path, writable: bool) -> io::Result<bool> {
        let joining = self.joining(path);
        if !writable {
            join.share_bans(&joining);
            return Ok(true);
        }
        join.write(at, &joining)
            .map_err(|e| in_folder(path, "write to the cache folder", e))
    }

    fn open(self, floor: u64, writable: bool) -> (Arc<FolderLock>, bool, Opened) {
        let opened = Opened {
            mount: self.lock.mount().clone(),
            io: self.io,
            patience: self.patience,
            layout: self.layout,
            folder: self.folder,
            bans: self.bans,
            floor,
            size: self.size,
            writable,
        };
        (self.lock, self.was_cache, opened)
    }
}

// === impl Lifecycle ===

impl Lifecycle {
    /// Recover the entries, on threads of their own, and keep the locks, as long as the cache
    /// lives.
    pub(crate) fn start(
        &'static self,
        cores: &'static Cores,
        repairs: Vec<mpsc::Receiver<Repair>>,
    ) -> io::Result<()> {
        for (folder, repairs) in self.folders.iter().zip(repairs) {
            let runtime = folder.core.io.runtime();
            runtime.spawn(self.keep_locked(folder));
            runtime.spawn(self.repair(folder, repairs));
            runtime.spawn(self.watch(folder));
        }
        if !self.folders.iter().all(|folder| folder.core.is_writable()) {
            for folder in &self.folders {
                spawn_loader(|| {
                    recovery::recover(folder.core, Leftovers::Keep);
                    set_recovered(folder.core);
                })?;
            }
            return spawn_loader(move || self.take_over(cores));
        }
        let first_generation = epoch::first_generation(self.shared.peers.epoch());
        for folder in &self.folders {
            spawn_loader(move || {
                recovery::recover(folder.core, Leftovers::RemoveBelow(first_generation));
                set_recovered(folder.core);
                folder.remove_outdated(cores);
            })?;
        }
        Ok(())
    }

    /// Begin a run in the folders as soon as the other process has released them. Blocks.
    fn take_over(&self, cores: &'static Cores) {
        for Owned { core, .. } in &self.folders {
            info!(
                "{}: another process writes to this cache folder; nothing is stored until it releases the lock",
                core.path.display()
            );
        }
        let free = self.wait_for_locks();
        let Some((taken, first_generation)) = self.begin_runs(free) else {
            return;
        };
        for folder in taken {
            let recover = move || {
                // The folder is listed by one thread at a time.
                folder.core.recovery.wait();
                // The entries and leftovers of the other process.
                let leftovers = Leftovers::RemoveBelow(first_generation);
                recovery::recover_again(folder.core, leftovers);
                folder.remove_outdated(cores);
            };
            let path = folder.core.path.display();
            info!("{path}: taken over");
            if let Err(e) = spawn_loader(recover) {
                warn!("{path}: cannot list it again: {e}");
            }
        }
    }

    /// Wait until the other process releases the folders, and apply its purges meanwhile. Returns
    /// those that are locked now. Blocks.
    fn wait_for_locks(&self) -> Vec<&'static Owned> {
        let is_held = |folder: &&&Owned| folder.lock.is_held();
        let held_before = self.folders.iter().filter(is_held).count();
        let mut folders = self.folders.clone();
        let mut released: Option<Instant> = None;
        loop {
            let (mut held, mut waiting) = (Vec::new(), Vec::new());
            for (folder, is_held) in folders.iter().zip(each(&folders, Owned::try_lock)) {
                match is_held {
                    Ok(true) => held.push(*folder),
                    Ok(false) => waiting.push(*folder),
                    Err(e) => folder.give_up(&e),
                }
            }
            if held.len() > held_before {
                // A process releases all its folders at the same time, except those that hang.
                let released = *released.get_or_insert_with(Instant::now);
                waiting.retain(|folder| {
                    let may_come = released.elapsed() <= folder.core.patience.long();
                    if !may_come {
                        let why = io::Error::other("the other process does not release it");
                        folder.give_up(&why);
                    }
                    may_come
                });
            }
            if waiting.is_empty() {
                return held;
            }
            folders.retain(|folder| !folder.is_given_up());
            if let [_, _, ..] = folders[..] {
                // A folder may miss some that another has.
                let bans = folders.iter().flat_map(|folder| folder.core.bans.all());
                let bans: Vec<_> = bans.collect();
                folders.iter().for_each(|f| f.core.bans.add_all(&bans));
            }
            std::thread::sleep(TAKEOVER_INTERVAL);
        }
    }

    /// Begin an epoch in folders that the other process has released. Returns those that are taken
    /// over, and the first generation. Blocks.
    fn begin_runs(&self, free: Vec<&'static Owned>) -> Option<(Vec<&'static Owned>, u64)> {
        let (mut joining, mut folders) = (Vec::new(), Vec::new());
        for (folder, of) in free.iter().zip(each(&free, Owned::joining)) {
            match of {
                Ok(of) => {
                    joining.push(of);
                    folders.push(*folder);
                }
                Err(e) => folder.give_up(&e),
            }
        }
        let join = match join::join(&joining, &paths(&self.configured), 0) {
            Ok(join) => Arc::new(join),
            Err(e) => {
                folders.iter().for_each(|folder| folder.give_up(&e));
                return None;
            }
        };
        let joining = joining.into_iter().zip(&folders).enumerate();
        let joining = joining.map(|(at, (folder, of))| patience::Folder {
            path: folder.path.to_owned(),
            limit: of.core.patience.long(),
            of: (at, folder),
        });
        let begun = {
            let join = join.clone();
            patience::each(joining.collect(), move |_, (at, folder)| {
                let is_current = join.write(at, &folder)?;
                let size = folder.past.last.closed_size(folder.access, folder.path);
                Ok((is_current, size))
            })
        };
        let mut taken = Vec::new();
        for ((folder, begun), members) in folders.into_iter().zip(begun).zip(&join.members) {
            match begun {
                Ok((is_current, size)) => {
                    folder.set_floor(members.floor);
                    if !is_current {
                        folder.core.health.fall_behind();
                    }
                    taken.push((folder, size));
                }
                Err(e) => folder.give_up(&e),
            }
        }
        let first_generation = join.first_generation();
        self.shared.generations.restart(first_generation);
        self.set_peers(&join, taken.iter().map(|(folder, _)| *folder));
        for (Owned { core, .. }, size) in &taken {
            core.recovery.start(*size);
            core.reset_written();
            core.recovery.request();
        }
        // The other process may have stored blocks, or newer metadata, since they were opened.
        for (Owned { core, .. }, _) in &taken {
            core.sparse_bodies.clear();
            core.folder.renew(&core.path);
        }
        self.shared.open_entries.forget_all();
        for (Owned { core, .. }, _) in &taken {
            core.set_writable(true);
        }
        let taken = taken.into_iter().map(|(folder, _)| folder).collect();
        Some((taken, first_generation))
    }

    /// Have the folders in which the run has begun list each other. All other folders of the
    /// configuration are absent: they may miss bans.
    fn set_peers<'a>(&self, join: &Join, begun: impl IntoIterator<Item = &'a Owned>) {
        let begun: Vec<_> = begun.into_iter().collect();
        let mut absent = join.absent.clone();
        let mut peers = Vec::new();
        for (at, members) in join.members.iter().enumerate() {
            let is_it = |of: &&&Owned| path_hash(&of.core.path) == members.own.path;
            match begun.iter().find(is_it) {
                Some(of) => peers.push((of.peer(), members.clone())),
                None => absent.extend(join.listed(at)),
            }
        }
        self.shared
            .peers
            .begin(join.epoch, peers, absent, join.is_kept);
    }

    /// The folders of the configuration.
    pub(crate) fn configured(&self) -> &[FolderConfig] {
        &self.configured
    }

    async fn keep_locked(&'static self, folder: &'static Owned) {
        while !folder.is_closed() {
            tokio::time::sleep(LOCK_INTERVAL).await;
            let runtime = folder.core.io.runtime();
            let mut kept = runtime.spawn_blocking(|| self.keep_lock(folder));
            let limit = folder.core.patience.short();
            let kept = match tokio::time::timeout(limit, &mut kept).await {
                Ok(kept) => kept,
                Err(_) => {
                    folder.core.health.suspect(Cause::Other);
                    kept.await
                }
            };
            if let Err(e) = kept {
                warn!("cannot check the lock of the cache folder: {e}");
            }
        }
    }

    /// Create missing folders on request.
    async fn repair(&'static self, folder: &'static Owned, mut repairs: mpsc::Receiver<Repair>) {
        while let Some(Repair { id, done }) = repairs.recv().await {
            folder.core.io.runtime().spawn_blocking(move || {
                let _ = done.send(self.repair_folder(folder, id));
            });
        }
    }

    /// Examine a folder whenever it may have failed, and until it works again.
    async fn watch(&'static self, folder: &'static Owned) {
        let core = folder.core;
        while !folder.is_closed() {
            if core.health.is_up() {
                core.health.suspected().await;
            }
            let mark = core.health.examine();
            let runtime = core.io.runtime();
            let mut examined = runtime.spawn_blocking(|| self.examine(folder));
            let limit = core.patience.short();
            let result = match tokio::time::timeout(limit, &mut examined).await {
                Ok(result) => result,
                Err(_) => {
                    let hangs = io::Error::from(io::ErrorKind::TimedOut);
                    note_examined(core, mark, &Err(hangs));
                    examined.await
                }
            };
            let result = result.unwrap_or_else(|e| Err(io::Error::other(e)));
            note_examined(core, mark, &result);
            tokio::time::sleep(EXAMINE_INTERVAL).await;
        }
    }

    /// Write the small files of a folder again, with all that could not be written to them before.
    /// Blocks.
    fn examine(&self, folder: &Owned) -> io::Result<()> {
        let Owned { core, lock, .. } = folder;
        if !lock.is_mounted() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let _epoch = folder.epoch.lock();
        if !lock.is_held() || !core.is_writable() {
            // A successor has not begun its run: all folders are read.
            let has_begun = self.shared.peers.epoch() > 0;
            let is_absent = has_begun || folder.is_given_up();
            return match is_absent && core.health.has_others() {
                true => Err(io::Error::other(NOT_WRITABLE)),
                false => Ok(()),
            };
        }
        lock.check_in_place()?;
        core.folder.renew(&core.path);
        if core.is_missing() {
            // The latest writes may be in a folder that took its place.
            core.bans.set_unsaved();
        }
        let is_saved = unless_full(core.bans.save())?;
        let is_listed = unless_full(self.shared.peers.rejoin(&core.path, is_saved))?;
        // Last: a list with an older epoch would count as that of another program.
        let epoch = self.shared.peers.epoch();
        if !unless_full(epoch::renew(core.backend(), &core.path, epoch))? {
            // Its entries must not be numbered by an epoch that it does not know.
            return Err(io::Error::other("the disk is too full to note the epoch"));
        }
        match is_saved && is_listed {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    /// If the lock file was removed, take the lock again; stop writing if another process was
    /// faster. Blocks.
    fn keep_lock(&self, folder: &'static Owned) {
        let Owned { core, lock, .. } = folder;
        let path = core.path.display();
        let _check = folder.check.lock();
        match lock.renew() {
            Renewed::Same if !lock.is_mounted() => core.health.suspect(Cause::Missing),
            Renewed::Same => {}
            Renewed::Lost => {
                core.set_writable(false);
                error!(
                    "{path}: the lock file was removed, and another process has taken this cache folder; \
                     nothing is stored until it ends: stop it, or give each its own {}",
                    path_key(core.health.has_others())
                );
                if core.health.has_others() {
                    // It has the bans of this process only when it is taken again.
                    core.health.fail(Condition::Down);
                }
            }
            Renewed::Taken { is_new } => match self.start_epoch(folder) {
                Ok(false) => {
                    core.set_writable(false);
                    core.health.fail(Condition::Down);
                    folder.forget_open();
                    error!(
                        "{path}: another folder is in the place of this cache folder, which is not used until \
                         it is back; to use the other one, restart"
                    );
                }
                Ok(true) => {
                    core.folder.renew(&core.path);
                    // Files of another folder, which was in its place meanwhile, may be open.
                    folder.forget_open();
                    let own = folder.epoch.lock();
                    // It may have been closed meanwhile.
                    core.set_writable(lock.is_held());
                    drop(own);
                    warn!("{path}: the lock file was replaced; this process holds the lock again");
                    if !is_new && core.recovery.is_complete() {
                        core.recovery.request();
                        recover_again(core);
                    }
                }
                Err(e) => {
                    core.set_writable(false);
                    lock.lose();
                    error!(
                        "{path}: cannot start a new epoch in the cache folder; trying again: {e}"
                    );
                }
            },
        }
    }

    /// Number the next entries above those that another process may have written meanwhile, and
    /// write the files again that a start would have written. False: another folder is there. Blocks.
    fn start_epoch(&self, folder: &Owned) -> io::Result<bool> {
        let core = folder.core;
        let own = folder.epoch.lock();
        if !self.is_same(core)? {
            return Ok(false);
        }
        folder.lock.confirm();
        core.bans.restore()?;
        let newest = core.bans.newest().max(core.generations.last());
        let last = epoch::last(core.backend(), &core.path, &core.layout)?;
        let epoch = epoch::after(last.epoch().into_iter().chain([epoch::epoch_of(newest)]))?;
        self.shared.peers.raise(epoch);
        if !core.health.is_up() {
            self.shared.peers.rejoin(&core.path, true)?;
        }
        epoch::begin(core.backend(), &core.path, epoch)?;
        drop(own);
        // The others as well: their entries have numbers of this epoch from now on.
        let is_other =
            |other: &&'static Owned| other.core.path != core.path && other.core.health.is_up();
        for other in self.folders.iter().copied().filter(is_other) {
            let (path, limit) = (&other.core.path, other.core.patience.short());
            let begun = patience::within(limit, path, move || other.begin_epoch(epoch));
            if let Err(e) = begun {
                let path = path.display();
                warn!("{path}: cannot note the new epoch; the cache folder is examined: {e}");
                // Its entries must not be numbered by an epoch that it does not know.
                other.core.health.fail(Condition::Down);
            }
        }
        core.generations.raise(epoch::first_generation(epoch));
        Ok(true)
    }

    /// True if a folder whose lock file was replaced is still the one that was opened, or was emptied: the
    /// bans of this cache say nothing about the entries of another. Blocks.
    fn is_same(&self, core: &Core) -> io::Result<bool> {
        let found = Members::load(core.backend(), &core.path)?;
        let is_own = self
            .shared
            .peers
            .is_own(&core.path, found.as_ref().map(|found| &found.own));
        let is_empty =
            || found.is_none() && core.layout.highest_generation(core.backend()).is_none();
        Ok(is_own || is_empty())
    }

    /// Create the folders that a new entry needs, in a cache folder that was emptied. Blocks.
    fn repair_folder(&self, folder: &'static Owned, id: EntryId) -> io::Result<()> {
        let core = folder.core;
        self.keep_lock(folder);
        if !core.is_writable() {
            return Err(io::Error::other(NOT_WRITABLE));
        }
        if !folder.lock.is_mounted() {
            return Err(io::ErrorKind::NotFound.into());
        }
        core.backend().create_folder(&core.layout.shard(id.hash[0]))
    }

    /// Wait, at most `timeout`, until complete fills are committed, and release the folders, at about
    /// the same time. Blocks; for the end of a process.
    pub(crate) fn close(&self, timeout: Duration) {
        let settle = move |_: &Path, of: &'static Owned| Ok(of.settle(timeout));
        let limit = |of: &Owned| timeout.saturating_add(of.core.patience.short());
        let folders = self.folders.iter().map(|of| of.work(limit(of), *of));
        let settled = patience::each(folders.collect(), settle);
        let settled = settled.into_iter().map(|settled| settled.unwrap_or(false));
        let folders = self.folders.iter().zip(settled);
        let limit = |of: &Owned| of.core.patience.short().saturating_mul(2);
        let folders = folders.map(|(of, is_settled)| of.work(limit(of), (*of, is_settled)));
        let close = |_: &Path, (of, is_settled): (&'static Owned, bool)| of.close(is_settled);
        let closed = patience::each(folders.collect(), close);
        for (of, closed) in self.folders.iter().zip(closed) {
            if let Err(e) = closed {
                let path = of.core.path.display();
                warn!("{path}: cannot release the cache folder before the process ends: {e}");
            }
        }
    }

    /// Release the locks as a killed process does.
    #[cfg(test)]
    pub(crate) fn kill(&self) {
        for folder in &self.folders {
            // A killed process writes nothing after that, whereas the threads of this one go on.
            let limit = folder.core.patience.short();
            let _epoch = folder.epoch.try_lock_for(limit);
            let _writes = folder.lock.pause_writes(limit);
            folder.core.set_writable(false);
            folder.is_closed.store(true, Ordering::Release);
            folder.lock.close();
        }
    }
}

// === impl Owned ===

impl Owned {
    /// The folder as the others know it.
    fn peer(&self) -> Arc<Peer> {
        let core = self.core;
        let (health, patience) = (core.health.clone(), core.patience.clone());
        let lock = self.lock.clone();
        Peer::new(&core.path, core.backend(), health, patience, lock)
    }

    /// The argument of a work in this folder that takes at most `limit`.
    fn work<A>(&self, limit: Duration, of: A) -> patience::Folder<A> {
        patience::Folder {
            path: self.core.path.clone(),
            limit,
            of,
        }
    }

    /// Lock the folder if the other process has released it. Otherwise, read its purges. Blocks.
    fn try_lock(&self) -> io::Result<bool> {
        let core = self.core;
        let is_held = self.lock.take_over();
        let is_held = is_held.map_err(|e| lock_error(&core.path, e))?;
        if !is_held {
            if let Err(e) = core.bans.reload(false) {
                let path = core.path.display();
                warn!("{path}: cannot read the ban list: {e}");
            }
        }
        Ok(is_held)
    }

    /// The state of the folder as the other process has left it. Blocks.
    fn joining(&self) -> io::Result<Joining<'static>> {
        let core = self.core;
        core.bans.reload(true)?;
        let past = Past::load(core.backend(), &core.path, &core.layout)?;
        past.check(&core.bans)?;
        Ok(Joining {
            path: &core.path,
            access: core.backend(),
            bans: &core.bans,
            past,
        })
    }

    /// Note an epoch that another folder has begun. Blocks.
    fn begin_epoch(&self, epoch: u32) -> io::Result<()> {
        let _epoch = self
            .epoch
            .try_lock_for(self.core.patience.short())
            .ok_or(io::ErrorKind::TimedOut)?;
        if !self.lock.is_held() {
            return Ok(());
        }
        self.lock.check_in_place()?;
        epoch::renew(self.core.backend(), &self.core.path, epoch)
    }

    /// Have entries of a lower generation than `floor` be no part of the cache.
    fn set_floor(&self, floor: u64) {
        self.core.set_floor(floor);
        let lower = self.entries().filter(|id| id.generation < floor);
        lower.for_each(|id| self.core.forget(id));
    }

    /// Have no entry of the folder open.
    fn forget_open(&self) {
        self.entries()
            .for_each(|id| self.core.open_entries.forget(&id));
    }

    fn entries(&self) -> impl Iterator<Item = EntryId> {
        let index = &self.core.index;
        (0..index.parts()).flat_map(|part| index.part(part))
    }

    fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Have the folder count as absent, because it cannot be taken over.
    fn give_up(&self, e: &io::Error) {
        self.is_given_up.store(true, Ordering::Release);
        if self.core.health.has_others() {
            self.core.health.fail(Condition::Down);
        }
        warn!(
            "{}: cannot take the cache folder over: {e}; nothing will be stored until a restart",
            self.core.path.display()
        );
    }

    /// Remove what recovered folders have from other configurations and versions. Blocks.
    fn remove_outdated(&self, cores: &Cores) {
        misplaced::evict(cores, self.core);
        if self.was_cache && self.core.is_writable() {
            recovery::remove_other_versions(self.core);
        }
    }

    /// Wait, at most `timeout`, until complete fills are committed. False: some are not. Blocks.
    fn settle(&self, timeout: Duration) -> bool {
        let core = self.core;
        let settle = async { tokio::time::timeout(timeout, settle(core)).await };
        let is_settled = core.io.block_on(settle).is_ok();
        if !is_settled {
            warn!(
                "{}: {} fills were not complete, and are lost",
                core.path.display(),
                core.fills.len()
            );
        }
        is_settled
    }

    /// Release the folder. While it hangs, the lock is kept to the end of the process: a write in
    /// progress must not replace files of the next one. Blocks.
    fn close(&self, is_settled: bool) -> io::Result<()> {
        let core = self.core;
        let until = Instant::now() + core.patience.short();
        let left = || until.saturating_duration_since(Instant::now());
        let epoch = self.epoch.try_lock_for(left());
        let was_writable = core.set_writable(false);
        let _epoch = epoch.ok_or(io::ErrorKind::TimedOut)?;
        let writes = self.lock.pause_writes(left());
        let _writes = writes.ok_or(io::ErrorKind::TimedOut)?;
        let is_exact = is_settled
            && !core.health.is_down()
            && core.recovery.is_complete()
            && !core.recovery.has_gaps()
            && !core.removals.have_failed();
        if was_writable && is_exact {
            let size = core.quota.taken(&core.index);
            let last = core.generations.last();
            if let Err(e) = epoch::note_size(core.backend(), &core.path, last, size) {
                warn!("{}: cannot note its size: {e}", core.path.display());
            }
        }
        self.is_closed.store(true, Ordering::Release);
        self.lock.close();
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }
}

/// Note the result of an examination that began with `mark`.
fn note_examined(core: &'static Core, mark: u64, written: &io::Result<()>) {
    let condition = Condition::of(written);
    // Files that were missing may be there again. No ban that they need is forgotten from here on.
    let may_return = condition == Condition::Up && core.health.spares_entries();
    if may_return {
        core.recovery.request();
    }
    let before = core.health.examined(mark, condition);
    core.health
        .set_behind(mark, written.is_err() && condition == Condition::Up);
    if may_return {
        match before {
            Some(_) => recover_again(core),
            None => core.recovery.cancel(),
        }
    }
    // A failed ban may have found out before.
    let is_found = before.is_some() || condition != Condition::Up;
    if !is_found || !core.health.set_stated(condition) {
        return;
    }
    let path = core.path.display();
    match (condition, written) {
        (Condition::Down, Err(e)) if core.health.has_others() => {
            error!("{path}: the cache folder fails, and is not used until it works again: {e}");
        }
        (Condition::Down, Err(e)) => error!("{path}: the cache folder fails: {e}"),
        (Condition::ReadOnly, Err(e)) => {
            error!("{path}: nothing is stored in the cache folder until it can be written: {e}");
        }
        _ => info!("{path}: the cache folder works again"),
    }
}

/// [`patience::each`] for folders that are open.
fn each<T: Send + 'static>(
    folders: &[&'static Owned],
    work: impl Fn(&'static Owned) -> io::Result<T> + Send + Sync + 'static,
) -> Vec<io::Result<T>> {
    let folders = folders.iter();
    let folders = folders.map(|of| of.work(of.core.patience.long(), *of));
    patience::each(folders.collect(), move |_, of| work(of))
}

fn spawn_loader(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let spawned = std::thread::Builder::new().name("cache-load".into());
    spawned.spawn(work).map(drop)
}

/// Wait until no fill is in flight and all files of evicted entries are removed.
pub(crate) async fn settle(core: &Core) {
    core.fills.wait_idle().await;
    core.recordings.done().await;
    core.removals.done().await;
}

fn set_recovered(core: &Core) {
    core.recovery.end();
    core.quota.notify();
}

/// Find the entries that another process has stored meanwhile, or that are there again.
fn recover_again(core: &'static Core) {
    core.recovery.start(None);
    core.reset_written();
    let recover = || recovery::recover_again(core, Leftovers::Keep);
    if let Err(e) = spawn_loader(recover) {
        warn!("{}: cannot list it again: {e}", core.path.display());
        core.recovery.add_gap();
        core.recovery.cancel();
    }
}

/// An error with the folder that it is about.
fn in_folder(path: &Path, doing: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: cannot {doing}: {e}", path.display()))
}

fn lock_error(path: &Path, e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::InvalidData => in_folder(&path.join("lock"), "lock it; remove it", e),
        _ => in_folder(path, "lock the cache folder", e),
    }
}
