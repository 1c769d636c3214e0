//! The configuration as YAML.
//!
//! serde_json writes it, with a formatter that replaces braces by lines and indentation: a JSON
//! string is also a YAML 1.2 string.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::variables::escape;
use super::Config;

pub(super) fn to_yaml(config: &Config) -> String {
    let mut yaml = Vec::new();
    let mut to = Serializer::with_formatter(&mut yaml, Yaml::default());
    // Neither writing to a Vec nor serializing the model can fail.
    let written = config.serialize(&mut to);
    debug_assert!(written.is_ok(), "{written:?}");
    let yaml = String::from_utf8_lossy(&yaml);
    // Strings are quoted, so a space at the end of a line is not part of one.
    yaml.lines()
        .fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

#[derive(Default)]
struct Yaml {
    depth: usize,
    in_key: bool,
    /// True while the line is not ended.
    open: bool,
    /// True while the line is only a dash, which the first key of a section follows.
    after_dash: bool,
    empty_list: bool,
}

// === impl Yaml ===

impl Yaml {
    fn indent<W: ?Sized + io::Write>(&self, to: &mut W) -> io::Result<()> {
        (1..self.depth).try_for_each(|_| to.write_all(b"  "))
    }

    fn end_line<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        match std::mem::take(&mut self.open) {
            true => to.write_all(b"\n"),
            false => Ok(()),
        }
    }

    fn quote<W: ?Sized + io::Write>(&self, to: &mut W) -> io::Result<()> {
        match self.in_key {
            true => Ok(()),
            false => to.write_all(b"\""),
        }
    }
}

impl Formatter for Yaml {
    fn begin_object<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth += 1;
        match self.after_dash {
            true => Ok(()),
            false => self.end_line(to),
        }
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.depth -= 1;
        Ok(())
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, to: &mut W, _: bool) -> io::Result<()> {
        self.in_key = true;
        match std::mem::take(&mut self.after_dash) {
            true => Ok(()),
            false => self.indent(to),
        }
    }

    fn end_object_key<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.in_key = false;
        Ok(())
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.open = true;
        to.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.end_line(to)
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.depth += 1;
        self.empty_list = true;
        Ok(())
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth -= 1;
        match std::mem::take(&mut self.empty_list) {
            true => to.write_all(b"[]"),
            false => Ok(()),
        }
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, to: &mut W, _: bool) -> io::Result<()> {
        self.empty_list = false;
        self.end_line(to)?;
        self.indent(to)?;
        self.after_dash = true;
        self.open = true;
        to.write_all(b"- ")
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.after_dash = false;
        self.end_line(to)
    }

    fn begin_string<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.quote(to)
    }

    fn end_string<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.quote(to)
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in escape(fragment).chars() {
            match c {
                // Unprintable or line breaks in YAML, but not in JSON.
                '\u{7f}'..='\u{9f}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{feff}'
                | '\u{fffe}'
                | '\u{ffff}' => write!(to, "\\u{:04x}", u32::from(c))?,
                c => write!(to, "{c}")?,
            }
        }
        Ok(())
    }
}
