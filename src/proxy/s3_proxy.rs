//! Routes requests to buckets, signs them, and serves hits by sendfile.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderValue, Method, StatusCode};
use log::warn;
use pingora_cache::key::HashBinary;
use pingora_cache::{
    CacheKey, CacheMeta, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable,
};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use pingora_core::{Error, ErrorSource, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, RangeType, Session};

use super::auth::{Admitted, Auth, Refused};
use super::authorities::Authorities;
use super::buckets::{ListRules, Listing};
use super::cache_key::{cache_key, requested_path, CacheKeys};
use super::dot_segments::Dots;
use super::http1::answer_what_was_asked;
use super::negative_cache::Absent;
use super::passthrough::{Passed, Passthrough};
use super::resolve::{Attempts, Resolver};
use super::retries::{self, Budget};
use super::route::{Found, Route};
use super::rules::{Rule, Rules};
use super::{buckets, errors, memory};
use crate::cache::DiskCache;
use crate::config::Config;
use crate::http::rules::fields::RequestFields;
use crate::http::{
    sends_body, CachingCtx, CachingOptions, HttpCaching, RangeFillLimits, ServedStale,
};
use crate::metrics::METRICS;
use crate::s3::{
    Code, Fault, ListError, ListRewriter, ObjectKey, Operation, Refreshed, S3Error, S3Request,
    Site, Target,
};

