//! Requests as a cache sees them: their validity, their kind, and the fields that end here.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, HOST, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, MAX_FORWARDS, PRAGMA, RANGE, UPGRADE,
};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora_core::Result;
use pingora_http::RequestHeader;

use super::fields::{connection_fields, is_connection_field};
use super::range::{parse_range, single_range, Ranges};

/// Larger sets of ranges are ignored, as Pingora does by default.
pub const MAX_RANGES: usize = 200;

/// Request fields that ask for something other than the whole stored response.
pub const CONDITIONS: [HeaderName; 6] = [
    RANGE,
    IF_RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
];

/// The part of a response that a request asks the cache for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// None: the request bypasses the cache.
    #[default]
    Uncached,
    /// The header.
    Head,
    /// The whole, or parts for which the whole is fetched.
    Whole,
    /// A part.
    Part,
}

/// Kinds of fields in a request that affect how it is served.
#[derive(Clone, Copy, Default)]
pub struct FieldKinds {
    /// The request has a field of [`CONDITIONS`].
    pub condition: bool,
    /// The request has `Cache-Control` or `Pragma`, and they are heeded.
    pub directive: bool,
    /// The request has a field about the connection, which ends at this hop.
    pub connection: bool,
}

// === impl RequestKind ===

impl RequestKind {
    /// The kind of a request. `has_condition`: it has a field of [`CONDITIONS`].
    pub fn of(request: &RequestHeader, has_body: bool, has_condition: bool) -> RequestKind {
        if has_body {
            return RequestKind::Uncached;
        }
        match request.method {
            Method::HEAD => RequestKind::Head,
            Method::GET if !has_condition => RequestKind::Whole,
            Method::GET => match request.headers.get(RANGE) {
                // A fill delivers the whole from the first byte on.
                Some(range) if single_range(range.as_bytes()) == Some((0, None)) => {
                    RequestKind::Whole
                }
                Some(range) => match parse_range(range.as_bytes(), u64::MAX, MAX_RANGES) {
                    Ranges::Ignored => RequestKind::Whole,
                    Ranges::Unsatisfiable | Ranges::Satisfiable(_) => RequestKind::Part,
                },
                None => RequestKind::Whole,
            },
            _ => RequestKind::Uncached,
        }
    }
}

// === impl FieldKinds ===

impl FieldKinds {
    /// The kinds of a request's fields, found in one pass. Most requests have few fields, and
    /// comparing their names is cheaper than hashing them. `heeds_directives`: look for
    /// directives too.
    pub fn of(request: &RequestHeader, heeds_directives: bool) -> FieldKinds {
        let mut has = FieldKinds::default();
        for name in request.headers.keys() {
            has.condition |= CONDITIONS.contains(name);
            has.connection |= is_connection_field(name);
            has.directive |= heeds_directives && [CACHE_CONTROL, PRAGMA].contains(name);
        }
        has
    }
}

/// The status with which the proxy answers a request itself: a malformed one, or one whose
/// `Max-Forwards` ends here (RFC 9110 §7.6.2). `None`: the request goes on, with its
/// `Max-Forwards` reduced.
pub fn local_response(request: &mut RequestHeader) -> Result<Option<StatusCode>> {
    if !has_valid_fields(request) || !is_target(&request.method, request.raw_path()) {
        return Ok(Some(StatusCode::BAD_REQUEST));
    }
    if !matches!(request.method, Method::OPTIONS | Method::TRACE) {
        return Ok(None);
    }
    let hops = request
        .headers
        .get(MAX_FORWARDS)
        .and_then(|hops| hops.to_str().ok()?.trim().parse::<u64>().ok());
    match (hops, &request.method) {
        (None, _) => Ok(None),
        (Some(0), &Method::OPTIONS) => Ok(Some(StatusCode::OK)),
        // A client must not see fields that were sent to other hops.
        (Some(0), _) => Ok(Some(StatusCode::METHOD_NOT_ALLOWED)),
        (Some(hops), _) => {
            request.insert_header(MAX_FORWARDS, hops - 1)?;
            Ok(None)
        }
    }
}

/// True if a request names its host (RFC 9112 §3.2) and states at most one length. Recipients
/// disagree about a list of lengths (RFC 9110 §8.6).
fn has_valid_fields(request: &RequestHeader) -> bool {
    let (mut hosts, mut lengths) = (0, 0);
    // One pass over the few fields of most requests hashes none of their names.
    for (name, value) in &request.headers {
        if *name == HOST {
            hosts += 1;
            if !is_host(value) {
                return false;
            }
        } else if *name == CONTENT_LENGTH {
            lengths += 1;
            if !value.as_bytes().iter().all(u8::is_ascii_digit) {
                return false;
            }
        }
    }
    (hosts > 0 || request.version != Version::HTTP_11) && lengths <= 1
}

