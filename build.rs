//! Links the image with the project's own linker script; on the host there is nothing to do.

fn main() {
    println!("cargo::rerun-if-changed=linker/baton.ld");
    println!("cargo::rerun-if-changed=vectors");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=-T{root}/linker/baton.ld");
        // A few words where plain relocations are a few kilobytes; the entry code knows how to read them.
        println!("cargo::rustc-link-arg-bins=--pack-dyn-relocs=relr");
    }
}
