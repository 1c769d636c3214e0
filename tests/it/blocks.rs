//! Objects of which clients read parts: what the cache stores of them, and what the origin is asked.

use std::sync::{
    atomic::{AtomicU64, Ordering},
    Arc, Barrier,
};
use std::thread;

use crate::proxy;
use test_support::{
    entry_files, eventually, Connection, Gate, Origin, Pattern, Proxy, Reply, Request,
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = MIB;
const LEN: u64 = 64 * MIB + 12_345;
const OBJECT: &str = "/assets/object";

fn reply(len: u64, version: u64) -> Reply {
    Reply::pattern(version, len)
        .header("etag", format!("\"{version}\""))
        .header("accept-ranges", "bytes")
}

fn origin_of(len: u64) -> Origin {
    Origin::start(move |request| reply(len, 1).answering(request))
}

/// Reads a part of this version, and returns its `X-Cache`.
fn read(client: &mut Connection, version: u64, first: u64, len: u64) -> String {
    let range = format!("bytes={first}-{}", first + len - 1);
    let part = client.begin("GET", OBJECT, &[("Range", &range)]);
    assert_eq!(part.status, 206, "{range}: {:?}", part.headers);
    let etag = format!("\"{version}\"");
    assert_eq!(part.headers.get("etag"), Some(&*etag), "{range}");
    let x_cache = part.headers.get("x-cache").unwrap_or_default().to_owned();
    let received = part.check(Pattern::new(version), first);
    assert!(received.complete && received.len == len, "{range}");
    x_cache
}

/// Has an entry in blocks made for the object.
fn store_in_blocks(proxy: &Proxy) {
    // Before that, nothing is stored in blocks.
    eventually("the recovery is over", || proxy.listings() > 0);
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read(&mut client, 1, LEN / 2, 1), "MISS");
    eventually("there is an entry", || proxy.metric("cache_entries") == 1);
}

/// The ranges that the origin was asked for since it was told to forget the requests before.
fn ranges(origin: &Origin) -> Vec<String> {
    let requests = origin.requests();
    let range = |request: &Request| request.header("range").unwrap_or("all").to_owned();
    requests.iter().map(range).collect()
}

/// The origin sends so many bytes in all. It counts them a moment after they arrive.
fn sends(origin: &Origin, bytes: u64) {
    eventually("the bytes are counted", || origin.bytes_sent() >= bytes);
    assert_eq!(origin.bytes_sent(), bytes);
}

#[test]
fn random_reads_of_a_large_object_cost_a_block_each_and_once() {
    const LEN: u64 = 100 << 30;
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    let read = |client: &mut Connection, number: u64| {
        // Within a block.
        let first = number * 7_919 % (LEN / BLOCK) * BLOCK + number * 1_000;
        read(client, 1, first, 64 << 10)
    };
    assert_eq!(read(&mut client, 0), "MISS");
    eventually("there is an entry", || proxy.metric("cache_entries") == 1);
    origin.forget_requests();
    let before = origin.bytes_sent();
    for number in 0..100 {
        assert_eq!(read(&mut client, number), "PARTIAL");
    }
    sends(&origin, before + 100 * BLOCK);
    assert_eq!(origin.requests().len(), 100);
    for number in 0..100 {
        assert_eq!(read(&mut client, number), "HIT");
    }
    assert_eq!(origin.requests().len(), 100, "all is stored");
    eventually("the entry takes the space of its blocks", || {
        (100 * BLOCK..102 * BLOCK).contains(&proxy.metric("cache_size_bytes"))
    });
}

#[test]
fn blocks_stored_since_a_file_was_closed_are_found() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).max_open_files(0).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    let parts = (0..5).map(|number| 4 * number * BLOCK);
    for (number, first) in parts.clone().enumerate() {
        assert_eq!(read(&mut client, 1, first, 2 * BLOCK), "PARTIAL");
        origin.forget_requests();
        for first in parts.clone().take(number + 1) {
            assert_eq!(read(&mut client, 1, first, 2 * BLOCK), "HIT");
        }
        assert_eq!(origin.requests().len(), 0);
    }
    assert_eq!(proxy.metric("cache_open_files"), 0);
    assert_eq!(proxy.metric("cache_metadata_bytes"), 0);
    assert_eq!(proxy.metric("cache_body_opens_total"), 0);
}

