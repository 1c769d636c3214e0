//! The tests, inside the machine.

use std::{
    any::Any,
    collections::HashMap,
    env, fs,
    io::ErrorKind,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

use rustls::{client::Resumption, CipherSuite, HandshakeKind, ProtocolVersion};
use test_support::{
    eventually, pattern, sha256, Bucket, Origin, Pattern, Proxy, Reply, SelfSigned,
};

use crate::client::{self, Client};

/// The first argument of this program in a machine.
pub const ARGUMENT: &str = "in-the-machine";

/// That argument for a machine that counts its instructions.
pub const COUNT: &str = "count-in-the-machine";

/// The body whose instructions are counted.
pub const COUNTED: u64 = 10 << 20;

/// Values of `server.tls.ktls` for which they are counted.
pub const COUNTED_CHOICES: [&str; 2] = ["off", "on"];

/// The kernel of a machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// It cannot change the keys of a connection.
    Stable,
    /// It can.
    Rekey,
}

impl Kernel {
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Stable => "stable",
            Kernel::Rekey => "rekey",
        }
    }
}

type Test = (&'static str, fn(&Machine));

/// The tests for a kernel, in order: the last ones leave the machine as nobody else wants it.
pub fn tests(kernel: Kernel) -> Vec<Test> {
    let both: [Test; 5] = [
        (
            "the_log_says_what_the_kernel_can_do",
            the_log_says_what_the_kernel_can_do,
        ),
        (
            "each_cipher_of_each_version_carries_bodies_of_all_sizes",
            each_cipher_of_each_version_carries_bodies_of_all_sizes,
        ),
        (
            "both_sides_say_that_they_close",
            both_sides_say_that_they_close,
        ),
        (
            "a_hit_leaves_by_sendfile_alone",
            a_hit_leaves_by_sendfile_alone,
        ),
        ("no_record_was_undecipherable", no_record_was_undecipherable),
    ];
    let stable: [Test; 16] = [
        (
            "the_kernel_counts_the_connections",
            the_kernel_counts_the_connections,
        ),
        (
            "a_hit_is_counted_as_sent_by_sendfile",
            a_hit_is_counted_as_sent_by_sendfile,
        ),
        ("ranges_keep_their_place", ranges_keep_their_place),
        (
            "requests_may_be_pipelined_and_cut_anywhere",
            requests_may_be_pipelined_and_cut_anywhere,
        ),
        ("a_session_is_resumed", a_session_is_resumed),
        ("a_slow_reader_gets_it_all", a_slow_reader_gets_it_all),
        (
            "readers_that_go_away_leave_nothing_behind",
            readers_that_go_away_leave_nothing_behind,
        ),
        (
            "a_client_that_changes_its_key_is_let_go",
            a_client_that_changes_its_key_is_let_go,
        ),
        (
            "a_file_cut_short_breaks_the_connection",
            a_file_cut_short_breaks_the_connection,
        ),
        (
            "curl_and_openssl_and_go_agree",
            curl_and_openssl_and_go_agree,
        ),
        ("http2_stays_in_user_space", http2_stays_in_user_space),
        (
            "switched_off_nothing_goes_to_the_kernel",
            switched_off_nothing_goes_to_the_kernel,
        ),
        ("nginx_does_the_same", nginx_does_the_same),
        ("a_large_body_arrives_whole", a_large_body_arrives_whole),
        (
            "a_forged_record_is_answered_with_an_alert",
            a_forged_record_is_answered_with_an_alert,
        ),
        (
            "without_the_module_it_is_said",
            without_the_module_it_is_said,
        ),
    ];
    let rekey: [Test; 2] = [
        (
            "the_keys_of_both_directions_change",
            the_keys_of_both_directions_change,
        ),
        (
            "they_change_in_the_middle_of_a_download",
            they_change_in_the_middle_of_a_download,
        ),
    ];
    match kernel {
        Kernel::Stable => both.into_iter().chain(stable).collect(),
        Kernel::Rekey => both.into_iter().chain(rekey).collect(),
    }
}

/// The proxy and the origin that all tests share: starting a proxy takes seconds here.
pub struct Machine {
    origin: Origin,
    proxy: Proxy,
    binary: PathBuf,
    go_client: PathBuf,
    kernel: Kernel,
}

/// Runs all tests, one after the other. The arguments are the kernel, the proxy, and Go's client.
pub fn run() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(2).collect();
    let [kernel, binary, go_client] = &arguments[..] else {
        panic!("three arguments are expected");
    };
    let kernel = if kernel == Kernel::Rekey.name() {
        Kernel::Rekey
    } else {
        Kernel::Stable
    };
    let origin = Origin::start(|request| {
        let length = request
            .path()
            .rsplit('/')
            .next()
            .and_then(|name| name.parse().ok());
        match length {
            Some(length) => Reply::pattern(length, length).header("etag", "\"1\""),
            None => Reply::status(404),
        }
    });
    let proxy = Proxy::builder(binary)
        .bucket(Bucket::at(&origin, "/assets", "bucket"))
        .threads(2)
        .max_size_gb(2)
        .env("RUST_LOG", "info")
        .tls()
        .start();
    let machine = Machine {
        origin,
        proxy,
        binary: PathBuf::from(binary),
        go_client: PathBuf::from(go_client),
        kernel,
    };
    let mut failed = 0;
    panic::set_hook(Box::new(|what| println!("  {what}")));
    for (name, test) in tests(kernel) {
        let start = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| test(&machine)));
        let ok = result.is_ok();
        drop::<Result<(), Box<dyn Any + Send>>>(result);
        let verdict = if ok { "ok" } else { "FAILED" };
        println!(
            "test {name} ... {verdict} ({:.1} s)",
            start.elapsed().as_secs_f32()
        );
        failed += usize::from(!ok);
    }
    if failed > 0 {
        println!("the proxy's log:\n{}", machine.proxy.stderr());
    }
    ExitCode::from(u8::from(failed > 0))
}

