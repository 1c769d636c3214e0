//! Conditions and ranges with an origin that ignores or misjudges them, as MinIO ignores
//! If-Range. The client gets what its conditions allow, and of one version only.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::proxy;
use test_support::{
    date::from_now, eventually, pattern, request, Connection, Gate, Origin, Proxy, Reply, Response,
};

const LEN: u64 = 1_000_000;
const OLD: &str = "\"old\"";
const NEW: &str = "\"new\"";
const OLD_DATE: &str = "Sat, 21 Nov 2026 00:00:00 GMT";
const NEW_DATE: &str = "Wed, 25 Nov 2026 00:00:00 GMT";
const OBJECT: &str = "/assets/object";

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

/// The AWS CLI, boto3 and others send If-Match with each part that they ask for.
#[test]
fn a_precondition_is_no_obstacle_to_storing() {
    for fields in [
        &[("If-Match", NEW)][..],
        &[("If-Match", OLD)],
        &[("If-Unmodified-Since", NEW_DATE)],
        &[("If-Unmodified-Since", "nonsense")],
        &[("If-Match", NEW), ("Range", "bytes=500-999")],
    ] {
        let origin = heedless();
        let proxy = proxy(&origin).start();
        for number in 0..10 {
            let answer = request(proxy.addr(), "GET", OBJECT, fields);
            let part = fields.iter().any(|(name, _)| *name == "Range");
            let status = match (part, fields[0].1) {
                (_, OLD) => 412,
                (true, _) => 206,
                (false, _) => 200,
            };
            assert_eq!(answer.status, status, "{fields:?}");
            if number == 0 {
                eventually("the object is stored", || {
                    proxy.metric("cache_entries") == 1
                });
            }
        }
        let asked = origin.requests();
        let expected = 1 + usize::from(fields.len() > 1);
        assert_eq!(asked.len(), expected, "{fields:?}: {asked:?}");
        for request in asked {
            assert_eq!(request.header("if-unmodified-since"), None);
        }
        expect_whole(&proxy.get(OBJECT), "a hit");
    }
}

#[test]
fn conditions_on_a_miss_start_one_fill_and_are_judged_by_its_header() {
    const LEN: u64 = 8 << 20;
    let newer = || Reply::pattern(2, LEN).header("etag", NEW);
    for first in [
        ("If-Match", OLD, 412),
        ("If-Unmodified-Since", OLD_DATE, 412),
        ("If-None-Match", NEW, 304),
        ("If-None-Match", "*", 304),
        ("If-Modified-Since", NEW_DATE, 304),
    ] {
        let gate = Gate::new();
        let origin = Origin::start({
            let gate = gate.clone();
            move |_| {
                newer()
                    .header("last-modified", NEW_DATE)
                    .hold_at(LEN / 2, &gate)
            }
        });
        let proxy = proxy(&origin).start();
        let mut client = Connection::open(proxy.addr());
        let (name, value, status) = first;
        let judged = client.request("GET", OBJECT, &[(name, value)]);
        assert_eq!(judged.status, status, "{first:?}");
        // Its next request would wait for the body.
        assert_eq!(judged.header("connection"), Some("close"), "{first:?}");
        gate.wait_for_arrivals(1);
        for (fields, status) in [
            (&[("If-Match", OLD)][..], 412),
            (&[("If-None-Match", NEW)], 304),
            (&[("If-Unmodified-Since", OLD_DATE)], 412),
            (&[("If-Match", OLD), ("Range", "bytes=0-9")], 412),
            (&[("If-Match", NEW), ("Range", "bytes=0-9")], 206),
            (&[("Range", "bytes=8388608-")], 416),
        ] {
            let answer = request(proxy.addr(), "GET", OBJECT, fields);
            assert_eq!(answer.status, status, "{fields:?} after {first:?}");
            assert!(answer.complete, "{fields:?}");
            let body = String::from_utf8_lossy(&answer.body);
            match status {
                206 => assert_eq!(answer.body.len(), 10),
                412 => assert!(body.contains("<Code>PreconditionFailed</Code>"), "{body}"),
                416 => {
                    assert!(body.contains("<Code>InvalidRange</Code>"), "{body}");
                    assert_eq!(answer.header("content-range"), Some("bytes */8388608"));
                }
                _ => assert_eq!(body, ""),
            }
        }
        gate.open();
        eventually("the object is stored", || {
            proxy.metric("cache_entries") == 1
        });
        let hit = proxy.get(OBJECT);
        assert_eq!((hit.status, hit.header("x-cache")), (200, Some("HIT")));
        assert!(hit.body == pattern(2, LEN as usize));
        let requests = origin.requests();
        let [whole] = &requests[..] else {
            panic!("{first:?}: {requests:?}");
        };
        for name in ["range", "if-match", "if-none-match", "if-unmodified-since"] {
            assert_eq!(whole.header(name), None, "{first:?}");
        }
    }
}

#[test]
fn a_stale_object_is_validated_for_a_request_with_a_precondition() {
    let origin = Origin::start(|asked| match asked.header("if-none-match") {
        Some(_) => Reply::status(304).header("etag", NEW),
        None => new().header("cache-control", "max-age=0"),
    });
    let proxy = proxy(&origin).start();
    expect_whole(&proxy.get(OBJECT), "a miss");
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    let sent = origin.bytes_sent();
    for (condition, status) in [(NEW, 200), (OLD, 412)] {
        let answer = request(proxy.addr(), "GET", OBJECT, &[("If-Match", condition)]);
        assert_eq!(answer.status, status);
    }
    assert_eq!(origin.requests().len(), 3);
    assert_eq!(origin.bytes_sent(), sent);
}

