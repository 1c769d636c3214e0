//! Routes requests to buckets, signs them, and serves hits by sendfile.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{Method, StatusCode, Version};
use log::warn;
use pingora_cache::lock::CacheKeyLockImpl;
use pingora_cache::{CacheKey, CacheMeta, CachePhase, ForcedFreshness, HitHandler, RespCacheable};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{range_header_filter, ProxyHttp, RangeType, Session};

use super::cache_key::{cache_key, requested_path, CacheKeys};
use super::errors;
use super::fill_lock::FillLock;
use super::too_large::TooLarge;
use crate::cache::DiskCache;
use crate::config::Config;
use crate::http::{is_from_the_future, storable, DefaultTtl};
use crate::metrics::METRICS;
use crate::s3::{ObjectKey, Origin, OriginError, RouteError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ORIGIN_READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Shorter than the 20 s after which S3 closes idle connections.
const ORIGIN_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// More ranges than this are ignored, as Pingora does by default.
const MAX_RANGES: Option<usize> = Some(200);

/// Request fields that Pingora's cache or the client's range put there and that
/// the origin has to see. All others stay here: they are not part of the key.
const FORWARDED: [HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// The proxy: S3 behind, the disk cache in the middle.
pub struct S3ProxyHttp {
    keys: CacheKeys,
    cache: Option<&'static DiskCache>,
    lock: Option<&'static CacheKeyLockImpl>,
    too_large: &'static TooLarge,
    default_ttl: DefaultTtl,
    write_timeout: Option<Duration>,
    min_send_rate: Option<usize>,
}

/// What is known of a request.
#[derive(Default)]
pub struct RequestCtx {
    route: Option<(Arc<Origin>, ObjectKey)>,
    /// Replaces the body of an error of the origin, once.
    error_body: Option<Bytes>,
    /// The body of the origin's answer is thrown away.
    replaces_body: bool,
    asked_origin: bool,
}

impl S3ProxyHttp {
    /// A proxy for the buckets of `config`, which caches in `cache`.
    pub fn new(config: &Config, cache: Option<&'static DiskCache>) -> Result<Self, OriginError> {
        // Pingora wants both to live as long as the process.
        let lock = cache.map(|cache| -> &'static CacheKeyLockImpl {
            Box::leak(Box::new(FillLock::new(cache)))
        });
        let too_large: &'static TooLarge = Box::leak(Box::default());
        let write_timeout = config.server.write_timeout;
        Ok(S3ProxyHttp {
            keys: CacheKeys::new(config)?,
            cache,
            lock,
            too_large,
            default_ttl: DefaultTtl(config.cache.default_ttl),
            write_timeout: (!write_timeout.is_zero()).then_some(write_timeout),
            min_send_rate: (config.server.min_send_rate > 0).then_some(config.server.min_send_rate),
        })
    }

    fn route(&self, session: &Session) -> Result<(Arc<Origin>, ObjectKey), RouteError> {
        let path = requested_path(session.req_header());
        let (origin, key) = self.keys.router().route(&path)?;
        Ok((origin.clone(), key))
    }
}

fn routed(ctx: &RequestCtx) -> Result<&(Arc<Origin>, ObjectKey)> {
    ctx.route
        .as_ref()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "the request has no route"))
}

/// The origin's address, looked up off the worker thread.
async fn resolve(origin: &Origin) -> Result<SocketAddr> {
    let (host, port) = (origin.connect_host(), origin.port());
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok((ip, port).into());
    }
    tokio::net::lookup_host((host, port))
        .await
        .or_err_with(ErrorType::ConnectError, || {
            format!(
                "looking up {host}, the endpoint of bucket {}",
                origin.bucket()
            )
        })?
        .next()
        .ok_or_else(|| {
            Error::explain(
                ErrorType::ConnectError,
                format!(
                    "{host}, the endpoint of bucket {}, has no address",
                    origin.bucket()
                ),
            )
        })
}

/// Whether a range asks for the last 0 bytes (RFC 9110 §14.1.2: unsatisfiable).
fn is_empty_suffix(range: &[u8]) -> bool {
    let Some((unit, set)) = range.split_at_checked(6) else {
        return false;
    };
    let set = set.trim_ascii();
    unit.eq_ignore_ascii_case(b"bytes=")
        && set.len() > 1
        && set[0] == b'-'
        && set[1..].iter().all(|digit| *digit == b'0')
}

fn x_cache(phase: CachePhase) -> &'static str {
    match phase {
        CachePhase::Hit => "HIT",
        CachePhase::Stale | CachePhase::StaleUpdating => "STALE",
        CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => "REVALIDATED",
        _ => "MISS",
    }
}

#[async_trait]
impl ProxyHttp for S3ProxyHttp {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> Self::CTX {
        RequestCtx::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        session.set_write_timeout(self.write_timeout);
        session.set_min_send_rate(self.min_send_rate);
        // A client that reads slowly shall not slow the fill that others follow.
        session.set_proxy_tasks_enabled(true);
        // A client has its response before the fill behind it is finished, and
        // may ask for more. Without this, Pingora would cut it off.
        session.set_pipelining_enabled(true);
        if !matches!(session.req_header().method, Method::GET | Method::HEAD) {
            errors::respond(session, StatusCode::METHOD_NOT_ALLOWED, None).await?;
            return Ok(true);
        }
        match self.route(session) {
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
        Ok(false)
    }

