//! The decision to store a response, and the part of it that is stored (RFC 9111 §3).

use std::time::{Duration, SystemTime};

use http::header::{AGE, AUTHORIZATION, DATE, ETAG, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora_cache::CacheMeta;
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use super::cache_control::{ResponseDirectives, Scope, Seconds};
use super::fields::{not_stored, RequestFields};
use super::freshness::{initial_age, is_heuristically_cacheable, lifetime, Lifetime, Times};
use super::vary::{variance, Variance};

/// Rules of the owner of a cache for storing responses.
#[derive(Debug, Clone)]
pub struct StoringRules {
    /// The freshness of a 200 for which the origin states none. If it is not set, a tenth of the
    /// time since the last modification is used.
    pub default_ttl: Option<Duration>,
    /// Fields that replace `Cache-Control` and `Expires` for this cache. The first one that a
    /// response has counts (RFC 9213 §2.2).
    pub targeted: Vec<HeaderName>,
    /// False to store nothing.
    pub store: bool,
    /// Ignore `Cache-Control`, `Expires` and the [`targeted`](Self::targeted) fields of responses.
    pub ignore_origin: bool,
    /// The time for which a stale response may be used if the origin fails, unless the response
    /// states one; in whole seconds. `must-revalidate` and similar directives forbid it.
    pub stale_if_error: Duration,
    /// The same while it is being revalidated.
    pub stale_while_revalidate: Duration,
}

impl Default for StoringRules {
    fn default() -> Self {
        StoringRules {
            default_ttl: None,
            targeted: vec![HeaderName::from_static("cdn-cache-control")],
            store: true,
            ignore_origin: false,
            stale_if_error: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
        }
    }
}

/// The stored part of a response, and the remainder.
#[derive(Debug)]
pub struct ToStore {
    /// The stored header and its freshness.
    pub meta: CacheMeta,
    /// Fields that belong to this response and not to the stored one.
    pub withheld: Vec<(HeaderName, HeaderValue)>,
}

/// A response and its request, for the decision to store it.
#[derive(Debug)]
pub struct Answer<'a> {
    pub request: &'a RequestHeader,
    /// The fields of the request that reach the origin.
    pub reaching: RequestFields,
    pub response: &'a ResponseHeader,
    pub times: Times,
}

