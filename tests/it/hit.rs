//! Misses fill the cache, hits come out of it: the same bytes, the same
//! headers, by sendfile where the body is large enough.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::{
        atomic::{AtomicUsize, Ordering},
        Barrier,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{builder, proxy};
use pingora_sendfile::demo::S3Server;
use tempfile::TempDir;
use test_support::{
    encode_key, head, pattern, request, sha256, Bucket, Connection, Gate, Origin, Pattern, Proxy,
    ProxyBuilder, Reply, Response, PATIENCE,
};

const ACCESS_KEY: &str = "hit-test";
const SECRET_KEY: &str = "hit-test-secret";
const BUCKET: &str = "assets-bucket";
const MIB: usize = 1024 * 1024;

// --- in front of an S3 server that checks signatures ---

#[test]
fn a_request_with_a_body_is_refused() {
    let origin = Origin::start(|_| Reply::bytes("x"));
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    client
        .send_raw(b"GET /assets/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        .expect("send");
    assert_eq!(client.incoming("GET", "/assets/x").status, 400);
    assert!(origin.requests().is_empty());
}

#[test]
fn the_second_request_for_an_object_is_answered_by_sendfile() {
    let s3 = S3::start();
    let object = s3.put("models/large.bin", 1, 10 * MIB + 1);
    let proxy = s3.proxy(SECRET_KEY).start();

    let miss = proxy.get("/assets/models/large.bin");
    assert_eq!(miss.status, 200);
    assert!(miss.complete);
    assert_eq!(miss.sha256(), sha256(&object));
    assert_eq!(miss.header("x-cache"), Some("MISS"));
    proxy.expect_metric("cache_misses_total", 1);
    assert_eq!(proxy.metric("cache_sendfile_total"), 0);

    let hit = proxy.get("/assets/models/large.bin");
    assert_eq!(hit.status, 200);
    assert!(hit.complete);
    assert_eq!(hit.sha256(), sha256(&object));
    assert_eq!(hit.header("x-cache"), Some("HIT"));
    let age: u64 = hit.header("age").expect("Age").parse().expect("a number");
    assert!(age < 60, "Age: {age}");
    proxy.expect_metric("cache_sendfile_total", 1);
    proxy.expect_metric("cache_sendfile_bytes_total", object.len() as u64);
    proxy.expect_metric("cache_hits_total", 1);
    proxy.expect_metric("response_body_bytes_total", 2 * object.len() as u64);

    assert_eq!(s3.server.requests(), 1);
    assert_eq!(proxy.metric("origin_requests_total"), 1);
}

#[test]
fn a_wrong_secret_is_refused_by_the_origin_and_nothing_is_cached() {
    let s3 = S3::start();
    s3.put("present.bin", 2, 100_000);
    let proxy = s3.proxy("not-the-secret").start();

    for asked in 1..=2 {
        assert_eq!(proxy.get("/assets/present.bin").status, 403);
        assert_eq!(s3.server.requests(), asked);
    }
    assert_eq!(proxy.metric("cache_entries"), 0);
}

#[test]
fn keys_that_need_encoding_name_the_same_object() {
    let s3 = S3::start();
    let proxy = s3.proxy(SECRET_KEY).start();
    let keys = [
        "with a space.bin",
        "plus+sign.bin",
        "100%.bin",
        "an%20escape in the name.bin",
        "größe/日本語.bin",
        "reserved/!$&'()*,;=:@.bin",
    ];
    for (at, key) in (1..).zip(keys) {
        let object = s3.put(key, at, 100_000);
        let path = format!("/assets/{}", encode_key(key));
        for expected in ["MISS", "HIT"] {
            let response = proxy.get(&path);
            assert_eq!(response.status, 200, "{key}");
            assert_eq!(response.sha256(), sha256(&object), "{key}");
            assert_eq!(response.header("x-cache"), Some(expected), "{key}");
        }
        assert_eq!(s3.server.requests(), at, "{key}");
    }
}

#[test]
fn two_spellings_of_a_key_are_one_entry() {
    let s3 = S3::start();
    let object = s3.put("a+b.bin", 1, 100_000);
    let proxy = s3.proxy(SECRET_KEY).start();

    for path in [
        "/assets/a+b.bin",
        "/assets/a%2Bb.bin",
        "/assets/%61%2bb.bin",
    ] {
        assert_eq!(proxy.get(path).sha256(), sha256(&object), "{path}");
    }
    assert_eq!(s3.server.requests(), 1);
}

// --- in front of an origin that answers as it is told ---

#[test]
fn a_hit_carries_the_headers_that_the_origin_gave() {
    let given = [
        ("Content-Type", "application/x-model"),
        ("ETag", "\"0123456789abcdef\""),
        ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("Cache-Control", "public, max-age=600"),
        ("x-amz-meta-colour", "blue"),
        ("x-amz-meta-shape", "round, mostly"),
    ];
    let origin = Origin::start(move |request| {
        let reply = given
            .iter()
            .fold(Reply::pattern(1, 100_000), |reply, (name, value)| {
                reply.header(name, value)
            });
        reply.answering(request)
    });
    let proxy = proxy(&origin).start();

    for expected in ["MISS", "HIT"] {
        let response = proxy.get("/assets/model");
        assert_eq!(response.header("x-cache"), Some(expected));
        assert_eq!(response.body, pattern(1, 100_000));
        for (name, value) in given {
            assert_eq!(response.header(name), Some(value), "{expected}: {name}");
        }
        assert_eq!(response.header("content-length"), Some("100000"));
        assert_eq!(response.header("accept-ranges"), Some("bytes"));
        assert_eq!(response.header("age").is_some(), expected == "HIT");
    }
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_head_of_a_cached_object_describes_it_and_sends_nothing() {
    let origin = pattern_origin(1, 100_000);
    let proxy = proxy(&origin).start();
    let hit = filled(&proxy, "/assets/object");

    let about = head(proxy.addr(), "/assets/object");
    assert_eq!(about.status, 200);
    assert!(about.body.is_empty());
    assert_eq!(about.header("x-cache"), Some("HIT"));
    for name in ["content-length", "etag", "last-modified", "content-type"] {
        assert_eq!(about.header(name), hit.header(name), "{name}");
        assert!(about.header(name).is_some(), "{name}");
    }
    // The hit before it is all that went by sendfile.
    proxy.expect_metric("cache_hits_total", 2);
    assert_eq!(proxy.metric("cache_sendfile_total"), 1);
    assert_eq!(proxy.metric("cache_sendfile_bytes_total"), 100_000);
}

#[test]
fn a_client_that_has_the_object_is_told_so_without_a_body() {
    let origin = pattern_origin(1, 100_000);
    let proxy = proxy(&origin).start();
    filled(&proxy, "/assets/object");

    let mut connection = Connection::open(proxy.addr());
    for condition in [
        ("If-None-Match", ETAG),
        ("If-Modified-Since", LAST_MODIFIED),
    ] {
        let response = connection.request("GET", "/assets/object", &[condition]);
        assert_eq!(response.status, 304, "{condition:?}");
        assert!(response.body.is_empty());
        assert_eq!(response.header("etag"), Some(ETAG));
    }
    let changed = connection.request("GET", "/assets/object", &[("If-None-Match", "\"old\"")]);
    assert_eq!(changed.status, 200);
    assert_eq!(changed.body, pattern(1, 100_000));
    assert_eq!(origin.requests().len(), 1);
    proxy.expect_metric("cache_sendfile_total", 2);
    proxy.expect_metric("cache_sendfile_bytes_total", 200_000);
}

#[test]
fn a_body_no_larger_than_the_threshold_is_copied() {
    let threshold = 16_384;
    let origin = Origin::start(|request| match request.path() {
        "/bucket/at" => Reply::pattern(1, 16_384),
        "/bucket/above" => Reply::pattern(2, 16_385),
        _ => Reply::bytes(""),
    });
    // The default threshold: nothing is configured.
    let proxy = proxy(&origin).start();

    for (at, key) in (1..).zip(["empty", "at"]) {
        let path = format!("/assets/{key}");
        let miss = proxy.get(&path);
        let hit = proxy.get(&path);
        assert_eq!(hit.header("x-cache"), Some("HIT"), "{key}");
        assert!(hit.complete);
        assert_eq!(hit.body, miss.body, "{key}");
        proxy.expect_metric("cache_hits_total", at);
        assert_eq!(proxy.metric("cache_sendfile_total"), 0, "{key}");
        assert_eq!(proxy.metric("cache_sendfile_bytes_total"), 0, "{key}");
    }

    let above = filled(&proxy, "/assets/above");
    assert_eq!(above.body, pattern(2, threshold + 1));
    proxy.expect_metric("cache_sendfile_total", 1);
    proxy.expect_metric("cache_sendfile_bytes_total", threshold as u64 + 1);
}

#[test]
fn clients_that_leave_a_later_hit_write_no_error_to_the_log() {
    let origin = Origin::start(|_| Reply::pattern(1, 50 << 20));
    let proxy = proxy(&origin).start();
    assert!(proxy.get("/assets/x").complete);
    proxy.expect_metric("cache_entries", 1);
    assert!(proxy.get("/assets/x").complete);
    for gone in 1..=3 {
        let mut client = TcpStream::connect(proxy.addr()).expect("connect");
        client
            .write_all(b"GET /assets/x HTTP/1.1\r\nHost: x\r\n\r\n")
            .expect("ask");
        client.read_exact(&mut [0; 1000]).expect("read the start");
        drop(client);
        proxy.expect_metric_where("response_errors_total", &[("source", "downstream")], gone);
    }
    assert!(!proxy.stderr().contains("ERROR"), "{}", proxy.stderr());
    proxy.expect_metric("cache_hits_total", 4);
    assert!(proxy.get("/assets/x").complete, "the entry is still there");
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn later_hits_are_answered_like_the_first() {
    let origin = Origin::start(|request| {
        let len = if request.path() == "/bucket/small" {
            1_000
        } else {
            100_000
        };
        Reply::pattern(1, len)
            .header("ETag", "\"1\"")
            .header("X-Of-Origin", "kept")
    });
    let proxy = proxy(&origin).start();
    for path in ["/assets/small", "/assets/large"] {
        let mut client = Connection::open(proxy.addr());
        let miss = client.get(path);
        // The first goes all the way, those after it are prepared.
        let first = client.get(path);
        for _ in 0..3 {
            let hit = client.get(path);
            assert_eq!(hit.body, miss.body);
            let lasting = |response: &Response| -> Vec<(String, String)> {
                let fields = response.headers.iter();
                let lasting = fields.filter(|(name, _)| !["Age", "Cache-Status"].contains(name));
                lasting
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect()
            };
            assert_eq!(lasting(&hit), lasting(&first));
            assert_eq!(hit.header("x-cache"), Some("HIT"));
            assert!(hit.header("age").is_some());
            let status = hit.header("cache-status").unwrap_or_default();
            assert!(
                status.starts_with("pingora-sendfile; hit; ttl="),
                "{status}"
            );
        }

        // A request for another representation gets it.
        let conditional = client.request("GET", path, &[("If-None-Match", "\"1\"")]);
        assert_eq!(conditional.status, 304);
        let range = client.request("GET", path, &[("Range", "bytes=10-19")]);
        assert_eq!((range.status, &range.body[..]), (206, &miss.body[10..20]));
        let head = client.request("HEAD", path, &[]);
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), miss.header("content-length"));
        assert_eq!(client.get(path).body, miss.body);
    }
    assert_eq!(origin.requests().len(), 2);
    proxy.expect_metric("cache_misses_total", 2);
    proxy.expect_metric("cache_hits_total", 2 * 8);
}

#[test]
fn the_threshold_can_be_configured() {
    let origin = pattern_origin(1, 1000);
    let proxy = proxy(&origin).sendfile_threshold(999).start();
    assert_eq!(filled(&proxy, "/assets/object").body, pattern(1, 1000));
    proxy.expect_metric("cache_sendfile_bytes_total", 1000);
}

#[test]
fn with_sendfile_off_the_same_bytes_are_copied() {
    let origin = pattern_origin(1, 3 * MIB as u64 + 5);
    let proxy = proxy(&origin).sendfile(false).start();

    let hit = filled(&proxy, "/assets/object");
    assert_eq!(hit.body, pattern(1, 3 * MIB + 5));
    let range = [("Range", "bytes=1000000-1999999")];
    let part = request(proxy.addr(), "GET", "/assets/object", &range);
    assert_eq!(part.status, 206);
    Pattern::new(1).check(1_000_000, &part.body);
    assert_eq!(part.body.len(), 1_000_000);

    proxy.expect_metric("cache_hits_total", 2);
    assert_eq!(proxy.metric("cache_sendfile_total"), 0);
    assert_eq!(proxy.metric("cache_sendfile_bytes_total"), 0);
}

#[test]
fn a_hundred_random_ranges_go_by_sendfile() {
    let size = 5 * MIB as u64 + 17;
    let content = Pattern::new(1);
    let origin = pattern_origin(1, size);
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");

    let mut connection = Connection::open(proxy.addr());
    let mut sum = 0;
    for at in 0..100 {
        let (first, last) = random_range(at, size);
        let range = match at % 10 {
            0 => format!("bytes={first}-"),
            1 => format!("bytes=-{}", size - first),
            // RFC 9110, section 14.1.2: a last byte past the end is the end.
            2 => format!("bytes={first}-{}", size + at),
            _ => format!("bytes={first}-{last}"),
        };
        let last = if at % 10 < 3 { size - 1 } else { last };

        let part = connection.begin("GET", "/assets/object", &[("Range", &range)]);
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(
            part.headers.get("content-range"),
            Some(format!("bytes {first}-{last}/{size}").as_str())
        );
        let sent = part.check(content, first);
        assert!(sent.complete, "{range}");
        assert_eq!(sent.len, last - first + 1, "{range}");
        sum += sent.len;
    }
    proxy.expect_metric("cache_sendfile_total", 100);
    proxy.expect_metric("cache_sendfile_bytes_total", sum);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_range_past_the_end_is_not_satisfiable() {
    let origin = pattern_origin(1, 100_000);
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");

    let mut connection = Connection::open(proxy.addr());
    for range in ["bytes=100000-", "bytes=200000-300000"] {
        let response = connection.request("GET", "/assets/object", &[("Range", range)]);
        assert_eq!(response.status, 416, "{range}");
        assert_eq!(response.header("content-range"), Some("bytes */100000"));
    }
    // The connection is still good.
    let whole = connection.get("/assets/object");
    assert_eq!(whole.body, pattern(1, 100_000));
    assert_eq!(origin.requests().len(), 1);
}

// RFC 9110, section 14.1.2: a suffix of no bytes is not satisfiable.
#[test]
fn the_last_zero_bytes_are_not_satisfiable() {
    let origin = pattern_origin(1, 100_000);
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");
    let nothing = [("Range", "bytes=-0")];
    let response = request(proxy.addr(), "GET", "/assets/object", &nothing);
    assert_eq!(response.status, 416, "{:?}", response.headers);
    assert_eq!(response.header("content-range"), Some("bytes */100000"));
}

#[test]
fn an_expired_entry_is_revalidated_by_its_etag() {
    // Stale at once when first given, fresh for an hour once revalidated.
    let origin = Origin::start(|request| {
        let fresh = if request.header("if-none-match").is_some() {
            "max-age=3600"
        } else {
            "max-age=0"
        };
        Reply::pattern(1, 100_000)
            .header("ETag", ETAG)
            .header("Cache-Control", fresh)
            .answering(request)
    });
    let proxy = proxy(&origin).start();

    for (expected, asked) in [("MISS", 1), ("REVALIDATED", 2), ("HIT", 2)] {
        let response = proxy.get("/assets/object");
        assert_eq!(response.status, 200, "{expected}");
        assert!(response.complete, "{expected}");
        assert_eq!(response.body, pattern(1, 100_000), "{expected}");
        assert_eq!(response.header("x-cache"), Some(expected));
        assert_eq!(origin.requests().len(), asked, "{expected}");
    }
    assert_eq!(origin.requests()[1].header("if-none-match"), Some(ETAG));
}

#[test]
fn an_expired_entry_that_changed_is_replaced() {
    let version = AtomicUsize::new(1);
    let origin = Origin::start(move |request| {
        let version = version.fetch_add(1, Ordering::SeqCst);
        Reply::pattern(version as u64, 100_000)
            .header("ETag", format!("\"{version}\""))
            .header("Cache-Control", "max-age=0")
            .answering(request)
    });
    let proxy = proxy(&origin).start();

    for version in 1..=3 {
        let response = proxy.get("/assets/object");
        assert_eq!(response.body, pattern(version, 100_000));
        assert_eq!(
            response.header("etag"),
            Some(format!("\"{version}\"").as_str())
        );
    }
    assert_eq!(proxy.metric("cache_entries"), 1);
}

#[test]
fn only_get_and_head_are_served() {
    let origin = pattern_origin(1, 1000);
    let proxy = proxy(&origin).start();
    for (method, status, allow) in [
        ("PUT", 501, None),
        ("POST", 501, None),
        ("DELETE", 501, None),
        ("OPTIONS", 501, None),
        ("PATCH", 405, Some("GET, HEAD")),
    ] {
        let response = request(proxy.addr(), method, "/assets/object", &[]);
        assert_eq!(response.status, status, "{method}");
        assert_eq!(response.header("allow"), allow, "{method}");
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn a_path_that_names_no_object_does_not_reach_the_origin() {
    let origin = pattern_origin(1, 1000);
    let proxy = proxy(&origin).start();
    for (path, status) in [
        ("/assets/../other-bucket/object", 400),
        ("/assets/a/%2e%2E", 400),
        ("/assets/a/%2e%2E/../object", 400),
        ("/assets/..%2fother-bucket%2fobject", 400),
        ("/assets/100%", 400),
        ("/assets/%zz", 400),
        ("/assets/%ff", 400),
        ("/elsewhere/object", 404),
        ("/assetsobject", 404),
        ("/", 403),
        ("/assets", 403),
        ("/assets/", 403),
    ] {
        assert_eq!(proxy.get(path).status, status, "{path}");
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn an_object_that_the_origin_lacks_is_not_found() {
    let secret = "<Error><BucketName>bucket</BucketName></Error>";
    let origin = Origin::start(move |_| Reply::bytes(secret).with_status(404));
    let proxy = proxy(&origin).start();
    let response = proxy.get("/assets/absent");
    assert_eq!(response.status, 404);
    assert!(response.complete);
    let document = String::from_utf8_lossy(&response.body);
    assert!(document.contains("<Code>NoSuchKey</Code>"), "{document}");
    assert!(!document.contains("BucketName"), "{document}");
}

#[test]
fn an_error_of_the_origin_without_a_body_has_none_here() {
    let origin = Origin::start(|_| Reply::status(503));
    let proxy = proxy(&origin).start();
    let response = proxy.get("/assets/object");
    assert_eq!(response.status, 503);
    assert!(response.complete);
    assert_eq!(response.body, b"");
}

#[test]
fn a_request_sent_before_the_last_response_has_ended_is_answered() {
    const LEN: u64 = 100_000;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.path() {
            "/bucket/1" => Reply::pattern(1, LEN).hold_at(LEN / 2, &gate),
            _ => Reply::pattern(2, LEN),
        }
    });
    let proxy = proxy(&origin).start();
    let mut connection = Connection::open(proxy.addr());
    connection.send("GET", "/assets/1", &[]).expect("send");
    gate.wait_for_arrivals(1);
    connection.send("GET", "/assets/2", &[]).expect("send");
    // The proxy gives no signal that it has read the second request.
    thread::sleep(Duration::from_millis(200));
    gate.open();
    for seed in [1, 2] {
        let path = format!("/assets/{seed}");
        let received = connection
            .incoming("GET", &path)
            .check(Pattern::new(seed), 0);
        assert!(received.complete);
        assert_eq!(received.len, LEN);
    }
    assert_eq!(proxy.metric("response_errors_total"), 0);
}

#[test]
fn concurrent_misses_for_a_key_make_one_origin_request() {
    const CLIENTS: usize = 20;
    const LEN: u64 = 1_000_000;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, LEN).hold_at(LEN / 2, &gate)
    });
    let proxy = proxy(&origin).start();
    let addr = proxy.addr();

    let all_have_asked = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = Connection::open(addr);
                connection.send("GET", "/assets/object", &[]).expect("send");
                all_have_asked.wait();
                let response = connection.incoming("GET", "/assets/object");
                assert_eq!(response.status, 200);
                let received = response.check(Pattern::new(1), 0);
                assert!(received.complete);
                assert_eq!(received.len, LEN);
            });
        }
        all_have_asked.wait();
        gate.wait_for_arrivals(1);
        gate.open();
    });

    assert_eq!(origin.requests_for("/bucket/object"), 1);
    proxy.expect_metric("cache_misses_total", 1);
    proxy.expect_metric("cache_hits_total", CLIENTS as u64 - 1);
}

