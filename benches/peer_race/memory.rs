//! Resident memory of the proxy while many clients download slowly, or have nothing
//! to ask for.

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
    peers::{run_proxy, BUCKET, PROXY},
    process::{Server, WorkDir},
    report, roles,
};

const CONNECTIONS: usize = 1000;
const OBJECT: u64 = 100 * MIB;

/// The bytes that each client reads at once, the pause between, and the number of times.
const PIECE: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_secs(1);
const PASSES: usize = 8;

/// Of each client, in bytes.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The payload of a packet of Ethernet. The kernel sizes a send buffer by packets,
/// and with loopback's of 64 KiB a thousand downloads would exceed what it allows
/// for all of TCP (tcp(7), tcp_mem), and stall.
const SEGMENT: u32 = 1460;

/// The bytes that clients have got who ask for nothing more yet.
const SMALL: u64 = 4 * KIB;

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// A connection to the proxy, over TLS or not.
type Client = Box<dyn ReadWrite>;

struct Case {
    name: &'static str,
    sendfile: bool,
    tls: bool,
    idle: bool,
}

const CASES: [Case; 5] = [
    Case::new("downloads, plain, sendfile", true, false, false),
    Case::new("downloads, plain, copying", false, false, false),
    Case::new("downloads, TLS", true, true, false),
    Case::new("idle, plain", true, false, true),
    Case::new("idle, TLS", true, true, true),
];

/// Prints and writes `memory.md`.
pub fn run() {
    let mut table = format!(
        "# Memory\n\n`cargo bench --bench peer_race -- memory` on {}.\n\n\
         Resident bytes of s3-proxy at {CONNECTIONS} connections that download a {} MiB object, \
         each {} KiB a second, or that are kept alive after a hit of {} KiB: the most of \
         {PASSES} looks, less what was resident after one response.\n\n\
         | connections | before, KiB | during, KiB | a connection, KiB |\n|---|---:|---:|---:|\n",
        machine::describe(&Network::Machine),
        OBJECT / MIB,
        PIECE as u64 / KIB,
        SMALL / KIB,
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
    const fn new(name: &'static str, sendfile: bool, tls: bool, idle: bool) -> Self {
        Self {
            name,
            sendfile,
            tls,
            idle,
        }
    }

    /// A row of the table.
    fn measure(&self, dir: &Path, origin: SocketAddr) -> String {
        fs::create_dir_all(dir).expect("make the proxy's folder");
        let made = SelfSigned::write_to(dir);
        let disk = format!("sendfile:\n      enabled: {}", self.sendfile);
        let tls = Some(&made);
        let (proxy, http, https) = run_proxy(
            "s3-proxy",
            Path::new(PROXY),
            None,
            dir,
            (origin, BUCKET),
            &disk,
            tls,
        );
        let config = client_config(&made);
        let (addr, tls) = match self.tls {
            true => (https.expect("the proxy serves HTTPS"), Some(&config)),
            false => (http, None),
        };
        let len = if self.idle { SMALL } else { OBJECT };
        // The first fills the cache; the second is a hit, as all others are.
        for _ in 0..2 {
            let mut client = connect(addr, tls);
            let rest = ask(&mut client, len);
            let body = std::io::copy(&mut client.take(rest), &mut std::io::sink());
            assert_eq!(body.expect("download an object"), rest);
        }
        let before = proxy.resident_bytes();
        let mut clients: Vec<Client> = (0..CONNECTIONS)
            .map(|_| {
                let mut client = connect(addr, tls);
                let rest = ask(&mut client, len);
                if self.idle {
                    let mut body = vec![0; rest as usize];
                    client.read_exact(&mut body).expect("read a body");
                }
                client
            })
            .collect();
        let mut during = 0;
        let mut piece = vec![0; PIECE];
        for _ in 0..PASSES {
            let pass = Instant::now();
            if !self.idle {
                for client in &mut clients {
                    client.read_exact(&mut piece).expect("read on");
                }
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

fn connect(addr: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Client {
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
            Box::new(StreamOwned::new(connection, tcp))
        }
        None => Box::new(tcp),
    }
}

/// Asks for an object, and returns when its head has come: how many bytes of the
/// body are still to be read.
fn ask(client: &mut Client, len: u64) -> u64 {
    let path = objects::path(len, 0);
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
    client
        .write_all(request.as_bytes())
        .expect("send a request");
    let mut start = Vec::new();
    loop {
        let mut piece = [0; 1024];
        let n = client.read(&mut piece).expect("receive a head");
        assert!(n > 0, "the connection ended in a head");
        start.extend_from_slice(&piece[..n]);
        if let Some(head) = start.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            assert!(start.starts_with(b"HTTP/1.1 200 "), "no 200");
            return len - (start.len() - head - 4) as u64;
        }
    }
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
