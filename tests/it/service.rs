//! What the proxy tells the service manager (sd_notify(3)).

use std::os::unix::net::UnixDatagram;

use tempfile::TempDir;
use test_support::{Bucket, Origin, ProxyBuilder, Reply, PATIENCE};

use crate::builder;

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
