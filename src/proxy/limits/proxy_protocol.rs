//! The PROXY protocol: the address of the client, from a load balancer that forwards its connection.
//!
//! Source: "The PROXY protocol, versions 1 & 2", doc/proxy-protocol.txt of HAProxy. The crate ppp
//! parses headers; here is the framing, so that no byte behind a header is read.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The bytes that tell the versions apart, which each header has.
const PREFIX: usize = v2::PROTOCOL_PREFIX.len();

/// The longest header of version 1, with its end.
const MAX_V1: usize = 107;

/// The fixed part of a header of version 2.
const FIXED_V2: usize = 16;

/// The longest header of version 2. The addresses take up to 216 bytes; the rest is for statements
/// that this proxy has no use for.
const MAX_V2: usize = 4096;

/// A header that cannot be used.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client left before it sent anything, as health checks do.
    Left,
    /// It left within the header, or could not be read.
    Read(io::Error),
    /// These bytes are no header.
    NoHeader,
    /// The header is too long, or invalid.
    Invalid(String),
}

// === impl Broken ===

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Left => f.write_str("the connection has ended"),
            Broken::Read(e) => write!(f, "it cannot be read: {e}"),
            Broken::NoHeader => f.write_str("there is none"),
            Broken::Invalid(why) => write!(f, "it is invalid: {why}"),
        }
    }
}

