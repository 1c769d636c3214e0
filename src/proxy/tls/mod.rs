//! The parts that depend on the TLS library of Pingora.
//!
//! Each backend has the same items:
//! - `AVAILABLE`: true if TLS works at all
//! - `Authority`: the certificate of an authority; `authority` makes one from DER
//! - `authorities`: a set of them, as a peer takes it
//! - `install_provider`: choose the ciphers of the whole process, before Pingora does
//! - `check`: check the files of a listener as the listener will load them
//! - `warn_of_expiry`: log its certificates that clients refuse, or will refuse soon
//! - `listener`: the settings of a listener, and a `Reload`, which replaces its certificates while it
//!   serves, by itself and through its `Certificates`
//! - `lent_bytes`: encrypted bytes that wait for clients, beyond what each may have at any time
//! - `failure`: the reason that a handshake has failed, as a label of a metric
//! - `kernel_tls`: the support of kernel TLS in this build and the running kernel
//! - `enable_kernel_tls`: use it for the connections of a listener
//!
//! `certificate` reads what backends need to know of a certificate.

#[cfg(all(
    feature = "s2n",
    not(any(feature = "rustls", feature = "openssl", feature = "boringssl"))
))]
compile_error!(
    "s3-proxy does not support s2n; choose the feature rustls, openssl or boringssl instead"
);

#[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
mod certificate;
#[cfg(not(feature = "rustls"))]
mod no_reload;
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

#[cfg(not(feature = "rustls"))]
pub(super) use no_reload::*;
#[cfg(all(
    any(feature = "openssl", feature = "boringssl"),
    not(feature = "rustls")
))]
pub(super) use openssl::*;
pub(super) use problem::Unusable;
#[cfg(feature = "rustls")]
pub(super) use rustls::*;
#[cfg(not(any(feature = "rustls", feature = "openssl", feature = "boringssl")))]
pub(super) use unavailable::*;
