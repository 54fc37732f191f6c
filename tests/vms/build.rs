//! Links every VM with the workspace's guest linker script.

fn main() {
    println!("cargo::rerun-if-changed=../../linker/vm.ld");
    // Cargo links in the folder of the workspace. A path from the root would be kept in `target`, and a copy of the checkout
    // would link with the script of the original.
    println!("cargo::rustc-link-arg-bins=-Tlinker/vm.ld");
}
