//! Clients' view of a disk that is slow, full, broken or gone.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::S3_PROXY;
use tempfile::TempDir;
use test_support::{
    entry_files, eventually, Connection, FaultyDisk, Op, Origin, Pattern, Proxy, Reply, BACKEND,
};

const MIB: u64 = 1 << 20;

const EIO: i32 = 5;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

// --- slow ---

#[test]
fn clients_of_hot_files_do_not_notice_those_of_cold_ones() {
    const COLD: u64 = 8;
    const DELAY: Duration = Duration::from_millis(400);
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    // Objects 1 to 8 will be cold, 100 goes by sendfile, 200 from memory. Cold ones wait
    // long and are small: copying what this disk reads, which takes these processors
    // too, must be less than a hundredth of it all.
    let origin = origin(|seed| match seed {
        100 => 300_000,
        200 => 10_000,
        _ => MIB / 2,
    });
    let proxy = on(&disk, &origin);
    for seed in (1..=COLD).chain([100, 200]) {
        assert_eq!(ask(&proxy, seed), "MISS");
    }
    proxy.expect_metric("cache_entries", COLD + 2);
    disk.forget_pages();
    for seed in [100, 100, 200, 200] {
        assert_eq!(ask(&proxy, seed), "HIT");
    }

    let addr = proxy.addr();
    let idle = p99_of_hot_hits(addr, || false);
    disk.forget_pages();
    assert_eq!(ask(&proxy, 100), "HIT");
    let before = proxy.metric("cache_cold_sends_total");
    disk.delay(Op::Read, DELAY);
    let cold_clients_left = AtomicBool::new(true);
    let busy = thread::scope(|scope| {
        let cold: Vec<_> = (1..=COLD)
            .map(|seed| scope.spawn(move || check(addr, seed)))
            .collect::<Vec<_>>();
        let left = &cold_clients_left;
        scope.spawn(move || {
            for client in cold {
                assert_eq!(client.join().expect("a cold client"), "HIT");
            }
            left.store(false, Ordering::Release);
        });
        p99_of_hot_hits(addr, || left.load(Ordering::Acquire))
    });
    disk.heal();
    assert!(proxy.metric("cache_cold_sends_total") > before);
    println!("p99 of hot hits: {idle:?} idle, {busy:?} beside {COLD} cold clients");
    // Whoever waits for the disk waits that long.
    assert!(busy < DELAY, "hot hits wait for the disk: {busy:?}");
}

/// The 99th percentile of the time to get objects 100 and 200, over at least
/// 300 hits, and as long as `go_on` says.
fn p99_of_hot_hits(addr: SocketAddr, go_on: impl Fn() -> bool) -> Duration {
    let mut connection = Connection::open(addr);
    let mut times = Vec::new();
    while times.len() < 300 || go_on() {
        for seed in [100, 200] {
            let start = Instant::now();
            let response = connection.begin("GET", &format!("/assets/{seed}"), &[]);
            assert_eq!(response.headers.get("x-cache"), Some("HIT"));
            assert!(response.stream(|_, _| ()).complete);
            times.push(start.elapsed());
        }
    }
    times.sort();
    times[times.len() * 99 / 100]
}

#[test]
fn a_cold_file_is_sent_right_and_read_once() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin(|_| 9 * MIB + 123);
    let proxy = on(&disk, &origin);
    assert_eq!(ask(&proxy, 1), "MISS");
    proxy.expect_metric("cache_entries", 1);
    disk.forget_pages();
    disk.delay(Op::Read, Duration::from_millis(5));
    // Ten at once read each block from the disk once.
    let addr = proxy.addr();
    let before = disk.count(Op::Read);
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| assert_eq!(check(addr, 1), "HIT"));
        }
    });
    // The kernel reads at least 32 KiB at once.
    let reads = disk.count(Op::Read) - before;
    assert!(reads <= 2 * 9 * 32, "{reads} reads");
    assert_eq!(origin.requests().len(), 1);
    // The last byte is counted after it has left.
    proxy.expect_metric("cache_sendfile_total", 10);
}

