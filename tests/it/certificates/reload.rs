//! Certificates that are replaced while the proxy serves.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tempfile::TempDir;
use test_support::{eventually, Authority, Issued, Proxy};

use super::client::Client;
use super::{https, lines_with, origin};

const NEW: &str = "new connections use the certificates";
const KEPT: &str = "the certificates in use are kept";
const SIGHUP: &str = "SIGHUP: the configuration and the certificates are read again";

/// True if new connections get this certificate.
fn serves(proxy: &Proxy, issued: &Issued) -> bool {
    Client::any().certificate(proxy.https_addr(), "localhost") == issued.der
}

#[test]
fn a_new_certificate_is_served_after_sighup_and_no_connection_is_dropped() {
    let dir = TempDir::new().expect("make a directory");
    let authority = Authority::new("of servers");
    let (old, new) = (
        authority.issue(&["localhost"]),
        authority.issue(&["localhost"]),
    );
    let (certificate, key) = old.write_to(dir.path(), "server");
    let origin = origin();
    let proxy = https(&origin).tls_with(&certificate, &key).start();
    let client = Client::any();
    let mut open = client
        .connect(proxy.https_addr(), "localhost")
        .expect("a handshake");
    assert_eq!(open.get("/assets/1").expect("a response").0, 200);

    new.write_to(dir.path(), "server");
    proxy.signal(Signal::HUP);
    eventually("the new certificate is served", || serves(&proxy, &new));

    assert!(open.certificate() == old.der);
    assert_eq!(open.get("/assets/1").expect("a response").0, 200);
    proxy.expect_metric("tls_reloads_total", 1);
    assert_eq!(proxy.metric("tls_reload_failed"), 0);
    assert_eq!(lines_with(&proxy, NEW), 1);
    assert_eq!(lines_with(&proxy, "SIGHUP is ignored"), 0);
}

/// Makes a link point to `target` in one step, which `ln -sf` does not.
fn swap(link: &Path, target: &str) {
    let next = link.with_file_name("next");
    symlink(target, &next).expect("make a link");
    fs::rename(next, link).expect("replace the link");
}

/// As Kubernetes and certbot do: the path in the configuration leads through links.
#[test]
fn a_link_that_leads_to_another_certificate_is_noticed() {
    let dir = TempDir::new().expect("make a directory");
    let authority = Authority::new("of servers");
    let issued = [(); 2].map(|()| authority.issue(&["localhost"]));
    for (version, issued) in ["1", "2"].iter().zip(&issued) {
        let folder = dir.path().join(version);
        fs::create_dir(&folder).expect("make a directory");
        issued.write_to(&folder, "tls");
    }
    let data = dir.path().join("..data");
    swap(&data, "1");
    let paths = ["tls.pem", "tls.key"].map(|name| {
        let link = dir.path().join(name);
        symlink(format!("..data/{name}"), &link).expect("make a link");
        link
    });
    let origin = origin();
    let proxy = https(&origin).tls_with(&paths[0], &paths[1]).start();
    assert!(serves(&proxy, &issued[0]));

    swap(&data, "2");
    eventually("the new certificate is served", || {
        serves(&proxy, &issued[1])
    });
    assert_eq!(lines_with(&proxy, NEW), 1);
}

#[test]
fn what_cannot_be_used_leaves_the_old_certificate_in_use() {
    let dir = TempDir::new().expect("make a directory");
    let authority = Authority::new("of servers");
    let old = authority.issue(&["localhost"]);
    let (certificate, key) = old.write_to(dir.path(), "server");
    let origin = origin();
    let proxy = https(&origin).tls_with(&certificate, &key).start();
    let new = authority.issue(&["localhost"]);
    let half = new.chain[..300].to_owned();
    let problems = [
        (half.as_str(), "is not PEM"),
        ("", "holds no certificate"),
        (&new.chain, "is not the key of the first certificate"),
    ];
    for (number, (content, why)) in problems.into_iter().enumerate() {
        // In one step: the proxy looks at the file by itself too.
        let next = dir.path().join("next.pem");
        fs::write(&next, content).expect("write a certificate");
        fs::rename(&next, &certificate).expect("replace the certificate");
        proxy.signal(Signal::HUP);
        eventually("the signal is answered by the problem", || {
            let log = proxy.stderr();
            let answer = log.split(SIGHUP).nth(number + 1);
            answer.is_some_and(|answer| answer.contains(why))
        });
        proxy.expect_metric("tls_reload_failed", 1);
        assert!(serves(&proxy, &old), "{why}");
    }
    // If the proxy looked just when a file was replaced, it has logged that problem before the signal.
    let refused = lines_with(&proxy, KEPT);
    assert!((3..=6).contains(&refused), "{}", proxy.stderr());
    fs::remove_file(&certificate).expect("remove the certificate");
    eventually("the missing file is logged", || {
        lines_with(&proxy, "cannot be read") == 1
    });

    // Nobody sends a signal for what follows. As long as the certificate is missing, the new key
    // makes no difference.
    let (next, next_key) = new.write_to(dir.path(), "next");
    fs::rename(&next_key, &key).expect("replace the key");
    fs::rename(&next, &certificate).expect("replace the certificate");
    eventually("the new certificate is served", || serves(&proxy, &new));
    eventually("the metric is back to 0", || {
        proxy.metric("tls_reload_failed") == 0
    });
    assert_eq!(lines_with(&proxy, NEW), 1);
    // A line each, not one a look.
    assert_eq!(lines_with(&proxy, KEPT), refused + 1);
}

#[test]
fn the_expiry_of_each_certificate_is_a_metric_and_a_near_one_a_warning() {
    let dir = TempDir::new().expect("make a directory");
    let authority = Authority::new("of servers");
    let soon = authority.issue_for_days(&["localhost"], 3);
    let later = authority.issue_for_days(&["other.example"], 90);
    let (certificate, key) = soon.write_to(dir.path(), "server");
    let all = super::certificates(dir.path(), &[("other", &later)]);
    let origin = origin();
    let proxy = https(&origin)
        .tls_with(&certificate, &key)
        .tls_key("certificates", all)
        .start();
    let expiry = |file: &str, name: &str| {
        let file = dir.path().join(file).display().to_string();
        let labels = [("file", &*file), ("name", name)];
        let expiry = proxy
            .metrics()
            .sum_where("tls_certificate_expiry_timestamp_seconds", &labels);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
        (Duration::from_secs(expiry) - now).as_secs() / 3600
    };
    assert_eq!(expiry("server.pem", "localhost"), 3 * 24 - 1);
    assert_eq!(expiry("other.pem", "other.example"), 90 * 24 - 1);
    let warning = "server.pem: the certificate expires on";
    eventually("the log warns of one certificate", || {
        lines_with(&proxy, warning) > 0
    });
    assert_eq!(lines_with(&proxy, "other.pem"), 0);

    let renewed = authority.issue_for_days(&["renewed.example"], 90);
    renewed.write_to(dir.path(), "server");
    proxy.signal(Signal::HUP);
    eventually("the renewed certificate is served", || {
        serves(&proxy, &renewed)
    });
    assert_eq!(expiry("server.pem", "renewed.example"), 90 * 24 - 1);
    assert_eq!(lines_with(&proxy, warning), 1);
    let former = [("name", "localhost")];
    let metric = "tls_certificate_expiry_timestamp_seconds";
    assert_eq!(proxy.metrics().sum_where(metric, &former), 0);
}
