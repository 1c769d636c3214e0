//! The state of the cache after the process, an entry or the disk space has
//! come to an end.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::{proxy, S3_PROXY};
use tempfile::TempDir;
use test_support::{
    entry_files, eventually, pattern, Connection, Gate, Origin, Pattern, Proxy, Reply,
};

const LEN: u64 = 300_000;

// --- the process ends ---

#[test]
fn entries_outlive_a_graceful_restart_and_a_crash() {
    let origin = numbered_origin(LEN);
    let mut proxy = proxy(&origin).grace_period("0s").start();
    for key in 1..=3 {
        assert_eq!(ask(&proxy, key, LEN), "MISS");
    }
    proxy.expect_metric("cache_entries", 3);

    for crash in [false, true, true] {
        if crash {
            proxy.kill();
        }
        proxy.restart();
        proxy.expect_metric("cache_entries", 3);
        for key in 1..=3 {
            assert_eq!(ask(&proxy, key, LEN), "HIT", "crash: {crash}");
        }
        proxy.expect_metric("cache_sendfile_bytes_total", 3 * LEN);
    }
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn a_crash_in_mid_fill_leaves_no_entry_and_no_files() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::pattern(1, LEN).hold_at(LEN / 2, &gate)
    });
    let mut proxy = proxy(&origin).start();
    let mut connection = Connection::open(proxy.addr());
    let mut miss = connection.begin("GET", "/assets/1", &[]);
    gate.wait_for_arrivals(1);
    Pattern::new(1).check(0, &miss.read_some(100_000));
    let unfinished = entry_files(&proxy.cache_dir(), "");
    assert_eq!(extensions(&unfinished), ["tmp"], "{unfinished:?}");
    proxy.kill();
    assert!(!miss.finish().complete);
    assert_eq!(entry_files(&proxy.cache_dir(), ""), unfinished);

    proxy.restart();
    eventually("the unfinished entry is removed", || {
        entry_files(&proxy.cache_dir(), "").is_empty()
    });
    assert_eq!(proxy.metric("cache_entries"), 0);

    gate.open();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn a_download_that_runs_at_sigterm_is_finished() {
    const LEN: u64 = 32 * 1024 * 1024;
    let origin = numbered_origin(LEN);
    let mut proxy = proxy(&origin).grace_period("3s").start();
    ask(&proxy, 1, LEN);

    let addr = proxy.addr();
    let mut connection = Connection::with_receive_buffer(addr, 4096);
    let mut hit = connection.begin("GET", "/assets/1", &[]);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    assert_eq!(hit.read_some(1000), pattern(1, 1000));
    thread::scope(|scope| {
        let stopped = scope.spawn(|| proxy.stop_gracefully());
        eventually("no new connection is taken", || {
            TcpStream::connect(addr).is_err()
        });
        let rest = hit.check(Pattern::new(1), 1000);
        assert!(rest.complete);
        assert_eq!(1000 + rest.len, LEN);
        assert!(stopped.join().expect("stop the proxy").success());
    });
}

#[test]
fn a_second_process_on_the_same_folder_is_refused() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).start();
    ask(&proxy, 1, LEN);

    let folder = proxy.cache_dir();
    let said = refused(&folder);
    let folder = folder.display().to_string();
    for word in [&folder, "another process uses", "cache.disk.path"] {
        assert!(said.contains(word), "{word}: {said}");
    }

    // The first is not disturbed.
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
}

/// Starts a process on a cache folder, which does not start, and returns its reason.
fn refused(folder: &Path) -> String {
    let dir = TempDir::new().expect("make a directory");
    let config = dir.path().join("config.yaml");
    let yaml = format!(
        "server: {{address: '127.0.0.1:0'}}\n\
         buckets: [{{path_prefix: /assets, bucket: bucket, region: us-east-1}}]\n\
         cache: {{disk: {{path: '{}'}}}}\n",
        folder.display()
    );
    fs::write(&config, yaml).expect("write a configuration");
    let second = Command::new(S3_PROXY)
        .args([
            OsStr::new("run"),
            OsStr::new("--config"),
            config.as_os_str(),
        ])
        .output()
        .expect("run s3-proxy");
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    String::from_utf8_lossy(&second.stderr).into_owned()
}

