//! The disk cache without a proxy: three ways from an entry to a socket, and the
//! way into the cache, with each backend that this machine has.
//!
//! `cargo bench --bench disk_cache` prints criterion's report and then tables of
//! its own: criterion measures one variant after the other, the tables come from
//! rounds in which they take turns, so that a machine that slows down slows all.
//! `-- --quick` shortens everything; a filter such as `-- hot/1MiB` leaves the
//! rest out.
//!
//! Method:
//! - The ways: `whole` reads a body in one piece and then writes it; `chunks`
//!   reads and writes 64 KiB at a time; `sendfile` sends the ranges of the file
//!   that `read_body_part` yields.
//! - One thread asks the cache and writes to loopback TCP, several bodies at once
//!   (as a worker of the proxy does), and a thread each connection discards what
//!   comes in the kernel (tcp(7), MSG_TRUNC). A turn ends when the last byte has
//!   been discarded.
//! - `hot`: what is read is in the page cache; all objects of a size together
//!   exceed the caches of the processor. `cold`: bodies and metadata were dropped
//!   from the page cache before, outside of the time that is measured.
//! - `fill`: as many new entries at once, in pieces of 64 KiB of zeros, until they
//!   are committed (synced to the disk) and what they evicted is removed.
//! - Every body goes by file (`threshold_bytes` is 0) and none is kept in memory:
//!   the engine would otherwise answer small ones from there.
//! - Files are on the disk that cargo builds on.

#![cfg_attr(target_os = "linux", forbid(unsafe_code))]

