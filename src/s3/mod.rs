//! The S3 side of the proxy: what a request means, object keys, where a bucket lives, its
//! credentials, and the signatures of requests, those to an origin and those of clients.

pub mod change;
pub mod credentials;
pub mod error;
pub mod fault;
pub mod key;
pub mod list;
pub mod origin;
pub mod prefixes;
pub mod proof;
pub mod request;
pub mod router;
pub mod sign;
pub mod verify;

pub use aws_credential_types::Credentials;
pub use change::{Change, DeletedKeys, DeletedObject};
pub use credentials::{Lookup, OriginCredentials, Refreshed, Role};
pub use error::{Code, S3Error};
pub use fault::Fault;
pub use key::{encode_value, KeyError, ObjectKey};
pub use list::{ListError, ListRewriter};
pub use origin::{Bucket, ConnectionOptions, Origin, S3Endpoint, Verify};
pub use prefixes::KeyPrefixes;
pub use proof::{Proof, Signed};
pub use request::{Operation, S3Request, Target};
pub use router::{decode_unreserved, RouteError, Router, Site};
pub use sign::{SignError, Signer};
