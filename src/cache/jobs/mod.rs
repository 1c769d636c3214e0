//! Work that no request waits for.

pub(crate) mod maintenance;
pub(crate) mod misplaced;
pub(crate) mod recovery;
pub(crate) mod removal;
pub(crate) mod scrub;
