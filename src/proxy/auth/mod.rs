//! Authorization by the mode of the bucket, before anything is looked up.
//!
//! - this module: the decision, and the rights of a client
//! - `sigv4`: clients that sign their requests as for S3
//! - `jwt`: clients with a token

mod jwt;
mod sigv4;

use std::borrow::Cow;
use std::sync::Arc;

use http::header::VARY;
use http::HeaderValue;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::config::{self, Config};
use crate::metrics::METRICS;
use crate::s3::{Code, KeyPrefixes, Operation, S3Error, S3Request, Target};

/// The decisions for all buckets.
pub(super) struct Auth {
    /// By the bucket's place in the configuration.
    modes: Box<[Mode]>,
}

/// The way in which clients of a bucket prove their identity.
enum Mode {
    /// Anyone may read.
    Open,
    Sigv4(Box<sigv4::Sigv4>),
    Jwt(Box<jwt::Jwt>),
}

/// An admitted client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Admitted {
    /// The client has proved its identity.
    pub(super) is_authenticated: bool,
    /// A cookie has admitted the client. A cache between client and proxy does not look at cookies.
    pub(super) by_cookie: bool,
    /// The access key of its signature, which has been verified.
    pub(super) key_id: Option<Arc<str>>,
}

/// A refused request.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: S3Error,
    /// The value of `WWW-Authenticate`.
    pub(super) challenge: Option<HeaderValue>,
}

// === impl Admitted ===

impl Admitted {
    /// Tell caches between client and proxy if a cookie decides who gets the response.
    pub(super) fn describe(&self, header: &mut ResponseHeader) -> pingora_core::Result<()> {
        if self.by_cookie {
            header.append_header(VARY, "Cookie")?;
        }
        Ok(())
    }
}

// === impl Refused ===

impl From<S3Error> for Refused {
    fn from(error: S3Error) -> Refused {
        Refused {
            error,
            challenge: None,
        }
    }
}

// === impl Auth ===

impl Auth {
    /// The decisions for the buckets of `config`.
    pub(super) fn new(config: &Config) -> Auth {
        let modes = config.buckets.iter().map(|bucket| match bucket.auth {
            config::Auth::None => Mode::Open,
            // S3 decides on these requests, so none is decided on here.
            config::Auth::Passthrough => Mode::Jwt(Box::new(jwt::Jwt::nobody())),
            config::Auth::Sigv4 => Mode::Sigv4(Box::new(sigv4::Sigv4::new(bucket))),
            config::Auth::Jwt => match &bucket.jwt {
                Some(section) => Mode::Jwt(Box::new(jwt::Jwt::new(section))),
                None => Mode::Jwt(Box::new(jwt::Jwt::nobody())),
            },
        });
        Auth {
            modes: modes.collect(),
        }
    }

    /// Decide on a request for a bucket.
    #[inline]
    pub(super) fn decide(
        &self,
        bucket: usize,
        header: &RequestHeader,
        request: &S3Request,
    ) -> Result<Admitted, Box<Refused>> {
        match self.modes.get(bucket) {
            Some(Mode::Open) => Ok(Admitted::default()),
            Some(mode) => mode.decide(header, request),
            None => Err(refused("bucket", Code::AccessDenied.into())),
        }
    }

    /// True if a client that was admitted may make another request too. `header` is that of its own
    /// request.
    pub(super) fn also_permits(
        &self,
        bucket: usize,
        header: &RequestHeader,
        request: &S3Request,
    ) -> bool {
        match self.modes.get(bucket) {
            Some(Mode::Open) => true,
            Some(Mode::Sigv4(sigv4)) => {
                let client = sigv4.verify(header);
                client.is_ok_and(|client| allows(client.prefixes(), request))
            }
            Some(Mode::Jwt(jwt)) => {
                let grant = jwt.verify(header);
                grant.is_ok_and(|(grant, _)| allows(&grant.prefixes, request))
            }
            None => false,
        }
    }

    /// True if anyone may read a bucket.
    pub(super) fn is_open(&self, bucket: usize) -> bool {
        matches!(self.modes.get(bucket), Some(Mode::Open))
    }
}

// === impl Mode ===

impl Mode {
    #[inline(never)]
    fn decide(
        &self,
        header: &RequestHeader,
        request: &S3Request,
    ) -> Result<Admitted, Box<Refused>> {
        match self {
            Mode::Open => Ok(Admitted::default()),
            Mode::Sigv4(sigv4) => {
                let client = sigv4.verify(header)?;
                may_ask(client.prefixes(), request)?;
                Ok(Admitted {
                    is_authenticated: true,
                    by_cookie: false,
                    key_id: Some(client.key_id()),
                })
            }
            Mode::Jwt(jwt) => {
                let (grant, by_cookie) = jwt.verify(header)?;
                may_ask(&grant.prefixes, request)?;
                Ok(Admitted {
                    is_authenticated: true,
                    by_cookie,
                    key_id: None,
                })
            }
        }
    }
}

/// Check that the requested key or list begins with an allowed prefix.
fn may_ask(prefixes: &KeyPrefixes, request: &S3Request) -> Result<(), Box<Refused>> {
    match allows(prefixes, request) {
        true => Ok(()),
        false => Err(refused("prefix", Code::AccessDenied.into())),
    }
}

/// True if the requested key or list begins with an allowed prefix.
fn allows(prefixes: &KeyPrefixes, request: &S3Request) -> bool {
    if prefixes.is_all() {
        return true;
    }
    match &request.target {
        Target::Object(key) => {
            // An origin that resolves dot segments would answer with another object.
            let resolved = key.without_dot_segments();
            let resolved = resolved
                .as_ref()
                .is_none_or(|key| prefixes.allow(key.as_str()));
            resolved && prefixes.allow(key.as_str())
        }
        Target::Bucket => match request.operation {
            // Both answer from the configuration, and say nothing about keys.
            Operation::HeadBucket | Operation::GetBucketLocation => true,
            Operation::ListObjects | Operation::ListObjectsV2 => {
                prefixes.allow(request.parameter("prefix").unwrap_or_default())
            }
            _ => false,
        },
        Target::Service => false,
    }
}

/// Count a refusal. `reason` is one of a few names.
fn refused(reason: &'static str, error: S3Error) -> Box<Refused> {
    METRICS.auth_refused.with_label_values(&[reason]).inc();
    Box::new(error.into())
}

/// The path of a request, not decoded, and the host that it names beside `Host`.
fn raw_parts(header: &RequestHeader) -> (Cow<'_, [u8]>, Option<&[u8]>) {
    let path = match super::cache_key::requested_path(header) {
        Cow::Borrowed(path) => Cow::Borrowed(path.as_bytes()),
        Cow::Owned(path) => Cow::Owned(path.into_bytes()),
    };
    let authority = header.uri.authority();
    (
        path,
        authority.map(|authority| authority.as_str().as_bytes()),
    )
}