#[test]
fn a_download_in_parallel_parts_costs_the_object_once() {
    const PART: u64 = 8 * MIB;
    const LEN: u64 = 256 * MIB;
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    read(&mut client, 1, LEN / 2, 1);
    eventually("there is an entry", || proxy.metric("cache_entries") == 1);
    let before = origin.bytes_sent();
    let next = AtomicU64::new(0);
    let addr = proxy.addr();
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut client = Connection::open(addr);
                loop {
                    let first = next.fetch_add(PART, Ordering::Relaxed);
                    if first >= LEN {
                        break;
                    }
                    assert_eq!(read(&mut client, 1, first, PART), "PARTIAL");
                }
            });
        }
    });
    sends(&origin, before + LEN);
    // All blocks are there: the whole is an ordinary hit.
    origin.forget_requests();
    let whole = client.begin("GET", OBJECT, &[]);
    assert_eq!(whole.status, 200);
    assert_eq!(whole.check(Pattern::new(1), 0).len, LEN);
    assert_eq!(origin.requests().len(), 0);
}

#[test]
fn blocks_and_requests_for_them_have_the_configured_size() {
    let origin = origin_of(LEN);
    let blocks = "{size_kib: 100, read_ahead_mib: 2}";
    let proxy = proxy(&origin).cache("blocks", blocks).start();
    store_in_blocks(&proxy);
    origin.forget_requests();
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read(&mut client, 1, 1_000_000, 1), "PARTIAL");
    // 100 KiB are rounded up to 128.
    assert_eq!(ranges(&origin), ["bytes=917504-1048575"]);
    origin.forget_requests();
    assert_eq!(read(&mut client, 1, 8 * MIB, 4 * MIB), "PARTIAL");
    let mut asked = ranges(&origin);
    asked.sort();
    assert_eq!(asked, ["bytes=10485760-12582911", "bytes=8388608-10485759"]);
}

#[test]
fn objects_above_the_limit_are_not_stored() {
    const LIMIT: u64 = 20_000_000;
    let origin = Origin::start(|request| {
        let reply = match request.path() {
            "/bucket/small" => reply(LIMIT, 1),
            "/bucket/unknown" => reply(LIMIT + 1, 1).chunked(),
            _ => reply(LIMIT + 1, 1),
        };
        reply.answering(request)
    });
    let proxy = proxy(&origin).max_object_gb(0.02).start();
    let mut client = Connection::open(proxy.addr());
    let get = |client: &mut Connection, path: &str, headers: &[(&str, &str)]| {
        let response = client.begin("GET", path, headers);
        let x_cache = response
            .headers
            .get("x-cache")
            .unwrap_or_default()
            .to_owned();
        assert!(response.check(Pattern::new(1), 0).complete, "{path}");
        x_cache
    };
    for path in ["/assets/large", "/assets/unknown"] {
        for _ in 0..2 {
            assert_ne!(get(&mut client, path, &[]), "HIT", "{path}");
        }
    }
    for _ in 0..2 {
        let x_cache = get(&mut client, "/assets/in-parts", &[("Range", "bytes=0-9")]);
        assert_eq!(x_cache, "MISS");
    }
    assert_eq!(get(&mut client, "/assets/small", &[]), "MISS");
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(get(&mut client, "/assets/small", &[]), "HIT");
    assert_eq!(proxy.metric("cache_entries"), 1);
}

#[test]
fn a_block_that_many_want_is_fetched_once() {
    const CLIENTS: usize = 50;
    let gate = Gate::new();
    let held = Arc::new(AtomicU64::new(0));
    let origin = Origin::start({
        let (gate, held) = (gate.clone(), held.clone());
        move |request| {
            let reply = reply(LEN, 1).answering(request);
            match held.load(Ordering::Acquire) {
                0 => reply,
                _ => reply.hold_at(1000, &gate),
            }
        }
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    origin.forget_requests();
    held.store(1, Ordering::Release);
    let barrier = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        for number in 0..CLIENTS as u64 {
            let barrier = &barrier;
            let addr = proxy.addr();
            scope.spawn(move || {
                let mut client = Connection::open(addr);
                barrier.wait();
                read(&mut client, 1, 5 * BLOCK + number * 1000, 5000);
            });
        }
        barrier.wait();
        gate.wait_for_arrivals(1);
        eventually("all wait", || {
            proxy.metric("connections_open") >= CLIENTS as u64
        });
        gate.open();
    });
    let block = format!("bytes={}-{}", 5 * BLOCK, 6 * BLOCK - 1);
    assert_eq!(ranges(&origin), [block]);
}

