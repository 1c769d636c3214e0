//! The `Age` field.

use http::header::{HeaderMap, AGE};

use super::cache_control::delta_seconds;
use super::fields::list;

/// The age that a response states, in seconds, at most 2^31 (RFC 9111 §5.1 and §1.2.2).
///
/// Of several values, the first one decides. None if there is none, or if it is invalid.
pub fn age_value(headers: &HeaderMap) -> Option<u32> {
    delta_seconds(list(headers, &AGE).next()?).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn age(lines: &[&str]) -> Option<u32> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(AGE, HeaderValue::from_str(line).unwrap());
        }
        age_value(&headers)
    }

    #[test]
    fn is_delta_seconds_or_ignored() {
        // RFC 9111 §5.1 and §1.2.2
        for (value, expected) in [
            ("0", Some(0)),
            ("3600", Some(3600)),
            ("007", Some(7)),
            ("2147483648", Some(1 << 31)),
            ("99999999999999999999", Some(1 << 31)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("10s", None),
            ("10;a=b", None),
            ("\"10\"", None),
            ("1 0", None),
        ] {
            assert_eq!(age(&[value]), expected, "{value:?}");
        }
        assert_eq!(age(&[]), None);
    }

    #[test]
    fn the_first_of_several_decides() {
        // RFC 9111 §5.1
        for (lines, expected) in [
            (&["10, 20"][..], Some(10)),
            (&["10", "20"], Some(10)),
            (&["10, x"], Some(10)),
            (&["x, 10"], None),
            (&["x", "10"], None),
            (&[", 10"], Some(10)),
        ] {
            assert_eq!(age(lines), expected, "{lines:?}");
        }
    }
}
