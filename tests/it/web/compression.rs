//! Compressed forms that are stored beside objects.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use test_support::{eventually, https_client, HttpVersion};

const PLAIN: &str = "function a() { return 'plain'; }";
const BROTLI: &str = "brotli form";
const GZIP: &str = "gzip form, longer";
const SITE: &str = "{precompressed: [br, zstd, gzip], index: index.html, content_types: true}";

fn website() -> Origin {
    origin_of(&[
        ("a.js", PLAIN),
        ("a.js.br", BROTLI),
        ("a.js.gz", GZIP),
        ("b.js", "no forms"),
        ("photo.png", "pixels"),
        ("photo.png.br", "no use"),
        ("index.html", "<p>start</p>"),
        ("index.html.gz", "start"),
    ])
}

fn accepting(proxy: &Proxy, target: &str, codings: &str) -> Response {
    get_with(proxy, target, &[("Accept-Encoding", codings)])
}

#[track_caller]
fn is_form(response: &Response, coding: Option<&str>, body: &str) {
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-encoding"), coding);
    assert_eq!(response.text(), body);
    assert_eq!(response.headers.all("vary"), ["Accept-Encoding"]);
}

#[test]
fn a_client_gets_the_form_that_it_weighs_most() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    // The first requests come from the origin, the last ones from prepared headers.
    for _ in 0..4 {
        for (codings, coding, body) in [
            ("gzip, deflate, br, zstd", Some("br"), BROTLI),
            ("br;q=0.5, gzip", Some("gzip"), GZIP),
            ("zstd", None, PLAIN),
            ("*", Some("br"), BROTLI),
            ("br;q=0, *;q=0.1", Some("gzip"), GZIP),
            ("identity;q=0, gzip;q=0.001", Some("gzip"), GZIP),
            ("identity, br;q=0.9", None, PLAIN),
            ("deflate", None, PLAIN),
        ] {
            let response = accepting(&proxy, "/assets/a.js", codings);
            is_form(&response, coding, body);
            let media_type = response.header("content-type").unwrap_or_default();
            assert!(media_type.starts_with("text/javascript"), "{media_type}");
        }
        is_form(&proxy.get("/assets/a.js"), None, PLAIN);
        is_form(
            &accepting(&proxy, "/assets/", "gzip"),
            Some("gzip"),
            "start",
        );
        is_form(
            &accepting(&proxy, "/assets/b.js", "br, gzip"),
            None,
            "no forms",
        );
    }
    // Once for each form, whatever clients write; the form itself is stored once.
    let asked = |path: &str, method: &str| {
        let seen = origin.seen(path);
        seen.iter()
            .filter(|request| request.method == method)
            .count()
    };
    for (path, gets, heads) in [
        ("/bucket/a.js", 1, 0),
        ("/bucket/a.js.br", 1, 1),
        ("/bucket/a.js.gz", 1, 1),
        ("/bucket/a.js.zst", 0, 1),
        ("/bucket/b.js", 1, 0),
        ("/bucket/b.js.br", 0, 1),
    ] {
        assert_eq!(
            (asked(path, "GET"), asked(path, "HEAD")),
            (gets, heads),
            "{path}"
        );
    }
    // A form at its own path is the file as such.
    for _ in 0..2 {
        let file = accepting(&proxy, "/assets/a.js.br", "br");
        assert_eq!((file.status, file.text().as_str()), (200, BROTLI));
        assert_eq!(file.header("content-encoding"), None);
        assert_eq!(file.header("vary"), None);
    }
    let picture = accepting(&proxy, "/assets/photo.png", "br");
    assert_eq!(
        (picture.text().as_str(), picture.header("vary")),
        ("pixels", None)
    );
    assert_eq!(origin.requests_for("/bucket/photo.png.br"), 0);
}

