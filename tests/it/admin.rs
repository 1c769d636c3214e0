//! Removal of entries by an operator, on a listener that clients do not
//! reach.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{
    atomic::{AtomicBool, Ordering},
    Arc,
};

use crate::builder;
use test_support::{
    encode_key, eventually, request, Bucket, Origin, Proxy, ProxyBuilder, Reply, Response,
};

#[test]
fn a_purged_object_is_fetched_again() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    expect_cached(&proxy, "/assets/a");
    expect_cached(&proxy, "/assets/b");

    expect_answer(purge(&proxy, "/assets/a"), 200, "purged\n");
    assert_eq!(ask(&proxy, "/assets/a"), "MISS");
    assert_eq!(ask(&proxy, "/assets/b"), "HIT");

    expect_answer(purge(&proxy, "/assets/c"), 404, "not in the cache\n");
}

#[test]
fn an_object_is_purged_by_any_spelling_of_its_path() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    for (path, spelling) in [
        ("/assets/a%20b", "/assets/%61%20b"),
        ("/assets/gr%C3%BC%C3%9Fe", "/assets/gr%c3%bc%c3%9fe"),
        ("/assets/a%2Bb", "/assets/a+b"),
        ("/assets/d/e", "/assets/d%2Fe"),
        ("/assets/q", "/assets/q?version=1"),
        ("/assets/star*", "/assets/star%2A"),
    ] {
        expect_cached(&proxy, path);
        expect_answer(purge(&proxy, spelling), 200, "purged\n");
        assert_eq!(ask(&proxy, path), "MISS", "{spelling}");
    }
}

#[test]
fn a_prefix_takes_all_that_begin_so_and_nothing_else() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    for (prefix, gone, kept) in [
        ("/assets/img/", "img/1.png", "image/1.png"),
        ("/assets/photo", "photos/1.png", "phone/1.png"),
        ("/assets/a%20b", "a bc", "a-b"),
        ("/assets/gr%C3%BC", "grüße", "gruß"),
        ("/assets/100%25", "100% sure", "1000"),
        ("/assets/.", ".hidden", "hidden"),
        ("/assets/x%2A", "x*y", "xy"),
    ] {
        let [gone, kept] = [gone, kept].map(|key| format!("/assets/{}", encode_key(key)));
        expect_cached(&proxy, &gone);
        expect_cached(&proxy, &kept);
        expect_answer(purge(&proxy, &format!("{prefix}*")), 200, "banned\n");
        assert_eq!(ask(&proxy, &gone), "MISS", "{prefix}");
        assert_eq!(ask(&proxy, &kept), "HIT", "{prefix}");
        assert_eq!(ask(&proxy, &gone), "HIT", "what comes later is no concern");
    }
}

#[test]
fn a_prefix_that_ends_within_those_of_buckets_takes_all_of_them() {
    let origin = origin();
    let proxy = proxy(&origin)
        .bucket(Bucket::at(&origin, "/assets2", "second"))
        .bucket(Bucket::at(&origin, "/models", "third"))
        .start();
    let paths = ["/assets/a", "/assets2/a", "/models/a"];
    for (prefix, expected) in [
        ("/assets/", ["MISS", "HIT", "HIT"]),
        ("/assets2", ["HIT", "MISS", "HIT"]),
        ("/assets", ["MISS", "MISS", "HIT"]),
        ("/as", ["MISS", "MISS", "HIT"]),
        ("/%61s", ["MISS", "MISS", "HIT"]),
        ("/", ["MISS", "MISS", "MISS"]),
    ] {
        for path in paths {
            expect_cached(&proxy, path);
        }
        expect_answer(purge(&proxy, &format!("{prefix}*")), 200, "banned\n");
        assert_eq!(paths.map(|path| ask(&proxy, path)), expected, "{prefix}");
    }
}

