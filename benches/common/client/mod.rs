//! A client that costs little: one thread, many keep-alive connections, bodies discarded.

mod http1;
pub mod http2;
mod https;
pub mod tls;
#[path = "../zipf.rs"]
mod zipf;

use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::Arc,
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
    net::{recv, RecvFlags},
};
use rustls::ClientConfig;
use test_support::PATIENCE;

use self::{http1::Http1, http2::Http2, https::Https, tls::Records, zipf::Zipf};

/// More than the head of any response here.
const MAX_HEAD: usize = 2 * 1024;

/// The most that one call discards in the kernel.
const DISCARD: usize = 1024 * 1024;

/// The most that one call reads into a buffer: little enough to stay in the processor's
/// cache.
const READ: usize = 64 * 1024;

/// The address of a server, and what is spoken there.
#[derive(Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// HTTP/1.1 over TLS.
    Tls(SocketAddr, Arc<ClientConfig>),
    /// With so many streams a connection.
    Http2(SocketAddr, Arc<ClientConfig>, usize),
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
    /// The numbers, drawn before the race, and the place of the next one.
    Drawn(Vec<u32>, usize),
}

/// The number of requests that are drawn before the race.
const DRAWN: usize = 1 << 20;

/// One thread's connections to one server.
pub struct Client {
    /// The server's, for messages.
    name: &'static str,
    epoll: OwnedFd,
    connections: Vec<Box<dyn Connection>>,
    /// The requests under way on each.
    streams: usize,
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
    pub total_bytes: u64,
}

/// The destination of bodies.
struct Sink {
    flags: RecvFlags,
    /// With MSG_TRUNC never written to, so that it takes no memory either.
    buffer: Vec<u8>,
}

/// A connection, whatever is spoken on it.
trait Connection {
    fn socket(&self) -> &OwnedFd;

    /// Makes a request, which may stay here until [`Self::flush`].
    fn ask(&mut self, request: &[u8], now: Instant);

    fn flush(&mut self) {}

    /// Receives until a response is complete, or nothing more is to be had.
    fn receive(&mut self, requests: &Requests, sink: &mut Sink) -> Received;

    /// From now on keeps bodies, and checks all that is encrypted.
    fn begin_look(&mut self);

    /// Discards again. Returns the bodies since the look began.
    fn end_look(&mut self) -> Vec<u8>;
}

/// The yield of a call.
struct Received {
    body: u64,
    /// The time at which the response was asked for that is complete.
    complete: Option<Instant>,
    /// Nothing more is to be had now.
    drained: bool,
    /// False: the head of a response that is no hit has come.
    hit: bool,
}

// === impl Address ===

impl Address {
    fn connect(&self, name: &'static str, body_len: u64) -> Box<dyn Connection> {
        match self {
            Self::Tcp(addr) => {
                let tcp = TcpStream::connect(addr)
                    .unwrap_or_else(|e| panic!("connect to {name} at {addr}: {e}"));
                tcp.set_nodelay(true).expect("set TCP_NODELAY");
                Box::new(Http1::new(name, tcp.into()))
            }
            Self::Unix(path) => {
                let unix = UnixStream::connect(path)
                    .unwrap_or_else(|e| panic!("connect to {}: {e}", path.display()));
                Box::new(Http1::new(name, unix.into()))
            }
            Self::Tls(addr, config) => {
                Box::new(Https::new(Records::connect(name, *addr, config, body_len)))
            }
            Self::Http2(addr, config, _) => {
                Box::new(Http2::new(Records::connect(name, *addr, config, body_len)))
            }
        }
    }

    /// The requests that a connection has under way.
    fn streams(&self) -> usize {
        match self {
            Self::Http2(_, _, streams) => *streams,
            _ => 1,
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
        let connect = |_| address.connect(name, requests.body_len);
        let connections: Vec<_> = (0..connections).map(connect).collect();
        for (index, connection) in connections.iter().enumerate() {
            // Edge-triggered: what is read to its end costs no other call.
            let flags = EventFlags::IN | EventFlags::ET;
            let data = EventData::new_u64(index as u64);
            epoll::add(&epoll, connection.socket(), data, flags).expect("watch a connection");
        }
        Self {
            name,
            epoll,
            events: Vec::with_capacity(connections.len()),
            connections,
            streams: address.streams(),
            sink: match address {
                Address::Unix(_) => Sink::reading(),
                _ => Sink::discarding(),
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
        for index in self.slots() {
            if unsent > 0 {
                self.ask(index, start);
                unsent -= 1;
                outstanding += 1;
            }
        }
        self.flush_all();
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
                    if received.complete.is_some() && unsent > 0 {
                        self.ask(index, last);
                        unsent -= 1;
                    } else if received.complete.is_some() {
                        outstanding -= 1;
                    }
                    if received.drained {
                        break;
                    }
                }
                self.connections[index].flush();
            }
        }
        start.elapsed()
    }

