//! The number and size of the proxy's allocations for a hit, by the object's size.
//!
//! `cargo bench --bench hit_allocations` prints a table. `-- --quick` makes fewer
//! requests; a filter such as `-- 1MiB` leaves sizes out.
//!
//! Method:
//! - The proxy is this program in another role: the library's `ProxyServer` with
//!   an allocator that counts, in a process that does nothing else. The scrubber
//!   is off, and everything else at its default but one worker, and with sendfile
//!   a threshold of 0. Without sendfile, bodies up to 64 KiB come from memory.
//! - A client in this process asks for the same object again and again on one
//!   connection. The difference of the counters, by the number of hits, is what
//!   a hit takes; the first ones are not counted.
//! - Bytes are those that were asked for, in all; what was freed is not
//!   subtracted. To grow an allocation counts as another one of its new size.
//! - The process has other threads, which allocate when they like: the table has
//!   the round with the fewest allocations.
//!
//! With sendfile, one thing makes larger objects take more, and nothing else may:
//! where the client's socket is full, the write timeout starts, which takes a
//! timer. The client reads as fast as it can, and the round with the fewest
//! allocations is one with few waits, or none.
//!
//! These are plain hits, whose header is prepared. One that goes through Pingora's
//! cache phases takes a boxed future more for each 2 MiB as well: `HandleHit`, which
//! hands the body out in such ranges, is an async trait.

#![deny(unsafe_op_in_unsafe_fn)]

#[path = "common/role.rs"]
mod role;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use pingora_sendfile::{config::Config, proxy::server::ProxyServer};
use test_support::{Bucket, Connection, Origin, Proxy, Reply, PATIENCE};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const SIZES: [(&str, u64); 6] = [
    ("4KiB", 4 * KIB),
    ("64KiB", 64 * KIB),
    ("256KiB", 256 * KIB),
    ("1MiB", MIB),
    ("10MiB", 10 * MIB),
    ("100MiB", 100 * MIB),
];

/// Not counted, for each size.
const WARM_UP: u64 = 20;

/// The system's allocator, with a count of what goes through it.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// The amount of work.
struct Effort {
    rounds: u64,
    /// The most hits of a round, and the most bytes of bodies.
    hits: u64,
    bytes: u64,
}

/// The allocations so far.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Counters {
    allocations: u64,
    bytes: u64,
}

/// The allocations of a hit.
struct Cost {
    allocations: f64,
    bytes: f64,
}

struct Variant {
    sendfile: bool,
    proxy: Proxy,
    hits: u64,
    misses: u64,
}

fn main() {
    if let Some((config, file)) = role::to_serve() {
        return serve(&config, &file);
    }
    let effort = Effort::from_args();
    let filter = filter();
    let sizes = SIZES.iter().filter(|(size, _)| size.contains(&filter));
    let sizes: Vec<_> = sizes.collect();
    if sizes.is_empty() {
        return;
    }
    let origin = Origin::start(|request| {
        let object = request.path().rsplit('/').next().unwrap_or_default();
        match object.parse() {
            Ok(len) => Reply::pattern(len, len).header("ETag", format!("\"{len}\"")),
            Err(_) => Reply::status(404),
        }
    });
    let mut variants = [false, true].map(|sendfile| Variant::start(&origin, sendfile));

    println!("what a hit allocates in the proxy's process");
    println!("| object | off, allocations | off, bytes | on, allocations | on, bytes |");
    println!("|---|---|---|---|---|");
    for (size, len) in sizes {
        let [off, on] = variants
            .each_mut()
            .map(|variant| variant.measure(*len, &effort));
        println!(
            "| {size} | {:.1} | {:.0} | {:.1} | {:.0} |",
            off.allocations, off.bytes, on.allocations, on.bytes
        );
    }
    variants.iter().for_each(Variant::check);
}

/// The first argument that is no option.
fn filter() -> String {
    let mut arguments = env::args().skip(1);
    arguments
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default()
}

/// Runs the proxy until the process is killed.
fn serve(config: &Config, file: &Path) {
    let listener = UnixListener::bind(counters_socket(file)).expect("listen for the bench");
    thread::spawn(move || {
        for asked in listener.incoming() {
            let mut asked = asked.expect("accept the bench");
            let counted = Counters::now().to_bytes();
            // The bench may have gone away, which ends this process as well.
            let _ = asked.write_all(&counted);
        }
    });
    let server = ProxyServer::new(config).unwrap_or_else(|e| panic!("{e}"));
    server.run(|| ()).unwrap_or_else(|e| panic!("{e}"));
}

/// The socket on which the server of this configuration file tells its counters.
fn counters_socket(config: &Path) -> PathBuf {
    config.with_file_name("counters.sock")
}

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

