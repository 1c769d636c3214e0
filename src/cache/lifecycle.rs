//! The ownership of the folders of a cache: locks, epochs, takeover, close.

mod epoch;
mod join;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::{error, info, warn};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::cache::config::{DiskCacheConfig, FolderConfig};
use crate::cache::io::backend::DiskBackend;
use crate::cache::io::disk_io::{DiskIo, Threads};
use crate::cache::io::folder::{FolderAccess, LocalFolder};
use crate::cache::io::folder_lock::{FolderLock, Renewed};
use crate::cache::jobs::misplaced;
use crate::cache::jobs::recovery::{self, Leftovers};
use crate::cache::lifecycle::join::{Join, Joining, Past};
use crate::cache::state::cores::Cores;
use crate::cache::state::health::Condition;
use crate::cache::state::peers::Peer;
use crate::cache::state::routing::path_hash;
use crate::cache::state::stats::Cause;
use crate::cache::state::{Core, Opened, Queues, Repair, Shared, NOT_WRITABLE};
use crate::cache::store::bans::Bans;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::layout::Layout;

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

/// The longest time that an examination takes in a folder that works.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(10);

/// The ownership of the folders of a cache.
pub(crate) struct Lifecycle {
    /// The paths of the configuration, including folders that could not be opened.
    configured: Vec<FolderConfig>,
    folders: Vec<Owned>,
    shared: Shared,
}

/// The ownership of a folder.
struct Owned {
    core: &'static Core,
    lock: FolderLock,
    /// True if the folder was a cache before. Otherwise nothing in it is ours to remove.
    was_cache: bool,
    /// True once a takeover has failed: the folder is absent until a restart.
    is_given_up: AtomicBool,
    /// True once the folder is released for good.
    is_closed: AtomicBool,
    /// Held while its epoch is written and while its lock is released, never on an async worker.
    epoch: Mutex<()>,
}

/// A folder that is locked, or shared, and not yet part of a run.
pub(crate) struct Prepared {
    lock: FolderLock,
    was_cache: bool,
    io: DiskIo,
    layout: Layout,
    bans: Bans,
    past: Past,
}

/// The folders of a new cache.
pub(crate) struct Begun {
    pub cores: Cores,
    pub lifecycle: Lifecycle,
    /// The queues of each opened folder.
    pub queues: Vec<Queues>,
}

/// Create a folder, lock it, and read its lists. Blocks.
pub(crate) fn prepare(
    path: &Path,
    successor: bool,
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
                "{}: another process uses this cache folder; stop it, or give each its own cache.disk.path",
                path.display()
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
    bans.keep_on(lock.mount().clone());
    let past = Past::load(backend, path, &layout)
        .map_err(|e| in_folder(path, "read the files of the cache folder", e))?;
    past.check(&bans)
        .map_err(|e| in_folder(path, "use the cache folder", e))?;
    Ok(Prepared {
        lock,
        was_cache,
        io,
        layout,
        bans,
        past,
    })
}

