//! The limit on the disk, which is never exceeded, whatever is asked for at once.

use std::{fs, os::unix::fs::MetadataExt, path::Path, thread};

use crate::builder;
use crate::engine::{self, Object};
use pingora_sendfile::cache::{Cause, DESERTED, NO_ROOM};
use tempfile::TempDir;
use test_support::{
    entry_files, eventually, pattern, Bucket, Connection, Gate, Origin, Pattern, Proxy, Reply,
};

/// The limit of all caches here, in bytes.
const LIMIT: u64 = 20_000_000;
/// Bytes that files about to be removed may take beyond the limit.
const SLACK: u64 = LIMIT / 64;

#[test]
fn the_size_is_that_of_the_blocks_on_the_disk() {
    const OBJECTS: u64 = 40;
    let origin = Origin::start(|request| {
        let number: u64 = request.path().rsplit('/').next().unwrap().parse().unwrap();
        Reply::pattern(number, number * 997)
    });
    let mut proxy = proxy(&origin);
    for number in 0..OBJECTS {
        assert_eq!(proxy.get(&format!("/assets/{number}")).status, 200);
    }
    proxy.expect_metric("cache_entries", OBJECTS);
    let files = entry_files(&proxy.cache_dir(), "");
    let stats = files.iter().map(|file| fs::metadata(file).expect("a file"));
    let on_disk: u64 = stats.map(|stat| stat.blocks() * 512).sum();
    let lens: u64 = (0..OBJECTS).map(|number| number * 997).sum();
    assert!(on_disk > lens + OBJECTS * 4096, "{on_disk}");
    assert_eq!(proxy.metric("cache_size_bytes"), on_disk);
    proxy.kill();
    proxy.restart();
    proxy.expect_metric("cache_entries", OBJECTS);
    assert_eq!(proxy.metric("cache_size_bytes"), on_disk);
}

#[test]
fn large_objects_asked_for_at_once_do_not_pass_the_limit() {
    const CLIENTS: u64 = 13;
    const LEN: u64 = LIMIT / 10 * 9;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| Reply::pattern(seed_of(request.path()), LEN).hold_at(LEN / 2, &gate)
    });
    let proxy = proxy(&origin);
    let addr = proxy.addr();
    let folder = proxy.cache_dir();
    let get = |seed| {
        let mut connection = Connection::open(addr);
        let response = connection.begin("GET", &format!("/assets/{seed}"), &[]);
        assert_eq!(response.status, 200);
        let received = response.check(Pattern::new(seed), 0);
        assert!(received.complete);
        assert_eq!(received.len, LEN);
        expect_within_limit(&folder);
    };
    thread::scope(|scope| {
        for seed in 1..=CLIENTS {
            scope.spawn(move || get(seed));
        }
        gate.wait_for_arrivals(CLIENTS as usize);
        expect_within_limit(&folder);
        gate.open();
    });
    // One object had room. The others came from the origin without a warning.
    proxy.expect_metric("cache_entries", 1);
    let no_room = [("cause", "no_space")];
    proxy.expect_metric_where("cache_fill_errors_total", &no_room, CLIENTS - 1);
    assert_eq!(
        proxy.stderr().matches("WARN").count(),
        0,
        "{}",
        proxy.stderr()
    );
    assert_eq!(proxy.metric("response_errors_total"), 0);

    // Requested one after another, they take each other's place.
    for seed in 20..25 {
        get(seed);
        proxy.expect_metric("cache_entries", 1);
        eventually("the object is stored", || {
            proxy.get(&format!("/assets/{seed}")).header("x-cache") == Some("HIT")
        });
    }
}

#[test]
fn clients_that_leave_take_nothing_from_those_in_use() {
    const HOT: u64 = 50;
    const HOT_LEN: u64 = LIMIT / 100;
    const CLIENTS: u64 = 40;
    const LEN: u64 = LIMIT / 10 * 9;
    let origin = Origin::start(|request| match seed_of(request.path()) {
        seed @ ..HOT => Reply::pattern(seed, HOT_LEN),
        seed => Reply::pattern(seed, LEN).paced(4 * LEN),
    });
    let proxy = proxy(&origin);
    let path = |seed| format!("/assets/{seed}");
    let is_hit = |seed| proxy.get(&path(seed)).header("x-cache") == Some("HIT");
    for seed in 0..HOT {
        assert!(proxy.get(&path(seed)).complete);
        eventually("it is stored", || is_hit(seed));
    }
    let addr = proxy.addr();
    thread::scope(|scope| {
        for seed in 0..CLIENTS {
            scope.spawn(move || {
                let mut connection = Connection::open(addr);
                let path = format!("/assets/{}", 100 + seed);
                let mut response = connection.begin("GET", &path, &[]);
                response.read_some(1000);
                drop(response);
                connection.abort();
            });
        }
    });
    eventually("all of them are given up", || {
        proxy.metric("cache_fills_in_flight") == 0
    });
    proxy.expect_metric("cache_entries", HOT);
    let asked = origin.requests().len();
    for seed in 0..HOT {
        assert!(is_hit(seed), "{seed}");
    }
    assert_eq!(origin.requests().len(), asked);
    expect_within_limit(&proxy.cache_dir());
}

