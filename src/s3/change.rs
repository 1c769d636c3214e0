//! The changes that requests make at S3.

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
    /// The object that the request names.
    Object,
    /// The objects that the body of the request names.
    Listed,
    /// Any object of the bucket.
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
            // The source is another object, which can be written in several ways.
            RenameObject => Change::Bucket,
            _ if headers.contains_key(RENAME_SOURCE) => Change::Bucket,
            DeleteObjects if is_streaming(headers) => Change::Bucket,
            DeleteObjects => Change::Listed,
            CreateBucket | DeleteBucket | PostObject => Change::Bucket,
            _ if request.target.key().is_some() => Change::Object,
            // Changes of the bucket's configuration do not change objects.
            Other => Change::Bucket,
            _ => Change::Nothing,
        }
    }

    /// True if the operation can change what other clients are permitted to do.
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
                // Policies can depend on everything else: tags, retention, settings of the bucket.
                _ => true,
            }
    }
}

/// True if the body is sent in signed chunks.
fn is_streaming(headers: &HeaderMap) -> bool {
    let hash = headers.get(CONTENT_HASH);
    headers.contains_key(CONTENT_ENCODING)
        || hash.is_some_and(|hash| hash.as_bytes().starts_with(b"STREAMING-"))
}

/// The most objects of one document ("DeleteObjects", Amazon S3 API Reference).
const MAX_OBJECTS: usize = 1000;

/// The most bytes of keys and versions kept of one document.
const MAX_KEYS_BYTES: usize = 64 * 1024;

/// The longest tag, or text between two tags.
const MAX_PIECE: usize = 8 * 1024;

/// An object that a DeleteObjects document names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedObject {
    /// Its key.
    pub key: String,
    /// The version to delete; `None`: the current one.
    pub version_id: Option<String>,
}

/// A reader of the keys of a DeleteObjects document that passes. S3 judges the document; if a key
/// is in doubt, the list is not [complete](Self::complete).
///
/// Source: "DeleteObjects", Amazon S3 API Reference.
#[derive(Debug, Default)]
pub struct DeletedKeys {
    objects: Vec<DeletedObject>,
    bytes: usize,
    /// The number of objects before the open `Object` element.
    object: Option<usize>,
    version_id: Option<String>,
    /// The text since the last tag, or the beginning of a tag.
    piece: Vec<u8>,
    in_tag: bool,
    reads: Option<Field>,
    depth: usize,
    has_ended: bool,
    is_unclear: bool,
}

/// An element whose text is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Key,
    VersionId,
}

// === impl DeletedKeys ===

impl DeletedKeys {
    /// Reads the next piece.
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

    /// The objects that the document names; `None`: there may be others.
    pub fn complete(&self) -> Option<&[DeletedObject]> {
        let is_clear = self.has_ended && !self.is_unclear && !self.in_tag;
        is_clear.then_some(&self.objects)
    }

    fn end_text(&mut self) {
        let text = std::mem::take(&mut self.piece);
        let Some(field) = self.reads else {
            self.is_unclear |= self.has_ended && !text.trim_ascii().is_empty();
            return;
        };
        let text = String::from_utf8(text).ok();
        let Some(text) = text.as_deref().and_then(unescaped) else {
            return self.give_up();
        };
        self.bytes += text.len();
        match field {
            _ if self.bytes > MAX_KEYS_BYTES => self.give_up(),
            Field::Key if self.objects.len() < MAX_OBJECTS => self.objects.push(DeletedObject {
                key: text,
                version_id: None,
            }),
            Field::VersionId if self.version_id.is_none() => self.version_id = Some(text),
            _ => self.give_up(),
        }
    }

