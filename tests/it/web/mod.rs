//! Serving of objects as a website.

mod compression;
mod cors;
mod documents;
mod fields;
mod listing;

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::builder;
use test_support::{request, Bucket, Origin, Proxy, ProxyBuilder, Reply, Response, TokenKey};

/// The document of S3's own errors. Clients must not see it.
const SECRET_DOCUMENT: &str =
    "<Error><Code>NoSuchKey</Code><BucketName>bucket</BucketName></Error>";

/// An origin with these objects of the bucket, each a key and a body. The media type of a key that ends
/// with `.html` is that of HTML, that of others is `binary/octet-stream`.
fn origin_of(objects: &[(&str, &str)]) -> Origin {
    let objects: Vec<_> = objects
        .iter()
        .map(|(key, body)| (format!("/bucket/{key}"), (*body).to_owned()))
        .collect();
    Origin::start(move |request| {
        let object = objects.iter().find(|(path, _)| path == request.path());
        match object {
            Some((path, body)) => object_reply(path, body).answering(request),
            None => Reply::status(404)
                .header("Content-Type", "application/xml")
                .body(SECRET_DOCUMENT),
        }
    })
}

fn object_reply(path: &str, body: &str) -> Reply {
    let media_type = match path.ends_with(".html") {
        true => "text/html",
        false => "binary/octet-stream",
    };
    Reply::bytes(body)
        .header("Content-Type", media_type)
        .header("ETag", format!("\"{}\"", body.len()))
        .header("Last-Modified", "Mon, 02 Nov 2026 08:00:00 GMT")
}

/// A proxy with an open bucket at `/assets`, and these keys of its entry.
fn proxy(origin: &Origin, keys: &[(&'static str, &str)]) -> ProxyBuilder {
    builder()
        .bucket(bucket(origin, keys))
        // A slow machine must not forget the answers in between.
        .negative_ttl("1h")
        .cache("head_ttl", "1h")
}

fn bucket(origin: &Origin, keys: &[(&'static str, &str)]) -> Bucket {
    let bucket = Bucket::at(origin, "/assets", "bucket");
    keys.iter()
        .fold(bucket, |bucket, (key, value)| bucket.set(key, value))
}

fn head(proxy: &Proxy, target: &str) -> Response {
    let response = request(proxy.addr(), "HEAD", target, &[]);
    assert!(response.body.is_empty(), "{target}");
    response
}

fn get_with(proxy: &Proxy, target: &str, fields: &[(&str, &str)]) -> Response {
    request(proxy.addr(), "GET", target, fields)
}

/// The clients of a bucket, each with a token for some keys.
struct Tokens {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

const SECRET: &[u8; 40] = b"a secret that is long enough for HS256..";

// === impl Tokens ===

impl Tokens {
    fn new() -> Tokens {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        fs::write(&path, SECRET).expect("write the key");
        Tokens { _dir: dir, path }
    }

    /// The bucket with `auth: jwt`.
    fn protect(&self, bucket: Bucket) -> Bucket {
        let path = self.path.display();
        let section = format!("{{hmac_key_file: '{path}', prefix_claim: prefixes}}");
        bucket.set("auth", "jwt").set("jwt", section)
    }

    /// The value of `Authorization` of a client that may read keys with this beginning.
    fn for_prefix(prefix: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let expires = now.expect("a time").as_secs() + 300;
        let claims = format!("{{\"exp\":{expires},\"prefixes\":[\"{prefix}\"]}}");
        format!("Bearer {}", TokenKey::hs256(SECRET).token(&claims))
    }
}

/// A GET of a client that may read keys with this beginning.
fn get_as(proxy: &Proxy, prefix: &str, target: &str) -> Response {
    let token = Tokens::for_prefix(prefix);
    get_with(proxy, target, &[("Authorization", &token)])
}
