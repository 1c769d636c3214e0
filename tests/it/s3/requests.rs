//! Requests of S3 clients, and answers of S3: what decides on storing, what is refused,
//! and what clients see of errors.

use std::thread;

use crate::{builder, proxy};
use test_support::{
    eventually, get, pattern, request, Bucket, Connection, Gate, Origin, Proxy, Reply, Response,
};

const LEN: usize = 100_000;
const OBJECT: &str = "/assets/object";

fn object() -> Reply {
    Reply::pattern(1, LEN as u64).header("etag", "\"1\"")
}

fn objects() -> Origin {
    Origin::start(|asked| object().answering(asked))
}

fn stored(proxy: &Proxy, entries: u64) {
    eventually("the objects are stored", || {
        proxy.metric("cache_entries") == entries
    });
}

/// An error as S3 clients parse it.
fn assert_error(answer: &Response, status: u16, code: &str) {
    let document = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, status, "{document}");
    assert_eq!(answer.header("content-type"), Some("application/xml"));
    let id = answer.header("x-amz-request-id").expect("a request id");
    assert!(
        document.contains(&format!("<Code>{code}</Code>")),
        "{document}"
    );
    assert!(
        document.contains(&format!("<RequestId>{id}</RequestId>")),
        "{document}"
    );
    for element in ["<Message>", "<Resource>/"] {
        assert!(document.contains(element), "{document}");
    }
}

// --- fields that do not reach the origin ---

/// MinIO sends this with every object.
#[test]
fn a_field_that_is_not_sent_on_selects_no_variant() {
    let origin = Origin::start(|asked| {
        assert_eq!(asked.header("accept-encoding"), None);
        assert_eq!(asked.header("origin"), None);
        object().header("vary", "Origin, Accept-Encoding")
    });
    let proxy = proxy(&origin).start();
    for number in 0..100 {
        let encoding = format!("gzip, x-{number}");
        let site = format!("https://{number}.example");
        let fields = [("Accept-Encoding", &*encoding), ("Origin", &*site)];
        let answer = request(proxy.addr(), "GET", OBJECT, &fields);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("vary"), Some("Origin, Accept-Encoding"));
        assert!(answer.body == pattern(1, LEN));
        if number == 0 {
            stored(&proxy, 1);
        } else {
            assert_eq!(answer.header("x-cache"), Some("HIT"), "{encoding}");
        }
    }
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(proxy.metric("cache_entries"), 1);
}

#[test]
fn who_asks_makes_no_difference() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |asked| {
            assert_eq!(asked.header("authorization"), None);
            object().hold_at(LEN as u64 / 2, &gate)
        }
    });
    let proxy = proxy(&origin).start();
    thread::scope(|scope| {
        for user in 0..10 {
            let addr = proxy.addr();
            scope.spawn(move || {
                let bearer = format!("Bearer {user}");
                let fields = [("Authorization", &*bearer), ("Cookie", &*bearer)];
                let answer = request(addr, "GET", OBJECT, &fields);
                assert_eq!(answer.status, 200);
                assert!(answer.body == pattern(1, LEN));
            });
        }
        gate.wait_for_arrivals(1);
        gate.open();
    });
    assert_eq!(origin.requests().len(), 1);
    stored(&proxy, 1);
}

#[test]
fn what_minio_sends_is_one_entry_for_all_clients() {
    let origin = Origin::start(|_| object().header("vary", "Origin, Accept-Encoding"));
    let proxy = proxy(&origin).start();
    proxy.get(OBJECT);
    stored(&proxy, 1);
    for encoding in ["gzip", "br"] {
        let fields = [("Accept-Encoding", encoding)];
        let hit = request(proxy.addr(), "GET", OBJECT, &fields);
        assert_eq!(hit.header("x-cache"), Some("HIT"));
    }
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_hit_does_not_switch_protocols() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    proxy.get(OBJECT);
    stored(&proxy, 1);
    for protocol in ["websocket", "h2c", "TLS/1.0"] {
        for method in ["GET", "HEAD"] {
            let fields = [("Connection", "Upgrade"), ("Upgrade", protocol)];
            let answer = request(proxy.addr(), method, OBJECT, &fields);
            assert_eq!(answer.status, 200, "{protocol}");
            assert_eq!(answer.header("x-cache"), Some("HIT"), "{protocol}");
        }
    }
    assert_eq!(origin.requests().len(), 1);
}

