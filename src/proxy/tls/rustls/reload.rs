//! The replacement of a listener's configuration when its files change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use log::{info, warn};
use parking_lot::{Mutex, RwLock};
use pingora_core::listeners::tls::ServerConfigSource;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

use super::config::Loaded;
use crate::config::Tls;
use crate::metrics::METRICS;
use crate::proxy::tls::certificate::Warned;
use crate::proxy::tls::problem::Unusable;

/// The time between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(2);

/// The time for which a client that has proved its identity may resume its session. Otherwise a
/// certificate could be used for hours after its expiry.
const CLIENT_SESSION: Duration = Duration::from_secs(3600);

/// Replaces the configuration of a listener when its files change.
pub(in crate::proxy) struct Reload(Certificates);

/// The configuration of a listener, to be replaced when an operator asks for it.
#[derive(Clone)]
pub(in crate::proxy) struct Certificates(Arc<Watched>);

/// A configuration that can take the place of the current one.
pub(in crate::proxy) struct Prepared {
    watched: Arc<Watched>,
    settings: Tls,
    /// The files as they were before they were read.
    tried: Stamp,
    earlier: Arc<Loaded>,
    loaded: Loaded,
}

struct Watched {
    current: RwLock<Arc<Loaded>>,
    progress: Mutex<Progress>,
}

/// The identity and the time of each file, none for a file that is not there. A symbolic link is
/// followed, so that a link to another file is a change.
type Stamp = Vec<Option<[i64; 7]>>;

/// The state of the files, as far as it is known.
struct Progress {
    settings: Tls,
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
        // Before the files are read: a later change is then noticed.
        let first = stamp(settings);
        let loaded = Loaded::read(settings)?;
        METRICS.tls.watch(&loaded.expiries());
        METRICS.tls.reload_failed.set(0);
        let mut warned = Warned::default();
        warned.warn_of(&loaded.certificates);
        let progress = Progress {
            settings: settings.clone(),
            tried: first.clone(),
            seen: first,
            failed: None,
            tickets: Instant::now(),
            warned,
        };
        Ok(Reload(Certificates(Arc::new(Watched {
            current: RwLock::new(Arc::new(loaded)),
            progress: Mutex::new(progress),
        }))))
    }

    /// The current configuration, for each handshake.
    pub fn source(&self) -> ServerConfigSource {
        let watched = self.0 .0.clone();
        Arc::new(move || watched.current.read().config.clone())
    }

    /// The same configuration, for an operator.
    pub fn certificates(&self) -> Certificates {
        self.0.clone()
    }
}

#[async_trait]
impl BackgroundService for Reload {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut looks = tokio::time::interval(INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                // No handshake begins after that.
                _ = shutdown.changed() => return,
            }
            let watched = self.0 .0.clone();
            let look = tokio::task::spawn_blocking(move || watched.look());
            // An error means that the runtime ends.
            if look.await.is_err() {
                return;
            }
        }
    }
}

// === impl Certificates ===

impl Certificates {
    /// Reads the files of `settings`, because an operator asks for it.
    ///
    /// # Errors
    /// All files that cannot be used. They are logged, and the earlier configuration is kept.
    pub fn prepare(&self, settings: &Tls) -> Result<Prepared, Vec<Unusable>> {
        let tried = stamp(settings);
        let earlier = self.0.current.read().clone();
        match Loaded::read_again(settings, &earlier) {
            Ok(loaded) => Ok(Prepared {
                watched: self.0.clone(),
                settings: settings.clone(),
                tried,
                earlier,
                loaded,
            }),
            Err(problems) => {
                let mut progress = self.0.progress.lock();
                // The files in use may be others.
                if stamp(&progress.settings) == tried {
                    progress.tried = tried;
                    progress.fail(&problems, true);
                }
                Err(problems)
            }
        }
    }
}

// === impl Prepared ===

impl Prepared {
    /// Uses this configuration for new connections.
    pub fn apply(self) {
        let mut progress = self.watched.progress.lock();
        progress.settings = self.settings;
        progress.seen.clone_from(&self.tried);
        progress.tried = self.tried;
        progress.replace(&self.watched, &self.earlier, self.loaded);
        let current = self.watched.current.read().clone();
        progress.warned.warn_of(&current.certificates);
    }
}

// === impl Watched ===

impl Watched {
    /// Reads the files if they have changed. It takes the lock for as long as it reads; an operator who
    /// asks for the same waits.
    fn look(&self) {
        let mut progress = self.progress.lock();
        let now = stamp(&progress.settings);
        // Whoever writes several files writes one after the other. They are read when they have
        // rested for one interval.
        let rests = now == progress.seen;
        let has_changed = now != progress.tried;
        progress.seen.clone_from(&now);
        if rests && (has_changed || progress.failed.is_some()) {
            progress.tried = now;
            let earlier = self.current.read().clone();
            match Loaded::read_again(&progress.settings, &earlier) {
                Ok(loaded) => progress.replace(self, &earlier, loaded),
                Err(problems) => progress.fail(&problems, false),
            }
        }
        if progress.settings.client_ca.is_some() && progress.tickets.elapsed() >= CLIENT_SESSION {
            progress.forget_sessions(self);
        }
        let current = self.current.read().clone();
        progress.warned.warn_of(&current.certificates);
    }
}

// === impl Progress ===

impl Progress {
    fn replace(&mut self, watched: &Watched, earlier: &Loaded, loaded: Loaded) {
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

    fn fail(&mut self, problems: &[Unusable], is_asked: bool) {
        METRICS.tls.reload_failed.set(1);
        let lines: Vec<_> = problems.iter().map(|problem| problem.to_string()).collect();
        let lines = lines.join("; ");
        // The same problem is tried again at each look.
        if is_asked || self.failed.as_ref() != Some(&lines) {
            warn!("the certificates in use are kept: {lines}");
        }
        self.failed = Some(lines);
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
