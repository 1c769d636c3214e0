//! The canonical request, which is what a signature signs.
//!
//! Source: "Signature Calculations for the Authorization Header" and "Authenticating
//! Requests: Using Query Parameters", Amazon S3 API Reference.

use std::borrow::Cow;

use http::HeaderMap;

use super::Incoming;

/// The parameter that no signature can sign.
pub(super) const SIGNATURE: &[u8] = b"X-Amz-Signature";

/// The form in which a client that does not encode as `UriEncode()` does may have signed the
/// parts of its target. Either way the target means the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spelling {
    pub(super) path: Form,
    pub(super) query: Form,
}

/// The form in which a part of the target is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Decoded, and encoded again by `UriEncode()`: what S3 documents.
    Encoded,
    /// As it was sent.
    Sent,
}

/// A raw query, as its parameters. One without `=` has an empty value.
pub(super) fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query
        .split(|byte| *byte == b'&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| {
            let at = parameter.iter().position(|byte| *byte == b'=');
            match at {
                Some(at) => (&parameter[..at], &parameter[at + 1..]),
                None => (parameter, &parameter[parameter.len()..]),
            }
        })
}

/// Append the canonical request. `headers`: the names that are signed, in their order.
pub(super) fn write(
    to: &mut Vec<u8>,
    request: &Incoming<'_>,
    spelling: Spelling,
    signed_headers: &str,
    payload: &[u8],
) {
    to.extend_from_slice(request.method.as_bytes());
    to.push(b'\n');
    match spelling.path {
        Form::Encoded => encode(to, request.path, Part::Path),
        Form::Sent => to.extend_from_slice(request.path),
    }
    to.push(b'\n');
    if let Some(query) = request.query {
        write_query(to, query, spelling.query);
    }
    to.push(b'\n');
    for name in signed_headers.split(';') {
        to.extend_from_slice(name.as_bytes());
        to.push(b':');
        match (name, request.host) {
            ("host", Some(host)) => write_value(to, host),
            _ => write_values(to, request.headers, name),
        }
        to.push(b'\n');
    }
    to.push(b'\n');
    to.extend_from_slice(signed_headers.as_bytes());
    to.push(b'\n');
    to.extend_from_slice(payload);
}

fn write_query(to: &mut Vec<u8>, query: &[u8], form: Form) {
    let form = |part| match form {
        Form::Encoded => encoded(part, Part::Query),
        Form::Sent => Cow::Borrowed(part),
    };
    let mut parameters: Vec<_> = parameters(query)
        .map(|(name, value)| (form(name), form(value)))
        .filter(|(name, _)| name.as_ref() != SIGNATURE)
        .collect();
    parameters.sort_unstable();
    for (index, (name, value)) in parameters.iter().enumerate() {
        if index > 0 {
            to.push(b'&');
        }
        to.extend_from_slice(name);
        to.push(b'=');
        to.extend_from_slice(value);
    }
}

/// Fields of one name are a list (RFC 9110 §5.3).
fn write_values(to: &mut Vec<u8>, headers: &HeaderMap, name: &str) {
    for (index, value) in headers.get_all(name).iter().enumerate() {
        if index > 0 {
            to.push(b',');
        }
        write_value(to, value.as_bytes());
    }
}

/// Without spaces at both ends, and with one space where there are several.
fn write_value(to: &mut Vec<u8>, value: &[u8]) {
    let value = value.trim_ascii();
    if !value.windows(2).any(|pair| pair == b"  ") {
        to.extend_from_slice(value);
        return;
    }
    let mut after_space = false;
    for byte in value {
        let is_space = *byte == b' ';
        if !(is_space && after_space) {
            to.push(*byte);
        }
        after_space = is_space;
    }
}

/// The parts of a target, which are encoded differently.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Slashes stand for themselves.
    Path,
    /// `+` is a space, as S3 reads it.
    Query,
}

/// True if `UriEncode()` writes the part as it is.
pub(super) fn is_encoded(part: &[u8], kind: Part) -> bool {
    let mut bytes = part.iter();
    while let Some(byte) = bytes.next() {
        let escaped = match byte {
            b'%' => bytes.next().zip(bytes.next()),
            byte if stands_for_itself(*byte, kind) => continue,
            _ => return false,
        };
        let is_upper = |digit: u8| digit.is_ascii_digit() || matches!(digit, b'A'..=b'F');
        match escaped {
            Some((high, low)) if is_upper(*high) && is_upper(*low) => {
                let byte = hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low);
                if byte.is_none_or(|byte| stands_for_itself(byte, kind)) {
                    return false;
                }
            }
            _ => return false,
        }
    }
    true
}

fn encoded(part: &[u8], kind: Part) -> Cow<'_, [u8]> {
    if is_encoded(part, kind) {
        return part.into();
    }
    let mut encoded = Vec::with_capacity(part.len() + 16);
    encode(&mut encoded, part, kind);
    encoded.into()
}

/// Decode a part and encode it again. An incomplete escape stands for itself.
fn encode(to: &mut Vec<u8>, part: &[u8], kind: Part) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut rest = part;
    while let Some((byte, after)) = next_byte(rest, kind) {
        rest = after;
        if stands_for_itself(byte, kind) {
            to.push(byte);
        } else {
            let (high, low) = (
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            );
            to.extend_from_slice(&[b'%', high, low]);
        }
    }
}

/// A part without its percent-encoding.
pub(super) fn decoded(part: &[u8], kind: Part) -> Cow<'_, [u8]> {
    if !part.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return part.into();
    }
    let mut decoded = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((byte, after)) = next_byte(rest, kind) {
        decoded.push(byte);
        rest = after;
    }
    decoded.into()
}

fn next_byte(part: &[u8], kind: Part) -> Option<(u8, &[u8])> {
    let (first, after) = part.split_first()?;
    if let [b'%', high, low, rest @ ..] = part {
        if let Some((high, low)) = hex(*high).zip(hex(*low)) {
            return Some((high << 4 | low, rest));
        }
    }
    match (first, kind) {
        (b'+', Part::Query) => Some((b' ', after)),
        (byte, _) => Some((*byte, after)),
    }
}

fn stands_for_itself(byte: u8, kind: Part) -> bool {
    UNRESERVED[usize::from(byte)] || (byte == b'/' && kind == Part::Path)
}

/// The bytes that stand for themselves everywhere (RFC 3986 §2.3).
const UNRESERVED: [bool; 256] = {
    let mut unreserved = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        unreserved[byte] =
            (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'_' | b'.' | b'~');
        byte += 1;
    }
    unreserved
};

/// The value of a hexadecimal digit.
pub(super) fn hex(digit: u8) -> Option<u8> {
    let digit = char::from(digit).to_digit(16)?;
    u8::try_from(digit).ok()
}
