//! The age of a response, and the time for which it is fresh (RFC 9111 §4.2).

use std::time::{Duration, SystemTime};

use http::header::{DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, StatusCode};

use super::age::age_value;
use super::cache_control::ResponseDirectives;
use super::date::parse_http_date;

/// The longest step back of the clock after which stored responses are still trusted.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// The part of the time since the last modification for which a response counts as fresh if the
/// origin states nothing (RFC 9111 §4.2.2).
const HEURISTIC_PART: u32 = 10;

/// The longest heuristic freshness. HTTP/1.1 caches used to warn about an older response (RFC 7234
/// §5.5.4).
const HEURISTIC_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The times of a request and of the header of its response.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// RFC 9111's `request_time`.
    pub requested: SystemTime,
    /// RFC 9111's `response_time`.
    pub received: SystemTime,
}

/// The freshness lifetime of a response, and its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The origin states it. An invalid value counts as zero.
    Explicit(Duration),
    /// It is derived from the last modification or from the cache's own default.
    Guessed(Duration),
    /// The response has none.
    Unknown,
}

/// True if a response was stored or validated in what is now the future.
///
/// The clock was wrong then, or is now. In both cases the response could count as fresh for years
/// (RFC 9111 §4.2). Its age is unknown, so it has to be validated. The validation sets the time of
/// the update, but not that of the creation.
pub fn is_from_the_future(updated: SystemTime, now: SystemTime) -> bool {
    updated > now + CLOCK_TOLERANCE
}

/// Seconds of freshness left; negative for a stale response.
pub fn ttl(fresh_until: SystemTime, now: SystemTime) -> i64 {
    let (later, earlier, sign) = match fresh_until >= now {
        true => (fresh_until, now, 1),
        false => (now, fresh_until, -1),
    };
    let secs = later.duration_since(earlier).unwrap_or_default().as_secs();
    sign * i64::try_from(secs).unwrap_or(i64::MAX)
}

/// `corrected_initial_age` (RFC 9111 §4.2.3) in whole seconds: the age of the response when it was
/// received.
///
/// A `Date` ahead of the local clock counts as now, an invalid one as absent.
pub fn initial_age(response: &HeaderMap, times: Times) -> Duration {
    let seconds = |from: SystemTime, to: SystemTime| {
        let since_epoch = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs()
        };
        since_epoch(to).saturating_sub(since_epoch(from))
    };
    let apparent_age =
        date(response, times.received).map_or(0, |date| seconds(date, times.received));
    let response_delay = times
        .received
        .duration_since(times.requested)
        .unwrap_or_default()
        .as_secs();
    let age = age_value(response).map_or(0, u64::from);
    Duration::from_secs(apparent_age.max(age + response_delay))
}

/// `freshness_lifetime` in a shared cache (RFC 9111 §4.2.1): the first of
/// `s-maxage`, `max-age`, `Expires`, `default` for a 200, and a tenth of the time
/// since `Last-Modified`.
///
/// `targeted`: the directives come from a field meant for this cache alone, which
/// replaces `Expires` too (RFC 9213 §2.1).
pub fn lifetime(
    status: StatusCode,
    response: &HeaderMap,
    directives: &ResponseDirectives,
    targeted: bool,
    received: SystemTime,
    default: Option<Duration>,
) -> Lifetime {
    let secs = |secs: u32| Duration::from_secs(secs.into());
    if let Some(stated) = directives.s_maxage.or(directives.max_age) {
        return Lifetime::Explicit(stated.map_or(Duration::ZERO, secs));
    }
    if !targeted {
        if let Some(lifetime) = expires(response, received) {
            return Lifetime::Explicit(lifetime);
        }
    }
    if let Some(default) = default.filter(|_| status == StatusCode::OK) {
        return Lifetime::Guessed(default);
    }
    if !(is_heuristically_cacheable(status) || directives.public) {
        return Lifetime::Unknown;
    }
    let modified = response
        .get(LAST_MODIFIED)
        .and_then(|modified| parse_http_date(modified.as_bytes(), received));
    let Some(modified) = modified else {
        return Lifetime::Unknown;
    };
    let sent = date(response, received).unwrap_or(received);
    let unchanged = sent.duration_since(modified).unwrap_or_default();
    Lifetime::Guessed((unchanged / HEURISTIC_PART).min(HEURISTIC_LIMIT))
}

/// True if a response with this status may be stored although nothing states its freshness (RFC
/// 9110 §15.1). A 206 may be, but not by this cache.
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    )
}

/// The `Date` of a response. If it is repeated, the first one counts.
fn date(response: &HeaderMap, received: SystemTime) -> Option<SystemTime> {
    parse_http_date(response.get(DATE)?.as_bytes(), received)
}

