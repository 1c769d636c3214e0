//! HTTP caching in the callbacks of a proxy.
//!
//! [`HttpCaching`] has a method for each callback of [`ProxyHttp`](pingora_proxy::ProxyHttp) that
//! concerns caching. The proxy calls it there, with the [`CachingCtx`] of the request.
//! `examples/http_cache.rs` is a proxy that does nothing else.
//!
//! The methods below only dispatch:
//!
//! - `phases`: the work, a file a phase
//! - `state`: the state of a request, from which the phases proceed
//! - `shared`: the options, the store and the limits that all requests share
//! - `hit_header`: the header of a hit

mod error_types;
mod hit_header;
#[cfg(test)]
mod hit_tests;
mod phases;
mod shared;
mod state;

use bytes::Bytes;
use http::header::STRICT_TRANSPORT_SECURITY;
use http::StatusCode;
use pingora_cache::key::HashBinary;
use pingora_cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, RespCacheable};
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyWarnLogContext, RangeType, Session};

use crate::http::rules::cache_status::Forwarded;
pub use error_types::{NOT_FILLED, UNUSABLE_NOT_MODIFIED, UNUSABLE_PART};
pub use phases::form::Form;
use phases::parts::is_incomplete;
use phases::relay::relay_variance;
use phases::respond::note_memory;
pub use shared::{CachingOptions, ClientAddress, ErrorBody, HttpCaching, CACHE_NAME};
pub use state::{Ask, CachingCtx, Fetch, Probe, RelayedRequest, ServedStale};

// === impl HttpCaching ===

