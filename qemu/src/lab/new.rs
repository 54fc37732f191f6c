//! A policy of one's own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::root::root;

#[derive(Args)]
pub struct Options {
    /// What it is to be called: small letters and digits, with `-` between words.
    name: String,
}

/// What it begins with: a policy that is compiled and tested as part of the crate.
const TEMPLATE: &str = include_str!("../../../src/lab/policy/policies/template.rs");

pub fn run(options: &Options) -> Result<bool> {
    let folder = root()?.join("src/lab/policy/policies");
    let module = create(&folder, &options.name)?;
    println!("src/lab/policy/policies/{module}.rs is a policy that takes turns: change it, and its test");
    println!("test it: cargo test -p baton-policy {module}");
    println!("run it: cargo baton lab run -p {} -w hogs", options.name);
    Ok(true)
}

/// Writes the file, and its lines in the registry; the name of the module.
fn create(folder: &Path, name: &str) -> Result<String> {
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    ensure!(
        name.split('-').all(is_word) && name.starts_with(|first: char| first.is_ascii_lowercase()),
        "`{name}` is no name for a policy: it has small letters and digits, with `-` between words, like `my-policy`"
    );
    let module = name.replace('-', "_");
    let policy: String = name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    let path = folder.join("mod.rs");
    let registry = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let mut words = registry.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    if is_keyword(&module) || words.any(|word| word == module || word == policy) {
        bail!("`{name}` is taken, by another policy or by Rust: choose another name");
    }
    let file = folder.join(format!("{module}.rs"));
    ensure!(!file.exists(), "there is a file {} already: choose another name, or remove it", file.display());
    let registry = register(&registry, name, &module, &policy).with_context(|| format!("{}", path.display()))?;
    fs::write(&file, TEMPLATE.replace("Template", &policy))
        .with_context(|| format!("could not write {}", file.display()))?;
    fs::write(&path, registry).with_context(|| format!("could not write {}", path.display()))?;
    Ok(module)
}

/// The registry with one more policy: its module and its type where they belong by the alphabet, and its line as the last
/// one.
fn register(registry: &str, name: &str, module: &str, policy: &str) -> Result<String> {
    let mut lines: Vec<String> = registry.lines().map(str::to_owned).collect();
    for (prefix, line) in [("mod ", format!("mod {module};")), ("use ", format!("use {module}::{policy};"))] {
        let bare = |line: &str| line.strip_prefix("pub ").unwrap_or(line).to_owned();
        let is_one = |known: &String| bare(known).starts_with(prefix) && !bare(known).starts_with("use crate");
        let first = lines.iter().position(is_one).with_context(|| format!("there is no line `{prefix}…`"))?;
        let block = lines[first..].iter().take_while(|known| is_one(known));
        let at = first + block.take_while(|known| bare(known) < line).count();
        lines.insert(at, if prefix == "use " { format!("pub {line}") } else { line });
    }
    let list = lines.iter().position(|line| line == "policies! {").context("there is no list `policies! {`")?;
    let end = lines[list..].iter().position(|line| line == "}").context("the list `policies! {` does not end")?;
    lines.insert(list + end, format!("    \"{name}\" {module}::{policy} \"what it does, in a few words\""));
    Ok(lines.join("\n") + "\n")
}

fn is_keyword(word: &str) -> bool {
    const KEYWORDS: &[&str] = &[
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
        "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro",
        "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct", "super",
        "trait", "true", "try", "type", "typeof", "union", "unsafe", "unsized", "use", "virtual", "where", "while",
        "yield",
    ];
    KEYWORDS.contains(&word)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder with the registry alone.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("baton-lab-new-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            let policies = root().unwrap().join("src/lab/policy/policies/mod.rs");
            fs::copy(policies, path.join("mod.rs")).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_new_policy_is_a_file_and_three_lines() {
        let folder = Folder::new("lines");
        let before = fs::read_to_string(folder.0.join("mod.rs")).unwrap();
        assert_eq!(create(&folder.0, "my-policy").unwrap(), "my_policy");
        let policy = fs::read_to_string(folder.0.join("my_policy.rs")).unwrap();
        assert!(
            policy.contains("impl Policy for MyPolicy") && policy.contains("#[test]") && !policy.contains("Template")
        );
        let after = fs::read_to_string(folder.0.join("mod.rs")).unwrap();
        let new: Vec<&str> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
        assert_eq!(
            new,
            [
                "mod my_policy;",
                "pub use my_policy::MyPolicy;",
                "    \"my-policy\" my_policy::MyPolicy \"what it does, in a few words\"",
            ]
        );
        assert_eq!(after.lines().count(), before.lines().count() + 3);
        let modules: Vec<&str> =
            after.lines().skip_while(|line| !line.starts_with("mod ")).take_while(|line| !line.is_empty()).collect();
        assert!(modules.is_sorted_by_key(|line| line.trim_start_matches("pub ")), "{modules:?}");
        // One more, beside it.
        create(&folder.0, "other").unwrap();
        let error = create(&folder.0, "my-policy").unwrap_err().to_string();
        assert_eq!(error, "`my-policy` is taken, by another policy or by Rust: choose another name");
    }

    #[test]
    fn a_name_that_is_bad_or_taken_changes_nothing() {
        let folder = Folder::new("names");
        let before = fs::read_to_string(folder.0.join("mod.rs")).unwrap();
        for name in ["", "-", "a-", "-a", "a--b", "A", "aB", "1a", "a b", "../a", "a.rs", "ä", "a_b"] {
            let error = create(&folder.0, name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{name}` is no name for a policy: ")), "{error}");
        }
        for name in ["rr", "rr-percpu", "match", "self", "entry", "visitor", "policy", "gen", "template"] {
            let error = create(&folder.0, name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{name}` is taken")), "{error}");
        }
        assert_eq!(fs::read_to_string(folder.0.join("mod.rs")).unwrap(), before);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
        fs::write(folder.0.join("stray.rs"), "mine").unwrap();
        let error = create(&folder.0, "stray").unwrap_err().to_string();
        assert!(
            error.starts_with("there is a file ") && error.ends_with("choose another name, or remove it"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(folder.0.join("stray.rs")).unwrap(), "mine");
    }
}
