//! While an object is being stored: who asks for it follows, at the pace of the
//! origin, whatever becomes of the client that asked first.

use std::{
    env, fs,
    sync::{
        atomic::{AtomicUsize, Ordering},
        Barrier,
    },
    thread,
};

use crate::engine::{self, Object};
use crate::proxy;
use pingora_sendfile::cache::{DiskCache, FILL_BROKEN};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use tempfile::TempDir;
use test_support::{
    eventually, https_client, pattern, skip, Connection, Gate, HttpVersion, Incoming, Origin,
    Pattern, Proxy, Reply,
};

const MIB: u64 = 1024 * 1024;
const LEN: u64 = 2 * MIB + 5;
/// The offset at which the origin pauses.
const HALF: u64 = MIB + 1;
/// The bytes that clients surely have by then. Pingora keeps the last bytes of a body
/// back, fewer than a segment holds, until there are more (as nginx does with
/// postpone_output).
const SENT: u64 = HALF - 1460;
const OBJECT: &str = "/assets/object";
const KEY: &str = "/bucket/object";

type Framing = fn(Reply) -> Reply;

const FRAMINGS: [(&str, Framing); 3] = [
    ("a known length", |reply| reply),
    ("chunks", Reply::chunked),
    ("the end of the connection", Reply::until_close),
];

// --- who follows ---

#[test]
fn a_follower_gets_what_is_written_and_then_the_rest() {
    for (framing, framed) in FRAMINGS {
        let gate = Gate::new();
        let origin = held_origin(&gate, framed);
        let proxy = proxy(&origin).start();

        let mut leader = Connection::open(proxy.addr());
        let mut miss = leader.begin("GET", OBJECT, &[]);
        assert_eq!(miss.headers.get("x-cache"), Some("MISS"), "{framing}");
        read_start(&mut miss);

        let mut follower = Connection::open(proxy.addr());
        let mut hit = follower.begin("GET", OBJECT, &[]);
        assert_eq!(hit.status, 200, "{framing}");
        assert_eq!(hit.headers.get("x-cache"), Some("HIT"), "{framing}");
        assert_eq!(hit.headers.get("etag"), Some(ETAG), "{framing}");
        read_start(&mut hit);

        gate.open();
        for transfer in [hit, miss] {
            expect_rest(transfer, framing);
        }
        assert_eq!(origin.requests().len(), 1, "{framing}");
        proxy.expect_metric("cache_sendfile_total", 1);
        proxy.expect_metric("cache_sendfile_bytes_total", LEN);
    }
}

#[test]
fn a_follower_of_a_small_object_is_sent_copies() {
    const LEN: u64 = 15_000;
    const SENT: u64 = 5_000;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, LEN).hold_at(LEN / 2, &gate)
    });
    let proxy = proxy(&origin).start();
    let mut leader = Connection::open(proxy.addr());
    let mut miss = leader.begin("GET", OBJECT, &[]);
    assert_eq!(miss.read_some(SENT as usize), pattern(1, SENT as usize));
    let mut follower = Connection::open(proxy.addr());
    let mut hit = follower.begin("GET", OBJECT, &[]);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    assert_eq!(hit.read_some(SENT as usize), pattern(1, SENT as usize));
    gate.open();
    for transfer in [hit, miss] {
        let rest = transfer.check(Pattern::new(1), SENT);
        assert!(rest.complete);
        assert_eq!(SENT + rest.len, LEN);
    }
    proxy.expect_metric("cache_hits_total", 1);
    assert_eq!(proxy.metric("cache_sendfile_total"), 0);
}

