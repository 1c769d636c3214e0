//! Handshakes of TLS 1.3: a new connection for each, which is closed when it is done.

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
        Timespec,
    },
    io::Errno,
};
use rustls::{
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    },
    pki_types::{pem::PemObject, CertificateDer, ServerName, UnixTime},
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind,
    NamedGroup, SignatureScheme,
};
use test_support::{SelfSigned, PATIENCE};

use crate::{
    client::tls::client_config,
    options::Options,
    peers::{Peer, PeerKind},
    process::CpuTime,
    race::in_turns,
};

/// The handshakes that are under way at once.
const UNDER_WAY: usize = 16;

/// A turn is so many times as long as one of hits: there are fewer handshakes a second.
const LONGER: u32 = 2;

/// The number of tickets that are kept. Each is used once.
const TICKETS: usize = 4 * UNDER_WAY;

/// All peers' handshakes of one kind.
pub struct Handshakes {
    kind: HandshakeKind,
    pub entries: Vec<Entry>,
}

/// The results of a peer in all of its turns.
pub struct Entry {
    pub kind: PeerKind,
    /// Handshakes a second, by round.
    pub rates: Vec<f64>,
    /// CPU seconds of the server a handshake, by round.
    pub cpu_each: Vec<f64>,
    pub elapsed: Duration,
    pub cpu: CpuTime,
}

/// One thread's handshakes with one server.
struct Client {
    name: &'static str,
    addr: SocketAddr,
    config: Arc<ClientConfig>,
    kind: HandshakeKind,
    slots: Vec<Option<Connection>>,
}

struct Connection {
    tcp: TcpStream,
    tls: ClientConnection,
}

/// Tickets of one server, the newest of which is used first.
#[derive(Debug)]
struct Tickets {
    tickets: Mutex<VecDeque<Tls13ClientSessionValue>>,
    /// False: none is used.
    resumes: bool,
}

