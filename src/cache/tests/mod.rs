//! Tests of the engine as a whole, from inside.

mod blocks;
mod disk;
mod faults;
mod folders;
mod open_bodies;
mod removal;
mod window;