#[test]
fn ranges_and_conditions_are_answered_during_a_fill() {
    let gate = Gate::new();
    let origin = held_origin(&gate, |reply| reply);
    let proxy = proxy(&origin).start();
    let mut leader = Connection::open(proxy.addr());
    let mut miss = leader.begin("GET", OBJECT, &[]);
    read_start(&mut miss);

    // Written bytes are there at once.
    let mut follower = Connection::open(proxy.addr());
    for (first, last) in [(0, 0), (1000, 1999), (SENT - 100_000, SENT - 1)] {
        let range = format!("bytes={first}-{last}");
        let part = follower.begin("GET", OBJECT, &[("Range", &range)]);
        assert_eq!(part.status, 206, "{range}");
        let expected = format!("bytes {first}-{last}/{LEN}");
        assert_eq!(part.headers.get("content-range"), Some(&*expected));
        let received = part.check(Pattern::new(1), first);
        assert!(received.complete, "{range}");
        assert_eq!(received.len, last - first + 1, "{range}");
    }
    let same = follower.request("GET", OBJECT, &[("If-None-Match", ETAG)]);
    assert_eq!(same.status, 304);
    assert_eq!(same.header("etag"), Some(ETAG));
    let past = follower.request("GET", OBJECT, &[("Range", &format!("bytes={LEN}-"))]);
    assert_eq!(past.status, 416);

    // The rest is waited for.
    let before = proxy.metric("cache_fill_followers_total");
    let addr = proxy.addr();
    let waiting = [
        (
            format!("bytes={}-{}", HALF + 1000, HALF + 1999),
            HALF + 1000,
            1000,
        ),
        (format!("bytes={}-{}", HALF - 10, HALF + 9), HALF - 10, 20),
        ("bytes=-100000".to_owned(), LEN - 100_000, 100_000),
    ];
    thread::scope(|scope| {
        for (range, first, len) in &waiting {
            scope.spawn(move || {
                let mut follower = Connection::open(addr);
                let part = follower.begin("GET", OBJECT, &[("Range", range)]);
                assert_eq!(part.status, 206, "{range}");
                let received = part.check(Pattern::new(1), *first);
                assert!(received.complete, "{range}");
                assert_eq!(received.len, *len, "{range}");
            });
        }
        proxy.expect_metric("cache_fill_followers_total", before + 3);
        gate.open();
    });
    assert!(miss.finish().complete);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_range_of_an_object_of_unknown_length_is_answered_with_the_whole() {
    let gate = Gate::new();
    let origin = held_origin(&gate, Reply::chunked);
    let proxy = proxy(&origin).start();
    let mut leader = Connection::open(proxy.addr());
    let mut miss = leader.begin("GET", OBJECT, &[]);
    read_start(&mut miss);
    let mut follower = Connection::open(proxy.addr());
    let hit = follower.begin("GET", OBJECT, &[("Range", "bytes=1000-1999")]);
    assert_eq!(hit.status, 200);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    gate.open();
    let received = hit.check(Pattern::new(1), 0);
    assert!(received.complete);
    assert_eq!(received.len, LEN);
    assert!(miss.finish().complete);
}

#[test]
fn a_thousand_clients_at_once_make_one_origin_request() {
    const CLIENTS: usize = 1000;
    // A socket here, a socket and a file there.
    allow_open_files(3 * CLIENTS as u64);
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, MIB).hold_at(MIB / 2, &gate)
    });
    let proxy = proxy(&origin).start();
    let addr = proxy.addr();
    let all_have_asked = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = Connection::open(addr);
                connection.send("GET", OBJECT, &[]).expect("send");
                all_have_asked.wait();
                let response = connection.incoming("GET", OBJECT);
                assert_eq!(response.status, 200);
                let received = response.check(Pattern::new(1), 0);
                assert!(received.complete);
                assert_eq!(received.len, MIB);
            });
        }
        all_have_asked.wait();
        gate.wait_for_arrivals(1);
        gate.open();
    });
    assert_eq!(origin.requests().len(), 1);
    proxy.expect_metric("cache_misses_total", 1);
    proxy.expect_metric("cache_hits_total", CLIENTS as u64 - 1);
    assert_eq!(proxy.metric("response_errors_total"), 0);
}

#[test]
fn of_those_who_wait_for_a_slow_origin_one_at_a_time_asks_too() {
    const CLIENTS: usize = 20;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| {
            // Before the header.
            gate.pass();
            Reply::pattern(1, LEN)
        }
    });
    let proxy = proxy(&origin).cache("lock_age", "1s").start();
    let addr = proxy.addr();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let response = Connection::open(addr).request("GET", OBJECT, &[]);
                assert_eq!((response.status, response.complete), (200, true));
            });
        }
        // The first request, and another one each second.
        gate.wait_for_arrivals(5);
        assert_eq!(origin.requests().len(), 5);
        gate.open();
    });
    assert!(origin.requests().len() <= 6, "{}", origin.requests().len());
}

#[test]
fn more_misses_than_may_be_stored_at_once_take_turns() {
    const MAX_FILLS: usize = 4;
    const CLIENTS: u64 = 20;
    // Small, so that no request runs out of patience on a slow machine.
    const LEN: u64 = 64 * 1024;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, LEN).hold_at(LEN / 2, &gate)
    });
    let proxy = proxy(&origin).cache("max_fills", MAX_FILLS).start();
    let addr = proxy.addr();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let path = format!("/assets/{client}");
                let mut connection = Connection::open(addr);
                let response = connection.begin("GET", &path, &[]);
                let received = response.check(Pattern::new(1), 0);
                assert!(received.complete);
                assert_eq!(received.len, LEN);
            });
        }
        gate.wait_for_arrivals(MAX_FILLS);
        proxy.expect_metric("cache_fills_in_flight", MAX_FILLS as u64);
        gate.open();
    });
    proxy.expect_metric("cache_entries", CLIENTS);
    proxy.expect_metric_where("cache_fill_errors_total", &[("cause", "too_many")], 0);
}

