//! Objects that an operator has stored before a client requests them.

use std::fmt::Write as _;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{builder, proxy, S3_PROXY};
use rustix::process::{kill_process, Pid, Signal};
use test_support::{
    encode_key, entry_files, eventually, piped, request, Bucket, Connection, FaultyDisk, Gate, Op,
    Origin, Pattern, Proxy, ProxyBuilder, Reply, Request, Response,
};

const MIB: u64 = 1 << 20;
const ENOSPC: i32 = 28;

// --- one object ---

#[test]
fn an_object_is_stored_once_and_is_a_hit_for_its_first_client() {
    let origin = Origin::start(|request| Reply::bytes(request.path()).header("etag", "\"1\""));
    let proxy = start(proxy(&origin));
    expect(&warm(&proxy, "/assets/a%20b"), 200, "stored, 13 bytes\n");
    expect(
        &warm(&proxy, "/assets/a%20b"),
        200,
        "already stored, 13 bytes\n",
    );
    assert_eq!(origin.requests().len(), 1);
    proxy.expect_metric_where("cache_warmed_total", &[("result", "stored")], 1);
    proxy.expect_metric_where("cache_warmed_total", &[("result", "already_stored")], 1);
    assert_eq!(proxy.metric("cache_hits_total"), 0, "it was no client");
    assert_eq!(proxy.metric("cache_misses_total"), 0, "it was no client");
    assert_eq!(proxy.metric("response_body_bytes_total"), 0);

    let hit = proxy.get("/assets/a%20b");
    assert_eq!(hit.body, b"/bucket/a%20b");
    assert_eq!(hit.header("x-cache"), Some("HIT"));
    proxy.expect_metric("cache_hits_total", 1);
}

#[test]
fn versions_and_hosts_are_named_as_for_a_purge() {
    let origin = Origin::start(|request| Reply::bytes(&*request.target));
    let proxy = start(
        proxy(&origin)
            .bucket(Bucket::at_host(&origin, "assets.test", "second"))
            .bucket(Bucket::at_host(&origin, "localhost", "third")),
    );
    for (path, asked) in [
        ("/assets/a?versionId=v/1", "/bucket/a?versionId=v%2F1"),
        ("//assets.test/a//b", "/second/a//b"),
        ("//localhost/c", "/third/c"),
    ] {
        let stored = format!("stored, {} bytes\n", asked.len());
        expect(&warm(&proxy, path), 200, &stored);
        let last = origin.requests().pop().expect("a request");
        assert_eq!(last.target, asked);
    }
    let version = proxy.get("/assets/a?versionId=v%2F1");
    assert_eq!(version.header("x-cache"), Some("HIT"));
    let at_host = request(proxy.addr(), "GET", "/a//b", &[("Host", "assets.test")]);
    assert_eq!(at_host.header("x-cache"), Some("HIT"));
    for (path, status) in [("/other/a", 404), ("/assets/%zz", 400), ("/assets/", 400)] {
        assert_eq!(warm(&proxy, path).status, status, "{path}");
    }
}

#[test]
fn a_stale_object_costs_a_validation_and_no_body() {
    let changed = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let changed = changed.clone();
        move |request| {
            let version = u64::from(changed.load(Ordering::Acquire));
            Reply::pattern(version, 100_000)
                .header("etag", format!("\"{version}\""))
                .header("cache-control", "max-age=0")
                .answering(request)
        }
    });
    let proxy = start(proxy(&origin));
    let stored = "stored, 100000 bytes\n";
    expect(&warm(&proxy, "/assets/a"), 200, stored);
    expect(
        &warm(&proxy, "/assets/a"),
        200,
        &format!("already {stored}"),
    );
    assert!(origin.requests()[1].is_conditional());
    assert_eq!(origin.bytes_sent(), 100_000);
    assert_eq!(proxy.metric("response_errors_total"), 0);
    changed.store(true, Ordering::Release);
    expect(&warm(&proxy, "/assets/a"), 200, stored);
    let now = proxy.get("/assets/a");
    assert_eq!(now.header("x-cache"), Some("REVALIDATED"));
    Pattern::new(1).check(0, &now.body);
}

