//! The fast path and Pingora's phases send the same bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{http_proxy, ProxyHttp};
use tokio::sync::watch;

use super::*;
use crate::cache::{DiskCache, DiskCacheConfig};
use crate::http::rules::fields::RequestFields;
use crate::http::trace::{RequestId, Trace};

/// The field that names a request.
const ID: &str = "X-Id";

/// The longest wait for a body to be on the disk.
const PATIENCE: Duration = Duration::from_secs(60);

const PLAIN: &str = "/plain";
const VARIED: &str = "/varied";
const STALE: &str = "/stale";

/// Requests that the fast path answers. Each ends with an empty line.
const FAST: [&str; 6] = [
    "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-A: 2\r\nAccept-Language: de\r\n\r\n",
    "GET /plain HTTP/1.0\r\nHost: a\r\n\r\n",
    "GET /plain HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
];

/// Requests that it leaves to Pingora's phases.
const SLOW: [&str; 14] = [
    "HEAD /plain HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD /plain HTTP/1.0\r\nHost: a\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nRange: bytes=2-5\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nRange: bytes=0-\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nRange: bytes=99-\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"1\"\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"2\"\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nIf-Match: \"2\"\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nIf-Range: \"1\"\r\nRange: bytes=2-5\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nIf-Range: \"2\"\r\nRange: bytes=2-5\r\n\r\n",
    "GET /plain HTTP/1.1\r\nHost: a\r\nCache-Control: max-stale\r\n\r\n",
    "GET /varied HTTP/1.1\r\nHost: a\r\nAccept-Language: de\r\n\r\n",
    "GET /stale HTTP/1.1\r\nHost: a\r\nCache-Control: max-stale\r\n\r\n",
    "GET /stale HTTP/1.0\r\nHost: a\r\nCache-Control: max-stale\r\nRange: bytes=1-1\r\n\r\n",
];

/// A caching proxy that counts the responses that pass through Pingora's phases.
struct Proxy {
    caching: HttpCaching,
    origin: SocketAddr,
    may_hit_fast: bool,
    /// Notes are taken on requests.
    traces: bool,
    in_phases: Arc<AtomicUsize>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = CachingCtx;

    fn new_ctx(&self) -> CachingCtx {
        CachingCtx::default()
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut CachingCtx) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin, false, String::new())))
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut CachingCtx) -> Result<bool> {
        if self.traces {
            ctx.set_trace(Trace::new(ID, RequestId::parse(b"7").unwrap(), None));
        }
        if !self.may_hit_fast {
            ctx.forbid_fast_hit();
        }
        if self.caching.request_filter(session, ctx).await? {
            return Ok(true);
        }
        let key = |session: &Session| self.caching.cache_key_callback(session);
        self.caching.serve_fast_hit(session, ctx, key).await
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut CachingCtx) -> Result<()> {
        self.caching.request_cache_filter(session, ctx);
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, _: &mut CachingCtx) -> Result<CacheKey> {
        Ok(self.caching.cache_key_callback(session))
    }

    fn cache_vary_filter(
        &self,
        meta: &CacheMeta,
        _: &mut CachingCtx,
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
        ctx: &mut CachingCtx,
    ) -> Result<Option<ForcedFreshness>> {
        let caching = &self.caching;
        Ok(caching
            .cache_hit_filter(session, meta, hit, is_fresh, ctx)
            .await)
    }

    async fn proxy_upstream_filter(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        self.caching.proxy_upstream_filter(session, ctx).await
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        self.caching.upstream_request_filter(session, request, ctx)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        let caching = &self.caching;
        caching
            .upstream_response_filter(session, response, ctx)
            .await
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<RespCacheable> {
        Ok(self.caching.response_cache_filter(session, response, ctx))
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<bool> {
        let caching = &self.caching;
        Ok(caching.cache_not_modified_filter(session, response, ctx))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> RangeType {
        self.caching.range_header_filter(session, response, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        self.in_phases.fetch_add(1, Ordering::Relaxed);
        self.caching.response_filter(session, response, ctx)
    }
}

/// A proxy that listens.
struct Running {
    address: SocketAddr,
    in_phases: Arc<AtomicUsize>,
}

impl Running {
    fn start(
        cache: &'static DiskCache,
        origin: SocketAddr,
        may_hit_fast: bool,
        traces: bool,
        request_fields: RequestFields,
    ) -> Running {
        let in_phases = Arc::default();
        let options = CachingOptions {
            judges_preconditions: true,
            request_fields,
            ..CachingOptions::default()
        };
        let app = Proxy {
            caching: HttpCaching::new(Some(cache), options),
            origin,
            may_hit_fast,
            traces,
            in_phases: Arc::clone(&in_phases),
        };
        let app = Arc::new(http_proxy(&Arc::new(ServerConf::default()), app));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (_running, shutdown) = watch::channel(false);
            while let Ok((stream, _)) = listener.accept().await {
                let (app, shutdown) = (app.clone(), shutdown.clone());
                tokio::spawn(async move {
                    let stream = pingora_core::protocols::l4::stream::Stream::from(stream);
                    let mut next = app.process_new(Box::new(stream), &shutdown).await;
                    while let Some(stream) = next {
                        next = app.process_new(stream, &shutdown).await;
                    }
                });
            }
        });
        Running { address, in_phases }
    }

    /// The bytes of the response to a request, and true if it passed through Pingora's phases.
    fn ask(&self, request: &str) -> (Vec<u8>, bool) {
        let before = self.in_phases.load(Ordering::Relaxed);
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let response = read_message(&mut BufReader::new(stream), request.starts_with("HEAD"));
        (response, self.in_phases.load(Ordering::Relaxed) > before)
    }
}

/// Ask again until the response is a fast hit: the body may be on its way to the disk.
fn until_fast(passes_through_phases: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while passes_through_phases() {
        assert!(Instant::now() < deadline, "no hit is fast");
    }
}

/// Read a header and the body that its `Content-Length` announces.
fn read_message(stream: &mut impl BufRead, is_head: bool) -> Vec<u8> {
    let mut message = String::new();
    while !message.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut message).unwrap() > 0, "{message}");
    }
    let lower = message.to_ascii_lowercase();
    let len = lower.split("content-length: ").nth(1);
    let len = len.and_then(|len| len.split("\r\n").next()?.parse::<usize>().ok());
    let mut message = message.into_bytes();
    let has_body = !is_head && !lower.starts_with("http/1.1 304");
    if let Some(len) = len.filter(|_| has_body) {
        let header = message.len();
        message.resize(header + len, 0);
        stream.read_exact(&mut message[header..]).unwrap();
    }
    message
}