// --- full ---

#[test]
fn a_full_disk_costs_the_client_nothing_if_the_length_is_known() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin(|_| 5 * MIB);
    let proxy = on(&disk, &origin);
    disk.limit_bytes(Some(3 * MIB));
    for asked in 1..=2 {
        assert_eq!(ask(&proxy, 1), "MISS");
        assert_eq!(origin.requests().len(), asked);
    }
    expect_cause(&proxy, "cache_fill_errors_total", "no_space", 2);
    assert!(entry_files(disk.path(), "").is_empty());
    eventually("the room of the failed fills is given back", || {
        proxy.metric("cache_size_bytes") == 0
    });

    disk.limit_bytes(None);
    assert_eq!(ask(&proxy, 1), "MISS");
    assert_eq!(ask(&proxy, 1), "HIT");
}

#[test]
fn a_full_disk_makes_room_as_the_limit_does() {
    // The disk is far smaller than the limit.
    const DISK: u64 = 32 * MIB;
    type Framing = fn(Reply) -> Reply;
    let framings: [Framing; 2] = [|reply| reply, Reply::chunked];
    for framed in framings {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let origin = Origin::start(move |request| {
            let seed = request.path()["/bucket/".len()..]
                .parse()
                .expect("a number");
            framed(Reply::pattern(seed, 5 * MIB))
        });
        let proxy = on(&disk, &origin);
        disk.limit_bytes(Some(DISK));
        for seed in 1..=20 {
            assert_eq!(ask(&proxy, seed), "MISS", "{seed}");
            eventually("it is stored", || {
                proxy.metric("cache_fills_in_flight") == 0
            });
            for stored in seed.saturating_sub(2).max(1)..=seed {
                assert_eq!(ask(&proxy, stored), "HIT", "{stored} after {seed}");
            }
        }
        assert_eq!(origin.requests().len(), 20);
        expect_cause(&proxy, "cache_fill_errors_total", "no_space", 0);
        assert!(proxy.metric("cache_entries") >= 4);

        // New space is used.
        disk.limit_bytes(None);
        let before = proxy.metric("cache_entries");
        for seed in 21..=30 {
            assert_eq!(ask(&proxy, seed), "MISS");
        }
        proxy.expect_metric("cache_entries", before + 10);
    }
}

#[test]
fn a_disk_that_stays_full_keeps_most_of_what_is_stored() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin(|_| MIB);
    let proxy = on(&disk, &origin);
    for seed in 1..=60 {
        assert_eq!(ask(&proxy, seed), "MISS");
    }
    proxy.expect_metric("cache_entries", 60);
    // Whatever is removed, something else takes its place first.
    disk.fail(Op::Create, ENOSPC);
    for seed in 100..=110 {
        assert_eq!(ask(&proxy, seed), "MISS");
    }
    expect_cause(&proxy, "cache_fill_errors_total", "no_space", 11);
    assert!(proxy.metric("cache_entries") >= 30);
    assert_eq!(ask(&proxy, 60), "HIT");
}

#[test]
fn a_disk_that_fills_up_under_a_body_of_unknown_length_costs_the_client_nothing() {
    const LEN: u64 = 5 * MIB;
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = Origin::start(|_| Reply::pattern(1, LEN).chunked());
    let proxy = on(&disk, &origin);
    disk.limit_bytes(Some(3 * MIB));
    let whole = proxy.get("/assets/1");
    assert!(whole.complete);
    assert_eq!(whole.body.len() as u64, LEN);
    Pattern::new(1).check(0, &whole.body);
    expect_cause(&proxy, "cache_fill_errors_total", "no_space", 1);
    eventually("nothing is left", || {
        entry_files(disk.path(), "").is_empty()
    });

    disk.limit_bytes(None);
    let whole = proxy.get("/assets/1");
    assert!(whole.complete);
    assert_eq!(whole.body.len() as u64, LEN);
}

