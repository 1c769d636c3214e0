//! A HEAD or a part of an object that is not stored: what the origin is asked, and
//! when the whole of it becomes a hit.

use std::{
    net::SocketAddr,
    sync::{
        atomic::{AtomicU64, Ordering},
        Barrier,
    },
    thread,
};

use crate::proxy;
use test_support::{eventually, Connection, Gate, Origin, Pattern, Proxy, Reply, Request};

const MIB: u64 = 1024 * 1024;
const LEN: u64 = 16 * MIB;
const OBJECT: &str = "/assets/object";
const KEY: &str = "/bucket/object";

fn origin_of(len: u64) -> Origin {
    Origin::start(move |request| reply(len).answering(request))
}

fn reply(len: u64) -> Reply {
    Reply::pattern(1, len).header("etag", "\"1\"")
}

/// Read a part, whoever sends it.
fn read_part(connection: &mut Connection, first: u64, last: u64) -> String {
    let range = format!("bytes={first}-{last}");
    let part = connection.begin("GET", OBJECT, &[("Range", &range)]);
    assert_eq!(part.status, 206, "{range}");
    let whole = part.headers.get("content-range").unwrap_or_default();
    assert!(
        whole.starts_with(&format!("bytes {first}-{last}/")),
        "{whole}"
    );
    let x_cache = part.headers.get("x-cache").unwrap_or_default().to_owned();
    let received = part.check(Pattern::new(1), first);
    assert!(received.complete, "{range}");
    assert_eq!(received.len, last - first + 1, "{range}");
    x_cache
}

/// The number of the object's bytes in an answer to this request.
fn bytes_of(request: &Request, len: u64) -> u64 {
    let Some(range) = request.header("range") else {
        return len;
    };
    let (first, last) = range["bytes=".len()..].split_once('-').expect(range);
    let first: u64 = first.parse().expect(range);
    let last = last.parse().map_or(len - 1, |last: u64| last.min(len - 1));
    last + 1 - first
}

#[test]
fn a_head_asks_the_origin_for_a_header() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).cache("head_ttl", 0).start();
    let mut client = Connection::open(proxy.addr());
    for _ in 0..2 {
        let head = client.request("HEAD", OBJECT, &[]);
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-length"), Some(&*LEN.to_string()));
        assert_eq!(head.header("etag"), Some("\"1\""));
        assert_eq!(head.header("x-cache"), Some("MISS"));
    }
    let methods: Vec<_> = origin.requests().into_iter().map(|r| r.method).collect();
    assert_eq!(methods, ["HEAD", "HEAD"]);
    assert_eq!(proxy.metric("cache_entries"), 0);

    // From a stored response it is answered.
    assert_eq!(proxy.get(OBJECT).header("x-cache"), Some("MISS"));
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    let head = client.request("HEAD", OBJECT, &[]);
    assert_eq!(head.header("x-cache"), Some("HIT"));
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn a_part_comes_at_once_and_the_whole_in_the_background() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.header("range") {
            Some(_) => reply(LEN).answering(request),
            None => reply(LEN).hold_at(MIB, &gate),
        }
    });
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read_part(&mut client, LEN - 1000, LEN - 1), "MISS");

    // Bytes that the fill has come from it; bytes far ahead do not.
    gate.wait_for_arrivals(1);
    eventually("the first bytes are a hit", || {
        read_part(&mut client, 0, 999) == "HIT"
    });
    assert_eq!(read_part(&mut client, LEN - 1000, LEN - 1), "MISS");
    let whole = |request: &Request| request.header("range").is_none();
    assert_eq!(origin.requests().iter().filter(|r| whole(r)).count(), 1);

    gate.open();
    eventually("the fill is over", || {
        proxy.metric("cache_fills_in_flight") == 0
    });
    let asked = origin.requests().len();
    assert_eq!(read_part(&mut client, LEN - 1000, LEN - 1), "HIT");
    assert_eq!(proxy.get(OBJECT).header("x-cache"), Some("HIT"));
    assert_eq!(origin.requests().len(), asked);
    proxy.expect_metric("cache_fills_total", 1);
}

