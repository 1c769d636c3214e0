//! The admin listener serves the programs of operators, and not the pages that their browsers show.
//!
//! A page of another site can make a browser send requests here. It cannot read the responses, because
//! no response permits that, but a request could do harm by itself. A page can also have a name of its
//! own resolve to this address (DNS rebinding), and then even reads the responses. Therefore:
//!
//! - `Host` is an address, `localhost` or a configured name. With the token, any name will do: no page
//!   has the token.
//! - `Origin`, which browsers add to all requests of pages but plain GET and HEAD, is that of this
//!   listener, and `Sec-Fetch-Site` states no other site.
//! - A method that changes something is none that a page of another site may send without a permission
//!   (CORS). POST, which it may send, needs a field that it may not.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use http::header::{HeaderMap, HeaderName, AUTHORIZATION, HOST, ORIGIN};
use http::Method;
use pingora_http::RequestHeader;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::Admin;

/// The scheme of `Authorization` (RFC 6750).
const SCHEME: &[u8] = b"bearer ";

/// The relation of a page to this listener, in requests of browsers (Fetch Metadata).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// A field that no page may send to another site without a permission.
const REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// The rules of a listener.
pub(super) struct Access {
    /// The digest of the token, which has the same length whatever a client sends.
    token: Option<[u8; 32]>,
    /// In lower case.
    hosts: Box<[String]>,
}

/// The reason for refusing a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It may come from a page in a browser.
    Foreign(&'static str),
    /// It lacks the token, or has a wrong one.
    Token(&'static str),
}

/// The token of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Right,
    Wrong,
    Nothing,
}

// === impl Refused ===

impl Refused {
    /// True if the request would be served with the token.
    pub(super) fn lacks_token(&self) -> bool {
        matches!(self, Refused::Token(_))
    }
}

// === impl Access ===

impl Access {
    pub(super) fn new(admin: Option<&Admin>) -> Access {
        let token = admin.and_then(|admin| admin.token.as_ref());
        let hosts = admin.map_or(&[][..], |admin| &admin.hosts).iter();
        Access {
            token: token.map(|token| Sha256::digest(token.expose()).into()),
            hosts: hosts.map(|host| host.to_string()).collect(),
        }
    }

    /// Decide on a request. `by_socket`: it has come through the Unix socket, so its sender may use that.
    /// A browser may have sent it all the same, to a port that is forwarded to the socket. `is_open`: what it asks for
    /// needs no token.
    pub(super) fn check(
        &self,
        request: &RequestHeader,
        by_socket: bool,
        is_open: bool,
    ) -> Result<(), Refused> {
        let shown = self.token_of(&request.headers);
        let mut hosts = hosts(request);
        if shown != Shown::Right && !hosts.all(|host| self.is_own(host)) {
            return Err(Refused::Foreign(
                "write the IP address of this listener, localhost or a name of admin.hosts as its host\n",
            ));
        }
        if let Some(why) = foreign_page(request) {
            return Err(Refused::Foreign(why));
        }
        if shown == Shown::Wrong {
            return Err(Refused::Token("this is not the token of admin.token\n"));
        }
        let is_admitted = by_socket || is_open || shown == Shown::Right;
        if !is_admitted && self.token.is_some() {
            return Err(Refused::Token(
                "send the token of admin.token: Authorization: Bearer TOKEN\n",
            ));
        }
        Ok(())
    }

    /// Decide on a POST that changes something: any page may send one, but not with these fields.
    pub(super) fn check_post(&self, request: &RequestHeader) -> Result<(), Refused> {
        let is_right = self.token_of(&request.headers) == Shown::Right;
        match is_right || request.headers.contains_key(&REQUESTED_WITH) {
            true => Ok(()),
            false => Err(Refused::Foreign(
                "a POST without a token needs the field X-Requested-With\n",
            )),
        }
    }