/// Read the header at the beginning of a connection, and nothing else. Returns the address of the
/// client; `None`: the load balancer names none, since it is itself the client (`LOCAL`), or the
/// client has no address (`UNKNOWN`, Unix sockets).
pub(super) async fn read(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, Broken> {
    let mut prefix = [0; PREFIX];
    match from.read(&mut prefix).await.map_err(Broken::Read)? {
        0 => return Err(Broken::Left),
        n => from
            .read_exact(&mut prefix[n..])
            .await
            .map_err(Broken::Read)?,
    };
    if prefix == v2::PROTOCOL_PREFIX {
        return read_v2(from, &prefix).await;
    }
    if prefix.starts_with(b"PROXY ") {
        return read_v1(from, &prefix).await;
    }
    Err(Broken::NoHeader)
}

async fn read_v1(
    from: &mut (impl AsyncRead + Unpin),
    prefix: &[u8],
) -> Result<Option<SocketAddr>, Broken> {
    let mut header = [0; MAX_V1];
    let mut len = prefix.len();
    header[..len].copy_from_slice(prefix);
    while !header[..len].ends_with(b"\r\n") {
        // The end takes two bytes, or one after CR.
        let least = if header[len - 1] == b'\r' { 1 } else { 2 };
        let Some(next) = header.get_mut(len..len + least) else {
            return Err(Broken::Invalid(format!("longer than {MAX_V1} bytes")));
        };
        from.read_exact(next).await.map_err(Broken::Read)?;
        len += least;
    }
    let header = v1::Header::try_from(&header[..len]);
    let header = header.map_err(|e| Broken::Invalid(e.to_string()))?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

async fn read_v2(
    from: &mut (impl AsyncRead + Unpin),
    prefix: &[u8],
) -> Result<Option<SocketAddr>, Broken> {
    let mut header = vec![0; FIXED_V2];
    header[..prefix.len()].copy_from_slice(prefix);
    from.read_exact(&mut header[prefix.len()..])
        .await
        .map_err(Broken::Read)?;
    let len = FIXED_V2 + usize::from(u16::from_be_bytes([header[14], header[15]]));
    if len > MAX_V2 {
        return Err(Broken::Invalid(format!("longer than {MAX_V2} bytes")));
    }
    header.resize(len, 0);
    from.read_exact(&mut header[FIXED_V2..])
        .await
        .map_err(Broken::Read)?;
    let header = v2::Header::try_from(&header[..]);
    let header = header.map_err(|e| Broken::Invalid(e.to_string()))?;
    // The addresses of a health check are no client's, and those of other protocols no connection's.
    if header.command == v2::Command::Local || header.protocol != v2::Protocol::Stream {
        return Ok(None);
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(ip) => Some(address(ip.source_address, ip.source_port)),
        v2::Addresses::IPv6(ip) => Some(address(ip.source_address, ip.source_port)),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    })
}

fn address(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result for these bytes and a request behind them, and the bytes that are left.
    async fn read_all(header: &[u8]) -> (Result<Option<SocketAddr>, Broken>, Vec<u8>) {
        let bytes = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
        let mut from = &bytes[..];
        let result = read(&mut from).await;
        (result, from.to_vec())
    }

    fn v2(command: u8, family: u8, addresses: &[u8], more: &[u8]) -> Vec<u8> {
        let len = (addresses.len() + more.len()) as u16;
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(len.to_be_bytes());
        header.extend(addresses);
        header.extend(more);
        header
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x34, 0, 80];

    fn ipv6() -> [u8; 36] {
        let mut addresses = [0; 36];
        addresses[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        addresses[15] = 1;
        addresses[33] = 80;
        addresses
    }

    #[tokio::test]
    async fn a_header_names_the_client_and_is_all_that_is_read() {
        for (header, client) in [
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.1 4660 80\r\n".to_vec(),
                Some("192.0.2.1:4660"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 2001:db8::2 4660 80\r\n".to_vec(),
                Some("[2001:db8::1]:4660"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever\r\n".to_vec(), None),
            (v2(1, 0x11, &IPV4, b""), Some("192.0.2.1:4660")),
            // With further statements.
            (v2(1, 0x11, &IPV4, &[4, 0, 1, 42]), Some("192.0.2.1:4660")),
            (v2(1, 0x11, &IPV4, &[0; 4000]), Some("192.0.2.1:4660")),
            (v2(1, 0x21, &ipv6(), b""), Some("[2001:db8::1]:80")),
            // A health check, with addresses and without.
            (v2(0, 0x11, &IPV4, b""), None),
            (v2(0, 0x00, b"", b""), None),
            // Unspecified, a Unix socket, and UDP.
            (v2(1, 0x00, b"", b""), None),
            (v2(1, 0x31, &[0; 216], b""), None),
            (v2(1, 0x12, &IPV4, b""), None),
        ] {
            let (result, left) = read_all(&header).await;
            let expected = client.map(|client| client.parse().unwrap());
            let shown = String::from_utf8_lossy(&header);
            assert_eq!(result.unwrap(), expected, "{shown}");
            assert_eq!(left, b"GET / HTTP/1.1\r\n\r\n", "{shown}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for header in [
            &b""[..],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"proxy TCP4 ",
        ] {
            let (result, _) = read_all(header).await;
            assert!(matches!(result, Err(Broken::NoHeader)), "{result:?}");
        }
        for header in [
            &b"PROXY TCP4 192.0.2.1 198.51.100.1 4660\r\n"[..],
            b"PROXY TCP4 192.0.2.256 198.51.100.1 4660 80\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4660 80\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 4660 80\r\n",
            b"PROXY TCP5 192.0.2.1 198.51.100.1 4660 80\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4660 65536\r\n",
            &[b"PROXY UNKNOWN ", &[b'a'; 200][..]].concat(),
            // Of another version, command and length.
            &[v2::PROTOCOL_PREFIX, &[0x31, 0x11, 0, 12], &IPV4].concat(),
            &v2(2, 0x11, &IPV4, b""),
            &v2(1, 0x21, &IPV4, b""),
            &[v2::PROTOCOL_PREFIX, &[0x21, 0x11, 0xff, 0xff], &IPV4].concat(),
        ] {
            let (result, _) = read_all(header).await;
            let shown = String::from_utf8_lossy(header);
            assert!(
                matches!(result, Err(Broken::Invalid(_))),
                "{shown}: {result:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_header_that_breaks_off_is_told_from_none() {
        assert!(matches!(read(&mut &b""[..]).await, Err(Broken::Left)));
        let whole = v2(1, 0x11, &IPV4, b"");
        for len in 1..whole.len() {
            let result = read(&mut &whole[..len]).await;
            assert!(matches!(result, Err(Broken::Read(_))), "{len}: {result:?}");
        }
    }
}
