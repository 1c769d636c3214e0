//! The configuration file: YAML in, checked settings out.
//!
//! - this module: the model, which names every key with its type and default
//! - [`values`]: the types of the values, and what may stand there
//! - `document`: YAML as a tree that knows its lines
//! - `reader`: the tree as what serde reads the model from, and all mistakes at once
//! - `variables`: `${NAME}`
//! - `checks`: what several keys must have in common
//! - `wording`, [`error`]: mistakes in words, one line each
//! - `print`: the configuration as YAML again
//!
//! No message repeats what came from the environment or may be a secret.

mod checks;
#[cfg(test)]
mod docs_tests;
mod document;
pub mod error;
mod print;
mod reader;
#[cfg(test)]
mod tests;
pub mod values;
mod variables;
mod wording;

use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cache::{BackendChoice, DiskCacheConfig, SendfileConfig};
use crate::http::{BackgroundFills, CachingOptions};
use crate::jwt::Keys;
use document::{Kind, Node};
pub use error::{ConfigError, Mistake, Place};
pub use values::{
    Address, BucketName, ExternalId, FieldName, Folder, Gigabytes, HmacKeyFile, HostName, JwksFile,
    KeyPrefix, Megabytes, MegabytesPerMinute, MegabytesPerSecond, PathPrefix, Pattern, PemFile,
    Period, Plain, PublicKeyFile, Region, RoleArn, Secret, Service, SessionName, Share, Socket,
    TlsName, Whole,
};
use variables::Env;
use wording::Secrets;

/// The problem and remedy of a file of more than [`document::MAX_BYTES`].
const TOO_LARGE: &str = "is larger than 1 MiB; write a smaller one";

/// The name of the socket for an upgrade in the cache's folder.
const UPGRADE_SOCK: &str = "upgrade.sock";

/// Everything the proxy is told from outside. See `config.yaml.example`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The listeners and the limits of their connections.
    pub server: Server,
    /// The buckets to serve: at least one, with prefixes that do not overlap and
    /// hosts that differ.
    #[serde(deserialize_with = "at_least_one_bucket")]
    pub buckets: Vec<Bucket>,
    /// The place of stored answers, and the time for which they are kept.
    #[serde(default)]
    pub cache: Cache,
    /// The listener for `/metrics` and `/health`, if wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The listener for `PURGE`, if wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
    #[serde(skip)]
    source: Source,
}

/// The file that a configuration comes from, and where its keys stand.
#[derive(Clone, Debug, Default)]
struct Source {
    file: PathBuf,
    places: Vec<(String, Place)>,
}

/// The section `server`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The address of the plain HTTP listener; port 0 lets the kernel choose.
    pub address: Address,
    /// Worker threads; default: what the machine can run at once.
    #[serde(default = "defaults::threads")]
    pub threads: Whole<usize, 1, 1024>,
    /// The longest wait for a client that takes no bytes; zero: no limit.
    #[serde(default = "defaults::write_timeout")]
    pub write_timeout: Period,
    /// The slowest client that is served to the end, in bytes a second; zero: no limit.
    #[serde(default = "defaults::min_send_rate")]
    pub min_send_rate: Whole<usize, 0, 1_000_000_000>,
    /// Unsent bytes of a response that the kernel keeps for a client; 0: the kernel's own
    /// limit. `None`: what the clients share leaves for each, from 2 MiB for the first ones
    /// to 64 KiB where there are many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_buffer: Option<Whole<u32, 0, { 1 << 30 }>>,
    /// The longest time that a connection may wait for its next request, rounded up to
    /// seconds for HTTP/1.1; zero: no limit.
    #[serde(default = "defaults::keepalive_timeout")]
    pub keepalive_timeout: Period,
    /// The longest time that a request head may take from its first byte; for the first
    /// head of a connection, which over HTTP/2 includes the preface, from the start of the
    /// connection. Zero: no limit.
    #[serde(default = "defaults::request_head_timeout")]
    pub request_head_timeout: Period,
    /// The largest request head, in bytes.
    #[serde(default = "defaults::max_request_head_bytes")]
    pub max_request_head_bytes: Whole<usize, 1024, 1_000_000>,
    /// The longest time for transfers to finish after a stop signal.
    #[serde(default = "defaults::grace_period")]
    pub grace_period: Period,
    /// The most client connections at the same time; `None`: as many as the process's
    /// limit of open files leaves room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<Whole<usize, 1, 10_000_000>>,
    /// The Unix socket where `run --upgrade` takes over the listeners. Default:
    /// `upgrade.sock` in the cache folder, or without a cache in the folder that
    /// `RUNTIME_DIRECTORY` names (systemd.exec(5)); `None`: there is neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_sock: Option<Socket>,
    /// A second listener: HTTPS with HTTP/2, if wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// The section `server.tls`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The address of the HTTPS listener; port 0 lets the kernel choose.
    pub address: Address,
    /// The certificate chain, a PEM file; relative to the working directory.
    pub certificate: PemFile,
    /// The private key of the certificate, a PEM file; likewise.
    pub key: PemFile,
    /// The longest time that a client's handshake may take; zero: no limit.
    #[serde(default = "defaults::handshake_timeout")]
    pub handshake_timeout: Period,
}

