//! `s3-proxy drain`: has a running proxy send its clients away.

use std::process::ExitCode;

use pingora_sendfile::config::Config;

use super::admin::AdminClient;
use super::{Failure, Outcome, Output};

/// `s3-proxy drain --config FILE [--undo]`.
pub fn run(config: &Config, undo: bool) -> Outcome {
    let method = if undo { "DELETE" } else { "POST" };
    let answer = AdminClient::new(config)?.ask(method, "/drain")?;
    if answer.status != 200 {
        return Err(Failure::Other(answer.text));
    }
    let mut output = Output::new();
    output.line(answer.text)?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}
