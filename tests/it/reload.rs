//! A changed configuration is applied while the proxy serves.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
};

use tempfile::TempDir;
use test_support::{
    eventually, request, Authority, Bucket, Connection, Gate, Origin, Pattern, Reply, Request,
};

use crate::load::Load;
use crate::{builder, proxy, S3_PROXY};

/// A bucket of an origin, as it stands in the file.
fn entry(origin: &Origin, path: &str, bucket: &str) -> String {
    format!(
        "  - {{path_prefix: {path}, bucket: {bucket}, region: us-east-1, endpoint: '{}'}}\n",
        origin.url()
    )
}

/// Adds a line after the one that is the name of a section.
fn with(yaml: &str, section: &str, line: &str) -> String {
    let name = format!("{section}:\n");
    assert!(yaml.contains(&name), "{name} in {yaml}");
    yaml.replacen(&name, &format!("{name}{line}"), 1)
}

fn origin() -> Origin {
    Origin::start(|request| match request.path() {
        "/bucket/missing" => Reply::status(404),
        _ => Reply::fresh().answering(request),
    })
}

#[test]
fn buckets_come_and_go_and_the_cache_stays() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    assert_eq!(proxy.get("/assets/1").x_cache(), "MISS");
    assert_eq!(proxy.get("/others/1").status, 404);

    proxy.edit_config(|yaml| with(&yaml, "buckets", &entry(&origin, "/others", "others")));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/others/1").x_cache(), "MISS");
    assert_eq!(proxy.get("/others/1").x_cache(), "HIT");
    assert_eq!(proxy.get("/assets/1").x_cache(), "HIT");

    proxy.edit_config(|yaml| yaml.replace("'/assets'", "/renamed"));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/assets/1").status, 404);
    // It is the same bucket of the same origin.
    assert_eq!(proxy.get("/renamed/1").x_cache(), "HIT");
    assert_eq!(origin.requests_for("/bucket/1"), 1);
    proxy.expect_metric("config_restart_needed", 0);
}

#[test]
fn a_request_keeps_the_settings_with_which_it_began() {
    const LEN: u64 = 1 << 20;
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |_| Reply::pattern(1, LEN).hold_at(LEN / 2, &held));
    let proxy = proxy(&origin).start();
    let mut client = Connection::open(proxy.addr());
    let mut transfer = client.begin("GET", "/assets/1", &[]);
    let begun = transfer.read_some(1000).len() as u64;

    proxy.edit_config(|yaml| yaml.replace("'/assets'", "/renamed"));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/assets/1").status, 404);
    gate.open();
    let rest = transfer.check(Pattern::new(1), begun);
    assert!(rest.complete);
    assert_eq!(begun + rest.len, LEN);
    // The next request of the same connection gets the new ones.
    assert_eq!(client.get("/assets/1").status, 404);
}

#[test]
fn rules_and_lifetimes_change_for_new_answers() {
    let origin = Origin::start(|request| Reply::bytes("an object").answering(request));
    let proxy = proxy(&origin).start();
    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_eq!(proxy.get("/assets/1").x_cache(), "HIT");

    let rule = "  rules: [{key: 'live/*', store: false}]\n";
    proxy.edit_config(|yaml| with(&yaml, "cache", rule));
    assert_eq!(proxy.reload(), "ok");
    for _ in 0..2 {
        assert_eq!(proxy.get("/assets/live/1").x_cache(), "MISS");
    }
    assert_eq!(origin.requests_for("/bucket/live/1"), 2);
    assert_eq!(proxy.get("/assets/1").x_cache(), "HIT");
}

