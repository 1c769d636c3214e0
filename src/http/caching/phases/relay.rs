//! Relayed requests, which go to the origin as the client made them: it decides on each of them.
//!
//! A client gets a stored response only after the origin has confirmed it in the answer to this
//! client's own request, to which `If-None-Match` is added, or by a permission that the proxy
//! remembers.

use std::time::SystemTime;

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, DATE, ETAG, HOST, IF_NONE_MATCH, LAST_MODIFIED,
    RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, Method, StatusCode};
use log::warn;
use pingora_cache::key::HashBinary;
use pingora_cache::{
    CacheMeta, CachePhase, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable,
    VarianceBuilder,
};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::parts::{has_part, HasPart};
use super::respond::frame_for_http_1_0;
use crate::http::caching::error_types::UNUSABLE_NOT_MODIFIED;
use crate::http::caching::hit_header::{CACHE_STATUS, X_CACHE};
use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::{Attempt, CachingCtx, Validation};
use crate::http::rules::cache_status::{CacheResult, CacheStatus, Forwarded};
use crate::http::rules::conditional::validators_match;
use crate::http::rules::etag::EntityTag;
use crate::http::rules::fields::{connection_fields, RequestFields};
use crate::http::rules::request::{origin_form, RequestKind, CONDITIONS};
use crate::http::rules::target::Target;
use crate::http::rules::vary::{is_readable, variance, Variance};

/// All fields reach the origin. It decides each time who may have a response, so `Authorization`
/// selects no variant.
const REACHING: RequestFields = RequestFields::AllBut(&[AUTHORIZATION]);

// === impl CachingCtx ===

impl CachingCtx {
    /// Adjust the kind of a relayed request to what the origin will be asked for.
    pub(super) fn narrow_relayed(&mut self, request: &RequestHeader) {
        let Some(relay) = &self.request.relay else {
            return;
        };
        if relay.signed.contains(&RANGE) && request.headers.contains_key(RANGE) {
            // The signature rules out a request for the whole.
            self.request.kind = RequestKind::Part;
        }
    }

    /// Note the key under which the whole would be stored. Call it before the cache is disabled
    /// for a part.
    pub(super) fn note_relayed_key(&mut self, session: &Session) {
        let relay = self.request.relay.as_mut();
        if let Some(relay) = relay.filter(|relay| relay.fills && relay.stores) {
            relay.key = session.cache.maybe_cache_key().cloned();
        }
    }
}

// === impl HttpCaching ===

impl HttpCaching {
    /// Decide on a stored response: the origin confirms it before the client gets a byte of it.
    pub(super) fn confirm_hit(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &HitHandler,
        is_fresh: bool,
        ctx: &mut CachingCtx,
    ) -> Option<ForcedFreshness> {
        let request = session.req_header();
        let relay = ctx.request.relay.as_deref()?;
        let max_wait = self.options.range_fill.max_wait;
        if ctx.request.kind == RequestKind::Part
            && has_part(hit, meta.headers(), request, max_wait) != HasPart::Yes
        {
            ctx.forward(Forwarded::Partial);
            return Some(ForcedFreshness::ForceMiss);
        }
        let lacks = |name| !meta.headers().contains_key(name);
        let lacks_mark =
            ctx.request.kind != RequestKind::Part && relay.mark.as_ref().is_some_and(lacks);
        if lacks_mark
            || strong_tag(meta.headers()).is_none()
            || !is_readable(meta.headers(), &request.headers, REACHING)
        {
            ctx.forward(Forwarded::VaryMiss);
            return Some(ForcedFreshness::ForceMiss);
        }
        if relay.is_permitted && is_fresh {
            return None;
        }
        ctx.forward(if is_fresh {
            Forwarded::Request
        } else {
            Forwarded::Stale
        });
        // The origin confirms the response for each client separately.
        session.cache.set_cache_lock(None, None);
        Some(ForcedFreshness::ForceExpired)
    }

