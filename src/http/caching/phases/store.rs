//! The decision to store the origin's response.

use std::time::SystemTime;

use http::header::AUTHORIZATION;
use http::StatusCode;
use log::warn;
use pingora_cache::key::CacheHashKey;
use pingora_cache::{CacheMeta, NoCacheReason, RespCacheable};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use crate::cache::{InBackground, Resumable, YieldsRoom};
use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::{CachingCtx, Initiator};
use crate::http::range_fill::SMALL;
use crate::http::remainder::offers_remainder;
use crate::http::rules::fields::content_length;
use crate::http::rules::freshness::Times;
use crate::http::rules::request::RequestKind;
use crate::http::rules::storing::Answer;
use crate::http::rules::vary::Variance;

/// The most fields of a stored response. One with more is passed on, because Pingora could not
/// read it back (pingora-header-serde, `MAX_HEADERS`).
pub(super) const MAX_STORED_FIELDS: usize = 256;

/// True if the blocks of a response that breaks off are kept.
fn is_resumable(meta: &CacheMeta) -> bool {
    let len = content_length(meta.headers());
    len.is_some_and(|len| len > SMALL) && offers_remainder(meta.headers())
}

impl HttpCaching {
    pub(in crate::http::caching) fn decide_storing(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> RespCacheable {
        if ctx.request.relay.is_some() {
            return self.decide_storing_relayed(session, response, ctx);
        }
        // A 304 arrives here merged into the stored response.
        let is_whole = ctx.origin_status() == Some(StatusCode::NOT_MODIFIED)
            || match ctx.request.kind {
                RequestKind::Whole => true,
                RequestKind::Part => response.status == StatusCode::OK,
                RequestKind::Head | RequestKind::Uncached => false,
            };
        if !is_whole {
            return RespCacheable::Uncacheable(NoCacheReason::Deferred);
        }
        match self.to_store(session, response, ctx) {
            Some(mut meta) => {
                let variance = self.variance(meta.headers(), session.req_header());
                if variance == Variance::None && is_resumable(&meta) {
                    meta.extensions_mut().insert(Resumable);
                }
                self.limit_variants(session, variance);
                match &ctx.request.initiator {
                    Initiator::Download(for_parts) => {
                        meta.extensions_mut().insert(for_parts.clone());
                    }
                    Initiator::Warming(warming) => {
                        meta.extensions_mut().insert(warming.for_parts.clone());
                        meta.extensions_mut().insert(YieldsRoom);
                    }
                    Initiator::Background { .. } => {
                        meta.extensions_mut().insert(InBackground);
                    }
                    Initiator::Client | Initiator::Proxy | Initiator::PastCache => {}
                }
                RespCacheable::Cacheable(meta)
            }
            // Another client may get a response that can be stored.
            None if self.is_authorized(session.req_header()) => {
                RespCacheable::Uncacheable(NoCacheReason::Deferred)
            }
            None => RespCacheable::Uncacheable(NoCacheReason::OriginNotCache),
        }
    }

    /// Evict the oldest variant of a response that has too many.
    pub(super) fn limit_variants(&self, session: &Session, variance: Variance) {
        let (Variance::Key(variant), Some(store), Some(key)) =
            (variance, &self.store, session.cache.maybe_cache_key())
        else {
            return;
        };
        if let Some(oldest) = self.variants.admit(key.primary_bin(), variant) {
            let mut key = key.clone();
            key.set_variance_key(oldest);
            store.cache.evict_variant(&key);
        }
    }

    /// True if the origin sees the client's credentials (RFC 9111 §3.5).
    fn is_authorized(&self, request: &RequestHeader) -> bool {
        self.options.request_fields.contains(&AUTHORIZATION)
            && request.headers.contains_key(AUTHORIZATION)
    }

    /// The part of a response that is stored, if it is. The other fields are withheld for its
    /// first reader.
    pub(super) fn to_store(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Option<CacheMeta> {
        let received = SystemTime::now();
        let answer = Answer {
            request: session.req_header(),
            reaching: self.reaching(ctx),
            response,
            times: Times {
                requested: ctx
                    .state
                    .attempt()
                    .map_or(received, |attempt| attempt.requested),
                received,
            },
        };
        match self.storing(ctx).to_store(&answer) {
            Ok(to_store) => to_store
                .filter(|to_store| to_store.meta.headers().len() <= MAX_STORED_FIELDS)
                .map(|to_store| {
                    ctx.state.begin_exchange().withheld = to_store.withheld;
                    to_store.meta
                }),
            Err(e) => {
                warn!("a response cannot be stored: {e}");
                None
            }
        }
    }
}
