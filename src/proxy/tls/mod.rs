//! The parts that depend on the TLS library that Pingora is built with.
//!
//! Each backend has the same items:
//! - `AVAILABLE`: whether TLS works at all
//! - `Authority`: a certificate of an authority, and `authority`, which makes one from DER
//! - `authorities`: the set of them, as a peer takes it
//! - `check_pair`: a certificate chain and its key, as the listener will load them
//! - `limit_write_buffer`: how far a listener encrypts ahead of its clients

#[cfg(all(
    feature = "s2n",
    not(any(feature = "rustls", feature = "openssl", feature = "boringssl"))
))]
compile_error!(
    "s3-proxy does not support s2n; choose the feature rustls, openssl or boringssl instead"
);

#[cfg(all(
    any(feature = "openssl", feature = "boringssl"),
    not(feature = "rustls")
))]
mod openssl;
#[cfg(feature = "rustls")]
mod rustls;
#[cfg(not(any(feature = "rustls", feature = "openssl", feature = "boringssl")))]
mod unavailable;

#[cfg(all(
    any(feature = "openssl", feature = "boringssl"),
    not(feature = "rustls")
))]
pub(super) use openssl::*;
#[cfg(feature = "rustls")]
pub(super) use rustls::*;
#[cfg(not(any(feature = "rustls", feature = "openssl", feature = "boringssl")))]
pub(super) use unavailable::*;

/// A certificate and a key that cannot be used: the problem, and the remedy.
pub(super) type Unusable = (String, &'static str);

/// The remedy if the files hold something else.
#[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
const WRITE_PATHS: &str = "write the paths of PEM files, the certificate first";

/// The remedy if they do not belong together.
#[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
const WRITE_A_PAIR: &str = "write a certificate and its own private key";
