//! HTTP caching (RFC 9111) for any proxy on Pingora, and what it needs of HTTP
//! semantics (RFC 9110).
//!
//! - [`caching`]: what a proxy calls in each of Pingora's phases
//! - [`freshness`], [`storing`]: how long a response may be used, whether it is stored
//! - [`target`]: target URIs, and what an unsafe method invalidates
//! - [`background`], [`range_fills`]: fetching whole objects because parts were asked for
//! - [`cache_status`]: what the client is told
//! - `heads`: answers to HEAD, which are kept by themselves
//! - [`origin_turns`]: the limit of requests to the origin
//! - [`rest`]: the rest of a response that is fetched by itself
//!
//! Nothing here knows of S3 or of a configuration file.

pub mod age;
pub mod background;
pub mod cache_control;
pub mod cache_status;
pub mod caching;
pub mod conditional;
pub mod date;
pub mod etag;
pub mod fields;
mod fill_lock;
pub mod freshness;
mod heads;
pub mod origin_turns;
mod prepared;
pub mod range;
pub mod range_fills;
mod request_body;
pub mod rest;
pub mod storing;
pub mod target;
mod too_large;
mod variants;
pub mod vary;

pub use background::BackgroundFills;
pub use caching::{CachingCtx, CachingOptions, HttpCaching, OwnRequest, Probe, ServedStale};
pub use fill_lock::FillLock;
pub(crate) use request_body::sends_body;
pub use storing::StoringRules;