/// An origin with a fresh page, a varied one, and one that is stale when it is sent.
fn start_origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let request = read_message(&mut BufReader::new(&stream), false);
            let request = String::from_utf8(request).unwrap();
            let fields = match request.split(' ').nth(1).unwrap() {
                VARIED => "Cache-Control: max-age=1000\r\nVary: Accept-Language\r\n",
                STALE => "Cache-Control: max-age=10\r\nAge: 100\r\n",
                _ => "Cache-Control: max-age=1000\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n",
            };
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nLink: <a>\r\n{fields}Link: <b>\r\n\
                 Age: 3\r\nX-Cache: of the origin\r\nX-Id: of the origin\r\nContent-Length: 10\r\n\
                 Connection: close\r\n\r\n0123456789"
            )
            .unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn fast_and_slow_hits_are_the_same_bytes() {
    compare_hits(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fast_and_slow_hits_name_the_request_alike() {
    compare_hits(true).await;
}

async fn compare_hits(traces: bool) {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(DiskCacheConfig::new(folder.path(), 1 << 20)).unwrap();
    let origin = start_origin();
    let slow = Running::start(cache, origin, false, traces, RequestFields::All);
    let fast = Running::start(cache, origin, true, traces, RequestFields::All);
    let id = if traces { "7" } else { "of the origin" };
    let compare = move || {
        for path in [PLAIN, VARIED, STALE] {
            slow.ask(&format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nAccept-Language: de\r\n\r\n"
            ));
        }
        // Pingora's phases prepare the header, once the body is complete.
        assert!(fast.ask(FAST[0]).1);
        until_fast(|| fast.ask(FAST[0]).1);
        let requests = FAST.map(|request| (request, true));
        for (request, is_fast) in requests.into_iter().chain(SLOW.map(|row| (row, false))) {
            // `Age` and `ttl` are the same within a second.
            let (sent, slowly) = loop {
                let (before, _) = fast.ask(request);
                let slowly = slow.ask(request);
                let after = fast.ask(request);
                if before == after.0 {
                    break (after, slowly);
                }
            };
            assert_eq!(sent.1, !is_fast, "{request}");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            assert_eq!(text(&sent.0), text(&slowly.0), "{request}");
            let ids: Vec<_> = text(&sent.0)
                .lines()
                .filter_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("x-id: ")
                        .map(str::to_owned)
                })
                .collect();
            assert_eq!(ids, [id], "{request}");
            if is_fast {
                assert!(slowly.1, "{request}");
                let response = text(&sent.0);
                for field in ["\r\nAge: ", "; hit; ttl=", "\r\nX-Cache: HIT\r\n"] {
                    assert!(response.contains(field), "{field} {response}");
                }
            }
        }
    };
    tokio::task::spawn_blocking(compare).await.unwrap();
}

/// MinIO sends `Vary` with every object.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_does_not_reach_the_origin_keeps_no_hit_from_the_fast_path() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(DiskCacheConfig::new(folder.path(), 1 << 20)).unwrap();
    let proxy = Running::start(cache, start_origin(), true, false, RequestFields::Only(&[]));
    let ask = move || {
        let ask = |language: &str| {
            proxy.ask(&format!(
                "GET {VARIED} HTTP/1.1\r\nHost: a\r\nAccept-Language: {language}\r\n\r\n"
            ))
        };
        ask("de");
        until_fast(|| ask("de").1);
        assert!(!ask("en").1);
    };
    tokio::task::spawn_blocking(ask).await.unwrap();
}
