use std::{
    collections::HashMap,
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, Mutex,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{
    head::{end_of_head, Head, Headers, MAX_HEAD},
    Gate, Pattern,
};

/// Connections at once; more are closed unanswered.
const MAX_CONNECTIONS: usize = 512;

/// The most that is written at once, and the longest chunk.
const PIECE: u64 = 64 * 1024;

/// An HTTP/1.1 origin whose every answer the test scripts, failures included.
/// It listens on 127.0.0.1, remembers what it was asked, and is gone, threads
/// and all, when dropped.
pub struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A request as the origin received it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query, as they stood in the request line.
    pub target: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

/// What the origin answers, and where it misbehaves.
pub struct Reply {
    status: u16,
    headers: Headers,
    body: Body,
    framing: Framing,
    hold: Option<(u64, Gate)>,
    end: Option<(u64, End)>,
    /// Bytes a second.
    pace: Option<u64>,
}

struct Shared {
    handler: Box<dyn Fn(&Request) -> Reply + Send + Sync>,
    log: Mutex<Vec<Request>>,
    /// Body bytes sent.
    sent: AtomicU64,
    /// The open connections, to be shut down in the end.
    live: Mutex<HashMap<u64, Arc<TcpStream>>>,
    stopping: AtomicBool,
}

struct Body {
    /// Where the body starts in its source.
    start: u64,
    len: u64,
    source: Source,
}

enum Source {
    Bytes(Vec<u8>),
    Pattern(Pattern),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
}

#[derive(Clone, Copy)]
enum End {
    Close,
    Reset,
}

// === impl Origin ===

impl Origin {
    /// Starts an origin that answers with `handler`, on a thread a connection.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on 127.0.0.1");
        let addr = listener.local_addr().expect("the origin's address");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            log: Mutex::default(),
            sent: AtomicU64::new(0),
            live: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let acceptor = thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        });
        Self {
            addr,
            shared,
            acceptor: Some(acceptor),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What a bucket's `endpoint` is set to.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Forgets the requests so far, which takes memory in a long test.
    pub fn forget_requests(&self) {
        self.shared.log.lock().unwrap().clear();
    }

    /// Body bytes that it has sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How many requests there were for a path, whatever their query.
    pub fn requests_for(&self, path: &str) -> usize {
        let log = self.shared.log.lock().unwrap();
        log.iter().filter(|request| request.path() == path).count()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // A connection wakes the acceptor; if that fails it has ended already.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        for id in 0u64.. {
            let accepted = listener.accept();
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            threads.retain(|thread| !thread.is_finished());
            let Ok((stream, _)) = accepted else { continue };
            if threads.len() == MAX_CONNECTIONS {
                continue;
            }
            let stream = Arc::new(stream);
            self.live.lock().unwrap().insert(id, stream.clone());
            let shared = self.clone();
            threads.push(thread::spawn(move || {
                // An error here is the proxy's doing, and the proxy sees it too.
                let _ = shared.serve(&stream);
                // The last handle, so that leaving closes (or resets) the socket.
                shared.live.lock().unwrap().remove(&id);
            }));
        }
        for stream in self.live.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        while let Some(request) = read_request(stream, &mut buffer)? {
            self.log.lock().unwrap().push(request.clone());
            let reply = (self.handler)(&request);
            let open = self.write(stream, &request, &reply)?;
            if !open || request.header("connection") == Some("close") {
                break;
            }
        }
        Ok(())
    }

    /// Ok(true): the connection can carry another request.
    fn write(&self, stream: &TcpStream, request: &Request, reply: &Reply) -> io::Result<bool> {
        let mut writer = stream;
        writer.write_all(reply.head().as_bytes())?;
        if request.method == "HEAD" || matches!(reply.status, 204 | 304) {
            return Ok(true);
        }
        let mut piece = Vec::new();
        let mut at = 0;
        let start = Instant::now();
        loop {
            if let Some((_, gate)) = reply.hold.as_ref().filter(|(hold, _)| *hold == at) {
                gate.arrive();
                while !gate.opens_within(Duration::from_millis(50)) {
                    if self.stopping.load(Ordering::SeqCst) {
                        return Ok(false);
                    }
                }
            }
            match reply.end {
                Some((end, End::Close)) if end == at => return Ok(false),
                Some((end, End::Reset)) if end == at => {
                    // From here on, closing sends RST: socket(7), SO_LINGER.
                    SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
                    return Ok(false);
                }
                _ => {}
            }
            let len = reply.next_stop(at) - at;
            if len == 0 {
                break;
            }
            piece.resize(len as usize, 0);
            reply.body.fill(at, &mut piece);
            if reply.framing == Framing::Chunked {
                let mut chunk = format!("{len:x}\r\n").into_bytes();
                chunk.extend_from_slice(&piece);
                chunk.extend_from_slice(b"\r\n");
                writer.write_all(&chunk)?;
            } else {
                writer.write_all(&piece)?;
            }
            at += len;
            self.sent.fetch_add(len, Ordering::Relaxed);
            if let Some(pace) = reply.pace {
                let due = Duration::from_secs_f64(at as f64 / pace as f64);
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        if reply.framing == Framing::Chunked {
            writer.write_all(b"0\r\n\r\n")?;
        }
        Ok(reply.framing != Framing::UntilClose)
    }
}

// === impl Request ===

impl Request {
    /// The target up to its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a header field, as [`Headers::get`].
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The request as an origin that knows no conditions takes it.
    pub fn without_conditions(&self) -> Request {
        let mut headers = Headers::default();
        for (name, value) in self.headers.iter() {
            let is_condition = name
                .get(..3)
                .is_some_and(|start| start.eq_ignore_ascii_case("if-"));
            if !is_condition {
                headers.push(name, value);
            }
        }
        Request {
            headers,
            ..self.clone()
        }
    }
}

/// Ok(None): the proxy closed the connection between two requests.
fn read_request(mut stream: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let end = loop {
        if let Some(end) = end_of_head(buffer) {
            break end;
        }
        if buffer.len() > MAX_HEAD {
            return Err(invalid("the head is too long"));
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk)? {
            0 => return Ok(None),
            n => buffer.extend_from_slice(&chunk[..n]),
        }
    };
    let head = Head::parse(&buffer[..end]).map_err(|reason| invalid(&reason))?;
    buffer.drain(..end);
    let mut words = head.start_line.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(invalid("no request line"));
    };
    let len = head.headers.get("content-length").unwrap_or("0");
    let len = len.parse().ok().filter(|len| *len <= MAX_HEAD);
    let (Some(len), None) = (len, head.headers.get("transfer-encoding")) else {
        return Err(invalid("this origin takes only short bodies with a length"));
    };
    while buffer.len() < len {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk)? {
            0 => return Err(invalid("the body is cut short")),
            n => buffer.extend_from_slice(&chunk[..n]),
        }
    }
    let body = buffer.drain(..len).collect();
    Ok(Some(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: head.headers,
        body,
    }))
}

