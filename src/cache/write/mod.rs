//! Entries being written.

pub(crate) mod block_writer;
pub mod fill;
pub mod miss;