#[test]
fn ranges_and_conditions_are_for_the_form() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    let ask = |fields: &[(&str, &str)]| {
        let fields = [&[("Accept-Encoding", "br")], fields].concat();
        get_with(&proxy, "/assets/a.js", &fields)
    };
    let whole = ask(&[]);
    is_form(&whole, Some("br"), BROTLI);
    let etag = whole.header("etag").expect("an ETag").to_owned();
    let plain = proxy.get("/assets/a.js");
    let plain_etag = plain.header("etag").expect("an ETag").to_owned();
    assert_ne!(etag, plain_etag);
    eventually("both are stored", || proxy.metric("cache_entries") == 2);

    let part = ask(&[("Range", "bytes=0-5"), ("If-Range", &etag)]);
    assert_eq!((part.status, part.text().as_str()), (206, "brotli"));
    let total = format!("bytes 0-5/{}", BROTLI.len());
    assert_eq!(part.header("content-range"), Some(&*total));
    assert_eq!(part.header("content-encoding"), Some("br"));
    // The rest of another form is not combined with it.
    is_form(
        &ask(&[("Range", "bytes=6-"), ("If-Range", &plain_etag)]),
        Some("br"),
        BROTLI,
    );

    let same = ask(&[("If-None-Match", &etag)]);
    assert_eq!(
        (same.status, same.headers.all("vary")),
        (304, vec!["Accept-Encoding"])
    );
    assert_eq!(ask(&[("If-None-Match", &plain_etag)]).status, 200);
    let header = request(
        proxy.addr(),
        "HEAD",
        "/assets/a.js",
        &[("Accept-Encoding", "br")],
    );
    assert_eq!(header.header("content-encoding"), Some("br"));
    let len = BROTLI.len().to_string();
    assert_eq!(header.header("content-length"), Some(&*len));
}

#[test]
fn over_http_2_the_forms_are_the_same() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).tls().start();
    let client = https_client(HttpVersion::Http2);
    let url = format!("https://{}/assets/a.js", proxy.https_addr());
    for _ in 0..3 {
        for (codings, body) in [("br, gzip", BROTLI), ("gzip", GZIP), ("", PLAIN)] {
            let request = client.get(&url).header("Accept-Encoding", codings);
            let response = request.send().expect("an answer");
            assert_eq!(response.bytes().expect("a body"), body.as_bytes());
        }
    }
}

#[test]
fn a_form_that_vanishes_gives_way_to_the_object() {
    let is_there = Arc::new(AtomicBool::new(true));
    let origin = Origin::start({
        let is_there = is_there.clone();
        move |request| match request.path() {
            "/bucket/a.js" => object_reply("a.js", PLAIN),
            "/bucket/a.js.br" if is_there.load(Ordering::SeqCst) => {
                object_reply("a.js.br", BROTLI).header("Cache-Control", "max-age=0")
            }
            _ => Reply::status(404).body(SECRET_DOCUMENT),
        }
    });
    let proxy = proxy(&origin, &[("web", SITE)]).admin().start();
    is_form(&accepting(&proxy, "/assets/a.js", "br"), Some("br"), BROTLI);
    is_there.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        is_form(&accepting(&proxy, "/assets/a.js", "br"), None, PLAIN);
    }
    // A purge ends what is remembered.
    is_there.store(true, Ordering::SeqCst);
    request(proxy.admin_addr(), "PURGE", "/assets/*", &[]);
    is_form(&accepting(&proxy, "/assets/a.js", "br"), Some("br"), BROTLI);
}

#[test]
fn a_form_needs_the_permission_for_the_object() {
    let origin = website();
    let tokens = Tokens::new();
    let site = tokens.protect(bucket(&origin, &[("web", SITE)]));
    let proxy = builder().bucket(site).start();
    let ask = |prefix: &str| {
        let token = Tokens::for_prefix(prefix);
        let fields = [("Accept-Encoding", "br"), ("Authorization", token.as_str())];
        get_with(&proxy, "/assets/a.js", &fields)
    };
    is_form(&ask("a"), Some("br"), BROTLI);
    // A form is no way around the permission for the object.
    assert_eq!(ask("a.js.br").status, 403);
    assert_eq!(ask("b").status, 403);
    assert_eq!(accepting(&proxy, "/assets/a.js", "br").status, 401);
}

// --- forms that the proxy makes ---

const MADE: &str = "{compress: {min_bytes: 100}, content_types: true}";

