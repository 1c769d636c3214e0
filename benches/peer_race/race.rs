//! The race itself.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use rustls::HandshakeKind;
use test_support::SelfSigned;

use crate::{
    client::Client,
    cores::{describe, pin, Cores},
    handshakes::Handshakes,
    machine,
    network::Network,
    objects::{self, Objects, KIB, MIB},
    options::{Options, Part},
    peers::{self, Peer, PeerKind, Stage},
    process::{CpuTime, Server, WorkDir},
    protocol::Protocol,
    report, roles,
    stats::percentiles,
};

/// The sizes that are measured at a fixed rate.
const PACED_SIZES: [u64; 2] = [64 * KIB, MIB];
const PACED_CONNECTIONS: usize = 16;
/// Bytes of bodies a second: what every peer can keep up with.
pub const PACED_RATE: u64 = 512 * MIB;

/// The contents of the report.
pub struct Results {
    pub machine: String,
    pub cores: Option<Cores>,
    pub load: [String; 2],
    /// The part of the processors' time that the hypervisor took during the race.
    pub stolen: f64,
    pub cells: Vec<Cell>,
    pub paced: Vec<Paced>,
    pub handshakes: Vec<Handshakes>,
}

/// The hits of all peers over one protocol, with objects of one size on so many connections.
pub struct Cell {
    pub protocol: Protocol,
    pub objects: Objects,
    pub connections: usize,
    pub entries: Vec<Entry>,
}

/// The results of a peer in all of its turns.
pub struct Entry {
    pub kind: PeerKind,
    /// Bytes of bodies a second, by round.
    pub rates: Vec<f64>,
    /// Median and 99th percentile of latencies, in nanoseconds, by round.
    pub p50: Vec<f64>,
    pub p99: Vec<f64>,
    pub elapsed: Duration,
    pub cpu: CpuTime,
    /// CPU seconds of the server a byte, by round.
    pub cpu_rates: Vec<f64>,
}

/// All peers with objects of one size at a fixed rate.
pub struct Paced {
    pub objects: Objects,
    pub entries: Vec<PacedEntry>,
}

pub struct PacedEntry {
    pub kind: PeerKind,
    /// CPU seconds a byte, by round.
    pub cpu: Vec<f64>,
    /// Bytes a second that came, by round.
    pub rates: Vec<f64>,
}

pub fn run(options: &Options) {
    let network = Network::enter(options.machine_network);
    let cores = Cores::choose();
    let mut results = Results {
        machine: machine::describe(&network),
        cores,
        load: [machine::load(), String::new()],
        stolen: 0.0,
        cells: Vec::new(),
        paced: Vec::new(),
        handshakes: Vec::new(),
    };
    println!("{}, load {}", results.machine, results.load[0]);
    println!("{}", describe(cores, "servers"));

    // Dropped after the servers that have files there.
    let work = WorkDir::make();
    let files = work.path().join("objects");
    if peers::need_files(options.peers.iter().copied()) {
        // One of them reads them all at its start.
        for objects in &options.objects {
            objects.write_to(&files).expect("write the objects");
        }
    }
    let certificate = SelfSigned::write_to(work.path());
    let mut origin = Server::start_role("the origin", None, &[roles::ORIGIN]);
    let stage = Stage {
        core: cores.map(|cores| cores.server),
        dir: work.path(),
        files: &files,
        origin: origin.read_until(|line| line.parse().ok()),
        open_files: options.open_files,
        builds: &options.builds,
        threads: options.threads,
        certificate: &certificate,
    };
    let peers = peers::start(&options.peers, &stage);
    if peers.is_empty() {
        println!("nobody is left to race");
        return;
    }
    println!("all peers run: racing");
    let before = machine::stolen();

    if let Some(cores) = cores {
        pin(cores.client);
    }
    if options.parts.contains(&Part::Handshakes) {
        let peers = those(&peers, PeerKind::shakes_hands);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let handshakes = Handshakes::measure(&peers, kind, &certificate, options);
            print!("\n{}", report::handshakes(&handshakes));
            results.handshakes.push(handshakes);
        }
    }
    let hits = those(&peers, |kind| {
        options
            .protocols()
            .any(|protocol| kind.is_raced_over(protocol))
    });
    for &objects in options.objects.iter().filter(|_| !hits.is_empty()) {
        prepare(&hits, objects, &files);
        if options.reloaded {
            reload(&hits, objects, work.path());
        }
        for protocol in options.protocols() {
            let peers = those(&peers, |kind| kind.is_raced_over(protocol));
            if peers.is_empty() {
                continue;
            }
            for connections in options.connections(protocol) {
                let cell = Cell::measure(protocol, &peers, objects, connections, options);
                print!("\n{}", report::cell(&cell));
                results.cells.push(cell);
            }
            let is_paced = protocol == Protocol::Http && PACED_SIZES.contains(&objects.len);
            if let Some(turn) = options.paced_turn.filter(|_| is_paced) {
                let paced = Paced::measure(&peers, objects, turn, options);
                print!("\n{}", report::paced(&paced));
                results.paced.push(paced);
            }
        }
    }
    results.load[1] = machine::load();
    let after = machine::stolen();
    let [total, stolen] = [0, 1].map(|which| after[which].saturating_sub(before[which]) as f64);
    results.stolen = stolen / total.max(1.0);
    report::write(&results, options);
}

/// The peers that take part in something.
fn those(peers: &[Peer], takes_part: impl Fn(PeerKind) -> bool) -> Vec<&Peer> {
    peers.iter().filter(|peer| takes_part(peer.kind)).collect()
}