#[test]
fn what_is_stored_outlasts_a_stop_and_a_kill() {
    let origin = origin_of(LEN);
    let mut proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    for (round, end) in ["stop", "kill"].into_iter().enumerate() {
        let first = (1 + 10 * round as u64) * BLOCK;
        let before = proxy.metric("cache_size_bytes");
        let mut client = Connection::open(proxy.addr());
        read(&mut client, 1, first, 3 * BLOCK);
        eventually("the blocks are recorded", || {
            proxy.metric("cache_size_bytes") >= before + 3 * BLOCK
        });
        drop(client);
        match end {
            "stop" => assert!(proxy.stop_gracefully().success()),
            _ => proxy.kill(),
        }
        proxy.restart();
        eventually("the entry is found", || proxy.metric("cache_entries") == 1);
        origin.forget_requests();
        let mut client = Connection::open(proxy.addr());
        assert_eq!(read(&mut client, 1, first, 3 * BLOCK), "HIT", "{end}");
        assert_eq!(ranges(&origin), Vec::<String>::new(), "{end}");
        // Only what is missing is fetched.
        read(&mut client, 1, first + 2 * BLOCK, 2 * BLOCK);
        let missing = format!("bytes={}-{}", first + 3 * BLOCK, first + 4 * BLOCK - 1);
        assert_eq!(ranges(&origin), [missing], "{end}");
    }
}

#[test]
fn the_whole_fetches_what_is_missing() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    for block in [1, 2, 40, 64] {
        let len = BLOCK.min(LEN - block * BLOCK);
        read(&mut client, 1, block * BLOCK, len);
    }
    let before = origin.bytes_sent();
    let whole = client.begin("GET", OBJECT, &[]);
    assert_eq!(whole.status, 200);
    let received = whole.check(Pattern::new(1), 0);
    assert!(received.complete && received.len == LEN);
    let stored = 3 * BLOCK + LEN % BLOCK;
    sends(&origin, before + LEN - stored);
}

