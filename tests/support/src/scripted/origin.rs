use std::{
    collections::HashMap,
    io::{self, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Condvar, Mutex,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    wire::{Framing, Wire},
    Answer,
};
use crate::{Headers, PATIENCE};

/// Enough for the deepest stack here, and small enough for a thousand.
const STACK: usize = 256 * 1024;

/// An HTTP/1.1 origin that answers each path as scripted and remembers every
/// request. It is gone when dropped.
pub struct ScriptedOrigin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A request as the origin received it. Each character of a field's value is
/// one byte.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// Which connection it came on, and as the how-manieth request of it.
    pub connection: usize,
    pub nth: usize,
}

type Script = Arc<dyn Fn(&Seen, usize) -> Answer + Send + Sync>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Default)]
struct State {
    scripts: HashMap<String, Script>,
    log: Vec<Seen>,
    /// By number: the open ones, to be shut down in the end.
    live: HashMap<usize, Arc<TcpStream>>,
    /// By number: when the last answer was complete.
    answered: HashMap<usize, Instant>,
    /// By number: how long the peer had been silent when it closed.
    closed_after: HashMap<usize, Duration>,
}

// === impl ScriptedOrigin ===

impl ScriptedOrigin {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on 127.0.0.1");
        let addr = listener.local_addr().expect("the origin's address");
        let shared = Arc::new(Shared::default());
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

    /// Answers requests for a path; the script gets the request and its number
    /// among those for the path, from 1.
    pub fn script(
        &self,
        path: &str,
        script: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static,
    ) {
        let mut state = self.shared.state.lock().unwrap();
        state.scripts.insert(path.to_owned(), Arc::new(script));
    }

    /// Every request for a path so far, in order of arrival.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        let state = self.shared.state.lock().unwrap();
        let log = state.log.iter();
        log.filter(|seen| seen.path() == path).cloned().collect()
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

impl Drop for ScriptedOrigin {
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

    fn serve(&self, connection: usize, stream: &TcpStream) -> io::Result<()> {
        let mut wire = Wire::new(stream.try_clone()?)?;
        for nth in 1.. {
            let Some(head) = wire.read_head()? else {
                break;
            };
            let mut words = head.start_line.split(' ').map(str::to_owned);
            let (Some(method), Some(target)) = (words.next(), words.next()) else {
                break;
            };
            if head.headers.get("expect").is_some() && wire.buffer.is_empty() {
                wire.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let framing = Framing::of(&head.headers).expect("one framing of a request");
            let body = wire.read_body(&framing.unwrap_or(Framing::None));
            if !body.complete {
                break;
            }
            let seen = Seen {
                method,
                target,
                headers: head.headers,
                body: body.bytes,
                connection,
                nth,
            };
            let (script, serial) = self.record(&seen);
            let answer = match script {
                Some(script) => script(&seen, serial),
                None => Answer::status(500).body("nobody wrote a script for this path"),
            };
            let stopping = || self.stopping.load(Ordering::SeqCst);
            let open = answer.write(stream, &seen, serial, &stopping)?;
            let mut state = self.state.lock().unwrap();
            state.answered.insert(connection, Instant::now());
            if !open {
                break;
            }
        }
        Ok(())
    }

    fn record(&self, seen: &Seen) -> (Option<Script>, usize) {
        let mut state = self.state.lock().unwrap();
        state.log.push(seen.clone());
        self.changed.notify_all();
        let serial = state.log.iter().filter(|s| s.path() == seen.path()).count();
        (state.scripts.get(seen.path()).cloned(), serial)
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

// === impl Seen ===

impl Seen {
    /// The target up to its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a field that must not appear twice, as [`Headers::get`].
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// Whether it is conditional, on a validator that the proxy or the client
    /// has.
    pub fn is_conditional(&self) -> bool {
        ["if-none-match", "if-modified-since"]
            .iter()
            .any(|name| self.header(name).is_some())
    }

    /// Whether `If-None-Match` names this entity tag, by weak comparison.
    pub fn names(&self, etag: &str) -> bool {
        let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let named = self.header("if-none-match").unwrap_or_default();
        named.split(',').any(|tag| opaque(tag) == opaque(etag))
    }
}
