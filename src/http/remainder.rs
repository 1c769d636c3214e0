//! The remainder of a response, or any part of it, fetched by a subrequest.
//!
//! A client that follows a fill may have to leave it when the disk has no room. It has received the
//! beginning of one version, so the remainder must be of the same version: `If-Match` asks for it,
//! and the `ETag` of the response, which has to be strong, confirms it. The same is true of the
//! blocks of an entry.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, ETAG, IF_MATCH, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora_core::protocols::http::subrequest::server::SubrequestHandle;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::ServerSession as HttpSession;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::{PreparedSubrequest, Session, SubrequestSpawner};

use super::rules::etag::EntityTag;
use super::rules::range::parse_content_range;
use super::rules::request::strip_to_target;
use crate::cache::{PartSource, Remainder, OUTDATED};

/// The error of a remainder that the origin does not send.
pub const NO_REMAINDER: ErrorType = ErrorType::new("NoRemainder");

/// The context of a subrequest for the remainder of a response.
pub(super) struct RemainderRequest {
    range: Arc<OnceLock<Range<u64>>>,
    etag: HeaderValue,
}

/// The remainder of a response.
pub(super) struct FetchedRemainder {
    /// Set when the remainder is requested.
    range: Arc<OnceLock<Range<u64>>>,
    etag: HeaderValue,
    /// The length of the whole, if it is known.
    whole_len: Option<u64>,
    prepared: Option<PreparedSubrequest>,
    handle: SubrequestHandle,
    /// Bytes that have not been received yet.
    left: u64,
}

/// Requests for parts of a stored response.
pub(super) struct OriginParts {
    requests: Arc<PartRequests>,
    etag: HeaderValue,
    whole_len: u64,
}

/// Makes subrequests like a client's request, however long after it.
pub(super) struct PartRequests {
    pub spawner: SubrequestSpawner,
    /// A copy of the session that has read the request, so that it can be copied again. It is never
    /// run.
    template: PreparedSubrequest,
}

// === impl RemainderRequest ===

impl RemainderRequest {
    /// Turn the client's request into one for the remainder of its response.
    pub(super) fn prepare(&self, request: &mut RequestHeader) -> Result<()> {
        strip_to_target(request, Method::GET);
        let range = self.range.get().cloned().unwrap_or(0..u64::MAX);
        let value = match range.end {
            u64::MAX => format!("bytes={}-", range.start),
            end => format!("bytes={}-{}", range.start, end.saturating_sub(1)),
        };
        request.insert_header(RANGE, value)?;
        request.insert_header(IF_MATCH, self.etag.clone())
    }
}

// === impl FetchedRemainder ===

impl FetchedRemainder {
    /// Prepare to fetch the remainder of a response to `session` with the header `stored`. Nothing
    /// is requested yet. `None` if the origin does not serve ranges, or could not confirm the
    /// version.
    pub(super) fn new(
        session: &Session,
        spawner: &SubrequestSpawner,
        stored: &HeaderMap,
        whole_len: Option<u64>,
    ) -> Option<FetchedRemainder> {
        let etag = stored.get(ETAG).filter(|_| offers_remainder(stored))?;
        let remainder = Self::prepare(spawner, session.as_ref(), etag, whole_len);
        Some(remainder)
    }

    fn prepare(
        spawner: &SubrequestSpawner,
        session: &HttpSession,
        etag: &HeaderValue,
        whole_len: Option<u64>,
    ) -> FetchedRemainder {
        let range = Arc::new(OnceLock::new());
        let request = RemainderRequest {
            range: range.clone(),
            etag: etag.clone(),
        };
        let ctx = SubrequestCtx::builder().user_ctx(Box::new(request)).build();
        let (prepared, handle) = spawner.create_subrequest(session, ctx);
        FetchedRemainder {
            range,
            etag: etag.clone(),
            whole_len,
            prepared: Some(prepared),
            handle,
            left: 0,
        }
    }

    async fn next_task(&mut self) -> Result<HttpTask> {
        let task = self.handle.rx.recv().await;
        task.ok_or_else(|| no_remainder("the request for the remainder ended early"))
    }

