//! The peers that take part.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use rustls::ClientConfig;
use test_support::SelfSigned;

use crate::{
    client::{tls::client_config, Address, Client, Order},
    nginx,
    objects::{self, Objects},
    options::OpenFiles,
    process::Server,
    protocol::Protocol,
    roles,
};

/// The proxy that was built with this benchmark.
pub const PROXY: &str = env!("CARGO_BIN_EXE_s3-proxy");

/// Connections that fill a cache.
const FILLING: usize = 16;

/// The number of times that all objects are asked for until all are hits.
const FILL_ATTEMPTS: usize = 20;

/// The bucket of the origin that has no more in its header than it needs.
pub const BUCKET: &str = "bench";

/// Apps on the published Pingora, if they are built.
const STOCK: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/target/stock/release/stock-peers"
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    ProxySendfile,
    /// The same, in front of an origin that sends MinIO's header.
    ProxyMinio,
    /// Another build of it, of those that `--build` names.
    Build(usize),
    ProxyCopy,
    /// [`Self::ProxySendfile`] with an access log.
    ProxyLog,
    /// [`Self::ProxySendfile`], over TLS.
    ProxyTls,
    /// The same with no setting that is not needed.
    ProxyTlsDefaults,
    OldFlow,
    PingoraMemory,
    PingoraChunks,
    /// Of [`nginx::MODES`].
    Nginx(usize),
    BareSendfile,
}

/// A peer that runs.
pub struct Peer {
    pub kind: PeerKind,
    /// The address of HTTP, which fills its cache.
    http: SocketAddr,
    /// The address of HTTPS, where it has one.
    https: Option<SocketAddr>,
    pub server: Rc<Server>,
    tls: Rc<TlsClients>,
}

/// The configurations of HTTPS clients, one for each protocol.
struct TlsClients {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

/// The surroundings that peers are started in.
pub struct Stage<'a> {
    pub core: Option<usize>,
    pub dir: &'a Path,
    /// The folder of the objects, as files.
    pub files: &'a Path,
    pub origin: SocketAddr,
    pub open_files: OpenFiles,
    /// Other builds of the proxy.
    pub builds: &'a [PathBuf],
    /// The threads of each proxy. With several, no proxy is pinned to a core.
    pub threads: usize,
    /// The certificate of all servers.
    pub certificate: &'a SelfSigned,
}

/// Of the other builds, in their order.
pub const BUILDS: [&str; 6] = [
    "build-1", "build-2", "build-3", "build-4", "build-5", "build-6",
];

// === impl PeerKind ===

impl PeerKind {
    pub const ALL: [Self; 17] = [
        Self::ProxySendfile,
        Self::ProxyMinio,
        Self::ProxyCopy,
        Self::ProxyLog,
        Self::ProxyTls,
        Self::ProxyTlsDefaults,
        Self::Nginx(0),
        Self::Nginx(1),
        Self::Nginx(2),
        Self::Nginx(3),
        Self::Nginx(4),
        Self::Nginx(5),
        Self::Nginx(6),
        Self::OldFlow,
        Self::PingoraMemory,
        Self::PingoraChunks,
        Self::BareSendfile,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Self::ProxySendfile => "proxy-sendfile",
            Self::ProxyMinio => "proxy-minio",
            Self::Build(number) => BUILDS[number],
            Self::ProxyCopy => "proxy-copy",
            Self::ProxyLog => "proxy-log",
            Self::ProxyTls => "proxy-tls",
            Self::ProxyTlsDefaults => "proxy-tls-defaults",
            Self::OldFlow => "old-flow",
            Self::PingoraMemory => "pingora-memory",
            Self::PingoraChunks => "pingora-chunks",
            Self::Nginx(mode) => nginx::MODES[mode].key,
            Self::BareSendfile => "bare-sendfile",
        }
    }

    pub fn is_nginx(self) -> bool {
        matches!(self, Self::Nginx(_))
    }

    /// True if it has no setting that is not needed. It is compared with others like it.
    pub fn is_default(self) -> bool {
        match self {
            Self::Nginx(mode) => nginx::MODES[mode].is_default(),
            _ => self == Self::ProxyTlsDefaults,
        }
    }

    /// True if its hits are raced over this.
    pub fn is_raced_over(self, protocol: Protocol) -> bool {
        let over_tls = match self {
            Self::Build(_) => return true,
            Self::Nginx(mode) => nginx::MODES[mode].tls,
            _ => matches!(self, Self::ProxyTls | Self::ProxyTlsDefaults),
        };
        over_tls == protocol.is_over_tls()
    }

    /// True if its handshakes are raced: of peers that differ in nothing that matters to
    /// them, it is the one that does it for all.
    pub fn shakes_hands(self) -> bool {
        match self {
            Self::Nginx(mode) => nginx::MODES[mode].key == "nginx-tls-16k",
            _ => matches!(self, Self::Build(_) | Self::ProxyTls),
        }
    }

    /// Its name in [`STOCK`], if it is one of its ways.
    fn stock_way(self) -> Option<&'static str> {
        match self {
            Self::OldFlow => Some("whole"),
            Self::PingoraMemory => Some("memory"),
            Self::PingoraChunks => Some("chunks"),
            _ => None,
        }
    }

    /// True if it serves the files, without a cache of its own.
    fn serves_files(self) -> bool {
        self == Self::BareSendfile || self.stock_way().is_some()
    }
}

