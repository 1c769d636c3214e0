//! Limits of clients: what is beyond them is refused and counted, and others are served.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{builder, proxy};
use rustix::process::{getrlimit, prlimit, Pid, Resource, Rlimit};
use test_support::{
    eventually, https_client, raise_descriptor_limit, AnyCertificate, Bucket, Connection,
    HttpVersion, Origin, Pattern, Proxy, Reply, Response, PATIENCE,
};

const LIMITED: &str = "clients_limited_total";
const LEN: u64 = 10_000;
const MIB: u64 = 1 << 20;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn origin() -> Origin {
    Origin::start(|request| {
        let len = match request.path().contains("large") {
            true => 64 * MIB,
            false => LEN,
        };
        Reply::pattern(1, len)
            .header("etag", "\"1\"")
            .answering(request)
    })
}

fn limited(proxy: &Proxy, limit: &str) -> u64 {
    proxy.metrics().sum_where(LIMITED, &[("limit", limit)])
}

/// Waits until a limit has refused as much as this.
fn expect_limited(proxy: &Proxy, limit: &str, expected: u64) {
    proxy.expect_metric_where(LIMITED, &[("limit", limit)], expected);
}

/// A request on a connection of its own from this address.
fn get_from(source: Ipv4Addr, addr: SocketAddr, target: &str) -> Response {
    ask(&mut Connection::open_from(source, addr), target)
}

/// A request on a connection that may be refused, with an answer before the request.
fn ask(connection: &mut Connection, target: &str) -> Response {
    let request = format!("GET {target} HTTP/1.1\r\nHost: proxy\r\n\r\n");
    connection
        .send_raw(request.as_bytes())
        .expect("send a request");
    connection.receive("GET")
}

/// A connection that is counted: it has been answered. The connection with which the proxy finds
/// itself ready may count a moment longer.
fn holder(source: Ipv4Addr, addr: SocketAddr) -> Connection {
    let mut held = None;
    eventually("there is room for a connection", || {
        let mut connection = Connection::open_from(source, addr);
        let status = ask(&mut connection, "/assets/1").status;
        held = Some(connection);
        status == 200
    });
    held.expect("a connection")
}

// --- connections ---

#[test]
fn an_address_cannot_take_the_connections_of_others() {
    raise_descriptor_limit();
    let origin = origin();
    let proxy = proxy(&origin).tls().limit("per_ip", 20).start();
    let mut held = Vec::new();
    for number in 0..1000 {
        held.push(TcpStream::connect(match number % 2 {
            0 => proxy.addr(),
            _ => proxy.https_addr(),
        }));
        if number % 100 == 99 {
            assert_eq!(get_from(OTHER, proxy.addr(), "/assets/1").status, 200);
        }
    }
    eventually("all but twenty are refused", || {
        limited(&proxy, "per_ip") >= 980
    });
    eventually("they are closed", || proxy.metric("connections_open") <= 20);
    assert_eq!(get_from(OTHER, proxy.addr(), "/assets/1").status, 200);
    assert_eq!(proxy.metric("connections_refused_total"), 0);
    drop(held);
    eventually("the address is served again", || {
        let mut client = Connection::open_from(ONE, proxy.addr());
        let request = b"GET /assets/1 HTTP/1.1\r\nHost: proxy\r\n\r\n";
        let answer = client.send_raw(request).map(|()| client.try_receive("GET"));
        answer.is_ok_and(|answer| answer.is_ok_and(|response| response.status == 200))
    });
}

