//! The commands of the readmes are commands of the program.

use std::{path::Path, process::Command};

/// The words that follow `macula` on each line of a shell example.
fn commands(readme: &str) -> Vec<Vec<String>> {
    let fences = readme.split("```sh\n").skip(1);
    let lines = fences.flat_map(|it| it.split("```").next().unwrap_or_default().lines());
    lines
        .filter_map(|line| {
            let command = line.strip_prefix("cargo run --release -p macula-node --");
            words(command.or_else(|| line.strip_prefix("macula "))?)
        })
        .collect()
}

/// Splits at spaces; single quotes hold words together.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 0 {
            let glued = at > 0 && !part.starts_with(' ');
            assert!(!glued || part.is_empty(), "text follows a quote in {line}");
            let words_of = part.split_whitespace();
            words.extend(words_of.map(|word| {
                if word == "NODEID" {
                    "ab".repeat(32)
                } else {
                    word.to_owned()
                }
            }));
        } else {
            words.push(part.to_owned());
        }
    }
    (!words.is_empty()).then_some(words)
}

#[test]
fn n1_every_command_of_the_readmes_is_understood() {
    let mut count = 0;
    for readme in ["../README.md", "README.md", "docs/operating.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(readme);
        for words in commands(&std::fs::read_to_string(path).unwrap()) {
            // Options are read from left to right: help is shown only when those before it are right.
            let mut macula = Command::new(env!("CARGO_BIN_EXE_macula"));
            let output = macula.args(&words).arg("--help").output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "macula {}: {complaint}", words.join(" "));
            count += 1;
        }
    }
    assert!(count >= 25, "only {count} commands were found");
}

#[test]
fn a_command_that_the_program_does_not_know_is_refused() {
    for words in [
        &["node", "--lisen", "127.0.0.1:0"][..],
        &["node", "--listen", "nowhere"],
        &["nod"],
    ] {
        let mut macula = Command::new(env!("CARGO_BIN_EXE_macula"));
        let output = macula.args(words).arg("--help").output().unwrap();
        assert!(!output.status.success(), "{words:?} is understood");
    }
}

/// A claim of the threat model, or of SECURITY.md, is held by a test of this tree. A name may be cut short: `x1_no_call…`.
#[test]
fn every_test_that_the_pages_about_security_name_exists() {
    fn sources(folder: &Path, found: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                sources(&path, found);
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut code = String::new();
    for package in [
        "macula-wire",
        "macula-dht",
        "macula-transport",
        "macula-rpc",
        "macula-node",
    ] {
        sources(&root.join(package), &mut code);
    }
    for page in ["macula-node/docs/security.md", ".github/SECURITY.md"] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let quoted = text.split('`').skip(1).step_by(2);
        let is_test = |it: &&str| {
            let number = it.split('_').next().unwrap_or_default();
            let number = number
                .strip_prefix(|c: char| c.is_ascii_lowercase())
                .unwrap_or_default();
            it.contains('_') && number.parse::<u32>().is_ok()
        };
        let named: Vec<_> = quoted.filter(is_test).collect();
        assert!(named.len() > 20, "{page} names {} tests only", named.len());
        for name in named {
            let wanted = match name.strip_suffix('…') {
                Some(start) => format!("fn {start}"),
                None => format!("fn {name}("),
            };
            assert!(code.contains(&wanted), "there is no test {name}, which {page} names");
        }
    }
}
