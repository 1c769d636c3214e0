//! Configurations that are read, and mistakes that are reported.

use super::*;

const BUCKETS: &str =
    "buckets:\n  - path_prefix: /assets\n    bucket: my-bucket\n    region: us-east-1\n";
const SERVER: &str = "server:\n  address: 127.0.0.1:0\n";

fn env(name: &str) -> Option<String> {
    match name {
        "SECRET" => Some("hunter2:{[#\"'\\".to_owned()),
        "SPACED" => Some("hunter2\n".to_owned()),
        "EMPTY" => Some(String::new()),
        "PORT" => Some("8081".to_owned()),
        "NUMBER" => Some("3".to_owned()),
        "FALSE" => Some("false".to_owned()),
        "NESTED" => Some("hunter2${PORT}".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("conf/proxy.yaml"), &env)
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn server(lines: &str) -> String {
    format!("server:\n  address: 127.0.0.1:8080\n{lines}\n{BUCKETS}")
}

fn bucket(lines: &str) -> String {
    format!("{SERVER}{BUCKETS}{lines}\n")
}

fn disk(lines: &str) -> String {
    format!("{SERVER}{BUCKETS}cache:\n  disk:\n    path: /c\n{lines}\n")
}

fn prefixes(prefixes: &[&str]) -> String {
    let mut text = format!("{SERVER}buckets:\n");
    for prefix in prefixes {
        text.push_str(&format!(
            "  - {{path_prefix: {prefix:?}, bucket: my-bucket, region: r}}\n"
        ));
    }
    text
}

/// Buckets in YAML's short form.
fn buckets(keys: &str) -> String {
    format!("{SERVER}buckets: [{{{keys}}}]\n")
}

#[test]
fn the_example_is_valid_and_says_what_the_defaults_are() {
    let example = include_str!("../../config.yaml.example");
    let keys = |name: &str| Some(format!("value-of-{name}"));
    let shown = Config::parse(example, Path::new("config.yaml.example"), &keys).unwrap();
    assert_eq!(shown.server.address.port(), 8080);
    assert_eq!(
        shown.buckets[0].access_key.as_ref().map(Secret::expose),
        Some("value-of-AWS_ACCESS_KEY_ID")
    );
    assert!(shown.cache.disk.enabled);
    assert_eq!(shown.cache.disk.max_size_bytes(), 10_000_000_000);

    let least = good(&format!("{SERVER}{BUCKETS}cache: {{disk: {{path: c}}}}\n"));
    assert_eq!(least.server.write_timeout, shown.server.write_timeout);
    assert_eq!(least.server.min_send_rate, shown.server.min_send_rate);
    assert_eq!(least.server.send_buffer, shown.server.send_buffer);
    assert_eq!(
        least.server.keepalive_timeout,
        shown.server.keepalive_timeout
    );
    assert_eq!(
        least.server.request_head_timeout,
        shown.server.request_head_timeout
    );
    assert_eq!(
        least.server.max_request_head_bytes,
        shown.server.max_request_head_bytes
    );
    assert_eq!(least.server.grace_period, shown.server.grace_period);
    assert_eq!(least.limits.connections, shown.limits.connections);
    assert_eq!(least.limits.per_ip, shown.limits.per_ip);
    assert_eq!(least.limits.header_fields, shown.limits.header_fields);
    assert_eq!(least.limits.url_bytes, shown.limits.url_bytes);
    assert_eq!(
        least.limits.requests_per_second,
        shown.limits.requests_per_second
    );
    assert_eq!(least.limits.bytes_per_second, shown.limits.bytes_per_second);
    assert_eq!(least.cache.default_ttl, shown.cache.default_ttl);
    assert_eq!(least.cache.negative_ttl, shown.cache.negative_ttl);
    assert_eq!(least.cache.min_uses, shown.cache.min_uses);
    assert_eq!(
        least.cache.fill_without_readers,
        shown.cache.fill_without_readers
    );
    assert_eq!(least.cache.max_fills, shown.cache.max_fills);
    assert_eq!(least.cache.max_misses, shown.cache.max_misses);
    assert_eq!(least.cache.miss_timeout, shown.cache.miss_timeout);
    assert_eq!(least.cache.lock_age, shown.cache.lock_age);
    assert_eq!(
        least.cache.range_fill.client_mb_per_minute,
        shown.cache.range_fill.client_mb_per_minute
    );
    assert_eq!(
        least.cache.range_fill.max_in_flight,
        shown.cache.range_fill.max_in_flight
    );
    assert_eq!(
        least.cache.memory.max_size_bytes(),
        shown.cache.memory.max_size_bytes()
    );
    assert_eq!(least.cache.disk.enabled, shown.cache.disk.enabled);
    assert_eq!(least.cache.disk.max_size_gb, shown.cache.disk.max_size_gb);
    assert_eq!(least.cache.disk.backend, shown.cache.disk.backend);
    assert_eq!(least.cache.disk.inactive, shown.cache.disk.inactive);
    assert_eq!(
        least.cache.disk.max_open_files,
        shown.cache.disk.max_open_files
    );
    assert_eq!(
        least.cache.disk.scrub_bytes_per_second(),
        shown.cache.disk.scrub_bytes_per_second()
    );
    assert_eq!(
        least.cache.disk.sendfile.threshold_bytes,
        shown.cache.disk.sendfile.threshold_bytes
    );
    assert_eq!(least.cache.disk.sendfile.enabled, cfg!(target_os = "linux"));
    assert!(*least.server.threads >= 1);
    assert!(least.server.tls.is_none() && least.metrics.is_none() && least.admin.is_none());
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let config = good(&format!("{SERVER}{BUCKETS}cache: {{disk: {{path: c}}}}\n"));
    assert_eq!(*config.cache.min_uses, 1);
    assert_eq!(config.cache.memory.max_size_bytes(), 256_000_000);
    assert_eq!(config.cache.memory.max_metadata_bytes(), 256_000_000);
    assert_eq!(*config.cache.range_fill.max_in_flight, 32);
    assert_eq!(config.cache.range_fill.max_size_bytes(), u64::MAX);
    assert_eq!(config.cache.range_fill.max_in_flight_bytes(8_000), 1_000);
    let budget = config.cache.range_fill.client_bytes_per_minute();
    assert_eq!(budget, Some(1_000_000_000));
    assert_eq!(config.cache.blocks.config().block_bytes, 1 << 20);
    assert_eq!(config.cache.blocks.config().read_ahead_bytes, 16 << 20);
    assert!(config.cache.disk.max_object_gb.is_none());
    assert_eq!(*config.cache.fill_without_readers, 0.5);
    assert_eq!(*config.cache.max_fills, 128);
    assert_eq!(*config.cache.max_misses, 1024);
    assert_eq!(*config.cache.miss_timeout, Duration::from_secs(60));
    assert_eq!(config.server.send_buffer, None);
    assert_eq!(*config.cache.lock_age, Duration::from_secs(10));
    assert_eq!(config.cache.disk.backend, BackendChoice::Auto);
    assert_eq!(*config.cache.disk.inactive, Duration::ZERO);
    assert_eq!(*config.cache.disk.max_open_files, None);
    assert_eq!(config.cache.disk.scrub_bytes_per_second(), 8_000_000);
    assert_eq!(config.limits.connections, None);
    assert_eq!(config.limits.per_ip(65_536), 16_384);
    assert_eq!(config.limits.per_ip(7), 64);
    assert_eq!(*config.limits.header_fields, 100);
    assert_eq!(*config.limits.url_bytes, 8192);
    assert_eq!(*config.limits.requests_per_second, 0);
    assert_eq!(*config.limits.bytes_per_second, 0);
    let sock = config.server.upgrade_sock;
    assert_eq!(sock.as_deref(), Some(Path::new("c/upgrade.sock")));
}

#[test]
fn the_cache_is_told_what_to_keep_and_how() {
    let config = good(&disk(
        "    backend: uring\n    inactive: 30d\n    max_open_files: 0\n    max_object_gb: 3\n    min_free_gb: 4\n    \
         scrub_mb_per_second: 0.5\n  min_uses: 255\n  memory: {max_size_mb: 1.5, max_metadata_mb: 0.5}\n  \
         range_fill: {max_in_flight: 0, max_size_gb: 0.5, max_in_flight_gb: 2, \
         client_mb_per_minute: 0}\n  blocks: {size_kib: 64, read_ahead_mib: 1}\n  fill_without_readers: 0\n  max_fills: 7\n  lock_age: 2s\n  \
         max_misses: 9\n  miss_timeout: 3s",
    ));
    assert_eq!(config.cache.blocks.config().block_bytes, 64 << 10);
    assert_eq!(config.cache.blocks.config().read_ahead_bytes, 1 << 20);
    let max_object = config.cache.disk.max_object_gb.map(Gigabytes::bytes);
    assert_eq!(max_object, Some(3_000_000_000));
    let min_free = config.cache.disk.min_free_gb.map(Gigabytes::bytes);
    assert_eq!(min_free, Some(4_000_000_000));
    assert_eq!(*config.cache.fill_without_readers, 0.0);
    assert_eq!(*config.cache.max_fills, 7);
    assert_eq!(*config.cache.max_misses, 9);
    assert_eq!(*config.cache.miss_timeout, Duration::from_secs(3));
    assert_eq!(*config.cache.lock_age, Duration::from_secs(2));
    let range_fill = &config.cache.range_fill;
    assert_eq!(range_fill.max_in_flight_bytes(1), 2_000_000_000);
    assert_eq!(range_fill.client_bytes_per_minute(), None);
    assert_eq!(*config.cache.range_fill.max_in_flight, 0);
    assert_eq!(config.cache.range_fill.max_size_bytes(), 500_000_000);
    assert_eq!(config.cache.disk.backend, BackendChoice::Uring);
    assert_eq!(*config.cache.disk.inactive, Duration::from_secs(30 * 86400));
    assert_eq!(*config.cache.disk.max_open_files, Some(0));
    assert_eq!(config.cache.disk.scrub_bytes_per_second(), 500_000);
    assert_eq!(*config.cache.min_uses, 255);
    assert_eq!(config.cache.memory.max_size_bytes(), 1_500_000);

    let nothing = good(&disk(
        "    backend: tokio\n    scrub_mb_per_second: 0\n  memory: {max_size_mb: 0}",
    ));
    assert_eq!(nothing.cache.disk.backend, BackendChoice::Tokio);
    assert_eq!(nothing.cache.disk.scrub_bytes_per_second(), 0);
    assert_eq!(nothing.cache.memory.max_size_bytes(), 0);
}

#[test]
fn without_a_disk_section_there_is_no_disk_cache() {
    for text in [
        format!("{SERVER}{BUCKETS}"),
        format!("{SERVER}{BUCKETS}cache: {{default_ttl: 5m}}"),
        format!("{SERVER}{BUCKETS}cache: {{disk: {{enabled: false}}}}"),
    ] {
        assert!(!good(&text).cache.disk.enabled, "{text}");
    }
}

#[test]
fn the_upgrade_socket_is_in_a_folder_of_the_proxy() {
    let disk = |path: &str| format!("{SERVER}{BUCKETS}cache: {{disk: {{path: {path}}}}}\n");
    let long = "c".repeat(100);
    for (text, runtime, expected) in [
        (disk("/c"), Some("/run/s3"), Some("/c/upgrade.sock")),
        (
            format!("{SERVER}{BUCKETS}"),
            Some("/run/s3"),
            Some("/run/s3/upgrade.sock"),
        ),
        (
            format!("{SERVER}{BUCKETS}"),
            Some("/run/a:/run/b"),
            Some("/run/a/upgrade.sock"),
        ),
        (format!("{SERVER}{BUCKETS}"), Some(""), None),
        (format!("{SERVER}{BUCKETS}"), None, None),
        // Too long for a socket.
        (disk(&long), None, None),
        (server("  upgrade_sock: /u"), Some("/run/s3"), Some("/u")),
    ] {
        let env = |name: &str| match name {
            "RUNTIME_DIRECTORY" => runtime.map(str::to_owned),
            _ => None,
        };
        let config = Config::parse(&text, Path::new("proxy.yaml"), &env).unwrap();
        let sock = config.server.upgrade_sock;
        assert_eq!(
            sock.as_deref(),
            expected.map(Path::new),
            "{text}{runtime:?}"
        );
    }
}

#[test]
fn durations_have_units() {
    for (written, expected) in [
        ("500ms", Duration::from_millis(500)),
        ("60s", Duration::from_secs(60)),
        ("5m", Duration::from_secs(300)),
        ("1h", Duration::from_secs(3600)),
        ("1d", Duration::from_secs(86400)),
        ("365d", Duration::from_secs(365 * 86400)),
        ("0", Duration::ZERO),
        ("'0'", Duration::ZERO),
        ("0s", Duration::ZERO),
        ("${NUMBER}s", Duration::from_secs(3)),
    ] {
        let config = good(&server(&format!("  write_timeout: {written}")));
        assert_eq!(*config.server.write_timeout, expected, "{written}");
    }
}

#[test]
fn connections_wait_for_whole_seconds() {
    for (written, secs) in [
        ("1ms", Some(1)),
        ("2s", Some(2)),
        ("2001ms", Some(3)),
        ("0", None),
    ] {
        let config = good(&server(&format!("  keepalive_timeout: {written}")));
        assert_eq!(config.server.keepalive_secs(), secs, "{written}");
    }
}

#[test]
fn sizes_may_be_fractions() {
    for (written, bytes) in [
        ("1", 1_000_000_000),
        ("0.5", 500_000_000),
        ("0.001", 1_000_000),
        ("1000000", 1_000_000_000_000_000),
        ("${NUMBER}", 3_000_000_000),
    ] {
        let config = good(&disk(&format!("    max_size_gb: {written}")));
        assert_eq!(config.cache.disk.max_size_bytes(), bytes, "{written}");
    }
}

#[test]
fn directories_have_their_own_size_or_that_of_the_disk() {
    let paths = "paths: [{path: /a, max_size_gb: 16}, {path: /b}]\n    max_size_gb: 8";
    let config = good(&disk("").replace("path: /c", paths));
    let folders = config.cache.disk.folders();
    let folders: Vec<_> = folders
        .iter()
        .map(|folder| (folder.path.to_str(), folder.max_size_bytes))
        .collect();
    assert_eq!(
        folders,
        [(Some("/a"), 16_000_000_000), (Some("/b"), 8_000_000_000)]
    );
    assert_eq!(config.cache.disk.max_size_bytes(), 24_000_000_000);
    let effective = config.effective(9, 11);
    let range_fill = &effective.cache.range_fill;
    assert_eq!(range_fill.max_size_gb, Some(Gigabytes(8.0)));
    assert_eq!(range_fill.max_in_flight_gb, Some(Gigabytes(3.0)));
    assert_eq!(good(&config.to_yaml()).to_yaml(), config.to_yaml());
    let off = good(&disk("    enabled: false").replace("path: /c", "paths: [{path: /a}]"));
    assert!(off.cache.disk.folders().is_empty());
    // The socket of an upgrade outlives the first disk, if there is a better place.
    let sock = config.server.upgrade_sock.as_deref();
    assert_eq!(sock, Some(Path::new("/a/upgrade.sock")));
    let text = disk("").replace("path: /c", paths);
    let env = |name: &str| (name == "RUNTIME_DIRECTORY").then(|| "/run/s3-proxy".to_owned());
    let config = Config::parse(&text, Path::new("proxy.yaml"), &env).expect("a configuration");
    let sock = config.server.upgrade_sock.as_deref();
    assert_eq!(sock, Some(Path::new("/run/s3-proxy/upgrade.sock")));
}

#[test]
fn variables_are_filled_in_after_yaml_is_read() {
    let config = good(&bucket(
        "    access_key: ${SECRET}\n    secret_key: 'a$${PORT}b$${c${NUMBER}$$d$'\n    \
         session_token: ${NESTED}",
    ));
    let keys = &config.buckets[0];
    assert_eq!(
        keys.access_key.as_ref().map(Secret::expose),
        Some("hunter2:{[#\"'\\")
    );
    assert_eq!(
        keys.secret_key.as_ref().map(Secret::expose),
        Some("a${PORT}b${c3$$d$")
    );
    assert_eq!(
        keys.session_token.as_ref().map(Secret::expose),
        Some("hunter2${PORT}")
    );

    let config = good(&server("  threads: ${NUMBER}"));
    assert_eq!(*config.server.threads, 3);
    let config = good(&disk("    sendfile: {enabled: '${FALSE}'}"));
    assert!(!config.cache.disk.sendfile.enabled);
    let config = good(&format!(
        "server: {{address: '127.0.0.1:${{PORT}}'}}\n{BUCKETS}"
    ));
    assert_eq!(config.server.address.port(), 8081);
}

#[test]
fn prefixes_are_normalised() {
    for (written, prefix) in [
        ("/", "/"),
        ("/assets", "/assets"),
        ("/assets/", "/assets"),
        ("/a/b.c/~d@e", "/a/b.c/~d@e"),
        ("/...", "/..."),
    ] {
        let config = good(&prefixes(&[written]));
        assert_eq!(config.buckets[0].path_prefix.as_deref(), Some(prefix));
    }
    good(&prefixes(&["/assets", "/assets2", "/a", "/b/c", "/b/d"]));
}

#[test]
fn hosts_are_normalised() {
    let config = good(&buckets(
        "bucket: abc, region: r, hosts: [CDN.Example.com., my_host], key_prefix: 'a b/ü/'",
    ));
    let [bucket] = &config.buckets[..] else {
        panic!("{:?}", config.buckets);
    };
    let hosts: Vec<_> = bucket.hosts.iter().map(|host| &**host).collect();
    assert_eq!(hosts, ["cdn.example.com", "my_host"]);
    assert_eq!(bucket.key_prefix.as_deref(), Some("a b/ü/"));
    assert_eq!(bucket.path_prefix, None);
}

#[test]
fn listeners_may_share_an_ip_or_port_zero() {
    good(&server(
        "  tls: {address: '127.0.0.1:0', certificate: Cargo.toml, key: Cargo.toml}",
    ));
    good(&format!(
        "server: {{address: '127.0.0.1:80'}}\n{BUCKETS}metrics: {{address: '127.0.0.2:80'}}"
    ));
    good(&format!(
        "server: {{address: '0.0.0.0:0'}}\n{BUCKETS}metrics: {{address: '0.0.0.0:0'}}"
    ));
}

#[test]
fn every_mistake_is_named_with_file_key_and_remedy() {
    let with_metrics = |server: &str, metrics: &str| {
        format!("server: {{address: '{server}'}}\n{BUCKETS}metrics: {{address: '{metrics}'}}")
    };
    let one_bucket =
        |name: &str| format!("{SERVER}buckets: [{{path_prefix: /a, bucket: {name}, region: r}}]");
    let region = |region: &str| {
        format!("{SERVER}buckets: [{{path_prefix: /a, bucket: abc, region: {region}}}]")
    };
    let cache = |keys: &str| format!("{SERVER}{BUCKETS}cache: {keys}");
    let log = |keys: &str| format!("{SERVER}{BUCKETS}access_log: {{{keys}}}");
    let traces = |keys: &str| format!("{SERVER}{BUCKETS}traces: {{{keys}}}");
    let endpoint = |url: &str| bucket(&format!("    endpoint: {url:?}"));
    // One case a line: text, key, problem, remedy.
    #[rustfmt::skip]
    let cases: Vec<(String, &str, &str, &str)> = vec![
        // The document as a whole.
        (String::new(), "", "contains no settings", "config.yaml.example"),
        ("- a".into(), "", "contains no sections", "server, buckets, cache, metrics, admin, health, access_log, limits, traces"),
        ("a: [".into(), "", "is not valid YAML", "indentation"),
        ("a: b: c".into(), "", "is not valid YAML", "indentation"),
        ("a: 1\n---\nb: 2".into(), "", "is not valid YAML", "layout"),
        (server("  threads: !!int hunter2"), "server.threads", "tag does not allow", "from 1 to 1024"),
        // Missing and empty.
        (BUCKETS.into(), "server", "is missing", "address, threads"),
        (format!("server:\n{BUCKETS}"), "server", "has no value", "address, threads"),
        (format!("server: {{}}\n{BUCKETS}"), "server.address", "is missing", "IP:PORT"),
        (SERVER.into(), "buckets", "is missing", "path_prefix"),
        (format!("{SERVER}buckets: []"), "buckets", "empty list", "at least one"),
        (format!("{SERVER}buckets: {{}}"), "buckets", "is a section, not a list", "- path_prefix"),
        (format!("{SERVER}buckets: [a]"), "buckets[0]", "is a string, not a section", "session_token"),
        (format!("{SERVER}buckets: [{{bucket: abc}}]"), "buckets[0].path_prefix", "is missing", "/assets"),
        (format!("{SERVER}buckets: [{{path_prefix: /a}}]"), "buckets[0].bucket", "is missing", "3 to 63"),
        (format!("{SERVER}buckets: [{{path_prefix: /a, bucket: abc}}]"), "buckets[0].region", "is missing", "us-east-1"),
        // Unknown and repeated keys.
        (format!("{SERVER}{BUCKETS}caches: 1"), "caches", "not a known key", "server, buckets, cache, metrics"),
        (format!("{SERVER}{BUCKETS}1: 1"), "1", "not a known key", "server, buckets"),
        (server("  thread: 2"), "server.thread", "not a known key", "threads"),
        (bucket("    secretkey: hunter2"), "buckets[0].secretkey", "not a known key", "secret_key"),
        (disk("    sendfile: {threshold: 1}"), "cache.disk.sendfile.threshold", "not a known key", "enabled, threshold_bytes"),
        (server("  threads: 1\n  threads: 2"), "server.threads", "twice", "first in line 3"),
        (bucket("    bucket: again"), "buckets[0].bucket", "twice", "keep one"),
        (format!("{SERVER}{SERVER}{BUCKETS}"), "server", "twice", "keep one"),
        // Wrong types.
        (server("  threads: '2'"), "server.threads", "is a string, not a number", "from 1 to 1024"),
        (server("  threads: two"), "server.threads", "is a string, not a number", "from 1 to 1024"),
        (server("  threads: 1.5"), "server.threads", "not a whole number", "from 1 to 1024"),
        (server("  threads: [1]"), "server.threads", "is a list", "from 1 to 1024"),
        (server("  threads: !x 1"), "server.threads", "tagged", "from 1 to 1024"),
        (server("  tls: true"), "server.tls", "is true or false, not a section", "address, certificate, key"),
        (bucket("    access_key: 1234567890"), "buckets[0].access_key", "is a number, not a string", "${NAME}"),
        (bucket("    secret_key:"), "buckets[0].secret_key", "has no value", "unsigned"),
        (disk("    enabled: yes"), "cache.disk.enabled", "is a string, not true or false", "true or false"),
        (disk("    max_size_gb: 10GB"), "cache.disk.max_size_gb", "is a string, not a number", "10^9"),
        // Out of range.
        (server("  threads: 0"), "server.threads", "0 is out of range", "from 1 to 1024"),
        (server("  threads: 1025"), "server.threads", "out of range", "from 1 to 1024"),
        (server("  min_send_rate: -1"), "server.min_send_rate", "-1 is out of range", "from 0 to"),
        (server("  max_request_head_bytes: 1023"), "server.max_request_head_bytes", "1023 is out of range", "from 1024 to 1000000"),
        (server("  http2: {max_streams: 0}"), "server.http2.max_streams", "0 is out of range", "from 1 to 10000"),
        (server("  http2: {max_pending_resets: -1}"), "server.http2.max_pending_resets", "-1 is out of range", "from 0 to"),
        (server("  http2: {max_error_resets: many}"), "server.http2.max_error_resets", "is a string, not a number", "from 0 to"),
        (server("  http2: {control_frames_per_second: -1}"), "server.http2.control_frames_per_second", "-1 is out of range", "from 0 to 1000000"),
        (server("  http2: true"), "server.http2", "is true or false, not a section", "max_streams"),
        (server("  request_head_timeout: 30"), "server.request_head_timeout", "30 has no unit", "500ms"),
        (disk("    max_size_gb: 0"), "cache.disk.max_size_gb", "out of range", "from 0.001"),
        (disk("  min_uses: 0"), "cache.min_uses", "0 is out of range", "from 1 to 255"),
        (disk("  min_uses: 256"), "cache.min_uses", "out of range", "from 1 to 255"),
        (disk("  range_fill: {max_in_flight: -1}"), "cache.range_fill.max_in_flight", "out of range", "from 0 to"),
        (disk("  fill_without_readers: 1.5"), "cache.fill_without_readers", "out of range", "0: always"),
        (disk("  max_fills: 0"), "cache.max_fills", "out of range", "from 1 to"),
        (disk("  max_misses: 0"), "cache.max_misses", "out of range", "from 1 to"),
        (disk("  range_fill: {max_in_flight_gb: 0}"), "cache.range_fill.max_in_flight_gb", "out of range", "10^9"),
        (disk("  range_fill: {client_mb_per_minute: -1}"), "cache.range_fill.client_mb_per_minute", "out of range", "0: no limit"),
        (disk("  range_fill: {max_size_gb: 0}"), "cache.range_fill.max_size_gb", "out of range", "10^9"),
        (disk("  blocks: {size_kib: 63}"), "cache.blocks.size_kib", "out of range", "from 64 to 65536"),
        (disk("  blocks: {read_ahead_mib: 0}"), "cache.blocks.read_ahead_mib", "out of range", "from 1 to"),
        (disk("    max_object_gb: 0"), "cache.disk.max_object_gb", "out of range", "10^9"),
        (disk("  memory: {max_size_mb: -1}"), "cache.memory.max_size_mb", "out of range", "from 0 to"),
        (disk("  memory: {max_size_mb: 64MB}"), "cache.memory.max_size_mb", "is a string", "10^6"),
        (disk("  memory: 64"), "cache.memory", "is a number, not a section", "max_size_mb"),
        (disk("    max_open_files: 1000001"), "cache.disk.max_open_files", "out of range", "auto or a whole number from 0 to 1000000"),
        (disk("    max_open_files: -1"), "cache.disk.max_open_files", "out of range", "auto or a whole number"),
        (disk("    max_open_files: 1.5"), "cache.disk.max_open_files", "not a whole number", "auto or a whole number"),
        (disk("    max_open_files: all"), "cache.disk.max_open_files", "\"all\" is neither auto nor a whole number", "write auto or"),
        (disk("    scrub_mb_per_second: 10001"), "cache.disk.scrub_mb_per_second", "out of range", "0: off"),
        (disk("    scrub_mb_per_second: .inf"), "cache.disk.scrub_mb_per_second", "out of range", "to 10000"),
        (disk("    inactive: 30"), "cache.disk.inactive", "30 has no unit", "365d"),
        (server("  tls: {address: '127.0.0.1:1', certificate: Cargo.toml, key: Cargo.toml, ktls: always}"), "server.tls.ktls", "\"always\"", "auto, on or off"),
        (disk("    backend: io_uring"), "cache.disk.backend", "\"io_uring\" is not a backend", "auto, tokio or uring"),
        (disk("    backend: true"), "cache.disk.backend", "is true or false, not a string", "auto, tokio or uring"),
        (server(&format!("  upgrade_sock: /{}", "s".repeat(107))), "server.upgrade_sock", "too long", "107 bytes"),
        (server("  upgrade_sock: ''"), "server.upgrade_sock", "is empty", "Unix socket"),
        (server("  send_buffer: 2000000000"), "server.send_buffer", "out of range", "from 0"),
        (server("  max_connections: 0"), "limits.connections", "0 is out of range", "from 1"),
        (limits("per_ip: -1"), "limits.per_ip", "out of range", "from 0 to"),
        (limits("header_fields: 257"), "limits.header_fields", "out of range", "from 1 to 256"),
        (limits("requests_per_second: 0.5"), "limits.requests_per_second", "not a whole number", "from 0 to"),
        (limits("url_bytes: 255"), "limits.url_bytes", "out of range", "from 256 to 65536"),
        (disk("    max_size_gb: .nan"), "cache.disk.max_size_gb", "out of range", "from 0.001"),
        (disk("    max_size_gb: .inf"), "cache.disk.max_size_gb", "out of range", "from 0.001"),
        (disk("    sendfile: {threshold_bytes: -1}"), "cache.disk.sendfile.threshold_bytes", "out of range", "from 0 to"),
        (server("  write_timeout: 366d"), "server.write_timeout", "out of range", "at most 365d"),
        (server("  write_timeout: 99999999999999999999d"), "server.write_timeout", "out of range", "at most 365d"),
        // Durations.
        (server("  write_timeout: 60"), "server.write_timeout", "60 has no unit", "500ms"),
        (server("  write_timeout: -1s"), "server.write_timeout", "not a duration", "500ms"),
        (server("  write_timeout: 1.5s"), "server.write_timeout", "not a duration", "500ms"),
        (server("  grace_period: 1w"), "server.grace_period", "not a duration", "ms, s, m, h or d"),
        (server("  grace_period: s"), "server.grace_period", "not a duration", "ms, s, m, h or d"),
        (format!("{SERVER}{BUCKETS}cache: {{default_ttl: true}}"), "cache.default_ttl", "is true or false", "500ms"),
        // Addresses.
        (server("").replace("127.0.0.1:8080", "localhost:8080"), "server.address", "\"localhost:8080\" is not an IP", "127.0.0.1:8080"),
        (server("").replace("127.0.0.1:8080", "127.0.0.1"), "server.address", "is not an IP", "port 0"),
        (server("").replace("127.0.0.1:8080", "8080"), "server.address", "is a number", "IP:PORT"),
        (format!("{SERVER}{BUCKETS}metrics: {{}}"), "metrics.address", "is missing", "IP:PORT"),
        (with_metrics("127.0.0.1:80", "127.0.0.1:80"), "metrics.address", "conflicts with server.address", "port 0"),
        (with_metrics("0.0.0.0:80", "127.0.0.1:80"), "metrics.address", "conflicts with", "port of its own"),
        (format!("{SERVER}{BUCKETS}admin: {{}}"), "admin.address", "is missing", "IP:PORT"),
        (format!("{SERVER}{BUCKETS}admin: {{port: 1}}"), "admin.port", "not a known key", "address"),
        (format!("server: {{address: '127.0.0.1:80'}}\n{BUCKETS}admin: {{address: '0.0.0.0:80'}}"), "admin.address", "conflicts with server.address", "port 0"),
        (format!("{SERVER}{BUCKETS}metrics: {{address: '[::1]:90'}}\nadmin: {{address: '[::1]:90'}}"), "admin.address", "conflicts with metrics.address", "port 0"),
        (with_metrics("127.0.0.1:80", "[::]:80"), "metrics.address", "conflicts with", "port of its own"),
        (server("  tls: {address: '127.0.0.1:8080', certificate: Cargo.toml, key: Cargo.toml}"), "server.tls.address", "conflicts with", "port of its own"),
        // Access log.
        (log("format: json"), "access_log.path", "is missing", "'-' for standard output"),
        (log("path: ''"), "access_log.path", "is empty", "'-' for standard output"),
        (log("path: a, format: xml"), "access_log.format", "is not", "combined"),
        (log("path: a, rotate: hourly"), "access_log.rotate", "is not", "daily"),
        (log("path: '-', rotate: daily"), "access_log.rotate", "has no effect on standard output", "path of a file"),
        (traces("sample_ratio: 1"), "traces.endpoint", "is missing", "http://localhost:4318"),
        (traces("endpoint: 'localhost:4318'"), "traces.endpoint", "no scheme", "http://HOST"),
        (traces("endpoint: 'grpc://h:4317'"), "traces.endpoint", "scheme other", "https://HOST"),
        (traces("endpoint: 'http://u:hunter2@h/'"), "traces.endpoint", "password", "http://HOST"),
        (traces("endpoint: 'http://h/v1?key=hunter2'"), "traces.endpoint", "a query", "/PATH"),
        (traces("endpoint: 'http://h', sample_ratio: 1.5"), "traces.sample_ratio", "out of range", "from 0 to 1"),
        (traces("endpoint: 'http://h', timeout: 0"), "traces.timeout", "no limit", "5s"),
        (traces("endpoint: 'http://h', headers: [{name: 'a b', secret: s}]"), "traces.headers[0].name", "is not a name", "letters"),
        (traces("endpoint: 'http://h', headers: [{name: a, secret: ' '}]"), "traces.headers[0].secret", "is empty", "${NAME}"),
        (log("path: a, buffer_kib: 63"), "access_log.buffer_kib", "63", "from 64 to 1048576"),
        (server("  trusted_proxies: 10.0.0.0/8"), "server.trusted_proxies", "is a string, not a list", "list"),
        (server("  trusted_proxies: [10.0.0.0/33]"), "server.trusted_proxies[0]", "is not a network", "10.0.0.0/8"),
        (server("  trusted_proxies: [example.com]"), "server.trusted_proxies[0]", "is not a network", "10.0.0.0/8"),
        (server("  trusted_proxies: [10.0.0.1/8]"), "server.trusted_proxies[0]", "has bits beyond its prefix length; the network is 10.0.0.0/8", "10.0.0.0/8"),
        (server("  trusted_proxies: [0.0.0.0/0]"), "server.trusted_proxies[0]", "is every address", "10.0.0.0/8"),
        (server("  trusted_proxies: ['::/0']"), "server.trusted_proxies[0]", "is every address", "10.0.0.0/8"),
        (server("  trusted_proxies: ['::ffff:0:0/96']"), "server.trusted_proxies[0]", "is every address", "10.0.0.0/8"),
        // Files.
        (server("  tls: {address: '127.0.0.1:0', certificate: no.pem, key: Cargo.toml}"), "server.tls.certificate", "\"no.pem\" cannot be opened", "PEM"),
        (server("  tls: {address: '127.0.0.1:0', certificate: Cargo.toml, key: src}"), "server.tls.key", "is not a file", "PEM"),
        (server("  tls: {address: '127.0.0.1:0', certificate: Cargo.toml}"), "server.tls.key", "is missing", "PEM"),
        (disk("").replace("/c", "''"), "cache.disk.path", "is empty", "directory"),
        (disk("").replace("path: /c", "max_size_gb: 1"), "cache.disk.path", "is missing", "directory"),
        (disk("    paths: [{path: /a}]"), "cache.disk.paths", "is beside path", "only one of the two"),
        (disk("").replace("path: /c", &format!("paths: [{}]", vec!["{path: /c}"; 257].join(", "))), "cache.disk.paths", "has 257 directories", "at most 256"),
        (disk("").replace("path: /c", "paths: []"), "cache.disk.paths", "is an empty list", "- path: DIRECTORY"),
        (disk("").replace("path: /c", "paths: /c"), "cache.disk.paths", "is a string, not a list", "list"),
        (disk("").replace("path: /c", "paths: [/c]"), "cache.disk.paths[0]", "is a string, not a section", "path"),
        (disk("").replace("path: /c", "paths: [{max_size_gb: 1}]"), "cache.disk.paths[0].path", "is missing", "directory"),
        (disk("").replace("path: /c", "paths: [{path: /c, max_size_gb: 0}]"), "cache.disk.paths[0].max_size_gb", "out of range", "10^9"),
        (disk("").replace("path: /c", "paths: [{path: /c}, {path: /d}, {path: /c/}]"), "cache.disk.paths[2].path", "is, contains or is in cache.disk.paths[0].path", "separate"),
        (disk("").replace("path: /c", "paths: [{path: /c/d}, {path: /c}]"), "cache.disk.paths[1].path", "is, contains or is in cache.disk.paths[0].path", "separate"),
        // Prefixes.
        (prefixes(&["assets"]), "buckets[0].path_prefix", "does not start with /", "/assets"),
        (prefixes(&[""]), "buckets[0].path_prefix", "is empty", "/assets"),
        (prefixes(&["/a/../b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["/a/."]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["//"]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["/a//b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["/a%20b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["/a?b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["/a b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["/é"]), "buckets[0].path_prefix", "not a literal path", "letters"),
        (prefixes(&["/a", "/a/"]), "buckets[1].path_prefix", "overlaps with buckets[0].path_prefix", "segments"),
        (prefixes(&["/b", "/a/b", "/a"]), "buckets[2].path_prefix", "overlaps with buckets[1].path_prefix", "segments"),
        (prefixes(&["/a", "/a/b"]), "buckets[1].path_prefix", "overlaps with", "segments"),
        (prefixes(&["/", "/a"]), "buckets[1].path_prefix", "overlaps with", "single bucket"),
        (prefixes(&["/a", "/"]), "buckets[1].path_prefix", "overlaps with", "single bucket"),
        // Hosts and prefixes of keys.
        (buckets("bucket: abc, region: r"), "buckets[0].path_prefix", "is missing", "hosts"),
        (buckets("bucket: abc, region: r, hosts: []"), "buckets[0].hosts", "is an empty list", "example.com"),
        (buckets("bucket: abc, region: r, hosts: a.b"), "buckets[0].hosts", "is a string, not a list", "write a list"),
        (buckets("bucket: abc, region: r, hosts: ['http://a']"), "buckets[0].hosts[0]", "is not a host name", "without scheme"),
        (buckets("bucket: abc, region: r, hosts: [a, 'b:80']"), "buckets[0].hosts[1]", "is not a host name", "port"),
        (buckets("bucket: abc, region: r, hosts: [10.0.0.1]"), "buckets[0].hosts[0]", "is not a host name", "example.com"),
        (buckets("bucket: abc, region: r, hosts: [a..b]"), "buckets[0].hosts[0]", "is not a host name", "example.com"),
        (buckets("bucket: abc, region: r, hosts: ['*.b']"), "buckets[0].hosts[0]", "is not a host name", "example.com"),
        (buckets("bucket: abc, region: r, hosts: [a.b, A.b.]"), "buckets[0].hosts[1]", "is also in buckets[0].hosts", "once"),
        (buckets("bucket: abc, region: r, hosts: [a.b]}, {bucket: abd, region: r, hosts: [c.d, a.B]"), "buckets[1].hosts[1]", "is also in buckets[0].hosts", "once"),
        (buckets("path_prefix: /, bucket: abc, region: r, key_prefix: a"), "buckets[0].key_prefix", "does not end in /", "slash"),
        (buckets("path_prefix: /, bucket: abc, region: r, key_prefix: /"), "buckets[0].key_prefix", "is not the beginning of keys", "segments"),
        (buckets("path_prefix: /, bucket: abc, region: r, key_prefix: /a/"), "buckets[0].key_prefix", "is not the beginning of keys", "segments"),
        (buckets("path_prefix: /, bucket: abc, region: r, key_prefix: a/../b/"), "buckets[0].key_prefix", "is not the beginning of keys", "segments"),
        // Names.
        (one_bucket("ab"), "buckets[0].bucket", "\"ab\" is not a bucket name", "3 to 63"),
        (one_bucket(&"a".repeat(64)), "buckets[0].bucket", "not a bucket name", "3 to 63"),
        (one_bucket("My-Bucket"), "buckets[0].bucket", "not a bucket name", "a-z"),
        (one_bucket("a/b"), "buckets[0].bucket", "not a bucket name", "a-z"),
        (one_bucket("a..b"), "buckets[0].bucket", "not a bucket name", "two dots"),
        (one_bucket("-abc"), "buckets[0].bucket", "not a bucket name", "both ends"),
        (one_bucket("127.0.0.1"), "buckets[0].bucket", "not a bucket name", "IP address"),
        (region("us.east"), "buckets[0].region", "not a region", "us-east-1"),
        (region("''"), "buckets[0].region", "is empty", "us-east-1"),
        // Endpoints.
        (endpoint("127.0.0.1:9000"), "buckets[0].endpoint", "no scheme", "http://HOST[:PORT]"),
        (endpoint("ftp://h"), "buckets[0].endpoint", "scheme other", "https://HOST[:PORT]"),
        (endpoint("http://"), "buckets[0].endpoint", "no valid host", "HOST"),
        (endpoint("http://h:99999"), "buckets[0].endpoint", "port outside", "PORT"),
        (endpoint("http://h/bucket"), "buckets[0].endpoint", "a path", "leave the key out"),
        (endpoint("http://u:hunter2@h"), "buckets[0].endpoint", "password", "http://HOST"),
        // Keys.
        (bucket("    access_key: a"), "buckets[0].secret_key", "missing beside access_key", "both"),
        (bucket("    secret_key: hunter2"), "buckets[0].access_key", "missing beside secret_key", "unsigned"),
        (bucket("    session_token: hunter2"), "buckets[0].access_key", "missing beside session_token", "unsigned"),
        (bucket("    secret_key: ${SPACED}"), "buckets[0].secret_key", "a line end", "copied along"),
        (bucket("    secret_key: 'hunter2 x'"), "buckets[0].secret_key", "holds a space", "copied along"),
        (bucket("    secret_key: ${EMPTY}"), "buckets[0].secret_key", "is empty", "unsigned"),
        (bucket("    credentials: environment"), "buckets[0].credentials", "\"environment\" is not", "chain"),
        (bucket("    credentials: keys"), "buckets[0].credentials", "there are none", "access_key"),
        (bucket("    credentials: chain\n    access_key: a\n    secret_key: b"), "buckets[0].credentials", "there are some", "leave out"),
        (bucket("    credentials: none\n    access_key: a\n    secret_key: b"), "buckets[0].credentials", "there are some", "leave out"),
        (bucket("    credentials: none\n    assume_role: {role_arn: 'arn:aws:iam::1:role/reader'}"), "buckets[0].credentials", "only be assumed", "chain"),
        (bucket("    assume_role: {}"), "buckets[0].assume_role.role_arn", "missing", "arn:aws:iam"),
        (bucket("    assume_role: {role_arn: reader}"), "buckets[0].assume_role.role_arn", "not an ARN", "arn:aws:iam"),
        (bucket("    assume_role: {external_id: 'a b'}"), "buckets[0].assume_role.external_id", "not an external ID", "letters"),
        (bucket("    assume_role: {session_name: a}"), "buckets[0].assume_role.session_name", "not a session name", "2 to 64"),
        // Patterns.
        (cache("{rules: [{key: 'a['}]}"), "cache.rules[0].key", "is not a pattern", "[a-z]"),
        (cache("{rules: [{bucket: ''}]}"), "cache.rules[0].bucket", "is empty", "[a-z]"),
        (cache("{rules: [{ttl: 5}]}"), "cache.rules[0].ttl", "has no unit", "60s"),
        (cache("{rules: [{keys: '*'}]}"), "cache.rules[0].keys", "not a known key", "ignore_origin"),
        // Passthrough.
        (bucket("    auth: s3"), "buckets[0].auth", "\"s3\" is not", "passthrough"),
        (bucket("    auth: passthrough"), "buckets[0].path_prefix", "not the path", "write /my-bucket"),
        (bucket("    auth: passthrough\n    key_prefix: a/"), "buckets[0].key_prefix", "auth: passthrough", "leave it out"),
        (format!("{SERVER}buckets: [{{path_prefix: /a, region: r}}]"), "buckets[0].bucket", "is missing", "a-z"),
        (format!("{SERVER}buckets: [{{path_prefix: /a, region: r, auth: passthrough}}]"), "buckets[0].path_prefix", "not the path", "write /,"),
        (bucket("    auth_ttl: 1m"), "buckets[0].auth_ttl", "no effect", "auth: passthrough"),
        (bucket("    auth: passthrough\n    auth_ttl: soon"), "buckets[0].auth_ttl", "not a duration", "1h"),
        (bucket("    connect_timeout: 10"), "buckets[0].connect_timeout", "has no unit", "1h"),
        (bucket("    ca_file: nonexistent.pem"), "buckets[0].ca_file", "cannot be opened", "PEM"),
        (bucket("    tls_verify: true"), "buckets[0].tls_verify", "is", "full, ca or none"),
        (bucket("    tls_name: s3.example:443"), "buckets[0].tls_name", "not a host name", "without a port"),
        (bucket("    endpoint: http://s3.example\n    tls_verify: none"), "buckets[0].tls_verify", "without TLS", "https://"),
        (bucket("    endpoint: http://s3.example\n    ca_file: Cargo.toml"), "buckets[0].ca_file", "without TLS", "https://"),
        // Web serving.
        (bucket("    web: {index: a/b}"), "buckets[0].web.index", "not the name of a document", "index.html"),
        (bucket("    web: {slash_redirect: true}"), "buckets[0].web.slash_redirect", "no effect", "name an index document"),
        (bucket("    web: {error_documents: {200: a.html}}"), "buckets[0].web.error_documents.200", "not the status", "404"),
        (bucket("    web: {error_documents: {404: /a}}"), "buckets[0].web.error_documents.404", "not the key", "errors/404.html"),
        (bucket("    web: {error_documents: [a]}"), "buckets[0].web.error_documents", "is a list", "404"),
        (bucket("    response_headers: [{set: {Content-Length: '1'}}]"), "buckets[0].response_headers[0].set.Content-Length", "cannot be changed", "Cache-Control"),
        (bucket("    response_headers: [{add: {transfer-encoding: a}}]"), "buckets[0].response_headers[0].add.transfer-encoding", "cannot be changed", "Cache-Control"),
        (bucket("    response_headers: [{remove: [Connection]}]"), "buckets[0].response_headers[0].remove[0]", "cannot be changed", "x-amz-meta-*"),
        (bucket("    response_headers: [{remove: ['et*']}]"), "buckets[0].response_headers[0].remove[0]", "cannot be changed", "x-amz-meta-*"),
        (bucket("    response_headers: [{remove: ['*']}]"), "buckets[0].response_headers[0].remove[0]", "not the name", "x-amz-meta-*"),
        (bucket("    response_headers: [{set: {X-A: \"a\\r\\nb\"}}]"), "buckets[0].response_headers[0].set.X-A", "not the value", "printable"),
        (bucket("    cors: {}"), "buckets[0].cors.origins", "missing", "VALUE"),
        (bucket("    cors: {origins: []}"), "buckets[0].cors.origins", "1 to 256", "name websites"),
        (bucket("    cors: {origins: ['https://a.example/b']}"), "buckets[0].cors.origins[0]", "not an origin", "https://www.example.com"),
        (bucket("    cors: {origins: ['*'], credentials: true}"), "buckets[0].cors.credentials", "any website", "name the websites"),
        (bucket("    auth: passthrough\n    web: {}"), "buckets[0].web", "auth: passthrough", "leave it out"),
        // Variables.
        (bucket("    access_key: ${AWS_KEY}"), "buckets[0].access_key", "variable AWS_KEY", "export AWS_KEY=..."),
        (bucket("    access_key: a${hunter2"), "buckets[0].access_key", "without a variable name", "$${"),
        (bucket("    access_key: ${hunter2!}"), "buckets[0].access_key", "without a variable name", "${NAME}"),
        (bucket("    access_key: ${}"), "buckets[0].access_key", "without a variable name", "${NAME}"),
        (one_bucket("'${SECRET}'"), "buckets[0].bucket", "\"${SECRET}\" is not a bucket name", "a-z"),
        (server("  threads: ${SECRET}"), "server.threads", "\"${SECRET}\" is not a whole number", "1024"),
        (server("  threads: ${PORT}"), "server.threads", "\"${PORT}\" is out of range", "1024"),
        (server("  write_timeout: ${SECRET}"), "server.write_timeout", "\"${SECRET}\" is not a duration", "1h"),
        (disk("    enabled: ${SECRET}"), "cache.disk.enabled", "\"${SECRET}\" is not true", "false"),
        (disk("    max_size_gb: ${SECRET}"), "cache.disk.max_size_gb", "\"${SECRET}\" is not a number", "10^9"),
        (endpoint("${SECRET}"), "buckets[0].endpoint", "no scheme", "http://"),
    ];
    for (text, key, problem, remedy) in cases {
        let Err(error) = parse(&text) else {
            panic!("accepted:\n{text}");
        };
        let said = error.to_string();
        let mistake = error
            .mistakes()
            .iter()
            .find(|mistake| mistake.key().unwrap_or("") == key);
        let mistake = mistake.unwrap_or_else(|| panic!("{said}\n  lacks {key}\n{text}"));
        let line = mistake.to_string();
        let place = match mistake.place() {
            Some(Place { line, column }) => format!(":{line}:{column}"),
            None => String::new(),
        };
        let start = match key {
            "" => format!("conf/proxy.yaml{place}: "),
            key => format!("conf/proxy.yaml{place}: {key}: "),
        };
        assert!(line.starts_with(&start), "{line}\n  for {key}\n{text}");
        assert_eq!(place.is_empty(), text.is_empty(), "{line}");
        assert!(
            line.contains(problem),
            "{line}\n  lacks {problem:?}\n{text}"
        );
        assert!(line.contains(remedy), "{line}\n  lacks {remedy:?}\n{text}");
        assert_eq!(said.lines().count(), error.mistakes().len(), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("no/such.yaml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("no/such.yaml: cannot be read: "),
        "{error}"
    );
    assert!(error.contains("config.yaml.example"), "{error}");
}

#[test]
fn a_message_stays_on_one_line_whatever_the_text_holds() {
    let error = parse(&format!("{SERVER}{BUCKETS}\"a\\nb\\e\": 1")).unwrap_err();
    let line = error.to_string();
    assert!(line.contains("a\\nb\\u{1b}: is not a known key"), "{line}");
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn a_file_cut_short_anywhere_is_an_error_of_a_line_a_mistake_or_a_config() {
    let example = include_str!("../../config.yaml.example");
    let text = format!("{example}# grüße\n");
    for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
        if let Err(error) = parse(&text[..end]) {
            let line = error.to_string();
            let lines = error.mistakes().len();
            assert!(
                line.lines()
                    .all(|line| line.starts_with("conf/proxy.yaml:")),
                "{line}"
            );
            assert_eq!(line.lines().count(), lines, "{line}");
        }
    }
}

#[test]
fn debug_output_holds_no_secret() {
    let config = good(&bucket(
        "    access_key: ${SECRET}\n    secret_key: ${SECRET}\n    session_token: ${SECRET}",
    ));
    let debug = format!("{config:?} {config:#?}");
    assert!(!debug.contains("hunter2"), "{debug}");
    assert!(debug.contains("redacted"));
}

/// The mistakes of a text, without the name of the file.
fn mistakes(text: &str) -> Vec<String> {
    let Err(error) = parse(text) else {
        panic!("accepted:\n{text}");
    };
    let lines = error.mistakes().iter().map(ToString::to_string);
    lines
        .map(|line| line.replacen("conf/proxy.yaml", "", 1))
        .collect()
}

/// Asserts that the mistakes of a text begin with these lines, in order.
fn assert_mistakes(text: &str, starts: &[&str]) {
    let lines = mistakes(text);
    let all = lines.len() == starts.len()
        && lines
            .iter()
            .zip(starts)
            .all(|(line, start)| line.starts_with(start));
    assert!(all, "{lines:#?}\n  are not {starts:#?}\n{text}");
}

#[test]
fn all_mistakes_of_a_file_are_found_at_once() {
    assert_mistakes(
        "\
server:
  address: localhost:80
  thread: 2
  write_timeout: 5
  tls: {key: no.pem}
buckets:
  - path_prefix: /a
    bucket: X
    access_key: k
  - {path_prefix: /a/b, bucket: abc, region: r}
cache:
  disk: {max_size_gb: large, backend: hm}
  min_uses: [1]
  memory: 3
metrics:
",
        &[
            ":2:12: server.address: \"localhost:80\" is not an IP address with a port; ",
            ":3:3: server.thread: is not a known key; allowed keys here: address, threads, ",
            ":4:18: server.write_timeout: 5 has no unit; ",
            ":5:8: server.tls.address: is missing; write IP:PORT",
            ":5:8: server.tls.certificate: is missing; write the path of a readable PEM file",
            ":5:14: server.tls.key: \"no.pem\" cannot be opened: ",
            ":7:5: buckets[0].region: is missing; ",
            ":8:13: buckets[0].bucket: \"X\" is not a bucket name; ",
            ":9:5: buckets[0].secret_key: is missing beside access_key; ",
            ":10:19: buckets[1].path_prefix: overlaps with buckets[0].path_prefix; ",
            ":12:9: cache.disk.path: is missing; ",
            ":12:23: cache.disk.max_size_gb: is a string, not a number; ",
            ":12:39: cache.disk.backend: \"hm\" is not a backend; write auto, tokio or uring",
            ":13:13: cache.min_uses: is a list, not a number; ",
            ":14:11: cache.memory: is a number, not a section of keys; allowed keys: max_size_mb",
            ":15:8: metrics: has no value; allowed keys: address",
        ],
    );
}

#[test]
fn a_section_of_the_wrong_type_is_one_mistake() {
    assert_mistakes(
        "server: 5\nbuckets: {a: b}\ncache: [1]",
        &[
            ":1:9: server: is a number, not a section of keys; ",
            ":2:10: buckets: is a section, not a list; ",
            ":3:8: cache: is a list, not a section of keys; ",
        ],
    );
}

#[test]
fn no_more_mistakes_are_shown_than_can_be_read() {
    let unknown: String = (0..5000).map(|n| format!("  unknown{n}: 1\n")).collect();
    let lines = mistakes(&format!("server:\n{unknown}{BUCKETS}"));
    assert_eq!(lines.len(), 101);
    assert!(
        lines[100].contains("more mistakes follow"),
        "{}",
        lines[100]
    );
}

#[test]
fn a_key_that_stands_twice_is_named_where_it_does_again() {
    assert_mistakes(
        &server("  threads: 1\n  threads: 2\n  tls: {key: a, key: b}"),
        &[
            ":4:3: server.threads: is given twice in this section, first in line 3; keep one",
            ":5:8: server.tls.address: is missing",
            ":5:8: server.tls.certificate: is missing",
            ":5:14: server.tls.key: \"a\" cannot be opened",
            ":5:17: server.tls.key: is given twice in this section, first in line 5; keep one",
        ],
    );
}

#[test]
fn settings_of_a_website_are_printed_as_they_are_read() {
    let web = "    web: {index: index.html, error_documents: {404: errors/404.html, 503: a b}, \
               precompressed: [gzip, br], compress: {codings: [zstd], max_kib: 2}}\n    \
               response_headers: [{key: '*.html', set: {X-A: b}, add: {Link: '</c>'}, remove: ['x-amz-*']}]\n    \
               cors: {origins: ['https://a.example'], methods: [get], expose_headers: [ETag]}";
    let config = good(&bucket(web));
    let site = config.buckets[0].web.as_ref().expect("a section");
    let (status, key) = &site.error_documents[1];
    assert_eq!((status.as_u16(), key.as_str()), (503, "a b"));
    let rule = &config.buckets[0].response_headers[0];
    let (name, value) = &rule.set[0];
    assert_eq!((name.as_str(), value.as_bytes()), ("x-a", &b"b"[..]));
    assert_eq!(&*rule.remove[0], "x-amz-*");
    let printed = config.to_yaml();
    assert_eq!(good(&printed).to_yaml(), printed);
    for text in ["404: \"errors/404.html\"", "x-a: \"b\"", "- \"gzip\""] {
        assert!(printed.contains(text), "{text} in {printed}");
    }
}

#[test]
fn a_former_name_of_a_key_is_accepted_but_not_beside_its_name() {
    let config = good(&disk("  admission: 3"));
    assert_eq!(*config.cache.min_uses, 3);
    assert!(config.to_yaml().contains("\n  min_uses: 3\n"));
    assert_mistakes(
        &disk("  admission: 0"),
        &[":10:14: cache.min_uses: 0 is out of range; write a whole number from 1 to 255"],
    );
    assert_mistakes(
        &disk("  min_uses: 2\n  admission: 3"),
        &[":11:3: cache.admission: is the former name of min_uses, which is also there; keep min_uses"],
    );
}

#[test]
fn a_key_that_has_moved_is_accepted_in_its_former_section() {
    let config = good(&server("  max_connections: 5"));
    assert_eq!(config.limits.connections.map(|max| *max), Some(5));
    let config = good(&format!(
        "{}\nlimits: {{per_ip: 3}}",
        server("  max_connections: 5")
    ));
    assert_eq!(config.limits.connections.map(|max| *max), Some(5));
    assert_eq!(config.limits.per_ip.map(|max| *max), Some(3));
    assert!(config
        .to_yaml()
        .contains("\nlimits:\n  connections: 5\n  per_ip: 3\n"));
    assert_mistakes(
        &format!("{}\nlimits: {{connections: 6}}", server("  max_connections: 5")),
        &[":3:3: server.max_connections: is the former name of limits.connections, which is also there; keep limits.connections"],
    );
    let error = parse(&format!("{}\nlimits: 3", server("  max_connections: 5")));
    let error = error.expect_err("no section").to_string();
    assert!(
        error.contains("limits: is a number, not a section"),
        "{error}"
    );
}

#[test]
fn words_and_numbers_are_those_of_yaml_1_2() {
    // `no` is not `false`: the region keeps its name.
    let norway = good(&prefixes(&["/"]).replace("region: r", "region: no"));
    assert_eq!(&*norway.buckets[0].region, "no");
    assert_mistakes(
        &disk("    enabled: no"),
        &[":10:14: cache.disk.enabled: is a string, not true or false; "],
    );
    // Octal numbers have a prefix; digits after a zero are text.
    assert_eq!(*good(&server("  threads: 0o10")).server.threads, 8);
    assert_eq!(*good(&server("  threads: 0x10")).server.threads, 16);
    assert_mistakes(
        &server("  threads: 010"),
        &[":3:12: server.threads: is a string, not a number; "],
    );
    let size = good(&disk("    max_size_gb: 4.8e-2")).cache.disk;
    assert_eq!(size.max_size_bytes(), 48_000_000);
    assert_eq!(*good(&server("  threads: !!int '3'")).server.threads, 3);
    assert_mistakes(
        &server("  threads: !!str 3"),
        &[":3:18: server.threads: is a string, not a number; "],
    );
}

#[test]
fn aliases_stand_for_values_but_not_for_many() {
    let config = good(&format!(
        "server: {{address: '127.0.0.1:0', write_timeout: &long 90s, grace_period: *long}}\n{BUCKETS}"
    ));
    assert_eq!(*config.server.grace_period, Duration::from_secs(90));

    let mut bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
    for (name, of) in "bcdefghi".chars().zip("abcdefgh".chars()) {
        let items = vec![format!("*{of}"); 9].join(", ");
        bomb += &format!("{name}: &{name} [{items}]\n");
    }
    let lines = mistakes(&bomb);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("including those of its aliases"),
        "{lines:?}"
    );

    // Each alias adds a level of nesting.
    let mut chain = "a0: &a0 1\n".to_owned();
    for depth in 1..2000 {
        let (open, close) = ("[".repeat(28), "]".repeat(28));
        chain += &format!("a{depth}: &a{depth} {open}*a{}{close}\n", depth - 1);
    }
    let lines = mistakes(&chain);
    assert!(
        lines[0].contains("including those of its aliases"),
        "{lines:?}"
    );

    let lines = mistakes("a: &a [*a]");
    assert!(
        lines[0].contains("refers to a value that contains it"),
        "{lines:?}"
    );
    let lines = mistakes("a: *b");
    assert!(
        lines[0].starts_with(":1:4: is not valid YAML: "),
        "{lines:?}"
    );
    // Merge keys belong to YAML 1.1.
    let merged = server("  tls: &tls {address: '127.0.0.1:1', certificate: Cargo.toml, key: Cargo.toml}\n  <<: *tls");
    assert_mistakes(&merged, &[":4:3: server.<<: is not a known key; "]);
}

#[test]
fn a_file_that_is_nested_too_deep_is_refused() {
    for text in [
        "[".repeat(10_000),
        "{".repeat(10_000),
        "- ".repeat(100_000),
        "? ".repeat(100_000),
        "a: [".repeat(100),
        format!("{}{}", "[".repeat(100), "]".repeat(100)),
        (0..200)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect(),
    ] {
        let lines = mistakes(&text);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(": is not valid YAML: "), "{lines:?}");
    }
}

#[test]
fn a_file_without_settings_says_so() {
    for text in [
        "",
        "\n",
        "# nothing\n# here\n",
        "---\n",
        "---\n...\n",
        "~",
        "\u{feff}",
    ] {
        let lines = mistakes(text);
        assert_eq!(
            lines,
            [": contains no settings; config.yaml.example shows what goes into it"]
        );
    }
    let lines = mistakes("hello");
    assert!(lines[0].starts_with(":1:1: contains no sections; allowed keys: server, buckets, "));
}

#[test]
fn one_document_is_read_with_or_without_its_marks() {
    let text = server("");
    good(&format!("---\n{text}...\n"));
    good(&format!("%YAML 1.2\n---\n{text}"));
    good(&format!("\u{feff}{text}"));
    good(&text.replace('\n', "\r\n"));
    assert_mistakes(
        &format!("{text}---\n{text}"),
        &[":8:1: is not valid YAML: a second document begins here; keep one document; "],
    );
}

#[test]
fn a_list_or_section_in_brackets_may_go_on_anywhere() {
    // libyaml accepts it.
    for text in [
        "server: {\n  address: '127.0.0.1:0',\n  threads: 3\n}\n",
        "server: {address: '127.0.0.1:0', threads:\n3}\n",
        "server:\n  {\n  address: '127.0.0.1:0', threads: 3\n}\n",
    ] {
        let config = good(&format!(
            "{text}{BUCKETS}cache: {{\ndisk: {{\n  path: c\n}}\n}}\n"
        ));
        assert_eq!(*config.server.threads, 3, "{text}");
        assert!(config.cache.disk.enabled);
    }
}

#[test]
fn a_tab_for_indentation_is_refused_where_it_stands() {
    let lines = mistakes("server:\n\taddress: 127.0.0.1:0\n");
    assert!(lines[0].starts_with(":2:"), "{lines:?}");
    assert!(lines[0].contains(": is not valid YAML: "), "{lines:?}");
}

#[test]
fn files_that_are_no_text_or_too_large_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    let load = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let said = Config::load(&file).unwrap_err().to_string();
        said.replacen(&file.display().to_string(), "", 1)
    };
    let said = load(b"server:\n  address: gr\xfc\xdfe\n");
    assert!(said.starts_with(":2:14: is not UTF-8 here; "), "{said}");
    // UTF-16, as some editors save it.
    let said = load(b"\xff\xfes\0e\0r\0v\0e\0r\0:\0");
    assert!(said.starts_with(":1:1: is not UTF-8 here; "), "{said}");
    let said = load(&vec![b'#'; (1 << 20) + 1]);
    assert!(said.starts_with(": is larger than 1 MiB; "), "{said}");
    let said = load(&vec![b'#'; 1 << 20]);
    assert!(said.starts_with(": contains no settings; "), "{said}");

    let said = Config::load(Path::new("/dev/zero"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("is larger than 1 MiB"), "{said}");
    let said = Config::load(folder.path()).unwrap_err().to_string();
    assert!(said.contains("cannot be read: "), "{said}");
}

#[test]
fn the_largest_files_are_read_in_seconds() {
    let started = std::time::Instant::now();
    for text in [
        (0..60_000)
            .map(|n| format!("key{n}: {n}\n"))
            .collect::<String>(),
        format!(
            "server: {{{}}}",
            (0..60_000)
                .map(|n| format!("k{n}: 1, "))
                .collect::<String>()
        ),
        format!("a: {}", "word ".repeat(200_000)),
        format!("a: \"{}", "\\n".repeat(500_000)),
        format!("a: {}", "\n\n".repeat(500_000)),
        format!("a: [{}]", "&a 1, *a, ".repeat(40_000)),
        "&a ".repeat(300_000),
        "!a ".repeat(300_000),
        "%a\n".repeat(300_000),
        "- \n".repeat(40_000),
        "? a\n".repeat(40_000),
        "a: |\n".repeat(100_000),
        " ".repeat(1 << 20),
        format!("{}a", "\n ".repeat(500_000)),
        "---\n".repeat(250_000),
    ] {
        assert!(parse(&text[..text.len().min(1 << 20)]).is_err());
    }
    // It would take hours if any step took quadratic time.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(300), "{took:?}");
}

#[test]
fn a_secret_in_a_wrong_place_is_not_repeated() {
    let aws = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    for text in [
        // In place of another value, or beside it.
        bucket("    secret_key: hunter2hunter2\n    access_key: k\n    endpoint: hunter2hunter2"),
        bucket("    secret_key: hunter2hunter2\n    access_key: k\n    hunter2hunter2: 1"),
        bucket("    secret_key: ${SECRET}\n    access_key: k\n    endpoint: ${SECRET}"),
        prefixes(&["/a"]).replace(
            "region: r",
            "region: hunter2_, secret_key: hunter2_, access_key: k",
        ),
        prefixes(&["/a"]).replace("region: r", "region: hunter2_, secretkey: hunter2_"),
        prefixes(&["/a"]).replace(
            "region: r",
            "region: '${SECRET}', access_key: '${SECRET}', secret_key: '${SECRET}'",
        ),
        prefixes(&["/a"]).replace(
            "region: r",
            "region: 'hunter2:{[#\"''\\', secret_key: '${SECRET}', access_key: k",
        ),
        one_bucket_of(aws),
        server(&format!("  {aws}: 1")),
        // A space is missing, or a quotation mark, or the indentation is wrong.
        bucket("    secret_key:hunter2"),
        bucket("    secret_key=hunter2: x"),
        prefixes(&["/a"]).replace("region: r", "secret_key:hunter2, region: r"),
        bucket("    secret_key: \"hunter2"),
        bucket("    secret_key: 'hunter2"),
        bucket("    secret_key: @hunter2"),
        bucket("    secret_key: *hunter2"),
        bucket("    secret_key: &hunter2"),
        bucket("    secret_key: !hunter2 x"),
        bucket("    secret_key: !!hunter2 x"),
        bucket("    secret_key: !!int hunter2"),
        bucket("    secret_key: hunter2: x"),
        bucket("    secret_key: |hunter2"),
        bucket("    secret_key: \"\\hunter2\""),
        bucket("    secret_key: {hunter2: hunter2}"),
        bucket("    secret_key: [hunter2"),
        bucket("   secret_key: hunter2"),
        bucket("\tsecret_key: hunter2"),
        bucket("    secret_key: hunter2\n    secret_key: hunter2"),
        bucket("    secret_key: ${hunter2-x}"),
        bucket("    ? [hunter2]\n    : x"),
        // In a section of another name.
        format!("{SERVER}{BUCKETS}aws: {{secret_access_key: hunter2}}"),
        format!("{SERVER}{BUCKETS}hunter2"),
    ] {
        let Err(error) = parse(&text) else {
            panic!("accepted:\n{text}");
        };
        for said in [error.to_string(), format!("{error:?}")] {
            assert!(
                !said.contains("hunter2") && !said.contains(aws),
                "{said}\n{text}"
            );
        }
    }
}

fn limits(keys: &str) -> String {
    format!("{}\nlimits: {{{keys}}}", server(""))
}

fn one_bucket_of(name: &str) -> String {
    format!("{SERVER}buckets: [{{path_prefix: /a, bucket: {name}, region: r}}]")
}

#[test]
fn what_is_printed_is_the_same_configuration() {
    let whole = "\
server:
  address: '[::1]:8080'
  threads: 3
  write_timeout: 1500ms
  keepalive_timeout: 0
  upgrade_sock: 'a$${b}c \"d\" #e: f\\g'
  max_connections: 7
  trusted_proxies: [192.0.2.1, 10.0.0.0/8, '2001:db8::/32']
  proxy_protocol: [192.0.2.2]
  tls: {address: '0.0.0.0:443', certificate: Cargo.toml, key: Cargo.toml, handshake_timeout: 0s}
buckets:
  - {path_prefix: /a/, bucket: '123', region: 'no', endpoint: 'HTTPS://S3.Example:443/'}
  - {path_prefix: /b, bucket: abc, region: r, access_key: ${SECRET}, secret_key: ${SECRET}, session_token: a}
cache:
  default_ttl: 36h
  fill_without_readers: 0.1
  lock_age: 1ms
  range_fill: {max_size_gb: 0.048, client_mb_per_minute: 0.1}
  disk: {path: 'true', max_size_gb: 1e6, backend: uring, scrub_mb_per_second: 1.5, max_open_files: 3, sendfile: {enabled: false, threshold_bytes: 18446744073709551615}}
metrics: {address: '127.0.0.1:9090'}
admin: {address: '127.0.0.1:9091'}
access_log: {path: '-', format: combined, buffer_kib: 64}
";
    let whole = whole.replace("${SECRET}", "'${SECRET}'");
    for text in [
        whole.as_str(),
        &server(""),
        &disk("    enabled: false"),
        &disk("    max_size_gb: 0.001"),
    ] {
        let config = good(text);
        let again = good(&config.to_yaml());
        assert_eq!(again.to_yaml(), config.to_yaml());
        let of = |config: &Config| {
            let mut config = config.clone();
            config.source = Source::default();
            format!("{config:?}")
        };
        assert_eq!(of(&again), of(&config), "{}", config.to_yaml());
        assert!(!config.to_yaml().contains("hunter2"));
        let effective = good(&config.effective(9, 11).to_yaml());
        let open_files = effective.cache.disk.max_open_files;
        assert_eq!(*open_files, config.cache.disk.max_open_files.or(Some(11)));
        let connections = effective.limits.connections.map(|max| *max);
        assert_eq!(
            connections,
            config.limits.connections.map_or(Some(9), |max| Some(*max))
        );
        assert_eq!(effective.limits.per_ip.map(|max| *max), Some(64));
        assert!(effective.cache.range_fill.max_size_gb.is_some());
    }
    let odd = server(
        "  upgrade_sock: \"a\\x7fb\\x85c\\u2028d\\x01e\\ufefff\\uffffg\\U0010ffffh\\ti \\\"\"",
    );
    let config = good(&odd);
    let sock = "a\u{7f}b\u{85}c\u{2028}d\u{1}e\u{feff}f\u{ffff}g\u{10ffff}h\ti \"";
    assert_eq!(config.server.upgrade_sock.as_deref(), Some(Path::new(sock)));
    assert_eq!(
        good(&config.to_yaml()).server.upgrade_sock,
        config.server.upgrade_sock
    );
    let yaml = good(&whole).to_yaml();
    for line in [
        "  write_timeout: \"1500ms\"\n",
        "  keepalive_timeout: \"0\"\n",
        "  upgrade_sock: \"a$${b}c \\\"d\\\" #e: f\\\\g\"\n",
        "  - path_prefix: \"/a\"\n    bucket: \"123\"\n    region: \"no\"\n    endpoint: \"https://s3.example\"\n",
        "    secret_key: \"[redacted]\"\n    session_token: \"[redacted]\"\n",
        "  default_ttl: \"36h\"\n",
        "  lock_age: \"1s\"\n",
        "    max_size_gb: 0.048\n",
        "      threshold_bytes: 18446744073709551615\n",
    ] {
        assert!(yaml.contains(line), "no {line}in\n{yaml}\"");
    }
}

#[test]
fn a_mistake_that_shows_later_has_its_place_too() {
    let config = good("server: {address: '127.0.0.1:0', upgrade_sock: u}\nbuckets: [{path_prefix: /a, bucket: abc, region: r}]\ncache: {disk: {path: c}}");
    for (key, place) in [
        ("server.upgrade_sock", ":1:48"),
        ("cache.disk.path", ":3:22"),
        // A key that is left out has the position of its section.
        ("cache.disk.backend", ":3:9"),
        ("server.tls.key", ":1:1"),
        ("buckets[0].region", ":2:50"),
        ("admin.address", ""),
    ] {
        let said = config.mistake(key, "is wrong; mend it").to_string();
        assert_eq!(
            said,
            format!("conf/proxy.yaml{place}: {key}: is wrong; mend it")
        );
    }
}

#[test]
fn each_mode_of_auth_has_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("'{}'", path.display())
    };
    let key = test_support::TokenKey::es256();
    let set = file("set", &format!("{{\"keys\": [{}]}}", key.jwk("a")));
    let pem = file("pem", &key.public_pem());
    let secret = file("secret", &"s".repeat(32));
    let short = file("short", "hunter2");
    let parse = |more: &str| {
        let text = format!(
            "server: {{address: '127.0.0.1:0'}}\n\
             buckets: [{{path_prefix: /, bucket: abc, region: r, {more}}}]\n"
        );
        Config::parse(&text, Path::new("proxy.yaml"), &|_| None)
    };
    let client = "{access_key: KEY-OF-CLIENT, secret_key: hunter2}";
    for more in [
        "auth: none".to_owned(),
        format!("auth: sigv4, clients: [{client}]"),
        "auth: sigv4, clients: [{access_key: a, secret_key: b, session_token: c, key_prefixes: [d/]}]".to_owned(),
        format!("auth: jwt, jwt: {{jwks_file: {set}}}"),
        format!("auth: jwt, jwt: {{public_key_file: {pem}, issuers: [a], audiences: [b, c]}}"),
        format!("auth: jwt, jwt: {{hmac_key_file: {secret}, cookie: a, query: b_c, prefix_claim: 'd e'}}"),
    ] {
        let config = parse(&more).unwrap_or_else(|e| panic!("{more}: {e}"));
        let yaml = config.to_yaml();
        assert!(!yaml.contains("hunter2") && !yaml.contains("KEY-OF-CLIENT"), "{yaml}");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
    for (more, key, what) in [
        ("auth: sigv5".to_owned(), "auth", "sigv4"),
        (
            "auth: passthrough".to_owned(),
            "path_prefix",
            "not the path",
        ),
        ("auth: sigv4".to_owned(), "clients", "is missing"),
        (
            "auth: sigv4, clients: []".to_owned(),
            "clients",
            "is missing",
        ),
        (format!("clients: [{client}]"), "clients", "no effect"),
        (
            format!("auth: sigv4, clients: [{client}, {client}]"),
            "clients[1].access_key",
            "same",
        ),
        (
            "auth: sigv4, clients: [{access_key: a}]".to_owned(),
            "clients[0].secret_key",
            "missing",
        ),
        (
            "auth: sigv4, clients: [{access_key: a, secret_key: b, key_prefixes: []}]".to_owned(),
            "clients[0].key_prefixes",
            "empty",
        ),
        (
            "auth: sigv4, clients: [{access_key: a, secret_key: b, key_prefixes: [c]}]".to_owned(),
            "clients[0].key_prefixes[0]",
            "end in /",
        ),
        ("auth: jwt".to_owned(), "jwt", "is missing"),
        (
            "auth: jwt, jwt: {}".to_owned(),
            "jwt.jwks_file",
            "is missing",
        ),
        (format!("jwt: {{jwks_file: {set}}}"), "jwt", "no effect"),
        (
            format!("auth: jwt, jwt: {{jwks_file: {set}, hmac_key_file: {secret}}}"),
            "jwt.hmac_key_file",
            "beside",
        ),
        (
            format!("auth: jwt, jwt: {{jwks_file: {pem}}}"),
            "jwt.jwks_file",
            "is not JSON",
        ),
        (
            format!("auth: jwt, jwt: {{hmac_key_file: {pem}}}"),
            "jwt.hmac_key_file",
            "not a secret",
        ),
        (
            format!("auth: jwt, jwt: {{hmac_key_file: {short}}}"),
            "jwt.hmac_key_file",
            "32 bytes",
        ),
        (
            format!("auth: jwt, jwt: {{public_key_file: {secret}}}"),
            "jwt.public_key_file",
            "not a PEM file",
        ),
        (
            "auth: jwt, jwt: {public_key_file: /nonexistent}".to_owned(),
            "jwt.public_key_file",
            "cannot be read",
        ),
        (
            "auth: jwt, jwt: {public_key_file: /}".to_owned(),
            "jwt.public_key_file",
            "not a file",
        ),
        (
            format!("auth: jwt, jwt: {{jwks_file: {set}, cookie: 'a=b'}}"),
            "jwt.cookie",
            "name",
        ),
    ] {
        let error = parse(&more).expect_err(&more);
        let [mistake] = error.mistakes() else {
            panic!("{more}: {error}");
        };
        assert_eq!(
            mistake.key(),
            Some(&*format!("buckets[0].{key}")),
            "{mistake}"
        );
        assert!(mistake.to_string().contains(what), "{what}: {mistake}");
        assert!(!mistake.to_string().contains("hunter2"), "{mistake}");
    }
}
