//! The state of one request in the cache.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pingora_cache::{CacheKey, CachePhase};
use pingora_core::{Error, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::{Session, SubrequestSpawner};

use super::error_types::UNUSABLE_NOT_MODIFIED;
use crate::cache::ForParts;
use crate::http::head_cache::HeadLookup;
use crate::http::origin_turns::OriginTurn;
use crate::http::range_fill::{Download, FillCandidate, FillGuard};
use crate::http::remainder::PartRequests;
use crate::http::response_fields::ResponseFields;
use crate::http::rules::cache_control::{RequestDirectives, NO_DIRECTIVES};
use crate::http::rules::cache_status::{CacheResult, Forwarded};
use crate::http::rules::request::RequestKind;
use crate::http::rules::storing::StoringRules;
use crate::http::trace::Trace;
use crate::http::warming::WarmRequest;

/// The cache's part of a proxy's per-request context.
#[derive(Default)]
pub struct CachingCtx {
    pub(super) request: RequestFacts,
    pub(super) state: State,
    /// The first reason for asking the origin.
    pub(super) forwarded: Option<Forwarded>,
    /// A precondition of the client is false for the response.
    pub(super) precondition_failed: bool,
    /// The body of the stored response is kept in memory.
    pub(super) in_memory: bool,
    /// Set if the proxy logs the request. Boxed, because few proxies do.
    pub(super) trace: Option<Box<Trace>>,
    /// The time of the response header, see [`micros`]. [`NO_HEADER`]: there is none yet; 0: it is not
    /// measured. Atomic, because error responses have only `&CachingCtx`.
    first_byte: AtomicU32,
    /// The value of `X-Cache`.
    pub(super) result: Option<CacheResult>,
    /// The proxy's own rules for the header of the response. Boxed, because few proxies have any.
    fields: Option<Box<ResponseFields>>,
}

// Every hit writes all of it.
const _: () = assert!(std::mem::size_of::<CachingCtx>() <= 136);

/// Facts about a request. They are known by the end of `request_filter` and
/// `request_cache_filter`, and do not depend on the progress of the request.
#[derive(Default)]
pub(super) struct RequestFacts {
    pub kind: RequestKind,
    /// `None` if the request has no directive. Boxed, because few requests have any.
    directives: Option<Box<RequestDirectives>>,
    pub initiator: Initiator,
    pub arrived: Option<SystemTime>,
    /// The proxy has asked for the request to bypass the cache.
    pub bypass: Option<Bypass>,
    pub fast_path: FastPath,
    /// The client offers another protocol, which only the origin can switch to.
    pub upgrades: bool,
    /// Set if the origin decides on every request; see [`CachingCtx::relay`].
    pub relay: Option<Box<RelayedRequest>>,
    /// Replaces [`CachingOptions::storing`](super::CachingOptions::storing).
    pub storing: Option<Arc<StoringRules>>,
    /// Facts about the parts of the object. Boxed, because few requests have any.
    pub parts: Option<Box<PartFacts>>,
}

/// Facts about the parts of an object.
#[derive(Default)]
pub(super) struct PartFacts {
    /// The download in parts that the request belongs to.
    pub download: Option<Arc<Download>>,
    /// The means to make subrequests, once a hit in blocks has taken them from the session.
    pub requests: Option<Arc<PartRequests>>,
}

/// The party that makes a request.
#[derive(Default)]
pub(super) enum Initiator {
    /// A client.
    #[default]
    Client,
    /// The proxy fetches or revalidates a whole response, which nobody reads. A fill holds its
    /// guard as long as it lasts.
    Background { _fill: Option<FillGuard> },
    /// The proxy fetches a whole response, which the requests of a download in parts read.
    Download(ForParts),
    /// The proxy fetches a whole response, for somebody who wants it to be stored.
    Warming(Arc<WarmRequest>),
    /// The proxy asks through the cache, and reads the response itself: an [`Ask`].
    Proxy,
    /// The proxy asks the origin past the cache: for the remainder of a response, as a
    /// [`Probe`] or as a [`Fetch`].
    PastCache,
}

/// The extent of the response to a request that bypasses the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bypass {
    /// The response that the request's fields ask for.
    AsAsked,
    /// A part that the target names, without a `Range`.
    NamedPart,
}

/// Permission to answer a request by [`serve_fast_hit`](super::HttpCaching::serve_fast_hit).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum FastPath {
    #[default]
    Undecided,
    /// The proxy changes the response for this request only.
    Forbidden,
    /// No field of the request affects a hit.
    Allowed,
}

