//! A client that costs little: one thread, many keep-alive connections, bodies discarded.

use std::{
    collections::VecDeque,
    fmt,
    net::{SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
        Timespec,
    },
    io::Errno,
    net::{recv, send, RecvFlags, SendFlags},
};
use test_support::PATIENCE;

/// More than the head of any response here.
const MAX_HEAD: usize = 2 * 1024;

/// The most that one call discards in the kernel.
const DISCARD: usize = 1024 * 1024;

/// The most that one call reads into a buffer: little enough to stay in the processor's
/// cache.
const READ: usize = 64 * 1024;

/// The address of a server.
#[derive(Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The requests of a client, and the responses that have to come.
pub struct Requests {
    pub texts: Vec<Vec<u8>>,
    pub order: Order,
    pub status: &'static str,
    pub body_len: u64,
}

/// The order in which texts are sent, over and over.
pub enum Order {
    /// The number of the next one.
    InTurn(usize),
    /// The state of the generator.
    Random(u64),
}

/// One thread's connections to one server.
pub struct Client {
    /// The server's, for messages.
    name: &'static str,
    epoll: OwnedFd,
    streams: Vec<Stream>,
    events: Vec<Event>,
    sink: Sink,
    requests: Requests,
    /// True if it sleeps while nothing has arrived.
    sleeps: bool,
    expects_hits: bool,
    misses: u64,
    sent: u64,
}

/// The result of a turn.
pub struct Turn {
    pub elapsed: Duration,
    /// Of bodies, within that time.
    pub bytes: u64,
    /// With the responses that were under way at its end.
    pub total: Duration,
}

/// The destination of bodies.
struct Sink {
    flags: RecvFlags,
    /// With MSG_TRUNC never written to, so that it takes no memory either.
    buffer: Vec<u8>,
}

struct Stream {
    name: &'static str,
    socket: OwnedFd,
    head: [u8; MAX_HEAD],
    state: State,
    sent: Instant,
}

enum State {
    Idle,
    /// So many bytes of the head have arrived.
    Head(usize),
    /// So many bytes of the body have not.
    Body(u64),
}

