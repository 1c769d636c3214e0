use std::{
    fmt,
    io::{self, Write},
    mem,
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{date, head::octets, origin::Request, Gate, Headers, Pattern};

/// The most that is written of a body at once, and the longest chunk.
const PIECE: u64 = 64 * 1024;

/// An answer of the origin, byte by byte where a test wants it, with its misbehaviour. In
/// field values each character is one byte.
#[derive(Clone, Debug)]
pub struct Reply {
    kind: Kind,
    interim: Vec<u8>,
    status: u16,
    version: &'static str,
    headers: Headers,
    /// True if a `Date` of now is added.
    dated: bool,
    body: Body,
    framing: Framing,
    trailers: Vec<(String, String)>,
    /// Before the head.
    hold: Option<Gate>,
    /// Once so many bytes of the body are sent.
    hold_at: Option<(u64, Gate)>,
    end: Option<(u64, End)>,
    /// Bytes a second.
    pace: Option<u64>,
    close: bool,
}

/// The state of an origin that its replies need.
pub(crate) struct Progress<'o> {
    /// Body bytes.
    pub(crate) sent: &'o AtomicU64,
    pub(crate) stopping: &'o AtomicBool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    Raw(Vec<u8>),
    HangUp,
}

#[derive(Clone, Debug)]
struct Body {
    /// The offset of the body in its source.
    start: u64,
    len: u64,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Bytes(Vec<u8>),
    Pattern(Pattern),
    /// Tells which answer of its path it is.
    Serial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    LengthOf(u64),
    Chunked,
    UntilClose,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Reset,
}

// === impl Reply ===

impl Reply {
    /// 200 with these bytes.
    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    /// 200 with the first `len` bytes of the pattern, made as they are sent.
    pub fn pattern(seed: u64, len: u64) -> Self {
        let source = Source::Pattern(Pattern::new(seed));
        Self::new(200, false, Body::new(len, source))
    }

    /// A status with an empty body.
    pub fn status(status: u16) -> Self {
        let source = Source::Bytes(Vec::new());
        Self::new(status, false, Body::new(0, source))
    }

    /// 200, with a `Date` and a body that tells which answer of its path it is.
    pub fn ok() -> Self {
        Self::new(200, true, Body::new(0, Source::Serial))
    }

    /// As [`Self::ok`], fresh for an hour and with a strong validator.
    pub fn fresh() -> Self {
        Self::ok()
            .header("Cache-Control", "max-age=3600")
            .header("ETag", "\"v1\"")
    }

    /// As [`Self::ok`], fresh for a second, a minute ago, and with a strong validator.
    pub fn stale() -> Self {
        Self::ok()
            .header("Cache-Control", "max-age=1")
            .header("Age", 60)
            .header("ETag", "\"v1\"")
    }