/// An item of `buckets`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Which paths are answered from this bucket; `None` only where there are `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<PathPrefix>,
    /// The host names at which all paths are answered from this bucket.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub hosts: Vec<HostName>,
    /// The name of the bucket; `None` only with `auth: passthrough`: all buckets of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketName>,
    /// The beginning of all keys that are served, which clients leave out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<KeyPrefix>,
    /// The region of the bucket: part of its address at AWS, and of every
    /// signature.
    pub region: Region,
    /// An S3 service other than AWS; `None`: AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Service>,
    /// The source of the credentials. `None`: from the keys if there are any, from the
    /// chain if there is a role to assume, and otherwise requests go out unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsFrom>,
    /// The access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<Secret>,
    /// The secret key: there exactly when the access key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<Secret>,
    /// The session token of temporary credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
    /// A role to assume with the keys, or else with what the chain finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assume_role: Option<AssumeRole>,
    /// True if clients may list the bucket.
    #[serde(default)]
    pub list: bool,
    /// The time for which a list answers others; zero: not at all.
    #[serde(default = "defaults::list_ttl")]
    pub list_ttl: Period,
    /// The clients that may ask.
    #[serde(default)]
    pub auth: Auth,
    /// The clients that sign: only with `auth: sigv4`, and there at least one.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub clients: Vec<Client>,
    /// The tokens that are accepted: exactly with `auth: jwt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// With `auth: passthrough`: the longest time for which what S3 permitted is permitted
    /// again without asking it; zero: not at all.
    #[serde(default = "defaults::auth_ttl")]
    pub auth_ttl: Period,
    /// The longest time for a connection to the service; zero: no limit.
    #[serde(default = "defaults::connect_timeout")]
    pub connect_timeout: Period,
    /// The longest time from a request to the first byte of its answer; zero: no limit.
    #[serde(default = "defaults::origin_timeout")]
    pub first_byte_timeout: Period,
    /// The longest time without any byte, once an answer has begun; zero: no limit.
    #[serde(default = "defaults::origin_timeout")]
    pub read_timeout: Period,
    /// The most repetitions of a request after an error that may pass; 0: none.
    #[serde(default = "defaults::retries")]
    pub retries: Whole<u8, 0, 10>,
    /// The authorities that sign the service's certificate, a PEM file; `None`: those that
    /// the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PemFile>,
    /// The check of the service's certificate.
    #[serde(default)]
    pub tls_verify: TlsVerify,
    /// The name that the certificate bears; `None`: the host of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_name: Option<TlsName>,
}

/// The values of `buckets[].tls_verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "tls_verify", rename_all = "lowercase")]
pub enum TlsVerify {
    /// A known authority has signed it, and it bears the name of the service.
    #[default]
    Full,
    /// A known authority has signed it.
    Ca,
    /// Nothing.
    None,
}

