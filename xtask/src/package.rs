//! What crates.io receives: each published crate is packed and looked into.
//!
//! A crate carries both licences, its readme and its changelog, and nothing that its users have no use for. Its manifest
//! says where it comes from and how to find it. Packing itself fails on a manifest that crates.io would refuse.
//!
//! Left out: compiling the packed crates. `cargo package` without `--no-verify` does that before a release.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::finding::{Finding, report};
use crate::house::published;
use crate::metadata::{Package, packages};
use crate::workspace::{cargo, output, run};

/// Files that every crate carries.
const PAPERS: &[&str] = &["CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// What else may stand at the top of a crate. Cargo writes the first four.
const PARTS: &[&str] = &[
    ".cargo_vcs_info.json",
    "Cargo.lock",
    "Cargo.toml",
    "Cargo.toml.orig",
    "BENCHMARKS.md",
    "benches",
    "build.rs",
    "docs",
    "examples",
    "plots",
    "proto",
    "sim",
    "src",
    "tests",
];

/// The most keywords and categories that crates.io takes, and the longest keyword.
const MAX_WORDS: usize = 5;
const MAX_KEYWORD_BYTES: usize = 20;

/// Packs every published crate and checks the manifests and the contents.
pub(crate) fn check() -> Result<()> {
    let packages = packages()?;
    let packages: Vec<_> = packages.iter().filter(|it| published(&it.name)).collect();
    let mut findings: Vec<_> = packages.iter().flat_map(|it| manifest(it)).collect();
    let mut pack = cargo();
    pack.args(["package", "--locked", "--quiet", "--no-verify", "--allow-dirty"]);
    for package in &packages {
        pack.args(["--package", &package.name]);
        let mut list = cargo();
        list.args([
            "package",
            "--list",
            "--quiet",
            "--allow-dirty",
            "--package",
            &package.name,
        ]);
        findings.extend(contents(&package.name, &output(&mut list)?));
    }
    run(&mut pack)?;
    report(findings)?;
    println!("{} crates are ready to publish", packages.len());
    Ok(())
}

/// What the manifest lacks.
fn manifest(package: &Package) -> Vec<Finding> {
    let set = |field: &Option<String>| field.as_ref().is_some_and(|it| !it.is_empty());
    let words = |words: &[String]| (1..=MAX_WORDS).contains(&words.len());
    let short = package.keywords.iter().all(|it| it.len() <= MAX_KEYWORD_BYTES);
    let all_features = package.metadata.pointer("/docs/rs/all-features") == Some(&true.into());
    let fields = [
        ("description", set(&package.description)),
        ("documentation", set(&package.documentation)),
        ("license", set(&package.license)),
        ("readme", set(&package.readme)),
        ("repository", set(&package.repository)),
        ("rust-version", set(&package.rust_version)),
        ("keywords", words(&package.keywords) && short),
        ("categories", words(&package.categories)),
        ("package.metadata.docs.rs.all-features", all_features),
    ];
    let missing = fields.iter().filter(|(_, is_right)| !is_right);
    let findings = missing.map(|(field, _)| {
        Finding::new(
            format!("{}/Cargo.toml", package.name),
            format!("{field} is missing or too long"),
            "crates.io and docs.rs show it: set it as the other crates do",
        )
    });
    findings.collect()
}

/// What `cargo package --list` shows too little or too much of.
fn contents(package: &str, list: &str) -> Vec<Finding> {
    let tops: BTreeSet<&str> = list.lines().filter_map(|it| it.split('/').next()).collect();
    let missing = PAPERS.iter().filter(|it| !tops.contains(**it)).map(|paper| {
        Finding::new(
            format!("{package}/{paper}"),
            "not in the crate",
            "write it, or link the licence from the top level",
        )
    });
    let stray = tops.iter().filter(|it| !PAPERS.contains(it) && !PARTS.contains(it));
    let stray = stray.map(|top| {
        Finding::new(
            format!("{package}/{top}"),
            "in the crate, and no user of the crate needs it",
            "add it to `exclude` in the manifest, or to the parts that xtask/src/package.rs knows",
        )
    });
    missing.chain(stray).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "Cargo.toml\nCHANGELOG.md\nLICENSE-APACHE\nLICENSE-MIT\nREADME.md\nsrc/lib.rs\nsrc/a/b.rs\n";

    fn wrong(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|it| it.place.as_str()).collect()
    }

    fn package(text: &str) -> Package {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn z7_a_crate_without_its_licence_is_found() {
        assert_eq!(contents("a", FULL), []);
        let list = FULL.replace("LICENSE-MIT\n", "");
        assert_eq!(wrong(&contents("a", &list)), ["a/LICENSE-MIT"]);
    }

    #[test]
    fn z7_a_stray_file_is_found_once() {
        let list = format!("{FULL}.gitignore\nnotes/one.txt\nnotes/two.txt\n");
        assert_eq!(wrong(&contents("a", &list)), ["a/.gitignore", "a/notes"]);
    }

    #[test]
    fn z7_a_manifest_says_where_it_comes_from_and_how_to_find_it() {
        let bare = package(r#"{"name":"a","manifest_path":"a/Cargo.toml","dependencies":[]}"#);
        assert_eq!(manifest(&bare).len(), 9);
        let full = package(
            r#"{"name":"a","manifest_path":"a/Cargo.toml","dependencies":[],"description":"d","documentation":"u",
                "license":"MIT","readme":"README.md","repository":"r","rust_version":"1.90","keywords":["k"],
                "categories":["c"],"metadata":{"docs":{"rs":{"all-features":true}}}}"#,
        );
        assert_eq!(manifest(&full), []);
    }

    #[test]
    fn z7_keywords_stay_within_the_registrys_limits() {
        let with = |keywords: &str| {
            let text = format!(r#"{{"name":"a","manifest_path":"","dependencies":[],"keywords":{keywords}}}"#);
            manifest(&package(&text))
                .iter()
                .any(|it| it.wrong.starts_with("keywords"))
        };
        assert!(!with(r#"["quic","rpc"]"#));
        assert!(with(r#"["a","b","c","d","e","f"]"#));
        assert!(with(r#"["a-keyword-that-is-too-long"]"#));
    }
}
