//! Error documents, and other answers of the proxy itself.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    HeaderName, AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE,
    EXPIRES, RETRY_AFTER, TRANSFER_ENCODING,
};
use http::{HeaderValue, Response, StatusCode};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::auth::Admitted;
use super::cache_key::requested_path;
use crate::http::caching::CACHE_NAME;
use crate::http::rules::cache_status::CacheStatus;
use crate::http::trace::RequestId;
use crate::http::{classify_send_error, CachingCtx, HttpCaching};
use crate::s3::S3Error;

/// Limits of reading a refused request body.
const DISCARDED_LEN: usize = 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
const XML: &str = "application/xml";

/// The field that names a request in the logs.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// The fields of an origin's error that clients receive. All others describe the bucket or S3's own
/// document, which clients do not receive. `Content-Range` is kept for a 416; it has the length of
/// the object.
const KEPT: [HeaderName; 9] = [
    AGE,
    CACHE_CONTROL,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    DATE,
    EXPIRES,
    RETRY_AFTER,
    HeaderName::from_static("x-amz-id-2"),
    REQUEST_ID,
];

/// The client that an answer is for.
#[derive(Clone, Copy)]
pub(super) struct Recipient<'a> {
    pub(super) admitted: &'a Admitted,
    /// The state of its request.
    pub(super) ctx: &'a CachingCtx,
}

/// The document of an error. `header` is made to describe it, and nothing else.
///
/// S3's own error documents name the bucket, the access key and, after a failed signature, the
/// signed text. Clients of the proxy must not see them.
pub(super) fn document(
    request: &RequestHeader,
    header: &mut ResponseHeader,
    error: &S3Error,
) -> Result<Bytes> {
    let request_id = name(header)?;
    let body = Bytes::from(error.to_xml(&requested_path(request), &request_id));
    describe(header, XML, &body)?;
    if header.status == StatusCode::METHOD_NOT_ALLOWED {
        header.insert_header(ALLOW, "GET, HEAD")?;
    }
    Ok(body)
}

/// The name of the request in its response, which has one from now on.
pub(super) fn name(header: &mut ResponseHeader) -> Result<String> {
    let request_id = header.headers.get(&REQUEST_ID);
    Ok(match request_id.and_then(|id| id.to_str().ok()) {
        // The operator of the origin finds the request by this name.
        Some(id) => id.to_owned(),
        None => {
            let id = RequestId::random();
            header.insert_header(REQUEST_ID, id.as_bytes())?;
            id.as_str().to_owned()
        }
    })
}

/// See [`CachingOptions::error_body`](crate::http::CachingOptions::error_body).
pub(super) fn of_cache(request: &RequestHeader, header: &mut ResponseHeader) -> Result<Bytes> {
    document(request, header, &S3Error::of_status(header.status))
}

/// Remove what describes an origin's own document.
pub(super) fn strip(header: &mut ResponseHeader) {
    keep(header, &KEPT);
}

/// Replace an origin's error. `header` is made to describe the returned document, and nothing else.
pub(super) fn replace(
    request: &RequestHeader,
    header: &mut ResponseHeader,
    error: &S3Error,
) -> Result<Bytes> {
    keep(header, &KEPT);
    if header.status != StatusCode::RANGE_NOT_SATISFIABLE {
        header.remove_header(&CONTENT_RANGE);
    }
    document(request, header, error)
}

/// Make `header` describe a document that is rewritten piece by piece, and nothing else.
pub(super) fn rewrite(header: &mut ResponseHeader) -> Result<()> {
    keep(header, &KEPT);
    for name in [AGE, CONTENT_LENGTH, CONTENT_RANGE] {
        header.remove_header(&name);
    }
    header.insert_header(CONTENT_TYPE, XML)?;
    header.insert_header(TRANSFER_ENCODING, "chunked")
}

fn keep(header: &mut ResponseHeader, kept: &[HeaderName]) {
    let names = header.headers.keys();
    let others: Vec<_> = names.filter(|name| !kept.contains(name)).cloned().collect();
    for name in others {
        header.remove_header(&name);
    }
}

/// Answer with a document.
pub(super) async fn respond_document(
    caching: &HttpCaching,
    session: &mut Session,
    document: String,
    to: Recipient<'_>,
) -> Result<()> {
    let body = Bytes::from(document);
    let mut header = ResponseHeader::build(StatusCode::OK, Some(4))?;
    describe(&mut header, XML, &body)?;
    header.insert_header(REQUEST_ID, RequestId::random().as_bytes())?;
    to.admitted.describe(&mut header)?;
    caching.add_own_fields(session, &mut header, to.ctx)?;
    send(session, header, body).await
}

