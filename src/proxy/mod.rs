//! The S3 caching proxy as a Pingora application.

pub mod admin;
mod auth;
mod authorities;
mod buckets;
mod cache_key;
pub mod descriptors;
mod dot_segments;
mod errors;
pub mod http1;
pub mod listener;
pub mod memory;
mod negative_cache;
mod passthrough;
pub mod preflight;
mod request_id;
mod resolve;
mod retries;
mod route;
mod rules;
mod s3_proxy;
mod send_buffer;
pub mod serve;
pub mod server;
pub mod signals;

pub use admin::AdminApp;
pub use cache_key::CacheKeys;
pub use listener::Listener;
pub use s3_proxy::S3ProxyHttp;
pub use serve::serve_with_sendfile;
