//! The scrubber, which slowly searches for bits that have flipped on the disk.

use std::io;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::cache::io::files::MAX_META_LEN;
use crate::cache::io::regular::invalid;
use crate::cache::state::Core;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;

/// The time from the start of one pass to that of the next.
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Start the scrubber, which reads at most `bytes_per_second`, on a thread of its own.
pub(crate) fn spawn(core: &'static Core, bytes_per_second: u64) {
    let spawned = std::thread::Builder::new()
        .name("cache-scrub".into())
        .spawn(move || run(core, bytes_per_second));
    if let Err(e) = spawned {
        warn!("the scrubber cannot run: {e}");
    }
}

/// Read all entries again and again. The reads of the thread wait for all others. Never
/// returns.
fn run(core: &'static Core, bytes_per_second: u64) {
    #[cfg(target_os = "linux")]
    if let Err(e) = crate::cache::io::sys::set_idle_io_priority() {
        info!("the scrubber runs with the I/O priority of other threads: {e}");
    }
    core.recovery.wait();
    loop {
        let start = Instant::now();
        pass(core, bytes_per_second);
        std::thread::sleep(PASS_INTERVAL.saturating_sub(start.elapsed()));
    }
}

/// Compare all entries with their checksums, and drop the damaged ones.
pub(crate) fn pass(core: &'static Core, bytes_per_second: u64) {
    let mut pace = Pace::new(bytes_per_second);
    for part in 0..core.index.parts() {
        for id in core.index.part(part) {
            let result = check(core, id, &mut pace);
            // The result of an entry that was evicted or replaced means nothing.
            if !core.index.contains(&id) {
                continue;
            }
            match result {
                Ok(()) => core.stats.scrubbed_ok.inc(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    core.stats.scrubbed_damaged.inc();
                    core.drop_damaged(id, &e);
                }
            }
        }
    }
}

/// Compare an entry with its checksum.
fn check(core: &'static Core, id: EntryId, pace: &mut Pace) -> io::Result<()> {
    let files = core.files(&id);
    let meta = core.backend().read_file(&files.meta(), MAX_META_LEN)?;
    let meta = EntryMeta::decode(&meta)?;
    meta.check_id(&id)?;
    let mut read = |bytes| {
        core.stats.scrubbed_bytes.add(bytes);
        pace.wait_for(bytes);
    };
    for (range, expected) in meta.checksums() {
        let found = core
            .backend()
            .checksum(&files.body(), meta.body_len, range, &mut read)?;
        if found != expected {
            return Err(invalid("body file has a wrong checksum"));
        }
    }
    Ok(())
}

/// A limit of the rate at which bytes are read.
struct Pace {
    bytes_per_second: u64,
    start: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Pace {
            bytes_per_second: bytes_per_second.max(1),
            start: Instant::now(),
            bytes: 0,
        }
    }

    /// Wait until `bytes` more may have been read.
    fn wait_for(&mut self, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        let wait = due.saturating_sub(self.start.elapsed());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
}
