//! The lock that keeps two processes from writing to one cache folder.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::cache::io::regular;

/// The most attempts to lock the file while other processes remove it.
const MAX_ATTEMPTS: usize = 16;

/// A folder on the file system on which it was found first.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    folder: PathBuf,
    device: u64,
}

/// The lock of a cache folder, from the point of view of this process.
#[derive(Debug)]
pub(crate) struct FolderLock {
    mount: Mount,
    /// Held over I/O, never on an async worker.
    state: Mutex<State>,
    /// Held during [`write`](Self::write), never on an async worker.
    writes: Mutex<()>,
}

#[derive(Debug)]
enum State {
    /// Another process has held the lock since this one started.
    Waiting,
    Held(File),
    /// The file was replaced, and this process has locked the new one, perhaps in another folder.
    Found(File),
    /// The file was removed, and another process has locked the new one.
    Lost,
    Closed,
}

/// The outcome of [`FolderLock::renew`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// Nothing has changed.
    Same,
    /// The file had been replaced, and the new one is locked now. Nothing may be written to the folder
    /// before [`FolderLock::confirm`]. `is_new`: no other process had locked the file before.
    Taken { is_new: bool },
    /// Another process has locked the new file.
    Lost,
}

/// A lock file that this process has locked.
#[derive(Debug)]
struct Locked {
    file: File,
    is_new: bool,
}

impl Mount {
    /// Blocks.
    pub(crate) fn of(folder: &Path) -> io::Result<Mount> {
        Ok(Mount {
            device: fs::metadata(folder)?.dev(),
            folder: folder.to_owned(),
        })
    }

    /// False if the folder is gone, or is now on another file system because it is not mounted.
    /// Nothing must be written there. Blocks.
    pub(crate) fn is_there(&self) -> bool {
        fs::metadata(&self.folder).is_ok_and(|folder| folder.dev() == self.device)
    }

    /// True if two folders take the same space.
    pub(crate) fn is_on_same_file_system(&self, other: &Mount) -> bool {
        self.device == other.device
    }

    /// An error unless [`is_there`](Self::is_there). Blocks.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.is_there() {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the cache folder is gone, or is not mounted",
            )),
        }
    }

    /// The folder as it is while its file system is not mounted.
    #[cfg(test)]
    pub(crate) fn unmounted(folder: &Path) -> Mount {
        let mut mount = Mount::of(folder).unwrap();
        mount.device ^= 1;
        mount
    }
}

impl FolderLock {
    /// Take the lock if no other process has it. Blocks.
    pub(crate) fn take(folder: &Path) -> io::Result<FolderLock> {
        let mount = Mount::of(folder)?;
        let state = match acquire(folder, true)? {
            Some(locked) => State::Held(locked.file),
            None => State::Waiting,
        };
        Ok(FolderLock {
            mount,
            state: Mutex::new(state),
            writes: Mutex::default(),
        })
    }

    /// Take the lock if the other process has released it. True if it is held now. Blocks.
    pub(crate) fn take_over(&self) -> io::Result<bool> {
        let mut state = self.state.lock();
        if let State::Waiting = *state {
            if let Some(locked) = acquire(&self.mount.folder, true)? {
                *state = State::Held(locked.file);
            }
        }
        Ok(matches!(*state, State::Held(_)))
    }

    /// True if this process has the lock.
    pub(crate) fn is_held(&self) -> bool {
        matches!(*self.state.lock(), State::Held(_) | State::Found(_))
    }

    /// Lock the file that has replaced the one that this process has locked. Blocks.
    pub(crate) fn renew(&self) -> Renewed {
        let mut state = self.state.lock();
        match &*state {
            State::Waiting | State::Closed => return Renewed::Same,
            State::Held(file) | State::Found(file) if is_at(&self.mount.folder, file) => {
                return Renewed::Same
            }
            State::Held(_) | State::Found(_) | State::Lost => {}
        }
        match acquire(&self.mount.folder, self.is_mounted()) {
            Ok(Some(Locked { file, is_new })) => {
                *state = State::Found(file);
                Renewed::Taken { is_new }
            }
            Ok(None) => match std::mem::replace(&mut *state, State::Lost) {
                State::Lost => Renewed::Same,
                _ => Renewed::Lost,
            },
            // The folder is gone, or no process can lock it.
            Err(_) => Renewed::Same,
        }
    }

    /// The folder.
    pub(crate) fn mount(&self) -> &Mount {
        &self.mount
    }

    /// [`Mount::is_there`]
    pub(crate) fn is_mounted(&self) -> bool {
        self.mount.is_there()
    }

    /// Note that the folder whose lock was [taken again](Renewed::Taken) is the one it was before.
    pub(crate) fn confirm(&self) {
        let mut state = self.state.lock();
        *state = match std::mem::replace(&mut *state, State::Lost) {
            State::Found(file) => State::Held(file),
            other => other,
        };
    }

    /// An error if the lock file was removed, until the folder is [confirmed](Self::confirm): another one
    /// may be in its place, which would pass for it with the files of this run. Blocks.
    pub(crate) fn check_in_place(&self) -> io::Result<()> {
        match &*self.state.lock() {
            State::Held(file) if is_at(&self.mount.folder, file) => Ok(()),
            _ => Err(io::Error::other("the lock file was removed")),
        }
    }

