//! `s3-proxy upgrade`: has the running proxy start a new process, and hand over to it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pingora_sendfile::config::Config;
use pingora_sendfile::proxy::control::{self, Order};
use pingora_sendfile::proxy::upgrade::PREDECESSOR;

use super::reload::{report, send};
use super::{preflight, Failure, Outcome};

/// The longest time for an upgrade: the new process finds the entries of the cache first.
const LIMIT: Duration = Duration::from_secs(900);

/// The longest time for the old process to take a reason.
const EXPLAIN_LIMIT: Duration = Duration::from_secs(5);

/// `s3-proxy upgrade --config FILE [--binary PATH]`.
pub fn run(file: &Path, config: &Config, binary: Option<PathBuf>) -> Outcome {
    preflight(config)?;
    let binary = match binary {
        Some(binary) => fs::canonicalize(&binary)
            .map_err(|e| Failure::Other(format!("--binary {}: {e}", binary.display())))?,
        None => env::current_exe()?,
    };
    let order = Order::Upgrade {
        binary,
        config: fs::canonicalize(file)?,
        upgrade_sock: config.server.upgrade_sock.as_deref().map(Path::to_owned),
    };
    report(send(config, &order, LIMIT)?)
}

/// Tells the process that has started this one why it does not take over.
pub fn explain(failure: &Failure) {
    let Some(sock) = env::var_os(PREDECESSOR) else {
        return;
    };
    let why = failure.to_string();
    // It waits for the end of this process in any case.
    let _ = control::send(Path::new(&sock), &Order::Explain { why }, EXPLAIN_LIMIT);
}
