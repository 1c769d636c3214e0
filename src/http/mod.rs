//! HTTP caching rules that do not depend on what is cached (RFC 9111).

pub mod freshness;
pub mod storing;

pub use freshness::is_from_the_future;
pub use storing::{storable, DefaultTtl};
