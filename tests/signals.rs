//! Signals that mean something to other servers do not end this one.

use rustix::process::Signal;
use test_support::{eventually, Bucket, Connection, Origin, Proxy, Reply};

#[test]
fn a_signal_without_a_meaning_ends_neither_the_proxy_nor_a_transfer() {
    const LEN: u64 = 8 << 20;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = Proxy::builder(env!("CARGO_BIN_EXE_s3-proxy"))
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
    let rest = transfer.check(test_support::Pattern::new(1), begun);
    assert!(rest.complete);
    // A signal may end a process at any later time. The log line shows that this one has
    // arrived.
    eventually("SIGHUP is logged", || {
        proxy.stderr().contains("SIGHUP is ignored")
    });
    assert_eq!(proxy.stderr().matches("SIGHUP").count(), 1);
    assert_eq!(proxy.get("/assets/2").header("x-cache"), Some("HIT"));
}
