//! The configuration file: YAML in, checked settings out.
//!
//! - this module: the model, which names every key with its type and default
//! - [`values`]: the types of values
//! - `document`: YAML as a tree with positions
//! - `reader`: a deserializer for the tree, which finds all mistakes
//! - `variables`: `${NAME}`
//! - `renamed`: former names of keys
//! - `checks`: checks that span several keys
//! - `changes`: the changes that a running process cannot apply
//! - [`web`]: the part of the model that is about web serving
//! - `wording`, [`error`]: mistakes in words, one line each
//! - `print`: the configuration as YAML again
//!
//! No message contains a secret or the value of a variable.

mod changes;
mod checks;
#[cfg(test)]
mod docs_tests;
mod document;
pub mod error;
mod print;
mod reader;
mod renamed;
#[cfg(test)]
mod tests;
pub mod values;
mod variables;
pub mod web;
mod wording;

use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cache::{BackendChoice, BlocksConfig, DiskCacheConfig, FolderConfig, SendfileConfig};
use crate::http::{CachingOptions, RangeFillLimits};
use crate::jwt::Keys;
pub use changes::RELOADED;
use document::{Kind, Node};
pub use error::{ConfigError, Mistake, Place};
pub use values::{
    Address, AutoOr, BucketName, Collector, ExternalId, FieldName, FieldText, Folder, Gigabytes,
    HmacKeyFile, HostName, JwksFile, KeyPrefix, LogPath, Megabytes, MegabytesPerMinute,
    MegabytesPerSecond, Network, PathPrefix, Pattern, PemFile, Period, Plain, PublicKeyFile,
    Region, ResponseField, RoleArn, SampleRatio, Secret, SecretField, Service, SessionName, Share,
    Socket, TlsName, TlsVersion, Token, Whole,
};
use variables::Env;
pub use web::{Coding, Compress, Cors, CorsMethod, HeaderRule, Web};
use wording::Secrets;

/// The problem and remedy of a file of more than [`document::MAX_BYTES`].
const TOO_LARGE: &str = "is larger than 1 MiB; write a smaller one";

/// The name of the socket for an upgrade in the cache's folder.
const UPGRADE_SOCK: &str = "upgrade.sock";

/// The name of the socket for commands, in the same folder.
const CONTROL_SOCK: &str = "control.sock";

/// The whole configuration, see `docs/configuration.md`.
///
/// The reference in that file is generated from this module: the comment of a field is the
/// meaning of its key, in Markdown, and its last sentence may state the default in words, as
/// `Default: WORDS.`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Listeners and the limits of client connections.
    pub server: Server,
    /// Buckets to serve.
    #[serde(deserialize_with = "at_least_one_bucket")]
    pub buckets: Vec<Bucket>,
    /// Storage of responses and their lifetimes.
    #[serde(default)]
    pub cache: Cache,
    /// Listener for `/metrics`, `/health` and `/ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// Listener for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
    /// Health of the proxy and its origins.
    #[serde(default)]
    pub health: Health,
    /// Log of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Limits of clients.
    #[serde(default)]
    pub limits: Limits,
    /// Traces of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traces: Option<Traces>,
    #[serde(skip)]
    source: Source,
}

/// The file that a configuration comes from, and the places of its keys.
#[derive(Clone, Debug, Default)]
struct Source {
    file: PathBuf,
    places: Vec<(String, Place)>,
}

/// Listeners and the limits of client connections.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address of the plain HTTP listener.
    pub address: Address,
    /// Number of worker threads. Default: the number of CPUs.
    #[serde(default = "defaults::threads")]
    pub threads: Whole<usize, 1, 1024>,
    /// Longest time without progress while sending to a client; the connection is then closed.
    /// `0`: no limit.
    #[serde(default = "defaults::write_timeout")]
    pub write_timeout: Period,
    /// Lowest rate at which a client may receive a response, in bytes per second. Each 2 MiB must
    /// leave at this rate, and `write_timeout` does not apply. Each piece of a body that is copied
    /// may take longer, by one second or by the time of 64 KiB. `0`: off.
    #[serde(default = "defaults::min_send_rate")]
    pub min_send_rate: Whole<usize, 0, 1_000_000_000>,
    /// Unsent bytes that the kernel buffers for each client (`TCP_NOTSENT_LOWAT`). `0`: the
    /// kernel's limit, `net.ipv4.tcp_wmem`. By default, all clients share 256 MiB, or a quarter of
    /// the pressure mark of `net.ipv4.tcp_mem` if that is less: with few clients, each has 2 MiB;
    /// with many, each new one has 64 KiB. Default: by the number of clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_buffer: Option<Whole<u32, 0, { 1 << 30 }>>,
    /// Longest time that a connection may wait for its next request; it is then closed, over HTTP/2
    /// with GOAWAY. Rounded up to seconds for HTTP/1.1. `0`: no limit.
    #[serde(default = "defaults::keepalive_timeout")]
    pub keepalive_timeout: Period,
    /// Longest time from the first byte of a request head to its last; the client then gets 408,
    /// over HTTP/2 a GOAWAY. For the first head of a connection, which over HTTP/2 includes the
    /// preface, the time counts from the start of the connection. Applies to all listeners. `0`: no
    /// limit.
    #[serde(default = "defaults::request_head_timeout")]
    pub request_head_timeout: Period,
    /// Largest request head, in bytes; a larger one gets 431. Applies to all listeners. Over HTTP/2,
    /// each header field counts 32 bytes more (RFC 9113, section 6.5.2). A client that sends more than
    /// five unfinished CONTINUATION frames for one head is disconnected; from 128 KiB on, the limit is
    /// a quarter more than the 16 KiB frames that the largest head fills.
    #[serde(default = "defaults::max_request_head_bytes")]
    pub max_request_head_bytes: Whole<usize, 1024, 1_000_000>,
    /// Longest time that transfers may take to finish after SIGTERM. The process ends with the last
    /// transfer, and at once on SIGINT or a second SIGTERM.
    #[serde(default = "defaults::grace_period")]
    pub grace_period: Period,
    /// Unix socket over which `run --upgrade` receives the listeners. Only the proxy may write to
    /// its directory. Default: `upgrade.sock` in `cache.disk.path`, or without that in
    /// `$RUNTIME_DIRECTORY`, or without that in the first of `cache.disk.paths`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_sock: Option<Socket>,
    /// Unix socket over which `reload` and `upgrade` reach the running process. Only the proxy may write
    /// to its directory. Default: `control.sock` in the directory of the default of `upgrade_sock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_sock: Option<Socket>,
    /// Addresses of proxies in front of this one, such as `[10.0.0.0/8, 192.0.2.1]`. Their
    /// `X-Forwarded-For` names the client of a request for `limits`, `access_log` and
    /// `cache.range_fill`, their `x-amz-request-id` its id, see [Proxies in front](operations.md#proxies-in-front).
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub trusted_proxies: Vec<Network>,
    /// Addresses of load balancers that begin each connection with a PROXY protocol header, version 1
    /// or 2, also before TLS. It names the client for `limits`, `access_log`, `trusted_proxies` and
    /// `cache.range_fill`. A connection of one of these without a header is closed; the headers of
    /// others are not read, see [Proxies in front](operations.md#proxies-in-front).
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub proxy_protocol: Vec<Network>,
    /// Listener for HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Limits of each HTTP/2 connection.
    #[serde(default)]
    pub http2: Http2Limits,
}