/// Starts all of these; the ones that this machine lacks are named and left out.
pub fn start(kinds: &[PeerKind], stage: &Stage) -> Vec<Peer> {
    let mut peers = Vec::new();
    let mut the_nginx: Option<(Rc<Server>, Vec<nginx::Addrs>)> = None;
    let mut proxies = HashMap::new();
    let tls = Rc::new(TlsClients::new(stage.certificate));
    let has_nginx = nginx::version().is_some();
    if !has_nginx && kinds.iter().any(|kind| kind.is_nginx()) {
        println!("nginx is not installed: its modes are skipped");
    }
    let has_stock = Path::new(STOCK).exists();
    if !has_stock && kinds.iter().any(|kind| kind.stock_way().is_some()) {
        println!("benches/stock is not built, which `make bench` does: stock Pingora is skipped");
    }
    for &kind in kinds {
        let name = kind.key();
        let (server, http, https) = match kind {
            PeerKind::OldFlow | PeerKind::PingoraMemory | PeerKind::PingoraChunks => {
                let Some(way) = kind.stock_way().filter(|_| has_stock) else {
                    continue;
                };
                start_app(stage, |files| {
                    Server::start(name, stage.core, Path::new(STOCK), &[way, files])
                })
            }
            PeerKind::BareSendfile => start_app(stage, |files| {
                Server::start_role(name, stage.core, &[roles::BARE, files])
            }),
            PeerKind::Nginx(_) if !has_nginx => continue,
            PeerKind::Nginx(mode) => {
                let (server, addrs) = the_nginx.get_or_insert_with(|| {
                    let dir = stage.dir.join("nginx");
                    let (server, addrs) = nginx::start(
                        stage.core,
                        &dir,
                        stage.origin,
                        stage.open_files.number(),
                        stage.certificate,
                    );
                    (Rc::new(server), addrs)
                });
                let [http, https] = addrs[mode];
                (server.clone(), http, Some(https))
            }
            _ => {
                // One process serves HTTP and HTTPS.
                let kind = match kind {
                    PeerKind::ProxyTls => PeerKind::ProxySendfile,
                    kind => kind,
                };
                let start = || start_proxy(kind, stage);
                let (server, http, https) = proxies.entry(kind.key()).or_insert_with(start);
                (Rc::clone(server), *http, *https)
            }
        };
        peers.push(Peer {
            kind,
            http,
            https,
            server,
            tls: tls.clone(),
        });
    }
    peers
}

/// True if any of these needs the objects as files.
pub fn need_files(mut kinds: impl Iterator<Item = PeerKind>) -> bool {
    kinds.any(PeerKind::serves_files)
}

/// A server, and where it serves HTTP and HTTPS.
type Started = (Rc<Server>, SocketAddr, Option<SocketAddr>);

/// The server that `start` starts with the folder of the objects.
fn start_app(stage: &Stage, start: impl FnOnce(&str) -> Server) -> Started {
    let mut server = start(stage.files.to_str().expect("a path in UTF-8"));
    let addr = server.read_until(|line| line.parse().ok());
    (Rc::new(server), addr, None)
}

fn start_proxy(kind: PeerKind, stage: &Stage) -> Started {
    let program = match kind {
        PeerKind::Build(number) => &stage.builds[number],
        _ => Path::new(PROXY),
    };
    let bucket = match kind {
        PeerKind::ProxyMinio => roles::MINIO_BUCKET,
        _ => BUCKET,
    };
    let files = stage.open_files.key();
    let disk = match kind {
        PeerKind::ProxyTlsDefaults => String::new(),
        PeerKind::ProxyCopy => format!("{files}\n    sendfile:\n      enabled: false"),
        PeerKind::ProxyLog => {
            let log = stage.dir.join(kind.key()).join("access.log");
            format!("{files}\naccess_log:\n  path: '{}'", log.display())
        }
        _ => files,
    };
    let name = kind.key();
    let dir = stage.dir.join(name);
    let origin = (stage.origin, bucket);
    let tls = Some(stage.certificate);
    let core = stage.core.filter(|_| stage.threads == 1);
    let place = (core, stage.threads);
    let (server, http, https) = run_proxy(name, program, place, &dir, origin, &disk, tls);
    (Rc::new(server), http, https)
}

