//! The policies that come with Baton.

mod rr;

pub use rr::{QUANTUM, Rr};
