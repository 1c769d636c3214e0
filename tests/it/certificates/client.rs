//! A client that shows what a handshake has agreed on.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};

use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, SignatureScheme,
    StreamOwned, SupportedProtocolVersion,
};
use test_support::{AnyCertificate, Authority, Issued, PATIENCE};

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(ring::default_provider()));

/// A client, with its sessions.
pub struct Client(ClientConfig);

/// Choices of a client. Without any, it verifies nothing.
#[derive(Default)]
pub struct Choices<'a> {
    /// The authority that must have issued the certificate for the name.
    pub trusts: Option<&'a Authority>,
    /// The certificate of the client itself.
    pub identity: Option<&'a Issued>,
    pub only: Option<&'static SupportedProtocolVersion>,
    /// The signatures that the server may make; empty: all.
    pub schemes: Vec<SignatureScheme>,
    pub alpn: &'a [&'a str],
}

/// A connection after its handshake.
pub struct Tls(StreamOwned<ClientConnection, TcpStream>);

// === impl Client ===

impl Client {
    pub fn new(choices: Choices<'_>) -> Client {
        let versions = match &choices.only {
            Some(only) => std::slice::from_ref(only),
            None => &[&TLS13, &TLS12],
        };
        let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = match choices.trusts {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                let der = CertificateDer::from(authority.der().to_vec());
                roots.add(der).expect("an authority");
                builder.with_root_certificates(roots)
            }
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate::signed_by(
                    choices.schemes,
                ))),
        };
        let mut config = match choices.identity {
            Some(issued) => {
                let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes());
                let chain = chain.collect::<Result<_, _>>().expect("a chain");
                let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("a key");
                builder
                    .with_client_auth_cert(chain, key)
                    .expect("an identity")
            }
            None => builder.with_no_client_auth(),
        };
        let alpn = choices.alpn.iter().map(|name| name.as_bytes().to_vec());
        config.alpn_protocols = alpn.collect();
        Client(config)
    }

    /// A client that verifies nothing.
    pub fn any() -> Client {
        Client::new(Choices::default())
    }

    /// A client that sends no name.
    pub fn nameless() -> Client {
        let mut client = Client::any();
        client.0.enable_sni = false;
        client
    }

    /// The connection that is about to begin.
    pub fn session(&self, name: &str) -> ClientConnection {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        ClientConnection::new(Arc::new(self.0.clone()), name).expect("a session")
    }

    /// Connects. With TLS 1.3, the server may still refuse the client afterwards.
    pub fn connect(&self, addr: SocketAddr, name: &str) -> io::Result<Tls> {
        let socket = socket(addr);
        let mut tls = StreamOwned::new(self.session(name), socket);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Tls(tls))
    }

    /// The certificate that a server shows for a name, in DER.
    pub fn certificate(&self, addr: SocketAddr, name: &str) -> Vec<u8> {
        let tls = self.connect(addr, name).expect("a handshake");
        tls.certificate()
    }

    /// The status of `GET /assets/1` on a connection of its own.
    pub fn status(&self, addr: SocketAddr, name: &str) -> io::Result<u16> {
        let mut tls = self.connect(addr, name)?;
        Ok(tls.get("/assets/1")?.0)
    }
}

/// A connection before its handshake.
pub fn socket(addr: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(addr).expect("connect");
    socket
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
        .expect("set the timeouts");
    socket
}

// === impl Tls ===

impl Tls {
    pub fn certificate(&self) -> Vec<u8> {
        let chain = self.0.conn.peer_certificates().expect("a chain");
        chain[0].to_vec()
    }

    pub fn alpn(&self) -> Option<&str> {
        let alpn = self.0.conn.alpn_protocol()?;
        Some(std::str::from_utf8(alpn).expect("a protocol"))
    }

    pub fn version(&self) -> ProtocolVersion {
        self.0.conn.protocol_version().expect("a version")
    }

    pub fn is_resumed(&self) -> bool {
        self.0.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The status and the whole head of a response whose body is short.
    pub fn get(&mut self, path: &str) -> io::Result<(u16, String)> {
        write!(self.0, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        self.0.flush()?;
        let mut received = Vec::new();
        let end = loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            received.push(byte[0]);
            if received.ends_with(b"\r\n\r\n") {
                break received.len();
            }
        };
        let head = String::from_utf8(received[..end].to_vec()).expect("a head");
        let len = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.parse().expect("a length"))
        });
        self.0.read_exact(&mut vec![0; len.unwrap_or(0)])?;
        Ok((head[9..12].parse().expect("a status"), head))
    }
}
