//! The S3 side of the proxy.
//!
//! - [`request`], [`key`], [`list`], [`change`]: the meaning of requests
//! - [`router`], [`origin`], [`prefixes`]: buckets and their addresses
//! - [`credentials`], [`sign`]: requests to an origin
//! - [`verify`], [`proof`]: signatures of clients
//! - [`error`], [`fault`]: error documents, sent and received

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
pub use list::{ListError, ListPage, ListReader, ListRewriter, Listed};
pub use origin::{Bucket, ConnectionOptions, Origin, S3Endpoint, Verify};
pub use prefixes::KeyPrefixes;
pub use proof::{Proof, Signed};
pub use request::{Operation, S3Request, Target};
pub use router::{decode_unreserved, RouteError, Router, Site};
pub use sign::{SignError, Signer};
