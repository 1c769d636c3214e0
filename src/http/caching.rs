//! What a caching proxy does in each of Pingora's phases.
//!
//! [`HttpCaching`] has a method for each callback of
//! [`ProxyHttp`](pingora_proxy::ProxyHttp) that has to do with caching; the proxy
//! calls it there. `examples/http_cache.rs` is a proxy that does nothing else.

mod relay;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE,
    DATE, ETAG, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    LAST_MODIFIED, MAX_FORWARDS, PRAGMA, RANGE, RETRY_AFTER, SET_COOKIE, TRANSFER_ENCODING,
    UPGRADE, VARY, VIA,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use log::{debug, warn};
use pingora_cache::key::{CacheHashKey, HashBinary};
use pingora_cache::lock::CacheKeyLockImpl;
use pingora_cache::{
    BodyPart, CacheKey, CacheMeta, CacheOptionOverrides, CachePhase, ForcedFreshness, HitHandler,
    NoCacheReason, RespCacheable,
};
use pingora_core::protocols::http::prepared_header::PreparedHeader;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::{FailToProxy, ProxyWarnLogContext, RangeType, Session};
use tokio::time::sleep;

use super::background::BackgroundFills;
use super::fill_lock::FillLock;
use super::head_cache::{AskedHead, Heads};
use super::origin_turns::{OriginTurn, OriginTurns};
use super::range_fill::{Download, FillGuard, Part, RangeFills, Share, DOWNLOAD_PART};
use super::remainder::{offers_rest, FetchedRest, RestRequest};
use super::request_body::has_body;
use super::rules::cache_control::RequestDirectives;
use super::rules::cache_status::{CacheStatus, Forwarded};
use super::rules::conditional::{
    evaluate, has_failing_preconditions, if_range_applies, is_confirmed, Precondition,
};
use super::rules::etag::EntityTag;
use super::rules::fields::{connection_fields, is_connection_field, RequestFields};
use super::rules::freshness::{is_from_the_future, ttl, Times};
use super::rules::range::{
    is_bytes, is_consistent_part, is_part_of, parse_content_range, parse_range, single_range,
    Ranges,
};
use super::rules::storing::{is_always_stale, Answer, StoringRules};
use super::rules::target::{invalidated, Target};
use super::rules::vary::{is_readable, variance, Variance};
use super::too_large::TooLarge;
use super::variants::Variants;
pub use relay::OwnRequest;

use crate::cache::disk::NO_ROOM;
use crate::cache::miss::{ForParts, InBackground, DESERTED};
use crate::cache::{DiskCache, DiskHit, Filling, Prepared};

/// A range that begins so far behind what a fill has written waits for it. One
/// further away does so only if the fill comes there soon, and is fetched by itself otherwise.
const FOLLOW_BYTES: u64 = 1 << 20;

/// The time after which the pace of a fill is known. Before that, it is assumed to come to
/// [`FAR_BYTES`] soon.
const PACE_TIME: Duration = Duration::from_millis(250);

/// The longest way to where a range begins for a fill whose pace is not known.
const FAR_BYTES: u64 = 256 << 20;

/// A long part waits so long for one with which a download begins, if nothing is stored.
const OVERTAKING_TIME: Duration = Duration::from_millis(20);

/// More ranges than this are ignored, as Pingora does by default.
const MAX_RANGES: usize = 200;

/// A response with more fields is passed on and not stored: Pingora cannot read it
/// back (pingora-header-serde, `MAX_HEADERS`).
const MAX_STORED_FIELDS: usize = 256;

/// The fields that make an answer to a request differ from the whole stored response.
const CONDITIONS: [HeaderName; 6] = [
    RANGE,
    IF_RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
];

/// Outcome of [`HttpCaching::begin`] for a request.
enum Begun {
    /// The request goes on, and its context tells what it asks for.
    Judged,
    /// The request is to be answered with this status.
    Answer(StatusCode),
    /// Only the end of the request tells whether it has a body.
    MayHaveBody,
}

/// Kinds of fields that a request has and that affect how it is served.
#[derive(Clone, Copy, Default)]
struct Fields {
    /// True for a field of [`CONDITIONS`].
    condition: bool,
    /// True for `Cache-Control` or `Pragma`, if directives of requests count.
    directive: bool,
    /// True for a field about the connection, which ends at this hop.
    ending_here: bool,
}

/// Longer than `Age` and `Cache-Status` of most hits, in bytes.
const FIELDS_LEN: usize = 64;

/// Lookups of a request that waited for another one, before it asks the origin itself.
/// Lookups because the other one takes long are not counted.
const LOCK_RETRIES: usize = 2;

/// The write timeout where turns are scarce: clients that read slowly, or not at all, would
/// keep all turns otherwise. It applies to pieces of at most 64 KiB.
const SCARCE_WRITE_TIMEOUT: Duration = Duration::from_secs(4);

/// `Retry-After` for a request that got no turn, in seconds.
const RETRY_AFTER_SECS: u64 = 5;

/// The error of a fill in the background whose answer cannot be stored: nobody
/// would read it.
pub const NOT_FILLED: ErrorType = ErrorType::new("NotFilled");

/// The error of a 304 that does not fit what it was asked for.
pub const UNUSABLE_NOT_MODIFIED: ErrorType = ErrorType::new("UnusableNotModified");

/// The error of a part that does not fit what the client has or has asked for.
pub const UNUSABLE_PART: ErrorType = ErrorType::new("UnusablePart");

/// The cache's name unless its owner sets another.
pub const CACHE_NAME: &str = "pingora-sendfile";

/// What the owner of a caching proxy decides.
#[derive(Debug, Clone)]
pub struct CachingOptions {
    /// What is stored, and how long it is fresh.
    pub storing: StoringRules,
    /// The cache's name in `Cache-Status` and `Via`: a token.
    pub name: &'static str,
    /// The fields of a client's request that reach the origin. No other field selects
    /// a variant or decides on storing.
    pub request_fields: RequestFields,
    /// The most variants that are stored of a response with `Vary`. The variant that was
    /// stored first leaves for a new one.
    pub max_variants: usize,
    /// Heed the `Cache-Control` of requests. They are advisory (RFC 9111 §5.2.1),
    /// and let any client make the proxy ask the origin.
    pub request_directives: bool,
    /// Whether a part that is not stored makes the proxy fetch the whole.
    pub background_fills: BackgroundFills,
    /// How long requests wait for another one that asks the same, before one of
    /// them asks the origin too.
    pub lock_age: Duration,
    /// How long a request waits at all, before it asks the origin itself.
    pub lock_timeout: Duration,
    /// `If-Match` and `If-Unmodified-Since` do not keep a response from being stored. They are
    /// judged by its validators, as S3 does, and an origin that judges by something else is
    /// not asked. Otherwise the origin judges, unless a fresh response is stored.
    pub judges_preconditions: bool,
    /// The most requests that wait for the origin, or pass on a response that is not stored or
    /// has no length, at a time.
    pub max_misses: usize,
    /// The longest time that further requests wait for their turn, before they get 503.
    pub miss_timeout: Duration,
    /// The longest time for which the origin's answer to a HEAD answers others, if it is fresh;
    /// zero: not at all. See [`HttpCaching::stored_head`].
    pub head_ttl: Duration,
    /// Makes the body of an error of this cache's own, and the fields that describe it.
    /// `None`: there is none.
    pub error_body: Option<ErrorBody>,
}

/// See [`CachingOptions::error_body`]. The response has its status, and fields that stay.
pub type ErrorBody = fn(&RequestHeader, &mut ResponseHeader) -> Result<Bytes>;

impl Default for CachingOptions {
    fn default() -> Self {
        CachingOptions {
            storing: StoringRules::default(),
            name: CACHE_NAME,
            request_fields: RequestFields::All,
            max_variants: 32,
            request_directives: true,
            background_fills: BackgroundFills::default(),
            lock_age: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(60),
            judges_preconditions: false,
            max_misses: 1024,
            miss_timeout: Duration::from_secs(60),
            head_ttl: Duration::ZERO,
            error_body: None,
        }
    }
}

/// HTTP caching for a [`ProxyHttp`](pingora_proxy::ProxyHttp), with a
/// [`DiskCache`].
pub struct HttpCaching {
    store: Option<Store>,
    options: CachingOptions,
    variants: Variants,
    fills: RangeFills,
    turns: Arc<OriginTurns>,
    heads: Heads,
}

/// What Pingora wants to live as long as the process.
#[derive(Clone, Copy)]
struct Store {
    cache: &'static DiskCache,
    lock: &'static FillLock,
    too_large: &'static TooLarge,
}

/// What is known of a request; part of the proxy's context.
#[derive(Default)]
pub struct CachingCtx {
    asks: Asks,
    directives: RequestDirectives,
    /// A request of the proxy's own: nobody reads the response.
    background: bool,
    /// A request of the proxy's own that passes the cache: for the rest of a response, or a
    /// [`Probe`].
    is_own: bool,
    _fill: Option<FillGuard>,
    /// The turn to ask the origin, unless the response is being stored, and has a length.
    turn: Option<OriginTurn>,
    /// The write timeout of the session, while a shorter one is set.
    write_timeout: Option<Option<Duration>>,
    /// When the request came.
    arrived: Option<SystemTime>,
    requested: Option<SystemTime>,
    /// Whether the origin was asked for a 304.
    conditional: bool,
    /// The origin was asked for a part.
    ranged: bool,
    /// The origin's 304 was of no use: ask for the whole.
    unconditional: bool,
    /// And so was the next one.
    refused: bool,
    /// The origin's part was of another version than the client's, so the whole is asked
    /// for.
    whole: bool,
    /// A precondition of the client does not hold for the stored response.
    precondition_failed: bool,
    /// `Set-Cookie` of an answer that has updated what is stored.
    cookies: Vec<HeaderValue>,
    /// Fields of the origin's response that are not stored.
    withheld: Vec<(HeaderName, HeaderValue)>,
    forwarded: Option<Forwarded>,
    /// Why it would have been forwarded, had not another request been.
    waited_for: Option<Forwarded>,
    origin_status: Option<StatusCode>,
    /// The length of the body that was found, if it is complete.
    stored_len: Option<u64>,
    /// Stale, and served as if it were fresh.
    accepted_stale: Option<ServedStale>,
    /// In place of [`CachingOptions::storing`].
    storing: Option<Arc<StoringRules>>,
    /// What is stored must not be served when the origin cannot be reached.
    must_revalidate: bool,
    /// The request has no field on which the answer of a hit depends.
    plain: bool,
    /// By [`HttpCaching::answer_prepared`].
    answered_prepared: bool,
    /// The freshness left of the [stored answer](HttpCaching::stored_head) to a HEAD.
    stored_head: Option<i64>,
    /// The answer to this HEAD may be kept.
    asked_head: Option<Box<AskedHead>>,
    /// The download that the request is a part of.
    download: Option<Arc<Download>>,
    /// The request is [`FetchesForParts`].
    for_parts: Option<ForParts>,
    /// The part begins where the fill that it follows has not come to yet.
    waits_for_fill: bool,
    /// The client offers another protocol, which only the origin can switch to.
    upgrades: bool,
    /// The origin answers with a part of what could be fetched and stored as a whole.
    part: Option<Box<PartOfWhole>>,
    /// See [`HttpCaching::judged`].
    judged: Option<Box<Judged>>,
    /// See [`CachingCtx::pass`].
    passes: bool,
    names_part: bool,
    /// See [`CachingCtx::set_special`].
    is_special: bool,
    /// See [`CachingCtx::set_own`].
    own: Option<Box<OwnRequest>>,
}

