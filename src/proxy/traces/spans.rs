//! Notes on a request that is traced, and the spans that they become.
//!
//! A request has a span, with one each for its lookup, for each request to the origin, and for the fill.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Method, StatusCode, Version};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData};
use pingora_core::{Error, ErrorSource};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::context::Parent;
use crate::http::rules::cache_status::CacheResult;
use crate::http::CachingCtx;
use crate::proxy::access_log::{self, Redactor};
use crate::proxy::cache_key::{raw_path, requested_query};
use crate::proxy::way::Way;
use crate::s3::Site;

/// The name of the instrumentation.
const SCOPE: &str = env!("CARGO_PKG_NAME");

/// The most requests to the origin that have a span. A later one takes the place of the last.
const MAX_EXCHANGES: usize = 8;

/// The longest texts, without the mark of a cut.
const MAX_PATH: usize = 1024;
const MAX_QUERY: usize = 512;
const MAX_FIELD: usize = 256;
const MAX_METHOD: usize = 32;

/// Methods that a span may be named for: those of RFC 9110 and RFC 5789.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

/// Notes on a request that is traced.
pub(in crate::proxy) struct Spans {
    trace: TraceId,
    /// The span of the request.
    span: SpanId,
    parent: Option<SpanId>,
    began: Instant,
    /// The time of day then.
    time: SystemTime,
    lookup: Option<Lookup>,
    exchanges: Vec<Exchange>,
}

/// Notes on the lookup in the cache.
struct Lookup {
    began: Instant,
    ended: Option<Instant>,
}

/// Notes on a request to the origin.
struct Exchange {
    span: SpanId,
    began: Instant,
    host: String,
    port: u16,
    peer: Option<SocketAddr>,
    method: Method,
    url: String,
    answered: Option<(Instant, StatusCode)>,
    /// The last time that something was received, or that the request failed.
    ended: Option<Instant>,
    bytes: u64,
    error: Option<String>,
}

/// Facts about a request at its end.
pub(in crate::proxy) struct Outcome<'a> {
    pub error: Option<&'a Error>,
    pub ctx: &'a CachingCtx,
    pub bucket: Option<&'a str>,
    pub redactor: &'a Redactor,
}

// === impl Spans ===

impl Spans {
    /// A request that begins now, as a part of the trace of `parent` or of a new one.
    pub(super) fn new(parent: Option<Parent>) -> Spans {
        let ids = RandomIdGenerator::default();
        Spans {
            trace: parent.map_or_else(|| ids.new_trace_id(), |parent| parent.trace),
            span: ids.new_span_id(),
            parent: parent.map(|parent| parent.span),
            began: Instant::now(),
            time: SystemTime::now(),
            lookup: None,
            exchanges: Vec::new(),
        }
    }

    /// The span of the latest request to the origin, as the origin names it.
    pub(super) fn origin_parent(&self) -> Parent {
        let latest = self.exchanges.last();
        Parent {
            trace: self.trace,
            span: latest.map_or(self.span, |exchange| exchange.span),
            is_sampled: true,
        }
    }

    /// Note the begin of the lookup. The first time counts.
    pub(in crate::proxy) fn begin_lookup(&mut self) {
        self.lookup.get_or_insert_with(|| Lookup {
            began: Instant::now(),
            ended: None,
        });
    }

    /// Note the end of the lookup. The last time counts: a request that waits for another one looks up
    /// repeatedly.
    pub(in crate::proxy) fn end_lookup(&mut self) {
        if let Some(lookup) = &mut self.lookup {
            lookup.ended = Some(Instant::now());
        }
    }

    /// Note the begin of a request to the origin.
    pub(in crate::proxy) fn ask_origin(&mut self, site: &Site) {
        if self.exchanges.len() == MAX_EXCHANGES {
            self.exchanges.pop();
        }
        self.exchanges.push(Exchange {
            span: RandomIdGenerator::default().new_span_id(),
            began: Instant::now(),
            host: site.connect_host().to_owned(),
            port: site.port(),
            peer: None,
            method: Method::GET,
            url: String::new(),
            answered: None,
            ended: None,
            bytes: 0,
            error: None,
        });
    }