#[test]
fn a_client_with_too_many_connections_is_told_so() {
    let origin = origin();
    let proxy = proxy(&origin).tls().limit("per_ip", 2).start();
    let held = [(); 2].map(|()| holder(ONE, proxy.addr()));
    let before = limited(&proxy, "per_ip");
    for refused in 1..=3 {
        let response = get_from(ONE, proxy.addr(), "/assets/1");
        assert_eq!(response.status, 503);
        assert_eq!(response.header("retry-after"), Some("1"));
        assert_eq!(response.header("connection"), Some("close"));
        assert!(response.complete && response.body.is_empty());
        expect_limited(&proxy, "per_ip", before + refused);
    }
    // Over HTTPS there is no answer, and no handshake.
    let url = format!("https://{}/assets/1", proxy.https_addr());
    let refused = https_client(HttpVersion::Http1).get(&url).send();
    assert!(refused.is_err());
    eventually("it is counted", || limited(&proxy, "per_ip") > before + 3);
    assert_eq!(proxy.metric("tls_handshake_failures_total"), 0);
    // Connections of HTTP and of HTTPS count together, and those that end do not count any more.
    let [_first, second] = held;
    drop(second);
    eventually("there is room over HTTPS", || {
        let response = https_client(HttpVersion::Http2).get(&url).send();
        response.is_ok_and(|response| response.status() == 200)
    });
    let log = proxy.stderr();
    assert!(!log.contains("too many connections"), "{log}");
}

#[test]
fn the_limit_of_an_address_follows_a_reload() {
    let origin = origin();
    let proxy = proxy(&origin).limit("per_ip", 1).start();
    let _held = holder(ONE, proxy.addr());
    assert_eq!(get_from(ONE, proxy.addr(), "/assets/1").status, 503);

    proxy.edit_config(|yaml| yaml.replace("per_ip: 1", "per_ip: 2"));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.metric("config_restart_needed"), 0);
    let _other = holder(ONE, proxy.addr());
    let before = limited(&proxy, "per_ip");
    assert_eq!(get_from(ONE, proxy.addr(), "/assets/1").status, 503);
    expect_limited(&proxy, "per_ip", before + 1);

    // Those that were made without a limit count.
    proxy.edit_config(|yaml| yaml.replace("per_ip: 2", "per_ip: 0"));
    assert_eq!(proxy.reload(), "ok");
    let _unlimited = holder(ONE, proxy.addr());
    proxy.edit_config(|yaml| yaml.replace("per_ip: 0", "per_ip: 3"));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(get_from(ONE, proxy.addr(), "/assets/1").status, 503);
    expect_limited(&proxy, "per_ip", before + 2);
}

#[test]
fn no_limit_of_an_address_leaves_that_of_all() {
    let origin = origin();
    let proxy = proxy(&origin)
        .limit("connections", 200)
        .limit("per_ip", 0)
        .start();
    let _held: Vec<_> = (0..100).map(|_| holder(ONE, proxy.addr())).collect();
    assert_eq!(limited(&proxy, "per_ip"), 0);
}

#[test]
fn a_proxy_in_front_has_the_connections_of_its_clients() {
    let origin = origin();
    let proxy = proxy(&origin)
        .limit("per_ip", 1)
        .trusted_proxies("[127.0.0.1]")
        .start();
    let _held: Vec<_> = (0..10).map(|_| holder(ONE, proxy.addr())).collect();
    let _other = holder(OTHER, proxy.addr());
    assert_eq!(get_from(OTHER, proxy.addr(), "/assets/1").status, 503);
    expect_limited(&proxy, "per_ip", 1);
}

#[test]
fn connections_beyond_the_limit_of_all_are_counted() {
    let origin = origin();
    let proxy = proxy(&origin).limit("connections", 1).start();
    let mut busy = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut transfer = busy.begin("GET", "/assets/large", &[]);
    let begun = transfer.read_some(1000).len() as u64;
    let mut refused = TcpStream::connect(proxy.addr()).expect("connect");
    refused.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    expect_limited(&proxy, "connections", 1);
    assert!(transfer.check(Pattern::new(1), begun).complete);
}

// --- descriptors ---

