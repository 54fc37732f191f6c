//! Model checks of the code that the image contains: a checker drives `handoff.rs`, `vcpu.rs`, `exec.rs`, `kick.rs`, `owed.rs`,
//! `mailbox.rs` and, through whole hypercalls, `run.rs` and `hypercall.rs`, in every interleaving within a bound.
//!
//! With the feature `loom`, a model is exhausted: all interleavings with at most so many preemptions (switches away from a
//! thread that could go on), and all values that the memory model lets a load see. With `shuttle`, it is run many times at
//! random. Both print how much that was. `BATON_MODELS=long` raises the bounds.
//!
//! Each model has two or three pCPUs, and each test names the invariant that it checks. A use of registers or pages by two
//! pCPUs is found by the checker itself (`src/sync/checked.rs`), and so is a pCPU that nobody wakes: all threads sleep.
//!
//! What no model can see is said where it is used: loom takes a sequentially consistent access for acquire and release, so
//! where two pCPUs each write and then look, there are fences.

#[path = "."] // so that each test has `model` in its name, and its module
mod model {
    mod bench;
    mod exec;
    mod handoff;
    mod kick;
    mod locks;
    mod mailbox;
    mod owed;
    mod run;
    mod vcpu;
}