// --- what clients ask for ---

#[test]
fn a_sub_resource_is_not_answered_with_the_object() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    proxy.get(OBJECT);
    stored(&proxy, 1);
    origin.forget_requests();
    for query in [
        "acl",
        "x-id=GetObject&tagging",
        "attributes",
        "torrent",
        "uploadId=1",
        "select-type=2",
        "cors",
        "%61cl",
    ] {
        let answer = proxy.get(&format!("{OBJECT}?{query}"));
        assert_error(&answer, 501, "NotImplemented");
        let head = request(proxy.addr(), "HEAD", &format!("{OBJECT}?{query}"), &[]);
        assert_eq!(head.status, 501, "{query}");
        assert!(head.body.is_empty());
    }
    for query in ["x-id=GetObject", "utm_source=acl", "ACL", "", "v=2&w"] {
        let answer = proxy.get(&format!("{OBJECT}?{query}"));
        assert_eq!(answer.status, 200, "{query}");
        assert_eq!(answer.header("x-cache"), Some("HIT"), "{query}");
    }
    assert_error(&proxy.get("/elsewhere?acl"), 404, "NoSuchBucket");
    assert!(origin.requests().is_empty());
}

#[test]
fn what_s3_does_beyond_reading_is_not_implemented() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    proxy.get(OBJECT);
    stored(&proxy, 1);
    origin.forget_requests();
    for (method, target) in [
        ("PUT", OBJECT),
        ("DELETE", OBJECT),
        ("POST", "/assets/object?uploads"),
        ("PUT", "/assets/object?partNumber=1&uploadId=2"),
        ("OPTIONS", OBJECT),
        ("PUT", "/assets"),
        ("DELETE", "/assets/"),
        ("POST", "/assets?delete"),
        ("GET", "/assets?versions"),
        ("GET", "/assets/?uploads"),
        ("GET", "/assets?policy"),
        ("HEAD", "/"),
    ] {
        let answer = request(proxy.addr(), method, target, &[]);
        assert_eq!(answer.status, 501, "{method} {target}");
        if method != "HEAD" {
            assert_error(&answer, 501, "NotImplemented");
        }
    }
    for method in ["PATCH", "TRACE", "PURGE", "FROBNICATE"] {
        let answer = request(proxy.addr(), method, OBJECT, &[]);
        assert_error(&answer, 405, "MethodNotAllowed");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    assert!(origin.requests().is_empty());
    let hit = proxy.get(OBJECT);
    assert_eq!(hit.header("x-cache"), Some("HIT"));
}

// --- which bucket ---

