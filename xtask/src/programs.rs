//! `cargo xtask sim` and `cargo xtask bench`: builds a simulation or benchmark with optimisations, runs it, and shows the report
//! it writes (see [`crate::report`]).
//!
//! The simulation `x` is the program `sim_x` in `sim/` of the package it exercises. A benchmark has up to three parts:
//! `micro`, the package's criterion benches, which print their own results; `report`, the program `bench_x` in `benches/`;
//! and `compare`, the unpublished package `bench-compare`, which measures other stacks beside ours and has their dependencies.
//!
//! These programs are example targets, because they need dev-dependencies and take arguments; their files lie outside
//! `examples/`, which holds programs that a user starts from.
//!
//! Left out: the programs' options. Words after the name go to the program unread, except `--out`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::metadata::{Package, packages};
use crate::report::Report;
use crate::workspace::{cargo, line, run, target_dir};

/// Each simulation, and the package that it belongs to.
const SIMS: &[(&str, &str)] = &[
    ("select", "macula-select"),
    ("dht", "macula-dht"),
    ("mesh", "macula-node"),
    ("leaving", "macula-transport"),
    ("attack", "macula-transport"),
];

/// Each benchmark, the package it measures, and the parts it may have.
const BENCHES: &[(&str, &str, &[Part])] = &[
    ("wire", "macula-wire", &[Part::Micro, Part::Report]),
    ("select", "macula-select", &[Part::Micro, Part::Report, Part::Compare]),
    ("dht", "macula-dht", &[Part::Micro, Part::Report, Part::Compare]),
    ("transport", "macula-transport", &[Part::Micro, Part::Report]),
    ("rpc", "macula-transport", &[Part::Compare]),
    ("facade", "macula-rpc", &[Part::Report]),
    ("tonic", "macula-rpc", &[Part::Compare]),
    ("node", "macula-node", &[Part::Micro, Part::Report]),
    ("operate", "macula-node", &[Part::Report]),
    ("failover", "macula-node", &[Part::Compare]),
];

/// Has glibc keep freed pieces as large as a datagram at hand: a tenth of what a simulated network costs is asking for them.
const QUICK_MEMORY: [(&str, &str); 1] = [(
    "GLIBC_TUNABLES",
    "glibc.malloc.tcache_max=16384:glibc.malloc.tcache_count=64",
)];

/// A part of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// The package's criterion benches.
    Micro,
    /// The program `bench_NAME` in `benches/`.
    Report,
    /// The package `bench-compare` in its folder.
    Compare,
}

/// A program to run, and the folder for its files.
#[derive(Debug, clap::Args)]
pub(crate) struct Request {
    /// The benchmark or simulation.
    #[arg(value_name = "NAME")]
    name: String,
    /// The folder for the document and the plots.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Given to the program as they are; `-- --help` asks it for its own.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<String>,
}

impl Request {
    /// A program with these arguments, for a step of the CI.
    pub(crate) fn new(name: &str, args: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            out: None,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
        }
    }

    /// The name, the folder for files and the program's arguments. The folder is made if it is missing. People write `--out`
    /// last, so it is also found among the arguments.
    fn settle(self, default: &str) -> Result<(String, PathBuf, Vec<String>)> {
        let (found, args) = take_out(self.args)?;
        let out = found.or(self.out).unwrap_or_else(|| target_dir().join(default));
        fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
        Ok((self.name, out, args))
    }
}

/// Runs a simulation and shows its report.
pub(crate) fn sim(request: Request) -> Result<()> {
    let (name, out, args) = request.settle("sim")?;
    let Some((_, package)) = SIMS.iter().find(|(it, _)| *it == name) else {
        bail!(
            "no simulation {name:?}; there are {}",
            list(SIMS.iter().map(|(it, _)| *it))
        );
    };
    let packages = packages()?;
    let Some(mut program) = example(find(&packages, package)?, &format!("sim_{name}"), "sim") else {
        bail!("{package} has no target sim_{name}");
    };
    program.args(args).envs(QUICK_MEMORY);
    show_program(&mut program, &name, &out)
}

/// Runs a benchmark, or one part of it, and shows its report.
pub(crate) fn bench(request: Request, part: Option<Part>) -> Result<()> {
    let (name, out, args) = request.settle("bench")?;
    let Some((_, package, parts)) = BENCHES.iter().find(|(it, _, _)| *it == name) else {
        bail!(
            "no benchmark {name:?}; there are {}",
            list(BENCHES.iter().map(|(it, _, _)| *it))
        );
    };
    let packages = packages()?;
    let package = find(&packages, package)?;
    let wanted = parts.iter().filter(|it| part.is_none_or(|only| only == **it));
    let mut programs: Vec<(Part, Command)> = wanted
        .filter_map(|it| Some((*it, program_of(*it, package, &name)?)))
        .collect();
    ensure!(
        !programs.is_empty(),
        "{} has nothing to measure for {name}",
        package.name
    );
    ensure!(
        args.is_empty() || programs.len() == 1,
        "{name} has several parts: say with --part which one {:?} is for",
        args.join(" ")
    );
    for (part, program) in &mut programs {
        program.args(&args);
        match part {
            Part::Micro => run(program)?,
            Part::Report => show_program(program, &name, &out)?,
            Part::Compare => show_program(program, &format!("{name}-compare"), &out)?,
        }
    }
    Ok(())
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn find<'a>(packages: &'a [Package], name: &str) -> Result<&'a Package> {
    let found = packages.iter().find(|it| it.name == name);
    found.with_context(|| format!("{name} is not in the workspace"))
}

/// The command for `part` of the benchmark `name`, when the package has it.
fn program_of(part: Part, package: &Package, name: &str) -> Option<Command> {
    match part {
        Part::Micro => micro(package),
        Part::Report => example(package, &format!("bench_{name}"), "release"),
        Part::Compare => compare(package),
    }
}

