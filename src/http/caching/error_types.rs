//! Types of errors that a cache adds to those of Pingora.

use pingora_core::ErrorType;

/// The error of a background fill whose response is not stored. Nobody would read it.
pub const NOT_FILLED: ErrorType = ErrorType::new("NotFilled");

/// The error of a 304 that does not answer the conditions of the request.
pub const UNUSABLE_NOT_MODIFIED: ErrorType = ErrorType::new("UnusableNotModified");

/// The error of a part that is not the requested one, or not of the client's version.
pub const UNUSABLE_PART: ErrorType = ErrorType::new("UnusablePart");
