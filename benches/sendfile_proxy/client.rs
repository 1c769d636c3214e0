//! A client that costs little: one thread, many connections, bodies discarded.

use std::{
    fmt, hint,
    net::{SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{recv, send, RecvFlags, SendFlags},
};
use test_support::PATIENCE;

pub const CONNECTIONS: u64 = 16;

/// More than the head of any response here.
const MAX_HEAD: usize = 2 * 1024;

/// The most that one call discards in the kernel.
const DISCARD: usize = 1024 * 1024;

/// The most that one call reads where the kernel does not discard: little enough
/// to stay in the processor's cache.
const READ: usize = 64 * 1024;

/// Where a server listens.
#[derive(Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What is asked for, again and again, and what has to come back.
pub struct Requests {
    pub texts: Vec<String>,
    pub next: usize,
    pub status: &'static str,
    pub body_len: u64,
}

/// One thread's connections to one server.
pub struct Client {
    streams: Vec<Stream>,
    sink: Sink,
    sent: u64,
    pinned: bool,
}

/// Where bodies go.
struct Sink {
    flags: RecvFlags,
    /// With MSG_TRUNC never written to, so that it takes no memory either.
    buffer: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    head: [u8; MAX_HEAD],
    state: State,
}

enum State {
    Idle,
    /// So many bytes of the head have arrived.
    Head(usize),
    /// So many bytes of the body have not.
    Body(u64),
}

enum Progress {
    None,
    Some,
    Complete,
}

// === impl Address ===

impl Address {
    fn connect(&self) -> OwnedFd {
        let connected = match self {
            Self::Tcp(addr) => TcpStream::connect(addr).and_then(|tcp| {
                tcp.set_nodelay(true)?;
                Ok(tcp.into())
            }),
            Self::Unix(path) => UnixStream::connect(path).map(Into::into),
        };
        connected.unwrap_or_else(|e| panic!("connect to {self}: {e}"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

// === impl Client ===

impl Client {
    pub fn connect(address: &Address, pinned: bool) -> Self {
        Self {
            streams: (0..CONNECTIONS).map(|_| Stream::connect(address)).collect(),
            sink: match address {
                Address::Tcp(_) => Sink {
                    flags: RecvFlags::TRUNC,
                    buffer: vec![0; DISCARD],
                },
                Address::Unix(_) => Sink {
                    flags: RecvFlags::empty(),
                    buffer: vec![0; READ],
                },
            },
            sent: 0,
            pinned,
        }
    }

    /// How many requests have been made.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Makes the next `count` requests, on all connections at once, and returns
    /// how long it took until the last byte of the last response.
    pub fn fetch(&mut self, requests: &mut Requests, count: u64) -> Duration {
        let start = Instant::now();
        let mut unsent = count;
        let mut outstanding = count;
        let mut idle_since = None;
        while outstanding > 0 {
            let mut idle = true;
            for stream in &mut self.streams {
                if matches!(stream.state, State::Idle) {
                    if unsent == 0 {
                        continue;
                    }
                    stream.send(&requests.texts[requests.next]);
                    requests.next = (requests.next + 1) % requests.texts.len();
                    self.sent += 1;
                    unsent -= 1;
                }
                match stream.receive(requests, &mut self.sink) {
                    Progress::None => continue,
                    Progress::Some => {}
                    Progress::Complete => outstanding -= 1,
                }
                idle = false;
            }
            if !idle {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            assert!(
                since.elapsed() < PATIENCE,
                "{outstanding} responses made no progress in {PATIENCE:?}"
            );
            if self.pinned {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        start.elapsed()
    }

    /// Makes the first of `requests`, and returns head and body of the response.
    pub fn look(&mut self, requests: &Requests) -> (String, Vec<u8>) {
        self.sent += 1;
        let stream = &mut self.streams[0];
        stream.send(&requests.texts[0]);
        let mut received = Vec::new();
        let mut piece = vec![0; READ];
        let start = Instant::now();
        let end = loop {
            match receive_now(&stream.socket, &mut piece, RecvFlags::empty()) {
                Some(n) => received.extend_from_slice(&piece[..n]),
                None => thread::yield_now(),
            }
            if let Some(end) = end_of_head(&received) {
                if (received.len() - end) as u64 >= requests.body_len {
                    break end;
                }
            }
            assert!(start.elapsed() < PATIENCE, "no response in {PATIENCE:?}");
        };
        stream.state = State::Idle;
        requests.check_head(&received[..end]);
        let body = received.split_off(end);
        let head = String::from_utf8(received).expect("a head in UTF-8");
        (head, body)
    }
}

// === impl Requests ===

impl Requests {
    /// Panics unless it is the head of a response as it should be.
    fn check_head(&self, head: &[u8]) {
        let head = str::from_utf8(head).expect("a head in UTF-8");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let found = name.eq_ignore_ascii_case("content-length");
            found.then(|| value.trim().parse().ok())?
        });
        let rest = head.strip_prefix("HTTP/1.1 ");
        assert!(
            rest.is_some_and(|rest| rest.starts_with(self.status)) && length == Some(self.body_len),
            "not the response asked for: {head}"
        );
    }
}

// === impl Stream ===

impl Stream {
    fn connect(address: &Address) -> Self {
        Self {
            socket: address.connect(),
            head: [0; MAX_HEAD],
            state: State::Idle,
        }
    }

    fn send(&mut self, request: &str) {
        let sent = send(&self.socket, request.as_bytes(), SendFlags::NOSIGNAL);
        // Nothing else is in the socket's buffer, and a request is short.
        assert_eq!(sent, Ok(request.len()), "send a request");
        self.state = State::Head(0);
    }

    /// One recv(2), of the head or the body of the response under way.
    fn receive(&mut self, requests: &Requests, sink: &mut Sink) -> Progress {
        let left = match self.state {
            State::Idle => return Progress::None,
            State::Head(filled) => {
                let free = &mut self.head[filled..];
                let Some(n) = receive_now(&self.socket, free, RecvFlags::empty()) else {
                    return Progress::None;
                };
                let received = &self.head[..filled + n];
                let Some(end) = end_of_head(received) else {
                    assert!(received.len() < MAX_HEAD, "a head without an end");
                    self.state = State::Head(received.len());
                    return Progress::Some;
                };
                requests.check_head(&received[..end]);
                requests.body_len.checked_sub((received.len() - end) as u64)
            }
            State::Body(left) => {
                let most = sink.buffer.len();
                let len = usize::try_from(left).map_or(most, |left| left.min(most));
                let into = &mut sink.buffer[..len];
                let Some(n) = receive_now(&self.socket, into, sink.flags) else {
                    return Progress::None;
                };
                left.checked_sub(n as u64)
            }
        };
        match left.expect("bytes behind the end of a response") {
            0 => {
                self.state = State::Idle;
                Progress::Complete
            }
            left => {
                self.state = State::Body(left);
                Progress::Some
            }
        }
    }
}

/// None: nothing has arrived.
fn receive_now(socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> Option<usize> {
    match recv(socket, buffer, flags | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => panic!("the proxy closed a connection"),
        Ok((_, n)) => Some(n),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(e) => panic!("receive a response: {e}"),
    }
}

fn end_of_head(received: &[u8]) -> Option<usize> {
    let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}