/// The example target `name` built with a profile; `None` when there is none.
fn example(package: &Package, name: &str, profile: &str) -> Option<Command> {
    let target = package.example(name)?;
    let mut command = cargo();
    command.args([
        "run",
        "--locked",
        "--profile",
        profile,
        "--package",
        &package.name,
        "--example",
        name,
    ]);
    features(&mut command, &target.required_features);
    command.arg("--");
    Some(command)
}

fn micro(package: &Package) -> Option<Command> {
    let mut benches = package.targets_of("bench").peekable();
    benches.peek()?;
    let mut command = cargo();
    command.args(["bench", "--locked", "--package", &package.name]);
    let mut needed = Vec::new();
    for bench in benches {
        command.args(["--bench", &bench.name]);
        needed.extend(bench.required_features.iter().cloned());
    }
    features(&mut command, &needed);
    command.arg("--");
    Some(command)
}

fn features(command: &mut Command, features: &[String]) {
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
}

fn compare(package: &Package) -> Option<Command> {
    let manifest = Path::new(&package.manifest_path)
        .with_file_name("bench-compare")
        .join("Cargo.toml");
    if !manifest.is_file() {
        return None;
    }
    let mut command = cargo();
    command
        .args(["run", "--locked", "--release", "--manifest-path"])
        .arg(manifest);
    // One build folder for all: what both sides depend on is compiled once.
    command
        .arg("--target-dir")
        .arg(target_dir().join("bench-compare"))
        .arg("--");
    Some(command)
}

/// Runs a program that writes a report, keeps the document, and shows it, even when the program fails afterwards.
fn show_program(program: &mut Command, stem: &str, out: &Path) -> Result<()> {
    let shown = line(program);
    eprintln!("running {shown}");
    let output = program
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let text =
        String::from_utf8(output.stdout).with_context(|| format!("`{shown}` wrote something that is not UTF-8"))?;
    if output.status.success() || !text.trim().is_empty() {
        fs::write(out.join(format!("{stem}.json")), &text)?;
        let report = Report::parse(&text).with_context(|| format!("cannot show what `{shown}` wrote"))?;
        report.show(out)?;
    }
    ensure!(output.status.success(), "`{shown}` failed ({})", output.status);
    Ok(())
}

/// Splits `--out DIR` or `--out=DIR` from the other words. Words after `--` are left alone.
fn take_out(args: Vec<String>) -> Result<(Option<PathBuf>, Vec<String>)> {
    let mut out = None;
    let mut rest = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            rest.extend(args.by_ref());
        } else if arg == "--out" {
            out = Some(PathBuf::from(args.next().context("--out needs a folder")?));
        } else if let Some(dir) = arg.strip_prefix("--out=") {
            out = Some(PathBuf::from(dir));
        } else {
            rest.push(arg);
        }
    }
    // A relative folder is relative to where the person stands.
    let out = out
        .map(std::path::absolute)
        .transpose()
        .context("--out is not a folder")?;
    Ok((out, rest))
}

/// Every simulation, for the help text.
pub(crate) fn sims() -> String {
    format!("Simulations: {}", list(SIMS.iter().map(|(it, _)| *it)))
}

/// Every benchmark, for the help text.
pub(crate) fn benches() -> String {
    format!("Benchmarks: {}", list(BENCHES.iter().map(|(it, _, _)| *it)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::house::HOUSE;
    use crate::metadata::Target;
    use crate::workspace::root;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn package(targets: &[(&str, &str, &[&str])]) -> Package {
        let targets = targets.iter().map(|(kind, name, features)| Target {
            name: (*name).to_owned(),
            kind: vec![(*kind).to_owned()],
            src_path: String::new(),
            required_features: features.iter().map(|it| (*it).to_owned()).collect(),
        });
        Package {
            name: "p".to_owned(),
            manifest_path: root().join("none/Cargo.toml").to_string_lossy().into_owned(),
            targets: targets.collect(),
            ..Package::default()
        }
    }

    #[test]
    fn out_is_found_anywhere_before_the_separator() {
        let dir = || std::path::absolute("d").ok();
        assert_eq!(
            take_out(words("--seed 1 --out d --x")).unwrap(),
            (dir(), words("--seed 1 --x"))
        );
        assert_eq!(take_out(words("--out=d")).unwrap(), (dir(), vec![]));
        assert_eq!(take_out(words("-- --out d")).unwrap(), (None, words("--out d")));
        assert!(take_out(words("--out")).is_err());
    }

    #[test]
    fn an_example_is_run_with_its_profile_and_the_features_it_needs() {
        let package = package(&[("example", "sim_x", &["a", "b"])]);
        let shown = line(&example(&package, "sim_x", "sim").unwrap());
        assert!(
            shown.ends_with("run --locked --profile sim --package p --example sim_x --features a,b --"),
            "{shown}"
        );
        assert!(example(&package, "sim_y", "sim").is_none());
    }

    #[test]
    fn a_package_without_benches_has_no_micro_part() {
        assert!(micro(&package(&[("example", "bench_x", &[])])).is_none());
        let shown = line(&micro(&package(&[("bench", "pick", &[]), ("bench", "call", &["f"])])).unwrap());
        assert!(
            shown.ends_with("bench --locked --package p --bench pick --bench call --features f --"),
            "{shown}"
        );
    }

    #[test]
    fn every_program_belongs_to_a_package_of_the_house() {
        let named = SIMS.iter().map(|(_, it)| it).chain(BENCHES.iter().map(|(_, it, _)| it));
        for package in named {
            assert!(HOUSE.iter().any(|(it, _)| it == package), "{package}");
        }
    }
}
