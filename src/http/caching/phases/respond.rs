//! The response to the client.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, RANGE, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING,
};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use log::warn;
use pingora_cache::{CachePhase, NoCacheReason};
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{RangeType, Session};

use super::errors::precondition_failed;
use super::fast_hit::is_prepared;
use super::parts::FOLLOW_BYTES;
use crate::cache::DiskHit;
use crate::http::caching::error_types::NOT_FILLED;
use crate::http::caching::hit_header::{age, make_lasting, HitFields, CACHE_STATUS, X_CACHE};
use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::{
    is_found, is_revalidated, is_stored, serves_stored, CachingCtx, FailedRequest, ServedStale,
    State,
};
use crate::http::rules::cache_status::{CacheResult, CacheStatus, Forwarded};
use crate::http::rules::conditional::{evaluate, if_range_applies, Precondition};
use crate::http::rules::fields::content_length;
use crate::http::rules::freshness::ttl;
use crate::http::rules::range::{parse_range, single_range, Ranges};
use crate::http::rules::request::{RequestKind, MAX_RANGES};
use crate::http::rules::vary::Variance;
use crate::http::send_error::classify_send_error;

impl HttpCaching {
    /// True if the client gets a 304 or a 412 in place of this response (RFC 9110 §13.2.2).
    pub(in crate::http::caching) fn is_not_modified(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> bool {
        // Nobody reads the body.
        if ctx.request.initiator.is_background() {
            return true;
        }
        let request = session.req_header();
        let outcome = evaluate(
            &request.method,
            &request.headers,
            response.status,
            &response.headers,
            SystemTime::now(),
        );
        // `complete_response` makes it a 412.
        ctx.precondition_failed = outcome == Precondition::Failed;
        outcome != Precondition::Proceed
    }

    /// Reduce a response to the requested range (RFC 9110 §14.2).
    pub(in crate::http::caching) fn apply_range(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &CachingCtx,
    ) -> RangeType {
        let ranged = state_length(session, response, ctx)
            .and_then(|()| range_type(session.req_header(), response));
        match ranged {
            Ok(range) => range,
            Err(e) => {
                warn!("a range is ignored: {e}");
                RangeType::None
            }
        }
    }

    /// Add to a response what the client has to know from this cache.
    pub(in crate::http::caching) fn complete_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        if ctx.request.initiator.is_background() && !session.cache.enabled() {
            return Err(Error::explain(NOT_FILLED, "the response is not stored"));
        }
        let phase = session.cache.phase();
        if ctx.is_relayed(phase) {
            return self.label_relayed(session, response, ctx);
        }
        if let Some(warming) = ctx.request.initiator.warming() {
            let hit = match phase {
                CachePhase::Hit => Some(session.cache.hit_handler()),
                _ => session.cache.miss_body_reader(),
            };
            let hit = hit.and_then(|hit| hit.as_any_mut().downcast_mut());
            if let Some(fill) = hit.and_then(|hit: &mut DiskHit| hit.followed_fill()) {
                warming.set_fill(fill);
            }
        }
        let now = SystemTime::now();
        let meta = session.cache.maybe_cache_meta();
        let ttl = meta.map(|meta| ttl(meta.fresh_until(), now));
        let epoch = meta.map(|meta| meta.epoch());
        let collapsed = session.cache.lock_duration().is_some();
        // Any other plain request gets the same response.
        let prepares = ctx.request.allows_fast_hit()
            && phase == CachePhase::Hit
            && response.status == StatusCode::OK
            && !collapsed
            && ctx.accepted_stale().is_none()
            && meta.is_some_and(|meta| {
                meta.is_fresh(now)
                    && self.variance(meta.headers(), session.req_header()) == Variance::None
            })
            && !is_prepared(session);
        let is_short = content_length(&response.headers).is_some_and(|len| len <= FOLLOW_BYTES);
        // A response without a length may turn out larger than the cache.
        let is_stored_whole = is_stored(phase) && response.headers.contains_key(CONTENT_LENGTH);
        if is_found(phase) || is_stored_whole {
            // The client reads from the disk, and may be slow again.
            if let Some(exchange) = ctx.state.exchange_mut() {
                exchange.turn = None;
                if let Some(timeout) = exchange.usual_write_timeout.take() {
                    session.set_write_timeout(timeout);
                }
            }
        }
        match phase {
            CachePhase::Miss | CachePhase::Expired => {
                // Pingora reads bytes here anyway; this limits their number.
                let copies = !session.as_downstream().supports_zero_copy();
                let reader = session.cache.miss_body_reader().filter(|_| copies);
                if let Some(hit) = reader.and_then(|hit| hit.as_any_mut().downcast_mut()) {
                    DiskHit::copy_body(hit);
                }
                append_withheld(response, ctx, |_| true)?;
            }
            CachePhase::Hit if ctx.complete_len().is_none() && ctx.request.relay.is_none() => {
                self.offer_remainder(session, response, ctx);
            }
            CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => {
                append_withheld(response, ctx, |name| *name != AGE)?;
                if let Some(meta) = session.cache.maybe_cache_meta() {
                    response.insert_header(AGE, meta.age().as_secs())?;
                }
            }
            _ => {}
        }
        if let Some(exchange) = ctx.state.exchange_mut() {
            for cookie in exchange.cookies.drain(..) {
                response.append_header(SET_COOKIE, cookie)?;
            }
        }
        if ctx.precondition_failed && response.status == StatusCode::NOT_MODIFIED {
            if !(is_found(phase) || is_stored(phase)) {
                // Nobody would read the rest of the response.
                return Err(precondition_failed());
            }
            response.set_status(StatusCode::PRECONDITION_FAILED)?;
            response.insert_header(CONTENT_LENGTH, 0)?;
        }
        if response.status == StatusCode::NOT_MODIFIED {
            // The field describes a part, which the client does not get.
            response.remove_header(&CONTENT_RANGE);
        }
        let is_bodiless = matches!(
            response.status,
            StatusCode::NOT_MODIFIED | StatusCode::PRECONDITION_FAILED
        );
        if is_bodiless && is_stored(phase) && !is_short {
            // The client's next request would wait until the body is stored.
            session.set_keepalive(None);
        }
        // A HEAD that the origin answered without evaluating its conditions.
        if !is_found(phase)
            && session.req_header().method == Method::HEAD
            && self.is_not_modified(session, response, ctx)
        {
            if ctx.precondition_failed {
                return Err(precondition_failed());
            }
            response.set_status(StatusCode::NOT_MODIFIED)?;
            response.remove_header(&CONTENT_LENGTH);
        }
        frame_for_http_1_0(session, response);
        let head_ttl = match ctx.state {
            State::HeadHit { ttl } => Some(ttl),
            _ => None,
        };
        let is_hit = serves_stored(phase) || head_ttl.is_some();
        let found = is_hit || is_revalidated(phase);
        let is_partial =
            phase == CachePhase::Hit && ctx.state.found().is_some_and(|found| found.is_partial);
        let collapsed_from = ctx.state.found().and_then(|found| found.collapsed_from);
        let status = CacheStatus {
            cache: self.options.name,
            forwarded: match ctx.forwarded {
                _ if is_partial => Some(Forwarded::Partial),
                // The response to another request.
                None if is_hit && collapsed => Some(collapsed_from.unwrap_or(Forwarded::UriMiss)),
                forwarded if !is_hit => Some(forwarded.unwrap_or(Forwarded::Bypass)),
                Some(forwarded) if ctx.asked_origin() => Some(forwarded),
                _ => None,
            },
            origin_status: ctx
                .origin_status()
                .filter(|status| *status != response.status && found),
            stored: is_stored(phase) || is_partial,
            collapsed,
            ttl: ttl.or(head_ttl).filter(|_| found),
            detail: ctx.served_stale(session).and_then(|why| match why {
                ServedStale::Error => Some("stale-if-error"),
                ServedStale::Revalidating => Some("stale-while-revalidate"),
                ServedStale::Accepted => None,
            }),
        };
        let result = match phase {
            _ if ctx.accepted_stale().is_some() => CacheResult::Stale,
            _ if head_ttl.is_some() => CacheResult::Hit,
            CachePhase::Hit if is_partial => CacheResult::Partial,
            CachePhase::Hit => CacheResult::Hit,
            CachePhase::Stale | CachePhase::StaleUpdating => CacheResult::Stale,
            CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => CacheResult::Revalidated,
            CachePhase::Miss | CachePhase::Expired => CacheResult::Miss,
            _ if ctx.request.kind == RequestKind::Uncached => CacheResult::Bypass,
            _ => CacheResult::Miss,
        };
        ctx.result = Some(result);
        let x_cache = result.x_cache();
        let Some(epoch) = epoch.filter(|_| phase == CachePhase::Hit) else {
            response.append_header(CACHE_STATUS, status.to_value()?)?;
            return response.insert_header(X_CACHE, x_cache);
        };
        make_lasting(response, x_cache)?;
        let mut lasting = (prepares && !is_partial).then(|| response.clone());
        if let (Some(lasting), Some(fields)) = (&mut lasting, ctx.fields()) {
            fields.apply(lasting)?;
        }
        HitFields::new(age(epoch, now), &status).append_to(response)?;
        if let Some(lasting) = lasting {
            self.prepare(session, lasting, ctx);
        }
        Ok(())
    }

