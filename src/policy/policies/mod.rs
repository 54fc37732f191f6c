//! The policies that come with Baton, by name.

use crate::Policy;

/// Does something with a policy whose name is known only at run time, and whose type is known to the compiler all the same.
pub trait Visitor {
    type Output;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Self::Output;
}

/// A policy's name, and what it does in one sentence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub name: &'static str,
    pub about: &'static str,
}

macro_rules! policies {
    ($($name:literal $module:ident::$policy:ident $about:literal)*) => {
        /// All of them.
        pub const ALL: &[Entry] = &[$(Entry { name: $name, about: $about }),*];

        /// Has the policy of that name visited; `None` if there is none.
        pub fn by_name<V: Visitor>(name: &str, visitor: V) -> Option<V::Output> {
            match name {
                $($name => Some(visitor.visit($name, $module::$policy::default())),)*
                _ => None,
            }
        }
    };
}

mod fifo;
mod rr;

pub use fifo::Fifo;
pub use rr::{QUANTUM, Rr};

// A policy is a module above, and one line here.
policies! {
    "fifo" fifo::Fifo "first come, first served, until it blocks"
    "rr" rr::Rr "everybody in turn, from one queue for all pCPUs"
}
