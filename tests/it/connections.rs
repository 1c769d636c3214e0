//! Connections held by some clients do not keep others out.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::builder;
use socket2::{Domain, Socket, Type};
use test_support::{
    eventually, https_client, raise_descriptor_limit, Bucket, Connection, Gate, HttpVersion,
    Origin, Pattern, Proxy, ProxyBuilder, Reply, PATIENCE,
};

const LEN: u64 = 10_000;

#[test]
fn four_hundred_idle_connections_do_not_use_up_256_descriptors() {
    raise_descriptor_limit();
    let origin = origin();
    let mut proxy = proxy(&origin).tls().start();
    let limited = proxy.restart_under(&["prlimit", "--nofile=256:256"]);
    assert!(limited, "{}", proxy.stderr());
    let start = Instant::now();
    assert_eq!(proxy.get("/assets/1").status, 200);

    let mut held = Vec::new();
    for number in 0..400 {
        held.push(match number % 4 {
            0 => silent(proxy.addr()),
            1 => silent(proxy.https_addr()),
            2 => after_a_request(proxy.addr()),
            _ => after_half_a_request(proxy.addr()),
        });
        if number % 50 == 49 {
            assert_eq!(proxy.get("/assets/1").status, 200, "{number} held");
            assert!(proxy.metric("connections_open") <= 64);
        }
    }
    // Clients that hold the listener for operators do not keep operators out either.
    held.extend((0..100).map(|_| silent(proxy.metrics_addr())));
    assert!((50..=64).contains(&proxy.metric("connections_open")));
    assert!(proxy.metric("connections_idle_closed_total") >= 336);
    assert_eq!(proxy.metric("connections_refused_total"), 0);
    let https = https_client(HttpVersion::Http1);
    let url = format!("https://{}/assets/1", proxy.https_addr());
    assert_eq!(https.get(url).send().expect("GET").status(), 200);

    let log = proxy.stderr();
    assert!(!log.contains("Accept() failed"), "{log}");
    let lines = log
        .matches("the limit of 64 connections is reached")
        .count();
    let minutes = start.elapsed().as_secs() / 60;
    assert!((1..=1 + minutes as usize).contains(&lines), "{log}");
}

#[test]
fn the_limit_of_open_files_is_raised() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    let limited = proxy.restart_under(&["prlimit", "--nofile=256:1024"]);
    assert!(limited, "{}", proxy.stderr());
    let limits = fs::read_to_string(format!("/proc/{}/limits", proxy.pid())).expect("limits");
    let open_files: Vec<_> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .expect("a line of open files")
        .split_whitespace()
        .collect();
    assert_eq!(open_files[..2], ["1024", "1024"]);
    assert!(proxy.stderr().contains("raised from 256 to 1024"));
}

#[test]
fn the_limit_of_open_files_decides_how_many_files_are_kept_open() {
    const OBJECTS: usize = 300;
    let origin = Origin::start(|_| Reply::pattern(1, 20_000));
    let mut proxy = proxy(&origin).start();
    for (limit, shares, open_files) in [
        (
            256,
            "at most 64 client connections and 64 files of the cache",
            32..=64,
        ),
        (
            4096,
            "at most 1024 client connections and 1024 files of the cache",
            OBJECTS as u64..=OBJECTS as u64,
        ),
    ] {
        let limited = proxy.restart_under(&["prlimit", &format!("--nofile={limit}:{limit}")]);
        assert!(limited, "{}", proxy.stderr());
        let log = proxy.stderr();
        let said = format!("limit on open files: {limit}; {shares}");
        assert!(log.contains(&said), "no {said:?} in\n{log}");
        let mut client = Connection::open(proxy.addr());
        for _ in 0..2 {
            for number in 0..OBJECTS {
                let response = client.request("GET", &format!("/assets/{number}"), &[]);
                assert!(response.status == 200 && response.complete, "{number}");
            }
            proxy.expect_metric("cache_entries", OBJECTS as u64);
        }
        let open = proxy.metric("cache_open_files");
        assert!(open_files.contains(&open), "{open} of {limit}");
        assert_eq!(proxy.metric("response_errors_total"), 0);
    }
}

#[test]
fn more_open_files_than_the_limit_allows_are_not_kept() {
    let origin = origin();
    let mut proxy = proxy(&origin).max_open_files(1000).start();
    let limited = proxy.restart_under(&["prlimit", "--nofile=256:256"]);
    assert!(limited, "{}", proxy.stderr());
    let log = proxy.stderr();
    let said =
        "cache.disk.max_open_files: 1000 is more than a quarter of the limit on open files; \
                lowered to 64, since the limit is 256";
    assert!(log.contains(said), "{log}");
}

