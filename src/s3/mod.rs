//! The S3 side of the proxy: object keys, where a bucket lives, and request
//! signatures.

pub mod key;
pub mod origin;
pub mod sign;

pub use key::{KeyError, ObjectKey};
pub use origin::{Endpoint, Origin, OriginError, RouteError, Router};
pub use sign::{SignError, Signer};
