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

/// The outcome of a request's preconditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// The request is served as if it had none.
    Proceed,
    /// The client has the current content: 304.
    NotModified,
    /// A precondition is false: 412.
    Failed,
}

/// Evaluate the preconditions of a request against a response, in the order of RFC 9110 §13.2.2,
/// except for If-Range; see [`if_range_applies`]. `now` is used to read dates.
///
/// Preconditions are ignored if the response is not 2xx, and if the method selects no
/// representation (§13.2.1). Without a Last-Modified, If-Modified-Since is compared with Date (RFC
/// 9111 §4.3.2).
///
/// An invalid entity tag, such as one without quotes, equals only a stored one with the same bytes.
///
/// If-Match and If-Unmodified-Since concern the origin's current version. A stored response
/// represents it for as long as it may be served (RFC 9111 §4).
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

/// True if the Range of a request may be honoured as far as If-Range is concerned (RFC 9110
/// §13.1.5): there is none, or it names exactly this representation. `now` is used to read dates.
///
/// Entity tags are compared strongly. A date must equal Last-Modified, which must be a strong
/// validator: Date is at least a second later (§8.8.2.2).
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

/// True if a 304 answers a request's If-None-Match or If-Modified-Since, judged by the
/// validators that the 304 carries (RFC 9110 §15.4.5). `now` is used to read dates.
///
/// A 304 for entity tags must carry the one that matches. A 304 for a date need not carry
/// `Last-Modified`.
pub fn is_confirmed(request: &HeaderMap, not_modified: &HeaderMap, now: SystemTime) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        return matches(request, &IF_NONE_MATCH, not_modified, |a, b| a.weak_eq(b));
    }
    let Some(since) = only_date(request, IF_MODIFIED_SINCE, now) else {
        return false;
    };
    only_date(not_modified, LAST_MODIFIED, now).is_none_or(|modified| modified <= since)
}

/// True if a request has preconditions that can fail for a GET: If-Match or
/// If-Unmodified-Since (RFC 9110 §13.1.1 and §13.1.4).
pub fn has_failing_preconditions(request: &HeaderMap) -> bool {
    request.contains_key(IF_MATCH) || request.contains_key(IF_UNMODIFIED_SINCE)
}

/// True if the validators of a 304 are those of the stored response (RFC 9111 §4.3.4).
pub fn validators_match(not_modified: &HeaderMap, stored: &HeaderMap) -> bool {
    let both = |name| (not_modified.get(&name), stored.get(&name));
    match both(ETAG) {
        (Some(validated), Some(stored)) => {
            let tags = (
                EntityTag::parse(validated.as_bytes()),
                EntityTag::parse(stored.as_bytes()),
            );
            match tags {
                (Some(new), Some(old)) if new.is_strong() => new.strong_eq(&old),
                (Some(new), Some(old)) => new.weak_eq(&old),
                _ => validated == stored,
            }
        }
        (Some(_), None) => false,
        (None, _) => match both(LAST_MODIFIED) {
            (Some(validated), Some(stored)) => validated == stored,
            _ => true,
        },
    }
}

/// True if If-Match or If-None-Match lists the entity tag of the response, or is `*`.
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

