//! Baton: an AArch64 hypervisor whose scheduler core is an async executor.
//!
//! # The idea
//!
//! A *primary VM* decides which vCPU runs where, and requests it with the hypercall `vcpu_run`; the hypervisor provides
//! mechanism only. When a vCPU moves from one physical CPU (pCPU) to another, its registers are like the baton of a
//! relay race: the next runner may take them only after the last one has let go. Every hypervisor that allows this has
//! had the race in which a vCPU is restored on one pCPU while another is still saving it, and nearly all close it by
//! spinning. Here a run request is a future that resolves only when the save completion of the previous pCPU wakes it.
//! The waiting pCPU holds no lock, and a physical interrupt for the primary cancels the wait.
//!
//! # Where to read
//!
//! | order | module | subject |
//! |---|---|---|
//! | 1 | [`run`] | the life of a pCPU and of a `vcpu_run`, in order of execution |
//! | 2 | [`handoff`] | the one atomic word of a vCPU: who owns its registers; whether it is ready, blocked or woken |
//! | 3 | [`exec`], [`pcpu`] | the executor of one pCPU; how other pCPUs wake it |
//! | 4 | [`vcpu`] | a vCPU, and the tokens that are the only access to its registers |
//! | 5 | [`owed`] | what the hypervisor owes a vCPU: virtual interrupts, and deferred completions of calls |
//! | 6 | [`mailbox`], [`vm`], [`machine`] | messages; a VM; all pCPUs, VMs and vCPUs |
//! | 7 | [`call`], [`hypercall`], [`psci`] | the contract: decoding and encoding; serving hypercalls; power calls |
//! | 8 | [`exit`], [`exception`], [`stage_one`], [`kick`], [`power`], [`report`], [`console`], [`lines`], [`uart`], [`counters`], [`ids`], [`id_registers`] | one small subject each |
//! | 9 | [`boot`] | from a device tree and a RAM disk to a machine with VMs |
//! | 10 | [`arch`] | the only seam to hardware: the real one, a fake for host tests, a model for model checks |
//! | 11 | [`sync`] | the only module that names atomics, cells and locks: those of the language, or of a model checker |
//!
//! The import graph of the modules has no cycles. The one upward call is that of the exception vector, which reaches
//! [`hypercall`] by its symbol.
//!
//! The assembly (entry, exception vectors, world switch) is in `vectors/`.
//!
//! # Invariants
//!
//! Comments and tests cite them by these names.
//!
//! - **Single Owner**: at any time at most one pCPU may read or write a vCPU's registers.
//! - **Saved Before Published**: every register store of a save happens before the publish (release), and the acquire
//!   happens before the first register load.
//! - **Owed, Not Written**: a pCPU never writes registers that it does not own. Results and virtual interrupts for
//!   another vCPU are recorded; the pCPU that next acquires the vCPU settles them, just before the load.
//! - **No Wake Is Lost**: register, then check again; publish, then wake. A wake that races with a pCPU going to sleep,
//!   or with a vCPU that is about to block, is seen.
//! - **Cancel Is Clean**: a run request may be dropped before its first poll, while it waits, or after it was granted.
//!   The vCPU is then as if it had never been requested, and its word does not name the pCPU. A loaded vCPU is never
//!   abandoned.
//! - **Nobody Spins**: waiting for a save holds no lock, and the waiting pCPU stays responsive: a physical interrupt for
//!   the primary ends the wait.
//!
//! # Locks
//!
//! A vCPU has no lock, and neither has a mailbox: each is one atomic word, whose transitions are compare-and-swaps.
//! Locks remain only off the hot path, and no two of one kind are ever held together. The lock order:
//!
//! 1. the [`sync::RawLock`] of a channel or signal
//! 2. a pCPU's gate for kicks
//!
//! Two locks are never held with another: the pool of page tables, at boot, and the console, for one line of the
//! hypervisor or one write of a VM.
//!
//! No lock is held across an `.await` (clippy's `await_holding_lock` is an error here), and none across the load or
//! the save of a vCPU.
//!
//! # Cost
//!
//! `cargo baton bench` counts the cost of every path, to the instruction. Three rules keep it low. A hypercall is
//! served in the exception vector, which saves only what the call needs; x0 to x17 are overwritten by its answer in any
//! case. The likely case is one compare-and-swap of one word; everything else is a separate, outlined function. A world
//! switch moves registers in pairs, and only those that can have changed; one test covers the rare ones
//! (`arch/aarch64/cpu.rs`). The image is compiled for size, and the functions of these paths for speed.

#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", feature(optimize_attribute))]
#![deny(unsafe_code)]

pub mod arch;
pub mod boot;
pub mod call;
pub mod console;
pub mod counters;
pub mod exception;
pub mod exec;
pub mod exit;
pub mod handoff;
pub mod hypercall;
pub mod id_registers;
pub mod ids;
pub mod kick;
pub mod lines;
pub mod machine;
pub mod mailbox;
pub mod owed;
pub mod pcpu;
pub mod power;
pub mod psci;
pub mod report;
pub mod run;
pub mod stage_one;
pub mod sync;
pub mod uart;
pub mod vcpu;
pub mod vm;
