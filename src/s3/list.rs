//! Lists of objects: the request to the origin, and the response as a client may see it.
//!
//! Sources: ListObjects and ListObjectsV2, Amazon S3 API Reference.

use std::fmt;

use quick_xml::events::{BytesText, Event};
use quick_xml::Reader;

use super::error::{Code, S3Error};
use super::key::encode_value;
use super::origin::Origin;
use super::request::{Operation, S3Request};

/// The longest piece of a document that is buffered, in bytes: a tag, or the text of an element
/// that is rewritten. A key takes at most a tenth of it.
const MAX_KEPT: usize = 64 * 1024;

/// The most objects of a page. S3 lists at most 1,000.
const MAX_OBJECTS: usize = 10_000;

/// The most bytes of the keys of a page, percent-encoded.
const MAX_PAGE: usize = 8 << 20;

/// The deepest nesting of elements; an owner's name is at depth 4.
const MAX_DEPTH: usize = 16;

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Elements below the root whose text begins with the prefix of a key, or is empty.
const KEYS: [&str; 4] = ["Marker", "NextMarker", "Prefix", "StartAfter"];

/// A rewriter of the document of a list, as it arrives. Keys lose the prefix that clients leave
/// out, and the bucket gets the name that clients know. Everything else stays as it is, byte for
/// byte.
#[derive(Debug)]
pub struct ListRewriter {
    /// The name of the bucket, escaped.
    name: String,
    key_prefix: String,
    /// True if keys may be percent-encoded, as the client requested.
    is_encoded: bool,
    pieces: Pieces,
    /// The names of the open elements.
    open: Vec<Vec<u8>>,
    /// The text of the open element, if that is rewritten.
    text: Option<Vec<u8>>,
    has_root: bool,
}

/// A document that arrives in pieces, as a sequence of whole tags and texts.
#[derive(Debug, Default)]
struct Pieces {
    /// The part of a tag that has arrived.
    kept: Vec<u8>,
}

/// A reader of the document of a list, as it arrives.
#[derive(Debug, Default)]
pub struct ListReader {
    pieces: Pieces,
    /// The names of the open elements.
    open: Vec<Vec<u8>>,
    /// The text of the open element, if it is read.
    text: Option<Vec<u8>>,
    has_root: bool,
    /// Keys as they are written, with the size of their objects.
    objects: Vec<Listed>,
    /// Bytes of all keys.
    bytes: usize,
    key: Option<String>,
    size: u64,
    modified: String,
    prefixes: Vec<String>,
    is_encoded: bool,
    is_truncated: bool,
    next: Option<String>,
}

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct ListPage {
    /// The objects, in the order of the list.
    pub objects: Vec<Listed>,
    /// The beginnings that stand for further objects, each up to the delimiter.
    pub prefixes: Vec<String>,
    /// The continuation token of the next page, if there is one.
    pub next: Option<String>,
}

/// An object of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// The time of its last change as it is written, such as `2026-11-30T08:00:00.000Z`.
    pub modified: String,
}

/// The reason that the origin's document cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    /// It is not well-formed, or contains something that S3 does not write.
    Malformed,
    /// It ends too early.
    Incomplete,
    /// A key does not begin with the requested prefix.
    OutsidePrefix,
}