#[test]
fn a_host_name_leads_to_its_bucket() {
    let origin = objects();
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/assets", "one").set("hosts", "[Assets.Example.com]"))
        .bucket(Bucket::at_host(&origin, "cdn.example.org", "two"))
        .admin()
        .start();
    let ask = |host: &str, path: &str| request(proxy.addr(), "GET", path, &[("Host", host)]);
    for (host, path, target) in [
        ("assets.example.com", "/a", "/one/a"),
        ("ASSETS.example.com:8080", "/b//c/", "/one/b//c/"),
        ("assets.example.com.", "/assets/d", "/one/assets/d"),
        ("cdn.example.org", "/assets/e", "/two/assets/e"),
        ("cdn.example.org", "//f", "/two//f"),
        ("localhost", "/assets/g", "/one/g"),
    ] {
        origin.forget_requests();
        assert_eq!(ask(host, path).status, 200, "{host} {path}");
        let targets: Vec<_> = origin.requests().into_iter().map(|r| r.target).collect();
        assert_eq!(targets, [target], "{host} {path}");
    }
    stored(&proxy, 6);
    // Both ways of one bucket lead to the same entry.
    let hit = ask("localhost", "/assets/a");
    assert_eq!(hit.header("x-cache"), Some("HIT"));
    let other = ask("cdn.example.org", "/a");
    assert_eq!(other.header("x-cache"), Some("MISS"));
    assert_error(&ask("other.example.org", "/a"), 404, "NoSuchBucket");

    let mut connection = Connection::open(proxy.addr());
    connection
        .send_raw(b"GET /a HTTP/1.1\r\nHost: cdn.example.org\r\nHost: assets.example.com\r\n\r\n")
        .expect("send");
    let refused = connection.incoming("GET", "/a").finish();
    assert_eq!(refused.status, 400);

    // An operator's spelling.
    let purge = |path: &str| request(proxy.admin_addr(), "PURGE", path, &[]).status;
    assert_eq!(purge("//cdn.example.org/a"), 200);
    assert_eq!(ask("cdn.example.org", "/a").header("x-cache"), Some("MISS"));
    assert_eq!(purge("//assets.example.com/*"), 200);
    assert_eq!(
        ask("localhost", "/assets/a").header("x-cache"),
        Some("MISS")
    );
    assert_eq!(
        ask("cdn.example.org", "/assets/e").header("x-cache"),
        Some("HIT")
    );
}

#[test]
fn the_key_prefix_of_a_bucket_is_not_left() {
    let origin = objects();
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/team", "bucket").set("key_prefix", "'team a/'"))
        .bucket(Bucket::at(&origin, "/all", "bucket"))
        .admin()
        .start();
    for (path, target) in [
        ("/team/a%2Fb+c", "/bucket/team%20a/a/b%2Bc"),
        ("/team//", "/bucket/team%20a//"),
        ("/all/x", "/bucket/x"),
    ] {
        origin.forget_requests();
        assert_eq!(proxy.get(path).status, 200, "{path}");
        let targets: Vec<_> = origin.requests().into_iter().map(|r| r.target).collect();
        assert_eq!(targets, [target]);
    }
    stored(&proxy, 3);
    origin.forget_requests();
    for path in [
        "/team/../x",
        "/team/%2e%2e/x",
        "/team/a/../../x",
        "/team/..%2Fx",
        "/team/a/..",
    ] {
        assert_error(&proxy.get(path), 400, "InvalidURI");
    }
    let longest = "a".repeat(1024 - "team a/".len());
    assert_error(
        &proxy.get(&format!("/team/{longest}b")),
        400,
        "KeyTooLongError",
    );
    assert!(origin.requests().is_empty());
    assert_eq!(proxy.get(&format!("/team/{longest}")).status, 200);

    // It is the same object whichever way leads to it.
    let hit = proxy.get("/all/team%20a/a/b+c");
    assert_eq!(hit.header("x-cache"), Some("HIT"));
    let purged = request(proxy.admin_addr(), "PURGE", "/team/a/b+c", &[]);
    assert_eq!(purged.status, 200);
    let miss = proxy.get("/all/team%20a/a/b+c");
    assert_eq!(miss.header("x-cache"), Some("MISS"));
}

