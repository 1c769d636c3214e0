//! The proxy's side towards its origin.

mod addresses;
mod connections;
mod credentials;
mod faults;
