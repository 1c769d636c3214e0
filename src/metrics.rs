//! Prometheus metrics.
//!
//! Nothing is registered anywhere by itself. A host registers the collectors where it likes:
//! [`CacheCollector`] for each of its caches, [`ProcessCollector`] if it uses the S3 proxy or
//! the log. [`MetricsApp`] serves both.
//!
//! ```
//! use prometheus::Registry;
//! use pingora_sendfile::metrics::ProcessCollector;
//!
//! # fn main() -> prometheus::Result<()> {
//! let registry = Registry::new_custom(Some("edge".into()), None)?;
//! registry.register(Box::new(ProcessCollector))?;
//! // A collector that is registered already is an error, and changes nothing.
//! assert!(registry.register(Box::new(ProcessCollector)).is_err());
//! assert!(registry.gather().iter().any(|family| family.name() == "edge_cache_hits_total"));
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "s3-proxy")]
mod latency;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;
#[cfg(feature = "s3-proxy")]
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::header::{ALLOW, CONTENT_LENGTH};
use http::{HeaderValue, Method, Response, StatusCode};
use parking_lot::Mutex;
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::listeners::ConnectionLimit;
use pingora_core::protocols::http::ServerSession;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

#[cfg(feature = "s3-proxy")]
use self::latency::TimesMetrics;
#[cfg(feature = "s3-proxy")]
pub(crate) use self::latency::{BucketTimes, NO_BUCKET};
use crate::cache::{Cause, Counter, DiskCache, Eviction};
use crate::http::origin_turns::OriginTurns;
#[cfg(feature = "s3-proxy")]
use crate::proxy::health::Health;
#[cfg(feature = "s3-proxy")]
use crate::proxy::limits::Limit;
#[cfg(feature = "s3-proxy")]
use crate::proxy::status;
#[cfg(feature = "s3-proxy")]
use crate::proxy::way::Way;
#[cfg(feature = "s3-proxy")]
use crate::s3::Refreshed;

/// The longest wait for a client that takes no bytes of its response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The counters and gauges of the whole process.
pub struct Metrics {
    /// Responses of which at least a part went by sendfile.
    pub sendfile: IntCounter,
    /// Body bytes that sendfile moved, not what was merely eligible.
    pub sendfile_bytes: IntCounter,
    /// Responses from the cache without a request to the origin.
    pub hits: IntCounter,
    /// Responses that needed the origin.
    pub misses: IntCounter,
    /// Requests sent to the origin, retries included.
    pub origin_requests: IntCounter,
    /// Error statuses of the origin, by class.
    pub origin_error_responses: IntCounterVec,
    /// Requests to the origin that were repeated.
    pub origin_retries: IntCounter,
    /// Requests to the origin that were not repeated because too many had been.
    pub origin_retries_refused: IntCounter,
    /// Response body bytes received from the origin.
    pub origin_body_bytes: IntCounter,
    /// Response body bytes sent to clients.
    pub body_bytes: IntCounter,
    /// Stale responses, by reason.
    pub stale: IntCounterVec,
    /// Responses that broke off or failed, by the side at fault.
    pub errors: IntCounterVec,
    /// Requests refused because of the client's identity, by reason.
    pub auth_refused: IntCounterVec,
    /// Connections and requests of clients that were refused, by the limit.
    #[cfg(feature = "s3-proxy")]
    pub(crate) limited: IntCounterVec,
    /// Requests that are not HTTP.
    #[cfg(feature = "s3-proxy")]
    pub(crate) malformed_requests: IntCounter,
    /// Requests of operators to store an object, by their result.
    pub warmed: IntCounterVec,
    /// Log lines that were suppressed.
    pub log_lines_suppressed: IntCounter,
    /// Client connections: open ones, and those closed or refused at the limit.
    connections: ConnectionMetrics,
    /// Requests that hold a turn at the origin, wait for one, or were refused one.
    miss_turns: MissMetrics,
    /// Times of requests.
    #[cfg(feature = "s3-proxy")]
    pub(crate) times: TimesMetrics,
    /// Credentials that are looked up.
    #[cfg(feature = "s3-proxy")]
    credentials: CredentialsMetrics,
    /// Origins that are up.
    #[cfg(feature = "s3-proxy")]
    origins: OriginMetrics,
    /// Body bytes to clients, by their way.
    #[cfg(feature = "s3-proxy")]
    ways: WayMetrics,
    /// Lines written to the access log.
    #[cfg(feature = "s3-proxy")]
    pub(crate) access_log_lines: IntCounter,
    /// Lines of the access log that were dropped.
    #[cfg(feature = "s3-proxy")]
    pub(crate) access_log_dropped: IntCounter,
    /// Spans of traces that the collector has taken.
    #[cfg(feature = "s3-proxy")]
    pub(crate) spans_sent: IntCounter,
    /// Spans of traces that were dropped, by reason.
    #[cfg(feature = "s3-proxy")]
    pub(crate) spans_dropped: IntCounterVec,
    /// The HTTPS listener.
    #[cfg(feature = "s3-proxy")]
    pub(crate) tls: TlsMetrics,
    /// Reloads of the configuration.
    #[cfg(feature = "s3-proxy")]
    pub(crate) reload: ReloadMetrics,
    /// Encrypted bytes that wait in memory for clients, beyond 64 KiB each.
    #[cfg(feature = "s3-proxy")]
    tls_lent: IntGauge,
    #[cfg(feature = "s3-proxy")]
    tls_lent_now: std::sync::OnceLock<fn() -> usize>,
}