/// Progress of a request.
#[derive(Default)]
pub(super) enum State {
    /// Nothing usable has been found yet.
    #[default]
    Received,
    /// A stored response has been found. Pingora's cache phase tells if it is served.
    Found(Found),
    /// [`serve_fast_hit`](super::HttpCaching::serve_fast_hit) has answered.
    FastHit,
    /// The head cache answers a HEAD.
    HeadHit {
        /// Seconds of freshness left.
        ttl: i64,
    },
    /// A fresh stored response shows that the request fails.
    Failed(Box<FailedRequest>),
    /// The origin answers, or is about to be asked. Boxed, because hits do not come here.
    Origin(Box<Exchange>),
}

/// A stored response that was found.
#[derive(Default)]
pub(super) struct Found {
    /// The length of the stored body; `None`: it is being stored.
    pub complete_len: Option<u64>,
    /// Set if the response is stale and served as if it were fresh.
    pub accepted_stale: Option<ServedStale>,
    /// The response must not be served if the origin cannot be reached.
    pub must_revalidate: bool,
    /// The requested part begins where the fill has not arrived yet.
    pub waits_for_fill: bool,
    /// The client needs blocks that are not stored.
    pub is_partial: bool,
    /// Reason this request would have been forwarded had it not been collapsed.
    pub collapsed_from: Option<Forwarded>,
}

/// A 412 or 416 that follows from a fresh stored response.
pub(super) struct FailedRequest {
    pub status: StatusCode,
    /// The length of the stored body, if it is known.
    pub len: Option<u64>,
    pub age: Duration,
    /// Seconds of freshness left.
    pub ttl: i64,
}

/// The exchange with the origin.
#[derive(Default)]
pub(super) struct Exchange {
    /// The stored response that the origin is asked to validate.
    pub found: Option<Found>,
    /// Held while the response is neither served from the disk nor being stored with a known
    /// length.
    pub turn: Option<OriginTurn>,
    /// The session's own write timeout, while a shorter one is set.
    pub usual_write_timeout: Option<Option<Duration>>,
    /// The latest request to the origin.
    pub attempt: Option<Attempt>,
    pub validation: Validation,
    /// The origin sent a part of another version than the client's, so the next attempt asks for
    /// the whole.
    pub without_range: bool,
    /// The status of the origin's answer.
    pub status: Option<StatusCode>,
    /// `Set-Cookie` fields of an answer that has updated the stored response.
    pub cookies: Vec<HeaderValue>,
    /// Fields of the answer that are not stored.
    pub withheld: Vec<(HeaderName, HeaderValue)>,
    /// The missing head cache entry that the answer may create.
    pub head_lookup: Option<HeadLookup>,
    /// The whole of the part that the origin sends, if it would be stored.
    pub fill_candidate: Option<FillCandidate>,
}

/// A request to the origin.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub requested: SystemTime,
    /// It asks for a 304 if nothing has changed.
    pub conditional: bool,
    /// It asks for a part.
    pub ranged: bool,
}

/// Permission to ask the origin for a 304.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Validation {
    #[default]
    Allowed,
    /// The origin sent an unusable 304; the next attempt has no conditions.
    Withdrawn,
    /// The answer to an attempt without conditions was a 304 again.
    Refused,
}

/// The reason a stale response is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedStale {
    /// The origin fails, or does not answer in time.
    Error,
    /// It is being revalidated.
    Revalidating,
    /// The client accepts it.
    Accepted,
}

/// A request that goes to the origin as the client made it. The origin decides who may have the
/// response.
#[derive(Debug, Default)]
pub struct RelayedRequest {
    /// The cache may store and serve the response. Otherwise the request only passes through.
    pub is_cached: bool,
    /// The response is the same for every client that may have it.
    pub stores: bool,
    /// Conditions and ranges that must reach the origin because they are signed.
    pub signed: Vec<HeaderName>,
    /// A field that is added to the stored response. A stored response without it is incomplete
    /// for this client.
    pub mark: Option<HeaderName>,
    /// The request's `Host`, if the origin may answer another `Host` differently. The stored
    /// response then serves only requests with the same `Host`.
    pub host: Option<Box<[u8]>>,
    /// The origin need not be asked.
    pub is_permitted: bool,
    /// The proxy can fetch the whole with its own credentials after the origin has given a part
    /// to the client.
    pub fills: bool,
    /// The cache key of the whole, if the request passes the cache as one for a part.
    pub(crate) key: Option<CacheKey>,
}

/// The context of a subrequest that asks if the origin has the requested object. It is a HEAD and
/// bypasses the cache.
pub struct Probe;

