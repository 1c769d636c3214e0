//! HTTP/2 as clients speak it, and what malicious clients can hold of the proxy.

pub mod client;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::builder;
use client::*;
use test_support::{
    eventually, https_client, pattern, Bucket, Connection, Gate, HttpVersion, Origin, ProxyBuilder,
    Reply, PATIENCE,
};

const MIB: u64 = 1024 * 1024;
/// The largest window (RFC 9113 §6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;
const STREAMS: u32 = 100;

fn proxy(origin: &Origin) -> ProxyBuilder {
    builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .tls()
}

// --- requests that only their end shows to have no body ---

#[test]
fn a_request_that_an_empty_frame_ends_has_no_body() {
    const LEN: u64 = 1000;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).start();

    let mut client = Client::open(proxy.https_addr(), MAX_WINDOW, MAX_WINDOW);
    let object = "/assets/object";
    // A GET as Node's http2 sends it, and one with another empty frame.
    for (stream, frames) in [(1, 1), (3, 2)] {
        client.send(&get(stream, object, END_HEADERS)).expect("ask");
        for sent in 1..=frames {
            let end = if sent == frames { END_STREAM } else { 0 };
            client
                .send(&frame(DATA, end, stream, &[]))
                .expect("send a frame");
        }
        let response = client.response(stream);
        assert_eq!(response.status, STATUS_200);
        assert!(response.body == pattern(1, LEN as usize));
    }
    // The second one is a hit.
    proxy.expect_metric("cache_hits_total", 1);
    assert_eq!(origin.requests().len(), 1);

    client.send(&get(5, object, END_HEADERS)).expect("ask");
    client
        .send(&frame(DATA, END_STREAM, 5, b"a body"))
        .expect("send a body");
    assert_eq!(client.response(5).status, STATUS_400);
    // The connection goes on.
    client
        .send(&get(7, object, END_HEADERS | END_STREAM))
        .expect("ask");
    assert_eq!(client.response(7).status, STATUS_200);
}

#[test]
fn over_http_1_a_body_of_no_chunks_is_none() {
    let origin = Origin::start(|_| Reply::pattern(1, 10));
    let proxy = proxy(&origin).start();
    for (body, status) in [("0\r\n\r\n", "200"), ("1\r\na\r\n0\r\n\r\n", "400")] {
        let mut stream = TcpStream::connect(proxy.addr()).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(
            stream,
            "GET /assets/object HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n{body}"
        )
        .expect("ask");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer:?}"
        );
    }
}

#[test]
fn an_upload_is_refused_and_the_connection_goes_on() {
    const BODY: usize = 10 << 20;
    let origin = Origin::start(|_| Reply::pattern(1, 10));
    let proxy = proxy(&origin).start();
    let url = format!("https://{}/assets/object", proxy.https_addr());
    let client = https_client(HttpVersion::Http2);
    for _ in 0..3 {
        let refused = client.put(&url).body(vec![0; BODY]).send();
        let refused = refused.expect("an answer that can be read");
        assert_eq!(refused.status(), 501);
        let document = refused.text().expect("a body");
        assert!(
            document.contains("<Code>NotImplemented</Code>"),
            "{document}"
        );
        let got = client.get(&url).send().expect("get");
        assert_eq!(got.status(), 200);
    }

    // The rest of the body is unwanted, which is not an error (RFC 9113 §8.1).
    let mut client = Client::open(proxy.https_addr(), MAX_WINDOW, MAX_WINDOW);
    // :method POST, which serves as well
    let mut post = get(1, "/assets/object", END_HEADERS);
    post[9] = 0x83;
    client.send(&post).expect("ask");
    let refused = client.response(1);
    let document = String::from_utf8_lossy(&refused.body);
    assert!(
        document.contains("<Code>NotImplemented</Code>"),
        "{document}"
    );
    assert_eq!(refused.reset, None);
    // The proxy takes some of the body, so that the answer arrives before the reset.
    let piece = frame(DATA, 0, 1, &[0; 16_384]);
    let mut window = 65_535;
    let mut taken = 0;
    let reset = loop {
        while window >= 16_384 {
            client.send(&piece).expect("send some of the body");
            window -= 16_384;
            taken += 16_384;
        }
        let frame = client.receive().expect("a frame");
        if frame.is(WINDOW_UPDATE, 1) {
            let more: [u8; 4] = frame.payload.try_into().expect("four bytes");
            window += u32::from_be_bytes(more);
        } else if frame.is(RST_STREAM, 1) {
            break frame;
        }
    };
    assert_eq!(reset.payload, NO_ERROR.to_be_bytes());
    assert!((MIB..2 * MIB).contains(&taken), "{taken} bytes");
    // Frames already on their way do not end the connection.
    client
        .send(&frame(DATA, END_STREAM, 1, &[0; 1000]))
        .expect("send the rest");
    client
        .send(&get(3, "/assets/object", END_HEADERS | END_STREAM))
        .expect("ask");
    assert_eq!(client.response(3).status, STATUS_200);
}

