//! A release: its archive, and the workflow that publishes it.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use super::{file, list, read, run, yaml};

/// In place of the binary, which takes seconds to pack.
const BINARY: &str = r#"#!/bin/sh
case $1 in
man) mkdir -p "$2" && echo page >"$2/s3-proxy.1" ;;
*) echo "$1 $2" ;;
esac
"#;

#[test]
fn the_archive_has_what_a_user_needs_and_is_the_same_each_time() {
    let folder = TempDir::new().expect("a folder");
    let binary = folder.path().join("binary");
    fs::write(&binary, BINARY).expect("write a script");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let [first, second] = ["first", "second"].map(|name| {
        let folder = folder.path().join(name);
        let mut pack = Command::new(file("deploy/archive"));
        let path = run(pack.arg(&binary).arg("some-target").arg(folder));
        path.trim().to_owned()
    });
    assert!(fs::read(&first).expect("an archive") == fs::read(second).expect("an archive"));

    let name = format!("s3-proxy-{}-some-target", env!("CARGO_PKG_VERSION"));
    assert!(first.ends_with(&format!("/{name}.tar.gz")), "{first}");
    let listed = run(Command::new("tar").arg("-tzf").arg(&first));
    for path in [
        "s3-proxy",
        "man/s3-proxy.1",
        "completions/_s3-proxy",
        "docs/operations.md",
        "deploy/systemd/s3-proxy.service",
        "deploy/debian/logrotate",
        "LICENSE",
    ] {
        let line = format!("{name}/{path}");
        assert!(listed.lines().any(|it| it == line), "{line}: {listed}");
    }
}

#[test]
fn the_release_workflow_runs_what_there_is() {
    let text = read(".github/workflows/release.yml");
    let workflow = yaml(&text);
    let jobs = workflow["jobs"].as_object().expect("jobs");
    for job in jobs.values() {
        let needs = job
            .get("needs")
            .cloned()
            .unwrap_or(Value::Array(Vec::new()));
        let needs = needs.as_array().cloned().unwrap_or(vec![needs]);
        for needed in needs {
            let name = needed.as_str().expect("a name");
            assert!(jobs.contains_key(name), "{name}");
        }
    }
    let paths: Vec<_> = text
        .split_whitespace()
        .filter(|word| word.starts_with("deploy/"))
        .collect();
    assert_eq!(paths.len(), 5, "{paths:?}");
    for path in paths {
        assert!(file(path).exists(), "{path}");
    }
    // All that others can see waits for the tests.
    let called = jobs["checks"]["uses"].as_str().expect("a workflow");
    let checks = yaml(&read(called.strip_prefix("./").expect("a path")));
    for (name, job) in checks["jobs"].as_object().expect("jobs") {
        assert!(job["steps"].is_array(), "{name}");
    }
    for publisher in ["build", "image"] {
        assert_eq!(jobs[publisher]["needs"], "checks", "{publisher}");
    }
    assert!(list(&jobs["publish"]["needs"]).contains(&"image".into()));
    let attested = text.find("actions/attest-build-provenance@");
    for published in ["imagetools create", "helm push", "gh release create"] {
        assert!(attested < text.find(published), "{published}");
    }
    let makefile = read("Makefile");
    let targets: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- run: make "))
        .collect();
    assert_eq!(targets, ["deb"]);
    assert!(makefile.contains("\ndeb:"));

    // Files are released under the version that they name, and can be verified.
    for part in [
        "= \"v$version\"",
        "sha256sum",
        "cargo cyclonedx",
        "actions/attest-build-provenance@",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn the_notes_of_a_release_are_those_of_its_version() {
    let folder = TempDir::new().expect("a folder");
    let changelog = folder.path().join("CHANGELOG.md");
    let text = "# Changelog\n\n## [Unreleased]\n\n- later\n\n## [1.2.0] - 2026-01-02\n\n### Added\n\n- two\n\n\
                ## [1.1.0] - 2026-01-01\n\n- one\n";
    fs::write(&changelog, text).expect("write a file");
    let notes = |version: &str| {
        let mut notes = Command::new(file("deploy/notes"));
        notes.arg(version).arg(&changelog);
        notes.output().expect("run deploy/notes")
    };
    let printed = notes("1.2.0");
    assert!(printed.status.success(), "{printed:?}");
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert_eq!(printed.trim(), "### Added\n\n- two");
    // A version whose section was forgotten, and one that is the beginning of another.
    for version in ["1.3.0", "1.2"] {
        let refused = notes(version);
        assert!(!refused.status.success(), "{refused:?}");
    }
}
