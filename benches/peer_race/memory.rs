//! Resident memory of the proxy while many clients download slowly, or have nothing
//! to ask for.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};
use test_support::{SelfSigned, PATIENCE};

use crate::{
    client::{http2, tls::client_config},
    machine,
    network::Network,
    objects::{self, KIB, MIB},
    peers::{run_proxy, BUCKET, BUILDS, PROXY},
    process::{Server, WorkDir},
    report, roles,
};

/// Downloads, or idle connections.
const CLIENTS: usize = 1000;
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Plain,
    Tls,
    /// With so many streams a connection.
    Http2(usize),
}

struct Case {
    name: &'static str,
    sendfile: bool,
    over: Over,
    idle: bool,
}

const CASES: [Case; 8] = [
    Case::downloads("downloads, plain, sendfile", true, Over::Plain),
    Case::downloads("downloads, plain, copying", false, Over::Plain),
    Case::downloads("downloads, TLS", true, Over::Tls),
    Case::downloads("downloads, HTTP/2", true, Over::Http2(1)),
    Case::downloads("downloads, HTTP/2, 10 a connection", true, Over::Http2(10)),
    Case::idle("idle, plain", Over::Plain),
    Case::idle("idle, TLS", Over::Tls),
    Case::idle("idle, HTTP/2", Over::Http2(1)),
];

/// The most memory that a download may take, in KiB.
const TARGET: u64 = 64;

/// Prints and writes `memory.md`: of the builds that are named, or of the one that was built
/// with this.
pub fn run(builds: &[PathBuf]) {
    let mut table = format!(
        "# Memory\n\n`cargo bench --bench peer_race -- memory` on {}.\n\n\
         Resident bytes of s3-proxy with {CLIENTS} downloads of a {} MiB object, \
         each of {} KiB a second, or with as many connections that are kept alive after a hit of \
         {} KiB: the most of {PASSES} looks, less what was resident after one response.\n\n\
         | {CLIENTS} of | before, KiB | during, KiB | each, KiB | at most |\n|---|---:|---:|---:|---:|\n",
        machine::describe(&Network::Machine),
        OBJECT / MIB,
        PIECE as u64 / KIB,
        SMALL / KIB,
    );
    println!("{table}");
    let work = WorkDir::make();
    let mut origin = Server::start_role("the origin", None, &[roles::ORIGIN]);
    let origin: SocketAddr = origin.read_until(|line| line.parse().ok());
    let own = [PathBuf::from(PROXY)];
    let builds = if builds.is_empty() { &own } else { builds };
    for (number, case) in CASES.iter().enumerate() {
        for (build, program) in builds.iter().enumerate() {
            let dir = work.path().join(format!("{number}-{build}"));
            let which = match builds.len() {
                1 => String::new(),
                _ => format!(", {}", BUILDS[build]),
            };
            let row = case.measure(program, &which, &dir, origin);
            println!("{row}");
            table += &row;
            table += "\n";
        }
    }
    let path = report::dir().join("memory.md");
    fs::write(&path, table).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    println!("written: {}", path.display());
}

// === impl Case ===

impl Case {
    const fn downloads(name: &'static str, sendfile: bool, over: Over) -> Self {
        Self {
            name,
            sendfile,
            over,
            idle: false,
        }
    }

    const fn idle(name: &'static str, over: Over) -> Self {
        Self {
            name,
            sendfile: true,
            over,
            idle: true,
        }
    }

