//! Requests for parts: they follow a fill of the whole, or start one.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use http::header::{HeaderName, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, Method, StatusCode};
use log::{debug, warn};
use pingora_cache::key::CacheHashKey;
use pingora_cache::{CacheKey, CacheMeta, HitHandler};
use pingora_core::protocols::http::subrequest::server::SubrequestHandle;
use pingora_core::protocols::http::HttpTask;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::Session;
use tokio::time::sleep;

use super::store::MAX_STORED_FIELDS;
use crate::cache::{DiskHit, Filling};
use crate::http::caching::shared::{HttpCaching, Store};
use crate::http::caching::state::{CachingCtx, DownloadFill};
use crate::http::range_fill::{Download, FillCandidate, Part, Share, DOWNLOAD_PART, SMALL};
use crate::http::remainder::{offers_remainder, FetchedRemainder, OriginParts, PartRequests};
use crate::http::rules::conditional::{evaluate, if_range_applies, Precondition};
use crate::http::rules::freshness::Times;
use crate::http::rules::range::{parse_content_range, parse_range, single_range, Ranges};
use crate::http::rules::request::MAX_RANGES;
use crate::http::rules::storing::Answer;
use crate::http::rules::vary::Variance;
use crate::http::warming::{one_line, BlocksMissing, WarmRequest};

/// A range that begins at most this far ahead of a fill waits for it. A range further ahead waits
/// only if the fill arrives there soon; otherwise it is fetched by itself.
pub(super) const FOLLOW_BYTES: u64 = 1 << 20;

/// The time after which the pace of a fill is known. Until then, the fill is expected to arrive
/// at [`FAR_BYTES`] soon.
const PACE_TIME: Duration = Duration::from_millis(250);

/// The most bytes between a fill whose pace is not known and a range that waits for it.
const FAR_BYTES: u64 = 256 << 20;

/// The time for which a long part waits for the one that begins the download, if nothing is
/// stored.
const OVERTAKING_TIME: Duration = Duration::from_millis(20);

/// Availability of the requested part in a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasPart {
    /// The first byte is stored, or is about to be.
    Yes,
    /// The fill that the hit follows is expected to arrive in time. Should it not, the part can be
    /// fetched by itself.
    Soon,
    No,
}

impl HttpCaching {
    /// Start to fetch the whole for a part that begins a download, if nothing is stored, or wait
    /// until the whole is being fetched for another part.
    #[cold]
    pub(super) async fn join_download(
        &self,
        session: &Session,
        ctx: &mut CachingCtx,
        key: impl FnOnce(&Session) -> CacheKey,
    ) {
        let (Some(Store { cache, lock, .. }), Some(spawner)) =
            (self.store, session.subrequest_spawner.as_ref())
        else {
            return;
        };
        let request = session.req_header();
        let range = request.headers.get(RANGE);
        let Some((first, Some(last))) = range.and_then(|range| single_range(range.as_bytes()))
        else {
            return;
        };
        if last.saturating_sub(first) < DOWNLOAD_PART - 1
            || self.options.range_fill.in_flight == 0
            || ctx.request.initiator.is_background()
            || ctx.request.upgrades
            || ctx.request.directives().no_store
            || ctx.request.directives().only_if_cached
            || self.origin_decides(request)
        {
            return;
        }
        let key = key(session);
        let is_new = !cache.may_have(&key) && !lock.gave_up(&key);
        let hash = key.combined_bin();
        if first > 0 && is_new && !self.fills.has_download(&hash) {
            // Parts that are requested at the same time arrive in any order.
            sleep(OVERTAKING_TIME).await;
        }
        match self.fills.download(hash, first == 0 && is_new) {
            None => {}
            Some(Share::Follows(download)) => {
                download.begun(self.options.lock_age).await;
                ctx.request.parts_mut().download = Some(download);
            }
            Some(Share::Begins(download)) => {
                let fill = DownloadFill(download.for_parts.clone());
                let sub_ctx = SubrequestCtx::builder().user_ctx(Box::new(fill)).build();
                let (fill, handle) = spawner.create_subrequest(session.as_ref(), sub_ctx);
                tokio::spawn(fill.run());
                tokio::spawn(watch_fill(handle, Arc::downgrade(&download)));
                download.begun(self.options.lock_age).await;
                ctx.request.parts_mut().download = Some(download);
            }
        }
    }

