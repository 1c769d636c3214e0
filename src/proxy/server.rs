//! A Pingora server from a configuration.

use std::fs::Permissions;
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use log::{debug, info};
use pingora_core::apps::http_app::HttpServer;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::listeners::{ConnectionLimit, L4BufferSettings, ListenerConfig, NotsentLimit};
use pingora_core::protocols::http::v2::server::{default_h2_options, H2Options};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::{Stream, ALPN};
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server, ShutdownWatch};
use pingora_core::services::background::{background_service, BackgroundService};
use pingora_core::services::listening::Service;
use pingora_core::Error;
use pingora_proxy::{HttpProxy, SubrequestSpawner};

use super::access_log::AccessLog;
use super::activation::Activated;
use super::admin::AdminApp;
use super::descriptors;
use super::health::Health;
use super::http1::{server_options, HeadLimits};
use super::limits;
use super::limits::gate::{unless_refused, Gate};
use super::listener::{wait_for, Listener, StartError};
use super::reload::Reloader;
use super::s3_proxy::S3ProxyHttp;
use super::settings::{SharedSettings, Surroundings};
use super::traces::Tracer;
use super::upgrade::Upgrader;
use super::{notify, send_buffer, signals, socket, status, tls};
use crate::cache::{DiskCache, DiskCacheConfig, SendfileConfig};
use crate::config::{Config, Gigabytes, KernelTls};
use crate::metrics::{MetricsApp, METRICS};

/// The time limit for the runtimes, and then for entries that are being committed, once nothing is
/// served any more.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of responses that the streams of an HTTP/2 connection buffer together. Large
/// bodies are written 32 KiB at a time.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;

/// The time limit for a client to acknowledge the close of an HTTP/2 connection, and to read the
/// remainder.
const HTTP2_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a connection has for a request which is on its way when the process is told to end. In an
/// upgrade, this follows the seconds in which each response says that its connection closes.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// The source of the listening sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listeners {
    /// The server opens them.
    Own,
    /// The running process hands them over.
    Inherited,
}

/// A server that is set up and not yet running.
///
/// ```no_run
/// use std::path::Path;
///
/// use pingora_sendfile::config::Config;
/// use pingora_sendfile::proxy::server::ProxyServer;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::load(Path::new("config.yaml"))?;
/// let server = ProxyServer::new(&config)?;
/// let address = server.address();
/// server.run(move || println!("serving http://{address}"))?;
/// # Ok(())
/// # }
/// ```
pub struct ProxyServer {
    server: Server,
    cache: Option<&'static DiskCache>,
    settings: Arc<SharedSettings>,
    tracer: Option<Arc<Tracer>>,
    listeners: Listeners,
    http: Listener,
    https: Option<Listener>,
    metrics: Option<Listener>,
    admin: Option<Listener>,
    admin_socket: Option<PathBuf>,
}

impl ProxyServer {
    /// Open the cache and set up the services that `config` asks for.
    pub fn new(config: &Config) -> Result<ProxyServer, StartError> {
        ProxyServer::set_up(config, Listeners::Own)
    }

    /// Like [`new`](Self::new), but take over the listeners of a running process, and share its
    /// cache until it has ended.
    ///
    /// Finds the entries of the cache. Then it waits some seconds at `server.upgrade_sock` for that
    /// process, which hands them over on SIGQUIT, and ends once this process serves. If it does not,
    /// **this process ends** with exit code 1: Pingora offers no other way.
    pub fn successor(config: &Config) -> Result<ProxyServer, StartError> {
        ProxyServer::set_up(config, Listeners::Inherited)
    }

