//! A request is accepted only as it was signed: what is accepted is refused with another
//! method, path or parameter, at another time, and without its signature. What is refused is
//! refused with a status of S3.

#![no_main]

mod seeds;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::s3::verify::{Client, Incoming, Verifier};
use pingora_sendfile::s3::{Credentials, KeyPrefixes};

/// The keys and the time of the examples in the Amazon S3 API Reference.
const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const NOW: u64 = 1_369_353_600;
const WEEK: u64 = 7 * 86_400;

/// A request: a line with its method, one with its path, one with its query, and its fields.
struct Request<'a> {
    method: &'a str,
    path: &'a [u8],
    query: &'a [u8],
    headers: HeaderMap,
}

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    let Some(request) = Request::parse(data) else {
        return;
    };
    let keys = Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "fuzz");
    let verifier = Verifier::new("us-east-1", [Client::new(keys, KeyPrefixes::ALL)]);
    let accepts = |request: &Request, now: u64| {
        let incoming = Incoming {
            method: request.method,
            path: request.path,
            query: (!request.query.is_empty()).then_some(request.query),
            host: None,
            headers: &request.headers,
        };
        match verifier.verify(&incoming, at(now)) {
            Ok(client) => {
                assert_eq!(client.access_key(), ACCESS_KEY);
                true
            }
            Err(refusal) => {
                assert!(!refusal.to_string().contains(SECRET_KEY));
                false
            }
        }
    };
    if !accepts(&request, NOW) {
        return;
    }
    assert!(accepts(&request, NOW), "twice");
    let other = |method, path, query| Request {
        method,
        path,
        query,
        headers: request.headers.clone(),
    };
    let path = [request.path, b"x"].concat();
    let query = [request.query, b"&x=y"].concat();
    assert!(!accepts(&other("PUT", request.path, request.query), NOW));
    assert!(!accepts(&other(request.method, &path, request.query), NOW));
    assert!(!accepts(&other(request.method, request.path, &query), NOW));
    assert!(!accepts(&request, NOW + 2 * WEEK));
    assert!(!accepts(&request, NOW - WEEK));
    let mut unsigned = other(request.method, request.path, b"");
    unsigned.headers.remove("authorization");
    assert!(!accepts(&unsigned, NOW));
});

// === impl Request ===

impl<'a> Request<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut lines = data.split(|byte| *byte == b'\n');
        let method = std::str::from_utf8(lines.next()?).ok()?;
        let (path, query) = (lines.next()?, lines.next()?);
        let mut headers = HeaderMap::new();
        for line in lines {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = HeaderValue::from_bytes(&line[colon + 1..]).ok()?;
            headers.append(name, value);
        }
        (method != "PUT").then_some(Request {
            method,
            path,
            query,
            headers,
        })
    }
}

fn at(secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(secs)
}

/// Requests from "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API
/// Reference, whose signatures are right.
fn examples() -> Vec<Vec<u8>> {
    let header = |target: &str, fields: &str, names: &str, signature: &str| {
        format!(
            "GET\n{target}\nhost:examplebucket.s3.amazonaws.com\n{fields}\
             x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\
             x-amz-date:20130524T000000Z\n\
             authorization:AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;{names}x-amz-content-sha256;x-amz-date, Signature={signature}"
        )
    };
    vec![
        header(
            "/test.txt\n",
            "range:bytes=0-9\n",
            "range;",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        )
        .into(),
        header(
            "/\nmax-keys=2&prefix=J",
            "",
            "",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        )
        .into(),
        b"GET\n/test.txt\nX-Amz-Algorithm=AWS4-HMAC-SHA256\
          &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
          &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
          &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404\n\
          host:examplebucket.s3.amazonaws.com"
            .to_vec(),
    ]
}
