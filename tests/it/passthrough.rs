//! Buckets with `auth: passthrough`: S3 decides on each request, and nobody gets from the cache
//! what S3 would not have given.

use std::{
    collections::HashMap,
    fmt::Write as _,
    hash::{DefaultHasher, Hash, Hasher},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::builder;
use test_support::{
    eventually, pattern, Bucket, Connection, Gate, Origin, Proxy, ProxyBuilder, Reply, Request,
    Response,
};
use time::OffsetDateTime;

const LEN: usize = 100_000;
const KEY: &str = "/bucket/key";

/// The signature of a client, made with its secret key. S3, as it is here, takes the name of
/// the key for the proof of it, and a signature other than `good` for a wrong one.
fn signed(client: &str, fields: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={client}/20261128/us-east-1/s3/aws4_request, \
         SignedHeaders=host;{fields}x-amz-date, Signature=good"
    )
}

fn now() -> String {
    let now = OffsetDateTime::now_utc();
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

/// An S3 with a bucket that alice may read and write, and bob may not.
struct S3 {
    origin: Origin,
    objects: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl S3 {
    fn start() -> S3 {
        let s3 = S3 {
            origin: Origin::scripted(),
            objects: Arc::default(),
        };
        for path in [
            KEY,
            "/bucket/other",
            "/bucket/copy",
            "/bucket",
            "/bucket/",
            "/new",
            "/",
        ] {
            let objects = s3.objects.clone();
            s3.origin
                .script(path, move |asked, _| answer(asked, &objects));
        }
        s3
    }

    fn holds(&self, path: &str, body: Vec<u8>) {
        self.objects.lock().unwrap().insert(path.to_owned(), body);
    }

    fn bucket(&self) -> Bucket {
        Bucket::new("/bucket", "bucket")
            .endpoint(format!("http://{}", self.origin.addr()))
            .set("auth", "passthrough")
    }

    /// The same bucket for everybody, at a host.
    fn open_bucket(&self) -> Bucket {
        Bucket::new("", "bucket")
            .endpoint(format!("http://{}", self.origin.addr()))
            .set("hosts", "[open.example]")
    }

    fn proxy(&self) -> ProxyBuilder {
        builder().bucket(self.bucket())
    }

    /// A proxy that serves both buckets, and keeps what it stores.
    fn start_with_open_bucket(&self) -> Proxy {
        let proxy = self.proxy().bucket(self.open_bucket());
        proxy.default_ttl("365d").start()
    }

    /// The same proxy once it has stored `old`, the object at [`KEY`].
    fn start_with_stored_object(&self) -> Proxy {
        self.holds(KEY, b"old".to_vec());
        let proxy = self.start_with_open_bucket();
        expect_stored(&proxy);
        proxy
    }

    fn count(&self, path: &str) -> usize {
        self.origin.seen(path).len()
    }

    fn last(&self, path: &str) -> Request {
        self.origin.seen(path).pop().expect("a request")
    }
}

/// Waits until the object at [`KEY`] is a hit in the open bucket.
fn expect_stored(proxy: &Proxy) {
    eventually("it is stored", || open(proxy, "/key").x_cache() == "HIT");
}

fn etag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("\"{:x}\"", hasher.finish())
}

fn is_permitted(asked: &Request) -> bool {
    let authorization = asked.header("authorization").unwrap_or_default();
    // The open bucket is read by the proxy itself, unsigned.
    let is_own = asked
        .header("user-agent")
        .is_some_and(|agent| agent.starts_with("pingora-sendfile/"));
    is_own
        // The proxy's own keys, where it has some.
        || authorization.contains("Credential=reader/")
        || (authorization.contains("Credential=alice/")
            && authorization.ends_with("Signature=good"))
        || asked.target.contains("X-Amz-Signature=good")
}

fn error(status: u16, code: &str) -> Reply {
    let document = format!("<Error><Code>{code}</Code></Error>");
    Reply::ok()
        .with_status(status)
        .header("Content-Type", "application/xml")
        .body(document)
}

fn answer(asked: &Request, objects: &Mutex<HashMap<String, Vec<u8>>>) -> Reply {
    if !is_permitted(asked) {
        return error(403, "AccessDenied");
    }
    let path = asked.path().to_owned();
    let mut objects = objects.lock().unwrap();
    match &*asked.method {
        "PUT" if asked.target.contains("partNumber") => Reply::ok().header("ETag", "\"part\""),
        "PUT" => {
            let body = match asked.header("x-amz-copy-source") {
                Some(source) => objects.get(source).cloned().unwrap_or_default(),
                None => asked.body.clone(),
            };
            objects.insert(path, body);
            Reply::ok().body("")
        }
        "POST" if asked.target.contains("?delete") => {
            let document = String::from_utf8_lossy(&asked.body).into_owned();
            objects.retain(|path, _| {
                let key = path.rsplit('/').next().unwrap_or_default();
                !document.contains(&format!("<Key>{key}</Key>"))
            });
            Reply::ok().body("<DeleteResult/>")
        }
        "POST" => {
            objects.insert(path, pattern(9, LEN));
            Reply::ok().body("<CompleteMultipartUploadResult/>")
        }
        "DELETE" => {
            objects.remove(&path);
            Reply::ok().with_status(204)
        }
        _ => read(asked, objects.get(&path)),
    }
}

/// GetObject and HeadObject.
fn read(asked: &Request, object: Option<&Vec<u8>>) -> Reply {
    let Some(body) = object else {
        return error(404, "NoSuchKey");
    };
    let tag = etag(body);
    let described = |answer: Reply| {
        let answer = answer
            .header("ETag", &tag)
            .header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
            .header("Vary", "Origin, Accept-Encoding")
            .header("x-amz-request-id", "1");
        match asked.header("x-amz-checksum-mode") {
            Some(_) => answer.header("x-amz-checksum-crc32", "abc="),
            None => answer,
        }
    };
    if asked.header("if-match").is_some_and(|wanted| wanted != tag) {
        return error(412, "PreconditionFailed");
    }
    if asked.header("if-none-match") == Some(&tag) {
        return described(Reply::ok().with_status(304));
    }
    let range = asked.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let first: usize = first.parse().ok()?;
        let last = last.parse().unwrap_or(body.len() - 1).min(body.len() - 1);
        Some((first, last))
    });
    match range {
        Some((first, last)) => described(Reply::ok().with_status(206))
            .header(
                "Content-Range",
                format!("bytes {first}-{last}/{}", body.len()),
            )
            .body(&body[first..=last]),
        None => {
            let answer = described(Reply::ok()).body(body.clone());
            match asked.target.contains("response-content-type") {
                true => answer.header("Content-Type", "text/evil"),
                false => answer.header("Content-Type", "text/plain"),
            }
        }
    }
}

/// A request of a client that signs host and date.
fn ask(
    proxy: &Proxy,
    client: &str,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
) -> Response {
    ask_with(proxy, client, method, target, fields, b"")
}

