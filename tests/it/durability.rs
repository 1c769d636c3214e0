//! The process may end in any way and at any time: the cache's answers afterwards are
//! complete and right, and its metrics agree with the disk.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    fs::{self, File, FileTimes},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::engine::{self, trace, Object};
use pingora_cache::{CacheMeta, HttpCache, Storage};
use pingora_sendfile::cache::{
    BackendChoice, DiskCache, DiskCacheConfig, EntryId, EntryMeta, Eviction, FILL_BROKEN, NO_ROOM,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::proxy;
use test_support::{
    eventually, eventually_ok, pattern, skip, try_get, Origin, Pattern, Proxy, Reply, Request,
    Response, PATIENCE,
};

// --- killed at a system call ---

// strace(1) kills the process as one of its threads enters a call for the n-th
// time. These calls are all that changes the files of an entry, but for their
// creation, after which one of these follows: so each state that the folder can
// be left in is the one before one of them.

#[test]
fn killed_at_a_write_to_a_body_it_leaves_a_sound_cache() {
    killed_at("tokio", "pwritev", 3);
}

#[test]
fn killed_at_a_write_to_metadata_it_leaves_a_sound_cache() {
    killed_at("tokio", "write", 5);
}

#[test]
fn killed_at_a_reservation_it_leaves_a_sound_cache() {
    killed_at("tokio", "fallocate", 1);
}

#[test]
fn killed_at_a_sync_it_leaves_a_sound_cache() {
    killed_at("tokio", "fdatasync", 1);
}

#[test]
fn killed_at_a_rename_it_leaves_a_sound_cache() {
    killed_at("tokio", "/^rename", 1);
}

#[test]
fn killed_at_a_removal_it_leaves_a_sound_cache() {
    killed_at("tokio", "/^unlink", 1);
}

// Over io_uring, the calls are made by the kernel: a process dies between two
// of its submissions.
#[test]
fn killed_at_a_submission_it_leaves_a_sound_cache() {
    killed_at("uring", "io_uring_enter", 9);
}

/// So many objects do not fit into the cache, so that each fill evicts another.
const OBJECTS: u64 = 10;
const LIMIT_GB: f64 = 0.002;

/// The number of times that the process is killed at each call.
const POINTS: usize = 8;

/// `step` is from one point to the next, in calls of a thread.
fn killed_at(backend: &str, calls: &str, step: usize) {
    if let Err(why) = strace_works() {
        return skip(&why);
    }
    let origin = origin();
    let mut proxy = proxy(&origin)
        .backend(backend)
        .max_size_gb(LIMIT_GB)
        .start();
    if proxy.stderr().contains("tokio is used instead of uring") {
        return skip("io_uring cannot be used");
    }
    let (mut in_service, mut hits) = (0, 0);
    for n in (1..).step_by(step).take(POINTS) {
        let trace = format!("trace={calls}");
        let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
        let strace = [
            "strace",
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &trace,
            "-e",
            &inject,
        ];
        let ready = proxy.restart_under(&strace);
        // Dead already: it came to the call when it opened the cache.
        if ready {
            ask_until_it_dies(&proxy, n);
            proxy.wait_for_end();
            in_service += 1;
        }

        let at = format!("{calls} number {n}");
        proxy.restart();
        expect_sound(&proxy, &at);
        for object in objects() {
            let response = proxy.get(&object);
            assert!(response.complete, "{at}: {object}");
            check(&object, &response);
            hits += usize::from(response.header("x-cache") == Some("HIT"));
        }
        expect_sound(&proxy, &at);
    }
    println!("{calls}: killed {POINTS} times, {in_service} in service, then {hits} hits");
    assert!(
        in_service > POINTS / 2,
        "killed before it could do anything"
    );
    assert!(hits > 0, "no entry has survived");
}

/// Asks for everything over and over: fills, refills, revalidations, evictions.
fn ask_until_it_dies(proxy: &Proxy, n: usize) {
    const ROUNDS: usize = 100;
    let addr = proxy.addr();
    let objects = objects();
    // Each point has its own order.
    let start = n % objects.len();
    for object in objects
        .iter()
        .cycle()
        .skip(start)
        .take(ROUNDS * objects.len())
    {
        match try_get(addr, object) {
            Some(response) => check(object, &response),
            None => return,
        }
    }
    panic!("the proxy outlived {ROUNDS} rounds");
}

fn objects() -> Vec<String> {
    let plain = (0..OBJECTS).map(|seed| format!("/assets/{seed}"));
    plain
        .chain(["/assets/changing".into(), "/assets/lasting".into()])
        .collect()
}

/// Numbered objects, every other of a length that it does not tell; one that is
/// another at each request, and one that has always just expired.
fn origin() -> Origin {
    let version = AtomicU64::new(1000);
    Origin::start(move |request| match name(request) {
        "changing" => {
            let version = version.fetch_add(1, Ordering::Relaxed);
            Reply::pattern(version, 120_000)
                .header("ETag", format!("\"{version}\""))
                .header("Cache-Control", "max-age=0")
        }
        "lasting" => Reply::pattern(LASTING, 80_000)
            .header("ETag", format!("\"{LASTING}\""))
            .header("Cache-Control", "max-age=0")
            .answering(request),
        number => {
            let seed = number.parse().expect("a number");
            let reply = Reply::pattern(seed, len(seed)).header("ETag", format!("\"{seed}\""));
            if seed % 2 == 0 {
                reply
            } else {
                reply.chunked()
            }
        }
    })
}

const LASTING: u64 = 999;

fn len(seed: u64) -> u64 {
    100_000 + 40_000 * seed
}

fn name(request: &Request) -> &str {
    request.path().rsplit('/').next().unwrap_or_default()
}

/// The body is from the start of the object that its ETag names, and all of it
/// if it says so.
fn check(object: &str, response: &Response) {
    assert_eq!(response.status, 200, "{object}");
    let etag = response.header("etag").expect("an ETag");
    let seed: u64 = etag.trim_matches('"').parse().expect("a number");
    Pattern::new(seed).check(0, &response.body);
    let len = match object {
        "/assets/changing" => 120_000,
        "/assets/lasting" => 80_000,
        _ => {
            assert_eq!(format!("/assets/{seed}"), object);
            len(seed)
        }
    };
    let got = response.body.len() as u64;
    assert!(got <= len, "{object}: {got} bytes");
    assert!(got == len || !response.complete, "{object}: {got} bytes");
}

/// Waits until the folder holds whole entries and nothing else, and the metrics
/// say the same.
fn expect_sound(proxy: &Proxy, at: &str) {
    let folder = proxy.cache_dir();
    eventually_ok(|| {
        let files = Files::of(&folder);
        files.are_whole().map_err(|what| format!("{at}: {what}"))?;
        let metrics = proxy.metrics();
        let said = (
            metrics.sum("cache_entries"),
            metrics.sum("cache_size_bytes"),
        );
        let is = (files.metas.len() as u64, files.bytes);
        if said == is {
            Ok(())
        } else {
            Err(format!(
                "{at}: entries and bytes are {is:?}, metrics {said:?}"
            ))
        }
    });
}

fn strace_works() -> Result<(), String> {
    let tried = Command::new("strace")
        .args(["-D", "-f", "-qq", "-o", "/dev/null", "true"])
        .status();
    match tried {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("strace may not trace: {status}")),
        Err(e) => Err(format!("strace does not start: {e}")),
    }
}

