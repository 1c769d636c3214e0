//! The example hands its listener over to a new process, and to nobody else.

use std::{
    fs::{self, Permissions},
    io::{self, BufRead, BufReader, IoSlice, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
    process::{kill_process, Pid, Signal},
};
use tempfile::TempDir;
use test_support::{entry_files, eventually, example, skip, Connection, Origin, Reply, Response};

const PATH: &str = "/object";
const BODY: &str = "what is stored";

/// Text that the old process logs when no process takes over.
const GOES_ON: &str = "going on serving";

#[test]
fn a_new_process_takes_over_listener_and_cache() {
    let place = Place::new();
    let old = place.start(ANY_PORT, &[]);
    let addr = old.addr();
    assert_eq!(get(addr).text(), BODY);
    eventually("the response is stored", || {
        !entry_files(&place.dir.path().join("cache"), "meta").is_empty()
    });

    let new = place.start(addr, &["--upgrade"]);
    place.wait_for_socket();
    old.signal(Signal::QUIT);
    assert_eq!(new.addr(), addr);
    assert!(old.wait().success());
    assert_eq!(get(addr).text(), BODY);
    assert_eq!(place.origin.seen(PATH).len(), 1);
    assert!(!place.socket().exists());
}

#[test]
fn without_a_successor_the_process_goes_on_serving() {
    let place = Place::new();
    let old = place.start(ANY_PORT, &[]);
    let addr = old.addr();
    for quits in 1..=2 {
        old.signal(Signal::QUIT);
        eventually("it says that it goes on", || {
            old.log().matches(GOES_ON).count() == quits
        });
        assert_eq!(get(addr).status, 200);
    }
}

#[test]
fn a_successor_that_ends_before_it_serves_takes_nothing_over() {
    let place = Place::new();
    let old = place.start(ANY_PORT, &[]);
    let addr = old.addr();
    let successor = UnixListener::bind(place.socket()).expect("bind");
    old.signal(Signal::QUIT);
    let (connection, _) = successor.accept().expect("the process connects");
    assert_eq!(get(addr).status, 200);
    drop((connection, successor));
    eventually("it says that it goes on", || old.log().contains(GOES_ON));
    assert_eq!(get(addr).status, 200);
}

#[test]
fn sigterm_during_a_hand_over_ends_the_process() {
    let place = Place::new();
    let old = place.start(ANY_PORT, &[]);
    old.addr();
    let successor = UnixListener::bind(place.socket()).expect("bind");
    old.signal(Signal::QUIT);
    let (mut connection, _) = successor.accept().expect("the process connects");
    old.signal(Signal::TERM);
    assert!(old.wait().success());
    // The sockets, and no word that the process goes on.
    let mut said = Vec::new();
    connection.read_to_end(&mut said).expect("read");
    assert!(!said.ends_with(b"-"), "{said:?}");
}

#[test]
fn a_successor_serves_if_the_process_before_it_is_killed_meanwhile() {
    let place = Place::new();
    let (listener, addr) = listener();
    let new = place.start(addr, &["--upgrade"]);
    let killed = place.connect();
    hand_over(&killed, &listener, addr);
    // It is killed: the kernel closes all that it has.
    drop((killed, listener));
    assert_eq!(new.addr(), addr);
    assert_eq!(get(addr).text(), BODY);
    eventually("it says that nobody else serves", || {
        new.log().contains("has ended")
    });
    assert_eq!(get(addr).text(), BODY);
}

#[test]
fn a_successor_ends_if_the_process_before_it_goes_on_serving() {
    let place = Place::new();
    let (listener, addr) = listener();
    let new = place.start(addr, &["--upgrade"]);
    let mut old = place.connect();
    hand_over(&old, &listener, addr);
    old.write_all(b"-").expect("withdraw");
    assert_eq!(new.wait().code(), Some(1));
}

#[test]
fn the_socket_is_for_its_user_only() {
    let place = Place::new();
    let (_listener, addr) = listener();
    let _new = place.start(addr, &["--upgrade"]);
    place.wait_for_socket();
    // Set a moment after the file is there, and before anybody is served.
    eventually("only its user can connect", || {
        let mode = fs::metadata(place.socket()).map(|file| file.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o777 == 0o600)
    });
}

/// Only root can run a process as another user.
#[test]
fn nothing_is_handed_to_another_user() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return skip("only root can run a process as another user");
    }
    let place = Place::new();
    let old = place.start(ANY_PORT, &[]);
    let addr = old.addr();
    assert_eq!(get(addr).status, 200);
    // The folder of this build may be closed to others.
    let program = place.dir.path().join("http_cache");
    fs::copy(example("http_cache"), &program).expect("copy the example");
    // An operator has opened what should be closed.
    let opened = Command::new("chmod")
        .args(["-R", "a+rwX"])
        .arg(place.dir.path())
        .status();
    assert!(opened.expect("run chmod").success());
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o777)).expect("open it");
    let mut thief = place.command_of(&program, addr, &["--upgrade"]);
    thief.uid(NOBODY);
    let thief = Example::spawn(&mut thief);
    eventually("it waits for the listener, or ends", || {
        place.socket().exists() || thief.has_ended()
    });
    old.signal(Signal::QUIT);
    eventually("the process says why it goes on", || {
        old.log().contains(GOES_ON)
    });
    assert!(
        old.log().contains("runs as user 65534, this one as 0"),
        "{}\n{}",
        old.log(),
        thief.log()
    );
    assert_eq!(thief.wait().code(), Some(1));
    assert_eq!(get(addr).status, 200);
}