/// The yield of one recv(2).
struct Received {
    body: u64,
    complete: bool,
    /// Nothing more is to be had now.
    drained: bool,
    hit: bool,
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
    /// A client that never sleeps, discards what it receives where the kernel does (tcp(7),
    /// MSG_TRUNC), and insists on hits.
    pub fn connect(
        name: &'static str,
        address: &Address,
        connections: usize,
        requests: Requests,
    ) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("make an epoll instance");
        let connect = |_| Stream::connect(name, address);
        let streams: Vec<_> = (0..connections).map(connect).collect();
        for (index, stream) in streams.iter().enumerate() {
            // Edge-triggered: what is read to its end costs no other call.
            let flags = EventFlags::IN | EventFlags::ET;
            let data = EventData::new_u64(index as u64);
            epoll::add(&epoll, &stream.socket, data, flags).expect("watch a connection");
        }
        Self {
            name,
            epoll,
            streams,
            events: Vec::with_capacity(connections),
            sink: match address {
                Address::Tcp(_) => Sink::discarding(),
                Address::Unix(_) => Sink::reading(),
            },
            requests,
            sleeps: false,
            expects_hits: true,
            misses: 0,
            sent: 0,
        }
    }

    /// The same client, which reads bodies into a buffer.
    pub fn ordinary(mut self) -> Self {
        self.sink = Sink::reading();
        self
    }

    /// The same client, which leaves the core to others while nothing has arrived.
    pub fn sleeping(mut self) -> Self {
        self.sleeps = true;
        self
    }

    /// The same client, which takes responses that are no hits.
    pub fn filling(mut self) -> Self {
        self.expects_hits = false;
        self.sleeps = true;
        self
    }

    /// The number of requests so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The number of responses that were no hits since the last call.
    pub fn take_misses(&mut self) -> u64 {
        std::mem::take(&mut self.misses)
    }

    /// Makes the next `count` requests, on all connections at once, and returns the time
    /// until the last byte of the last response.
    pub fn fetch(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        let mut unsent = count;
        let mut outstanding = 0;
        for index in 0..self.streams.len() {
            if unsent > 0 {
                self.send(index, start);
                unsent -= 1;
                outstanding += 1;
            }
        }
        let mut last = start;
        while outstanding > 0 {
            let timeout = if self.sleeps {
                PATIENCE
            } else {
                Duration::ZERO
            };
            let found = self.wait(timeout);
            if found == 0 {
                self.expect_progress(last);
                continue;
            }
            last = Instant::now();
            for event in 0..found {
                let index = self.events[event].data.u64() as usize;
                loop {
                    let received = self.receive(index);
                    if received.complete && unsent > 0 {
                        self.send(index, last);
                        unsent -= 1;
                    } else if received.complete {
                        outstanding -= 1;
                    }
                    if received.complete || received.drained {
                        break;
                    }
                }
            }
        }
        start.elapsed()
    }

    /// Keeps all connections busy for so long, then takes what is under way.
    /// Latencies, in nanoseconds, are of all responses that were asked for.
    pub fn turn(&mut self, duration: Duration, latencies: &mut Vec<u32>) -> Turn {
        let start = Instant::now();
        let mut bytes = 0;
        let mut outstanding = self.streams.len();
        for index in 0..outstanding {
            self.send(index, start);
        }
        let mut last = start;
        let mut elapsed = None;
        while outstanding > 0 {
            let found = self.wait(Duration::ZERO);
            let now = Instant::now();
            if elapsed.is_none() && now - start >= duration {
                elapsed = Some(now - start);
            }
            if found == 0 {
                self.expect_progress(last);
                continue;
            }
            last = now;
            for event in 0..found {
                let index = self.events[event].data.u64() as usize;
                loop {
                    let received = self.receive(index);
                    if elapsed.is_none() {
                        bytes += received.body;
                    }
                    if received.complete {
                        let now = Instant::now();
                        let latency = (now - self.streams[index].sent).as_nanos();
                        latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
                        if elapsed.is_some() {
                            outstanding -= 1;
                        } else {
                            self.send(index, now);
                        }
                        break;
                    }
                    if received.drained {
                        break;
                    }
                }
            }
        }
        Turn {
            elapsed: elapsed.unwrap_or_else(|| start.elapsed()),
            bytes,
            total: start.elapsed(),
        }
    }

    /// Asks for so many bytes a second, as far as connections are idle when a request is due,
    /// and sleeps in between.
    pub fn paced_turn(&mut self, duration: Duration, rate: u64) -> Turn {
        let interval = Duration::from_secs_f64(self.requests.body_len as f64 / rate as f64);
        let start = Instant::now();
        let mut due = start;
        let mut bytes = 0;
        let mut idle: VecDeque<usize> = (0..self.streams.len()).collect();
        let mut last = start;
        loop {
            let now = Instant::now();
            let over = now - start >= duration;
            if over && idle.len() == self.streams.len() {
                break;
            }
            while !over && due <= now {
                let Some(index) = idle.pop_front() else { break };
                self.send(index, now);
                due += interval;
            }
            let timeout = if over || idle.is_empty() {
                PATIENCE
            } else {
                due.saturating_duration_since(now)
            };
            let found = self.wait(timeout);
            if found > 0 {
                last = Instant::now();
            }
            self.expect_progress(last);
            for event in 0..found {
                let index = self.events[event].data.u64() as usize;
                loop {
                    let received = self.receive(index);
                    bytes += received.body;
                    if received.complete {
                        idle.push_back(index);
                    }
                    if received.complete || received.drained {
                        break;
                    }
                }
            }
        }
        Turn {
            elapsed: start.elapsed(),
            bytes,
            total: start.elapsed(),
        }
    }

    /// The head and the body of the response to the request of this number, on a connection
    /// of its own: what the others discard is looked at.
    pub fn look(&mut self, address: &Address, number: usize) -> (String, Vec<u8>) {
        self.sent += 1;
        let mut stream = Stream::connect(self.name, address);
        stream.send(&self.requests.texts[number], Instant::now());
        let mut received = Vec::new();
        let mut piece = vec![0; READ];
        let start = Instant::now();
        let end = loop {
            match stream.receive_now(&mut piece, RecvFlags::empty()) {
                Some(n) => received.extend_from_slice(&piece[..n]),
                None => thread::yield_now(),
            }
            if let Some(end) = end_of_head(&received) {
                if (received.len() - end) as u64 >= self.requests.body_len {
                    break end;
                }
            }
            self.expect_progress(start);
        };
        let hit = self.requests.check_head(self.name, &received[..end]);
        let body = received.split_off(end);
        let head = String::from_utf8(received).expect("a head in UTF-8");
        assert!(hit, "{}: no hit: {head}", self.name);
        assert_eq!(body.len() as u64, self.requests.body_len, "{}", self.name);
        (head, body)
    }

    fn send(&mut self, index: usize, now: Instant) {
        self.streams[index].send(self.requests.next(), now);
        self.sent += 1;
    }

    fn expect_progress(&self, last: Instant) {
        let name = self.name;
        assert!(
            last.elapsed() < PATIENCE,
            "{name}: nothing came in {PATIENCE:?}"
        );
    }

    fn wait(&mut self, timeout: Duration) -> usize {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        self.events.clear();
        let events = spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, events, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => self.events.len(),
            Err(e) => panic!("wait for events: {e}"),
        }
    }

    fn receive(&mut self, index: usize) -> Received {
        let stream = &mut self.streams[index];
        let received = stream.receive(&self.requests, &mut self.sink);
        if !received.hit {
            self.misses += 1;
            assert!(
                !self.expects_hits,
                "{} answered without X-Cache: HIT:\n{}",
                self.name,
                String::from_utf8_lossy(&stream.head)
            );
        }
        received
    }
}