// --- killed at full speed ---

// Names the folder to the process that is to be killed, and what to do there.
const WORKER: &str = "DURABILITY_WORKER";

#[test]
fn killed_at_full_speed_the_engine_keeps_its_word_over_tokio() {
    killed_at_full_speed(BackendChoice::Tokio);
}

#[test]
fn killed_at_full_speed_the_engine_keeps_its_word_over_io_uring() {
    killed_at_full_speed(BackendChoice::Uring);
}

const GROUPS: usize = 4;
const WORKERS: usize = 8;
const KEYS: usize = 96;
/// Less than the objects of all keys.
const LIMIT: u64 = 2_000_000;
const MAX_LEN: u64 = 100_000;

fn killed_at_full_speed(backend: BackendChoice) {
    const ROUNDS: u64 = 30;
    let folder = TempDir::new().expect("make a folder");
    let names = names();
    let mut random = Random(1);
    let mut purged: HashMap<String, u64> = HashMap::new();
    let mut served = 0;
    for round in 1..=ROUNDS {
        let mut worker = Worker::start(folder.path(), backend, round);
        // One in four dies while it opens the cache, or soon after.
        if round % 4 != 0 {
            worker.wait_until_ready();
        }
        // The signal to wait for would be no surprise.
        thread::sleep(Duration::from_millis(50 + random.below(250)));
        for (name, seed) in worker.kill() {
            let last = purged.entry(name).or_default();
            *last = seed.max(*last);
        }

        let cache = engine::open(config(folder.path(), backend));
        if backend == BackendChoice::Uring && cache.backend().name() != "uring" {
            engine::close(cache);
            return skip("io_uring cannot be used");
        }
        engine::block_on(cache.settle());
        let files = Files::of(folder.path());
        assert_eq!(files.are_whole(), Ok(()), "round {round}");
        assert_eq!(cache.entries(), files.metas.len(), "round {round}");
        assert_eq!(cache.size_bytes(), files.bytes, "round {round}");
        for name in &names {
            let Some(object) = engine::block_on(engine::stored(cache, name)) else {
                continue;
            };
            served += 1;
            let last = purged.get(name).copied().unwrap_or(0);
            let seed = object.seed;
            assert!(
                seed > last,
                "round {round}: {name} {seed}, purged at {last}"
            );
        }
        engine::close(cache);
    }
    println!(
        "{ROUNDS} rounds: {} keys purged, {served} entries survived",
        purged.len()
    );
    assert!(!purged.is_empty(), "nothing was ever purged");
    assert!(served > 0, "no entry has ever survived");
}

