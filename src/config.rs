//! The configuration file: YAML in, checked settings out.
//!
//! The document is read by hand from a [`serde_yaml::Value`], not derived: so
//! every message can name the full key and what may stand there, and no
//! message repeats a value that came from the environment or may be a secret.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_yaml::{Mapping, Value};

use crate::cache::BackendChoice;
use crate::s3::Endpoint;

/// The bytes of one gigabyte in `max_size_gb`: the SI unit, as disks are sold.
const GIGABYTE: f64 = 1e9;

/// The bytes of one megabyte, in `max_size_mb` and `scrub_mb_per_second`.
const MEGABYTE: f64 = 1e6;

/// The longest path of a Unix socket, in bytes: `sun_path` less its NUL, see
/// unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// The default of `server.tls.handshake_timeout`.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The name of the socket for an upgrade in the cache's folder.
const UPGRADE_SOCK: &str = "upgrade.sock";

/// Everything the proxy is told from outside. See `config.yaml.example`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listeners and the limits of their connections.
    pub server: Server,
    /// The buckets to serve: at least one, with prefixes that do not overlap.
    pub buckets: Vec<Bucket>,
    /// Where and for how long answers are kept.
    pub cache: Cache,
    /// The listener for `/metrics` and `/health`, if wanted.
    pub metrics: Option<Metrics>,
    /// The listener for `PURGE`, if wanted.
    pub admin: Option<Admin>,
}

/// The section `server`.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address of the plain HTTP listener; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Worker threads; default: what the machine can run at once.
    pub threads: usize,
    /// The longest wait for a client that takes no bytes; zero: no limit.
    /// Default: 60 s.
    pub write_timeout: Duration,
    /// The slowest client that is served to the end, in bytes a second; zero
    /// (the default): no limit.
    pub min_send_rate: usize,
    /// Unsent bytes of a response that the kernel keeps for a client; 0: the kernel's own
    /// limit. `None`: what the clients share leaves for each, from 2 MiB for the first ones
    /// to 64 KiB where there are many.
    pub send_buffer: Option<u32>,
    /// The longest time that a connection may wait for its next request, rounded up to
    /// seconds for HTTP/1.1; zero: no limit. Default: 75 s.
    pub keepalive_timeout: Duration,
    /// The longest time that a request head may take from its first byte; for the first
    /// head of a connection, which over HTTP/2 includes the preface, from the start of the
    /// connection. Zero: no limit. Default: 30 s.
    pub request_head_timeout: Duration,
    /// The largest request head, in bytes. Default: 65536.
    pub max_request_head_bytes: usize,
    /// How long running responses may take to end after a stop signal.
    /// Default: 30 s.
    pub grace_period: Duration,
    /// The most client connections at the same time; `None`: as many as the process's
    /// limit of open files leaves room for.
    pub max_connections: Option<usize>,
    /// The Unix socket where `run --upgrade` takes over the listeners. Default:
    /// `upgrade.sock` in the cache folder, or without a cache in the folder that
    /// `RUNTIME_DIRECTORY` names (systemd.exec(5)); `None`: there is neither.
    pub upgrade_sock: Option<PathBuf>,
    /// A second listener: HTTPS with HTTP/2, if wanted.
    pub tls: Option<Tls>,
}

/// The section `server.tls`.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The address of the HTTPS listener; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// The certificate chain, a PEM file; relative to the working directory.
    pub certificate: PathBuf,
    /// The private key of the certificate, a PEM file; likewise.
    pub key: PathBuf,
    /// The longest time that a client's handshake may take. Default: 10 s.
    pub handshake_timeout: Duration,
}

/// One entry of `buckets`.
#[derive(Clone)]
pub struct Bucket {
    /// Which paths are answered from this bucket: starts with a slash and, but
    /// for `/` itself, does not end in one.
    pub path_prefix: String,
    /// The name of the bucket.
    pub bucket: String,
    /// The region of the bucket: part of its address at AWS, and of every
    /// signature.
    pub region: String,
    /// `http://host[:port]` or `https://host[:port]` of an S3 service other
    /// than AWS; `None`: AWS.
    pub endpoint: Option<Endpoint>,
    /// The access key; without one, requests go out unsigned.
    pub access_key: Option<String>,
    /// The secret key: there exactly when the access key is.
    pub secret_key: Option<String>,
    /// The session token of temporary credentials.
    pub session_token: Option<String>,
}

/// The section `cache`.
#[derive(Clone, Debug)]
pub struct Cache {
    /// How long an answer is fresh when the origin does not say. Default: 1 h.
    pub default_ttl: Duration,
    /// The time for which a missing object (404, 410) is remembered when the origin does
    /// not say; zero: not at all.
    pub negative_ttl: Duration,
    /// From which request on an object is stored. Default: 1, the first.
    pub admission: u8,
    /// A response that all clients have left is stored to its end if this share of it
    /// has come from the origin; 0: always, 1: never. Default: 0.5.
    pub fill_without_readers: f64,
    /// The most responses that are stored at the same time. Default: 128.
    pub max_fills: usize,
    /// The most requests that wait for the origin, or pass its response on without storing
    /// it. Default: 1024.
    pub max_misses: usize,
    /// The time that further requests wait for their turn before they get 503. Default: 60 s.
    pub miss_timeout: Duration,
    /// The time that requests wait for the answer to another request for the same object
    /// before one of them asks the origin too. Default: 10 s.
    pub lock_age: Duration,
    /// Which objects are fetched as a whole when a part is asked for.
    pub range_fill: RangeFill,
    /// The memory in front of the disk.
    pub memory: Memory,
    /// The cache on disk.
    pub disk: Disk,
}

/// The section `cache.range_fill`: what happens when a part is asked for of an
/// object that is not stored. The part comes from the origin at once, and after it the
/// whole is fetched in the background.
#[derive(Clone, Debug)]
pub struct RangeFill {
    /// How many objects are fetched at the same time; 0: none. Default: 32.
    pub max_in_flight: usize,
    /// The largest object that is fetched, in gigabytes of 10^9 bytes; fractions
    /// allowed. Default: what the cache may hold.
    pub max_size_gb: Option<f64>,
    /// The total size of the objects in flight, in the same unit. Default: an eighth of
    /// what the cache may hold.
    pub max_in_flight_gb: Option<f64>,
    /// Megabytes of 10^6 bytes that may be fetched in a minute for one client address,
    /// beyond what clients have received; 0: no limit. Default: 1000.
    pub client_mb_per_minute: f64,
}

/// The section `cache.memory`.
#[derive(Clone, Debug)]
pub struct Memory {
    /// How much memory may hold bodies up to the sendfile threshold, in
    /// megabytes of 10^6 bytes; fractions allowed, 0: none. Default: 256.
    pub max_size_mb: f64,
}

/// The section `cache.disk`.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Whether there is a cache on disk: the default where the section
    /// `cache.disk` exists, and only there.
    pub enabled: bool,
    /// The directory of the cache, relative to the working directory if it is
    /// relative at all; empty only when the cache is not enabled.
    pub path: PathBuf,
    /// The size to which the cache may grow, in gigabytes of 10^9 bytes;
    /// fractions allowed. Default: 10.
    pub max_size_gb: f64,
    /// How files are read and written. Default: auto.
    pub backend: BackendChoice,
    /// Entries that nobody asked for so long are removed; zero (the default):
    /// only room for others makes an entry leave.
    pub inactive: Duration,
    /// Open files of hot entries that are kept, at most; below a quarter of
    /// the process's limit in any case. Default: 1024.
    pub max_open_files: usize,
    /// What is read in the background to find flipped bits, in megabytes of
    /// 10^6 bytes a second; zero: nothing. Default: 8.
    pub scrub_mb_per_second: f64,
    /// Which hits leave by `sendfile(2)`.
    pub sendfile: Sendfile,
}

/// The section `cache.disk.sendfile`.
#[derive(Clone, Debug)]
pub struct Sendfile {
    /// Whether hits go by `sendfile(2)`; default: on Linux, yes.
    pub enabled: bool,
    /// Bodies larger than this, in bytes, go by `sendfile(2)`. Default: 16384.
    pub threshold_bytes: u64,
}

/// The section `metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The address of the listener; port 0 lets the kernel choose.
    pub address: SocketAddr,
}

/// The section `admin`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The address of the listener; port 0 lets the kernel choose.
    pub address: SocketAddr,
}

/// A configuration that cannot be used: one line that names the file, the key,
/// what is wrong there and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    key: Option<String>,
    problem: String,
    remedy: String,
}

// === impl Config ===

