//! Responses that the example's cache stores and serves again, and its fields
//! about that (RFC 9111 sections 2, 3 and 5.1; RFC 9211).

use test_support::{date::Date, eventually, Gate, Reply, Rules, Site, Use};

const DIGITS: &[u8] = b"0123456789";

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 / 7) as u8).collect()
}

#[test]
fn what_is_handed_out_is_what_the_origin_sent() {
    let mut rules = Rules::new();
    let large = pattern(3_000_000);
    let small = DIGITS.to_vec();
    let empty = Vec::new();
    let fresh = || {
        Reply::fresh()
            .header("Content-Type", "text/x; charset=\"q\"")
            .header("X-Repeated", "one")
            .header("X-Repeated", "two")
            .header("X-Empty", "")
            .header("X-Obs", "caf\u{e9} \u{ff}")
            .header("Last-Modified", "Sun Nov  6 08:49:37 1994")
    };
    for (what, body) in [("large", &large), ("small", &small), ("empty", &empty)] {
        for (framing, answer) in [
            ("Content-Length", fresh().body(body.clone())),
            ("chunked", fresh().body(body.clone()).chunked()),
            ("close", fresh().body(body.clone()).until_close()),
            (
                "HTTP/1.0",
                fresh().body(body.clone()).until_close().http10(),
            ),
        ] {
            let what = format!("{what} body by {framing}");
            let page = Site::shared().page_with(answer);
            let first = page.get();
            let hit = page.get();
            // An end by closing may be taken for a loss.
            let asked = matches!(framing, "Content-Length" | "chunked");
            if asked {
                rules.expect("RFC 9111 3", &what, 1, page.count());
            }
            for got in [&first, &hit] {
                rules.expect("RFC 9111 4", &what, (200, true), (got.status, got.complete));
                rules.holds("RFC 9111 4", &what, got.body == *body, got.body.len());
                rules.expect(
                    "RFC 9110 5.3",
                    &what,
                    vec!["one", "two"],
                    got.headers.all("x-repeated"),
                );
                rules.expect("RFC 9110 5.5", &what, Some(""), got.header("x-empty"));
                rules.expect(
                    "RFC 9110 5.5",
                    &what,
                    Some("caf\u{e9} \u{ff}"),
                    got.header("x-obs"),
                );
                rules.expect(
                    "RFC 9110 5.6.7",
                    &what,
                    Some("Sun Nov  6 08:49:37 1994"),
                    got.header("last-modified"),
                );
                rules.expect("RFC 9110 8.8.3", &what, Some("\"v1\""), got.header("etag"));
                rules.expect(
                    "RFC 9110 8.3",
                    &what,
                    Some("text/x; charset=\"q\""),
                    got.header("content-type"),
                );
            }
        }
    }
    rules.check();
}

#[test]
fn a_response_without_content_is_stored_too() {
    let mut rules = Rules::new();
    for status in [204, 301, 404] {
        let page = Site::shared().page_with(
            Reply::ok()
                .with_status(status)
                .header("Cache-Control", "max-age=3600")
                .header("Location", "/there")
                .body(""),
        );
        for _ in 0..2 {
            let got = page.get();
            let what = status.to_string();
            rules.expect(
                "RFC 9111 3",
                &what,
                (status, 0),
                (got.status, got.body.len()),
            );
            rules.expect("RFC 9111 3", &what, Some("/there"), got.header("location"));
            if status == 204 {
                rules.expect("RFC 9110 8.6", &what, None, got.header("content-length"));
            }
        }
        rules.expect("RFC 9111 3", &status.to_string(), 1, page.count());
    }
    rules.check();
}

#[test]
fn what_is_for_one_connection_is_neither_stored_nor_passed_on() {
    let page = Site::shared().page_with(
        Reply::fresh()
            .header("Connection", "X-Named, keep-alive")
            .header("Connection", "X-Other")
            .header("X-Named", "named")
            .header("X-Other", "other")
            .header("X-Unnamed", "unnamed")
            .header("Keep-Alive", "timeout=30")
            .header("Proxy-Connection", "keep-alive")
            .header("Proxy-Authentication-Info", "x")
            .header("Upgrade", "h2c"),
    );
    let (first, hit) = (page.get(), page.get());
    let mut rules = Rules::new();
    rules.expect("RFC 9111 3.1", "requests", 1, page.count());
    for (which, got) in [("miss", first), ("hit", hit)] {
        for name in [
            "x-named",
            "x-other",
            "keep-alive",
            "proxy-connection",
            "upgrade",
        ] {
            let what = format!("{which}: {name}");
            rules.expect("RFC 9110 7.6.1", &what, None, got.header(name));
        }
        rules.expect(
            "RFC 9110 7.6.1",
            which,
            Some("unnamed"),
            got.header("x-unnamed"),
        );
        let named = got.headers.all("connection").join(",").to_lowercase();
        rules.holds("RFC 9110 7.6.1", which, !named.contains("x-"), named);
        if which == "hit" {
            let field = got.header("proxy-authentication-info");
            rules.expect("RFC 9111 3.1", which, None, field);
        }
    }
    rules.check();
}