/// Limits of clients, so that none of them keeps the others out. `clients_limited_total` counts what is
/// refused, see [Limits](operations.md#limits).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most client connections at a time, never more than three quarters of the limit on open files,
    /// which is raised to the hard limit at startup. Beyond it, a new connection replaces the one
    /// that has been idle longest, or is closed if none is idle. Default: a quarter of the limit on
    /// open files, at most 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Whole<usize, 1, 10_000_000>>,
    /// Most connections of one client address at a time, for IPv6 of one /64 network. A further one
    /// gets 503 over HTTP, and is closed over HTTPS. Connections of `server.trusted_proxies` are not
    /// limited. `0`: no limit. Default: a quarter of `connections`, at least 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_ip: Option<Whole<usize, 0, 10_000_000>>,
    /// Most header fields of a request; one with more gets 431.
    pub header_fields: Whole<usize, 1, 256>,
    /// Longest request target, in bytes; a longer one gets 414. The fully percent-encoded key of an S3
    /// object has up to 3072 bytes.
    pub url_bytes: Whole<usize, 256, 65_536>,
    /// Most requests per second of one client; a second's worth may come at once. A further one gets
    /// 429. A client is the holder of a verified access key, or else an address. `0`: no limit.
    pub requests_per_second: Whole<u32, 0, 1_000_000>,
    /// Most body bytes per second that one client receives. A response is not slowed down; while its
    /// client has had more than this since it began, beyond a second's worth, further requests get
    /// 429. `0`: no limit.
    pub bytes_per_second: Whole<u64, 0, 1_000_000_000_000>,
}

/// Limits of each HTTP/2 connection. A client that exceeds one of them, other than `max_streams`, is
/// disconnected with GOAWAY (`ENHANCE_YOUR_CALM`).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http2Limits {
    /// Most concurrent requests, announced in SETTINGS. A further request is refused
    /// (`REFUSED_STREAM`); the client may repeat it.
    pub max_streams: Whole<u32, 1, 10_000>,
    /// Most requests at a time that the client has reset and the proxy has not yet accepted (rapid
    /// reset, CVE-2023-44487).
    pub max_pending_resets: Whole<usize, 0, 1_000_000>,
    /// Most requests over the life of the connection that the proxy resets for protocol errors, or
    /// refuses because of `max_streams`. Requests with a contradictory `Content-Length` or authority
    /// have a limit of their own, which is fixed: the 32nd ends the connection.
    pub max_error_resets: Whole<usize, 0, 1_000_000>,
    /// Most frames per second that ask for nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, GOAWAY,
    /// CONTINUATION, empty DATA, RST_STREAM and unknown ones. A client may send ten seconds' worth at
    /// once, and 100 at least. A SETTINGS frame counts as ten. RST_STREAM has a count of its own with
    /// the same burst, which refills at a third of the rate. Requests and responses raise the
    /// allowance of all but RST_STREAM. `0`: no limit.
    pub control_frames_per_second: Whole<u32, 0, 1_000_000>,
}