#[test]
fn versions_are_never_mixed() {
    let version = Arc::new(AtomicU64::new(1));
    let origin = Origin::start({
        let version = version.clone();
        move |request| reply(LEN, version.load(Ordering::Acquire)).answering(request)
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read(&mut client, 1, 0, 2 * BLOCK), "PARTIAL");

    version.store(2, Ordering::Release);
    assert_eq!(read(&mut client, 1, 0, 2 * BLOCK), "HIT", "it is fresh");
    // A block that is missing shows that the object has changed.
    assert_eq!(read(&mut client, 2, 9 * BLOCK, BLOCK), "MISS");
    eventually("the old version is gone", || {
        read(&mut client, 2, 3 * BLOCK, 1000) != "MISS"
    });
}

#[test]
fn a_change_in_the_middle_of_a_response_breaks_it() {
    let version = Arc::new(AtomicU64::new(1));
    let origin = Origin::start({
        let version = version.clone();
        move |request| reply(LEN, version.load(Ordering::Acquire)).answering(request)
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    read(&mut client, 1, 0, BLOCK);
    version.store(2, Ordering::Release);
    // Its first block is stored.
    let whole = client.begin("GET", OBJECT, &[]);
    assert_eq!(whole.headers.get("etag"), Some("\"1\""));
    let received = whole.check(Pattern::new(1), 0);
    assert!(!received.complete);
    assert_eq!(received.len, BLOCK);
    // The next request gets the new version.
    let mut client = Connection::open(proxy.addr());
    let whole = client.begin("GET", OBJECT, &[]);
    assert_eq!(whole.headers.get("etag"), Some("\"2\""));
    let received = whole.check(Pattern::new(2), 0);
    assert!(received.complete && received.len == LEN);
}

#[test]
fn an_origin_that_breaks_off_costs_what_it_has_not_sent() {
    let breaks = Arc::new(AtomicU64::new(0));
    let origin = Origin::start({
        let breaks = breaks.clone();
        move |request| {
            let reply = reply(LEN, 1).answering(request);
            match breaks.load(Ordering::Acquire) {
                0 => reply,
                at => reply.close_at(at),
            }
        }
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    breaks.store(5 * BLOCK + BLOCK / 2, Ordering::Release);
    let mut client = Connection::open(proxy.addr());
    origin.forget_requests();
    assert_eq!(read(&mut client, 1, 0, 10 * BLOCK), "PARTIAL");
    let rest = format!("bytes={}-{}", 5 * BLOCK, 10 * BLOCK - 1);
    let all = format!("bytes=0-{}", 10 * BLOCK - 1);
    assert_eq!(ranges(&origin), [all, rest]);
}

#[test]
fn a_fill_that_breaks_off_goes_on_from_there() {
    let breaks = Arc::new(AtomicU64::new(40 * BLOCK + 100));
    let origin = Origin::start({
        let breaks = breaks.clone();
        move |request| {
            let reply = reply(LEN, 1).answering(request);
            match breaks.load(Ordering::Acquire) {
                0 => reply,
                at => reply.close_at(at),
            }
        }
    });
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    let whole = client.begin("GET", OBJECT, &[]);
    let received = whole.check(Pattern::new(1), 0);
    assert!(!received.complete);
    eventually("what has arrived is stored", || {
        proxy.metric("cache_entries") == 1
    });

    breaks.store(0, Ordering::Release);
    origin.forget_requests();
    let before = origin.bytes_sent();
    let mut client = Connection::open(proxy.addr());
    let whole = client.begin("GET", OBJECT, &[]);
    assert_eq!(whole.headers.get("x-cache"), Some("PARTIAL"));
    let received = whole.check(Pattern::new(1), 0);
    assert!(received.complete && received.len == LEN);
    sends(&origin, before + LEN - 40 * BLOCK);
    let rest = format!("bytes={}-{}", 40 * BLOCK, 56 * BLOCK - 1);
    assert_eq!(ranges(&origin)[0], rest);
}

#[test]
fn a_kill_in_mid_fill_costs_what_has_arrived_since_the_last_checkpoint() {
    const LEN: u64 = 160 * MIB;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| {
            let reply = reply(LEN, 1).answering(request);
            match request.header("range") {
                Some(_) => reply,
                None => reply.hold_at(100 * MIB, &gate),
            }
        }
    });
    let mut proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    let mut whole = client.begin("GET", OBJECT, &[]);
    Pattern::new(1).check(0, &whole.read_some(100 * MIB as usize));
    eventually("what has arrived is recorded", || {
        !entry_files(&proxy.cache_dir(), "meta").is_empty()
    });
    proxy.kill();
    drop(whole);
    gate.open();

    proxy.restart();
    eventually("the entry is found", || proxy.metric("cache_entries") == 1);
    let before = origin.bytes_sent();
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read(&mut client, 1, 0, 64 * MIB), "HIT");
    let whole = client.begin("GET", OBJECT, &[]);
    assert_eq!(whole.headers.get("x-cache"), Some("PARTIAL"));
    let received = whole.check(Pattern::new(1), 0);
    assert!(received.complete && received.len == LEN);
    // A checkpoint comes after 64 MiB, or after some seconds.
    let fetched = origin.bytes_sent() - before;
    assert!(fetched <= LEN - 64 * MIB, "{fetched}");
}

#[test]
fn what_a_client_leaves_behind_is_kept() {
    let origin = Origin::start(|request| reply(LEN, 1).answering(request).paced(16 * MIB));
    let proxy = proxy(&origin).cache("fill_without_readers", 1).start();
    let mut client = Connection::open(proxy.addr());
    let mut whole = client.begin("GET", OBJECT, &[]);
    Pattern::new(1).check(0, &whole.read_some(10 * MIB as usize));
    drop(whole);
    client.abort();
    eventually("what has arrived is stored", || {
        proxy.metric("cache_entries") == 1 && proxy.metric("cache_fills_in_flight") == 0
    });
    let size = proxy.metric("cache_size_bytes");
    assert!((9 * BLOCK..LEN).contains(&size), "{size}");
    origin.forget_requests();
    let mut client = Connection::open(proxy.addr());
    assert_eq!(read(&mut client, 1, 0, 9 * BLOCK), "HIT");
    assert_eq!(ranges(&origin), Vec::<String>::new());
}

#[test]
fn an_origin_that_fails_before_the_first_byte_is_asked_by_the_client() {
    let fails = Arc::new(AtomicU64::new(0));
    let origin = Origin::start({
        let fails = fails.clone();
        move |request| match fails.load(Ordering::Acquire) {
            0 => reply(LEN, 1).answering(request),
            _ => Reply::status(503),
        }
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    read(&mut client, 1, 0, BLOCK);
    fails.store(1, Ordering::Release);
    assert_eq!(read(&mut client, 1, 5, 10), "HIT", "it is stored");
    let part = client.request("GET", OBJECT, &[("Range", "bytes=9000000-9000009")]);
    assert_eq!(part.status, 503);
    fails.store(0, Ordering::Release);
    assert_eq!(
        read(&mut client, 1, 9_000_000, 10),
        "PARTIAL",
        "the entry has stayed"
    );
}

#[test]
fn a_client_has_a_budget_for_the_blocks_around_its_bytes() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).range_fill("client_mb_per_minute", 5).start();
    store_in_blocks(&proxy);
    origin.forget_requests();
    let mut client = Connection::open(proxy.addr());
    for block in 0..20 {
        read(&mut client, 1, block * BLOCK, 1);
    }
    let asked = ranges(&origin);
    let byte = |at: u64| format!("bytes={at}-{at}");
    let is_byte = |range: &&String| (0..20).any(|block| **range == byte(block * BLOCK));
    // A spent budget comes back in a minute.
    let bytes = asked.iter().filter(is_byte).count();
    assert!((12..=16).contains(&bytes), "{asked:?}");
    assert_eq!(asked.len(), 20);
}

#[test]
fn a_stored_response_in_blocks_answers_what_a_whole_one_answers() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    read(&mut client, 1, 0, BLOCK);
    origin.forget_requests();

    let head = client.request("HEAD", OBJECT, &[]);
    assert_eq!((head.status, head.header("x-cache")), (200, Some("HIT")));
    assert_eq!(head.header("content-length"), Some(&*LEN.to_string()));
    assert_eq!(head.header("content-range"), None);
    let unchanged = client.request("GET", OBJECT, &[("If-None-Match", "\"1\"")]);
    assert_eq!(unchanged.status, 304);
    let failed = client.request("GET", OBJECT, &[("If-Match", "\"2\"")]);
    assert_eq!(failed.status, 412);
    let beyond = format!("bytes={LEN}-");
    let beyond = client.request("GET", OBJECT, &[("Range", &beyond)]);
    assert_eq!(beyond.status, 416);
    assert!(origin.requests().is_empty(), "{:?}", origin.requests());

    // Ranges of stored and of missing blocks in one response.
    let range = format!("bytes=0-9,{}-{}", 7 * BLOCK, 7 * BLOCK + 9);
    let both = client.request("GET", OBJECT, &[("Range", &range)]);
    assert_eq!(both.status, 206);
    let mut expected = vec![0; 10];
    Pattern::new(1).fill(7 * BLOCK, &mut expected);
    let body = both.body;
    assert!(body.windows(10).any(|bytes| bytes == expected));
    assert_eq!(origin.requests().len(), 1);

    let suffix = client.request("GET", OBJECT, &[("Range", "bytes=-5")]);
    assert_eq!((suffix.status, suffix.body.len()), (206, 5));
    let other = [("Range", "bytes=0-9"), ("If-Range", "\"2\"")];
    let whole = client.begin("GET", OBJECT, &other);
    assert_eq!(whole.status, 200);
    assert_eq!(whole.check(Pattern::new(1), 0).len, LEN);
}

#[test]
fn a_purge_removes_all_blocks() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).admin().start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    read(&mut client, 1, 0, 3 * BLOCK);
    let purged = Connection::open(proxy.admin_addr()).request("PURGE", OBJECT, &[]);
    assert_eq!(purged.status, 200);
    eventually("nothing is stored", || {
        proxy.metric("cache_entries") == 0 && proxy.metric("cache_size_bytes") == 0
    });
    assert_eq!(read(&mut client, 1, 0, BLOCK / 2), "MISS");
}

