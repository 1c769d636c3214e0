//! Work without a request.

pub mod maintenance;
pub mod recovery;
pub mod scrub;
