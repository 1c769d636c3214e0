//! Text of strangers in a line: bounded, and unable to end a field or the line.

use crate::logging::changes_the_line;

/// Stands at the end of a text that was cut.
const CUT: &[u8] = b"...";

/// The place of a text, which decides on its escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A JSON string (RFC 8259 §7). What is not UTF-8 becomes U+FFFD.
    Json,
    /// A quoted field of the combined format. Every byte that is not printable ASCII is `\xHH`, as in
    /// nginx.
    Quoted,
    /// A field of the combined format that ends with a space.
    Bare,
}

/// A text that is being written.
pub(super) struct Text<'a> {
    line: &'a mut Vec<u8>,
    place: Place,
    /// The length of the line at which the text is cut.
    end: usize,
    is_cut: bool,
}

// === impl Text ===

impl<'a> Text<'a> {
    /// A text of at most `max` bytes, escapes included, and the mark of a cut.
    pub fn new(line: &'a mut Vec<u8>, place: Place, max: usize) -> Text<'a> {
        Text {
            end: line.len() + max,
            line,
            place,
            is_cut: false,
        }
    }

    /// True if the text has reached its end, and takes no more.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Append what a client has sent.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.end.saturating_sub(self.line.len());
        if !self.is_cut && bytes.len() <= room && self.place.takes(bytes) {
            self.line.extend_from_slice(bytes);
        } else {
            self.push_slowly(bytes);
        }
    }

    #[cold]
    fn push_slowly(&mut self, mut bytes: &[u8]) {
        while !self.is_cut {
            let special = bytes.iter().position(|b| self.place.is_special(*b));
            let (plain, rest) = bytes.split_at(special.unwrap_or(bytes.len()));
            let fits = plain.len().min(self.end.saturating_sub(self.line.len()));
            self.line.extend_from_slice(&plain[..fits]);
            if fits < plain.len() {
                self.cut();
                return;
            }
            if rest.is_empty() {
                return;
            }
            bytes = self.push_special(rest);
        }
    }

    /// Append the special bytes at the beginning of `bytes`. Returns the others.
    fn push_special<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        if self.place != Place::Json {
            let [_, _, high, low] = hex(bytes[0].into());
            self.push_escape(&[b'\\', b'x', high, low]);
            return &bytes[1..];
        }
        if let [b @ (b'"' | b'\\'), rest @ ..] = bytes {
            self.push_escape(&[b'\\', *b]);
            return rest;
        }
        let len = char_len(bytes);
        match std::str::from_utf8(&bytes[..len]).map(|text| text.chars().next()) {
            Ok(Some(c)) if !changes_the_line(c) => self.push_escape(&bytes[..len]),
            // All of these are in the first plane.
            Ok(Some(c)) => {
                let [first, second, third, last] = hex(c.into());
                self.push_escape(&[b'\\', b'u', first, second, third, last]);
            }
            _ => self.push_escape("\u{FFFD}".as_bytes()),
        }
        &bytes[len..]
    }

    /// Append an escape, which is never cut in two.
    fn push_escape(&mut self, escape: &[u8]) {
        if self.line.len() + escape.len() > self.end {
            return self.cut();
        }
        self.line.extend_from_slice(escape);
    }

    fn cut(&mut self) {
        if !self.is_cut {
            self.line.extend_from_slice(CUT);
        }
        self.is_cut = true;
    }
}

// === impl Place ===

impl Place {
    /// True for bytes that are not written as they are.
    #[inline]
    fn is_special(self, b: u8) -> bool {
        let is_space = b == b' ' && self == Place::Bare;
        !(0x20..0x7F).contains(&b) | (b == b'"') | (b == b'\\') | is_space
    }

    /// True if all bytes of a text are written as they are. It looks at eight of them at once.
    #[inline]
    fn takes(self, bytes: &[u8]) -> bool {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [b'a'; 8];
        last[..rest.len()].copy_from_slice(rest);
        let found = words.iter().fold(self.special_in(last), |found, word| {
            found | self.special_in(*word)
        });
        found == 0
    }

    /// Not 0 if a byte is special. See "Bit Twiddling Hacks" (Anderson), "Determine if a word has a
    /// byte less than n".
    #[inline]
    fn special_in(self, word: [u8; 8]) -> u64 {
        const ONES: u64 = u64::MAX / 255;
        const HIGHS: u64 = ONES * 0x80;
        let word = u64::from_ne_bytes(word);
        let is_less = |word: u64, than: u8| word.wrapping_sub(ONES * u64::from(than)) & !word;
        let is = |byte: u8| is_less(word ^ (ONES * u64::from(byte)), 1);
        let first = if self == Place::Bare { 0x21 } else { 0x20 };
        (word | is_less(word, first) | is(b'"') | is(b'\\') | is(0x7F)) & HIGHS
    }
}

