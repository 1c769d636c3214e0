//! A client of rustls that shows what happens below HTTP.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{crypto::ring, pki_types::ServerName, CipherSuite, ClientConfig, ClientConnection};
use test_support::{AnyCertificate, Pattern};

/// The time that a client waits for a byte. The machine is emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection with HTTP/1.1 over TLS.
pub struct Client {
    pub tls: ClientConnection,
    pub tcp: TcpStream,
}

/// The head of a response, and how much body it announces.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub length: u64,
}

/// Settings for connections that share their session tickets. Without a suite, all are offered.
pub fn config(suite: Option<CipherSuite>) -> Arc<ClientConfig> {
    let mut provider = ring::default_provider();
    if let Some(suite) = suite {
        provider
            .cipher_suites
            .retain(|known| known.suite() == suite);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(provider));
    let versions: Vec<_> = rustls::ALL_VERSIONS
        .iter()
        .copied()
        .filter(|version| {
            suite.is_none_or(|suite| {
                let tls13 = version.version == rustls::ProtocolVersion::TLSv1_3;
                tls13 == format!("{suite:?}").starts_with("TLS13")
            })
        })
        .collect();
    let mut config = config
        .with_protocol_versions(&versions)
        .expect("choose versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate::default()))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

// === impl Client ===

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        Self::with(addr, config(None))
    }

    pub fn with(addr: SocketAddr, config: Arc<ClientConfig>) -> Self {
        let tcp = TcpStream::connect(addr).expect("connect");
        tcp.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        tcp.set_nodelay(true).expect("set TCP_NODELAY");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(config, name).expect("make a connection");
        Self { tls, tcp }
    }

    fn stream(&mut self) -> rustls::Stream<'_, ClientConnection, TcpStream> {
        rustls::Stream::new(&mut self.tls, &mut self.tcp)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream().write_all(bytes).expect("send");
    }

    pub fn ask(&mut self, target: &str, fields: &str) {
        self.send(&request(target, fields));
    }

    /// Reads what is there, as [`Read::read`].
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream().read(buf)
    }

    pub fn head(&mut self) -> Head {
        let mut head = Vec::new();
        let mut byte = [0; 1];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream().read_exact(&mut byte).expect("read the head");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head)
            .expect("a head in UTF-8")
            .to_lowercase();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        Head {
            status: status.expect("a status"),
            length: length.and_then(|length| length.parse().ok()).unwrap_or(0),
        }
    }

    /// Reads a body and compares it. `step` bytes are asked for at a time, with a pause behind each.
    pub fn body(
        &mut self,
        pattern: Pattern,
        offset: u64,
        length: u64,
        step: usize,
        pause: Duration,
    ) {
        let mut buf = vec![0; step];
        let mut at = 0;
        while at < length {
            let most = (length - at).min(step as u64) as usize;
            let n = self.read(&mut buf[..most]).expect("read the body");
            assert!(n > 0, "the body ends at byte {at} of {length}");
            pattern.check(offset + at, &buf[..n]);
            at += n as u64;
            std::thread::sleep(pause);
        }
    }

    /// A whole `GET` of an object of `length` bytes.
    pub fn get(&mut self, target: &str, pattern: Pattern, length: u64) {
        self.ask(target, "");
        let head = self.head();
        assert_eq!((head.status, head.length), (200, length), "GET {target}");
        self.body(pattern, 0, length, 64 * 1024, Duration::ZERO);
    }

    /// Reads up to the end, which `close_notify` must have announced. Returns what came before.
    pub fn read_to_close(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.stream()
            .read_to_end(&mut rest)
            .expect("read up to close_notify");
        rest
    }

    /// The error that ends the connection.
    pub fn error(&mut self) -> io::Error {
        let mut buf = [0; 4096];
        loop {
            match self.read(&mut buf) {
                Ok(0) => return io::Error::other("close_notify"),
                Ok(_) => {}
                Err(e) => return e,
            }
        }
    }

    /// Sends `close_notify`.
    pub fn close(&mut self) {
        self.tls.send_close_notify();
        self.tls
            .complete_io(&mut self.tcp)
            .expect("send close_notify");
    }

    /// Resets the connection.
    pub fn abort(self) {
        rustix::net::sockopt::set_socket_linger(&self.tcp, Some(Duration::ZERO))
            .expect("set SO_LINGER");
    }
}

pub fn request(target: &str, fields: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n").into_bytes()
}