/// A text that gets smaller, and its decoded forms.
fn text() -> String {
    "the same line again and again\n".repeat(200)
}

fn decoded(response: &Response) -> String {
    let body = &response.body[..];
    let mut text = String::new();
    match response.header("content-encoding") {
        Some("gzip") => {
            let mut from = flate2::read::GzDecoder::new(body);
            std::io::Read::read_to_string(&mut from, &mut text).expect("gzip");
        }
        None => text = response.text(),
        other => panic!("{other:?}"),
    }
    text
}

fn gzipped(proxy: &Proxy, target: &str) -> Response {
    let mut found = None;
    eventually("the form is made", || {
        let response = accepting(proxy, target, "gzip");
        let is_made = response.header("content-encoding") == Some("gzip");
        found = is_made.then_some(response);
        is_made
    });
    found.expect("a response")
}

#[test]
fn a_text_is_compressed_once_and_sent_from_memory() {
    let (big, text) = ("b".repeat(2 << 20), text());
    let origin = origin_of(&[
        ("a.js", &text),
        ("small.js", "small"),
        ("big.js", &big),
        ("photo.png", &text),
    ]);
    let proxy = proxy(&origin, &[("web", MADE)]).start();
    let first = accepting(&proxy, "/assets/a.js", "gzip");
    is_form(&first, None, &text);
    let etag = first.header("etag").expect("an ETag").to_owned();
    let form = gzipped(&proxy, "/assets/a.js");
    assert_eq!((form.status, form.x_cache().as_str()), (200, "HIT"));
    assert_eq!(decoded(&form), text);
    assert!(form.body.len() < text.len() / 4);
    assert_eq!(form.headers.all("vary"), ["Accept-Encoding"]);
    let own = format!("{}-gzip\"", &etag[..etag.len() - 1]);
    assert_eq!(form.header("etag"), Some(&*own));
    assert!(form.age().is_some());
    assert!(form
        .header("content-type")
        .is_some_and(|t| t.starts_with("text/javascript")));

    let header = request(
        proxy.addr(),
        "HEAD",
        "/assets/a.js",
        &[("Accept-Encoding", "gzip")],
    );
    assert_eq!(
        header.header("content-length"),
        form.header("content-length")
    );
    assert!(header.body.is_empty());
    let ask = |field: (&str, &str)| {
        get_with(
            &proxy,
            "/assets/a.js",
            &[("Accept-Encoding", "gzip"), field],
        )
    };
    let same = ask(("If-None-Match", &own));
    assert_eq!((same.status, same.body.len()), (304, 0));
    assert_eq!(
        ask(("If-None-Match", &etag)).header("content-encoding"),
        Some("gzip")
    );
    assert_eq!(ask(("If-Match", "\"x\"")).status, 412);
    // A range is one of the object, with its own tag: it cannot continue the form.
    let part = ask(("Range", "bytes=0-7"));
    assert_eq!((part.status, part.text().as_str()), (206, "the same"));
    assert_eq!(part.header("etag"), Some(&*etag));
    assert_eq!(part.header("content-encoding"), None);
    let fields = [
        ("Accept-Encoding", "gzip"),
        ("Range", "bytes=8-"),
        ("If-Range", own.as_str()),
    ];
    is_form(&get_with(&proxy, "/assets/a.js", &fields), None, &text);
    // Clients that accept nothing get the object.
    is_form(&proxy.get("/assets/a.js"), None, &text);
    is_form(&accepting(&proxy, "/assets/a.js", "gzip;q=0"), None, &text);
    assert_eq!(origin.requests_for("/bucket/a.js"), 1);

    for (target, body) in [
        ("small.js", "small"),
        ("big.js", &*big),
        ("photo.png", &*text),
    ] {
        for _ in 0..5 {
            let response = accepting(&proxy, &format!("/assets/{target}"), "gzip");
            assert_eq!(response.header("content-encoding"), None, "{target}");
            assert!(response.text() == *body, "{target}");
        }
    }
}

