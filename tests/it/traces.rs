//! Traces of requests: a collector gets the spans of those that are sampled, without secrets, and no
//! collector holds a request up.

use std::{collections::BTreeMap, net::TcpListener};

use crate::{builder, proxy};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{span::SpanKind, status::StatusCode},
};
use prost::Message;
use test_support::{
    eventually, get, head, request, Bucket, Connection, Gate, Origin, Proxy, ProxyBuilder, Reply,
    Response,
};

const SENT: &str = "trace_spans_sent_total";
const DROPPED: &str = "trace_spans_dropped_total";

/// Larger than what is kept in memory and copied.
const LARGE: u64 = 100_000;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A span as the collector has received it.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: i32,
    is_error: bool,
    began: u64,
    ended: u64,
    attributes: BTreeMap<String, String>,
}

// === impl Span ===

impl Span {
    fn get(&self, name: &str) -> &str {
        let value = self.attributes.get(name);
        value.unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }
}

/// A collector that takes all.
fn collector() -> Origin {
    Origin::start(|request| {
        assert_eq!(request.method, "POST");
        Reply::bytes("").header("content-type", "application/x-protobuf")
    })
}

/// An origin of objects whose names are their lengths.
fn origin() -> Origin {
    Origin::start(|request| {
        let len = request.path().rsplit('/').next().unwrap_or_default();
        match len.parse() {
            Ok(len) => Reply::pattern(1, len)
                .header("etag", "\"1\"")
                .answering(request),
            Err(_) => Reply::status(404),
        }
    })
}

/// A proxy that traces this share of the requests.
fn traced(origin: &Origin, collector: &Origin, sample_ratio: &str) -> ProxyBuilder {
    let proxy = proxy(origin).traces("endpoint", collector.url());
    proxy.traces("sample_ratio", sample_ratio)
}

fn hexadecimal(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The spans that the collector has received.
fn spans(collector: &Origin) -> Vec<Span> {
    let mut spans = Vec::new();
    for request in collector.requests() {
        let exported = ExportTraceServiceRequest::decode(&*request.body).expect("protobuf");
        let resources = exported.resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            let attributes = span.attributes.iter().map(|pair| {
                let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
                (pair.key.clone(), text(value.expect("a value")))
            });
            let failed = StatusCode::Error as i32;
            spans.push(Span {
                trace: hexadecimal(&span.trace_id),
                id: hexadecimal(&span.span_id),
                parent: hexadecimal(&span.parent_span_id),
                name: span.name.clone(),
                kind: span.kind,
                is_error: span.status.is_some_and(|status| status.code == failed),
                began: span.start_time_unix_nano,
                ended: span.end_time_unix_nano,
                attributes: attributes.collect(),
            });
        }
    }
    spans
}