// --- clients that leave ---

#[test]
fn a_client_that_resets_its_requests_leaves_no_line_in_the_log() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let proxy = proxy(&origin).start();
    assert!(proxy.get("/assets/object").complete);

    // A hit, and an error that the proxy answers itself.
    let mut client = Client::open(proxy.https_addr(), MAX_WINDOW, MAX_WINDOW);
    let mut frames = Vec::new();
    for (stream, path) in (1..)
        .step_by(2)
        .zip(["/assets/object", "/elsewhere"].repeat(10))
    {
        frames.extend(get(stream, path, END_HEADERS | END_STREAM));
        frames.extend(reset(stream, CANCEL));
    }
    client.send(&frames).expect("ask and take it back");
    // The connection goes on.
    client
        .send(&get(101, "/assets/object", END_HEADERS | END_STREAM))
        .expect("ask");
    assert_eq!(client.response(101).status, STATUS_200);

    eventually("the errors are those of the client", || {
        proxy
            .metrics()
            .sum_where("response_errors_total", &[("source", "downstream")])
            > 0
    });
    assert_eq!(
        proxy.stderr().matches("ERROR").count(),
        0,
        "{}",
        proxy.stderr()
    );
}

// --- responses that clients do not read ---

#[test]
fn responses_that_nobody_reads_take_little_memory_and_give_it_back() {
    const LEN: u64 = 100 * MIB;
    const CONNECTIONS: u64 = 60;
    /// Bytes of all streams of a connection together, whatever the client does.
    const MOST: u64 = MIB;
    let origin = Origin::start(|request| match request.path() {
        "/bucket/large" => Reply::pattern(1, LEN),
        _ => Reply::pattern(2, 1000),
    });
    let proxy = proxy(&origin).start();
    let large = proxy.get("/assets/large");
    assert!(large.complete);
    drop(large);
    proxy.get("/assets/small");
    let url = format!("https://{}/assets/small", proxy.https_addr());
    let good = https_client(HttpVersion::Http2);
    good.get(&url).send().expect("get");

    // The largest windows, none for streams, and the usual ones.
    for (stream_window, window) in [(MAX_WINDOW, MAX_WINDOW), (0, MAX_WINDOW), (65_535, 65_535)] {
        let what = format!("windows of {stream_window} and {window}");
        let ask_for_all = || {
            let mut client = Client::open(proxy.https_addr(), stream_window, window);
            let asks: Vec<u8> = (0..STREAMS)
                .flat_map(|n| get(2 * n + 1, "/assets/large", END_HEADERS | END_STREAM))
                .collect();
            client.send(&asks).expect("ask");
            client
        };
        // Once before measuring, because each thread takes memory when it is first used.
        let mut first = ask_for_all();
        while first.receive().expect("a frame").kind != HEADERS {}
        drop(first);
        let before = proxy.rss_bytes();
        let hits = proxy.metric("cache_hits_total");
        let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| ask_for_all()).collect();
        if stream_window == 0 {
            // All streams are served at once.
            let mut headers = 0;
            while headers < STREAMS {
                headers += u32::from(clients[0].receive().expect("a frame").kind == HEADERS);
            }
        }
        // Measure until memory stops growing, and serve another client meanwhile.
        let mut slowest = Duration::ZERO;
        let mut peak = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            let answer = good.get(&url).send().expect("get").bytes();
            assert!(answer.expect("the body") == pattern(2, 1000));
            slowest = slowest.max(asked.elapsed());
            peak = peak.max(proxy.rss_bytes());
            thread::sleep(Duration::from_millis(20));
        }
        let each = peak.saturating_sub(before) / CONNECTIONS;
        eprintln!(
            "{what}: {} KiB a connection, slowest answer to another client {slowest:?}",
            each / 1024
        );
        assert!(each <= MOST, "{what}: {each} bytes a connection");
        drop(clients);
        let gone = Instant::now();
        let most = before + CONNECTIONS * MOST / 10;
        eventually("the memory is given back", || proxy.rss_bytes() <= most);
        let took = gone.elapsed();
        eprintln!("{what}: given back after {took:?}");
        assert!(took <= Duration::from_secs(10), "{what}: {took:?}");
        assert!(proxy.metric("cache_hits_total") > hits);
    }
}

