//! CPU time of a process.

use std::{fs, time::Duration};

use rustix::param::clock_ticks_per_second;

/// User and system time of all threads of a process so far (proc_pid_stat(5),
/// fields 14 and 15).
pub fn cpu_time(pid: u32) -> Duration {
    let path = format!("/proc/{pid}/stat");
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
