//! A bench whose program also is the server that it measures: `test_support`
//! starts it as it starts `s3-proxy`, with `run --config FILE`.

use std::{
    env,
    path::{Path, PathBuf},
};

use pingora_sendfile::config::Config;
use test_support::{Proxy, ProxyBuilder};
use tracing_subscriber::EnvFilter;

/// A server that is this program in its other role.
pub fn builder() -> ProxyBuilder {
    Proxy::builder(env::current_exe().expect("the path of this program"))
}

/// The configuration to serve, and its file; None: this process is the bench.
pub fn to_serve() -> Option<(Config, PathBuf)> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [command, flag, file] = arguments.as_slice() else {
        return None;
    };
    if (command.as_str(), flag.as_str()) != ("run", "--config") {
        return None;
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::new("warn"))
        .init();
    let config = Config::load(Path::new(file)).unwrap_or_else(|e| panic!("{e}"));
    Some((config, file.into()))
}
