//! The replacement of a listener's configuration when its files change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use log::{info, warn};
use parking_lot::RwLock;
use pingora_core::listeners::tls::ServerConfigSource;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::sync::watch;

use super::config::Loaded;
use crate::config::Tls;
use crate::metrics::METRICS;
use crate::proxy::signals;
use crate::proxy::tls::certificate::Warned;
use crate::proxy::tls::problem::Unusable;

/// The time between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(2);

/// The time for which a client that has proved its identity may resume its session. Otherwise a
/// certificate could be used for hours after its expiry.
const CLIENT_SESSION: Duration = Duration::from_secs(3600);

/// Replaces the configuration of a listener when its files change, and on SIGHUP.
pub(in crate::proxy) struct Reload {
    watched: Arc<Watched>,
    /// Each SIGHUP since the files were read first.
    hangups: watch::Receiver<()>,
}

struct Watched {
    settings: Tls,
    current: RwLock<Arc<Loaded>>,
    /// The files as they were before they were read first.
    first: Stamp,
}

/// The identity and the time of each file, none for a file that is not there. A symbolic link is
/// followed, so that a link to another file is a change.
type Stamp = Vec<Option<[i64; 7]>>;

/// The state of the files, as far as it is known.
struct Progress {
    /// The files as they are in use, or as they were when they could not be used.
    tried: Stamp,
    /// The files at the last look.
    seen: Stamp,
    /// The error of the last attempt.
    failed: Option<String>,
    /// The time at which the keys for tickets were made.
    tickets: Instant,
    warned: Warned,
}

// === impl Reload ===

impl Reload {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// As for [`Loaded::read`].
    pub fn new(settings: &Tls) -> Result<Reload, Vec<Unusable>> {
        // Before the files are read: a later change or SIGHUP is then noticed.
        let hangups = signals::hangups();
        let first = stamp(settings);
        let loaded = Loaded::read(settings)?;
        METRICS.tls.watch(&loaded.expiries());
        METRICS.tls.reload_failed.set(0);
        let watched = Arc::new(Watched {
            settings: settings.clone(),
            current: RwLock::new(Arc::new(loaded)),
            first,
        });
        Ok(Reload { watched, hangups })
    }

    /// The current configuration, for each handshake.
    pub fn source(&self) -> ServerConfigSource {
        let watched = self.watched.clone();
        Arc::new(move || watched.current.read().config.clone())
    }
}

#[async_trait]
impl BackgroundService for Reload {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangups = self.hangups.clone();
        let mut looks = tokio::time::interval(INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut progress = Progress::new(&self.watched);
        loop {
            let is_asked = tokio::select! {
                _ = looks.tick() => false,
                hangup = hangups.changed() => match hangup {
                    Ok(()) => true,
                    Err(_) => return,
                },
                // No handshake begins after that.
                _ = shutdown.changed() => return,
            };
            let watched = self.watched.clone();
            let look = tokio::task::spawn_blocking(move || {
                progress.look(&watched, is_asked);
                progress
            });
            match look.await {
                Ok(after) => progress = after,
                // The runtime ends.
                Err(_) => return,
            }
        }
    }
}

// === impl Progress ===

impl Progress {
    fn new(watched: &Watched) -> Progress {
        let mut warned = Warned::default();
        warned.warn_of(&watched.current.read().certificates);
        Progress {
            tried: watched.first.clone(),
            seen: watched.first.clone(),
            failed: None,
            tickets: Instant::now(),
            warned,
        }
    }

    /// Reads the files if they have changed, or if an operator asks for it.
    fn look(&mut self, watched: &Watched, is_asked: bool) {
        let now = stamp(&watched.settings);
        // Whoever writes several files writes one after the other. They are read when they have
        // rested for one interval.
        let rests = now == self.seen;
        let has_changed = now != self.tried;
        self.seen.clone_from(&now);
        if is_asked || (rests && (has_changed || self.failed.is_some())) {
            self.tried = now;
            self.reload(watched, is_asked);
        }
        if watched.settings.client_ca.is_some() && self.tickets.elapsed() >= CLIENT_SESSION {
            self.forget_sessions(watched);
        }
        let current = watched.current.read().clone();
        self.warned.warn_of(&current.certificates);
    }

    fn reload(&mut self, watched: &Watched, is_asked: bool) {
        let earlier = watched.current.read().clone();
        match Loaded::read_again(&watched.settings, &earlier) {
            Ok(loaded) => {
                METRICS.tls.watch(&loaded.expiries());
                METRICS.tls.reload_failed.set(0);
                METRICS.tls.reloads.inc();
                if !Arc::ptr_eq(&loaded.config.ticketer, &earlier.config.ticketer) {
                    self.tickets = Instant::now();
                }
                *watched.current.write() = Arc::new(loaded);
                self.failed = None;
                info!("server.tls: new connections use the certificates that the files hold now");
            }
            Err(problems) => {
                METRICS.tls.reload_failed.set(1);
                let lines: Vec<_> = problems.iter().map(|problem| problem.to_string()).collect();
                let lines = lines.join("; ");
                // The same problem is tried again at each look.
                if is_asked || self.failed.as_ref() != Some(&lines) {
                    warn!("the certificates in use are kept: {lines}");
                }
                self.failed = Some(lines);
            }
        }
    }

    fn forget_sessions(&mut self, watched: &Watched) {
        self.tickets = Instant::now();
        let current = watched.current.read().clone();
        match current.without_sessions() {
            Ok(loaded) => *watched.current.write() = Arc::new(loaded),
            Err(e) => warn!("server.tls: sessions of clients can be resumed for longer: {e}"),
        }
    }
}

fn stamp(settings: &Tls) -> Stamp {
    let identities = settings.identities();
    let files = identities.flat_map(|(_, certificate, key)| [certificate, key]);
    files
        .chain(settings.client_ca.as_deref())
        .map(stamp_of)
        .collect()
}

fn stamp_of(file: &Path) -> Option<[i64; 7]> {
    let found = fs::metadata(file).ok()?;
    Some([
        found.dev().cast_signed(),
        found.ino().cast_signed(),
        found.size().cast_signed(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ])
}
