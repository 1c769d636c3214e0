use std::{
    env,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
        Arc, Mutex, OnceLock,
    },
    thread,
    time::Instant,
};

use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use tempfile::TempDir;

use crate::{eventually, Connection, Origin, Reply, Request, Response, Use, PATIENCE};

/// The proxy's words before its address, when it accepts connections.
const LISTENING: &str = "listening on ";

/// Ends the proxy, and removes its cache, when the pipe that is its stdin closes:
/// at the latest when this process ends, however it does.
const KEEPER: &str = r#"dir=$1; shift
"$@" </dev/null &
exec >/dev/null 2>&1
read -r _
kill -KILL $!
wait $!
rm -rf "$dir"
"#;

/// The example's caching proxy, with an origin and a cache of its own.
pub struct Site {
    proxy: SocketAddr,
    origin: Origin,
    pages: AtomicUsize,
    log: Arc<Mutex<String>>,
    keeper: Child,
    lifeline: Option<ChildStdin>,
}

/// A path that no other test uses.
pub struct Page<'s> {
    site: &'s Site,
    path: String,
}

/// Lets this process, and those it starts, open as many files as the system
/// lets it.
pub fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("raise the limit on open files");
}

// === impl Site ===

impl Site {
    /// The one that the tests of a file share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Site> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// One with further arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let origin = Origin::scripted();
        let example = example("http_cache");
        let dir = TempDir::with_prefix("http-cache-")
            .expect("make the proxy's directory")
            .keep();
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(&dir)
            .arg(&example)
            .args(["--listen", "127.0.0.1:0", "--origin"])
            .arg(origin.addr().to_string())
            .arg("--cache")
            .arg(dir.join("cache"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run sh");
        let lifeline = keeper.stdin.take();
        let log: Arc<Mutex<String>> = Arc::default();
        let (lines, received) = mpsc::channel();
        let stdout = BufReader::new(keeper.stdout.take().expect("stdout is piped"));
        let stderr = BufReader::new(keeper.stderr.take().expect("stderr is piped"));
        drain(stdout, &log, lines.clone());
        drain(stderr, &log, lines);
        let deadline = Instant::now() + PATIENCE;
        let proxy = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match received.recv_timeout(left) {
                Ok(line) => match announced(&line) {
                    Some(addr) => break addr,
                    None => continue,
                },
                Err(RecvTimeoutError::Disconnected) => panic!(
                    "{} ended before it listened:\n{}",
                    example.display(),
                    log.lock().unwrap()
                ),
                Err(RecvTimeoutError::Timeout) => panic!(
                    "{} did not say {LISTENING:?} in {PATIENCE:?}:\n{}",
                    example.display(),
                    log.lock().unwrap()
                ),
            }
        };
        // Some say so a moment before it is true.
        eventually("the proxy accepts connections", || {
            TcpStream::connect(proxy).is_ok()
        });
        Self {
            proxy,
            origin,
            pages: AtomicUsize::new(0),
            log,
            keeper,
            lifeline,
        }
    }

    /// The address of the proxy.
    pub fn addr(&self) -> SocketAddr {
        self.proxy
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The proxy's output on stdout and stderr.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn client(&self) -> Connection {
        Connection::open(self.proxy).with_host("site.example")
    }

    /// A path without answers.
    pub fn page(&self) -> Page<'_> {
        let number = self.pages.fetch_add(1, Ordering::SeqCst);
        Page {
            site: self,
            path: format!("/page-{number}"),
        }
    }

    /// A path whose every answer is this one.
    pub fn page_with(&self, answer: Reply) -> Page<'_> {
        let page = self.page();
        page.answers([answer]);
        page
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // Fails only where it has ended.
        let _ = self.keeper.wait();
    }
}

/// The binary of an example, which `cargo test` builds beside the tests.
pub fn example(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of the test");
    let profile = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("the folder above deps");
    let example = profile.join("examples").join(name);
    assert!(
        example.exists(),
        "{} is missing: a plain `cargo test` builds it; with --test, run `cargo build --example {name}` before",
        example.display()
    );
    example
}

fn announced(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(LISTENING)?;
    let rest = rest.strip_prefix("http://").unwrap_or(rest);
    rest.split_whitespace().next()?.parse().ok()
}

fn drain(
    from: impl BufRead + Send + 'static,
    log: &Arc<Mutex<String>>,
    lines: mpsc::Sender<String>,
) {
    let log = log.clone();
    thread::spawn(move || {
        for line in from.lines().map_while(Result::ok) {
            *log.lock().unwrap() += &format!("{line}\n");
            // Nobody listens any more; the pipe is drained all the same.
            let _ = lines.send(line);
        }
    });
}

// === impl Page ===

impl Page<'_> {
    pub fn site(&self) -> &Site {
        self.site
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Scripts the answers, one a request in order; the last one repeats.
    pub fn answers(&self, answers: impl IntoIterator<Item = Reply>) {
        let answers: Vec<_> = answers.into_iter().collect();
        let before = self.count();
        self.serves(move |_, serial| {
            let at = (serial - before - 1).min(answers.len() - 1);
            answers[at].clone()
        });
    }

    /// Scripts the answers: the request and its number decide.
    pub fn serves(&self, script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) {
        self.site.origin.script(&self.path, script);
    }

    pub fn get(&self) -> Response {
        self.get_with(&[])
    }

    pub fn get_with(&self, fields: &[(&str, &str)]) -> Response {
        self.request("GET", fields, b"")
    }

    pub fn head(&self) -> Response {
        self.request("HEAD", &[], b"")
    }

    /// On a connection of its own.
    pub fn request(&self, method: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        let mut client = self.ask(method, fields, body);
        client
            .try_receive(method)
            .unwrap_or_else(|reason| panic!("{method} {}: {reason}", self.path))
    }

    /// Sends a request, on a connection of its own, and does not wait.
    pub fn ask(&self, method: &str, fields: &[(&str, &str)], body: &[u8]) -> Connection {
        let mut client = self.site.client();
        let fields: Vec<_> = [("Connection", "close")]
            .iter()
            .chain(fields)
            .copied()
            .collect();
        client.ask(method, &self.path, &fields, body);
        client
    }

    /// A `GET`, and what the proxy did for it.
    pub fn get_again(&self, fields: &[(&str, &str)]) -> (Response, Use) {
        let before = self.count();
        let got = self.get_with(fields);
        let used = match self.seen()[before..] {
            [] => Use::Reused,
            [ref seen, ..] if seen.is_conditional() => Use::Validated,
            _ => Use::Fetched,
        };
        (got, used)
    }

    /// Every request that the origin got for it.
    pub fn seen(&self) -> Vec<Request> {
        self.site.origin.seen(&self.path)
    }

    /// The number of requests that the origin got for it.
    pub fn count(&self) -> usize {
        self.seen().len()
    }

    /// Returns once the origin got so many requests for it.
    pub fn wait_for(&self, count: usize) {
        self.site.origin.wait_for(&self.path, count);
    }
}