#[test]
fn a_ban_holds_after_a_crash() {
    let emptied = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let emptied = emptied.clone();
        move |request| match emptied.load(Ordering::Relaxed) {
            true => Reply::status(404),
            false => Reply::bytes(request.path()),
        }
    });
    let mut proxy = proxy(&origin).start();
    let kept: Vec<_> = (0..20).map(|key| format!("/assets/b/{key}")).collect();
    for path in kept.iter().map(String::as_str) {
        expect_cached(&proxy, path);
    }
    for path in ["/assets/a/1", "/assets/a/2", "/assets/c"] {
        expect_cached(&proxy, path);
    }
    proxy.expect_metric("cache_entries", 23);

    expect_answer(purge(&proxy, "/assets/a/*"), 200, "banned\n");
    expect_answer(purge(&proxy, "/assets/c"), 200, "purged\n");
    proxy.kill();
    emptied.store(true, Ordering::Relaxed);
    proxy.restart();

    for path in &kept {
        eventually("what was not banned is found again", || {
            proxy.get(path).status == 200
        });
    }
    for path in ["/assets/a/1", "/assets/a/2", "/assets/c"] {
        assert_eq!(proxy.get(path).status, 404, "{path}");
    }
}

#[test]
fn purging_what_is_not_there_leaves_no_more_than_a_bound() {
    const PURGES: u64 = 2500;
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    expect_cached(&proxy, "/assets/kept");
    for key in 0..PURGES {
        let answer = purge(&proxy, &format!("/assets/absent/{key}"));
        expect_answer(answer, 404, "not in the cache\n");
    }
    assert!(proxy.metric("cache_bans") <= 1025);
    let list = fs::metadata(proxy.cache_dir().join("bans")).expect("the ban list");
    assert!(list.len() < 100_000, "{} bytes", list.len());
    assert_eq!(ask(&proxy, "/assets/kept"), "HIT");

    proxy.kill();
    proxy.restart();
    eventually("what was not purged is found again", || {
        ask(&proxy, "/assets/kept") == "HIT"
    });
    expect_answer(purge(&proxy, "/*"), 200, "banned\n");
    assert_eq!(ask(&proxy, "/assets/kept"), "MISS");
}

#[test]
fn a_path_that_no_object_can_have_is_refused_with_the_reason() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    expect_cached(&proxy, "/assets/a");
    for path in ["/other", "/other*", "/assets2/a", "/assets%2F*", "*"] {
        expect_answer(
            purge(&proxy, path),
            404,
            "no bucket is served under this path\n",
        );
    }
    for (path, reason) in [
        ("/assets/%zz", "hexadecimal"),
        ("/assets/%*", "hexadecimal"),
        ("/assets/%C3*", "not UTF-8"),
        ("/assets/../x*", "segments"),
        ("/assets/", "names no object"),
    ] {
        let answer = purge(&proxy, path);
        assert_eq!(answer.status, 400, "{path}");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.contains(reason), "{path}: {text}");
    }
    assert_eq!(ask(&proxy, "/assets/a"), "HIT");
}

#[test]
fn only_the_admin_listener_purges_and_it_does_nothing_else() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    expect_cached(&proxy, "/assets/a");

    for addr in [proxy.addr(), proxy.metrics_addr()] {
        let answer = request(addr, "PURGE", "/assets/a", &[]);
        assert_ne!(answer.status, 200, "{addr}");
    }
    let refused = request(proxy.addr(), "PURGE", "/assets/*", &[]);
    assert_eq!(refused.status, 405);
    assert_eq!(refused.header("allow"), Some("GET, HEAD"));

    for method in ["GET", "HEAD", "POST", "DELETE"] {
        let answer = request(proxy.admin_addr(), method, "/assets/a", &[]);
        assert_eq!(answer.status, 405, "{method}");
        let allowed = Some("PURGE, WARM, LIST");
        assert_eq!(answer.header("allow"), allowed, "{method}");
    }
    assert_eq!(ask(&proxy, "/assets/a"), "HIT");
}