/// The context of a subrequest that gets what the origin answers. It is a GET and bypasses the cache.
pub struct Fetch;

/// The context of a subrequest of the proxy that goes through the cache like a client's request. The
/// proxy reads the response.
pub struct Ask;

/// The context of a subrequest that fetches the whole for a download in parts.
pub(super) struct DownloadFill(pub ForParts);

/// Stands in [`CachingCtx::first_byte`] for a header that is still to come.
const NO_HEADER: u32 = 1;

/// A time in few bytes: microseconds from the first one that was asked for. They overflow after 71
/// minutes; no header takes as long.
fn micros(at: Instant) -> u32 {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    // One that is earlier is so many before.
    match at.checked_duration_since(*FIRST) {
        Some(after) => after.as_micros() as u32,
        None => (FIRST.duration_since(at).as_micros() as u32).wrapping_neg(),
    }
}

// === impl CachingCtx ===

impl CachingCtx {
    /// True if the response is a stored one whose body is kept in memory.
    pub fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// True if the origin was asked.
    pub fn asked_origin(&self) -> bool {
        self.state.attempt().is_some()
    }

    /// Measure the time to the response header. Call it before anything else.
    pub fn measure(&mut self) {
        *self.first_byte.get_mut() = NO_HEADER;
    }

    /// The time from the request, which began at `began`, to its response header. `None`: there was no
    /// header, or the time is not measured.
    pub fn first_byte(&self, began: Instant) -> Option<Duration> {
        let noted = self.first_byte.load(Ordering::Relaxed);
        let took = noted.wrapping_sub(micros(began));
        (noted > NO_HEADER).then(|| Duration::from_micros(took.into()))
    }

    /// Note that the response header is ready. The first time counts.
    pub(super) fn note_first_byte(&self) {
        if self.first_byte.load(Ordering::Relaxed) == NO_HEADER {
            let noted = micros(Instant::now()).max(NO_HEADER + 1);
            self.first_byte.store(noted, Ordering::Relaxed);
        }
    }

    /// The part of the cache in the response, as `X-Cache` states it; `None`: the response is the
    /// proxy's own.
    pub fn result(&self) -> Option<CacheResult> {
        self.result
    }

    /// Note what an answer of the proxy's own says of the cache.
    pub fn set_result(&mut self, result: CacheResult) {
        self.result = Some(result);
    }

    /// Take notes on the request, and name it in its responses. Call it before anything else.
    pub fn set_trace(&mut self, trace: Trace) {
        self.trace = Some(Box::new(trace));
    }

    /// The notes on the request, if any are taken.
    pub fn trace(&self) -> Option<&Trace> {
        self.trace.as_deref()
    }

    /// The notes on the request, if any are taken.
    pub fn trace_mut(&mut self) -> Option<&mut Trace> {
        self.trace.as_deref_mut()
    }

    /// Change the header of the response by these rules when it is sent. Call it before
    /// `request_filter`.
    pub fn set_fields(&mut self, fields: ResponseFields) {
        self.fields = Some(Box::new(fields));
    }

    /// Note that the proxy describes the response as another form of what was asked for, see
    /// [`ResponseFields::set_coded`]. Call it after [`set_fields`](Self::set_fields).
    pub fn set_coded(&mut self) {
        if let Some(fields) = &mut self.fields {
            fields.set_coded();
        }
    }

    /// The rules for the header of the response.
    pub(super) fn fields(&self) -> Option<&ResponseFields> {
        self.fields.as_deref()
    }

    /// The tag of the prepared headers that may be sent.
    pub(super) fn header_tag(&self) -> u32 {
        self.fields().map_or(0, ResponseFields::tag)
    }

    /// Name the request in a response, for a document that has the name too.
    ///
    /// # Errors
    /// The name of the field is not valid.
    pub fn identify(&self, response: &mut ResponseHeader) -> Result<()> {
        match &self.trace {
            Some(trace) => trace.identify(response),
            None => Ok(()),
        }
    }

    /// The means to make subrequests.
    pub(super) fn spawner<'s>(&'s self, session: &'s Session) -> Option<&'s SubrequestSpawner> {
        let taken = self.request.parts.as_ref();
        let taken = taken.and_then(|parts| parts.requests.as_ref());
        let spawner = session.subrequest_spawner.as_ref();
        spawner.or_else(|| taken.map(|requests| &requests.spawner))
    }

    /// True for a subrequest that the proxy makes itself.
    pub fn is_background(&self) -> bool {
        !matches!(self.request.initiator, Initiator::Client)
    }

