//! Clients' own requests, which go to the origin as they came: it decides on each of them.
//!
//! A stored response is given to a client only after the origin has confirmed it in the answer to
//! this very client's request, to which `If-None-Match` is added; or, if the proxy says so, by
//! a permission that it remembers.

use std::time::SystemTime;

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, DATE, ETAG, HOST, IF_NONE_MATCH, LAST_MODIFIED, RANGE,
    SET_COOKIE, TRANSFER_ENCODING, VARY,
};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version};
use log::warn;
use pingora_cache::key::HashBinary;
use pingora_cache::{
    CacheKey, CacheMeta, CachePhase, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable,
    VarianceBuilder,
};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::{
    has_part, is_about, is_hit, is_stored, is_validated, origin_form, Asks, CachingCtx, HasPart,
    HttpCaching, CACHE_CONTROL, CONDITIONS, UNUSABLE_NOT_MODIFIED,
};
use crate::cache::DiskHit;
use crate::http::rules::cache_status::{CacheStatus, Forwarded};
use crate::http::rules::etag::EntityTag;
use crate::http::rules::fields::{connection_fields, RequestFields};
use crate::http::rules::target::Target;
use crate::http::rules::vary::{is_readable, variance, Variance};

/// All fields reach the origin. Who may have a response is its decision each time, so
/// `Authorization` selects no variant.
const REACHING: RequestFields = RequestFields::AllBut(&[AUTHORIZATION]);

/// A request that goes to the origin as the client made it.
#[derive(Debug, Default)]
pub struct OwnRequest {
    /// The cache has a part in it. Otherwise the answer is passed on, whatever it is.
    pub is_cached: bool,
    /// Its answer is the same for all who may have it.
    pub stores: bool,
    /// Conditions and ranges that must reach the origin, because they are signed.
    pub signed: Vec<HeaderName>,
    /// A field that is added to what is stored of the answer. What is stored without it is
    /// less than the client asks for.
    pub mark: Option<HeaderName>,
    /// The `Host` of the request, if the origin may answer with something else under another
    /// one. The stored answer is then only for requests with the same `Host`.
    pub name: Option<Box<[u8]>>,
    /// The origin need not be asked.
    pub is_permitted: bool,
    /// The proxy can ask for the whole when the origin has given a part to the client, with
    /// credentials of its own.
    pub fills: bool,
    /// The key of the whole in the cache, if the cache has let the request pass as a part.
    pub(crate) key: Option<CacheKey>,
}

// === impl CachingCtx ===

impl CachingCtx {
    /// Let the request reach the origin as it is. To be called before `request_filter`.
    pub fn set_own(&mut self, own: OwnRequest) {
        self.passes |= !own.is_cached;
        self.is_special = true;
        self.own = Some(Box::new(own));
    }

    /// The response that was found may be given to the client without asking the origin. To be
    /// called before `cache_hit_filter`.
    pub fn permit(&mut self) {
        if let Some(own) = &mut self.own {
            own.is_permitted = true;
        }
    }

    /// True if the response is a stored one.
    pub fn is_found(&self, session: &Session) -> bool {
        let phase = session.cache.phase();
        is_hit(phase) || is_validated(phase)
    }

    /// True if the answer to a client's own request is what the origin sent.
    pub(super) fn is_relayed(&self, phase: CachePhase) -> bool {
        self.own.is_some() && !(is_hit(phase) || is_validated(phase) || is_stored(phase))
    }

    /// Adjust what a client's own request asks for, as the origin sees it.
    pub(super) fn narrow_own(&mut self, request: &RequestHeader) {
        let Some(own) = &self.own else { return };
        if own.signed.contains(&RANGE) && request.headers.contains_key(RANGE) {
            // The whole cannot be asked for.
            self.asks = Asks::Part;
        }
    }

    pub(super) fn own_stores(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.stores)
    }

    /// True if this is the proxy's own request for the whole, after a client's request for a
    /// part that cannot ask for it.
    pub fn fills_for_own(&self) -> bool {
        self.background && self.own.as_ref().is_some_and(|own| own.fills)
    }

    /// Note under which key the whole would be stored. To be called before the cache is
    /// disabled for a part.
    pub(super) fn note_own_key(&mut self, session: &Session) {
        if let Some(own) = self.own.as_mut().filter(|own| own.fills && own.stores) {
            own.key = session.cache.maybe_cache_key().cloned();
        }
    }
}

// === impl HttpCaching ===

impl HttpCaching {
    /// Like `cache_vary_filter`, for the responses to clients' own requests.
    pub fn own_vary_filter(
        &self,
        meta: &CacheMeta,
        request: &RequestHeader,
        ctx: &CachingCtx,
    ) -> Option<HashBinary> {
        own_variance(meta.headers(), request, ctx)
    }

