//! What the proxy counts, and where Prometheus reads it.

use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;
#[cfg(feature = "s3-proxy")]
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use http::header::{ALLOW, CONTENT_LENGTH};
use http::{HeaderValue, Method, Response, StatusCode};
use parking_lot::Mutex;
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::listeners::ConnectionLimit;
use pingora_core::protocols::http::ServerSession;
use prometheus::{
    register_gauge, register_int_counter, register_int_counter_vec, register_int_gauge, Encoder,
    Gauge, IntCounter, IntCounterVec, IntGauge, TextEncoder,
};
#[cfg(feature = "s3-proxy")]
use prometheus::{register_int_gauge_vec, IntGaugeVec};

use crate::cache::{Cause, Counter, DiskCache, Eviction};
use crate::http::origin_turns::OriginTurns;
#[cfg(feature = "s3-proxy")]
use crate::s3::Refreshed;

/// The longest wait for a client that takes no bytes of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The counters and gauges.
pub struct Metrics {
    /// Responses of which at least a part went by sendfile.
    pub sendfile: IntCounter,
    /// Body bytes that sendfile moved, not what was merely eligible.
    pub sendfile_bytes: IntCounter,
    /// Responses from the cache without asking the origin.
    pub hits: IntCounter,
    /// Responses that needed the origin.
    pub misses: IntCounter,
    /// Requests sent to the origin, retries included.
    pub origin_requests: IntCounter,
    /// Requests to the origin that were repeated.
    pub origin_retries: IntCounter,
    /// Requests to the origin that were not repeated because too many had been.
    pub origin_retries_refused: IntCounter,
    /// Response body bytes that clients got.
    pub body_bytes: IntCounter,
    /// Stale responses, by the reason.
    pub stale: IntCounterVec,
    /// Responses that broke off or failed, by who is to blame.
    pub errors: IntCounterVec,
    /// Requests that were refused because of who asks, by reason.
    pub auth_refused: IntCounterVec,
    /// Log lines that were suppressed.
    pub log_lines_suppressed: IntCounter,
    /// Client connections: open ones, and those closed or refused at the limit.
    connections: ConnectionMetrics,
    /// Requests that hold a turn, wait for one, or were refused one.
    miss_turns: MissMetrics,
    /// The credentials that are looked up.
    #[cfg(feature = "s3-proxy")]
    credentials: CredentialsMetrics,
    /// What the disk cache counts itself, as of the last exposition.
    cache: Mutex<CacheMetrics>,
}

/// Copies of what the credentials of buckets count.
#[cfg(feature = "s3-proxy")]
struct CredentialsMetrics {
    watched: Mutex<Vec<(String, Weak<Refreshed>)>>,
    expiry: IntGaugeVec,
    failures: IntCounterVec,
    refused: IntCounterVec,
}

/// Copies of the counters of the connection limit.
struct ConnectionMetrics {
    limit: Mutex<Weak<ConnectionLimit>>,
    open: IntGauge,
    refused: IntCounter,
    idle_closed: IntCounter,
}

/// Copies of what the turns of requests to the origin count.
struct MissMetrics {
    turns: Mutex<Weak<OriginTurns>>,
    in_flight: IntGauge,
    waiting: IntGauge,
    refused: IntCounter,
}

/// Copies of what the disk cache knows.
struct CacheMetrics {
    entries: IntGauge,
    size_bytes: IntGauge,
    fills_in_flight: IntGauge,
    memory_bytes: IntGauge,
    open_files: IntGauge,
    bans: IntGauge,
    writable: IntGauge,
    load_progress: Gauge,
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
    not_admitted: IntCounter,
}

// === impl Metrics ===

impl Metrics {
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
        *self.credentials.watched.lock() = all.collect();
    }
}

// === impl CredentialsMetrics ===

