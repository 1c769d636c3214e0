//! The choice of a certificate by the name that a client sends.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::identity::Identity;

/// The certificates of a listener by their names.
#[derive(Debug)]
pub(super) struct ByName {
    default: Arc<CertifiedKey>,
    /// In the order of the configuration.
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By the name without its first label, which is an asterisk (RFC 9525 §6.3).
    wildcards: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

// === impl ByName ===

impl ByName {
    /// The first of `all` is the default.
    pub fn new(all: &[Identity]) -> Option<ByName> {
        let mut by_name = ByName {
            default: all.first()?.certified.clone(),
            exact: HashMap::new(),
            wildcards: HashMap::new(),
        };
        for identity in all {
            for name in &identity.facts.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(domain) => (&mut by_name.wildcards, domain),
                    None => (&mut by_name.exact, &**name),
                };
                let certified = names.entry(name.to_owned()).or_default();
                certified.push(identity.certified.clone());
            }
        }
        Some(by_name)
    }

    /// The certificates for a name.
    fn find(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let exact = self.exact.get(name);
        let found = exact.or_else(|| self.wildcards.get(name.split_once('.')?.1));
        found.map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let found = name.as_deref().map_or(&[][..], |name| self.find(name));
        let schemes = hello.signature_schemes();
        let usable =
            |certified: &&Arc<CertifiedKey>| certified.key.choose_scheme(schemes).is_some();
        let certified = found.iter().find(usable).unwrap_or(&self.default);
        Some(certified.clone())
    }
}