/// A second listener, for HTTPS. Without the section, there is none. The files are read again when
/// they change and in a reload, see [Certificates](operations.md#certificates).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Address of the HTTPS listener.
    pub address: Address,
    /// Certificate chain, with the certificate of the server first. Clients receive it that send no
    /// host name (SNI), or one that none of the certificates is for. A relative path starts at the
    /// working directory.
    pub certificate: PemFile,
    /// Private key of the certificate, without a passphrase: PKCS #8, PKCS #1 or SEC 1.
    pub key: PemFile,
    /// Further certificates, each for the DNS names in it.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub certificates: Vec<Certificate>,
    /// Lowest version of TLS.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// `true`: HTTP/2 for clients that offer it (ALPN). `false`: HTTP/1.1 only.
    #[serde(default = "defaults::http2")]
    pub http2: bool,
    /// Certificate authorities of clients (mutual TLS), which then need a certificate of one of
    /// these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PemFile>,
    /// Clients that must have a certificate, with `client_ca`.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// `true`: `server.address` serves nothing but redirects (308) to HTTPS, with the host, path and
    /// query of the request.
    #[serde(default)]
    pub redirect: bool,
    /// Port in these redirects, if clients reach the HTTPS listener at another one than that of
    /// `server.tls.address`. Default: the port of `server.tls.address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_port: Option<Whole<u16, 1, 65_535>>,
    /// Time for which browsers use only HTTPS for this host: `Strict-Transport-Security` in responses
    /// over HTTPS. `0`: browsers forget it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Period>,
    /// Longest time for a TLS handshake; the connection is then closed. `0`: no limit.
    #[serde(default = "defaults::handshake_timeout")]
    pub handshake_timeout: Period,
    /// Use of kernel TLS (Linux, module `tls`) for HTTP/1.1: large hits are then sent by
    /// `sendfile(2)` over HTTPS too. HTTP/2 does not use it. See
    /// [Kernel TLS](operations.md#kernel-tls).
    #[serde(default)]
    pub ktls: KernelTls,
}

/// The values of `server.tls.ktls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "ktls", rename_all = "lowercase")]
pub enum KernelTls {
    /// It is used where the kernel has it; the log says at the start what the kernel can do.
    #[default]
    Auto,
    /// The proxy does not start without it.
    On,
    /// It is not used.
    Off,
}

/// Further certificates. If several are for the name that a client sends, it receives the first whose
/// kind of key it supports; exact names come before wildcards.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Certificate chain, with the certificate of the server first.
    pub certificate: PemFile,
    /// Private key of the certificate, without a passphrase.
    pub key: PemFile,
}

/// The values of `server.tls.client_auth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "client_auth", rename_all = "lowercase")]
pub enum ClientAuth {
    /// All clients.
    #[default]
    Required,
    /// None; a certificate that a client sends is verified.
    Optional,
}

/// Buckets to serve, at least one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Path below which the bucket's objects are served, in whole segments: with `/assets`, `GET
    /// /assets/a/b.png` is the object `a/b.png`. The prefixes of two buckets must not overlap.
    /// Default: none; required without `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<PathPrefix>,
    /// Host names at which every path belongs to this bucket, for virtual-hosted S3 clients and
    /// domains of your own. They are compared without port and case, and before `path_prefix`.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub hosts: Vec<HostName>,
    /// Name of the bucket. With `auth: passthrough`, an entry without it is the whole service.
    /// Default: none; required except with `auth: passthrough`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketName>,
    /// Beginning of all keys that are served, which clients leave out: with `team-a/`, a client's
    /// `a.png` is the object `team-a/a.png`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<KeyPrefix>,
    /// Region of the bucket: part of its address at AWS and of every signature.
    pub region: Region,
    /// S3 service other than AWS, addressed with path-style requests. All addresses of its host are
    /// tried, at most 16; those that failed within the last minute come last. The host is resolved
    /// every 10 seconds while requests come. Default: AWS, addressed by virtual host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Service>,
    /// Source of the credentials that sign requests to the origin, see
    /// [Credentials](operations.md#credentials). Default: `keys` if `access_key` is set, else
    /// `chain` if `assume_role` is set, else `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsFrom>,
    /// Access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<Secret>,
    /// Secret key. Default: none; required with `access_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<Secret>,
    /// Session token of temporary credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
    /// Role to assume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assume_role: Option<AssumeRole>,
    /// `true`: clients may list the bucket, and ListBuckets names it. `false`: lists get 403.
    #[serde(default)]
    pub list: bool,
    /// Time for which a list is served from memory to other requests. `0`: every list comes from
    /// the origin.
    #[serde(default = "defaults::list_ttl")]
    pub list_ttl: Period,
    /// Authorization of clients, see [Authorization](caching.md#authorization).
    #[serde(default)]
    pub auth: Auth,
    /// Clients of `auth: sigv4`.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub clients: Vec<Client>,
    /// Tokens of `auth: jwt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// Time for which a request that S3 has permitted is permitted again without asking S3. It never
    /// exceeds the lifetime of the request's signature. Only with `auth: passthrough`. `0`: S3 is
    /// always asked.
    #[serde(default = "defaults::auth_ttl")]
    pub auth_ttl: Period,
    /// Serving as a website.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web: Option<Web>,
    /// Changes of the header of responses.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub response_headers: Vec<HeaderRule>,
    /// Reading by scripts of other websites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// `true`: all responses have `X-Content-Type-Options: nosniff`, `X-Frame-Options: SAMEORIGIN`,
    /// `Referrer-Policy: strict-origin-when-cross-origin` and `X-Permitted-Cross-Domain-Policies:
    /// none`. `response_headers` may change them.
    #[serde(default)]
    pub security_headers: bool,
    /// Longest time to connect to the origin, over all its addresses and including TLS. While there
    /// is another address to try, each gets two seconds. `0`: no limit.
    #[serde(default = "defaults::connect_timeout")]
    pub connect_timeout: Period,
    /// Longest time from a request to the first byte of its response. `0`: no limit.
    #[serde(default = "defaults::origin_timeout")]
    pub first_byte_timeout: Period,
    /// Longest time without a further byte of a response, and without progress while sending a
    /// request. `0`: no limit.
    #[serde(default = "defaults::origin_timeout")]
    pub read_timeout: Period,
    /// Most retries of a request whose connection is refused or breaks, or that gets 500, 502, 503
    /// or 504, before the client has received anything. Retries wait 100 ms, 200 ms and so on, up to
    /// 2 s; a `Retry-After` of more than a second prevents them. Each bucket starts with 20 retries
    /// in reserve, and gains one for every ten responses of its origin. `0`: off.
    #[serde(default = "defaults::retries")]
    pub retries: Whole<u8, 0, 10>,
    /// Certificate authorities trusted for the origin, in place of the system's. Default: the
    /// system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PemFile>,
    /// Verification of the origin's certificate.
    #[serde(default)]
    pub tls_verify: TlsVerify,
    /// Name expected in the origin's certificate and sent as SNI, for an endpoint that is reached by
    /// another name or by address. Default: the host of `endpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_name: Option<TlsName>,
}