impl Machine {
    fn client(&self) -> Client {
        Client::connect(self.proxy.https_addr())
    }

    /// The path of an object of `length` bytes, which is in the cache, and its content.
    fn stored(&self, length: u64) -> (String, Pattern) {
        let target = format!("/assets/{length}");
        let response = self.proxy.get(&target);
        assert!(response.complete, "GET {target}");
        eventually("the object is stored", || {
            self.proxy.metric("cache_fills_in_flight") == 0
        });
        (target, Pattern::new(length))
    }

    fn url(&self, target: &str) -> String {
        format!("https://{}{target}", self.proxy.https_addr())
    }
}

/// `/proc/net/tls_stat`: what the kernel counts.
fn tls_stat() -> HashMap<String, u64> {
    let counters = fs::read_to_string("/proc/net/tls_stat").expect("read tls_stat");
    let counter = |line: &str| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    counters.lines().filter_map(counter).collect()
}

fn output(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn the_log_says_what_the_kernel_can_do(machine: &Machine) {
    let log = machine.proxy.stderr();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("server.tls.ktls"))
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    let ciphers = "AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305";
    assert!(
        lines[0].contains(&format!("TLS 1.2 with {ciphers}; TLS 1.3 with {ciphers}")),
        "{log}"
    );
    let expected = match machine.kernel {
        Kernel::Stable => "keys cannot be changed",
        Kernel::Rekey => "keys can be changed",
    };
    assert!(lines[0].contains(expected), "{log}");
}

