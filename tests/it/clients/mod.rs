//! The clients that S3 users have, before the proxy and a real MinIO: each in every mode of
//! authorisation that serves S3 clients.
//!
//! `tests/clients/install FOLDER` installs them, and `CLIENTS` names the folder
//! (`target/clients` if it is not set). Clients that are missing are skipped, and said to be;
//! with `REQUIRE_CLIENTS=1` they make the tests fail. MinIO needs Docker, as in `tests/it/minio`.

mod programs;
mod python;
mod relay;
mod sdk;
mod tool;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use aws_sdk_s3::primitives::ByteStream;
use tempfile::TempDir;
use test_support::{eventually, pattern, skip, Bucket, Proxy};

use crate::builder;
use crate::minio::server::{Server, ACCESS_KEY, SECRET_KEY};
use programs::{AwsCli, Mc, Python, Rclone, S5cmd};
use python::ForkServer;
use relay::Relay;
use sdk::Sdk;
use tool::{Access, Op, Outcome, Tool, BUCKET};

const MIB: usize = 1 << 20;

/// Downloaded in parts by all clients that do so.
const LARGE: &str = "data/large.bin";
const LARGE_LEN: usize = 20 * MIB + 12_345;

/// A key that needs encoding.
const ODD: &str = "data/größe and +plus (1).bin";

const SMALL: &str = "data/small.txt";

/// The most that MinIO sends when a download needs none of its bodies, in bytes.
const NO_BODIES: u64 = 256 * 1024;

/// The keys of a client of the proxy in the mode `sigv4`.
const CLIENT_KEY: &str = "client-of-the-proxy";
const CLIENT_SECRET: &str = "secret-of-the-client";

#[test]
fn aws_cli() {
    with_aws_cli(false);
}

#[test]
fn aws_cli_with_transfers_by_the_crt() {
    with_aws_cli(true);
}

#[test]
fn boto3_with_its_own_transfers() {
    with_library("boto3", "classic");
}

#[test]
fn boto3_with_transfers_by_the_crt() {
    with_library("boto3 with the CRT", "crt");
}

#[test]
fn s3fs() {
    with_library("s3fs", "s3fs");
}

#[test]
fn pyarrow() {
    with_library("pyarrow", "pyarrow");
}

#[test]
fn rclone() {
    let Some(program) = program("rclone") else {
        return;
    };
    in_all_modes(&Rclone(program));
}

#[test]
fn s5cmd() {
    let Some(program) = program("sdk/bin/s5cmd") else {
        return;
    };
    in_all_modes(&S5cmd(program));
}

#[test]
fn mc() {
    let Some(program) = program("bin/mc") else {
        return;
    };
    in_all_modes(&Mc(program));
}

#[test]
fn aws_sdk_for_rust() {
    in_all_modes(&Sdk::new());
}

/// A mode of authorisation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    None,
    Sigv4,
    Passthrough,
}

/// A client, the proxy and MinIO behind it.
struct Story<'a> {
    tool: &'a dyn Tool,
    mode: Mode,
    minio: &'a Server,
    relay: Relay,
    proxy: Proxy,
    access: Access,
    /// Downloads go here.
    folder: TempDir,
}

/// A client in the folder of `CLIENTS`, or in the system's.
fn program(name: &str) -> Option<PathBuf> {
    let folder = env::var_os("CLIENTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients"),
        PathBuf::from,
    );
    let places = [folder.join(name), Path::new("/usr/bin").join(name)];
    let found = places.into_iter().find(|place| place.is_file());
    if found.is_none() {
        assert!(
            env::var("REQUIRE_CLIENTS").as_deref() != Ok("1"),
            "{name} is missing, and REQUIRE_CLIENTS=1; tests/clients/install installs it"
        );
        skip(&format!(
            "{name} is missing; tests/clients/install installs it"
        ));
    }
    found
}

fn with_aws_cli(by_crt: bool) {
    let (Some(interpreter), Some(program)) = (program("sdk/bin/python"), program("sdk/bin/aws"))
    else {
        return;
    };
    let modules = ["awscli.clidriver", "awscli.handlers", "s3transfer.crt"];
    in_all_modes(&AwsCli {
        python: ForkServer::start(&interpreter, &modules),
        program,
        by_crt,
    });
}