    /// True for a subrequest that stores a response, see [`warm`](crate::http::warming::warm).
    pub fn is_warming(&self) -> bool {
        self.request.initiator.warming().is_some()
    }

    /// True if the response comes from the cache and the origin was not asked.
    pub fn is_hit(&self, session: &Session) -> bool {
        match self.state {
            State::FastHit | State::HeadHit { .. } | State::Failed(_) => true,
            _ => serves_stored(session.cache.phase()) && !self.asked_origin(),
        }
    }

    /// True if the response is a stored one.
    pub fn is_found(&self, session: &Session) -> bool {
        is_found(session.cache.phase())
    }

    /// True if the origin's response is stored.
    pub fn is_stored(&self, session: &Session) -> bool {
        is_stored(session.cache.phase())
    }

    /// Neither look up nor store the response to this request. `names_part`: the target names a
    /// part of the object, without a `Range`. Call it before `request_filter`.
    pub fn bypass_cache(&mut self, names_part: bool) {
        self.request.bypass = Some(match names_part {
            true => Bypass::NamedPart,
            false => Bypass::AsAsked,
        });
    }

    /// Keep the header of this response from being reused, because the proxy's own
    /// `response_filter` changes it for this request only. Call it before `request_filter`.
    pub fn forbid_fast_hit(&mut self) {
        self.request.fast_path = FastPath::Forbidden;
    }

    /// Apply these rules in place of [`CachingOptions::storing`](super::CachingOptions::storing).
    /// Call it in `request_cache_filter`.
    pub fn set_storing(&mut self, rules: Arc<StoringRules>) {
        self.request.storing = Some(rules);
    }

    /// Relay the request to the origin as the client made it. Call it before `request_filter`.
    pub fn relay(&mut self, relay: RelayedRequest) {
        if !relay.is_cached {
            self.request.bypass.get_or_insert(Bypass::AsAsked);
        }
        self.request.fast_path = FastPath::Forbidden;
        self.request.relay = Some(Box::new(relay));
    }

    /// Serve a stored response to a relayed request without asking the origin. Call it before
    /// `cache_hit_filter`.
    pub fn permit(&mut self) {
        if let Some(relay) = &mut self.request.relay {
            relay.is_permitted = true;
        }
    }

    /// True for the proxy's own request for the whole that follows a relayed request for a part.
    pub fn is_relay_fill(&self) -> bool {
        let fills = self.request.relay.as_ref().is_some_and(|relay| relay.fills);
        fills && self.request.initiator.is_background()
    }

    /// The reason a stale response is served, if one is.
    pub fn served_stale(&self, session: &Session) -> Option<ServedStale> {
        match session.cache.phase() {
            // Only the origin decides who may have it.
            _ if self.request.relay.is_some() => None,
            CachePhase::Stale => Some(ServedStale::Error),
            CachePhase::StaleUpdating => Some(ServedStale::Revalidating),
            CachePhase::Hit => self.accepted_stale(),
            _ => None,
        }
    }

    /// True if a stale response is served should the origin fail or not answer in time.
    pub fn may_serve_stale(&self, session: &Session) -> bool {
        let stored = session.cache.maybe_cache_meta();
        !self.request.directives().no_cache
            && !self.is_warming()
            && session.cache.phase() == CachePhase::Stale
            && stored.is_some_and(|stored| stored.serve_stale_if_error(SystemTime::now()))
    }

    /// # Errors
    /// The origin has answered twice with an unusable 304.
    pub(super) fn check_validation(&self) -> Result<()> {
        let exchange = self.state.exchange();
        if exchange.is_some_and(|exchange| exchange.validation == Validation::Refused) {
            let why = "the origin insists on a 304 that cannot be used";
            return Err(Error::explain(UNUSABLE_NOT_MODIFIED, why).into_up());
        }
        Ok(())
    }

    /// Note a reason for asking the origin. The first one counts.
    pub(super) fn forward(&mut self, why: Forwarded) {
        self.forwarded.get_or_insert(why);
    }

    /// True if the origin's response to a relayed request is passed on as it is.
    pub(super) fn is_relayed(&self, phase: CachePhase) -> bool {
        self.request.relay.is_some() && !is_found(phase) && !is_stored(phase)
    }

    pub(super) fn accepted_stale(&self) -> Option<ServedStale> {
        self.state.found()?.accepted_stale
    }

    /// The length of the stored body; `None`: it is being stored.
    pub(super) fn complete_len(&self) -> Option<u64> {
        self.state.found()?.complete_len
    }

