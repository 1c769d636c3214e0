//! Listening addresses.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pingora_core::listeners::TcpSocketOptions;
use socket2::{Domain, Protocol, Socket, Type};

/// The reason a server was not set up: one line that names the remedy.
#[derive(Debug)]
pub struct StartError(pub(super) String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(e: io::Error) -> Self {
        StartError(e.to_string())
    }
}

/// An address to listen on, checked before the server listens.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    /// Keeps a port that the kernel chose from being given to another process.
    reservation: Option<Socket>,
}

impl Listener {
    /// Check that `address` is free, and let the kernel choose the port if it is 0.
    ///
    /// # Errors
    /// The address is not free. `key` names the setting to change.
    pub fn reserve(address: SocketAddr, key: &str) -> Result<Listener, StartError> {
        let bind = || {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            if address.port() == 0 {
                // Pingora binds the same port again while this socket holds it. This socket never
                // listens, so it takes no connections.
                socket.set_reuse_port(true)?;
            } else {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&address.into())?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            Ok((socket, bound))
        };
        let (socket, bound) = bind().map_err(|e: io::Error| {
            StartError(format!(
                "{key}: cannot listen on {address}: {e}; stop what listens there, or choose another address"
            ))
        })?;
        Ok(Listener {
            address: bound,
            reservation: (address.port() == 0).then_some(socket),
        })
    }

    /// An address at which another process listens until it hands over its socket.
    ///
    /// # Errors
    /// The port is 0. `key` names the setting to change.
    pub fn inherit(address: SocketAddr, key: &str) -> Result<Listener, StartError> {
        if address.port() == 0 {
            return Err(StartError(format!(
                "{key}: a listener at port 0 cannot be taken over; write the port that the running process listens at"
            )));
        }
        Ok(Listener {
            address,
            reservation: None,
        })
    }

    /// The address, with the port that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Wait until connections are accepted. Blocks.
    pub fn wait_until_served(&self) {
        wait_for(self.address);
    }

    /// The options with which Pingora opens the address.
    pub fn options(&self) -> TcpSocketOptions {
        let mut options = TcpSocketOptions::default();
        options.so_reuseport = self.reservation.is_some().then_some(true);
        options
    }
}

/// Wait until an address accepts a connection, because Pingora does not report that it listens.
pub(super) fn wait_for(mut address: SocketAddr) {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
