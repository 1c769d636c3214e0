//! The examples of this package that are not tested elsewhere, as others run them.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use tempfile::TempDir;
use test_support::{
    eventually, example, get, pattern, request, Gate, Origin, Reply, Request, Response, PATIENCE,
};

/// More bytes than are read ahead, and than one call of sendfile(2) moves.
const LEN: u64 = 3_000_000;

#[test]
fn embedded_stores_each_object_under_its_own_key() {
    let origin = Origin::start(|request| fresh(request).answering(request));
    let Embedded { sample, _dir } = Embedded::start(&origin);
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
fn embedded_asks_once_for_six_clients() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| fresh(request).hold_at(0, &gate)
    });
    let Embedded { sample, _dir } = Embedded::start(&origin);
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
fn embedded_stores_nothing_that_is_not_for_all() {
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
    let Embedded { sample, _dir } = Embedded::start(&origin);
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
fn static_files_are_sent_without_copying_them() {
    let site = Folder::new();
    for (path, seed) in [
        ("/a.bin", 1),
        ("/sub/page.html", 2),
        ("/sub/with%20space.txt", 3),
        ("//sub/./page.html", 2),
        ("/sub/inside", 1),
    ] {
        let whole = pattern(seed, LEN as usize);
        let got = get(site.sample.addr, path);
        expect_body(&got, &whole);
        assert_eq!(got.header("accept-ranges"), Some("bytes"), "{path}");
        site.sample.expect_log(path, "3000000 bytes by sendfile");

        let head = request(site.sample.addr, "HEAD", path, &[]);
        assert_eq!(head.status, 200, "{path}");
        assert_eq!(head.header("content-length"), Some("3000000"), "{path}");
        site.sample.expect_log(path, "0 bytes by sendfile");
    }
    let empty = get(site.sample.addr, "/empty");
    assert_eq!((empty.status, empty.body.len()), (200, 0));
}

#[test]
fn static_files_are_sent_in_parts() {
    let site = Folder::new();
    let whole = pattern(1, LEN as usize);
    for (range, if_range, status, part) in [
        ("bytes=7-2000006", None, 206, 7..2_000_007),
        ("bytes=-10", None, 206, 2_999_990..3_000_000),
        // Nothing says which version the client has a part of.
        ("bytes=5-5", Some("\"1\""), 200, 0..3_000_000),
        ("bytes=0-0,5-5", None, 200, 0..3_000_000),
        ("bytes=3000000-", None, 416, 0..0),
    ] {
        let mut fields = vec![("Range", range)];
        fields.extend(if_range.map(|tag| ("If-Range", tag)));
        let got = request(site.sample.addr, "GET", "/a.bin", &fields);
        assert_eq!(got.status, status, "{range}");
        assert!(got.complete && got.body == whole[part.clone()], "{range}");
        let sent = format!("{} bytes by sendfile", part.len());
        site.sample.expect_log("/a.bin", &sent);
        let head = request(site.sample.addr, "HEAD", "/a.bin", &fields);
        assert_eq!(head.status, 200, "{range}: only a GET has a range");
        site.sample.expect_log("/a.bin", "0 bytes by sendfile");
    }
}

#[test]
fn static_files_are_those_below_the_folder() {
    let site = Folder::new();
    for path in [
        "/missing",
        "/",
        "/sub",
        "/sub/",
        "/a.bin/",
        "/../secret",
        "/%2e%2e/secret",
        "/sub/../../secret",
        "/sub/..%2f..%2fsecret",
        "/link",
        "/linked/secret",
        "/fifo",
        "/a.bin%00",
    ] {
        assert_eq!(get(site.sample.addr, path).status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(
            request(site.sample.addr, method, "/a.bin", &[]).status,
            405,
            "{method}"
        );
    }
}

/// `examples/static_files.rs` over a folder.
struct Folder {
    sample: Sample,
    _dir: TempDir,
}

// === impl Folder ===

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a folder");
        let write = |name: &str, seed| {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("make a folder");
            fs::write(file, pattern(seed, LEN as usize)).expect("write a file");
        };
        write("files/a.bin", 1);
        write("files/sub/page.html", 2);
        write("files/sub/with space.txt", 3);
        write("secret", 9);
        let files = dir.path().join("files");
        fs::write(files.join("empty"), "").expect("write a file");
        symlink("../secret", files.join("link")).expect("make a link");
        symlink("../a.bin", files.join("sub/inside")).expect("make a link");
        symlink("..", files.join("linked")).expect("make a link");
        let made = Command::new("mkfifo").arg(files.join("fifo")).status();
        assert!(made.expect("run mkfifo").success());
        let folder = files.to_str().expect("a name in UTF-8");
        Folder {
            sample: Sample::run("static_files", folder, dir.path()),
            _dir: dir,
        }
    }
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

/// An example that runs.
struct Sample {
    addr: SocketAddr,
    process: Child,
    log: Receiver<String>,
}

/// `examples/embedded.rs`.
struct Embedded {
    sample: Sample,
    _dir: TempDir,
}

// === impl Embedded ===

impl Embedded {
    fn start(origin: &Origin) -> Self {
        let dir = tempfile::tempdir().expect("make a folder");
        Embedded {
            sample: Sample::run("embedded", &origin.addr().to_string(), dir.path()),
            _dir: dir,
        }
    }
}

// === impl Sample ===

impl Sample {
    /// Runs an example in a folder, with a second argument.
    fn run(name: &str, argument: &str, dir: &Path) -> Self {
        let mut process = Command::new(example(name))
            .args(["127.0.0.1:0", argument])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run the example");
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