#[test]
fn a_stale_object_stays_if_the_origin_refuses_to_validate_it() {
    let broken = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let broken = broken.clone();
        move |_| match broken.load(Ordering::Acquire) {
            true => Reply::status(403),
            false => Reply::bytes("a")
                .header("etag", "\"1\"")
                .header("cache-control", "max-age=0"),
        }
    });
    let proxy = start(proxy(&origin));
    expect(&warm(&proxy, "/assets/a"), 200, "stored, 1 bytes\n");
    broken.store(true, Ordering::Release);
    let refused = warm(&proxy, "/assets/a");
    assert_eq!(refused.status, 502, "{}", text(&refused));
    assert_eq!(proxy.metric("cache_entries"), 1);
}

#[test]
fn what_is_not_stored_says_why() {
    let origin = Origin::start(|request| match request.path() {
        "/bucket/gone" => Reply::status(404),
        "/bucket/no-store" => Reply::bytes("a").header("cache-control", "no-store"),
        "/bucket/large" => Reply::pattern(1, 3_000_000),
        "/bucket/unknown" => Reply::pattern(1, 3_000_000).chunked(),
        "/bucket/forbidden" => Reply::status(403),
        "/bucket/broken" => Reply::status(500),
        "/bucket/hang-up" => Reply::hang_up(),
        "/bucket/short" => Reply::pattern(1, 100_000).close_at(50_000),
        _ => Reply::bytes("a"),
    });
    let proxy = start(
        builder()
            .bucket(Bucket::at(&origin, "/assets", "bucket").set("retries", 0))
            .cache("rules", "[{key: 'private/*', store: false}]")
            .max_object_gb(0.002),
    );
    for (key, status, reason) in [
        ("gone", 404, "not at the origin"),
        (
            "no-store",
            409,
            "not stored: its header or a rule of cache.rules forbids",
        ),
        (
            "large",
            409,
            "not stored: it is larger than the cache or the configured limit",
        ),
        (
            "unknown",
            409,
            "not stored: it is larger than the cache or the configured limit",
        ),
        (
            "private/a",
            409,
            "not stored: a rule of cache.rules has store: false",
        ),
        ("forbidden", 502, "the origin answers 403"),
        ("broken", 502, "the origin answers 500"),
        ("hang-up", 502, "Upstream"),
        ("short", 502, ""),
    ] {
        let answer = warm(&proxy, &format!("/assets/{key}"));
        let said = text(&answer);
        assert!(said.contains(reason), "{key}: {said}");
        assert_eq!(answer.status, status, "{key}: {said}");
        assert_eq!(said.lines().count(), 1, "{key}: {said}");
    }
    assert_eq!(origin.requests_for("/bucket/private/a"), 0);
    assert_eq!(origin.requests_for("/bucket/large"), 1);
    let failed = [("result", "failed")];
    proxy.expect_metric_where("cache_warmed_total", &failed, 4);
    assert_eq!(proxy.metric("response_errors_total"), 0);
    proxy.expect_metric("cache_entries", 0);
}

#[test]
fn min_uses_and_remembered_absence_do_not_matter() {
    let exists = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let exists = exists.clone();
        move |_| match exists.load(Ordering::Acquire) {
            true => Reply::bytes("a"),
            false => Reply::status(404),
        }
    });
    let proxy = start(proxy(&origin).cache("min_uses", 3).negative_ttl("1h"));
    assert_eq!(proxy.get("/assets/a").status, 404);
    exists.store(true, Ordering::Release);
    assert_eq!(proxy.get("/assets/a").status, 404, "it is remembered");
    let before = proxy.metric("cache_not_admitted_total");
    expect(&warm(&proxy, "/assets/a"), 200, "stored, 1 bytes\n");
    assert_eq!(proxy.get("/assets/a").header("x-cache"), Some("HIT"));
    assert_eq!(proxy.metric("cache_not_admitted_total"), before);
}

#[test]
fn an_origin_that_stalls_is_waited_for_as_long_as_for_a_client() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.path() {
            "/bucket/head" => Reply::bytes("a").hold(&gate),
            _ => Reply::pattern(1, 100_000).hold_at(50_000, &gate),
        }
    });
    let bucket = Bucket::at(&origin, "/assets", "bucket")
        .set("first_byte_timeout", "300ms")
        .set("read_timeout", "300ms")
        .set("retries", 0);
    let proxy = start(builder().bucket(bucket));
    for path in ["/assets/head", "/assets/body"] {
        let begun = Instant::now();
        let answer = warm(&proxy, path);
        assert_eq!(answer.status, 502, "{path}: {}", text(&answer));
        assert!(begun.elapsed() < Duration::from_secs(3), "{path}");
    }
    gate.open();
}