fn ask_with(
    proxy: &Proxy,
    client: &str,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let authorization = signed(client, "");
    let date = now();
    let mut all = vec![("Authorization", &*authorization), ("X-Amz-Date", &*date)];
    all.extend(fields);
    plainly(proxy, method, target, &all, body)
}

/// Alice reads the object.
fn read_at(addr: SocketAddr) -> Response {
    let authorization = signed("alice", "");
    let date = now();
    let fields = [("Authorization", &*authorization), ("X-Amz-Date", &*date)];
    let mut connection = Connection::open(addr);
    connection.ask("GET", KEY, &fields, b"");
    connection.receive("GET")
}

fn plainly(
    proxy: &Proxy,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut connection = Connection::open(proxy.addr());
    connection.ask(method, target, fields, body);
    connection.receive(method)
}

fn stored(proxy: &Proxy, entries: u64) {
    eventually("the objects are stored", || {
        proxy.metric("cache_entries") == entries
    });
}

fn open(proxy: &Proxy, target: &str) -> Response {
    plainly(proxy, "GET", target, &[("Host", "open.example")], b"")
}

// --- hits ---

#[test]
fn a_hit_is_confirmed_by_the_clients_own_request() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    let miss = ask(&proxy, "alice", "GET", KEY, &[]);
    assert_eq!((miss.status, miss.x_cache()), (200, "MISS".to_owned()));
    assert!(miss.body == pattern(1, LEN));
    stored(&proxy, 1);
    for number in 1..=3 {
        let hit = ask(&proxy, "alice", "GET", KEY, &[]);
        assert_eq!((hit.status, hit.x_cache()), (200, "REVALIDATED".to_owned()));
        assert!(hit.body == pattern(1, LEN));
        assert_eq!(hit.header("content-type"), Some("text/plain"));
        proxy.expect_metric("cache_sendfile_bytes_total", number * LEN as u64);
    }
    let asked = s3.origin.seen(KEY);
    assert_eq!(asked.len(), 4);
    for asked in &asked[1..] {
        assert_eq!(
            asked.header("if-none-match"),
            Some(&*etag(&pattern(1, LEN)))
        );
        assert!(asked.header("authorization").unwrap().contains("alice"));
    }
}

#[test]
fn the_access_log_names_the_key_that_s3_has_judged() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().access_log().start();
    let text = || std::fs::read_to_string(proxy.access_log()).unwrap_or_default();
    for (number, (client, status)) in [("alice", 200), ("alice", 200), ("bob", 403)]
        .into_iter()
        .enumerate()
    {
        assert_eq!(ask(&proxy, client, "GET", KEY, &[]).status, status);
        eventually("the request has its line", || {
            text().lines().count() > number
        });
        let text = text();
        let line = text.lines().last().expect("a line");
        assert!(line.contains(&format!("\"status\":{status},")), "{line}");
        assert!(line.contains(&format!("\"key_id\":\"{client}\"")), "{line}");
    }
}

#[test]
fn the_id_of_a_trusted_proxy_does_not_reach_s3() {
    const ID: &str = "x-amz-request-id";
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    for (networks, reaches) in [("[127.0.0.1]", false), ("[192.0.2.1]", true)] {
        let proxy = s3.proxy().trusted_proxies(networks).start();
        assert_eq!(ask(&proxy, "alice", "GET", KEY, &[(ID, "7")]).status, 200);
        let asked = s3.last(KEY);
        assert_eq!(asked.header(ID).is_some(), reaches);
        // A field that makes it to S3 is one that the cache does not know.
        let again = ask(&proxy, "alice", "GET", KEY, &[(ID, "7")]);
        assert_eq!(again.x_cache() == "BYPASS", reaches, "{}", again.x_cache());
    }
}

#[test]
fn what_the_client_signed_reaches_s3_as_it_is() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    let fields = [
        ("Host", "S3.Example:9000"),
        ("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"),
        ("X-Amz-Security-Token", "a+b/c=="),
        ("User-Agent", "test 1.0  (two  spaces)"),
        ("Cookie", "a=b"),
        ("Connection", "keep-alive, x-hop"),
        ("X-Hop", "1"),
    ];
    let target = "/bucket/key?x-id=GetObject&versionId=a%2fb+c&X-Amz-Date=%32";
    for _ in 0..2 {
        ask(&proxy, "alice", "GET", target, &fields);
        let asked = s3.last(KEY);
        assert_eq!(asked.target, target);
        for (name, value) in &fields[..5] {
            assert_eq!(asked.header(name), Some(*value), "{name}");
        }
        for name in ["x-hop", "via"] {
            assert_eq!(asked.header(name), None, "{name}");
        }
    }
}

#[test]
fn who_may_not_read_gets_nothing_and_removes_nothing() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    let tag = etag(&pattern(1, LEN));
    let bad = signed("alice", "").replace("=good", "=evil");
    let bob = signed("bob", "");
    let range = ("Range", "bytes=0-9");
    for (what, target, fields) in [
        ("no signature", KEY, &[][..]),
        ("another client", KEY, &[("Authorization", &*bob)]),
        ("a tampered signature", KEY, &[("Authorization", &*bad)]),
        ("a range", KEY, &[("Authorization", &*bob), range]),
        (
            "a condition",
            KEY,
            &[("Authorization", &*bob), ("If-None-Match", &*tag)],
        ),
        (
            "a condition",
            KEY,
            &[("Authorization", &*bob), ("If-Match", &*tag)],
        ),
        ("a condition", KEY, &[("If-Range", &*tag), range]),
        ("a wrong URL", "/bucket/key?X-Amz-Signature=evil", &[]),
        ("a stripped URL", "/bucket/key?X-Amz-Credential=alice", &[]),
        ("another path to it", "/bucket/%6Bey", &[]),
    ] {
        for method in ["GET", "HEAD"] {
            let refused = plainly(&proxy, method, target, fields, b"");
            assert!(
                matches!(refused.status, 403 | 500),
                "{what}: {}",
                refused.status
            );
            assert!(refused.body.len() < 100, "{what}");
            assert_eq!(refused.header("etag"), None, "{what}");
        }
    }
    let refused = plainly(&proxy, "GET", KEY, &[], b"");
    assert!(refused.text().contains("<Code>AccessDenied</Code>"));
    stored(&proxy, 1);
    assert_eq!(
        ask(&proxy, "alice", "GET", KEY, &[]).x_cache(),
        "REVALIDATED"
    );
}

