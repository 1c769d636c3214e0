//! The cache directory: names, formats, the index, bans.

pub(crate) mod bans;
pub(crate) mod chunked_vec;
pub(crate) mod entry;
pub(crate) mod entry_id;
pub(crate) mod format;
pub(crate) mod index;
pub mod inspect;
pub(crate) mod layout;
pub(crate) mod members;