/// The AWS CLI fetches large objects in parts of 8 MiB, ten at a time.
#[test]
fn parallel_parts_cost_at_most_two_transfers() {
    const LEN: u64 = 1024 * MIB;
    const PART: u64 = 8 * MIB;
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    let addr = proxy.addr();
    let next = AtomicU64::new(0);
    let together = Barrier::new(10);
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut client = Connection::open(addr);
                together.wait();
                loop {
                    let first = next.fetch_add(PART, Ordering::Relaxed);
                    if first >= LEN {
                        break;
                    }
                    read_part(&mut client, first, first + PART - 1);
                }
            });
        }
    });
    let requests = origin.requests();
    let bytes: u64 = requests.iter().map(|r| bytes_of(r, LEN)).sum();
    let wholes = requests.iter().filter(|r| r.header("range").is_none());
    println!(
        "{} requests to the origin, {:.2} times the object",
        requests.len(),
        bytes as f64 / LEN as f64
    );
    assert_eq!(wholes.count(), 1, "the whole, once");
    assert!(bytes <= 2 * LEN, "{bytes} bytes of {LEN}");
    eventually("the fill is over", || {
        proxy.metric("cache_fills_in_flight") == 0
    });
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read_part(&mut client, LEN - 1, LEN - 1), "HIT");
}

/// Download all parts by connections of their own. `next`: the first byte that nobody has asked
/// for.
fn download_parts(addr: SocketAddr, len: u64, next: &AtomicU64, connections: usize) {
    const PART: u64 = 8 * MIB;
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut client = Connection::open(addr);
                loop {
                    let first = next.fetch_add(PART, Ordering::Relaxed);
                    if first >= len {
                        break;
                    }
                    let last = (first + PART).min(len) - 1;
                    let range = format!("bytes={first}-{last}");
                    let fields = [("Range", &*range), ("If-Match", "\"1\"")];
                    let part = client.begin("GET", OBJECT, &fields);
                    assert_eq!(part.status, 206, "{range}");
                    let received = part.check(Pattern::new(1), first);
                    assert!(received.complete, "{range}");
                    assert_eq!(received.len, last + 1 - first, "{range}");
                }
            });
        }
    });
}

/// An origin that offers ranges, as S3 does.
fn s3(len: u64, pace: u64) -> Origin {
    Origin::start(move |request| {
        reply(len)
            .header("accept-ranges", "bytes")
            .answering(request)
            .paced(pace)
    })
}

/// Requests for bodies, and bytes of these.
fn cost(origin: &Origin, len: u64) -> (usize, u64) {
    let requests = origin.requests();
    let gets = requests.iter().filter(|request| request.method == "GET");
    let bytes = gets.clone().map(|request| bytes_of(request, len)).sum();
    (gets.count(), bytes)
}

/// A HEAD, then parts of 8 MiB with If-Match, ten at a time.
#[test]
fn a_download_by_the_aws_cli_or_boto3_costs_the_origin_the_object_and_the_parts_ahead_of_the_first()
{
    const LEN: u64 = 100 * MIB;
    let origin = s3(LEN, 400 * MIB);
    let proxy = proxy(&origin).start();
    for number in 1..=2 {
        let before = cost(&origin, LEN);
        let head = Connection::open(proxy.addr()).request("HEAD", OBJECT, &[]);
        assert_eq!(head.status, 200);
        download_parts(proxy.addr(), LEN, &AtomicU64::new(0), 10);
        eventually("the object is stored", || {
            proxy.metric("cache_entries") == 1
        });
        let (requests, bytes) = cost(&origin, LEN);
        let (requests, bytes) = (requests - before.0, bytes - before.1);
        println!(
            "HEAD, then 10 parts of 8 MiB at a time, download {number}: {requests} GETs, {:.2} times the object",
            bytes as f64 / LEN as f64
        );
        match number {
            // The number that arrive before the first one is a matter of luck.
            1 => assert!(bytes <= LEN + 9 * 8 * MIB, "{bytes}"),
            _ => assert_eq!(requests, 0),
        }
    }
}