/// The values of `buckets[].tls_verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "tls_verify", rename_all = "lowercase")]
pub enum TlsVerify {
    /// The authority and the name are verified.
    #[default]
    Full,
    /// The authority is verified, the name is not.
    Ca,
    /// Nothing is verified: anyone on the network path can read and change everything.
    None,
}

/// The values of `buckets[].auth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "auth", rename_all = "lowercase")]
pub enum Auth {
    /// Everyone may read; signatures are ignored.
    #[default]
    None,
    /// Requests must be signed with the keys of one of the `clients`.
    Sigv4,
    /// Requests must carry a token that satisfies the section `jwt`.
    Jwt,
    /// S3 decides on each request.
    Passthrough,
}

/// Clients of `auth: sigv4`: at least one there, and none with another `auth`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Access key of the client, of your choice; unrelated to the keys for the origin.
    pub access_key: Secret,
    /// Secret key of the client.
    pub secret_key: Secret,
    /// Session token that the client must send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
    /// Beginnings of the keys that the client may read, as clients write them, such as `[team-a/,
    /// shared/]`. Default: all keys.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub key_prefixes: Vec<KeyPrefix>,
}

/// Tokens of `auth: jwt`: required there, and refused with another `auth`. Exactly one of the three
/// files must be given. They are read at startup and in a [reload](operations.md#reload).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// JSON Web Key Set with the keys that sign tokens. Default: none; one of the three files is
    /// required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<JwksFile>,
    /// Public key that signs tokens: RSA for RS256, P-256 for ES256, Ed25519 for EdDSA. Default: none;
    /// one of the three files is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key_file: Option<PublicKeyFile>,
    /// Secret for HS256. Default: none; one of the three files is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac_key_file: Option<HmacKeyFile>,
    /// Accepted values of the claim `iss`. Default: any.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub issuers: Vec<Plain>,
    /// Accepted values of the claim `aud`. Default: none; tokens with `aud` are refused.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub audiences: Vec<Plain>,
    /// Claim with the beginnings of the keys that the client may read, a string or a list of
    /// strings. A token without the claim is refused. Default: none; all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_claim: Option<Plain>,
    /// Cookie that may carry the token, for browsers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<FieldName>,
    /// Query parameter that may carry the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<FieldName>,
}

/// The values of `buckets[].credentials`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "credentials", rename_all = "lowercase")]
pub enum CredentialsFrom {
    /// `access_key`, `secret_key` and `session_token`.
    Keys,
    /// The credential chain of the AWS SDK.
    Chain,
    /// Requests are not signed.
    None,
}

/// A role whose credentials sign the requests to the origin. It is assumed with the keys of the
/// bucket, or without keys with the credentials of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AssumeRole {
    /// ARN of the role.
    pub role_arn: RoleArn,
    /// External ID that the owner of the role requires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<ExternalId>,
    /// Name of the session in the records of the role's owner.
    #[serde(default = "defaults::session_name")]
    pub session_name: SessionName,
}

/// Storage of responses and their lifetimes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Freshness of a 200 for which the origin states none.
    pub default_ttl: Period,
    /// Time for which a missing object (404, 410) is remembered if the origin states none. A purge
    /// ends it. `0`: off.
    pub negative_ttl: Period,
    /// Time for which the response to a HEAD is served from memory while the object is not stored,
    /// unless the origin states a shorter one. A purge ends it, and so does a response that names
    /// another version of the object. `0`: off.
    pub head_ttl: Period,
    /// Number of requests for an object that it takes to store it; `1`: the first request stores it.
    /// The former name `admission` is accepted too.
    pub min_uses: Whole<u8, 1, 255>,
    /// Share of a response that must have arrived for its fill to continue after the last client has
    /// left. `0`: always, `1`: never. A fill of unknown length continues only with `0`.
    pub fill_without_readers: Share,
    /// Most concurrent fills. A further response waits up to 3 seconds for its turn, and then passes
    /// without being stored.
    pub max_fills: Whole<usize, 1, 100_000>,
    /// Most concurrent misses: requests that wait for the origin, and responses that pass without
    /// being stored or without a known length, at most 0.3 MB of memory each. Further misses wait in
    /// order, without asking the origin. While more than half of the turns are taken, a client that
    /// receives a passing response must take each 64 KiB within 4 seconds.
    pub max_misses: Whole<usize, 1, 1_000_000>,
    /// Longest time that a miss beyond `max_misses` waits before it gets 503 with `Retry-After`.
    pub miss_timeout: Period,
    /// Longest time that requests for an object wait for the response to the first of them. Then one
    /// of them asks the origin too, and so on. At least `1s`.
    pub lock_age: Period,
    /// Fetching of whole objects after requests for parts.
    pub range_fill: RangeFill,
    /// Blocks of large objects.
    pub blocks: Blocks,
    /// Memory tier.
    pub memory: Memory,
    /// Disk tier.
    pub disk: Disk,
    /// Time for which a stale object may be served if the origin cannot be reached, responds with
    /// 500, 502, 503 or 504, or does not respond within `stale_timeout`. The origin's
    /// `stale-if-error` takes precedence. `0`: off.
    pub stale_if_error: Period,
    /// Time for which a stale object may be served while it is revalidated in the background. The
    /// origin's `stale-while-revalidate` takes precedence. `0`: off.
    pub stale_while_revalidate: Period,
    /// Longest wait for the origin where a stale object can be served instead: for a connection, for
    /// the header, and for each piece of a new version. `0`: no limit of its own.
    pub stale_timeout: Period,
    /// Exceptions for some objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// Exceptions for some objects, see [Rules](caching.md#rules). The first rule whose patterns match
