//! The replacement of this process by a new one, on the order of a command.
//!
//! This process starts the new one, so that it has the same user, environment, limits and output, and
//! belongs to the same service. Pingora hands the listeners over, and this process goes on serving if
//! the new one does not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::Mutex;
use pingora_core::server::ExecutionPhase;
use rustix::process::{getpid, kill_process, Signal};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::control::Report;
use super::notify;

/// The environment variable with the socket over which a new process says why it cannot serve.
pub const PREDECESSOR: &str = "S3_PROXY_PREDECESSOR";

/// The longest time for the new process to find the entries of the cache.
const START_LIMIT: Duration = Duration::from_secs(600);

/// The longest time from then until it has taken over, or has not.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(120);

/// The longest time for a new process that does not serve to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The time between two looks at the new process.
const LOOK: Duration = Duration::from_millis(20);

/// Replaces this process.
pub(super) struct Upgrader {
    /// Never read, but subscribed to anew by each upgrade.
    phases: broadcast::Receiver<ExecutionPhase>,
    /// Held by the upgrade that is made.
    turn: tokio::sync::Mutex<()>,
    /// The reason that the new process gives for not serving.
    reason: Arc<Mutex<Option<String>>>,
}

/// The new process, as the command wants it.
pub(super) struct Wanted {
    pub(super) binary: PathBuf,
    pub(super) config: PathBuf,
}

/// The sockets that both processes use.
pub(super) struct Sockets<'a> {
    pub(super) upgrade: &'a Path,
    pub(super) control: &'a Path,
}

// === impl Upgrader ===

impl Upgrader {
    pub(super) fn new(phases: broadcast::Receiver<ExecutionPhase>) -> Upgrader {
        Upgrader {
            phases,
            turn: tokio::sync::Mutex::default(),
            reason: Arc::default(),
        }
    }

    /// The phases of the server from now on.
    pub(super) fn phases(&self) -> broadcast::Receiver<ExecutionPhase> {
        self.phases.resubscribe()
    }

    /// Notes why the new process does not serve.
    pub(super) fn explain(&self, why: String) {
        *self.reason.lock() = Some(why);
    }

    /// Replaces this process by a new one.
    pub(super) async fn run(&self, wanted: Wanted, sockets: Sockets<'_>) -> Report {
        match self.try_run(wanted, sockets).await {
            Ok(pid) => {
                notify::main_pid(pid);
                info!("process {pid} has taken over");
                Report::done(vec![format!("process {pid} has taken over")])
            }
            Err(why) => {
                let why = format!("{why}; process {} goes on serving", getpid());
                warn!("upgrade: {why}");
                Report::failed(&why)
            }
        }
    }

    async fn try_run(&self, wanted: Wanted, sockets: Sockets<'_>) -> Result<u32, String> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Err("another upgrade is being made".to_owned());
        };
        if getpid().is_init() {
            let why =
                "this is the first process of its container, which would end with it; replace the \
                       container";
            return Err(why.to_owned());
        }
        *self.reason.lock() = None;
        let mut phases = self.phases();
        let reason = self.reason.clone();
        let (sock, control) = (sockets.upgrade.to_owned(), sockets.control.to_owned());
        let started = spawn_blocking(move || start(&wanted, &sock, &control, &reason)).await;
        let mut child = started.unwrap_or_else(|_| Err("this process ends".to_owned()))?;
        let pid = child.id();
        let is_signalled = kill_process(getpid(), Signal::QUIT);
        is_signalled.map_err(|e| format!("SIGQUIT cannot be sent to this process: {e}"))?;
        let handed_over = timeout(HAND_OVER_LIMIT, outcome(&mut phases)).await;
        if matches!(handed_over, Ok(true)) {
            return Ok(pid);
        }
        let reason = self.reason.clone();
        let ended = spawn_blocking(move || end(&mut child, &reason)).await;
        Err(ended.unwrap_or_else(|_| "this process ends".to_owned()))
    }
}

/// Waits until the listeners are handed over, or this process goes on.
async fn outcome(phases: &mut broadcast::Receiver<ExecutionPhase>) -> bool {
    loop {
        match phases.recv().await {
            Ok(ExecutionPhase::ShutdownStarted) => return true,
            // The new process does not serve, or this one is told to end.
            Ok(ExecutionPhase::Running | ExecutionPhase::GracefulTerminate) => return false,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}

/// Starts the new process, and waits until it waits for the listeners.
fn start(
    wanted: &Wanted,
    sock: &Path,
    control: &Path,
    reason: &Mutex<Option<String>>,
) -> Result<Child, String> {
    let binary = wanted.binary.display();
    let mut child = Command::new(&wanted.binary)
        .args(["run", "--upgrade", "--config"])
        .arg(&wanted.config)
        .env(PREDECESSOR, control)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| format!("{binary} cannot be started: {e}"))?;
    let deadline = Instant::now() + START_LIMIT;
    while !listens(sock) {
        let has_ended = !matches!(child.try_wait(), Ok(None));
        if has_ended {
            return Err(end(&mut child, reason));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "{binary} does not wait at {} after {START_LIMIT:?}; server.upgrade_sock must be the same \
                 in both configurations",
                sock.display()
            ));
        }
        sleep(LOOK);
    }
    Ok(child)
}

/// Waits for the end of a process that does not serve. Returns the reason.
fn end(child: &mut Child, reason: &Mutex<Option<String>>) -> String {
    let deadline = Instant::now() + END_LIMIT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < deadline => sleep(LOOK),
            _ => {
                let _ = child.kill();
                break child.wait().ok();
            }
        }
    };
    let status = status.map_or_else(|| "an unknown status".to_owned(), |of| of.to_string());
    reason.lock().take().unwrap_or_else(|| {
        format!("the new process has not taken over, and ended with {status}; the log says why")
    })
}

/// True if a process listens at this Unix socket.
fn listens(sock: &Path) -> bool {
    // __SO_ACCEPTCON in the flags of /proc/net/unix (proc_pid_net(5)).
    const LISTENING: &str = "00010000";
    const FLAGS: usize = 3;
    let Ok(sockets) = std::fs::read_to_string("/proc/net/unix") else {
        return false;
    };
    let Some(sock) = sock.to_str() else {
        return false;
    };
    sockets.lines().any(|line| {
        let flags = line.split_ascii_whitespace().nth(FLAGS);
        flags == Some(LISTENING) && line.ends_with(&format!(" {sock}"))
    })
}