    fn set_up(config: &Config, listeners: Listeners) -> Result<ProxyServer, StartError> {
        let open_files = descriptors::raise_limit();
        tls::install_provider();
        let activated = match listeners {
            Listeners::Own => Activated::from_env()?,
            Listeners::Inherited => Activated::default(),
        };
        let reserve = |address, key| match listeners {
            Listeners::Own if !activated.has(address) => Listener::reserve(address, key),
            _ => Listener::inherit(address, key),
        };
        let optional = |address: Option<SocketAddr>, key| {
            address.map(|address| reserve(address, key)).transpose()
        };
        let http = reserve(*config.server.address, "server.address")?;
        let tls = config.server.tls.as_ref();
        let https = optional(tls.map(|tls| *tls.address), "server.tls.address")?;
        let metrics = config.metrics.as_ref().map(|metrics| *metrics.address);
        let metrics = optional(metrics, "metrics.address")?;
        let admin_section = config.admin.as_ref();
        let admin = admin_section.and_then(|admin| admin.address.as_deref().copied());
        let admin = optional(admin, "admin.address")?;
        let admin_socket = admin_section.and_then(|admin| admin.socket.as_deref());
        if let (Some(path), Listeners::Own) = (admin_socket, listeners) {
            socket::check(path, "admin.socket")?;
        }

        let (cache, cached_files) = match cache_config(config, listeners) {
            Some(config) => {
                let cached_files = descriptors::cached_files(open_files, &config);
                (Some(DiskCache::open(config)?), cached_files)
            }
            None => (None, 0),
        };
        // Before the files of the listener are read: a later signal is then noticed.
        let hangups = signals::hangups();
        let access_log =
            AccessLog::open(config).map_err(|e| StartError(format!("access_log: {e}")))?;
        let https_port = https.as_ref().map(|https| https.address().port());
        let surroundings = Surroundings {
            https_port,
            access_log,
            cache,
        };
        let mut proxy = S3ProxyHttp::within(surroundings, config, cache);
        let tracer = Tracer::open(config).map_err(|e| StartError(format!("traces: {e}")))?;
        if let Some(tracer) = &tracer {
            proxy.trace_to(tracer.clone());
        }
        let settings = proxy.settings();

        // Without a socket, the line that SIGQUIT leaves in the log names the key.
        let upgrade_sock = config.server.upgrade_sock.clone();
        let upgrade_sock = upgrade_sock
            .as_deref()
            .unwrap_or(Path::new("server.upgrade_sock"));
        let conf = ServerConf {
            threads: *config.server.threads,
            // A single thread has no other to steal from. Its connections take turns without a
            // queue that other threads can reach.
            work_stealing: *config.server.threads > 1,
            grace_period_seconds: Some(config.server.grace_period.as_secs()),
            graceful_shutdown_timeout_seconds: Some(FINISH_TIMEOUT.as_secs()),
            upgrade_sock: upgrade_sock.to_string_lossy().into_owned(),
            upstream_keepalive_pool_size: descriptors::idle_origin_connections(open_files),
            ..ServerConf::default()
        };
        let options = Opt {
            upgrade: listeners == Listeners::Inherited,
            ..Opt::default()
        };
        let mut server = Server::new_with_opt_and_conf(options, conf);
        server.confirm_upgrades();
        let all = [
            Some(&http),
            https.as_ref(),
            metrics.as_ref(),
            admin.as_ref(),
        ];
        let all: Vec<_> = all.into_iter().flatten().map(Listener::address).collect();
        if let Some(fds) = activated.into_fds(&all)? {
            server.adopt_listeners(fds);
        }
        server.spare_idle_connections(SHUTDOWN_GRACE);

        let mut options = server_options(HeadLimits {
            timeout: *config.server.request_head_timeout,
            max_bytes: *config.server.max_request_head_bytes,
            max_target_bytes: *config.limits.url_bytes,
        });
        options.shutdown_grace = SHUTDOWN_GRACE;

        let health = proxy.health().clone();
        let status = status::Source::new(config, cache, health.clone(), proxy.top_keys().clone());
        server.add_service(background_service("health", Stopping(health.clone())));
        let mut proxy = pingora_proxy::http_proxy(&server.configuration, proxy);
        let mut proxy_options = options.clone();
        limit_http2(&mut proxy_options, config);
        proxy_options.on_refused_request = Some(limits::count_refused_requests());
        proxy.server_options = Some(proxy_options);
        proxy.h2_options = Some(http2_options(config));
        let proxy = Arc::new(proxy);
        let mut service = Service::new(
            "Pingora HTTP Proxy Service".into(),
            Drainable {
                proxy: Arc::new(SharedProxy(proxy.clone())),
                health: health.clone(),
            },
        );
        let max_connections = config.limits.connections.map(|max| *max);
        let max_connections = descriptors::max_clients(open_files, max_connections);
        let connections = Arc::new(ConnectionLimit::new(max_connections));
        descriptors::log_shares(open_files, max_connections, cached_files);
        METRICS.watch_connections(&connections);
        METRICS.watch_tls_lent(tls::lent_bytes);
        let gate = Gate::new(max_connections, &config.server, settings.clone());
        let mut watched = vec![connections.clone()];
        service.set_connection_limit(connections);
        let unsent =
            send_buffer::limit(config.server.send_buffer.map(|bytes| *bytes)).map(Arc::new);
        let mut certificates = None;
        if let (Some(section), Some(listener)) = (&config.server.tls, &https) {
            let (mut settings, reload) =
                tls::listener(section).map_err(|e| StartError(e.to_string()))?;
            certificates = reload.as_ref().map(tls::Reload::certificates);
            if let Some(reload) = reload {
                server.add_service(background_service("certificates", reload));
            }
            use_kernel_tls(section.ktls, &mut settings);
            service.add_listener(
                listener_config(listener, &unsent)
                    .tls(settings)
                    .handshake_timeout(section.handshake_limit())
                    .on_accept(gate.of_https())
                    .on_handshake_error(unless_refused(count_handshake_error)),
            );
        }
        let upgrader = Upgrader::new(server.watch_execution_phase());
        let reloader = Reloader::new(
            config,
            settings.clone(),
            https_port,
            certificates,
            upgrader,
            hangups,
        );
        if listeners == Listeners::Own {
            // Before the process says that it is ready.
            reloader.bind();
        }
        server.add_service(background_service("configuration", reloader));
        // This listener is added last, because a successful connection to it implies the other one;
        // see `run`.
        service.add_listener(
            listener_config(&http, &unsent)
                .on_accept(gate.of_http())
                .on_handshake_error(unless_refused(log_failure)),
        );
        server.add_service(service);
        if let Some(listener) = &metrics {
            let unready = health.clone();
            let app = MetricsApp::new(cache).unready(move || unready.unready());
            let mut app = HttpServer::new_app(app);
            app.server_options = Some(options.clone());
            let mut service = Service::new("metrics".into(), app);
            let connections = descriptors::operators(open_files);
            watched.push(connections.clone());
            service.set_connection_limit(connections);
            service.add_tcp_with_settings(&listener.address().to_string(), listener.options());
            service.threads = Some(1);
            server.add_service(service);
        }
        if admin_section.is_some() {
            let spawner = SubrequestSpawner::new(proxy);
            let operators = descriptors::max_operators(open_files);
            let app = AdminApp::new(
                config,
                settings.clone(),
                cache,
                health,
                status,
                spawner,
                operators,
            );
            let mut app = HttpServer::new_app(app);
            app.server_options = Some(options.clone());
            let mut service = Service::new("admin".into(), app);
            let connections = descriptors::operators(open_files);
            watched.push(connections.clone());
            service.set_connection_limit(connections);
            if let Some(listener) = &admin {
                service.add_tcp_with_settings(&listener.address().to_string(), listener.options());
            }
            if let Some(path) = admin_socket {
                let owner = Permissions::from_mode(0o600);
                service.add_uds(&path.to_string_lossy(), Some(owner));
            }
            service.threads = Some(1);
            server.add_service(service);
        }
        server.end_grace_period_early(watched);
        if listeners == Listeners::Inherited {
            // The other process serves meanwhile. An entry that is not found yet would be a miss.
            if let Some(cache) = cache {
                cache.wait_listed();
            }
            info!(
                "waiting at {} for the listeners of the running process; send it SIGQUIT",
                upgrade_sock.display()
            );
        }
        // This comes last, because the other process ends once it has handed over its sockets.
        server.bootstrap();
        Ok(ProxyServer {
            server,
            cache,
            settings,
            listeners,
            http,
            https,
            metrics,
            admin,
            admin_socket: admin_socket.map(Path::to_owned),
            tracer,
        })
    }

