//! Answers to HEAD: kept for a while by themselves, and never in place of anything else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crate::proxy;
use test_support::{eventually, pattern, request, Origin, Proxy, Reply, Response};

const LEN: usize = 100_000;
const OBJECT: &str = "/assets/object";

fn version(number: u64) -> Reply {
    Reply::pattern(number, LEN as u64).header("etag", format!("\"{number}\""))
}

/// An origin whose object changes when the flag is set.
fn changing() -> (Origin, Arc<AtomicBool>) {
    let changed = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let changed = changed.clone();
        move |request| {
            let number = if changed.load(Ordering::SeqCst) { 2 } else { 1 };
            version(number).answering(request)
        }
    });
    (origin, changed)
}

fn head(proxy: &Proxy, fields: &[(&str, &str)]) -> Response {
    let head = request(proxy.addr(), "HEAD", OBJECT, fields);
    assert!(head.body.is_empty());
    head
}

fn asked(origin: &Origin) -> Vec<String> {
    origin.requests().into_iter().map(|r| r.method).collect()
}

#[test]
fn a_head_is_answered_without_the_origin_for_a_while() {
    let (origin, _) = changing();
    let proxy = proxy(&origin).cache("head_ttl", "1h").start();
    let first = head(&proxy, &[]);
    assert_eq!(first.header("x-cache"), Some("MISS"));
    for (fields, status) in [
        (&[][..], 200),
        (&[("If-None-Match", "\"1\"")], 304),
        (&[("If-Match", "\"1\"")], 200),
        (&[("If-Match", "\"2\"")], 412),
        (&[("Range", "bytes=0-9")], 200),
    ] {
        let kept = head(&proxy, fields);
        assert_eq!(kept.status, status, "{fields:?}");
        if status == 200 {
            for name in ["content-length", "etag", "accept-ranges"] {
                assert_eq!(kept.header(name), first.header(name), "{name}");
            }
            assert_eq!(kept.header("x-cache"), Some("HIT"));
            assert!(kept.header("age").is_some());
            let status = kept.header("cache-status").unwrap_or_default();
            assert!(status.contains("; hit"), "{status}");
        }
    }
    assert_eq!(asked(&origin), ["HEAD"]);
    assert!(proxy.metric("cache_hits_total") >= 4);
    proxy.expect_metric("cache_misses_total", 1);
    proxy.expect_metric("cache_entries", 0);
}

#[test]
fn a_kept_head_answers_no_get_and_displaces_no_body() {
    let (origin, _) = changing();
    let proxy = proxy(&origin).cache("head_ttl", "1h").start();
    head(&proxy, &[]);
    let whole = proxy.get(OBJECT);
    assert_eq!(whole.header("x-cache"), Some("MISS"));
    assert!(whole.body == pattern(1, LEN));
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    // That of the stored object comes first.
    assert_eq!(head(&proxy, &[]).header("x-cache"), Some("HIT"));
    let hit = proxy.get(OBJECT);
    assert_eq!(hit.header("x-cache"), Some("HIT"));
    assert!(hit.body == pattern(1, LEN));
    assert_eq!(asked(&origin), ["HEAD", "GET"]);
}

#[test]
fn an_answer_that_names_another_version_voids_a_kept_head() {
    let (origin, changed) = changing();
    let proxy = proxy(&origin)
        .cache("head_ttl", "1h")
        .range_fill("max_in_flight", 0)
        .start();
    assert_eq!(head(&proxy, &[]).header("etag"), Some("\"1\""));
    let part = [("Range", "bytes=5-9")];
    request(proxy.addr(), "GET", OBJECT, &part);
    assert_eq!(head(&proxy, &[]).header("x-cache"), Some("HIT"));
    changed.store(true, Ordering::SeqCst);
    let part = request(proxy.addr(), "GET", OBJECT, &part);
    assert_eq!(part.header("etag"), Some("\"2\""));
    let anew = head(&proxy, &[]);
    assert_eq!(anew.header("etag"), Some("\"2\""));
    assert_eq!(anew.header("x-cache"), Some("MISS"));
}

#[test]
fn a_purge_voids_a_kept_head() {
    let (origin, changed) = changing();
    let proxy = proxy(&origin).cache("head_ttl", "1h").admin().start();
    assert_eq!(head(&proxy, &[]).header("etag"), Some("\"1\""));
    changed.store(true, Ordering::SeqCst);
    assert_eq!(head(&proxy, &[]).header("etag"), Some("\"1\""));
    request(proxy.admin_addr(), "PURGE", OBJECT, &[]);
    assert_eq!(head(&proxy, &[]).header("etag"), Some("\"2\""));
}

#[test]
fn only_what_could_be_stored_is_kept() {
    for (fields, head_ttl, kept) in [
        (None, "1h", true),
        (Some("max-age=60"), "1h", true),
        (Some("max-age=0"), "1h", false),
        (Some("no-store"), "1h", false),
        (Some("private"), "1h", false),
        (Some("no-cache"), "1h", false),
        (None, "0", false),
    ] {
        let origin = Origin::start(move |_| match fields {
            Some(fields) => version(1).header("cache-control", fields),
            None => version(1),
        });
        let proxy = proxy(&origin).cache("head_ttl", head_ttl).start();
        for _ in 0..2 {
            assert_eq!(head(&proxy, &[]).status, 200);
        }
        let expected = if kept { 1 } else { 2 };
        assert_eq!(origin.requests().len(), expected, "{fields:?} {head_ttl}");
    }
}

#[test]
fn a_missing_object_is_none_however_it_was_asked_for() {
    let gone = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let gone = gone.clone();
        move |_| match gone.load(Ordering::SeqCst) {
            true => Reply::status(404),
            false => version(1),
        }
    });
    let proxy = proxy(&origin)
        .cache("head_ttl", "1h")
        .negative_ttl("0")
        .start();
    assert_eq!(head(&proxy, &[]).status, 200);
    gone.store(true, Ordering::SeqCst);
    assert_eq!(head(&proxy, &[]).status, 200);
    assert_eq!(proxy.get(OBJECT).status, 404);
    assert_eq!(head(&proxy, &[]).status, 404);
}