fn each_cipher_of_each_version_carries_bodies_of_all_sizes(machine: &Machine) {
    let sizes = [1, 16_383, 16_384, 16_385, 100_000, 1 << 20];
    let objects: Vec<_> = sizes.map(|size| (size, machine.stored(size))).into();
    for suite in [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ] {
        let before = tls_stat()["TlsTxSw"];
        let mut client = Client::with(machine.proxy.https_addr(), client::config(Some(suite)));
        // All of them on one connection.
        for (size, (target, pattern)) in &objects {
            client.get(target, *pattern, *size);
        }
        let negotiated = client.tls.negotiated_cipher_suite().expect("a suite");
        assert_eq!(negotiated.suite(), suite);
        assert_eq!(tls_stat()["TlsTxSw"], before + 1, "{suite:?}");
    }
}

fn the_kernel_counts_the_connections(machine: &Machine) {
    let (target, pattern) = machine.stored(100_000);
    let before = tls_stat();
    let mut client = machine.client();
    client.get(&target, pattern, 100_000);
    let now = tls_stat();
    for counter in ["TlsTxSw", "TlsRxSw"] {
        assert_eq!(now[counter], before[counter] + 1, "{counter}");
    }
    drop(client);
    eventually("the connection is gone", || tls_stat()["TlsCurrTxSw"] == 0);
}

fn a_hit_is_counted_as_sent_by_sendfile(machine: &Machine) {
    let (target, pattern) = machine.stored(1 << 20);
    let before = machine.proxy.metric("cache_sendfile_total");
    let bytes = machine.proxy.metric("cache_sendfile_bytes_total");
    machine.client().get(&target, pattern, 1 << 20);
    machine
        .proxy
        .expect_metric("cache_sendfile_total", before + 1);
    machine
        .proxy
        .expect_metric("cache_sendfile_bytes_total", bytes + (1 << 20));
}

fn ranges_keep_their_place(machine: &Machine) {
    let length = 1 << 20;
    let (target, pattern) = machine.stored(length);
    let mut client = machine.client();
    for (first, last) in [
        (0, 0),
        (1, 16_384),
        (5_000, 999_999),
        (length - 1, length - 1),
    ] {
        client.ask(&target, &format!("range: bytes={first}-{last}\r\n"));
        let head = client.head();
        assert_eq!((head.status, head.length), (206, last - first + 1));
        client.body(pattern, first, head.length, 10_000, Duration::ZERO);
    }
}

fn requests_may_be_pipelined_and_cut_anywhere(machine: &Machine) {
    let (small, small_pattern) = machine.stored(100);
    let (large, large_pattern) = machine.stored(100_000);
    let mut client = machine.client();
    // A record for each byte.
    for byte in client::request(&large, "") {
        client.send(&[byte]);
    }
    assert_eq!(client.head().status, 200);
    client.body(large_pattern, 0, 100_000, 100, Duration::ZERO);

    // The response to the one before the last is at the client when the last is sent.
    let mut requests = client::request(&small, "");
    requests.extend(client::request(&large, ""));
    client.send(&requests);
    assert_eq!(client.head().status, 200);
    client.body(small_pattern, 0, 100, 100, Duration::ZERO);
    assert_eq!(client.head().status, 200);
    client.body(large_pattern, 0, 100_000, 64 * 1024, Duration::ZERO);
}

fn a_session_is_resumed(machine: &Machine) {
    let (target, pattern) = machine.stored(100_000);
    for suite in [
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ] {
        let mut config = (*client::config(Some(suite))).clone();
        config.resumption = Resumption::in_memory_sessions(8);
        let config = std::sync::Arc::new(config);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let before = tls_stat()["TlsTxSw"];
            let mut client = Client::with(machine.proxy.https_addr(), config.clone());
            client.get(&target, pattern, 100_000);
            assert_eq!(client.tls.handshake_kind(), Some(expected), "{suite:?}");
            assert_eq!(tls_stat()["TlsTxSw"], before + 1);
        }
    }
}

fn both_sides_say_that_they_close(machine: &Machine) {
    let (target, pattern) = machine.stored(100_000);
    // The server first.
    let mut client = machine.client();
    client.ask(&target, "connection: close\r\n");
    let head = client.head();
    client.body(pattern, 0, head.length, 64 * 1024, Duration::ZERO);
    assert_eq!(client.read_to_close(), b"");

    // The client first, behind its request: the answer comes all the same, or not at all.
    let mut client = machine.client();
    client.get(&target, pattern, 100_000);
    client.close();
    assert_eq!(client.read_to_close(), b"");
}