/// Reloads of the configuration.
#[cfg(feature = "s3-proxy")]
pub(crate) struct ReloadMetrics {
    reloads: IntCounterVec,
    has_failed: IntGauge,
    loaded: IntGauge,
    restart_needed: IntGauge,
}

/// The certificates of the HTTPS listener, and the handshakes that have failed.
#[cfg(feature = "s3-proxy")]
pub(crate) struct TlsMetrics {
    expiry: IntGaugeVec,
    /// File and name of each certificate in `expiry`.
    #[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
    watched: Mutex<Vec<[String; 2]>>,
    /// 1 if the files hold something that cannot be used.
    pub(crate) reload_failed: IntGauge,
    /// Certificates replaced while serving.
    pub(crate) reloads: IntCounter,
    /// Handshakes that have failed, by reason.
    pub(crate) handshake_failures: IntCounterVec,
}

/// The time at which a certificate expires.
#[cfg(all(
    feature = "s3-proxy",
    any(feature = "rustls", feature = "openssl", feature = "boringssl")
))]
pub(crate) struct CertificateExpiry {
    /// The file, and the first DNS name or nothing.
    pub(crate) labels: [String; 2],
    pub(crate) timestamp: i64,
}

/// Copies of the counters of the buckets' credentials.
#[cfg(feature = "s3-proxy")]
struct CredentialsMetrics {
    watched: Mutex<Vec<(String, Weak<Refreshed>)>>,
    expiry: IntGaugeVec,
    found: IntGaugeVec,
    failures: IntCounterVec,
    refused: IntCounterVec,
}

/// The health of the origins.
#[cfg(feature = "s3-proxy")]
struct OriginMetrics {
    watched: Mutex<Weak<Health>>,
    /// Bucket and origin of each sample. A reload may remove some.
    shown: Mutex<Vec<[String; 2]>>,
    up: IntGaugeVec,
}

/// Body bytes to clients, by their way.
#[cfg(feature = "s3-proxy")]
struct WayMetrics {
    all: IntCounterVec,
    /// In the order of [`Way::ALL`], so that no response looks for its label.
    by_way: [IntCounter; Way::ALL.len()],
}

/// Copies of the counters of the connection limit.
struct ConnectionMetrics {
    limit: Mutex<Weak<ConnectionLimit>>,
    open: IntGauge,
    refused: IntCounter,
    idle_closed: IntCounter,
    /// Closed below the limit for lack of descriptors. Exported with the other limits.
    shed: IntCounter,
}

/// Copies of the counters of [`OriginTurns`].
struct MissMetrics {
    turns: Mutex<Weak<OriginTurns>>,
    in_flight: IntGauge,
    waiting: IntGauge,
    refused: IntCounter,
}

/// The metrics of the process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// A collector of [`METRICS`].
///
/// A process has these metrics once, whatever the number of its caches and servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessCollector;

/// A collector of the metrics of one [`DiskCache`].
///
/// A registry takes the caches of a process apart by a label `cache`:
///
/// ```no_run
/// use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};
/// use pingora_sendfile::metrics::CacheCollector;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// for name in ["images", "video"] {
///     let folder = format!("/var/cache/{name}");
///     let cache = DiskCache::open(DiskCacheConfig::new(folder, 1 << 40))?;
///     prometheus::register(Box::new(CacheCollector::named(cache, name)))?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct CacheCollector {
    cache: &'static DiskCache,
    collecting: Mutex<()>,
    entries: IntGauge,
    size_bytes: IntGauge,
    fills_in_flight: IntGauge,
    memory_bytes: IntGauge,
    metadata_bytes: IntGauge,
    open_files: IntGauge,
    bans: IntGauge,
    writable: IntGauge,
    recovery_progress: Gauge,
    folder_up: IntGaugeVec,
    folder_entries: IntGaugeVec,
    folder_size_bytes: IntGaugeVec,
    evictions: IntCounterVec,
    fill_errors: IntCounterVec,
    read_errors: IntCounterVec,
    scrubbed: IntCounterVec,
    scrubbed_bytes: IntCounter,
    fills: IntCounter,
    fill_followers: IntCounter,
    cold_sends: IntCounter,
    memory_hits: IntCounter,
    descriptor_hits: IntCounter,
    opens: IntCounter,
    body_opens: IntCounter,
    not_admitted: IntCounter,
}

/// Makes metrics with the same labels.
#[derive(Default)]
struct Maker {
    labels: HashMap<String, String>,
}

// === impl Maker ===

/// All names are in this file, so that no registration but a host's own can fail.
const VALID: &str = "metric names are valid";
const UNIQUE: &str = "metric names are unique";

impl Maker {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_labels(self.labels.clone())
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        IntCounter::with_opts(self.opts(name, help)).expect(VALID)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        IntCounterVec::new(self.opts(name, help), &[label]).expect(VALID)
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        IntGauge::with_opts(self.opts(name, help)).expect(VALID)
    }

    fn ratio(&self, name: &str, help: &str) -> Gauge {
        Gauge::with_opts(self.opts(name, help)).expect(VALID)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        IntGaugeVec::new(self.opts(name, help), &[label]).expect(VALID)
    }
}

// === impl Metrics ===

