//! A caching proxy as a black box between a scripted origin and a raw client:
//! both sides control and see every byte of HTTP/1.1, for tests of what an HTTP
//! cache must do.
//!
//! A [`Site`] is the proxy's process and its origin; a [`Page`] is one path of
//! it, with answers of its own, so that tests share a process and not a state.

mod answer;
mod client;
pub mod date;
mod origin;
mod rules;
mod site;
mod wire;

pub use answer::Answer;
pub use client::{CacheStatus, Client, Got, Interim};
pub use origin::{ScriptedOrigin, Seen};
pub use rules::{Rules, Use};
pub use site::{example, raise_descriptor_limit, Page, Site};