/// The values of `buckets[].auth`: who may ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "auth", rename_all = "lowercase")]
pub enum Auth {
    /// Everybody; a client's signature is ignored.
    #[default]
    None,
    /// The `clients`, which sign their requests as for S3.
    Sigv4,
    /// Whoever has a token that the keys of `jwt` signed.
    Jwt,
    /// Those whom S3 lets in.
    Passthrough,
}

/// An item of `buckets[].clients`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The access key, by which the client names itself.
    pub access_key: Secret,
    /// The secret key, by which it signs.
    pub secret_key: Secret,
    /// The session token that it has to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
    /// The beginnings of the keys that it may read, as clients write them; none: all keys.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub key_prefixes: Vec<KeyPrefix>,
}

/// The section `buckets[].jwt`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// A set of keys that sign tokens; this, or one of the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<JwksFile>,
    /// The public key of the one that signs tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key_file: Option<PublicKeyFile>,
    /// The secret that signs tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac_key_file: Option<HmacKeyFile>,
    /// The issuers of which one must be `iss`; none: any.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub issuers: Vec<Plain>,
    /// The audiences of which one must be in `aud`; none: tokens without `aud`.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub audiences: Vec<Plain>,
    /// The claim with the beginnings of the keys that the client may read; `None`: all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_claim: Option<Plain>,
    /// The cookie that may have the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<FieldName>,
    /// The parameter of the query that may have the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<FieldName>,
}

/// The values of `buckets[].credentials`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "credentials", rename_all = "lowercase")]
pub enum CredentialsFrom {
    /// The keys of the entry.
    Keys,
    /// The chain of the AWS SDK.
    Chain,
    /// Nowhere: requests go out unsigned.
    None,
}

/// The section `buckets[].assume_role`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AssumeRole {
    /// The name of the role.
    pub role_arn: RoleArn,
    /// The external id that the owner of the role expects from those who assume it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<ExternalId>,
    /// The name of the session in the records of the role's owner.
    #[serde(default = "defaults::session_name")]
    pub session_name: SessionName,
}

/// The section `cache`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// The freshness of a response when the origin states none.
    pub default_ttl: Period,
    /// The time for which a missing object (404, 410) is remembered when the origin does
    /// not say; zero: not at all.
    pub negative_ttl: Period,
    /// The time for which the answer to a HEAD answers others, while the object is not stored;
    /// zero: not at all.
    pub head_ttl: Period,
    /// From which request on an object is stored; 1: the first.
    pub admission: Whole<u8, 1, 255>,
    /// A response that all clients have left is stored to its end if this share of it
    /// has come from the origin; 0: always, 1: never.
    pub fill_without_readers: Share,
    /// The most responses that are stored at the same time.
    pub max_fills: Whole<usize, 1, 100_000>,
    /// The most requests that wait for the origin, or pass on a response that is not stored
    /// or has no length.
    pub max_misses: Whole<usize, 1, 1_000_000>,
    /// The time that further requests wait for their turn before they get 503.
    pub miss_timeout: Period,
    /// The time that requests wait for the answer to another request for the same object
    /// before one of them asks the origin too; at least one second.
    pub lock_age: Period,
    /// Which objects are fetched as a whole when a part is asked for.
    pub range_fill: RangeFill,
    /// The memory in front of the disk.
    pub memory: Memory,
    /// The cache on disk.
    pub disk: Disk,
    /// The time for which a stale object may be used if the origin fails and has not said
    /// otherwise.
    pub stale_if_error: Period,
    /// The same while it is revalidated in the background.
    pub stale_while_revalidate: Period,
    /// The longest wait for the origin's answer where a stale object may be used in its place;
    /// zero: no limit of its own.
    pub stale_timeout: Period,
    /// Rules for some objects: the first one that matches counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// An item of `cache.rules`. Where it leaves a key out, that of the section `cache` counts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// The buckets to which it applies, by their names at S3.
    pub bucket: Pattern,
    /// The objects to which it applies.
    pub key: Pattern,
    /// In place of `default_ttl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Period>,
    /// The time for which a missing object (404, 410) is remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Period>,
    /// True if a refusal (403) is remembered like a missing object.
    pub negative_forbidden: bool,
    /// The time for which a stale object may be used if the origin fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Period>,
    /// The same while it is revalidated in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Period>,
    /// False if nothing is stored.
    pub store: bool,
    /// True if the origin's `Cache-Control` and `Expires` have no meaning.
    pub ignore_origin: bool,
}

