//! HTTP/2 (RFC 9113) over TLS, as far as hits need it. Only the headers of frames, and the
//! frames that are no DATA, are decrypted.

use std::{os::fd::OwnedFd, time::Instant};

use super::{tls::Records, Connection, Received, Requests, Sink};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const WINDOW_UPDATE: u8 = 0x8;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Settings.
const ENABLE_PUSH: u8 = 0x2;
const INITIAL_WINDOW_SIZE: u8 = 0x4;

/// Nobody waits for a window: it is as large as it may be, and the connection's is opened
/// again when half of it is used.
const MAX_WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: u32 = 65_535;

/// The bytes of a frame's header.
pub const HEADER: usize = 9;

/// The bytes that are kept of a frame that is no DATA: all of most, and the beginning of a
/// header block.
const KEPT: usize = 32;

/// `:status: 200` of HPACK's static table, indexed (RFC 7541 §6.1, appendix A).
const STATUS_200: u8 = 0x88;

pub struct Http2 {
    records: Records,
    /// Frames that are to be sent.
    unsent: Vec<u8>,
    next_stream: u32,
    streams: Vec<Stream>,
    /// The bytes of the present frame's header that have come.
    header: Vec<u8>,
    /// The present frame, where its header is complete.
    frame: Option<Frame>,
    /// The beginning of the present frame's payload, where it is no DATA.
    payload: Vec<u8>,
    /// The bytes of DATA since the connection's window was opened.
    used: u32,
}

/// A stream with a request that is not answered completely.
struct Stream {
    id: u32,
    sent: Instant,
    has_head: bool,
    body: u64,
}

pub struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// The bytes of its payload that have not come.
    pub left: usize,
}

/// The header block of a request, as [`Requests::texts`] has it for HTTP/2.
pub fn header_block(authority: &str, path: &str) -> Vec<u8> {
    // `:method: GET` and `:scheme: https`, indexed; `:authority` and `:path` with a name that
    // is, and a value that is neither indexed nor compressed (RFC 7541 §6.2.2).
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(0x01, authority), (0x04, path)] {
        let len = u8::try_from(value.len()).expect("a short value");
        assert!(len < 0x7f, "a value whose length takes one byte");
        block.extend([name, len]);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// The start of a connection, with windows that nobody waits for.
pub fn preface() -> Vec<u8> {
    let mut preface = PREFACE.to_vec();
    let mut settings = vec![0, ENABLE_PUSH, 0, 0, 0, 0, 0, INITIAL_WINDOW_SIZE];
    settings.extend(MAX_WINDOW.to_be_bytes());
    frame(SETTINGS, 0, 0, &settings, &mut preface);
    let more = MAX_WINDOW - DEFAULT_WINDOW;
    frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes(), &mut preface);
    preface
}

/// Appends a request without a body.
pub fn request(stream: u32, block: &[u8], out: &mut Vec<u8>) {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, block, out);
}