#[test]
fn a_response_is_whole_whatever_the_windows() {
    const LEN: u64 = 300_000;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).start();
    let mut client = Client::open(proxy.https_addr(), 0, MAX_WINDOW);
    let expected = pattern(1, LEN as usize);
    for stream in [1, 3] {
        client
            .send(&get(stream, "/assets/object", END_HEADERS | END_STREAM))
            .expect("ask");
        let mut body = Vec::new();
        let mut windows = [1, 9, 16_383, 16_384, 16_385, 100_000].into_iter().cycle();
        // The last window ends with the last byte.
        let mut open = 0;
        loop {
            if open == 0 && (body.len() as u64) < LEN {
                open = windows
                    .next()
                    .expect("a cycle")
                    .min(LEN as usize - body.len());
                client
                    .send(&frame(
                        WINDOW_UPDATE,
                        0,
                        stream,
                        &(open as u32).to_be_bytes(),
                    ))
                    .expect("open the window");
            }
            let frame = client.receive().expect("a frame");
            if frame.is(DATA, stream) {
                open -= frame.payload.len();
                body.extend(frame.payload);
                if frame.flags & END_STREAM != 0 {
                    break;
                }
            }
        }
        assert!(body == expected);
    }
    proxy.expect_metric("cache_hits_total", 1);
}

#[test]
fn clients_that_leave_a_later_hit_write_no_error_to_the_log() {
    let origin = Origin::start(|_| Reply::pattern(1, 20 << 20));
    let proxy = proxy(&origin).start();
    assert!(proxy.get("/assets/object").complete);
    proxy.expect_metric("cache_entries", 1);
    assert!(proxy.get("/assets/object").complete);
    // Of each kind of hit, two clients leave while the proxy waits for the window, and one while it
    // sends. Pingora's own phases serve the part.
    let part = Some((RANGE, "bytes=1-"));
    for (gone, field, window, cancels) in [
        (1, None, 65_535, true),
        (2, None, 65_535, false),
        (3, None, MAX_WINDOW, false),
        (4, part, 65_535, true),
        (5, part, 65_535, false),
        (6, part, MAX_WINDOW, false),
    ] {
        let mut client = Client::open(proxy.https_addr(), window, MAX_WINDOW);
        let flags = END_HEADERS | END_STREAM;
        client
            .send(&get_with(1, "/assets/object", flags, field))
            .expect("ask");
        while !client.receive().expect("a frame").is(DATA, 1) {}
        if cancels {
            client.send(&reset(1, CANCEL)).expect("cancel");
            proxy.expect_metric_where("response_errors_total", &[("source", "downstream")], gone);
        }
        drop(client);
        proxy.expect_metric_where("response_errors_total", &[("source", "downstream")], gone);
    }
    assert!(!proxy.stderr().contains("ERROR"), "{}", proxy.stderr());
    proxy.expect_metric("cache_hits_total", 7);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn streams_that_wait_for_the_origin_leave_the_connection_to_others() {
    const LEN: u64 = 4 * MIB;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.path() {
            "/bucket/stored" => Reply::pattern(1, LEN),
            _ => Reply::pattern(2, LEN).hold_at(LEN / 2, &gate),
        }
    });
    let proxy = proxy(&origin).start();
    assert!(proxy.get("/assets/stored").complete);

    // Three objects arrive by halves, and the streams of one client follow.
    let paths = ["/assets/a", "/assets/b", "/assets/c"];
    let fills: Vec<_> = paths
        .iter()
        .map(|path| {
            let mut fill = Connection::open(proxy.addr());
            fill.ask("GET", path, &[], b"");
            fill
        })
        .collect();
    gate.wait_for_arrivals(paths.len());
    let mut client = Client::open(proxy.https_addr(), MAX_WINDOW, MAX_WINDOW);
    let mut streams = [1, 3, 5].into_iter().zip(paths);
    let all = streams.all(|(stream, path)| {
        let ask = get(stream, path, END_HEADERS | END_STREAM);
        client.send(&ask).is_ok()
    });
    assert!(all, "ask");
    let mut received = [0; 4];
    let mut receive = |client: &mut Client, until: [u64; 4]| {
        while received.iter().zip(until).any(|(have, want)| *have < want) {
            let frame = client.receive().expect("a frame");
            assert_ne!(frame.kind, RST_STREAM, "{received:?}");
            if frame.kind == DATA {
                received[(frame.stream as usize - 1) / 2] += frame.payload.len() as u64;
            }
        }
    };
    receive(&mut client, [LEN / 2, LEN / 2, LEN / 2, 0]);
    // The origin holds the other halves, and a hit is sent all the same.
    client
        .send(&get(7, "/assets/stored", END_HEADERS | END_STREAM))
        .expect("ask");
    receive(&mut client, [LEN / 2, LEN / 2, LEN / 2, LEN]);
    gate.open();
    receive(&mut client, [LEN; 4]);
    drop(fills);
}