/// an object applies. Keys that it leaves out have the value of the section `cache`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Buckets to which the rule applies, by their names at S3.
    pub bucket: Pattern,
    /// Objects to which the rule applies, by their keys at S3.
    pub key: Pattern,
    /// Freshness of a 200 for which the origin states none. Default: `cache.default_ttl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Period>,
    /// Time for which a missing object is remembered. Default: `cache.negative_ttl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Period>,
    /// `true`: a refusal (403) is remembered like a missing object.
    pub negative_forbidden: bool,
    /// Time for which a stale object may be served if the origin fails. Default:
    /// `cache.stale_if_error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Period>,
    /// Time for which a stale object may be served while it is revalidated. Default:
    /// `cache.stale_while_revalidate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Period>,
    /// `false`: nothing is stored.
    pub store: bool,
    /// `true`: `Cache-Control`, `CDN-Cache-Control` and `Expires` of the origin are ignored. Clients
    /// still receive them.
    pub ignore_origin: bool,
}

/// Fetching of whole objects after requests for parts, see
/// [Range fills](caching.md#range-fills), and of missing [blocks](caching.md#blocks).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RangeFill {
    /// Most concurrent range fills. `0`: no range fills, and ranges begin no blocks.
    pub max_in_flight: Whole<usize, 0, 10_000>,
    /// Largest object that is fetched. Default: `cache.disk.max_size_gb`, or the smallest size of
    /// `cache.disk.paths`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size_gb: Option<Gigabytes>,
    /// Total size of the objects that are being fetched. A larger object is fetched alone, once
    /// clients have received as many bytes of it as it has. Default: an eighth of the cache's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight_gb: Option<Gigabytes>,
    /// Budget of each client address: megabytes per minute that range fills and blocks for it may fetch beyond
    /// what clients have received. A fill that would exceed the budget is not started. `0`: no limit.
    pub client_mb_per_minute: MegabytesPerMinute,
    /// Longest time that a range waits for a fill to reach it, before it is fetched on its own. A
    /// range that the fill would reach later than that, at its pace, does not wait. `0`: off.
    pub max_wait: Period,
}

/// Storage of large objects in parts, see [Blocks](caching.md#blocks).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blocks {
    /// Size of a block in KiB, rounded up to a power of two. Objects that are already stored keep their
    /// block size.
    pub size_kib: Whole<u32, 64, 65_536>,
    /// Most neighbouring blocks, in MiB, in one request to the origin, at most a quarter of the cache, or
    /// of the object's directory of `cache.disk.paths`. The same amount is fetched ahead of a client that
    /// reads sequentially.
    pub read_ahead_mib: Whole<u32, 1, 1024>,
}

/// Memory for bodies up to `cache.disk.sendfile.threshold_bytes`, and for metadata.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Size of the memory tier, which holds bodies up to `cache.disk.sendfile.threshold_bytes`.
    /// `0`: off.
    pub max_size_mb: Megabytes,
    /// Memory for metadata of objects, about 1.6 KB each. A hit whose body is not in memory then
    /// opens the body and reads nothing else. Metadata of objects in blocks is not kept. `0`: off.
    pub max_metadata_mb: Megabytes,
}

/// The disk tier. Without the section, nothing is stored.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// `false`: as without the section.
    pub enabled: bool,
    /// Directory of the cache, used by nothing else and by one process at a time. A relative path
    /// starts at the working directory. Default: none; required if `enabled`, without `paths`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Folder>,
    /// Directories of the cache, one a disk, in place of `path`, see
    /// [Several disks](operations.md#several-disks).
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<DiskPath>,
    /// Size of the cache; with `paths`, of each directory that has no size of its own. Files count in
    /// whole blocks of 4 KiB. A full cache evicts entries that are rarely requested.
    pub max_size_gb: Gigabytes,
    /// Space that the cache leaves free on each file system, even if other programs fill it. Default:
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free_gb: Option<Gigabytes>,
    /// Size of the largest object that is stored. Default: any; an object larger than the cache is stored
    /// only in [blocks](caching.md#blocks).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_object_gb: Option<Gigabytes>,
    /// I/O backend.
    #[serde(with = "Backend")]
    pub backend: BackendChoice,
    /// Time after which an entry that nobody requests is evicted. `0`: off.
    pub inactive: Period,
    /// Most files of entries in use that are kept open. It is never more than a quarter of the limit on
    /// open files, which is raised to the hard limit at startup. `auto`: that quarter, at most 16384.
    pub max_open_files: AutoOr<usize, 0, 1_000_000>,
    /// Rate at which the scrubber reads bodies in each directory to find flipped bits. `0`: off.
    pub scrub_mb_per_second: MegabytesPerSecond,
    /// Use of `sendfile(2)`.
    pub sendfile: Sendfile,
}

/// Directories of the cache, one a disk, at most 256, in place of `cache.disk.path`, see
/// [Several disks](operations.md#several-disks).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DiskPath {
    /// The directory, used by nothing else and by one process at a time. The keys of a directory depend
    /// on its path: under another path, it gets others. Default: none; required.
    pub path: Folder,
    /// Size of the cache in this directory, and weight in the spread of the keys. Default:
    /// `cache.disk.max_size_gb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_gb: Option<Gigabytes>,
}