#[cfg(target_os = "linux")]
#[path = "common/measure.rs"]
mod measure;
#[cfg(target_os = "linux")]
#[path = "common/stats.rs"]
#[allow(dead_code, reason = "each bench uses a part")]
mod stats;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        env,
        fs::{self, File},
        io::{self, IoSliceMut},
        net::{TcpListener, TcpStream},
        path::{Path, PathBuf},
        sync::{
            mpsc::{channel, Receiver, Sender},
            Arc,
        },
        thread,
        time::{Duration, Instant, SystemTime},
    };

    use bytes::Bytes;
    use criterion::{Criterion, SamplingMode, Throughput};
    use futures::future::join_all;
    use http::StatusCode;
    use pingora_cache::{trace::Span, BodyPart, CacheKey, CacheMeta, Storage};
    use pingora_http::ResponseHeader;
    use pingora_sendfile::cache::{
        BackendChoice, DiskCache, DiskCacheConfig, EntryId, EntryMeta, SendfileCapable,
        SendfileConfig,
    };
    use rustix::{
        fs::{fadvise, sendfile, syncfs, Advice},
        io::{preadv2, Errno, ReadWriteFlags},
        net::{recv, RecvFlags},
    };
    use tempfile::TempDir;
    use tokio::{io::Interest, net::TcpStream as Socket, runtime::Runtime};

    use super::{
        measure::cpu_time,
        stats::{median, Summary},
    };

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    const SIZES: [(&str, u64); 5] = [
        ("4KiB", 4 * KIB),
        ("64KiB", 64 * KIB),
        ("1MiB", MIB),
        ("10MiB", 10 * MIB),
        ("100MiB", 100 * MIB),
    ];

    const BACKENDS: [(&str, BackendChoice); 2] = [
        ("tokio", BackendChoice::Tokio),
        ("uring", BackendChoice::Uring),
    ];

    const WAYS: [Way; 3] = [Way::Whole, Way::Chunks, Way::Sendfile];

    /// The most bodies that are under way at once, in number and in bytes.
    const PARALLEL: u64 = 8;
    const PARALLEL_BYTES: u64 = 64 * MIB;

    /// At least so many bytes, and at most so many objects, each time that a
    /// variant has its turn.
    const TURN: u64 = 64 * MIB;
    const COLD_TURN: u64 = 32 * MIB;
    const MAX_TURN: u64 = 4 * 1024;
    const MAX_COLD_TURN: u64 = 256;
    const MAX_FILL_TURN: u64 = 64;

    /// A cache that is filled evicts when it holds so many bytes.
    const FILL_CACHE: u64 = 512 * MIB;

    const PIECE: usize = 64 * 1024;

    /// The most that one call discards.
    const DISCARD: usize = 1024 * 1024;

    /// The amount of work.
    #[derive(Clone, Copy)]
    struct Effort {
        /// Bytes of objects of each size, but not more objects than this: each
        /// is two files.
        working_set: u64,
        max_objects: u64,
        /// The time for which criterion measures a variant.
        time: Duration,
        rounds: usize,
    }

    /// The way of a body from the cache to a socket.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Way {
        Whole,
        Chunks,
        Sendfile,
    }

    /// Two caches with one backend: one that has objects of one size, and one
    /// that is filled.
    struct Variant {
        name: &'static str,
        cache: &'static DiskCache,
        dir: TempDir,
        objects: Vec<Object>,
        next: usize,
        filled: &'static DiskCache,
        _filled_dir: TempDir,
        fills: u64,
    }

    struct Object {
        key: CacheKey,
        id: EntryId,
    }

    /// All variants of one size, and the connections that they share.
    struct Stage {
        runtime: Runtime,
        len: u64,
        connections: Vec<Connection>,
        variants: Vec<Variant>,
    }

    struct Connection {
        socket: Socket,
        /// So many bytes are to be discarded; the answer comes when they are.
        expect: Sender<u64>,
        discarded: Receiver<()>,
    }

    /// The results of a variant in all of its turns.
    #[derive(Default)]
    struct Turns {
        bytes_per_second: Vec<f64>,
        bytes: u64,
        cpu: Duration,
    }

    /// A line of the tables: one turn a round for each backend.
    struct Compared {
        size: &'static str,
        kind: Kind,
        of_backends: Vec<(&'static str, Turns)>,
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Kind {
        Hit { is_cold: bool, way: Way },
        Fill,
    }

    pub fn main() {
        let effort = Effort::from_args();
        let mut criterion = Criterion::default().configure_from_args();
        let mut table = Vec::new();
        for (size, len) in SIZES {
            // Not before something is measured: the filter may leave this out.
            let mut stage = None;
            let start = || Stage::start(len, effort);
            let mut measured = Vec::new();
            for kind in Kind::all() {
                if kind.is_cold() && !cold_is_possible() {
                    continue;
                }
                let mut group = criterion.benchmark_group(kind.group(size));
                group
                    .throughput(Throughput::Bytes(parallel(len) * len))
                    .sampling_mode(SamplingMode::Flat)
                    .sample_size(10)
                    .warm_up_time(effort.time / 5)
                    .measurement_time(effort.time);
                for (backend, _) in BACKENDS {
                    let mut skipped = false;
                    group.bench_function(kind.function(backend), |bencher| {
                        let stage = stage.get_or_insert_with(start);
                        let Some(variant) = stage.position(backend) else {
                            skipped = true;
                            return bencher.iter(|| ());
                        };
                        // An iteration is a body on each connection.
                        bencher.iter_custom(|iterations| {
                            stage.measure(variant, kind, iterations * parallel(len))
                        });
                        if measured.last() != Some(&kind) {
                            measured.push(kind);
                        }
                    });
                    if skipped {
                        println!("{backend} is not in effect here: what criterion said of it means nothing");
                    }
                }
                group.finish();
            }
            if let Some(stage) = &mut stage {
                // Hot objects shall not wait for cold ones.
                for part in measured.chunk_by(|a: &Kind, b| a.part() == b.part()) {
                    table.extend(stage.compare(size, part, effort.rounds));
                }
            }
        }
        criterion.final_summary();
        if effort.rounds > 0 && !table.is_empty() {
            print_ways(&table, effort.rounds);
            print_backends(&table, effort.rounds);
        }
    }

    fn print_ways(table: &[Compared], rounds: usize) {
        println!("\nways, with tokio; medians of {rounds} interleaved rounds; ratios of each round, lowest and highest in brackets");
        println!("| object | cache | whole, MiB/s | chunks, MiB/s | sendfile, MiB/s | sendfile/whole | sendfile/chunks |");
        println!("|---|---|---|---|---|---|---|");
        for (size, _) in SIZES {
            for is_cold in [false, true] {
                let line = |way| {
                    let kind = Kind::Hit { is_cold, way };
                    let mut lines = table.iter();
                    let line = lines.find(|line| line.size == size && line.kind == kind)?;
                    line.turns("tokio")
                };
                let [Some(whole), Some(chunks), Some(sendfile)] = WAYS.map(line) else {
                    continue;
                };
                println!(
                    "| {size} | {} | {:.0} | {:.0} | {:.0} | {} | {} |",
                    if is_cold { "cold" } else { "hot" },
                    whole.mib_per_second(),
                    chunks.mib_per_second(),
                    sendfile.mib_per_second(),
                    sendfile.ratio_to(whole),
                    sendfile.ratio_to(chunks),
                );
            }
        }
    }

    fn print_backends(table: &[Compared], rounds: usize) {
        println!("\nbackends; as above; CPU time is that of all threads, in ms a MiB");
        println!("| | tokio, MiB/s | uring, MiB/s | uring/tokio | CPU, tokio | CPU, uring |");
        println!("|---|---|---|---|---|---|");
        let mut of_engine = Vec::new();
        for line in table {
            let (Some(tokio), Some(uring)) = (line.turns("tokio"), line.turns("uring")) else {
                continue;
            };
            let ratio = uring.ratio_to(tokio);
            if line.kind.is_of_engine() {
                of_engine.push(ratio.median);
            }
            println!(
                "| {}{} | {:.0} | {:.0} | {} | {:.2} | {:.2} |",
                line.kind.group(line.size),
                line.kind
                    .way()
                    .map_or_else(String::new, |way| format!(" {way}")),
                tokio.mib_per_second(),
                uring.mib_per_second(),
                ratio,
                tokio.cpu_per_mib(),
                uring.cpu_per_mib(),
            );
        }
        if of_engine.is_empty() {
            println!("| io_uring is not in effect here | | | | | |");
            return;
        }
        let mean = geometric_mean(&of_engine);
        let lowest = of_engine.iter().copied().fold(f64::INFINITY, f64::min);
        // A backend that few use has to be worth it, and to cost nobody much.
        let better = if mean >= 1.1 && lowest >= 0.9 {
            "uring"
        } else {
            "tokio"
        };
        println!(
            "\nuring/tokio where the engine leaves the work to its backend (cold sendfile, fills): {mean:.2}, the geometric mean of {} medians of {rounds} rounds; the lowest is {lowest:.2}. `auto` should be {better}: uring from a mean of 1.1 on, with none below 0.9.",
            of_engine.len(),
        );
    }

    fn geometric_mean(values: &[f64]) -> f64 {
        let sum: f64 = values.iter().map(|value| value.ln()).sum();
        (sum / values.len() as f64).exp()
    }

    fn parallel(len: u64) -> u64 {
        (PARALLEL_BYTES / len).clamp(1, PARALLEL)
    }

    /// True if the files' pages leave the page cache when told to.
    fn cold_is_possible() -> bool {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
        let path = dir.path().join("probe");
        fs::write(&path, [1; 8192]).expect("write a file");
        let file = File::open(&path).expect("open a file");
        file.sync_all().expect("sync a file");
        chill(&path);
        let possible = !is_hot(&path);
        if !possible {
            println!("this file system keeps its pages: there are no cold reads here");
        }
        possible
    }

    /// Drops a file from the page cache.
    fn chill(path: &Path) {
        let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        fadvise(&file, 0, None, Advice::DontNeed).expect("drop a file from the page cache");
    }

    /// True if the first byte is in the page cache: preadv2(2), RWF_NOWAIT.
    fn is_hot(path: &Path) -> bool {
        let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut byte = [0];
        let mut slices = [IoSliceMut::new(&mut byte)];
        preadv2(&file, &mut slices, 0, ReadWriteFlags::NOWAIT).is_ok()
    }

    // === impl Effort ===

    impl Effort {
        /// Criterion's own arguments. Cargo passes `--bench` where it is to
        /// measure; without it, criterion runs everything once to see that it
        /// works.
        fn from_args() -> Self {
            let has = |name: &str| env::args().any(|arg| arg == name);
            let (working_set, max_objects, millis, rounds) = if !has("--bench") || has("--test") {
                (0, 0, 1, 0)
            } else if has("--quick") {
                (48 * MIB, 768, 200, 3)
            } else {
                (256 * MIB, 8 * 1024, 2_000, 11)
            };
            Self {
                working_set,
                max_objects,
                time: Duration::from_millis(millis),
                rounds,
            }
        }
    }

    // === impl Kind ===

    impl Kind {
        fn all() -> Vec<Self> {
            let hits = [false, true]
                .into_iter()
                .flat_map(|is_cold| WAYS.map(|way| Self::Hit { is_cold, way }));
            hits.chain([Self::Fill]).collect()
        }

        fn is_cold(self) -> bool {
            matches!(self, Self::Hit { is_cold: true, .. })
        }

        /// The variants that take turns with each other.
        fn part(self) -> u8 {
            match self {
                Self::Hit { is_cold, .. } => u8::from(is_cold),
                Self::Fill => 2,
            }
        }

        /// True if the engine does it so, and a backend does the work: what is
        /// in the page cache needs none.
        fn is_of_engine(self) -> bool {
            let cold_sendfile = Self::Hit {
                is_cold: true,
                way: Way::Sendfile,
            };
            [cold_sendfile, Self::Fill].contains(&self)
        }

        fn group(self, size: &str) -> String {
            match self {
                Self::Hit { is_cold: false, .. } => format!("hot/{size}"),
                Self::Hit { is_cold: true, .. } => format!("cold/{size}"),
                Self::Fill => format!("fill/{size}"),
            }
        }

        fn way(self) -> Option<&'static str> {
            match self {
                Self::Hit { way, .. } => Some(way.name()),
                Self::Fill => None,
            }
        }

        fn function(self, backend: &str) -> String {
            match self.way() {
                Some(way) => format!("{way}-{backend}"),
                None => backend.to_owned(),
            }
        }

        /// The number of objects in a turn.
        fn turn(self, len: u64) -> u64 {
            let (bytes, most) = match self {
                Self::Hit { is_cold: false, .. } => (TURN, MAX_TURN),
                Self::Hit { is_cold: true, .. } => (COLD_TURN, MAX_COLD_TURN),
                Self::Fill => (COLD_TURN, MAX_FILL_TURN),
            };
            let count = bytes.div_ceil(len).min(most);
            count.next_multiple_of(parallel(len))
        }
    }

    // === impl Stage ===

    impl Stage {
        fn start(len: u64, effort: Effort) -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("start a runtime");
            let objects = effort.working_set.div_ceil(len).min(effort.max_objects);
            let objects = objects.max(parallel(len));
            let variants = BACKENDS
                .into_iter()
                .filter_map(|(name, choice)| Variant::start(name, choice, objects, len))
                .collect();
            let connections = (0..parallel(len))
                .map(|_| Connection::open(&runtime))
                .collect();
            Self {
                runtime,
                len,
                connections,
                variants,
            }
        }

        /// None: that backend is not in effect here.
        fn position(&self, backend: &str) -> Option<usize> {
            let mut variants = self.variants.iter();
            variants.position(|variant| variant.name == backend)
        }

        /// The time that a variant takes for so many objects.
        fn measure(&mut self, variant: usize, kind: Kind, count: u64) -> Duration {
            match kind {
                Kind::Hit { is_cold, way } => self.send(variant, is_cold, way, count),
                Kind::Fill => self.fill(variant, count),
            }
        }

        fn send(&mut self, variant: usize, is_cold: bool, way: Way, count: u64) -> Duration {
            let parallel = self.connections.len() as u64;
            let variant = &mut self.variants[variant];
            // Dropped pages are cold once only.
            let at_once = if is_cold {
                variant.objects.len() as u64
            } else {
                count
            };
            let mut elapsed = Duration::ZERO;
            let mut left = count;
            while left > 0 {
                let objects: Vec<_> = (0..left.min(at_once)).map(|_| variant.advance()).collect();
                left -= objects.len() as u64;
                if is_cold {
                    variant.chill(&objects);
                }
                let (cache, len) = (variant.cache, self.len);
                let queues = (0..parallel as usize)
                    .map(|first| objects.iter().skip(first).step_by(parallel as usize));
                let sends = self.connections.iter().zip(queues).map(|(to, queue)| {
                    let queue: Vec<_> = queue.map(|object| &variant.objects[*object].key).collect();
                    to.expect
                        .send(queue.len() as u64 * len)
                        .expect("a thread that discards");
                    async move {
                        for key in queue {
                            let sent = way.send(cache, key, &to.socket).await;
                            assert_eq!(sent, len, "bytes sent");
                        }
                    }
                });
                let start = Instant::now();
                self.runtime.block_on(join_all(sends));
                for connection in &self.connections {
                    connection.discarded.recv().expect("all is discarded");
                }
                elapsed += start.elapsed();
            }
            elapsed
        }

        fn fill(&mut self, variant: usize, count: u64) -> Duration {
            let parallel = self.connections.len() as u64;
            let variant = &mut self.variants[variant];
            let (cache, len) = (variant.filled, self.len);
            let first = variant.fills;
            variant.fills += count;
            let fills = (0..parallel).map(|lane| async move {
                for number in (first + lane..first + count).step_by(parallel as usize) {
                    let key = CacheKey::new(format!("fill/{number}"), "bench");
                    fill(cache, &key, len).await;
                }
            });
            let start = Instant::now();
            self.runtime.block_on(async {
                join_all(fills).await;
                cache.settle().await;
            });
            start.elapsed()
        }

        /// All ways with all backends in turns, forwards and backwards.
        fn compare(&mut self, size: &'static str, kinds: &[Kind], rounds: usize) -> Vec<Compared> {
            let start_line = |kind: &Kind| Compared {
                size,
                kind: *kind,
                of_backends: self.variants.iter().map(Variant::no_turns).collect(),
            };
            let mut lines: Vec<_> = kinds.iter().map(start_line).collect();
            if !kinds.iter().any(|kind| kind.is_cold()) {
                self.variants.iter().for_each(Variant::warm);
            }
            let variants = 0..self.variants.len();
            let mut order: Vec<_> = (0..lines.len())
                .flat_map(|line| variants.clone().map(move |variant| (line, variant)))
                .collect();
            for _ in 0..rounds {
                for (line, variant) in &order {
                    let line = &mut lines[*line];
                    let count = line.kind.turn(self.len);
                    let cpu_before = cpu_time(std::process::id());
                    let elapsed = self.measure(*variant, line.kind, count);
                    let (_, turns) = &mut line.of_backends[*variant];
                    turns.cpu += cpu_time(std::process::id()) - cpu_before;
                    turns.bytes += count * self.len;
                    let bytes = (count * self.len) as f64;
                    turns.bytes_per_second.push(bytes / elapsed.as_secs_f64());
                }
                order.reverse();
            }
            lines
        }
    }

    async fn fill(cache: &'static DiskCache, key: &CacheKey, len: u64) {
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let span = Span::inactive().handle();
        let miss = cache.get_miss_handler(key, &meta(len), &span).await;
        let mut miss = miss.expect("begin a fill");
        let mut left = len;
        while left > 0 {
            let piece = left.min(PIECE as u64);
            left -= piece;
            miss.write_body(Bytes::from_static(&ZEROS[..piece as usize]), left == 0)
                .await
                .expect("go on with a fill");
        }
        miss.finish().await.expect("finish a fill");
    }

    fn meta(len: u64) -> CacheMeta {
        let mut header = ResponseHeader::build(StatusCode::OK, None).expect("a header");
        header
            .insert_header("Content-Length", len)
            .expect("a length");
        let now = SystemTime::now();
        CacheMeta::new(now + Duration::from_secs(3600), now, 0, 0, header)
    }

    // === impl Variant ===

    impl Variant {
        /// None: this backend is not in effect here.
        fn start(
            name: &'static str,
            choice: BackendChoice,
            objects: u64,
            len: u64,
        ) -> Option<Self> {
            let folder = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"));
            let dir = folder().expect("make a directory");
            let objects = write_objects(dir.path(), objects, len);
            let cache = open(dir.path(), choice, u64::MAX);
            assert_eq!(cache.entries(), objects.len(), "entries found");
            let filled_dir = folder().expect("make a directory");
            let filled = open(filled_dir.path(), choice, FILL_CACHE);
            (cache.backend().name() == name).then_some(Self {
                name,
                cache,
                dir,
                objects,
                next: 0,
                filled,
                _filled_dir: filled_dir,
                fills: 0,
            })
        }

        fn no_turns(&self) -> (&'static str, Turns) {
            (self.name, Turns::default())
        }

        /// Brings all objects into the page cache.
        fn warm(&self) {
            let dir = self.dir.path();
            for Object { id, .. } in &self.objects {
                for path in [entry_file(dir, id, "meta"), entry_file(dir, id, "body")] {
                    let mut file = File::open(path).expect("open a file of the cache");
                    io::copy(&mut file, &mut io::sink()).expect("read a file of the cache");
                }
            }
        }

        /// The next object's number: they are asked for in turn.
        fn advance(&mut self) -> usize {
            let object = self.next;
            self.next = (object + 1) % self.objects.len();
            object
        }

        fn chill(&self, objects: &[usize]) {
            let dir = self.dir.path();
            for object in objects {
                let id = &self.objects[*object].id;
                chill(&entry_file(dir, id, "meta"));
                chill(&entry_file(dir, id, "body"));
            }
            let last = objects.last().map(|object| &self.objects[*object].id);
            let is_cold = last.is_none_or(|id| !is_hot(&entry_file(dir, id, "body")));
            assert!(is_cold, "a file stays in the page cache");
        }
    }

    fn open(path: &Path, backend: BackendChoice, max_size_bytes: u64) -> &'static DiskCache {
        let cache = DiskCache::open(DiskCacheConfig {
            backend,
            sendfile: SendfileConfig {
                enabled: true,
                threshold_bytes: 0,
            },
            memory_bytes: 0,
            scrub_bytes_per_second: 0,
            ..DiskCacheConfig::new(path, max_size_bytes)
        })
        .expect("open the cache");
        cache.wait_recovered();
        cache
    }

    /// Path of a file of an entry, see docs/on-disk-format.md.
    fn entry_file(cache: &Path, id: &EntryId, extension: &str) -> PathBuf {
        let name = format!("{id}.{extension}");
        cache.join("v2").join(&name[..2]).join(name)
    }

    /// Writes the entries of an earlier run, without the sync that each fill
    /// would take.
    fn write_objects(path: &Path, objects: u64, len: u64) -> Vec<Object> {
        for shard in 0..=u8::MAX {
            let shard = path.join(format!("v2/{shard:02x}"));
            fs::create_dir_all(shard).expect("create the cache's folders");
        }
        let body = vec![7; len as usize];
        let (internal, header) = meta(len).serialize().expect("serialize metadata");
        let objects = (0..objects).map(|number| {
            let primary_key = format!("object/{number}");
            let key = CacheKey::new(primary_key.clone(), "bench");
            let entry = EntryMeta {
                key: key.to_compact(),
                primary_key: primary_key.into(),
                generation: 1,
                stored_at: 0,
                body_len: len,
                body_crc32: crc32fast::hash(&body),
                blocks: None,
                internal: internal.clone(),
                header: header.clone(),
            };
            let id = EntryId {
                hash: entry.hash(),
                generation: 1,
            };
            fs::write(entry_file(path, &id, "body"), &body).expect("write a body");
            fs::write(entry_file(path, &id, "meta"), entry.encode()).expect("write metadata");
            Object { key, id }
        });
        let objects = objects.collect();
        let folder = File::open(path).expect("open the cache folder");
        // Only what is on the disk can be dropped from the page cache.
        syncfs(&folder).expect("sync the file system");
        objects
    }

    // === impl Connection ===

    impl Connection {
        fn open(runtime: &Runtime) -> Self {
            let connect = || -> io::Result<(TcpStream, TcpStream)> {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let socket = TcpStream::connect(listener.local_addr()?)?;
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)?;
                Ok((socket, listener.accept()?.0))
            };
            let (socket, peer) = connect().expect("connect to myself");
            let (expect, expected) = channel();
            let (done, discarded) = channel();
            thread::spawn(move || {
                // Never written to, so that it takes no memory either.
                let mut never_written = vec![0; DISCARD];
                for len in expected {
                    discard(&peer, len, &mut never_written);
                    // Nobody waits any more if the bench has failed.
                    let _ = done.send(());
                }
            });
            let _guard = runtime.enter();
            Self {
                socket: Socket::from_std(socket).expect("use a socket"),
                expect,
                discarded,
            }
        }
    }

    fn discard(peer: &TcpStream, len: u64, never_written: &mut [u8]) {
        let mut left = len;
        while left > 0 {
            let at_once = left.min(DISCARD as u64) as usize;
            match recv(peer, &mut never_written[..at_once], RecvFlags::TRUNC) {
                Ok((_, 0)) => return,
                Ok((_, received)) => left -= received as u64,
                Err(Errno::INTR) => {}
                Err(e) => panic!("discard: {e}"),
            }
        }
    }

    // === impl Way ===

    impl Way {
        fn name(self) -> &'static str {
            match self {
                Self::Whole => "whole",
                Self::Chunks => "chunks",
                Self::Sendfile => "sendfile",
            }
        }

        /// Sends the body of an entry, and says how long it was.
        async fn send(self, cache: &'static DiskCache, key: &CacheKey, socket: &Socket) -> u64 {
            if self == Way::Whole {
                let response = cache.get_sendfile(key).await.expect("look up");
                let response = response.expect("an entry");
                let body = cache
                    .backend()
                    .read(&response.file, 0, response.len as usize)
                    .await
                    .expect("read a body");
                write_all(socket, &body).await;
                return response.len;
            }
            let span = Span::inactive().handle();
            let found = cache.lookup(key, &span).await.expect("look up");
            let (_, mut hit) = found.expect("an entry");
            let mut sent = 0;
            loop {
                let part = match self {
                    Way::Sendfile => hit.read_body_part().await,
                    _ => hit
                        .read_body()
                        .await
                        .map(|bytes| bytes.map(BodyPart::Bytes)),
                };
                match part.expect("read a body") {
                    None => return sent,
                    Some(BodyPart::Bytes(bytes)) => {
                        assert!(self == Way::Chunks, "bytes instead of a file");
                        write_all(socket, &bytes).await;
                        sent += bytes.len() as u64;
                    }
                    Some(BodyPart::File {
                        file, offset, len, ..
                    }) => {
                        send_file(socket, &file, offset, len).await;
                        sent += len;
                    }
                    Some(_) => panic!("a part of another kind"),
                }
            }
        }
    }

    async fn write_all(socket: &Socket, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let write = socket.async_io(Interest::WRITABLE, || socket.try_write(bytes));
            let written = write.await.expect("write to a socket");
            bytes = &bytes[written..];
        }
    }

    async fn send_file(socket: &Socket, file: &Arc<File>, mut offset: u64, len: u64) {
        let end = offset + len;
        while offset < end {
            let at_once = (end - offset) as usize;
            let send = socket.async_io(Interest::WRITABLE, || {
                Ok(sendfile(socket, file, Some(&mut offset), at_once)?)
            });
            let sent = send.await.expect("send a file");
            assert!(sent > 0, "the file is too short");
        }
    }

    // === impl Compared ===

    impl Compared {
        fn turns(&self, backend: &str) -> Option<&Turns> {
            let mut backends = self.of_backends.iter();
            backends
                .find(|(name, _)| *name == backend)
                .map(|(_, turns)| turns)
        }
    }

    // === impl Turns ===

    impl Turns {
        fn mib_per_second(&self) -> f64 {
            median(&self.bytes_per_second) / MIB as f64
        }

        /// Of the same rounds.
        fn ratio_to(&self, base: &Self) -> Summary {
            Summary::of_ratios(&self.bytes_per_second, &base.bytes_per_second)
                .expect("at least one round")
        }

        fn cpu_per_mib(&self) -> f64 {
            self.cpu.as_secs_f64() * 1e3 / (self.bytes as f64 / MIB as f64)
        }
    }
}

fn main() {
    #[cfg(target_os = "linux")]
    linux::main();
    #[cfg(not(target_os = "linux"))]
    println!("what is measured here is Linux's");
}