impl Metrics {
    fn new() -> Self {
        let make = Maker::default();
        let metrics = Metrics {
            sendfile: make.counter(
                "cache_sendfile_total",
                "Responses of which at least a part of the body went by sendfile",
            ),
            sendfile_bytes: make.counter(
                "cache_sendfile_bytes_total",
                "Body bytes that sendfile moved",
            ),
            hits: make.counter(
                "cache_hits_total",
                "Responses from the cache without asking the origin",
            ),
            misses: make.counter("cache_misses_total", "Responses that needed the origin"),
            origin_requests: make.counter(
                "origin_requests_total",
                "Requests sent to the origin, retries included",
            ),
            origin_error_responses: make.counters(
                "origin_error_responses_total",
                "Responses of the origin with an error status, by class",
                "class",
            ),
            origin_retries: make.counter(
                "origin_retries_total",
                "Requests to the origin that were repeated because it failed",
            ),
            origin_retries_refused: make.counter(
                "origin_retries_refused_total",
                "Requests to the origin not repeated because too many of them had been",
            ),
            origin_body_bytes: make.counter(
                "origin_response_body_bytes_total",
                "Response body bytes received from the origin",
            ),
            body_bytes: make.counter(
                "response_body_bytes_total",
                "Response body bytes sent to clients",
            ),
            stale: make.counters(
                "cache_stale_total",
                "Stale responses, by the reason",
                "reason",
            ),
            errors: make.counters(
                "response_errors_total",
                "Responses that broke off or failed, by the side at fault",
                "source",
            ),
            auth_refused: make.counters(
                "auth_refused_total",
                "Requests refused because of who asks, by reason",
                "reason",
            ),
            #[cfg(feature = "s3-proxy")]
            limited: make.counters(
                "clients_limited_total",
                "Connections and requests of clients refused at a limit, by the limit",
                "limit",
            ),
            #[cfg(feature = "s3-proxy")]
            malformed_requests: make.counter(
                "malformed_requests_total",
                "Requests refused because they are not valid HTTP",
            ),
            warmed: make.counters(
                "cache_warmed_total",
                "Requests of operators to store an object, by their result",
                "result",
            ),
            log_lines_suppressed: make.counter(
                "log_lines_suppressed_total",
                "Log lines suppressed because their call site wrote too many",
            ),
            connections: ConnectionMetrics::new(&make),
            miss_turns: MissMetrics::new(&make),
            #[cfg(feature = "s3-proxy")]
            times: TimesMetrics::new(),
            #[cfg(feature = "s3-proxy")]
            credentials: CredentialsMetrics::new(&make),
            #[cfg(feature = "s3-proxy")]
            origins: OriginMetrics::new(&make),
            #[cfg(feature = "s3-proxy")]
            ways: WayMetrics::new(&make),
            #[cfg(feature = "s3-proxy")]
            access_log_lines: make
                .counter("access_log_lines_total", "Lines written to the access log"),
            #[cfg(feature = "s3-proxy")]
            access_log_dropped: make.counter(
                "access_log_dropped_total",
                "Lines of the access log dropped because they could not be written in time",
            ),
            #[cfg(feature = "s3-proxy")]
            spans_sent: make.counter(
                "trace_spans_sent_total",
                "Spans of traces that the collector has taken",
            ),
            #[cfg(feature = "s3-proxy")]
            spans_dropped: make.counters(
                "trace_spans_dropped_total",
                "Spans of traces that were dropped, by reason",
                "reason",
            ),
            #[cfg(feature = "s3-proxy")]
            tls: TlsMetrics::new(&make),
            #[cfg(feature = "s3-proxy")]
            reload: ReloadMetrics::new(&make),
            #[cfg(feature = "s3-proxy")]
            tls_lent: make.gauge(
                "tls_lent_bytes",
                "Encrypted bytes that wait for HTTPS clients, beyond 64 KiB for each",
            ),
            #[cfg(feature = "s3-proxy")]
            tls_lent_now: std::sync::OnceLock::new(),
        };
        for source in ["downstream", "upstream", "internal", "unset"] {
            metrics.errors.with_label_values(&[source]);
        }
        for class in ["403", "5xx"] {
            metrics.origin_error_responses.with_label_values(&[class]);
        }
        #[cfg(feature = "s3-proxy")]
        for limit in Limit::ALL {
            metrics.limited.with_label_values(&[limit.label()]);
        }
        #[cfg(feature = "s3-proxy")]
        for reason in ["export", "queue"] {
            metrics.spans_dropped.with_label_values(&[reason]);
        }
        for result in [
            "absent",
            "already_stored",
            "busy",
            "failed",
            "not_stored",
            "refused",
            "stored",
        ] {
            metrics.warmed.with_label_values(&[result]);
        }
        metrics
    }

    /// Report the connections that `limit` counts, in place of any earlier limit.
    pub fn watch_connections(&self, limit: &Arc<ConnectionLimit>) {
        *self.connections.limit.lock() = Arc::downgrade(limit);
    }

    /// Report the requests to the origin that `turns` counts, in place of any earlier turns.
    pub fn watch_misses(&self, turns: &Arc<OriginTurns>) {
        *self.miss_turns.turns.lock() = Arc::downgrade(turns);
    }

    /// Report these credentials, each with the name of its bucket, in place of any earlier
    /// ones.
    #[cfg(feature = "s3-proxy")]
    pub fn watch_credentials(&self, all: impl Iterator<Item = (String, Arc<Refreshed>)>) {
        let all = all.map(|(bucket, credentials)| (bucket, Arc::downgrade(&credentials)));
        self.credentials.watch(all.collect());
    }