    fn token_of(&self, headers: &HeaderMap) -> Shown {
        let (Some(expected), Some(value)) = (&self.token, headers.get(AUTHORIZATION)) else {
            return Shown::Nothing;
        };
        let value = value.as_bytes();
        let scheme = value.get(..SCHEME.len());
        let token = match scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME)) {
            true => value[SCHEME.len()..].trim_ascii(),
            false => return Shown::Wrong,
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        match bool::from(digest.ct_eq(expected)) {
            true => Shown::Right,
            false => Shown::Wrong,
        }
    }

    fn is_own(&self, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else {
            return false;
        };
        is_address(host)
            || name_of(host).is_some_and(|name| {
                let name = name.strip_suffix('.').unwrap_or(name);
                self.hosts.iter().any(|own| own.eq_ignore_ascii_case(name))
            })
    }
}

/// The hosts that a request names.
fn hosts(request: &RequestHeader) -> impl Iterator<Item = &[u8]> {
    let fields = request.headers.get_all(HOST).into_iter();
    let authority = request.uri.authority().map(|a| a.as_str().as_bytes());
    fields.map(|field| field.as_bytes()).chain(authority)
}

/// The reason for refusing a request that a browser sends for the page of another site.
fn foreign_page(request: &RequestHeader) -> Option<&'static str> {
    let headers = &request.headers;
    let is_own = |origin: &[u8]| {
        let schemes = [&b"http://"[..], b"https://"];
        let authority = schemes.iter().find_map(|s| origin.strip_prefix(*s));
        let host = headers.get(HOST).map(|host| host.as_bytes());
        authority
            .zip(host)
            .is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    let mut origins = headers.get_all(ORIGIN).into_iter();
    if !origins.all(|origin| is_own(origin.as_bytes())) {
        return Some("a request with this Origin field comes from a page of another site\n");
    }
    let is = |name: &HeaderName, values: &[&str]| {
        let mut fields = headers.get_all(name).into_iter();
        fields.all(|field| values.iter().any(|value| field == value))
    };
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    // A link from another site may lead here: it shows something, and changes nothing.
    let is_visit = is_read && headers.contains_key(&FETCH_MODE) && is(&FETCH_MODE, &["navigate"]);
    if !is_visit && !is(&FETCH_SITE, &["same-origin", "none"]) {
        return Some(
            "a request with this Sec-Fetch-Site field comes from a page of another site\n",
        );
    }
    None
}

/// The name in a host with or without a port. `None`: it is no name.
fn name_of(host: &str) -> Option<&str> {
    match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => Some(name),
        Some(_) => None,
        None => Some(host),
    }
}

