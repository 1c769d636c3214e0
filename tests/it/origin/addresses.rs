//! An origin whose name has several addresses, of which some are dead.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc,
    },
    thread,
};

use crate::builder;
use tempfile::TempDir;
use test_support::{eventually, skip, Bucket};

/// Runs the remaining arguments with another /etc/hosts, in a mount namespace of its own.
const WITH_HOSTS: &str = r#"mount --bind "$0" /etc/hosts && exec "$@""#;

#[test]
fn an_address_that_refuses_is_no_obstacle() {
    let dir = TempDir::new().expect("make a folder");
    for (dead, alive) in [("::1", "127.0.0.1"), ("127.0.0.1", "::1")] {
        let origin = Origin::start(alive);
        let hosts = dir.path().join("hosts");
        fs::write(&hosts, format!("{dead} two.test\n{alive} two.test\n")).expect("write hosts");
        let hosts = hosts.display().to_string();
        let mut proxy = builder()
            .bucket(
                Bucket::new("/assets", "bucket")
                    .endpoint(format!("http://two.test:{}", origin.port)),
            )
            .without_cache()
            .start();
        if !proxy.restart_under(&["unshare", "--mount", "sh", "-c", WITH_HOSTS, &hosts]) {
            return skip("only root can give a process another /etc/hosts");
        }
        for number in 0..20 {
            let response = proxy.get("/assets/a");
            assert_eq!(
                response.status,
                200,
                "{alive}, {number}: {}",
                proxy.stderr()
            );
            assert_eq!(response.body, b"hello");
        }
        // The dead address is tried once at most, and connections are reused.
        let retried = proxy.stderr().matches("tries: 1, retry: true").count();
        assert!(retried <= 1, "{}", proxy.stderr());
        assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn where_all_addresses_refuse_each_is_tried_once() {
    let dir = TempDir::new().expect("make a folder");
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, "::1 two.test\n127.0.0.1 two.test\n").expect("write hosts");
    let hosts = hosts.display().to_string();
    let port = Origin::unused_port();
    let mut proxy = builder()
        .bucket(
            Bucket::new("/assets", "bucket")
                .endpoint(format!("http://two.test:{port}"))
                .set("retries", 0),
        )
        .without_cache()
        .start();
    if !proxy.restart_under(&["unshare", "--mount", "sh", "-c", WITH_HOSTS, &hosts]) {
        return skip("only root can give a process another /etc/hosts");
    }
    assert_eq!(proxy.get("/assets/a").status, 502);
    eventually("the last attempt is in the log", || {
        proxy.stderr().contains("tries: 2, retry: false")
    });
    let log = proxy.stderr();
    assert_eq!(log.matches("tries: 1, retry: true").count(), 1, "{log}");
}

#[test]
fn the_last_of_many_addresses_is_found() {
    let dir = TempDir::new().expect("make a folder");
    let hosts = dir.path().join("hosts");
    // The system may answer in any order.
    let origins: Vec<_> = (2..=9)
        .map(|last| format!("127.0.0.{last} many.test\n"))
        .collect();
    let origin = Origin::start("127.0.0.9");
    fs::write(&hosts, origins.concat()).expect("write hosts");
    let mut proxy = builder()
        .bucket(
            Bucket::new("/assets", "bucket").endpoint(format!("http://many.test:{}", origin.port)),
        )
        .without_cache()
        .start();
    let hosts = hosts.display().to_string();
    if !proxy.restart_under(&["unshare", "--mount", "sh", "-c", WITH_HOSTS, &hosts]) {
        return skip("only root can give a process another /etc/hosts");
    }
    for _ in 0..2 {
        let response = proxy.get("/assets/a");
        assert_eq!(response.status, 200, "{}", proxy.stderr());
    }
    let log = proxy.stderr();
    let retried = log.matches("retry: true").count();
    assert!(retried <= 7, "{log}");
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_name_that_moves_is_followed_and_one_that_is_lost_keeps_its_address() {
    let dir = TempDir::new().expect("make a folder");
    let hosts = dir.path().join("hosts");
    let old = Origin::start("127.0.0.2");
    let new = Origin::start_at("127.0.0.3", old.port);
    fs::write(&hosts, "127.0.0.2 moving.test\n").expect("write hosts");
    let mut proxy = builder()
        .bucket(
            Bucket::new("/assets", "bucket").endpoint(format!("http://moving.test:{}", old.port)),
        )
        .without_cache()
        .start();
    let path = hosts.display().to_string();
    if !proxy.restart_under(&["unshare", "--mount", "sh", "-c", WITH_HOSTS, &path]) {
        return skip("only root can give a process another /etc/hosts");
    }
    assert_eq!(proxy.get("/assets/a").status, 200);
    // The file that is mounted is written to, not replaced.
    fs::write(&hosts, "127.0.0.3 moving.test\n").expect("write hosts");
    eventually("the new address is asked", || {
        assert_eq!(proxy.get("/assets/a").status, 200);
        new.connections.load(Ordering::SeqCst) > 0
    });
    fs::write(&hosts, "").expect("write hosts");
    eventually("the log names the host that is lost", || {
        assert_eq!(proxy.get("/assets/a").status, 200);
        let log = proxy.stderr();
        log.lines().any(|line| {
            line.contains("moving.test: ")
                && line.contains("the addresses of an earlier lookup are used")
        })
    });
}

#[test]
fn a_name_that_is_not_found_is_an_error_of_the_origin() {
    let proxy = builder()
        .bucket(Bucket::new("/assets", "bucket").endpoint("http://nowhere.invalid:9000"))
        .start();
    assert_eq!(proxy.get("/assets/a").status, 502);
    let upstream = [("source", "upstream")];
    proxy.expect_metric_where("response_errors_total", &upstream, 1);
    // The alert on an origin that is down takes both for its share.
    assert_eq!(proxy.metric("cache_misses_total"), 0);
}

/// An origin at an address that the test chooses.
struct Origin {
    port: u16,
    connections: Arc<AtomicUsize>,
}

// === impl Origin ===

impl Origin {
    fn start(address: &str) -> Self {
        Self::start_at(address, 0)
    }

    fn start_at(address: &str, port: u16) -> Self {
        let address = SocketAddr::new(address.parse().expect("an address"), port);
        let listener = TcpListener::bind(address).expect("listen");
        let port = listener.local_addr().expect("its address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                counted.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    let mut request = [0; 4096];
                    // Each request fits into one read.
                    while let Ok(1..) = stream.read(&mut request) {
                        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                        if stream.write_all(response).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, connections }
    }

    /// A port where nobody listens any more.
    fn unused_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        listener.local_addr().expect("its address").port()
    }
}
