//! Limits of clients, so that none of them keeps the others out.
//!
//! - this module: the names of the limits, and those of a request head
//! - `connections`: the connections of each client address
//! - `gate`: what a new connection passes before anything is read from it
//! - `proxy_protocol`: the address of a client of a load balancer
//! - `rates`: requests and bytes a second
//!
//! The limit of all connections is Pingora's, and those of HTTP/2 and of the bytes and the time of a
//! request head are enforced by its parsers.

pub(super) mod connections;
pub(super) mod gate;
mod proxy_protocol;
pub(super) mod rates;

use http::{StatusCode, Version};
use pingora_core::apps::RefusedRequestHandler;
use pingora_core::{Error, ErrorType};
use pingora_http::RequestHeader;

use crate::config;
use crate::metrics::METRICS;
use crate::s3::{Code, S3Error};

/// A limit that a client has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// All connections. Pingora counts them.
    Connections,
    /// The descriptors of the process. Pingora counts them.
    Descriptors,
    /// The connections of one address.
    PerIp,
    /// The bytes of a request head.
    HeaderBytes,
    /// The fields of a request head.
    HeaderFields,
    /// The length of a request target.
    UrlBytes,
    /// The time for a request head.
    HeadTime,
    /// Resets and control frames of an HTTP/2 connection.
    Http2,
    /// Requests a second.
    Requests,
    /// Bytes a second.
    Bytes,
    /// The size, time and form of a PROXY protocol header.
    ProxyHeader,
}

/// The limits of a request head that hold for every protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestLimits {
    fields: usize,
    url_bytes: usize,
}

// === impl Limit ===

impl Limit {
    pub(crate) const ALL: [Limit; 11] = [
        Limit::Connections,
        Limit::Descriptors,
        Limit::PerIp,
        Limit::HeaderBytes,
        Limit::HeaderFields,
        Limit::UrlBytes,
        Limit::HeadTime,
        Limit::Http2,
        Limit::Requests,
        Limit::Bytes,
        Limit::ProxyHeader,
    ];

    /// The name in the metric.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Limit::Connections => "connections",
            Limit::Descriptors => "descriptors",
            Limit::PerIp => "per_ip",
            Limit::HeaderBytes => "header_bytes",
            Limit::HeaderFields => "header_fields",
            Limit::UrlBytes => "url_bytes",
            Limit::HeadTime => "head_time",
            Limit::Http2 => "http2",
            Limit::Requests => "requests",
            Limit::Bytes => "bytes",
            Limit::ProxyHeader => "proxy_header",
        }
    }

    /// Count a connection or request that is refused.
    pub(super) fn count(self) {
        METRICS.limited.with_label_values(&[self.label()]).inc();
    }

    /// The limit that is the reason why Pingora has refused a request. `None`: it is not HTTP.
    fn of(reason: &Error) -> Option<Limit> {
        Some(match reason.etype() {
            ErrorType::HTTPStatus(408) | ErrorType::ReadTimedout => Limit::HeadTime,
            ErrorType::HTTPStatus(414) => Limit::UrlBytes,
            ErrorType::HTTPStatus(431) => Limit::HeaderBytes,
            ErrorType::H2Error => Limit::Http2,
            _ => return None,
        })
    }
}

/// Counts the requests that Pingora refuses before the proxy gets them.
pub(super) fn count_refused_requests() -> RefusedRequestHandler {
    RefusedRequestHandler::new(|_, reason| match Limit::of(reason) {
        Some(limit) => limit.count(),
        None => METRICS.malformed_requests.inc(),
    })
}

// === impl RequestLimits ===

impl RequestLimits {
    pub(super) fn new(limits: &config::Limits) -> RequestLimits {
        RequestLimits {
            fields: *limits.header_fields,
            url_bytes: *limits.url_bytes,
        }
    }

    /// The answer to a request that exceeds a limit, which is counted.
    pub(super) fn exceeded(&self, request: &RequestHeader) -> Option<S3Error> {
        // The parser of HTTP/1.1 has compared the length, before it has encoded illegal characters.
        let is_http2 = request.version == Version::HTTP_2;
        let (limit, status, code, why) = if is_http2 && request.raw_path().len() > self.url_bytes {
            let why = "The request target is too long.";
            let status = StatusCode::URI_TOO_LONG;
            (Limit::UrlBytes, status, Code::InvalidURI, why)
        } else if request.headers.len() > self.fields {
            let why = "The request has too many header fields.";
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            (Limit::HeaderFields, status, Code::InvalidRequest, why)
        } else {
            return None;
        };
        limit.count();
        Some(S3Error {
            status,
            ..S3Error::new(code, why)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            Limit::ALL.iter().map(|limit| limit.label()).collect();
        assert_eq!(names.len(), Limit::ALL.len());
    }

    #[test]
    fn a_head_at_its_limits_is_served() {
        let limits = RequestLimits {
            fields: 3,
            url_bytes: 10,
        };
        let request = |target: &str, fields: usize| {
            let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
            request.set_version(Version::HTTP_2);
            for _ in 0..fields {
                // The same name counts each time.
                request.append_header("a", "b").unwrap();
            }
            request
        };
        let status = |request| limits.exceeded(&request).map(|error| error.status.as_u16());
        assert_eq!(status(request("/1234?6789", 3)), None);
        assert_eq!(status(request("/1234?67890", 3)), Some(414));
        assert_eq!(status(request("/1234?6789", 4)), Some(431));
    }
}
