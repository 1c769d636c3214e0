//! The side that cuts the power.

use std::{
    env, fmt,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;
use test_support::Random;

use super::{
    disk::{Disk, Running},
    guest::{variable, CHECKED, LOAD, WRONG},
    objects::Versions,
};

/// Cycles on ext4, unless `POWER_CUTS` says otherwise.
const CUTS: u64 = 1;

/// File systems, and the programs that make them on a file.
const FILE_SYSTEMS: [(&str, &[&str]); 2] = [
    (
        "ext4",
        &[
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
        ],
    ),
    ("xfs", &["mkfs.xfs", "-q", "-f"]),
];

/// Number of cuts of which some leave something to serve.
const MANY: u64 = 10;

/// Length of a disk, in bytes: mkfs.xfs makes no smaller file system than 300 MiB.
const DISK: u64 = 320 << 20;

/// Most commands to the disk between the start of the load and the cut.
const MAX_COMMANDS: u64 = 300;

/// Most commands to the disk between the start of the machine and a cut during recovery and check.
const MAX_EARLY_COMMANDS: u64 = 150;

/// The longest time that a machine runs.
const PATIENCE: Duration = Duration::from_secs(300);

/// The programs that this needs besides those of all tests in a machine.
pub const PROGRAMS: [&str; 2] = ["mke2fs", "mkfs.xfs"];

/// A file system, and what is known about the cache on it.
struct Series<'m> {
    machine: &'m Machine,
    file_system: &'static str,
    image: PathBuf,
    random: Random,
    versions: Versions,
    purged: Versions,
    sum: Report,
}

/// The machine, as `tests/vm/boot` makes it.
pub struct Machine {
    pub kernel: PathBuf,
    pub folder: PathBuf,
}

/// The figures of [`super::check::Report`].
#[derive(Clone, Copy, Default)]
struct Report([u64; 5]);

/// A sign of life of a machine.
enum Event {
    Line(String),
    /// The console ends.
    Ended,
    /// The disk answers nothing any more.
    Cut,
}

/// A process that is killed when dropped.
struct Killed(Child);

