//! Model checks of the code that the image contains: a checker drives `handoff.rs`, `vcpu.rs`, `exec.rs`, `kick.rs`, `owed.rs`,
//! `mailbox.rs` and, through whole hypercalls, `run.rs` and `hypercall.rs`, in every interleaving within a bound.
//!
//! The edges of the handoff word have models of their own, and again with everything around them: an edge against each other
//! one in `handoff.rs`, with the tokens and the executor in `vcpu.rs`, from hypercall to answer in `run.rs`. **No Wake Is
//! Lost** means there: if the primary was told that a vCPU waits, somebody was told that it is woken, or nothing was brought.
//!
//! With the feature `loom`, a model is exhausted: all interleavings with at most so many preemptions (switches away from a
//! thread that could go on), and all values that the memory model lets a load see. With `shuttle`, it is run many times at
//! random. Both print how much that was. `BATON_MODELS=long` raises the bounds.
//!
//! Each model has two or three pCPUs, and each test names the invariant that it checks. A use of registers or pages by two
//! pCPUs is found by the checker itself (`src/sync/checked.rs`), and so is a pCPU that nobody wakes: all threads sleep.
//!
//! Loom takes a sequentially consistent access for acquire and release. Where two pCPUs each write and then look, Baton has
//! either two edges of one word, which are read-modify-writes, or fences; loom knows both. Shuttle knows one order only, and
//! so finds what is missing, and not what is too weak.

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
