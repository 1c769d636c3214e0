//! A certificate chain and its key, from their files.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::proxy::tls::certificate::Facts;
use crate::proxy::tls::problem::Unusable;

/// The longest file that is read, in bytes: a bundle of all public authorities has a quarter.
const MAX_FILE: u64 = 1 << 20;

const WRITE_CERTIFICATE: &str = "write the path of a PEM file with the certificate first";
const WRITE_KEY: &str = "write the path of a PEM file with the private key";

/// A certificate chain with its key.
pub(super) struct Identity {
    pub certified: Arc<CertifiedKey>,
    pub facts: Facts,
}

// === impl Identity ===

impl Identity {
    /// The identity of a section of `server.tls`.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn read(
        section: &str,
        certificate: &Path,
        key: &Path,
        provider: &CryptoProvider,
    ) -> Result<Identity, Unusable> {
        let unusable = |name: &str, file: &Path, problem: String, remedy: &str| Unusable {
            key: format!("{section}{name}"),
            what: format!("{} {problem}; {remedy}", file.display()),
        };
        let of_certificate =
            |problem| unusable("certificate", certificate, problem, WRITE_CERTIFICATE);
        let chain = certificates(certificate).map_err(of_certificate)?;
        let facts = chain.first().map(|leaf| Facts::read(certificate, leaf));
        let facts = match facts {
            Some(facts) => facts.map_err(|e| of_certificate(format!("is no certificate: {e}")))?,
            None => return Err(of_certificate("holds no certificate".to_owned())),
        };
        let (der, remedy) =
            private_key(key).map_err(|(problem, remedy)| unusable("key", key, problem, remedy))?;
        let certified = CertifiedKey::from_der(chain, der, provider).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => unusable(
                "key",
                key,
                format!(
                    "is not the key of the first certificate in {}",
                    certificate.display()
                ),
                "write a certificate and its own private key",
            ),
            e => unusable("key", key, format!("cannot be used: {e}"), remedy),
        })?;
        Ok(Identity {
            certified: Arc::new(certified),
            facts,
        })
    }
}

/// The certificates of a PEM file.
///
/// # Errors
/// The problem, in words that follow the name of the file.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let content = read(file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    all.map_err(|e| not_pem(&e))
}

/// The first private key of a PEM file, and the remedy if it cannot be used.
fn private_key(file: &Path) -> Result<(PrivateKeyDer<'static>, &'static str), (String, &str)> {
    const DECRYPT: &str =
        "write a key without one: openssl pkey -in KEY -out KEY-WITHOUT-PASSPHRASE";
    const GENERATE: &str =
        "write an RSA key of 2048 to 8192 bits, or an EC key on P-256, P-384 or P-521, or an \
                            Ed25519 key";
    let content = read(file).map_err(|problem| (problem, WRITE_KEY))?;
    // PKCS #8, or RFC 1421 as OpenSSL writes it.
    let is_encrypted = |line: &[u8]| {
        line.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY")
            || (line.starts_with(b"Proc-Type:") && line.trim_ascii_end().ends_with(b"ENCRYPTED"))
    };
    if content.split(|b| *b == b'\n').any(is_encrypted) {
        let problem = "is encrypted with a passphrase, which a server cannot enter";
        return Err((problem.to_owned(), DECRYPT));
    }
    match PrivateKeyDer::from_pem_slice(&content) {
        Ok(key) => Ok((key, GENERATE)),
        Err(pem::Error::NoItemsFound) => Err(("holds no private key".to_owned(), WRITE_KEY)),
        Err(e) => Err((not_pem(&e), WRITE_KEY)),
    }
}

fn not_pem(e: &pem::Error) -> String {
    format!("is not PEM: {e}")
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut content = Zeroizing::new(Vec::new());
    // The length of a pipe is unknown.
    let read = File::open(file).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content));
    match read {
        Ok(_) if content.len() as u64 > MAX_FILE => Err("is larger than 1 MiB".to_owned()),
        Ok(_) => Ok(content),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
}