    /// The whole of the part in the origin's response, if it would be stored under this key.
    pub(super) fn fill_candidate(
        &self,
        session: &Session,
        key: CacheKey,
        response: &ResponseHeader,
        ctx: &CachingCtx,
    ) -> Option<FillCandidate> {
        let limits = self.options.range_fill;
        let cache = self.store?.cache;
        if response.status != StatusCode::PARTIAL_CONTENT || limits.in_flight == 0 {
            return None;
        }
        let range = parse_content_range(response.headers.get(CONTENT_RANGE)?.as_bytes())?;
        range.range.as_ref()?;
        let whole_len = range.complete_length?;
        let whole = whole_of(response, whole_len).ok()?;
        let now = SystemTime::now();
        let answer = Answer {
            request: session.req_header(),
            reaching: self.reaching(ctx),
            response: &whole,
            times: Times {
                requested: ctx.state.attempt().map_or(now, |attempt| attempt.requested),
                received: now,
            },
        };
        let to_store = self.storing(ctx).to_store(&answer).ok()??;
        let meta = Some(to_store.meta).filter(|meta| {
            let variance = self.variance(meta.headers(), session.req_header());
            whole_len > SMALL
                && ctx.request.relay.is_none()
                && matches!(variance, Variance::None)
                && offers_remainder(meta.headers())
                && meta.headers().len() <= MAX_STORED_FIELDS
        });
        if whole_len > cache.max_object_bytes() {
            return None;
        }
        let limit = limits.max_bytes.min(cache.max_whole_bytes());
        (meta.is_some() || whole_len <= limit).then_some(FillCandidate {
            key,
            whole_len,
            in_blocks: meta,
        })
    }

    /// Store the object of the part that the client has received: as an entry in blocks, or as a
    /// whole. Only bytes that were sent count:
    /// a client that asks for much and leaves costs the origin no more than that.
    pub(super) fn start_range_fill(
        &self,
        session: &Session,
        candidate: &FillCandidate,
        ctx: &CachingCtx,
    ) {
        let Some(Store { cache, lock, .. }) = self.store else {
            return;
        };
        // Most parts are requested while the whole is being fetched.
        if cache.is_filling(&candidate.key) || lock.gave_up(&candidate.key) {
            return;
        }
        if let Some(meta) = &candidate.in_blocks {
            if !cache.may_have(&candidate.key) {
                let (key, meta) = (candidate.key.clone(), meta.clone());
                let whole_len = candidate.whole_len;
                tokio::spawn(async move {
                    if let Err(e) = cache.create_in_blocks(&key, &meta, whole_len).await {
                        warn!("a response cannot be stored in blocks: {e}");
                    }
                });
            }
            return;
        }
        let Some(spawner) = ctx.spawner(session) else {
            return;
        };
        let part = Part {
            key: candidate.key.combined_bin(),
            delivered: session.body_bytes_sent() as u64,
            whole_len: candidate.whole_len,
            client: self.client(session),
            begins: false,
        };
        let limits = &self.options.range_fill;
        let Some(guard) = self.fills.begin(&part, limits, Instant::now()) else {
            return;
        };
        let ctx = SubrequestCtx::builder()
            .user_ctx(Box::new(Some(guard)))
            .build();
        let (fill, handle) = spawner.create_subrequest(session.as_ref(), ctx);
        handle.drain_tasks();
        tokio::spawn(fill.run());
    }

    /// The address of a session's client.
    fn client(&self, session: &Session) -> Option<IpAddr> {
        match &self.options.client_address {
            Some(address) => address.of(session),
            None => Some(session.client_addr()?.as_inet()?.ip()),
        }
    }

    /// Pay for the whole of a download with the bytes that its part has delivered.
    pub(super) fn note_delivered(
        &self,
        session: &Session,
        error: Option<&Error>,
        download: &Download,
    ) {
        let delivered = session.body_bytes_sent() as u64;
        let range = session.req_header().headers.get(RANGE);
        let first = range.and_then(|range| single_range(range.as_bytes()));
        let begins = error.is_none() && first.is_some_and(|(first, _)| first == 0);
        let client = self.client(session);
        download.delivered(delivered, begins, client, &self.options.range_fill);
    }