#[test]
fn checksums_of_a_part_are_not_those_of_the_whole() {
    let origin = Origin::start(|request| {
        let reply = reply(LEN, 1)
            .header("x-amz-checksum-crc32", "AAAAAA==")
            .header("x-amz-meta-name", "kept");
        reply.answering(request)
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    let mode = [("x-amz-checksum-mode", "ENABLED")];
    let head = client.request("HEAD", OBJECT, &mode);
    assert_eq!(head.header("x-cache"), Some("HIT"));
    assert_eq!(head.header("x-amz-checksum-crc32"), None);
    assert_eq!(head.header("x-amz-meta-name"), Some("kept"));
}

#[test]
fn a_condition_does_not_save_a_client_its_budget() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).range_fill("client_mb_per_minute", 3).start();
    store_in_blocks(&proxy);
    origin.forget_requests();
    let mut client = Connection::open(proxy.addr());
    for block in 0..10 {
        let range = format!("bytes={0}-{0}", block * BLOCK);
        let fields = [("Range", &*range), ("If-None-Match", "\"old\"")];
        let part = client.request("GET", OBJECT, &fields);
        assert_eq!((part.status, part.body.len()), (206, 1));
    }
    assert!(origin.bytes_sent() < 5 * BLOCK, "{}", origin.bytes_sent());
    assert_eq!(ranges(&origin).len(), 10);
}

