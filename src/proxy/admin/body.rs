//! The body of a request of an operator.

use std::time::Duration;

use http::{Response, StatusCode};
use pingora_core::protocols::http::ServerSession;

use crate::proxy::errors::text;

/// The longest time for the whole of a body.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Read the body of a request, which is a text of at most `max` bytes.
///
/// # Errors
/// The response to a request whose body is too long, too slow or no text. The connection ends with it.
pub(super) async fn read(
    session: &mut ServerSession,
    max: usize,
) -> Result<String, Response<Vec<u8>>> {
    let read = async {
        let mut body = Vec::new();
        loop {
            match session.read_request_body().await {
                Ok(Some(piece)) if body.len() + piece.len() > max => {
                    return Err((StatusCode::PAYLOAD_TOO_LARGE, "the body is too long\n"))
                }
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => return Ok(body),
                Err(_) => return Err((StatusCode::BAD_REQUEST, "the body breaks off\n")),
            }
        }
    };
    let slow = (StatusCode::REQUEST_TIMEOUT, "the body comes too slowly\n");
    let read = tokio::time::timeout(TIMEOUT, read).await;
    let body = read.unwrap_or(Err(slow)).and_then(|body| {
        let no_text = (StatusCode::BAD_REQUEST, "the body is not UTF-8\n");
        String::from_utf8(body).map_err(|_| no_text)
    });
    body.map_err(|(status, why)| {
        session.set_keepalive(None);
        text(status, why)
    })
}
