//! The options of the command line.

use std::{fmt::Display, path::PathBuf, process, str::FromStr, time::Duration};

use pingora_sendfile::cache::DiskCacheConfig;

use crate::{
    client::Order,
    objects::{Objects, FULL, MIB, MORE, QUICK},
    peers::{PeerKind, BUILDS},
    process::{descriptor_limit, open_files},
    protocol::Protocol,
};

/// A turn in which more bytes than this are under way takes its time to end, ...
pub const LONG: u64 = 256 * MIB;
/// ... so that it is so many times as long, of fewer rounds. The others are short:
/// what neighbours take from a machine comes in phases of seconds, which then hit
/// all peers of a round alike.
pub const LONGER: usize = 5;

/// A part of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Hits(Protocol),
    Handshakes,
}

/// The files that the proxy and nginx keep open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFiles {
    /// As many as a process may open.
    Most,
    /// The proxy's default, and the same number for nginx.
    Default,
    /// So many.
    Number(u64),
}

pub struct Options {
    pub memory: bool,
    pub growth: bool,
    /// The most entries of a cache for `growth`.
    pub most_entries: Option<u64>,
    pub parts: Vec<Part>,
    /// True if the race is on the network that the machine has.
    pub machine_network: bool,
    /// True if all objects are read back from the disk before they are raced.
    pub reloaded: bool,
    /// True if anything was left out or shortened.
    pub partial: bool,
    quick: bool,
    pub objects: Vec<Objects>,
    pub open_files: OpenFiles,
    /// The exponent of Zipf's law, by which objects are requested; None: all alike.
    pub zipf: Option<f64>,
    /// The numbers of connections, where they are given.
    connections: Option<Vec<usize>>,
    pub peers: Vec<PeerKind>,
    /// Other builds of the proxy that take part.
    pub builds: Vec<PathBuf>,
    /// The threads of each proxy.
    pub threads: usize,
    pub rounds: usize,
    pub turn: Duration,
    /// The time at a fixed rate of a peer in each round; None: not measured.
    pub paced_turn: Option<Duration>,
}

// === impl Part ===

impl Part {
    const ALL: [Self; 4] = [
        Self::Hits(Protocol::Http),
        Self::Hits(Protocol::Https),
        Self::Hits(Protocol::Http2),
        Self::Handshakes,
    ];

    fn key(self) -> &'static str {
        match self {
            Self::Hits(protocol) => protocol.key(),
            Self::Handshakes => "handshakes",
        }
    }

    fn is_for(self, peer: PeerKind) -> bool {
        match self {
            Self::Hits(protocol) => peer.is_raced_over(protocol),
            Self::Handshakes => peer.shakes_hands(),
        }
    }
}

// === impl OpenFiles ===

impl OpenFiles {
    /// The number of files.
    pub fn number(self) -> u64 {
        match self {
            Self::Most => open_files(),
            Self::Default => {
                let limit = usize::try_from(descriptor_limit()).unwrap_or(usize::MAX);
                DiskCacheConfig::new("", 0).open_files(limit) as u64
            }
            Self::Number(files) => files,
        }
    }

    /// The key of the proxy's configuration, if one is set.
    pub fn key(self) -> String {
        match self {
            Self::Default => String::new(),
            _ => format!("max_open_files: {}", self.number()),
        }
    }
}

// === impl Options ===