    /// Note the request to the origin as it is sent.
    pub(super) fn write_request(
        &mut self,
        request: &RequestHeader,
        site: &Site,
        redactor: &Redactor,
    ) {
        if let Some(exchange) = self.exchanges.last_mut() {
            let scheme = if site.tls() { "https" } else { "http" };
            let host = request.headers.get(HOST).map(HeaderValue::as_bytes);
            let host = access_log::plain(host.unwrap_or_default(), MAX_FIELD);
            // Without the query, which may have a signature.
            let path = redactor.path(raw_path(request), MAX_PATH);
            exchange.url = format!("{scheme}://{host}{path}");
            exchange.method = request.method.clone();
        }
    }

    /// Note the address of the origin.
    pub(in crate::proxy) fn connect(&mut self, peer: Option<SocketAddr>) {
        if let Some(exchange) = self.exchanges.last_mut() {
            exchange.peer = peer;
        }
    }

    /// Note the header of the origin's answer.
    pub(in crate::proxy) fn answered(&mut self, status: StatusCode) {
        if let Some(exchange) = self.exchanges.last_mut() {
            let now = Instant::now();
            exchange.answered = Some((now, status));
            exchange.ended = Some(now);
        }
    }

    /// Note a part of the body of the origin's answer.
    pub(in crate::proxy) fn received(&mut self, bytes: usize) {
        if let Some(exchange) = self.exchanges.last_mut() {
            exchange.bytes += bytes as u64;
            exchange.ended = Some(Instant::now());
        }
    }

    /// Note that the request to the origin has failed. An error status says more than the retry that
    /// follows it.
    pub(in crate::proxy) fn failed(&mut self, error: &Error) {
        if let Some(exchange) = self.exchanges.last_mut() {
            exchange.ended = Some(Instant::now());
            if !exchange
                .answered
                .is_some_and(|(_, status)| is_error(status))
            {
                exchange.error = Some(error.etype().as_str().to_owned());
            }
        }
    }

    /// The spans of the request, which ends now.
    pub(super) fn finish(&self, session: &Session, outcome: &Outcome) -> Vec<SpanData> {
        let now = Instant::now();
        let result = outcome.ctx.result();
        let mut spans = Vec::with_capacity(3 + self.exchanges.len());
        spans.push(self.request_span(session, outcome, now));
        let looks_up = result != Some(CacheResult::Bypass);
        if let Some(lookup) = self.lookup.as_ref().filter(|_| looks_up) {
            let first_byte = outcome.ctx.first_byte(self.began);
            let first_byte = first_byte.map(|time| self.began + time);
            let ended = lookup.ended.or(first_byte).unwrap_or(now);
            let mut span = self.span("lookup", SpanKind::Internal, lookup.began, ended);
            span.attributes.extend(cache(result));
            spans.push(span);
        }
        for (number, exchange) in self.exchanges.iter().enumerate() {
            spans.push(self.origin_span(exchange, number, now));
        }
        if outcome.ctx.is_stored(session) {
            spans.extend(self.fill_span(now));
        }
        spans
    }

    fn request_span(&self, session: &Session, outcome: &Outcome, now: Instant) -> SpanData {
        let request = session.req_header();
        let ctx = outcome.ctx;
        let name = method_name(&request.method);
        let mut span = self.span(name, SpanKind::Server, self.began, now);
        span.span_context = self.context(self.span);
        span.parent_span_id = self.parent.unwrap_or(SpanId::INVALID);
        span.parent_span_is_remote = self.parent.is_some();
        let attributes = &mut span.attributes;
        let redactor = outcome.redactor;
        attributes.extend(methods(&request.method));
        attributes.push(text("url.path", redactor.path(raw_path(request), MAX_PATH)));
        if let Some(query) = requested_query(request).filter(|query| !query.is_empty()) {
            attributes.push(text("url.query", redactor.query(query, MAX_QUERY)));
        }
        if let Some(bucket) = outcome.bucket.filter(|bucket| !bucket.is_empty()) {
            attributes.push(text("aws.s3.bucket", bucket.to_owned()));
        }
        attributes.extend(cache(ctx.result()));
        let status = session.as_downstream().response_written();
        let status = access_log::status_of(status);
        attributes.extend(client(session, ctx));
        attributes.push(number("http.response.status_code", status.into()));
        let bytes = session.as_downstream().body_bytes_sent() as u64;
        attributes.push(number("http.response.body.size", bytes));
        let source = outcome.error.map(|error| match error.esource() {
            ErrorSource::Downstream => "downstream",
            ErrorSource::Upstream => "upstream",
            ErrorSource::Internal | ErrorSource::Unset => "internal",
        });
        let failed = match source {
            Some(source) => Some(source.to_owned()),
            None => (status >= 500).then(|| status.to_string()),
        };
        if let Some(failed) = failed {
            attributes.push(text("error.type", failed));
            // A client that leaves is not an error of the server.
            if source != Some("downstream") {
                span.status = Status::error("");
            }
        }
        span
    }