#[test]
fn date_stays_and_age_grows() {
    let dated = Date::from_now(-100).imf();
    let page = Site::shared().page_with(Reply::fresh().header("Date", &dated).header("Age", 200));
    let (first, hit) = (page.get(), page.get());
    assert_eq!(page.count(), 1);
    assert_eq!(first.header("date"), Some(&*dated), "RFC 9110 6.6.1");
    assert_eq!(hit.header("date"), Some(&*dated), "RFC 9110 6.6.1");
    let age = hit.age().expect("RFC 9111 4: an Age");
    assert!((200..230).contains(&age), "RFC 9111 4.2.3: Age: {age}");

    let page = Site::shared().page_with(Reply::fresh().header("Date", &dated));
    page.get();
    let age = page.get().age().expect("RFC 9111 4: an Age");
    assert!((100..130).contains(&age), "RFC 9111 4.2.3: Age: {age}");

    let page = Site::shared().page_with(Reply::fresh());
    page.get();
    let age = page.get().age().expect("RFC 9111 4: an Age");
    assert!(age < 30, "RFC 9111 4.2.3: Age: {age}");
}

#[test]
fn an_age_that_came_from_nobody_is_none() {
    // The first response is the origin's own.
    let page = Site::shared().page_with(Reply::ok().header("Cache-Control", "no-store"));
    assert_eq!(page.get().age(), None, "RFC 9111 5.1");
}

#[test]
fn a_date_is_added_where_there_is_none() {
    let page = Site::shared().page_with(Reply::fresh().undated());
    let (first, hit) = (page.get(), page.get());
    assert_eq!(page.count(), 1);
    let date = hit.header("date").expect("RFC 9110 6.6.1: a Date");
    let now = Date::from_now(0);
    assert!(
        (-30..=0).any(|offset| now.plus(offset).imf() == date),
        "Date: {date}"
    );
    assert!(first.header("date").is_some(), "RFC 9110 6.6.1: a Date");
}

#[test]
fn a_response_that_breaks_off_is_not_stored() {
    let mut rules = Rules::new();
    let large = pattern(500_000);
    for (what, answer) in [
        ("length, none", Reply::fresh().body(DIGITS).close_at(0)),
        ("length, some", Reply::fresh().body(DIGITS).close_at(4)),
        (
            "length, large",
            Reply::fresh().body(large.clone()).close_at(300_000),
        ),
        (
            "chunked, some",
            Reply::fresh().body(DIGITS).chunked().close_at(4),
        ),
        (
            "chunked, all but the end",
            Reply::fresh().body(DIGITS).chunked().close_at(10),
        ),
        (
            "chunked, large",
            Reply::fresh().body(large).chunked().close_at(300_000),
        ),
        (
            "length too large",
            Reply::fresh().body(DIGITS).claiming_length(11),
        ),
    ] {
        let page = Site::shared().page();
        page.answers([answer, Reply::fresh().body("whole")]);
        let mut client = page.ask("GET", &[], b"");
        // The head may be lost with the rest.
        if let Ok(got) = client.try_receive("GET") {
            rules.holds(
                "RFC 9112 8",
                what,
                !got.complete || got.status == 502 || got.text() == "whole",
                got,
            );
        }
        // A client that comes before the loss is noticed shares it.
        eventually("a response that is complete", || {
            let next = page.get();
            rules.holds(
                "RFC 9111 3.3",
                what,
                !next.complete || next.text() == "whole",
                next.text().len(),
            );
            next.complete
        });
    }
    rules.check();
}

#[test]
fn more_than_the_length_says_is_not_part_of_it() {
    let page = Site::shared().page();
    page.answers([
        Reply::fresh().body("0123456789junk").claiming_length(10),
        Reply::fresh().body(DIGITS),
    ]);
    for _ in 0..2 {
        assert_eq!(page.get().body, DIGITS, "RFC 9112 6.3");
    }
}

