//! `s3-proxy reload`: has the running proxy read its configuration again.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pingora_sendfile::config::Config;
use pingora_sendfile::proxy::control::{self, Order, Report};

use super::{preflight, Failure, Outcome, Output};

/// The longest time for a reload, which reads a few files.
const LIMIT: Duration = Duration::from_secs(60);

/// `s3-proxy reload --config FILE`. The file is checked here first, so that a mistake has the exit code
/// of `check`.
pub fn run(file: &Path, config: &Config) -> Outcome {
    preflight(config)?;
    let order = Order::Reload {
        config: fs::canonicalize(file)?,
    };
    report(send(config, &order, LIMIT)?)
}

/// Sends an order to the running proxy.
pub fn send(config: &Config, order: &Order, limit: Duration) -> Result<Report, Failure> {
    let Some(sock) = config.server.control_sock.as_deref() else {
        let what =
            "is missing; write the path of a socket in a folder of the proxy's own, such as \
                    /run/s3-proxy/control.sock, and start the proxy again";
        return Err(config.mistake("server.control_sock", what).into());
    };
    control::send(sock, order, limit).map_err(|e| {
        let sock = sock.display();
        Failure::Other(format!(
            "no proxy answers at {sock}, server.control_sock: {e}; start one with this configuration, or \
             run this command as its user"
        ))
    })
}

/// Prints the report of a proxy.
pub fn report(report: Report) -> Outcome {
    if !report.done {
        return Err(Failure::Other(report.lines.join("\n")));
    }
    let mut output = Output::new();
    for line in report.lines {
        output.line(line)?;
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}