    /// Answer a request that fails on a stored response.
    pub(in crate::http::caching) async fn respond_failed(
        &self,
        session: &mut Session,
        failed: &FailedRequest,
        ctx: &CachingCtx,
    ) -> Result<()> {
        session.cache.disable(NoCacheReason::DeclinedToUpstream);
        let mut header = ResponseHeader::build(failed.status, Some(7))?;
        let len = failed.len;
        if let Some(len) = len.filter(|_| failed.status == StatusCode::RANGE_NOT_SATISFIABLE) {
            header.insert_header(CONTENT_RANGE, format!("bytes */{len}"))?;
        }
        let status = CacheStatus {
            ttl: Some(failed.ttl),
            ..CacheStatus::hit(self.options.name)
        };
        make_lasting(&mut header, "HIT")?;
        HitFields::new(failed.age.as_secs(), &status).append_to(&mut header)?;
        self.respond(session, header, ctx).await
    }

    /// Answer in place of the origin, without a body.
    pub(in crate::http::caching) async fn decline(
        &self,
        session: &mut Session,
        mut header: ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        if session.cache.enabled() {
            session.cache.disable(NoCacheReason::DeclinedToUpstream);
        }
        header.insert_header(CONTENT_LENGTH, 0)?;
        self.complete_response(session, &mut header, ctx)?;
        self.respond(session, header, ctx).await
    }