#[test]
fn a_client_that_leaves_does_not_shorten_what_is_stored() {
    let gate = Gate::new();
    let body = pattern(400_000);
    let page = Site::shared().page_with(Reply::fresh().body(body.clone()).hold_at(100_000, &gate));
    let mut client = page.ask("GET", &[], b"");
    client.receive_head().expect("a head");
    gate.wait_for_arrivals(1);
    drop(client);
    gate.open();
    let next = page.get();
    assert!(next.complete && next.body == body, "RFC 9111 3.3");
}

#[test]
fn a_part_is_not_stored_as_the_whole() {
    let page = Site::shared().page();
    page.serves(|seen, serial| match seen.header("range") {
        Some(_) => Reply::fresh()
            .with_status(206)
            .header("Content-Range", "bytes 0-3/10")
            .body(&DIGITS[..4]),
        None if serial == 1 => Reply::fresh().body("first"),
        None => Reply::fresh().body(DIGITS),
    });
    let part = page.get_with(&[("Range", "bytes=0-3")]);
    assert!(matches!(part.status, 200 | 206), "{}", part.status);
    let whole = page.get();
    assert_eq!(
        (whole.status, whole.body.len() > 4),
        (200, true),
        "RFC 9111 3.3"
    );
    assert_eq!(whole.header("content-range"), None);
}

#[test]
fn a_206_that_nobody_asked_for_is_not_stored() {
    let page = Site::shared().page();
    page.answers([
        Reply::fresh()
            .with_status(206)
            .header("Content-Range", "bytes 0-3/10")
            .body(&DIGITS[..4]),
        Reply::fresh().body(DIGITS),
    ]);
    let first = page.get();
    assert!(first.status != 200 || first.body == DIGITS);
    let second = page.get();
    assert_eq!(
        (second.status, &second.body[..]),
        (200, DIGITS),
        "RFC 9111 3.3"
    );
}

#[test]
fn a_head_is_not_stored_as_a_get() {
    let page = Site::shared().page_with(Reply::fresh().body(DIGITS));
    let head = page.head();
    assert_eq!((head.status, head.body.len()), (200, 0));
    let get = page.get();
    assert_eq!((get.status, &get.body[..]), (200, DIGITS), "RFC 9111 3");
}

#[test]
fn the_key_is_the_target_uri() {
    let mut rules = Rules::new();
    let base = Site::shared().page();
    let path = base.path();
    base.answers([Reply::fresh()]);
    let ask = |target: &str, host: &str| {
        let before = base.count();
        let mut client = Site::shared().client();
        client.ask("GET", target, &[("Host", host)], b"");
        let got = client.receive("GET");
        assert_eq!(got.status, 200);
        base.count() == before
    };
    let query = |query: &str| format!("{path}?{query}");
    for (target, host, reused) in [
        (path.to_owned(), "site.example", false),
        (path.to_owned(), "site.example", true),
        (query(""), "site.example", false),
        (query("a=1&b=2"), "site.example", false),
        (query("a=1&b=2"), "site.example", true),
        (query("b=2&a=1"), "site.example", false),
        (query("A=1&b=2"), "site.example", false),
        (path.to_owned(), "other.example", false),
        (path.to_owned(), "other.example", true),
        (path.to_owned(), "site.example:8080", false),
        // The same by RFC 9110, section 4.2.3.
        (path.to_owned(), "SITE.example", true),
        (path.to_owned(), "site.example:80", true),
    ] {
        let what = format!("{target} of {host}");
        rules.expect("RFC 9111 2", &what, reused, ask(&target, host));
    }
    rules.check();
}