/// The names of [`BackendChoice`] in the file.
#[derive(Deserialize, Serialize)]
#[serde(remote = "BackendChoice", rename = "backend", rename_all = "lowercase")]
enum Backend {
    /// The one that is faster in most cases, `tokio`.
    Auto,
    /// A pool of threads.
    Tokio,
    /// io_uring; `tokio` where the kernel forbids it or the build lacks it.
    Uring,
}

/// Use of `sendfile(2)`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sendfile {
    /// `true`: hits are sent by `sendfile(2)`. Default: `true` on Linux, else `false`.
    pub enabled: bool,
    /// Largest body, in bytes, that is copied; larger ones are sent by `sendfile(2)`, whole or in
    /// ranges.
    pub threshold_bytes: Whole<u64, 0, { u64::MAX }>,
}

/// The listener for `/metrics` (Prometheus), `/health` and `/ready`. Without the section, there is none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Address of the listener. It responds under any host name, because nothing can be changed
    /// there.
    pub address: Address,
}

/// The listener for operators, see [Admin address](operations.md#admin-address). Without the section,
/// there is none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Address of the listener, which clients must not be able to reach, in particular without `token`.
    /// Default: none; required without `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// Unix socket of the listener, in place of `address` or beside it. Only the user of the proxy and
    /// root may connect (mode 0600), so its requests need no token. Its directory must belong to the
    /// proxy; a socket that a former process has left there is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<Socket>,
    /// Token that requests to `address` must have: `Authorization: Bearer TOKEN`. The commands take it
    /// from here. `/health` and `/ready` need none. Default: none; everyone who reaches `address` is
    /// admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// Host names by which browsers and tools may address the listener. IP addresses and `localhost` are
    /// allowed in any case, and every name is with the token.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub hosts: Vec<HostName>,
}

/// The conditions on which an origin counts as down, see [Health](operations.md#health). Only answers to
/// requests for clients count.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Failures in a row after which an origin counts as down: no connection, no answer, or 5xx except
    /// 501.
    pub origin_failures: Whole<u32, 1, 1_000_000>,
    /// Least time from the first of them to the last.
    pub origin_down_after: Period,
    /// Time after the last failure after which it no longer counts as down, so that clients try it
    /// again.
    pub origin_retry: Period,
    /// Readiness for clients.
    pub ready: Ready,
}

/// The conditions under which `/ready` responds with 503, see [Health](operations.md#health). While the
/// proxy shuts down, it does in any case.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ready {
    /// Entries of earlier runs are still being listed.
    pub starting: bool,
    /// An operator has the proxy drained.
    pub draining: bool,
    /// The origin of a bucket is down. The other proxies of the origin are then not ready either, and
    /// hits are not served.
    pub origin: bool,
    /// No directory of the cache can be used.
    pub disk: bool,
}

/// Log of requests, a line each, see [Access log](operations.md#access-log). Without this section,
/// requests are not logged, and only errors carry an id of the proxy's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// File to which lines are appended; `'-'`: standard output. A relative path starts at the working
    /// directory.
    pub path: LogPath,
    /// Format of the lines.
    #[serde(default)]
    pub format: LogFormat,
    /// Files that the log is divided into. On SIGUSR1, the file is opened again in any case.
    #[serde(default)]
    pub rotate: Rotate,
    /// Memory for lines that wait or are being written, in KiB. Further lines are dropped and counted.
    #[serde(default = "defaults::log_buffer")]
    pub buffer_kib: Whole<u32, 64, 1_048_576>,
}

/// Traces of requests, sent to an OpenTelemetry collector by OTLP over HTTP, see
/// [Traces](operations.md#traces). Without this section, there are none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// Address of the collector. Without a path, `/v1/traces` is used.
    pub endpoint: Collector,
    /// Share of the requests that are traced. A trusted proxy decides by the flag of its `traceparent`
    /// instead, see `server.trusted_proxies`.
    #[serde(default = "defaults::sample_ratio")]
    pub sample_ratio: SampleRatio,
    /// Name of the service (`service.name`).
    #[serde(default = "defaults::service_name")]
    pub service_name: Plain,
    /// Header fields of the requests to the collector.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub headers: Vec<TraceHeader>,
    /// Longest time for a request to the collector; its spans are then dropped.
    #[serde(default = "defaults::trace_timeout")]
    pub timeout: Period,
}

/// A header field of the requests to the collector.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TraceHeader {
    /// Name of the field, such as `authorization`.
    pub name: FieldName,
    /// Value of the field, such as `Bearer ${TOKEN}`.
    pub secret: SecretField,
}

/// The values of `access_log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "format", rename_all = "lowercase")]
pub enum LogFormat {
    /// A JSON object.
    #[default]
    Json,
    /// The combined format of Apache and nginx.
    Combined,
}

/// The values of `access_log.rotate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "rotate", rename_all = "lowercase")]
pub enum Rotate {
    /// One file.
    #[default]
    None,
    /// A file for each day (UTC), with the date behind its name: `access.log.2026-11-30`.
    Daily,
}

/// Defaults in sections that also have required keys. The other sections have a [`Default`]. The
/// library's defaults are used where it has them.
mod defaults {
    use super::{Period, Plain, SampleRatio, SessionName, Whole};
    use crate::s3::ConnectionOptions;

