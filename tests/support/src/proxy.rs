#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{kill_process, Pid, Signal};
#[cfg(target_os = "linux")]
use rustix::{
    event::{poll, PollFd, PollFlags, Timespec},
    process::{pidfd_open, pidfd_send_signal, PidfdFlags},
};
use tempfile::TempDir;

use crate::{
    config::{pinned, ACCESS_LOG, ADMIN_SOCK, CACHE, UPGRADE_SOCK},
    eventually, get, Metrics, ProxyBuilder, Response, PATIENCE,
};

/// A proxy with a configuration and a cache of its own, killed when dropped.
pub struct Proxy {
    // Before `dir`: the process ends before its files go.
    running: Option<Running>,
    binary: PathBuf,
    environment: Vec<(String, String)>,
    config: PathBuf,
    /// A file, so that a test sees all that has been written.
    stderr: File,
    dir: TempDir,
}

struct Running {
    process: Process,
    /// Lines of stdout; its end says that the process has ended.
    stdout: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    announced: Announced,
}

enum Process {
    Child(Child),
    /// A proxy that another one has started.
    Adopted(Adopted),
}

struct Adopted {
    pid: Pid,
    /// The process, whatever else gets its number.
    #[cfg(target_os = "linux")]
    fd: OwnedFd,
}

/// The proxy's line on stdout when it accepts connections.
#[derive(Clone, Debug, Default)]
struct Announced {
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

/// A process that has handed over to another and is about to end.
pub struct Retiring(Running);

enum Start {
    Ready,
    Ended,
    TimedOut,
}

/// True if a process listens on a Unix socket. Its file is there before that, and may be
/// there after.
#[cfg(target_os = "linux")]
fn listens(sock: &Path) -> bool {
    // __SO_ACCEPTCON, in the flags of proc_net_unix.
    const LISTENING: &str = "00010000";
    let sockets = fs::read_to_string("/proc/net/unix").expect("list the Unix sockets");
    let path = sock.to_str().expect("a path in UTF-8");
    sockets.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(3) == Some(&LISTENING) && fields.last() == Some(&path)
    })
}

#[cfg(not(target_os = "linux"))]
fn listens(sock: &Path) -> bool {
    sock.exists()
}

// === impl Proxy ===

/// Runs a command whose input and output are pipes.
pub fn piped(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run a command")
}

impl Proxy {
    /// `binary` is `env!("CARGO_BIN_EXE_s3-proxy")`, which only the test knows.
    pub fn builder(binary: impl Into<PathBuf>) -> ProxyBuilder {
        ProxyBuilder::new(binary)
    }

    /// Starts a proxy with a configuration that the builder cannot write.
    /// `config` gets the directory that is the proxy's own.
    pub fn start_with(binary: impl AsRef<Path>, config: impl FnOnce(&Path) -> String) -> Self {
        Self::launch(binary.as_ref(), &env::temp_dir(), Vec::new(), config)
    }

    pub(crate) fn launch(
        binary: &Path,
        parent: &Path,
        environment: Vec<(String, String)>,
        config: impl FnOnce(&Path) -> String,
    ) -> Self {
        let dir = TempDir::with_prefix_in("s3-proxy-", parent).expect("make the proxy's directory");
        let path = dir.path().join("config.yaml");
        fs::write(&path, config(dir.path())).expect("write the configuration");
        let mut proxy = Self {
            running: None,
            binary: binary.to_owned(),
            environment,
            config: path,
            stderr: tempfile::tempfile().expect("make a file for stderr"),
            dir,
        };
        proxy.run();
        proxy.wait_until_listed();
        proxy
    }

    /// The address of HTTP.
    pub fn addr(&self) -> SocketAddr {
        self.announced().http.expect("the proxy serves no HTTP")
    }

    /// The address of HTTPS.
    pub fn https_addr(&self) -> SocketAddr {
        self.announced().https.expect("the proxy serves no HTTPS")
    }

