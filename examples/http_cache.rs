//! A caching reverse proxy for one HTTP origin: RFC 9111 by
//! [`pingora_sendfile::http`], entries on disk, hits by `sendfile(2)`.
//!
//! ```text
//! http_cache --listen 127.0.0.1:8080 --origin 127.0.0.1:80 --cache /var/cache/http
//! ```
//!
//! To replace the process without refusing a client, start the new one with `--upgrade`, and
//! send SIGQUIT to the old one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use clap::Parser;
use pingora_cache::key::HashBinary;
use pingora_cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, RespCacheable};
use pingora_core::modules::http::compression::ResponseCompressionBuilder;
use pingora_core::modules::http::HttpModules;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, RangeType, Session};
use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};
use pingora_sendfile::http::{CachingCtx, CachingOptions, HttpCaching, StoringRules};
use pingora_sendfile::logging;
use pingora_sendfile::proxy::http1::{answer_what_was_asked, server_options, HeadLimits};
use pingora_sendfile::proxy::{descriptors, signals, Listener};

/// Many origins close idle connections after 5 s; a request shall not meet that.
const ORIGIN_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const ORIGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest wait for a client that takes no bytes or sends no further request.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time that an HTTP/2 client may take after GOAWAY.
const HTTP2_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that the responses of an HTTP/2 connection may have in memory.
const HTTP2_SEND_BUFFER: usize = 512 * 1024;

#[derive(Parser)]
#[command(about = "A caching reverse proxy for one HTTP origin")]
struct Options {
    /// Address for clients; port 0: any free port
    #[arg(long)]
    listen: SocketAddr,
    /// Address of the origin
    #[arg(long)]
    origin: SocketAddr,
    /// The folder of the cache
    #[arg(long)]
    cache: PathBuf,
    /// Freshness of a 200 for which the origin states none
    #[arg(long, value_name = "SECS")]
    default_ttl: Option<u64>,
    /// Limit of the cache, in gigabytes of 10^9 bytes
    #[arg(long, default_value_t = 10)]
    max_size_gb: u64,
    /// Compression level for clients that accept compression; 0: none
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=9))]
    compression: u32,
    /// Serve clients that begin with HTTP/2 as well (prior knowledge, RFC 9113 section 3.3)
    #[arg(long)]
    h2c: bool,
    /// Take over from the process that serves now, when it gets SIGQUIT
    #[arg(long)]
    upgrade: bool,
}

struct HttpCacheProxy {
    origin: SocketAddr,
    caching: HttpCaching,
    compression: u32,
}

/// Each callback hands over to [`HttpCaching`]; a proxy of your own does what else
/// it wants there.
#[async_trait]
impl ProxyHttp for HttpCacheProxy {
    type CTX = CachingCtx;

    fn new_ctx(&self) -> CachingCtx {
        CachingCtx::default()
    }