    /// For `cache_hit_filter`: a hit is confirmed before the client gets a byte of it.
    pub(super) fn confirm(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &HitHandler,
        is_fresh: bool,
        ctx: &mut CachingCtx,
    ) -> Option<ForcedFreshness> {
        let request = session.req_header();
        let own = ctx.own.as_deref()?;
        let max_wait = self.options.background_fills.max_wait;
        if ctx.asks == Asks::Part
            && has_part(hit, meta.headers(), request, max_wait) != HasPart::Yes
        {
            ctx.forward(Forwarded::Partial);
            return Some(ForcedFreshness::ForceMiss);
        }
        let lacks = |name| !meta.headers().contains_key(name);
        let lacks_mark = ctx.asks != Asks::Part && own.mark.as_ref().is_some_and(lacks);
        if lacks_mark
            || strong_tag(meta.headers()).is_none()
            || !is_readable(meta.headers(), &request.headers, REACHING)
        {
            ctx.forward(Forwarded::VaryMiss);
            return Some(ForcedFreshness::ForceMiss);
        }
        if own.is_permitted && is_fresh {
            return None;
        }
        ctx.forward(if is_fresh {
            Forwarded::Request
        } else {
            Forwarded::Stale
        });
        // Each client is confirmed by itself.
        session.cache.set_cache_lock(None, None);
        Some(ForcedFreshness::ForceExpired)
    }

