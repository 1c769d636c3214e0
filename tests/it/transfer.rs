//! A client gets the whole body, or sees that it
//! did not.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        Barrier,
    },
    thread,
    time::{Duration, Instant},
};

use crate::proxy;
use http::Version;
use socket2::{Domain, Socket, Type};
use test_support::{
    entry_files, eventually, https_client, pattern, Connection, HttpVersion, Origin, Pattern,
    Proxy, Reply, PATIENCE,
};

const MIB: u64 = 1024 * 1024;
/// So that the proxy soon has to wait for the client.
const SMALL_BUFFER: usize = 4096;

#[test]
fn two_hundred_clients_at_once_get_what_each_asked_for() {
    const CLIENTS: u64 = 200;
    const KEYS: u64 = 4;
    const LEN: u64 = MIB + 7;
    let origin = Origin::start(|request| {
        let seed = request
            .path()
            .rsplit('/')
            .next()
            .and_then(|n| n.parse().ok());
        Reply::pattern(seed.expect("a number"), LEN)
    });
    let proxy = proxy(&origin).start();
    for key in 0..KEYS {
        proxy.get(&format!("/assets/{key}"));
    }

    let addr = proxy.addr();
    let together = Barrier::new(CLIENTS as usize);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let together = &together;
            scope.spawn(move || {
                let key = client % KEYS;
                let mut connection = Connection::open(addr);
                together.wait();
                let hit = connection.begin("GET", &format!("/assets/{key}"), &[]);
                assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
                let received = hit.check(Pattern::new(key), 0);
                assert!(received.complete);
                assert_eq!(received.len, LEN);
            });
        }
    });
    proxy.expect_metric("cache_sendfile_total", CLIENTS);
    proxy.expect_metric("cache_sendfile_bytes_total", CLIENTS * LEN);
    assert_eq!(origin.requests().len() as u64, KEYS);
}

// --- clients that are slow, or stop ---

#[test]
fn a_client_that_stops_reading_is_cut_off() {
    const LEN: u64 = 32 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).write_timeout("1s").start();
    proxy.get("/assets/object");

    let mut connection = Connection::with_receive_buffer(proxy.addr(), SMALL_BUFFER);
    let start = Instant::now();
    let hit = connection.begin("GET", "/assets/object", &[]);
    assert_eq!(hit.status, 200);
    proxy.expect_metric_where("response_errors_total", &[("source", "downstream")], 1);
    assert!(start.elapsed() >= Duration::from_secs(1));

    let received = hit.check(Pattern::new(1), 0);
    assert!(!received.complete);
    assert!(received.len < LEN);
    // Bytes sent before count, too.
    let sent = proxy.metric("cache_sendfile_bytes_total");
    assert!((1..LEN).contains(&sent), "{sent} bytes by sendfile");
    assert!(received.len <= sent);
    assert_eq!(proxy.metric("cache_sendfile_total"), 1);

    // The entry is not to blame.
    assert_hit(&proxy, 1, LEN);
}

#[test]
fn a_connection_without_requests_is_closed() {
    let origin = Origin::start(|_| Reply::pattern(1, MIB));
    let proxy = proxy(&origin)
        .keepalive_timeout("2s")
        .request_head_timeout("1s")
        .start();
    let mut connection = Connection::open(proxy.addr());
    // Longer than the timeout, but never so long without a request.
    for _ in 0..4 {
        assert!(connection.get("/assets/object").complete);
        thread::sleep(Duration::from_millis(700));
    }
    let asked = Instant::now();
    assert!(connection.get("/assets/object").complete);
    connection.expect_closed();
    let waited = asked.elapsed();
    assert!((2..20).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(proxy.metric("response_errors_total"), 0);

    // The rest of a request has a timeout of its own.
    let mut connection = Connection::open(proxy.addr());
    assert!(connection.get("/assets/object").complete);
    let asked = Instant::now();
    connection.send_raw(b"GET /assets/object HT").unwrap();
    assert_eq!(connection.incoming("GET", "a part").finish().status, 408);
    connection.expect_closed();
    let waited = asked.elapsed();
    assert!((1..20).contains(&waited.as_secs()), "{waited:?}");
}

#[test]
fn a_client_that_goes_away_does_no_harm() {
    const LEN: u64 = 32 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");

    let mut connection = Connection::with_receive_buffer(proxy.addr(), SMALL_BUFFER);
    let mut hit = connection.begin("GET", "/assets/object", &[]);
    assert_eq!(hit.read_some(1000), pattern(1, 1000));
    drop(hit);
    // sendfile(2) knows no MSG_NOSIGNAL: the process outlives SIGPIPE.
    connection.abort();
    proxy.expect_metric_where("response_errors_total", &[("source", "downstream")], 1);

    assert_hit(&proxy, 1, LEN);
}

#[test]
fn a_slow_but_steady_client_may_take_longer_than_the_write_timeout() {
    const LEN: u64 = 12 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).write_timeout("1s").start();
    proxy.get("/assets/object");

    let mut connection = Connection::with_receive_buffer(proxy.addr(), SMALL_BUFFER);
    let start = Instant::now();
    let hit = connection.begin("GET", "/assets/object", &[]);
    let received = hit.read_body_slowly(3 * MIB as usize);
    assert!(start.elapsed() > Duration::from_secs(3));
    assert!(received.complete);
    assert_eq!(received.body.len() as u64, LEN);
    Pattern::new(1).check(0, &received.body);
    proxy.expect_metric("cache_sendfile_bytes_total", LEN);
    assert_eq!(proxy.metric("response_errors_total"), 0);
}