    pub fn threads<const MIN: u64, const MAX: u64>() -> Whole<usize, MIN, MAX> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Whole(threads.min(MAX as usize))
    }

    pub fn auth_ttl() -> Period {
        Period::from_secs(0)
    }

    pub fn log_buffer<const MIN: u64, const MAX: u64>() -> Whole<u32, MIN, MAX> {
        Whole(4096)
    }

    pub fn sample_ratio() -> SampleRatio {
        SampleRatio(0.01)
    }

    pub fn service_name() -> Plain {
        Plain("s3-proxy".to_owned())
    }

    pub fn trace_timeout() -> Period {
        Period::from_secs(5)
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

    pub fn http2() -> bool {
        true
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

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: None,
            per_ip: None,
            header_fields: Whole(100),
            url_bytes: Whole(8192),
            requests_per_second: Whole(0),
            bytes_per_second: Whole(0),
        }
    }
}

impl Default for Http2Limits {
    fn default() -> Self {
        Http2Limits {
            max_streams: Whole(100),
            // The defaults of the h2 crate, for both limits of resets.
            max_pending_resets: Whole(20),
            max_error_resets: Whole(1024),
            control_frames_per_second: Whole(100),
        }
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
            min_uses: Whole(library.min_uses),
            fill_without_readers: Share(library.fill_without_readers),
            max_fills: Whole(library.max_fills),
            max_misses: Whole(caching.max_misses),
            miss_timeout: Period(caching.miss_timeout),
            lock_age: Period(caching.lock_age),
            range_fill: RangeFill::default(),
            blocks: Blocks::default(),
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

impl Default for Health {
    fn default() -> Self {
        Health {
            origin_failures: Whole(5),
            origin_down_after: Period::from_secs(5),
            origin_retry: Period::from_secs(30),
            ready: Ready::default(),
        }
    }
}

impl Default for Ready {
    fn default() -> Self {
        Ready {
            starting: true,
            draining: true,
            origin: false,
            disk: true,
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
        let library = RangeFillLimits::default();
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

impl Default for Blocks {
    fn default() -> Self {
        let library = BlocksConfig::default();
        Blocks {
            size_kib: Whole(library.block_bytes >> 10),
            read_ahead_mib: Whole((library.read_ahead_bytes >> 20) as u32),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        let library = DiskCacheConfig::new("", 0);
        Memory {
            max_size_mb: Megabytes::from_bytes(library.memory_bytes),
            max_metadata_mb: Megabytes::from_bytes(library.metadata_bytes),
        }
    }
}

impl Default for Disk {
    fn default() -> Self {
        let library = DiskCacheConfig::new("", 0);
        Disk {
            enabled: true,
            path: None,
            paths: Vec::new(),
            max_size_gb: Gigabytes(10.0),
            min_free_gb: None,
            max_object_gb: None,
            backend: library.backend,
            inactive: Period(library.inactive.unwrap_or_default()),
            max_open_files: AutoOr(library.max_open_files),
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
    /// Those of [`Config::parse`], and a file that cannot be read.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let mistake = |place, what: &str| unreadable(path, place, what);
        let mut bytes = Zeroizing::new(Vec::new());
        // The length of devices and pipes is unknown.
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

    /// Reads the text of a configuration file. `file` is its name in messages, `env` looks up
    /// variables.
    ///
    /// Variables are replaced after the YAML has been parsed, so a secret may contain any character.
    ///
    /// # Errors
    /// All mistakes. Of the files that the text names, certificates and keys are opened.
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
            return Err(unreadable(file, None, "contains no settings"));
        };
        renamed::adopt(root, &mut findings);
        // Reading removes wrong values.
        let secrets = Secrets::of(root, env);
        let source = Source::new(file, root);
        let has_sections = matches!(root.kind, Kind::Section(_));
        let config = reader::read::<Config>(root, env, &mut findings);
        if let (false, [finding]) = (has_sections, findings.as_mut_slice()) {
            finding.problem.what = "contains no sections".into();
        }
        checks::check(root, env, &mut findings);
        let mut config = match config {
            Some(config) if findings.is_empty() => config,
            _ => {
                return Err(secrets.word_all(file, findings));
            }
        };
        config.source = source;
        // With zero, requests would not wait at all.
        let lock_age = &mut config.cache.lock_age;
        *lock_age = (*lock_age).max(Period::from_secs(1));
        if config.server.upgrade_sock.is_none() {
            config.server.upgrade_sock = config.default_sock(UPGRADE_SOCK, env);
        }
        if config.server.control_sock.is_none() {
            config.server.control_sock = config.default_sock(CONTROL_SOCK, env);
        }
        Ok(config)
    }

    /// The file that the configuration was read from.
    pub fn file(&self) -> &Path {
        &self.source.file
    }

    /// A mistake at a key that is found only when the configuration is used. `what` is the problem
    /// and the remedy.
    pub fn mistake(&self, key: &str, what: &str) -> Mistake {
        let place = self.source.place(key);
        Mistake::new(&self.source.file, place, Some(key), what)
    }

    /// The configuration with the defaults that depend on the machine or on other keys.
    /// `connections` is the default of that key, `max_open_files` the meaning of `auto`.
    #[must_use]
    pub fn effective(&self, connections: usize, max_open_files: usize) -> Config {
        let mut config = self.clone();
        let limits = &mut config.limits;
        let default = Whole(connections.clamp(1, 10_000_000));
        let connections = *limits.connections.get_or_insert(default);
        limits.per_ip = Some(Whole(limits.per_ip(*connections)));
        let open_files = &mut config.cache.disk.max_open_files.0;
        open_files.get_or_insert(max_open_files.min(1_000_000));
        let sizes = self.cache.disk.sizes();
        let smallest = sizes
            .iter()
            .fold(f64::INFINITY, |least, size| least.min(**size));
        let total: f64 = sizes.iter().map(|size| **size).sum();
        let range_fill = &mut config.cache.range_fill;
        range_fill.max_size_gb.get_or_insert(Gigabytes(smallest));
        // An eighth of a very small cache is less than the smallest allowed value, one of many large disks
        // more than the largest.
        let eighth = Gigabytes((total / 8.0).clamp(0.001, 1e6));
        range_fill.max_in_flight_gb.get_or_insert(eighth);
        config
    }

    /// The configuration as YAML that [`Config::parse`] accepts, with a placeholder for
    /// every secret.
    pub fn to_yaml(&self) -> String {
        print::to_yaml(self)
    }

    /// The default path of a socket, in a directory to which only the proxy may write.
    fn default_sock(&self, name: &str, env: Env) -> Option<Socket> {
        let folders = self.cache.disk.folders();
        let runtime = || {
            // It may name several directories, separated by colons.
            let folders = env("RUNTIME_DIRECTORY")?;
            folders.split(':').next().map(PathBuf::from)
        };
        let folder = match &folders[..] {
            [only] => only.path.clone(),
            [] => runtime()?,
            // The first disk may fail.
            [first, ..] => runtime().unwrap_or_else(|| first.path.clone()),
        };
        let path = folder.join(name);
        let fits = path.as_os_str().len() <= values::MAX_SOCKET_PATH;
        (!folder.as_os_str().is_empty() && fits).then_some(Socket(path))
    }
}

/// The error of a file that cannot be read.
fn unreadable(file: &Path, place: Option<Place>, what: &str) -> ConfigError {
    let what = format!("{what}; config.yaml.example shows what goes into it");
    Mistake::new(file, place, None, &what).into()
}

/// The position after a text.
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

    /// The position of a key; if it is left out, of its section.
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

// === impl Limits ===

impl Limits {
    /// [`Self::per_ip`] if there are at most so many connections in all; 0: no limit.
    pub fn per_ip(&self, connections: usize) -> usize {
        /// Few connections are no reason to refuse a client of which a browser opens six.
        const LEAST: usize = 64;
        self.per_ip
            .map_or_else(|| (connections / 4).max(LEAST), |max| *max)
    }
}

// === impl Tls ===

impl Tls {
    /// [`Self::handshake_timeout`], or a time that no handshake takes.
    pub fn handshake_limit(&self) -> Duration {
        self.handshake_timeout.non_zero().unwrap_or(Period::LONGEST)
    }

    /// All certificates with their keys, the default one first: for each the section below
    /// `server.tls`, and the paths of both.
    pub fn identities(&self) -> impl Iterator<Item = (String, &Path, &Path)> {
        let default = (String::new(), &*self.certificate, &*self.key);
        let others = self.certificates.iter().enumerate();
        let others = others.map(|(index, other)| {
            let section = format!("certificates[{index}].");
            (section, &*other.certificate, &*other.key)
        });
        std::iter::once(default).chain(others)
    }
}

// === impl Jwt ===

impl Jwt {
    /// The keys that sign tokens; a valid configuration has some.
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

    /// The total size of the objects in flight, in bytes, for a cache of `cache_bytes`.
    pub fn max_in_flight_bytes(&self, cache_bytes: u64) -> u64 {
        self.max_in_flight_gb
            .map_or(cache_bytes / 8, Gigabytes::bytes)
    }

    /// The budget of one client address, in bytes per minute; `None`: no limit.
    pub fn client_bytes_per_minute(&self) -> Option<u64> {
        let bytes = self.client_mb_per_minute.bytes();
        (bytes > 0).then_some(bytes)
    }
}

// === impl Blocks ===

impl Blocks {
    /// The configuration of the cache.
    pub fn config(&self) -> BlocksConfig {
        BlocksConfig {
            block_bytes: *self.size_kib << 10,
            read_ahead_bytes: u64::from(*self.read_ahead_mib) << 20,
        }
    }
}

// === impl Memory ===

impl Memory {
    /// Memory for bodies, in bytes.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_mb.bytes()
    }

    /// Memory for metadata of objects, in bytes.
    pub fn max_metadata_bytes(&self) -> u64 {
        self.max_metadata_mb.bytes()
    }
}

// === impl Disk ===

impl Disk {
    /// The directories of the cache; empty: there is no cache.
    pub fn folders(&self) -> Vec<FolderConfig> {
        match self.enabled {
            true => self.named_folders(),
            false => Vec::new(),
        }
    }

    /// The directories that are named, enabled or not.
    pub fn named_folders(&self) -> Vec<FolderConfig> {
        let several = self.paths.iter().map(|folder| &folder.path);
        let paths = self.path.iter().chain(several);
        let folders = paths.zip(self.sizes()).map(|(path, size)| FolderConfig {
            path: path.to_path_buf(),
            max_size_bytes: size.bytes(),
        });
        folders.collect()
    }

    /// The size to which the cache may grow, in bytes, in all directories.
    pub fn max_size_bytes(&self) -> u64 {
        let sizes = self.sizes().into_iter().map(Gigabytes::bytes);
        sizes.fold(0, u64::saturating_add)
    }

    /// The size of each directory.
    fn sizes(&self) -> Vec<Gigabytes> {
        if self.paths.is_empty() {
            return vec![self.max_size_gb];
        }
        let own = self.paths.iter().map(|folder| folder.max_size_gb);
        own.map(|size| size.unwrap_or(self.max_size_gb)).collect()
    }

    /// The rate of the scrubber, in bytes per second; 0: off.
    pub fn scrub_bytes_per_second(&self) -> u64 {
        self.scrub_mb_per_second.bytes()
    }
}
