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

mod bvt;
mod credit2;
mod edf;
mod edf_partitioned;
mod eevdf;
mod fifo;
mod gang;
mod gang_balanced;
mod handoff;
mod lottery;
mod null;
pub mod reservation;
mod rm;
mod rr;
mod rr_percpu;
mod stride;

pub use bvt::Bvt;
pub use credit2::Credit2;
pub use edf::Edf;
pub use edf_partitioned::EdfPartitioned;
pub use eevdf::Eevdf;
pub use fifo::Fifo;
pub use gang::Gang;
pub use gang_balanced::GangBalanced;
pub use handoff::Handoff;
pub use lottery::Lottery;
pub use null::Null;
pub use rm::Rm;
pub use rr::{QUANTUM, Rr};
pub use rr_percpu::RrPercpu;
pub use stride::Stride;

// A policy is a module above, and one line here.
policies! {
    "fifo" fifo::Fifo "first come, first served, until it blocks"
    "rr" rr::Rr "everybody in turn, from one queue for all pCPUs"
    "rr-percpu" rr_percpu::RrPercpu "everybody in turn, from a queue for each pCPU; whoever has nobody takes from another"
    "null" null::Null "every vCPU stays on one pCPU"
    "stride" stride::Stride "shares by weight, exact to a quantum"
    "lottery" lottery::Lottery "shares by weight, by chance"
    "eevdf" eevdf::Eevdf "shares by weight, and latency by the length of the slice that is asked for"
    "credit2" credit2::Credit2 "shares by weight, from a queue for each cluster, as in Xen"
    "bvt" bvt::Bvt "shares by weight; who has a reservation borrows from its own future to run at once"
    "edf" edf::Edf "reservations by deadline, on all pCPUs; the others get the rest"
    "edf-partitioned" edf_partitioned::EdfPartitioned "reservations by deadline, each on its own pCPU; the others get the rest"
    "rm" rm::Rm "reservations by period, on all pCPUs; the others get the rest"
    "gang" gang::Gang "the vCPUs of a VM at the same time, or not at all"
    "gang-balanced" gang_balanced::GangBalanced "as rr-percpu, with the vCPUs of a VM on different pCPUs"
    "handoff" handoff::Handoff "the receiver of a message runs where its sender did, for the rest of its slice"
}

/// What `cargo baton lab new` begins with; compiled here so that it is right.
#[cfg(test)]
mod template;