/// Otherwise the public bucket would give away what was stored for those with keys.
#[test]
fn a_bucket_read_without_keys_shares_nothing_with_the_same_one_read_with_keys() {
    let origin = Origin::start(|asked| match asked.header("authorization") {
        Some(signed) if signed.contains("Credential=AKIAPRIVATE") => object().answering(asked),
        _ => Reply::bytes("<Error/>").with_status(403),
    });
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/private", "bucket").credentials("AKIAPRIVATE", "secret"))
        .bucket(Bucket::at(&origin, "/other", "bucket").credentials("AKIAOTHER", "secret"))
        .bucket(Bucket::at(&origin, "/public", "bucket"))
        .start();
    assert_eq!(proxy.get("/private/object").status, 200);
    stored(&proxy, 1);
    assert_eq!(proxy.get("/private/object").header("x-cache"), Some("HIT"));
    assert_error(&proxy.get("/public/object"), 403, "AccessDenied");
    assert_error(&proxy.get("/other/object"), 403, "AccessDenied");
}

#[test]
fn a_key_of_1024_bytes_of_any_utf8_arrives_unchanged() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    let long = "%F0%9F%93%A6".repeat(256);
    assert_eq!(proxy.get(&format!("/assets/{long}")).status, 200);
    assert_eq!(origin.requests()[0].target, format!("/bucket/{long}"));
    assert_error(
        &proxy.get(&format!("/assets/{long}a")),
        400,
        "KeyTooLongError",
    );
    assert_error(&proxy.get("/assets/%ff"), 400, "InvalidURI");
}

/// RFC 9112 §3.2.2
#[test]
fn the_absolute_form_is_the_same_object() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    proxy.get(OBJECT);
    stored(&proxy, 1);
    for target in [
        "http://proxy.example/assets/object",
        "http://proxy.example:8080/assets/object?x-id=GetObject",
        "HTTP://PROXY.EXAMPLE/%61ssets/object",
        "/%61sset%73/%6Fbject",
        "http://proxy.example/assets/object#another-host",
    ] {
        let mut connection = Connection::open(proxy.addr());
        let (target, host) = match target.strip_suffix("#another-host") {
            Some(target) => (target, "other.example"),
            None if target.starts_with('/') => (target, "proxy.example"),
            None => (target, target["http://".len()..].split('/').next().unwrap()),
        };
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        connection.send_raw(head.as_bytes()).expect("send");
        let answer = connection.incoming("GET", target).finish();
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(answer.header("x-cache"), Some("HIT"), "{target}");
    }
    assert_eq!(origin.requests().len(), 1);
}

/// apt asks for `/deb/./InRelease` in a flat repository.
#[test]
fn every_key_that_s3_allows_reaches_it() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    for (asked, sent) in [
        ("/assets/deb/./InRelease", "/bucket/deb/./InRelease"),
        ("/assets/./InRelease", "/bucket/./InRelease"),
        ("/assets/a/../b", "/bucket/a/../b"),
        ("/assets/a%00%01%0d%0a%7f", "/bucket/a%00%01%0D%0A%7F"),
        ("/assets/%C2%85", "/bucket/%C2%85"),
        ("/assets/a//b/", "/bucket/a//b/"),
        (
            "/assets/%22%3C%5C%5E%60%7B%7C",
            "/bucket/%22%3C%5C%5E%60%7B%7C",
        ),
    ] {
        origin.forget_requests();
        assert_eq!(proxy.get(asked).status, 200, "{asked}");
        let mut asked: Vec<_> = origin.requests();
        if sent.contains("/.") {
            let head = asked.remove(0);
            assert_eq!((&*head.method, &*head.target), ("HEAD", sent));
        }
        let targets: Vec<_> = asked.into_iter().map(|r| r.target).collect();
        assert_eq!(targets, [sent]);
    }
}