/// The context of a subrequest that asks whether the origin has what the request is for. It is
/// a HEAD, and the cache has no part in it.
pub struct Probe;

/// The context of a subrequest that fetches the whole for requests for parts.
struct FetchesForParts(ForParts);

/// An error about what is stored.
struct Judged {
    status: StatusCode,
    /// The length of the body, if it is known.
    len: Option<u64>,
    age: Duration,
    /// Seconds of freshness left.
    ttl: i64,
}

/// A part of an object that is not stored, and could be.
struct PartOfWhole {
    key: CacheKey,
    whole_len: u64,
}

/// The reason for which a stale response is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedStale {
    /// The origin fails, or does not answer in time.
    Error,
    /// It is being revalidated.
    Revalidating,
    /// The client accepts it.
    Accepted,
}

/// What a request asks a cache for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Nothing: it passes.
    #[default]
    Nothing,
    /// A header.
    Head,
    /// A response, or such parts of it that it is fetched as a whole.
    Whole,
    /// A part.
    Part,
}

// === impl CachingCtx ===

impl CachingCtx {
    /// Whether the origin was asked.
    pub fn asked_origin(&self) -> bool {
        self.requested.is_some()
    }

    /// Whether this is a request of the proxy's own.
    pub fn is_background(&self) -> bool {
        self.background || self.is_own
    }

    /// True if the response comes from the cache, and the origin was not asked.
    pub fn is_hit(&self, session: &Session) -> bool {
        self.answered_prepared
            || self.stored_head.is_some()
            || self.judged.is_some()
            || (is_hit(session.cache.phase()) && !self.asked_origin())
    }

    /// Let the request pass the cache: its answer is neither looked up nor stored.
    /// `names_part`: it is a part of the object that no `Range` asks for. To be called before
    /// `request_filter`.
    pub fn pass(&mut self, names_part: bool) {
        self.passes = true;
        self.names_part = names_part;
    }

    /// Let others not be answered with what this response becomes, because the proxy's own
    /// `response_filter` changes it for this request only. To be called before
    /// `request_filter`.
    pub fn set_special(&mut self) {
        self.is_special = true;
    }

    /// Decide by these rules in place of [`CachingOptions::storing`]. To be called in
    /// `request_cache_filter`.
    pub fn set_storing(&mut self, rules: Arc<StoringRules>) {
        self.storing = Some(rules);
    }

    /// The reason for which a stale response is served, if one is.
    pub fn served_stale(&self, session: &Session) -> Option<ServedStale> {
        match session.cache.phase() {
            // Only the origin can say who may have it.
            _ if self.own.is_some() => None,
            CachePhase::Stale => Some(ServedStale::Error),
            CachePhase::StaleUpdating => Some(ServedStale::Revalidating),
            CachePhase::Hit => self.accepted_stale,
            _ => None,
        }
    }

    /// True if a stale response is served if the origin fails, or does not answer in time.
    pub fn may_serve_stale(&self, session: &Session) -> bool {
        let stored = session.cache.maybe_cache_meta();
        !self.directives.no_cache
            && session.cache.phase() == CachePhase::Stale
            && stored.is_some_and(|stored| stored.serve_stale_if_error(SystemTime::now()))
    }

    /// An error if the origin has answered twice with a 304 that is of no use.
    fn check_not_refused(&self) -> Result<()> {
        if self.refused {
            let why = "the origin insists on a 304 that cannot be used";
            return Err(Error::explain(UNUSABLE_NOT_MODIFIED, why).into_up());
        }
        Ok(())
    }

    /// The first reason counts.
    fn forward(&mut self, why: Forwarded) {
        self.forwarded.get_or_insert(why);
    }
}

// === impl HttpCaching ===

impl HttpCaching {
    /// Cache in `cache`; without one, everything passes.
    pub fn new(cache: Option<&'static DiskCache>, options: CachingOptions) -> HttpCaching {
        HttpCaching {
            store: cache.map(|cache| Store {
                cache,
                lock: Box::leak(Box::new(FillLock::new(cache, options.lock_age))),
                too_large: Box::leak(Box::new(TooLarge::new(cache))),
            }),
            variants: Variants::new(options.max_variants),
            turns: Arc::new(OriginTurns::new(options.max_misses, options.miss_timeout)),
            heads: Heads::new(options.head_ttl),
            options,
            fills: RangeFills::default(),
        }
    }

    /// The turns of requests to the origin.
    pub fn origin_turns(&self) -> &Arc<OriginTurns> {
        &self.turns
    }