// === impl Counting ===

// SAFETY: each method hands its arguments on to the system's allocator, and what
// that returns back; counting allocates nothing and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of this method, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: as in `alloc`; `at` came from `System`, as everything here does.
        unsafe { System.realloc(at, layout, new_size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

// === impl Counters ===

impl Counters {
    /// Those of this process.
    fn now() -> Self {
        Self {
            allocations: ALLOCATIONS.load(Ordering::Relaxed),
            bytes: BYTES.load(Ordering::Relaxed),
        }
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.allocations.to_le_bytes());
        bytes[8..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        let number = |at: usize| {
            let eight = bytes[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(eight)
        };
        Self {
            allocations: number(0),
            bytes: number(8),
        }
    }
}

// === impl Effort ===

impl Effort {
    fn from_args() -> Self {
        let has = |name: &str| env::args().any(|arg| arg == name);
        // Cargo passes `--bench` where it is to measure; without it, this only
        // has to show that it works.
        if !has("--bench") || has("--test") {
            Self {
                rounds: 1,
                hits: 2,
                bytes: 200 * MIB,
            }
        } else if has("--quick") {
            Self {
                rounds: 3,
                hits: 50,
                bytes: 500 * MIB,
            }
        } else {
            Self {
                rounds: 7,
                hits: 200,
                bytes: 2000 * MIB,
            }
        }
    }
}

// === impl Variant ===

impl Variant {
    fn start(origin: &Origin, sendfile: bool) -> Self {
        let proxy = role::builder()
            .bucket(Bucket::at(origin, "/assets", "bench"))
            .threads(1)
            .default_ttl("1h")
            .scrub_mb_per_second(0)
            .sendfile(sendfile)
            .sendfile_threshold(0)
            .start();
        Self {
            sendfile,
            proxy,
            hits: 0,
            misses: 0,
        }
    }

    /// Of hits of an object of this length.
    fn measure(&mut self, len: u64, effort: &Effort) -> Cost {
        let mut connection = Connection::open(self.proxy.addr());
        self.get(&mut connection, len, "MISS");
        self.misses += 1;
        // The entry is complete a little later than the response.
        self.proxy.expect_metric("cache_entries", self.misses);
        let hits = effort.hits.min(effort.bytes / len);
        for _ in 0..WARM_UP.min(hits) {
            self.hit(&mut connection, len);
        }
        let mut least = Counters {
            allocations: u64::MAX,
            bytes: u64::MAX,
        };
        for _ in 0..effort.rounds {
            let before = self.counters();
            for _ in 0..hits {
                self.hit(&mut connection, len);
            }
            let after = self.counters();
            let allocations = after.allocations - before.allocations;
            if allocations < least.allocations {
                least = Counters {
                    allocations,
                    bytes: after.bytes - before.bytes,
                };
            }
        }
        Cost {
            allocations: least.allocations as f64 / hits as f64,
            bytes: least.bytes as f64 / hits as f64,
        }
    }

    fn hit(&mut self, connection: &mut Connection, len: u64) {
        self.get(connection, len, "HIT");
        self.hits += 1;
    }

    fn get(&self, connection: &mut Connection, len: u64, expected: &str) {
        // All names are of one length: keys are allocated, too.
        let response = connection.begin("GET", &format!("/assets/{len:09}"), &[]);
        assert_eq!(response.headers.get("x-cache"), Some(expected));
        let transfer = response.stream(|_, _| ());
        assert!(transfer.complete && transfer.len == len, "{transfer:?}");
    }

    /// Of the proxy's process, once it does nothing for clients any more.
    fn counters(&self) -> Counters {
        let start = Instant::now();
        let mut last = self.read_counters();
        loop {
            // The proxy ends its work for a response after the last byte, and
            // gives no signal of it.
            thread::sleep(Duration::from_millis(5));
            let now = self.read_counters();
            if now == last {
                return now;
            }
            last = now;
            assert!(start.elapsed() < PATIENCE, "the proxy goes on allocating");
        }
    }

    fn read_counters(&self) -> Counters {
        let mut bytes = [0; 16];
        UnixStream::connect(counters_socket(self.proxy.config()))
            .and_then(|mut counters| counters.read_exact(&mut bytes))
            .expect("ask the proxy's process for its counters");
        Counters::from_bytes(bytes)
    }

    /// Panics unless the proxy did what was to be measured.
    fn check(&self) {
        let by_sendfile = if self.sendfile { self.hits } else { 0 };
        self.proxy.expect_metric("cache_hits_total", self.hits);
        self.proxy
            .expect_metric("cache_sendfile_total", by_sendfile);
        self.proxy
            .expect_metric("origin_requests_total", self.misses);
    }
}