/// S3 has no such key, and MinIO refuses it.
#[test]
fn a_flat_repository_of_apt_works() {
    for refusal in [400, 403, 404] {
        let origin = Origin::start(move |asked| match &*asked.target {
            "/bucket/deb/InRelease" => object().answering(asked),
            _ => Reply::bytes("<Error/>").with_status(refusal),
        });
        let proxy = proxy(&origin).start();
        let miss = proxy.get("/assets/deb/./InRelease");
        assert_eq!(miss.status, 200, "{refusal}");
        assert!(miss.body == pattern(1, LEN));
        stored(&proxy, 1);
        let hit = proxy.get("/assets/deb/./InRelease");
        assert_eq!(hit.header("x-cache"), Some("HIT"));
        let targets: Vec<_> = origin.requests().into_iter().map(|r| r.target).collect();
        assert_eq!(
            targets,
            ["/bucket/deb/./InRelease", "/bucket/deb/InRelease"]
        );
        assert_eq!(proxy.get("/assets/deb/./Absent").status, refusal);
    }
}

/// There is no end of spellings.
#[test]
fn all_spellings_of_a_path_with_dot_segments_are_one_entry() {
    const SPELLINGS: usize = 30;
    let origin = Origin::start(|asked| match &*asked.target {
        "/bucket/a/object" => object().answering(asked),
        _ => Reply::bytes("<Error/>").with_status(404),
    });
    let proxy = proxy(&origin).admin().start();
    let spelling = |number| match number % 2 {
        0 => format!("/assets/a/x{number}/../object"),
        _ => format!("/assets/a/{}object", "./".repeat(number)),
    };
    for number in 0..SPELLINGS {
        let answer = request(
            proxy.addr(),
            "GET",
            &spelling(number),
            &[("Range", "bytes=0-99999")],
        );
        assert!(answer.status == 206 && answer.body == pattern(1, LEN));
        if number == 0 {
            stored(&proxy, 1);
        }
    }
    assert_eq!(proxy.metric("cache_entries"), 1);
    let bodies = origin.requests();
    let bodies = bodies
        .iter()
        .filter(|asked| asked.target == "/bucket/a/object")
        .count();
    // The range, and the whole in the background.
    assert_eq!(bodies, 2);
    let warnings = proxy.stderr().matches("WARN").count();
    assert_eq!(warnings, 0, "{}", proxy.stderr());

    // A purge of the object is one of all spellings.
    let purged = request(proxy.admin_addr(), "PURGE", "/assets/a/object", &[]);
    assert_eq!(purged.status, 200);
    let miss = proxy.get(&spelling(1));
    assert_eq!(miss.header("x-cache"), Some("MISS"));
}

// --- what S3 answers ---

#[test]
fn the_body_of_an_error_is_replaced_with_all_that_describes_it() {
    let origin = Origin::start(|_| {
        Reply::bytes("not really gzip")
            .with_status(403)
            .header("content-encoding", "gzip")
            .header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")
            .header("content-disposition", "attachment; filename=\"secret\"")
            .header("content-language", "de")
            .header("etag", "\"1\"")
            .header("x-amz-bucket-region", "eu-central-1")
            .header("x-amz-request-id", "42")
    });
    let proxy = proxy(&origin).start();
    let answer = proxy.get(OBJECT);
    assert_eq!(answer.status, 403);
    assert_error(&answer, 403, "AccessDenied");
    for name in [
        "content-encoding",
        "content-md5",
        "content-disposition",
        "content-language",
        "etag",
        "x-amz-bucket-region",
    ] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!(answer.header("x-amz-request-id"), Some("42"));
    let len = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(&*len));
}