#[test]
fn a_failed_precondition_of_what_is_not_stored_reads_no_body() {
    let origin = Origin::start(|_| {
        Reply::pattern(2, 1 << 30)
            .header("etag", NEW)
            .header("cache-control", "no-store")
    });
    let proxy = proxy(&origin).start();
    let answer = request(proxy.addr(), "GET", OBJECT, &[("If-Match", OLD)]);
    assert_eq!(answer.status, 412);
    eventually("the origin's connection is closed", || {
        proxy.metric("cache_misses_in_flight") == 0
    });
    assert!(origin.bytes_sent() < 64 << 20, "{}", origin.bytes_sent());
}

/// RFC 9110 §13.2.2
#[test]
fn conditions_are_judged_in_order_on_a_miss_as_on_a_hit() {
    for method in ["GET", "HEAD"] {
        let origin = heedless();
        let proxy = proxy(&origin).start();
        for fields_and_status in [
            (&[("If-Match", NEW), ("If-None-Match", NEW)][..], 304),
            (&[("If-Match", OLD), ("If-None-Match", NEW)], 412),
            (&[("If-None-Match", NEW)], 304),
            (&[("If-None-Match", "*")], 304),
            (&[("If-Modified-Since", NEW_DATE)], 304),
        ] {
            let (fields, status) = fields_and_status;
            // Nothing is stored of the first, and later ones are hits.
            for _ in 0..2 {
                let answer = request(proxy.addr(), method, OBJECT, fields);
                assert_eq!(answer.status, status, "{method} {fields:?}");
                assert!(answer.complete);
            }
        }
    }
}

/// RFC 9110 §6.6.1
#[test]
fn a_304_without_a_date_makes_fresh_again() {
    let origin = Origin::start(|asked| match asked.header("if-none-match") {
        Some(_) => Reply::status(304).header("etag", NEW),
        None => Reply::pattern(2, LEN)
            .header("etag", NEW)
            .header("date", from_now(-100))
            .header("cache-control", "max-age=50"),
    });
    let proxy = proxy(&origin).start();
    proxy.get(OBJECT);
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    let validated = proxy.get(OBJECT);
    assert_eq!(validated.header("x-cache"), Some("REVALIDATED"));
    for _ in 0..3 {
        assert_eq!(proxy.get(OBJECT).header("x-cache"), Some("HIT"));
    }
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn ranges_of_an_empty_object_are_alike_on_a_miss_and_a_hit() {
    let origin = Origin::start(|asked| {
        Reply::bytes("")
            .header("etag", NEW)
            .answering(&asked.without_conditions())
    });
    let proxy = proxy(&origin).start();
    for stored in [false, true] {
        if stored {
            proxy.get(OBJECT);
            eventually("the object is stored", || {
                proxy.metric("cache_entries") == 1
            });
        }
        for (range, status) in [("bytes=-5", 416), ("bytes=3-5", 416)] {
            let answer = request(proxy.addr(), "GET", OBJECT, &[("Range", range)]);
            assert_eq!(answer.status, status, "{range}, stored: {stored}");
            assert_eq!(answer.header("content-range"), Some("bytes */0"));
        }
    }
    let whole = request(proxy.addr(), "GET", OBJECT, &[("Range", "bytes=0-")]);
    assert_eq!((whole.status, whole.body.len()), (200, 0));
}

#[test]
fn a_range_for_the_next_hop_only_is_none() {
    let origin = heedless();
    let proxy = proxy(&origin).start();
    let fields = [("Connection", "Range"), ("Range", "bytes=500-999")];
    expect_whole(&ask(&proxy, &fields), "a miss");
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    expect_whole(&ask(&proxy, &fields), "a hit");
    assert_eq!(origin.requests().len(), 1);
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
                let document = String::from_utf8_lossy(&answer.body);
                let says_why = document.contains("<Code>PreconditionFailed</Code>");
                assert_eq!(says_why, method == "GET", "{fields:?}");
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
        // Another part than was asked for.
        (Some("bytes 500-999/1000000"), Some("bytes=0-499"), 502),
        (Some("bytes 500-999/1000000"), Some("bytes=500-998"), 502),
        (Some("bytes 500-999/1000000"), Some("bytes=-500"), 502),
        (Some("bytes 500-999/1000"), Some("bytes=-500"), 206),
        (Some("bytes 500-999/1000"), Some("bytes=500-"), 206),
        // The beginning of it.
        (Some("bytes 500-999/1000000"), Some("bytes=500-1999"), 206),
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
fn a_part_without_a_length_does_not_look_complete_when_it_breaks_off() {
    for (sent, complete) in [(500, true), (499, false), (0, false)] {
        let origin = Origin::start(move |_| {
            Reply::bytes(&pattern(2, 1000)[500..500 + sent])
                .with_status(206)
                .header("content-range", "bytes 500-999/1000000")
                .header("etag", NEW)
                .chunked()
        });
        for without_cache in [false, true] {
            let mut proxy = proxy(&origin).range_fill("max_in_flight", 0);
            if without_cache {
                proxy = proxy.without_cache();
            }
            let proxy = proxy.start();
            let fields = [("Range", "bytes=500-999")];
            let answer = request(proxy.addr(), "GET", OBJECT, &fields);
            assert_eq!(answer.complete, complete, "{sent}");
            if complete {
                assert_eq!(answer.header("content-length"), Some("500"));
            }
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
