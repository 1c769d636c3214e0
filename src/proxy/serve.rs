//! For proxies that answer from the cache by themselves.

use http::header::{ACCEPT_RANGES, AGE, CONTENT_LENGTH};
use http::Method;
use pingora_core::Result;
use pingora_proxy::Session;

use crate::cache::SendfileResponse;

/// Answer with a cached response, the whole of it; call it from
/// [`ProxyHttp::request_filter`](pingora_proxy::ProxyHttp::request_filter).
///
/// Returns how many body bytes were sent. They go by sendfile if the session and
/// its modules allow that, and are copied otherwise. Ranges, conditions and
/// freshness are the caller's business: Pingora's own cache-hit path, which
/// [`S3ProxyHttp`](super::S3ProxyHttp) uses, sees to them.
pub async fn serve_with_sendfile(
    session: &mut Session,
    response: &SendfileResponse,
) -> Result<u64> {
    let mut header = response.meta.response_header_copy();
    header.insert_header(CONTENT_LENGTH, response.len)?;
    header.insert_header(AGE, response.meta.age().as_secs())?;
    header.insert_header(ACCEPT_RANGES, "bytes")?;
    let no_body = session.req_header().method == Method::HEAD;
    session
        .write_response_header(Box::new(header), no_body)
        .await?;
    if no_body {
        return Ok(0);
    }
    let sent = session
        .write_file_body(&response.file, 0, response.len)
        .await?;
    session.write_response_body(None, true).await?;
    Ok(sent.unwrap_or(0))
}
