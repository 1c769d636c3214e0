//! A good client beside attackers, and beside operators who reload and upgrade the proxy: it is served
//! as if it were alone. The resources that attackers took are given back.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use test_support::{
    get, try_get, Bucket, Connection, Origin, Pattern, Proxy, Reply, Request, Retiring, PATIENCE,
};

use crate::attackers::{begin_head, grow, Attack, Target, ATTACKS, IDLE, LEAVERS};

const HOT: usize = 50;
const HOT_LEN: u64 = 4 << 10;
const LARGE: u64 = 100 << 20;
const HUGE: u64 = 64 << 20;

/// Bytes a second that the origin sends: too few to fetch a huge object while an attacker
/// stays.
const PACE: u64 = 16 << 20;

/// The time between two requests of the good client.
const TICK: Duration = Duration::from_millis(2);

/// The most comparisons with one attack. Their median is judged: on a machine that does other
/// work too, a single p99 can be that of the machine.
const COMPARISONS: usize = 9;

/// A p99 below this counts as this, because a small machine that does other work too adds
/// as much, sometimes to one phase and sometimes to the other.
const FASTEST: Duration = if cfg!(debug_assertions) {
    Duration::from_millis(25)
} else {
    Duration::from_millis(2)
};

/// Bytes of memory that each connection of an attacker may take, and that all of them may
/// take besides.
const PER_CONNECTION: u64 = 1 << 20;
const BESIDES: u64 = 24 << 20;

/// Log lines that attackers may cause at once, and a second.
const LINES: u64 = 100;
const LINES_A_SECOND: u64 = 4;

/// The time within which memory and descriptors are given back.
const GIVEN_BACK: Duration = Duration::from_secs(10);

/// The `keepalive_timeout` of connections that ask for nothing, and the
/// `request_head_timeout` of those that have begun to ask. After that, an HTTP/2 connection
/// has 5 s to close.
const KEEPALIVE: Duration = Duration::from_secs(2);
const HEAD: Duration = Duration::from_secs(3);
const SLACK: Duration = Duration::from_secs(10);

/// Measurements of the good client during one attack.
#[derive(Default)]
struct Seen {
    alone: Vec<Duration>,
    beside: Vec<Duration>,
    /// The p99 alone and beside, of each comparison.
    p99s: Vec<(Duration, Duration)>,
    /// Memory, in bytes.
    before: u64,
    peak: u64,
    after: u64,
    origin_bytes: u64,
    /// Hot objects that were no longer hits.
    evicted: usize,
    wrong: Vec<String>,
}

/// A change of the proxy that the good client must not notice.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// One reload after the other.
    Reloads,
    /// Another process takes over, and the former one ends.
    Upgrade,
}

/// Measurements of the good client during changes of one kind.
#[derive(Default)]
struct Changed {
    count: usize,
    seen: Seen,
}

struct Siege {
    proxy: Proxy,
    origin: Origin,
    target: Target,
    good: Good,
}

/// A client that checks what it gets.
struct Good {
    addr: SocketAddr,
    kept: Option<Connection>,
    asked: usize,
}