/// The spans, once there are `count`.
fn wait_for(collector: &Origin, count: usize) -> Vec<Span> {
    eventually("the collector has the spans", || {
        spans(collector).len() >= count
    });
    let spans = spans(collector);
    assert_eq!(spans.len(), count, "{spans:#?}");
    spans
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// A request that names its caller.
fn get_from_caller(proxy: &Proxy, target: &str, flags: &str) -> Response {
    let value = traceparent(flags);
    let fields = [("traceparent", &*value), ("tracestate", "vendor=1")];
    request(proxy.addr(), "GET", target, &fields)
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut named = spans.iter().filter(|span| span.name == name);
    let found = named
        .next()
        .unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(named.next().is_none(), "{spans:#?}");
    found
}

fn kind(spans: &[Span], kind: SpanKind) -> &Span {
    let mut found = spans.iter().filter(|span| span.kind == kind as i32);
    let span = found
        .next()
        .unwrap_or_else(|| panic!("no {kind:?} in {spans:#?}"));
    assert!(found.next().is_none(), "{spans:#?}");
    span
}

// --- what a trace has ---

#[test]
fn a_miss_is_a_tree_below_its_caller_that_the_origin_continues() {
    let (origin, collector) = (origin(), collector());
    let proxy = traced(&origin, &collector, "1").start();
    let target = format!("/assets/{LARGE}");
    assert_eq!(get_from_caller(&proxy, &target, "01").x_cache(), "MISS");

    let spans = wait_for(&collector, 4);
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    let server = kind(&spans, SpanKind::Server);
    assert_eq!(server.parent, CALLER);
    assert_eq!(server.name, "GET");
    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.path", &*target),
        ("url.scheme", "http"),
        ("network.protocol.version", "1.1"),
        ("server.address", "127.0.0.1"),
        ("server.port", &proxy.addr().port().to_string()),
        ("network.peer.address", "127.0.0.1"),
        ("http.response.status_code", "200"),
        ("http.response.body.size", &LARGE.to_string()),
        ("aws.s3.bucket", "bucket"),
        ("s3_proxy.cache", "MISS"),
    ] {
        assert_eq!(server.get(name), value, "{name}");
    }
    let to_origin = kind(&spans, SpanKind::Client);
    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.full", &*format!("{}/bucket/{LARGE}", origin.url())),
        ("server.address", "127.0.0.1"),
        ("server.port", &origin.addr().port().to_string()),
        ("http.response.status_code", "200"),
        ("http.response.body.size", &LARGE.to_string()),
    ] {
        assert_eq!(to_origin.get(name), value, "{name}");
    }
    let lookup = named(&spans, "lookup");
    let fill = named(&spans, "fill");
    assert_eq!(fill.get("s3_proxy.fill.bytes"), LARGE.to_string());
    for span in [lookup, to_origin, fill] {
        assert_eq!(span.parent, server.id, "{span:#?}");
        assert!(server.began <= span.began && span.began <= span.ended);
        assert!(span.ended <= server.ended, "{span:#?} {server:#?}");
    }
    assert!(lookup.ended <= to_origin.began && to_origin.began <= fill.began);
    assert!(spans.iter().all(|span| !span.is_error), "{spans:#?}");

    // The origin is told the span of the request to it.
    let seen = origin.requests().pop().expect("a request");
    let expected = format!("00-{TRACE}-{}-01", to_origin.id);
    assert_eq!(seen.header("traceparent"), Some(&*expected));
    assert_eq!(seen.header("tracestate"), Some("vendor=1"));
    proxy.expect_metric(SENT, 4);
    proxy.expect_metric(DROPPED, 0);
}

#[test]
fn hits_have_a_lookup_and_begin_traces_of_their_own() {
    let (origin, collector) = (origin(), collector());
    let proxy = traced(&origin, &collector, "1").start();
    let target = format!("/assets/{LARGE}");
    assert_eq!(proxy.get(&target).x_cache(), "MISS");
    // The first hit prepares the header for the second one.
    for _ in 0..2 {
        assert_eq!(proxy.get(&target).x_cache(), "HIT");
    }
    assert_eq!(head(proxy.addr(), &target).x_cache(), "HIT");
    let spans = wait_for(&collector, 4 + 2 + 2 + 2);
    let servers = spans
        .iter()
        .filter(|span| span.kind == SpanKind::Server as i32);
    let servers: Vec<_> = servers.collect();
    assert_eq!(servers.len(), 4);
    for server in &servers {
        assert_eq!(server.parent, "");
        let same_trace = spans.iter().filter(|span| span.trace == server.trace);
        let expected = match server.get("s3_proxy.cache") {
            "MISS" => 4,
            _ => 2,
        };
        assert_eq!(same_trace.count(), expected, "{spans:#?}");
    }
    let is_hit = |server: &&&Span| server.name == "GET" && server.get("s3_proxy.cache") == "HIT";
    assert_eq!(servers.iter().filter(is_hit).count(), 2);
    for server in servers.iter().filter(is_hit) {
        assert_eq!(server.get("s3_proxy.sent"), "sendfile");
        assert_eq!(server.get("http.response.status_code"), "200");
        assert_eq!(server.get("http.response.body.size"), LARGE.to_string());
    }
}

#[test]
fn a_request_that_is_repeated_has_a_span_for_each_attempt() {
    let collector = collector();
    let origin = Origin::scripted();
    origin.script("/bucket/a", |_, serial| match serial {
        1 => Reply::status(503),
        _ => Reply::ok().with_status(500),
    });
    let proxy = traced(&origin, &collector, "1").start();
    assert_eq!(proxy.get("/assets/a").status, 500);
    let attempts = origin.seen("/bucket/a");
    let spans = wait_for(&collector, 2 + attempts.len());
    let server = kind(&spans, SpanKind::Server);
    assert!(server.is_error);
    assert_eq!(server.get("error.type"), "500");
    let to_origin = spans
        .iter()
        .filter(|span| span.kind == SpanKind::Client as i32);
    for (number, (span, request)) in to_origin.zip(&attempts).enumerate() {
        let status = if number == 0 { "503" } else { "500" };
        assert_eq!(span.get("http.response.status_code"), status);
        assert_eq!(span.get("error.type"), status);
        assert!(span.is_error);
        if number > 0 {
            let resent = number.to_string();
            assert_eq!(span.get("http.request.resend_count"), resent);
        }
        // Each attempt names its own span.
        let named = request.header("traceparent").expect("a span");
        assert!(named.contains(&span.id), "{named} {span:#?}");
    }
}

