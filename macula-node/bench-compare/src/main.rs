//! What a provider that fails costs its callers, on real processes on one host: Macula's caller with default options, and beside it in the
//! same run tonic's balanced channel over TCP, without a retry and with one.
//!
//! Each provider is a process that serves an echo over the mesh and `grpc.health.v1` over plain HTTP/2. So a fault hits both at once.
//! tonic's channel is told of every new address at once, as by a perfect directory; Macula's caller asks its directory.
//!
//! Without arguments it plays every scenario and prints one JSON document; with a name, that scenario. It starts itself for each provider.

mod callers;
mod fleet;
mod provider;
mod scenario;

use anyhow::{Result, bail};
use serde_json::json;

use crate::{callers::Seen, scenario::Scenario};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args[..] {
        ["provide", key, mesh, tcp, bootstrap, answers] => {
            runtime.block_on(provider::serve(key.parse()?, mesh, tcp, bootstrap, answers == "well"))
        }
        [] => runtime.block_on(compare("")),
        [name] => runtime.block_on(compare(name)),
        _ => bail!("name one scenario, or none"),
    }
}

async fn compare(name: &str) -> Result<()> {
    let mut rows = Vec::new();
    for scenario in scenario::ALL.iter().filter(|it| it.name.contains(name)) {
        let seen = scenario::play(scenario).await?;
        rows.extend(seen.iter().map(|seen| row(scenario, seen)));
    }
    let report = json!({
        "title": "Failover on real processes",
        "seed": null,
        "tables": [{
            "name": "calls while providers fail, times in ms",
            "columns": [
                "scenario", "reach", "caller", "calls", "failed", "without a provider", "p50", "p99", "longest", "over 1 s",
                "first traffic, s", "suspicions",
            ],
            "rows": rows,
        }],
        "plots": [],
        "trace_hash": null,
        "notes": [
            "failed: although a provider lived during all of the call; without a provider: the others.",
            "p50 to longest: of calls that were made from the first fault on, while a provider lived.",
            "first traffic: of the provider that came back, from its start on; tonic's two callers share a channel.",
        ],
    });
    println!("{report}");
    Ok(())
}

fn row(scenario: &Scenario, seen: &Seen) -> serde_json::Value {
    eprintln!(
        "{}: {}: {} of {} calls failed, longest {:.1} ms",
        scenario.name, seen.caller, seen.failed, seen.calls, seen.longest_ms
    );
    let round = |ms: f64| (ms * 10.0).round() / 10.0;
    json!([
        scenario.name,
        scenario.reach,
        seen.caller,
        seen.calls,
        seen.failed,
        seen.excused,
        round(seen.p50_ms),
        round(seen.p99_ms),
        round(seen.longest_ms),
        seen.over_a_second,
        scenario.returns().then(|| seen
            .first_traffic
            .map(|after| (after.as_secs_f64() * 100.0).round() / 100.0)),
        seen.suspicions,
    ])
}
