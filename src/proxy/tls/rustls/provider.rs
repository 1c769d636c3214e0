//! The library of ciphers.

#[cfg(feature = "aws-lc")]
pub(super) use rustls::crypto::aws_lc_rs::{default_provider, Ticketer};
#[cfg(not(feature = "aws-lc"))]
pub(super) use rustls::crypto::ring::{default_provider, Ticketer};