fn a_slow_reader_gets_it_all(machine: &Machine) {
    let length = 1 << 20;
    let (target, pattern) = machine.stored(length);
    let mut client = machine.client();
    client.ask(&target, "");
    assert_eq!(client.head().length, length);
    client.body(pattern, 0, length, 16 * 1024, Duration::from_millis(30));
}

fn readers_that_go_away_leave_nothing_behind(machine: &Machine) {
    let length = 10 << 20;
    let (target, pattern) = machine.stored(length);
    let descriptors = machine.proxy.open_descriptors();
    for _ in 0..5 {
        let mut client = machine.client();
        client.ask(&target, "");
        assert_eq!(client.head().length, length);
        client.body(pattern, 0, 300_000, 64 * 1024, Duration::ZERO);
        client.abort();
    }
    eventually("the connections are gone", || {
        tls_stat()["TlsCurrTxSw"] == 0 && machine.proxy.open_descriptors() <= descriptors
    });
}

fn the_keys_of_both_directions_change(machine: &Machine) {
    let length = 100_000;
    let (target, pattern) = machine.stored(length);
    let before = tls_stat();
    let mut client = machine.client();
    for _ in 0..3 {
        client.get(&target, pattern, length);
        // It asks for a new key of the server too (rustls always does).
        client.tls.refresh_traffic_keys().expect("change the key");
    }
    client.get(&target, pattern, length);
    let now = tls_stat();
    for counter in ["TlsTxRekeyOk", "TlsRxRekeyOk"] {
        assert_eq!(now[counter], before[counter] + 3, "{counter}");
    }
    client.close();
    assert_eq!(client.read_to_close(), b"");

    // TLS 1.2 has no such thing.
    let suite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let mut client = Client::with(machine.proxy.https_addr(), client::config(Some(suite)));
    client.get(&target, pattern, length);
    assert_eq!(
        client.tls.protocol_version(),
        Some(ProtocolVersion::TLSv1_2)
    );
}

fn they_change_in_the_middle_of_a_download(machine: &Machine) {
    let length = 10 << 20;
    let (target, pattern) = machine.stored(length);
    let mut client = machine.client();
    client.ask(&target, "");
    assert_eq!(client.head().length, length);
    client.body(pattern, 0, 1 << 20, 64 * 1024, Duration::ZERO);
    client.tls.refresh_traffic_keys().expect("change the key");
    client.tls.write_tls(&mut client.tcp).expect("send it");
    client.body(
        pattern,
        1 << 20,
        length - (1 << 20),
        64 * 1024,
        Duration::ZERO,
    );
    client.get(&target, pattern, length);
}

fn a_client_that_changes_its_key_is_let_go(machine: &Machine) {
    let length = 100_000;
    let (target, pattern) = machine.stored(length);
    let mut client = machine.client();
    client.get(&target, pattern, length);
    client.tls.refresh_traffic_keys().expect("change the key");
    client.tls.complete_io(&mut client.tcp).expect("send it");
    assert_eq!(client.read_to_close(), b"");
    // Others go on.
    machine.client().get(&target, pattern, length);
}

fn a_file_cut_short_breaks_the_connection(machine: &Machine) {
    let length = 20 << 20;
    let (target, pattern) = machine.stored(length);
    let mut client = machine.client();
    client.ask(&target, "");
    assert_eq!(client.head().length, length);
    client.body(pattern, 0, 100_000, 10_000, Duration::ZERO);
    let file = largest_file(&machine.proxy.cache_dir());
    let cut = fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .expect("open the file");
    cut.set_len(15 << 20).expect("cut it short");
    let mut rest = 0;
    let mut buf = vec![0; 64 * 1024];
    let end = loop {
        match client.read(&mut buf) {
            Ok(0) => break None,
            Ok(n) => rest += n as u64,
            Err(e) => break Some(e.kind()),
        }
    };
    // Fewer bytes than the head has promised, whether or not the end was announced.
    assert!(
        100_000 + rest <= 15 << 20,
        "{rest} bytes more, then {end:?}"
    );
    assert!(rest > 0);
}