#[test]
fn one_whom_s3_refuses_is_not_told_what_is_stored() {
    let s3 = S3::start();
    for path in [KEY, "/bucket/off"] {
        s3.holds(path, pattern(1, LEN));
    }
    for path in ["/bucket/off", "/bucket/non"] {
        let objects = s3.objects.clone();
        s3.origin
            .script(path, move |asked, _| answer(asked, &objects));
    }
    let proxy = s3.proxy().start();
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    let tag = etag(&pattern(1, LEN));
    for fields in [
        &[][..],
        &[("Range", "bytes=0-9")],
        &[("Range", "bytes=999999-")],
        &[("If-Match", &*tag)],
        &[("If-None-Match", "*")],
        &[("x-amz-checksum-mode", "ENABLED")],
    ] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            // An object that is stored, one that is not, and one that does not exist.
            let mut answers = [KEY, "/bucket/off", "/bucket/non"].map(|target| {
                let refused = ask(&proxy, "bob", method, target, fields);
                assert_eq!(refused.status, 403, "{method} {target}");
                let mut told: Vec<_> = refused.headers.iter().collect();
                told.retain(|(name, _)| !name.eq_ignore_ascii_case("date"));
                format!("{told:?} {}", refused.text())
            });
            assert!(answers[0].contains("fwd=bypass"), "{}", answers[0]);
            answers.sort();
            assert_eq!(answers[0], answers[2], "{method} {fields:?}");
        }
    }
    stored(&proxy, 1);
}

/// S3 has domains under which names are buckets, and only S3 knows these domains.
#[test]
fn what_s3_says_under_one_name_opens_nothing_under_another() {
    const OTHER: &str = "mallory.s3.example";
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let tag = etag(&pattern(1, LEN));
    let objects = s3.objects.clone();
    s3.origin.script(KEY, move |asked, _| {
        let host = asked.header("host").unwrap_or_default();
        if !host.to_ascii_lowercase().starts_with("mallory.") {
            return answer(asked, &objects);
        }
        // The answer is for the object `bucket/key` in Mallory's own bucket. S3 lets the owner of
        // a bucket give an object any ETag.
        let answer = match asked.header("if-none-match") == Some(&tag) {
            true => Reply::ok().with_status(304),
            false => Reply::ok().body(pattern(2, LEN)),
        };
        answer
            .header("ETag", &tag)
            .header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
            .header("Vary", "Origin, Accept-Encoding")
    });
    for (first, hosts) in [
        ("alice", ["127.0.0.1:9000", OTHER]),
        ("alice", ["cache.example", OTHER]),
        ("alice", ["cache", OTHER]),
        ("mallory", ["127.0.0.1:9000", OTHER]),
        ("mallory", ["[::1]", "MALLORY.s3.example."]),
    ] {
        for auth_ttl in ["0", "1h"] {
            let proxy = builder()
                .bucket(s3.bucket().set("auth_ttl", auth_ttl))
                .start();
            let ask = |client: &str, host: &str| {
                let got = ask(&proxy, client, "GET", KEY, &[("Host", host)]);
                assert_eq!(got.status, 200);
                let is = if client == "alice" { 1 } else { 2 };
                assert!(
                    got.body == pattern(is, LEN),
                    "{first} first, {hosts:?}: {client}"
                );
                got.x_cache()
            };
            let mut clients = [("alice", hosts[0]), ("mallory", hosts[1])];
            if first == "mallory" {
                clients.reverse();
            }
            for (number, (client, host)) in (1..).zip(clients) {
                assert_eq!(ask(client, host), "MISS");
                stored(&proxy, number);
            }
            // Each client has hits.
            for (client, host) in clients {
                assert_ne!(ask(client, host), "MISS", "{host}");
            }
            // A change voids what is stored under both names.
            let put = ask_with(&proxy, "alice", "PUT", KEY, &[], &pattern(1, LEN));
            assert_eq!(put.status, 200);
            for (client, host) in clients {
                assert_eq!(ask(client, host), "MISS", "{host}");
            }
        }
    }
}

/// The proxy's own keys fetch the whole of the object of which S3 gave the client a part.
#[test]
fn keys_of_the_proxy_ask_under_the_name_of_the_client() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = builder()
        .bucket(s3.bucket().credentials("reader", "secret"))
        .start();
    let part = |host: &str| {
        let authorization = signed("alice", "range;");
        let fields = [
            ("Authorization", &*authorization),
            ("Host", host),
            ("Range", "bytes=50000-99999"),
        ];
        plainly(&proxy, "GET", KEY, &fields, b"").x_cache()
    };
    for (number, host) in (1..).zip(["one.example", "two.example"]) {
        assert_eq!(part(host), "MISS");
        stored(&proxy, number);
        let fills =
            s3.origin.seen(KEY).into_iter().filter(|asked| {
                asked.header("host") == Some(host) && asked.header("range").is_none()
            });
        assert_eq!(fills.count(), 1, "{host}");
        eventually("the object is whole", || part(host) == "REVALIDATED");
    }
}

#[test]
fn nothing_is_given_while_s3_cannot_be_asked() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().default_ttl("365d").start();
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    for answer in [
        Reply::ok().with_status(500).body("<Error/>"),
        Reply::ok().with_status(503).body("<Error/>"),
        Reply::hang_up(),
    ] {
        let answer = Mutex::new(Some(answer));
        s3.origin.script(KEY, move |_, _| {
            answer.lock().unwrap().take().unwrap_or_else(Reply::hang_up)
        });
        let failed = ask(&proxy, "alice", "GET", KEY, &[]);
        assert!((500..505).contains(&failed.status), "{}", failed.status);
        assert!(failed.body.len() < 1000);
    }
    stored(&proxy, 1);
}

#[test]
fn a_304_about_another_version_gives_nothing_of_the_stored_one() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    // The same bytes with another description: a copy of an object onto itself.
    s3.origin.script(KEY, |asked, _| {
        let (status, body) = match asked.header("if-none-match") {
            Some(_) => (304, Vec::new()),
            None => (200, pattern(1, LEN)),
        };
        Reply::ok()
            .with_status(status)
            .header("ETag", etag(&pattern(1, LEN)))
            .header("Last-Modified", "Sat, 28 Nov 2026 11:00:00 GMT")
            .header("Content-Type", "text/new")
            .body(body)
    });
    let new = ask(&proxy, "alice", "GET", KEY, &[]);
    assert_eq!(
        (new.status, new.header("content-type")),
        (200, Some("text/new"))
    );
    assert!(new.body == pattern(1, LEN));
    // One that does not know what it says.
    s3.origin.script(KEY, |_, _| {
        Reply::ok().with_status(304).header("ETag", "\"x\"")
    });
    assert_eq!(ask(&proxy, "alice", "GET", KEY, &[]).status, 502);
}

#[test]
fn another_version_is_fetched_and_a_missing_object_is_removed() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    // Behind the proxy's back.
    s3.holds(KEY, pattern(2, LEN));
    let new = ask(&proxy, "alice", "GET", KEY, &[]);
    assert_eq!(new.x_cache(), "MISS");
    assert!(new.body == pattern(2, LEN));
    eventually("the new version is stored", || {
        ask(&proxy, "alice", "GET", KEY, &[]).x_cache() == "REVALIDATED"
    });
    s3.holds(KEY, pattern(3, LEN));
    let part = ask(&proxy, "alice", "GET", KEY, &[("Range", "bytes=10-19")]);
    assert_eq!((part.status, &*part.body), (206, &pattern(3, LEN)[10..20]));
    stored(&proxy, 0);
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    s3.objects.lock().unwrap().remove(KEY);
    let gone = ask(&proxy, "alice", "GET", KEY, &[]);
    assert_eq!(gone.status, 404);
    assert!(gone.text().contains("NoSuchKey"));
    stored(&proxy, 0);
}