#[test]
fn a_full_disk_does_not_keep_the_proxy_from_starting() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin(|_| 5 * MIB);
    let mut proxy = on(&disk, &origin);
    assert_eq!(ask(&proxy, 1), "MISS");
    proxy.expect_metric("cache_entries", 1);
    disk.limit_bytes(Some(0));
    // Until the recovery is over, a fill may be refused.
    let expect_recovered = |proxy: &Proxy, starts| {
        eventually("the recovery is over", || proxy.listings() == starts);
    };
    expect_recovered(&proxy, 1);
    for starts in [2, 3] {
        proxy.kill();
        proxy.restart();
        expect_recovered(&proxy, starts);
        assert_eq!(proxy.metric("cache_entries"), 1);
        assert_eq!(ask(&proxy, 1), "HIT");
    }
    disk.limit_bytes(None);
    assert_eq!(ask(&proxy, 2), "MISS");
    assert_eq!(ask(&proxy, 2), "HIT");
}

#[test]
fn a_small_body_that_is_not_kept_in_memory_is_a_hit_each_time() {
    for backend in ["tokio", "auto"] {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let origin = origin(|_| 10_000);
        let options = format!("scrub_mb_per_second: 0, backend: {backend}");
        let proxy = start_with_memory(disk.path(), &origin, &options, 0);
        assert_eq!(ask(&proxy, 1), "MISS");
        proxy.expect_metric("cache_entries", 1);
        // The first hit reads the body along with its metadata, and keeps the file.
        disk.forget_pages();
        for _ in 0..4 {
            assert_eq!(ask(&proxy, 1), "HIT", "{backend}");
        }
        expect_cause(&proxy, "cache_read_errors_total", "damaged", 0);
        assert_eq!(origin.requests().len(), 1);
    }
}

// --- broken ---

#[test]
fn an_entry_that_cannot_be_read_comes_from_the_origin() {
    cannot_be_read(0);
}

#[test]
fn an_open_entry_that_cannot_be_read_comes_from_the_origin() {
    // Its file is open and its header prepared by the second hit.
    cannot_be_read(2);
}

/// The file of the only body there is.
fn the_body_on(disk: &FaultyDisk) -> PathBuf {
    let mut bodies = entry_files(disk.path(), "body").into_iter();
    let body = bodies.next().expect("a body");
    assert_eq!(bodies.next(), None, "there is one only");
    body
}

/// After so many hits, the body cannot be read.
fn cannot_be_read(hits: usize) {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin(|_| 5 * MIB);
    let proxy = on(&disk, &origin);
    assert_eq!(ask(&proxy, 1), "MISS");
    proxy.expect_metric("cache_entries", 1);
    for _ in 0..hits {
        assert_eq!(ask(&proxy, 1), "HIT");
    }
    disk.forget_pages();
    // The refill, which is read as well, is another file.
    disk.fail_reads_of(&the_body_on(&disk), EIO);
    assert_eq!(ask(&proxy, 1), "MISS");
    expect_cause(&proxy, "cache_read_errors_total", "io", 1);
    assert!(
        proxy.stderr().contains("is dropped: "),
        "{}",
        proxy.stderr()
    );
    disk.heal();
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(ask(&proxy, 1), "HIT");
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn a_disk_that_fails_in_mid_send_breaks_the_transfer_and_drops_the_entry() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin(|_| 20 * MIB);
    let proxy = on(&disk, &origin);
    assert_eq!(ask(&proxy, 1), "MISS");
    proxy.expect_metric("cache_entries", 1);
    disk.forget_pages();
    // After some of it: a read is of 128 KiB to 1 MiB.
    let after = disk.count(Op::Read) + 4;
    disk.delay(Op::Read, Duration::from_millis(20));
    let mut connection = Connection::open(proxy.addr());
    let hit = connection.begin("GET", "/assets/1", &[]);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    let failing = thread::scope(|scope| {
        scope.spawn(|| {
            eventually("some of it is read", || disk.count(Op::Read) >= after);
            disk.fail(Op::Read, EIO);
        });
        hit.check(Pattern::new(1), 0)
    });
    assert!(!failing.complete);
    assert!(failing.len < 20 * MIB);
    expect_cause(&proxy, "cache_read_errors_total", "io", 1);
    proxy.expect_metric("cache_entries", 0);
    disk.heal();
    assert_eq!(ask(&proxy, 1), "MISS");
}