// 65,537 bytes are one full sendfile and a last segment of one byte or a few.
// If that waited for the client's delayed ACK (40 ms on Linux), a thousand
// would take 40 s.
#[test]
fn a_thousand_hits_on_one_connection_wait_for_no_ack() {
    const HITS: u32 = 1000;
    const LEN: u64 = 65_537;
    let origin = pattern_origin(1, LEN);
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");

    let mut connection = Connection::open(proxy.addr());
    let start = Instant::now();
    for _ in 0..HITS {
        let hit = connection.begin("GET", "/assets/object", &[]);
        let received = hit.check(Pattern::new(1), 0);
        assert!(received.complete);
        assert_eq!(received.len, LEN);
    }
    let took = start.elapsed();
    assert!(
        took < HITS * Duration::from_millis(40) / 4,
        "{HITS} hits took {took:?}"
    );
    proxy.expect_metric("cache_sendfile_total", u64::from(HITS));
    proxy.expect_metric("cache_sendfile_bytes_total", u64::from(HITS) * LEN);
}

#[test]
fn a_client_of_http_1_0_gets_the_body_and_then_the_end() {
    let origin = pattern_origin(1, 200_000);
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");

    let (head, body) = get_by_http_1_0(&proxy, "/assets/object");
    assert!(head.contains("\r\nx-cache: hit\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-length: 200000\r\n"), "{head}");
    assert!(body == pattern(1, 200_000), "{} bytes of body", body.len());
    proxy.expect_metric("cache_sendfile_bytes_total", 200_000);
}

