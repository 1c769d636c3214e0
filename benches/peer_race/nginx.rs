//! One nginx that serves one cache in four ways.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use test_support::PATIENCE;

use crate::process::{open_files, Server};

/// The ways in which nginx sends a cached body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub sendfile: bool,
    pub open_file_cache: bool,
}

pub const MODES: [Mode; 4] = [
    Mode::new(true, false),
    Mode::new(true, true),
    Mode::new(false, false),
    Mode::new(false, true),
];

/// None: there is no nginx.
pub fn version() -> Option<String> {
    let output = Command::new(program()?).arg("-v").output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    Some(text.trim().trim_start_matches("nginx version: ").to_owned())
}

/// Also where a user's PATH often does not lead.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([
            PathBuf::from("/usr/sbin"),
            PathBuf::from("/usr/local/sbin"),
            PathBuf::from("/usr/local/nginx/sbin"),
        ])
        .map(|dir| dir.join("nginx"))
        .find(|file| file.is_file())
}

/// Starts it with its files in `dir`, and returns where each of [`MODES`] is.
pub fn start(core: Option<usize>, dir: &Path, origin: SocketAddr) -> (Server, [SocketAddr; 4]) {
    let program = program().expect("there is an nginx");
    fs::create_dir_all(dir.join("logs")).expect("make nginx's folders");
    let ports = MODES.map(|_| TcpListener::bind("127.0.0.1:0").expect("find a free port"));
    let addrs = ports
        .each_ref()
        .map(|port| port.local_addr().expect("a free port"));
    let config = dir.join("nginx.conf");
    fs::write(&config, configuration(dir, origin, &addrs)).expect("write nginx's configuration");
    // nginx cannot be given a port that is taken, even by a socket like these.
    drop(ports);
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (prefix, config) = (text(dir), text(&config));
    let error_log = text(&dir.join("logs/error.log"));
    let arguments = ["-p", &prefix, "-c", &config, "-e", &error_log];
    let mut server = Server::start("nginx", core, &program, &arguments);
    let deadline = Instant::now() + PATIENCE;
    for addr in addrs {
        while TcpStream::connect(addr).is_err() {
            server.assert_running();
            assert!(
                Instant::now() < deadline,
                "nginx does not listen: {}",
                fs::read_to_string(&error_log).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
    (server, addrs)
}

/// Tuned for this, all but the two things that the modes are about:
/// `tcp_nopush off`, as what it holds back stalls a keep-alive connection, and
/// no limit to the requests of a connection.
fn configuration(dir: &Path, origin: SocketAddr, addrs: &[SocketAddr; 4]) -> String {
    let dir = dir.display();
    // One for all servers that do not turn it off: two would need twice as many.
    let open_files = open_files();
    // Or root's workers could not reach the folder.
    let user = if geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let servers: String = MODES
        .iter()
        .zip(addrs)
        .map(|(mode, addr)| mode.server(*addr))
        .collect();
    format!(
        "daemon off;
{user}
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/logs/error.log error;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    open_file_cache max={open_files} inactive=1h;
    open_file_cache_valid 1h;
    default_type application/octet-stream;
    tcp_nopush off;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path {dir}/tmp;
    proxy_temp_path {dir}/tmp;
    fastcgi_temp_path {dir}/tmp;
    uwsgi_temp_path {dir}/tmp;
    scgi_temp_path {dir}/tmp;
    proxy_cache_path {dir}/cache levels=1:2 keys_zone=race:64m max_size=64g inactive=1d use_temp_path=off;
    proxy_cache race;
    proxy_cache_key $uri;
    proxy_cache_valid 200 1d;
    proxy_http_version 1.1;
    proxy_set_header Connection \"\";
    add_header X-Cache $upstream_cache_status;
    upstream origin {{
        server {origin};
        keepalive 32;
    }}
{servers}}}
"
    )
}

// === impl Mode ===

impl Mode {
    const fn new(sendfile: bool, open_file_cache: bool) -> Self {
        Self {
            sendfile,
            open_file_cache,
        }
    }

    fn server(self, addr: SocketAddr) -> String {
        let sendfile = if self.sendfile { "on" } else { "off" };
        let open_file_cache = if self.open_file_cache {
            ""
        } else {
            "open_file_cache off;"
        };
        format!(
            "    server {{
        listen {addr};
        sendfile {sendfile};
        {open_file_cache}
        location / {{ proxy_pass http://origin; }}
    }}
"
        )
    }
}
