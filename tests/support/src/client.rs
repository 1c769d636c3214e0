//! An HTTP/1.1 client that hides nothing: it shows how a transfer ended, reads
//! as slowly as asked, resets on demand, and panics on every breach of framing.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    head::{end_of_head, Head, Headers, MAX_HEAD},
    Pattern, PATIENCE,
};

/// The most that one read takes from the socket.
const READ_SIZE: usize = 64 * 1024;

/// A connection that is kept alive for as long as the server agrees.
pub struct Connection {
    stream: TcpStream,
    /// Received and not yet consumed.
    buffer: Vec<u8>,
    reusable: bool,
}

/// A response whose body is still to be read.
pub struct Incoming<'c> {
    pub status: u16,
    pub headers: Headers,
    connection: &'c mut Connection,
    framing: Framing,
    /// The request, for messages.
    request: String,
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// Whether the body came to the end that its framing gives it. False: the
    /// connection was closed or reset before.
    pub complete: bool,
}

/// How a body that was not kept arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub len: u64,
    /// As in [`Response::complete`].
    pub complete: bool,
}

/// What says where the body ends (RFC 9112, section 6.3), with what is left.
enum Framing {
    Length(u64),
    Chunk(u64),
    ChunkEnd,
    ChunkSize,
    UntilClose,
    Done,
    Cut,
}

/// The peer closed or reset the connection before the end.
struct Cut;

/// `GET` on a connection of its own; the server must close it afterwards, with
/// nothing behind the body.
pub fn get(addr: SocketAddr, target: &str) -> Response {
    request(addr, "GET", target, &[])
}

/// `HEAD` on a connection of its own, as [`get`].
pub fn head(addr: SocketAddr, target: &str) -> Response {
    request(addr, "HEAD", target, &[])
}

/// `GET` on a connection of its own, from a server that may be killed meanwhile.
/// None: it was gone before the head was complete.
pub fn try_get(addr: SocketAddr, target: &str) -> Option<Response> {
    let mut connection = Connection::over(TcpStream::connect(addr).ok()?);
    connection
        .send("GET", target, &[("Connection", "close")])
        .ok()?;
    connection.wait_for_head().ok()?;
    Some(connection.receive("GET", target).finish())
}

/// A request without a body on a connection of its own, as [`get`].
pub fn request(addr: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    let mut connection = Connection::open(addr);
    let headers: Vec<_> = [("Connection", "close")]
        .iter()
        .chain(headers)
        .copied()
        .collect();
    let response = connection.request(method, target, &headers);
    if response.complete {
        connection.expect_closed();
    }
    response
}

