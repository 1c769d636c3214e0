//! The configuration of a listener.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use super::identity::{certificates, Identity};
use super::names::ByName;
use super::provider;
use crate::config::{ClientAuth, Tls, TlsVersion};
use crate::metrics::CertificateExpiry;
use crate::proxy::tls::certificate::Facts;
use crate::proxy::tls::problem::Unusable;

/// The configuration of a listener, and the fields of its certificates.
pub(super) struct Loaded {
    pub config: Arc<ServerConfig>,
    pub certificates: Vec<Facts>,
    /// The authorities of clients.
    client_ca: Vec<CertificateDer<'static>>,
}

// === impl Loaded ===

impl Loaded {
    /// Reads the files of `settings`.
    ///
    /// # Errors
    /// All files that cannot be used, at least one.
    pub fn read(settings: &Tls) -> Result<Loaded, Vec<Unusable>> {
        Loaded::build(settings, None)
    }

    /// Reads the files of `settings` again. Clients keep the sessions of `earlier` unless other
    /// authorities decide on clients: a resumed session is not verified again.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_again(settings: &Tls, earlier: &Loaded) -> Result<Loaded, Vec<Unusable>> {
        Loaded::build(settings, Some(earlier))
    }

    fn build(settings: &Tls, earlier: Option<&Loaded>) -> Result<Loaded, Vec<Unusable>> {
        let provider = Arc::new(provider::default_provider());
        let mut identities = Vec::new();
        let mut problems = Vec::new();
        for (section, certificate, key) in settings.identities() {
            match Identity::read(&section, certificate, key, &provider) {
                Ok(identity) => match identity.facts.names.is_empty() && !identities.is_empty() {
                    true => problems.push(Unusable {
                        key: format!("{section}certificate"),
                        what: format!(
                            "{} has no DNS name, and no client would receive it; issue one with a \
                             subjectAltName",
                            certificate.display()
                        ),
                    }),
                    false => identities.push(identity),
                },
                Err(problem) => problems.push(problem),
            }
        }
        let client_ca = client_authorities(settings).unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        let (true, Some(by_name)) = (problems.is_empty(), ByName::new(&identities)) else {
            return Err(problems);
        };
        let tickets = earlier.filter(|earlier| earlier.client_ca == client_ca);
        let tickets = tickets.map(|earlier| earlier.config.ticketer.clone());
        let config = server_config(settings, by_name, &client_ca, tickets, provider);
        let config = config.map_err(|e| {
            let key = if client_ca.is_empty() {
                "certificate"
            } else {
                "client_ca"
            };
            vec![Unusable {
                key: key.to_owned(),
                what: format!("cannot be used: {e}; write the path of another file"),
            }]
        })?;
        Ok(Loaded {
            config: Arc::new(config),
            certificates: identities.into_iter().map(|all| all.facts).collect(),
            client_ca,
        })
    }

    /// The lines of the certificates in the metrics.
    pub fn expiries(&self) -> Vec<CertificateExpiry> {
        self.certificates.iter().map(Facts::expiry).collect()
    }

    /// The same configuration with new keys for tickets, so that no earlier session is resumed.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn without_sessions(&self) -> Result<Loaded, rustls::Error> {
        let mut config = ServerConfig::clone(&self.config);
        config.ticketer = provider::Ticketer::new()?;
        Ok(Loaded {
            config: Arc::new(config),
            certificates: self.certificates.clone(),
            client_ca: self.client_ca.clone(),
        })
    }
}

/// The certificates of `client_ca`; none without the key.
fn client_authorities(settings: &Tls) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let Some(file) = settings.client_ca.as_deref() else {
        return Ok(Vec::new());
    };
    let unusable = |problem: String| Unusable {
        key: "client_ca".to_owned(),
        what: format!(
            "{} {problem}; write the path of a PEM file with certificates of authorities",
            file.display()
        ),
    };
    let all = certificates(file).map_err(unusable)?;
    if all.is_empty() {
        return Err(unusable("holds no certificate".to_owned()));
    }
    for (index, certificate) in all.iter().enumerate() {
        let added = RootCertStore::empty().add(certificate.clone());
        added.map_err(|e| {
            unusable(format!(
                "holds a certificate {} that is none: {e}",
                index + 1
            ))
        })?;
    }
    Ok(all)
}

fn server_config(
    settings: &Tls,
    by_name: ByName,
    client_ca: &[CertificateDer<'static>],
    tickets: Option<Arc<dyn ProducesTickets>>,
    provider: Arc<CryptoProvider>,
) -> Result<ServerConfig, rustls::Error> {
    let versions = match settings.min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12][..],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = if client_ca.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in client_ca {
            roots.add(certificate.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = match settings.client_auth {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        let verifier = verifier
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder.with_cert_resolver(Arc::new(by_name));
    // Only kernel TLS takes the secrets, and only of its own connections.
    config.enable_secret_extraction = true;
    config.alpn_protocols = match settings.http2 {
        true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        false => vec![b"http/1.1".to_vec()],
    };
    // All ciphers are good; the first is the one that hardware is fastest with.
    config.ignore_client_order = true;
    // Sessions are in the tickets of the clients, and take no memory here.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = match tickets {
        Some(tickets) => tickets,
        None => provider::Ticketer::new()?,
    };
    Ok(config)
}
