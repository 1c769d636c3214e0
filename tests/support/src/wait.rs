use std::{
    thread,
    time::{Duration, Instant},
};

use crate::PATIENCE;

/// Waits for what gives no signal of its own; panics, naming it, where it does
/// not come.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
