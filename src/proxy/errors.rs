//! What clients read when something is refused.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    HeaderName, AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE,
    EXPIRES, RETRY_AFTER,
};
use http::{HeaderValue, Response, StatusCode};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::http::cache_status::CacheStatus;
use crate::http::caching::CACHE_NAME;

/// Limits of reading a refused request body.
const DISCARDED_LEN: usize = 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// The fields of an origin's error that clients see. All others describe the bucket, or
/// S3's own document, which clients do not get. `Content-Range` is that of a 416, and has
/// the length of the object.
const KEPT: [HeaderName; 9] = [
    AGE,
    CACHE_CONTROL,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    DATE,
    EXPIRES,
    RETRY_AFTER,
    HeaderName::from_static("x-amz-id-2"),
    HeaderName::from_static("x-amz-request-id"),
];

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

/// Make `header`, that of an origin's error, describe `body` and nothing else.
pub(super) fn replace(header: &mut ResponseHeader, body: &Bytes) -> Result<()> {
    let others: Vec<HeaderName> = header
        .headers
        .keys()
        .filter(|name| !KEPT.contains(name))
        .cloned()
        .collect();
    for name in others {
        header.remove_header(&name);
    }
    if header.status != StatusCode::RANGE_NOT_SATISFIABLE {
        header.remove_header(&CONTENT_RANGE);
    }
    describe(header, PLAIN_TEXT, body)
}

fn describe(header: &mut ResponseHeader, media_type: &str, body: &Bytes) -> Result<()> {
    header.insert_header(CONTENT_TYPE, media_type)?;
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
    answer(session, status, PLAIN_TEXT, text).await
}

/// Answer in the form of S3's errors ("Error responses", Amazon S3 API Reference), for
/// errors that S3 clients parse.
pub(super) async fn respond_as_s3(
    session: &mut Session,
    status: StatusCode,
    code: &str,
    message: &str,
) -> Result<()> {
    let document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    answer(session, status, "application/xml", document.into()).await
}

/// Answer with a remembered status of the origin, which may be used for `left`.
pub(super) async fn respond_remembered(
    session: &mut Session,
    status: StatusCode,
    left: Duration,
) -> Result<()> {
    let body = body(status);
    let mut header = ResponseHeader::build(status, Some(4))?;
    describe(&mut header, PLAIN_TEXT, &body)?;
    let cache_status = CacheStatus {
        ttl: i64::try_from(left.as_secs()).ok(),
        ..CacheStatus::hit(CACHE_NAME)
    };
    header.insert_header("Cache-Status", cache_status.to_value()?)?;
    header.insert_header("X-Cache", "HIT")?;
    send(session, header, body).await
}

async fn answer(
    session: &mut Session,
    status: StatusCode,
    media_type: &str,
    body: Bytes,
) -> Result<()> {
    let mut header = ResponseHeader::build(status, Some(4))?;
    describe(&mut header, media_type, &body)?;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        header.insert_header(ALLOW, "GET, HEAD")?;
    }
    send(session, header, body).await
}

async fn send(session: &mut Session, header: ResponseHeader, body: Bytes) -> Result<()> {
    let no_body = session.req_header().method == http::Method::HEAD;
    session
        .write_response_header(Box::new(header), no_body)
        .await?;
    let body = (!no_body).then_some(body);
    session.write_response_body(body, true).await?;
    if session.as_downstream().is_http2() {
        discard_body(session).await;
    }
    Ok(())
}

/// Read some of an unwanted request body. If the session is dropped before the client has
/// ended the stream, the stream is reset (RFC 9113 §8.1), and a client that receives the
/// reset together with the response takes the response for broken off.
async fn discard_body(session: &mut Session) {
    let downstream = session.as_downstream_mut();
    if downstream.is_body_done() {
        return;
    }
    let discard = async {
        let mut left = DISCARDED_LEN;
        while let Ok(Some(piece)) = downstream.read_request_body().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    };
    // Boxed, because few requests come here.
    let _ = Box::pin(tokio::time::timeout(DISCARD_TIMEOUT, discard)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_nothing_of_the_document_that_it_had() {
        let mut header = ResponseHeader::build(403, None).unwrap();
        for (name, value) in [
            ("Content-Encoding", "gzip"),
            ("Content-MD5", "AAAA"),
            ("Content-Disposition", "attachment"),
            ("Content-Language", "de"),
            ("Content-Range", "bytes */10"),
            ("Content-Type", "application/xml"),
            ("Content-Length", "321"),
            ("Transfer-Encoding", "chunked"),
            ("ETag", "\"a\""),
            ("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT"),
            ("Set-Cookie", "a=b"),
            ("WWW-Authenticate", "Basic"),
            ("x-amz-bucket-region", "eu-central-1"),
            ("x-minio-error-desc", "\"secret\""),
            ("Date", "Sat, 28 Nov 2026 00:00:00 GMT"),
            ("Retry-After", "5"),
            ("x-amz-request-id", "1"),
        ] {
            header.append_header(name, value).unwrap();
        }
        replace(&mut header, &body(StatusCode::FORBIDDEN)).unwrap();
        let mut names: Vec<_> = header.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        let expected = [
            "content-length",
            "content-type",
            "date",
            "retry-after",
            "x-amz-request-id",
        ];
        assert_eq!(names, expected);
        assert_eq!(header.headers[CONTENT_LENGTH], "14");
    }

    /// RFC 9110 §15.5.17
    #[test]
    fn a_416_keeps_the_length_of_the_object() {
        let mut header = ResponseHeader::build(416, None).unwrap();
        header.append_header("Content-Range", "bytes */10").unwrap();
        replace(&mut header, &Bytes::new()).unwrap();
        assert_eq!(header.headers[CONTENT_RANGE], "bytes */10");
    }
}