// === impl Reply ===

impl Reply {
    /// 200 with these bytes.
    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        let bytes = body.into();
        let len = bytes.len() as u64;
        Self::new(200, len, Source::Bytes(bytes))
    }

    /// 200 with the first `len` bytes of the pattern, made as they are sent.
    pub fn pattern(seed: u64, len: u64) -> Self {
        Self::new(200, len, Source::Pattern(Pattern::new(seed)))
    }

    /// A status with an empty body.
    pub fn status(status: u16) -> Self {
        Self::new(status, 0, Source::Bytes(Vec::new()))
    }

    fn new(status: u16, len: u64, source: Source) -> Self {
        Self {
            status,
            headers: Headers::default(),
            body: Body {
                start: 0,
                len,
                source,
            },
            framing: Framing::Length,
            hold: None,
            end: None,
            pace: None,
        }
    }

    /// The same reply with another status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub fn header(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.headers.push(name, &value.to_string());
        self
    }

    /// Frames the body in chunks instead of by Content-Length.
    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// Ends the body by closing the connection.
    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    /// Sends the body at about this pace.
    pub fn paced(mut self, bytes_per_second: u64) -> Self {
        self.pace = Some(bytes_per_second);
        self
    }

    /// Waits at the gate once `offset` bytes of the body are sent.
    pub fn hold_at(mut self, offset: u64, gate: &Gate) -> Self {
        self.hold = Some((offset, gate.clone()));
        self
    }

    /// Closes the connection once `offset` bytes of the body are sent.
    pub fn close_at(mut self, offset: u64) -> Self {
        self.end = Some((offset, End::Close));
        self
    }

    /// Resets the connection once `offset` bytes of the body are sent; the
    /// proxy may not see all of them.
    pub fn reset_at(mut self, offset: u64) -> Self {
        self.end = Some((offset, End::Reset));
        self
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

    fn head(&self) -> String {
        let framing = match self.framing {
            _ if matches!(self.status, 204 | 304) => String::new(),
            Framing::Length => format!("Content-Length: {}\r\n", self.body.len),
            Framing::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
            Framing::UntilClose => "Connection: close\r\n".to_owned(),
        };
        format!(
            "HTTP/1.1 {} Scripted\r\n{framing}{}\r\n",
            self.status, self.headers
        )
    }

    /// Where the piece that starts at `at` ends: nothing is sent across a place
    /// where the reply holds or ends.
    fn next_stop(&self, at: u64) -> u64 {
        let hold = self.hold.as_ref().map(|(offset, _)| *offset);
        let end = self.end.map(|(offset, _)| offset);
        [hold, end, Some(at + PIECE)]
            .into_iter()
            .flatten()
            .filter(|stop| *stop > at)
            .fold(self.body.len, u64::min)
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

// === impl Body ===

impl Body {
    fn fill(&self, offset: u64, out: &mut [u8]) {
        let at = self.start + offset;
        match &self.source {
            Source::Bytes(bytes) => out.copy_from_slice(&bytes[at as usize..][..out.len()]),
            Source::Pattern(pattern) => pattern.fill(at, out),
        }
    }
}