/// Shorter than the 20 s after which S3 closes idle connections.
const ORIGIN_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The request fields that the origin sees: ranges and conditions of the client or of the
/// cache. All others stay here, so they have no part in what the origin answers.
const FORWARDED: [HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// The error of a request that cannot be signed.
const NO_CREDENTIALS: ErrorType = ErrorType::new_code("NoOriginCredentials", 503);

/// The error of a request that is made once more.
const REPEATED: ErrorType = ErrorType::new("OriginRequestRepeated");

/// The response field that names a bucket's actual region ("HeadBucket", Amazon S3 API
/// Reference).
const BUCKET_REGION: &str = "x-amz-bucket-region";

/// Asks S3 for the checksum fields of an object ("Checking object integrity", Amazon S3 User
/// Guide).
pub(super) const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");

/// The names of all checksum fields begin so.
const CHECKSUM: &str = "x-amz-checksum-";

/// The proxy: S3 behind, the disk cache in the middle.
pub struct S3ProxyHttp {
    keys: CacheKeys,
    auth: Auth,
    caching: HttpCaching,
    absent: Absent,
    rules: Rules,
    /// The longest wait for the origin where something stale can be served.
    stale_timeout: Option<Duration>,
    dots: Dots,
    /// Of each bucket, in the order of the configuration.
    lists: Vec<ListRules>,
    passthrough: Passthrough,
    resolver: Resolver,
    authorities: Authorities,
    /// Of each bucket, in the order of the configuration.
    budgets: Vec<Budget>,
    write_timeout: Option<Duration>,
    min_send_rate: Option<usize>,
    /// In seconds.
    keepalive_timeout: Option<u64>,
}

/// The decision on a request, before anything is looked up for it.
pub(super) enum Decision {
    /// It is served.
    Proceed,
    /// It is answered with an error.
    Refuse(Box<Refused>),
}

/// Outcome of [`S3ProxyHttp::admit`] for a request.
enum Admission {
    /// It is for an object, and goes on to the cache.
    Serve,
    /// It has no route, or is malformed.
    Error(S3Error),
    /// The client is not permitted to make it.
    Refuse(Box<Refused>),
    /// It is a GET or HEAD, and may have a body, which it must not.
    MayHaveBody(Found),
    /// It is for all buckets.
    Service(S3Request),
    /// S3 decides on it.
    Pass(Route),
    /// It is for something else than an object.
    Other(Route),
}

/// What is known of a request.
#[derive(Default)]
pub struct RequestCtx {
    caching: CachingCtx,
    route: Option<Route>,
    admitted: Admitted,
    /// The list that the client asked for.
    listing: Option<Box<Listing>>,
    /// S3 decides on the request.
    passed: Option<Box<Passed>>,
    attempts: Attempts,
    /// The repetitions of the request to the origin.
    retries: u8,
    /// There is a pause before the next request to the origin.
    pauses: bool,
    /// The origin has begun to answer its last request.
    has_answer: bool,
    /// The clock was corrected for this request.
    clock_learnt: bool,
    /// The answer that has begun may be the document of an error.
    may_be_fault: bool,
    /// Replaces the body of an error of the origin, once.
    error_body: Option<Bytes>,
    /// The body of the origin's answer is thrown away.
    replaces_body: bool,
    /// See [`Absent::asked_now`].
    asked_at: u64,
    /// Answered by what [`Absent`] remembers.
    is_remembered: bool,
    /// The rule for the object; set unless the answer was prepared.
    rule: Option<Arc<Rule>>,
}

impl S3ProxyHttp {
    /// A proxy for the buckets of `config`, which caches in `cache`.
    pub fn new(config: &Config, cache: Option<&'static DiskCache>) -> Self {
        let options = CachingOptions {
            // The proxy makes its own requests, see FORWARDED.
            request_fields: RequestFields::Only(&[]),
            // Otherwise any client could force requests to S3.
            request_directives: false,
            judges_preconditions: true,
            range_fill: RangeFillLimits {
                in_flight: *config.cache.range_fill.max_in_flight,
                max_bytes: config.cache.range_fill.max_size_bytes(),
                bytes_in_flight: config
                    .cache
                    .range_fill
                    .max_in_flight_bytes(config.cache.disk.max_size_bytes()),
                client_bytes_per_minute: config.cache.range_fill.client_bytes_per_minute(),
                max_wait: *config.cache.range_fill.max_wait,
            },
            lock_age: *config.cache.lock_age,
            max_misses: *config.cache.max_misses,
            miss_timeout: *config.cache.miss_timeout,
            head_ttl: *config.cache.head_ttl,
            error_body: Some(errors::of_cache),
            ..CachingOptions::default()
        };
        let min_send_rate = *config.server.min_send_rate;
        let caching = HttpCaching::new(cache, options);
        METRICS.watch_misses(caching.origin_turns());
        let rules = Rules::new(&config.cache);
        let keys = CacheKeys::new(config);
        METRICS.watch_credentials(refreshed(&keys));
        let authorities = Authorities::load(keys.router().sites());
        let budgets = keys.router().sites().iter().map(|_| Budget::new());
        S3ProxyHttp {
            budgets: budgets.collect(),
            authorities,
            keys,
            auth: Auth::new(config),
            caching,
            absent: Absent::new(cache),
            rules,
            stale_timeout: config.cache.stale_timeout.non_zero(),
            dots: Dots::new(),
            lists: config.buckets.iter().map(ListRules::of).collect(),
            passthrough: Passthrough::new(config, cache),
            resolver: Resolver::default(),
            write_timeout: config.server.write_timeout.non_zero(),
            min_send_rate: (min_send_rate > 0).then_some(min_send_rate),
            keepalive_timeout: config.server.keepalive_secs(),
        }
    }

    /// The credentials that have to be looked up. Where nobody starts that, the first
    /// requests for an origin do, and wait.
    pub fn credentials(&self) -> Vec<Arc<Refreshed>> {
        refreshed(&self.keys).map(|(_, found)| found).collect()
    }

    /// Decide whether a request to the origin is repeated that has failed in a way that may
    /// pass. Nothing has been sent to the client.
    fn may_repeat(&self, session: &Session, ctx: &mut RequestCtx) -> bool {
        let Some(route) = &ctx.route else {
            return false;
        };
        // A body that is relayed is not kept.
        let is_read = matches!(session.req_header().method, Method::GET | Method::HEAD);
        let unanswered = is_read && session.response_written().is_none();
        let allowed = route.site.connection().retries;
        // The client gets what is stored at once.
        if !unanswered || ctx.retries >= allowed || ctx.caching.may_serve_stale(session) {
            return false;
        }
        let budget = self.budgets.get(route.site.index());
        if !budget.is_some_and(Budget::spend) {
            METRICS.origin_retries_refused.inc();
            return false;
        }
        ctx.retries += 1;
        ctx.pauses = true;
        METRICS.origin_retries.inc();
        true
    }

    /// Note how an answer of the origin begins.
    ///
    /// # Errors
    /// The request is to be repeated.
    fn note_answer(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        ctx.has_answer = true;
        if retries::may_pass(response.status, &response.headers) {
            if self.may_repeat(session, ctx) {
                return Err(repeat(format!("the origin answers {}", response.status)));
            }
        } else if let Some(route) = &ctx.route {
            if let Some(budget) = self.budgets.get(route.site.index()) {
                budget.earn();
            }
        }
        if response.status == StatusCode::FORBIDDEN && !ctx.clock_learnt {
            ctx.clock_learnt = true;
            if learn_clock(response, ctx) && session.response_written().is_none() {
                return Err(repeat("the clock was wrong".to_owned()));
            }
        }
        ctx.may_be_fault = may_be_fault(session, response);
        Ok(())
    }

    /// A time for the origin, or less where something stale can be served: the client gets
    /// that rather than waits.
    fn unless_stale(
        &self,
        timeout: Option<Duration>,
        session: &Session,
        ctx: &RequestCtx,
    ) -> Option<Duration> {
        let limit = self.stale_timeout;
        let limit = limit.filter(|_| ctx.caching.may_serve_stale(session));
        match (timeout, limit) {
            (Some(timeout), Some(limit)) => Some(timeout.min(limit)),
            (timeout, limit) => timeout.or(limit),
        }
    }

    /// The time for a connection to the origin.
    fn connect_limit(&self, origin: &Site, session: &Session, ctx: &RequestCtx) -> Duration {
        let timeout = origin.connection().connect_timeout;
        let limit = self.unless_stale(Some(timeout), session, ctx);
        limit.unwrap_or(timeout)
    }

    /// Pingora waits for the next request forever, which it says by zero.
    fn limit_keepalive(&self, session: &mut Session) {
        if self.keepalive_timeout.is_some() && session.get_keepalive() == Some(0) {
            session.set_keepalive(self.keepalive_timeout);
        }
    }

    /// True if an answer is remembered because there is no object. An answer with the
    /// origin's own `Cache-Control` is stored like any other.
    fn is_remembered(&self, response: &ResponseHeader, ctx: &RequestCtx) -> bool {
        let says_how_long = |name| response.headers.contains_key(name);
        ctx.rule.as_ref().is_some_and(|rule| {
            let stated = ["cache-control", "cdn-cache-control", "expires"]
                .into_iter()
                .any(says_how_long);
            rule.remembers(response.status) && (rule.storing.ignore_origin || !stated)
        })
    }

    /// The error of an answer that S3 sends for a bucket of another region or endpoint.
    /// A client could not follow it: the address names the bucket, and needs a signature.
    fn redirected(&self, response: &ResponseHeader, ctx: &RequestCtx) -> Box<Error> {
        let status = response.status.as_u16();
        let does = match response.status.is_redirection() {
            true => "redirects with",
            false => "answers",
        };
        let bucket = ctx.route.as_ref().map_or("?", |route| route.site.bucket());
        let region = response
            .headers
            .get(BUCKET_REGION)
            .map(|region| String::from_utf8_lossy(region.as_bytes()));
        match region {
            Some(region) => warn!(
                "bucket {bucket}: the origin {does} {status}; the bucket is in region {region:?}: set its region and endpoint to that"
            ),
            None => warn!(
                "bucket {bucket}: the origin {does} {status}; check the bucket's region and endpoint"
            ),
        }
        let why = "the bucket is elsewhere";
        Error::explain(ErrorType::InvalidHTTPHeader, why).into_up()
    }

    /// Look at the first bytes of an answer that may be an error document.
    ///
    /// # Errors
    /// It is one, with the status of an object.
    #[cold]
    fn note_fault(&self, body: &Option<Bytes>, ctx: &mut RequestCtx) -> Result<()> {
        let Some(bytes) = body.as_ref().filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        ctx.may_be_fault = false;
        let Some(fault) = Fault::read(bytes) else {
            return Ok(());
        };
        let bucket = ctx.route.as_ref().map_or("?", |route| route.site.bucket());
        let code = fault.code().unwrap_or("no code");
        if ctx.replaces_body {
            if let Some(region) = fault.region() {
                warn!(
                    "bucket {bucket}: the origin answers 400 ({code}); the bucket is in region {region:?}: set its region and endpoint to that"
                );
            }
            return Ok(());
        }
        let why = format!("the origin sends an error ({code}) as an object");
        Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up())
    }

    /// The key of the object without its dot segments, if it has some and the origin may lack the
    /// key that has them.
    fn without_dots(&self, ctx: &RequestCtx) -> Result<Option<ObjectKey>> {
        let route = routed(&ctx.route)?;
        let resolved = route.key()?.without_dot_segments();
        // A signed key is a key as S3 reads it, so its dot segments stay.
        Ok(resolved.filter(|_| self.auth.is_open(route.site.index())))
    }

    /// Route a request to its resolved key if the origin lacks the key with dot segments.
    async fn resolve_to(
        &self,
        session: &mut Session,
        resolved: ObjectKey,
        ctx: &mut RequestCtx,
    ) -> Result<Decision> {
        let key = routed(&ctx.route)?.cache_key()?;
        if !self.dots.is_absent(session, &key).await {
            return Ok(Decision::Proceed);
        }
        let Some(mut route) = ctx.route.take() else {
            return Ok(Decision::Proceed);
        };
        route.request.target = Target::Object(resolved);
        // Another object, which not everybody may read who may read the first.
        let decision = self.authorise(session, &route.request, &route.site, ctx);
        ctx.route = Some(route);
        Ok(decision)
    }

    /// Decide whether a client may do what it asks for: before anything is looked up, so on
    /// hits too. The proxy's own requests come here as well, with the target and the fields of
    /// a client's request that was let in.
    fn authorise(
        &self,
        session: &Session,
        request: &S3Request,
        site: &Arc<Site>,
        ctx: &mut RequestCtx,
    ) -> Decision {
        if session.subrequest_ctx.is_some() {
            return Decision::Proceed;
        }
        match self
            .auth
            .decide(site.index(), session.req_header(), request)
        {
            Ok(admitted) => ctx.admitted = admitted,
            Err(refused) => return Decision::Refuse(refused),
        }
        if !request.overrides().is_empty() && !ctx.admitted.is_authenticated {
            let why =
                "Request specific response headers cannot be used for anonymous GET requests.";
            let error = S3Error::new(Code::InvalidRequest, why);
            return Decision::Refuse(Box::new(error.into()));
        }
        Decision::Proceed
    }

    /// For `request_filter`: the part of the decision that needs no waiting.
    fn admit(&self, session: &mut Session, ctx: &mut RequestCtx) -> Admission {
        answer_what_was_asked(session);
        session.set_write_timeout(self.write_timeout);
        session.set_min_send_rate(self.min_send_rate);
        self.limit_keepalive(session);
        let found = match Found::of(self.keys.router(), session.req_header()) {
            Ok(found) => found,
            Err(error) => return Admission::Error(error),
        };
        let is_read = matches!(session.req_header().method, Method::GET | Method::HEAD);
        if is_read && !session.is_body_empty() {
            return Admission::MayHaveBody(found);
        }
        self.admit_found(session, found, ctx)
    }

    /// The rest of [`admit`](Self::admit), for a request with a route and without a forbidden
    /// body.
    fn admit_found(&self, session: &Session, found: Found, ctx: &mut RequestCtx) -> Admission {
        let route = match found {
            Found::Site(route) => route,
            Found::Service(request) => return Admission::Service(request),
        };
        if route.site.is_passthrough() {
            return Admission::Pass(route);
        }
        match self.authorise(session, &route.request, &route.site, ctx) {
            Decision::Proceed => {}
            Decision::Refuse(refused) => return Admission::Refuse(refused),
        }
        if !route.request.reads_object() {
            return Admission::Other(route);
        }
        if !route.request.is_plain() || ctx.admitted.by_cookie {
            ctx.caching.forbid_fast_hit();
        }
        if route.request.passes_the_cache() {
            ctx.caching
                .bypass_cache(route.request.part_number().is_some());
        }
        ctx.route = Some(route);
        Admission::Serve
    }

    /// For `request_filter`: answer what [`admit`](Self::admit) does not serve. `None`: the
    /// request goes on to the cache.
    async fn admit_rare(
        &self,
        session: &mut Session,
        mut admission: Admission,
        ctx: &mut RequestCtx,
    ) -> Result<Option<bool>> {
        if let Admission::MayHaveBody(found) = admission {
            if sends_body(session).await {
                session.set_keepalive(None);
                let why = "a GET or HEAD has no body";
                let error = S3Error::new(Code::InvalidRequest, why);
                return refuse(session, error, ctx.admitted).await.map(Some);
            }
            admission = self.admit_found(session, found, ctx);
        }
        let answered = match admission {
            Admission::Serve | Admission::MayHaveBody(_) => return Ok(None),
            Admission::Error(error) => refuse(session, error, ctx.admitted).await,
            Admission::Refuse(refused) => refuse_client(session, &refused).await,
            Admission::Service(request) => self.answer_service(session, &request, ctx).await,
            Admission::Pass(route) => self.pass(session, route, ctx).await,
            Admission::Other(route) => self.answer_other(session, route, ctx).await,
        };
        answered.map(Some)
    }

    /// For `request_filter`: a request that is for all buckets.
    async fn answer_service(
        &self,
        session: &mut Session,
        request: &S3Request,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        if request.operation != Operation::ListBuckets {
            return refuse(session, buckets::not_implemented(request), ctx.admitted).await;
        }
        // Those that the client may list.
        let mut refused = None;
        let mut admitted = Admitted::default();
        let mut sites = Vec::new();
        for site in self.keys.router().sites() {
            if !self
                .lists
                .get(site.index())
                .is_some_and(|rules| rules.is_open)
            {
                continue;
            }
            match self.authorise(session, request, site, ctx) {
                Decision::Proceed => {
                    admitted.by_cookie |= ctx.admitted.by_cookie;
                    sites.push(&**site);
                }
                Decision::Refuse(error) => refused = Some(error),
            }
        }
        match refused {
            Some(refused) if sites.is_empty() => return refuse_client(session, &refused).await,
            None if sites.is_empty() => {
                return refuse(session, Code::AccessDenied.into(), ctx.admitted).await;
            }
            _ => {}
        }
        let document = buckets::list_of(sites.into_iter());
        errors::respond_document(session, document, admitted).await?;
        Ok(true)
    }

    /// For `request_filter`: a request that is not for an object as it is.
    async fn answer_other(
        &self,
        session: &mut Session,
        route: Route,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        const CLOSED: ListRules = ListRules {
            is_open: false,
            ttl: Duration::ZERO,
        };
        let rules = self.lists.get(route.site.index()).unwrap_or(&CLOSED);
        let listing = match Listing::of(&route, rules) {
            Ok(Some(listing)) => listing,
            Ok(None) => {
                buckets::answer(session, &route, ctx.admitted).await?;
                return Ok(true);
            }
            Err(error) => return refuse(session, error, ctx.admitted).await,
        };
        // A list is neither cut nor compared.
        for name in FORWARDED {
            session.req_header_mut().remove_header(&name);
        }
        ctx.caching.forbid_fast_hit();
        if listing.ttl.is_zero() {
            ctx.caching.bypass_cache(false);
        }
        ctx.listing = Some(Box::new(listing));
        ctx.route = Some(route);
        self.caching.request_filter(session, &mut ctx.caching).await
    }

    /// For `upstream_response_filter`: the origin's answer to a list.
    fn prepare_list(listing: &Listing, response: &mut ResponseHeader) -> Result<()> {
        if response.status != StatusCode::OK
            || response.headers.contains_key(header::CONTENT_ENCODING)
        {
            let why = "the origin's list is none";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        errors::rewrite(response)?;
        let fresh = match listing.ttl {
            Duration::ZERO => "no-store".to_owned(),
            ttl => format!("max-age={}", ttl.as_secs()),
        };
        response.remove_header(&header::EXPIRES);
        response.insert_header(header::CACHE_CONTROL, fresh)
    }

    /// Begin to relay a request as it is.
    async fn pass(
        &self,
        session: &mut Session,
        route: Route,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        let (own, mut passed) = self.passthrough.read(session.req_header(), &route);
        if session.is_body_empty() {
            passed.note_sent();
        }
        ctx.caching.relay(own);
        ctx.passed = Some(Box::new(passed));
        ctx.route = Some(route);
        self.caching.request_filter(session, &mut ctx.caching).await
    }

    /// Note what the answer of S3 to a relayed request means.
    async fn passed_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        self.caching
            .relay_upstream_response_filter(session, response, &mut ctx.caching)
            .await?;
        let status = response.status;
        let (Some(route), Some(passed)) = (&ctx.route, &mut ctx.passed) else {
            return Ok(());
        };
        if status.is_informational() {
            return Ok(());
        }
        passed.note_status(status);
        let given = match status {
            StatusCode::NOT_MODIFIED => {
                let stored = session.cache.maybe_cache_meta();
                stored.map(|stored| stored.headers())
            }
            status => status.is_success().then_some(&response.headers),
        };
        if !ctx.caching.is_background() {
            self.passthrough.remember(route, passed, given);
        }
        self.passthrough
            .void(self.keys.router(), route, passed)
            .await;
        Ok(())
    }

    /// The error that an answer of the origin stands for.
    fn origin_error(status: StatusCode, request: Option<&S3Request>) -> S3Error {
        let names_version = request.is_some_and(|request| request.version_id().is_some());
        let names_part = request.is_some_and(|request| request.part_number().is_some());
        let names_object = request.is_none_or(|request| request.target != Target::Bucket);
        match status {
            StatusCode::NOT_FOUND if !names_object => Code::NoSuchBucket.into(),
            StatusCode::NOT_FOUND if names_version => Code::NoSuchVersion.into(),
            StatusCode::RANGE_NOT_SATISFIABLE if names_part => Code::InvalidPartNumber.into(),
            status => S3Error::of_status(status),
        }
    }
}

