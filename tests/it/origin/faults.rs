//! An origin that fails now and then, or answers something else than an object.

use std::{
    io::Write,
    net::TcpListener,
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc,
    },
    thread,
    time::{Duration, SystemTime},
};

use crate::{builder, proxy};
use test_support::{eventually, head, request, Bucket, Connection, Gate, Origin, Reply, Request};

const OBJECT: &str = "/assets/object";

#[test]
fn an_error_that_passes_is_not_seen_by_the_client() {
    for status in [500, 502, 503, 504] {
        for (method, body) in [("GET", &b"hello"[..]), ("HEAD", b"")] {
            let origin = failing(1, move || slow_down().with_status(status));
            let proxy = proxy(&origin).start();
            let answer = request(proxy.addr(), method, OBJECT, &[]);
            assert_eq!(answer.status, 200, "{status} {method}: {}", proxy.stderr());
            assert_eq!(answer.body, body);
            assert_eq!(origin.requests().len(), 2);
            proxy.expect_metric("origin_retries_total", 1);
            proxy.expect_metric("origin_requests_total", 2);
            let class = [("class", "5xx")];
            proxy.expect_metric_where("origin_error_responses_total", &class, 1);
        }
    }
}

#[test]
fn what_came_after_an_error_is_stored() {
    let origin = failing(1, slow_down);
    let proxy = proxy(&origin).start();
    assert_eq!(proxy.get(OBJECT).body, b"hello");
    eventually("it is stored", || proxy.metric("cache_entries") == 1);
    assert_eq!(proxy.get(OBJECT).header("x-cache"), Some("HIT"));
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn an_error_that_lasts_is_passed_on() {
    for (retries, requests) in [(None, 3), (Some(0), 1), (Some(1), 2)] {
        let origin = failing(usize::MAX, slow_down);
        let mut bucket = Bucket::at(&origin, "/assets", "bucket");
        if let Some(retries) = retries {
            bucket = bucket.set("retries", retries);
        }
        let proxy = builder().bucket(bucket).start();
        let answer = proxy.get(OBJECT);
        assert_eq!(answer.status, 503);
        assert!(!answer.body.is_empty());
        assert_eq!(origin.requests().len(), requests);
    }
}

#[test]
fn what_no_repetition_changes_is_not_repeated() {
    for status in [403, 404, 429, 501, 505] {
        let origin = failing(usize::MAX, move || Reply::status(status));
        let proxy = proxy(&origin).start();
        assert_eq!(proxy.get(OBJECT).status, status);
        assert_eq!(origin.requests().len(), 1, "{status}");
        for (class, counted) in [("403", status == 403), ("5xx", status >= 500)] {
            let class = [("class", class)];
            let metric = "origin_error_responses_total";
            proxy.expect_metric_where(metric, &class, counted.into());
        }
    }
    let origin = failing(usize::MAX, || slow_down().header("Retry-After", 30));
    let proxy = proxy(&origin).start();
    let answer = proxy.get(OBJECT);
    assert_eq!(answer.header("retry-after"), Some("30"));
    assert_eq!(origin.requests().len(), 1);
}

/// Not twice or three times as many requests for an origin that cannot bear them.
#[test]
fn an_origin_that_fails_for_long_is_not_asked_more_often() {
    let origin = failing(usize::MAX, slow_down);
    let proxy = proxy(&origin).start();
    const CLIENTS: usize = 60;
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let addr = proxy.addr();
            scope.spawn(move || {
                let target = format!("/assets/{number}");
                assert_eq!(request(addr, "GET", &target, &[]).status, 503);
            });
        }
    });
    assert_eq!(origin.requests().len(), CLIENTS + 20);
    proxy.expect_metric("origin_retries_total", 20);
    assert!(proxy.metric("origin_retries_refused_total") > 0);
}

#[test]
fn a_connection_that_breaks_before_the_answer_is_made_again() {
    let (endpoint, connections) = breaking(2, String::new(), &open_gate());
    let proxy = builder()
        .bucket(Bucket::new("/assets", "bucket").endpoint(endpoint))
        .start();
    let answer = proxy.get(OBJECT);
    assert_eq!(answer.status, 200, "{}", proxy.stderr());
    assert_eq!(answer.body, b"hello");
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

/// The next answer may be of another version.
#[test]
fn an_answer_that_breaks_off_is_not_repeated() {
    const BEGUN: usize = 200_000;
    let begun = "HTTP/1.1 200 OK\r\nETag: \"old\"\r\nContent-Length: 300000\r\n\r\n".to_owned();
    let gate = Gate::new();
    let (endpoint, connections) = breaking(1, begun + &"o".repeat(BEGUN), &gate);
    let proxy = builder()
        .bucket(Bucket::new("/assets", "bucket").endpoint(endpoint))
        .start();
    let mut client = Connection::open(proxy.addr());
    let mut answer = client.begin("GET", OBJECT, &[]);
    assert_eq!(answer.read_some(1000), [b'o'; 1000]);
    gate.open();
    let answer = answer.finish();
    assert!(!answer.complete);
    assert_eq!(answer.header("etag"), Some("\"old\""));
    assert!(answer.body.iter().all(|byte| *byte == b'o'));
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // Nothing of it is stored, and the next answer is of one version.
    eventually("the new version is there", || {
        let answer = proxy.get(OBJECT);
        let is_new = answer.header("etag") == Some("\"new\"");
        assert!(is_new || !answer.complete);
        assert!(!is_new || answer.body == b"hello");
        is_new
    });
}

#[test]
fn an_origin_that_starts_again_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let proxy = builder()
        .bucket(
            Bucket::new("/assets", "bucket")
                .endpoint(format!("http://{address}"))
                .set("retries", 10),
        )
        .start();
    let client = thread::spawn({
        let addr = proxy.addr();
        move || request(addr, "GET", OBJECT, &[]).status
    });
    eventually("it was asked for in vain", || {
        proxy.metric("origin_retries_total") > 0
    });
    let listener = TcpListener::bind(address).expect("listen again");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(client.join().expect("an answer"), 200);
}

