//! The rules of the tree that neither `rustfmt` nor `clippy` knows.
//!
//! The top level holds the files it needs and no others; files stay small; tests neither sleep nor hide; modules state their
//! purpose; packages carry a readme and a changelog.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use regex::Regex;

use crate::english::contorted;
use crate::finding::{Finding, report};
use crate::house::HOUSE;
use crate::source::{self, Source, matches, pattern};
use crate::workspace::{display, files, root};

/// The longest a hand-written file may be, tests included.
const MAX_LINES: usize = 700;

/// The longest a program in `examples/` may be.
const MAX_EXAMPLE_LINES: usize = 80;

/// The files of the top level, besides dotfiles.
const TOP_FILES: &[&str] = &[
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
];

/// The packages; each is a folder of its own name.
fn packages() -> impl Iterator<Item = &'static str> + Clone {
    HOUSE.iter().map(|(name, _)| *name)
}

/// Applies every rule to the tree.
pub(crate) fn check() -> Result<()> {
    let mut findings = top_level(&top_names()?);
    findings.extend(missing_papers(|path| root().join(path).is_file()));
    let sources = source::read(&rust_files()?)?;
    let written = sources.iter().filter(|it| !it.is_generated());
    findings.extend(written.clone().flat_map(rules));
    findings.extend(written.flat_map(|it| contorted(&it.path, &it.text)));
    for path in papers()? {
        let (name, text) = (
            display(&path),
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", display(&path)))?,
        );
        findings.extend(contorted(&name, &text));
        if name == "ARCHITECTURE.md" {
            findings.extend(lost_functions(&name, &text, &sources));
            findings.extend(lost_files(&name, &text, &sources));
        }
    }
    for package in packages().filter(|it| *it != "xtask") {
        let path = root().join(package).join("README.md");
        let readme = fs::read_to_string(&path).with_context(|| format!("cannot read {}", display(&path)))?;
        findings.extend(hidden_examples(package, &readme, &sources));
    }
    report(findings)?;
    println!("{} Rust files are tidy", sources.len());
    Ok(())
}

/// The Rust files that a paper names and that no package has, and the names that fit several files.
///
/// A name may leave out the first folders. It then means a file of a crate that its paragraph, list item or row names before or
/// after it; where only the heading's section names crates, the name must be the only one of the tree.
fn lost_files(path: &str, text: &str, sources: &[Source]) -> Vec<Finding> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| pattern(r"`[\w./-]+\.rs`"));
    let mut findings = Vec::new();
    for (first, step) in steps(text) {
        for (line, name) in matches(&step, &NAMED).map(|(line, name)| (first + line - 1, name.trim_matches('`'))) {
            let end = format!("/{name}");
            let fitting = || sources.iter().filter(|it| it.path == name || it.path.ends_with(&end));
            let of_step =
                || fitting().filter(|it| it.path.split('/').next().is_some_and(|package| step.contains(package)));
            let wrong = match (fitting().count(), of_step().count()) {
                (1, _) | (_, 1) => continue,
                (0, _) => format!("there is no {name}"),
                _ => format!("{name} fits several files"),
            };
            findings.push(Finding::new(
                format!("{path}:{line}"),
                wrong,
                "name the file that does this now, with its crate",
            ));
        }
    }
    findings
}

/// The paragraphs, list items and table rows of a paper, each with its first line's number.
fn steps(text: &str) -> Vec<(usize, String)> {
    let mut steps: Vec<(usize, String)> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let continues = line.starts_with("  ") || line.starts_with(|c: char| c.is_alphabetic() || c == '`' || c == '(');
        match steps.last_mut() {
            Some((first, step)) if continues && *first + step.lines().count() == at + 1 => {
                step.push('\n');
                step.push_str(line);
            }
            _ => steps.push((at + 1, line.to_owned())),
        }
    }
    steps
}