#[test]
fn misses_beyond_the_limit_wait_in_order_and_hits_do_not() {
    const MAX_MISSES: usize = 4;
    const CLIENTS: usize = 40;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| {
            if request.path() != KEY {
                // Before the header.
                gate.pass();
            }
            Reply::pattern(1, LEN)
        }
    });
    let proxy = proxy(&origin).cache("max_misses", MAX_MISSES).start();
    assert!(proxy.get(OBJECT).complete);
    proxy.expect_metric("cache_entries", 1);
    let addr = proxy.addr();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let path = format!("/assets/{client}");
                let response = Connection::open(addr).request("GET", &path, &[]);
                assert_eq!((response.status, response.complete), (200, true));
            });
        }
        gate.wait_for_arrivals(MAX_MISSES);
        proxy.expect_metric("cache_misses_waiting", (CLIENTS - MAX_MISSES) as u64);
        assert_eq!(proxy.metric("cache_misses_in_flight"), MAX_MISSES as u64);
        assert_eq!(origin.requests().len(), 1 + MAX_MISSES);
        expect_whole(&proxy, "HIT", LEN);
        gate.open();
    });
    assert_eq!(proxy.metric("cache_misses_waiting"), 0);
    assert_eq!(proxy.metric("cache_misses_refused_total"), 0);
}

#[test]
fn a_miss_without_a_turn_is_told_to_come_back() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, LEN).chunked().hold_at(HALF, &gate)
    });
    // A first request is not admitted, so its response passes.
    let proxy = proxy(&origin)
        .max_size_gb(0.001)
        .cache("max_misses", 1)
        .cache("miss_timeout", "200ms")
        .cache("admission", 2)
        .start();
    let mut first = Connection::open(proxy.addr());
    let mut passes = first.begin("GET", OBJECT, &[]);
    read_start(&mut passes);
    let mut second = Connection::open(proxy.addr());
    let refused = second.request("GET", "/assets/other", &[]);
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(origin.requests().len(), 1);
    proxy.expect_metric("cache_misses_refused_total", 1);
    gate.open();
    expect_rest(passes, "the one that has its turn");
    let served = second.request("GET", "/assets/other", &[]);
    assert_eq!((served.status, served.complete), (200, true));
}

#[test]
fn clients_that_read_nothing_do_not_keep_all_turns() {
    const MAX_MISSES: u64 = 4;
    let origin = Origin::start(|_| Reply::pattern(1, 64 * MIB));
    let proxy = proxy(&origin)
        .cache("max_misses", MAX_MISSES)
        .cache("admission", 255)
        .start();
    let held: Vec<_> = (0..MAX_MISSES)
        .map(|client| {
            let mut connection = Connection::with_receive_buffer(proxy.addr(), 4096);
            let path = format!("/assets/{client}");
            connection.send("GET", &path, &[]).expect("send");
            // In this order, so that the last two are those that may be cut.
            proxy.expect_metric("cache_misses_in_flight", client + 1);
            connection
        })
        .collect();
    let mut connection = Connection::open(proxy.addr());
    let served = connection.request("GET", "/assets/other", &[]);
    assert_eq!((served.status, served.complete), (200, true));
    // The first half may be as slow as they like.
    eventually("the others have ended", || {
        proxy.metric("cache_misses_in_flight") == MAX_MISSES / 2
    });
    drop(held);
}

#[test]
fn a_client_that_reads_from_the_disk_keeps_no_turn() {
    const LARGE: u64 = 64 * MIB;
    // Validated each time.
    let origin = Origin::start(|asked| match asked.header("if-none-match") {
        Some(_) => Reply::status(304).header("ETag", "\"1\""),
        None => Reply::pattern(1, LARGE)
            .header("ETag", "\"1\"")
            .header("Cache-Control", "no-cache"),
    });
    let proxy = proxy(&origin).cache("max_misses", 1).start();
    assert!(proxy.get(OBJECT).complete);
    proxy.expect_metric("cache_entries", 1);
    let mut slow = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut transfer = slow.begin("GET", OBJECT, &[]);
    assert_eq!(transfer.headers.get("x-cache"), Some("REVALIDATED"));
    transfer.read_some(1);
    proxy.expect_metric("cache_misses_in_flight", 0);
    assert!(proxy.get("/assets/other").complete);
}

#[test]
fn the_memory_of_misses_that_are_not_stored_is_bounded() {
    const MAX_MISSES: u64 = 100;
    const CLIENTS: u64 = 1000;
    /// More than the proxy and the kernel's buffers take of it.
    const LEN: u64 = 64 * MIB;
    allow_open_files(4 * CLIENTS);
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin)
        .cache("max_misses", MAX_MISSES)
        .cache("admission", 255)
        .start();
    let before = proxy.rss_bytes();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let mut connection = Connection::with_receive_buffer(proxy.addr(), 4096);
            let path = format!("/assets/{client}");
            connection.send("GET", &path, &[]).expect("send");
            connection
        })
        .collect();
    proxy.expect_metric("cache_misses_waiting", CLIENTS - MAX_MISSES);
    eventually("the buffers of those who have a turn are full", || {
        origin.bytes_sent() > MAX_MISSES * MIB
    });
    let taken = proxy.peak_rss_bytes() - before;
    println!(
        "{CLIENTS} misses at once, {MAX_MISSES} of them in flight: {} MB",
        taken / 1_000_000
    );
    // The others have a connection, and a request.
    let bound = MAX_MISSES * 1_000_000 + CLIENTS * 60_000;
    assert!(taken < bound, "{taken}, not {bound}");
    drop(clients);
}

