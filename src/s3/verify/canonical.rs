//! The canonical request: the text that a signature covers.
//!
//! Source: "Signature Calculations for the Authorization Header" and "Authenticating
//! Requests: Using Query Parameters", Amazon S3 API Reference.

use std::borrow::Cow;

use super::Request;

/// The parameter that a signature cannot cover: the signature itself.
pub(super) const SIGNATURE: &[u8] = b"X-Amz-Signature";

/// The forms of the parts of a target that a client may have signed, if it does not encode them as
/// `UriEncode()` does. The meaning of the target is the same in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spelling {
    pub(super) path: Form,
    pub(super) query: Form,
}

/// The form in which a part of the target is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Decoded and encoded again by `UriEncode()`, as S3 documents it.
    Encoded,
    /// As it was sent.
    Sent,
}

/// The parameters of a raw query. A parameter without `=` has an empty value.
pub(super) fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query
        .split(|byte| *byte == b'&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| split_once(parameter, b'=').unwrap_or((parameter, b"")))
}

/// The names in `SignedHeaders`.
pub(super) fn names(signed_headers: &[u8]) -> impl Iterator<Item = &[u8]> {
    signed_headers.split(|byte| *byte == b';')
}

/// The parts of a text before and after the first `at`.
pub(super) fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == at)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Appends the canonical request. `headers` are the signed names, in order.
pub(super) fn write(
    to: &mut Vec<u8>,
    request: &Request<'_>,
    spelling: Spelling,
    signed_headers: &[u8],
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
    for name in names(signed_headers) {
        to.extend_from_slice(name);
        to.push(b':');
        match name {
            b"host" => write_value(to, request.host),
            _ => write_values(to, request.fields.all(name)),
        }
        to.push(b'\n');
    }
    to.push(b'\n');
    to.extend_from_slice(signed_headers);
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
fn write_values<'a>(to: &mut Vec<u8>, values: impl Iterator<Item = &'a [u8]>) {
    for (index, value) in values.enumerate() {
        if index > 0 {
            to.push(b',');
        }
        write_value(to, value);
    }
}

/// A value without spaces at its ends, and with single spaces inside.
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
    /// The path, with slashes unencoded.
    Path,
    /// The query, in which `+` is a space, as S3 reads it.
    Query,
}

/// True if `UriEncode()` leaves the part unchanged.
pub(super) fn is_encoded(part: &[u8], kind: Part) -> bool {
    let mut bytes = part.iter();
    while let Some(byte) = bytes.next() {
        let digits = match byte {
            b'%' => bytes.next().zip(bytes.next()),
            byte if stands_for_itself(*byte, kind) => continue,
            _ => return false,
        };
        let is_upper = |digit: u8| digit.is_ascii_digit() || matches!(digit, b'A'..=b'F');
        match digits {
            Some((high, low)) if is_upper(*high) && is_upper(*low) => {
                if escaped(*high, *low).is_none_or(|byte| stands_for_itself(byte, kind)) {
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

/// Decodes a part and encodes it again. An incomplete escape is kept as it is.
fn encode(to: &mut Vec<u8>, part: &[u8], kind: Part) {
    const UPPER: &[u8; 16] = b"0123456789ABCDEF";
    let mut rest = part;
    while let Some((byte, after)) = next_byte(rest, kind) {
        rest = after;
        if stands_for_itself(byte, kind) {
            to.push(byte);
        } else {
            let (high, low) = (UPPER[usize::from(byte >> 4)], UPPER[usize::from(byte & 15)]);
            to.extend_from_slice(&[b'%', high, low]);
        }
    }
}

/// A part, percent-decoded.
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
        if let Some(byte) = escaped(*high, *low) {
            return Some((byte, rest));
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

/// The bytes that are never encoded (RFC 3986 §2.3).
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

/// The byte that two hexadecimal digits stand for.
pub(super) fn escaped(high: u8, low: u8) -> Option<u8> {
    let (high, low) = (DIGITS[usize::from(high)], DIGITS[usize::from(low)]);
    ((high | low) < 16).then_some(high << 4 | low)
}

/// The values of hexadecimal digits; above 15 for other bytes.
const DIGITS: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};
