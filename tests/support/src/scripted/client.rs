use std::{
    collections::HashMap,
    io::Write,
    net::{Shutdown, SocketAddr, TcpStream},
};

use super::wire::{octets, Framing, Wire};
use crate::{Headers, PATIENCE};

/// A connection on which a test sends what it likes and sees all that comes.
pub struct Client {
    wire: Wire,
}

/// A response as it arrived. Each character of a field's value is one byte.
#[derive(Clone, Debug)]
pub struct Got {
    pub interim: Vec<Interim>,
    pub version: String,
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub trailers: Headers,
    /// Whether the body came to the end that its framing gives it.
    pub complete: bool,
}

/// A response before the final one.
#[derive(Clone, Debug)]
pub struct Interim {
    pub status: u16,
    pub headers: Headers,
}

/// One member of `Cache-Status` (RFC 9211), the one nearest to the client.
#[derive(Clone, Debug, Default)]
pub struct CacheStatus {
    pub cache: String,
    parameters: HashMap<String, String>,
}

// === impl Client ===

impl Client {
    pub fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap_or_else(|e| panic!("connect to {addr}: {e}"));
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("set the read timeout");
        Self {
            wire: Wire::new(stream).expect("set TCP_NODELAY"),
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire
            .stream
            .write_all(bytes.as_ref())
            .expect("send to the proxy");
    }

    /// Sends a request; a body is framed by `Content-Length` unless the fields
    /// frame it.
    pub fn ask(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) {
        let has = |name: &str| fields.iter().any(|(f, _)| f.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !has("host") {
            head += "Host: site.example\r\n";
        }
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() && !has("content-length") && !has("transfer-encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut bytes = octets(&head);
        bytes.extend_from_slice(body);
        self.send(bytes);
    }

    /// No more will be sent.
    pub fn finish_sending(&self) {
        self.wire
            .stream
            .shutdown(Shutdown::Write)
            .expect("shut down the sending side");
    }

    /// Reads one response, with the interim ones before it. `method` is that of
    /// the request.
    pub fn receive(&mut self, method: &str) -> Got {
        self.try_receive(method)
            .unwrap_or_else(|reason| panic!("the response to {method}: {reason}"))
    }

    /// As [`Self::receive`]; the error says why there is none.
    pub fn try_receive(&mut self, method: &str) -> Result<Got, String> {
        let mut got = self.receive_head()?;
        let framing = Framing::of(&got.headers)
            .ok_or_else(|| format!("two framings at once:\n{}", got.headers))?;
        let no_body = method == "HEAD" || matches!(got.status, 204 | 304);
        let framing = match framing {
            _ if no_body => Framing::None,
            Some(framing) => framing,
            None => Framing::UntilClose,
        };
        let body = self.wire.read_body(&framing);
        got.body = body.bytes;
        got.trailers = body.trailers;
        got.complete = body.complete;
        Ok(got)
    }

    /// Reads the head of the final response only; the body is empty.
    pub fn receive_head(&mut self) -> Result<Got, String> {
        let mut interim = Vec::new();
        loop {
            let head = self
                .wire
                .read_head()
                .map_err(|e| e.to_string())?
                .ok_or("the connection was closed without a response")?;
            let mut words = head.start_line.splitn(3, ' ');
            let version = words.next().unwrap_or_default().to_owned();
            let status = words
                .next()
                .filter(|code| code.len() == 3)
                .and_then(|code| code.parse().ok())
                .filter(|_| version.starts_with("HTTP/1."))
                .ok_or_else(|| format!("not a status line: {:?}", head.start_line))?;
            if (100..200).contains(&status) {
                interim.push(Interim {
                    status,
                    headers: head.headers,
                });
                continue;
            }
            return Ok(Got {
                interim,
                version,
                status,
                headers: head.headers,
                body: Vec::new(),
                trailers: Headers::default(),
                complete: false,
            });
        }
    }

    /// Reads until `len` bytes of the raw body are there.
    pub fn receive_bytes(&mut self, len: u64) -> Vec<u8> {
        self.wire.read_body(&Framing::Length(len)).bytes
    }

    /// Reads the next interim response by itself.
    pub fn receive_interim(&mut self) -> Interim {
        let head = self.wire.read_head().expect("read a head");
        let head = head.expect("the connection was closed without a response");
        let status = head.start_line.split(' ').nth(1).unwrap_or_default();
        Interim {
            status: status.parse().expect("a status"),
            headers: head.headers,
        }
    }

    /// Whether the server has ended the connection, without more bytes.
    pub fn is_closed(&mut self) -> bool {
        self.wire.buffer.is_empty() && matches!(self.wire.read_head(), Ok(None))
    }
}

// === impl Got ===

impl Got {
    /// The value of a field that must not appear twice, as [`Headers::get`].
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
        let members = split(&all, ',');
        CacheStatus::parse(members.last().expect("a member"))
    }

    /// `X-Cache`, without regard to case and to what follows the first word.
    pub fn x_cache(&self) -> String {
        let value = self.header("x-cache").unwrap_or_default();
        let word = value.split([' ', ',']).next().unwrap_or_default();
        word.to_ascii_uppercase()
    }
}

// === impl CacheStatus ===

impl CacheStatus {
    fn parse(member: &str) -> Self {
        let parts = split(member, ';');
        let parameters = parts[1..].iter().map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, "?1"));
            (name.trim().to_owned(), value.trim().to_owned())
        });
        Self {
            cache: parts[0].to_owned(),
            parameters: parameters.collect(),
        }
    }

    /// The value of a parameter, as it stands; `?1` where there is none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "?0")
    }

    pub fn is_hit(&self) -> bool {
        self.has("hit")
    }
}

/// Splits at a separator that stands outside quotes (RFC 9651, section 3.3.3).
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == separator && !quoted => {
                parts.push(text[start..at].trim());
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}