impl Options {
    /// Ends the process where the arguments make no sense.
    pub fn parse(arguments: &[String]) -> Self {
        let quick = arguments.iter().any(|argument| argument == "--quick");
        let mut options = Self {
            memory: false,
            growth: false,
            most_entries: None,
            parts: Part::ALL.to_vec(),
            machine_network: false,
            reloaded: false,
            partial: quick,
            quick,
            objects: if quick { QUICK } else { FULL }.to_vec(),
            open_files: OpenFiles::Most,
            zipf: None,
            connections: None,
            peers: PeerKind::ALL.to_vec(),
            builds: Vec::new(),
            threads: 1,
            rounds: if quick { 3 } else { 35 },
            turn: Duration::from_millis(if quick { 40 } else { 100 }),
            paced_turn: Some(Duration::from_millis(if quick { 200 } else { 1500 })),
        };
        let mut count = None;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || {
                let missing = || fail(format!("{argument} needs a value"));
                rest.next().cloned().unwrap_or_else(missing)
            };
            match argument.as_str() {
                // Cargo's own, and what is dealt with already.
                "--bench" | "--quick" => continue,
                // Said in the report, and leaves nothing out.
                "--machine-network" => {
                    options.machine_network = true;
                    continue;
                }
                "--reloaded" => options.reloaded = true,
                "memory" => options.memory = true,
                "growth" => options.growth = true,
                "--most-entries" => options.most_entries = Some(number(&value())),
                "--no-cpu" => options.paced_turn = None,
                "--threads" => options.threads = number::<usize>(&value()).max(1),
                "--rounds" => options.rounds = number::<usize>(&value()).max(1),
                "--turn" => options.turn = Duration::from_millis(number(&value())),
                "--connections" => {
                    options.connections = Some(value().split(',').map(number).collect());
                }
                "--parts" => {
                    let keys = value();
                    options.parts = choose(&keys, &options.parts, |part| part.key());
                }
                "--sizes" => {
                    let labels = value();
                    let all = [&*options.objects, &MORE].concat();
                    options.objects = choose(&labels, &all, |o| o.label);
                }
                "--objects" => count = Some(number::<u64>(&value()).max(1)),
                "--zipf" => options.zipf = Some(number(&value())),
                "--open-files" => {
                    options.open_files = match value().as_str() {
                        "default" => OpenFiles::Default,
                        files => OpenFiles::Number(number(files)),
                    };
                }
                "--peers" => {
                    let keys = value();
                    options.peers = choose(&keys, &options.peers, |peer| peer.key());
                }
                "--build" if options.builds.len() == BUILDS.len() => {
                    fail(format!("at most {} other builds", BUILDS.len()))
                }
                "--build" => options.builds.push(value().into()),
                other => fail(format!("{other:?} is no option of this benchmark")),
            }
            options.partial = true;
        }
        for objects in &mut options.objects {
            objects.count = count.unwrap_or(objects.count);
        }
        let builds = (0..options.builds.len()).map(PeerKind::Build);
        options.peers.splice(0..0, builds);
        let parts = options.parts.clone();
        let wanted = |peer: &PeerKind| parts.iter().any(|part| part.is_for(*peer));
        options.peers.retain(wanted);
        options
    }

    /// The protocols over which hits are raced.
    pub fn protocols(&self) -> impl Iterator<Item = Protocol> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Hits(protocol) => Some(*protocol),
            Part::Handshakes => None,
        })
    }

    /// The numbers of connections that hits are raced on.
    pub fn connections(&self, protocol: Protocol) -> Vec<usize> {
        let usual = || match protocol {
            Protocol::Http => vec![1, 16, if self.quick { 64 } else { 256 }],
            Protocol::Https | Protocol::Http2 => vec![16],
        };
        self.connections.clone().unwrap_or_else(usual)
    }

    /// The order in which a client requests so many objects.
    pub fn order(&self, objects: Objects) -> Order {
        match self.zipf {
            Some(exponent) => Order::zipf(objects.count, exponent),
            None => Order::random(),
        }
    }

    /// The number of rounds of turns that take long.
    pub fn long_rounds(&self) -> usize {
        self.rounds.div_ceil(LONGER)
    }

    /// The number of rounds, and the length of a turn.
    pub fn turns(&self, objects: Objects, under_way: usize) -> (usize, Duration) {
        if objects.len * under_way as u64 > LONG {
            (self.long_rounds(), self.turn * LONGER as u32)
        } else {
            (self.rounds, self.turn)
        }
    }
}

/// Those of `from` that a list names.
fn choose<T: Copy>(list: &str, from: &[T], name: impl Fn(&T) -> &'static str) -> Vec<T> {
    for item in list.split(',') {
        if !from.iter().any(|candidate| name(candidate) == item) {
            let names: Vec<_> = from.iter().map(&name).collect();
            fail(format!("{item:?} is none of {}", names.join(", ")));
        }
    }
    let chosen = |candidate: &&T| list.split(',').any(|item| name(candidate) == item);
    from.iter().filter(chosen).copied().collect()
}

fn number<T: FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| fail(format!("{text:?} is not a number of the right kind")))
}

fn fail(why: impl Display) -> ! {
    eprintln!("peer_race: {why}");
    process::exit(2);
}
