//! The state of the proxy for operators: `GET /status`, the status page and `s3-proxy top` show it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::health::Health;
use super::top_keys::TopKeys;
use crate::cache::DiskCache;
use crate::config::Config;
use crate::metrics::METRICS;

/// The objects that are listed as requested most.
const TOP_KEYS: usize = 20;

/// The longest wait for file systems to tell their free space.
const SPACE_TIMEOUT: Duration = Duration::from_secs(1);

/// The share of a file system that is free when it is nearly full.
const NEARLY_FULL: f64 = 0.02;

/// The time before its expiry at which a certificate is worth a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 86400);

/// The state of the proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// The answer to `/ready`.
    pub ready: bool,
    /// The reasons if it is not ready.
    pub unready: Vec<String>,
    /// An operator has the proxy drained.
    pub draining: bool,
    /// Open client connections.
    pub connections: u64,
    /// Requests, since the start.
    pub requests: Requests,
    /// Body bytes that clients have received since the start, by the way they took.
    pub bytes: Bytes,
    /// The cache; absent: there is none.
    pub cache: Option<Cache>,
    /// The origins, in the order of `buckets`.
    pub origins: Vec<Origin>,
    /// The objects that are requested most, in the last minutes.
    pub top_keys: Vec<TopKey>,
    /// Troubles for an operator to look at.
    pub warnings: Vec<String>,
}

/// Requests since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// Answers from the cache.
    pub hits: u64,
    /// Answers that needed the origin.
    pub misses: u64,
    /// Share of the hits, from 0 to 1; absent: there were no requests.
    pub hit_ratio: Option<f64>,
    /// Stale answers.
    pub stale: u64,
    /// Responses that failed or broke off.
    pub errors: u64,
    /// Requests to origins, retries included.
    pub origin: u64,
}

/// Body bytes, by the way they took to clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bytes {
    /// All of them.
    pub total: u64,
    /// Sent by `sendfile(2)`.
    pub sendfile: u64,
    /// Sent by `sendfile(2)` and encrypted by the kernel.
    pub ktls: u64,
    /// Copied from the memory tier.
    pub memory: u64,
    /// Copied from a disk or an origin.
    pub copied: u64,
}

/// The cache.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Number of entries.
    pub entries: u64,
    /// Bytes that they take.
    pub size_bytes: u64,
    /// Bytes that they may take.
    pub max_size_bytes: u64,
    /// Entries that are being written.
    pub fills_in_flight: u64,
    /// Progress of the search for the entries of earlier runs, from 0 to 1.
    pub load_progress: f64,
    /// The directories.
    pub folders: Vec<Folder>,
}

/// A directory of the cache.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Folder {
    /// Its path.
    pub path: String,
    /// It can be used.
    pub up: bool,
    /// Number of entries.
    pub entries: u64,
    /// Bytes that they take.
    pub size_bytes: u64,
    /// Bytes that they may take.
    pub max_size_bytes: u64,
    /// Bytes of the file system that are free; absent: it does not tell.
    pub free_bytes: Option<u64>,
    /// Size of the file system; absent: it does not tell.
    pub disk_bytes: Option<u64>,
}

/// The origin of a bucket.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// The bucket; empty: all of the service.
    pub bucket: String,
    /// Its host.
    pub origin: String,
    /// False if all requests have failed for some time.
    pub up: bool,
    /// The number of failures in a row if it is down.
    pub failures: u64,
}

/// An object that is requested often.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopKey {
    /// Its path.
    pub path: String,
    /// Its share of the requests, from 0 to 1, estimated from some of them.
    pub share: f64,
}

/// All that the state is taken from.
pub(super) struct Source {
    began: Instant,
    health: Arc<Health>,
    top_keys: Arc<TopKeys>,
    cache: Option<&'static DiskCache>,
    folders: Arc<[Limits]>,
    min_free_bytes: u64,
    /// True while a thread asks file systems, which may hang.
    asks_disks: Arc<AtomicBool>,
}

/// The limit of a directory.
struct Limits {
    path: PathBuf,
    max_size_bytes: u64,
}

