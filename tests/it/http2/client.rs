//! An HTTP/2 client that sends the frames it is told to, well-behaved or not.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use test_support::{AnyCertificate, PATIENCE};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const PRIORITY: u8 = 0x2;
pub const RST_STREAM: u8 = 0x3;
pub const SETTINGS: u8 = 0x4;
pub const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;
pub const WINDOW_UPDATE: u8 = 0x8;
pub const CONTINUATION: u8 = 0x9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

pub const NO_ERROR: u32 = 0x0;
pub const PROTOCOL_ERROR: u32 = 0x1;
pub const REFUSED_STREAM: u32 = 0x7;
pub const CANCEL: u32 = 0x8;
pub const ENHANCE_YOUR_CALM: u32 = 0xb;

/// Settings (RFC 9113 §6.5.2).
pub const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const INITIAL_WINDOW_SIZE: u8 = 0x4;
pub const MAX_HEADER_LIST_SIZE: u16 = 0x6;

pub struct Client {
    tls: StreamOwned<ClientConnection, TcpStream>,
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A whole response.
#[derive(Debug)]
pub struct Response {
    /// The first byte of the header block: the status, if HPACK has a short name for it.
    pub status: u8,
    pub body: Vec<u8>,
    /// The code of the RST_STREAM that came after it, or instead of its end.
    pub reset: Option<u32>,
}

/// RFC 7541, appendix A
pub const STATUS_200: u8 = 0x88;
pub const STATUS_400: u8 = 0x8c;

impl Client {
    /// Opens a TLS connection, and sends nothing of HTTP/2 yet.
    pub fn connect(addr: SocketAddr) -> Self {
        let socket = TcpStream::connect(addr).expect("connect");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("set the read timeout");
        socket
            .set_write_timeout(Some(PATIENCE))
            .expect("set the write timeout");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(TLS.clone(), name).expect("a TLS client");
        let mut tls = StreamOwned::new(tls, socket);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).expect("the handshake");
        }
        assert_eq!(tls.conn.alpn_protocol(), Some(&b"h2"[..]));
        Self { tls }
    }

    /// Connects, and sends the preface, with windows for the streams and the connection.
    pub fn open(addr: SocketAddr, stream_window: u32, window: u32) -> Self {
        let mut client = Self::connect(addr);
        let mut bytes = PREFACE.to_vec();
        let mut settings = vec![0, INITIAL_WINDOW_SIZE];
        settings.extend(stream_window.to_be_bytes());
        bytes.extend(frame(SETTINGS, 0, 0, &settings));
        if window > 65_535 {
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(window - 65_535).to_be_bytes()));
        }
        client.send(&bytes).expect("send the preface");
        client
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.write_all(bytes)?;
        self.tls.flush()
    }

    /// The next frame, or an error if the connection has ended.
    pub fn receive(&mut self) -> io::Result<Frame> {
        let mut header = [0; 9];
        self.tls.read_exact(&mut header)?;
        let [l0, l1, l2, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        self.tls.read_exact(&mut payload)?;
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    /// The value of a setting in the server's first SETTINGS frame.
    pub fn setting(&mut self, identifier: u16) -> Option<u32> {
        loop {
            let frame = self.receive().expect("SETTINGS");
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                let mut settings = frame.payload.chunks_exact(6);
                return settings
                    .find(|setting| setting[..2] == identifier.to_be_bytes())
                    .map(|setting| code(&setting[2..]));
            }
        }
    }

    /// The response on a stream. Does not open any windows.
    pub fn response(&mut self, stream: u32) -> Response {
        let mut response = Response {
            status: 0,
            body: Vec::new(),
            reset: None,
        };
        loop {
            let frame = self.receive().expect("a response");
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                HEADERS => response.status = frame.payload[0],
                DATA => response.body.extend(frame.payload),
                RST_STREAM => {
                    response.reset = Some(code(&frame.payload));
                    return response;
                }
                _ => continue,
            }
            if frame.flags & END_STREAM != 0 {
                return response;
            }
        }
    }

    /// Reads until the connection ends, and returns the codes of the GOAWAY frames.
    pub fn goaways(&mut self) -> Vec<u32> {
        let mut codes = Vec::new();
        while let Ok(frame) = self.receive() {
            if frame.kind == GOAWAY {
                codes.push(code(&frame.payload[4..]));
            }
        }
        codes
    }
}

impl Frame {
    pub fn is(&self, kind: u8, stream: u32) -> bool {
        self.kind == kind && self.stream == stream
    }
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().expect("four bytes"))
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frame that resets a stream with `code`.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A request with a field that HTTP/2 does not have (RFC 9113 §8.2.2).
pub fn with_connection_field(stream: u32) -> Vec<u8> {
    let mut ask = get(stream, "/assets/object", END_HEADERS | END_STREAM);
    ask.extend([0x00, 10]);
    ask.extend(b"connection");
    ask.extend([5]);
    ask.extend(b"close");
    let len = ask.len() - 9;
    ask[..3].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
    ask
}

/// The frame that asks for `path`.
pub fn get(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    get_with(stream, path, flags, None)
}

/// Fields by their index in the static table (RFC 7541, appendix A).
pub const HOST: u8 = 38;
pub const RANGE: u8 = 50;

/// As [`get`], with a further field.
pub fn get_with(stream: u32, path: &str, flags: u8, field: Option<(u8, &str)>) -> Vec<u8> {
    // RFC 7541: indexed :method GET and :scheme https, literal :authority and :path
    let mut block = vec![0x82, 0x87, 0x01, 9];
    block.extend(b"localhost");
    block.extend([0x04, u8::try_from(path.len()).expect("a short path")]);
    block.extend(path.as_bytes());
    if let Some((name, value)) = field {
        // Literal without indexing.
        block.extend([
            0x0f,
            name - 0x0f,
            u8::try_from(value.len()).expect("a short value"),
        ]);
        block.extend(value.as_bytes());
    }
    frame(HEADERS, flags, stream, &block)
}

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate::default()))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
});
