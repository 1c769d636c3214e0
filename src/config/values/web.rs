//! Types of values for web serving.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{Text, TextVisitor, Unfit};
use crate::s3::ObjectKey;

/// Names, each with a value, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map<K, V>(pub(in crate::config) Vec<(K, V)>);

/// The names of a [`Map`].
pub trait MapOf {
    /// The allowed names and values, in words.
    const EXPECTED: &'static str;
}

struct MapVisitor<K, V>(PhantomData<(K, V)>);

texts! {
    /// The name of a document in each folder.
    DocumentName(String) as str;
    /// The key of an object.
    DocumentKey(ObjectKey) as ObjectKey;
    /// The status of an error with a document.
    ErrorStatus(StatusCode) as StatusCode;
    /// The name of a response field that may be changed.
    ResponseField(HeaderName) as HeaderName;
    /// The value of a response field.
    FieldText(HeaderValue) as HeaderValue;
    /// The name of a response field, or the beginning of names and an asterisk, in lower case.
    FieldPattern(String) as str;
    /// The origin of web pages, or `*` for all.
    WebOrigin(String) as str;
}

/// The fields that frame a message (RFC 9112 §6, RFC 9110 §7.6.1) or belong to its connection, that
/// describe the bytes of the object, or that the proxy adds at last. A rule must not change them.
const FIXED_FIELDS: [&str; 16] = [
    "accept-ranges",
    "age",
    "cache-status",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "date",
    "etag",
    "keep-alive",
    "last-modified",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The statuses of errors that may have a document. The others belong to requests that no browser
/// makes, or have to be sent when the proxy has no room for a document.
const ERROR_STATUSES: [u16; 7] = [403, 404, 410, 500, 502, 503, 504];

// === impl Map ===

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Map(Vec::new())
    }
}

impl<K, V> Deref for Map<K, V> {
    type Target = [(K, V)];

    fn deref(&self) -> &[(K, V)] {
        &self.0
    }
}

impl<K: Serialize, V: Serialize> Serialize for Map<K, V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de, K, V> Visitor<'de> for MapVisitor<K, V>
where
    K: Deserialize<'de> + MapOf,
    V: Deserialize<'de>,
{
    type Value = Map<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(K::EXPECTED)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Map(entries))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Map::default())
    }
}

impl<'de, K, V> Deserialize<'de> for Map<K, V>
where
    K: Deserialize<'de> + MapOf,
    V: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(MapVisitor(PhantomData))
    }
}

// === impl DocumentName ===

impl Text for DocumentName {
    const EXPECTED: &'static str =
        "write the name of a document without slashes, such as index.html";

    fn check(text: &str) -> Result<Self, Unfit> {
        let is_name = text.len() <= 255 && !text.contains('/') && !matches!(text, "" | "." | "..");
        match is_name {
            true => Ok(DocumentName(text.to_owned())),
            false => Err(Unfit::Value("is not the name of a document".into())),
        }
    }

    fn stand_in() -> Self {
        DocumentName(String::new())
    }
}

impl Serialize for DocumentName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl DocumentKey ===

impl Text for DocumentKey {
    const EXPECTED: &'static str =
        "write the key of an object, as clients write it, such as errors/404.html";

    fn check(text: &str) -> Result<Self, Unfit> {
        match ObjectKey::new(text) {
            Ok(key) if !text.starts_with('/') && key.without_dot_segments().is_none() => {
                Ok(DocumentKey(key))
            }
            _ => Err(Unfit::Value("is not the key of a document".into())),
        }
    }

    fn stand_in() -> Self {
        match ObjectKey::new("x") {
            Ok(key) => DocumentKey(key),
            Err(_) => unreachable!("a letter is a key"),
        }
    }
}

impl Serialize for DocumentKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.as_str())
    }
}

// === impl ErrorStatus ===

impl Text for ErrorStatus {
    const EXPECTED: &'static str =
        "write 403, 404, 410, 500, 502, 503 or 504, each with the key of an object: \
         {404: errors/404.html}";

