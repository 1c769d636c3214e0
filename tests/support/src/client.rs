//! An HTTP/1.1 client that hides nothing: it shows how a transfer ended, reads
//! as slowly as asked, resets on demand, and panics on every breach of framing.

use std::{
    io::{self, Write},
    mem,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    head::{octets, Head, Headers},
    wire::{parse_decimal, Broken, Framing, Wire, READ_SIZE},
    CacheStatus, Pattern, PATIENCE,
};

/// A connection that is kept alive for as long as the server agrees.
pub struct Connection {
    wire: Wire,
    /// The `Host` of a request that names none.
    host: String,
    reusable: bool,
}

/// A response whose body is still to be read.
pub struct Incoming<'c> {
    /// The responses before this one.
    pub interim: Vec<Interim>,
    pub status: u16,
    pub headers: Headers,
    trailers: Headers,
    connection: &'c mut Connection,
    framing: Framing,
    /// The request, for messages.
    request: String,
}

/// A response before the final one.
#[derive(Clone, Debug)]
pub struct Interim {
    pub status: u16,
    pub headers: Headers,
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Response {
    pub interim: Vec<Interim>,
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub trailers: Headers,
    /// True if the body came to the end that its framing gives it. False: the
    /// connection was closed or reset before.
    pub complete: bool,
}

/// The arrival of a body that was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub len: u64,
    /// As in [`Response::complete`].
    pub complete: bool,
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
    let mut connection = Connection::try_open(addr).ok()?;
    let response = connection
        .try_begin("GET", target, &[("Connection", "close")])
        .ok()?;
    Some(response.finish())
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