    /// Report the origins of this proxy, in place of any earlier ones.
    #[cfg(feature = "s3-proxy")]
    pub(crate) fn watch_origins(&self, health: &Arc<Health>) {
        *self.origins.watched.lock() = Arc::downgrade(health);
    }

    /// Report the bytes that `lent` returns as lent to TLS connections.
    #[cfg(feature = "s3-proxy")]
    pub(crate) fn watch_tls_lent(&self, lent: fn() -> usize) {
        // The first function stays: all listeners borrow from the same bytes.
        let _ = self.tls_lent_now.set(lent);
    }

    fn update(&self) {
        self.connections.update();
        self.miss_turns.update();
        #[cfg(feature = "s3-proxy")]
        {
            for (limit, metric) in [
                (Limit::Connections, &self.connections.refused),
                (Limit::Descriptors, &self.connections.shed),
            ] {
                let limited = self.limited.with_label_values(&[limit.label()]);
                limited.inc_by(metric.get().saturating_sub(limited.get()));
            }
            self.credentials.update();
            self.origins.update();
            if let Some(lent) = self.tls_lent_now.get() {
                self.tls_lent.set(lent() as i64);
            }
        }
    }

    fn all(&self) -> Vec<&dyn Collector> {
        #[allow(unused_mut)]
        let mut all: Vec<&dyn Collector> = vec![
            &self.sendfile,
            &self.sendfile_bytes,
            &self.hits,
            &self.misses,
            &self.origin_requests,
            &self.origin_error_responses,
            &self.origin_retries,
            &self.origin_retries_refused,
            &self.origin_body_bytes,
            &self.body_bytes,
            &self.stale,
            &self.errors,
            &self.auth_refused,
            &self.warmed,
            &self.log_lines_suppressed,
            &self.connections.open,
            &self.connections.refused,
            &self.connections.idle_closed,
            &self.miss_turns.in_flight,
            &self.miss_turns.waiting,
            &self.miss_turns.refused,
        ];
        #[cfg(feature = "s3-proxy")]
        all.extend([
            &self.times as &dyn Collector,
            &self.limited,
            &self.malformed_requests,
            &self.credentials.expiry,
            &self.credentials.found,
            &self.credentials.failures,
            &self.credentials.refused,
            &self.origins.up,
            &self.ways.all,
            &self.access_log_lines,
            &self.access_log_dropped,
            &self.spans_sent,
            &self.spans_dropped,
            &self.reload.reloads,
            &self.reload.has_failed,
            &self.reload.loaded,
            &self.reload.restart_needed,
            &self.tls.expiry,
            &self.tls.reload_failed,
            &self.tls.reloads,
            &self.tls.handshake_failures,
            &self.tls_lent,
        ]);
        all
    }
}

// === impl ProcessCollector ===

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        descriptions(METRICS.all())
    }

    fn collect(&self) -> Vec<MetricFamily> {
        METRICS.update();
        families(METRICS.all())
    }
}

fn descriptions(all: Vec<&dyn Collector>) -> Vec<&Desc> {
    all.into_iter().flat_map(Collector::desc).collect()
}

fn families(all: Vec<&dyn Collector>) -> Vec<MetricFamily> {
    all.into_iter().flat_map(Collector::collect).collect()
}

// === impl CredentialsMetrics ===

#[cfg(feature = "s3-proxy")]
impl CredentialsMetrics {
    fn new(make: &Maker) -> Self {
        CredentialsMetrics {
            watched: Mutex::default(),
            expiry: make.gauges(
                "origin_credentials_expiry_timestamp_seconds",
                "Time when the credentials of a bucket expire; 0 if there are none, or they do not",
                "bucket",
            ),
            found: make.gauges(
                "origin_credentials_found_timestamp_seconds",
                "Time of the last lookup that has found credentials of a bucket; 0 if there was none",
                "bucket",
            ),
            failures: make.counters(
                "origin_credentials_failures_total",
                "Failed lookups of the credentials of a bucket",
                "bucket",
            ),
            refused: make.counters(
                "origin_credentials_refused_total",
                "Requests to the origin refused for lack of valid credentials",
                "bucket",
            ),
        }
    }

    /// Report these credentials, in place of any earlier ones.
    fn watch(&self, all: Vec<(String, Weak<Refreshed>)>) {
        let mut watched = self.watched.lock();
        let is_former = |name: &&String| all.iter().all(|(other, _)| other != *name);
        for former in watched.iter().map(|(name, _)| name).filter(is_former) {
            let label = &[former.as_str()];
            // An error means that it is not there.
            let _ = self.expiry.remove_label_values(label);
            let _ = self.failures.remove_label_values(label);
            let _ = self.refused.remove_label_values(label);
        }
        *watched = all;
    }

    fn update(&self) {
        for (bucket, credentials) in &*self.watched.lock() {
            let Some(credentials) = credentials.upgrade() else {
                continue;
            };
            let expiry = credentials.expiry();
            let expiry = expiry.and_then(|expiry| expiry.duration_since(UNIX_EPOCH).ok());
            let secs = expiry.map_or(0, |expiry| expiry.as_secs());
            let label = &[bucket.as_str()];
            for (metric, secs) in [(&self.expiry, secs), (&self.found, credentials.found())] {
                let metric = metric.with_label_values(label);
                metric.set(i64::try_from(secs).unwrap_or(i64::MAX));
            }
            for (metric, count) in [
                (&self.failures, credentials.failures()),
                (&self.refused, credentials.refused()),
            ] {
                let metric = metric.with_label_values(label);
                metric.inc_by(count.saturating_sub(metric.get()));
            }
        }
    }
}

