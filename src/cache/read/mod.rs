//! Entries being read: lookups and hits.

pub(crate) mod blocks;
pub(crate) mod hit;
pub(crate) mod lookup;
pub(crate) mod remainder;
