//! Error messages for a wrong configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::S3_PROXY;
use tempfile::TempDir;
use test_support::{pem, Authority, SelfSigned};

const GOOD: &str = "\
server:
  address: 127.0.0.1:0
buckets:
  - path_prefix: /assets
    bucket: my-bucket
    region: us-east-1
    endpoint: http://127.0.0.1:9000
cache:
  disk:
    path: cache
";

#[test]
fn a_good_configuration_checks_out_and_nothing_is_started() {
    let file = ConfigFile::new(GOOD);
    let output = file.s3_proxy("check");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, format!("{}: ok\n", file.path().display()));
    assert_eq!(fs::read_dir(file.dir.path()).expect("list").count(), 1);
}

#[test]
fn the_example_is_a_good_configuration() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.yaml.example");
    let output = Command::new(S3_PROXY)
        .args(["check", "--config", example])
        .env("AWS_ACCESS_KEY_ID", "an-access-key")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-key")
        .output()
        .expect("run s3-proxy");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn an_unknown_key_is_named_with_the_allowed_ones() {
    ConfigFile::new(&GOOD.replace("    path:", "    size_gb: 1\n    path:")).expect_refused(
        "size_gb: 1",
        "cache.disk.size_gb",
        &["not a known key", "max_size_gb"],
    );
}

#[test]
fn a_missing_variable_is_named_with_how_to_set_it() {
    let keys = "    access_key: ${S3_PROXY_TEST_UNSET}\n    secret_key: x\ncache:";
    ConfigFile::new(&GOOD.replace("cache:", keys)).expect_refused(
        "${S3_PROXY_TEST_UNSET}",
        "buckets[0].access_key",
        &[
            "environment variable S3_PROXY_TEST_UNSET",
            "export S3_PROXY_TEST_UNSET=",
        ],
    );
}