/// True for a target in a form that the method allows (RFC 9112 §3.2).
fn is_target(method: &Method, target: &[u8]) -> bool {
    let starts_with = |scheme: &[u8]| {
        target
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    match *method {
        Method::CONNECT => true,
        Method::OPTIONS if target == b"*" => true,
        _ => target.starts_with(b"/") || starts_with(b"http://") || starts_with(b"https://"),
    }
}

/// True for `uri-host [":" port]`, or nothing (RFC 9110 §7.2).
fn is_host(value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    value.is_empty() || is_plain_host(value) || is_parsed_host(value)
}

fn is_parsed_host(value: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(value) else {
        return false;
    };
    // A comma may be part of a name, but more likely separates two.
    let port = value.get(authority.host().len()..).unwrap_or(b"@");
    let is_port = port
        .strip_prefix(b":")
        .is_some_and(|port| port.iter().all(u8::is_ascii_digit));
    !value.contains(&b',') && (port.is_empty() || is_port)
}

/// True for a host that needs no parser: a name of letters, digits, dots and hyphens, and
/// perhaps a port. Parsing allocates.
fn is_plain_host(value: &[u8]) -> bool {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    let (name, port) = match value.iter().position(|b| *b == b':') {
        Some(colon) => (&value[..colon], &value[colon + 1..]),
        None => (value, &b"0"[..]),
    };
    !name.is_empty()
        && name.iter().all(is_plain)
        && !port.is_empty()
        && port.iter().all(u8::is_ascii_digit)
}

/// Remove the fields that the client's `Connection` names. They are not forwarded, so they must
/// not select a stored response either (RFC 9110 §7.6.1).
///
/// `upgrades`: keep `Upgrade`, because the origin may have to be asked for it.
pub fn end_at_this_hop(request: &mut RequestHeader, upgrades: bool) {
    for name in connection_fields(&request.headers) {
        if upgrades && name == UPGRADE {
            continue;
        }
        // The session still needs Connection; the others only restrict.
        if ![CONNECTION, AUTHORIZATION, CACHE_CONTROL, PRAGMA].contains(&name) {
            request.remove_header(&name);
        }
    }
}

/// The path and query of a target in absolute form, which only proxies have to accept
/// (RFC 9112 §3.2.1). `None`: the target has another form.
pub fn origin_form(target: &[u8]) -> Option<Vec<u8>> {
    let scheme = target.windows(3).position(|part| part == b"://")?;
    if target.starts_with(b"/") {
        return None;
    }
    let rest = &target[scheme + 3..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?'));
    Some(match end.map(|end| &rest[end..]) {
        Some(query) if query.starts_with(b"?") => [b"/", query].concat(),
        Some(path) => path.to_vec(),
        None => b"/".to_vec(),
    })
}

/// Turn a client's request into one for the whole of its target. The fields that select a variant
/// stay.
pub fn strip_to_target(request: &mut RequestHeader, method: Method) {
    for name in CONDITIONS.iter().chain(&[CACHE_CONTROL, PRAGMA]) {
        request.remove_header(name);
    }
    request.set_method(method);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::heads_for_tests::request;

    /// RFC 9112 §3.2.1
    #[test]
    fn the_origin_gets_path_and_query() {
        for (target, expected) in [
            ("http://example.com/a?b", Some("/a?b")),
            ("http://example.com?b", Some("/?b")),
            ("http://example.com", Some("/")),
            ("/a?u=http://example.com/", None),
            ("/", None),
            ("*", None),
        ] {
            let form = origin_form(target.as_bytes());
            assert_eq!(form.as_deref(), expected.map(str::as_bytes), "{target}");
        }
    }

    #[test]
    fn a_plain_host_is_one_to_the_parser_too() {
        let mut plain = 0;
        let mut values = vec![String::new()];
        for _ in 0..5 {
            let longer = |value: &String| {
                "a9.-:,/@[%"
                    .chars()
                    .map(|c| format!("{value}{c}"))
                    .collect()
            };
            values = values.iter().flat_map::<Vec<_>, _>(longer).collect();
            for value in &values {
                if is_plain_host(value.as_bytes()) {
                    assert!(is_parsed_host(value.as_bytes()), "{value}");
                    plain += 1;
                }
            }
        }
        assert!(plain > 1000);
        for value in ["localhost", "127.0.0.1:9000", "Bucket.s3.example.com"] {
            assert!(is_plain_host(value.as_bytes()), "{value}");
        }
    }

    /// RFC 9112 §3.2, RFC 9110 §7.6.2
    #[test]
    fn some_requests_go_no_further() {
        let host = ("host", "example.com");
        for (method, fields, expected) in [
            ("GET", &[host][..], None),
            ("GET", &[], Some(400)),
            ("GET", &[host, ("max-forwards", "0")], None),
            ("POST", &[host, ("content-length", "3")], None),
            ("POST", &[host, ("content-length", "3, 3")], Some(400)),
            (
                "POST",
                &[host, ("content-length", "3"), ("content-length", "3")],
                Some(400),
            ),
            ("GET", &[("host", "example.com/x")], Some(400)),
            ("OPTIONS", &[host], None),
            ("OPTIONS", &[host, ("max-forwards", "0")], Some(200)),
            ("TRACE", &[host, ("max-forwards", "0")], Some(405)),
            ("TRACE", &[host, ("max-forwards", "5")], None),
        ] {
            let mut asked = request(method, fields);
            let status = local_response(&mut asked).unwrap();
            let status = status.map(|status| status.as_u16());
            assert_eq!(status, expected, "{method} {fields:?}");
        }
        let mut asked = request("TRACE", &[host, ("max-forwards", "5")]);
        local_response(&mut asked).unwrap();
        assert_eq!(asked.headers[MAX_FORWARDS], "4");
    }
}
