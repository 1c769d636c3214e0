//! The commands that tend a cache: what they say, what they exit with, and what
//! they leave behind.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::{builder, S3_PROXY};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use test_support::{entry_files, eventually, Bucket, Origin, Proxy, ProxyBuilder, Reply};

// --- purge ---

#[test]
fn purge_asks_the_running_proxy() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    for path in ["/assets/a%20b", "/assets/dir/1", "/assets/dir/2"] {
        ask(&proxy, path);
    }

    expect(&proxy.s3_proxy(&["purge", "/assets/a b"]), 0, "purged\n");
    assert_eq!(ask(&proxy, "/assets/a%20b"), "MISS");

    expect(&proxy.s3_proxy(&["purge", "/assets/dir/*"]), 0, "banned\n");
    assert_eq!(ask(&proxy, "/assets/dir/1"), "MISS");
    assert_eq!(ask(&proxy, "/assets/dir/2"), "MISS");

    let absent = proxy.s3_proxy(&["purge", "/assets/absent"]);
    expect(&absent, 1, "");
    assert_eq!(
        stderr(&absent),
        "s3-proxy: /assets/absent: not in the cache\n"
    );
    let foreign = proxy.s3_proxy(&["purge", "/other/*"]);
    expect(&foreign, 1, "");
    assert!(stderr(&foreign).contains("no bucket is served under this path"));
}

#[test]
fn purge_says_how_to_be_heard() {
    let origin = origin();
    let without = proxy(&origin).start();
    let output = without.s3_proxy(&["purge", "/assets/a"]);
    expect(&output, 2, "");
    let said = stderr(&output);
    assert!(
        said.contains(".yaml: admin.address: is missing; "),
        "{said}"
    );
    assert!(said.contains("such as 127.0.0.1:9091"), "{said}");

    let (_silent, address) = silent();
    let file = ConfigFile::new(&format!("admin: {{address: '{address}'}}\n"));
    let output = file.s3_proxy(&["purge", "/assets/a"]);
    expect(&output, 1, "");
    let said = stderr(&output);
    assert!(
        said.contains(&format!("cannot connect to {address}")),
        "{said}"
    );
    assert!(said.contains("start the proxy"), "{said}");

    let file = ConfigFile::new("admin: {address: '127.0.0.1:0'}\n");
    let output = file.s3_proxy(&["purge", "/assets/a"]);
    expect(&output, 2, "");
    assert!(stderr(&output).contains("has port 0"));
}

