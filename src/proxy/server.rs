//! A Pingora server from a configuration.

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pingora_core::listeners::tls::TlsSettings;
use pingora_core::listeners::TcpSocketOptions;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::listening::Service;
use socket2::{Domain, Protocol, Socket, Type};

use super::S3ProxyHttp;
use crate::cache::{DiskCache, DiskCacheConfig, SendfileConfig};
use crate::config::Config;
use crate::metrics::MetricsApp;

/// Why a server could not be set up; one line that names the remedy.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(e: io::Error) -> Self {
        StartError(e.to_string())
    }
}

/// An address to listen on, known before anybody listens.
struct Endpoint {
    address: SocketAddr,
    /// Keeps a port that the kernel chose from being given to somebody else.
    reservation: Option<Socket>,
}

impl Endpoint {
    /// Check that `address` is free, and let the kernel choose its port if that
    /// is 0.
    fn reserve(address: SocketAddr, key: &str) -> Result<Endpoint, StartError> {
        let bind = || {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            if address.port() == 0 {
                // Pingora binds the same port again while this socket holds it.
                // It never listens, so it takes no connection away.
                socket.set_reuse_port(true)?;
            } else {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&address.into())?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            Ok((socket, bound))
        };
        let (socket, bound) = bind().map_err(|e: io::Error| {
            StartError(format!(
                "{key}: cannot listen on {address}: {e}; stop what listens there, or choose another address"
            ))
        })?;
        Ok(Endpoint {
            address: bound,
            reservation: (address.port() == 0).then_some(socket),
        })
    }

    fn options(&self) -> TcpSocketOptions {
        let mut options = TcpSocketOptions::default();
        options.so_reuseport = self.reservation.is_some().then_some(true);
        options
    }
}

/// A server that is set up and not yet running.
pub struct ProxyServer {
    server: Server,
    http: Endpoint,
    https: Option<Endpoint>,
    metrics: Option<Endpoint>,
}

impl ProxyServer {
    /// Open the cache and set up the services that `config` asks for.
    pub fn new(config: &Config) -> Result<ProxyServer, StartError> {
        let http = Endpoint::reserve(config.server.address, "server.address")?;
        let https = match &config.server.tls {
            Some(tls) => Some(Endpoint::reserve(tls.address, "server.tls.address")?),
            None => None,
        };
        let metrics = match &config.metrics {
            Some(metrics) => Some(Endpoint::reserve(metrics.address, "metrics.address")?),
            None => None,
        };
        let disk = &config.cache.disk;
        let cache = if disk.enabled {
            Some(DiskCache::open(DiskCacheConfig {
                sendfile: SendfileConfig {
                    enabled: disk.sendfile.enabled,
                    threshold_bytes: disk.sendfile.threshold_bytes,
                },
                ..DiskCacheConfig::new(&disk.path, disk.max_size_bytes())
            })?)
        } else {
            None
        };
        let proxy = S3ProxyHttp::new(config, cache).map_err(|e| StartError(e.to_string()))?;

        let conf = ServerConf {
            threads: config.server.threads,
            grace_period_seconds: Some(config.server.grace_period.as_secs()),
            graceful_shutdown_timeout_seconds: Some(5),
            ..ServerConf::default()
        };
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.bootstrap();

        let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
        service.add_tcp_with_settings(&http.address.to_string(), http.options());
        if let (Some(tls), Some(endpoint)) = (&config.server.tls, &https) {
            let settings = TlsSettings::intermediate(
                &tls.certificate.to_string_lossy(),
                &tls.key.to_string_lossy(),
            )
            .map(|mut settings| {
                settings.enable_h2();
                settings
            })
            .map_err(|e| {
                StartError(format!(
                    "server.tls: {} and {} cannot be used: {e}",
                    tls.certificate.display(),
                    tls.key.display()
                ))
            })?;
            service.add_tls_with_settings(
                &endpoint.address.to_string(),
                Some(endpoint.options()),
                settings,
            );
        }
        server.add_service(service);
        if let Some(endpoint) = &metrics {
            let mut service = Service::new("metrics".into(), MetricsApp::new(cache));
            service.add_tcp_with_settings(&endpoint.address.to_string(), endpoint.options());
            service.threads = Some(1);
            server.add_service(service);
        }
        Ok(ProxyServer {
            server,
            http,
            https,
            metrics,
        })
    }

    /// The address that clients use.
    pub fn address(&self) -> SocketAddr {
        self.http.address
    }

    /// The address of `/metrics` and `/health`.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|endpoint| endpoint.address)
    }

    /// Serve until a signal ends it. `announce` is called once connections are
    /// accepted, on a thread of its own.
    pub fn run(self, announce: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let mut lines = vec![format!("s3-proxy: serving http://{}", self.http.address)];
        let mut addresses = vec![self.http.address];
        if let Some(https) = &self.https {
            lines.push(format!("s3-proxy: serving https://{}", https.address));
            addresses.push(https.address);
        }
        if let Some(metrics) = &self.metrics {
            lines.push(format!(
                "s3-proxy: metrics http://{}/metrics",
                metrics.address
            ));
            addresses.push(metrics.address);
        }
        lines.push("s3-proxy: ready".into());
        std::thread::Builder::new()
            .name("announce".into())
            .spawn(move || {
                for address in addresses {
                    wait_for(address);
                }
                // Nobody may be reading; that is no reason to stop serving.
                let _ = writeln!(io::stdout(), "{}", lines.join("\n"));
                announce();
            })?;
        self.server.run(RunArgs::default());
        Ok(())
    }
}

/// Pingora does not tell when it listens; a connection does.
fn wait_for(mut address: SocketAddr) {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
