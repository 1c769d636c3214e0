//! The field `traceparent` (Trace Context, W3C Recommendation).

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceFlags, TraceId};

/// The field that names the span from which a request comes.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The field with what tracing systems add to it.
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of the field in version 00. Later versions may append to it.
const LEN: usize = 55;

/// The most bytes of `tracestate` that are passed on. Those that are longer may be dropped (§3.3.1.5).
const MAX_STATE: usize = 512;

/// A span, as another one names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    /// The spans of the trace are recorded.
    pub is_sampled: bool,
}

// === impl Parent ===

impl Parent {
    /// The span that a request names. `None`: it names none, or not by a valid field.
    pub fn of(headers: &HeaderMap) -> Option<Parent> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Parent::parse(value.as_bytes()),
            _ => None,
        }
    }

    /// §3.2.2: `VERSION-TRACE-SPAN-FLAGS`, all in lower-case hexadecimal digits.
    fn parse(value: &[u8]) -> Option<Parent> {
        let (fixed, more) = value.split_at_checked(LEN)?;
        let mut parts = fixed.split(|b| *b == b'-');
        let version = hexadecimal(parts.next()?, 2)?;
        let trace = hexadecimal(parts.next()?, 32).filter(|trace| *trace != 0)?;
        let span = hexadecimal(parts.next()?, 16).filter(|span| *span != 0)?;
        let flags = hexadecimal(parts.next()?, 2)?;
        let is_known = match version {
            0 => more.is_empty(),
            0xFF => false,
            _ => more.first().is_none_or(|b| *b == b'-'),
        };
        let is_sampled = TraceFlags::new(flags as u8).is_sampled();
        is_known.then(|| Parent {
            trace: TraceId::from_bytes(trace.to_be_bytes()),
            span: SpanId::from_bytes((span as u64).to_be_bytes()),
            is_sampled,
        })
    }

    /// The value of the field, in version 00.
    pub fn to_value(self) -> HeaderValue {
        let flags = if self.is_sampled { "01" } else { "00" };
        let value = format!("00-{}-{}-{flags}", self.trace, self.span);
        value.try_into().unwrap_or(HeaderValue::from_static(""))
    }
}

/// The values of `tracestate`, if they are to be passed on.
pub(super) fn state(headers: &HeaderMap) -> impl Iterator<Item = &HeaderValue> {
    let values = headers.get_all(&TRACESTATE);
    let len: usize = values.iter().map(HeaderValue::len).sum();
    values.into_iter().filter(move |_| len <= MAX_STATE)
}

fn hexadecimal(digits: &[u8], len: usize) -> Option<u128> {
    let is_digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != len || !digits.iter().all(is_digit) {
        return None;
    }
    u128::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_parent_is_what_the_recommendation_says() {
        for (value, is_sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            // Other flags are not known.
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-fe"), Some(false)),
            // A later version.
            (format!("cc-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-more"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01.more"), None),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{TRACE}-{SPAN}-0"), None),
            (format!("00-{TRACE}-{SPAN}-+1"), None),
            (format!("00-{SPAN}-{TRACE}-01"), None),
            (format!("00-{TRACE}{SPAN}--01"), None),
            (String::new(), None),
            ("-".repeat(LEN), None),
        ] {
            let parent = Parent::parse(value.as_bytes());
            assert_eq!(
                parent.map(|parent| parent.is_sampled),
                is_sampled,
                "{value}"
            );
            if let Some(parent) = parent {
                assert_eq!(parent.trace.to_string(), TRACE);
                assert_eq!(parent.span.to_string(), SPAN);
                let written = parent.to_value();
                assert_eq!(Parent::parse(written.as_bytes()), Some(parent));
            }
        }
    }

    #[test]
    fn two_parents_are_none() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        headers.append(TRACEPARENT, value.clone());
        assert!(Parent::of(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert!(Parent::of(&headers).is_none());
    }

    #[test]
    fn a_long_state_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        headers.append(TRACESTATE, HeaderValue::from_static("a=1"));
        headers.append(TRACESTATE, HeaderValue::from_static("b=2"));
        assert_eq!(state(&headers).count(), 2);
        let long = "c=".to_owned() + &"3".repeat(MAX_STATE);
        headers.append(TRACESTATE, long.parse().unwrap());
        assert_eq!(state(&headers).count(), 0);
    }
}
