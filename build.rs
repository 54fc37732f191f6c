//! Links the image with the project's linker script. Does nothing for the host.

fn main() {
    println!("cargo::rerun-if-changed=linker/baton.ld");
    println!("cargo::rerun-if-changed=vectors");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=-T{root}/linker/baton.ld");
        // Takes a few words instead of a few kilobytes of plain relocations; the entry code applies them.
        println!("cargo::rustc-link-arg-bins=--pack-dyn-relocs=relr");
    }
}
