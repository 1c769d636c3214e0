//! The Debian package: built by cargo-deb, installed in a clean Debian, removed again.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;
use tempfile::TempDir;
use test_support::skip;

use super::{file, installed, run, tool};
use crate::S3_PROXY;

/// The most that `systemd-analyze security` may complain, in tenths. Network access alone is 5.
const EXPOSURE: &str = "20";

/// A Debian without anything that the package does not ask for.
struct Debian {
    root: PathBuf,
}

// === impl Debian ===

impl Debian {
    /// Unpacks `tests/deploy/install`'s. None: it is missing, and not required.
    fn unpack(folder: &Path) -> Option<Self> {
        let archive = installed("debian.tar")?;
        if !geteuid().is_root() {
            skip("only root can install a package");
            return None;
        }
        let root = folder.join("root");
        fs::create_dir(&root).expect("a folder");
        run(Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-xf")
            .arg(archive));
        Some(Self { root })
    }

    fn dpkg(&self, action: &str, what: &Path) {
        let mut command = Command::new("dpkg");
        // Durability is of no use here.
        command
            .arg("--force-unsafe-io")
            .arg("--root")
            .arg(&self.root);
        run(command.arg(action).arg(what));
    }

    fn chroot(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(arguments);
        command
    }

    /// `systemd-analyze` of this machine, on this Debian. A key that it does not know is a warning,
    /// which its exit code does not tell.
    fn analyze(&self, analyze: &Path, arguments: &[&str]) {
        let mut command = Command::new(analyze);
        command.arg("--root").arg(&self.root);
        command.args(["--man=no", "--no-pager"]).args(arguments);
        let output = command.arg("s3-proxy.service").output();
        let output = output.expect("run systemd-analyze");
        let said = String::from_utf8_lossy(&output.stderr);
        let is_fine = output.status.success() && !said.contains("s3-proxy.service");
        assert!(is_fine, "{arguments:?}: {output:?}");
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// Builds the package as `make deb` does, but of the binary under test.
fn build(cargo_deb: &Path, folder: &Path) -> PathBuf {
    // In the folder that Cargo.toml names.
    run(Command::new(file("deploy/generate"))
        .arg(S3_PROXY)
        .arg(file("target/package")));
    let package = folder.join("s3-proxy.deb");
    run(Command::new(cargo_deb)
        .current_dir(file(""))
        .args([
            "--no-build",
            "--profile",
            "dev",
            "--fast",
            "--compress-system",
            "--locked",
            "--offline",
        ])
        .arg("--output")
        .arg(&package));
    package
}

#[test]
fn the_debian_package_is_installed_checked_and_removed() {
    let (Some(cargo_deb), Some(analyze)) = (tool("cargo-deb"), tool("systemd-analyze")) else {
        return;
    };
    let folder = TempDir::new().expect("a folder");
    let Some(debian) = Debian::unpack(folder.path()) else {
        return;
    };
    let package = build(&cargo_deb, folder.path());

    // The units of systemd itself, on which the package does not depend.
    let units = debian.path("usr/lib/systemd");
    fs::create_dir_all(&units).expect("a folder");
    run(Command::new("cp")
        .args(["-a", "/usr/lib/systemd/system"])
        .arg(&units));

    // Fails where the package does not name a library that it needs.
    debian.dpkg("--install", &package);
    let secrets = fs::metadata(debian.path("etc/s3-proxy/secrets.env")).expect("secrets.env");
    assert_eq!((secrets.mode() & 0o777, secrets.uid()), (0o600, 0));
    for path in [
        "usr/share/man/man1/s3-proxy-run.1.gz",
        "usr/share/bash-completion/completions/s3-proxy",
        "usr/share/zsh/vendor-completions/_s3-proxy",
        "usr/share/fish/vendor_completions.d/s3-proxy.fish",
        "usr/share/doc/s3-proxy/config.yaml.example",
        "usr/share/doc/s3-proxy/copyright",
    ] {
        assert!(debian.path(path).exists(), "{path}");
    }
    // The operator names the bucket first.
    assert!(!debian
        .path("etc/systemd/system/multi-user.target.wants/s3-proxy.service")
        .exists());

    // As the unit does.
    fs::create_dir_all(debian.path("var/cache/s3-proxy")).expect("CacheDirectory");
    let config = "/etc/s3-proxy/config.yaml";
    let checked = run(&mut debian.chroot(&["s3-proxy", "check", "--config", config]));
    assert_eq!(checked, format!("{config}: ok\n"));
    debian.analyze(&analyze, &["verify"]);
    let threshold = format!("--threshold={EXPOSURE}");
    debian.analyze(&analyze, &["security", "--offline=yes", &threshold]);

    debian.dpkg("--purge", Path::new("s3-proxy"));
    for path in ["usr/bin/s3-proxy", "etc/s3-proxy"] {
        assert!(!debian.path(path).exists(), "{path} is left");
    }
}
