//! The requests that a response may answer, by the fields that its Vary names.

use std::cmp::Reverse;
use std::collections::HashSet;

use http::header::{
    self, HeaderMap, HeaderName, ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE,
    CONTENT_ENCODING, COOKIE, VARY,
};
use pingora_cache::key::HashBinary;
use pingora_cache::VarianceBuilder;

use super::fields::{list, members, split_outside_quotes, trim_ows, RequestFields};

/// The variant of a response that a request selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variance {
    /// The response answers any request.
    None,
    /// The response answers no other request (`*`), or its Vary cannot be parsed.
    Never,
    /// The response answers requests with the same key.
    Key(HashBinary),
}

/// Read a response's Vary, and the fields of a request that it names (RFC 9110 §12.5.5).
///
/// Requests whose differences have no meaning get the same key (RFC 9111 §4.1): the lines of a
/// field are combined, and white space around them and around the commas of a list is removed.
/// Fields of content negotiation (Accept, Accept-Charset, Accept-Encoding, Accept-Language) match
/// in any order and, if they are case-insensitive, in any case. Of Accept-Encoding, only the order
/// of preference of known codings counts. A key that depended on the coding of the response could
/// not be computed from another response, so a client may select a response with a coding that it
/// cannot read; see [`is_readable`]. An absent field and an empty one differ.
///
/// Fields that do not reach the origin (`reaching`) are ignored, because the origin cannot tell
/// such requests apart.
pub fn variance(response: &HeaderMap, request: &HeaderMap, reaching: RequestFields) -> Variance {
    let mut named = HashSet::new();
    let mut builder = VarianceBuilder::new();
    for name in list(response, &VARY) {
        // `*` is a token, and would parse as a name.
        let name = match HeaderName::from_bytes(name) {
            Ok(name) if name != "*" => name,
            _ => return Variance::Never,
        };
        if reaching.contains(&name) && !named.contains(&name) {
            let value = if name == ACCEPT_ENCODING {
                accepted_codings(request)
            } else {
                normalized(request, &name)
            };
            builder.add_owned_name_value(name.as_str().to_owned(), value);
            named.insert(name);
        }
    }
    builder.finalize().map_or(Variance::None, Variance::Key)
}

/// False if a response was selected by an Accept-Encoding that differs from that of `request`, and
/// has a coding that `request` does not accept. [`variance`] decides on the codings that it knows.
pub fn is_readable(response: &HeaderMap, request: &HeaderMap, reaching: RequestFields) -> bool {
    if !response.contains_key(CONTENT_ENCODING) || !reaching.contains(&ACCEPT_ENCODING) {
        return true;
    }
    let mut others = list(response, &CONTENT_ENCODING)
        .filter(|coding| known(coding).is_none())
        .peekable();
    let is_chosen = || {
        list(response, &VARY)
            .any(|name| name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str().as_bytes()))
    };
    // Without Accept-Encoding, any coding is acceptable.
    if others.peek().is_none() || !is_chosen() || !request.contains_key(ACCEPT_ENCODING) {
        return true;
    }
    let accepted: Vec<_> = list(request, &ACCEPT_ENCODING).map(preference).collect();
    let weight_of = |coding: &[u8]| {
        let of = |preference: &&Vec<u8>| {
            let name = preference.split(|byte| *byte == b';').next();
            name.is_some_and(|name| name.eq_ignore_ascii_case(coding))
        };
        accepted
            .iter()
            .find(of)
            .map(|preference| weight(preference))
    };
    others.all(|coding| weight_of(coding).or_else(|| weight_of(b"*")).unwrap_or(0) > 0)
}

/// The differences in a field value that have no meaning.
enum Syntax {
    /// White space and commas have meaning.
    Verbatim,
    /// Like `Verbatim`, in any case.
    CaseInsensitive,
    /// Cookies. Separate lines are equivalent to cookies on one line (RFC 9113 §8.2.3).
    Cookies,
    List,
    CaseInsensitiveList,
    /// A list of values with parameters, in any order.
    Preferences,
}

