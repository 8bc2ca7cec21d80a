//! What the mesh costs and gives across hosts: the measures that its predecessor set out to take.
//!
//! Three providers and one caller, each on a host of its own. Nothing else may run beside: the load takes every processor.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::{
    hosts::Ground,
    interrupt,
    mesh::{Mesh, SERVICE, shared_folder, summary},
    scenario::Fault,
    scenarios::PLAIN,
};

/// When a provider is killed, from the start of the load.
const KILLED_AFTER: Duration = Duration::from_secs(3);

/// Takes the measures and gives them as a table in Markdown.
///
/// # Errors
/// The mesh does not start, or a caller fails.
pub(super) fn measure(ground: &Ground) -> Result<String> {
    let folder = shared_folder()?;
    let (mut mesh, places) = Mesh::ready(&PLAIN, ground, 1, folder.path())?;
    let caller = &places[0];
    let quiet = ["--lookups", "500", "--rate", "200", "--duration", "5s"];
    let quiet = summary(mesh.bench(caller, SERVICE, &quiet)?)?;
    // Longer than a list stays in the cache (D7), and from an empty one.
    let cold = summary(mesh.bench(caller, SERVICE, &["--rate", "50", "--duration", "65s"])?)?;
    // Each client makes one call, and has no connection to a provider before it.
    let strangers = ["--clients", "50", "--rate", "10", "--duration", "5s"];
    let strangers = summary(mesh.bench(caller, SERVICE, &strangers)?)?;
    let full = summary(mesh.bench(caller, SERVICE, &["--concurrency", "256", "--duration", "5s"])?)?;
    let failing = mesh.bench(caller, SERVICE, &["--rate", "200", "--duration", "8s"])?;
    interrupt::sleep(KILLED_AFTER)?;
    mesh.afflict(Fault::Kill(3), &places)?;
    let failing = summary(failing)?;
    Ok(table(&quiet, &cold, &strangers, &full, &failing))
}

fn table(quiet: &Value, cold: &Value, strangers: &Value, full: &Value, failing: &Value) -> String {
    let ms = |value: &Value| format!("{:.2} ms", value.as_f64().unwrap_or(f64::NAN) / 1e3);
    let span = |latency: &Value| format!("{} / {}", ms(&latency["p50_us"]), ms(&latency["p99_us"]));
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let hits = 100.0 * number(&cold["found_in"]["cache"]) / number(&cold["ok"]);
    let median = |summary: &Value| number(&summary["latency"]["p50_us"]);
    let gain = median(strangers) / median(quiet);
    let (failed_over, usual) = (&failing["failed_over"], &failing["latency"]["p50_us"]);
    let rows = [
        ("lookup in the DHT, p50 / p99", span(&quiet["lookups"]["latency"])),
        (
            "calls that found the list in the cache, 50 a second for 65 s from an empty one",
            format!("{hits:.2} %"),
        ),
        (
            "call of a new client: it looks the list up and connects, p50 / p99",
            span(&strangers["latency"]),
        ),
        (
            "call over an open connection, 200 a second, p50 / p99",
            span(&quiet["latency"]),
        ),
        (
            "a new client's call takes so much longer, p50",
            format!("{gain:.1} times"),
        ),
        (
            "connections opened for 1 000 calls",
            quiet["connections_opened"].to_string(),
        ),
        (
            "calls a second, 256 in flight",
            format!("{:.0}", number(&full["per_second"])),
        ),
        ("their p50 / p99", span(&full["latency"])),
        (
            "one of three killed, 200 calls a second: failed",
            failing["failed"].to_string(),
        ),
        ("calls that failed over", failed_over["calls"].to_string()),
        (
            "their p50 / longest",
            format!(
                "{} / {}",
                ms(&failed_over["latency"]["p50_us"]),
                ms(&failed_over["latency"]["max_us"])
            ),
        ),
        ("p50 of all calls beside", ms(usual)),
    ];
    let rows = rows.map(|(name, value)| format!("| {name} | {value} |\n"));
    format!("| measure | value |\n|---|---|\n{}", rows.concat())
}