    /// The address that clients use.
    pub fn address(&self) -> SocketAddr {
        self.http.address()
    }

    /// The address of `/metrics` and `/health`.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|listener| listener.address())
    }

    /// The address of the listener for operators.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|listener| listener.address())
    }

    /// Serve until a signal ends the process. `announce` is called on a separate thread once
    /// connections are accepted.
    pub fn run(self, announce: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let mut lines = vec![format!("s3-proxy: serving http://{}", self.http.address())];
        let mut addresses = vec![self.http.address()];
        if let Some(https) = &self.https {
            // This listener is ready before the other one of its service. A connection to it would
            // leave a failed handshake in the log.
            lines.push(format!("s3-proxy: serving https://{}", https.address()));
        }
        if let Some(metrics) = &self.metrics {
            lines.push(format!(
                "s3-proxy: metrics http://{}/metrics",
                metrics.address()
            ));
            addresses.push(metrics.address());
        }
        if let Some(admin) = &self.admin {
            lines.push(format!("s3-proxy: admin http://{}", admin.address()));
            addresses.push(admin.address());
        }
        let admin_socket = self.admin_socket;
        if let Some(path) = &admin_socket {
            lines.push(format!("s3-proxy: admin unix:{}", path.display()));
        }
        lines.push("s3-proxy: ready".into());
        let listeners = self.listeners;
        std::thread::Builder::new()
            .name("announce".into())
            .spawn(move || {
                addresses.into_iter().for_each(wait_for);
                admin_socket.as_deref().map(socket::wait_for);
                // In an upgrade, the service manager listens to the other process.
                if listeners == Listeners::Own {
                    notify::ready("Serving");
                }
                // A closed standard output is no reason to stop serving.
                let _ = writeln!(io::stdout(), "{}", lines.join("\n"));
                announce();
            })?;
        self.server.run(RunArgs::default());
        if let Some(tracer) = self.tracer {
            tracer.close(FINISH_TIMEOUT);
        }
        if let Some(log) = &self.settings.get().access_log {
            log.close(FINISH_TIMEOUT);
        }
        if let Some(cache) = self.cache {
            cache.close(FINISH_TIMEOUT);
        }
        Ok(())
    }
}

