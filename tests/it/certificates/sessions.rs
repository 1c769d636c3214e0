//! Sessions that clients resume.

use rustix::process::Signal;
use rustls::version::{TLS12, TLS13};
use rustls::ProtocolVersion;
use tempfile::TempDir;
use test_support::{eventually, Authority};

use super::client::{Choices, Client};
use super::{https, localhost, origin};

#[test]
fn a_client_resumes_its_session_also_with_a_new_certificate() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let (builder, authority) = localhost(&origin, dir.path());
    let proxy = builder.start();
    let addr = proxy.https_addr();
    let clients = [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ]
    .map(|(only, version)| {
        let choices = Choices {
            trusts: Some(&authority),
            only: Some(only),
            ..Choices::default()
        };
        (Client::new(choices), version)
    });
    let connect = |client: &Client, version| {
        let mut tls = client.connect(addr, "localhost").expect("a handshake");
        assert_eq!(tls.version(), version);
        // Tickets of TLS 1.3 arrive with the first response.
        assert_eq!(tls.get("/assets/1").expect("a response").0, 200);
        tls.is_resumed()
    };
    for (client, version) in &clients {
        assert!(!connect(client, *version), "{version:?}");
        assert!(connect(client, *version), "{version:?}");
    }

    authority
        .issue(&["localhost"])
        .write_to(dir.path(), "server");
    proxy.signal(Signal::HUP);
    proxy.expect_metric("tls_reloads_total", 1);
    for (client, version) in &clients {
        assert!(connect(client, *version), "{version:?}");
    }
}

#[test]
fn a_session_ends_with_the_authority_of_its_client() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let [old, new] = ["old", "new"].map(Authority::new);
    let ca = dir.path().join("clients.pem");
    std::fs::write(&ca, old.pem()).expect("write the authority");
    let (builder, _) = localhost(&origin, dir.path());
    let proxy = builder.tls_key("client_ca", ca.display()).start();
    let addr = proxy.https_addr();
    let (former, present) = (old.issue(&["client"]), new.issue(&["client"]));
    for only in [&TLS12, &TLS13] {
        let choices = |identity| Choices {
            identity: Some(identity),
            only: Some(only),
            ..Choices::default()
        };
        std::fs::write(&ca, old.pem()).expect("write the authority");
        proxy.signal(Signal::HUP);
        let client = Client::new(choices(&former));
        eventually("the old authority decides", || {
            client.status(addr, "localhost").is_ok()
        });
        let mut tls = client.connect(addr, "localhost").expect("a handshake");
        assert!(tls.is_resumed());
        assert_eq!(tls.get("/assets/1").expect("a response").0, 200);

        std::fs::write(&ca, new.pem()).expect("write the authority");
        proxy.signal(Signal::HUP);
        let other = Client::new(choices(&present));
        eventually("the new authority decides", || {
            other.status(addr, "localhost").is_ok()
        });
        client
            .status(addr, "localhost")
            .expect_err("the authority of the session is not trusted any more");
        // The open connection was accepted before.
        assert_eq!(tls.get("/assets/1").expect("a response").0, 200);
    }
}

#[test]
fn another_process_resumes_no_session() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let authority = Authority::new("of servers");
    let (certificate, key) = authority
        .issue(&["localhost"])
        .write_to(dir.path(), "server");
    let start = || https(&origin).tls_with(&certificate, &key).start();
    let (first, second) = (start(), start());
    let client = Client::any();
    assert_eq!(
        client.status(first.https_addr(), "localhost").ok(),
        Some(200)
    );
    let tls = client.connect(second.https_addr(), "localhost");
    assert!(!tls.expect("a handshake").is_resumed());
}
