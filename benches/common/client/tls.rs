//! The client's end of TLS 1.3 (RFC 8446) that leaves most of what it receives encrypted.
//!
//! rustls shakes hands and then gives up the keys. A record's header tells how much plaintext
//! the record holds (§5.2), and AES-GCM encrypts in counter mode (NIST SP 800-38D, §6.5): any
//! part of a record can be decrypted by itself, and all others are discarded in the kernel. A
//! look, at the start and at the end of a race, decrypts whole records and checks their tags. A
//! tag depends on the number of records before, so the last look also shows that no record
//! was miscounted.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
};

use aws_lc_rs::{
    aead::{self, Aad, LessSafeKey, Nonce, UnboundKey},
    cipher::{self, DecryptingKey, DecryptionContext, UnboundCipherKey},
};
use rustix::net::{send, RecvFlags, SendFlags};
use rustls::{
    crypto::aws_lc_rs::{
        cipher_suite::TLS13_AES_256_GCM_SHA384, default_provider, kx_group::X25519,
    },
    crypto::CryptoProvider,
    pki_types::{pem::PemObject, CertificateDer},
    version::TLS13,
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore,
};
use test_support::{SelfSigned, PATIENCE};

use super::{receive_now, Sink};

/// Content types (RFC 8446 §B.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// The only handshake message that servers send here of their own accord (§B.3).
const NEW_SESSION_TICKET: u8 = 4;

/// The bytes of a record's header, and of what follows the plaintext: its type and the tag.
const HEADER: usize = 5;
const TRAILER: usize = 1 + 16;

/// The most plaintext that a record holds, and the most that encryption adds.
const MAX_PLAINTEXT: usize = 16 * 1024;
const MAX_EXPANSION: usize = 256;

/// The bytes of small responses, or of a large one's head, that one call reads.
const AHEAD: usize = 16 * 1024;

/// Room for a whole record and for the beginning of the next.
const BUFFER: usize = HEADER + MAX_PLAINTEXT + MAX_EXPANSION + AHEAD;

const AES_BLOCK: usize = 16;

/// A connection after its handshake.
pub struct Records {
    /// The server's, for messages.
    pub name: &'static str,
    pub socket: OwnedFd,
    write: Keys,
    read: Keys,
    /// Bytes read from the socket. Those from `start` to `end` are not consumed yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The least that a call reads.
    ahead: usize,
    /// The bytes of the present record that are still to come, and those of its plaintext
    /// that are consumed.
    left: usize,
    at: usize,
    /// The plaintext of the present record, where it was opened as a whole.
    opened: Vec<u8>,
    /// The part of the present record that was decrypted last.
    front: Vec<u8>,
    /// True if the socket had no more bytes, and nobody has been told yet.
    drained: bool,
    /// The bodies seen since the look began.
    seen: Option<Vec<u8>>,
    sealed: Vec<u8>,
}

/// The keys of a direction.
struct Keys {
    whole: LessSafeKey,
    part: DecryptingKey,
    iv: [u8; aead::NONCE_LEN],
    /// The number of records so far.
    sequence: u64,
}

