//! The parts that depend on the TLS library of Pingora.
//!
//! Each backend has the same items:
//! - `AVAILABLE`: true if TLS works at all
//! - `Authority`: the certificate of an authority; `authority` makes one from DER
//! - `authorities`: a set of them, as a peer takes it
//! - `install_provider`: choose the ciphers of the whole process, before Pingora does
//! - `check_pair`: check a certificate chain and its key as the listener will load them
//! - `listener`: the settings of a listener, of which each connection encrypts at most `write_buffer`
//!   bytes ahead of its client
//! - `kernel_tls`: the support of kernel TLS in this build and the running kernel
//! - `enable_kernel_tls`: use it for the connections of a listener

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
mod problem;
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
