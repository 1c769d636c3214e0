//! Zero-copy file bodies for Pingora, a disk cache that uses them, and an S3
//! caching proxy built on both.
//!
//! - [`cache`]: the disk cache, a [`pingora_cache::Storage`]
//! - [`http`]: caching rules
//! - [`s3`]: object keys, origins, signatures
//! - [`proxy`]: the proxy, and a server around it
//! - [`config`]: the YAML file
//! - [`metrics`]: what is counted
//! - `demo` (feature `demo`): an S3 server over a folder, to try it with

#![forbid(unsafe_code)]

pub mod cache;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod http;
pub mod metrics;
pub mod proxy;
pub mod s3;