/// The entry of the largest object in a cache.
fn largest_file(dir: &Path) -> PathBuf {
    let mut largest = (0, PathBuf::new());
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("read the cache") {
            let entry = entry.expect("read the cache");
            let data = entry.metadata().expect("look at a file");
            if data.is_dir() {
                dirs.push(entry.path());
            } else if data.len() > largest.0 {
                largest = (data.len(), entry.path());
            }
        }
    }
    largest.1
}

fn curl_and_openssl_and_go_agree(machine: &Machine) {
    let length = 1 << 20;
    let (target, _) = machine.stored(length);
    let expected = pattern(length, length as usize);
    let before = tls_stat()["TlsTxSw"];

    let url = machine.url(&target);
    let curl = output(Command::new("curl").args(["-sSk", "--http1.1", &url, &url]));
    assert!(
        curl.stdout == [&expected[..], &expected[..]].concat(),
        "curl"
    );

    // It ends with the connection, and complains unless that was announced.
    let address = machine.proxy.https_addr().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = Command::new("openssl")
            .args([
                "s_client", "-quiet", "-ign_eof", version, "-connect", &address,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run openssl");
        let request = client::request(&target, "connection: close\r\n");
        std::io::Write::write_all(&mut openssl.stdin.take().expect("its input"), &request)
            .expect("ask");
        let openssl = openssl.wait_with_output().expect("wait for openssl");
        assert!(openssl.stdout.ends_with(&expected), "openssl {version}");
        let errors = String::from_utf8_lossy(&openssl.stderr).into_owned();
        assert!(
            !errors.contains("unexpected eof"),
            "openssl {version}: {errors}"
        );
    }

    let go = output(Command::new(&machine.go_client).arg(&url));
    let hash = sha256(&expected);
    assert_eq!(
        String::from_utf8_lossy(&go.stdout),
        format!("{hash}\n{hash}\n")
    );
    assert_eq!(tls_stat()["TlsTxSw"], before + 4);
}

fn http2_stays_in_user_space(machine: &Machine) {
    let length = 1 << 20;
    let (target, _) = machine.stored(length);
    let before = tls_stat()["TlsTxSw"];
    let version = ["-sSk", "--http2", "-w", "%{stderr}%{http_version}"];
    let curl = output(Command::new("curl").args(version).arg(machine.url(&target)));
    assert_eq!(String::from_utf8_lossy(&curl.stderr), "2");
    assert!(curl.stdout == pattern(length, length as usize));
    assert_eq!(tls_stat()["TlsTxSw"], before);
}

fn switched_off_nothing_goes_to_the_kernel(machine: &Machine) {
    let proxy = Proxy::builder(&machine.binary)
        .bucket(Bucket::at(&machine.origin, "/assets", "bucket"))
        .tls()
        .ktls("off")
        .start();
    proxy.get("/assets/100000");
    let before = tls_stat();
    Client::connect(proxy.https_addr()).get("/assets/100000", Pattern::new(100_000), 100_000);
    assert_eq!(tls_stat(), before);
    assert!(
        !proxy.stderr().contains("server.tls.ktls"),
        "{}",
        proxy.stderr()
    );
}

/// The server that has had kernel TLS for longest, by the same client and counters.
fn nginx_does_the_same(machine: &Machine) {
    let dir = tempfile::tempdir().expect("make a directory");
    let pair = SelfSigned::write_to(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("make the root");
    fs::write(root.join("object"), pattern(7, 1 << 20)).expect("write the object");
    let config = dir.path().join("nginx.conf");
    let text = format!(
        "user root; worker_processes 1; daemon off; pid {dir}/pid; error_log stderr error;\n\
         events {{}}\n\
         http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:9443 ssl; root {root};\n\
         ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_conf_command Options KTLS; }} }}\n",
        dir = dir.path().display(),
        root = root.display(),
        certificate = pair.certificate.display(),
        key = pair.key.display(),
    );
    fs::write(&config, text).expect("write the configuration");
    let nginx = Command::new("nginx").arg("-c").arg(&config).spawn();
    let _nginx = Killed(nginx.expect("run nginx"));
    let address = "127.0.0.1:9443".parse().expect("an address");
    eventually("nginx listens", || {
        std::net::TcpStream::connect(address).is_ok()
    });
    let before = tls_stat()["TlsTxSw"];
    Client::connect(address).get("/object", Pattern::new(7), 1 << 20);
    assert_eq!(tls_stat()["TlsTxSw"], before + 1);
    let _ = machine;
}

/// A process that ends with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_hit_leaves_by_sendfile_alone(machine: &Machine) {
    let length = 10 << 20;
    let (target, pattern) = machine.stored(length);
    let dir = tempfile::tempdir().expect("make a directory");
    let trace = dir.path().join("trace");
    let calls = "trace=read,pread64,preadv,preadv2,readv,recvfrom,recvmsg,recvmmsg,write,pwrite64,\
                 writev,sendto,sendmsg,sendmmsg,sendfile,splice,setsockopt";
    let pid = machine.proxy.pid().to_string();
    let strace = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-e",
            "signal=none",
            "-e",
            calls,
            "-p",
            &pid,
            "-o",
        ])
        .arg(&trace)
        .spawn();
    let mut strace = Killed(strace.expect("run strace"));
    eventually("strace is attached", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        status
            .lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    });
    let mut client = machine.client();
    client.get(&target, pattern, length);
    drop(client);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&strace.0),
        rustix::process::Signal::INT,
    )
    .expect("end strace");
    strace.0.wait().expect("wait for strace");

    let trace = fs::read_to_string(&trace).expect("read the trace");
    let (mut sent, mut copied) = (0, 0);
    for line in trace.lines() {
        let result = line
            .rsplit(" = ")
            .next()
            .and_then(|result| result.parse::<u64>().ok());
        let Some(result) = result else { continue };
        if line.contains("sendfile") {
            sent += result;
        } else if !line.contains("setsockopt") {
            copied += result;
        }
    }
    assert_eq!(sent, length, "{trace}");
    assert!(copied < 64 * 1024, "{copied} bytes were copied\n{trace}");
    assert!(trace.contains("SOL_TLS, TLS_TX"), "{trace}");
}

