//! The system calls of a hit, as strace sees them.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::builder;
use tempfile::TempDir;
use test_support::{eventually, Bucket, Connection, Origin, Pattern, Reply};

const LEN: u64 = 10 * 1024 * 1024;

#[test]
fn a_hit_does_not_pass_through_user_space() {
    let origin = Origin::start(|_| Reply::pattern(1, LEN));
    expect_sendfile(&origin, "HIT", None);
}

#[test]
fn nor_does_one_that_a_304_has_revalidated() {
    for range in [None, Some((1_000_000, 4_999_999))] {
        let origin = Origin::start(|request| {
            Reply::pattern(1, LEN)
                .header("etag", "\"1\"")
                .header("cache-control", "max-age=0")
                .answering(request)
        });
        expect_sendfile(&origin, "REVALIDATED", range);
        assert_eq!(origin.requests().len(), 2);
    }
}

#[test]
fn nor_one_that_is_stale_and_the_origin_fails() {
    let fails = AtomicBool::new(false);
    let origin = Origin::start(move |_| {
        if fails.swap(true, Ordering::SeqCst) {
            return Reply::bytes("out of order").with_status(503);
        }
        Reply::pattern(1, LEN).header("cache-control", "max-age=0, stale-if-error=600")
    });
    expect_sendfile(&origin, "STALE", None);
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn nor_one_that_is_stale_and_revalidated_meanwhile() {
    let origin = Origin::start(|request| {
        Reply::pattern(1, LEN)
            .header("etag", "\"1\"")
            .header("cache-control", "max-age=0, stale-while-revalidate=600")
            .answering(request)
    });
    expect_sendfile(&origin, "STALE", None);
    eventually("the origin is asked", || origin.requests().len() == 2);
}

/// The second request, or a range of it, is answered with this `X-Cache`, by
/// sendfile.
fn expect_sendfile(origin: &Origin, x_cache: &str, range: Option<(u64, u64)>) {
    let proxy = builder()
        .bucket(Bucket::at(origin, "/assets", "bucket"))
        .start();
    proxy.get("/assets/object");
    eventually("the object is stored", || {
        proxy.metric("cache_fills_in_flight") == 0
    });

    let strace = match Strace::attach(proxy.pid()) {
        Ok(strace) => strace,
        Err(why) => {
            // Past libtest, which would keep what println says to itself.
            let line = format!("skipped: {why}\n");
            io::stderr().write_all(line.as_bytes()).expect("write");
            // As if it had been seen, for what the origin counts.
            proxy.get("/assets/object");
            return;
        }
    };
    let (first, last) = range.unwrap_or((0, LEN - 1));
    let field = format!("bytes={first}-{last}");
    let fields = range.map(|_| ("Range", &*field));
    let mut connection = Connection::open(proxy.addr());
    let hit = connection.begin("GET", "/assets/object", fields.as_slice());
    assert_eq!(hit.headers.get("x-cache"), Some(x_cache));
    let received = hit.check(Pattern::new(1), first);
    assert!(received.complete);
    let len = last + 1 - first;
    assert_eq!(received.len, len);
    let calls = strace.detach();

    let mut sendfiles = calls.iter().filter(|call| call.name == "sendfile");
    let first = sendfiles.next().expect("a sendfile");
    let client = first.fd();
    let body = first.moved + sendfiles.map(|call| call.moved).sum::<u64>();
    assert_eq!(body, len, "bytes by sendfile");
    assert!(calls
        .iter()
        .all(|call| call.name != "sendfile" || call.fd() == client));

    let written: Vec<_> = calls
        .iter()
        .filter(|call| WRITES.contains(&call.name.as_str()) && call.fd() == client)
        .collect();
    let [header] = written[..] else {
        panic!("one write, the header: {written:#?}");
    };
    assert!(header.arguments.contains("HTTP/1.1 20"), "{header:?}");
    assert!(header.arguments.contains("MSG_MORE"), "{header:?}");

    let read: u64 = calls
        .iter()
        .filter(|call| READS.contains(&call.name.as_str()))
        .map(|call| call.moved)
        .sum();
    let copied = header.moved + read;
    assert!(copied < 64 * 1024, "{copied} bytes through user space");
}

const WRITES: [&str; 7] = [
    "sendto", "sendmsg", "sendmmsg", "write", "writev", "pwrite64", "pwritev",
];
const READS: [&str; 6] = ["read", "readv", "pread64", "preadv", "recvfrom", "recvmsg"];

/// strace attached to a process, a file a thread.
struct Strace {
    child: Child,
    /// Kept open: strace goes on writing to it.
    stderr: BufReader<ChildStderr>,
    output: TempDir,
}

/// A system call that returned.
#[derive(Debug)]
struct Call {
    name: String,
    arguments: String,
    /// Its result, 0 for an error.
    moved: u64,
}

// === impl Strace ===

impl Strace {
    /// Returns once every thread is traced. The error: strace is not installed,
    /// or not permitted.
    fn attach(pid: u32) -> Result<Self, String> {
        let output = TempDir::new().expect("make a directory");
        let traced = format!(
            "trace=network,sendfile,splice,{},{}",
            WRITES.join(","),
            READS.join(",")
        );
        let mut child = Command::new("strace")
            .args(["-ff", "-e", &traced, "-p", &pid.to_string(), "-o"])
            .arg(output.path().join("thread"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("strace does not start: {e}"))?;
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        // strace(1) says "Process PID attached with N threads" after the last.
        while !line.contains(" attached") {
            line.clear();
            let n = stderr.read_line(&mut line).expect("read from strace");
            if n == 0 || line.contains("not permitted") {
                let _ = child.wait();
                return Err(format!("strace cannot attach: {}", line.trim()));
            }
        }
        Ok(Self {
            child,
            stderr,
            output,
        })
    }

    /// Ends the tracing and returns what was traced, thread by thread.
    fn detach(mut self) -> Vec<Call> {
        let pid = self.child.id().to_string();
        let interrupted = Command::new("kill").args(["-INT", &pid]).status();
        assert!(interrupted.expect("run kill").success());
        let mut rest = String::new();
        io::Read::read_to_string(&mut self.stderr, &mut rest).expect("read from strace");
        self.child.wait().expect("wait for strace");
        let mut calls = Vec::new();
        for file in fs::read_dir(self.output.path()).expect("list the output") {
            read_calls(&file.expect("list the output").path(), &mut calls);
        }
        calls
    }
}

fn read_calls(file: &Path, calls: &mut Vec<Call>) {
    let bytes = fs::read(file).expect("read strace's output");
    for line in String::from_utf8_lossy(&bytes).lines() {
        calls.extend(Call::parse(line));
    }
}

// === impl Call ===

impl Call {
    /// `name(arguments) = result`; None: a signal, or a call that never ended.
    fn parse(line: &str) -> Option<Self> {
        let (call, result) = line.rsplit_once(" = ")?;
        let (name, arguments) = call.trim_end().strip_suffix(')')?.split_once('(')?;
        let moved = result.split(' ').next()?.parse().unwrap_or(0);
        Some(Self {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            moved,
        })
    }

    /// The first argument.
    fn fd(&self) -> &str {
        self.arguments.split(',').next().unwrap_or_default()
    }
}
