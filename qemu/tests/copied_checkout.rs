//! A checkout that was copied works on itself, whichever checkout its host tool was compiled in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The checkout that is tested.
fn checkout() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    Path::new(&package).parent().expect("the package is a folder of the workspace").to_owned()
}

/// A copy of it without what was built, removed at the end.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Copy {
        let folder = std::env::temp_dir().join(format!("baton-copy-{name}-{}", std::process::id()));
        copy(&checkout(), &folder);
        Copy(folder)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name();
        match entry.file_type().unwrap().is_dir() {
            true if name == "target" || name == ".git" => {}
            true => copy(&entry.path(), &to.join(name)),
            false => drop(fs::copy(entry.path(), to.join(name)).unwrap()),
        }
    }
}

/// Runs the host tool as `cargo run` would in this package, or by itself.
fn baton(words: &[&str], directory: &Path, package: Option<&Path>) -> Output {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_baton-qemu"));
    tool.args(words).current_dir(directory).env_remove("CARGO_MANIFEST_DIR");
    tool.envs(package.map(|package| ("CARGO_MANIFEST_DIR", package))).output().unwrap()
}

fn succeeds(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const REGISTRY: &str = "src/lab/policy/policies/mod.rs";

#[test]
fn a_new_policy_is_written_to_the_copy_and_not_to_the_original() {
    let copy = Copy::new("new");
    let before = fs::read_to_string(checkout().join(REGISTRY)).unwrap();
    succeeds(baton(&["lab", "new", "copied-one"], &checkout(), Some(&copy.0.join("qemu"))));
    // Without cargo, and from a folder deep inside.
    succeeds(baton(&["lab", "new", "copied-two"], &copy.0.join("src/lab"), None));
    let registry = fs::read_to_string(copy.0.join(REGISTRY)).unwrap();
    assert!(registry.contains("copied_one::CopiedOne") && registry.contains("copied_two::CopiedTwo"), "{registry}");
    assert_eq!(fs::read_to_string(checkout().join(REGISTRY)).unwrap(), before);
    assert!(!checkout().join("src/lab/policy/policies/copied_one.rs").exists());
}

#[test]
fn workloads_are_those_of_the_copy() {
    let copy = Copy::new("list");
    fs::rename(copy.0.join("tests/workloads/hogs.toml"), copy.0.join("tests/workloads/copied.toml")).unwrap();
    let list = succeeds(baton(&["lab", "list"], &copy.0.join("tests/vms/src"), None));
    assert!(list.contains("  copied ") && !list.contains("  hogs "), "{list}");
}

#[test]
fn what_is_built_is_the_copy() {
    let copy = Copy::new("build");
    fs::write(copy.0.join("Cargo.toml"), "no manifest").unwrap();
    let output = baton(&["build"], &copy.0.join("tests"), None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("could not read the workspace in {}", copy.0.display())), "{said}");
}

#[test]
fn outside_of_a_checkout_a_sentence_says_what_to_do() {
    let output = baton(&["lab", "list"], Path::new("/"), None);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("/ is in no checkout of Baton: change to the folder of one"), "{said}");
}
