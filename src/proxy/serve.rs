//! Responses from the cache for proxies that look entries up themselves.

use std::ops::Range;
use std::time::SystemTime;

use http::header::{
    ACCEPT_RANGES, AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE,
    TRANSFER_ENCODING,
};
use http::{Method, StatusCode};
use pingora_core::protocols::http::conditional_filter::to_304;
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use crate::cache::SendfileResponse;
use crate::http::classify_send_error;
use crate::http::rules::conditional::{evaluate, if_range_applies, Precondition};
use crate::http::rules::range::{parse_range, Ranges};

/// Sends a cached response as the answer to the request of `session`. Returns the number of
/// body bytes that were sent.
///
/// For [`request_filter`](pingora_proxy::ProxyHttp::request_filter), after
/// [`get_sendfile`](crate::cache::SendfileCapable::get_sendfile). The body goes by sendfile if
/// the session and its modules allow that, and is copied otherwise.
///
/// Answers as RFC 9110 asks of a server that has the whole representation:
/// - preconditions (§13.2.2) with 304 or 412
/// - `Range` in a GET (§14.2) with 206 or 416, as far as `If-Range` (§13.1.5) agrees. Only a
///   single range is sent; several get the whole body, as §14.2 permits.
/// - HEAD with the header of the whole response
///
/// Freshness, `Vary` and `Cache-Control` of the request are the caller's to judge before.
///
/// ```no_run
/// # use pingora_cache::CacheKey;
/// # use pingora_core::Result;
/// # use pingora_proxy::Session;
/// use pingora_sendfile::cache::{DiskCache, SendfileCapable};
/// use pingora_sendfile::proxy::serve_with_sendfile;
///
/// /// In `request_filter`: true if the response was sent.
/// async fn serve(session: &mut Session, cache: &'static DiskCache) -> Result<bool> {
///     let key = CacheKey::new(session.req_header().raw_path(), "my-proxy");
///     let Some(response) = cache.get_sendfile(&key).await? else {
///         return Ok(false);
///     };
///     if !response.meta.is_fresh(std::time::SystemTime::now()) {
///         return Ok(false);
///     }
///     serve_with_sendfile(session, &response).await?;
///     Ok(true)
/// }
/// ```
///
/// # Errors
/// The client is gone or too slow, or the file cannot be read. If the header was sent already,
/// the response cannot be completed: Pingora closes the connection.
pub async fn serve_with_sendfile(
    session: &mut Session,
    response: &SendfileResponse,
) -> Result<u64> {
    let mut header = response.meta.response_header_copy();
    header.insert_header(AGE, response.meta.age().as_secs())?;
    let request = session.req_header();
    let part = select(request, &mut header, response.len, SystemTime::now())?;
    let len = part.end - part.start;
    let no_body = request.method == Method::HEAD || len == 0;
    let header = session
        .write_response_header(Box::new(header), no_body)
        .await;
    header.map_err(classify_send_error)?;
    if no_body {
        return Ok(0);
    }
    let body = session
        .write_file_body(&response.file, part.start, len)
        .await;
    let sent = body.map_err(classify_send_error)?;
    let end = session.write_response_body(None, true).await;
    end.map_err(classify_send_error)?;
    Ok(sent.unwrap_or(0))
}

/// The part of a stored body of `len` bytes that `request` gets, with `header` made to match.
fn select(
    request: &RequestHeader,
    header: &mut ResponseHeader,
    len: u64,
    now: SystemTime,
) -> Result<Range<u64>> {
    const NOTHING: Range<u64> = 0..0;
    let method = &request.method;
    match evaluate(
        method,
        &request.headers,
        header.status,
        &header.headers,
        now,
    ) {
        Precondition::Proceed => {}
        Precondition::NotModified => {
            to_304(header);
            return Ok(NOTHING);
        }
        Precondition::Failed => {
            without_content(header, StatusCode::PRECONDITION_FAILED)?;
            return Ok(NOTHING);
        }
    }
    header.remove_header(&TRANSFER_ENCODING);
    header.insert_header(CONTENT_LENGTH, len)?;
    if header.status != StatusCode::OK {
        return Ok(0..len);
    }
    match ranges(request, header, len, now) {
        Ranges::Satisfiable(ranges) if ranges.len() == 1 => {
            let part = ranges[0].clone();
            header.set_status(StatusCode::PARTIAL_CONTENT)?;
            header.remove_header(&ACCEPT_RANGES);
            header.insert_header(CONTENT_LENGTH, part.end - part.start)?;
            let of_whole = format!("bytes {}-{}/{len}", part.start, part.end - 1);
            header.insert_header(CONTENT_RANGE, of_whole)?;
            Ok(part)
        }
        Ranges::Unsatisfiable => {
            without_content(header, StatusCode::RANGE_NOT_SATISFIABLE)?;
            header.insert_header(CONTENT_RANGE, format!("bytes */{len}"))?;
            Ok(NOTHING)
        }
        Ranges::Satisfiable(_) | Ranges::Ignored => {
            header.insert_header(ACCEPT_RANGES, "bytes")?;
            Ok(0..len)
        }
    }
}

