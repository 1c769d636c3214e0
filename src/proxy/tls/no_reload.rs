//! No replacement of certificates while the proxy serves. There is no value of these types.

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

use super::problem::Unusable;
use crate::config::Tls;

/// A service that there is none of: a restart reads the files again.
pub(in crate::proxy) enum Reload {}

/// The configuration of a listener, of which none can be replaced.
#[derive(Clone, Copy)]
pub(in crate::proxy) enum Certificates {}

/// See [`Certificates`].
pub(in crate::proxy) enum Prepared {}

#[async_trait]
impl BackgroundService for Reload {
    async fn start(&self, _: ShutdownWatch) {
        match *self {}
    }
}

impl Reload {
    pub(in crate::proxy) fn certificates(&self) -> Certificates {
        match *self {}
    }
}

impl Certificates {
    pub(in crate::proxy) fn prepare(&self, _: &Tls) -> Result<Prepared, Vec<Unusable>> {
        match *self {}
    }
}

impl Prepared {
    pub(in crate::proxy) fn apply(self) {
        match self {}
    }
}
