//! The S3 side of the proxy: object keys, where a bucket lives, and request
//! signatures.

pub mod key;
pub mod origin;
pub mod sign;
pub mod sub_resource;

pub use key::{KeyError, ObjectKey};
pub use origin::{decode_unreserved, Endpoint, Origin, OriginError, RouteError, Router};
pub use sign::{SignError, Signer};
pub use sub_resource::sub_resource_of;
