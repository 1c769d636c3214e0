//! Strangers cannot fill the log by repeating requests.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::builder;
use test_support::{eventually, request, Bucket, Connection, Origin, ProxyBuilder, Reply, Site};

const SUPPRESSED: &str = "log_lines_suppressed_total";

/// The longest line: a message, and the text around it.
const MAX_LINE: usize = 1024 + 200;

#[test]
fn the_start_of_a_proxy_with_tls_is_no_error() {
    let proxy = proxy(&unreachable()).tls().start();
    let held = TcpStream::connect(proxy.https_addr()).expect("it listens once it is ready");
    // The lines of the start are in the log once a later one is.
    assert_eq!(proxy.get("/assets/x").status, 502);
    eventually("the request is logged", || {
        proxy.stderr().contains("Fail to")
    });
    assert!(!proxy.stderr().contains("andshake"), "{}", proxy.stderr());
    drop(held);
}

#[test]
fn requests_that_fail_leave_a_few_lines_and_a_count() {
    const REQUESTS: usize = 2000;
    let proxy = proxy(&unreachable()).start();
    let target = format!("/assets/{}", "x".repeat(1000));
    let fail = |connection: &mut Connection| assert_eq!(connection.get(&target).status, 502);
    let mut connection = Connection::open(proxy.addr());
    for _ in 0..REQUESTS {
        if !connection.is_reusable() {
            connection = Connection::open(proxy.addr());
        }
        fail(&mut connection);
    }

    // Without the limit, there would have been at least one line for each request.
    let lines = proxy.stderr().lines().count();
    let suppressed = proxy.metric(SUPPRESSED) as usize;
    assert!(lines + suppressed >= REQUESTS, "{lines} and {suppressed}");
    assert!(lines < 200, "{lines} lines:\n{}", proxy.stderr());
    assert!(lines > 0);
    for line in proxy.stderr().lines() {
        assert!(line.len() <= MAX_LINE, "{} bytes: {line}", line.len());
    }

    // The next line that may be written says how many are missing.
    eventually("a line says how many were left out", || {
        fail(&mut Connection::open(proxy.addr()));
        let log = proxy.stderr();
        log.lines()
            .any(|line| line.ends_with(" similar lines suppressed)"))
    });
}

#[test]
fn handshakes_that_fail_leave_no_line_but_a_count() {
    const HANDSHAKES: u64 = 1000;
    let origin = origin();
    let proxy = proxy(&origin.url()).tls().start();
    for _ in 0..HANDSHAKES {
        no_handshake(proxy.https_addr());
    }
    proxy.expect_metric("tls_handshake_failures_total", HANDSHAKES);
    assert!(!proxy.stderr().contains("andshake"), "{}", proxy.stderr());
    assert_eq!(proxy.metric(SUPPRESSED), 0);
    assert_eq!(proxy.get("/assets/a").status, 200);
}

#[test]
fn what_an_operator_does_is_logged_each_time() {
    const PURGES: usize = 50;
    let origin = origin();
    let proxy = proxy(&origin.url()).admin().start();
    for number in 0..PURGES {
        let path = format!("/assets/{number}");
        let purged = request(proxy.admin_addr(), "PURGE", &path, &[]);
        assert_eq!(purged.status, 404);
    }
    eventually("all purges are logged", || {
        proxy.stderr().matches("PURGE \"/assets/").count() == PURGES
    });
}

#[test]
fn the_example_has_the_same_limit() {
    const REQUESTS: usize = 500;
    let site = Site::start(&[]);
    let page = site.page_with(Reply::hang_up());
    for _ in 0..REQUESTS {
        assert_eq!(page.get().status, 502);
    }
    let lines = site.log().lines().count();
    assert!((1..100).contains(&lines), "{lines}:\n{}", site.log());
}

fn origin() -> Origin {
    Origin::start(|_| Reply::pattern(1, 1000))
}

/// An address where nobody listens any more.
fn unreachable() -> String {
    origin().url()
}

fn proxy(endpoint: &str) -> ProxyBuilder {
    builder().bucket(Bucket::new("/assets", "bucket").endpoint(endpoint))
}

/// Speaks HTTP to a TLS listener.
fn no_handshake(addr: SocketAddr) {
    let mut stream = TcpStream::connect(addr).expect("connect");
    // The proxy may have closed the connection already.
    let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    let _ = stream.read_to_end(&mut Vec::new());
}
