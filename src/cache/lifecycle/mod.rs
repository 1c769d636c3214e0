//! The ownership of a cache folder.

pub(crate) mod lock;
