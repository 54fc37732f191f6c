//! Baton: an AArch64 hypervisor whose scheduler core is an async executor.
//!
//! # The idea
//!
//! A *primary VM* decides which vCPU runs where, and asks for it with the hypercall `vcpu_run`; the hypervisor provides
//! mechanism only. When a vCPU leaves one physical CPU (pCPU) and is wanted on another, its registers are like the baton
//! of a relay race: the next runner may take them only once the last one has let go. Every hypervisor that allows this has
//! had the race in which a vCPU is restored on one pCPU while another is still saving it, and nearly all close it by
//! spinning. Here a run request is a future that resolves only when the save completion of the previous pCPU wakes it; the
//! pCPU that waits holds no lock, and a physical interrupt for the primary cancels the wait.
//!
//! # Where to read
//!
//! | order | module | what it is |
//! |---|---|---|
//! | 1 | [`run`] | the life of a pCPU, and of a `vcpu_run`, in the order in which it happens |
//! | 2 | [`handoff`] | the one atomic word that says who owns a vCPU's registers, and what it would do next |
//! | 3 | [`exec`], [`pcpu`] | the executor of one pCPU; how others wake it |
//! | 4 | [`vcpu`] | a vCPU, and the tokens that are the only ways to its registers |
//! | 5 | [`owed`] | what the hypervisor owes a vCPU: interrupts, and calls that complete later |
//! | 6 | [`mailbox`], [`vm`], [`machine`] | messages; a VM; all that there is |
//! | 7 | [`call`], [`hypercall`], [`psci`] | the contract: decoding and encoding; serving, on the way in; power calls |
//! | 8 | [`exit`], [`kick`], [`power`], [`report`], [`console`], [`counters`], [`ids`] | small things with one subject each |
//! | 9 | [`boot`] | from a device tree and a RAM disk to a machine with VMs |
//! | 10 | [`arch`] | the only seam to hardware: the real one, a fake one for tests on the host, one for model checks |
//! | 11 | [`sync`] | the only place that names atomics, cells and locks: the language's, or a model checker's |
//!
//! Modules import in one direction: none imports, by whatever way, one that imports it. The one call that goes up is the exception
//! vector's, which reaches [`hypercall`] by its symbol.
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
//! - **Owed, Not Written**: nobody writes registers that it does not own. Results and virtual interrupts for a vCPU that is
//!   somebody else's are recorded, and settled by the pCPU that next acquires it, just before the load.
//! - **No Wake Is Lost**: register, then look again; publish, then wake. A wake that races with going to sleep, or with a
//!   vCPU that is about to block, is seen.
//! - **Cancel Is Clean**: a run request that is dropped, before its first poll, while it waits, or after it was granted,
//!   leaves the vCPU as if it had not been asked for, and nobody waiting. A loaded vCPU is never abandoned.
//! - **Nobody Spins**: waiting for a save holds no lock, and the waiting pCPU stays responsive: a physical interrupt for the
//!   primary ends the wait.
//!
//! # Locks
//!
//! A vCPU has no lock, and neither has a mailbox: each is one atomic word, whose transitions are compare-and-swaps. Locks are
//! left where nothing is hot, and no two of one kind are ever held together:
//!
//! 1. a channel's or signal's [`sync::RawLock`]; 2. a pCPU's gate for kicks; and on their own, at boot or for a line of
//!    text: the pool of page tables, the console.
//!
//! No lock is held across an `.await` (clippy's `await_holding_lock` is an error here), and none while a vCPU is loaded or
//! saved.
//!
//! # Cost
//!
//! Everything above is for nothing if it is slow, so it is counted, to the instruction, by `cargo baton bench`. Three rules
//! made it cheap. What a call needs decides what is saved: it is served in the exception vector, and x0 to x17 are its
//! answer's anyway. The likely case is one swap of one word, and everything else is a function of its own, out of the way.
//! And registers are moved in pairs, only those that can have changed; the rarer ones are behind one look
//! (`arch/aarch64/cpu.rs`).

#![cfg_attr(target_os = "none", no_std)]
#![deny(unsafe_code)]

pub mod arch;
pub mod boot;
pub mod call;
pub mod console;
pub mod counters;
pub mod exec;
pub mod exit;
pub mod handoff;
pub mod hypercall;
pub mod ids;
pub mod kick;
pub mod machine;
pub mod mailbox;
pub mod owed;
pub mod pcpu;
pub mod power;
pub mod psci;
pub mod report;
pub mod run;
pub mod sync;
pub mod vcpu;
pub mod vm;
