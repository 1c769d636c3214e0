//! Errors that name file, line, column, key, problem and remedy.

use std::fmt;
use std::path::Path;

/// The mistakes of a configuration, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    mistakes: Vec<Mistake>,
}

/// A mistake, displayed as one line: `FILE:LINE:COLUMN: key: problem; remedy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    file: String,
    place: Option<Place>,
    key: Option<String>,
    what: String,
}

/// A position in the file, in lines and characters from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character of the line.
    pub column: usize,
}

// === impl ConfigError ===

impl ConfigError {
    /// The error of at least one mistake.
    pub fn new(mut mistakes: Vec<Mistake>) -> ConfigError {
        mistakes.sort_by_key(|mistake| mistake.place);
        ConfigError { mistakes }
    }

    /// The mistakes, at least one.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl From<Mistake> for ConfigError {
    fn from(mistake: Mistake) -> Self {
        ConfigError::new(vec![mistake])
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let line_end = if index > 0 { "\n" } else { "" };
            write!(f, "{line_end}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

// === impl Mistake ===

impl Mistake {
    /// `what`: the problem and the remedy.
    pub(super) fn new(file: &Path, place: Option<Place>, key: Option<&str>, what: &str) -> Mistake {
        Mistake {
            file: one_line(&file.display().to_string()),
            place,
            key: key.map(one_line),
            what: one_line(what),
        }
    }

    /// The full path of the key that is wrong, such as `buckets[0].access_key`; `None`
    /// for the file as a whole.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The position of the mistake; `None` if the file cannot be read, or is empty.
    pub fn place(&self) -> Option<Place> {
        self.place
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.what)
    }
}

fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let kept = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}