/// A key as it stands in a request's path: every byte but the unreserved ones
/// of RFC 3986 and the slash is percent-encoded.
pub fn encode_key(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

// === impl Connection ===

impl Connection {
    pub fn open(addr: SocketAddr) -> Self {
        Self::try_open(addr).unwrap_or_else(|e| panic!("connect to {addr}: {e}"))
    }

    /// As [`Self::open`], to a server that may be gone.
    pub fn try_open(addr: SocketAddr) -> io::Result<Self> {
        TcpStream::connect(addr).map(Self::over)
    }

    /// A connection whose receive buffer is about `bytes` (the kernel doubles
    /// the value and has a floor, socket(7)), so that the sender soon waits.
    pub fn with_receive_buffer(addr: SocketAddr, bytes: usize) -> Self {
        Self::try_with_receive_buffer(addr, bytes)
            .unwrap_or_else(|e| panic!("connect to {addr}: {e}"))
    }

    /// As [`Self::with_receive_buffer`], to a server that may be gone.
    pub fn try_with_receive_buffer(addr: SocketAddr, bytes: usize) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        // Before connecting: the window scale is agreed in the handshake.
        socket.set_recv_buffer_size(bytes)?;
        socket.connect(&addr.into())?;
        Ok(Self::over(socket.into()))
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("set TCP_NODELAY");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("set the read timeout");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("set the write timeout");
        Self {
            stream,
            buffer: Vec::new(),
            reusable: true,
        }
    }

    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[])
    }

    /// A request without a body, and its whole response.
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        self.begin(method, target, headers).finish()
    }

    /// Sends a request without a body and reads the head of its response.
    pub fn begin(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Incoming<'_> {
        assert!(
            self.reusable,
            "{method} {target} on a connection that the last response ended"
        );
        self.expect_silent();
        self.send(method, target, headers)
            .unwrap_or_else(|e| panic!("{method} {target}: sending: {e}"));
        self.receive(method, target)
    }

    /// As [`Self::begin`], for a server that may end the connection before the
    /// head is complete: the error says how. A head that is wrong panics.
    pub fn try_begin(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Incoming<'_>, String> {
        assert!(self.reusable, "{method} {target} on an ended connection");
        self.expect_silent();
        self.send(method, target, headers)
            .map_err(|e| format!("sending: {e}"))?;
        self.wait_for_head()?;
        Ok(self.receive(method, target))
    }

    /// Reads the head of the response to a request that [`Self::send`] sent.
    pub fn receive(&mut self, method: &str, target: &str) -> Incoming<'_> {
        let request = format!("{method} {target}");
        let head = self
            .read_head()
            .unwrap_or_else(|reason| panic!("{request}: {reason}"));
        Incoming::new(self, method, request, head)
            .unwrap_or_else(|reason| panic!("{method} {target}: {reason}"))
    }

    /// Sends the request only, for a client that never reads or asks ahead.
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.stream.peer_addr()?);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        self.send_raw(head.as_bytes())
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Resets the connection instead of closing it.
    pub fn abort(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("set SO_LINGER");
    }

    /// Whether the last response left the connection open for another request.
    pub fn is_reusable(&self) -> bool {
        self.reusable
    }

    /// Panics where the server sent something that nobody asked for.
    fn expect_silent(&mut self) {
        self.stream.set_nonblocking(true).expect("set O_NONBLOCK");
        let mut byte = [0];
        let peeked = self.stream.peek(&mut byte);
        self.stream
            .set_nonblocking(false)
            .expect("clear O_NONBLOCK");
        assert!(
            self.buffer.is_empty() && !matches!(peeked, Ok(1..)),
            "bytes behind the end of the last response"
        );
    }

    /// Panics unless the server closes the connection, sending nothing more.
    pub fn expect_closed(mut self) {
        let more = self.fill();
        assert!(
            matches!(more, Ok(false)) && self.buffer.is_empty(),
            "expected the end of the connection: {more:?}, {} bytes more",
            self.buffer.len()
        );
    }

    /// Reads once. Ok(false): the peer closed.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; READ_SIZE];
        let n = self.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    /// One read; a peer that stays silent fails the test.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(out) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("the server sent nothing for {PATIENCE:?}")
                }
                other => return other,
            }
        }
    }

    /// Reads until the whole head is in the buffer; returns where it ends.
    fn wait_for_head(&mut self) -> Result<usize, String> {
        loop {
            if let Some(end) = end_of_head(&self.buffer) {
                return Ok(end);
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(format!("the head is longer than {MAX_HEAD} bytes"));
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Err("closed before the head was complete".to_owned()),
                Err(e) => return Err(format!("reading the head: {e}")),
            }
        }
    }

    fn read_head(&mut self) -> Result<Head, String> {
        let end = self.wait_for_head()?;
        let head = Head::parse(&self.buffer[..end])?;
        self.buffer.drain(..end);
        Ok(head)
    }

    /// One line of the chunked coding, without its CRLF.
    fn read_line(&mut self) -> Result<String, Cut> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
                self.buffer.drain(..at + 2);
                return Ok(line);
            }
            assert!(self.buffer.len() < 1024, "a chunk's line has no end");
            if !self.fill().unwrap_or(false) {
                return Err(Cut);
            }
        }
    }

    /// Body bytes, from the buffer first. Ok(0): the peer closed.
    fn take(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            return self.read(out);
        }
        let n = self.buffer.len().min(out.len());
        out[..n].copy_from_slice(&self.buffer[..n]);
        self.buffer.drain(..n);
        Ok(n)
    }
}

// === impl Incoming ===

impl<'c> Incoming<'c> {
    fn new(
        connection: &'c mut Connection,
        method: &str,
        request: String,
        head: Head,
    ) -> Result<Self, String> {
        let status = parse_status_line(&head.start_line)?;
        let framing = Framing::of(method, status, &head.headers)?;
        let closes = head
            .headers
            .all("connection")
            .into_iter()
            .flat_map(|value| value.split(','))
            .any(|option| option.trim().eq_ignore_ascii_case("close"));
        connection.reusable = !closes && !matches!(framing, Framing::UntilClose);
        Ok(Self {
            status,
            headers: head.headers,
            connection,
            framing,
            request,
        })
    }

