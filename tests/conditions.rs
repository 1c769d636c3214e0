//! Conditions and ranges with an origin that ignores or misjudges them, as MinIO ignores
//! If-Range. The client gets what its conditions allow, and of one version only.

use std::sync::atomic::{AtomicBool, Ordering};

use test_support::{
    eventually, pattern, request, scripted::date::from_now, Bucket, Connection, Gate, Origin,
    Proxy, ProxyBuilder, Reply, Response,
};

const LEN: u64 = 1_000_000;
const OLD: &str = "\"old\"";
const NEW: &str = "\"new\"";
const OLD_DATE: &str = "Sat, 21 Nov 2026 00:00:00 GMT";
const NEW_DATE: &str = "Wed, 25 Nov 2026 00:00:00 GMT";
const OBJECT: &str = "/assets/object";

fn proxy(origin: &Origin) -> ProxyBuilder {
    Proxy::builder(env!("CARGO_BIN_EXE_s3-proxy")).bucket(Bucket::at(origin, "/assets", "bucket"))
}

/// The new version of the object.
fn new() -> Reply {
    Reply::pattern(2, LEN)
        .header("etag", NEW)
        .header("last-modified", NEW_DATE)
        .header("date", from_now(0))
}

/// An origin that has the new version, and obeys ranges but no conditions.
fn heedless() -> Origin {
    Origin::start(|asked| new().answering(&asked.without_conditions()))
}

fn ask(proxy: &Proxy, fields: &[(&str, &str)]) -> Response {
    let response = request(proxy.addr(), "GET", OBJECT, fields);
    assert!(response.complete, "{fields:?}");
    response
}

fn expect_whole(response: &Response, what: &str) {
    assert_eq!(response.status, 200, "{what}");
    assert_eq!(response.header("etag"), Some(NEW), "{what}");
    assert!(response.body == pattern(2, LEN as usize), "{what}");
}

fn expect_part(response: &Response, what: &str) {
    assert_eq!(response.status, 206, "{what}");
    let range = format!("bytes 500-999/{LEN}");
    assert_eq!(response.header("content-range"), Some(&*range), "{what}");
    assert_eq!(response.header("etag"), Some(NEW), "{what}");
    assert!(response.body == pattern(2, 1000)[500..], "{what}");
}

#[test]
fn a_download_of_an_old_version_is_not_resumed_with_the_new_one() {
    let weak = format!("W/{NEW}");
    for (condition, applies) in [
        (OLD, false),
        (NEW, true),
        (&*weak, false),
        (OLD_DATE, false),
        (NEW_DATE, true),
        ("nonsense", false),
    ] {
        for without_cache in [false, true] {
            let origin = heedless();
            let mut proxy = proxy(&origin).range_fill("max_in_flight", 0);
            if without_cache {
                proxy = proxy.without_cache();
            }
            let proxy = proxy.start();
            let what = format!("If-Range: {condition}, without cache: {without_cache}");
            let resume = [("Range", "bytes=500-999"), ("If-Range", condition)];
            let answer = ask(&proxy, &resume);
            if applies {
                expect_part(&answer, &what);
            } else {
                expect_whole(&answer, &what);
            }
        }
    }
}

#[test]
fn the_whole_that_is_sent_in_place_of_a_part_is_stored() {
    let origin = heedless();
    let proxy = proxy(&origin).start();
    let resume = [("Range", "bytes=500-"), ("If-Range", OLD)];
    expect_whole(&ask(&proxy, &resume), "a miss");
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    let asked = origin.requests().len();
    expect_whole(&ask(&proxy, &resume), "a hit");
    let again = [("Range", "bytes=500-999"), ("If-Range", NEW)];
    expect_part(&ask(&proxy, &again), "a hit of the same version");
    assert_eq!(origin.requests().len(), asked);
}

