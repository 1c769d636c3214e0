//! A reader of a fill.

use std::sync::Arc;

use crate::cache::state::fill::Fill;
use crate::cache::state::readers::Position;

/// One reader of a fill, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    fill: Arc<Fill>,
    number: u64,
    position: Arc<Position>,
}

impl Reader {
    /// Join the readers of a fill; `None`: it has been given up.
    pub(crate) fn join(fill: Arc<Fill>, leads: bool) -> Option<Reader> {
        let (number, position) = fill.readers().join(leads)?;
        Some(Reader {
            fill,
            number,
            position,
        })
    }

    pub(crate) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Note that it has read up to here, or begins here.
    pub(crate) fn set_position(&self, at: u64) {
        self.position.set(at);
        self.fill.reader_moved();
    }

    /// True if it was dropped for being too slow.
    pub(crate) fn is_lost(&self) -> bool {
        self.position.is_lost()
    }

    /// True for the reader of the request that writes.
    pub(crate) fn leads(&self) -> bool {
        self.position.leads()
    }

    /// Note whether it can get the rest elsewhere.
    pub(crate) fn set_can_leave(&self, can_leave: bool) {
        self.position.set_can_leave(can_leave);
    }

    /// Note that it needs no more.
    pub(crate) fn set_satisfied(&self) {
        self.fill.readers().set_satisfied();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let was_last = self.fill.readers().leave(self.number);
        self.fill.reader_moved();
        if was_last {
            self.fill.reader_left();
        }
    }
}
