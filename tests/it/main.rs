//! The integration tests: one binary, a module for each capability.

mod access_log;
mod admin;
mod auth;
mod blocks;
mod browser;
mod cache_rules;
mod certificates;
mod cli;
mod clients;
mod conditions;
mod config;
mod connections;
mod deploy;
mod disk_faults;
mod docs;
#[cfg(target_os = "linux")]
mod durability;
mod engine;
mod examples;
mod fill;
mod folders;
mod heads;
mod health;
mod hit;
mod http2;
mod http_cache;
mod ideal_cache;
#[cfg(target_os = "linux")]
mod limits;
mod load;
mod log;
mod metrics;
mod minio;
mod origin;
mod passthrough;
mod range_miss;
mod reload;
mod request_heads;
mod restart;
mod room;
mod s3;
mod service;
mod signals;
mod status;
mod status_page;
#[cfg(target_os = "linux")]
mod strace;
#[cfg(target_os = "linux")]
mod top;
mod traces;
mod transfer;
mod upgrade;
mod warm;
mod web;

use test_support::{Bucket, Origin, Proxy, ProxyBuilder};

/// The program under test.
const S3_PROXY: &str = env!("CARGO_BIN_EXE_s3-proxy");

/// A proxy to be configured.
fn builder() -> ProxyBuilder {
    Proxy::builder(S3_PROXY)
}

/// A proxy with one open bucket, at `/assets`.
fn proxy(origin: &Origin) -> ProxyBuilder {
    builder().bucket(Bucket::at(origin, "/assets", "bucket"))
}
