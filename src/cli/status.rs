//! `s3-proxy status`: shows the state of a running proxy.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use pingora_sendfile::config::Config;
use pingora_sendfile::logging::changes_the_line;
use pingora_sendfile::proxy::status::{bytes, period, Status};

use super::admin::{AdminClient, AdminConnection};
use super::{Failure, Outcome, Output};

/// The longest wait for the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The width of the names before values, in characters.
const NAMES: usize = 12;

/// `s3-proxy status --config FILE [--json]`.
pub fn run(config: &Config, json: bool) -> Outcome {
    let mut proxy = AdminClient::new(config)?.connection();
    let text = match json {
        true => ask(&mut proxy)?,
        false => text(&fetch(&mut proxy)?),
    };
    let mut output = Output::new();
    output.line(text.trim_end())?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The present state. Its texts have no characters that a terminal obeys.
pub fn fetch(proxy: &mut AdminConnection) -> Result<Status, Failure> {
    read(&ask(proxy)?)
}

fn ask(proxy: &mut AdminConnection) -> Result<String, Failure> {
    let answer = proxy.ask("GET", "/status", Some(PATIENCE))?;
    match answer.status {
        200 => Ok(answer.text),
        status => {
            let why = plain(&answer.text);
            Err(Failure::Other(format!("/status: {status} {why}")))
        }
    }
}

fn read(json: &str) -> Result<Status, Failure> {
    let mut status: Status = serde_json::from_str(json).map_err(|e| {
        let what = "the proxy sends a status that cannot be read";
        Failure::Other(format!("{what}: {e}; use the s3-proxy of its version"))
    })?;
    // Paths of objects are encoded, names of directories and buckets are not.
    let cache = status.cache.iter_mut();
    let folders = cache.flat_map(|cache| &mut cache.folders);
    let origins = status.origins.iter_mut();
    let texts = [&mut status.version]
        .into_iter()
        .chain(&mut status.unready)
        .chain(folders.map(|folder| &mut folder.path))
        .chain(origins.flat_map(|origin| [&mut origin.bucket, &mut origin.origin]))
        .chain(status.top_keys.iter_mut().map(|top| &mut top.path))
        .chain(&mut status.warnings);
    for text in texts {
        *text = plain(text);
    }
    Ok(status)
}

/// The state as lines of text.
pub fn text(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:NAMES$} {value}");
    };
    line("version", status.version.clone());
    line(
        "process",
        format!("{}, up {}", status.pid, period(status.uptime_seconds)),
    );
    line(
        "ready",
        match status.ready {
            true => "yes".to_owned(),
            false => format!("no: {}", status.unready.join("; ")),
        },
    );
    line("connections", status.connections.to_string());
    let requests = &status.requests;
    line("requests", requests_line(status));
    line(
        "errors",
        format!("{} responses, {} stale", requests.errors, requests.stale),
    );
    line("sent", sent_line(status));
    if let Some(cache) = &status.cache {
        line(
            "cache",
            format!(
                "{} entries, {} of {}, {} fills in flight{}",
                cache.entries,
                bytes(cache.size_bytes),
                bytes(cache.max_size_bytes),
                cache.fills_in_flight,
                match cache.load_progress {
                    ..1.0 => format!(", {} listed", percent(cache.load_progress)),
                    _ => String::new(),
                }
            ),
        );
        for folder in &cache.folders {
            let state = if folder.up { "up" } else { "DOWN" };
            let free = folder.free_bytes.map_or("?".to_owned(), bytes);
            line(
                "directory",
                format!(
                    "{}: {state}, {} entries, {} of {}, {free} free",
                    folder.path,
                    folder.entries,
                    bytes(folder.size_bytes),
                    bytes(folder.max_size_bytes),
                ),
            );
        }
    }
    for origin in &status.origins {
        let state = match origin.up {
            true => "up".to_owned(),
            false => format!("DOWN, {} failures", origin.failures),
        };
        let (bucket, host) = (&origin.bucket, &origin.origin);
        line("origin", format!("{bucket} at {host}: {state}"));
    }
    for top in &status.top_keys {
        line("key", format!("{:>6} {}", percent(top.share), top.path));
    }
    for warning in &status.warnings {
        line("WARNING", warning.clone());
    }
    text
}

/// Requests, and the share of hits.
pub fn requests_line(status: &Status) -> String {
    let requests = &status.requests;
    let ratio = requests.hit_ratio.map_or("none".to_owned(), percent);
    format!(
        "{} hits, {} misses, hit ratio {ratio}, {} to origins",
        requests.hits, requests.misses, requests.origin
    )
}

/// Body bytes, by their way.
pub fn sent_line(status: &Status) -> String {
    let sent = &status.bytes;
    format!(
        "{}: {} sendfile, {} ktls, {} memory, {} copied",
        bytes(sent.total),
        bytes(sent.sendfile),
        bytes(sent.ktls),
        bytes(sent.memory),
        bytes(sent.copied)
    )
}

/// A text without characters that a terminal obeys.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if changes_the_line(c) { '\u{fffd}' } else { c })
        .collect()
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use pingora_sendfile::proxy::status::{Cache, Folder, Origin, TopKey};

    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_a_name_holds() {
        let shown = plain("a\u{1b}]0;b\u{7}\n\u{9b}31m\u{202e}c é");
        assert_eq!(shown, "a\u{fffd}]0;b\u{fffd}\u{fffd}\u{fffd}31m\u{fffd}c é");

        let evil = || "\u{1b}[2Jx".to_owned();
        let status = Status {
            version: evil(),
            unready: vec![evil()],
            cache: Some(Cache {
                folders: vec![Folder {
                    path: evil(),
                    ..Folder::default()
                }],
                ..Cache::default()
            }),
            origins: vec![Origin {
                bucket: evil(),
                origin: evil(),
                ..Origin::default()
            }],
            top_keys: vec![TopKey {
                path: evil(),
                share: 1.0,
            }],
            warnings: vec![evil()],
            ..Status::default()
        };
        let json = serde_json::to_string(&status).expect("JSON");
        let text = text(&read(&json).expect("a status"));
        assert_eq!(text.matches("\u{fffd}[2Jx").count(), 7, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
