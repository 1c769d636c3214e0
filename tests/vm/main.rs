//! Kernel TLS, in a virtual machine whose kernel has it, and power cuts of a virtual machine.
//!
//! This program is both ends. Without arguments, it boots the machines with `tests/vm/boot` and
//! runs itself in them; `tests/vm/install FOLDER` installs what that takes, and `VM=FOLDER` names
//! it. In a machine, it runs the tests of [`guest`], and reports them as libtest does.
//!
//! `VM_LARGE_MIB=1024 VM_SECONDS=3600` sends a body of 1 GiB among others, which takes tens of minutes.
//! `VM_COUNT=1` counts the instructions of a hit with and without kernel TLS instead, of the optimized
//! proxy that `VM_PROXY` names. `POWER_CUTS=100` cuts the power of each file system so often, and runs
//! nothing else; see [`power`].

#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod guest;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod power;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(guest::ARGUMENT) => guest::run(),
        Some(guest::COUNT) => guest::count(),
        Some(power::ARGUMENT) => power::run_in_the_machine(),
        // Arguments of cargo and libtest, such as a filter, have no effect: there is one test here.
        _ => host::run(),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
