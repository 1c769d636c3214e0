//! The state of the disk of a folder.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use crate::cache::state::stats::Cause;

/// The state of the disk of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Condition {
    /// It can be written to.
    Up,
    /// It can only be read, as far as is known.
    ReadOnly,
    /// It cannot be used.
    Down,
}

/// The condition of a folder, and the suspicion that it has changed.
#[derive(Debug)]
pub(crate) struct Health {
    /// True if the cache has other folders, which go on without this one. The only folder is tried for
    /// each request.
    has_others: bool,
    condition: AtomicU8,
    suspicion: Notify,
}

// === impl Condition ===

impl Condition {
    /// The condition of a folder in which a small file was written with this result. A full disk is
    /// no fault.
    pub(crate) fn of(written: &io::Result<()>) -> Condition {
        match written.as_ref().map_err(Cause::of) {
            Ok(()) | Err(Cause::NoSpace | Cause::Descriptors) => Condition::Up,
            Err(Cause::ReadOnly) => Condition::ReadOnly,
            Err(_) => Condition::Down,
        }
    }
}

// === impl Health ===

impl Health {
    pub(crate) fn new(has_others: bool) -> Self {
        Health {
            has_others,
            condition: AtomicU8::new(Condition::Up as u8),
            suspicion: Notify::new(),
        }
    }

    /// The present condition.
    pub(crate) fn condition(&self) -> Condition {
        match self.condition.load(Ordering::Acquire) {
            0 => Condition::Up,
            1 => Condition::ReadOnly,
            _ => Condition::Down,
        }
    }

    /// True if the folder can be read and written.
    pub(crate) fn is_up(&self) -> bool {
        self.condition() == Condition::Up
    }

    /// True if the folder is not to be touched.
    pub(crate) fn is_down(&self) -> bool {
        self.has_others && self.condition() == Condition::Down
    }

    /// True if an entry that cannot be read may be sound, because the folder fails.
    pub(crate) fn spares_entries(&self) -> bool {
        self.has_others && !self.is_up()
    }

    /// True if the cache has other folders.
    pub(crate) fn has_others(&self) -> bool {
        self.has_others
    }

    /// Note the condition. Returns the one before.
    pub(crate) fn set(&self, condition: Condition) -> Condition {
        let before = self.condition();
        self.condition.store(condition as u8, Ordering::Release);
        before
    }

    /// Have the folder examined, because an operation has failed for this cause.
    pub(crate) fn suspect(&self, cause: Cause) {
        let is_of_disk = match cause {
            Cause::Io | Cause::ReadOnly | Cause::Missing | Cause::Other => true,
            Cause::NoSpace
            | Cause::Descriptors
            | Cause::Damaged
            | Cause::Origin
            | Cause::Deserted
            | Cause::TooMany => false,
        };
        if is_of_disk {
            self.suspicion.notify_one();
        }
    }

    /// Wait for a suspicion.
    pub(crate) async fn suspected(&self) {
        self.suspicion.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_fault() {
        let of = |errno| Condition::of(&Err(io::Error::from_raw_os_error(errno)));
        assert_eq!(Condition::of(&Ok(())), Condition::Up);
        for (errno, condition) in [
            (libc::ENOSPC, Condition::Up),
            (libc::EMFILE, Condition::Up),
            (libc::EROFS, Condition::ReadOnly),
            (libc::EIO, Condition::Down),
            (libc::ENOENT, Condition::Down),
            (libc::ENOTCONN, Condition::Down),
            (libc::ENODEV, Condition::Down),
        ] {
            assert_eq!(of(errno), condition, "{errno}");
        }
    }

    #[test]
    fn conditions_are_kept() {
        let health = Health::new(true);
        for condition in [Condition::Down, Condition::ReadOnly, Condition::Up] {
            health.set(condition);
            assert_eq!(health.condition(), condition);
        }
    }

    #[test]
    fn the_only_folder_is_tried_for_each_request() {
        for has_others in [true, false] {
            let health = Health::new(has_others);
            health.set(Condition::Down);
            assert!(!health.is_up());
            assert_eq!(health.is_down(), has_others);
            assert_eq!(health.spares_entries(), has_others);
        }
    }
}
