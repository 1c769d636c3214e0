//! Rules of HTTP (RFC 9110) and of HTTP caching (RFC 9111): parsers and decisions.
//!
//! Each module reads header fields and returns a value. None of them knows a session,
//! Pingora's phases or the disk cache.

pub mod accept_encoding;
pub mod age;
pub mod cache_control;
pub mod cache_status;
pub mod conditional;
pub mod date;
pub mod etag;
pub mod fields;
pub mod freshness;
pub mod range;
pub mod request;
pub mod storing;
pub mod target;
pub mod vary;
