//! HTTP caching rules that do not depend on what is cached (RFC 9111), and the
//! parts of HTTP that they read (RFC 9110).

pub mod age;
pub mod cache_control;
pub mod conditional;
pub mod date;
pub mod etag;
pub mod fields;
pub mod freshness;
pub mod range;
pub mod storing;
pub mod vary;

pub use freshness::is_from_the_future;
pub use storing::{storable, DefaultTtl};
