//! Errors in the form that S3 clients parse.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// Source: "Error responses", Amazon S3 API Reference.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident $status:literal $message:literal,)*) => {
        /// An error code of S3, by which clients decide.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// The name, as it stands in a document.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$code => stringify!($code),)*
                }
            }

            fn status(self) -> u16 {
                match self {
                    $(Code::$code => $status,)*
                }
            }

            fn message(self) -> &'static str {
                match self {
                    $(Code::$code => $message,)*
                }
            }
        }
    };
}

codes! {
    /// The client lacks the permission.
    AccessDenied 403 "Access Denied",
    /// The proxy itself fails.
    InternalError 500 "We encountered an internal error. Please try again.",
    /// A parameter has an invalid value.
    InvalidArgument 400 "Invalid Argument",
    /// The object has no such part.
    InvalidPartNumber 416 "The requested partnumber is not satisfiable",
    /// The object has no byte of the range.
    InvalidRange 416 "The requested range is not satisfiable",
    /// The request contradicts itself, or is not allowed in this form.
    InvalidRequest 400 "Invalid Request",
    /// The path names no object.
    InvalidURI 400 "The specified URI couldn't be parsed.",
    /// The key is too long.
    KeyTooLongError 400 "Your key is too long",
    /// The object or bucket does not support the method.
    MethodNotAllowed 405 "The specified method is not allowed against this resource.",
    /// There is no such bucket.
    NoSuchBucket 404 "The specified bucket does not exist.",
    /// There is no such object.
    NoSuchKey 404 "The specified key does not exist.",
    /// The object has no such version.
    NoSuchVersion 404 "The specified version does not exist.",
    /// The proxy does not implement this operation of S3.
    NotImplemented 501 "A header or query that you provided requests functionality that is not implemented.",
    /// A condition of the client does not hold.
    PreconditionFailed 412 "At least one of the preconditions you specified did not hold",
    /// The origin does not respond, or not with HTTP.
    ServiceUnavailable 503 "Service is unable to handle request.",
    /// There are too many requests.
    SlowDown 503 "Please reduce your request rate.",
}

/// An error as the client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Error {
    /// The code in the document.
    pub code: &'static str,
    /// The HTTP status.
    pub status: StatusCode,
    /// One sentence, with nothing that the client does not know.
    pub message: Cow<'static, str>,
}

// === impl Code ===

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl S3Error ===

impl From<Code> for S3Error {
    fn from(code: Code) -> S3Error {
        S3Error {
            code: code.as_str(),
            // Every status in the list is one.
            status: StatusCode::from_u16(code.status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message: code.message().into(),
        }
    }
}

impl S3Error {
    /// An error with its own message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> S3Error {
        S3Error {
            message: message.into(),
            ..code.into()
        }
    }

    /// The error that a status of an object means.
    pub fn of_status(status: StatusCode) -> S3Error {
        let code = match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Code::AccessDenied,
            StatusCode::NOT_FOUND | StatusCode::GONE => Code::NoSuchKey,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            StatusCode::PRECONDITION_FAILED => Code::PreconditionFailed,
            StatusCode::RANGE_NOT_SATISFIABLE => Code::InvalidRange,
            StatusCode::NOT_IMPLEMENTED => Code::NotImplemented,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Code::SlowDown,
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Code::ServiceUnavailable,
            status if status.is_client_error() => Code::InvalidRequest,
            _ => Code::InternalError,
        };
        S3Error {
            status,
            ..code.into()
        }
    }

    /// The document. `resource`: the path of the request, as the client wrote it.
    pub fn to_xml(&self, resource: &str, request_id: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Error><Code>{}</Code><Message>{}</Message><Resource>{}</Resource>\
             <RequestId>{}</RequestId></Error>",
            self.code,
            escape(&self.message),
            escape(resource),
            escape(request_id)
        )
    }
}

impl fmt::Display for S3Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for S3Error {}

/// A text as the content of an XML element. Characters that XML 1.0 cannot hold (§2.2)
/// become U+FFFD.
pub fn escape(text: &str) -> Cow<'_, str> {
    let replacement = |c: char| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '"' => Some("&quot;"),
        // A parser would read a line feed.
        '\r' => Some("&#13;"),
        '\t' | '\n' => None,
        '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => Some("\u{fffd}"),
        _ => None,
    };
    if !text.chars().any(|c| replacement(c).is_some()) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match replacement(c) {
            Some(replacement) => escaped.push_str(replacement),
            None => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_what_clients_look_for() {
        let error = S3Error::from(Code::NoSuchKey);
        assert_eq!(error.status, 404);
        assert_eq!(
            error.to_xml("/assets/a%20b", "42"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message>\
             <Resource>/assets/a%20b</Resource><RequestId>42</RequestId></Error>"
        );
    }

    #[test]
    fn a_document_is_well_formed_whatever_the_client_writes() {
        let document = S3Error::new(Code::InvalidURI, "a < b").to_xml("/</Error>&\0\r\u{85}", "\"");
        assert!(
            document.ends_with(
                "<Message>a &lt; b</Message>\
                 <Resource>/&lt;/Error&gt;&amp;\u{fffd}&#13;\u{85}</Resource>\
                 <RequestId>&quot;</RequestId></Error>"
            ),
            "{document}"
        );
    }

    #[test]
    fn a_status_keeps_its_number() {
        for (status, code) in [
            (400, "InvalidRequest"),
            (401, "AccessDenied"),
            (403, "AccessDenied"),
            (404, "NoSuchKey"),
            (405, "MethodNotAllowed"),
            (409, "InvalidRequest"),
            (410, "NoSuchKey"),
            (412, "PreconditionFailed"),
            (416, "InvalidRange"),
            (500, "InternalError"),
            (501, "NotImplemented"),
            (502, "ServiceUnavailable"),
            (503, "SlowDown"),
            (504, "ServiceUnavailable"),
        ] {
            let error = S3Error::of_status(StatusCode::from_u16(status).unwrap());
            assert_eq!((error.status.as_u16(), error.code), (status, code));
        }
    }

    #[test]
    fn every_code_has_the_status_of_an_error() {
        for code in [Code::AccessDenied, Code::SlowDown, Code::NotImplemented] {
            let status = S3Error::from(code).status;
            assert_eq!(status.as_u16(), code.status());
            assert!(status.is_client_error() || status.is_server_error());
        }
    }
}