    fn tag(&mut self, tag: &[u8]) {
        let declaration = tag.strip_prefix(b"?");
        if let Some(declaration) = declaration {
            // An encoding other than UTF-8 must be named.
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
        // Comments, CDATA, entity declarations and names with a prefix are not plain.
        let is_plain = !name.is_empty() && name.iter().all(u8::is_ascii_alphanumeric);
        let is_known = is_plain && !may_go_on(tag) && !self.has_ended;
        if !is_known || (self.reads.is_some() && !closes) {
            return self.give_up();
        }
        if !is_empty && !self.element(closes, name) {
            return self.give_up();
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

    /// Notes the beginning or the end of an element. Returns false if its meaning is in doubt.
    fn element(&mut self, closes: bool, name: &[u8]) -> bool {
        let field = match name {
            b"Key" => Some(Field::Key),
            b"VersionId" => Some(Field::VersionId),
            _ => None,
        };
        match (closes, field) {
            (false, Some(_)) => {
                self.reads = field;
                self.object.is_some()
            }
            (true, _) if self.reads.is_some() || field.is_some() => {
                std::mem::take(&mut self.reads) == field
            }
            (false, None) if name == b"Object" => self.object.replace(self.objects.len()).is_none(),
            (true, None) if name == b"Object" => {
                let Some(first) = self.object.take() else {
                    return false;
                };
                let version_id = self.version_id.take().filter(|id| !id.is_empty());
                for object in self.objects.iter_mut().skip(first) {
                    object.version_id.clone_from(&version_id);
                }
                true
            }
            _ => true,
        }
    }

    fn give_up(&mut self) {
        self.is_unclear = true;
        self.objects = Vec::new();
        self.version_id = None;
        self.piece = Vec::new();
    }
}

/// True if the `>` that ended a tag may be part of an attribute's value.
fn may_go_on(tag: &[u8]) -> bool {
    let number = |quote: u8| tag.iter().filter(|byte| **byte == quote).count();
    match (number(b'"'), number(b'\'')) {
        (quotes, 0) | (0, quotes) => quotes % 2 == 1,
        // Quotes of one kind may enclose those of the other.
        _ => true,
    }
}

/// Text with the references that XML defines replaced. `None` if it has other references, or
/// line ends that a parser changes (XML 1.0 §2.11).
fn unescaped(text: &str) -> Option<String> {
    if text.contains('\r') {
        return None;
    }
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

    /// The objects, as `KEY` or `KEY?VERSION`.
    fn keys(document: &str) -> Option<Vec<String>> {
        let read = |size: usize| {
            let mut deleted = DeletedKeys::default();
            for piece in document.as_bytes().chunks(size.max(1)) {
                deleted.read(piece);
            }
            deleted.complete().map(<[DeletedObject]>::to_vec)
        };
        let whole = read(document.len());
        assert_eq!(read(1), whole);
        let name = |object: DeletedObject| match object.version_id {
            Some(version) => format!("{}?{version}", object.key),
            None => object.key,
        };
        Some(whole?.into_iter().map(name).collect())
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
            Some(vec!["a/b.png".to_owned(), "x & y ü?1".to_owned()])
        );
        assert_eq!(keys("<Delete></Delete>"), Some(vec![]));
        assert_eq!(keys("<Delete/>"), Some(vec![]));
        // Keys and versions come in any order; a version belongs to its object only.
        let document = "<Delete><Object><VersionId>1</VersionId><Key>a</Key></Object>\
            <Object><Key>b</Key><VersionId></VersionId></Object>\
            <Object><VersionId/><Key>c</Key></Object><Object a=\"'\"><Key>d</Key></Object></Delete>";
        assert_eq!(keys(document), None, "quotes in quotes");
        let document = document.replace(" a=\"'\"", " a=\"\"");
        let objects = ["a?1", "b", "c", "d"].map(str::to_owned);
        assert_eq!(keys(&document), Some(objects.to_vec()));
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
            // To a parser, the key is `a`.
            "<Delete><Object><Key b='\">' c='\">a</Key></Object></Delete>",
            "<Delete><Object><Key b='\">'>a</Key></Object></Delete>",
            // To a parser, the key is `a`, a line feed and `b`.
            "<Delete><Object><Key>a\r\nb</Key></Object></Delete>",
            "<Delete><Key>a</Key></Delete>",
            "<Delete><Object><Object><Key>a</Key></Object></Object></Delete>",
            "<Delete><Object><Key>a</VersionId></Object></Delete>",
            "<Delete><Object><Key>a</Key><VersionId>1</VersionId><VersionId>2</VersionId></Object></Delete>",
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
        assert_eq!(keys(&document), None, "too many bytes");
        let many = |number| {
            let objects = "<Object><Key></Key><VersionId>1</VersionId></Object>".repeat(number);
            keys(&format!("<Delete>{objects}</Delete>"))
        };
        assert_eq!(many(MAX_OBJECTS).map(|keys| keys.len()), Some(MAX_OBJECTS));
        assert_eq!(many(MAX_OBJECTS + 1), None, "empty keys take room as well");
        let endless = format!("<Delete><Object><Key>{}", "a".repeat(MAX_PIECE + 1));
        assert_eq!(keys(&endless), None);
    }
}
