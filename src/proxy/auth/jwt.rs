//! Clients with a JSON Web Token, in the ways of RFC 6750: in the `Authorization` field, in a
//! parameter of the query, or, for browsers, in a cookie.

use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora_http::RequestHeader;

use super::{refused, Refused};
use crate::config;
use crate::jwt::{Grant, Rules, TokenError, Verifier};
use crate::proxy::cache_key::requested_query;
use crate::s3::{Code, S3Error};

/// The clients of a bucket with `auth: jwt`.
pub(super) struct Jwt {
    /// `None` if there are no keys. No client is admitted then.
    verifier: Option<Verifier>,
    cookie: Option<String>,
    query: Option<String>,
}

/// A token, and its place in the request.
struct Found<'a> {
    token: &'a [u8],
    in_cookie: bool,
}

// === impl Jwt ===

impl Jwt {
    pub(super) fn new(section: &config::Jwt) -> Jwt {
        let strings =
            |list: &[config::Plain]| list.iter().map(|text| (**text).to_owned()).collect();
        let rules = Rules {
            issuers: strings(&section.issuers),
            audiences: strings(&section.audiences),
            prefix_claim: section.prefix_claim.as_deref().map(str::to_owned),
        };
        Jwt {
            verifier: section
                .keys()
                .map(|keys| Verifier::new(keys.clone(), rules)),
            cookie: section.cookie.as_deref().map(str::to_owned),
            query: section.query.as_deref().map(str::to_owned),
        }
    }

    pub(super) fn nobody() -> Jwt {
        Jwt {
            verifier: None,
            cookie: None,
            query: None,
        }
    }

    /// The rights that the token of a request grants. True if it came in a cookie.
    pub(super) fn verify(
        &self,
        header: &RequestHeader,
    ) -> Result<(Arc<Grant>, bool), Box<Refused>> {
        let found = self.find(header)?;
        let found = found.ok_or_else(|| unauthorised("unsigned", "Bearer realm=\"s3\""))?;
        let verifier = self.verifier.as_ref().ok_or(TokenError::UnknownKey);
        match verifier.and_then(|verifier| verifier.verify(found.token)) {
            Ok(grant) => Ok((grant, found.in_cookie)),
            Err(error) => Err(invalid(error)),
        }
    }

    fn find<'a>(&self, header: &'a RequestHeader) -> Result<Option<Found<'a>>, Box<Refused>> {
        let mut authorizations = header.headers.get_all(AUTHORIZATION).iter();
        let authorization = authorizations.next();
        if authorizations.next().is_some() {
            return Err(two_tokens());
        }
        if let Some(token) = authorization.and_then(|value| bearer(value.as_bytes())) {
            return Ok(Some(Found {
                token,
                in_cookie: false,
            }));
        }
        if let Some(name) = &self.query {
            let query = requested_query(header).unwrap_or_default();
            if let Some(token) = parameter(query, name)? {
                return Ok(Some(Found {
                    token,
                    in_cookie: false,
                }));
            }
        }
        let name = self.cookie.as_ref();
        let token = name.and_then(|name| cookie(&header.headers, name));
        Ok(token.map(|token| Found {
            token,
            in_cookie: true,
        }))
    }
}

/// The token of `Authorization: Bearer TOKEN`. The case of the scheme is ignored (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer ");
    is_bearer.then(|| token.trim_ascii())
}

/// A parameter of a query, without percent-decoding: a token needs none.
fn parameter<'a>(query: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, Box<Refused>> {
    let mut values = query
        .split(|byte| *byte == b'&')
        .filter_map(|parameter| parameter.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(two_tokens()),
    }
}

/// The first cookie with a name. Browsers send the one with the most specific path first (RFC 6265
/// §5.4).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let fields = headers.get_all(COOKIE).iter();
    let mut pairs = fields.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?;
        let value = value.strip_prefix(b"=")?;
        let quoted = value.strip_prefix(b"\"");
        Some(
            quoted
                .and_then(|value| value.strip_suffix(b"\""))
                .unwrap_or(value),
        )
    })
}

fn invalid(error: TokenError) -> Box<Refused> {
    let reason = match error {
        TokenError::Expired | TokenError::NotYet => "time",
        TokenError::UnknownKey => "unknown_key",
        TokenError::Signature => "signature",
        TokenError::TooLong | TokenError::Malformed => "malformed",
        TokenError::Issuer | TokenError::Audience | TokenError::Claim => "claims",
    };
    let description = error.description();
    let challenge = format!(
        "Bearer realm=\"s3\", error=\"invalid_token\", error_description=\"{description}\""
    );
    unauthorised(reason, &challenge)
}

fn unauthorised(reason: &'static str, challenge: &str) -> Box<Refused> {
    let error = S3Error {
        status: StatusCode::UNAUTHORIZED,
        ..Code::AccessDenied.into()
    };
    let mut refused = refused(reason, error);
    refused.challenge = HeaderValue::from_str(challenge).ok();
    refused
}

/// The refusal of a request with several tokens (RFC 6750 §2).
fn two_tokens() -> Box<Refused> {
    let why = "The request has more than one token.";
    let mut refused = refused("malformed", S3Error::new(Code::InvalidRequest, why));
    let challenge = "Bearer realm=\"s3\", error=\"invalid_request\"";
    refused.challenge = Some(HeaderValue::from_static(challenge));
    refused
}