/// Lets the proxy have no more descriptors than it has, or gives them back.
fn set_descriptors(proxy: &Proxy, allowed: bool) {
    let pid = Pid::from_raw(proxy.pid() as i32);
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = match allowed {
        true => maximum,
        false => {
            let open = format!("/proc/{}/fd", proxy.pid());
            let open = std::fs::read_dir(open).expect("list the descriptors");
            let open: BTreeSet<u64> = open
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect();
            // The next one would have the first number that is free.
            (0..).find(|number| !open.contains(number))
        }
    };
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).expect("limit the descriptors");
}

#[test]
fn without_descriptors_new_clients_are_closed_and_the_others_served() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    // So that all who ask for it share one file, which is open.
    eventually("the object is stored", || {
        proxy.get("/assets/large").header("x-cache") == Some("HIT")
    });
    let mut busy: Vec<_> = (0..3)
        .map(|_| Connection::with_receive_buffer(proxy.addr(), 4096))
        .collect();
    let transfers: Vec<_> = busy
        .iter_mut()
        .map(|connection| {
            let mut transfer = connection.begin("GET", "/assets/large", &[]);
            let begun = transfer.read_some(1000).len() as u64;
            (transfer, begun)
        })
        .collect();
    let mut idle = holder(ONE, proxy.addr());
    eventually("nothing else is open", || {
        proxy.metric("connections_open") == 4 && proxy.metric("cache_fills_in_flight") == 0
    });
    set_descriptors(&proxy, false);
    // Those that find a descriptor which another file has left are served, and the first one without
    // gets that of the idle connection. The others are closed.
    let start = Instant::now();
    let mut kept = Vec::new();
    let mut closed = 0;
    while closed < 5 {
        let mut client = TcpStream::connect(proxy.addr()).expect("connect");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // It may be closed already.
        let _ = client.write_all(b"GET /assets/large HTTP/1.1\r\nHost: a\r\n\r\n");
        match client.read(&mut [0]) {
            Ok(1) => kept.push(client),
            Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("a client waits"),
            _ => closed += 1,
        }
        assert!(kept.len() < 100, "the descriptors have no end");
    }
    assert!(idle.try_receive("GET").is_err());
    for (transfer, begun) in transfers {
        assert!(transfer.check(Pattern::new(1), begun).complete);
    }
    set_descriptors(&proxy, true);
    assert_eq!(proxy.get("/assets/1").status, 200);
    let log = proxy.stderr();
    assert_eq!(limited(&proxy, "descriptors"), closed, "{log}");
    // Besides the idle one, those whose requests lacked descriptors too may have been idle.
    let idle_closed = proxy.metric("connections_idle_closed_total");
    assert!((1..=1 + kept.len() as u64).contains(&idle_closed), "{log}");
    let lines = log.matches("Accept() failed").count() as u64;
    let minutes = start.elapsed().as_secs() / 60;
    assert!((1..=1 + minutes).contains(&lines), "{log}");
}

/// accept() fails without a descriptor when no client waits, too.
#[test]
fn without_descriptors_a_client_costs_one_idle_connection() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    let longest_idle = TcpStream::connect(proxy.addr()).expect("connect");
    longest_idle.set_nonblocking(true).expect("set O_NONBLOCK");
    eventually("it is counted", || proxy.metric("connections_open") == 1);
    let mut idle: Vec<_> = (0..3).map(|_| holder(ONE, proxy.addr())).collect();
    eventually("nothing else is open", || {
        proxy.metric("connections_open") == 4 && proxy.metric("cache_fills_in_flight") == 0
    });
    let is_open = || {
        let peeked = longest_idle.peek(&mut [0]);
        peeked.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    };
    set_descriptors(&proxy, false);
    // The first clients may find descriptors which other files have left.
    while is_open() {
        let mut client = Connection::open_from(ONE, proxy.addr());
        assert_eq!(ask(&mut client, "/assets/1").status, 200);
        idle.push(client);
        assert!(idle.len() < 100, "the descriptors have no end");
    }
    set_descriptors(&proxy, true);
    for connection in &mut idle {
        assert_eq!(connection.get("/assets/1").status, 200);
    }
    assert_eq!(proxy.metric("connections_idle_closed_total"), 1);
    assert_eq!(limited(&proxy, "descriptors"), 0);
}

