//! The whole mesh in one process: dozens of nodes over real QUIC on a network in memory, in virtual time. A seed draws the faults, and an
//! oracle judges the run: `cargo xtask sim mesh -- --seeds 1..100`.
//!
//! Every node is a [`macula_node::Node`] with its directory, pool, selection and transport; only the wire is missing. The same seed
//! gives the same trace hash. `--help` shows the rest.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod campaign;
mod fault;
mod load;
mod mutants;
mod options;
mod oracle;
mod random;
#[path = "../tests/support/raw_codec.rs"]
mod raw_codec;
mod run;
mod schedule;
mod services;
mod shrink;
mod story;
mod stranger;
mod truth;
mod world;

use std::{error::Error, process::ExitCode};

/// The nodes of a mesh, unless told otherwise.
const NODES: usize = 10;

fn run() -> Result<bool, Box<dyn Error>> {
    match options::read(std::env::args().skip(1))? {
        options::Task::Story { nodes, seed } => story::show(nodes, seed).map(|()| true),
        options::Task::Mutants(campaign, name) => mutants::hunt_all(&campaign, &name),
        options::Task::Campaign(campaign) => campaign::run(&campaign),
    }
}

fn main() -> ExitCode {
    if std::env::var_os("RUST_LOG").is_some() {
        // What the nodes say of a schedule that fails; their clock is virtual, so lines have no time.
        let log = tracing_subscriber::fmt().without_time().with_writer(std::io::stderr);
        log.with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .init();
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