/// The buckets whose credentials are looked up, and these credentials.
fn refreshed(keys: &CacheKeys) -> impl Iterator<Item = (String, Arc<Refreshed>)> + '_ {
    keys.router().sites().iter().filter_map(|origin| {
        let refreshed = origin.signer()?.refreshed()?;
        Some((origin.bucket().to_owned(), refreshed.clone()))
    })
}

/// The error that has a request to the origin made once more.
fn repeat(why: String) -> Box<Error> {
    let mut error = Error::explain(REPEATED, why).into_up();
    error.set_retry(true);
    error
}

/// Take the time of a service that has refused a request. True: signatures have another
/// date from now on.
#[cold]
fn learn_clock(response: &ResponseHeader, ctx: &RequestCtx) -> bool {
    let Some(route) = &ctx.route else {
        return false;
    };
    let fields = &response.headers;
    // A response from a cache has the date when it was made.
    let date = fields.get(header::DATE);
    let date = date.filter(|_| !fields.contains_key(header::AGE));
    let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let signer = route.site.signer().zip(date);
    let learnt = signer.and_then(|(signer, date)| signer.learn_clock(date, SystemTime::now()));
    if let Some(ahead) = learnt {
        warn!(
            "bucket {}: the clock of the origin is {ahead} seconds ahead of this machine's; signatures are dated as there, but set the clock",
            route.site.bucket()
        );
    }
    learnt.is_some()
}

