use std::{
    fmt,
    io::{self, Write},
    net::TcpStream,
    time::Duration,
};

use super::{date, wire::octets, Seen};
use crate::Gate;

/// What the origin sends, byte by byte where a test wants it. A `Date` of now
/// and a `Content-Length` are added unless told otherwise; in field values each
/// character is one byte.
#[derive(Clone, Debug)]
pub struct Answer {
    kind: Kind,
    interim: Vec<u8>,
    status: u16,
    version: &'static str,
    fields: Vec<(String, String)>,
    dated: bool,
    /// None: tells which answer of its page it is.
    body: Option<Vec<u8>>,
    framing: Framing,
    trailers: Vec<(String, String)>,
    hold: Option<Gate>,
    hold_body: Option<(usize, Gate)>,
    cut: Option<usize>,
    close: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    Raw(Vec<u8>),
    HangUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    LengthOf(u64),
    Chunked,
    UntilClose,
}

// === impl Answer ===

impl Answer {
    /// 200, with a body that tells which answer of its page it is.
    pub fn ok() -> Self {
        Self::status(200)
    }

    pub fn status(status: u16) -> Self {
        Self {
            kind: Kind::Message,
            interim: Vec::new(),
            status,
            version: "HTTP/1.1",
            fields: Vec::new(),
            dated: true,
            body: None,
            framing: Framing::Length,
            trailers: Vec::new(),
            hold: None,
            hold_body: None,
            cut: None,
            close: false,
        }
    }

    /// 200 that is fresh for an hour and has a strong validator.
    pub fn fresh() -> Self {
        Self::ok()
            .field("Cache-Control", "max-age=3600")
            .field("ETag", "\"v1\"")
    }

    /// 200 that was fresh for a second, a minute ago, and has a strong
    /// validator.
    pub fn stale() -> Self {
        Self::ok()
            .field("Cache-Control", "max-age=1")
            .field("Age", 60)
            .field("ETag", "\"v1\"")
    }