fn config(folder: &Path, backend: BackendChoice) -> DiskCacheConfig {
    DiskCacheConfig {
        backend,
        ..engine::config(folder, LIMIT)
    }
}

/// Keys in groups that a prefix names.
fn names() -> Vec<String> {
    (0..KEYS)
        .map(|key| format!("{}/{key}", key % GROUPS))
        .collect()
}

/// A process that works on a cache until it is killed.
struct Worker {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

// === impl Worker ===

impl Worker {
    fn start(folder: &Path, backend: BackendChoice, round: u64) -> Self {
        let order = format!("{backend:?} {round} {}", folder.display());
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "durability::worker", "--nocapture"])
            .env(WORKER, order)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a worker");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, stdout }
    }

    fn wait_until_ready(&mut self) {
        let mut line = String::new();
        while line.trim() != "ready" {
            line.clear();
            let n = self.stdout.read_line(&mut line).expect("read");
            assert!(n > 0, "the worker ended before it was ready");
        }
    }

    /// Kills it; returns the keys whose purge it had acknowledged by then, each
    /// with the last seed that it voids.
    fn kill(mut self) -> Vec<(String, u64)> {
        self.child.kill().expect("kill the worker");
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).expect("read");
        let status = self.child.wait().expect("wait for the worker");
        assert_eq!(status.signal(), Some(9), "the worker ended: {status}");
        said.lines()
            .filter_map(|line| {
                let (name, seed) = line.strip_prefix("purged ")?.split_once(' ')?;
                Some((name.to_owned(), seed.parse().ok()?))
            })
            .collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only where the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test, but what [`Worker`] runs.
#[test]
fn worker() {
    let Ok(order) = env::var(WORKER) else { return };
    let mut words = order.splitn(3, ' ');
    let mut word = || words.next().expect("a word");
    let backend = match word() {
        "Uring" => BackendChoice::Uring,
        _ => BackendChoice::Tokio,
    };
    let round: u64 = word().parse().expect("a number");
    let cache = DiskCache::open(config(Path::new(word()), backend)).expect("open the cache");
    // libtest may have begun a line.
    say("\nready");
    let shared = Arc::new(Shared {
        cache,
        names: names(),
        next_seed: AtomicU64::new(round * 1_000_000),
        begun: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
        void: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
    });
    let runtime = tokio::runtime::Runtime::new().expect("make a runtime");
    let ended = runtime.block_on(async {
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let random = Random(round * 100 + worker as u64);
            workers.spawn(shared.clone().work(worker, random));
        }
        workers.join_next().await
    });
    panic!("a worker ended: {ended:?}");
}

fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").expect("write to stdout");
    stdout.flush().expect("write to stdout");
}

/// The knowledge that the tasks of a worker share.
struct Shared {
    cache: &'static DiskCache,
    names: Vec<String>,
    next_seed: AtomicU64,
    /// For each key, the seed of the last fill that has its place in the order
    /// of fills and purges.
    begun: Vec<AtomicU64>,
    /// For each key, the last seed that must not be served any more.
    void: Vec<AtomicU64>,
}

// === impl Shared ===

