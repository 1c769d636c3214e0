//! The log of requests: each has a line, which says what was done and no secret, and no line holds a
//! request up.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::{builder, proxy, S3_PROXY};
use rustix::fs::{mkfifoat, Mode, CWD};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    eventually, get, head, https_client, request, Bucket, Connection, FaultyDisk, Gate,
    HttpVersion, Origin, Pattern, Proxy, Reply, Response, TokenKey,
};

const WRITTEN: &str = "access_log_lines_total";
const DROPPED: &str = "access_log_dropped_total";

/// Larger than what is kept in memory and copied.
const LARGE: u64 = 100_000;
const SMALL: u64 = 1000;

/// Objects whose names are their lengths. The origin names each request.
fn origin() -> Origin {
    Origin::start(|request| {
        let len = request.path().rsplit('/').next().unwrap_or_default();
        match len.parse() {
            Ok(len) => Reply::pattern(1, len)
                .header("etag", "\"1\"")
                .header("x-amz-request-id", "ORIGIN-1")
                .answering(request),
            Err(_) => Reply::status(404),
        }
    })
}

/// The lines of a log, once there are `count`.
fn lines(proxy: &Proxy, count: usize) -> Vec<Value> {
    let text = || fs::read_to_string(proxy.access_log()).unwrap_or_default();
    eventually("each request has its line", || {
        text().matches('\n').count() >= count
    });
    let lines = parsed(&text());
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

fn parsed(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn id(response: &Response) -> &str {
    let ids = response.headers.all("x-amz-request-id");
    assert_eq!(ids.len(), 1, "{ids:?}");
    ids[0]
}

fn seconds(line: &Value, name: &str) -> f64 {
    let seconds = line[name].as_f64();
    seconds.unwrap_or_else(|| panic!("no {name} in {line}"))
}

fn today() -> String {
    let now = time::OffsetDateTime::now_utc();
    now.date().to_string()
}

// --- fields ---

#[test]
fn a_miss_and_a_hit_by_sendfile_say_how_they_went() {
    let origin = origin();
    let proxy = proxy(&origin).access_log().start();
    let path = format!("/assets/{LARGE}?x-id=GetObject");
    let before = today();
    let miss = proxy.get(&path);
    let fields = [("user-agent", "a client"), ("referer", "http://a/?token=s")];
    let hit = request(proxy.addr(), "GET", &path, &fields);
    assert_eq!(hit.header("x-cache"), Some("HIT"));

    let lines = lines(&proxy, 2);
    for (line, response, cache) in [(&lines[0], &miss, "MISS"), (&lines[1], &hit, "HIT")] {
        assert_eq!(line["client"], "127.0.0.1");
        assert_eq!(line["method"], "GET");
        assert_eq!(line["path"], path);
        assert_eq!(line["protocol"], "HTTP/1.1");
        assert_eq!(line["status"], 200);
        assert_eq!(line["bytes"], LARGE);
        assert_eq!(line["cache"], cache);
        assert_eq!(line["host"], proxy.addr().to_string());
        assert_eq!(line["request_id"], id(response));
        assert!(seconds(line, "ttfb") <= seconds(line, "total_time"));
        let time = line["time"].as_str().expect("a time");
        let is_today = [before.clone(), today()]
            .iter()
            .any(|day| time.starts_with(&format!("{day}T")));
        assert!(is_today && time.ends_with('Z'), "{time}");
        assert!(line.get("error").is_none() && line.get("key_id").is_none());
    }
    assert_eq!(lines[1]["sent"], "sendfile");
    assert_eq!(lines[1]["user_agent"], "a client");
    assert_eq!(lines[1]["referer"], "http://a/?token=REDACTED");
    assert!(lines[0].get("user_agent").is_none());
    // The ids are the proxy's own. That of the origin belongs to the request that it has answered.
    assert_ne!(id(&miss), id(&hit));
    assert_eq!(id(&hit).len(), 16);
    assert_eq!(lines[0]["origin_request_id"], "ORIGIN-1");
    assert!(seconds(&lines[0], "origin_time") <= seconds(&lines[0], "ttfb"));
    for name in ["origin_request_id", "origin_time"] {
        assert!(lines[1].get(name).is_none(), "{name}");
    }
    proxy.expect_metric(WRITTEN, 2);
    proxy.expect_metric(DROPPED, 0);
    let mode = fs::metadata(proxy.access_log())
        .expect("a log")
        .permissions();
    assert_eq!(mode.mode() & 0o137, 0);
}

#[test]
fn a_hit_of_a_small_object_comes_from_memory() {
    let origin = origin();
    let proxy = proxy(&origin).access_log().start();
    let path = format!("/assets/{SMALL}");
    assert_eq!(proxy.get(&path).status, 200);
    proxy.expect_metric("cache_entries", 1);
    // The header is prepared by the first hit, for the second one.
    for _ in 0..2 {
        assert_eq!(proxy.get(&path).status, 200);
    }
    let lines = lines(&proxy, 3);
    for hit in &lines[1..] {
        assert_eq!(hit["cache"], "HIT");
        assert_eq!(hit["sent"], "memory");
        assert_eq!(hit["status"], 200);
        assert_eq!(hit["bytes"], SMALL);
        assert!(seconds(hit, "ttfb") <= seconds(hit, "total_time"));
    }
}

#[test]
fn hits_over_https_and_http_2_say_so() {
    let origin = origin();
    let proxy = proxy(&origin).tls().access_log().start();
    assert_eq!(proxy.get(&format!("/assets/{LARGE}")).status, 200);
    let url = format!("https://{}/assets/{LARGE}", proxy.https_addr());
    let mut ids = Vec::new();
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let answer = https_client(version).get(&url).send().expect("an answer");
        ids.push(answer.headers()["x-amz-request-id"].clone());
        assert_eq!(answer.bytes().expect("a body").len() as u64, LARGE);
    }
    let lines = lines(&proxy, 3);
    let by_kernel = proxy.stderr().contains("server.tls.ktls: the kernel has");
    let over_tls = if by_kernel { "ktls" } else { "copied" };
    for (line, id, protocol, sent) in [
        (&lines[1], &ids[0], "HTTP/1.1", over_tls),
        (&lines[2], &ids[1], "HTTP/2.0", "copied"),
    ] {
        assert_eq!(line["protocol"], protocol);
        assert_eq!(line["sent"], sent, "{protocol}");
        assert_eq!(line["cache"], "HIT");
        assert_eq!(line["status"], 200);
        assert_eq!(line["bytes"], LARGE);
        assert_eq!(line["request_id"], id.to_str().expect("an id"));
        assert_eq!(line["host"], proxy.https_addr().to_string());
    }
}

#[test]
fn responses_that_are_not_the_whole_have_their_own_status_and_length() {
    let origin = origin();
    let proxy = proxy(&origin).access_log().start();
    let path = format!("/assets/{LARGE}");
    assert_eq!(proxy.get(&path).status, 200);
    let mut answers = Vec::new();
    for fields in [
        ("range", "bytes=10-19"),
        ("range", "bytes=100000-"),
        ("if-none-match", "\"1\""),
        ("if-match", "\"2\""),
    ] {
        answers.push(request(proxy.addr(), "GET", &path, &[fields]));
    }
    answers.push(head(proxy.addr(), &path));
    answers.push(get(proxy.addr(), "/assets/none"));
    answers.push(get(proxy.addr(), "/assets/none"));
    answers.push(get(proxy.addr(), "/elsewhere"));
    answers.push(request(proxy.addr(), "DELETE", &path, &[]));
    let lines = lines(&proxy, 1 + answers.len());
    let statuses = [206, 416, 304, 412, 200, 404, 404, 404, 501];
    for ((line, answer), status) in lines[1..].iter().zip(&answers).zip(statuses) {
        assert_eq!(answer.status, status);
        assert_eq!(line["status"], status);
        assert_eq!(line["bytes"], answer.body.len(), "{line}");
        assert_eq!(
            line.get("sent").is_some(),
            !answer.body.is_empty(),
            "{line}"
        );
        assert_eq!(line["request_id"], id(answer));
        let text = answer.text();
        if let Some((_, rest)) = text.split_once("<RequestId>") {
            assert!(rest.starts_with(&format!("{}<", id(answer))), "{text}");
        }
    }
    assert_eq!(lines[1]["sent"], "sendfile");
    assert_eq!(lines[3]["cache"], "HIT");
    // The first 404 comes from the origin, the second is remembered.
    assert_eq!(lines[6]["cache"], "MISS");
    assert_eq!(lines[7]["cache"], "HIT");
    assert!(lines[8].get("cache").is_none());
}

#[test]
fn a_client_that_leaves_has_a_line_with_what_it_was_sent() {
    const LEN: u64 = 64 << 20;
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    let proxy = proxy(&origin).access_log().start();
    assert_eq!(proxy.get("/assets/1").body.len() as u64, LEN);
    let mut client = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut hit = client.begin("GET", "/assets/1", &[]);
    let received = hit.read_some(100_000).len() as u64;
    drop(hit);
    client.abort();
    let line = &lines(&proxy, 2)[1];
    let sent = line["bytes"].as_u64().expect("a number");
    assert!((received..LEN).contains(&sent), "{sent}");
    assert_eq!(line["status"], 200);
    assert_eq!(line["error"], "downstream");
    proxy.expect_metric("response_body_bytes_total", LEN + sent);
}

#[test]
fn an_origin_that_fails_has_a_line_that_says_so() {
    let nobody = origin().url();
    let proxy = builder()
        .bucket(Bucket::new("/assets", "bucket").endpoint(nobody))
        .access_log()
        .start();
    let answer = proxy.get("/assets/1");
    assert_eq!(answer.status, 502);
    let line = &lines(&proxy, 1)[0];
    assert_eq!(line["status"], 502);
    assert_eq!(line["error"], "upstream");
    assert_eq!(line["request_id"], id(&answer));
    assert!(seconds(line, "origin_time") <= seconds(line, "total_time"));
}

#[test]
fn a_body_that_the_origin_breaks_off_has_a_line_with_what_was_sent() {
    const LEN: u64 = 1 << 20;
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| {
            Reply::pattern(1, LEN)
                .hold_at(LEN / 2, &gate)
                .close_at(LEN / 2)
        }
    });
    let proxy = proxy(&origin).access_log().start();
    let mut client = Connection::open(proxy.addr());
    let mut short = client.begin("GET", "/assets/1", &[]);
    // The origin breaks off once the client has the head, or the answer would be 502.
    let mut received = short.read_some(1000).len() as u64;
    gate.open();
    let rest = short.check(Pattern::new(1), received);
    assert!(!rest.complete);
    received += rest.len;
    let line = &lines(&proxy, 1)[0];
    assert_eq!(line["status"], 200);
    assert_eq!(line["bytes"], received);
    assert_eq!(line["cache"], "MISS");
    assert_eq!(line["error"], "upstream");
}

