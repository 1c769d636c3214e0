//! Byte ranges of requests and of partial responses.

use std::ops::Range;

use http::header::{HeaderMap, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};

use super::fields::{members, trim_ows};

/// The media type of a body with several parts (RFC 9110 §14.6).
const MULTIPART: &[u8] = b"multipart/byteranges";

/// The meaning of a Range for a representation of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// The whole representation is served: the unit is another one, the Range is invalid, or it has
    /// too many ranges.
    Ignored,
    /// None of the ranges lies within the representation: 416.
    Unsatisfiable,
    /// One or more ranges in the order of the request, end exclusive. None is empty; none overlaps
    /// or touches another.
    Satisfiable(Vec<Range<u64>>),
}

/// A Content-Range (RFC 9110 §14.4). At least one of its values is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentRange {
    /// The enclosed bytes, end exclusive. None if the requested range is unsatisfiable.
    pub range: Option<Range<u64>>,
    /// The length of the whole representation, if the sender knows it.
    pub complete_length: Option<u64>,
}

/// Read a Range for a representation of `len` bytes (RFC 9110 §14.1.2 and §14.2).
///
/// Unsatisfiable ranges beside satisfiable ones are dropped. Ranges that overlap or touch become
/// one (§15.3.7.2), in the place of the first. A Range of more than `max_ranges`, counted before
/// that, is ignored: §14.2 permits it, for the reasons in §17.15. Positions that are too large to
/// represent are beyond any end.
///
/// An empty representation has no range, so even `bytes=-1` is unsatisfiable for it.
pub fn parse_range(value: &[u8], len: u64, max_ranges: usize) -> Ranges {
    let Some(set) = byte_range_set(value) else {
        return Ranges::Ignored;
    };
    let mut ranges = Vec::new();
    let mut count = 0;
    for spec in specs(set) {
        count += 1;
        match spec {
            Some(spec) if count <= max_ranges => {
                if let Some(range) = spec.within(len) {
                    coalesce(&mut ranges, range);
                }
            }
            _ => return Ranges::Ignored,
        }
    }
    match (count, ranges.is_empty()) {
        (0, _) => Ranges::Ignored,
        (_, true) => Ranges::Unsatisfiable,
        (_, false) => Ranges::Satisfiable(ranges),
    }
}

/// The first and last position, inclusive, of a Range with exactly one range that states its first
/// position: the part of its meaning that does not depend on the length. The last position is None
/// for a range without an end. None for a suffix, for several ranges, and for a Range that
/// [`parse_range`] ignores.
pub fn single_range(value: &[u8]) -> Option<(u64, Option<u64>)> {
    let mut specs = specs(byte_range_set(value)?);
    match (specs.next()??, specs.next()) {
        (Spec::From { first, last }, None) => Some((first, last)),
        _ => None,
    }
}

/// Read a Content-Range in bytes (RFC 9110 §14.4). None for another unit, and for an invalid value
/// such as an end beyond the complete length.
pub fn parse_content_range(value: &[u8]) -> Option<ContentRange> {
    let (unit, rest) = split_once(trim_ows(value), b' ')?;
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let (range, complete_length) = split_once(rest, b'/')?;
    let range = match range {
        b"*" => None,
        range => {
            let (first, last) = split_once(range, b'-')?;
            Some(exact(first)?..exact(last)?.checked_add(1)?)
        }
    };
    let complete_length = match complete_length {
        b"*" => None,
        length => Some(exact(length)?),
    };
    match (&range, complete_length) {
        (None, None) => return None,
        (Some(range), _) if range.is_empty() => return None,
        (Some(range), Some(length)) if range.end > length => return None,
        _ => {}
    }
    Some(ContentRange {
        range,
        complete_length,
    })
}

/// True if a Range is a byte range.
pub fn is_bytes(value: &[u8]) -> bool {
    byte_range_set(value).is_some()
}

/// True if a 206 states its range, and has the length of that range (RFC 9110 §15.3.7). The parts
/// of a multipart body are not checked.
pub fn is_consistent_part(response: &HeaderMap) -> bool {
    let is_multipart = response.get(CONTENT_TYPE).is_some_and(|of| {
        let of = of.as_bytes();
        of.len() >= MULTIPART.len() && of[..MULTIPART.len()].eq_ignore_ascii_case(MULTIPART)
    });
    let mut ranges = response.get_all(CONTENT_RANGE).into_iter();
    let range = match (ranges.next(), ranges.next()) {
        (None, None) => return is_multipart,
        (Some(range), None) => range,
        _ => return false,
    };
    let Some(range) = parse_content_range(range.as_bytes()).and_then(|range| range.range) else {
        return false;
    };
    let mut lengths = response.get_all(CONTENT_LENGTH).into_iter();
    lengths.all(|len| exact(trim_ows(len.as_bytes())) == Some(range.end - range.start))
}

