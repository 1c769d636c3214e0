//! The clients that are programs in Python.

use std::{
    cell::RefCell,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{json, Map, Value};
use tempfile::TempDir;

use super::tool::Outcome;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/");

/// The path of a script for the tests.
pub fn script(name: &str) -> String {
    format!("{SCRIPTS}{name}")
}

/// A process that has imported what its programs need, and runs each in a fork of itself.
pub struct ForkServer {
    process: RefCell<Process>,
    /// For what the programs print.
    folder: TempDir,
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

fn text(value: &std::ffi::OsStr) -> &str {
    value.to_str().expect("UTF-8")
}

// === impl ForkServer ===

impl ForkServer {
    /// `interpreter`: the one of the environment that has the modules.
    pub fn start(interpreter: &Path, modules: &[&str]) -> Self {
        let folder = TempDir::with_prefix("python-").expect("make a folder");
        let mut child = Command::new(interpreter)
            .arg(script("fork_server.py"))
            .args(modules)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("run {}: {e}", interpreter.display()));
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        ForkServer {
            process: RefCell::new(Process {
                child,
                input,
                output,
            }),
            folder,
        }
    }

    /// Run what the command says. Its program is a Python file.
    pub fn run(&self, command: &Command) -> Outcome {
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| self.folder.path().join(name));
        let arguments = std::iter::once(command.get_program()).chain(command.get_args());
        let environment: Map<String, Value> = command
            .get_envs()
            .filter_map(|(name, value)| Some((text(name).to_owned(), text(value?).into())))
            .collect();
        let program = json!({
            "arguments": arguments.map(text).collect::<Vec<_>>(),
            "environment": environment,
            "folder": command.get_current_dir().expect("a folder"),
            "stdout": stdout,
            "stderr": stderr,
        });
        let status = self.process.borrow_mut().ask(&program.to_string());
        let read = |path: &Path| {
            let bytes = fs::read(path).expect("read what was printed");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Outcome {
            ok: status == 0,
            stdout: read(&stdout),
            stderr: format!("{command:?}: exit status {status}\n{}", read(&stderr)),
        }
    }
}

// === impl Process ===

impl Process {
    /// The exit status of a program; negative: the signal that has ended it.
    fn ask(&mut self, program: &str) -> i32 {
        writeln!(self.input, "{program}").expect("ask Python");
        let mut status = String::new();
        self.output.read_line(&mut status).expect("an answer");
        status.trim().parse().expect("an exit status")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
