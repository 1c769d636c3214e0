//! Empty: cargo wants a target in every package, and this one only pins.
