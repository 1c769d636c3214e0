//! The request: its validity and its kind.

use std::time::SystemTime;

use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{Method, StatusCode, Version};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::{
    Ask, CachingCtx, DownloadFill, FastPath, Fetch, Initiator, Probe,
};
use crate::http::range_fill::FillGuard;
use crate::http::remainder::RemainderRequest;
use crate::http::request_body::has_body;
use crate::http::rules::cache_status::Forwarded;
use crate::http::rules::request::{
    end_at_this_hop, local_response, strip_to_target, FieldKinds, RequestKind,
};
use crate::http::warming::Warming;

/// Outcome of [`HttpCaching::begin`] for a request.
enum Begun {
    /// The request goes on, and its kind is known.
    Classified,
    /// The cache answers with this status.
    Answer(StatusCode),
    /// The request has a body if its end has not been received, which takes time to tell.
    MayHaveBody,
}

impl HttpCaching {
    pub(in crate::http::caching) async fn admit(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        match self.begin(session, ctx)? {
            Begun::Classified => Ok(false),
            Begun::Answer(status) => Box::pin(self.respond_with_status(session, status, ctx)).await,
            Begun::MayHaveBody => {
                let has_body = has_body(session).await;
                self.classify(session, ctx, has_body);
                Ok(false)
            }
        }
    }

    /// The part of [`admit`](Self::admit) that does not wait.
    fn begin(&self, session: &mut Session, ctx: &mut CachingCtx) -> Result<Begun> {
        if let Some(status) = local_response(session.req_header_mut())? {
            return Ok(Begun::Answer(status));
        }
        if session.req_header().version <= Version::HTTP_10 {
            // RFC 9110 §15.2
            session.as_downstream_mut().set_ignore_info_resp(true);
        }
        // A client that reads slowly must not slow the fill that others follow.
        session.set_proxy_tasks_enabled(true);
        // A client may have its response, and send its next request, before the fill behind it
        // is finished. Otherwise Pingora would cut the fill off.
        session.set_pipelining_enabled(true);
        if session.subrequest_ctx.is_some() {
            begin_subrequest(session, ctx)?;
        }
        if self.options.request_directives {
            ctx.request.set_directives(&session.req_header().headers);
        }
        ctx.request.arrived = Some(SystemTime::now());
        if session.req_header().method == Method::GET {
            ctx.request.upgrades = self.upgrades(session.req_header());
        }
        if self.uses_cache(ctx) && !session.is_body_empty() {
            return Ok(Begun::MayHaveBody);
        }
        self.classify(session, ctx, false);
        Ok(Begun::Classified)
    }

    /// True if a stored response may answer the request.
    fn uses_cache(&self, ctx: &CachingCtx) -> bool {
        self.store.is_some()
            && !ctx.request.initiator.is_past_cache()
            && ctx.request.bypass.is_none()
    }

    /// Determine the kind of the request.
    fn classify(&self, session: &mut Session, ctx: &mut CachingCtx, has_body: bool) {
        if self.uses_cache(ctx) {
            let heeds_directives = self.options.request_directives;
            let mut has = FieldKinds::of(session.req_header(), heeds_directives);
            if has.connection && matches!(session.req_header().method, Method::GET | Method::HEAD) {
                end_at_this_hop(session.req_header_mut(), ctx.request.upgrades);
                has = FieldKinds::of(session.req_header(), heeds_directives);
            }
            ctx.request.kind = RequestKind::of(session.req_header(), has_body, has.condition);
            ctx.narrow_relayed(session.req_header());
            if ctx.request.fast_path == FastPath::Undecided
                && ctx.request.kind == RequestKind::Whole
                && !has.condition
                && !has.directive
                && session.subrequest_ctx.is_none()
            {
                ctx.request.fast_path = FastPath::Allowed;
            }
        }
        if ctx.request.kind == RequestKind::Uncached {
            let cached = matches!(session.req_header().method, Method::GET | Method::HEAD);
            ctx.forward(if cached {
                Forwarded::Bypass
            } else {
                Forwarded::Method
            });
        }
    }

    /// Answer a request with a status and no body. Always `true`, for `request_filter`.
    async fn respond_with_status(
        &self,
        session: &mut Session,
        status: StatusCode,
        ctx: &CachingCtx,
    ) -> Result<bool> {
        let mut header = ResponseHeader::build(status, Some(2))?;
        header.insert_header(CONTENT_LENGTH, 0)?;
        if status == StatusCode::BAD_REQUEST {
            session.set_keepalive(None);
        }
        self.respond(session, header, ctx).await?;
        Ok(true)
    }

    /// True if the client offers to switch to WebSocket. Offers of other protocols are not
    /// forwarded; a server may ignore them (RFC 9110 §7.8).
    fn upgrades(&self, request: &RequestHeader) -> bool {
        self.options.request_fields.contains(&UPGRADE)
            && request
                .headers
                .get(UPGRADE)
                .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
    }
}

/// Note which part of the proxy makes a subrequest, and turn the client's request into it.
fn begin_subrequest(session: &mut Session, ctx: &mut CachingCtx) -> Result<()> {
    let Some(subrequest) = session.subrequest_ctx.as_mut() else {
        return Ok(());
    };
    let request = session.downstream_session.req_header_mut();
    let Some(user) = subrequest.user_ctx_mut() else {
        // Pingora's own subrequests, which revalidate, have no context.
        ctx.request.initiator = Initiator::Background { _fill: None };
        strip_to_target(request, Method::GET);
        return Ok(());
    };
    if let Some(guard) = user.downcast_mut::<Option<FillGuard>>() {
        let guard = guard.take();
        ctx.request.initiator = Initiator::Background { _fill: guard };
        strip_to_target(request, Method::GET);
    } else if let Some(DownloadFill(for_parts)) = user.downcast_ref() {
        ctx.request.initiator = Initiator::Download(for_parts.clone());
        strip_to_target(request, Method::GET);
    } else if let Some(Warming(warming)) = user.downcast_ref() {
        ctx.request.initiator = Initiator::Warming(warming.clone());
        strip_to_target(request, Method::GET);
    } else if let Some(remainder) = user.downcast_ref::<RemainderRequest>() {
        ctx.request.initiator = Initiator::PastCache;
        remainder.prepare(request)?;
    } else if user.is::<Probe>() {
        ctx.request.initiator = Initiator::PastCache;
        strip_to_target(request, Method::HEAD);
    } else if user.is::<Fetch>() {
        ctx.request.initiator = Initiator::PastCache;
        strip_to_target(request, Method::GET);
    } else if user.is::<Ask>() {
        ctx.request.initiator = Initiator::Proxy;
    }
    Ok(())
}