#[test]
fn a_mistake_changes_nothing_and_says_why() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    assert_eq!(proxy.metric("config_reload_failed"), 0);
    let loaded = proxy.metric("config_loaded_timestamp_seconds");
    assert!(loaded > 0);

    let mistake = "  - {path_prefix: /others, bucket: others, reigon: us-east-1}\n";
    proxy.edit_config(|yaml| with(&yaml, "buckets", mistake));
    for _ in 0..2 {
        assert_eq!(proxy.reload(), "failed");
    }
    let place = format!(
        "the configuration in use is kept: {}:",
        proxy.config().display()
    );
    let is_named = |line: &str| line.contains(&place) && line.contains("reigon");
    eventually("the log names the mistake", || {
        proxy.stderr().lines().any(is_named)
    });
    assert_eq!(proxy.metric("config_reload_failed"), 1);
    assert_eq!(proxy.get("/assets/1").status, 200);
    assert_eq!(proxy.get("/others/1").status, 404);

    proxy.edit_config(|yaml| yaml.replace("reigon", "region"));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.metric("config_reload_failed"), 0);
    assert!(proxy.metric("config_loaded_timestamp_seconds") >= loaded);
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_applied() {
    let origin = origin();
    let proxy = proxy(&origin).threads(1).start();
    proxy.edit_config(|yaml| {
        let yaml = yaml.replace("threads: 1", "threads: 2");
        let yaml = with(&yaml, "cache", "  max_fills: 7\n");
        with(&yaml, "buckets", &entry(&origin, "/others", "others"))
    });
    assert_eq!(proxy.reload(), "ok");
    let expected = "needs a restart: cache.max_fills, server.threads";
    eventually("the log names the keys", || {
        proxy.stderr().contains(expected)
    });
    assert_eq!(proxy.metric("config_restart_needed"), 2);
    assert_eq!(proxy.get("/others/1").status, 200);

    proxy.edit_config(|yaml| {
        let yaml = yaml.replace("threads: 2", "threads: 1");
        yaml.replace("  max_fills: 7\n", "")
    });
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.metric("config_restart_needed"), 0);
}

#[test]
fn a_missing_object_stays_remembered_for_a_bucket_that_does_not_change() {
    let origin = origin();
    let proxy = builder()
        .bucket(Bucket::at(&origin, "/assets", "bucket").credentials("a-key", "one-secret"))
        .negative_ttl("1h")
        .start();
    assert_eq!(proxy.get("/assets/missing").status, 404);
    assert_eq!(proxy.get("/assets/missing").status, 404);
    assert_eq!(origin.requests_for("/bucket/missing"), 1);

    proxy.edit_config(|yaml| with(&yaml, "buckets", &entry(&origin, "/others", "others")));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/assets/missing").status, 404);
    assert_eq!(origin.requests_for("/bucket/missing"), 1);

    // Other credentials may find another answer.
    proxy.edit_config(|yaml| yaml.replace("one-secret", "another-secret"));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/assets/missing").status, 404);
    assert_eq!(origin.requests_for("/bucket/missing"), 2);
}

#[test]
fn operators_purge_the_buckets_of_the_new_configuration() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    proxy.edit_config(|yaml| with(&yaml, "buckets", &entry(&origin, "/others", "others")));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/others/1").x_cache(), "MISS");
    let purged = request(proxy.admin_addr(), "PURGE", "/others/1", &[]);
    assert_eq!(purged.status, 200, "{}", purged.text());
    assert_eq!(proxy.get("/others/1").x_cache(), "MISS");
}

#[test]
fn the_access_log_moves_to_another_file() {
    let origin = origin();
    let proxy = proxy(&origin).access_log().start();
    let (former, next) = (
        proxy.access_log(),
        proxy.access_log().with_extension("next"),
    );
    let lines = |file| fs::read_to_string(file).map_or(0, |text| text.lines().count());
    assert_eq!(proxy.get("/assets/1").status, 200);
    eventually("the request is logged", || lines(&former) == 1);

    let (from, to) = (former.display().to_string(), next.display().to_string());
    proxy.edit_config(|yaml| yaml.replace(&from, &to));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/assets/1").status, 200);
    eventually("the request is logged in the other file", || {
        lines(&next) == 1
    });
    assert_eq!(lines(&former), 1);

    proxy.edit_config(|yaml| yaml.replace(&to, "/nonexistent/access.log"));
    assert_eq!(proxy.reload(), "failed");
    let why = "access_log.path: there is no folder /nonexistent";
    eventually("the log says why", || proxy.stderr().contains(why));
    assert_eq!(proxy.get("/assets/1").status, 200);
    eventually("the file stays in use", || lines(&next) == 2);
}