#[test]
fn a_form_is_that_of_the_version_that_is_stored() {
    let is_new = Arc::new(AtomicBool::new(false));
    let new_text = text().to_uppercase();
    let origin = Origin::start({
        let (is_new, new_text) = (is_new.clone(), new_text.clone());
        move |_| match is_new.load(Ordering::SeqCst) {
            false => object_reply("a.js", &text()),
            true => object_reply("a.js", &new_text).set("ETag", "\"new\""),
        }
    });
    let proxy = proxy(&origin, &[("web", MADE)]).admin().tls().start();
    assert_eq!(decoded(&gzipped(&proxy, "/assets/a.js")), text());
    is_new.store(true, Ordering::SeqCst);
    request(proxy.admin_addr(), "PURGE", "/assets/a.js", &[]);
    // Never the old form from here on.
    assert_eq!(
        decoded(&accepting(&proxy, "/assets/a.js", "gzip")),
        new_text
    );
    let form = gzipped(&proxy, "/assets/a.js");
    assert_eq!(decoded(&form), new_text);
    assert_eq!(form.header("etag"), Some("\"new-gzip\""));

    let client = https_client(HttpVersion::Http2);
    let url = format!("https://{}/assets/a.js", proxy.https_addr());
    let response = client.get(&url).header("Accept-Encoding", "gzip").send();
    let response = response.expect("an answer");
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = response.bytes().expect("a body");
    assert_eq!(bytes, form.body);
}

#[test]
fn a_purge_takes_the_form_of_an_object_whose_tag_stays() {
    let is_new = Arc::new(AtomicBool::new(false));
    let new_text = text().to_uppercase();
    let origin = Origin::start({
        let (is_new, new_text) = (is_new.clone(), new_text.clone());
        move |_| {
            let reply = match is_new.load(Ordering::SeqCst) {
                false => object_reply("a.js", &text()),
                true => object_reply("a.js", &new_text),
            };
            reply.set("ETag", "\"same\"")
        }
    });
    let proxy = proxy(&origin, &[("web", MADE)]).admin().start();
    assert_eq!(decoded(&gzipped(&proxy, "/assets/a.js")), text());
    eventually("the form is stored", || proxy.metric("cache_entries") == 2);
    is_new.store(true, Ordering::SeqCst);
    request(proxy.admin_addr(), "PURGE", "/assets/a.js", &[]);
    let form = gzipped(&proxy, "/assets/a.js");
    assert_eq!(decoded(&form), new_text);
    assert_eq!(form.header("etag"), Some("\"same-gzip\""));
    eventually("that is stored", || proxy.metric("cache_entries") == 2);
}

#[test]
fn a_form_outlives_a_restart() {
    let text = text();
    let origin = origin_of(&[("a.js", &text)]);
    let mut proxy = proxy(&origin, &[("web", MADE)]).start();
    let form = gzipped(&proxy, "/assets/a.js");
    assert_eq!(decoded(&form), text);
    eventually("the form is stored", || proxy.metric("cache_entries") == 2);
    proxy.expect_metric("cache_fills_total", 2);
    for _ in 0..2 {
        proxy.restart();
        eventually("both are found", || proxy.metric("cache_entries") == 2);
        let again = gzipped(&proxy, "/assets/a.js");
        assert_eq!(again.body, form.body);
        assert_eq!(again.header("etag"), form.header("etag"));
        assert_eq!(proxy.metric("cache_entries"), 2);
        assert_eq!(proxy.metric("cache_fills_total"), 0);
    }
    assert_eq!(origin.requests_for("/bucket/a.js"), 1);
}

#[test]
fn what_must_not_be_changed_is_not() {
    let text = text();
    for field in [
        ("Cache-Control", "max-age=60, no-transform"),
        ("Content-Encoding", "identity"),
        ("Cache-Control", "no-store"),
    ] {
        let text = text.clone();
        let origin = Origin::start({
            let text = text.clone();
            move |_| object_reply("a.js", &text).header(field.0, field.1)
        });
        let proxy = proxy(&origin, &[("web", MADE)]).start();
        for _ in 0..10 {
            let response = accepting(&proxy, "/assets/a.js", "gzip");
            assert!(response.body == text.as_bytes(), "{field:?}");
        }
    }
}