/// The section `cache.range_fill`: what happens when a part is asked for of an
/// object that is not stored. The part comes from the origin at once, and the
/// whole is fetched in the background.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RangeFill {
    /// The most objects fetched at the same time; 0: none.
    pub max_in_flight: Whole<usize, 0, 10_000>,
    /// The largest object that is fetched. Default: what the cache may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size_gb: Option<Gigabytes>,
    /// The total size of the objects in flight. Default: an eighth of what the cache may
    /// hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight_gb: Option<Gigabytes>,
    /// Megabytes fetched in a minute for one client address, beyond what clients have
    /// received; 0: no limit.
    pub client_mb_per_minute: MegabytesPerMinute,
    /// The longest time that a part waits for a fill that has not come to it; zero: only the
    /// beginning of a fill is waited for.
    pub max_wait: Period,
}

/// The section `cache.memory`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Memory for bodies up to the sendfile threshold; 0: none.
    pub max_size_mb: Megabytes,
}

/// The section `cache.disk`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// True if there is a cache on disk: the default where the section
    /// `cache.disk` exists, and only there.
    pub enabled: bool,
    /// The directory of the cache, relative to the working directory if it is
    /// relative at all; `None` only when the cache is not enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Folder>,
    /// The size to which the cache may grow.
    pub max_size_gb: Gigabytes,
    /// The I/O backend.
    #[serde(with = "Backend")]
    pub backend: BackendChoice,
    /// Entries that nobody asked for so long are removed; zero: only room for others
    /// makes an entry leave.
    pub inactive: Period,
    /// Open files of hot entries that are kept, at most; below a quarter of
    /// the process's limit in any case.
    pub max_open_files: Whole<usize, 0, 1_000_000>,
    /// The rate of the scrubber, which reads to find flipped bits; 0: it is off.
    pub scrub_mb_per_second: MegabytesPerSecond,
    /// Which hits leave by `sendfile(2)`.
    pub sendfile: Sendfile,
}

/// The names of [`BackendChoice`], which knows of no file.
#[derive(Deserialize, Serialize)]
#[serde(remote = "BackendChoice", rename = "backend", rename_all = "lowercase")]
enum Backend {
    Auto,
    Tokio,
    Uring,
}

/// The section `cache.disk.sendfile`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sendfile {
    /// True if hits go by `sendfile(2)`; default: true on Linux.
    pub enabled: bool,
    /// Bodies larger than this, in bytes, go by `sendfile(2)`.
    pub threshold_bytes: Whole<u64, 0, { u64::MAX }>,
}

/// The section `metrics`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// The address of the listener; port 0 lets the kernel choose.
    pub address: Address,
}

/// The section `admin`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// The address of the listener; port 0 lets the kernel choose.
    pub address: Address,
}

/// Defaults in sections that have required keys too. The other sections have a
/// [`Default`], which takes what the library decides from its own defaults.
mod defaults {
    use super::{Period, SessionName, Whole};
    use crate::s3::ConnectionOptions;

    pub fn threads<const MIN: u64, const MAX: u64>() -> Whole<usize, MIN, MAX> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Whole(threads.min(MAX as usize))
    }

    pub fn auth_ttl() -> Period {
        Period::from_secs(0)
    }

    pub fn write_timeout() -> Period {
        Period::from_secs(60)
    }

    pub fn min_send_rate<const MIN: u64, const MAX: u64>() -> Whole<usize, MIN, MAX> {
        Whole(0)
    }

    pub fn keepalive_timeout() -> Period {
        Period::from_secs(75)
    }

    pub fn request_head_timeout() -> Period {
        Period::from_secs(30)
    }

    pub fn max_request_head_bytes<const MIN: u64, const MAX: u64>() -> Whole<usize, MIN, MAX> {
        Whole(64 * 1024)
    }

    pub fn grace_period() -> Period {
        Period::from_secs(30)
    }

    pub fn list_ttl() -> Period {
        Period::from_secs(0)
    }

    pub fn handshake_timeout() -> Period {
        Period::from_secs(10)
    }

    pub fn connect_timeout() -> Period {
        Period(ConnectionOptions::default().connect_timeout)
    }

    pub fn retries<const MIN: u64, const MAX: u64>() -> Whole<u8, MIN, MAX> {
        Whole(ConnectionOptions::default().retries)
    }

    pub fn origin_timeout() -> Period {
        let library = ConnectionOptions::default();
        Period(library.first_byte_timeout.unwrap_or_default())
    }

    pub fn session_name() -> SessionName {
        SessionName("s3-proxy".to_owned())
    }
}

