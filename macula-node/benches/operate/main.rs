//! What the doors for operators and for other programs cost: calls a second of a busy node while it is watched, scraped and traced, and
//! the ingress beside a plain tonic server.
//!
//! `cargo xtask bench operate`. Kinds take turns in short slices, so that a machine that is busy elsewhere slows all of them. One JSON
//! document on standard output.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

mod collector;
mod cost;
mod ingress;

use std::time::Duration;

use serde_json::json;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The time of each kind's turn.
const SLICE: Duration = Duration::from_secs(1);
/// Turns of each kind.
const TURNS: usize = 15;
const IN_FLIGHT: usize = 64;
const PAYLOAD_BYTES: usize = 64;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let [role, kind, collector] = &args[..]
        && role == cost::HOST
    {
        return runtime.block_on(cost::host(kind, collector));
    }
    let report = runtime.block_on(async {
        Ok::<_, Failure>(json!({
            "title": "What the doors of a node cost",
            "seed": null,
            "tables": [cost::table().await?, ingress::table().await?],
            "plots": [],
            "trace_hash": null,
            "notes": [
                format!("Medians of {TURNS} slices of {SLICE:?}; {IN_FLIGHT} calls of {PAYLOAD_BYTES} bytes in flight."),
                "The aim is a cost of at most 3 %; traces are off unless asked for.",
            ],
        }))
    })?;
    println!("{report}");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
