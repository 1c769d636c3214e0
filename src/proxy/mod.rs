//! The S3 caching proxy as a Pingora application.

#[cfg(feature = "s3-proxy")]
pub mod access_log;
#[cfg(feature = "s3-proxy")]
mod activation;
#[cfg(feature = "s3-proxy")]
pub mod admin;
#[cfg(feature = "s3-proxy")]
mod ask;
#[cfg(feature = "s3-proxy")]
mod auth;
#[cfg(feature = "s3-proxy")]
mod authorities;
#[cfg(feature = "s3-proxy")]
mod bucket_rules;
#[cfg(feature = "s3-proxy")]
mod buckets;
#[cfg(feature = "s3-proxy")]
mod cache_key;
#[cfg(feature = "s3-proxy")]
pub mod control;
pub mod descriptors;
#[cfg(feature = "s3-proxy")]
mod dot_segments;
#[cfg(feature = "s3-proxy")]
mod errors;
#[cfg(feature = "s3-proxy")]
mod front;
#[cfg(feature = "s3-proxy")]
pub mod health;
#[cfg(feature = "s3-proxy")]
mod host;
pub mod http1;
#[cfg(feature = "s3-proxy")]
pub(crate) mod limits;
pub mod listener;
#[cfg(feature = "s3-proxy")]
pub mod memory;
#[cfg(feature = "s3-proxy")]
mod negative_cache;
#[cfg(feature = "s3-proxy")]
mod notify;
#[cfg(feature = "s3-proxy")]
mod origin_health;
#[cfg(feature = "s3-proxy")]
mod passthrough;
#[cfg(feature = "s3-proxy")]
pub mod preflight;
#[cfg(feature = "s3-proxy")]
mod redirect;
#[cfg(feature = "s3-proxy")]
mod reload;
#[cfg(feature = "s3-proxy")]
mod resolve;
#[cfg(feature = "s3-proxy")]
mod retries;
#[cfg(feature = "s3-proxy")]
mod route;
#[cfg(feature = "s3-proxy")]
mod rules;
#[cfg(feature = "s3-proxy")]
mod s3_proxy;
#[cfg(feature = "s3-proxy")]
mod send_buffer;
pub mod serve;
#[cfg(feature = "s3-proxy")]
pub mod server;
#[cfg(feature = "s3-proxy")]
mod settings;
pub mod signals;
#[cfg(feature = "s3-proxy")]
mod socket;
#[cfg(feature = "s3-proxy")]
pub mod status;
#[cfg(feature = "s3-proxy")]
mod tls;
#[cfg(feature = "s3-proxy")]
mod top_keys;
#[cfg(feature = "s3-proxy")]
#[cfg_attr(not(feature = "otlp"), path = "traces_off.rs")]
mod traces;
#[cfg(feature = "s3-proxy")]
pub mod upgrade;
#[cfg(feature = "s3-proxy")]
mod warm;
#[cfg(feature = "s3-proxy")]
pub(crate) mod way;
#[cfg(feature = "s3-proxy")]
mod web;

#[cfg(feature = "s3-proxy")]
pub use access_log::AccessLog;
#[cfg(feature = "s3-proxy")]
pub use admin::AdminApp;
#[cfg(feature = "s3-proxy")]
pub use cache_key::CacheKeys;
pub use listener::Listener;
#[cfg(feature = "s3-proxy")]
pub use s3_proxy::S3ProxyHttp;
pub use serve::serve_with_sendfile;
#[cfg(feature = "s3-proxy")]
pub use settings::{Settings, SharedSettings};
#[cfg(feature = "s3-proxy")]
pub use traces::Tracer;