#[test]
fn where_nobody_is_idle_a_new_client_is_told_at_once() {
    let origin = origin();
    let proxy = proxy(&origin).max_connections(2).start();
    let mut busy: Vec<_> = (0..2)
        .map(|_| Connection::with_receive_buffer(proxy.addr(), 4096))
        .collect();
    let mut transfers: Vec<_> = busy
        .iter_mut()
        .map(|connection| {
            let mut transfer = connection.begin("GET", "/large/1", &[]);
            let begun = transfer.read_some(1000).len() as u64;
            (transfer, begun)
        })
        .collect();

    // It ends or is reset at once.
    let mut refused = TcpStream::connect(proxy.addr()).expect("connect");
    refused.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    proxy.expect_metric("connections_refused_total", 1);
    proxy.expect_metric("connections_open", 2);

    // Running transfers are served to the end, and then there is room.
    let (transfer, begun) = transfers.pop().expect("two");
    assert!(transfer.check(Pattern::new(1), begun).complete);
    assert_eq!(proxy.get("/assets/1").status, 200);
    let (transfer, begun) = transfers.pop().expect("two");
    assert!(transfer.check(Pattern::new(1), begun).complete);
}

#[test]
fn an_idle_http2_connection_makes_room_and_one_with_a_stream_does_not() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |request| match request.path() {
        "/bucket/held" => Reply::pattern(1, LEN).hold_at(100, &held),
        _ => Reply::pattern(1, LEN),
    });
    let proxy = proxy(&origin).tls().max_connections(1).start();
    let url = |name: &str| format!("https://{}/assets/{name}", proxy.https_addr());
    let idle = [(); 3].map(|()| https_client(HttpVersion::Http2));
    for client in &idle {
        // The previous connection becomes idle a moment after its client has the response.
        eventually("the idle connection makes room", || {
            let response = client.get(url("1")).send();
            response.is_ok_and(|response| response.status() == 200)
        });
    }
    assert!(proxy.metric("connections_idle_closed_total") >= 2);

    let [one, two] = [(); 2].map(|()| https_client(HttpVersion::Http2));
    eventually("the last one is idle", || one.get(url("1")).send().is_ok());
    let busy = thread::spawn({
        let url = url("held");
        move || one.get(url).send().expect("GET").bytes().expect("its body")
    });
    gate.wait_for_arrivals(1);
    let refused = proxy.metric("connections_refused_total");
    assert!(two.get(url("1")).send().is_err());
    assert!(proxy.metric("connections_refused_total") > refused);
    gate.open();
    Pattern::new(1).check(0, &busy.join().expect("the one in use is served"));
}

#[test]
fn a_part_of_a_head_makes_room() {
    let origin = origin();
    let proxy = proxy(&origin).max_connections(1).start();
    for bytes in [
        &b"GET /assets/1 HT"[..],
        // It comes with a request: nobody waits for its first byte.
        b"GET /assets/1 HTTP/1.1\r\nHost: proxy\r\n\r\nGET /assets/1 HTTP/1.1\r\nHo",
    ] {
        let closed = proxy.metric("connections_idle_closed_total");
        let mut holder = holder(&proxy, bytes);
        eventually("another client is served", || served(&proxy));
        assert!(proxy.metric("connections_idle_closed_total") > closed);
        assert!(is_closed(&mut holder));
    }
}

#[test]
fn a_lingering_connection_makes_room() {
    let origin = origin();
    let proxy = proxy(&origin).max_connections(1).start();
    let put = b"PUT /assets/1 HTTP/1.1\r\nHost: proxy\r\nContent-Length: 100\r\n\r\n";
    let mut holder = holder(&proxy, put);
    let mut status = [0; 12];
    holder.read_exact(&mut status).expect("read the response");
    assert_eq!(&status, b"HTTP/1.1 501");
    let closed = proxy.metric("connections_idle_closed_total");
    eventually("another client is served", || {
        // It goes on sending, and would be read from for long.
        let _ = holder.write_all(b"a");
        served(&proxy)
    });
    assert!(proxy.metric("connections_idle_closed_total") > closed);
}

#[test]
fn a_handshake_has_a_deadline() {
    let origin = origin();
    let proxy = proxy(&origin).tls().handshake_timeout("100ms").start();
    for hello in [&b""[..], b"\x16\x03\x01"] {
        let mut client = TcpStream::connect(proxy.https_addr()).expect("connect");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.write_all(hello).expect("begin a handshake");
        let start = Instant::now();
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
        // Before the default timeout.
        assert!(start.elapsed().as_secs() < 10, "{hello:?}");
    }
    // Counted, not logged: any client can cause it.
    proxy.expect_metric_where("tls_handshake_failures_total", &[("reason", "timeout")], 2);
}

