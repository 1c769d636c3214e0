//! Entries being written: misses, fills, and what makes room for them.

pub(crate) mod admission;
pub(crate) mod block_writer;
pub(crate) mod blocks;
pub(crate) mod checkpoints;
pub(crate) mod commit;
pub(crate) mod fill;
pub(crate) mod invalidate;
pub(crate) mod miss;
pub(crate) mod pending;
pub(crate) mod space;
pub(crate) mod update;
