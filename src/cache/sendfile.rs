//! Which hits may skip user space, and what carries them.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_cache::{CacheKey, CacheMeta};
use pingora_core::Result;

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
    /// `Ok(None)`: no such entry, or [`SendfileConfig`](crate::cache::SendfileConfig) says to copy it.
    /// Freshness is for the caller to judge.
    async fn get_sendfile(&'static self, key: &CacheKey) -> Result<Option<SendfileResponse>>;
}
