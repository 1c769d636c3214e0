//! The proxy against the number of entries in its cache: hits, memory, and its start.
//!
//! Entries are generated without their content: all names are hard links to a few files, with empty
//! bodies. A start reads names and sizes alone, so they are entries until they are requested, and
//! nobody requests them. The scrubber, which would read them, is off.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use test_support::{try_get, SelfSigned, PATIENCE};

use crate::{
    client::{Client, Order},
    cores::{describe, pin, Cores},
    machine,
    network::Network,
    objects::{self, Objects, KIB, MIB},
    options::{OpenFiles, Options},
    peers::{Peer, Stage},
    plot::Svg,
    process::Server,
    process::WorkDir,
    protocol::Protocol,
    race::in_turns,
    report::{self, count, ratio},
    roles,
    stats::{median, percentiles},
    table::Table,
};

/// Numbers of generated entries.
const COUNTS: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// The objects that are requested, besides.
const HOT: Objects = Objects {
    label: "64KiB",
    len: 64 * KIB,
    count: 1_000,
};

const CONNECTIONS: usize = 16;

/// Names of one file: ext4 allows 65,000.
const LINKS: u64 = 60_000;

/// Length of a generated file of metadata, in bytes, as usual ones have it.
const META_LEN: usize = 700;

/// The longest time until all entries are found.
const FIND_WITHIN: Duration = Duration::from_secs(600);

/// A proxy with so many generated entries, and its figures.
struct Grown {
    count: u64,
    peer: Peer,
    /// From the start of the process to the end of the first response, which is a miss.
    first_response: Duration,
    /// From the start of the process until all entries are found.
    found: Duration,
    /// Resident bytes when all entries are found, and then when the hot objects have been requested.
    resident: [u64; 2],
    rates: Vec<f64>,
    p99: Vec<f64>,
}

/// Prints and writes `growth.md` and `growth.svg`.
pub fn run(options: &Options) {
    let network = Network::enter(options.machine_network);
    let cores = Cores::choose();
    let work = WorkDir::make();
    let certificate = SelfSigned::write_to(work.path());
    let mut origin = Server::start_role("the origin", None, &[roles::ORIGIN]);
    let stage = Stage {
        core: cores.map(|cores| cores.server),
        dir: work.path(),
        files: work.path(),
        origin: origin.read_until(|line| line.parse().ok()),
        open_files: OpenFiles::Default,
        builds: &[],
        threads: 1,
        certificate: &certificate,
    };
    let most = options.most_entries.unwrap_or(u64::MAX);
    let mut all: Vec<Grown> = Vec::new();
    for count in COUNTS.into_iter().filter(|count| *count <= most) {
        println!("generating {count} entries");
        all.push(Grown::start(count, &stage));
    }
    if let Some(cores) = cores {
        pin(cores.client);
    }
    println!("racing");
    race(&mut all, options);

    let table = table(&all);
    let heading = format!(
        "# Growth\n\n`cargo bench --bench peer_race -- growth` on {}; {}.\n\n{} hot objects of {} on \
         {CONNECTIONS} connections, medians of {} interleaved rounds of {} ms; everything at its default \
         but one worker and no scrubber. First response: a miss, from the start of the process; found: \
         all entries, from there too.\n\n![Hits and their 99th percentile](growth.svg)\n\n",
        machine::describe(&network),
        describe(cores, "the proxies"),
        HOT.count,
        HOT.label,
        options.rounds,
        options.turn.as_millis(),
    );
    println!("\n{table}");
    let dir = report::dir();
    for (name, text) in [
        ("growth.md", format!("{heading}{table}")),
        ("growth.svg", plot(&all)),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        println!("written: {}", path.display());
    }
}

fn race(all: &mut [Grown], options: &Options) {
    let connect = |grown: &Grown| {
        grown
            .peer
            .connect(Protocol::Http, HOT, Order::random(), CONNECTIONS)
    };
    let mut clients: Vec<Client> = all.iter().map(connect).collect();
    in_turns(all.len(), options.rounds, |index, round| {
        let mut latencies = Vec::new();
        let turn = clients[index].turn(options.turn, &mut latencies);
        if round.is_some() {
            let grown = &mut all[index];
            let rate = turn.bytes as f64 / turn.elapsed.as_secs_f64();
            grown.rates.push(rate / HOT.len as f64);
            let [p99] = percentiles(&mut latencies, [99]);
            grown.p99.push(f64::from(p99) / 1e3);
        }
    });
}

fn table(all: &[Grown]) -> Table {
    let mut table = Table::new(&[
        "entries",
        "first response, ms",
        "found, s",
        "resident, MiB",
        "bytes an entry",
        "with hits, MiB",
        "responses/s",
        "/ fewest",
        "p99, µs",
        "p99 / fewest",
    ]);
    let Some(fewest) = all.first() else {
        return table;
    };
    for grown in all {
        let more = grown.count - fewest.count;
        let taken = grown.resident[0].saturating_sub(fewest.resident[0]);
        table.row(&[
            grown.count.to_string(),
            grown.first_response.as_millis().to_string(),
            format!("{:.1}", grown.found.as_secs_f64()),
            (grown.resident[0] / MIB).to_string(),
            taken
                .checked_div(more)
                .map_or(String::new(), |each| each.to_string()),
            (grown.resident[1] / MIB).to_string(),
            count(median(&grown.rates)),
            ratio(&grown.rates, Some(&fewest.rates)),
            count(median(&grown.p99)),
            ratio(&grown.p99, Some(&fewest.p99)),
        ]);
    }
    table
}