impl Shared {
    /// One task: only it writes its keys, so that their seeds grow with their
    /// generations.
    async fn work(self: Arc<Self>, task: usize, mut random: Random) {
        loop {
            let any = random.below(KEYS as u64) as usize;
            let own = any / WORKERS * WORKERS + task;
            match random.below(200) {
                0..100 => self.fill(own, &mut random).await,
                100..160 => self.check(any).await,
                160..180 => self.update(own, &mut random).await,
                180..199 => self.purge(any).await,
                _ => self.ban(any % GROUPS).await,
            }
        }
    }

    async fn fill(&self, key: usize, random: &mut Random) {
        let seed = self.next_seed.fetch_add(1, Ordering::SeqCst);
        let object = Object {
            tells_len: random.below(2) == 0,
            ..Object::new(seed, random.below(MAX_LEN))
        };
        let begun = engine::try_begin(self.cache, &self.names[key], object).await;
        let mut miss = match begun {
            Ok(miss) => miss,
            // Entries that are being committed take all the room.
            Err(e) => return assert_eq!(*e.etype(), NO_ROOM, "{e}"),
        };
        self.begun[key].store(seed, Ordering::SeqCst);
        // One in ten origins breaks off.
        let end = match random.below(10) {
            0 => random.below(object.len + 1),
            _ => object.len,
        };
        engine::write(&mut miss, object, 0, end).await;
        if end == object.len {
            miss.finish().await.expect("finish a fill");
        }
    }

    async fn check(&self, key: usize) {
        let name = &self.names[key];
        let void = self.void[key].load(Ordering::SeqCst);
        let Some((meta, hit)) = engine::lookup(self.cache, name).await else {
            return;
        };
        let object = Object::of(&meta);
        assert!(
            object.seed > void,
            "{name}: {object:?} was purged at {void}"
        );
        match engine::read(hit).await {
            Ok(body) => {
                assert_eq!(body.len() as u64, object.len, "{name}: {object:?}");
                Pattern::new(object.seed).check(0, &body);
            }
            // It followed a fill that broke off.
            Err(e) => assert_eq!(*e.etype(), FILL_BROKEN, "{name}: {e}"),
        }
    }

    /// As if the origin had said that it is still the same.
    async fn update(&self, key: usize, random: &mut Random) {
        let name = &self.names[key];
        let Some((mut meta, _)) = engine::lookup(self.cache, name).await else {
            return;
        };
        let note = "x".repeat(random.below(1000) as usize);
        let header = meta.response_header_mut();
        header.insert_header("x-note", note).expect("a field");
        self.cache
            .update_meta(&engine::key(name), &meta, &trace())
            .await
            .expect("update metadata");
    }

    async fn purge(&self, key: usize) {
        let name = &self.names[key];
        let begun = self.begun[key].load(Ordering::SeqCst);
        let purged = self.cache.purge_key(&engine::key(name)).await;
        purged.expect("purge a key");
        self.purged(key, begun);
    }

    async fn ban(&self, group: usize) {
        let keys = || (0..KEYS).filter(|key| key % GROUPS == group);
        let begun: Vec<_> = keys()
            .map(|key| self.begun[key].load(Ordering::SeqCst))
            .collect();
        let prefix = format!("{group}/");
        let banned = self.cache.ban_prefix(engine::TAG, prefix.as_bytes()).await;
        banned.expect("ban a prefix");
        for (key, begun) in keys().zip(begun) {
            self.purged(key, begun);
        }
    }

    fn purged(&self, key: usize, seed: u64) {
        self.void[key].fetch_max(seed, Ordering::SeqCst);
        say(&format!("purged {} {seed}", self.names[key]));
    }
}

/// A sequence that is the same in every run: splitmix64.
struct Random(u64);

// === impl Random ===

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0 += 1;
        Pattern::new(self.0).fill(0, &mut bytes);
        u64::from_le_bytes(bytes) % limit
    }
}

// --- a million entries ---

