//! Everything at once, for a while: objects that change, whole or in blocks, an origin that
//! breaks off, clients that are slow or leave, a cache that is too small, and a proxy
//! that is killed, whose disk is full, and whose files are damaged. Every byte of
//! every response is checked. Attackers come first, one kind after the other.
//!
//! `cargo test --test soak` takes SOAK_SECONDS (10), `make soak` SOAK_MINUTES
//! (30). SOAK_SEED, which is printed, repeats the choices of an earlier run; what
//! comes first is for the machine to decide still.
//!
//! Invariants:
//! - A body is that of one version of its object, which the origin had said to be
//!   current no longer ago than it may be cached.
//! - A response comes to its end, or the connection is seen to break; it breaks,
//!   or is an error, only where something had gone wrong.
//! - A good client beside attackers is served as if it were alone, and the resources that
//!   they took are given back.
//! - When all is quiet again, no file is left of what did not become an entry,
//!   the cache is as large as it says, and neither memory nor descriptors have
//!   piled up. Nothing has panicked.

#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

mod attackers;
mod clients;
mod faults;
mod folder;
mod frames;
mod objects;
mod siege;

use std::{
    env, fmt,
    net::SocketAddr,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, Mutex, PoisonError, RwLock,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use test_support::{eventually, Origin, Proxy, Random};

use clients::{Clients, Counts};
use faults::{Faults, Saboteur};
use folder::Folder;
use objects::Objects;

const CLIENTS: usize = 16;

/// Less than half of what the objects take, so that each fill evicts.
const MAX_SIZE_GB: f64 = 0.048;

/// Less than what the small objects take, so that they are read from the disk.
const MEMORY_MB: f64 = 0.1;

/// A round's folder, origin and proxy are its own.
const ROUND: Duration = Duration::from_secs(150);

/// The shortest siege; the longest is a tenth of SOAK_SECONDS.
const SIEGE: Duration = Duration::from_secs(10);

const REPORT: Duration = Duration::from_secs(30);

/// The most that the proxy may have resident, in bytes: a debug build with 16
/// transfers, as many fills, the windows of those that the full disk refuses, and 256
/// threads.
const MAX_RSS: u64 = 160 << 20;

/// The most descriptors that may be open when nobody asks: a file an object, and
/// what any process of this kind has.
const MAX_IDLE_DESCRIPTORS: usize = 120;

/// The state that the threads of a round share.
struct Shared {
    objects: Arc<Objects>,
    /// The address of the proxy, as long as it runs.
    address: RwLock<Option<SocketAddr>>,
    faults: Faults,
    counts: Counts,
    stop: AtomicBool,
}

/// The parameters of a round.
#[derive(Clone, Copy, Debug)]
struct Round {
    backend: &'static str,
    on_tmpfs: bool,
    damages: bool,
    block_kib: u64,
}

/// Stops the others when its thread ends: because it was told to, or early.
struct StopTheOthers<'s>(&'s Shared);

/// Held by each test of this file, because other tests would disturb its measurements.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_good_client_is_served_beside_attackers() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let total = number("SOAK_SECONDS").map_or(Duration::ZERO, Duration::from_secs);
    siege::run((total / 10).max(SIEGE));
}