// --- requests that name their server twice ---

/// RFC 9113 §8.3.1
#[test]
fn a_host_may_write_the_authority_otherwise() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let proxy = proxy(&origin).start();
    let mut client = Client::open(proxy.https_addr(), MAX_WINDOW, MAX_WINDOW);
    let mut streams = (1..).step_by(2);
    let mut ask = |host| {
        let stream = streams.next().expect("a stream");
        let flags = END_HEADERS | END_STREAM;
        client
            .send(&get_with(
                stream,
                "/assets/object",
                flags,
                Some((HOST, host)),
            ))
            .expect("ask");
        client.response(stream).status
    };
    for host in ["localhost", "LocalHost", "localhost:443", "LOCALHOST:"] {
        assert_eq!(ask(host), STATUS_200, "{host}");
    }
    for host in ["localhost:80", "localhost.", "other.example", ""] {
        assert_eq!(ask(host), STATUS_400, "{host}");
    }
}

// --- connections that do nothing ---

#[test]
fn connections_that_do_nothing_are_asked_to_leave() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let proxy = proxy(&origin)
        .keepalive_timeout("1s")
        .request_head_timeout("1s")
        .start();
    let addr = proxy.https_addr();
    let object = "/assets/object";
    let settings = || Client::open(addr, MAX_WINDOW, MAX_WINDOW);
    let sent = |bytes: &[u8]| {
        let mut client = settings();
        client.send(bytes).expect("send");
        client
    };
    let whole = get(1, object, END_HEADERS | END_STREAM);
    let clients = [
        ("no preface", Client::connect(addr)),
        ("SETTINGS only", settings()),
        ("half a HEADERS frame", sent(&whole[..15])),
        ("no END_HEADERS", sent(&get(1, object, END_STREAM))),
        ("idle after a request", sent(&whole)),
        (
            "no END_HEADERS after a request",
            sent(&[whole.clone(), get(3, object, END_STREAM)].concat()),
        ),
    ];
    for (what, mut client) in clients {
        let codes = client.goaways();
        // A client that has not spoken HTTP/2 gets no GOAWAY.
        if what == "no preface" {
            assert!(codes.is_empty(), "{what}: {codes:?}");
        } else {
            assert!(!codes.is_empty(), "{what}");
        }
        assert!(
            codes.iter().all(|code| *code == NO_ERROR),
            "{what}: {codes:?}"
        );
    }

    // The end of this request never comes, which concerns its stream only.
    let mut client = sent(&get(1, object, END_HEADERS));
    assert_eq!(client.response(1).status, STATUS_400);
}

#[test]
fn who_does_not_read_holds_no_stop() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let mut proxy = proxy(&origin).grace_period("15s").start();
    // It is idle, and never acknowledges a GOAWAY.
    let mut idle = Client::open(proxy.https_addr(), MAX_WINDOW, MAX_WINDOW);
    idle.send(&get(1, "/assets/object", END_HEADERS | END_STREAM))
        .expect("ask");
    idle.response(1);
    let told = Instant::now();
    let stop = thread::spawn(move || proxy.stop_gracefully());
    let codes = idle.goaways();
    assert!(codes.contains(&NO_ERROR), "{codes:?}");
    // The connection ends before the process does.
    assert!(
        told.elapsed() < Duration::from_secs(12),
        "{:?}",
        told.elapsed()
    );
    assert!(stop.join().expect("a stop").success());
}