/// `engine`: the way in which the library is used.
fn with_library(name: &'static str, engine: &'static str) {
    let (environment, script, modules): (_, _, &[&str]) = match engine {
        "classic" | "crt" => (
            "sdk",
            "boto3_client.py",
            &["boto3.s3.inject", "s3transfer.crt"],
        ),
        "s3fs" => ("fs", "fs_client.py", &["s3fs"]),
        _ => ("fs", "fs_client.py", &["pyarrow.fs"]),
    };
    let Some(interpreter) = program(&format!("{environment}/bin/python")) else {
        return;
    };
    in_all_modes(&Python {
        name,
        python: ForkServer::start(&interpreter, modules),
        script,
        engine,
    });
}

fn in_all_modes(tool: &dyn Tool) {
    let Some(minio) = Server::start(BUCKET) else {
        return;
    };
    let objects = [
        (LARGE, pattern(1, LARGE_LEN)),
        (ODD, pattern(2, 100_000)),
        (SMALL, b"small\n".to_vec()),
    ];
    for (key, body) in &objects {
        upload(&minio, key, body);
    }
    for mode in [Mode::None, Mode::Sigv4, Mode::Passthrough] {
        let story = Story::begin(tool, mode, &minio);
        story.lists_and_heads();
        story.downloads_from_the_cache();
        story.reads_parts();
        story.is_told_what_is_missing();
        story.is_refused_with_a_wrong_key();
        story.syncs_down(&objects);
        if mode == Mode::Passthrough {
            story.writes();
        }
    }
}

fn upload(minio: &Server, key: &str, body: &[u8]) {
    let put = minio.client.put_object().bucket(BUCKET).key(key);
    let put = put.body(ByteStream::from(body.to_vec()));
    minio
        .runtime
        .block_on(put.send())
        .unwrap_or_else(|e| panic!("upload {key}: {e:?}"));
}

// === impl Mode ===

impl Mode {
    fn bucket(self, endpoint: String) -> Bucket {
        let prefix = format!("/{BUCKET}");
        let bucket = Bucket::new(&prefix, BUCKET).endpoint(endpoint);
        match self {
            Mode::None => bucket.credentials(ACCESS_KEY, SECRET_KEY).set("list", true),
            Mode::Sigv4 => bucket
                .credentials(ACCESS_KEY, SECRET_KEY)
                .set("list", true)
                .set("auth", "sigv4")
                .set(
                    "clients",
                    format!("[{{access_key: {CLIENT_KEY}, secret_key: {CLIENT_SECRET}}}]"),
                ),
            // Its own keys fetch the whole of an object of which a client has a part.
            Mode::Passthrough => bucket
                .credentials(ACCESS_KEY, SECRET_KEY)
                .set("auth", "passthrough"),
        }
    }

    fn keys(self) -> (&'static str, &'static str) {
        match self {
            // Nobody looks at them.
            Mode::None => ("anybody", "whatever-it-is"),
            Mode::Sigv4 => (CLIENT_KEY, CLIENT_SECRET),
            Mode::Passthrough => (ACCESS_KEY, SECRET_KEY),
        }
    }
}

// === impl Story ===