    /// For `request_filter`: see what the request asks for. `true`: it has been
    /// answered.
    pub async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        match self.begin(session, ctx)? {
            Begun::Judged => Ok(false),
            Begun::Answer(status) => Box::pin(self.answer_status(session, status)).await,
            Begun::MayHaveBody => {
                let has_body = has_body(session).await;
                self.judge(session, ctx, has_body);
                Ok(false)
            }
        }
    }

    /// The part of [`request_filter`](Self::request_filter) that needs no waiting.
    fn begin(&self, session: &mut Session, ctx: &mut CachingCtx) -> Result<Begun> {
        if let Some(status) = answered_here(session.req_header_mut())? {
            return Ok(Begun::Answer(status));
        }
        if session.req_header().version <= Version::HTTP_10 {
            // RFC 9110 §15.2
            session.as_downstream_mut().set_ignore_info_resp(true);
        }
        // A client that reads slowly shall not slow the fill that others follow.
        session.set_proxy_tasks_enabled(true);
        // A client has its response before the fill behind it is finished, and
        // may ask for more. Without this, Pingora would cut it off.
        session.set_pipelining_enabled(true);
        if let Some(subrequest) = session.subrequest_ctx.as_mut() {
            // Pingora's own, to revalidate, have no context.
            ctx.background = match subrequest.user_ctx_mut() {
                None => true,
                Some(user) => match user.downcast_mut::<Option<FillGuard>>() {
                    Some(guard) => {
                        ctx._fill = guard.take();
                        true
                    }
                    None => {
                        let fetches = user.downcast_ref::<FetchesForParts>();
                        ctx.for_parts = fetches.map(|fetches| fetches.0.clone());
                        fetches.is_some()
                    }
                },
            };
            let user = subrequest.user_ctx();
            let request = session.downstream_session.req_header_mut();
            if let Some(rest) = user.and_then(|user| user.downcast_ref::<RestRequest>()) {
                ctx.is_own = true;
                rest.prepare(request)?;
            } else if user.is_some_and(|user| user.is::<Probe>()) {
                ctx.is_own = true;
                make_plain(request, Method::HEAD);
            }
        }
        if ctx.background {
            make_plain(session.req_header_mut(), Method::GET);
        }
        if self.options.request_directives {
            ctx.directives = RequestDirectives::from_headers(&session.req_header().headers);
        }
        ctx.arrived = Some(SystemTime::now());
        if session.req_header().method == Method::GET {
            ctx.upgrades = self.upgrades(session.req_header());
        }
        if self.looks_up(ctx) && !session.is_body_empty() {
            return Ok(Begun::MayHaveBody);
        }
        self.judge(session, ctx, false);
        Ok(Begun::Judged)
    }

    /// True if the request may be answered with what is stored.
    fn looks_up(&self, ctx: &CachingCtx) -> bool {
        self.store.is_some() && !ctx.is_own && !ctx.passes
    }

    /// Determine what the request asks for.
    fn judge(&self, session: &mut Session, ctx: &mut CachingCtx, has_body: bool) {
        if self.looks_up(ctx) {
            let mut has = self.fields_of(session.req_header());
            if has.ending_here && matches!(session.req_header().method, Method::GET | Method::HEAD)
            {
                end_at_this_hop(session.req_header_mut(), ctx.upgrades);
                has = self.fields_of(session.req_header());
            }
            ctx.asks = asks(session.req_header(), has_body, has.condition);
            ctx.narrow_own(session.req_header());
            ctx.plain = ctx.asks == Asks::Whole
                && !ctx.is_special
                && !has.condition
                && !has.directive
                && session.subrequest_ctx.is_none()
                && !session.as_downstream().is_http2();
        }
        if ctx.asks == Asks::Nothing {
            let cached = matches!(session.req_header().method, Method::GET | Method::HEAD);
            ctx.forward(if cached {
                Forwarded::Bypass
            } else {
                Forwarded::Method
            });
        }
    }

    /// Answer a request with a status and no body. Always `true`, for `request_filter`.
    async fn answer_status(&self, session: &mut Session, status: StatusCode) -> Result<bool> {
        let mut header = ResponseHeader::build(status, Some(2))?;
        header.insert_header(CONTENT_LENGTH, 0)?;
        if status == StatusCode::BAD_REQUEST {
            session.set_keepalive(None);
        }
        self.respond(session, header).await?;
        Ok(true)
    }

    /// True if the client offers to switch to WebSocket. Offers of other protocols are not
    /// passed on; a server may ignore them (RFC 9110 §7.8).
    fn upgrades(&self, request: &RequestHeader) -> bool {
        self.options.request_fields.contains(&UPGRADE)
            && request
                .headers
                .get(UPGRADE)
                .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
    }

    /// True if a request has a precondition on the current version, which is not judged here.
    fn is_the_origins_to_judge(&self, request: &RequestHeader) -> bool {
        !self.options.judges_preconditions && has_failing_preconditions(&request.headers)
    }

    /// The variant of a response that a request selects (RFC 9111 §4.1).
    fn variance(&self, response: &HeaderMap, request: &RequestHeader) -> Variance {
        variance(response, &request.headers, self.options.request_fields)
    }

    /// The kinds of fields of a request, found in one pass. Most requests have few fields, and
    /// comparing their names is cheaper than hashing them.
    fn fields_of(&self, request: &RequestHeader) -> Fields {
        let mut has = Fields::default();
        for name in request.headers.keys() {
            has.condition |= CONDITIONS.contains(name);
            has.ending_here |= is_connection_field(name);
            has.directive |=
                self.options.request_directives && [CACHE_CONTROL, PRAGMA].contains(name);
        }
        has
    }

    /// For the end of `request_filter`, if the request has not been answered:
    /// answer it now, if what is stored was served before, is in use and still
    /// fresh, and the request is a plain one. `true`: it has been answered.
    ///
    /// This leaves out the phases of Pingora's cache and copies no header, which
    /// takes most of the time of a small hit. The client sees what it would see
    /// otherwise; but the callbacks of those phases are not called, nor are
    /// `response_filter` and `response_body_filter`: only for a proxy whose
    /// `response_filter` adds the same to every hit of an entry, before it calls
    /// [`response_filter`](Self::response_filter), and that needs no body.
    ///
    /// `key` is what `cache_key_callback` returns, but for what
    /// [`asked_now`](Self::asked_now) adds.
    pub async fn answer_prepared(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
        key: impl FnOnce(&Session) -> CacheKey,
    ) -> Result<bool> {
        if ctx.asks == Asks::Part {
            Box::pin(self.join_download(session, ctx, key)).await;
            return Ok(false);
        }
        let Some(mut hit) = self.prepared_hit(session, ctx, key) else {
            return Ok(false);
        };
        // Before the header: what can not be read is fetched.
        let first = match hit.next_in_memory() {
            Some(bytes) => bytes.map(BodyPart::Bytes),
            None => match hit.next_part().await {
                Ok(first) => first,
                Err(_) => return Ok(false),
            },
        };
        let Some((header, text, age_len)) = self.prepared_header(&hit, ctx) else {
            return Ok(false);
        };
        ctx.answered_prepared = true;
        let (age, status) = text.as_bytes().split_at(age_len);
        session
            .write_prepared_header(header, &[("Age", age), ("Cache-Status", status)], false)
            .await
            .map_err(of_sending)?;
        let sent = send_body(session, &mut hit, first).await;
        if let Err(e) = &sent {
            // A short body must not look complete.
            session.as_downstream_mut().abort_response();
            if *e.etype() == ErrorType::FileReadError {
                hit.drop_entry(&e.to_string());
            }
        }
        sent.map(|()| true)
    }

    /// The hit that [`answer_prepared`](Self::answer_prepared) sends, if there is one.
    fn prepared_hit(
        &self,
        session: &Session,
        ctx: &CachingCtx,
        key: impl FnOnce(&Session) -> CacheKey,
    ) -> Option<DiskHit> {
        let store = self.store.filter(|_| ctx.plain)?;
        let now = ctx.arrived?;
        let mut hit = store
            .cache
            .lookup_prepared(&key(session), |prepared| prepared.is_usable(now))?;
        if !session.as_downstream().supports_zero_copy() {
            hit.copy_body();
        }
        Some(hit)
    }

    /// The header of a hit, the values of `Age` and `Cache-Status` in one text, and the length
    /// of the first.
    fn prepared_header<'h>(
        &self,
        hit: &'h DiskHit,
        ctx: &CachingCtx,
    ) -> Option<(&'h PreparedHeader, String, usize)> {
        let prepared = hit.prepared()?;
        let now = match ctx.arrived {
            Some(arrived) if !hit.has_waited() => arrived,
            _ => SystemTime::now(),
        };
        let status = CacheStatus {
            ttl: Some(prepared.ttl(now)),
            ..CacheStatus::hit(self.options.name)
        };
        let mut text = String::with_capacity(FIELDS_LEN);
        text.push_str(itoa::Buffer::new().format(prepared.age(now)));
        let age_len = text.len();
        status.push_to(&mut text);
        Some((&prepared.header, text, age_len))
    }

    /// Have the whole fetched for a part with which a download begins, if nothing is stored, or
    /// wait until it is being fetched because of another part.
    #[cold]
    async fn join_download(
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
            || self.options.background_fills.in_flight == 0
            || ctx.background
            || ctx.upgrades
            || ctx.directives.no_store
            || ctx.directives.only_if_cached
            || self.is_the_origins_to_judge(request)
        {
            return;
        }
        let key = key(session);
        let is_new = !cache.may_have(&key) && !lock.gave_up(&key);
        let hash = key.combined_bin();
        if first > 0 && is_new && !self.fills.has_download(&hash) {
            // Parts that are asked for at the same time come in any order.
            sleep(OVERTAKING_TIME).await;
        }
        match self.fills.download(hash, first == 0 && is_new) {
            None => {}
            Some(Share::Follows(download)) => {
                download.begun(self.options.lock_age).await;
                ctx.download = Some(download);
            }
            Some(Share::Begins(download)) => {
                let fetches = FetchesForParts(download.for_parts.clone());
                let sub_ctx = SubrequestCtx::builder().user_ctx(Box::new(fetches)).build();
                let (fill, mut handle) = spawner.create_subrequest(session.as_ref(), sub_ctx);
                tokio::spawn(fill.run());
                tokio::spawn({
                    let download = Arc::downgrade(&download);
                    async move {
                        let mut has_begun = false;
                        while let Some(task) = handle.rx.recv().await {
                            let header = matches!(&task, HttpTask::Header(header, _) if !header.status.is_informational());
                            if header && !std::mem::replace(&mut has_begun, true) {
                                if let Some(download) = download.upgrade() {
                                    download.set_begun();
                                }
                            }
                        }
                        if let Some(download) = download.upgrade() {
                            download.set_begun();
                        }
                    }
                });
                download.begun(self.options.lock_age).await;
                ctx.download = Some(download);
            }
        }
    }

    fn storing<'a>(&'a self, ctx: &'a CachingCtx) -> &'a StoringRules {
        ctx.storing.as_deref().unwrap_or(&self.options.storing)
    }

    /// Keep the header of a hit for [`answer_prepared`](Self::answer_prepared):
    /// `response`, before anything was added that depends on the time.
    fn prepare(
        &self,
        session: &mut Session,
        response: ResponseHeader,
        ctx: &CachingCtx,
    ) -> Result<()> {
        let body_len = body_len(&response);
        if body_len.is_none() || body_len != ctx.stored_len {
            return Ok(());
        }
        let hit = session.cache.hit_handler().as_any();
        if let Some(hit) = hit.downcast_ref::<DiskHit>() {
            let prepared = hit.meta().and_then(|meta| Prepared::new(response, meta));
            if let Some(prepared) = prepared {
                hit.prepare(prepared);
            }
        }
        Ok(())
    }

    /// For `request_cache_filter`: look for the response in the cache.
    pub fn request_cache_filter(&self, session: &mut Session, ctx: &mut CachingCtx) {
        let Some(Store {
            cache,
            lock,
            too_large,
        }) = self.store.filter(|_| ctx.asks != Asks::Nothing)
        else {
            return;
        };
        // Only who fetches the whole keeps others waiting for it.
        let fills = ctx.asks == Asks::Whole
            && ctx.own_stores()
            && !ctx.upgrades
            && !ctx.directives.no_store
            && !ctx.directives.only_if_cached;
        // No eviction manager: the cache evicts by itself.
        session.cache.enable(
            cache,
            None,
            Some(too_large),
            fills.then_some(lock as &'static CacheKeyLockImpl),
            Some(self.lock_options()),
        );
        session.cache.set_admission_policy(cache.admission());
        // RFC 9111 §4.3.4
        session.cache.set_revalidate_all_fields(true);
        // A larger object would evict all others and then itself.
        let mut limit = cache.max_size_bytes();
        if ctx.background {
            limit = limit.min(self.options.background_fills.max_bytes);
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        session.cache.set_max_file_size_bytes(limit);
    }

    fn lock_options(&self) -> CacheOptionOverrides {
        let mut options = CacheOptionOverrides::default();
        options.wait_timeout = Some(self.options.lock_timeout);
        // Each time that the answer takes too long, one of the waiting requests asks the
        // origin too, and the others go on waiting.
        let ages = self.options.lock_timeout.as_secs_f64() / self.options.lock_age.as_secs_f64();
        options.max_lock_retries = Some(LOCK_RETRIES + ages.ceil() as usize);
        options
    }

    /// For `cache_key_callback`: the key of the request's target URI (RFC 9111
    /// §2), for a proxy that has no better one.
    pub fn cache_key_callback(&self, session: &Session) -> CacheKey {
        self.asked_now(target_key(&Target::of(session.req_header())))
    }

    /// Note in a key when the request was made. Every key of a request has to
    /// pass through here.
    pub fn asked_now(&self, mut key: CacheKey) -> CacheKey {
        if let Some(store) = &self.store {
            key.extensions.insert(store.cache.asked_now());
        }
        key
    }

    /// For `cache_vary_filter` (RFC 9111 §4.1).
    pub fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
        match self.variance(meta.headers(), request) {
            Variance::Key(key) => Some(key),
            // Never is never stored.
            Variance::None | Variance::Never => None,
        }
    }

    /// For `cache_hit_filter`: whether what is stored may be used (RFC 9111 §4).
    pub fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut CachingCtx,
    ) -> Option<ForcedFreshness> {
        let now = SystemTime::now();
        ctx.waited_for = ctx.forwarded.take();
        ctx.accepted_stale = None;
        relay::note_found(session, hit, ctx);
        if ctx.own.is_some() {
            return self.confirm(session, meta, hit, is_fresh, ctx);
        }
        let request = session.req_header();
        if ctx.asks == Asks::Part {
            let max_wait = self.options.background_fills.max_wait;
            let has_part = has_part(hit, meta.headers(), request, max_wait);
            if let (Some(download), Some(filling)) = (&ctx.download, filling(hit)) {
                filling.promised.inspect(|len| download.set_whole_len(*len));
            }
            if has_part == HasPart::No {
                ctx.forward(Forwarded::Partial);
                return Some(ForcedFreshness::ForceMiss);
            }
            ctx.waits_for_fill = has_part == HasPart::Soon;
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
        if self.is_the_origins_to_judge(request)
            && (!is_fresh || from_the_future || self.refuses(&ctx.directives, meta, now))
        {
            ctx.forward(Forwarded::Request);
            return Some(ForcedFreshness::ForceMiss);
        }
        if from_the_future {
            ctx.forward(Forwarded::Stale);
            self.set_stale_lock(session, meta, ctx);
            return Some(ForcedFreshness::ForceExpired);
        }
        if ctx.upgrades && !is_fresh {
            // The origin may want to switch protocols.
            ctx.forward(Forwarded::Request);
            return Some(ForcedFreshness::ForceMiss);
        }
        let stale_for = now.duration_since(meta.fresh_until()).ok();
        if is_fresh {
            if self.refuses(&ctx.directives, meta, now) {
                ctx.forward(Forwarded::Request);
                self.set_stale_lock(session, meta, ctx);
                return Some(ForcedFreshness::ForceExpired);
            }
            ctx.judged = self.judged(request, meta, ctx).map(Box::new);
            // Pingora sends errors about what is found without a body.
            return ctx.judged.is_some().then_some(ForcedFreshness::ForceMiss);
        }
        let waited = session.cache.lock_duration();
        let answered_meanwhile = ctx.arrived.is_some_and(|arrived| arrived < meta.updated());
        if waited.is_some() && answered_meanwhile && !self.refuses(&ctx.directives, meta, now) {
            // However soon it is stale, it was the answer to this request too
            // (RFC 9111 §4).
            return Some(ForcedFreshness::ForceFresh);
        }
        ctx.forward(Forwarded::Stale);
        let may_be_stale = self.storing(ctx).may_be_stale(meta.response_header());
        ctx.must_revalidate = !may_be_stale;
        let accepts = ctx.directives.max_stale.is_some_and(|limit| {
            stale_for.is_some_and(|stale| stale.as_secs() <= u64::from(limit))
        });
        // The origin does not answer in time.
        let hangs = waited.is_some_and(|waited| waited >= self.options.lock_age)
            && meta.serve_stale_if_error(now)
            && !ctx.directives.no_cache;
        if hangs || (accepts && may_be_stale && !self.refuses_age(&ctx.directives, meta)) {
            ctx.forwarded = None;
            ctx.accepted_stale = Some(match hangs {
                true => ServedStale::Error,
                false => ServedStale::Accepted,
            });
            return Some(ForcedFreshness::ForceFresh);
        }
        self.set_stale_lock(session, meta, ctx);
        if ctx.directives.no_cache {
            return Some(ForcedFreshness::ForceExpired);
        }
        None
    }

    /// The error that answers a request for what is stored and fresh: its condition does not
    /// hold, or none of its ranges is there.
    fn judged(
        &self,
        request: &RequestHeader,
        meta: &CacheMeta,
        ctx: &CachingCtx,
    ) -> Option<Judged> {
        let range = request.headers.get(RANGE);
        if ctx.background
            || self.options.error_body.is_none()
            || request.method != Method::GET
            || meta.response_header().status != StatusCode::OK
            || (range.is_none() && !has_failing_preconditions(&request.headers))
        {
            return None;
        }
        let (now, stored) = (SystemTime::now(), meta.headers());
        // While the body is still coming, only the header says how long it is.
        let len = ctx.stored_len.or_else(|| body_len(meta.response_header()));
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
        Some(Judged {
            status,
            len,
            age: meta.age(),
            ttl: ttl(meta.fresh_until(), now),
        })
    }

    /// Answer a request that is [`judged`](Self::judged).
    async fn answer_judged(&self, session: &mut Session, judged: &Judged) -> Result<()> {
        session.cache.disable(NoCacheReason::DeclinedToUpstream);
        let mut header = ResponseHeader::build(judged.status, Some(7))?;
        let len = judged.len;
        if let Some(len) = len.filter(|_| judged.status == StatusCode::RANGE_NOT_SATISFIABLE) {
            header.insert_header(CONTENT_RANGE, format!("bytes */{len}"))?;
        }
        header.insert_header(AGE, judged.age.as_secs())?;
        let status = CacheStatus {
            ttl: Some(judged.ttl),
            ..CacheStatus::hit(self.options.name)
        };
        header.insert_header("Cache-Status", status.to_value()?)?;
        header.insert_header("X-Cache", "HIT")?;
        self.respond(session, header).await
    }

    /// What has to be validated each time would let only one client through at a
    /// time, and so would answers that are not stored. All else is validated once
    /// for all; who has waited for that in vain does not wait again.
    fn set_stale_lock(&self, session: &mut Session, meta: &CacheMeta, ctx: &CachingCtx) {
        let collapses = (!is_always_stale(meta) || meta.stale_while_revalidate_sec() > 0)
            && ctx.asks == Asks::Whole
            && session.cache.lock_duration().is_none()
            && !self.refuses(&ctx.directives, meta, meta.updated())
            && !ctx.directives.no_store
            && !ctx.directives.only_if_cached;
        let lock = self
            .store
            .filter(|_| collapses)
            .map(|store| store.lock as &'static CacheKeyLockImpl);
        session
            .cache
            .set_cache_lock(lock, Some(self.lock_options()));
    }

    /// Whether the client refuses a fresh response (RFC 9111 §5.2.1).
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
            // To reload is what browsers mean by 0.
            .is_some_and(|limit| limit == 0 || meta.age().as_secs() > u64::from(limit))
    }

    /// For `proxy_upstream_filter`: the cache has no answer; whether the origin
    /// is asked. If not, an answer has been sent.
    pub async fn proxy_upstream_filter(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        if ctx.asks == Asks::Nothing {
            return self.take_turn(session, ctx).await;
        }
        if let Some(judged) = &ctx.judged {
            // Boxed, because few requests come here.
            Box::pin(self.answer_judged(session, judged)).await?;
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
        if ctx.directives.only_if_cached {
            // RFC 9111 §5.2.1.7
            let header = ResponseHeader::build(StatusCode::GATEWAY_TIMEOUT, Some(4))?;
            self.decline(session, header, ctx).await?;
            return Ok(false);
        }
        if session.cache.enabled() {
            let is_miss = session.cache.phase() == CachePhase::Miss;
            let is_own_miss = is_miss && ctx.own.is_some();
            let passes = ctx.directives.no_store
                || (is_own_miss && (ctx.asks != Asks::Whole || !ctx.own_stores()))
                || ctx.upgrades
                || self.is_the_origins_to_judge(session.req_header())
                || (is_miss && ctx.asks == Asks::Head);
            if passes {
                if is_own_miss && ctx.asks == Asks::Part {
                    ctx.note_own_key(session);
                }
                session.cache.disable(NoCacheReason::Deferred);
            }
        }
        self.take_turn(session, ctx).await
    }

    /// For `proxy_upstream_filter`, before [`proxy_upstream_filter`](Self::proxy_upstream_filter):
    /// the header that answers a HEAD without the origin. It needs what
    /// [`response_filter`](Self::response_filter) adds, and is sent by
    /// [`answer_head`](Self::answer_head).
    pub fn stored_head(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<Option<ResponseHeader>> {
        let refuses = ctx.directives.no_cache
            || ctx.directives.no_store
            || ctx.directives.max_age.is_some()
            || ctx.directives.min_fresh.is_some();
        let Some(store) = self.store.filter(|_| {
            ctx.asks == Asks::Head
                && self.heads.are_kept()
                && !refuses
                && !self.is_the_origins_to_judge(session.req_header())
                && session.cache.enabled()
                && session.cache.phase() == CachePhase::Miss
        }) else {
            return Ok(None);
        };
        let asked = AskedHead {
            key: session.cache.cache_key().combined_bin(),
            purges: store.cache.purges(),
        };
        let Some(meta) = self.heads.get(&asked.key, asked.purges) else {
            ctx.asked_head = Some(Box::new(asked));
            return Ok(None);
        };
        session.cache.disable(NoCacheReason::DeclinedToUpstream);
        ctx.stored_head = Some(ttl(meta.fresh_until(), SystemTime::now()));
        let mut header = meta.response_header().clone();
        header.insert_header(AGE, meta.age().as_secs())?;
        Ok(Some(header))
    }

    /// Answer a HEAD.
    pub async fn answer_head(&self, session: &mut Session, header: ResponseHeader) -> Result<()> {
        self.respond(session, header).await
    }

    /// Note what the origin says about an object to which a HEAD may have been answered.
    fn note_head(&self, session: &Session, response: &ResponseHeader, ctx: &mut CachingCtx) {
        if let Some(asked) = ctx.asked_head.take() {
            if response.status == StatusCode::OK {
                let is_for_all = self.variance(&response.headers, session.req_header());
                // Withheld are only fields of the response that is stored.
                let withheld = std::mem::take(&mut ctx.withheld);
                let meta = self.to_store(session, response, ctx);
                ctx.withheld = withheld;
                if let Some(meta) = meta.filter(|_| is_for_all == Variance::None) {
                    return self.heads.insert(&asked, meta);
                }
            }
            self.heads.observe(&asked.key, response);
        } else if let Some(key) = session.cache.maybe_cache_key() {
            self.heads.observe(&key.combined_bin(), response);
        }
    }

    /// Wait for the turn to ask the origin. `false`: it took too long, and an answer has been
    /// sent. Nobody waits for a request in the background, so it does not wait either.
    async fn take_turn(&self, session: &mut Session, ctx: &mut CachingCtx) -> Result<bool> {
        ctx.turn = self.turns.take(ctx.background).await;
        if ctx.turn.is_some() {
            if self.turns.are_scarce() {
                let usual = session.get_write_timeout();
                let timeout = usual.unwrap_or(SCARCE_WRITE_TIMEOUT);
                session.set_write_timeout(Some(timeout.min(SCARCE_WRITE_TIMEOUT)));
                ctx.write_timeout = Some(usual);
            }
            return Ok(true);
        }
        let mut header = ResponseHeader::build(StatusCode::SERVICE_UNAVAILABLE, Some(5))?;
        header.insert_header(RETRY_AFTER, RETRY_AFTER_SECS)?;
        self.decline(session, header, ctx).await?;
        Ok(false)
    }

    /// Answer in place of the origin, without a body.
    async fn decline(
        &self,
        session: &mut Session,
        mut header: ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        if session.cache.enabled() {
            session.cache.disable(NoCacheReason::DeclinedToUpstream);
        }
        header.insert_header(CONTENT_LENGTH, 0)?;
        self.response_filter(session, &mut header, ctx)?;
        self.respond(session, header).await
    }

    /// Send a response of the cache's own.
    async fn respond(&self, session: &mut Session, mut header: ResponseHeader) -> Result<()> {
        let body = match self.options.error_body {
            Some(body) if header.status.is_client_error() || header.status.is_server_error() => {
                body(session.req_header(), &mut header)?
            }
            _ => Bytes::new(),
        };
        let has_body = !body.is_empty() && session.req_header().method != Method::HEAD;
        session
            .write_response_header(Box::new(header), !has_body)
            .await?;
        let body = has_body.then_some(body);
        session.write_response_body(body, true).await
    }

    /// For `upstream_request_filter`, before anything else there.
    pub fn upstream_request_filter(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        ctx.check_not_refused()?;
        let asked = session.req_header();
        if session.cache.enabled() {
            // Else Pingora would ask for the whole.
            if ctx.asks == Asks::Head {
                request.set_method(Method::HEAD);
            }
            if ctx.asks == Asks::Part {
                for name in [RANGE, IF_RANGE] {
                    for value in asked.headers.get_all(&name) {
                        request.append_header(name.clone(), value)?;
                    }
                }
            }
        }
        if ctx.unconditional {
            request.remove_header(&IF_NONE_MATCH);
            request.remove_header(&IF_MODIFIED_SINCE);
        }
        // A range is defined for GET only (RFC 9110 §14.2).
        if ctx.whole || asked.method == Method::HEAD {
            request.remove_header(&RANGE);
            request.remove_header(&IF_RANGE);
        }
        ctx.ranged = request.headers.contains_key(RANGE);
        if let Some(path) = origin_form(request.raw_path()) {
            request.set_raw_path(&path)?;
            request.insert_header(HOST, Target::of(asked).authority)?;
        }
        ctx.conditional = [IF_NONE_MATCH, IF_MODIFIED_SINCE]
            .iter()
            .any(|name| request.headers.contains_key(name));
        ctx.requested = Some(SystemTime::now());
        // RFC 9110 §7.6.3
        let version = match asked.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        };
        request.append_header(VIA, format!("{version} {}", self.options.name))?;
        Ok(())
    }

    /// For `upstream_response_filter`: what the origin's answer means for what is
    /// stored, before it is looked at any further.
    ///
    /// # Errors
    /// A 304 that was not asked for, or is about something else (RFC 9111 §4.3.4).
    /// The request is then made once more, without conditions; the error asks for
    /// that.
    pub async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS && !ctx.upgrades {
            // RFC 9110 §7.8
            let why = "the origin switches to a protocol that nobody asked for";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        if response.status.is_informational() {
            return Ok(());
        }
        for name in connection_fields(&response.headers) {
            // Never right for these (RFC 9110 §7.6.1), and what is stored depends
            // on them.
            if ![CACHE_CONTROL, VARY].contains(&name) {
                response.remove_header(&name);
            }
        }
        ctx.origin_status = Some(response.status);
        if session.cache.enabled()
            && !ctx.background
            && !response.headers.contains_key(CONTENT_LENGTH)
        {
            // Pingora would break off a body that turns out too large; the cache does not.
            session.cache.set_max_file_size_bytes(usize::MAX);
        }
        if matches!(session.req_header().method, Method::GET | Method::HEAD) {
            if response.status == StatusCode::NOT_MODIFIED {
                if !response.headers.contains_key(DATE) {
                    // RFC 9110 §6.6.1. Otherwise what it confirms would be as old as before.
                    response.insert_header(DATE, httpdate::fmt_http_date(SystemTime::now()))?;
                }
                self.check_not_modified(session, response, ctx)?;
            } else {
                check_part(session.req_header(), response, ctx)?;
                // A stored response is judged where it is served.
                if !session.cache.enabled() || ctx.asks == Asks::Part {
                    check_preconditions(session.req_header(), response.status, response, ctx)?;
                }
            }
        }
        self.forget_ended(session, response.status, ctx);
        self.invalidate(session, response).await;
        if self.heads.are_kept() {
            self.note_head(session, response, ctx);
        }
        let confirms = response.status == StatusCode::NOT_MODIFIED || ctx.asks == Asks::Head;
        if confirms && session.cache.phase() == CachePhase::Stale {
            // It goes with this answer, and not into what is stored for all.
            let cookies = response.headers.get_all(SET_COOKIE).iter().cloned();
            ctx.cookies = cookies.collect();
            response.remove_header(&SET_COOKIE);
        }
        if ctx.asks == Asks::Head && session.cache.phase() == CachePhase::Stale {
            self.update_by_head(session, response, ctx).await;
        }
        if ctx.asks == Asks::Part && !ctx.directives.no_store {
            // Disabled: the cache does not want it yet, or it is too large.
            let key = session.cache.maybe_cache_key().cloned();
            let key = key.filter(|_| session.cache.enabled());
            let part = key.and_then(|key| self.part_of_whole(session, key, response, ctx));
            ctx.part = part.map(Box::new);
        }
        Ok(())
    }

    /// Remove a stored response if the answer to its validation says that the origin has ended
    /// it. Otherwise it would be served stale during later validations, or when they fail.
    fn forget_ended(&self, session: &Session, status: StatusCode, ctx: &CachingCtx) {
        let is_ended = match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => true,
            // About the request: S3 says it of keys that have expired.
            StatusCode::BAD_REQUEST
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS => false,
            // In the foreground, the client gets this answer. In the background, nobody does.
            status => ctx.background && status.is_client_error(),
        };
        if let (true, CachePhase::Stale, Some(store)) =
            (is_ended, session.cache.phase(), &self.store)
        {
            store.cache.evict_variant(session.cache.cache_key());
        }
    }

    /// RFC 9111 §4.4
    async fn invalidate(&self, session: &Session, response: &ResponseHeader) {
        let Some(Store { cache, .. }) = self.store else {
            return;
        };
        for target in invalidated(session.req_header(), response) {
            if let Err(e) = cache.invalidate(&target_key(&target)).await {
                warn!(
                    "{}{} was changed, but is still stored: {e}",
                    target.authority, target.path_and_query
                );
            }
        }
    }

    fn check_not_modified(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        let fits = ctx.conditional
            && if session.cache.enabled() {
                let stored = session.cache.maybe_cache_meta();
                stored.is_some_and(|stored| is_about(response, stored.response_header()))
            } else {
                // The conditions are those of the client. If-Match comes first (RFC 9110 §13.2.2).
                let asked = session.req_header();
                check_preconditions(asked, StatusCode::OK, response, ctx)?;
                is_confirmed(&asked.headers, &response.headers, SystemTime::now())
            };
        if fits {
            return Ok(());
        }
        let why = if ctx.conditional {
            "the origin's 304 is about another version"
        } else {
            "the origin sent a 304 that nobody asked for"
        };
        let mut error = Error::explain(UNUSABLE_NOT_MODIFIED, why).into_up();
        // Asked without conditions once; the next attempt is none. An error that
        // asks for no retry would have Pingora serve what is stored.
        error.set_retry(true);
        ctx.refused = ctx.unconditional;
        ctx.unconditional = true;
        Err(error)
    }

    /// RFC 9111 §4.3.5
    async fn update_by_head(
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
                // This request is none to store answers of.
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
            warn!("what a HEAD says about a stored response is lost: {e}");
        }
    }

    /// The part that the origin answers with, if the whole would be stored, under this key.
    fn part_of_whole(
        &self,
        session: &Session,
        key: CacheKey,
        response: &ResponseHeader,
        ctx: &CachingCtx,
    ) -> Option<PartOfWhole> {
        let limits = self.options.background_fills;
        let cache = self.store?.cache;
        if response.status != StatusCode::PARTIAL_CONTENT || limits.in_flight == 0 {
            return None;
        }
        let range = parse_content_range(response.headers.get(CONTENT_RANGE)?.as_bytes())?;
        range.range.as_ref()?;
        let limit = limits.max_bytes.min(cache.max_size_bytes());
        let whole_len = range.complete_length.filter(|len| *len <= limit)?;
        let mut whole = response.clone();
        whole.set_status(StatusCode::OK).ok()?;
        let now = SystemTime::now();
        let answer = Answer {
            request: session.req_header(),
            reaching: self.reaching(ctx),
            response: &whole,
            times: Times {
                requested: now,
                received: now,
            },
        };
        let is_stored = matches!(self.storing(ctx).to_store(&answer), Ok(Some(_)));
        is_stored.then_some(PartOfWhole { key, whole_len })
    }

    /// Fetch the whole of which a part was sent to the client. Only bytes that were sent
    /// count: a client that asks for much and leaves costs the origin no more than that.
    fn fill_whole(&self, session: &Session, part: &PartOfWhole) {
        let (Some(Store { cache, lock, .. }), Some(spawner)) =
            (self.store, session.subrequest_spawner.as_ref())
        else {
            return;
        };
        // Most parts come while the whole is on its way.
        if cache.is_filling(&part.key) || lock.gave_up(&part.key) {
            return;
        }
        let part = Part {
            key: part.key.combined_bin(),
            delivered: session.body_bytes_sent() as u64,
            whole_len: part.whole_len,
            client: client(session),
            begins: false,
        };
        let limits = &self.options.background_fills;
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

    /// For `response_cache_filter`: whether the response is stored.
    pub fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> RespCacheable {
        if ctx.own.is_some() {
            return self.store_own(session, response, ctx);
        }
        // A 304 gets here merged into what is stored.
        let is_whole = ctx.origin_status == Some(StatusCode::NOT_MODIFIED)
            || match ctx.asks {
                Asks::Whole => true,
                Asks::Part => response.status == StatusCode::OK,
                Asks::Head | Asks::Nothing => false,
            };
        if !is_whole {
            return RespCacheable::Uncacheable(NoCacheReason::Deferred);
        }
        match self.to_store(session, response, ctx) {
            Some(mut meta) => {
                let variance = self.variance(meta.headers(), session.req_header());
                self.limit_variants(session, variance);
                match &ctx.for_parts {
                    Some(for_parts) => drop(meta.extensions_mut().insert(for_parts.clone())),
                    None if ctx.background => drop(meta.extensions_mut().insert(InBackground)),
                    None => {}
                }
                RespCacheable::Cacheable(meta)
            }
            // Others may get an answer that can be stored.
            None if self.is_authorized(session.req_header()) => {
                RespCacheable::Uncacheable(NoCacheReason::Deferred)
            }
            None => RespCacheable::Uncacheable(NoCacheReason::OriginNotCache),
        }
    }

    fn limit_variants(&self, session: &Session, variance: Variance) {
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

    fn to_store(
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
                requested: ctx.requested.unwrap_or(received),
                received,
            },
        };
        match self.storing(ctx).to_store(&answer) {
            Ok(to_store) => to_store
                .filter(|to_store| to_store.meta.headers().len() <= MAX_STORED_FIELDS)
                .map(|to_store| {
                    ctx.withheld = to_store.withheld;
                    to_store.meta
                }),
            Err(e) => {
                warn!("a response cannot be stored: {e}");
                None
            }
        }
    }

    /// For `cache_not_modified_filter` (RFC 9110 §13.2.2).
    pub fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> bool {
        // It has no reader.
        if ctx.background {
            return true;
        }
        let request = session.req_header();
        let judged = evaluate(
            &request.method,
            &request.headers,
            response.status,
            &response.headers,
            SystemTime::now(),
        );
        // It becomes a 412.
        ctx.precondition_failed = judged == Precondition::Failed;
        judged != Precondition::Proceed
    }

    /// For `range_header_filter` (RFC 9110 §14.2).
    pub fn range_header_filter(
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

    /// For `response_filter`: what this cache adds to a response.
    pub fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        if ctx.background && !session.cache.enabled() {
            return Err(Error::explain(NOT_FILLED, "the response is not stored"));
        }
        let phase = session.cache.phase();
        if ctx.is_relayed(phase) {
            return self.label_relayed(session, response, ctx);
        }
        let now = SystemTime::now();
        let meta = session.cache.maybe_cache_meta();
        let ttl = meta.map(|meta| ttl(meta.fresh_until(), now));
        let collapsed = session.cache.lock_duration().is_some();
        // Any other plain request would be answered the same.
        let to_prepare = (ctx.plain
            && phase == CachePhase::Hit
            && response.status == StatusCode::OK
            && !collapsed
            && ctx.accepted_stale.is_none()
            && meta.is_some_and(|meta| {
                meta.is_fresh(now)
                    && self.variance(meta.headers(), session.req_header()) == Variance::None
            })
            && !is_prepared(session))
        .then(|| response.clone());
        let is_short = body_len(response).is_some_and(|len| len <= FOLLOW_BYTES);
        // A response without a length may turn out larger than the cache.
        let is_stored_whole = is_stored(phase) && response.headers.contains_key(CONTENT_LENGTH);
        if is_hit(phase) || is_validated(phase) || is_stored_whole {
            // The client reads from the disk, and may be slow again.
            ctx.turn = None;
            if let Some(timeout) = ctx.write_timeout.take() {
                session.set_write_timeout(timeout);
            }
        }
        match phase {
            CachePhase::Miss | CachePhase::Expired => {
                // Pingora reads bytes here in any case: this is for their number.
                let copies = !session.as_downstream().supports_zero_copy();
                let reader = session.cache.miss_body_reader().filter(|_| copies);
                if let Some(hit) = reader.and_then(|hit| hit.as_any_mut().downcast_mut()) {
                    DiskHit::copy_body(hit);
                }
                for (name, value) in ctx.withheld.drain(..) {
                    response.append_header(name, value)?;
                }
            }
            CachePhase::Hit if ctx.stored_len.is_none() && ctx.own.is_none() => {
                self.offer_rest(session, response, ctx);
            }
            CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => {
                for (name, value) in ctx.withheld.drain(..).filter(|(name, _)| *name != AGE) {
                    response.append_header(name, value)?;
                }
                if let Some(meta) = session.cache.maybe_cache_meta() {
                    response.insert_header(AGE, meta.age().as_secs())?;
                }
            }
            _ => {}
        }
        for cookie in ctx.cookies.drain(..) {
            response.append_header(SET_COOKIE, cookie)?;
        }
        if ctx.precondition_failed && response.status == StatusCode::NOT_MODIFIED {
            if !(is_hit(phase) || is_validated(phase) || is_stored(phase)) {
                // The rest of the response would be read for nobody.
                return Err(precondition_failed());
            }
            response.set_status(StatusCode::PRECONDITION_FAILED)?;
            response.insert_header(CONTENT_LENGTH, 0)?;
        }
        if response.status == StatusCode::NOT_MODIFIED {
            // It describes a part that the client does not get.
            response.remove_header(&CONTENT_RANGE);
        }
        let is_judged = matches!(
            response.status,
            StatusCode::NOT_MODIFIED | StatusCode::PRECONDITION_FAILED
        );
        if is_judged && is_stored(phase) && !is_short {
            // The client's next request would wait until the body is stored.
            session.set_keepalive(None);
        }
        // A HEAD that the origin answered without evaluating its conditions.
        if !(is_hit(phase) || is_validated(phase))
            && session.req_header().method == Method::HEAD
            && self.cache_not_modified_filter(session, response, ctx)
        {
            if ctx.precondition_failed {
                return Err(precondition_failed());
            }
            response.set_status(StatusCode::NOT_MODIFIED)?;
            response.remove_header(&CONTENT_LENGTH);
        }
        // Pingora frames a body of unknown length in chunks, which HTTP/1.0 does
        // not know (RFC 9112 §6.1): there the end of the connection is its end.
        if session.req_header().version <= Version::HTTP_10
            && response.headers.contains_key(TRANSFER_ENCODING)
        {
            response.remove_header(&TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        let is_hit = is_hit(phase) || ctx.stored_head.is_some();
        let found = is_hit || is_validated(phase);
        let status = CacheStatus {
            cache: self.options.name,
            forwarded: match ctx.forwarded {
                // Another request's answer.
                None if is_hit && collapsed => Some(ctx.waited_for.unwrap_or(Forwarded::UriMiss)),
                forwarded if !is_hit => Some(forwarded.unwrap_or(Forwarded::Bypass)),
                Some(forwarded) if ctx.asked_origin() => Some(forwarded),
                _ => None,
            },
            origin_status: ctx
                .origin_status
                .filter(|status| *status != response.status && found),
            stored: is_stored(phase),
            collapsed,
            ttl: ttl.or(ctx.stored_head).filter(|_| found),
            detail: ctx.served_stale(session).and_then(|why| match why {
                ServedStale::Error => Some("stale-if-error"),
                ServedStale::Revalidating => Some("stale-while-revalidate"),
                ServedStale::Accepted => None,
            }),
        };
        response.append_header("Cache-Status", status.to_value()?)?;
        let habit = match phase {
            _ if ctx.accepted_stale.is_some() => "STALE",
            _ if ctx.stored_head.is_some() => "HIT",
            CachePhase::Hit => "HIT",
            CachePhase::Stale | CachePhase::StaleUpdating => "STALE",
            CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => "REVALIDATED",
            CachePhase::Miss | CachePhase::Expired => "MISS",
            _ if ctx.asks == Asks::Nothing => "BYPASS",
            _ => "MISS",
        };
        response.insert_header("X-Cache", habit)?;
        if let Some(mut header) = to_prepare {
            header.remove_header(&AGE);
            header.insert_header("X-Cache", habit)?;
            self.prepare(session, header, ctx)?;
        }
        Ok(())
    }

    /// Let a client that follows a fill get the rest by itself, if need be.
    fn offer_rest(&self, session: &mut Session, response: &ResponseHeader, ctx: &CachingCtx) {
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
        let rest = FetchedRest::new(session, meta.headers(), filling.promised);
        let hit = session.cache.hit_handler().as_any_mut().downcast_mut();
        if let (Some(rest), Some(hit)) = (rest, hit) {
            let hit: &mut DiskHit = hit;
            hit.leave_by(Box::new(rest));
            if ctx.waits_for_fill {
                hit.waits_at_most(self.options.background_fills.max_wait);
            }
        }
    }

    /// For `should_serve_stale`: `error` is `None` while another request
    /// revalidates. Whether the response permits it has been seen to.
    pub fn should_serve_stale(&self, error: Option<&Error>, ctx: &mut CachingCtx) -> bool {
        if ctx.own.is_some() {
            // Only the origin can say who may have it.
            return false;
        }
        let Some(error) = error else {
            return !ctx.background;
        };
        match error.etype() {
            // RFC 5861 §4
            ErrorType::HTTPStatus(status) => {
                ctx.origin_status = StatusCode::from_u16(*status).ok();
                matches!(status, 500 | 502 | 503 | 504)
            }
            _ => *error.esource() == ErrorSource::Upstream,
        }
    }

    /// For `fail_to_proxy`: answer with the status that fits, if the client is
    /// there and has not been answered.
    pub async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &CachingCtx,
    ) -> FailToProxy {
        let status = error_status(error, ctx);
        if let Some(status) = status {
            // Boxed, because few requests come here.
            if let Err(e) = Box::pin(self.respond_error(session, status)).await {
                debug!("a client cannot be told of an error: {e}");
            }
        }
        FailToProxy {
            error_code: status.unwrap_or(0),
            can_reuse_downstream: false,
        }
    }

    async fn respond_error(&self, session: &mut Session, status: u16) -> Result<()> {
        let mut header = ServerSession::generate_error(status);
        let mut body = match self.options.error_body {
            Some(body) => body(session.req_header(), &mut header)?,
            None => Bytes::new(),
        };
        if session.req_header().method == Method::HEAD {
            body.clear();
        }
        let downstream = session.as_downstream_mut();
        downstream.write_error_response(header, body).await
    }

    /// For `logging`: break off what must not look complete, forget what cannot be read,
    /// and fetch the whole of which a part was sent.
    pub fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &CachingCtx) {
        if let Some(part) = &ctx.part {
            self.fill_whole(session, part);
        }
        if let Some(download) = &ctx.download {
            let delivered = session.body_bytes_sent() as u64;
            let range = session.req_header().headers.get(RANGE);
            let first = range.and_then(|range| single_range(range.as_bytes()));
            let begins = error.is_none() && first.is_some_and(|(first, _)| first == 0);
            let limits = &self.options.background_fills;
            download.delivered(delivered, begins, client(session), limits);
        }
        let Some(error) = error else { return };
        // The body's end may be all that tells the client it is complete.
        let close_delimited = session.response_written().is_some_and(|response| {
            !response.headers.contains_key(CONTENT_LENGTH)
                && !response.headers.contains_key(TRANSFER_ENCODING)
        });
        if close_delimited {
            session.as_downstream_mut().abort_response();
        }
        // A hit whose file is too short, or unreadable, is one no longer.
        let damaged = matches!(error.etype(), ErrorType::FileReadError) && !ctx.asked_origin();
        let key = session.cache.maybe_cache_key().filter(|_| damaged);
        if let (Some(key), Some(store)) = (key, &self.store) {
            warn!("cache entry of {key:?} is dropped: {error}");
            store.cache.drop_entry(key, &error.to_string());
        }
    }

    /// For `suppress_error_log`: errors that are none. That the client went away from
    /// what [`answer_prepared`](Self::answer_prepared) sent is not one; of the hits that
    /// it serves itself, Pingora logs it without asking.
    pub fn suppress_error_log(&self, ctx: &CachingCtx, error: &Error) -> bool {
        let client_left = *error.esource() == ErrorSource::Downstream
            && matches!(
                error.etype(),
                ErrorType::WriteError | ErrorType::ConnectionClosed
            );
        let precondition_failed =
            *error.etype() == ErrorType::HTTPStatus(StatusCode::PRECONDITION_FAILED.as_u16());
        [NOT_FILLED, DESERTED].contains(error.etype())
            || precondition_failed
            || ((ctx.answered_prepared || ctx.is_own) && client_left)
    }

    /// For `suppress_proxy_warn_log`: true for errors whose frequency clients decide, and
    /// which are counted. They go to the debug log.
    pub fn suppress_proxy_warn_log(&self, error: &Error, context: ProxyWarnLogContext) -> bool {
        let suppressed = match context {
            ProxyWarnLogContext::DownstreamCache => true,
            ProxyWarnLogContext::CacheAdmission => *error.etype() == NO_ROOM,
            _ => false,
        };
        if suppressed {
            debug!("{context:?}: {error}");
        }
        suppressed
    }
}

