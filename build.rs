//! Sets `cfg(io_uring)` where the io_uring backend is built: with the feature `uring`, on the
//! platforms that the crate io-uring supports. Cargo.toml names the same platforms.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(io_uring)");
    let is = |variable, values: &[&str]| {
        env::var(variable).is_ok_and(|value| values.contains(&value.as_str()))
    };
    let architectures = ["x86_64", "aarch64", "riscv64", "loongarch64", "powerpc64"];
    if env::var_os("CARGO_FEATURE_URING").is_some()
        && is("CARGO_CFG_TARGET_OS", &["linux"])
        && is("CARGO_CFG_TARGET_ARCH", &architectures)
    {
        println!("cargo::rustc-cfg=io_uring");
    }
}