    /// These bytes, whatever they are, and then the connection is closed.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        let mut reply = Self::ok();
        reply.kind = Kind::Raw(bytes.into());
        reply
    }

    /// Nothing: the connection is closed once the request has been read.
    pub fn hang_up() -> Self {
        let mut reply = Self::ok();
        reply.kind = Kind::HangUp;
        reply
    }

    fn new(status: u16, dated: bool, body: Body) -> Self {
        Self {
            kind: Kind::Message,
            interim: Vec::new(),
            status,
            version: "HTTP/1.1",
            headers: Headers::default(),
            dated,
            body,
            framing: Framing::Length,
            trailers: Vec::new(),
            hold: None,
            hold_at: None,
            end: None,
            pace: None,
            close: false,
        }
    }

    /// The same reply with another status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a field line.
    pub fn header(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.headers.push(name, &value.to_string());
        self
    }

    /// Puts a field line in the place of those of the same name.
    pub fn set(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.headers.remove(name);
        self.header(name, value)
    }

    /// Adds field lines.
    pub fn headers(mut self, fields: &[(&str, &str)]) -> Self {
        for (name, value) in fields {
            self = self.header(name, value);
        }
        self
    }

    /// Leaves out `Date`, unless a field says it.
    pub fn undated(mut self) -> Self {
        self.dated = false;
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        let bytes = body.into();
        self.body = Body::new(bytes.len() as u64, Source::Bytes(bytes));
        self
    }

    /// Says this `Content-Length`, whatever the body's length is, and closes the connection
    /// after the body.
    pub fn claiming_length(mut self, length: u64) -> Self {
        self.framing = Framing::LengthOf(length);
        self.close = true;
        self
    }

    /// Frames the body in chunks instead of by `Content-Length`.
    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// A trailer field, behind a chunked body.
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.framing = Framing::Chunked;
        self.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Ends the body by closing the connection.
    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self.close = true;
        self
    }

    /// Answers in HTTP/1.0.
    pub fn http10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// Sends an interim response before, in the same write as what follows unless that is
    /// held.
    pub fn interim(mut self, status: u16, fields: &[(&str, &str)]) -> Self {
        self.interim
            .extend(head(self.version, status, fields.iter().copied()));
        self
    }

    /// Sends the body at about this pace.
    pub fn paced(mut self, bytes_per_second: u64) -> Self {
        self.pace = Some(bytes_per_second);
        self
    }

    /// Sends interim responses, and then waits at the gate.
    pub fn hold(mut self, gate: &Gate) -> Self {
        self.hold = Some(gate.clone());
        self
    }

    /// Waits at the gate once `offset` bytes of the body are sent.
    pub fn hold_at(mut self, offset: u64, gate: &Gate) -> Self {
        self.hold_at = Some((offset, gate.clone()));
        self
    }

    /// Closes the connection once `offset` bytes of the body are sent.
    pub fn close_at(mut self, offset: u64) -> Self {
        self.end = Some((offset, End::Close));
        self
    }

    /// Resets the connection once `offset` bytes of the body are sent; the proxy may not see
    /// all of them.
    pub fn reset_at(mut self, offset: u64) -> Self {
        self.end = Some((offset, End::Reset));
        self
    }

    /// Says `Connection: close`, and does it.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self.header("Connection", "close")
    }

    /// The reply as S3 would make it for this request: 304 where If-None-Match
    /// is the reply's ETag, 206 or 416 where a single range is asked for, of this
    /// version where If-Range names one.
    pub fn answering(mut self, request: &Request) -> Self {
        let etag = self.headers.get("etag");
        if etag.is_some() && request.header("if-none-match") == etag {
            self.status = 304;
            return self;
        }
        let if_range = request.header("if-range");
        let wanted = if_range.is_none() || if_range == etag;
        let Some(range) = request.header("range").filter(|_| wanted) else {
            return self;
        };
        self.part(range)
    }

    /// 206 or 416, as a single range of the body asks for it.
    pub fn part(mut self, range: &str) -> Self {
        let whole = self.body.len;
        match parse_range(range, whole) {
            Some((first, last)) => {
                self.status = 206;
                self.body.start += first;
                self.body.len = last - first + 1;
                self.header("Content-Range", format!("bytes {first}-{last}/{whole}"))
            }
            None => Self::status(416).header("Content-Range", format!("bytes */{whole}")),
        }
    }

    /// Ok(true): the connection can carry another request.
    pub(crate) fn write(
        &self,
        stream: &TcpStream,
        request: &Request,
        serial: usize,
        progress: &Progress<'_>,
    ) -> io::Result<bool> {
        let mut out = Outgoing {
            stream,
            bytes: self.interim.clone(),
            of_body: 0,
            progress,
        };
        if let Some(gate) = &self.hold {
            out.flush()?;
            if !out.wait_at(gate) {
                return Ok(false);
            }
        }
        match &self.kind {
            Kind::Message => {}
            Kind::Raw(bytes) => {
                out.bytes.extend_from_slice(bytes);
                return out.flush().map(|()| false);
            }
            Kind::HangUp => return out.flush().map(|()| false),
        }
        let numbered;
        let body = match self.body.source {
            Source::Serial if !matches!(self.status, 204 | 205) => {
                let text = format!("{} #{serial}", request.path()).into_bytes();
                numbered = Body::new(text.len() as u64, Source::Bytes(text));
                &numbered
            }
            _ => &self.body,
        };
        out.bytes.extend(self.head(body.len));
        if request.method == "HEAD" || matches!(self.status, 204 | 304) {
            return out.flush().map(|()| !self.close);
        }
        if !self.write_body(body, &mut out)? {
            return Ok(false);
        }
        if self.framing == Framing::Chunked {
            out.bytes.extend_from_slice(b"0\r\n");
            for (name, value) in &self.trailers {
                out.bytes.extend(octets(&format!("{name}: {value}\r\n")));
            }
            out.bytes.extend_from_slice(b"\r\n");
        }
        out.flush().map(|()| !self.close)
    }

    /// Ok(false): the reply ends here, or the origin does.
    fn write_body(&self, body: &Body, out: &mut Outgoing<'_>) -> io::Result<bool> {
        let mut piece = Vec::new();
        let mut at = 0;
        let start = Instant::now();
        loop {
            if let Some((_, gate)) = self.hold_at.as_ref().filter(|(hold, _)| *hold == at) {
                out.flush()?;
                if !out.wait_at(gate) {
                    return Ok(false);
                }
            }
            if let Some((_, end)) = self.end.filter(|(end, _)| *end == at) {
                out.flush()?;
                if matches!(end, End::Reset) {
                    // From here on, closing sends RST: socket(7), SO_LINGER.
                    SockRef::from(out.stream).set_linger(Some(Duration::ZERO))?;
                }
                return Ok(false);
            }
            let len = self.next_stop(at, body.len) - at;
            if len == 0 {
                return Ok(true);
            }
            piece.resize(len as usize, 0);
            body.fill(at, &mut piece);
            out.push(&piece, self.framing == Framing::Chunked);
            at += len;
            if out.of_body >= PIECE {
                out.flush()?;
            }
            if let Some(pace) = self.pace {
                out.flush()?;
                let due = Duration::from_secs_f64(at as f64 / pace as f64);
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
    }

    fn head(&self, len: u64) -> Vec<u8> {
        let mut headers = self.headers.clone();
        let has = |name: &str| !self.headers.all(name).is_empty();
        if self.dated && !has("date") {
            headers.push("Date", &date::from_now(0));
        }
        let framed = matches!(self.status, 204 | 304) || has("content-length");
        match self.framing {
            _ if framed => {}
            Framing::Length => headers.push("Content-Length", &len.to_string()),
            Framing::LengthOf(len) => headers.push("Content-Length", &len.to_string()),
            Framing::Chunked => headers.push("Transfer-Encoding", "chunked"),
            Framing::UntilClose => {}
        }
        head(self.version, self.status, headers.iter())
    }

    /// The end of the piece that starts at `at`: nothing is sent across a place where the
    /// reply holds or ends.
    fn next_stop(&self, at: u64, len: u64) -> u64 {
        let hold = self.hold_at.as_ref().map(|(offset, _)| *offset);
        let end = self.end.map(|(offset, _)| offset);
        [hold, end, Some(at + PIECE)]
            .into_iter()
            .flatten()
            .filter(|stop| *stop > at)
            .fold(len, u64::min)
    }
}

/// First and last byte of a single range (RFC 9110, section 14.1.2).
fn parse_range(range: &str, len: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = match (first, last) {
        ("", suffix) => (
            len.saturating_sub(suffix.parse().ok()?),
            len.checked_sub(1)?,
        ),
        (first, "") => (first.parse().ok()?, len.checked_sub(1)?),
        (first, last) => (
            first.parse().ok()?,
            last.parse::<u64>().ok()?.min(len.checked_sub(1)?),
        ),
    };
    (first <= last).then_some((first, last))
}

fn head<'a>(
    version: &str,
    status: u16,
    fields: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<u8> {
    let mut head = format!("{version} {status} Scripted\r\n");
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    octets(&head)
}

/// Bytes on their way to the proxy, in as few writes as the reply allows.
struct Outgoing<'r> {
    stream: &'r TcpStream,
    bytes: Vec<u8>,
    /// The number of them that are of the body.
    of_body: u64,
    progress: &'r Progress<'r>,
}