/// A part is delivered, and the whole fetched in the background, where errors pass too.
#[test]
fn a_background_fill_is_repeated_as_well() {
    let wholes = AtomicUsize::new(0);
    let origin = Origin::start(move |asked| {
        let is_whole = asked.header("range").is_none();
        if is_whole && wholes.fetch_add(1, Ordering::SeqCst) == 0 {
            return slow_down();
        }
        object("\"a\"").answering(asked)
    });
    let proxy = proxy(&origin).start();
    let part = request(proxy.addr(), "GET", OBJECT, &[("Range", "bytes=1-3")]);
    assert_eq!((part.status, &part.body[..]), (206, &b"ell"[..]));
    eventually("the whole is stored", || proxy.metric("cache_entries") == 1);
    proxy.expect_metric("origin_retries_total", 1);
    let whole = proxy.get(OBJECT);
    assert_eq!(whole.header("x-cache"), Some("HIT"));
    assert_eq!(whole.body, b"hello");
}

/// The part was of one version, the whole is of another.
#[test]
fn a_part_and_the_whole_behind_it_are_not_mixed() {
    let origin = Origin::start(|asked| {
        let etag = match asked.header("range") {
            Some(_) => "\"old\"",
            None => "\"new\"",
        };
        let body = match etag {
            "\"old\"" => "aaaaa",
            _ => "bbbbbbbb",
        };
        Reply::bytes(body).header("ETag", etag).answering(asked)
    });
    let proxy = proxy(&origin).start();
    let part = request(proxy.addr(), "GET", OBJECT, &[("Range", "bytes=0-1")]);
    assert_eq!(part.body, b"aa");
    assert_eq!(part.header("etag"), Some("\"old\""));
    for fields in [&[][..], &[("Range", "bytes=0-1")]] {
        let answer = request(proxy.addr(), "GET", OBJECT, fields);
        let of_one_version = match answer.header("etag") {
            Some("\"old\"") => answer.body.iter().all(|byte| *byte == b'a'),
            Some("\"new\"") => answer.body.iter().all(|byte| *byte == b'b'),
            etag => panic!("{etag:?}"),
        };
        assert!(of_one_version, "{:?}", answer.body);
    }
}

#[test]
fn the_log_names_the_region_of_the_bucket() {
    let answers: [(u16, Answer); 3] = [
        (502, || {
            Reply::status(301).header("x-amz-bucket-region", "eu-central-1")
        }),
        (502, || {
            Reply::status(400).header("x-amz-bucket-region", "eu-central-1")
        }),
        (400, || {
            Reply::bytes(MALFORMED)
                .with_status(400)
                .header("Content-Type", "application/xml")
        }),
    ];
    for (status, answer) in answers {
        let origin = Origin::start(move |_| answer());
        let proxy = proxy(&origin).start();
        let client = proxy.get(OBJECT);
        assert_eq!(client.status, status);
        assert!(!String::from_utf8_lossy(&client.body).contains("eu-central-1"));
        eventually("the log names the region", || {
            let log = proxy.stderr();
            log.lines().any(|line| {
                line.contains("bucket bucket: ") && line.contains("is in region \"eu-central-1\"")
            })
        });
    }
    // In the right region, 400 is about something else.
    let origin = Origin::start(|_| Reply::status(400).header("x-amz-bucket-region", "us-east-1"));
    let proxy = proxy(&origin).start();
    assert_eq!(proxy.get(OBJECT).status, 400);
    assert!(!proxy.stderr().contains("is in region"));
}

/// Makes the same reply each time.
type Answer = fn() -> Reply;

/// S3's answer to a signature for another region.
const MALFORMED: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>\
    <Code>AuthorizationHeaderMalformed</Code><Message>The region is wrong</Message>\
    <Region>eu-central-1</Region><RequestId>1</RequestId></Error>";

