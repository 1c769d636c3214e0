//! Proxies in front of this one, and what they state about a request.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::{IpNet, Ipv4Net};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::cache_key::requested_query;
use super::errors::REQUEST_ID;
use crate::config::{self, Config};
use crate::http::trace::RequestId;
use crate::s3::Signed;

/// The field in which each proxy appends the address that it was connected to.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The most proxies that a request is followed through.
const MAX_HOPS: usize = 16;

/// Addresses and networks.
#[derive(Clone, Debug)]
pub(super) struct Networks(Box<[IpNet]>);

/// The proxies whose statements are believed.
#[derive(Debug)]
pub(super) struct TrustedProxies(Networks);

/// The sender of a request.
#[derive(Clone, Copy)]
pub(super) struct Sender {
    /// The address of the client; `None`: the connection has none.
    pub(super) client: Option<IpAddr>,
    /// The id that a trusted proxy has given the request.
    pub(super) id: Option<RequestId>,
    /// A trusted proxy has sent the request.
    pub(super) is_trusted: bool,
}

// === impl Networks ===

impl Networks {
    pub(super) fn of(networks: &[config::Network]) -> Networks {
        Networks(
            networks
                .iter()
                .map(|network| canonical(**network))
                .collect(),
        )
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True for an address in one of them. IPv4 in IPv6 has to be IPv4.
    pub(super) fn contains(&self, address: &IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

// === impl TrustedProxies ===

impl TrustedProxies {
    /// The proxies that `config` names.
    pub(super) fn new(config: &Config) -> TrustedProxies {
        TrustedProxies(Networks::of(&config.server.trusted_proxies))
    }

    /// True if no proxy is trusted.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tell who has sent a request, and take the id out of it that a trusted proxy has added: the
    /// client has not signed it, so S3 would refuse the request.
    pub(super) fn read(&self, session: &mut Session) -> Sender {
        let Some(peer) = peer(session) else {
            return Sender {
                client: None,
                id: None,
                is_trusted: false,
            };
        };
        if !self.trusts(&peer) {
            return Sender {
                client: Some(peer),
                id: None,
                is_trusted: false,
            };
        }
        let client = self.client(peer, &session.req_header().headers);
        Sender {
            client: Some(client),
            id: take_id(session.req_header_mut()),
            is_trusted: true,
        }
    }

    /// The address of the client that has sent a request.
    pub(super) fn client_of(&self, session: &Session) -> Option<IpAddr> {
        let peer = peer(session)?;
        Some(match self.trusts(&peer) {
            true => self.client(peer, &session.req_header().headers),
            false => peer,
        })
    }

    /// True for the address of a trusted proxy.
    pub(super) fn trusts(&self, address: &IpAddr) -> bool {
        self.0.contains(address)
    }

    /// The first address that is not a trusted proxy's, from the last proxy backwards. A client can
    /// send a list of its own, which the proxies append to, so nothing before that address counts.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let values = headers.get_all(FORWARDED_FOR).iter().rev();
        let elements = values.flat_map(|value| value.as_bytes().rsplit(|b| *b == b','));
        let mut client = peer;
        for element in elements.take(MAX_HOPS) {
            // An element that is not an address may hide a client.
            let Some(address) = address(element) else {
                break;
            };
            client = address;
            if !self.trusts(&client) {
                break;
            }
        }
        client
    }
}

/// The address that a connection comes from.
fn peer(session: &Session) -> Option<IpAddr> {
    let address = session.as_downstream().client_addr()?;
    Some(address.as_inet()?.ip().to_canonical())
}

/// Take the id out of a request, unless the client has signed it. `None`: there is none, or it is not
/// plain.
fn take_id(request: &mut RequestHeader) -> Option<RequestId> {
    let mut ids = request.headers.get_all(REQUEST_ID).iter();
    let (first, second) = (ids.next()?, ids.next());
    let id = match second {
        None => RequestId::parse(first.as_bytes()),
        // Only one of them is the proxy's.
        Some(_) => None,
    };
    let signed = Signed::of(requested_query(request), &request.headers);
    let is_named = |names: &[String]| names.iter().any(|name| name == REQUEST_ID.as_str());
    // A signature of version 2 names no fields, and its clients do not send this one.
    let is_signed = matches!(&signed, Signed::Fields(names) if is_named(names));
    if !is_signed {
        request.remove_header(&REQUEST_ID);
    }
    id
}

/// An address, which may have a port and, if it is one of IPv6, brackets.
fn address(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element).ok()?.trim_matches([' ', '\t']);
    let bracketed = || {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    };
    let address = text.parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    Some(address.or_else(bracketed)?.to_canonical())
}

/// A network as addresses are compared with it: IPv4 in IPv6 (RFC 4291 §2.5.5.2) is IPv4.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_PREFIX: u8 = 96;
    let mapped = match network {
        IpNet::V6(network) => network.addr().to_ipv4_mapped(),
        IpNet::V4(_) => None,
    };
    let prefix = network.prefix_len().checked_sub(MAPPED_PREFIX);
    match mapped.zip(prefix) {
        Some((address, prefix)) => Ipv4Net::new(address, prefix).map_or(network, IpNet::V4),
        None => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(networks: &[&str]) -> TrustedProxies {
        let networks = networks
            .iter()
            .map(|network| canonical(network.parse().unwrap()));
        TrustedProxies(Networks(networks.collect()))
    }

    fn request(fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/a?x=1", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_proxy() {
        let proxies = trusted(&["10.0.0.0/8", "2001:db8::/32", "::ffff:192.0.2.0/120"]);
        let many = "10.0.0.1,".repeat(MAX_HOPS);
        for (fields, client) in [
            (&[][..], "10.0.0.9"),
            (&["198.51.100.7"], "198.51.100.7"),
            (&["198.51.100.7, 10.0.0.1,10.0.0.2"], "198.51.100.7"),
            (&["198.51.100.7", "10.0.0.1", "10.0.0.2"], "198.51.100.7"),
            // The client has sent the left part itself.
            (&["192.0.2.66, 198.51.100.7"], "198.51.100.7"),
            (&["10.0.0.1", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            // All are proxies, so the farthest one is the client.
            (&["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
            // Nothing before an element that is not an address counts.
            (&["198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["198.51.100.7,,10.0.0.2"], "10.0.0.2"),
            (&["198.51.100.7", "", "10.0.0.2"], "10.0.0.2"),
            (&["unknown"], "10.0.0.9"),
            (&["198.51.100.7:4711, 10.0.0.2:80"], "198.51.100.7"),
            (&["[2001:db9::1]:4711"], "2001:db9::1"),
            (&["[2001:db9::1], \t[2001:db8::1]"], "2001:db9::1"),
            (&["2001:db9::1, 2001:db8::1"], "2001:db9::1"),
            (
                &["::ffff:198.51.100.7, ::ffff:10.0.0.1, 192.0.2.1"],
                "198.51.100.7",
            ),
            (&["[::ffff:198.51.100.7]:80"], "198.51.100.7"),
            (&["198.51.100.7", &many[..]], "10.0.0.9"),
            (&["198.51.100.7", &many[..many.len() - 1]], "10.0.0.1"),
            (&["198.51.100.7", &many[9..many.len() - 1]], "198.51.100.7"),
        ] {
            let fields: Vec<_> = fields.iter().map(|f| ("x-forwarded-for", *f)).collect();
            let request = request(&fields);
            let found = proxies.client([10, 0, 0, 9].into(), &request.headers);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{fields:?}");
        }
    }

    #[test]
    fn an_id_is_taken_out_unless_it_is_signed() {
        const NAME: &str = "x-amz-request-id";
        let signed = |names: &str| {
            format!("AWS4-HMAC-SHA256 Credential=A/1/r/s3/aws4_request, SignedHeaders={names}, Signature=0")
        };
        let (without, with) = (signed("host"), signed("host;x-amz-request-id"));
        for (fields, id, stays) in [
            (&[][..], None, false),
            (&[(NAME, "7")], Some("7"), false),
            (
                &[(NAME, "7"), ("authorization", &*without)],
                Some("7"),
                false,
            ),
            (&[(NAME, "7"), ("authorization", &*with)], Some("7"), true),
            (
                &[(NAME, "7"), ("authorization", "AWS A:signature=")],
                Some("7"),
                false,
            ),
            // Neither is used, and S3 would refuse the request with either.
            (&[(NAME, "a b"), ("authorization", &*without)], None, false),
            (&[(NAME, "7"), (NAME, "8")], None, false),
        ] {
            let mut request = request(fields);
            let taken = take_id(&mut request);
            assert_eq!(taken.as_ref().map(RequestId::as_str), id, "{fields:?}");
            assert_eq!(request.headers.contains_key(NAME), stays, "{fields:?}");
        }
    }
}
