//! Redirects from the plain listener to the HTTPS listener.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, LOCATION};
use http::{HeaderValue, StatusCode};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::errors;
use super::host::without_port;
use crate::config::Tls;
use crate::http::{CachingCtx, HttpCaching};

/// The port that https URLs need not name (RFC 9110 §4.2.2).
const HTTPS_PORT: u16 = 443;

/// The longest name of a host (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;

/// Redirects requests to the HTTPS listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Redirect {
    port: u16,
}

// === impl Redirect ===

impl Redirect {
    /// The redirects that the configuration asks for.
    pub(super) fn of(tls: &Tls) -> Option<Redirect> {
        let port = tls.redirect_port.map_or(tls.address.port(), |port| *port);
        tls.redirect.then_some(Redirect { port })
    }

    /// Redirect to `port` if the configuration let the kernel choose one.
    pub(super) fn set_chosen_port(&mut self, port: u16) {
        if self.port == 0 {
            self.port = port;
        }
    }

    /// Answer with 308 (RFC 9110 §15.4.9), which keeps method and body, or with 400 if the request
    /// names no host. Always `true`, the result of `request_filter`.
    pub(super) async fn answer(
        self,
        caching: &HttpCaching,
        session: &mut Session,
        ctx: &CachingCtx,
    ) -> Result<bool> {
        let location = self.location(session.req_header());
        let status = match location {
            Some(_) => StatusCode::PERMANENT_REDIRECT,
            None => StatusCode::BAD_REQUEST,
        };
        let mut header = ResponseHeader::build(status, Some(3))?;
        header.insert_header(CONTENT_LENGTH, 0)?;
        if let Some(location) = location {
            header.insert_header(LOCATION, location)?;
        }
        caching.add_own_fields(session, &mut header, ctx)?;
        errors::send(session, header, Bytes::new()).await?;
        Ok(true)
    }

    fn location(self, request: &RequestHeader) -> Option<HeaderValue> {
        let host = host(request)?;
        // Of a target such as `*` there is no URL.
        let path = request.raw_path();
        if path.first() != Some(&b'/') {
            return None;
        }
        let mut url = format!("https://{host}").into_bytes();
        if self.port != HTTPS_PORT {
            url.extend(format!(":{}", self.port).bytes());
        }
        url.extend(path);
        HeaderValue::from_maybe_shared(Bytes::from(url)).ok()
    }
}

/// True if the request came to the plain listener. Subrequests of the proxy itself did not.
pub(super) fn is_plain(session: &Session) -> bool {
    let digest = session.as_downstream().digest();
    session.subrequest_ctx.is_none() && digest.is_none_or(|digest| digest.ssl_digest.is_none())
}

/// The host that a request names, without the port. `None` unless it is a DNS name or an address: the
/// client would be sent to something else than it asked for.
fn host(request: &RequestHeader) -> Option<&str> {
    let named = match request.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => {
            let mut hosts = request.headers.get_all(HOST).iter();
            match (hosts.next(), hosts.next()) {
                (Some(host), None) => host.as_bytes(),
                _ => return None,
            }
        }
    };
    let host = without_port(std::str::from_utf8(named).ok()?)?;
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let is_valid =
        host.starts_with('[') || (1..=MAX_NAME).contains(&host.len()) && host.bytes().all(is_name);
    is_valid.then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(port: u16, path: &str, hosts: &[&str]) -> Option<String> {
        let mut request = RequestHeader::build("GET", path.as_bytes(), None).unwrap();
        for host in hosts {
            request.append_header(HOST, *host).unwrap();
        }
        let location = Redirect { port }.location(&request)?;
        Some(location.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_host_the_path_and_the_query_are_kept() {
        for (port, path, host, expected) in [
            (443, "/", "example.com", "https://example.com/"),
            (
                443,
                "/a%20b?c=d&e",
                "example.com:80",
                "https://example.com/a%20b?c=d&e",
            ),
            (8443, "/a", "example.com:8080", "https://example.com:8443/a"),
            (443, "/a", "127.0.0.1:8080", "https://127.0.0.1/a"),
            (8443, "/a", "[::1]:8080", "https://[::1]:8443/a"),
            (
                443,
                "//evil.example/a",
                "example.com",
                "https://example.com//evil.example/a",
            ),
        ] {
            let found = location(port, path, &[host]);
            assert_eq!(found.as_deref(), Some(expected), "{host}{path}");
        }
    }

    #[test]
    fn without_a_valid_host_there_is_no_redirect() {
        for hosts in [
            &[][..],
            &[""],
            &["a.example", "b.example"],
            &["user@evil.example"],
            &["example.com@evil.example"],
            &["example.com/evil"],
            &["evil.example?"],
            &["a b"],
            &["[evil]"],
            &["[::1"],
            &["%65vil.example"],
            &["example.com:port"],
            &[":80"],
        ] {
            assert_eq!(location(443, "/a", hosts), None, "{hosts:?}");
        }
    }
}