    fn origin_span(&self, exchange: &Exchange, number_of: usize, now: Instant) -> SpanData {
        let ended = exchange.ended.unwrap_or(now);
        let name = method_name(&exchange.method);
        let mut span = self.span(name, SpanKind::Client, exchange.began, ended);
        span.span_context = self.context(exchange.span);
        let attributes = &mut span.attributes;
        attributes.extend(methods(&exchange.method));
        attributes.push(text("server.address", exchange.host.clone()));
        attributes.push(number("server.port", exchange.port.into()));
        if let Some(peer) = exchange.peer {
            attributes.push(text("network.peer.address", peer.ip().to_string()));
        }
        if !exchange.url.is_empty() {
            attributes.push(text("url.full", exchange.url.clone()));
        }
        if number_of > 0 {
            attributes.push(number("http.request.resend_count", number_of as u64));
        }
        let mut failed = exchange.error.clone();
        if let Some((at, status)) = exchange.answered {
            let status_code = u64::from(status.as_u16());
            attributes.push(number("http.response.status_code", status_code));
            attributes.push(number("http.response.body.size", exchange.bytes));
            let wait = at.saturating_duration_since(exchange.began);
            attributes.push(KeyValue::new("s3_proxy.first_byte", wait.as_secs_f64()));
            if is_error(status) {
                failed.get_or_insert_with(|| status.as_str().to_owned());
            }
        }
        if let Some(failed) = failed {
            attributes.push(text("error.type", failed));
            span.status = Status::error("");
        }
        span
    }

    /// The span of an answer that was stored, from its header on.
    fn fill_span(&self, now: Instant) -> Option<SpanData> {
        let exchange = self.exchanges.last()?;
        let (began, _) = exchange.answered?;
        let ended = exchange.ended.unwrap_or(now);
        let mut span = self.span("fill", SpanKind::Internal, began, ended);
        span.attributes
            .push(number("s3_proxy.fill.bytes", exchange.bytes));
        Some(span)
    }

    /// A span below that of the request.
    fn span(&self, name: &'static str, kind: SpanKind, began: Instant, ended: Instant) -> SpanData {
        SpanData {
            span_context: self.context(RandomIdGenerator::default().new_span_id()),
            parent_span_id: self.span,
            parent_span_is_remote: false,
            span_kind: kind,
            name: Cow::Borrowed(name),
            start_time: self.time_of(began),
            end_time: self.time_of(ended),
            attributes: Vec::with_capacity(16),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder(SCOPE).build(),
        }
    }

    fn context(&self, span: SpanId) -> SpanContext {
        let flags = TraceFlags::SAMPLED;
        SpanContext::new(self.trace, span, flags, false, TraceState::NONE)
    }