/// Begin a run in the folders of `config`, of which `prepared` has those that could be opened. An
/// epoch starts if this process holds all locks. Blocks.
pub(crate) fn begin(
    config: &DiskCacheConfig,
    mut prepared: Vec<Option<Prepared>>,
) -> io::Result<Begun> {
    let writable = prepared
        .iter()
        .flatten()
        .all(|folder| folder.lock.is_held());
    let (positions, joining): (Vec<_>, Vec<_>) = (config.folders.iter().zip(&prepared))
        .enumerate()
        .filter_map(|(at, (folder, prepared))| Some((at, prepared.as_ref()?.joining(&folder.path))))
        .unzip();
    let join = join::join(&joining, &paths(&config.folders), 0)?;
    let mut failed = Vec::new();
    for (at, (folder, position)) in joining.iter().zip(&positions).enumerate() {
        if !writable {
            join.share_bans(folder);
        } else if let Err(e) = join.write(at, folder) {
            failed.push((
                *position,
                in_folder(folder.path, "write to the cache folder", e),
            ));
        }
    }
    drop(joining);
    let all_failed = failed.len() == positions.len();
    for (position, e) in failed {
        if all_failed {
            return Err(e);
        }
        warn_unusable(&e);
        prepared[position] = None;
    }

    let first_generation = if writable { join.first_generation() } else { 0 };
    let shared = Shared::new(config, first_generation);
    let (mut all, mut folders, mut queues) = (Vec::new(), Vec::new(), Vec::new());
    for (position, prepared) in prepared.into_iter().enumerate() {
        let Some(prepared) = prepared else {
            all.push(None);
            continue;
        };
        let joined = positions.iter().position(|at| *at == position);
        let floor = joined.map_or(0, |at| join.members[at].floor);
        let folder = &config.folders[position];
        let (lock, was_cache, opened) = prepared.open(&folder.path, floor, writable);
        let (core, of_core) = Core::new(config, folder, shared.clone(), opened);
        let core: &'static Core = Box::leak(Box::new(core));
        all.push(Some(core));
        queues.push(of_core);
        folders.push(Owned {
            core,
            lock,
            was_cache,
            is_given_up: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            epoch: Mutex::default(),
        });
    }
    let lifecycle = Lifecycle {
        configured: config.folders.clone(),
        folders,
        shared: shared.clone(),
    };
    if writable {
        lifecycle.set_peers(&join, &lifecycle.folders);
    }
    Ok(Begun {
        cores: Cores::new(&config.folders, all, shared),
        lifecycle,
        queues,
    })
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

    fn open(self, path: &Path, floor: u64, writable: bool) -> (FolderLock, bool, Opened) {
        let size = match self.was_cache {
            true => self.past.last.closed_size(self.io.backend(), path),
            false => Some(0),
        };
        let opened = Opened {
            mount: self.lock.mount().clone(),
            io: self.io,
            layout: self.layout,
            bans: self.bans,
            floor,
            size,
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
            spawn_loader(|| self.recover_and_take_over(cores))?;
            return Ok(());
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

    /// Recover the entries, which a successor only reads until the folders are free. Blocks.
    fn recover_and_take_over(&self, cores: &Cores) {
        on_each(&self.folders, |folder| {
            recovery::recover(folder.core, Leftovers::Keep);
            set_recovered(folder.core);
            info!(
                "{}: another process writes to this cache folder; nothing is stored until it releases the lock",
                folder.core.path.display()
            );
        });
        let free = self.wait_for_locks();
        let Some((taken, first_generation)) = self.take_over(free) else {
            return;
        };
        on_each(&taken, |folder| {
            info!("{}: taken over", folder.core.path.display());
            // The entries and leftovers of the other process.
            recovery::recover(folder.core, Leftovers::RemoveBelow(first_generation));
            folder.remove_outdated(cores);
        });
    }

    /// Wait until the other process releases the folders, and apply its purges meanwhile. Returns
    /// those that are locked now. Blocks.
    fn wait_for_locks(&self) -> Vec<&Owned> {
        let mut folders: Vec<_> = self.folders.iter().collect();
        loop {
            let mut is_free = true;
            folders.retain(|folder| match folder.lock.take_over() {
                Ok(is_held) => {
                    is_free &= is_held;
                    true
                }
                Err(e) => {
                    folder.give_up(&lock_error(&folder.core.path, e));
                    false
                }
            });
            if is_free {
                return folders;
            }
            for folder in &folders {
                if let Err(e) = folder.core.bans.reload(false) {
                    let path = folder.core.path.display();
                    warn!("{path}: cannot read the ban list: {e}");
                }
            }
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
    fn take_over<'a>(&'a self, mut free: Vec<&'a Owned>) -> Option<(Vec<&'a Owned>, u64)> {
        let mut joining = Vec::new();
        free.retain(|folder| match folder.joining() {
            Ok(folder) => {
                joining.push(folder);
                true
            }
            Err(e) => {
                folder.give_up(&e);
                false
            }
        });
        let join = match join::join(&joining, &paths(&self.configured), 0) {
            Ok(join) => join,
            Err(e) => {
                free.iter().for_each(|folder| folder.give_up(&e));
                return None;
            }
        };
        let mut taken = Vec::new();
        for (at, (folder, joining)) in free.into_iter().zip(&joining).enumerate() {
            match join.write(at, joining) {
                Ok(()) => {
                    folder.set_floor(join.members[at].floor);
                    let size = joining.past.last.closed_size(joining.access, joining.path);
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
            core.recovery.restart();
        }
        // The other process may have stored blocks, or newer metadata, since they were opened.
        for (Owned { core, .. }, _) in &taken {
            core.sparse_bodies.clear();
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
        let begun: Vec<_> = begun.into_iter().map(|folder| folder.core).collect();
        let mut absent = join.absent.clone();
        let mut peers = Vec::new();
        for (at, members) in join.members.iter().enumerate() {
            let is_it = |core: &&&Core| path_hash(&core.path) == members.own.path;
            match begun.iter().find(is_it) {
                Some(core) => {
                    let peer = Peer::new(&core.path, core.backend(), core.health.clone());
                    peers.push((peer, members.clone()));
                }
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
            let kept = runtime.spawn_blocking(|| self.keep_lock(folder));
            if let Err(e) = kept.await {
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
            let result = match tokio::time::timeout(EXAMINE_TIMEOUT, &mut examined).await {
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
            let is_absent = has_begun || folder.is_given_up.load(Ordering::Acquire);
            return match is_absent && core.health.has_others() {
                true => Err(io::Error::other(NOT_WRITABLE)),
                false => Ok(()),
            };
        }
        if core.is_missing() {
            // The latest writes may be in a folder that took its place.
            core.bans.set_unsaved();
        }
        core.bans.save()?;
        self.shared.peers.rejoin(&core.path)?;
        // Last: a list with an older epoch would count as that of another program.
        let epoch = self.shared.peers.epoch();
        epoch::renew(core.backend(), &core.path, epoch)
    }

    /// If the lock file was removed, take the lock again; stop writing if another process was
    /// faster. Blocks.
    fn keep_lock(&self, folder: &'static Owned) {
        let Owned { core, lock, .. } = folder;
        let path = core.path.display();
        match lock.renew() {
            Renewed::Same if !lock.is_mounted() => core.health.suspect(Cause::Missing),
            Renewed::Same => {}
            Renewed::Lost => {
                core.set_writable(false);
                error!(
                    "{path}: the lock file was removed, and another process has taken this cache folder; \
                     nothing is stored until it ends: stop it, or give each its own cache.disk.path"
                );
                if core.health.has_others() {
                    // It has the bans of this process only when it is taken again.
                    core.health.fail(Condition::Down);
                }
            }
            Renewed::Taken { is_new } => match self.start_epoch(folder) {
                Ok(()) => {
                    // It may have been closed meanwhile.
                    core.set_writable(lock.is_held());
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
    /// write the files again that a start would have written. Blocks.
    fn start_epoch(&self, folder: &Owned) -> io::Result<()> {
        let core = folder.core;
        let own = folder.epoch.lock();
        core.bans.restore()?;
        let newest = core.bans.newest().max(core.generations.last());
        let last = epoch::last(core.backend(), &core.path, &core.layout)?;
        let epoch = epoch::after(last.epoch().into_iter().chain([epoch::epoch_of(newest)]))?;
        self.shared.peers.raise(epoch);
        if !core.health.is_up() {
            self.shared.peers.rejoin(&core.path)?;
        }
        epoch::begin(core.backend(), &core.path, epoch)?;
        drop(own);
        // The others as well: their entries have numbers of this epoch from now on.
        let is_other = |other: &&Owned| other.core.path != core.path && other.core.health.is_up();
        for other in self.folders.iter().filter(is_other) {
            if let Err(e) = other.begin_epoch(epoch) {
                let path = other.core.path.display();
                warn!("{path}: cannot note the new epoch; the cache folder is examined: {e}");
                // Its entries must not be numbered by an epoch that it does not know.
                other.core.health.fail(Condition::Down);
            }
        }
        core.generations.raise(epoch::first_generation(epoch));
        Ok(())
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

    /// Wait, at most `timeout`, until complete fills are committed, and release the folders.
    /// Blocks; for the end of a process.
    pub(crate) fn close(&self, timeout: Duration) {
        on_each(&self.folders, |folder| folder.close(timeout));
    }

    /// Release the locks as a killed process does.
    #[cfg(test)]
    pub(crate) fn kill(&self) {
        for folder in &self.folders {
            folder.core.set_writable(false);
            folder.is_closed.store(true, Ordering::Release);
            folder.lock.close();
        }
    }
}

// === impl Owned ===

impl Owned {
    /// The state of the folder as the other process has left it. Blocks.
    fn joining(&self) -> io::Result<Joining<'_>> {
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
            .try_lock_for(EXAMINE_TIMEOUT)
            .ok_or(io::ErrorKind::TimedOut)?;
        match self.lock.is_held() {
            true => epoch::renew(self.core.backend(), &self.core.path, epoch),
            false => Ok(()),
        }
    }

    /// Have entries of a lower generation than `floor` be no part of the cache.
    fn set_floor(&self, floor: u64) {
        let core = self.core;
        core.set_floor(floor);
        for part in 0..core.index.parts() {
            let lower = |id: &EntryId| id.generation < floor;
            core.index
                .part(part)
                .filter(lower)
                .for_each(|id| core.forget(id));
        }
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

    fn close(&self, timeout: Duration) {
        let core = self.core;
        let settle = async { tokio::time::timeout(timeout, settle(core)).await };
        let settled = core.io.block_on(settle);
        if settled.is_err() {
            warn!(
                "{}: {} fills were not complete, and are lost",
                core.path.display(),
                core.fills.len()
            );
        }
        // A write in progress must not replace files of the next process.
        let _epoch = self.epoch.try_lock_for(timeout);
        let was_writable = core.set_writable(false);
        let is_exact = settled.is_ok()
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

/// Call `work` for each of the folders, on threads of their own.
fn on_each<T: Sync>(folders: &[T], work: impl Fn(&T) + Sync) {
    std::thread::scope(|threads| {
        let Some((last, others)) = folders.split_last() else {
            return;
        };
        for folder in others {
            threads.spawn(|| work(folder));
        }
        work(last);
    });
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
    let spawned = std::thread::Builder::new()
        .name("cache-load".into())
        .spawn(|| recovery::recover_again(core));
    if let Err(e) = spawned {
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