impl<'a> Story<'a> {
    fn begin(tool: &'a dyn Tool, mode: Mode, minio: &'a Server) -> Self {
        let relay = Relay::to(&minio.endpoint);
        let proxy = builder().bucket(mode.bucket(relay.url())).start();
        let folder = TempDir::with_prefix("clients-").expect("make a folder");
        let home = folder.path().join("home");
        fs::create_dir(&home).expect("make a home");
        let (access_key, secret_key) = mode.keys();
        let access = Access {
            endpoint: format!("http://{}", proxy.addr()),
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            home,
        };
        Self {
            tool,
            mode,
            minio,
            relay,
            proxy,
            access,
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The client succeeds.
    fn does(&self, op: &Op) -> Option<String> {
        let outcome = self.tool.run(&self.access, op)?;
        assert!(outcome.ok, "{}: {}", self.name(), self.explain(&outcome));
        Some(outcome.stdout)
    }

    fn name(&self) -> String {
        format!("{}, {:?}", self.tool.name(), self.mode)
    }

    fn explain(&self, outcome: &Outcome) -> String {
        format!(
            "{}\n{}\nproxy: {}",
            outcome.stdout,
            outcome.stderr,
            self.proxy.stderr()
        )
    }

    fn holds(&self, path: &Path, body: &[u8]) {
        let found = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", self.name()));
        assert_eq!(found.len(), body.len(), "{}: length", self.name());
        assert!(found == body, "{}: {} differs", self.name(), path.display());
    }

    fn lists_and_heads(&self) {
        let keys = self.does(&Op::List("data/")).expect("a client lists");
        let mut keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
        keys.sort_unstable();
        assert_eq!(keys, [ODD, LARGE, SMALL], "{}", self.name());

        let size = self.does(&Op::Head(LARGE)).expect("a client asks");
        assert_eq!(size.trim(), LARGE_LEN.to_string(), "{}", self.name());
    }

    /// The download of a stored object takes no body from MinIO, and goes by sendfile.
    fn downloads_from_the_cache(&self) {
        let body = pattern(1, LARGE_LEN);
        let path = self.path("large");
        let is_stored = || self.proxy.metric("cache_size_bytes") >= LARGE_LEN as u64;
        // On a busy machine, a part may come before the first one. It is fetched by itself then, and the second
        // download has it stored.
        for _ in 0..2 {
            if !is_stored() {
                self.does(&Op::Get(LARGE, &path));
                self.holds(&path, &body);
                fs::remove_file(&path).expect("remove the download");
                eventually("the fills are over", || {
                    self.proxy.metric("cache_fills_in_flight") == 0
                });
            }
        }
        eventually("the object is stored", is_stored);

        let received = self.relay.received();
        let asked = self.proxy.metric("origin_requests_total");
        let sent = self.proxy.metric("cache_sendfile_bytes_total");
        self.does(&Op::Get(LARGE, &path));
        self.holds(&path, &body);
        let received = self.relay.received() - received;
        assert!(
            received < NO_BODIES,
            "{}: {received} bytes came from MinIO",
            self.name()
        );
        if self.mode != Mode::Passthrough {
            let asked = self.proxy.metric("origin_requests_total") - asked;
            assert!(asked <= 2, "{}: {asked} requests to MinIO", self.name());
        }
        eventually("the object goes by sendfile", || {
            self.proxy.metric("cache_sendfile_bytes_total") >= sent + LARGE_LEN as u64
        });

        let path = self.path("odd");
        self.does(&Op::Get(ODD, &path));
        self.holds(&path, &pattern(2, 100_000));
    }

    fn reads_parts(&self) {
        let body = pattern(1, LARGE_LEN);
        let path = self.path("part");
        let (start, end) = (1_000_000, 2_999_999);
        if self
            .does(&Op::Range(LARGE, start, Some(end), &path))
            .is_some()
        {
            self.holds(&path, &body[start as usize..=end as usize]);
        }
        // A download that was interrupted goes on.
        let half = 10 * MIB;
        let rest = self.path("rest");
        if self
            .does(&Op::Range(LARGE, half as u64, None, &rest))
            .is_some()
        {
            self.holds(&rest, &body[half..]);
        }
    }

    fn is_told_what_is_missing(&self) {
        let get = Op::Get("data/missing.bin", &self.path("missing"));
        let outcome = self.tool.run(&self.access, &get).expect("a client gets");
        assert!(!outcome.ok, "{}: {}", self.name(), self.explain(&outcome));
        if !self.tool.names_what_is_missing() {
            return;
        }
        let said = format!("{}{}", outcome.stdout, outcome.stderr).to_lowercase();
        let names_it = [
            "404",
            "not found",
            "nosuchkey",
            "no such",
            "not exist",
            "filenotfound",
        ]
        .iter()
        .any(|text| said.contains(text));
        assert!(names_it, "{}: {said}", self.name());
    }

    /// Cached objects are not for those who prove nothing.
    fn is_refused_with_a_wrong_key(&self) {
        if self.mode == Mode::None {
            return;
        }
        for (access_key, secret_key) in [
            (self.access.access_key.as_str(), "a-wrong-secret-key"),
            ("a-wrong-access-key", self.access.secret_key.as_str()),
        ] {
            let mut access = self.access.clone();
            access.access_key = access_key.to_owned();
            access.secret_key = secret_key.to_owned();
            let path = self.path("refused");
            let outcome = self.tool.run(&access, &Op::Get(LARGE, &path));
            let outcome = outcome.expect("a client gets");
            assert!(!outcome.ok, "{}: {}", self.name(), self.explain(&outcome));
            // Some make the file before they ask.
            let len = fs::metadata(&path).map_or(0, |file| file.len());
            assert_eq!(len, 0, "{}: a refused client has bytes", self.name());
        }
    }

    fn syncs_down(&self, objects: &[(&str, Vec<u8>)]) {
        let folder = self.path("synced");
        fs::create_dir(&folder).expect("make a folder");
        if self.does(&Op::SyncDown("data/", &folder)).is_none() {
            return;
        }
        let found = files(&folder);
        let expected: BTreeMap<String, Vec<u8>> = objects
            .iter()
            .map(|(key, body)| (key.trim_start_matches("data/").to_owned(), body.clone()))
            .collect();
        assert!(
            found == expected,
            "{}: {:?}",
            self.name(),
            found.keys().collect::<Vec<_>>()
        );
    }

    /// Uploads, copies and removals are S3's to decide on, and what they change is not served
    /// from the cache any more.
    fn writes(&self) {
        let (file, copy) = (self.path("upload"), self.path("download"));
        for (seed, len) in [(10, 100_000), (11, LARGE_LEN), (12, 50_000)] {
            // The same key, so what was cached is replaced.
            let body = pattern(seed, len);
            fs::write(&file, &body).expect("write a file");
            self.does(&Op::Put(&file, "written/object.bin"));
            for _ in 0..2 {
                // Some take a file that is there for the download.
                let _ = fs::remove_file(&copy);
                self.does(&Op::Get("written/object.bin", &copy));
                self.holds(&copy, &body);
            }
        }
        self.does(&Op::Copy(LARGE, "written/object.bin"));
        let _ = fs::remove_file(&copy);
        self.does(&Op::Get("written/object.bin", &copy));
        self.holds(&copy, &pattern(1, LARGE_LEN));

        self.does(&Op::Delete("written/object.bin"));
        let get = Op::Get("written/object.bin", &copy);
        let outcome = self.tool.run(&self.access, &get).expect("a client gets");
        assert!(!outcome.ok, "{}: {}", self.name(), self.explain(&outcome));

        let folder = self.path("to-sync");
        fs::create_dir_all(folder.join("sub")).expect("make folders");
        fs::write(folder.join("a.bin"), pattern(20, 1000)).expect("write a file");
        fs::write(folder.join("sub/b.bin"), pattern(21, 9 * MIB)).expect("write a file");
        if self.does(&Op::SyncUp(&folder, "synced/")).is_none() {
            return;
        }
        let list = self.minio.client.list_objects_v2().bucket(BUCKET);
        let list = self.minio.runtime.block_on(list.prefix("synced/").send());
        let list = list.expect("list");
        let keys: Vec<_> = list.contents().iter().filter_map(|o| o.key()).collect();
        assert_eq!(
            keys,
            ["synced/a.bin", "synced/sub/b.bin"],
            "{}",
            self.name()
        );
        let back = self.path("synced-back");
        fs::create_dir(&back).expect("make a folder");
        self.does(&Op::SyncDown("synced/", &back));
        assert!(files(&back) == files(&folder), "{}", self.name());
    }
}

/// All files below a folder, by their paths in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("list a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).expect("below the folder");
            let body = fs::read(&path).expect("read a file");
            found.insert(name.to_string_lossy().into_owned(), body);
        }
    }
    found
}
