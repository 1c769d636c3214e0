//! A cache on several disks, of which one is broken, missing or new.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::S3_PROXY;
use tempfile::TempDir;
use test_support::{
    entry_files, eventually, request, Connection, FaultyDisk, Op, Origin, Pattern, Proxy, Reply,
};

const EIO: i32 = 5;

/// Objects that are asked for; each folder gets about half of them.
const OBJECTS: u64 = 24;

const LEN: u64 = 100_000;

#[test]
fn a_disk_that_breaks_costs_its_own_objects_only() {
    let (Some(first), Some(second)) = (FaultyDisk::mount(), FaultyDisk::mount()) else {
        return;
    };
    let origin = origin();
    let proxy = on(&[first.path(), second.path()], &origin);
    fill(&proxy);
    assert_eq!(folder(&proxy, "cache_folder_up", second.path()), 1);
    let lost = folder(&proxy, "cache_folder_entries", second.path());
    assert!(lost > 0 && lost < OBJECTS, "{lost}");
    assert_eq!(answers(&proxy), (OBJECTS, 0));

    break_disk(&second);
    second.forget_pages();
    // The first one to notice may be a hit of an open file.
    eventually("the proxy says that the disk fails", || {
        answers(&proxy);
        folder(&proxy, "cache_folder_up", second.path()) == 0
    });
    assert_eq!(folder(&proxy, "cache_folder_up", first.path()), 1);
    let before = origin.requests().len() as u64;
    let (hits, misses) = answers(&proxy);
    // Files that are open may go on.
    assert!(hits >= OBJECTS - lost, "{hits}");
    assert_eq!(origin.requests().len() as u64, before + misses);

    second.heal();
    eventually("the disk is used again", || {
        folder(&proxy, "cache_folder_up", second.path()) == 1
    });
    answers(&proxy);
    eventually("all objects are stored again", || {
        answers(&proxy) == (OBJECTS, 0)
    });
}

#[test]
fn a_disk_that_is_missing_at_the_start_is_used_again_after_the_next() {
    let dir = TempDir::new().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    let origin = origin();
    let mut proxy = on(&[&first, &second], &origin);
    fill(&proxy);
    let lost = folder(&proxy, "cache_folder_entries", &second);
    proxy.kill();

    // A file where the folder was: nothing can be created there.
    let away = dir.path().join("away");
    fs::rename(&second, &away).expect("take the disk out");
    fs::write(&second, "").expect("a file");
    proxy.restart();
    eventually("the entries are known", || {
        proxy.metric("cache_entries") == OBJECTS - lost
    });
    assert_eq!(folder(&proxy, "cache_folder_up", &second), 0);
    assert_eq!(folder(&proxy, "cache_folder_up", &first), 1);
    let stderr = proxy.stderr();
    let said = format!("{}: ", second.display());
    assert!(stderr.contains(&said), "{stderr}");
    for _ in 0..2 {
        assert_eq!(answers(&proxy), (OBJECTS - lost, lost));
    }
    // Purges reach it when it is back.
    for object in 1..=3 {
        let purged = purge(&proxy, &format!("/assets/{object}"));
        assert!(matches!(purged, 200 | 404), "{purged}");
    }
    assert_eq!(purge(&proxy, "/assets/2*"), 200);
    let purged = |object: u64| object <= 3 || object.to_string().starts_with('2');
    let purged = (1..=OBJECTS).filter(|object| purged(*object)).count() as u64;
    // The commands work on the other, and say so.
    let stat = proxy.s3_proxy(&["cache", "stat", "--json"]);
    assert_eq!(stat.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&stat.stderr).contains("second"));
    proxy.kill();

    fs::remove_file(&second).expect("remove the file");
    fs::rename(&away, &second).expect("put the disk in");
    proxy.restart();
    // Two folders, then one, then two.
    eventually("the entries are known", || proxy.listings() == 5);
    assert_eq!(folder(&proxy, "cache_folder_up", &second), 1);
    assert_eq!(answers(&proxy), (OBJECTS - purged, purged));
    assert_eq!(answers(&proxy), (OBJECTS, 0));
}

