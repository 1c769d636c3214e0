//! A new process takes over from the one that serves, and nobody notices.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::{builder, load::Load, S3_PROXY};
use rustix::process::Signal;
use tempfile::TempDir;
use test_support::{
    eventually, request, skip, Bucket, Connection, Origin, Pattern, Proxy, ProxyBuilder, Reply,
};

const LEN: u64 = 300_000;

/// Text that the old process logs when no process takes over.
const GOES_ON: &str = "going on serving";

#[test]
fn no_request_fails_while_a_new_process_takes_over() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    assert_eq!(ask(&proxy, "/assets/1"), "MISS");
    proxy.expect_metric("cache_entries", 1);
    let (old, addr, metrics) = (proxy.pid(), proxy.addr(), proxy.metrics_addr());

    let asked = AtomicUsize::new(0);
    let unanswered = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        match get_once(addr) {
                            // Pingora closes connections on which no request has
                            // been read yet: a client asks again, as it would
                            // on an idle connection (RFC 9112, section 9.3.1).
                            None => unanswered.fetch_add(1, Ordering::Relaxed),
                            Some(response) => {
                                assert!(response.starts_with(b"HTTP/1.1 200"));
                                let body = &response[response.len() - LEN as usize..];
                                Pattern::new(1).check(0, body);
                                asked.fetch_add(1, Ordering::Relaxed)
                            }
                        };
                    }
                })
            })
            .collect();
        let ended = proxy.upgrade().wait();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no request fails");
        }
        assert!(ended.success(), "{ended}");
    });
    assert!(asked.load(Ordering::Relaxed) > 100);
    // One a client at most, in the instant when the old process ends.
    assert!(unanswered.load(Ordering::Relaxed) <= 2);

    assert_ne!(proxy.pid(), old);
    assert_eq!(proxy.addr(), addr);
    assert_eq!(proxy.metrics_addr(), metrics);
    assert_eq!(ask(&proxy, "/assets/1"), "HIT");
    assert_eq!(origin.requests_for("/bucket/1"), 1);
}

#[test]
fn the_new_process_has_the_cache_to_itself_once_the_old_one_has_ended() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    assert!(proxy.upgrade().wait().success());

    eventually("the new process stores what it fetches", || {
        ask(&proxy, "/assets/2") == "HIT"
    });
    let purged = request(proxy.admin_addr(), "PURGE", "/assets/2", &[]);
    assert_eq!(purged.status, 200);
    assert_eq!(ask(&proxy, "/assets/2"), "MISS");
}

#[test]
fn a_download_that_runs_is_finished_by_the_old_process() {
    const LEN: u64 = 32 * 1024 * 1024;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    // It ends with the download, long before this.
    let mut proxy = proxy_with_grace_period(&origin, "1h").start();
    ask(&proxy, "/assets/1");

    let mut connection = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut hit = connection.begin("GET", "/assets/1", &[]);
    Pattern::new(1).check(0, &hit.read_some(1000));
    let old = proxy.upgrade();
    let rest = hit.check(Pattern::new(1), 1000);
    assert!(rest.complete);
    assert_eq!(1000 + rest.len, LEN);
    assert!(old.wait().success());
}

#[test]
fn without_a_successor_the_process_goes_on_serving() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    let old = proxy.pid();
    for quits in 1..=2 {
        proxy.signal(Signal::QUIT);
        eventually("it says that it goes on", || {
            proxy.stderr().matches(GOES_ON).count() == quits
        });
        assert_eq!(proxy.get("/assets/1").status, 200);
    }
    assert_eq!(proxy.pid(), old);
    // A socket that a successor left behind does not count as one.
    drop(UnixListener::bind(proxy.upgrade_sock()).expect("bind"));
    proxy.signal(Signal::QUIT);
    eventually("it says that it goes on", || {
        proxy.stderr().matches(GOES_ON).count() == 3
    });

    assert!(proxy.upgrade().wait().success());
    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_ne!(proxy.pid(), old);
}

#[test]
fn a_successor_that_ends_before_it_serves_takes_nothing_over() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    let old = proxy.pid();
    let successor = UnixListener::bind(proxy.upgrade_sock()).expect("bind");
    proxy.signal(Signal::QUIT);
    let (connection, _) = successor.accept().expect("the process connects");
    assert_eq!(proxy.get("/assets/1").status, 200);
    drop((connection, successor));
    eventually("it says that it goes on", || {
        proxy.stderr().contains(GOES_ON)
    });
    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_eq!(proxy.pid(), old);

    assert!(proxy.upgrade().wait().success());
    assert_eq!(proxy.get("/assets/1").status, 200);
}

#[test]
fn a_process_that_waits_for_its_successor_still_obeys() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    let successor = UnixListener::bind(proxy.upgrade_sock()).expect("bind");
    proxy.signal(Signal::QUIT);
    let _connection = successor.accept().expect("the process connects");
    assert!(proxy.stop_gracefully().success());
}

#[test]
fn one_command_upgrades_the_process() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    assert_eq!(ask(&proxy, "/assets/1"), "MISS");
    proxy.expect_metric("cache_entries", 1);
    let (old, addr) = (proxy.pid(), proxy.addr());
    let (output, retiring) = proxy.upgrade_by_command(&[]);
    assert!(output.status.success(), "{output:?}");
    assert!(retiring.expect("the old process").wait().success());
    assert_ne!(proxy.pid(), old);
    assert_eq!(proxy.addr(), addr);
    assert_eq!(ask(&proxy, "/assets/1"), "HIT");
    // The new one takes orders too.
    let (output, retiring) = proxy.upgrade_by_command(&["--binary", S3_PROXY]);
    assert!(output.status.success(), "{output:?}");
    drop(retiring);
    assert_eq!(ask(&proxy, "/assets/1"), "HIT");
}

