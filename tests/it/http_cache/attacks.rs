//! Attacks of clients and origins on each other through the cache.

use test_support::{Connection, Gate, Reply, Rules, Site, Use};

fn site() -> &'static Site {
    Site::shared()
}

fn raw(head: &str) -> Connection {
    let mut client = site().client();
    client.send_bytes(format!("{head}\r\nConnection: close\r\n\r\n"));
    client
}

/// RFC 9112 §3.2, RFC 9110 §7.2: a key has one reading.
#[test]
fn a_host_or_target_that_is_none_is_refused() {
    let mut rules = Rules::new();
    let page = site().page_with(Reply::fresh());
    let path = page.path();
    for host in [
        "site.example/static",
        "site.example?a=",
        "site.example#",
        "site example",
        "site.example,other",
        "site.example\\",
        "[::1",
        "user@site.example",
        "site.example:port",
    ] {
        let status = raw(&format!("GET {path} HTTP/1.1\r\nHost: {host}"))
            .receive("GET")
            .status;
        rules.expect("RFC 9112 3.2", host, 400, status);
    }
    let bare = &path[1..];
    for target in [
        bare.to_owned(),
        format!("?{bare}"),
        format!("ftp://site.example{path}"),
    ] {
        let got = raw(&format!("GET {target} HTTP/1.1\r\nHost: site.example")).receive("GET");
        rules.expect("RFC 9112 3.2", &target, 400, got.status);
    }
    rules.check();
    assert_eq!(page.count(), 0);
}

/// RFC 9112 §3.2.2
#[test]
fn the_origin_is_told_the_authority_of_an_absolute_target() {
    let page = site().page();
    page.serves(|seen, _| Reply::fresh().body(seen.header("host").unwrap_or("none").to_owned()));
    let absolute = format!("GET http://site.example{} HTTP/1.0", page.path());
    assert_eq!(raw(&absolute).receive("GET").text(), "site.example");
    assert_eq!(page.get().text(), "site.example");
}

/// RFC 9111 §4.1
#[test]
fn what_varies_by_something_unreadable_is_for_nobody_else() {
    let mut rules = Rules::new();
    for vary in ["\"Cookie\"", "Accept Encoding", "Cookie; x", "Cookie, (b)"] {
        let page = site().page_with(Reply::fresh().header("Vary", vary));
        page.get_with(&[("Cookie", "alice")]);
        let used = page.get_again(&[("Cookie", "bob")]).1;
        rules.expect("RFC 9111 4.1", vary, Use::Fetched, used);
    }
    rules.check();
}

/// RFC 9110 §7.6.1: what does not reach the origin selects nothing.
#[test]
fn a_field_that_connection_names_selects_no_variant() {
    let page = site().page();
    page.serves(|seen, _| {
        let language = seen.header("accept-language").unwrap_or("none").to_owned();
        Reply::fresh()
            .header("Vary", "Accept-Language")
            .body(language)
    });
    let named = [("Accept-Language", "de"), ("Connection", "Accept-Language")];
    assert_eq!(page.get_with(&named).text(), "none");
    assert_eq!(page.get_with(&[("Accept-Language", "de")]).text(), "de");
}

/// RFC 9111 §4.4
#[test]
fn an_answer_that_was_asked_for_before_a_change_is_not_kept() {
    let gate = Gate::new();
    let page = site().page();
    page.answers([
        Reply::fresh().body("old").hold(&gate),
        Reply::ok().body("changed"),
        Reply::fresh().body("new"),
    ]);
    let mut early = page.ask("GET", &[], b"");
    gate.wait_for_arrivals(1);
    assert_eq!(page.request("POST", &[], b"x").text(), "changed");
    gate.open();
    assert_eq!(early.receive("GET").text(), "old");
    assert_eq!(page.get().text(), "new");
    assert_eq!(page.get_again(&[]).1, Use::Reused);
}

/// RFC 9111 §4.3.4, §5.2.2.2
#[test]
fn a_304_that_never_fits_validates_nothing() {
    let mut rules = Rules::new();
    for control in ["no-cache", "max-age=0, must-revalidate", "s-maxage=0"] {
        let page = site().page_with(
            Reply::ok()
                .header("Cache-Control", control)
                .header("ETag", "\"a\""),
        );
        page.get();
        let other = || Reply::ok().with_status(304).header("ETag", "\"zz\"");
        page.answers([other(), other(), Reply::fresh().body("new")]);
        let got = page.get();
        rules.holds(
            "RFC 9111 4.3.4",
            control,
            matches!(got.status, 502 | 504),
            &got,
        );
        rules.expect(
            "RFC 9111 4.3.4",
            control,
            "new".to_owned(),
            page.get().text(),
        );
    }
    rules.check();
}

/// RFC 9111 §7.3 leaves it open; sessions are not for others.
#[test]
fn a_cookie_of_a_validation_is_for_its_client() {
    let page = site().page_with(
        Reply::ok()
            .header("Cache-Control", "max-age=0")
            .header("ETag", "\"a\""),
    );
    page.get();
    page.answers([Reply::ok()
        .with_status(304)
        .header("ETag", "\"a\"")
        .header("Cache-Control", "max-age=3600")
        .header("Set-Cookie", "sid=alice")]);
    assert_eq!(page.get().header("set-cookie"), Some("sid=alice"));
    let (bob, used) = page.get_again(&[]);
    assert_eq!((used, bob.header("set-cookie")), (Use::Reused, None));
}

/// RFC 9111 §3.5, §4.3.5
#[test]
fn a_head_with_credentials_voids_nothing() {
    let page = site().page_with(
        Reply::ok()
            .header("Cache-Control", "max-age=3600")
            .header("ETag", "\"a\""),
    );
    page.get();
    let fields = [
        ("Authorization", "Basic eA=="),
        ("Cache-Control", "no-cache"),
    ];
    assert_eq!(page.request("HEAD", &fields, b"").status, 200);
    assert_eq!(page.get_again(&[]).1, Use::Reused);
}

/// However many ask while the origin fails, what may be served stale is.
#[test]
fn a_crowd_is_served_stale_when_the_origin_fails() {
    let gate = Gate::new();
    let page =
        site().page_with(Reply::ok().header("Cache-Control", "max-age=0, stale-if-error=1000"));
    page.get();
    let hold = gate.clone();
    page.serves(move |_, _| Reply::ok().with_status(503).hold(&hold));
    let mut clients: Vec<_> = (0..40).map(|_| page.ask("GET", &[], b"")).collect();
    gate.wait_for_arrivals(1);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.receive("GET").status, 200, "RFC 5861 4");
    }
}

/// RFC 9110 §7.8
#[test]
fn an_upgrade_that_is_not_made_does_not_pass_the_cache_by() {
    let page = site().page_with(Reply::fresh());
    page.get();
    let fields = [("Upgrade", "h2c"), ("Connection", "Upgrade")];
    assert_eq!(page.get_again(&fields).1, Use::Reused);
}