/// True if a 206 has the requested range, or the beginning of it, which a server may send (RFC 9110
/// §15.3.7). Only single ranges are checked.
pub fn is_part_of(response: &HeaderMap, asked: &[u8]) -> bool {
    let mut specs = byte_range_set(asked).into_iter().flat_map(specs);
    let (Some(Some(spec)), None) = (specs.next(), specs.next()) else {
        return true;
    };
    let range = response.get(CONTENT_RANGE);
    let Some(part) = range.and_then(|range| parse_content_range(range.as_bytes())) else {
        return true;
    };
    let Some(range) = part.range else {
        return true;
    };
    match (spec, part.complete_length) {
        (Spec::From { first, last }, _) => {
            range.start == first && last.is_none_or(|last| range.end - 1 <= last)
        }
        (Spec::Suffix(len), Some(complete)) => range.start == complete.saturating_sub(len),
        (Spec::Suffix(_), None) => true,
    }
}

/// A valid range-spec.
enum Spec {
    From { first: u64, last: Option<u64> },
    Suffix(u64),
}

impl Spec {
    fn parse(spec: &[u8]) -> Option<Self> {
        let (first, last) = split_once(spec, b'-')?;
        if first.is_empty() {
            return Some(Self::Suffix(saturating(last)?));
        }
        let first = saturating(first)?;
        let last = match last {
            [] => None,
            last => Some(saturating(last)?),
        };
        if last.is_some_and(|last| last < first) {
            return None;
        }
        Some(Self::From { first, last })
    }

