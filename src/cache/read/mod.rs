//! Entries being read.

pub mod hit;
pub(crate) mod rest;