    // None that does nothing: what no module needs to see is sent as it is.
    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        if self.compression > 0 {
            modules.add_module(ResponseCompressionBuilder::enable(self.compression));
        }
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut CachingCtx) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(self.origin, false, String::new());
        peer.options.connection_timeout = Some(ORIGIN_TIMEOUT);
        peer.options.read_timeout = Some(ORIGIN_TIMEOUT);
        peer.options.write_timeout = Some(ORIGIN_TIMEOUT);
        peer.options.idle_timeout = Some(ORIGIN_IDLE_TIMEOUT);
        peer.options.reject_h1_response_transfer_codings = true;
        Ok(Box::new(peer))
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut CachingCtx) -> Result<bool> {
        answer_what_was_asked(session);
        session.set_write_timeout(Some(CLIENT_TIMEOUT));
        // Pingora takes zero for no limit.
        if session.get_keepalive() == Some(0) {
            session.set_keepalive(Some(CLIENT_TIMEOUT.as_secs()));
        }
        if self.caching.request_filter(session, ctx).await? {
            return Ok(true);
        }
        let key = |session: &Session| self.caching.cache_key_callback(session);
        self.caching.serve_fast_hit(session, ctx, key).await
    }

    // Fetches a whole object in the background when a part of it is asked for.
    fn allow_spawning_subrequest(&self, _: &Session, _: &CachingCtx) -> bool {
        true
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
        Ok(self
            .caching
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
        self.caching
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
        Ok(self
            .caching
            .cache_not_modified_filter(session, response, ctx))
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
        self.caching.response_filter(session, response, ctx)
    }

    // Or hits could not go by sendfile.
    fn needs_response_body(&self, _: &Session, _: &CachingCtx) -> bool {
        false
    }

    fn should_serve_stale(
        &self,
        _: &mut Session,
        ctx: &mut CachingCtx,
        error: Option<&Error>,
    ) -> bool {
        self.caching.should_serve_stale(error, ctx)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut CachingCtx,
    ) -> FailToProxy {
        self.caching.fail_to_proxy(session, error, ctx).await
    }

    fn suppress_error_log(&self, _: &Session, ctx: &CachingCtx, error: &Error) -> bool {
        self.caching.suppress_error_log(ctx, error)
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        ctx: &CachingCtx,
        error: &Error,
        context: ProxyWarnLogContext,
    ) -> bool {
        self.caching.suppress_proxy_warn_log(ctx, error, context)
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut CachingCtx) {
        self.caching.logging(session, error, ctx);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    logging::init("warn");
    signals::outlive()?;
    let options = Options::parse();
    let open_files = descriptors::raise_limit();
    let listener = match options.upgrade {
        true => Listener::inherit(options.listen, "--listen")?,
        false => Listener::reserve(options.listen, "--listen")?,
    };
    let max_size = options.max_size_gb * 1_000_000_000;
    let cache = DiskCache::open(DiskCacheConfig {
        successor: options.upgrade,
        ..DiskCacheConfig::new(&options.cache, max_size)
    })?;
    let caching = CachingOptions {
        storing: StoringRules {
            default_ttl: options.default_ttl.map(Duration::from_secs),
            ..StoringRules::default()
        },
        ..CachingOptions::default()
    };
    // in a folder that only this user can write to, unlike the default in /tmp
    let upgrade_sock = options.cache.join("upgrade.sock");
    let proxy = HttpCacheProxy {
        origin: options.origin,
        caching: HttpCaching::new(Some(cache), caching),
        compression: options.compression,
    };

    let conf = ServerConf {
        threads: std::thread::available_parallelism()?.get(),
        grace_period_seconds: Some(1),
        graceful_shutdown_timeout_seconds: Some(5),
        upgrade_sock: upgrade_sock.to_string_lossy().into_owned(),
        ..ServerConf::default()
    };
    let upgrade = Opt {
        upgrade: options.upgrade,
        ..Opt::default()
    };
    let mut server = Server::new_with_opt_and_conf(upgrade, conf);
    server.confirm_upgrades();
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
    if let Some(app) = service.app_logic_mut() {
        let mut http = server_options(HeadLimits::default());
        http.h2c = options.h2c;
        http.h2_request_header_timeout = Some(HeadLimits::default().timeout);
        http.h2_idle_timeout = Some(CLIENT_TIMEOUT);
        http.h2_close_timeout = Some(HTTP2_CLOSE_TIMEOUT);
        http.h2_send_buffer_limit = Some(HTTP2_SEND_BUFFER);
        http.h2_control_frames_per_second = Some(100);
        app.server_options = Some(http);
    }
    service.set_connection_limit(descriptors::clients(open_files, None));
    service.add_tcp_with_settings(&listener.address().to_string(), listener.options());
    server.add_service(service);
    if options.upgrade {
        // The other process serves meanwhile. An entry that is not found yet would be a miss.
        cache.wait_listed();
    }
    server.bootstrap();
    std::thread::spawn(move || {
        listener.wait_until_served();
        println!("listening on {}", listener.address());
    });
    server.run(RunArgs::default());
    cache.close(Duration::from_secs(5));
    Ok(())
}
