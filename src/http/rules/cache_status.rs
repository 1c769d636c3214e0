//! The `Cache-Status` response field (RFC 9211).

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use pingora_core::{ErrorType, OrErr, Result};

/// Why a request went to the origin (RFC 9211 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// The cache is not used for such a request.
    Bypass,
    /// Nor for its method.
    Method,
    /// Nothing is stored for its URI.
    UriMiss,
    /// What is stored was selected by other request fields.
    VaryMiss,
    /// The client wants it.
    Request,
    /// What is stored is stale.
    Stale,
    /// What is being stored is not there yet.
    Partial,
}

impl Forwarded {
    fn as_str(self) -> &'static str {
        match self {
            Forwarded::Bypass => "bypass",
            Forwarded::Method => "method",
            Forwarded::UriMiss => "uri-miss",
            Forwarded::VaryMiss => "vary-miss",
            Forwarded::Request => "request",
            Forwarded::Stale => "stale",
            Forwarded::Partial => "partial",
        }
    }
}

/// What this cache has to say about a response.
#[derive(Debug, Clone, Copy)]
pub struct CacheStatus<'a> {
    /// The cache's name: a token.
    pub cache: &'a str,
    /// `None`: it is a hit.
    pub forwarded: Option<Forwarded>,
    /// The origin's status, where it is not that of the response.
    pub origin_status: Option<StatusCode>,
    /// Whether the response is being stored.
    pub stored: bool,
    /// Whether another request's answer was waited for.
    pub collapsed: bool,
    /// Seconds of freshness left; negative: since when it is stale.
    pub ttl: Option<i64>,
    /// A detail: a token.
    pub detail: Option<&'static str>,
}

impl<'a> CacheStatus<'a> {
    /// A hit, of which no more is said.
    pub fn hit(cache: &'a str) -> CacheStatus<'a> {
        CacheStatus {
            cache,
            forwarded: None,
            origin_status: None,
            stored: false,
            collapsed: false,
            ttl: None,
            detail: None,
        }
    }

    /// The field's value.
    ///
    /// # Errors
    /// The cache's name is no token.
    pub fn to_value(self) -> Result<HeaderValue> {
        // Longer than most.
        let mut value = String::with_capacity(64);
        self.push_to(&mut value);
        HeaderValue::from_maybe_shared(Bytes::from(value))
            .or_err(ErrorType::InternalError, "the name of the cache")
    }

    /// Append the field's value. It is one if the cache's name is a token; who sends it
    /// checks that.
    pub fn push_to(&self, value: &mut String) {
        value.push_str(self.cache);
        match self.forwarded {
            None => value.push_str("; hit"),
            Some(forwarded) => value.extend(["; fwd=", forwarded.as_str()]),
        }
        // Writing to a String cannot fail.
        if let Some(status) = self.origin_status {
            let _ = write!(value, "; fwd-status={}", status.as_u16());
        }
        if let Some(ttl) = self.ttl {
            value.push_str("; ttl=");
            value.push_str(itoa::Buffer::new().format(ttl));
        }
        if self.stored {
            value.push_str("; stored");
        }
        if self.collapsed {
            value.push_str("; collapsed");
        }
        if let Some(detail) = self.detail {
            value.extend(["; detail=", detail]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_member_with_parameters() {
        let hit = CacheStatus {
            cache: "example",
            forwarded: None,
            origin_status: None,
            stored: false,
            collapsed: false,
            ttl: Some(30),
            detail: None,
        };
        for (status, expected) in [
            (hit, "example; hit; ttl=30"),
            (
                CacheStatus {
                    ttl: Some(-5),
                    detail: Some("stale-if-error"),
                    ..hit
                },
                "example; hit; ttl=-5; detail=stale-if-error",
            ),
            (
                CacheStatus {
                    forwarded: Some(Forwarded::UriMiss),
                    stored: true,
                    ttl: None,
                    ..hit
                },
                "example; fwd=uri-miss; stored",
            ),
            (
                CacheStatus {
                    forwarded: Some(Forwarded::Stale),
                    origin_status: Some(StatusCode::NOT_MODIFIED),
                    collapsed: true,
                    ..hit
                },
                "example; fwd=stale; fwd-status=304; ttl=30; collapsed",
            ),
        ] {
            assert_eq!(status.to_value().unwrap(), expected);
        }
    }
}