/// `POWER_CUTS`, if it is set.
pub fn cuts() -> Option<u64> {
    number("POWER_CUTS")
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Runs all cycles, the file systems at the same time. Returns how many series passed and failed.
pub fn run(machine: &Machine) -> (usize, usize) {
    let count = cuts().unwrap_or(CUTS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = number("POWER_SEED").unwrap_or_else(|| now.map_or(0, |now| now.as_nanos() as u64));
    println!("{count} power cuts of each file system, POWER_SEED={seed}");
    let default = cuts().is_none().then(|| "ext4".to_owned());
    let only = env::var("POWER_FS").ok().or(default);
    let mut random = Random::new(seed);
    let of_each = FILE_SYSTEMS.map(|(name, mkfs)| (name, mkfs, random.fork()));
    let is_chosen = |name: &str| only.as_ref().is_none_or(|only| only == name);
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = of_each
            .into_iter()
            .filter(|(name, ..)| is_chosen(name))
            .map(|(name, mkfs, random)| {
                scope.spawn(move || {
                    let start = Instant::now();
                    let result = Series::run(machine, name, mkfs, random, count);
                    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
                    println!(
                        "test power_cuts_on_{name} ... {verdict} ({:.1} s)",
                        start.elapsed().as_secs_f32()
                    );
                    match result {
                        Ok(sum) => println!("  {sum}"),
                        Err(wrong) => println!("  POWER_SEED={seed}: {wrong}"),
                    }
                    verdict == "ok"
                })
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|passed| passed.unwrap_or(false)).collect()
    });
    let passed = results.iter().filter(|passed| **passed).count();
    (passed, results.len() - passed)
}

// === impl Series ===

impl<'m> Series<'m> {
    /// The error says what is wrong. The disk is kept then.
    fn run(
        machine: &'m Machine,
        file_system: &'static str,
        mkfs: &[&str],
        random: Random,
        cuts: u64,
    ) -> Result<Report, String> {
        let work = TempDir::with_prefix("vm-power-").expect("make a directory");
        if let Some(kept) = env::var_os("POWER_DISK") {
            return Self::check_again(machine, file_system, work.path(), Path::new(&kept));
        }
        let image = work.path().join("disk");
        let made = File::create_new(&image).and_then(|file| file.set_len(DISK));
        made.expect("make the disk");
        let status = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).status();
        assert!(status.is_ok_and(|status| status.success()), "run {mkfs:?}");
        let mut series = Self {
            machine,
            file_system,
            image,
            random,
            versions: Versions::all(1),
            purged: Versions::all(0),
            sum: Report::default(),
        };
        // After the last cut, the machine only checks.
        for cycle in 1..=cuts + 1 {
            let result = series.cycle(work.path(), cycle, cycle > cuts);
            if let Err(wrong) = result {
                let kept = work.keep();
                return Err(format!(
                    "cycle {cycle}: {wrong}\n  the disk is {}",
                    kept.join("disk").display()
                ));
            }
        }
        match series.sum.served() {
            0 if cuts >= MANY => Err("nothing was served after any cut".to_owned()),
            _ => Ok(series.sum),
        }
    }

    /// Checks a copy of a disk that an earlier run has kept.
    fn check_again(
        machine: &'m Machine,
        file_system: &'static str,
        work: &Path,
        kept: &Path,
    ) -> Result<Report, String> {
        let image = work.join("disk");
        fs::copy(kept, &image).expect("copy the disk");
        let mut series = Self {
            machine,
            file_system,
            image,
            random: Random::new(0),
            versions: Versions::all(u64::from(u32::MAX)),
            purged: Versions::all(0),
            sum: Report::default(),
        };
        series.cycle(work, 0, true)?;
        Ok(series.sum)
    }

    fn cycle(&mut self, work: &Path, cycle: u64, is_last: bool) -> Result<(), String> {
        let mut random = self.random.fork();
        let start = Instant::now();
        let socket = work.join(format!("{cycle}.sock"));
        let (events, received) = mpsc::channel();
        let disk = Disk::open(&self.image).expect("open the disk");
        let disk = disk.attach(&socket, {
            let events = events.clone();
            // The receiver may have gone.
            move || drop(events.send(Event::Cut))
        });
        let is_early = !is_last && cycle > 1 && random.percent(20);
        let awaits_flush = random.percent(50);
        if is_early {
            disk.cut_after(random.of(1..MAX_EARLY_COMMANDS), awaits_flush);
        }
        let cut_after = (!is_last && !is_early).then(|| (random.of(1..MAX_COMMANDS), awaits_flush));
        let mut environment = vec![
            (variable::FILE_SYSTEM, self.file_system.to_owned()),
            (variable::SEED, random.of(0..u64::MAX).to_string()),
            (variable::VERSIONS, self.versions.to_text()),
            (variable::PURGED, self.purged.to_text()),
            (
                variable::BACKEND,
                ["uring", "tokio"][random.of(0..2) as usize].to_owned(),
            ),
        ];
        if random.percent(50) {
            environment.push((variable::EAGER, "1".to_owned()));
        }
        if is_last {
            environment.push((variable::LAST, "1".to_owned()));
        }
        let mut qemu = self.machine.boot(&socket, &environment);
        let console = BufReader::new(qemu.0.stdout.take().expect("its console"));
        thread::spawn(move || read_console(console, &events));
        let report = self.watch(&mut qemu, &disk, &received, cut_after, is_last);
        drop(qemu);
        let commands = disk.commands();
        // The machine may not have come to its disk.
        drop(UnixStream::connect(&socket));
        let report = report?;
        let (_, lost) = disk.stopped().lose(&mut random).expect("change the disk");
        let end = match (is_last, is_early) {
            (true, _) => "ended",
            (_, true) => "cut early",
            _ => "cut",
        };
        println!(
            "{} {cycle}: {end} after {commands} commands, {:.1} s; {lost}; at its start: {report}",
            self.file_system,
            start.elapsed().as_secs_f32()
        );
        self.sum.add(&report);
        Ok(())
    }

    /// Reads what the machine does, and cuts its power after `cut_after` commands of its load.
    fn watch(
        &mut self,
        qemu: &mut Killed,
        disk: &Running,
        events: &Receiver<Event>,
        cut_after: Option<(u64, bool)>,
        is_last: bool,
    ) -> Result<Report, String> {
        let deadline = Instant::now() + PATIENCE;
        let (mut report, mut is_cut, mut has_ended) = (Report::default(), false, false);
        let mut console = Vec::new();
        let failed = |why: &str, console: &[String]| {
            let last = console.len().saturating_sub(60);
            Err(format!("{why}\n{}", console[last..].join("\n")))
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Event::Line(line)) => {
                    let words: Vec<_> = line.split(' ').collect();
                    match words[..] {
                        ["power:", kind @ ("version" | "purged"), object, version] => {
                            let (object, version) = (object.parse(), version.parse());
                            let (Ok(object), Ok(version)) = (object, version) else {
                                return failed("a line that cannot be read", &[line]);
                            };
                            let known = match kind {
                                "version" => &mut self.versions,
                                _ => &mut self.purged,
                            };
                            known.raise(object, version);
                            continue;
                        }
                        _ if line == LOAD => {
                            if let Some((commands, awaits_flush)) = cut_after {
                                disk.cut_after(commands, awaits_flush);
                            }
                        }
                        ["vm:", "exit", "0"] => has_ended = true,
                        _ => {}
                    }
                    if let Some(figures) = line.strip_prefix(CHECKED) {
                        report = Report::parse(figures);
                    }
                    if env::var_os("POWER_CONSOLE").is_some() {
                        println!("{} | {line}", self.file_system);
                    }
                    console.push(line);
                }
                Ok(Event::Cut) if !has_ended => {
                    is_cut = true;
                    qemu.kill();
                }
                Ok(Event::Cut) => {}
                Ok(Event::Ended) => break,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return failed("the machine does not end", &console);
                }
            }
        }
        if console.iter().any(|line| line.starts_with(WRONG)) {
            return failed("something is wrong", &console);
        }
        match has_ended == is_last && is_cut != is_last {
            true => Ok(report),
            false => failed("the machine has ended by itself", &console),
        }
    }
}

