//! The ownership of a cache folder: lock, epochs, takeover, close.

mod epoch;

use std::io;
use std::path::Path;
use std::time::Duration;

use log::{error, info, warn};
use tokio::sync::mpsc;

use crate::cache::config::DiskCacheConfig;
use crate::cache::io::disk_io::DiskIo;
use crate::cache::io::folder::{FolderAccess, LocalFolder};
use crate::cache::io::folder_lock::{FolderLock, Renewed};
use crate::cache::jobs::recovery::{self, Leftovers};
use crate::cache::state::{Core, Opened, Repair, NOT_WRITABLE};
use crate::cache::store::bans::Bans;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::layout::Layout;

/// Time between two attempts of a successor to take the folder over. It reads the bans of the
/// other process as often.
const TAKEOVER_INTERVAL: Duration = Duration::from_millis(250);

/// Time between two checks of the lock file.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

/// The ownership of a cache folder.
pub(crate) struct Lifecycle {
    lock: FolderLock,
    /// True if the folder was a cache before. Otherwise nothing in it is ours to remove.
    was_cache: bool,
}

/// Create the cache folder, and lock it. Blocks.
pub(crate) fn lock_folder(config: &DiskCacheConfig) -> io::Result<Lifecycle> {
    let path = &config.path;
    LocalFolder
        .create_folder(path)
        .map_err(|e| in_folder(path, "create the cache folder", e))?;
    let was_cache = match LocalFolder.stat(&path.join("epoch")) {
        Ok(_) => true,
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    };
    let lock = FolderLock::take(path).map_err(|e| lock_error(path, e))?;
    if lock.is_held() || config.successor {
        return Ok(Lifecycle { lock, was_cache });
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "{}: another process uses this cache folder; stop it, or give each its own cache.disk.path",
            path.display()
        ),
    ))
}

// === impl Lifecycle ===

impl Lifecycle {
    /// Read the bans, and start an epoch if this process holds the lock. Blocks.
    pub(crate) fn open(&self, path: &Path, io: DiskIo) -> io::Result<Opened> {
        let backend = io.backend();
        let layout = Layout::new(path);
        layout
            .create_folders(backend)
            .map_err(|e| in_folder(path, "create folders", e))?;
        let writable = self.lock.is_held();
        let bans = Bans::load(backend, path, writable)
            .map_err(|e| in_folder(&path.join("bans"), "read the ban list", e))?;
        let first_generation = match writable {
            true => epoch::next(backend, path, &layout, bans.newest())
                .map_err(|e| in_folder(path, "write to the cache folder", e))?,
            false => 0,
        };
        let size = match self.was_cache {
            true => epoch::closed_size(backend, path, first_generation),
            false => Some(0),
        };
        Ok(Opened {
            io,
            layout,
            bans,
            first_generation,
            size,
            writable,
        })
    }

    /// Recover the entries, on a thread of its own, and keep the lock, as long as the cache
    /// lives.
    pub(crate) fn start(
        &'static self,
        core: &'static Core,
        repairs: mpsc::Receiver<Repair>,
        first_generation: u64,
    ) -> io::Result<()> {
        core.io.runtime().spawn(self.keep_locked(core));
        core.io.runtime().spawn(self.repair(core, repairs));
        std::thread::Builder::new()
            .name("cache-load".into())
            .spawn(move || {
                self.recover_and_take_over(core, first_generation);
                if self.was_cache && core.is_writable() {
                    recovery::remove_other_versions(core);
                }
            })?;
        Ok(())
    }

    /// Recover the entries. A successor only reads them until the folder is free. Blocks.
    fn recover_and_take_over(&self, core: &Core, first_generation: u64) {
        if core.is_writable() {
            recovery::recover(core, Leftovers::RemoveBelow(first_generation));
            set_recovered(core);
            return;
        }
        recovery::recover(core, Leftovers::Keep);
        set_recovered(core);
        let path = core.path.display();
        info!("{path}: another process writes to this cache folder; nothing is stored until it releases the lock");
        let taken = self.wait_for_lock(core).and_then(|()| {
            core.bans.reload(true)?;
            epoch::next(core.backend(), &core.path, &core.layout, core.bans.newest())
        });
        match taken {
            Ok(first) => {
                core.generations.restart(first);
                let size = epoch::closed_size(core.backend(), &core.path, first);
                core.recovery.start(size);
                core.reset_written();
                core.recovery.restart();
                // The other process may have stored blocks, or newer metadata, since they were opened.
                core.sparse_bodies.clear();
                core.open_entries.forget_all();
                core.set_writable(true);
                info!("{path}: taken over");
                // The entries and leftovers of the other process.
                recovery::recover(core, Leftovers::RemoveBelow(first));
            }
            Err(e) => warn!(
                "{path}: cannot take the cache folder over: {e}; nothing will be stored until a restart"
            ),
        }
    }