/// The value of a field that must not be repeated. None if it is repeated or absent.
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::HeaderValue;

    use super::*;
    use Precondition::{Failed, NotModified, Proceed};

    const EARLIER: &str = "Sat, 05 Nov 1994 08:49:37 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    type Fields<'a> = &'a [(HeaderName, &'a str)];

    const RESPONSE: Fields = &[
        (ETAG, "\"a\""),
        (LAST_MODIFIED, MODIFIED),
        (DATE, "Tue, 08 Nov 1994 08:49:37 GMT"),
    ];

    fn headers(fields: Fields) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn with_method(method: Method, request: Fields, response: Fields) -> Precondition {
        let (request, response) = (headers(request), headers(response));
        evaluate(&method, &request, StatusCode::OK, &response, now())
    }

    fn get(request: Fields, response: Fields) -> Precondition {
        with_method(Method::GET, request, response)
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_413_600)
    }

    #[test]
    fn without_preconditions_the_request_proceeds() {
        assert_eq!(get(&[], RESPONSE), Proceed);
    }

    #[test]
    fn if_none_match_compares_weakly() {
        // RFC 9110 §13.1.2
        for (condition, etag, expected) in [
            ("\"a\"", "\"a\"", NotModified),
            ("W/\"a\"", "\"a\"", NotModified),
            ("\"a\"", "W/\"a\"", NotModified),
            ("W/\"a\"", "W/\"a\"", NotModified),
            ("\"b\"", "\"a\"", Proceed),
            ("\"A\"", "\"a\"", Proceed),
            ("\"b\", \"a\"", "\"a\"", NotModified),
            ("\"b\",W/\"a\" ,", "\"a\"", NotModified),
            ("\"a,b\"", "\"a,b\"", NotModified),
            ("\"a,b\"", "\"a\"", Proceed),
            ("", "\"a\"", Proceed),
        ] {
            let outcome = get(&[(IF_NONE_MATCH, condition)], &[(ETAG, etag)]);
            assert_eq!(outcome, expected, "{condition} {etag}");
        }
    }

    #[test]
    fn if_none_match_may_have_several_lines() {
        // RFC 9110 §5.3
        let lines = [(IF_NONE_MATCH, "\"b\", \"c\""), (IF_NONE_MATCH, "\"a\"")];
        assert_eq!(get(&lines, RESPONSE), NotModified);
    }

    #[test]
    fn any_representation_fails_if_none_match_with_an_asterisk() {
        // RFC 9110 §13.1.2
        assert_eq!(get(&[(IF_NONE_MATCH, "*")], &[]), NotModified);
        assert_eq!(get(&[(IF_NONE_MATCH, " * ")], RESPONSE), NotModified);
        assert_eq!(get(&[(IF_NONE_MATCH, "\"*\"")], RESPONSE), Proceed);
        assert_eq!(get(&[(IF_NONE_MATCH, "*, \"b\"")], RESPONSE), Proceed);
    }

    #[test]
    fn without_an_etag_nothing_is_listed() {
        let request = [(IF_NONE_MATCH, "\"a\"")];
        assert_eq!(get(&request, &[(LAST_MODIFIED, MODIFIED)]), Proceed);
    }

    #[test]
    fn an_invalid_entity_tag_equals_only_the_same_bytes() {
        for (condition, etag, expected) in [
            ("a", "a", NotModified),
            ("b, a", "a", NotModified),
            ("a", "\"a\"", Proceed),
            ("\"a\"", "a", Proceed),
            ("w/\"a\"", "\"a\"", Proceed),
            ("w/\"a\"", "w/\"a\"", NotModified),
            ("\"a b\"", "\"a b\"", NotModified),
        ] {
            let outcome = get(&[(IF_NONE_MATCH, condition)], &[(ETAG, etag)]);
            assert_eq!(outcome, expected, "{condition} {etag}");
        }
    }

    #[test]
    fn if_none_match_fails_methods_that_do_not_read() {
        // RFC 9110 §13.1.2
        let request = [(IF_NONE_MATCH, "\"a\"")];
        for (method, expected) in [
            (Method::GET, NotModified),
            (Method::HEAD, NotModified),
            (Method::PUT, Failed),
            (Method::POST, Failed),
            (Method::DELETE, Failed),
            (Method::OPTIONS, Proceed),
            (Method::TRACE, Proceed),
            (Method::CONNECT, Proceed),
        ] {
            let outcome = with_method(method.clone(), &request, RESPONSE);
            assert_eq!(outcome, expected, "{method}");
        }
    }

    #[test]
    fn if_modified_since_compares_with_last_modified() {
        // RFC 9110 §13.1.3
        for (since, expected) in [
            (EARLIER, Proceed),
            (MODIFIED, NotModified),
            (LATER, NotModified),
            ("Sunday, 06-Nov-94 08:49:37 GMT", NotModified),
            ("yesterday", Proceed),
            ("", Proceed),
        ] {
            let outcome = get(&[(IF_MODIFIED_SINCE, since)], RESPONSE);
            assert_eq!(outcome, expected, "{since}");
        }
    }

    #[test]
    fn if_modified_since_compares_with_date_if_there_is_no_last_modified() {
        // RFC 9111 §4.3.2
        let since = [(IF_MODIFIED_SINCE, MODIFIED)];
        for (response, expected) in [
            (&[(DATE, MODIFIED)][..], NotModified),
            (&[(DATE, EARLIER)], NotModified),
            (&[(DATE, LATER)], Proceed),
            (&[(DATE, EARLIER), (LAST_MODIFIED, LATER)], Proceed),
            (&[(DATE, EARLIER), (LAST_MODIFIED, "0")], Proceed),
            (&[], Proceed),
        ] {
            assert_eq!(get(&since, response), expected, "{response:?}");
        }
    }

    #[test]
    fn if_modified_since_is_ignored_where_it_does_not_apply() {
        // RFC 9110 §13.1.3
        let since = (IF_MODIFIED_SINCE, LATER);
        for (method, request) in [
            (Method::PUT, &[since.clone()][..]),
            (Method::GET, &[since.clone(), (IF_NONE_MATCH, "\"b\"")]),
            (Method::GET, &[since.clone(), (IF_NONE_MATCH, "")]),
            (Method::GET, &[since.clone(), since.clone()]),
        ] {
            let outcome = with_method(method, request, RESPONSE);
            assert_eq!(outcome, Proceed, "{request:?}");
        }
    }

    #[test]
    fn a_304_confirms_what_the_request_names() {
        // RFC 9110 §15.4.5
        let dated = |date| [(IF_MODIFIED_SINCE, date)];
        for (request, not_modified, expected) in [
            (
                &[(IF_NONE_MATCH, "\"a\"")][..],
                &[(ETAG, "\"a\"")][..],
                true,
            ),
            (
                &[(IF_NONE_MATCH, "\"b\", W/\"a\"")],
                &[(ETAG, "\"a\"")],
                true,
            ),
            (&[(IF_NONE_MATCH, "\"b\"")], &[(ETAG, "\"a\"")], false),
            (&[(IF_NONE_MATCH, "\"a\"")], &[], false),
            (&[(IF_NONE_MATCH, "*")], &[], true),
            (&dated(MODIFIED), &[(LAST_MODIFIED, MODIFIED)], true),
            (&dated(EARLIER), &[(LAST_MODIFIED, MODIFIED)], false),
            (&dated(EARLIER), &[], true),
            (&dated("yesterday"), &[(LAST_MODIFIED, MODIFIED)], false),
            (
                &[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, LATER)],
                RESPONSE,
                false,
            ),
            (&[], RESPONSE, false),
        ] {
            let confirmed = is_confirmed(&headers(request), &headers(not_modified), now());
            assert_eq!(confirmed, expected, "{request:?} {not_modified:?}");
        }
    }

    #[test]
    fn if_match_compares_strongly() {
        // RFC 9110 §13.1.1
        for (condition, etag, expected) in [
            ("\"a\"", "\"a\"", Proceed),
            ("\"b\", \"a\"", "\"a\"", Proceed),
            ("*", "\"a\"", Proceed),
            ("W/\"a\"", "\"a\"", Failed),
            ("\"a\"", "W/\"a\"", Failed),
            ("W/\"a\"", "W/\"a\"", Failed),
            ("\"b\"", "\"a\"", Failed),
            ("", "\"a\"", Failed),
            ("a", "a", Proceed),
            ("a", "\"a\"", Failed),
        ] {
            let outcome = get(&[(IF_MATCH, condition)], &[(ETAG, etag)]);
            assert_eq!(outcome, expected, "{condition} {etag}");
        }
        assert_eq!(get(&[(IF_MATCH, "\"a\"")], &[]), Failed);
        assert_eq!(get(&[(IF_MATCH, "*")], &[]), Proceed);
    }

    #[test]
    fn if_unmodified_since_compares_with_last_modified_only() {
        // RFC 9110 §13.1.4
        for (since, response, expected) in [
            (EARLIER, RESPONSE, Failed),
            (MODIFIED, RESPONSE, Proceed),
            (LATER, RESPONSE, Proceed),
            ("yesterday", RESPONSE, Proceed),
            (EARLIER, &[(DATE, LATER)], Proceed),
            (EARLIER, &[], Proceed),
        ] {
            let outcome = get(&[(IF_UNMODIFIED_SINCE, since)], response);
            assert_eq!(outcome, expected, "{since}");
        }
    }

    #[test]
    fn preconditions_are_evaluated_in_order() {
        // RFC 9110 §13.2.2
        for (request, expected) in [
            (
                &[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, EARLIER)][..],
                Proceed,
            ),
            (&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")], Failed),
            (
                &[(IF_MATCH, "\"a\""), (IF_NONE_MATCH, "\"a\"")],
                NotModified,
            ),
            (
                &[(IF_MATCH, "\"a\""), (IF_MODIFIED_SINCE, LATER)],
                NotModified,
            ),
            (
                &[(IF_UNMODIFIED_SINCE, EARLIER), (IF_NONE_MATCH, "\"a\"")],
                Failed,
            ),
            (
                &[(IF_UNMODIFIED_SINCE, LATER), (IF_MODIFIED_SINCE, LATER)],
                NotModified,
            ),
        ] {
            assert_eq!(get(request, RESPONSE), expected, "{request:?}");
        }
    }

    #[test]
    fn preconditions_are_ignored_unless_the_response_is_successful() {
        // RFC 9110 §13.2.1
        let request = headers(&[(IF_MATCH, "\"b\"")]);
        for (status, expected) in [
            (StatusCode::OK, Failed),
            (StatusCode::PARTIAL_CONTENT, Failed),
            (StatusCode::FOUND, Proceed),
            (StatusCode::NOT_FOUND, Proceed),
            (StatusCode::BAD_GATEWAY, Proceed),
        ] {
            let outcome = evaluate(&Method::GET, &request, status, &headers(RESPONSE), now());
            assert_eq!(outcome, expected, "{status}");
        }
    }

    #[test]
    fn if_range_compares_entity_tags_strongly() {
        // RFC 9110 §13.1.5
        for (condition, etag, expected) in [
            ("\"a\"", "\"a\"", true),
            (" \"a\" ", "\"a\"", true),
            ("\"b\"", "\"a\"", false),
            ("W/\"a\"", "\"a\"", false),
            ("W/\"a\"", "W/\"a\"", false),
            ("\"a\"", "W/\"a\"", false),
            ("\"a\", \"b\"", "\"a\"", false),
            ("a", "a", false),
            ("*", "\"a\"", false),
            ("", "\"a\"", false),
        ] {
            let request = headers(&[(IF_RANGE, condition)]);
            let applies = if_range_applies(&request, &headers(&[(ETAG, etag)]), now());
            assert_eq!(applies, expected, "{condition} {etag}");
        }
    }

    #[test]
    fn if_range_takes_a_date_only_if_it_is_a_strong_validator() {
        // RFC 9110 §13.1.5 and §8.8.2.2
        let one_second_later = "Sun, 06 Nov 1994 08:49:38 GMT";
        for (condition, response, expected) in [
            (MODIFIED, RESPONSE, true),
            ("Sunday, 06-Nov-94 08:49:37 GMT", RESPONSE, true),
            (EARLIER, RESPONSE, false),
            (LATER, RESPONSE, false),
            (
                MODIFIED,
                &[(LAST_MODIFIED, MODIFIED), (DATE, one_second_later)],
                true,
            ),
            (
                MODIFIED,
                &[(LAST_MODIFIED, MODIFIED), (DATE, MODIFIED)],
                false,
            ),
            (
                MODIFIED,
                &[(LAST_MODIFIED, MODIFIED), (DATE, EARLIER)],
                false,
            ),
            (MODIFIED, &[(LAST_MODIFIED, MODIFIED)], false),
            (MODIFIED, &[(DATE, MODIFIED)], false),
        ] {
            let request = headers(&[(IF_RANGE, condition)]);
            let applies = if_range_applies(&request, &headers(response), now());
            assert_eq!(applies, expected, "{condition} {response:?}");
        }
    }

    #[test]
    fn without_if_range_the_range_applies() {
        // RFC 9110 §14.2
        assert!(if_range_applies(
            &HeaderMap::new(),
            &HeaderMap::new(),
            now()
        ));
        let twice = headers(&[(IF_RANGE, "\"a\""), (IF_RANGE, "\"a\"")]);
        assert!(!if_range_applies(&twice, &headers(RESPONSE), now()));
    }

    #[test]
    fn the_origin_judges_what_it_has_now() {
        for (name, expected) in [
            (IF_MATCH, true),
            (IF_UNMODIFIED_SINCE, true),
            (IF_NONE_MATCH, false),
            (IF_MODIFIED_SINCE, false),
            (IF_RANGE, false),
        ] {
            let request = headers(&[(name.clone(), "x")]);
            assert_eq!(has_failing_preconditions(&request), expected, "{name}");
        }
    }

    /// RFC 9111 §4.3.4
    #[test]
    fn a_304_is_about_what_has_its_tag() {
        for (validated, stored, expected) in [
            (Some("\"a\""), Some("\"a\""), true),
            (Some("W/\"a\""), Some("\"a\""), true),
            (Some("\"a\""), Some("W/\"a\""), false),
            (Some("\"b\""), Some("\"a\""), false),
            (Some("a"), Some("a"), true),
            (Some("a"), Some("\"a\""), false),
            (None, Some("\"a\""), true),
            (Some("\"a\""), None, false),
            (None, None, true),
        ] {
            let header = |tag: Option<&str>| {
                let fields = tag.map(|tag| (ETAG, HeaderValue::from_str(tag).unwrap()));
                HeaderMap::from_iter(fields)
            };
            let about = validators_match(&header(validated), &header(stored));
            assert_eq!(about, expected, "{validated:?} {stored:?}");
        }
    }
}