fn a_large_body_arrives_whole(machine: &Machine) {
    // The default takes about a minute under emulation.
    let mib = env::var(LARGE_MIB).map_or(64, |mib| mib.parse().expect("a number of MiB"));
    let length = mib << 20;
    let (target, pattern) = machine.stored(length);
    let mut client = machine.client();
    client.ask(&target, "");
    assert_eq!(client.head().length, length);
    // Each piece is compared, at about every fourth place: the program is not optimized.
    let mut buf = vec![0; 64 * 1024];
    let mut at = 0;
    while at < length {
        let n = client.read(&mut buf).expect("read the body");
        assert!(n > 0, "the body ends at byte {at}");
        pattern.check(at, &buf[..n.min(1024)]);
        let last = n.saturating_sub(1024);
        pattern.check(at + last as u64, &buf[last..n]);
        at += n as u64;
    }
    assert_eq!(at, length);
}

/// Environment variable with the size of the body of [`a_large_body_arrives_whole`], in MiB.
pub const LARGE_MIB: &str = "VM_LARGE_MIB";

fn no_record_was_undecipherable(_: &Machine) {
    assert_eq!(tls_stat()["TlsDecryptError"], 0);
}

fn a_forged_record_is_answered_with_an_alert(machine: &Machine) {
    let (target, pattern) = machine.stored(100_000);
    let mut client = machine.client();
    client.get(&target, pattern, 100_000);
    let mut record = vec![23, 3, 3, 0, 32];
    record.extend([0; 32]);
    std::io::Write::write_all(&mut client.tcp, &record).expect("send it");
    let e = client.error();
    assert_eq!(e.kind(), ErrorKind::InvalidData, "{e}");
    assert!(e.to_string().contains("BadRecordMac"), "{e}");
    assert_eq!(tls_stat()["TlsDecryptError"], 1);
}