// === impl ReloadMetrics ===

#[cfg(feature = "s3-proxy")]
impl ReloadMetrics {
    fn new(make: &Maker) -> Self {
        let metrics = ReloadMetrics {
            reloads: make.counters(
                "config_reloads_total",
                "Reloads of the configuration, by their result",
                "result",
            ),
            has_failed: make.gauge(
                "config_reload_failed",
                "1 if the last reload of the configuration has failed, so that the one of before is in use",
            ),
            loaded: make.gauge(
                "config_loaded_timestamp_seconds",
                "Time when the configuration in use was read",
            ),
            restart_needed: make.gauge(
                "config_restart_needed",
                "Keys of the configuration whose changes need a restart, at the last reload",
            ),
        };
        for result in ["failed", "ok"] {
            metrics.reloads.with_label_values(&[result]);
        }
        metrics
    }

    /// The configuration in use was read just now.
    pub(crate) fn loaded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let secs = now.unwrap_or_default().as_secs();
        self.loaded.set(i64::try_from(secs).unwrap_or(i64::MAX));
    }

    /// A reload was made. `restart_needed`: the keys that need a restart.
    pub(crate) fn succeeded(&self, restart_needed: usize) {
        self.reloads.with_label_values(&["ok"]).inc();
        self.has_failed.set(0);
        self.restart_needed
            .set(i64::try_from(restart_needed).unwrap_or(i64::MAX));
        self.loaded();
    }

    /// A reload has failed.
    pub(crate) fn failed(&self) {
        self.reloads.with_label_values(&["failed"]).inc();
        self.has_failed.set(1);
    }
}

/// Figures for the status.
#[cfg(feature = "s3-proxy")]
impl Metrics {
    /// Count body bytes that a client has received.
    pub(crate) fn count_bytes(&self, way: Way, bytes: u64) {
        if bytes > 0 {
            self.ways.by_way[way as usize].inc_by(bytes);
        }
    }

    pub(crate) fn bytes_by_way(&self) -> status::Bytes {
        let [sendfile, ktls, memory, copied] = self.ways.by_way.each_ref().map(IntCounter::get);
        status::Bytes {
            total: sendfile + ktls + memory + copied,
            sendfile,
            ktls,
            memory,
            copied,
        }
    }

    pub(crate) fn open_connections(&self) -> u64 {
        let limit = self.connections.limit.lock();
        limit.upgrade().map_or(0, |limit| limit.open() as u64)
    }

    pub(crate) fn total_stale(&self) -> u64 {
        sum(&self.stale)
    }

    pub(crate) fn total_errors(&self) -> u64 {
        sum(&self.errors)
    }

    /// File, name and time of expiry of each certificate.
    pub(crate) fn certificates(&self) -> Vec<(String, String, i64)> {
        let families = self.tls.expiry.collect();
        let all = families.iter().flat_map(|family| family.get_metric());
        let certificates = all.filter_map(|metric| {
            let label = |name: &str| {
                let mut labels = metric.get_label().iter();
                let label = labels.find(|label| label.name() == name)?;
                Some(label.value().to_owned())
            };
            let expiry = metric.get_gauge().get_value() as i64;
            Some((label("file")?, label("name")?, expiry))
        });
        certificates.collect()
    }
}

/// The sum of a counter over all of its labels.
#[cfg(feature = "s3-proxy")]
fn sum(counters: &IntCounterVec) -> u64 {
    let families = counters.collect();
    let all = families.iter().flat_map(|family| family.get_metric());
    all.map(|metric| metric.get_counter().get_value() as u64)
        .sum()
}

// === impl WayMetrics ===

#[cfg(feature = "s3-proxy")]
impl WayMetrics {
    fn new(make: &Maker) -> Self {
        let all = make.counters(
            "response_way_bytes_total",
            "Response body bytes sent to clients, by the way that they took",
            "way",
        );
        let by_way = Way::ALL.map(|way| all.with_label_values(&[way.label()]));
        WayMetrics { all, by_way }
    }
}

// === impl OriginMetrics ===

#[cfg(feature = "s3-proxy")]
impl OriginMetrics {
    fn new(make: &Maker) -> Self {
        let up = make.opts(
            "origin_up",
            "0 if all requests for a bucket to its origin have failed for some time, else 1",
        );
        OriginMetrics {
            watched: Mutex::default(),
            shown: Mutex::default(),
            up: IntGaugeVec::new(up, &["bucket", "origin"]).expect(VALID),
        }
    }

    fn update(&self) {
        let Some(health) = self.watched.lock().upgrade() else {
            return;
        };
        let now = Instant::now();
        let origins = health.origins();
        let mut all = HashMap::new();
        for origin in &origins {
            // Several routes may lead to a bucket.
            let is_up = all.entry(origin.labels()).or_insert(true);
            *is_up &= origin.down(now).is_none();
        }
        let mut shown = self.shown.lock();
        for former in shown.iter().filter(|of| !all.contains_key(of)) {
            // An error means that it is not there any more.
            let _ = self
                .up
                .remove_label_values(&former.each_ref().map(String::as_str));
        }
        for (labels, is_up) in &all {
            let labels = labels.each_ref().map(String::as_str);
            self.up.with_label_values(&labels).set(i64::from(*is_up));
        }
        *shown = all.into_keys().cloned().collect();
    }
}

// === impl TlsMetrics ===

