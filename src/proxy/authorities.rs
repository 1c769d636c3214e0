//! The certificate authorities of origins, from the files of `ca_file`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use log::error;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::HttpPeer;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use super::tls::{self, Authority};
use crate::s3::{ConnectionOptions, Site, Verify};

/// The authorities of each file.
#[derive(Default)]
pub(super) struct Authorities(HashMap<PathBuf, Loaded>);

struct Loaded {
    authorities: Arc<CaType>,
    /// The digest of the file.
    digest: [u8; 32],
    /// The group of connections that were checked against this file. A connection is reused only
    /// within its group.
    group: u64,
}

// === impl Authorities ===

impl Authorities {
    /// The authorities of these buckets' origins. For a file that cannot be read, there are none,
    /// and no certificate is accepted. A file that has not changed since `former` keeps its connections.
    pub(super) fn load(sites: &[Arc<Site>], former: Option<&Authorities>) -> Self {
        static NEXT_GROUP: AtomicU64 = AtomicU64::new(1);
        let mut all = HashMap::new();
        let files = sites
            .iter()
            .filter_map(|site| site.connection().ca_file.as_ref());
        for file in files {
            all.entry(file.clone()).or_insert_with(|| {
                let bytes = fs::read(file);
                let digest = Sha256::digest(bytes.as_deref().unwrap_or_default()).into();
                let known = former.and_then(|former| former.0.get(file));
                let known = known.filter(|known| known.digest == digest);
                Loaded {
                    authorities: tls::authorities(parse(bytes).unwrap_or_else(|why| {
                        error!("{}: {why}; no origin is trusted", file.display());
                        Vec::new()
                    })),
                    digest,
                    group: known.map_or_else(
                        || NEXT_GROUP.fetch_add(1, Ordering::Relaxed),
                        |known| known.group,
                    ),
                }
            });
        }
        Authorities(all)
    }

    /// Let Pingora check the certificate of a peer as `options` say.
    pub(super) fn apply(&self, options: &ConnectionOptions, peer: &mut HttpPeer) {
        peer.options.verify_cert = options.verify != Verify::Nothing;
        peer.options.verify_hostname = options.verify == Verify::Full;
        let file = options.ca_file.as_ref();
        if let Some(loaded) = file.and_then(|file| self.0.get(file)) {
            peer.options.ca = Some(loaded.authorities.clone());
            peer.group_key = loaded.group;
        }
    }
}

/// The certificates of a PEM file.
///
/// # Errors
/// The problem, in words that follow the name of the file.
pub(super) fn read(file: &Path) -> Result<Vec<Authority>, String> {
    parse(fs::read(file))
}

fn parse(bytes: io::Result<Vec<u8>>) -> Result<Vec<Authority>, String> {
    let bytes = bytes.map_err(|e| format!("cannot be read: {e}"))?;
    let mut authorities = Vec::new();
    for block in Pem::iter_from_buffer(&bytes) {
        let block = block.map_err(|e| format!("is not PEM: {e}"))?;
        if block.label != "CERTIFICATE" {
            return Err(format!("holds a {}, not only certificates", block.label));
        }
        let number = authorities.len() + 1;
        let unusable = |why: String| format!("its certificate {number} cannot be used: {why}");
        X509Certificate::from_der(&block.contents).map_err(|e| unusable(e.to_string()))?;
        authorities.push(tls::authority(block.contents).map_err(unusable)?);
    }
    match authorities.is_empty() {
        true => Err("holds no certificate".to_owned()),
        false => Ok(authorities),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_hold_no_authority_say_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        for (content, why) in [
            ("", "no certificate"),
            ("no PEM at all", "no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA", "not PEM"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "certificate 1 cannot be used",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "PRIVATE KEY",
            ),
        ] {
            fs::write(&file, content).expect("write a file");
            let said = read(&file).expect_err(content);
            assert!(said.contains(why), "{content}: {said}");
        }
        let said = read(folder.path()).expect_err("a folder");
        assert!(said.contains("cannot be read"), "{said}");
    }
}
