//! Repetitions of requests to the origin, and their budget.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::header::{HeaderMap, RETRY_AFTER};
use http::StatusCode;
use pingora_core::{Error, ErrorSource, ErrorType};

/// The pause before the first repetition. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The longest `Retry-After` that the proxy waits for, in seconds.
const LONGEST_RETRY_AFTER: u64 = 1;

/// The price of a repetition, in answers.
const COST: u32 = 10;

/// The initial budget: repetitions before any answer.
const CAPACITY: u32 = 20 * COST;

/// The budget for repetitions of requests to one origin. Its answers pay for them, so an origin
/// that does not work is not asked twice as often.
pub(super) struct Budget(AtomicU32);

// === impl Budget ===

impl Default for Budget {
    fn default() -> Self {
        Budget(AtomicU32::new(CAPACITY))
    }
}

impl Budget {
    /// Note an answer that needs no repetition.
    pub(super) fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < CAPACITY {
            self.change(|left| Some((left + 1).min(CAPACITY)));
        }
    }

    /// Pay for a repetition. False if the budget is too small.
    pub(super) fn spend(&self) -> bool {
        self.change(|left| left.checked_sub(COST))
    }

    fn change(&self, next: impl FnMut(u32) -> Option<u32>) -> bool {
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, next).is_ok()
    }
}

/// True if the same request may get another answer. S3 asks for repetitions after these ("Error
/// responses", Amazon S3 API Reference). A server that asks for a longer pause is not asked again.
pub(super) fn may_pass(status: StatusCode, fields: &HeaderMap) -> bool {
    let pause = fields.get(RETRY_AFTER).map(|pause| {
        let secs = pause.to_str().ok().and_then(|pause| pause.parse().ok());
        secs.unwrap_or(u64::MAX)
    });
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
        && pause.is_none_or(|secs| secs <= LONGEST_RETRY_AFTER)
}

/// True if another attempt to connect may succeed. A timeout is not repeated, because the client
/// has waited long enough.
pub(super) fn may_connect(error: &Error) -> bool {
    matches!(
        error.etype(),
        ErrorType::ConnectRefused | ErrorType::ConnectError | ErrorType::ConnectionClosed
    )
}

/// True if a connection has broken. A wrong or late answer is no such error.
pub(super) fn has_broken(error: &Error) -> bool {
    *error.esource() == ErrorSource::Upstream
        && matches!(
            error.etype(),
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError
        )
}

/// The pause before a repetition, the first of which is 1. `random`: 0 to 1.
pub(super) fn pause(number: u8, random: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << u32::from(number.saturating_sub(1)).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_pay_for_repetitions() {
        let budget = Budget::default();
        let all = (0..1000).filter(|_| budget.spend()).count();
        assert_eq!(all, 20);
        (0..COST - 1).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
        (0..10_000).for_each(|_| budget.earn());
        let all = (0..1000).filter(|_| budget.spend()).count();
        assert_eq!(all, 20);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let longest = |number| pause(number, 1.0).as_millis();
        assert_eq!(
            [1, 2, 3, 5, 6, 255].map(longest),
            [100, 200, 400, 1600, 2000, 2000]
        );
        assert_eq!(pause(1, 0.0), Duration::from_millis(50));
    }

    #[test]
    fn only_what_may_pass_is_repeated() {
        let fields = |pause: &str| {
            let mut fields = HeaderMap::new();
            fields.insert(RETRY_AFTER, pause.parse().unwrap());
            fields
        };
        let none = HeaderMap::new();
        for (status, fields, expected) in [
            (500, &none, true),
            (502, &none, true),
            (503, &none, true),
            (504, &none, true),
            (503, &fields("1"), true),
            (503, &fields("2"), false),
            (503, &fields("Sat, 28 Nov 2026 00:00:00 GMT"), false),
            (501, &none, false),
            (505, &none, false),
            (404, &none, false),
            (429, &none, false),
            (200, &none, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(may_pass(status, fields), expected, "{status} {fields:?}");
        }
    }
}
