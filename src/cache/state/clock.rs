//! The clock for times of use, which never jumps.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970 as the wall clock saw it when the process started,
/// from then on counted by the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    base: u64,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Clock {
            started: Instant::now(),
            base: unix_micros(SystemTime::now()),
        }
    }

    /// The current time.
    pub fn now(&self) -> u64 {
        self.base + self.started.elapsed().as_micros() as u64
    }

    /// The time stamp of a file, but not later than the start: the wall clock may have been
    /// wrong when it was made.
    pub fn past(&self, time: SystemTime) -> u64 {
        unix_micros(time).min(self.base)
    }

    /// True if an entry last used at `used` has not been used for `idle`. Time in which the
    /// process did not run does not count, since no client could ask for it.
    pub fn is_idle(&self, used: u64, idle: Duration) -> bool {
        self.now().saturating_sub(used.max(self.base)) > idle.as_micros() as u64
    }
}

fn unix_micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_from_the_future_are_not_newer_than_the_start() {
        let clock = Clock::start();
        let future = SystemTime::now() + Duration::from_secs(1 << 30);
        assert!(clock.past(future) <= clock.now());
        assert!(clock.past(UNIX_EPOCH) < clock.past(future));
    }

    #[test]
    fn idleness_starts_with_the_process() {
        let clock = Clock::start();
        assert!(!clock.is_idle(0, Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.is_idle(0, Duration::from_millis(1)));
        assert!(!clock.is_idle(clock.now(), Duration::from_millis(1)));
    }
}