    /// Wait until the other process releases the folder, and apply its purges meanwhile. Blocks.
    fn wait_for_lock(&self, core: &Core) -> io::Result<()> {
        loop {
            let taken = self.lock.take_over();
            if taken.map_err(|e| lock_error(&core.path, e))? {
                return Ok(());
            }
            if let Err(e) = core.bans.reload(false) {
                warn!("{}: cannot read the ban list: {e}", core.path.display());
            }
            std::thread::sleep(TAKEOVER_INTERVAL);
        }
    }

    async fn keep_locked(&'static self, core: &'static Core) {
        loop {
            tokio::time::sleep(LOCK_INTERVAL).await;
            let kept = core.io.runtime().spawn_blocking(|| self.keep_lock(core));
            if let Err(e) = kept.await {
                warn!("cannot check the lock of the cache folder: {e}");
            }
        }
    }

    /// Create missing folders on request.
    async fn repair(&'static self, core: &'static Core, mut repairs: mpsc::Receiver<Repair>) {
        while let Some(Repair { id, done }) = repairs.recv().await {
            core.io.runtime().spawn_blocking(move || {
                let _ = done.send(self.repair_folder(core, id));
            });
        }
    }

    /// If the lock file was removed, take the lock again; stop writing if another process was
    /// faster. Blocks.
    fn keep_lock(&self, core: &'static Core) {
        let path = core.path.display();
        match self.lock.renew() {
            Renewed::Same => {}
            Renewed::Lost => {
                core.set_writable(false);
                error!(
                    "{path}: the lock file was removed, and another process has taken this cache folder; \
                     nothing is stored until it ends: stop it, or give each its own cache.disk.path"
                );
            }
            Renewed::Taken { is_new } => match self.start_epoch(core) {
                Ok(()) => {
                    // It may have been closed meanwhile.
                    core.set_writable(self.lock.is_held());
                    warn!("{path}: the lock file was replaced; this process holds the lock again");
                    if !is_new && core.recovery.is_complete() {
                        recover_again(core);
                    }
                }
                Err(e) => {
                    core.set_writable(false);
                    self.lock.lose();
                    error!(
                        "{path}: cannot start a new epoch in the cache folder; trying again: {e}"
                    );
                }
            },
        }
    }

    /// Number the next entries above those that another process may have written meanwhile, and
    /// write the files again that a start would have written. Blocks.
    fn start_epoch(&self, core: &Core) -> io::Result<()> {
        core.bans.restore()?;
        let newest = core.bans.newest().max(core.generations.last());
        let first = epoch::next(core.backend(), &core.path, &core.layout, newest)?;
        core.generations.raise(first);
        Ok(())
    }

    /// Create the folders that a new entry needs, in a cache folder that was emptied. Blocks.
    fn repair_folder(&self, core: &'static Core, id: EntryId) -> io::Result<()> {
        self.keep_lock(core);
        if !core.is_writable() {
            return Err(io::Error::other(NOT_WRITABLE));
        }
        if !self.lock.is_mounted() {
            return Err(io::ErrorKind::NotFound.into());
        }
        core.backend().create_folder(&core.layout.shard(id.hash[0]))
    }

    /// Wait, at most `timeout`, until complete fills are committed, and release the folder.
    /// Blocks; for the end of a process.
    pub(crate) fn close(&self, core: &Core, timeout: Duration) {
        let settle = async { tokio::time::timeout(timeout, settle(core)).await };
        let settled = core.io.block_on(settle);
        if settled.is_err() {
            warn!(
                "{}: {} fills were not complete, and are lost",
                core.path.display(),
                core.fills.len()
            );
        }
        let was_writable = core.set_writable(false);
        let is_exact = settled.is_ok()
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
        self.lock.close();
    }

    /// Release the lock as a killed process does.
    #[cfg(test)]
    pub(crate) fn kill(&self, core: &Core) {
        core.set_writable(false);
        self.lock.close();
    }
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

/// Find the entries that another process has stored meanwhile.
fn recover_again(core: &'static Core) {
    core.recovery.start(None);
    core.reset_written();
    let spawned = std::thread::Builder::new()
        .name("cache-load".into())
        // Fills of this process have temporary files there.
        .spawn(move || recovery::recover(core, Leftovers::Keep));
    if let Err(e) = spawned {
        warn!("{}: cannot list it again: {e}", core.path.display());
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
