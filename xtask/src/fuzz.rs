//! `cargo xtask fuzz`: coverage-guided fuzzing on stable Rust.
//!
//! A crate keeps its targets in `fuzz/`, an unpublished package of its own workspace with libfuzzer-sys as a dependency
//! and one binary for each target, as `cargo fuzz` does. That tool needs a nightly compiler for its sanitizers, which find
//! nothing in code without `unsafe`; coverage is a codegen option of the stable compiler. So plain cargo builds the targets
//! with the flags below, and only libFuzzer's C++ compiler has to be installed.
//!
//! Inputs that reached new code are kept in `target/fuzz/corpus`, inputs that crashed in `target/fuzz/crashes`; a
//! crate's own `fuzz/seeds/TARGET` is read and never written. Turn a crash into a test of the crate.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace::{cargo, display, line, output, run, side_packages, target_dir};

/// The time of a smoke run for each target, in seconds.
const SMOKE_SECONDS: u64 = 60;
/// The longest that one input may take, in seconds. More is a hang.
const INPUT_SECONDS: u64 = 10;
/// The most memory that a target may hold, in MiB. More is a leak, or a length that is trusted too early.
const MEMORY_MIB: u64 = 2048;
/// The part of a failed target's log that is shown.
const TAIL_LINES: usize = 40;

/// Coverage counters at each edge and the operands of comparisons, as libFuzzer reads them; assertions on.
const RUSTFLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Ccodegen-units=1",
];

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Request {
    /// The target, or CRATE/TARGET; without one, lists them.
    target: Option<String>,
    /// Run every target (or the one named) for a while, quietly.
    #[arg(long)]
    smoke: bool,
    /// How long each target runs; 60 in a smoke run, else until it is stopped.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Only lint the targets; needs no C++ compiler.
    #[arg(long, conflicts_with_all = ["target", "smoke", "seconds"])]
    check: bool,
    /// Run the target once, on this input.
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with_all = ["smoke", "seconds", "check"])]
    replay: Option<PathBuf>,
}

/// One fuzz target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    krate: String,
    name: String,
    /// Of the fuzz package.
    manifest: PathBuf,
}

impl Target {
    fn full_name(&self) -> String {
        format!("{}/{}", self.krate, self.name)
    }

    /// The folder of this target's files of one kind.
    fn folder(&self, kind: &str) -> Result<PathBuf> {
        let dir = target_dir().join("fuzz").join(kind).join(&self.krate).join(&self.name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", display(&dir)))?;
        Ok(dir)
    }

    fn seeds(&self) -> Option<PathBuf> {
        let dir = self.manifest.with_file_name("seeds").join(&self.name);
        dir.is_dir().then_some(dir)
    }
}

/// Lists, runs or replays fuzz targets.
pub(crate) fn fuzz(request: Request) -> Result<()> {
    if request.check {
        return check();
    }
    let all = targets()?;
    let chosen = choose(&all, request.target.as_deref())?;
    let Some(input) = request.replay else {
        if request.target.is_none() && request.seconds.is_none() && !request.smoke {
            all.iter().for_each(|it| println!("{}", it.full_name()));
            println!("{} fuzz target(s); name one, or run them all with --smoke", all.len());
            return Ok(());
        }
        return if request.smoke {
            smoke(&chosen, request.seconds.unwrap_or(SMOKE_SECONDS))
        } else {
            chosen.iter().try_for_each(|it| run(&mut fuzzer(it, request.seconds)?))
        };
    };
    let input = std::path::absolute(input).context("--replay is not a file")?;
    for target in &chosen {
        run(Command::new(build(target)?).arg(&input))?;
    }
    Ok(())
}

/// Lints every fuzz package, so that targets do not rot between runs.
pub(crate) fn check() -> Result<()> {
    let manifests = manifests()?;
    for manifest in &manifests {
        let mut clippy = cargo();
        clippy
            .args(["clippy", "--quiet", "--all-targets", "--manifest-path"])
            .arg(manifest);
        clippy.arg("--target-dir").arg(target_dir().join("fuzz").join("check"));
        locked(&mut clippy, manifest);
        clippy.args(["--", "-D", "warnings"]);
        // Linting links nothing, so libFuzzer need not be compiled: any file passes for it.
        run(clippy.env("CUSTOM_LIBFUZZER_PATH", manifest))?;
    }
    println!("{} fuzz package(s) compile", manifests.len());
    Ok(())
}

/// The manifest of every `fuzz` folder, sorted.
fn manifests() -> Result<Vec<PathBuf>> {
    let mut all = side_packages()?;
    all.retain(|it| it.ends_with("fuzz/Cargo.toml"));
    Ok(all)
}

/// Every target of every `fuzz` folder, sorted.
fn targets() -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for manifest in manifests()? {
        let folder = manifest.parent().unwrap_or(Path::new(""));
        let krate = folder.parent().and_then(Path::file_name).unwrap_or_default();
        let mut metadata = cargo();
        metadata
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(&manifest);
        let names = binaries(&output(&mut metadata)?)?;
        found.extend(names.into_iter().map(|name| Target {
            krate: krate.to_string_lossy().into_owned(),
            name,
            manifest: manifest.clone(),
        }));
    }
    found.sort_by_key(Target::full_name);
    Ok(found)
}

