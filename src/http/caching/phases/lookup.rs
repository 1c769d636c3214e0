//! The lookup: the cache key, and the decision on a stored response.

use std::time::SystemTime;

use http::header::RANGE;
use http::{Method, StatusCode};
use pingora_cache::key::HashBinary;
use pingora_cache::lock::CacheKeyLockImpl;
use pingora_cache::{CacheKey, CacheMeta, CacheOptionOverrides, ForcedFreshness, HitHandler};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::parts::{filling, has_part, HasPart};
use crate::cache::DiskHit;
use crate::http::caching::shared::{HttpCaching, Store};
use crate::http::caching::state::{CachingCtx, FailedRequest, Found, ServedStale, State};
use crate::http::rules::cache_control::RequestDirectives;
use crate::http::rules::cache_status::Forwarded;
use crate::http::rules::conditional::{
    evaluate, has_failing_preconditions, if_range_applies, Precondition,
};
use crate::http::rules::fields::content_length;
use crate::http::rules::freshness::{is_from_the_future, ttl};
use crate::http::rules::range::{parse_range, single_range, Ranges};
use crate::http::rules::request::{RequestKind, MAX_RANGES};
use crate::http::rules::storing::is_always_stale;
use crate::http::rules::target::Target;
use crate::http::rules::vary::{is_readable, Variance};

/// The most lookups of a request that waits for others, before it asks the origin itself.
/// Lookups because another request takes long are not counted.
const LOCK_RETRIES: usize = 2;