#[test]
fn a_response_that_is_stored_takes_no_turn() {
    let gate = Gate::new();
    let origin = held_origin(&gate, |reply| reply);
    let proxy = proxy(&origin).cache("max_misses", 1).start();
    let mut clients = [
        Connection::open(proxy.addr()),
        Connection::open(proxy.addr()),
    ];
    let transfers: Vec<_> = clients
        .iter_mut()
        .enumerate()
        .map(|(number, client)| {
            let mut transfer = client.begin("GET", &format!("/assets/{number}"), &[]);
            read_start(&mut transfer);
            transfer
        })
        .collect();
    gate.open();
    for transfer in transfers {
        expect_rest(transfer, "stored");
    }
}

#[test]
fn a_response_that_may_outgrow_the_cache_keeps_its_turn() {
    let gate = Gate::new();
    let origin = held_origin(&gate, Reply::chunked);
    let proxy = proxy(&origin).cache("max_misses", 1).start();
    let addr = proxy.addr();
    let mut first = Connection::open(addr);
    let mut transfer = first.begin("GET", OBJECT, &[]);
    read_start(&mut transfer);
    thread::scope(|scope| {
        scope.spawn(move || {
            let response = Connection::open(addr).request("GET", "/assets/other", &[]);
            assert_eq!((response.status, response.complete), (200, true));
        });
        proxy.expect_metric("cache_misses_waiting", 1);
        assert_eq!(origin.requests().len(), 1);
        gate.open();
        expect_rest(transfer, "the first one");
    });
}

#[test]
fn an_origin_that_does_not_answer_takes_no_turns() {
    const WAITING: usize = 3;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| {
            if request.path().starts_with("/bucket/hangs") {
                // Before the header.
                gate.pass();
            }
            Reply::pattern(1, LEN)
        }
    });
    let proxy = proxy(&origin).cache("max_fills", 1).start();
    let addr = proxy.addr();
    thread::scope(|scope| {
        for client in 0..WAITING {
            scope.spawn(move || {
                let path = format!("/assets/hangs/{client}");
                assert!(Connection::open(addr).request("GET", &path, &[]).complete);
            });
        }
        gate.wait_for_arrivals(WAITING);
        assert!(proxy.get(OBJECT).complete);
        proxy.expect_metric("cache_entries", 1);
        proxy.expect_metric_where("cache_fill_errors_total", &[("cause", "too_many")], 0);
        gate.open();
    });
}

#[test]
fn those_who_wait_for_the_same_object_go_on_at_once_when_there_is_no_turn_for_it() {
    const CLIENTS: usize = 8;
    let held = Gate::new();
    let asked = Gate::new();
    let origin = Origin::start({
        let (held, asked) = (held.clone(), asked.clone());
        move |request| {
            if request.path() == "/bucket/held" {
                return Reply::pattern(1, LEN).hold_at(HALF, &held);
            }
            asked.pass();
            Reply::pattern(1, LEN)
        }
    });
    let proxy = proxy(&origin).cache("max_fills", 1).start();
    let addr = proxy.addr();
    thread::scope(|scope| {
        let mut leader = Connection::open(addr);
        let mut miss = leader.begin("GET", "/assets/held", &[]);
        read_start(&mut miss);
        for _ in 0..CLIENTS {
            scope.spawn(|| assert!(Connection::open(addr).request("GET", OBJECT, &[]).complete));
        }
        asked.wait_for_arrivals(1);
        asked.open();
        // One fill was refused, and the others were not even tried.
        eventually("all have asked", || origin.requests().len() == 1 + CLIENTS);
        held.open();
    });
    proxy.expect_metric_where("cache_fill_errors_total", &[("cause", "too_many")], 1);
}

#[test]
fn the_first_byte_of_a_huge_object_does_not_wait_for_the_last() {
    const HUGE: u64 = 10 * 1024 * MIB;
    const TRIES: usize = 20;
    let free = rustix::fs::statvfs(env::temp_dir())
        .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if free < HUGE + HUGE / 4 {
        return skip(&format!("{free} bytes of free disk space are too few"));
    }
    let origin = Origin::start(|request| match request.path() {
        "/bucket/huge" => Reply::pattern(1, HUGE).paced(4 * MIB),
        _ => Reply::pattern(1, MIB),
    });
    let proxy = proxy(&origin).max_size_gb(20).start();
    let mut leader = Connection::open(proxy.addr());
    let mut miss = leader.begin("GET", "/assets/huge", &[]);
    assert_eq!(miss.headers.get("content-length"), Some(&*HUGE.to_string()));
    assert_eq!(miss.read_some(1), pattern(1, 1));
    for _ in 0..TRIES {
        let mut connection = Connection::open(proxy.addr());
        let mut hit = connection.begin("GET", "/assets/huge", &[]);
        assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
        assert_eq!(hit.read_some(1), pattern(1, 1));
    }
    // The leader gets more all the while.
    assert_eq!(miss.read_some(MIB as usize).len() as u64, MIB);
    // All of it would take three quarters of an hour.
    let sent = origin.bytes_sent();
    assert!(sent < HUGE / 2, "{sent}");
    assert_eq!(origin.requests().len(), 1);
}