impl Default for Cache {
    fn default() -> Self {
        let library = DiskCacheConfig::new("", 0);
        let caching = CachingOptions::default();
        Cache {
            default_ttl: Period::from_secs(3600),
            negative_ttl: Period::from_secs(5),
            head_ttl: Period::from_secs(5),
            admission: Whole(library.min_uses),
            fill_without_readers: Share(library.fill_without_readers),
            max_fills: Whole(library.max_fills),
            max_misses: Whole(caching.max_misses),
            miss_timeout: Period(caching.miss_timeout),
            lock_age: Period(caching.lock_age),
            range_fill: RangeFill::default(),
            memory: Memory::default(),
            disk: Disk {
                enabled: false,
                ..Disk::default()
            },
            stale_if_error: Period::from_secs(86400),
            stale_while_revalidate: Period::from_secs(0),
            stale_timeout: Period::from_secs(5),
            rules: Vec::new(),
        }
    }
}

impl Default for Rule {
    fn default() -> Self {
        Rule {
            bucket: Pattern::any(),
            key: Pattern::any(),
            ttl: None,
            negative_ttl: None,
            negative_forbidden: false,
            stale_if_error: None,
            stale_while_revalidate: None,
            store: true,
            ignore_origin: false,
        }
    }
}

impl Default for RangeFill {
    fn default() -> Self {
        let library = BackgroundFills::default();
        let budget = library.client_bytes_per_minute.unwrap_or(0);
        RangeFill {
            max_in_flight: Whole(library.in_flight),
            max_size_gb: None,
            max_in_flight_gb: None,
            client_mb_per_minute: MegabytesPerMinute::from_bytes(budget),
            max_wait: Period(library.max_wait),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            max_size_mb: Megabytes::from_bytes(DiskCacheConfig::new("", 0).memory_bytes),
        }
    }
}

impl Default for Disk {
    fn default() -> Self {
        let library = DiskCacheConfig::new("", 0);
        Disk {
            enabled: true,
            path: None,
            max_size_gb: Gigabytes(10.0),
            backend: library.backend,
            inactive: Period(library.inactive.unwrap_or_default()),
            max_open_files: Whole(library.max_open_files),
            scrub_mb_per_second: MegabytesPerSecond::from_bytes(library.scrub_bytes_per_second),
            sendfile: Sendfile::default(),
        }
    }
}

impl Default for Sendfile {
    fn default() -> Self {
        let library = SendfileConfig::default();
        Sendfile {
            enabled: library.enabled,
            threshold_bytes: Whole(library.threshold_bytes),
        }
    }
}

// === impl Config ===

