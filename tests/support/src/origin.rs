use std::{
    collections::HashMap,
    io::{self, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, Condvar, Mutex,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    head::Headers,
    reply::Progress,
    wire::{Framing, Wire, READ_SIZE},
    Reply, PATIENCE,
};

/// Enough for the deepest stack here, and small enough for a thousand.
const STACK: usize = 512 * 1024;

/// An HTTP/1.1 origin whose every answer the test scripts, failures included. It listens on
/// 127.0.0.1, remembers what it was asked, and is gone, threads and all, when dropped.
pub struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A request as the origin received it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query, as they stood in the request line.
    pub target: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// The connection that it came on, from 0.
    pub connection: usize,
    /// Its number among the requests of the connection, from 1.
    pub nth: usize,
}

type Script = Arc<dyn Fn(&Request, usize) -> Reply + Send + Sync>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Body bytes sent.
    sent: AtomicU64,
    stopping: AtomicBool,
}

#[derive(Default)]
struct State {
    /// By path.
    scripts: HashMap<String, Script>,
    /// For every other path.
    handler: Option<Script>,
    log: Vec<Request>,
    /// Requests so far, by path.
    counts: HashMap<String, usize>,
    /// By number: the open connections, to be shut down in the end.
    live: HashMap<usize, Arc<TcpStream>>,
    /// By number of the connection: when the last answer was complete.
    answered: HashMap<usize, Instant>,
    /// By number of the connection: how long the peer had been silent when it closed.
    closed_after: HashMap<usize, Duration>,
}

// === impl Origin ===

impl Origin {
    /// Starts an origin that answers with `handler`, on a thread a connection.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at(0, handler)
    }

    /// As [`Self::start`], on a port that is part of the cache's keys: for a test that finds again what
    /// an earlier run has stored, on a machine of its own.
    pub fn start_at(
        port: u16,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            handler: Some(Arc::new(move |request, _| handler(request))),
            ..State::default()
        };
        Self::listen(port, state)
    }

    /// Starts an origin whose every path waits for [`Self::script`].
    pub fn scripted() -> Self {
        Self::listen(0, State::default())
    }

    fn listen(port: u16, state: State) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("listen on 127.0.0.1");
        let addr = listener.local_addr().expect("the origin's address");
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            ..Shared::default()
        });
        let acceptor = thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        });
        Self {
            addr,
            shared,
            acceptor: Some(acceptor),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The `endpoint` of a bucket.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers requests for a path; the script gets the request and its number among those
    /// for the path, from 1.
    pub fn script(
        &self,
        path: &str,
        script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) {
        let mut state = self.shared.state.lock().unwrap();
        state.scripts.insert(path.to_owned(), Arc::new(script));
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state.lock().unwrap().log.clone()
    }

    /// Every request for a path so far, in order of arrival.
    pub fn seen(&self, path: &str) -> Vec<Request> {
        let state = self.shared.state.lock().unwrap();
        let log = state.log.iter();
        log.filter(|seen| seen.path() == path).cloned().collect()
    }

    /// Forgets the requests so far, which takes memory in a long test.
    pub fn forget_requests(&self) {
        self.shared.state.lock().unwrap().log.clear();
    }

    /// Body bytes that it has sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The number of requests for a path, with any query.
    pub fn requests_for(&self, path: &str) -> usize {
        let state = self.shared.state.lock().unwrap();
        state.log.iter().filter(|seen| seen.path() == path).count()
    }

    /// Returns once there were `count` requests for a path.
    pub fn wait_for(&self, path: &str, count: usize) {
        let state = self.shared.state.lock().unwrap();
        let arrived = |state: &State| state.log.iter().filter(|s| s.path() == path).count();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| arrived(state) < count)
            .unwrap();
        let arrived = arrived(&state);
        assert!(
            arrived >= count,
            "{path}: {arrived} requests in {PATIENCE:?}, expected {count}"
        );
    }

    /// Waits until the peer closes a connection; returns how long it had been
    /// idle.
    pub fn wait_for_close(&self, connection: usize) -> Duration {
        let state = self.shared.state.lock().unwrap();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| {
                !state.closed_after.contains_key(&connection)
            })
            .unwrap();
        *state
            .closed_after
            .get(&connection)
            .unwrap_or_else(|| panic!("the proxy kept a connection for {PATIENCE:?}"))
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // A connection wakes the acceptor; if that fails it has ended already.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        for connection in 0.. {
            let accepted = listener.accept();
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            threads.retain(|thread| !thread.is_finished());
            let Ok((stream, _)) = accepted else { continue };
            let shared = self.clone();
            let stream = Arc::new(stream);
            let live = &mut self.state.lock().unwrap().live;
            live.insert(connection, stream.clone());
            let served = thread::Builder::new().stack_size(STACK).spawn(move || {
                // An error here is the proxy's doing, and the proxy sees it too.
                let _ = shared.serve(connection, &stream);
                shared.forget(connection);
            });
            threads.push(served.expect("start a thread"));
        }
        for stream in self.state.lock().unwrap().live.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// The error is the proxy's doing.
    fn serve(&self, connection: usize, stream: &TcpStream) -> Result<(), String> {
        let failed = |e: io::Error| e.to_string();
        let mut wire = Wire::new(stream.try_clone().map_err(failed)?).map_err(failed)?;
        for nth in 1.. {
            let Some(request) = read_request(&mut wire, connection, nth)? else {
                break;
            };
            let (script, serial) = self.record(&request);
            let reply = match script {
                Some(script) => script(&request, serial),
                None => Reply::ok()
                    .with_status(500)
                    .body("nobody wrote a script for this path"),
            };
            let progress = Progress {
                sent: &self.sent,
                stopping: &self.stopping,
            };
            let open = reply
                .write(stream, &request, serial, &progress)
                .map_err(failed)?;
            let mut state = self.state.lock().unwrap();
            state.answered.insert(connection, Instant::now());
            if !open || request.header("connection") == Some("close") {
                break;
            }
        }
        Ok(())
    }

    fn record(&self, request: &Request) -> (Option<Script>, usize) {
        let mut state = self.state.lock().unwrap();
        let path = request.path();
        state.log.push(request.clone());
        self.changed.notify_all();
        let count = state.counts.entry(path.to_owned()).or_default();
        *count += 1;
        let serial = *count;
        let script = state.scripts.get(path).or(state.handler.as_ref());
        (script.cloned(), serial)
    }

    fn forget(&self, connection: usize) {
        let mut state = self.state.lock().unwrap();
        // The last handle, so that leaving closes the socket.
        state.live.remove(&connection);
        if let Some(answered) = state.answered.remove(&connection) {
            state.closed_after.insert(connection, answered.elapsed());
        }
        self.changed.notify_all();
    }
}

