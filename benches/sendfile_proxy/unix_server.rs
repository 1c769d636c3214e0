//! The proxy behind a Unix socket, which `s3-proxy` itself does not offer.

use std::{
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use pingora_core::{
    server::{
        configuration::{Opt, ServerConf},
        RunArgs, Server,
    },
    services::listening::Service,
};
use pingora_sendfile::{
    cache::{DiskCache, DiskCacheConfig, SendfileConfig},
    config::Config,
    metrics::MetricsApp,
    proxy::{Listener, S3ProxyHttp},
};

/// The socket of the server of this configuration file.
pub fn socket(config: &Path) -> PathBuf {
    config.with_file_name("proxy.sock")
}

/// Serves until the process is killed. Says what `s3-proxy` says when it is
/// ready.
pub fn run(config: &Config, file: &Path) {
    let disk = &config.cache.disk;
    let cache = DiskCache::open(DiskCacheConfig {
        sendfile: SendfileConfig {
            enabled: disk.sendfile.enabled,
            threshold_bytes: *disk.sendfile.threshold_bytes,
        },
        memory_bytes: config.cache.memory.max_size_bytes(),
        max_open_files: *disk.max_open_files,
        ..DiskCacheConfig::spread(disk.folders())
    })
    .expect("open the cache");
    let proxy = S3ProxyHttp::new(config, Some(cache));

    let conf = ServerConf {
        threads: *config.server.threads,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(Opt::default(), conf);
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
    let socket = socket(file);
    service.add_uds(socket.to_str().expect("a path in UTF-8"), None);
    server.add_service(service);

    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = Listener::reserve(any, "the metrics").expect("find a free port");
    let mut metrics = Service::new("metrics".into(), MetricsApp::new(Some(cache)));
    metrics.add_tcp_with_settings(&listener.address().to_string(), listener.options());
    metrics.threads = Some(1);
    server.add_service(metrics);

    server.bootstrap();
    thread::spawn(move || {
        // Pingora does not tell when it listens; a connection does.
        while UnixStream::connect(&socket).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        listener.wait_until_served();
        println!("s3-proxy: metrics http://{}/metrics", listener.address());
        println!("s3-proxy: ready");
    });
    server.run(RunArgs::default());
}
