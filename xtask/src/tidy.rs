//! The rules of the tree that neither `rustfmt` nor `clippy` knows.
//!
//! The top level holds what it must and nothing else; files stay small; tests neither sleep nor hide; modules say what
//! they are for; packages carry a readme and a changelog.

use std::path::PathBuf;
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use regex::Regex;

use crate::finding::{Finding, report};
use crate::house::HOUSE;
use crate::source::{self, Source, matches, pattern};
use crate::workspace::{files, root};

/// The longest a hand-written file may be, tests included.
const MAX_LINES: usize = 700;

/// What else the top level holds, dotfiles and build output apart.
const TOP_FILES: &[&str] = &["Cargo.toml", "Cargo.lock", "README.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// The packages; each is a folder of its own name.
fn packages() -> impl Iterator<Item = &'static str> + Clone {
    HOUSE.iter().map(|(name, _)| *name)
}

/// Applies every rule to the tree.
pub(crate) fn check() -> Result<()> {
    let mut findings = top_level(&top_names()?);
    findings.extend(missing_papers(|path| root().join(path).is_file()));
    let sources = source::read(&rust_files()?)?;
    findings.extend(sources.iter().filter(|it| !it.is_generated()).flat_map(rules));
    report(findings)?;
    println!("{} Rust files are tidy", sources.len());
    Ok(())
}

/// Every Rust file of the packages, with those of the unpublished packages they hold.
fn rust_files() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for package in packages() {
        all.extend(files(&root().join(package), "rs")?);
    }
    Ok(all)
}

fn top_names() -> Result<Vec<String>> {
    let entries = root().read_dir().context("cannot read the workspace root")?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn top_level(names: &[String]) -> Vec<Finding> {
    let allowed = |name: &str| {
        name.starts_with('.') || name == "target" || packages().any(|it| it == name) || TOP_FILES.contains(&name)
    };
    let strangers = names.iter().filter(|name| !allowed(name));
    let extra = strangers.map(|name| {
        Finding::new(
            name,
            "does not belong at the top level",
            "move it into the package it serves: fuzz targets, examples, deployment files and benchmarks live there",
        )
    });
    let missing = packages()
        .chain(TOP_FILES.iter().copied())
        .filter(|it| !names.iter().any(|name| name == it));
    let missing = missing.map(|name| Finding::new(name, "missing from the top level", "restore it"));
    extra.chain(missing).collect()
}

/// A published package is read before it is used.
fn missing_papers(exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let published = packages().filter(|it| *it != "xtask");
    let papers = published.flat_map(|package| ["README.md", "CHANGELOG.md"].map(|it| format!("{package}/{it}")));
    papers
        .filter(|path| !exists(path))
        .map(|path| {
            Finding::new(
                path,
                "missing",
                "write it: every published package has a readme and a changelog",
            )
        })
        .collect()
}

fn rules(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(too_long(source));
    findings.extend(undocumented_module(source));
    findings.extend(forbidden(source));
    findings.extend(sleeping_tests(source));
    findings
}

fn too_long(source: &Source) -> Option<Finding> {
    let lines = source.text.lines().count();
    (lines > MAX_LINES).then(|| {
        Finding::new(
            &source.path,
            format!("{lines} lines, the limit is {MAX_LINES}"),
            "one concept a file: split it, or move its tests into a `tests` module file",
        )
    })
}

/// A module that ships opens with `//!`, or is its package's readme.
fn undocumented_module(source: &Source) -> Option<Finding> {
    let ships = source.path.contains("/src/") && !source.shipped.trim().is_empty();
    let is_readme = source.text.starts_with("#![doc") || source.text.contains("\n#![doc = include_str!");
    let documented = is_readme || source.module_docs().next().is_some();
    (ships && !documented).then(|| {
        Finding::new(
            &source.path,
            "the module does not say what it is for",
            "open it with `//!`: purpose, invariants, what it leaves out",
        )
    })
}

fn forbidden(source: &Source) -> Vec<Finding> {
    static WORDS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        vec![
            (pattern(r"#\[ignore\b"), "make the test run everywhere, or delete it"),
            (
                pattern(r"\b(?:todo|unimplemented)!"),
                "finish it, or leave it out until it can be finished",
            ),
        ]
    });
    let found = WORDS.iter().flat_map(|(words, mend)| {
        matches(&source.code, words).map(move |(line, word)| {
            Finding::new(
                format!("{}:{line}", source.path),
                format!("`{word}` is not allowed"),
                *mend,
            )
        })
    });
    found.collect()
}

