//! Changes at S3 are not missed. Every object that an XML parser finds in a DeleteObjects
//! document is read from it, however the document is cut, and takes bounded memory. A request
//! counts as a change unless it is known to change nothing.

#![no_main]

mod seeds;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::s3::{Change, DeletedKeys, Operation, Proof, S3Request, Signed, Target};
use quick_xml::events::Event;
use quick_xml::Reader;

/// The most objects of one document.
const MAX_OBJECTS: usize = 1000;
const MAX_KEYS_BYTES: usize = 64 * 1024;

/// A key, and its version if the document names one.
type Object = (String, Option<String>);

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    // Input: a line with the size of pieces (one byte) and a request, then a document.
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (line, document) = (&data[..end], &data[end + 1..]);
    let [size, line @ ..] = line else { return };
    check_request(line);
    let whole = read(document, document.len());
    let pieces = read(document, usize::from(*size));
    assert_eq!(whole, pieces);
    if let Some(objects) = &whole {
        let bytes = |(key, version): &Object| key.len() + version.as_ref().map_or(0, String::len);
        assert!(objects.len() <= MAX_OBJECTS);
        assert!(objects.iter().map(bytes).sum::<usize>() <= MAX_KEYS_BYTES);
    }
    if let (Some(found), Some(meant)) = (whole, parsed(document)) {
        for object in &meant {
            assert!(found.contains(object), "{object:?} is not among {found:?}");
        }
    }
});

fn read(document: &[u8], size: usize) -> Option<Vec<Object>> {
    let mut deleted = DeletedKeys::default();
    for piece in document.chunks(size.max(1)) {
        deleted.read(piece);
    }
    let objects = deleted.complete()?.iter();
    let objects = objects.map(|object| (object.key.clone(), object.version_id.clone()));
    Some(objects.collect())
}

/// The objects that an XML parser finds. `None` if the document is not well-formed, or has
/// other elements.
fn parsed(document: &[u8]) -> Option<Vec<Object>> {
    let text = std::str::from_utf8(document).ok()?;
    let mut reader = Reader::from_str(text);
    let mut open: Vec<String> = Vec::new();
    let mut objects = Vec::new();
    let (mut key, mut version, mut content) = (None, None, String::new());
    let mut has_root = false;
    loop {
        match reader.read_event().ok()? {
            Event::Eof => break,
            Event::Start(tag) => {
                has_root = true;
                let name = tag.local_name();
                open.push(std::str::from_utf8(name.as_ref()).ok()?.to_owned());
                content.clear();
            }
            Event::End(_) => {
                let names: Vec<_> = open.iter().map(String::as_str).collect();
                match names[..] {
                    ["Delete", "Object", "Key"] => key = Some(std::mem::take(&mut content)),
                    ["Delete", "Object", "VersionId"] => {
                        version = Some(std::mem::take(&mut content));
                    }
                    ["Delete", "Object"] => {
                        let named = version.take().filter(|version| !version.is_empty());
                        objects.extend(key.take().map(|key| (key, named)));
                    }
                    _ => {}
                }
                open.pop();
            }
            Event::Text(part) => content += &part.xml10_content().ok()?,
            Event::CData(part) => content += &part.xml10_content().ok()?,
            Event::GeneralRef(reference) => {
                let name = reference.decode().ok()?;
                let text = format!("&{name};");
                content += &quick_xml::escape::unescape(&text).ok()?;
            }
            _ => {}
        }
    }
    (has_root && open.is_empty()).then_some(objects)
}