// RFC 9112, section 6.1: it knows no chunks.
#[test]
fn a_client_of_http_1_0_is_sent_no_chunks() {
    let origin = Origin::start(|_| Reply::pattern(1, 200_000).chunked());
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");

    let (head, body) = get_by_http_1_0(&proxy, "/assets/object");
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert!(body == pattern(1, 200_000), "{} bytes of body", body.len());
}

const ETAG: &str = "\"the-etag\"";
const LAST_MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// An origin whose every object is `len` bytes of the pattern.
fn pattern_origin(seed: u64, len: u64) -> Origin {
    Origin::start(move |request| {
        Reply::pattern(seed, len)
            .header("ETag", ETAG)
            .header("Last-Modified", LAST_MODIFIED)
            .header("Content-Type", "application/octet-stream")
            .answering(request)
    })
}

/// Asks twice, the second time out of the cache.
fn filled(proxy: &Proxy, path: &str) -> Response {
    assert_eq!(proxy.get(path).header("x-cache"), Some("MISS"));
    let second = proxy.get(path);
    assert_eq!(second.status, 200);
    assert!(second.complete);
    assert_eq!(second.header("x-cache"), Some("HIT"));
    second
}

/// The head, in lower case, and the body of what a client of HTTP/1.0 gets
/// until the connection ends.
fn get_by_http_1_0(proxy: &Proxy, path: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(proxy.addr()).expect("connect");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("set the read timeout");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read to the end");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = answer.split_off(end.expect("a head") + 4);
    (String::from_utf8_lossy(&answer).to_ascii_lowercase(), body)
}

