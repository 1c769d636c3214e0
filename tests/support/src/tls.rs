use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{engine::general_purpose::STANDARD, Engine};

use crate::{PATIENCE, RSA_KEY};

/// A certificate that only its own maker trusts, for `localhost` and 127.0.0.1,
/// with its key, both as PEM files.
#[derive(Clone, Debug)]
pub struct SelfSigned {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A certificate authority.
pub struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

/// A certificate that an [`Authority`] has issued, with its key.
pub struct Issued {
    /// PEM of the certificate and of the authority that has issued it.
    pub chain: String,
    /// PEM of the key, PKCS #8.
    pub key: String,
    /// DER of the certificate.
    pub der: Vec<u8>,
}

/// [`RSA_KEY`] for certificates.
pub fn rsa_key() -> rcgen::KeyPair {
    // PrivateKeyInfo (RFC 5208 §5) up to the key itself: rsaEncryption without parameters.
    const VERSION_AND_ALGORITHM: [u8; 18] = [
        0x02, 1, 0, 0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0,
    ];
    let der = STANDARD.decode(RSA_KEY).expect("base64");
    let with_length = |tag: u8, content: &[u8]| {
        let len = u16::try_from(content.len())
            .expect("a short key")
            .to_be_bytes();
        [&[tag, 0x82, len[0], len[1]], content].concat()
    };
    let key = [&VERSION_AND_ALGORITHM[..], &with_length(0x04, &der)].concat();
    let pkcs8 = with_length(0x30, &key);
    rcgen::KeyPair::try_from(pkcs8.as_slice()).expect("an RSA key")
}

/// A PEM block.
pub fn pem(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
}

/// Which version an HTTPS client insists on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    Http1,
    Http2,
}

/// A client that speaks one version of HTTP over TLS and accepts whatever
/// certificate it is shown.
pub fn https_client(version: HttpVersion) -> reqwest::blocking::Client {
    let builder = reqwest::blocking::Client::builder()
        .use_rustls_tls()
        .danger_accept_invalid_certs(true)
        .no_proxy()
        .timeout(PATIENCE);
    let builder = match version {
        HttpVersion::Http1 => builder.http1_only(),
        HttpVersion::Http2 => builder.http2_prior_knowledge(),
    };
    builder.build().expect("build an HTTPS client")
}

// === impl Authority ===

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("make a key");
        let issuer = rcgen::CertifiedIssuer::self_signed(Self::params(name), key);
        Self(issuer.expect("make an authority"))
    }

    /// An authority that this one vouches for.
    pub fn intermediate(&self, name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("make a key");
        let issuer = rcgen::CertifiedIssuer::signed_by(Self::params(name), key, &self.0);
        Self(issuer.expect("make an authority"))
    }

    fn params(name: &str) -> rcgen::CertificateParams {
        let mut params = rcgen::CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn der(&self) -> &[u8] {
        self.0.der()
    }

    /// A certificate for these names, for servers and clients.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_for(names, &rcgen::KeyPair::generate().expect("make a key"))
    }

    /// A certificate for these names and this key.
    pub fn issue_for(&self, names: &[&str], key: &rcgen::KeyPair) -> Issued {
        self.issue_with(names, key, |_| ())
    }

    /// A certificate that expires in some days.
    pub fn issue_for_days(&self, names: &[&str], days: u32) -> Issued {
        let key = rcgen::KeyPair::generate().expect("make a key");
        let lifetime = Duration::from_secs(u64::from(days) * 86_400);
        let end = SystemTime::now() + lifetime;
        self.issue_with(names, &key, |params| params.not_after = end.into())
    }

    fn issue_with(
        &self,
        names: &[&str],
        key: &rcgen::KeyPair,
        edit: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> Issued {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("describe it");
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        edit(&mut params);
        let certificate = params.signed_by(key, &self.0).expect("make a certificate");
        Issued {
            chain: certificate.pem() + &self.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }
}

// === impl Issued ===

impl Issued {
    /// Writes both as `NAME.pem` and `NAME.key` into `dir`, and returns their paths.
    pub fn write_to(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let paths = [".pem", ".key"].map(|end| dir.join(name.to_owned() + end));
        let [certificate, key] = paths;
        fs::write(&certificate, &self.chain).expect("write the certificate");
        fs::write(&key, &self.key).expect("write the key");
        (certificate, key)
    }
}

// === impl SelfSigned ===

impl SelfSigned {
    /// Makes both and writes them into `dir`.
    pub fn write_to(dir: &Path) -> Self {
        let names = ["localhost", "127.0.0.1"].map(String::from);
        let made = rcgen::generate_simple_self_signed(names).expect("make a certificate");
        Self::write(dir, &made.cert, &made.signing_key)
    }

    /// Like [`Self::write_to`], with a certificate that has expired.
    pub fn write_expired_to(dir: &Path) -> Self {
        let key = rcgen::KeyPair::generate().expect("make a key");
        let mut params =
            rcgen::CertificateParams::new(["localhost".to_owned()]).expect("describe it");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let certificate = params.self_signed(&key).expect("make a certificate");
        Self::write(dir, &certificate, &key)
    }

    fn write(dir: &Path, certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> Self {
        let paths = Self {
            certificate: dir.join("certificate.pem"),
            key: dir.join("key.pem"),
        };
        fs::write(&paths.certificate, certificate.pem()).expect("write the certificate");
        fs::write(&paths.key, key.serialize_pem()).expect("write the key");
        paths
    }
}
