//! The state that all requests share.

use std::sync::Arc;

use http::header::{self, HeaderName};
use tokio::sync::Semaphore;

use crate::cache::DiskCache;
use crate::config::Config;
use crate::http::rules::fields::RequestFields;
use crate::http::{CachingOptions, HttpCaching, RangeFillLimits};
use crate::metrics::{BucketTimes, METRICS, NO_BUCKET};
use crate::proxy::dot_segments::DotSegments;
use crate::proxy::errors;
use crate::proxy::health::Health;
use crate::proxy::negative_cache::NegativeCache;
use crate::proxy::passthrough::Passthrough;
use crate::proxy::settings::{Settings, SharedSettings, Surroundings};
use crate::proxy::top_keys::TopKeys;
use crate::proxy::traces::Tracer;
use crate::proxy::web::Siblings;
use crate::s3::Refreshed;

/// The request fields that the origin sees: ranges and conditions of the client or of the
/// cache. No other field affects the origin's answer.
pub(super) const FORWARDED: [HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// The most lists that are read for pages at a time. Each takes some megabytes of memory.
const MAX_PAGE_LISTS: usize = 8;

/// The proxy, with S3 behind it and the disk cache in between.
///
/// [`ProxyServer`](crate::proxy::server::ProxyServer) runs it. A server of your own takes it as any
/// other Pingora application:
///
/// ```no_run
/// use std::path::Path;
///
/// use pingora_core::server::{RunArgs, Server};
/// use pingora_sendfile::config::Config;
/// use pingora_sendfile::proxy::S3ProxyHttp;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::load(Path::new("config.yaml"))?;
/// let mut server = Server::new(None)?;
/// server.bootstrap();
/// let proxy = S3ProxyHttp::new(&config, None);
/// let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
/// service.add_tcp("127.0.0.1:8080");
/// server.add_service(service);
/// server.run(RunArgs::default());
/// # Ok(())
/// # }
/// ```
pub struct S3ProxyHttp {
    pub(super) settings: Arc<SharedSettings>,
    pub(super) caching: HttpCaching,
    pub(super) negative_cache: NegativeCache,
    pub(super) dot_segments: DotSegments,
    pub(super) passthrough: Passthrough,
    /// In seconds.
    pub(super) keepalive_timeout: Option<u64>,
    pub(super) tracer: Option<Arc<Tracer>>,
    /// The times of requests for no bucket.
    pub(super) other_times: Arc<BucketTimes>,
    pub(super) siblings: Siblings,
    /// Permits to read a list for a page.
    pub(super) page_lists: Semaphore,
    pub(super) health: Arc<Health>,
    pub(super) top_keys: Arc<TopKeys>,
}

// === impl S3ProxyHttp ===

impl S3ProxyHttp {
    /// A proxy for the buckets of `config`, which caches in `cache`.
    pub fn new(config: &Config, cache: Option<&'static DiskCache>) -> Self {
        S3ProxyHttp::within(Surroundings::default(), config, cache)
    }

    /// Like [`new`](Self::new), with what the configuration does not tell.
    pub(in crate::proxy) fn within(
        surroundings: Surroundings,
        config: &Config,
        cache: Option<&'static DiskCache>,
    ) -> Self {
        let surroundings = Surroundings {
            cache,
            ..surroundings
        };
        let tls = config.server.tls.as_ref();
        let hsts = tls.and_then(|tls| tls.hsts);
        let settings = SharedSettings::new(Settings::new(config, surroundings, None));
        let options = CachingOptions {
            hsts: hsts
                .map(|period| format!("max-age={}", period.as_secs()))
                .and_then(|value| value.try_into().ok()),
            // The proxy makes its own requests, with only the fields of FORWARDED.
            request_fields: RequestFields::Only(&[]),
            // Otherwise any client could force requests to S3.
            request_directives: false,
            judges_preconditions: true,
            range_fill: RangeFillLimits {
                in_flight: *config.cache.range_fill.max_in_flight,
                max_bytes: config.cache.range_fill.max_size_bytes(),
                bytes_in_flight: config
                    .cache
                    .range_fill
                    .max_in_flight_bytes(config.cache.disk.max_size_bytes()),
                client_bytes_per_minute: config.cache.range_fill.client_bytes_per_minute(),
                max_wait: *config.cache.range_fill.max_wait,
            },
            lock_age: *config.cache.lock_age,
            max_misses: *config.cache.max_misses,
            miss_timeout: *config.cache.miss_timeout,
            head_ttl: *config.cache.head_ttl,
            error_body: Some(errors::of_cache),
            client_address: Some(settings.clone()),
            ..CachingOptions::default()
        };
        let caching = HttpCaching::new(cache, options);
        METRICS.watch_misses(caching.origin_turns());
        let health = Arc::new(Health::new(config, settings.clone(), cache));
        METRICS.watch_origins(&health);
        S3ProxyHttp {
            settings,
            caching,
            negative_cache: NegativeCache::new(cache),
            dot_segments: DotSegments::new(),
            passthrough: Passthrough::new(cache),
            keepalive_timeout: config.server.keepalive_secs(),
            tracer: None,
            other_times: METRICS.times.of_bucket(NO_BUCKET),
            siblings: Siblings::new(cache),
            page_lists: Semaphore::new(MAX_PAGE_LISTS),
            health,
            top_keys: Arc::default(),
        }
    }

    /// Trace requests.
    pub fn trace_to(&mut self, tracer: Arc<Tracer>) {
        self.tracer = Some(tracer);
    }

    /// The settings that a reload replaces.
    pub fn settings(&self) -> Arc<SharedSettings> {
        self.settings.clone()
    }

    /// The health of the proxy.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The objects that clients request most.
    pub(in crate::proxy) fn top_keys(&self) -> &Arc<TopKeys> {
        &self.top_keys
    }

    /// The credentials that have to be looked up. Unless the caller starts the lookups, the first
    /// requests for an origin do, and wait.
    pub fn credentials(&self) -> Vec<Arc<Refreshed>> {
        let settings = self.settings.load();
        let credentials = settings.refreshed().map(|(_, found)| found);
        credentials.collect()
    }
}
