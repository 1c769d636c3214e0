//! Heads of HTTP/1.1 messages (RFC 9112, sections 2 to 5), read strictly.

use std::fmt;

/// Header fields in the order received, names compared without case. Each character of a
/// value is one byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    fields: Vec<(String, String)>,
}

/// A start line and the header fields below it.
pub(crate) struct Head {
    pub(crate) start_line: String,
    pub(crate) headers: Headers,
}

/// The longest head that is read; beyond it the peer is broken.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// The end of the head in `buffer`, the empty line included.
pub(crate) fn end_of_head(buffer: &[u8]) -> Option<usize> {
    buffer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// Text in which each character is one byte.
pub(crate) fn octets(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u8::try_from(c).unwrap_or_else(|_| panic!("{c:?} is not one byte")))
        .collect()
}

// === impl Headers ===

impl Headers {
    /// The value of a field that must not appear twice; panics where it does.
    pub fn get(&self, name: &str) -> Option<&str> {
        match self.all(name)[..] {
            [] => None,
            [value] => Some(value),
            _ => panic!("{name} appears more than once"),
        }
    }

    /// Every value of a field, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    /// Every field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.fields
            .retain(|(field, _)| !field.eq_ignore_ascii_case(name));
    }

    pub(crate) fn push(&mut self, name: &str, value: &str) {
        self.fields.push((name.to_owned(), value.to_owned()));
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter()
            .try_for_each(|(name, value)| write!(f, "{name}: {value}\r\n"))
    }
}

// === impl Head ===

impl Head {
    /// `bytes` ends with the empty line. Each byte is a character of its value, so that
    /// obs-text (RFC 9110, section 5.5) can be compared. The error says what is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text: String = bytes.iter().copied().map(char::from).collect();
        let text = text
            .strip_suffix("\r\n\r\n")
            .ok_or("the head has no empty line at its end")?;
        let mut lines = text.split("\r\n");
        let start_line = lines.next().unwrap_or_default().to_owned();
        let mut headers = Headers::default();
        for line in lines {
            let (name, value) = line
                .split_once(':')
                .filter(|(name, _)| is_token(name))
                .ok_or_else(|| format!("not a header field: {line:?}"))?;
            let value = value.trim_matches([' ', '\t']);
            if value.contains(['\r', '\n', '\0']) {
                return Err(format!("control characters in the field {name:?}"));
            }
            headers.push(name, value);
        }
        Ok(Self {
            start_line,
            headers,
        })
    }
}

// RFC 9110, section 5.6.2.
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_without_case() {
        let head =
            Head::parse(b"HTTP/1.1 200 OK\r\nETag: \"x\"\r\nVia: a\r\nvia: b\r\n\r\n").unwrap();
        assert_eq!(head.start_line, "HTTP/1.1 200 OK");
        assert_eq!(head.headers.get("etag"), Some("\"x\""));
        assert_eq!(head.headers.all("VIA"), ["a", "b"]);
    }

    #[test]
    fn folded_lines_and_spaces_before_the_colon_are_refused() {
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n").is_err());
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n").is_err());
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n").is_err());
    }
}
