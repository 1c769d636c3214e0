//! The readers of an entry that is being written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cache::write::fill::Fill;

/// The readers of a fill.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_number: BTreeMap<u64, Arc<Position>>,
    next: u64,
    /// A reader got all that it wanted before the end.
    satisfied: bool,
    /// The reader of the request that writes has joined.
    has_led: bool,
    /// No reader can join any more.
    ended: bool,
    /// The number of times that slow readers were dropped.
    #[cfg(test)]
    losses: usize,
}

#[derive(Debug)]
struct Position {
    at: AtomicU64,
    /// It reads for the request that writes.
    leads: bool,
    /// It was too slow.
    lost: AtomicBool,
    /// It can get the rest elsewhere.
    can_leave: AtomicBool,
}

/// The readers that the others do without if they are slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slow {
    /// Those who can get the rest elsewhere.
    CanLeave,
    /// All.
    Any,
}

/// The state of a fill's readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Some read, or none has joined yet.
    Present,
    /// All are gone.
    Gone,
    /// All are gone, and one got all that it wanted: a header, or a part.
    Satisfied,
}

/// One reader, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    fill: Arc<Fill>,
    number: u64,
    position: Arc<Position>,
}

// === impl Readers ===

impl Readers {
    pub(crate) fn audience(&self) -> Audience {
        let table = self.0.lock();
        match (
            table.by_number.is_empty() && table.next > 0,
            table.satisfied,
        ) {
            (false, _) => Audience::Present,
            (true, true) => Audience::Satisfied,
            (true, false) => Audience::Gone,
        }
    }

    /// Let no reader join any more, if all are gone.
    pub(crate) fn end(&self) -> bool {
        let mut table = self.0.lock();
        table.ended |= table.by_number.is_empty();
        table.ended
    }

    /// True if the reader of the request that writes has joined.
    pub(crate) fn has_led(&self) -> bool {
        self.0.lock().has_led
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.lock().ended
    }

    /// The position of the slowest reader, and whether that is the one that leads;
    /// `None`: there are no readers.
    pub(crate) fn slowest(&self) -> Option<(u64, bool)> {
        let table = self.0.lock();
        let positions = table.by_number.values();
        let positions = positions.map(|position| {
            let at = position.at.load(Ordering::Acquire);
            // The leader counts as slower than others at the same position.
            (at, !position.leads)
        });
        positions.min().map(|(at, follows)| (at, !follows))
    }

    /// Do without those who are so many bytes behind the fastest, but not without the
    /// one that leads; `false`: there are none.
    pub(crate) fn lose(&self, behind: u64, slow: Slow) -> bool {
        let mut table = self.0.lock();
        let at = |position: &Position| position.at.load(Ordering::Acquire);
        let fastest = table.by_number.values().map(|position| at(position)).max();
        let fastest = fastest.unwrap_or(0);
        let before = table.by_number.len();
        table.by_number.retain(|_, position| {
            let stays = position.leads
                || at(position).saturating_add(behind) > fastest
                || (slow == Slow::CanLeave && !position.can_leave.load(Ordering::Acquire));
            if !stays {
                position.lost.store(true, Ordering::Release);
            }
            stays
        });
        let lost = table.by_number.len() < before;
        #[cfg(test)]
        {
            table.losses += usize::from(lost);
        }
        lost
    }

    #[cfg(test)]
    pub(crate) fn losses(&self) -> usize {
        self.0.lock().losses
    }
}

// === impl Reader ===

impl Reader {
    /// Join the readers of a fill; `None`: it has been given up.
    pub(crate) fn join(fill: Arc<Fill>, leads: bool) -> Option<Reader> {
        let position = Arc::new(Position {
            at: AtomicU64::new(0),
            leads,
            lost: AtomicBool::new(false),
            can_leave: AtomicBool::new(false),
        });
        let mut table = fill.readers().0.lock();
        if table.ended {
            return None;
        }
        let number = table.next;
        table.next += 1;
        table.has_led |= leads;
        table.by_number.insert(number, position.clone());
        drop(table);
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
    pub(crate) fn is_at(&self, at: u64) {
        self.position.at.store(at, Ordering::Release);
        self.fill.reader_moved();
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.position.lost.load(Ordering::Acquire)
    }

    /// True for the reader of the request that writes.
    pub(crate) fn leads(&self) -> bool {
        self.position.leads
    }

    /// Note whether it can get the rest elsewhere.
    pub(crate) fn set_can_leave(&self, can_leave: bool) {
        self.position.can_leave.store(can_leave, Ordering::Release);
    }

    /// Note that it needs no more.
    pub(crate) fn is_satisfied(&self) {
        self.fill.readers().0.lock().satisfied = true;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let was_last = {
            let mut table = self.fill.readers().0.lock();
            table.by_number.remove(&self.number);
            table.by_number.is_empty()
        };
        self.fill.reader_moved();
        if was_last {
            self.fill.reader_left();
        }
    }
}
