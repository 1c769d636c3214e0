//! The request to the origin: its peer, its signature, and its repetitions.

use std::time::{Duration, SystemTime};

use http::header::{self, HeaderName};
use http::Method;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::ctx::{routed, RequestCtx};
use super::shared::{S3ProxyHttp, FORWARDED};
use crate::metrics::METRICS;
use crate::proxy::cache_key::requested_path;
use crate::proxy::passthrough::CHECKSUM_MODE;
use crate::proxy::resolve::Attempts;
use crate::proxy::retries;
use crate::proxy::route::Route;
use crate::proxy::settings::Served;

/// The time after which idle connections to the origin are closed. S3 closes them after 20 s.
const ORIGIN_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The error of a request that cannot be signed.
const NO_CREDENTIALS: ErrorType = ErrorType::new_code("NoOriginCredentials", 503);

impl S3ProxyHttp {
    /// The peer for the next request to the origin.
    pub(super) async fn origin_peer(
        &self,
        session: &mut Session,
        ctx: &mut RequestCtx,
    ) -> Result<Box<HttpPeer>> {
        if std::mem::take(&mut ctx.pauses) {
            tokio::time::sleep(retries::pause(ctx.retries, fastrand::f64())).await;
        }
        let origin = &routed(&ctx.route)?.site;
        // Requests that clients have signed need no credentials.
        let is_relayed = ctx.relayed().is_some() && !ctx.caching.is_relay_fill();
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
        let next = origin
            .settings()
            .resolver
            .next(
                origin.connect_host(),
                origin.port(),
                limit,
                &mut ctx.attempts,
            )
            .await
            .inspect_err(|_| origin.health().note_unreachable())
            .or_err_with(ErrorType::ConnectError, || {
                format!(
                    "looking up {}, the endpoint of bucket {}",
                    origin.connect_host(),
                    origin.bucket()
                )
            })
            .map_err(|e| e.into_up())?;
        let mut peer = HttpPeer::new(next.address, origin.tls(), origin.tls_name().to_owned());
        let authorities = &origin.settings().authorities;
        authorities.apply(origin.connection(), &mut peer);
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

    /// True if a failed request to the origin is repeated. The failure may be temporary, and the
    /// client has received nothing.
    pub(super) fn may_repeat(&self, session: &Session, ctx: &mut RequestCtx) -> bool {
        let Some(route) = &ctx.route else {
            return false;
        };
        // The body of a relayed request is not kept.
        let is_read = matches!(session.req_header().method, Method::GET | Method::HEAD);
        let unanswered = is_read && session.response_written().is_none();
        let allowed = route.site.connection().retries;
        // Otherwise the client gets the stored response at once.
        if !unanswered || ctx.retries >= allowed || ctx.caching.may_serve_stale(session) {
            return false;
        }
        if !route.site.budget().spend() {
            METRICS.origin_retries_refused.inc();
            return false;
        }
        ctx.retries += 1;
        ctx.pauses = true;
        METRICS.origin_retries.inc();
        true
    }

    /// A time limit for the origin. It is shorter if a stale response can be served instead.
    fn unless_stale(
        &self,
        timeout: Option<Duration>,
        session: &Session,
        ctx: &RequestCtx,
    ) -> Option<Duration> {
        let settings = ctx.route.as_ref().map(|route| route.site.settings());
        let limit = settings.and_then(|settings| settings.stale_timeout);
        let limit = limit.filter(|_| ctx.caching.may_serve_stale(session));
        match (timeout, limit) {
            (Some(timeout), Some(limit)) => Some(timeout.min(limit)),
            (timeout, limit) => timeout.or(limit),
        }
    }

    /// The time limit for a connection to the origin.
    fn connect_limit(&self, origin: &Served, session: &Session, ctx: &RequestCtx) -> Duration {
        let timeout = origin.connection().connect_timeout;
        let limit = self.unless_stale(Some(timeout), session, ctx);
        limit.unwrap_or(timeout)
    }

    /// Mark the error of a failed connection for a retry, if another address may answer, or the
    /// failure may be temporary.
    pub(super) fn repeat_connect(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut RequestCtx,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(route) = &ctx.route {
            route.site.health().note_unreachable();
        }
        if let (Some(route), Some(address)) = (&ctx.route, peer.address().as_inet()) {
            let (host, port) = (route.site.connect_host(), route.site.port());
            let limit = self.connect_limit(&route.site, session, ctx);
            let attempts = &mut ctx.attempts;
            let resolver = &route.site.settings().resolver;
            if resolver.failed(host, port, limit, *address, attempts) {
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

    /// Mark the error of a failed exchange for a retry, if the failure may be temporary.
    pub(super) fn repeat_exchange(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut RequestCtx,
        client_reused: bool,
    ) -> Box<Error> {
        if let (Some(route), false) = (&ctx.route, ctx.has_answer) {
            route.site.health().note_error(&error, client_reused);
        }
        let mut error = error.more_context(format!("Peer: {peer}"));
        let is_idempotent = session.req_header().method.is_idempotent();
        if !is_idempotent || session.as_ref().retry_buffer_truncated() {
            error.set_retry(false);
            return error;
        }
        error.retry.decide_reuse(client_reused);
        // The remainder of an answer that has begun may be of another version.
        if !error.retry() && !ctx.has_answer && retries::has_broken(&error) {
            let repeats = self.may_repeat(session, ctx);
            error.set_retry(repeats);
        }
        error
    }

    /// Replace a client's request by the proxy's own, signed one.
    pub(super) fn write_origin_request(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        ctx.attempts.succeeded();
        ctx.has_answer = false;
        if ctx.relayed().is_some() {
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
        let target = match ctx.listing() {
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
        if ctx.listing().is_none() {
            // The stored object has the checksums for the clients that want them.
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
        ctx.purges = self.negative_cache.purges();
        Ok(())
    }
}

/// Sign a relayed request with the proxy's own credentials for the bucket, in place of the client's
/// signature. The fields that select a variant stay.
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

/// The fields of a request that S3 requires to be signed.
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