    /// Apply the proxy's own rules, and add the fields that every response of this server has, at last: the one that lets browsers
    /// that use TLS go on to use it (RFC 6797 §7.1), and the name of the request.
    pub(crate) fn add_own_fields(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        ctx: &CachingCtx,
    ) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        if let Some(fields) = ctx.fields() {
            fields.apply(response)?;
        }
        if let Some(value) = self.hsts(session) {
            response.insert_header(STRICT_TRANSPORT_SECURITY, value)?;
        }
        ctx.note_first_byte();
        ctx.identify(response)
    }

    /// The value of `Strict-Transport-Security` for a client.
    pub(in crate::http::caching) fn hsts(&self, session: &Session) -> Option<&HeaderValue> {
        let value = self.options.hsts.as_ref()?;
        let digest = session.as_downstream().digest()?;
        digest.ssl_digest.is_some().then_some(value)
    }

    /// Send a response that the cache itself makes.
    pub(in crate::http::caching) async fn respond(
        &self,
        session: &mut Session,
        mut header: ResponseHeader,
        ctx: &CachingCtx,
    ) -> Result<()> {
        self.add_own_fields(session, &mut header, ctx)?;
        let body = match self.options.error_body {
            Some(body) if header.status.is_client_error() || header.status.is_server_error() => {
                body(session.req_header(), &mut header)?
            }
            _ => Bytes::new(),
        };
        self.send(session, header, body).await
    }

    pub(in crate::http::caching) async fn send(
        &self,
        session: &mut Session,
        header: ResponseHeader,
        body: Bytes,
    ) -> Result<()> {
        let has_body = !body.is_empty() && session.req_header().method != Method::HEAD;
        let sent = session
            .write_response_header(Box::new(header), !has_body)
            .await;
        sent.map_err(classify_send_error)?;
        let body = has_body.then_some(body);
        let sent = session.write_response_body(body, true).await;
        sent.map_err(classify_send_error)
    }
}

/// Note if the stored response is kept in memory.
pub(in crate::http::caching) fn note_memory(session: &mut Session, ctx: &mut CachingCtx) {
    if is_found(session.cache.phase()) {
        let hit = session.cache.hit_handler().as_any().downcast_ref();
        ctx.in_memory = hit.is_some_and(DiskHit::is_in_memory);
    }
}

/// Append the fields of the origin's response that are not stored. Its first reader gets them.
fn append_withheld(
    response: &mut ResponseHeader,
    ctx: &mut CachingCtx,
    is_sent: impl Fn(&HeaderName) -> bool,
) -> Result<()> {
    if let Some(exchange) = ctx.state.exchange_mut() {
        let withheld = exchange.withheld.drain(..);
        for (name, value) in withheld.filter(|(name, _)| is_sent(name)) {
            response.append_header(name, value)?;
        }
    }
    Ok(())
}

/// Let the end of the connection end a body of unknown length. Pingora sends such a body in
/// chunks, which HTTP/1.0 does not know (RFC 9112 §6.1).
pub(super) fn frame_for_http_1_0(session: &mut Session, response: &mut ResponseHeader) {
    if session.req_header().version <= Version::HTTP_10
        && response.headers.contains_key(TRANSFER_ENCODING)
    {
        response.remove_header(&TRANSFER_ENCODING);
        session.set_keepalive(None);
    }
}

