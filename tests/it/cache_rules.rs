//! `cache.rules` and its defaults: what is stored of which objects, how long it is used, and what
//! is served while the origin fails.

use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::Arc;

use crate::proxy;
use test_support::{eventually, Bucket, Gate, Origin, Proxy, Reply, Response};

fn object() -> Reply {
    Reply::bytes("hello").header("etag", "\"1\"")
}

/// The value of X-Cache.
fn ask(proxy: &Proxy, path: &str) -> String {
    let answer = proxy.get(path);
    assert_eq!(
        (answer.status, &*answer.body),
        (200, &b"hello"[..]),
        "{path}"
    );
    answer.header("x-cache").unwrap_or_default().to_owned()
}

/// The first answer, which is stored.
fn store(proxy: &Proxy, path: &str) {
    let entries = proxy.metric("cache_entries");
    assert_eq!(ask(proxy, path), "MISS", "{path}");
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == entries + 1
    });
}

/// An origin whose objects are there until it answers with another status.
fn failing() -> (Origin, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let origin = Origin::start({
        let status = status.clone();
        move |request| match status.load(Ordering::SeqCst) {
            200 => object().answering(request),
            other => Reply::status(other),
        }
    });
    (origin, status)
}

fn expect_stale(answer: &Response, why: &str) {
    assert_eq!(
        (answer.status, &*answer.body),
        (200, &b"hello"[..]),
        "{why}"
    );
    assert_eq!(answer.header("x-cache"), Some("STALE"), "{why}");
    let status = answer.header("cache-status").unwrap_or_default();
    assert!(
        status.contains("; detail=stale-if-error"),
        "{why}: {status}"
    );
}

fn expect_stale_metric(proxy: &Proxy, reason: &str, number: u64) {
    proxy.expect_metric_where("cache_stale_total", &[("reason", reason)], number);
}

#[test]
fn the_first_rule_that_matches_says_how_long_an_object_is_fresh() {
    let origin = Origin::start(|request| object().answering(request));
    let proxy = proxy(&origin)
        .bucket(Bucket::at(&origin, "/logs", "logs"))
        .cache(
            "rules",
            "[{key: 'fresh/*', ttl: 1h}, {key: '*.html', ttl: 0}, {bucket: 'lo*', ttl: 0}]",
        )
        .start();
    for (path, second) in [
        ("/assets/a.html", "REVALIDATED"),
        ("/assets/deep/a.html", "REVALIDATED"),
        ("/assets/fresh/a.html", "HIT"),
        ("/assets/a.png", "HIT"),
        ("/logs/a.png", "REVALIDATED"),
        ("/logs/fresh/a.png", "HIT"),
    ] {
        store(&proxy, path);
        assert_eq!(ask(&proxy, path), second, "{path}");
    }
}

#[test]
fn negative_ttl_is_that_of_the_rule_and_403_is_remembered_only_by_one() {
    for (path, status, asked) in [
        ("/assets/a", 404, 1),
        ("/assets/a", 410, 1),
        ("/assets/a", 403, 3),
        ("/assets/new/a", 404, 3),
        ("/assets/secret/a", 403, 1),
        ("/assets/secret/a", 404, 1),
        // Each is repeated twice.
        ("/assets/a", 500, 9),
    ] {
        let origin = Origin::start(move |_| Reply::status(status));
        let proxy = proxy(&origin)
            .negative_ttl("1h")
            .cache(
                "rules",
                "[{key: 'new/*', negative_ttl: 0}, {key: 'secret/*', negative_forbidden: true}]",
            )
            .start();
        for _ in 0..3 {
            assert_eq!(proxy.get(path).status, status, "{path}");
        }
        assert_eq!(origin.requests().len(), asked, "{path} {status}");
    }
}

#[test]
fn what_is_not_to_be_stored_comes_from_the_origin_each_time() {
    let origin = Origin::start(|request| object().answering(request));
    let proxy = proxy(&origin)
        .cache("head_ttl", "1h")
        .cache("rules", "[{key: 'live/*', store: false}]")
        .start();
    for _ in 0..3 {
        assert_eq!(ask(&proxy, "/assets/live/a"), "MISS");
        test_support::head(proxy.addr(), "/assets/live/a");
    }
    assert_eq!(origin.requests().len(), 6);
    proxy.expect_metric("cache_entries", 0);
    store(&proxy, "/assets/a");
}