/// Runs the attacks for about `time`.
pub fn run(time: Duration) {
    let mut siege = Siege::begin();
    let begun = Instant::now();
    let phase = Duration::from_millis(500).max(time.div_f64(100.0));
    let rounds = time.div_duration_f64(phase * 2 * ATTACKS.len() as u32);
    let mut wrong = Vec::new();
    let mut report = String::new();
    let mut all: Vec<_> = ATTACKS
        .iter()
        .map(|attack| (attack, Seen::default()))
        .collect();
    let mut changes = [Change::Reloads, Change::Upgrade].map(|change| (change, Changed::default()));
    for round in 0..rounds.ceil() as usize {
        for (attack, seen) in &mut all {
            siege.compare(attack, seen, phase);
        }
        let attack = &ATTACKS[round % ATTACKS.len()];
        for (change, changed) in &mut changes {
            siege.change(*change, attack, changed, phase);
        }
    }
    for (attack, seen) in &mut all {
        while seen.is_slow() && seen.p99s.len() < COMPARISONS {
            siege.compare(attack, seen, phase);
        }
        seen.judge();
        let _ = writeln!(report, "soak: {}: {}", attack.name, seen.figures(attack));
        wrong.extend(
            seen.wrong
                .iter()
                .map(|why| format!("{}: {why}", attack.name)),
        );
    }
    for (change, Changed { count, seen }) in &mut changes {
        while seen.is_slow() && seen.p99s.len() < COMPARISONS {
            let attack = &ATTACKS[seen.p99s.len() % ATTACKS.len()];
            let mut more = Changed::default();
            siege.change(*change, attack, &mut more, phase);
            *count += more.count;
            seen.alone.append(&mut more.seen.alone);
            seen.beside.append(&mut more.seen.beside);
            seen.p99s.append(&mut more.seen.p99s);
        }
        seen.judge();
        let _ = writeln!(
            report,
            "soak: {count} x {change:?} beside attackers: {}",
            seen.latencies()
        );
        wrong.extend(seen.wrong.iter().map(|why| format!("{change:?}: {why}")));
    }
    siege.expect_to_be_asked_to_leave(&mut report, &mut wrong);
    starve(&siege.origin, &mut report, &mut wrong);
    let lines = siege.proxy.stderr().lines().count();
    let _ = writeln!(report, "soak: {lines} lines of log about the attacks");
    if lines as u64 > LINES + begun.elapsed().as_secs() * LINES_A_SECOND {
        wrong.push(format!("the attacks are {lines} lines of log"));
    }
    println!("{report}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn answer(request: &Request) -> Reply {
    let name = request.path().rsplit('/').next().unwrap_or_default();
    let (kind, number) = name.split_once('-').unwrap_or((name, "0"));
    let reply = match kind {
        "hot" => Reply::pattern(number.parse().expect("a number"), HOT_LEN),
        "large" => Reply::pattern(1 << 32, LARGE),
        "huge" => Reply::pattern(2 << 32, HUGE).paced(PACE),
        _ => Reply::status(404),
    };
    reply
        .header("ETag", format!("\"{name}\""))
        .header("Cache-Control", "max-age=3600")
}

// === impl Siege ===

impl Siege {
    fn begin() -> Self {
        // Its threads inherit the low priority, so that the proxy's work is measured.
        let origin = thread::spawn(|| {
            rustix::process::nice(19).expect("be nice");
            Origin::start(answer)
        });
        let origin = origin.join().expect("start the origin");
        let proxy = Proxy::builder(env!("CARGO_BIN_EXE_s3-proxy"))
            .bucket(Bucket::at(&origin, "/siege", "siege"))
            .keepalive_timeout(&format!("{}s", KEEPALIVE.as_secs()))
            .request_head_timeout(&format!("{}s", HEAD.as_secs()))
            // Less than what leaving clients ask for at once.
            .max_size_gb(0.5)
            .tls()
            .admin()
            .grace_period("10s")
            .upgradable()
            .start();
        let target = Target {
            http: proxy.addr(),
            https: proxy.https_addr(),
            metrics: proxy.metrics_addr(),
            tls: crate::frames::tls(&proxy.config().with_file_name("certificate.pem")),
            small: "/siege/hot-0",
            large: "/siege/large",
            huge: "/siege/huge",
        };
        let mut siege = Self {
            good: Good::new(proxy.addr()),
            proxy,
            origin,
            target,
        };
        let large = Connection::open(siege.target.http);
        stored(large, siege.target.large);
        siege.good.ask_for_all();
        // The allocator gets what a busy proxy needs before anything is compared.
        siege.good.run(Duration::from_secs(1), &mut Vec::new());
        siege
    }

    /// Runs one phase alone, and one beside an attack.
    fn compare(&mut self, attack: &Attack, seen: &mut Seen, phase: Duration) {
        let (first_alone, first_beside) = (seen.alone.len(), seen.beside.len());
        self.good.run(phase, &mut seen.alone);
        let descriptors = self.proxy.open_descriptors();
        let before = self.proxy.rss_bytes();
        let sent = self.origin.bytes_sent();
        let fetched = self.hot_fetched();
        self.proxy.reset_peak_rss();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| attack.run(&self.target, &stop));
            self.good.run(phase, &mut seen.beside);
            let scraped = Instant::now();
            self.proxy.metrics();
            let took = scraped.elapsed();
            if took > Duration::from_secs(1) {
                seen.wrong.push(format!("/metrics took {took:?}"));
            }
            stop.store(true, Ordering::SeqCst);
        });
        seen.p99s.push((
            p99(&seen.alone[first_alone..]),
            p99(&seen.beside[first_beside..]),
        ));
        let stopped = Instant::now();
        let peak = self.proxy.peak_rss_bytes();
        let allowed = attack.connections as u64 * PER_CONNECTION + BESIDES;
        if peak.saturating_sub(before) > allowed {
            let mib = (peak - before) >> 20;
            seen.wrong.push(format!("{mib} MiB of memory were taken"));
        }
        let mut after = self.proxy.rss_bytes();
        loop {
            let open = self.proxy.open_descriptors();
            after = after.min(self.proxy.rss_bytes());
            let fills = self.proxy.metric("cache_fills_in_flight");
            if open <= descriptors + 8 && after <= before + BESIDES && fills == 0 {
                break;
            }
            if stopped.elapsed() > GIVEN_BACK {
                let mib = after.saturating_sub(before) >> 20;
                let files = open as i64 - descriptors as i64;
                seen.wrong.push(format!(
                    "{mib} MiB, {files} descriptors and {fills} fills are left after {GIVEN_BACK:?}"
                ));
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let sent = self.origin.bytes_sent() - sent;
        if attack.name == LEAVERS.name && sent > attack.connections as u64 * HUGE / 2 {
            let mib = sent >> 20;
            seen.wrong.push(format!("{mib} MiB came from the origin"));
        }
        self.good.ask_for_all();
        let evicted = self.hot_fetched() - fetched;
        if evicted > HOT / 10 {
            seen.wrong
                .push(format!("{evicted} hot objects were fetched again"));
        }
        seen.evicted = seen.evicted.max(evicted);
        if peak - before.min(peak) >= seen.peak - seen.before.min(seen.peak) {
            (seen.before, seen.peak, seen.after) = (before, peak, after);
        }
        seen.origin_bytes = seen.origin_bytes.max(sent);
    }

    /// Runs one phase alone, and one beside changes of the proxy and an attack. No request of the good
    /// client fails.
    fn change(&mut self, change: Change, attack: &Attack, changed: &mut Changed, phase: Duration) {
        let Changed { count, seen } = changed;
        let (first_alone, first_beside) = (seen.alone.len(), seen.beside.len());
        self.good.run(phase, &mut seen.alone);
        let Siege {
            proxy,
            good,
            target,
            ..
        } = self;
        let stop = AtomicBool::new(false);
        let changes_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| attack.run(target, &stop));
            let good = scope.spawn(|| {
                // Also if the good client panics.
                let _stop = StopAtEnd(&stop);
                while !changes_done.load(Ordering::SeqCst) {
                    good.run(TICK, &mut seen.beside);
                }
            });
            let _done = StopAtEnd(&changes_done);
            let begun = Instant::now();
            while !good.is_finished() {
                match change {
                    Change::Reloads => assert_eq!(proxy.reload(), "ok"),
                    Change::Upgrade => {
                        let (output, old) = proxy.upgrade_by_command(&[]);
                        assert!(output.status.success(), "{output:?}");
                        let ended = old.map(Retiring::wait);
                        // The status of a process that another proxy has started is not known, and
                        // counts as a success.
                        assert!(ended.is_some_and(|status| status.success()));
                        let log = proxy.stderr();
                        assert!(!log.contains("panicked at"), "{log}");
                    }
                }
                *count += 1;
                if begun.elapsed() >= phase {
                    break;
                }
            }
        });
        seen.p99s.push((
            p99(&seen.alone[first_alone..]),
            p99(&seen.beside[first_beside..]),
        ));
        // The new process has to find its bearings before it is compared.
        self.good.ask_for_all();
    }

    /// The number of requests for hot objects that the origin has received.
    fn hot_fetched(&self) -> usize {
        let requests = self.origin.requests();
        let hot = requests
            .iter()
            .filter(|request| request.path().contains("/hot-"));
        hot.count()
    }

    /// Checks that connections that ask for nothing are ended.
    fn expect_to_be_asked_to_leave(&self, report: &mut String, wrong: &mut Vec<String>) {
        let begun = Instant::now();
        let mut held: Vec<_> = IDLE
            .iter()
            .map(|way| (format!("{way:?}"), way.hold(&self.target).ok()))
            .collect();
        let mut heads: Vec<_> = [self.target.http, self.target.metrics]
            .iter()
            .map(|addr| begin_head(*addr).ok())
            .collect();
        let mut note = |what: &str, wrong: &mut Vec<String>, open: bool| {
            let after = begun.elapsed();
            let _ = if open {
                writeln!(report, "soak: {what} stays for more than {after:.1?}")
            } else {
                writeln!(report, "soak: {what} stays for {after:.1?}")
            };
            if open {
                wrong.push(format!("{what} is not asked to leave in {after:.1?}"));
            }
        };
        while begun.elapsed() < HEAD + SLACK {
            for (what, frames) in &mut held {
                if frames.as_mut().is_some_and(|frames| !frames.drain()) {
                    note(what, wrong, false);
                    *frames = None;
                }
            }
            for head in &mut heads {
                if head.as_ref().is_some_and(|head| grow(head).is_err()) {
                    note("a head that grows", wrong, false);
                    *head = None;
                }
            }
            if held.iter().all(|(_, frames)| frames.is_none()) && heads.iter().all(Option::is_none)
            {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        for (what, frames) in &held {
            if frames.is_some() {
                note(what, wrong, true);
            }
        }
        for _ in heads.iter().flatten() {
            note("a head that grows", wrong, true);
        }
    }
}

/// Starts a proxy that may open few files, with clients that hold them all.
fn starve(origin: &Origin, report: &mut String, wrong: &mut Vec<String>) {
    const FILES: &str = "ulimit -n 256; exec \"$@\"";
    const ANSWER: Duration = Duration::from_secs(5);
    let mut proxy = Proxy::builder(env!("CARGO_BIN_EXE_s3-proxy"))
        .bucket(Bucket::at(origin, "/siege", "siege"))
        .start();
    assert!(proxy.restart_under(&["sh", "-c", FILES, "sh"]));
    let (http, metrics) = (proxy.addr(), proxy.metrics_addr());
    assert_eq!(get(http, &hot(0)).status, 200);
    let held: Vec<_> = (0..300)
        .map(|_| std::net::TcpStream::connect(http).expect("connect"))
        .collect();
    for (what, addr, path) in [
        ("a new client", http, hot(0)),
        ("/metrics", metrics, "/metrics".to_owned()),
    ] {
        let (answered, answer) = std::sync::mpsc::channel();
        let asked = Instant::now();
        thread::spawn(move || {
            let status = try_get(addr, &path).map(|response| response.status);
            // The receiver may have stopped waiting.
            let _ = answered.send(status);
        });
        match answer.recv_timeout(ANSWER) {
            Ok(status) => {
                let took = asked.elapsed();
                let _ = writeln!(
                    report,
                    "soak: {what} beside 300 idle ones: {status:?} after {took:.1?}"
                );
                // A client may be turned away, but an operator may not.
                if status.is_none() && what == "/metrics" {
                    wrong.push("/metrics turns clients away beside 300 idle ones".to_owned());
                }
            }
            Err(_) => {
                let _ = writeln!(report, "soak: {what} beside 300 idle ones: nothing");
                wrong.push(format!("{what} hangs beside 300 idle ones"));
            }
        }
    }
    let lines = proxy.stderr().lines().count();
    let _ = writeln!(report, "soak: {lines} lines of log about it");
    if lines > 50 {
        wrong.push(format!("300 idle connections are {lines} lines of log"));
    }
    drop(held);
}

fn hot(number: usize) -> String {
    format!("/siege/hot-{number}")
}

/// Asks for `path` until it is a hit.
fn stored(mut connection: Connection, path: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let incoming = connection.begin("GET", path, &[]);
        let hit = incoming.headers.get("x-cache") == Some("HIT");
        assert!(incoming.stream(|_, _| {}).complete);
        if hit {
            return;
        }
        assert!(Instant::now() < deadline, "{path} is not stored");
    }
}