#[test]
fn an_error_document_is_no_object() {
    let document = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
        <Error><Code>InternalError</Code><Message>We encountered an internal error</Message></Error>";
    let origin = Origin::start(move |asked| {
        let reply = Reply::bytes(document).header("Content-Type", "application/xml");
        match asked.path() {
            "/bucket/error" => reply,
            // An object that somebody has stored.
            "/bucket/stored" => reply.header("ETag", "\"a\""),
            "/bucket/text" => Reply::bytes(document).header("Content-Type", "text/plain"),
            _ => {
                Reply::bytes("<?xml version=\"1.0\"?><Errors/>").header("Content-Type", "text/xml")
            }
        }
    });
    let proxy = proxy(&origin).start();
    for _ in 0..2 {
        let mut client = Connection::open(proxy.addr());
        let complete = client
            .try_begin("GET", "/assets/error", &[])
            .is_ok_and(|answer| {
                let answer = answer.finish();
                answer.status == 200 && answer.complete
            });
        assert!(!complete);
    }
    assert_eq!(origin.requests_for("/bucket/error"), 2);
    for target in ["/assets/stored", "/assets/text", "/assets/other"] {
        let answer = proxy.get(target);
        assert_eq!(answer.status, 200, "{target}");
        assert!(answer.complete && !answer.body.is_empty(), "{target}");
    }
    let log = proxy.stderr();
    assert!(
        log.contains("the origin sends an error (InternalError)"),
        "{log}"
    );
}

#[test]
fn the_clock_of_the_origin_is_learnt() {
    const AHEAD: Duration = Duration::from_secs(3 * 3600);
    let origin = Origin::start(|asked| {
        let now = SystemTime::now() + AHEAD;
        let reply = match asked.header("x-amz-date") {
            Some(date) if date[..11] == stamp(now)[..11] => object("\"a\""),
            // A few requests fall on the turn of the hour.
            Some(date) if date[..11] == stamp(now - Duration::from_secs(60))[..11] => {
                object("\"a\"")
            }
            _ => Reply::bytes("<Error><Code>RequestTimeTooSkewed</Code></Error>").with_status(403),
        };
        reply.header("Date", httpdate(now))
    });
    let bucket = Bucket::at(&origin, "/assets", "bucket").credentials("key", "secret");
    let proxy = builder().bucket(bucket).without_cache().start();
    for requests in [2, 3, 4] {
        let answer = proxy.get(OBJECT);
        assert_eq!(answer.status, 200, "{}", proxy.stderr());
        assert_eq!(origin.requests().len(), requests);
    }
    let log = proxy.stderr();
    assert_eq!(
        log.matches("seconds ahead of this machine's").count(),
        1,
        "{log}"
    );
}

#[test]
fn a_403_with_the_right_date_is_an_answer() {
    let origin = Origin::start(|_| Reply::status(403).header("Date", httpdate(SystemTime::now())));
    let bucket = Bucket::at(&origin, "/assets", "bucket").credentials("key", "secret");
    let proxy = builder().bucket(bucket).start();
    assert_eq!(proxy.get(OBJECT).status, 403);
    assert_eq!(head(proxy.addr(), OBJECT).status, 403);
    assert_eq!(origin.requests().len(), 2);
    assert!(!proxy.stderr().contains("seconds ahead"));
}

fn object(etag: &str) -> Reply {
    Reply::bytes("hello").header("ETag", etag)
}

fn slow_down() -> Reply {
    Reply::bytes("<Error><Code>SlowDown</Code></Error>")
        .with_status(503)
        .header("Content-Type", "application/xml")
}

/// An origin whose first answers are errors.
fn failing(times: usize, error: impl Fn() -> Reply + Send + Sync + 'static) -> Origin {
    let asked = AtomicUsize::new(0);
    Origin::start(move |request: &Request| {
        if asked.fetch_add(1, Ordering::SeqCst) < times {
            return error();
        }
        object("\"a\"").answering(request)
    })
}

fn open_gate() -> Gate {
    let gate = Gate::new();
    gate.open();
    gate
}

/// An origin that ends its first connections after `begun`, once it was asked and the gate is
/// open. Returns its address and the number of connections.
fn breaking(times: usize, begun: String, gate: &Gate) -> (String, Arc<AtomicUsize>) {
    let gate = gate.clone();
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let mut asked = [0; 4096];
            // Each request fits into one read.
            if !matches!(std::io::Read::read(&mut stream, &mut asked), Ok(1..)) {
                continue;
            }
            let answer = match number < times {
                true => begun.as_str(),
                false => "HTTP/1.1 200 OK\r\nETag: \"new\"\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            };
            let _ = stream.write_all(answer.as_bytes());
            gate.pass();
        }
    });
    (endpoint, connections)
}

/// As in `X-Amz-Date`.
fn stamp(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

fn httpdate(time: SystemTime) -> String {
    ::httpdate::fmt_http_date(time)
}
