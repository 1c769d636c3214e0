//! The certificates of the HTTPS listener, and those of its clients.

mod attacks;
mod client;
mod clients;
mod names;
mod redirect;
mod reload;
mod sessions;

use std::net::SocketAddr;
use std::path::Path;

use test_support::{Authority, Bucket, Issued, Origin, Proxy, ProxyBuilder, Reply};

use crate::builder;

/// A proxy with one object, `/assets/1`.
fn https(origin: &Origin) -> ProxyBuilder {
    builder().bucket(Bucket::at(origin, "/assets", "bucket"))
}

fn origin() -> Origin {
    Origin::start(|_| Reply::bytes("an object"))
}

/// The value of `certificates` for these identities in a folder.
fn certificates(dir: &Path, all: &[(&str, &Issued)]) -> String {
    let entries = all.iter().map(|(name, issued)| {
        let (certificate, key) = issued.write_to(dir, name);
        format!(
            "{{certificate: {}, key: {}}}",
            certificate.display(),
            key.display()
        )
    });
    format!("[{}]", entries.collect::<Vec<_>>().join(", "))
}

/// A proxy for `localhost`, and the authority of its certificate.
fn localhost(origin: &Origin, dir: &Path) -> (ProxyBuilder, Authority) {
    let authority = Authority::new("of servers");
    let (certificate, key) = authority.issue(&["localhost"]).write_to(dir, "server");
    (https(origin).tls_with(&certificate, &key), authority)
}

/// The certificate that a new connection gets.
pub(crate) fn served(addr: SocketAddr, name: &str) -> Vec<u8> {
    client::Client::any().certificate(addr, name)
}

/// The number of lines in the log that have a text.
fn lines_with(proxy: &Proxy, text: &str) -> usize {
    let log = proxy.stderr();
    log.lines().filter(|line| line.contains(text)).count()
}
