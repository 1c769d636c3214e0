//! What the parts of a cache share.

pub mod admission;
pub mod body_file;
pub mod clock;
pub(crate) mod fast_header;
pub(crate) mod open_bodies;
pub mod open_entries;
pub(crate) mod permits;
pub(crate) mod readers;
pub mod recent_invalidations;
pub(crate) mod room;
pub mod stats;
pub(crate) mod window;
