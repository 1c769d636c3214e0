//! The part of a body that was found in the page cache a moment ago.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{clock_gettime, ClockId};

/// The beginning of a body that was found in the page cache, and the time.
///
/// A look takes a twentieth of the time of a hit of 64 KiB. A page may leave the page cache between a look
/// and the send anyway, so for a moment the last look is as good as another one.
///
/// The upper half is the time in milliseconds, the lower one the length in pages. 0: nothing was found.
#[derive(Debug, Default)]
pub(super) struct FoundResident(AtomicU64);

/// The time for which a look counts, in milliseconds. The disk of the tests waits for longer than this once it
/// has forgotten its pages (`LOOK_COUNTS` in tests/support).
const MOMENT: u32 = 100;

/// The unit of the length, in bytes.
const PAGE: u64 = 4096;

/// A clock that is read in less time than others, and as coarse as the kernel's ticks.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::MonotonicCoarse;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

impl FoundResident {
    /// The time, in milliseconds.
    pub fn now() -> u32 {
        let now = clock_gettime(CLOCK);
        // Only differences count.
        (now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000) as u32
    }

    /// True if all of a range was found.
    pub fn has(&self, range: &Range<u64>, now: u32) -> bool {
        let found = self.0.load(Ordering::Relaxed);
        let (time, pages) = ((found >> 32) as u32, found & u64::from(u32::MAX));
        range.end <= pages * PAGE && now.wrapping_sub(time) < MOMENT
    }

    /// Note a range that was found. Only one at the beginning is kept.
    pub fn note(&self, range: &Range<u64>, now: u32) {
        let pages = range.end.div_ceil(PAGE);
        if range.start == 0 && pages <= u64::from(u32::MAX) {
            self.0
                .store(u64::from(now) << 32 | pages, Ordering::Relaxed);
        }
    }

    /// Forget what was found.
    pub fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_counts_for_a_moment_and_for_the_beginning_of_a_body() {
        // The clock may overflow meanwhile.
        for then in [0, 1000, u32::MAX - 10] {
            let found = FoundResident::default();
            let later = |time: u32| then.wrapping_add(time);
            assert!(!found.has(&(0..1), then));
            found.note(&(4096..8192), then);
            assert!(!found.has(&(4096..8192), then));

            found.note(&(0..10_000), then);
            assert!(found.has(&(0..10_000), later(MOMENT - 1)));
            assert!(found.has(&(5000..6000), later(MOMENT - 1)));
            assert!(!found.has(&(0..10_000), later(MOMENT)));
            assert!(!found.has(&(0..20_000), then));
            assert!(!found.has(&(20_000..20_001), then));

            found.forget();
            assert!(!found.has(&(0..1), then));
        }
    }

    #[test]
    fn a_range_that_is_too_long_is_not_noted() {
        let found = FoundResident::default();
        let longest = u64::from(u32::MAX) * PAGE;
        found.note(&(0..longest + 1), 0);
        assert!(!found.has(&(0..1), 0));
        found.note(&(0..longest), 0);
        assert!(found.has(&(0..longest), 0));
    }

    #[test]
    fn the_clock_goes_forward() {
        let (began, start) = (std::time::Instant::now(), FoundResident::now());
        while FoundResident::now() == start {
            assert!(began.elapsed().as_secs() < 60);
            std::hint::spin_loop();
        }
        assert!(FoundResident::now().wrapping_sub(start) < 60_000);
    }
}
