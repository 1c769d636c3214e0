use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::PATIENCE;

/// A certificate that only its own maker trusts, for `localhost` and 127.0.0.1,
/// with its key, both as PEM files.
#[derive(Clone, Debug)]
pub struct SelfSigned {
    pub certificate: PathBuf,
    pub key: PathBuf,
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