    fn check(text: &str) -> Result<Self, Unfit> {
        let status = text.parse::<u16>().ok();
        let status = status.filter(|status| ERROR_STATUSES.contains(status));
        match status.and_then(|status| StatusCode::from_u16(status).ok()) {
            Some(status) => Ok(ErrorStatus(status)),
            None => Err(Unfit::Value(
                "is not the status of an error with a document".into(),
            )),
        }
    }

    fn stand_in() -> Self {
        ErrorStatus(StatusCode::NOT_FOUND)
    }
}

impl MapOf for ErrorStatus {
    const EXPECTED: &'static str = <Self as Text>::EXPECTED;
}

impl Serialize for ErrorStatus {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.as_str())
    }
}

// === impl ResponseField ===

fn is_fixed(name: &str) -> bool {
    FIXED_FIELDS.contains(&name)
}

const FIXED: &str =
    "is a field that belongs to the connection, describes the bytes of the object, or is \
                     the proxy's own, and cannot be changed";

impl Text for ResponseField {
    const EXPECTED: &'static str =
        "write names of response fields, each with a value: {Cache-Control: no-cache}";

    fn check(text: &str) -> Result<Self, Unfit> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        match HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) if is_fixed(name.as_str()) => Err(Unfit::Value(FIXED.into())),
            Ok(name) if text.bytes().all(is_name) => Ok(ResponseField(name)),
            _ => Err(Unfit::Value("is not the name of a response field".into())),
        }
    }

    fn stand_in() -> Self {
        ResponseField(HeaderName::from_static("x-field"))
    }
}

impl MapOf for ResponseField {
    const EXPECTED: &'static str = <Self as Text>::EXPECTED;
}

impl Serialize for ResponseField {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.as_str())
    }
}

// === impl FieldText ===

impl Text for FieldText {
    const EXPECTED: &'static str = "write the value of a field, of printable ASCII characters";

    fn check(text: &str) -> Result<Self, Unfit> {
        let is_printable = text.bytes().all(|b| matches!(b, b' '..=b'~'));
        match HeaderValue::from_str(text) {
            Ok(value) if is_printable => Ok(FieldText(value)),
            _ => Err(Unfit::Value("is not the value of a field".into())),
        }
    }

    fn stand_in() -> Self {
        FieldText(HeaderValue::from_static("x"))
    }
}

impl Serialize for FieldText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.to_str().unwrap_or_default())
    }
}

// === impl FieldPattern ===

impl Text for FieldPattern {
    const EXPECTED: &'static str =
        "write the name of a response field, or the beginning of names and *, such as x-amz-meta-*";

    fn check(text: &str) -> Result<Self, Unfit> {
        let lower = text.to_ascii_lowercase();
        let beginning = lower.strip_suffix('*');
        let name = beginning.unwrap_or(&lower);
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(Unfit::Value("is not the name of a response field".into()));
        }
        let takes_fixed = match beginning {
            Some(beginning) => FIXED_FIELDS
                .iter()
                .any(|fixed| fixed.starts_with(beginning)),
            None => is_fixed(name),
        };
        match takes_fixed {
            true => Err(Unfit::Value(FIXED.into())),
            false => Ok(FieldPattern(lower)),
        }
    }

    fn stand_in() -> Self {
        FieldPattern("x-field".to_owned())
    }
}

impl Serialize for FieldPattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl WebOrigin ===

impl Text for WebOrigin {
    const EXPECTED: &'static str =
        "write the origin of web pages, such as https://www.example.com or http://localhost:3000, or * \
         for all";

    fn check(text: &str) -> Result<Self, Unfit> {
        if text == "*" {
            return Ok(WebOrigin(text.to_owned()));
        }
        let host = ["https://", "http://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let is_host = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        let is_origin = host.is_some_and(|host| !host.is_empty() && host.bytes().all(is_host));
        // Browsers send it in lower case, and compare it byte by byte.
        match is_origin && text == text.to_ascii_lowercase() {
            true => Ok(WebOrigin(text.to_owned())),
            false => Err(Unfit::Value(
                "is not an origin in lower case and without a path".into(),
            )),
        }
    }

    fn stand_in() -> Self {
        WebOrigin("*".to_owned())
    }
}

impl Serialize for WebOrigin {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}