    /// These bytes, whatever they are, and then the connection is closed.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        let mut answer = Self::ok();
        answer.kind = Kind::Raw(bytes.into());
        answer.close = true;
        answer
    }

    /// Nothing: the connection is closed once the request has been read.
    pub fn hang_up() -> Self {
        let mut answer = Self::ok();
        answer.kind = Kind::HangUp;
        answer
    }

    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a field line.
    pub fn field(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.fields.push((name.to_owned(), value.to_string()));
        self
    }

    /// Puts a field line in the place of those of the same name.
    pub fn set(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.fields
            .retain(|(field, _)| !field.eq_ignore_ascii_case(name));
        self.field(name, value)
    }

    /// Adds field lines.
    pub fn fields(mut self, fields: &[(&str, &str)]) -> Self {
        for (name, value) in fields {
            self = self.field(name, value);
        }
        self
    }

    /// Leaves out `Date`, unless a field says it.
    pub fn undated(mut self) -> Self {
        self.dated = false;
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Says this `Content-Length`, whatever the body's length is, and closes the
    /// connection after the body.
    pub fn claiming_length(mut self, length: u64) -> Self {
        self.framing = Framing::LengthOf(length);
        self.close = true;
        self
    }

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

    /// Ends the body by closing the connection, in HTTP/1.0 if so.
    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self.close = true;
        self
    }

    pub fn http10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// Sends an interim response before, in the same write as what follows
    /// unless that is held.
    pub fn interim(mut self, status: u16, fields: &[(&str, &str)]) -> Self {
        self.interim
            .extend(head(self.version, status, fields.iter().copied()));
        self
    }

    /// Sends interim responses, and then waits at the gate.
    pub fn hold(mut self, gate: &Gate) -> Self {
        self.hold = Some(gate.clone());
        self
    }

    /// Waits at the gate once `offset` bytes of the body are sent.
    pub fn hold_body(mut self, offset: usize, gate: &Gate) -> Self {
        self.hold_body = Some((offset, gate.clone()));
        self
    }

    /// Closes the connection once `offset` bytes of the body are sent.
    pub fn cut(mut self, offset: usize) -> Self {
        self.cut = Some(offset);
        self
    }

    /// Says `Connection: close`, and does it.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self.field("Connection", "close")
    }

    /// Writes the answer. Ok(true): the connection can carry another request.
    pub(super) fn write(
        &self,
        mut stream: &TcpStream,
        seen: &Seen,
        serial: usize,
        stopping: &dyn Fn() -> bool,
    ) -> io::Result<bool> {
        let wait = |gate: &Gate| {
            gate.arrive();
            while !gate.opens_within(Duration::from_millis(50)) {
                if stopping() {
                    return false;
                }
            }
            true
        };
        let mut pending = self.interim.clone();
        if let Some(gate) = &self.hold {
            stream.write_all(&std::mem::take(&mut pending))?;
            if !wait(gate) {
                return Ok(false);
            }
        }
        match &self.kind {
            Kind::Raw(bytes) => {
                pending.extend_from_slice(bytes);
                stream.write_all(&pending)?;
                return Ok(false);
            }
            Kind::HangUp => {
                stream.write_all(&pending)?;
                return Ok(false);
            }
            Kind::Message => {}
        }
        let body = match &self.body {
            Some(body) => body.clone(),
            None if matches!(self.status, 204 | 205) => Vec::new(),
            None => format!("{} #{serial}", seen.path()).into_bytes(),
        };
        pending.extend(self.head(body.len()));
        if seen.method == "HEAD" || matches!(self.status, 204 | 304) {
            stream.write_all(&pending)?;
            return Ok(!self.close);
        }
        let sent = self.cut.unwrap_or(body.len()).min(body.len());
        let mut at = 0;
        loop {
            let stop = match &self.hold_body {
                Some((offset, _)) if *offset > at => (*offset).min(sent),
                _ => sent,
            };
            self.frame(&body[at..stop], &mut pending);
            at = stop;
            match &self.hold_body {
                Some((offset, gate)) if *offset == at => {
                    stream.write_all(&std::mem::take(&mut pending))?;
                    if !wait(gate) {
                        return Ok(false);
                    }
                    if at == sent {
                        break;
                    }
                    let rest = &body[at..sent];
                    self.frame(rest, &mut pending);
                    break;
                }
                _ if at == sent => break,
                _ => {}
            }
        }
        if self.cut.is_some() {
            stream.write_all(&pending)?;
            return Ok(false);
        }
        if self.framing == Framing::Chunked {
            pending.extend_from_slice(b"0\r\n");
            for (name, value) in &self.trailers {
                pending.extend(octets(&format!("{name}: {value}\r\n")));
            }
            pending.extend_from_slice(b"\r\n");
        }
        stream.write_all(&pending)?;
        Ok(!self.close)
    }

    fn head(&self, len: usize) -> Vec<u8> {
        let mut fields = self.fields.clone();
        let has = |name: &str| {
            self.fields
                .iter()
                .any(|(field, _)| field.eq_ignore_ascii_case(name))
        };
        if self.dated && !has("date") {
            fields.push(("Date".to_owned(), date::from_now(0)));
        }
        let framed = matches!(self.status, 204 | 304) || has("content-length");
        match self.framing {
            _ if framed => {}
            Framing::Length => fields.push(("Content-Length".to_owned(), len.to_string())),
            Framing::LengthOf(len) => fields.push(("Content-Length".to_owned(), len.to_string())),
            Framing::Chunked => {
                fields.push(("Transfer-Encoding".to_owned(), "chunked".to_owned()));
            }
            Framing::UntilClose => {}
        }
        head(
            self.version,
            self.status,
            fields.iter().map(|(name, value)| (&name[..], &value[..])),
        )
    }

    fn frame(&self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.framing != Framing::Chunked {
            return out.extend_from_slice(bytes);
        }
        if !bytes.is_empty() {
            out.extend(format!("{:x}\r\n", bytes.len()).into_bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
    }
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