#[test]
fn ranges_and_conditions_give_what_s3_would_have_given() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    let tag = etag(&pattern(1, LEN));
    let signs = |fields: &str| signed("alice", fields);
    let (plain, range, if_match, both, if_none) = (
        signs(""),
        signs("range;"),
        signs("if-match;"),
        signs("if-match;range;"),
        signs("if-none-match;"),
    );
    let date = now();
    let check = |is_stored: bool| {
        for (authorization, fields, status, body) in [
            (&plain, &[("Range", "bytes=5-9")][..], 206, 5..10),
            (&range, &[("Range", "bytes=5-9")], 206, 5..10),
            (&range, &[("Range", "bytes=5-")], 206, 5..LEN),
            (&if_match, &[("If-Match", &*tag)], 200, 0..LEN),
            (&plain, &[("If-Match", &*tag)], 200, 0..LEN),
            (
                &both,
                &[("If-Match", &*tag), ("Range", "bytes=7-8")],
                206,
                7..9,
            ),
            (&if_match, &[("If-Match", "\"x\"")], 412, 0..0),
            (&plain, &[("If-Match", "\"x\"")], 412, 0..0),
            (&if_none, &[("If-None-Match", &*tag)], 304, 0..0),
            (&plain, &[("If-None-Match", &*tag)], 304, 0..0),
            (&if_none, &[("If-None-Match", "\"x\"")], 200, 0..LEN),
            (&plain, &[("If-None-Match", "\"x\"")], 200, 0..LEN),
        ] {
            let mut all = vec![("Authorization", &**authorization), ("X-Amz-Date", &*date)];
            all.extend(fields);
            for method in ["GET", "HEAD"] {
                if method == "HEAD" && status == 206 {
                    continue;
                }
                let got = plainly(&proxy, method, KEY, &all, b"");
                let what = format!("{method} {fields:?} {authorization} stored: {is_stored}");
                assert_eq!(got.status, status, "{what}");
                if method == "GET" && matches!(status, 200 | 206) {
                    assert!(got.body == pattern(1, LEN)[body.clone()], "{what}");
                }
            }
        }
    };
    check(false);
    ask(&proxy, "alice", "GET", KEY, &[]);
    eventually("the object is stored", || {
        ask(&proxy, "alice", "GET", KEY, &[]).x_cache() == "REVALIDATED"
    });
    check(true);
    let part = ask(&proxy, "alice", "GET", KEY, &[("Range", "bytes=5-9")]);
    assert_eq!(part.x_cache(), "REVALIDATED");
    let part = plainly(
        &proxy,
        "GET",
        KEY,
        &[("Authorization", &*range), ("Range", "bytes=5-9")],
        b"",
    );
    assert_eq!(part.x_cache(), "REVALIDATED");
    assert_eq!(s3.last(KEY).header("range"), Some("bytes=5-9"));
}

/// Nobody but the proxy can ask for the whole: the SDKs sign their ranges.
#[test]
fn keys_of_the_proxy_fetch_the_whole_of_what_s3_gave_a_part_of() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = builder()
        .bucket(s3.bucket().credentials("reader", "secret"))
        .start();
    let date = now();
    let part = |client: &str, target: &str| {
        let authorization = signed(client, "range;");
        let fields = [
            ("Authorization", &*authorization),
            ("X-Amz-Date", &*date),
            ("X-Amz-Security-Token", "of the client"),
            ("Range", "bytes=50000-99999"),
        ];
        plainly(&proxy, "GET", target, &fields, b"")
    };
    let by_reader = || {
        let mut seen = s3.origin.seen(KEY);
        seen.retain(|asked| {
            let authorization = asked.header("authorization");
            authorization.is_some_and(|signed| signed.contains("Credential=reader/"))
        });
        seen
    };

    // A client that gets no part makes the proxy ask for nothing.
    assert_eq!(part("bob", KEY).status, 403);
    let got = part("alice", KEY);
    assert_eq!(got.status, 206);
    assert_eq!(got.x_cache(), "MISS");
    assert!(got.body == pattern(1, LEN)[50_000..]);
    stored(&proxy, 1);
    let fills = by_reader();
    assert_eq!(fills.len(), 1);
    assert_eq!(fills[0].header("range"), None);
    assert_eq!(fills[0].header("x-amz-security-token"), None);
    assert_eq!(fills[0].target, KEY);

    // The object is given to those whom S3 lets in, and to nobody else.
    eventually("the object is whole", || {
        part("alice", KEY).x_cache() == "REVALIDATED"
    });
    let asked = s3.last(KEY);
    assert!(asked.header("if-none-match").is_some());
    assert_eq!(asked.header("range"), Some("bytes=50000-99999"));
    assert_eq!(part("bob", KEY).status, 403);
    assert_eq!(ask(&proxy, "bob", "GET", KEY, &[]).status, 403);
    let anonymous = plainly(&proxy, "GET", KEY, &[], b"");
    assert_eq!(anonymous.status, 403);
    // The clients' signatures were refused, not the proxy's.
    proxy.expect_metric_where("origin_error_responses_total", &[("class", "403")], 0);

    // Everything else is the client's own, with its own signature.
    let other = part("alice", "/bucket/other");
    assert_eq!(other.status, 404);
    assert_eq!(by_reader().len(), 1);
}

#[test]
fn one_who_waits_for_anothers_fill_is_confirmed_before_it_gets_a_byte() {
    let s3 = S3::start();
    let gate = Gate::new();
    s3.origin.script(KEY, {
        let gate = gate.clone();
        move |asked, _| {
            if !is_permitted(asked) {
                return error(403, "AccessDenied");
            }
            let body = pattern(1, LEN);
            match asked.header("if-none-match") {
                Some(_) => Reply::ok().with_status(304).header("ETag", etag(&body)),
                None => Reply::ok()
                    .header("ETag", etag(&body))
                    .body(body)
                    .hold_at(LEN as u64 / 2, &gate),
            }
        }
    });
    let proxy = s3.proxy().start();
    thread::scope(|scope| {
        let addr = proxy.addr();
        let first = scope.spawn(move || read_at(addr));
        gate.wait_for_arrivals(1);
        let refused = ask(&proxy, "bob", "GET", KEY, &[]);
        assert_eq!((refused.status, refused.body.len() < 100), (403, true));
        let second = scope.spawn(move || read_at(addr));
        s3.origin.wait_for(KEY, 3);
        gate.open();
        for got in [first.join().unwrap(), second.join().unwrap()] {
            assert_eq!(got.status, 200);
            assert!(got.body == pattern(1, LEN));
        }
    });
    let asked = s3.origin.seen(KEY);
    let whole = asked
        .iter()
        .filter(|asked| asked.header("if-none-match").is_none() && is_permitted(asked));
    assert_eq!(whole.count(), 1, "one fill");
}

// --- what is not stored ---