/// Errors of the cache itself have the same form.
#[test]
fn a_failed_condition_and_a_range_beyond_the_end_of_a_hit_are_errors_of_s3() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    proxy.get(OBJECT);
    stored(&proxy, 1);
    let mut connection = Connection::open(proxy.addr());
    for (fields, status, code) in [
        (&[("If-Match", "\"2\"")][..], 412, "PreconditionFailed"),
        (
            &[("If-Match", "\"2\""), ("Range", "bytes=0-9")],
            412,
            "PreconditionFailed",
        ),
        (&[("Range", "bytes=100000-")], 416, "InvalidRange"),
        (
            &[("If-Match", "\"1\""), ("Range", "bytes=-0")],
            416,
            "InvalidRange",
        ),
    ] {
        let answer = connection.request("GET", OBJECT, fields);
        assert_error(&answer, status, code);
        assert_eq!(answer.header("x-cache"), Some("HIT"), "{fields:?}");
        assert_eq!(answer.header("etag"), None);
        let range = answer.header("content-range");
        assert_eq!(range, (status == 416).then_some("bytes */100000"));
        let head = connection.request("HEAD", OBJECT, fields);
        assert!(head.body.is_empty());
    }
    // Conditions that hold, and ranges that are there, are answered as before.
    for (fields, status) in [
        (&[("If-Match", "\"1\"")][..], 200),
        (&[("If-None-Match", "\"1\"")], 304),
        (&[("Range", "bytes=99999-200000")], 206),
        (&[("If-Range", "\"2\""), ("Range", "bytes=100000-")], 200),
    ] {
        let answer = connection.request("GET", OBJECT, fields);
        assert_eq!(answer.status, status, "{fields:?}");
        assert_eq!(answer.header("x-cache"), Some("HIT"), "{fields:?}");
    }
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(proxy.metric("cache_entries"), 1);
    eventually("hits are counted", || {
        proxy.metric("cache_hits_total") == 12
    });
}

#[test]
fn a_redirect_of_s3_is_not_passed_on() {
    for status in [301, 302, 307, 308] {
        let origin = Origin::start(move |_| {
            Reply::bytes(
                "<Error><Bucket>bucket</Bucket><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>",
            )
            .with_status(status)
            .header(
                "location",
                "https://bucket.s3.eu-central-1.amazonaws.com/object",
            )
            .header("x-amz-bucket-region", "eu-central-1")
        });
        let proxy = proxy(&origin).start();
        for method in ["GET", "HEAD"] {
            let answer = request(proxy.addr(), method, OBJECT, &[]);
            assert_eq!(answer.status, 502, "{status}");
            assert_eq!(answer.header("location"), None, "{status}");
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            for name in ["bucket", "AKIA", "amazonaws", "eu-central-1"] {
                assert!(!body.contains(name), "{body}");
            }
            if method == "GET" {
                assert_error(&answer, 502, "ServiceUnavailable");
            } else {
                assert!(body.is_empty());
            }
        }
        eventually("the log names the region", || {
            let log = proxy.stderr();
            log.contains("bucket bucket: the origin redirects") && log.contains("eu-central-1")
        });
        assert_eq!(proxy.metric("cache_entries"), 0);
    }
}

#[test]
fn an_answer_that_is_none_of_http_is_an_error() {
    for status in [101, 600, 999] {
        let origin = Origin::start(move |_| {
            Reply::bytes("secret")
                .with_status(status)
                .header("connection", "upgrade")
                .header("upgrade", "own")
                .header("x-secret", "secret")
        });
        let proxy = proxy(&origin).start();
        let answer = proxy.get(OBJECT);
        assert_eq!(answer.status, 502, "{status}");
        assert_eq!(answer.header("x-secret"), None, "{status}");
        assert_ne!(answer.body, b"secret", "{status}");
    }
}

#[test]
fn only_what_the_cache_has_answered_is_a_hit() {
    let origin = Origin::start(|asked| match asked.path() {
        "/bucket/object" => object().answering(asked),
        _ => Reply::status(503),
    });
    let proxy = proxy(&origin).start();
    assert_eq!(proxy.get("/assets/fails").status, 503);
    assert_eq!(proxy.get("/nowhere").status, 404);
    assert_eq!(proxy.get("/assets/object?acl").status, 501);
    assert_eq!(proxy.metric("cache_hits_total"), 0);
    proxy.get(OBJECT);
    stored(&proxy, 1);
    for hits in 1..=3 {
        let fields = [("Range", "bytes=0-9")];
        let fields = if hits == 2 { &fields[..] } else { &[] };
        let answer = request(proxy.addr(), "GET", OBJECT, fields);
        assert_eq!(answer.header("x-cache"), Some("HIT"));
        eventually("it is counted", || proxy.metric("cache_hits_total") == hits);
    }
    assert_eq!(proxy.metric("cache_misses_total"), 2);
}