/// `METHOD TARGET[ NAME:VALUE]...`, where the target is that of a bucket.
fn check_request(line: &[u8]) {
    let mut parts = line.split(|byte| *byte == b' ');
    let Ok(method) = Method::from_bytes(parts.next().unwrap_or_default()) else {
        return;
    };
    let target = parts.next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(target) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for field in parts {
        let mut halves = field.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(halves.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(halves.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query.as_bytes())),
        None => (text, None),
    };
    check_proof(&method, target, query, &headers);
    let Ok(about) = Target::in_bucket(path.trim_start_matches('/')) else {
        return;
    };
    let Ok(request) = S3Request::read(&method, about, query, &headers) else {
        return;
    };
    let change = Change::of(&request, &method, &headers);
    let is_read = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
    assert!(!is_read || change == Change::Nothing);
    assert!(!is_read || !Change::changes_permissions(&request, &method));
    let of_object = request.target.key().is_some();
    let has = |name: &str| query.is_some_and(|query| has_parameter(query, name));
    // Uploaded parts are not an object yet, and SelectObjectContent only reads.
    let is_known = has("uploadId") || has("uploads") || has("select");
    if of_object && !is_read && !is_known {
        assert_ne!(change, Change::Nothing, "{request:?}");
    }
    if request.operation == Operation::CompleteMultipartUpload {
        assert_ne!(change, Change::Nothing);
    }
    if request.operation == Operation::DeleteObjects {
        assert!(matches!(change, Change::Listed | Change::Bucket));
    }
}

fn has_parameter(query: &[u8], name: &str) -> bool {
    // An escape may hide the name.
    query.contains(&b'%')
        || query.split(|byte| *byte == b'&').any(|parameter| {
            let found = parameter.split(|byte| *byte == b'=').next();
            found == Some(name.as_bytes())
        })
}

/// A proof expires exactly if the request is signed. One more field makes another proof.
fn check_proof(method: &Method, target: &[u8], query: Option<&[u8]>, headers: &HeaderMap) {
    let proof = |headers: &HeaderMap| Proof::of(method.as_str(), target, [None; 3], headers);
    let Some(proved) = proof(headers) else {
        return;
    };
    assert_eq!(proof(headers), Some(proved));
    let signed = Signed::of(query, headers);
    assert_eq!(proved.until.is_none(), signed == Signed::Nothing);
    let mut other = headers.clone();
    other.append("referer", HeaderValue::from_static("a"));
    let other = proof(&other).expect("as before");
    assert!(other.until == proved.until && other.digest != proved.digest);
}

fn examples() -> Vec<Vec<u8>> {
    let list = "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Object><Key>a</Key>\
                <VersionId>v</VersionId></Object><Object><Key>b</Key></Object></Delete>";
    let auth = "authorization:AWS4-HMAC-SHA256,Credential=A/20130524/us-east-1/s3/aws4_request,\
                SignedHeaders=host;x-amz-date,Signature=00";
    [
        format!("\x01POST ?delete x-amz-sdk-checksum-algorithm:CRC32 {auth} x-amz-date:20130524T000000Z\n{list}"),
        format!("\x05POST ?delete x-amz-content-sha256:STREAMING-UNSIGNED-PAYLOAD-TRAILER\n<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{list}\n"),
        "\x02PUT a/b x-amz-copy-source:/b/k\n<Delete>\n <Quiet>true</Quiet><Object><VersionId/><Key>x &amp; y &#xFC;</Key></Object></Delete>".to_owned(),
        "\x03POST a?uploadId=1\n<Delete><Object a='\"' b='\"'><Key>&lt;a\"></Key></Object></Delete>".to_owned(),
        "\x04DELETE a?versionId=null\n<Delete><!-- <Key>a</Key> --></Delete>".to_owned(),
        "\x09PUT a?acl&X-Amz-Date=20130524T000000Z&X-Amz-Expires=60&X-Amz-Signature=00\n<Delete><Object><Key><![CDATA[a]]></Key></Object></Delete>".to_owned(),
        "\x09PUT a?partNumber=1&uploadId=2&AWSAccessKeyId=A&Signature=b&Expires=1\n<Delete><Object><ETag>1</ETag><Key>a\r\nb</Key></Object></Delete>".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
