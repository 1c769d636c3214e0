//! The reload of the configuration while the proxy serves.
//!
//! A reload reads and checks everything before it replaces anything, so a mistake changes nothing. One
//! reload at a time is made, on a thread that serves nobody.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use log::{error, info, warn};
use parking_lot::Mutex;
use pingora_core::server::{ExecutionPhase, ShutdownWatch};
use pingora_core::services::background::BackgroundService;
use tokio::io::BufStream;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{spawn_blocking, JoinSet};

use super::access_log::AccessLog;
use super::control::{self, Bound, Control, Order, Report};
use super::notify;
use super::preflight;
use super::settings::{Settings, SharedSettings, Surroundings};
use super::tls::{self, Certificates};
use super::upgrade::{Sockets, Upgrader, Wanted};
use crate::config::Config;
use crate::metrics::METRICS;
use crate::s3::Refreshed;

/// The most orders at a time. Further ones are closed without a report.
const MAX_ORDERS: usize = 8;

/// Reads the configuration again on SIGHUP and on the order of a command, and keeps the credentials of the current one.
#[derive(Clone)]
pub(super) struct Reloader(Arc<Inner>);

struct Inner {
    /// The configuration with which the process was started.
    started: Config,
    settings: Arc<SharedSettings>,
    /// Held by the reload that is made.
    turn: Mutex<()>,
    https_port: Option<u16>,
    certificates: Option<Certificates>,
    upgrader: Upgrader,
    /// The socket for orders, until the service starts.
    bound: Mutex<Option<Bound>>,
    /// Each SIGHUP since the configuration was read first.
    hangups: watch::Receiver<()>,
}

/// A reload that was made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reloaded {
    /// The keys and sections that have changed and need a restart.
    pub(super) needs_restart: Vec<String>,
}

// === impl Reloader ===

impl Reloader {
    /// Reloads of the file of `config`, with which the process was started, into `settings`.
    pub(super) fn new(
        config: &Config,
        settings: Arc<SharedSettings>,
        https_port: Option<u16>,
        certificates: Option<Certificates>,
        upgrader: Upgrader,
        hangups: watch::Receiver<()>,
    ) -> Reloader {
        METRICS.reload.loaded();
        Reloader(Arc::new(Inner {
            started: config.clone(),
            settings,
            turn: Mutex::new(()),
            https_port,
            certificates,
            upgrader,
            bound: Mutex::default(),
            hangups,
        }))
    }

    /// Listens for orders from now on. Without this, the service does when it starts, as a process must
    /// that takes over from another one.
    pub(super) fn bind(&self) {
        *self.0.bound.lock() = self.bound();
    }

    /// Reads the configuration again and applies what a running process can apply. It blocks.
    ///
    /// # Errors
    /// The mistakes, one a line. Nothing has changed.
    pub(super) fn reload(&self) -> Result<Reloaded, String> {
        let file = self.0.started.file().display();
        let turn = self.0.turn.lock();
        notify::reloading();
        let outcome = self.0.reload();
        match &outcome {
            Ok(reloaded) => {
                info!("{file}: requests from now on use the configuration that the file holds now");
                if !reloaded.needs_restart.is_empty() {
                    warn!("{file}: {reloaded}");
                }
                METRICS.reload.succeeded(reloaded.needs_restart.len());
                notify::ready("Serving");
            }
            Err(why) => {
                // Before the metric, so that an alert finds it in the log.
                for line in why.lines() {
                    error!("the configuration in use is kept: {line}");
                }
                METRICS.reload.failed();
                notify::ready("Serving with the configuration of before a reload that has failed");
            }
        }
        drop(turn);
        outcome
    }
}

#[async_trait]
impl BackgroundService for Reloader {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut replacements = self.0.settings.replacements();
        let mut hangups = self.0.hangups.clone();
        let mut phases = self.0.upgrader.phases();
        let mut is_replaced = false;
        let mut control = self.listen().await;
        let mut orders = JoinSet::new();
        loop {
            // These tasks outlive the shutdown signal, because transfers do.
            for (_, credentials) in self.0.settings.load().refreshed() {
                Refreshed::start(&credentials);
            }
            let next = async {
                match &control {
                    Some(control) => control.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                replaced = replacements.changed() => match replaced {
                    Ok(()) => {}
                    Err(_) => break,
                },
                hangup = hangups.changed() => match hangup {
                    Ok(()) => {
                        let reloader = self.clone();
                        orders.spawn(async move {
                            let _ = reloader.reload_off_thread().await;
                        });
                    }
                    Err(_) => break,
                },
                client = next => {
                    if orders.len() < MAX_ORDERS {
                        orders.spawn(self.clone().obey(client));
                    }
                }
                phase = phases.recv() => match phase {
                    Ok(ExecutionPhase::GracefulUpgradeCloseTimeout) => {
                        is_replaced = true;
                        self.0.settings.set_retiring(true);
                    }
                    // The other process, which does not serve after all, may have taken the socket.
                    Ok(ExecutionPhase::Running) if is_replaced => {
                        is_replaced = false;
                        self.0.settings.set_retiring(false);
                        control = self.listen().await;
                    }
                    _ => {}
                },
                Some(_) = orders.join_next() => {}
                // An error means that no shutdown can be signalled any more.
                _ = shutdown.changed() => break,
            }
        }
        if !is_replaced {
            notify::stopping();
        }
        // Those who have given an order wait for the report.
        while orders.join_next().await.is_some() {}
    }
}

