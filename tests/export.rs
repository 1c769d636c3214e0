//! The patched crates in somebody else's project: `vendor/pingora.sh export`.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn a_project_builds_with_the_lines_that_the_command_prints() {
    // Kept from run to run: the export is idempotent, and cargo builds only once.
    let project = Path::new(env!("CARGO_TARGET_TMPDIR")).join("export");
    fs::create_dir_all(project.join("src")).expect("make the project");
    fs::write(
        project.join("Cargo.toml"),
        format!("{PACKAGE}[workspace]\n"),
    )
    .expect("write Cargo.toml");
    let sample = include_str!("../examples/embedded.rs");
    fs::write(project.join("src/main.rs"), sample).expect("write main.rs");

    let lines = stdout(&export(&project, &[]));
    assert!(!lines.contains("\"/"), "an absolute path:\n{lines}");
    fs::write(
        project.join("Cargo.toml"),
        format!("{PACKAGE}{lines}\n[workspace]\n"),
    )
    .expect("write Cargo.toml");
    copy_lock(&project);

    // The dependencies of both projects are built once, in the existing target folder.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let check = cargo()
        .args(["check", "--offline", "--target-dir"])
        .arg(target.expect("the target folder"))
        .current_dir(&project)
        .output()
        .expect("run cargo");
    assert!(check.status.success(), "{}", stderr(&check));
    let lock = fs::read_to_string(project.join("Cargo.lock")).expect("read Cargo.lock");
    assert!(
        lock.contains("name = \"my-proxy\""),
        "cargo has not looked at the project:\n{lock}"
    );
    assert!(
        !stderr(&check).contains(UNUSED),
        "a patch was not used:\n{}",
        stderr(&check)
    );
}