const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// An origin, and a folder with the cache that successive processes share.
struct Place {
    origin: Origin,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let origin = Origin::scripted();
        origin.script(PATH, |_, _| Reply::fresh().body(BODY));
        let dir = TempDir::with_prefix("http-cache-").expect("make a folder");
        Self { origin, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("cache/upgrade.sock")
    }

    fn wait_for_socket(&self) {
        eventually("the successor waits for the listener", || {
            self.socket().exists()
        });
    }

    /// Connects to a successor, which listens a moment after its socket is there.
    fn connect(&self) -> UnixStream {
        let mut connection = None;
        eventually("the successor can be connected to", || {
            connection = UnixStream::connect(self.socket()).ok();
            connection.is_some()
        });
        connection.expect("a connection")
    }

    fn command(&self, listen: SocketAddr, arguments: &[&str]) -> Command {
        self.command_of(&example("http_cache"), listen, arguments)
    }

    fn command_of(&self, program: &Path, listen: SocketAddr, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(["--listen", &listen.to_string()])
            .args(["--origin", &self.origin.addr().to_string(), "--cache"])
            .arg(self.dir.path().join("cache"))
            .args(arguments);
        command
    }

    fn start(&self, listen: SocketAddr, arguments: &[&str]) -> Example {
        Example::spawn(&mut self.command(listen, arguments))
    }
}

/// A process of the example, killed when dropped.
struct Example {
    child: Mutex<Child>,
    pid: Pid,
    log: Arc<Mutex<String>>,
}

impl Example {
    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run the example");
        let log: Arc<Mutex<String>> = Arc::default();
        drain(child.stdout.take().expect("stdout is piped"), &log);
        drain(child.stderr.take().expect("stderr is piped"), &log);
        Self {
            pid: Pid::from_child(&child),
            child: Mutex::new(child),
            log,
        }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The address that it listens at, as soon as it does.
    fn addr(&self) -> SocketAddr {
        let mut addr = None;
        eventually("the example listens", || {
            let log = self.log();
            addr = log
                .lines()
                .find_map(|line| line.strip_prefix("listening on "))
                .and_then(|addr| addr.parse().ok());
            assert!(addr.is_some() || !self.has_ended(), "{log}");
            addr.is_some()
        });
        addr.expect("an address")
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("send a signal");
    }

    fn has_ended(&self) -> bool {
        let ended = self.child.lock().unwrap().try_wait();
        ended.expect("look for its end").is_some()
    }

    fn wait(&self) -> ExitStatus {
        eventually("the example ends", || self.has_ended());
        self.child.lock().unwrap().wait().expect("its status")
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        // Fails only where it has ended.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn drain(from: impl Read + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = log.clone();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(io::Result::ok) {
            *log.lock().unwrap() += &format!("{line}\n");
        }
    });
}

fn get(addr: SocketAddr) -> Response {
    let mut client = Connection::open(addr);
    client.ask("GET", PATH, &[("Connection", "close")], b"");
    client.receive("GET")
}

/// A listener such as that of another process of the example.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(ANY_PORT).expect("listen");
    listener.set_nonblocking(true).expect("not to block");
    let addr = listener.local_addr().expect("its address");
    (listener, addr)
}

/// Sends a listener as a process does that gets SIGQUIT.
fn hand_over(to: &UnixStream, listener: &TcpListener, addr: SocketAddr) {
    let fds = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let payload = addr.to_string();
    let sent = sendmsg(
        to,
        &[IoSlice::new(payload.as_bytes())],
        &mut ancillary,
        SendFlags::empty(),
    );
    assert_eq!(sent.expect("send the listener"), payload.len());
}
