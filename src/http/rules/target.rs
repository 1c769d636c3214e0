//! Target URIs: that of a request, and those that a response names (RFC 9110 §7.1, RFC 9111 §4.4).

use http::header::{CONTENT_LOCATION, HOST, LOCATION};
use http::{Method, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};

/// A target URI as a cache key: authority, and path with query. The listener decides the scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host and port in lower case, without the scheme's own port.
    pub authority: String,
    /// As the client sent it; `/` if it sent none.
    pub path_and_query: String,
}

impl Target {
    /// The target of a request (RFC 9110 §7.1): the absolute form, or `Host` and the path.
    pub fn of(request: &RequestHeader) -> Target {
        let raw = String::from_utf8_lossy(request.raw_path());
        if let Some((authority, path_and_query)) = split_absolute(&raw) {
            return Target::new(authority, path_and_query);
        }
        let authority = request
            .uri
            .authority()
            .map(|authority| authority.as_str().to_owned())
            .or_else(|| {
                let host = request.headers.get(HOST)?;
                Some(String::from_utf8_lossy(host.as_bytes()).into_owned())
            })
            .unwrap_or_default();
        Target::new(&authority, &raw)
    }

    fn new(authority: &str, path_and_query: &str) -> Target {
        let path_and_query = path_and_query.split('#').next().unwrap_or_default();
        let mut authority = authority
            .rsplit('@')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        if authority.ends_with(":80") {
            authority.truncate(authority.len() - 3);
        }
        let path_and_query = match path_and_query {
            "" => "/".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        Target {
            authority,
            path_and_query,
        }
    }

    /// The target of a reference in a response to this target, if it has the same origin (RFC 3986
    /// §5.2).
    fn resolve(&self, reference: &str) -> Option<Target> {
        let reference = reference.trim();
        if let Some((authority, path_and_query)) = split_absolute(reference) {
            let target = Target::new(authority, path_and_query);
            return (target.authority == self.authority).then_some(target);
        }
        if let Some(rest) = reference.strip_prefix("//") {
            let (authority, path_and_query) = split_authority(rest);
            let target = Target::new(authority, path_and_query);
            return (target.authority == self.authority).then_some(target);
        }
        if has_scheme(reference) {
            return None;
        }
        let reference = reference.split('#').next().unwrap_or_default();
        let base = self.path_and_query.split('?').next().unwrap_or_default();
        let (path, query) = match reference.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (reference, None),
        };
        let path = if path.is_empty() {
            base.to_owned()
        } else if path.starts_with('/') {
            without_dots(path)
        } else {
            let folder = base.rfind('/').map_or("/", |end| &base[..=end]);
            without_dots(&format!("{folder}{path}"))
        };
        let path_and_query = match query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        Some(Target::new(&self.authority, &path_and_query))
    }
}

/// The authority of an absolute `http` or `https` URI, and the remainder.
fn split_absolute(uri: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = uri.split_once("://")?;
    let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    is_http.then(|| split_authority(rest))
}

fn split_authority(rest: &str) -> (&str, &str) {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    rest.split_at(end)
}

fn has_scheme(reference: &str) -> bool {
    let end = reference.find(['/', '?', '#']).unwrap_or(reference.len());
    reference[..end].contains(':')
}

/// The path without its dot segments (RFC 3986 §5.2.4).
fn without_dots(path: &str) -> String {
    let mut segments = Vec::new();
    let mut rest = path.split('/').skip(1).peekable();
    while let Some(segment) = rest.next() {
        let is_last = rest.peek().is_none();
        match segment {
            "." if is_last => segments.push(""),
            "." => {}
            ".." => {
                segments.pop();
                if is_last {
                    segments.push("");
                }
            }
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

/// True if a method is defined as safe (RFC 9110 §9.2.1). An unknown method may change something.
pub fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

/// The targets whose stored responses are invalid after this response: that of the request, and
/// those of the same origin that the response names (RFC 9111 §4.4).
pub fn invalidated(request: &RequestHeader, response: &ResponseHeader) -> Vec<Target> {
    let status = response.status;
    if is_safe(&request.method) || !is_success(status) {
        return Vec::new();
    }
    let target = Target::of(request);
    let mut targets: Vec<Target> = [LOCATION, CONTENT_LOCATION]
        .iter()
        .filter_map(|name| response.headers.get(name))
        .filter_map(|value| target.resolve(std::str::from_utf8(value.as_bytes()).ok()?))
        .collect();
    targets.push(target);
    targets.dedup();
    targets
}

/// True for a "non-error" status (RFC 9111 §4.4).
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(target: &str, host: &str) -> Target {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        request.insert_header(HOST, host).unwrap();
        Target::of(&request)
    }

    /// RFC 9110 §7.1, §4.2.3
    #[test]
    fn a_target_is_the_same_however_it_is_written() {
        let expected = Target {
            authority: "example.com".into(),
            path_and_query: "/a?b".into(),
        };
        for (raw, host) in [
            ("/a?b", "example.com"),
            ("/a?b", "EXAMPLE.com:80"),
            ("http://example.com/a?b", "other.org"),
            ("HTTP://Example.com:80/a?b", "other.org"),
        ] {
            assert_eq!(target(raw, host), expected, "{raw} {host}");
        }
        assert_ne!(target("/a?B", "example.com"), expected);
        assert_ne!(target("/a?b", "example.com:8080"), expected);
        assert_eq!(
            target("http://example.com", "").path_and_query,
            "/",
            "no path"
        );
    }

    /// RFC 9111 §4.4
    #[test]
    fn a_response_names_others_of_its_origin() {
        let base = target("/a/b?c", "example.com");
        for (reference, expected) in [
            ("/x", Some("/x")),
            ("x", Some("/a/x")),
            ("../x?y", Some("/x?y")),
            ("./", Some("/a/")),
            ("..", Some("/")),
            ("?q", Some("/a/b?q")),
            ("#f", Some("/a/b")),
            ("http://example.com/x", Some("/x")),
            ("http://EXAMPLE.com:80/x#f", Some("/x")),
            ("//example.com/x", Some("/x")),
            ("http://example.org/x", None),
            ("http://example.com:8080/x", None),
            ("//example.org/x", None),
            ("mailto:root@example.com", None),
        ] {
            let resolved = base.resolve(reference);
            let path = resolved.as_ref().map(|target| &*target.path_and_query);
            assert_eq!(path, expected, "{reference:?}");
        }
    }

    /// RFC 9111 §4.4
    #[test]
    fn only_a_success_of_an_unsafe_method_invalidates() {
        for (method, status, expected) in [
            ("POST", 200, 3),
            ("DELETE", 204, 3),
            ("PUT", 303, 3),
            ("FROBNICATE", 201, 3),
            ("POST", 404, 0),
            ("POST", 500, 0),
            ("GET", 200, 0),
            ("HEAD", 200, 0),
            ("OPTIONS", 200, 0),
        ] {
            let mut request = RequestHeader::build(method, b"/a", None).unwrap();
            request.insert_header(HOST, "example.com").unwrap();
            let mut response = ResponseHeader::build(status, None).unwrap();
            response.insert_header(LOCATION, "/b").unwrap();
            response.insert_header(CONTENT_LOCATION, "c").unwrap();
            assert_eq!(
                invalidated(&request, &response).len(),
                expected,
                "{method} {status}"
            );
        }
    }
}
