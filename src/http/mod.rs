//! HTTP caching (RFC 9111) for any proxy on Pingora, with the HTTP semantics (RFC 9110) that it
//! needs.
//!
//! - [`caching`]: the callbacks of Pingora, and the state of a request
//! - [`rules`]: parsers and decisions that know no session
//! - [`range_fill`]: fetching whole objects after requests for parts
//! - [`remainder`]: fetching the remainder of a response for a client that leaves a fill
//! - [`warming`]: storing responses that no client has requested yet
//! - `head_cache`: responses to HEAD
//! - [`response_fields`]: a proxy's own rules for the header of its responses
//! - `request_body`: whether a request has a body
//! - `send_error`: the attribution of errors of sending a response
//! - [`trace`]: notes on a request, for a proxy that logs its requests
//! - `fill_lock`, [`origin_turns`], `too_large`, `variants`: limits on requests and on stored
//!   responses
//!
//! Nothing here knows of S3 or of a configuration file.

pub mod caching;
mod fill_lock;
mod head_cache;
#[cfg(test)]
pub(crate) mod heads_for_tests;
#[cfg(test)]
mod imports;
pub mod origin_turns;
pub mod range_fill;
pub mod remainder;
mod request_body;
pub mod response_fields;
pub mod rules;
mod send_error;
mod too_large;
pub mod trace;
mod variants;
pub mod warming;

pub use caching::{
    Ask, CachingCtx, CachingOptions, ClientAddress, Fetch, Form, HttpCaching, Probe,
    RelayedRequest, ServedStale,
};
pub use fill_lock::FillLock;
pub use range_fill::RangeFillLimits;
#[cfg(feature = "s3-proxy")]
pub(crate) use request_body::sends_body;
pub use rules::storing::StoringRules;
pub(crate) use send_error::classify_send_error;
