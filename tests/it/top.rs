//! `s3-proxy top`: what it shows in a terminal, and that the terminal is as before afterwards.

use std::{
    fs,
    process::{Command, Output},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{proxy, S3_PROXY};
use rustix::process::Signal;
use tempfile::TempDir;
use test_support::{Connection, Origin, Proxy, Reply, Terminal};

// --- as text ---

#[test]
fn a_frame_as_text_says_what_clients_got_and_what_they_request() {
    let origin = Origin::start(|_| Reply::pattern(1, 100_000));
    let proxy = proxy(&origin).admin().start();
    let hot = "/assets/hot%20one";
    request_often(&proxy, hot);
    let text = once(&proxy.s3_proxy(&["top", "--once", "--interval", "0.1"]));
    // One miss, and 499 hits; none of them during the interval.
    for what in [
        "s3-proxy ready  up ",
        "hit ratio             -        99.8 %",
        "hits                0/s           499",
        "misses              0/s             1",
        "to origins          0/s             1",
        "Cache       0 fills in flight",
        "up    bucket at 127.0.0.1:",
    ] {
        assert!(text.contains(what), "{what:?} in\n{text}");
    }
    let sent = "sendfile          0 B/s   49.9 MB  99.8 %";
    assert!(text.contains(sent), "{text}");
    assert!(text.contains(&format!("100.0 %  {hot}\n")), "{text}");
    let folder = proxy.cache_dir();
    let folder = folder.to_str().expect("UTF-8");
    let line = text.lines().find(|line| line.ends_with(folder));
    let line = line.unwrap_or_else(|| panic!("{folder} in\n{text}"));
    assert!(line.starts_with("up                1  "), "{line}");
}

#[test]
fn a_frame_as_text_has_the_rates_of_its_interval() {
    // The second answer comes after 30 further hits and 10 misses, of the same process.
    let asked = AtomicU64::new(0);
    let admin = Origin::start(move |_| {
        let n = asked.fetch_add(1, Ordering::Relaxed);
        status(&format!(
            r#""pid": 7, "requests": {{"hits": {}, "misses": {}}}"#,
            100 + 30 * n,
            10 * n
        ))
    });
    let file = config(&admin);
    let text = once(&top(&file, &["--once", "--interval", "0.1"]));
    assert!(text.contains("hit ratio        75.0 %"), "{text}");
    let rate = text.lines().find_map(|line| line.strip_prefix("hits "));
    let rate = rate.and_then(|line| line.trim_start().split("/s").next());
    let rate: f64 = rate.expect("a rate").parse().expect("a number");
    // As the interval is longer than it has to be, the rate is less than 300/s.
    assert!((1.0..=300.0).contains(&rate), "{text}");
    assert_eq!(admin.requests_for("/status"), 2);
}

#[test]
fn a_terminal_obeys_no_name_of_strangers() {
    let evil = r"\u001b]0;title\u0007\u001b[2J\u009b31m\u202e";
    let admin = Origin::start(move |_| {
        status(&format!(
            r#""version": "v{evil}", "unready": ["u{evil}"],
               "cache": {{"folders": [{{"path": "/f{evil}"}}]}},
               "origins": [{{"bucket": "b{evil}", "origin": "o{evil}"}}],
               "top_keys": [{{"path": "/k{evil}", "share": 0.5}}], "warnings": ["w{evil}"]"#
        ))
    });
    let file = config(&admin);
    let text = once(&top(&file, &["--once", "--interval", "0.1"]));
    let shown = "\u{fffd}]0;title\u{fffd}\u{fffd}[2J\u{fffd}31m\u{fffd}";
    for name in ["v", "u", "/f", "b", "o", "/k", "w"] {
        let expected = format!("{name}{shown}");
        assert!(text.contains(&expected), "{expected:?} in\n{text}");
    }
    let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(obeyed), "{text:?}");

    // A refusal says what the listener says.
    let admin = Origin::start(|_| Reply::bytes("no\x1b[2J").with_status(403));
    let refused = top(&config(&admin), &["--once"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(said, "s3-proxy: /status: 403 no\u{fffd}[2J\n");
}

#[test]
fn a_frame_that_cannot_be_made_names_the_remedy() {
    let origin = Origin::scripted();
    let mut proxy = proxy(&origin).admin().start();
    let piped = proxy.s3_proxy(&["top"]);
    assert_eq!(piped.status.code(), Some(2), "{piped:?}");
    let said = String::from_utf8_lossy(&piped.stderr).into_owned();
    let expected =
        "s3-proxy: top: standard output is not a terminal; use --once for one frame of plain text\n";
    assert_eq!(said, expected);
    assert!(piped.stdout.is_empty(), "{piped:?}");

    for interval in ["0", "-1", "3601", "NaN", "soon"] {
        let argument = format!("--interval={interval}");
        let refused = proxy.s3_proxy(&["top", "--once", &argument]);
        assert_eq!(refused.status.code(), Some(2), "{interval}: {refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("from 0.1 to 3600, such as 2"), "{said}");
    }

    let address = proxy.admin_addr();
    let mut later = proxy.command(&["top", "--once"]);
    proxy.stop_gracefully();
    let refused = later.output().expect("run s3-proxy");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains(&format!("admin.address: cannot connect to {address}"))
            && said.contains("start the proxy"),
        "{said}"
    );
}

// --- in a terminal ---

#[test]
fn three_keys_leave_and_the_terminal_is_as_before() {
    let origin = Origin::start(|_| Reply::bytes("x"));
    let proxy = proxy(&origin).admin().start();
    request_often(&proxy, "/assets/hot");
    for key in [&b"q"[..], b"\x1b", b"\x03"] {
        let mut terminal = Terminal::run(&proxy.command(&["top"]), 80, 24);
        terminal.expect_frame(&["100.0 %  /assets/hot", "99.8 %"], &[]);
        assert!(terminal.is_on_alternate_screen() && terminal.hides_cursor());
        assert!(!terminal.edits_lines());
        terminal.press(b"x");
        terminal.press(key);
        expect_left(&terminal, 0);
    }
}

#[test]
fn a_signal_that_ends_it_restores_the_terminal() {
    let origin = Origin::scripted();
    let proxy = proxy(&origin).admin().start();
    for (signal, code) in [
        (Signal::TERM, 143),
        (Signal::HUP, 129),
        (Signal::INT, 130),
        (Signal::QUIT, 131),
    ] {
        let terminal = Terminal::run(&proxy.command(&["top"]), 80, 24);
        terminal.expect("s3-proxy ready");
        terminal.signal(signal);
        expect_left(&terminal, code);
    }
}

#[test]
fn another_size_is_another_frame() {
    let origin = Origin::scripted();
    let proxy = proxy(&origin).admin().start();
    // Seldom asked: no answer has it drawn.
    let command = proxy.command(&["top", "--interval", "3600"]);
    let mut terminal = Terminal::run(&command, 80, 24);
    terminal.expect_frame(&["since start  Sent by"], &["version"]);
    terminal.resize(200, 50);
    terminal.expect("  version ");
    terminal.resize(40, 10);
    // One table below the other.
    terminal.expect("\nSent by");
    for (columns, rows) in [(1, 1), (2, 1), (1, 200), (500, 1)] {
        terminal.resize(columns, rows);
    }
    terminal.expect("s3-proxy ready");
    terminal.press(b"q");
    terminal.resize(80, 24);
    expect_left(&terminal, 0);
}

#[test]
fn figures_are_old_until_the_proxy_is_back() {
    let origin = Origin::start(|_| Reply::bytes("x"));
    // Its address stays.
    let mut proxy = proxy(&origin).admin_socket().start();
    request_often(&proxy, "/assets/hot");
    let command = proxy.command(&["top", "--interval", "0.1"]);
    let mut terminal = Terminal::run(&command, 160, 40);
    let first = format!("process {}", proxy.pid());
    terminal.expect_frame(&["/assets/hot", &first], &[]);

    proxy.stop_gracefully();
    let cannot_connect = " s old: admin.socket: cannot connect to";
    let shown = ["s3-proxy NO ANSWER", cannot_connect, "start the proxy with"];
    terminal.expect_frame(&shown, &[]);
    terminal.expect_frame(&["/assets/hot", &first], &["s3-proxy ready"]);

    proxy.restart();
    let second = format!("process {} at", proxy.pid());
    let shown = [
        "s3-proxy ready",
        "The proxy was restarted: process",
        &second,
    ];
    terminal.expect_frame(&shown, &["old:", "/assets/hot"]);
    terminal.press(b"q");
    expect_left(&terminal, 0);
}

#[test]
fn a_proxy_that_is_not_there_yet_is_waited_for() {
    let origin = Origin::scripted();
    let mut proxy = proxy(&origin).admin_socket().start();
    let command = proxy.command(&["top", "--interval", "0.1"]);
    proxy.stop_gracefully();
    let mut terminal = Terminal::run(&command, 160, 40);
    terminal.expect("No answer yet: admin.socket: cannot connect to");
    proxy.restart();
    terminal.expect("s3-proxy ready");
    terminal.press(b"\x03");
    expect_left(&terminal, 0);
}

/// The program has ended, and left nothing behind in the terminal.
fn expect_left(terminal: &Terminal, code: i32) {
    terminal.expect_end(code);
    let text = terminal.text();
    assert!(!terminal.is_on_alternate_screen(), "{text}");
    assert!(!terminal.hides_cursor(), "{text}");
    assert!(terminal.edits_lines(), "{text}");
    assert_eq!(text.trim(), format!("ended with {code}"));
}

/// One request in 32 is counted, on average, and one of 63 for certain.
fn request_often(proxy: &Proxy, path: &str) {
    let mut connection = Connection::open(proxy.addr());
    for n in 0..500 {
        if !connection.is_reusable() {
            connection = Connection::open(proxy.addr());
        }
        connection.get(path);
        if n == 0 {
            proxy.expect_metric("cache_entries", 1);
        }
    }
    proxy.expect_metric("cache_hits_total", 499);
}

/// A status with these fields.
fn status(fields: &str) -> Reply {
    Reply::bytes(format!("{{{fields}}}")).undated()
}

/// A configuration file whose admin listener is a server of the test.
fn config(admin: &Origin) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let yaml = format!(
        "server: {{address: '127.0.0.1:0'}}\n\
         buckets: [{{path_prefix: /other, bucket: other, region: us-east-1}}]\n\
         admin: {{address: '{}'}}\n",
        admin.addr()
    );
    fs::write(folder.path().join("proxy.yaml"), yaml).expect("write the configuration");
    folder
}

fn top(config: &TempDir, arguments: &[&str]) -> Output {
    Command::new(S3_PROXY)
        .arg("top")
        .args(arguments)
        .arg("--config")
        .arg(config.path().join("proxy.yaml"))
        .output()
        .expect("run s3-proxy")
}

/// The frame that a command has written.
fn once(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}
