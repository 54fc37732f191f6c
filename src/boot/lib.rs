//! From a device tree and a RAM disk to a machine with VMs.
//!
//! 1. [`platform`]: memory, CPUs, interrupt controller and RAM disk, from the device tree, which [`fdt`] parses
//! 2. [`archive`]: the files of the RAM disk; [`image`]: those that cannot be VMs
//! 3. [`manifest`]: the list of secondaries
//! 4. [`plan`]: the memory layout, decided before anything is written
//! 5. `load`: copies the images, builds stage 2, sets up the vCPUs
//! 6. [`device_tree`]: the primary's device tree
//!
//! All of it runs once, on one pCPU, and everything but 5 is pure. Bad input is reported in a sentence: either the
//! machine cannot boot, or a secondary is left out and the rest boots.
//!
//! All but 5 is a crate of its own, because it is compiled for size.
#![no_std]
#![forbid(unsafe_code)]

pub mod archive;
pub mod device_tree;
mod error;
pub mod fdt;
pub mod image;
pub mod limits;
pub mod manifest;
pub mod plan;
pub mod platform;

pub use error::Error;
