//! Dependencies keep the rules of `deny.toml`, which says why they are there: licenses, banned versions, sources.
//!
//! `cargo deny check licenses bans sources` checks the same file and more; building it takes minutes, this takes seconds.

use std::path::Path;

use cargo_metadata::semver::VersionReq;
use cargo_metadata::{CargoOpt, Metadata, MetadataCommand, Package};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    wildcards: Level,
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    /// `name`, or `name:requirement`.
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
enum Level {
    Deny,
}

fn rules(text: &str) -> Rules {
    toml::from_str(text).unwrap_or_else(|error| panic!("deny.toml: {error}"))
}

fn checkout() -> (String, Metadata) {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let root = Path::new(&package).parent().expect("the package is a folder of the workspace").to_owned();
    let mut command = MetadataCommand::new();
    command.manifest_path(root.join("Cargo.toml")).features(CargoOpt::AllFeatures);
    let metadata = command.other_options(["--locked".to_owned()]).exec().expect("the workspace can be read");
    (std::fs::read_to_string(root.join("deny.toml")).expect("there is a deny.toml"), metadata)
}

/// A sentence for each rule that a package breaks.
fn problems(rules: &Rules, package: &Package) -> Vec<String> {
    let (name, version) = (&package.name, &package.version);
    let mut problems = Vec::new();
    let license = package.license.as_deref().unwrap_or_default();
    let is_allowed = Expression::parse_mode(license, ParseMode::LAX).is_ok_and(|license| {
        license.evaluate(|asked| rules.licenses.allow.iter().any(|allowed| asked.to_string() == *allowed))
    });
    if !is_allowed {
        problems.push(format!("{name} {version} has the license `{license}`, and deny.toml does not allow that"));
    }
    for ban in &rules.bans.deny {
        let (banned, requirement) = ban.name.split_once(':').unwrap_or((&ban.name, "*"));
        let requirement =
            VersionReq::parse(requirement).unwrap_or_else(|error| panic!("deny.toml: {}: {error}", ban.name));
        if banned == name.as_str() && requirement.matches(version) {
            problems.push(format!("{name} {version} is banned: {}", ban.reason));
        }
    }
    match &package.source {
        Some(source) if !source.is_crates_io() => {
            problems.push(format!(
                "{name} {version} comes from {source}, which is neither the registry nor this workspace"
            ));
        }
        Some(_) => {}
        None => {
            let wild = package.dependencies.iter().filter(|it| it.path.is_none() && it.req == VersionReq::STAR);
            problems.extend(wild.map(|it| format!("{name} takes any version of {}: name one", it.name)));
        }
    }
    problems
}

#[test]
fn licenses_versions_and_sources_are_those_that_deny_toml_allows() {
    let (text, metadata) = checkout();
    let rules = rules(&text);
    assert!(metadata.packages.len() > 50, "the dependencies were not read");
    let problems: Vec<String> = metadata.packages.iter().flat_map(|package| problems(&rules, package)).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The rules can be broken: each of them finds something when it is made stricter.
#[test]
fn every_rule_can_fail() {
    let (text, metadata) = checkout();
    assert_eq!(rules(&text).bans.wildcards, Level::Deny);
    assert_eq!((rules(&text).sources.unknown_registry, rules(&text).sources.unknown_git), (Level::Deny, Level::Deny));
    let found = |text: &str, change: fn(&mut Package)| -> Vec<String> {
        let (rules, mut packages) = (rules(text), metadata.packages.clone());
        packages.iter_mut().for_each(change);
        packages.iter().flat_map(|package| problems(&rules, package)).collect()
    };
    let with = |a: &str, b: &str| {
        assert!(text.contains(a), "deny.toml has no {a}");
        text.replace(a, b)
    };
    let no_zlib = found(&with("\"Zlib\", ", ""), |_| {});
    assert!(no_zlib.iter().any(|problem| problem.contains("has the license `Zlib`")), "{no_zlib:?}");
    let banned = found(&with("heapless:<0.9.4", "heapless:<99"), |_| {});
    assert!(banned.iter().all(|problem| problem.contains("heapless") && problem.contains("advisories")), "{banned:?}");
    assert!(!banned.is_empty());
    let elsewhere = found(&text, |package| {
        package.source.iter_mut().for_each(|source| source.repr = "git+https://example.com/a".to_owned());
    });
    assert!(elsewhere.iter().any(|problem| problem.contains("neither the registry")), "{elsewhere:?}");
    let wild = found(&text, |package| {
        package.dependencies.iter_mut().for_each(|dependency| dependency.req = VersionReq::STAR);
    });
    assert!(wild.iter().any(|problem| problem.contains("takes any version of anyhow")), "{wild:?}");
}