fn without_the_module_it_is_said(machine: &Machine) {
    let dir = tempfile::tempdir().expect("make a directory");
    let pair = SelfSigned::write_to(dir.path());
    let check = |ktls: &str| {
        let config = dir.path().join("config.yaml");
        let text = format!(
            "server:\n  address: 127.0.0.1:0\n  tls: {{address: '127.0.0.1:0', certificate: {}, key: {}, ktls: {ktls}}}\n\
             buckets: [{{path_prefix: /a, bucket: bucket, region: r}}]\n",
            pair.certificate.display(),
            pair.key.display()
        );
        fs::write(&config, text).expect("write the configuration");
        Command::new(&machine.binary)
            .args(["check", "--config"])
            .arg(&config)
            .output()
            .expect("run s3-proxy")
    };
    assert_eq!(check("on").status.code(), Some(0));
    eventually("no connection uses it", || tls_stat()["TlsCurrTxSw"] == 0);
    // The proxy keeps connections of clients that have gone no longer than it takes to notice.
    eventually("the module is unloaded", || {
        Command::new("rmmod")
            .arg("tls")
            .status()
            .is_ok_and(|status| status.success())
    });
    let refused = check("on");
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains(
            "server.tls.ktls: is on, and the kernel module tls is missing (modprobe tls)"
        ),
        "{said}"
    );
    assert_eq!(check("auto").status.code(), Some(0));
    assert_eq!(check("off").status.code(), Some(0));

    // A running proxy goes on without it.
    machine
        .client()
        .get("/assets/100000", Pattern::new(100_000), 100_000);
}

/// Counts the instructions of a hit, with kernel TLS and without. The proxy has processor 1, this
/// client and the origin have processor 0. The arguments are those of [`run`].
pub fn count() -> ExitCode {
    let binary = env::args().nth(3).expect("the proxy");
    pin("1", &std::process::id().to_string());
    let origin = Origin::start(|_| Reply::pattern(COUNTED, COUNTED).header("etag", "\"1\""));
    for choice in COUNTED_CHOICES {
        let proxy = Proxy::builder(&binary)
            .bucket(Bucket::at(&origin, "/assets", "bucket"))
            .threads(1)
            .tls()
            .ktls(choice)
            .start();
        let target = format!("/assets/{COUNTED}");
        assert!(proxy.get(&target).complete);
        eventually("the object is stored", || {
            proxy.metric("cache_fills_in_flight") == 0
        });
        for thread in fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("its threads") {
            let thread = thread.expect("a thread").file_name();
            pin("2", &thread.to_string_lossy());
        }
        let mut client = Client::connect(proxy.https_addr());
        let pattern = Pattern::new(COUNTED);
        client.get(&target, pattern, COUNTED);
        mark();
        client.get(&target, pattern, COUNTED);
        mark();
    }
    ExitCode::SUCCESS
}

/// Binds a thread to the processors of a mask.
fn pin(mask: &str, thread: &str) {
    output(Command::new("taskset").args(["-p", mask, thread]));
}

/// Has QEMU note the instructions so far, see `count.c`.
fn mark() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it does nothing
    unsafe {
        std::arch::asm!(
            "nop dword ptr [rax + rax + 0x6b746c73]",
            options(nomem, nostack, preserves_flags)
        );
    }
}
