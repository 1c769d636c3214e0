//! Sets `cfg(io_uring)` where the io_uring backend is built: with the feature `uring`, on the
//! platforms that the crate io-uring supports. Cargo.toml names the same platforms.
//!
//! Sets `S3_PROXY_VERSION`, the text of `s3-proxy --version`: of an optimized binary, with the commit.

use std::env;
use std::path::Path;
use std::process::Command;

/// All that the binary is made of. `vendor/pingora` comes from the pins and the patches.
const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "build.rs",
    "patches",
    "src",
    "vendor/pins",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(io_uring)");
    let is = |variable, values: &[&str]| {
        env::var(variable).is_ok_and(|value| values.contains(&value.as_str()))
    };
    let architectures = ["x86_64", "aarch64", "riscv64", "loongarch64", "powerpc64"];
    if env::var_os("CARGO_FEATURE_URING").is_some()
        && is("CARGO_CFG_TARGET_OS", &["linux"])
        && is("CARGO_CFG_TARGET_ARCH", &architectures)
    {
        println!("cargo::rustc-cfg=io_uring");
    }

    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    // Debug builds omit the commit; otherwise each commit would recompile the crate.
    let commit = match is("PROFILE", &["release"]) {
        true => commit(),
        false => Some("debug".to_owned()),
    };
    let commit = commit.map(|commit| format!(" ({commit})"));
    println!(
        "cargo::rustc-env=S3_PROXY_VERSION={version}{}",
        commit.unwrap_or_default()
    );
}

/// The commit that is built: `S3_PROXY_COMMIT`, which a build without git may set, or the one that
/// is checked out, with its date. None: this is not a clone.
fn commit() -> Option<String> {
    println!("cargo::rerun-if-env-changed=S3_PROXY_COMMIT");
    if let Some(commit) = env::var("S3_PROXY_COMMIT").ok().filter(|it| !it.is_empty()) {
        return Some(commit);
    }
    let root = env::var("CARGO_MANIFEST_DIR").ok()?;
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(&root)
            .args(arguments)
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // A source archive may lie in somebody else's clone.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&root).canonicalize().ok()? {
        return None;
    }
    // It changes with each commit.
    let head = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for path in SOURCES.iter().chain([&&*head]) {
        println!("cargo::rerun-if-changed={path}");
    }
    let mut commit = git(&[
        "show",
        "--no-patch",
        "--format=%h %cs",
        "--abbrev=12",
        "HEAD",
    ])?;
    let changes = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    if !changes.is_empty() {
        commit += ", modified";
    }
    Some(commit)
}
