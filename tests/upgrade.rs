//! A new process takes over from the one that serves, and nobody notices.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use test_support::{
    eventually, request, Bucket, Connection, Origin, Pattern, Proxy, ProxyBuilder, Reply,
};

const LEN: u64 = 300_000;

#[test]
fn no_request_fails_while_a_new_process_takes_over() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    assert_eq!(ask(&proxy, "/assets/1"), "MISS");
    let (old, addr, metrics) = (proxy.pid(), proxy.addr(), proxy.metrics_addr());

    let asked = AtomicUsize::new(0);
    let unanswered = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        match get_once(addr) {
                            // Pingora closes connections on which no request has
                            // been read yet: a client asks again, as it would
                            // on an idle connection (RFC 9112, section 9.3.1).
                            None => unanswered.fetch_add(1, Ordering::Relaxed),
                            Some(response) => {
                                assert!(response.starts_with(b"HTTP/1.1 200"));
                                let body = &response[response.len() - LEN as usize..];
                                Pattern::new(1).check(0, body);
                                asked.fetch_add(1, Ordering::Relaxed)
                            }
                        };
                    }
                })
            })
            .collect();
        let ended = proxy.upgrade().wait();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no request fails");
        }
        assert!(ended.success(), "{ended}");
    });
    assert!(asked.load(Ordering::Relaxed) > 100);
    // One a client at most, in the instant when the old process ends.
    assert!(unanswered.load(Ordering::Relaxed) <= 2);

    assert_ne!(proxy.pid(), old);
    assert_eq!(proxy.addr(), addr);
    assert_eq!(proxy.metrics_addr(), metrics);
    assert_eq!(ask(&proxy, "/assets/1"), "HIT");
    assert_eq!(origin.requests_for("/bucket/1"), 1);
}

#[test]
fn the_new_process_has_the_cache_to_itself_once_the_old_one_has_ended() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    assert!(proxy.upgrade().wait().success());

    eventually("the new process stores what it fetches", || {
        ask(&proxy, "/assets/2") == "HIT"
    });
    let purged = request(proxy.admin_addr(), "PURGE", "/assets/2", &[]);
    assert_eq!(purged.status, 200);
    assert_eq!(ask(&proxy, "/assets/2"), "MISS");
}

#[test]
fn a_download_that_runs_is_finished_by_the_old_process() {
    const LEN: u64 = 32 * 1024 * 1024;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let mut proxy = proxy(&origin).start();
    ask(&proxy, "/assets/1");

    let mut connection = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut hit = connection.begin("GET", "/assets/1", &[]);
    Pattern::new(1).check(0, &hit.read_some(1000));
    let old = proxy.upgrade();
    let rest = hit.check(Pattern::new(1), 1000);
    assert!(rest.complete);
    assert_eq!(1000 + rest.len, LEN);
    assert!(old.wait().success());
}

#[test]
fn a_listener_whose_port_the_kernel_chose_can_not_be_taken_over() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    proxy.stop_gracefully();
    let output = proxy.s3_proxy(&["run", "--upgrade"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("server.address: "), "{said}");
    assert!(said.contains("port 0"), "{said}");
}

fn origin() -> Origin {
    Origin::start(|request| {
        let number = request.path().rsplit('/').next();
        let seed = number.and_then(|number| number.parse().ok());
        Reply::pattern(seed.unwrap_or_default(), LEN)
    })
}

fn proxy(origin: &Origin) -> ProxyBuilder {
    Proxy::builder(env!("CARGO_BIN_EXE_s3-proxy"))
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .grace_period("1s")
        .admin()
        .upgradable()
}

/// What X-Cache says.
fn ask(proxy: &Proxy, path: &str) -> String {
    let response = proxy.get(path);
    assert_eq!(response.status, 200, "{path}");
    assert!(response.complete, "{path}");
    let said = response.header("x-cache").expect("X-Cache");
    said.to_owned()
}

/// Asks on a connection of its own. `None`: it was closed without an answer.
fn get_once(addr: SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).expect("somebody always listens");
    let request = "GET /assets/1 HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n";
    let mut response = Vec::new();
    let sent = stream.write_all(request.as_bytes());
    let read = sent.and_then(|()| stream.read_to_end(&mut response));
    if response.is_empty() {
        return None;
    }
    read.expect("read the response");
    Some(response)
}
