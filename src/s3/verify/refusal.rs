//! The reasons to refuse a signature, in S3's words.

use std::borrow::Cow;
use std::fmt;

/// The refusal of a request because of its signature, or for lack of one.
///
/// It repeats nothing that the client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the response.
    pub status: u16,
    /// The code of the response ("Error responses", Amazon S3 API Reference).
    pub code: &'static str,
    /// The message of the response.
    pub message: Cow<'static, str>,
    /// The kind of refusal, for a metric.
    pub reason: Reason,
}

/// The kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The request has no signature.
    Unsigned,
    /// The signature is malformed, or not of version 4.
    Malformed,
    /// The signature is for another day, region or service.
    Scope,
    /// The signature has expired, or is not valid yet.
    Time,
    /// No client has this access key.
    UnknownKey,
    /// The signature is not that of the request with the client's secret key.
    Mismatch,
    /// The signature leaves out a header that must be signed.
    UnsignedHeader,
    /// The session token is not the client's.
    Token,
}

// === impl Reason ===

impl Reason {
    /// The name of the kind, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Unsigned => "unsigned",
            Reason::Malformed => "malformed",
            Reason::Scope => "scope",
            Reason::Time => "time",
            Reason::UnknownKey => "unknown_key",
            Reason::Mismatch => "signature",
            Reason::UnsignedHeader => "unsigned_header",
            Reason::Token => "session_token",
        }
    }
}

// === impl Refusal ===

impl Refusal {
    const fn new(status: u16, code: &'static str, message: &'static str, reason: Reason) -> Self {
        Refusal {
            status,
            code,
            message: Cow::Borrowed(message),
            reason,
        }
    }

    pub(super) const UNSIGNED: Refusal =
        Refusal::new(403, "AccessDenied", "Access Denied", Reason::Unsigned);

    pub(super) const TWO_MECHANISMS: Refusal = Refusal::new(
        400,
        "InvalidArgument",
        "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature \
         query string parameter or the Authorization header should be specified",
        Reason::Malformed,
    );

    /// A signature of version 2, which S3 no longer accepts.
    pub(super) const VERSION_2: Refusal = Refusal::new(
        400,
        "InvalidRequest",
        "The authorization mechanism you have provided is not supported. Please use \
         AWS4-HMAC-SHA256.",
        Reason::Malformed,
    );

    pub(super) const VERSION_4A: Refusal = Refusal::new(
        400,
        "InvalidRequest",
        "Signature Version 4A is not supported here. Please use AWS4-HMAC-SHA256.",
        Reason::Malformed,
    );

    pub(super) const OTHER_MECHANISM: Refusal = Refusal::new(
        400,
        "InvalidArgument",
        "Unsupported Authorization Type",
        Reason::Malformed,
    );

    pub(super) const TWO_HOSTS: Refusal = Refusal::new(
        400,
        "InvalidRequest",
        "The request has no Host, or more than one.",
        Reason::Malformed,
    );

    pub(super) const NO_DATE: Refusal = Refusal::new(
        403,
        "AccessDenied",
        "AWS authentication requires a valid Date or x-amz-date header",
        Reason::Malformed,
    );

    pub(super) const NO_CONTENT_HASH: Refusal = Refusal::new(
        400,
        "InvalidRequest",
        "Missing required header for this request: x-amz-content-sha256",
        Reason::Malformed,
    );

    pub(super) const BAD_CONTENT_HASH: Refusal = Refusal::new(
        400,
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING value, or a valid sha256 value.",
        Reason::Malformed,
    );

    /// The body of a GET or HEAD is not the hashed one: the proxy guarantees that it is empty.
    pub(super) const OTHER_CONTENT_HASH: Refusal = Refusal::new(
        400,
        "XAmzContentSHA256Mismatch",
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
        Reason::Mismatch,
    );

    pub(super) const UNSIGNED_HEADER: Refusal = Refusal::new(
        403,
        "AccessDenied",
        "There were headers present in the request which were not signed",
        Reason::UnsignedHeader,
    );

    pub(super) const SKEWED: Refusal = Refusal::new(
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
        Reason::Time,
    );

    pub(super) const EXPIRED: Refusal =
        Refusal::new(403, "AccessDenied", "Request has expired", Reason::Time);

    pub(super) const NOT_YET: Refusal = Refusal::new(
        403,
        "AccessDenied",
        "Request is not valid yet",
        Reason::Time,
    );

    pub(super) const UNKNOWN_KEY: Refusal = Refusal::new(
        403,
        "InvalidAccessKeyId",
        "The AWS Access Key Id you provided does not exist in our records.",
        Reason::UnknownKey,
    );

    pub(super) const MISMATCH: Refusal = Refusal::new(
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check \
         your key and signing method.",
        Reason::Mismatch,
    );

    pub(super) const BAD_TOKEN: Refusal = Refusal::new(
        400,
        "InvalidToken",
        "The provided token is malformed or otherwise invalid.",
        Reason::Token,
    );

    /// A malformed `Authorization` header.
    pub(super) fn header(what: impl fmt::Display, reason: Reason) -> Refusal {
        Refusal {
            message: format!("The authorization header is malformed; {what}").into(),
            ..Refusal::new(400, "AuthorizationHeaderMalformed", "", reason)
        }
    }

    /// Malformed parameters of a presigned URL.
    pub(super) fn query(message: impl Into<Cow<'static, str>>, reason: Reason) -> Refusal {
        Refusal {
            message: message.into(),
            ..Refusal::new(400, "AuthorizationQueryParametersError", "", reason)
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refusal {}