/// The ranges that a request for this response asks for.
fn ranges(request: &RequestHeader, header: &ResponseHeader, len: u64, now: SystemTime) -> Ranges {
    let mut lines = request.headers.get_all(RANGE).iter();
    match (lines.next(), lines.next()) {
        (Some(range), None)
            if request.method == Method::GET
                && if_range_applies(&request.headers, &header.headers, now) =>
        {
            parse_range(range.as_bytes(), len, 1)
        }
        _ => Ranges::Ignored,
    }
}

/// Turns the header of a response into that of one without its content.
fn without_content(header: &mut ResponseHeader, status: StatusCode) -> Result<()> {
    header.set_status(status)?;
    for name in [
        ACCEPT_RANGES,
        CONTENT_ENCODING,
        CONTENT_TYPE,
        TRANSFER_ENCODING,
    ] {
        header.remove_header(&name);
    }
    header.insert_header(CONTENT_LENGTH, 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use pingora_cache::CacheMeta;
    use pingora_core::protocols::l4::stream::Stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const LEN: usize = 100_000;
    const DATE: &str = "Tue, 15 Nov 1994 12:45:26 GMT";
    const MODIFIED: &str = "Tue, 15 Nov 1994 12:00:00 GMT";

    fn body() -> Vec<u8> {
        (0..LEN).map(|i| (i % 251) as u8).collect()
    }

    fn stored(etag: &str) -> SendfileResponse {
        let mut header = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Content-Type", "text/x-test"),
            ("Date", DATE),
            ("ETag", etag),
            ("Last-Modified", MODIFIED),
            ("Transfer-Encoding", "chunked"),
        ] {
            header.insert_header(name, value).unwrap();
        }
        let created = SystemTime::now() - Duration::from_secs(7);
        let meta = CacheMeta::new(created + Duration::from_secs(60), created, 0, 0, header);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&body()).unwrap();
        SendfileResponse {
            meta,
            file: Arc::new(file),
            len: LEN as u64,
        }
    }

    struct Got {
        status: u16,
        head: String,
        body: Vec<u8>,
        /// The number that [`serve_with_sendfile`] returned.
        sent: u64,
        /// The bytes that were not copied.
        zero_copy: usize,
    }

    impl Got {
        fn field(&self, name: &str) -> Option<&str> {
            self.head.lines().find_map(|line| {
                let (found, value) = line.split_once(": ")?;
                found.eq_ignore_ascii_case(name).then_some(value)
            })
        }
    }

    /// A request over a socket, answered with a stored response.
    async fn answer(method: &str, fields: &str, response: &SendfileResponse) -> Got {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let request = format!("{method} / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut session = Session::new_h1(Box::new(Stream::from(stream)));
        assert!(session.as_downstream_mut().read_request().await.unwrap());
        let mut received = Vec::new();
        let (sent, zero_copy) = tokio::join!(
            async {
                let sent = serve_with_sendfile(&mut session, response).await.unwrap();
                let zero_copy = session.as_downstream().body_bytes_zero_copy();
                drop(session);
                (sent, zero_copy)
            },
            client.read_to_end(&mut received)
        )
        .0;
        let end = received.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(received[..end].to_vec()).unwrap();
        Got {
            status: head[9..12].parse().unwrap(),
            head,
            body: received.split_off(end),
            sent,
            zero_copy,
        }
    }

    #[tokio::test]
    async fn a_whole_body_goes_by_sendfile() {
        let got = answer("GET", "", &stored("\"1\"")).await;
        assert_eq!(got.status, 200);
        assert!(got.body == body(), "{}", got.head);
        assert_eq!(got.sent, LEN as u64);
        if cfg!(target_os = "linux") {
            assert_eq!(got.zero_copy, LEN);
        }
        assert_eq!(got.field("Content-Length"), Some("100000"));
        assert_eq!(got.field("Content-Type"), Some("text/x-test"));
        assert_eq!(got.field("Accept-Ranges"), Some("bytes"));
        assert_eq!(got.field("Transfer-Encoding"), None);
        assert!(matches!(got.field("Age"), Some("7" | "8")), "{}", got.head);
    }

    #[tokio::test]
    async fn head_gets_the_header_of_the_whole() {
        for fields in ["", "Range: bytes=0-9\r\n"] {
            let got = answer("HEAD", fields, &stored("\"1\"")).await;
            assert_eq!((got.status, got.sent), (200, 0), "{fields}");
            assert!(got.body.is_empty(), "{fields}");
            assert_eq!(got.field("Content-Length"), Some("100000"), "{fields}");
            assert_eq!(got.field("Content-Range"), None, "{fields}");
        }
    }

    #[tokio::test]
    async fn a_single_range_is_all_that_is_sent() {
        for (range, part) in [
            ("0-0", 0..1),
            ("7-50006", 7..50_007),
            ("99999-", 99_999..LEN),
            ("50000-9999999999", 50_000..LEN),
            ("-10", LEN - 10..LEN),
            ("-9999999", 0..LEN),
        ] {
            let got = answer(
                "GET",
                &format!("Range: bytes={range}\r\n"),
                &stored("\"1\""),
            )
            .await;
            assert_eq!(got.status, 206, "{range}");
            assert!(got.body == body()[part.clone()], "{range}: {}", got.head);
            assert_eq!(got.sent, part.len() as u64, "{range}");
            let said = format!("bytes {}-{}/{LEN}", part.start, part.end - 1);
            assert_eq!(got.field("Content-Range"), Some(&*said));
            assert_eq!(got.field("Content-Length"), Some(&*part.len().to_string()));
            assert_eq!(got.field("Content-Type"), Some("text/x-test"));
        }
    }

    #[tokio::test]
    async fn a_range_beyond_the_end_is_416() {
        for range in ["100000-", "100000-100001", "-0"] {
            let got = answer(
                "GET",
                &format!("Range: bytes={range}\r\n"),
                &stored("\"1\""),
            )
            .await;
            assert_eq!((got.status, got.sent), (416, 0), "{range}");
            assert_eq!(got.field("Content-Range"), Some("bytes */100000"));
            assert_eq!(got.field("Content-Length"), Some("0"));
            assert!(got.body.is_empty(), "{range}");
        }
    }

    #[tokio::test]
    async fn ranges_that_need_not_be_heeded_get_the_whole() {
        for fields in [
            "Range: bytes=0-0,5-5\r\n",
            "Range: bytes=5-4\r\n",
            "Range: bytes=\r\n",
            "Range: lines=0-0\r\n",
            "Range: bytes=0-0\r\nRange: bytes=1-1\r\n",
        ] {
            let got = answer("GET", fields, &stored("\"1\"")).await;
            assert_eq!((got.status, got.sent), (200, LEN as u64), "{fields}");
        }
    }

    #[tokio::test]
    async fn if_range_decides_on_the_range() {
        for (etag, condition, status) in [
            ("\"1\"", "\"1\"", 206),
            ("\"1\"", "\"2\"", 200),
            // Only strong validators (RFC 9110 §13.1.5).
            ("W/\"1\"", "W/\"1\"", 200),
            ("\"1\"", "W/\"1\"", 200),
            ("\"1\"", MODIFIED, 206),
            ("\"1\"", DATE, 200),
            ("\"1\"", "nonsense", 200),
        ] {
            let fields = format!("Range: bytes=1-2\r\nIf-Range: {condition}\r\n");
            let got = answer("GET", &fields, &stored(etag)).await;
            assert_eq!(got.status, status, "{etag}, {condition}");
            let len = if status == 206 { 2 } else { LEN };
            assert_eq!(got.body.len(), len, "{etag}, {condition}");
        }
        // An unsatisfiable range is none if the condition is false.
        let fields = "Range: bytes=100000-\r\nIf-Range: \"2\"\r\n";
        assert_eq!(answer("GET", fields, &stored("\"1\"")).await.status, 200);
    }

    #[tokio::test]
    async fn preconditions_come_before_ranges() {
        for (fields, status) in [
            ("If-None-Match: \"1\"\r\n", 304),
            ("If-None-Match: W/\"1\"\r\n", 304),
            ("If-None-Match: \"2\"\r\n", 206),
            ("If-Match: \"2\"\r\n", 412),
            ("If-Match: \"1\"\r\n", 206),
            ("If-Modified-Since: Tue, 15 Nov 1994 12:00:00 GMT\r\n", 304),
            (
                "If-Unmodified-Since: Tue, 15 Nov 1994 11:59:59 GMT\r\n",
                412,
            ),
        ] {
            let fields = format!("{fields}Range: bytes=1-2\r\n");
            let got = answer("GET", &fields, &stored("\"1\"")).await;
            assert_eq!(got.status, status, "{fields}");
            assert_eq!(got.body.len(), if status == 206 { 2 } else { 0 });
            assert_eq!(got.field("ETag"), Some("\"1\""), "{fields}");
            let len = got.field("Content-Length");
            match status {
                304 => assert_eq!(len, None, "{fields}"),
                412 => assert_eq!(len, Some("0"), "{fields}"),
                _ => assert_eq!(len, Some("2"), "{fields}"),
            }
        }
    }

    #[tokio::test]
    async fn only_a_200_is_sent_in_parts() {
        let mut response = stored("\"1\"");
        let mut header = response.meta.response_header_copy();
        header.set_status(StatusCode::NOT_FOUND).unwrap();
        let created = SystemTime::now();
        response.meta = CacheMeta::new(created, created, 0, 0, header);
        let got = answer("GET", "Range: bytes=1-2\r\n", &response).await;
        assert_eq!((got.status, got.sent), (404, LEN as u64));
    }
}
