//! Cache hits of the proxy, end to end, with sendfile on and off: whole objects
//! of 4 KiB to 10 MiB, ranges, and over a Unix socket.
//!
//! `cargo bench --bench sendfile_proxy` prints criterion's report and then a
//! table of its own: criterion measures one variant after the other, the table
//! comes from rounds in which they take turns, so that a machine that slows down
//! slows all. `-- --quick` shortens everything, with fewer objects; a filter such
//! as `-- 1MiB` leaves the rest out.
//!
//! Variants:
//! - `sendfile-on` sends every body by sendfile: `threshold_bytes` is 0.
//! - `sendfile-off` has the same file open, reads the body 64 KiB at a time, and
//!   writes it. It keeps no bodies in memory.
//! - `memory`, for bodies of up to 64 KiB, is `sendfile-off` with a memory tier
//!   that holds all of them.
//! - `signed`, for bodies of up to 64 KiB, is `sendfile-on` with `auth: sigv4`: each
//!   request has a signature, which is verified.
//!
//! `threshold_bytes` chooses between these: a body up to the threshold goes as in
//! `memory` while its entry is in use and the tier (64 MB by default) has room for
//! it, and a larger one as in `sendfile-on`. The objects exceed neither the tier
//! here nor the number of files that are kept open, so a hit that has to open its
//! file again is not measured.
//!
//! Method:
//! - The proxy has one worker and one core, the client another one. The client
//!   is one thread that keeps 16 connections busy and never sleeps, so that the
//!   proxy is what limits: the table says how busy it was.
//! - Over TCP, bodies are discarded in the kernel (tcp(7), MSG_TRUNC). A Unix
//!   socket cannot do that: there the client reads them into a buffer that it
//!   does not look at, and **what is measured includes the client's copy**.
//! - The Unix socket's server is this program in another role, as `s3-proxy`
//!   listens on TCP only: the same `S3ProxyHttp` in a Pingora service.
//! - The objects of a size are asked for in turn, and stay in the page cache.
//!   From 64 KiB on they take 128 MiB or more together; smaller ones are limited
//!   by their number, as each is a file that is kept open, and may fit into a
//!   cache of the processor.
//! - Ranges are those that a body of 10 MiB can be cut into, in turn.
//! - What was measured is checked: status and length of every response here, and
//!   by the proxy's own count that each was a hit, which went by sendfile and
//!   which came from memory, and that none had to open a file.

#![forbid(unsafe_code)]

mod case;
#[path = "../common/client/mod.rs"]
#[allow(dead_code, reason = "each bench uses a part")]
mod client;
mod contest;
#[path = "../common/cores.rs"]
mod cores;
#[path = "../common/measure.rs"]
mod measure;
mod results;
#[path = "../common/role.rs"]
mod role;
mod signed;
#[path = "../common/stats.rs"]
#[allow(dead_code, reason = "each bench uses a part")]
mod stats;
#[path = "../common/table.rs"]
mod table;
mod unix_server;

use std::{env, time::Duration};

use case::{Case, MIB};
use contest::{Contest, CONNECTIONS};
use cores::{describe, pin, Cores};
use criterion::{Criterion, SamplingMode, Throughput};
use results::Compared;
use test_support::raise_descriptor_limit;

/// The amount of work.
struct Effort {
    /// At least so many bytes of objects, but not more objects than this.
    working_set: u64,
    max_objects: u64,
    rounds: usize,
    /// At least so many bytes each time that a variant has its turn, but not more
    /// responses than this.
    turn: u64,
    max_turn: u64,
}

fn main() {
    if let Some((config, file)) = role::to_serve() {
        return unix_server::run(&config, &file);
    }
    let effort = Effort::from_args();
    raise_descriptor_limit();
    let cores = Cores::choose();
    if let Some(cores) = cores {
        pin(cores.client);
    }
    println!("{}", describe(cores, "the proxy"));

    let mut criterion = Criterion::default().configure_from_args();
    let mut compared = Vec::new();
    for case in Case::all() {
        // Not before something is measured: the filter may leave this case out.
        let mut contest = None;
        let mut start = || Contest::start(&case, effort.objects(&case), cores);

        let mut group = criterion.benchmark_group(case.name());
        group
            .throughput(Throughput::Bytes(CONNECTIONS * case.body_len()))
            .sampling_mode(SamplingMode::Flat)
            .sample_size(20)
            .warm_up_time(Duration::from_secs(1))
            .measurement_time(Duration::from_secs(5));
        for way in case.ways() {
            group.bench_function(way.name(), |bencher| {
                let server = contest.get_or_insert_with(&mut start).server(*way);
                // An iteration is a response on each connection.
                bencher.iter_custom(|iterations| server.fetch(iterations * CONNECTIONS));
            });
        }
        group.finish();

        if let Some(mut contest) = contest {
            let of = contest.compare(effort.responses(&case), effort.rounds);
            contest.check();
            compared.push(Compared { case, of });
        }
    }
    criterion.final_summary();
    if effort.rounds > 0 && !compared.is_empty() {
        results::print(&compared, effort.rounds);
    }
}

// === impl Effort ===

impl Effort {
    /// Criterion's own arguments. Cargo passes `--bench` where it is to measure;
    /// without it, criterion runs everything once to see that it works.
    fn from_args() -> Self {
        let has = |name: &str| env::args().any(|arg| arg == name);
        let full = Self {
            working_set: 256 * MIB,
            max_objects: contest::MAX_OBJECTS,
            rounds: 15,
            turn: 512 * MIB,
            max_turn: 16 * 1024,
        };
        if !has("--bench") || has("--test") {
            Self {
                working_set: 0,
                rounds: 0,
                ..full
            }
        } else if has("--quick") {
            Self {
                working_set: 64 * MIB,
                max_objects: 512,
                rounds: 5,
                turn: 128 * MIB,
                max_turn: 2 * 1024,
            }
        } else {
            full
        }
    }

    /// The number of objects that are cached.
    fn objects(&self, case: &Case) -> u64 {
        let objects = self.working_set.div_ceil(case.object_len());
        objects.min(self.max_objects).max(CONNECTIONS)
    }

    /// The number of responses in a turn.
    fn responses(&self, case: &Case) -> u64 {
        let responses = self.turn.div_ceil(case.body_len()).min(self.max_turn);
        responses.next_multiple_of(CONNECTIONS)
    }
}