impl Reloader {
    /// Listens for orders, if the configuration names a socket.
    async fn listen(&self) -> Option<Control> {
        let reloader = self.clone();
        let bound = spawn_blocking(move || {
            let bound = reloader.0.bound.lock().take();
            bound.or_else(|| reloader.bound())
        });
        // An error means that the process ends.
        let bound = bound.await.ok()??;
        bound.listen().map_err(|e| self.warn_unbound(&e)).ok()
    }

    fn bound(&self) -> Option<Bound> {
        let path = self.0.started.server.control_sock.as_deref()?;
        Bound::new(path).map_err(|e| self.warn_unbound(&e)).ok()
    }

    fn warn_unbound(&self, e: &io::Error) {
        warn!(
            "server.control_sock: cannot listen there: {e}; the commands reload and upgrade do not reach this \
             process, write the path of a socket in a folder of the proxy's own"
        );
    }

    /// Carries out the order of a client.
    async fn obey(self, client: UnixStream) {
        let mut client = BufStream::new(client);
        let Some(order) = control::order(&mut client).await else {
            return;
        };
        let report = match order {
            Order::Reload { config } => self.reload_for(&config).await,
            Order::Upgrade {
                binary,
                config,
                upgrade_sock,
            } => {
                let wanted = Wanted { binary, config };
                self.upgrade(wanted, upgrade_sock.as_deref()).await
            }
            Order::Explain { why } => {
                self.0.upgrader.explain(why);
                Report::done(Vec::new())
            }
        };
        control::answer(&mut client, &report).await;
    }

    /// Replaces this process by a new one, which waits at `upgrade_sock`.
    async fn upgrade(&self, wanted: Wanted, upgrade_sock: Option<&Path>) -> Report {
        let server = &self.0.started.server;
        let (own, control) = (
            server.upgrade_sock.as_deref(),
            server.control_sock.as_deref(),
        );
        let (Some(own), Some(control)) = (own, control) else {
            return Report::failed(
                "server.upgrade_sock is missing in the configuration of the running proxy",
            );
        };
        if upgrade_sock != Some(own) {
            return Report::failed(&format!(
                "server.upgrade_sock: the running proxy has {}; write the same",
                own.display()
            ));
        }
        let sockets = Sockets {
            upgrade: own,
            control,
        };
        self.0.upgrader.run(wanted, sockets).await
    }

    async fn reload_off_thread(&self) -> Result<Reloaded, String> {
        let reloader = self.clone();
        let reload = spawn_blocking(move || reloader.reload());
        reload
            .await
            .unwrap_or_else(|_| Err("the process ends".to_owned()))
    }

    /// Reads the configuration again for an operator who has named its file.
    async fn reload_for(&self, config: &Path) -> Report {
        let own = self.0.started.file();
        let canonical = tokio::fs::canonicalize(own).await;
        let is_own = canonical.is_ok_and(|own| own == config);
        if !is_own {
            return Report::failed(&format!(
                "{} is not the file of the running proxy, which is {}; name that one",
                config.display(),
                own.display()
            ));
        }
        match self.reload_off_thread().await {
            Ok(reloaded) => {
                let mut lines = vec![format!("{}: reloaded", own.display())];
                if !reloaded.needs_restart.is_empty() {
                    lines.push(reloaded.to_string());
                }
                Report::done(lines)
            }
            Err(why) => Report::failed(&why),
        }
    }
}

// === impl Inner ===

impl Inner {
    fn reload(&self) -> Result<Reloaded, String> {
        let former = self.settings.get();
        let mut config = Config::load(self.started.file()).map_err(|e| e.to_string())?;
        let unfit = preflight::check_reloaded(&config);
        if !unfit.is_empty() {
            let lines = unfit.iter().map(|unfit| {
                let mistake = config.mistake(unfit.key(), unfit.what());
                mistake.to_string()
            });
            return Err(lines.collect::<Vec<_>>().join("\n"));
        }
        let needs_restart = config.restart_needed(&self.started, self.certificates.is_some());
        if self.started.server.tls.is_none() || config.server.tls.is_none() {
            // Without the listener, or with one that goes on, the rest of the section has no meaning.
            config.server.tls.clone_from(&self.started.server.tls);
        }
        let prepared = match (&self.certificates, &config.server.tls) {
            (Some(certificates), Some(tls)) => {
                let prepared = certificates.prepare(tls);
                let prepared = prepared.map_err(|problems| mistakes(&config, &problems))?;
                Some(prepared)
            }
            _ => None,
        };
        let access_log = AccessLog::open_again(&config, former.access_log.as_deref())
            .map_err(|e| format!("access_log: {e}"))?;
        let surroundings = Surroundings {
            https_port: self.https_port,
            access_log,
            cache: None,
        };
        let new = Settings::new(&config, surroundings, Some(&former));
        if let Some(prepared) = prepared {
            prepared.apply();
        }
        self.settings.replace(new);
        Ok(Reloaded { needs_restart })
    }
}

/// The problems with the files of the listener, one a line.
fn mistakes(config: &Config, problems: &[tls::Unusable]) -> String {
    let lines = problems.iter().map(|problem| {
        let key = format!("server.tls.{}", problem.key);
        config.mistake(&key, &problem.what).to_string()
    });
    lines.collect::<Vec<_>>().join("\n")
}

// === impl Reloaded ===

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs a restart: {}", self.needs_restart.join(", "))
    }
}