// --- floods ---

#[test]
fn floods_of_control_frames_are_ended() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let proxy = proxy(&origin).start();
    let url = format!("https://{}/assets/object", proxy.https_addr());
    let good = https_client(HttpVersion::Http2);
    good.get(&url).send().expect("get");
    for (what, bytes) in [
        ("PRIORITY", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 16])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PING answers", frame(PING, ACK, 0, &[0; 8])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown frames", frame(0xfa, 0, 0, &[0; 8])),
    ] {
        let mut client = Client::open(proxy.https_addr(), 65_535, 65_535);
        let mut sent = 0;
        // The client reads nothing, so its frames are soon refused.
        let begun = Instant::now();
        while client.send(&bytes.repeat(100)).is_ok() {
            sent += 100;
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: {sent} frames were taken"
            );
        }
        let answer = good.get(&url).send().expect("get");
        assert_eq!(answer.status(), 200, "{what}");
    }

    // A client that stops in time is told why.
    let mut client = Client::open(proxy.https_addr(), 65_535, 65_535);
    client
        .send(&frame(PING, 0, 0, &[0; 8]).repeat(1100))
        .expect("send");
    assert_eq!(client.goaways(), [ENHANCE_YOUR_CALM]);
}

#[test]
fn what_well_behaved_clients_send_is_no_flood() {
    const LEN: u64 = 20 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");
    let mut client = Client::open(proxy.https_addr(), 65_535, 65_535);
    // A tree of priorities, and some pings.
    for stream in (3..13).step_by(2) {
        client
            .send(&frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 16]))
            .expect("send");
    }
    client
        .send(&frame(PING, 0, 0, &[0; 8]).repeat(20))
        .expect("send");
    client
        .send(&get(1, "/assets/object", END_HEADERS | END_STREAM))
        .expect("ask");
    // Each piece is acknowledged in parts, for the stream and the connection.
    let mut received = 0;
    while received < LEN {
        let frame_ = client.receive().expect("a frame");
        if !frame_.is(DATA, 1) {
            continue;
        }
        received += frame_.payload.len() as u64;
        let mut left = frame_.payload.len() as u32;
        while left > 0 {
            let part = left.min(2048);
            left -= part;
            let part = part.to_be_bytes();
            let updates = [
                frame(WINDOW_UPDATE, 0, 0, &part),
                frame(WINDOW_UPDATE, 0, 1, &part),
            ];
            client.send(&updates.concat()).expect("open the windows");
        }
    }
    assert_eq!(received, LEN);
}

#[test]
fn a_client_may_read_much_before_it_opens_its_windows() {
    const LEN: u64 = 20 * MIB;
    const WINDOW: u32 = 4 << 20;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).start();
    proxy.get("/assets/object");
    let mut client = Client::open(proxy.https_addr(), WINDOW, WINDOW);
    client
        .send(&get(1, "/assets/object", END_HEADERS | END_STREAM))
        .expect("ask");
    let part = 512_u32.to_be_bytes();
    let updates = [
        frame(WINDOW_UPDATE, 0, 0, &part),
        frame(WINDOW_UPDATE, 0, 1, &part),
    ];
    let updates = updates.concat();
    let (mut received, mut told) = (0, 0);
    while received < LEN {
        let frame = client.receive().expect("a frame");
        if frame.is(DATA, 1) {
            received += frame.payload.len() as u64;
        }
        if received == LEN || received - told == u64::from(WINDOW) {
            let parts = (received - told) / 512;
            told = received;
            let _ = client.send(&updates.repeat(parts as usize));
        }
    }
    assert_eq!(received, LEN);
}

// --- the limits of `server.http2` ---

#[test]
fn streams_beyond_the_limit_are_refused() {
    let origin = Origin::start(|_| Reply::pattern(1, 100_000));
    let proxy = proxy(&origin)
        .max_request_head_bytes(2048)
        .http2("{max_streams: 3}")
        .start();
    proxy.get("/assets/object");

    let mut client = Client::open(proxy.https_addr(), 0, MAX_WINDOW);
    assert_eq!(client.setting(MAX_CONCURRENT_STREAMS), Some(3));
    let mut other = Client::open(proxy.https_addr(), 0, MAX_WINDOW);
    assert_eq!(other.setting(MAX_HEADER_LIST_SIZE), Some(2048));

    // The windows are shut: three responses wait for the client.
    for stream in [1, 3, 5, 7] {
        let ask = get(stream, "/assets/object", END_HEADERS | END_STREAM);
        client.send(&ask).expect("ask");
    }
    assert_eq!(client.response(7).reset, Some(REFUSED_STREAM));
    // A client that makes room may ask again.
    client.send(&reset(1, CANCEL)).expect("reset");
    client
        .send(&get(9, "/assets/small", END_HEADERS | END_STREAM))
        .expect("ask");
    client
        .send(&frame(WINDOW_UPDATE, 0, 9, &100_000_u32.to_be_bytes()))
        .expect("open the window");
    let response = client.response(9);
    assert_eq!(
        (response.status, response.body.len()),
        (STATUS_200, 100_000)
    );
}

