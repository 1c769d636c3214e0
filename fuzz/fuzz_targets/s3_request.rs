//! Whatever a client writes, the origin is asked for something below the bucket and its
//! `key_prefix`, spelled in one way, and an error is a document that a parser reads.

#![no_main]

mod seeds;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::s3::{
    list, Bucket, Endpoint, Operation, Origin, RouteError, Router, S3Error, S3Request, Site, Target,
};
use quick_xml::events::Event;
use quick_xml::Reader;

const BASE: &str = "/bucket/team/";

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    // A method, a path, a query, and fields, on a line each.
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, path, query) = (line(), line(), line());
    let (Ok(method), Ok(path)) = (Method::from_bytes(method), std::str::from_utf8(path)) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for field in lines {
        let mut halves = field.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(halves.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(halves.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let query = (!query.is_empty()).then_some(query);
    let router = router();
    let host = headers.get("host").map(HeaderValue::as_bytes);
    let Some((site, rest)) = router.route(host, path) else {
        return;
    };
    let target = match Target::in_bucket(rest) {
        Ok(target) => target,
        Err(error) => return check_error(&error.into(), path),
    };
    if let Target::Object(key) = &target {
        check_key(&router, site, key);
    }
    match S3Request::read(&method, target, query, &headers) {
        Ok(request) => check_request(site, &request),
        Err(error) => check_error(&error, path),
    }
});

fn router() -> Router {
    Router::new(vec![Origin::new(Bucket {
        path_prefix: Some("/assets".into()),
        hosts: vec!["cdn.example.com".into()],
        name: "bucket".into(),
        key_prefix: "team/".into(),
        principal: None,
        region: "us-east-1".into(),
        endpoint: Endpoint::parse("http://s3:9000").ok(),
        credentials: None,
        passthrough: false,
    })])
}

fn check_key(router: &Router, site: &Site, key: &pingora_sendfile::s3::ObjectKey) {
    let target = site.target(key);
    let encoded = target.strip_prefix(BASE).expect("below the prefix");
    assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~/%".contains(&b)));
    assert!(stays_below(encoded), "{target}");
    // The key that is sent is read back as the same one.
    match router.object(&format!("/assets/{encoded}")) {
        Ok((_, again)) => assert_eq!(again, *key),
        Err(error) => assert!(matches!(error, RouteError::BadKey(_)), "{error}"),
    }
    if let Some(resolved) = key.without_dot_segments() {
        assert!(stays_below(&resolved.encoded()));
        assert!(resolved.without_dot_segments().is_none());
    }
}

/// True if a server that resolves dot segments, and takes doubled slashes for one, finds
/// something below the base.
fn stays_below(encoded: &str) -> bool {
    let mut depth = 0;
    for segment in encoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

fn check_request(site: &Site, request: &S3Request) {
    for (name, value) in request.overrides() {
        assert!(!name.as_str().is_empty());
        assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    assert!(request.version_id().is_none_or(|id| !request.reads_object() || !id.is_empty()));
    assert!(request.part_number().is_none_or(|number| (1..=10_000).contains(&number)));
    if request.is_plain() {
        assert!(request.overrides().is_empty() && request.passed_fields().is_empty());
    }
    if matches!(request.operation, Operation::ListObjects | Operation::ListObjectsV2) {
        match list::target(site, request) {
            Ok(target) => {
                let query = target.strip_prefix("/bucket/?").expect("a query");
                let prefixes: Vec<_> = query
                    .split('&')
                    .filter_map(|parameter| parameter.strip_prefix("prefix="))
                    .collect();
                assert!(
                    matches!(prefixes[..], [prefix] if prefix.starts_with("team%2F")),
                    "{target}"
                );
                assert!(query.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~%=&".contains(&b)));
            }
            Err(error) => check_error(&error, "/"),
        }
    }
}

fn check_error(error: &S3Error, path: &str) {
    assert!(error.status.is_client_error() || error.status.is_server_error());
    let document = error.to_xml(path, "1");
    let mut reader = Reader::from_str(&document);
    let mut elements = Vec::new();
    loop {
        match reader.read_event().expect("well-formed") {
            Event::Eof => break,
            Event::Start(tag) => elements.push(tag.name().as_ref().to_vec()),
            _ => {}
        }
    }
    let expected = ["Error", "Code", "Message", "Resource", "RequestId"];
    assert!(elements.iter().map(Vec::as_slice).eq(expected.map(str::as_bytes)));
}

fn examples() -> Vec<Vec<u8>> {
    [
        "GET\n/assets/a/b%20c\n\n",
        "HEAD\n/%61ssets//a/\nversionId=null&x-id=GetObject\nhost:a",
        "GET\n/assets/a/../b%2F%2e%2e/c\npartNumber=1\nx-amz-checksum-mode:ENABLED",
        "GET\n/a+b\nresponse-content-type=text%2Fhtml\nhost:CDN.example.com.:80",
        "GET\n/assets\nlist-type=2&prefix=a%2F&delimiter=/&start-after=b&encoding-type=url\n",
        "GET\n/assets/\nmarker=a&max-keys=2\n",
        "PUT\n/assets/a\npartNumber=1&uploadId=2\nx-amz-copy-source:/b/k",
        "POST\n/assets?\ndelete\n",
        "GET\n/assets/%ff\nacl&tagging\nrange:bytes=0-1",
        "GET\n/assets/a\n%61cl\nx-amz-server-side-encryption-customer-key:k",
    ]
    .map(|example| example.as_bytes().to_vec())
    .to_vec()
}