/// Trusts one certificate and leaves the server's signature unverified, which costs a client
/// more than signing costs a server: it would be the client that is measured.
#[derive(Debug)]
struct Pinned(CertificateDer<'static>);

// === impl Handshakes ===

impl Handshakes {
    pub fn measure(
        peers: &[&Peer],
        kind: HandshakeKind,
        certificate: &SelfSigned,
        options: &Options,
    ) -> Self {
        let connect = |peer: &&Peer| Client::new(peer, kind, certificate);
        let mut clients: Vec<Client> = peers.iter().map(connect).collect();
        let mut entries: Vec<Entry> = peers.iter().map(|peer| Entry::new(peer.kind)).collect();
        let duration = options.turn * LONGER;
        in_turns(peers.len(), options.rounds, |index, round| {
            let server = &peers[index].server;
            let before = server.cpu_times();
            let start = Instant::now();
            let (in_time, in_all) = clients[index].turn(duration);
            let elapsed = start.elapsed();
            let cpu = server.cpu_times().since(&before);
            if round.is_some() {
                let entry = &mut entries[index];
                entry.rates.push(in_time as f64 / duration.as_secs_f64());
                entry.cpu_each.push(cpu.seconds() / in_all as f64);
                entry.elapsed += elapsed;
                entry.cpu += cpu;
            }
        });
        Self { kind, entries }
    }

    pub fn label(&self) -> &'static str {
        match self.kind {
            HandshakeKind::Resumed => "Resumed handshakes",
            _ => "Full handshakes",
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(kind: PeerKind) -> Self {
        Self {
            kind,
            rates: Vec::new(),
            cpu_each: Vec::new(),
            elapsed: Duration::ZERO,
            cpu: CpuTime::default(),
        }
    }
}

// === impl Client ===

impl Client {
    fn new(peer: &Peer, kind: HandshakeKind, certificate: &SelfSigned) -> Self {
        let pinned = CertificateDer::from_pem_file(&certificate.certificate);
        let pinned = Pinned(pinned.expect("read the certificate"));
        let mut config = client_config(certificate, b"http/1.1");
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(pinned));
        config.resumption = Resumption::store(Arc::new(Tickets {
            tickets: Mutex::new(VecDeque::new()),
            resumes: kind == HandshakeKind::Resumed,
        }));
        let mut client = Self {
            name: peer.kind.key(),
            addr: peer.https(),
            config: Arc::new(config),
            kind: HandshakeKind::Full,
            slots: (0..UNDER_WAY).map(|_| None).collect(),
        };
        // They bring the first tickets.
        client.turn(Duration::ZERO);
        client.kind = kind;
        client
    }

    /// Shakes hands for so long, then ends what is under way. Returns the numbers of handshakes
    /// in that time and in all.
    fn turn(&mut self, duration: Duration) -> (u64, u64) {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("make an epoll instance");
        let start = Instant::now();
        let (mut in_time, mut in_all) = (0, 0);
        for index in 0..UNDER_WAY {
            self.begin(index, &epoll);
        }
        let mut last = start;
        let mut events: Vec<Event> = Vec::with_capacity(UNDER_WAY);
        while self.slots.iter().any(Option::is_some) {
            events.clear();
            let now = Some(&Timespec::default());
            match epoll::wait(&epoll, spare_capacity(&mut events), now) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => panic!("wait for events: {e}"),
            }
            if events.is_empty() {
                assert!(
                    last.elapsed() < PATIENCE,
                    "{}: nothing came in {PATIENCE:?}",
                    self.name
                );
                continue;
            }
            last = Instant::now();
            for event in &events {
                let index = event.data.u64() as usize;
                let Some(connection) = &mut self.slots[index] else {
                    continue;
                };
                if !connection.proceed(self.name) {
                    continue;
                }
                assert_eq!(
                    connection.tls.handshake_kind(),
                    Some(self.kind),
                    "{}",
                    self.name
                );
                in_all += 1;
                self.slots[index] = None;
                if start.elapsed() < duration {
                    in_time += 1;
                    self.begin(index, &epoll);
                }
            }
        }
        (in_time, in_all)
    }

    fn begin(&mut self, index: usize, epoll: &impl std::os::fd::AsFd) {
        let tcp = TcpStream::connect(self.addr);
        let tcp = tcp.unwrap_or_else(|e| panic!("connect to {}: {e}", self.name));
        tcp.set_nodelay(true).expect("set TCP_NODELAY");
        tcp.set_nonblocking(true).expect("set O_NONBLOCK");
        let data = EventData::new_u64(index as u64);
        epoll::add(epoll, &tcp, data, EventFlags::IN).expect("watch a connection");
        let localhost = "localhost".try_into().expect("a server's name");
        let tls = ClientConnection::new(self.config.clone(), localhost).expect("begin TLS");
        let mut connection = Connection { tcp, tls };
        connection.write(self.name);
        self.slots[index] = Some(connection);
    }
}

// === impl Connection ===

impl Connection {
    /// Takes what has come. True if the server has a Finished from the client, which
    /// a ticket shows.
    fn proceed(&mut self, name: &str) -> bool {
        loop {
            match self.tls.read_tls(&mut self.tcp) {
                Ok(0) => panic!("{name} closed a connection"),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => panic!("receive from {name}: {e}"),
            }
            let state = self.tls.process_new_packets();
            state.unwrap_or_else(|e| panic!("shake hands with {name}: {e}"));
            self.write(name);
            if self.tls.tls13_tickets_received() > 0 {
                self.tls.send_close_notify();
                self.write(name);
                return true;
            }
        }
        false
    }

    fn write(&mut self, name: &str) {
        while self.tls.wants_write() {
            let written = self.tls.write_tls(&mut self.tcp);
            written.unwrap_or_else(|e| panic!("send to {name}: {e}"));
        }
    }
}

// === impl Tickets ===

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.tickets.lock().expect("the tickets");
        tickets.truncate(TICKETS - 1);
        tickets.push_front(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut tickets = self.tickets.lock().expect("the tickets");
        tickets.pop_front().filter(|_| self.resumes)
    }
}

// === impl Pinned ===

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