#[test]
fn a_path_that_is_none_is_refused_before_anything_is_done() {
    let file = ConfigFile::new("");
    for command in [
        &["purge", "assets/a"][..],
        &["cache", "rm", "assets/a"],
        &["cache", "ls", "assets"],
    ] {
        let output = file.s3_proxy(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(stderr(&output).contains("does not start with /"));
    }
}

// --- cache stat ---

#[test]
fn stat_counts_what_is_there_whether_or_not_a_proxy_runs() {
    let origin = origin();
    let mut proxy = proxy(&origin).max_size_gb(0.5).start();
    for path in ["/assets/1", "/assets/2", "/models/3"] {
        ask(&proxy, path);
    }
    proxy.expect_metric("cache_entries", 3);
    let running = proxy.s3_proxy(&["cache", "stat"]);
    assert_eq!(running.status.code(), Some(0), "{running:?}");
    let said = stdout(&running);
    assert!(said.contains("in use     yes"), "{said}");
    assert!(said.contains("entries    3\n"), "{said}");
    assert!(said.contains("limit      500.00 MB"), "{said}");
    assert!(said.contains("damaged    0\n"), "{said}");

    proxy.stop_gracefully();
    let stopped = stdout(&proxy.s3_proxy(&["cache", "stat"]));
    assert!(stopped.contains("in use     no\n"), "{stopped}");

    let json = stdout(&proxy.s3_proxy(&["cache", "stat", "--json"]));
    let said: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(said["path"], proxy.cache_dir().display().to_string());
    assert_eq!(said["in_use"], false);
    assert_eq!(said["entries"], 3);
    assert_eq!(said["body_bytes"], 3 * "/bucket/1".len());
    assert_eq!(said["limit_bytes"], 500_000_000);
    assert_eq!(said["damaged"], 0);
    assert_eq!(said["leftovers"], 0);
    let oldest = said["oldest"].as_str().expect("a time");
    assert!(
        oldest.starts_with("20") && oldest.ends_with('Z'),
        "{oldest}"
    );
}

#[test]
fn a_cache_that_never_was_is_an_error_that_names_its_folder() {
    let dir = TempDir::new().expect("make a directory");
    let path = dir.path().join("cache");
    let file = ConfigFile::new(&format!(
        "cache: {{disk: {{path: '{}'}}}}\n",
        path.display()
    ));
    for command in ["stat", "ls", "verify"] {
        let output = file.s3_proxy(&["cache", command]);
        expect(&output, 1, "");
        let said = stderr(&output);
        assert!(said.contains(&path.display().to_string()), "{said}");
        assert!(said.contains("there is no cache here"), "{said}");
    }
    assert!(!path.exists(), "looking creates nothing");

    let output = ConfigFile::new("").s3_proxy(&["cache", "stat"]);
    expect(&output, 2, "");
    assert!(stderr(&output).contains("cache.disk.path: is missing"));
}

// --- cache ls ---

#[test]
fn ls_names_entries_as_clients_do() {
    let origin = origin();
    let mut proxy = proxy(&origin).default_ttl("2h").start();
    for path in ["/assets/a%20b", "/assets/dir/1", "/models/grüße"] {
        ask(&proxy, path);
    }
    proxy.stop_gracefully();

    let all = list(&proxy, &[]);
    assert_eq!(
        paths(&all),
        ["/assets/a%20b", "/assets/dir/1", "/models/gr%C3%BC%C3%9Fe"]
    );
    for line in &all {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [size, stored, fresh, _, file] = fields[..] else {
            panic!("{line}");
        };
        assert!((9..30).contains(&size.parse::<u64>().expect("a size")));
        assert!(stored.starts_with("20") && stored.ends_with('Z'), "{line}");
        assert!(fresh.starts_with("1h59m") || fresh == "2h0m", "{line}");
        let body = format!("{file}.body");
        assert!(entry_files(&proxy.cache_dir(), "body")
            .iter()
            .any(|path| path.ends_with(&body)));
    }
    assert_eq!(paths(&list(&proxy, &["/assets/"])), paths(&all)[..2]);
    assert_eq!(paths(&list(&proxy, &["/assets/a b"])), ["/assets/a%20b"]);
    assert_eq!(paths(&list(&proxy, &["/m*"])), paths(&all)[2..]);
    assert!(list(&proxy, &["/assets/other"]).is_empty());

    let foreign = proxy.s3_proxy(&["cache", "ls", "/other"]);
    expect(&foreign, 1, "");
    assert!(stderr(&foreign).contains("no bucket is served under this path"));
}

#[test]
fn ls_shows_what_is_stale_and_keys_of_buckets_that_are_gone() {
    let origin = Origin::start(|request| {
        Reply::bytes(request.path())
            .header("etag", "\"a\"")
            .header("cache-control", "max-age=0, must-revalidate")
    });
    let mut proxy = proxy(&origin).start();
    ask(&proxy, "/assets/a");
    proxy.stop_gracefully();
    assert!(list(&proxy, &[])[0].contains(" stale /assets/a "));

    let file = ConfigFile::new(&format!(
        "cache: {{disk: {{path: '{}'}}}}\n",
        proxy.cache_dir().display()
    ));
    let said = stdout(&file.s3_proxy(&["cache", "ls"]));
    let key = format!(" anonymous@{}\\n/bucket/a ", origin.addr());
    assert!(said.contains(&key), "{said}");
}

#[test]
fn ls_ends_quietly_when_nobody_reads_on() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    ask(&proxy, "/assets/a");
    proxy.stop_gracefully();

    let mut child = Command::new(S3_PROXY)
        .args(["cache", "ls", "--config"])
        .arg(proxy.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run s3-proxy");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait for s3-proxy");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stderr(&output), "");
}

