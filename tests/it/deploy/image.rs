//! The image, and the Compose file that runs it before a MinIO.
//!
//! The image is that of the Dockerfile's last stage, with the binary under test: what comes before
//! compiles it, and needs a base image. Docker runs what the Compose file says; the program
//! docker-compose is not needed.

use std::{
    env, fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{self, Command},
};

use aws_sdk_s3::primitives::ByteStream;
use serde_json::Value;
use tempfile::TempDir;
use test_support::{eventually, eventually_ok, get, skip, Metrics};
use tokio::runtime::Runtime;

use super::{file, list, read, run, yaml};
use crate::minio::server::{client, ACCESS_KEY, SECRET_KEY};
use crate::S3_PROXY;

const COMPOSE: &str = "deploy/compose/compose.yaml";

/// All that Compose made, removed when dropped.
struct Project {
    /// The beginning of all names.
    name: String,
    /// The image of the proxy.
    image: String,
    compose: Value,
}

fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
        .trim()
        .to_owned()
}

/// False: Docker does not answer, and need not.
fn docker_answers() -> bool {
    let output = Command::new("docker").arg("info").output();
    let answers = output.is_ok_and(|output| output.status.success());
    if !answers {
        assert!(
            env::var("REQUIRE_DOCKER").as_deref() != Ok("1"),
            "Docker does not answer, and REQUIRE_DOCKER=1"
        );
        skip("Docker does not answer");
    }
    answers
}

/// Builds the last stage of the Dockerfile.
fn build(folder: &Path, image: &str) {
    let dockerfile = read("deploy/image/Dockerfile");
    let (_, stage) = dockerfile
        .split_once("\nFROM scratch\n")
        .expect("a last stage");
    let copied = stage
        .replace("--from=build ", "")
        .replace(" /rootfs/", " rootfs/");
    assert_eq!(copied.matches("COPY").count(), 2, "{copied}");
    fs::write(folder.join("Dockerfile"), format!("FROM scratch\n{copied}")).expect("write a file");
    let rootfs = folder.join("rootfs");
    run(Command::new(file("deploy/image/rootfs"))
        .arg(S3_PROXY)
        .arg(&rootfs));
    let mut command = Command::new("docker");
    command.args(["build", "--quiet", "--network", "none", "--tag", image]);
    run(command.arg(folder));
}

/// The texts of a list.
fn texts(of: &Value) -> impl Iterator<Item = &str> {
    list(of).iter().map(|text| text.as_str().expect("a text"))
}

// === impl Project ===

impl Project {
    /// The file, with its variables replaced by those given here, or by their defaults.
    fn new(variables: &[(&str, &str)], image: &str) -> Self {
        let written = read(COMPOSE);
        let mut parts = written.split("${");
        let mut said = parts.next().expect("a first part").to_owned();
        for part in parts {
            let (variable, rest) = part.split_once('}').expect("an end");
            let (name, default) = variable.split_once(":-").expect("a default");
            let value = variables.iter().find(|(given, _)| *given == name);
            said.push_str(value.map_or(default, |(_, value)| value));
            said.push_str(rest);
        }
        let project = Project {
            name: format!("s3-proxy-test-{}", process::id()),
            image: image.to_owned(),
            compose: yaml(&said),
        };
        docker(&["network", "create", &project.name]);
        project
    }

    fn container(&self, service: &str) -> String {
        format!("{}-{service}", self.name)
    }

    /// Starts a service as Compose would, but at free ports of this machine. Panics on a key that it
    /// does not know.
    fn start(&self, service: &str) {
        let definition = self.compose["services"][service].as_object();
        let definition = definition.expect("a service");
        let mut options = vec![
            format!("--name={}", self.container(service)),
            format!("--network={}", self.name),
            format!("--network-alias={service}"),
            // Sooner than in the image, because the test waits for it.
            "--health-interval=500ms".to_owned(),
        ];
        for (key, value) in definition {
            match &**key {
                "environment" => {
                    let variables = value.as_object().expect("variables").iter();
                    options.extend(variables.map(|(name, value)| {
                        format!("--env={name}={}", value.as_str().expect("a text"))
                    }));
                }
                "volumes" => options.extend(texts(value).map(|volume| {
                    let source = match volume.strip_prefix("./") {
                        Some(path) => file("deploy/compose").join(path).display().to_string(),
                        None => format!("{}-{volume}", self.name),
                    };
                    format!("--volume={source}")
                })),
                "ports" => options.extend(texts(value).map(|port| {
                    let (_, inside) = port.rsplit_once(':').expect("a port");
                    format!("--publish=127.0.0.1::{inside}")
                })),
                "read_only" => options.push(format!("--read-only={value}")),
                "cap_drop" => options.extend(texts(value).map(|it| format!("--cap-drop={it}"))),
                "security_opt" => {
                    options.extend(texts(value).map(|it| format!("--security-opt={it}")));
                }
                "image" | "command" => {}
                "build" | "depends_on" | "restart" | "stop_grace_period" => {}
                key => panic!("{service}: {key} is unknown here"),
            }
        }
        let mut command = Command::new("docker");
        command.args(["run", "--detach"]).args(options);
        command.arg(definition["image"].as_str().expect("an image"));
        if let Some(arguments) = definition.get("command") {
            command.args(texts(arguments));
        }
        run(&mut command);
    }