/// Send what a hit has to a client that has got its header.
async fn send_body(
    session: &mut Session,
    hit: &mut DiskHit,
    first: Option<BodyPart>,
) -> Result<()> {
    let mut next = first;
    while let Some(part) = next {
        let more = hit.has_more();
        let sent = match part {
            BodyPart::Bytes(bytes) => {
                // The end is for the modules too.
                let written = session.write_response_body(Some(bytes), !more).await;
                if !more {
                    return written.map_err(of_sending);
                }
                // What follows is not read before the client takes this.
                match written {
                    Ok(()) => session.as_downstream_mut().flush_body().await,
                    Err(e) => Err(e),
                }
            }
            BodyPart::File { file, offset, len } => {
                // Boxed, because small bodies come from memory and need no room for this.
                let written = Box::pin(session.write_file_body(&file, offset, len));
                written.await.map(drop)
            }
            part => {
                let why = format!("a hit has {part:?}, which cannot be sent");
                Err(Error::explain(ErrorType::InternalError, why).into_in())
            }
        };
        sent.map_err(of_sending)?;
        next = hit.next_part().await?;
    }
    let finished = session.write_response_body(None, true).await;
    finished.map_err(of_sending)
}

/// Whose an error is that sending met with: the client's if it is of the connection,
/// else ours, of the file or of a module.
fn of_sending(error: Box<Error>) -> Box<Error> {
    match (error.esource(), error.etype()) {
        (
            ErrorSource::Unset,
            ErrorType::WriteError | ErrorType::WriteTimedout | ErrorType::ConnectionClosed,
        ) => error.into_down(),
        (ErrorSource::Unset, _) => error.into_in(),
        _ => error,
    }
}