    /// A connection from one of the addresses of this machine, as that of another client: on Linux,
    /// all of 127.0.0.0/8 are.
    pub fn open_from(source: impl Into<IpAddr>, addr: SocketAddr) -> Self {
        let connect = || {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(source.into(), 0).into())?;
            socket.connect(&addr.into())?;
            Ok::<TcpStream, io::Error>(socket.into())
        };
        Self::over(connect().unwrap_or_else(|e| panic!("connect to {addr}: {e}")))
    }

    fn over(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("set the read timeout");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("set the write timeout");
        let host = stream.peer_addr().map(|addr| addr.to_string());
        Self {
            host: host.unwrap_or_default(),
            wire: Wire::new(stream).expect("set TCP_NODELAY"),
            reusable: true,
        }
    }

    /// The same connection, whose requests have this `Host` unless they name another one.
    pub fn with_host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
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
        self.incoming(method, target)
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
        Ok(self.incoming(method, target))
    }

    /// Reads the head of the response to a request that [`Self::send`] sent.
    pub fn incoming(&mut self, method: &str, target: &str) -> Incoming<'_> {
        self.try_incoming(method, target)
            .unwrap_or_else(|reason| panic!("{method} {target}: {reason}"))
    }

    fn try_incoming(&mut self, method: &str, target: &str) -> Result<Incoming<'_>, String> {
        let mut interim = Vec::new();
        let (status, head) = loop {
            let (status, head) = self.read_head()?;
            if !(100..200).contains(&status) {
                break (status, head);
            }
            Framing::of_response(method, status, &head.headers)?;
            interim.push(Interim {
                status,
                headers: head.headers,
            });
        };
        Incoming::new(self, method, target, interim, status, head.headers)
    }

    /// Reads one response, with the interim ones before it. `method` is that of the request.
    pub fn receive(&mut self, method: &str) -> Response {
        self.try_receive(method)
            .unwrap_or_else(|reason| panic!("the response to {method}: {reason}"))
    }

    /// As [`Self::receive`]; the error says why there is none.
    pub fn try_receive(&mut self, method: &str) -> Result<Response, String> {
        Ok(self.try_incoming(method, "")?.finish())
    }

    /// Reads the head of the final response only; the body is left, and as a whole is not
    /// complete.
    pub fn receive_head(&mut self) -> Result<Response, String> {
        let mut incoming = self.try_incoming("GET", "")?;
        Ok(incoming.response(Vec::new(), false))
    }

    /// Reads until `len` bytes of the raw body are there.
    pub fn receive_bytes(&mut self, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let mut framing = Framing::Length(len);
        let mut filled = 0;
        while let Ok(n @ 1..) = framing.read(
            &mut self.wire,
            &mut Headers::default(),
            &mut bytes[filled..],
        ) {
            filled += n;
        }
        bytes.truncate(filled);
        bytes
    }

    /// Reads the next interim response by itself.
    pub fn receive_interim(&mut self) -> Interim {
        let (status, head) = self.read_head().expect("an interim response");
        Interim {
            status,
            headers: head.headers,
        }
    }

    /// Sends a request without a body only, for a client that never reads or asks ahead.
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        self.send_raw(&self.request_head(method, target, headers, b""))
    }

    /// Sends a request; a body is framed by `Content-Length` unless the fields frame it.
    pub fn ask(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) {
        let mut bytes = self.request_head(method, target, fields, body);
        bytes.extend_from_slice(body);
        self.send_bytes(bytes);
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.stream.write_all(bytes)
    }

    /// As [`Self::send_raw`], to a server that takes them.
    pub fn send_bytes(&mut self, bytes: impl AsRef<[u8]>) {
        self.send_raw(bytes.as_ref()).expect("send to the proxy");
    }

    /// Sends no more.
    pub fn finish_sending(&self) {
        self.wire
            .stream
            .shutdown(Shutdown::Write)
            .expect("shut down the sending side");
    }

    /// Resets the connection instead of closing it.
    pub fn abort(self) {
        SockRef::from(&self.wire.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("set SO_LINGER");
    }

    /// True if the last response left the connection open for another request.
    pub fn is_reusable(&self) -> bool {
        self.reusable
    }

    /// Panics where the server sent something that nobody asked for.
    fn expect_silent(&mut self) {
        let stream = &self.wire.stream;
        stream.set_nonblocking(true).expect("set O_NONBLOCK");
        let mut byte = [0];
        let peeked = stream.peek(&mut byte);
        stream.set_nonblocking(false).expect("clear O_NONBLOCK");
        assert!(
            self.wire.buffer.is_empty() && !matches!(peeked, Ok(1..)),
            "bytes behind the end of the last response"
        );
    }

    /// Panics unless the server closes the connection, sending nothing more.
    pub fn expect_closed(mut self) {
        let more = self.wire.fill();
        let buffered = self.wire.buffer.len();
        assert!(
            matches!(more, Ok(false)) && buffered == 0,
            "expected the end of the connection: {more:?}, {buffered} bytes more"
        );
    }

    /// True if the server ends the connection without more bytes.
    pub fn is_closed(&mut self) -> bool {
        self.wire.buffer.is_empty() && matches!(self.wire.read_head(), Ok(None))
    }

    fn wait_for_head(&mut self) -> Result<usize, String> {
        let end = self.wire.wait_for_head()?;
        end.ok_or_else(|| "the connection was closed without a response".to_owned())
    }

    fn read_head(&mut self) -> Result<(u16, Head), String> {
        self.wait_for_head()?;
        let head = self.wire.read_head()?.expect("a head is there");
        Ok((parse_status_line(&head.start_line)?, head))
    }

    /// The head of a request, and the length of its body unless the fields frame it.
    fn request_head(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let has = |name: &str| fields.iter().any(|(f, _)| f.eq_ignore_ascii_case(name));
        let mut head = String::new();
        if !has("host") {
            head += &format!("Host: {}\r\n", self.host);
        }
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() && !has("content-length") && !has("transfer-encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut bytes = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
        bytes.extend(octets(&head));
        bytes
    }
}

// === impl Incoming ===

impl<'c> Incoming<'c> {
    fn new(
        connection: &'c mut Connection,
        method: &str,
        target: &str,
        interim: Vec<Interim>,
        status: u16,
        headers: Headers,
    ) -> Result<Self, String> {
        let framing = Framing::of_response(method, status, &headers)?;
        let closes = headers
            .all("connection")
            .into_iter()
            .flat_map(|value| value.split(','))
            .any(|option| option.trim().eq_ignore_ascii_case("close"));
        connection.reusable = !closes && !matches!(framing, Framing::UntilClose);
        Ok(Self {
            interim,
            status,
            headers,
            trailers: Headers::default(),
            connection,
            framing,
            request: format!("{method} {target}"),
        })
    }

    /// Reads the rest and keeps it.
    pub fn finish(mut self) -> Response {
        let mut body = Vec::new();
        let transfer = self.pump(READ_SIZE, |_, bytes| body.extend_from_slice(bytes));
        self.response(body, transfer.complete)
    }

    fn response(&mut self, body: Vec<u8>, complete: bool) -> Response {
        Response {
            interim: mem::take(&mut self.interim),
            status: self.status,
            headers: mem::take(&mut self.headers),
            body,
            trailers: mem::take(&mut self.trailers),
            complete,
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
        self.response(body, transfer.complete)
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
        let result = self
            .framing
            .read(&mut self.connection.wire, &mut self.trailers, out);
        result.map_err(|broken| {
            self.connection.reusable = false;
            match broken {
                Broken::Cut => Cut,
                Broken::Malformed(reason) => panic!("{}: {reason}", self.request),
            }
        })
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

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Which answer of its page it is. None: the body is none of these.
    pub fn serial(&self) -> Option<usize> {
        self.text().rsplit_once('#')?.1.parse().ok()
    }

    /// None: not there. Panics unless it is one number.
    pub fn age(&self) -> Option<u64> {
        let age = self.header("age")?;
        Some(age.parse().unwrap_or_else(|_| panic!("Age: {age}")))
    }

    /// The last member, which is that of the cache nearest to the client. Panics
    /// where the field is missing.
    pub fn cache_status(&self) -> CacheStatus {
        let all = self.headers.all("cache-status").join(", ");
        assert!(!all.is_empty(), "no Cache-Status:\n{}", self.headers);
        CacheStatus::last(&all)
    }

    /// `X-Cache`, without regard to case and to what follows the first word.
    pub fn x_cache(&self) -> String {
        let value = self.header("x-cache").unwrap_or_default();
        let word = value.split([' ', ',']).next().unwrap_or_default();
        word.to_ascii_uppercase()
    }

    /// SHA-256 of the body.
    pub fn sha256(&self) -> String {
        crate::sha256(&self.body)
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

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener};

    use super::*;
    use crate::head::end_of_head;

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
