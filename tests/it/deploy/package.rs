//! The Debian package: built by cargo-deb, installed in a clean Debian, removed again.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{symlink, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{file, installed, is_root, read, run, tool};
use crate::S3_PROXY;

/// The most that `systemd-analyze security` may complain, in tenths. Network access alone is 5.
const EXPOSURE: &str = "20";

/// System calls that the fast paths make: without them, each takes a slower one, or none.
const FAST_PATHS: [&str; 12] = [
    "cachestat",
    "fallocate",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioprio_set",
    "openat2",
    "preadv2",
    "sendfile",
    "splice",
    "statx",
    "sync_file_range",
];

/// In place of the program by which maintainer scripts start and stop units.
const INVOKE: &str = "#!/bin/sh\necho \"$@\" >>/invoked\n";

/// A Debian without anything that the package does not ask for.
struct Debian {
    root: PathBuf,
}

// === impl Debian ===

impl Debian {
    /// Unpacks `tests/deploy/install`'s. None: it is missing, and not required.
    fn unpack(folder: &Path) -> Option<Self> {
        let archive = installed("debian.tar")?;
        if !is_root("installs a package") {
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

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(&path, text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        path
    }

    /// What maintainer scripts have done to units since the last call.
    fn invoked(&self) -> String {
        let path = self.path("invoked");
        let invoked = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, "").expect("write a file");
        invoked
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
    // As where systemd runs, but without it.
    debian.write("run/systemd/system/present", "");
    debian.write("usr/bin/deb-systemd-invoke", INVOKE);

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
        "etc/logrotate.d/s3-proxy",
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
    check_commands_of_operators(&debian);
    debian.analyze(&analyze, &["verify"]);
    let threshold = format!("--threshold={EXPOSURE}");
    debian.analyze(&analyze, &["security", "--offline=yes", &threshold]);

    // The operator chooses the time of a restart.
    debian.dpkg("--install", &package);
    assert_eq!(debian.invoked(), "");

    // As DynamicUser keeps it.
    fs::remove_dir_all(debian.path("var/cache/s3-proxy")).expect("remove a folder");
    let entry = debian.write("var/cache/private/s3-proxy/entry", "");
    debian.write("var/log/private/s3-proxy/access.log", "");
    let links = ["var/cache/s3-proxy", "var/log/s3-proxy"].map(|link| debian.path(link));
    for link in &links {
        symlink("private/s3-proxy", link).expect("a link");
    }
    debian.dpkg("--remove", Path::new("s3-proxy"));
    assert_eq!(debian.invoked(), "stop s3-proxy.service\n");
    assert!(entry.exists());
    debian.dpkg("--purge", Path::new("s3-proxy"));
    for path in [
        "usr/bin/s3-proxy",
        "etc/s3-proxy",
        "etc/logrotate.d/s3-proxy",
        "var/cache/private/s3-proxy",
        "var/log/private/s3-proxy",
    ] {
        assert!(!debian.path(path).exists(), "{path} is left");
    }
    assert!(!links.iter().any(|link| link.is_symlink()));
}

/// Runs what docs/operations.md has operators run, with a configuration that refers to secrets.
fn check_commands_of_operators(debian: &Debian) {
    let config = read("deploy/debian/config.yaml");
    let signed = config.replace("    # access_key", "    access_key");
    let signed = signed.replace("    # secret_key", "    secret_key");
    assert_eq!(signed.matches("\n    access_key: ${").count(), 1);
    debian.write("etc/s3-proxy/config.yaml", &signed);
    debian.write(
        "etc/s3-proxy/secrets.env",
        "ACCESS_KEY=a+b/c=\nSECRET_KEY='a$b&c'\n",
    );
    let document = read("docs/operations.md");
    let (_, commands) = document.split_once("\n```sh\n").expect("commands");
    let (commands, _) = commands.split_once("```").expect("their end");
    let (define, commands) = commands.split_once('\n').expect("a definition");
    assert_eq!(commands.lines().count(), 5);
    let said = |command: &str| {
        let output = debian.chroot(&["sh", "-c", command]).output();
        let output = output.expect("run a command");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    // There is neither a proxy nor a cache, so a command may fail, but not for lack of a variable.
    let names_variable = |said: &str| said.contains("ACCESS_KEY");
    for command in commands.lines() {
        let (_, plain) = command.split_once(' ').expect("a command");
        let plain = format!("s3-proxy {plain} --config /etc/s3-proxy/config.yaml");
        assert!(names_variable(&said(&plain)), "{plain}");
        let said = said(&format!("{define}\n{command}\n"));
        assert!(
            !said.is_empty() && !names_variable(&said),
            "{command}: {said}"
        );
    }
    debian.write("etc/s3-proxy/config.yaml", &config);
    debian.write(
        "etc/s3-proxy/secrets.env",
        &read("deploy/debian/secrets.env"),
    );
}

/// The system calls of a set, and of the sets in it, as `systemd-analyze` lists them.
fn system_calls(analyze: &Path, set: &str) -> BTreeSet<String> {
    let mut command = Command::new(analyze);
    let listed = run(command.args(["--no-pager", "syscall-filter", set]));
    let names = listed.lines().skip(1).map(str::trim);
    let names = names.filter(|name| !name.is_empty() && !name.starts_with('#'));
    names
        .flat_map(|name| match name.starts_with('@') {
            true => system_calls(analyze, name),
            false => [name.to_owned()].into(),
        })
        .collect()
}

#[test]
fn the_access_log_of_the_package_is_in_the_folder_of_the_unit_and_is_rotated() {
    let unit = read("deploy/systemd/s3-proxy.service");
    let folder = unit
        .lines()
        .find_map(|line| line.strip_prefix("LogsDirectory="))
        .expect("a folder");
    let log = format!("/var/log/{folder}/access.log");
    assert!(read("deploy/debian/logrotate").contains(&format!("\n{log} {{\n")));
    for file in ["deploy/debian/config.yaml", "config.yaml.example"] {
        let text = read(file);
        assert!(text.contains(&format!("path: {log}")), "{file}");
    }
}

#[test]
fn the_unit_allows_the_system_calls_of_the_fast_paths() {
    let Some(analyze) = tool("systemd-analyze") else {
        return;
    };
    let unit = read("deploy/systemd/s3-proxy.service");
    let mut allowed = BTreeSet::new();
    for line in unit.lines() {
        let Some(filter) = line.strip_prefix("SystemCallFilter=") else {
            continue;
        };
        let (names, is_refusal) = match filter.strip_prefix('~') {
            Some(names) => (names, true),
            None => (filter, false),
        };
        for name in names.split_whitespace() {
            let calls = match name.starts_with('@') {
                true => system_calls(&analyze, name),
                false => [name.to_owned()].into(),
            };
            match is_refusal {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.extend(calls),
            }
        }
    }
    for call in FAST_PATHS {
        assert!(allowed.contains(call), "{call} is forbidden");
    }
}

#[test]
fn the_service_managers_wait_longer_than_a_graceful_stop_takes() {
    // server.grace_period by default, and 10 seconds beside it.
    let stop = 30 + 10;
    let seconds = |path: &str, key: &str| -> u32 {
        let text = read(path);
        let found = text.lines().find_map(|line| line.trim().strip_prefix(key));
        let seconds = found.unwrap_or_else(|| panic!("{path}: no {key}"));
        let seconds = seconds.trim().trim_end_matches('s');
        seconds.parse().expect("seconds")
    };
    let values = "deploy/helm/s3-proxy/values.yaml";
    let pre_stop = seconds(values, "preStopSeconds:");
    for (waits, needed) in [
        (
            seconds("deploy/systemd/s3-proxy.service", "TimeoutStopSec="),
            stop,
        ),
        (
            seconds("deploy/compose/compose.yaml", "stop_grace_period:"),
            stop,
        ),
        (
            seconds(values, "terminationGracePeriodSeconds:"),
            stop + pre_stop,
        ),
    ] {
        assert!(waits >= needed + 5, "{waits} s for {needed} s");
    }
    let operations = read("docs/operations.md");
    let (_, docker) = operations.split_once("--stop-timeout ").expect("docker");
    let docker = docker.split(' ').next().and_then(|it| it.parse().ok());
    assert!(
        docker.is_some_and(|waits: u32| waits >= stop + 5),
        "{docker:?}"
    );
}