/// The proxy, whose HTTP/2 connections end when it is drained. With HTTP/1, each response says so.
struct Drainable {
    proxy: Arc<SharedProxy>,
    health: Arc<Health>,
}

impl ServerApp for Drainable {
    // As #[async_trait] writes it, but without another box for HTTP/1.
    fn process_new<'life0, 'life1, 'async_trait>(
        self: &'life0 Arc<Self>,
        stream: Stream,
        shutdown: &'life1 ShutdownWatch,
    ) -> Pin<Box<dyn Future<Output = Option<Stream>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        let is_http2 = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        // A client that comes while the proxy is drained has nowhere else to go.
        if !is_http2 || self.health.is_draining() {
            return self.proxy.process_new(stream, shutdown);
        }
        Box::pin(async move {
            let leaving = self.health.leaving();
            self.proxy.process_new(stream, &leaving).await
        })
    }

    fn cleanup<'life0, 'async_trait>(
        &'life0 self,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        self.proxy.cleanup()
    }
}

/// Tells the health that the process shuts down.
struct Stopping(Arc<Health>);

#[async_trait]
impl BackgroundService for Stopping {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        // An error means that no shutdown can be signalled any more.
        let _ = shutdown.changed().await;
        self.0.stop();
    }
}

/// The proxy, which the admin listener makes requests to as well.
struct SharedProxy(Arc<HttpProxy<S3ProxyHttp>>);

impl HttpServerApp for SharedProxy {
    // As #[async_trait] writes it, but without a box around that of the proxy.
    fn process_new_http<'life0, 'life1, 'async_trait>(
        self: &'life0 Arc<Self>,
        session: ServerSession,
        shutdown: &'life1 ShutdownWatch,
    ) -> Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        self.0.process_new_http(session, shutdown)
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.0.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.0.server_options()
    }

    fn http_cleanup<'life0, 'async_trait>(
        &'life0 self,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        self.0.http_cleanup()
    }
}