#[test]
fn a_pipe_in_place_of_the_lock_or_the_ban_list_is_refused_by_name() {
    for name in ["lock", "bans"] {
        let dir = TempDir::new().expect("make a directory");
        let path = dir.path().join(name);
        make_pipe(&path);
        let said = refused(dir.path());
        for word in [&*path.display().to_string(), "is not a regular file"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[test]
fn a_pipe_in_place_of_what_a_start_writes_is_replaced() {
    let origin = numbered_origin(LEN);
    let mut proxy = proxy(&origin).grace_period("0s").start();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    proxy.stop_gracefully();
    let folder = proxy.cache_dir().to_owned();
    for name in ["epoch", "epoch.tmp", "size", "size.tmp"] {
        let _ = fs::remove_file(folder.join(name));
        make_pipe(&folder.join(name));
    }
    proxy.restart();
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    proxy.stop_gracefully();
    for name in ["epoch", "size"] {
        let file = fs::symlink_metadata(folder.join(name)).expect("a file");
        assert!(file.is_file(), "{name}");
    }
}

// --- the folder goes while it is in use ---

/// Removes all that is in a folder.
fn empty(folder: &Path) {
    for file in fs::read_dir(folder).expect("list the folder") {
        let path = file.expect("a file").path();
        match path.is_dir() {
            true => fs::remove_dir_all(path).expect("remove a folder"),
            false => remove(&path),
        }
    }
}

fn expect_refused(folder: &Path) {
    let said = refused(folder);
    assert!(said.contains("another process uses"), "{said}");
}

#[test]
fn an_emptied_folder_is_used_and_locked_again() {
    let origin = numbered_origin(LEN);
    let mut proxy = proxy(&origin).grace_period("0s").start();
    let folder = proxy.cache_dir();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    empty(&folder);
    // The files of the entry are found to be gone, and it is stored again.
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    for key in [1, 2] {
        eventually("it is stored", || ask(&proxy, key, LEN) == "HIT");
    }
    proxy.expect_metric_where("cache_fill_errors_total", &[("cause", "missing")], 0);
    assert_eq!(proxy.metric("cache_writable"), 1);
    expect_refused(&folder);

    let asked = origin.requests().len();
    assert_eq!(asked, 3);
    proxy.stop_gracefully();
    proxy.restart();
    proxy.expect_metric("cache_entries", 2);
    for key in [1, 2] {
        assert_eq!(ask(&proxy, key, LEN), "HIT");
    }
    assert_eq!(origin.requests().len(), asked);
}

#[test]
fn a_folder_that_was_removed_and_made_again_is_used_again() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).start();
    let folder = proxy.cache_dir();
    // The proxy may make the lock file again in a folder that is half removed.
    eventually("the folder is removed", || {
        fs::remove_dir_all(&folder).is_ok()
    });
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    assert!(
        !folder.exists(),
        "it is not made, as it may be a mount point"
    );
    fs::create_dir(&folder).expect("make the folder");
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    eventually("it is stored", || ask(&proxy, 1, LEN) == "HIT");
    expect_refused(&folder);
}

#[test]
fn a_removed_lock_is_made_again_without_a_fill() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).start();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    let folder = proxy.cache_dir();
    let lock = folder.join("lock");
    remove(&lock);
    eventually("the lock file is there again", || lock.exists());
    expect_refused(&folder);
    assert_eq!(ask(&proxy, 1, LEN), "HIT", "nothing else has happened");
}