/// An `s3-proxy` on a core (None: any) with so many threads, with its files in `dir`; `disk` is the
/// rest of the section `cache.disk`, `origin` an address and a bucket there. Returns where it serves HTTP
/// and, with a certificate, HTTPS.
pub fn run_proxy(
    name: &str,
    program: &Path,
    (core, threads): (Option<usize>, usize),
    dir: &Path,
    (origin, bucket): (SocketAddr, &str),
    disk: &str,
    tls: Option<&SelfSigned>,
) -> (Server, SocketAddr, Option<SocketAddr>) {
    fs::create_dir_all(dir).expect("make the proxy's folder");
    let tls = tls.map_or_else(String::new, |made| {
        format!(
            "\n  tls:\n    address: 127.0.0.1:0\n    certificate: '{}'\n    key: '{}'",
            made.certificate.display(),
            made.key.display()
        )
    });
    let yaml = format!(
        "server:
  address: 127.0.0.1:0
  threads: {threads}
  grace_period: 0{tls}
buckets:
  - path_prefix: /o
    bucket: {bucket}
    region: us-east-1
    endpoint: http://{origin}
cache:
  disk:
    path: '{}'
    max_size_gb: 64
    {disk}
",
        dir.join("cache").display()
    );
    let config = dir.join("config.yaml");
    fs::write(&config, yaml).expect("write the proxy's configuration");
    let config = config.to_str().expect("a path in UTF-8");
    let mut server = Server::start(name, core, program, &["run", "--config", config]);
    let (mut http, mut https) = (None, None);
    server.read_until(|line| {
        if let Some(addr) = line.strip_prefix("s3-proxy: serving http://") {
            http = addr.parse().ok();
        } else if let Some(addr) = line.strip_prefix("s3-proxy: serving https://") {
            https = addr.parse().ok();
        }
        (line == "s3-proxy: ready").then_some(())
    });
    (server, http.expect("the proxy serves HTTP"), https)
}

// === impl TlsClients ===

impl TlsClients {
    fn new(certificate: &SelfSigned) -> Self {
        let config = |protocol| Arc::new(client_config(certificate, protocol));
        Self {
            http1: config(b"http/1.1"),
            http2: config(b"h2"),
        }
    }
}

// === impl Peer ===

impl Peer {
    /// The proxy that was built with this benchmark, with its files in `dir`; `disk` is the rest of the
    /// section `cache.disk`.
    pub fn start_in(dir: &Path, disk: &str, stage: &Stage) -> Self {
        let kind = PeerKind::ProxySendfile;
        let origin = (stage.origin, BUCKET);
        let program = Path::new(PROXY);
        let (server, http, https) = run_proxy(
            kind.key(),
            program,
            (stage.core, stage.threads),
            dir,
            origin,
            disk,
            None,
        );
        Self {
            kind,
            http,
            https,
            server: Rc::new(server),
            tls: Rc::new(TlsClients::new(stage.certificate)),
        }
    }

    /// The address of HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Asks for all objects until all are hits, and checks the bytes of some.
    pub fn fill(&self, objects: Objects) {
        let connect = |order| self.connect(Protocol::Http, objects, order, FILLING);
        let mut client = connect(Order::in_turn()).filling();
        for attempt in 0.. {
            client.fetch(objects.count);
            let misses = client.take_misses();
            if misses == 0 {
                break;
            }
            assert!(
                attempt < FILL_ATTEMPTS,
                "{}: {misses} of {} objects of {} are not stored",
                self.kind.key(),
                objects.count,
                objects.label
            );
            // The proxy commits entries a little later than it sends them.
            if attempt > 0 {
                thread::sleep(Duration::from_millis(250));
            }
        }
        for index in [0, objects.count / 2, objects.count - 1] {
            let body = client.look(0, index as usize);
            objects::pattern(objects.len, index).check(0, &body);
        }
    }

    /// A client of this peer.
    pub fn connect(
        &self,
        protocol: Protocol,
        objects: Objects,
        order: Order,
        connections: usize,
    ) -> Client {
        let address = match protocol {
            Protocol::Http => Address::Tcp(self.http),
            Protocol::Https => Address::Tls(self.https(), self.tls.http1.clone()),
            Protocol::Http2 => {
                let streams = protocol.streams();
                Address::Http2(self.https(), self.tls.http2.clone(), streams)
            }
        };
        let requests = objects.requests(protocol, order);
        Client::connect(self.kind.key(), &address, connections, requests)
    }

    /// The address of HTTPS.
    pub fn https(&self) -> SocketAddr {
        self.https.expect("the peer serves HTTPS")
    }
}