#[test]
fn the_requests_of_the_proxy_itself_have_no_spans() {
    let (origin, collector) = (origin(), collector());
    let mut proxy = traced(&origin, &collector, "1").start();
    let target = format!("/assets/{LARGE}");
    let value = traceparent("01");
    let fields = [("range", "bytes=10-19"), ("traceparent", &*value)];
    let part = request(proxy.addr(), "GET", &target, &fields);
    assert_eq!((part.status, part.body.len()), (206, 10));
    // The whole is stored for the next client.
    proxy.expect_metric("cache_entries", 1);
    assert!(proxy.stop_gracefully().success());
    let spans = spans(&collector);
    let server = kind(&spans, SpanKind::Server);
    assert_eq!(server.parent, CALLER);
    let requests = origin.requests();
    let is_traced = |named: &str| spans.iter().any(|span| named.contains(&span.id));
    for request in &requests {
        let named = request.header("traceparent").expect("a span");
        // A request without a span is in the trace, and is not to be recorded.
        assert!(is_traced(named) || named == traceparent("00"), "{named}");
    }
    let own = |request: &&test_support::Request| request.header("range").is_none();
    assert!(requests.iter().any(|request| own(&request)));
}

// --- sampling ---

#[test]
fn nothing_is_sent_of_requests_that_are_not_sampled() {
    let (origin, collector) = (origin(), collector());
    let mut proxy = traced(&origin, &collector, "0").start();
    // The flag of a stranger does not decide.
    for target in ["/assets/10", "/assets/10", "/assets/20"] {
        assert_eq!(get_from_caller(&proxy, target, "01").status, 200);
    }
    assert_eq!(proxy.get("/assets/30").status, 200);
    // The origin may belong to the trace all the same, but is not told to record it.
    for (path, expected) in [
        ("/bucket/10", Some(traceparent("00"))),
        ("/bucket/20", Some(traceparent("00"))),
        ("/bucket/30", None),
    ] {
        let seen = origin.seen(path).pop().expect("a request");
        assert_eq!(seen.header("traceparent"), expected.as_deref(), "{path}");
    }
    proxy.expect_metric(SENT, 0);
    // Waiting spans are sent at the end.
    assert!(proxy.stop_gracefully().success());
    assert!(collector.requests().is_empty());
}

#[test]
fn a_trusted_proxy_decides_by_its_flag() {
    for (ratio, flags, count) in [("0", "01", 4), ("1", "00", 0)] {
        let (origin, collector) = (origin(), collector());
        let proxy = traced(&origin, &collector, ratio);
        let mut proxy = proxy.trusted_proxies("[127.0.0.1]").start();
        let target = format!("/assets/{LARGE}");
        assert_eq!(get_from_caller(&proxy, &target, flags).x_cache(), "MISS");
        assert!(proxy.stop_gracefully().success());
        let spans = spans(&collector);
        assert_eq!(spans.len(), count, "{spans:#?}");
        assert!(spans.iter().all(|span| span.trace == TRACE));
        let seen = origin.requests().pop().expect("a request");
        let named = seen.header("traceparent").expect("a span");
        assert!(named.contains(TRACE) && named.ends_with(flags), "{named}");
    }
}

#[test]
fn what_is_no_traceparent_begins_a_new_trace() {
    let (origin, collector) = (origin(), collector());
    let proxy = traced(&origin, &collector, "1").start();
    let target = format!("/assets/{LARGE}");
    let fields = [("traceparent", "00-0-0-01"), ("tracestate", "vendor=1")];
    assert_eq!(request(proxy.addr(), "GET", &target, &fields).status, 200);
    let spans = wait_for(&collector, 4);
    let server = kind(&spans, SpanKind::Server);
    assert_eq!(server.parent, "");
    let seen = origin.requests().pop().expect("a request");
    let named = seen.header("traceparent").expect("a span");
    assert!(named.contains(&server.trace), "{named}");
    assert_eq!(seen.header("tracestate"), None);
}

#[test]
fn without_traces_the_origin_is_not_told_of_any() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    assert_eq!(get_from_caller(&proxy, "/assets/10", "01").status, 200);
    let seen = origin.requests().pop().expect("a request");
    assert_eq!(seen.header("traceparent"), None);
    assert_eq!(seen.header("tracestate"), None);
}

// --- collectors ---