#[test]
fn a_page_in_a_browser_can_not_purge() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    expect_cached(&proxy, "/assets/a");
    let port = proxy.admin_addr().port();
    let own = format!("127.0.0.1:{port}");
    let rebound = format!("evil.test:{port}");
    for headers in [
        &[("Host", rebound.as_str())][..],
        &[("Host", "evil.test")],
        &[("Host", own.as_str()), ("Origin", "http://evil.test")],
        &[("Host", own.as_str()), ("Origin", "null")],
    ] {
        for method in ["PURGE", "OPTIONS"] {
            let answer = request(proxy.admin_addr(), method, "/assets/a", headers);
            assert_eq!(answer.status, 403, "{method} {headers:?}");
            assert!(answer.header("access-control-allow-origin").is_none());
        }
    }
    assert_eq!(ask(&proxy, "/assets/a"), "HIT");

    let localhost = format!("localhost:{port}");
    let answer = request(
        proxy.admin_addr(),
        "PURGE",
        "/assets/a",
        &[("Host", &localhost)],
    );
    expect_answer(answer, 200, "purged\n");
    // Prometheus uses the names that services have in its network.
    let service = [("Host", "s3-proxy.default.svc")];
    let metrics = request(proxy.metrics_addr(), "GET", "/metrics", &service);
    assert_eq!(metrics.status, 200);
}

#[test]
fn without_a_cache_there_is_nothing_to_purge() {
    let origin = origin();
    let proxy = proxy(&origin).without_cache().start();
    for path in ["/assets/a", "/assets/*"] {
        let answer = purge(&proxy, path);
        assert_eq!(answer.status, 404);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.contains("cache.disk is not enabled"), "{text}");
    }
}

// --- the token and the socket ---

const TOKEN: &str = "a-token-that-is-long-enough";

#[test]
fn with_a_token_nobody_purges_without_it() {
    let origin = origin();
    let proxy = proxy(&origin)
        .admin_key("token", "${ADMIN_TOKEN}")
        .env("ADMIN_TOKEN", TOKEN)
        .start();
    expect_cached(&proxy, "/assets/a");
    let ask_with = |fields: &[(&str, &str)]| {
        let answer = request(proxy.admin_addr(), "PURGE", "/assets/a", fields);
        let asks = answer.header("www-authenticate").map(str::to_owned);
        (answer.status, asks)
    };
    let bearer = Some("Bearer".to_owned());
    let wrong = format!("Bearer {TOKEN}x");
    for fields in [
        &[][..],
        &[("Authorization", "Bearer")],
        &[("Authorization", TOKEN)],
        &[("Authorization", &wrong)],
    ] {
        assert_eq!(ask_with(fields), (401, bearer.clone()), "{fields:?}");
    }
    assert_eq!(ask_with(&[("Host", "evil.test")]), (403, None));
    assert_eq!(ask(&proxy, "/assets/a"), "HIT");

    let right = format!("Bearer {TOKEN}");
    let service = [("Host", "s3-proxy.test:80"), ("Authorization", &right)];
    assert_eq!(ask_with(&service), (200, None));
    expect_cached(&proxy, "/assets/a");
    let with_origin = [("Origin", "http://evil.test"), ("Authorization", &right)];
    assert_eq!(ask_with(&with_origin), (403, None));

    // The commands have it from the configuration.
    let purged = proxy.s3_proxy(&["purge", "/assets/a"]);
    assert!(purged.status.success(), "{purged:?}");
    assert_eq!(ask(&proxy, "/assets/a"), "MISS");
    assert!(!proxy.stderr().contains(TOKEN), "{}", proxy.stderr());
    let printed = proxy.s3_proxy(&["check", "--print"]);
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    assert!(
        printed.contains("token:") && !printed.contains(TOKEN),
        "{printed}"
    );
}

#[test]
fn only_the_owner_reaches_the_socket_and_needs_no_token_there() {
    let origin = origin();
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/assets", "bucket"))
        .admin_socket()
        .admin_key("token", TOKEN)
        .start();
    let socket = fs::metadata(proxy.admin_socket()).expect("the socket");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);

    expect_cached(&proxy, "/assets/a");
    let ask_as = |fields: &str| ask_at(&proxy.admin_socket(), "PURGE /assets/a", fields);
    // A browser that reaches it through a forwarded port is held to the same rules.
    for fields in [
        "Host: evil.test:9091\r\n",
        "Host: localhost:9091\r\nOrigin: http://evil.test\r\n",
        "Host: localhost:9091\r\nSec-Fetch-Site: cross-site\r\n",
    ] {
        let answer = ask_as(fields);
        assert!(answer.starts_with("HTTP/1.1 403 "), "{fields}: {answer}");
    }
    assert_eq!(ask(&proxy, "/assets/a"), "HIT");
    let answer = ask_as("Host: localhost\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(ask(&proxy, "/assets/a"), "MISS");

    let purged = proxy.s3_proxy(&["purge", "/assets/*"]);
    assert!(purged.status.success(), "{purged:?}");
    assert_eq!(ask(&proxy, "/assets/a"), "MISS");
    let warmed = proxy.s3_proxy(&["warm", "/assets/b"]);
    assert!(warmed.status.success(), "{warmed:?}");
    assert_eq!(ask(&proxy, "/assets/b"), "HIT");
}