#[test]
fn the_metrics_listener_is_read_only() {
    let origin = objects();
    let proxy = proxy(&origin).start();
    for (method, status) in [("GET", 200), ("HEAD", 200), ("POST", 405), ("PURGE", 405)] {
        for path in ["/metrics", "/health"] {
            let answer = request(proxy.metrics_addr(), method, path, &[]);
            assert_eq!(answer.status, status, "{method} {path}");
        }
    }
}

#[test]
fn what_does_not_exist_is_asked_for_once() {
    for status in [404, 410] {
        let origin = Origin::start(move |_| Reply::bytes("<Error/>").with_status(status));
        let proxy = proxy(&origin).negative_ttl("1h").admin().start();
        let addr = proxy.addr();
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(move || {
                    let answer = get(addr, OBJECT);
                    assert_eq!(answer.status, status);
                    assert_error(&answer, status, "NoSuchKey");
                });
            }
        });
        for fields in [&[][..], &[("Range", "bytes=0-9")], &[("If-Match", "*")]] {
            for method in ["GET", "HEAD"] {
                let answer = request(addr, method, OBJECT, fields);
                assert_eq!(answer.status, status, "{method} {fields:?}");
                assert!(answer.complete, "{method} {fields:?}");
            }
        }
        assert_eq!(origin.requests().len(), 1, "{status}");
        let again = proxy.get(OBJECT);
        assert_eq!(again.header("x-cache"), Some("HIT"));
        let cache_status = again.header("cache-status").unwrap_or_default();
        assert!(cache_status.contains("; hit; ttl=35"), "{cache_status}");
        assert_eq!(proxy.metric("cache_entries"), 0);

        // The object now exists, and the purge announces it.
        let purged = request(proxy.admin_addr(), "PURGE", OBJECT, &[]);
        assert_eq!(purged.status, 404);
        assert_eq!(proxy.get(OBJECT).status, status);
        assert_eq!(origin.requests().len(), 2, "{status}");
    }
}

#[test]
fn other_errors_and_what_has_a_freshness_of_its_own_are_not_remembered() {
    for (status, cache_control, requests) in [
        (403, None, 3),
        // Each of them is repeated twice.
        (500, None, 9),
        (404, Some("no-store"), 3),
        (404, Some("max-age=60"), 1),
    ] {
        let origin = Origin::start(move |_| {
            let reply = Reply::bytes("<Error/>").with_status(status);
            match cache_control {
                Some(value) => reply.header("cache-control", value),
                None => reply,
            }
        });
        let proxy = proxy(&origin).negative_ttl("1h").start();
        for number in 0..3 {
            assert_eq!(proxy.get(OBJECT).status, status);
            if number == 0 && requests == 1 {
                stored(&proxy, 1);
            }
        }
        assert_eq!(
            origin.requests().len(),
            requests,
            "{status} {cache_control:?}"
        );
    }
    // Requests do not wait for such an answer to another request either.
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| {
            Reply::bytes("<Error/>")
                .with_status(404)
                .header("cache-control", "no-store")
                .hold_at(1, &gate)
        }
    });
    let proxy_of_many = proxy(&origin).start();
    let addr = proxy_of_many.addr();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || assert_eq!(get(addr, OBJECT).status, 404));
        }
        gate.wait_for_arrivals(4);
        gate.open();
    });

    let origin = Origin::start(|_| Reply::bytes("<Error/>").with_status(404));
    let proxy = proxy(&origin).negative_ttl("0").start();
    for _ in 0..3 {
        assert_eq!(proxy.get(OBJECT).status, 404);
    }
    assert_eq!(origin.requests().len(), 3);
}