#[test]
fn a_redirect_to_https_has_a_line_and_a_head_that_is_refused_has_none() {
    let origin = origin();
    let proxy = proxy(&origin)
        .tls()
        .tls_key("redirect", true)
        .access_log()
        .start();
    let mut refused = Connection::open(proxy.addr());
    refused.send_bytes(b"GET / HTTP/9\r\n\r\n");
    assert_eq!(refused.receive("GET").status, 400);
    let answer = request(proxy.addr(), "GET", "/assets/1?token=s", &[]);
    assert_eq!(answer.status, 308);
    let line = &lines(&proxy, 1)[0];
    assert_eq!(line["status"], 308);
    assert_eq!(line["path"], "/assets/1?token=REDACTED");
    assert_eq!(line["request_id"], id(&answer));
}

#[test]
fn requests_of_the_proxy_itself_have_no_line() {
    let origin = origin();
    let proxy = proxy(&origin).admin().access_log().start();
    let path = format!("/assets/{LARGE}");
    assert_eq!(request(proxy.admin_addr(), "WARM", &path, &[]).status, 200);
    assert_eq!(proxy.get(&path).header("x-cache"), Some("HIT"));
    assert_eq!(lines(&proxy, 1)[0]["cache"], "HIT");
}

#[test]
fn without_a_log_responses_are_as_they_were_stored() {
    let origin = origin();
    let proxy = proxy(&origin).trusted_proxies("[127.0.0.1]").start();
    let path = format!("/assets/{LARGE}");
    for _ in 0..3 {
        let fields = [("x-amz-request-id", "mine")];
        let answer = request(proxy.addr(), "GET", &path, &fields);
        assert_eq!(id(&answer), "ORIGIN-1");
    }
}

