//! The end of a request: metrics, its line in the access log, and its name in the log.

use std::time::Instant;

use http::{header, HeaderValue};
use pingora_core::{Error, ErrorSource};
use pingora_proxy::Session;

use super::ctx::RequestCtx;
use super::shared::S3ProxyHttp;
use crate::http::rules::cache_status::CacheResult;
use crate::http::ServedStale;
use crate::metrics::METRICS;
use crate::proxy::access_log::Key;
use crate::proxy::cache_key::{path_at, requested_path};
use crate::proxy::memory;
use crate::proxy::way::Way;

impl S3ProxyHttp {
    /// Count the request, and log it.
    pub(super) fn finish(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        ctx: &mut RequestCtx,
    ) {
        // Read once: the clock is a noticeable part of a hit.
        let ended = Instant::now();
        let zero_copy = session.as_downstream().body_bytes_zero_copy();
        let way = Way::of(session, &ctx.caching);
        if zero_copy > 0 {
            METRICS.sendfile.inc();
            METRICS.sendfile_bytes.inc_by(zero_copy as u64);
        }
        // The bytes of a subrequest count when the client's request sends them.
        if !ctx.caching.is_background() {
            let bytes = session.body_bytes_sent();
            METRICS.body_bytes.inc_by(bytes as u64);
            METRICS.count_bytes(way, zero_copy as u64);
            let copied = bytes.saturating_sub(zero_copy) as u64;
            METRICS.count_bytes(Way::copied(&ctx.caching), copied);
            self.note_key(ctx);
        }
        if let Some(charged) = &ctx.charged {
            charged.charge(session.body_bytes_sent() as u64);
        }
        if ctx.route.is_some() && !ctx.caching.is_background() {
            if ctx.caching.asked_origin() {
                METRICS.misses.inc();
            } else if ctx.is_negative_hit || ctx.caching.is_hit(session) {
                METRICS.hits.inc();
            }
        }
        let stale = ctx.caching.served_stale(session);
        if let Some(why) = stale.filter(|_| !ctx.caching.is_background()) {
            let reason = match why {
                ServedStale::Error => "error",
                ServedStale::Revalidating => "revalidating",
                ServedStale::Accepted => "accepted",
            };
            METRICS.stale.with_label_values(&[reason]).inc();
        }
        if !ctx.caching.is_background() {
            self.measure(session, ctx, ended);
        }
        let now;
        let settings = match &ctx.route {
            Some(route) => route.site.settings(),
            None => {
                now = self.settings.load();
                &*now
            }
        };
        if let (Some(log), Some(began)) = (&settings.access_log, ctx.began) {
            let key = match (&ctx.admitted.key_id, ctx.relayed()) {
                (Some(key), _) => Key::Verified(key),
                (None, Some(_)) => Key::VerifiedByOrigin,
                (None, None) => Key::Unverified,
            };
            log.write(session, error, &ctx.caching, (began, ended), key, way);
        }
        if let (Some(tracer), Some(spans)) = (&self.tracer, &ctx.spans) {
            let bucket = ctx.route.as_ref().map(|route| route.bucket());
            let redactor = &settings.redactor;
            tracer.finish(session, spans, error, &ctx.caching, bucket, redactor);
        }
        self.caching.logging(session, error, &ctx.caching);
        if session.as_downstream().is_http2() || ctx.caching.asked_origin() {
            memory::request_ended();
        }
        // The response to WARM has the error, and cache_warmed_total counts it.
        let Some(error) = error.filter(|_| !ctx.caching.is_warming()) else {
            return;
        };
        let source = match error.esource() {
            // The reader of a subrequest has all that it needs.
            ErrorSource::Downstream if ctx.caching.is_background() => return,
            ErrorSource::Downstream => "downstream",
            ErrorSource::Upstream => "upstream",
            ErrorSource::Internal => "internal",
            ErrorSource::Unset => "unset",
        };
        METRICS.errors.with_label_values(&[source]).inc();
    }
}

impl S3ProxyHttp {
    /// Measure the time that a request of a client took.
    fn measure(&self, session: &Session, ctx: &RequestCtx, ended: Instant) {
        let Some(began) = ctx.began else { return };
        let times = ctx.route.as_ref().map(|route| route.site.times());
        let is_hit = || ctx.caching.is_hit(session).then_some(CacheResult::Hit);
        times.unwrap_or(&self.other_times).observe(
            ctx.caching.result().or_else(is_hit),
            ended.duration_since(began),
            ctx.caching.first_byte(began),
        );
    }

    /// Count the object that a client has asked for, among some of the requests.
    fn note_key(&self, ctx: &RequestCtx) {
        let Some(route) = &ctx.route else { return };
        self.top_keys.note(|| {
            let key = route.request.target.key()?;
            Some(path_at(&route.site, &key.encoded()))
        });
    }
}

/// The name of a request in the log. It has no query: the URL may be presigned, or have a token.
pub(super) fn summary(session: &Session) -> String {
    let request = session.req_header();
    let authority = request
        .uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let host = String::from_utf8_lossy(host.or(authority).unwrap_or_default());
    format!(
        "{} {}, Host: {host}",
        request.method,
        requested_path(request)
    )
}
