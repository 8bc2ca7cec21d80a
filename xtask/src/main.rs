//! Builds and checks Macula: everything a contributor or the CI runs that plain `cargo` does not offer.
//!
//! Each subcommand is one module. The rules they enforce are pure functions over small inputs, so they are tested
//! without touching the workspace; reading files and starting `cargo` stays at the edges.
#![expect(clippy::print_stdout, reason = "the terminal is the interface of this tool")]

mod codegen;
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
    /// Regenerate macula-wire/src/gen from macula-wire/proto.
    Codegen {
        /// Change nothing; fail when the checked-in code is not what the schemas give.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Codegen { check: false } => codegen::write(),
        Command::Codegen { check: true } => codegen::check(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
