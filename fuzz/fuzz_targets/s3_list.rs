//! The document of a list is rewritten the same however it is cut. The result is well-formed
//! if the document was. Only the name of the bucket and the beginnings of keys differ, and no
//! key is outside the prefix. The objects that are read from a document are the same, too.

#![no_main]

mod decoded;
mod seeds;

use decoded::decoded;
use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::s3::{
    Bucket, ConnectionOptions, Fault, ListError, ListPage, ListReader, ListRewriter, Origin,
    S3Endpoint, S3Request, Target,
};
use quick_xml::escape::unescape;
use quick_xml::events::Event;
use quick_xml::Reader;

const PREFIX: &str = "t&/";
const NAME: &str = "assets";

/// An element: the names on the path from the root, and its own text as written.
type Element = (Vec<String>, String);

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    let [size, document @ ..] = data else {
        return;
    };
    check_fault(document);
    let page = |size| read(document, size).ok();
    assert_eq!(page(document.len()), page(usize::from(*size)));
    for key_prefix in [PREFIX, ""] {
        for query in ["", "list-type=2&encoding-type=url"] {
            let rewrite = |size: usize| rewrite(key_prefix, query, document, size);
            let whole = rewrite(document.len());
            let pieces = rewrite(usize::from(*size));
            match (whole, pieces) {
                (Ok(whole), Ok(pieces)) => {
                    assert_eq!(whole, pieces);
                    check(document, &whole, key_prefix, !query.is_empty());
                }
                (Err(_), Err(_)) => {}
                (whole, pieces) => panic!("{whole:?} {pieces:?}"),
            }
        }
    }
});

fn read(document: &[u8], size: usize) -> Result<ListPage, ListError> {
    let mut reader = ListReader::default();
    for piece in document.chunks(size.max(1)) {
        reader.write(piece)?;
    }
    reader.finish()
}

fn rewrite(
    key_prefix: &str,
    query: &str,
    document: &[u8],
    size: usize,
) -> Result<Vec<u8>, ListError> {
    let origin = origin(key_prefix);
    let request = S3Request::read(
        &Method::GET,
        Target::Bucket,
        Some(query.as_bytes()),
        &HeaderMap::new(),
    );
    let mut rewriter = ListRewriter::new(&origin, &request.expect("a request"));
    let mut sent = Vec::new();
    for piece in document.chunks(size.max(1)) {
        sent.extend(rewriter.write(piece)?);
    }
    sent.extend(rewriter.finish()?);
    Ok(sent)
}

fn check(document: &[u8], sent: &[u8], key_prefix: &str, is_encoded: bool) {
    // A document that is not well-formed is left to the client's parser.
    let Some(came) = elements(document) else {
        return;
    };
    let sent = elements(sent).expect("well-formed, as it came");
    assert_eq!(came.len(), sent.len());
    for ((path, came), (same_path, sent)) in came.iter().zip(&sent) {
        assert_eq!(path, same_path);
        let below_root: Vec<_> = path.iter().skip(1).map(String::as_str).collect();
        match below_root[..] {
            ["Name"] => assert_eq!(sent, NAME),
            ["Prefix" | "Marker" | "NextMarker" | "StartAfter"]
            | ["Contents", "Key"]
            | ["CommonPrefixes", "Prefix"] => check_key(came, sent, key_prefix, is_encoded),
            _ => assert_eq!(came, sent, "{path:?}"),
        }
    }
}

fn check_key(came: &str, sent: &str, key_prefix: &str, is_encoded: bool) {
    assert!(came.ends_with(sent));
    let Ok(key) = unescape(came) else { return };
    let sent = unescape(sent).expect("the rest of a text");
    if key.is_empty() || key_prefix.is_empty() {
        assert_eq!(key, sent);
        return;
    }
    let key = match key.strip_prefix(key_prefix) {
        Some(rest) => {
            assert_eq!(rest, sent);
            return;
        }
        None => key,
    };
    assert!(is_encoded, "{key} is outside");
    let (key, sent) = (
        decoded(key.as_bytes(), b' '),
        decoded(sent.as_bytes(), b' '),
    );
    let key_prefix = key_prefix.as_bytes();
    assert_eq!(
        key.strip_prefix(key_prefix),
        Some(&*sent),
        "{key:?} is outside"
    );
}

