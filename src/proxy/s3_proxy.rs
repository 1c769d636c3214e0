//! Routes requests to buckets, signs them, and serves hits by sendfile.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{Method, StatusCode};
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

use super::absent::Absent;
use super::cache_key::{cache_key, requested_path, requested_query, CacheKeys};
use super::dots::Dots;
use super::http1::answer_what_was_asked;
use super::resolve::{Attempts, Resolver};
use super::{errors, memory};
use crate::cache::DiskCache;
use crate::config::Config;
use crate::http::fields::RequestFields;
use crate::http::{
    sends_body, BackgroundFills, CachingCtx, CachingOptions, HttpCaching, StoringRules,
};
use crate::metrics::METRICS;
use crate::s3::{sub_resource_of, ObjectKey, Origin, Refreshed, RouteError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ORIGIN_READ_TIMEOUT: Duration = Duration::from_secs(60);
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

/// The response field that names a bucket's actual region ("HeadBucket", Amazon S3 API
/// Reference).
const BUCKET_REGION: &str = "x-amz-bucket-region";

/// The proxy: S3 behind, the disk cache in the middle.
pub struct S3ProxyHttp {
    keys: CacheKeys,
    caching: HttpCaching,
    absent: Absent,
    dots: Dots,
    resolver: Resolver,
    write_timeout: Option<Duration>,
    min_send_rate: Option<usize>,
    /// In seconds.
    keepalive_timeout: Option<u64>,
}

/// Where a request goes.
type Route = (Arc<Origin>, ObjectKey);

/// What is known of a request.
#[derive(Default)]
pub struct RequestCtx {
    caching: CachingCtx,
    route: Option<Route>,
    attempts: Attempts,
    /// Replaces the body of an error of the origin, once.
    error_body: Option<Bytes>,
    /// The body of the origin's answer is thrown away.
    replaces_body: bool,
    /// See [`Absent::asked_now`].
    asked_at: u64,
    /// Answered by what [`Absent`] remembers.
    is_remembered: bool,
}

impl S3ProxyHttp {
    /// A proxy for the buckets of `config`, which caches in `cache`.
    pub fn new(config: &Config, cache: Option<&'static DiskCache>) -> Self {
        let options = CachingOptions {
            storing: StoringRules {
                default_ttl: Some(*config.cache.default_ttl),
                ..StoringRules::default()
            },
            // The proxy makes its own requests, see FORWARDED.
            request_fields: RequestFields::Only(&[]),
            // Otherwise any client could force requests to S3.
            request_directives: false,
            judges_preconditions: true,
            background_fills: BackgroundFills {
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
            ..CachingOptions::default()
        };
        let min_send_rate = *config.server.min_send_rate;
        let caching = HttpCaching::new(cache, options);
        METRICS.watch_misses(caching.origin_turns());
        let keys = CacheKeys::new(config);
        METRICS.watch_credentials(refreshed(&keys));
        S3ProxyHttp {
            keys,
            caching,
            absent: Absent::new(*config.cache.negative_ttl, cache),
            dots: Dots::new(),
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

    /// Pingora waits for the next request forever, which it says by zero.
    fn limit_keepalive(&self, session: &mut Session) {
        if self.keepalive_timeout.is_some() && session.get_keepalive() == Some(0) {
            session.set_keepalive(self.keepalive_timeout);
        }
    }

    /// True if an answer is remembered because there is no object. An answer with the
    /// origin's own `Cache-Control` is stored like any other.
    fn is_remembered(&self, response: &ResponseHeader) -> bool {
        let says_how_long = |name| response.headers.contains_key(name);
        self.absent.remembers(response.status)
            && !["cache-control", "cdn-cache-control", "expires"]
                .into_iter()
                .any(says_how_long)
    }

    /// The error of a redirect, which S3 sends for a bucket of another region or endpoint.
    /// A client could not follow it: the address names the bucket, and needs a signature.
    fn redirected(&self, response: &ResponseHeader, ctx: &RequestCtx) -> Box<Error> {
        let status = response.status.as_u16();
        let bucket = ctx
            .route
            .as_ref()
            .map_or("?", |(origin, _)| origin.bucket());
        let region = response
            .headers
            .get(BUCKET_REGION)
            .map(|region| String::from_utf8_lossy(region.as_bytes()));
        match region {
            Some(region) => warn!(
                "bucket {bucket}: the origin redirects with {status}; the bucket is in region {region:?}: set its region and endpoint to that"
            ),
            None => warn!(
                "bucket {bucket}: the origin redirects with {status}; check the bucket's region and endpoint"
            ),
        }
        let why = "the origin redirects";
        Error::explain(ErrorType::InvalidHTTPHeader, why).into_up()
    }

    /// Route a request to its resolved key if the origin lacks the key with dot segments.
    async fn resolve_dots(&self, session: &Session, ctx: &mut RequestCtx) -> Result<()> {
        let (origin, key) = routed(&ctx.route)?;
        let Some(resolved) = key.without_dot_segments() else {
            return Ok(());
        };
        if self.dots.is_absent(session, &cache_key(origin, key)).await {
            ctx.route = Some((origin.clone(), resolved));
        }
        Ok(())
    }

    fn route(&self, session: &Session) -> Result<Route, RouteError> {
        let path = requested_path(session.req_header());
        let (origin, key) = self.keys.router().route(&path)?;
        Ok((origin.clone(), key))
    }
}

/// The buckets whose credentials are looked up, and these credentials.
fn refreshed(keys: &CacheKeys) -> impl Iterator<Item = (String, Arc<Refreshed>)> + '_ {
    keys.router().origins().iter().filter_map(|origin| {
        let refreshed = origin.signer()?.refreshed()?;
        Some((origin.bucket().to_owned(), refreshed.clone()))
    })
}

/// The sub-resource that a request's query asks for instead of the object as it is.
fn sub_resource(request: &RequestHeader) -> Option<&'static str> {
    sub_resource_of(requested_query(request)?)
}

fn routed(route: &Option<Route>) -> Result<&Route> {
    route
        .as_ref()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "the request has no route"))
}