/// A client that trusts this one certificate, and offers one suite and one group to all
/// servers: those that they all prefer.
pub fn client_config(made: &SelfSigned, protocol: &[u8]) -> ClientConfig {
    let certificate =
        CertificateDer::from_pem_file(&made.certificate).expect("read the certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("trust the certificate");
    let provider = CryptoProvider {
        cipher_suites: vec![TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![X25519],
        ..default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .expect("a suite of TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    config.enable_secret_extraction = true;
    config
}

// === impl Records ===

impl Records {
    /// Connects and shakes hands. Responses of at most [`AHEAD`] bytes are read rather than
    /// discarded, which saves calls.
    pub fn connect(
        name: &'static str,
        addr: SocketAddr,
        config: &Arc<ClientConfig>,
        body_len: u64,
    ) -> Self {
        let mut tcp = TcpStream::connect(addr).unwrap_or_else(|e| panic!("connect to {addr}: {e}"));
        tcp.set_nodelay(true).expect("set TCP_NODELAY");
        tcp.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        let localhost = "localhost".try_into().expect("a server's name");
        let mut tls = ClientConnection::new(config.clone(), localhost).expect("begin TLS");
        shake_hands(&mut tls, &mut tcp).unwrap_or_else(|e| panic!("shake hands with {name}: {e}"));
        assert_eq!(
            tls.alpn_protocol(),
            config.alpn_protocols.first().map(Vec::as_slice),
            "{name} speaks another protocol"
        );
        let secrets = tls.dangerous_extract_secrets().expect("take the keys");
        Self {
            name,
            socket: tcp.into(),
            write: Keys::new(secrets.tx),
            read: Keys::new(secrets.rx),
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            ahead: if body_len <= AHEAD as u64 { AHEAD } else { 512 },
            left: 0,
            at: 0,
            opened: Vec::new(),
            front: Vec::new(),
            drained: false,
            // Tickets come before the first response, and a look takes them.
            seen: Some(Vec::new()),
            sealed: Vec::new(),
        }
    }

    /// Sends this.
    pub fn send(&mut self, plaintext: &[u8]) {
        self.sealed.clear();
        for piece in plaintext.chunks(MAX_PLAINTEXT) {
            self.write.seal(piece, &mut self.sealed);
        }
        let sent = send(&self.socket, &self.sealed, SendFlags::NOSIGNAL);
        // Requests are short, and the socket's buffer is empty but for some of them.
        assert_eq!(sent, Ok(self.sealed.len()), "send to {}", self.name);
    }

    /// Has the next calls ask the socket again.
    pub fn wake(&mut self) {
        self.drained = false;
    }

    /// From the next record on, opens all and keeps what is skipped.
    pub fn begin_look(&mut self) {
        self.seen = Some(Vec::new());
    }

    /// Ends a look. Returns what was skipped since it began.
    pub fn end_look(&mut self) -> Vec<u8> {
        self.wake();
        self.seen.take().unwrap_or_default()
    }

    /// The next bytes of the present record, at most so many. They stay, until
    /// [`Self::pass`]. None: nothing has arrived.
    pub fn front(&mut self, most: usize) -> Option<&[u8]> {
        if !self.begin() {
            return None;
        }
        if !self.opened.is_empty() {
            let rest = &self.opened[self.at..];
            return Some(&rest[..most.min(rest.len())]);
        }
        if !self.hold(1) {
            return None;
        }
        let n = most.min(self.plaintext_left()).min(self.held());
        let ciphertext = &self.buffer[self.start..][..n];
        let number = self.read.sequence - 1;
        Some(
            self.read
                .decrypt(number, self.at, ciphertext, &mut self.front),
        )
    }

    /// Consumes bytes that [`Self::front`] has shown.
    pub fn pass(&mut self, n: usize) {
        self.at += n;
        if self.opened.is_empty() {
            self.start += n;
            self.left -= n;
        } else if self.at == self.opened.len() {
            self.opened.clear();
        }
    }

    /// Consumes bytes of a body that are in the present record, at most so many. Returns how
    /// many they were; None: nothing has arrived.
    pub(super) fn skip(&mut self, most: u64, sink: &mut Sink) -> Option<u64> {
        if !self.begin() {
            return None;
        }
        let plaintext = self.plaintext_left();
        let most = usize::try_from(most).map_or(plaintext, |most| most.min(plaintext));
        if !self.opened.is_empty() {
            if let Some(seen) = &mut self.seen {
                seen.extend_from_slice(&self.opened[self.at..][..most]);
            }
            self.pass(most);
            return Some(most as u64);
        }
        let whole = most == plaintext;
        let thrown = self.throw(if whole { self.left } else { most }, sink);
        let of_plaintext = thrown.min(plaintext);
        self.at += of_plaintext;
        (of_plaintext > 0).then_some(of_plaintext as u64)
    }

    /// Panics unless the present record has been consumed.
    pub fn expect_end(&self) {
        assert_eq!(self.plaintext_left(), 0, "{} sent more", self.name);
    }

    /// Goes to the next record that holds application data, where the present one has been
    /// consumed. False: it has not arrived.
    fn begin(&mut self) -> bool {
        while self.plaintext_left() == 0 {
            // The rest of a trailer.
            if !self.hold(self.left) {
                return false;
            }
            self.start += self.left;
            self.left = 0;
            if !self.hold(HEADER) {
                return false;
            }
            let header: [u8; HEADER] = self.buffer[self.start..][..HEADER]
                .try_into()
                .expect("a header");
            let [kind, _, _, high, low] = header;
            let len = usize::from(u16::from_be_bytes([high, low]));
            assert_eq!(kind, APPLICATION_DATA, "{}: a strange record", self.name);
            assert!(
                (TRAILER..=MAX_PLAINTEXT + MAX_EXPANSION).contains(&len),
                "{}: a record of {len} bytes",
                self.name
            );
            if self.seen.is_some() && !self.hold(HEADER + len) {
                return false;
            }
            self.start += HEADER;
            self.at = 0;
            self.read.sequence += 1;
            if self.seen.is_some() {
                self.open(header, len);
            } else {
                self.left = len;
            }
        }
        true
    }

    /// Decrypts a whole record that is in the buffer.
    fn open(&mut self, header: [u8; HEADER], len: usize) {
        let name = self.name;
        let record = &mut self.buffer[self.start..][..len];
        self.start += len;
        let plaintext = self.read.open(header, record);
        let plaintext = plaintext.unwrap_or_else(|| panic!("{name}: a record that is not its own"));
        let content = plaintext.iter().rposition(|byte| *byte != 0);
        let (content, kind) = content
            .map(|at| (&plaintext[..at], plaintext[at]))
            .unwrap_or_else(|| panic!("{name}: a record without a type"));
        match kind {
            APPLICATION_DATA => self.opened.extend_from_slice(content),
            HANDSHAKE if content.first() == Some(&NEW_SESSION_TICKET) => {}
            ALERT => panic!("{name} sent an alert: {content:?}"),
            _ => panic!("{name} sent a message of type {kind}: {content:?}"),
        }
    }

    fn plaintext_left(&self) -> usize {
        if self.opened.is_empty() {
            self.left.saturating_sub(TRAILER)
        } else {
            self.opened.len() - self.at
        }
    }

    fn held(&self) -> usize {
        self.end - self.start
    }

    /// True if the buffer holds so many bytes.
    fn hold(&mut self, wanted: usize) -> bool {
        while self.held() < wanted {
            if std::mem::take(&mut self.drained) {
                return false;
            }
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            let ask = self.ahead.max(wanted - self.held());
            if self.end + ask > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.held());
            }
            let free = &mut self.buffer[self.end..][..ask];
            let received = receive_now(self.name, &self.socket, free, RecvFlags::empty());
            let n = received.unwrap_or(0);
            self.end += n;
            // epoll(7), "Questions and answers", 9.
            self.drained = n < ask;
        }
        true
    }

    /// Drops bytes of the present record, at most so many, with at most one call. Returns how
    /// many they were.
    fn throw(&mut self, most: usize, sink: &mut Sink) -> usize {
        let mut thrown = most.min(self.held());
        self.start += thrown;
        if thrown == 0 && std::mem::take(&mut self.drained) {
            return 0;
        }
        if thrown < most && !self.drained {
            let asked = (most - thrown).min(sink.buffer.len());
            let free = &mut sink.buffer[..asked];
            let n = receive_now(self.name, &self.socket, free, sink.flags).unwrap_or(0);
            self.drained = n < asked;
            thrown += n;
        }
        self.left -= thrown;
        thrown
    }
}

/// Until the server's Finished has come and the client's has gone. What comes after it stays in
/// the socket.
fn shake_hands(tls: &mut ClientConnection, tcp: &mut TcpStream) -> std::io::Result<()> {
    while tls.is_handshaking() {
        while tls.wants_write() {
            tls.write_tls(tcp)?;
        }
        if !tls.is_handshaking() {
            break;
        }
        let mut record = vec![0; HEADER];
        tcp.read_exact(&mut record)?;
        let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(HEADER + len, 0);
        tcp.read_exact(&mut record[HEADER..])?;
        let mut unread = record.as_slice();
        while !unread.is_empty() {
            tls.read_tls(&mut unread)?;
        }
        tls.process_new_packets().map_err(std::io::Error::other)?;
    }
    while tls.wants_write() {
        tls.write_tls(tcp)?;
    }
    tcp.flush()
}

// === impl Keys ===

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let (key, iv, whole, part) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                (key, iv, &aead::AES_128_GCM, &cipher::AES_128)
            }
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                (key, iv, &aead::AES_256_GCM, &cipher::AES_256)
            }
            _ => panic!("the suite has no counter mode"),
        };
        let whole = UnboundKey::new(whole, key.as_ref()).expect("a key");
        let part = UnboundCipherKey::new(part, key.as_ref()).expect("a key");
        Self {
            whole: LessSafeKey::new(whole),
            part: DecryptingKey::ctr(part).expect("AES in counter mode"),
            iv: iv.as_ref().try_into().expect("a nonce of 12 bytes"),
            sequence,
        }
    }

    /// Of the record of this number (RFC 8446 §5.3).
    fn nonce(&self, number: u64) -> [u8; aead::NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= of_number;
        }
        nonce
    }

    /// Appends a record.
    fn seal(&mut self, plaintext: &[u8], sealed: &mut Vec<u8>) {
        let header = record_header(plaintext.len() + TRAILER);
        sealed.extend_from_slice(&header);
        let start = sealed.len();
        sealed.extend_from_slice(plaintext);
        sealed.push(APPLICATION_DATA);
        let nonce = Nonce::assume_unique_for_key(self.nonce(self.sequence));
        let tag =
            self.whole
                .seal_in_place_separate_tag(nonce, Aad::from(header), &mut sealed[start..]);
        sealed.extend_from_slice(tag.expect("encrypt a record").as_ref());
        self.sequence += 1;
    }

    /// The plaintext of the record that was begun last, with its type. None: it is not
    /// that record.
    fn open<'r>(&self, header: [u8; HEADER], record: &'r mut [u8]) -> Option<&'r [u8]> {
        let nonce = Nonce::assume_unique_for_key(self.nonce(self.sequence - 1));
        let opened = self.whole.open_in_place(nonce, Aad::from(header), record);
        opened.ok().map(|plaintext| &*plaintext)
    }

    /// A part of a record that begins at a byte of it. Its tag is not checked.
    fn decrypt<'p>(
        &self,
        number: u64,
        at: usize,
        ciphertext: &[u8],
        plaintext: &'p mut Vec<u8>,
    ) -> &'p [u8] {
        // The first block is that of the tag.
        let block = 2 + (at / AES_BLOCK) as u32;
        let before = at % AES_BLOCK;
        let mut counter = [0; AES_BLOCK];
        counter[..aead::NONCE_LEN].copy_from_slice(&self.nonce(number));
        counter[aead::NONCE_LEN..].copy_from_slice(&block.to_be_bytes());
        plaintext.clear();
        plaintext.resize(before, 0);
        plaintext.extend_from_slice(ciphertext);
        let context = DecryptionContext::Iv128((&counter).into());
        self.part
            .decrypt(plaintext, context)
            .expect("decrypt a part of a record");
        &plaintext[before..]
    }
}

fn record_header(len: usize) -> [u8; HEADER] {
    let [high, low] = u16::try_from(len)
        .expect("the length of a record")
        .to_be_bytes();
    [APPLICATION_DATA, 3, 3, high, low]
}