#[test]
fn a_client_that_reads_slowly_holds_little_in_the_kernel() {
    let origin = origin();
    let held = |proxy: Proxy, others: usize| {
        let _others: Vec<_> = (0..others)
            .map(|_| TcpStream::connect(proxy.addr()).expect("connect"))
            .collect();
        // Fewer bytes than this are in flight to the client.
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        client.set_recv_buffer_size(256 << 10).expect("a window");
        client.connect(&proxy.addr().into()).expect("connect");
        let mut client = TcpStream::from(client);
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let request = b"GET /large/1 HTTP/1.1\r\nHost: proxy\r\n\r\n";
        client.write_all(request).expect("send a request");
        // Enough for the kernel to learn that the client reads fast.
        let mut part = vec![0; 4 << 20];
        client.read_exact(&mut part).expect("read a part");
        let client_addr = client.local_addr().expect("its address");
        let (mut queue, mut unchanged) = (0, 0);
        // The only sign that the proxy waits for the client is that the queue stops growing.
        eventually("the proxy waits for the client", || {
            thread::sleep(Duration::from_millis(100));
            let now = send_queue(proxy.addr(), client_addr);
            unchanged = if now == queue { unchanged + 1 } else { 0 };
            queue = now;
            queue > 0 && unchanged == 5
        });
        queue
    };
    let unbounded = held(proxy(&origin).send_buffer(0).start(), 0);
    let bounded = held(proxy(&origin).send_buffer(128 << 10).start(), 0);
    // By default, the more clients there are, the less is left for each.
    let one_of_many = held(proxy(&origin).start(), 600);
    for few in [bounded, one_of_many] {
        assert!(few <= 512 << 10, "{few} bytes");
        assert!(unbounded >= 2 * few, "{few} and {unbounded} bytes");
    }
}

/// The bytes of a connection that the client's kernel has not received; see proc_net_tcp
/// in the kernel's documentation.
fn send_queue(server: SocketAddr, client: SocketAddr) -> u64 {
    let shown = |addr: SocketAddr| format!("0100007F:{:04X}", addr.port());
    let (local, remote) = (shown(server), shown(client));
    let table = fs::read_to_string("/proc/net/tcp").expect("read the connections");
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields[1] == local && fields[2] == remote)
        .and_then(|fields| u64::from_str_radix(fields[4].split(':').next()?, 16).ok())
        .expect("the connection is in the table")
}

fn origin() -> Origin {
    Origin::start(|request| {
        let len = if request.path().starts_with("/large/") {
            64 << 20
        } else {
            LEN
        };
        Reply::pattern(1, len)
    })
}

fn proxy(origin: &Origin) -> ProxyBuilder {
    builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .bucket(Bucket::at(origin, "/large", "large"))
}

fn silent(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).expect("connect")
}

/// The only connection that is allowed, on which these bytes were sent.
fn holder(proxy: &Proxy, bytes: &[u8]) -> TcpStream {
    let mut holder = None;
    eventually("there is room for it", || {
        let accepted = proxy.metric("connections_refused_total");
        let mut stream = silent(proxy.addr());
        let sent = stream.write_all(bytes).is_ok();
        // It has been read when the response to what is whole of it is there.
        let whole = !bytes.ends_with(b"HT");
        let answered = !whole || stream.peek(&mut [0]).is_ok_and(|n| n > 0);
        holder = Some(stream);
        sent && answered && proxy.metric("connections_refused_total") == accepted
    });
    holder.expect("a connection")
}

fn served(proxy: &Proxy) -> bool {
    let mut stream = silent(proxy.addr());
    let request = b"GET /assets/1 HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n";
    let mut first = [0; 12];
    // It is closed without an answer where there is no room.
    let answered = stream.write_all(request).is_ok() && stream.read_exact(&mut first).is_ok();
    answered && &first == b"HTTP/1.1 200"
}

/// Reads what is left, and tells whether the server closed the connection.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let read = stream.read_to_end(&mut Vec::new());
    // Bytes of it that were not read reset it.
    read.is_ok() || read.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
}

fn after_half_a_request(addr: SocketAddr) -> TcpStream {
    let mut stream = silent(addr);
    stream
        .write_all(b"GET /assets/1 HTTP/1.1\r\nHo")
        .expect("send");
    stream
}

fn after_a_request(addr: SocketAddr) -> TcpStream {
    let mut stream = silent(addr);
    let request = b"GET /assets/1 HTTP/1.1\r\nHost: proxy\r\n\r\n";
    stream.write_all(request).expect("send a request");
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("read the response");
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}