// --- request ids ---

#[test]
fn the_id_of_a_trusted_proxy_is_taken_over_in_all_responses() {
    let origin = origin();
    for (networks, is_trusted) in [("[10.0.0.0/8, 127.0.0.0/8]", true), ("[10.0.0.0/8]", false)] {
        let proxy = proxy(&origin)
            .trusted_proxies(networks)
            .access_log()
            .start();
        let path = format!("/assets/{LARGE}");
        let targets = [
            &*path,
            &*path,
            &*path,
            "/assets/none",
            "/elsewhere",
            "/assets/%zz",
        ];
        for (number, target) in targets.iter().enumerate() {
            let given = format!("front-{number}");
            let fields = [("x-amz-request-id", &*given)];
            let answer = request(proxy.addr(), "GET", target, &fields);
            assert_eq!(id(&answer) == given, is_trusted, "{target}");
            let line = &lines(&proxy, number + 1)[number];
            assert_eq!(line["request_id"], id(&answer));
        }
        // One that could be anything else is not taken over.
        for given in ["a b", "a\"b", &"a".repeat(65)] {
            let fields = [("x-amz-request-id", given)];
            let answer = request(proxy.addr(), "GET", &path, &fields);
            assert_eq!(id(&answer).len(), 16, "{given}");
        }
    }
}