#[test]
fn no_client_puts_its_own_answer_into_the_cache() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    for (target, fields) in [
        ("/bucket/key?response-content-type=text%2Fevil", &[][..]),
        ("/bucket/key?unknown=1", &[]),
        ("/bucket/key?partNumber=1", &[]),
        (
            KEY,
            &[("x-amz-server-side-encryption-customer-algorithm", "AES256")],
        ),
        (KEY, &[("x-amz-request-payer", "requester")]),
        (KEY, &[("x-amz-unknown", "1")]),
        (KEY, &[("x-minio-extract", "true")]),
        (KEY, &[("x-goog-encryption-key", "1")]),
        (KEY, &[("Range", "bytes=0-9")]),
    ] {
        let got = ask(&proxy, "alice", "GET", target, fields);
        assert!(matches!(got.status, 200 | 206), "{target}");
        assert_eq!(proxy.metric("cache_entries"), 0, "{target} {fields:?}");
    }
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    // From what is stored, but as asked.
    let target = "/bucket/key?response-content-type=text%2Fevil";
    let evil = ask(&proxy, "alice", "GET", target, &[]);
    assert_eq!(evil.header("content-type"), Some("text/evil"));
    assert_eq!(evil.x_cache(), "REVALIDATED");
    let plain = ask(&proxy, "alice", "GET", KEY, &[]);
    assert_eq!(plain.header("content-type"), Some("text/plain"));
}

#[test]
fn checksums_are_given_to_those_who_ask_for_them() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.proxy().start();
    let mode = [("X-Amz-Checksum-Mode", "ENABLED")];
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 1);
    for _ in 0..2 {
        let got = ask(&proxy, "alice", "GET", KEY, &mode);
        assert_eq!(got.header("x-amz-checksum-crc32"), Some("abc="));
        assert_eq!(got.header("x-amz-checksum-mode"), None);
        eventually("it is stored", || {
            ask(&proxy, "alice", "GET", KEY, &mode).x_cache() == "REVALIDATED"
        });
    }
    let plain = ask(&proxy, "alice", "GET", KEY, &[]);
    assert_eq!(plain.x_cache(), "REVALIDATED");
    assert_eq!(plain.header("x-amz-checksum-mode"), None);
}

#[test]
fn a_site_that_may_read_is_told_so_and_another_is_not() {
    let s3 = S3::start();
    s3.origin.script(KEY, |asked, _| {
        let answer = Reply::ok().header("ETag", "\"1\"").header("Vary", "Origin");
        match asked.header("origin") {
            Some(site) => answer.header("Access-Control-Allow-Origin", site),
            None => answer,
        }
    });
    let proxy = s3.proxy().start();
    for _ in 0..2 {
        for site in ["https://a.example", "https://b.example"] {
            let got = ask(&proxy, "alice", "GET", KEY, &[("Origin", site)]);
            assert_eq!(got.header("access-control-allow-origin"), Some(site));
        }
    }
}

// --- changes ---

#[test]
fn what_a_client_changes_is_void_before_it_has_its_answer() {
    let s3 = S3::start();
    let proxy = s3.start_with_open_bucket();
    let list = "<Delete><Object><Key>key</Key></Object></Delete>";
    let other = ("X-Amz-Copy-Source", "/bucket/other");
    for (method, target, fields, body, expected) in [
        ("PUT", KEY, &[][..], "new", Some(b"new".to_vec())),
        ("PUT", KEY, &[other], "", Some(b"other".to_vec())),
        (
            "POST",
            "/bucket/key?uploadId=1",
            &[],
            "<x/>",
            Some(pattern(9, LEN)),
        ),
        ("DELETE", KEY, &[], "", None),
        ("POST", "/bucket?delete", &[], list, None),
        (
            "POST",
            "/bucket/?delete",
            &[],
            "<Delete><!----></Delete>",
            Some(b"old".to_vec()),
        ),
    ] {
        let what = format!("{method} {target}");
        s3.holds(KEY, b"old".to_vec());
        s3.holds("/bucket/other", b"other".to_vec());
        // Whatever an earlier round has left.
        ask_with(&proxy, "alice", "PUT", KEY, &[], b"old");
        eventually("both are stored", || {
            open(&proxy, "/key").x_cache() == "HIT"
                && ask(&proxy, "alice", "GET", KEY, &[]).x_cache() == "REVALIDATED"
        });
        let refused = ask_with(&proxy, "bob", method, target, fields, body.as_bytes());
        assert_eq!(refused.status, 403, "{what}");
        assert_eq!(open(&proxy, "/key").x_cache(), "HIT", "{what} was refused");

        let done = ask_with(&proxy, "alice", method, target, fields, body.as_bytes());
        assert!(matches!(done.status, 200 | 204), "{what}: {}", done.status);
        let now = open(&proxy, "/key");
        assert_ne!(now.x_cache(), "HIT", "{what}");
        match expected {
            Some(body) => assert!(now.body == body, "{what}"),
            None => assert_eq!(now.status, 404, "{what}"),
        }
    }
}

#[test]
fn what_a_client_changes_voids_the_lists_of_the_bucket() {
    let s3 = S3::start();
    // S3 lists the objects that it has.
    let objects = s3.objects.clone();
    s3.origin.script("/bucket/", move |asked, _| {
        if asked.method != "GET" {
            return self::answer(asked, &objects);
        }
        let mut keys: Vec<_> = objects.lock().unwrap().keys().cloned().collect();
        keys.sort();
        let keys = keys.iter().map(|path| {
            let key = path.trim_start_matches("/bucket/");
            format!("<Contents><Key>{key}</Key></Contents>")
        });
        Reply::ok().body(format!("<L>{}</L>", keys.collect::<String>()))
    });
    let open_bucket = s3.open_bucket().set("list", "true").set("list_ttl", "1d");
    let proxy = s3.proxy().bucket(open_bucket).start();
    let delete = "<Delete><Object><Key>key</Key></Object></Delete>";
    for (method, target, body, expected) in [
        ("PUT", KEY, "new", "key"),
        ("DELETE", KEY, "", ""),
        ("POST", "/bucket/key?uploadId=1", "<x/>", "key"),
        ("POST", "/bucket/?delete", delete, ""),
    ] {
        let what = format!("{method} {target}");
        let before = open(&proxy, "/?list-type=2");
        eventually("the list is stored", || {
            open(&proxy, "/?list-type=2").x_cache() == "HIT"
        });
        ask_with(&proxy, "bob", method, target, &[], body.as_bytes());
        assert_eq!(open(&proxy, "/?list-type=2").text(), before.text());
        let asked = ask_with(&proxy, "alice", method, target, &[], body.as_bytes());
        assert!(
            matches!(asked.status, 200 | 204),
            "{what}: {}",
            asked.status
        );
        let after = open(&proxy, "/?list-type=2");
        let keys = match expected {
            "" => "<L></L>".to_owned(),
            key => format!("<L><Contents><Key>{key}</Key></Contents></L>"),
        };
        assert_eq!(
            (&*after.text(), &*after.x_cache()),
            (&*keys, "MISS"),
            "{what}"
        );
    }
}

