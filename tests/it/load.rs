//! Clients that go on while the proxy is reloaded or replaced, and what has failed for them.

use std::{
    net::SocketAddr,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        Mutex,
    },
    thread::Scope,
};

use test_support::{https_client, Connection, HttpVersion};

/// The most failures that are kept.
const MAX_FAILURES: usize = 20;

/// Clients of `/assets`, each on a thread of its own: hits and misses, on connections that are kept alive
/// and on new ones, with and without TLS, over HTTP/1.1 and HTTP/2.
#[derive(Default)]
pub struct Load {
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
    stops: AtomicBool,
}

/// Clients that run, until this is dropped.
pub struct Clients<'l>(&'l Load);

impl Drop for Clients<'_> {
    fn drop(&mut self) {
        self.0.stops.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Starts the clients.
    #[must_use]
    pub fn start<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        http: SocketAddr,
        https: SocketAddr,
    ) -> Clients<'s> {
        for number in 0..4 {
            scope.spawn(move || self.keep_alive(http, number));
        }
        scope.spawn(move || self.connect_anew(http));
        for version in [HttpVersion::Http1, HttpVersion::Http2] {
            scope.spawn(move || self.over_tls(https, version));
        }
        Clients(self)
    }

    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    fn goes_on(&self) -> bool {
        !self.stops.load(Ordering::Relaxed)
    }

    /// Notes the outcome of a request: an error, or a status and if the body was complete.
    fn note(&self, client: &str, outcome: Result<(u16, bool), String>) -> bool {
        if outcome == Ok((200, true)) {
            self.answered.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < MAX_FAILURES {
            failures.push(format!("{client}: {outcome:?}"));
        }
        false
    }

    /// Hits and misses in turn.
    fn keep_alive(&self, addr: SocketAddr, number: usize) {
        let mut asked = 0;
        while self.goes_on() {
            let mut connection = Connection::open(addr);
            while self.goes_on() {
                asked += 1;
                let target = match asked % 2 {
                    0 => "/assets/1".to_owned(),
                    _ => format!("/assets/{number}-{asked}"),
                };
                let sent = connection.send("GET", &target, &[]);
                let response = sent.map_err(|e| e.to_string());
                let response = response.and_then(|()| connection.try_receive("GET"));
                let outcome = response.map(|response| (response.status, response.complete));
                let is_good = self.note("HTTP/1.1, kept alive", outcome);
                if !is_good || !connection.is_reusable() {
                    break;
                }
            }
        }
    }

    fn connect_anew(&self, addr: SocketAddr) {
        while self.goes_on() {
            let mut connection = Connection::open(addr);
            let sent = connection.send("GET", "/assets/1", &[("Connection", "close")]);
            let response = sent.map_err(|e| e.to_string());
            let response = response.and_then(|()| connection.try_receive("GET"));
            let outcome = response.map(|response| (response.status, response.complete));
            self.note("HTTP/1.1, new connections", outcome);
        }
    }

    fn over_tls(&self, addr: SocketAddr, version: HttpVersion) {
        let name = match version {
            HttpVersion::Http1 => "HTTP/1.1 over TLS",
            HttpVersion::Http2 => "HTTP/2",
        };
        let client = https_client(version);
        let url = format!("https://{addr}/assets/1");
        while self.goes_on() {
            let response = client.get(&url).send().map(|response| {
                let status = response.status().as_u16();
                (status, response.bytes().is_ok())
            });
            self.note(name, response.map_err(|e| format!("{e:?}")));
        }
    }
}