impl Config {
    /// Reads a configuration file, with variables from the environment.
    ///
    /// # Errors
    /// As [`Config::parse`], and when the file cannot be read.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let mistake = |place, what: &str| unreadable(path, place, what);
        let mut bytes = Zeroizing::new(Vec::new());
        // Devices and pipes have no length to ask for.
        File::open(path)
            .and_then(|file| file.take(document::MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|e| mistake(None, &format!("cannot be read: {e}; name a readable file")))?;
        if bytes.len() as u64 > document::MAX_BYTES {
            return Err(mistake(None, TOO_LARGE));
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let before = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
            mistake(Some(end_of(&before)), "is not UTF-8 here; save it as UTF-8")
        })?;
        Config::parse(text, path, &|name| std::env::var(name).ok())
    }

    /// Checks the text of a configuration file. `file` is for the messages,
    /// `env` gives the variables that `${NAME}` stands for.
    ///
    /// Variables are put in after the YAML has been read, so a secret may
    /// hold any character; `$${` stands for a literal `${`.
    ///
    /// # Errors
    /// All mistakes. The files of `server.tls` are looked for; nothing else outside the
    /// text is.
    pub fn parse(
        text: &str,
        file: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        if text.len() as u64 > document::MAX_BYTES {
            return Err(unreadable(file, None, TOO_LARGE));
        }
        let mut findings = Vec::new();
        let Ok(mut root) = document::parse(text, &mut findings) else {
            return Err(Secrets::default().word_all(file, findings));
        };
        let is_empty = |root: &Node| match &root.kind {
            Kind::Scalar(scalar) => scalar.meaning == document::Meaning::Null,
            _ => false,
        };
        let Some(root) = root.as_mut().filter(|root| !is_empty(root)) else {
            return Err(unreadable(file, None, "holds no settings"));
        };
        // Before reading removes what is wrong.
        let secrets = Secrets::of(root, env);
        let source = Source::new(file, root);
        let has_sections = matches!(root.kind, Kind::Section(_));
        let config = reader::read::<Config>(root, env, &mut findings);
        if let (false, [finding]) = (has_sections, findings.as_mut_slice()) {
            finding.problem.what = "holds no sections".into();
        }
        checks::check(root, env, &mut findings);
        let mut config = match config {
            Some(config) if findings.is_empty() => config,
            _ => {
                return Err(secrets.word_all(file, findings));
            }
        };
        config.source = source;
        // Zero would be no wait at all.
        let lock_age = &mut config.cache.lock_age;
        *lock_age = (*lock_age).max(Period::from_secs(1));
        if config.server.upgrade_sock.is_none() {
            config.server.upgrade_sock = config.default_upgrade_sock(env);
        }
        Ok(config)
    }

    /// A mistake at a key of this configuration that shows only when it is used. `what`:
    /// the problem and the remedy.
    pub fn mistake(&self, key: &str, what: &str) -> Mistake {
        let place = self.source.place(key);
        Mistake::new(&self.source.file, place, Some(key), what)
    }

    /// The configuration with every default filled in that is left to the machine or to
    /// other keys. `max_connections`: the default of that key.
    #[must_use]
    pub fn effective(&self, max_connections: usize) -> Config {
        let mut config = self.clone();
        let connections = &mut config.server.max_connections;
        connections.get_or_insert(Whole(max_connections.clamp(1, 10_000_000)));
        let size = config.cache.disk.max_size_gb;
        let range_fill = &mut config.cache.range_fill;
        range_fill.max_size_gb.get_or_insert(size);
        // The eighth of a very small cache is less than what may be written.
        let eighth = Gigabytes((*size / 8.0).max(0.001));
        range_fill.max_in_flight_gb.get_or_insert(eighth);
        config
    }

    /// The configuration as YAML that [`Config::parse`] accepts, with a placeholder for
    /// every secret.
    pub fn to_yaml(&self) -> String {
        print::to_yaml(self)
    }

    /// A socket in a folder to which only the proxy may write.
    fn default_upgrade_sock(&self, env: Env) -> Option<Socket> {
        let folder = match self.cache.disk.folder() {
            Some(folder) => folder.to_owned(),
            // It may name several folders, separated by colons.
            None => env("RUNTIME_DIRECTORY")?.split(':').next()?.into(),
        };
        let path = folder.join(UPGRADE_SOCK);
        let fits = path.as_os_str().len() <= values::MAX_SOCKET_PATH;
        (!folder.as_os_str().is_empty() && fits).then_some(Socket(path))
    }
}

/// A file from which no settings can be read.
fn unreadable(file: &Path, place: Option<Place>, what: &str) -> ConfigError {
    let what = format!("{what}; config.yaml.example shows what goes into it");
    Mistake::new(file, place, None, &what).into()
}

/// The place after a text.
fn end_of(text: &str) -> Place {
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    Place {
        line: text.matches('\n').count() + 1,
        column: last_line.chars().count() + 1,
    }
}

