//! The metrics of requests: how long they took, and what the cache has saved.

use std::time::{Duration, Instant};

use crate::proxy;
use test_support::{get, head, request, Connection, Gate, Origin, Reply};

const DURATION: &str = "request_duration_seconds";
const FIRST_BYTE: &str = "request_first_byte_seconds";
const ORIGIN: &str = "origin_first_byte_seconds";

/// Larger than what is kept in memory.
const LARGE: u64 = 100_000;

fn count(histogram: &str) -> String {
    format!("{histogram}_count")
}

fn sum(histogram: &str) -> String {
    format!("{histogram}_sum")
}

#[test]
fn the_times_of_a_miss_and_of_hits_are_apart() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |request| {
        let reply = Reply::pattern(1, LARGE).header("etag", "\"1\"");
        reply.hold(&held).answering(request)
    });
    let proxy = proxy(&origin).start();

    let mut client = Connection::open(proxy.addr());
    let began = Instant::now();
    client.send("GET", "/assets/a", &[]).expect("a request");
    gate.wait_for_arrivals(1);
    // The origin is this slow.
    let arrived = Instant::now();
    while arrived.elapsed() < Duration::from_millis(30) {
        assert!(!client.is_closed());
    }
    let held_for = arrived.elapsed().as_secs_f64();
    gate.open();
    assert_eq!(client.receive("GET").status, 200);

    let miss = [("bucket", "bucket"), ("cache", "miss")];
    let hit = [("bucket", "bucket"), ("cache", "hit")];
    proxy.expect_metric_where(&count(DURATION), &miss, 1);
    let longest = began.elapsed().as_secs_f64();
    let metrics = proxy.metrics();
    let first_byte = metrics.seconds(&sum(FIRST_BYTE), &miss);
    let duration = metrics.seconds(&sum(DURATION), &miss);
    let asked = metrics.seconds(&sum(ORIGIN), &[("bucket", "bucket")]);
    assert!(held_for <= asked, "{held_for} {asked}");
    assert!(asked <= first_byte, "{asked} {first_byte}");
    assert!(first_byte <= duration, "{first_byte} {duration}");
    assert!(duration <= longest, "{duration} {longest}");

    let began = Instant::now();
    for _ in 0..2 {
        assert_eq!(client.get("/assets/a").x_cache(), "HIT");
    }
    proxy.expect_metric_where(&count(DURATION), &hit, 2);
    let longest = began.elapsed().as_secs_f64();
    let metrics = proxy.metrics();
    for histogram in [DURATION, FIRST_BYTE] {
        assert_eq!(metrics.sum_where(&count(histogram), &miss), 1);
        assert_eq!(metrics.sum_where(&count(histogram), &hit), 2);
        let took = metrics.seconds(&sum(histogram), &hit);
        assert!(took > 0.0 && took <= longest, "{histogram}: {took}");
        // Each time is in a bucket, the last of which has all.
        let bucket = format!("{histogram}_bucket");
        let all = [hit[0], hit[1], ("le", "+Inf")];
        assert_eq!(metrics.sum_where(&bucket, &all), 2);
        let bounds = metrics.values(&bucket, "le");
        assert!(
            bounds.contains("0.0001") && bounds.contains("60"),
            "{bounds:?}"
        );
        // A bound is below the time that the origin took.
        let fast = [miss[0], miss[1], ("le", "0.025")];
        assert_eq!(metrics.sum_where(&bucket, &fast), 0, "{histogram}");
    }
    // Hits do not ask it.
    assert_eq!(metrics.sum(&count(ORIGIN)), 1);
}

#[test]
fn requests_are_counted_by_the_part_of_the_cache() {
    let origin = Origin::start(|request| match request.path() {
        "/bucket/none" => Reply::status(404),
        _ => Reply::pattern(1, LARGE)
            .header("etag", "\"1\"")
            .answering(request),
    });
    let proxy = proxy(&origin).start();
    let addr = proxy.addr();
    assert_eq!(get(addr, "/assets/a").x_cache(), "MISS");
    assert_eq!(head(addr, "/assets/a").x_cache(), "HIT");
    let not_matching = [("if-match", "\"2\"")];
    assert_eq!(request(addr, "GET", "/assets/a", &not_matching).status, 412);
    assert_eq!(get(addr, "/assets/none").status, 404);
    assert_eq!(get(addr, "/assets/none").x_cache(), "HIT");
    assert_eq!(get(addr, "/assets/a?versionId=1").x_cache(), "MISS");
    // Neither is for a bucket that is served.
    assert_eq!(get(addr, "/other/a").status, 404);
    assert_eq!(request(addr, "PUT", "/assets/a", &[]).status, 501);

    for (bucket, cache, requests) in [
        ("bucket", "miss", 3),
        ("bucket", "hit", 3),
        ("-", "none", 2),
    ] {
        let labels = [("bucket", bucket), ("cache", cache)];
        proxy.expect_metric_where(&count(DURATION), &labels, requests);
        proxy.expect_metric_where(&count(FIRST_BYTE), &labels, requests);
    }
    assert_eq!(proxy.metric(&count(DURATION)), 8);
}

#[test]
fn the_cache_has_saved_what_clients_got_and_the_origin_has_not_sent() {
    let origin = Origin::start(|request| {
        let reply = Reply::pattern(1, LARGE).header("etag", "\"1\"");
        reply.answering(request)
    });
    let proxy = proxy(&origin).start();
    for _ in 0..3 {
        assert_eq!(proxy.get("/assets/a").body.len() as u64, LARGE);
    }
    proxy.expect_metric("response_body_bytes_total", 3 * LARGE);
    proxy.expect_metric("origin_response_body_bytes_total", LARGE);
}
