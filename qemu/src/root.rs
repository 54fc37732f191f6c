//! The workspace that this tool works on: the one that it was called for, wherever it was compiled.
//!
//! A checkout that was copied or moved together with its `target` folder, or that shares one with another checkout, may
//! run a tool that was compiled elsewhere. So the folder is looked for at run time, never compiled in.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Every folder of a workspace has this file in one of its ancestors, and no other project has it.
const MARK: &str = "qemu/bench-baseline.json";

/// The folder of the workspace: that of the package which cargo runs, or else that of the current directory.
pub fn root() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = env::current_dir().context("the current directory cannot be read")?;
    package.iter().chain([&here]).find_map(|folder| above(folder)).with_context(|| {
        format!(
            "{} is in no checkout of Baton: change to the folder of one, and use `cargo baton` there",
            here.display()
        )
    })
}

/// The first of `folder` and its ancestors that is a workspace of Baton.
fn above(folder: &Path) -> Option<PathBuf> {
    let is_root = |folder: &&Path| folder.join(MARK).is_file() && folder.join("Cargo.toml").is_file();
    folder.ancestors().find(is_root).map(Path::to_owned)
}