/// The functions that a paper names as `Type::function` and that no file with the type has.
fn lost_functions(path: &str, text: &str, sources: &[Source]) -> Vec<Finding> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| pattern(r"`(?:\w+::)*[A-Z]\w*::[a-z_]\w*(?:\(\))?`"));
    let exists = |kind: &str, function: &str| {
        // Plain searches first: expressions over the whole tree take seconds without optimisation.
        let near = |it: &&Source| it.code.contains(kind) && it.code.contains(function);
        let (kind_word, has) = (
            pattern(&format!(r"\b{kind}\b")),
            pattern(&format!(r"\b(?:fn {function}\b|{function}:)")),
        );
        sources
            .iter()
            .filter(near)
            .any(|it| kind_word.is_match(&it.code) && has.is_match(&it.code))
    };
    let mut findings = Vec::new();
    for (line, name) in matches(text, &NAMED) {
        let name = name.trim_matches(['`', '(', ')']);
        let mut parts = name.rsplit("::");
        if let (Some(function), Some(kind)) = (parts.next(), parts.next())
            && !exists(kind, function)
        {
            let place = format!("{path}:{line}");
            findings.push(Finding::new(
                place,
                format!("there is no {name}"),
                "name the function that does this now",
            ));
        }
    }
    findings
}

/// The programs in a package's `examples/` that its readme does not name: a user would not find them.
fn hidden_examples(package: &str, readme: &str, sources: &[Source]) -> Vec<Finding> {
    let folder = format!("{package}/examples/");
    let names = sources.iter().filter_map(|it| it.path.strip_prefix(&folder));
    let names: BTreeSet<_> = names.filter_map(|it| it.split('/').next()).collect();
    let hidden = names.into_iter().filter(|it| {
        let name = it.trim_end_matches(".rs");
        !readme.contains(&format!("`{name}`")) && !readme.contains(&format!("examples/{name}"))
    });
    hidden
        .map(|it| {
            Finding::new(
                format!("{folder}{it}"),
                "the readme does not name it",
                "add it to the readme's table of examples",
            )
        })
        .collect()
}

/// Every Markdown file of the tree.
fn papers() -> Result<Vec<PathBuf>> {
    let mut all = files(&root().join(".github"), "md")?;
    all.extend(
        TOP_FILES
            .iter()
            .filter(|it| it.ends_with(".md"))
            .map(|it| root().join(it)),
    );
    for package in packages() {
        all.extend(files(&root().join(package), "md")?);
    }
    Ok(all)
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

/// The readmes and changelogs that published packages lack.
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
    findings.extend(unbounded_headers(source));
    findings
}