// === impl Good ===

impl Good {
    fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            kept: None,
            asked: 0,
        }
    }

    fn ask_for_all(&self) {
        for number in 0..HOT {
            stored(Connection::open(self.addr), &hot(number));
        }
    }

    /// Asks for `time`, and notes how long each answer takes.
    fn run(&mut self, time: Duration, took: &mut Vec<Duration>) {
        let begun = Instant::now();
        let mut due = begun;
        while begun.elapsed() < time {
            took.push(self.ask());
            due = (due + TICK).max(Instant::now());
            thread::sleep(due - Instant::now().min(due));
        }
    }

    fn ask(&mut self) -> Duration {
        self.asked += 1;
        let number = self.asked % HOT;
        // Every fourth request comes from a new client.
        let kept = self.kept.take().filter(|_| !self.asked.is_multiple_of(4));
        let kept = kept.filter(Connection::is_reusable);
        let asked = Instant::now();
        // A server may close a connection between two requests (RFC 9112, section 9.3.1).
        let again = kept.and_then(|kept| Self::ask_on(kept, number));
        let connection = again.or_else(|| Self::ask_on(Connection::open(self.addr), number));
        let took = asked.elapsed();
        self.kept = Some(connection.expect("an answer on a connection of its own"));
        took
    }

    /// `None`: there was no answer.
    fn ask_on(mut connection: Connection, number: usize) -> Option<Connection> {
        let incoming = connection.try_begin("GET", &hot(number), &[]).ok()?;
        assert_eq!(incoming.status, 200);
        let received = incoming.check(Pattern::new(number as u64), 0);
        assert!(received.complete && received.len == HOT_LEN);
        Some(connection)
    }
}

