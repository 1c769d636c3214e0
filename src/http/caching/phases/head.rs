//! Answers to HEAD: the head cache, and what an answer says about a stored response.

use std::time::SystemTime;

use http::header::{AGE, CONTENT_LENGTH, ETAG, LAST_MODIFIED};
use http::StatusCode;
use log::warn;
use pingora_cache::key::CacheHashKey;
use pingora_cache::{CachePhase, NoCacheReason};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::{CachingCtx, State};
use crate::http::head_cache::HeadLookup;
use crate::http::rules::freshness::ttl;
use crate::http::rules::request::RequestKind;
use crate::http::rules::vary::Variance;

impl HttpCaching {
    pub(in crate::http::caching) fn look_up_head(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<Option<ResponseHeader>> {
        let refuses = ctx.request.directives().no_cache
            || ctx.request.directives().no_store
            || ctx.request.directives().max_age.is_some()
            || ctx.request.directives().min_fresh.is_some();
        let Some(store) = self.store.filter(|_| {
            ctx.request.kind == RequestKind::Head
                && self.heads.are_kept()
                && !refuses
                && !self.origin_decides(session.req_header())
                && session.cache.enabled()
                && session.cache.phase() == CachePhase::Miss
        }) else {
            return Ok(None);
        };
        let lookup = HeadLookup {
            key: session.cache.cache_key().combined_bin(),
            purges: store.cache.purges(),
        };
        let Some(meta) = self.heads.get(&lookup.key, lookup.purges) else {
            ctx.state.begin_exchange().head_lookup = Some(lookup);
            return Ok(None);
        };
        session.cache.disable(NoCacheReason::DeclinedToUpstream);
        ctx.state = State::HeadHit {
            ttl: ttl(meta.fresh_until(), SystemTime::now()),
        };
        let mut header = meta.response_header().clone();
        header.insert_header(AGE, meta.age().as_secs())?;
        Ok(Some(header))
    }

    /// Note in the head cache what the origin says about an object.
    pub(super) fn note_head(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) {
        let exchange = ctx.state.begin_exchange();
        if let Some(lookup) = exchange.head_lookup.take() {
            if response.status == StatusCode::OK {
                let is_for_all = self.variance(&response.headers, session.req_header());
                // Only fields of a response that is stored are withheld.
                let withheld = std::mem::take(&mut exchange.withheld);
                let meta = self.to_store(session, response, ctx);
                ctx.state.begin_exchange().withheld = withheld;
                if let Some(meta) = meta.filter(|_| is_for_all == Variance::None) {
                    return self.heads.insert(&lookup, meta);
                }
            }
            self.heads.observe(&lookup.key, response);
        } else if let Some(key) = session.cache.maybe_cache_key() {
            self.heads.observe(&key.combined_bin(), response);
        }
    }

    /// Update or remove a stored response by the answer to a HEAD (RFC 9111 §4.3.5).
    pub(super) async fn update_by_head(
        &self,
        session: &mut Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) {
        if response.status != StatusCode::OK {
            return;
        }
        let Some(stored) = session.cache.maybe_cache_meta() else {
            return;
        };
        let same = [ETAG, LAST_MODIFIED, CONTENT_LENGTH].iter().all(|name| {
            match (stored.headers().get(name), response.headers.get(name)) {
                (Some(stored), Some(now)) => stored == now,
                (None, Some(_)) | (_, None) => true,
            }
        });
        let result = if same {
            let merged = session.cache.revalidate_merge_header(response);
            match self.to_store(session, &merged, ctx) {
                Some(meta) => session.cache.revalidate_cache_meta(meta).await.map(drop),
                // Answers to this request are not stored.
                None => Ok(()),
            }
            .map_err(|e| e.to_string())
        } else if let Some(store) = &self.store {
            let key = session.cache.cache_key().clone();
            let purged = store.cache.purge_key(&key).await;
            purged.map(drop).map_err(|e| e.to_string())
        } else {
            Ok(())
        };
        if let Err(e) = result {
            warn!("a stored response was not updated by the answer to a HEAD: {e}");
        }
    }
}
