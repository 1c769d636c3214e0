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

    /// The time when the process started. It counts as the last use of entries of earlier runs:
    /// while no process ran, no client could ask for them.
    pub fn started(&self) -> u64 {
        self.base
    }

    /// Entries that were last used before this time have not been used for `idle`.
    pub fn idle_since(&self, idle: Duration) -> u64 {
        self.now().saturating_sub(idle.as_micros() as u64)
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
    fn idleness_starts_with_the_process() {
        let clock = Clock::start();
        let is_idle = |used, idle| used < clock.idle_since(idle);
        assert!(!is_idle(clock.started(), Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(2));
        assert!(is_idle(clock.started(), Duration::from_millis(1)));
        assert!(!is_idle(clock.now(), Duration::from_millis(1)));
    }
}
