//! Traces of requests, for a collector of OpenTelemetry.
//!
//! - this module: the decision on a request, and `traceparent` on its way through the proxy
//! - `context`: that field
//! - `spans`: notes on a request, and its spans
//! - `queue`: spans on their way to the exporter
//! - `exporter`, `client`: the thread that sends them, and its HTTP client
//!
//! A worker makes the spans of a request at its end, and moves them into the queue. It never waits for
//! the collector.

mod client;
mod context;
mod exporter;
mod queue;
mod spans;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use self::context::{state, Parent, TRACEPARENT, TRACESTATE};
use self::queue::Queue;
use self::spans::Outcome;
pub(super) use self::spans::Spans;
use super::access_log::Redactor;
use super::cache_key::requested_query;
use super::settings::Served;
use crate::config::Config;
use crate::http::CachingCtx;
use crate::metrics::METRICS;
use crate::s3::Signed;

/// The reason that there was no room for spans, in the metrics.
const NO_ROOM: &str = "queue";

/// Traces requests.
pub struct Tracer {
    sample_ratio: f64,
    queue: Arc<Queue>,
}

// === impl Tracer ===

impl Tracer {
    /// The tracer that `config` asks for, with its thread.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn open(config: &Config) -> io::Result<Option<Arc<Tracer>>> {
        let Some(section) = &config.traces else {
            return Ok(None);
        };
        let queue = Arc::new(Queue::default());
        exporter::start(section, queue.clone())?;
        Ok(Some(Arc::new(Tracer {
            sample_ratio: *section.sample_ratio,
            queue,
        })))
    }

    /// Send what waits, and end. Spans that cannot be sent within `timeout` are lost.
    pub fn close(&self, timeout: Duration) {
        if !self.queue.close(timeout) {
            warn!("traces.endpoint: the last spans could not be sent in time");
        }
    }

    /// Decide on a request that has just come. `is_trusted`: a trusted proxy has sent it, and decides by
    /// the flag of its `traceparent`. The proxy's own requests are not traced: nothing tells if those of
    /// the client are.
    pub(super) fn begin(&self, session: &Session, is_trusted: bool) -> Option<Box<Spans>> {
        if session.subrequest_ctx.is_some() {
            return None;
        }
        let parent = Parent::of(&session.req_header().headers);
        let is_sampled = match parent.filter(|_| is_trusted) {
            Some(parent) => parent.is_sampled,
            None => fastrand::f64() < self.sample_ratio,
        };
        is_sampled.then(|| Box::new(Spans::new(parent)))
    }

    /// Name the span of a request to the origin in it, unless a client has signed the field. Call it
    /// after the request is signed: the field is none of those that S3 requires to be signed.
    pub(super) fn name_in_origin_request(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        served: &Served,
        spans: Option<&mut Spans>,
    ) -> Result<()> {
        let asked = session.req_header();
        let parent = match spans {
            Some(spans) => {
                spans.write_request(request, served, &served.settings().redactor);
                Some(spans.origin_parent())
            }
            None => Parent::of(&asked.headers).map(|parent| Parent {
                is_sampled: false,
                ..parent
            }),
        };
        let Some(parent) = parent else { return Ok(()) };
        if request.headers.contains_key(&TRACEPARENT) && is_signed(asked) {
            return Ok(());
        }
        request.insert_header(TRACEPARENT, parent.to_value())?;
        if !request.headers.contains_key(&TRACESTATE) && Parent::of(&asked.headers).is_some() {
            for value in state(&asked.headers) {
                request.append_header(TRACESTATE, value)?;
            }
        }
        Ok(())
    }

    /// Send the spans of a request, which ends now.
    pub(super) fn finish(
        &self,
        session: &Session,
        spans: &Spans,
        error: Option<&Error>,
        ctx: &CachingCtx,
        bucket: Option<&str>,
        redactor: &Redactor,
    ) {
        let outcome = Outcome {
            error,
            ctx,
            bucket,
            redactor,
        };
        let spans = spans.finish(session, &outcome);
        let count = spans.len() as u64;
        if !self.queue.push(spans) {
            let dropped = METRICS.spans_dropped.with_label_values(&[NO_ROOM]);
            dropped.inc_by(count);
        }
    }
}

/// True if the client may have signed the field, so that it must not be changed.
fn is_signed(request: &RequestHeader) -> bool {
    Signed::of(requested_query(request), &request.headers).contains(&TRACEPARENT)
}
