//! The machine that the figures were taken on.

use std::{fs, process::Command};

use crate::{network::Network, nginx};

/// Processor, cores, kernel and its TCP, nginx, and what was built.
pub fn describe(network: &Network) -> String {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu_info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    // Not `available_parallelism`, which counts those that this thread is pinned to.
    let cores = cpu_info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let nginx = nginx::version().unwrap_or_else(|| "no nginx".to_owned());
    format!(
        "{model}, {cores} cores, Linux {} with {}, {nginx}, {}",
        kernel.trim(),
        network.describe(),
        commit()
    )
}

/// The commit that this was built from, as far as git tells.
fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    match output {
        Ok(output) if output.status.success() => {
            format!("commit {}", String::from_utf8_lossy(&output.stdout).trim())
        }
        _ => "unknown commit".to_owned(),
    }
}

/// Of the last minute (proc_loadavg(5)).
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

/// The time that the processors had and the part of it that the hypervisor took,
/// since the start, in ticks (proc_stat(5)).
pub fn stolen() -> [u64; 2] {
    const STEAL: usize = 7;
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    // The time of guests, which comes last, is in that of users already.
    let ticks: Vec<u64> = fields
        .skip(1)
        .take(STEAL + 1)
        .flat_map(str::parse)
        .collect();
    [ticks.iter().sum(), ticks.get(STEAL).copied().unwrap_or(0)]
}
