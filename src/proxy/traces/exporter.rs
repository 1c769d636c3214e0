//! The thread that sends spans to the collector.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::warn;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::trace::SpanExporter as _;
use opentelemetry_sdk::Resource;
use tokio::runtime::{self, Runtime};

use super::client::Client;
use super::queue::Queue;
use crate::config::Traces;
use crate::metrics::METRICS;

/// The reason that the collector did not take spans, in the metrics.
const NOT_SENT: &str = "export";

/// The longest reason in the log. A collector may answer with a document.
const MAX_REASON: usize = 256;

struct Exporter {
    queue: Arc<Queue>,
    exporter: SpanExporter,
    runtime: Runtime,
    timeout: Duration,
    endpoint: String,
}

/// Start the thread, which sends what is in the queue until that is closed.
///
/// # Errors
/// The thread cannot be started, or the certificates of the system not be read.
pub(super) fn start(section: &Traces, queue: Arc<Queue>) -> io::Result<()> {
    let exporter = Exporter {
        queue,
        exporter: exporter(section)?,
        // A thread of its own, and none that it shares with requests.
        runtime: runtime::Builder::new_current_thread()
            .enable_all()
            .build()?,
        timeout: *section.timeout,
        endpoint: section.endpoint.to_string(),
    };
    thread::Builder::new()
        .name("traces".into())
        .spawn(move || exporter.run())?;
    Ok(())
}

fn exporter(section: &Traces) -> io::Result<SpanExporter> {
    let headers = section.headers.iter();
    let headers: HashMap<_, _> = headers
        .map(|header| (header.name.to_string(), header.secret.expose().to_owned()))
        .collect();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new(section.endpoint.starts_with("https:"))?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&*section.endpoint)
        .with_timeout(*section.timeout)
        .with_headers(headers)
        .build();
    let mut exporter = exporter.map_err(|e: ExporterBuildError| io::Error::other(e.to_string()))?;
    let attributes = [
        KeyValue::new("service.name", section.service_name.to_string()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    exporter.set_resource(
        &Resource::builder_empty()
            .with_attributes(attributes)
            .build(),
    );
    Ok(exporter)
}

// === impl Exporter ===

impl Exporter {
    fn run(self) {
        while let Some(batch) = self.queue.take() {
            let count = batch.len() as u64;
            let sent = self.runtime.block_on(async {
                tokio::time::timeout(self.timeout, self.exporter.export(batch)).await
            });
            let reason = match sent {
                Ok(Ok(())) => {
                    METRICS.spans_sent.inc_by(count);
                    continue;
                }
                Ok(Err(e)) => e.to_string().chars().take(MAX_REASON).collect(),
                Err(_) => format!("no answer within {:?}", self.timeout),
            };
            METRICS
                .spans_dropped
                .with_label_values(&[NOT_SENT])
                .inc_by(count);
            warn!(
                "traces.endpoint: {}: {count} spans are lost: {reason}; start the collector, or correct the address",
                self.endpoint
            );
        }
        self.queue.end();
        // A lookup of a name may still hang.
        self.runtime.shutdown_background();
    }
}