    fn request_cache_filter(&self, session: &mut Session, _ctx: &mut Self::CTX) -> Result<()> {
        if let Some(cache) = self.cache {
            // No eviction manager: the cache evicts by itself.
            session
                .cache
                .enable(cache, None, Some(self.too_large), self.lock, None);
            session.cache.set_admission_policy(cache.admission());
            // A larger object would evict all others and then itself.
            let limit = usize::try_from(cache.max_size_bytes()).unwrap_or(usize::MAX);
            session.cache.set_max_file_size_bytes(limit);
        }
        Ok(())
    }

    fn cache_key_callback(&self, _session: &Session, ctx: &mut Self::CTX) -> Result<CacheKey> {
        let (origin, key) = routed(ctx)?;
        let mut key = cache_key(origin, key);
        if let Some(cache) = self.cache {
            key.extensions.insert(cache.asked_now());
        }
        Ok(key)
    }

    fn response_cache_filter(
        &self,
        _session: &Session,
        response: &ResponseHeader,
        _ctx: &mut Self::CTX,
    ) -> Result<RespCacheable> {
        Ok(storable(response, self.default_ttl))
    }

    async fn cache_hit_filter(
        &self,
        _session: &mut Session,
        meta: &CacheMeta,
        _hit_handler: &mut HitHandler,
        _is_fresh: bool,
        _ctx: &mut Self::CTX,
    ) -> Result<Option<ForcedFreshness>> {
        Ok(is_from_the_future(meta, SystemTime::now()).then_some(ForcedFreshness::ForceExpired))
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        let (origin, _) = routed(ctx)?;
        let address = resolve(origin).await?;
        let mut peer = HttpPeer::new(address, origin.tls(), origin.connect_host().to_owned());
        peer.options.connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.total_connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.read_timeout = Some(ORIGIN_READ_TIMEOUT);
        peer.options.write_timeout = Some(ORIGIN_READ_TIMEOUT);
        peer.options.idle_timeout = Some(ORIGIN_IDLE_TIMEOUT);
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let (origin, key) = routed(ctx)?;
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
        ctx.asked_origin = true;
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if !(response.status.is_client_error() || response.status.is_server_error()) {
            return Ok(());
        }
        if matches!(response.status, StatusCode::FORBIDDEN) {
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
        errors::describe(response, &body)?;
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
        _ctx: &mut Self::CTX,
    ) -> Result<()> {
        if response.status.is_success() {
            response.insert_header(header::ACCEPT_RANGES, "bytes")?;
        }
        // Pingora frames a body of unknown length in chunks, which HTTP/1.0 does
        // not know (RFC 9112 §6.1): there the end of the connection is its end.
        if session.req_header().version <= Version::HTTP_10
            && response.headers.contains_key(header::TRANSFER_ENCODING)
        {
            response.remove_header(&header::TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        response.insert_header("X-Cache", x_cache(session.cache.phase()))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut Self::CTX,
    ) -> RangeType {
        let len = response.headers.get(header::CONTENT_LENGTH);
        if len.is_some_and(|len| len == "0") {
            // No range of nothing can be satisfied, and Pingora's arithmetic
            // assumes a first byte. The whole is as good an answer (RFC 9110 §14.2).
            return RangeType::None;
        }
        let request = session.req_header();
        let range = request.headers.get(header::RANGE);
        if range.is_some_and(|range| is_empty_suffix(range.as_bytes())) {
            // Pingora would answer 206 with nothing. A range that starts behind
            // the end is as unsatisfiable, and Pingora knows that one.
            let mut request = request.clone();
            if request
                .insert_header(header::RANGE, format!("bytes={}-", i64::MAX))
                .is_ok()
            {
                return range_header_filter(&request, response, MAX_RANGES);
            }
        }
        range_header_filter(request, response, MAX_RANGES)
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
        METRICS.body_bytes.inc_by(session.body_bytes_sent() as u64);
        if ctx.route.is_some() {
            if ctx.asked_origin {
                METRICS.misses.inc();
            } else if session.response_written().is_some() {
                METRICS.hits.inc();
            }
        }
        let Some(error) = error else { return };
        let source = match error.esource() {
            ErrorSource::Downstream => "downstream",
            ErrorSource::Upstream => "upstream",
            ErrorSource::Internal => "internal",
            ErrorSource::Unset => "unset",
        };
        METRICS.errors.with_label_values(&[source]).inc();

        // The body's end may be all that tells the client it is complete.
        let close_delimited = session.response_written().is_some_and(|response| {
            !response.headers.contains_key(header::CONTENT_LENGTH)
                && !response.headers.contains_key(header::TRANSFER_ENCODING)
        });
        if close_delimited {
            session.as_downstream_mut().abort_response();
        }
        // A hit whose file is too short, or unreadable, is one no longer.
        let damaged = matches!(error.etype(), ErrorType::FileReadError) && !ctx.asked_origin;
        if let (true, Some(cache)) = (damaged, self.cache) {
            if let Ok(key) = self.cache_key_callback(session, ctx) {
                warn!("cache entry of {key:?} is dropped: {error}");
                cache.drop_entry(&key, &error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_empty_suffix;

    #[test]
    fn only_a_suffix_of_zero_bytes_is_empty() {
        for range in ["bytes=-0", "Bytes=-000", "bytes= -0 "] {
            assert!(is_empty_suffix(range.as_bytes()), "{range:?}");
        }
        for range in [
            "bytes=-1",
            "bytes=-",
            "bytes=0-",
            "bytes=-0,1-2",
            "byte",
            "",
        ] {
            assert!(!is_empty_suffix(range.as_bytes()), "{range:?}");
        }
    }
}