#[test]
fn a_trusted_proxy_states_the_address_of_the_client() {
    const FIELD: &str = "x-forwarded-for";
    let origin = origin();
    for (networks, is_trusted) in [("[10.0.0.0/8, 127.0.0.0/8]", true), ("[10.0.0.0/8]", false)] {
        let proxy = proxy(&origin)
            .trusted_proxies(networks)
            .access_log()
            .start();
        let path = format!("/assets/{LARGE}");
        for (number, (values, client)) in [
            (&["198.51.100.7, 10.0.0.1"][..], "198.51.100.7"),
            (&["198.51.100.7", "10.0.0.1"], "198.51.100.7"),
            // The client has sent the first one.
            (&["192.0.2.66", "[2001:db8::7]:4711"], "2001:db8::7"),
            (&["198.51.100.7, unknown"], "127.0.0.1"),
            (&[], "127.0.0.1"),
        ]
        .into_iter()
        .enumerate()
        {
            let fields: Vec<_> = values.iter().map(|value| (FIELD, *value)).collect();
            assert_eq!(request(proxy.addr(), "GET", &path, &fields).status, 200);
            let line = &lines(&proxy, number + 1)[number];
            let client = if is_trusted { client } else { "127.0.0.1" };
            assert_eq!(line["client"], client, "{values:?}");
        }
    }
}

// --- secrets ---

