//! Which hits may skip user space, and what carries them.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_cache::{CacheKey, CacheMeta};
use pingora_core::Result;

/// When bodies go by `sendfile(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendfileConfig {
    /// Off: every body is copied through user space.
    pub enabled: bool,
    /// Bodies larger than this go by sendfile, in bytes. Smaller ones are kept in
    /// memory, and leave together with their header, in one write. A copy from the
    /// page cache is dearer than sendfile at any size; see
    /// `benches/sendfile_proxy`.
    pub threshold_bytes: u64,
}

impl Default for SendfileConfig {
    fn default() -> Self {
        SendfileConfig {
            enabled: cfg!(target_os = "linux"),
            threshold_bytes: 16 * 1024,
        }
    }
}

impl SendfileConfig {
    /// Whether a stored body of `body_len` bytes goes by sendfile, whole or in
    /// ranges.
    pub fn applies_to(&self, body_len: u64) -> bool {
        self.enabled && body_len > self.threshold_bytes
    }
}

/// A cached response whose body can leave without a copy.
///
/// Carries the open file, never a path to be opened later: eviction unlinks and
/// refills rename, but an open file keeps the bytes that belong to `meta`.
#[derive(Debug)]
pub struct SendfileResponse {
    /// The stored response header and its freshness.
    pub meta: CacheMeta,
    /// The stored body, from its first byte.
    pub file: Arc<File>,
    /// Length of the stored body, in bytes.
    pub len: u64,
}

/// A storage that can hand out whole entries as open files.
#[async_trait]
pub trait SendfileCapable {
    /// The entry for `key`, if there is one and its body may go by sendfile.
    ///
    /// `Ok(None)`: no such entry, or [`SendfileConfig`] says to copy it.
    /// Freshness is for the caller to judge.
    async fn get_sendfile(&'static self, key: &CacheKey) -> Result<Option<SendfileResponse>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_is_exclusive_and_the_switch_wins() {
        let config = SendfileConfig {
            enabled: true,
            threshold_bytes: 100,
        };
        assert!(!config.applies_to(100));
        assert!(config.applies_to(101));
        let off = SendfileConfig {
            enabled: false,
            ..config
        };
        assert!(!off.applies_to(u64::MAX));
    }
}