#[test]
fn a_lock_that_another_process_took_ends_the_writing_until_it_lets_go() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).start();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    let folder = proxy.cache_dir();
    // Locked before it gets its name, or the proxy might be faster.
    let other = File::create(folder.join("other")).expect("make a file");
    other.try_lock().expect("lock it");
    fs::rename(folder.join("other"), folder.join("lock")).expect("rename");

    let writable = |expected| {
        eventually("the proxy notices", || {
            proxy.metric("cache_writable") == expected
        });
    };
    writable(0);
    let before = entry_files(&proxy.cache_dir(), "");
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    for _ in 0..2 {
        assert_eq!(ask(&proxy, 2, LEN), "MISS");
    }
    assert_eq!(entry_files(&proxy.cache_dir(), ""), before);
    let said = proxy.stderr();
    let errors: Vec<_> = said
        .lines()
        .filter(|line| line.contains("another process has taken this cache folder"))
        .collect();
    assert_eq!(errors.len(), 1, "{said}");
    for word in ["ERROR", &*folder.display().to_string(), "cache.disk.path"] {
        assert!(errors[0].contains(word), "{word}: {said}");
    }

    drop(other);
    writable(1);
    assert_eq!(ask(&proxy, 2, LEN), "MISS");
    eventually("it is stored", || ask(&proxy, 2, LEN) == "HIT");
}

// --- the files of an entry are damaged ---

type Damage = fn(&Entry);

const DAMAGE: [(&str, Damage); 11] = [
    ("body truncated", |entry| resize(&entry.body, LEN - 1)),
    ("body empty", |entry| resize(&entry.body, 0)),
    ("body too long", |entry| resize(&entry.body, LEN + 1)),
    ("body gone", |entry| remove(&entry.body)),
    ("metadata truncated", |entry| resize(&entry.meta, 50)),
    ("metadata gone", |entry| remove(&entry.meta)),
    ("a pipe for a body", |entry| {
        remove(&entry.body);
        make_pipe(&entry.body);
    }),
    ("a pipe for metadata", |entry| {
        remove(&entry.meta);
        make_pipe(&entry.meta);
    }),
    ("a link for a body", |entry| {
        let aside = entry
            .body
            .ancestors()
            .nth(3)
            .expect("the folder")
            .join("aside");
        fs::rename(&entry.body, &aside).expect("rename");
        std::os::unix::fs::symlink(aside, &entry.body).expect("link");
    }),
    // The bytes after the magic of 8: see src/cache/format.rs.
    ("generation flipped", |entry| flip(&entry.meta, 8)),
    ("header flipped", |entry| flip(&entry.meta, 150)),
];

#[test]
fn an_entry_damaged_while_running_is_fetched_again() {
    let origin = numbered_origin(LEN);
    for (key, (what, damage)) in (1..).zip(DAMAGE) {
        let proxy = proxy(&origin).start();
        assert_eq!(ask(&proxy, key, LEN), "MISS");
        proxy.expect_metric("cache_entries", 1);
        damage(&Entry::only(&proxy));
        assert_eq!(ask(&proxy, key, LEN), "MISS", "{what}");
        assert_eq!(ask(&proxy, key, LEN), "HIT", "{what}");
        assert_eq!(origin.requests().len(), 2 * key as usize, "{what}");
        proxy.expect_metric("cache_entries", 1);
        // Nothing of the damaged one is left beside the new one.
        Entry::only(&proxy);
    }
}

#[test]
fn an_entry_whose_files_are_open_needs_no_names() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).start();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    let entry = Entry::only(&proxy);
    remove(&entry.body);
    remove(&entry.meta);
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn an_entry_whose_file_is_closed_needs_no_metadata() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).max_open_files(0).start();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    assert_eq!(proxy.metric("cache_open_files"), 0);
    assert!(proxy.metric("cache_metadata_bytes") > 0);
    assert_eq!(proxy.metric("cache_body_opens_total"), 0);

    let entry = Entry::only(&proxy);
    remove(&entry.meta);
    for opens in 1..=2 {
        assert_eq!(ask(&proxy, 1, LEN), "HIT");
        proxy.expect_metric("cache_body_opens_total", opens);
    }
    // Nor does a hit whose header is not prepared.
    let mut connection = Connection::open(proxy.addr());
    let part = connection.request("GET", "/assets/1", &[("range", "bytes=1000-1999")]);
    assert_eq!(part.status, 206);
    assert!(part.body == pattern(1, 2000)[1000..]);
    proxy.expect_metric("cache_body_opens_total", 3);
    proxy.expect_metric("cache_opens_total", 4);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn metadata_is_read_for_each_hit_where_no_memory_is_for_it() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).max_open_files(0).metadata_mb(0).start();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    assert_eq!(proxy.metric("cache_metadata_bytes"), 0);
    assert_eq!(proxy.metric("cache_body_opens_total"), 0);
    remove(&Entry::only(&proxy).meta);
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
}