#[async_trait]
impl ProxyHttp for S3ProxyHttp {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> Self::CTX {
        RequestCtx::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        answer_what_was_asked(session);
        session.set_write_timeout(self.write_timeout);
        session.set_min_send_rate(self.min_send_rate);
        self.limit_keepalive(session);
        if !matches!(session.req_header().method, Method::GET | Method::HEAD) {
            errors::respond(session, StatusCode::METHOD_NOT_ALLOWED, None).await?;
            return Ok(true);
        }
        if sends_body(session).await {
            session.set_keepalive(None);
            let why = "a GET or HEAD has no body";
            errors::respond(session, StatusCode::BAD_REQUEST, Some(why)).await?;
            return Ok(true);
        }
        let route = self.route(session);
        if !matches!(route, Err(RouteError::NotFound)) {
            if let Some(name) = sub_resource(session.req_header()) {
                let why = format!("{name} is not supported by this proxy");
                let status = StatusCode::NOT_IMPLEMENTED;
                errors::respond_as_s3(session, status, "NotImplemented", &why).await?;
                return Ok(true);
            }
        }
        match route {
            Ok(route) => ctx.route = Some(route),
            Err(RouteError::NotFound) => {
                errors::respond(session, StatusCode::NOT_FOUND, None).await?;
                return Ok(true);
            }
            Err(RouteError::BadKey(why)) => {
                let why = why.to_string();
                errors::respond(session, StatusCode::BAD_REQUEST, Some(&why)).await?;
                return Ok(true);
            }
        }
        if self
            .caching
            .request_filter(session, &mut ctx.caching)
            .await?
        {
            return Ok(true);
        }
        self.resolve_dots(session, ctx).await?;
        let (origin, object) = routed(&ctx.route)?;
        self.caching
            .answer_prepared(session, &mut ctx.caching, |_| cache_key(origin, object))
            .await
    }