#[test]
fn a_version_that_a_client_deletes_is_void() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let proxy = s3.start_with_open_bucket();
    let version = "/key?versionId=v1";
    for (number, list) in [
        "<Object><Key>other</Key><VersionId>v1</VersionId></Object>",
        "<Object><Key>key</Key><VersionId>v2</VersionId></Object>",
        "<Object><VersionId>v1</VersionId><Key>key</Key></Object>",
    ]
    .into_iter()
    .enumerate()
    {
        eventually("it is stored", || open(&proxy, version).x_cache() == "HIT");
        let list = format!("<Delete>{list}</Delete>");
        let done = ask_with(
            &proxy,
            "alice",
            "POST",
            "/bucket?delete",
            &[],
            list.as_bytes(),
        );
        assert_eq!(done.status, 200);
        let is_void = open(&proxy, version).x_cache() != "HIT";
        assert_eq!(is_void, number == 2, "{list}");
    }
}

#[test]
fn a_change_whose_answer_is_lost_or_an_error_may_have_happened() {
    let s3 = S3::start();
    let proxy = s3.start_with_open_bucket();
    for (answer, status) in [(Some(500), 500), (None, 502)] {
        s3.holds(KEY, b"old".to_vec());
        ask_with(&proxy, "alice", "PUT", KEY, &[], b"old");
        expect_stored(&proxy);
        let objects = s3.objects.clone();
        s3.origin.script(KEY, move |asked, _| {
            let answered = self::answer(asked, &objects);
            match answer {
                _ if asked.method != "PUT" => answered,
                Some(status) => Reply::ok().with_status(status),
                None => Reply::hang_up(),
            }
        });
        let failed = ask_with(&proxy, "alice", "PUT", KEY, &[], b"new");
        assert_eq!(failed.status, status);
        assert_eq!(open(&proxy, "/key").text(), "new");
        let objects = s3.objects.clone();
        s3.origin
            .script(KEY, move |asked, _| self::answer(asked, &objects));
    }
}

/// A `Host` may name a bucket. S3 then takes the path for a key in it, or for a bucket and a key.
#[test]
fn what_a_request_changes_is_void_in_each_way_in_which_s3_may_take_it() {
    let s3 = S3::start();
    let url = format!("http://{}", s3.origin.addr());
    let at = |path, name| {
        Bucket::new(path, name)
            .endpoint(&url)
            .set("auth", "passthrough")
    };
    let other = Bucket::new("", "other")
        .endpoint(&url)
        .set("hosts", "[other.example]");
    let read_other = |proxy: &Proxy| plainly(proxy, "GET", KEY, &[("Host", "other.example")], b"");

    // The proxy takes the name for that of a bucket, and S3 does not.
    let proxy = builder()
        .bucket(at("/", ""))
        .bucket(s3.open_bucket())
        .default_ttl("365d")
        .start();
    let host = [("Host", "cache.127.0.0.1")];
    s3.holds(KEY, b"old".to_vec());
    expect_stored(&proxy);
    ask_with(&proxy, "alice", "PUT", KEY, &host, b"new");
    assert_eq!(open(&proxy, "/key").text(), "new");
    expect_stored(&proxy);
    let list = b"<Delete><Object><Key>key</Key></Object></Delete>";
    ask_with(&proxy, "alice", "POST", "/bucket?delete", &host, list);
    assert_eq!(open(&proxy, "/key").status, 404);

    // S3 takes the name for that of a bucket, and the proxy does not.
    let proxy = builder()
        .bucket(at("/bucket", "bucket"))
        .bucket(other)
        .default_ttl("365d")
        .start();
    s3.holds("/other/bucket/key", b"old".to_vec());
    let objects = s3.objects.clone();
    s3.origin
        .script("/other/bucket/key", move |asked, _| answer(asked, &objects));
    let objects = s3.objects.clone();
    s3.origin.script(KEY, move |asked, _| {
        assert_eq!(asked.header("host"), Some("Other.s3.example"));
        let mut objects = objects.lock().unwrap();
        objects.insert("/other/bucket/key".to_owned(), asked.body.clone());
        Reply::ok().body("")
    });
    eventually("it is stored", || read_other(&proxy).x_cache() == "HIT");
    let host = [("Host", "Other.s3.example")];
    ask_with(&proxy, "alice", "PUT", KEY, &host, b"new");
    assert_eq!(read_other(&proxy).text(), "new");
}

#[test]
fn what_s3_has_not_implemented_changes_nothing() {
    let s3 = S3::start();
    let proxy = s3.start_with_stored_object();
    ask(&proxy, "alice", "GET", KEY, &[]);
    stored(&proxy, 2);
    for path in [KEY, "/bucket", "/bucket/"] {
        let objects = s3.objects.clone();
        // S3 answers so even without a signature.
        s3.origin
            .script(path, move |asked, _| match &*asked.method {
                "GET" => answer(asked, &objects),
                _ => error(501, "NotImplemented"),
            });
    }
    for (method, target) in [
        ("PUT", KEY),
        ("DELETE", KEY),
        ("DELETE", "/bucket"),
        ("POST", "/bucket/"),
        ("POST", "/bucket/?delete"),
        ("PUT", "/bucket?policy"),
    ] {
        let refused = plainly(&proxy, method, target, &[], b"body");
        assert_eq!(refused.status, 501, "{method} {target}");
        assert_eq!(open(&proxy, "/key").x_cache(), "HIT", "{method} {target}");
    }
    assert_eq!(
        ask(&proxy, "alice", "GET", KEY, &[]).x_cache(),
        "REVALIDATED"
    );
}

#[test]
fn a_fill_that_began_before_a_change_is_not_stored_after_it() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let gate = Gate::new();
    s3.origin.script(KEY, {
        let (gate, objects) = (gate.clone(), s3.objects.clone());
        move |asked, _| match asked.method == "GET" && asked.header("if-none-match").is_none() {
            true => answer(asked, &objects).hold_at(LEN as u64 / 2, &gate),
            false => answer(asked, &objects),
        }
    });
    let proxy = s3.proxy().start();
    thread::scope(|scope| {
        let addr = proxy.addr();
        let old = scope.spawn(move || read_at(addr));
        gate.wait_for_arrivals(1);
        ask_with(&proxy, "alice", "PUT", KEY, &[], b"new");
        gate.open();
        assert!(old.join().unwrap().body == pattern(1, LEN));
    });
    eventually("the fill is over", || {
        proxy.metric("cache_fills_in_flight") == 0
    });
    stored(&proxy, 0);
}

