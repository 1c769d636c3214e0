//! The S3 side of the proxy: object keys, where a bucket lives, its credentials, and the
//! signatures of requests, those to an origin and those of clients.

pub mod credentials;
pub mod key;
pub mod origin;
pub mod prefixes;
pub mod sign;
pub mod sub_resource;
pub mod verify;

pub use aws_credential_types::Credentials;
pub use credentials::{Lookup, OriginCredentials, Refreshed, Role};
pub use key::{KeyError, ObjectKey};
pub use origin::{decode_unreserved, Bucket, Endpoint, Origin, RouteError, Router};
pub use prefixes::KeyPrefixes;
pub use sign::{SignError, Signer};
pub use sub_resource::sub_resource_of;
