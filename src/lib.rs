//! Zero-copy file bodies for [Pingora](pingora_proxy), a disk cache that uses them, and an S3
//! caching proxy built on both.
//!
//! # Which part to use
//!
//! | you have | use | features |
//! |---|---|---|
//! | files to serve, and no cache | [`Session::write_file_body`] of the patched Pingora | none |
//! | a proxy on Pingora that needs a disk cache | [`DiskCache`] as its storage, with [`HttpCaching`] for the rules | none, or `uring` |
//! | buckets in S3 or MinIO | the binary `s3-proxy`, or [`S3ProxyHttp`] in a server of your own | `s3-proxy` and a TLS backend |
//!
//! All of them need the patched Pingora. `vendor/pingora.sh export` writes it into your project
//! and prints the lines for its `Cargo.toml`.
//!
//! ## A file, without a cache
//!
//! The body goes from the page cache to the socket by `sendfile(2)`. Where that is not possible,
//! such as over TLS or HTTP/2, the same call copies it, at most 64 KiB at a time.
//! `examples/static_files.rs` is a whole server.
//!
//! ```no_run
//! use std::{fs::File, sync::Arc};
//!
//! use pingora_core::Result;
//! use pingora_http::ResponseHeader;
//! use pingora_proxy::Session;
//!
//! /// For `ProxyHttp::request_filter`, which returns true if the response was sent.
//! async fn send(session: &mut Session, file: &Arc<File>, len: u64) -> Result<bool> {
//!     let mut header = ResponseHeader::build(200, None)?;
//!     header.insert_header("Content-Length", len)?;
//!     session.write_response_header(Box::new(header), false).await?;
//!     session.write_file_body(file, 0, len).await?;
//!     session.write_response_body(None, true).await?;
//!     Ok(true)
//! }
//! ```
//!
//! ## A disk cache for your proxy
//!
//! [`DiskCache`] is a [`pingora_cache::Storage`] that evicts by itself. Hits that Pingora serves
//! from it go by sendfile. `examples/embedded.rs` uses it with Pingora's own caching rules.
//! `examples/http_cache.rs` uses it with [`HttpCaching`], which covers more of RFC 9111.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use pingora_proxy::Session;
//! use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};
//! use pingora_sendfile::http::FillLock;
//!
//! # fn main() -> std::io::Result<()> {
//! let cache = DiskCache::open(DiskCacheConfig::new("/var/cache/my-proxy", 100 << 30))?;
//! let lock: &'static FillLock =
//!     Box::leak(Box::new(FillLock::new(cache, Duration::from_secs(10))));
//!
//! // In `ProxyHttp::request_cache_filter`:
//! let enable = |session: &mut Session| {
//!     session.cache.enable(cache, None, None, Some(lock), None);
//!     session.cache.set_admission_policy(cache.admission());
//! };
//! # let _ = enable;
//!
//! // Once the server has ended:
//! cache.close(Duration::from_secs(5));
//! # Ok(())
//! # }
//! ```
//!
//! ## A proxy for S3
//!
#![cfg_attr(feature = "s3-proxy", doc = "```no_run")]
#![cfg_attr(not(feature = "s3-proxy"), doc = "```ignore")]
//! use std::path::Path;
//!
//! use pingora_sendfile::config::Config;
//! use pingora_sendfile::proxy::server::ProxyServer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::load(Path::new("config.yaml"))?;
//! ProxyServer::new(&config)?.run(|| println!("ready"))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Cargo features
//!
//! The default is the library alone.
//!
//! | feature | adds |
//! |---|---|
//! | `s3-proxy` | the modules `config`, `jwt`, `s3` and most of [`proxy`], and the binary |
//! | `demo` | `s3-proxy demo`, with an S3 server of its own |
//! | `logging` | the module `logging`: a log that clients cannot flood |
//! | `uring` | disk I/O by io_uring, on Linux |
//! | `rustls`, `openssl`, `boringssl`, `s2n` | the TLS backend of Pingora, at most one. `s3-proxy` does not support `s2n` |
//! | `aws-lc` | `rustls` with the ciphers of aws-lc, which are faster than those of ring and offer a post-quantum key exchange. Building them takes a C compiler and more time |
//! | `full` | `aws-lc`, `demo` and `uring`, as in the released binary |
//!
//! [`Session::write_file_body`]: pingora_proxy::Session::write_file_body
//! [`DiskCache`]: cache::DiskCache
//! [`HttpCaching`]: http::HttpCaching
#![cfg_attr(feature = "s3-proxy", doc = "[`S3ProxyHttp`]: proxy::S3ProxyHttp")]
#![cfg_attr(
    not(feature = "s3-proxy"),
    doc = "[`S3ProxyHttp`]: https://github.com/pingora-sendfile/pingora-sendfile"
)]
// Only `cache::io::sys` and `cache::io::uring` have any: they call the kernel.
#![deny(unsafe_code)]

pub mod cache;
#[cfg(feature = "s3-proxy")]
#[forbid(unsafe_code)]
pub mod config;
#[cfg(feature = "demo")]
#[forbid(unsafe_code)]
pub mod demo;
#[forbid(unsafe_code)]
pub mod http;
#[cfg(feature = "s3-proxy")]
#[forbid(unsafe_code)]
pub mod jwt;
#[cfg(feature = "logging")]
#[forbid(unsafe_code)]
pub mod logging;
#[forbid(unsafe_code)]
pub mod metrics;
#[forbid(unsafe_code)]
pub mod proxy;
#[cfg(feature = "s3-proxy")]
#[forbid(unsafe_code)]
pub mod s3;