    /// The length of the part.
    ///
    /// # Errors
    /// It is not the requested part, or not of the same version.
    fn check(&self, response: &ResponseHeader) -> Result<u64> {
        match response.status {
            StatusCode::PARTIAL_CONTENT => {}
            // RFC 9110 §13.1.1, §14.2
            StatusCode::OK
            | StatusCode::NOT_FOUND
            | StatusCode::GONE
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(outdated("the origin does not have the stored version"));
            }
            _ => return Err(no_remainder("the origin did not send a part")),
        }
        let tag = |value: &HeaderValue| EntityTag::parse(value.as_bytes()).is_some();
        let is_same = response
            .headers
            .get(ETAG)
            .filter(|etag| tag(etag))
            .is_some_and(|etag| etag == self.etag);
        if !is_same {
            return Err(outdated("the origin has another version"));
        }
        let part = response.headers.get(CONTENT_RANGE);
        let part = part.and_then(|part| parse_content_range(part.as_bytes()));
        let part = part.and_then(|part| Some((part.range?, part.complete_length?)));
        let (Some((part, whole_len)), Some(asked)) = (part, self.range.get()) else {
            return Err(no_remainder(
                "the origin did not state the range of its part",
            ));
        };
        let end = asked.end.min(whole_len);
        if part != (asked.start..end) || self.whole_len.is_some_and(|len| len != whole_len) {
            return Err(no_remainder("the origin sent another part"));
        }
        Ok(part.end - part.start)
    }
}

#[async_trait]
impl Remainder for FetchedRemainder {
    async fn begin(&mut self, range: Range<u64>) -> Result<()> {
        self.range.get_or_init(|| range);
        if let Some(prepared) = self.prepared.take() {
            tokio::spawn(prepared.run());
        }
        loop {
            match self.next_task().await? {
                HttpTask::Header(response, _) if response.status.is_informational() => {}
                HttpTask::Header(response, _) => {
                    self.left = self.check(&response)?;
                    return Ok(());
                }
                HttpTask::Failed(e) => return Err(e),
                _ => {
                    return Err(no_remainder(
                        "the response with the remainder has no header",
                    ))
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.left > 0 {
            match self.next_task().await? {
                HttpTask::Body(Some(bytes), _) if !bytes.is_empty() => {
                    let left = self.left.checked_sub(bytes.len() as u64);
                    self.left = left.ok_or_else(|| no_remainder("the remainder is too long"))?;
                    return Ok(Some(bytes));
                }
                HttpTask::Body(_, false) => {}
                HttpTask::Failed(e) => return Err(e),
                _ => return Err(no_remainder("the remainder is too short")),
            }
        }
        Ok(None)
    }
}

// === impl PartRequests ===

impl PartRequests {
    /// The session gives its own means away.
    pub(super) async fn take(session: &mut Session) -> Option<Arc<PartRequests>> {
        let spawner = session.subrequest_spawner.take()?;
        let ctx = SubrequestCtx::builder().build();
        let (mut template, _) = spawner.create_subrequest(session.as_ref(), ctx);
        let read = template.session_mut().read_request().await;
        read.ok().filter(|read| *read)?;
        Some(Arc::new(PartRequests { spawner, template }))
    }
}

// === impl OriginParts ===

impl OriginParts {
    /// Requests for parts of the response with the header `stored`. `None` if the origin does not
    /// serve ranges, or could not confirm the version.
    pub(super) fn new(
        requests: Arc<PartRequests>,
        stored: &HeaderMap,
        whole_len: u64,
    ) -> Option<OriginParts> {
        let etag = stored.get(ETAG).filter(|_| offers_remainder(stored))?;
        Some(OriginParts {
            requests,
            etag: etag.clone(),
            whole_len,
        })
    }
}

impl PartSource for OriginParts {
    fn request(&self) -> Box<dyn Remainder> {
        let PartRequests { spawner, template } = &*self.requests;
        let whole_len = Some(self.whole_len);
        let request = FetchedRemainder::prepare(spawner, template.session(), &self.etag, whole_len);
        Box::new(request)
    }
}

fn outdated(why: &'static str) -> Box<Error> {
    Error::explain(OUTDATED, why).into_up()
}

fn no_remainder(why: &'static str) -> Box<Error> {
    Error::explain(NO_REMAINDER, why).into_up()
}

/// True if the remainder of a response with this header can be fetched: the origin serves ranges,
/// and can confirm the version.
pub(super) fn offers_remainder(stored: &HeaderMap) -> bool {
    let tag = stored
        .get(ETAG)
        .and_then(|tag| EntityTag::parse(tag.as_bytes()));
    tag.is_some_and(|tag| tag.is_strong()) && accepts_ranges(stored)
}

/// True if the origin serves ranges of bytes (RFC 9110 §14.3).
fn accepts_ranges(response: &HeaderMap) -> bool {
    let units = response.get(ACCEPT_RANGES).map(HeaderValue::as_bytes);
    units.is_some_and(|units| units.trim_ascii().eq_ignore_ascii_case(b"bytes"))
}