    /// Write to the folder, one caller after the other, if it is [in place](Self::check_in_place). Blocks.
    pub(crate) fn write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _write = self.writes.lock();
        self.check_in_place()?;
        write()
    }

    /// Wait, at most `limit`, until no [`write`](Self::write) is in progress, and have none begin before the
    /// guard is dropped. `None`: one still is. Blocks.
    pub(crate) fn pause_writes(&self, limit: Duration) -> Option<MutexGuard<'_, ()>> {
        self.writes.try_lock_for(limit)
    }

    /// Release the lock until [`renew`](Self::renew) takes it again.
    pub(crate) fn lose(&self) {
        self.release(State::Lost);
    }

    /// Release the lock for good.
    pub(crate) fn close(&self) {
        self.release(State::Closed);
    }

    fn release(&self, next: State) {
        let before = std::mem::replace(&mut *self.state.lock(), next);
        if let State::Held(file) | State::Found(file) = before {
            // Closing the file would not suffice while a process is being started: until its
            // execve(2), it has the file open as well.
            let _ = file.unlock();
        }
    }
}

/// True if a process has locked the folder. Creates nothing. Blocks.
pub(crate) fn is_locked(folder: &Path) -> io::Result<bool> {
    let lock = match regular::open(&folder.join("lock")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        lock => lock?,
    };
    // Released at once, as the file is closed. A process that starts in between would find
    // the folder in use.
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Lock a folder for as long as the file is open. `None`: another process has locked it.
/// Blocks.
pub(crate) fn lock(folder: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    let lock = regular::open_with(&mut options, &folder.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Lock the lock file. `None`: another process has locked it.
fn acquire(folder: &Path, create: bool) -> io::Result<Option<Locked>> {
    let path = folder.join("lock");
    for _ in 0..MAX_ATTEMPTS {
        let opened = regular::open_with(File::options().write(true), &path);
        let (file, is_new) = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound && create => {
                match File::create_new(&path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                    created => (created?, true),
                }
            }
            opened => (opened?, false),
        };
        match file.try_lock() {
            // Otherwise it was removed before it was locked.
            Ok(()) if is_at(folder, &file) => return Ok(Some(Locked { file, is_new })),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
    }
    Err(io::Error::other("the lock file keeps being removed"))
}

/// False if the lock file of a folder is another one than `file`, or there is none.
fn is_at(folder: &Path, file: &File) -> bool {
    let found = fs::symlink_metadata(folder.join("lock"));
    match (found, file.metadata()) {
        (Ok(found), Ok(own)) => (found.dev(), found.ino()) == (own.dev(), own.ino()),
        (Err(e), _) => e.kind() != io::ErrorKind::NotFound,
        // Unknown.
        (Ok(_), Err(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remove_lock(folder: &Path) {
        fs::remove_file(folder.join("lock")).unwrap();
    }

    #[test]
    fn a_lock_file_that_was_removed_is_locked_anew() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        assert!(lock.is_held());
        assert_eq!(lock.renew(), Renewed::Same);

        remove_lock(dir.path());
        assert_eq!(lock.renew(), Renewed::Taken { is_new: true });
        assert_eq!(lock.renew(), Renewed::Same);
        // A second one is kept out again.
        assert!(!FolderLock::take(dir.path()).unwrap().is_held());

        // The same applies if another process has created the file.
        remove_lock(dir.path());
        fs::write(dir.path().join("lock"), "").unwrap();
        assert_eq!(lock.renew(), Renewed::Taken { is_new: false });
        assert!(!FolderLock::take(dir.path()).unwrap().is_held());
    }

    #[test]
    fn a_lock_that_another_process_took_is_lost_until_it_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        remove_lock(dir.path());
        let other = FolderLock::take(dir.path()).unwrap();
        assert!(other.is_held());
        assert_eq!(lock.renew(), Renewed::Lost);
        assert_eq!(lock.renew(), Renewed::Same, "it is said once");
        assert!(!lock.is_held());
        assert_eq!(other.renew(), Renewed::Same);

        other.close();
        assert_eq!(lock.renew(), Renewed::Taken { is_new: false });
        lock.close();
        assert_eq!(lock.renew(), Renewed::Same, "a closed one stays closed");
        assert!(FolderLock::take(dir.path()).unwrap().is_held());
    }

    #[test]
    fn nothing_is_written_until_a_new_lock_file_is_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        let write = || lock.write(|| Ok(()));
        write().unwrap();
        remove_lock(dir.path());
        write().unwrap_err();
        assert_eq!(lock.renew(), Renewed::Taken { is_new: true });
        assert!(lock.is_held());
        write().unwrap_err();
        lock.confirm();
        write().unwrap();
        // The same applies if it is removed again before that.
        remove_lock(dir.path());
        lock.renew();
        remove_lock(dir.path());
        assert_eq!(lock.renew(), Renewed::Taken { is_new: true });
        write().unwrap_err();
        lock.confirm();
        write().unwrap();
        lock.close();
        lock.confirm();
        write().unwrap_err();
    }

    #[test]
    fn a_write_in_progress_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        let pause = || lock.pause_writes(Duration::ZERO).is_some();
        lock.write(|| {
            assert!(!pause());
            Ok(())
        })
        .unwrap();
        assert!(pause());
    }

    #[test]
    fn a_folder_that_is_gone_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        fs::create_dir(&folder).unwrap();
        let lock = FolderLock::take(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(lock.renew(), Renewed::Same);
        assert!(!folder.exists());
        assert!(!lock.is_mounted());
        fs::create_dir(&folder).unwrap();
        assert!(lock.is_mounted());
        assert_eq!(lock.renew(), Renewed::Taken { is_new: true });
    }

    #[test]
    fn a_successor_takes_over_when_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let first = FolderLock::take(dir.path()).unwrap();
        let successor = FolderLock::take(dir.path()).unwrap();
        assert!(!successor.take_over().unwrap());
        assert_eq!(successor.renew(), Renewed::Same);
        first.close();
        assert!(successor.take_over().unwrap());
        assert!(successor.is_held());
    }
}
