//! Strangers at the TLS listener.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use tempfile::TempDir;
use test_support::Proxy;

use super::client::{socket, Client};
use super::{lines_with, localhost, origin};

const FAILURES: &str = "tls_handshake_failures_total";

/// The first flight of a client that asks for a name.
fn client_hello(name: &str) -> Vec<u8> {
    let mut session = Client::any().session(name);
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("a ClientHello");
    hello
}

/// Sends bytes, and waits until the proxy has closed the connection.
fn send_and_wait(proxy: &Proxy, bytes: &[u8]) {
    let mut socket = socket(proxy.https_addr());
    // The proxy may have closed already.
    let _ = socket.write_all(bytes);
    let _ = socket.read_to_end(&mut Vec::new());
}

/// The proxy still serves, and has logged nothing of strangers.
fn expect_unharmed(proxy: &Proxy) {
    let status = Client::any().status(proxy.https_addr(), "localhost");
    assert_eq!(status.expect("a response"), 200);
    for word in ["andshake", "rustls", "panic"] {
        assert_eq!(lines_with(proxy, word), 0, "{}", proxy.stderr());
    }
}

#[test]
fn garbage_is_refused_counted_and_not_logged() {
    const EACH: u64 = 20;
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let proxy = localhost(&origin, dir.path()).0.start();
    let mut too_long = client_hello("localhost");
    // A record of more than 2^14 bytes (RFC 8446 §5.1).
    too_long[3..5].copy_from_slice(&[0xff, 0xff]);
    too_long.resize(70_000, 0);
    let mut truncated = client_hello("localhost");
    // A ClientHello whose inner length is one byte short.
    truncated[8] -= 1;
    let all = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0; 1000],
        vec![0xff; 100_000],
        // An alert, and application data, before any handshake.
        b"\x15\x03\x03\0\x02\x02\x28".to_vec(),
        b"\x17\x03\x03\0\x05hello".to_vec(),
        // Nothing but empty records.
        b"\x16\x03\x01\0\0".repeat(1000),
        too_long,
        truncated,
    ];
    for bytes in &all {
        for _ in 0..EACH {
            send_and_wait(&proxy, bytes);
        }
    }
    proxy.expect_metric(FAILURES, EACH * all.len() as u64);
    expect_unharmed(&proxy);
}

/// `client_hello` with other bytes in place of the name.
fn hello_for(name: &[u8]) -> Vec<u8> {
    let stand_in = "a".repeat(name.len());
    let mut hello = client_hello(&stand_in);
    let at = hello
        .windows(name.len())
        .position(|part| part == stand_in.as_bytes());
    let at = at.expect("the name");
    hello[at..at + name.len()].copy_from_slice(name);
    hello
}

#[test]
fn nonsense_names_do_no_harm() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let proxy = localhost(&origin, dir.path()).0.start();
    for name in [
        &b"a..b"[..],
        b"*.example",
        b"..",
        b"-----",
        b"nul\0byte",
        b"\xff\xfe\xfd\xfc",
        b"127.0.0.1",
        b"../../etc/passwd",
        b"%s%s%n%n",
        b"localhost:443",
        b"xn--\x80\x80",
    ] {
        let mut socket = socket(proxy.https_addr());
        socket.write_all(&hello_for(name)).expect("send");
        socket.shutdown(Shutdown::Write).expect("close");
        // An alert, or a ServerHello with the default certificate; never silence.
        let mut first = [0];
        socket.read_exact(&mut first).expect("an answer");
        assert!(matches!(first[0], 0x15 | 0x16), "{name:?}: {first:?}");
    }
    expect_unharmed(&proxy);
}

#[test]
fn neither_names_nor_failed_handshakes_accumulate() {
    const HANDSHAKES: usize = 300;
    const KEPT: u64 = 4 << 20;
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let proxy = localhost(&origin, dir.path()).0.start();
    let client = Client::any();
    let round = |round: &str| {
        for number in 0..HANDSHAKES {
            let name = format!("name-{round}-{number}.{}.example", "a".repeat(60));
            client
                .connect(proxy.https_addr(), &name)
                .expect("a handshake");
            send_and_wait(&proxy, b"no handshake at all");
        }
        proxy.rss_bytes()
    };
    let warm = round("warm");
    let after = (0..3).map(|number| round(&number.to_string())).max();
    let after = after.expect("rounds");
    assert!(after < warm + KEPT, "{warm} bytes have become {after}");
    proxy.expect_metric_where(FAILURES, &[("reason", "protocol")], 4 * HANDSHAKES as u64);
    expect_unharmed(&proxy);
}

#[test]
fn half_open_handshakes_hold_little_and_end() {
    const CLIENTS: usize = 200;
    const EACH: u64 = 64 << 10;
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let builder = localhost(&origin, dir.path()).0;
    let proxy = builder.handshake_timeout("2s").start();
    expect_unharmed(&proxy);
    let before = proxy.rss_bytes();
    proxy.reset_peak_rss();
    let hello = client_hello("localhost");
    let halves: Vec<TcpStream> = (0..CLIENTS)
        .map(|number| {
            let mut socket = socket(proxy.https_addr());
            let sent = match number % 3 {
                0 => 0,
                1 => hello.len() / 2,
                // All of it; the answer is never read.
                _ => hello.len(),
            };
            socket.write_all(&hello[..sent]).expect("send");
            socket
        })
        .collect();
    for mut half in halves {
        half.read_to_end(&mut Vec::new())
            .expect("closed by the proxy");
    }
    proxy.expect_metric_where(FAILURES, &[("reason", "timeout")], CLIENTS as u64);
    let held = proxy.peak_rss_bytes().saturating_sub(before) / CLIENTS as u64;
    assert!(held < EACH, "{held} bytes for each client");
    expect_unharmed(&proxy);
}