fn is_prepared(session: &mut Session) -> bool {
    let hit = session.cache.hit_handler().as_any().downcast_ref();
    hit.is_some_and(|hit: &DiskHit| hit.prepared().is_some())
}

/// `None`: the client is gone.
fn error_status(error: &Error, ctx: &CachingCtx) -> Option<u16> {
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(status) | ErrorType::CustomCode(_, status), _) => Some(*status),
        // RFC 9111 §5.2.2.2
        (_, ErrorSource::Upstream) if ctx.must_revalidate => Some(504),
        (ErrorType::ConnectTimedout | ErrorType::ReadTimedout, ErrorSource::Upstream) => Some(504),
        (_, ErrorSource::Upstream) => Some(502),
        (
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed,
            ErrorSource::Downstream,
        ) => None,
        (_, ErrorSource::Downstream) => Some(400),
        _ => Some(500),
    }
}

fn target_key(target: &Target) -> CacheKey {
    // Neither can hold what stands between them.
    let key = format!("{}\n{}", target.authority, target.path_and_query);
    CacheKey::new(key, "")
}

/// `uri-host [":" port]`, or nothing (RFC 9110 §7.2).
fn is_host(value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    value.is_empty() || is_plain_host(value) || is_parsed_host(value)
}

fn is_parsed_host(value: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(value) else {
        return false;
    };
    // A comma may be part of a name, but is rather the end of one.
    let port = value.get(authority.host().len()..).unwrap_or(b"@");
    let is_port = port
        .strip_prefix(b":")
        .is_some_and(|port| port.iter().all(u8::is_ascii_digit));
    !value.contains(&b',') && (port.is_empty() || is_port)
}