#[test]
fn an_origin_that_is_ignored_is_passed_on_and_has_no_say() {
    for directives in [
        "no-store",
        "private, max-age=0",
        "no-cache",
        "max-age=0, must-revalidate",
    ] {
        let origin = Origin::start(move |request| {
            object()
                .header("cache-control", directives)
                .answering(request)
        });
        let proxy = proxy(&origin)
            .cache("rules", "[{key: '*.mp4', ignore_origin: true}]")
            .start();
        store(&proxy, "/assets/a.mp4");
        let hit = proxy.get("/assets/a.mp4");
        assert_eq!(hit.header("x-cache"), Some("HIT"), "{directives}");
        assert_eq!(hit.header("cache-control"), Some(directives));
        for _ in 0..2 {
            assert_ne!(ask(&proxy, "/assets/a.mp3"), "HIT", "{directives}");
        }
    }
}

#[test]
fn a_failing_origin_has_what_is_stored_served_stale() {
    for status in [500, 502, 503, 504] {
        let (origin, says) = failing();
        let proxy = proxy(&origin).default_ttl("0").start();
        store(&proxy, "/assets/a");
        says.store(status, Ordering::SeqCst);
        let stale = proxy.get("/assets/a");
        expect_stale(&stale, &status.to_string());
        let field = stale.header("cache-status").unwrap_or_default();
        assert!(field.contains(&format!("fwd-status={status}")), "{field}");
        expect_stale_metric(&proxy, "error", 1);
        // Nothing is stored, so there is nothing to serve.
        assert_eq!(proxy.get("/assets/b").status, status);
    }
    // These are about the object.
    for status in [403, 404] {
        let (origin, says) = failing();
        let proxy = proxy(&origin).default_ttl("0").start();
        store(&proxy, "/assets/a");
        says.store(status, Ordering::SeqCst);
        assert_eq!(proxy.get("/assets/a").status, status);
    }
}

#[test]
fn an_origin_that_cannot_be_reached_has_what_is_stored_served_stale() {
    let (origin, _) = failing();
    let proxy = proxy(&origin).default_ttl("0").start();
    store(&proxy, "/assets/a");
    drop(origin);
    for number in 1..=3 {
        expect_stale(&proxy.get("/assets/a"), "unreachable");
        expect_stale_metric(&proxy, "error", number);
    }
    assert_eq!(proxy.get("/assets/b").status, 502);
}

#[test]
fn a_slow_origin_has_what_is_stored_served_stale() {
    let gate = Gate::new();
    let first = AtomicUsize::new(0);
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| {
            if first.fetch_add(1, Ordering::SeqCst) > 0 {
                gate.pass();
            }
            object().answering(request)
        }
    });
    let proxy = proxy(&origin)
        .default_ttl("0")
        .cache("stale_timeout", "100ms")
        .start();
    store(&proxy, "/assets/a");
    expect_stale(&proxy.get("/assets/a"), "slow");
    expect_stale_metric(&proxy, "error", 1);
    gate.open();
    eventually("it answers again", || {
        ask(&proxy, "/assets/a") == "REVALIDATED"
    });
}

#[test]
fn what_the_origin_or_a_rule_forbids_is_not_served_stale() {
    for (directives, rules, stale) in [
        (None, "[]", true),
        (None, "[{stale_if_error: 0}]", false),
        (
            Some("max-age=0, stale-if-error=1000"),
            "[{stale_if_error: 0}]",
            true,
        ),
        (Some("max-age=0, stale-if-error=0"), "[]", false),
        (Some("max-age=0, must-revalidate"), "[]", false),
        (Some("no-cache"), "[]", false),
        (
            Some("no-cache, must-revalidate"),
            "[{ignore_origin: true}]",
            true,
        ),
    ] {
        let status = Arc::new(AtomicU16::new(200));
        let origin = Origin::start({
            let status = status.clone();
            move |_| match (status.load(Ordering::SeqCst), directives) {
                (200, None) => object(),
                (200, Some(directives)) => object().header("cache-control", directives),
                (other, _) => Reply::status(other),
            }
        });
        let proxy = proxy(&origin)
            .default_ttl("0")
            .cache("rules", rules)
            .start();
        store(&proxy, "/assets/a");
        status.store(503, Ordering::SeqCst);
        let answer = proxy.get("/assets/a");
        let expected = if stale { 200 } else { 503 };
        assert_eq!(answer.status, expected, "{directives:?} {rules}");
    }
}

