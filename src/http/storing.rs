//! Whether a response is stored, and what of it (RFC 9111 §3).

use std::time::{Duration, SystemTime};

use http::header::{AGE, AUTHORIZATION, DATE, ETAG, LAST_MODIFIED, SET_COOKIE, VARY};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora_cache::CacheMeta;
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use super::cache_control::{ResponseDirectives, Scope, Seconds};
use super::fields::not_stored;
use super::freshness::{initial_age, is_heuristically_cacheable, lifetime, Lifetime, Times};

/// What the owner of a cache decides about storing.
#[derive(Debug, Clone)]
pub struct StoringRules {
    /// Freshness of a 200 for which the origin gives none. Without it, a tenth of
    /// the time since its last modification is taken.
    pub default_ttl: Option<Duration>,
    /// Fields that replace `Cache-Control` and `Expires` for this cache, the first
    /// that is there (RFC 9213 §2.2).
    pub targeted: Vec<HeaderName>,
}

impl Default for StoringRules {
    fn default() -> Self {
        StoringRules {
            default_ttl: None,
            targeted: vec![HeaderName::from_static("cdn-cache-control")],
        }
    }
}

/// What is stored of a response.
#[derive(Debug)]
pub struct ToStore {
    /// The stored header, and how long it is fresh.
    pub meta: CacheMeta,
    /// Fields that belong to this response and not to the stored one.
    pub withheld: Vec<(HeaderName, HeaderValue)>,
}

/// The answer to a request, of which it is to be decided whether it is stored.
#[derive(Debug)]
pub struct Answer<'a> {
    pub request: &'a RequestHeader,
    pub response: &'a ResponseHeader,
    pub times: Times,
}

impl StoringRules {
    /// The directives for this cache, and whether they are meant for it alone.
    pub fn directives(&self, response: &ResponseHeader) -> (ResponseDirectives, bool) {
        let targeted = self
            .targeted
            .iter()
            .find_map(|name| ResponseDirectives::from_targeted(&response.headers, name));
        match targeted {
            Some(directives) => (directives, true),
            None => (
                ResponseDirectives::from_cache_control(&response.headers),
                false,
            ),
        }
    }

    /// Decide on the answer to a GET without a range (RFC 9111 §3). `None`: it is
    /// not stored.
    ///
    /// A response that could never be used again is not stored either: it would
    /// only make requests wait for each other.
    pub fn to_store(&self, answer: &Answer) -> Result<Option<ToStore>> {
        let Answer {
            request,
            response,
            times,
        } = answer;
        let (directives, targeted) = self.directives(response);
        if !may_store(request, response, &directives) {
            return Ok(None);
        }
        let lifetime = lifetime(
            response.status,
            &response.headers,
            &directives,
            targeted,
            times.received,
            self.default_ttl,
        );
        let explicit = matches!(lifetime, Lifetime::Explicit(_));
        if !explicit && response.headers.contains_key(SET_COOKIE) {
            // RFC 9111 §7.3 leaves it to the origin to forbid it; one that says
            // nothing at all has hardly thought about it.
            return Ok(None);
        }
        let must_validate = matches!(directives.no_cache, Scope::Everything);
        let fresh = match lifetime {
            _ if must_validate => Duration::ZERO,
            Lifetime::Explicit(fresh) | Lifetime::Guessed(fresh) => fresh,
            Lifetime::Unknown => Duration::ZERO,
        };
        if lifetime == Lifetime::Unknown
            && !(directives.public || must_validate || is_heuristically_cacheable(response.status))
        {
            return Ok(None);
        }

        let (while_revalidate, if_error) = stale_windows(&directives);
        let has_validator = [ETAG, LAST_MODIFIED]
            .iter()
            .any(|name| response.headers.contains_key(name));
        let age = initial_age(&response.headers, *times);
        let never_usable = fresh <= age && !has_validator;
        if never_usable && while_revalidate == 0 && if_error == 0 {
            return Ok(None);
        }

        let (header, withheld) = stored_header(response, &directives, times.received)?;
        let epoch = times.received.checked_sub(age).unwrap_or(times.received);
        let fresh_until = if fresh.is_zero() {
            // Stale from the first moment on.
            epoch.checked_sub(Duration::from_secs(1)).unwrap_or(epoch)
        } else {
            epoch.checked_add(fresh).unwrap_or(epoch)
        };
        let mut meta = CacheMeta::new(
            fresh_until,
            times.received,
            while_revalidate,
            if_error,
            header,
        );
        meta.set_epoch_override(epoch);
        Ok(Some(ToStore { meta, withheld }))
    }

