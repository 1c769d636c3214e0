//! Object keys, decoded from the path of a client's request and encoded for that of an S3
//! request.

use std::borrow::Cow;
use std::fmt::{self, Write};

use super::error::{Code, S3Error};

/// The longest key that S3 stores, in bytes of UTF-8.
///
/// Source: "Naming Amazon S3 objects", Amazon S3 User Guide.
pub const MAX_KEY_BYTES: usize = 1024;

/// The name of an object within its bucket: decoded UTF-8, never empty, at most
/// [`MAX_KEY_BYTES`] long.
///
/// S3 judges everything else: doubled and trailing slashes, control characters and the segments
/// `.` and `..` are part of a name there. A name whose segments lead to the bucket itself or out
/// of it is invalid: a server that resolves them would respond with a list of objects, or with an
/// object of another bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(String);

/// The reason that a path names no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// Nothing follows the prefix of the bucket.
    Empty,
    /// A `%` is not followed by two hexadecimal digits (RFC 3986, section 2.1).
    InvalidPercentEncoding,
    /// The decoded bytes are not UTF-8.
    NotUtf8,
    /// The segments `.` and `..` of the decoded key lead to the bucket itself, or out
    /// of it.
    OutsideBucket,
    /// The decoded key is longer than [`MAX_KEY_BYTES`].
    TooLong,
}

// === impl ObjectKey ===

impl ObjectKey {
    /// Reads the key from the encoded path of a request after the bucket's prefix and its slash,
    /// without the query.
    ///
    /// `+` is a plus sign: only HTML forms write a space that way.
    ///
    /// # Errors
    /// [`KeyError`], a mistake of the client.
    pub fn from_request_path(path_after_prefix: &str) -> Result<ObjectKey, KeyError> {
        if path_after_prefix.is_empty() {
            return Err(KeyError::Empty);
        }
        let key =
            String::from_utf8(percent_decode(path_after_prefix)?).map_err(|_| KeyError::NotUtf8)?;
        // Judged after decoding, so that neither `%2e%2e` nor `%2F` hides a segment.
        ObjectKey::new(key)
    }

    /// The key with this name.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn new(key: impl Into<String>) -> Result<ObjectKey, KeyError> {
        let key = key.into();
        if key.is_empty() {
            return Err(KeyError::Empty);
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLong);
        }
        if may_have_dot_segments(&key) && leaves_bucket(&key) {
            return Err(KeyError::OutsideBucket);
        }
        Ok(ObjectKey(key))
    }

    /// The key without the segments `.` and `..`, as RFC 3986 §5.2.4 resolves them. This is
    /// the object meant by a client that writes `./` in front of a name. `None`: the key
    /// has no such segments.
    pub fn without_dot_segments(&self) -> Option<ObjectKey> {
        let is_dots = |segment: &str| matches!(segment, "." | "..");
        if !may_have_dot_segments(&self.0) || !self.0.split('/').any(is_dots) {
            return None;
        }
        let mut resolved: Vec<&str> = Vec::new();
        let mut segments = self.0.split('/').peekable();
        while let Some(segment) = segments.next() {
            match segment {
                "." => {}
                ".." => {
                    resolved.pop();
                }
                segment => {
                    resolved.push(segment);
                    continue;
                }
            }
            if segments.peek().is_none() {
                // A folder.
                resolved.push("");
            }
        }
        Some(ObjectKey(resolved.join("/"))).filter(|key| !key.0.is_empty())
    }

    /// The key as S3 stores it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as it is written in a request path: every byte except `A-Z a-z 0-9 - _ . ~ /` as
    /// `%` and two upper-case hexadecimal digits.
    ///
    /// Only in this form do the request and the canonical request of its signature agree. Source: "Signature Calculations for the
    /// Authorization Header", Amazon S3 API Reference, `UriEncode()`.
    pub fn encoded(&self) -> Cow<'_, str> {
        encode(&self.0)
    }
}