impl HttpCaching {
    /// For `request_filter`: check the request and determine its kind. `true`: it has been
    /// answered.
    pub async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        self.admit(session, ctx).await
    }

    /// For the end of `request_filter`, if the request has not been answered: answer a plain
    /// request whose response is fresh, was served before, and is in use. `true`: it has been
    /// answered.
    ///
    /// A fast hit skips the phases of Pingora's cache and copies no header, which takes most of
    /// the time of a small hit. The client sees the same response. The callbacks of those phases
    /// are not called, however, and neither are `response_filter` and `response_body_filter`. Use
    /// it only in a proxy that needs no response body, and whose `response_filter` adds the same
    /// to every hit of an entry before it calls [`response_filter`](Self::response_filter).
    ///
    /// `key` returns the key that `cache_key_callback` returns, with or without a
    /// [snapshot](Self::with_snapshot).
    pub async fn serve_fast_hit(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
        key: impl FnOnce(&Session) -> CacheKey,
    ) -> Result<bool> {
        self.fast_hit(session, ctx, key).await
    }

    /// For the end of `request_filter`: answer with another form of a fresh stored response. Conditions
    /// apply to the form; ranges are ignored.
    pub async fn serve_form(
        &self,
        session: &mut Session,
        form: Form,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        self.send_form(session, form, ctx).await
    }

    /// For `request_cache_filter`: look the response up in the cache.
    pub fn request_cache_filter(&self, session: &mut Session, ctx: &mut CachingCtx) {
        self.enable_cache(session, ctx);
    }

    /// For `cache_key_callback`: the key of the request's target URI (RFC 9111 §2), unless the
    /// proxy has its own.
    pub fn cache_key_callback(&self, session: &Session) -> CacheKey {
        self.key_of_target(session)
    }

    /// Note in a key which entries a lookup may find: those of the time of the request. Every key
    /// that `cache_key_callback` returns must have this note.
    pub fn with_snapshot(&self, key: CacheKey) -> CacheKey {
        self.snapshot(key)
    }

    /// For `cache_vary_filter` (RFC 9111 §4.1).
    pub fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
        self.variant_key(meta, request)
    }

    /// For `cache_vary_filter` of a relayed request.
    pub fn relay_vary_filter(
        &self,
        meta: &CacheMeta,
        request: &RequestHeader,
        ctx: &CachingCtx,
    ) -> Option<HashBinary> {
        relay_variance(meta.headers(), request, ctx)
    }

    /// For `cache_hit_filter`: decide if a stored response may be used (RFC 9111 §4), and wait for
    /// its first byte if it has to come from the origin.
    pub async fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut CachingCtx,
    ) -> Option<ForcedFreshness> {
        let forced = self.judge_hit(session, meta, hit, is_fresh, ctx);
        if forced == Some(ForcedFreshness::ForceMiss) || !is_incomplete(hit) {
            return forced;
        }
        let is_served = match forced {
            None => is_fresh,
            Some(forced) => forced == ForcedFreshness::ForceFresh,
        };
        if Box::pin(self.prepare_blocks(session, meta, hit, is_served, ctx)).await {
            return forced;
        }
        ctx.forward(Forwarded::Partial);
        Some(ForcedFreshness::ForceMiss)
    }

    /// For `proxy_upstream_filter`, before
    /// [`proxy_upstream_filter`](Self::proxy_upstream_filter): the header that answers a HEAD
    /// without the origin. Pass it to [`response_filter`](Self::response_filter), and send it by
    /// [`answer_head`](Self::answer_head).
    pub fn stored_head(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<Option<ResponseHeader>> {
        self.look_up_head(session, ctx)
    }

    /// Answer a HEAD.
    pub async fn answer_head(&self, session: &mut Session, header: ResponseHeader) -> Result<()> {
        self.send(session, header, Bytes::new()).await
    }

    /// For `proxy_upstream_filter`: prepare to ask the origin. `false`: the client has been
    /// answered instead.
    pub async fn proxy_upstream_filter(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        self.ask_origin(session, ctx).await
    }

    /// For `upstream_request_filter`, before anything else there.
    pub fn upstream_request_filter(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        self.write_origin_request(session, request, ctx)
    }

    /// For `upstream_request_filter` of a relayed request, before anything else there: restore
    /// the client's own request, and add the condition of the cache.
    pub fn relay_upstream_request_filter(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        self.write_relayed_request(session, request, ctx)
    }

    /// For `upstream_response_filter`, before anything else there: apply the origin's answer to
    /// the stored response.
    ///
    /// # Errors
    /// A 304 that was not requested, or is about another version (RFC 9111 §4.3.4). The error
    /// asks for one more attempt, without conditions.
    pub async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        self.read_origin_response(session, response, ctx).await
    }

    /// For `upstream_response_filter` of a relayed request: apply the origin's answer to the
    /// stored response.
    ///
    /// # Errors
    /// A 304 that does not confirm the stored response. The error asks for one more attempt,
    /// without the condition of the cache.
    pub async fn relay_upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        self.read_relayed_response(session, response, ctx).await
    }

    /// For `response_cache_filter`: decide if the response is stored.
    pub fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> RespCacheable {
        self.decide_storing(session, response, ctx)
    }

    /// For `cache_not_modified_filter` (RFC 9110 §13.2.2).
    pub fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> bool {
        self.is_not_modified(session, response, ctx)
    }

    /// For `range_header_filter` (RFC 9110 §14.2).
    pub fn range_header_filter(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &CachingCtx,
    ) -> RangeType {
        self.apply_range(session, response, ctx)
    }

    /// For the end of `response_filter`: add the fields of this cache.
    pub fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        // Remove these before the header is prepared: listeners and requests share it.
        if self.options.hsts.is_some() {
            response.remove_header(&STRICT_TRANSPORT_SECURITY);
        }
        if let Some(trace) = &ctx.trace {
            trace.remove_from(response);
        }
        self.complete_response(session, response, ctx)?;
        note_memory(session, ctx);
        self.add_own_fields(session, response, ctx)
    }

    /// For `should_serve_stale`. `error` is `None` while another request revalidates. Pingora has
    /// checked that the response permits it.
    pub fn should_serve_stale(&self, error: Option<&Error>, ctx: &mut CachingCtx) -> bool {
        self.serves_stale(error, ctx)
    }

    /// For `fail_to_proxy`: answer with the status of the error, unless the client has left or
    /// has been answered.
    pub async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &CachingCtx,
    ) -> FailToProxy {
        self.answer_error(session, error, ctx).await
    }

    /// For `fail_to_proxy`: the status of the error. `None`: the client has left, or has been
    /// answered.
    pub fn error_status(
        &self,
        session: &Session,
        error: &Error,
        ctx: &CachingCtx,
    ) -> Option<StatusCode> {
        self.status_of(session, error, ctx)
    }

    /// For `fail_to_proxy`: answer an error with a response of the proxy's own.
    pub async fn fail_with(
        &self,
        session: &mut Session,
        header: ResponseHeader,
        body: Bytes,
        ctx: &CachingCtx,
    ) -> FailToProxy {
        self.answer_error_with(session, header, body, ctx).await
    }

    /// For `logging`: cut off a response that must not look complete, drop an entry that cannot
    /// be read, and fetch the whole of which a part was sent.
    pub fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &CachingCtx) {
        self.finish(session, error, ctx);
    }

    /// For `suppress_error_log`: true for events that are no errors, such as a client that leaves a
    /// hit.
    pub fn suppress_error_log(&self, ctx: &CachingCtx, error: &Error) -> bool {
        self.is_no_error(ctx, error)
    }

    /// For `suppress_proxy_warn_log`: true for errors whose frequency clients decide, and which
    /// are counted. They go to the debug log.
    pub fn suppress_proxy_warn_log(
        &self,
        ctx: &CachingCtx,
        error: &Error,
        context: ProxyWarnLogContext,
    ) -> bool {
        self.is_counted_only(ctx, error, context)
    }
}