    /// A row of the table.
    fn measure(&self, program: &Path, which: &str, dir: &Path, origin: SocketAddr) -> String {
        fs::create_dir_all(dir).expect("make the proxy's folder");
        let made = SelfSigned::write_to(dir);
        let disk = format!("sendfile:\n      enabled: {}", self.sendfile);
        let (proxy, http, https) = run_proxy(
            "s3-proxy",
            program,
            (None, 1),
            dir,
            (origin, BUCKET),
            &disk,
            Some(&made),
        );
        let https = https.expect("the proxy serves HTTPS");
        let alpn: &[u8] = match self.over {
            Over::Http2(_) => b"h2",
            _ => b"http/1.1",
        };
        let config = Arc::new(client_config(&made, alpn));
        let len = if self.idle { SMALL } else { OBJECT };
        let ask = || match self.over {
            Over::Plain => ask(connect(http), len),
            Over::Tls => ask(secure(connect(https), &config), len),
            Over::Http2(streams) => ask_http2(secure(connect(https), &config), len, streams),
        };
        // The first fills the cache; the second is a hit, as all others are.
        for (mut client, rest) in [ask_plainly(http, len), ask_plainly(http, len), ask()] {
            let body = std::io::copy(&mut (&mut client).take(rest), &mut std::io::sink());
            assert_eq!(body.expect("download an object"), rest);
        }
        let before = proxy.resident_bytes();
        let streams = match self.over {
            Over::Http2(streams) => streams,
            _ => 1,
        };
        let begin = |_| {
            let (mut client, rest) = ask();
            if self.idle {
                let mut body = vec![0; rest as usize];
                client.read_exact(&mut body).expect("read a body");
            }
            client
        };
        let mut clients: Vec<Client> = (0..CLIENTS / streams).map(begin).collect();
        let mut during = 0;
        let mut piece = vec![0; PIECE * streams];
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
        let target = match self.idle {
            true => String::new(),
            false => TARGET.to_string(),
        };
        format!(
            "| {}{which} | {} | {} | {:.1} | {target} |",
            self.name,
            before / KIB,
            during / KIB,
            during.saturating_sub(before) as f64 / CLIENTS as f64 / KIB as f64
        )
    }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("make a socket");
    socket
        .set_recv_buffer_size(RECEIVE_BUFFER)
        .expect("set SO_RCVBUF");
    socket.set_tcp_mss(SEGMENT).expect("set TCP_MAXSEG");
    socket.connect(&addr.into()).expect("connect to the proxy");
    let tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    tcp
}

fn secure(tcp: TcpStream, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = "localhost".try_into().expect("a server's name");
    let connection = ClientConnection::new(config.clone(), name).expect("begin TLS");
    StreamOwned::new(connection, tcp)
}

fn ask_plainly(addr: SocketAddr, len: u64) -> (Client, u64) {
    ask(connect(addr), len)
}

/// Asks for an object, and returns when its head has come: how many bytes of the
/// body are still to be read.
fn ask(mut client: impl ReadWrite + 'static, len: u64) -> (Client, u64) {
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
            return (Box::new(client), len - (start.len() - head - 4) as u64);
        }
    }
}

/// Asks for an object on each stream, with windows that hold them whole, and returns when
/// all heads have come: how many bytes, of frames now, are to be read at least.
fn ask_http2(mut client: impl ReadWrite + 'static, len: u64, streams: usize) -> (Client, u64) {
    let block = http2::header_block("bench", &objects::path(len, 0));
    let mut requests = http2::preface();
    for stream in 0..streams as u32 {
        http2::request(2 * stream + 1, &block, &mut requests);
    }
    client.write_all(&requests).expect("send requests");
    let mut heads = 0;
    let mut body = 0;
    while heads < streams {
        let mut header = [0; http2::HEADER];
        client.read_exact(&mut header).expect("receive a frame");
        let frame = http2::Frame::parse(&header);
        let mut payload = vec![0; frame.left];
        client.read_exact(&mut payload).expect("receive a frame");
        match http2::answer(&frame, &payload) {
            Some(answer) => client.write_all(&answer).expect("answer a frame"),
            None if frame.is_head() => heads += 1,
            None if frame.is_data() => body += payload.len() as u64,
            None => {}
        }
    }
    (Box::new(client), len * streams as u64 - body)
}
