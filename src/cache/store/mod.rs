//! The cache folder: names, formats, the index, bans.

pub mod bans;
pub mod format;
pub mod index;
pub mod inspect;
pub mod layout;
