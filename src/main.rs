//! `s3-proxy`: runs the proxy, checks a configuration, or shows a demo.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pingora_sendfile::config::Config;
use pingora_sendfile::proxy::server::ProxyServer;

/// A caching proxy for S3 that serves hits without copying them.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve, until SIGTERM (gracefully) or SIGINT.
    Run {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
    },
    /// Say what is wrong with a configuration: exit 0, or 2 and one line.
    Check {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
    },
    /// Serve sample files from an S3 server of its own; needs no account.
    #[cfg(feature = "demo")]
    Demo {
        /// The folder whose subfolders are buckets; default: a sample folder.
        #[arg(long)]
        root: Option<PathBuf>,
        /// Where to listen; default: port 8080, or any if it is taken.
        #[arg(long)]
        listen: Option<std::net::SocketAddr>,
    },
}

/// Without RUST_LOG. Pingora warns at each start that headers are stored
/// without a compression dictionary, which is as intended here.
const DEFAULT_LOG: &str = "warn,pingora_sendfile=info,pingora_cache::meta=error";

/// Exit code for a configuration that cannot be used.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| DEFAULT_LOG.into()),
        )
        .init();
    match Args::parse().command {
        Command::Run { config } => with_config(&config, |config| {
            finish(ProxyServer::new(&config).and_then(|server| server.run(|| ())))
        }),
        Command::Check { config } => with_config(&config, |_| {
            println!("{}: ok", config.display());
            ExitCode::SUCCESS
        }),
        #[cfg(feature = "demo")]
        Command::Demo { root, listen } => finish(demo::run(root, listen)),
    }
}

fn with_config(path: &std::path::Path, then: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::load(path) {
        Ok(config) => then(config),
        Err(e) => {
            eprintln!("s3-proxy: {e}");
            ExitCode::from(BAD_CONFIG)
        }
    }
}

fn finish<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("s3-proxy: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "demo")]
mod demo {
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
            .map(|bucket| bucket.path_prefix.clone())
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
}