    /// The address of `/metrics` and `/health`.
    pub fn metrics_addr(&self) -> SocketAddr {
        self.announced().metrics.expect("the proxy has no metrics")
    }

    /// The address for operators.
    pub fn admin_addr(&self) -> SocketAddr {
        self.announced().admin.expect("the proxy takes no PURGE")
    }

    /// The socket for operators.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.path().join(ADMIN_SOCK)
    }

    pub fn pid(&self) -> u32 {
        self.running().pid().as_raw_nonzero().get().unsigned_abs()
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.dir.path().join(CACHE)
    }

    /// The file of its access log.
    pub fn access_log(&self) -> PathBuf {
        self.dir.path().join(ACCESS_LOG)
    }

    /// Runs `s3-proxy` with these arguments and this proxy's configuration,
    /// whether or not the proxy runs.
    pub fn s3_proxy(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("run s3-proxy")
    }

    /// Like [`Self::s3_proxy`], with this standard input.
    pub fn s3_proxy_reading(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = piped(&mut self.command(arguments));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // It may end before it has read everything.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("the end of s3-proxy")
    }

    /// `s3-proxy` with these arguments and this proxy's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let config = match &self.running {
            Some(_) => self.pinned_config(),
            None => self.config.clone(),
        };
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .arg("--config")
            .arg(config)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The configuration file that it was started with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Waits until it has listed its cache: before that, it may refuse to store. A test in which that takes
    /// longer than usual goes on.
    fn wait_until_listed(&self) {
        const USUAL: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + USUAL;
        while Instant::now() < deadline && self.listings() == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The number of times that it has listed a folder of its cache, in all runs.
    pub fn listings(&self) -> usize {
        self.stderr().matches(" entries found in ").count()
    }

    /// Everything written to stderr so far, by every run of this proxy.
    pub fn stderr(&self) -> String {
        // By position: the offset is that of the writers.
        let len = self.stderr.metadata().expect("the length of stderr").len();
        let mut written = vec![0; len as usize];
        let read = self.stderr.read_exact_at(&mut written, 0);
        read.expect("read stderr");
        String::from_utf8_lossy(&written).into_owned()
    }

    /// `GET` on a connection of its own, as [`get`].
    pub fn get(&self, target: &str) -> Response {
        get(self.addr(), target)
    }

    /// One scrape of `/metrics`. One that is cut short is made again, as
    /// Prometheus would.
    pub fn metrics(&self) -> Metrics {
        let mut response = get(self.metrics_addr(), "/metrics");
        if !response.complete {
            eprintln!(
                "GET /metrics was cut short at {} bytes: {:?}",
                response.body.len(),
                self.stderr()
            );
            response = get(self.metrics_addr(), "/metrics");
        }
        assert_eq!(response.status, 200, "GET /metrics");
        assert!(response.complete, "GET /metrics was cut short twice");
        Metrics::parse(&String::from_utf8(response.body).expect("metrics are UTF-8"))
    }

    /// A metric now, as [`Metrics::sum`]. The proxy counts a response after its
    /// last byte, so to assert what a response did use [`Self::expect_metric`].
    pub fn metric(&self, name: &str) -> u64 {
        self.metrics().sum(name)
    }

    /// Waits until a counter stands at `expected`, as [`Metrics::sum`]; panics
    /// as soon as it is beyond.
    pub fn expect_metric(&self, name: &str, expected: u64) {
        self.expect_metric_where(name, &[], expected);
    }

    /// As [`Self::expect_metric`], of the samples that [`Metrics::sum_where`]
    /// takes.
    pub fn expect_metric_where(&self, name: &str, labels: &[(&str, &str)], expected: u64) {
        const SETTLES_WITHIN: Duration = Duration::from_secs(5);
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let value = self.metrics().sum_where(name, labels);
            if value == expected {
                return;
            }
            assert!(
                value < expected && Instant::now() < deadline,
                "{name} {labels:?} is {value}, expected {expected}"
            );
            // The proxy gives no signal that it has counted.
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory now, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS")
    }

    /// The most resident memory since the start or the last
    /// [`Self::reset_peak_rss`], in bytes.
    pub fn peak_rss_bytes(&self) -> u64 {
        self.memory("VmHWM")
    }

    /// Makes [`Self::peak_rss_bytes`] start again from what is resident now
    /// (proc(5), `clear_refs`, value 5).
    pub fn reset_peak_rss(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("reset the peak RSS");
    }

    /// The number of file descriptors that it has open now.
    pub fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("list the proxy's descriptors")
            .count()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop_gracefully(&mut self) -> ExitStatus {
        let running = self.running.take().expect("the proxy is not running");
        running.signal(Signal::TERM);
        match running.wait_for_end(Instant::now() + PATIENCE) {
            Some(status) => status,
            None => panic!(
                "the proxy did not end within {PATIENCE:?} of SIGTERM\n{}",
                self.stderr()
            ),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.running().signal(signal);
    }

    /// Sends SIGHUP, and waits until the configuration has been read again. Returns the result, as the
    /// metric names it.
    pub fn reload(&self) -> &'static str {
        const RESULTS: [&str; 2] = ["ok", "failed"];
        let count = |metrics: &Metrics, result: &str| {
            metrics.sum_where("config_reloads_total", &[("result", result)])
        };
        let before = self.metrics();
        self.signal(Signal::HUP);
        let mut result = None;
        eventually("the configuration is read again", || {
            let now = self.metrics();
            let has_risen = |result: &&str| count(&now, result) > count(&before, result);
            result = RESULTS.into_iter().find(has_risen);
            result.is_some()
        });
        result.unwrap_or_default()
    }

    /// Sends SIGKILL and waits for the end: a crash.
    pub fn kill(&mut self) {
        self.running.take().expect("the proxy is not running");
    }

    /// Changes the configuration, for the next start.
    pub fn edit_config(&self, edit: impl FnOnce(String) -> String) {
        let yaml = fs::read_to_string(&self.config).expect("read the configuration");
        fs::write(&self.config, edit(yaml)).expect("write the configuration");
    }

    /// The socket where [`Self::upgrade`] meets the successor.
    pub fn upgrade_sock(&self) -> PathBuf {
        self.dir.path().join(UPGRADE_SOCK)
    }

    /// Runs it again, on the same configuration and cache, after a graceful
    /// stop where it still runs. The addresses are new.
    pub fn restart(&mut self) {
        if self.running.is_some() {
            self.stop_gracefully();
        }
        self.run();
    }

    /// Starts a successor, which takes over listeners and cache, and tells the
    /// process that runs to end. Returns that one when the successor is ready;
    /// the addresses stay. Needs [`ProxyBuilder::upgradable`].
    pub fn upgrade(&mut self) -> Retiring {
        self.upgrade_at(&self.upgrade_sock())
    }

    /// Like [`Self::upgrade`], for a configuration with another socket.
    pub fn upgrade_at(&mut self, sock: &Path) -> Retiring {
        let config = self.pinned_config();
        let successor = self.spawn(&config, &["--upgrade"]);
        eventually("the successor waits for the listeners", || listens(sock));
        let old = self.running.take().expect("the proxy is not running");
        old.signal(Signal::QUIT);
        self.wait_until_ready(successor);
        Retiring(old)
    }

    /// Runs `s3-proxy upgrade`. Where it succeeds, this is the new process, and the old one is returned
    /// too. Needs [`ProxyBuilder::upgradable`].
    pub fn upgrade_by_command(&mut self, options: &[&str]) -> (Output, Option<Retiring>) {
        let output = self.s3_proxy(&[&["upgrade"], options].concat());
        if !output.status.success() {
            return (output, None);
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let pid = said
            .strip_prefix("process ")
            .and_then(|rest| Pid::from_raw(rest.split(' ').next()?.parse().ok()?))
            .unwrap_or_else(|| panic!("no process in {said}"));
        let mut old = self.running.take().expect("the proxy is not running");
        // The new process writes where the old one does.
        let (_, none) = mpsc::channel();
        let running = Running {
            process: Process::Adopted(Adopted::open(pid)),
            stdout: std::mem::replace(&mut old.stdout, none),
            reader: old.reader.take(),
            announced: Announced::default(),
        };
        self.wait_until_ready(running);
        (output, Some(Retiring(old)))
    }

    /// Crashes it where it still runs, and runs it again as the last arguments
    /// of another command, which has to become the proxy. False: it ended before
    /// it was ready.
    pub fn restart_under(&mut self, command: &[&str]) -> bool {
        drop(self.running.take());
        let (program, arguments) = command.split_first().expect("a command");
        let mut under = Command::new(program);
        under.args(arguments).arg(&self.binary);
        let running = self.spawn_as(under, &self.config, &[]);
        self.try_until_ready(running).is_ok()
    }

    /// Waits for an end that nobody here asked for.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let running = self.running.take().expect("the proxy is not running");
        match running.wait_for_end(Instant::now() + PATIENCE) {
            Some(status) => status,
            None => panic!("the proxy did not end within {PATIENCE:?}"),
        }
    }

    fn run(&mut self) {
        let running = self.spawn(&self.config, &[]);
        self.wait_until_ready(running);
    }

    fn spawn(&self, config: &Path, arguments: &[&str]) -> Running {
        self.spawn_as(Command::new(&self.binary), config, arguments)
    }

    fn spawn_as(&self, mut command: Command, config: &Path, arguments: &[&str]) -> Running {
        // Whoever runs the tests may have credentials there.
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"AWS_"))
        {
            command.env_remove(name);
        }
        Running::spawn(
            command
                .arg("run")
                .arg("--config")
                .arg(config)
                .args(arguments)
                .envs(self.environment.iter().map(|(name, value)| (name, value))),
            &self.stderr,
        )
    }

    /// Writes the configuration down with the addresses that the proxy has now.
    fn pinned_config(&self) -> PathBuf {
        let yaml = fs::read_to_string(&self.config).expect("read the configuration");
        let announced = self.announced();
        let addresses = [
            announced.http,
            announced.https,
            announced.metrics,
            announced.admin,
        ];
        let config = self.dir.path().join("pinned.yaml");
        fs::write(&config, pinned(&yaml, addresses.into_iter().flatten()))
            .expect("write the configuration");
        config
    }

    fn wait_until_ready(&mut self, running: Running) {
        if let Err(status) = self.try_until_ready(running) {
            panic!(
                "the proxy ended before it was ready: {status:?}\n{}",
                self.stderr()
            );
        }
    }

    /// The error: it ended before it was ready, and how.
    fn try_until_ready(&mut self, mut running: Running) -> Result<(), Option<ExitStatus>> {
        match running.wait_until_ready(Instant::now() + PATIENCE) {
            Start::Ready => {
                self.running = Some(running);
                Ok(())
            }
            Start::Ended => Err(running.wait_for_end(Instant::now() + PATIENCE)),
            Start::TimedOut => {
                drop(running);
                panic!(
                    "the proxy was not ready within {PATIENCE:?}\n{}",
                    self.stderr()
                );
            }
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the proxy is not running")
    }

    fn announced(&self) -> &Announced {
        &self.running().announced
    }

    /// A line of /proc/PID/status that is given in KiB (proc(5)).
    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("read the proxy's status");
        let kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in the proxy's status"));
        kib * 1024
    }
}