// --- request heads ---

#[test]
fn a_request_with_too_many_fields_or_too_long_a_target_is_refused() {
    let origin = origin();
    let proxy = proxy(&origin).tls().start();
    let fields = |count: usize| -> Vec<_> { (0..count).map(|_| ("a", "b")).collect() };
    // Host is a field too.
    let mut client = Connection::open(proxy.addr());
    assert_eq!(client.request("GET", "/assets/1", &fields(99)).status, 200);
    let refused = client.request("GET", "/assets/1", &fields(100));
    assert_eq!(refused.status, 431);
    assert!(refused.text().contains("<Code>InvalidRequest</Code>"));
    expect_limited(&proxy, "header_fields", 1);
    // The connection goes on.
    assert_eq!(client.get("/assets/1").status, 200);

    let longest = format!("/assets/1?{}", "a".repeat(8192 - 10));
    assert_eq!(client.get(&longest).status, 200);
    assert_eq!(
        Connection::open(proxy.addr())
            .get(&format!("{longest}a"))
            .status,
        414
    );
    expect_limited(&proxy, "url_bytes", 1);

    let http2 = https_client(HttpVersion::Http2);
    let url = |target: &str| format!("https://{}{target}", proxy.https_addr());
    let got = |target: &str, fields: usize| {
        let request = http2.get(url(target));
        let request = (0..fields).fold(request, |request, _| request.header("a", "b"));
        request.send().expect("an answer").status().as_u16()
    };
    assert_eq!(got(&longest, 0), 200);
    assert_eq!(got(&format!("{longest}a"), 0), 414);
    expect_limited(&proxy, "url_bytes", 2);
    assert_eq!(got("/assets/1", 101), 431);
    expect_limited(&proxy, "header_fields", 2);
    assert_eq!(origin.requests_for("/bucket/1"), 1);
}

#[test]
fn the_limits_of_a_head_are_configurable() {
    let origin = origin();
    let proxy = proxy(&origin)
        .limit("header_fields", 200)
        .limit("url_bytes", 300)
        .start();
    let mut client = Connection::open(proxy.addr());
    let fields: Vec<_> = (0..199).map(|_| ("a", "b")).collect();
    assert_eq!(client.request("GET", "/assets/1", &fields).status, 200);
    let long = format!("/assets/1?{}", "a".repeat(300));
    assert_eq!(client.get(&long).status, 414);
}

#[test]
fn what_the_parser_refuses_is_counted() {
    let origin = origin();
    let proxy = proxy(&origin)
        .max_request_head_bytes(2000)
        .request_head_timeout("500ms")
        .start();
    let answer = |sent: String| {
        let mut client = TcpStream::connect(proxy.addr()).expect("connect");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.write_all(sent.as_bytes()).expect("send");
        let mut status = [0; 12];
        client.read_exact(&mut status).expect("a status line");
        String::from_utf8_lossy(&status[9..]).into_owned()
    };
    let long = "a".repeat(3000);
    assert_eq!(
        answer(format!("GET / HTTP/1.1\r\nA: {long}\r\n\r\n")),
        "431"
    );
    expect_limited(&proxy, "header_bytes", 1);
    assert_eq!(answer(format!("GET /{long}")), "414");
    expect_limited(&proxy, "url_bytes", 1);
    assert_eq!(answer("GET / HTTP/1.1\r\nHo".to_owned()), "408");
    expect_limited(&proxy, "head_time", 1);
    assert_eq!(answer("GET / what\r\n\r\n".to_owned()), "400");
    proxy.expect_metric("malformed_requests_total", 1);
    // A client that leaves in the middle of a head is not refused.
    let mut leaves = TcpStream::connect(proxy.addr()).expect("connect");
    leaves.write_all(b"GET / HT").expect("send");
    drop(leaves);
    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_eq!(proxy.metric(LIMITED), 3);
}

