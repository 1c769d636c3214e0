//! Bodies that are opened again soon, which are worth keeping.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::cache::store::entry_id::EntryId;

/// The bodies that were opened last.
///
/// Where many more bodies are in use than can be kept, each is dropped long before it is asked for
/// again. To keep it, and to drop another in its place, would only cost time.
#[derive(Debug)]
pub(crate) struct Reopened {
    /// By one part of the hash of the key: another part, and the number of the open.
    slots: Box<[AtomicU64]>,
    opens: AtomicU32,
    /// Number of opens that count as last, or [`ALL`].
    window: AtomicU32,
}

/// Every body is worth keeping.
const ALL: u32 = u32::MAX;

/// Fewest and most slots, of 8 bytes each. A slot remembers one body.
const SLOTS: [usize; 2] = [64, 1 << 18];

/// Opens after which the window is measured again.
const MEASURED_EVERY: u32 = 64;

impl Reopened {
    /// For about so many bodies that are kept.
    pub fn new(kept: usize) -> Self {
        let [least, most] = SLOTS;
        let slots = kept.saturating_mul(4).clamp(least, most);
        let slots = slots.next_power_of_two();
        Reopened {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            opens: AtomicU32::new(0),
            window: AtomicU32::new(ALL),
        }
    }

    /// The result that [`note`](Self::note) would have, unless the window is measured then.
    pub fn is_worth_keeping(&self, id: &EntryId) -> bool {
        let (tag, slot) = self.place(id);
        let noted = self.slots[slot].load(Ordering::Relaxed);
        self.is_recent(noted, tag, self.opens.load(Ordering::Relaxed))
    }

    /// Note that a body is opened. True if it is worth keeping: it is among the last that were opened,
    /// or there is room. `kept` tells how many are kept; `None`: there is room for more.
    pub fn note(&self, id: &EntryId, kept: impl FnOnce() -> Option<usize>) -> bool {
        let (tag, slot) = self.place(id);
        let now = self.opens.fetch_add(1, Ordering::Relaxed);
        if now.is_multiple_of(MEASURED_EVERY) {
            let window = kept().map_or(ALL, |kept| u32::try_from(kept).unwrap_or(ALL));
            self.window.store(window, Ordering::Relaxed);
        }
        let noted = u64::from(tag) << 32 | u64::from(now);
        let before = self.slots[slot].swap(noted, Ordering::Relaxed);
        self.is_recent(before, tag, now)
    }

    /// The tag of a body, and its slot.
    fn place(&self, id: &EntryId) -> (u32, usize) {
        let [a, b, c, d, e, f, g, h, ..] = id.hash;
        let slot = u32::from_le_bytes([e, f, g, h]) as usize % self.slots.len();
        (u32::from_le_bytes([a, b, c, d]), slot)
    }

    fn is_recent(&self, noted: u64, tag: u32, now: u32) -> bool {
        match self.window.load(Ordering::Relaxed) {
            ALL => true,
            window => (noted >> 32) as u32 == tag && now.wrapping_sub(noted as u32) <= window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> EntryId {
        // Spread as a hash is.
        let hash = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = u128::from(hash) << 64 | u128::from(hash.swap_bytes());
        EntryId {
            hash: hash.to_le_bytes(),
            generation: 1,
        }
    }

    /// Number of bodies that are opened in turn, twice, and are worth keeping at the second time.
    fn repeated(bodies: u64, kept: usize) -> usize {
        let reopened = Reopened::new(kept);
        let note = |number| reopened.note(&id(number), || Some(kept));
        assert_eq!((0..bodies).filter(|number| note(*number)).count(), 0);
        (0..bodies).filter(|number| note(*number)).count()
    }

    #[test]
    fn what_is_opened_again_soon_is_worth_keeping() {
        assert!(repeated(500, 1000) > 400);
        assert!(repeated(900, 1000) > 700);
        assert_eq!(repeated(1100, 1000), 0);
        assert_eq!(repeated(20_000, 1000), 0);
        assert_eq!(repeated(10, 0), 0);
    }

    #[test]
    fn as_long_as_there_is_room_everything_is_worth_keeping() {
        let reopened = Reopened::new(1000);
        for number in 0..1000 {
            assert!(reopened.note(&id(number), || None));
        }
        let late = (1000..1200).filter(|number| reopened.note(&id(*number), || Some(1000)));
        assert!(late.count() <= MEASURED_EVERY as usize);
    }
}
