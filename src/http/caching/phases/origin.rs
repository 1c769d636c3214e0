//! The origin: the request to it, and the meaning of its answer for the stored response.

use std::time::{Duration, SystemTime};

use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, DATE, HOST, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, RANGE, RETRY_AFTER, SET_COOKIE, TRANSFER_ENCODING, VARY, VIA,
};
use http::{Method, StatusCode, Version};
use log::warn;
use pingora_cache::{CachePhase, NoCacheReason};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::errors::precondition_failed;
use super::lookup::target_key;
use crate::http::caching::error_types::{UNUSABLE_NOT_MODIFIED, UNUSABLE_PART};
use crate::http::caching::shared::{HttpCaching, Store};
use crate::http::caching::state::{Attempt, Bypass, CachingCtx, State, Validation};
use crate::http::rules::cache_status::Forwarded;
use crate::http::rules::conditional::{
    evaluate, has_failing_preconditions, if_range_applies, is_confirmed, validators_match,
    Precondition,
};
use crate::http::rules::fields::connection_fields;
use crate::http::rules::range::{is_bytes, is_consistent_part, is_part_of, parse_content_range};
use crate::http::rules::request::{origin_form, RequestKind};
use crate::http::rules::target::{invalidated, Target};

/// The write timeout while turns are scarce. Otherwise, clients that read slowly, or not at all,
/// would keep all turns. It applies to pieces of at most 64 KiB.
const SCARCE_WRITE_TIMEOUT: Duration = Duration::from_secs(4);

/// `Retry-After` for a request that gets no turn, in seconds.
const RETRY_AFTER_SECS: u64 = 5;

impl HttpCaching {
    pub(in crate::http::caching) async fn ask_origin(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        if ctx.request.kind == RequestKind::Uncached {
            return self.take_turn(session, ctx).await;
        }
        if let State::Failed(failed) = &ctx.state {
            // Boxed, because few requests come here.
            Box::pin(self.respond_failed(session, failed, ctx)).await?;
            return Ok(false);
        }
        if ctx.forwarded.is_none() {
            let variant = session
                .cache
                .maybe_cache_key()
                .is_some_and(|key| key.get_variance_key().is_some());
            ctx.forward(if !session.cache.enabled() {
                Forwarded::Bypass
            } else if variant {
                Forwarded::VaryMiss
            } else {
                Forwarded::UriMiss
            });
        }
        if ctx.request.directives().only_if_cached {
            // RFC 9111 §5.2.1.7
            let header = ResponseHeader::build(StatusCode::GATEWAY_TIMEOUT, Some(4))?;
            self.decline(session, header, ctx).await?;
            return Ok(false);
        }
        if session.cache.enabled() {
            let is_miss = session.cache.phase() == CachePhase::Miss;
            let is_relayed_miss = is_miss && ctx.request.relay.is_some();
            let passes = ctx.request.directives().no_store
                || (is_relayed_miss
                    && (ctx.request.kind != RequestKind::Whole || !ctx.request.may_be_stored()))
                || ctx.request.upgrades
                || self.origin_decides(session.req_header())
                || (is_miss && ctx.request.kind == RequestKind::Head);
            if passes {
                if is_relayed_miss && ctx.request.kind == RequestKind::Part {
                    ctx.note_relayed_key(session);
                }
                session.cache.disable(NoCacheReason::Deferred);
            }
        }
        self.take_turn(session, ctx).await
    }

    /// Wait for the turn to ask the origin. `false`: the wait was too long, and the client has been
    /// answered. Nobody waits for a background request, so it does not wait either.
    async fn take_turn(&self, session: &mut Session, ctx: &mut CachingCtx) -> Result<bool> {
        let is_background = ctx.request.initiator.is_background();
        if let Some(turn) = self.turns.take(is_background).await {
            let exchange = ctx.state.begin_exchange();
            exchange.turn = Some(turn);
            if self.turns.are_scarce() {
                let usual = session.get_write_timeout();
                let timeout = usual.unwrap_or(SCARCE_WRITE_TIMEOUT);
                session.set_write_timeout(Some(timeout.min(SCARCE_WRITE_TIMEOUT)));
                exchange.usual_write_timeout = Some(usual);
            }
            return Ok(true);
        }
        let mut header = ResponseHeader::build(StatusCode::SERVICE_UNAVAILABLE, Some(5))?;
        header.insert_header(RETRY_AFTER, RETRY_AFTER_SECS)?;
        self.decline(session, header, ctx).await?;
        Ok(false)
    }

