//! What the proxy counts, and where Prometheus reads it.

use std::sync::LazyLock;

use async_trait::async_trait;
use http::{Response, StatusCode};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use prometheus::{
    register_int_counter, register_int_counter_vec, register_int_gauge, Encoder, IntCounter,
    IntCounterVec, IntGauge, TextEncoder,
};

use crate::cache::DiskCache;

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
    /// Response body bytes that clients got.
    pub body_bytes: IntCounter,
    /// Responses that broke off or failed, by who is to blame.
    pub errors: IntCounterVec,
    entries: IntGauge,
    size_bytes: IntGauge,
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
        body_bytes: register_int_counter!(
            "response_body_bytes_total",
            "Response body bytes sent to clients"
        )
        .expect(UNIQUE),
        errors: register_int_counter_vec!(
            "response_errors_total",
            "Responses that broke off or failed, by the side at fault",
            &["source"]
        )
        .expect(UNIQUE),
        entries: register_int_gauge!("cache_entries", "Entries in the disk cache").expect(UNIQUE),
        size_bytes: register_int_gauge!(
            "cache_size_bytes",
            "Bytes that the disk cache takes, bodies and metadata"
        )
        .expect(UNIQUE),
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
        if let Some(cache) = self.cache {
            METRICS.entries.set(cache.entries() as i64);
            METRICS.size_bytes.set(cache.size_bytes() as i64);
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
        let (status, body) = match session.req_header().uri.path() {
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