    /// The status of the origin's answer.
    pub(super) fn origin_status(&self) -> Option<StatusCode> {
        self.state.exchange()?.status
    }
}

// === impl RequestFacts ===

impl RequestFacts {
    pub fn directives(&self) -> &RequestDirectives {
        self.directives.as_deref().unwrap_or(&NO_DIRECTIVES)
    }

    /// Read the directives of a request.
    pub fn set_directives(&mut self, headers: &HeaderMap) {
        let directives = RequestDirectives::from_headers(headers);
        self.directives = (directives != NO_DIRECTIVES).then(|| Box::new(directives));
    }

    /// The download in parts that the request belongs to.
    pub fn download(&self) -> Option<&Arc<Download>> {
        self.parts.as_ref()?.download.as_ref()
    }

    pub fn parts_mut(&mut self) -> &mut PartFacts {
        self.parts.get_or_insert_default()
    }

    pub fn allows_fast_hit(&self) -> bool {
        self.fast_path == FastPath::Allowed
    }

    /// True unless the response to a relayed request is for its client only.
    pub fn may_be_stored(&self) -> bool {
        self.relay.as_ref().is_none_or(|relay| relay.stores)
    }
}

// === impl Initiator ===

impl Initiator {
    /// True for a subrequest that fetches or revalidates a whole response.
    pub fn is_background(&self) -> bool {
        matches!(
            self,
            Initiator::Background { .. } | Initiator::Download(_) | Initiator::Warming(_)
        )
    }

    /// The request that stores a response, if it is one.
    pub fn warming(&self) -> Option<&Arc<WarmRequest>> {
        match self {
            Initiator::Warming(warming) => Some(warming),
            _ => None,
        }
    }

    /// True for a subrequest that bypasses the cache.
    pub fn is_past_cache(&self) -> bool {
        matches!(self, Initiator::PastCache)
    }
}

// === impl Exchange ===

impl Exchange {
    /// Note an unusable 304.
    pub fn withdraw_conditions(&mut self) {
        self.validation = match self.validation {
            Validation::Allowed => Validation::Withdrawn,
            Validation::Withdrawn | Validation::Refused => Validation::Refused,
        };
    }
}

// === impl State ===

impl State {
    pub fn found(&self) -> Option<&Found> {
        match self {
            State::Found(found) => Some(found),
            State::Origin(exchange) => exchange.found.as_ref(),
            _ => None,
        }
    }

    pub fn found_mut(&mut self) -> Option<&mut Found> {
        match self {
            State::Found(found) => Some(found),
            State::Origin(exchange) => exchange.found.as_mut(),
            _ => None,
        }
    }

    /// Note what a lookup has found. A request that waits for another one looks up repeatedly.
    pub fn set_found(&mut self, found: Found) {
        match self {
            State::Origin(exchange) => exchange.found = Some(found),
            state => *state = State::Found(found),
        }
    }

    pub fn exchange(&self) -> Option<&Exchange> {
        match self {
            State::Origin(exchange) => Some(exchange),
            _ => None,
        }
    }

    /// The exchange with the origin, which begins if it has not yet.
    pub fn begin_exchange(&mut self) -> &mut Exchange {
        if !matches!(self, State::Origin(_)) {
            let found = match std::mem::take(self) {
                State::Found(found) => Some(found),
                _ => None,
            };
            *self = State::Origin(Box::new(Exchange {
                found,
                ..Exchange::default()
            }));
        }
        match self {
            State::Origin(exchange) => exchange,
            _ => unreachable!("set above"),
        }
    }

    /// The exchange with the origin, if it has begun.
    pub fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        match self {
            State::Origin(exchange) => Some(exchange),
            _ => None,
        }
    }

    /// The latest request to the origin.
    pub fn attempt(&self) -> Option<Attempt> {
        self.exchange()?.attempt
    }
}

/// True if a stored response is served without the origin having been asked, or after it has
/// failed.
pub(super) fn serves_stored(phase: CachePhase) -> bool {
    matches!(
        phase,
        CachePhase::Hit | CachePhase::Stale | CachePhase::StaleUpdating
    )
}

/// True if a stored response is served after a 304.
pub(super) fn is_revalidated(phase: CachePhase) -> bool {
    matches!(
        phase,
        CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_)
    )
}

/// True if a stored response is served.
pub(super) fn is_found(phase: CachePhase) -> bool {
    serves_stored(phase) || is_revalidated(phase)
}

/// True if the origin's response is being stored.
pub(super) fn is_stored(phase: CachePhase) -> bool {
    matches!(phase, CachePhase::Miss | CachePhase::Expired)
}