// --- leaders that are slow, or go away ---

#[test]
fn a_leader_that_does_not_read_holds_nobody_up() {
    const LEN: u64 = 32 * MIB;
    for (framing, framed) in FRAMINGS {
        let taken = Gate::new();
        taken.open();
        let origin = Origin::start({
            let taken = taken.clone();
            move |_| framed(Reply::pattern(1, LEN).hold_at(LEN, &taken))
        });
        let proxy = proxy(&origin).start();
        let mut leader = Connection::with_receive_buffer(proxy.addr(), 4096);
        let miss = leader.begin("GET", OBJECT, &[]);
        assert_eq!(miss.headers.get("x-cache"), Some("MISS"), "{framing}");

        taken.wait_for_arrivals(1);
        expect_whole(&proxy, "HIT", LEN);
        proxy.expect_metric("cache_entries", 1);

        let received = miss.check(Pattern::new(1), 0);
        assert!(received.complete, "{framing}");
        assert_eq!(received.len, LEN, "{framing}");
        assert_eq!(origin.requests().len(), 1, "{framing}");
    }
}

#[test]
fn a_leader_that_does_not_read_holds_nobody_up_over_https() {
    const LEN: u64 = 32 * MIB;
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let taken = Gate::new();
        taken.open();
        let origin = Origin::start({
            let taken = taken.clone();
            move |_| Reply::pattern(1, LEN).hold_at(LEN, &taken)
        });
        let proxy = proxy(&origin).tls().start();
        let url = format!("https://{}{OBJECT}", proxy.https_addr());
        let miss = https_client(version).get(url).send();
        let miss = miss.expect("a response");
        assert_eq!(miss.headers()["x-cache"], "MISS", "{version:?}");

        taken.wait_for_arrivals(1);
        expect_whole(&proxy, "HIT", LEN);
        let body = miss.bytes().expect("the whole body");
        assert_eq!(body.len() as u64, LEN, "{version:?}");
        Pattern::new(1).check(0, &body);
        assert_eq!(origin.requests().len(), 1, "{version:?}");
    }
}

#[test]
fn a_leader_that_goes_away_does_not_end_the_fill() {
    type GoAway = fn(Connection);
    let ways: [(&str, GoAway); 2] = [("closes", drop), ("resets", Connection::abort)];
    for (how, go_away) in ways {
        for followed in [true, false] {
            let gate = Gate::new();
            let origin = held_origin(&gate, |reply| reply);
            let proxy = proxy(&origin).cache("fill_without_readers", 0).start();
            let mut leader = Connection::open(proxy.addr());
            let mut miss = leader.begin("GET", OBJECT, &[]);
            read_start(&mut miss);
            let mut follower = Connection::open(proxy.addr());
            let hit = followed.then(|| {
                let mut hit = follower.begin("GET", OBJECT, &[]);
                read_start(&mut hit);
                hit
            });

            drop(miss);
            go_away(leader);
            gate.open();
            if let Some(hit) = hit {
                expect_rest(hit, how);
            }
            proxy.expect_metric("cache_entries", 1);
            expect_whole(&proxy, "HIT", LEN);
            assert_eq!(origin.requests().len(), 1, "{how}, followed: {followed}");
        }
    }
}

#[test]
fn a_fill_that_nobody_waits_for_stops() {
    // The bytes received by then stay in the buffers of the kernel and the proxy.
    const LEN: u64 = 200 * MIB;
    for (framing, framed) in FRAMINGS {
        let origin = Origin::start(move |_| framed(Reply::pattern(1, LEN).paced(MIB)));
        let proxy = proxy(&origin).start();
        for clients in 1..=2 {
            let connections = (0..clients).map(|_| Connection::open(proxy.addr()));
            let mut connections: Vec<_> = connections.collect();
            for connection in &mut connections {
                let mut transfer = connection.begin("GET", OBJECT, &[]);
                transfer.read_some(1000);
            }
            drop(connections);
            let deserted = [("cause", "deserted")];
            proxy.expect_metric_where("cache_fill_errors_total", &deserted, clients);
            eventually("nothing is left of it", || files(&proxy) == 0);
            assert_eq!(origin.requests().len() as u64, clients, "{framing}");
        }
        let log = proxy.stderr();
        assert!(!log.contains("WARN"), "{log}");
    }
}

