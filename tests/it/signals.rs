//! Signals that end the proxy, and those that mean something to other servers only.

use std::net::TcpStream;

use crate::builder;
use rustix::process::Signal;
use test_support::{
    eventually, Bucket, Connection, Gate, Origin, Pattern, Proxy, ProxyBuilder, Reply,
};

/// A proxy whose grace period outlasts each test.
fn patient(origin: &Origin) -> ProxyBuilder {
    builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .grace_period("1h")
}

/// Sends SIGTERM, and waits until no more clients are accepted.
fn terminate(proxy: &Proxy) {
    proxy.signal(Signal::TERM);
    eventually("new clients are refused", || {
        TcpStream::connect(proxy.addr()).is_err()
    });
}

#[test]
fn clients_that_ask_for_nothing_hold_no_stop() {
    let origin = Origin::start(|_| Reply::bytes("an object"));
    let mut proxy = patient(&origin)
        .tls()
        .handshake_timeout("1h")
        .keepalive_timeout("1h")
        .request_head_timeout("1h")
        .admin()
        .start();
    let listeners = [
        proxy.addr(),
        proxy.https_addr(),
        proxy.metrics_addr(),
        proxy.admin_addr(),
    ];
    let silent: Vec<_> = listeners
        .into_iter()
        .map(|addr| TcpStream::connect(addr).expect("connect"))
        .collect();
    let mut unfinished = Connection::open(proxy.addr());
    unfinished
        .send_raw(b"GET /assets/1 HTTP/1.1\r\nHost: a\r\n")
        .expect("send half a head");
    let mut idle = Connection::open(proxy.addr());
    assert_eq!(idle.get("/assets/1").status, 200);
    let mut operator = Connection::open(proxy.metrics_addr());
    assert_eq!(operator.get("/metrics").status, 200);

    assert!(proxy.stop_gracefully().success());
    drop((silent, unfinished, idle, operator));
}

#[test]
fn a_stop_waits_for_a_transfer_and_no_longer() {
    const LEN: u64 = 32 << 20;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let mut proxy = patient(&origin).start();
    assert_eq!(proxy.get("/assets/1").status, 200);
    let mut client = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut hit = client.begin("GET", "/assets/1", &[]);
    let begun = hit.read_some(1000).len() as u64;
    terminate(&proxy);
    let rest = hit.check(Pattern::new(1), begun);
    assert!(rest.complete);
    assert_eq!(begun + rest.len, LEN);
    assert!(proxy.wait_for_end().success());
}

#[test]
fn another_signal_gives_up_what_a_stop_waits_for() {
    for signal in [Signal::TERM, Signal::INT] {
        let gate = Gate::new();
        let held = gate.clone();
        let origin = Origin::start(move |_| Reply::pattern(1, 1 << 20).hold_at(1 << 19, &held));
        let mut proxy = patient(&origin).start();
        let mut client = Connection::open(proxy.addr());
        let mut transfer = client.begin("GET", "/assets/1", &[]);
        transfer.read_some(1000);
        terminate(&proxy);
        // SIGQUIT finds nobody to hand over to.
        proxy.signal(Signal::QUIT);
        proxy.signal(signal);
        assert!(proxy.wait_for_end().success(), "{signal:?}");
        assert!(!transfer.finish().complete, "{signal:?}");
        gate.open();
    }
}

#[test]
fn a_signal_without_a_meaning_ends_neither_the_proxy_nor_a_transfer() {
    const LEN: u64 = 8 << 20;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/assets", "bucket"))
        .start();
    let mut slow = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut transfer = slow.begin("GET", "/assets/1", &[]);
    let begun = transfer.read_some(1000).len() as u64;
    for signal in [
        Signal::HUP,
        Signal::USR1,
        Signal::USR2,
        Signal::PIPE,
        Signal::XFSZ,
    ] {
        proxy.signal(signal);
        let response = proxy.get("/assets/2");
        assert_eq!(response.status, 200, "{signal:?}");
        assert_eq!(response.body.len() as u64, LEN, "{signal:?}");
    }
    let rest = transfer.check(Pattern::new(1), begun);
    assert!(rest.complete);
    // A signal may end a process at any later time. The log line shows that this one has
    // arrived.
    eventually("SIGHUP is logged", || {
        let done = "use the configuration that the file holds now";
        proxy.stderr().contains(done)
    });
    assert_eq!(proxy.stderr().matches("SIGHUP").count(), 1);
    assert_eq!(proxy.get("/assets/2").header("x-cache"), Some("HIT"));
}
