//! Scripts of other websites.

use super::*;
use test_support::{eventually, https_client, HttpVersion};

const CORS: &str = "{origins: ['https://a.example', 'https://b.example'], headers: [Range, X-A], \
                    max_age: 10m}";
const A: (&str, &str) = ("Origin", "https://a.example");
const B: (&str, &str) = ("Origin", "https://b.example");
const EVIL: (&str, &str) = ("Origin", "https://evil.example");

const ALLOWED: &str = "access-control-allow-origin";

fn website() -> Origin {
    origin_of(&[("a.html", "<p>text</p>")])
}

fn is_varied(response: &Response) {
    assert_eq!(response.headers.all("vary"), ["Origin"]);
}

#[test]
fn a_browser_is_told_what_scripts_may_do() {
    let origin = website();
    let proxy = proxy(&origin, &[("cors", CORS)]).start();
    let ask = |fields: &[(&str, &str)]| request(proxy.addr(), "OPTIONS", "/assets/a.html", fields);
    let get = ("Access-Control-Request-Method", "GET");
    let allowed = ask(&[A, get, ("Access-Control-Request-Headers", "range, x-a")]);
    assert_eq!((allowed.status, allowed.body.len()), (204, 0));
    for (name, value) in [
        (ALLOWED, Some("https://a.example")),
        ("access-control-allow-methods", Some("GET, HEAD")),
        ("access-control-allow-headers", Some("range, x-a")),
        ("access-control-max-age", Some("600")),
        ("access-control-allow-credentials", None),
        ("content-length", None),
    ] {
        assert_eq!(allowed.header(name), value, "{name}");
    }
    for fields in [
        &[EVIL, get][..],
        &[A, ("Access-Control-Request-Method", "PUT")],
        &[A, get, ("Access-Control-Request-Headers", "x-b")],
        &[get],
        &[A],
    ] {
        let refused = ask(fields);
        assert_eq!(refused.status, 403, "{fields:?}");
        assert_eq!(refused.header("access-control-allow-methods"), None);
    }
    // Without the key, the proxy has no answer.
    let plain = self::proxy(&origin, &[]).start();
    let answer = request(plain.addr(), "OPTIONS", "/assets/a.html", &[A, get]);
    assert_eq!((answer.status, answer.header(ALLOWED)), (501, None));
    assert!(origin.requests().is_empty());
}

#[test]
fn each_website_gets_its_permission_with_every_response() {
    let origin = website();
    let proxy = proxy(&origin, &[("cors", CORS)]).start();
    let from = |origin: (&str, &str), target: &str, fields: &[(&str, &str)]| {
        let fields = [&[origin], fields].concat();
        request(proxy.addr(), "GET", target, &fields)
    };
    let target = "/assets/a.html";
    let miss = from(A, target, &[]);
    assert_eq!(
        (miss.x_cache().as_str(), miss.header(ALLOWED)),
        ("MISS", Some(A.1))
    );
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    // All share one entry, and each gets its own field.
    for _ in 0..3 {
        for (origin, allowed) in [(A, Some(A.1)), (B, Some(B.1)), (EVIL, None)] {
            let hit = from(origin, target, &[]);
            assert_eq!(hit.x_cache(), "HIT");
            assert_eq!(hit.header(ALLOWED), allowed);
            is_varied(&hit);
            let exposed = hit.header("access-control-expose-headers");
            assert_eq!(exposed.is_some(), allowed.is_some());
        }
        let own = proxy.get(target);
        assert_eq!((own.x_cache().as_str(), own.header(ALLOWED)), ("HIT", None));
        is_varied(&own);
    }
    let part = from(A, target, &[("Range", "bytes=0-1")]);
    let same = from(A, target, &[("If-None-Match", "\"11\"")]);
    let missing = from(A, "/assets/none", &[]);
    let remembered = from(A, "/assets/none", &[]);
    let refused = from(A, "/assets/?list-type=2", &[]);
    let beyond = from(A, target, &[("Range", "bytes=100-")]);
    let failed = from(A, target, &[("If-Match", "\"x\"")]);
    for (response, status) in [
        (part, 206),
        (same, 304),
        (missing, 404),
        (remembered, 404),
        (refused, 403),
        (beyond, 416),
        (failed, 412),
    ] {
        assert_eq!(response.status, status);
        assert_eq!(response.headers.all(ALLOWED), [A.1], "{status}");
        is_varied(&response);
    }
    let head = request(proxy.addr(), "HEAD", target, &[A]);
    assert_eq!(head.header(ALLOWED), Some(A.1));
    assert_eq!(origin.requests_for("/bucket/a.html"), 1);
    proxy.expect_metric("cache_entries", 1);
}

#[test]
fn the_origin_may_be_down_and_scripts_see_the_error() {
    let origin = Origin::start(|_| Reply::hang_up());
    let proxy = builder()
        .bucket(bucket(&origin, &[("cors", CORS), ("retries", "0")]))
        .start();
    let failed = get_with(&proxy, "/assets/a", &[A]);
    assert_eq!((failed.status, failed.header(ALLOWED)), (502, Some(A.1)));
    is_varied(&failed);
}

#[test]
fn everyone_may_read_what_is_open_to_all() {
    let origin = website();
    let proxy = proxy(&origin, &[("cors", "{origins: ['*']}")]).start();
    for _ in 0..3 {
        for fields in [&[][..], &[EVIL]] {
            let response = get_with(&proxy, "/assets/a.html", fields);
            assert_eq!(response.header(ALLOWED), Some("*"));
            assert_eq!(response.header("vary"), None);
        }
    }
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_preflight_request_needs_no_token_and_the_request_itself_does() {
    let origin = website();
    let tokens = Tokens::new();
    let cors = "{origins: ['https://a.example'], credentials: true}";
    let site = tokens.protect(bucket(&origin, &[("cors", cors)]));
    let proxy = builder().bucket(site).tls().start();
    let asked = [
        A,
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let allowed = request(proxy.addr(), "OPTIONS", "/assets/a.html", &asked);
    assert_eq!(allowed.status, 204);
    assert_eq!(
        allowed.header("access-control-allow-headers"),
        Some("authorization")
    );
    assert_eq!(
        allowed.header("access-control-allow-credentials"),
        Some("true")
    );
    let refused = get_with(&proxy, "/assets/a.html", &[A]);
    // A script may know that it needs a token.
    assert_eq!((refused.status, refused.header(ALLOWED)), (401, Some(A.1)));
    let token = Tokens::for_prefix("");
    let read = get_with(&proxy, "/assets/a.html", &[A, ("Authorization", &token)]);
    assert_eq!((read.status, read.header(ALLOWED)), (200, Some(A.1)));

    let client = https_client(HttpVersion::Http2);
    let url = format!("https://{}/assets/a.html", proxy.https_addr());
    let ask = asked.iter().fold(
        client.request("OPTIONS".parse().expect("a method"), &url),
        |request, (name, value)| request.header(*name, *value),
    );
    let allowed = ask.send().expect("an answer");
    assert_eq!(allowed.status(), 204);
    assert_eq!(allowed.headers()[ALLOWED], A.1);
}
