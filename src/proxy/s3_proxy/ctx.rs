//! The state of one request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use pingora_core::{Error, ErrorType, Result};

use crate::http::rules::accept_encoding::Coding;
use crate::http::CachingCtx;
use crate::proxy::auth::Admitted;
use crate::proxy::buckets::Listing;
use crate::proxy::errors::Recipient;
use crate::proxy::limits::rates::Charged;
use crate::proxy::passthrough::Relayed;
use crate::proxy::resolve::Attempts;
use crate::proxy::route::Route;
use crate::proxy::rules::Rule;
use crate::proxy::traces::Spans;
use crate::s3::ObjectKey;

/// The context of a request.
#[derive(Default)]
pub struct RequestCtx {
    pub(super) caching: CachingCtx,
    /// The time when the request began.
    pub(super) began: Option<Instant>,
    pub(super) route: Option<Route>,
    pub(super) admitted: Admitted,
    pub(super) subject: Subject,
    /// The rule for the object. Not set for a fast hit.
    pub(super) rule: Option<Arc<Rule>>,
    pub(super) attempts: Attempts,
    /// The number of times the request to the origin was repeated.
    pub(super) retries: u8,
    /// The next request to the origin waits for a pause.
    pub(super) pauses: bool,
    /// Set if the request is traced.
    pub(super) spans: Option<Box<Spans>>,
    /// The time when the latest request to the origin began.
    pub(super) asked_origin: Option<Instant>,
    /// The origin has begun to answer the latest request.
    pub(super) has_answer: bool,
    /// The clock was corrected for this request.
    pub(super) clock_corrected: bool,
    /// The body of the answer may be an error document.
    pub(super) may_be_fault: bool,
    pub(super) body: Body,
    /// The status of the origin's error that a website has another answer for.
    pub(super) replaced: Option<StatusCode>,
    /// The folder that is requested as a page: the beginning of its keys.
    pub(super) folder: Option<Box<str>>,
    /// The choice of a compressed form. Boxed, because few requests have one.
    pub(super) negotiated: Option<Box<Negotiated>>,
    /// The number of purges when the origin was asked.
    pub(super) purges: u64,
    /// The negative cache has answered.
    pub(super) is_negative_hit: bool,
    /// The client, if its rate is limited.
    pub(super) client: Option<IpAddr>,
    /// The request as its client is charged for it.
    pub(super) charged: Option<Charged>,
}

/// A request for an object that may have siblings.
pub(super) struct Negotiated {
    /// The key that the client has asked for.
    pub(super) original: ObjectKey,
    /// The form that it gets; `None`: the object itself.
    pub(super) coding: Option<Coding>,
}

/// The thing a request is about.
#[derive(Default)]
pub(super) enum Subject {
    /// An object, or a bucket as such.
    #[default]
    Object,
    /// A list of objects.
    List(Box<Listing>),
    /// Anything in a bucket with `auth: passthrough`. S3 decides on the request.
    Relayed(Box<Relayed>),
}

/// The body of the origin's answer, as clients get it.
#[derive(Default)]
pub(super) enum Body {
    #[default]
    Kept,
    /// The document of the proxy's own error takes its place. Taken when it is sent.
    Replaced(Option<Bytes>),
}

// === impl RequestCtx ===

impl RequestCtx {
    /// The client, for an answer of the proxy's own.
    pub(super) fn recipient(&self) -> Recipient<'_> {
        Recipient {
            admitted: &self.admitted,
            ctx: &self.caching,
        }
    }

    /// The list that the client asks for.
    pub(super) fn listing(&self) -> Option<&Listing> {
        match &self.subject {
            Subject::List(listing) => Some(listing),
            _ => None,
        }
    }

    /// The request, if S3 decides on it.
    pub(super) fn relayed(&self) -> Option<&Relayed> {
        match &self.subject {
            Subject::Relayed(relayed) => Some(relayed),
            _ => None,
        }
    }

    /// Note the begin of the lookup, if the request is traced.
    pub(super) fn begin_lookup(&mut self) {
        if let Some(spans) = &mut self.spans {
            spans.begin_lookup();
        }
    }

    /// Note the end of the lookup, if the request is traced.
    pub(super) fn end_lookup(&mut self) {
        if let Some(spans) = &mut self.spans {
            spans.end_lookup();
        }
    }

    /// The name of the bucket, for a log.
    pub(super) fn bucket(&self) -> &str {
        self.route.as_ref().map_or("?", |route| route.site.bucket())
    }
}

/// The route of a request. Every request that reaches the cache or the origin has one.
pub(super) fn routed(route: &Option<Route>) -> Result<&Route> {
    route
        .as_ref()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "the request has no route"))
}
