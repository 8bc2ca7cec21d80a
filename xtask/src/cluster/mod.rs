//! `cargo xtask cluster`: one suite of scenarios, on processes, network namespaces or containers.
//!
//! A scenario ([`scenario`]) is a mesh, a load and faults at given times. A backend ([`hosts`]) gives each node a host of its own and
//! does the faults to it. The load is `macula bench` at a fixed rate from several hosts, with default options. The oracle
//! ([`oracle`]) reads every call that they made, and holds it against the rule of the specification that the scenario names.
//!
//! Left out: packet loss, delay and reordering, which `cargo xtask sim mesh` produces with a seed.

mod hosts;
mod mesh;
mod oracle;
mod scenario;
mod table;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace::{cargo, run, target_dir};
use hosts::Backend;
use scenario::Scenario;

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
    /// Lists the scenarios and runs none.
    #[arg(long)]
    list: bool,
    /// The program to test instead of one built from this workspace.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Prints one JSON object for each scenario.
    #[arg(long)]
    json: bool,
}

/// Runs scenarios one after another and shows what was promised and what was seen.
///
/// # Errors
/// A scenario could not be run, or broke its promise.
pub(crate) fn cluster(request: &Request) -> Result<()> {
    if request.list {
        println!("{}", table::list(scenario::ALL, request.backend));
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
        None => build()?,
    };
    let mut rows = Vec::new();
    for scenario in wanted {
        let started = Instant::now();
        let row = if request.backend.can_run(scenario) {
            mesh::play(scenario, request.backend, &program).with_context(|| format!("scenario {}", scenario.name))?
        } else {
            table::Row::skipped(scenario)
        };
        if request.json {
            println!("{}", row.to_json(request.backend));
        } else {
            eprintln!(
                "{} ({:.0} s): {}",
                scenario.name,
                started.elapsed().as_secs_f64(),
                row.verdict()
            );
        }
        rows.push(row);
    }
    if !request.json {
        println!("{}", table::table(&rows));
    }
    let broken: Vec<_> = rows
        .iter()
        .filter(|row| row.is_broken())
        .map(|row| row.scenario.name)
        .collect();
    ensure!(broken.is_empty(), "promises were broken in: {}", broken.join(", "));
    Ok(())
}

fn choose(request: &Request) -> Result<Vec<&'static Scenario>> {
    for name in &request.scenario {
        ensure!(
            scenario::ALL.iter().any(|it| it.name == name),
            "no scenario {name:?}; `cargo xtask cluster --list` names them"
        );
    }
    let wanted = scenario::ALL.iter().filter(|it| {
        let named = request.scenario.is_empty() || request.scenario.iter().any(|name| name == it.name);
        named && (!request.quick || it.quick)
    });
    Ok(wanted.collect())
}

/// Builds the program as users get it.
fn build() -> Result<PathBuf> {
    run(cargo().args([
        "build",
        "--locked",
        "--release",
        "--package",
        "macula-node",
        "--bin",
        "macula",
    ]))?;
    Ok(target_dir().join("release/macula"))
}