// === impl StopAtEnd ===

/// Sets a flag when it is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

// === impl Seen ===

impl Seen {
    /// Tells whether the good client was held up in most comparisons.
    fn is_slow(&self) -> bool {
        let slow = self.p99s.iter();
        let slow = slow.filter(|(alone, beside)| *beside > 2 * (*alone).max(FASTEST));
        slow.count() * 2 > self.p99s.len()
    }

    fn judge(&mut self) {
        if self.is_slow() {
            self.wrong.push(format!(
                "the good client's p99 alone and beside are {:.1?}",
                self.p99s
            ));
        }
    }

    fn latencies(&self) -> String {
        format!(
            "the good client's median {:.2?} and p99 {:.2?}, alone {:.2?} and {:.2?} ({} and {} \
             requests)",
            percentile(&self.beside, 50),
            p99(&self.beside),
            percentile(&self.alone, 50),
            p99(&self.alone),
            self.beside.len(),
            self.alone.len(),
        )
    }

    fn figures(&self, attack: &Attack) -> String {
        let taken = self.peak.saturating_sub(self.before);
        format!(
            "{}; {:.1} MiB taken, {} KiB a connection, {:.1} left; {} MiB from the origin, {} \
             hot objects evicted",
            self.latencies(),
            taken as f64 / f64::from(1 << 20),
            taken / 1024 / attack.connections as u64,
            self.after.saturating_sub(self.before) as f64 / f64::from(1 << 20),
            self.origin_bytes >> 20,
            self.evicted,
        )
    }
}

fn p99(took: &[Duration]) -> Duration {
    percentile(took, 99)
}

fn percentile(took: &[Duration], of: usize) -> Duration {
    let mut took = took.to_vec();
    took.sort();
    took.get(took.len() * of / 100).copied().unwrap_or_default()
}
