//! Messages to the service manager (sd_notify(3)). Without one, nothing happens.

use std::io;

use log::debug;
use sd_notify::NotifyState;

/// All listeners accept connections.
pub(super) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again, until [`ready`].
pub(super) fn reloading() {
    // A reload that lacks the time of its begin fails.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(e) => log_failure(&e),
    }
}

/// The process ends.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Another process serves from now on.
pub(super) fn main_pid(pid: u32) {
    send(&[NotifyState::MainPid(pid)]);
}

fn send(states: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(states) {
        log_failure(&e);
    }
}

fn log_failure(e: &io::Error) {
    debug!("the service manager cannot be notified: {e}");
}
