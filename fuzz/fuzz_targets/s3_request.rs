//! The origin is only asked for something below the bucket and its `key_prefix`, spelled in one
//! way, whatever a client writes. Parameters are those that a second implementation finds in the
//! query. An error is a document that a parser reads.

#![no_main]

mod decoded;
mod seeds;

use decoded::decoded;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::s3::{
    decode_unreserved, list, Bucket, ConnectionOptions, ObjectKey, Operation, Origin, RouteError,
    Router, S3Endpoint, S3Error, S3Request, Site, Target,
};
use quick_xml::events::Event;
use quick_xml::Reader;

/// Sub-resources: parameters of requests for something other than an object or a list.
const SUB_RESOURCES: [&str; 12] = [
    "acl",
    "attributes",
    "delete",
    "legal-hold",
    "location",
    "policy",
    "restore",
    "retention",
    "select",
    "tagging",
    "torrent",
    "versions",
];

/// Parameters whose values this fuzz target compares.
const PARAMETERS: [&str; 9] = [
    "continuation-token",
    "delimiter",
    "encoding-type",
    "marker",
    "max-keys",
    "partNumber",
    "prefix",
    "response-content-type",
    "versionId",
];

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
    check_spelling(&router, host, path);
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
        Ok(request) => {
            check_parameters(&request, query.unwrap_or_default());
            check_request(site, &request);
        }
        Err(error) => check_error(&error, path),
    }
});

fn router() -> Router {
    let bucket = |path: &str, name: &str| Bucket {
        path_prefix: Some(path.into()),
        hosts: Vec::new(),
        name: name.into(),
        key_prefix: String::new(),
        principal: None,
        region: "us-east-1".into(),
        endpoint: S3Endpoint::parse("http://s3:9000").ok(),
        credentials: None,
        passthrough: false,
        connection: ConnectionOptions::default(),
    };
    let assets = Bucket {
        hosts: vec!["cdn.example.com".into()],
        key_prefix: "team/".into(),
        ..bucket("/assets", "bucket")
    };
    // The same bucket without `key_prefix`, and one in passthrough mode.
    let signed = Bucket {
        principal: Some("AK".into()),
        ..bucket("/signed/a", "bucket")
    };
    let passed = Bucket {
        passthrough: true,
        ..bucket("/passed", "bucket")
    };
    let all = [assets, signed, bucket("/other", "other"), passed];
    Router::new(all.into_iter().map(Origin::new).collect())
}

/// Encoded and plain unreserved characters are equivalent (RFC 3986 §2.3).
fn check_spelling(router: &Router, host: Option<&[u8]>, path: &str) {
    let mut escapes = path.split('%').skip(1);
    let is_whole = |after: &str| {
        let digits = after.as_bytes().iter().take(2);
        digits.filter(|digit| digit.is_ascii_hexdigit()).count() == 2
    };
    if !escapes.all(is_whole) {
        return;
    }
    let found = |path: &str| {
        let (site, rest) = router.route(host, path)?;
        Some((site.index(), Target::in_bucket(rest)))
    };
    let spelled = decode_unreserved(path);
    assert_eq!(found(path), found(&spelled), "{path} {spelled}");
}

