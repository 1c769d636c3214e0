//! The state that all requests share.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderName};

use crate::cache::DiskCache;
use crate::config::Config;
use crate::http::rules::fields::RequestFields;
use crate::http::{CachingOptions, HttpCaching, RangeFillLimits};
use crate::metrics::METRICS;
use crate::proxy::access_log::AccessLog;
use crate::proxy::auth::Auth;
use crate::proxy::authorities::Authorities;
use crate::proxy::buckets::ListRules;
use crate::proxy::cache_key::CacheKeys;
use crate::proxy::dot_segments::DotSegments;
use crate::proxy::errors;
use crate::proxy::front::TrustedProxies;
use crate::proxy::negative_cache::NegativeCache;
use crate::proxy::passthrough::Passthrough;
use crate::proxy::redirect::Redirect;
use crate::proxy::resolve::Resolver;
use crate::proxy::retries::Budget;
use crate::proxy::rules::Rules;
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
    pub(super) keys: CacheKeys,
    pub(super) auth: Auth,
    pub(super) caching: HttpCaching,
    pub(super) negative_cache: NegativeCache,
    pub(super) rules: Rules,
    /// The longest wait for the origin if a stale response can be served instead.
    pub(super) stale_timeout: Option<Duration>,
    pub(super) dot_segments: DotSegments,
    /// By the bucket's place in the configuration.
    pub(super) lists: Vec<ListRules>,
    pub(super) passthrough: Passthrough,
    pub(super) resolver: Resolver,
    pub(super) authorities: Authorities,
    /// By the bucket's place in the configuration.
    pub(super) budgets: Vec<Budget>,
    pub(super) write_timeout: Option<Duration>,
    pub(super) min_send_rate: Option<usize>,
    /// In seconds.
    pub(super) keepalive_timeout: Option<u64>,
    /// The answer to requests without TLS, if they are not served.
    pub(super) redirect: Option<Redirect>,
    pub(super) access_log: Option<Arc<AccessLog>>,
    pub(super) front: TrustedProxies,
}

// === impl S3ProxyHttp ===

impl S3ProxyHttp {
    /// A proxy for the buckets of `config`, which caches in `cache`.
    pub fn new(config: &Config, cache: Option<&'static DiskCache>) -> Self {
        let tls = config.server.tls.as_ref();
        let hsts = tls.and_then(|tls| tls.hsts);
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
            ..CachingOptions::default()
        };
        let min_send_rate = *config.server.min_send_rate;
        let caching = HttpCaching::new(cache, options);
        METRICS.watch_misses(caching.origin_turns());
        let rules = Rules::new(&config.cache);
        let keys = CacheKeys::new(config);
        METRICS.watch_credentials(refreshed(&keys));
        let authorities = Authorities::load(keys.router().sites());
        let budgets = keys.router().sites().iter().map(|_| Budget::new());
        S3ProxyHttp {
            budgets: budgets.collect(),
            authorities,
            keys,
            auth: Auth::new(config),
            caching,
            negative_cache: NegativeCache::new(cache),
            rules,
            stale_timeout: config.cache.stale_timeout.non_zero(),
            dot_segments: DotSegments::new(),
            lists: config.buckets.iter().map(ListRules::of).collect(),
            passthrough: Passthrough::new(config, cache),
            resolver: Resolver::default(),
            write_timeout: config.server.write_timeout.non_zero(),
            min_send_rate: (min_send_rate > 0).then_some(min_send_rate),
            keepalive_timeout: config.server.keepalive_secs(),
            redirect: tls.and_then(Redirect::of),
            access_log: None,
            front: TrustedProxies::new(config),
        }
    }

    /// Log all requests of clients.
    pub fn log_to(&mut self, log: Arc<AccessLog>) {
        self.access_log = Some(log);
    }

    /// Redirect requests without TLS to this port if the configuration lets the kernel choose the
    /// port of the HTTPS listener.
    pub(in crate::proxy) fn set_chosen_https_port(&mut self, port: u16) {
        if let Some(redirect) = &mut self.redirect {
            redirect.set_chosen_port(port);
        }
    }

    /// The credentials that have to be looked up. Unless the caller starts the lookups, the first
    /// requests for an origin do, and wait.
    pub fn credentials(&self) -> Vec<Arc<Refreshed>> {
        refreshed(&self.keys).map(|(_, found)| found).collect()
    }
}

/// The buckets whose credentials are looked up, with these credentials.
fn refreshed(keys: &CacheKeys) -> impl Iterator<Item = (String, Arc<Refreshed>)> + '_ {
    keys.router().sites().iter().filter_map(|origin| {
        let refreshed = origin.signer()?.refreshed()?;
        Some((origin.bucket().to_owned(), refreshed.clone()))
    })
}
