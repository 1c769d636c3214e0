//! The state of the proxy, and what it logs, as operators see and change them while it runs.

use crate::{builder, proxy};
use rustix::process::Signal;
use serde_json::Value;
use test_support::{
    eventually, get, request, Bucket, Connection, Origin, Proxy, ProxyBuilder, Reply,
};

const LEN: u64 = 100_000;

// --- the status ---

#[test]
fn the_status_says_what_clients_got_and_how() {
    let origin = Origin::start(|request| match request.path().ends_with("small") {
        true => Reply::pattern(1, 100),
        false => Reply::pattern(1, LEN),
    });
    let proxy = proxy(&origin).admin().start();
    assert_eq!(status(&proxy)["requests"]["hit_ratio"], Value::Null);
    for path in ["/assets/large", "/assets/small"] {
        assert_eq!(proxy.get(path).header("x-cache"), Some("MISS"));
    }
    proxy.expect_metric("cache_entries", 2);
    for path in ["/assets/large", "/assets/small"] {
        for _ in 0..3 {
            assert_eq!(proxy.get(path).header("x-cache"), Some("HIT"));
        }
    }
    proxy.expect_metric("cache_hits_total", 6);

    let status = status(&proxy);
    let requests = &status["requests"];
    assert_eq!(
        (&requests["hits"], &requests["misses"]),
        (&6.into(), &2.into())
    );
    assert_eq!(requests["hit_ratio"], 0.75);
    assert_eq!(requests["origin"], 2);
    let bytes = &status["bytes"];
    assert_eq!(bytes["total"], 4 * LEN + 400);
    let is_sent = cfg!(target_os = "linux");
    let sendfile = if is_sent { 3 * LEN } else { 0 };
    assert_eq!(bytes["sendfile"], sendfile);
    assert_eq!(bytes["ktls"], 0);
    assert_eq!(
        bytes["copied"],
        4 * LEN + 400 - sendfile - bytes["memory"].as_u64().unwrap()
    );
    // The first hit of a small object reads the disk.
    assert!(bytes["memory"].as_u64().unwrap() >= 200, "{bytes}");
    assert_eq!(proxy.metric("response_way_bytes_total"), 4 * LEN + 400);
    let memory = proxy.metrics();
    let memory = memory.sum_where("response_way_bytes_total", &[("way", "memory")]);
    assert_eq!(bytes["memory"], memory);

    let cache = &status["cache"];
    assert_eq!(
        (&cache["entries"], &cache["fills_in_flight"]),
        (&2.into(), &0.into())
    );
    let folder = &cache["folders"][0];
    assert_eq!(folder["path"], proxy.cache_dir().to_str().unwrap());
    assert_eq!(
        (&folder["up"], &folder["entries"]),
        (&true.into(), &2.into())
    );
    assert!(folder["free_bytes"].as_u64().unwrap() > 0);
    let first = &status["origins"][0];
    assert_eq!(
        (&first["bucket"], &first["up"]),
        (&"bucket".into(), &true.into())
    );
    assert_eq!(status["pid"], proxy.pid());
    assert_eq!(status["draining"], false);

    // The command shows the same.
    let shown = command(&proxy, &["status"]);
    assert!(
        shown.contains("6 hits, 2 misses, hit ratio 75.0 %"),
        "{shown}"
    );
    let json: Value = serde_json::from_str(&command(&proxy, &["status", "--json"])).expect("JSON");
    assert_eq!(json["requests"]["hits"], 6);
}

#[test]
fn the_objects_that_are_requested_most_are_found_in_a_crowd() {
    let origin = Origin::start(|_| Reply::bytes("x"));
    let proxy = proxy(&origin).admin().start();
    let mut connection = Connection::open(proxy.addr());
    // A presigned URL: its signature is no part of the name.
    let hot = "/assets/hot%20one?X-Amz-Signature=secret";
    for n in 0..3000 {
        let path = match n % 3 {
            0 | 1 => hot.to_owned(),
            _ => format!("/assets/cold/{}", n % 300),
        };
        if !connection.is_reusable() {
            connection = Connection::open(proxy.addr());
        }
        connection.get(&path);
    }
    let status = status(&proxy);
    let top = status["top_keys"].as_array().expect("a list");
    assert!((1..=20).contains(&top.len()), "{top:?}");
    assert_eq!(top[0]["path"], "/assets/hot%20one");
    let share = top[0]["share"].as_f64().unwrap();
    assert!((0.4..0.9).contains(&share), "{share}");
    assert!(!status.to_string().contains("secret"));
}

#[test]
fn the_status_warns_of_what_is_wrong() {
    let origin = Origin::start(|_| Reply::status(503));
    let bucket = Bucket::at(&origin, "/assets", "bucket").set("retries", 0);
    let proxy = builder()
        .bucket(bucket)
        .admin()
        .health("{origin_failures: 2, origin_down_after: 0}")
        .start();
    assert_eq!(status(&proxy)["warnings"], Value::Array(Vec::new()));
    for object in 0..2 {
        assert_eq!(proxy.get(&format!("/assets/{object}")).status, 503);
    }
    command(&proxy, &["drain"]);
    let status = status(&proxy);
    let warnings = status["warnings"].to_string();
    assert!(
        warnings.contains("of bucket bucket is down: 2 failures"),
        "{warnings}"
    );
    assert!(warnings.contains("drained"), "{warnings}");
    assert_eq!(status["unready"], serde_json::json!(["draining"]));
    let shown = command(&proxy, &["status"]);
    assert!(
        shown.contains("WARNING") && shown.contains("DOWN, 2 failures"),
        "{shown}"
    );
}

