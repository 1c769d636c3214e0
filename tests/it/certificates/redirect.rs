//! Redirects to HTTPS, and `Strict-Transport-Security`.

use tempfile::TempDir;
use test_support::{Connection, Origin, Reply};

use super::client::Client;
use super::{https, localhost, origin};

#[test]
fn the_plain_listener_redirects_with_host_path_and_query() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let (builder, _) = localhost(&origin, dir.path());
    let proxy = builder.tls_key("redirect", "true").start();
    let port = proxy.https_addr().port();
    let mut client = Connection::open(proxy.addr()).with_host("files.example:80");
    for method in ["GET", "HEAD", "POST", "DELETE"] {
        for path in ["/assets/1", "/assets/a%20b?x=y&z", "/", "/none"] {
            let response = client.request(method, path, &[]);
            assert_eq!(response.status, 308, "{method} {path}");
            let location = response.headers.get("Location");
            let expected = format!("https://files.example:{port}{path}");
            assert_eq!(location, Some(&*expected), "{method} {path}");
        }
    }
    client.ask("PUT", "/assets/1", &[("Content-Length", "6")], b"a body");
    let response = client.receive("PUT");
    assert_eq!(response.status, 308);

    for host in ["user@evil.example", "evil.example/", "a b", "%2e.example"] {
        let mut client = Connection::open(proxy.addr());
        let head = format!("GET /assets/1 HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client.send_raw(head.as_bytes()).expect("send a request");
        let response = client.receive("GET");
        assert_eq!(response.status, 400, "{host}");
        assert_eq!(response.headers.get("Location"), None, "{host}");
    }
    assert_eq!(proxy.metric("origin_requests_total"), 0);
    let status = Client::any().status(proxy.https_addr(), "localhost");
    assert_eq!(status.expect("a response"), 200);
    // A miss and no redirect of the proxy's own request.
    proxy.expect_metric("origin_requests_total", 1);
}

#[test]
fn the_port_of_the_redirect_may_be_another_one() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    for (port, expected) in [
        ("443", "https://files.example/a"),
        ("8443", "https://files.example:8443/a"),
    ] {
        let (builder, _) = localhost(&origin, dir.path());
        let proxy = builder
            .tls_key("redirect", "true")
            .tls_key("redirect_port", port)
            .start();
        let mut client = Connection::open(proxy.addr()).with_host("files.example");
        let response = client.request("GET", "/a", &[]);
        assert_eq!(response.headers.get("Location"), Some(expected));
    }
}

#[test]
fn browsers_are_told_to_keep_to_https_over_https_only() {
    let own = "max-age=1; includeSubDomains";
    let origin =
        Origin::start(move |_| Reply::bytes("an object").header("Strict-Transport-Security", own));
    let proxy = https(&origin).tls().tls_key("hsts", "30d").start();
    let field = |head: &str| {
        let fields = head.lines().filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_field = name.eq_ignore_ascii_case("Strict-Transport-Security");
            is_field.then(|| value.trim().to_owned())
        });
        fields.collect::<Vec<_>>()
    };
    let client = Client::any();
    let mut tls = client
        .connect(proxy.https_addr(), "localhost")
        .expect("a handshake");
    // A miss, a hit by Pingora's phases, and hits by the prepared header.
    for request in 0..4 {
        let (status, head) = tls.get("/assets/1").expect("a response");
        assert_eq!(status, 200);
        assert_eq!(field(&head), ["max-age=2592000"], "{request}\n{head}");
    }
    // Responses of the proxy itself: refusals, mistakes, and facts about the bucket.
    for (target, expected) in [
        ("/", 403),
        ("/none/1", 404),
        ("/assets/%zz", 400),
        ("/assets?location", 200),
        ("/assets?list-type=2", 403),
        ("/assets/1?acl", 501),
    ] {
        let (status, head) = tls.get(target).expect("a response");
        assert_eq!(status, expected, "{target}\n{head}");
        assert_eq!(field(&head), ["max-age=2592000"], "{target}\n{head}");
    }
    for _ in 0..3 {
        let plain = proxy.get("/assets/1");
        assert_eq!(plain.status, 200);
        assert_eq!(plain.headers.get("Strict-Transport-Security"), None);
    }
    proxy.expect_metric("origin_requests_total", 1);

    // Without the key, responses are the origin's.
    let proxy = https(&origin).tls().start();
    for _ in 0..3 {
        let plain = proxy.get("/assets/1");
        assert_eq!(plain.headers.get("Strict-Transport-Security"), Some(own));
    }
}