impl Syntax {
    /// The syntax of a field. Unknown fields count as lists of case-sensitive values.
    fn of(name: &HeaderName) -> Self {
        const VERBATIM: [HeaderName; 21] = [
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::AUTHORIZATION,
            header::CONTENT_DISPOSITION,
            header::CONTENT_LENGTH,
            header::CONTENT_LOCATION,
            header::CONTENT_RANGE,
            header::CONTENT_TYPE,
            header::DATE,
            header::FROM,
            header::IF_MATCH,
            header::IF_MODIFIED_SINCE,
            header::IF_NONE_MATCH,
            header::IF_RANGE,
            header::IF_UNMODIFIED_SINCE,
            header::MAX_FORWARDS,
            header::ORIGIN,
            header::PROXY_AUTHORIZATION,
            header::RANGE,
            header::REFERER,
            header::SEC_WEBSOCKET_KEY,
            header::USER_AGENT,
        ];
        const CASE_INSENSITIVE_LISTS: [HeaderName; 7] = [
            header::CONNECTION,
            header::CONTENT_ENCODING,
            header::CONTENT_LANGUAGE,
            header::EXPECT,
            header::TE,
            header::TRANSFER_ENCODING,
            header::UPGRADE,
        ];
        if [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE].contains(name) {
            Self::Preferences
        } else if CASE_INSENSITIVE_LISTS.contains(name) {
            Self::CaseInsensitiveList
        } else if VERBATIM.contains(name) {
            Self::Verbatim
        } else if name == COOKIE {
            Self::Cookies
        } else if name == header::HOST {
            Self::CaseInsensitive
        } else {
            Self::List
        }
    }
}

/// The normalised value of a field: empty if the request has no such field, otherwise `=` and the
/// value.
fn normalized(request: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let lines = request.get_all(name);
    let mut lines = lines
        .iter()
        .map(|line| trim_ows(line.as_bytes()))
        .peekable();
    if lines.peek().is_none() {
        return Vec::new();
    }
    let value = match Syntax::of(name) {
        Syntax::Verbatim => lines.collect::<Vec<_>>().join(&b","[..]),
        Syntax::CaseInsensitive => lines
            .collect::<Vec<_>>()
            .join(&b","[..])
            .to_ascii_lowercase(),
        Syntax::Cookies => lines.collect::<Vec<_>>().join(&b"; "[..]),
        Syntax::List => lines.flat_map(members).collect::<Vec<_>>().join(&b","[..]),
        Syntax::CaseInsensitiveList => lines
            .flat_map(members)
            .filter(|member| !member.is_empty())
            .collect::<Vec<_>>()
            .join(&b","[..])
            .to_ascii_lowercase(),
        Syntax::Preferences => {
            let mut preferences: Vec<_> = lines
                .flat_map(members)
                .filter(|member| !member.is_empty())
                .map(preference)
                .collect();
            if [ACCEPT, ACCEPT_LANGUAGE].contains(name) {
                // Some origins prefer the value that is named first (RFC 9110 §12.5.4).
                preferences.sort_by_key(|preference| Reverse(weight(preference)));
            } else {
                preferences.sort_unstable();
            }
            preferences.join(&b","[..])
        }
    };
    [b"=", &value[..]].concat()
}

/// The known coding with this name. Known are the codings that origins use. Other registered
/// codings need more than their name, or are not in use (RFC 9110 §18.6, "HTTP Content Coding
/// Registry").
fn known(coding: &[u8]) -> Option<&'static [u8]> {
    const KNOWN: [&[u8]; 9] = [
        b"*",
        b"br",
        b"compress",
        b"dcb",
        b"dcz",
        b"deflate",
        b"gzip",
        b"identity",
        b"zstd",
    ];
    // RFC 9110 §8.4.1.1, §8.4.1.3
    let coding: &[u8] = match coding {
        coding if coding.eq_ignore_ascii_case(b"x-gzip") => b"gzip",
        coding if coding.eq_ignore_ascii_case(b"x-compress") => b"compress",
        coding => coding,
    };
    KNOWN
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(coding))
}