    pub(in crate::http::caching) fn write_relayed_request(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        ctx.check_validation()?;
        let exchange = ctx.state.begin_exchange();
        let asked = session.req_header();
        let mut tag = None;
        if session.cache.enabled() {
            // Pingora has turned the request into a GET for the whole, with its own conditions.
            tag = request.headers.get(IF_NONE_MATCH).cloned();
            tag = tag.filter(|_| exchange.validation == Validation::Allowed);
            request.set_method(asked.method.clone());
            let relay = ctx.request.relay.as_deref();
            for name in &CONDITIONS {
                request.remove_header(name);
                let is_kept = relay.is_some_and(|relay| relay.signed.contains(name))
                    || (*name == RANGE && ctx.request.kind == RequestKind::Part);
                if is_kept {
                    for value in asked.headers.get_all(name) {
                        request.append_header(name.clone(), value)?;
                    }
                }
            }
            if let Some(tag) = &tag {
                request.insert_header(IF_NONE_MATCH, tag)?;
            }
        }
        if let Some(path) = origin_form(request.raw_path()) {
            request.set_raw_path(&path)?;
            request.insert_header(HOST, Target::of(asked).authority)?;
        }
        exchange.attempt = Some(Attempt {
            requested: SystemTime::now(),
            conditional: tag.is_some(),
            ranged: request.headers.contains_key(RANGE),
        });
        Ok(())
    }

    pub(in crate::http::caching) async fn read_relayed_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        let status = response.status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let why = "the origin switches to a protocol that was not requested";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        if status.is_informational() {
            return Ok(());
        }
        for name in connection_fields(&response.headers) {
            if ![CACHE_CONTROL, VARY].contains(&name) {
                response.remove_header(&name);
            }
        }
        ctx.state.begin_exchange().status = Some(status);
        if status == StatusCode::PARTIAL_CONTENT && strong_tag(&response.headers).is_some() {
            let key = ctx
                .request
                .relay
                .as_mut()
                .and_then(|relay| relay.key.take());
            let candidate = key.and_then(|key| self.fill_candidate(session, key, response, ctx));
            ctx.state.begin_exchange().fill_candidate = candidate;
        }
        if !session.cache.enabled() {
            return Ok(());
        }
        if !response.headers.contains_key(CONTENT_LENGTH) {
            // Pingora would cut off a body that turns out too large; the cache does not.
            session.cache.set_max_file_size_bytes(usize::MAX);
        }
        let stored = session.cache.maybe_cache_meta();
        let stored = stored.filter(|_| session.cache.phase() == CachePhase::Stale);
        if status == StatusCode::NOT_MODIFIED {
            if !response.headers.contains_key(DATE) {
                response.insert_header(DATE, httpdate::fmt_http_date(SystemTime::now()))?;
            }
            let conditional = ctx
                .state
                .attempt()
                .is_some_and(|attempt| attempt.conditional);
            let confirms = conditional
                && stored.is_some_and(|stored| is_same(response, stored.response_header()));
            if !confirms {
                let why = "the origin's 304 is about another version";
                let mut error = Error::explain(UNUSABLE_NOT_MODIFIED, why).into_up();
                // Without a retry, Pingora would serve the stored response.
                error.set_retry(true);
                ctx.state.begin_exchange().withdraw_conditions();
                return Err(error);
            }
            // The cookies are for this client, and not part of the stored response.
            let cookies = response.headers.get_all(SET_COOKIE).iter().cloned();
            ctx.state.begin_exchange().cookies = cookies.collect();
            response.remove_header(&SET_COOKIE);
            return Ok(());
        }
        let Some(stored) = stored else { return Ok(()) };
        let is_gone = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
            // A complete response replaces the stored one.
            || (status.is_success()
                && ctx.request.kind != RequestKind::Whole
                && !is_same(response, stored.response_header()));
        if let (true, Some(store)) = (is_gone, &self.store) {
            let key = session.cache.cache_key().clone();
            if let Err(e) = store.cache.purge_key(&key).await {
                warn!("a stored response that the origin no longer has was not removed: {e}");
            }
        }
        Ok(())
    }

    /// Store the whole, if the origin can confirm it later.
    pub(super) fn decide_storing_relayed(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> RespCacheable {
        let now = SystemTime::now();
        let confirms = ctx.origin_status() == Some(StatusCode::NOT_MODIFIED);
        let is_stored = match confirms {
            // Storing a fresh response again would cost a write for each hit.
            true => {
                let stored = session.cache.maybe_cache_meta();
                stored.is_some_and(|stored| !stored.is_fresh(now))
            }
            false => {
                ctx.request.kind == RequestKind::Whole
                    && response.status == StatusCode::OK
                    && session.req_header().method == Method::GET
                    && strong_tag(&response.headers).is_some()
            }
        };
        let meta = match is_stored && ctx.request.may_be_stored() {
            true => self.to_store(session, response, ctx),
            false => None,
        };
        match meta {
            Some(mut meta) => {
                let mark = ctx
                    .request
                    .relay
                    .as_ref()
                    .and_then(|relay| relay.mark.clone());
                if let Some(mark) = mark.filter(|_| !confirms) {
                    let header = meta.response_header_mut();
                    if let Err(e) = header.insert_header(mark, "1") {
                        warn!("a response cannot be stored: {e}");
                        return RespCacheable::Uncacheable(NoCacheReason::Deferred);
                    }
                }
                let variance = relay_variance(meta.headers(), session.req_header(), ctx);
                self.limit_variants(session, variance.map_or(Variance::None, Variance::Key));
                RespCacheable::Cacheable(meta)
            }
            // Another client may get a response that can be stored.
            None => RespCacheable::Uncacheable(NoCacheReason::Deferred),
        }
    }

    /// Add the fields of this cache to a response that the origin sent to a relayed request.
    ///
    /// A client that the origin refuses does not learn if the object is stored.
    pub(super) fn label_relayed(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        frame_for_http_1_0(session, response);
        let is_refused = response.status.is_client_error() || response.status.is_server_error();
        let forwarded = ctx.forwarded.filter(|_| !is_refused);
        let status = CacheStatus {
            cache: self.options.name,
            forwarded: Some(forwarded.unwrap_or(Forwarded::Bypass)),
            origin_status: None,
            stored: false,
            collapsed: !is_refused && session.cache.lock_duration().is_some(),
            ttl: None,
            detail: None,
        };
        response.append_header(CACHE_STATUS, status.to_value()?)?;
        let is_passed = ctx.request.kind == RequestKind::Uncached;
        let result = match is_passed {
            true => CacheResult::Bypass,
            false => CacheResult::Miss,
        };
        ctx.result = Some(result);
        response.insert_header(X_CACHE, result.x_cache())
    }

    /// The fields of a request that reach the origin.
    pub(super) fn reaching(&self, ctx: &CachingCtx) -> RequestFields {
        match ctx.request.relay {
            Some(_) => REACHING,
            None => self.options.request_fields,
        }
    }
}

