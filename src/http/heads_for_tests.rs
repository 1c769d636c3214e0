//! Heads of requests and responses for tests.

use pingora_http::{RequestHeader, ResponseHeader};

pub(crate) fn request(method: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
    let mut request = RequestHeader::build(method, b"/", None).unwrap();
    for (name, value) in fields {
        request.append_header(*name, *value).unwrap();
    }
    request
}

pub(crate) fn response(status: u16, fields: &[(&'static str, &str)]) -> ResponseHeader {
    let mut response = ResponseHeader::build(status, None).unwrap();
    for (name, value) in fields {
        response.append_header(*name, *value).unwrap();
    }
    response
}

/// All fields, sorted: `a: 1, b: 2`.
pub(crate) fn text(response: &ResponseHeader) -> String {
    let fields = response.headers.iter();
    let mut fields: Vec<_> = fields
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    fields.sort();
    fields.join(", ")
}
