//! The bytes of a connection: heads, and bodies by their framing.

use std::{
    io::{self, ErrorKind, Read},
    net::TcpStream,
};

use crate::head::{end_of_head, Head, Headers, MAX_HEAD};

/// The most that one read takes from the socket.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// A connection, and what has been received of it and not yet been consumed.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

/// The framing of a body (RFC 9112, section 6.3), with the length that is left.
#[derive(Debug)]
pub(crate) enum Framing {
    Length(u64),
    Chunk(u64),
    ChunkEnd,
    ChunkSize,
    UntilClose,
    Done,
    Cut,
}

/// The reason that a body came to no end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The peer closed or reset the connection before the end.
    Cut,
    /// The peer broke the framing.
    Malformed(String),
}

// === impl Wire ===

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Reads until the whole head is in the buffer; returns where it ends. Ok(None): the
    /// peer closed before the first byte.
    pub(crate) fn wait_for_head(&mut self) -> Result<Option<usize>, String> {
        loop {
            if let Some(end) = end_of_head(&self.buffer) {
                return Ok(Some(end));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(format!("the head is longer than {MAX_HEAD} bytes"));
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) if self.buffer.is_empty() => return Ok(None),
                Ok(false) => return Err("closed before the head was complete".to_owned()),
                Err(e) => return Err(format!("reading the head: {e}")),
            }
        }
    }

    /// Ok(None): the peer closed before the first byte.
    pub(crate) fn read_head(&mut self) -> Result<Option<Head>, String> {
        let Some(end) = self.wait_for_head()? else {
            return Ok(None);
        };
        let head = Head::parse(&self.buffer[..end])?;
        self.buffer.drain(..end);
        Ok(Some(head))
    }

    /// One line of the chunked coding, without its CRLF.
    fn read_line(&mut self) -> Result<String, Broken> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = self.buffer.drain(..at + 2).take(at).map(char::from);
                return Ok(line.collect());
            }
            if self.buffer.len() >= MAX_HEAD {
                return Err(Broken::Malformed("a chunk's line has no end".to_owned()));
            }
            if !self.fill()? {
                return Err(Broken::Cut);
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

    /// At most `left` bytes and at least one.
    fn take_some(&mut self, left: u64, out: &mut [u8]) -> Result<usize, Broken> {
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match self.take(&mut out[..len])? {
            0 => Err(Broken::Cut),
            n => Ok(n),
        }
    }

    /// Reads once. Ok(false): the peer closed.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; READ_SIZE];
        let n = self.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(out) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

// === impl Framing ===

impl Framing {
    /// Of a message that is not a response without a body. None: it says no framing.
    pub(crate) fn of(headers: &Headers) -> Result<Option<Self>, String> {
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
        match (length, coding) {
            // RFC 9112, sections 6.1 and 6.2.
            (Some(_), Some(_)) => Err("both Content-Length and Transfer-Encoding".to_owned()),
            (Some(length), None) => Ok(Some(Self::Length(length))),
            (None, Some(_)) => Ok(Some(Self::ChunkSize)),
            (None, None) => Ok(None),
        }
    }

    /// Of the response to a request with this method.
    pub(crate) fn of_response(
        method: &str,
        status: u16,
        headers: &Headers,
    ) -> Result<Self, String> {
        let framing = Self::of(headers)?;
        if matches!(status, 100..=199 | 204) && framing.is_some() {
            return Err(format!("a {status} with a body's framing"));
        }
        Ok(match framing {
            _ if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) => Self::Done,
            Some(framing) => framing,
            None => Self::UntilClose,
        })
    }

    /// Decoded body bytes. Ok(0): the body is complete.
    pub(crate) fn read(
        &mut self,
        wire: &mut Wire,
        trailers: &mut Headers,
        out: &mut [u8],
    ) -> Result<usize, Broken> {
        let result = self.read_framed(wire, trailers, out);
        if result.is_err() {
            *self = Self::Cut;
        }
        result
    }

    fn read_framed(
        &mut self,
        wire: &mut Wire,
        trailers: &mut Headers,
        out: &mut [u8],
    ) -> Result<usize, Broken> {
        loop {
            match *self {
                Self::Done => return Ok(0),
                Self::Cut => return Err(Broken::Cut),
                Self::Length(0) => *self = Self::Done,
                Self::Length(left) => {
                    let n = wire.take_some(left, out)?;
                    *self = Self::Length(left - n as u64);
                    return Ok(n);
                }
                Self::UntilClose => {
                    let n = wire.take(out)?;
                    if n == 0 {
                        *self = Self::Done;
                    }
                    return Ok(n);
                }
                Self::ChunkSize => {
                    let line = wire.read_line()?;
                    let size = parse_chunk_size(&line).ok_or_else(|| {
                        Broken::Malformed(format!("not a chunk's size: {line:?}"))
                    })?;
                    *self = match size {
                        0 => {
                            read_trailers(wire, trailers)?;
                            Self::Done
                        }
                        size => Self::Chunk(size),
                    };
                }
                Self::Chunk(0) => *self = Self::ChunkEnd,
                Self::Chunk(left) => {
                    let n = wire.take_some(left, out)?;
                    *self = Self::Chunk(left - n as u64);
                    return Ok(n);
                }
                Self::ChunkEnd => {
                    let mut crlf = [0; 2];
                    let mut filled = 0;
                    while filled < 2 {
                        filled += wire.take_some(2, &mut crlf[filled..])?;
                    }
                    if &crlf != b"\r\n" {
                        return Err(Broken::Malformed("a chunk has no end".to_owned()));
                    }
                    *self = Self::ChunkSize;
                }
            }
        }
    }
}

fn read_trailers(wire: &mut Wire, trailers: &mut Headers) -> Result<(), Broken> {
    loop {
        let line = wire.read_line()?;
        match line.split_once(':') {
            _ if line.is_empty() => return Ok(()),
            Some((name, value)) => trailers.push(name, value.trim()),
            None => return Err(Broken::Malformed(format!("not a trailer field: {line:?}"))),
        }
    }
}

/// Digits only: no sign, no space.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
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

// === impl Broken ===

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Self::Malformed("the peer sent nothing for too long".to_owned())
            }
            _ => Self::Cut,
        }
    }
}