// === impl Outgoing ===

impl Outgoing<'_> {
    fn push(&mut self, piece: &[u8], is_chunk: bool) {
        if is_chunk {
            self.bytes
                .extend(format!("{:x}\r\n", piece.len()).into_bytes());
        }
        self.bytes.extend_from_slice(piece);
        if is_chunk {
            self.bytes.extend_from_slice(b"\r\n");
        }
        self.of_body += piece.len() as u64;
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut stream = self.stream;
        stream.write_all(&mem::take(&mut self.bytes))?;
        let sent = mem::take(&mut self.of_body);
        self.progress.sent.fetch_add(sent, Ordering::Relaxed);
        Ok(())
    }

    /// False: the origin stops before the gate opens.
    fn wait_at(&self, gate: &Gate) -> bool {
        gate.arrive();
        while !gate.opens_within(Duration::from_millis(50)) {
            if self.progress.stopping.load(Ordering::SeqCst) {
                return false;
            }
        }
        true
    }
}

// === impl Body ===

impl Body {
    fn new(len: u64, source: Source) -> Self {
        Self {
            start: 0,
            len,
            source,
        }
    }

    fn fill(&self, offset: u64, out: &mut [u8]) {
        let at = self.start + offset;
        match &self.source {
            Source::Bytes(bytes) => out.copy_from_slice(&bytes[at as usize..][..out.len()]),
            Source::Pattern(pattern) => pattern.fill(at, out),
            Source::Serial => unreachable!("its length is 0"),
        }
    }
}
