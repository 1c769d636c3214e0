//! Whether a response is stored, and how long it is fresh.

use std::time::{Duration, SystemTime};

use http::header::EXPIRES;
use http::StatusCode;
use pingora_cache::cache_control::{CacheControl, Cacheable, InterpretCacheControl};
use pingora_cache::filters::resp_cacheable;
use pingora_cache::{CacheMeta, CacheMetaDefaults, NoCacheReason, RespCacheable};
use pingora_http::ResponseHeader;

/// Freshness of a 200 for which the origin gives none.
#[derive(Debug, Clone, Copy)]
pub struct DefaultTtl(pub Duration);

const NO_DEFAULTS: CacheMetaDefaults = CacheMetaDefaults::new(|_| None, 0, 0);

/// Decide on a response to a GET without a range.
///
/// `Cache-Control` and then `Expires` decide (RFC 9111 §3 and §4.2.1). If both
/// say nothing, a 200 is fresh for the default TTL, anything else is not stored.
/// Partial responses are never stored.
pub fn storable(response: &ResponseHeader, default_ttl: DefaultTtl) -> RespCacheable {
    if response.status == StatusCode::PARTIAL_CONTENT {
        return RespCacheable::Uncacheable(NoCacheReason::OriginNotCache);
    }
    let cache_control = CacheControl::from_resp_headers(response);
    let decided = resp_cacheable(
        cache_control.as_ref(),
        response.clone(),
        false,
        &NO_DEFAULTS,
    );
    let silent = cache_control
        .is_none_or(|cc| cc.is_cacheable() != Cacheable::No && cc.fresh_duration().is_none())
        && !response.headers.contains_key(EXPIRES);
    match decided {
        // A 304 gets here merged into the stored header, whose status it keeps.
        RespCacheable::Uncacheable(_) if silent && response.status == StatusCode::OK => {
            let now = SystemTime::now();
            let fresh_until = now.checked_add(default_ttl.0).unwrap_or(now);
            RespCacheable::Cacheable(CacheMeta::new(fresh_until, now, 0, 0, response.clone()))
        }
        decided => decided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh_secs(status: u16, headers: &[(&'static str, &str)]) -> Option<u64> {
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in headers {
            response.append_header(*name, *value).unwrap();
        }
        match storable(&response, DefaultTtl(Duration::from_secs(3600))) {
            RespCacheable::Cacheable(meta) => Some(meta.fresh_sec()),
            RespCacheable::Uncacheable(_) => None,
        }
    }

    #[test]
    fn what_the_origin_says_decides() {
        let past = "Thu, 01 Jan 1970 00:00:00 GMT";
        for (status, headers, expected) in [
            (200, &[][..], Some(3600)),
            (200, &[("Cache-Control", "max-age=10")], Some(10)),
            (
                200,
                &[("Cache-Control", "max-age=10, s-maxage=20")],
                Some(20),
            ),
            (200, &[("Cache-Control", "public")], Some(3600)),
            (200, &[("Cache-Control", "no-store")], None),
            (200, &[("Cache-Control", "private, max-age=10")], None),
            (200, &[("Cache-Control", "no-cache")], Some(0)),
            (200, &[("Expires", past)], Some(0)),
            (206, &[("Cache-Control", "max-age=10")], None),
            (404, &[], None),
            (404, &[("Cache-Control", "max-age=10")], Some(10)),
            (500, &[], None),
        ] {
            assert_eq!(
                fresh_secs(status, headers),
                expected,
                "{status} {headers:?}"
            );
        }
    }
}