/// The choice that a request's Accept-Encoding leaves to the origin (RFC 9110 §12.5.3): the known
/// codings in order of preference, and a note if the response must be encoded. A client that
/// accepts other codings is assumed to accept one of these too, or none.
///
/// Empty if the request has no such field, otherwise `=` and the choice.
fn accepted_codings(request: &HeaderMap) -> Vec<u8> {
    if !request.contains_key(ACCEPT_ENCODING) {
        return Vec::new();
    }
    let mut accepted: Vec<(Reverse<u32>, &[u8])> = Vec::new();
    let mut refused: Vec<&[u8]> = Vec::new();
    for member in list(request, &ACCEPT_ENCODING) {
        let preference = preference(member);
        let name = preference.split(|byte| *byte == b';').next();
        let Some(coding) = name.and_then(known) else {
            continue;
        };
        match weight(&preference) {
            0 => refused.push(coding),
            // If a coding is repeated, the first one counts.
            _ if accepted.iter().any(|(_, other)| *other == coding) => {}
            weight => accepted.push((Reverse(weight), coding)),
        }
    }
    accepted.sort_unstable();
    let mut value = b"=".to_vec();
    let mut last = None;
    for (weight, coding) in &accepted {
        let separator: &[u8] = match last {
            None => b"",
            Some(last) if last == weight => b",",
            Some(_) => b">",
        };
        value.extend_from_slice(separator);
        value.extend_from_slice(coding);
        last = Some(weight);
    }
    let is_refused = |coding: &[u8]| refused.contains(&coding);
    let accepts = |coding: &[u8]| accepted.iter().any(|(_, other)| *other == coding);
    let accepts_identity = accepts(b"identity");
    if accepts(b"*") {
        // All codings but these are accepted.
        let mut but: Vec<_> = refused.iter().filter(|coding| !accepts(coding)).collect();
        but.retain(|coding| ![&b"*"[..], b"identity"].contains(coding));
        but.sort_unstable();
        but.dedup();
        for coding in but {
            value.extend_from_slice(b"!");
            value.extend_from_slice(coding);
        }
    }
    if is_refused(b"identity") || (is_refused(b"*") && !accepts_identity) {
        value.extend_from_slice(b"!identity");
    }
    value
}

/// A value with its parameters. Names are in lower case and white space is removed; so is a
/// trailing weight of 1, the default (RFC 9110 §12.4.2).
fn preference(member: &[u8]) -> Vec<u8> {
    let mut rest = Some(member);
    let mut parts = Vec::new();
    while let Some(text) = rest {
        let (part, after) = split_outside_quotes(text, b';');
        rest = after;
        let part = trim_ows(part);
        let name_len = part.iter().position(|&byte| byte == b'=');
        let (name, value) = part.split_at(name_len.unwrap_or(part.len()));
        parts.push([&name.to_ascii_lowercase(), value].concat());
    }
    while parts.len() > 1 && parts.last().is_some_and(|last| is_default_weight(last)) {
        parts.pop();
    }
    parts.join(&b";"[..])
}

/// The weight of a preference in thousandths (RFC 9110 §12.4.2).
fn weight(preference: &[u8]) -> u32 {
    let weight = preference
        .rsplit(|byte| *byte == b';')
        .next()
        .and_then(|last| last.strip_prefix(b"q="))
        .and_then(|weight| std::str::from_utf8(weight).ok()?.parse::<f32>().ok());
    weight.map_or(1000, |weight| (weight.clamp(0.0, 1.0) * 1000.0) as u32)
}