/// True if the body of an answer may be an error document, whatever its status says. An
/// object has an `ETag`.
fn may_be_fault(session: &Session, response: &ResponseHeader) -> bool {
    let fields = &response.headers;
    let is_success = response.status.is_success() && session.req_header().method == Method::GET;
    let names_version =
        fields.contains_key(header::ETAG) || fields.contains_key(header::LAST_MODIFIED);
    let is_xml = || {
        let media_type = fields.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let media_type = media_type.split(';').next()?.trim();
        Some(["text/xml", "application/xml"].contains(&media_type))
    };
    // The wrong region is named in the document of a 400 only.
    response.status == StatusCode::BAD_REQUEST
        || (is_success && !names_version && is_xml().unwrap_or(false))
}

/// Answer with an error. Always `true`, for `request_filter`.
async fn refuse(session: &mut Session, error: S3Error, admitted: Admitted) -> Result<bool> {
    errors::respond(session, &error, admitted).await?;
    Ok(true)
}

/// Answer a client that may not do what it asks for. Always `true`, for `request_filter`.
async fn refuse_client(session: &mut Session, refused: &Refused) -> Result<bool> {
    let mut header = ResponseHeader::build(refused.error.status, Some(5))?;
    if let Some(challenge) = &refused.challenge {
        header.insert_header(header::WWW_AUTHENTICATE, challenge)?;
    }
    // Boxed, because few requests come here.
    Box::pin(errors::respond_with(session, header, &refused.error)).await?;
    Ok(true)
}