fn check_key(router: &Router, site: &Site, key: &ObjectKey) {
    let target = site.target(key);
    let encoded = target
        .strip_prefix(site.object_base())
        .expect("below the prefix");
    assert!(encoded
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.~/%".contains(&b)));
    assert!(stays_below(encoded), "{target}");
    // The key that is sent is read back as the same one.
    let prefix = site.prefix().expect("a prefix");
    match router.object(&format!("{prefix}/{encoded}")) {
        Ok((_, again)) => assert_eq!(again, *key),
        Err(error) => assert!(matches!(error, RouteError::BadKey(_)), "{error}"),
    }
    if let Some(resolved) = key.without_dot_segments() {
        assert!(stays_below(&resolved.encoded()));
        assert!(resolved.without_dot_segments().is_none());
    }
    // Each route has cache keys of its own.
    let whole_key = [site.key_prefix(), key.as_str()].concat();
    let stored = site
        .cache_key_of(site.bucket(), &whole_key)
        .expect("a key of the site");
    assert_eq!(stored, [site.cache_prefix(), encoded].concat());
    for other in router.sites() {
        if other.index() != site.index() {
            assert!(!stored.starts_with(other.cache_prefix()), "{stored:?}");
        }
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

fn check_parameters(request: &S3Request, query: &[u8]) {
    let mut found = Vec::new();
    for parameter in query.split(|byte| *byte == b'&') {
        let mut halves = parameter.splitn(2, |byte| *byte == b'=');
        let name = decoded(halves.next().unwrap_or_default(), b'+');
        let value = decoded(halves.next().unwrap_or_default(), b' ');
        found.push((name, value));
    }
    let is_list = matches!(
        request.operation,
        Operation::ListObjects | Operation::ListObjectsV2
    );
    for (name, value) in &found {
        let is = |known: &&str| known.as_bytes() == *name;
        if request.reads_object() || is_list || request.operation == Operation::HeadBucket {
            assert!(!SUB_RESOURCES.iter().any(|known| is(known)), "{request:?}");
        }
        if let Some(name) = PARAMETERS.iter().find(|known| is(known)) {
            let read = request.parameter(name).map(str::as_bytes);
            assert_eq!(read, Some(&**value), "{name}");
        }
    }
    for name in PARAMETERS {
        let mut values = found.iter().filter(|(other, _)| other == name.as_bytes());
        if request.parameter(name).is_some() {
            assert!(values.next().is_some() && values.next().is_none(), "{name}");
        }
    }
}

fn check_request(site: &Site, request: &S3Request) {
    for (name, value) in request.overrides() {
        assert!(!name.as_str().is_empty());
        assert!(!value
            .as_bytes()
            .iter()
            .any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    assert!(request
        .version_id()
        .is_none_or(|id| !request.reads_object() || !id.is_empty()));
    assert!(request
        .part_number()
        .is_none_or(|number| (1..=10_000).contains(&number)));
    if request.is_plain() {
        assert!(request.overrides().is_empty() && request.passed_fields().is_empty());
    }
    if matches!(
        request.operation,
        Operation::ListObjects | Operation::ListObjectsV2
    ) {
        match list::target(site, request) {
            Ok(target) => check_list(site, &target),
            Err(error) => check_error(&error, "/"),
        }
    }
}

/// A list is requested below `key_prefix`, in a query that has only one reading.
fn check_list(site: &Site, target: &str) {
    let query = target.strip_prefix(&format!("{}/", site.base_path()));
    let query = query.expect("the path of the bucket");
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~%=&".contains(&b);
    assert!(query.trim_start_matches('?').bytes().all(is_plain));
    let values = |name: &str| -> Vec<Vec<u8>> {
        let parameters = query.trim_start_matches('?').split('&');
        let parameters = parameters.filter_map(|parameter| parameter.split_once('='));
        parameters
            .filter(|(other, _)| *other == name)
            .map(|(_, value)| decoded(value.as_bytes(), b' '))
            .collect()
    };
    let key_prefix = site.key_prefix().as_bytes();
    if !key_prefix.is_empty() {
        assert_eq!(values("prefix").len(), 1, "{target}");
    }
    for name in ["prefix", "marker", "start-after"] {
        let values = values(name);
        assert!(values.len() <= 1 && values.iter().all(|value| value.starts_with(key_prefix)));
    }
}

fn check_error(error: &S3Error, path: &str) {
    assert!(error.status.is_client_error() || error.status.is_server_error());
    let document = error.to_xml(path, "1");
    let mut reader = Reader::from_str(&document);
    let mut elements = Vec::new();
    let mut resource = String::new();
    loop {
        match reader.read_event().expect("well-formed") {
            Event::Eof => break,
            Event::Start(tag) => elements.push(tag.name().as_ref().to_vec()),
            Event::Text(text) if elements.last().is_some_and(|name| name == b"Resource") => {
                resource += &text.decode().expect("UTF-8");
            }
            _ => {}
        }
    }
    let expected = ["Error", "Code", "Message", "Resource", "RequestId"];
    assert!(elements
        .iter()
        .map(Vec::as_slice)
        .eq(expected.map(str::as_bytes)));
    if path
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/-._~%+".contains(&b))
    {
        assert_eq!(resource, path);
    }
}

fn examples() -> Vec<Vec<u8>> {
    [
        "GET\n/assets/a/b%20c\n\n",
        "HEAD\n/%61ssets//a/\nversionId=null&x-id=GetObject\nhost:a",
        "GET\n/assets/a/../b%2F%2e%2e/c\npartNumber=1\nx-amz-checksum-mode:ENABLED",
        "GET\n/a+b\nresponse-content-type=text%2Fhtml\nhost:CDN.example.com.:80",
        "GET\n/assets\nlist-type=2&prefix=a%2F&delimiter=/&start-after=b&encoding-type=url\n",
        "GET\n/assets/\nmarker=a&max-keys=2\n",
        "PUT\n/passed/a\npartNumber=1&uploadId=2\nx-amz-copy-source:/b/k",
        "POST\n/passed?\ndelete\n",
        "GET\n/assets/%ff\nacl&tagging\nrange:bytes=0-1",
        "GET\n/assets/a\n%61cl\nx-amz-server-side-encryption-customer-key:k",
        // Requests as in the AWS CLI, boto3, s3fs, rclone, minio-go and presigned URLs.
        "GET\n/signed/a\nlist-type=2&prefix=&delimiter=%2F&encoding-type=url\nx-amz-date:20130524T000000Z",
        "GET\n/signed/a/k%2Bx\n\nrange:bytes=8388608-16777215\nif-match:\"abc\"\nx-amz-checksum-mode:ENABLED",
        "GET\n/other/\nlocation=\nx-amz-content-sha256:UNSIGNED-PAYLOAD",
        "GET\n/other\ndelimiter=%2F&encoding-type=url&list-type=2&max-keys=1000&prefix=d%2F&continuation-token=1%2B%3D\n",
        "HEAD\n/passed/a\nversionId=3%2FL4kqtJ&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00\n",
        "OPTIONS\n/assets/a\nacl\norigin:https://a",
        "DELETE\n/passed/%E2%82%AC//.\nversionId=1\nx-amz-request-payer:requester",
    ]
    .map(|example| example.as_bytes().to_vec())
    .to_vec()
}