#[test]
fn while_it_is_revalidated_a_stale_object_is_served_at_once() {
    let gate = Gate::new();
    let requests = Arc::new(AtomicUsize::new(0));
    let origin = Origin::start({
        let (gate, requests) = (gate.clone(), requests.clone());
        move |request| {
            if requests.fetch_add(1, Ordering::SeqCst) > 0 {
                gate.pass();
            }
            object().answering(request)
        }
    });
    let proxy = proxy(&origin)
        .cache("rules", "[{key: 'a*', ttl: 0, stale_while_revalidate: 1h}]")
        .start();
    store(&proxy, "/assets/a");
    for _ in 0..3 {
        let stale = proxy.get("/assets/a");
        assert_eq!(stale.header("x-cache"), Some("STALE"));
        let status = stale.header("cache-status").unwrap_or_default();
        assert!(
            status.contains("; detail=stale-while-revalidate"),
            "{status}"
        );
    }
    expect_stale_metric(&proxy, "revalidating", 3);
    gate.wait_for_arrivals(1);
    assert_eq!(requests.load(Ordering::SeqCst), 2, "one for all");
    gate.open();
}

#[test]
fn what_the_origin_has_ended_is_not_served_stale_again() {
    let rules = "[{key: 'behind*', ttl: 0, negative_ttl: 0, stale_while_revalidate: 1h}, \
                 {ttl: 0, negative_ttl: 0}]";
    for (path, status, ends) in [
        ("/assets/behind", 404, true),
        ("/assets/behind", 410, true),
        ("/assets/behind", 403, true),
        // The proxy's keys may have expired.
        ("/assets/behind", 400, false),
        ("/assets/behind", 429, false),
        ("/assets/behind", 503, false),
        ("/assets/at-once", 404, true),
        ("/assets/at-once", 410, true),
        ("/assets/at-once", 403, false),
    ] {
        let what = format!("{path} {status}");
        let (origin, answers) = failing();
        let proxy = proxy(&origin).cache("rules", rules).start();
        store(&proxy, path);
        answers.store(status, Ordering::SeqCst);
        let asked = origin.requests().len();
        let first = proxy.get(path);
        match path {
            "/assets/behind" => assert_eq!(first.header("x-cache"), Some("STALE"), "{what}"),
            _ => assert_eq!(first.status, status, "{what}"),
        }
        eventually("the origin has answered", || {
            origin.requests().len() > asked
        });
        if ends {
            eventually("it is ended", || proxy.get(path).status == status);
            eventually("it is not stored", || proxy.metric("cache_entries") == 0);
        }
        // A failure of the origin lets a stored object be served stale, unless it was removed.
        answers.store(503, Ordering::SeqCst);
        let last = proxy.get(path);
        match ends {
            true => assert_eq!(last.status, 503, "{what}"),
            false => assert_eq!(last.header("x-cache"), Some("STALE"), "{what}"),
        }
    }
}

#[test]
fn a_rule_does_not_touch_what_was_stored_before_it() {
    let origin = Origin::start(|request| object().answering(request));
    let mut proxy = proxy(&origin).cache("rules", "[{ttl: 1h}]").start();
    store(&proxy, "/assets/a");
    proxy.edit_config(|config| config.replace("[{ttl: 1h}]", "[{ttl: 0, store: false}]"));
    proxy.restart();
    eventually("the index is loaded", || proxy.metric("cache_entries") == 1);
    assert_eq!(ask(&proxy, "/assets/a"), "HIT");
    assert_eq!(ask(&proxy, "/assets/b"), "MISS");
    assert_eq!(ask(&proxy, "/assets/b"), "MISS");
}