#[test]
fn a_range_beyond_the_new_version_gets_the_whole_of_it() {
    let origin = heedless();
    let proxy = proxy(&origin).range_fill("max_in_flight", 0).start();
    let beyond = [("Range", "bytes=5000000-"), ("If-Range", OLD)];
    expect_whole(&ask(&proxy, &beyond), "If-Range of the old version");
    assert_eq!(ask(&proxy, &[("Range", "bytes=5000000-")]).status, 416);
}

#[test]
fn what_is_stale_does_not_let_parts_of_the_new_version_through() {
    let origin = Origin::start({
        let first = AtomicBool::new(true);
        move |asked| {
            if first.swap(false, Ordering::SeqCst) {
                return Reply::pattern(1, LEN)
                    .header("etag", OLD)
                    .header("cache-control", "max-age=0");
            }
            match asked.header("range") {
                Some("bytes=500-999") => Reply::bytes(&pattern(2, 1000)[500..])
                    .with_status(206)
                    .header("content-range", format!("bytes 500-999/{LEN}"))
                    .header("etag", NEW),
                _ => new(),
            }
        }
    });
    let proxy = proxy(&origin).range_fill("max_in_flight", 0).start();
    assert_eq!(proxy.get(OBJECT).header("etag"), Some(OLD));
    eventually("the old version is stored", || {
        proxy.metric("cache_entries") == 1
    });
    let resume = [("Range", "bytes=500-999"), ("If-Range", OLD)];
    expect_whole(&ask(&proxy, &resume), "the stored version is stale");
}

#[test]
fn while_the_new_version_is_fetched_the_old_one_is_not_resumed_with_it() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |asked| match asked.header("range") {
            None => new().hold_at(LEN / 2, &gate),
            Some(_) => new().answering(asked),
        }
    });
    let proxy = proxy(&origin).start();
    let mut fills = Connection::open(proxy.addr());
    let mut first = fills.begin("GET", OBJECT, &[]);
    gate.wait_for_arrivals(1);
    let mut resumes = Connection::open(proxy.addr());
    let answer = resumes.begin(
        "GET",
        OBJECT,
        &[("Range", "bytes=500-999"), ("If-Range", OLD)],
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers.get("etag"), Some(NEW));
    gate.open();
    expect_whole(&answer.finish(), "a follower");
    first.read_some(1);
}

#[test]
fn preconditions_that_the_origin_ignores_are_judged_here() {
    for (name, value, status) in [
        ("If-Match", OLD, 412),
        ("If-Match", NEW, 200),
        ("If-Match", "*", 200),
        ("If-Unmodified-Since", OLD_DATE, 412),
        ("If-Unmodified-Since", NEW_DATE, 200),
    ] {
        for method in ["GET", "HEAD"] {
            let origin = heedless();
            let proxy = proxy(&origin).start();
            let answer = request(proxy.addr(), method, OBJECT, &[(name, value)]);
            assert_eq!(answer.status, status, "{method} {name}: {value}");
            assert!(answer.complete, "{method} {name}: {value}");
        }
    }
}

#[test]
fn a_precondition_is_judged_by_what_is_stored_and_fresh() {
    let origin = heedless();
    let proxy = proxy(&origin).start();
    expect_whole(&proxy.get(OBJECT), "a miss");
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    for (fields, status) in [
        (&[("If-Match", OLD)][..], 412),
        (&[("If-Match", NEW)], 200),
        (&[("If-Unmodified-Since", OLD_DATE)], 412),
        (&[("If-Match", NEW), ("If-None-Match", NEW)], 304),
        (&[("If-Match", OLD), ("If-None-Match", NEW)], 412),
        (&[("If-Match", OLD), ("Range", "bytes=0-1")], 412),
        (&[("If-Match", NEW), ("Range", "bytes=0-1")], 206),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = request(proxy.addr(), method, OBJECT, fields);
            let expected = match (method, status) {
                ("HEAD", 206) => 200,
                (_, status) => status,
            };
            assert_eq!(answer.status, expected, "{method} {fields:?}");
            assert!(answer.complete, "{method} {fields:?}");
            if status == 412 {
                assert_eq!(answer.header("content-length"), Some("0"), "{fields:?}");
            }
        }
    }
    assert_eq!(origin.requests().len(), 1);
    // The entry is unchanged.
    let hit = proxy.get(OBJECT);
    expect_whole(&hit, "a hit");
    assert_eq!(hit.header("x-cache"), Some("HIT"));
}