fn is_default_weight(parameter: &[u8]) -> bool {
    [&b"q=1"[..], b"q=1.", b"q=1.0", b"q=1.00", b"q=1.000"].contains(&parameter)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    type Fields<'a> = &'a [(&'static str, &'a str)];

    fn headers(fields: Fields) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn of(vary: &[&str], request: Fields) -> Variance {
        let vary: Vec<_> = vary.iter().map(|line| ("vary", *line)).collect();
        variance(&headers(&vary), &headers(request), RequestFields::All)
    }

    /// True if two requests, each with these lines of one field, have the same key.
    fn same(name: &'static str, a: &[&str], b: &[&str]) -> bool {
        let [a, b] = [a, b].map(|lines| {
            let request: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
            let variance = of(&[name], &request);
            assert!(matches!(variance, Variance::Key(_)));
            variance
        });
        a == b
    }

    #[test]
    fn without_vary_the_response_is_for_any_request() {
        for vary in [&[][..], &[""], &[" , "]] {
            assert_eq!(of(vary, &[("accept", "a/b")]), Variance::None, "{vary:?}");
        }
    }

    #[test]
    fn an_asterisk_anywhere_never_matches() {
        // RFC 9110 §12.5.5
        for vary in [&["*"][..], &["accept, *"], &["*, accept"], &["accept", "*"]] {
            assert_eq!(of(vary, &[]), Variance::Never, "{vary:?}");
        }
    }

    #[test]
    fn what_is_no_field_name_never_matches() {
        for vary in [
            "accept encoding",
            "\"accept\"",
            "a, (b)",
            "\u{e4}",
            "a;b",
            "a=b",
        ] {
            assert_eq!(of(&[vary], &[]), Variance::Never, "{vary}");
        }
    }

    #[test]
    fn names_are_a_set_in_any_case() {
        // RFC 9110 §5.1 and §5.3
        let request = [("accept", "a/b"), ("foo", "1")];
        let expected = of(&["accept, foo"], &request);
        assert!(matches!(expected, Variance::Key(_)));
        for vary in [
            &["foo, accept"][..],
            &["Accept,FOO"],
            &["foo", "accept"],
            &["foo, accept, Foo,, accept"],
        ] {
            assert_eq!(of(vary, &request), expected, "{vary:?}");
        }
        assert_ne!(of(&["foo"], &request), expected);
    }

    #[test]
    fn only_the_fields_that_are_named_matter() {
        // RFC 9111 §4.1
        let expected = of(&["foo"], &[("foo", "1")]);
        assert_eq!(of(&["foo"], &[("foo", "1"), ("bar", "2")]), expected);
        assert_ne!(of(&["foo"], &[("foo", "2")]), expected);
    }

    #[test]
    fn fields_that_do_not_reach_the_origin_select_nothing() {
        let response = headers(&[("vary", "Origin, Accept-Encoding, Accept")]);
        let request = headers(&[("accept-encoding", "gzip"), ("origin", "http://a")]);
        let with = |request: &HeaderMap, reaching| variance(&response, request, reaching);
        let none = RequestFields::Only(&[]);
        assert_eq!(with(&request, none), Variance::None);
        let accept = RequestFields::Only(&[ACCEPT]);
        assert_eq!(with(&request, accept), with(&HeaderMap::new(), accept));
        assert!(matches!(with(&request, accept), Variance::Key(_)));
        // The response does not depend on fields alone.
        let never = headers(&[("vary", "*")]);
        assert_eq!(variance(&never, &request, none), Variance::Never);
    }

    #[test]
    fn absent_differs_from_empty() {
        // RFC 9111 §4.1
        assert!(!same("foo", &[], &[""]));
        assert!(!same("accept", &[], &[""]));
        assert!(!same("user-agent", &[], &[""]));
        assert!(same("foo", &[], &[]));
    }

    #[test]
    fn values_do_not_run_into_each_other() {
        let a = of(&["a, b"], &[("a", "1"), ("b", "")]);
        assert_ne!(a, of(&["a, b"], &[("a", ""), ("b", "1")]));
        assert_ne!(a, of(&["a, b"], &[("a", "1")]));
    }

    #[test]
    fn lines_are_combined() {
        // RFC 9111 §4.1
        for name in ["foo", "accept", "te", "user-agent"] {
            assert!(same(name, &["a", "b"], &["a,b"]), "{name}");
        }
        assert!(same("cookie", &["a=1", "b=2"], &["a=1; b=2"]));
    }

    #[test]
    fn white_space_of_a_list_has_no_meaning() {
        // RFC 9111 §4.1
        assert!(same("foo", &["a, b"], &[" a\t,b "]));
        assert!(same("foo", &["a", "b"], &["a , b"]));
        assert!(!same("foo", &["a b"], &["a  b"]));
        assert!(!same("foo", &["a,b"], &["ab"]));
    }

    #[test]
    fn quoted_strings_are_left_as_they_are() {
        for name in ["foo", "accept"] {
            assert!(!same(name, &["a=\"b, c\""], &["a=\"b,c\""]), "{name}");
            assert!(!same(name, &["a=\"b ;c\""], &["a=\"b;c\""]), "{name}");
        }
    }

    #[test]
    fn in_an_unknown_field_order_and_case_matter() {
        assert!(!same("foo", &["a, b"], &["b, a"]));
        assert!(!same("foo", &["a"], &["A"]));
        assert!(!same("foo", &["a,,b"], &["a,b"]));
    }

    #[test]
    fn what_is_no_list_is_only_trimmed() {
        for name in [
            "user-agent",
            "cookie",
            "authorization",
            "referer",
            "range",
            "if-none-match",
            "content-type",
            "origin",
        ] {
            assert!(same(name, &[" a, b "], &["a, b"]), "{name}");
            assert!(!same(name, &["a, b"], &["a,b"]), "{name}");
            assert!(!same(name, &["a"], &["A"]), "{name}");
        }
    }

    #[test]
    fn the_case_of_case_insensitive_values_has_no_meaning() {
        for (name, a, b) in [
            ("host", "Example.com", "example.COM"),
            ("te", "Trailers, Deflate", "trailers, deflate"),
            ("expect", "100-Continue", "100-continue"),
            ("accept-encoding", "GZIP;Q=0.5", "gzip;q=0.5"),
            ("accept-language", "en-GB", "EN-gb"),
            ("accept-charset", "UTF-8", "utf-8"),
            ("accept", "Text/HTML;Level=1", "text/html;level=1"),
        ] {
            assert!(same(name, &[a], &[b]), "{name}");
        }
        assert!(!same("accept", &["a/b;c=D"], &["a/b;c=d"]));
    }

    #[test]
    fn the_order_of_preferences_has_no_meaning_where_weights_tell() {
        // RFC 9110 §12.4.2 and §12.5
        for name in ["accept", "accept-language", "accept-charset"] {
            assert!(same(name, &["a;q=0.5, b"], &["b,a;q=0.5"]), "{name}");
            assert!(!same(name, &["a;q=0.5, b"], &["a, b;q=0.5"]), "{name}");
            assert!(!same(name, &["a, b"], &["a"]), "{name}");
            assert!(!same(name, &["q=1"], &[""]), "{name}");
        }
        assert!(same("accept-charset", &["a", "b"], &["b, a,,"]));
        // Some origins take the first of equals.
        for name in ["accept", "accept-language"] {
            assert!(!same(name, &["a, b"], &["b, a"]), "{name}");
        }
    }

    #[test]
    fn the_default_weight_has_no_meaning() {
        // RFC 9110 §12.4.2
        for weight in [";q=1", ";q=1.", ";q=1.0", ";q=1.000", " ; Q=1.00"] {
            let weighted = format!("gzip{weight}, br");
            assert!(
                same("accept-encoding", &[&weighted], &["br, gzip"]),
                "{weight}"
            );
        }
        for weight in [
            ";q=0.9",
            ";q=0",
            ";q=1.0000",
            ";q=\"1\"",
            ";x=1",
            ";q=1;x=1",
        ] {
            let weighted = format!("a{weight}");
            assert!(!same("accept-charset", &[&weighted], &["a"]), "{weight}");
        }
    }

    /// RFC 9110 §12.5.3
    #[test]
    fn only_the_preference_among_known_codings_matters() {
        let gzip_or_br = ["gzip, br"];
        for lines in [
            &["br", "gzip"][..],
            &["GZIP , BR"],
            &["gzip;q=1.0, br;q=1"],
            &["gzip;q=0.5, br;q=0.5"],
            &["x-gzip, br"],
            &["gzip, br, x-random-1"],
            &["gzip, br, x-random-2;q=0.3, zstd;q=0"],
            &["gzip, br, gzip;q=0.1"],
        ] {
            assert!(same("accept-encoding", lines, &gzip_or_br), "{lines:?}");
        }
        for lines in [
            &["gzip"][..],
            &["gzip, br, zstd"],
            &["gzip;q=0.9, br"],
            &["gzip, br;q=0.9"],
            &["gzip, br;q=0"],
            &["gzip, br, identity;q=0"],
            &["gzip, br, *;q=0"],
            &["gzip, br, *"],
            &["gzip, br, identity"],
            &[""],
            &[],
        ] {
            assert!(!same("accept-encoding", lines, &gzip_or_br), "{lines:?}");
        }
        assert!(same("accept-encoding", &["x-random"], &[""]));
        assert!(same("accept-encoding", &["gzip;q=0.9"], &["gzip"]));
        assert!(same("accept-encoding", &["*;q=0"], &["identity;q=0"]));
        assert!(!same("accept-encoding", &["*;q=0, identity"], &["*;q=0"]));
    }

    /// Otherwise a request could not find what is stored beside a response in another coding.
    #[test]
    fn the_coding_of_a_response_makes_no_difference_to_the_key() {
        let request = headers(&[("accept-encoding", "gzip, x-own")]);
        let key = |coding| {
            let response = headers(&[("vary", "Accept-Encoding"), ("content-encoding", coding)]);
            variance(&response, &request, RequestFields::All)
        };
        assert_eq!(key("gzip"), key("x-own"));
    }

    /// The origin chooses differently for such a request.
    #[test]
    fn a_coding_that_is_refused_beside_any_other_selects_another_variant() {
        let name = "accept-encoding";
        assert!(!same(name, &["*"], &["*, gzip;q=0"]));
        assert!(!same(name, &["*, br;q=0"], &["*, gzip;q=0"]));
        assert!(same(
            name,
            &["*, br;q=0, gzip;q=0"],
            &["gzip;q=0, br;q=0, *, GZIP;q=0"]
        ));
        assert!(same(name, &["*, x-own;q=0"], &["*"]), "an unknown one");
        assert!(same(name, &["gzip;q=0"], &["br;q=0"]), "none is accepted");
    }

    /// A client that does not name an unknown coding cannot read it.
    #[test]
    fn a_response_in_an_unknown_coding_is_for_clients_that_accept_it() {
        for (coding, accepted, readable) in [
            ("x-own", Some("gzip, x-own"), true),
            ("x-own", Some("X-OWN;q=0.1"), true),
            ("X-Own", Some("x-own"), true),
            ("x-own", Some("*"), true),
            ("x-own", None, true),
            ("x-own", Some("gzip"), false),
            ("x-own", Some(""), false),
            ("x-own", Some("x-own;q=0, *"), false),
            ("x-own", Some("x-own, x-own;q=0"), true),
            ("x-own", Some("*;q=0"), false),
            ("gzip, x-own", Some("x-own"), true),
            ("x-own, x-other", Some("x-own"), false),
            // The key sees to it.
            ("gzip", Some("br"), true),
        ] {
            let response = headers(&[("vary", "Accept-Encoding"), ("content-encoding", coding)]);
            let accepted: Vec<_> = accepted
                .map(|value| ("accept-encoding", value))
                .into_iter()
                .collect();
            let request = headers(&accepted);
            let judged = is_readable(&response, &request, RequestFields::All);
            assert_eq!(judged, readable, "{coding} for {accepted:?}");
            let not_chosen = headers(&[("content-encoding", coding)]);
            assert!(is_readable(&not_chosen, &request, RequestFields::All));
            assert!(is_readable(&response, &request, RequestFields::Only(&[])));
        }
    }
}