#[test]
fn a_new_process_takes_all_folders_over() {
    let dir = TempDir::new().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    let origin = origin();
    let mut proxy = on(&[&first, &second], &origin);
    fill(&proxy);
    assert!(proxy.upgrade().wait().success());
    eventually("the new process writes", || {
        proxy.metric("cache_writable") == 1
    });
    eventually("the entries are known", || {
        proxy.metric("cache_entries") == OBJECTS
    });
    assert_eq!(answers(&proxy), (OBJECTS, 0));
    assert_eq!(purge(&proxy, "/assets/*"), 200);
    assert_eq!(answers(&proxy), (0, OBJECTS));
    assert_eq!(answers(&proxy), (OBJECTS, 0));
    assert!(proxy.stop_gracefully().success());
}

#[test]
fn the_commands_cover_all_folders() {
    let dir = TempDir::new().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    let origin = origin();
    let mut proxy = on(&[&first, &second], &origin);
    fill(&proxy);
    assert!(proxy.stop_gracefully().success());
    let run = |arguments: &[&str]| {
        let output = proxy.s3_proxy(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };

    let (code, stat) = run(&["cache", "stat", "--json"]);
    assert_eq!(code, Some(0));
    assert!(stat.contains(&format!("\"entries\":{OBJECTS}")), "{stat}");
    assert!(
        stat.contains(&format!("\"path\":\"{}\"", second.display())),
        "{stat}"
    );
    let (code, stat) = run(&["cache", "stat"]);
    assert_eq!((code, stat.matches("entries ").count()), (Some(0), 3));
    let (code, list) = run(&["cache", "ls"]);
    assert_eq!((code, list.lines().count() as u64), (Some(0), OBJECTS));

    let body = entry_files(&second, "body").remove(0);
    let mut bytes = fs::read(&body).expect("read");
    bytes[7] ^= 1;
    fs::write(&body, bytes).expect("write");
    let (code, damaged) = run(&["cache", "verify", "--remove"]);
    assert_eq!(code, Some(1));
    assert_eq!(damaged.matches("; removed").count(), 1, "{damaged}");
    let (_, list) = run(&["cache", "ls"]);
    assert_eq!(list.lines().count() as u64, OBJECTS - 1);

    let left: Vec<_> = list
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with("/assets/"))
        })
        .collect();
    for path in &left[..3] {
        assert_eq!(run(&["cache", "rm", path]).0, Some(0), "{path}");
    }
    assert_eq!(run(&["cache", "rm", left[0]]).0, Some(1));
    let (code, removed) = run(&["cache", "rm", "/assets/*"]);
    assert_eq!(code, Some(0));
    assert_eq!(removed.trim(), format!("removed {}", OBJECTS - 4));
    for folder in [&first, &second] {
        assert!(entry_files(folder, "").is_empty());
    }
}