    /// Reads the rest and keeps it.
    pub fn finish(mut self) -> Response {
        let mut body = Vec::new();
        let transfer = self.pump(READ_SIZE, |_, bytes| body.extend_from_slice(bytes));
        Response {
            status: self.status,
            headers: std::mem::take(&mut self.headers),
            body,
            complete: transfer.complete,
        }
    }

    /// Reads the rest at about `bytes_per_second` and keeps it.
    pub fn read_body_slowly(mut self, bytes_per_second: usize) -> Response {
        const STEPS: usize = 20;
        let step = (bytes_per_second / STEPS).max(1);
        let start = Instant::now();
        let mut body = Vec::new();
        let transfer = self.pump(step, |_, bytes| {
            body.extend_from_slice(bytes);
            let due = Duration::from_secs_f64(body.len() as f64 / bytes_per_second as f64);
            thread::sleep(due.saturating_sub(start.elapsed()));
        });
        Response {
            status: self.status,
            headers: std::mem::take(&mut self.headers),
            body,
            complete: transfer.complete,
        }
    }

    /// Reads the rest and hands it to `sink` piece by piece, each with its
    /// offset in the body.
    pub fn stream(mut self, sink: impl FnMut(u64, &[u8])) -> Transfer {
        self.pump(READ_SIZE, sink)
    }

    /// Reads the rest, checking that it is `pattern` from `offset` on.
    pub fn check(self, pattern: Pattern, offset: u64) -> Transfer {
        self.stream(|at, bytes| pattern.check(offset + at, bytes))
    }

    /// Reads the next `len` bytes of the body and leaves the rest where it is.
    /// Fewer come back where the body ends before.
    pub fn read_some(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self.read(&mut out[filled..]) {
                Ok(0) | Err(Cut) => break,
                Ok(n) => filled += n,
            }
        }
        out.truncate(filled);
        out
    }

    fn pump(&mut self, at_once: usize, mut sink: impl FnMut(u64, &[u8])) -> Transfer {
        let mut piece = vec![0; at_once];
        let mut len = 0;
        let complete = loop {
            match self.read(&mut piece) {
                Ok(0) => break true,
                Ok(n) => {
                    sink(len, &piece[..n]);
                    len += n as u64;
                }
                Err(Cut) => break false,
            }
        };
        Transfer { len, complete }
    }

    /// Decoded body bytes. Ok(0): the body is complete.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Cut> {
        let result = self.read_framed(out);
        if result.is_err() {
            self.framing = Framing::Cut;
            self.connection.reusable = false;
        }
        result
    }

    fn read_framed(&mut self, out: &mut [u8]) -> Result<usize, Cut> {
        loop {
            match self.framing {
                Framing::Done => return Ok(0),
                Framing::Cut => return Err(Cut),
                Framing::Length(0) => self.framing = Framing::Done,
                Framing::Length(left) => {
                    let n = self.take(left, out)?;
                    self.framing = Framing::Length(left - n as u64);
                    return Ok(n);
                }
                Framing::UntilClose => {
                    let n = self.connection.take(out).map_err(|_| Cut)?;
                    if n == 0 {
                        self.framing = Framing::Done;
                    }
                    return Ok(n);
                }
                Framing::ChunkSize => {
                    let line = self.connection.read_line()?;
                    let size = parse_chunk_size(&line).unwrap_or_else(|| {
                        panic!("{}: not a chunk's size: {line:?}", self.request)
                    });
                    if size == 0 {
                        while !self.connection.read_line()?.is_empty() {}
                        self.framing = Framing::Done;
                    } else {
                        self.framing = Framing::Chunk(size);
                    }
                }
                Framing::Chunk(0) => self.framing = Framing::ChunkEnd,
                Framing::Chunk(left) => {
                    let n = self.take(left, out)?;
                    self.framing = Framing::Chunk(left - n as u64);
                    return Ok(n);
                }
                Framing::ChunkEnd => {
                    let mut crlf = [0; 2];
                    let mut filled = 0;
                    while filled < 2 {
                        filled += self.take(2, &mut crlf[filled..])?;
                    }
                    assert_eq!(&crlf, b"\r\n", "{}: a chunk has no end", self.request);
                    self.framing = Framing::ChunkSize;
                }
            }
        }
    }

    /// At most `left` bytes and at least one.
    fn take(&mut self, left: u64, out: &mut [u8]) -> Result<usize, Cut> {
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match self.connection.take(&mut out[..len]) {
            Ok(0) | Err(_) => Err(Cut),
            Ok(n) => Ok(n),
        }
    }
}

