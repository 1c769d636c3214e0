//! `s3-proxy purge`: asks a running proxy to remove objects from its cache.

use std::process::ExitCode;

use pingora_sendfile::config::Config;

use super::admin::AdminClient;
use super::{Failure, Outcome, Output};

/// `s3-proxy purge --config FILE PATH`.
pub fn run(config: &Config, path: &str) -> Outcome {
    send(&AdminClient::new(config)?, path)
}

/// Purges a path, and prints the result.
pub fn send(admin: &AdminClient, path: &str) -> Outcome {
    let answer = admin.purge(path)?;
    if answer.status != 200 {
        return Err(Failure::Other(format!("{path}: {}", answer.text)));
    }
    let mut output = Output::new();
    output.line(answer.text)?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}