/// The elements in the order in which they end. `None` if the document is not well-formed.
fn elements(document: &[u8]) -> Option<Vec<Element>> {
    let document = std::str::from_utf8(document).ok()?;
    // The reader's positions do not count a byte order mark.
    let document = document.strip_prefix('\u{feff}').unwrap_or(document);
    let mut reader = Reader::from_str(document);
    let mut elements = Vec::new();
    let mut open: Vec<Element> = Vec::new();
    let mut add = |open: &[Element], text: String| {
        let names = open.iter().map(|(names, _)| names.concat());
        elements.push((names.collect(), text));
    };
    loop {
        let start = reader.buffer_position();
        let event = reader.read_event().ok()?;
        let end = reader.buffer_position();
        let raw = || {
            let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
            document.get(range)
        };
        let name = |name: &[u8]| std::str::from_utf8(name).ok().map(str::to_owned);
        match &event {
            Event::Eof => break,
            Event::Start(tag) => open.push((vec![name(tag.name().as_ref())?], String::new())),
            Event::Empty(tag) => {
                open.push((vec![name(tag.name().as_ref())?], String::new()));
                add(&open, String::new());
                open.pop();
            }
            Event::End(_) => {
                let text = open.last()?.1.clone();
                add(&open, text);
                open.pop();
            }
            Event::Text(_) | Event::GeneralRef(_) => {
                if let Some((_, text)) = open.last_mut() {
                    text.push_str(raw()?);
                }
            }
            _ => {}
        }
    }
    open.is_empty().then_some(elements)
}

/// The code and region of an error document are short and plain, because they go to the log.
fn check_fault(document: &[u8]) {
    let Some(fault) = Fault::read(document) else {
        return;
    };
    for text in [fault.code(), fault.region()].into_iter().flatten() {
        assert!(!text.is_empty() && text.len() <= 64);
        assert!(text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    }
}

fn origin(key_prefix: &str) -> Origin {
    Origin::new(Bucket {
        path_prefix: Some(format!("/{NAME}")),
        hosts: Vec::new(),
        name: "bucket".into(),
        key_prefix: key_prefix.into(),
        principal: None,
        region: "us-east-1".into(),
        endpoint: S3Endpoint::parse("http://s3:9000").ok(),
        credentials: None,
        passthrough: false,
        connection: ConnectionOptions::default(),
    })
}

fn examples() -> Vec<Vec<u8>> {
    [
        "\x01<?xml version=\"1.0\"?><L><Name>b</Name><Contents><Key>t&amp;/a</Key></Contents></L>",
        "\x03<L a=\"b\"><Prefix>t&#38;/</Prefix><CommonPrefixes><Prefix>t&amp;/a&amp;/</Prefix></CommonPrefixes></L>",
        "\x07<L><Marker/><NextMarker>t%26%2Fa+b</NextMarker><Contents><Key>u/a</Key></Contents></L>",
        "\x02<L><!-- > --><Name><![CDATA[>]]></Name></L>",
        "\x05<L>a > b &gt; <A></A></L>\n",
        "\x04\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>bucket</Name><Prefix>t%26%2Fd%2F</Prefix><StartAfter></StartAfter>\
         <ContinuationToken>t&amp;/x==</ContinuationToken><NextContinuationToken>dCYv</NextContinuationToken>\
         <KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><Delimiter>%2F</Delimiter><EncodingType>url</EncodingType>\
         <IsTruncated>true</IsTruncated><Contents><Key>t%26%2Fd%2F%E2%82%AC</Key>\
         <LastModified>2013-05-24T00:00:00.000Z</LastModified><ETag>&quot;d41d8&quot;</ETag>\
         <ChecksumAlgorithm>CRC32</ChecksumAlgorithm><Size>3</Size><Owner><ID>1</ID><DisplayName>n</DisplayName></Owner>\
         <StorageClass>STANDARD</StorageClass></Contents>\
         <CommonPrefixes><Prefix>t%26%2Fd%2Fe%2F</Prefix></CommonPrefixes></ListBucketResult>",
        "\x09<?xml version=\"1.0\"?><Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>",
        "\x06<L><Contents><Key>t&amp;/</Key><Key>t&amp;</Key></Contents></M>",
    ]
    .map(|example| example.as_bytes().to_vec())
    .to_vec()
}