#[test]
fn a_body_damaged_while_its_file_is_closed_is_fetched_again() {
    let origin = numbered_origin(LEN);
    let of_body = |(what, _): &(&str, Damage)| what.contains("body");
    for (key, (what, damage)) in (1..).zip(DAMAGE.into_iter().filter(of_body)) {
        let proxy = proxy(&origin).max_open_files(0).start();
        assert_eq!(ask(&proxy, key, LEN), "MISS");
        proxy.expect_metric("cache_entries", 1);
        assert_eq!(ask(&proxy, key, LEN), "HIT");
        damage(&Entry::only(&proxy));
        assert_eq!(ask(&proxy, key, LEN), "MISS", "{what}");
        assert_eq!(ask(&proxy, key, LEN), "HIT", "{what}");
        assert_eq!(origin.requests().len(), 2 * key as usize, "{what}");
        Entry::only(&proxy);
    }
}

#[test]
fn a_body_truncated_while_it_is_open_costs_no_transfer() {
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).start();
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    proxy.expect_metric("cache_entries", 1);
    assert_eq!(ask(&proxy, 1, LEN), "HIT");
    resize(&Entry::only(&proxy).body, LEN - 1);
    assert_eq!(ask(&proxy, 1, LEN), "MISS");
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn an_entry_damaged_while_stopped_is_fetched_again() {
    let origin = numbered_origin(LEN);
    for (key, (what, damage)) in (1..).zip(DAMAGE.into_iter().chain(DAMAGE_OF_NAMES)) {
        let mut proxy = proxy(&origin).grace_period("0s").start();
        assert_eq!(ask(&proxy, key, LEN), "MISS");
        proxy.expect_metric("cache_entries", 1);
        proxy.stop_gracefully();
        damage(&Entry::only(&proxy));
        proxy.restart();
        assert_eq!(ask(&proxy, key, LEN), "MISS", "{what}");
        assert_eq!(ask(&proxy, key, LEN), "HIT", "{what}");
        assert_eq!(origin.requests().len(), 2 * key as usize, "{what}");
        // Nothing of the damaged one is left beside the new one.
        Entry::only(&proxy);
    }
}

const DAMAGE_OF_NAMES: [(&str, Damage); 2] = [
    ("another generation in the name", |entry| {
        entry.rename(|name| {
            let (hash, extension) = (&name[..32], name.rsplit('.').next());
            format!("{hash}.{:016x}.{}", 1, extension.expect("an extension"))
        })
    }),
    ("another key in the name", |entry| {
        entry.rename(|name| {
            let last = if name.as_bytes()[31] == b'0' {
                "1"
            } else {
                "0"
            };
            format!("{}{last}{}", &name[..31], &name[32..])
        })
    }),
];

// --- the cache is full ---

#[test]
fn the_least_recently_used_entry_makes_room() {
    const LEN: u64 = 3_000_000;
    const LIMIT: u64 = 10_000_000;
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).max_size_gb(0.01).start();
    for key in 1..=3 {
        assert_eq!(ask(&proxy, key, LEN), "MISS");
        proxy.expect_metric("cache_entries", key);
    }
    assert_eq!(ask(&proxy, 1, LEN), "HIT");

    assert_eq!(ask(&proxy, 4, LEN), "MISS");
    eventually("the cache is back under its limit", || {
        let files = entry_files(&proxy.cache_dir(), "");
        let on_disk: u64 = files.iter().map(|file| size(file)).sum();
        on_disk <= LIMIT
            && proxy.metric("cache_size_bytes") <= LIMIT
            && proxy.metric("cache_entries") == 3
    });
    for key in [1, 3, 4] {
        assert_eq!(ask(&proxy, key, LEN), "HIT", "{key}");
    }
    assert_eq!(ask(&proxy, 2, LEN), "MISS");
    assert_eq!(origin.requests().len(), 5);
}

