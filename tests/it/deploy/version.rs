//! The version that `s3-proxy --version` prints.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use super::{file, run};
use crate::S3_PROXY;

#[test]
fn a_debug_build_says_so() {
    let version = env!("CARGO_PKG_VERSION");
    let printed = run(Command::new(S3_PROXY).arg("--version"));
    let profile = if cfg!(debug_assertions) { "debug" } else { "" };
    let expected = format!("s3-proxy {version} ({profile}");
    assert!(printed.starts_with(&expected), "{printed}");
}

#[test]
fn an_optimized_build_has_its_commit_with_and_without_git() {
    let work = TempDir::new().expect("a folder");
    let script = work.path().join("build-script");
    // The one that has compiled cargo's is in no documented place.
    run(Command::new("rustc")
        .args(["--edition", "2021", "-o"])
        .arg(&script)
        .arg(file("build.rs")));
    let version = |root: &Path, commit: &str| {
        let mut command = Command::new(&script);
        command.current_dir(root).env("CARGO_MANIFEST_DIR", root);
        command.env("CARGO_PKG_VERSION", "1.2.3");
        command.env("PROFILE", "release");
        command.env("S3_PROXY_COMMIT", commit);
        let said = run(&mut command);
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("cargo::rustc-env=S3_PROXY_VERSION="));
        line.expect("a version").to_owned()
    };
    let root = work.path().join("source");
    fs::create_dir(&root).expect("a folder");
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(&root).args(arguments);
        for (role, value) in [
            ("NAME", "a"),
            ("EMAIL", "a@example.com"),
            ("DATE", "2026-02-03T12:00Z"),
        ] {
            for who in ["AUTHOR", "COMMITTER"] {
                command.env(format!("GIT_{who}_{role}"), value);
            }
        }
        run(&mut command)
    };

    assert_eq!(version(&root, ""), "1.2.3");
    assert_eq!(version(&root, "abc 2026-01-01"), "1.2.3 (abc 2026-01-01)");

    git(&["init", "--quiet"]);
    fs::write(root.join("Cargo.toml"), "1").expect("write a file");
    git(&["add", "Cargo.toml"]);
    git(&["commit", "--quiet", "--message", "One"]);
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    let commit = format!("1.2.3 ({} 2026-02-03", commit.trim());
    assert_eq!(version(&root, ""), format!("{commit})"));
    fs::write(root.join("Cargo.toml"), "2").expect("write a file");
    assert_eq!(version(&root, ""), format!("{commit}, modified)"));
    git(&["checkout", "--quiet", "Cargo.toml"]);
    fs::write(root.join("notes"), "of no build").expect("write a file");
    assert_eq!(version(&root, ""), format!("{commit})"));
    for path in ["patches/api/new.patch", "vendor/pins/Cargo.toml"] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(&path, "new").expect("write a file");
        assert_eq!(
            version(&root, ""),
            format!("{commit}, modified)"),
            "{path:?}"
        );
        fs::remove_file(path).expect("remove a file");
    }

    let archive = root.join("archive");
    fs::create_dir(&archive).expect("a folder");
    assert_eq!(version(&archive, ""), "1.2.3");
}