/// First and last byte of a range within `size`, the same in every run.
fn random_range(at: u64, size: u64) -> (u64, u64) {
    let draw = |offset| {
        let mut bytes = [0; 8];
        Pattern::new(99).fill(at * 16 + offset, &mut bytes);
        u64::from_le_bytes(bytes) % size
    };
    let (a, b) = (draw(0), draw(8));
    (a.min(b), a.max(b))
}

/// The S3 server of the demo, over a folder with one bucket.
struct S3 {
    server: S3Server,
    folder: TempDir,
}

// === impl S3 ===

impl S3 {
    fn start() -> Self {
        let folder = TempDir::new().expect("make a folder");
        fs::create_dir(folder.path().join(BUCKET)).expect("make a bucket");
        let server = S3Server::start(folder.path(), ACCESS_KEY, SECRET_KEY).expect("start S3");
        Self { server, folder }
    }

    /// Makes an object of `len` bytes of the pattern.
    fn put(&self, key: &str, seed: u64, len: usize) -> Vec<u8> {
        let path = self.folder.path().join(BUCKET).join(key);
        fs::create_dir_all(path.parent().expect("a parent")).expect("make folders");
        let content = pattern(seed, len);
        fs::write(path, &content).expect("write an object");
        content
    }

    fn proxy(&self, secret_key: &str) -> ProxyBuilder {
        builder().bucket(
            Bucket::new("/assets", BUCKET)
                .endpoint(format!("http://{}", self.server.addr()))
                .credentials(ACCESS_KEY, secret_key),
        )
    }
}
