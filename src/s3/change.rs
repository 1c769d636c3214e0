//! Changes that requests may make at S3.

use http::{HeaderMap, HeaderName, Method};

use super::request::{Operation, S3Request};

const RENAME_SOURCE: HeaderName = HeaderName::from_static("x-amz-rename-source");
const CONTENT_ENCODING: HeaderName = HeaderName::from_static("content-encoding");
const CONTENT_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// The objects of the bucket that a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// None.
    Nothing,
    /// The one that the request is for.
    Object,
    /// Those that the body of the request names.
    Listed,
    /// Any.
    Bucket,
}

// === impl Change ===

impl Change {
    /// The change that a request may make.
    pub fn of(request: &S3Request, method: &Method, headers: &HeaderMap) -> Change {
        use Operation::*;
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Change::Nothing;
        }
        match request.operation {
            UploadPart
            | UploadPartCopy
            | CreateMultipartUpload
            | AbortMultipartUpload
            | SelectObjectContent => Change::Nothing,
            // The source is another object, written in one of several ways.
            RenameObject => Change::Bucket,
            _ if headers.contains_key(RENAME_SOURCE) => Change::Bucket,
            DeleteObjects if is_streaming(headers) => Change::Bucket,
            DeleteObjects => Change::Listed,
            CreateBucket | DeleteBucket | PostObject => Change::Bucket,
            _ if request.target.key().is_some() => Change::Object,
            // Of the bucket's configuration, which is no part of objects.
            Other => Change::Bucket,
            _ => Change::Nothing,
        }
    }

    /// True for an operation after which other clients may be permitted, or refused, what
    /// they were not before.
    pub fn changes_permissions(request: &S3Request, method: &Method) -> bool {
        use Operation::*;
        let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        !reads
            && match request.operation {
                PutObject
                | CopyObject
                | UploadPart
                | UploadPartCopy
                | CreateMultipartUpload
                | CompleteMultipartUpload
                | AbortMultipartUpload
                | DeleteObject
                | DeleteObjects
                | PostObject
                | RestoreObject
                | SelectObjectContent => false,
                // Policies can depend on all the rest: tags, retention, the bucket's settings.
                _ => true,
            }
    }
}

/// True if the body comes in signed pieces.
fn is_streaming(headers: &HeaderMap) -> bool {
    let hash = headers.get(CONTENT_HASH);
    headers.contains_key(CONTENT_ENCODING)
        || hash.is_some_and(|hash| hash.as_bytes().starts_with(b"STREAMING-"))
}

/// The most bytes of keys that are kept of one list.
const MAX_KEYS_BYTES: usize = 64 * 1024;

/// The longest tag, or text between two tags.
const MAX_PIECE: usize = 8 * 1024;

/// Reads the keys of a DeleteObjects document while it passes. It does not judge the document,
/// which S3 does; where there is doubt about a key, the list is not
/// [complete](Self::complete).
///
/// Source: "DeleteObjects", Amazon S3 API Reference.
#[derive(Debug, Default)]
pub struct DeletedKeys {
    keys: Vec<String>,
    bytes: usize,
    /// The text since the last tag, or the tag that has begun.
    piece: Vec<u8>,
    in_tag: bool,
    in_key: bool,
    depth: usize,
    has_ended: bool,
    is_unclear: bool,
}

// === impl DeletedKeys ===

