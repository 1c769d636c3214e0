//! Texts and numbers in the room of a terminal.

use pingora_sendfile::proxy::status::bytes;
use ratatui::text::Span;

use super::super::status::percent;
use super::rates::Rate;

/// A text without its middle if it is wider than `room`: names differ at their ends.
pub fn elided(text: &str, room: usize) -> String {
    if columns(text) <= room {
        return text.to_owned();
    }
    let Some(room) = room.checked_sub(1) else {
        return String::new();
    };
    let begin = prefix(text, room / 3);
    let rest: String = text.chars().rev().collect();
    let end: String = prefix(&rest, room - columns(begin)).chars().rev().collect();
    format!("{begin}…{end}")
}

/// The lines of a text, of at most `width` columns, broken between words where that is possible.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let gap = usize::from(!line.is_empty());
        if columns(&line) + gap + columns(word) <= width {
            line.push_str(&" "[..gap]);
            line.push_str(word);
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        let mut rest = word;
        while columns(rest) > width {
            // At least one character, however wide.
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let (part, after) = rest.split_at(prefix(rest, width).len().max(first));
            lines.push(part.to_owned());
            rest = after;
        }
        rest.clone_into(&mut line);
    }
    if lines.is_empty() || !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// As many of the parts of a line as it has room for, and the first one in any case.
pub fn joined(parts: Vec<String>, room: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { "" } else { "  " };
        if !line.is_empty() && columns(&line) + gap.len() + columns(&part) > room {
            break;
        }
        line.push_str(gap);
        line.push_str(&part);
    }
    line
}

/// The longest beginning of a text of at most `room` columns.
fn prefix(text: &str, room: usize) -> &str {
    let mut width = 0;
    let ends = text.char_indices().find(|(at, c)| {
        width += columns(&text[*at..*at + c.len_utf8()]);
        width > room
    });
    ends.map_or(text, |(at, _)| &text[..at])
}

/// The width of a text in a terminal.
fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

// --- numbers ---

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn per_second(rate: Rate) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}/s"),
        Some(rate) => format!("{}/s", count(rate.round() as u64)),
    }
}

pub fn bytes_per_second(rate: Rate) -> String {
    rate.map_or("-".to_owned(), |rate| format!("{}/s", bytes(rate as u64)))
}

pub fn share(part: u64, whole: u64) -> String {
    percent(part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_both_ends() {
        for (text, room, expected) in [
            ("/assets/a", 9, "/assets/a"),
            ("/assets/a", 8, "/a…ets/a"),
            ("/assets/2024/part-0001", 12, "/as…art-0001"),
            ("/assets/a", 2, "…a"),
            ("/assets/a", 1, "…"),
            ("/assets/a", 0, ""),
            ("", 0, ""),
            // Two columns each.
            ("日本語日本語", 7, "日…本語"),
            ("日本語日本語", 2, "…"),
        ] {
            let shown = elided(text, room);
            assert_eq!(shown, expected, "{text} in {room}");
            assert!(columns(&shown) <= room);
        }
    }

    #[test]
    fn a_text_is_broken_between_words_where_it_can_be() {
        for (text, width, expected) in [
            ("a warning", 20, &["a warning"][..]),
            ("a warning of a disk", 9, &["a warning", "of a disk"]),
            ("the directory /a/b", 5, &["the", "direc", "tory", "/a/b"]),
            ("ab", 1, &["a", "b"]),
            ("ab", 0, &["a", "b"]),
            ("日本", 1, &["日", "本"]),
            ("", 5, &[""]),
        ] {
            assert_eq!(wrapped(text, width), expected, "{text} in {width}");
        }
    }

    #[test]
    fn numbers_fit_their_columns() {
        for (number, expected) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(count(number), expected);
        }
        for (rate, expected) in [
            (None, "-"),
            (Some(0.0), "0/s"),
            (Some(0.26), "0.3/s"),
            (Some(9.96), "10/s"),
            (Some(12_345.4), "12,345/s"),
        ] {
            assert_eq!(per_second(rate), expected);
        }
        assert_eq!(bytes_per_second(Some(1_234_567.0)), "1.2 MB/s");
        assert_eq!((&*share(1, 4), &*share(0, 0)), ("25.0 %", "0.0 %"));
    }
}