    /// The bytes of this range in a representation of `len` bytes. None if it is unsatisfiable.
    fn within(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From { first, last } => {
                first..last.map_or(len, |last| last.saturating_add(1).min(len))
            }
            Self::Suffix(length) => len.saturating_sub(length)..len,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// The range set behind `bytes=`.
fn byte_range_set(value: &[u8]) -> Option<&[u8]> {
    let (unit, set) = split_once(trim_ows(value), b'=')?;
    unit.eq_ignore_ascii_case(b"bytes").then_some(set)
}

/// The range-specs of a set. None for an invalid one.
fn specs(set: &[u8]) -> impl Iterator<Item = Option<Spec>> + '_ {
    members(set)
        .filter(|spec| !spec.is_empty())
        .map(Spec::parse)
}

/// Add a range to ranges of which none touches another.
fn coalesce(ranges: &mut Vec<Range<u64>>, mut range: Range<u64>) {
    let touches = |a: &Range<u64>, b: &Range<u64>| a.start <= b.end && b.start <= a.end;
    let Some(at) = ranges.iter().position(|other| touches(other, &range)) else {
        ranges.push(range);
        return;
    };
    let mut later = ranges.split_off(at);
    later.retain(|other| {
        let merged = touches(other, &range);
        if merged {
            range = range.start.min(other.start)..range.end.max(other.end);
        }
        !merged
    });
    ranges.push(range);
    ranges.append(&mut later);
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

fn exact(digits: &[u8]) -> Option<u64> {
    number(digits, |number, digit| {
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Read a number. One that is too large is [`u64::MAX`].
fn saturating(digits: &[u8]) -> Option<u64> {
    number(digits, |number, digit| {
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

fn number(digits: &[u8], append: impl Fn(u64, u64) -> Option<u64>) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        if !digit.is_ascii_digit() {
            return None;
        }
        append(number, u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const MAX: &str = "18446744073709551615";
    const BEYOND: &str = "99999999999999999999999";

    fn of_ten(value: &str) -> Ranges {
        parse_range(value.as_bytes(), 10, 4)
    }

    fn satisfiable(ranges: &[(u64, u64)]) -> Ranges {
        Ranges::Satisfiable(ranges.iter().map(|&(start, end)| start..end).collect())
    }

    #[test]
    fn positions_are_inclusive_and_end_with_the_content() {
        // RFC 9110 §14.1.2
        for (value, start, end) in [
            ("bytes=0-0", 0, 1),
            ("bytes=2-5", 2, 6),
            ("bytes=0-9", 0, 10),
            ("bytes=5-100", 5, 10),
            ("bytes=5-", 5, 10),
            ("bytes=0005-006", 5, 7),
            ("bytes=-3", 7, 10),
            ("bytes=-10", 0, 10),
            ("bytes=-11", 0, 10),
            (&format!("bytes=1-{MAX}"), 1, 10),
            (&format!("bytes=1-{BEYOND}"), 1, 10),
            (&format!("bytes=-{BEYOND}"), 0, 10),
        ] {
            assert_eq!(of_ten(value), satisfiable(&[(start, end)]), "{value}");
        }
    }

    #[test]
    fn another_unit_is_ignored_and_the_case_of_bytes_does_not_matter() {
        // RFC 9110 §14.2 and §14.1
        for value in ["seconds=0-1", "bytesx=0-1", "=0-1", "0-1", "bytes", ""] {
            assert_eq!(of_ten(value), Ranges::Ignored, "{value}");
        }
        for value in ["Bytes=0-1", "BYTES=0-1", " bytes=0-1\t"] {
            assert_eq!(of_ten(value), satisfiable(&[(0, 2)]), "{value}");
        }
    }

    #[test]
    fn an_invalid_range_set_is_ignored() {
        // RFC 9110 §14.1.1 and §14.1.2
        for value in [
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=5",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=0-b",
            "bytes=--1",
            "bytes=0--1",
            "bytes=-1-",
            "bytes=0-1-2",
            "bytes=+0-1",
            "bytes=0 -1",
            "bytes=0- 1",
            "bytes=0.0-1",
            "bytes =0-1",
            "bytes:0-1",
            "bytes=0-1;2-3",
            "bytes=0-1,x",
            "bytes=x,0-1",
            "bytes=20-30,5-4",
            "bytes=\"0-1\"",
        ] {
            assert_eq!(of_ten(value), Ranges::Ignored, "{value}");
        }
    }

    #[test]
    fn unsatisfiable_only_if_no_range_is_satisfiable() {
        // RFC 9110 §14.1.2 and §15.5.17
        for value in [
            "bytes=10-",
            "bytes=10-20",
            "bytes=-0",
            "bytes=10-,-0,11-12",
            &format!("bytes={MAX}-"),
            &format!("bytes={BEYOND}-{BEYOND}"),
        ] {
            assert_eq!(of_ten(value), Ranges::Unsatisfiable, "{value}");
        }
        assert_eq!(of_ten("bytes=-0,10-,4-4"), satisfiable(&[(4, 5)]));
    }

    #[test]
    fn an_empty_representation_has_no_range() {
        for value in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"] {
            let ranges = parse_range(value.as_bytes(), 0, 4);
            assert_eq!(ranges, Ranges::Unsatisfiable, "{value}");
        }
    }

    #[test]
    fn the_largest_representation_does_not_overflow() {
        for (value, start, end) in [
            ("bytes=0-", 0, u64::MAX),
            ("bytes=-1", u64::MAX - 1, u64::MAX),
            (&format!("bytes=5-{MAX}"), 5, u64::MAX),
        ] {
            let ranges = parse_range(value.as_bytes(), u64::MAX, 1);
            assert_eq!(ranges, satisfiable(&[(start, end)]), "{value}");
        }
    }

    #[test]
    fn a_list_may_have_white_space_and_empty_elements() {
        // RFC 9110 §5.6.1.2
        for value in [
            "bytes=0-1,4-5",
            "bytes= 0-1 ,\t4-5 ",
            "bytes=,0-1,,4-5,",
            "bytes=0-1 , , 4-5",
        ] {
            assert_eq!(of_ten(value), satisfiable(&[(0, 2), (4, 6)]), "{value}");
        }
    }

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        // RFC 9110 §15.3.7.2
        for (value, expected) in [
            ("bytes=0-2,2-4", &[(0, 5)][..]),
            ("bytes=0-1,2-3", &[(0, 4)]),
            ("bytes=2-3,0-1", &[(0, 4)]),
            ("bytes=0-9,3-4", &[(0, 10)]),
            ("bytes=3-4,0-9", &[(0, 10)]),
            ("bytes=0-1,0-1", &[(0, 2)]),
            ("bytes=0-0,4-4,1-3", &[(0, 5)]),
            ("bytes=8-,0-0,-3", &[(7, 10), (0, 1)]),
            ("bytes=6-6,0-0,2-2,1-1", &[(6, 7), (0, 3)]),
            ("bytes=0-0,6-6,2-2,1-6", &[(0, 7)]),
        ] {
            assert_eq!(of_ten(value), satisfiable(expected), "{value}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_request() {
        // RFC 9110 §15.3.7.2
        let expected = satisfiable(&[(6, 8), (0, 1), (3, 4)]);
        assert_eq!(of_ten("bytes=6-7,0-0,3-3"), expected);
    }

    #[test]
    fn too_many_ranges_are_ignored() {
        // RFC 9110 §14.2 and §17.15
        for (value, max_ranges, ignored) in [
            ("bytes=0-0", 1, false),
            ("bytes=0-0,2-2", 1, true),
            ("bytes=0-0,0-0", 1, true),
            ("bytes=20-,30-", 1, true),
            ("bytes=,0-0,", 1, false),
            ("bytes=0-0", 0, true),
        ] {
            let ranges = parse_range(value.as_bytes(), 10, max_ranges);
            assert_eq!(ranges == Ranges::Ignored, ignored, "{value}");
        }
    }

    #[test]
    fn a_single_range_is_known_by_its_positions() {
        for (value, expected) in [
            ("bytes=0-", Some((0, None))),
            ("bytes=5-9", Some((5, Some(9)))),
            ("BYTES=5-9,", Some((5, Some(9)))),
            (&format!("bytes=0-{BEYOND}"), Some((0, Some(u64::MAX)))),
            ("bytes=-5", None),
            ("bytes=0-1,4-5", None),
            ("bytes=0-1,x", None),
            ("bytes=9-5", None),
            ("bytes=", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(single_range(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn content_range_names_a_part_or_the_length() {
        // RFC 9110 §14.4
        for (value, range, complete_length) in [
            ("bytes 42-1233/1234", Some(42..1234), Some(1234)),
            ("bytes 42-1233/*", Some(42..1234), None),
            ("bytes */1234", None, Some(1234)),
            ("bytes */0", None, Some(0)),
            ("Bytes 0-0/1", Some(0..1), Some(1)),
        ] {
            let expected = ContentRange {
                range,
                complete_length,
            };
            let content_range = parse_content_range(value.as_bytes());
            assert_eq!(content_range, Some(expected), "{value}");
        }
    }

    #[test]
    fn an_invalid_content_range_is_none() {
        // RFC 9110 §14.4
        for value in [
            "",
            "bytes",
            "bytes 0-1",
            "bytes */*",
            "bytes 2-1/10",
            "bytes 1-0/10",
            "bytes 0-10/10",
            "bytes 5-/10",
            "bytes -5/10",
            "bytes 0-1/",
            "bytes /10",
            "bytes  0-1/10",
            "bytes=0-1/10",
            "bytes 0 - 1/10",
            "bytes 0-1/10/10",
            "bytes 0-1/x",
            "lines 0-1/10",
            &format!("bytes 0-{MAX}/*"),
            &format!("bytes 0-1/{BEYOND}"),
        ] {
            assert_eq!(parse_content_range(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn a_part_has_the_bytes_that_it_says() {
        // RFC 9110 §15.3.7
        let range = |value| ("content-range", value);
        let len = |value| ("content-length", value);
        let multipart = ("content-type", "Multipart/ByteRanges; boundary=b");
        for (fields, expected) in [
            (&[range("bytes 0-4/10"), len("5")][..], true),
            (&[range("bytes 0-4/*"), len("5")], true),
            (&[range("bytes 0-4/10")], true),
            (&[range("bytes 0-4/10"), len("4")], false),
            (&[range("bytes 0-4/10"), len("6")], false),
            (&[range("bytes 0-4/3"), len("5")], false),
            (&[range("bytes */10"), len("5")], false),
            (&[range("bytes 0-4/10"), range("bytes 0-4/10")], false),
            (&[len("5")], false),
            (&[multipart, len("100")], true),
            (&[("content-type", "multipart"), len("100")], false),
        ] {
            let mut response = HeaderMap::new();
            for (name, value) in fields {
                response.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(is_consistent_part(&response), expected, "{fields:?}");
        }
    }
}
