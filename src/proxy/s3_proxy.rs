//! The S3 caching proxy: routes and authorises requests, signs those to the origin, and caches.
//!
//! The callbacks of Pingora below only dispatch:
//!
//! - `admission`: routing and authorisation
//! - [`HttpCaching`]: all that concerns the cache
//! - `origin_request`, `origin_response`: the exchange with S3
//! - `negotiation`: the choice between an object and its compressed siblings
//! - `instead`: what a website has in place of errors
//! - `response`, `log`: what the client and the metrics see
//! - `ctx`: the state of a request; `shared`: that of all requests

mod admission;
mod ctx;
mod instead;
mod log;
mod negotiation;
mod origin_request;
mod origin_response;
mod response;
mod shared;

use std::time::{Duration, Instant};

use ::log::debug;
use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use pingora_cache::key::HashBinary;
use pingora_cache::{
    CacheKey, CacheMeta, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable,
};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, RangeType, Session};

use self::admission::{Admission, Decision};
pub use self::ctx::RequestCtx;
use self::ctx::{routed, Subject};
use self::origin_response::origin_error;
pub use self::shared::S3ProxyHttp;
use super::cache_key::cache_key;
use super::errors;
use crate::http::rules::cache_status::CacheResult;

#[async_trait]
impl ProxyHttp for S3ProxyHttp {
    // Boxed, because Pingora moves the context several times.
    type CTX = Box<RequestCtx>;

    fn new_ctx(&self) -> Self::CTX {
        Box::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        // Boxed, because every request would reserve room for what few need.
        match self.admit(session, ctx) {
            Admission::Serve => {}
            rare => {
                if let Some(answered) = Box::pin(self.admit_rare(session, rare, ctx)).await? {
                    return Ok(answered);
                }
            }
        }
        if self
            .caching
            .request_filter(session, &mut ctx.caching)
            .await?
        {
            return Ok(true);
        }
        if let Some(resolved) = self.without_dots(ctx)? {
            let decision = Box::pin(self.resolve_to(session, resolved, ctx)).await?;
            if let Decision::Refuse(refused) = decision {
                return self.refuse_client(session, &refused, ctx).await;
            }
        }
        // Boxed, because few requests come here.
        if ctx.negotiated.is_some() && Box::pin(self.serve_made(session, ctx)).await? {
            return Ok(true);
        }
        ctx.begin_lookup();
        let route = routed(&ctx.route)?;
        let (site, key, version) = (&route.site, route.key()?, route.request.version_id());
        self.caching
            .serve_fast_hit(session, &mut ctx.caching, |_| cache_key(site, key, version))
            .await
    }

