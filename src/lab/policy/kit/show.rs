//! Who waits where, in words.

use core::fmt;

use crate::VcpuId;

/// How many vCPUs a line names at most.
const MOST: usize = 64;

/// Writes a line of a [dump](crate::Policy::dump): what this is, and who is in it, each with the numbers that it is ordered by.
pub fn show<const N: usize>(
    out: &mut dyn fmt::Write,
    what: impl fmt::Display,
    mut vcpus: impl Iterator<Item = VcpuId>,
    keys: impl Fn(VcpuId) -> [i64; N],
) -> fmt::Result {
    write!(out, "{what}:")?;
    let mut before = " ";
    for vcpu in vcpus.by_ref().take(MOST) {
        write!(out, "{before}{vcpu}")?;
        keys(vcpu).iter().try_for_each(|key| write!(out, " {key}"))?;
        before = ", ";
    }
    match vcpus.next() {
        Some(_) => writeln!(out, ", and more"),
        None if before == " " => writeln!(out, " nobody"),
        None => writeln!(out),
    }
}
