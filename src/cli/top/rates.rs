//! The change of the counters between two answers.

use std::time::Duration;

use pingora_sendfile::proxy::status::Status;

/// A number per second; `None`: it is not known.
pub type Rate = Option<f64>;

/// The changes of counters per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates {
    pub hits: Rate,
    pub misses: Rate,
    pub stale: Rate,
    pub errors: Rate,
    pub origin: Rate,
    /// Share of the hits, from 0 to 1; `None`: there were no requests, or it is not known.
    pub hit_ratio: Option<f64>,
    /// Bytes, by their way.
    pub sendfile: Rate,
    pub ktls: Rate,
    pub memory: Rate,
    pub copied: Rate,
    pub total: Rate,
}

/// True if the two states are those of one process, so that its counters go on.
pub fn is_same_process(before: &Status, after: &Status) -> bool {
    // In a container, each process has the same number.
    before.pid == after.pid && before.uptime_seconds <= after.uptime_seconds
}

// === impl Rates ===

impl Rates {
    /// The changes from one state to a later one. A counter that went back has none.
    pub fn between(before: &Status, after: &Status, elapsed: Duration) -> Rates {
        let seconds = elapsed.as_secs_f64();
        if !is_same_process(before, after) || seconds <= 0.0 {
            return Rates::default();
        }
        let change = |count: fn(&Status) -> u64| count(after).checked_sub(count(before));
        let rate = |count| change(count).map(|change| change as f64 / seconds);
        let hits = change(|status| status.requests.hits);
        let misses = change(|status| status.requests.misses);
        let requests = hits.zip(misses).map(|(hits, misses)| hits + misses);
        Rates {
            hits: rate(|status| status.requests.hits),
            misses: rate(|status| status.requests.misses),
            stale: rate(|status| status.requests.stale),
            errors: rate(|status| status.requests.errors),
            origin: rate(|status| status.requests.origin),
            hit_ratio: hits
                .zip(requests)
                .filter(|(_, requests)| *requests > 0)
                .map(|(hits, requests)| hits as f64 / requests as f64),
            sendfile: rate(|status| status.bytes.sendfile),
            ktls: rate(|status| status.bytes.ktls),
            memory: rate(|status| status.bytes.memory),
            copied: rate(|status| status.bytes.copied),
            total: rate(|status| status.bytes.total),
        }
    }
}

#[cfg(test)]
mod tests {
    use pingora_sendfile::proxy::status::{Bytes, Requests};

    use super::*;

    fn status(pid: u32, uptime_seconds: u64, hits: u64, misses: u64, total: u64) -> Status {
        Status {
            pid,
            uptime_seconds,
            requests: Requests {
                hits,
                misses,
                ..Requests::default()
            },
            bytes: Bytes {
                total,
                sendfile: total,
                ..Bytes::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn rates_are_those_of_the_time_between_two_answers() {
        let before = status(7, 100, 1000, 50, 1_000_000);
        let after = status(7, 102, 1090, 60, 6_000_000);
        let rates = Rates::between(&before, &after, Duration::from_secs(2));
        assert_eq!((rates.hits, rates.misses), (Some(45.0), Some(5.0)));
        assert_eq!(rates.hit_ratio, Some(0.9));
        assert_eq!(
            (rates.total, rates.sendfile, rates.ktls),
            (Some(2_500_000.0), Some(2_500_000.0), Some(0.0))
        );
        let quiet = Rates::between(&after, &after, Duration::from_secs(2));
        assert_eq!((quiet.hits, quiet.hit_ratio), (Some(0.0), None));
    }

    #[test]
    fn counters_of_another_process_have_no_rate() {
        let before = status(7, 100, 1000, 50, 1_000_000);
        let elapsed = Duration::from_secs(2);
        // A restart, one in a container, and one after which more was counted than before.
        for after in [
            status(8, 1, 3, 1, 10),
            status(7, 1, 3, 1, 10),
            status(8, 500, 2000, 100, 2_000_000),
        ] {
            let rates = Rates::between(&before, &after, elapsed);
            assert_eq!(rates, Rates::default(), "{after:?}");
        }
        // One that went back.
        let rates = Rates::between(&before, &status(7, 101, 999, 51, u64::MAX), elapsed);
        assert_eq!((rates.hits, rates.misses), (None, Some(0.5)));
        assert_eq!(rates.hit_ratio, None);
        // Two answers at once.
        let at_once = Rates::between(&before, &before, Duration::ZERO);
        assert_eq!(at_once, Rates::default());
    }
}
