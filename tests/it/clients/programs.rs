//! The clients that are programs.

use std::{fs, path::PathBuf};

use serde_json::Value;

use super::python::{script, ForkServer};
use super::tool::{Access, Op, Outcome, Tool, BUCKET};

/// The AWS CLI.
pub struct AwsCli {
    pub python: ForkServer,
    pub program: PathBuf,
    /// Transfers go by the Common Runtime, in C, instead of Python.
    pub by_crt: bool,
}

/// rclone.
pub struct Rclone(pub PathBuf);

/// s5cmd.
pub struct S5cmd(pub PathBuf);

/// The client of MinIO.
pub struct Mc(pub PathBuf);

/// A script of this folder for a library of Python.
pub struct Python {
    pub name: &'static str,
    pub python: ForkServer,
    pub script: &'static str,
    /// The way in which the library is used.
    pub engine: &'static str,
}

fn url(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

/// The values of a field in lines of JSON.
fn field(lines: &str, name: &str) -> String {
    let values = lines.lines().filter_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some(match value.get(name)? {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    });
    values.map(|value| value + "\n").collect()
}

// === impl AwsCli ===

impl Tool for AwsCli {
    fn name(&self) -> &str {
        match self.by_crt {
            true => "AWS CLI with the CRT",
            false => "AWS CLI",
        }
    }

    fn run(&self, access: &Access, op: &Op) -> Option<Outcome> {
        let mut aws = access.command(&self.program);
        let transfers = if self.by_crt { "crt" } else { "classic" };
        let config = access.home.join("config");
        let text = format!("[default]\ns3 =\n  preferred_transfer_client = {transfers}\n");
        fs::write(&config, text).expect("write the CLI's configuration");
        aws.env("AWS_CONFIG_FILE", config);
        let api = |aws: &mut std::process::Command, operation: &str| {
            aws.args(["s3api", operation, "--bucket", BUCKET]);
        };
        let mut lists = false;
        match op {
            Op::List(prefix) => {
                lists = true;
                api(&mut aws, "list-objects-v2");
                // Several pages.
                aws.args(["--page-size", "2", "--prefix", prefix]);
                aws.args(["--query", "Contents[].Key", "--output", "text"]);
            }
            Op::Head(key) => {
                api(&mut aws, "head-object");
                aws.args(["--key", key, "--query", "ContentLength"]);
            }
            Op::Get(key, to) => {
                aws.args(["s3", "cp", "--only-show-errors", &url(key)])
                    .arg(to);
            }
            Op::Range(key, start, end, to) => {
                let end = end.map_or(String::new(), |end| end.to_string());
                api(&mut aws, "get-object");
                aws.args(["--key", key, "--range", &format!("bytes={start}-{end}")]);
                aws.arg(to);
            }
            Op::Put(from, key) => {
                aws.args(["s3", "cp", "--only-show-errors"]).arg(from);
                aws.arg(url(key));
            }
            Op::Copy(from, to) => {
                aws.args(["s3", "cp", "--only-show-errors", &url(from), &url(to)]);
            }
            Op::Delete(key) => {
                aws.args(["s3", "rm", "--only-show-errors", &url(key)]);
            }
            Op::SyncDown(prefix, to) => {
                aws.args(["s3", "sync", "--only-show-errors", &url(prefix)])
                    .arg(to);
            }
            Op::SyncUp(from, prefix) => {
                aws.args(["s3", "sync", "--only-show-errors"]).arg(from);
                aws.arg(url(prefix));
            }
        }
        let outcome = self.python.run(&aws);
        Some(outcome.printing(|stdout| match lists {
            true => stdout.replace('\t', "\n"),
            false => stdout.to_owned(),
        }))
    }
}

// === impl Rclone ===

impl Tool for Rclone {
    fn name(&self) -> &str {
        "rclone"
    }

    fn names_what_is_missing(&self) -> bool {
        false
    }

    fn run(&self, access: &Access, op: &Op) -> Option<Outcome> {
        let mut rclone = access.command(&self.0);
        for (name, value) in [
            ("TYPE", "s3"),
            ("PROVIDER", "Minio"),
            ("ENV_AUTH", "false"),
            ("ENDPOINT", &access.endpoint),
            ("ACCESS_KEY_ID", &access.access_key),
            ("SECRET_ACCESS_KEY", &access.secret_key),
            ("REGION", "us-east-1"),
            ("NO_CHECK_BUCKET", "true"),
        ] {
            rclone.env(format!("RCLONE_CONFIG_PROXY_{name}"), value);
        }
        rclone.args(["--retries", "1", "--low-level-retries", "2"]);
        // Downloads in parts from a size that the tests have.
        rclone.args(["--multi-thread-cutoff", "5M", "--s3-upload-cutoff", "8M"]);
        let path = |key: &str| format!("proxy:{BUCKET}/{key}");
        match op {
            Op::List(prefix) => {
                let prefix = (*prefix).to_owned();
                rclone.args(["lsf", "--recursive", "--files-only", &path(&prefix)]);
                let outcome = Outcome::of(&mut rclone);
                let keys = |stdout: &str| {
                    let keys = stdout.lines().map(|key| format!("{prefix}{key}\n"));
                    keys.collect()
                };
                return Some(outcome.printing(keys));
            }
            Op::Head(key) => {
                rclone.args(["lsjson", "--stat", &path(key)]);
                let size = |stdout: &str| field(&stdout.replace('\n', ""), "Size");
                return Some(Outcome::of(&mut rclone).printing(size));
            }
            Op::Get(key, to) => {
                rclone.args(["copyto", "--ignore-times", "--error-on-no-transfer"]);
                rclone.arg(path(key)).arg(to);
            }
            Op::Range(key, start, end, to) => {
                rclone.args(["cat", "--offset", &start.to_string()]);
                if let Some(end) = end {
                    rclone.args(["--count", &(end - start + 1).to_string()]);
                }
                rclone.arg(path(key));
                let output = rclone.output().expect("run rclone");
                fs::write(to, &output.stdout).expect("write the range");
                return Some(Outcome {
                    ok: output.status.success(),
                    stdout: String::new(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                });
            }
            Op::Put(from, key) => {
                rclone
                    .args(["copyto", "--ignore-times"])
                    .arg(from)
                    .arg(path(key));
            }
            Op::Copy(from, to) => {
                rclone.args(["copyto", &path(from), &path(to)]);
            }
            Op::Delete(key) => {
                rclone.args(["deletefile", &path(key)]);
            }
            Op::SyncDown(prefix, to) => {
                rclone.args(["sync", &path(prefix)]).arg(to);
            }
            Op::SyncUp(from, prefix) => {
                rclone.arg("sync").arg(from).arg(path(prefix));
            }
        }
        Some(Outcome::of(&mut rclone))
    }
}

// === impl S5cmd ===

impl Tool for S5cmd {
    fn name(&self) -> &str {
        "s5cmd"
    }

    fn run(&self, access: &Access, op: &Op) -> Option<Outcome> {
        let mut s5cmd = access.command(&self.0);
        s5cmd.args(["--endpoint-url", &access.endpoint, "--retry-count", "1"]);
        // Parts of a size that the tests have.
        let parts = ["--part-size", "5"];
        match op {
            Op::List(prefix) => {
                s5cmd.args(["--json", "ls", &url(&format!("{prefix}*"))]);
                let start = url("");
                let keys = |stdout: &str| field(stdout, "key").replace(&start, "");
                return Some(Outcome::of(&mut s5cmd).printing(keys));
            }
            Op::Head(key) => {
                s5cmd.args(["--json", "head", &url(key)]);
                let size = |stdout: &str| field(stdout, "size");
                return Some(Outcome::of(&mut s5cmd).printing(size));
            }
            Op::Get(key, to) => {
                s5cmd.arg("cp").args(parts).arg(url(key)).arg(to);
            }
            Op::Range(..) => return None,
            Op::Put(from, key) => {
                s5cmd.arg("cp").args(parts).arg(from).arg(url(key));
            }
            Op::Copy(from, to) => {
                s5cmd.args(["cp", &url(from), &url(to)]);
            }
            Op::Delete(key) => {
                s5cmd.args(["rm", &url(key)]);
            }
            Op::SyncDown(prefix, to) => {
                s5cmd.args(["sync", &url(&format!("{prefix}*"))]);
                s5cmd.arg(format!("{}/", to.display()));
            }
            Op::SyncUp(from, prefix) => {
                s5cmd.arg("sync").arg(format!("{}/", from.display()));
                s5cmd.arg(url(prefix));
            }
        }
        Some(Outcome::of(&mut s5cmd))
    }
}

// === impl Mc ===

impl Tool for Mc {
    fn name(&self) -> &str {
        "mc"
    }

    fn names_what_is_missing(&self) -> bool {
        false
    }

    fn run(&self, access: &Access, op: &Op) -> Option<Outcome> {
        let mut mc = access.command(&self.0);
        let host = format!(
            "http://{}:{}@{}",
            access.access_key,
            access.secret_key,
            access.authority()
        );
        mc.env("MC_HOST_proxy", host);
        mc.arg("--config-dir").arg(access.home.join("mc"));
        let path = |key: &str| format!("proxy/{BUCKET}/{key}");
        match op {
            Op::List(prefix) => {
                let prefix = (*prefix).to_owned();
                mc.args(["--json", "ls", "--recursive", &path(&prefix)]);
                let keys = |stdout: &str| {
                    let keys = field(stdout, "key");
                    keys.lines().map(|key| format!("{prefix}{key}\n")).collect()
                };
                return Some(Outcome::of(&mut mc).printing(keys));
            }
            Op::Head(key) => {
                mc.args(["--json", "stat", &path(key)]);
                let size = |stdout: &str| field(&stdout.replace('\n', ""), "size");
                return Some(Outcome::of(&mut mc).printing(size));
            }
            Op::Get(key, to) => {
                mc.args(["--quiet", "cp", &path(key)]).arg(to);
            }
            Op::Range(_, _, Some(_), _) => return None,
            Op::Range(key, start, None, to) => {
                mc.args(["cat", "--offset", &start.to_string(), &path(key)]);
                let output = mc.output().expect("run mc");
                fs::write(to, &output.stdout).expect("write the range");
                return Some(Outcome {
                    ok: output.status.success(),
                    stdout: String::new(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                });
            }
            Op::Put(from, key) => {
                mc.args(["--quiet", "cp"]).arg(from).arg(path(key));
            }
            Op::Copy(from, to) => {
                mc.args(["--quiet", "cp", &path(from), &path(to)]);
            }
            Op::Delete(key) => {
                mc.args(["rm", &path(key)]);
            }
            Op::SyncDown(prefix, to) => {
                mc.args(["--quiet", "mirror", &path(prefix)]).arg(to);
            }
            Op::SyncUp(from, prefix) => {
                mc.args(["--quiet", "mirror"]).arg(from).arg(path(prefix));
            }
        }
        Some(Outcome::of(&mut mc))
    }
}

// === impl Python ===

impl Tool for Python {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&self, access: &Access, op: &Op) -> Option<Outcome> {
        let mut python = access.command(script(self.script));
        python.args([self.engine, BUCKET]);
        match op {
            Op::List(prefix) => python.args(["list", prefix]),
            Op::Head(key) => python.args(["head", key]),
            Op::Get(key, to) => python.args(["get", key]).arg(to),
            Op::Range(key, start, end, to) => {
                python.args(["range", key, &start.to_string()]);
                python.arg(end.map_or("end".to_owned(), |end| end.to_string()));
                python.arg(to)
            }
            Op::Put(from, key) => python.arg("put").arg(from).arg(key),
            Op::Copy(from, to) => python.args(["copy", from, to]),
            Op::Delete(key) => python.args(["delete", key]),
            // Libraries leave it to their callers.
            Op::SyncDown(..) | Op::SyncUp(..) => return None,
        };
        Some(self.python.run(&python))
    }
}