// --- cache verify ---

#[test]
fn verify_finds_what_the_disk_has_changed() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    for path in ["/assets/1", "/assets/2", "/assets/3"] {
        ask(&proxy, path);
    }
    proxy.stop_gracefully();

    let sound = proxy.s3_proxy(&["cache", "verify"]);
    expect(&sound, 0, "");
    let said = stderr(&sound);
    assert_eq!(said, "s3-proxy: 3 entries verified, 27 B: 0 damaged\n");

    let spoilt = flip_a_bit(&entry_files(&proxy.cache_dir(), "body")[0]);
    let damaged = proxy.s3_proxy(&["cache", "verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    let said = stdout(&damaged);
    let start = format!("{}: has the checksum ", spoilt.display());
    assert!(said.starts_with(&start), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(stderr(&damaged).ends_with(": 1 damaged\n"));
    assert!(spoilt.exists(), "looking removes nothing");

    let removed = proxy.s3_proxy(&["cache", "verify", "--remove"]);
    assert_eq!(removed.status.code(), Some(1));
    assert!(stdout(&removed).ends_with("; removed\n"));
    assert!(!spoilt.exists());
    expect(&proxy.s3_proxy(&["cache", "verify"]), 0, "");

    proxy.restart();
    let said = ["/assets/1", "/assets/2", "/assets/3"].map(|path| ask(&proxy, path));
    assert_eq!(said.iter().filter(|said| *said == "MISS").count(), 1);
}

#[test]
fn verify_names_an_entry_whose_metadata_is_damaged() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    ask(&proxy, "/assets/1");
    proxy.stop_gracefully();
    let meta = entry_files(&proxy.cache_dir(), "body")[0].with_extension("meta");
    flip_a_bit(&meta);

    let output = proxy.s3_proxy(&["cache", "verify", "--remove"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "{}: is not valid: metadata file has a wrong checksum; removed\n",
        meta.display()
    );
    assert_eq!(stdout(&output), expected);
    assert!(entry_files(&proxy.cache_dir(), "body").is_empty());
}

#[test]
fn a_running_proxy_is_told_what_verify_removes() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    ask(&proxy, "/assets/1");
    proxy.expect_metric("cache_entries", 1);
    let spoilt = flip_a_bit(&entry_files(&proxy.cache_dir(), "body")[0]);

    let output = proxy.s3_proxy(&["cache", "verify", "--remove"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(said.starts_with(&spoilt.display().to_string()), "{said}");
    assert!(said.ends_with("; removed\n"), "{said}");
    assert_eq!(ask(&proxy, "/assets/1"), "MISS");
}

#[test]
fn what_a_running_proxy_can_not_be_told_of_is_left_to_it() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    ask(&proxy, "/assets/1");
    proxy.expect_metric("cache_entries", 1);
    let meta = flip_a_bit(&entry_files(&proxy.cache_dir(), "body")[0].with_extension("meta"));

    let output = proxy.s3_proxy(&["cache", "verify", "--remove"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(said.contains("; not removed: its path is unknown; stop the proxy"));
    assert!(meta.exists());
}

// --- cache rm ---

#[test]
fn rm_removes_files_when_no_proxy_runs() {
    let origin = origin();
    let mut proxy = proxy(&origin).start();
    let paths = [
        "/assets/1",
        "/assets/dir/1",
        "/assets/dir/2",
        "/models/dir/3",
    ];
    for path in paths {
        ask(&proxy, path);
    }
    proxy.stop_gracefully();

    expect(
        &proxy.s3_proxy(&["cache", "rm", "/assets/1"]),
        0,
        "removed 1\n",
    );
    let absent = proxy.s3_proxy(&["cache", "rm", "/assets/1"]);
    expect(&absent, 1, "");
    assert_eq!(stderr(&absent), "s3-proxy: /assets/1: not in the cache\n");
    expect(
        &proxy.s3_proxy(&["cache", "rm", "/assets/dir/*"]),
        0,
        "removed 2\n",
    );
    assert_eq!(self::paths(&list(&proxy, &[])), ["/models/dir/3"]);
    assert_eq!(entry_files(&proxy.cache_dir(), "body").len(), 1);

    proxy.restart();
    eventually("what was left is found", || {
        proxy.metric("cache_entries") == 1
    });
    assert_eq!(ask(&proxy, "/assets/dir/1"), "MISS");
    assert_eq!(ask(&proxy, "/models/dir/3"), "HIT");
}

#[test]
fn rm_has_a_running_proxy_do_it() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    ask(&proxy, "/assets/1");
    ask(&proxy, "/models/1");
    expect(
        &proxy.s3_proxy(&["cache", "rm", "/assets/1"]),
        0,
        "purged\n",
    );
    expect(
        &proxy.s3_proxy(&["cache", "rm", "/models/*"]),
        0,
        "banned\n",
    );
    assert_eq!(ask(&proxy, "/assets/1"), "MISS");
    assert_eq!(ask(&proxy, "/models/1"), "MISS");
}

#[test]
fn a_running_proxy_that_can_not_be_told_keeps_its_entries() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    ask(&proxy, "/assets/1");
    proxy.expect_metric("cache_entries", 1);
    for command in [
        &["cache", "rm", "/assets/1"][..],
        &["cache", "verify", "--remove"],
    ] {
        let output = proxy.s3_proxy(command);
        expect(&output, 2, "");
        let said = stderr(&output);
        assert!(said.contains("admin.address: is missing"), "{said}");
        assert!(said.contains("or stop the process"), "{said}");
    }
    assert_eq!(ask(&proxy, "/assets/1"), "HIT");
}

/// Has every object, and lets it be kept; each is what its path at the origin
/// says.
fn origin() -> Origin {
    Origin::start(|request| Reply::bytes(request.path()))
}

// --- health ---

#[test]
fn health_tells_if_the_proxy_serves() {
    let origin = origin();
    let proxy = proxy(&origin).start();
    expect(&proxy.s3_proxy(&["health"]), 0, "");

    let (_silent, address) = silent();
    let file = ConfigFile::new(&format!("metrics: {{address: '{address}'}}\n"));
    let output = file.s3_proxy(&["health"]);
    expect(&output, 1, "");
    let said = stderr(&output);
    assert!(
        said.contains(&format!("metrics.address: cannot connect to {address}")),
        "{said}"
    );

    // It takes connections, and answers none.
    let hanging = TcpListener::bind("127.0.0.1:0").expect("an address");
    let address = hanging.local_addr().expect("an address");
    let file = ConfigFile::new(&format!("metrics: {{address: '{address}'}}\n"));
    let start = Instant::now();
    let output = file.s3_proxy(&["health"]);
    expect(&output, 1, "");
    assert!(stderr(&output).contains("does not answer"), "{output:?}");
    // The image's HEALTHCHECK ends the command after this time.
    assert!(start.elapsed() < Duration::from_secs(6));

    let output = ConfigFile::new("").s3_proxy(&["health"]);
    expect(&output, 1, "");
    let said = stderr(&output);
    assert!(
        said.contains(".yaml: metrics.address: is missing; "),
        "{said}"
    );
}

// --- man, completions ---

#[test]
fn each_command_has_a_manual_page() {
    let folder = TempDir::new().expect("a folder");
    let pages = folder.path().join("man");
    let output = s3_proxy(&["man", pages.to_str().expect("UTF-8")]);
    expect(&output, 0, "");
    let page = |name: &str| {
        let page = fs::read_to_string(pages.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        page.replace("\\-", "-")
    };
    assert!(page("s3-proxy.1").contains("s3-proxy-warm(1)"));
    assert!(page("s3-proxy.1").contains(".SH \"EXIT STATUS\""));
    assert!(page("s3-proxy-run.1").contains("--upgrade"));
    assert!(page("s3-proxy-cache-verify.1").contains("--remove"));
    assert!(page("s3-proxy-top.1").contains("--interval"));

    let taken = pages.join("s3-proxy.1");
    let output = s3_proxy(&["man", taken.to_str().expect("UTF-8")]);
    expect(&output, 1, "");
    assert!(stderr(&output).contains("cannot write manual pages to "));
}

#[test]
fn shells_complete_commands_and_options() {
    for shell in ["bash", "zsh", "fish"] {
        let output = s3_proxy(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let script = stdout(&output);
        for word in ["warm", "verify", "upgrade"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // A completion that bash makes itself.
    let folder = TempDir::new().expect("a folder");
    let script = folder.path().join("s3-proxy");
    let completions = s3_proxy(&["completions", "bash"]);
    fs::write(&script, completions.stdout).expect("write a script");
    let complete = r#". "$0"; COMP_WORDS=(s3-proxy cache ver); COMP_CWORD=2; _s3__proxy s3-proxy ver cache; echo "${COMPREPLY[@]}""#;
    let output = Command::new("bash")
        .args(["-c", complete])
        .arg(&script)
        .output();
    expect(&output.expect("run bash"), 0, "verify\n");
}

/// Runs `s3-proxy` without a configuration.
fn s3_proxy(arguments: &[&str]) -> Output {
    let output = Command::new(S3_PROXY).args(arguments).output();
    output.expect("run s3-proxy")
}

/// An address at which nobody listens, taken until the socket is dropped.
fn silent() -> (Socket, SocketAddr) {
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    silent.bind(&any.into()).expect("bind it");
    let address = silent.local_addr().expect("its address");
    let address = address.as_socket().expect("an IP address");
    (silent, address)
}

fn proxy(origin: &Origin) -> ProxyBuilder {
    builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .bucket(Bucket::at(origin, "/models", "models"))
        .grace_period("0s")
        .scrub_mb_per_second(0)
}

/// The value of X-Cache.
fn ask(proxy: &Proxy, path: &str) -> String {
    let response = proxy.get(path);
    assert_eq!(response.status, 200, "{path}");
    let said = response.header("x-cache").expect("X-Cache");
    said.to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect(output: &Output, code: i32, said: &str) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(stdout(output), said, "{output:?}");
}

/// The lines of `cache ls`, in the order of their paths.
fn list(proxy: &Proxy, arguments: &[&str]) -> Vec<String> {
    let output = proxy.s3_proxy(&[&["cache", "ls"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stderr(&output), "");
    let mut lines: Vec<_> = stdout(&output).lines().map(str::to_owned).collect();
    lines.sort_by_key(|line| path_of(line).to_owned());
    lines
}

fn paths(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| path_of(line)).collect()
}

fn path_of(line: &str) -> &str {
    line.split_whitespace().nth(3).expect("a path")
}

fn flip_a_bit(file: &Path) -> PathBuf {
    let mut data = fs::read(file).expect("read a file of the cache");
    *data.last_mut().expect("a file that is not empty") ^= 1;
    fs::write(file, data).expect("write a file of the cache");
    file.to_owned()
}

/// A configuration file in a directory of its own, of a proxy that never runs.
struct ConfigFile {
    dir: TempDir,
}

// === impl ConfigFile ===

impl ConfigFile {
    fn new(sections: &str) -> Self {
        let dir = TempDir::new().expect("make a directory");
        let file = Self { dir };
        let yaml = format!(
            "server: {{address: '127.0.0.1:0'}}\n\
             buckets: [{{path_prefix: /other, bucket: other, region: us-east-1}}]\n{sections}"
        );
        fs::write(file.path(), yaml).expect("write the configuration");
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("proxy.yaml")
    }

    fn s3_proxy(&self, arguments: &[&str]) -> Output {
        Command::new(S3_PROXY)
            .args(arguments)
            .arg("--config")
            .arg(self.path())
            .output()
            .expect("run s3-proxy")
    }
}