#[test]
fn a_million_entries_are_served_while_they_are_found() {
    const ENTRIES: u64 = 1_000_000;
    const KNOWN: u64 = 20;
    const LEN: u64 = 10_000;
    const BYTES_AN_ENTRY: u64 = 200;
    // Two for each entry, and room for others.
    const NAMES: u64 = 2_500_000;
    // tmpfs makes names faster than ext4. Each of them, also a hard link, takes an inode there; by
    // default it has so many only on a machine with 20 GB of memory.
    let parents = [PathBuf::from("/dev/shm"), env::temp_dir()];
    let fits = |parent: &&PathBuf| {
        let stat = rustix::fs::statvfs(*parent);
        stat.is_ok_and(|stat| stat.f_favail >= NAMES) && TempDir::new_in(parent).is_ok()
    };
    let Some(parent) = parents.iter().find(fits) else {
        return skip(&format!(
            "fewer than {NAMES} free inodes in each of {parents:?}"
        ));
    };

    // An object that is asked for while it is in the folder may not be stored again.
    let asked_before = Arc::new(AtomicBool::new(false));
    let origin = Origin::start({
        let asked_before = asked_before.clone();
        move |request| {
            let seed = name(request).parse().expect("a number");
            let reply = Reply::pattern(seed, LEN);
            match asked_before.load(Ordering::SeqCst) {
                false => reply,
                true => reply.header("Cache-Control", "no-store"),
            }
        }
    });
    let mut proxy = proxy(&origin).within(parent).start();
    let ask = |proxy: &Proxy, seed: u64| {
        let response = proxy.get(&format!("/assets/{seed}"));
        assert!(response.complete);
        assert_eq!(response.body.len() as u64, LEN);
        Pattern::new(seed).check(0, &response.body);
        response.header("x-cache") == Some("HIT")
    };
    for seed in 0..KNOWN {
        assert!(!ask(&proxy, seed));
    }
    proxy.expect_metric("cache_entries", KNOWN);
    asked_before.store(true, Ordering::SeqCst);
    proxy.kill();

    // The time and memory that the proxy takes without them.
    let start = Instant::now();
    proxy.restart();
    assert!(ask(&proxy, 0) || proxy.metric("cache_entries") < KNOWN);
    let usual = start.elapsed();
    proxy.expect_metric("cache_entries", KNOWN);
    for seed in 0..KNOWN {
        assert!(ask(&proxy, seed));
    }
    let without = proxy.rss_bytes();
    proxy.kill();

    let start = Instant::now();
    make_entries(&proxy.cache_dir(), ENTRIES - KNOWN);
    let made = start.elapsed();

    let start = Instant::now();
    proxy.restart();
    ask(&proxy, 0);
    let first = start.elapsed();
    let mut early = 0;
    let loaded = loop {
        let hits = (0..KNOWN).filter(|seed| ask(&proxy, *seed)).count();
        let found = proxy.metric("cache_entries");
        if found == ENTRIES {
            break start.elapsed();
        }
        early = early.max(hits);
        assert!(start.elapsed() < 10 * PATIENCE, "{found} found");
        thread::sleep(Duration::from_millis(50));
    };
    for seed in 0..KNOWN {
        assert!(ask(&proxy, seed), "{seed}");
    }
    let an_entry = proxy.rss_bytes().saturating_sub(without) / ENTRIES;
    proxy.kill();
    let start = Instant::now();
    remove_entries(&proxy.cache_dir());
    println!(
        "made in {made:?}, first answer after {first:?} (without: {usual:?}), \
         all found after {loaded:?}, {early} hits before, {an_entry} bytes an entry, \
         removed in {:?}",
        start.elapsed()
    );

    assert!(early > 0, "no hit before all entries were found");
    assert!(an_entry <= BYTES_AN_ENTRY, "{an_entry} bytes an entry");
}

/// Makes entries of a run before, which nobody will ask for: names of the same
/// two files, since names and sizes are all that the index is made of.
fn make_entries(folder: &Path, count: u64) {
    let file = |id: &EntryId, extension: &str| {
        let name = format!("{id}.{extension}");
        folder.join("v2").join(&name[..2]).join(name)
    };
    let entry = |shard, number| {
        let mut hash = [0; 16];
        Pattern::new(number).fill(0, &mut hash);
        hash[0] = shard;
        // Of the run before; its own are far below.
        let generation = 1 << 32 | 1 << 31 | number;
        EntryId { hash, generation }
    };
    // A shard has its own files: a file can not have a million names (ext4: 65,000).
    for_each_shard(|shard| {
        let mut numbers = (u64::from(shard)..count).step_by(256);
        let first = entry(shard, numbers.next().expect("a number"));
        let (body, meta) = (file(&first, "body"), file(&first, "meta"));
        fs::write(&body, [0; 1000]).expect("write a body");
        fs::write(&meta, [0; 400]).expect("write metadata");
        for number in numbers {
            let id = entry(shard, number);
            fs::hard_link(&body, file(&id, "body")).expect("link a body");
            fs::hard_link(&meta, file(&id, "meta")).expect("link metadata");
        }
    });
}