/// The configuration of a listener for clients. Connections are read without Pingora's buffer of 64
/// KiB each: few requests are longer than the 4 KiB that the parser reads at once.
fn listener_config(listener: &Listener, unsent: &Option<Arc<NotsentLimit>>) -> ListenerConfig {
    let mut options = listener.options();
    options.tcp_notsent_limit = unsent.clone();
    ListenerConfig::tcp(listener.address().to_string())
        .tcp_socket_options(options)
        .l4_buffer(L4BufferSettings::default().read(0))
}

/// Log the failure of a connection without TLS, which has nothing to fail.
fn log_failure(peer: Option<&PeerAddress>, error: &Error) {
    debug!("a connection of {peer:?} has failed: {error}");
}

/// Count a failed handshake. Any client can cause as many as it likes, so none is logged.
fn count_handshake_error(peer: Option<&PeerAddress>, error: &Error) {
    let reason = tls::failure(error);
    METRICS
        .tls
        .handshake_failures
        .with_label_values(&[reason])
        .inc();
    debug!("a TLS handshake with {peer:?} has failed ({reason}): {error}");
}

/// Limit the resources of an HTTP/2 connection. `server.write_timeout` cuts a stream whose client
/// reads nothing, so no PING is needed to find out if the client is still there.
fn limit_http2(options: &mut HttpServerOptions, config: &Config) {
    options.h2_request_header_timeout = config.server.request_head_timeout.non_zero();
    options.h2_idle_timeout = config.server.keepalive_timeout.non_zero();
    options.h2_close_timeout = Some(HTTP2_CLOSE_TIMEOUT);
    options.h2_send_buffer_limit = Some(HTTP2_SEND_BUFFER);
    let rate = *config.server.http2.control_frames_per_second;
    options.h2_control_frames_per_second = (rate > 0).then_some(rate);
}

/// Limits that the h2 crate enforces. It derives its limit of CONTINUATION frames from the largest
/// head.
fn http2_options(config: &Config) -> H2Options {
    let limits = &config.server.http2;
    let mut options = default_h2_options();
    let max_head = u32::try_from(*config.server.max_request_head_bytes).unwrap_or(u32::MAX);
    options
        .max_header_list_size(max_head)
        .max_concurrent_streams(*limits.max_streams)
        .max_pending_accept_reset_streams(*limits.max_pending_resets)
        .max_local_error_reset_streams(Some(*limits.max_error_resets));
    options
}

/// Uses kernel TLS if it is wanted and there is any. `preflight` has refused `on` where there is none.
fn use_kernel_tls(choice: KernelTls, settings: &mut TlsSettings) {
    if choice == KernelTls::Off {
        return;
    }
    match tls::kernel_tls() {
        Ok(ciphers) => {
            info!("server.tls.ktls: the kernel has {ciphers}");
            tls::enable_kernel_tls(settings);
        }
        Err(why) => info!("server.tls.ktls: kernel TLS is not used: {why}"),
    }
}

/// The configuration of the cache; `None`: there is none.
fn cache_config(config: &Config, listeners: Listeners) -> Option<DiskCacheConfig> {
    let disk = &config.cache.disk;
    let folders = disk.folders();
    (!folders.is_empty()).then(|| DiskCacheConfig {
        min_free_bytes: disk.min_free_gb.map_or(0, Gigabytes::bytes),
        max_object_bytes: disk.max_object_gb.map(Gigabytes::bytes),
        blocks: config.cache.blocks.config(),
        sendfile: SendfileConfig {
            enabled: disk.sendfile.enabled,
            threshold_bytes: *disk.sendfile.threshold_bytes,
        },
        backend: disk.backend,
        memory_bytes: config.cache.memory.max_size_bytes(),
        metadata_bytes: config.cache.memory.max_metadata_bytes(),
        max_open_files: *disk.max_open_files,
        inactive: disk.inactive.non_zero(),
        min_uses: *config.cache.min_uses,
        fill_without_readers: *config.cache.fill_without_readers,
        max_fills: *config.cache.max_fills,
        scrub_bytes_per_second: disk.scrub_bytes_per_second(),
        successor: listeners == Listeners::Inherited,
        ..DiskCacheConfig::spread(folders)
    })
}