#[test]
fn the_commands_go_on_after_a_folder_that_fails() {
    let dir = TempDir::new().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    let origin = origin();
    let mut proxy = on(&[&first, &second], &origin);
    fill(&proxy);
    assert!(proxy.stop_gracefully().success());
    // A part of the first folder cannot be read, and it cannot be locked.
    let of_first = entry_files(&first, "body");
    let part = of_first[0].parent().expect("a folder").to_owned();
    let lost = fs::read_dir(&part).expect("list").count() as u64 / 2;
    let left = of_first.len() as u64 - lost;
    fs::remove_dir_all(&part).expect("remove");
    fs::write(&part, "").expect("a file");
    let lock = first.join("lock");
    fs::remove_file(&lock).expect("remove");
    fs::create_dir(&lock).expect("a folder");
    let run = |arguments: &[&str], bad: &[&Path]| {
        let output = proxy.s3_proxy(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for bad in bad {
            let named = format!("s3-proxy: {}: ", bad.display());
            assert!(stderr.contains(&named), "{stderr}");
        }
        String::from_utf8_lossy(&output.stdout).into_owned()
    };

    let stat = run(&["cache", "stat", "--json"], &[&part, &lock]);
    let entries = format!("\"entries\":{}", OBJECTS - lost);
    assert!(stat.contains(&entries), "{stat}");
    let list = run(&["cache", "ls"], &[&part]);
    assert_eq!(list.lines().count() as u64, OBJECTS - lost);
    run(&["cache", "verify"], &[&part]);

    // Nothing is removed from a folder without its lock.
    let body = entry_files(&second, "body").remove(0);
    fs::write(&body, "damaged").expect("write");
    let verified = run(&["cache", "verify", "--remove"], &[&lock]);
    assert_eq!(verified.matches("; removed").count(), 1, "{verified}");
    let removed = run(&["cache", "rm", "/assets/*"], &[&lock]);
    let expected = OBJECTS - lost - left - 1;
    assert_eq!(removed.trim(), format!("removed {expected}"));
    assert!(entry_files(&second, "").is_empty());
    let list = run(&["cache", "ls"], &[&part]);
    assert_eq!(list.lines().count() as u64, left);
    run(&["cache", "rm", "/assets/1"], &[&lock]);
}

#[test]
fn a_full_disk_keeps_its_hits_and_is_purged() {
    let Some(second) = FaultyDisk::mount() else {
        return;
    };
    let dir = TempDir::new().expect("a folder");
    let origin = origin();
    let mut proxy = on(&[dir.path(), second.path()], &origin);
    fill(&proxy);
    // The full disk has a list of bans that has to grow.
    assert_eq!(purge(&proxy, "/assets/1"), 200);
    second.limit_bytes(Some(0));
    for object in 2..=5 {
        assert_eq!(purge(&proxy, &format!("/assets/{object}")), 200);
    }
    for starts in [2, 3] {
        proxy.kill();
        proxy.restart();
        eventually("the entries are known", || proxy.listings() == 2 * starts);
        assert_eq!(folder(&proxy, "cache_folder_up", second.path()), 1);
        for object in 6..=OBJECTS {
            assert_eq!(answer(&proxy, object), "HIT", "{object}");
        }
    }
    for object in 1..=5 {
        assert_eq!(answer(&proxy, object), "MISS", "{object}");
    }
}

#[test]
fn a_disk_that_hangs_costs_its_own_objects_only() {
    const AN_HOUR: Duration = Duration::from_secs(3600);
    let Some(second) = FaultyDisk::mount() else {
        return;
    };
    let hang = || {
        for op in [Op::Create, Op::Write, Op::Rename, Op::Fsync, Op::Readdir] {
            second.delay(op, AN_HOUR);
        }
    };
    let dir = TempDir::new().expect("a folder");
    let origin = origin();
    let mut proxy = on(&[dir.path(), second.path()], &origin);
    fill(&proxy);
    let _healed = Healed(&second);
    let kept = folder(&proxy, "cache_folder_entries", dir.path());
    hang();
    assert_eq!(purge(&proxy, "/assets/1"), 200);
    assert_eq!(folder(&proxy, "cache_folder_up", second.path()), 0);
    assert_eq!(answer(&proxy, 1), "MISS");
    second.heal();
    eventually("the disk is used again", || {
        folder(&proxy, "cache_folder_up", second.path()) == 1
    });
    proxy.kill();

    hang();
    proxy.restart();
    eventually("the entries of the other disk are known", || {
        folder(&proxy, "cache_folder_entries", dir.path()) + 1 >= kept
    });
    assert_eq!(folder(&proxy, "cache_folder_up", second.path()), 0);
    let (hits, _) = answers(&proxy);
    assert!(hits + 1 >= kept, "{hits} of {kept}");
    let purged = purge(&proxy, "/assets/2");
    assert!(matches!(purged, 200 | 404), "{purged}");
    second.heal();
    proxy.kill();
    proxy.restart();
    eventually("all entries are known", || {
        proxy.metric("cache_entries") + 2 >= OBJECTS
    });
    assert_eq!(folder(&proxy, "cache_folder_up", second.path()), 1);
    assert_eq!(answer(&proxy, 2), "MISS");
    let (hits, _) = answers(&proxy);
    assert!(hits + 2 >= OBJECTS, "{hits}");
}

/// Heals a disk before the proxy is killed, which cannot end while it waits for the disk.
struct Healed<'a>(&'a FaultyDisk);