#[test]
fn the_address_and_the_socket_serve_side_by_side_and_both_are_handed_over() {
    let origin = origin();
    let mut proxy = proxy(&origin).admin_socket().upgradable().start();
    let purge_both = |proxy: &Proxy| {
        expect_cached(proxy, "/assets/a");
        expect_answer(purge(proxy, "/assets/a"), 200, "purged\n");
        expect_cached(proxy, "/assets/a");
        let answer = ask_at(&proxy.admin_socket(), "PURGE /assets/a", "");
        assert!(answer.ends_with("\r\n\r\npurged\n"), "{answer}");
    };
    purge_both(&proxy);
    let retiring = proxy.upgrade();
    assert!(retiring.wait().success());
    eventually("the new process writes", || {
        proxy.metric("cache_writable") == 1
    });
    purge_both(&proxy);
    let mode = fs::metadata(proxy.admin_socket()).expect("the socket");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_socket_of_a_killed_process_is_replaced_and_another_file_is_not() {
    let origin = origin();
    let mut proxy = proxy(&origin).admin_socket().start();
    let serving = proxy.s3_proxy(&["run"]);
    assert_eq!(serving.status.code(), Some(1), "{serving:?}");

    proxy.kill();
    proxy.restart();
    let answer = ask_at(&proxy.admin_socket(), "PURGE /assets/a", "");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");

    proxy.kill();
    let socket = proxy.admin_socket();
    fs::remove_file(&socket).expect("remove the socket");
    fs::write(&socket, "precious").expect("write a file");
    let refused = proxy.s3_proxy(&["run"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("admin.socket: cannot listen on"), "{said}");
    assert!(said.contains("another file"), "{said}");
    assert_eq!(fs::read_to_string(&socket).expect("the file"), "precious");
}

#[test]
fn names_that_are_configured_reach_the_listener() {
    let origin = origin();
    let proxy = proxy(&origin)
        .admin_key("hosts", "[admin.example.com]")
        .start();
    let port = proxy.admin_addr().port();
    for (host, status) in [
        ("admin.example.com".to_owned(), 404),
        (format!("ADMIN.example.com.:{port}"), 404),
        (format!("127.0.0.1:{port}"), 404),
        ("other.example.com".to_owned(), 403),
    ] {
        let answer = request(proxy.admin_addr(), "PURGE", "/assets/a", &[("Host", &host)]);
        assert_eq!(answer.status, status, "{host}");
    }
}

/// The response to a request at a Unix socket, which ends the connection.
fn ask_at(socket: &Path, line: &str, fields: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("connect to the socket");
    let request = format!("{line} HTTP/1.1\r\nConnection: close\r\n{fields}\r\n");
    stream
        .write_all(request.as_bytes())
        .expect("send a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("a response");
    answer
}

/// Has every object, and lets it be kept.
fn origin() -> Origin {
    Origin::start(|request| Reply::bytes(request.path()))
}

fn proxy(origin: &Origin) -> ProxyBuilder {
    builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .admin()
}

fn purge(proxy: &Proxy, path: &str) -> Response {
    request(proxy.admin_addr(), "PURGE", path, &[])
}

fn expect_answer(answer: Response, status: u16, text: &str) {
    assert_eq!(String::from_utf8_lossy(&answer.body), text);
    assert_eq!(answer.status, status, "{text}");
}

/// The value of X-Cache.
fn ask(proxy: &Proxy, path: &str) -> String {
    let response = proxy.get(path);
    assert_eq!(response.status, 200, "{path}");
    let said = response.header("x-cache").expect("X-Cache");
    said.to_owned()
}

fn expect_cached(proxy: &Proxy, path: &str) {
    ask(proxy, path);
    assert_eq!(ask(proxy, path), "HIT", "{path}");
}
