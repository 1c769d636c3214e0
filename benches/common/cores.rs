//! One core for the server, another for the client.

use std::fs;

use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};

/// The cores of server and client.
#[derive(Clone, Copy)]
pub struct Cores {
    pub server: usize,
    pub client: usize,
}

/// Keeps the calling thread, and the threads and processes that it makes from
/// now on, on one core.
pub fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).unwrap_or_else(|e| panic!("pin to core {core}: {e}"));
}

/// The places of server and client, in words.
pub fn describe(cores: Option<Cores>, servers: &str) -> String {
    match cores {
        Some(Cores { server, client }) => {
            format!("{servers} on core {server}, the client on core {client}")
        }
        None => format!("one core for {servers} and client, unpinned"),
    }
}

// === impl Cores ===

impl Cores {
    /// The first core that this process may use, and the last one that is not
    /// the first's sibling by hyper-threading, where there is such a one.
    pub fn choose() -> Option<Self> {
        let allowed = sched_getaffinity(None).expect("read the allowed cores");
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = cores.next()?;
        let others: Vec<usize> = cores.rev().collect();
        let apart = others
            .iter()
            .find(|core| siblings(**core) != siblings(server));
        let client = *apart.or(others.first())?;
        Some(Self { server, client })
    }
}

/// The same text for all threads of a physical core
/// (Documentation/admin-guide/cputopology.rst); None where the kernel is silent.
fn siblings(core: usize) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    fs::read_to_string(path).ok()
}
