//! The log on standard error. Lines that strangers can cause are limited in number.
//!
//! Each call site of `error!`, `warn!` and `info!` may write [`BURST`] lines at once and
//! then one line each [`INTERVAL`]. The next line says how many were suppressed. A message
//! is cut after [`MAX_MESSAGE`] bytes, and its control characters are escaped, so that it
//! stays on one line and no terminal obeys it.
//!
//! `debug!` and `trace!` have no such limit, because only an operator turns them on. Lines
//! with the target [`OPERATOR`] have none either.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing_core::{Event, Level, Metadata, Subscriber};
use tracing_log::{AsLog, NormalizeEvent};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::EnvFilter;

use crate::metrics::METRICS;

/// The target of lines that an operator asked for. All of them are written.
pub const OPERATOR: &str = "pingora_sendfile::operator";

/// Lines of one call site that are written at once.
pub const BURST: u32 = 10;

/// The time between lines of one call site after a burst.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 1024;

/// The longest message of `debug!` and `trace!`, in bytes.
const MAX_DEBUG_MESSAGE: usize = 16 * 1024;

/// The most call sites with a budget of their own; further ones share one budget.
const MAX_SITES: usize = 1024;

/// The longest filter, in bytes.
pub const MAX_FILTER: usize = 4096;

/// The filter of the log, which [`init`] sets up.
static FILTER: OnceLock<Filter> = OnceLock::new();

/// A filter that can be replaced.
struct Filter {
    /// The filter of the program, and that of its start.
    default: String,
    first: String,
    current: Mutex<String>,
    replace: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

/// Writes the log to standard error. `RUST_LOG` sets what is logged; if it is not set,
/// `default` does.
///
/// # Panics
/// If the process has a logger already.
pub fn init(default: &str) {
    let ansi = std::io::stderr().is_terminal();
    let from_env = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let first = from_env.filter(|text| EnvFilter::try_new(text).is_ok());
    let first = first.unwrap_or_else(|| default.to_owned());
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_env_filter(first.as_str())
        .event_format(LimitedFormat {
            ansi,
            sites: Mutex::default(),
        })
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    // The first one stays: a second `init` has panicked.
    let _ = FILTER.set(Filter {
        default: default.to_owned(),
        current: Mutex::new(first.clone()),
        first,
        replace: Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())),
    });
}

/// The filter of the log; `None`: [`init`] has not been called.
pub fn filter() -> Option<String> {
    Some(FILTER.get()?.current.lock().clone())
}

/// Replaces the filter of the log. A level alone is that of the program's own lines; otherwise the text
/// is one for `RUST_LOG`. `None`: the filter of the start.
///
/// # Errors
/// The text is not a filter. The error says why.
pub fn set_filter(text: Option<&str>) -> Result<String, String> {
    let Some(filter) = FILTER.get() else {
        return Err("this process has another logger".to_owned());
    };
    let text = match text {
        None => filter.first.clone(),
        Some(text) => expand(text, &filter.default)?,
    };
    let parsed = EnvFilter::builder()
        .with_regex(false)
        .parse(&text)
        .map_err(|e| e.to_string())?;
    let mut current = filter.current.lock();
    (filter.replace)(parsed)?;
    // Lines of the `log` crate pass this limit first.
    log::set_max_level(LevelFilter::current().as_log());
    current.clone_from(&text);
    Ok(text)
}

/// A filter from what an operator writes. `default`: the filter of the program.
fn expand(text: &str, default: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_FILTER {
        return Err(format!("a filter has 1 to {MAX_FILTER} bytes"));
    }
    let is_level = text.bytes().all(|b| b.is_ascii_alphabetic());
    match is_level.then(|| text.parse::<LevelFilter>()) {
        // The later directive for a target counts.
        Some(Ok(level)) => Ok(format!("{default},{}={level}", env!("CARGO_CRATE_NAME"))),
        Some(Err(_)) => Err(format!(
            "{text:?} is not a level: write off, error, warn, info, debug or trace"
        )),
        None => Ok(text.to_owned()),
    }
}

/// Writes an event as one line, or not at all.
struct LimitedFormat {
    ansi: bool,
    sites: Mutex<Sites>,
}

/// The budgets of the call sites.
#[derive(Default)]
struct Sites(HashMap<u64, Site>);

/// The budget of a call site, by the generic cell rate algorithm (ITU-T I.371).
struct Site {
    /// The time when the budget is whole again.
    whole_at: Instant,
    suppressed: u64,
}

/// A message as it is written: on one line, and cut to a length.
struct Message {
    text: String,
    max: usize,
    cut: usize,
}

// === impl LimitedFormat ===

impl LimitedFormat {
    /// The number of lines suppressed before this one; `None`: this one is suppressed.
    fn admit(&self, metadata: &Metadata<'_>) -> Option<u64> {
        if !is_limited(metadata) {
            return Some(0);
        }
        let admitted = self.sites.lock().admit(call_site(metadata), Instant::now());
        if admitted.is_none() {
            METRICS.log_lines_suppressed.inc();
        }
        admitted
    }
}

fn is_limited(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO && metadata.target() != OPERATOR
}

fn call_site(metadata: &Metadata<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match (metadata.file(), metadata.line()) {
        (Some(file), Some(line)) => (file, line).hash(&mut hasher),
        _ => metadata.target().hash(&mut hasher),
    }
    hasher.finish()
}

