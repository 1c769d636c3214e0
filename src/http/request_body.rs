//! Requests whose end tells that they have no body.

use std::future::Future;
use std::time::Duration;

use http::Method;
use pingora_core::Result;
use pingora_proxy::Session;

/// Longest wait for the end of a request that has no body.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a GET or HEAD has a body, which only its end may tell: over HTTP/2 an
/// empty DATA frame with END_STREAM, as Node.js sends it. What is received of a body
/// stays to be read. Other methods are not waited for.
pub(super) async fn has_body(session: &mut Session) -> bool {
    if session.is_body_empty() {
        return false;
    }
    if !matches!(session.req_header().method, Method::GET | Method::HEAD) {
        return true;
    }
    // Boxed: few requests come to this.
    Box::pin(within_time(session.as_downstream_mut().wait_for_body())).await
}

/// As [`has_body`], for a request of which no body is passed on, whatever its method:
/// the first piece of one is dropped. Over HTTP/1 a body of no chunks is none.
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

/// What cannot be read is a body.
async fn within_time(has_body: impl Future<Output = Result<bool>>) -> bool {
    match tokio::time::timeout(END_TIMEOUT, has_body).await {
        Ok(Ok(has_body)) => has_body,
        Ok(Err(_)) | Err(_) => true,
    }
}
