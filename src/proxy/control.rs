//! The socket over which commands reach the running process.
//!
//! A client sends one order, a line of JSON, and gets one report, another line. Only the user of the
//! process and root may send orders, because an upgrade runs a program.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// The longest line, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// The longest time for a client to send its order, or to take its report.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// An order to the running process.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Read the configuration again.
    Reload {
        /// The file that it is expected to read.
        config: PathBuf,
    },
    /// Start another process, and hand the listeners over to it.
    Upgrade {
        /// The program of the new process.
        binary: PathBuf,
        /// Its configuration.
        config: PathBuf,
        /// Its `server.upgrade_sock`.
        upgrade_sock: Option<PathBuf>,
    },
    /// Of the new process: the reason that it does not serve.
    Explain {
        /// One line.
        why: String,
    },
}

/// The result of an order.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    /// The order was carried out.
    pub done: bool,
    /// The text, a line each.
    pub lines: Vec<String>,
}

/// The socket of the running process.
pub(super) struct Control {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket of the running process, before there is a runtime. Clients wait meanwhile.
pub(super) struct Bound {
    listener: BlockingListener,
    file: SocketFile,
}

/// The file of a socket, which is removed with it.
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

// === impl Report ===

impl Report {
    pub(super) fn done(lines: Vec<String>) -> Report {
        Report { done: true, lines }
    }

    pub(super) fn failed(why: &str) -> Report {
        Report {
            done: false,
            lines: why.lines().map(str::to_owned).collect(),
        }
    }
}

/// Send an order to the process that listens at `path`, and wait at most `limit` for its report.
///
/// # Errors
/// No process listens there, or it does not answer.
pub fn send(path: &Path, order: &Order, limit: Duration) -> io::Result<Report> {
    let mut stream = BlockingStream::connect(path)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut report = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut report)?;
    match report.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(serde_json::from_slice(&report)?),
    }
}

// === impl Bound ===

impl Bound {
    /// Listens at `path`, in the place of a socket that is there.
    ///
    /// # Errors
    /// The path is taken, or the folder cannot be written to.
    pub(super) fn new(path: &Path) -> io::Result<Bound> {
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        let listener = BlockingListener::bind(path)?;
        listener.set_nonblocking(true)?;
        // Others are refused in any case, see `accept`.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let found = fs::symlink_metadata(path)?;
        Ok(Bound {
            listener,
            file: SocketFile {
                path: path.to_owned(),
                identity: (found.dev(), found.ino()),
            },
        })
    }

    /// The same socket, for clients of the current runtime.
    ///
    /// # Errors
    /// The limits of the process allow no more.
    pub(super) fn listen(self) -> io::Result<Control> {
        Ok(Control {
            listener: UnixListener::from_std(self.listener)?,
            file: self.file,
        })
    }
}

// === impl Control ===

impl Control {
    /// The next client that may send an order.
    pub(super) async fn accept(&self) -> UnixStream {
        loop {
            let client = match self.listener.accept().await {
                Ok((client, _)) => client,
                Err(e) => {
                    warn!("{}: cannot accept a client: {e}", self.file.path.display());
                    tokio::time::sleep(CLIENT_TIMEOUT).await;
                    continue;
                }
            };
            let own = rustix::process::geteuid().as_raw();
            match client.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == 0 => return client,
                Ok(peer) => warn!(
                    "{}: an order of user {} is refused; this process runs as user {own}",
                    self.file.path.display(),
                    peer.uid()
                ),
                Err(e) => warn!("{}: a client is refused: {e}", self.file.path.display()),
            }
        }
    }
}

// === impl SocketFile ===

impl Drop for SocketFile {
    fn drop(&mut self) {
        // In an upgrade, another process has bound the path.
        let is_own = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The order of a client. `None`: there is none in time.
pub(super) async fn order(client: &mut BufStream<UnixStream>) -> Option<Order> {
    let mut line = Vec::new();
    let mut limited = client.take(MAX_LINE);
    let read = timeout(CLIENT_TIMEOUT, limited.read_until(b'\n', &mut line)).await;
    match read {
        Ok(Ok(_)) => serde_json::from_slice(&line).ok(),
        _ => None,
    }
}

/// Answer a client, unless it has left.
pub(super) async fn answer(client: &mut BufStream<UnixStream>, report: &Report) {
    let Ok(mut line) = serde_json::to_vec(report) else {
        return;
    };
    line.push(b'\n');
    let written = async {
        client.write_all(&line).await?;
        client.flush().await
    };
    // The client may have left.
    let _ = timeout(CLIENT_TIMEOUT, written).await;
}
