//! Child processes and folders that are gone in the end, however it comes.

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead, BufReader},
    ops::AddAssign,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Child, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    param::clock_ticks_per_second,
    process::{
        getrlimit, kill_process, set_parent_process_death_signal, setrlimit, Pid, Resource, Rlimit,
        Signal,
    },
};
use tempfile::TempDir;
use tokio::signal::unix::{signal, SignalKind};

use crate::cores::pin;

/// The role of a child that becomes another program, see [`launch`].
pub const LAUNCH: &str = "role-launch";

/// Enough for a file an object and all connections.
const DESCRIPTORS: u64 = 128 * 1024;

/// The time that a child may take to end by itself.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A child process that ends when this is dropped.
pub struct Server {
    name: String,
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

/// A folder that is removed when this is dropped.
pub struct WorkDir(TempDir);

/// CPU time by thread.
pub struct CpuTimes(HashMap<u32, CpuTime>);

/// CPU time of a thread, or of several.
#[derive(Clone, Copy, Default)]
pub struct CpuTime {
    pub nanoseconds: u64,
    /// In user space and in the kernel, in clock ticks: as coarse as they are, they tell how the
    /// time of many turns was spent.
    user: u64,
    kernel: u64,
}

/// The children and folders that a signal handler ends and removes.
struct Leftovers {
    children: Vec<Pid>,
    dirs: Vec<PathBuf>,
}

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers {
    children: Vec::new(),
    dirs: Vec::new(),
});

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(|e| e.into_inner())
}

/// From now on SIGINT, SIGTERM and SIGHUP end the children, remove the folders
/// and then end this process.
pub fn clean_up_on_signals() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("build a runtime for signals");
    let wait = async move {
        let mut interrupt = signal(SignalKind::interrupt()).expect("listen for SIGINT");
        let mut terminate = signal(SignalKind::terminate()).expect("listen for SIGTERM");
        let mut hangup = signal(SignalKind::hangup()).expect("listen for SIGHUP");
        tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
            _ = hangup.recv() => 129,
        }
    };
    thread::spawn(move || {
        let code = runtime.block_on(wait);
        let leftovers = leftovers();
        for child in &leftovers.children {
            // It may have ended already, of the same Ctrl-C.
            let _ = kill_process(*child, Signal::TERM);
        }
        let deadline = Instant::now() + END_WITHIN;
        for child in &leftovers.children {
            while Instant::now() < deadline && is_running(*child) {
                thread::sleep(Duration::from_millis(10));
            }
            let _ = kill_process(*child, Signal::KILL);
        }
        for dir in &leftovers.dirs {
            let _ = fs::remove_dir_all(dir);
        }
        process::exit(code);
    });
}

/// True if it is there and no zombie (proc_pid_stat(5), field 3).
fn is_running(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, s)| s.starts_with('Z'))
    })
}

/// Raises it as far as root may, or as everybody may.
pub fn raise_descriptor_limit() {
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(now.maximum.map_or(DESCRIPTORS, |max| max.max(DESCRIPTORS))),
    };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        let allowed = Rlimit {
            current: now.maximum,
            maximum: now.maximum,
        };
        setrlimit(Resource::Nofile, allowed).expect("raise the limit of open files");
    }
}

/// The number of files that a peer may keep open, beside its connections and all else.
pub fn open_files() -> u64 {
    const OTHERS: u64 = 2 * 1024;
    descriptor_limit().saturating_sub(OTHERS).max(16)
}

/// The number of files that a peer may open.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS)
}

/// In the child: pins itself to the core of the first argument (`-`: none), sees
/// to it that it ends when its parent does, and becomes the program of the rest.
pub fn launch(arguments: &[String]) -> ! {
    let [core, program, arguments @ ..] = arguments else {
        panic!("{LAUNCH} needs a core and a program");
    };
    if core != "-" {
        pin(core.parse().expect("a number of a core"));
    }
    raise_descriptor_limit();
    // Survives exec: PR_SET_PDEATHSIG(2const). SIGTERM, or nginx would leave
    // its workers behind.
    set_parent_process_death_signal(Some(Signal::TERM)).expect("set the death signal");
    let e = Command::new(program).args(arguments).exec();
    panic!("start {program}: {e}");
}

// === impl Server ===

impl Server {
    /// Starts a program on a core (None: any).
    pub fn start(name: &str, core: Option<usize>, program: &Path, arguments: &[&str]) -> Self {
        let core = core.map_or_else(|| "-".to_owned(), |core| core.to_string());
        let own = env::current_exe().expect("the path of this program");
        let mut leftovers = leftovers();
        let mut child = Command::new(own)
            .arg(LAUNCH)
            .arg(core)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {name}: {e}"));
        leftovers.children.push(Pid::from_child(&child));
        let stdout = child.stdout.take().map(BufReader::new);
        Self {
            name: name.to_owned(),
            child,
            stdout,
        }
    }