/// The first 8 MiB, from which the length becomes known, then the others.
#[test]
fn a_download_by_the_crt_costs_the_origin_the_object_once() {
    const LEN: u64 = 100 * MIB;
    let origin = s3(LEN, 400 * MIB);
    let proxy = proxy(&origin).start();
    for number in 1..=2 {
        let before = cost(&origin, LEN).0;
        let next = AtomicU64::new(8 * MIB);
        let mut first = Connection::open(proxy.addr());
        read_part(&mut first, 0, 8 * MIB - 1);
        download_parts(proxy.addr(), LEN, &next, 25);
        eventually("the object is stored", || {
            proxy.metric("cache_entries") == 1
        });
        let requests = cost(&origin, LEN).0 - before;
        println!("8 MiB, then 25 parts of 8 MiB at a time, download {number}: {requests} GETs");
        assert_eq!(requests, 2 - number);
    }
    assert_eq!(origin.bytes_sent(), LEN);
}

#[test]
fn parts_that_come_while_the_first_one_waits_for_the_origin_follow_the_same_fill() {
    const LEN: u64 = 40 * MIB;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| {
            gate.pass();
            reply(LEN)
                .header("accept-ranges", "bytes")
                .answering(request)
        }
    });
    // The fill takes as long as this machine needs for it.
    let proxy = proxy(&origin).range_fill("max_wait", "60s").start();
    let addr = proxy.addr();
    thread::scope(|scope| {
        scope.spawn(move || read_part(&mut Connection::open(addr), 0, 8 * MIB - 1));
        gate.wait_for_arrivals(1);
        let others: Vec<_> = (1..5)
            .map(|part| {
                let mut client = Connection::open(proxy.addr());
                let first = part * 8 * MIB;
                let range = format!("bytes={first}-{}", first + 8 * MIB - 1);
                let sent = client.send("GET", OBJECT, &[("Range", &range)]);
                sent.expect("send a request");
                (client, first)
            })
            .collect();
        eventually("all have come", || proxy.metric("connections_open") == 5);
        gate.open();
        for (mut client, first) in others {
            let part = client.incoming("GET", OBJECT);
            assert_eq!(part.status, 206);
            let received = part.check(Pattern::new(1), first);
            assert_eq!((received.len, received.complete), (8 * MIB, true));
        }
    });
    assert_eq!(cost(&origin, LEN), (1, LEN));
}

#[test]
fn a_part_far_ahead_of_a_slow_fill_is_fetched_by_itself() {
    const LEN: u64 = 64 * MIB;
    let origin = Origin::start(move |request| {
        let reply = reply(LEN).header("accept-ranges", "bytes");
        match request.header("range") {
            Some(_) => reply.answering(request),
            None => reply.paced(8 * MIB),
        }
    });
    let proxy = proxy(&origin).range_fill("max_wait", "300ms").start();
    let mut client = Connection::open(proxy.addr());
    let mut first = client.begin("GET", OBJECT, &[("Range", "bytes=0-33554431")]);
    first.read_some(1);
    // The client gets the part that it has asked for, with or without a wait.
    let mut ahead = Connection::open(proxy.addr());
    read_part(&mut ahead, 48 * MIB, 50 * MIB - 1);
    let requests = origin.requests();
    let [whole, part] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(whole.header("range"), None);
    assert_eq!(part.header("range"), Some("bytes=50331648-52428799"));
    // By now its pace is known.
    eventually("it does not wait", || {
        read_part(&mut ahead, 40 * MIB, 42 * MIB - 1) == "MISS"
    });
}