#[test]
fn a_command_whose_process_does_not_serve_says_why_and_the_old_one_goes_on() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    let old = proxy.pid();
    let expect = |output: Output, why: &str| {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(why), "{why}: {said}");
        assert!(
            said.contains(&format!("process {old} goes on serving")),
            "{said}"
        );
    };
    // Port 0 cannot be taken over.
    let mut upgrade = Command::new(S3_PROXY);
    let output = upgrade
        .args(["upgrade", "--config"])
        .arg(proxy.config())
        .output();
    expect(output.expect("run s3-proxy"), "port 0 cannot be taken over");
    expect(
        proxy.upgrade_by_command(&["--binary", "/bin/false"]).0,
        "has not taken over",
    );

    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_eq!(proxy.pid(), old);
    let (output, _) = proxy.upgrade_by_command(&[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_ne!(proxy.pid(), old);
}

/// Only root can run a process as another user.
#[test]
fn nothing_is_handed_to_another_user() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return skip("only root can run a process as another user");
    }
    let origin = origin();
    let everybodys = TempDir::new().expect("make a folder");
    let all = Permissions::from_mode(0o777);
    fs::set_permissions(everybodys.path(), all).expect("open it to all");
    let sock = everybodys.path().join("upgrade.sock");
    let yaml = |address: &str| {
        format!(
            "server:\n  address: {address}\n  upgrade_sock: {}\nbuckets:\n  - path_prefix: /assets\n    bucket: bucket\n    region: us-east-1\n    endpoint: {}\n",
            sock.display(),
            origin.url()
        )
    };
    let binary = S3_PROXY;
    let proxy = Proxy::start_with(binary, |_| yaml("127.0.0.1:0"));

    let config = everybodys.path().join("proxy.yaml");
    fs::write(&config, yaml(&proxy.addr().to_string())).expect("write a configuration");
    let mut thief = Command::new(binary);
    thief.args(["run", "--upgrade", "--config"]).arg(&config);
    let thief = thief
        .uid(NOBODY)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let thief = thief.spawn().expect("run a process as another user");
    eventually("it waits for the listeners", || sock.exists());
    proxy.signal(Signal::QUIT);
    eventually("the process says who wants its listeners", || {
        proxy.stderr().contains("runs as user 65534, this one as 0")
    });
    let thief = thief.wait_with_output().expect("wait for it");
    assert_eq!(thief.status.code(), Some(1), "{thief:?}");
    assert_eq!(proxy.get("/assets/1").status, 200);
}

#[test]
fn the_socket_is_in_the_cache_by_default() {
    let origin = origin();
    let mut proxy = builder()
        .bucket(Bucket::at(&origin, "/assets", "bucket"))
        .grace_period("1s")
        .start();
    assert_eq!(ask(&proxy, "/assets/1"), "MISS");
    let sock = proxy.cache_dir().join("upgrade.sock");
    // A socket that was left behind does not disturb commands that read the folder.
    drop(UnixListener::bind(&sock).expect("bind"));
    let verified = proxy.s3_proxy(&["cache", "verify"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    fs::remove_file(&sock).expect("remove it");

    assert!(proxy.upgrade_at(&sock).wait().success());
    assert!(!sock.exists());
    assert_eq!(ask(&proxy, "/assets/1"), "HIT");
}

#[test]
fn a_listener_whose_port_the_kernel_chose_can_not_be_taken_over() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    proxy.stop_gracefully();
    let output = proxy.s3_proxy(&["run", "--upgrade"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("server.address: "), "{said}");
    assert!(said.contains("port 0"), "{said}");
}

#[test]
fn no_request_fails_in_several_upgrades() {
    const UPGRADES: usize = 10;
    let origin = Origin::start(|request| Reply::fresh().answering(request));
    // Clients on a busy machine may take longer than a second to notice.
    let mut proxy = proxy_with_grace_period(&origin, "30s").tls().start();
    let load = Load::default();
    thread::scope(|scope| {
        let _clients = load.start(scope, proxy.addr(), proxy.https_addr());
        for _ in 0..UPGRADES {
            let before = load.answered();
            let (output, old) = proxy.upgrade_by_command(&[]);
            assert!(output.status.success(), "{output:?}");
            assert!(old.expect("the old process").wait().success());
            eventually("clients go on", || load.answered() > before + 100);
        }
    });
    assert_eq!(load.failures(), Vec::<String>::new());
}

fn origin() -> Origin {
    Origin::start(|request| {
        let number = request.path().rsplit('/').next();
        let seed = number.and_then(|number| number.parse().ok());
        Reply::pattern(seed.unwrap_or_default(), LEN)
    })
}

fn proxy(origin: &Origin) -> ProxyBuilder {
    proxy_with_grace_period(origin, "1s")
}

fn proxy_with_grace_period(origin: &Origin, grace_period: &str) -> ProxyBuilder {
    builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .grace_period(grace_period)
        .admin()
        .upgradable()
}

/// The value of X-Cache.
fn ask(proxy: &Proxy, path: &str) -> String {
    let response = proxy.get(path);
    assert_eq!(response.status, 200, "{path}");
    assert!(response.complete, "{path}");
    let said = response.header("x-cache").expect("X-Cache");
    said.to_owned()
}

/// Asks on a connection of its own. `None`: it was closed without an answer.
fn get_once(addr: SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).expect("somebody always listens");
    let request = "GET /assets/1 HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n";
    let mut response = Vec::new();
    let sent = stream.write_all(request.as_bytes());
    let read = sent.and_then(|()| stream.read_to_end(&mut response));
    if response.is_empty() {
        return None;
    }
    read.expect("read the response");
    Some(response)
}
