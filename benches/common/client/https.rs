//! HTTP/1.1 over TLS.

use std::{os::fd::OwnedFd, time::Instant};

use super::{end_of_head, tls::Records, Connection, Received, Requests, Sink, MAX_HEAD};

/// The bytes that are decrypted at once to find the end of a head.
const PIECE: usize = 512;

pub struct Https {
    records: Records,
    head: Vec<u8>,
    state: State,
    sent: Instant,
}

enum State {
    Idle,
    Head,
    /// So many bytes of the body have not arrived.
    Body(u64),
}

// === impl Https ===

impl Https {
    pub fn new(records: Records) -> Self {
        Self {
            records,
            head: Vec::with_capacity(MAX_HEAD),
            state: State::Idle,
            sent: Instant::now(),
        }
    }

    /// True if the head is complete.
    fn extend_head(&mut self) -> Option<bool> {
        let before = self.head.len();
        let front = self.records.front(PIECE)?;
        self.head.extend_from_slice(front);
        let end = end_of_head(&self.head);
        let end = end.inspect(|end| self.head.truncate(*end));
        assert!(self.head.len() < MAX_HEAD, "a head without an end");
        self.records.pass(self.head.len() - before);
        Some(end.is_some())
    }
}

impl Connection for Https {
    fn socket(&self) -> &OwnedFd {
        &self.records.socket
    }

    fn ask(&mut self, request: &[u8], now: Instant) {
        self.records.send(request);
        self.head.clear();
        self.state = State::Head;
        self.sent = now;
    }

    fn receive(&mut self, requests: &Requests, sink: &mut Sink) -> Received {
        self.records.wake();
        let mut received = Received::NOTHING;
        loop {
            match self.state {
                State::Idle => {
                    // The end of a record may come by itself, and nothing else.
                    let more = self.records.front(PIECE);
                    assert!(more.is_none(), "a server sent what nobody asked for");
                    return received;
                }
                State::Head => match self.extend_head() {
                    Some(true) => {
                        received.hit = requests.check_head(self.records.name, &self.head);
                        self.state = State::Body(requests.body_len);
                    }
                    Some(false) => {}
                    None => return received,
                },
                State::Body(0) => {
                    self.records.expect_end();
                    self.state = State::Idle;
                    received.complete = Some(self.sent);
                    return received;
                }
                State::Body(left) => match self.records.skip(left, sink) {
                    Some(n) => {
                        received.body += n;
                        self.state = State::Body(left - n);
                    }
                    None => return received,
                },
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