/// The request target of a list for the origin: path and query, encoded.
///
/// # Errors
/// A parameter is invalid.
pub fn target(origin: &Origin, request: &S3Request) -> Result<String, S3Error> {
    let key_prefix = origin.key_prefix();
    let invalid = |why: &'static str| Err(S3Error::new(Code::InvalidArgument, why));
    let below = |name: &str| {
        let key = request.parameter(name).filter(|key| !key.is_empty());
        key.map(|key| [key_prefix, key].concat())
    };
    let as_it_is = |name: &str| {
        let value = request.parameter(name).filter(|value| !value.is_empty());
        value.map(str::to_owned)
    };
    let prefix = request.parameter("prefix").unwrap_or_default();
    // An origin that resolves dot segments would list other objects.
    if prefix
        .split('/')
        .any(|segment| matches!(segment, "." | ".."))
    {
        return invalid("a prefix to list cannot have the segments \".\" and \"..\"");
    }
    if as_it_is("encoding-type").is_some_and(|of| of != "url") {
        return invalid("Invalid Encoding Method specified in Request");
    }
    if as_it_is("max-keys").is_some_and(|number| number.parse::<u32>().is_err()) {
        return invalid("Provided max-keys not an integer or within integer range");
    }
    let mut parameters = vec![
        ("delimiter", as_it_is("delimiter")),
        ("encoding-type", as_it_is("encoding-type")),
        ("max-keys", as_it_is("max-keys")),
        (
            "prefix",
            Some([key_prefix, prefix].concat()).filter(|prefix| !prefix.is_empty()),
        ),
    ];
    if request.operation == Operation::ListObjectsV2 {
        parameters.extend([
            ("continuation-token", as_it_is("continuation-token")),
            ("fetch-owner", as_it_is("fetch-owner")),
            ("list-type", Some("2".to_owned())),
            ("start-after", below("start-after")),
        ]);
    } else {
        parameters.push(("marker", below("marker")));
    }
    let mut target = format!("{}/", origin.base_path());
    let mut separator = '?';
    for (name, value) in parameters {
        if let Some(value) = value {
            target.push(separator);
            target.push_str(name);
            target.push('=');
            target.push_str(&encode_value(&value));
            separator = '&';
        }
    }
    Ok(target)
}

// === impl ListRewriter ===

impl ListRewriter {
    /// A rewriter for the response to `request`.
    pub fn new(origin: &Origin, request: &S3Request) -> ListRewriter {
        let name = origin.public_name().unwrap_or(origin.bucket());
        ListRewriter {
            name: super::error::escape(name).into_owned(),
            key_prefix: origin.key_prefix().to_owned(),
            is_encoded: request.parameter("encoding-type") == Some("url"),
            pieces: Pieces::default(),
            open: Vec::new(),
            text: None,
            has_root: false,
        }
    }

    /// Rewrites a further piece of the document. Returns what can be sent.
    ///
    /// # Errors
    /// [`ListError`]
    pub fn write(&mut self, piece: &[u8]) -> Result<Vec<u8>, ListError> {
        let mut pieces = std::mem::take(&mut self.pieces);
        let mut sent = Vec::with_capacity(pieces.kept.len() + piece.len());
        pieces.write(piece, |event, raw| self.take(event, raw, &mut sent))?;
        self.pieces = pieces;
        Ok(sent)
    }

    /// Checks that the document is complete. Returns its rest.
    ///
    /// # Errors
    /// It is incomplete.
    pub fn finish(&mut self) -> Result<Vec<u8>, ListError> {
        match self.has_root && self.open.is_empty() && self.pieces.is_blank() {
            true => Ok(std::mem::take(&mut self.pieces.kept)),
            false => Err(ListError::Incomplete),
        }
    }

    fn take(&mut self, event: &Event<'_>, raw: &[u8], sent: &mut Vec<u8>) -> Result<(), ListError> {
        match event {
            Event::Start(tag) => {
                if self.text.is_some() || self.open.len() == MAX_DEPTH {
                    return Err(ListError::Malformed);
                }
                if self.open.is_empty() && std::mem::replace(&mut self.has_root, true) {
                    return Err(ListError::Malformed);
                }
                self.open.push(tag.name().as_ref().to_vec());
                sent.extend_from_slice(raw);
                self.text = self.is_rewritten().then(Vec::new);
            }
            Event::End(tag) => {
                if self.open.last().map(Vec::as_slice) != Some(tag.name().as_ref()) {
                    return Err(ListError::Malformed);
                }
                if let Some(text) = self.text.take() {
                    sent.extend_from_slice(self.rewritten(&text)?);
                }
                self.open.pop();
                sent.extend_from_slice(raw);
            }
            // An empty element stays empty.
            Event::Empty(_) | Event::Text(_) | Event::GeneralRef(_) => match &mut self.text {
                Some(_) if matches!(event, Event::Empty(_)) => return Err(ListError::Malformed),
                Some(text) if text.len() + raw.len() <= MAX_KEPT => text.extend_from_slice(raw),
                Some(_) => return Err(ListError::Malformed),
                None => sent.extend_from_slice(raw),
            },
            Event::Decl(_) if !self.has_root => sent.extend_from_slice(raw),
            // S3 does not write this, and a key could hide in it.
            _ => return Err(ListError::Malformed),
        }
        Ok(())
    }