/// Bars of the rate and of the 99th percentile, relative to those of the fewest entries.
fn plot(all: &[Grown]) -> String {
    const BAR: f64 = 26.0;
    const GAP: f64 = 40.0;
    const LEFT: f64 = 48.0;
    const TOP: f64 = 48.0;
    const HEIGHT: f64 = 240.0;
    const HIGHEST: f64 = 2.0;
    const COLOURS: [&str; 2] = ["#c0392b", "#5d6d7e"];
    let width = LEFT + all.len() as f64 * (2.0 * BAR + GAP) + GAP;
    let mut svg = Svg::begin(width + 130.0, TOP + HEIGHT + 40.0);
    let y = |ratio: f64| TOP + HEIGHT * (1.0 - ratio.min(HIGHEST) / HIGHEST);
    let title = "Hits against the number of entries, relative to 1,000 entries";
    svg.text(LEFT, 24.0, "start", 15, title);
    for quarter in 0..=8 {
        let mark = f64::from(quarter) * 0.25;
        let colour = if quarter == 4 { "#333" } else { "#ddd" };
        svg.line(LEFT, width, y(mark), colour);
        svg.text(LEFT - 6.0, y(mark) + 4.0, "end", 11, &format!("{mark:.2}"));
    }
    let mut x = LEFT + GAP;
    for grown in all {
        let figures = [
            (&grown.rates, &all[0].rates, "responses/s"),
            (&grown.p99, &all[0].p99, "µs"),
        ];
        let label = format!("10^{}", grown.count.ilog10());
        svg.text(x + BAR, TOP + HEIGHT + 20.0, "middle", 13, &label);
        for ((figures, base, unit), colour) in figures.into_iter().zip(COLOURS) {
            let ratio = median(figures) / median(base);
            let hint = format!("{} {unit}, {ratio:.2}", count(median(figures)));
            svg.bar(x, y(ratio), y(0.0), BAR, colour, &hint);
            svg.upright(x + BAR / 2.0 + 4.0, y(ratio) - 4.0, &count(median(figures)));
            x += BAR;
        }
        x += GAP;
    }
    for (index, (label, colour)) in ["responses/s", "p99, µs"]
        .into_iter()
        .zip(COLOURS)
        .enumerate()
    {
        let at = TOP + index as f64 * 20.0;
        svg.bar(width + 10.0, at, at + 12.0, BAR, colour, label);
        svg.text(width + 16.0 + BAR, at + 11.0, "start", 12, label);
    }
    svg.end()
}

/// Makes the names of `count` entries.
fn generate(cache: &Path, count: u64) {
    let sources = cache.with_file_name("sources");
    fs::create_dir_all(&sources).expect("make a folder");
    let source = |kind: &str, number: u64, content: &[u8]| -> PathBuf {
        let path = sources.join(format!("{number}.{kind}"));
        fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        path
    };
    let mut files = [PathBuf::new(), PathBuf::new()];
    for number in 0..count {
        if number % LINKS == 0 {
            files = [
                source("body", number, b""),
                source("meta", number, &[0; META_LEN]),
            ];
        }
        // Like a hash, it begins with any byte.
        let high = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut stem = String::new();
        let shard = high >> 56;
        write!(stem, "v2/{shard:02x}/{high:016x}{number:016x}.{:016x}", 1)
            .expect("write to a string");
        for (file, kind) in files.iter().zip(["body", "meta"]) {
            let name = cache.join(format!("{stem}.{kind}"));
            fs::hard_link(file, &name).unwrap_or_else(|e| panic!("link {}: {e}", name.display()));
        }
    }
}

// === impl Grown ===

impl Grown {
    fn start(count: u64, stage: &Stage) -> Self {
        let dir = stage.dir.join(count.to_string());
        let metrics = free_address();
        let rest = format!("scrub_mb_per_second: 0\nmetrics:\n  address: {metrics}");
        // The first start makes the folders.
        drop(Peer::start_in(&dir, &rest, stage));
        generate(&dir.join("cache"), count);
        let begun = Instant::now();
        let peer = Peer::start_in(&dir, &rest, stage);
        let response = test_support::get(peer.http(), &objects::path(HOT.len, HOT.count));
        assert_eq!(response.status, 200, "the first response");
        let first_response = begun.elapsed();
        while entries(metrics) < count {
            assert!(
                begun.elapsed() < FIND_WITHIN,
                "{count} entries are not found"
            );
            thread::sleep(Duration::from_millis(20));
        }
        let found = begun.elapsed();
        let found_bytes = peer.server.resident_bytes();
        peer.fill(HOT);
        let resident = [found_bytes, peer.server.resident_bytes()];
        println!("{count}: first response after {first_response:.1?}, found after {found:.1?}");
        Self {
            count,
            peer,
            first_response,
            found,
            resident,
            rates: Vec::new(),
            p99: Vec::new(),
        }
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("find a free port");
    listener.local_addr().expect("a free port")
}

/// `cache_entries` of a proxy.
fn entries(metrics: SocketAddr) -> u64 {
    let begun = Instant::now();
    loop {
        let response = try_get(metrics, "/metrics").map(|response| response.body);
        let text = response.as_deref().map(String::from_utf8_lossy);
        let value = text.as_deref().and_then(|text| {
            let mut values = text
                .lines()
                .filter_map(|line| line.strip_prefix("cache_entries "));
            values.next()?.parse().ok()
        });
        if let Some(value) = value {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "no cache_entries at {metrics}");
    }
}