    /// Starts this program in a role.
    pub fn start_role(name: &str, core: Option<usize>, arguments: &[&str]) -> Self {
        let own = env::current_exe().expect("the path of this program");
        Self::start(name, core, &own, arguments)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads lines of its stdout up to one that `parse` takes. Panics if the
    /// child ends before.
    pub fn read_until<T>(&mut self, mut parse: impl FnMut(&str) -> Option<T>) -> T {
        let stdout = self.stdout.as_mut().expect("stdout is piped");
        let mut line = String::new();
        loop {
            line.clear();
            let n = stdout.read_line(&mut line).expect("read a child's stdout");
            assert!(n > 0, "{} ended before it was ready", self.name);
            if let Some(found) = parse(line.trim_end()) {
                return found;
            }
        }
    }

    /// Panics if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("ask for a child's status") {
            panic!("{} ended: {status}", self.name);
        }
    }

    /// Resident memory now, in bytes (proc_pid_status(5)).
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let kib: Option<u64> = status.lines().find_map(|line| {
            let value = line.strip_prefix("VmRSS:")?.trim();
            value.strip_suffix(" kB")?.parse().ok()
        });
        kib.expect("VmRSS in the status of a process") * 1024
    }

    /// CPU time of its threads, and of the threads of its children, so far.
    pub fn cpu_times(&self) -> CpuTimes {
        let mut times = HashMap::new();
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|c| c.parse().ok());
        for pid in children.chain([self.pid()]) {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let id = task.file_name().to_str().and_then(|id| id.parse().ok());
                if let (Some(id), Some(time)) = (id, thread_time(&task.path())) {
                    times.insert(id, time);
                }
            }
        }
        CpuTimes(times)
    }
}

/// User and system time in clock ticks (proc_pid_stat(5), fields 14 and 15), and their sum in
/// nanoseconds: the first number of `schedstat` (Documentation/scheduler/sched-stats.rst), or
/// that of the ticks where the kernel has none. None: the thread has ended.
fn thread_time(task: &Path) -> Option<CpuTime> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // Field 2, the name, may contain anything but ends with the last bracket.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, kernel) = (ticks()?, ticks()?);
    let nanoseconds = match fs::read_to_string(task.join("schedstat")) {
        Ok(schedstat) => schedstat.split_whitespace().next()?.parse().ok()?,
        Err(_) => (user + kernel) * 1_000_000_000 / clock_ticks_per_second(),
    };
    Some(CpuTime {
        nanoseconds,
        user,
        kernel,
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + END_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            thread::sleep(Duration::from_millis(5));
        }
        leftovers().children.retain(|child| *child != pid);
    }
}

// === impl CpuTimes ===

impl CpuTimes {
    /// The time used between `earlier` and this, by threads that still are.
    pub fn since(&self, earlier: &Self) -> CpuTime {
        let mut used = CpuTime::default();
        for (id, time) in &self.0 {
            let before = earlier.0.get(id).copied().unwrap_or_default();
            used += CpuTime {
                nanoseconds: time.nanoseconds.saturating_sub(before.nanoseconds),
                user: time.user.saturating_sub(before.user),
                kernel: time.kernel.saturating_sub(before.kernel),
            };
        }
        used
    }
}

// === impl CpuTime ===

impl CpuTime {
    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanoseconds).as_secs_f64()
    }

    /// The part of it that was spent in the kernel.
    pub fn kernel_part(&self) -> f64 {
        self.kernel as f64 / (self.user + self.kernel).max(1) as f64
    }
}

impl AddAssign for CpuTime {
    fn add_assign(&mut self, other: Self) {
        self.nanoseconds += other.nanoseconds;
        self.user += other.user;
        self.kernel += other.kernel;
    }
}

// === impl WorkDir ===

impl WorkDir {
    /// Makes one in cargo's target folder, which is on a disk where the system's
    /// temporary folder may be in memory.
    pub fn make() -> Self {
        let parent = env::current_exe().expect("the path of this program");
        let parent = parent.ancestors().nth(2).expect("a folder of builds");
        let mut leftovers = leftovers();
        let dir = tempfile::Builder::new()
            .prefix("peer-race-")
            .tempdir_in(parent)
            .expect("make a folder for the caches");
        leftovers.dirs.push(dir.path().to_owned());
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
