//! Requirements on a client: its certificate, its version, its protocol.

use rustls::version::{TLS12, TLS13};
use rustls::ProtocolVersion;
use tempfile::TempDir;
use test_support::Authority;

use super::client::{Choices, Client};
use super::{lines_with, localhost, origin};

const FAILURES: &str = "tls_handshake_failures_total";

#[test]
fn a_client_without_a_certificate_of_the_authority_is_refused_and_counted() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let [trusted, other] = ["trusted", "other"].map(Authority::new);
    let ca = dir.path().join("clients.pem");
    std::fs::write(&ca, trusted.pem()).expect("write the authority");
    let (good, foreign) = (trusted.issue(&["client"]), other.issue(&["client"]));
    for is_optional in [false, true] {
        let (builder, _) = localhost(&origin, dir.path());
        let builder = builder.tls_key("client_ca", ca.display());
        let proxy = match is_optional {
            true => builder.tls_key("client_auth", "optional").start(),
            false => builder.start(),
        };
        let status = |identity, only| {
            let client = Client::new(Choices {
                identity,
                only: Some(only),
                ..Choices::default()
            });
            client.status(proxy.https_addr(), "localhost").ok()
        };
        for only in [&TLS12, &TLS13] {
            assert_eq!(status(Some(&good), only), Some(200));
            assert_eq!(status(Some(&foreign), only), None);
            assert_eq!(status(None, only), is_optional.then_some(200));
        }
        let missing = if is_optional { 0 } else { 2 };
        proxy.expect_metric_where(FAILURES, &[("reason", "certificate")], 2);
        proxy.expect_metric_where(FAILURES, &[("reason", "no_certificate")], missing);
        assert_eq!(lines_with(&proxy, "andshake"), 0, "{}", proxy.stderr());
    }
}

#[test]
fn versions_of_tls_below_the_lowest_are_refused() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let version = |proxy: &test_support::Proxy, only| {
        let client = Client::new(Choices {
            only: Some(only),
            ..Choices::default()
        });
        let tls = client.connect(proxy.https_addr(), "localhost").ok()?;
        Some(tls.version())
    };
    let (builder, _) = localhost(&origin, dir.path());
    let proxy = builder.start();
    assert_eq!(version(&proxy, &TLS12), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(version(&proxy, &TLS13), Some(ProtocolVersion::TLSv1_3));

    let (builder, _) = localhost(&origin, dir.path());
    let proxy = builder.tls_key("min_version", "1.3").start();
    assert_eq!(version(&proxy, &TLS12), None);
    assert_eq!(version(&proxy, &TLS13), Some(ProtocolVersion::TLSv1_3));
    proxy.expect_metric_where(FAILURES, &[("reason", "incompatible")], 1);
}

#[test]
fn http2_is_spoken_unless_the_configuration_forbids_it() {
    let dir = TempDir::new().expect("make a directory");
    let origin = origin();
    let client = Client::new(Choices {
        alpn: &["h2", "http/1.1"],
        ..Choices::default()
    });
    for (http2, expected) in [("true", "h2"), ("false", "http/1.1")] {
        let (builder, _) = localhost(&origin, dir.path());
        let proxy = builder.tls_key("http2", http2).start();
        let tls = client.connect(proxy.https_addr(), "localhost");
        let tls = tls.expect("a handshake");
        assert_eq!(tls.alpn(), Some(expected));
    }
}