#[test]
fn neither_signatures_nor_tokens_are_logged() {
    const SECRETS: [&str; 4] = ["0123456789abcdef", "c2Vzc2lvbg", "eyJhbGciOiJ", "5e55-10n"];
    let origin = origin();
    let folder = TempDir::new().expect("a folder");
    let key = folder.path().join("key.pem");
    fs::write(&key, TokenKey::es256().public_pem()).expect("write a key");
    let section = format!("{{public_key_file: '{}', query: ticket}}", key.display());
    let proxy = builder()
        .bucket(
            Bucket::at(&origin, "/signed", "one")
                .set("auth", "sigv4")
                .set("clients", "[{access_key: AKIAALICE, secret_key: secret}]"),
        )
        .bucket(
            Bucket::at(&origin, "/token", "two")
                .set("auth", "jwt")
                .set("jwt", section),
        )
        .bucket(Bucket::at(&origin, "/open", "three"))
        .access_log()
        .start();
    let presigned = format!(
        "/signed/1?X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIAALICE%2F20260101%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host\
         &X-Amz-Security-Token={}&X-Amz-Signature={}",
        SECRETS[1], SECRETS[0]
    );
    // It may mean the same to some server.
    let encoded = presigned.replace("-Signature", "-%73ignature");
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIAALICE/20260101/us-east-1/s3/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={}",
        SECRETS[0]
    );
    let session = format!("/open/{SMALL}?sessionId={}", SECRETS[3]);
    let token = format!("/token/1?ticket={}", SECRETS[2]);
    let in_path = format!("/open/{SMALL}%3FX-Amz-Signature={}", SECRETS[0]);
    let nested = presigned
        .replace('%', "%25")
        .replace('?', "%3F")
        .replace('=', "%3D")
        .replace('&', "%26");
    let referer = format!("https://a.example/?next={nested}");
    for (target, fields, status, key) in [
        (&*presigned, vec![], 403, Some("AKIAALICE")),
        (&*encoded, vec![], 400, Some("AKIAALICE")),
        (
            "/signed/1",
            vec![("authorization", &*authorization)],
            403,
            Some("AKIAALICE"),
        ),
        (&*token, vec![], 401, None),
        (&*session, vec![("cookie", SECRETS[3])], 200, None),
        (&*in_path, vec![], 404, None),
        ("/open/10", vec![("referer", &*referer)], 200, None),
        // Nobody verifies a key where anyone may read.
        (
            "/open/10",
            vec![("authorization", &*authorization)],
            200,
            None,
        ),
    ] {
        assert_eq!(request(proxy.addr(), "GET", target, &fields).status, status);
        let text = fs::read_to_string(proxy.access_log()).expect("a log");
        let line = lines(&proxy, text.lines().count() + 1)
            .pop()
            .expect("a line");
        assert_eq!(line["status"], status);
        assert_eq!(line.get("key_id").and_then(Value::as_str), key, "{target}");
    }
    let text = fs::read_to_string(proxy.access_log()).expect("a log");
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert_eq!(text.matches("REDACTED").count(), 9, "{text}");
}

// --- forgery ---

#[test]
fn no_client_can_forge_a_line() {
    const ATTACKS: usize = 5;
    let origin = origin();
    for format in ["json", "combined"] {
        let proxy = proxy(&origin).access_log_key("format", format).start();
        let agents: [&[u8]; ATTACKS] = [
            b"\"}\\n{\"status\":200,\"client\":\"192.0.2.1\"}",
            b"\\\" 200 5 \"-\" \"",
            b"\xff\xfe\xc0\x80 \xe2\x80\xa8 \xc2\x85",
            b"\t]\t",
            &[b'x'; 20_000],
        ];
        for agent in agents {
            let head = [
                b"GET /assets/1%0a%0d%22?%00%22'&a=%ff HTTP/1.1\r\nHost: \"a\\\r\nReferer: ",
                agent,
                b"\r\nUser-Agent: ",
                agent,
                b"\r\nAuthorization: AWS ",
                agent,
                b":\r\nConnection: close\r\n\r\n",
            ]
            .concat();
            let mut client = Connection::open(proxy.addr());
            client.send_bytes(&head);
            client.receive("GET");
        }
        let text = || fs::read(proxy.access_log()).expect("a log");
        eventually("each request has its line", || {
            text().iter().filter(|b| **b == b'\n').count() >= ATTACKS
        });
        let text = String::from_utf8(text()).expect("the log is UTF-8");
        assert_eq!(text.lines().count(), ATTACKS, "{text}");
        for line in text.lines() {
            assert!(line.len() < 8 * 1024, "{line}");
            assert!(!line.chars().any(char::is_control), "{line}");
            assert!(!line.contains('\u{2028}'), "{line}");
            if format == "json" {
                let line: Value = serde_json::from_str(line).expect("JSON");
                assert_eq!(line["client"], "127.0.0.1");
            } else {
                assert!(line.starts_with("127.0.0.1 - "), "{line}");
                assert_eq!(line.matches('"').count(), 6, "{line}");
            }
        }
    }
}

