//! The files of `deploy/`.
//!
//! `tests/deploy/install FOLDER` installs the tools that check them, and `DEPLOY_TOOLS` names the
//! folder. Tools that are in `PATH` are used too. Tests whose tool is missing are skipped, and said to
//! be; with `REQUIRE_DEPLOY_TOOLS=1` they fail.

mod monitoring;
mod promql;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

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
fn yaml(text: &str) -> serde_json::Value {
    serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A program of `tests/deploy/install`, or of this machine. None: it is missing, and not required.
fn tool(name: &str) -> Option<PathBuf> {
    let installed = env::var_os("DEPLOY_TOOLS").map(|folder| Path::new(&folder).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = installed.into_iter().chain(env::split_paths(&path));
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    if found.is_none() {
        assert!(
            env::var("REQUIRE_DEPLOY_TOOLS").as_deref() != Ok("1"),
            "{name} is missing, and REQUIRE_DEPLOY_TOOLS=1"
        );
        skip(&format!(
            "{name} is missing; tests/deploy/install FOLDER installs it, DEPLOY_TOOLS=FOLDER names it"
        ));
    }
    found
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