/// Whether it is one beyond doubt: a name of letters, digits, dots and hyphens, and
/// perhaps a port. To parse any other takes an allocation.
fn is_plain_host(value: &[u8]) -> bool {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    let (name, port) = match value.iter().position(|b| *b == b':') {
        Some(colon) => (&value[..colon], &value[colon + 1..]),
        None => (value, &b"0"[..]),
    };
    !name.is_empty()
        && name.iter().all(is_plain)
        && !port.is_empty()
        && port.iter().all(u8::is_ascii_digit)
}

/// True if a request names its host (RFC 9112 §3.2), and says one length at most: a list of
/// lengths is one to some and none to others (RFC 9110 §8.6).
fn has_valid_fields(request: &RequestHeader) -> bool {
    let (mut hosts, mut lengths) = (0, 0);
    // One pass over the few fields of most requests hashes none of their names.
    for (name, value) in &request.headers {
        if *name == HOST {
            hosts += 1;
            if !is_host(value) {
                return false;
            }
        } else if *name == CONTENT_LENGTH {
            lengths += 1;
            if !value.as_bytes().iter().all(u8::is_ascii_digit) {
                return false;
            }
        }
    }
    (hosts > 0 || request.version != Version::HTTP_11) && lengths <= 1
}

/// Whether it is in a form that this method may have (RFC 9112 §3.2).
fn is_target(method: &Method, target: &[u8]) -> bool {
    let starts_with = |scheme: &[u8]| {
        target
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    match *method {
        Method::CONNECT => true,
        Method::OPTIONS if target == b"*" => true,
        _ => target.starts_with(b"/") || starts_with(b"http://") || starts_with(b"https://"),
    }
}

/// What the client's `Connection` names is not forwarded, so it must not select
/// what is stored either (RFC 9110 §7.6.1).
///
/// `Upgrade` ends here too, unless the origin may have to be asked for it.
fn end_at_this_hop(request: &mut RequestHeader, upgrades: bool) {
    for name in connection_fields(&request.headers) {
        if upgrades && name == UPGRADE {
            continue;
        }
        // The session still needs the former; the others only restrict.
        if ![CONNECTION, AUTHORIZATION, CACHE_CONTROL, PRAGMA].contains(&name) {
            request.remove_header(&name);
        }
    }
}

/// The status of a request that goes no further.
fn answered_here(request: &mut RequestHeader) -> Result<Option<StatusCode>> {
    if !has_valid_fields(request) || !is_target(&request.method, request.raw_path()) {
        return Ok(Some(StatusCode::BAD_REQUEST));
    }
    // RFC 9110 §7.6.2
    if !matches!(request.method, Method::OPTIONS | Method::TRACE) {
        return Ok(None);
    }
    let hops = request
        .headers
        .get(MAX_FORWARDS)
        .and_then(|hops| hops.to_str().ok()?.trim().parse::<u64>().ok());
    match (hops, &request.method) {
        (None, _) => Ok(None),
        (Some(0), &Method::OPTIONS) => Ok(Some(StatusCode::OK)),
        // What a client sent to others is not for it to see.
        (Some(0), _) => Ok(Some(StatusCode::METHOD_NOT_ALLOWED)),
        (Some(hops), _) => {
            request.insert_header(MAX_FORWARDS, hops - 1)?;
            Ok(None)
        }
    }
}

/// The path and query of a target in absolute form: an origin is no proxy
/// (RFC 9112 §3.2.1).
fn origin_form(target: &[u8]) -> Option<Vec<u8>> {
    let scheme = target.windows(3).position(|part| part == b"://")?;
    if target.starts_with(b"/") {
        return None;
    }
    let rest = &target[scheme + 3..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?'));
    Some(match end.map(|end| &rest[end..]) {
        Some(query) if query.starts_with(b"?") => [b"/", query].concat(),
        Some(path) => path.to_vec(),
        None => b"/".to_vec(),
    })
}

fn asks(request: &RequestHeader, has_body: bool, has_condition: bool) -> Asks {
    if has_body {
        return Asks::Nothing;
    }
    match request.method {
        Method::HEAD => Asks::Head,
        Method::GET if !has_condition => Asks::Whole,
        Method::GET => match request.headers.get(RANGE) {
            // The whole from its beginning on is what a fill delivers.
            Some(range) if single_range(range.as_bytes()) == Some((0, None)) => Asks::Whole,
            Some(range) => match parse_range(range.as_bytes(), u64::MAX, MAX_RANGES) {
                Ranges::Ignored => Asks::Whole,
                Ranges::Unsatisfiable | Ranges::Satisfiable(_) => Asks::Part,
            },
            None => Asks::Whole,
        },
        _ => Asks::Nothing,
    }
}

/// The address of a session's client.
fn client(session: &Session) -> Option<IpAddr> {
    let address = session.client_addr()?.as_inet()?;
    Some(address.ip())
}

/// The progress of the fill that a hit follows, if it follows one.
fn filling(hit: &HitHandler) -> Option<Filling> {
    hit.as_any().downcast_ref().and_then(DiskHit::filling)
}

/// Tells if a hit has the part that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HasPart {
    /// It has its beginning, or as good as that.
    Yes,
    /// It follows a fill that is expected to come to the part in time. Otherwise, the part can be
    /// fetched by itself.
    Soon,
    No,
}

/// Tells if a hit, with this header, has the part that is asked for.
fn has_part(
    hit: &HitHandler,
    stored: &HeaderMap,
    request: &RequestHeader,
    max_wait: Duration,
) -> HasPart {
    let Some(fill) = filling(hit) else {
        return HasPart::Yes;
    };
    let Some(promised) = fill.promised else {
        // Parts of it cannot be told; the whole is as good (RFC 9110 §14.2), and
        // an origin that does not know the length would hardly send less.
        return HasPart::Yes;
    };
    let range = request.headers.get(RANGE);
    let ranges = range.map(|range| parse_range(range.as_bytes(), promised, MAX_RANGES));
    let Some(Ranges::Satisfiable(ranges)) = ranges else {
        // No body byte is needed to tell.
        return HasPart::Yes;
    };
    let first = ranges.iter().map(|range| range.start).max().unwrap_or(0);
    if first <= fill.written.saturating_add(FOLLOW_BYTES) {
        HasPart::Yes
    } else if ranges.len() == 1 && comes_in_time(&fill, first, max_wait) && offers_rest(stored) {
        HasPart::Soon
    } else {
        HasPart::No
    }
}

/// True if a fill is expected to have come to a position within `max_wait`.
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

/// Whether a 304 is about what is stored (RFC 9111 §4.3.4).
fn is_about(not_modified: &ResponseHeader, stored: &ResponseHeader) -> bool {
    let both = |name| (not_modified.headers.get(&name), stored.headers.get(&name));
    match both(ETAG) {
        (Some(validated), Some(stored)) => {
            let tags = (
                EntityTag::parse(validated.as_bytes()),
                EntityTag::parse(stored.as_bytes()),
            );
            match tags {
                (Some(new), Some(old)) if new.is_strong() => new.strong_eq(&old),
                (Some(new), Some(old)) => new.weak_eq(&old),
                _ => validated == stored,
            }
        }
        (Some(_), None) => false,
        (None, _) => match both(LAST_MODIFIED) {
            (Some(validated), Some(stored)) => validated == stored,
            _ => true,
        },
    }
}

/// Check that a part that the origin sent is the one that was asked for, and belongs to
/// the version that the client has. Not every origin obeys If-Range: MinIO ignores it, so
/// the client would join parts of two versions.
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
    let applies = match response.status {
        // One that its number names.
        StatusCode::PARTIAL_CONTENT if ctx.names_part && !ctx.ranged => {
            if !is_consistent_part(&response.headers) {
                return Err(unusable(
                    "the origin sent a part whose Content-Range contradicts its length",
                ));
            }
            state_part_length(response)?;
            true
        }
        StatusCode::PARTIAL_CONTENT if !ctx.ranged => {
            return Err(unusable("the origin sent a part that was not asked for"));
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
        // A 416 does not tell the version.
        StatusCode::RANGE_NOT_SATISFIABLE if ctx.ranged => !asked.headers.contains_key(IF_RANGE),
        _ => true,
    };
    if applies {
        return Ok(());
    }
    ctx.whole = true;
    let mut error = unusable("the origin sent a part of another version than If-Range names");
    error.set_retry(true);
    Err(error)
}

/// State the length of a part that came in chunks or to the end of the connection, so that
/// one that breaks off early does not look complete.
fn state_part_length(response: &mut ResponseHeader) -> Result<()> {
    let range = response.headers.get(CONTENT_RANGE);
    let range = range.and_then(|range| parse_content_range(range.as_bytes())?.range);
    if let Some(range) = range.filter(|_| !response.headers.contains_key(CONTENT_LENGTH)) {
        response.remove_header(&TRANSFER_ENCODING);
        response.insert_header(CONTENT_LENGTH, range.end - range.start)?;
    }
    Ok(())
}

/// Check that the origin's answer meets the client's `If-Match` and `If-Unmodified-Since`,
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
    if ctx.background || !has_failing_preconditions(&asked.headers) {
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

fn precondition_failed() -> Box<Error> {
    let status = ErrorType::HTTPStatus(StatusCode::PRECONDITION_FAILED.as_u16());
    let why = "a precondition does not hold for what the origin has";
    Error::explain(status, why).into_down()
}

/// True if the origin's response is being stored.
fn is_stored(phase: CachePhase) -> bool {
    matches!(phase, CachePhase::Miss | CachePhase::Expired)
}

/// Leave of a client's request only its target and what selects a variant.
pub(super) fn make_plain(request: &mut RequestHeader, method: Method) {
    for name in CONDITIONS.iter().chain(&[CACHE_CONTROL, PRAGMA]) {
        request.remove_header(name);
    }
    request.set_method(method);
}

/// Whether what was found is served, without the origin having been asked or
/// after it has failed.
fn is_hit(phase: CachePhase) -> bool {
    matches!(
        phase,
        CachePhase::Hit | CachePhase::Stale | CachePhase::StaleUpdating
    )
}

/// Whether what was found is served after a 304.
fn is_validated(phase: CachePhase) -> bool {
    matches!(
        phase,
        CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_)
    )
}

fn body_len(response: &ResponseHeader) -> Option<u64> {
    let len = response.headers.get(CONTENT_LENGTH)?;
    len.to_str().ok()?.parse().ok()
}

/// What came in chunks has a length once it is stored.
fn state_length(session: &Session, response: &mut ResponseHeader, ctx: &CachingCtx) -> Result<()> {
    let phase = session.cache.phase();
    let found = is_hit(phase) || is_validated(phase);
    let Some(len) = ctx.stored_len.filter(|_| found) else {
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

fn range_type(request: &RequestHeader, response: &mut ResponseHeader) -> Result<RangeType> {
    if request.method != Method::GET || response.status != StatusCode::OK {
        return Ok(RangeType::None);
    }
    let Some(range) = request.headers.get(RANGE) else {
        return Ok(RangeType::None);
    };
    let len = response
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|len| len.to_str().ok()?.parse::<usize>().ok());
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
                // The common one needs no second reading.
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

    fn request(method: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, b"/", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn response(status: u16, fields: &[(&'static str, &str)]) -> ResponseHeader {
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in fields {
            response.append_header(*name, *value).unwrap();
        }
        response
    }

    /// RFC 9112 §3.2.1
    #[test]
    fn the_origin_gets_path_and_query() {
        for (target, expected) in [
            ("http://example.com/a?b", Some("/a?b")),
            ("http://example.com?b", Some("/?b")),
            ("http://example.com", Some("/")),
            ("/a?u=http://example.com/", None),
            ("/", None),
            ("*", None),
        ] {
            let form = origin_form(target.as_bytes());
            assert_eq!(form.as_deref(), expected.map(str::as_bytes), "{target}");
        }
    }

    /// RFC 9111 §4.3.4
    #[test]
    fn a_304_is_about_what_has_its_tag() {
        for (validated, stored, expected) in [
            (Some("\"a\""), Some("\"a\""), true),
            (Some("W/\"a\""), Some("\"a\""), true),
            (Some("\"a\""), Some("W/\"a\""), false),
            (Some("\"b\""), Some("\"a\""), false),
            (Some("a"), Some("a"), true),
            (Some("a"), Some("\"a\""), false),
            (None, Some("\"a\""), true),
            (Some("\"a\""), None, false),
            (None, None, true),
        ] {
            let header = |tag: Option<&str>| {
                let fields: Vec<_> = tag.map(|tag| ("etag", tag)).into_iter().collect();
                response(200, &fields)
            };
            let about = is_about(&header(validated), &header(stored));
            assert_eq!(about, expected, "{validated:?} {stored:?}");
        }
    }

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

    #[test]
    fn a_plain_host_is_one_to_the_parser_too() {
        let mut plain = 0;
        let mut values = vec![String::new()];
        for _ in 0..5 {
            let longer = |value: &String| {
                "a9.-:,/@[%"
                    .chars()
                    .map(|c| format!("{value}{c}"))
                    .collect()
            };
            values = values.iter().flat_map::<Vec<_>, _>(longer).collect();
            for value in &values {
                if is_plain_host(value.as_bytes()) {
                    assert!(is_parsed_host(value.as_bytes()), "{value}");
                    plain += 1;
                }
            }
        }
        assert!(plain > 1000);
        for value in ["localhost", "127.0.0.1:9000", "Bucket.s3.example.com"] {
            assert!(is_plain_host(value.as_bytes()), "{value}");
        }
    }

    /// RFC 9112 §3.2, RFC 9110 §7.6.2
    #[test]
    fn some_requests_go_no_further() {
        let host = ("host", "example.com");
        for (method, fields, expected) in [
            ("GET", &[host][..], None),
            ("GET", &[], Some(400)),
            ("GET", &[host, ("max-forwards", "0")], None),
            ("POST", &[host, ("content-length", "3")], None),
            ("POST", &[host, ("content-length", "3, 3")], Some(400)),
            (
                "POST",
                &[host, ("content-length", "3"), ("content-length", "3")],
                Some(400),
            ),
            ("GET", &[("host", "example.com/x")], Some(400)),
            ("OPTIONS", &[host], None),
            ("OPTIONS", &[host, ("max-forwards", "0")], Some(200)),
            ("TRACE", &[host, ("max-forwards", "0")], Some(405)),
            ("TRACE", &[host, ("max-forwards", "5")], None),
        ] {
            let mut asked = request(method, fields);
            let status = answered_here(&mut asked).unwrap();
            let status = status.map(|status| status.as_u16());
            assert_eq!(status, expected, "{method} {fields:?}");
        }
        let mut asked = request("TRACE", &[host, ("max-forwards", "5")]);
        answered_here(&mut asked).unwrap();
        assert_eq!(asked.headers[MAX_FORWARDS], "4");
    }
}