/// Sends the lines of a console that are complete.
fn read_console(mut console: impl BufRead, events: &Sender<Event>) {
    let mut line = Vec::new();
    while console
        .read_until(b'\n', &mut line)
        .is_ok_and(|len| len > 0)
        && line.ends_with(b"\n")
    {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        // The receiver has gone after an error.
        let _ = events.send(Event::Line(text));
        line.clear();
    }
    let _ = events.send(Event::Ended);
}

// === impl Machine ===

impl Machine {
    /// Boots it with a disk.
    fn boot(&self, socket: &Path, environment: &[(&str, String)]) -> Killed {
        let variables = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let variables: Vec<_> = variables.collect();
        let qemu = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/boot"))
            .arg(&self.kernel)
            .env("VM_MACHINE", &self.folder)
            .env("VM_DISK", format!("nbd:unix:{}", socket.display()))
            .env("VM_ENVIRONMENT", variables.join(" "))
            .stdout(Stdio::piped())
            .spawn();
        Killed(qemu.expect("run tests/vm/boot"))
    }
}

// === impl Killed ===

impl Killed {
    fn kill(&mut self) {
        // An error: it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Report ===

impl Report {
    fn parse(figures: &str) -> Self {
        let mut report = Self::default();
        for (figure, text) in report.0.iter_mut().zip(figures.split(' ')) {
            *figure = text.parse().expect("a number");
        }
        report
    }

    fn add(&mut self, other: &Self) {
        for (figure, more) in self.0.iter_mut().zip(other.0) {
            *figure += more;
        }
    }

    fn served(&self) -> u64 {
        self.0[3]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [entries, blocks, banned, served, bytes] = self.0;
        write!(
            f,
            "{entries} entries with {blocks} blocks, {banned} purged ones; {served} responses of {} KiB",
            bytes >> 10
        )
    }
}