#[test]
fn a_stalled_origin_does_not_keep_a_fill_that_nobody_waits_for() {
    for (_, framed) in FRAMINGS {
        let gate = Gate::new();
        let origin = held_origin(&gate, framed);
        let proxy = proxy(&origin).cache("fill_without_readers", 1).start();
        let mut leader = Connection::open(proxy.addr());
        let mut miss = leader.begin("GET", OBJECT, &[]);
        read_start(&mut miss);
        drop(miss);
        leader.abort();
        eventually("the fill is given up", || {
            proxy.metric("cache_fills_in_flight") == 0
        });
        let deserted = [("cause", "deserted")];
        proxy.expect_metric_where("cache_fill_errors_total", &deserted, 1);
        eventually("nothing is left of it", || files(&proxy) == 0);
        gate.open();
    }
}

#[test]
fn a_fill_of_which_enough_has_come_goes_on_without_readers() {
    for (share, stored) in [(0.4, 1), (0.6, 0)] {
        let gate = Gate::new();
        let origin = held_origin(&gate, |reply| reply.paced(MIB));
        let proxy = proxy(&origin).cache("fill_without_readers", share).start();
        let mut leader = Connection::open(proxy.addr());
        let mut miss = leader.begin("GET", OBJECT, &[]);
        read_start(&mut miss);
        drop(miss);
        leader.abort();
        gate.open();
        let deserted = [("cause", "deserted")];
        proxy.expect_metric_where("cache_fill_errors_total", &deserted, 1 - stored);
        proxy.expect_metric("cache_entries", stored);
    }
}

#[test]
fn a_leader_too_slow_for_an_object_without_room_gets_it_whole() {
    const LEN: u64 = 48 * MIB;
    let origin = Origin::start(|_| Reply::pattern(1, LEN).chunked());
    let proxy = proxy(&origin).max_size_gb(0.01).start();
    let mut leader = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut miss = leader.begin("GET", OBJECT, &[]);
    Pattern::new(1).check(0, &miss.read_some(SENT as usize));
    proxy.expect_metric_where("cache_fill_errors_total", &[("cause", "no_space")], 1);
    expect_rest_of(miss, LEN);
    assert_eq!(proxy.metric("cache_entries"), 0);
}

// --- objects that outgrow the cache: readers of different paces ---

const OUTGROWS: u64 = 48 * MIB;

/// An origin whose object turns out too large for the cache, and which pauses at the gate.
/// It answers whole requests with the first of these versions, and ranges with the second.
fn outgrowing_origin(gate: &Gate, versions: [u64; 2]) -> Origin {
    let gate = gate.clone();
    Origin::start(move |request| {
        let object = |version| {
            Reply::pattern(version, OUTGROWS)
                .header("ETag", format!("\"{version}\""))
                .header("Accept-Ranges", "bytes")
        };
        match request.header("range") {
            // It ignores conditions.
            Some(_) => object(versions[1]).answering(&request.without_conditions()),
            None => object(versions[0]).chunked().hold_at(HALF, &gate),
        }
    })
}

/// A slow client and a fast one, of which the former asks first if it `leads`; both have got
/// what the origin sends before its pause.
fn slow_and_fast<'a>(
    slow: &'a mut Connection,
    fast: &'a mut Connection,
    slow_leads: bool,
) -> [Incoming<'a>; 2] {
    let begin = |connection: &'a mut Connection| {
        let mut transfer = connection.begin("GET", OBJECT, &[]);
        read_start(&mut transfer);
        transfer
    };
    if slow_leads {
        let slow = begin(slow);
        [slow, begin(fast)]
    } else {
        let fast = begin(fast);
        [begin(slow), fast]
    }
}