#[test]
fn the_collector_gets_the_fields_of_the_configuration() {
    let (origin, collector) = (origin(), collector());
    let headers = "[{name: authorization, secret: 'Bearer ${COLLECTOR_TOKEN}'}]";
    let proxy = proxy(&origin)
        .traces("endpoint", format!("{}/otlp/traces", collector.url()))
        .traces("sample_ratio", "1")
        .traces("service_name", "edge")
        .traces("headers", headers)
        .env("COLLECTOR_TOKEN", "hunter2hunter2")
        .start();
    assert_eq!(proxy.get("/assets/10").status, 200);
    wait_for(&collector, 4);
    let exported = collector.requests().pop().expect("a request");
    assert_eq!(exported.target, "/otlp/traces");
    assert_eq!(
        exported.header("authorization"),
        Some("Bearer hunter2hunter2")
    );
    assert_eq!(
        exported.header("content-type"),
        Some("application/x-protobuf")
    );
    let exported = ExportTraceServiceRequest::decode(&*exported.body).expect("protobuf");
    let resource = exported.resource_spans[0].resource.clone();
    let attributes = resource.expect("a resource").attributes;
    let service = attributes.iter().find(|pair| pair.key == "service.name");
    let service = service.and_then(|pair| pair.value.as_ref()?.value.as_ref());
    assert_eq!(service, Some(&Value::StringValue("edge".to_owned())));
    let shown = proxy.s3_proxy(&["check", "--print"]);
    let shown = [shown.stdout, shown.stderr, proxy.stderr().into_bytes()].concat();
    assert!(!String::from_utf8_lossy(&shown).contains("hunter2"));
}

#[test]
fn the_default_path_is_that_of_the_protocol() {
    let (origin, collector) = (origin(), collector());
    let proxy = traced(&origin, &collector, "1").start();
    assert_eq!(proxy.get("/assets/10").status, 200);
    wait_for(&collector, 4);
    assert_eq!(collector.requests()[0].target, "/v1/traces");
}

#[test]
fn a_collector_that_hangs_costs_spans_and_no_request() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = origin();
    let collector = Origin::start(move |_| Reply::bytes("").hold(&held));
    let proxy = traced(&origin, &collector, "1")
        .traces("timeout", "200ms")
        .start();
    let target = format!("/assets/{LARGE}");
    assert_eq!(proxy.get(&target).status, 200);
    gate.wait_for_arrivals(1);
    // While it hangs, requests are served, and the queue has room for 2048 spans: a hit has two.
    let mut client = Connection::open(proxy.addr());
    for _ in 0..1500 {
        assert_eq!(client.get(&target).status, 200);
    }
    eventually("spans are dropped", || {
        let metrics = proxy.metrics();
        let labels = [("reason", "export")];
        metrics.sum_where(DROPPED, &labels) >= 4
    });
    assert_eq!(proxy.metric(SENT), 0);
    eventually("the log names the collector", || {
        proxy.stderr().contains("traces.endpoint: http://")
    });
    gate.open();
    eventually("the collector is used again", || {
        assert_eq!(client.get(&target).status, 200);
        proxy.metric(SENT) > 0
    });
}

#[test]
fn spans_without_room_are_dropped_and_counted() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = origin();
    let collector = Origin::start(move |_| Reply::bytes("").hold(&held));
    let proxy = traced(&origin, &collector, "1")
        .traces("timeout", "60s")
        .start();
    let target = format!("/assets/{LARGE}");
    assert_eq!(proxy.get(&target).status, 200);
    gate.wait_for_arrivals(1);
    let mut client = Connection::open(proxy.addr());
    let requests = 1500;
    for _ in 0..requests {
        assert_eq!(client.get(&target).status, 200);
    }
    // A hit has two spans.
    let dropped = 2 * requests - 2048;
    proxy.expect_metric_where(DROPPED, &[("reason", "queue")], dropped);
    gate.open();
    proxy.expect_metric(SENT, 4 + 2048);
}

#[test]
fn a_collector_that_refuses_costs_spans_and_no_request() {
    let origin = origin();
    // Nobody listens there any more.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = listener.local_addr().expect("an address");
    drop(listener);
    let refusing = Origin::start(|_| Reply::status(401));
    for endpoint in [format!("http://{closed}"), refusing.url()] {
        let proxy = proxy(&origin)
            .traces("endpoint", endpoint)
            .traces("sample_ratio", "1");
        let mut proxy = proxy.start();
        assert_eq!(proxy.get("/assets/10").status, 200);
        proxy.expect_metric_where(DROPPED, &[("reason", "export")], 4);
        proxy.expect_metric(SENT, 0);
        eventually("the log says how many", || {
            proxy.stderr().contains("4 spans are lost")
        });
        assert!(proxy.stop_gracefully().success());
    }
}

