//! The fields of a certificate that operators are told about.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use log::warn;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::metrics::CertificateExpiry;

/// The time before its expiry at which a certificate is due for renewal, in seconds. Certificates
/// of public authorities are renewed weeks ahead, so that something is wrong a week ahead.
const DUE: i64 = 7 * 86_400;

/// The fields of the certificate of a server.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub file: PathBuf,
    /// The DNS names, in lower case and without a final dot.
    pub names: Vec<String>,
    /// The Unix times between which it is valid.
    not_before: i64,
    not_after: i64,
    serial: String,
}

/// The distance of a certificate from its expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Validity {
    Good,
    NotYet,
    Due,
    Expired,
}

/// The certificates of which a warning is in the log, so that each is warned of once.
#[derive(Default)]
pub(super) struct Warned(Vec<(PathBuf, String, Validity)>);

// === impl Facts ===

impl Facts {
    /// # Errors
    /// The reason that `der` is not a certificate.
    pub fn read(file: &Path, der: &[u8]) -> Result<Facts, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| e.to_string())?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let names = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                Some(name.to_ascii_lowercase())
            }
            _ => None,
        });
        let validity = certificate.validity();
        Ok(Facts {
            file: file.to_owned(),
            names: names.collect(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            serial: certificate.raw_serial_as_string(),
        })
    }

    /// The line of the certificate in the metrics.
    pub fn expiry(&self) -> CertificateExpiry {
        CertificateExpiry {
            labels: [
                self.file.display().to_string(),
                self.names.first().cloned().unwrap_or_default(),
            ],
            timestamp: self.not_after,
        }
    }

    fn validity(&self, now: i64) -> Validity {
        match now {
            now if now > self.not_after => Validity::Expired,
            now if now < self.not_before => Validity::NotYet,
            now if now > self.not_after - DUE => Validity::Due,
            _ => Validity::Good,
        }
    }
}

// === impl Warned ===

impl Warned {
    /// Log the certificates that clients refuse, or will refuse soon.
    pub fn warn_of(&mut self, all: &[Facts]) {
        for (facts, validity) in self.news(all, unix_now()) {
            let file = facts.file.display();
            let time = |at| httpdate::fmt_http_date(UNIX_EPOCH + from_secs(at));
            match validity {
                Validity::Good => {}
                Validity::NotYet => warn!(
                    "server.tls: {file}: the certificate is valid from {} on, not now; clients will refuse it",
                    time(facts.not_before)
                ),
                Validity::Due => warn!(
                    "server.tls: {file}: the certificate expires on {}; renew it",
                    time(facts.not_after)
                ),
                Validity::Expired => warn!(
                    "server.tls: {file}: the certificate has expired on {}; clients will refuse it",
                    time(facts.not_after)
                ),
            }
        }
    }

    /// The certificates whose validity is worse than at the last warning.
    fn news<'a>(&mut self, all: &'a [Facts], now: i64) -> Vec<(&'a Facts, Validity)> {
        let mut news = Vec::new();
        let mut current = Vec::new();
        for facts in all {
            let validity = facts.validity(now);
            let warned = self
                .0
                .iter()
                .find(|(file, serial, _)| *file == facts.file && *serial == facts.serial);
            if validity > warned.map_or(Validity::Good, |(.., validity)| *validity) {
                news.push((facts, validity));
            }
            current.push((facts.file.clone(), facts.serial.clone(), validity));
        }
        self.0 = current;
        news
    }
}

fn from_secs(secs: i64) -> std::time::Duration {
    std::time::Duration::from_secs(u64::try_from(secs).unwrap_or(0))
}

fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(serial: &str, not_after: i64) -> Facts {
        Facts {
            file: PathBuf::from("cert.pem"),
            names: Vec::new(),
            not_before: 0,
            not_after,
            serial: serial.to_owned(),
        }
    }

    #[test]
    fn each_stage_of_a_certificate_is_warned_of_once() {
        let expires = 100 * 86_400;
        let old = [facts("1", expires)];
        let mut warned = Warned::default();
        let mut stages = |all: &[Facts], now| {
            let news = warned.news(all, now).into_iter();
            news.map(|(_, validity)| validity).collect::<Vec<_>>()
        };
        assert_eq!(stages(&old, expires - DUE), []);
        assert_eq!(stages(&old, expires - DUE + 1), [Validity::Due]);
        assert_eq!(stages(&old, expires - DUE + 2), []);
        assert_eq!(stages(&old, expires + 1), [Validity::Expired]);
        assert_eq!(stages(&old, expires + 2), []);
        let renewed = [facts("2", expires + 1)];
        assert_eq!(stages(&renewed, expires), [Validity::Due]);
        assert_eq!(stages(&[facts("3", 2 * expires)], expires), []);
    }
}