/// A test that waits for an amount of time is slow where it passes and fails where it is slow. Under tokio's paused
/// clock sleeping takes no time and its order is fixed, so a file that pauses the clock may sleep on it.
fn sleeping_tests(source: &Source) -> Vec<Finding> {
    static THREAD: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bthread::(?:sleep\b|\{[^}]*\bsleep\b)"));
    static TOKIO: LazyLock<Regex> = LazyLock::new(|| pattern(r"\btime::(?:sleep\b|\{[^}]*\bsleep\b)"));
    static PAUSED: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bstart_paused\b|\btime::pause\b"));
    let test_lines = |(line, _): &(usize, &str)| {
        let shipped = source.shipped.lines().nth(line - 1).unwrap_or_default();
        source.is_integration_test() || shipped.trim().is_empty()
    };
    let asleep = matches(&source.code, &THREAD).filter(test_lines);
    let dozing = matches(&source.code, &TOKIO)
        .filter(test_lines)
        .filter(|_| !PAUSED.is_match(&source.code));
    asleep
        .chain(dozing)
        .map(|(line, _)| {
            Finding::new(
                format!("{}:{line}", source.path),
                "a test that sleeps",
                "wait for the event itself, with a timeout; or pause the clock",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(extra: &[&str]) -> Vec<String> {
        let required = packages().chain(TOP_FILES.iter().copied());
        let all = required
            .map(str::to_owned)
            .chain(extra.iter().map(|it| (*it).to_owned()));
        all.collect()
    }

    fn found(path: &str, text: &str) -> Vec<String> {
        let findings = rules(&Source::new(path, text));
        findings
            .into_iter()
            .map(|it| format!("{} {}", it.place, it.wrong))
            .collect()
    }

    #[test]
    fn the_top_level_may_hold_dotfiles_and_build_output() {
        assert_eq!(top_level(&names(&[".ci", ".gitignore", "target"])), []);
    }

    #[test]
    fn the_top_level_holds_nothing_else_and_nothing_less() {
        let extra = top_level(&names(&["examples"]));
        assert_eq!(extra.len(), 1);
        assert_eq!(extra[0].place, "examples");
        let less: Vec<_> = names(&[]).into_iter().filter(|it| it != "macula-rpc").collect();
        assert_eq!(top_level(&less)[0].place, "macula-rpc");
    }

    #[test]
    fn a_published_package_has_a_readme_and_a_changelog() {
        assert_eq!(missing_papers(|_| true), []);
        let missing = missing_papers(|path| path != "macula-dht/CHANGELOG.md");
        assert_eq!(missing[0].place, "macula-dht/CHANGELOG.md");
        assert_eq!(missing.len(), 1);
    }

    #[test]
    fn a_file_has_at_most_700_lines() {
        let lines = |n: usize| format!("//! A.\n{}", "const A: u8 = 1;\n".repeat(n - 1));
        assert_eq!(found("a/src/a.rs", &lines(700)), [""; 0]);
        assert_eq!(
            found("a/src/a.rs", &lines(701)),
            ["a/src/a.rs 701 lines, the limit is 700"]
        );
    }

    #[test]
    fn a_module_opens_with_its_purpose() {
        assert_eq!(found("a/src/a.rs", "use b;\n").len(), 1);
        assert_eq!(found("a/src/a.rs", "// licence\n//! What for.\nuse b;\n"), [""; 0]);
        let readme = "#![doc = include_str!(\"../README.md\")]\nmod b;\n";
        assert_eq!(found("a/src/lib.rs", readme), [""; 0]);
        assert_eq!(found("a/tests/a.rs", "use b;\n"), [""; 0]);
    }

    #[test]
    fn no_test_is_ignored_and_nothing_is_left_to_do() {
        let text =
            "//! A.\n#[ignore = \"slow\"]\nfn a() { todo!(\"later\") }\n// todo!()\nconst B: &str = \"todo!()\";\n";
        let expected = [
            "a/src/a.rs:2 `#[ignore` is not allowed",
            "a/src/a.rs:3 `todo!` is not allowed",
        ];
        assert_eq!(found("a/src/a.rs", text), expected);
    }

    #[test]
    fn tests_do_not_sleep() {
        let sleep = "use std::thread::sleep;\nfn a() { tokio::time::sleep(x); }\nuse tokio::time::{Instant, sleep};\n";
        assert_eq!(found("a/tests/a.rs", sleep).len(), 3);
        let in_module = format!("//! A.\nfn ship() {{}}\n#[cfg(test)]\nmod tests {{\n{sleep}}}\n");
        assert_eq!(found("a/src/a.rs", &in_module).len(), 3);
    }

    #[test]
    fn the_program_may_sleep_and_so_may_a_paused_test() {
        let shipped = "//! A.\nasync fn a() { tokio::time::sleep(x).await }\n";
        assert_eq!(found("a/src/a.rs", shipped), [""; 0]);
        let paused = "#[tokio::test(start_paused = true)]\nasync fn a() { tokio::time::sleep(x).await }\n";
        assert_eq!(found("a/tests/a.rs", paused), [""; 0]);
        assert_eq!(found("a/tests/a.rs", "fn a() { tokio::time::sleep_until(x) }"), [""; 0]);
    }
}
