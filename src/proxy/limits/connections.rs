//! The connections of each client address.

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use pingora_core::upstreams::peer::{Tracer, Tracing};

use crate::http::range_fill::network;

/// The open connections of each client address.
///
/// An address without a connection has no entry, so the limit of all connections bounds the table.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that counts as long as this lives.
#[derive(Debug)]
pub(super) struct Counted {
    connections: Arc<Connections>,
    network: IpAddr,
}

/// A place that a stream keeps until it is closed.
#[derive(Clone, Debug)]
struct Held {
    _counted: Arc<Counted>,
}

// === impl Connections ===

impl Connections {
    /// Count a connection of a client, which may have `max`. `None`: it has as many.
    pub(super) fn admit(self: &Arc<Self>, client: IpAddr, max: usize) -> Option<Counted> {
        let network = network(client);
        let mut open = self.open.lock();
        let count = open.entry(network).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted {
            connections: self.clone(),
            network,
        })
    }
}

// === impl Counted ===

impl Counted {
    /// This in the form that a stream keeps until it is closed.
    pub(super) fn into_tracer(self) -> Tracer {
        Tracer(Box::new(Held {
            _counted: Arc::new(self),
        }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        let Entry::Occupied(mut count) = open.entry(self.network) else {
            return;
        };
        match *count.get() {
            ..=1 => {
                count.remove();
            }
            _ => *count.get_mut() -= 1,
        }
    }
}

// Streams have no other place for what ends with them.
impl Tracing for Held {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {}

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_as_many_connections_as_it_may() {
        let connections = Arc::new(Connections::default());
        let one = address("192.0.2.1");
        let held = [(); 2].map(|()| connections.admit(one, 2).unwrap());
        assert!(connections.admit(one, 2).is_none());
        // IPv4 in IPv6 is IPv4.
        assert!(connections.admit(address("::ffff:192.0.2.1"), 2).is_none());
        assert!(connections.admit(address("192.0.2.2"), 2).is_some());
        // The limit may change meanwhile.
        assert!(connections.admit(one, 3).is_some());
        let [first, second] = held.map(Counted::into_tracer);
        let copy = first.clone();
        drop(first);
        assert!(connections.admit(one, 2).is_none(), "a copy of it lives");
        drop(copy);
        let third = connections.admit(one, 2).unwrap();
        drop((second, third));
        assert!(connections.open.lock().is_empty());
    }

    #[test]
    fn the_addresses_of_an_ipv6_network_count_together() {
        let connections = Arc::new(Connections::default());
        let _held = connections.admit(address("2001:db8:0:1::1"), 1).unwrap();
        assert!(connections
            .admit(address("2001:db8:0:1:ffff::"), 1)
            .is_none());
        assert!(connections.admit(address("2001:db8:0:2::1"), 1).is_some());
    }
}
