//! A new process takes over from the one that serves, and nobody notices.

use std::{
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
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let mut connection = Connection::open(addr);
                        let hit = connection.begin("GET", "/assets/1", &[]);
                        assert_eq!(hit.status, 200);
                        let body = hit.check(Pattern::new(1), 0);
                        assert!(body.complete);
                        assert_eq!(body.len, LEN);
                        asked.fetch_add(1, Ordering::Relaxed);
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