/// Make a relayed request for an object one of the proxy's own: signed with the credentials of
/// the bucket, and without what the client has signed. The fields stay that select a variant.
fn sign_fill(request: &mut RequestHeader, route: &Route) -> Result<()> {
    let proves =
        |name: &HeaderName| name.as_str().starts_with("x-") || *name == header::AUTHORIZATION;
    let proofs: Vec<_> = request
        .headers
        .keys()
        .filter(|n| proves(n))
        .cloned()
        .collect();
    for name in proofs {
        request.remove_header(&name);
    }
    request.insert_header(CHECKSUM_MODE, "ENABLED")?;
    let path = requested_path(request).into_owned();
    let target = match route.request.version_id() {
        Some(version) => format!("{path}?versionId={}", crate::s3::encode_value(version)),
        None => path,
    };
    request.set_raw_path(target.as_bytes())?;
    let Some(signer) = route.site.signer() else {
        return Ok(());
    };
    let host = request.headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let fields = signer
        .sign(
            request.method.as_str(),
            host,
            &target,
            &fields_of_s3(request)?,
            SystemTime::now(),
        )
        .or_err_with(ErrorType::InternalError, || {
            format!("signing a request to bucket {}", route.bucket())
        })?;
    for (name, value) in fields {
        request.insert_header(name, value)?;
    }
    Ok(())
}

fn routed(route: &Option<Route>) -> Result<&Route> {
    route
        .as_ref()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "the request has no route"))
}

/// Rewrite a piece of a list.
fn rewrite_list(
    rewriter: &mut ListRewriter,
    body: &mut Option<Bytes>,
    is_end: bool,
) -> Result<(), ListError> {
    let mut rewritten = match body.take() {
        Some(piece) => rewriter.write(&piece)?,
        None => Vec::new(),
    };
    if is_end {
        rewritten.extend(rewriter.finish()?);
    }
    *body = Some(rewritten.into());
    Ok(())
}

/// The fields of a request that S3 requires under the signature.
fn fields_of_s3(request: &RequestHeader) -> Result<Vec<(&str, &str)>> {
    let fields = request.headers.iter();
    fields
        .filter(|(name, _)| name.as_str().starts_with("x-amz-"))
        .map(|(name, value)| {
            let value = value
                .to_str()
                .or_err_with(ErrorType::InvalidHTTPHeader, || {
                    format!("{name} is not ASCII")
                });
            Ok((name.as_str(), value.map_err(|e| e.into_down())?))
        })
        .collect()
}

/// Make a response with an object, or a part of one, describe it as the client wants it.
fn describe_as_asked(request: &S3Request, response: &mut ResponseHeader) -> Result<()> {
    // The checksum of an object is not that of a range.
    let is_range =
        response.status == StatusCode::PARTIAL_CONTENT && request.part_number().is_none();
    if !request.wants_checksums() || is_range {
        let is_checksum = |name: &&HeaderName| name.as_str().starts_with(CHECKSUM);
        let names: Vec<_> = response
            .headers
            .keys()
            .filter(is_checksum)
            .cloned()
            .collect();
        for name in names {
            response.remove_header(&name);
        }
    }
    for (name, value) in request.overrides() {
        response.insert_header(name.clone(), value)?;
    }
    Ok(())
}

#[async_trait]
impl ProxyHttp for S3ProxyHttp {
    // Boxed, because Pingora moves it several times.
    type CTX = Box<RequestCtx>;

