//! The peers that take part.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    thread,
    time::Duration,
};

use crate::{
    client::{Address, Client, Order},
    nginx,
    objects::{self, Objects},
    process::{open_files, Server},
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
    pub addr: SocketAddr,
    pub server: Rc<Server>,
}

/// The surroundings that peers are started in.
pub struct Stage<'a> {
    pub core: Option<usize>,
    pub dir: &'a Path,
    /// The folder of the objects, as files.
    pub files: &'a Path,
    pub origin: SocketAddr,
    /// Other builds of the proxy.
    pub builds: &'a [PathBuf],
}

/// Of the other builds, in their order.
pub const BUILDS: [&str; 6] = [
    "build-1", "build-2", "build-3", "build-4", "build-5", "build-6",
];

// === impl PeerKind ===

impl PeerKind {
    pub const ALL: [Self; 11] = [
        Self::ProxySendfile,
        Self::ProxyMinio,
        Self::ProxyCopy,
        Self::Nginx(0),
        Self::Nginx(1),
        Self::Nginx(2),
        Self::Nginx(3),
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
            Self::OldFlow => "old-flow",
            Self::PingoraMemory => "pingora-memory",
            Self::PingoraChunks => "pingora-chunks",
            Self::Nginx(mode) => match nginx::MODES[mode] {
                nginx::Mode {
                    sendfile: true,
                    open_file_cache: false,
                } => "nginx-sendfile",
                nginx::Mode {
                    sendfile: true,
                    open_file_cache: true,
                } => "nginx-sendfile-ofc",
                nginx::Mode {
                    sendfile: false,
                    open_file_cache: false,
                } => "nginx-copy",
                nginx::Mode {
                    sendfile: false,
                    open_file_cache: true,
                } => "nginx-copy-ofc",
            },
            Self::BareSendfile => "bare-sendfile",
        }
    }

    pub fn is_nginx(self) -> bool {
        matches!(self, Self::Nginx(_))
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
    let mut the_nginx: Option<(Rc<Server>, [SocketAddr; 4])> = None;
    let has_nginx = nginx::version().is_some();
    if !has_nginx && kinds.iter().any(|kind| kind.is_nginx()) {
        println!("nginx is not installed: its four modes are skipped");
    }
    let has_stock = Path::new(STOCK).exists();
    if !has_stock && kinds.iter().any(|kind| kind.stock_way().is_some()) {
        println!("benches/stock is not built, which `make bench` does: stock Pingora is skipped");
    }
    for &kind in kinds {
        let name = kind.key();
        let (server, addr) = match kind {
            PeerKind::ProxySendfile => start_proxy(name, stage, Path::new(PROXY), BUCKET, true),
            PeerKind::ProxyMinio => {
                start_proxy(name, stage, Path::new(PROXY), roles::MINIO_BUCKET, true)
            }
            PeerKind::Build(number) => {
                start_proxy(name, stage, &stage.builds[number], BUCKET, true)
            }
            PeerKind::ProxyCopy => start_proxy(name, stage, Path::new(PROXY), BUCKET, false),
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
                    let (server, addrs) = nginx::start(stage.core, &dir, stage.origin);
                    (Rc::new(server), addrs)
                });
                peers.push(Peer {
                    kind,
                    addr: addrs[mode],
                    server: server.clone(),
                });
                continue;
            }
        };
        peers.push(Peer {
            kind,
            addr,
            server: Rc::new(server),
        });
    }
    peers
}

/// True if any of these needs the objects as files.
pub fn need_files(mut kinds: impl Iterator<Item = PeerKind>) -> bool {
    kinds.any(PeerKind::serves_files)
}

/// The server that `start` starts with the folder of the objects, and its address.
fn start_app(stage: &Stage, start: impl FnOnce(&str) -> Server) -> (Server, SocketAddr) {
    let mut server = start(stage.files.to_str().expect("a path in UTF-8"));
    let addr = server.read_until(|line| line.parse().ok());
    (server, addr)
}

fn start_proxy(
    name: &str,
    stage: &Stage,
    program: &Path,
    bucket: &str,
    sendfile: bool,
) -> (Server, SocketAddr) {
    let dir = stage.dir.join(name);
    let files = open_files();
    let disk = format!("max_open_files: {files}\n    sendfile:\n      enabled: {sendfile}");
    let origin = (stage.origin, bucket);
    let (server, http, _) = run_proxy(name, program, stage.core, &dir, origin, &disk, None);
    (server, http)
}

/// An `s3-proxy` with its files in `dir`; `disk` is the rest of the
/// section `cache.disk`, `origin` an address and a bucket there, `tls` a certificate and its key. Returns where it
/// serves HTTP and HTTPS.
pub fn run_proxy(
    name: &str,
    program: &Path,
    core: Option<usize>,
    dir: &Path,
    (origin, bucket): (SocketAddr, &str),
    disk: &str,
    tls: Option<(&Path, &Path)>,
) -> (Server, SocketAddr, Option<SocketAddr>) {
    fs::create_dir_all(dir).expect("make the proxy's folder");
    let tls = tls.map_or_else(String::new, |(certificate, key)| {
        format!(
            "\n  tls:\n    address: 127.0.0.1:0\n    certificate: '{}'\n    key: '{}'",
            certificate.display(),
            key.display()
        )
    });
    let yaml = format!(
        "server:
  address: 127.0.0.1:0
  threads: 1
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

// === impl Peer ===

impl Peer {
    /// Asks for all objects until all are hits, and checks the bytes of some.
    pub fn fill(&self, objects: Objects) {
        let mut client = self.connect(objects, Order::in_turn(), FILLING).filling();
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
            let (_, body) = client.look(&Address::Tcp(self.addr), index as usize);
            objects::pattern(objects.len, index).check(0, &body);
        }
    }

    /// A client of this peer.
    pub fn connect(&self, objects: Objects, order: Order, connections: usize) -> Client {
        let address = Address::Tcp(self.addr);
        let requests = objects.requests(order);
        Client::connect(self.kind.key(), &address, connections, requests)
    }
}