// --- the client behind a proxy ---

/// An object is fetched as a whole after a part of it was delivered, at the expense of the client.
#[test]
fn clients_behind_a_proxy_have_budgets_of_their_own() {
    const OBJECT: u64 = 12 * MIB;
    let origin = Origin::start(|request| {
        Reply::pattern(1, OBJECT)
            .header("etag", "\"1\"")
            .answering(request)
    });
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/assets", "bucket"))
        .trusted_proxies("[127.0.0.1]")
        .range_fill("client_mb_per_minute", 3 * OBJECT / 2_000_000)
        .start();
    let part = |source, client: &str, object: u32| {
        let mut connection = Connection::open_from(source, proxy.addr());
        let fields = [("Range", "bytes=5-5"), ("X-Forwarded-For", client)];
        let part = connection.request("GET", &format!("/assets/{object}"), &fields);
        assert_eq!(part.status, 206);
    };
    part(ONE, "192.0.2.1", 1);
    proxy.expect_metric("cache_entries", 1);
    // The rest of the budget is less than an object.
    part(ONE, "192.0.2.1", 2);
    part(ONE, "192.0.2.2", 3);
    proxy.expect_metric("cache_entries", 2);
    // One that is not trusted has one budget, whomever it names.
    part(OTHER, "192.0.2.3", 4);
    proxy.expect_metric("cache_entries", 3);
    part(OTHER, "192.0.2.4", 5);
    part(ONE, "192.0.2.5", 6);
    proxy.expect_metric("cache_entries", 4);
    let wholes = origin.requests();
    let wholes = wholes.iter().filter(|r| r.header("range").is_none());
    let wholes: Vec<_> = wholes.map(|request| request.path().to_owned()).collect();
    assert_eq!(wholes, ["/bucket/1", "/bucket/3", "/bucket/4", "/bucket/6"]);
}

// --- rates ---

/// Asks until a request is refused. Returns the refusal, and the number of requests before it.
fn until_refused(mut ask: impl FnMut() -> Response) -> (Response, usize) {
    for served in 0..1000 {
        let response = ask();
        if response.status != 200 {
            return (response, served);
        }
    }
    panic!("no request is refused");
}

#[test]
fn a_client_with_too_many_requests_gets_429() {
    let origin = origin();
    let proxy = proxy(&origin)
        .tls()
        .access_log()
        .limit("requests_per_second", 5)
        .start();
    let mut client = Connection::open(proxy.addr());
    let (refused, served) = until_refused(|| client.get("/assets/1"));
    // Five at once, and those that became due meanwhile.
    assert!(served >= 5, "{served}");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text().contains("<Code>SlowDown</Code>"));
    assert!(limited(&proxy, "requests") >= 1);
    // Others are served, and the client is after the time that it was told.
    assert_eq!(get_from(OTHER, proxy.addr(), "/assets/1").status, 200);
    eventually("the client is served again", || {
        client.get("/assets/1").status == 200
    });

    let http2 = https_client(HttpVersion::Http2);
    let url = format!("https://{}/assets/1", proxy.https_addr());
    let refused = (0..1000)
        .map(|_| http2.get(&url).send().expect("an answer"))
        .find(|answer| answer.status() != 200)
        .expect("a refusal");
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let log = || std::fs::read_to_string(proxy.access_log()).expect("the log");
    eventually("the refusal is logged", || log().contains("\"status\":429"));
    assert_eq!(origin.requests_for("/bucket/1"), 1);
}

#[test]
fn every_kind_of_request_counts() {
    let origin = Origin::start(|_| Reply::status(404));
    let proxy = proxy(&origin).limit("requests_per_second", 2).start();
    for target in ["/assets/none", "/elsewhere", "/assets/?location"] {
        let mut refused = 0;
        for _ in 0..100 {
            let mut client = Connection::open(proxy.addr());
            refused += usize::from(client.get(target).status == 429);
        }
        assert!(refused > 0, "{target}");
    }
}