impl Config {
    /// Reads a configuration file, with variables from the environment.
    ///
    /// # Errors
    /// As [`Config::parse`], and when the file cannot be read.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::new(
                path,
                None,
                format!("cannot be read: {error}"),
                "name a readable UTF-8 file; config.yaml.example shows what goes into it",
            )
        })?;
        Config::parse(&text, path, &|name| std::env::var(name).ok())
    }

    /// Checks the text of a configuration file. `file` is for the messages,
    /// `env` gives the variables that `${NAME}` stands for.
    ///
    /// Variables are put in after the YAML has been read, so a secret may
    /// hold any character; `$${` stands for a literal `${`.
    ///
    /// # Errors
    /// The first thing found wrong. The files of `server.tls` are looked for;
    /// nothing else outside the text is.
    pub fn parse(
        text: &str,
        file: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        let document: Value =
            serde_yaml::from_str(text).map_err(|error| ConfigError::from_yaml(file, &error))?;
        let source = Source { file, env };
        if document.is_null() {
            return Err(ConfigError::new(
                file,
                None,
                "holds no settings",
                "config.yaml.example shows what goes into it",
            ));
        }
        let root = Node {
            source: &source,
            path: String::new(),
            value: &document,
        }
        .section(&["server", "buckets", "cache", "metrics", "admin"])?;
        let mut config = Config {
            server: Server::read(&root.required_section("server", Server::KEYS)?)?,
            buckets: read_buckets(&root)?,
            cache: Cache::read(root.section("cache", Cache::KEYS)?.as_ref())?,
            metrics: root.listener("metrics")?.map(|address| Metrics { address }),
            admin: root.listener("admin")?.map(|address| Admin { address }),
        };
        config.check_listeners(&source)?;
        if config.server.upgrade_sock.is_none() {
            config.server.upgrade_sock = config.default_upgrade_sock(env);
        }
        Ok(config)
    }

    /// A socket in a folder to which only the proxy may write.
    fn default_upgrade_sock(&self, env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let folder = match self.cache.disk.enabled {
            true => self.cache.disk.path.clone(),
            // It may name several folders, separated by colons.
            false => env("RUNTIME_DIRECTORY")?.split(':').next()?.into(),
        };
        let path = folder.join(UPGRADE_SOCK);
        (!folder.as_os_str().is_empty() && path.as_os_str().len() <= MAX_SOCKET_PATH)
            .then_some(path)
    }

    fn check_listeners(&self, source: &Source) -> Result<(), ConfigError> {
        let mut listeners = vec![("server.address", self.server.address)];
        if let Some(tls) = &self.server.tls {
            listeners.push(("server.tls.address", tls.address));
        }
        if let Some(metrics) = &self.metrics {
            listeners.push(("metrics.address", metrics.address));
        }
        if let Some(admin) = &self.admin {
            listeners.push(("admin.address", admin.address));
        }
        for (index, (key, address)) in listeners.iter().enumerate() {
            for (other_key, other) in &listeners[..index] {
                if same_listener(address, other) {
                    return Err(source.error(
                        key,
                        format!("listens where {other_key} does"),
                        "give each listener a port of its own, or port 0 to let the kernel choose",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether the kernel would refuse the second of two listeners.
fn same_listener(a: &SocketAddr, b: &SocketAddr) -> bool {
    // `[::]` takes IPv4 as well unless the socket is told otherwise, see ipv6(7).
    let takes =
        |any: IpAddr, other: IpAddr| any.is_unspecified() && (any.is_ipv6() || other.is_ipv4());
    a.port() != 0
        && a.port() == b.port()
        && (a.ip() == b.ip() || takes(a.ip(), b.ip()) || takes(b.ip(), a.ip()))
}

// === impl Server ===

impl Server {
    const KEYS: &'static [&'static str] = &[
        "address",
        "threads",
        "write_timeout",
        "min_send_rate",
        "send_buffer",
        "keepalive_timeout",
        "request_head_timeout",
        "max_request_head_bytes",
        "grace_period",
        "max_connections",
        "upgrade_sock",
        "tls",
    ];

    /// [`Self::keepalive_timeout`] in whole seconds; `None`: no limit.
    pub fn keepalive_secs(&self) -> Option<u64> {
        let timeout = self.keepalive_timeout;
        let secs = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        (secs > 0).then_some(secs)
    }

    fn read(section: &Section) -> Result<Server, ConfigError> {
        Ok(Server {
            address: section.required("address", ADDRESS)?.address()?,
            threads: match section.get("threads") {
                Some(node) => node.integer(1..=1024)?,
                None => std::thread::available_parallelism().map_or(1, usize::from),
            },
            write_timeout: section.duration("write_timeout", Duration::from_secs(60))?,
            min_send_rate: match section.get("min_send_rate") {
                Some(node) => node.integer(0..=1_000_000_000)?,
                None => 0,
            },
            send_buffer: section
                .get("send_buffer")
                .map(|node| node.integer(0..=1 << 30))
                .transpose()?,
            keepalive_timeout: section.duration("keepalive_timeout", Duration::from_secs(75))?,
            request_head_timeout: section
                .duration("request_head_timeout", Duration::from_secs(30))?,
            max_request_head_bytes: match section.get("max_request_head_bytes") {
                Some(node) => node.integer(1024..=1_000_000)?,
                None => 65536,
            },
            grace_period: section.duration("grace_period", Duration::from_secs(30))?,
            max_connections: section
                .get("max_connections")
                .map(|node| node.integer(1..=10_000_000))
                .transpose()?,
            upgrade_sock: section
                .get("upgrade_sock")
                .map(|node| node.socket_path())
                .transpose()?,
            tls: section
                .section("tls", Tls::KEYS)?
                .as_ref()
                .map(Tls::read)
                .transpose()?,
        })
    }
}

// === impl Tls ===

impl Tls {
    const KEYS: &'static [&'static str] = &["address", "certificate", "key", "handshake_timeout"];

    fn read(section: &Section) -> Result<Tls, ConfigError> {
        Ok(Tls {
            address: section.required("address", ADDRESS)?.address()?,
            certificate: section
                .required("certificate", "write the path of a PEM file")?
                .readable_file()?,
            key: section
                .required("key", "write the path of a PEM file")?
                .readable_file()?,
            handshake_timeout: match section.duration("handshake_timeout", HANDSHAKE_TIMEOUT)? {
                Duration::ZERO => Duration::from_secs(365 * 86400),
                timeout => timeout,
            },
        })
    }
}

// === impl Bucket ===

impl Bucket {
    const KEYS: &'static [&'static str] = &[
        "path_prefix",
        "bucket",
        "region",
        "endpoint",
        "access_key",
        "secret_key",
        "session_token",
    ];

    fn read(section: &Section) -> Result<Bucket, ConfigError> {
        let bucket = Bucket {
            path_prefix: section
                .required("path_prefix", PATH_PREFIX)?
                .path_prefix()?,
            bucket: section.required("bucket", BUCKET_NAME)?.bucket_name()?,
            region: section.required("region", REGION)?.region()?,
            endpoint: section
                .get("endpoint")
                .map(|node| node.endpoint())
                .transpose()?,
            access_key: section.credential("access_key")?,
            secret_key: section.credential("secret_key")?,
            session_token: section.credential("session_token")?,
        };
        let given = |value: &Option<String>| value.is_some();
        let (lone, missing) = if given(&bucket.access_key) && !given(&bucket.secret_key) {
            ("access_key", "secret_key")
        } else if given(&bucket.secret_key) && !given(&bucket.access_key) {
            ("secret_key", "access_key")
        } else if given(&bucket.session_token) && !given(&bucket.access_key) {
            ("session_token", "access_key")
        } else {
            return Ok(bucket);
        };
        Err(section.source.error(
            &section.key(missing),
            format!("is missing beside {lone}"),
            "write both access_key and secret_key, or no key at all for unsigned requests",
        ))
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let redacted = |value: &Option<String>| value.as_ref().map(|_| "redacted");
        f.debug_struct("Bucket")
            .field("path_prefix", &self.path_prefix)
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .field("access_key", &redacted(&self.access_key))
            .field("secret_key", &redacted(&self.secret_key))
            .field("session_token", &redacted(&self.session_token))
            .finish()
    }
}

fn read_buckets(root: &Section) -> Result<Vec<Bucket>, ConfigError> {
    let remedy = "list at least one bucket: \"- path_prefix: /assets\" and so on";
    let node = root.required("buckets", remedy)?;
    let entries = match node.value {
        Value::Sequence(entries) if !entries.is_empty() => entries,
        Value::Sequence(_) => return Err(node.error("is an empty list", remedy)),
        _ => return Err(node.wrong_type("a list", remedy)),
    };
    let mut buckets: Vec<Bucket> = Vec::with_capacity(entries.len());
    for (index, value) in entries.iter().enumerate() {
        let entry = Node {
            source: node.source,
            path: format!("{}[{index}]", node.path),
            value,
        };
        let bucket = Bucket::read(&entry.section(Bucket::KEYS)?)?;
        let overlapping = buckets
            .iter()
            .position(|other| prefixes_overlap(&bucket.path_prefix, &other.path_prefix));
        if let Some(other) = overlapping {
            return Err(root.source.error(
                &format!("{}.path_prefix", entry.path),
                format!("overlaps with buckets[{other}].path_prefix"),
                "write prefixes of which none is another or begins with the segments of another; \
                 / stands only alone",
            ));
        }
        buckets.push(bucket);
    }
    Ok(buckets)
}

/// Whether a path can be under both prefixes.
fn prefixes_overlap(a: &str, b: &str) -> bool {
    let under = |path: &str, prefix: &str| {
        path.strip_prefix(prefix.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    under(a, b) || under(b, a)
}

// === impl Cache ===

impl Cache {
    const KEYS: &'static [&'static str] = &[
        "default_ttl",
        "negative_ttl",
        "admission",
        "fill_without_readers",
        "max_fills",
        "max_misses",
        "miss_timeout",
        "lock_age",
        "range_fill",
        "memory",
        "disk",
    ];

    fn read(section: Option<&Section>) -> Result<Cache, ConfigError> {
        const SHARE: &str = "write a share from 0 to 1; 0: always, 1: never";
        let default_ttl = Duration::from_secs(3600);
        let negative_ttl = Duration::from_secs(5);
        let fill_without_readers = 0.5;
        let max_fills = 128;
        let max_misses = 1024;
        let miss_timeout = Duration::from_secs(60);
        let lock_age = Duration::from_secs(10);
        let Some(section) = section else {
            return Ok(Cache {
                default_ttl,
                negative_ttl,
                admission: 1,
                fill_without_readers,
                max_fills,
                max_misses,
                miss_timeout,
                lock_age,
                range_fill: RangeFill::default(),
                memory: Memory::default(),
                disk: Disk::absent(),
            });
        };
        Ok(Cache {
            default_ttl: section.duration("default_ttl", default_ttl)?,
            negative_ttl: section.duration("negative_ttl", negative_ttl)?,
            admission: match section.get("admission") {
                Some(node) => node.integer(1..=255)?,
                None => 1,
            },
            fill_without_readers: match section.get("fill_without_readers") {
                Some(node) => node.decimal(0.0..=1.0, SHARE)?,
                None => fill_without_readers,
            },
            max_fills: match section.get("max_fills") {
                Some(node) => node.integer(1..=100_000)?,
                None => max_fills,
            },
            max_misses: match section.get("max_misses") {
                Some(node) => node.integer(1..=1_000_000)?,
                None => max_misses,
            },
            miss_timeout: section.duration("miss_timeout", miss_timeout)?,
            // Zero would be no wait at all.
            lock_age: section
                .duration("lock_age", lock_age)?
                .max(Duration::from_secs(1)),
            range_fill: match section.section("range_fill", RangeFill::KEYS)? {
                Some(range_fill) => RangeFill::read(&range_fill)?,
                None => RangeFill::default(),
            },
            memory: match section.section("memory", &["max_size_mb"])? {
                Some(memory) => Memory::read(&memory)?,
                None => Memory::default(),
            },
            disk: match section.section("disk", Disk::KEYS)? {
                Some(disk) => Disk::read(&disk)?,
                None => Disk::absent(),
            },
        })
    }
}

// === impl RangeFill ===

impl RangeFill {
    const KEYS: &'static [&'static str] = &[
        "max_in_flight",
        "max_size_gb",
        "max_in_flight_gb",
        "client_mb_per_minute",
    ];

    /// The largest object that is fetched, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_gb
            .map_or(u64::MAX, |size| (size * GIGABYTE).round() as u64)
    }

    /// The total size of the objects in flight, in bytes, for a cache that may hold
    /// `cache_bytes`.
    pub fn max_in_flight_bytes(&self, cache_bytes: u64) -> u64 {
        self.max_in_flight_gb
            .map_or(cache_bytes / 8, |size| (size * GIGABYTE).round() as u64)
    }

    /// Bytes that may be fetched in a minute for one client address; `None`: no limit.
    pub fn client_bytes_per_minute(&self) -> Option<u64> {
        let bytes = (self.client_mb_per_minute * MEGABYTE).round() as u64;
        (bytes > 0).then_some(bytes)
    }

    fn read(section: &Section) -> Result<RangeFill, ConfigError> {
        const MEGABYTES: &str =
            "write a number of megabytes (10^6 bytes) from 0 to 1000000; 0: no limit";
        const GIGABYTES: &str =
            "write a number of gigabytes (10^9 bytes) from 0.001 to 1000000, such as 0.5";
        let default = RangeFill::default();
        Ok(RangeFill {
            max_in_flight: match section.get("max_in_flight") {
                Some(node) => node.integer(0..=10_000)?,
                None => default.max_in_flight,
            },
            max_size_gb: match section.get("max_size_gb") {
                Some(node) => Some(node.decimal(0.001..=1e6, GIGABYTES)?),
                None => default.max_size_gb,
            },
            max_in_flight_gb: match section.get("max_in_flight_gb") {
                Some(node) => Some(node.decimal(0.001..=1e6, GIGABYTES)?),
                None => default.max_in_flight_gb,
            },
            client_mb_per_minute: match section.get("client_mb_per_minute") {
                Some(node) => node.decimal(0.0..=1e6, MEGABYTES)?,
                None => default.client_mb_per_minute,
            },
        })
    }
}

impl Default for RangeFill {
    fn default() -> Self {
        RangeFill {
            max_in_flight: 32,
            max_size_gb: None,
            max_in_flight_gb: None,
            client_mb_per_minute: 1000.0,
        }
    }
}

// === impl Memory ===

impl Memory {
    /// How much memory may hold bodies, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        (self.max_size_mb * MEGABYTE).round() as u64
    }

    fn read(section: &Section) -> Result<Memory, ConfigError> {
        const MEGABYTES: &str =
            "write a number of megabytes (10^6 bytes) from 0 to 1000000; 0: none";
        Ok(Memory {
            max_size_mb: match section.get("max_size_mb") {
                Some(node) => node.decimal(0.0..=1e6, MEGABYTES)?,
                None => Memory::default().max_size_mb,
            },
        })
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory { max_size_mb: 256.0 }
    }
}

// === impl Disk ===

impl Disk {
    const KEYS: &'static [&'static str] = &[
        "enabled",
        "path",
        "max_size_gb",
        "backend",
        "inactive",
        "max_open_files",
        "scrub_mb_per_second",
        "sendfile",
    ];

    /// The size to which the cache may grow, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        // The cast saturates; what is read from a file is far from the limit.
        (self.max_size_gb * GIGABYTE).round() as u64
    }

    /// What is read in the background, in bytes a second; 0: nothing.
    pub fn scrub_bytes_per_second(&self) -> u64 {
        (self.scrub_mb_per_second * MEGABYTE).round() as u64
    }

    fn absent() -> Disk {
        Disk {
            enabled: false,
            path: PathBuf::new(),
            max_size_gb: 10.0,
            backend: BackendChoice::Auto,
            inactive: Duration::ZERO,
            max_open_files: 1024,
            scrub_mb_per_second: 8.0,
            sendfile: Sendfile::default(),
        }
    }

    fn read(section: &Section) -> Result<Disk, ConfigError> {
        let enabled = section.boolean("enabled", true)?;
        let path_remedy = "write the path of a directory, such as /var/cache/s3-proxy";
        let path = match section.get("path") {
            Some(node) => node.path(path_remedy)?,
            None if enabled => section.required("path", path_remedy)?.path(path_remedy)?,
            None => PathBuf::new(),
        };
        let default = Disk::absent();
        Ok(Disk {
            enabled,
            path,
            max_size_gb: match section.get("max_size_gb") {
                Some(node) => node.decimal(0.001..=1e6, GIGABYTES)?,
                None => default.max_size_gb,
            },
            backend: match section.get("backend") {
                Some(node) => node.backend()?,
                None => default.backend,
            },
            inactive: section.duration("inactive", default.inactive)?,
            max_open_files: match section.get("max_open_files") {
                Some(node) => node.integer(0..=1_000_000)?,
                None => default.max_open_files,
            },
            scrub_mb_per_second: match section.get("scrub_mb_per_second") {
                Some(node) => node.decimal(0.0..=1e4, SCRUB_RATE)?,
                None => default.scrub_mb_per_second,
            },
            sendfile: match section.section("sendfile", &["enabled", "threshold_bytes"])? {
                Some(sendfile) => Sendfile::read(&sendfile)?,
                None => Sendfile::default(),
            },
        })
    }
}

