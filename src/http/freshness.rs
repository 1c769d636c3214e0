//! Whether what is stored may still be used.

use std::time::{Duration, SystemTime};

use pingora_cache::CacheMeta;

/// How far the clock may step back before stored responses are doubted.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Whether a response was stored or validated in what is now the future.
///
/// The clock was wrong then, or is now; either way the time for which the
/// response is fresh (RFC 9111 §4.2) was counted from a wrong start, and could
/// last for years. Its age is unknown, so it has to be validated. That sets
/// when it was updated; when it was created stays as it is.
pub fn is_from_the_future(meta: &CacheMeta, now: SystemTime) -> bool {
    meta.updated() > now + CLOCK_TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_http::ResponseHeader;

    #[test]
    fn only_what_is_clearly_ahead_is_doubted() {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let stored = |at: SystemTime| {
            let header = ResponseHeader::build(200, None).unwrap();
            CacheMeta::new(at + hour, at, 0, 0, header)
        };
        for at in [now - hour, now, now + Duration::from_secs(59)] {
            assert!(!is_from_the_future(&stored(at), now));
        }
        assert!(is_from_the_future(&stored(now + hour), now));
    }
}