#[cfg(feature = "s3-proxy")]
impl TlsMetrics {
    fn new(make: &Maker) -> Self {
        let expiry = make.opts(
            "tls_certificate_expiry_timestamp_seconds",
            "Time when a certificate of the HTTPS listener expires",
        );
        let metrics = TlsMetrics {
            expiry: IntGaugeVec::new(expiry, &["file", "name"]).expect(VALID),
            #[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
            watched: Mutex::default(),
            reload_failed: make.gauge(
                "tls_reload_failed",
                "1 if the certificate files hold something that cannot be used, so that the \
                 certificates of before are served",
            ),
            reloads: make.counter(
                "tls_reloads_total",
                "Times that the certificates were replaced while serving",
            ),
            handshake_failures: make.counters(
                "tls_handshake_failures_total",
                "Handshakes of clients that have failed, by reason",
                "reason",
            ),
        };
        for reason in [
            "certificate",
            "closed",
            "incompatible",
            "no_certificate",
            "other",
            "protocol",
            "refused",
            "timeout",
        ] {
            metrics.handshake_failures.with_label_values(&[reason]);
        }
        metrics
    }

    /// Report these certificates, in place of any earlier ones.
    #[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
    pub(crate) fn watch(&self, all: &[CertificateExpiry]) {
        fn labels(of: &[String; 2]) -> [&str; 2] {
            of.each_ref().map(String::as_str)
        }
        let mut watched = self.watched.lock();
        for certificate in all {
            self.expiry
                .with_label_values(&labels(&certificate.labels))
                .set(certificate.timestamp);
        }
        let is_former =
            |of: &&[String; 2]| all.iter().all(|certificate| certificate.labels != **of);
        for former in watched.iter().filter(is_former) {
            // An error means that it is not there any more.
            let _ = self.expiry.remove_label_values(&labels(former));
        }
        *watched = all
            .iter()
            .map(|certificate| certificate.labels.clone())
            .collect();
    }
}

// === impl ConnectionMetrics ===

impl ConnectionMetrics {
    fn new(make: &Maker) -> Self {
        ConnectionMetrics {
            limit: Mutex::default(),
            open: make.gauge("connections_open", "Open client connections"),
            refused: make.counter(
                "connections_refused_total",
                "Client connections closed at once because too many were open and none was idle",
            ),
            idle_closed: make.counter(
                "connections_idle_closed_total",
                "Idle client connections closed to make room for new ones",
            ),
            shed: make.counter(
                "connections_shed_total",
                "Client connections closed at once because no file descriptor was left",
            ),
        }
    }

    /// Add what the limit has counted since the last update.
    fn update(&self) {
        let limit = self.limit.lock();
        let Some(limit) = limit.upgrade() else {
            return;
        };
        self.open.set(limit.open() as i64);
        for (metric, count) in [
            (&self.refused, limit.refused()),
            (&self.idle_closed, limit.idle_closed()),
            (&self.shed, limit.shed()),
        ] {
            metric.inc_by(count.saturating_sub(metric.get()));
        }
    }
}

// === impl MissMetrics ===

impl MissMetrics {
    fn new(make: &Maker) -> Self {
        MissMetrics {
            turns: Mutex::default(),
            in_flight: make.gauge(
                "cache_misses_in_flight",
                "Requests that wait for the origin, or pass its response on without storing it",
            ),
            waiting: make.gauge(
                "cache_misses_waiting",
                "Requests that wait for their turn to ask the origin",
            ),
            refused: make.counter(
                "cache_misses_refused_total",
                "Requests that had no turn to ask the origin in time",
            ),
        }
    }

    fn update(&self) {
        let turns = self.turns.lock();
        let Some(turns) = turns.upgrade() else {
            return;
        };
        self.in_flight.set(turns.taken() as i64);
        self.waiting.set(turns.waiting() as i64);
        let refused = turns.refused();
        self.refused
            .inc_by(refused.saturating_sub(self.refused.get()));
    }
}

// === impl CacheCollector ===

impl CacheCollector {
    /// The metrics of the only cache of a process, without a label.
    pub fn new(cache: &'static DiskCache) -> Self {
        CacheCollector::with(cache, &Maker::default())
    }

    /// The metrics of one of several caches, all of which have a name: that is the label
    /// `cache`.
    pub fn named(cache: &'static DiskCache, name: &str) -> Self {
        let labels = HashMap::from([("cache".to_owned(), name.to_owned())]);
        CacheCollector::with(cache, &Maker { labels })
    }