    /// Keeps all connections busy for so long, then takes what is under way.
    /// Latencies, in nanoseconds, are of all responses that were asked for.
    pub fn turn(&mut self, duration: Duration, latencies: &mut Vec<u32>) -> Turn {
        let start = Instant::now();
        let mut bytes = 0;
        let mut total_bytes = 0;
        let mut outstanding = 0;
        for index in self.slots() {
            self.ask(index, start);
            outstanding += 1;
        }
        self.flush_all();
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
                    total_bytes += received.body;
                    if elapsed.is_none() {
                        bytes += received.body;
                    }
                    if let Some(asked) = received.complete {
                        let now = Instant::now();
                        let latency = (now - asked).as_nanos();
                        latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
                        if elapsed.is_some() {
                            outstanding -= 1;
                        } else {
                            self.ask(index, now);
                        }
                    }
                    if received.drained {
                        break;
                    }
                }
                self.connections[index].flush();
            }
        }
        Turn {
            elapsed: elapsed.unwrap_or_else(|| start.elapsed()),
            bytes,
            total: start.elapsed(),
            total_bytes,
        }
    }

    /// Asks for so many bytes a second, as far as connections are idle when a request is due,
    /// and sleeps in between.
    pub fn paced_turn(&mut self, duration: Duration, rate: u64) -> Turn {
        let interval = Duration::from_secs_f64(self.requests.body_len as f64 / rate as f64);
        let start = Instant::now();
        let mut due = start;
        let mut bytes = 0;
        let mut idle: VecDeque<usize> = self.slots().collect();
        let slots = idle.len();
        let mut last = start;
        loop {
            let now = Instant::now();
            let over = now - start >= duration;
            if over && idle.len() == slots {
                break;
            }
            while !over && due <= now {
                let Some(index) = idle.pop_front() else { break };
                self.ask(index, now);
                self.connections[index].flush();
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
                    if received.complete.is_some() {
                        idle.push_back(index);
                    }
                    if received.drained {
                        break;
                    }
                }
                self.connections[index].flush();
            }
        }
        Turn {
            elapsed: start.elapsed(),
            bytes,
            total: start.elapsed(),
            total_bytes: bytes,
        }
    }

    /// The body of the response to the request of this number, on this connection, where
    /// nothing else is under way: what else is discarded is looked at.
    pub fn look(&mut self, index: usize, number: usize) -> Vec<u8> {
        self.sent += 1;
        let connection = &mut self.connections[index];
        connection.begin_look();
        let start = Instant::now();
        connection.ask(&self.requests.texts[number], start);
        connection.flush();
        loop {
            let received = self.receive(index);
            assert!(received.hit, "{}: no hit", self.name);
            if received.complete.is_some() {
                break;
            }
            if received.drained {
                thread::yield_now();
            }
            self.expect_progress(start);
        }
        let body = self.connections[index].end_look();
        assert_eq!(body.len() as u64, self.requests.body_len, "{}", self.name);
        body
    }

    /// The index of a connection for each request that may be under way.
    fn slots(&self) -> impl Iterator<Item = usize> {
        let connections = self.connections.len();
        (0..self.streams).flat_map(move |_| 0..connections)
    }

    fn ask(&mut self, index: usize, now: Instant) {
        self.connections[index].ask(self.requests.next(), now);
        self.sent += 1;
    }

    fn flush_all(&mut self) {
        for connection in &mut self.connections {
            connection.flush();
        }
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
        let received = self.connections[index].receive(&self.requests, &mut self.sink);
        if !received.hit {
            self.misses += 1;
            assert!(
                !self.expects_hits,
                "{} answered without X-Cache: HIT",
                self.name
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

    /// Numbers below `count` by Zipf's law: the number n is as frequent as (n + 1)^-exponent. The same
    /// ones in every run.
    pub fn zipf(count: u64, exponent: f64) -> Self {
        let zipf = Zipf::new(count as usize, exponent);
        let mut random = Self::random();
        let drawn = (0..DRAWN).map(|_| {
            let share = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
            zipf.rank(share) as u32
        });
        Self::Drawn(drawn.collect(), 0)
    }

    fn next(&mut self) -> usize {
        match self {
            Self::InTurn(next) => {
                *next += 1;
                *next - 1
            }
            Self::Drawn(numbers, next) => {
                let number = numbers[*next];
                *next = (*next + 1) % numbers.len();
                number as usize
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
        complete: None,
        drained: true,
        hit: true,
    };
}
