//! Lists in field values, and fields that end at this hop.

use http::header::{
    HeaderMap, HeaderName, CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

/// The fields of a client's request that reach the origin, apart from conditions and ranges.
///
/// A field that does not reach the origin cannot change the response. It therefore neither selects
/// a variant (RFC 9111 §4.1) nor keeps a response from being stored (§3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestFields {
    /// Every field.
    #[default]
    All,
    /// These fields only.
    Only(&'static [HeaderName]),
    /// All but these fields.
    AllBut(&'static [HeaderName]),
}

// === impl RequestFields ===

impl RequestFields {
    /// True if a field of this name reaches the origin.
    pub fn contains(&self, name: &HeaderName) -> bool {
        match self {
            RequestFields::All => true,
            RequestFields::Only(names) => names.contains(name),
            RequestFields::AllBut(names) => !names.contains(name),
        }
    }
}

/// True for a field that concerns the connection, whether or not `Connection` names it.
pub(in crate::http) fn is_connection_field(name: &HeaderName) -> bool {
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, UPGRADE].contains(name)
}

/// The names of the fields that concern this connection only. They are neither forwarded nor stored
/// (RFC 9110 §7.6.1, RFC 9111 §3.1).
///
/// These are Connection, the fields that it names, and those that end here in any case: Keep-Alive,
/// Proxy-Connection, TE and Upgrade.
///
/// Content-Length, Transfer-Encoding and Host are never among them: the framing and the destination
/// of a message are up to the proxy. A peer that could have these fields removed could make two
/// hops disagree about them. Any other named field is listed, including Cache-Control and Vary;
/// decide on storing before removing them.
pub fn connection_fields(headers: &HeaderMap) -> Vec<HeaderName> {
    // One pass over the few fields of most messages needs no hash of their names.
    let mut names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_connection_field(name))
        .cloned()
        .collect();
    if names.is_empty() {
        return names;
    }
    for option in list(headers, &CONNECTION) {
        let Ok(name) = HeaderName::from_bytes(option) else {
            continue;
        };
        if headers.contains_key(&name)
            && ![CONTENT_LENGTH, TRANSFER_ENCODING, HOST].contains(&name)
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// The length that a message states. None if it states none, or a value that is no number.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The names of the fields that are not stored (RFC 9111 §3.1): those of [`connection_fields`], and
/// those between a proxy and its client.
///
/// The fields that `private` and `no-cache` name are not included; see
/// [`ResponseDirectives`](super::cache_control::ResponseDirectives).
pub fn not_stored(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut names = connection_fields(headers);
    for name in [
        PROXY_AUTHENTICATE,
        PROXY_AUTHENTICATION_INFO,
        PROXY_AUTHORIZATION,
    ] {
        if headers.contains_key(&name) && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The members of a list-based field over all its lines, without empty ones (RFC 9110 §5.3 and
/// §5.6.1.2).
pub(super) fn list<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a [u8]> + 'a {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| members(line.as_bytes()))
        .filter(|member| !member.is_empty())
}

/// The members of a line, separated by commas outside of quoted strings, without white space around
/// them (RFC 9110 §5.6.1). Empty members are included. A quoted string without an end takes the
/// remainder of the line.
pub(super) fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let (member, after) = split_outside_quotes(rest?, b',');
        rest = after;
        Some(trim_ows(member))
    })
}

/// Split at the first `separator` outside of quoted strings.
pub(super) fn split_outside_quotes(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    let mut quoted = false;
    let mut escaped = false;
    let at = text.iter().position(|&byte| {
        if escaped {
            escaped = false;
        } else if byte == b'"' {
            quoted = !quoted;
        } else if quoted {
            escaped = byte == b'\\';
        } else {
            return byte == separator;
        }
        false
    });
    match at {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Remove optional white space at both ends (RFC 9110 §5.6.3).
pub(super) fn trim_ows(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// True for a byte that may be part of a token (RFC 9110 §5.6.2).
pub(super) fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn sorted(mut names: Vec<HeaderName>) -> Vec<String> {
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn fields_known_to_concern_the_connection_need_not_be_named() {
        // RFC 9110 §7.6.1
        let headers = headers(&[
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("trailer", "etag"),
            ("etag", "\"a\""),
        ]);
        let expected = ["keep-alive", "proxy-connection", "te", "upgrade"];
        assert_eq!(sorted(connection_fields(&headers)), expected);
    }

    #[test]
    fn fields_that_connection_names_concern_the_connection() {
        // RFC 9110 §7.6.1
        for (lines, expected) in [
            (&["close"][..], &["connection"][..]),
            (&["A, keep-alive,,b"], &["a", "b", "connection"]),
            (&["a", "B , a"], &["a", "b", "connection"]),
            (&["connection"], &["connection"]),
            (&["absent"], &["connection"]),
            (&["a b, \"a\", (b)"], &["connection"]),
        ] {
            let mut fields = vec![("a", "1"), ("b", "2"), ("c", "3")];
            fields.extend(lines.iter().map(|line| ("connection", *line)));
            let names = connection_fields(&headers(&fields));
            assert_eq!(sorted(names), expected, "{lines:?}");
        }
    }

    #[test]
    fn connection_cannot_name_what_frames_or_routes_a_message() {
        let named = "content-length, transfer-encoding, host, cache-control";
        let headers = headers(&[
            ("connection", named),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "h"),
            ("cache-control", "private"),
        ]);
        assert_eq!(
            sorted(connection_fields(&headers)),
            ["cache-control", "connection"]
        );
    }

    #[test]
    fn fields_between_a_proxy_and_its_client_are_not_stored() {
        // RFC 9111 §3.1
        let headers = headers(&[
            ("connection", "a, proxy-authenticate"),
            ("a", "1"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authentication-info", "x"),
            ("proxy-authorization", "y"),
            ("content-type", "text/plain"),
        ]);
        let expected = [
            "a",
            "connection",
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
        ];
        assert_eq!(sorted(not_stored(&headers)), expected);
        assert_eq!(
            sorted(connection_fields(&headers)),
            ["a", "connection", "proxy-authenticate"]
        );
    }

    #[test]
    fn only_the_fields_that_are_named_reach_the_origin() {
        let only = RequestFields::Only(&[TE]);
        assert!(only.contains(&TE));
        assert!(!only.contains(&UPGRADE));
        assert!(RequestFields::All.contains(&UPGRADE));
    }

    #[test]
    fn a_list_is_split_outside_of_quoted_strings() {
        // RFC 9110 §5.6.1 and §5.6.4
        for (line, expected) in [
            ("a, b\t,c", &["a", "b", "c"][..]),
            ("a,, b", &["a", "", "b"]),
            ("", &[""]),
            ("a=\"b, c\", d", &["a=\"b, c\"", "d"]),
            ("\"a\\\", b\", c", &["\"a\\\", b\"", "c"]),
            ("a\\, b", &["a\\", "b"]),
            ("\"a, b", &["\"a, b"]),
            ("\"a\\", &["\"a\\"]),
        ] {
            let expected: Vec<_> = expected.iter().map(|member| member.as_bytes()).collect();
            let members: Vec<_> = members(line.as_bytes()).collect();
            assert_eq!(members, expected, "{line}");
        }
    }
}