    fn time_of(&self, at: Instant) -> SystemTime {
        let since: Duration = at.saturating_duration_since(self.began);
        self.time + since
    }
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// Attributes of the client and of the bytes that it has received.
fn client(session: &Session, ctx: &CachingCtx) -> Vec<KeyValue> {
    let request = session.req_header();
    let downstream = session.as_downstream();
    let is_tls = downstream
        .digest()
        .is_some_and(|digest| digest.ssl_digest.is_some());
    let version = match request.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    let mut attributes = vec![
        KeyValue::new("url.scheme", if is_tls { "https" } else { "http" }),
        KeyValue::new("network.protocol.version", version),
    ];
    let host = request.headers.get(HOST).map(HeaderValue::as_bytes);
    let authority = request.uri.authority();
    let authority = host.or_else(|| Some(authority?.as_str().as_bytes()));
    if let Some((host, port)) = authority.map(host_and_port) {
        attributes.push(text("server.address", access_log::plain(host, MAX_FIELD)));
        attributes.extend(port.map(|port| number("server.port", port.into())));
    }
    let peer = downstream.client_addr().and_then(|addr| addr.as_inet());
    if let Some(peer) = peer {
        let ip = peer.ip().to_canonical().to_string();
        attributes.push(text("network.peer.address", ip));
    }
    if let Some(trace) = ctx.trace() {
        let client = trace.client().map(|client| client.to_string());
        attributes.extend(client.map(|client| text("client.address", client)));
        let id = trace.id().as_str().to_owned();
        attributes.push(text("s3_proxy.request_id", id));
    }
    if let Some(agent) = request.headers.get(USER_AGENT) {
        let agent = access_log::plain(agent.as_bytes(), MAX_FIELD);
        attributes.push(text("user_agent.original", agent));
    }
    if downstream.body_bytes_sent() > 0 {
        let sent = Way::of(session, ctx).label();
        attributes.push(KeyValue::new("s3_proxy.sent", sent));
    }
    attributes
}

/// The parts of an authority, without a user.
fn host_and_port(authority: &[u8]) -> (&[u8], Option<u16>) {
    let authority = access_log::without_user(authority);
    let colon = authority.iter().rposition(|b| *b == b':');
    let port = colon.and_then(|at| std::str::from_utf8(&authority[at + 1..]).ok()?.parse().ok());
    match (colon, port) {
        (Some(at), Some(port)) => (&authority[..at], Some(port)),
        _ => (authority, None),
    }
}

/// The method ("http.request.method", OpenTelemetry Semantic Conventions).
fn methods(method: &Method) -> Vec<KeyValue> {
    if METHODS.contains(method) {
        return vec![text("http.request.method", method.as_str().to_owned())];
    }
    let original = access_log::plain(method.as_str().as_bytes(), MAX_METHOD);
    vec![
        KeyValue::new("http.request.method", "_OTHER"),
        text("http.request.method_original", original),
    ]
}

/// The name of the span of a request. It has no path, because the number of names must be small.
fn method_name(method: &Method) -> &'static str {
    let names = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let known = METHODS.iter().zip(names);
    let mut known = known.filter(|(known, _)| *known == method);
    known.next().map_or("HTTP", |(_, name)| name)
}

fn cache(result: Option<CacheResult>) -> Option<KeyValue> {
    let result = result?.x_cache();
    Some(KeyValue::new("s3_proxy.cache", result))
}

fn text(name: &'static str, value: String) -> KeyValue {
    KeyValue::new(name, value)
}

fn number(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, Value::I64(i64::try_from(value).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_has_a_host_and_a_port() {
        for (authority, host, port) in [
            ("h", "h", None),
            ("h:80", "h", Some(80)),
            ("u:p@h:80", "h", Some(80)),
            ("[::1]:80", "[::1]", Some(80)),
            ("[::1]", "[::1]", None),
            ("", "", None),
        ] {
            let (found, at) = host_and_port(authority.as_bytes());
            assert_eq!((found, at), (host.as_bytes(), port), "{authority}");
        }
    }

    #[test]
    fn only_known_methods_are_names() {
        assert_eq!(method_name(&Method::GET), "GET");
        assert_eq!(method_name(&Method::PATCH), "PATCH");
        let other = Method::from_bytes(b"get").unwrap();
        assert_eq!(method_name(&other), "HTTP");
        let [method, original] = &methods(&other)[..] else {
            panic!("two attributes");
        };
        assert_eq!(method.value.as_str(), "_OTHER");
        assert_eq!(original.value.as_str(), "get");
    }
}
