//! Clients with limited means that try to take the proxy for themselves.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        Arc,
    },
    thread,
    time::{Duration, Instant},
};

use rustls::ClientConfig;

use crate::frames::{self, drain, Frames};

/// The pause of an attacker if nothing has changed, or before it connects again.
const PAUSE: Duration = Duration::from_millis(50);

/// The frames that a flood writes at once.
const BATCH: usize = 1000;

/// The most that one flood sends in one phase, in bytes.
const FLOOD: usize = 256 << 20;

/// The addresses of the proxy, and the objects that it has.
pub struct Target {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub metrics: SocketAddr,
    pub tls: Arc<ClientConfig>,
    /// The path of a stored object that is sent at once.
    pub small: &'static str,
    /// The path of a stored object that no connection takes at once.
    pub large: &'static str,
    /// The prefix of the paths of objects that are not stored.
    pub huge: &'static str,
}

/// A way to hold resources that others need.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    pub name: &'static str,
    /// The connections that it holds at once.
    pub connections: usize,
    run: fn(&Target, usize, &AtomicBool),
}

/// All attacks.
pub const ATTACKS: [Attack; 7] = [
    Attack {
        name: "100 streams on each connection, unread",
        connections: 10,
        run: unread_streams,
    },
    Attack {
        name: "idle HTTP/2",
        connections: 40,
        run: idle_connections,
    },
    Attack {
        name: "heads that grow by a byte",
        connections: 40,
        run: growing_heads,
    },
    Attack {
        name: "PRIORITY frames",
        connections: 4,
        run: |target, connections, stop| flood(target, connections, stop, frames::priorities),
    },
    Attack {
        name: "PING frames",
        connections: 4,
        run: |target, connections, stop| flood(target, connections, stop, frames::pings),
    },
    Attack {
        name: "SETTINGS frames",
        connections: 4,
        run: |target, connections, stop| flood(target, connections, stop, frames::settings),
    },
    LEAVERS,
];

/// It asks for new objects each time, so that all bytes come from the origin.
pub const LEAVERS: Attack = Attack {
    name: "clients that leave",
    connections: 20,
    run: leave,
};

/// The number of huge objects asked for so far.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// The time that a client stays before it leaves.
pub const STAY: Duration = Duration::from_millis(300);

/// The ways to hold a connection and ask for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    NoPreface,
    SettingsOnly,
    HeadWithoutEnd,
    AfterOneRequest,
}

pub const IDLE: [Idle; 4] = [
    Idle::NoPreface,
    Idle::SettingsOnly,
    Idle::HeadWithoutEnd,
    Idle::AfterOneRequest,
];

// === impl Attack ===

impl Attack {
    /// Attacks until told to stop, on threads of low priority, so that the proxy's work is
    /// measured and not the attacker's.
    pub fn run(&self, target: &Target, stop: &AtomicBool) {
        // On Linux, nice(2) affects the calling thread only.
        rustix::process::nice(19).expect("be nice");
        (self.run)(target, self.connections, stop);
    }
}

/// Asks for a large object on as many streams as allowed, and reads nothing.
fn unread_streams(target: &Target, connections: usize, stop: &AtomicBool) {
    let ask = || -> io::Result<Frames> {
        let mut frames = Frames::open(target.https, &target.tls)?;
        frames.begin()?;
        for stream in 0..100 {
            frames.ask(2 * stream + 1, target.large)?;
        }
        Ok(frames)
    };
    let mut held = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        if held.len() < connections {
            held.extend(ask());
        } else {
            thread::sleep(PAUSE);
        }
    }
}

fn idle_connections(target: &Target, connections: usize, stop: &AtomicBool) {
    let mut held: Vec<(Idle, Frames)> = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        held.retain_mut(|(_, frames)| frames.drain());
        for way in IDLE.into_iter().cycle().take(connections - held.len()) {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            held.extend(way.hold(target).map(|frames| (way, frames)));
        }
        thread::sleep(PAUSE);
    }
}

fn growing_heads(target: &Target, connections: usize, stop: &AtomicBool) {
    let mut held: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        held.retain(|socket| grow(socket).is_ok());
        // The listener for metrics is attacked too.
        for addr in [target.http, target.metrics]
            .into_iter()
            .cycle()
            .take(connections - held.len())
        {
            held.extend(begin_head(addr));
        }
        thread::sleep(PAUSE);
    }
}

/// Sends the beginning of a request that [`grow`] makes longer.
pub fn begin_head(addr: SocketAddr) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_nodelay(true)?;
    socket.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Grows: ")?;
    Ok(socket)
}

/// Fails if the server has ended the connection.
pub fn grow(mut socket: &TcpStream) -> io::Result<()> {
    if !drain(socket) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    socket.write_all(b"x")
}

/// Sends as many frames that cause work as it can, and connects again when it is closed.
fn flood(target: &Target, connections: usize, stop: &AtomicBool, of: fn(usize) -> Vec<u8>) {
    let batch = of(BATCH);
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                rustix::process::nice(19).expect("be nice");
                let mut left = FLOOD / connections;
                while !stop.load(Ordering::SeqCst) && left > 0 {
                    let mut send = || -> io::Result<()> {
                        let mut frames = Frames::open(target.https, &target.tls)?;
                        frames.begin()?;
                        while !stop.load(Ordering::SeqCst) && left > 0 {
                            if !frames.drain() {
                                break;
                            }
                            frames.send(&batch)?;
                            left = left.saturating_sub(batch.len());
                        }
                        Ok(())
                    };
                    // The server ended it.
                    let _ = send();
                    thread::sleep(PAUSE);
                }
            });
        }
    });
}

/// Asks for huge objects, different ones each time, and leaves.
fn leave(target: &Target, connections: usize, stop: &AtomicBool) {
    let begin = |_| -> io::Result<TcpStream> {
        let mut socket = TcpStream::connect(target.http)?;
        let number = ASKED.fetch_add(1, Ordering::Relaxed);
        let path = format!("{}-{number}", target.huge);
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        socket.write_all(head.as_bytes())?;
        Ok(socket)
    };
    let held: Vec<_> = (0..connections).flat_map(begin).collect();
    let asked = Instant::now();
    while asked.elapsed() < STAY {
        for socket in &held {
            drain(socket);
        }
        thread::sleep(PAUSE / 5);
    }
    drop(held);
    while !stop.load(Ordering::SeqCst) {
        thread::sleep(PAUSE);
    }
}

// === impl Idle ===

impl Idle {
    /// Opens a connection that is idle in this way.
    pub fn hold(self, target: &Target) -> io::Result<Frames> {
        let mut frames = Frames::open(target.https, &target.tls)?;
        if self != Idle::NoPreface {
            frames.begin()?;
        }
        match self {
            Idle::NoPreface | Idle::SettingsOnly => {}
            Idle::HeadWithoutEnd => frames.ask_in_part(1, target.large)?,
            Idle::AfterOneRequest => frames.ask(1, target.small)?,
        }
        Ok(frames)
    }
}