/// True if a segment of the key begins with a dot. The test is cheap, and few keys pass it.
fn may_have_dot_segments(key: &str) -> bool {
    let key = key.as_bytes();
    key.first() == Some(&b'.') || key.windows(2).any(|pair| pair == b"/.")
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key, or the beginning of one, as it is written in a request path, see
/// [`ObjectKey::encoded`].
pub fn encode(key: &str) -> Cow<'_, str> {
    if key.bytes().all(stands_for_itself) {
        return Cow::Borrowed(key);
    }
    let mut encoded = String::with_capacity(key.len() * 3);
    encode_to(&mut encoded, key, stands_for_itself);
    Cow::Owned(encoded)
}

/// A value as it is written in a query: like a key, but with slashes encoded.
pub fn encode_value(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    encode_to(&mut encoded, value, |byte| {
        byte != b'/' && stands_for_itself(byte)
    });
    encoded
}

fn encode_to(encoded: &mut String, text: &str, stays: impl Fn(u8) -> bool) {
    for byte in text.bytes() {
        if stays(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
}

/// True if a key could be read as the bucket itself, which might be listed, or as something
/// outside it: by a server that resolves dot segments (RFC 3986 §5.2.4), or by a file system,
/// which merges doubled slashes.
fn leaves_bucket(key: &str) -> bool {
    let mut depth = 0;
    let mut has_dots = false;
    let leaves = key.split('/').any(|segment| {
        match segment {
            "" => {}
            "." => has_dots = true,
            ".." => {
                has_dots = true;
                depth -= 1;
            }
            _ => depth += 1,
        }
        depth < 0
    });
    leaves || (has_dots && depth == 0)
}

fn stands_for_itself(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/')
}

fn percent_decode(text: &str) -> Result<Vec<u8>, KeyError> {
    if !text.as_bytes().contains(&b'%') {
        return Ok(text.into());
    }
    let digit = |byte: Option<u8>| {
        byte.and_then(|b| char::from(b).to_digit(16))
            .and_then(|d| u8::try_from(d).ok())
            .ok_or(KeyError::InvalidPercentEncoding)
    };
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = digit(bytes.next())?;
            let low = digit(bytes.next())?;
            decoded.push(high << 4 | low);
        } else {
            decoded.push(byte);
        }
    }
    Ok(decoded)
}

// === impl KeyError ===

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Empty => f.write_str("the path names no object"),
            KeyError::InvalidPercentEncoding => {
                f.write_str("a % in the path is not followed by two hexadecimal digits")
            }
            KeyError::NotUtf8 => f.write_str("the decoded object key is not UTF-8"),
            KeyError::OutsideBucket => {
                f.write_str("the segments \".\" and \"..\" of the object key lead to no object")
            }
            KeyError::TooLong => {
                write!(f, "the object key is longer than {MAX_KEY_BYTES} bytes")
            }
        }
    }
}

impl std::error::Error for KeyError {}