// --- files ---

#[test]
fn the_combined_format_is_that_of_other_servers() {
    let origin = origin();
    let proxy = proxy(&origin).access_log_key("format", "combined").start();
    let fields = [("user-agent", "curl/8"), ("referer", "http://a/")];
    let path = format!("/assets/{SMALL}?versionId=1");
    assert_eq!(request(proxy.addr(), "GET", &path, &fields).status, 200);
    let text = || fs::read_to_string(proxy.access_log()).expect("a log");
    eventually("the request has its line", || text().ends_with('\n'));
    let text = text();
    let (before, rest) = text.split_once(" [").expect("a time");
    assert_eq!(before, "127.0.0.1 - -");
    let (time, rest) = rest.split_once("] ").expect("the end of the time");
    assert!(time.ends_with(" +0000") && time.len() == 26, "{time}");
    assert_eq!(
        rest,
        format!("\"GET {path} HTTP/1.1\" 200 {SMALL} \"http://a/\" \"curl/8\"\n")
    );
}

#[test]
fn a_rotation_loses_no_line() {
    let origin = origin();
    let proxy = proxy(&origin).access_log().start();
    let path = format!("/assets/{SMALL}");
    let rotated = proxy.access_log().with_extension("1");
    let addr = proxy.addr();
    let stop = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = Connection::open(addr);
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(client.get(&path).status, 200);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let size = |file| fs::metadata(file).map_or(0, |file| file.len());
        eventually("lines are written", || size(proxy.access_log()) > 0);
        fs::rename(proxy.access_log(), &rotated).expect("rename the log");
        proxy.signal(Signal::USR1);
        eventually("a new file is written to", || size(proxy.access_log()) > 0);
        stop.store(true, Ordering::Relaxed);
    });
    let asked = asked.load(Ordering::Relaxed);
    proxy.expect_metric(WRITTEN, asked as u64);
    let text = [&rotated, &proxy.access_log()].map(|file| fs::read_to_string(file).expect("a log"));
    let lines = text.iter().flat_map(|text| parsed(text));
    let ids: Vec<_> = lines.map(|line| line["request_id"].to_string()).collect();
    assert_eq!(ids.len(), asked);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), asked);
}

#[test]
fn a_file_that_was_removed_is_there_again_after_the_signal() {
    let origin = origin();
    let proxy = proxy(&origin).access_log().start();
    assert_eq!(proxy.get("/assets/1").status, 200);
    lines(&proxy, 1);
    fs::remove_file(proxy.access_log()).expect("remove the log");
    proxy.signal(Signal::USR1);
    eventually("the file is there again", || proxy.access_log().exists());
    assert_eq!(proxy.get("/assets/2").status, 200);
    assert_eq!(lines(&proxy, 1)[0]["path"], "/assets/2");
}

#[test]
fn a_path_that_is_no_file_any_more_leaves_the_former_file_in_use() {
    let origin = origin();
    let make_folder: fn(&Path) = |path| fs::create_dir(path).expect("make a folder");
    let make_pipe: fn(&Path) =
        |path| mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).expect("make a pipe");
    for make in [make_folder, make_pipe] {
        let proxy = proxy(&origin).access_log().start();
        assert_eq!(proxy.get("/assets/1").status, 200);
        lines(&proxy, 1);
        let former = proxy.access_log().with_extension("1");
        fs::rename(proxy.access_log(), &former).expect("rename the log");
        make(&proxy.access_log());
        proxy.signal(Signal::USR1);
        eventually("the failure is reported", || {
            proxy.stderr().contains("cannot be opened again")
        });
        assert_eq!(proxy.get("/assets/2").status, 200);
        proxy.expect_metric(WRITTEN, 2);
        let text = fs::read_to_string(&former).expect("a log");
        assert_eq!(parsed(&text)[1]["path"], "/assets/2");
    }
}