impl Drop for Healed<'_> {
    fn drop(&mut self) {
        self.0.heal();
    }
}

fn origin() -> Origin {
    Origin::start(|request| {
        let name = request.path().rsplit('/').next().unwrap_or_default();
        Reply::pattern(name.parse().expect("a number"), LEN)
    })
}

/// A proxy that has listed these folders.
fn on(folders: &[&Path], origin: &Origin) -> Proxy {
    let origin = origin.url();
    let paths: Vec<_> = folders
        .iter()
        .map(|folder| format!("{{path: '{}'}}", folder.display()))
        .collect();
    let paths = paths.join(", ");
    let proxy = Proxy::start_with(S3_PROXY, |own| {
        let sock = own.join("upgrade.sock");
        format!(
            "server: {{address: '127.0.0.1:0', threads: 1, grace_period: 1s, upgrade_sock: '{}'}}\n\
             buckets: [{{path_prefix: /assets, bucket: bucket, region: us-east-1, endpoint: '{origin}'}}]\n\
             cache: {{disk: {{paths: [{paths}], max_size_gb: 1, scrub_mb_per_second: 0}}}}\n\
             metrics: {{address: '127.0.0.1:0'}}\n\
             admin: {{address: '127.0.0.1:0'}}\n",
            sock.display()
        )
    });
    eventually("the folders are listed", || {
        proxy.listings() == folders.len()
    });
    proxy
}

/// Stores all objects.
fn fill(proxy: &Proxy) {
    assert_eq!(answers(proxy), (0, OBJECTS));
    proxy.expect_metric("cache_entries", OBJECTS);
}

/// Asks for all objects, and returns how many were hits, and how many misses.
fn answers(proxy: &Proxy) -> (u64, u64) {
    let (mut hits, mut misses) = (0, 0);
    for object in 1..=OBJECTS {
        match &*answer(proxy, object) {
            "HIT" => hits += 1,
            "MISS" => misses += 1,
            other => panic!("object {object}: X-Cache is {other}"),
        }
    }
    (hits, misses)
}

/// Asks for an object, and returns `X-Cache`.
fn answer(proxy: &Proxy, object: u64) -> String {
    let mut connection = Connection::open(proxy.addr());
    let response = connection.begin("GET", &format!("/assets/{object}"), &[]);
    assert_eq!(response.status, 200);
    let x_cache = response.headers.get("x-cache").expect("X-Cache").to_owned();
    assert!(response.check(Pattern::new(object), 0).complete);
    x_cache
}

/// A metric of one folder.
fn folder(proxy: &Proxy, name: &str, path: &Path) -> u64 {
    let path = path.to_str().expect("UTF-8");
    proxy.metrics().sum_where(name, &[("path", path)])
}

fn purge(proxy: &Proxy, path: &str) -> u16 {
    request(proxy.admin_addr(), "PURGE", path, &[]).status
}

fn break_disk(disk: &FaultyDisk) {
    for op in [
        Op::Lookup,
        Op::Open,
        Op::Read,
        Op::Write,
        Op::Fsync,
        Op::Create,
        Op::Rename,
        Op::Unlink,
        Op::Readdir,
    ] {
        disk.fail(op, EIO);
    }
}
