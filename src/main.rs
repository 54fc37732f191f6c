//! The image that runs at EL2. Everything is in the library; its first instruction is in `vectors/entry.S`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use baton as _;

#[cfg(not(target_os = "none"))]
fn main() {
    println!("Baton runs at EL2 of an AArch64 machine. `cargo baton run` builds it and boots it on QEMU.");
}
