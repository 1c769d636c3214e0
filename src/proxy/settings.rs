//! The settings that a reload replaces while the proxy serves.
//!
//! [`Settings`] are made from the configuration in one place, and are replaced at once. A request keeps
//! those with which it began. What requests share beyond a reload (the cache, locks, remembered
//! answers) is not part of them.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use pingora_proxy::Session;
use tokio::sync::watch;

use super::access_log::{AccessLog, Redactor};
use super::auth::Auth;
use super::authorities::Authorities;
use super::bucket_rules::{ListRules, RelayRules};
use super::cache_key::CacheKeys;
use super::front::TrustedProxies;
use super::limits::rates::Rates;
use super::limits::RequestLimits;
use super::origin_health::OriginHealth;
use super::redirect::Redirect;
use super::resolve::Resolver;
use super::retries::Budget;
use super::rules::Rules;
use super::web::{Website, Websites};
use crate::cache::DiskCache;
use crate::config::{
    self, AssumeRole, BucketName, Config, CredentialsFrom, KeyPrefix, Region, Secret, Service,
};
use crate::http::ClientAddress;
use crate::metrics::{BucketTimes, METRICS};
use crate::s3::{Refreshed, Router, Site};

/// The settings that a reload replaces.
pub struct Settings {
    pub(super) keys: CacheKeys,
    pub(super) auth: Auth,
    pub(super) rules: Rules,
    /// The longest wait for the origin if a stale response can be served instead.
    pub(super) stale_timeout: Option<Duration>,
    /// By the bucket's place in the configuration.
    pub(super) lists: Vec<ListRules>,
    pub(super) relays: RelayRules,
    pub(super) authorities: Authorities,
    pub(super) resolver: Resolver,
    /// By the bucket's place in the configuration.
    buckets: Vec<BucketState>,
    pub(super) write_timeout: Option<Duration>,
    pub(super) min_send_rate: Option<usize>,
    /// The answer to requests without TLS, if they are not served.
    pub(super) redirect: Option<Redirect>,
    pub(super) access_log: Option<Arc<AccessLog>>,
    pub(super) front: TrustedProxies,
    pub(super) websites: Websites,
    pub(super) limits: RequestLimits,
    /// The limits as they are configured, for those of connections.
    pub(super) configured_limits: config::Limits,
    pub(super) rates: Option<Arc<Rates>>,
    /// Keeps secrets out of traces.
    pub(super) redactor: Redactor,
}

/// The state that a bucket keeps as long as its configuration does not change.
struct BucketState {
    access: Access,
    /// Differs from that of any other way to reach a bucket.
    number: u64,
    budget: Arc<Budget>,
    /// Those of all buckets with this name.
    times: Arc<BucketTimes>,
    health: Arc<OriginHealth>,
}

/// The part of the configuration that decides on the answers of a bucket's origin.
#[derive(PartialEq)]
struct Access {
    bucket: Option<BucketName>,
    region: Region,
    endpoint: Option<Service>,
    key_prefix: Option<KeyPrefix>,
    keys: [Option<Secret>; 3],
    credentials: Option<CredentialsFrom>,
    role: Option<AssumeRole>,
    auth: config::Auth,
}

/// The facts on which settings depend, beside the configuration.
#[derive(Default)]
pub(super) struct Surroundings {
    /// The port of the HTTPS listener.
    pub(super) https_port: Option<u16>,
    pub(super) access_log: Option<Arc<AccessLog>>,
    /// Only for the first settings; others have that of the former ones.
    pub(super) cache: Option<&'static DiskCache>,
}

/// The current settings.
pub struct SharedSettings {
    current: ArcSwap<Settings>,
    replaced: watch::Sender<()>,
    /// Another process accepts connections too, and this one is about to end.
    is_retiring: AtomicBool,
}

/// A bucket, in the settings with which a request began.
#[derive(Clone)]
pub(super) struct Served {
    settings: Arc<Settings>,
    index: usize,
}

// === impl Settings ===

impl Settings {
    /// The settings of `config`. What belongs to buckets that do not change is that of `former`.
    pub(super) fn new(
        config: &Config,
        surroundings: Surroundings,
        former: Option<&Settings>,
    ) -> Settings {
        let min_send_rate = *config.server.min_send_rate;
        let keys = CacheKeys::after(config, former.map(|former| &former.keys));
        let mut redirect = config.server.tls.as_ref().and_then(Redirect::of);
        if let (Some(redirect), Some(port)) = (&mut redirect, surroundings.https_port) {
            redirect.set_chosen_port(port);
        }
        let resolver = former.map_or_else(Resolver::default, |former| {
            let sites = keys.router().sites().iter();
            Resolver::after(
                &former.resolver,
                sites.map(|site| (site.connect_host(), site.port())),
            )
        });
        let of_former = former.map_or(&[][..], |former| &former.buckets);
        let sites = keys.router().sites().iter();
        let buckets = config.buckets.iter().zip(sites);
        let buckets = buckets.map(|(of, site)| BucketState::new(of, site, config, of_former));
        let buckets = buckets.collect();
        Settings {
            authorities: Authorities::load(
                keys.router().sites(),
                former.map(|former| &former.authorities),
            ),
            resolver,
            keys,
            auth: Auth::new(config),
            rules: Rules::new(&config.cache),
            stale_timeout: config.cache.stale_timeout.non_zero(),
            lists: config.buckets.iter().map(ListRules::of).collect(),
            relays: RelayRules::new(config),
            buckets,
            write_timeout: config.server.write_timeout.non_zero(),
            min_send_rate: (min_send_rate > 0).then_some(min_send_rate),
            redirect,
            access_log: surroundings.access_log,
            front: TrustedProxies::new(config),
            websites: Websites::new(
                config,
                surroundings.cache,
                former.map(|former| &former.websites),
            ),
            limits: RequestLimits::new(&config.limits),
            configured_limits: config.limits.clone(),
            rates: Rates::after(
                &config.limits,
                former.and_then(|former| former.rates.as_ref()),
            ),
            redactor: Redactor::new(config),
        }
    }

