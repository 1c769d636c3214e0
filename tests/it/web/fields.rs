//! Rules for the header of responses, security fields, and types by the endings of keys.

use super::*;
use test_support::{eventually, https_client, HttpVersion};

const RULES: &str = "[{key: '*.html', set: {Cache-Control: no-cache, X-Rule: page}}, \
     {key: '*', remove: [x-amz-meta-*, Server], add: {Link: </a.css>; rel=preload}}, \
     {key: 'private/*', errors: true, set: {X-Rule: private}}]";

/// An origin whose objects have more fields than clients should see.
fn origin() -> Origin {
    Origin::start(|request| match request.path() {
        "/bucket/private/none" => Reply::status(404).body(SECRET_DOCUMENT),
        path => object_reply(path, "<p>text</p>")
            .header("Cache-Control", "max-age=600")
            .header("Server", "AmazonS3")
            .header("Link", "</own>; rel=next")
            .header("x-amz-meta-owner", "somebody")
            .answering(request),
    })
}

#[test]
fn rules_change_what_is_sent_from_the_origin_and_from_the_cache() {
    let origin = origin();
    let proxy = proxy(&origin, &[("response_headers", RULES)]).start();
    let check = |response: &Response, status: u16, what: &str| {
        assert_eq!(response.status, status, "{what}");
        assert_eq!(response.header("cache-control"), Some("no-cache"), "{what}");
        assert_eq!(response.header("x-rule"), Some("page"), "{what}");
        assert_eq!(response.header("server"), None, "{what}");
        assert_eq!(response.header("x-amz-meta-owner"), None, "{what}");
        let links = ["</own>; rel=next", "</a.css>; rel=preload"];
        assert_eq!(response.headers.all("link"), links, "{what}");
        assert!(response.header("etag").is_some(), "{what}");
    };
    check(&proxy.get("/assets/a.html"), 200, "a miss");
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    // Of hits, the first one prepares the header of the others.
    for hit in 1..=3 {
        let response = proxy.get("/assets/a.html");
        assert_eq!(response.x_cache(), "HIT");
        check(&response, 200, &format!("hit {hit}"));
    }
    check(&head(&proxy, "/assets/a.html"), 200, "HEAD");
    let part = get_with(&proxy, "/assets/a.html", &[("Range", "bytes=0-2")]);
    check(&part, 206, "a range");
    let same = get_with(&proxy, "/assets/a.html", &[("If-None-Match", "\"11\"")]);
    check(&same, 304, "a condition");
    assert_eq!(origin.requests().len(), 1);

    // Another object has only the fields of its own rules.
    let other = proxy.get("/assets/a.css");
    assert_eq!(other.header("cache-control"), Some("max-age=600"));
    assert_eq!(other.header("x-rule"), None);
    assert_eq!(other.headers.all("link").len(), 2);
    // Errors are changed only by a rule for errors.
    let error = proxy.get("/assets/private/none");
    assert_eq!(
        (error.status, error.header("x-rule")),
        (404, Some("private"))
    );
    assert_eq!(error.header("link"), None);
}

#[test]
fn over_http_2_the_fields_are_the_same() {
    let origin = origin();
    let keys = [("response_headers", RULES), ("security_headers", "true")];
    let proxy = proxy(&origin, &keys).tls().start();
    let client = https_client(HttpVersion::Http2);
    let url = format!("https://{}/assets/a.html", proxy.https_addr());
    for _ in 0..3 {
        let response = client.get(&url).send().expect("an answer");
        let field = |name: &str| {
            response
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap())
        };
        assert_eq!(field("cache-control"), Some("no-cache"));
        assert_eq!(field("x-amz-meta-owner"), None);
        assert_eq!(field("x-content-type-options"), Some("nosniff"));
    }
}