#[test]
fn memory_does_not_grow_with_the_body() {
    const LEN: u64 = 64 * MIB;
    // Far less than the body; what a first large response allocates and keeps
    // (the allocator's arenas) is not what is asked here.
    const ROOM: u64 = 8 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    for sendfile in [true, false] {
        let proxy = proxy(&origin).sendfile(sendfile).start();
        proxy.get("/assets/object");
        proxy.reset_peak_rss();
        let before = proxy.rss_bytes();

        let mut connection = Connection::with_receive_buffer(proxy.addr(), SMALL_BUFFER);
        let mut hit = connection.begin("GET", "/assets/object", &[]);
        assert_eq!(hit.read_some(1000), pattern(1, 1000));
        let received = hit.check(Pattern::new(1), 1000);
        assert!(received.complete);
        let growth = proxy.peak_rss_bytes().saturating_sub(before);
        assert!(growth < ROOM, "sendfile {sendfile}: {growth} bytes more");
    }
}

// --- files that change under a transfer ---

#[test]
fn a_file_truncated_in_mid_send_breaks_the_transfer() {
    const LEN: u64 = 32 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");
    proxy.expect_metric("cache_entries", 1);

    let mut connection = Connection::with_receive_buffer(proxy.addr(), SMALL_BUFFER);
    let mut hit = connection.begin("GET", "/assets/object", &[]);
    assert_eq!(hit.headers.get("content-length"), Some("33554432"));
    assert_eq!(hit.read_some(MIB as usize), pattern(1, MIB as usize));
    truncate_bodies(&proxy, LEN / 2);
    let rest = hit.check(Pattern::new(1), MIB);
    assert!(!rest.complete);
    assert_eq!(MIB + rest.len, LEN / 2);
    proxy.expect_metric_where("response_errors_total", &[("source", "internal")], 1);
    proxy.expect_metric("cache_sendfile_bytes_total", LEN / 2);

    let again = proxy.get("/assets/object");
    assert_eq!(again.header("x-cache"), Some("MISS"));
    assert!(again.complete);
    assert_eq!(again.body.len() as u64, LEN);
    Pattern::new(1).check(0, &again.body);
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn a_truncated_file_breaks_a_response_that_came_without_length() {
    const LEN: u64 = 32 * MIB;
    type Framing = fn(Reply) -> Reply;
    let framings: [Framing; 2] = [Reply::chunked, Reply::until_close];
    for framed in framings {
        let origin = Origin::start(move |_| framed(Reply::pattern(1, LEN)));
        let proxy = proxy(&origin).start();
        proxy.get("/assets/object");
        proxy.expect_metric("cache_entries", 1);

        // Stored, it has one.
        let mut connection = Connection::with_receive_buffer(proxy.addr(), SMALL_BUFFER);
        let mut hit = connection.begin("GET", "/assets/object", &[]);
        assert_eq!(hit.headers.get("transfer-encoding"), None);
        assert_eq!(hit.headers.get("content-length"), Some(&*LEN.to_string()));
        assert_eq!(hit.read_some(1000), pattern(1, 1000));
        truncate_bodies(&proxy, LEN / 2);
        let rest = hit.check(Pattern::new(1), 1000);
        assert!(!rest.complete);
        assert_eq!(1000 + rest.len, LEN / 2);
    }
}

#[test]
fn a_truncated_file_breaks_a_response_to_http_1_0() {
    const LEN: u64 = 32 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN).until_close());
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");
    proxy.expect_metric("cache_entries", 1);

    let mut stream = http_1_0(&proxy, "/assets/object");
    let (head, mut received) = read_head(&mut stream);
    assert!(head.contains("\r\nx-cache: hit\r\n"), "{head}");
    let length = format!("\r\ncontent-length: {LEN}\r\n");
    assert!(head.contains(&length), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    truncate_bodies(&proxy, LEN / 2);
    let _ = stream.read_to_end(&mut received);
    Pattern::new(1).check(0, &received);
    assert!((received.len() as u64) < LEN);
}