#[test]
fn a_client_behind_a_proxy_has_its_own_rate_and_a_forger_none() {
    let origin = origin();
    let proxy = proxy(&origin)
        .trusted_proxies("[127.0.0.1]")
        .limit("requests_per_second", 5)
        .start();
    let mut front = Connection::open_from(ONE, proxy.addr());
    let mut ask = |client: &str| front.request("GET", "/assets/1", &[("X-Forwarded-For", client)]);
    until_refused(|| ask("192.0.2.1"));
    assert_eq!(ask("192.0.2.2").status, 200);
    // The left part is the client's own.
    until_refused(|| ask("192.0.2.99, 192.0.2.3"));
    assert_eq!(ask("192.0.2.98, 192.0.2.3").status, 429);

    let mut forger = Connection::open_from(OTHER, proxy.addr());
    let mut number = 0;
    let (_, served) = until_refused(|| {
        number += 1;
        let client = format!("192.0.2.{}", number % 250);
        forger.request("GET", "/assets/1", &[("X-Forwarded-For", &client)])
    });
    assert!(served < 900, "{served}");
}

#[test]
fn further_requests_of_a_client_with_too_many_bytes_get_429() {
    const RATE: u64 = 100_000;
    let origin = origin();
    let proxy = proxy(&origin).limit("bytes_per_second", RATE).start();
    // It is stored, and the second one is a hit by sendfile.
    assert_eq!(get_from(OTHER, proxy.addr(), "/assets/large").status, 200);
    proxy.expect_metric("cache_entries", 1);
    let mut client = Connection::open(proxy.addr());
    let start = Instant::now();
    let hit = client.begin("GET", "/assets/large", &[]);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    let transfer = hit.check(Pattern::new(1), 0);
    assert!(transfer.complete && transfer.len == 64 * MIB);
    let took = start.elapsed().as_secs();
    assert!(
        took < 64 * MIB / RATE / 4,
        "it is not slowed down: {took} s"
    );
    assert!(proxy.metric("cache_sendfile_bytes_total") >= 64 * MIB);
    // The bytes are charged after the last one was sent.
    eventually("the client is refused", || {
        client.get("/assets/1").status == 429
    });
    let refused = client.get("/assets/1");
    let wait: u64 = refused
        .header("retry-after")
        .expect("a time")
        .parse()
        .expect("seconds");
    let owed = 64 * MIB / RATE;
    let spent = start.elapsed().as_secs();
    assert!(
        (owed - spent - 2..=owed).contains(&wait),
        "{wait} of {owed} s"
    );
    assert!(limited(&proxy, "bytes") >= 2);
    // A client with few requests is served.
    let other = Ipv4Addr::new(127, 0, 0, 3);
    assert_eq!(get_from(other, proxy.addr(), "/assets/1").status, 200);
}

// --- the PROXY protocol ---

/// A header of version 2 with a client's address.
fn version_2(command: u8, client: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.push(0x20 | command);
    match client {
        SocketAddr::V4(client) => {
            header.extend([0x11, 0, 12]);
            header.extend(client.ip().octets());
            header.extend([198, 51, 100, 1]);
        }
        SocketAddr::V6(client) => {
            header.extend([0x21, 0, 36]);
            header.extend(client.ip().octets());
            header.extend([0; 16]);
        }
    }
    header.extend(client.port().to_be_bytes());
    header.extend([0, 80]);
    header
}

fn version_1(client: &str) -> Vec<u8> {
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    let server = if client.contains(':') {
        "::1"
    } else {
        "127.0.0.1"
    };
    format!("PROXY {family} {client} {server} 4711 80\r\n").into_bytes()
}

/// A connection of a load balancer, which begins with these bytes.
fn balanced(source: Ipv4Addr, addr: SocketAddr, header: &[u8]) -> Connection {
    let mut connection = Connection::open_from(source, addr);
    connection.send_raw(header).expect("send a header");
    connection
}

