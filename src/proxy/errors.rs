//! What clients read when something is refused.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// One line of plain text for a status.
///
/// S3's own error documents name the bucket, the access key and, after a failed
/// signature, what was signed. None of that is for the proxy's clients.
pub(super) fn body(status: StatusCode) -> Bytes {
    format!(
        "{} {}\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error")
    )
    .into()
}

/// Let `header` announce that text.
pub(super) fn describe(header: &mut ResponseHeader, body: &Bytes) -> Result<()> {
    header.remove_header("transfer-encoding");
    header.insert_header(CONTENT_TYPE, PLAIN_TEXT)?;
    header.insert_header(CONTENT_LENGTH, body.len())
}

/// A response of plain text, for the listeners that are not the clients'.
pub(super) fn text(status: StatusCode, text: impl Into<Vec<u8>>) -> Response<Vec<u8>> {
    let body = text.into();
    let len = body.len();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN_TEXT));
    headers.insert(CONTENT_LENGTH, len.into());
    response
}

/// Answer without asking the origin.
pub(super) async fn respond(
    session: &mut Session,
    status: StatusCode,
    detail: Option<&str>,
) -> Result<()> {
    let text = match detail {
        Some(detail) => Bytes::from(format!("{} {detail}\n", status.as_u16())),
        None => body(status),
    };
    let mut header = ResponseHeader::build(status, Some(4))?;
    describe(&mut header, &text)?;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        header.insert_header(ALLOW, "GET, HEAD")?;
    }
    let no_body = session.req_header().method == http::Method::HEAD;
    session
        .write_response_header(Box::new(header), no_body)
        .await?;
    let text = (!no_body).then_some(text);
    session.write_response_body(text, true).await
}
