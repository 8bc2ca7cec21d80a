//! Builds and checks Macula: everything a contributor or the CI runs that plain `cargo` does not offer.
//!
//! Each subcommand is one module. The rules they enforce are pure functions over small inputs, so they are tested
//! without touching the workspace; reading files and starting `cargo` stays at the edges.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the terminal is the interface of this tool"
)]

mod clients;
mod cluster;
mod codegen;
mod deny;
mod deploy;
mod english;
mod examples;
mod finding;
mod fuzz;
mod house;
mod image;
mod layers;
mod metadata;
mod modules;
mod package;
mod programs;
mod report;
mod source;
mod steps;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds and checks Macula.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything the CI runs: check, docs, test.
    Ci {
        /// Fail where no Docker engine answers, instead of leaving the containers out.
        #[arg(long)]
        engine: bool,
    },
    /// Format, tidy, codegen --check, layers, package, deny, clippy, each package compiled alone, fuzz --check.
    Check,
    /// Every example, test and doctest, with every feature, and runs of the simulated mesh.
    Test,
    /// Build the documentation; warnings are errors.
    Docs,
    /// Compile each package by itself: with its default features, with none, and with each one alone.
    Alone,
    /// Regenerate the checked-in code from the schemas: macula-wire/src/gen, and what the tests of macula-rpc call.
    Codegen {
        /// Change nothing; fail when the checked-in code is not what the schemas give.
        #[arg(long)]
        check: bool,
    },
    /// Check the licences, bans and sources of all dependencies.
    Deny {
        /// Check for advisories instead; this downloads their database.
        #[arg(long)]
        advisories: bool,
    },
    /// Check the deployment files by the schemas of Compose, systemd and Kubernetes.
    Deploy,
    /// Use a mesh with a gRPC server and client in Python, and look at a node's page in a browser.
    Clients,
    /// Run every program in the packages' `examples/`.
    Examples,
    /// Check which package depends on which, that the cores stay pure, and that no crate has a circle of more than two files.
    Layers,
    /// Pack every published crate and check what is in it and what its manifest says.
    Package,
    /// Check the rules of the tree: top level, file length, sleeping or ignored tests, module docs, contorted English, and that the
    /// papers name no file or function that is gone.
    Tidy,
    /// Run a simulation: tables in the terminal, plots as SVG files.
    #[command(after_help = programs::sims())]
    Sim {
        #[command(flatten)]
        request: programs::Request,
    },
    /// Run a benchmark in release: tables in the terminal, plots as SVG files.
    #[command(after_help = programs::benches())]
    Bench {
        /// Run this part only.
        #[arg(long)]
        part: Option<programs::Part>,
        #[command(flatten)]
        request: programs::Request,
    },
    /// Build the program's container image, from scratch.
    Image {
        #[command(flatten)]
        request: image::Request,
    },
    /// Run the scenarios of faults on processes, network namespaces or containers.
    Cluster {
        #[command(flatten)]
        request: cluster::Request,
    },
    /// Fuzz a target, or all of them for a while.
    Fuzz {
        #[command(flatten)]
        request: fuzz::Request,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Ci { engine } => steps::ci(engine),
        Command::Check => steps::check(),
        Command::Test => steps::test(),
        Command::Docs => steps::docs(),
        Command::Alone => steps::alone(),
        Command::Codegen { check: false } => codegen::write(),
        Command::Codegen { check: true } => codegen::check(),
        Command::Deny { advisories } => deny::check(advisories),
        Command::Deploy => deploy::check(),
        Command::Clients => clients::check(),
        Command::Examples => examples::check(),
        Command::Layers => layers::check(),
        Command::Package => package::check(),
        Command::Tidy => tidy::check(),
        Command::Sim { request } => programs::sim(request),
        Command::Bench { part, request } => programs::bench(request, part),
        Command::Image { request } => image::image(&request),
        Command::Cluster { request } => cluster::cluster(&request),
        Command::Fuzz { request } => fuzz::fuzz(request),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
