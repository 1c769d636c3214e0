//! Messages of the proxy to the service manager (sd_notify(3)).

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::io::{fcntl_setfd, FdFlags};
use rustix::process::{kill_process, Pid, Signal};
use tempfile::TempDir;
use test_support::{get, Bucket, Connection, Origin, ProxyBuilder, Reply, PATIENCE};

use crate::{builder, S3_PROXY};

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let folder = TempDir::new().expect("make a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
        Manager { socket, folder }
    }

    fn of(&self, builder: ProxyBuilder) -> ProxyBuilder {
        let path = self.folder.path().join("notify");
        builder.env("NOTIFY_SOCKET", path.to_str().expect("UTF-8"))
    }

    /// The next message, its first line.
    fn hears(&self) -> String {
        self.lines().swap_remove(0)
    }

    fn lines(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let len = self.socket.recv(&mut message).expect("a message");
        let message = String::from_utf8_lossy(&message[..len]);
        message.lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_manager_hears_of_the_start_a_reload_and_the_end() {
    let manager = Manager::new();
    let origin = Origin::start(|_| Reply::bytes("an object"));
    let proxy = builder().bucket(Bucket::at(&origin, "/assets", "bucket"));
    let mut proxy = manager.of(proxy).start();
    assert_eq!(manager.lines(), ["READY=1", "STATUS=Serving"]);

    assert_eq!(proxy.reload(), "ok");
    let reloading = manager.lines();
    assert_eq!(reloading[0], "RELOADING=1");
    let begun = reloading[1].strip_prefix("MONOTONIC_USEC=");
    assert!(
        begun.is_some_and(|usec| usec.parse::<u64>().is_ok()),
        "{reloading:?}"
    );
    assert_eq!(manager.lines(), ["READY=1", "STATUS=Serving"]);

    proxy.edit_config(|yaml| yaml.replace("region", "reigon"));
    assert_eq!(proxy.reload(), "failed");
    assert_eq!(manager.hears(), "RELOADING=1");
    let ready = manager.lines();
    assert_eq!(ready[0], "READY=1");
    assert!(ready[1].contains("failed"), "{ready:?}");

    assert!(proxy.stop_gracefully().success());
    assert_eq!(manager.hears(), "STOPPING=1");
}

#[test]
fn the_manager_hears_of_the_process_that_takes_over() {
    let manager = Manager::new();
    let origin = Origin::start(|_| Reply::bytes("an object"));
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/assets", "bucket"))
        .grace_period("1s")
        .upgradable();
    let mut proxy = manager.of(proxy).start();
    assert_eq!(manager.hears(), "READY=1");
    let (output, old) = proxy.upgrade_by_command(&[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(manager.hears(), format!("MAINPID={}", proxy.pid()));
    assert!(old.expect("the old process").wait().success());
}

/// A proxy that has a socket of the manager, killed when dropped.
struct Activated(Child);

impl Activated {
    fn command(config: &Path, socket: &TcpListener) -> Command {
        let mut command = Command::new(S3_PROXY);
        command
            .args(["run", "--config"])
            .arg(config)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", socket.as_raw_fd().to_string())
            .stdout(Stdio::piped());
        command
    }

    fn start(config: &Path, socket: &TcpListener) -> Activated {
        let mut child = Activated::command(config, socket)
            .spawn()
            .expect("run s3-proxy");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ready = lines
            .map_while(Result::ok)
            .any(|line| line == "s3-proxy: ready");
        assert!(ready, "it ends before it is ready");
        Activated(child)
    }

    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("signal the proxy");
        assert!(self.0.wait().expect("its end").success());
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn clients_of_a_socket_of_the_manager_wait_for_the_next_start() {
    let origin = Origin::start(|_| Reply::bytes("an object"));
    let folder = TempDir::new().expect("make a folder");
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    fcntl_setfd(&socket, FdFlags::empty()).expect("let a child have it");
    let addr = socket.local_addr().expect("an address");
    let config = folder.path().join("proxy.yaml");
    let write = |addr: SocketAddr| {
        let yaml = format!(
            "server: {{address: '{addr}', threads: 1}}\nbuckets:\n  - {{path_prefix: /assets, \
             bucket: bucket, region: us-east-1, endpoint: '{}'}}\n",
            origin.url()
        );
        fs::write(&config, yaml).expect("write a configuration");
    };
    write(addr);
    let proxy = Activated::start(&config, &socket);
    assert_eq!(get(addr, "/assets/1").status, 200);
    proxy.stop();

    let mut waits = Connection::open(addr);
    waits.send("GET", "/assets/2", &[]).expect("send a request");
    let proxy = Activated::start(&config, &socket);
    assert_eq!(waits.receive("GET").status, 200);
    proxy.stop();

    // Nobody would answer at the address of the socket.
    let other = TcpListener::bind("127.0.0.1:0").expect("bind");
    write(other.local_addr().expect("an address"));
    drop(other);
    let mut command = Activated::command(&config, &socket);
    let output = command.output().expect("run s3-proxy");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(&format!("the service manager listens at {addr}")),
        "{said}"
    );
}