impl From<KeyError> for S3Error {
    fn from(error: KeyError) -> S3Error {
        match error {
            KeyError::TooLong => Code::KeyTooLongError.into(),
            error => S3Error::new(Code::InvalidURI, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> ObjectKey {
        ObjectKey::from_request_path(path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
    }

    #[test]
    fn what_the_client_encodes_is_what_s3_is_asked_for() {
        for (path, decoded, encoded) in [
            ("a.txt", "a.txt", "a.txt"),
            ("a%20b", "a b", "a%20b"),
            ("a+b", "a+b", "a%2Bb"),
            ("a%2Bb", "a+b", "a%2Bb"),
            ("a%2bb", "a+b", "a%2Bb"),
            ("100%25", "100%", "100%25"),
            ("%2525", "%25", "%2525"),
            ("gr%C3%BC%C3%9Fe", "grüße", "gr%C3%BC%C3%9Fe"),
            ("grüße", "grüße", "gr%C3%BC%C3%9Fe"),
            ("%F0%9F%93%A6", "📦", "%F0%9F%93%A6"),
            ("a%2Fb", "a/b", "a/b"),
            ("-_.~", "-_.~", "-_.~"),
            (
                "a'(b)*!$&,:;=@",
                "a'(b)*!$&,:;=@",
                "a%27%28b%29%2A%21%24%26%2C%3A%3B%3D%40",
            ),
            ("a%3Fb%23c", "a?b#c", "a%3Fb%23c"),
            ("a%00%0d%0ab%7f", "a\0\r\nb\u{7f}", "a%00%0D%0Ab%7F"),
            ("a%C2%85", "a\u{85}", "a%C2%85"),
        ] {
            assert_eq!(key(path).as_str(), decoded, "{path}");
            assert_eq!(key(path).encoded(), encoded, "{path}");
        }
    }

    #[test]
    fn slashes_and_dots_that_s3_keeps_are_kept() {
        for path in [
            "/a",
            "a//b",
            "a/",
            "//",
            ".hidden",
            "a/..b",
            "...",
            "a/b..",
            "./a",
            "a/./b",
            "a/b/..",
            "a/../b",
            "a/b/../../c",
        ] {
            assert_eq!(key(path).encoded(), path);
        }
    }

    #[test]
    fn paths_that_name_no_object_are_refused() {
        for (path, error) in [
            ("", KeyError::Empty),
            ("%", KeyError::InvalidPercentEncoding),
            ("a%2", KeyError::InvalidPercentEncoding),
            ("a%zz", KeyError::InvalidPercentEncoding),
            ("a%+1", KeyError::InvalidPercentEncoding),
            ("%é", KeyError::InvalidPercentEncoding),
            ("%ff", KeyError::NotUtf8),
            // An overlong "/" would be a second spelling of one key.
            ("%c0%af", KeyError::NotUtf8),
            (".", KeyError::OutsideBucket),
            ("/./", KeyError::OutsideBucket),
            ("a/..", KeyError::OutsideBucket),
            ("..", KeyError::OutsideBucket),
            ("../x", KeyError::OutsideBucket),
            ("/../x", KeyError::OutsideBucket),
            ("./../x", KeyError::OutsideBucket),
            ("a//../../x", KeyError::OutsideBucket),
            ("a/../../a/x", KeyError::OutsideBucket),
            ("%2e%2E/x", KeyError::OutsideBucket),
            ("a%2f..%2F%2e./b", KeyError::OutsideBucket),
            (".%2e", KeyError::OutsideBucket),
        ] {
            assert_eq!(ObjectKey::from_request_path(path), Err(error), "{path:?}");
        }
    }

    #[test]
    fn the_length_limit_counts_decoded_bytes() {
        let longest = "%20".repeat(MAX_KEY_BYTES);
        assert_eq!(key(&longest).as_str().len(), MAX_KEY_BYTES);
        assert_eq!(
            ObjectKey::from_request_path(&format!("{longest}a")),
            Err(KeyError::TooLong)
        );
        assert_eq!(
            ObjectKey::from_request_path(&"é".repeat(MAX_KEY_BYTES / 2 + 1)),
            Err(KeyError::TooLong)
        );
    }

    #[test]
    fn dot_segments_are_resolved_on_request() {
        for (path, expected) in [
            ("deb/./InRelease", Some("deb/InRelease")),
            ("./InRelease", Some("InRelease")),
            ("a/../b", Some("b")),
            ("a/b/../../c", Some("c")),
            ("a/b/..", Some("a/")),
            ("a/.", Some("a/")),
            ("a//../b", Some("a/b")),
            ("a/%2e/b", Some("a/b")),
            ("a/.b/..c/d.", None),
            ("a//b", None),
        ] {
            let resolved = key(path).without_dot_segments();
            let resolved = resolved.as_ref().map(ObjectKey::as_str);
            assert_eq!(resolved, expected, "{path}");
        }
    }

    #[test]
    fn an_encoded_key_reads_back_as_itself() {
        for path in ["a%20b/+/%25/%C3%A9//", "x%3Dy%26z"] {
            assert_eq!(key(&key(path).encoded()), key(path));
        }
    }
}
