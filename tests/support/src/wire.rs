//! What both sides read from a connection: heads, and bodies by their framing.

use std::{
    io::{self, ErrorKind, Read},
    net::TcpStream,
};

use crate::head::{end_of_head, Head, Headers, MAX_HEAD};

/// Bytes that arrived, and those still to come.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    pub(super) buffer: Vec<u8>,
}

/// Where a body ends (RFC 9112, section 6.3).
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// A body as far as it came.
#[derive(Default)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) trailers: Headers,
    /// Whether it came to the end that its framing gives it.
    pub(super) complete: bool,
}

/// Text in which each character is one byte.
pub(super) fn octets(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u8::try_from(c).unwrap_or_else(|_| panic!("{c:?} is not one byte")))
        .collect()
}

// === impl Wire ===

impl Wire {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Ok(None): the peer closed before the first byte.
    pub(super) fn read_head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = end_of_head(&self.buffer) {
                let head = Head::parse_octets(&self.buffer[..end])
                    .map_err(|reason| io::Error::new(ErrorKind::InvalidData, reason))?;
                self.buffer.drain(..end);
                return Ok(Some(head));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(io::Error::new(ErrorKind::InvalidData, "an endless head"));
            }
            if !self.fill()? {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// Reads a body, or as much as comes before the peer goes.
    pub(super) fn read_body(&mut self, framing: &Framing) -> Body {
        let mut body = Body::default();
        body.complete = self.read_framed(framing, &mut body).is_ok();
        body
    }

    fn read_framed(&mut self, framing: &Framing, body: &mut Body) -> io::Result<()> {
        match framing {
            Framing::None => Ok(()),
            Framing::Length(len) => self.take(*len, &mut body.bytes),
            Framing::UntilClose => loop {
                body.bytes.append(&mut self.buffer);
                if !self.fill()? {
                    return Ok(());
                }
            },
            Framing::Chunked => loop {
                let line = self.read_line()?;
                let digits = line.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(digits, 16).map_err(|_| {
                    io::Error::new(ErrorKind::InvalidData, format!("chunk size {line:?}"))
                })?;
                if size == 0 {
                    return self.read_trailers(&mut body.trailers);
                }
                self.take(size, &mut body.bytes)?;
                let end = self.read_line()?;
                if !end.is_empty() {
                    return Err(io::Error::new(ErrorKind::InvalidData, "a chunk has no end"));
                }
            },
        }
    }

    fn read_trailers(&mut self, trailers: &mut Headers) -> io::Result<()> {
        loop {
            let line = self.read_line()?;
            match line.split_once(':') {
                _ if line.is_empty() => return Ok(()),
                Some((name, value)) => trailers.push(name, value.trim()),
                None => return Err(io::Error::new(ErrorKind::InvalidData, line)),
            }
        }
    }

    fn take(&mut self, mut len: u64, out: &mut Vec<u8>) -> io::Result<()> {
        while len > 0 {
            if self.buffer.is_empty() && !self.fill()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let n = self
                .buffer
                .len()
                .min(usize::try_from(len).unwrap_or(usize::MAX));
            out.extend(self.buffer.drain(..n));
            len -= n as u64;
        }
        Ok(())
    }

    fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = self.buffer.drain(..at + 2).take(at).map(char::from);
                return Ok(line.collect());
            }
            if !self.fill()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads once. Ok(false): the peer closed.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(n) => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                    return Ok(n > 0);
                }
            }
        }
    }
}

// === impl Framing ===

impl Framing {
    /// None where both lengths are given, or one that cannot be read.
    pub(super) fn of(headers: &Headers) -> Option<Option<Self>> {
        let length = match headers.all("content-length")[..] {
            [] => None,
            [value] => Some(value.parse().ok()?),
            _ => return None,
        };
        let coding = match headers.all("transfer-encoding")[..] {
            [] => None,
            [value] if value.eq_ignore_ascii_case("chunked") => Some(()),
            _ => return None,
        };
        match (length, coding) {
            (Some(_), Some(())) => None,
            (Some(length), None) => Some(Some(Self::Length(length))),
            (None, Some(())) => Some(Some(Self::Chunked)),
            (None, None) => Some(None),
        }
    }
}
