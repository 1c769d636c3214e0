//! Clients of all kinds, who check every byte that they get.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use test_support::{Connection, Headers, Incoming, Random, Transfer};

use crate::{
    objects::{Objects, Version, IN_BLOCKS},
    Shared,
};

/// A slow client's receive buffer, in bytes.
const SMALL_BUFFER: usize = 4096;

/// The speed of a slow client, in bytes a second.
const SLOW: f64 = 3e6;

/// The most bytes of a part of an object in blocks, less one.
const LONGEST_PART: u64 = 3 << 20;

/// The pause of a client that does not find the proxy.
const RETRY: Duration = Duration::from_millis(20);

/// The outcomes of the requests.
#[derive(Default)]
pub struct Counts {
    pub complete: AtomicU64,
    pub bytes: AtomicU64,
    pub hits: AtomicU64,
    /// Hits some of whose blocks came from the origin.
    pub partial: AtomicU64,
    pub ranges: AtomicU64,
    pub not_modified: AtomicU64,
    pub unsatisfiable: AtomicU64,
    /// The client had enough.
    pub left: AtomicU64,
    /// The connection ended before the response.
    pub broken: AtomicU64,
    /// The proxy answered that it could not.
    pub errors: AtomicU64,
    /// The connection ended between two requests.
    pub reconnected: AtomicU64,
    pub unreachable: AtomicU64,
}

/// One client after the other, on a thread of its own.
pub struct Clients<'s> {
    shared: &'s Shared,
    random: Random,
    kept: Option<(SocketAddr, Connection)>,
    /// The version in the last response about an object.
    seen: Vec<Option<Version>>,
}

/// A request and how its response is read.
#[derive(Debug)]
struct Asked {
    object: usize,
    head: bool,
    range: Option<Range>,
    if_range: Option<Version>,
    if_none_match: Option<Version>,
    pace: Pace,
}

/// RFC 9110, section 14.1.2.
#[derive(Clone, Copy, Debug)]
enum Range {
    Within(u64, u64),
    From(u64),
    Last(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Fast,
    Slow,
    /// Leaves after so many bytes; true: with a reset.
    Leave(u64, bool),
}

/// The response that is expected.
enum Expected {
    Body(Body),
    NotModified,
    Unsatisfiable,
    Error,
}

/// Bytes of a version.
struct Body {
    version: Version,
    offset: u64,
    len: u64,
}

/// The fate of a request; without an answer, the time it was sent, and what came
/// instead.
enum Answer {
    Given,
    Missing(Instant, String),
}

/// The fate of the connection.
enum Then {
    Keep,
    Close,
    Reset,
}

// === impl Clients ===

impl<'s> Clients<'s> {
    pub fn new(shared: &'s Shared, random: Random) -> Self {
        Self {
            shared,
            random,
            kept: None,
            seen: vec![None; shared.objects.count()],
        }
    }

    /// Asks until it is told to stop; the error is a wrong response.
    pub fn run(mut self) -> Result<(), String> {
        while !self.shared.stops() {
            let asked = self.choose();
            self.ask(&asked)?;
        }
        Ok(())
    }

    /// Asks for each object once and wants all of it.
    pub fn run_once(mut self) -> Result<(), String> {
        let counts = &self.shared.counts;
        for object in 0..self.shared.objects.count() {
            let before = counts.complete.load(Relaxed);
            self.ask(&Asked::whole(object))?;
            if counts.complete.load(Relaxed) == before {
                return Err(format!("object {object} cannot be had"));
            }
        }
        Ok(())
    }

    fn choose(&mut self) -> Asked {
        let random = &mut self.random;
        let count = self.shared.objects.count() as u64;
        // The lower numbers, which are the smaller objects, more often.
        let object = random.of(0..count) * random.of(0..count) / count;
        let mut asked = Asked::whole(object as usize);
        if random.percent(10) {
            asked.object = self.shared.objects.in_blocks();
            let first = random.of(0..IN_BLOCKS);
            asked.range = Some(Range::Within(first, first + random.of(0..LONGEST_PART)));
            return asked;
        }
        let len = self.shared.objects.current(asked.object).len;
        let seen = self.seen[asked.object];
        match random.of(0..100) {
            0..5 => asked.head = true,
            5..30 => {
                let near = len + 10;
                let (a, b) = (random.of(0..near), random.of(0..near));
                asked.range = Some(match random.of(0..3) {
                    0 => Range::Within(a.min(b), a.max(b)),
                    1 => Range::From(a),
                    _ => Range::Last(1 + a),
                });
                asked.if_range = seen.filter(|_| random.percent(20));
            }
            30..45 => asked.if_none_match = seen,
            _ => {}
        }
        match random.of(0..100) {
            0..10 => asked.pace = Pace::Slow,
            10..20 => asked.pace = Pace::Leave(random.of(0..len + 1), random.percent(50)),
            _ => {}
        }
        asked
    }

