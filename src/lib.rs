#![cfg_attr(target_os = "none", no_std)]
#![deny(unsafe_code)]

pub mod arch;
pub mod boot;
pub mod call;
pub mod console;
pub mod exec;
pub mod exit;
pub mod handoff;
pub mod hypercall;
pub mod ids;
pub mod mailbox;
pub mod owed;
pub mod pcpu;
pub mod psci;
pub mod report;
pub mod run;
pub mod sync;
pub mod vcpu;
pub mod vm;
