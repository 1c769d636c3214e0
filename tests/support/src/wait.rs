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

/// As [`eventually`], for a condition that says what is still missing.
pub fn eventually_ok(mut condition: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(missing) = condition() {
        assert!(
            Instant::now() < deadline,
            "not within {PATIENCE:?}: {missing}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}