#[test]
fn a_part_that_waited_in_vain_is_of_the_version_of_the_fill() {
    const LEN: u64 = 64 * MIB;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.header("range") {
            // Another version by now.
            Some(_) => Reply::pattern(2, LEN)
                .header("accept-ranges", "bytes")
                .header("etag", "\"2\"")
                .answering(request),
            None => reply(LEN)
                .header("accept-ranges", "bytes")
                .hold_at(40 * MIB, &gate),
        }
    });
    let proxy = proxy(&origin).range_fill("max_wait", "1s").start();
    let mut client = Connection::open(proxy.addr());
    let mut first = client.begin("GET", OBJECT, &[("Range", "bytes=0-33554431")]);
    first.read_some(1);
    gate.wait_for_arrivals(1);
    let mut ahead = Connection::open(proxy.addr());
    let sent = ahead.send("GET", OBJECT, &[("Range", "bytes=50331648-52428799")]);
    sent.expect("send a request");
    eventually("the part was asked for", || origin.requests().len() == 2);
    assert_eq!(origin.requests()[1].header("if-match"), Some("\"1\""));
    // The rest is that of the fill.
    gate.open();
    let part = ahead.incoming("GET", OBJECT);
    assert_eq!(part.headers.get("etag"), Some("\"1\""));
    let received = part.check(Pattern::new(1), 48 * MIB);
    assert_eq!((received.len, received.complete), (2 * MIB, true));
}

#[test]
fn a_download_that_is_left_costs_no_more_than_what_was_on_its_way() {
    const LEN: u64 = 1024 * MIB;
    let origin = s3(LEN, 64 * MIB);
    let proxy = proxy(&origin).start();
    let mut client = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut first = client.begin("GET", OBJECT, &[("Range", "bytes=0-8388607")]);
    Pattern::new(1).check(0, &first.read_some(1000));
    drop(first);
    client.abort();
    fills_are_over(&proxy);
    assert!(origin.bytes_sent() < LEN / 4, "{}", origin.bytes_sent());
    // The blocks that have arrived.
    let stored = proxy.metric("cache_size_bytes");
    assert!(stored < origin.bytes_sent() + MIB, "{stored}");
}

#[test]
fn small_parts_of_a_large_object_do_not_fetch_the_whole() {
    const LEN: u64 = 200 * MIB;
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    for first in 0..50 {
        assert_eq!(read_part(&mut client, first * 1000, first * 1000), "MISS");
    }
    let wholes = || {
        let requests = origin.requests();
        let wholes = requests.iter().filter(|r| r.header("range").is_none());
        wholes.count()
    };
    assert_eq!(wholes(), 0);
    // A sixteenth of the object is enough.
    read_part(&mut client, 0, LEN / 16 - 1);
    eventually("the whole is fetched", || wholes() == 1);
    eventually("it is stored", || proxy.metric("cache_entries") == 1);
    assert_eq!(read_part(&mut client, LEN - 1, LEN - 1), "HIT");
}

#[test]
fn one_byte_parts_of_many_large_objects_cost_the_origin_as_many_bytes() {
    const OBJECTS: u64 = 10;
    const PARTS: u64 = 40;
    const LEN: u64 = 1024 * MIB;
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    for object in 0..OBJECTS {
        for part in 0..PARTS {
            let path = format!("/assets/{object}");
            let first = part * 1_000_000;
            let range = format!("bytes={first}-{first}");
            let part = client.request("GET", &path, &[("Range", &range)]);
            assert_eq!((part.status, part.body.len()), (206, 1));
        }
    }
    drop(client);
    fills_are_over(&proxy);
    println!(
        "{PARTS} parts of a byte of each of {OBJECTS} objects of 1 GiB: {} bytes from the origin",
        origin.bytes_sent()
    );
    assert_eq!(origin.bytes_sent(), OBJECTS * PARTS);
    assert_eq!(whole_requests(&origin), 0);
}

