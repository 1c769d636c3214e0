//! Health and readiness, as load balancers and operators see them.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::http2::client::{
    get as get_frame, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, STATUS_200,
};
use crate::{builder, proxy, S3_PROXY};
use test_support::{
    eventually, get, request, Bucket, Connection, FaultyDisk, Gate, Op, Origin, Pattern, Proxy,
    ProxyBuilder, Reply,
};

const EIO: i32 = 5;

// --- readiness ---

#[test]
fn both_listeners_of_operators_tell_health_and_readiness() {
    let origin = Origin::scripted();
    let proxy = proxy(&origin).admin().start();
    for addr in [proxy.metrics_addr(), proxy.admin_addr()] {
        assert_eq!(answer(addr, "/health"), (200, "ok\n".into()));
        eventually("the cache is listed", || {
            answer(addr, "/ready") == (200, "ready\n".into())
        });
        let head = request(addr, "HEAD", "/ready", &[]);
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some("6"))
        );
        let posted = request(addr, "POST", "/ready", &[("X-Requested-With", "a")]);
        assert_eq!(posted.header("allow"), Some("GET, HEAD"));
    }
    let health = |arguments: &[&str]| proxy.s3_proxy(arguments).status.code();
    assert_eq!(health(&["health"]), Some(0));
    assert_eq!(health(&["health", "--ready"]), Some(0));
}

#[test]
fn health_is_asked_of_the_socket_where_there_are_no_metrics() {
    let origin = Origin::scripted();
    let mut proxy = proxy(&origin).admin_socket().start();
    proxy.edit_config(|yaml| yaml.replace("metrics:\n  address: '127.0.0.1:0'\n", ""));
    proxy.restart();
    for arguments in [&["health"][..], &["health", "--ready"]] {
        let asked = proxy.s3_proxy(arguments);
        assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    }
}

#[test]
fn a_probe_needs_no_token_and_a_name_is_refused_all_the_same() {
    let origin = Origin::scripted();
    let proxy = proxy(&origin)
        .admin()
        .admin_key("token", "a-token-that-is-long-enough")
        .start();
    for path in ["/health", "/ready"] {
        assert_eq!(answer(proxy.admin_addr(), path).0, 200, "{path}");
        let rebound = [("Host", "evil.test")];
        let refused = request(proxy.admin_addr(), "GET", path, &rebound);
        assert_eq!(refused.status, 403, "{path}");
    }
    let refused = request(proxy.admin_addr(), "DELETE", "/drain", &[]);
    assert_eq!(refused.status, 401);
}

#[test]
fn the_proxy_is_not_ready_while_the_cache_is_listed() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let mut proxy = on(&disk, &origin, "");
    proxy.get("/assets/1");
    proxy.expect_metric("cache_entries", 1);
    proxy.kill();

    disk.forget_pages();
    disk.delay(Op::Readdir, Duration::from_millis(200));
    proxy.restart();
    let (status, reason) = ready(&proxy);
    assert_eq!(status, 503, "{reason}");
    assert!(reason.starts_with("starting: "), "{reason}");
    // It serves nevertheless.
    assert_eq!(answer(proxy.metrics_addr(), "/health").0, 200);
    assert_eq!(proxy.get("/assets/2").status, 200);
    let asked = proxy.s3_proxy(&["health", "--ready"]);
    assert_eq!(asked.status.code(), Some(1));
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(said.contains("/ready: 503 starting: "), "{said}");
    disk.heal();
    eventually("the cache is listed", || ready(&proxy).0 == 200);
}

#[test]
fn the_proxy_is_not_ready_while_its_only_disk_fails() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = Origin::start(|_| Reply::pattern(1, 1000));
    let proxy = on(&disk, &origin, "");
    eventually("the cache is listed", || ready(&proxy).0 == 200);
    break_disk(&disk);
    let mut object = 0;
    eventually("the disk is found to fail", || {
        object += 1;
        assert_eq!(proxy.get(&format!("/assets/{object}")).status, 200);
        ready(&proxy)
            == (
                503,
                "disk down: no directory of the cache can be used\n".into(),
            )
    });
    disk.heal();
    eventually("the disk works again", || {
        object += 1;
        proxy.get(&format!("/assets/{object}"));
        ready(&proxy).0 == 200
    });
}

// --- drain ---