    /// The connection of the last request, at times.
    fn reconnect(&mut self, pace: Pace) -> Option<(SocketAddr, Connection)> {
        let address = *self.shared.address.read().unwrap();
        let kept = self.kept.take()?;
        let is_good = address == Some(kept.0) && pace != Pace::Slow;
        (is_good && self.random.percent(90)).then_some(kept)
    }

    fn connect(&self, pace: Pace) -> Option<(SocketAddr, Connection)> {
        // Held while connecting: nobody else gets the address meanwhile.
        let address = self.shared.address.read().unwrap();
        let address = (*address)?;
        let connect = || -> io::Result<Connection> {
            match pace {
                Pace::Slow => Connection::try_with_receive_buffer(address, SMALL_BUFFER),
                _ => Connection::try_open(address),
            }
        };
        Some((address, connect().ok()?))
    }

    fn ask(&mut self, asked: &Asked) -> Result<(), String> {
        let counts = &self.shared.counts;
        if let Some(kept) = self.reconnect(asked.pace) {
            match self.ask_on(kept, asked)? {
                Answer::Given => return Ok(()),
                // A server may close a connection between two requests, and has
                // not heard the second one then (RFC 9112, section 9.3.1).
                Answer::Missing(..) => counts.reconnected.fetch_add(1, Relaxed),
            };
        }
        let Some(fresh) = self.connect(asked.pace) else {
            counts.unreachable.fetch_add(1, Relaxed);
            thread::sleep(RETRY);
            return Ok(());
        };
        match self.ask_on(fresh, asked)? {
            Answer::Given => Ok(()),
            Answer::Missing(asked_at, why) => self.broken(asked, asked_at, &why),
        }
    }

    /// The error is a wrong response.
    fn ask_on(
        &mut self,
        (address, mut connection): (SocketAddr, Connection),
        asked: &Asked,
    ) -> Result<Answer, String> {
        let asked_at = Instant::now();
        let incoming = match asked.send(&mut connection) {
            Ok(incoming) => incoming,
            Err(why) => return Ok(Answer::Missing(asked_at, why)),
        };
        let head = format!("{} {}", incoming.status, incoming.headers);
        match self.receive(asked, asked_at, incoming) {
            Err(wrong) => return Err(format!("{asked:?}: {wrong}\n{head}")),
            Ok(Then::Close) => {}
            Ok(Then::Reset) => connection.abort(),
            Ok(Then::Keep) => {
                if connection.is_reusable() {
                    self.kept = Some((address, connection));
                }
            }
        }
        Ok(Answer::Given)
    }

    fn receive(
        &mut self,
        asked: &Asked,
        asked_at: Instant,
        mut incoming: Incoming<'_>,
    ) -> Result<Then, String> {
        let shared = self.shared;
        let counts = &shared.counts;
        let headers = &incoming.headers;
        let expected = self.expect(asked, asked_at, incoming.status, headers)?;
        match headers.get("x-cache") {
            Some("HIT") => counts.hits.fetch_add(1, Relaxed),
            Some("PARTIAL") => counts.partial.fetch_add(1, Relaxed),
            _ => 0,
        };
        let body = match &expected {
            Expected::Body(body) if !asked.head => Some(body),
            _ => None,
        };
        if let (Pace::Leave(len, reset), Some(body)) = (asked.pace, body) {
            let bytes = incoming.read_some(len as usize);
            counts.bytes.fetch_add(bytes.len() as u64, Relaxed);
            counts.left.fetch_add(1, Relaxed);
            let wrong = body.difference(0, &bytes);
            let then = if reset { Then::Reset } else { Then::Close };
            return wrong.map_or(Ok(then), Err);
        }

        let is_slow = || asked.pace == Pace::Slow && !shared.stops();
        let transfer = read(incoming, body, is_slow)?;
        counts.bytes.fetch_add(transfer.len, Relaxed);
        if !transfer.complete {
            let why = format!("ended after {} bytes", transfer.len);
            self.broken(asked, asked_at, &why)?;
            return Ok(Then::Close);
        }
        let count = match &expected {
            Expected::Error => {
                self.excuse(asked, asked_at)?;
                &counts.errors
            }
            Expected::NotModified => &counts.not_modified,
            Expected::Unsatisfiable => &counts.unsatisfiable,
            Expected::Body(Body { version, len, .. }) => {
                if body.is_some() && transfer.len != *len {
                    return Err(format!("complete with {} bytes", transfer.len));
                }
                self.seen[asked.object] = Some(*version);
                if *len != version.len {
                    counts.ranges.fetch_add(1, Relaxed);
                }
                &counts.complete
            }
        };
        count.fetch_add(1, Relaxed);
        Ok(Then::Keep)
    }