    // What is stored is sent as it is.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn allow_spawning_subrequest(&self, _session: &Session, _ctx: &Self::CTX) -> bool {
        true
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        self.caching.request_cache_filter(session, &mut ctx.caching);
        Ok(())
    }

    fn cache_key_callback(&self, _session: &Session, ctx: &mut Self::CTX) -> Result<CacheKey> {
        let (origin, key) = routed(&ctx.route)?;
        Ok(self.caching.asked_now(cache_key(origin, key)))
    }

    fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        _ctx: &mut Self::CTX,
        request: &RequestHeader,
    ) -> Option<HashBinary> {
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
        Ok(self
            .caching
            .cache_hit_filter(session, meta, hit, is_fresh, &mut ctx.caching))
    }

    async fn proxy_upstream_filter(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<bool> {
        let (origin, key) = routed(&ctx.route)?;
        if let Some((status, left)) = self.absent.get(&cache_key(origin, key)) {
            ctx.is_remembered = true;
            errors::respond_remembered(session, status, left).await?;
            return Ok(false);
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
            RespCacheable::Uncacheable(_) if self.is_remembered(response) => {
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
        self.caching
            .fail_to_proxy(session, error, &ctx.caching)
            .await
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
        _session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        let (origin, _) = routed(&ctx.route)?;
        if let Some(signer) = origin.signer() {
            signer
                .ready()
                .await
                .or_err_with(NO_CREDENTIALS, || {
                    format!("signing a request to bucket {}", origin.bucket())
                })
                .map_err(|e| e.into_up())?;
        }
        let next = self
            .resolver
            .next(
                origin.connect_host(),
                origin.port(),
                CONNECT_TIMEOUT,
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
        let mut peer = HttpPeer::new(next.address, origin.tls(), origin.connect_host().to_owned());
        peer.options.connection_timeout = Some(next.timeout);
        peer.options.total_connection_timeout = Some(next.timeout);
        peer.options.read_timeout = Some(ORIGIN_READ_TIMEOUT);
        peer.options.write_timeout = Some(ORIGIN_READ_TIMEOUT);
        peer.options.idle_timeout = Some(ORIGIN_IDLE_TIMEOUT);
        peer.options.reject_h1_response_transfer_codings = true;
        Ok(Box::new(peer))
    }

    // Retry, because another address of the origin may answer.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let (Some((origin, _)), Some(address)) = (&ctx.route, peer.address().as_inet()) {
            let (host, port) = (origin.connect_host(), origin.port());
            let attempts = &mut ctx.attempts;
            let limit = CONNECT_TIMEOUT;
            if self.resolver.failed(host, port, limit, *address, attempts) {
                error.set_retry(true);
            }
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
        self.caching
            .upstream_request_filter(session, request, &mut ctx.caching)?;
        let (origin, key) = routed(&ctx.route)?;
        let target = origin.target(key);
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
        if let Some(signer) = origin.signer() {
            let fields = signer
                .sign(
                    method.as_str(),
                    origin.host_header(),
                    &target,
                    &[],
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

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.caching
            .upstream_response_filter(session, response, &mut ctx.caching)
            .await?;
        if response.status.is_redirection() && response.status != StatusCode::NOT_MODIFIED {
            return Err(self.redirected(response, ctx));
        }
        let status = response.status;
        if status.is_informational() || status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(());
        }
        if !(response.status.is_client_error() || response.status.is_server_error()) {
            let why = "the origin's status code is not valid in HTTP";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        if self.is_remembered(response) {
            if let Some((origin, key)) = &ctx.route {
                let key = cache_key(origin, key);
                self.absent.insert(&key, response.status, ctx.asked_at);
            }
        }
        if response.status == StatusCode::FORBIDDEN && !ctx.caching.is_background() {
            if let Some((origin, key)) = &ctx.route {
                warn!(
                    "bucket {}: the origin refuses {key:?} with 403; check access_key, secret_key, region and the bucket's policy",
                    origin.bucket()
                );
            }
        }
        // Where the origin sends no body, Pingora asks for none to send on.
        let is_empty = response
            .headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|len| len == "0");
        let body = if is_empty {
            Bytes::new()
        } else {
            errors::body(response.status)
        };
        errors::replace(response, &body)?;
        ctx.replaces_body = true;
        ctx.error_body = (session.req_header().method != Method::HEAD).then_some(body);
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if ctx.replaces_body {
            *body = ctx.error_body.take();
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if response.status.is_success() {
            response.insert_header(header::ACCEPT_RANGES, "bytes")?;
        }
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