    pub(in crate::http::caching) fn write_origin_request(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        ctx.check_validation()?;
        let asked = session.req_header();
        if session.cache.enabled() {
            // Pingora would ask for the whole.
            if ctx.request.kind == RequestKind::Head {
                request.set_method(Method::HEAD);
            }
            if ctx.request.kind == RequestKind::Part {
                for name in [RANGE, IF_RANGE] {
                    for value in asked.headers.get_all(&name) {
                        request.append_header(name.clone(), value)?;
                    }
                }
            }
        }
        let exchange = ctx.state.begin_exchange();
        if exchange.validation != Validation::Allowed {
            request.remove_header(&IF_NONE_MATCH);
            request.remove_header(&IF_MODIFIED_SINCE);
        }
        // A range is defined for GET only (RFC 9110 §14.2).
        if exchange.without_range || asked.method == Method::HEAD {
            request.remove_header(&RANGE);
            request.remove_header(&IF_RANGE);
        }
        if let Some(path) = origin_form(request.raw_path()) {
            request.set_raw_path(&path)?;
            request.insert_header(HOST, Target::of(asked).authority)?;
        }
        exchange.attempt = Some(Attempt {
            requested: SystemTime::now(),
            conditional: [IF_NONE_MATCH, IF_MODIFIED_SINCE]
                .iter()
                .any(|name| request.headers.contains_key(name)),
            ranged: request.headers.contains_key(RANGE),
        });
        // RFC 9110 §7.6.3
        let version = match asked.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        };
        request.append_header(VIA, format!("{version} {}", self.options.name))?;
        Ok(())
    }

    pub(in crate::http::caching) async fn read_origin_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS && !ctx.request.upgrades {
            // RFC 9110 §7.8
            let why = "the origin switches to a protocol that was not requested";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        if response.status.is_informational() {
            return Ok(());
        }
        for name in connection_fields(&response.headers) {
            // Connection must not name these (RFC 9110 §7.6.1), and storing depends on them.
            if ![CACHE_CONTROL, VARY].contains(&name) {
                response.remove_header(&name);
            }
        }
        ctx.state.begin_exchange().status = Some(response.status);
        if session.cache.enabled()
            && (!ctx.request.initiator.is_background() || ctx.is_warming())
            && !response.headers.contains_key(CONTENT_LENGTH)
        {
            // Pingora would cut off a body that turns out too large; the cache does not.
            session.cache.set_max_file_size_bytes(usize::MAX);
        }
        if matches!(session.req_header().method, Method::GET | Method::HEAD) {
            if response.status == StatusCode::NOT_MODIFIED {
                if !response.headers.contains_key(DATE) {
                    // RFC 9110 §6.6.1. Without it, the confirmed response would stay as old as before.
                    response.insert_header(DATE, httpdate::fmt_http_date(SystemTime::now()))?;
                }
                self.check_not_modified(session, response, ctx)?;
            } else {
                check_part(session.req_header(), response, ctx)?;
                // The preconditions on a stored response are evaluated when it is served.
                if !session.cache.enabled() || ctx.request.kind == RequestKind::Part {
                    check_preconditions(session.req_header(), response.status, response, ctx)?;
                }
            }
        }
        self.forget_ended(session, response.status, ctx);
        self.invalidate(session, response).await;
        if self.heads.are_kept() {
            self.note_head(session, response, ctx);
        }
        let confirms =
            response.status == StatusCode::NOT_MODIFIED || ctx.request.kind == RequestKind::Head;
        if confirms && session.cache.phase() == CachePhase::Stale {
            // The cookies are for this client, and not part of the stored response.
            let cookies = response.headers.get_all(SET_COOKIE).iter().cloned();
            ctx.state.begin_exchange().cookies = cookies.collect();
            response.remove_header(&SET_COOKIE);
        }
        if ctx.request.kind == RequestKind::Head && session.cache.phase() == CachePhase::Stale {
            self.update_by_head(session, response, ctx).await;
        }
        if ctx.request.kind == RequestKind::Part && !ctx.request.directives().no_store {
            // Disabled: the object is not admitted yet, or is too large.
            let key = session.cache.maybe_cache_key().cloned();
            let key = key.filter(|_| session.cache.enabled());
            let candidate = key.and_then(|key| self.fill_candidate(session, key, response, ctx));
            ctx.state.begin_exchange().fill_candidate = candidate;
        }
        Ok(())
    }

    /// Remove a stored response if its validation shows that the origin no longer has it.
    /// Otherwise it would be served stale during later validations, or when they fail.
    fn forget_ended(&self, session: &Session, status: StatusCode, ctx: &CachingCtx) {
        let is_ended = match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => true,
            // These concern the request: S3 sends 400 for expired access keys.
            StatusCode::BAD_REQUEST
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS => false,
            // In the foreground the client gets this answer, in the background nobody does.
            status => {
                ctx.request.initiator.is_background()
                    && !ctx.is_warming()
                    && status.is_client_error()
            }
        };
        if let (true, CachePhase::Stale, Some(store)) =
            (is_ended, session.cache.phase(), &self.store)
        {
            store.cache.evict_variant(session.cache.cache_key());
        }
    }

    /// Invalidate what an unsafe method has changed (RFC 9111 §4.4).
    async fn invalidate(&self, session: &Session, response: &ResponseHeader) {
        let Some(Store { cache, .. }) = self.store else {
            return;
        };
        for target in invalidated(session.req_header(), response) {
            if let Err(e) = cache.invalidate(&target_key(&target)).await {
                warn!(
                    "{}{} has changed, but its stored response was not invalidated: {e}",
                    target.authority, target.path_and_query
                );
            }
        }
    }

    /// Check that a 304 confirms the stored response, or answers the client's own conditions.
    ///
    /// # Errors
    /// It does neither. The error asks for one more attempt, without conditions.
    fn check_not_modified(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        let conditional = ctx
            .state
            .attempt()
            .is_some_and(|attempt| attempt.conditional);
        let fits = conditional
            && if session.cache.enabled() {
                let stored = session.cache.maybe_cache_meta();
                stored.is_some_and(|stored| validators_match(&response.headers, stored.headers()))
            } else {
                // The conditions are those of the client. If-Match comes first (RFC 9110 §13.2.2).
                let asked = session.req_header();
                check_preconditions(asked, StatusCode::OK, response, ctx)?;
                is_confirmed(&asked.headers, &response.headers, SystemTime::now())
            };
        if fits {
            return Ok(());
        }
        let why = if conditional {
            "the origin's 304 is about another version"
        } else {
            "the origin sent a 304 to a request without conditions"
        };
        let mut error = Error::explain(UNUSABLE_NOT_MODIFIED, why).into_up();
        // After a second one, the next attempt ends before it begins. An error without a retry
        // would make Pingora serve the stored response.
        error.set_retry(true);
        ctx.state.begin_exchange().withdraw_conditions();
        Err(error)
    }
}