/// The free space and the size of a file system.
#[derive(Clone, Copy)]
struct Space {
    free: u64,
    total: u64,
}

// === impl Source ===

impl Source {
    pub(super) fn new(
        config: &Config,
        cache: Option<&'static DiskCache>,
        health: Arc<Health>,
        top_keys: Arc<TopKeys>,
    ) -> Source {
        let folders = config.cache.disk.folders().into_iter();
        let min_free = config.cache.disk.min_free_gb;
        Source {
            began: Instant::now(),
            health,
            top_keys,
            cache,
            folders: folders
                .map(|folder| Limits {
                    path: folder.path,
                    max_size_bytes: folder.max_size_bytes,
                })
                .collect(),
            min_free_bytes: min_free.map_or(0, |min| min.bytes()),
            asks_disks: Arc::default(),
        }
    }

    /// The present state. Waits for file systems, but not long.
    pub(super) async fn read(&self) -> Status {
        let spaces = self.spaces().await;
        let unready = self.health.unready();
        let (hits, misses) = (METRICS.hits.get(), METRICS.misses.get());
        let requests = hits + misses;
        let cache = self.cache.map(|cache| self.cache(cache, &spaces));
        let top = self.top_keys.top(TOP_KEYS).into_iter();
        let mut status = Status {
            version: env!("S3_PROXY_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs(),
            ready: unready.is_empty(),
            unready,
            draining: self.health.is_draining(),
            connections: METRICS.open_connections(),
            requests: Requests {
                hits,
                misses,
                hit_ratio: (requests > 0).then(|| hits as f64 / requests as f64),
                stale: METRICS.total_stale(),
                errors: METRICS.total_errors(),
                origin: METRICS.origin_requests.get(),
            },
            bytes: METRICS.bytes_by_way(),
            cache,
            origins: self.origins(),
            top_keys: top
                .map(|top| TopKey {
                    path: top.path,
                    share: top.share,
                })
                .collect(),
            warnings: Vec::new(),
        };
        status.warnings = self.warnings(&status);
        status
    }

    fn cache(&self, cache: &DiskCache, spaces: &[Option<Space>]) -> Cache {
        let limits = self.folders.iter().zip(spaces);
        let folders = cache.folders().zip(limits);
        Cache {
            entries: cache.entries() as u64,
            size_bytes: cache.size_bytes(),
            max_size_bytes: cache.max_size_bytes(),
            fills_in_flight: cache.fills_in_flight() as u64,
            load_progress: cache.recovery_ratio(),
            folders: folders
                .map(|(folder, (limits, space))| Folder {
                    path: folder.path.to_string_lossy().into_owned(),
                    up: folder.is_up,
                    entries: folder.entries as u64,
                    size_bytes: folder.size_bytes,
                    max_size_bytes: limits.max_size_bytes,
                    free_bytes: space.map(|space| space.free),
                    disk_bytes: space.map(|space| space.total),
                })
                .collect(),
        }
    }

    fn origins(&self) -> Vec<Origin> {
        let now = Instant::now();
        let origins = self.health.origins().into_iter().map(|origin| {
            let down = origin.down(now);
            Origin {
                bucket: origin.bucket().to_owned(),
                origin: origin.origin().to_owned(),
                up: down.is_none(),
                failures: down.map_or(0, |down| u64::from(down.failures)),
            }
        });
        origins.collect()
    }

    /// The space of the file system of each folder. `None`: it is not known, or not in time.
    async fn spaces(&self) -> Vec<Option<Space>> {
        let unknown = || vec![None; self.folders.len()];
        // A thread that waits for a disk is not given up, so there is at most one.
        if self.folders.is_empty() || self.asks_disks.swap(true, Ordering::AcqRel) {
            return unknown();
        }
        let (folders, asks_disks) = (self.folders.clone(), self.asks_disks.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let spaces = folders.iter().map(|folder| space(&folder.path)).collect();
            asks_disks.store(false, Ordering::Release);
            spaces
        });
        let asked = tokio::time::timeout(SPACE_TIMEOUT, asked).await;
        asked.ok().and_then(Result::ok).unwrap_or_else(unknown)
    }