// === impl Retiring ===

impl Retiring {
    /// Waits for the end.
    pub fn wait(self) -> ExitStatus {
        self.0
            .wait_for_end(Instant::now() + PATIENCE)
            .unwrap_or_else(|| panic!("the process did not end within {PATIENCE:?} of SIGQUIT"))
    }
}

// === impl Running ===

impl Running {
    fn spawn(command: &mut Command, stderr: &File) -> Self {
        let stderr = stderr.try_clone().expect("share the file for stderr");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|e| panic!("start {}: {e}", command.get_program().display()));
        let stdout = child.stdout.take().expect("stdout is piped");

        let (lines, received) = mpsc::channel();
        let stdout = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens any more; the pipe is drained all the same.
                let _ = lines.send(line);
            }
        });
        Self {
            process: Process::Child(child),
            stdout: received,
            reader: Some(stdout),
            announced: Announced::default(),
        }
    }

    fn wait_until_ready(&mut self, deadline: Instant) -> Start {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(line) if line == "s3-proxy: ready" => return Start::Ready,
                Ok(line) => self.announced.read(&line),
                Err(RecvTimeoutError::Disconnected) => return Start::Ended,
                Err(RecvTimeoutError::Timeout) => return Start::TimedOut,
            }
        }
    }

    fn pid(&self) -> Pid {
        match &self.process {
            Process::Child(child) => Pid::from_child(child),
            Process::Adopted(process) => process.pid,
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signal the proxy");
    }

    /// None: still running at the deadline, and killed now.
    fn wait_for_end(mut self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return None,
            }
        }
        // Its successor may have its stdout.
        while Instant::now() < deadline {
            let ended = match &mut self.process {
                Process::Child(child) => child.try_wait().ok().flatten(),
                // Only its parent learns its status.
                Process::Adopted(process) => process.has_ended().then(ExitStatus::default),
            };
            if ended.is_some() {
                return ended;
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

/// Writes the end of the log beside what a test that fails says.
impl Drop for Proxy {
    fn drop(&mut self) {
        /// Bytes of the log.
        const SHOWN: usize = 16 << 10;
        if !thread::panicking() {
            return;
        }
        drop(self.running.take());
        let log = self.stderr().into_bytes();
        let shown = &log[log.len().saturating_sub(SHOWN)..];
        eprintln!(
            "---- end of the log of {} ----\n{}----",
            self.binary.display(),
            String::from_utf8_lossy(shown)
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where the process has ended.
        match &mut self.process {
            Process::Child(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Process::Adopted(process) => process.kill(),
        }
        if let Some(reader) = self.reader.take() {
            // Ends with the pipe.
            let _ = reader.join();
        }
    }
}

// === impl Adopted ===

#[cfg(target_os = "linux")]
impl Adopted {
    fn open(pid: Pid) -> Adopted {
        let fd = pidfd_open(pid, PidfdFlags::empty()).expect("the process runs");
        Adopted { pid, fd }
    }

    fn has_ended(&self) -> bool {
        let mut process = [PollFd::new(&self.fd, PollFlags::IN)];
        poll(&mut process, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
    }

    fn kill(&self) {
        let _ = pidfd_send_signal(&self.fd, Signal::KILL);
    }
}

#[cfg(not(target_os = "linux"))]
impl Adopted {
    fn open(pid: Pid) -> Adopted {
        Adopted { pid }
    }

    fn has_ended(&self) -> bool {
        rustix::process::test_kill_process(self.pid).is_err()
    }

    fn kill(&self) {
        let _ = kill_process(self.pid, Signal::KILL);
    }
}

// === impl Announced ===

impl Announced {
    fn read(&mut self, line: &str) {
        let addr = |url: &str| url.parse().ok();
        if let Some(url) = line.strip_prefix("s3-proxy: serving http://") {
            self.http = addr(url);
        } else if let Some(url) = line.strip_prefix("s3-proxy: serving https://") {
            self.https = addr(url);
        } else if let Some(url) = line.strip_prefix("s3-proxy: metrics http://") {
            self.metrics = url.strip_suffix("/metrics").and_then(addr);
        } else if let Some(url) = line.strip_prefix("s3-proxy: admin http://") {
            self.admin = addr(url);
        }
    }
}
