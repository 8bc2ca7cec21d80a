//! The steps of the CI. Each prints a header and its time. The first failure ends the run with one line that names the step
//! and the command that runs it alone.
//!
//! Cheap steps come first. Unit and integration tests come last, and nothing is printed after them, so a run ends with the
//! test runner's own closing lines.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::cluster::{self, Backend};
use crate::house::published;
use crate::metadata::packages;
use crate::workspace::{cargo, run, side_packages};
use crate::{clients, codegen, deny, deploy, examples, fuzz, layers, package, programs, tidy};

/// One thing to run.
struct Step {
    name: &'static str,
    /// The command that runs this step alone.
    again: &'static str,
    run: fn() -> Result<()>,
}

const CHECK: &[Step] = &[
    Step {
        name: "format",
        again: "cargo fmt --all -- --check",
        run: format,
    },
    Step {
        name: "tidy",
        again: "cargo xtask tidy",
        run: tidy::check,
    },
    Step {
        name: "codegen",
        again: "cargo xtask codegen --check",
        run: codegen::check,
    },
    Step {
        name: "layers",
        again: "cargo xtask layers",
        run: layers::check,
    },
    Step {
        name: "package",
        again: "cargo xtask package",
        run: package::check,
    },
    Step {
        name: "deny",
        again: "cargo xtask deny",
        run: || deny::check(false),
    },
    Step {
        name: "deploy",
        again: "cargo xtask deploy",
        run: deploy::check,
    },
    Step {
        name: "clippy",
        again: CLIPPY_AGAIN,
        run: clippy,
    },
    Step {
        name: "alone",
        again: "cargo xtask alone",
        run: alone,
    },
    Step {
        name: "fuzz targets",
        again: "cargo xtask fuzz --check",
        run: fuzz::check,
    },
];

const CLIPPY_AGAIN: &str = "cargo clippy --workspace --all-targets --all-features -- -D warnings";

const DOCS: &[Step] = &[Step {
    name: "docs",
    again: "cargo xtask docs",
    run: build_docs,
}];

const NETWORK: Step = Step {
    name: "hosts in network namespaces",
    again: "cargo xtask cluster --quick --backend netns",
    run: || cluster::quick(Backend::Netns, false),
};

const CONTAINERS: Step = Step {
    name: "hosts in containers",
    again: "cargo xtask cluster --quick --backend compose",
    run: || cluster::quick(Backend::Containers, false),
};

/// The same where Docker was promised: without an engine it fails.
const ENGINE: Step = Step {
    run: || cluster::quick(Backend::Containers, true),
    ..CONTAINERS
};

const TEST: &[Step] = &[
    Step {
        name: "examples",
        again: "cargo xtask examples",
        run: examples::check,
    },
    Step {
        name: "clients",
        again: "cargo xtask clients",
        run: clients::check,
    },
    Step {
        name: "bottle",
        again: "cargo xtask sim mesh -- --seeds 1..101 --twice",
        run: bottle,
    },
    Step {
        name: "doctests",
        again: "cargo test --workspace --all-features --doc",
        run: doctests,
    },
    Step {
        name: "tests",
        again: TESTS_AGAIN,
        run: tests,
    },
];

const TESTS_AGAIN: &str = "cargo test --workspace --all-features --lib --bins --tests --examples";

/// Format, tidy, generated code, layers, packages, dependencies, lints, each package on its own, and the fuzz targets' lints.
pub(crate) fn check() -> Result<()> {
    run_all(&[CHECK])
}

/// Every example, test and doctest, clients in other languages, and the simulated mesh.
pub(crate) fn test() -> Result<()> {
    run_all(&[TEST])
}

/// The documentation, with warnings denied.
pub(crate) fn docs() -> Result<()> {
    run_all(&[DOCS])
}

/// All of the above, and scenarios of faults on hosts of their own. With `engine`, a missing Docker engine is a failure; without
/// it, the containers are left out, and a line says so.
pub(crate) fn ci(engine: bool) -> Result<()> {
    let containers = if engine { ENGINE } else { CONTAINERS };
    run_all(&[CHECK, DOCS, &[NETWORK, containers], TEST])
}

/// Each package by itself: its library with the default features, with none and with each one alone; its tests and examples
/// with the default features and without a warning; its doctests with no feature.
///
/// In the other steps, all features are on, and other members turn on features of shared dependencies. Only this step shows a
/// dependency's feature that a package forgot to ask for, and code that lacks the `cfg` of its feature.
pub(crate) fn alone() -> Result<()> {
    const NONE: &str = "--no-default-features";

    let packages = packages()?;
    for package in packages.iter().filter(|it| published(&it.name)) {
        let alone = |arguments: &[&str]| {
            let (subcommand, rest) = arguments.split_first().context("a subcommand")?;
            let mut command = cargo();
            command
                .args([subcommand, "--locked", "--quiet", "--package", &package.name])
                .args(rest);
            run(&mut command).context("it lacks a feature of a dependency, or a `cfg` around code that needs one")
        };
        alone(&["check"])?;
        alone(&["check", NONE])?;
        for feature in package.features() {
            alone(&["check", NONE, "--features", feature])?;
        }
        alone(&["clippy", "--tests", "--examples", "--", "-D", "warnings"])?;
        alone(&["test", "--doc", NONE])?;
    }
    println!("every package compiles on its own");
    Ok(())
}

fn run_all(groups: &[&[Step]]) -> Result<()> {
    let steps: Vec<&Step> = groups.iter().copied().flatten().collect();
    for (at, step) in steps.iter().enumerate() {
        println!("==> {} ({} of {})", step.name, at + 1, steps.len());
        let started = Instant::now();
        (step.run)().with_context(|| format!("step {} failed, run it alone with `{}`", step.name, step.again))?;
        if at + 1 < steps.len() {
            println!("    {} took {:.1} s", step.name, started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// `cargo` with a subcommand over the whole workspace, every feature on.
fn workspace(subcommand: &str) -> Command {
    let mut command = cargo();
    command.args([subcommand, "--locked", "--workspace", "--all-features"]);
    command
}

fn format() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--", "--check"]))?;
    for manifest in side_packages()? {
        run(cargo()
            .args(["fmt", "--manifest-path"])
            .arg(manifest)
            .args(["--", "--check"]))?;
    }
    Ok(())
}

fn clippy() -> Result<()> {
    run(workspace("clippy").args(["--all-targets", "--", "-D", "warnings"]))
}

fn build_docs() -> Result<()> {
    run(workspace("doc").arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

/// The mesh in a bottle: the kept schedules and a hundred seeds, in two processes whose traces must be the same.
fn bottle() -> Result<()> {
    programs::sim(programs::Request::new(
        "mesh",
        &["--seeds", "1..101", "--no-shrink", "--twice"],
    ))
}

fn doctests() -> Result<()> {
    run(workspace("test").arg("--doc"))
}

fn tests() -> Result<()> {
    run(workspace("test").args(["--lib", "--bins", "--tests", "--examples"]))
}
