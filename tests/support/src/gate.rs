use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use crate::PATIENCE;

/// A closed gate that others wait at until the test opens it. Clones are the
/// same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    arrived: usize,
}

// === impl Gate ===

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        let (state, changed) = &*self.shared;
        state.lock().unwrap().open = true;
        changed.notify_all();
    }

    /// Returns once `count` have come to the gate, those let through included.
    pub fn wait_for_arrivals(&self, count: usize) {
        assert!(
            self.wait_until(PATIENCE, |state| state.arrived >= count),
            "fewer than {count} came to the gate in {PATIENCE:?}"
        );
    }

    /// Waits for the gate to open.
    pub fn pass(&self) {
        self.arrive();
        assert!(
            self.opens_within(PATIENCE),
            "nobody opened the gate in {PATIENCE:?}"
        );
    }

    pub(crate) fn arrive(&self) {
        let (state, changed) = &*self.shared;
        state.lock().unwrap().arrived += 1;
        changed.notify_all();
    }

    pub(crate) fn opens_within(&self, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.open)
    }

    fn wait_until(&self, limit: Duration, condition: impl Fn(&State) -> bool) -> bool {
        let (state, changed) = &*self.shared;
        let (state, _) = changed
            .wait_timeout_while(state.lock().unwrap(), limit, |state| !condition(state))
            .unwrap();
        condition(&state)
    }
}
