//! The gate that a new connection passes before anything else reads from it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use log::{debug, warn};
use pingora_core::listeners::{HandshakeErrorHandler, PreTlsProcess};
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::{GetSocketDigest, SocketDigest};
use pingora_core::{Error, ErrorType, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::connections::Connections;
use super::proxy_protocol::{self, Broken};
use super::Limit;
use crate::config;
use crate::proxy::front::Networks;
use crate::proxy::settings::SharedSettings;

/// The type of the error that ends a refused connection. It has been counted.
const REFUSED: ErrorType = ErrorType::new("ConnectionRefused");

/// The answer to a client that has too many connections. Its request has not been read, and may be a
/// HEAD, so it has no body.
const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
                        Retry-After: 1\r\n\
                        Content-Length: 0\r\n\
                        Connection: close\r\n\r\n";

/// The time for a PROXY protocol header. It is sent together with what the client sends first, so the
/// balancer has it when it connects.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for a client to read the answer. If the socket were closed with its request unread, the
/// answer could be lost.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// The most bytes of a request that are read meanwhile.
const LINGER_BYTES: usize = 64 * 1024;

/// The most connections that wait for their clients to read the answer. Others are closed at once.
const MAX_LINGERING: usize = 64;

/// The gate of all listeners for clients.
pub(in crate::proxy) struct Gate {
    connections: Arc<Connections>,
    /// The most connections in all.
    max: usize,
    /// These have the limit of an address, and name the proxies in front, each of which has the
    /// connections of many clients.
    settings: Arc<SharedSettings>,
    /// Load balancers, which begin each connection with a PROXY protocol header.
    balancers: Networks,
    lingering: AtomicUsize,
}

/// The gate of one listener.
pub(in crate::proxy) struct ListenerGate {
    gate: Arc<Gate>,
    /// The clients speak HTTP without TLS, so that a refused one gets an answer.
    answers: bool,
}

// === impl Gate ===

impl Gate {
    /// A gate for at most `max` connections in all.
    pub(in crate::proxy) fn new(
        max: usize,
        server: &config::Server,
        settings: Arc<SharedSettings>,
    ) -> Arc<Gate> {
        Arc::new(Gate {
            connections: Arc::default(),
            max,
            settings,
            balancers: Networks::of(&server.proxy_protocol),
            lingering: AtomicUsize::new(0),
        })
    }

    /// The gate of a listener without TLS.
    pub(in crate::proxy) fn of_http(self: &Arc<Self>) -> Arc<ListenerGate> {
        Arc::new(ListenerGate {
            gate: self.clone(),
            answers: true,
        })
    }

    /// The gate of a listener with TLS.
    pub(in crate::proxy) fn of_https(self: &Arc<Self>) -> Arc<ListenerGate> {
        Arc::new(ListenerGate {
            gate: self.clone(),
            answers: false,
        })
    }

    /// The most connections of a client. `None`: it is trusted, and its connections are not counted. Those
    /// of a client without a limit are: a reload may set one.
    fn most_of(&self, client: IpAddr) -> Option<usize> {
        let settings = self.settings.load();
        let per_ip = settings.configured_limits.per_ip(self.max);
        // At the limit of all, an idle connection makes room for a new one, but ends only after it.
        let is_limited = per_ip > 0 && per_ip < self.max;
        let is_trusted = settings.front.trusts(&client);
        (!is_trusted).then_some(if is_limited { per_ip } else { usize::MAX })
    }

    /// Take the PROXY protocol header of a load balancer off a connection, whose client is from then
    /// on the one that the header names. Returns that; `None`: it names none.
    async fn read_header(&self, balancer: IpAddr, stream: &mut Stream) -> Result<Option<IpAddr>> {
        let read = timeout(HEADER_TIMEOUT, proxy_protocol::read(stream)).await;
        let why = match read {
            Ok(Ok(client)) => {
                if let Some(client) = client {
                    set_peer(stream, client);
                }
                return Ok(client.map(|client| client.ip().to_canonical()));
            }
            // A health check that only connects.
            Ok(Err(Broken::Left)) => return Error::e_explain(REFUSED, "no header and no request"),
            Ok(Err(broken)) => broken.to_string(),
            Err(_) => format!("it has not come within {HEADER_TIMEOUT:?}"),
        };
        Limit::ProxyHeader.count();
        warn!(
            "server.proxy_protocol: no usable header from {balancer}: {why}; let it send one, or \
             take its address off the list"
        );
        Error::e_explain(REFUSED, "no PROXY protocol header")
    }

    /// Tell a client that it has too many connections.
    async fn answer(&self, stream: &mut Stream) -> std::io::Result<()> {
        stream.write_all(ANSWER).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(stream).await?;
        let lingering = Lingering::new(&self.lingering);
        if lingering.others >= MAX_LINGERING {
            return Ok(());
        }
        let mut unread = [0; 1024];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut unread).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        Ok(())
    }
}

/// Counts a connection whose client is reading the answer.
struct Lingering<'a> {
    count: &'a AtomicUsize,
    /// The number of the others.
    others: usize,
}

// === impl Lingering ===

impl<'a> Lingering<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Lingering {
            count,
            others: count.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Drop for Lingering<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl ListenerGate ===

#[async_trait]
impl PreTlsProcess for ListenerGate {
    async fn process(&self, stream: &mut Stream) -> Result<()> {
        let Some(mut client) = address_of(stream) else {
            return Ok(());
        };
        if self.gate.balancers.contains(&client) {
            match self.gate.read_header(client, stream).await? {
                Some(behind) => client = behind,
                // It is the balancer's own connection.
                None => return Ok(()),
            }
        }
        let Some(max) = self.gate.most_of(client) else {
            return Ok(());
        };
        if let Some(counted) = self.gate.connections.admit(client, max) {
            stream.tracer = Some(counted.into_tracer());
            return Ok(());
        }
        Limit::PerIp.count();
        if self.answers {
            // A client that leaves needs no answer.
            let _ = timeout(LINGER_TIMEOUT, self.gate.answer(stream)).await;
        }
        Error::e_explain(REFUSED, format!("{client} has too many connections"))
    }
}

/// Put the address of a client in the place of that of its load balancer.
fn set_peer(stream: &mut Stream, client: SocketAddr) {
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    // A new digest has none yet.
    let _ = digest.peer_addr.set(Some(PeerAddress::Inet(client)));
    stream.set_socket_digest(digest);
}

/// The address of the client of a connection.
fn address_of(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip().to_canonical())
}

/// A handler of connections that end before the application gets them. Those that the gate has
/// refused are counted; `other` gets all others.
pub(in crate::proxy) fn unless_refused(
    other: fn(Option<&PeerAddress>, &Error),
) -> HandshakeErrorHandler {
    Arc::new(move |peer, error| match *error.etype() == REFUSED {
        true => debug!("refused: {error}"),
        false => other(peer, error),
    })
}