impl<S, N> FormatEvent<S, N> for LimitedFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Events of the `log` crate have the metadata of their call site in fields.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let Some(suppressed) = self.admit(metadata) else {
            return Ok(());
        };
        let mut message = Message::new(if is_limited(metadata) {
            MAX_MESSAGE
        } else {
            MAX_DEBUG_MESSAGE
        });
        ctx.format_fields(Writer::new(&mut message), event)?;

        let (dim, colour, plain) = match self.ansi {
            true => ("\x1b[2m", colour(metadata.level()), "\x1b[0m"),
            false => ("", "", ""),
        };
        write!(writer, "{dim}")?;
        SystemTime.format_time(&mut writer)?;
        write!(
            writer,
            "{plain} {colour}{:>5}{plain} {dim}{}:{plain} {message}",
            metadata.level(),
            metadata.target()
        )?;
        if suppressed > 0 {
            write!(writer, " ({suppressed} similar lines suppressed)")?;
        }
        writeln!(writer)
    }
}

/// The colours of tracing-subscriber.
fn colour(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

// === impl Sites ===

impl Sites {
    fn admit(&mut self, site: u64, now: Instant) -> Option<u64> {
        let site = match self.0.len() < MAX_SITES || self.0.contains_key(&site) {
            true => site,
            false => 0,
        };
        let site = self.0.entry(site).or_insert(Site {
            whole_at: now,
            suppressed: 0,
        });
        let whole_at = site.whole_at.max(now);
        if whole_at > now + INTERVAL * (BURST - 1) {
            site.suppressed += 1;
            return None;
        }
        site.whole_at = whole_at + INTERVAL;
        Some(std::mem::take(&mut site.suppressed))
    }
}

// === impl Message ===

impl Message {
    fn new(max: usize) -> Self {
        Message {
            text: String::new(),
            max,
            cut: 0,
        }
    }

    fn push(&mut self, c: char) -> fmt::Result {
        // Bytes after the cut are only counted.
        if self.cut == 0 {
            let len = self.text.len();
            if changes_the_line(c) {
                write!(self.text, "{}", c.escape_default())?;
            } else {
                self.text.push(c);
            }
            if self.text.len() <= self.max {
                return Ok(());
            }
            self.text.truncate(len);
        }
        self.cut += c.len_utf8();
        Ok(())
    }
}

/// True for control characters, and those that end a line or change its direction (Unicode
/// Standard Annex #9). A terminal shows the others as they are.
pub fn changes_the_line(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.push(c))
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.cut > 0 {
            write!(f, "… ({} bytes cut)", self.cut)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(message: &str, max: usize) -> String {
        let mut limited = Message::new(max);
        limited.write_str(message).unwrap();
        limited.to_string()
    }

    #[test]
    fn a_call_site_writes_a_burst_and_then_a_line_each_interval() {
        let mut sites = Sites::default();
        let start = Instant::now();
        let mut admit = |site, at: Duration| sites.admit(site, start + at);
        for _ in 0..BURST {
            assert_eq!(admit(1, Duration::ZERO), Some(0));
        }
        for _ in 0..1234 {
            assert_eq!(admit(1, INTERVAL / 2), None);
        }
        // Another site has a budget of its own.
        assert_eq!(admit(2, INTERVAL / 2), Some(0));
        assert_eq!(admit(1, INTERVAL), Some(1234));
        assert_eq!(admit(1, INTERVAL), None);
        assert_eq!(admit(1, INTERVAL * 2), Some(1));
        // A quiet time restores the burst, and no more than that.
        let quiet = INTERVAL * (BURST + 100);
        for _ in 0..BURST {
            assert_eq!(admit(1, quiet), Some(0));
        }
        assert_eq!(admit(1, quiet), None);
    }

    #[test]
    fn call_sites_beyond_the_bound_share_a_budget() {
        let mut sites = Sites::default();
        let now = Instant::now();
        let admitted = (1..=10_000)
            .filter(|site| sites.admit(*site, now).is_some())
            .count();
        assert_eq!(admitted, MAX_SITES + BURST as usize);
        assert!(sites.0.len() <= MAX_SITES + 1);
    }

    #[test]
    fn a_message_is_one_line_that_ends() {
        for (message, line) in [
            ("plain", "plain"),
            ("a\nERROR b\r\x1b[31m\0", "a\\nERROR b\\r\\u{1b}[31m\\u{0}"),
            ("\u{202E}evil\u{2028}", "\\u{202e}evil\\u{2028}"),
            ("grüße", "grüße"),
        ] {
            assert_eq!(written(message, MAX_MESSAGE), line, "{message:?}");
        }
        for (message, line) in [
            ("0123456789", "0123456789"),
            ("0123456789ab", "0123456789… (2 bytes cut)"),
            // Neither a character nor an escape is cut in two.
            ("012345678ü1", "012345678… (3 bytes cut)"),
            ("012345678\n1", "012345678… (2 bytes cut)"),
        ] {
            assert_eq!(written(message, 10), line, "{message:?}");
        }
        let endless = "x".repeat(1 << 20);
        assert!(written(&endless, MAX_MESSAGE).len() < MAX_MESSAGE + 40);
    }
}