impl DeletedKeys {
    /// Read the next piece.
    pub fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.is_unclear {
                return;
            }
            match (self.in_tag, byte) {
                (false, b'<') => {
                    self.end_text();
                    self.in_tag = true;
                }
                (true, b'>') => {
                    self.in_tag = false;
                    let tag = std::mem::take(&mut self.piece);
                    self.tag(&tag);
                }
                _ if self.piece.len() < MAX_PIECE => self.piece.push(*byte),
                _ => self.is_unclear = true,
            }
        }
    }

    /// The keys; `None`: there may be others.
    pub fn complete(&self) -> Option<&[String]> {
        let is_clear = self.has_ended && !self.is_unclear && !self.in_tag;
        is_clear.then_some(&self.keys)
    }

    fn end_text(&mut self) {
        let text = std::mem::take(&mut self.piece);
        if !self.in_key {
            self.is_unclear |= self.has_ended && !text.trim_ascii().is_empty();
            return;
        }
        let key = String::from_utf8(text).ok();
        match key.as_deref().and_then(unescaped) {
            Some(key) if self.bytes + key.len() <= MAX_KEYS_BYTES => {
                self.bytes += key.len();
                self.keys.push(key);
            }
            _ => self.give_up(),
        }
    }

    fn tag(&mut self, tag: &[u8]) {
        let declaration = tag.strip_prefix(b"?");
        if let Some(declaration) = declaration {
            // Another encoding than UTF-8 would have to be named.
            let text = declaration.to_ascii_lowercase();
            let names = |name: &[u8]| text.windows(name.len()).any(|part| part == name);
            self.is_unclear |= self.depth > 0 || (names(b"encoding") && !names(b"utf-8"));
            return;
        }
        let (closes, tag) = match tag.strip_prefix(b"/") {
            Some(tag) => (true, tag),
            None => (false, tag),
        };
        let (is_empty, tag) = match tag.strip_suffix(b"/") {
            Some(tag) => (true, tag),
            None => (false, tag),
        };
        let end = tag.iter().position(u8::is_ascii_whitespace);
        let name = &tag[..end.unwrap_or(tag.len())];
        // Comments, CDATA, entities of its own, and names with a prefix.
        let is_plain = !name.is_empty() && name.iter().all(u8::is_ascii_alphanumeric);
        // A `>` in an attribute would end the tag too early.
        let quotes = tag
            .iter()
            .filter(|byte| matches!(byte, b'"' | b'\''))
            .count();
        if !is_plain || quotes % 2 == 1 || (self.in_key && !closes) || self.has_ended {
            return self.give_up();
        }
        match (closes, name) {
            (false, b"Key") if !is_empty => self.in_key = true,
            (true, b"Key") if self.in_key => self.in_key = false,
            (_, b"Key") => return self.give_up(),
            _ if self.in_key => return self.give_up(),
            _ => {}
        }
        match (closes, is_empty) {
            (false, false) => self.depth += 1,
            (true, false) if self.depth > 0 => {
                self.depth -= 1;
                self.has_ended = self.depth == 0;
            }
            (false, true) => self.has_ended = self.depth == 0,
            _ => self.give_up(),
        }
    }

    fn give_up(&mut self) {
        self.is_unclear = true;
        self.keys = Vec::new();
        self.piece = Vec::new();
    }
}

