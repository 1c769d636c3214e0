//! The patched crates in somebody else's project: `vendor/pingora.sh export`.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn a_project_builds_with_the_lines_that_the_command_prints() {
    // Kept from run to run: the export is idempotent, and cargo builds only once.
    let project = Path::new(env!("CARGO_TARGET_TMPDIR")).join("export");
    fs::create_dir_all(project.join("src")).expect("make the project");

    let lines = stdout(&export(&project, &[]));
    let manifest = format!(
        "[package]\nname = \"my-proxy\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n\
         {lines}\n\
         [dependencies.async-trait]\nversion = \"0.1\"\n\n\
         [dependencies.pingora-http]\nversion = \"=0.9.1\"\n\n\
         [workspace]\n"
    );
    fs::write(project.join("Cargo.toml"), manifest).expect("write Cargo.toml");
    fs::write(project.join("src/main.rs"), include_str!("export/proxy.rs")).expect("write main.rs");
    // The versions that were fetched to build this test; nothing else is needed.
    fs::copy(
        Path::new(CHECKOUT).join("Cargo.lock"),
        project.join("Cargo.lock"),
    )
    .expect("copy Cargo.lock");

    // What both projects depend on is built once, in the folder that is there.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let check = Command::new(env!("CARGO"))
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
        !stderr(&check).contains("was not used"),
        "a patch was not used:\n{}",
        stderr(&check)
    );
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

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
