//! Errors, and the end of a request.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use log::{debug, warn};
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, ProxyWarnLogContext, Session};

use crate::cache::DESERTED;
use crate::cache::{NO_ROOM, TOO_MANY_FILLS};
use crate::http::caching::error_types::NOT_FILLED;
use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::CachingCtx;

impl HttpCaching {
    pub(in crate::http::caching) fn serves_stale(
        &self,
        error: Option<&Error>,
        ctx: &mut CachingCtx,
    ) -> bool {
        if ctx.request.relay.is_some() {
            // Only the origin decides who may have it.
            return false;
        }
        if ctx.state.found().is_some_and(|found| found.is_partial) {
            // The origin, which fails, would have to send the rest.
            return false;
        }
        if ctx.is_warming() {
            // It tells how the origin has failed.
            return false;
        }
        let Some(error) = error else {
            return !ctx.request.initiator.is_background();
        };
        match error.etype() {
            // RFC 5861 §4
            ErrorType::HTTPStatus(status) => {
                ctx.state.begin_exchange().status = StatusCode::from_u16(*status).ok();
                matches!(status, 500 | 502 | 503 | 504)
            }
            _ => *error.esource() == ErrorSource::Upstream,
        }
    }

    pub(in crate::http::caching) async fn answer_error(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &CachingCtx,
    ) -> FailToProxy {
        let status = error_status(error, ctx);
        if let Some(status) = status {
            // Boxed, because few requests come here.
            if let Err(e) = Box::pin(self.respond_error(session, status, ctx)).await {
                debug!("an error response was not sent: {e}");
            }
        }
        FailToProxy {
            error_code: status.unwrap_or(0),
            can_reuse_downstream: false,
        }
    }

    pub(in crate::http::caching) fn status_of(
        &self,
        session: &Session,
        error: &Error,
        ctx: &CachingCtx,
    ) -> Option<StatusCode> {
        let is_answered = session
            .response_written()
            .is_some_and(|response| !response.status.is_informational());
        let status = error_status(error, ctx).filter(|_| !is_answered)?;
        StatusCode::from_u16(status).ok()
    }

    pub(in crate::http::caching) async fn answer_error_with(
        &self,
        session: &mut Session,
        mut header: ResponseHeader,
        mut body: Bytes,
        ctx: &CachingCtx,
    ) -> FailToProxy {
        let error_code = header.status.as_u16();
        let sent = async {
            self.add_own_fields(session, &mut header, ctx)?;
            if session.req_header().method == Method::HEAD {
                body.clear();
            }
            let downstream = session.as_downstream_mut();
            downstream.write_error_response(header, body).await
        };
        // Boxed, because few requests come here.
        if let Err(e) = Box::pin(sent).await {
            debug!("an error response was not sent: {e}");
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    async fn respond_error(
        &self,
        session: &mut Session,
        status: u16,
        ctx: &CachingCtx,
    ) -> Result<()> {
        let mut header = ServerSession::generate_error(status);
        self.add_own_fields(session, &mut header, ctx)?;
        let mut body = match self.options.error_body {
            Some(body) => body(session.req_header(), &mut header)?,
            None => Bytes::new(),
        };
        if session.req_header().method == Method::HEAD {
            body.clear();
        }
        let downstream = session.as_downstream_mut();
        downstream.write_error_response(header, body).await
    }

    pub(in crate::http::caching) fn finish(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        ctx: &CachingCtx,
    ) {
        let exchange = ctx.state.exchange();
        if let Some(part) = exchange.and_then(|exchange| exchange.fill_candidate.as_ref()) {
            self.start_range_fill(session, part, ctx);
        }
        if let Some(download) = ctx.request.download() {
            self.note_delivered(session, error, download);
        }
        if let Some(warming) = ctx.request.initiator.warming() {
            warming.set_end(session, ctx.origin_status(), error);
        }
        let Some(error) = error else { return };
        // The end of the connection would tell the client that the body is complete.
        let close_delimited = session.response_written().is_some_and(|response| {
            !response.headers.contains_key(CONTENT_LENGTH)
                && !response.headers.contains_key(TRANSFER_ENCODING)
        });
        if close_delimited {
            session.as_downstream_mut().abort_response();
        }
        // The file of the hit is too short, or unreadable.
        let damaged = matches!(error.etype(), ErrorType::FileReadError) && !ctx.asked_origin();
        let key = session.cache.maybe_cache_key().filter(|_| damaged);
        if let (Some(key), Some(store)) = (key, &self.store) {
            warn!("the cache entry of {key:?} is dropped: {error}");
            store.cache.drop_entry(key, &error.to_string());
        }
    }

    pub(in crate::http::caching) fn is_no_error(&self, ctx: &CachingCtx, error: &Error) -> bool {
        let client_left = *error.esource() == ErrorSource::Downstream
            && matches!(
                error.etype(),
                ErrorType::WriteError | ErrorType::ConnectionClosed | ErrorType::H2Error
            );
        let precondition_failed =
            *error.etype() == ErrorType::HTTPStatus(StatusCode::PRECONDITION_FAILED.as_u16());
        let is_local = !ctx.asked_origin();
        [NOT_FILLED, DESERTED].contains(error.etype())
            || precondition_failed
            || ((is_local || ctx.request.initiator.is_past_cache()) && client_left)
    }

    pub(in crate::http::caching) fn is_counted_only(
        &self,
        ctx: &CachingCtx,
        error: &Error,
        context: ProxyWarnLogContext,
    ) -> bool {
        if let Some(warming) = ctx.request.initiator.warming() {
            warming.note_warning(error, context);
        }
        let suppressed = match context {
            ProxyWarnLogContext::DownstreamCache => true,
            ProxyWarnLogContext::CacheAdmission => {
                [NO_ROOM, TOO_MANY_FILLS].contains(error.etype())
            }
            _ => false,
        };
        if suppressed {
            debug!("{context:?}: {error}");
        }
        suppressed
    }
}

/// The status that answers an error. `None`: the client has left.
fn error_status(error: &Error, ctx: &CachingCtx) -> Option<u16> {
    let found = ctx.state.found();
    let must_revalidate = found.is_some_and(|found| found.must_revalidate);
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(status) | ErrorType::CustomCode(_, status), _) => Some(*status),
        // RFC 9111 §5.2.2.2
        (_, ErrorSource::Upstream) if must_revalidate => Some(504),
        (ErrorType::ConnectTimedout | ErrorType::ReadTimedout, ErrorSource::Upstream) => Some(504),
        (_, ErrorSource::Upstream) => Some(502),
        (
            ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error,
            ErrorSource::Downstream,
        ) => None,
        (_, ErrorSource::Downstream) => Some(400),
        _ => Some(500),
    }
}

/// The 412 for a precondition that is false for the origin's response.
pub(super) fn precondition_failed() -> Box<Error> {
    let status = ErrorType::HTTPStatus(StatusCode::PRECONDITION_FAILED.as_u16());
    let why = "a precondition is false for the response of the origin";
    Error::explain(status, why).into_down()
}
