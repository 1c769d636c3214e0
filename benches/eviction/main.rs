//! Hit ratios of eviction policies on synthetic traces.
//!
//! `cargo bench --bench eviction` prints tables. `-- --quick` makes a tenth of the requests for a
//! tenth of the objects; a filter such as `-- drift` leaves the other traces out. `-- --write DIR`
//! writes the traces as CSV (time in seconds, object, bytes), for other simulators, and ends.
//!
//! Method:
//! - 50,000 objects with log-normal sizes from 16 KiB to 1 GiB, and a million requests by
//!   Zipf's law with the exponent 0.9, at 100 a second. Popularity and size are independent.
//! - Scans: five times, all objects are requested once in order. A scan in parts requests four
//!   objects at a time, each in five parts one after the other.
//! - Drift: each of the 5,000 most popular ranks changes its object, ten times on average.
//! - Caches of 1, 5, 10 and 25 % of the bytes of all objects, empty at the start. All requests
//!   count, those of scans too; a part of an object that is not stored is a miss.
//! - The engine is its own index (src/cache/store/index.rs), with the loop that makes room for a
//!   fill. Usually the fill has clients. Without them, it evicts nothing that is requested more
//!   often. A restart, after each 100,000 requests, leaves the files and nothing else.
//! - The other policies are those of policies.rs.
//! - The traces are the same in each run, so are the figures.

#![forbid(unsafe_code)]

#[path = "../../src/cache/store/chunked_vec.rs"]
#[allow(unused_imports, reason = "its tests are left out")]
mod chunked_vec;
mod engine;
#[path = "../../src/cache/store/entry_id.rs"]
#[allow(unused_imports, reason = "its tests are left out")]
mod entry_id;
#[path = "../../src/cache/store/index.rs"]
#[allow(dead_code, reason = "the bench uses a part")]
mod index;
#[path = "../../src/cache/state/miss_counts.rs"]
mod miss_counts;
mod policies;
#[path = "../common/table.rs"]
mod table;
mod traces;
#[path = "../common/zipf.rs"]
mod zipf;

/// The paths by which the parts of the engine import each other.
mod cache {
    pub mod store {
        pub(crate) use crate::{chunked_vec, entry_id};
    }
}

use std::{
    env,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use engine::Engine;
use entry_id::EntryId;
use policies::{Admission, Lru, Policy, S3Fifo, Sieve, WTinyLfu};
use table::Table;
use traces::{sizes, Trace};

/// Capacities, in percent of the bytes of all objects.
const CAPACITIES: [u64; 4] = [1, 5, 10, 25];

/// Microseconds between two requests.
const INTERVAL: u64 = 10_000;

/// A policy for objects of these sizes, and its capacity.
type New = for<'a> fn(&'a [u64], u64) -> Box<dyn Policy + 'a>;

const POLICIES: [(&str, New); 8] = [
    ("LRU", |sizes, capacity| Box::new(Lru::new(sizes, capacity))),
    ("engine", |sizes, capacity| {
        Box::new(Engine::new(sizes, capacity))
    }),
    ("engine, fills without clients", |sizes, capacity| {
        Box::new(Engine::new(sizes, capacity).without_clients())
    }),
    ("engine, restarts", |sizes, capacity| {
        Box::new(Engine::new(sizes, capacity).with_restarts())
    }),
    ("SIEVE", |sizes, capacity| {
        Box::new(Sieve::new(sizes, capacity))
    }),
    ("S3-FIFO", |sizes, capacity| {
        Box::new(S3Fifo::new(sizes, capacity))
    }),
    ("W-TinyLFU", |sizes, capacity| {
        Box::new(WTinyLfu::new(sizes, capacity, Admission::EachVictim))
    }),
    ("W-TinyLFU, admission by size", |sizes, capacity| {
        Box::new(WTinyLfu::new(sizes, capacity, Admission::AllVictims))
    }),
];

/// Hits of a policy, in percent.
struct Ratios {
    requests: f64,
    bytes: f64,
}

struct Options {
    objects: usize,
    requests: usize,
    filter: String,
    write: Option<PathBuf>,
}

fn main() -> io::Result<()> {
    let options = Options::from_args();
    let sizes = sizes(options.objects);
    let footprint: u64 = sizes.iter().sum();
    println!(
        "{} objects of {} GiB, {} requests",
        options.objects,
        footprint >> 30,
        options.requests
    );
    for trace in Trace::all(options.objects, options.requests) {
        if !trace.name.contains(&options.filter) {
            continue;
        }
        match &options.write {
            Some(folder) => write(&trace, &sizes, folder)?,
            None => println!(
                "\n### {}\n\n{}",
                trace.name,
                compare(&trace, &sizes, footprint)
            ),
        }
    }
    Ok(())
}

impl Options {
    fn from_args() -> Self {
        // Cargo adds --bench.
        let mut args = env::args().skip(1).filter(|arg| arg != "--bench");
        let mut options = Self {
            objects: 50_000,
            requests: 1_000_000,
            filter: String::new(),
            write: None,
        };
        while let Some(arg) = args.next() {
            match &*arg {
                "--quick" => (options.objects, options.requests) = (5_000, 100_000),
                "--write" => options.write = args.next().map(PathBuf::from),
                _ => options.filter = arg,
            }
        }
        options
    }
}

fn compare(trace: &Trace, sizes: &[u64], footprint: u64) -> Table {
    let of = |what: &str| CAPACITIES.map(|percent| format!("{what}, {percent} %"));
    let (requests, bytes) = (of("requests"), of("bytes"));
    let mut head = vec!["policy"];
    head.extend(requests.iter().chain(&bytes).map(String::as_str));
    let mut table = Table::new(&head);
    for (name, new) in POLICIES {
        let ratios = CAPACITIES.map(|percent| {
            let mut policy = new(sizes, footprint / 100 * percent);
            replay(trace, sizes, &mut *policy)
        });
        let mut row = vec![name.to_owned()];
        row.extend(
            ratios
                .iter()
                .map(|ratios| format!("{:.1}", ratios.requests)),
        );
        row.extend(ratios.iter().map(|ratios| format!("{:.1}", ratios.bytes)));
        table.row(&row);
    }
    table
}

fn replay(trace: &Trace, sizes: &[u64], policy: &mut dyn Policy) -> Ratios {
    let (mut hits, mut hit_bytes, mut bytes) = (0, 0, 0);
    for (request, at) in trace.requests.iter().zip(0..) {
        let size = sizes[request.object as usize] / u64::from(request.parts);
        bytes += size;
        if policy.request(request.object, at * INTERVAL) {
            hits += 1;
            hit_bytes += size;
        }
    }
    Ratios {
        requests: f64::from(hits) * 100.0 / trace.requests.len() as f64,
        bytes: hit_bytes as f64 * 100.0 / bytes as f64,
    }
}

fn write(trace: &Trace, sizes: &[u64], folder: &Path) -> io::Result<()> {
    let name = trace.name.to_lowercase().replace(',', "").replace(' ', "-");
    let mut file = BufWriter::new(File::create(folder.join(name + ".csv"))?);
    for (request, at) in trace.requests.iter().zip(0u64..) {
        let seconds = at * INTERVAL / 1_000_000;
        let object = request.object;
        writeln!(file, "{seconds},{object},{}", sizes[object as usize])?;
    }
    file.flush()
}