fn describe(header: &mut ResponseHeader, media_type: &str, body: &Bytes) -> Result<()> {
    header.insert_header(CONTENT_TYPE, media_type)?;
    header.insert_header(CONTENT_LENGTH, body.len())
}

/// A response of plain text, for the listeners of operators.
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

/// Answer a request with an error.
pub(super) async fn respond(
    caching: &HttpCaching,
    session: &mut Session,
    error: &S3Error,
    to: Recipient<'_>,
) -> Result<()> {
    let mut header = ResponseHeader::build(error.status, Some(5))?;
    to.admitted.describe(&mut header)?;
    // Boxed, because few requests come here.
    Box::pin(respond_with(caching, session, header, error, to)).await
}

/// Answer with an error. `header` may have further fields.
pub(super) async fn respond_with(
    caching: &HttpCaching,
    session: &mut Session,
    mut header: ResponseHeader,
    error: &S3Error,
    to: Recipient<'_>,
) -> Result<()> {
    caching.add_own_fields(session, &mut header, to.ctx)?;
    let body = document(session.req_header(), &mut header, error)?;
    send(session, header, body).await
}

/// Answer with a remembered status of the origin, which is valid for `left`.
pub(super) async fn respond_remembered(
    caching: &HttpCaching,
    session: &mut Session,
    error: &S3Error,
    left: Duration,
    to: Recipient<'_>,
) -> Result<()> {
    let mut header = ResponseHeader::build(error.status, Some(6))?;
    label_remembered(&mut header, left)?;
    to.admitted.describe(&mut header)?;
    respond_with(caching, session, header, error, to).await
}

/// State that an answer was remembered, and is valid for `left`.
pub(super) fn label_remembered(header: &mut ResponseHeader, left: Duration) -> Result<()> {
    let cache_status = CacheStatus {
        ttl: i64::try_from(left.as_secs()).ok(),
        ..CacheStatus::hit(CACHE_NAME)
    };
    header.insert_header("Cache-Status", cache_status.to_value()?)?;
    header.insert_header("X-Cache", "HIT")
}

pub(super) async fn send(session: &mut Session, header: ResponseHeader, body: Bytes) -> Result<()> {
    let no_body = session.req_header().method == http::Method::HEAD;
    let sent = session
        .write_response_header(Box::new(header), no_body)
        .await;
    sent.map_err(classify_send_error)?;
    let body = (!no_body).then_some(body);
    let sent = session.write_response_body(body, true).await;
    sent.map_err(classify_send_error)?;
    if session.as_downstream().is_http2() {
        discard_body(session).await;
    }
    Ok(())
}

/// Read a part of an unwanted request body. If the session ended before the request, the stream
/// would be reset (RFC 9113 §8.1), and a client that receives the reset together with the response
/// could take the response for truncated.
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
        let error = S3Error::of_status(StatusCode::FORBIDDEN);
        let body = replace(&request(), &mut header, &error).unwrap();
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
        assert_eq!(header.headers[CONTENT_LENGTH], body.len().to_string());
        let document = std::str::from_utf8(&body).unwrap();
        assert!(document.contains("<RequestId>1</RequestId>"), "{document}");
    }

    fn request() -> RequestHeader {
        RequestHeader::build("GET", b"/a", None).unwrap()
    }

    #[test]
    fn an_error_of_the_proxy_has_a_request_id_of_its_own() {
        let ids: Vec<_> = (0..2)
            .map(|_| {
                let mut header = ResponseHeader::build(404, None).unwrap();
                let body = of_cache(&request(), &mut header).unwrap();
                let id = header.headers[REQUEST_ID].to_str().unwrap().to_owned();
                let document = std::str::from_utf8(&body).unwrap();
                assert!(document.contains(&format!("<RequestId>{id}</RequestId>")));
                assert!(document.contains("<Resource>/a</Resource>"), "{document}");
                id
            })
            .collect();
        assert_ne!(ids[0], ids[1]);
    }

    /// RFC 9110 §15.5.17
    #[test]
    fn a_416_keeps_the_length_of_the_object() {
        let mut header = ResponseHeader::build(416, None).unwrap();
        header.append_header("Content-Range", "bytes */10").unwrap();
        let error = S3Error::of_status(header.status);
        replace(&request(), &mut header, &error).unwrap();
        assert_eq!(header.headers[CONTENT_RANGE], "bytes */10");
    }
}