#[test]
fn a_multipart_upload_is_void_again_at_the_end_of_a_slow_answer() {
    let s3 = S3::start();
    s3.holds(KEY, b"old".to_vec());
    let gate = Gate::new();
    let proxy = s3.start_with_open_bucket();
    s3.origin.script(KEY, {
        let (gate, objects) = (gate.clone(), s3.objects.clone());
        move |asked, _| match &*asked.method {
            // S3 sends white space while it works.
            "POST" => Reply::ok()
                .chunked()
                .body("     <Result/>")
                .hold_at(5, &gate),
            _ => answer(asked, &objects),
        }
    });
    let mut client = Connection::open(proxy.addr());
    let authorization = signed("alice", "");
    client.ask(
        "POST",
        "/bucket/key?uploadId=1",
        &[("Authorization", &*authorization)],
        b"<x/>",
    );
    client.receive_head().expect("the head");
    gate.wait_for_arrivals(1);
    eventually("the old one is stored in between", || {
        open(&proxy, "/key").x_cache() == "HIT"
    });
    s3.holds(KEY, b"new".to_vec());
    gate.open();
    let rest = client.receive_bytes(29);
    assert!(String::from_utf8_lossy(&rest).contains("<Result/>"));
    assert_eq!(open(&proxy, "/key").text(), "new");
}

// --- bodies ---

#[test]
fn uploads_are_relayed_as_they_are() {
    let s3 = S3::start();
    let proxy = s3.proxy().start();
    let chunks = b"5;chunk-signature=abc\r\nhello\r\n0;chunk-signature=def\r\n\r\n";
    let fields = [
        ("Content-Encoding", "aws-chunked"),
        ("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("X-Amz-Decoded-Content-Length", "5"),
        ("X-Amz-Meta-Name", "value"),
    ];
    let put = ask_with(&proxy, "alice", "PUT", KEY, &fields, chunks);
    assert_eq!(put.status, 200);
    let asked = s3.last(KEY);
    assert_eq!(asked.body, chunks);
    assert_eq!(
        asked.header("content-length"),
        Some(&*chunks.len().to_string())
    );
    for (name, value) in fields {
        assert_eq!(asked.header(name), Some(value));
    }
    // Framed by chunks of HTTP.
    let http = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    ask_with(
        &proxy,
        "alice",
        "PUT",
        KEY,
        &[("Transfer-Encoding", "chunked")],
        http,
    );
    assert_eq!(s3.last(KEY).body, b"abcde");
}

#[test]
fn a_client_that_waits_for_100_gets_it_from_s3() {
    let s3 = S3::start();
    let proxy = s3.proxy().start();
    let mut client = Connection::open(proxy.addr());
    let authorization = signed("alice", "");
    let head = format!(
        "PUT {KEY} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    );
    client.send_bytes(head);
    assert_eq!(client.receive_interim().status, 100);
    client.send_bytes("hello");
    assert_eq!(client.receive("PUT").status, 200);
    assert_eq!(s3.last(KEY).body, b"hello");
    assert_eq!(read_at(proxy.addr()).text(), "hello");
}

#[test]
fn requests_behind_an_upload_are_answered_in_order() {
    let s3 = S3::start();
    s3.holds(KEY, b"old".to_vec());
    let proxy = s3.proxy().start();
    let mut client = Connection::open(proxy.addr());
    let authorization = signed("alice", "");
    let fields = [("Authorization", &*authorization)];
    let mut both = String::new();
    for (method, body) in [("PUT", "new"), ("GET", ""), ("DELETE", ""), ("GET", "")] {
        write!(
            both,
            "{method} {KEY} HTTP/1.1\r\nHost: a\r\n{}: {}\r\nContent-Length: {}\r\n\r\n{body}",
            fields[0].0,
            fields[0].1,
            body.len()
        )
        .unwrap();
    }
    client.send_bytes(both);
    assert_eq!(client.receive("PUT").status, 200);
    assert_eq!(client.receive("GET").text(), "new");
    assert_eq!(client.receive("DELETE").status, 204);
    assert_eq!(client.receive("GET").status, 404);
}

#[test]
fn an_upload_that_breaks_off_changes_nothing() {
    let s3 = S3::start();
    let proxy = s3.start_with_stored_object();
    let mut client = Connection::open(proxy.addr());
    let authorization = signed("alice", "");
    client.send_bytes(format!(
        "PUT {KEY} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nContent-Length: 1000000\r\n\r\nbegin"
    ));
    drop(client);
    // S3 sees half an upload, and no proxy is busy with it for ever.
    eventually("the upload is over", || {
        proxy.metric("response_errors_total") > 0
    });
    assert_eq!(open(&proxy, "/key").x_cache(), "HIT");
    assert_eq!(ask(&proxy, "alice", "GET", KEY, &[]).text(), "old");
}

// --- the whole service ---

#[test]
fn a_route_without_a_bucket_is_the_whole_service() {
    let s3 = S3::start();
    s3.holds(KEY, b"old".to_vec());
    let service = Bucket::new("/", "")
        .endpoint(format!("http://{}", s3.origin.addr()))
        .set("auth", "passthrough");
    let proxy = builder()
        .bucket(service)
        .bucket(s3.open_bucket())
        .default_ttl("365d")
        .admin()
        .start();
    let is_stored = || ask(&proxy, "alice", "GET", KEY, &[]).x_cache() == "REVALIDATED";
    eventually("it is stored", is_stored);
    expect_stored(&proxy);
    assert_eq!(ask(&proxy, "bob", "GET", KEY, &[]).status, 403);

    // Another spelling of the bucket, and its name in front of the host.
    for (target, fields) in [
        ("/%62ucket/key", &[][..]),
        ("/key", &[("Host", "bucket.127.0.0.1:80")]),
    ] {
        s3.origin.script(target, |asked, _| {
            assert_eq!(asked.method, "PUT");
            Reply::ok().body("")
        });
        ask_with(&proxy, "alice", "PUT", target, fields, b"new");
        assert_ne!(open(&proxy, "/key").x_cache(), "HIT", "{target}");
        expect_stored(&proxy);
        assert_eq!(
            ask(&proxy, "alice", "GET", KEY, &[]).x_cache(),
            "MISS",
            "{target}"
        );
        eventually("it is stored", is_stored);
    }

    // Buckets come and go.
    for (method, target) in [("PUT", "/new"), ("DELETE", "/new"), ("GET", "/")] {
        let done = ask_with(&proxy, "alice", method, target, &[], b"");
        assert!(matches!(done.status, 200 | 204 | 404), "{method} {target}");
        assert_eq!(s3.last(target).method, method);
    }
    assert!(is_stored());
    assert_eq!(ask(&proxy, "bob", "DELETE", "/bucket", &[]).status, 403);
    assert!(is_stored());
    ask(&proxy, "alice", "DELETE", "/bucket", &[]);
    assert_ne!(open(&proxy, "/key").x_cache(), "HIT");
    assert!(!is_stored());

    // An operator names objects as clients do.
    eventually("it is stored", is_stored);
    let mut admin = Connection::open(proxy.admin_addr());
    admin.ask("PURGE", KEY, &[("Host", "localhost")], b"");
    assert_eq!(admin.receive("PURGE").status, 200);
    assert!(!is_stored());
    eventually("it is stored", is_stored);
    let mut admin = Connection::open(proxy.admin_addr());
    admin.ask("PURGE", "/bucket/*", &[("Host", "localhost")], b"");
    assert_eq!(admin.receive("PURGE").status, 200);
    assert!(!is_stored());
}

/// An origin that reads a body slowly: the proxy does not hold what the client sends.
#[test]
fn a_long_upload_takes_no_memory() {
    const BODY: usize = 100 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let origin = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let len = stream.read(&mut buffer[..1]).unwrap();
            head.extend_from_slice(&buffer[..len]);
        }
        let mut received = 0;
        while received < BODY {
            if received < 4 << 20 {
                thread::sleep(Duration::from_millis(50));
            }
            received += stream.read(&mut buffer).unwrap();
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        received
    });
    let bucket = Bucket::new("/bucket", "bucket")
        .endpoint(format!("http://{addr}"))
        .set("auth", "passthrough");
    let proxy = builder().bucket(bucket).start();
    proxy.reset_peak_rss();
    let before = proxy.rss_bytes();
    let mut stream = TcpStream::connect(proxy.addr()).unwrap();
    write!(
        stream,
        "PUT {KEY} HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n"
    )
    .unwrap();
    let piece = vec![7; 1 << 20];
    for _ in 0..BODY >> 20 {
        stream.write_all(&piece).unwrap();
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(origin.join().unwrap(), BODY);
    let grown = proxy.peak_rss_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
}

/// S3 may refuse an upload at its head.
#[test]
fn an_early_answer_reaches_a_client_that_still_sends() {
    const BODY: usize = 32 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (answered, gate) = (Gate::new(), Gate::new());
    let origin = thread::spawn({
        let (answered, gate) = (answered.clone(), gate.clone());
        move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut byte = [0];
                assert_eq!(stream.read(&mut byte).unwrap(), 1);
                head.extend_from_slice(&byte);
            }
            let answer =
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\nConnection: close\r\n\r\n<Error/>";
            stream.write_all(answer).unwrap();
            answered.open();
            // It reads no further.
            gate.pass();
        }
    });
    let bucket = Bucket::new("/bucket", "bucket")
        .endpoint(format!("http://{addr}"))
        .set("auth", "passthrough");
    let proxy = builder().bucket(bucket).start();
    let mut stream = TcpStream::connect(proxy.addr()).unwrap();
    write!(
        stream,
        "PUT {KEY} HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n"
    )
    .unwrap();
    let mut sending = stream.try_clone().unwrap();
    let client = thread::spawn(move || {
        let piece = vec![7; 1 << 20];
        // Pingora does not read an answer while it waits to write: one that comes when the
        // origin's window is full would arrive at the end of the connection only.
        answered.pass();
        // The proxy may close when it has answered.
        (0..BODY >> 20).all(|_| sending.write_all(&piece).is_ok())
    });
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 403");
    gate.open();
    origin.join().unwrap();
    client.join().unwrap();
}