    /// The body that the head announces; the error: a wrong head.
    fn expect(
        &self,
        asked: &Asked,
        asked_at: Instant,
        status: u16,
        headers: &Headers,
    ) -> Result<Expected, String> {
        let objects = &self.shared.objects;
        let version = || {
            let etag = headers.get("etag").ok_or("no ETag")?;
            objects.judge(asked.object, etag, asked_at)
        };
        match status {
            200 => {
                let version = version()?;
                let announced = headers.get("content-length");
                if announced.is_some_and(|len| len != version.len.to_string()) {
                    return Err(format!("not the length {}", version.len));
                }
                Ok(Expected::Body(Body {
                    version,
                    offset: 0,
                    len: version.len,
                }))
            }
            206 => {
                let version = version()?;
                let range = asked.range.and_then(|range| range.of(version.len));
                let (first, last) = range.ok_or("no range to satisfy")?;
                if asked.if_range.is_some_and(|of| of != version) {
                    return Err("a range of another version than If-Range asks for".to_owned());
                }
                let announced = headers.get("content-range");
                let right = format!("bytes {first}-{last}/{}", version.len);
                if announced != Some(&right) {
                    return Err(format!("not the range {right}"));
                }
                Ok(Expected::Body(Body {
                    version,
                    offset: first,
                    len: last - first + 1,
                }))
            }
            304 => {
                let version = version()?;
                if asked.if_none_match != Some(version) {
                    return Err("304 for another version".to_owned());
                }
                Ok(Expected::NotModified)
            }
            416 => {
                let lengths = objects.possible_lengths(asked.object, asked_at);
                let unsatisfiable = |len: &u64| {
                    let range = asked.range.map(|range| range.of(*len));
                    range == Some(None)
                };
                if !lengths.iter().any(unsatisfiable) {
                    return Err(format!("satisfiable with the lengths {lengths:?}"));
                }
                Ok(Expected::Unsatisfiable)
            }
            500..600 => Ok(Expected::Error),
            _ => Err("unexpected status".to_owned()),
        }
    }

    fn broken(&self, asked: &Asked, asked_at: Instant, why: &str) -> Result<(), String> {
        self.shared.counts.broken.fetch_add(1, Relaxed);
        self.excuse(asked, asked_at)
            .map_err(|what| format!("{why}: {what}"))
    }

    /// A response may fail where something else failed that it may depend on.
    fn excuse(&self, asked: &Asked, asked_at: Instant) -> Result<(), String> {
        let shared = self.shared;
        let objects = &shared.objects;
        if shared.faults.since(asked_at)
            || objects.failed_since(asked.object, asked_at)
            || objects.lost_blocks_since(asked.object, asked_at)
        {
            return Ok(());
        }
        Err(format!("{asked:?} failed though nothing had gone wrong"))
    }
}

/// Reads the rest of a response, and checks its body if there is to be one. The
/// error: bytes that are not those expected.
fn read(
    incoming: Incoming<'_>,
    body: Option<&Body>,
    is_slow: impl Fn() -> bool,
) -> Result<Transfer, String> {
    let start = Instant::now();
    let mut wrong = None;
    let transfer = incoming.stream(|at, bytes| {
        let Some(body) = body else { return };
        if wrong.is_none() {
            wrong = body.difference(at, bytes);
        }
        if is_slow() {
            let end = at + bytes.len() as u64;
            let due = Duration::from_secs_f64(end as f64 / SLOW);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    });
    wrong.map_or(Ok(transfer), Err)
}

// === impl Body ===

impl Body {
    /// The error in these bytes at this place of the body.
    fn difference(&self, at: u64, bytes: &[u8]) -> Option<String> {
        let end = at + bytes.len() as u64;
        if end > self.len {
            return Some(format!("{end} bytes and more instead of {}", self.len));
        }
        self.version.pattern().difference(self.offset + at, bytes)
    }
}

// === impl Asked ===

impl Asked {
    fn whole(object: usize) -> Self {
        Self {
            object,
            head: false,
            range: None,
            if_range: None,
            if_none_match: None,
            pace: Pace::Fast,
        }
    }

    /// The error: what came instead of the head of a response.
    fn send<'c>(&self, connection: &'c mut Connection) -> Result<Incoming<'c>, String> {
        let range = self.range.map(|range| range.field());
        let if_range = self.if_range.map(|version| version.etag());
        let if_none_match = self.if_none_match.map(|version| version.etag());
        let fields = [
            ("Range", &range),
            ("If-Range", &if_range),
            ("If-None-Match", &if_none_match),
        ];
        let fields = fields.map(|(name, value)| Some((name, value.as_deref()?)));
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        let method = if self.head { "HEAD" } else { "GET" };
        connection.try_begin(method, &Objects::path(self.object), &fields)
    }
}

// === impl Range ===

impl Range {
    fn field(&self) -> String {
        match self {
            Self::Within(first, last) => format!("bytes={first}-{last}"),
            Self::From(first) => format!("bytes={first}-"),
            Self::Last(count) => format!("bytes=-{count}"),
        }
    }

    /// First and last byte of a body of `len` bytes; None: unsatisfiable.
    fn of(&self, len: u64) -> Option<(u64, u64)> {
        let end = len.checked_sub(1)?;
        let (first, last) = match *self {
            Self::Within(first, last) => (first, last.min(end)),
            Self::From(first) => (first, end),
            Self::Last(count) => (len.saturating_sub(count), end),
        };
        (first <= last).then_some((first, last))
    }
}
