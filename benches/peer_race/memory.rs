//! Resident memory of the proxy while many clients download slowly.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{
    crypto::ring,
    pki_types::{pem::PemObject, CertificateDer},
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
};
use socket2::{Domain, Socket, Type};
use test_support::{SelfSigned, PATIENCE};

use crate::{
    machine,
    network::Network,
    objects::{self, KIB, MIB},
    peers::{run_proxy, PROXY},
    process::{Server, WorkDir},
    report, roles,
};

const CONNECTIONS: usize = 1000;
const OBJECT: u64 = 100 * MIB;

/// What each client reads at once, and how often, for how long.
const PIECE: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_secs(1);
const PASSES: usize = 8;

/// Of each client, in bytes.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// What fits into a packet of Ethernet. The kernel sizes a send buffer by packets,
/// and with loopback's of 64 KiB a thousand downloads would exceed what it allows
/// for all of TCP (tcp(7), tcp_mem), and stall.
const SEGMENT: u32 = 1460;

/// A response under way; reading takes it further.
type Download = Box<dyn Read>;

struct Case {
    name: &'static str,
    sendfile: bool,
    tls: bool,
}

const CASES: [Case; 3] = [
    Case::new("plain, sendfile", true, false),
    Case::new("plain, copying", false, false),
    Case::new("TLS", true, true),
];

/// Prints and writes `memory.md`.
pub fn run() {
    let mut table = format!(
        "# Memory\n\n`cargo bench --bench peer_race -- memory` on {}.\n\n\
         Resident bytes of s3-proxy at {CONNECTIONS} downloads of a {} MiB object, each \
         reading {} KiB a second: the most of {PASSES} looks, less what was resident after \
         one download.\n\n\
         | downloads | before, KiB | during, KiB | a connection, KiB |\n|---|---:|---:|---:|\n",
        machine::describe(&Network::Machine),
        OBJECT / MIB,
        PIECE as u64 / KIB,
    );
    println!("{table}");
    let work = WorkDir::make();
    let mut origin = Server::start_role("the origin", None, &[roles::ORIGIN]);
    let origin: SocketAddr = origin.read_until(|line| line.parse().ok());
    for (index, case) in CASES.iter().enumerate() {
        let dir = work.path().join(index.to_string());
        let row = case.measure(&dir, origin);
        println!("{row}");
        table += &row;
        table += "\n";
    }
    let path = report::dir().join("memory.md");
    fs::write(&path, table).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    println!("written: {}", path.display());
}

// === impl Case ===

impl Case {
    const fn new(name: &'static str, sendfile: bool, tls: bool) -> Self {
        Self {
            name,
            sendfile,
            tls,
        }
    }

    /// A row of the table.
    fn measure(&self, dir: &Path, origin: SocketAddr) -> String {
        fs::create_dir_all(dir).expect("make the proxy's folder");
        let made = SelfSigned::write_to(dir);
        let disk = format!("sendfile:\n      enabled: {}", self.sendfile);
        let tls = Some((made.certificate.as_path(), made.key.as_path()));
        let (proxy, http, https) =
            run_proxy("s3-proxy", Path::new(PROXY), None, dir, origin, &disk, tls);
        let config = client_config(&made);
        let (addr, tls) = match self.tls {
            true => (https.expect("the proxy serves HTTPS"), Some(&config)),
            false => (http, None),
        };
        // The first fills the cache; the second is a hit, as all others are.
        for _ in 0..2 {
            let mut download = open(addr, tls);
            std::io::copy(&mut download, &mut std::io::sink()).expect("download an object");
        }
        let before = proxy.resident_bytes();
        let mut downloads: Vec<Download> = (0..CONNECTIONS).map(|_| open(addr, tls)).collect();
        let mut during = 0;
        let mut piece = vec![0; PIECE];
        for _ in 0..PASSES {
            let pass = Instant::now();
            for download in &mut downloads {
                download.read_exact(&mut piece).expect("read on");
            }
            thread::sleep(PAUSE.saturating_sub(pass.elapsed()));
            during = proxy.resident_bytes().max(during);
        }
        format!(
            "| {} | {} | {} | {:.1} |",
            self.name,
            before / KIB,
            during / KIB,
            during.saturating_sub(before) as f64 / CONNECTIONS as f64 / KIB as f64
        )
    }
}

/// Starts a download on a connection of its own, and returns when its head has
/// come.
fn open(addr: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Download {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("make a socket");
    socket
        .set_recv_buffer_size(RECEIVE_BUFFER)
        .expect("set SO_RCVBUF");
    socket.set_tcp_mss(SEGMENT).expect("set TCP_MAXSEG");
    socket.connect(&addr.into()).expect("connect to the proxy");
    let tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    match tls {
        Some(config) => {
            let name = "localhost".try_into().expect("a server's name");
            let connection = ClientConnection::new(config.clone(), name).expect("begin TLS");
            begin(StreamOwned::new(connection, tcp))
        }
        None => begin(tcp),
    }
}

fn begin(mut stream: impl Read + Write + 'static) -> Download {
    let path = objects::path(OBJECT, 0);
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .expect("send a request");
    let mut start = [0; 1024];
    let n = stream.read(&mut start).expect("receive a head");
    assert!(start[..n].starts_with(b"HTTP/1.1 200 "), "no 200");
    Box::new(stream)
}

/// A client that trusts this one certificate.
fn client_config(made: &SelfSigned) -> Arc<ClientConfig> {
    let certificate =
        CertificateDer::from_pem_file(&made.certificate).expect("read the certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("trust the certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
