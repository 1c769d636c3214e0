//! Cache hits of the built proxy, end to end, with sendfile on and off.
//!
//! `cargo bench --bench sendfile_proxy` prints criterion's report and then a
//! table of its own: criterion measures one variant after the other, the table
//! comes from rounds in which they take turns, so that a machine that slows down
//! slows both. `-- --quick` shortens everything; a filter such as `-- 1MiB`
//! leaves sizes out.
//!
//! How it measures:
//! - The proxy has one worker and one core, the client another one. The client
//!   is one thread that keeps 16 connections busy, never sleeps, and discards
//!   bodies in the kernel (tcp(7), MSG_TRUNC), so that the proxy is what limits:
//!   the table says how busy it was.
//! - The objects of a size are asked for in turn and exceed the caches of the
//!   processor; they stay in the page cache.
//! - Each variant answers 64 KiB at its best, so there the default threshold
//!   makes no sense: a body of exactly 64 KiB would not go by sendfile, and one
//!   byte more would cost the copying variant a second read. `threshold_bytes`
//!   is 0.
//! - What was measured is checked: status and length of every response here, and
//!   by the proxy's own count that each was a hit and which went by sendfile.

#![forbid(unsafe_code)]

#[path = "common/cores.rs"]
mod cores;

use std::{
    env, fs, hint,
    io::Write,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use cores::{pin, Cores};
use criterion::{Criterion, SamplingMode, Throughput};
use rustix::{
    io::Errno,
    net::{recv, RecvFlags},
    param::clock_ticks_per_second,
};
use test_support::{Bucket, Connection, Origin, Pattern, Proxy, Reply, PATIENCE};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

const SIZES: [(&str, u64); 3] = [("64KiB", 64 * KIB), ("1MiB", MIB), ("10MiB", 10 * MIB)];

/// At least so many bytes of objects, for each size and variant.
const WORKING_SET: u64 = 256 * MIB;

/// At least so many bytes each time that a variant has its turn.
const TURN: u64 = 512 * MIB;

const CONNECTIONS: u64 = 16;

/// More than the head of any response here.
const MAX_HEAD: usize = 2 * 1024;

/// The most that one call discards.
const DISCARD: usize = 1024 * 1024;

/// How much is to be done.
struct Effort {
    working_set: u64,
    rounds: usize,
}

/// Both variants, with the same objects.
struct Pair {
    _origin: Origin,
    off: Variant,
    on: Variant,
}

struct Variant {
    proxy: Proxy,
    client: Client,
}

/// One thread's connections to one proxy.
struct Client {
    streams: Vec<Stream>,
    requests: Vec<String>,
    next: usize,
    sent: u64,
    /// Never written to, so that it takes no memory either.
    discarded: Vec<u8>,
    object_len: u64,
    pinned: bool,
}

struct Stream {
    tcp: TcpStream,
    head: [u8; MAX_HEAD],
    state: State,
}

enum State {
    Idle,
    /// So many bytes of the head have arrived.
    Head(usize),
    /// So many bytes of the body have not.
    Body(u64),
}

enum Progress {
    None,
    Some,
    Complete,
}

/// What a variant did in all of its turns.
#[derive(Default)]
struct Turns {
    bytes_per_second: Vec<f64>,
    elapsed: Duration,
    server_cpu: Duration,
}

/// A line of the table.
struct Compared {
    size: &'static str,
    off: Turns,
    on: Turns,
}

fn main() {
    let effort = Effort::from_args();
    let cores = Cores::choose();
    match cores {
        Some(Cores { server, client }) => {
            pin(client);
            println!("the proxy runs on core {server}, the client on core {client}");
        }
        None => println!("one core only: proxy and client share it, unpinned"),
    }

    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Vec::new();
    for (size, len) in SIZES {
        // Not before something is measured: the filter may leave this size out.
        let mut pair = None;
        let mut start = || Pair::start(len, effort.working_set, cores);

        let mut group = criterion.benchmark_group(format!("hit/{size}"));
        group
            .throughput(Throughput::Bytes(CONNECTIONS * len))
            .sampling_mode(SamplingMode::Flat)
            .sample_size(20)
            .warm_up_time(Duration::from_secs(1))
            .measurement_time(Duration::from_secs(5));
        for sendfile in [false, true] {
            let name = if sendfile {
                "sendfile-on"
            } else {
                "sendfile-off"
            };
            group.bench_function(name, |bencher| {
                let variant = pair.get_or_insert_with(&mut start).variant(sendfile);
                // An iteration is a response on each connection.
                bencher.iter_custom(|iterations| variant.client.fetch(iterations * CONNECTIONS));
            });
        }
        group.finish();

        if let Some(mut pair) = pair {
            let compared = pair.compare(size, len, effort.rounds);
            pair.check();
            table.push(compared);
        }
    }
    criterion.final_summary();
    if effort.rounds > 0 && !table.is_empty() {
        print_table(&table, effort.rounds);
    }
}

fn print_table(table: &[Compared], rounds: usize) {
    println!("\nmedians of {rounds} interleaved rounds; ratio: of each round, its lowest and highest in brackets");
    println!("| object | off, GiB/s | on, GiB/s | on/off | proxy busy, off | proxy busy, on |");
    println!("|---|---|---|---|---|---|");
    for Compared { size, off, on } in table {
        let turns = off.bytes_per_second.iter().zip(&on.bytes_per_second);
        let mut ratios: Vec<f64> = turns.map(|(off, on)| on / off).collect();
        let ratio = median(&mut ratios);
        println!(
            "| {size} | {:.2} | {:.2} | {ratio:.2} [{:.2}, {:.2}] | {:.0} % | {:.0} % |",
            off.median() / GIB as f64,
            on.median() / GIB as f64,
            ratios[0],
            ratios[ratios.len() - 1],
            off.busy() * 100.0,
            on.busy() * 100.0,
        );
    }
}

/// Sorts what it is given.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

// === impl Effort ===

impl Effort {
    /// Criterion's own arguments. Cargo passes `--bench` where it is to measure;
    /// without it, criterion runs everything once to see that it works.
    fn from_args() -> Self {
        let has = |name: &str| env::args().any(|arg| arg == name);
        if !has("--bench") || has("--test") {
            Self {
                working_set: 0,
                rounds: 0,
            }
        } else {
            Self {
                working_set: WORKING_SET,
                rounds: if has("--quick") { 5 } else { 15 },
            }
        }
    }
}

// === impl Pair ===

impl Pair {
    /// Starts both proxies and fills their caches.
    fn start(len: u64, working_set: u64, cores: Option<Cores>) -> Self {
        let origin = Origin::start(move |request| {
            let object = request.path().rsplit('/').next().unwrap_or_default();
            match object.parse() {
                Ok(seed) => Reply::pattern(seed, len).header("ETag", format!("\"{seed}\"")),
                Err(_) => Reply::status(404),
            }
        });
        let objects = working_set.div_ceil(len).max(CONNECTIONS);
        let variant = |sendfile| Variant::start(&origin, sendfile, objects, len, cores);
        Self {
            off: variant(false),
            on: variant(true),
            _origin: origin,
        }
    }

    fn variant(&mut self, sendfile: bool) -> &mut Variant {
        if sendfile {
            &mut self.on
        } else {
            &mut self.off
        }
    }

    /// The variants in turns, each first in every other round.
    fn compare(&mut self, size: &'static str, len: u64, rounds: usize) -> Compared {
        let count = TURN.div_ceil(len).next_multiple_of(CONNECTIONS);
        let mut off = Turns::default();
        let mut on = Turns::default();
        for round in 0..rounds {
            for sendfile in [round % 2 == 1, round % 2 == 0] {
                let turns = if sendfile { &mut on } else { &mut off };
                self.variant(sendfile).take_turn(count, turns);
            }
        }
        Compared { size, off, on }
    }

    /// Panics unless the proxies did what was to be measured.
    fn check(&self) {
        for (variant, by_sendfile) in [(&self.off, 0), (&self.on, self.on.hits())] {
            let objects = variant.client.requests.len() as u64;
            let proxy = &variant.proxy;
            proxy.expect_metric("cache_hits_total", variant.hits());
            proxy.expect_metric("cache_sendfile_total", by_sendfile);
            proxy.expect_metric("origin_requests_total", objects);
        }
    }
}

// === impl Variant ===

impl Variant {
    fn start(
        origin: &Origin,
        sendfile: bool,
        objects: u64,
        len: u64,
        cores: Option<Cores>,
    ) -> Self {
        let builder = Proxy::builder(env!("CARGO_BIN_EXE_s3-proxy"))
            .bucket(Bucket::at(origin, "/assets", "bench"))
            .threads(1)
            .default_ttl("1h")
            .sendfile(sendfile)
            .sendfile_threshold(0);
        if let Some(cores) = cores {
            pin(cores.server);
        }
        let proxy = builder.start();
        if let Some(cores) = cores {
            pin(cores.client);
        }

        let mut client = Client::connect(proxy.addr(), objects, len, cores.is_some());
        client.fetch(objects);
        // The last entry is complete a little later than its response.
        proxy.expect_metric("cache_entries", objects);

        // What the client discards is right: one object is looked at.
        let mut connection = Connection::open(proxy.addr());
        let hit = connection.begin("GET", "/assets/0", &[]);
        assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
        let transfer = hit.check(Pattern::new(0), 0);
        assert!(transfer.complete && transfer.len == len, "{transfer:?}");
        Self { proxy, client }
    }

    /// Responses that must have come from the cache: all but the first of each
    /// object, and the one that was looked at.
    fn hits(&self) -> u64 {
        self.client.sent - self.client.requests.len() as u64 + 1
    }

    fn take_turn(&mut self, count: u64, turns: &mut Turns) {
        let cpu_before = self.cpu_time();
        let elapsed = self.client.fetch(count);
        turns.server_cpu += self.cpu_time() - cpu_before;
        turns.elapsed += elapsed;
        let bytes = (count * self.client.object_len) as f64;
        turns.bytes_per_second.push(bytes / elapsed.as_secs_f64());
    }

    /// User and system time of all threads so far (proc_pid_stat(5), fields 14
    /// and 15).
    fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.proxy.pid());
        let stat = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        // Field 2, the name, may contain anything but ends with the last bracket.
        let (_, after_name) = stat.rsplit_once(')').expect("a name in brackets");
        let ticks: u64 = after_name
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("a number of ticks"))
            .sum();
        Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
    }
}