    /// Let a hit fetch the blocks that it lacks, and wait for the first one that the client needs.
    /// `false`: the hit cannot be served.
    #[cold]
    pub(in crate::http::caching) async fn prepare_blocks(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_served: bool,
        ctx: &mut CachingCtx,
    ) -> bool {
        let (Some(Store { cache, .. }), Some(hit)) =
            (self.store, hit.as_any_mut().downcast_mut::<DiskHit>())
        else {
            return true;
        };
        let Some(len) = hit.incomplete_len() else {
            return true;
        };
        let requests = &mut ctx.request.parts_mut().requests;
        if requests.is_none() {
            *requests = PartRequests::take(session).await;
        }
        let parts = requests.clone();
        let parts = parts.and_then(|parts| OriginParts::new(parts, meta.headers(), len));
        let Some(parts) = parts else {
            return false;
        };
        let warming = ctx.request.initiator.warming().cloned();
        cache.let_fetch(hit, Box::new(parts), warming.is_some());
        if let Some(warming) = warming {
            return self.fetch_missing(session, hit, &warming).await;
        }
        let request = session.req_header();
        let (stored, now) = (meta.headers(), SystemTime::now());
        let status = StatusCode::OK;
        let precondition = evaluate(&request.method, &request.headers, status, stored, now);
        if request.method != Method::GET || precondition != Precondition::Proceed {
            // There will be no body.
            return true;
        }
        let range = request.headers.get(RANGE);
        let range = range.filter(|_| if_range_applies(&request.headers, stored, now));
        let whole = std::iter::once(0..len);
        let ranges = match range.map(|range| parse_range(range.as_bytes(), len, MAX_RANGES)) {
            Some(Ranges::Satisfiable(ranges)) => ranges,
            Some(Ranges::Unsatisfiable) => return true,
            _ => whole.collect(),
        };
        let is_partial = !ranges.iter().all(|range| hit.has_all(range));
        if let Some(found) = ctx.state.found_mut() {
            found.is_partial = is_partial;
        }
        if is_partial && ctx.request.directives().only_if_cached {
            return false;
        }
        let (excess, limits) = (hit.excess(&ranges), &self.options.range_fill);
        let Some(first) = ranges.into_iter().next().filter(|_| is_served) else {
            return true;
        };
        let now = Instant::now();
        if !self.fills.charge(self.client(session), excess, limits, now) {
            return false;
        }
        match hit.prepare(first).await {
            Ok(()) => true,
            Err(e) => {
                debug!("a hit in blocks is not served: {e}");
                false
            }
        }
    }

    /// Have all missing blocks of a hit fetched. `false`: the origin has another version.
    async fn fetch_missing(
        &self,
        session: &Session,
        hit: &mut DiskHit,
        warming: &WarmRequest,
    ) -> bool {
        warming.set_fetches_blocks();
        let fetched = tokio::select! {
            fetched = hit.fetch_missing() => fetched,
            () = warming.left() => return true,
        };
        match fetched {
            Ok(true) => return true,
            Ok(false) => warming.set_blocks_missing(BlocksMissing::NoRoom),
            Err(e) => warming.set_blocks_missing(BlocksMissing::Failed(one_line(&e))),
        }
        match (self.store, session.cache.maybe_cache_key()) {
            (Some(Store { cache, .. }), Some(key)) => cache.stored(key).await.is_some(),
            _ => false,
        }
    }

    /// Let a client that follows a fill fetch the remainder by itself, should it have to leave the
    /// fill.
    pub(super) fn offer_remainder(
        &self,
        session: &mut Session,
        response: &ResponseHeader,
        ctx: &CachingCtx,
    ) {
        if session.req_header().method != Method::GET
            || !matches!(
                response.status,
                StatusCode::OK | StatusCode::PARTIAL_CONTENT
            )
        {
            return;
        }
        let hit = session.cache.hit_handler().as_any();
        let filling = hit.downcast_ref().and_then(DiskHit::filling);
        let meta = session.cache.maybe_cache_meta();
        let (Some(filling), Some(meta)) = (filling, meta) else {
            return;
        };
        let Some(spawner) = ctx.spawner(session) else {
            return;
        };
        let promised = filling.promised;
        let remainder = FetchedRemainder::new(session, spawner, meta.headers(), promised);
        let hit = session.cache.hit_handler().as_any_mut().downcast_mut();
        if let (Some(remainder), Some(hit)) = (remainder, hit) {
            let hit: &mut DiskHit = hit;
            hit.leave_by(Box::new(remainder));
            if ctx.state.found().is_some_and(|found| found.waits_for_fill) {
                hit.waits_at_most(self.options.range_fill.max_wait);
            }
        }
    }
}

