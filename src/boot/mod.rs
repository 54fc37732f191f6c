//! From a device tree and a RAM disk to a machine with VMs.
//!
//! 1. [`platform`]: what the device tree says about memory, CPUs, interrupt controller and RAM disk; [`fdt`] reads it
//! 2. [`archive`]: the files of the RAM disk
//! 3. [`manifest`]: which secondaries there are to be
//! 4. [`plan`]: where everything goes; decided before anything is written
//! 5. `load`: writes it, builds stage 2, sets the vCPUs up
//! 6. [`device_tree`]: the device tree that the primary gets
//!
//! All of it runs once, on one pCPU, and everything but 5 is pure. Bad input ends in a sentence: either the machine cannot
//! boot, or a secondary is left out and the rest boots.

pub mod archive;
pub mod device_tree;
mod error;
pub mod fdt;
#[cfg(target_os = "none")]
mod load;
pub mod manifest;
pub mod plan;
pub mod platform;

pub use error::Error;
#[cfg(target_os = "none")]
pub use load::{load, read_platform};
