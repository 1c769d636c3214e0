//! HTTP/1.1 on a socket as it is.

use std::{os::fd::OwnedFd, time::Instant};

use rustix::net::{send, RecvFlags, SendFlags};

use super::{end_of_head, receive_now, Connection, Received, Requests, Sink, MAX_HEAD, READ};

pub struct Http1 {
    name: &'static str,
    socket: OwnedFd,
    head: [u8; MAX_HEAD],
    state: State,
    sent: Instant,
    /// The bodies since a look began.
    seen: Option<Vec<u8>>,
}

enum State {
    Idle,
    /// So many bytes of the head have arrived.
    Head(usize),
    /// So many bytes of the body have not.
    Body(u64),
}

// === impl Http1 ===

impl Http1 {
    pub fn new(name: &'static str, socket: OwnedFd) -> Self {
        Self {
            name,
            socket,
            head: [0; MAX_HEAD],
            state: State::Idle,
            sent: Instant::now(),
            seen: None,
        }
    }

    /// None: nothing has arrived.
    fn receive_now(&self, buffer: &mut [u8], flags: RecvFlags) -> Option<usize> {
        receive_now(self.name, &self.socket, buffer, flags)
    }
}

impl Connection for Http1 {
    fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn ask(&mut self, request: &[u8], now: Instant) {
        let sent = send(&self.socket, request, SendFlags::NOSIGNAL);
        // Nothing else is in the socket's buffer, and a request is short.
        assert_eq!(sent, Ok(request.len()), "send a request to {}", self.name);
        self.state = State::Head(0);
        self.sent = now;
    }

    /// One recv(2), of the head or the body of the response under way.
    fn receive(&mut self, requests: &Requests, sink: &mut Sink) -> Received {
        let mut hit = true;
        let (asked, n, of_body, left) = match self.state {
            State::Idle => panic!("{} sent what nobody asked for", self.name),
            State::Head(filled) => {
                let free = &mut self.head[filled..];
                let asked = free.len();
                let received = receive_now(self.name, &self.socket, free, RecvFlags::empty());
                let Some(n) = received else {
                    return Received::NOTHING;
                };
                let received = &self.head[..filled + n];
                let Some(end) = end_of_head(received) else {
                    assert!(
                        received.len() < MAX_HEAD,
                        "{}: a head without an end",
                        self.name
                    );
                    self.state = State::Head(received.len());
                    return Received {
                        drained: n < asked,
                        ..Received::NOTHING
                    };
                };
                hit = requests.check_head(self.name, &received[..end]);
                if let Some(seen) = &mut self.seen {
                    seen.extend_from_slice(&received[end..]);
                }
                let of_body = (received.len() - end) as u64;
                (asked, n, of_body, requests.body_len.checked_sub(of_body))
            }
            State::Body(left) if self.seen.is_some() => {
                let mut piece = [0; READ];
                let asked = usize::try_from(left).map_or(READ, |left| left.min(READ));
                let Some(n) = self.receive_now(&mut piece[..asked], RecvFlags::empty()) else {
                    return Received::NOTHING;
                };
                let seen = self.seen.iter_mut();
                seen.for_each(|seen| seen.extend_from_slice(&piece[..n]));
                (asked, n, n as u64, left.checked_sub(n as u64))
            }
            State::Body(left) => {
                let most = sink.buffer.len();
                let asked = usize::try_from(left).map_or(most, |left| left.min(most));
                let Some(n) = self.receive_now(&mut sink.buffer[..asked], sink.flags) else {
                    return Received::NOTHING;
                };
                (asked, n, n as u64, left.checked_sub(n as u64))
            }
        };
        let left = left.unwrap_or_else(|| panic!("{} sent more than a body", self.name));
        self.state = match left {
            0 => State::Idle,
            left => State::Body(left),
        };
        Received {
            body: of_body,
            complete: (left == 0).then_some(self.sent),
            // epoll(7), "Questions and answers", 9; and nothing comes unasked.
            drained: n < asked || left == 0,
            hit,
        }
    }

    fn begin_look(&mut self) {
        self.seen = Some(Vec::new());
    }

    fn end_look(&mut self) -> Vec<u8> {
        self.seen.take().unwrap_or_default()
    }
}