    fn warnings(&self, status: &Status) -> Vec<String> {
        let mut warnings = Vec::new();
        if status.draining {
            warnings.push("The proxy is drained: clients are sent away.".to_owned());
        }
        for origin in status.origins.iter().filter(|origin| !origin.up) {
            warnings.push(format!(
                "The origin {} of bucket {} is down: {} failures in a row.",
                origin.origin, origin.bucket, origin.failures
            ));
        }
        let cache = status.cache.as_ref();
        for folder in cache.map_or(&[][..], |cache| &cache.folders) {
            let path = &folder.path;
            if !folder.up {
                warnings.push(format!("The directory {path} of the cache cannot be used."));
            }
            if let (Some(free), Some(total)) = (folder.free_bytes, folder.disk_bytes) {
                let least = match self.min_free_bytes {
                    0 => (total as f64 * NEARLY_FULL) as u64,
                    // The cache evicts to keep this much free, and may be late a little.
                    min_free => min_free / 10 * 9,
                };
                if free < least {
                    warnings.push(format!(
                        "The disk of {path} is nearly full: {free} bytes are free."
                    ));
                }
            }
        }
        if self.cache.is_some_and(|cache| !cache.is_writable()) {
            warnings.push("Another process holds the cache, so nothing is stored.".to_owned());
        }
        warnings.extend(certificates(&METRICS.certificates(), SystemTime::now()));
        if METRICS.tls.reload_failed.get() > 0 {
            warnings.push("A file of server.tls has changed and cannot be used.".to_owned());
        }
        let dropped = METRICS.access_log_dropped.get();
        if dropped > 0 {
            warnings.push(format!(
                "{dropped} lines of the access log were dropped since the start."
            ));
        }
        warnings
    }
}

/// The warnings of certificates, each with its file, name and time of expiry.
fn certificates(all: &[(String, String, i64)], now: SystemTime) -> Vec<String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let warnings = all.iter().filter_map(|(file, name, expiry)| {
        let left = expiry.saturating_sub(now);
        match left {
            ..=0 => Some(format!("The certificate {file} ({name}) has expired.")),
            left if left < EXPIRES_SOON.as_secs() as i64 => Some(format!(
                "The certificate {file} ({name}) expires in {} hours.",
                left / 3600
            )),
            _ => None,
        }
    });
    warnings.collect()
}

/// The space of the file system that has `path`. Blocks.
fn space(path: &Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Space {
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// A number of bytes in units of powers of ten, as in the configuration.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"");
    while value >= 999.95 {
        let Some(next) = units.next() else { break };
        value /= 1000.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A time in its two largest units.
pub fn period(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (1_500_000_000, "1.5 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(number), expected);
        }
        for (seconds, expected) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(period(seconds), expected);
        }
    }

    #[test]
    fn a_certificate_is_warned_of_a_week_ahead() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |expiry| [("a.pem".to_owned(), "a.test".to_owned(), expiry)];
        for (expiry, expected) in [
            (1_000_000 + 8 * 86400, None),
            (1_000_000 + 3 * 3600, Some("expires in 3 hours")),
            (1_000_000, Some("has expired")),
            (0, Some("has expired")),
        ] {
            let warnings = certificates(&at(expiry), now);
            match expected {
                Some(expected) => assert!(warnings[0].contains(expected), "{warnings:?}"),
                None => assert!(warnings.is_empty(), "{warnings:?}"),
            }
        }
    }

    #[test]
    fn the_space_of_a_folder_that_is_absent_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let found = space(folder.path()).unwrap();
        assert!(found.free <= found.total && found.total > 0);
        assert!(space(&folder.path().join("absent")).is_none());
    }

    #[test]
    fn the_json_is_read_by_other_versions_too() {
        let status = Status {
            version: "1".into(),
            cache: Some(Cache::default()),
            top_keys: vec![TopKey {
                path: "/a/\"<\n".into(),
                share: 0.5,
            }],
            ..Status::default()
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        let other = r#"{"version": "2", "novelty": [1], "requests": {"hits": 3}}"#;
        let other: Status = serde_json::from_str(other).unwrap();
        assert_eq!((&*other.version, other.requests.hits), ("2", 3));
    }
}
