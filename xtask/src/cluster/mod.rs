//! `cargo xtask cluster`: one suite of scenarios, on processes, network namespaces or containers.
//!
//! A scenario ([`scenario`]) is a mesh, a load and faults at given times. A backend ([`hosts`]) gives each node a host of its own and
//! does the faults to it. The load is `macula bench` at a fixed rate from several hosts, with default options. The oracle
//! ([`oracle`]) reads every call that they made, and holds it against the rule of the specification that the scenario names.
//!
//! A scenario that a backend cannot run is named as such, and the rest runs.

mod clock;
mod disk;
mod faults;
mod hosts;
mod interrupt;
mod leftovers;
mod load;
mod measure;
mod mesh;
mod oracle;
mod scenario;
mod scenarios;
mod table;
mod truth;
mod verdict;
mod witness;
mod work;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace::{cargo, run, target_dir};
pub(crate) use hosts::Backend;
use hosts::Ground;
use scenario::Scenario;
use table::{Outcome, Row};

/// What to run, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Request {
    /// What a host is.
    #[arg(long, value_enum, default_value = "netns")]
    backend: Backend,
    /// Runs only this scenario; may be given several times.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Runs only the scenarios that the CI runs.
    #[arg(long, conflicts_with = "scenario")]
    quick: bool,
    /// Measures instead: lookups, cache, connections, throughput and failover across hosts.
    #[arg(long, conflicts_with_all = ["scenario", "quick", "json"])]
    measure: bool,
    /// Lists the scenarios and runs none.
    #[arg(long)]
    list: bool,
    /// The program to test instead of one built from this workspace.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// What losses, delays and churn are drawn from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Keeps the files of each scenario: the nodes' data and logs, and the calls that were made.
    #[arg(long)]
    keep: bool,
    /// Prints one JSON object for each scenario.
    #[arg(long)]
    json: bool,
}

/// Runs scenarios one after another and shows what was promised and what was seen.
///
/// A scenario that could not be played to its end has a row as any other, and the next one follows. After Ctrl-C or SIGTERM none
/// follows, and everything that was made is taken down. What a run that was killed has left is removed at the next start.
///
/// # Errors
/// The backend or the program cannot be used, or a scenario broke its promise or was not played to its end.
pub(crate) fn cluster(request: &Request) -> Result<()> {
    if request.list {
        println!("{}", table::list(scenarios::ALL, request.backend));
        return Ok(());
    }
    let wanted = choose(request)?;
    if let Some(lack) = request.backend.lack() {
        bail!("the backend {} cannot be used: {lack}", request.backend.name());
    }
    let program = match &request.program {
        Some(program) => program
            .canonicalize()
            .with_context(|| format!("no program {}", program.display()))?,
        None => build(if request.quick {
            Profile::Simulations
        } else {
            Profile::Release
        })?,
    };
    interrupt::heed()?;
    let removed = leftovers::remove();
    if !removed.is_empty() {
        eprintln!("removed what an earlier run had left: {}", removed.join(", "));
    }
    let ground = Ground::new(request.backend, &program)?;
    if request.measure {
        println!("{}", measure::measure(&ground)?);
        return Ok(());
    }
    let mut rows = Vec::new();
    for scenario in wanted {
        let started = Instant::now();
        let outcome = match request.backend.cannot(scenario) {
            None => match mesh::play(scenario, &ground, request.seed, request.keep) {
                Ok(measured) => Outcome::Ran(Box::new(measured)),
                Err(error) => Outcome::Stopped(format!("{error:#}").replace(['\n', '|'], " ")),
            },
            Some(lack) => Outcome::NotRun(lack),
        };
        let row = Row {
            scenario,
            backend: request.backend,
            outcome,
        };
        if request.json {
            println!("{}", row.to_json());
        } else {
            eprintln!(
                "{} ({:.0} s): {}",
                scenario.name,
                started.elapsed().as_secs_f64(),
                row.verdict()
            );
        }
        rows.push(row);
        if interrupt::has_come() {
            break;
        }
    }
    if !request.json {
        println!("{}", table::table(&rows));
    }
    drop(ground);
    ensure!(
        !interrupt::has_come(),
        "interrupted; everything that was made has been taken down"
    );
    let broken: Vec<_> = rows
        .iter()
        .filter(|row| row.is_broken())
        .map(|row| row.scenario.name)
        .collect();
    ensure!(broken.is_empty(), "promises were broken in: {}", broken.join(", "));
    Ok(())
}

/// Runs the CI's scenarios. Where the backend cannot be used, it says so, and fails only when the backend is `required`.
///
/// # Errors
/// As [`cluster`].
pub(crate) fn quick(backend: Backend, required: bool) -> Result<()> {
    if let Some(lack) = backend.lack().filter(|_| !required) {
        println!("    not run: {lack}");
        return Ok(());
    }
    cluster(&Request {
        backend,
        scenario: Vec::new(),
        quick: true,
        measure: false,
        list: false,
        program: None,
        seed: 1,
        keep: false,
        json: false,
    })
}

fn choose(request: &Request) -> Result<Vec<&'static Scenario>> {
    for name in &request.scenario {
        ensure!(
            scenarios::ALL.iter().any(|it| it.name == name),
            "no scenario {name:?}; `cargo xtask cluster --list` names them"
        );
    }
    let wanted = scenarios::ALL.iter().filter(|it| {
        let named = request.scenario.is_empty() || request.scenario.iter().any(|name| name == it.name);
        named && (!request.quick || it.quick)
    });
    Ok(wanted.collect())
}

/// How the program is built.
#[derive(Debug, Clone, Copy)]
enum Profile {
    /// As users get it.
    Release,
    /// In one build with the mesh in a bottle, which the CI runs too: a build of its own takes longer than the quick scenarios.
    Simulations,
}

fn build(profile: Profile) -> Result<PathBuf> {
    let (name, target): (_, &[&str]) = match profile {
        Profile::Release => ("release", &["--bin", "macula"]),
        Profile::Simulations => (
            "sim",
            &["--bin", "macula", "--example", "sim_mesh", "--features", "cli,testing"],
        ),
    };
    let mut command = cargo();
    command.args(["build", "--locked", "--profile", name, "--package", "macula-node"]);
    run(command.args(target))?;
    Ok(target_dir().join(name).join("macula"))
}