// === impl Request ===

impl Request {
    /// The target up to its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a header field, as [`Headers::get`].
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The request as an origin that knows no conditions takes it.
    pub fn without_conditions(&self) -> Request {
        let mut headers = Headers::default();
        for (name, value) in self.headers.iter() {
            let is_condition = name
                .get(..3)
                .is_some_and(|start| start.eq_ignore_ascii_case("if-"));
            if !is_condition {
                headers.push(name, value);
            }
        }
        Request {
            headers,
            ..self.clone()
        }
    }

    /// True if it is conditional, on a validator that the proxy or the client
    /// has.
    pub fn is_conditional(&self) -> bool {
        ["if-none-match", "if-modified-since"]
            .iter()
            .any(|name| self.header(name).is_some())
    }

    /// True if `If-None-Match` names this entity tag, by weak comparison.
    pub fn names(&self, etag: &str) -> bool {
        let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let named = self.header("if-none-match").unwrap_or_default();
        named.split(',').any(|tag| opaque(tag) == opaque(etag))
    }
}

/// Ok(None): the proxy closed the connection between two requests.
fn read_request(wire: &mut Wire, connection: usize, nth: usize) -> Result<Option<Request>, String> {
    let Some(head) = wire.read_head()? else {
        return Ok(None);
    };
    let mut words = head.start_line.split(' ').map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err("no request line".to_owned());
    };
    if head.headers.get("expect").is_some() && wire.buffer.is_empty() {
        let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
        wire.stream.write_all(go_on).map_err(|e| e.to_string())?;
    }
    let mut framing = Framing::of(&head.headers)?.unwrap_or(Framing::Done);
    let mut body = Vec::new();
    let mut piece = vec![0; READ_SIZE];
    loop {
        match framing.read(wire, &mut Headers::default(), &mut piece) {
            Ok(0) => break,
            Ok(n) => body.extend_from_slice(&piece[..n]),
            Err(broken) => return Err(format!("the body: {broken:?}")),
        }
    }
    Ok(Some(Request {
        method,
        target,
        headers: head.headers,
        body,
        connection,
        nth,
    }))
}
