//! `s3-proxy demo`: the proxy in front of an S3 server of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use pingora_sendfile::config::Config;
use pingora_sendfile::demo::{write_sample_folder, S3Server, SAMPLE_BUCKET};
use pingora_sendfile::proxy::server::ProxyServer;

const ACCESS_KEY: &str = "demo-access-key";
const SECRET_KEY: &str = "demo-secret-key";

/// The usual port if it is free, else one that the kernel chooses.
fn local(port: u16) -> SocketAddr {
    let free = TcpListener::bind(("127.0.0.1", port)).is_ok();
    ([127, 0, 0, 1], if free { port } else { 0 }).into()
}

pub fn run(
    root: Option<PathBuf>,
    listen: Option<SocketAddr>,
) -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::Builder::new().prefix("s3-proxy-demo").tempdir()?;
    let samples = root.is_none();
    let root = match root {
        Some(root) => root,
        None => {
            let root = folder.path().join("s3");
            write_sample_folder(&root)?;
            root
        }
    };
    let origin = S3Server::start(&root, ACCESS_KEY, SECRET_KEY)?;
    let config = config(
        &root,
        origin.addr(),
        folder.path(),
        listen.unwrap_or_else(|| local(8080)),
    )?;
    let server = ProxyServer::new(&config)?;
    let (proxy, metrics) = (server.address(), server.metrics_address());
    let prefixes: Vec<_> = config
        .buckets
        .iter()
        .filter_map(|bucket| bucket.path_prefix.clone())
        .collect();
    server.run(move || {
        println!();
        println!(
            "S3 server:  http://{} over {}",
            origin.addr(),
            root.display()
        );
        for prefix in prefixes {
            println!("proxy:      http://{proxy}{prefix}/<key>");
        }
        if samples {
            let url = format!("http://{proxy}/{SAMPLE_BUCKET}/10MiB.bin");
            println!();
            println!("A miss, which fills the cache:");
            println!("  curl -sD- -o /dev/null {url}");
            println!("A hit, which goes by sendfile:");
            println!("  curl -sD- -o /dev/null {url}");
            if let Some(metrics) = metrics {
                println!("What was counted:");
                println!("  curl -s http://{metrics}/metrics | grep ^cache_");
            }
        }
        println!();
        println!("Ctrl-C ends it.");
        // The S3 server lives as long as the process.
        std::mem::forget(origin);
    })?;
    Ok(())
}

fn config(
    root: &Path,
    origin: SocketAddr,
    folder: &Path,
    listen: SocketAddr,
) -> Result<Config, Box<dyn std::error::Error>> {
    let mut buckets = String::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            buckets += &format!(
                "  - path_prefix: '/{name}'\n    bucket: '{name}'\n    region: us-east-1\n    endpoint: http://{origin}\n    access_key: {ACCESS_KEY}\n    secret_key: {SECRET_KEY}\n"
            );
        }
    }
    let cache = folder.join("cache");
    let text = format!(
        "server:\n  address: {listen}\n  grace_period: 0\nbuckets:\n{buckets}cache:\n  disk:\n    path: '{}'\n    max_size_gb: 1\nmetrics:\n  address: {}\n",
        cache.display(),
        local(9090)
    );
    Ok(Config::parse(&text, Path::new("demo"), &|_| None)?)
}