impl StoringRules {
    /// The directives for this cache. True if they come from a field for this cache alone.
    pub fn directives(&self, response: &ResponseHeader) -> (ResponseDirectives, bool) {
        if self.ignore_origin {
            // A targeted field overrides Expires too.
            return (ResponseDirectives::default(), true);
        }
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

    /// Decide on the response to a GET without a range (RFC 9111 §3). `None`: it is not stored.
    ///
    /// A response that could never be reused is not stored either, because requests would wait for
    /// each other in vain.
    pub fn to_store(&self, answer: &Answer) -> Result<Option<ToStore>> {
        let Answer {
            response, times, ..
        } = answer;
        let (directives, targeted) = self.directives(response);
        if !self.store || !may_store(answer, &directives) {
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
            // RFC 9111 §7.3 leaves it to the origin to forbid this. An origin that states no
            // freshness has hardly considered it.
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

        let stated = stale_windows(&directives, [Duration::ZERO; 2]);
        let has_validator = [ETAG, LAST_MODIFIED]
            .iter()
            .any(|name| response.headers.contains_key(name));
        let age = initial_age(&response.headers, *times);
        let never_usable = fresh <= age && !has_validator;
        if never_usable && stated == [0, 0] {
            return Ok(None);
        }
        let defaults = [self.stale_while_revalidate, self.stale_if_error];
        let [while_revalidate, if_error] = stale_windows(&directives, defaults);

        let (header, withheld) = stored_header(response, &directives, times.received)?;
        let epoch = times.received.checked_sub(age).unwrap_or(times.received);
        let fresh_until = if fresh.is_zero() {
            // The response is stale from the first moment.
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

    /// True if a stored response may be used stale for a client that asks for it (RFC 9111 §4.2.4).
    pub fn may_be_stale(&self, stored: &ResponseHeader) -> bool {
        let (directives, _) = self.directives(stored);
        !forbids_stale(&directives)
    }
}

fn may_store(answer: &Answer, directives: &ResponseDirectives) -> bool {
    let Answer {
        request,
        reaching,
        response,
        ..
    } = *answer;
    let status = response.status;
    // Partial responses are not combined here, so they are not stored (§3.3). A 304 is no response
    // of its own.
    if status.is_informational()
        || matches!(
            status,
            StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
        )
    {
        return false;
    }
    // §5.2.2.3: a cache that understands the status ignores no-store.
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
    if reaching.contains(&AUTHORIZATION)
        && request.headers.contains_key(AUTHORIZATION)
        && !(directives.public || directives.must_revalidate || directives.s_maxage.is_some())
    {
        return false;
    }
    // §4.1: the response matches no request, or its Vary cannot be parsed.
    variance(&response.headers, &request.headers, reaching) != Variance::Never
}

/// True for final statuses whose caching rules are implemented: those of RFC 9110.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505
    )
}

/// True for `must-revalidate`, the directives that imply it, and `no-cache` (§4.2.4).
fn forbids_stale(directives: &ResponseDirectives) -> bool {
    directives.must_revalidate
        || directives.proxy_revalidate
        || directives.s_maxage.is_some()
        || !matches!(directives.no_cache, Scope::Nothing)
}

/// The seconds for which a response may be used stale while it is being revalidated, and if that
/// fails (RFC 5861). `defaults` apply unless the response states them.
fn stale_windows(directives: &ResponseDirectives, defaults: [Duration; 2]) -> [u32; 2] {
    if forbids_stale(directives) {
        return [0, 0];
    }
    let secs = |stated: Option<Seconds>, default: Duration| match stated {
        Some(stated) => stated.unwrap_or(0),
        None => u32::try_from(default.as_secs()).unwrap_or(u32::MAX),
    };
    [
        secs(directives.stale_while_revalidate, defaults[0]),
        secs(directives.stale_if_error, defaults[1]),
    ]
}

type Withheld = Vec<(HeaderName, HeaderValue)>;

/// The header without the fields that must not be stored (RFC 9111 §3.1), and those of them that
/// its first reader gets.
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
    // Age is computed for each reader.
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

/// True if a stored response has to be validated each time it is used.
pub fn is_always_stale(meta: &CacheMeta) -> bool {
    meta.fresh_sec() == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{CACHE_CONTROL, EXPIRES};

    const RECEIVED: Duration = Duration::from_secs(1_795_305_600);

    fn decide(
        asked: &[(&'static str, &str)],
        status: u16,
        answered: &[(&'static str, &str)],
        rules: &StoringRules,
    ) -> Option<ToStore> {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in asked {
            request.append_header(*name, *value).unwrap();
        }
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in answered {
            response.append_header(*name, *value).unwrap();
        }
        let received = SystemTime::UNIX_EPOCH + RECEIVED;
        rules
            .to_store(&Answer {
                request: &request,
                reaching: RequestFields::All,
                response: &response,
                times: Times {
                    requested: received,
                    received,
                },
            })
            .unwrap()
    }

    fn answer(status: u16, answered: &[(&'static str, &str)]) -> Option<ToStore> {
        decide(&[], status, answered, &StoringRules::default())
    }

    fn fresh_secs(status: u16, answered: &[(&'static str, &str)]) -> Option<u64> {
        answer(status, answered).map(|stored| stored.meta.fresh_sec())
    }

    #[test]
    fn what_is_not_to_be_stored_is_not() {
        let rules = StoringRules {
            store: false,
            ..StoringRules::default()
        };
        assert!(decide(&[], 200, &[("Cache-Control", "max-age=60")], &rules).is_none());
    }

    #[test]
    fn an_origin_that_is_ignored_has_no_say() {
        let rules = StoringRules {
            ignore_origin: true,
            default_ttl: Some(Duration::from_secs(60)),
            stale_if_error: Duration::from_secs(5),
            stale_while_revalidate: Duration::from_secs(6),
            ..StoringRules::default()
        };
        for fields in [
            &[][..],
            &[("Cache-Control", "no-store, private")],
            &[("Cache-Control", "max-age=5, must-revalidate")],
            &[("Cache-Control", "no-cache, stale-if-error=0")],
            &[("Expires", "0")],
            &[("CDN-Cache-Control", "no-store")],
        ] {
            let stored = decide(&[], 200, fields, &rules).expect("it is stored");
            assert_eq!(stored.meta.fresh_sec(), 60, "{fields:?}");
            assert_eq!(stored.meta.stale_if_error_sec(), 5, "{fields:?}");
            assert_eq!(stored.meta.stale_while_revalidate_sec(), 6, "{fields:?}");
            assert!(rules.may_be_stale(stored.meta.response_header()));
        }
        // A response for one client only is known by other fields too.
        for fields in [[("Vary", "*")], [("Set-Cookie", "a=b")]] {
            assert!(decide(&[], 200, &fields, &rules).is_none(), "{fields:?}");
        }
    }

    #[test]
    fn defaults_of_staleness_hold_where_the_origin_is_silent() {
        let rules = StoringRules {
            stale_if_error: Duration::from_secs(50),
            stale_while_revalidate: Duration::from_secs(60),
            ..StoringRules::default()
        };
        for (directives, if_error, while_revalidate) in [
            ("max-age=5", 50, 60),
            ("max-age=5, stale-if-error=7", 7, 60),
            ("max-age=5, stale-while-revalidate=0", 50, 0),
            ("max-age=5, must-revalidate", 0, 0),
            ("max-age=5, proxy-revalidate", 0, 0),
            ("s-maxage=5", 0, 0),
            ("max-age=5, no-cache=\"x\"", 0, 0),
        ] {
            let fields = [("Cache-Control", directives)];
            let stored = decide(&[], 200, &fields, &rules).expect("it is stored");
            assert_eq!(stored.meta.stale_if_error_sec(), if_error, "{directives}");
            let revalidating = stored.meta.stale_while_revalidate_sec();
            assert_eq!(revalidating, while_revalidate, "{directives}");
        }
        // A response that is never usable is not stored for the case that the origin fails.
        assert!(decide(&[], 200, &[("Cache-Control", "max-age=0")], &rules).is_none());
    }

    const DAY_OLD: (&str, &str) = ("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT");

    /// RFC 9111 §3, §4.2.1, §5.2.2
    #[test]
    fn what_the_origin_says_decides() {
        let past = ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT");
        let tag = ("ETag", "\"a\"");
        let control = |value| ("Cache-Control", value);
        for (status, headers, expected) in [
            (200, &[control("max-age=10")][..], Some(10)),
            (200, &[control("max-age=10, s-maxage=20")], Some(20)),
            (200, &[control("no-store, max-age=10")], None),
            (200, &[control("private, max-age=10")], None),
            (200, &[control("no-cache, max-age=10"), tag], Some(0)),
            (200, &[control("max-age=0"), tag], Some(0)),
            (200, &[past, tag], Some(0)),
            (200, &[DAY_OLD], Some(8640)),
            (404, &[DAY_OLD], Some(8640)),
            (404, &[control("max-age=10")], Some(10)),
            (500, &[], None),
            (500, &[control("max-age=10")], Some(10)),
            (302, &[DAY_OLD], None),
            (302, &[control("max-age=10")], Some(10)),
            (599, &[control("max-age=10")], Some(10)),
            (999, &[control("s-maxage=10")], Some(10)),
            // without any freshness, a validator makes it of use
            (200, &[tag], Some(0)),
            (200, &[], None),
            (302, &[tag], None),
            (302, &[control("public"), tag], Some(0)),
        ] {
            assert_eq!(
                fresh_secs(status, headers),
                expected,
                "{status} {headers:?}"
            );
        }
    }

    /// RFC 9111 §3.3: a part is never taken for the whole.
    #[test]
    fn parts_and_confirmations_are_not_stored() {
        for status in [100, 103, 206, 304] {
            assert_eq!(fresh_secs(status, &[("Cache-Control", "max-age=10")]), None);
        }
    }

    #[test]
    fn what_could_never_be_used_is_not_stored() {
        for headers in [
            &[("Cache-Control", "max-age=0")][..],
            &[("Cache-Control", "no-cache")],
            &[("Cache-Control", "max-age=10"), ("Age", "10")],
        ] {
            assert_eq!(fresh_secs(200, headers), None, "{headers:?}");
        }
        let while_stale = [("Cache-Control", "max-age=0, stale-while-revalidate=5")];
        assert_eq!(fresh_secs(200, &while_stale), Some(0));
    }

    /// RFC 9111 §3.5
    #[test]
    fn the_answer_to_credentials_is_stored_if_it_says_so() {
        for (control, expected) in [
            ("max-age=10", false),
            ("max-age=10, public", true),
            ("max-age=10, must-revalidate", true),
            ("s-maxage=10", true),
            ("max-age=10, proxy-revalidate", false),
        ] {
            let stored = decide(
                &[("Authorization", "Basic eA==")],
                200,
                &[("Cache-Control", control)],
                &StoringRules::default(),
            );
            assert_eq!(stored.is_some(), expected, "{control}");
        }
    }

    /// RFC 9111 §5.2.2.3
    #[test]
    fn must_understand_is_about_the_status() {
        for (status, control, expected) in [
            (200, "must-understand, no-store, max-age=10", true),
            (200, "must-understand, max-age=10", true),
            (299, "must-understand, no-store, max-age=10", false),
            (299, "must-understand, max-age=10", false),
            (299, "max-age=10", true),
        ] {
            let stored = answer(status, &[("Cache-Control", control)]);
            assert_eq!(stored.is_some(), expected, "{status} {control}");
        }
    }

    /// RFC 9111 §4.1
    #[test]
    fn what_no_request_selects_is_not_stored() {
        let fresh = ("Cache-Control", "max-age=10");
        for (vary, expected) in [
            ("*", false),
            ("Accept, *", false),
            ("Accept Encoding", false),
            ("Cookie; x", false),
            ("Accept", true),
        ] {
            let stored = answer(200, &[fresh, ("Vary", vary)]);
            assert_eq!(stored.is_some(), expected, "{vary}");
        }
    }

    /// RFC 9111 §7.3
    #[test]
    fn a_cookie_is_stored_only_if_freshness_is_stated() {
        let cookie = ("Set-Cookie", "a=b");
        assert_eq!(
            fresh_secs(200, &[cookie, ("Cache-Control", "max-age=10")]),
            Some(10)
        );
        assert_eq!(fresh_secs(200, &[cookie, DAY_OLD]), None);
        let rules = StoringRules {
            default_ttl: Some(Duration::from_secs(5)),
            ..StoringRules::default()
        };
        assert!(decide(&[], 200, &[cookie], &rules).is_none());
        assert!(decide(&[], 200, &[], &rules).is_some());
    }

    /// RFC 9213 §2.1
    #[test]
    fn a_targeted_field_decides_alone() {
        for (targeted, general, expected) in [
            ("max-age=10", "no-store", Some(10)),
            ("no-store", "max-age=10", None),
            // not a structured field: as if it were not there
            ("max-age=10,,", "max-age=20", Some(20)),
            ("", "max-age=20", Some(20)),
        ] {
            let headers = [("CDN-Cache-Control", targeted), ("Cache-Control", general)];
            assert_eq!(fresh_secs(200, &headers), expected, "{headers:?}");
        }
    }

    /// RFC 9111 §4.2.4, RFC 5861
    #[test]
    fn stale_use_is_what_the_origin_permits() {
        for (control, while_revalidate, if_error) in [
            ("max-age=1", 0, 0),
            (
                "max-age=1, stale-while-revalidate=5, stale-if-error=6",
                5,
                6,
            ),
            ("max-age=1, stale-while-revalidate=5, must-revalidate", 0, 0),
            ("max-age=1, stale-if-error=5, proxy-revalidate", 0, 0),
            ("s-maxage=1, stale-while-revalidate=5", 0, 0),
        ] {
            let meta = answer(200, &[("Cache-Control", control)]).unwrap().meta;
            let windows = (meta.stale_while_revalidate_sec(), meta.stale_if_error_sec());
            assert_eq!(windows, (while_revalidate, if_error), "{control}");
        }
    }

    /// RFC 9111 §3.1, §5.2.2.4, §5.2.2.7
    #[test]
    fn some_fields_are_for_the_first_client_only() {
        let headers = [
            ("Cache-Control", "max-age=10, private=\"X-User\""),
            ("Age", "3"),
            ("X-User", "me"),
            ("X-Other", "all"),
            ("Proxy-Authenticate", "Basic"),
            ("Keep-Alive", "timeout=5"),
        ];
        let ToStore { meta, withheld } = answer(200, &headers).unwrap();
        let stored = meta.headers();
        for name in ["age", "x-user", "proxy-authenticate", "keep-alive"] {
            assert!(!stored.contains_key(name), "{name}");
        }
        assert_eq!(stored["x-other"], "all");
        let mut names: Vec<_> = withheld.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["age", "x-user"]);
        assert_eq!(meta.fresh_sec(), 10);
        assert_eq!(meta.epoch(), meta.updated() - Duration::from_secs(3));
    }

    /// RFC 9110 §6.6.1
    #[test]
    fn a_date_is_added_only_where_there_is_none() {
        let fresh = ("Cache-Control", "max-age=10");
        let stored = answer(200, &[fresh]).unwrap();
        assert_eq!(stored.meta.headers()[DATE], "Sun, 22 Nov 2026 00:00:00 GMT");
        let date = ("Date", "Sat, 21 Nov 2026 23:59:59 GMT");
        let stored = answer(200, &[fresh, date]).unwrap();
        assert_eq!(stored.meta.headers()[DATE], date.1);
        assert!(!stored.meta.headers().contains_key(EXPIRES));
        assert_eq!(stored.meta.headers()[CACHE_CONTROL], fresh.1);
    }
}
