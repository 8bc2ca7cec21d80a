//! `cargo xtask examples`: builds and runs the programs in `examples/`, which a user starts from.
//!
//! Each of them asserts what it shows and ends by itself, so running it is its test. Simulations and benchmarks are example
//! targets too, but lie in other folders and are passed over.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::metadata::Target;
use crate::workspace::{cargo, display, output, root, run};

/// A line of `cargo build --message-format json`.
#[derive(Deserialize)]
struct Built {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

/// Builds all examples with every feature, and runs one after another.
pub(crate) fn check() -> Result<()> {
    let mut build = cargo();
    build.args([
        "build",
        "--locked",
        "--quiet",
        "--workspace",
        "--all-features",
        "--examples",
    ]);
    let programs = programs(&output(build.args(["--message-format", "json"]))?)?;
    ensure!(!programs.is_empty(), "no package has an example");
    for (source, program) in &programs {
        println!("{source}");
        run(Command::new(program).current_dir(root())).with_context(|| format!("{source} did not end well"))?;
    }
    Ok(())
}

/// The source and the program of each example that cargo says it has built.
fn programs(messages: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let built: Built = serde_json::from_str(line).context("cannot understand cargo's messages")?;
        if let (Some(target), Some(program)) = (built.target, built.executable) {
            let source = Path::new(&target.src_path);
            let is_example = target.kind.iter().any(|kind| kind == "example");
            if is_example && source.parent().is_some_and(|it| it.ends_with("examples")) {
                programs.push((display(source), program));
            }
        }
    }
    programs.sort();
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_in_examples_are_run() {
        let line = |kind: &str, path: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"x","kind":["{kind}"],"src_path":"{path}"}},"executable":"/t/x"}}"#
            )
        };
        let messages = [
            line("example", "/w/a/examples/x.rs"),
            line("example", "/w/a/sim/main.rs"),
            line("bin", "/w/a/examples/y.rs"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let found = programs(&messages.join("\n")).unwrap();
        assert_eq!(found, [("/w/a/examples/x.rs".to_owned(), PathBuf::from("/t/x"))]);
    }
}