    fn with(cache: &'static DiskCache, make: &Maker) -> Self {
        CacheCollector {
            cache,
            collecting: Mutex::default(),
            entries: make.gauge("cache_entries", "Entries in the disk cache"),
            size_bytes: make.gauge(
                "cache_size_bytes",
                "Bytes that the disk cache takes: bodies, metadata, and fills in flight",
            ),
            fills_in_flight: make.gauge("cache_fills_in_flight", "Entries that are being written"),
            memory_bytes: make.gauge(
                "cache_memory_bytes",
                "Memory that bodies of small entries take",
            ),
            metadata_bytes: make.gauge(
                "cache_metadata_bytes",
                "Bytes of metadata and headers in memory",
            ),
            open_files: make.gauge(
                "cache_open_files",
                "Files of entries in use that are kept open",
            ),
            bans: make.gauge(
                "cache_bans",
                "Purges in force whose entries have not all been removed yet",
            ),
            writable: make.gauge(
                "cache_writable",
                "1 if this process writes to the cache folder, 0 while its predecessor does",
            ),
            recovery_progress: make.ratio(
                "cache_load_progress_ratio",
                "How far the entries of earlier runs are known, from 0 to 1",
            ),
            folder_up: make.gauges(
                "cache_folder_up",
                "1 if a folder of the cache can be used, 0 if it is absent or fails",
                "path",
            ),
            folder_entries: make.gauges(
                "cache_folder_entries",
                "Entries in a folder of the cache",
                "path",
            ),
            folder_size_bytes: make.gauges(
                "cache_folder_size_bytes",
                "Bytes that a folder of the cache takes, with fills in flight",
                "path",
            ),
            evictions: make.counters(
                "cache_evictions_total",
                "Entries that left the disk cache, by reason",
                "reason",
            ),
            fill_errors: make.counters(
                "cache_fill_errors_total",
                "Responses that should have been stored and were not, by cause",
                "cause",
            ),
            read_errors: make.counters(
                "cache_read_errors_total",
                "Entries that could not be read, or have their metadata updated, by cause",
                "cause",
            ),
            scrubbed: make.counters(
                "cache_scrubbed_total",
                "Entries whose checksum was compared in the background, by result",
                "result",
            ),
            scrubbed_bytes: make.counter(
                "cache_scrubbed_bytes_total",
                "Bytes read in the background to find damage",
            ),
            fills: make.counter("cache_fills_total", "Entries that were written"),
            fill_followers: make.counter(
                "cache_fill_followers_total",
                "Lookups, also of the first client, that found an entry being written",
            ),
            cold_sends: make.counter(
                "cache_cold_sends_total",
                "Parts of bodies that had to be read from the disk before they were sent",
            ),
            memory_hits: make.counter(
                "cache_memory_hits_total",
                "Lookups that found the body in memory",
            ),
            descriptor_hits: make.counter(
                "cache_descriptor_hits_total",
                "Lookups that found the body's file open",
            ),
            opens: make.counter(
                "cache_opens_total",
                "Lookups that had to open an entry's files",
            ),
            body_opens: make.counter(
                "cache_body_opens_total",
                "Lookups that opened only the body, because the metadata was in memory",
            ),
            not_admitted: make.counter(
                "cache_not_admitted_total",
                "Misses not stored because the object was not asked for often enough",
            ),
        }
    }

    /// Copies what the cache has counted since.
    fn update(&self) {
        fn catch_up(metric: &IntCounter, counter: &Counter) {
            metric.inc_by(counter.get().saturating_sub(metric.get()));
        }
        let cache = self.cache;
        let stats = cache.stats();
        self.entries.set(cache.entries() as i64);
        self.size_bytes.set(cache.size_bytes() as i64);
        self.fills_in_flight.set(cache.fills_in_flight() as i64);
        self.memory_bytes.set(cache.memory_bytes() as i64);
        self.metadata_bytes.set(cache.metadata_bytes() as i64);
        self.open_files.set(cache.open_files() as i64);
        self.bans.set(cache.bans() as i64);
        self.writable.set(i64::from(cache.is_writable()));
        self.recovery_progress.set(cache.recovery_ratio());
        for folder in cache.folders() {
            let path = folder.path.to_string_lossy();
            for (metric, value) in [
                (&self.folder_up, i64::from(folder.is_up)),
                (&self.folder_entries, folder.entries as i64),
                (&self.folder_size_bytes, folder.size_bytes as i64),
            ] {
                metric.with_label_values(&[&*path]).set(value);
            }
        }
        for reason in Eviction::ALL {
            let metric = self.evictions.with_label_values(&[reason.label()]);
            catch_up(&metric, stats.evictions(reason));
        }
        for cause in Cause::ALL {
            let metric = self.fill_errors.with_label_values(&[cause.label()]);
            catch_up(&metric, stats.fill_errors(cause));
            let metric = self.read_errors.with_label_values(&[cause.label()]);
            catch_up(&metric, stats.read_errors(cause));
        }
        for (result, counter) in [
            ("ok", &stats.scrubbed_ok),
            ("damaged", &stats.scrubbed_damaged),
        ] {
            catch_up(&self.scrubbed.with_label_values(&[result]), counter);
        }
        for (metric, counter) in [
            (&self.scrubbed_bytes, &stats.scrubbed_bytes),
            (&self.fills, &stats.fills),
            (&self.fill_followers, &stats.fill_followers),
            (&self.cold_sends, &stats.cold_sends),
            (&self.memory_hits, &stats.memory_hits),
            (&self.descriptor_hits, &stats.descriptor_hits),
            (&self.opens, &stats.opens),
            (&self.body_opens, &stats.body_opens),
            (&self.not_admitted, &stats.not_admitted),
        ] {
            catch_up(metric, counter);
        }
    }
    fn all(&self) -> Vec<&dyn Collector> {
        vec![
            &self.entries,
            &self.size_bytes,
            &self.fills_in_flight,
            &self.memory_bytes,
            &self.metadata_bytes,
            &self.open_files,
            &self.bans,
            &self.writable,
            &self.recovery_progress,
            &self.folder_up,
            &self.folder_entries,
            &self.folder_size_bytes,
            &self.evictions,
            &self.fill_errors,
            &self.read_errors,
            &self.scrubbed,
            &self.scrubbed_bytes,
            &self.fills,
            &self.fill_followers,
            &self.cold_sends,
            &self.memory_hits,
            &self.descriptor_hits,
            &self.opens,
            &self.body_opens,
            &self.not_admitted,
        ]
    }
}

