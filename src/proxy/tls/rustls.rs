//! Rustls.
//!
//! - this module: the authorities of origins, failed handshakes, and what the process shares
//! - `provider`: the library of ciphers
//! - `identity`: a certificate chain and its key, from their files
//! - `names`: the choice of a certificate by the name that a client sends
//! - `config`: the configuration of a listener
//! - `reload`: its replacement when the files change

mod config;
mod identity;
mod names;
mod provider;
mod reload;

use std::io;
use std::sync::{Arc, LazyLock};

use pingora_core::listeners::tls::{KernelTlsSupport, RecordBatches, TlsSettings};
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{parse_x509, WrappedX509};
use pingora_core::{Error, ErrorType};
use rustls::pki_types::CertificateDer;
use rustls::RootCertStore;

use self::config::Loaded;
pub(in crate::proxy) use self::reload::{Certificates, Reload};
use super::certificate::Warned;
use super::problem::Unusable;
use crate::config::Tls;

pub(in crate::proxy) const AVAILABLE: bool = true;

/// The encrypted bytes that may wait for a client at any time.
const OWN: usize = 64 << 10;

/// The most bytes that are encrypted at once, for a client that keeps up.
const MOST: usize = 256 << 10;

/// The most bytes beyond [`OWN`] for all connections together. A worker borrows them for as long as
/// it writes a batch; the connection keeps them only if the kernel takes fewer than it had room for,
/// which happens when its memory is short. Then the process must not take much either.
const TOTAL: usize = 16 << 20;

static BATCHES: LazyLock<Arc<RecordBatches>> =
    LazyLock::new(|| Arc::new(RecordBatches::new(OWN, MOST, TOTAL)));

/// Bytes of [`TOTAL`] that are lent at the moment.
pub(in crate::proxy) fn lent_bytes() -> usize {
    BATCHES.lent()
}

pub(in crate::proxy) type Authority = WrappedX509;

/// # Errors
/// The certificate cannot be used. The caller has parsed it: a peer makes its own copy later,
/// which cannot fail then.
pub(in crate::proxy) fn authority(der: Vec<u8>) -> Result<Authority, String> {
    let certificate = CertificateDer::from(der.as_slice());
    RootCertStore::empty()
        .add(certificate)
        .map_err(|e| e.to_string())?;
    Ok(WrappedX509::new(der, parse_x509))
}

pub(in crate::proxy) fn authorities(all: Vec<Authority>) -> Arc<CaType> {
    all.into()
}

/// Makes the ciphers of the listener those of connections to origins too. Pingora installs ring's if
/// there is no default yet.
pub(in crate::proxy) fn install_provider() {
    // An error means that the process has a default already, which then stays.
    let _ = provider::default_provider().install_default();
}

/// Checks the files of a listener.
///
/// # Errors
/// All files that cannot be used.
pub(in crate::proxy) fn check(settings: &Tls) -> Result<(), Vec<Unusable>> {
    Loaded::read(settings).map(|_| ())
}

/// Logs the certificates that clients refuse, or will refuse soon. A [`Reload`] does that too.
pub(in crate::proxy) fn warn_of_expiry(settings: &Tls) {
    if let Ok(loaded) = Loaded::read(settings) {
        Warned::default().warn_of(&loaded.certificates);
    }
}

/// The settings of a listener, and the service that replaces its certificates.
///
/// # Errors
/// A file cannot be used.
pub(in crate::proxy) fn listener(
    settings: &Tls,
) -> Result<(TlsSettings, Option<Reload>), Unusable> {
    let reload = Reload::new(settings).map_err(|mut all| all.swap_remove(0))?;
    let mut settings = TlsSettings::from_server_config_source(reload.source());
    settings.set_record_batches(BATCHES.clone());
    Ok((settings, Some(reload)))
}

/// The reason that a handshake has failed.
pub(in crate::proxy) fn failure(error: &Error) -> &'static str {
    if *error.etype() == ErrorType::TLSHandshakeTimedout {
        return "timeout";
    }
    let Some(e) = error.root_cause().downcast_ref::<io::Error>() else {
        return "other";
    };
    match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
        Some(rustls::Error::InvalidCertificate(_)) => "certificate",
        Some(rustls::Error::AlertReceived(_)) => "refused",
        Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
        Some(_) => "protocol",
        // The client has left.
        None => "closed",
    }
}

/// The ciphers that the running kernel has for connections of a listener, in words.
///
/// # Errors
/// It has none. The text is the reason and, if there is one, the remedy.
pub(in crate::proxy) fn kernel_tls() -> Result<String, String> {
    KernelTlsSupport::of_this_kernel()
        .map(ToString::to_string)
        .map_err(ToString::to_string)
}

pub(in crate::proxy) fn enable_kernel_tls(settings: &mut TlsSettings) {
    settings.enable_kernel_tls();
}