    /// For `upstream_request_filter`, before anything else there: the request is the client's
    /// own, with the condition of the cache.
    pub fn own_upstream_request_filter(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        ctx.check_not_refused()?;
        let asked = session.req_header();
        let mut tag = None;
        if session.cache.enabled() {
            // Pingora has made it a GET for the whole, with conditions of its own.
            tag = request.headers.get(IF_NONE_MATCH).cloned();
            tag = tag.filter(|_| !ctx.unconditional);
            request.set_method(asked.method.clone());
            let own = ctx.own.as_deref();
            for name in &CONDITIONS {
                request.remove_header(name);
                let is_kept = own.is_some_and(|own| own.signed.contains(name))
                    || (*name == RANGE && ctx.asks == Asks::Part);
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
        ctx.ranged = request.headers.contains_key(RANGE);
        ctx.conditional = tag.is_some();
        ctx.requested = Some(SystemTime::now());
        Ok(())
    }

    /// For `upstream_response_filter`: what the answer to a client's own request means for what
    /// is stored.
    ///
    /// # Errors
    /// A 304 that does not confirm what is stored. The request is then made once more, without
    /// the condition of the cache; the error asks for that.
    pub async fn own_upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        let status = response.status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let why = "the origin switches to a protocol that nobody asked for";
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
        ctx.origin_status = Some(status);
        if status == StatusCode::PARTIAL_CONTENT && strong_tag(&response.headers).is_some() {
            let key = ctx.own.as_mut().and_then(|own| own.key.take());
            let part = key.and_then(|key| self.part_of_whole(session, key, response, ctx));
            ctx.part = part.map(Box::new);
        }
        if !session.cache.enabled() {
            return Ok(());
        }
        if !response.headers.contains_key(CONTENT_LENGTH) {
            // Pingora would break off a body that turns out too large; the cache does not.
            session.cache.set_max_file_size_bytes(usize::MAX);
        }
        let stored = session.cache.maybe_cache_meta();
        let stored = stored.filter(|_| session.cache.phase() == CachePhase::Stale);
        if status == StatusCode::NOT_MODIFIED {
            if !response.headers.contains_key(DATE) {
                response.insert_header(DATE, httpdate::fmt_http_date(SystemTime::now()))?;
            }
            let confirms = ctx.conditional
                && stored.is_some_and(|stored| is_same(response, stored.response_header()));
            if !confirms {
                let why = "the origin's 304 is about another version";
                let mut error = Error::explain(UNUSABLE_NOT_MODIFIED, why).into_up();
                // Otherwise, Pingora would serve what is stored.
                error.set_retry(true);
                ctx.refused = ctx.unconditional;
                ctx.unconditional = true;
                return Err(error);
            }
            // It goes with this answer, and not into what is stored for all.
            let cookies = response.headers.get_all(SET_COOKIE).iter().cloned();
            ctx.cookies = cookies.collect();
            response.remove_header(&SET_COOKIE);
            return Ok(());
        }
        let Some(stored) = stored else { return Ok(()) };
        let is_gone = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
            // A whole replaces it.
            || (status.is_success()
                && ctx.asks != Asks::Whole
                && !is_same(response, stored.response_header()));
        if let (true, Some(store)) = (is_gone, &self.store) {
            let key = session.cache.cache_key().clone();
            if let Err(e) = store.cache.purge_key(&key).await {
                warn!("what is stored, and the origin has no longer, is not removed: {e}");
            }
        }
        Ok(())
    }

    /// For `response_cache_filter`: only the whole is stored, and only if it can be confirmed
    /// later.
    pub(super) fn store_own(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> RespCacheable {
        let now = SystemTime::now();
        let confirms = ctx.origin_status == Some(StatusCode::NOT_MODIFIED);
        let is_stored = match confirms {
            // Otherwise each hit would be written.
            true => {
                let stored = session.cache.maybe_cache_meta();
                stored.is_some_and(|stored| !stored.is_fresh(now))
            }
            false => {
                ctx.asks == Asks::Whole
                    && response.status == StatusCode::OK
                    && session.req_header().method == Method::GET
                    && strong_tag(&response.headers).is_some()
            }
        };
        let meta = match is_stored && ctx.own_stores() {
            true => self.to_store(session, response, ctx),
            false => None,
        };
        match meta {
            Some(mut meta) => {
                let mark = ctx.own.as_ref().and_then(|own| own.mark.clone());
                if let Some(mark) = mark.filter(|_| !confirms) {
                    let header = meta.response_header_mut();
                    if let Err(e) = header.insert_header(mark, "1") {
                        warn!("a response cannot be stored: {e}");
                        return RespCacheable::Uncacheable(NoCacheReason::Deferred);
                    }
                }
                let variance = own_variance(meta.headers(), session.req_header(), ctx);
                self.limit_variants(session, variance.map_or(Variance::None, Variance::Key));
                RespCacheable::Cacheable(meta)
            }
            // Others may get an answer that can be stored.
            None => RespCacheable::Uncacheable(NoCacheReason::Deferred),
        }
    }

    /// For `response_filter`: what the origin answered goes to the client as it is.
    ///
    /// A client that the origin refuses is not told whether the object is stored.
    pub(super) fn label_relayed(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &CachingCtx,
    ) -> Result<()> {
        if session.req_header().version <= Version::HTTP_10
            && response.headers.contains_key(TRANSFER_ENCODING)
        {
            response.remove_header(&TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
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
        response.append_header("Cache-Status", status.to_value()?)?;
        let is_passed = ctx.asks == Asks::Nothing;
        response.insert_header("X-Cache", if is_passed { "BYPASS" } else { "MISS" })?;
        Ok(())
    }

    /// The fields of a request that reach the origin.
    pub(super) fn reaching(&self, ctx: &CachingCtx) -> RequestFields {
        match ctx.own {
            Some(_) => REACHING,
            None => self.options.request_fields,
        }
    }
}

/// Note what is found, see `cache_hit_filter`.
pub(super) fn note_found(session: &Session, hit: &mut HitHandler, ctx: &mut CachingCtx) {
    if let Some(hit) = hit.as_any_mut().downcast_mut::<DiskHit>() {
        ctx.stored_len = hit.complete_len();
        if !session.as_downstream().supports_zero_copy() {
            hit.copy_body();
        }
    }
}

/// The variant that a request selects by the fields that `Vary` names and by
/// [`OwnRequest::name`].
///
/// A request without a name selects a variant too. Otherwise, it would get whichever variant was
/// stored first.
fn own_variance(
    stored: &HeaderMap,
    request: &RequestHeader,
    ctx: &CachingCtx,
) -> Option<HashBinary> {
    let name = ctx.own.as_ref().and_then(|own| own.name.as_deref());
    let mut builder = VarianceBuilder::new();
    builder.add_value(HOST.as_str(), name.unwrap_or_default());
    if let Variance::Key(key) = variance(stored, &request.headers, REACHING) {
        builder.add_owned_name_value(VARY.as_str().to_owned(), key.to_vec());
    }
    builder.finalize()
}

fn strong_tag(headers: &HeaderMap) -> Option<EntityTag<'_>> {
    let tag = EntityTag::parse(headers.get(ETAG)?.as_bytes())?;
    tag.is_strong().then_some(tag)
}

/// True if an answer is about what is stored: the same bytes, and since the same time the same
/// description.
fn is_same(response: &ResponseHeader, stored: &ResponseHeader) -> bool {
    let (now, then) = (
        response.headers.get(LAST_MODIFIED),
        stored.headers.get(LAST_MODIFIED),
    );
    is_about(response, stored) && now.is_none_or(|now| Some(now) == then)
}