/// The lifetime that `Expires` states. An invalid value is zero (RFC 9111 §5.3).
fn expires(response: &HeaderMap, received: SystemTime) -> Option<Duration> {
    let expires = response.get(EXPIRES)?;
    let Some(expires) = parse_http_date(expires.as_bytes(), received) else {
        return Some(Duration::ZERO);
    };
    let sent = date(response, received).unwrap_or(received);
    Some(expires.duration_since(sent).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    /// 2026-11-22 00:00:00
    const NOW: u64 = 1_795_305_600;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn date_field(secs: u64) -> String {
        httpdate::fmt_http_date(at(secs))
    }

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_static(name);
                (name, HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    fn lifetime_of(status: u16, of: &[(&'static str, &str)], default: Option<u64>) -> Lifetime {
        let of = fields(of);
        lifetime(
            StatusCode::from_u16(status).unwrap(),
            &of,
            &ResponseDirectives::from_cache_control(&of),
            false,
            at(NOW),
            default.map(Duration::from_secs),
        )
    }

    #[test]
    fn only_what_is_clearly_ahead_is_doubted() {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        for at in [now - hour, now, now + Duration::from_secs(59)] {
            assert!(!is_from_the_future(at, now));
        }
        assert!(is_from_the_future(now + hour, now));
    }

    /// RFC 9111 §4.2.3
    #[test]
    fn the_initial_age_is_the_larger_of_apparent_and_corrected() {
        let old = date_field(NOW - 100);
        let ahead = date_field(NOW + 100);
        for (headers, delay, expected) in [
            (&[][..], 0, 0),
            (&[], 3, 3),
            (&[("age", "30")], 0, 30),
            (&[("age", "30")], 3, 33),
            (&[("date", &*old)], 0, 100),
            (&[("date", &*old), ("age", "30")], 3, 100),
            (&[("date", &*old), ("age", "300")], 0, 300),
            (&[("date", &*ahead), ("age", "7")], 0, 7),
            (&[("date", "yesterday"), ("age", "7")], 0, 7),
            (&[("age", "a week")], 0, 0),
        ] {
            let times = Times {
                requested: at(NOW - delay),
                received: at(NOW),
            };
            assert_eq!(
                initial_age(&fields(headers), times),
                Duration::from_secs(expected),
                "{headers:?}, {delay} s"
            );
        }
    }

    /// RFC 9111 §4.2.1
    #[test]
    fn s_maxage_comes_before_max_age_before_expires() {
        let hour = &*date_field(NOW + 3600);
        let day_old = &*date_field(NOW - 86400);
        for (headers, expected) in [
            (
                &[
                    ("cache-control", "max-age=10, s-maxage=20"),
                    ("expires", hour),
                ][..],
                20,
            ),
            (&[("cache-control", "max-age=10"), ("expires", hour)], 10),
            (&[("expires", hour)], 3600),
            // counted from the origin's clock
            (&[("expires", hour), ("date", day_old)], 86400 + 3600),
            (&[("expires", hour), ("date", "soon")], 3600),
            (&[("expires", day_old)], 0),
            (&[("cache-control", "max-age=1.5"), ("expires", hour)], 0),
            (
                &[
                    ("cache-control", "max-age=10, s-maxage=x"),
                    ("expires", hour),
                ],
                0,
            ),
        ] {
            let expected = Lifetime::Explicit(Duration::from_secs(expected));
            assert_eq!(lifetime_of(200, headers, Some(5)), expected, "{headers:?}");
        }
    }

    /// RFC 9111 §5.3
    #[test]
    fn an_expires_that_cannot_be_read_is_in_the_past() {
        for expires in ["0", "-1", "", "tomorrow", "Sat, 22 Nov 2026 00:00:00 CET"] {
            assert_eq!(
                lifetime_of(200, &[("expires", expires)], Some(5)),
                Lifetime::Explicit(Duration::ZERO),
                "{expires:?}"
            );
        }
    }

    /// RFC 9111 §4.2.2
    #[test]
    fn a_tenth_of_the_time_unchanged_is_guessed() {
        let secs = |secs| Lifetime::Guessed(Duration::from_secs(secs));
        let hour_old = &*date_field(NOW - 3600);
        let years_old = &*date_field(NOW - 100_000_000);
        let ahead = &*date_field(NOW + 100);
        for (status, headers, expected) in [
            (200, &[("last-modified", hour_old)][..], secs(360)),
            (404, &[("last-modified", hour_old)], secs(360)),
            (200, &[("last-modified", years_old)], secs(86400)),
            (200, &[("last-modified", ahead)], secs(0)),
            (200, &[("last-modified", "long ago")], Lifetime::Unknown),
            (200, &[], Lifetime::Unknown),
            (302, &[("last-modified", hour_old)], Lifetime::Unknown),
            (500, &[("last-modified", hour_old)], Lifetime::Unknown),
            (
                302,
                &[("last-modified", hour_old), ("cache-control", "public")],
                secs(360),
            ),
        ] {
            assert_eq!(
                lifetime_of(status, headers, None),
                expected,
                "{status} {headers:?}"
            );
        }
    }

    #[test]
    fn the_default_is_for_a_200_that_says_nothing() {
        let hour_old = &*date_field(NOW - 3600);
        let hour = Lifetime::Guessed(Duration::from_secs(3600));
        assert_eq!(lifetime_of(200, &[], Some(3600)), hour);
        let modified = &[("last-modified", hour_old)];
        assert_eq!(lifetime_of(200, modified, Some(3600)), hour);
        assert_eq!(lifetime_of(404, &[], Some(3600)), Lifetime::Unknown);
    }

    /// RFC 9213 §2.1
    #[test]
    fn a_targeted_field_replaces_expires() {
        let headers = fields(&[("expires", &date_field(NOW + 3600))]);
        let directives = ResponseDirectives::default();
        for (targeted, expected) in [
            (false, Lifetime::Explicit(Duration::from_secs(3600))),
            (true, Lifetime::Unknown),
        ] {
            let lifetime = lifetime(
                StatusCode::OK,
                &headers,
                &directives,
                targeted,
                at(NOW),
                None,
            );
            assert_eq!(lifetime, expected);
        }
    }
}