// A body that nobody read to its end stands in the way of the next response.
impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if !matches!(self.framing, Framing::Done | Framing::Length(0)) {
            self.connection.reusable = false;
        }
    }
}

// === impl Response ===

impl Response {
    /// The value of a header field, as [`Headers::get`].
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// SHA-256 of the body.
    pub fn sha256(&self) -> String {
        crate::sha256(&self.body)
    }
}

// === impl Framing ===

impl Framing {
    fn of(method: &str, status: u16, headers: &Headers) -> Result<Self, String> {
        let length = match headers.all("content-length")[..] {
            [] => None,
            [value] => {
                Some(parse_decimal(value).ok_or(format!("not a Content-Length: {value:?}"))?)
            }
            _ => return Err("Content-Length appears more than once".to_owned()),
        };
        let coding = match headers.all("transfer-encoding")[..] {
            [] => None,
            [value] if value.eq_ignore_ascii_case("chunked") => Some(value),
            _ => return Err("a Transfer-Encoding other than chunked".to_owned()),
        };
        // RFC 9112, sections 6.1 and 6.2.
        if length.is_some() && coding.is_some() {
            return Err("both Content-Length and Transfer-Encoding".to_owned());
        }
        if matches!(status, 100..=199 | 204) && (length.is_some() || coding.is_some()) {
            return Err(format!("a {status} with a body's framing"));
        }
        Ok(match (coding, length) {
            _ if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) => Self::Done,
            (Some(_), _) => Self::ChunkSize,
            (None, Some(length)) => Self::Length(length),
            (None, None) => Self::UntilClose,
        })
    }
}

fn parse_status_line(line: &str) -> Result<u16, String> {
    line.strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.split(' ').next())
        .filter(|code| code.len() == 3)
        .and_then(parse_decimal)
        .and_then(|code| u16::try_from(code).ok())
        .ok_or_else(|| format!("not a status line of HTTP/1.1: {line:?}"))
}

/// Digits only: no sign, no space.
fn parse_decimal(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// RFC 9112, section 7.1; extensions are allowed and ignored.
fn parse_chunk_size(line: &str) -> Option<u64> {
    let digits = line.split(';').next().unwrap_or_default();
    digits
        .bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that answers the first request with exactly these bytes.
    fn server(bytes: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while end_of_head(&head).is_none() {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.write_all(bytes).unwrap();
        });
        addr
    }

    #[test]
    fn a_chunked_body_is_decoded() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
            4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\nTrailer: x\r\n\r\n";
        let response = get(server(answer), "/");
        assert!(response.complete);
        assert_eq!(response.body, b"Wikipedia");
    }

    #[test]
    fn a_short_body_is_not_complete() {
        for answer in [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour".as_slice(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfour",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n",
        ] {
            let response = get(server(answer), "/");
            assert!(!response.complete);
            assert_eq!(response.body, b"four");
        }
    }

    #[test]
    fn a_body_without_framing_ends_with_the_connection() {
        let response = get(server(b"HTTP/1.1 200 OK\r\n\r\nuntil here"), "/");
        assert!(response.complete);
        assert_eq!(response.body, b"until here");
    }

    #[test]
    fn head_and_304_have_no_body() {
        let response = head(server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), "/");
        assert!(response.complete && response.body.is_empty());
        let answer = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n";
        assert!(get(server(answer), "/").complete);
    }

    #[test]
    #[should_panic(expected = "expected the end of the connection")]
    fn bytes_behind_the_body_are_noticed() {
        get(
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour!"),
            "/",
        );
    }

    #[test]
    #[should_panic(expected = "expected the end of the connection")]
    fn a_body_after_head_is_noticed() {
        head(
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour"),
            "/",
        );
    }

    #[test]
    #[should_panic(expected = "a chunk has no end")]
    fn a_chunk_longer_than_it_says_is_noticed() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfour\r\n0\r\n\r\n";
        get(server(answer), "/");
    }

    #[test]
    #[should_panic(expected = "both Content-Length and Transfer-Encoding")]
    fn two_framings_at_once_are_noticed() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
        get(server(answer), "/");
    }
}
