//! HTTP/2 frame by frame (RFC 9113), for clients that no library would make.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustls::{
    crypto::ring,
    pki_types::{pem::PemObject, CertificateDer},
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The largest flow-control window.
const ANY: u32 = (1 << 31) - 1;

/// The time after which a write is given up if the server takes nothing.
const STUCK: Duration = Duration::from_secs(5);

/// A connection over TLS that has agreed on HTTP/2 and sends what it is told.
pub struct Frames {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// Trusts one certificate, and speaks HTTP/2 only.
pub fn tls(certificate: &Path) -> Arc<ClientConfig> {
    let certificate = CertificateDer::from_pem_file(certificate).expect("read the certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("trust the certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Frames that cost a server more than their sender, one function for each kind.
pub fn priorities(count: usize) -> Vec<u8> {
    // Stream 1 depends on none, weight 16.
    frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]).repeat(count)
}

pub fn pings(count: usize) -> Vec<u8> {
    frame(PING, 0, 0, &[0; 8]).repeat(count)
}

pub fn settings(count: usize) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[]).repeat(count)
}

/// RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

// === impl Frames ===

impl Frames {
    /// Connects, and sends nothing after the handshake.
    pub fn open(addr: SocketAddr, tls: &Arc<ClientConfig>) -> io::Result<Self> {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(STUCK))?;
        socket.set_write_timeout(Some(STUCK))?;
        let name = "localhost".try_into().expect("a name");
        let mut session = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Self {
            stream: StreamOwned::new(session, socket),
        })
    }

    /// Sends the preface and SETTINGS that let the server send what it has.
    pub fn begin(&mut self) -> io::Result<()> {
        // SETTINGS_INITIAL_WINDOW_SIZE
        let windows = [&[0, 4][..], &ANY.to_be_bytes()].concat();
        let more = ANY - 65_535;
        self.send(
            &[
                PREFACE,
                &frame(SETTINGS, 0, 0, &windows),
                &frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes()),
            ]
            .concat(),
        )
    }

    /// Sends `GET` of a path on a stream.
    pub fn ask(&mut self, stream: u32, path: &str) -> io::Result<()> {
        self.send(&request(stream, path, END_STREAM | END_HEADERS))
    }

    /// Sends the beginning of a header block that never ends.
    pub fn ask_in_part(&mut self, stream: u32, path: &str) -> io::Result<()> {
        self.send(&request(stream, path, END_STREAM))
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads, and forgets, what has come. False: the server has ended the connection.
    pub fn drain(&mut self) -> bool {
        drain(&self.stream.sock)
    }
}

/// Like [`Frames::drain`], for a socket.
pub fn drain(mut socket: &TcpStream) -> bool {
    let mut bytes = [0; 16 * 1024];
    socket.set_nonblocking(true).expect("make it non-blocking");
    let open = loop {
        match socket.read(&mut bytes) {
            Ok(0) => break false,
            Ok(_) => {}
            Err(e) => break e.kind() == io::ErrorKind::WouldBlock,
        }
    };
    socket.set_nonblocking(false).expect("make it blocking");
    open
}

/// A HEADERS frame with literals that are not indexed (RFC 7541, section 6.2.2).
fn request(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    // From the static table: `:method: GET`, `:scheme: https`.
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(1, "localhost"), (4, path)] {
        block.extend([name, value.len() as u8]);
        block.extend(value.as_bytes());
    }
    frame(HEADERS, flags, stream, &block)
}
