//! Conditional requests, answered from a stored response.

use std::time::{Duration, SystemTime};

use http::header::{
    HeaderMap, HeaderName, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use http::{Method, StatusCode};

use super::date::parse_http_date;
use super::etag::{entity_tags, EntityTag};
use super::fields::trim_ows;

/// What a request's preconditions ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// The response that the request would get without them.
    Proceed,
    /// 304: the client has the content already.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates a request's preconditions against a response, in the order of RFC 9110
/// §13.2.2, If-Range excepted: see [`if_range_applies`]. `now` serves to read dates.
///
/// They are ignored where the response is not 2xx, and where the method selects no
/// representation (§13.2.1). Where there is no Last-Modified, If-Modified-Since is
/// compared with Date (RFC 9111 §4.3.2).
///
/// An entity tag that is not valid, such as one without quotes, equals only a
/// stored one of the same bytes.
///
/// If-Match and If-Unmodified-Since are about what the origin has now, which a
/// stored response may differ from: see [`has_origin_preconditions`].
pub fn evaluate(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    now: SystemTime,
) -> Precondition {
    if !status.is_success() || [Method::CONNECT, Method::OPTIONS, Method::TRACE].contains(method) {
        return Precondition::Proceed;
    }
    let date = |headers, name| only_date(headers, name, now);

    if request.contains_key(IF_MATCH) {
        if !matches(request, &IF_MATCH, response, |a, b| a.strong_eq(b)) {
            return Precondition::Failed;
        }
    } else if let (Some(since), Some(modified)) = (
        date(request, IF_UNMODIFIED_SINCE),
        date(response, LAST_MODIFIED),
    ) {
        if modified > since {
            return Precondition::Failed;
        }
    }

    let reads = [Method::GET, Method::HEAD].contains(method);
    if request.contains_key(IF_NONE_MATCH) {
        return match matches(request, &IF_NONE_MATCH, response, |a, b| a.weak_eq(b)) {
            false => Precondition::Proceed,
            true if reads => Precondition::NotModified,
            true => Precondition::Failed,
        };
    }
    let modified = if response.contains_key(LAST_MODIFIED) {
        LAST_MODIFIED
    } else {
        DATE
    };
    match (date(request, IF_MODIFIED_SINCE), date(response, modified)) {
        (Some(since), Some(modified)) if reads && modified <= since => Precondition::NotModified,
        _ => Precondition::Proceed,
    }
}

/// Whether the request's Range may be honoured, as far as its If-Range is concerned
/// (RFC 9110 §13.1.5): there is none, or it names exactly this representation.
/// `now` serves to read dates.
///
/// An entity tag is compared strongly. A date must equal Last-Modified, and that
/// must be a strong validator: Date is at least a second later (§8.8.2.2).
pub fn if_range_applies(request: &HeaderMap, response: &HeaderMap, now: SystemTime) -> bool {
    if !request.contains_key(IF_RANGE) {
        return true;
    }
    let Some(condition) = only(request, IF_RANGE) else {
        return false;
    };
    if let Some(tag) = EntityTag::parse(condition) {
        return only(response, ETAG)
            .and_then(EntityTag::parse)
            .is_some_and(|stored| stored.strong_eq(&tag));
    }
    let (Some(condition), Some(modified), Some(date)) = (
        parse_http_date(condition, now),
        only_date(response, LAST_MODIFIED, now),
        only_date(response, DATE, now),
    ) else {
        return false;
    };
    condition == modified
        && date
            .duration_since(modified)
            .is_ok_and(|later| later >= Duration::from_secs(1))
}

/// Whether a request has preconditions that only the origin can judge: If-Match or
/// If-Unmodified-Since (RFC 9110 §13.1.1 and §13.1.4, RFC 9111 §4.3.2).
pub fn has_origin_preconditions(request: &HeaderMap) -> bool {
    request.contains_key(IF_MATCH) || request.contains_key(IF_UNMODIFIED_SINCE)
}

/// Whether If-Match or If-None-Match lists the response's entity tag, or is `*`.
fn matches(
    request: &HeaderMap,
    name: &HeaderName,
    response: &HeaderMap,
    equal: impl Fn(&EntityTag, &EntityTag) -> bool,
) -> bool {
    if only(request, name.clone()) == Some(b"*") {
        return true;
    }
    let Some(stored) = only(response, ETAG) else {
        return false;
    };
    let stored_tag = EntityTag::parse(stored);
    let mut listed = request
        .get_all(name)
        .into_iter()
        .flat_map(|line| entity_tags(line.as_bytes()));
    listed.any(|listed| match (&stored_tag, EntityTag::parse(listed)) {
        (Some(stored), Some(listed)) => equal(stored, &listed),
        _ => stored == listed,
    })
}

/// The value of a field that must not be repeated; None if it is.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&[u8]> {
    let mut lines = headers.get_all(name).into_iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => Some(trim_ows(line.as_bytes())),
        _ => None,
    }
}

fn only_date(headers: &HeaderMap, name: HeaderName, now: SystemTime) -> Option<SystemTime> {
    parse_http_date(only(headers, name)?, now)
}
