//! `cargo xtask sim leaving -- SEEDS`: providers that leave, die and come back, and calls that must not run twice.
//!
//! The same seeds give the same document. It ends with an error when a promise was broken.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "prints its result")]

#[path = "../tests/leaving/scenario.rs"]
mod scenario;

use std::process::ExitCode;

use scenario::{Found, drawn, run_alone};

/// How many seeds are run unless told otherwise.
const SEEDS: u64 = 1_000;

fn main() -> ExitCode {
    let seeds = match std::env::args().nth(1).map(|text| text.parse()) {
        None => SEEDS,
        Some(Ok(seeds)) => seeds,
        Some(Err(_)) => {
            eprintln!("write the number of seeds to run, such as 10000");
            return ExitCode::FAILURE;
        }
    };
    let mut all = Found::default();
    for seed in 0..seeds {
        all.add(run_alone(&drawn(seed)));
    }
    let rows = [
        ("answered", all.answered),
        ("unknown", all.unknown),
        ("served by no provider", all.unserved),
        ("attempts reported not sent or refused", all.promised),
        ("of these, ran all the same", all.broken_promises),
        ("calls that ran twice", all.ran_twice),
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, count)| format!(r#"["{name}",{count}]"#))
        .collect();
    println!(
        r#"{{"title":"Calls that must not run twice","seed":0,"tables":[{{"name":"calls of {seeds} seeds","columns":["what","count"],"rows":[{}]}}],"plots":[],"trace_hash":null,"notes":[]}}"#,
        rows.join(",")
    );
    match (all.broken_promises, all.ran_twice) {
        (0, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