#[test]
fn a_client_and_an_operator_fetch_an_object_once() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, 300_000).hold_at(100_000, &gate)
    });
    let proxy = start(proxy(&origin));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", "/assets/a", &[]).expect("send");
    gate.wait_for_arrivals(1);
    let before = proxy.metric("cache_fill_followers_total");
    let mut operator = Connection::open(proxy.admin_addr());
    operator.send("WARM", "/assets/a", &[]).expect("send");
    eventually("the operator waits", || {
        proxy.metric("cache_fill_followers_total") > before
    });
    gate.open();
    expect(&operator.receive("WARM"), 200, "stored, 300000 bytes\n");
    Pattern::new(1).check(0, &client.receive("GET").body);
    assert_eq!(origin.requests().len(), 1);
}

// --- large objects ---

fn in_parts(len: u64, request: &Request) -> Reply {
    Reply::pattern(1, len)
        .header("etag", "\"1\"")
        .header("accept-ranges", "bytes")
        .answering(request)
}

/// An origin that stops in the middle of the whole object, until the gate is opened.
fn holding_the_whole_at(len: u64, at: u64) -> (Origin, Gate) {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.header("range") {
            None => in_parts(len, request).hold_at(at, &gate),
            Some(_) => in_parts(len, request),
        }
    });
    (origin, gate)
}

#[test]
fn only_missing_blocks_are_fetched() {
    const LEN: u64 = 20 * MIB + 123;
    let origin = Origin::start(|request| in_parts(LEN, request));
    let proxy = start(proxy(&origin));
    let part = |first: u64| {
        let range = format!("bytes={first}-{first}");
        let mut client = Connection::open(proxy.addr());
        assert_eq!(
            client
                .request("GET", "/assets/a", &[("Range", &range)])
                .status,
            206
        );
    };
    part(9 * MIB);
    eventually("there is an entry", || proxy.metric("cache_entries") == 1);
    // The first part is not stored, the second one is.
    part(9 * MIB + 5);
    // The origin counts bytes a moment after they arrive.
    let sends = |bytes: u64| {
        eventually("the bytes are counted", || origin.bytes_sent() >= bytes);
        assert_eq!(origin.bytes_sent(), bytes);
    };
    sends(1 + MIB);
    expect(
        &warm(&proxy, "/assets/a"),
        200,
        &format!("stored, {LEN} bytes\n"),
    );
    sends(1 + LEN);
    expect(
        &warm(&proxy, "/assets/a"),
        200,
        &format!("already stored, {LEN} bytes\n"),
    );
    sends(1 + LEN);
    expect_hit(&proxy, "/assets/a", LEN);
}

#[test]
fn a_transfer_that_breaks_off_is_resumed() {
    const LEN: u64 = 40 * MIB;
    let origin = Origin::start(|request| {
        let reply = in_parts(LEN, request);
        match request.header("range") {
            None => reply.close_at(30 * MIB),
            Some(_) => reply,
        }
    });
    let proxy = start(proxy(&origin));
    expect(
        &warm(&proxy, "/assets/a"),
        200,
        &format!("stored, {LEN} bytes\n"),
    );
    assert!(origin.bytes_sent() <= LEN + MIB, "{}", origin.bytes_sent());
    expect_hit(&proxy, "/assets/a", LEN);
}

#[test]
fn an_operator_who_leaves_ends_the_fill_and_what_has_arrived_stays() {
    const LEN: u64 = 40 * MIB;
    let (origin, gate) = holding_the_whole_at(LEN, 12 * MIB);
    let proxy = start(proxy(&origin));
    let mut operator = Connection::open(proxy.admin_addr());
    operator.send("WARM", "/assets/a", &[]).expect("send");
    gate.wait_for_arrivals(1);
    // A client that gets such a part shows that it is written.
    let mut client = Connection::open(proxy.addr());
    let part = format!("bytes={0}-{0}", 11 * MIB);
    let part = client.request("GET", "/assets/a", &[("Range", &part)]);
    assert_eq!(part.header("x-cache"), Some("HIT"), "of the fill");
    operator.abort();
    eventually("the fill ends", || {
        proxy.metric("cache_fills_in_flight") == 0
    });
    assert_eq!(proxy.metric("cache_entries"), 1);
    let before = origin.bytes_sent();
    expect(
        &warm(&proxy, "/assets/a"),
        200,
        &format!("stored, {LEN} bytes\n"),
    );
    let fetched = origin.bytes_sent() - before;
    assert!(fetched <= LEN - 11 * MIB, "{fetched}");
    gate.open();
    expect_hit(&proxy, "/assets/a", LEN);
}