#[test]
fn a_daily_log_has_the_date_in_its_name() {
    let origin = origin();
    let before = today();
    let proxy = proxy(&origin).access_log_key("rotate", "daily").start();
    assert_eq!(proxy.get("/assets/1").status, 200);
    proxy.expect_metric(WRITTEN, 1);
    let texts = BTreeSet::from([before, today()])
        .into_iter()
        .map(|day| format!("{}.{day}", proxy.access_log().display()))
        .map(|file| fs::read_to_string(file).unwrap_or_default());
    assert_eq!(texts.map(|text| parsed(&text).len()).sum::<usize>(), 1);
    assert!(!proxy.access_log().exists());
}

#[test]
fn all_lines_are_written_when_the_proxy_stops_or_hands_over() {
    const REQUESTS: usize = 100;
    let origin = origin();
    let mut proxy = proxy(&origin)
        .grace_period("1s")
        .upgradable()
        .access_log()
        .start();
    let ask = |proxy: &Proxy| {
        let mut client = Connection::open(proxy.addr());
        for _ in 0..REQUESTS {
            // A process that hands over ends its connections.
            if !client.is_reusable() {
                client = Connection::open(proxy.addr());
            }
            assert_eq!(client.get(&format!("/assets/{SMALL}")).status, 200);
        }
    };
    ask(&proxy);
    let old = proxy.upgrade();
    ask(&proxy);
    assert!(old.wait().success());
    ask(&proxy);
    assert!(proxy.stop_gracefully().success());
    let text = fs::read_to_string(proxy.access_log()).expect("a log");
    assert_eq!(parsed(&text).len(), 3 * REQUESTS);
}

