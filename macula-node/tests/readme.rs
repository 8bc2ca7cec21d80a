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
            words.extend(part.split_whitespace().map(str::to_owned));
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