/// State the length of a stored response that came in chunks.
fn state_length(session: &Session, response: &mut ResponseHeader, ctx: &CachingCtx) -> Result<()> {
    let phase = session.cache.phase();
    let Some(len) = ctx.complete_len().filter(|_| is_found(phase)) else {
        return Ok(());
    };
    let status = response.status;
    if response.headers.contains_key(TRANSFER_ENCODING)
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        response.remove_header(&TRANSFER_ENCODING);
        response.insert_header(CONTENT_LENGTH, len)?;
    }
    Ok(())
}

/// Apply a request's `Range` to the header of a response.
fn range_type(request: &RequestHeader, response: &mut ResponseHeader) -> Result<RangeType> {
    if request.method != Method::GET || response.status != StatusCode::OK {
        return Ok(RangeType::None);
    }
    let Some(range) = request.headers.get(RANGE) else {
        return Ok(RangeType::None);
    };
    let len = content_length(&response.headers).and_then(|len| usize::try_from(len).ok());
    // `bytes=0-` is the whole body, even an empty one.
    let is_whole = single_range(range.as_bytes()) == Some((0, None));
    let Some(len) = len.filter(|len| *len > 0 || !is_whole) else {
        return Ok(RangeType::None);
    };
    if !if_range_applies(&request.headers, &response.headers, SystemTime::now()) {
        return Ok(RangeType::None);
    }
    // Pingora answers sets of ranges, in ascending order only, and none at all.
    let set = match parse_range(range.as_bytes(), len as u64, MAX_RANGES) {
        Ranges::Ignored => return Ok(RangeType::None),
        Ranges::Unsatisfiable => format!("{len}-"),
        Ranges::Satisfiable(mut ranges) => {
            if let [range] = &ranges[..] {
                // A single range, the common case, needs no second parsing.
                response.set_status(StatusCode::PARTIAL_CONTENT)?;
                response.remove_header(&ACCEPT_RANGES);
                response.insert_header(CONTENT_LENGTH, range.end - range.start)?;
                let of_whole = format!("bytes {}-{}/{len}", range.start, range.end - 1);
                response.insert_header(CONTENT_RANGE, of_whole)?;
                // Both are within the length.
                return Ok(RangeType::Single(range.start as usize..range.end as usize));
            }
            ranges.sort_by_key(|range| range.start);
            let set: Vec<String> = ranges
                .iter()
                .map(|range| format!("{}-{}", range.start, range.end - 1))
                .collect();
            set.join(",")
        }
    };
    let mut canonical = RequestHeader::build("GET", b"/", Some(1))?;
    canonical.insert_header(RANGE, format!("bytes={set}"))?;
    Ok(pingora_proxy::range_header_filter(
        &canonical, response, None,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::heads_for_tests::{request, response};

    /// RFC 9110 §14.2, §15.5.17
    #[test]
    fn a_range_of_a_whole_is_cut_and_of_anything_else_ignored() {
        let ask = |method: &str, range: &str, mut response: ResponseHeader| {
            let asked = request(method, &[("range", range)]);
            let kind = range_type(&asked, &mut response).unwrap();
            (kind, response)
        };
        let whole = || response(200, &[("content-length", "10")]);
        let (kind, part) = ask("GET", "bytes=2-4", whole());
        assert_eq!(kind, RangeType::Single(2..5));
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.headers[CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(part.headers[CONTENT_LENGTH], "3");

        let (kind, none) = ask("GET", "bytes=10-", whole());
        assert_eq!(kind, RangeType::Invalid);
        assert_eq!(none.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(none.headers[CONTENT_RANGE], "bytes */10");

        let (kind, parts) = ask("GET", "bytes=8-9,0-1,1-3", whole());
        let RangeType::Multi(info) = kind else {
            panic!("{kind:?}");
        };
        assert_eq!(info.ranges, [0..4, 8..10]);
        assert_eq!(parts.status, StatusCode::PARTIAL_CONTENT);

        for (method, range, of) in [
            ("HEAD", "bytes=2-4", whole()),
            ("GET", "bytes=4-2", whole()),
            ("GET", "lines=2-4", whole()),
            ("GET", "bytes=2-4", response(200, &[])),
            ("GET", "bytes=0-", response(200, &[("content-length", "0")])),
            (
                "GET",
                "bytes=2-4",
                response(404, &[("content-length", "10")]),
            ),
            (
                "GET",
                "bytes=2-4",
                response(206, &[("content-length", "10")]),
            ),
        ] {
            let status = of.status;
            let (kind, unchanged) = ask(method, range, of);
            assert_eq!(kind, RangeType::None, "{method} {range} of {status}");
            assert_eq!(unchanged.status, status);
        }
    }
}
