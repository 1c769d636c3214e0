//! Hits whose body a caller sends by itself.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_cache::{CacheKey, CacheMeta};
use pingora_core::Result;

/// A cached response whose body can be sent without a copy.
///
/// It holds the open file, never a path to be opened later. Eviction unlinks files and refills
/// rename them, but an open file keeps the bytes that belong to `meta`.
///
/// [`serve_with_sendfile`](crate::proxy::serve_with_sendfile) sends it as the answer to a
/// request. For anything else there is
/// [`write_file_body`](pingora_proxy::Session::write_file_body):
///
/// ```no_run
/// # use pingora_core::Result;
/// # use pingora_proxy::Session;
/// use pingora_sendfile::cache::SendfileResponse;
///
/// async fn send(session: &mut Session, response: &SendfileResponse) -> Result<()> {
///     let mut header = response.meta.response_header_copy();
///     header.insert_header("Content-Length", response.len)?;
///     session.write_response_header(Box::new(header), false).await?;
///     session.write_file_body(&response.file, 0, response.len).await?;
///     session.write_response_body(None, true).await
/// }
/// ```
#[derive(Debug)]
pub struct SendfileResponse {
    /// The stored response header and its freshness.
    pub meta: CacheMeta,
    /// The stored body, from offset 0 on.
    pub file: Arc<File>,
    /// The length of the stored body, in bytes.
    pub len: u64,
}

/// A storage that hands out whole entries as open files.
#[async_trait]
pub trait SendfileCapable {
    /// The entry for `key`. The caller judges its freshness.
    ///
    /// `Ok(None)`: there is no such entry, or
    /// [`SendfileConfig`](crate::cache::SendfileConfig) says to copy its body.
    ///
    /// ```no_run
    /// # use pingora_core::Result;
    /// use pingora_cache::CacheKey;
    /// use pingora_sendfile::cache::{DiskCache, SendfileCapable};
    ///
    /// async fn stored_len(cache: &'static DiskCache, path: &str) -> Result<Option<u64>> {
    ///     let found = cache.get_sendfile(&CacheKey::new(path, "my-proxy")).await?;
    ///     Ok(found.map(|response| response.len))
    /// }
    /// ```
    async fn get_sendfile(&'static self, key: &CacheKey) -> Result<Option<SendfileResponse>>;
}