#[test]
fn a_crash_costs_what_was_not_recorded() {
    const LEN: u64 = 72 * MIB;
    let (origin, gate) = holding_the_whole_at(LEN, 70 * MIB);
    let mut proxy = start(proxy(&origin));
    let command = piped(&mut proxy.command(&["warm", "/assets/a"]));
    gate.wait_for_arrivals(1);
    eventually("what has arrived is recorded", || {
        !entry_files(&proxy.cache_dir(), "meta").is_empty()
    });
    proxy.kill();
    let output = command.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("does not answer"), "{output:?}");

    // The command waits until the cache is loaded.
    proxy.restart();
    let before = origin.bytes_sent();
    let again = proxy.s3_proxy(&["warm", "/assets/a"]);
    expect_summary(
        &again,
        0,
        "1 stored (75.50 MB), 0 already stored, 0 failed\n",
    );
    let fetched = origin.bytes_sent() - before;
    assert!(fetched <= LEN - 64 * MIB, "{fetched}");
    gate.open();
    expect_hit(&proxy, "/assets/a", LEN);
}

// --- limits ---

#[test]
fn the_number_of_objects_at_a_time_is_bounded() {
    const LIMIT: usize = 64;
    let (origin, gate) = holding_all();
    let proxy = start(proxy(&origin));
    let mut operators: Vec<_> = (0..LIMIT)
        .map(|key| {
            let mut operator = Connection::open(proxy.admin_addr());
            let path = format!("/assets/{key}");
            operator.send("WARM", &path, &[]).expect("send");
            operator
        })
        .collect();
    gate.wait_for_arrivals(LIMIT);
    let busy = warm(&proxy, "/assets/more");
    assert_eq!(busy.status, 503, "{}", text(&busy));
    assert_eq!(busy.header("retry-after"), Some("1"));
    assert!(text(&busy).starts_with("busy: "), "{}", text(&busy));
    gate.open();
    for operator in &mut operators {
        expect(&operator.receive("WARM"), 200, "stored, 100000 bytes\n");
    }
    expect(&warm(&proxy, "/assets/more"), 200, "stored, 100000 bytes\n");
}

#[test]
fn a_purge_is_answered_while_all_turns_are_taken() {
    // 256 descriptors: 16 connections of operators.
    const TURNS: usize = 12;
    let (origin, gate) = holding_all();
    let mut proxy = start(proxy(&origin));
    let limited = proxy.restart_under(&["prlimit", "--nofile=256:256"]);
    assert!(limited, "{}", proxy.stderr());
    wait_loaded(&proxy);
    let mut operators: Vec<_> = (0..16)
        .map(|_| Connection::open(proxy.admin_addr()))
        .collect();
    let (warming, others) = operators.split_at_mut(TURNS);
    for (key, operator) in warming.iter_mut().enumerate() {
        let path = format!("/assets/{key}");
        operator.send("WARM", &path, &[]).expect("send");
    }
    gate.wait_for_arrivals(TURNS);
    for operator in others {
        operator.send("WARM", "/assets/more", &[]).expect("send");
        assert_eq!(operator.receive("WARM").status, 503);
        operator.send("PURGE", "/assets/more", &[]).expect("send");
        assert_eq!(operator.receive("PURGE").status, 404);
    }
    gate.open();
    for operator in warming {
        expect(&operator.receive("WARM"), 200, "stored, 100000 bytes\n");
    }
}

#[test]
fn clients_come_before_operators_at_the_limits_of_the_proxy() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.path() {
            "/bucket/held" => Reply::pattern(1, 100_000).hold_at(50_000, &gate),
            "/bucket/waits" => Reply::bytes("a").hold(&gate),
            _ => Reply::bytes("a"),
        }
    });
    for (limit, held, said) in [
        ("max_fills", "/assets/held", "cache.max_fills"),
        ("max_misses", "/assets/waits", "cache.max_misses"),
    ] {
        let gate = gate.clone();
        let proxy = start(proxy(&origin).cache(limit, 1));
        let mut client = Connection::open(proxy.addr());
        client.send("GET", held, &[]).expect("send");
        origin.wait_for(&held.replace("assets", "bucket"), 1);
        let in_flight = ["cache_fills_in_flight", "cache_misses_in_flight"];
        eventually("the limit is reached", || {
            in_flight.iter().any(|of| proxy.metric(of) == 1)
        });
        if limit == "max_fills" {
            eventually("it is being stored", || {
                proxy.metric("cache_fills_in_flight") == 1
            });
        }
        let busy = warm(&proxy, "/assets/a");
        assert_eq!(busy.status, 503, "{limit}: {}", text(&busy));
        assert!(text(&busy).contains(said), "{}", text(&busy));
        assert!(busy.header("retry-after").is_some());
        drop(gate);
    }
    gate.open();
}

