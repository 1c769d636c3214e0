//! Entity tags.

use super::fields::trim_ows;

/// A valid entity tag (RFC 9110 §8.8.3).
#[derive(Debug, Clone, Copy)]
pub struct EntityTag<'a> {
    weak: bool,
    opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    /// Read an entity tag without anything around it. None if it is not quoted, or has a character
    /// that it must not have.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (weak, quoted) = match value.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, value),
        };
        let opaque = quoted.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        opaque
            .iter()
            .all(|byte| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..))
            .then_some(Self { weak, opaque })
    }

    /// Strong comparison (RFC 9110 §8.8.3.2): equal, and neither is weak.
    pub fn strong_eq(&self, other: &EntityTag) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    /// True for a strong validator.
    pub fn is_strong(&self) -> bool {
        !self.weak
    }

    /// Weak comparison (RFC 9110 §8.8.3.2): equal, weak or not.
    pub fn weak_eq(&self, other: &EntityTag) -> bool {
        self.opaque == other.opaque
    }
}

/// The members of If-Match or If-None-Match, including invalid entity tags, without empty ones.
///
/// An entity tag is no quoted string: it may contain commas, and a backslash escapes nothing (RFC
/// 9110 §8.8.3).
pub(super) fn entity_tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        while let [b',' | b' ' | b'\t', after @ ..] = rest {
            rest = after;
        }
        let opening = match rest {
            [] => return None,
            [b'"', ..] => Some(0),
            [b'W', b'/', b'"', ..] => Some(2),
            _ => None,
        };
        let position = |byte, from: usize| {
            let found = rest[from..].iter().position(|&other| other == byte);
            found.map_or(rest.len(), |at| from + at)
        };
        let quoted = opening.map_or(0, |opening| position(b'"', opening + 1));
        let (member, after) = rest.split_at(position(b',', quoted));
        rest = after;
        Some(trim_ows(member))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_grammar_allows_is_valid() {
        // RFC 9110 §8.8.3
        for valid in [
            &b"\"\""[..],
            b"\"xyzzy\"",
            b"W/\"xyzzy\"",
            b"\"a,b\"",
            b"\"a\\\"",
            b"\"\xff\"",
        ] {
            assert!(EntityTag::parse(valid).is_some(), "{valid:?}");
        }
        for invalid in [
            &b""[..],
            b"\"",
            b"W/",
            b"W/\"",
            b"*",
            b"xyzzy",
            b"\"xyzzy",
            b"xyzzy\"",
            b"w/\"xyzzy\"",
            b"W/xyzzy",
            b"W/ \"xyzzy\"",
            b" \"xyzzy\"",
            b"\"a b\"",
            b"\"a\"b\"",
            b"\"a\x7f\"",
        ] {
            assert!(EntityTag::parse(invalid).is_none(), "{invalid:?}");
        }
    }

    #[test]
    fn strong_and_weak_comparison() {
        // The table of RFC 9110 §8.8.3.2.
        for (a, b, strong, weak) in [
            ("W/\"1\"", "W/\"1\"", false, true),
            ("W/\"1\"", "W/\"2\"", false, false),
            ("W/\"1\"", "\"1\"", false, true),
            ("\"1\"", "\"1\"", true, true),
        ] {
            let [a, b] = [a, b].map(|tag| EntityTag::parse(tag.as_bytes()).unwrap());
            assert_eq!(a.strong_eq(&b), strong, "{a:?} {b:?}");
            assert_eq!(b.strong_eq(&a), strong, "{b:?} {a:?}");
            assert_eq!(a.weak_eq(&b), weak, "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_list_is_split_outside_of_entity_tags() {
        for (line, expected) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("\"a\"", &["\"a\""]),
            (" \"a\" ,W/\"b\",, \"c\"", &["\"a\"", "W/\"b\"", "\"c\""]),
            ("\"a,b\", \"c\"", &["\"a,b\"", "\"c\""]),
            ("\"a\\\", \"b\"", &["\"a\\\"", "\"b\""]),
            ("abc, d e ,\"f\"", &["abc", "d e", "\"f\""]),
            ("\"a\"b, \"c\"", &["\"a\"b", "\"c\""]),
            ("a\"b, \"c\"", &["a\"b", "\"c\""]),
            ("\"a, \"b\"", &["\"a, \"b\""]),
            ("\"a", &["\"a"]),
            ("W/\"", &["W/\""]),
        ] {
            let members: Vec<_> = entity_tags(line.as_bytes()).collect();
            let expected: Vec<_> = expected.iter().map(|tag| tag.as_bytes()).collect();
            assert_eq!(members, expected, "{line}");
        }
    }
}