    // Stored responses are sent as they are.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn allow_spawning_subrequest(&self, _session: &Session, _ctx: &Self::CTX) -> bool {
        true
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        ctx.begin_lookup();
        let route = routed(&ctx.route)?;
        if let Ok(key) = route.key() {
            let rules = &route.site.settings().rules;
            let rule = rules.of(route.bucket(), key.as_str());
            ctx.caching.set_storing(rule.storing.clone());
            ctx.rule = Some(rule.clone());
        }
        self.caching.request_cache_filter(session, &mut ctx.caching);
        Ok(())
    }

    fn cache_key_callback(&self, _session: &Session, ctx: &mut Self::CTX) -> Result<CacheKey> {
        let route = routed(&ctx.route)?;
        let key = match ctx.listing() {
            Some(listing) => listing.cache_key(&route.site),
            None => route.cache_key()?,
        };
        Ok(self.caching.with_snapshot(key))
    }

    fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        ctx: &mut Self::CTX,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
        if ctx.relayed().is_some() {
            return self.caching.relay_vary_filter(meta, request, &ctx.caching);
        }
        self.caching.cache_vary_filter(meta, request)
    }

    async fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<ForcedFreshness>> {
        if let (Some(route), Some(relayed)) = (&ctx.route, ctx.relayed()) {
            if self.passthrough.permits(route, relayed, meta.headers()) {
                ctx.caching.permit();
            }
        } else if self.has_document(session, ctx, meta.response_header().status) {
            // It was stored before there was a document.
            return Ok(Some(ForcedFreshness::ForceMiss));
        }
        let forced = self
            .caching
            .cache_hit_filter(session, meta, hit, is_fresh, &mut ctx.caching)
            .await;
        ctx.end_lookup();
        Ok(forced)
    }

    async fn proxy_upstream_filter(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<bool> {
        ctx.end_lookup();
        if ctx.relayed().is_some() {
            return self
                .caching
                .proxy_upstream_filter(session, &mut ctx.caching)
                .await;
        }
        let route = routed(&ctx.route)?;
        let is_remembered = !ctx.caching.is_warming()
            && route.request.reads_object()
            && !route.request.passes_the_cache();
        if is_remembered {
            let (key, access) = (route.cache_key()?, route.site.access());
            let remembered = self.negative_cache.get(&key, access);
            let remembered =
                remembered.filter(|(status, _)| !self.leave_sibling(session, ctx, *status));
            if let Some((status, left)) = remembered {
                let route = routed(&ctx.route)?;
                let error = origin_error(status, Some(&route.request));
                ctx.is_negative_hit = true;
                ctx.caching.set_result(CacheResult::Hit);
                // Boxed, because few requests come here.
                let instead = Box::pin(self.instead_of(session, ctx, error.status)).await;
                if let Some(instead) = instead {
                    let answer =
                        self.respond_instead(session, ctx, error.status, instead, Some(left));
                    Box::pin(answer).await?;
                    return Ok(false);
                }
                let to = ctx.recipient();
                errors::respond_remembered(&self.caching, session, &error, left, to).await?;
                return Ok(false);
            }
        }
        if let Some(mut header) = self.caching.stored_head(session, &mut ctx.caching)? {
            self.describe_response(session, &mut header, ctx)?;
            self.caching.answer_head(session, header).await?;
            return Ok(false);
        }
        self.caching
            .proxy_upstream_filter(session, &mut ctx.caching)
            .await
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<RespCacheable> {
        let cacheable = self
            .caching
            .response_cache_filter(session, response, &mut ctx.caching);
        Ok(match cacheable {
            // A website's answer may be another one later.
            RespCacheable::Cacheable(_) if ctx.replaced.is_some() => {
                RespCacheable::Uncacheable(NoCacheReason::OriginNotCache)
            }
            // Waiting requests find the answer in the negative cache; a later one may get another.
            RespCacheable::Uncacheable(_)
                if ctx.relayed().is_none() && self.is_negative(response, ctx) =>
            {
                RespCacheable::Uncacheable(NoCacheReason::Deferred)
            }
            cacheable => cacheable,
        })
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<bool> {
        Ok(self
            .caching
            .cache_not_modified_filter(session, response, &mut ctx.caching))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> RangeType {
        if ctx.replaced.is_some() {
            return RangeType::None;
        }
        // Each part of a set of ranges has the type of the object.
        if let (Some(route), StatusCode::OK) = (&ctx.route, response.status) {
            if let Err(e) = self.guess_type(route, response) {
                debug!("the type of an object is not replaced: {e}");
            }
        }
        self.caching
            .range_header_filter(session, response, &ctx.caching)
    }

    fn should_serve_stale(
        &self,
        _session: &mut Session,
        ctx: &mut Self::CTX,
        error: Option<&Error>,
    ) -> bool {
        self.caching.should_serve_stale(error, &mut ctx.caching)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        if let (Some(route), Some(relayed)) = (&ctx.route, ctx.relayed()) {
            if ctx.caching.asked_origin() {
                let settings = self.settings.get();
                // Boxed, because few requests come here.
                Box::pin(self.passthrough.invalidate(&settings, route, relayed)).await;
            }
        }
        if let Some(status) = self.caching.error_status(session, error, &ctx.caching) {
            if self.has_document(session, ctx, status) {
                // Boxed, because few requests come here.
                let answer = Box::pin(self.fail_with_document(session, ctx, status));
                if let Some(answered) = answer.await {
                    return answered;
                }
            }
        }
        self.caching
            .fail_to_proxy(session, error, &ctx.caching)
            .await
    }

    fn request_summary(&self, session: &Session, _ctx: &Self::CTX) -> String {
        log::summary(session)
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Self::CTX, error: &Error) -> bool {
        self.caching.suppress_error_log(&ctx.caching, error)
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        ctx: &Self::CTX,
        error: &Error,
        context: ProxyWarnLogContext,
    ) -> bool {
        self.caching
            .suppress_proxy_warn_log(&ctx.caching, error, context)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        if let Some(trace) = ctx.caching.trace_mut() {
            trace.ask_origin();
        }
        ctx.asked_origin = Some(Instant::now());
        if let (Some(spans), Some(route)) = (&mut ctx.spans, &ctx.route) {
            spans.ask_origin(&route.site);
        }
        let peer = self.origin_peer(session, ctx).await;
        if let Some(spans) = &mut ctx.spans {
            match &peer {
                Ok(peer) => spans.connect(peer.address().as_inet().copied()),
                Err(e) => spans.failed(e),
            }
        }
        peer
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Self::CTX,
        error: Box<Error>,
    ) -> Box<Error> {
        if let Some(spans) = &mut ctx.spans {
            spans.failed(&error);
        }
        self.repeat_connect(session, peer, ctx, error)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<Error> {
        if let Some(spans) = &mut ctx.spans {
            spans.failed(&error);
        }
        self.repeat_exchange(peer, session, error, ctx, client_reused)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.write_origin_request(session, request, ctx)?;
        if let Some(tracer) = &self.tracer {
            let served = &routed(&ctx.route)?.site;
            let spans = ctx.spans.as_deref_mut();
            tracer.name_in_origin_request(session, request, served, spans)?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Subject::Relayed(relayed) = &mut ctx.subject {
            relayed.note_body(body.as_ref(), end_of_stream);
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.read_origin_response(session, response, ctx).await
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        self.read_origin_body(body, end_of_stream, ctx)?;
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.describe_response(session, response, ctx)
    }

    fn needs_response_body(&self, _session: &Session, _ctx: &Self::CTX) -> bool {
        false
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Self::CTX) {
        self.finish(session, error, ctx);
    }
}
