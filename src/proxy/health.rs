//! The readiness of the proxy for clients.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::origin_health::OriginHealth;
use super::settings::SharedSettings;
use crate::cache::DiskCache;
use crate::config::{self, Config};

/// The state of the process that decides on its readiness.
pub struct Health {
    ready: config::Ready,
    cache: Option<&'static DiskCache>,
    /// All entries of earlier runs have been found once. Those of a disk that comes back later are
    /// looked for again.
    is_started: AtomicBool,
    is_draining: AtomicBool,
    is_stopping: AtomicBool,
    /// True while connections are to end.
    leaving: watch::Sender<bool>,
    settings: Arc<SharedSettings>,
}

// === impl Health ===

impl Health {
    /// The health of a proxy with these settings.
    pub(super) fn new(
        config: &Config,
        settings: Arc<SharedSettings>,
        cache: Option<&'static DiskCache>,
    ) -> Health {
        Health {
            ready: config.health.ready.clone(),
            cache,
            is_started: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            leaving: watch::Sender::new(false),
            settings,
        }
    }

    /// True while an operator has the proxy drained.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Begin or end to send clients away: HTTP/1 connections end with their next response, those of
    /// HTTP/2 with the requests that they have.
    pub fn drain(&self, begin: bool) {
        self.is_draining.store(begin, Ordering::Relaxed);
        let is_stopping = self.is_stopping.load(Ordering::Relaxed);
        self.leaving.send_replace(begin || is_stopping);
    }

    /// Note that the process shuts down.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.leaving.send_replace(true);
    }

    /// The signal for connections to end.
    pub(super) fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
    }

    /// The health of all origins, in the order of the configuration.
    pub(crate) fn origins(&self) -> Vec<Arc<OriginHealth>> {
        self.settings.load().origins()
    }

    /// The reasons for which clients should go elsewhere, a line each. Empty: the proxy is ready.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.is_stopping.load(Ordering::Relaxed) {
            reasons.push("shutting down".to_owned());
        }
        if self.ready.draining && self.is_draining() {
            reasons.push("draining".to_owned());
        }
        if let Some(cache) = self.cache {
            if self.ready.starting && !self.is_started(cache) {
                let percent = (cache.recovery_ratio() * 100.0).floor();
                reasons.push(format!("starting: {percent} % of the cache is listed"));
            }
            if self.ready.disk && !cache.folders().any(|folder| folder.is_up) {
                reasons.push("disk down: no directory of the cache can be used".to_owned());
            }
        }
        if self.ready.origin {
            let now = Instant::now();
            for origin in self.origins() {
                reasons.extend(origin.down(now).map(|down| origin.describe(&down, now)));
            }
        }
        reasons
    }

    fn is_started(&self, cache: &DiskCache) -> bool {
        if !self.is_started.load(Ordering::Relaxed) && cache.is_listed() {
            self.is_started.store(true, Ordering::Relaxed);
        }
        self.is_started.load(Ordering::Relaxed)
    }
}