// --- remembered permissions ---

#[test]
fn a_permission_is_remembered_for_the_same_request_only() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let bucket = s3.bucket().set("auth_ttl", "1h");
    let proxy = builder().bucket(bucket).start();
    let url = format!(
        "{KEY}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=alice&X-Amz-Date={}&X-Amz-Expires=600&X-Amz-SignedHeaders=host&X-Amz-Signature=good",
        now()
    );
    let get = |target: &str, fields: &[(&str, &str)]| plainly(&proxy, "GET", target, fields, b"");
    get(&url, &[]);
    stored(&proxy, 1);
    let asked = s3.count(KEY);
    let hit = get(&url, &[]);
    assert_eq!(hit.x_cache(), "HIT");
    assert!(hit.body == pattern(1, LEN));
    assert_eq!(
        get(&url, &[("Range", "bytes=0-3")]).body,
        pattern(1, LEN)[..4]
    );
    assert_eq!(s3.count(KEY), asked);

    // Everything else is S3's to decide.
    for target in [
        KEY.to_owned(),
        url.replace("=good", "=evil"),
        url.replace("X-Amz-Signature=good", ""),
        url.replace("Expires=600", "Expires=6000")
            .replace("=good", "=evil"),
    ] {
        let refused = get(&target, &[]);
        assert_eq!(refused.status, 403, "{target}");
    }
    let host = [("Host", "other.example")];
    assert_eq!(get(&url, &host).x_cache(), "MISS");
    assert_eq!(
        get(&url, &[("Referer", "https://a.example")]).x_cache(),
        "REVALIDATED"
    );

    let authorization = signed("alice", "");
    let date = now();
    let fields = [("Authorization", &*authorization), ("X-Amz-Date", &*date)];
    assert_eq!(get(KEY, &fields).x_cache(), "REVALIDATED");
    assert_eq!(get(KEY, &fields).x_cache(), "HIT");
    // The name of a key is no secret.
    let forged = authorization.replace("=good", "=evil");
    let fields = [("Authorization", &*forged), ("X-Amz-Date", &*date)];
    assert_eq!(get(KEY, &fields).status, 403);
    let head = plainly(
        &proxy,
        "HEAD",
        KEY,
        &[("Authorization", &*authorization), ("X-Amz-Date", &*date)],
        b"",
    );
    assert_eq!(
        head.x_cache(),
        "REVALIDATED",
        "another method is another signature"
    );
}

#[test]
fn a_permission_ends_with_the_url_with_the_time_and_with_the_version() {
    let s3 = S3::start();
    s3.holds(KEY, pattern(1, LEN));
    let bucket = s3.bucket().set("auth_ttl", "1h");
    let proxy = builder().bucket(bucket).start();
    let url = |date: &str, life: u32| {
        format!("{KEY}?X-Amz-Date={date}&X-Amz-Expires={life}&X-Amz-SignedHeaders=host&X-Amz-Signature=good")
    };
    let get = |target: &str| plainly(&proxy, "GET", target, &[], b"");
    get(&url(&now(), 600));
    stored(&proxy, 1);
    for expired in [url("20200101T000000Z", 600), url(&now(), 0), url("x", 600)] {
        for _ in 0..2 {
            assert_eq!(get(&expired).x_cache(), "REVALIDATED", "{expired}");
        }
    }
    let long = url(&now(), 600);
    get(&long);
    assert_eq!(get(&long).x_cache(), "HIT");
    // Another version, by somebody else's request.
    ask_with(&proxy, "alice", "PUT", KEY, &[], b"new");
    ask(&proxy, "alice", "GET", KEY, &[]);
    eventually("the new one is stored", || {
        ask(&proxy, "alice", "GET", KEY, &[]).x_cache() == "REVALIDATED"
    });
    assert_eq!(get(&long).x_cache(), "REVALIDATED");
    assert_eq!(get(&long).x_cache(), "HIT");
    // A change of permissions ends them all.
    ask_with(&proxy, "alice", "PUT", "/bucket/key?acl", &[], b"");
    assert_ne!(get(&long).x_cache(), "HIT");

    let bucket = s3.bucket().set("auth_ttl", "1s");
    let proxy = builder().bucket(bucket).start();
    let get = |target: &str| plainly(&proxy, "GET", target, &[], b"");
    get(&long);
    stored(&proxy, 1);
    eventually("it is over", || get(&long).x_cache() == "REVALIDATED");
}
