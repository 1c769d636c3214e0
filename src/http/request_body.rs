//! Request bodies. Sometimes only the end of a request shows that it has none.

use std::future::Future;
use std::time::Duration;

use http::Method;
use pingora_core::Result;
use pingora_proxy::Session;

/// The longest wait for the end of a request without a body.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// True if a GET or HEAD has a body. Sometimes only the end of the request tells: over HTTP/2,
/// Node.js sends an empty DATA frame with END_STREAM. Received bytes of a body can still be read
/// afterwards. For other methods, this does not wait.
pub(super) async fn has_body(session: &mut Session) -> bool {
    if session.is_body_empty() {
        return false;
    }
    if !matches!(session.req_header().method, Method::GET | Method::HEAD) {
        return true;
    }
    // Boxed, because few requests come here.
    Box::pin(within_time(session.as_downstream_mut().wait_for_body())).await
}

/// Like [`has_body`], for any method, if the body is not forwarded: its first piece is dropped. An
/// empty chunked body counts as none.
#[cfg(feature = "s3-proxy")]
pub(crate) async fn sends_body(session: &mut Session) -> bool {
    if session.is_body_empty() {
        return false;
    }
    let downstream = session.as_downstream_mut();
    Box::pin(within_time(async {
        while let Some(piece) = downstream.read_request_body().await? {
            if !piece.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }))
    .await
}

/// A request that cannot be read counts as one with a body.
async fn within_time(has_body: impl Future<Output = Result<bool>>) -> bool {
    match tokio::time::timeout(END_TIMEOUT, has_body).await {
        Ok(Ok(has_body)) => has_body,
        Ok(Err(_)) | Err(_) => true,
    }
}
