//! Limits of a request head: its time, its bytes, and the form of its target.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::proxy;
use test_support::{Connection, Origin, Proxy, Reply, PATIENCE};

fn origin() -> Origin {
    Origin::start(|request| match request.path() {
        "/bucket/object" => Reply::bytes("the object"),
        _ => Reply::status(404),
    })
}

fn listeners(proxy: &Proxy) -> [(&'static str, SocketAddr); 3] {
    [
        ("clients", proxy.addr()),
        ("metrics", proxy.metrics_addr()),
        ("admin", proxy.admin_addr()),
    ]
}

/// The status, and true if the connection is closed afterwards.
fn answer(mut client: Connection) -> (u16, bool) {
    let got = client.receive("GET");
    (got.status, client.is_closed())
}

#[test]
fn a_head_that_trickles_in_ends_with_408_on_every_listener() {
    let origin = origin();
    let proxy = proxy(&origin).admin().request_head_timeout("500ms").start();
    for (listener, addr) in listeners(&proxy) {
        let begun = Instant::now();
        let mut client = TcpStream::connect(addr).expect("connect");
        let wait = Duration::from_millis(50);
        client.set_read_timeout(Some(wait)).expect("a timeout");
        let head = b"GET /assets/object HTTP/1.1\r\nHost: a\r\nX-Slow: ";
        client.write_all(head).expect("send");
        // Every byte comes long before the limit, and they do not end before it.
        let mut got = Vec::new();
        while got.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "{listener}");
            let mut piece = [0; 1024];
            match client.read(&mut piece) {
                Ok(len) => got.extend_from_slice(&piece[..len]),
                // The server may have closed the connection just now.
                Err(_) => drop(client.write(b"a")),
            }
        }
        assert!(got.starts_with(b"HTTP/1.1 408 "), "{listener}");
        assert!(begun.elapsed() >= Duration::from_millis(500), "{listener}");
    }
    assert_eq!(origin.requests().len(), 0);
}

#[test]
fn a_connection_that_sends_nothing_is_closed_on_every_listener() {
    let origin = origin();
    let proxy = proxy(&origin).admin().request_head_timeout("500ms").start();
    for (listener, addr) in listeners(&proxy) {
        assert!(Connection::open(addr).is_closed(), "{listener}");
    }
    // An idle connection has the time of `keepalive_timeout`.
    let mut client = Connection::open(proxy.addr());
    for _ in 0..2 {
        client.ask("GET", "/assets/object", &[], b"");
        assert_eq!(client.receive("GET").status, 200);
        std::thread::sleep(Duration::from_millis(700));
    }
}

#[test]
fn a_head_over_the_limit_is_431_on_every_listener() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    for (listener, addr) in listeners(&proxy) {
        let mut client = Connection::open(addr);
        // The head has no end.
        let field = format!("X-Filler: {}\r\n", "a".repeat(1000));
        client.send_bytes(format!(
            "GET /health HTTP/1.1\r\nHost: a\r\n{}",
            field.repeat(70)
        ));
        assert_eq!(answer(client), (431, true), "{listener}");
    }
    // A head within the limit is served.
    let mut client = Connection::open(proxy.addr());
    let filler = "a".repeat(60_000);
    client.ask("GET", "/assets/object", &[("X-Filler", &filler)], b"");
    assert_eq!(client.receive("GET").text(), "the object");
    client.ask(
        "GET",
        "/assets/object",
        &[("X-Filler", &filler.repeat(2))],
        b"",
    );
    assert_eq!(client.receive("GET").status, 431);
}

#[test]
fn the_limit_is_configurable() {
    let origin = origin();
    let proxy = proxy(&origin).max_request_head_bytes(2000).start();
    for (size, status) in [(1500, 200), (2500, 431)] {
        let mut client = Connection::open(proxy.addr());
        let filler = "a".repeat(size);
        client.ask("GET", "/assets/object", &[("X-Filler", &filler)], b"");
        assert_eq!(client.receive("GET").status, status, "{size}");
    }
}

#[test]
fn too_many_fields_are_431() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    let fields = "A: a\r\n".repeat(300);
    client.send_bytes(format!(
        "GET /assets/object HTTP/1.1\r\nHost: a\r\n{fields}\r\n"
    ));
    assert_eq!(answer(client), (431, true));
}

#[test]
fn a_target_over_the_limit_is_414() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    // The longest key of S3, each byte percent-encoded, is not too long.
    let longest = format!("/assets/{}", "%C3%A4".repeat(512));
    let long = format!("/assets/{}", "a".repeat(9000));
    // This target does not even end within the limit of the head.
    let endless = format!("/assets/{}", "a".repeat(70_000));
    for (target, status) in [(&longest, 404), (&long, 414), (&endless, 414)] {
        let mut client = Connection::open(proxy.addr());
        client.ask("GET", target, &[], b"");
        let got = client.receive("GET");
        assert_eq!(got.status, status, "{} bytes", target.len());
    }
}

#[test]
fn a_request_line_that_others_would_split_otherwise_is_400() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    for line in [
        "GET /assets/obj ect HTTP/1.1",
        "GET /assets/object  HTTP/1.1",
        "GET  /assets/object HTTP/1.1",
        "GET /assets/obj\tect HTTP/1.1",
        "GET\t/assets/object\tHTTP/1.1",
        "GET /assets/obj\x01ect HTTP/1.1",
        "GET /assets/obj\rect HTTP/1.1",
        "GET /assets/object HTTP/1.1 ",
        "GET /assets/object HTTP/1.1 HTTP/1.1",
        "GET /assets/object http/1.1",
        "GET /assets/object HTTP/2.0",
        "GET /assets/object HTTP/0.9",
        "GET /assets/object",
        "GET  HTTP/1.1",
        "GET HTTP/1.1",
        " GET /assets/object HTTP/1.1",
    ] {
        let mut client = Connection::open(proxy.addr());
        client.send_bytes(format!("{line}\r\nHost: a\r\n\r\n"));
        assert_eq!(answer(client), (400, true), "{line:?}");
    }
    assert_eq!(origin.requests().len(), 0);
}

/// Browsers and other clients leave some of these as they are.
#[test]
fn a_key_may_have_marks_that_a_uri_has_not() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    for (mark, encoded) in [
        ("<", "%3C"),
        (">", "%3E"),
        ("`", "%60"),
        ("\"", "%22"),
        ("{}", "%7B%7D"),
        ("|", "%7C"),
        ("^", "%5E"),
        ("\\", "%5C"),
        ("[]", "%5B%5D"),
    ] {
        let mut client = Connection::open(proxy.addr());
        client.send_bytes(format!("GET /assets/a{mark}b HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.receive("GET").status, 404, "{mark}");
        let asked = origin.requests();
        let asked = asked.last().expect("a request");
        assert_eq!(asked.path(), format!("/bucket/a{encoded}b"), "{mark}");
    }
}

#[test]
fn requests_before_the_end_of_sending_are_all_answered() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    // A miss, a request refused without the origin, a hit, and an error of the origin.
    for _ in 0..2 {
        let mut client = Connection::open(proxy.addr());
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.send_bytes(
            [
                request("/assets/object"),
                request("/elsewhere"),
                request("/assets/object"),
                request("/assets/none"),
            ]
            .concat(),
        );
        client.finish_sending();
        for status in [200, 404, 200, 404] {
            assert_eq!(client.receive("GET").status, status);
        }
        assert!(client.is_closed());
    }
    assert_eq!(origin.requests_for("/bucket/object"), 1);
}