/// Check that the part in the origin's response is the requested one, and of the version that the
/// client has. Not every origin obeys If-Range: MinIO ignores it, and the client would join parts
/// of two versions.
///
/// # Errors
/// A part that is of no use. If another attempt can fetch the whole, the error asks for
/// one.
fn check_part(
    asked: &RequestHeader,
    response: &mut ResponseHeader,
    ctx: &mut CachingCtx,
) -> Result<()> {
    let unusable = |why| Error::explain(UNUSABLE_PART, why).into_up();
    let ranged = ctx.state.attempt().is_some_and(|attempt| attempt.ranged);
    let names_part = ctx.request.bypass == Some(Bypass::NamedPart);
    let applies = match response.status {
        // The target names the part by its number.
        StatusCode::PARTIAL_CONTENT if names_part && !ranged => {
            if !is_consistent_part(&response.headers) {
                return Err(unusable(
                    "the origin sent a part whose Content-Range contradicts its length",
                ));
            }
            state_part_length(response)?;
            true
        }
        StatusCode::PARTIAL_CONTENT if !ranged => {
            return Err(unusable("the origin sent a part that was not requested"));
        }
        StatusCode::PARTIAL_CONTENT => {
            let range = asked.headers.get(RANGE);
            if let Some(range) = range.filter(|range| is_bytes(range.as_bytes())) {
                if !is_consistent_part(&response.headers) {
                    return Err(unusable(
                        "the origin sent a part whose Content-Range contradicts its length",
                    ));
                }
                if !is_part_of(&response.headers, range.as_bytes()) {
                    return Err(unusable(
                        "the origin sent a different part from the one requested",
                    ));
                }
                state_part_length(response)?;
            }
            if_range_applies(&asked.headers, &response.headers, SystemTime::now())
        }
        // A 416 does not name the version.
        StatusCode::RANGE_NOT_SATISFIABLE if ranged => !asked.headers.contains_key(IF_RANGE),
        _ => true,
    };
    if applies {
        return Ok(());
    }
    ctx.state.begin_exchange().without_range = true;
    let mut error = unusable("the origin sent a part of another version than If-Range names");
    error.set_retry(true);
    Err(error)
}

/// State the length of a part that comes in chunks or to the end of the connection, so that a
/// truncated part does not look complete.
fn state_part_length(response: &mut ResponseHeader) -> Result<()> {
    let range = response.headers.get(CONTENT_RANGE);
    let range = range.and_then(|range| parse_content_range(range.as_bytes())?.range);
    if let Some(range) = range.filter(|_| !response.headers.contains_key(CONTENT_LENGTH)) {
        response.remove_header(&TRANSFER_ENCODING);
        response.insert_header(CONTENT_LENGTH, range.end - range.start)?;
    }
    Ok(())
}

/// Check that the origin's response meets the client's `If-Match` and `If-Unmodified-Since`,
/// which not every origin obeys (RFC 9110 §13.1.1, §13.1.4).
///
/// # Errors
/// 412.
fn check_preconditions(
    asked: &RequestHeader,
    status: StatusCode,
    response: &ResponseHeader,
    ctx: &CachingCtx,
) -> Result<()> {
    if ctx.request.initiator.is_background() || !has_failing_preconditions(&asked.headers) {
        return Ok(());
    }
    let judged = evaluate(
        &asked.method,
        &asked.headers,
        status,
        &response.headers,
        SystemTime::now(),
    );
    if judged != Precondition::Failed {
        return Ok(());
    }
    Err(precondition_failed())
}
