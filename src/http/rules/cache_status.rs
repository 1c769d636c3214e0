//! The `Cache-Status` response field (RFC 9211).

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use pingora_core::{ErrorType, OrErr, Result};

/// The reason a request is forwarded to the origin (RFC 9211 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// The cache does not handle such requests.
    Bypass,
    /// The cache does not handle the method.
    Method,
    /// No response is stored for the URI.
    UriMiss,
    /// The stored response has other request fields.
    VaryMiss,
    /// The client asks for it.
    Request,
    /// The stored response is stale.
    Stale,
    /// The requested part has not been stored yet, or not all of it.
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

/// The part of the cache in a response, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CacheResult {
    /// A stored response.
    Hit,
    /// The origin's response.
    Miss,
    /// A stored response that is stale.
    Stale,
    /// A stored response that the origin has confirmed.
    Revalidated,
    /// A stored response, parts of which come from the origin.
    Partial,
    /// The cache does not handle such requests.
    Bypass,
}

impl CacheResult {
    /// All results, each at its own number.
    pub const ALL: [CacheResult; 6] = [
        CacheResult::Hit,
        CacheResult::Miss,
        CacheResult::Stale,
        CacheResult::Revalidated,
        CacheResult::Partial,
        CacheResult::Bypass,
    ];

    /// The value of `X-Cache`.
    pub fn x_cache(self) -> &'static str {
        match self {
            CacheResult::Hit => "HIT",
            CacheResult::Miss => "MISS",
            CacheResult::Stale => "STALE",
            CacheResult::Revalidated => "REVALIDATED",
            CacheResult::Partial => "PARTIAL",
            CacheResult::Bypass => "BYPASS",
        }
    }
}

/// The handling of a request, as this cache reports it.
#[derive(Debug, Clone, Copy)]
pub struct CacheStatus<'a> {
    /// The cache's name: a token.
    pub cache: &'a str,
    /// `None` for a hit.
    pub forwarded: Option<Forwarded>,
    /// The origin's status, if it differs from that of the response.
    pub origin_status: Option<StatusCode>,
    /// The response is being stored.
    pub stored: bool,
    /// The request has waited for the response to another one.
    pub collapsed: bool,
    /// Seconds of freshness left; negative for a stale response.
    pub ttl: Option<i64>,
    /// A detail: a token.
    pub detail: Option<&'static str>,
}

impl<'a> CacheStatus<'a> {
    /// A hit without parameters.
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
        // Longer than most values.
        let mut value = String::with_capacity(64);
        self.push_to(&mut value);
        HeaderValue::from_maybe_shared(Bytes::from(value))
            .or_err(ErrorType::InternalError, "the name of the cache")
    }

    /// Append the field's value. It is valid if the cache's name is a token, which the caller
    /// checks.
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