    /// Whether a stored response may be used stale if a client asks for that
    /// (RFC 9111 §4.2.4).
    pub fn may_be_stale(&self, stored: &ResponseHeader) -> bool {
        let (directives, _) = self.directives(stored);
        !forbids_stale(&directives)
    }
}

fn may_store(
    request: &RequestHeader,
    response: &ResponseHeader,
    directives: &ResponseDirectives,
) -> bool {
    let status = response.status;
    // Partial responses are not combined here, so they are not stored (§3.3). A
    // 304 says nothing by itself.
    if status.is_informational()
        || matches!(
            status,
            StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
        )
    {
        return false;
    }
    // §5.2.2.3: who understands the status need not heed no-store.
    let understood = directives.must_understand && is_understood(status);
    if directives.must_understand && !understood {
        return false;
    }
    if directives.no_store && !understood {
        return false;
    }
    if matches!(directives.private, Scope::Everything) {
        return false;
    }
    // §3.5
    if request.headers.contains_key(AUTHORIZATION)
        && !(directives.public || directives.must_revalidate || directives.s_maxage.is_some())
    {
        return false;
    }
    // §4.1: matches no request.
    !response.headers.get_all(VARY).iter().any(|vary| {
        vary.as_bytes()
            .split(|b| *b == b',')
            .any(|name| name.trim_ascii() == b"*")
    })
}

/// Final statuses that RFC 9110 defines, and what they mean for a cache.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505
    )
}

/// §4.2.4: `must-revalidate`, what implies it, and `no-cache`.
fn forbids_stale(directives: &ResponseDirectives) -> bool {
    directives.must_revalidate
        || directives.proxy_revalidate
        || directives.s_maxage.is_some()
        || !matches!(directives.no_cache, Scope::Nothing)
}

/// For how long, in seconds, a response may be used stale while it is being
/// revalidated, and if that fails (RFC 5861).
fn stale_windows(directives: &ResponseDirectives) -> (u32, u32) {
    if forbids_stale(directives) {
        return (0, 0);
    }
    let secs = |secs: Option<Seconds>| secs.and_then(Result::ok).unwrap_or(0);
    (
        secs(directives.stale_while_revalidate),
        secs(directives.stale_if_error),
    )
}

type Withheld = Vec<(HeaderName, HeaderValue)>;

/// The header without what must not be stored (RFC 9111 §3.1), and what of that
/// its first reader gets all the same.
fn stored_header(
    response: &ResponseHeader,
    directives: &ResponseDirectives,
    received: SystemTime,
) -> Result<(ResponseHeader, Withheld)> {
    let mut header = response.clone();
    for name in not_stored(&response.headers) {
        header.remove_header(&name);
    }
    let mut withheld = Withheld::new();
    let mut withhold = |header: &mut ResponseHeader, name: &HeaderName| {
        let values = header.headers.get_all(name).iter().cloned();
        withheld.extend(values.map(|value| (name.clone(), value)));
        header.remove_header(name);
    };
    // It is computed anew for each reader.
    withhold(&mut header, &AGE);
    for scope in [&directives.private, &directives.no_cache] {
        if let Scope::Fields(names) = scope {
            for name in names {
                withhold(&mut header, name);
            }
        }
    }
    if !header.headers.contains_key(DATE) {
        // RFC 9110 §6.6.1
        header.insert_header(DATE, httpdate::fmt_http_date(received))?;
    }
    Ok((header, withheld))
}

/// Whether a stored response has to be validated each time it is used.
pub fn is_always_stale(meta: &CacheMeta) -> bool {
    meta.fresh_sec() == 0
}