    /// The buckets.
    pub(super) fn router(&self) -> &Router {
        self.keys.router()
    }

    /// The health of all origins, in the order of the configuration.
    pub(super) fn origins(&self) -> Vec<Arc<OriginHealth>> {
        let origins = self.buckets.iter().map(|bucket| bucket.health.clone());
        origins.collect()
    }

    /// The credentials that are looked up, each with the name of its bucket.
    pub(super) fn refreshed(&self) -> impl Iterator<Item = (String, Arc<Refreshed>)> + '_ {
        self.router().sites().iter().filter_map(|site| {
            let refreshed = site.signer()?.refreshed()?;
            Some((site.bucket().to_owned(), refreshed.clone()))
        })
    }
}

// === impl BucketState ===

impl BucketState {
    fn new(
        bucket: &config::Bucket,
        site: &Site,
        config: &Config,
        former: &[BucketState],
    ) -> BucketState {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let access = Access::of(bucket);
        let kept = former.iter().find(|former| former.access == access);
        BucketState {
            number: kept.map_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed), |kept| kept.number),
            budget: kept.map_or_else(Arc::default, |kept| kept.budget.clone()),
            times: METRICS
                .times
                .of_bucket(bucket.bucket.as_deref().unwrap_or_default()),
            health: kept.map_or_else(
                || Arc::new(OriginHealth::new(site, &config.health)),
                |kept| kept.health.clone(),
            ),
            access,
        }
    }
}

// === impl Access ===

impl Access {
    fn of(bucket: &config::Bucket) -> Access {
        Access {
            bucket: bucket.bucket.clone(),
            region: bucket.region.clone(),
            endpoint: bucket.endpoint.clone(),
            key_prefix: bucket.key_prefix.clone(),
            keys: [
                bucket.access_key.clone(),
                bucket.secret_key.clone(),
                bucket.session_token.clone(),
            ],
            credentials: bucket.credentials,
            role: bucket.assume_role.clone(),
            auth: bucket.auth,
        }
    }
}

// === impl SharedSettings ===

impl SharedSettings {
    pub(super) fn new(settings: Settings) -> Arc<SharedSettings> {
        METRICS.watch_credentials(settings.refreshed());
        Arc::new(SharedSettings {
            current: ArcSwap::from_pointee(settings),
            replaced: watch::Sender::new(()),
            is_retiring: AtomicBool::new(false),
        })
    }

    /// The current settings, for a moment without an `.await`.
    #[inline]
    pub(super) fn load(&self) -> Guard<Arc<Settings>> {
        self.current.load()
    }

    /// The current settings, for longer.
    pub(super) fn get(&self) -> Arc<Settings> {
        self.current.load_full()
    }

    /// Replace the settings for requests that begin from now on.
    pub(super) fn replace(&self, settings: Settings) {
        METRICS.watch_credentials(settings.refreshed());
        self.current.store(Arc::new(settings));
        self.replaced.send_replace(());
    }

    /// True if another process serves new connections, so that clients should leave this one.
    pub(super) fn is_retiring(&self) -> bool {
        self.is_retiring.load(Ordering::Relaxed)
    }

    pub(super) fn set_retiring(&self, is_retiring: bool) {
        self.is_retiring.store(is_retiring, Ordering::Relaxed);
    }

    /// Each replacement from now on.
    pub(super) fn replacements(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }
}

impl ClientAddress for SharedSettings {
    fn of(&self, session: &Session) -> Option<IpAddr> {
        self.load().front.client_of(session)
    }
}

impl fmt::Debug for SharedSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSettings")
    }
}

// === impl Served ===

impl Served {
    /// A bucket of the router of `settings`.
    #[inline]
    pub(super) fn new(settings: &Arc<Settings>, site: &Site) -> Served {
        Served {
            settings: settings.clone(),
            index: site.index(),
        }
    }

    /// The settings with which the request began.
    #[inline]
    pub(super) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The settings as a website, if the bucket has any.
    #[inline]
    pub(super) fn website(&self) -> Option<&Arc<Website>> {
        self.settings.websites.of(self.index)
    }

    /// The budget for repetitions of requests to the origin.
    pub(super) fn budget(&self) -> &Budget {
        &self.settings.buckets[self.index].budget
    }

    /// The times of its requests.
    pub(super) fn times(&self) -> &BucketTimes {
        &self.settings.buckets[self.index].times
    }

    /// The health of the origin.
    pub(super) fn health(&self) -> &OriginHealth {
        &self.settings.buckets[self.index].health
    }

    /// The number of the way to reach the origin. It changes when the origin may answer otherwise.
    pub(super) fn access(&self) -> u64 {
        self.settings.buckets[self.index].number
    }
}

impl Deref for Served {
    type Target = Site;

    #[inline]
    fn deref(&self) -> &Site {
        &self.settings.keys.router().sites()[self.index]
    }
}