// === impl Sendfile ===

impl Sendfile {
    fn read(section: &Section) -> Result<Sendfile, ConfigError> {
        let default = Sendfile::default();
        Ok(Sendfile {
            enabled: section.boolean("enabled", default.enabled)?,
            threshold_bytes: match section.get("threshold_bytes") {
                Some(node) => node.integer(0..=u64::MAX)?,
                None => default.threshold_bytes,
            },
        })
    }
}

impl Default for Sendfile {
    fn default() -> Self {
        Sendfile {
            enabled: cfg!(target_os = "linux"),
            threshold_bytes: 16384,
        }
    }
}

// === impl ConfigError ===

impl ConfigError {
    /// The full path of the key that is wrong, such as
    /// `buckets[0].access_key`; `None` when it is the file as a whole.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    fn new(
        file: &Path,
        key: Option<&str>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            file: one_line(&file.display().to_string()),
            key: key.map(one_line),
            problem: one_line(&problem.into()),
            remedy: one_line(&remedy.into()),
        }
    }

    fn from_yaml(file: &Path, error: &serde_yaml::Error) -> ConfigError {
        let message = error.to_string();
        let place = error
            .location()
            .map(|at| format!(" (from line {}, column {})", at.line(), at.column()))
            .unwrap_or_default();
        if let Some((path, rest)) = message.split_once("duplicate entry with key \"") {
            let name = rest.split('"').next().unwrap_or_default();
            let parent = path.trim_end_matches([':', ' ', '.']);
            return ConfigError::new(
                file,
                Some(&join(parent, name)),
                format!("stands twice in one section{place}"),
                "keep one of the two",
            );
        }
        let problem = if message.contains("invalid value") || message.contains("invalid type") {
            // serde repeats the value here, and it may be a secret.
            format!("holds a value that its YAML tag does not allow{place}")
        } else {
            format!("is not valid YAML: {message}")
        };
        ConfigError::new(
            file,
            None,
            problem,
            "correct the indentation and quoting there; config.yaml.example shows the layout",
        )
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{}: {key}: {}; {}", self.file, self.problem, self.remedy),
            None => write!(f, "{}: {}; {}", self.file, self.problem, self.remedy),
        }
    }
}

