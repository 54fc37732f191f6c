//! Links the image with the project's linker script. Does nothing for the host.

fn main() {
    println!("cargo::rerun-if-changed=linker/baton.ld");
    println!("cargo::rerun-if-changed=vectors");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        // Cargo links in the folder of the workspace. A path from the root would be kept in `target`, and a copy of the
        // checkout would link with the script of the original.
        println!("cargo::rustc-link-arg-bins=-Tlinker/baton.ld");
        // Takes a few words instead of a few kilobytes of plain relocations; the entry code applies them.
        println!("cargo::rustc-link-arg-bins=--pack-dyn-relocs=relr");
    }
}
