//! The attribution of errors of sending a response.

use pingora_core::{Error, ErrorSource, ErrorType};

/// Attribute an error of sending: to the client if it is one of the connection, otherwise to the
/// proxy, whose file or module has failed.
pub(crate) fn classify_send_error(error: Box<Error>) -> Box<Error> {
    match (error.esource(), error.etype()) {
        (
            ErrorSource::Unset,
            ErrorType::WriteError | ErrorType::WriteTimedout | ErrorType::ConnectionClosed,
        ) => error.into_down(),
        (ErrorSource::Unset, _) => error.into_in(),
        _ => error,
    }
}