#[test]
fn what_clients_request_more_often_is_not_evicted() {
    const LEN: u64 = 1_000_000;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = start(proxy(&origin).max_size_gb(0.01));
    let full = 9;
    let request_all = || {
        for key in 0..full {
            assert_eq!(proxy.get(&format!("/assets/hot/{key}")).status, 200);
        }
    };
    request_all();
    proxy.expect_metric("cache_entries", full);
    for _ in 0..4 {
        request_all();
    }
    for key in 0..3 {
        let answer = warm(&proxy, &format!("/assets/cold/{key}"));
        let said = text(&answer);
        assert_eq!(answer.status, 409, "{said}");
        assert!(
            said.contains("there is no room for it in the cache"),
            "{said}"
        );
    }
    for key in 0..full {
        let hot = proxy.get(&format!("/assets/hot/{key}"));
        assert_eq!(hot.header("x-cache"), Some("HIT"), "{key}");
    }
}

#[test]
fn a_full_disk_is_the_reason() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = Origin::start(|_| Reply::pattern(1, 100_000));
    let proxy = Proxy::start_with(S3_PROXY, |_| {
        let (folder, origin) = (disk.path().join("cache"), origin.url());
        format!(
            "server: {{address: '127.0.0.1:0'}}\n\
             buckets: [{{path_prefix: /assets, bucket: bucket, region: us-east-1, endpoint: '{origin}'}}]\n\
             cache: {{disk: {{path: '{}', max_size_gb: 1}}}}\n\
             admin: {{address: '127.0.0.1:0'}}\n\
             metrics: {{address: '127.0.0.1:0'}}\n",
            folder.display()
        )
    });
    wait_loaded(&proxy);
    for (op, path) in [(Op::Create, "/assets/a"), (Op::Write, "/assets/b")] {
        disk.fail(op, ENOSPC);
        let answer = warm(&proxy, path);
        disk.heal();
        let said = text(&answer);
        assert_eq!(answer.status, 409, "{path}: {said}");
        assert!(said.starts_with("not stored: "), "{said}");
    }
}

// --- who may ---

#[test]
fn the_proxy_asks_with_its_own_credentials() {
    let origin = Origin::start(|_| Reply::bytes("a"));
    let proxy = start(
        builder()
            .bucket(
                Bucket::at(&origin, "/signed", "one")
                    .credentials("AKIAPROXY", "secret")
                    .set("auth", "sigv4")
                    .set("clients", "[{access_key: AKIACLIENT, secret_key: other}]"),
            )
            .bucket(Bucket::at(&origin, "/passed", "passed").set("auth", "passthrough")),
    );
    expect(&warm(&proxy, "/signed/a"), 200, "stored, 1 bytes\n");
    let asked = origin.requests().pop().expect("a request");
    let signature = asked.header("authorization").expect("a signature");
    assert!(signature.contains("AKIAPROXY"), "{signature}");
    assert_eq!(proxy.get("/signed/a").status, 403, "clients sign");

    for method in ["WARM", "LIST"] {
        let refused = request(proxy.admin_addr(), method, "/passed/a", &[]);
        assert_eq!(refused.status, 403, "{method}");
        assert!(text(&refused).contains("auth: passthrough"), "{method}");
    }
    assert_eq!(origin.requests().len(), 1);
    proxy.expect_metric_where("cache_warmed_total", &[("result", "refused")], 1);
}

#[test]
fn only_the_admin_listener_warms_and_no_page_in_a_browser() {
    let origin = Origin::start(|_| Reply::bytes("a"));
    let proxy = start(proxy(&origin));
    for method in ["WARM", "LIST"] {
        for addr in [proxy.addr(), proxy.metrics_addr()] {
            let answer = request(addr, method, "/assets/a", &[]);
            assert!(answer.status >= 400, "{addr} {method}");
        }
        for headers in [[("Origin", "http://evil.test")], [("Host", "evil.test")]] {
            let answer = request(proxy.admin_addr(), method, "/assets/a", &headers);
            assert_eq!(answer.status, 403, "{method} {headers:?}");
        }
    }
    assert_eq!(origin.requests().len(), 0);
}

