//! The ranges of a request are the bytes that it asks for, as a set of bytes tells,
//! and neither overlap nor touch.

#![no_main]

mod seeds;

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use pingora_sendfile::http::rules::range::{parse_content_range, parse_range, single_range, Ranges};

/// Bytes of a representation small enough for a set of them.
const SMALL: u64 = 64;
const MAX_RANGES: usize = 16;

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    let Some((len, value)) = data.split_first_chunk() else {
        return;
    };
    let len = u64::from_be_bytes(*len);
    check(value, len);
    check(value, len % SMALL);
    let set = [b"bytes=", value].concat();
    check(&set, len);
    check(&set, len % SMALL);
    compare(&set, len % SMALL);

    check_content_range(value);
    check_content_range(&[b"bytes ", value].concat());
});

fn check(value: &[u8], len: u64) {
    let ranges = parse_range(value, len, MAX_RANGES);
    match &ranges {
        Ranges::Ignored | Ranges::Unsatisfiable => {}
        Ranges::Satisfiable(ranges) => {
            assert!((1..=MAX_RANGES).contains(&ranges.len()));
            for range in ranges {
                assert!(range.start < range.end && range.end <= len, "{ranges:?}");
            }
            let mut sorted = ranges.clone();
            sorted.sort_by_key(|range| range.start);
            for pair in sorted.windows(2) {
                assert!(pair[0].end < pair[1].start, "{ranges:?}");
            }
        }
    }
    // Ignoring it does not depend on the length.
    let ignored = parse_range(value, 0, MAX_RANGES) == Ranges::Ignored;
    assert_eq!(ranges == Ranges::Ignored, ignored);

    if let Some((first, last)) = single_range(value) {
        assert!(last.is_none_or(|last| first <= last));
        let expected = if first < len {
            let end = last.map_or(len, |last| last.saturating_add(1).min(len));
            Ranges::Satisfiable(vec![first..end])
        } else {
            Ranges::Unsatisfiable
        };
        assert_eq!(ranges, expected);
    }
}

/// With the bytes that RFC 9110 §14.1.2 says each range-spec selects.
fn compare(value: &[u8], len: u64) {
    let set = String::from_utf8_lossy(&value[b"bytes=".len()..]);
    let Some(specs) = model(&set) else {
        assert_eq!(
            parse_range(value, len, usize::MAX),
            Ranges::Ignored,
            "{set}"
        );
        return;
    };
    let bytes: BTreeSet<_> = specs
        .iter()
        .flat_map(|spec| (0..len).filter(|&at| selects(spec, at, len)))
        .collect();
    match parse_range(value, len, specs.len()) {
        Ranges::Ignored => assert!(specs.is_empty(), "{specs:?}"),
        Ranges::Unsatisfiable => assert!(bytes.is_empty(), "{specs:?}"),
        Ranges::Satisfiable(ranges) => {
            let first = specs
                .iter()
                .find_map(|spec| (0..len).find(|&at| selects(spec, at, len)));
            assert!(ranges[0].contains(&first.expect("a satisfiable range")));
            let parsed: BTreeSet<_> = ranges.into_iter().flatten().collect();
            assert_eq!(parsed, bytes, "{specs:?}");
        }
    }
    if let Some(fewer) = specs.len().checked_sub(1) {
        assert_eq!(parse_range(value, len, fewer), Ranges::Ignored);
    }
}

/// First and last position, each absent in one form.
type Spec = (Option<u64>, Option<u64>);

/// None if it is invalid.
fn model(set: &str) -> Option<Vec<Spec>> {
    set.split(',')
        .map(|spec| spec.trim_matches([' ', '\t']))
        .filter(|spec| !spec.is_empty())
        .map(|spec| {
            let (first, last) = spec.split_once('-')?;
            match (position(first)?, position(last)?) {
                (None, None) => None,
                (Some(first), Some(last)) if last < first => None,
                spec => Some(spec),
            }
        })
        .collect()
}

/// None in the place of no digits.
fn position(digits: &str) -> Option<Option<u64>> {
    let valid = digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| (!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX)))
}

fn selects(spec: &Spec, at: u64, len: u64) -> bool {
    match *spec {
        (Some(first), last) => first <= at && last.is_none_or(|last| at <= last),
        (None, suffix) => suffix.is_some_and(|suffix| at.saturating_add(suffix) >= len),
    }
}

fn check_content_range(value: &[u8]) {
    let Some(content_range) = parse_content_range(value) else {
        return;
    };
    let range = content_range.range;
    let range_text = match &range {
        Some(range) => {
            assert!(range.start < range.end);
            assert!(content_range
                .complete_length
                .is_none_or(|len| range.end <= len));
            format!("{}-{}", range.start, range.end - 1)
        }
        None => "*".to_owned(),
    };
    let length_text = match content_range.complete_length {
        Some(length) => length.to_string(),
        None => "*".to_owned(),
    };
    let again = parse_content_range(format!("bytes {range_text}/{length_text}").as_bytes())
        .expect("a valid Content-Range");
    assert_eq!(again.range, range);
    assert_eq!(again.complete_length, content_range.complete_length);
}

fn examples() -> Vec<Vec<u8>> {
    [
        "0-0",
        "2-5, 7-",
        "-3",
        " 8- ,, 0-0,-3\t,6-6",
        "0-18446744073709551615, 99999999999999999999-",
        "bytes=0-1",
        "0-1/10",
        "*/10",
        "bytes 5-9/*",
    ]
    .iter()
    .map(|value| [&10_u64.to_be_bytes(), value.as_bytes()].concat())
    .collect()
}