fn remove_entries(folder: &Path) {
    for_each_shard(|shard| {
        let shard = folder.join(format!("v2/{shard:02x}"));
        fs::remove_dir_all(shard).expect("remove a shard");
    });
}

fn for_each_shard(work: impl Fn(u8) + Sync) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Ok(shard) = u8::try_from(next.fetch_add(1, Ordering::SeqCst)) {
                    work(shard);
                }
            });
        }
    });
}

// --- folders that are not as this version left them ---

#[test]
fn other_versions_are_removed_and_other_names_stay() {
    let folder = TempDir::new().expect("make a folder");
    let path = |name: &str| folder.path().join(name);
    let old = path("entries/ab");
    fs::create_dir_all(&old).expect("make a folder");
    fs::write(old.join("ab12.meta"), b"PSFMETA1 and so on").expect("write");
    fs::write(old.join("ab12.body"), b"a body").expect("write");
    fs::create_dir_all(path("v3/ab")).expect("make a folder");
    fs::write(path("v3/ab/entry"), b"PSFMETA3").expect("write");
    let foreign = [
        "lost+found",
        "v2/lost+found",
        "v2x",
        "version3",
        "v7/photos",
    ];
    for name in foreign {
        fs::create_dir_all(path(name)).expect("make a folder");
    }
    let notes = ["notes.txt", "v2/ab/notes.txt", "v4"];
    fs::create_dir_all(path("v2/ab")).expect("make a folder");
    for name in notes {
        fs::write(path(name), b"mine").expect("write");
    }

    // A folder that was no cache so far is left alone.
    let cache = engine::open(engine::config(folder.path(), LIMIT));
    engine::close(cache);
    assert!(path("entries").exists() && path("v3").exists());

    // From the second time on it is one, and what is not named as ours stays.
    fs::create_dir_all(path("v7/photos")).expect("make a folder");
    let cache = engine::open(engine::config(folder.path(), LIMIT));
    assert_eq!(cache.entries(), 0);
    eventually("the other versions are removed", || {
        !path("entries").exists() && !path("v3").exists()
    });
    for name in foreign.iter().chain(&notes) {
        assert!(path(name).exists(), "{name}");
    }
    engine::close(cache);
}

/// As a power failure leaves it: the name is in the journal, the content was still in memory.
#[test]
fn an_entry_whose_metadata_was_not_written_is_removed_at_the_start() {
    let folder = TempDir::new().expect("make a folder");
    let reopen = || engine::open(engine::config(folder.path(), LIMIT));
    let cache = reopen();
    let objects = [
        ("lost", Object::new(1, 1000)),
        ("kept", Object::new(2, 1000)),
    ];
    engine::block_on(async {
        for (key, object) in objects {
            engine::fill(cache, key, object).await;
        }
        cache.settle().await;
    });
    let body = cache.get_file_path(&engine::key("lost")).expect("a body");
    engine::close(cache);
    let meta = File::options()
        .write(true)
        .open(body.with_extension("meta"));
    meta.and_then(|meta| meta.set_len(0)).expect("truncate it");

    let cache = reopen();
    assert_eq!(cache.entries(), 1);
    engine::block_on(async {
        assert_eq!(engine::stored(cache, "lost").await, None);
        assert_eq!(engine::stored(cache, "kept").await, Some(objects[1].1));
    });
    let files = Files::of(folder.path());
    assert_eq!(files.are_whole(), Ok(()));
    assert_eq!((files.metas.len(), cache.size_bytes()), (1, files.bytes));
    engine::close(cache);
}

#[test]
fn a_damaged_epoch_leads_to_no_generation_a_second_time() {
    let folder = TempDir::new().expect("make a folder");
    let epoch = folder.path().join("epoch");
    let reopen = || engine::open(engine::config(folder.path(), LIMIT));
    for _ in 0..12 {
        engine::close(reopen());
    }
    let newest = || {
        let names = Files::of(folder.path()).metas;
        let generation = |path: &PathBuf| {
            let name = path.to_str().expect("a name");
            let (_, generation) = name.rsplit_once('.').expect("a generation");
            u64::from_str_radix(generation, 16).expect("a number")
        };
        names.iter().map(generation).max().unwrap_or(0)
    };
    let damage: [&[u8]; 9] = [
        b"",
        b"\0\0\0",
        b"garbage\n",
        b"-1\n",
        b"0\n",
        b"99999999999\n",
        b"\xff\xfe\n",
        // The first or the last digit is lost.
        b"1\n",
        b"2\n",
    ];
    for (seed, damage) in (1..).zip(damage) {
        let before = newest();
        fs::write(&epoch, damage).expect("damage the epoch");
        let cache = reopen();
        let object = Object::new(seed, 1000);
        engine::block_on(async {
            engine::fill(cache, "key", object).await;
            cache.settle().await;
            assert_eq!(engine::stored(cache, "key").await, Some(object));
        });
        let now = newest();
        assert!(now > before, "{damage:?}: {now:x} after {before:x}");
        engine::close(cache);
    }
}

