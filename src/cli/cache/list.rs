//! `s3-proxy cache ls`.

use std::time::{Duration, SystemTime};

use pingora_sendfile::cache::inspect::{Entry, Found};

use super::{damage, rfc3339, Cache};
use crate::cli::{Failure, Outcome, Output};

pub fn run(cache: &Cache, prefix: Option<&str>) -> Outcome {
    let prefixes = prefix
        .map(|prefix| {
            let beginning = prefix.strip_suffix('*').unwrap_or(prefix);
            cache
                .keys
                .beginning_with(beginning)
                .map_err(|e| Failure::Other(format!("{prefix}: {e}")))
        })
        .transpose()?;
    let wanted = |entry: &Entry| {
        prefixes.as_ref().is_none_or(|prefixes| {
            let key = &entry.meta.primary_key;
            let tag = entry.meta.key.user_tag.as_ref();
            prefixes.iter().any(|prefix| prefix.matches(tag, key))
        })
    };
    let now = SystemTime::now();
    let mut output = Output::new();
    for found in cache.folders.iter().flat_map(|(folder, _)| folder.walk()) {
        match found {
            Ok(Found::Entry(entry)) if wanted(&entry) => {
                if !output.line(line(cache, &entry, now))? {
                    return Ok(cache.exit_code());
                }
            }
            Ok(Found::Damaged(damaged)) => eprintln!("s3-proxy: damaged: {}", damage(&damaged)),
            Ok(Found::Entry(_) | Found::Leftover { .. }) => {}
            Err(e) => cache.report(e),
        }
    }
    output.flush()?;
    Ok(cache.exit_code())
}

fn line(cache: &Cache, entry: &Entry, now: SystemTime) -> String {
    let meta = &entry.meta;
    // An entry of a bucket that the configuration no longer names.
    let path = cache
        .path_of(meta)
        .unwrap_or_else(|| meta.primary_key.escape_ascii().to_string());
    format!(
        "{:>12} {} {:>7} {path} {}",
        meta.body_len,
        rfc3339(meta.stored_at),
        entry.fresh_for(now).map_or("stale".into(), span),
        entry.id
    )
}

/// A duration in its two largest units.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d{}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_two_units_at_most() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m0s"),
            (3599, "59m59s"),
            (3600, "1h0m"),
            (86399, "23h59m"),
            (86400, "1d0h"),
            (400 * 86400 + 7200, "400d2h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
    }
}