/// The length of the character at the beginning of a text; that of a byte that begins none is 1.
fn char_len(bytes: &[u8]) -> usize {
    let longest = bytes.len().min(4);
    let is_char = |len: &usize| std::str::from_utf8(&bytes[..*len]).is_ok();
    (1..=longest).find(is_char).unwrap_or(1)
}

/// A number in four hexadecimal digits.
fn hex(number: u32) -> [u8; 4] {
    [12, 8, 4, 0].map(|shift| b"0123456789ABCDEF"[(number >> shift) as usize & 15])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(place: Place, text: &[u8], max: usize) -> String {
        let mut line = b"before ".to_vec();
        Text::new(&mut line, place, max).push(text);
        String::from_utf8(line).unwrap()["before ".len()..].to_owned()
    }

    #[test]
    fn no_text_ends_its_string_or_its_line() {
        for (text, json, quoted, bare) in [
            (
                &b"plain text"[..],
                "plain text",
                "plain text",
                "plain\\x20text",
            ),
            (b"\"", "\\\"", "\\x22", "\\x22"),
            (b"\\", "\\\\", "\\x5C", "\\x5C"),
            (
                b"a\r\nb",
                "a\\u000D\\u000Ab",
                "a\\x0D\\x0Ab",
                "a\\x0D\\x0Ab",
            ),
            (
                b"\0\x1b[31m\x7f",
                "\\u0000\\u001B[31m\\u007F",
                "\\x00\\x1B[31m\\x7F",
                "\\x00\\x1B[31m\\x7F",
            ),
            ("ü".as_bytes(), "ü", "\\xC3\\xBC", "\\xC3\\xBC"),
            (
                "\u{85}\u{202E}\u{2028}".as_bytes(),
                "\\u0085\\u202E\\u2028",
                "\\xC2\\x85\\xE2\\x80\\xAE\\xE2\\x80\\xA8",
                "\\xC2\\x85\\xE2\\x80\\xAE\\xE2\\x80\\xA8",
            ),
            (
                b"\xff\xc3(",
                "\u{FFFD}\u{FFFD}(",
                "\\xFF\\xC3(",
                "\\xFF\\xC3(",
            ),
            (
                "😀".as_bytes(),
                "😀",
                "\\xF0\\x9F\\x98\\x80",
                "\\xF0\\x9F\\x98\\x80",
            ),
        ] {
            assert_eq!(written(Place::Json, text, 100), json, "{text:?}");
            assert_eq!(written(Place::Quoted, text, 100), quoted, "{text:?}");
            assert_eq!(written(Place::Bare, text, 100), bare, "{text:?}");
        }
    }

    #[test]
    fn special_bytes_are_found_anywhere_in_a_text() {
        for place in [Place::Json, Place::Quoted, Place::Bare] {
            for (len, at) in (1..=20).flat_map(|len| (0..len).map(move |at| (len, at))) {
                for b in 0..=u8::MAX {
                    let mut text = vec![b'~'; len];
                    text[at] = b;
                    let has_special = place.is_special(b);
                    assert_eq!(place.takes(&text), !has_special, "{place:?} {text:?}");
                }
            }
        }
    }

    #[test]
    fn json_that_is_read_again_is_the_text() {
        let text: String = (0..=0x2100).filter_map(char::from_u32).collect();
        let line = format!(
            "\"{}\"",
            written(Place::Json, text.as_bytes(), usize::MAX / 2)
        );
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn a_long_text_is_cut_between_escapes() {
        for (place, text, cut) in [
            (Place::Json, "0123456789", "0123456789"),
            (Place::Json, "0123456789a", "0123456789..."),
            (Place::Json, "01234567\n9", "01234567..."),
            (Place::Json, "012345678ü", "012345678..."),
            (Place::Quoted, "0123456\n", "0123456..."),
            (Place::Quoted, "012345\n", "012345\\x0A"),
        ] {
            assert_eq!(written(place, text.as_bytes(), 10), cut, "{text:?}");
        }
        // Text after a cut is left out too.
        let mut line = Vec::new();
        let mut text = Text::new(&mut line, Place::Json, 3);
        for piece in ["ab", "cd", "e"] {
            text.push(piece.as_bytes());
        }
        assert_eq!(line, b"abc...");
    }
}