#[test]
fn many_ranges_of_missing_blocks_are_charged_too() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).range_fill("client_mb_per_minute", 3).start();
    store_in_blocks(&proxy);
    let before = origin.bytes_sent();
    let mut client = Connection::open(proxy.addr());
    let starts: Vec<String> = (0..5)
        .map(|block| format!("{0}-{0}", block * BLOCK))
        .collect();
    let range = format!("bytes={}", starts.join(","));
    let part = client.request("GET", OBJECT, &[("Range", &range)]);
    assert_eq!(part.status, 416, "this origin does not send several");
    let sent = origin.bytes_sent() - before;
    assert!(sent < 4 * BLOCK, "{sent}");
}

#[test]
fn an_entry_that_has_expired_keeps_its_blocks() {
    const CLIENTS: usize = 10;
    let origin = Origin::start(|request| {
        reply(LEN, 1)
            .header("cache-control", "max-age=1")
            .answering(request)
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    read(&mut client, 1, 0, BLOCK);
    // Stale: one validates it, and the others wait and look again.
    thread::sleep(std::time::Duration::from_millis(2100));
    let before = origin.bytes_sent();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let addr = proxy.addr();
            scope.spawn(move || {
                let mut client = Connection::open(addr);
                let whole = client.begin("GET", OBJECT, &[]);
                let received = whole.check(Pattern::new(1), 0);
                assert!(received.complete && received.len == LEN);
            });
        }
    });
    sends(&origin, before + LEN - BLOCK);
}

#[test]
fn a_stale_entry_with_holes_is_not_served_when_the_origin_fails() {
    let fails = Arc::new(AtomicU64::new(0));
    let origin = Origin::start({
        let fails = fails.clone();
        move |request| match fails.load(Ordering::Acquire) {
            0 => reply(LEN, 1)
                .header("cache-control", "max-age=1, stale-if-error=600")
                .answering(request),
            _ => Reply::status(503),
        }
    });
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    read(&mut client, 1, 0, BLOCK);
    fails.store(1, Ordering::Release);
    thread::sleep(std::time::Duration::from_millis(2100));
    assert_eq!(read(&mut client, 1, 0, BLOCK), "STALE");
    let part = client.request("GET", OBJECT, &[("Range", "bytes=9000000-9000009")]);
    assert_eq!(part.status, 503);
}

#[test]
fn stat_counts_the_blocks_that_are_stored() {
    let origin = origin_of(LEN);
    let proxy = proxy(&origin).start();
    store_in_blocks(&proxy);
    let mut client = Connection::open(proxy.addr());
    for number in [2, 5, 7] {
        read(&mut client, 1, number * BLOCK, BLOCK);
    }
    eventually("stat and the metric agree on three blocks", || {
        let output = proxy.s3_proxy(&["cache", "stat", "--json"]);
        let stat: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let [body, on_disk] = ["body_bytes", "disk_bytes"].map(|key| stat[key].as_u64());
        body == Some(3 * BLOCK) && on_disk == Some(proxy.metric("cache_size_bytes"))
    });
}