fn at_least_one_bucket<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Bucket>, D::Error> {
    struct Buckets;

    impl<'de> Visitor<'de> for Buckets {
        type Value = Vec<Bucket>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("list at least one bucket: \"- path_prefix: /assets\" and so on")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Bucket>, A::Error> {
            let mut buckets = Vec::new();
            while let Some(bucket) = list.next_element()? {
                buckets.push(bucket);
            }
            if buckets.is_empty() {
                return Err(serde::de::Error::custom("is an empty list"));
            }
            Ok(buckets)
        }
    }

    from.deserialize_seq(Buckets)
}

/// A list of values.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Values<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("write a list: [VALUE, VALUE]")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = list.next_element()? {
                values.push(value);
            }
            Ok(values)
        }
    }

    from.deserialize_seq(Values(PhantomData))
}

// === impl Source ===

impl Source {
    fn new(file: &Path, root: &Node) -> Source {
        let mut places = Vec::new();
        root.walk(&mut Vec::new(), &mut |path, place, value| {
            let place = match value.kind {
                Kind::Scalar(_) => value.place,
                _ => place,
            };
            places.push((wording::key(path), place));
        });
        Source {
            file: file.to_owned(),
            places,
        }
    }

    /// The place of a key, or of the section in which it is left out.
    fn place(&self, key: &str) -> Option<Place> {
        let mut key = key;
        loop {
            if let Some((_, place)) = self.places.iter().find(|(path, _)| path == key) {
                return Some(*place);
            }
            (key, _) = key.rsplit_once('.')?;
        }
    }
}

// === impl Server ===

impl Server {
    /// [`Self::keepalive_timeout`] in whole seconds; `None`: no limit.
    pub fn keepalive_secs(&self) -> Option<u64> {
        let timeout = self.keepalive_timeout;
        let secs = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        (secs > 0).then_some(secs)
    }
}

// === impl Tls ===

impl Tls {
    /// [`Self::handshake_timeout`], or a time that no handshake takes.
    pub fn handshake_limit(&self) -> Duration {
        self.handshake_timeout.non_zero().unwrap_or(Period::LONGEST)
    }
}

// === impl Jwt ===

impl Jwt {
    /// The keys that sign tokens. A configuration that was read without mistakes has some.
    pub fn keys(&self) -> Option<&Keys> {
        let set = self.jwks_file.as_ref().and_then(JwksFile::keys);
        let public = self.public_key_file.as_ref().and_then(PublicKeyFile::keys);
        let secret = self.hmac_key_file.as_ref().and_then(HmacKeyFile::keys);
        set.or(public).or(secret)
    }
}

// === impl Bucket ===

impl Bucket {
    /// [`Self::connect_timeout`], or a time that no connection takes.
    pub fn connect_limit(&self) -> Duration {
        self.connect_timeout.non_zero().unwrap_or(Period::LONGEST)
    }
}

// === impl RangeFill ===

impl RangeFill {
    /// The largest object that is fetched, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_gb.map_or(u64::MAX, Gigabytes::bytes)
    }

    /// The total size of the objects in flight, in bytes, for a cache that may hold
    /// `cache_bytes`.
    pub fn max_in_flight_bytes(&self, cache_bytes: u64) -> u64 {
        self.max_in_flight_gb
            .map_or(cache_bytes / 8, Gigabytes::bytes)
    }

    /// Bytes that may be fetched in a minute for one client address; `None`: no limit.
    pub fn client_bytes_per_minute(&self) -> Option<u64> {
        let bytes = self.client_mb_per_minute.bytes();
        (bytes > 0).then_some(bytes)
    }
}

// === impl Memory ===

impl Memory {
    /// Memory for bodies, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_mb.bytes()
    }
}

// === impl Disk ===

impl Disk {
    /// The directory of the cache; `None`: there is no cache.
    pub fn folder(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.enabled)
    }

    /// The size to which the cache may grow, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_gb.bytes()
    }

    /// The rate of the scrubber, in bytes a second; 0: it is off.
    pub fn scrub_bytes_per_second(&self) -> u64 {
        self.scrub_mb_per_second.bytes()
    }
}
