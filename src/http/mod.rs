//! HTTP caching (RFC 9111) for any proxy on Pingora, and what it needs of HTTP
//! semantics (RFC 9110).
//!
//! - [`caching`]: what a proxy calls in each of Pingora's phases
//! - [`rules`]: parsers and decisions
//! - [`range_fill`]: fetching whole objects because parts were asked for
//! - `head_cache`: answers to HEAD, which are kept by themselves
//! - [`origin_turns`]: the limit of requests to the origin
//! - [`remainder`]: the rest of a response that is fetched by itself
//!
//! Nothing here knows of S3 or of a configuration file.

pub mod caching;
mod fill_lock;
mod head_cache;
#[cfg(test)]
mod imports;
pub mod origin_turns;
pub mod range_fill;
pub mod remainder;
mod request_body;
pub mod rules;
mod too_large;
mod variants;

pub use caching::{CachingCtx, CachingOptions, HttpCaching, Probe, RelayedRequest, ServedStale};
pub use fill_lock::FillLock;
pub use range_fill::RangeFillLimits;
#[cfg(feature = "s3-proxy")]
pub(crate) use request_body::sends_body;
pub use rules::storing::StoringRules;
