//! The files of `deploy/`.
//!
//! `tests/deploy/install FOLDER` installs the tools that check them, and `DEPLOY_TOOLS` names the
//! folder. Tools that are in `PATH` are used too. Tests whose tool is missing are skipped, and said to
//! be; with `REQUIRE_DEPLOY_TOOLS=1` they fail.

mod chart;
mod image;
mod monitoring;
mod package;
mod promql;
mod release;
mod version;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;
use serde_json::Value;
use test_support::skip;

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file of the repository.
fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The value in a YAML document.
fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The text of a member, which must be there.
fn text<'a>(of: &'a Value, member: &str) -> &'a str {
    let text = of[member].as_str();
    text.unwrap_or_else(|| panic!("no {member}: {of}"))
}

fn list(of: &Value) -> &[Value] {
    of.as_array().expect("a list")
}

/// A program of `tests/deploy/install`, or of this machine. None: it is missing, and not required.
fn tool(name: &str) -> Option<PathBuf> {
    let pinned = env::var_os("DEPLOY_TOOLS").map(|folder| Path::new(&folder).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = pinned.into_iter().chain(env::split_paths(&path));
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    found.or_else(|| installed(&format!("bin/{name}")))
}

/// A file of `tests/deploy/install`. None: it is missing, and not required.
fn installed(name: &str) -> Option<PathBuf> {
    let folder = env::var_os("DEPLOY_TOOLS");
    let found = folder.map(|folder| Path::new(&folder).join(name));
    let found = found.filter(|path| path.exists());
    if found.is_none() {
        assert!(
            !is_required(),
            "{name} is missing, and REQUIRE_DEPLOY_TOOLS=1"
        );
        skip(&format!(
            "{name} is missing; tests/deploy/install FOLDER makes it, DEPLOY_TOOLS=FOLDER names it"
        ));
    }
    found
}

/// False: this test is not run by root, and need not be.
fn is_root(does: &str) -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        assert!(
            !is_required(),
            "only root {does}, and REQUIRE_DEPLOY_TOOLS=1"
        );
        skip(&format!("only root {does}"));
    }
    is_root
}

fn is_required() -> bool {
    env::var("REQUIRE_DEPLOY_TOOLS").as_deref() == Ok("1")
}

/// Runs a command that must succeed, and returns its standard output.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}