    /// True if the text of the open element is rewritten.
    fn is_rewritten(&self) -> bool {
        let below_root: Vec<&[u8]> = self.open.iter().skip(1).map(Vec::as_slice).collect();
        match below_root[..] {
            [name] => name == b"Name" || KEYS.iter().any(|key| key.as_bytes() == name),
            [b"Contents", b"Key"] | [b"CommonPrefixes", b"Prefix"] => true,
            _ => false,
        }
    }

    fn rewritten<'t>(&'t self, text: &'t [u8]) -> Result<&'t [u8], ListError> {
        if self.open.last().is_some_and(|name| name == b"Name") {
            return Ok(self.name.as_bytes());
        }
        if text.is_empty() {
            return Ok(text);
        }
        let stripped = match strip_prefix(text, &self.key_prefix, false) {
            None if self.is_encoded => strip_prefix(text, &self.key_prefix, true),
            stripped => stripped,
        };
        stripped.ok_or(ListError::OutsidePrefix)
    }
}

// === impl Pieces ===

impl Pieces {
    /// Adds a further piece. `take` gets the events that are complete, each with the bytes that it was
    /// read from.
    fn write(
        &mut self,
        piece: &[u8],
        take: impl FnMut(&Event<'_>, &[u8]) -> Result<(), ListError>,
    ) -> Result<(), ListError> {
        self.kept.extend_from_slice(piece);
        // Only up to the last end of a tag: the rest may be incomplete.
        let complete = self.kept.iter().rposition(|byte| *byte == b'>');
        let consumed = match complete {
            Some(end) => read_events(&self.kept[..=end], take)?,
            None => 0,
        };
        self.kept.drain(..consumed);
        match self.kept.len() > MAX_KEPT {
            true => Err(ListError::Malformed),
            false => Ok(()),
        }
    }

    /// True if nothing is left but white space.
    fn is_blank(&self) -> bool {
        self.kept.iter().all(u8::is_ascii_whitespace)
    }
}

/// Reads whole tags and the text before them. Returns their length.
fn read_events(
    document: &[u8],
    mut take: impl FnMut(&Event<'_>, &[u8]) -> Result<(), ListError>,
) -> Result<usize, ListError> {
    // The reader's positions do not count a byte order mark at the beginning of its input. A
    // document may begin with one, and so may a piece that begins within a key.
    let mut start = 0;
    while document[start..].starts_with(BYTE_ORDER_MARK) {
        let mark = start..start + BYTE_ORDER_MARK.len();
        start = mark.end;
        take(&Event::Text(BytesText::new("")), &document[mark])?;
    }
    let offset = start;
    let mut reader = Reader::from_reader(&document[offset..]);
    let config = reader.config_mut();
    // A piece may begin within an element.
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    loop {
        let event = match reader.read_event() {
            Ok(Event::Eof) => return Ok(start),
            Ok(event) => event,
            // It may be the beginning of something that contains a `>`.
            Err(_) => return Ok(start),
        };
        let end = usize::try_from(reader.buffer_position());
        let end = end.map_or(start, |position| offset + position);
        let Some(raw) = document.get(start..end) else {
            return Err(ListError::Malformed);
        };
        start = end;
        take(&event, raw)?;
    }
}

// === impl ListReader ===

impl ListReader {
    /// Reads a further piece of the document, which [`ListRewriter`] has written.
    ///
    /// # Errors
    /// [`ListError::Malformed`]: also if the page is longer than S3's.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), ListError> {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.write(piece, |event, raw| self.take(event, raw))?;
        self.pieces = pieces;
        Ok(())
    }

    /// The page.
    ///
    /// # Errors
    /// The document is incomplete, or a key is not encoded as the document says.
    pub fn finish(self) -> Result<ListPage, ListError> {
        if !(self.has_root && self.open.is_empty() && self.pieces.is_blank()) {
            return Err(ListError::Incomplete);
        }
        let (mut objects, mut prefixes) = (self.objects, self.prefixes);
        if self.is_encoded {
            for object in &mut objects {
                object.key = decode(&object.key)?;
            }
            for prefix in &mut prefixes {
                *prefix = decode(prefix)?;
            }
        }
        let next = self.next.filter(|_| self.is_truncated);
        if self.is_truncated && next.is_none() {
            return Err(ListError::Incomplete);
        }
        Ok(ListPage {
            objects,
            prefixes,
            next,
        })
    }

    fn take(&mut self, event: &Event<'_>, raw: &[u8]) -> Result<(), ListError> {
        match event {
            Event::Start(tag) => {
                if self.open.len() == MAX_DEPTH {
                    return Err(ListError::Malformed);
                }
                self.has_root = true;
                self.open.push(tag.name().as_ref().to_vec());
                self.text = self.is_read().then(Vec::new);
            }
            Event::End(_) => {
                if let Some(text) = self.text.take() {
                    self.read(&text)?;
                }
                if self.is_in(&[b"Contents"]) {
                    let key = self.key.take().ok_or(ListError::Malformed)?;
                    self.objects.push(Listed {
                        key,
                        size: std::mem::take(&mut self.size),
                        modified: std::mem::take(&mut self.modified),
                    });
                }
                self.open.pop();
            }
            Event::Text(_) | Event::GeneralRef(_) => match &mut self.text {
                Some(text) if text.len() + raw.len() <= MAX_KEPT => text.extend_from_slice(raw),
                Some(_) => return Err(ListError::Malformed),
                None => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// True if these are the open elements below the root.
    fn is_in(&self, names: &[&[u8]]) -> bool {
        let open = self.open.iter().skip(1).map(Vec::as_slice);
        open.eq(names.iter().copied())
    }

    /// True if the text of the open element is read.
    fn is_read(&self) -> bool {
        let within: [&[&[u8]]; 7] = [
            &[b"Contents", b"Key"],
            &[b"Contents", b"LastModified"],
            &[b"Contents", b"Size"],
            &[b"CommonPrefixes", b"Prefix"],
            &[b"EncodingType"],
            &[b"IsTruncated"],
            &[b"NextContinuationToken"],
        ];
        within.iter().any(|names| self.is_in(names))
    }

    /// Count a further entry with a text of `bytes`.
    fn count(&mut self, bytes: usize) -> Result<(), ListError> {
        self.bytes += bytes;
        let entries = self.objects.len() + self.prefixes.len();
        match self.bytes > MAX_PAGE || entries >= MAX_OBJECTS {
            true => Err(ListError::Malformed),
            false => Ok(()),
        }
    }

    /// Read the text of the open element.
    fn read(&mut self, text: &[u8]) -> Result<(), ListError> {
        let text = std::str::from_utf8(text).map_err(|_| ListError::Malformed)?;
        let text = quick_xml::escape::unescape(text).map_err(|_| ListError::Malformed)?;
        match self.open.last().map(Vec::as_slice) {
            Some(b"Key") => {
                self.count(text.len())?;
                self.key = Some(text.into_owned());
            }
            Some(b"Prefix") => {
                self.count(text.len())?;
                self.prefixes.push(text.into_owned());
            }
            Some(b"LastModified") => {
                self.bytes += text.len();
                self.modified = text.into_owned();
            }
            Some(b"Size") => self.size = text.trim().parse().unwrap_or(0),
            Some(b"EncodingType") => self.is_encoded = &*text == "url",
            Some(b"IsTruncated") => self.is_truncated = text.trim() == "true",
            _ => self.next = Some(text.into_owned()).filter(|next| !next.is_empty()),
        }
        Ok(())
    }
}

/// A key that was written with `encoding-type=url`.
fn decode(written: &str) -> Result<String, ListError> {
    let mut decoded = Vec::with_capacity(written.len());
    let mut rest = written.as_bytes();
    while !rest.is_empty() {
        let (len, byte) = match rest {
            // A reference has been replaced already.
            [b'&', ..] => (1, vec![b'&']),
            _ => character(rest, true).ok_or(ListError::Malformed)?,
        };
        decoded.extend(byte);
        rest = &rest[len..];
    }
    String::from_utf8(decoded).map_err(|_| ListError::Malformed)
}

/// The rest of a text after a prefix, as it is written. Characters of the prefix may be written as
/// references or percent-encoded.
fn strip_prefix<'t>(text: &'t [u8], prefix: &str, is_encoded: bool) -> Option<&'t [u8]> {
    let mut rest = text;
    let mut prefix = prefix.as_bytes();
    while !prefix.is_empty() {
        let (len, bytes) = character(rest, is_encoded)?;
        prefix = prefix.strip_prefix(&*bytes)?;
        rest = &rest[len..];
    }
    Some(rest)
}

/// The first character of a text, or byte of it: its length as written, and its meaning.
fn character(text: &[u8], is_encoded: bool) -> Option<(usize, Vec<u8>)> {
    match text {
        [b'&', ..] => {
            let end = text.iter().position(|byte| *byte == b';')?;
            let reference = std::str::from_utf8(&text[..=end]).ok()?;
            let meant = quick_xml::escape::unescape(reference).ok()?;
            Some((end + 1, meant.as_bytes().to_vec()))
        }
        [b'%', high, low, ..] if is_encoded => {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let byte = digit(*high)? << 4 | digit(*low)?;
            Some((3, vec![u8::try_from(byte).ok()?]))
        }
        [b'+', ..] if is_encoded => Some((1, vec![b' '])),
        [byte, ..] => Some((1, vec![*byte])),
        [] => None,
    }
}

// === impl ListError ===

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ListError::Malformed => "the list has a form that S3 does not write",
            ListError::Incomplete => "the list ends too early",
            ListError::OutsidePrefix => "the list has keys outside the requested prefix",
        })
    }
}

