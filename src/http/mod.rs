//! HTTP caching rules that do not depend on what is cached (RFC 9111).

pub mod storing;

pub use storing::{storable, DefaultTtl};