#[test]
fn neither_a_slow_leader_nor_a_slow_follower_holds_the_others_up() {
    for slow_leads in [true, false] {
        let gate = Gate::new();
        let origin = outgrowing_origin(&gate, [1, 1]);
        let proxy = proxy(&origin).max_size_gb(0.01).start();
        let mut slow = Connection::with_receive_buffer(proxy.addr(), 4096);
        let mut fast = Connection::open(proxy.addr());
        let [slow, fast] = slow_and_fast(&mut slow, &mut fast, slow_leads);
        gate.open();

        // The slow client takes nothing until the other one has all.
        expect_rest_of(fast, OUTGROWS);
        expect_rest_of(slow, OUTGROWS);
        let requests = origin.requests();
        let [whole, rest] = &requests[..] else {
            panic!("{requests:?}");
        };
        assert_eq!(whole.header("range"), None);
        let range = rest.header("range").expect("a range");
        assert!(range.ends_with('-') && range != "bytes=0-", "{range}");
        assert_eq!(rest.header("if-match"), Some("\"1\""));
        assert_eq!(proxy.metric("cache_entries"), 0);
        assert_eq!(
            proxy.metric("response_errors_total"),
            0,
            "{}",
            proxy.stderr()
        );
        let bodies = 2 * OUTGROWS;
        eventually("each body is counted once", || {
            proxy.metric("response_body_bytes_total") == bodies
        });
        let log = proxy.stderr();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

#[test]
fn a_slow_follower_never_gets_the_rest_of_another_version() {
    let gate = Gate::new();
    let origin = outgrowing_origin(&gate, [1, 2]);
    let proxy = proxy(&origin).max_size_gb(0.01).start();
    let mut slow = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut fast = Connection::open(proxy.addr());
    let [slow, fast] = slow_and_fast(&mut slow, &mut fast, false);
    gate.open();
    expect_rest_of(fast, OUTGROWS);
    // All that it gets is of the first version.
    assert!(!slow.check(Pattern::new(1), SENT).complete);
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn a_fast_follower_stays_if_the_origin_has_another_version() {
    let gate = Gate::new();
    let origin = outgrowing_origin(&gate, [1, 2]);
    let proxy = proxy(&origin).max_size_gb(0.01).start();
    let mut slow = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut fast = Connection::open(proxy.addr());
    let [slow, fast] = slow_and_fast(&mut slow, &mut fast, true);
    gate.open();
    thread::scope(|scope| {
        scope.spawn(|| expect_rest_of(fast, OUTGROWS));
        eventually("the rest is asked for", || origin.requests().len() == 2);
        expect_rest_of(slow, OUTGROWS);
    });
}

// --- fills that fail ---

type Break = fn(Reply) -> Reply;

#[test]
fn an_origin_that_breaks_off_breaks_every_transfer_and_stores_nothing() {
    const FOLLOWERS: usize = 5;
    let closes: Break = |reply| reply.close_at(HALF);
    let resets: Break = |reply| reply.reset_at(HALF);
    let [length, chunks, until_close] = FRAMINGS;
    for ((framing, framed), how, broken) in [
        (length, "closes", closes),
        (length, "resets", resets),
        (chunks, "closes", closes),
        (chunks, "resets", resets),
        // If it closes, that is the end of the body (RFC 9112, section 6.3).
        (until_close, "resets", resets),
    ] {
        let what = format!("{framing}, {how}");
        let gate = Gate::new();
        let asked = AtomicUsize::new(0);
        let origin = Origin::start({
            let gate = gate.clone();
            move |_| match asked.fetch_add(1, Ordering::SeqCst) {
                0 => broken(framed(object().hold_at(HALF, &gate))),
                _ => object(),
            }
        });
        let proxy = proxy(&origin).start();
        let mut connections: Vec<_> = (0..=FOLLOWERS)
            .map(|_| Connection::open(proxy.addr()))
            .collect();
        let mut transfers = Vec::new();
        for connection in &mut connections {
            let mut transfer = connection.begin("GET", OBJECT, &[]);
            let expected = if transfers.is_empty() { "MISS" } else { "HIT" };
            assert_eq!(transfer.headers.get("x-cache"), Some(expected), "{what}");
            read_start(&mut transfer);
            transfers.push(transfer);
        }

        gate.open();
        for transfer in transfers {
            let rest = transfer.check(Pattern::new(1), SENT);
            assert!(!rest.complete, "{what}");
            assert!(SENT + rest.len <= HALF, "{what}: {rest:?}");
        }
        proxy.expect_metric_where("cache_fill_errors_total", &[("cause", "origin")], 1);
        nothing_is_left(&proxy);

        expect_whole(&proxy, "MISS", LEN);
        expect_whole(&proxy, "HIT", LEN);
        assert_eq!(origin.requests().len(), 2, "{what}");
    }
}

#[test]
fn an_object_that_turns_out_larger_than_the_cache_is_never_cut_short() {
    const LEN: u64 = 12 * MIB;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, LEN).chunked().hold_at(HALF, &gate)
    });
    let proxy = proxy(&origin).max_size_gb(0.01).start();
    let mut leader = Connection::open(proxy.addr());
    let mut miss = leader.begin("GET", OBJECT, &[]);
    read_start(&mut miss);
    let mut follower = Connection::open(proxy.addr());
    let mut hit = follower.begin("GET", OBJECT, &[]);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    read_start(&mut hit);

    // The cache finds out when most of the body has been sent. Clients that are reading it
    // get the rest, however slow one of them is.
    gate.open();
    thread::scope(|scope| {
        for transfer in [hit, miss] {
            scope.spawn(|| expect_rest_of(transfer, LEN));
        }
    });
    nothing_is_left(&proxy);

    // From then on it is known.
    for asked in 2..=3 {
        expect_whole(&proxy, "MISS", LEN);
        assert_eq!(origin.requests().len(), asked);
    }
    assert_eq!(files(&proxy), 0);
}

// --- purged during the fill ---