/// Cargo as from a shell, without the variables that `cargo test` sets for the package. Some build
/// scripts run again when these change, here and afterwards.
fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    let of_package = |name: &str| {
        name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(of_package) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The start of a project's Cargo.toml.
const PACKAGE: &str = "[package]\nname = \"my-proxy\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n";

/// The words of cargo's warning about a patch.
const UNUSED: &str = "was not used";

#[test]
fn a_project_does_not_get_what_only_the_binary_needs() {
    let tree = |features: &str| {
        let tree = cargo()
            .args(["tree", "--locked", "--offline", "--edges", "normal"])
            .args([
                "--prefix",
                "none",
                "--format",
                "{p}",
                "--features",
                features,
            ])
            .current_dir(CHECKOUT)
            .output()
            .expect("run cargo");
        assert!(tree.status.success(), "{}", stderr(&tree));
        stdout(&tree)
    };
    let (library, binary) = (tree(""), tree("full"));
    for name in [
        "aws-config",
        "aws-sigv4",
        "granit-parser",
        "hyper",
        "indicatif",
        "io-uring",
        "jsonwebtoken",
        "mimalloc",
        "quick-xml",
        "ratatui",
        "rustls",
        "s3s",
        "tracing-subscriber",
    ] {
        let is_in = |tree: &str| {
            tree.lines()
                .any(|line| line.split(' ').next() == Some(name))
        };
        assert!(is_in(&binary), "{name} is not even in the binary");
        assert!(!is_in(&library), "{name}:\n{library}");
    }
}

#[test]
fn the_lines_name_one_tls_backend() {
    let project = tempfile::tempdir().expect("make a folder");
    for backend in ["rustls", "openssl", "boringssl", "s2n"] {
        let lines = stdout(&export(project.path(), &["--tls", backend]));
        let with_it: Vec<_> = lines
            .lines()
            .filter(|line| line.contains("features"))
            .collect();
        assert_eq!(
            with_it,
            [
                format!("pingora-core = {{ version = \"=0.9.1\", features = [\"{backend}\"] }}"),
                format!("pingora-proxy = {{ version = \"=0.9.1\", features = [\"{backend}\"] }}"),
            ]
        );
        for name in ["pingora-core", "pingora-proxy"] {
            let manifest = project.path().join("vendor/pingora").join(name);
            let manifest =
                fs::read_to_string(manifest.join("Cargo.toml")).expect("read Cargo.toml");
            assert!(manifest.contains(&format!("\n{backend} = [")), "{name}");
        }
    }
    let lines = stdout(&export(project.path(), &["--tls", "none"]));
    assert!(!lines.contains("features"), "{lines}");
    assert!(lines.contains("\npingora-core = \"=0.9.1\"\n"), "{lines}");
    for unknown in [&["--tls", "gnutls"][..], &["--tls"]] {
        let refused = export(project.path(), unknown);
        assert_eq!(refused.status.code(), Some(2), "{unknown:?}");
    }
}

#[test]
fn an_older_lock_gets_the_commands_that_update_it() {
    let project = tempfile::tempdir().expect("make a folder");
    let project = project.path();
    fs::create_dir(project.join("src")).expect("make a folder");
    fs::write(project.join("src/lib.rs"), "").expect("write lib.rs");
    // As a project is that has had Pingora for some time.
    let manifest = format!("{PACKAGE}[dependencies]\npingora-core = \"0.9\"\n");
    fs::write(project.join("Cargo.toml"), &manifest).expect("write Cargo.toml");
    copy_lock(project);
    let lines = stdout(&export(project, &[]));
    assert!(!lines.contains("cargo update"), "{lines}");

    let lock = fs::read_to_string(project.join("Cargo.lock")).expect("read Cargo.lock");
    let published = fs::read_to_string(Path::new(CHECKOUT).join("vendor/pins/Cargo.lock"))
        .expect("read the pins");
    let checksum = |name: &str| {
        let package = format!("name = \"{name}\"\n");
        let (_, package) = published.split_once(&package).expect("a pinned crate");
        let line = package.lines().find(|line| line.starts_with("checksum"));
        line.expect("a checksum").to_owned()
    };
    // Stands in for the older release; cargo has no need to look at it.
    let older = lock.replace(
        "name = \"pingora-core\"\nversion = \"0.9.1\"\n",
        &format!(
            "name = \"pingora-core\"\nversion = \"0.9.0\"\n\
             source = \"registry+https://github.com/rust-lang/crates.io-index\"\n{}\n",
            checksum("pingora-core")
        ),
    );
    assert_ne!(older, lock);
    fs::write(project.join("Cargo.lock"), older).expect("write Cargo.lock");

    let lines = stdout(&export(project, &[]));
    let commands: Vec<_> = lines
        .lines()
        .filter_map(|line| line.strip_prefix("#   cargo "))
        .collect();
    assert_eq!(commands, ["update pingora-core --precise 0.9.1"]);

    let (_, patches) = lines.split_once("[patch.crates-io]").expect("the patches");
    fs::write(
        project.join("Cargo.toml"),
        format!("{manifest}\n[patch.crates-io]{patches}"),
    )
    .expect("write Cargo.toml");
    let update = cargo()
        .args(commands[0].split(' '))
        .arg("--offline")
        .current_dir(project)
        .output()
        .expect("run cargo");
    assert!(update.status.success(), "{}", stderr(&update));
    let lock = fs::read_to_string(project.join("Cargo.lock")).expect("read Cargo.lock");
    assert!(
        lock.contains("name = \"pingora-core\"\nversion = \"0.9.1\"\ndependencies"),
        "the patched crate, which has no source, is not locked:\n{lock}"
    );
}

#[test]
fn a_checkout_within_a_workspace_is_excluded_from_it() {
    let root = tempfile::tempdir().expect("make a folder");
    let root = root.path().canonicalize().expect("the folder's name");
    let checkout = root.join("third_party/pingora-sendfile");
    fs::create_dir_all(checkout.join("vendor")).expect("make folders");
    // All that the command and cargo read of a checkout.
    for name in [
        "Cargo.toml",
        "benches",
        "examples",
        "patches",
        "src",
        "tests",
        "vendor/pingora.sh",
        "vendor/pins",
    ] {
        let copied = Command::new("cp")
            .arg("-r")
            .args([Path::new(CHECKOUT).join(name), checkout.join(name)])
            .status()
            .expect("run cp");
        assert!(copied.success(), "{name}");
    }
    let package = root.join("apps/proxy");
    fs::create_dir_all(package.join("src")).expect("make folders");
    fs::write(package.join("src/lib.rs"), "").expect("write lib.rs");
    fs::write(package.join("Cargo.toml"), PACKAGE).expect("write Cargo.toml");
    let members = "[workspace]\nresolver = \"2\"\nmembers = [\"apps/*\"]\n";
    fs::write(root.join("Cargo.toml"), members).expect("write Cargo.toml");
    copy_lock(&root);

    let output = Command::new(checkout.join("vendor/pingora.sh"))
        .args(["export", "../../third_party/patched"])
        .current_dir(&package)
        .output()
        .expect("run vendor/pingora.sh");
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = stdout(&output);
    let (dependencies, shared) = lines
        .split_once("# In Cargo.toml of the workspace, ../../Cargo.toml:\n")
        .unwrap_or_else(|| panic!("two manifests are told apart:\n{lines}"));
    let (patches, exclude) = shared
        .split_once("[workspace]\n")
        .unwrap_or_else(|| panic!("the checkout is excluded:\n{lines}"));

    let metadata = |workspace: String| {
        fs::write(
            package.join("Cargo.toml"),
            format!("{PACKAGE}{dependencies}"),
        )
        .expect("write Cargo.toml");
        fs::write(root.join("Cargo.toml"), workspace).expect("write Cargo.toml");
        cargo()
            .args(["tree", "--offline", "--depth", "1"])
            .current_dir(&package)
            .output()
            .expect("run cargo")
    };
    let refused = metadata(format!("{members}\n{patches}"));
    assert!(
        stderr(&refused).contains("multiple workspace roots"),
        "{}",
        stderr(&refused)
    );
    let tree = metadata(format!("{members}{exclude}\n{patches}"));
    assert!(tree.status.success(), "{}", stderr(&tree));
    assert!(!stderr(&tree).contains(UNUSED), "{}", stderr(&tree));
    for name in ["pingora-core", "pingora-proxy", "pingora-sendfile"] {
        assert!(stdout(&tree).contains(name), "{}", stdout(&tree));
    }
}

#[test]
fn the_folder_is_what_the_tool_materialises() {
    let project = tempfile::tempdir().expect("make a folder");
    assert!(export(project.path(), &["patched"]).status.success());

    for name in [
        "pingora-cache",
        "pingora-core",
        "pingora-proxy",
        "pingora-timeout",
    ] {
        let diff = Command::new("diff")
            .args(["-r", "--brief"])
            .arg(Path::new(CHECKOUT).join("vendor/pingora").join(name))
            .arg(project.path().join("patched").join(name))
            .output()
            .expect("run diff");
        assert!(diff.status.success(), "{}", stdout(&diff));
    }
    assert!(!project.path().join("patched/.git").exists());
    let left: Vec<_> = fs::read_dir(project.path())
        .expect("list the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["patched"], "nothing else is left behind");
}

#[test]
fn a_second_run_prints_the_same_and_writes_nothing() {
    let project = tempfile::tempdir().expect("make a folder");
    let first = export(project.path(), &[]);
    let file = project
        .path()
        .join("vendor/pingora/pingora-core/Cargo.toml");
    let written = || fs::metadata(&file).and_then(|file| file.modified());
    let before = written().expect("when it was written");

    let second = export(project.path(), &[]);

    assert_eq!(stdout(&second), stdout(&first));
    assert_eq!(stderr(&second), "", "progress, although there is none");
    assert_eq!(written().expect("when it was written"), before);
}

#[test]
fn nothing_of_others_is_overwritten() {
    let project = tempfile::tempdir().expect("make a folder");
    fs::create_dir(project.path().join("theirs")).expect("make a folder");
    fs::write(project.path().join("theirs/file"), "theirs").expect("write a file");
    let refused = export(project.path(), &["theirs"]);
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("name another folder"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(stdout(&refused), "", "no lines for a folder without crates");

    assert!(export(project.path(), &["ours"]).status.success());
    let edited = project.path().join("ours/pingora-core/src/lib.rs");
    fs::write(&edited, "// mine\n").expect("edit a file");
    let refused = export(project.path(), &["ours"]);
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("has been edited"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(
        fs::read_to_string(&edited).expect("read the file"),
        "// mine\n"
    );
}

/// Runs the command in somebody's project.
fn export(project: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(Path::new(CHECKOUT).join("vendor/pingora.sh"))
        .arg("export")
        .args(arguments)
        .current_dir(project)
        .output()
        .expect("run vendor/pingora.sh");
    eprintln!("{}", stderr(&output));
    output
}

/// Has the versions that were fetched to build this test; nothing else is needed.
fn copy_lock(project: &Path) {
    let lock = Path::new(CHECKOUT).join("Cargo.lock");
    fs::copy(lock, project.join("Cargo.lock")).expect("copy Cargo.lock");
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