#[test]
fn overlapping_prefixes_are_named_both() {
    let second = "  - {path_prefix: /assets/images, bucket: other, region: us-east-1}\ncache:";
    ConfigFile::new(&GOOD.replace("cache:", second)).expect_refused(
        "/assets/images",
        "buckets[1].path_prefix",
        &["overlaps with buckets[0].path_prefix"],
    );
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_what_may_stand_there() {
    ConfigFile::new(&GOOD.replace("    path:", "    max_size_gb: large\n    path:"))
        .expect_refused(
            "large",
            "cache.disk.max_size_gb",
            &["is a string, not a number"],
        );
    ConfigFile::new(&GOOD.replace("  address:", "  write_timeout: 60\n  address:")).expect_refused(
        "60\n",
        "server.write_timeout",
        &["60 has no unit", "500ms"],
    );
}

#[test]
fn a_value_that_is_none_of_the_allowed_ones_is_named_with_them() {
    let disk =
        |line: &str| ConfigFile::new(&GOOD.replace("    path:", &format!("    {line}\n    path:")));
    disk("backend: io_uring").expect_refused(
        "io_uring",
        "cache.disk.backend",
        &["is not a backend", "auto, tokio or uring"],
    );
    disk("scrub_mb_per_second: 10001").expect_refused(
        "10001",
        "cache.disk.scrub_mb_per_second",
        &["10001 is out of range", "from 0 to 10000"],
    );
    ConfigFile::new(&GOOD.replace("cache:", "cache:\n  min_uses: 0")).expect_refused(
        "0\n  disk",
        "cache.min_uses",
        &["0 is out of range", "from 1 to 255"],
    );
}

#[test]
fn two_listeners_on_one_address_are_named_both() {
    let good = GOOD.replace("127.0.0.1:0", "127.0.0.1:8080");
    ConfigFile::new(&format!("{good}admin:\n  address: 0.0.0.0:8080\n")).expect_refused(
        "0.0.0.0:8080",
        "admin.address",
        &["conflicts with server.address", "port of its own"],
    );
}

#[test]
fn a_certificate_and_a_key_that_do_not_fit_are_named_both() {
    let [one, two] = [(); 2].map(|()| TempDir::new().expect("make a directory"));
    let (fits, other) = (
        SelfSigned::write_to(one.path()),
        SelfSigned::write_to(two.path()),
    );
    let file = with_tls(&fits.certificate, &fits.key);
    let output = file.s3_proxy("check");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");

    let file = |name: &str, content: &str| {
        let path = one.path().join(name);
        fs::write(&path, content).expect("write a file");
        path
    };
    let garbage = pem("CERTIFICATE", b"garbage");
    let garbage = file("garbage.pem", &garbage);
    let text = file("text.pem", "no PEM at all");
    let half = file("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA");
    let encrypted = file("encrypted.key", &pem("ENCRYPTED PRIVATE KEY", b"a secret"));
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
                  DEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let legacy = file("legacy.key", legacy);
    let nonsense = file("nonsense.key", &pem("PRIVATE KEY", b"nonsense"));
    let without = "openssl pkey -in KEY";
    for (certificate, key, name, why) in [
        (&fits.certificate, &other.key, "key", "its own private key"),
        (
            &fits.certificate,
            &fits.certificate,
            "key",
            "no private key",
        ),
        (&fits.certificate, &text, "key", "no private key"),
        (&fits.certificate, &encrypted, "key", without),
        (&fits.certificate, &legacy, "key", without),
        (&fits.certificate, &nonsense, "key", "cannot be used"),
        (&fits.key, &fits.key, "certificate", "holds no certificate"),
        (&garbage, &fits.key, "certificate", "is no certificate"),
        (&text, &fits.key, "certificate", "the certificate first"),
        (&half, &fits.key, "certificate", "is not PEM"),
    ] {
        let wrong = if name == "key" { key } else { certificate };
        let wrong = wrong.display().to_string();
        let place = format!("'{wrong}', key:");
        let place = match name {
            "key" => format!("'{wrong}'}}"),
            _ => place,
        };
        with_tls(certificate, key).expect_refused(
            &place,
            &format!("server.tls.{name}"),
            &[&wrong, why],
        );
    }
}

#[test]
fn further_certificates_and_authorities_of_clients_are_checked_too() {
    let dir = TempDir::new().expect("make a directory");
    let [default, nameless] = ["default", "nameless"].map(|name| {
        let names = if name == "default" {
            &["localhost"][..]
        } else {
            &[]
        };
        let paths = Authority::new("of servers")
            .issue(names)
            .write_to(dir.path(), name);
        [paths.0, paths.1].map(|path| path.display().to_string())
    });
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").expect("write a file");
    let empty = empty.display().to_string();
    let with = |further: &str| {
        let tls = format!(
            "  tls: {{address: '127.0.0.1:0', certificate: '{}', key: '{}', {further}}}\nbuckets:",
            default[0], default[1]
        );
        ConfigFile::new(&GOOD.replace("buckets:", &tls))
    };
    let pair = |certificate: &str, key: &str| {
        format!("certificates: [{{certificate: '{certificate}', key: '{key}'}}]")
    };
    with(&pair(&nameless[0], &nameless[1])).expect_refused(
        &format!("'{}'", nameless[0]),
        "server.tls.certificates[0].certificate",
        &["has no DNS name", "subjectAltName"],
    );
    with(&pair(&default[0], &nameless[1])).expect_refused(
        &format!("'{}'", nameless[1]),
        "server.tls.certificates[0].key",
        &["is not the key", "its own private key"],
    );
    with(&format!("client_ca: '{empty}'")).expect_refused(
        &format!("'{empty}'"),
        "server.tls.client_ca",
        &["holds no certificate", "authorities"],
    );
    with("client_auth: optional").expect_refused(
        "client_auth",
        "server.tls.client_auth",
        &["no effect without client_ca"],
    );
    with("redirect_port: 443").expect_refused(
        "redirect_port",
        "server.tls.redirect_port",
        &["redirect: true"],
    );
    with("min_version: 1.1").expect_refused(
        "1.1",
        "server.tls.min_version",
        &["not a supported version", "1.2 or 1.3"],
    );
    for accepted in ["min_version: 1.3", "min_version: '1.2'", "hsts: 365d"] {
        let output = with(accepted).s3_proxy("check");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn a_certificate_that_has_expired_is_only_warned_of() {
    let dir = TempDir::new().expect("make a directory");
    let expired = SelfSigned::write_expired_to(dir.path());
    let output = with_tls(&expired.certificate, &expired.key).s3_proxy("check");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the certificate has expired on"), "{said}");
    assert!(
        said.contains(&expired.certificate.display().to_string()),
        "{said}"
    );
}

#[test]
fn a_folder_that_can_not_be_used_is_named() {
    let file = ConfigFile::new(&GOOD.replace("path: cache", "path: proxy.yaml/cache"));
    let path = "proxy.yaml/cache";
    file.expect_refused(path, "cache.disk.path", &["proxy.yaml", "is not a folder"]);

    let sock = |path: &str| {
        ConfigFile::new(&GOOD.replace("buckets:", &format!("  upgrade_sock: {path}\nbuckets:")))
    };
    let (nowhere, file) = ("nowhere/upgrade.sock", "proxy.yaml");
    let key = "server.upgrade_sock";
    sock(nowhere).expect_refused(nowhere, key, &["there is no folder nowhere"]);
    sock(file).expect_refused(file, key, &["is not a socket"]);
    let control = GOOD.replace("buckets:", &format!("  control_sock: {nowhere}\nbuckets:"));
    let control = ConfigFile::new(&control);
    let key_of_control = "server.control_sock";
    control.expect_refused(nowhere, key_of_control, &["there is no folder nowhere"]);

    // Both are named, though each shows only on this machine.
    let both = GOOD.replace("buckets:", &format!("  upgrade_sock: {nowhere}\nbuckets:"));
    let both = both.replace("path: cache", "path: proxy.yaml/cache");
    ConfigFile::new(&both).expect_all_refused(&[
        (nowhere, key, &["there is no folder nowhere"]),
        (path, "cache.disk.path", &["is not a folder"]),
    ]);
}

#[test]
fn an_upgrade_without_a_place_for_its_socket_is_refused() {
    let file = ConfigFile::new(&GOOD.replace("  disk:\n    path: cache", "  default_ttl: 1h"));
    let output = Command::new(S3_PROXY)
        .args(["run", "--upgrade", "--config"])
        .arg(file.path())
        .env_remove("RUNTIME_DIRECTORY")
        .output()
        .expect("run s3-proxy");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("server.upgrade_sock: is missing; "), "{said}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let file = ConfigFile::new(GOOD);
    fs::remove_file(file.path()).expect("remove it");
    file.expect_refused("", "cannot be read", &[]);
}

#[test]
fn all_mistakes_are_named_in_the_order_of_the_file() {
    let yaml = GOOD
        .replace("buckets:", "  threads: many\nbuckets:")
        .replace(
            "cache:",
            "  - {path_prefix: /assets/b, bucket: other, region: us-east-1}\ncache:",
        )
        .replace("    path:", "    size_gb: 1\n    path:");
    ConfigFile::new(&yaml).expect_all_refused(&[
        (
            "many",
            "server.threads: is a string, not a number; write a whole number",
            &[],
        ),
        (
            "/assets/b",
            "buckets[1].path_prefix: overlaps with buckets[0]",
            &[],
        ),
        (
            "size_gb: 1",
            "cache.disk.size_gb: is not a known key; allowed keys here: ",
            &[],
        ),
    ]);
}

#[test]
fn the_effective_configuration_is_printed_without_secrets() {
    let keys = "    access_key: an-access-key\n    secret_key: ${S3_PROXY_TEST_KEY}\n    \
                session_token: a-token\ncache:";
    let file = ConfigFile::new(&GOOD.replace("cache:", keys));
    let print = |file: &ConfigFile| {
        let output = Command::new(S3_PROXY)
            .args(["check", "--print", "--config"])
            .arg(file.path())
            .current_dir(file.dir.path())
            .env("S3_PROXY_TEST_KEY", "a-secret-key")
            .output()
            .expect("run s3-proxy");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).expect("YAML in UTF-8")
    };
    let printed = print(&file);
    for secret in ["an-access-key", "a-secret-key", "a-token"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    for line in [
        "  keepalive_timeout: \"75s\"\n",
        "  upgrade_sock: \"cache/upgrade.sock\"\n",
        "  control_sock: \"cache/control.sock\"\n",
        "    secret_key: \"[redacted]\"\n",
        "    max_in_flight_gb: 1.25\n",
        "      threshold_bytes: 16384\n",
    ] {
        assert!(printed.contains(line), "no {line:?} in\n{printed}");
    }
    assert!(printed.contains("  connections: "), "{printed}");

    assert_eq!(print(&ConfigFile::new(&printed)), printed);
    assert_eq!(fs::read_dir(file.dir.path()).expect("list").count(), 1);
}

#[test]
fn a_secret_is_not_repeated() {
    let keys = "    access_key: key\n    secret_key: top secret\ncache:";
    let file = ConfigFile::new(&GOOD.replace("cache:", keys));
    file.expect_refused("top secret", "buckets[0].secret_key", &[]);
    let output = file.s3_proxy("check");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("top"));
}

/// A configuration with a listener for HTTPS.
fn with_tls(certificate: &Path, key: &Path) -> ConfigFile {
    let tls = format!(
        "  tls: {{address: '127.0.0.1:0', certificate: '{}', key: '{}'}}\nbuckets:",
        certificate.display(),
        key.display()
    );
    ConfigFile::new(&GOOD.replace("buckets:", &tls))
}

/// A configuration file in a directory of its own.
struct ConfigFile {
    dir: TempDir,
}

// === impl ConfigFile ===

impl ConfigFile {
    fn new(yaml: &str) -> Self {
        let dir = TempDir::new().expect("make a directory");
        let file = Self { dir };
        fs::write(file.path(), yaml).expect("write the configuration");
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("proxy.yaml")
    }

    fn s3_proxy(&self, command: &str) -> Output {
        Command::new(S3_PROXY)
            .arg(command)
            .arg("--config")
            .arg(self.path())
            .current_dir(self.dir.path())
            .output()
            .expect("run s3-proxy")
    }

    /// The line and the column of a text in the file, from 1; nothing for no text.
    fn place(&self, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        let yaml = fs::read_to_string(self.path()).expect("read the configuration");
        let before = &yaml[..yaml.find(text).expect("a text of the file")];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |end| end + 1) + 1;
        format!(":{line}:{column}")
    }

    /// `check` and `run` both exit with 2 and say, in one line, the file, the place of
    /// `text` in it, the key and everything in `words`.
    fn expect_refused(&self, text: &str, key: &str, words: &[&str]) {
        self.expect_all_refused(&[(text, key, words)]);
    }

    /// As [`expect_refused`](Self::expect_refused), with a line for each mistake.
    fn expect_all_refused(&self, mistakes: &[(&str, &str, &[&str])]) {
        for command in ["check", "run"] {
            let output = self.s3_proxy(command);
            assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
            assert!(output.stdout.is_empty(), "{command}: {output:?}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(said.lines().count(), mistakes.len(), "{command}: {said}");
            for (line, (text, key, words)) in said.lines().zip(mistakes) {
                let place = self.place(text);
                let start = format!("s3-proxy: {}{place}: {key}", self.path().display());
                assert!(line.starts_with(&start), "{command}: {said}\n  for {start}");
                for word in *words {
                    assert!(line.contains(word), "{command}: {said}");
                }
            }
        }
    }
}