/// Has all peers hold all objects of one size. Just before they are raced, and not all
/// sizes at the start: a machine may take from the page cache what is not used for a
/// while, as DAMON does (Documentation/admin-guide/mm/damon/), and what is read again
/// lies there in other folios than what was written.
fn prepare(peers: &[&Peer], objects: Objects, files: &Path) {
    println!("\nfilling all caches with {}", objects.label);
    if peers::need_files(peers.iter().map(|peer| peer.kind)) {
        objects.write_to(files).expect("write the objects");
    }
    for peer in peers {
        peer.fill(objects);
    }
    // Or it would be written back while something is measured.
    rustix::fs::sync();
}

/// Has all that is below `dir` read from the disk by who serves it, as after a restart.
fn reload(peers: &[&Peer], objects: Objects, dir: &Path) {
    let drop_pages = |file: &Path| {
        let file = File::open(file)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        io::Result::Ok(())
    };
    for_each_file(dir, &|file| {
        // It may be gone by now.
        let _ = drop_pages(file);
    });
    for peer in peers {
        peer.fill(objects);
    }
}

fn for_each_file(dir: &Path, work: &impl Fn(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for_each_file(&path, work);
        } else {
            work(&path);
        }
    }
}

/// Gives each of `count` a turn, `rounds` times, and each once before that,
/// which is told to be no round.
pub fn in_turns(count: usize, rounds: usize, mut turn: impl FnMut(usize, Option<usize>)) {
    (0..count).for_each(|index| turn(index, None));
    for round in 0..rounds {
        for index in 0..count {
            turn((index + round) % count, Some(round));
        }
    }
}

// === impl Cell ===

impl Cell {
    fn measure(
        protocol: Protocol,
        peers: &[&Peer],
        objects: Objects,
        connections: usize,
        options: &Options,
    ) -> Self {
        let connect =
            |peer: &&Peer| peer.connect(protocol, objects, options.order(objects), connections);
        let mut clients: Vec<Client> = peers.iter().map(connect).collect();
        let mut entries: Vec<Entry> = peers.iter().map(|peer| Entry::new(peer.kind)).collect();
        let (rounds, duration) = options.turns(objects, connections * protocol.streams());
        let look = |clients: &mut [Client]| {
            if protocol.is_over_tls() {
                clients
                    .iter_mut()
                    .for_each(|client| look(client, objects, connections));
            }
        };
        look(&mut clients);
        in_turns(peers.len(), rounds, |index, round| {
            let peer = &peers[index];
            let client = &mut clients[index];
            if round.is_none() {
                client.turn(options.turn, &mut Vec::new());
                return;
            }
            let entry = &mut entries[index];
            let before = peer.server.cpu_times();
            let mut latencies = Vec::new();
            let turn = client.turn(duration, &mut latencies);
            let cpu = peer.server.cpu_times().since(&before);
            entry.cpu += cpu;
            entry
                .cpu_rates
                .push(cpu.seconds() / turn.total_bytes as f64);
            entry.elapsed += turn.total;
            let rate = turn.bytes as f64 / turn.elapsed.as_secs_f64();
            entry.rates.push(rate);
            let [p50, p99] = percentiles(&mut latencies, [50, 99]);
            entry.p50.push(p50.into());
            entry.p99.push(p99.into());
        });
        look(&mut clients);
        Self {
            protocol,
            objects,
            connections,
            entries,
        }
    }
}

/// Decrypts a response on each connection, checks all of its tags, and compares its bytes.
fn look(client: &mut Client, objects: Objects, connections: usize) {
    for index in 0..connections {
        let number = index as u64 % objects.count;
        let body = client.look(index, number as usize);
        objects::pattern(objects.len, number).check(0, &body);
    }
}

// === impl Entry ===

impl Entry {
    fn new(kind: PeerKind) -> Self {
        Self {
            kind,
            rates: Vec::new(),
            p50: Vec::new(),
            p99: Vec::new(),
            elapsed: Duration::ZERO,
            cpu: CpuTime::default(),
            cpu_rates: Vec::new(),
        }
    }
}

// === impl Paced ===

impl Paced {
    fn measure(peers: &[&Peer], objects: Objects, turn: Duration, options: &Options) -> Self {
        let rounds = options.long_rounds();
        let connect = |peer: &&Peer| {
            let order = options.order(objects);
            let client = peer.connect(Protocol::Http, objects, order, PACED_CONNECTIONS);
            client.ordinary()
        };
        let mut clients: Vec<Client> = peers.iter().map(connect).collect();
        let entry = |peer: &&Peer| PacedEntry {
            kind: peer.kind,
            cpu: Vec::new(),
            rates: Vec::new(),
        };
        let mut entries: Vec<PacedEntry> = peers.iter().map(entry).collect();
        in_turns(peers.len(), rounds, |index, round| {
            let peer = &peers[index];
            let client = &mut clients[index];
            if round.is_none() {
                client.paced_turn(turn / 5, PACED_RATE);
                return;
            }
            let before = peer.server.cpu_times();
            let turn = client.paced_turn(turn, PACED_RATE);
            let cpu = peer.server.cpu_times().since(&before);
            let entry = &mut entries[index];
            entry.cpu.push(cpu.seconds() / turn.bytes as f64);
            entry
                .rates
                .push(turn.bytes as f64 / turn.elapsed.as_secs_f64());
        });
        Self { objects, entries }
    }
}