    fn new_ctx(&self) -> Self::CTX {
        Box::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        // Boxed, because few requests come here and every request would reserve room for it.
        match self.admit(session, ctx) {
            Admission::Serve => {}
            rare => {
                if let Some(answered) = Box::pin(self.admit_rare(session, rare, ctx)).await? {
                    return Ok(answered);
                }
            }
        }
        if self
            .caching
            .request_filter(session, &mut ctx.caching)
            .await?
        {
            return Ok(true);
        }
        if let Some(resolved) = self.without_dots(ctx)? {
            let decision = Box::pin(self.resolve_to(session, resolved, ctx)).await?;
            if let Decision::Refuse(refused) = decision {
                return refuse_client(session, &refused).await;
            }
        }
        let route = routed(&ctx.route)?;
        let (site, key, version) = (&route.site, route.key()?, route.request.version_id());
        self.caching
            .serve_fast_hit(session, &mut ctx.caching, |_| cache_key(site, key, version))
            .await
    }

    // What is stored is sent as it is.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn allow_spawning_subrequest(&self, _session: &Session, _ctx: &Self::CTX) -> bool {
        true
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        let route = routed(&ctx.route)?;
        if let Ok(key) = route.key() {
            let rule = self.rules.of(route.bucket(), key.as_str());
            ctx.caching.set_storing(rule.storing.clone());
            ctx.rule = Some(rule.clone());
        }
        self.caching.request_cache_filter(session, &mut ctx.caching);
        Ok(())
    }

    fn cache_key_callback(&self, _session: &Session, ctx: &mut Self::CTX) -> Result<CacheKey> {
        let route = routed(&ctx.route)?;
        let key = match &ctx.listing {
            Some(listing) => listing.cache_key(&route.site),
            None => route.cache_key()?,
        };
        Ok(self.caching.with_snapshot(key))
    }

    fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        ctx: &mut Self::CTX,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
        if ctx.passed.is_some() {
            return self.caching.relay_vary_filter(meta, request, &ctx.caching);
        }
        self.caching.cache_vary_filter(meta, request)
    }

    async fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<ForcedFreshness>> {
        if let Some(passed) = &ctx.passed {
            if self.passthrough.permits(passed, meta.headers()) {
                ctx.caching.permit();
            }
        }
        Ok(self
            .caching
            .cache_hit_filter(session, meta, hit, is_fresh, &mut ctx.caching))
    }

    async fn proxy_upstream_filter(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<bool> {
        if ctx.passed.is_some() {
            return self
                .caching
                .proxy_upstream_filter(session, &mut ctx.caching)
                .await;
        }
        let route = routed(&ctx.route)?;
        if route.request.reads_object() && !route.request.passes_the_cache() {
            if let Some((status, left)) = self.absent.get(&route.cache_key()?) {
                let error = Self::origin_error(status, Some(&route.request));
                ctx.is_remembered = true;
                errors::respond_remembered(session, &error, left, ctx.admitted).await?;
                return Ok(false);
            }
        }
        if let Some(mut header) = self.caching.stored_head(session, &mut ctx.caching)? {
            self.response_filter(session, &mut header, ctx).await?;
            self.caching.answer_head(session, header).await?;
            return Ok(false);
        }
        self.caching
            .proxy_upstream_filter(session, &mut ctx.caching)
            .await
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<RespCacheable> {
        let cacheable = self
            .caching
            .response_cache_filter(session, response, &mut ctx.caching);
        Ok(match cacheable {
            // Waiting requests find the answer in memory; a later one may get another.
            RespCacheable::Uncacheable(_)
                if ctx.passed.is_none() && self.is_remembered(response, ctx) =>
            {
                RespCacheable::Uncacheable(NoCacheReason::Deferred)
            }
            cacheable => cacheable,
        })
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<bool> {
        Ok(self
            .caching
            .cache_not_modified_filter(session, response, &mut ctx.caching))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> RangeType {
        self.caching
            .range_header_filter(session, response, &ctx.caching)
    }

    fn should_serve_stale(
        &self,
        _session: &mut Session,
        ctx: &mut Self::CTX,
        error: Option<&Error>,
    ) -> bool {
        self.caching.should_serve_stale(error, &mut ctx.caching)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        if let (Some(route), Some(passed)) = (&ctx.route, &ctx.passed) {
            if ctx.caching.asked_origin() {
                // Boxed, because few requests come here.
                Box::pin(self.passthrough.void(self.keys.router(), route, passed)).await;
            }
        }
        self.caching
            .fail_to_proxy(session, error, &ctx.caching)
            .await
    }

    // Without the query: the URL may be presigned, or have a token.
    fn request_summary(&self, session: &Session, _ctx: &Self::CTX) -> String {
        let request = session.req_header();
        let authority = request
            .uri
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
        let host = String::from_utf8_lossy(host.or(authority).unwrap_or_default());
        format!(
            "{} {}, Host: {host}",
            request.method,
            requested_path(request)
        )
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Self::CTX, error: &Error) -> bool {
        self.caching.suppress_error_log(&ctx.caching, error)
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Self::CTX,
        error: &Error,
        context: ProxyWarnLogContext,
    ) -> bool {
        self.caching.suppress_proxy_warn_log(error, context)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        if std::mem::take(&mut ctx.pauses) {
            tokio::time::sleep(retries::pause(ctx.retries, fastrand::f64())).await;
        }
        let origin = &routed(&ctx.route)?.site;
        // Requests that clients have signed need no credentials.
        let is_relayed = ctx.passed.is_some() && !ctx.caching.is_relay_fill();
        if let Some(signer) = origin.signer().filter(|_| !is_relayed) {
            signer
                .ready()
                .await
                .or_err_with(NO_CREDENTIALS, || {
                    format!("signing a request to bucket {}", origin.bucket())
                })
                .map_err(|e| e.into_up())?;
        }
        let limit = self.connect_limit(origin, session, ctx);
        let next = self
            .resolver
            .next(
                origin.connect_host(),
                origin.port(),
                limit,
                &mut ctx.attempts,
            )
            .await
            .or_err_with(ErrorType::ConnectError, || {
                format!(
                    "looking up {}, the endpoint of bucket {}",
                    origin.connect_host(),
                    origin.bucket()
                )
            })
            .map_err(|e| e.into_up())?;
        let mut peer = HttpPeer::new(next.address, origin.tls(), origin.tls_name().to_owned());
        self.authorities.apply(origin.connection(), &mut peer);
        peer.options.connection_timeout = Some(next.timeout);
        peer.options.total_connection_timeout = Some(next.timeout);
        let connection = origin.connection();
        peer.options.first_byte_timeout =
            self.unless_stale(connection.first_byte_timeout, session, ctx);
        peer.options.read_timeout = connection.read_timeout;
        peer.options.write_timeout = connection.read_timeout;
        peer.options.idle_timeout = Some(ORIGIN_IDLE_TIMEOUT);
        peer.options.reject_h1_response_transfer_codings = true;
        Ok(Box::new(peer))
    }

    // Retry, because another address of the origin may answer.
    fn fail_to_connect(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let (Some(route), Some(address)) = (&ctx.route, peer.address().as_inet()) {
            let (host, port) = (route.site.connect_host(), route.site.port());
            let limit = self.connect_limit(&route.site, session, ctx);
            let attempts = &mut ctx.attempts;
            if self.resolver.failed(host, port, limit, *address, attempts) {
                error.set_retry(true);
                return error;
            }
        }
        if retries::may_connect(&error) && self.may_repeat(session, ctx) {
            ctx.attempts = Attempts::default();
            error.set_retry(true);
        }
        error
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("Peer: {peer}"));
        let is_idempotent = session.req_header().method.is_idempotent();
        if !is_idempotent || session.as_ref().retry_buffer_truncated() {
            error.set_retry(false);
            return error;
        }
        error.retry.decide_reuse(client_reused);
        // Of an answer that has begun, the rest may be of another version.
        if !error.retry() && !ctx.has_answer && retries::has_broken(&error) {
            let repeats = self.may_repeat(session, ctx);
            error.set_retry(repeats);
        }
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        ctx.attempts.succeeded();
        ctx.has_answer = false;
        if ctx.passed.is_some() {
            METRICS.origin_requests.inc();
            self.caching
                .relay_upstream_request_filter(session, request, &mut ctx.caching)?;
            if ctx.caching.is_relay_fill() {
                sign_fill(request, routed(&ctx.route)?)?;
            }
            return Ok(());
        }
        self.caching
            .upstream_request_filter(session, request, &mut ctx.caching)?;
        let route = routed(&ctx.route)?;
        let origin = &route.site;
        let target = match &ctx.listing {
            Some(listing) => listing.target.clone(),
            None => route.target()?,
        };
        let method = request.method.clone();
        let mut signed = RequestHeader::build(method.clone(), target.as_bytes(), Some(12))?;
        signed.insert_header(header::HOST, origin.host_header())?;
        signed.insert_header(
            header::USER_AGENT,
            concat!("pingora-sendfile/", env!("CARGO_PKG_VERSION")),
        )?;
        for name in FORWARDED {
            for value in request.headers.get_all(&name) {
                signed.append_header(name.clone(), value)?;
            }
        }
        for (name, value) in route.request.passed_fields() {
            signed.append_header(name.clone(), value)?;
        }
        if ctx.listing.is_none() {
            // The stored object has the checksums for those who want them.
            signed.insert_header(CHECKSUM_MODE, "ENABLED")?;
        }
        if let Some(signer) = origin.signer() {
            let fields = signer
                .sign(
                    method.as_str(),
                    origin.host_header(),
                    &target,
                    &fields_of_s3(&signed)?,
                    SystemTime::now(),
                )
                .or_err_with(ErrorType::InternalError, || {
                    format!("signing a request to bucket {}", origin.bucket())
                })?;
            for (name, value) in fields {
                signed.insert_header(name, value)?;
            }
        }
        *request = signed;
        METRICS.origin_requests.inc();
        ctx.asked_at = self.absent.asked_now();
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(passed) = &mut ctx.passed {
            passed.note_body(body.as_ref(), end_of_stream);
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        ctx.has_answer |= !response.status.is_informational();
        if ctx.passed.is_some() {
            return Box::pin(self.passed_response(session, response, ctx)).await;
        }
        self.note_answer(session, response, ctx)?;
        self.caching
            .upstream_response_filter(session, response, &mut ctx.caching)
            .await?;
        if response.status == StatusCode::BAD_REQUEST {
            let region = response.headers.get(BUCKET_REGION);
            let own = routed(&ctx.route)?.site.region();
            if region.is_some_and(|region| region.as_bytes() != own.as_bytes()) {
                return Err(self.redirected(response, ctx));
            }
        }
        if response.status.is_redirection() && response.status != StatusCode::NOT_MODIFIED {
            return Err(self.redirected(response, ctx));
        }
        let status = response.status;
        if let (true, Some(listing)) = (status.is_success(), &ctx.listing) {
            return Self::prepare_list(listing, response);
        }
        if status.is_informational() || status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(());
        }
        if !(response.status.is_client_error() || response.status.is_server_error()) {
            let why = "the origin's status code is not valid in HTTP";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        let route = routed(&ctx.route)?;
        let is_plain = route.request.reads_object() && !route.request.passes_the_cache();
        if self.is_remembered(response, ctx) && is_plain {
            if let Some(rule) = &ctx.rule {
                let (key, ttl) = (route.cache_key()?, rule.negative_ttl);
                self.absent.insert(&key, status, ttl, ctx.asked_at);
            }
        }
        if status == StatusCode::FORBIDDEN && !ctx.caching.is_background() {
            warn!(
                "bucket {}: the origin refuses {} with 403; check access_key, secret_key, region and the bucket's policy",
                route.site.bucket(),
                match route.request.target.key() {
                    Some(key) => format!("{key:?}"),
                    None => "a list".to_owned(),
                }
            );
        }
        // Where the origin sends no body, Pingora asks for none to send on.
        let is_empty = response
            .headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|len| len == "0");
        let error = Self::origin_error(status, Some(&route.request));
        let mut body = errors::replace(session.req_header(), response, &error)?;
        if is_empty {
            response.insert_header(header::CONTENT_LENGTH, 0)?;
            body.clear();
        }
        ctx.replaces_body = true;
        ctx.error_body = (session.req_header().method != Method::HEAD).then_some(body);
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if let (Some(route), Some(passed), true) = (&ctx.route, &ctx.passed, end_of_stream) {
            self.passthrough
                .void_at_end(self.keys.router(), route, passed);
        }
        if ctx.may_be_fault {
            self.note_fault(body, ctx)?;
        }
        if ctx.replaces_body {
            *body = ctx.error_body.take();
        } else if let Some(listing) = &mut ctx.listing {
            rewrite_list(&mut listing.rewriter, body, end_of_stream)
                .or_err(ErrorType::InternalError, "rewriting a list")
                .map_err(|e| e.into_up())?;
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if ctx.passed.is_some() {
            response.remove_header(&CHECKSUM_MODE);
        }
        // S3 describes its answer to a relayed request itself.
        let is_described = match &ctx.passed {
            Some(_) => ctx.caching.is_found(session),
            None => ctx.listing.is_none(),
        };
        if response.status.is_success() && is_described {
            response.insert_header(header::ACCEPT_RANGES, "bytes")?;
            if let Some(route) = &ctx.route {
                describe_as_asked(&route.request, response)?;
            }
        }
        ctx.admitted.describe(response)?;
        self.caching
            .response_filter(session, response, &mut ctx.caching)
    }

    fn needs_response_body(&self, _session: &Session, _ctx: &Self::CTX) -> bool {
        false
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Self::CTX) {
        let zero_copy = session.as_downstream().body_bytes_zero_copy();
        if zero_copy > 0 {
            METRICS.sendfile.inc();
            METRICS.sendfile_bytes.inc_by(zero_copy as u64);
        }
        // Bytes of the proxy's own requests are counted when the client's request sends them.
        if !ctx.caching.is_background() {
            METRICS.body_bytes.inc_by(session.body_bytes_sent() as u64);
        }
        if ctx.route.is_some() && !ctx.caching.is_background() {
            if ctx.caching.asked_origin() {
                METRICS.misses.inc();
            } else if ctx.is_remembered || ctx.caching.is_hit(session) {
                METRICS.hits.inc();
            }
        }
        let stale = ctx.caching.served_stale(session);
        if let Some(why) = stale.filter(|_| !ctx.caching.is_background()) {
            let reason = match why {
                ServedStale::Error => "error",
                ServedStale::Revalidating => "revalidating",
                ServedStale::Accepted => "accepted",
            };
            METRICS.stale.with_label_values(&[reason]).inc();
        }
        self.caching.logging(session, error, &ctx.caching);
        if session.as_downstream().is_http2() || ctx.caching.asked_origin() {
            memory::request_ended();
        }
        let Some(error) = error else { return };
        let source = match error.esource() {
            // The reader of the proxy's own request has all that it needs.
            ErrorSource::Downstream if ctx.caching.is_background() => return,
            ErrorSource::Downstream => "downstream",
            ErrorSource::Upstream => "upstream",
            ErrorSource::Internal => "internal",
            ErrorSource::Unset => "unset",
        };
        METRICS.errors.with_label_values(&[source]).inc();
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn described(query: &str, fields: &[(&'static str, &'static str)], status: u16) -> String {
        let fields = fields.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let headers: HeaderMap = fields.collect();
        let target = Target::in_bucket("key").unwrap();
        let query = Some(query.as_bytes());
        let request = S3Request::read(&Method::GET, target, query, &headers).unwrap();
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in [
            ("content-type", "text/plain"),
            ("x-amz-checksum-sha256", "a"),
            ("x-amz-checksum-type", "FULL_OBJECT"),
        ] {
            response.insert_header(name, value).unwrap();
        }
        describe_as_asked(&request, &mut response).unwrap();
        let fields = response.headers.iter();
        let mut fields: Vec<_> = fields
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        fields.sort();
        fields.join(", ")
    }

    #[test]
    fn overrides_take_the_place_of_the_fields_of_the_object() {
        for status in [200, 206] {
            assert_eq!(
                described(
                    "response-content-type=text%2Fhtml&response-content-disposition=attachment",
                    &[],
                    status
                ),
                "content-disposition: attachment, content-type: text/html"
            );
        }
    }

    #[test]
    fn checksums_are_those_of_what_is_sent() {
        let wanted = [("x-amz-checksum-mode", "ENABLED")];
        let all =
            "content-type: text/plain, x-amz-checksum-sha256: a, x-amz-checksum-type: FULL_OBJECT";
        let none = "content-type: text/plain";
        for (query, fields, status, expected) in [
            ("", &wanted[..], 200, all),
            ("", &wanted, 206, none),
            ("partNumber=1", &wanted, 206, all),
            ("", &[], 200, none),
            ("partNumber=1", &[], 206, none),
        ] {
            assert_eq!(
                described(query, fields, status),
                expected,
                "{query} {status}"
            );
        }
    }
}
