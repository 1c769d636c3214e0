//! The patched crates in somebody else's project: `vendor/pingora.sh export`.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use tempfile::TempDir;
use test_support::{
    eventually, get, pattern, request, scripted::example, Gate, Origin, Reply, Request, Response,
    PATIENCE,
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

/// More bytes than are read ahead, and than one call of sendfile(2) moves.
const LEN: u64 = 3_000_000;

#[test]
fn the_sample_stores_each_object_under_its_own_key() {
    let origin = Origin::start(|request| fresh(request).answering(request));
    let sample = Sample::start(&origin);
    for (path, seed) in [("/a.bin", 1), ("/b.bin", 2), ("/a.bin?1", 3)] {
        let whole = pattern(seed, LEN as usize);
        expect_body(&get(sample.addr, path), &whole);
        sample.expect_log(path, "Miss, 0 bytes by sendfile");
        for _ in 0..2 {
            expect_body(&get(sample.addr, path), &whole);
            sample.expect_log(path, "Hit, 3000000 bytes by sendfile");
        }
        let part = request(sample.addr, "GET", path, &[("Range", "bytes=7-2000006")]);
        assert_eq!(part.status, 206);
        assert_eq!(
            part.header("content-range"),
            Some("bytes 7-2000006/3000000")
        );
        assert!(part.complete && part.body == whole[7..2_000_007], "{path}");
        sample.expect_log(path, "Hit, 2000000 bytes by sendfile");
    }
    // No object has taken another one's place.
    expect_body(&get(sample.addr, "/a.bin"), &pattern(1, LEN as usize));
    sample.expect_log("/a.bin", "Hit, 3000000 bytes by sendfile");
    // The same path of another host is another object.
    expect_body(
        &request(sample.addr, "GET", "/a.bin", &[("Host", "other.example")]),
        &pattern(4, LEN as usize),
    );
    assert_eq!(origin.requests().len(), 4, "all else was stored");
}

#[test]
fn the_sample_asks_once_for_six_clients() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| fresh(request).hold_at(0, &gate)
    });
    let sample = Sample::start(&origin);
    let whole = pattern(1, LEN as usize);
    thread::scope(|scope| {
        let clients = [(); 6].map(|()| scope.spawn(|| get(sample.addr, "/a.bin")));
        gate.wait_for_arrivals(1);
        gate.open();
        for client in clients {
            expect_body(&client.join().expect("a client"), &whole);
        }
    });
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn the_sample_stores_nothing_that_is_not_for_all() {
    let origin = Origin::start(|request| match request.path() {
        "/vary" => Reply::bytes("varies")
            .header("Cache-Control", "max-age=3600")
            .header("Vary", "Accept-Language"),
        "/cookie" => Reply::bytes("one's own")
            .header("Cache-Control", "max-age=3600")
            .header("Set-Cookie", "a=b"),
        "/silent" => Reply::bytes("fresh for no time"),
        "/private" => Reply::bytes("private").header("Cache-Control", "private, max-age=3600"),
        _ => fresh(request),
    });
    let sample = Sample::start(&origin);
    for path in ["/vary", "/cookie", "/silent", "/private"] {
        for _ in 0..2 {
            assert_eq!(get(sample.addr, path).status, 200);
        }
        assert_eq!(origin.requests_for(path), 2, "{path}");
    }
    // Methods other than GET and HEAD are not even looked up.
    for _ in 0..2 {
        assert_eq!(request(sample.addr, "DELETE", "/a.bin", &[]).status, 200);
    }
    assert_eq!(origin.requests_for("/a.bin"), 2);
}

#[test]
fn the_sample_serves_its_file_without_copying_it() {
    let origin = Origin::start(fresh);
    let sample = Sample::start(&origin);
    expect_body(&get(sample.addr, "/file"), &pattern(9, LEN as usize));
    sample.expect_log("/file", "Disabled(NeverEnabled), 3000000 bytes by sendfile");
    assert!(origin.requests().is_empty());
}

/// An object that may be stored, with bytes of its own for each target and host.
fn fresh(request: &Request) -> Reply {
    let seed = match (request.header("host"), &*request.target) {
        (Some("other.example"), _) => 4,
        (_, "/b.bin") => 2,
        (_, "/a.bin?1") => 3,
        _ => 1,
    };
    Reply::pattern(seed, LEN)
        .header("Cache-Control", "max-age=3600")
        .header("ETag", "\"1\"")
}

fn expect_body(response: &Response, body: &[u8]) {
    assert_eq!(response.status, 200);
    assert!(response.complete);
    assert!(response.body == body, "{} bytes", response.body.len());
}

/// `export/proxy.rs`, which this package builds as an example.
struct Sample {
    addr: SocketAddr,
    process: Child,
    log: Receiver<String>,
    _dir: TempDir,
}

// === impl Sample ===

impl Sample {
    /// Runs it in a folder of its own, which has `file`.
    fn start(origin: &Origin) -> Self {
        let dir = tempfile::tempdir().expect("make a folder");
        fs::write(dir.path().join("file"), pattern(9, LEN as usize)).expect("write the file");
        let mut process = Command::new(example("my_proxy"))
            .args(["127.0.0.1:0", &origin.addr().to_string()])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run the sample");
        let stdout = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let (lines, log) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The pipe is drained even when nobody listens any more.
                let _ = lines.send(line);
            }
        });
        let mut sample = Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            process,
            log,
            _dir: dir,
        };
        let line = sample.log.recv_timeout(PATIENCE).expect("a line");
        let addr = line.strip_prefix("listening on ").expect("an address");
        sample.addr = addr.parse().expect("an address");
        // It says so before it listens.
        eventually("the sample accepts connections", || {
            TcpStream::connect(sample.addr).is_ok()
        });
        sample
    }

    /// Checks that the next request that it logs is for `path`, with the outcome `what`.
    fn expect_log(&self, path: &str, what: &str) {
        let line = self.log.recv_timeout(PATIENCE).expect("a line");
        assert_eq!(line, format!("{path} {what}"));
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
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

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
