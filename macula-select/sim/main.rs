//! Simulated clusters: what the strategies, the breaker, the budget and hedging do when providers misbehave.
//!
//! `cargo run --release -p macula-select --example sim_select -- [--seed N] [--quick]` prints progress to stderr and
//! one JSON document to stdout; `cargo xtask sim select` renders it. The same seed gives the same document.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints is what this is"
)]

mod bad_provider;
mod cluster;
mod herd;
mod outage;
mod overload;
mod report;
mod silence;
mod world;

use std::process::ExitCode;

use report::Report;

/// What the command line asks for.
#[derive(Debug, Clone, Copy)]
struct Arguments {
    seed: u64,
    quick: bool,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self { seed: 1, quick: false };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => arguments.quick = true,
                "--seed" => {
                    let number = words.next().unwrap_or_default();
                    arguments.seed = number
                        .parse()
                        .map_err(|_| format!("--seed takes a number, not '{number}'"))?;
                }
                _ => return Err(format!("unknown argument '{word}'; there are --seed N and --quick")),
            }
        }
        Ok(arguments)
    }

    /// Simulated seconds: a tenth when quick.
    fn seconds(self, full: u64) -> u64 {
        if self.quick { full.div_ceil(10) } else { full }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::new("Selection and failover, simulated", arguments.seed);
    bad_provider::slow(arguments, &mut report);
    bad_provider::failing_fast(arguments, &mut report);
    bad_provider::black_hole(arguments, &mut report);
    bad_provider::rare_errors(arguments, &mut report);
    outage::all_failing(arguments, &mut report);
    herd::returning_provider(arguments, &mut report);
    overload::pulse(arguments, &mut report);
    silence::silence(arguments, &mut report);
    println!("{}", report.into_json());
    ExitCode::SUCCESS
}
