//! The state of the disk of a folder.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::cache::state::stats::Cause;

/// Time between two examinations of a folder whose disk is full.
const BEHIND_INTERVAL: Duration = match cfg!(test) {
    true => Duration::from_millis(20),
    false => Duration::from_secs(10),
};

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
    /// That of `state`, to be read without the lock.
    condition: AtomicU8,
    state: Mutex<State>,
    /// True while files of the folder lack what those of other folders have, because the disk is full.
    is_behind: AtomicBool,
    suspicion: Notify,
}

#[derive(Debug)]
struct State {
    condition: Condition,
    /// The condition that the log states.
    stated: Condition,
    /// Number of failures so far that were noted without an examination.
    failures: u64,
    /// Number of examinations that have begun.
    examinations: u64,
    /// The last of them that has found the folder up.
    found_up: u64,
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
            state: Mutex::new(State {
                condition: Condition::Up,
                stated: Condition::Up,
                failures: 0,
                examinations: 0,
                found_up: 0,
            }),
            is_behind: AtomicBool::new(false),
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

    /// True if the folder works and has all bans.
    pub(crate) fn is_current(&self) -> bool {
        self.is_up() && !self.is_behind.load(Ordering::Acquire)
    }

    /// True if an entry that cannot be read may be sound, because the folder fails.
    pub(crate) fn spares_entries(&self) -> bool {
        self.has_others && !self.is_up()
    }

    /// True if the cache has other folders.
    pub(crate) fn has_others(&self) -> bool {
        self.has_others
    }

    /// Note a condition that an operation has shown, and have the folder examined.
    pub(crate) fn fail(&self, condition: Condition) {
        let mut state = self.state.lock();
        state.failures += 1;
        self.set(&mut state, condition);
        self.suspicion.notify_one();
    }

    /// Note that the files of the folder lack something because the disk is full, and have the folder
    /// examined until they have it.
    pub(crate) fn fall_behind(&self) {
        let mut state = self.state.lock();
        state.failures += 1;
        self.is_behind.store(true, Ordering::Release);
        self.suspicion.notify_one();
    }

    /// Note whether the examination that began with `mark` could not write everything for lack of space.
    /// One that could does not hide what was noted since.
    pub(crate) fn set_behind(&self, mark: u64, is_behind: bool) {
        let state = self.state.lock();
        if is_behind || state.failures == mark {
            let is_behind = is_behind && self.has_others;
            self.is_behind.store(is_behind, Ordering::Release);
        }
    }

    /// Begin an examination. Returns a mark for its end.
    pub(crate) fn examine(&self) -> u64 {
        let mut state = self.state.lock();
        state.examinations += 1;
        state.failures
    }

    /// Number of examinations that have begun.
    pub(crate) fn examinations(&self) -> u64 {
        self.state.lock().examinations
    }

    /// True if an examination after that of this number has found the folder up.
    pub(crate) fn was_up_after(&self, examination: u64) -> bool {
        self.state.lock().found_up > examination
    }

    /// Note the result of the examination that began with `mark`. It does not hide a failure that was
    /// noted since. Returns the condition before; `None`: nothing has changed.
    pub(crate) fn examined(&self, mark: u64, condition: Condition) -> Option<Condition> {
        let mut state = self.state.lock();
        if condition == Condition::Up && state.failures == mark {
            state.found_up = state.examinations;
        }
        let before = state.condition;
        if condition == before || (condition == Condition::Up && state.failures != mark) {
            return None;
        }
        self.set(&mut state, condition);
        Some(before)
    }

    /// Note that the log is to state a condition. False: it does already.
    pub(crate) fn set_stated(&self, condition: Condition) -> bool {
        std::mem::replace(&mut self.state.lock().stated, condition) != condition
    }

    fn set(&self, state: &mut State, condition: Condition) {
        state.condition = condition;
        self.condition.store(condition as u8, Ordering::Release);
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

    /// Wait until the folder has to be examined.
    pub(crate) async fn suspected(&self) {
        let suspected = self.suspicion.notified();
        match self.is_behind.load(Ordering::Acquire) {
            true => drop(timeout(BEHIND_INTERVAL, suspected).await),
            false => suspected.await,
        }
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
            let before = health.condition();
            assert_eq!(health.examined(health.examine(), condition), Some(before));
            assert_eq!(health.examined(health.examine(), condition), None);
            assert_eq!(health.condition(), condition);
        }
    }

    #[test]
    fn the_only_folder_is_tried_for_each_request() {
        for has_others in [true, false] {
            let health = Health::new(has_others);
            health.fail(Condition::Down);
            assert!(!health.is_up());
            assert_eq!(health.is_down(), has_others);
            assert_eq!(health.spares_entries(), has_others);
        }
    }

    #[test]
    fn only_an_examination_that_begins_later_clears_a_folder() {
        let health = Health::new(true);
        let mark = health.examine();
        let failed_at = health.examinations();
        health.examined(mark, Condition::Up);
        assert!(!health.was_up_after(failed_at));
        health.examined(health.examine(), Condition::Down);
        assert!(!health.was_up_after(failed_at));
        health.examined(health.examine(), Condition::Up);
        assert!(health.was_up_after(failed_at));
    }

    #[test]
    fn a_failure_is_stated_once_even_if_the_examination_only_confirms_it() {
        let health = Health::new(true);
        health.fail(Condition::Down);
        assert_eq!(health.examined(health.examine(), Condition::Down), None);
        assert!(health.set_stated(Condition::Down));
        assert!(!health.set_stated(Condition::Down));
        assert!(health.set_stated(Condition::Up));
    }

    #[test]
    fn an_examination_does_not_hide_a_later_failure() {
        let health = Health::new(true);
        let mark = health.examine();
        health.fail(Condition::Down);
        assert_eq!(health.examined(mark, Condition::Up), None);
        assert!(health.is_down());
        health.examined(health.examine(), Condition::Up);
        assert!(health.is_up());
    }
}
