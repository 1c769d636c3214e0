//! Problems with the files of a listener.

use std::fmt;

/// A file of `server.tls` that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Unusable {
    /// The key of the setting, below `server.tls`.
    pub key: String,
    /// The file, the problem and the remedy, in one line.
    pub what: String,
}

// === impl Unusable ===

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server.tls.{}: {}", self.key, self.what)
    }
}