#[test]
fn the_last_spans_are_sent_before_the_end() {
    let (origin, collector) = (origin(), collector());
    let mut proxy = traced(&origin, &collector, "1").start();
    assert_eq!(proxy.get("/assets/10").status, 200);
    assert!(proxy.stop_gracefully().success());
    assert_eq!(spans(&collector).len(), 4);
}

// --- secrets ---

#[test]
fn no_exported_byte_is_a_secret() {
    const SECRETS: [&str; 6] = [
        "signature-5ecret",
        "token-5ecret",
        "session-5ecret",
        "password-5ecret",
        "bearer-5ecret",
        "origin-5ecret",
    ];
    let (origin, collector) = (origin(), collector());
    let bucket =
        Bucket::at(&origin, "/assets", "bucket").credentials("AKIAORIGIN", "origin-5ecret");
    let proxy = builder()
        .bucket(bucket)
        .traces("endpoint", collector.url())
        .traces("sample_ratio", "1")
        .start();
    let query = "X-Amz-Signature=signature-5ecret&X-Amz-Security-Token=session-5ecret\
                 &token=token-5ecret&versionId=7";
    let fields = [
        ("authorization", "Bearer bearer-5ecret"),
        ("cookie", "session=session-5ecret"),
        ("referer", "http://u:password-5ecret@h/?token=token-5ecret"),
    ];
    for target in [
        format!("/assets/10?{query}"),
        "/assets/10;token=token-5ecret".to_owned(),
        format!("/unknown/10?{query}"),
    ] {
        request(proxy.addr(), "GET", &target, &fields);
    }
    let servers = || {
        let spans = spans(&collector);
        let is_server = |span: &&Span| span.kind == SpanKind::Server as i32;
        spans.iter().filter(is_server).cloned().collect::<Vec<_>>()
    };
    eventually("each request has its span", || servers().len() >= 3);
    for request in collector.requests() {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        for secret in SECRETS {
            assert!(!body.contains(secret), "{secret}: {body:?}");
        }
        assert!(!body.contains("5ecret"), "{body:?}");
    }
    // Values that are no secrets are there.
    let servers = servers();
    let first = servers.iter().find(|span| {
        span.get("url.path") == "/assets/10" && span.attributes.contains_key("url.query")
    });
    let query = first.expect("a request").get("url.query");
    assert!(
        query.contains("versionId=7") && query.contains("REDACTED"),
        "{query}"
    );
    for request in origin.requests() {
        let signed = request.header("authorization").expect("a signature");
        assert!(!signed.contains("traceparent"), "{signed}");
    }
}

#[test]
fn a_traceparent_that_a_client_has_signed_reaches_s3_as_it_is() {
    let (origin, collector) = (origin(), collector());
    let bucket = Bucket::at(&origin, "/bucket", "bucket").set("auth", "passthrough");
    let proxy = builder()
        .bucket(bucket)
        .traces("endpoint", collector.url())
        .traces("sample_ratio", "1")
        .start();
    let signed = |names: &str| {
        format!(
            "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, \
             SignedHeaders={names}, Signature=0"
        )
    };
    let value = traceparent("00");
    for (number, names, is_kept) in [(10, "host;traceparent", true), (20, "host", false)] {
        let authorization = signed(names);
        let fields = [("authorization", &*authorization), ("traceparent", &*value)];
        let target = format!("/bucket/{number}");
        assert_eq!(request(proxy.addr(), "GET", &target, &fields).status, 200);
        let seen = origin.requests().pop().expect("a request");
        let named = seen.header("traceparent").expect("a span");
        assert_eq!(named == value, is_kept, "{named}");
        assert!(named.contains(TRACE), "{named}");
    }
    eventually("both are traced", || {
        let spans = spans(&collector);
        let servers = spans
            .iter()
            .filter(|span| span.kind == SpanKind::Server as i32);
        servers.count() == 2
    });
}

#[test]
fn a_request_that_is_refused_is_traced_too() {
    let (origin, collector) = (origin(), collector());
    let proxy = traced(&origin, &collector, "1").start();
    assert_eq!(get(proxy.addr(), "/other/a").status, 404);
    let spans = wait_for(&collector, 1);
    assert_eq!(spans[0].get("http.response.status_code"), "404");
    assert!(!spans[0].is_error);
}
