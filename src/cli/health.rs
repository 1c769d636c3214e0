//! `s3-proxy health`: asks a running proxy if it serves, or if it is ready.

use std::process::ExitCode;

use pingora_sendfile::config::Config;

use super::{admin, Failure, Outcome};

/// `s3-proxy health --config FILE [--ready]`. All failures have the same exit code, also mistakes in the
/// configuration: Docker takes 0 and 1 from a health check, and reserves 2.
pub fn run(config: Result<Config, Failure>, is_ready: bool) -> Outcome {
    let path = if is_ready { "/ready" } else { "/health" };
    let answer = config.and_then(|config| admin::health(&config, path));
    let answer = answer.map_err(|e| Failure::Other(e.to_string()))?;
    if answer.status != 200 {
        let status = answer.status;
        return Err(Failure::Other(format!("{path}: {status} {}", answer.text)));
    }
    Ok(ExitCode::SUCCESS)
}
