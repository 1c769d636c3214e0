//! The client: one thread, many keep-alive connections.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
        Timespec,
    },
    fd::OwnedFd,
    io::Errno,
    net::{recv, RecvFlags},
};
use test_support::PATIENCE;

use crate::objects::{self, Objects};

/// More than the head of any response here.
const MAX_HEAD: usize = 1024;

/// The most that one call discards.
const DISCARD: usize = 1024 * 1024;

/// What an ordinary client reads at once.
const READ: usize = 64 * 1024;

/// Connections that fill a cache.
const FILLING: usize = 16;

/// How often all objects are asked for until all are hits.
const FILL_ATTEMPTS: usize = 20;

/// Connections to one peer, which serves objects of one size.
pub struct Client {
    epoll: OwnedFd,
    streams: Vec<Stream>,
    events: Vec<Event>,
    requests: Requests,
    objects: Objects,
    /// Never written to where bodies are discarded, so that it takes no memory.
    body: Vec<u8>,
    discards: bool,
    expects_hits: bool,
    misses: u64,
}

/// What came of a turn.
pub struct Turn {
    pub elapsed: Duration,
    /// Of bodies, within that time.
    pub bytes: u64,
    /// With the responses that were under way at its end.
    pub total: Duration,
}

struct Stream {
    tcp: TcpStream,
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

/// What one recv(2) brought.
struct Received {
    body: u64,
    complete: bool,
    /// Nothing more is to be had now.
    drained: bool,
    hit: bool,
}

struct Requests {
    all: Vec<Vec<u8>>,
    state: u64,
    in_order: Option<usize>,
}

// === impl Client ===

impl Client {
    /// One that discards what it receives, and insists on hits.
    pub fn connect(addr: SocketAddr, objects: Objects, connections: usize) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("make an epoll instance");
        let streams: Vec<_> = (0..connections).map(|_| Stream::connect(addr)).collect();
        for (index, stream) in streams.iter().enumerate() {
            // Edge-triggered: what is read to its end costs no other call.
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&epoll, &stream.tcp, EventData::new_u64(index as u64), flags)
                .expect("watch a connection");
        }
        Self {
            epoll,
            streams,
            events: Vec::with_capacity(connections),
            requests: Requests::new(objects),
            objects,
            body: vec![0; DISCARD],
            discards: true,
            expects_hits: true,
            misses: 0,
        }
    }

    /// One that reads bodies into a buffer.
    pub fn connect_ordinary(addr: SocketAddr, objects: Objects, connections: usize) -> Self {
        Self {
            body: vec![0; READ],
            discards: false,
            ..Self::connect(addr, objects, connections)
        }
    }

    /// Asks for all objects until all are hits, and checks the bytes of some.
    pub fn fill(name: &str, addr: SocketAddr, objects: Objects) {
        let mut client = Self::connect(addr, objects, FILLING);
        client.expects_hits = false;
        for attempt in 0.. {
            client.misses = 0;
            client.fetch_all();
            if client.misses == 0 {
                break;
            }
            assert!(
                attempt < FILL_ATTEMPTS,
                "{name}: {} of {} objects of {} are not stored",
                client.misses,
                objects.count,
                objects.label
            );
            // The proxy commits entries a little later than it sends them.
            if attempt > 0 {
                thread::sleep(Duration::from_millis(250));
            }
        }
        for index in [0, objects.count / 2, objects.count - 1] {
            check_bytes(name, addr, objects.len, index);
        }
    }

    /// Keeps all connections busy for so long, then takes what is under way.
    /// Latencies, in nanoseconds, are of all responses that were asked for.
    pub fn turn(&mut self, name: &str, duration: Duration, latencies: &mut Vec<u32>) -> Turn {
        let start = Instant::now();
        let mut bytes = 0;
        let mut outstanding = self.streams.len();
        for stream in &mut self.streams {
            stream.send(self.requests.next(), start);
        }
        let mut last = start;
        let mut elapsed = None;
        while outstanding > 0 {
            let found = self.wait(Some(Duration::ZERO));
            let now = Instant::now();
            if elapsed.is_none() && now - start >= duration {
                elapsed = Some(now - start);
            }
            if found == 0 {
                assert!(
                    now - last < PATIENCE,
                    "{name}: nothing came in {PATIENCE:?}"
                );
                continue;
            }
            last = now;
            for event in 0..found {
                let index = self.events[event].data.u64() as usize;
                loop {
                    let received = self.receive(name, index);
                    if elapsed.is_none() {
                        bytes += received.body;
                    }
                    if received.complete {
                        let now = Instant::now();
                        let stream = &mut self.streams[index];
                        let latency = (now - stream.sent).as_nanos();
                        latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
                        if elapsed.is_some() {
                            outstanding -= 1;
                        } else {
                            stream.send(self.requests.next(), now);
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

    /// Asks for so many bytes a second, as far as connections are idle when a
    /// request is due, and sleeps in between.
    pub fn paced_turn(&mut self, name: &str, duration: Duration, rate: u64) -> Turn {
        let interval = Duration::from_secs_f64(self.objects.len as f64 / rate as f64);
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
                self.streams[index].send(self.requests.next(), now);
                due += interval;
            }
            let timeout = if over || idle.is_empty() {
                PATIENCE
            } else {
                due.saturating_duration_since(now)
            };
            let found = self.wait(Some(timeout));
            if found > 0 {
                last = Instant::now();
            }
            assert!(
                last.elapsed() < PATIENCE,
                "{name}: nothing came in {PATIENCE:?}"
            );
            for event in 0..found {
                let index = self.events[event].data.u64() as usize;
                loop {
                    let received = self.receive(name, index);
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

    /// Each object once, in order.
    fn fetch_all(&mut self) {
        self.requests.in_order = Some(0);
        let mut unsent = self.objects.count;
        let mut outstanding = 0;
        for stream in &mut self.streams {
            if unsent > 0 {
                stream.send(self.requests.next(), Instant::now());
                unsent -= 1;
                outstanding += 1;
            }
        }
        while outstanding > 0 {
            let found = self.wait(Some(PATIENCE));
            assert!(found > 0, "nothing came in {PATIENCE:?}");
            for event in 0..found {
                let index = self.events[event].data.u64() as usize;
                loop {
                    let received = self.receive("filling a cache", index);
                    if received.complete && unsent > 0 {
                        self.streams[index].send(self.requests.next(), Instant::now());
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
    }

    fn wait(&mut self, timeout: Option<Duration>) -> usize {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => self.events.len(),
            Err(e) => panic!("wait for events: {e}"),
        }
    }

    fn receive(&mut self, name: &str, index: usize) -> Received {
        let stream = &mut self.streams[index];
        let received = stream.receive(name, self.objects.len, &mut self.body, self.discards);
        if !received.hit {
            self.misses += 1;
            assert!(
                !self.expects_hits,
                "{name} answered without X-Cache: HIT:\n{}",
                String::from_utf8_lossy(&stream.head)
            );
        }
        received
    }
}

/// Panics unless a response of a connection of its own has the right bytes.
fn check_bytes(name: &str, addr: SocketAddr, len: u64, index: u64) {
    let mut stream = Stream::connect(addr);
    stream.tcp.set_nonblocking(false).expect("block");
    let timeout = Some(PATIENCE);
    stream.tcp.set_read_timeout(timeout).expect("set a timeout");
    let request = request(len, index);
    stream.tcp.write_all(&request).expect("send a request");
    let mut bytes = Vec::new();
    let mut chunk = vec![0; READ];
    let head_len = loop {
        if let Some(end) = end_of_head(&bytes) {
            break end;
        }
        let n = stream.tcp.read(&mut chunk).expect("receive a head");
        assert!(n > 0, "{name} closed a connection");
        bytes.extend_from_slice(&chunk[..n]);
    };
    assert!(check_head(name, &bytes[..head_len], len), "{name}: no hit");
    let mut body = bytes.split_off(head_len);
    while (body.len() as u64) < len {
        let n = stream.tcp.read(&mut chunk).expect("receive a body");
        assert!(n > 0, "{name} cut a body short");
        body.extend_from_slice(&chunk[..n]);
    }
    assert_eq!(body.len() as u64, len, "{name} sent more than a body");
    objects::pattern(len, index).check(0, &body);
}

// === impl Stream ===

impl Stream {
    fn connect(addr: SocketAddr) -> Self {
        let tcp = TcpStream::connect(addr).unwrap_or_else(|e| panic!("connect to {addr}: {e}"));
        tcp.set_nodelay(true).expect("set TCP_NODELAY");
        tcp.set_nonblocking(true).expect("set O_NONBLOCK");
        Self {
            tcp,
            head: [0; MAX_HEAD],
            state: State::Idle,
            sent: Instant::now(),
        }
    }

    fn send(&mut self, request: &[u8], now: Instant) {
        self.state = State::Head(0);
        self.sent = now;
        // Nothing else is unsent on this connection, so it has room.
        self.tcp.write_all(request).expect("send a request");
    }

    /// One recv(2), of the head or the body of the response under way.
    fn receive(&mut self, name: &str, len: u64, body: &mut [u8], discards: bool) -> Received {
        let mut hit = true;
        let (asked, n, left) = match self.state {
            State::Idle => panic!("{name} sent what nobody asked for"),
            State::Head(filled) => {
                let free = &mut self.head[filled..];
                let asked = free.len();
                let Some(n) = receive_now(name, &self.tcp, free, RecvFlags::empty()) else {
                    return Received::NOTHING;
                };
                let received = &self.head[..filled + n];
                let Some(end) = end_of_head(received) else {
                    assert!(received.len() < MAX_HEAD, "{name}: a head without an end");
                    self.state = State::Head(received.len());
                    return Received {
                        drained: n < asked,
                        ..Received::NOTHING
                    };
                };
                hit = check_head(name, &received[..end], len);
                let of_body = (received.len() - end) as u64;
                let left = len.checked_sub(of_body);
                (asked, n, (of_body, left))
            }
            State::Body(left) => {
                let asked = usize::try_from(left).map_or(body.len(), |l| l.min(body.len()));
                let flags = if discards {
                    RecvFlags::TRUNC
                } else {
                    RecvFlags::empty()
                };
                let Some(n) = receive_now(name, &self.tcp, &mut body[..asked], flags) else {
                    return Received::NOTHING;
                };
                (asked, n, (n as u64, left.checked_sub(n as u64)))
            }
        };
        let (of_body, left) = left;
        let left = left.unwrap_or_else(|| panic!("{name} sent more than a body"));
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

// === impl Requests ===

impl Requests {
    fn new(objects: Objects) -> Self {
        Self {
            all: (0..objects.count)
                .map(|index| request(objects.len, index))
                .collect(),
            state: 0x9E37_79B9_7F4A_7C15,
            in_order: None,
        }
    }

    fn next(&mut self) -> &[u8] {
        let index = match &mut self.in_order {
            Some(next) => {
                *next += 1;
                *next - 1
            }
            None => {
                // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical
                // Software 8(14), 2003; the shifts 13, 7, 17.
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.state as usize
            }
        };
        &self.all[index % self.all.len()]
    }
}

fn request(len: u64, index: u64) -> Vec<u8> {
    let path = objects::path(len, index);
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes()
}

/// None: nothing has arrived.
fn receive_now(name: &str, tcp: &TcpStream, buffer: &mut [u8], flags: RecvFlags) -> Option<usize> {
    match recv(tcp, buffer, flags | RecvFlags::DONTWAIT) {
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

/// Panics unless it is the head of a 200 with a body of this length. True: it
/// says that it is a hit.
fn check_head(name: &str, head: &[u8], body_len: u64) -> bool {
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
    assert!(
        text.starts_with("HTTP/1.1 200 ") && length == Some(body_len),
        "{name}: not the response asked for: {text}"
    );
    hit
}
