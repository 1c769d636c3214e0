//! Support for the integration tests, so that each reads as a story: the origin
//! holds X, the client asks for Y and sees Z, a metric says N.
//!
//! Everything here serves tests: what the test did not ask for (a proxy that
//! does not start, a response that breaks HTTP's framing) panics with the
//! reason; what a test may ask for (a body cut short) is part of the answer.

#![forbid(unsafe_code)]

mod any_certificate;
mod cache_status;
mod client;
mod config;
mod content;
pub mod date;
mod entry_files;
pub mod fuse;
mod gate;
mod head;
mod metrics;
mod origin;
mod proxy;
mod random;
mod reply;
mod rules;
mod site;
mod skip;
#[cfg(target_os = "linux")]
mod terminal;
mod tls;
mod token;
mod wait;
mod wire;

pub use any_certificate::AnyCertificate;
pub use cache_status::CacheStatus;
pub use client::{
    encode_key, get, head, request, try_get, Connection, Incoming, Interim, Response, Transfer,
};
pub use config::{Bucket, ProxyBuilder, BACKEND};
pub use content::{pattern, sha256, Pattern};
pub use entry_files::entry_files;
pub use fuse::{FaultyDisk, Op};
pub use gate::Gate;
pub use head::Headers;
pub use metrics::Metrics;
pub use origin::{Origin, Request};
pub use proxy::{piped, Proxy, Retiring};
pub use random::Random;
pub use reply::Reply;
pub use rules::{Rules, Use};
pub use site::{example, raise_descriptor_limit, Page, Site};
pub use skip::skip;
#[cfg(target_os = "linux")]
pub use terminal::Terminal;
pub use tls::{https_client, pem, rsa_key, Authority, HttpVersion, Issued, SelfSigned};
pub use token::{TokenKey, RSA_KEY};
pub use wait::{eventually, eventually_ok};

/// The time that anything here waits for a peer before the test fails.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