#[test]
fn another_certificate_file_is_used_by_new_connections() {
    let dir = TempDir::new().expect("make a directory");
    let authority = Authority::new("of servers");
    let [one, two] = ["one", "two"].map(|name| {
        let issued = authority.issue(&["localhost"]);
        (issued.write_to(dir.path(), name), issued.der)
    });
    let origin = origin();
    let proxy = proxy(&origin).tls_with(&one.0 .0, &one.0 .1).start();
    let served = || crate::certificates::served(proxy.https_addr(), "localhost");
    assert!(served() == one.1);

    proxy.edit_config(|yaml| yaml.replace("one.", "two."));
    assert_eq!(proxy.reload(), "ok");
    assert!(served() == two.1);

    proxy.edit_config(|yaml| yaml.replace("two.pem", "one.pem"));
    assert_eq!(proxy.reload(), "failed");
    let why = "is not the key of the first certificate";
    eventually("the log says why", || proxy.stderr().contains(why));
    assert!(served() == two.1);
    assert_eq!(proxy.metric("config_reload_failed"), 1);
}

fn command(config: &Path) -> Output {
    let mut reload = Command::new(S3_PROXY);
    let output = reload.args(["reload", "--config"]).arg(config).output();
    output.expect("run s3-proxy")
}

#[test]
fn the_command_says_what_a_reload_has_done() {
    let origin = origin();
    let proxy = proxy(&origin).threads(1).start();
    proxy.edit_config(|yaml| with(&yaml, "buckets", &entry(&origin, "/others", "others")));
    let output = command(proxy.config());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let file = proxy.config().display();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, format!("{file}: reloaded\n"));
    assert_eq!(proxy.get("/others/1").status, 200);

    proxy.edit_config(|yaml| yaml.replace("threads: 1", "threads: 2"));
    let output = command(proxy.config());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        said,
        format!("{file}: reloaded\nneeds a restart: server.threads\n")
    );
}

#[test]
fn the_command_checks_the_file_before_the_proxy_reads_it() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    proxy.edit_config(|yaml| yaml.replace("path_prefix", "path_prefx"));
    let output = command(proxy.config());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("path_prefx"), "{said}");
    assert_eq!(proxy.metric("config_reloads_total"), 0);
}

#[test]
fn the_command_fails_if_the_proxy_does_not_use_the_file() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    let copy = proxy.config().with_file_name("copy.yaml");
    fs::copy(proxy.config(), &copy).expect("copy the configuration");
    let output = command(&copy);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    let own = proxy.config().display().to_string();
    assert!(
        said.contains(&own) && said.contains("name that one"),
        "{said}"
    );

    // Without a proxy, the command names the key of the socket.
    assert!(proxy.stop_gracefully().success());
    let output = command(proxy.config());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("server.control_sock"), "{said}");
    assert!(!proxy.cache_dir().join("control.sock").exists());
}

#[test]
fn reloads_at_once_take_turns() {
    const COMMANDS: u64 = 6;
    let origin = origin();
    let proxy = proxy(&origin).start();
    let config = proxy.config();
    thread::scope(|scope| {
        for _ in 0..COMMANDS {
            scope.spawn(|| {
                let output = command(config);
                assert_eq!(output.status.code(), Some(0), "{output:?}");
            });
        }
    });
    proxy.expect_metric_where("config_reloads_total", &[("result", "ok")], COMMANDS);
}

#[test]
fn no_request_fails_in_50_reloads() {
    let origin = Origin::start(|request: &Request| Reply::fresh().answering(request));
    let proxy = proxy(&origin).tls().start();
    let load = Load::default();
    thread::scope(|scope| {
        let _clients = load.start(scope, proxy.addr(), proxy.https_addr());
        let other = entry(&origin, "/others", "others");
        for round in 0..50 {
            let before = load.answered();
            proxy.edit_config(|yaml| match round % 2 {
                0 => with(&yaml, "buckets", &other),
                _ => yaml.replace(&other, ""),
            });
            assert_eq!(proxy.reload(), "ok");
            eventually("clients go on", || load.answered() > before + 5);
        }
    });
    assert_eq!(load.failures(), Vec::<String>::new());
    proxy.expect_metric_where("config_reloads_total", &[("result", "ok")], 50);
}