#[test]
fn an_object_larger_than_the_cache_is_served_and_not_stored() {
    const LEN: u64 = 12_000_000;
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).max_size_gb(0.01).start();
    for asked in 1..=2 {
        assert_eq!(ask(&proxy, 1, LEN), "MISS");
        assert_eq!(origin.requests().len(), asked);
    }
    eventually("nothing is left of it", || {
        entry_files(&proxy.cache_dir(), "").is_empty()
    });
    assert_eq!(proxy.metric("cache_entries"), 0);
}

#[test]
fn an_entry_evicted_in_mid_send_is_sent_to_the_end() {
    const LEN: u64 = 9_000_000;
    let origin = numbered_origin(LEN);
    let proxy = proxy(&origin).max_size_gb(0.01).start();
    ask(&proxy, 1, LEN);
    let mut connection = Connection::with_receive_buffer(proxy.addr(), 4096);
    let mut hit = connection.begin("GET", "/assets/1", &[]);
    assert_eq!(hit.headers.get("x-cache"), Some("HIT"));
    assert_eq!(hit.read_some(1000), pattern(1, 1000));
    let evicted = entry_files(&proxy.cache_dir(), "");

    ask(&proxy, 2, LEN);
    eventually("the first entry is evicted", || {
        evicted.iter().all(|file| !file.exists())
    });
    let rest = hit.check(Pattern::new(1), 1000);
    assert!(rest.complete);
    assert_eq!(1000 + rest.len, LEN);
}

/// An origin whose objects are named by the seed of their pattern.
fn numbered_origin(len: u64) -> Origin {
    Origin::start(move |request| {
        let seed = request
            .path()
            .rsplit('/')
            .next()
            .and_then(|n| n.parse().ok());
        Reply::pattern(seed.expect("a number"), len)
    })
}

/// Gets an object, checks every byte, and returns X-Cache.
fn ask(proxy: &Proxy, key: u64, len: u64) -> String {
    let mut connection = Connection::open(proxy.addr());
    let response = connection.begin("GET", &format!("/assets/{key}"), &[]);
    assert_eq!(response.status, 200);
    let x_cache = response.headers.get("x-cache").expect("X-Cache").to_owned();
    let received = response.check(Pattern::new(key), 0);
    assert!(received.complete);
    assert_eq!(received.len, len);
    x_cache
}

/// The body and the metadata of an entry.
struct Entry {
    body: PathBuf,
    meta: PathBuf,
}

// === impl Entry ===

impl Entry {
    /// The one entry of the cache, once its files are all there is.
    fn only(proxy: &Proxy) -> Self {
        let mut files = BTreeMap::new();
        eventually("one entry, a body and its metadata", || {
            let found = entry_files(&proxy.cache_dir(), "");
            let whole = extensions(&found) == ["body", "meta"];
            files = found
                .into_iter()
                .map(|file| (extension(&file), file))
                .collect();
            whole
        });
        Self {
            body: files.remove("body").expect("a body"),
            meta: files.remove("meta").expect("metadata"),
        }
    }

    fn rename(&self, new: impl Fn(&str) -> String) {
        for file in [&self.body, &self.meta] {
            let name = file.file_name().and_then(OsStr::to_str).expect("a name");
            let renamed = file.with_file_name(new(name));
            assert_ne!(*file, renamed);
            fs::rename(file, renamed).expect("rename");
        }
    }
}

fn extension(file: &Path) -> String {
    let extension = file.extension().expect("an extension");
    extension.to_string_lossy().into_owned()
}

fn extensions(files: &[PathBuf]) -> Vec<String> {
    let mut extensions: Vec<_> = files.iter().map(|file| extension(file)).collect();
    extensions.sort();
    extensions
}

/// 0 for a file that is gone.
fn size(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}

fn resize(file: &Path, len: u64) {
    let file = File::options().write(true).open(file).expect("open");
    file.set_len(len).expect("resize");
}

fn remove(file: &Path) {
    fs::remove_file(file).expect("remove");
}

/// A named pipe, which has neither a reader nor a writer.
fn make_pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("run mkfifo").success());
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).expect("read");
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("write");
}
