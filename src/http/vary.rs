//! Which requests a response may be used for, by the fields that its Vary names.

use std::collections::BTreeMap;

use http::header::{
    self, HeaderMap, HeaderName, ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE,
    VARY,
};
use pingora_cache::key::HashBinary;
use pingora_cache::VarianceBuilder;

use super::fields::{list, members, split_outside_quotes, trim_ows};

/// What a response's Vary makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variance {
    /// The response is for any request.
    None,
    /// The response is for no other request (`*`), or what its Vary says cannot be
    /// read.
    Never,
    /// The response is for requests of the same key.
    Key(HashBinary),
}

/// Reads a response's Vary, and the fields it names in a request (RFC 9110 §12.5.5).
///
/// Requests that differ only in a way without meaning get the same key (RFC 9111
/// §4.1): lines of a field are combined, and white space is removed around them and
/// around the commas of a list. Content negotiation (Accept, Accept-Charset,
/// Accept-Encoding, Accept-Language) matches in any order and, where it has none, in
/// any case. Whether a field is absent or empty does make a difference.
pub fn variance(response: &HeaderMap, request: &HeaderMap) -> Variance {
    let mut values = BTreeMap::new();
    for name in list(response, &VARY) {
        // `*` is a token, and would pass for a name.
        let Ok(name) = HeaderName::from_bytes(name) else {
            return Variance::Never;
        };
        if name == "*" {
            return Variance::Never;
        }
        let value = normalized(request, &name);
        values.insert(name.as_str().to_owned(), value);
    }
    let mut builder = VarianceBuilder::new();
    for (name, value) in values {
        builder.add_owned_name_value(name, value);
    }
    builder.finalize().map_or(Variance::None, Variance::Key)
}

/// How the value of a field may be written differently and mean the same.
enum Syntax {
    /// Not a list, as far as white space and commas are concerned.
    Verbatim,
    /// As `Verbatim`, in any case.
    CaseInsensitive,
    /// Cookies, whose lines are separated like cookies on one line (RFC 9113 §8.2.3).
    Cookies,
    List,
    CaseInsensitiveList,
    /// A list whose order has no meaning, of values and their parameters.
    Preferences,
}

impl Syntax {
    /// Fields that are not known are taken for lists, and their values for case
    /// sensitive.
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

/// Empty if the request has no such field, otherwise `=` and the value.
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
            preferences.sort_unstable();
            preferences.join(&b","[..])
        }
    };
    [b"=", &value[..]].concat()
}

/// A value and its parameters: names in lower case, no white space, and a weight of
/// 1, which is the default (RFC 9110 §12.4.2), left out at the end.
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

fn is_default_weight(parameter: &[u8]) -> bool {
    [&b"q=1"[..], b"q=1.", b"q=1.0", b"q=1.00", b"q=1.000"].contains(&parameter)
}