#[test]
fn clients_that_ask_for_much_and_leave_do_not_have_the_whole_fetched() {
    const CLIENTS: u64 = 20;
    const LEN: u64 = 1024 * MIB;
    let origin = Origin::start(|request| reply(LEN).answering(request).paced(64 * MIB));
    let proxy = proxy(&origin).start();
    for client in 0..CLIENTS {
        let first = (client + 1) * MIB;
        let range = format!("bytes={first}-{}", first + 64 * MIB - 1);
        let mut connection = Connection::with_receive_buffer(proxy.addr(), 4096);
        let mut part = connection.begin("GET", OBJECT, &[("Range", &range)]);
        assert_eq!(part.status, 206);
        Pattern::new(1).check(first, &part.read_some(1000));
        drop(part);
        connection.abort();
    }
    fills_are_over(&proxy);
    println!(
        "{CLIENTS} clients that ask for 64 MiB of 1 GiB and leave: {} bytes from the origin",
        origin.bytes_sent()
    );
    assert_eq!(whole_requests(&origin), 0);
    assert!(origin.bytes_sent() < LEN / 4, "{}", origin.bytes_sent());
}

/// Waits until the clients are gone and the fills that they began are over.
fn fills_are_over(proxy: &Proxy) {
    clients_are_gone(proxy);
    eventually("all fills are over", || {
        proxy.metric("cache_fills_in_flight") == 0
    });
}

/// A request ends, and perhaps begins a fill, before its connection does.
fn clients_are_gone(proxy: &Proxy) {
    eventually("all clients are gone", || {
        proxy.metric("connections_open") == 0
    });
}

fn whole_requests(origin: &Origin) -> usize {
    let requests = origin.requests();
    let wholes = requests.iter().filter(|r| r.header("range").is_none());
    wholes.count()
}

#[test]
fn a_client_has_a_budget_for_what_its_parts_make_the_proxy_fetch() {
    const OBJECTS: u64 = 20;
    let origin = origin_of(LEN);
    let proxy = proxy(&origin)
        .range_fill("client_mb_per_minute", 3 * LEN / 1_000_000 + 1)
        .start();
    let mut client = Connection::open(proxy.addr());
    for object in 0..OBJECTS {
        let path = format!("/assets/{object}");
        let part = client.request("GET", &path, &[("Range", "bytes=0-0")]);
        assert_eq!(part.status, 206);
    }
    eventually("what the budget allows is fetched", || {
        proxy.metric("cache_entries") >= 3 && proxy.metric("cache_fills_in_flight") == 0
    });
    // A spent budget comes back in a minute.
    let wholes = whole_requests(&origin);
    assert!((3..=6).contains(&wholes), "{wholes}");
}

#[test]
fn an_object_larger_than_the_budget_is_fetched_when_as_much_was_delivered() {
    const PART: u64 = 2 * MIB;
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).range_fill("client_mb_per_minute", 1).start();
    let mut client = Connection::open(proxy.addr());
    for first in (0..LEN - PART).step_by(PART as usize) {
        // The first byte would begin a download.
        let part = read_part(&mut client, first.max(1), first + PART - 1);
        assert_eq!(part, "MISS");
    }
    assert_eq!(whole_requests(&origin), 0);
    assert_eq!(
        read_part(&mut client, LEN - PART, LEN - 1),
        "MISS",
        "but for a byte, all of it was delivered"
    );
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(read_part(&mut client, LEN - 1, LEN - 1), "HIT");
    assert_eq!(origin.bytes_sent(), 2 * LEN - 1);
}