#[test]
fn a_fill_that_is_purged_goes_on_for_its_readers_and_is_not_stored() {
    const LEN: u64 = 200_000;
    type Purge = fn(&'static DiskCache) -> bool;
    let purges: [(&str, Purge); 2] = [
        ("by its key", |cache| {
            let purged = engine::block_on(cache.purge_key(&engine::key("group/key")));
            purged.expect("purge")
        }),
        ("by a prefix", |cache| {
            let banned = engine::block_on(cache.ban_prefix(engine::TAG, b"group/"));
            banned.expect("ban");
            true
        }),
    ];
    for (how, purge) in purges {
        for object in [Object::new(1, LEN), Object::new(1, LEN).chunked()] {
            let folder = TempDir::new().expect("make a folder");
            let cache = engine::open(engine::config(folder.path(), 1_000_000));
            let half = LEN / 2;
            let (mut miss, follower) = engine::block_on(async {
                let mut miss = engine::begin(cache, "group/key", object).await;
                engine::write(&mut miss, object, 0, half).await;
                let (_, hit) = engine::lookup(cache, "group/key").await.expect("a hit");
                (miss, hit)
            });

            assert!(purge(cache), "{how}");
            engine::block_on(async {
                assert!(engine::lookup(cache, "group/key").await.is_none(), "{how}");
                engine::write(&mut miss, object, half, LEN).await;
                miss.finish().await.expect("finish");
                let body = engine::read(follower).await.expect("the whole body");
                assert_eq!(body, pattern(1, LEN as usize), "{how}");
                cache.settle().await;
                assert_eq!(engine::stored(cache, "group/key").await, None, "{how}");
                assert_eq!(cache.size_bytes(), 0, "{how}");

                // Entries stored from then on are not meant.
                let newer = Object::new(2, 1000);
                engine::fill(cache, "group/key", newer).await;
                cache.settle().await;
                assert_eq!(engine::stored(cache, "group/key").await, Some(newer));
            });
            engine::close(cache);

            let cache = engine::open(engine::config(folder.path(), 1_000_000));
            let stored = engine::block_on(engine::stored(cache, "group/key"));
            assert_eq!(stored, Some(Object::new(2, 1000)), "{how}");
            engine::close(cache);
        }
    }
}

#[test]
fn a_writer_that_gives_up_breaks_its_readers_also_after_a_purge() {
    let folder = TempDir::new().expect("make a folder");
    let cache = engine::open(engine::config(folder.path(), 1_000_000));
    let object = Object::new(1, 200_000).chunked();
    engine::block_on(async {
        let mut miss = engine::begin(cache, "key", object).await;
        engine::write(&mut miss, object, 0, 100_000).await;
        let (_, follower) = engine::lookup(cache, "key").await.expect("a hit");
        assert!(cache.purge_key(&engine::key("key")).await.expect("purge"));
        drop(miss);
        let e = engine::read(follower).await.expect_err("a broken body");
        assert_eq!(*e.etype(), FILL_BROKEN, "{e}");
        cache.settle().await;
    });
    assert_eq!((cache.entries(), cache.size_bytes()), (0, 0));
    engine::close(cache);
}

const ETAG: &str = "\"the-etag\"";

fn object() -> Reply {
    Reply::pattern(1, LEN).header("ETag", ETAG)
}

/// An origin that sends half of the object and waits at the gate.
fn held_origin(gate: &Gate, framed: Framing) -> Origin {
    let gate = gate.clone();
    Origin::start(move |_| framed(object().hold_at(HALF, &gate)))
}

/// Reads what is there before the origin goes on.
fn read_start(transfer: &mut Incoming) {
    Pattern::new(1).check(0, &transfer.read_some(SENT as usize));
}

fn expect_rest_of(transfer: Incoming, len: u64) {
    let rest = transfer.check(Pattern::new(1), SENT);
    assert!(rest.complete);
    assert_eq!(SENT + rest.len, len);
}

/// Reads what comes after that, to the end.
fn expect_rest(transfer: Incoming, what: &str) {
    let rest = transfer.check(Pattern::new(1), SENT);
    assert!(rest.complete, "{what}");
    assert_eq!(SENT + rest.len, LEN, "{what}");
}

fn expect_whole(proxy: &Proxy, x_cache: &str, len: u64) {
    let mut connection = Connection::open(proxy.addr());
    let response = connection.begin("GET", OBJECT, &[]);
    assert_eq!(response.headers.get("x-cache"), Some(x_cache));
    let received = response.check(Pattern::new(1), 0);
    assert!(received.complete);
    assert_eq!(received.len, len);
}

/// The number of files of entries, those being written included.
fn files(proxy: &Proxy) -> usize {
    let shards = fs::read_dir(proxy.cache_dir().join("v2")).expect("list the shards");
    shards
        .map(|shard| fs::read_dir(shard.expect("a shard").path()).expect("list a shard"))
        .map(Iterator::count)
        .sum()
}

/// Waits until the cache has no files, and no longer accounts for any.
fn nothing_is_left(proxy: &Proxy) {
    eventually("nothing is left of it", || {
        files(proxy) == 0
            && proxy.metric("cache_entries") == 0
            && proxy.metric("cache_size_bytes") == 0
    });
}

/// For this process and the proxies that it starts.
fn allow_open_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let raised = Rlimit {
            current: Some(count),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).expect("raise the limit on open files");
    }
}