/// The variant that a relayed request selects by the fields that `Vary` names and by
/// [`RelayedRequest::host`](crate::http::RelayedRequest::host).
///
/// A request without a host selects a variant too. Otherwise it would get whichever variant was
/// stored first.
pub(in crate::http::caching) fn relay_variance(
    stored: &HeaderMap,
    request: &RequestHeader,
    ctx: &CachingCtx,
) -> Option<HashBinary> {
    let host = ctx
        .request
        .relay
        .as_ref()
        .and_then(|relay| relay.host.as_deref());
    let mut builder = VarianceBuilder::new();
    builder.add_value(HOST.as_str(), host.unwrap_or_default());
    if let Variance::Key(key) = variance(stored, &request.headers, REACHING) {
        builder.add_owned_name_value(VARY.as_str().to_owned(), key.to_vec());
    }
    builder.finalize()
}

fn strong_tag(headers: &HeaderMap) -> Option<EntityTag<'_>> {
    let tag = EntityTag::parse(headers.get(ETAG)?.as_bytes())?;
    tag.is_strong().then_some(tag)
}

/// True if an answer is about the stored response: the same bytes, with the same description since
/// the same time.
fn is_same(response: &ResponseHeader, stored: &ResponseHeader) -> bool {
    let (now, then) = (
        response.headers.get(LAST_MODIFIED),
        stored.headers.get(LAST_MODIFIED),
    );
    validators_match(&response.headers, &stored.headers) && now.is_none_or(|now| Some(now) == then)
}