impl std::error::Error for ConfigError {}

fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let kept = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}

// What may stand at a key, as the messages put it.
const ADDRESS: &str = "write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080; port 0 lets the \
                       kernel choose";
const DURATION: &str =
    "write a whole number with a unit ms, s, m, h or d, such as 500ms, 60s or 1h, \
                        at most 365d, or 0";
const BOOLEAN: &str = "write true or false";
const GIGABYTES: &str = "write a number of gigabytes (10^9 bytes) from 0.001 to 1000000";
const SCRUB_RATE: &str =
    "write a number of megabytes (10^6 bytes) a second from 0 to 10000; 0: off";
const BACKEND: &str = "write auto, tokio or uring";
const SOCKET_PATH: &str = "write the path of a Unix socket, at most 107 bytes, such as \
                           /run/s3-proxy/upgrade.sock";
const PATH_PREFIX: &str = "write / or a path such as /assets: segments of letters, digits and \
                           -._~!$&'()*+,;=:@";
const BUCKET_NAME: &str = "write 3 to 63 of a-z, 0-9, - and ., with a letter or digit at both \
                           ends and no two dots in a row, not an IP address";
const REGION: &str = "write a region such as us-east-1: a-z, 0-9 and -, at most 63 characters";
const ENDPOINT: &str = "write http://HOST[:PORT] or https://HOST[:PORT], or leave the key out \
                        for AWS";
const CREDENTIAL: &str = "write ${NAME} to take it from the environment, or leave out all keys \
                          of the bucket for unsigned requests";

/// The text a document came from and what its variables stand for.
struct Source<'a> {
    file: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
}

/// A mapping whose keys are all known, and where it stands in the document.
struct Section<'a> {
    source: &'a Source<'a>,
    path: String,
    entries: &'a Mapping,
}

/// A value and where it stands in the document.
struct Node<'a> {
    source: &'a Source<'a>,
    path: String,
    value: &'a Value,
}

/// A string of the document: as it is written, and with its variables filled
/// in. Messages show the former, so that nothing of the environment shows.
struct Text<'a> {
    written: &'a str,
    filled: String,
}

// === impl Source ===

impl Source<'_> {
    fn error(
        &self,
        key: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError::new(self.file, Some(key), problem, remedy)
    }
}

// === impl Section ===

impl<'a> Section<'a> {
    fn key(&self, name: &str) -> String {
        join(&self.path, name)
    }

    fn get(&self, name: &str) -> Option<Node<'a>> {
        Some(Node {
            source: self.source,
            path: self.key(name),
            value: self.entries.get(name)?,
        })
    }

    fn required(&self, name: &str, remedy: &str) -> Result<Node<'a>, ConfigError> {
        self.get(name)
            .ok_or_else(|| self.source.error(&self.key(name), "is missing", remedy))
    }

    fn section(&self, name: &str, keys: &[&str]) -> Result<Option<Section<'a>>, ConfigError> {
        self.get(name).map(|node| node.section(keys)).transpose()
    }

    fn required_section(&self, name: &str, keys: &[&str]) -> Result<Section<'a>, ConfigError> {
        self.required(
            name,
            &format!("add the section with keys {}", keys.join(", ")),
        )?
        .section(keys)
    }

    fn duration(&self, name: &str, default: Duration) -> Result<Duration, ConfigError> {
        self.get(name).map_or(Ok(default), |node| node.duration())
    }

    fn boolean(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        self.get(name).map_or(Ok(default), |node| node.boolean())
    }

    fn credential(&self, name: &str) -> Result<Option<String>, ConfigError> {
        self.get(name).map(|node| node.credential()).transpose()
    }

    /// The address in the section `name`, which has that key and no other.
    fn listener(&self, name: &str) -> Result<Option<SocketAddr>, ConfigError> {
        self.section(name, &["address"])?
            .map(|section| section.required("address", ADDRESS)?.address())
            .transpose()
    }
}

// === impl Node ===

impl<'a> Node<'a> {
    fn error(&self, problem: impl Into<String>, remedy: &str) -> ConfigError {
        self.source.error(&self.path, problem, remedy)
    }

    fn wrong_type(&self, expected: &str, remedy: &str) -> ConfigError {
        let found = match self.value {
            Value::Null => return self.error("has no value", remedy),
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a section",
            Value::Tagged(_) => "a tagged value",
        };
        self.error(format!("is {found}, not {expected}"), remedy)
    }

