//! Tests of `baton-policy`: what it says in the papers, and what has to be so whatever happens.

mod any;
mod behaviour;
mod clusters;
mod driver;
mod figures;
mod harness;
mod kit;
mod log;