    /// The address at which this machine reaches a published port of the proxy.
    fn address(&self, port: u16) -> SocketAddr {
        let address = docker(&["port", &self.container("s3-proxy"), &port.to_string()]);
        address.parse().expect("an address")
    }

    fn inspect(&self, service: &str, what: &str) -> String {
        docker(&["inspect", "--format", what, &self.container(service)])
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // A part that was not made cannot be removed.
        let remove = |arguments: &[&str]| drop(Command::new("docker").args(arguments).output());
        for service in ["s3-proxy", "minio"] {
            remove(&["rm", "--force", "--volumes", &self.container(service)]);
        }
        for volume in ["cache", "objects"] {
            remove(&["volume", "rm", &format!("{}-{volume}", self.name)]);
        }
        remove(&["network", "rm", &self.name]);
        remove(&["rmi", &self.image]);
    }
}

#[test]
fn the_image_serves_as_compose_starts_it() {
    if !docker_answers() {
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let image = format!("s3-proxy-test:{}", process::id());
    build(folder.path(), &image);

    let mut variables = vec![
        ("S3_PROXY_IMAGE", &*image),
        ("ACCESS_KEY", ACCESS_KEY),
        ("SECRET_KEY", SECRET_KEY),
    ];
    let minio = env::var("MINIO_IMAGE");
    if let Ok(minio) = &minio {
        variables.push(("MINIO_IMAGE", minio));
    }
    let project = Project::new(&variables, &image);
    project.start("minio");
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let endpoint = format!("http://{}:9000", project.inspect("minio", address));
    upload(&endpoint, "assets", "a.bin", &[7; 100_000]);
    project.start("s3-proxy");

    eventually("the container is healthy", || {
        let status = project.inspect("s3-proxy", "{{.State.Health.Status}}");
        if status == "unhealthy" {
            let mut logs = Command::new("docker");
            logs.args(["logs", &project.container("s3-proxy")]);
            panic!("{:?}", logs.output());
        }
        status == "healthy"
    });
    for expected in ["MISS", "HIT"] {
        let response = get(project.address(8080), "/assets/a.bin");
        assert_eq!(response.status, 200);
        assert_eq!(response.body, [7; 100_000]);
        assert_eq!(response.header("x-cache"), Some(expected));
    }
    let metrics = get(project.address(9090), "/metrics");
    let metrics = Metrics::parse(&String::from_utf8(metrics.body).expect("text"));
    assert_eq!(metrics.sum("cache_writable"), 1);

    // Not root, and nothing to start a shell with.
    let pid = project.inspect("s3-proxy", "{{.State.Pid}}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    assert!(
        status.contains("\nUid:\t65532\t65532\t65532\t65532\n"),
        "{status}"
    );
    assert!(status.contains("\nCapBnd:\t0000000000000000\n"), "{status}");
    let programs = fs::read_dir(folder.path().join("rootfs/root/usr/bin")).expect("a folder");
    assert_eq!(programs.count(), 1);

    docker(&["stop", &project.container("s3-proxy")]);
    assert_eq!(project.inspect("s3-proxy", "{{.State.ExitCode}}"), "0");
}

#[test]
fn an_image_without_a_library_is_not_made() {
    let folder = TempDir::new().expect("a folder");
    let ldd = folder.path().join("ldd");
    let missing = "#!/bin/sh\necho '    libmissing.so.1 => not found'\n";
    fs::write(&ldd, missing).expect("write a script");
    fs::set_permissions(&ldd, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let path = env::var("PATH").expect("PATH");
    let mut command = Command::new(file("deploy/image/rootfs"));
    command.env("PATH", format!("{}:{path}", folder.path().display()));
    let rootfs = folder.path().join("rootfs");
    let output = command.arg(S3_PROXY).arg(rootfs).output();
    let output = output.expect("run deploy/image/rootfs");
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("libmissing.so.1 => not found"), "{said}");
}

/// Puts an object into a new bucket of a MinIO that is starting.
fn upload(endpoint: &str, bucket: &str, key: &str, body: &[u8]) {
    let runtime = Runtime::new().expect("a runtime");
    let client = client(endpoint, ACCESS_KEY, SECRET_KEY);
    eventually_ok(|| {
        let created = runtime.block_on(client.create_bucket().bucket(bucket).send());
        created.map(drop).map_err(|e| format!("a bucket: {e:?}"))
    });
    let put = client.put_object().bucket(bucket).key(key);
    let put = put.body(ByteStream::from(body.to_vec())).send();
    runtime.block_on(put).expect("an upload");
}
