//! The credentials that sign the requests to an origin.
//!
//! - [`Refreshed`]: credentials that are looked up in the background and replaced before
//!   they expire
//! - [`Lookup`]: the credential chain of the AWS SDK, and assumed roles

mod lookup;
mod refreshed;

use aws_credential_types::Credentials;
use std::fmt;
use std::sync::Arc;

pub use lookup::{Lookup, Role};
pub use refreshed::{NoCredentials, Refreshed};

/// The credentials of a bucket.
#[derive(Clone)]
pub enum OriginCredentials {
    /// Keys that do not change.
    Keys(Credentials),
    /// Credentials that expire. Several buckets may share them.
    Refreshed(Arc<Refreshed>),
}

// === impl OriginCredentials ===

impl From<Credentials> for OriginCredentials {
    fn from(keys: Credentials) -> Self {
        OriginCredentials::Keys(keys)
    }
}

impl fmt::Debug for OriginCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OriginCredentials::Keys(_) => "Keys",
            OriginCredentials::Refreshed(_) => "Refreshed",
        })
    }
}