#[test]
fn a_proxy_that_redirects_to_https_warms() {
    let origin = Origin::start(|_| Reply::bytes("a"));
    let proxy = start(proxy(&origin).tls().tls_key("redirect", "true"));
    expect(&warm(&proxy, "/assets/a"), 200, "stored, 1 bytes\n");
}

#[test]
fn without_a_cache_there_is_nothing_to_warm() {
    let origin = Origin::start(|_| Reply::bytes("a"));
    let proxy = proxy(&origin).without_cache().admin().start();
    let answer = warm(&proxy, "/assets/a");
    assert_eq!(answer.status, 404);
    assert!(text(&answer).contains("cache.disk is not enabled"));
}

// --- prefixes ---

/// An origin with these keys, in pages of a thousand. Continuation tokens are numbers in odd
/// characters.
fn bucket_of(keys: Vec<String>) -> Origin {
    Origin::start(move |request| {
        let Some((_, query)) = request
            .target
            .split_once("?list-type=2")
            .or(request.target.split_once("list-type=2"))
        else {
            return Reply::bytes(request.path());
        };
        let _ = query;
        let parameter = |name: &str| {
            let (_, query) = request.target.split_once('?')?;
            let values = query.split('&').filter_map(|pair| pair.split_once('='));
            let value = values.into_iter().find(|(known, _)| *known == name)?.1;
            Some(decoded(value))
        };
        let prefix = parameter("prefix").unwrap_or_default();
        let token = parameter("continuation-token");
        let start = token.map_or(0, |token| {
            let number = token.strip_prefix("a+/=&").expect("its own token");
            number.parse().expect("a number")
        });
        let found: Vec<_> = keys.iter().filter(|key| key.starts_with(&prefix)).collect();
        let page = &found[start..found.len().min(start + 1000)];
        let mut list = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>bucket</Name>\
             <Prefix>{}</Prefix><IsTruncated>{}</IsTruncated>",
            written(&prefix),
            start + page.len() < found.len()
        );
        for key in page {
            let key = written(key);
            let _ = write!(list, "<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        }
        let _ = write!(
            list,
            "<EncodingType>url</EncodingType>\
             <NextContinuationToken>a+/=&amp;{}</NextContinuationToken></ListBucketResult>",
            start + page.len()
        );
        Reply::bytes(list).header("content-type", "application/xml")
    })
}

/// As S3 writes keys with `encoding-type=url`.
fn written(key: &str) -> String {
    encode_key(key).replace("%20", "+")
}

fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [byte, after @ ..] = rest {
        match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("digits");
                bytes.push(u8::from_str_radix(digits, 16).expect("an escape"));
                rest = after;
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn a_prefix_is_listed_page_by_page() {
    let odd = [
        "odd/a b",
        "odd/a+b",
        "odd/100%",
        "odd/100%25",
        "odd/grüße",
        "odd//x",
        "odd/a&b<c>",
        "odd/*",
        "odd/?q=1#f",
        "odd/\u{1}",
        "odd/",
    ];
    let mut keys: Vec<_> = (0..1200).map(|key| format!("many/{key}")).collect();
    keys.extend(odd.map(str::to_owned));
    let origin = bucket_of(keys);
    let proxy = start(proxy(&origin));

    let output = proxy.s3_proxy(&["warm", "--concurrency", "4", "/assets/odd/*"]);
    expect_summary(
        &output,
        0,
        "11 stored (203 B), 0 already stored, 0 failed\n",
    );
    for key in odd {
        let hit = proxy.get(&format!("/assets/{}", encode_key(key)));
        assert_eq!(hit.header("x-cache"), Some("HIT"), "{key}");
    }

    let output = proxy.s3_proxy(&["warm", "--concurrency", "16", "/assets/*"]);
    assert!(stdout(&output).starts_with("1200 stored ("), "{output:?}");
    assert!(
        stdout(&output).ends_with("11 already stored, 0 failed\n"),
        "{output:?}"
    );
    proxy.expect_metric("cache_entries", 1211);
    let lists = origin.requests();
    let lists = lists
        .iter()
        .filter(|asked| asked.target.contains("list-type"));
    assert_eq!(lists.count(), 3, "one and two pages");
}

#[test]
fn a_list_leads_from_page_to_page_and_from_bucket_to_bucket() {
    let keys = (0..1001).map(|key| format!("team/{key:04}")).collect();
    let origin = bucket_of(keys);
    let proxy = start(
        builder()
            .bucket(Bucket::at(&origin, "/as", "bucket").set("key_prefix", "team/"))
            .bucket(Bucket::at(&origin, "/assets", "bucket"))
            .bucket(Bucket::at_host(&origin, "files.test", "bucket")),
    );
    let list = |target: &str| request(proxy.admin_addr(), "LIST", target, &[]);
    let first = list("/as");
    assert_eq!(first.status, 200, "{}", text(&first));
    assert!(text(&first).starts_with("1 /as/0000\n1 /as/0001\n"));
    assert_eq!(text(&first).lines().count(), 1000);
    let mut page = first;
    let mut all = text(&page);
    while let Some(next) = page.header("next-page") {
        page = list(&format!("/as?after={next}"));
        assert_eq!(page.status, 200, "{}", text(&page));
        all += &text(&page);
    }
    let paths: Vec<_> = all.lines().collect();
    assert_eq!(paths.len(), 2002);
    assert_eq!(paths[1000], "1 /as/1000");
    assert_eq!(paths[1001], "1 /assets/team/0000");

    let one = list("/assets/team/100");
    assert_eq!(text(&one), "1 /assets/team/1000\n");
    assert_eq!(one.header("next-page"), None);
    assert_eq!(
        text(&list("//files.test/team/100")),
        "1 //files.test/team/1000\n"
    );
    assert_eq!(text(&list("/as/none")), "");
    for (target, status) in [("/other", 404), ("/as?after=x", 400), ("/as?after=7.", 400)] {
        assert_eq!(list(target).status, status, "{target}");
    }
}

#[test]
fn a_bucket_that_the_proxy_may_not_list_says_so() {
    let origin = Origin::start(|request| match request.path() {
        "/two/" => Reply::bytes("<L><Contents><Key>a</Key></Contents>"),
        "/three/" => Reply::bytes("no list"),
        _ => Reply::status(403),
    });
    let proxy = start(
        builder()
            .bucket(Bucket::at(&origin, "/one", "one"))
            .bucket(Bucket::at(&origin, "/two", "two"))
            .bucket(Bucket::at(&origin, "/three", "three")),
    );
    for (prefix, why) in [
        ("/one/", "permit s3:ListBucket"),
        ("/two/", "bucket two cannot be listed: "),
        ("/three/", "bucket three cannot be listed: "),
    ] {
        let output = proxy.s3_proxy(&["warm", &format!("{prefix}*")]);
        expect_summary(&output, 1, "0 stored (0 B), 0 already stored, 1 failed\n");
        let said = stderr(&output);
        assert!(said.contains(&format!("s3-proxy: {prefix}*: ")), "{said}");
        assert!(said.contains(why), "{said}");
    }
}

// --- the command ---

#[test]
fn a_list_is_read_line_by_line() {
    let origin = Origin::start(|request| match request.path() {
        "/bucket/gone" => Reply::status(404),
        path => Reply::bytes(path),
    });
    let proxy = start(proxy(&origin));
    let list =
        "# a comment\n/assets/a b\r\n\n/assets/gr\u{fc}\u{df}e\n/assets/gone\nassets/b\n/assets/c";
    let output = proxy.s3_proxy_reading(&["warm", "--list", "-", "/assets/d"], list);
    expect_summary(&output, 1, "4 stored (54 B), 0 already stored, 2 failed\n");
    let said = stderr(&output);
    assert!(
        said.contains("s3-proxy: /assets/gone: not at the origin\n"),
        "{said}"
    );
    assert!(
        said.contains("s3-proxy: assets/b: it does not start with /"),
        "{said}"
    );
    for path in ["a%20b", "gr%C3%BC%C3%9Fe", "c", "d"] {
        let hit = proxy.get(&format!("/assets/{path}"));
        assert_eq!(hit.header("x-cache"), Some("HIT"), "{path}");
    }

    let file = proxy.cache_dir().join("../list");
    std::fs::write(&file, "/assets/a b\n").expect("write the list");
    let file = file.to_str().expect("UTF-8");
    let again = proxy.s3_proxy(&["warm", "--list", file]);
    expect_summary(&again, 0, "0 stored (0 B), 1 already stored, 0 failed\n");
    let absent = proxy.s3_proxy(&["warm", "--list", "/nowhere/list"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(stderr(&absent).contains("/nowhere/list: cannot open it"));
}

#[test]
fn a_wrong_command_line_is_refused() {
    let origin = Origin::start(|_| Reply::bytes("a"));
    let without = proxy(&origin).start();
    let output = without.s3_proxy(&["warm", "/assets/a"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("admin.address: is missing"));
    for arguments in [
        &["warm"][..],
        &["warm", "assets/a"],
        &["warm", "--concurrency", "0", "/assets/a"],
        &["warm", "--concurrency", "65", "/assets/a"],
    ] {
        let output = without.s3_proxy(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_proxy_that_is_not_there_ends_the_command_at_once() {
    let origin = Origin::start(|_| Reply::bytes("a"));
    let mut proxy = start(proxy(&origin));
    let mut command = proxy.command(&["warm", "--list", "-"]);
    proxy.kill();
    let mut child = piped(&mut command);
    // The list goes on as long as this is open.
    let mut stdin = child.stdin.take().expect("stdin is piped");
    std::io::Write::write_all(&mut stdin, b"/assets/a\n").expect("write");
    let begun = Instant::now();
    let output = child.wait_with_output().expect("its end");
    drop(stdin);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("start the proxy with this configuration"));
}

#[test]
fn an_interrupted_command_says_how_far_it_came() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.path() {
            "/bucket/held" => Reply::pattern(1, 100_000).hold_at(20_000, &gate),
            _ => Reply::bytes("a"),
        }
    });
    let proxy = start(proxy(&origin));
    let child =
        piped(&mut proxy.command(&["warm", "--concurrency", "1", "/assets/a", "/assets/held"]));
    gate.wait_for_arrivals(1);
    eventually("the proxy has the head of the response", || {
        proxy.metric("cache_fills_in_flight") == 1
    });
    kill_process(Pid::from_child(&child), Signal::INT).expect("interrupt it");
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let said = stderr(&output);
    assert!(
        said.contains("interrupted: 1 stored (1 B), 0 already stored"),
        "{said}"
    );
    eventually("the fill ends", || {
        proxy.metric("cache_fills_in_flight") == 0
    });
    gate.open();
    let again = proxy.s3_proxy(&["warm", "/assets/a", "/assets/held"]);
    expect_summary(
        &again,
        0,
        "1 stored (100.00 kB), 1 already stored, 0 failed\n",
    );
}

#[test]
fn the_command_waits_for_a_proxy_that_is_busy() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.path() {
            "/bucket/held" => Reply::pattern(1, 100_000).hold_at(50_000, &gate),
            _ => Reply::bytes("a"),
        }
    });
    let proxy = start(proxy(&origin).cache("max_fills", 1));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", "/assets/held", &[]).expect("send");
    eventually("it is being stored", || {
        proxy.metric("cache_fills_in_flight") == 1
    });
    let command = piped(&mut proxy.command(&["warm", "/assets/a"]));
    let busy = [("result", "busy")];
    eventually("it was refused", || {
        proxy.metrics().sum_where("cache_warmed_total", &busy) >= 1
    });
    gate.open();
    let output = command.wait_with_output().expect("its end");
    expect_summary(&output, 0, "1 stored (1 B), 0 already stored, 0 failed\n");
}

/// An origin that holds all of its responses.
fn holding_all() -> (Origin, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |_| Reply::pattern(1, 100_000).hold(&held));
    (origin, gate)
}