#[test]
fn what_is_removed_and_still_read_counts() {
    const LEN: u64 = LIMIT / 10 * 6;
    let folder = TempDir::new().expect("make a folder");
    let cache = engine::open(engine::config(folder.path(), LIMIT));
    engine::block_on(async {
        engine::fill(cache, "read", Object::new(1, LEN)).await;
        cache.settle().await;
        let (_, reader) = engine::lookup(cache, "read").await.expect("a hit");
        // Its entry leaves, but its blocks stay, so there is no room for the whole of
        // another object. This turns out when most of that has come.
        let object = Object::new(2, LEN);
        let mut miss = engine::begin(cache, "other", object).await;
        let (_, follower) = engine::lookup(cache, "other").await.expect("a hit");
        let fill = async {
            engine::write(&mut miss, object, 0, LEN).await;
            miss.finish().await.expect("finish");
        };
        let (_, body) = tokio::join!(fill, engine::read(follower));
        assert_eq!(body.expect("all"), pattern(2, LEN as usize));
        assert_eq!(cache.stats().fill_errors(Cause::NoSpace).get(), 1);
        cache.settle().await;
        assert_eq!(cache.entries(), 0);

        // There is no room even to begin a new one.
        let refused = engine::try_begin(cache, "other", object).await;
        assert_eq!(*refused.err().expect("no room").etype(), NO_ROOM);
        assert_eq!(engine::read(reader).await.expect("all").len() as u64, LEN);
    });
    eventually("its space is free once it is closed", || {
        engine::block_on(async {
            let begun = engine::try_begin(cache, "other", Object::new(2, LEN)).await;
            begun.is_ok()
        })
    });
    engine::close(cache);
}

#[test]
fn a_fill_that_nobody_waits_for_takes_the_place_of_nothing_in_use() {
    const HOT: u64 = 10;
    const LEN: u64 = LIMIT / 20;
    const NEW: u64 = LIMIT / 10 * 8;
    let folder = TempDir::new().expect("make a folder");
    let cache = engine::open(engine::config(folder.path(), LIMIT));
    engine::block_on(async {
        for seed in 0..HOT {
            let name = format!("hot{seed}");
            engine::fill(cache, &name, Object::new(seed, LEN)).await;
            cache.settle().await;
            for _ in 0..3 {
                assert!(engine::lookup(cache, &name).await.is_some());
            }
        }
        // More than half of it has come when its reader leaves.
        let object = Object::new(100, NEW);
        let mut miss = engine::begin(cache, "new", object).await;
        let reader = engine::lookup(cache, "new").await;
        engine::write(&mut miss, object, 0, LIMIT / 100 * 45).await;
        drop(reader);
        let mut rest = vec![0; (NEW - LIMIT / 100 * 45) as usize];
        Pattern::new(100).fill(LIMIT / 100 * 45, &mut rest);
        let mut pieces = rest.chunks(64 * 1024);
        let given_up = loop {
            let piece = pieces.next().expect("it is given up");
            let written = miss.write_body(piece.to_vec().into(), false).await;
            if let Err(e) = written {
                break e;
            }
        };
        assert_eq!(*given_up.etype(), DESERTED, "{given_up}");
        drop(miss);
        cache.settle().await;
        for seed in 0..HOT {
            let stored = engine::stored(cache, &format!("hot{seed}")).await;
            assert_eq!(stored, Some(Object::new(seed, LEN)));
        }

        // With a reader, the fill is completed.
        let miss = engine::begin(cache, "new", object).await;
        let _reader = engine::lookup(cache, "new").await;
        let mut miss = miss;
        engine::write(&mut miss, object, 0, NEW).await;
        miss.finish().await.expect("finish");
        cache.settle().await;
        assert_eq!(engine::stored(cache, "new").await, Some(object));
    });
    engine::close(cache);
}

fn seed_of(path: &str) -> u64 {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.parse().expect("a number")
}

fn proxy(origin: &Origin) -> Proxy {
    builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .max_size_gb(LIMIT as f64 / 1e9)
        .start()
}

/// Counts blocks like du(1).
fn expect_within_limit(folder: &Path) {
    let shards = fs::read_dir(folder.join("v2")).expect("list the shards");
    let files = shards
        .flat_map(|shard| fs::read_dir(shard.expect("a shard").path()).expect("list a shard"));
    // A file may be gone by now.
    let sizes = files.filter_map(|file| file.expect("a file").metadata().ok());
    let taken: u64 = sizes.map(|file| file.blocks() * 512).sum();
    assert!(taken <= LIMIT + SLACK, "{taken} bytes of {LIMIT}");
}