/// The binaries named in the output of `cargo metadata`.
fn binaries(metadata: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        targets: Vec<Binary>,
    }
    #[derive(Deserialize)]
    struct Binary {
        name: String,
        kind: Vec<String>,
    }
    let metadata: Metadata = serde_json::from_str(metadata).context("cannot understand `cargo metadata`")?;
    let targets = metadata.packages.into_iter().flat_map(|it| it.targets);
    let binaries = targets.filter(|it| it.kind.iter().any(|kind| kind == "bin"));
    Ok(binaries.map(|it| it.name).collect())
}

/// The targets with this name, or all of them without a name.
fn choose(all: &[Target], name: Option<&str>) -> Result<Vec<Target>> {
    let Some(name) = name else { return Ok(all.to_vec()) };
    let chosen: Vec<Target> = all
        .iter()
        .filter(|it| it.name == name || it.full_name() == name)
        .cloned()
        .collect();
    match chosen.len() {
        0 => bail!("no fuzz target {name:?}; `cargo xtask fuzz` lists them"),
        1 => Ok(chosen),
        _ => bail!("several crates have a fuzz target {name:?}; name it as CRATE/TARGET"),
    }
}

/// Builds `target` and gives the path of its program.
fn build(target: &Target) -> Result<PathBuf> {
    // Naming the host keeps the flags away from build scripts and macros, which have no fuzzer to report to.
    let host = host()?;
    let out = target_dir().join("fuzz").join("build");
    let mut build = cargo();
    build.args([
        "build",
        "--quiet",
        "--release",
        "--bin",
        &target.name,
        "--target",
        &host,
        "--manifest-path",
    ]);
    build.arg(&target.manifest).arg("--target-dir").arg(&out);
    locked(&mut build, &target.manifest);
    build.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\u{1f}"));
    run(&mut build).with_context(|| format!("cannot build {}; libFuzzer needs a C++ compiler", target.full_name()))?;
    Ok(out.join(host).join("release").join(&target.name))
}

/// Holds a package to its lock file, once it has one.
fn locked(command: &mut Command, manifest: &Path) {
    if manifest.with_file_name("Cargo.lock").is_file() {
        command.arg("--locked");
    }
}

fn host() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|it| it.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// The program of `target` with its limits and folders.
fn fuzzer(target: &Target, seconds: Option<u64>) -> Result<Command> {
    let mut fuzzer = Command::new(build(target)?);
    fuzzer
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    fuzzer.arg(format!("-artifact_prefix={}/", target.folder("crashes")?.display()));
    fuzzer.arg("-print_final_stats=1");
    fuzzer.args(seconds.map(|it| format!("-max_total_time={it}")));
    fuzzer.arg(target.folder("corpus")?).args(target.seeds());
    Ok(fuzzer)
}