#[test]
fn a_change_of_the_rules_applies_to_what_is_stored() {
    let origin = origin();
    let rules = [("response_headers", "[{set: {X-Rule: one}}]")];
    let mut proxy = proxy(&origin, &rules).start();
    for _ in 0..3 {
        assert_eq!(proxy.get("/assets/a").header("x-rule"), Some("one"));
    }
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    proxy.edit_config(|yaml| yaml.replace("X-Rule: one", "X-Rule: two"));
    proxy.restart();
    let hit = proxy.get("/assets/a");
    assert_eq!(
        (hit.x_cache().as_str(), hit.header("x-rule")),
        ("HIT", Some("two"))
    );
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_reload_applies_new_rules_to_prepared_headers() {
    let origin = origin();
    let rules = [("response_headers", "[{set: {X-Rule: one}}]")];
    let proxy = proxy(&origin, &rules).start();
    for _ in 0..3 {
        assert_eq!(proxy.get("/assets/a").header("x-rule"), Some("one"));
    }
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    proxy.get("/assets/a");
    proxy.edit_config(|yaml| yaml.replace("X-Rule: one", "X-Rule: two"));
    assert_eq!(proxy.reload(), "ok");
    for _ in 0..3 {
        let hit = proxy.get("/assets/a");
        assert_eq!(
            (hit.x_cache().as_str(), hit.header("x-rule")),
            ("HIT", Some("two"))
        );
    }
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn routes_that_share_an_object_keep_their_own_rules() {
    let origin = origin();
    let route =
        |path, rules: &str| Bucket::at(&origin, path, "bucket").set("response_headers", rules);
    let proxy = builder()
        .bucket(route("/one", "[{set: {X-Rule: one}}]"))
        .bucket(route("/two", "[{set: {X-Rule: two}}]"))
        .bucket(Bucket::at(&origin, "/three", "bucket"))
        .start();
    proxy.get("/one/a");
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    for _ in 0..3 {
        for (path, expected) in [("one", Some("one")), ("two", Some("two")), ("three", None)] {
            let hit = proxy.get(&format!("/{path}/a"));
            assert_eq!(hit.x_cache(), "HIT");
            assert_eq!(hit.header("x-rule"), expected, "{path}");
        }
    }
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn all_responses_have_the_security_fields() {
    let origin = origin();
    let proxy = proxy(&origin, &[("security_headers", "true")]).start();
    for target in [
        "/assets/a",
        "/assets/a",
        "/assets/private/none",
        "/assets/?list-type=2",
    ] {
        let response = proxy.get(target);
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "SAMEORIGIN"),
            ("referrer-policy", "strict-origin-when-cross-origin"),
            ("x-permitted-cross-domain-policies", "none"),
        ] {
            assert_eq!(response.headers.all(name), [value], "{target}");
        }
    }
}

#[test]
fn a_type_is_that_of_the_ending_where_the_origin_has_none() {
    let origin = origin_of(&[("a.css", "p{}"), ("a.html", "<p>"), ("a", "text")]);
    let proxy = proxy(&origin, &[("web", "{content_types: true}")]).start();
    for _ in 0..3 {
        for (key, expected) in [
            ("a.css", "text/css; charset=utf-8"),
            ("a.html", "text/html"),
            ("a", "binary/octet-stream"),
        ] {
            let response = proxy.get(&format!("/assets/{key}"));
            assert_eq!(response.header("content-type"), Some(expected), "{key}");
        }
    }
    let part = get_with(&proxy, "/assets/a.css", &[("Range", "bytes=0-0")]);
    assert_eq!(part.header("content-type"), Some("text/css; charset=utf-8"));
    let parts = get_with(&proxy, "/assets/a.css", &[("Range", "bytes=0-0,2-2")]);
    let media_type = parts.header("content-type").expect("a type");
    assert!(
        media_type.starts_with("multipart/byteranges"),
        "{media_type}"
    );
    assert!(
        parts.text().contains("text/css; charset=utf-8"),
        "{}",
        parts.text()
    );

    // The cache stores the response as the origin has sent it.
    let origin = origin_of(&[("a.css", "p{}")]);
    let proxy = self::proxy(&origin, &[]).start();
    for _ in 0..3 {
        let response = proxy.get("/assets/a.css");
        assert_eq!(response.header("content-type"), Some("binary/octet-stream"));
    }
}