#[test]
fn a_drained_proxy_sends_clients_away_with_what_they_asked_for() {
    const LEN: u64 = 32 << 20;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).admin().start();
    assert_eq!(proxy.get("/assets/1").status, 200);
    eventually("the cache is listed", || ready(&proxy).0 == 200);
    let mut idle = Connection::open(proxy.addr());
    assert_eq!(idle.request("HEAD", "/assets/1", &[]).status, 200);
    assert!(idle.is_reusable());
    let mut reader = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut transfer = reader.begin("GET", "/assets/1", &[]);
    let begun = transfer.read_some(1000).len() as u64;

    expect_command(&proxy, &["drain"], "draining\n");
    let draining = (503, "draining\n".to_owned());
    assert_eq!(ready(&proxy), draining);
    assert_eq!(answer(proxy.admin_addr(), "/ready"), draining);
    assert_eq!(answer(proxy.metrics_addr(), "/health").0, 200);
    let asked = proxy.s3_proxy(&["health", "--ready"]);
    assert_eq!(asked.status.code(), Some(1));

    // A transfer goes on, and a request that still comes is served. A hit, a miss and an error say goodbye.
    let last = idle.request("HEAD", "/assets/1", &[]);
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close"))
    );
    idle.expect_closed();
    for (path, status) in [("/assets/1", 200), ("/assets/2", 200), ("/other", 404)] {
        let mut late = Connection::open(proxy.addr());
        let response = late.request("HEAD", path, &[]);
        assert_eq!(response.status, status, "{path}");
        assert_eq!(response.header("connection"), Some("close"), "{path}");
        late.expect_closed();
    }
    let rest = transfer.check(Pattern::new(1), begun);
    assert!(rest.complete);
    assert_eq!(begun + rest.len, LEN);

    expect_command(&proxy, &["drain", "--undo"], "serving\n");
    assert_eq!(ready(&proxy), (200, "ready\n".into()));
    let mut again = Connection::open(proxy.addr());
    for _ in 0..2 {
        assert_eq!(again.request("HEAD", "/assets/1", &[]).status, 200);
        assert!(again.is_reusable());
    }
}

#[test]
fn a_drained_proxy_ends_http_2_connections_after_their_requests() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |_| Reply::pattern(1, 1000).hold_at(500, &held));
    let proxy = proxy(&origin).tls().admin().start();
    let mut client = Client::open(proxy.https_addr(), 1 << 20, 1 << 20);
    client
        .send(&get_frame(1, "/assets/1", END_HEADERS | END_STREAM))
        .expect("ask");
    gate.wait_for_arrivals(1);
    expect_command(&proxy, &["drain"], "draining\n");
    gate.open();
    // All of the response comes, and the connection ends gracefully (NO_ERROR).
    let (mut len, mut goaways) = (0, Vec::new());
    while let Ok(frame) = client.receive() {
        match frame.kind {
            DATA => len += frame.payload.len(),
            GOAWAY => goaways.push(frame.payload[4..8].to_vec()),
            _ => {}
        }
    }
    assert_eq!(len, 1000);
    assert!(!goaways.is_empty(), "no GOAWAY");
    assert!(goaways.iter().all(|code| *code == [0; 4]), "{goaways:?}");

    // A client that has nowhere else to go is served.
    let mut late = Client::open(proxy.https_addr(), 1 << 20, 1 << 20);
    for stream in [1, 3] {
        late.send(&get_frame(stream, "/assets/1", END_HEADERS | END_STREAM))
            .expect("ask");
        assert_eq!(late.response(stream).status, STATUS_200);
    }
}

#[test]
fn no_page_of_another_site_drains() {
    let origin = Origin::scripted();
    let proxy = proxy(&origin).admin().start();
    eventually("the cache is listed", || ready(&proxy).0 == 200);
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    for fields in [
        &[][..],
        &[form],
        &[("Content-Type", "text/plain")],
        &[form, ("Origin", "http://evil.test")],
        &[("X-Requested-With", "a"), ("Origin", "http://evil.test")],
        &[("X-Requested-With", "a"), ("Sec-Fetch-Site", "cross-site")],
    ] {
        let refused = request(proxy.admin_addr(), "POST", "/drain", fields);
        assert_eq!(refused.status, 403, "{fields:?}");
        assert_eq!(ready(&proxy).0, 200, "{fields:?}");
    }
    for method in ["GET", "HEAD", "OPTIONS", "PUT"] {
        let refused = request(proxy.admin_addr(), method, "/drain", &[]);
        assert_eq!(refused.status, 405, "{method}");
        assert_eq!(refused.header("allow"), Some("DELETE, POST"));
    }
    // An object of that name is another thing.
    let purged = request(proxy.admin_addr(), "PURGE", "/drain", &[]);
    assert_eq!(purged.status, 404);
    assert_eq!(ready(&proxy).0, 200);
    let drained = request(
        proxy.admin_addr(),
        "POST",
        "/drain",
        &[("X-Requested-With", "a")],
    );
    assert_eq!(drained.status, 200);
    assert_eq!(ready(&proxy).0, 503);
}

// --- the origin ---