impl std::error::Error for ListError {}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::s3::{Bucket, S3Endpoint, Target};

    fn origin(key_prefix: &str) -> Origin {
        Origin::new(Bucket {
            path_prefix: Some("/a/files".to_owned()),
            hosts: Vec::new(),
            name: "secret-bucket".to_owned(),
            key_prefix: key_prefix.to_owned(),
            principal: None,
            region: "us-east-1".to_owned(),
            endpoint: Some(S3Endpoint::parse("http://s3:9000").unwrap()),
            credentials: None,
            passthrough: false,
            connection: crate::s3::ConnectionOptions::default(),
        })
    }

    fn request(query: &str) -> S3Request {
        let query = Some(query.as_bytes());
        S3Request::read(&Method::GET, Target::Bucket, query, &HeaderMap::new()).unwrap()
    }

    fn rewrite(
        key_prefix: &str,
        query: &str,
        document: &str,
        pieces: usize,
    ) -> Result<String, ListError> {
        let mut rewriter = ListRewriter::new(&origin(key_prefix), &request(query));
        let mut sent = Vec::new();
        for piece in document.as_bytes().chunks(pieces) {
            sent.extend(rewriter.write(piece)?);
        }
        sent.extend(rewriter.finish()?);
        Ok(String::from_utf8(sent).unwrap())
    }

    const LIST: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
        <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
        <Name>secret-bucket</Name><Prefix>t&amp;m/a</Prefix><StartAfter></StartAfter>\
        <NextContinuationToken>t&amp;m/x==</NextContinuationToken><Marker/>\
        <NextMarker>t&#38;m/b</NextMarker><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys>\
        <Delimiter>/</Delimiter><IsTruncated>false</IsTruncated>\
        <Contents><Key>t&amp;m/a&lt;>b&#x1;</Key><ETag>&quot;1&quot;</ETag><Size>3</Size>\
        <Owner><ID>Key</ID></Owner></Contents>\n  \
        <CommonPrefixes><Prefix>t&amp;m/ü/</Prefix></CommonPrefixes></ListBucketResult>\n";

    #[test]
    fn keys_lose_the_prefix_however_the_document_is_cut() {
        let expected = LIST
            .replace("secret-bucket", "files")
            .replace("<Prefix>t&amp;m/", "<Prefix>")
            .replace("<NextMarker>t&#38;m/", "<NextMarker>")
            .replace("<Key>t&amp;m/", "<Key>");
        for pieces in 1..LIST.len() {
            let rewritten = rewrite("t&m/", "list-type=2", LIST, pieces).unwrap();
            assert_eq!(rewritten, expected, "{pieces}");
        }
        let whole = rewrite("", "", LIST, 10).unwrap();
        assert_eq!(whole, LIST.replace("secret-bucket", "files"));
    }

    #[test]
    fn a_byte_order_mark_is_a_character_like_others() {
        let list = |prefix: &str| {
            format!(
                "\u{feff}<?xml version=\"1.0\"?><L>\
                 <Contents><Key>{prefix}\u{feff}\u{feff}a</Key></Contents>\
                 <Prefix>{prefix}</Prefix>\u{feff}</L>\n"
            )
        };
        for prefix in ["", "\u{feff}/"] {
            let list_of = list(prefix);
            for pieces in 1..=list_of.len() {
                let rewritten = rewrite(prefix, "", &list_of, pieces);
                assert_eq!(rewritten.as_deref(), Ok(&*list("")), "{pieces}");
            }
        }
    }

    #[test]
    fn keys_may_be_encoded() {
        let list = |key: &str| format!("<L><Contents><Key>{key}</Key></Contents></L>");
        for written in ["t+%C3%BC/a+b", "t%20%c3%bc/a+b", "t%20ü/a+b"] {
            let rewritten = rewrite("t ü/", "encoding-type=url", &list(written), 7);
            assert_eq!(rewritten.as_deref(), Ok(&*list("a+b")), "{written}");
            let refused = rewrite("t ü/", "", &list(written), 7);
            assert_eq!(refused, Err(ListError::OutsidePrefix), "{written}");
        }
        // An origin that does not know the parameter.
        let rewritten = rewrite("t ü/", "encoding-type=url", &list("t ü/a b"), 7);
        assert_eq!(rewritten.as_deref(), Ok(&*list("a b")));
    }

    #[test]
    fn what_is_no_list_below_the_prefix_is_not_passed_on() {
        use ListError::*;
        for (document, error) in [
            (
                "<L><Contents><Key>other/a</Key></Contents></L>",
                OutsidePrefix,
            ),
            ("<L><Contents><Key>t</Key></Contents></L>", OutsidePrefix),
            ("<L><Prefix>other/</Prefix></L>", OutsidePrefix),
            ("<L><Contents><Key>t/<b/></Key></Contents></L>", Malformed),
            (
                "<L><Contents><Key><![CDATA[other]]></Key></Contents></L>",
                Malformed,
            ),
            ("<L><!-- other/a --></L>", Malformed),
            ("<!DOCTYPE L [<!ENTITY k 'other/a'>]><L></L>", Malformed),
            ("<L></M>", Malformed),
            ("<L></L><L></L>", Malformed),
            ("<L><Contents>", Incomplete),
            ("<L><Contents><Key>t/a</Key></Contents>", Incomplete),
            ("<L></L><", Incomplete),
            ("<L", Incomplete),
            ("", Incomplete),
        ] {
            for pieces in [1, 1000] {
                let refused = rewrite("t/", "", document, pieces);
                assert_eq!(refused, Err(error), "{document} in {pieces}");
            }
        }
        let deep = "<a>".repeat(MAX_DEPTH + 1);
        assert_eq!(rewrite("", "", &deep, 100), Err(Malformed));
    }

    #[test]
    fn no_more_than_a_tag_is_kept() {
        let mut rewriter = ListRewriter::new(&origin("t/"), &request(""));
        rewriter.write(b"<L><Contents><Key>").unwrap();
        let filler = [b'a'; 1000];
        let refused = (0..1000).find_map(|_| rewriter.write(&filler).err());
        assert_eq!(refused, Some(ListError::Malformed));

        let mut rewriter = ListRewriter::new(&origin("t/"), &request(""));
        rewriter.write(b"<L>").unwrap();
        for _ in 0..10_000 {
            let sent = rewriter.write(b"<Contents><Key>t/a</Key></Contents>");
            assert_eq!(sent.unwrap(), b"<Contents><Key>a</Key></Contents>");
        }
        assert!(rewriter.pieces.kept.capacity() < MAX_KEPT);
    }

    fn read(document: &str, pieces: usize) -> Result<ListPage, ListError> {
        let mut reader = ListReader::default();
        for piece in document.as_bytes().chunks(pieces) {
            reader.write(piece)?;
        }
        reader.finish()
    }

    fn page(objects: &[(&str, u64, &str)], prefixes: &[&str], next: Option<&str>) -> ListPage {
        let objects = objects.iter().map(|(key, size, modified)| Listed {
            key: (*key).to_owned(),
            size: *size,
            modified: (*modified).to_owned(),
        });
        ListPage {
            objects: objects.collect(),
            prefixes: prefixes.iter().map(|&prefix| prefix.to_owned()).collect(),
            next: next.map(str::to_owned),
        }
    }

    #[test]
    fn a_page_is_read_however_the_document_is_cut() {
        let encoded = "<L><Contents><Key>a+b%2B%26%C3%BC/</Key><Size>0</Size></Contents>\
             <Contents><Owner><Key>no</Key><ID>x</ID></Owner><Size>7</Size><Key>&amp;%25</Key>\
             <LastModified>2026-11-30T08:00:00.000Z</LastModified></Contents>\
             <CommonPrefixes><Prefix>%3Ca%3E/</Prefix></CommonPrefixes><Prefix>p</Prefix><EncodingType>url</EncodingType>\
             <IsTruncated>true</IsTruncated>\
             <NextContinuationToken>a&lt;b==</NextContinuationToken></L>";
        let plain = page(&[("t&m/a<>b\u{1}", 3, "")], &["t&m/ü/"], None);
        for pieces in 1..LIST.len() {
            let objects = [("a b+&ü/", 0, ""), ("&%", 7, "2026-11-30T08:00:00.000Z")];
            let of_encoded = page(&objects, &["<a>/"], Some("a<b=="));
            assert_eq!(read(encoded, pieces), Ok(of_encoded), "{pieces}");
            assert_eq!(read(LIST, pieces).as_ref(), Ok(&plain), "{pieces}");
        }
        assert_eq!(read("<L/>", 10), Err(ListError::Incomplete));
        assert_eq!(read("<L></L>", 10), Ok(page(&[], &[], None)));
    }

    #[test]
    fn what_is_no_page_is_refused() {
        use ListError::*;
        for (document, error) in [
            ("", Incomplete),
            ("<L><Contents>", Incomplete),
            ("<L><IsTruncated>true</IsTruncated></L>", Incomplete),
            ("<L><Contents><Size>1</Size></Contents></L>", Malformed),
            (
                "<L><EncodingType>url</EncodingType><Contents><Key>%ff</Key></Contents></L>",
                Malformed,
            ),
        ] {
            assert_eq!(read(document, 7), Err(error), "{document}");
        }
        let long = "<Contents><Key>a</Key></Contents>".repeat(MAX_OBJECTS + 1);
        assert_eq!(read(&format!("<L>{long}</L>"), 1000), Err(Malformed));
    }

    #[test]
    fn the_origin_is_asked_below_the_prefix_only() {
        for (key_prefix, query, expected) in [
            ("", "", "/secret-bucket/"),
            ("", "prefix=", "/secret-bucket/"),
            ("", "list-type=2", "/secret-bucket/?list-type=2"),
            ("t m/", "", "/secret-bucket/?prefix=t%20m%2F"),
            (
                "t/",
                "list-type=2&prefix=a%2Fb&delimiter=%2F&start-after=c&continuation-token=d%2B%3D&max-keys=2&fetch-owner=true&encoding-type=url&x-id=1&marker=e",
                "/secret-bucket/?delimiter=%2F&encoding-type=url&max-keys=2&prefix=t%2Fa%2Fb&continuation-token=d%2B%3D&fetch-owner=true&list-type=2&start-after=t%2Fc",
            ),
            ("t/", "marker=a&start-after=b", "/secret-bucket/?prefix=t%2F&marker=t%2Fa"),
            ("t/", "marker=", "/secret-bucket/?prefix=t%2F"),
        ] {
            let asked = target(&origin(key_prefix), &request(query));
            assert_eq!(asked.as_deref(), Ok(expected), "{query}");
        }
        for query in [
            "prefix=../",
            "prefix=a/../b",
            "prefix=./a",
            "prefix=a/..",
            "encoding-type=base64",
            "max-keys=-1",
            "max-keys=x",
        ] {
            let refused = target(&origin("t/"), &request(query)).unwrap_err();
            assert_eq!(refused.code, "InvalidArgument", "{query}");
        }
    }
}