#[test]
fn what_is_fetched_for_parts_has_a_room_of_its_own() {
    // Each object is larger than an eighth of the cache.
    const OBJECTS: u64 = 4;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.header("range") {
            Some(_) => reply(LEN).answering(request),
            None => reply(LEN).hold_at(MIB, &gate),
        }
    });
    let proxy_with = |in_flight: f64| {
        proxy(&origin)
            .max_size_gb(0.1)
            .range_fill("max_in_flight_gb", in_flight)
            .start()
    };
    let ask = |proxy: &Proxy| {
        let mut client = Connection::open(proxy.addr());
        for object in 0..OBJECTS {
            let path = format!("/assets/{object}");
            let part = client.request("GET", &path, &[("Range", "bytes=0-0")]);
            assert_eq!(part.status, 206);
        }
        drop(client);
        clients_are_gone(proxy);
    };

    // Less than one has to be paid for, which a byte does not.
    let small = proxy_with(0.01);
    ask(&small);
    assert_eq!(whole_requests(&origin), 0);
    drop(small);

    let proxy = proxy_with(1.0);
    ask(&proxy);
    gate.wait_for_arrivals(OBJECTS as usize);
    gate.open();
    proxy.expect_metric("cache_entries", OBJECTS);
}

#[test]
fn the_whole_is_not_fetched_where_that_is_not_wanted() {
    let origin = origin_of(LEN);
    for (rule, proxy) in [
        (
            "switched off",
            proxy(&origin).range_fill("max_in_flight", 0),
        ),
        ("too large", proxy(&origin).range_fill("max_size_gb", 0.01)),
        ("larger than the cache", proxy(&origin).max_size_gb(0.01)),
    ] {
        let proxy = proxy.start();
        let mut client = Connection::open(proxy.addr());
        for _ in 0..3 {
            assert_eq!(read_part(&mut client, 5, 9), "MISS", "{rule}");
        }
        drop(proxy);
        for request in origin.requests() {
            assert_eq!(request.header("range"), Some("bytes=5-9"), "{rule}");
        }
    }
}

#[test]
fn the_whole_of_what_cannot_be_stored_is_not_fetched() {
    let origin = Origin::start(|request| {
        reply(LEN)
            .header("cache-control", "private")
            .answering(request)
    });
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    for _ in 0..3 {
        assert_eq!(read_part(&mut client, 5, 9), "MISS");
    }
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn from_the_first_byte_to_the_end_is_the_whole() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    let whole = client.begin("GET", OBJECT, &[("Range", "bytes=0-")]);
    assert_eq!(whole.status, 206);
    assert_eq!(whole.check(Pattern::new(1), 0).len, LEN);
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    assert_eq!(read_part(&mut client, 5, 9), "HIT");
    assert_eq!(origin.requests_for(KEY), 1);
    assert_eq!(origin.requests()[0].header("range"), None);
}

#[test]
fn a_part_of_something_stale_is_validated_by_itself() {
    let origin = Origin::start(|request| {
        reply(LEN)
            .header("cache-control", "max-age=0")
            .answering(request)
    });
    let proxy = proxy(&origin).start();
    assert_eq!(proxy.get(OBJECT).status, 200);
    eventually("the object is stored", || {
        proxy.metric("cache_entries") == 1
    });
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read_part(&mut client, LEN - 10, LEN - 1), "REVALIDATED");
    assert_eq!(client.request("HEAD", OBJECT, &[]).status, 200);
    let requests = origin.requests();
    let [_, part, head] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(part.header("if-none-match"), Some("\"1\""));
    assert_eq!(part.header("range"), Some("bytes=16777206-16777215"));
    assert_eq!(head.method, "HEAD");
    assert_eq!(head.header("if-none-match"), Some("\"1\""));
}

#[test]
fn a_whole_that_turns_out_not_to_be_for_all_is_fetched_once() {
    let origin = Origin::start(|request| match request.header("range") {
        Some(_) => reply(LEN).answering(request),
        None => reply(LEN).header("cache-control", "private"),
    });
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    read_part(&mut client, 5, 9);
    let wholes = || {
        let requests = origin.requests();
        requests
            .iter()
            .filter(|r| r.header("range").is_none())
            .count()
    };
    eventually("the whole is asked for", || wholes() == 1);
    // The outcome is known a moment later.
    eventually("it is not asked for again", || {
        let before = wholes();
        for _ in 0..5 {
            read_part(&mut client, 5, 9);
        }
        wholes() == before
    });
    assert!(wholes() <= 3, "{}", wholes());
}
