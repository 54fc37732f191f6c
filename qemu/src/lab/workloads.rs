//! The workloads that come with Baton, and those of others.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use baton_sim::File;

use crate::root::root;

/// The names of those that come with Baton, and their files.
pub fn all() -> Result<Vec<(String, PathBuf)>> {
    let folder = root()?.join("tests/workloads");
    let entries = fs::read_dir(&folder).with_context(|| format!("could not read {}", folder.display()))?;
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("could not read {}", folder.display()))?.path();
        if let Some(name) = path.file_stem() {
            all.push((name.to_string_lossy().into_owned(), path));
        }
    }
    all.sort();
    Ok(all)
}

/// Reads the workload of that name, or in the file at that path.
pub fn read(name: &str) -> Result<File> {
    let all = all()?;
    if let Some((_, path)) = all.iter().find(|(known, _)| known == name) {
        return File::read(path);
    }
    let path = Path::new(name);
    if !path.exists() {
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        bail!("there is no workload `{name}`, and no such file; there are {}", names.join(", "));
    }
    File::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_come_with_baton_can_be_read_and_built_in_every_size() {
        let all = all().unwrap();
        assert!(all.len() >= 12, "{all:?}");
        for (name, _) in all {
            let file = read(&name).unwrap();
            for size in [None, Some((2, 16)), Some((64, 1024))] {
                let built = file.build(size, 1).unwrap_or_else(|error| panic!("{name}: {error:#}"));
                let asked = size.map_or(file.vcpus(), |(_, vcpus)| vcpus) as usize;
                let found = built.workload().vcpus.len();
                assert!(found <= asked && asked - found < 4, "{name}: {found} of {asked}");
            }
        }
    }

    #[test]
    fn one_that_is_not_there_is_said_to_be_missing() {
        let error = read("nothing").unwrap_err().to_string();
        assert!(error.starts_with("there is no workload `nothing`, and no such file; there are barrier, "), "{error}");
    }
}