#[test]
fn a_disk_that_takes_no_new_files_costs_the_client_nothing() {
    for (errno, cause) in [(EROFS, "read_only"), (EMFILE, "descriptors"), (EIO, "io")] {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let origin = origin(|_| MIB);
        let proxy = on(&disk, &origin);
        disk.fail(Op::Create, errno);
        assert_eq!(ask(&proxy, 1), "MISS", "{cause}");
        assert_eq!(ask(&proxy, 1), "MISS", "{cause}");
        expect_cause(&proxy, "cache_fill_errors_total", cause, 2);
        disk.heal();
        assert_eq!(ask(&proxy, 1), "MISS", "{cause}");
        assert_eq!(ask(&proxy, 1), "HIT", "{cause}");
    }
}

#[test]
fn a_write_that_fails_breaks_the_transfer() {
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin(|_| 5 * MIB);
    let proxy = on(&disk, &origin);
    disk.fail(Op::Write, EIO);
    let broken = proxy.get("/assets/1");
    assert!(!broken.complete || broken.status >= 500, "{broken:?}");
    expect_cause(&proxy, "cache_fill_errors_total", "io", 1);
    eventually("nothing is left", || {
        entry_files(disk.path(), "").is_empty()
    });
    disk.heal();
    assert_eq!(ask(&proxy, 1), "MISS");
    assert_eq!(ask(&proxy, 1), "HIT");
}

// --- gone ---

#[test]
fn an_emptied_cache_folder_is_filled_again() {
    let origin = origin(|_| MIB);
    let dir = TempDir::new().expect("make a folder");
    let proxy = start(dir.path(), &origin, "");
    assert_eq!(ask(&proxy, 1), "MISS");
    proxy.expect_metric("cache_entries", 1);
    for file in fs::read_dir(dir.path().join("v2")).expect("list") {
        fs::remove_dir_all(file.expect("list").path()).expect("remove");
    }
    assert_eq!(ask(&proxy, 1), "MISS");
    expect_cause(&proxy, "cache_read_errors_total", "missing", 1);
    assert_eq!(ask(&proxy, 1), "HIT");
}

#[test]
fn a_cache_folder_that_is_gone_costs_the_client_nothing() {
    let origin = origin(|_| MIB);
    let dir = TempDir::new().expect("make a folder");
    let folder = dir.path().join("cache");
    let proxy = start(&folder, &origin, "");
    assert_eq!(ask(&proxy, 1), "MISS");
    proxy.expect_metric("cache_entries", 1);
    // As when it is unmounted: what is below is another disk's.
    fs::rename(&folder, dir.path().join("elsewhere")).expect("rename");
    // The folder is open still, so the first one may be a hit. `ask` checks the bytes.
    let asked = [1, 2, 2].map(|seed| ask(&proxy, seed));
    assert_eq!(asked[1..], ["MISS", "MISS"]);
    let misses = asked.iter().filter(|asked| *asked == "MISS").count();
    expect_cause(&proxy, "cache_fill_errors_total", "missing", misses as u64);
    assert!(!folder.exists(), "nothing is written in its place");
}

// --- flipped bits ---