/// The frame that a frame demands, if it demands one.
pub fn answer(asked: &Frame, payload: &[u8]) -> Option<Vec<u8>> {
    let payload = match asked.kind {
        _ if asked.flags & ACK != 0 => return None,
        SETTINGS => &[],
        PING => payload,
        _ => return None,
    };
    let mut answer = Vec::new();
    frame(asked.kind, ACK, 0, payload, &mut answer);
    Some(answer)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(payload.len()).expect("the length of a frame");
    out.extend_from_slice(&len.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

// === impl Frame ===

impl Frame {
    /// Of the bytes of a header.
    pub fn parse(header: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = header[at..][..4].try_into();
            u32::from_be_bytes(bytes.expect("four bytes"))
        };
        Self {
            kind: header[3],
            flags: header[4],
            stream: word(5) & MAX_WINDOW,
            left: (word(0) >> 8) as usize,
        }
    }

    /// True if it begins a response.
    pub fn is_head(&self) -> bool {
        self.kind == HEADERS
    }

    pub fn is_data(&self) -> bool {
        self.kind == DATA
    }
}

// === impl Http2 ===

impl Http2 {
    pub fn new(records: Records) -> Self {
        Self {
            records,
            unsent: preface(),
            next_stream: 1,
            streams: Vec::new(),
            header: Vec::with_capacity(HEADER),
            frame: None,
            payload: Vec::with_capacity(KEPT),
            used: 0,
        }
    }

    /// True if the header of a frame is complete. None: nothing has arrived.
    fn extend_header(&mut self) -> Option<bool> {
        let missing = HEADER - self.header.len();
        let front = self.records.front(missing)?;
        let n = front.len();
        self.header.extend_from_slice(front);
        self.records.pass(n);
        if n < missing {
            return Some(false);
        }
        self.frame = Some(Frame::parse(&self.header));
        self.header.clear();
        self.payload.clear();
        Some(true)
    }

    /// The end of a frame. Returns the time at which the response was asked for that it ends.
    fn end_frame(&mut self, frame: &Frame, body_len: u64) -> Option<Instant> {
        let name = self.records.name;
        match frame.kind {
            DATA => {}
            HEADERS => {
                // After changes of the dynamic table's size (RFC 7541 §6.3).
                let status = self.payload.iter().find(|byte| **byte & 0xe0 != 0x20);
                assert_eq!(status, Some(&STATUS_200), "{name}: not a status of 200");
                self.stream(frame.stream).has_head = true;
            }
            SETTINGS | PING => {
                let answer = answer(frame, &self.payload);
                self.unsent.extend(answer.unwrap_or_default());
            }
            WINDOW_UPDATE => {}
            kind => panic!("{name}: a frame of type {kind}: {:?}", self.payload),
        }
        if !matches!(frame.kind, DATA | HEADERS) || frame.flags & END_STREAM == 0 {
            return None;
        }
        let index = self.streams.iter().position(|s| s.id == frame.stream)?;
        let stream = self.streams.swap_remove(index);
        assert!(stream.has_head, "{name}: a body without a head");
        assert_eq!(stream.body, body_len, "{name}: a body of another length");
        Some(stream.sent)
    }

    fn stream(&mut self, id: u32) -> &mut Stream {
        let stream = self.streams.iter_mut().find(|stream| stream.id == id);
        stream.unwrap_or_else(|| panic!("{}: nobody asked on {id}", self.records.name))
    }

    /// Bytes of DATA have come.
    fn count(&mut self, id: u32, n: u64) {
        self.stream(id).body += n;
        self.used += n as u32;
        if self.used > MAX_WINDOW / 2 {
            let used = self.used.to_be_bytes();
            frame(WINDOW_UPDATE, 0, 0, &used, &mut self.unsent);
            self.used = 0;
        }
    }
}

impl Connection for Http2 {
    fn socket(&self) -> &OwnedFd {
        &self.records.socket
    }

    fn ask(&mut self, request: &[u8], now: Instant) {
        self::request(self.next_stream, request, &mut self.unsent);
        self.streams.push(Stream {
            id: self.next_stream,
            sent: now,
            has_head: false,
            body: 0,
        });
        self.next_stream += 2;
    }

    fn flush(&mut self) {
        if !self.unsent.is_empty() {
            self.records.send(&self.unsent);
            self.unsent.clear();
        }
    }

    fn receive(&mut self, requests: &Requests, sink: &mut Sink) -> Received {
        let mut received = Received::NOTHING;
        loop {
            let Some(present) = &mut self.frame else {
                match self.extend_header() {
                    Some(_) => continue,
                    None => return received,
                }
            };
            if present.left == 0 {
                let frame = self.frame.take().expect("a frame");
                let asked = self.end_frame(&frame, requests.body_len);
                if asked.is_some() {
                    received.complete = asked;
                    received.drained = false;
                    return received;
                }
                continue;
            }
            if present.kind == DATA {
                assert_eq!(present.flags & PADDED, 0, "DATA with padding");
                let (id, left) = (present.stream, present.left as u64);
                let Some(n) = self.records.skip(left, sink) else {
                    return received;
                };
                present.left -= n as usize;
                received.body += n;
                self.count(id, n);
            } else {
                let Some(front) = self.records.front(present.left) else {
                    return received;
                };
                let n = front.len();
                let kept = n.min(KEPT - self.payload.len());
                self.payload.extend_from_slice(&front[..kept]);
                present.left -= n;
                self.records.pass(n);
            }
        }
    }

    fn begin_look(&mut self) {
        self.records.begin_look();
    }

    fn end_look(&mut self) -> Vec<u8> {
        self.records.end_look()
    }
}