// === impl Sink ===

impl Sink {
    fn discarding() -> Self {
        Self {
            flags: RecvFlags::TRUNC,
            buffer: vec![0; DISCARD],
        }
    }

    fn reading() -> Self {
        Self {
            flags: RecvFlags::empty(),
            buffer: vec![0; READ],
        }
    }
}

// === impl Order ===

impl Order {
    pub fn in_turn() -> Self {
        Self::InTurn(0)
    }

    /// The same one in every run.
    pub fn random() -> Self {
        Self::Random(0x9E37_79B9_7F4A_7C15)
    }

    fn next(&mut self) -> usize {
        match self {
            Self::InTurn(next) => {
                *next += 1;
                *next - 1
            }
            Self::Random(state) => {
                // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical
                // Software 8(14), 2003; the shifts 13, 7, 17.
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                *state as usize
            }
        }
    }
}

// === impl Requests ===

impl Requests {
    fn next(&mut self) -> &[u8] {
        let number = self.order.next();
        &self.texts[number % self.texts.len()]
    }

    /// Panics unless it is the head of a response as it should be. True: it says that it is
    /// a hit.
    fn check_head(&self, name: &str, head: &[u8]) -> bool {
        let text = str::from_utf8(head).expect("a head in UTF-8");
        let mut length = None;
        let mut hit = false;
        for line in text.split("\r\n") {
            let Some((field, value)) = line.split_once(':') else {
                continue;
            };
            if field.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            } else if field.eq_ignore_ascii_case("x-cache") {
                hit = value.trim() == "HIT";
            }
        }
        let rest = text.strip_prefix("HTTP/1.1 ");
        assert!(
            rest.is_some_and(|rest| rest.starts_with(self.status)) && length == Some(self.body_len),
            "{name}: not the response asked for: {text}"
        );
        hit
    }
}

// === impl Stream ===

impl Stream {
    fn connect(name: &'static str, address: &Address) -> Self {
        Self {
            name,
            socket: address.connect(),
            head: [0; MAX_HEAD],
            state: State::Idle,
            sent: Instant::now(),
        }
    }

    fn send(&mut self, request: &[u8], now: Instant) {
        let sent = send(&self.socket, request, SendFlags::NOSIGNAL);
        // Nothing else is in the socket's buffer, and a request is short.
        assert_eq!(sent, Ok(request.len()), "send a request to {}", self.name);
        self.state = State::Head(0);
        self.sent = now;
    }

    /// One recv(2), of the head or the body of the response under way.
    fn receive(&mut self, requests: &Requests, sink: &mut Sink) -> Received {
        let mut hit = true;
        let (asked, n, of_body, left) = match self.state {
            State::Idle => panic!("{} sent what nobody asked for", self.name),
            State::Head(filled) => {
                let free = &mut self.head[filled..];
                let asked = free.len();
                let received = receive_now(self.name, &self.socket, free, RecvFlags::empty());
                let Some(n) = received else {
                    return Received::NOTHING;
                };
                let received = &self.head[..filled + n];
                let Some(end) = end_of_head(received) else {
                    assert!(
                        received.len() < MAX_HEAD,
                        "{}: a head without an end",
                        self.name
                    );
                    self.state = State::Head(received.len());
                    return Received {
                        drained: n < asked,
                        ..Received::NOTHING
                    };
                };
                hit = requests.check_head(self.name, &received[..end]);
                let of_body = (received.len() - end) as u64;
                (asked, n, of_body, requests.body_len.checked_sub(of_body))
            }
            State::Body(left) => {
                let most = sink.buffer.len();
                let asked = usize::try_from(left).map_or(most, |left| left.min(most));
                let Some(n) = self.receive_now(&mut sink.buffer[..asked], sink.flags) else {
                    return Received::NOTHING;
                };
                (asked, n, n as u64, left.checked_sub(n as u64))
            }
        };
        let left = left.unwrap_or_else(|| panic!("{} sent more than a body", self.name));
        self.state = match left {
            0 => State::Idle,
            left => State::Body(left),
        };
        Received {
            body: of_body,
            complete: left == 0,
            // epoll(7), "Questions and answers", 9.
            drained: n < asked,
            hit,
        }
    }

    /// None: nothing has arrived.
    fn receive_now(&self, buffer: &mut [u8], flags: RecvFlags) -> Option<usize> {
        receive_now(self.name, &self.socket, buffer, flags)
    }
}

/// None: nothing has arrived.
fn receive_now(name: &str, socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> Option<usize> {
    match recv(socket, buffer, flags | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => panic!("{name} closed a connection"),
        Ok((_, n)) => Some(n),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(e) => panic!("receive from {name}: {e}"),
    }
}

fn end_of_head(received: &[u8]) -> Option<usize> {
    let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

// === impl Received ===

impl Received {
    const NOTHING: Self = Self {
        body: 0,
        complete: false,
        drained: true,
        hit: true,
    };
}