/// The header of the whole, from that of a part (RFC 9110 §15.3.7). Fields that describe the bytes of
/// the part are dropped.
fn whole_of(part: &ResponseHeader, whole_len: u64) -> Result<ResponseHeader> {
    let mut whole = part.clone();
    whole.set_status(StatusCode::OK)?;
    for name in part.headers.keys().filter(|name| describes_bytes(name)) {
        whole.remove_header(name);
    }
    whole.remove_header(&CONTENT_RANGE);
    whole.insert_header(CONTENT_LENGTH, whole_len)?;
    Ok(whole)
}

/// True for checksums, such as `Content-Digest` (RFC 9530) and `x-amz-checksum-crc32`, which S3 sends
/// with a part that was uploaded as such, and for the number of such parts.
fn describes_bytes(name: &HeaderName) -> bool {
    let name = name.as_str();
    let about = ["checksum", "digest", "md5", "parts-count"];
    about.iter().any(|about| name.contains(about)) && name != "repr-digest"
}

/// Tell a download when its fill has begun, or ends without having begun.
async fn watch_fill(mut fill: SubrequestHandle, download: Weak<Download>) {
    let set_begun = || {
        if let Some(download) = download.upgrade() {
            download.set_begun();
        }
    };
    let mut has_begun = false;
    while let Some(task) = fill.rx.recv().await {
        let is_final =
            matches!(&task, HttpTask::Header(header, _) if !header.status.is_informational());
        if is_final && !std::mem::replace(&mut has_begun, true) {
            set_begun();
        }
    }
    set_begun();
}

/// Availability of the requested part in a hit with this header.
pub(super) fn has_part(
    hit: &HitHandler,
    stored: &HeaderMap,
    request: &RequestHeader,
    max_wait: Duration,
) -> HasPart {
    let Some(fill) = filling(hit) else {
        return HasPart::Yes;
    };
    let Some(promised) = fill.promised else {
        // Parts of a body of unknown length have no place in it. The client gets the whole (RFC
        // 9110 §14.2), which an origin that does not know the length would send too.
        return HasPart::Yes;
    };
    let range = request.headers.get(RANGE);
    let ranges = range.map(|range| parse_range(range.as_bytes(), promised, MAX_RANGES));
    let Some(Ranges::Satisfiable(ranges)) = ranges else {
        // The response has no byte of the body.
        return HasPart::Yes;
    };
    let first = ranges.iter().map(|range| range.start).max().unwrap_or(0);
    if first <= fill.written.saturating_add(FOLLOW_BYTES) {
        HasPart::Yes
    } else if ranges.len() == 1 && comes_in_time(&fill, first, max_wait) && offers_remainder(stored)
    {
        HasPart::Soon
    } else {
        HasPart::No
    }
}

/// True if a fill is expected to arrive at a position within `max_wait`.
fn comes_in_time(fill: &Filling, position: u64, max_wait: Duration) -> bool {
    if max_wait.is_zero() {
        return false;
    }
    if fill.age < PACE_TIME {
        return position <= fill.written.saturating_add(FAR_BYTES);
    }
    let ahead = position.saturating_sub(fill.written) as f64;
    ahead * fill.age.as_secs_f64() <= fill.written as f64 * max_wait.as_secs_f64()
}

/// True if blocks of a hit are not stored.
pub(in crate::http::caching) fn is_incomplete(hit: &HitHandler) -> bool {
    let hit: Option<&DiskHit> = hit.as_any().downcast_ref();
    hit.is_some_and(|hit| hit.incomplete_len().is_some())
}

/// The progress of the fill that a hit follows, if it follows one.
pub(super) fn filling(hit: &HitHandler) -> Option<Filling> {
    hit.as_any().downcast_ref().and_then(DiskHit::filling)
}