// --- origins that break off ---

#[test]
fn what_the_origin_cuts_short_is_seen_and_not_stored() {
    const LEN: u64 = MIB;
    type Cut = fn(Reply) -> Reply;
    let cuts: [(&str, Cut); 4] = [
        ("length, closed", |reply| reply.close_at(LEN / 2)),
        ("length, reset", |reply| reply.reset_at(LEN / 2)),
        ("chunked, closed", |reply| reply.chunked().close_at(LEN / 2)),
        ("close-delimited, reset", |reply| {
            reply.until_close().reset_at(LEN / 2)
        }),
    ];
    for (what, cut) in cuts {
        let broken = AtomicBool::new(true);
        let origin = Origin::start(move |_| {
            let reply = Reply::pattern(1, LEN);
            if broken.swap(false, Ordering::SeqCst) {
                cut(reply)
            } else {
                reply
            }
        });
        let proxy = proxy(&origin).start();

        let short = proxy.get("/assets/object");
        // If the origin breaks before the client got a header, it gets an error.
        if short.status != 502 {
            assert!(!short.complete, "{what}");
            Pattern::new(1).check(0, &short.body);
        }
        proxy.expect_metric_where("response_errors_total", &[("source", "upstream")], 1);
        assert_eq!(proxy.metric("cache_entries"), 0, "{what}");
        eventually("the unfinished entry is gone", || {
            files_in(&proxy.cache_dir().join("v2")).is_empty()
        });

        let whole = proxy.get("/assets/object");
        assert_eq!(whole.header("x-cache"), Some("MISS"), "{what}");
        assert!(whole.complete, "{what}");
        assert!(whole.body == pattern(1, LEN as usize), "{what}");
        assert_hit(&proxy, 1, LEN);
        assert_eq!(origin.requests().len(), 2, "{what}");
    }
}

// --- where sendfile is not possible ---

#[test]
fn over_tls_the_same_bytes_are_copied() {
    const LEN: u64 = 5 * MIB + 3;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).tls().start();
    proxy.get("/assets/object");

    let url = format!("https://{}/assets/object", proxy.https_addr());
    for (client, version) in [
        (HttpVersion::Http1, Version::HTTP_11),
        (HttpVersion::Http2, Version::HTTP_2),
    ] {
        let client = https_client(client);
        let whole = client.get(&url).send().expect("get");
        assert_eq!(whole.version(), version);
        assert_eq!(whole.headers()["x-cache"], "HIT");
        let body = whole.bytes().expect("the body");
        assert!(body == pattern(1, LEN as usize), "{version:?}");

        let part = client.get(&url).header("Range", "bytes=1000000-3999999");
        let part = part.send().expect("get a range");
        assert_eq!(part.status(), 206);
        let body = part.bytes().expect("the range");
        assert_eq!(body.len(), 3_000_000);
        Pattern::new(1).check(1_000_000, &body);
    }
    proxy.expect_metric("cache_hits_total", 4);
    assert_eq!(proxy.metric("cache_sendfile_total"), 0);
    assert_eq!(proxy.metric("cache_sendfile_bytes_total"), 0);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn over_tls_a_file_truncated_in_mid_send_is_no_whole() {
    const LEN: u64 = 32 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).tls().start();
    proxy.get("/assets/object");
    proxy.expect_metric("cache_entries", 1);

    let url = format!("https://{}/assets/object", proxy.https_addr());
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let errors = &[("source", "internal")];
        let before = proxy.metrics().sum_where("response_errors_total", errors);
        let mut hit = https_client(version).get(&url).send().expect("get");
        assert_eq!(hit.headers()["x-cache"], "HIT", "{version:?}");
        let mut first = vec![0; MIB as usize];
        hit.read_exact(&mut first).expect("read the beginning");
        truncate_bodies(&proxy, LEN / 2);
        let mut rest = Vec::new();
        hit.read_to_end(&mut rest).expect_err("a broken body");
        let received = [first, rest].concat();
        assert!(received.len() as u64 <= LEN / 2, "{version:?}");
        Pattern::new(1).check(0, &received);
        proxy.expect_metric_where("response_errors_total", errors, before + 1);

        let again = https_client(version).get(&url).send().expect("get");
        assert_eq!(again.headers()["x-cache"], "MISS", "{version:?}");
        let body = again.bytes().expect("the body");
        assert!(body == pattern(1, LEN as usize), "{version:?}");
        eventually("it is stored", || {
            proxy.metric("cache_fills_in_flight") == 0
        });
    }
    proxy.expect_metric("tls_lent_bytes", 0);
}