impl HttpCaching {
    pub(in crate::http::caching) fn enable_cache(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) {
        let Some(Store {
            cache,
            lock,
            too_large,
        }) = self
            .store
            .filter(|_| ctx.request.kind != RequestKind::Uncached)
        else {
            return;
        };
        // Others wait only for a request that fetches the whole.
        let fills = ctx.request.kind == RequestKind::Whole
            && ctx.request.may_be_stored()
            && !ctx.request.upgrades
            && !ctx.request.directives().no_store
            && !ctx.request.directives().only_if_cached;
        // No eviction manager: the cache evicts by itself.
        session.cache.enable(
            cache,
            None,
            Some(too_large),
            fills.then_some(lock as &'static CacheKeyLockImpl),
            Some(self.lock_options()),
        );
        let warming = ctx.is_warming();
        session.cache.set_admission_policy(match warming {
            true => cache.admission_at_once(),
            false => cache.admission(),
        });
        // RFC 9111 §4.3.4
        session.cache.set_revalidate_all_fields(true);
        // A larger object would evict all others and then itself.
        let mut limit = cache.max_whole_bytes();
        if ctx.request.initiator.is_background() && !warming {
            limit = limit.min(self.options.range_fill.max_bytes);
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        session.cache.set_max_file_size_bytes(limit);
    }

    fn lock_options(&self) -> CacheOptionOverrides {
        let mut options = CacheOptionOverrides::default();
        options.wait_timeout = Some(self.options.lock_timeout);
        // Each time the lock grows too old, one of the waiting requests asks the origin too, and
        // the others wait on.
        let ages = self.options.lock_timeout.as_secs_f64() / self.options.lock_age.as_secs_f64();
        options.max_lock_retries = Some(LOCK_RETRIES + ages.ceil() as usize);
        options
    }

    pub(in crate::http::caching) fn key_of_target(&self, session: &Session) -> CacheKey {
        self.snapshot(target_key(&Target::of(session.req_header())))
    }

    pub(in crate::http::caching) fn snapshot(&self, mut key: CacheKey) -> CacheKey {
        if let Some(store) = &self.store {
            key.extensions.insert(store.cache.lookup_snapshot());
        }
        key
    }

    /// The key of the variant that a request selects (RFC 9111 §4.1).
    pub(in crate::http::caching) fn variant_key(
        &self,
        meta: &CacheMeta,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
        match self.variance(meta.headers(), request) {
            Variance::Key(key) => Some(key),
            // A response that matches no request is never stored.
            Variance::None | Variance::Never => None,
        }
    }

    /// Decide if a stored response may be used (RFC 9111 §4).
    pub(in crate::http::caching) fn judge_hit(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut CachingCtx,
    ) -> Option<ForcedFreshness> {
        let now = SystemTime::now();
        let mut found = Found {
            collapsed_from: ctx.forwarded.take(),
            ..Found::default()
        };
        if let Some(hit) = hit.as_any_mut().downcast_mut::<DiskHit>() {
            found.complete_len = hit.complete_len();
            if !session.as_downstream().prefers_file_body() {
                hit.copy_body();
            }
        }
        ctx.state.set_found(found);
        if ctx.request.relay.is_some() {
            return self.confirm_hit(session, meta, hit, is_fresh, ctx);
        }
        let request = session.req_header();
        if ctx.request.kind == RequestKind::Part {
            let max_wait = self.options.range_fill.max_wait;
            let has_part = has_part(hit, meta.headers(), request, max_wait);
            if let (Some(download), Some(filling)) = (ctx.request.download(), filling(hit)) {
                filling.promised.inspect(|len| download.set_whole_len(*len));
            }
            if has_part == HasPart::No {
                ctx.forward(Forwarded::Partial);
                return Some(ForcedFreshness::ForceMiss);
            }
            if let Some(found) = ctx.state.found_mut() {
                found.waits_for_fill = has_part == HasPart::Soon;
            }
        }
        if !is_readable(
            meta.headers(),
            &request.headers,
            self.options.request_fields,
        ) {
            ctx.forward(Forwarded::VaryMiss);
            return Some(ForcedFreshness::ForceMiss);
        }
        let from_the_future = is_from_the_future(meta.updated(), now);
        if self.origin_decides(request)
            && (!is_fresh || from_the_future || self.refuses(ctx.request.directives(), meta, now))
        {
            ctx.forward(Forwarded::Request);
            return Some(ForcedFreshness::ForceMiss);
        }
        if from_the_future {
            ctx.forward(Forwarded::Stale);
            self.set_stale_lock(session, meta, ctx);
            return Some(ForcedFreshness::ForceExpired);
        }
        if ctx.request.upgrades && !is_fresh {
            // The origin may want to switch protocols.
            ctx.forward(Forwarded::Request);
            return Some(ForcedFreshness::ForceMiss);
        }
        let stale_for = now.duration_since(meta.fresh_until()).ok();
        if is_fresh {
            if self.refuses(ctx.request.directives(), meta, now) {
                ctx.forward(Forwarded::Request);
                self.set_stale_lock(session, meta, ctx);
                return Some(ForcedFreshness::ForceExpired);
            }
            let failed = self.failed_request(request, meta, ctx)?;
            ctx.state = State::Failed(Box::new(failed));
            // Pingora would send the error without a body.
            return Some(ForcedFreshness::ForceMiss);
        }
        let waited = session.cache.lock_duration();
        let answered_meanwhile = ctx
            .request
            .arrived
            .is_some_and(|arrived| arrived < meta.updated());
        if waited.is_some()
            && answered_meanwhile
            && !self.refuses(ctx.request.directives(), meta, now)
        {
            // The response was validated for this request too, however soon it is stale
            // (RFC 9111 §4).
            return Some(ForcedFreshness::ForceFresh);
        }
        ctx.forward(Forwarded::Stale);
        let may_be_stale = self.storing(ctx).may_be_stale(meta.response_header());
        if let Some(found) = ctx.state.found_mut() {
            found.must_revalidate = !may_be_stale;
        }
        let accepts = ctx.request.directives().max_stale.is_some_and(|limit| {
            stale_for.is_some_and(|stale| stale.as_secs() <= u64::from(limit))
        });
        // The origin does not answer in time.
        let hangs = waited.is_some_and(|waited| waited >= self.options.lock_age)
            && meta.serve_stale_if_error(now)
            && !ctx.is_warming()
            && !ctx.request.directives().no_cache;
        if hangs || (accepts && may_be_stale && !self.refuses_age(ctx.request.directives(), meta)) {
            ctx.forwarded = None;
            if let Some(found) = ctx.state.found_mut() {
                found.accepted_stale = Some(match hangs {
                    true => ServedStale::Error,
                    false => ServedStale::Accepted,
                });
            }
            return Some(ForcedFreshness::ForceFresh);
        }
        self.set_stale_lock(session, meta, ctx);
        if ctx.request.directives().no_cache {
            return Some(ForcedFreshness::ForceExpired);
        }
        None
    }

    /// The failure of a request that a fresh stored response shows: a precondition is false, or
    /// none of the ranges lies within the body.
    fn failed_request(
        &self,
        request: &RequestHeader,
        meta: &CacheMeta,
        ctx: &CachingCtx,
    ) -> Option<FailedRequest> {
        let range = request.headers.get(RANGE);
        if ctx.request.initiator.is_background()
            || self.options.error_body.is_none()
            || request.method != Method::GET
            || meta.response_header().status != StatusCode::OK
            || (range.is_none() && !has_failing_preconditions(&request.headers))
        {
            return None;
        }
        let (now, stored) = (SystemTime::now(), meta.headers());
        // Until the body is complete, only the header states its length.
        let len = ctx.complete_len().or_else(|| content_length(stored));
        let precondition = evaluate(
            &request.method,
            &request.headers,
            StatusCode::OK,
            stored,
            now,
        );
        let status = match precondition {
            Precondition::Failed => StatusCode::PRECONDITION_FAILED,
            Precondition::Proceed => {
                let range = range?.as_bytes();
                let is_whole = single_range(range) == Some((0, None));
                let applies = if_range_applies(&request.headers, stored, now);
                let ranges = parse_range(range, len?, MAX_RANGES);
                if is_whole || !applies || ranges != Ranges::Unsatisfiable {
                    return None;
                }
                StatusCode::RANGE_NOT_SATISFIABLE
            }
            _ => return None,
        };
        Some(FailedRequest {
            status,
            len,
            age: meta.age(),
            ttl: ttl(meta.fresh_until(), now),
        })
    }

    /// Let other requests wait while this one validates a stale response for all of them.
    ///
    /// They do not wait for a response that has to be validated each time, or for an answer that
    /// is not stored: only one client would be served at a time. A request that has waited in
    /// vain does not wait again.
    fn set_stale_lock(&self, session: &mut Session, meta: &CacheMeta, ctx: &CachingCtx) {
        let collapses = (!is_always_stale(meta) || meta.stale_while_revalidate_sec() > 0)
            && ctx.request.kind == RequestKind::Whole
            && session.cache.lock_duration().is_none()
            && !self.refuses(ctx.request.directives(), meta, meta.updated())
            && !ctx.request.directives().no_store
            && !ctx.request.directives().only_if_cached;
        let lock = self
            .store
            .filter(|_| collapses)
            .map(|store| store.lock as &'static CacheKeyLockImpl);
        session
            .cache
            .set_cache_lock(lock, Some(self.lock_options()));
    }

    /// True if the client refuses a fresh response (RFC 9111 §5.2.1).
    fn refuses(&self, directives: &RequestDirectives, meta: &CacheMeta, now: SystemTime) -> bool {
        let fresh_for = meta
            .fresh_until()
            .duration_since(now)
            .unwrap_or_default()
            .as_secs();
        directives.no_cache
            || self.refuses_age(directives, meta)
            || directives
                .min_fresh
                .is_some_and(|wanted| fresh_for < u64::from(wanted))
    }

    fn refuses_age(&self, directives: &RequestDirectives, meta: &CacheMeta) -> bool {
        directives
            .max_age
            // Browsers send 0 to reload.
            .is_some_and(|limit| limit == 0 || meta.age().as_secs() > u64::from(limit))
    }
}

pub(super) fn target_key(target: &Target) -> CacheKey {
    // Neither part can contain the separator.
    let key = format!("{}\n{}", target.authority, target.path_and_query);
    CacheKey::new(key, "")
}
