//! The readers of an entry that is being written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

/// The readers of a fill.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_number: BTreeMap<u64, Arc<Position>>,
    next: u64,
    /// True if a reader got everything it wanted before the end.
    satisfied: bool,
    /// True if the reader of the request that writes has joined.
    has_led: bool,
    /// True if no reader can join any more.
    ended: bool,
    /// Number of times that slow readers were dropped.
    #[cfg(test)]
    losses: usize,
}

/// The position of a reader in the body.
#[derive(Debug)]
pub(crate) struct Position {
    at: AtomicU64,
    /// True if it reads for the request that writes.
    leads: bool,
    /// True if it was dropped for being too slow.
    lost: AtomicBool,
    /// True if it can get the rest elsewhere.
    can_leave: AtomicBool,
}

/// The position of the slowest reader, and that of the one that leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slowest {
    pub(crate) at: u64,
    /// `None`: the reader of the request that writes has not joined, or is gone.
    pub(crate) leader: Option<u64>,
}

/// The readers that are dropped if they are slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slow {
    /// Those that can get the rest elsewhere.
    CanLeave,
    /// All.
    Any,
}

/// The state of a fill's readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Some are reading, or none has joined yet.
    Present,
    /// All are gone.
    Gone,
    /// All are gone, and one got everything it wanted: a header, or a part.
    Satisfied,
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

    /// Let no reader join any more, if all are gone. True if none can join.
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

    /// The positions that decide who waits for whom; `None`: there are no readers.
    pub(crate) fn slowest(&self) -> Option<Slowest> {
        let table = self.0.lock();
        let at = |position: &Position| position.at.load(Ordering::Acquire);
        let positions = table.by_number.values();
        Some(Slowest {
            at: positions.map(|position| at(position)).min()?,
            leader: table
                .by_number
                .values()
                .find(|position| position.leads)
                .map(|position| at(position)),
        })
    }

    /// Drop the readers that are `behind` bytes behind the fastest, except the one that
    /// leads. `false`: there are none.
    pub(crate) fn drop_slow(&self, behind: u64, slow: Slow) -> bool {
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

    /// Add a reader; `None`: none can join any more. `leads`: it reads for the request that
    /// writes.
    pub(crate) fn join(&self, leads: bool) -> Option<(u64, Arc<Position>)> {
        let position = Arc::new(Position {
            at: AtomicU64::new(0),
            leads,
            lost: AtomicBool::new(false),
            can_leave: AtomicBool::new(false),
        });
        let mut table = self.0.lock();
        if table.ended {
            return None;
        }
        let number = table.next;
        table.next += 1;
        table.has_led |= leads;
        table.by_number.insert(number, position.clone());
        Some((number, position))
    }

    /// Remove a reader. True if no reader is left.
    pub(crate) fn leave(&self, number: u64) -> bool {
        let mut table = self.0.lock();
        table.by_number.remove(&number);
        table.by_number.is_empty()
    }

    /// Note that a reader needs no more.
    pub(crate) fn set_satisfied(&self) {
        self.0.lock().satisfied = true;
    }
}

// === impl Position ===

impl Position {
    /// Note that the reader has read up to here, or begins here.
    pub(crate) fn set(&self, at: u64) {
        self.at.store(at, Ordering::Release);
    }

    /// True if the reader was dropped for being too slow.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// True for the reader of the request that writes.
    pub(crate) fn leads(&self) -> bool {
        self.leads
    }

    /// Note whether the reader can get the rest elsewhere.
    pub(crate) fn set_can_leave(&self, can_leave: bool) {
        self.can_leave.store(can_leave, Ordering::Release);
    }
}