    fn section(&self, keys: &[&str]) -> Result<Section<'a>, ConfigError> {
        let allowed = keys.join(", ");
        let Value::Mapping(entries) = self.value else {
            let remedy = format!("allowed keys: {allowed}");
            if self.path.is_empty() {
                return Err(ConfigError::new(
                    self.source.file,
                    None,
                    "holds no sections",
                    remedy,
                ));
            }
            return Err(self.wrong_type("a section of keys", &remedy));
        };
        for name in entries.keys() {
            let unknown = match name {
                Value::String(name) if keys.contains(&name.as_str()) => continue,
                Value::String(name) => name.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(boolean) => boolean.to_string(),
                _ => "(a key that is no string)".to_owned(),
            };
            return Err(self.source.error(
                &join(&self.path, &unknown),
                "is not a known key",
                format!("allowed keys here: {allowed}"),
            ));
        }
        Ok(Section {
            source: self.source,
            path: self.path.clone(),
            entries,
        })
    }

    /// The string at this key with its variables filled in.
    fn text(&self, remedy: &str) -> Result<Text<'a>, ConfigError> {
        let Value::String(written) = self.value else {
            return Err(self.wrong_type("a string", remedy));
        };
        let filled = self.fill(written)?;
        if filled.is_empty() {
            return Err(self.error("is empty", remedy));
        }
        Ok(Text { written, filled })
    }

    fn fill(&self, written: &str) -> Result<String, ConfigError> {
        let mut filled = String::with_capacity(written.len());
        let mut rest = written;
        while let Some(at) = rest.find("${") {
            let (before, variable) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('$') {
                filled.push_str(before);
                filled.push_str("${");
                rest = &variable[2..];
                continue;
            }
            filled.push_str(before);
            let (name, after) = variable[2..]
                .split_once('}')
                .filter(|(name, _)| is_variable_name(name))
                .ok_or_else(|| {
                    // What stands after it may be a part of a secret.
                    self.error(
                        "has a ${ that no variable name and } follow",
                        "write ${NAME} with letters, digits and _, or $${ for a literal ${",
                    )
                })?;
            let value = (self.source.env)(name).ok_or_else(|| {
                self.error(
                    format!("needs the environment variable {name}, which is not set"),
                    &format!("set it with: export {name}=..."),
                )
            })?;
            filled.push_str(&value);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    /// The scalar at this key if it is not a plain YAML value of the expected
    /// type: only a string with variables may stand for such a value.
    fn variable_text(&self, expected: &str, remedy: &str) -> Result<Text<'a>, ConfigError> {
        match self.value {
            Value::String(written) if written.contains("${") => self.text(remedy),
            _ => Err(self.wrong_type(expected, remedy)),
        }
    }

    fn boolean(&self) -> Result<bool, ConfigError> {
        if let Value::Bool(boolean) = self.value {
            return Ok(*boolean);
        }
        let text = self.variable_text("true or false", BOOLEAN)?;
        text.filled
            .parse()
            .map_err(|_| text.unfit(self, "true or false", BOOLEAN))
    }

    fn integer<T>(&self, allowed: RangeInclusive<T>) -> Result<T, ConfigError>
    where
        T: Copy + fmt::Display + PartialOrd + TryFrom<u64> + std::str::FromStr,
    {
        let remedy = format!(
            "write a whole number from {} to {}",
            allowed.start(),
            allowed.end()
        );
        let number = match self.value {
            Value::Number(number) => {
                let problem = || self.error(format!("{number} is out of range"), &remedy);
                let whole = number.as_u64().ok_or_else(|| match number.as_i64() {
                    Some(_) => problem(),
                    None => self.error(format!("{number} is not a whole number"), &remedy),
                })?;
                T::try_from(whole).map_err(|_| problem())?
            }
            _ => {
                let text = self.variable_text("a number", &remedy)?;
                text.filled
                    .parse()
                    .map_err(|_| text.unfit(self, "a whole number", &remedy))?
            }
        };
        if allowed.contains(&number) {
            Ok(number)
        } else {
            Err(self.error(self.shown("is out of range"), &remedy))
        }
    }

    fn decimal(&self, allowed: RangeInclusive<f64>, remedy: &str) -> Result<f64, ConfigError> {
        let number = match self.value {
            Value::Number(number) => number.as_f64(),
            _ => {
                let text = self.variable_text("a number", remedy)?;
                let number = text.filled.parse::<f64>();
                Some(number.map_err(|_| text.unfit(self, "a number", remedy))?)
            }
        };
        // Neither an infinity nor NaN is within the range.
        number
            .filter(|number| allowed.contains(number))
            .ok_or_else(|| self.error(self.shown("is out of range"), remedy))
    }

    /// A problem with the scalar as it is written, not as it is filled in.
    fn shown(&self, problem: &str) -> String {
        match self.value {
            Value::Number(number) => format!("{number} {problem}"),
            Value::String(written) => format!("{written:?} {problem}"),
            _ => problem.to_owned(),
        }
    }

    fn duration(&self) -> Result<Duration, ConfigError> {
        const LONGEST: Duration = Duration::from_secs(365 * 86400);
        let text = match self.value {
            Value::Number(number) if number.as_u64() == Some(0) => return Ok(Duration::ZERO),
            Value::Number(number) => {
                return Err(self.error(format!("{number} has no unit"), DURATION))
            }
            _ => self.text(DURATION)?,
        };
        if text.filled == "0" {
            return Ok(Duration::ZERO);
        }
        let digits_end = text
            .filled
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.filled.len());
        let (digits, unit) = text.filled.split_at(digits_end);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 3600 * 1000,
            "d" => 86400 * 1000,
            _ => return Err(text.unfit(self, "a duration", DURATION)),
        };
        if digits.is_empty() {
            return Err(text.unfit(self, "a duration", DURATION));
        }
        // All digits, so a failure to parse means too many of them.
        digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit_ms))
            .map(Duration::from_millis)
            .filter(|duration| *duration <= LONGEST)
            .ok_or_else(|| self.error(self.shown("is out of range"), DURATION))
    }

    fn address(&self) -> Result<SocketAddr, ConfigError> {
        let text = self.text(ADDRESS)?;
        text.filled
            .parse()
            .map_err(|_| text.unfit(self, "an IP address with a port", ADDRESS))
    }

    fn path(&self, remedy: &str) -> Result<PathBuf, ConfigError> {
        let text = self.text(remedy)?;
        if text.filled.contains('\0') {
            return Err(text.unfit(self, "a path", remedy));
        }
        Ok(PathBuf::from(text.filled))
    }

    fn socket_path(&self) -> Result<PathBuf, ConfigError> {
        let path = self.path(SOCKET_PATH)?;
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(self.error(self.shown("is too long for a socket"), SOCKET_PATH));
        }
        Ok(path)
    }

    fn backend(&self) -> Result<BackendChoice, ConfigError> {
        let text = self.text(BACKEND)?;
        match text.filled.as_str() {
            "auto" => Ok(BackendChoice::Auto),
            "tokio" => Ok(BackendChoice::Tokio),
            "uring" => Ok(BackendChoice::Uring),
            _ => Err(text.unfit(self, "a backend", BACKEND)),
        }
    }

    fn readable_file(&self) -> Result<PathBuf, ConfigError> {
        let remedy = "write the path of a readable PEM file";
        let path = self.path(remedy)?;
        let is_file = std::fs::File::open(&path)
            .and_then(|file| file.metadata())
            .map(|metadata| metadata.is_file());
        match is_file {
            Ok(true) => Ok(path),
            Ok(false) => Err(self.error(self.shown("is not a file"), remedy)),
            Err(error) => {
                Err(self.error(self.shown(&format!("cannot be opened: {error}")), remedy))
            }
        }
    }

    fn path_prefix(&self) -> Result<String, ConfigError> {
        let text = self.text(PATH_PREFIX)?;
        let prefix = text.filled.as_str();
        if prefix == "/" {
            return Ok(prefix.to_owned());
        }
        // The prefix is compared with the raw path, so that what a client must
        // or may encode could never match, or match in one spelling only.
        let is_literal = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
        let is_segment =
            |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_literal);
        let segments = prefix.strip_prefix('/').map(|path| {
            let path = path.strip_suffix('/').unwrap_or(path);
            (path, path.split('/').all(is_segment))
        });
        match segments {
            Some((path, true)) => Ok(format!("/{path}")),
            Some(_) => Err(text.unfit(self, "a literal path", PATH_PREFIX)),
            None => Err(self.error(self.shown("does not start with /"), PATH_PREFIX)),
        }
    }

    fn bucket_name(&self) -> Result<String, ConfigError> {
        let text = self.text(BUCKET_NAME)?;
        let name = text.filled.as_str();
        let is_edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        // "General purpose bucket naming rules", Amazon S3 User Guide, less
        // the reserved prefixes and suffixes, which AWS itself refuses.
        let valid = (3..=63).contains(&name.len())
            && name.chars().all(|c| is_edge(c) || c == '-' || c == '.')
            && name.starts_with(is_edge)
            && name.ends_with(is_edge)
            && !name.contains("..")
            && name.parse::<IpAddr>().is_err();
        if !valid {
            return Err(text.unfit(self, "a bucket name", BUCKET_NAME));
        }
        Ok(text.filled)
    }

    fn region(&self) -> Result<String, ConfigError> {
        let text = self.text(REGION)?;
        let is_edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        // It becomes a label of a host name, and a part of every signature.
        let valid = text.filled.len() <= 63
            && text.filled.chars().all(|c| is_edge(c) || c == '-')
            && text.filled.starts_with(is_edge)
            && text.filled.ends_with(is_edge);
        if !valid {
            return Err(text.unfit(self, "a region", REGION));
        }
        Ok(text.filled)
    }

    fn endpoint(&self) -> Result<Endpoint, ConfigError> {
        let text = self.text(ENDPOINT)?;
        // The URL is not repeated: it may hold a password.
        Endpoint::parse(&text.filled).map_err(|problem| self.error(problem, ENDPOINT))
    }

    fn credential(&self) -> Result<String, ConfigError> {
        let text = self.text(CREDENTIAL)?;
        // It goes into a header, where a stray newline ends the header.
        if !text.filled.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(self.error(
                "holds a space, a line end or a character that is not ASCII",
                "remove what was copied along with the key",
            ));
        }
        Ok(text.filled)
    }
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

// === impl Text ===