/// Starts a proxy with an admin listener, and waits until its cache is loaded.
fn start(proxy: ProxyBuilder) -> Proxy {
    let proxy = proxy.admin().start();
    wait_loaded(&proxy);
    proxy
}

fn wait_loaded(proxy: &Proxy) {
    eventually("the cache is loaded", || proxy.listings() > 0);
}

fn warm(proxy: &Proxy, path: &str) -> Response {
    request(proxy.admin_addr(), "WARM", path, &[])
}

fn text(answer: &Response) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

fn expect(answer: &Response, status: u16, said: &str) {
    assert_eq!(text(answer), said);
    assert_eq!(answer.status, status, "{said}");
}

/// All of the object is stored.
fn expect_hit(proxy: &Proxy, path: &str, len: u64) {
    let mut client = Connection::open(proxy.addr());
    let whole = client.begin("GET", path, &[]);
    assert_eq!(whole.headers.get("x-cache"), Some("HIT"), "{path}");
    let received = whole.check(Pattern::new(1), 0);
    assert!(received.complete && received.len == len, "{path}");
}

fn expect_summary(output: &Output, code: i32, said: &str) {
    assert_eq!(stdout(output), said, "{output:?}");
    assert_eq!(output.status.code(), Some(code), "{output:?}");
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
