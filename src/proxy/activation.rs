//! Socket activation: the service manager listens before the proxy starts, and while it restarts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;

use listenfd::ListenFd;
use pingora_core::server::Fds;

use super::listener::StartError;

/// The sockets at which the service manager listens for this process (sd_listen_fds(3)).
#[derive(Default)]
pub(super) struct Activated(Vec<(SocketAddr, TcpListener)>);

impl Activated {
    /// Take the sockets over. Later calls find none.
    ///
    /// # Errors
    /// One of them is not a TCP listener.
    pub(super) fn from_env() -> Result<Activated, StartError> {
        let mut all = ListenFd::from_env();
        let count = all.len();
        let take = |index| {
            let listener = all.take_tcp_listener(index)?;
            let listener = listener.ok_or(io::ErrorKind::NotFound)?;
            // Those of systemd wait.
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let listeners: io::Result<_> = (0..count).map(take).collect();
        listeners.map(Activated).map_err(|e| {
            StartError(format!(
                "LISTEN_FDS: a socket of the service manager cannot be used: {e}; write ListenStream=IP:PORT \
                 into its unit"
            ))
        })
    }

    /// True if the service manager listens at an address.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|(of, _)| *of == address)
    }

    /// The sockets, by their addresses as Pingora names them. `addresses`: those of all listeners.
    ///
    /// # Errors
    /// There is a socket at another address, where nobody would accept connections.
    pub(super) fn into_fds(self, addresses: &[SocketAddr]) -> Result<Option<Fds>, StartError> {
        if let Some((lost, _)) = self.0.iter().find(|(of, _)| !addresses.contains(of)) {
            return Err(StartError(format!(
                "LISTEN_FDS: the service manager listens at {lost}, which is the address of no listener; write \
                 the same address into its unit and the configuration"
            )));
        }
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut fds = Fds::new();
        for (address, listener) in self.0 {
            fds.add(address.to_string(), listener.into_raw_fd());
        }
        Ok(Some(fds))
    }
}
