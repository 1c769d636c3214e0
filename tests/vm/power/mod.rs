//! Power cuts: the proxy in a virtual machine on a disk that loses its power at any moment.
//!
//! A cycle boots the machine, checks the cache that is left, and puts load on the proxy until the power
//! is cut. `POWER_CUTS=100` sets the number of cycles for each file system; by default there is one, on
//! ext4. `POWER_SEED`, which is printed, repeats the choices of an earlier run; the timing differs.
//!
//! After each cut,
//! - each byte that is served without the origin is that of a version which the origin had;
//! - no version is served whose purge was acknowledged;
//! - the metrics agree with the folder, in which the inspector finds neither leftovers nor damaged
//!   bodies.

mod check;
mod disk;
mod guest;
mod host;
mod load;
mod objects;
mod origin;

pub use guest::{run as run_in_the_machine, ARGUMENT};
pub use host::{cuts, run, Machine, PROGRAMS};