#[test]
fn a_304_that_does_not_name_the_clients_version_is_not_believed() {
    // It answers 304 to any condition.
    let origin = Origin::start(|asked| {
        let conditional = ["if-none-match", "if-modified-since"]
            .iter()
            .any(|name| asked.header(name).is_some());
        match conditional {
            true => Reply::status(304)
                .header("etag", NEW)
                .header("last-modified", NEW_DATE),
            false => new(),
        }
    });
    for (name, value, status) in [
        ("If-None-Match", OLD, 200),
        ("If-None-Match", NEW, 304),
        ("If-Modified-Since", OLD_DATE, 200),
        ("If-Modified-Since", NEW_DATE, 304),
    ] {
        let proxy = proxy(&origin).without_cache().start();
        let answer = request(proxy.addr(), "GET", OBJECT, &[(name, value)]);
        assert_eq!(answer.status, status, "{name}: {value}");
        if status == 200 {
            expect_whole(&answer, name);
        }
    }
}

#[test]
fn a_304_that_nobody_asked_for_is_an_error() {
    let origin = Origin::start(|_| Reply::status(304).header("etag", NEW));
    for without_cache in [false, true] {
        let mut proxy = proxy(&origin);
        if without_cache {
            proxy = proxy.without_cache();
        }
        let proxy = proxy.start();
        assert_eq!(proxy.get(OBJECT).status, 502, "{without_cache}");
    }
}

#[test]
fn a_part_that_contradicts_itself_is_an_error() {
    for (content_range, asked, status) in [
        (Some("bytes 500-999/1000000"), Some("bytes=500-999"), 206),
        (Some("bytes 500-998/1000000"), Some("bytes=500-999"), 502),
        (Some("bytes 500-1000/1000000"), Some("bytes=500-999"), 502),
        (Some("bytes 500-999/600"), Some("bytes=500-999"), 502),
        (Some("bytes */1000000"), Some("bytes=500-999"), 502),
        (None, Some("bytes=500-999"), 502),
        (Some("bytes 500-999/1000000"), None, 502),
    ] {
        let origin = Origin::start(move |_| {
            let part = Reply::bytes(&pattern(2, 1000)[500..]).with_status(206);
            let part = part.header("etag", NEW);
            match content_range {
                Some(range) => part.header("content-range", range),
                None => part,
            }
        });
        for without_cache in [false, true] {
            let mut proxy = proxy(&origin).range_fill("max_in_flight", 0);
            if without_cache {
                proxy = proxy.without_cache();
            }
            let proxy = proxy.start();
            let fields: Vec<_> = asked.map(|range| ("Range", range)).into_iter().collect();
            let answer = request(proxy.addr(), "GET", OBJECT, &fields);
            assert_eq!(answer.status, status, "{content_range:?} for {asked:?}");
        }
    }
}

#[test]
fn a_head_has_no_range() {
    let origin = heedless();
    let proxy = proxy(&origin).start();
    for stored in [false, true] {
        if stored {
            proxy.get(OBJECT);
            eventually("the object is stored", || {
                proxy.metric("cache_entries") == 1
            });
        }
        for fields in [
            &[("Range", "bytes=500-999")][..],
            &[("Range", "bytes=500-999"), ("If-Range", OLD)],
            &[("Range", "bytes=5000000-")],
        ] {
            let head = request(proxy.addr(), "HEAD", OBJECT, fields);
            assert_eq!(head.status, 200, "{stored} {fields:?}");
            assert_eq!(head.header("content-length"), Some("1000000"));
            assert_eq!(head.header("content-range"), None);
        }
    }
    for request in origin.requests() {
        assert_eq!(request.header("range"), None);
    }
}