fn too_long(source: &Source) -> Option<Finding> {
    let lines = source.text.lines().count();
    let is_example = source.path.contains("/examples/") && !source.is_integration_test();
    let (limit, mend) = if is_example {
        (MAX_EXAMPLE_LINES, "an example is read at a glance: show one thing")
    } else {
        (
            MAX_LINES,
            "one concept a file: split it, or move its tests into a `tests` module file",
        )
    };
    (lines > limit).then(|| Finding::new(&source.path, format!("{lines} lines, the limit is {limit}"), mend))
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

/// Tests that sleep. Such a test wastes time on a fast machine and fails on a slow one. Under tokio's paused clock sleeping
/// takes no time, so a file that pauses the clock may sleep.
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

/// The only file that makes headers of a list that a peer wrote.
const HEADER_READER: &str = "macula-rpc/src/tonic/headers.rs";

/// Lists of headers that are made elsewhere than by the bounded reader: a `HeaderMap` panics when a peer makes it overflow (X9).
fn unbounded_headers(source: &Source) -> Vec<Finding> {
    static MAKES: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"\.append\(|\bHeaderMap::(?:from_iter|try_from)\b|\.collect::<HeaderMap\b"));
    let ships = source.path != HEADER_READER && !source.is_integration_test();
    if !ships || !source.shipped.contains("HeaderMap") {
        return Vec::new();
    }
    matches(&source.shipped, &MAKES)
        .map(|(line, _)| {
            Finding::new(
                format!("{}:{line}", source.path),
                "headers made of a list without its bounds",
                format!("read the list with {HEADER_READER}, which bounds it; or use `try_append`"),
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
    fn a_file_that_a_paper_names_exists() {
        let sources = [
            Source::new("a/src/call/ask.rs", ""),
            Source::new("xtask/src/main.rs", ""),
        ];
        let text = "see `call/ask.rs`, `ask.rs`,\n`a/src/call/ask.rs`, `k.rs` and `gone/main.rs`";
        let lost = lost_files("P.md", text, &sources);
        let lost: Vec<_> = lost.iter().map(|it| (it.place.as_str(), it.wrong.as_str())).collect();
        let expected = [("P.md:2", "there is no k.rs"), ("P.md:2", "there is no gone/main.rs")];
        assert_eq!(lost, expected);
    }

    #[test]
    fn a_file_that_a_paper_names_is_the_only_one_of_that_name_in_the_crates_of_its_step() {
        let sources = [
            Source::new("a-wire/src/state.rs", ""),
            Source::new("a-node/src/state.rs", ""),
        ];
        let text =
            "1. In a-wire `state.rs`\n   and `state.rs`.\n2. Then `state.rs`.\n\n| a-wire, a-node | `state.rs` |";
        let lost = lost_files("P.md", text, &sources);
        let places: Vec<_> = lost.iter().map(|it| it.place.as_str()).collect();
        assert_eq!(places, ["P.md:3", "P.md:5"]);
        assert_eq!(lost[0].wrong, "state.rs fits several files");
    }

    #[test]
    fn a_function_that_a_paper_names_exists_beside_its_type() {
        let sources = [Source::new(
            "a/src/a.rs",
            "struct Node { at: u8 }\nimpl Node { fn start() {} }\n",
        )];
        let text = "`Node::start()` and `a::Node::at`, not\n`Node::stop` nor `Nod::start`";
        let lost: Vec<_> = lost_functions("P.md", text, &sources)
            .into_iter()
            .map(|it| it.wrong)
            .collect();
        assert_eq!(lost, ["there is no Node::stop", "there is no Nod::start"]);
    }

    #[test]
    fn an_example_stands_in_the_readme_of_its_package() {
        let sources =
            ["a/examples/one.rs", "a/examples/two.rs", "a/examples/big/src/main.rs"].map(|it| Source::new(it, ""));
        let hidden = hidden_examples("a", "see `one` and `examples/big`", &sources);
        assert_eq!(
            hidden.iter().map(|it| it.place.as_str()).collect::<Vec<_>>(),
            ["a/examples/two.rs"]
        );
    }

    #[test]
    fn an_example_has_at_most_80_lines() {
        let lines = |n: usize| format!("//! A.\n{}", "const A: u8 = 1;\n".repeat(n - 1));
        assert_eq!(found("a/examples/a.rs", &lines(80)), [""; 0]);
        assert_eq!(
            found("a/examples/a.rs", &lines(81)),
            ["a/examples/a.rs 81 lines, the limit is 80"]
        );
        assert_eq!(
            found("a/examples/big/src/main.rs", &lines(81)),
            ["a/examples/big/src/main.rs 81 lines, the limit is 80"]
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
    fn x9_lists_of_headers_are_made_by_their_one_reader() {
        let text = "//! A.\nfn a(mut map: HeaderMap) { map.append(name, value); }\n";
        assert_eq!(
            found("macula-rpc/src/tonic/a.rs", text),
            ["macula-rpc/src/tonic/a.rs:2 headers made of a list without its bounds"]
        );
        assert_eq!(found(HEADER_READER, text), [""; 0]);
        assert_eq!(
            found(
                "a/src/a.rs",
                "//! A.\nfn a(list: &mut Vec<u8>) { list.append(&mut b); }"
            ),
            [""; 0]
        );
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