#[test]
fn standard_output_has_the_lines_until_its_reader_leaves() {
    let origin = origin();
    let folder = TempDir::new().expect("a folder");
    let config = folder.path().join("config.yaml");
    let yaml = format!(
        "server: {{address: '127.0.0.1:0'}}\n\
         buckets: [{{path_prefix: /assets, bucket: bucket, region: us-east-1, endpoint: '{}'}}]\n\
         cache: {{disk: {{path: '{}'}}}}\naccess_log: {{path: '-'}}\n",
        origin.url(),
        folder.path().join("cache").display()
    );
    fs::write(&config, yaml).expect("write the configuration");
    let mut child = Command::new(S3_PROXY)
        .args(["run", "--config"])
        .arg(&config)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the proxy");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut next = || {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    };
    let address = next();
    let address = address.strip_prefix("s3-proxy: serving http://");
    let addr = address.expect("an address").parse().expect("an address");
    assert_eq!(next(), "s3-proxy: ready");
    assert_eq!(get(addr, "/assets/10").status, 200);
    let line: Value = serde_json::from_str(&next()).expect("JSON");
    assert_eq!(line["path"], "/assets/10");
    drop(stdout);
    for _ in 0..2 {
        assert_eq!(get(addr, "/assets/10").status, 200);
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("signal the proxy");
    assert!(child.wait().expect("its end").success());
}

#[test]
fn lines_after_a_crash_begin_on_their_own() {
    let origin = origin();
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("access.log");
    fs::write(&file, "{\"time\":\"20").expect("write a part of a line");
    let proxy = proxy(&origin)
        .access_log_key("path", format!("'{}'", file.display()))
        .start();
    assert_eq!(proxy.get("/assets/10").status, 200);
    proxy.expect_metric(WRITTEN, 1);
    let text = fs::read_to_string(&file).expect("a log");
    let (torn, line) = text.split_once('\n').expect("two lines");
    assert_eq!(torn, "{\"time\":\"20");
    assert_eq!(parsed(line)[0]["path"], "/assets/10");
}

// --- trouble ---

#[test]
fn a_reader_that_hangs_costs_lines_and_holds_no_request_up() {
    const REQUESTS: usize = 2000;
    let origin = origin();
    let folder = TempDir::new().expect("a folder");
    let pipe = folder.path().join("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("make a pipe");
    // With a writer of its own, it opens at once, and does not end with the proxy.
    let mut reader = fs::OpenOptions::new();
    let mut reader = reader.read(true).write(true).open(&pipe).expect("open");
    let mut proxy = proxy(&origin)
        .access_log_key("path", format!("'{}'", pipe.display()))
        .access_log_key("buffer_kib", 64)
        .start();
    let mut client = Connection::open(proxy.addr());
    for _ in 0..REQUESTS {
        assert_eq!(client.get(&format!("/assets/{SMALL}")).status, 200);
    }
    // The pipe has room for 64 KiB (pipe(7)), and so has the queue.
    settle(client);
    let dropped = proxy.metric(DROPPED) as usize;
    assert!((1..REQUESTS).contains(&dropped), "{dropped}");

    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while text.iter().filter(|b| **b == b'\n').count() < REQUESTS - dropped {
        let len = reader.read(&mut piece).expect("read");
        text.extend_from_slice(&piece[..len]);
    }
    let text = String::from_utf8(text).expect("the log is UTF-8");
    assert_eq!(parsed(&text).len(), REQUESTS - dropped);
    proxy.expect_metric(WRITTEN, (REQUESTS - dropped) as u64);
    // There is room again.
    assert_eq!(proxy.get("/assets/10").status, 200);
    assert!(reader.read(&mut piece).expect("read") > 0);
    proxy.expect_metric(DROPPED, dropped as u64);
    let log = proxy.stderr();
    assert_eq!(log.matches("lines were dropped").count(), 1, "{log}");
    assert!(proxy.stop_gracefully().success());
}

/// Waits until the last request of a connection has its line, or has lost it: the next head is read
/// after that. This one is refused, and has no line.
fn settle(mut client: Connection) {
    client.send_bytes(b"GET / HTTP/9\r\n\r\n");
    assert_eq!(client.receive("GET").status, 400);
}

#[test]
fn a_full_disk_costs_lines_until_it_has_room_again() {
    const REQUESTS: usize = 2000;
    let Some(disk) = FaultyDisk::mount() else {
        return;
    };
    let origin = origin();
    let file = disk.path().join("access.log");
    let proxy = proxy(&origin)
        .access_log_key("path", format!("'{}'", file.display()))
        .access_log_key("buffer_kib", 64)
        .start();
    disk.limit_bytes(Some(10_000));
    let mut client = Connection::open(proxy.addr());
    let path = format!("/assets/{SMALL}");
    for _ in 0..REQUESTS {
        assert_eq!(client.get(&path).status, 200);
    }
    settle(client);
    let dropped = proxy.metric(DROPPED) as usize;
    assert!((1..REQUESTS).contains(&dropped), "{dropped}");
    eventually("the trouble is reported", || {
        proxy.stderr().contains("cannot be written to")
    });

    disk.limit_bytes(None);
    proxy.expect_metric(WRITTEN, (REQUESTS - dropped) as u64);
    assert_eq!(proxy.get(&path).status, 200);
    proxy.expect_metric(WRITTEN, (REQUESTS - dropped + 1) as u64);
    proxy.expect_metric(DROPPED, dropped as u64);
    // No line is broken.
    let text = fs::read_to_string(&file).expect("a log");
    assert_eq!(parsed(&text).len(), REQUESTS - dropped + 1);
    let log = proxy.stderr();
    assert_eq!(log.matches("access_log.path").count(), 1, "{log}");
}

#[test]
fn a_log_that_cannot_be_written_is_a_mistake_of_the_configuration() {
    let folder = TempDir::new().expect("a folder");
    let config = folder.path().join("config.yaml");
    let missing = folder.path().join("missing");
    for (path, said) in [
        (missing.join("access.log"), "there is no folder "),
        (
            folder.path().to_owned(),
            "is a folder; write the path of a file",
        ),
    ] {
        let yaml = format!(
            "server: {{address: '127.0.0.1:0'}}\n\
             buckets: [{{path_prefix: /assets, bucket: bucket, region: us-east-1}}]\n\
             access_log: {{path: '{}'}}\n",
            path.display()
        );
        fs::write(&config, yaml).expect("write the configuration");
        for command in ["check", "run"] {
            let output = Command::new(S3_PROXY)
                .args([command, "--config"])
                .arg(&config)
                .output()
                .expect("run s3-proxy");
            assert_eq!(output.status.code(), Some(2), "{command}");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(":3:20: access_log.path: "), "{text}");
            assert!(text.contains(said), "{text}");
        }
    }
}