/// Runs each target for `seconds`, a line each; shows the log of those that fail, and fails when any did.
fn smoke(targets: &[Target], seconds: u64) -> Result<()> {
    let mut failed = String::new();
    for target in targets {
        let mut fuzzer = fuzzer(target, Some(seconds))?;
        let started = Instant::now();
        let output = fuzzer
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", line(&fuzzer)))?;
        let log = String::from_utf8_lossy(&output.stderr);
        let path = target.folder("logs")?.join("last.log");
        fs::write(&path, log.as_bytes()).with_context(|| format!("cannot write {}", display(&path)))?;
        let verdict = if output.status.success() { "ok" } else { "FAILED" };
        let (name, spent) = (target.full_name(), started.elapsed().as_secs());
        println!("{name}: {verdict}, {} in {spent} s", progress(&log));
        if !output.status.success() {
            println!("{}", tail(&log));
            let replay = crash(&log).map(|input| format!("; replay with `cargo xtask fuzz {name} --replay {input}`"));
            let _ = write!(
                failed,
                "\n  {name}: whole log in {}{}",
                display(&path),
                replay.unwrap_or_default()
            );
        }
    }
    ensure!(failed.is_empty(), "fuzzing found something:{failed}");
    Ok(())
}

/// The number of inputs tried, from libFuzzer's log.
fn progress(log: &str) -> String {
    let number_after = |word: &str| {
        let rest = log.rsplit_once(word)?.1.trim_start();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        (digits > 0).then(|| rest[..digits].to_owned())
    };
    let runs = number_after("stat::number_of_executed_units:").unwrap_or_else(|| "no".to_owned());
    match number_after(" cov: ") {
        Some(edges) => format!("{runs} runs over {edges} edges"),
        None => format!("{runs} runs"),
    }
}

/// The file into which libFuzzer wrote the input that failed.
fn crash(log: &str) -> Option<String> {
    let path = log.split_once("Test unit written to ")?.1.lines().next()?;
    Some(display(Path::new(path)))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(krate: &str, name: &str) -> Target {
        Target {
            krate: krate.to_owned(),
            name: name.to_owned(),
            manifest: PathBuf::from("Cargo.toml"),
        }
    }

    #[test]
    fn a_target_is_named_alone_or_with_its_crate() {
        let all = [target("a", "codec"), target("b", "codec"), target("b", "store")];
        assert_eq!(choose(&all, None).unwrap(), all);
        assert_eq!(choose(&all, Some("store")).unwrap(), all[2..]);
        assert_eq!(choose(&all, Some("a/codec")).unwrap(), all[..1]);
        assert!(
            choose(&all, Some("codec"))
                .unwrap_err()
                .to_string()
                .contains("several crates")
        );
        assert!(choose(&all, Some("x")).unwrap_err().to_string().contains("lists them"));
    }

    #[test]
    fn only_binaries_are_targets() {
        let metadata = r#"{"packages":[{"name":"f","targets":[{"name":"lib","kind":["lib"]},
            {"name":"codec","kind":["bin"]}]}]}"#;
        assert_eq!(binaries(metadata).unwrap(), ["codec"]);
    }

    #[test]
    fn a_log_tells_how_much_was_tried_and_what_crashed() {
        let log = "#2 INITED cov: 5 ft: 6\n#4096 pulse  cov: 81 ft: 99\n\
                   artifact_prefix='/t/'; Test unit written to /t/crash-1\nstat::number_of_executed_units: 5000\n";
        assert_eq!(progress(log), "5000 runs over 81 edges");
        assert_eq!(crash(log).as_deref(), Some("/t/crash-1"));
        assert_eq!(progress("nothing"), "no runs");
        assert_eq!(crash("nothing"), None);
    }

    #[test]
    fn the_end_of_a_long_log_is_shown() {
        let log: String = (0..100).map(|n| format!("{n}\n")).collect();
        let shown = tail(&log);
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("99"));
        assert_eq!(tail("a"), "a");
    }
}