#[test]
fn a_flipped_bit_in_a_large_body_is_found_by_the_scrubber() {
    let origin = origin(|_| 2 * MIB);
    let dir = TempDir::new().expect("make a folder");
    let mut proxy = start(dir.path(), &origin, "scrub_mb_per_second: 1000");
    for seed in 1..=2 {
        assert_eq!(ask(&proxy, seed), "MISS");
    }
    proxy.expect_metric("cache_entries", 2);
    proxy.stop_gracefully();
    let bodies = entry_files(dir.path(), "body");
    flip(&bodies[0], MIB as usize);

    proxy.restart();
    proxy.expect_metric_where("cache_scrubbed_total", &[("result", "damaged")], 1);
    proxy.expect_metric_where("cache_scrubbed_total", &[("result", "ok")], 1);
    expect_cause(&proxy, "cache_read_errors_total", "damaged", 1);
    assert!(proxy.stderr().contains("wrong checksum"));
    // Whichever of the two it was: both are right again.
    let mut answers: Vec<_> = (1..=2).map(|seed| ask(&proxy, seed)).collect();
    answers.sort();
    assert_eq!(answers, ["HIT", "MISS"]);
}

#[test]
fn a_flipped_bit_in_a_small_body_is_found_when_it_is_read() {
    let origin = origin(|_| 10_000);
    let dir = TempDir::new().expect("make a folder");
    let proxy = start(dir.path(), &origin, "scrub_mb_per_second: 0");
    assert_eq!(ask(&proxy, 1), "MISS");
    proxy.expect_metric("cache_entries", 1);
    let files = entry_files(dir.path(), "");
    let body = files
        .iter()
        .find(|file| file.extension().unwrap() == "body");
    flip(body.expect("a body"), 5_000);
    assert_eq!(ask(&proxy, 1), "MISS");
    expect_cause(&proxy, "cache_read_errors_total", "damaged", 1);
    assert_eq!(ask(&proxy, 1), "HIT");
    assert_eq!(proxy.metric("cache_scrubbed_total"), 0);
}

// --- the plumbing ---

/// An origin whose objects are named by the seed of their pattern.
fn origin(len: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Origin {
    Origin::start(move |request| {
        let name = request.path().rsplit('/').next().unwrap_or_default();
        let seed = name.parse().expect("a number");
        Reply::pattern(seed, len(seed))
    })
}

/// A proxy with one worker and its cache on this disk.
fn on(disk: &FaultyDisk, origin: &Origin) -> Proxy {
    start(disk.path(), origin, "scrub_mb_per_second: 0")
}

fn start(folder: &Path, origin: &Origin, disk: &str) -> Proxy {
    let backend = env::var(BACKEND).unwrap_or_else(|_| "auto".to_owned());
    let disk = format!("backend: {backend}, {disk}");
    start_with_memory(folder, origin, &disk, 256)
}

fn start_with_memory(folder: &Path, origin: &Origin, disk: &str, memory_mb: u32) -> Proxy {
    let (folder, origin) = (folder.display().to_string(), origin.url());
    Proxy::start_with(S3_PROXY, |_| {
        format!(
            "server: {{address: '127.0.0.1:0', threads: 1, grace_period: 0}}\n\
             buckets: [{{path_prefix: /assets, bucket: bucket, region: us-east-1, endpoint: '{origin}'}}]\n\
             cache: {{disk: {{path: '{folder}', max_size_gb: 1, {disk}}}, memory: {{max_size_mb: {memory_mb}}}}}\n\
             metrics: {{address: '127.0.0.1:0'}}\n"
        )
    })
}

/// Gets an object, checks every byte, and returns X-Cache.
fn ask(proxy: &Proxy, seed: u64) -> String {
    check(proxy.addr(), seed)
}

fn check(addr: SocketAddr, seed: u64) -> String {
    let mut connection = Connection::open(addr);
    let response = connection.begin("GET", &format!("/assets/{seed}"), &[]);
    assert_eq!(response.status, 200);
    let x_cache = response.headers.get("x-cache").expect("X-Cache").to_owned();
    let received = response.check(Pattern::new(seed), 0);
    assert!(received.complete);
    x_cache
}

fn expect_cause(proxy: &Proxy, metric: &str, cause: &str, expected: u64) {
    proxy.expect_metric_where(metric, &[("cause", cause)], expected);
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).expect("read");
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("write");
}
