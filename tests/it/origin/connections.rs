//! Connections to the origin: its certificate, and the time that it may take.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::builder;
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use test_support::{Bucket, Gate, Origin, Reply, SelfSigned};

#[test]
fn a_certificate_is_checked_against_the_authorities_of_the_bucket() {
    let dir = TempDir::new().expect("make a folder");
    let ours = SelfSigned::write_to(&folder(&dir, "ours"));
    let others = SelfSigned::write_to(&folder(&dir, "others"));
    let address = serve_tls(&ours);
    let endpoint = format!("https://127.0.0.1:{}", address.port());
    let bucket = |prefix: &str| {
        let path = format!("/{prefix}");
        Bucket::new(&path, "bucket").endpoint(endpoint.clone())
    };
    let file = |file: &Path| format!("'{}'", file.display());
    // Those that must fail come last: none of them may use a connection of the others.
    let proxy = builder()
        .bucket(bucket("ours").set("ca_file", file(&ours.certificate)))
        .bucket(bucket("any").set("tls_verify", "none"))
        .bucket(
            bucket("any-name")
                .set("ca_file", file(&ours.certificate))
                .set("tls_name", "elsewhere.example")
                .set("tls_verify", "ca"),
        )
        .bucket(
            bucket("by-name")
                .set("ca_file", file(&ours.certificate))
                .set("tls_name", "localhost"),
        )
        .bucket(bucket("system"))
        .bucket(bucket("others").set("ca_file", file(&others.certificate)))
        .bucket(
            bucket("other-name")
                .set("ca_file", file(&ours.certificate))
                .set("tls_name", "elsewhere.example"),
        )
        .bucket(
            bucket("others-any-name")
                .set("ca_file", file(&others.certificate))
                .set("tls_verify", "ca"),
        )
        .without_cache()
        .start();
    for (bucket, status) in [
        ("ours", 200),
        ("any", 200),
        ("any-name", 200),
        ("by-name", 200),
        ("system", 502),
        ("others", 502),
        ("other-name", 502),
        ("others-any-name", 502),
    ] {
        let response = proxy.get(&format!("/{bucket}/a"));
        assert_eq!(response.status, status, "{bucket}: {}", proxy.stderr());
    }
}

#[test]
fn a_file_without_authorities_is_refused_at_the_start() {
    let dir = TempDir::new().expect("make a folder");
    let ours = SelfSigned::write_to(dir.path());
    let mut proxy = builder()
        .bucket(
            Bucket::new("/assets", "bucket")
                .set("ca_file", format!("'{}'", ours.certificate.display())),
        )
        .start();
    proxy.kill();
    std::fs::copy(&ours.key, &ours.certificate).expect("copy the key");
    let output = proxy.s3_proxy(&["check"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("buckets[0].ca_file: "), "{said}");
    assert!(
        said.contains("PRIVATE KEY, not only certificates"),
        "{said}"
    );
}

#[test]
fn an_origin_that_does_not_begin_to_answer_is_given_up() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| {
            if request.path().ends_with("/hangs") {
                gate.pass();
            }
            // Longer than the first byte may take, but never long without a byte.
            Reply::pattern(1, 300_000).paced(200_000)
        }
    });
    let proxy = builder()
        .bucket(
            Bucket::at(&origin, "/assets", "bucket")
                .set("first_byte_timeout", "700ms")
                .set("read_timeout", "20s"),
        )
        .start();
    let begun = Instant::now();
    assert_eq!(proxy.get("/assets/hangs").status, 504);
    assert!(begun.elapsed() < Duration::from_secs(10));
    let slow = proxy.get("/assets/slow");
    assert_eq!((slow.status, slow.body.len()), (200, 300_000));
    gate.open();
}

#[test]
fn an_origin_that_stops_within_an_answer_is_given_up() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, 300_000).hold_at(100_000, &gate)
    });
    let proxy = builder()
        .bucket(
            Bucket::at(&origin, "/assets", "bucket")
                .set("first_byte_timeout", "20s")
                .set("read_timeout", "500ms"),
        )
        .start();
    let begun = Instant::now();
    let mut connection = test_support::Connection::open(proxy.addr());
    let mut received = 0;
    let transfer = connection
        .begin("GET", "/assets/a", &[])
        .stream(|_, bytes| received += bytes.len());
    assert!(!transfer.complete, "{received}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    gate.open();
}

#[test]
fn an_origin_that_takes_no_connection_is_given_up() {
    // The queue of a listener that accepts nothing is full after the first ones.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("bind");
    socket.listen(0).expect("listen");
    let address = socket.local_addr().expect("its address");
    let address = address.as_socket().expect("an address");
    let queue = Duration::from_millis(200);
    let queued: Vec<_> = (0..4)
        .map_while(|_| std::net::TcpStream::connect_timeout(&address, queue).ok())
        .collect();
    assert!(queued.len() < 4, "the queue is never full");
    let proxy = builder()
        .bucket(
            Bucket::new("/assets", "bucket")
                .endpoint(format!("http://{address}"))
                .set("connect_timeout", "300ms"),
        )
        .start();
    let begun = Instant::now();
    assert_eq!(proxy.get("/assets/a").status, 504);
    assert!(begun.elapsed() < Duration::from_secs(9));
}

fn folder(dir: &TempDir, name: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    std::fs::create_dir(&path).expect("make a folder");
    path
}

/// An HTTPS origin that answers each request with 200, until the test ends.
fn serve_tls(certificate: &SelfSigned) -> SocketAddr {
    let chain = CertificateDer::pem_file_iter(&certificate.certificate)
        .expect("read the certificate")
        .collect::<Result<_, _>>()
        .expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate with its key");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let config = config.clone();
            thread::spawn(move || {
                let tls = rustls::ServerConnection::new(config).expect("a TLS session");
                let mut stream = rustls::StreamOwned::new(tls, stream);
                let mut request = [0; 4096];
                // Each request fits into one read; a refused handshake is an error of it.
                while let Ok(1..) = stream.read(&mut request) {
                    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                    if stream.write_all(response).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
