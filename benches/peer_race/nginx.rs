//! One nginx that serves one cache in several ways.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use test_support::{SelfSigned, PATIENCE};

use crate::process::Server;

/// The ways in which nginx sends a cached body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub key: &'static str,
    settings: Settings,
    /// True if it is raced over TLS.
    pub tls: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settings {
    Tuned {
        sendfile: bool,
        open_file_cache: bool,
        /// `ssl_buffer_size`, in KiB.
        ssl_buffer: u32,
    },
    Default,
}

/// nginx's `ssl_buffer_size` where nobody sets it.
const SSL_BUFFER: u32 = 16;

pub const MODES: [Mode; 7] = [
    Mode::plain("nginx-sendfile", true, false),
    Mode::plain("nginx-sendfile-ofc", true, true),
    Mode::plain("nginx-copy", false, false),
    Mode::plain("nginx-copy-ofc", false, true),
    Mode::tls("nginx-tls-16k", 16),
    Mode::tls("nginx-tls-4k", 4),
    Mode {
        key: "nginx-tls-defaults",
        settings: Settings::Default,
        tls: true,
    },
];

/// The addresses of a mode: of HTTP, and of HTTPS.
pub type Addrs = [SocketAddr; 2];

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
pub fn start(
    core: Option<usize>,
    dir: &Path,
    origin: SocketAddr,
    open_files: u64,
    certificate: &SelfSigned,
) -> (Server, Vec<Addrs>) {
    let program = program().expect("there is an nginx");
    fs::create_dir_all(dir.join("logs")).expect("make nginx's folders");
    let free_port = || TcpListener::bind("127.0.0.1:0").expect("find a free port");
    let ports: Vec<_> = MODES.iter().map(|_| [free_port(), free_port()]).collect();
    let addr = |port: &TcpListener| port.local_addr().expect("a free port");
    let addrs: Vec<Addrs> = ports.iter().map(|two| two.each_ref().map(addr)).collect();
    let config = dir.join("nginx.conf");
    let text = configuration(dir, origin, open_files, &addrs, certificate);
    fs::write(&config, text).expect("write nginx's configuration");
    // nginx cannot be given a port that is taken, even by a socket like these.
    drop(ports);
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (prefix, config) = (text(dir), text(&config));
    let error_log = text(&dir.join("logs/error.log"));
    let arguments = ["-p", &prefix, "-c", &config, "-e", &error_log];
    let mut server = Server::start("nginx", core, &program, &arguments);
    let deadline = Instant::now() + PATIENCE;
    for addr in addrs.iter().flatten() {
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

/// Only what all modes share: the cache, and no limit to the requests of a connection, as the
/// client keeps its connections.
fn configuration(
    dir: &Path,
    origin: SocketAddr,
    open_files: u64,
    addrs: &[Addrs],
    certificate: &SelfSigned,
) -> String {
    let dir = dir.display();
    let (certificate, key) = (certificate.certificate.display(), certificate.key.display());
    // Or root's workers could not reach the folder.
    let user = if geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let servers: String = MODES
        .iter()
        .zip(addrs)
        .map(|(mode, addrs)| mode.server(*addrs))
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
    # One for all servers that do not turn it off: two would need twice as many.
    open_file_cache max={open_files} inactive=1h;
    open_file_cache_valid 1h;
    default_type application/octet-stream;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
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
    const fn plain(key: &'static str, sendfile: bool, open_file_cache: bool) -> Self {
        Self {
            key,
            settings: Settings::Tuned {
                sendfile,
                open_file_cache,
                ssl_buffer: SSL_BUFFER,
            },
            tls: false,
        }
    }

    const fn tls(key: &'static str, ssl_buffer: u32) -> Self {
        Self {
            key,
            settings: Settings::Tuned {
                sendfile: true,
                open_file_cache: true,
                ssl_buffer,
            },
            tls: true,
        }
    }

    pub fn is_default(self) -> bool {
        self.settings == Settings::Default
    }

    fn server(self, [http, https]: Addrs) -> String {
        let settings = match self.settings {
            Settings::Tuned {
                sendfile,
                open_file_cache,
                ssl_buffer,
            } => tuned(sendfile, open_file_cache, ssl_buffer, self.tls),
            // TLS 1.3 is among the defaults since 1.23.4.
            Settings::Default => "open_file_cache off;
        ssl_protocols TLSv1.2 TLSv1.3;"
                .to_owned(),
        };
        format!(
            "    server {{
        listen {http};
        listen {https} ssl http2;
        {settings}
        location / {{ proxy_pass http://origin; }}
    }}
"
        )
    }
}

/// The best settings. `tcp_nopush` is off without TLS, as what it holds back stalls a keep-alive
/// connection. With TLS it is on, as is usual; nginx heeds it for sendfile(2) alone. The suite is
/// the one that the client offers.
fn tuned(sendfile: bool, open_file_cache: bool, ssl_buffer: u32, tls: bool) -> String {
    let on = |yes| if yes { "on" } else { "off" };
    let open_file_cache = match open_file_cache {
        true => "",
        false => "open_file_cache off;",
    };
    format!(
        "sendfile {};
        {open_file_cache}
        tcp_nopush {};
        tcp_nodelay on;
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;
        ssl_conf_command Options -KTLS;
        ssl_session_cache shared:sessions:16m;
        ssl_session_tickets on;
        ssl_buffer_size {ssl_buffer}k;",
        on(sendfile),
        on(tls),
    )
}