#[cfg(feature = "s3-proxy")]
impl CredentialsMetrics {
    fn register() -> prometheus::Result<Self> {
        Ok(CredentialsMetrics {
            watched: Mutex::default(),
            expiry: register_int_gauge_vec!(
                "origin_credentials_expiry_timestamp_seconds",
                "Time when the credentials of a bucket expire; 0 if there are none, or they do not",
                &["bucket"]
            )?,
            failures: register_int_counter_vec!(
                "origin_credentials_failures_total",
                "Failed lookups of the credentials of a bucket",
                &["bucket"]
            )?,
            refused: register_int_counter_vec!(
                "origin_credentials_refused_total",
                "Requests to the origin refused for lack of valid credentials",
                &["bucket"]
            )?,
        })
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
            self.expiry
                .with_label_values(label)
                .set(i64::try_from(secs).unwrap_or(i64::MAX));
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

// === impl ConnectionMetrics ===

impl ConnectionMetrics {
    fn register() -> prometheus::Result<Self> {
        Ok(ConnectionMetrics {
            limit: Mutex::default(),
            open: register_int_gauge!("connections_open", "Open client connections")?,
            refused: register_int_counter!(
                "connections_refused_total",
                "Client connections closed at once because too many were open and none was idle"
            )?,
            idle_closed: register_int_counter!(
                "connections_idle_closed_total",
                "Idle client connections closed to make room for new ones"
            )?,
        })
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
        ] {
            metric.inc_by(count.saturating_sub(metric.get()));
        }
    }
}

// === impl MissMetrics ===

impl MissMetrics {
    fn register() -> prometheus::Result<Self> {
        Ok(MissMetrics {
            turns: Mutex::default(),
            in_flight: register_int_gauge!(
                "cache_misses_in_flight",
                "Requests that wait for the origin, or pass its response on without storing it"
            )?,
            waiting: register_int_gauge!(
                "cache_misses_waiting",
                "Requests that wait for their turn to ask the origin"
            )?,
            refused: register_int_counter!(
                "cache_misses_refused_total",
                "Requests that had no turn to ask the origin in time"
            )?,
        })
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

// === impl CacheMetrics ===

impl CacheMetrics {
    fn register() -> prometheus::Result<Self> {
        Ok(CacheMetrics {
            entries: register_int_gauge!("cache_entries", "Entries in the disk cache")?,
            size_bytes: register_int_gauge!(
                "cache_size_bytes",
                "Bytes that the disk cache takes: bodies, metadata, and fills in flight"
            )?,
            fills_in_flight: register_int_gauge!(
                "cache_fills_in_flight",
                "Entries that are being written"
            )?,
            memory_bytes: register_int_gauge!(
                "cache_memory_bytes",
                "Memory that bodies of small entries take"
            )?,
            open_files: register_int_gauge!(
                "cache_open_files",
                "Files of entries in use that are kept open"
            )?,
            bans: register_int_gauge!(
                "cache_bans",
                "Purges in force whose entries have not all been removed yet"
            )?,
            writable: register_int_gauge!(
                "cache_writable",
                "1 if this process writes to the cache folder, 0 while its predecessor does"
            )?,
            load_progress: register_gauge!(
                "cache_load_progress_ratio",
                "How far the entries of earlier runs are known, from 0 to 1"
            )?,
            evictions: register_int_counter_vec!(
                "cache_evictions_total",
                "Entries that left the disk cache, by reason",
                &["reason"]
            )?,
            fill_errors: register_int_counter_vec!(
                "cache_fill_errors_total",
                "Responses that should have been stored and were not, by cause",
                &["cause"]
            )?,
            read_errors: register_int_counter_vec!(
                "cache_read_errors_total",
                "Entries that could not be read, or have their metadata updated, by cause",
                &["cause"]
            )?,
            scrubbed: register_int_counter_vec!(
                "cache_scrubbed_total",
                "Entries whose checksum was compared in the background, by result",
                &["result"]
            )?,
            scrubbed_bytes: register_int_counter!(
                "cache_scrubbed_bytes_total",
                "Bytes read in the background to find damage"
            )?,
            fills: register_int_counter!("cache_fills_total", "Entries that were written")?,
            fill_followers: register_int_counter!(
                "cache_fill_followers_total",
                "Lookups, also of the first client, that found an entry being written"
            )?,
            cold_sends: register_int_counter!(
                "cache_cold_sends_total",
                "Parts of bodies that had to be read from the disk before they were sent"
            )?,
            memory_hits: register_int_counter!(
                "cache_memory_hits_total",
                "Lookups that found the body in memory"
            )?,
            descriptor_hits: register_int_counter!(
                "cache_descriptor_hits_total",
                "Lookups that found the body's file open"
            )?,
            opens: register_int_counter!(
                "cache_opens_total",
                "Lookups that had to open an entry's files"
            )?,
            not_admitted: register_int_counter!(
                "cache_not_admitted_total",
                "Misses not stored because the object was not asked for often enough"
            )?,
        })
    }

    /// Take over what the cache has counted since.
    fn update(&self, cache: &DiskCache) {
        fn catch_up(metric: &IntCounter, counter: &Counter) {
            metric.inc_by(counter.get().saturating_sub(metric.get()));
        }
        let stats = cache.stats();
        self.entries.set(cache.entries() as i64);
        self.size_bytes.set(cache.size_bytes() as i64);
        self.fills_in_flight.set(cache.fills_in_flight() as i64);
        self.memory_bytes.set(cache.memory_bytes() as i64);
        self.open_files.set(cache.open_files() as i64);
        self.bans.set(cache.bans() as i64);
        self.writable.set(i64::from(cache.is_writable()));
        self.load_progress.set(cache.load_progress().ratio());
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
            (&self.not_admitted, &stats.not_admitted),
        ] {
            catch_up(metric, counter);
        }
    }
}

/// The metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    // Only a name registered twice can fail, and all names are here.
    const UNIQUE: &str = "metric names are unique";
    let metrics = Metrics {
        sendfile: register_int_counter!(
            "cache_sendfile_total",
            "Responses of which at least a part of the body went by sendfile"
        )
        .expect(UNIQUE),
        sendfile_bytes: register_int_counter!(
            "cache_sendfile_bytes_total",
            "Body bytes that sendfile moved"
        )
        .expect(UNIQUE),
        hits: register_int_counter!(
            "cache_hits_total",
            "Responses from the cache without asking the origin"
        )
        .expect(UNIQUE),
        misses: register_int_counter!("cache_misses_total", "Responses that needed the origin")
            .expect(UNIQUE),
        origin_requests: register_int_counter!(
            "origin_requests_total",
            "Requests sent to the origin, retries included"
        )
        .expect(UNIQUE),
        origin_retries: register_int_counter!(
            "origin_retries_total",
            "Requests to the origin that were repeated because it failed"
        )
        .expect(UNIQUE),
        origin_retries_refused: register_int_counter!(
            "origin_retries_refused_total",
            "Requests to the origin not repeated because too many of them had been"
        )
        .expect(UNIQUE),
        body_bytes: register_int_counter!(
            "response_body_bytes_total",
            "Response body bytes sent to clients"
        )
        .expect(UNIQUE),
        stale: register_int_counter_vec!(
            "cache_stale_total",
            "Stale responses, by the reason",
            &["reason"]
        )
        .expect(UNIQUE),
        errors: register_int_counter_vec!(
            "response_errors_total",
            "Responses that broke off or failed, by the side at fault",
            &["source"]
        )
        .expect(UNIQUE),
        auth_refused: register_int_counter_vec!(
            "auth_refused_total",
            "Requests refused because of who asks, by reason",
            &["reason"]
        )
        .expect(UNIQUE),
        log_lines_suppressed: register_int_counter!(
            "log_lines_suppressed_total",
            "Log lines suppressed because their call site wrote too many"
        )
        .expect(UNIQUE),
        connections: ConnectionMetrics::register().expect(UNIQUE),
        miss_turns: MissMetrics::register().expect(UNIQUE),
        #[cfg(feature = "s3-proxy")]
        credentials: CredentialsMetrics::register().expect(UNIQUE),
        cache: Mutex::new(CacheMetrics::register().expect(UNIQUE)),
    };
    for source in ["downstream", "upstream", "internal", "unset"] {
        metrics.errors.with_label_values(&[source]);
    }
    metrics
});

/// Serves `/metrics` and `/health`.
pub struct MetricsApp {
    cache: Option<&'static DiskCache>,
}

impl MetricsApp {
    /// Report on this cache, if there is one.
    pub fn new(cache: Option<&'static DiskCache>) -> Self {
        LazyLock::force(&METRICS);
        MetricsApp { cache }
    }

    fn exposition(&self) -> Vec<u8> {
        METRICS.connections.update();
        METRICS.miss_turns.update();
        #[cfg(feature = "s3-proxy")]
        METRICS.credentials.update();
        if let Some(cache) = self.cache {
            METRICS.cache.lock().update(cache);
        }
        let mut text = Vec::new();
        if let Err(e) = TextEncoder::new().encode(&prometheus::gather(), &mut text) {
            log::warn!("cannot encode the metrics: {e}");
        }
        text
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
            _ => (
                StatusCode::NOT_FOUND,
                b"there are /metrics and /health here\n".to_vec(),
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
