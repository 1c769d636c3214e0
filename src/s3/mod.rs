//! The S3 side of the proxy: object keys, where a bucket lives, its credentials, and
//! request signatures.

pub mod credentials;
pub mod key;
pub mod origin;
pub mod sign;
pub mod sub_resource;

pub use aws_credential_types::Credentials;
pub use credentials::{Lookup, OriginCredentials, Refreshed, Role};
pub use key::{KeyError, ObjectKey};
pub use origin::{decode_unreserved, Bucket, Endpoint, Origin, RouteError, Router};
pub use sign::{SignError, Signer};
pub use sub_resource::sub_resource_of;