#[test]
fn every_byte_is_right_whatever_goes_wrong() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let total = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(10));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = number("SOAK_SEED").unwrap_or_else(|| now.map_or(0, |now| now.as_nanos() as u64));
    println!("soak: {total:?}, SOAK_SEED={seed}");
    let mut random = Random::new(seed);
    let rounds = total.div_duration_f64(ROUND).ceil().max(1.0);
    for number in 0..rounds as usize {
        Round::of(number).run(total.div_f64(rounds), random.fork());
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

// === impl Round ===

impl Round {
    /// Twelve in a row have nothing in common.
    fn of(number: usize) -> Self {
        Self {
            backend: ["auto", "uring", "tokio"][number % 3],
            on_tmpfs: [true, false][number % 2],
            damages: [true, true, false, false][number % 4],
            block_kib: [64, 1024][number / 4 % 2],
        }
    }

    fn run(self, time: Duration, mut random: Random) {
        let folder = self.folder();
        let objects = Arc::new(Objects::new(random.fork()));
        let origin = Origin::start({
            let objects = objects.clone();
            move |request| objects.answer(request)
        });
        let config = self.config(&folder, &origin);
        let proxy = Proxy::start_with(env!("CARGO_BIN_EXE_s3-proxy"), |_| config);
        let shared = Shared {
            objects,
            address: RwLock::new(Some(proxy.addr())),
            faults: Faults::default(),
            counts: Counts::default(),
            stop: AtomicBool::new(false),
        };
        let proxy = Mutex::new(proxy);
        println!("soak: {self:?} for {time:?} in {}", folder.path().display());
        let storm = self.storm(time, &shared, &proxy, &folder, &origin, &mut random);
        let mut proxy = proxy.into_inner().unwrap();
        if let Err(wrong) = storm {
            panic!(
                "{wrong}\n{}\n{}",
                last_lines(&proxy.stderr()),
                shared.counts
            );
        }
        self.calm(&shared, &mut proxy, &folder, random);
        println!(
            "soak: {self:?} is over: {}; {}; {} MiB resident at most",
            shared.counts,
            shared.faults,
            proxy.peak_rss_bytes() >> 20
        );
    }

    fn config(self, folder: &Folder, origin: &Origin) -> String {
        format!(
            "server: {{address: '127.0.0.1:0', grace_period: 0s}}\n\
             buckets: [{{path_prefix: /soak, bucket: soak, region: us-east-1, endpoint: '{}'}}]\n\
             cache:\n  \
               memory: {{max_size_mb: {MEMORY_MB}}}\n  \
               blocks: {{size_kib: {}, read_ahead_mib: 2}}\n  \
               disk: {{path: '{}', max_size_gb: {MAX_SIZE_GB}, backend: {}}}\n\
             metrics: {{address: '127.0.0.1:0'}}\n",
            origin.url(),
            self.block_kib,
            folder.path().display(),
            self.backend
        )
    }

    fn folder(self) -> Folder {
        if self.on_tmpfs {
            match Folder::on_tmpfs() {
                Ok(folder) => return folder,
                Err(why) => println!("soak: the disk will not be full: {why}"),
            }
        }
        Folder::on_disk()
    }

    fn storm(
        self,
        time: Duration,
        shared: &Shared,
        proxy: &Mutex<Proxy>,
        folder: &Folder,
        origin: &Origin,
        random: &mut Random,
    ) -> Result<(), String> {
        let start = Instant::now();
        thread::scope(|scope| {
            let run_clients = |_| {
                let clients = Clients::new(shared, random.fork());
                scope.spawn(|| {
                    let _stop = StopTheOthers(shared);
                    clients.run()
                })
            };
            let clients: Vec<_> = (0..CLIENTS).map(run_clients).collect();
            let saboteur = Saboteur {
                shared,
                proxy,
                folder,
                random: random.fork(),
                damages: self.damages,
            };
            scope.spawn(|| {
                let _stop = StopTheOthers(shared);
                saboteur.run();
            });

            let _stop = StopTheOthers(shared);
            let mut reported = start;
            while start.elapsed() < time && !shared.stops() {
                thread::sleep(Duration::from_millis(200));
                let Ok(proxy) = proxy.try_lock() else {
                    continue;
                };
                let peak = proxy.peak_rss_bytes();
                assert!(peak <= MAX_RSS, "the proxy takes {peak} bytes of memory");
                if reported.elapsed() >= REPORT {
                    reported = Instant::now();
                    origin.forget_requests();
                    println!(
                        "soak: {:.0?}: {}; {}; {} MiB resident, {} descriptors",
                        start.elapsed(),
                        shared.counts,
                        shared.faults,
                        proxy.rss_bytes() >> 20,
                        proxy.open_descriptors()
                    );
                }
            }
            shared.stop.store(true, Ordering::SeqCst);
            clients.into_iter().try_for_each(|thread| {
                let asked = thread.join();
                asked.unwrap_or_else(|_| Err("a client panicked".to_owned()))
            })
        })
    }

    /// Nothing goes wrong any more: now everything has to be in order.
    fn calm(self, shared: &Shared, proxy: &mut Proxy, folder: &Folder, mut random: Random) {
        shared.objects.calm_down();
        settle(folder);
        shared.faults.forget();
        let mut ask_for_all = || {
            let asked = Clients::new(shared, random.fork()).run_once();
            asked.unwrap_or_else(|wrong| panic!("{wrong}"));
            settle(folder);
        };
        ask_for_all();
        if !self.damages {
            check_size(proxy, folder);
        }
        // Files that were damaged while they were open are found out now.
        proxy.restart();
        *shared.address.write().unwrap() = Some(proxy.addr());
        ask_for_all();
        check_size(proxy, folder);

        let descriptors = proxy.open_descriptors();
        assert!(
            descriptors <= MAX_IDLE_DESCRIPTORS,
            "{descriptors} descriptors are open"
        );
        let stderr = proxy.stderr();
        // Pingora's debug build panics so in the tasks that it drops at its end.
        let expected = stderr.matches("Dangling cache lock started!").count();
        let panics = stderr.matches(" panicked at ").count();
        assert!(panics <= expected, "{stderr}");
        for count in [&shared.counts.complete, &shared.counts.hits] {
            assert!(count.load(Ordering::Relaxed) > 0, "{}", shared.counts);
        }
    }
}

fn last_lines(text: &str) -> String {
    const LINES: usize = 50;
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Waits until nothing is being written.
fn settle(folder: &Folder) {
    eventually("all temporary files are gone", || {
        folder.content().temporary.is_empty()
    });
}

/// The cache's metrics have to agree with its folder.
fn check_size(proxy: &Proxy, folder: &Folder) {
    eventually("the cache is as large as it says", || {
        let metrics = proxy.metrics();
        let content = folder.content();
        let entries = metrics.sum("cache_entries") == content.entries;
        let bytes = metrics.sum("cache_size_bytes") == content.bytes;
        entries && bytes && content.bytes <= (MAX_SIZE_GB * 1e9) as u64
    });
}

// === impl Shared ===

impl Shared {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Drop for StopTheOthers<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

// === impl Counts ===

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} complete ({} ranges, {} hits, {} hits in part), {} not modified, {} unsatisfiable, {} left, {} broken, {} errors, {} reconnected, {} unreachable, {} MiB checked",
            of(&self.complete),
            of(&self.ranges),
            of(&self.hits),
            of(&self.partial),
            of(&self.not_modified),
            of(&self.unsatisfiable),
            of(&self.left),
            of(&self.broken),
            of(&self.errors),
            of(&self.reconnected),
            of(&self.unreachable),
            of(&self.bytes) >> 20
        )
    }
}
