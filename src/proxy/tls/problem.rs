//! Problems with certificates and keys.

/// The problem with a certificate or a key, and the remedy.
pub(in crate::proxy) type Unusable = (String, &'static str);

/// The remedy for files with other content.
#[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
pub(super) const WRITE_PATHS: &str = "write the paths of PEM files, the certificate first";

/// The remedy for a certificate and a key that do not belong together.
#[cfg(any(feature = "rustls", feature = "openssl", feature = "boringssl"))]
pub(super) const WRITE_A_PAIR: &str = "write a certificate and its own private key";