#[test]
fn cache_status_says_what_happened() {
    let mut rules = Rules::new();
    let page = Site::shared().page_with(Reply::fresh());

    let miss = page.get().cache_status();
    rules.expect("RFC 9211 2.2", "miss", Some("uri-miss"), miss.get("fwd"));
    rules.expect("RFC 9211 2.5", "miss", true, miss.has("stored"));
    rules.expect("RFC 9211 2.1", "miss", false, miss.is_hit());

    let hit = page.get().cache_status();
    rules.expect("RFC 9211 2.1", "hit", true, hit.is_hit());
    rules.expect("RFC 9211 2.2", "hit", None, hit.get("fwd"));
    let ttl: Option<i64> = hit.get("ttl").and_then(|ttl| ttl.parse().ok());
    rules.holds(
        "RFC 9211 2.4",
        "hit",
        ttl.is_some_and(|ttl| (3570..=3600).contains(&ttl)),
        ttl,
    );

    let reload = page.get_with(&[("Cache-Control", "no-cache")]);
    let reload = reload.cache_status();
    rules.expect(
        "RFC 9211 2.2",
        "no-cache",
        Some("request"),
        reload.get("fwd"),
    );
    rules.expect("RFC 9211 2.1", "no-cache", false, reload.is_hit());

    let page = Site::shared().page_with(Reply::ok().header("Cache-Control", "no-store"));
    let miss = page.get().cache_status();
    rules.expect(
        "RFC 9211 2.2",
        "no-store",
        Some("uri-miss"),
        miss.get("fwd"),
    );
    rules.expect("RFC 9211 2.5", "no-store", false, miss.has("stored"));

    let posted = page.request("POST", &[], b"x").cache_status();
    rules.expect("RFC 9211 2.2", "POST", Some("method"), posted.get("fwd"));

    let page = Site::shared().page_with(Reply::fresh().header("Vary", "X-One"));
    page.get_with(&[("X-One", "a")]);
    let other = page.get_with(&[("X-One", "b")]).cache_status();
    rules.expect(
        "RFC 9211 2.2",
        "variant",
        Some("vary-miss"),
        other.get("fwd"),
    );

    let page = Site::shared().page_with(Reply::stale());
    page.get();
    page.answers([Reply::ok().with_status(304).header("ETag", "\"v1\"")]);
    let same = page.get().cache_status();
    rules.expect("RFC 9211 2.2", "validated", Some("stale"), same.get("fwd"));
    rules.expect(
        "RFC 9211 2.3",
        "validated",
        Some("304"),
        same.get("fwd-status"),
    );
    rules.expect("RFC 9211 2.1", "validated", false, same.is_hit());

    let page = Site::shared().page_with(Reply::stale());
    page.get();
    let old = page.get_with(&[("Cache-Control", "max-stale")]);
    let old = old.cache_status();
    rules.expect("RFC 9211 2.1", "stale hit", true, old.is_hit());
    let ttl: Option<i64> = old.get("ttl").and_then(|ttl| ttl.parse().ok());
    rules.holds(
        "RFC 9211 2.4",
        "stale hit",
        ttl.is_some_and(|ttl| (-90..=-58).contains(&ttl)),
        ttl,
    );

    let page = Site::shared().page_with(Reply::ok().with_status(404));
    let missing = page.get().cache_status();
    rules.expect("RFC 9211 2.2", "404", Some("uri-miss"), missing.get("fwd"));
    rules.check();
}

#[test]
fn cache_status_is_added_behind_that_of_caches_before() {
    let page = Site::shared().page_with(Reply::fresh().header(
        "Cache-Status",
        "before.example; fwd=uri-miss; detail=\"a, b; c\"",
    ));
    for expected in ["fwd", "hit"] {
        let got = page.get();
        let all = got.headers.all("cache-status").join(", ");
        assert!(all.starts_with("before.example"), "RFC 9211 2: {all}");
        let ours = got.cache_status();
        assert_ne!(ours.cache, "before.example", "RFC 9211 2: {all}");
        assert!(ours.has(expected), "RFC 9211 2: {all}");
        let members = all.matches("hit").count() + all.matches("fwd=").count();
        assert_eq!(members, 2, "one of each cache: {all}");
    }
}

#[test]
fn x_cache_says_hit_or_miss() {
    let page = Site::shared().page_with(Reply::fresh());
    assert_eq!(page.get().x_cache(), "MISS");
    assert_eq!(page.get().x_cache(), "HIT");
    assert_eq!(page.get_with(&[("Range", "bytes=0-1")]).x_cache(), "HIT");
    assert_eq!(
        page.get_with(&[("If-None-Match", "\"v1\"")]).x_cache(),
        "HIT"
    );
}

#[test]
fn trailers_do_not_disturb() {
    let page = Site::shared().page_with(
        Reply::fresh()
            .body(DIGITS)
            .trailer("X-Trailer", "t")
            .trailer("Cache-Control", "no-store")
            .trailer("Content-Length", "3"),
    );
    for _ in 0..2 {
        let got = page.get();
        assert_eq!(&got.body[..], DIGITS);
        assert_eq!(got.header("x-trailer"), None, "RFC 9110 6.5.1");
        assert_eq!(got.header("cache-control"), Some("max-age=3600"));
    }
    assert_eq!(page.count(), 1, "RFC 9110 6.5.1: not part of the header");
}

#[test]
fn after_a_response_that_is_not_stored_the_next_one_can_be() {
    let page = Site::shared().page();
    page.answers([
        Reply::ok().header("Cache-Control", "no-store"),
        Reply::ok().with_status(500),
        Reply::fresh(),
    ]);
    assert_eq!(page.get().serial(), Some(1));
    assert_eq!(page.get().status, 500);
    assert_eq!(page.get().serial(), Some(3));
    eventually("it is stored", || page.get_again(&[]).1 == Use::Reused);
    assert!(page.count() <= 4);
}
