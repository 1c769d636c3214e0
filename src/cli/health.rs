//! `s3-proxy health`: asks a running proxy if it serves.

use std::process::ExitCode;

use pingora_sendfile::config::Config;

use super::{admin, Failure, Outcome};

/// `s3-proxy health --config FILE`.
pub fn run(config: &Config) -> Outcome {
    let answer = admin::health(config)?;
    if answer.status != 200 {
        let status = answer.status;
        return Err(Failure::Other(format!("/health: {status} {}", answer.text)));
    }
    Ok(ExitCode::SUCCESS)
}
