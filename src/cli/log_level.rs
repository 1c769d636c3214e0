//! `s3-proxy log-level`: shows or changes what a running proxy logs.

use std::process::ExitCode;
use std::time::Duration;

use pingora_sendfile::config::Config;

use super::admin::AdminClient;
use super::{Failure, Outcome, Output};

/// The longest wait for the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `s3-proxy log-level --config FILE [FILTER | --reset]`.
pub fn run(config: &Config, filter: Option<&str>, reset: bool) -> Outcome {
    let method = match filter {
        Some(_) => "PUT",
        None if reset => "DELETE",
        None => "GET",
    };
    let mut proxy = AdminClient::new(config)?.connection();
    let body = filter.unwrap_or_default();
    let answer = proxy.ask_with(method, "/log-level", body, Some(PATIENCE))?;
    if answer.status != 200 {
        return Err(Failure::Other(answer.text));
    }
    let mut output = Output::new();
    output.line(answer.text)?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}