impl Collector for CacheCollector {
    fn desc(&self) -> Vec<&Desc> {
        descriptions(self.all())
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Two at once would both add what was counted since.
        let _collecting = self.collecting.lock();
        self.update();
        families(self.all())
    }
}

/// The reasons for which a process is not ready, a line each; empty: it is ready.
type Unready = dyn Fn() -> Vec<String> + Send + Sync;

/// Serves `/metrics`, `/health` and `/ready`.
pub struct MetricsApp {
    registry: Registry,
    unready: Option<Box<Unready>>,
}

impl MetricsApp {
    /// Serves the metrics of the process, and those of `cache` if there is one.
    pub fn new(cache: Option<&'static DiskCache>) -> Self {
        let registry = Registry::new();
        let mut collectors: Vec<Box<dyn Collector>> = vec![Box::new(ProcessCollector)];
        collectors.extend(cache.map(|cache| Box::new(CacheCollector::new(cache)) as Box<_>));
        for collector in collectors {
            // Only a name that is there twice is refused.
            registry.register(collector).expect(UNIQUE);
        }
        MetricsApp::with_registry(registry)
    }

    /// Serves the metrics of a registry.
    pub fn with_registry(registry: Registry) -> Self {
        MetricsApp {
            registry,
            unready: None,
        }
    }

    /// Answers `/ready` with the reasons that `unready` returns. It is called by each request, on a
    /// worker thread. Without it, the process is always ready.
    #[must_use]
    pub fn unready(mut self, unready: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        self.unready = Some(Box::new(unready));
        self
    }

    fn exposition(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            log::warn!("cannot encode the metrics: {e}");
        }
        text
    }
}

/// The status and the text of the answer to `/ready`.
pub(crate) fn readiness(unready: &[String]) -> (StatusCode, String) {
    match unready {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

#[async_trait]
impl ServeHttp for MetricsApp {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        session.set_write_timeout(Some(WRITE_TIMEOUT));
        let request = session.req_header();
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let mut response = Response::new(b"405 Method Not Allowed\n".to_vec());
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            headers.insert(CONTENT_LENGTH, 23.into());
            return response;
        }
        let (status, body) = match request.uri.path() {
            "/metrics" => (StatusCode::OK, self.exposition()),
            "/health" => (StatusCode::OK, b"ok\n".to_vec()),
            "/ready" => {
                let unready = self.unready.as_ref().map(|unready| unready());
                let (status, text) = readiness(&unready.unwrap_or_default());
                (status, text.into_bytes())
            }
            _ => (
                StatusCode::NOT_FOUND,
                b"there are /metrics, /health and /ready here\n".to_vec(),
            ),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        let len = response.body().len();
        response
            .headers_mut()
            .insert(http::header::CONTENT_LENGTH, len.into());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::DiskCacheConfig;

    fn cache(folder: &tempfile::TempDir) -> &'static DiskCache {
        DiskCache::open(DiskCacheConfig::new(folder.path(), 1 << 20)).unwrap()
    }

    fn samples(registry: &Registry, name: &str) -> Vec<Vec<(String, String)>> {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map_or(&[][..], |family| family.get_metric());
        let labels = metrics.iter().map(|metric| {
            let labels = metric.get_label().iter();
            labels
                .map(|label| (label.name().to_owned(), label.value().to_owned()))
                .collect()
        });
        labels.collect()
    }

    #[tokio::test]
    async fn caches_of_a_process_are_told_apart_by_their_name() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let registry = Registry::new();
        for (folder, name) in folders.iter().zip(["images", "video"]) {
            let collector = CacheCollector::named(cache(folder), name);
            registry.register(Box::new(collector)).unwrap();
        }
        let label = |name: &str| vec![("cache".to_owned(), name.to_owned())];
        assert_eq!(
            samples(&registry, "cache_entries"),
            [label("images"), label("video")]
        );
    }

    #[tokio::test]
    async fn a_second_registration_is_refused_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector)).unwrap();
        let first = CacheCollector::new(cache);
        registry.register(Box::new(first)).unwrap();
        let before = registry.gather().len();
        registry.register(Box::new(ProcessCollector)).unwrap_err();
        let second = CacheCollector::new(cache);
        registry.register(Box::new(second)).unwrap_err();
        assert_eq!(registry.gather().len(), before);
        // Nor does another registry mind, or a server of its own.
        let other = Registry::new();
        other.register(Box::new(ProcessCollector)).unwrap();
        MetricsApp::new(Some(cache));
        assert_eq!(samples(&other, "cache_hits_total").len(), 1);
        // Nothing is registered where the host has not asked for it.
        assert!(prometheus::gather().is_empty());
    }

    #[tokio::test]
    async fn counts_of_the_cache_are_collected_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        let collector = CacheCollector::new(cache);
        for total in 1..=2 {
            cache.stats().opens.add(1);
            for _ in 0..2 {
                collector.collect();
                assert_eq!(collector.opens.get(), total);
            }
        }
    }

    #[tokio::test]
    async fn a_host_serves_its_own_metrics_too() {
        let registry = Registry::new();
        let own = IntCounter::new("own_total", "A metric of the host").unwrap();
        registry.register(Box::new(own)).unwrap();
        registry.register(Box::new(ProcessCollector)).unwrap();
        let text = MetricsApp::with_registry(registry).exposition();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\nown_total 0\n"), "{text}");
        assert!(text.contains("\ncache_hits_total "), "{text}");
    }
}
