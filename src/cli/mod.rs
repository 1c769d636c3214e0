//! The commands, and their common parts.

pub mod admin;
pub mod cache;
#[cfg(feature = "demo")]
pub mod demo;
pub mod drain;
pub mod health;
pub mod log_level;
pub mod manual;
pub mod purge;
pub mod reload;
pub mod status;
#[cfg(feature = "top")]
pub mod top;
pub mod upgrade;
pub mod warm;

use std::fmt::{self, Write as _};
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::process::ExitCode;

use pingora_sendfile::config::{Config, ConfigError, Mistake};
use pingora_sendfile::proxy::preflight;

/// The exit code of a command that did not fail.
pub type Outcome = Result<ExitCode, Failure>;

/// The reason a command failed: one line that names the remedy, or one for each mistake in a
/// configuration.
#[derive(Debug)]
pub enum Failure {
    /// The configuration cannot be used, at least for this command.
    Config(String),
    /// The command line cannot be used here.
    #[cfg(feature = "top")]
    Usage(String),
    /// Anything else.
    Other(String),
}

// === impl Failure ===

impl Failure {
    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Config(_) => ExitCode::from(2),
            #[cfg(feature = "top")]
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Other(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "top")]
            Failure::Usage(why) => f.write_str(why),
            Failure::Config(why) | Failure::Other(why) => f.write_str(why),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Self {
        Failure::Config(e.to_string())
    }
}

impl From<Mistake> for Failure {
    fn from(e: Mistake) -> Self {
        Failure::Config(e.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Failure::Other(e.to_string())
    }
}

/// Checks that this machine has all that the configuration names.
pub fn preflight(config: &Config) -> Result<(), Failure> {
    let unfit = preflight::check(config);
    if unfit.is_empty() {
        return Ok(());
    }
    let mistakes = unfit
        .iter()
        .map(|unfit| config.mistake(unfit.key(), unfit.what()));
    Err(ConfigError::new(mistakes.collect()).into())
}

/// Standard output, whose reader may leave early, as `head` does.
pub struct Output(BufWriter<StdoutLock<'static>>);

// === impl Output ===

impl Output {
    pub fn new() -> Self {
        Output(BufWriter::new(io::stdout().lock()))
    }

    /// Writes a line. False: the reader has left.
    pub fn line(&mut self, line: impl fmt::Display) -> io::Result<bool> {
        still_read(writeln!(self.0, "{line}"))
    }

    /// Writes the rest of the buffer.
    pub fn flush(&mut self) -> io::Result<bool> {
        still_read(self.0.flush())
    }
}

fn still_read(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// The prefix of a query that names a version of an object.
const VERSION: &str = "?versionId=";

/// A path of the proxy, given as an argument. Characters that a path cannot contain are
/// percent-encoded; existing percent-encoding is kept.
///
/// `?` and `#` are part of a name, not of a query. Only `?versionId=` names a version.
pub fn url_path(argument: &str) -> Result<String, String> {
    if !argument.starts_with('/') {
        return Err("it does not start with /; write the path as clients request it".into());
    }
    let bytes = argument.as_bytes();
    let mut path = String::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        let is_escape = || {
            let digits = bytes.get(at + 1..at + 3);
            digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        };
        let stays = match byte {
            b'%' => is_escape(),
            b'?' => argument[at..].starts_with(VERSION),
            b'#' => false,
            byte => byte.is_ascii_graphic(),
        };
        if stays {
            path.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::url_path;

    #[test]
    fn a_path_is_encoded_where_it_must_be() {
        for (argument, path) in [
            ("/assets/a*", "/assets/a*"),
            ("/a b", "/a%20b"),
            ("/a%20b", "/a%20b"),
            ("/a%2A", "/a%2A"),
            ("/100%", "/100%25"),
            ("/100%2", "/100%252"),
            ("/50%zz", "/50%25zz"),
            ("/grüße", "/gr%C3%BC%C3%9Fe"),
            ("/a?b#c", "/a%3Fb%23c"),
            ("/a\nb", "/a%0Ab"),
            ("/a+b&c", "/a+b&c"),
            ("/a?versionId=1", "/a?versionId=1"),
        ] {
            assert_eq!(url_path(argument).as_deref(), Ok(path));
        }
        assert!(url_path("assets/a").is_err());
        assert!(url_path("").is_err());
    }
}