impl Text<'_> {
    fn unfit(&self, node: &Node, expected: &str, remedy: &str) -> ConfigError {
        node.error(format!("{:?} is not {expected}", self.written), remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKETS: &str =
        "buckets:\n  - path_prefix: /assets\n    bucket: my-bucket\n    region: us-east-1\n";
    const SERVER: &str = "server:\n  address: 127.0.0.1:0\n";

    fn env(name: &str) -> Option<String> {
        match name {
            "SECRET" => Some("hunter2:{[#\"'\\".to_owned()),
            "SPACED" => Some("hunter2\n".to_owned()),
            "EMPTY" => Some(String::new()),
            "PORT" => Some("8081".to_owned()),
            "NUMBER" => Some("3".to_owned()),
            "FALSE" => Some("false".to_owned()),
            "NESTED" => Some("hunter2${PORT}".to_owned()),
            _ => None,
        }
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("conf/proxy.yaml"), &env)
    }

    fn good(text: &str) -> Config {
        parse(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    fn server(lines: &str) -> String {
        format!("server:\n  address: 127.0.0.1:8080\n{lines}\n{BUCKETS}")
    }

    fn bucket(lines: &str) -> String {
        format!("{SERVER}{BUCKETS}{lines}\n")
    }

    fn disk(lines: &str) -> String {
        format!("{SERVER}{BUCKETS}cache:\n  disk:\n    path: /c\n{lines}\n")
    }

    fn prefixes(prefixes: &[&str]) -> String {
        let mut text = format!("{SERVER}buckets:\n");
        for prefix in prefixes {
            text.push_str(&format!(
                "  - {{path_prefix: {prefix:?}, bucket: my-bucket, region: r}}\n"
            ));
        }
        text
    }

    #[test]
    fn the_example_is_valid_and_says_what_the_defaults_are() {
        let example = include_str!("../config.yaml.example");
        let keys = |name: &str| Some(format!("value-of-{name}"));
        let shown = Config::parse(example, Path::new("config.yaml.example"), &keys).unwrap();
        assert_eq!(shown.server.address.port(), 8080);
        assert_eq!(
            shown.buckets[0].access_key.as_deref(),
            Some("value-of-AWS_ACCESS_KEY_ID")
        );
        assert!(shown.cache.disk.enabled);
        assert_eq!(shown.cache.disk.max_size_bytes(), 10_000_000_000);

        let least = good(&format!("{SERVER}{BUCKETS}cache: {{disk: {{path: c}}}}\n"));
        assert_eq!(least.server.write_timeout, shown.server.write_timeout);
        assert_eq!(least.server.min_send_rate, shown.server.min_send_rate);
        assert_eq!(least.server.send_buffer, shown.server.send_buffer);
        assert_eq!(
            least.server.keepalive_timeout,
            shown.server.keepalive_timeout
        );
        assert_eq!(
            least.server.request_head_timeout,
            shown.server.request_head_timeout
        );
        assert_eq!(
            least.server.max_request_head_bytes,
            shown.server.max_request_head_bytes
        );
        assert_eq!(least.server.grace_period, shown.server.grace_period);
        assert_eq!(least.server.max_connections, shown.server.max_connections);
        assert_eq!(least.cache.default_ttl, shown.cache.default_ttl);
        assert_eq!(least.cache.negative_ttl, shown.cache.negative_ttl);
        assert_eq!(least.cache.admission, shown.cache.admission);
        assert_eq!(
            least.cache.fill_without_readers,
            shown.cache.fill_without_readers
        );
        assert_eq!(least.cache.max_fills, shown.cache.max_fills);
        assert_eq!(least.cache.max_misses, shown.cache.max_misses);
        assert_eq!(least.cache.miss_timeout, shown.cache.miss_timeout);
        assert_eq!(least.cache.lock_age, shown.cache.lock_age);
        assert_eq!(
            least.cache.range_fill.client_mb_per_minute,
            shown.cache.range_fill.client_mb_per_minute
        );
        assert_eq!(
            least.cache.range_fill.max_in_flight,
            shown.cache.range_fill.max_in_flight
        );
        assert_eq!(
            least.cache.memory.max_size_bytes(),
            shown.cache.memory.max_size_bytes()
        );
        assert_eq!(least.cache.disk.enabled, shown.cache.disk.enabled);
        assert_eq!(least.cache.disk.max_size_gb, shown.cache.disk.max_size_gb);
        assert_eq!(least.cache.disk.backend, shown.cache.disk.backend);
        assert_eq!(least.cache.disk.inactive, shown.cache.disk.inactive);
        assert_eq!(
            least.cache.disk.max_open_files,
            shown.cache.disk.max_open_files
        );
        assert_eq!(
            least.cache.disk.scrub_bytes_per_second(),
            shown.cache.disk.scrub_bytes_per_second()
        );
        assert_eq!(
            least.cache.disk.sendfile.threshold_bytes,
            shown.cache.disk.sendfile.threshold_bytes
        );
        assert_eq!(least.cache.disk.sendfile.enabled, cfg!(target_os = "linux"));
        assert!(least.server.threads >= 1);
        assert!(least.server.tls.is_none() && least.metrics.is_none() && least.admin.is_none());
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = good(&format!("{SERVER}{BUCKETS}cache: {{disk: {{path: c}}}}\n"));
        assert_eq!(config.cache.admission, 1);
        assert_eq!(config.cache.memory.max_size_bytes(), 256_000_000);
        assert_eq!(config.cache.range_fill.max_in_flight, 32);
        assert_eq!(config.cache.range_fill.max_size_bytes(), u64::MAX);
        assert_eq!(config.cache.range_fill.max_in_flight_bytes(8_000), 1_000);
        let budget = config.cache.range_fill.client_bytes_per_minute();
        assert_eq!(budget, Some(1_000_000_000));
        assert_eq!(config.cache.fill_without_readers, 0.5);
        assert_eq!(config.cache.max_fills, 128);
        assert_eq!(config.cache.max_misses, 1024);
        assert_eq!(config.cache.miss_timeout, Duration::from_secs(60));
        assert_eq!(config.cache.lock_age, Duration::from_secs(10));
        assert_eq!(config.cache.disk.backend, BackendChoice::Auto);
        assert_eq!(config.cache.disk.inactive, Duration::ZERO);
        assert_eq!(config.cache.disk.max_open_files, 1024);
        assert_eq!(config.cache.disk.scrub_bytes_per_second(), 8_000_000);
        assert_eq!(config.server.max_connections, None);
        let sock = config.server.upgrade_sock;
        assert_eq!(sock.as_deref(), Some(Path::new("c/upgrade.sock")));
    }

    #[test]
    fn the_cache_is_told_what_to_keep_and_how() {
        let config = good(&disk(
            "    backend: uring\n    inactive: 30d\n    max_open_files: 0\n    \
             scrub_mb_per_second: 0.5\n  admission: 255\n  memory: {max_size_mb: 1.5}\n  \
             range_fill: {max_in_flight: 0, max_size_gb: 0.5, max_in_flight_gb: 2, \
             client_mb_per_minute: 0}\n  fill_without_readers: 0\n  max_fills: 7\n  lock_age: 2s\n  \
             max_misses: 9\n  miss_timeout: 3s",
        ));
        assert_eq!(config.cache.fill_without_readers, 0.0);
        assert_eq!(config.cache.max_fills, 7);
        assert_eq!(config.cache.max_misses, 9);
        assert_eq!(config.cache.miss_timeout, Duration::from_secs(3));
        assert_eq!(config.cache.lock_age, Duration::from_secs(2));
        let range_fill = &config.cache.range_fill;
        assert_eq!(range_fill.max_in_flight_bytes(1), 2_000_000_000);
        assert_eq!(range_fill.client_bytes_per_minute(), None);
        assert_eq!(config.cache.range_fill.max_in_flight, 0);
        assert_eq!(config.cache.range_fill.max_size_bytes(), 500_000_000);
        assert_eq!(config.cache.disk.backend, BackendChoice::Uring);
        assert_eq!(config.cache.disk.inactive, Duration::from_secs(30 * 86400));
        assert_eq!(config.cache.disk.max_open_files, 0);
        assert_eq!(config.cache.disk.scrub_bytes_per_second(), 500_000);
        assert_eq!(config.cache.admission, 255);
        assert_eq!(config.cache.memory.max_size_bytes(), 1_500_000);

        let nothing = good(&disk(
            "    backend: tokio\n    scrub_mb_per_second: 0\n  memory: {max_size_mb: 0}",
        ));
        assert_eq!(nothing.cache.disk.backend, BackendChoice::Tokio);
        assert_eq!(nothing.cache.disk.scrub_bytes_per_second(), 0);
        assert_eq!(nothing.cache.memory.max_size_bytes(), 0);
    }

    #[test]
    fn without_a_disk_section_there_is_no_disk_cache() {
        for text in [
            format!("{SERVER}{BUCKETS}"),
            format!("{SERVER}{BUCKETS}cache: {{default_ttl: 5m}}"),
            format!("{SERVER}{BUCKETS}cache: {{disk: {{enabled: false}}}}"),
        ] {
            assert!(!good(&text).cache.disk.enabled, "{text}");
        }
    }

    #[test]
    fn the_upgrade_socket_is_in_a_folder_of_the_proxy() {
        let disk = |path: &str| format!("{SERVER}{BUCKETS}cache: {{disk: {{path: {path}}}}}\n");
        let long = "c".repeat(100);
        for (text, runtime, expected) in [
            (disk("/c"), Some("/run/s3"), Some("/c/upgrade.sock")),
            (
                format!("{SERVER}{BUCKETS}"),
                Some("/run/s3"),
                Some("/run/s3/upgrade.sock"),
            ),
            (
                format!("{SERVER}{BUCKETS}"),
                Some("/run/a:/run/b"),
                Some("/run/a/upgrade.sock"),
            ),
            (format!("{SERVER}{BUCKETS}"), Some(""), None),
            (format!("{SERVER}{BUCKETS}"), None, None),
            // Too long for a socket.
            (disk(&long), None, None),
            (server("  upgrade_sock: /u"), Some("/run/s3"), Some("/u")),
        ] {
            let env = |name: &str| match name {
                "RUNTIME_DIRECTORY" => runtime.map(str::to_owned),
                _ => None,
            };
            let config = Config::parse(&text, Path::new("proxy.yaml"), &env).unwrap();
            let sock = config.server.upgrade_sock;
            assert_eq!(
                sock.as_deref(),
                expected.map(Path::new),
                "{text}{runtime:?}"
            );
        }
    }

    #[test]
    fn durations_have_units() {
        for (written, expected) in [
            ("500ms", Duration::from_millis(500)),
            ("60s", Duration::from_secs(60)),
            ("5m", Duration::from_secs(300)),
            ("1h", Duration::from_secs(3600)),
            ("1d", Duration::from_secs(86400)),
            ("365d", Duration::from_secs(365 * 86400)),
            ("0", Duration::ZERO),
            ("'0'", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("${NUMBER}s", Duration::from_secs(3)),
        ] {
            let config = good(&server(&format!("  write_timeout: {written}")));
            assert_eq!(config.server.write_timeout, expected, "{written}");
        }
    }

    #[test]
    fn connections_wait_for_whole_seconds() {
        for (written, secs) in [
            ("1ms", Some(1)),
            ("2s", Some(2)),
            ("2001ms", Some(3)),
            ("0", None),
        ] {
            let config = good(&server(&format!("  keepalive_timeout: {written}")));
            assert_eq!(config.server.keepalive_secs(), secs, "{written}");
        }
    }

    #[test]
    fn sizes_may_be_fractions() {
        for (written, bytes) in [
            ("1", 1_000_000_000),
            ("0.5", 500_000_000),
            ("0.001", 1_000_000),
            ("1000000", 1_000_000_000_000_000),
            ("${NUMBER}", 3_000_000_000),
        ] {
            let config = good(&disk(&format!("    max_size_gb: {written}")));
            assert_eq!(config.cache.disk.max_size_bytes(), bytes, "{written}");
        }
    }

    #[test]
    fn variables_are_filled_in_after_yaml_is_read() {
        let config = good(&bucket(
            "    access_key: ${SECRET}\n    secret_key: 'a$${PORT}b$${c${NUMBER}$$d$'\n    \
             session_token: ${NESTED}",
        ));
        let keys = &config.buckets[0];
        assert_eq!(keys.access_key.as_deref(), Some("hunter2:{[#\"'\\"));
        assert_eq!(keys.secret_key.as_deref(), Some("a${PORT}b${c3$$d$"));
        assert_eq!(keys.session_token.as_deref(), Some("hunter2${PORT}"));

        let config = good(&server("  threads: ${NUMBER}"));
        assert_eq!(config.server.threads, 3);
        let config = good(&disk("    sendfile: {enabled: '${FALSE}'}"));
        assert!(!config.cache.disk.sendfile.enabled);
        let config = good(&format!(
            "server: {{address: '127.0.0.1:${{PORT}}'}}\n{BUCKETS}"
        ));
        assert_eq!(config.server.address.port(), 8081);
    }

    #[test]
    fn prefixes_are_normalised() {
        for (written, prefix) in [
            ("/", "/"),
            ("/assets", "/assets"),
            ("/assets/", "/assets"),
            ("/a/b.c/~d@e", "/a/b.c/~d@e"),
            ("/...", "/..."),
        ] {
            let config = good(&prefixes(&[written]));
            assert_eq!(config.buckets[0].path_prefix, prefix);
        }
        good(&prefixes(&["/assets", "/assets2", "/a", "/b/c", "/b/d"]));
    }

    #[test]
    fn listeners_may_share_an_ip_or_port_zero() {
        good(&server(
            "  tls: {address: '127.0.0.1:0', certificate: Cargo.toml, key: Cargo.toml}",
        ));
        good(&format!(
            "server: {{address: '127.0.0.1:80'}}\n{BUCKETS}metrics: {{address: '127.0.0.2:80'}}"
        ));
        good(&format!(
            "server: {{address: '0.0.0.0:0'}}\n{BUCKETS}metrics: {{address: '0.0.0.0:0'}}"
        ));
    }

    #[test]
    fn every_mistake_is_named_with_file_key_and_remedy() {
        let with_metrics = |server: &str, metrics: &str| {
            format!("server: {{address: '{server}'}}\n{BUCKETS}metrics: {{address: '{metrics}'}}")
        };
        let one_bucket = |name: &str| {
            format!("{SERVER}buckets: [{{path_prefix: /a, bucket: {name}, region: r}}]")
        };
        let region = |region: &str| {
            format!("{SERVER}buckets: [{{path_prefix: /a, bucket: abc, region: {region}}}]")
        };
        let endpoint = |url: &str| bucket(&format!("    endpoint: {url:?}"));
        // One case a line: text, key, problem, remedy.
        #[rustfmt::skip]
        let cases: Vec<(String, &str, &str, &str)> = vec![
            // The document as a whole.
            (String::new(), "", "holds no settings", "config.yaml.example"),
            ("- a".into(), "", "holds no sections", "server, buckets, cache, metrics, admin"),
            ("a: [".into(), "", "is not valid YAML", "line 2"),
            ("a: b: c".into(), "", "is not valid YAML", "indentation"),
            ("a: 1\n---\nb: 2".into(), "", "is not valid YAML", "layout"),
            ("a: !!int hunter2".into(), "", "tag does not allow", "line 1"),
            // Missing and empty.
            (BUCKETS.into(), "server", "is missing", "address, threads"),
            (format!("server:\n{BUCKETS}"), "server", "has no value", "address, threads"),
            (format!("server: {{}}\n{BUCKETS}"), "server.address", "is missing", "IP:PORT"),
            (SERVER.into(), "buckets", "is missing", "path_prefix"),
            (format!("{SERVER}buckets: []"), "buckets", "empty list", "at least one"),
            (format!("{SERVER}buckets: {{}}"), "buckets", "is a section, not a list", "- path_prefix"),
            (format!("{SERVER}buckets: [a]"), "buckets[0]", "is a string, not a section", "session_token"),
            (format!("{SERVER}buckets: [{{bucket: abc}}]"), "buckets[0].path_prefix", "is missing", "/assets"),
            (format!("{SERVER}buckets: [{{path_prefix: /a}}]"), "buckets[0].bucket", "is missing", "3 to 63"),
            (format!("{SERVER}buckets: [{{path_prefix: /a, bucket: abc}}]"), "buckets[0].region", "is missing", "us-east-1"),
            // Unknown and repeated keys.
            (format!("{SERVER}{BUCKETS}caches: 1"), "caches", "not a known key", "server, buckets, cache, metrics"),
            (format!("{SERVER}{BUCKETS}1: 1"), "1", "not a known key", "server, buckets"),
            (server("  thread: 2"), "server.thread", "not a known key", "threads"),
            (bucket("    secretkey: hunter2"), "buckets[0].secretkey", "not a known key", "secret_key"),
            (disk("    sendfile: {threshold: 1}"), "cache.disk.sendfile.threshold", "not a known key", "enabled, threshold_bytes"),
            (server("  threads: 1\n  threads: 2"), "server.threads", "twice", "line 2"),
            (bucket("    bucket: again"), "buckets[0].bucket", "twice", "keep one"),
            (format!("{SERVER}{SERVER}{BUCKETS}"), "server", "twice", "keep one"),
            // Wrong types.
            (server("  threads: '2'"), "server.threads", "is a string, not a number", "from 1 to 1024"),
            (server("  threads: two"), "server.threads", "is a string, not a number", "from 1 to 1024"),
            (server("  threads: 1.5"), "server.threads", "not a whole number", "from 1 to 1024"),
            (server("  threads: [1]"), "server.threads", "is a list", "from 1 to 1024"),
            (server("  threads: !x 1"), "server.threads", "tagged", "from 1 to 1024"),
            (server("  tls: true"), "server.tls", "is true or false, not a section", "address, certificate, key"),
            (bucket("    access_key: 1234567890"), "buckets[0].access_key", "is a number, not a string", "${NAME}"),
            (bucket("    secret_key:"), "buckets[0].secret_key", "has no value", "unsigned"),
            (disk("    enabled: yes"), "cache.disk.enabled", "is a string, not true or false", "true or false"),
            (disk("    max_size_gb: 10GB"), "cache.disk.max_size_gb", "is a string, not a number", "10^9"),
            // Out of range.
            (server("  threads: 0"), "server.threads", "0 is out of range", "from 1 to 1024"),
            (server("  threads: 1025"), "server.threads", "out of range", "from 1 to 1024"),
            (server("  min_send_rate: -1"), "server.min_send_rate", "-1 is out of range", "from 0 to"),
            (server("  max_request_head_bytes: 1023"), "server.max_request_head_bytes", "1023 is out of range", "from 1024 to 1000000"),
            (server("  request_head_timeout: 30"), "server.request_head_timeout", "30 has no unit", "500ms"),
            (disk("    max_size_gb: 0"), "cache.disk.max_size_gb", "out of range", "from 0.001"),
            (disk("  admission: 0"), "cache.admission", "0 is out of range", "from 1 to 255"),
            (disk("  admission: 256"), "cache.admission", "out of range", "from 1 to 255"),
            (disk("  range_fill: {max_in_flight: -1}"), "cache.range_fill.max_in_flight", "out of range", "from 0 to"),
            (disk("  fill_without_readers: 1.5"), "cache.fill_without_readers", "out of range", "0: always"),
            (disk("  max_fills: 0"), "cache.max_fills", "out of range", "from 1 to"),
            (disk("  max_misses: 0"), "cache.max_misses", "out of range", "from 1 to"),
            (disk("  range_fill: {max_in_flight_gb: 0}"), "cache.range_fill.max_in_flight_gb", "out of range", "10^9"),
            (disk("  range_fill: {client_mb_per_minute: -1}"), "cache.range_fill.client_mb_per_minute", "out of range", "0: no limit"),
            (disk("  range_fill: {max_size_gb: 0}"), "cache.range_fill.max_size_gb", "out of range", "10^9"),
            (disk("  memory: {max_size_mb: -1}"), "cache.memory.max_size_mb", "out of range", "from 0 to"),
            (disk("  memory: {max_size_mb: 64MB}"), "cache.memory.max_size_mb", "is a string", "10^6"),
            (disk("  memory: 64"), "cache.memory", "is a number, not a section", "max_size_mb"),
            (disk("    max_open_files: 1000001"), "cache.disk.max_open_files", "out of range", "from 0 to 1000000"),
            (disk("    scrub_mb_per_second: 10001"), "cache.disk.scrub_mb_per_second", "out of range", "0: off"),
            (disk("    scrub_mb_per_second: .inf"), "cache.disk.scrub_mb_per_second", "out of range", "to 10000"),
            (disk("    inactive: 30"), "cache.disk.inactive", "30 has no unit", "365d"),
            (disk("    backend: io_uring"), "cache.disk.backend", "\"io_uring\" is not a backend", "auto, tokio or uring"),
            (disk("    backend: true"), "cache.disk.backend", "is true or false, not a string", "auto, tokio or uring"),
            (server(&format!("  upgrade_sock: /{}", "s".repeat(107))), "server.upgrade_sock", "too long", "107 bytes"),
            (server("  upgrade_sock: ''"), "server.upgrade_sock", "is empty", "Unix socket"),
            (server("  send_buffer: 2000000000"), "server.send_buffer", "out of range", "from 0"),
            (server("  max_connections: 0"), "server.max_connections", "0 is out of range", "from 1"),
            (disk("    max_size_gb: .nan"), "cache.disk.max_size_gb", "out of range", "from 0.001"),
            (disk("    max_size_gb: .inf"), "cache.disk.max_size_gb", "out of range", "from 0.001"),
            (disk("    sendfile: {threshold_bytes: -1}"), "cache.disk.sendfile.threshold_bytes", "out of range", "from 0 to"),
            (server("  write_timeout: 366d"), "server.write_timeout", "out of range", "at most 365d"),
            (server("  write_timeout: 99999999999999999999d"), "server.write_timeout", "out of range", "at most 365d"),
            // Durations.
            (server("  write_timeout: 60"), "server.write_timeout", "60 has no unit", "500ms"),
            (server("  write_timeout: -1s"), "server.write_timeout", "not a duration", "500ms"),
            (server("  write_timeout: 1.5s"), "server.write_timeout", "not a duration", "500ms"),
            (server("  grace_period: 1w"), "server.grace_period", "not a duration", "ms, s, m, h or d"),
            (server("  grace_period: s"), "server.grace_period", "not a duration", "ms, s, m, h or d"),
            (format!("{SERVER}{BUCKETS}cache: {{default_ttl: true}}"), "cache.default_ttl", "is true or false", "500ms"),
            // Addresses.
            (server("").replace("127.0.0.1:8080", "localhost:8080"), "server.address", "\"localhost:8080\" is not an IP", "127.0.0.1:8080"),
            (server("").replace("127.0.0.1:8080", "127.0.0.1"), "server.address", "is not an IP", "port 0"),
            (server("").replace("127.0.0.1:8080", "8080"), "server.address", "is a number", "IP:PORT"),
            (format!("{SERVER}{BUCKETS}metrics: {{}}"), "metrics.address", "is missing", "IP:PORT"),
            (with_metrics("127.0.0.1:80", "127.0.0.1:80"), "metrics.address", "listens where server.address does", "port 0"),
            (with_metrics("0.0.0.0:80", "127.0.0.1:80"), "metrics.address", "listens where", "port of its own"),
            (format!("{SERVER}{BUCKETS}admin: {{}}"), "admin.address", "is missing", "IP:PORT"),
            (format!("{SERVER}{BUCKETS}admin: {{port: 1}}"), "admin.port", "not a known key", "address"),
            (format!("server: {{address: '127.0.0.1:80'}}\n{BUCKETS}admin: {{address: '0.0.0.0:80'}}"), "admin.address", "listens where server.address does", "port 0"),
            (format!("{SERVER}{BUCKETS}metrics: {{address: '[::1]:90'}}\nadmin: {{address: '[::1]:90'}}"), "admin.address", "listens where metrics.address does", "port 0"),
            (with_metrics("127.0.0.1:80", "[::]:80"), "metrics.address", "listens where", "port of its own"),
            (server("  tls: {address: '127.0.0.1:8080', certificate: Cargo.toml, key: Cargo.toml}"), "server.tls.address", "listens where", "port of its own"),
            // Files.
            (server("  tls: {address: '127.0.0.1:0', certificate: no.pem, key: Cargo.toml}"), "server.tls.certificate", "\"no.pem\" cannot be opened", "PEM"),
            (server("  tls: {address: '127.0.0.1:0', certificate: Cargo.toml, key: src}"), "server.tls.key", "is not a file", "PEM"),
            (server("  tls: {address: '127.0.0.1:0', certificate: Cargo.toml}"), "server.tls.key", "is missing", "PEM"),
            (disk("").replace("/c", "''"), "cache.disk.path", "is empty", "directory"),
            (disk("").replace("path: /c", "max_size_gb: 1"), "cache.disk.path", "is missing", "directory"),
            // Prefixes.
            (prefixes(&["assets"]), "buckets[0].path_prefix", "does not start with /", "/assets"),
            (prefixes(&[""]), "buckets[0].path_prefix", "is empty", "/assets"),
            (prefixes(&["/a/../b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["/a/."]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["//"]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["/a//b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["/a%20b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["/a?b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["/a b"]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["/é"]), "buckets[0].path_prefix", "not a literal path", "letters"),
            (prefixes(&["/a", "/a/"]), "buckets[1].path_prefix", "overlaps with buckets[0].path_prefix", "segments"),
            (prefixes(&["/b", "/a/b", "/a"]), "buckets[2].path_prefix", "overlaps with buckets[1].path_prefix", "segments"),
            (prefixes(&["/a", "/a/b"]), "buckets[1].path_prefix", "overlaps with", "segments"),
            (prefixes(&["/", "/a"]), "buckets[1].path_prefix", "overlaps with", "only alone"),
            (prefixes(&["/a", "/"]), "buckets[1].path_prefix", "overlaps with", "only alone"),
            // Names.
            (one_bucket("ab"), "buckets[0].bucket", "\"ab\" is not a bucket name", "3 to 63"),
            (one_bucket(&"a".repeat(64)), "buckets[0].bucket", "not a bucket name", "3 to 63"),
            (one_bucket("My-Bucket"), "buckets[0].bucket", "not a bucket name", "a-z"),
            (one_bucket("a/b"), "buckets[0].bucket", "not a bucket name", "a-z"),
            (one_bucket("a..b"), "buckets[0].bucket", "not a bucket name", "two dots"),
            (one_bucket("-abc"), "buckets[0].bucket", "not a bucket name", "both ends"),
            (one_bucket("127.0.0.1"), "buckets[0].bucket", "not a bucket name", "IP address"),
            (region("us.east"), "buckets[0].region", "not a region", "us-east-1"),
            (region("''"), "buckets[0].region", "is empty", "us-east-1"),
            // Endpoints.
            (endpoint("127.0.0.1:9000"), "buckets[0].endpoint", "no scheme", "http://HOST[:PORT]"),
            (endpoint("ftp://h"), "buckets[0].endpoint", "scheme other", "https://HOST[:PORT]"),
            (endpoint("http://"), "buckets[0].endpoint", "no valid host", "HOST"),
            (endpoint("http://h:99999"), "buckets[0].endpoint", "port outside", "PORT"),
            (endpoint("http://h/bucket"), "buckets[0].endpoint", "a path", "leave the key out"),
            (endpoint("http://u:hunter2@h"), "buckets[0].endpoint", "password", "http://HOST"),
            // Keys.
            (bucket("    access_key: a"), "buckets[0].secret_key", "missing beside access_key", "both"),
            (bucket("    secret_key: hunter2"), "buckets[0].access_key", "missing beside secret_key", "unsigned"),
            (bucket("    session_token: hunter2"), "buckets[0].access_key", "missing beside session_token", "unsigned"),
            (bucket("    secret_key: ${SPACED}"), "buckets[0].secret_key", "a line end", "copied along"),
            (bucket("    secret_key: 'hunter2 x'"), "buckets[0].secret_key", "holds a space", "copied along"),
            (bucket("    secret_key: ${EMPTY}"), "buckets[0].secret_key", "is empty", "unsigned"),
            // Variables.
            (bucket("    access_key: ${AWS_KEY}"), "buckets[0].access_key", "variable AWS_KEY", "export AWS_KEY=..."),
            (bucket("    access_key: a${hunter2"), "buckets[0].access_key", "no variable name", "$${"),
            (bucket("    access_key: ${hunter2!}"), "buckets[0].access_key", "no variable name", "${NAME}"),
            (bucket("    access_key: ${}"), "buckets[0].access_key", "no variable name", "${NAME}"),
            (one_bucket("'${SECRET}'"), "buckets[0].bucket", "\"${SECRET}\" is not a bucket name", "a-z"),
            (server("  threads: ${SECRET}"), "server.threads", "\"${SECRET}\" is not a whole number", "1024"),
            (server("  threads: ${PORT}"), "server.threads", "\"${PORT}\" is out of range", "1024"),
            (server("  write_timeout: ${SECRET}"), "server.write_timeout", "\"${SECRET}\" is not a duration", "1h"),
            (disk("    enabled: ${SECRET}"), "cache.disk.enabled", "\"${SECRET}\" is not true", "false"),
            (disk("    max_size_gb: ${SECRET}"), "cache.disk.max_size_gb", "\"${SECRET}\" is not a number", "10^9"),
            (endpoint("${SECRET}"), "buckets[0].endpoint", "no scheme", "http://"),
        ];
        for (text, key, problem, remedy) in cases {
            let Err(error) = parse(&text) else {
                panic!("accepted:\n{text}");
            };
            let line = error.to_string();
            let start = if key.is_empty() {
                "conf/proxy.yaml: ".to_owned()
            } else {
                format!("conf/proxy.yaml: {key}: ")
            };
            assert!(line.starts_with(&start), "{line}\n  for {key}\n{text}");
            assert_eq!(error.key().unwrap_or_default(), key, "{line}");
            assert!(
                line.contains(problem),
                "{line}\n  lacks {problem:?}\n{text}"
            );
            assert!(line.contains(remedy), "{line}\n  lacks {remedy:?}\n{text}");
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(!line.contains("hunter2"), "{line}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = Config::load(Path::new("no/such.yaml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no/such.yaml: cannot be read: "),
            "{error}"
        );
        assert!(error.contains("config.yaml.example"), "{error}");
    }

    #[test]
    fn a_message_stays_on_one_line_whatever_the_text_holds() {
        let error = parse(&format!("{SERVER}{BUCKETS}\"a\\nb\\e\": 1")).unwrap_err();
        let line = error.to_string();
        assert!(line.contains("a\\nb\\u{1b}: is not a known key"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn a_file_cut_short_anywhere_is_an_error_of_one_line_or_a_config() {
        let example = include_str!("../config.yaml.example");
        let text = format!("{example}# grüße\n");
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            if let Err(error) = parse(&text[..end]) {
                let line = error.to_string();
                assert!(line.starts_with("conf/proxy.yaml: "), "{line}");
                assert_eq!(line.lines().count(), 1, "{line}");
            }
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let config = good(&bucket(
            "    access_key: ${SECRET}\n    secret_key: ${SECRET}\n    session_token: ${SECRET}",
        ));
        let debug = format!("{config:?} {config:#?}");
        assert!(!debug.contains("hunter2"), "{debug}");
        assert!(debug.contains("redacted"));
    }
}
