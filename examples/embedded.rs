//! A proxy of your own that caches on disk what its origin permits to be stored.
//!
//! ```text
//! embedded LISTEN ORIGIN
//! ```
//!
//! Its Cargo.toml has the lines that `vendor/pingora.sh export` prints.
//!
//! It uses [`DiskCache`] directly, with Pingora's own rules of HTTP caching.
//! `pingora_sendfile::http::HttpCaching`, which `examples/http_cache.rs` shows, covers more
//! of RFC 9111 and leaves less to get right.

use std::{env, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use pingora_cache::{
    cache_control::CacheControl, filters::resp_cacheable, CacheKey, CacheMetaDefaults,
    NoCacheReason, RespCacheable,
};
use pingora_core::{
    server::{RunArgs, Server},
    upstreams::peer::HttpPeer,
    Error, Result,
};
use pingora_http::ResponseHeader;
use pingora_proxy::{ProxyHttp, Session};
use pingora_sendfile::{
    cache::{DiskCache, DiskCacheConfig},
    http::FillLock,
    proxy::Listener,
};

/// Responses are stored only if the origin says that they are fresh.
const DEFAULTS: CacheMetaDefaults = CacheMetaDefaults::new(|_| None, 0, 0);

struct MyProxy {
    origin: SocketAddr,
    cache: &'static DiskCache,
    lock: &'static FillLock,
}

#[async_trait]
impl ProxyHttp for MyProxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin, false, String::new())))
    }

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        // A slow client does not slow down the fill that others follow, and a client that
        // has its response before the fill is finished may send another request.
        session.set_proxy_tasks_enabled(true);
        session.set_pipelining_enabled(true);
        Ok(false)
    }

    fn request_cache_filter(&self, session: &mut Session, _: &mut ()) -> Result<()> {
        // Pingora would look up requests with any method.
        if !["GET", "HEAD"].contains(&session.req_header().method.as_str()) {
            return Ok(());
        }
        // No eviction manager: the cache evicts by itself.
        session
            .cache
            .enable(self.cache, None, None, Some(self.lock), None);
        session.cache.set_admission_policy(self.cache.admission());
        session.cache.set_revalidate_all_fields(true);
        session
            .cache
            .set_max_file_size_bytes(self.cache.max_whole_bytes() as usize);
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, _: &mut ()) -> Result<CacheKey> {
        let request = session.req_header();
        let authority = request.uri.authority().map(|host| host.as_str().as_bytes());
        let host = request.headers.get("Host").map(|host| host.as_bytes());
        let host = authority.or(host).unwrap_or_default();
        // Only the first argument is hashed, so everything that tells two objects apart
        // belongs there. Neither part can contain the separator. The second argument is a
        // tag, for `DiskCache::ban_prefix`.
        let primary = [host, b"\n", request.raw_path()].concat();
        let mut key = CacheKey::new(primary, "embedded");
        // If the object is purged after this, the request does not store it.
        key.extensions.insert(self.cache.lookup_snapshot());
        Ok(key)
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        _: &mut (),
    ) -> Result<RespCacheable> {
        // Responses that vary need a `cache_vary_filter`; cookies are for one client.
        if ["Vary", "Set-Cookie"]
            .iter()
            .any(|name| response.headers.contains_key(*name))
        {
            return Ok(RespCacheable::Uncacheable(NoCacheReason::OriginNotCache));
        }
        let authorized = session.req_header().headers.contains_key("Authorization");
        Ok(resp_cacheable(
            CacheControl::from_resp_headers(response).as_ref(),
            response.clone(),
            authorized,
            &DEFAULTS,
        ))
    }

    // Otherwise hits could not go by sendfile.
    fn needs_response_body(&self, _: &Session, _: &()) -> bool {
        false
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, _: &mut ()) {
        println!(
            "{} {:?}, {} bytes by sendfile",
            session.req_header().uri,
            session.cache.phase(),
            session.as_downstream().body_bytes_zero_copy()
        );
    }
}

fn main() {
    let mut addresses = env::args().skip(1).map(|argument| {
        let address = argument.parse::<SocketAddr>();
        address.expect("an address such as 127.0.0.1:8080")
    });
    let (Some(listen), Some(origin)) = (addresses.next(), addresses.next()) else {
        panic!("usage: embedded LISTEN ORIGIN");
    };
    let cache = DiskCache::open(DiskCacheConfig::new("cache", 1 << 30)).expect("open the cache");
    let proxy = MyProxy {
        origin,
        cache,
        // The time that a request waits for another one that fetches the same object.
        lock: Box::leak(Box::new(FillLock::new(cache, Duration::from_secs(10)))),
    };
    let mut server = Server::new(None).expect("a server");
    server.bootstrap();
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
    let listener = Listener::reserve(listen, "LISTEN").expect("an address that is free");
    println!("listening on {}", listener.address());
    service.add_tcp_with_settings(&listener.address().to_string(), listener.options());
    server.add_service(service);
    server.run(RunArgs::default());
    // Complete fills are committed, and the folder is released.
    cache.close(Duration::from_secs(5));
}