#[test]
fn an_origin_that_fails_over_some_time_is_down_until_it_answers() {
    let status = Arc::new(AtomicU16::new(200));
    let origin = Origin::start({
        let status = status.clone();
        move |_| match status.load(Ordering::SeqCst) {
            200 => Reply::bytes("an object"),
            status => Reply::status(status),
        }
    });
    let proxy = with_health(
        builder().bucket(Bucket::at(&origin, "/assets", "bucket").set("retries", 0)),
        "{origin_failures: 3, origin_down_after: 0, ready: {origin: true}}",
    );
    eventually("the cache is listed", || ready(&proxy).0 == 200);
    let up = || {
        let labels = [("bucket", "bucket"), ("origin", &*host(&origin))];
        proxy.metrics().sum_where("origin_up", &labels)
    };
    assert_eq!(up(), 1);
    assert_eq!(proxy.get("/assets/hit").status, 200);

    status.store(503, Ordering::SeqCst);
    for object in 1..=3 {
        assert_eq!((ready(&proxy).0, up()), (200, 1), "after {object}");
        assert_eq!(proxy.get(&format!("/assets/{object}")).status, 503);
    }
    assert_eq!(up(), 0);
    let (code, reason) = ready(&proxy);
    let said = format!(
        "origin down: {} of bucket bucket, 3 failures in a row",
        host(&origin)
    );
    assert!(code == 503 && reason.starts_with(&said), "{code} {reason}");
    assert!(proxy.stderr().contains(&said), "{}", proxy.stderr());
    // A hit says nothing about the origin, and nobody has asked it but clients.
    assert_eq!(proxy.get("/assets/hit").header("x-cache"), Some("HIT"));
    assert_eq!(up(), 0);
    assert_eq!(origin.requests().len(), 4);

    // An object that is missing is an answer.
    status.store(404, Ordering::SeqCst);
    assert_eq!(proxy.get("/assets/4").status, 404);
    assert_eq!((ready(&proxy).0, up()), (200, 1));
    assert_eq!(origin.requests().len(), 5);
    eventually("the log says that the origin is back", || {
        proxy.stderr().contains("answers again")
    });
}

#[test]
fn an_origin_that_is_down_is_ready_to_be_tried_again_after_some_time() {
    // Nobody listens there any more.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let bucket = Bucket::new("/assets", "bucket")
        .endpoint(endpoint)
        .set("retries", 0);
    let proxy = with_health(
        builder().bucket(bucket),
        "{origin_failures: 2, origin_down_after: 0, origin_retry: 2s, ready: {origin: true}}",
    );
    eventually("the cache is listed", || ready(&proxy).0 == 200);
    for object in 1..=2 {
        assert_eq!(proxy.get(&format!("/assets/{object}")).status, 502);
    }
    assert_eq!(ready(&proxy).0, 503);
    assert_eq!(proxy.metric("origin_up"), 0);
    eventually("clients may try the origin again", || {
        ready(&proxy).0 == 200
    });
    assert_eq!(proxy.metric("origin_up"), 1);
}

#[test]
fn by_default_an_origin_that_is_down_leaves_the_proxy_ready() {
    let is_down = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let is_down = is_down.clone();
        move |_| match is_down.load(Ordering::SeqCst) {
            true => Reply::hang_up(),
            false => Reply::bytes("an object"),
        }
    });
    let bucket = Bucket::at(&origin, "/assets", "bucket").set("retries", 0);
    let other = Bucket::at(&origin, "/other", "other").set("retries", 0);
    let proxy = with_health(
        builder().bucket(bucket).bucket(other),
        "{origin_failures: 2, origin_down_after: 0}",
    );
    assert_eq!(proxy.get("/assets/hit").status, 200);
    is_down.store(true, Ordering::SeqCst);
    for object in 1..=2 {
        assert_eq!(proxy.get(&format!("/assets/{object}")).status, 502);
    }
    let up = |bucket| {
        proxy
            .metrics()
            .sum_where("origin_up", &[("bucket", bucket)])
    };
    assert_eq!((up("bucket"), up("other")), (0, 1));
    eventually("the cache is listed", || ready(&proxy).0 == 200);
    assert_eq!(proxy.get("/assets/hit").status, 200);
}

fn host(origin: &Origin) -> String {
    let url = origin.url();
    url.strip_prefix("http://").unwrap_or(&url).to_owned()
}

fn with_health(builder: ProxyBuilder, health: &str) -> Proxy {
    builder.health(health).start()
}

/// A proxy whose cache is on this disk.
fn on(disk: &FaultyDisk, origin: &Origin, more: &str) -> Proxy {
    let (folder, origin) = (disk.path().display().to_string(), origin.url());
    Proxy::start_with(S3_PROXY, |_| {
        format!(
            "server: {{address: '127.0.0.1:0', threads: 1, grace_period: 0}}\n\
             buckets: [{{path_prefix: /assets, bucket: bucket, region: us-east-1, endpoint: '{origin}'}}]\n\
             cache: {{disk: {{path: '{folder}', max_size_gb: 1, scrub_mb_per_second: 0}}}}\n\
             metrics: {{address: '127.0.0.1:0'}}\n{more}"
        )
    })
}

fn break_disk(disk: &FaultyDisk) {
    for op in [Op::Write, Op::Fsync, Op::Create, Op::Rename, Op::Unlink] {
        disk.fail(op, EIO);
    }
}

fn ready(proxy: &Proxy) -> (u16, String) {
    answer(proxy.metrics_addr(), "/ready")
}

fn answer(addr: SocketAddr, path: &str) -> (u16, String) {
    let response = get(addr, path);
    let text = String::from_utf8(response.body).expect("UTF-8");
    (response.status, text)
}

fn expect_command(proxy: &Proxy, arguments: &[&str], said: &str) {
    let output = proxy.s3_proxy(arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), said);
}