#[test]
fn a_lost_epoch_does_not_turn_bans_on_what_comes_after() {
    let folder = TempDir::new().expect("make a folder");
    let reopen = || engine::open(engine::config(folder.path(), LIMIT));
    for _ in 0..3 {
        engine::close(reopen());
    }
    // Nothing but the bans tells of the generations so far.
    let cache = reopen();
    engine::block_on(async {
        let key = engine::key("group/key");
        cache.purge_key(&key).await.expect("purge");
        let banned = cache.ban_prefix(engine::TAG, b"group/").await;
        banned.expect("ban a prefix");
    });
    engine::close(cache);
    fs::remove_file(folder.path().join("epoch")).expect("lose the epoch");

    let cache = reopen();
    let object = Object::new(1, 1000);
    engine::block_on(async {
        engine::fill(cache, "group/key", object).await;
        cache.settle().await;
        assert_eq!(engine::stored(cache, "group/key").await, Some(object));
    });
    engine::close(cache);
}

#[test]
fn after_a_restart_the_first_stored_goes_first_whatever_the_times_of_the_files() {
    let folder = TempDir::new().expect("make a folder");
    // Three of these fit.
    let object = |seed| Object::new(seed, 30_000);
    let reopen = || engine::open(engine::config(folder.path(), 120_000));
    let fill = |cache, name, seed| {
        engine::block_on(async {
            engine::fill(cache, name, object(seed)).await;
            cache.settle().await;
        });
    };
    let names = ["first", "second", "third"];
    let cache = reopen();
    for (seed, name) in (1..).zip(names) {
        fill(cache, name, seed);
    }
    engine::close(cache);

    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for (name, time) in names
        .into_iter()
        .zip([now - hour, now + 100_000 * hour, now - 2 * hour])
    {
        let body = cache.get_file_path(&engine::key(name)).expect("a body");
        let times = FileTimes::new().set_accessed(time).set_modified(time);
        let body = File::options().write(true).open(body).expect("open");
        body.set_times(times).expect("set its times");
    }

    let cache = reopen();
    let is_stored = |name: &str| cache.get_file_path(&engine::key(name)).is_some();
    engine::block_on(async {
        assert_eq!(engine::stored(cache, "first").await, Some(object(1)));
    });
    fill(cache, "fourth", 4);
    assert!(!is_stored("second"), "the first that is not used");
    for name in ["first", "third", "fourth"] {
        assert!(is_stored(name), "{name}");
    }
    engine::close(cache);
}

#[test]
fn an_entry_stored_while_the_clock_was_ahead_is_validated_once() {
    let origin = Origin::start(|request| {
        Reply::pattern(1, 100_000)
            .header("ETag", "\"1\"")
            .answering(request)
    });
    let mut proxy = proxy(&origin).start();
    assert_eq!(proxy.get("/assets/1").header("x-cache"), Some("MISS"));
    proxy.expect_metric("cache_entries", 1);
    proxy.kill();

    let year = Duration::from_secs(365 * 24 * 3600);
    let files = Files::of(&proxy.cache_dir());
    let entry = files.metas.first().expect("an entry");
    let file = entry.with_added_extension("meta");
    let meta = EntryMeta::decode(&fs::read(&file).expect("read")).expect("decode");
    let then = CacheMeta::deserialize(&meta.internal, &meta.header).expect("deserialize");
    let ahead = CacheMeta::new(
        then.fresh_until() + 10 * year,
        then.created() + 10 * year,
        0,
        0,
        then.response_header_copy(),
    );
    let (internal, header) = ahead.serialize().expect("serialize");
    let meta = EntryMeta {
        stored_at: meta.stored_at + 10 * year.as_secs(),
        internal,
        header,
        ..meta
    };
    fs::write(&file, meta.encode()).expect("write");

    proxy.restart();
    proxy.expect_metric("cache_entries", 1);
    for expected in ["REVALIDATED", "HIT", "HIT"] {
        let response = proxy.get("/assets/1");
        assert_eq!(response.header("x-cache"), Some(expected));
        let age: u64 = response
            .header("age")
            .map_or(0, |age| age.parse().expect("a number"));
        assert!(age < 60, "Age: {age}");
        assert_eq!(response.body, pattern(1, 100_000));
    }
    assert_eq!(origin.requests().len(), 2);
}

