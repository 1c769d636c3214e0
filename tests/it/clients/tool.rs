//! Clients, and the operations that the tests ask for.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The bucket of all tests.
pub const BUCKET: &str = "clients-bucket";

/// A client: a program, a library of Python, or the SDK for Rust.
pub trait Tool {
    fn name(&self) -> &str;

    /// True if the client says so when an object is missing, besides its exit status.
    fn names_what_is_missing(&self) -> bool {
        true
    }

    /// Do it. `None`: the client cannot.
    fn run(&self, access: &Access, op: &Op) -> Option<Outcome>;
}

/// The endpoint and the keys of a client.
#[derive(Clone)]
pub struct Access {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    /// For what the client writes down.
    pub home: PathBuf,
}

/// An operation on [`BUCKET`].
pub enum Op<'a> {
    /// Print the keys that begin with this, one a line.
    List(&'a str),
    /// Print the size of the object.
    Head(&'a str),
    /// Download the object, in parts where the client does that for large ones.
    Get(&'a str, &'a Path),
    /// Download the object from this byte on, up to the second where there is one.
    Range(&'a str, u64, Option<u64>, &'a Path),
    /// Upload a file, in parts if it is large.
    Put(&'a Path, &'a str),
    /// Copy an object without a download.
    Copy(&'a str, &'a str),
    Delete(&'a str),
    /// Make a folder like what begins with the prefix, which ends in a slash.
    SyncDown(&'a str, &'a Path),
    /// And the reverse.
    SyncUp(&'a Path, &'a str),
}

/// The result of an operation.
#[derive(Debug)]
pub struct Outcome {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

// === impl Access ===

impl Access {
    /// A command that finds nothing of who runs the tests.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.home)
            .env("AWS_ACCESS_KEY_ID", &self.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.secret_key)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_MAX_ATTEMPTS", "2")
            .current_dir(&self.home)
            .stdin(Stdio::null());
        command
    }

    /// The endpoint without its scheme.
    pub fn authority(&self) -> &str {
        self.endpoint.trim_start_matches("http://")
    }
}

// === impl Outcome ===

impl Outcome {
    pub fn of(command: &mut Command) -> Self {
        let output = command
            .output()
            .unwrap_or_else(|e| panic!("run {command:?}: {e}"));
        Self {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: format!(
                "{command:?}: {}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// The same with another stdout, if it went well.
    pub fn printing(mut self, read: impl FnOnce(&str) -> String) -> Self {
        if self.ok {
            self.stdout = read(&self.stdout);
        }
        self
    }
}