#[test]
fn requests_that_are_reset_at_once_end_the_connection() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let few = proxy(&origin).start();
    let many = proxy(&origin).http2("{max_pending_resets: 200}").start();
    let pairs = |count| {
        let pair = |n: u32| {
            let ask = get(2 * n + 1, "/assets/object", END_HEADERS | END_STREAM);
            [ask, reset(2 * n + 1, CANCEL)].concat()
        };
        (0..count).flat_map(pair).collect::<Vec<u8>>()
    };
    // The default is 20.
    let mut client = Client::open(few.https_addr(), 65_535, 65_535);
    client.send(&pairs(60)).expect("send");
    assert_eq!(client.goaways(), [ENHANCE_YOUR_CALM]);

    let mut client = Client::open(many.https_addr(), 65_535, 65_535);
    client.send(&pairs(60)).expect("send");
    let ask = get(999, "/assets/object", END_HEADERS | END_STREAM);
    client.send(&ask).expect("ask");
    assert_eq!(client.response(999).status, STATUS_200);
}

#[test]
fn requests_that_break_the_protocol_end_the_connection() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let proxy = proxy(&origin).http2("{max_error_resets: 3}").start();
    proxy.get("/assets/object");
    let mut client = Client::open(proxy.https_addr(), 65_535, 65_535);
    for n in 0..3 {
        client.send(&with_connection_field(2 * n + 1)).expect("ask");
        assert_eq!(client.response(2 * n + 1).reset, Some(PROTOCOL_ERROR));
    }
    client
        .send(&get(7, "/assets/object", END_HEADERS | END_STREAM))
        .expect("ask");
    assert_eq!(client.response(7).status, STATUS_200);
    client.send(&with_connection_field(9)).expect("ask");
    assert_eq!(client.goaways(), [ENHANCE_YOUR_CALM]);
}

#[test]
fn continuation_frames_are_as_many_as_a_head_needs() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let proxy = proxy(&origin).max_request_head_bytes(2048).start();
    let mut client = Client::open(proxy.https_addr(), 65_535, 65_535);
    client
        .send(&get(1, "/assets/object", END_STREAM))
        .expect("ask");
    // A field in each, which the head has room for.
    let field = frame(CONTINUATION, 0, 1, &[0x00, 1, b'a', 0]);
    client.send(&field.repeat(30)).expect("send");
    assert_eq!(client.goaways(), [ENHANCE_YOUR_CALM]);

    let mut client = Client::open(proxy.https_addr(), 65_535, 65_535);
    client
        .send(&get(1, "/assets/object", END_STREAM))
        .expect("ask");
    client.send(&field.repeat(3)).expect("send");
    client
        .send(&frame(CONTINUATION, END_HEADERS, 1, &[]))
        .expect("send");
    assert_eq!(client.response(1).status, STATUS_200);
}

#[test]
fn control_frames_are_limited_as_configured() {
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let strict = proxy(&origin)
        .http2("{control_frames_per_second: 1}")
        .start();
    let lax = proxy(&origin)
        .http2("{control_frames_per_second: 0}")
        .start();
    let pings = |count| frame(PING, 0, 0, &[0; 8]).repeat(count);

    let mut client = Client::open(strict.https_addr(), 65_535, 65_535);
    client.send(&pings(200)).expect("send");
    assert_eq!(client.goaways(), [ENHANCE_YOUR_CALM]);

    let mut client = Client::open(lax.https_addr(), 65_535, 65_535);
    client.send(&pings(3000)).expect("send");
    let ask = get(1, "/assets/object", END_HEADERS | END_STREAM);
    client.send(&ask).expect("ask");
    assert_eq!(client.response(1).status, STATUS_200);
}
