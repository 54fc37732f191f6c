//! From a device tree and a RAM disk to a machine with VMs. The crate `baton-boot` (`lib.rs` beside this file) reads and
//! plans; `load` does what the plan says.

#[cfg(target_os = "none")]
mod load;

pub use baton_boot::{Error, archive, device_tree, fdt, image, limits, manifest, plan, platform};
#[cfg(target_os = "none")]
pub use load::{load, read_platform};