// === impl Turns ===

impl Turns {
    fn median(&self) -> f64 {
        median(&mut self.bytes_per_second.clone())
    }

    /// The part of its core's time that the proxy used.
    fn busy(&self) -> f64 {
        self.server_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

// === impl Client ===

impl Client {
    fn connect(addr: SocketAddr, objects: u64, object_len: u64, pinned: bool) -> Self {
        Self {
            streams: (0..CONNECTIONS).map(|_| Stream::connect(addr)).collect(),
            requests: (0..objects)
                .map(|object| format!("GET /assets/{object} HTTP/1.1\r\nHost: {addr}\r\n\r\n"))
                .collect(),
            next: 0,
            sent: 0,
            discarded: vec![0; DISCARD],
            object_len,
            pinned,
        }
    }

    /// Asks for the next `count` objects, on all connections at once, and
    /// returns how long it took until the last byte of the last response.
    fn fetch(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        let mut unsent = count;
        let mut outstanding = count;
        let mut idle_since = None;
        while outstanding > 0 {
            let mut idle = true;
            for stream in &mut self.streams {
                if matches!(stream.state, State::Idle) {
                    if unsent == 0 {
                        continue;
                    }
                    stream.send(&self.requests[self.next]);
                    self.next = (self.next + 1) % self.requests.len();
                    self.sent += 1;
                    unsent -= 1;
                }
                match stream.receive(self.object_len, &mut self.discarded) {
                    Progress::None => continue,
                    Progress::Some => {}
                    Progress::Complete => outstanding -= 1,
                }
                idle = false;
            }
            if !idle {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            assert!(
                since.elapsed() < PATIENCE,
                "{outstanding} responses made no progress in {PATIENCE:?}"
            );
            if self.pinned {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        start.elapsed()
    }
}

// === impl Stream ===

impl Stream {
    fn connect(addr: SocketAddr) -> Self {
        let tcp = TcpStream::connect(addr).unwrap_or_else(|e| panic!("connect to {addr}: {e}"));
        tcp.set_nodelay(true).expect("set TCP_NODELAY");
        Self {
            tcp,
            head: [0; MAX_HEAD],
            state: State::Idle,
        }
    }

    fn send(&mut self, request: &str) {
        self.tcp
            .write_all(request.as_bytes())
            .expect("send a request");
        self.state = State::Head(0);
    }

    /// One recv(2), of the head or the body of the response under way.
    fn receive(&mut self, body_len: u64, discarded: &mut [u8]) -> Progress {
        let left = match self.state {
            State::Idle => return Progress::None,
            State::Head(filled) => {
                let free = &mut self.head[filled..];
                let Some(n) = receive_now(&self.tcp, free, RecvFlags::empty()) else {
                    return Progress::None;
                };
                let received = &self.head[..filled + n];
                let Some(end) = end_of_head(received) else {
                    assert!(received.len() < MAX_HEAD, "a head without an end");
                    self.state = State::Head(received.len());
                    return Progress::Some;
                };
                check_head(&received[..end], body_len);
                body_len.checked_sub((received.len() - end) as u64)
            }
            State::Body(left) => {
                let len = usize::try_from(left).map_or(DISCARD, |left| left.min(DISCARD));
                let Some(n) = receive_now(&self.tcp, &mut discarded[..len], RecvFlags::TRUNC)
                else {
                    return Progress::None;
                };
                left.checked_sub(n as u64)
            }
        };
        match left.expect("bytes behind the end of a response") {
            0 => {
                self.state = State::Idle;
                Progress::Complete
            }
            left => {
                self.state = State::Body(left);
                Progress::Some
            }
        }
    }
}

/// None: nothing has arrived.
fn receive_now(tcp: &TcpStream, buffer: &mut [u8], flags: RecvFlags) -> Option<usize> {
    match recv(tcp, buffer, flags | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => panic!("the proxy closed a connection"),
        Ok((_, n)) => Some(n),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(e) => panic!("receive a response: {e}"),
    }
}

fn end_of_head(received: &[u8]) -> Option<usize> {
    let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Panics unless it is the head of a 200 with a body of this length.
fn check_head(head: &[u8], body_len: u64) {
    let head = str::from_utf8(head).expect("a head in UTF-8");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let found = name.eq_ignore_ascii_case("content-length");
        found.then(|| value.trim().parse().ok())?
    });
    assert!(
        head.starts_with("HTTP/1.1 200 ") && length == Some(body_len),
        "not the response asked for: {head}"
    );
}