// --- what leaves, and what is not let in ---

#[test]
fn what_nobody_asks_for_leaves_and_what_is_used_stays() {
    let folder = TempDir::new().expect("make a folder");
    let cache = engine::open(DiskCacheConfig {
        inactive: Some(Duration::from_secs(1)),
        ..engine::config(folder.path(), LIMIT)
    });
    let object = |seed| Object::new(seed, 1000);
    engine::block_on(async {
        engine::fill(cache, "used", object(1)).await;
        engine::fill(cache, "unused", object(2)).await;
        cache.settle().await;
    });
    let inactive = || cache.stats().evictions(Eviction::Inactive).get();
    eventually("one entry leaves", || {
        let used = engine::block_on(engine::stored(cache, "used"));
        assert_eq!(used, Some(object(1)), "used all the time");
        inactive() == 1
    });
    let unused = engine::block_on(engine::stored(cache, "unused"));
    assert_eq!((unused, cache.entries()), (None, 1));

    eventually("now nobody asks for the other either", || {
        cache.entries() == 0
    });
    assert_eq!(inactive(), 2);
    engine::block_on(cache.settle());
    assert!(Files::of(folder.path()).bodies.is_empty());
    engine::close(cache);
}

#[test]
fn an_object_is_stored_at_its_second_request() {
    let folder = TempDir::new().expect("make a folder");
    let cache = engine::open(DiskCacheConfig {
        min_uses: 2,
        ..engine::config(folder.path(), LIMIT)
    });
    let object = Object::new(1, 1000);
    // As a proxy does: look up, and if that finds nothing, store.
    let request = || async {
        let mut http = HttpCache::new();
        http.enable(cache, None, None, None, None);
        http.set_admission_policy(cache.admission());
        http.set_cache_key(engine::key("key"));
        if http.cache_lookup().await.expect("look up").is_some() {
            return "hit";
        }
        if !http.enabled() {
            return "not admitted";
        }
        http.cache_miss();
        engine::fill(cache, "key", object).await;
        cache.settle().await;
        "stored"
    };
    engine::block_on(async {
        for expected in ["not admitted", "stored", "hit", "hit"] {
            assert_eq!(request().await, expected);
        }
        assert_eq!(engine::stored(cache, "key").await, Some(object));
    });
    assert_eq!(cache.stats().not_admitted.get(), 1);
    engine::close(cache);
}

// --- a cache folder, from outside ---

/// The files of the entries, by kind.
#[derive(Debug, Default)]
struct Files {
    /// Paths without their extension.
    bodies: BTreeSet<PathBuf>,
    metas: BTreeSet<PathBuf>,
    others: BTreeSet<PathBuf>,
    bytes: u64,
}

// === impl Files ===

impl Files {
    fn of(folder: &Path) -> Self {
        let mut files = Self::default();
        let shards = fs::read_dir(folder.join("v2")).expect("list the shards");
        for shard in shards {
            let listed = fs::read_dir(shard.expect("a shard").path()).expect("list a shard");
            for file in listed {
                let file = file.expect("a file");
                // 0: removed since it was listed.
                let len = file.metadata().map_or(0, |metadata| metadata.len());
                files.bytes += len.next_multiple_of(4096);
                let path = file.path();
                let kind = match path.extension().and_then(|extension| extension.to_str()) {
                    Some("body") => &mut files.bodies,
                    Some("meta") => &mut files.metas,
                    _ => &mut files.others,
                };
                kind.insert(path.with_extension(""));
            }
        }
        files
    }

    /// Every body has its metadata, all metadata has its body, and there is
    /// nothing else.
    fn are_whole(&self) -> Result<(), String> {
        let single: Vec<_> = self.bodies.symmetric_difference(&self.metas).collect();
        if single.is_empty() && self.others.is_empty() {
            Ok(())
        } else {
            Err(format!("halves: {single:?}, others: {:?}", self.others))
        }
    }
}
