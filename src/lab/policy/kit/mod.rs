//! What policies are made of.
//!
//! A vCPU has one [`Node`], and so is in one queue, heap or tree at a time, which is what waiting to run is. The nodes are in
//! a slab of the harness's; a structure holds nothing but where it begins. Nothing here allocates, nothing has a size limit,
//! and nothing depends on anything but the order of the calls.
//!
//! Keys go around, as clocks do that overflow: of two, the first is the one from which fewer than 2⁶³ steps lead to the
//! other. All that are in one structure have to be within 2⁶³ of each other; [`u64::MAX`] is right before 0, not far behind.
//!
//! No structure knows where its vCPUs may run. From one queue for all, a pCPU looks for the first that may run there: that
//! is the first or the second where most may run anywhere, but it may be the last where most are pinned elsewhere. With
//! 4096 pinned vCPUs on 256 pCPUs a pick takes 20 to 140 times as long (`examples/pick_speed.rs`). Queues for each pCPU, as in
//! [`RrPercpu`](crate::policies::RrPercpu), are for those; there it is who has nobody, and looks for somebody to take, that
//! looks through them all.

mod fifo;
mod heap;
mod mask;
mod random;
mod share;
mod show;
mod slab;
mod tree;

pub use fifo::Fifo;
pub use heap::Heap;
pub use mask::Mask;
pub use random::Random;
pub use share::{ahead, later, real_time, virtual_time};
pub use show::show;
pub use slab::{Misuse, Node, Nodes, Slab};
pub use tree::Tree;