/// The response to a request over TLS behind a header, or the error.
fn over_tls(addr: SocketAddr, header: &[u8]) -> std::io::Result<String> {
    let config = rustls::ClientConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_safe_default_protocol_versions()
    .expect("versions")
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(AnyCertificate::default()))
    .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a TLS client");
    let mut socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(header)?;
    let mut tls = rustls::StreamOwned::new(tls, socket);
    tls.write_all(b"GET /assets/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    tls.read_exact(&mut status)?;
    Ok(String::from_utf8_lossy(&status[9..]).into_owned())
}

/// The client in the last of `count` lines of the access log.
fn logged_client(proxy: &Proxy, count: usize) -> String {
    let text = || std::fs::read_to_string(proxy.access_log()).unwrap_or_default();
    eventually("the request is logged", || text().lines().count() >= count);
    let text = text();
    let last = text.lines().last().expect("a line");
    let line: serde_json::Value = serde_json::from_str(last).expect("JSON");
    line["client"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_load_balancer_names_the_client() {
    let origin = origin();
    let proxy = proxy(&origin)
        .tls()
        .access_log()
        .proxy_protocol("[127.0.0.1]")
        .start();
    let v4: SocketAddr = "192.0.2.1:4711".parse().expect("an address");
    let v6: SocketAddr = "[2001:db8::1]:4711".parse().expect("an address");
    let mut count = 0;
    for (header, client) in [
        (version_1("192.0.2.7"), "192.0.2.7"),
        (version_1("2001:db8::7"), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (version_2(1, v4), "192.0.2.1"),
        (version_2(1, v6), "2001:db8::1"),
        // LOCAL: the address in it is not a client's.
        (version_2(0, v4), "127.0.0.1"),
    ] {
        let shown = String::from_utf8_lossy(&header).into_owned();
        let mut connection = balanced(ONE, proxy.addr(), &header);
        // The address holds for all requests of the connection.
        for _ in 0..2 {
            assert_eq!(connection.get("/assets/1").status, 200, "{shown}");
            count += 1;
            assert_eq!(logged_client(&proxy, count), client, "{shown}");
        }
        assert_eq!(
            over_tls(proxy.https_addr(), &header).expect("an answer"),
            "200"
        );
        count += 1;
        assert_eq!(logged_client(&proxy, count), client, "{shown}, over TLS");
    }
    // A header may come in pieces, and together with the request.
    let header = version_2(1, v4);
    let mut connection = balanced(ONE, proxy.addr(), &header[..5]);
    connection.send_raw(&header[5..]).expect("send the rest");
    assert_eq!(connection.get("/assets/1").status, 200);
    let request = b"GET /assets/1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut connection = balanced(ONE, proxy.addr(), &[&header[..], request].concat());
    assert_eq!(connection.receive("GET").status, 200);
    assert_eq!(logged_client(&proxy, count + 2), "192.0.2.1");
    assert_eq!(limited(&proxy, "proxy_header"), 0);
}

#[test]
fn a_header_of_a_stranger_is_not_believed() {
    let origin = origin();
    let proxy = proxy(&origin)
        .tls()
        .access_log()
        .proxy_protocol("[127.0.0.2]")
        .start();
    let forged = version_1("192.0.2.7");
    let mut connection = balanced(ONE, proxy.addr(), &[&forged[..], b"\r\n"].concat());
    assert_eq!(connection.receive("GET").status, 400);
    proxy.expect_metric("malformed_requests_total", 1);
    assert!(over_tls(proxy.https_addr(), &forged).is_err());
    proxy.expect_metric_where("tls_handshake_failures_total", &[("reason", "protocol")], 1);
    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_eq!(logged_client(&proxy, 1), "127.0.0.1");
}

#[test]
fn a_connection_of_a_load_balancer_without_a_usable_header_is_closed() {
    let origin = origin();
    let proxy = proxy(&origin).tls().proxy_protocol("[127.0.0.1]").start();
    let long = [b"PROXY UNKNOWN ", &[b'a'; 200][..]].concat();
    let mut huge = version_2(1, "192.0.2.1:4711".parse().expect("an address"));
    huge[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    huge.resize(65_551, 0);
    let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".to_vec();
    let mut refused = 0;
    for addr in [proxy.addr(), proxy.https_addr()] {
        for bytes in [
            &b"GET /assets/1 HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1 127.0.0.1 4711\r\n",
            &long,
            &huge,
            &client_hello,
            // It breaks off: the client does not send the rest in time.
            b"PROXY TCP4 192.0.2.1",
        ] {
            let mut client = TcpStream::connect(addr).expect("connect");
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            // It may be closed before all is sent.
            let _ = client.write_all(bytes);
            let start = Instant::now();
            let read = client.read_to_end(&mut Vec::new());
            assert!(read.is_err() || read.is_ok_and(|n| n == 0), "an answer");
            assert!(start.elapsed() < Duration::from_secs(20));
            refused += 1;
            expect_limited(&proxy, "proxy_header", refused);
        }
        // A health check that only connects is no problem.
        drop(TcpStream::connect(addr).expect("connect"));
    }
    let header = version_1("192.0.2.7");
    let mut connection = balanced(ONE, proxy.addr(), &header);
    assert_eq!(connection.get("/assets/1").status, 200);
    assert_eq!(limited(&proxy, "proxy_header"), refused);
    assert_eq!(proxy.metric("tls_handshake_failures_total"), 0);
    let log = proxy.stderr();
    assert!(
        log.contains("server.proxy_protocol: no usable header from 127.0.0.1"),
        "{log}"
    );
}

#[test]
fn limits_are_those_of_the_client_behind_a_load_balancer() {
    let origin = origin();
    let proxy = proxy(&origin)
        .proxy_protocol("[127.0.0.1]")
        .trusted_proxies("[203.0.113.0/24]")
        .limit("per_ip", 2)
        .limit("requests_per_second", 20)
        .start();
    let one = version_1("192.0.2.1");
    let mut held: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = balanced(ONE, proxy.addr(), &one);
            assert_eq!(connection.get("/assets/1").status, 200);
            connection
        })
        .collect();
    let mut third = balanced(ONE, proxy.addr(), &one);
    assert_eq!(third.receive("GET").status, 503);
    expect_limited(&proxy, "per_ip", 1);
    // The network of an address of IPv6 counts.
    for client in ["192.0.2.2", "2001:db8::1", "2001:db8::2"] {
        let mut connection = balanced(ONE, proxy.addr(), &version_1(client));
        assert_eq!(connection.get("/assets/1").status, 200, "{client}");
        held.push(connection);
    }
    let mut sixth = balanced(ONE, proxy.addr(), &version_1("2001:db8::3"));
    assert_eq!(sixth.receive("GET").status, 503);
    // A health check is no client.
    for _ in 0..3 {
        let mut check = balanced(ONE, proxy.addr(), b"PROXY UNKNOWN\r\n");
        assert_eq!(check.get("/assets/1").status, 200);
        held.push(check);
    }

    let mut first = held.swap_remove(0);
    until_refused(|| first.get("/assets/1"));
    let mut other = balanced(ONE, proxy.addr(), &version_1("192.0.2.3"));
    assert_eq!(other.get("/assets/1").status, 200);
    // A client that is no trusted proxy cannot name another.
    let forged = [("X-Forwarded-For", "192.0.2.99")];
    until_refused(|| first.request("GET", "/assets/1", &forged));
    // One that is has as many connections as it likes, and its clients have rates of their own.
    let front = version_1("203.0.113.5");
    for number in 0..5 {
        let mut connection = balanced(ONE, proxy.addr(), &front);
        let client = format!("192.0.2.{}", 100 + number);
        let fields = [("X-Forwarded-For", &*client)];
        assert_eq!(connection.request("GET", "/assets/1", &fields).status, 200);
        held.push(connection);
    }
}