/// True if a host, with or without a port, is an IP address or `localhost`.
fn is_address(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Some(ip) = bracketed {
        return ip.parse::<Ipv6Addr>().is_ok();
    }
    name_of(host).is_some_and(|name| {
        name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::heads_for_tests::request;

    const TOKEN: &str = "0123456789abcdef";

    fn access(token: Option<&str>, hosts: &str) -> Access {
        let token = token.map_or(String::new(), |token| format!(", token: '{token}'"));
        let text = format!(
            "server: {{address: '127.0.0.1:0'}}\n\
             buckets: [{{path_prefix: /a, bucket: bucket, region: r}}]\n\
             admin: {{address: '127.0.0.1:0', hosts: [{hosts}]{token}}}\n"
        );
        let path = std::path::Path::new("test");
        let config = crate::config::Config::parse(&text, path, &|_| None).unwrap();
        Access::new(config.admin.as_ref())
    }

    #[test]
    fn only_addresses_and_localhost_are_no_names() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9091",
            "[::1]",
            "[::1]:9091",
            "10.1.2.3:80",
            "localhost",
            "LocalHost:9091",
        ] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            ":9091",
            "evil.test",
            "evil.test:9091",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "127.0.0.1:9091.evil.test",
            "localhost@evil.test",
            "evil.test@127.0.0.1",
            "[evil.test]",
            "::1",
            "127.1",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }

    #[test]
    fn a_name_is_own_if_it_is_configured_or_the_token_comes_with_it() {
        let access = access(Some(TOKEN), "admin.example.com");
        let right = format!("Bearer {TOKEN}");
        for (host, is_own) in [
            ("admin.example.com", true),
            ("Admin.Example.com.:9091", true),
            ("admin.example.com:x", false),
            ("admin.example.com.evil.test", false),
            ("xadmin.example.com", false),
            ("evil.test", false),
        ] {
            let bare = access.check(&request("GET", &[("host", host)]), false, true);
            assert_eq!(bare.is_ok(), is_own, "{host}");
            let fields = [("host", host), ("authorization", &right)];
            assert_eq!(access.check(&request("GET", &fields), false, false), Ok(()));
        }
        // A port may be forwarded to the socket.
        let rebound = request("GET", &[("host", "evil.test")]);
        let checked = access.check(&rebound, true, true);
        assert!(matches!(checked, Err(Refused::Foreign(_))));
        // Each of several counts.
        let two = [("host", "127.0.0.1"), ("host", "evil.test")];
        let checked = access.check(&request("GET", &two), false, true);
        assert!(matches!(checked, Err(Refused::Foreign(_))));
    }

    #[test]
    fn the_token_is_needed_where_it_is_configured() {
        let with = access(Some(TOKEN), "");
        for (value, is_right) in [
            (format!("Bearer {TOKEN}"), true),
            (format!("bearer   {TOKEN} "), true),
            (format!("Bearer {TOKEN}x"), false),
            (format!("Bearer {}", &TOKEN[1..]), false),
            ("Bearer ".to_owned(), false),
            ("Bearer".to_owned(), false),
            (TOKEN.to_owned(), false),
            (format!("Basic {TOKEN}"), false),
        ] {
            let request = request("PURGE", &[("authorization", &value)]);
            for is_open in [false, true] {
                let checked = with.check(&request, false, is_open);
                assert_eq!(checked.is_ok(), is_right, "{value}");
                assert!(!matches!(checked, Err(Refused::Foreign(_))), "{value}");
            }
        }
        let bare = request("PURGE", &[]);
        assert!(matches!(
            with.check(&bare, false, false),
            Err(Refused::Token(_))
        ));
        assert_eq!(with.check(&bare, false, true), Ok(()));
        assert_eq!(with.check(&bare, true, false), Ok(()));
        let without = access(None, "");
        assert_eq!(without.check(&bare, false, false), Ok(()));
        // Whoever sends one to a listener without a token is not kept out.
        let any = request("PURGE", &[("authorization", "Bearer x")]);
        assert_eq!(without.check(&any, false, false), Ok(()));
    }

    #[test]
    fn a_page_of_another_site_is_refused_with_the_token_too() {
        let access = access(Some(TOKEN), "");
        let right = format!("Bearer {TOKEN}");
        for (method, fields, is_own) in [
            ("PURGE", &[("origin", "http://127.0.0.1:9091")][..], true),
            ("PURGE", &[("origin", "https://127.0.0.1:9091")], true),
            ("PURGE", &[("origin", "http://127.0.0.1")], false),
            (
                "PURGE",
                &[("origin", "http://127.0.0.1:9091.evil.test")],
                false,
            ),
            ("PURGE", &[("origin", "http://evil.test")], false),
            ("PURGE", &[("origin", "null")], false),
            ("PURGE", &[("origin", "")], false),
            (
                "PURGE",
                &[
                    ("origin", "http://127.0.0.1:9091"),
                    ("origin", "http://evil.test"),
                ],
                false,
            ),
            ("GET", &[("sec-fetch-site", "same-origin")], true),
            ("GET", &[("sec-fetch-site", "none")], true),
            ("GET", &[("sec-fetch-site", "cross-site")], false),
            ("GET", &[("sec-fetch-site", "same-site")], false),
            ("GET", &[("sec-fetch-site", "")], false),
            (
                "GET",
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "no-cors"),
                ],
                false,
            ),
            (
                "GET",
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                true,
            ),
            (
                "POST",
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                false,
            ),
        ] {
            let mut all = vec![("host", "127.0.0.1:9091"), ("authorization", &*right)];
            all.extend(fields);
            let checked = access.check(&request(method, &all), false, false);
            assert_eq!(checked.is_ok(), is_own, "{method} {fields:?}");
        }
    }

    #[test]
    fn a_post_that_any_page_may_send_is_refused() {
        let access = access(None, "");
        for (fields, is_admitted) in [
            (&[][..], false),
            (&[("content-type", "text/plain")], false),
            (
                &[("content-type", "application/x-www-form-urlencoded")],
                false,
            ),
            (&[("x-requested-with", "s3-proxy")], true),
        ] {
            let checked = access.check_post(&request("POST", fields));
            assert_eq!(checked.is_ok(), is_admitted, "{fields:?}");
        }
    }
}