#[test]
fn a_status_is_only_for_operators() {
    let origin = Origin::scripted();
    let proxy = proxy(&origin).admin().admin_key("token", TOKEN).start();
    let bearer = format!("Bearer {TOKEN}");
    for path in ["/status", "/log-level"] {
        let ask = |fields: &[_]| request(proxy.admin_addr(), "GET", path, fields).status;
        assert_eq!(ask(&[]), 401);
        assert_eq!(ask(&[("Authorization", &bearer)]), 200);
        let foreign = [
            ("Authorization", &*bearer),
            ("Sec-Fetch-Site", "cross-site"),
        ];
        assert_eq!(ask(&foreign), 403);
        assert_eq!(get(proxy.metrics_addr(), path).status, 404);
    }
    assert!(command(&proxy, &["status"]).contains("ready"));
}

const TOKEN: &str = "a-token-that-is-long-enough";

// --- the log ---

#[test]
fn what_is_logged_changes_while_the_proxy_runs() {
    let origin = Origin::start(|_| Reply::bytes("x"));
    let proxy = with_log(&origin, "warn,pingora_sendfile=info").start();
    let first = "warn,pingora_sendfile=info";
    assert_eq!(command(&proxy, &["log-level"]).trim(), first);
    // At info level, and so written only from then on.
    let mark = |path: &str| {
        let purged = request(proxy.admin_addr(), "WARM", path, &[]);
        assert_eq!(purged.status, 200);
    };
    let said = |what: &str| proxy.stderr().contains(what);
    mark("/assets/before");
    let set = command(&proxy, &["log-level", "debug"]);
    assert!(set.trim().ends_with(",pingora_sendfile=debug"), "{set}");
    assert!(
        set.contains("aws_config=off"),
        "the AWS SDK stays silent: {set}"
    );
    assert_eq!(command(&proxy, &["log-level"]), set);
    mark("/assets/meanwhile");
    eventually("the line of the debug level is written", || {
        said("WARM \"/assets/meanwhile\"")
    });
    assert!(!said("/assets/before"), "{}", proxy.stderr());

    command(&proxy, &["log-level", "off"]);
    let purge = |path: &str| request(proxy.admin_addr(), "PURGE", path, &[]).status;
    assert_eq!(purge("/assets/silent"), 404);
    let filter = "warn,pingora_sendfile::operator=info";
    assert_eq!(command(&proxy, &["log-level", filter]).trim(), filter);
    assert_eq!(purge("/assets/loud"), 404);
    eventually("the line of the operator is written", || {
        said("/assets/loud")
    });
    assert!(!said("/assets/silent"), "{}", proxy.stderr());
    assert_eq!(command(&proxy, &["log-level", "--reset"]).trim(), first);
}

#[test]
fn a_filter_that_is_none_changes_nothing_and_is_named() {
    let origin = Origin::scripted();
    let proxy = with_log(&origin, "warn").start();
    let long = format!("a={}", "x".repeat(5000));
    for (filter, why) in [
        ("loud", "is not a level"),
        ("a=b=c=d", ""),
        ("pingora_sendfile=loud", ""),
        (&*long, "too long"),
    ] {
        let refused = proxy.s3_proxy(&["log-level", filter]);
        assert_eq!(refused.status.code(), Some(1), "{filter}: {refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(why), "{filter}: {said}");
        assert_eq!(command(&proxy, &["log-level"]).trim(), "warn");
    }
    let empty = request(proxy.admin_addr(), "PUT", "/log-level", &[]);
    assert_eq!(empty.status, 400);
    for method in ["POST", "PATCH"] {
        let refused = request(
            proxy.admin_addr(),
            method,
            "/log-level",
            &[("X-Requested-With", "a")],
        );
        assert_eq!(refused.status, 405, "{method}");
    }
}

#[test]
fn a_huge_or_slow_body_holds_nothing_and_nobody_up() {
    let origin = Origin::scripted();
    let mut proxy = with_log(&origin, "warn").start();
    let mut huge = Connection::open(proxy.admin_addr());
    let length = [("Content-Length", "1000000000000")];
    huge.ask("PUT", "/log-level", &length, &[b'x'; 100_000]);
    assert_eq!(huge.receive("PUT").status, 413);
    let mut chunked = Connection::open(proxy.admin_addr());
    let mut body = b"1000\r\n".to_vec();
    body.extend([b'x'; 0x1000]);
    body.extend(b"\r\n1\r\nx\r\n0\r\n\r\n");
    chunked.ask(
        "PUT",
        "/log-level",
        &[("Transfer-Encoding", "chunked")],
        &body,
    );
    assert_eq!(chunked.receive("PUT").status, 413);

    // More silent clients than there are threads.
    let slow: Vec<_> = (0..8)
        .map(|_| {
            let mut slow = Connection::open(proxy.admin_addr());
            slow.ask("PUT", "/log-level", &[("Content-Length", "10")], b"in");
            slow
        })
        .collect();
    assert_eq!(command(&proxy, &["log-level"]).trim(), "warn");
    for mut slow in slow {
        assert_eq!(slow.receive("PUT").status, 408);
    }
    proxy.signal(Signal::TERM);
    assert!(proxy.wait_for_end().success());
}

fn with_log(origin: &Origin, filter: &str) -> ProxyBuilder {
    proxy(origin).admin().env("RUST_LOG", filter)
}

fn status(proxy: &Proxy) -> Value {
    let bearer = format!("Bearer {TOKEN}");
    let fields = [("Authorization", &*bearer)];
    let answer = request(proxy.admin_addr(), "GET", "/status", &fields);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_slice(&answer.body).expect("JSON")
}

fn command(proxy: &Proxy, arguments: &[&str]) -> String {
    let output = proxy.s3_proxy(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