/// `/assets/object` is in the cache, whole.
fn assert_hit(proxy: &Proxy, seed: u64, len: u64) {
    let mut connection = Connection::open(proxy.addr());
    let hit = connection.begin("GET", "/assets/object", &[]);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    let received = hit.check(Pattern::new(seed), 0);
    assert!(received.complete);
    assert_eq!(received.len, len);
}

/// A client of HTTP/1.0 that has asked and is slow to read.
fn http_1_0(proxy: &Proxy, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("make a socket");
    // Before connecting: the window scale is agreed in the handshake.
    socket
        .set_recv_buffer_size(SMALL_BUFFER)
        .expect("set SO_RCVBUF");
    socket.connect(&proxy.addr().into()).expect("connect");
    let mut stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("set the read timeout");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("send");
    stream
}

/// The head of the answer, in lower case, and the first bytes of its body.
fn read_head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = vec![0; 1000];
    stream.read_exact(&mut head).expect("read the head");
    let end = head.windows(4).position(|window| window == b"\r\n\r\n");
    let body = head.split_off(end.expect("a head") + 4);
    (String::from_utf8_lossy(&head).to_ascii_lowercase(), body)
}

/// Cuts every body in the cache down to `len`, a multiple of the page size: the
/// bytes before stay what they are, also those on their way to a socket.
fn truncate_bodies(proxy: &Proxy, len: u64) {
    let bodies = entry_files(&proxy.cache_dir(), "body");
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let body = File::options().write(true).open(&bodies[0]);
    body.expect("open the body").set_len(len).expect("truncate");
}

/// Every file under a directory.
fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("list a directory") {
        let path = entry.expect("list a directory").path();
        if path.is_dir() {
            files.extend(files_in(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// The proxy does not wait for ever for a client that asks for headers only and reads
/// none.
#[test]
fn a_client_that_asks_and_never_reads_is_cut() {
    let origin = Origin::start(|_| Reply::status(404));
    let proxy = proxy(&origin).write_timeout("1s").start();
    let mut connection = Connection::with_receive_buffer(proxy.addr(), SMALL_BUFFER);
    let requests = "HEAD /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    // The proxy reads requests as long as the client takes the answers.
    let cut = (0..100_000).find_map(|_| connection.send_raw(requests.as_bytes()).err());
    let cut = cut.expect("the proxy never stops");
    assert_ne!(cut.kind(), io::ErrorKind::WouldBlock, "the proxy waits");
}

/// The answer as read by a client that sends its whole request first, whatever comes back.
fn upload(addr: SocketAddr, head: &str, body: &[u8]) -> io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

#[test]
fn an_upload_is_refused_with_an_answer_that_can_be_read() {
    const LEN: usize = 100 << 20;
    let origin = Origin::start(|_| Reply::status(404));
    let proxy = proxy(&origin).admin().start();
    let body = vec![b'a'; LEN];
    let chunk = format!("{LEN:x}\r\n");
    let chunked = [chunk.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let length = &*format!("Content-Length: {LEN}");
    let coding = "Transfer-Encoding: chunked";
    let (served, metrics, admin) = (proxy.addr(), proxy.metrics_addr(), proxy.admin_addr());
    for (addr, line, framing, body, status, allow) in [
        (served, "PUT /assets/a", length, &body, 501, ""),
        (served, "POST /assets/a", coding, &chunked, 501, ""),
        (served, "PATCH /assets/a", length, &body, 405, "get, head"),
        (served, "GET /assets/a", length, &body, 400, ""),
        (served, "PUT /a b", length, &body, 400, ""),
        (metrics, "PUT /a", length, &body, 405, "get, head"),
        (admin, "PUT /a", length, &body, 405, "purge, warm, list"),
    ] {
        let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
        let got = upload(addr, &head, body).unwrap_or_else(|e| panic!("{line}: {e}"));
        let got = got.to_ascii_lowercase();
        let begin = format!("http/1.1 {status} ");
        assert!(got.starts_with(&begin), "{line}: {got}");
        let allowed = got.lines().find_map(|line| line.strip_prefix("allow: "));
        assert_eq!(allowed.unwrap_or_default(), allow, "{line}: {got}");
        assert!(got.contains("\r\nconnection: close\r\n"), "{line}: {got}");
    }
    // A client that expects 100 is refused before it sends the body.
    let expect = "Host: a\r\nExpect: 100-continue";
    let head = format!("PUT /assets/a HTTP/1.1\r\n{expect}\r\n{length}\r\n\r\n");
    let got = upload(served, &head, b"").unwrap();
    assert!(got.starts_with("HTTP/1.1 501 "), "{got}");
    assert_eq!(origin.requests().len(), 0);
}