/// Text without the references that XML defines; `None`: it has others.
fn unescaped(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        let (reference, after) = after.split_once(';')?;
        let number = |digits: &str, radix| {
            let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = u32::from_str_radix(digits, radix).ok();
            number.filter(|_| is_number).and_then(char::from_u32)
        };
        plain.push(match reference {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => match reference.strip_prefix('#')? {
                hex if hex.starts_with('x') => number(&hex[1..], 16)?,
                decimal => number(decimal, 10)?,
            },
        });
        rest = after;
    }
    plain.push_str(rest);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::s3::Target;

    fn change(
        method: &str,
        path: &str,
        query: &str,
        fields: &[(&'static str, &'static str)],
    ) -> Change {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let headers = fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let target = Target::in_bucket(path).unwrap();
        let query = (!query.is_empty()).then_some(query.as_bytes());
        let request = S3Request::read(&method, target, query, &headers).unwrap();
        Change::of(&request, &method, &headers)
    }

    #[test]
    fn each_operation_changes_what_it_can() {
        let streaming = ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
        for (method, path, query, fields, expected) in [
            ("GET", "a", "", &[][..], Change::Nothing),
            ("HEAD", "a", "", &[], Change::Nothing),
            ("OPTIONS", "a", "", &[], Change::Nothing),
            ("GET", "", "list-type=2", &[], Change::Nothing),
            ("PUT", "a", "", &[], Change::Object),
            (
                "PUT",
                "a",
                "",
                &[("x-amz-copy-source", "b/c")],
                Change::Object,
            ),
            ("PUT", "a", "x-id=PutObject", &[], Change::Object),
            ("PUT", "a", "acl", &[], Change::Object),
            ("PUT", "a", "tagging", &[], Change::Object),
            ("PUT", "a", "partNumber=1&uploadId=x", &[], Change::Nothing),
            ("POST", "a", "uploads", &[], Change::Nothing),
            ("POST", "a", "uploadId=x", &[], Change::Object),
            ("DELETE", "a", "uploadId=x", &[], Change::Nothing),
            ("DELETE", "a", "", &[], Change::Object),
            ("DELETE", "a", "versionId=1", &[], Change::Object),
            ("POST", "a", "restore", &[], Change::Object),
            ("POST", "a", "select&select-type=2", &[], Change::Nothing),
            (
                "PUT",
                "a",
                "renameObject",
                &[("x-amz-rename-source", "b")],
                Change::Bucket,
            ),
            ("POST", "a", "", &[], Change::Object),
            ("DELETE", "a", "cors", &[], Change::Object),
            ("POST", "", "delete", &[], Change::Listed),
            ("POST", "", "delete", &[streaming], Change::Bucket),
            (
                "POST",
                "",
                "delete",
                &[("content-encoding", "gzip")],
                Change::Bucket,
            ),
            ("POST", "", "", &[], Change::Bucket),
            ("PUT", "", "", &[], Change::Bucket),
            ("DELETE", "", "", &[], Change::Bucket),
            ("PUT", "", "policy", &[], Change::Nothing),
            ("DELETE", "", "acl", &[], Change::Bucket),
        ] {
            let found = change(method, path, query, fields);
            assert_eq!(found, expected, "{method} {path} {query}");
        }
    }

    fn keys(document: &str) -> Option<Vec<String>> {
        let mut whole = DeletedKeys::default();
        whole.read(document.as_bytes());
        let whole = whole.complete().map(<[String]>::to_vec);
        let mut bytewise = DeletedKeys::default();
        for byte in document.as_bytes() {
            bytewise.read(&[*byte]);
        }
        assert_eq!(bytewise.complete().map(<[String]>::to_vec), whole);
        whole
    }

    #[test]
    fn keys_are_read_from_the_document_as_it_passes() {
        let document = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Object><Key>a/b.png</Key></Object>\n  \
            <Object><Key>x &amp; y&#x20;&#252;</Key><VersionId>1</VersionId></Object>\
            <Quiet>true</Quiet></Delete>\n";
        assert_eq!(
            keys(document),
            Some(vec!["a/b.png".to_owned(), "x & y ü".to_owned()])
        );
        assert_eq!(keys("<Delete></Delete>"), Some(vec![]));
    }

    #[test]
    fn a_document_in_doubt_has_no_complete_list() {
        for document in [
            "",
            "<Delete><Object><Key>a</Key></Object>",
            "<Delete><Object><Key>a",
            "<Delete><Object><s:Key>a</s:Key></Object></Delete>",
            "<Delete><Object><Key><![CDATA[a]]></Key></Object></Delete>",
            "<Delete><!-- <Key>a</Key> --></Delete>",
            "<!DOCTYPE d [<!ENTITY e \"a\">]><Delete><Object><Key>&e;</Key></Object></Delete>",
            "<Delete><Object><Key>&e;</Key></Object></Delete>",
            "<Delete><Object><Key>&#xD800;</Key></Object></Delete>",
            "<Delete><Object><Key>&#+65;</Key></Object></Delete>",
            "<?xml version=\"1.0\" encoding=\"UTF-16\"?><Delete></Delete>",
            "<Delete></Delete><Object><Key>a</Key></Object>",
            "<Delete a=\">\"><Object><Key>a</Key></Object></Delete>",
            "</Delete>",
        ] {
            assert_eq!(keys(document), None, "{document}");
        }
        let long = "a".repeat(1000);
        let mut document = "<Delete>".to_owned();
        for _ in 0..100 {
            document += &format!("<Object><Key>{long}</Key></Object>");
        }
        document += "</Delete>";
        assert_eq!(keys(&document), None, "too many");
        let endless = format!("<Delete><Object><Key>{}", "a".repeat(MAX_PIECE + 1));
        assert_eq!(keys(&endless), None);
    }
}
