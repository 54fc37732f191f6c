//! Machines whose RAM disk or device tree is made for the test: the good ones that the contract
//! names, and bad ones of every kind.
//!
//! Nothing that a boot loader hands over may hang the hypervisor or go unexplained. Where the
//! machine cannot go on, the hypervisor says why in one sentence and ends it with a failing exit
//! code. Where only a secondary cannot be loaded, it is left out with one sentence, and the primary
//! boots all the same and counts the VMs. The tables [`machines`], [`archives`], [`lists`] and
//! [`trees`] say for each input which of these it is, and a fragment of the sentence.

mod archives;
mod input;
mod lists;
mod machines;
mod trees;

use crate::test::Test;

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    [machines::tests(), archives::tests(), lists::tests(), trees::tests()].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = tests().into_iter().map(|test| test.name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
