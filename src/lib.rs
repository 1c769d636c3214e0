//! Zero-copy file bodies for Pingora, a disk cache that uses them, and an S3
//! caching proxy built on both.
//!
//! - [`cache`]: the disk cache, a [`pingora_cache::Storage`]
//! - [`http`]: caching rules
//! - [`jwt`]: the tokens of clients
//! - [`s3`]: object keys, origins, signatures
//! - [`proxy`]: the proxy, and a server around it
//! - [`config`]: the YAML file
//! - [`logging`]: the log, and its limits
//! - [`metrics`]: what is counted
//! - `demo` (feature `demo`): an S3 server over a folder, to try it with

// Forbidden but in `cache::io::sys` and `cache::io::uring`, which call the kernel.
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
