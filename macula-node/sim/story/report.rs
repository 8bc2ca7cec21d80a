//! The story in numbers.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{Outcome, PHASES, Sample};

/// In milliseconds, of a sorted list; none when there is nothing.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank"
)]
fn quantile(sorted: &[Duration], q: f64) -> Value {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    match sorted.get(rank.saturating_sub(1)) {
        Some(time) => json!(time.as_millis() as u64),
        None => json!("–"),
    }
}

fn sorted<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<Duration> {
    let mut times: Vec<_> = samples.map(|sample| sample.took).collect();
    times.sort_unstable();
    times
}

fn starts() -> Vec<Duration> {
    let mut at = Duration::ZERO;
    let starts = PHASES.iter().map(|(_, lasts)| {
        at += *lasts;
        at - *lasts
    });
    starts.collect()
}

#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn phases(outcome: &Outcome) -> Value {
    let rows = PHASES.iter().enumerate().map(|(phase, (name, _))| {
        let of = || outcome.samples.iter().filter(move |sample| sample.phase == phase);
        let all = of().count();
        let ok = sorted(of().filter(|sample| sample.error.is_none()));
        let over = sorted(of().filter(|sample| sample.error.is_none() && sample.attempts > 1));
        let attempts: usize = of().map(|sample| sample.attempts).sum();
        json!([
            name,
            all,
            all - ok.len(),
            format!("{:.3}", attempts as f64 / all.max(1) as f64),
            quantile(&ok, 0.5),
            quantile(&ok, 0.99),
            quantile(&ok, 1.0),
            over.len(),
            quantile(&over, 0.5),
            quantile(&over, 0.99),
        ])
    });
    json!({
        "name": "calls by phase, times in ms",
        "columns": [
            "phase", "calls", "failed", "attempts a call", "p50", "p99", "longest",
            "failed over", "those: p50", "those: p99",
        ],
        "rows": rows.collect::<Vec<_>>(),
    })
}

fn failures(outcome: &Outcome) -> Value {
    let mut counts = BTreeMap::new();
    for sample in &outcome.samples {
        if let Some(error) = sample.error {
            *counts.entry((sample.phase, error)).or_insert(0_u64) += 1;
        }
    }
    let rows = counts
        .into_iter()
        .map(|((phase, error), count)| json!([PHASES[phase].0, error, count]));
    json!({ "name": "failed calls", "columns": ["phase", "error", "calls"], "rows": rows.collect::<Vec<_>>() })
}

fn mesh(outcome: &Outcome) -> Value {
    let killed = starts()[1];
    let met = outcome.samples.iter().filter(|sample| sample.met_the_dead);
    let last = met.clone().map(|sample| sample.at.saturating_sub(killed)).max();
    let traffic = &outcome.traffic;
    json!({
        "name": "mesh",
        "columns": ["what", "value"],
        "rows": [
            ["providers", outcome.providers],
            ["callers", outcome.callers],
            ["every node has joined after, ms", outcome.joined.as_millis() as u64],
            ["calls that tried a killed provider", met.count()],
            ["the last of them started after the kill, ms", last.map_or(0, |last| last.as_millis() as u64)],
            ["datagrams delivered", traffic.delivered],
            ["MiB delivered", traffic.delivered_bytes >> 20],
            ["datagrams lost by chance", traffic.lost],
            ["datagrams kept by the partition", traffic.cut],
            ["datagrams to an address without a host", traffic.no_host],
        ],
    })
}

fn plots(outcome: &Outcome) -> Value {
    let seconds = PHASES.iter().map(|(_, lasts)| lasts.as_secs()).sum::<u64>();
    let mut latency: [(f64, Vec<Value>); 2] = [(0.5, Vec::new()), (0.99, Vec::new())];
    let (mut failed, mut over) = (Vec::new(), Vec::new());
    for second in 0..seconds {
        let of = || {
            let samples = outcome.samples.iter();
            samples.filter(move |sample| sample.at.as_secs() == second)
        };
        let ok = sorted(of().filter(|sample| sample.error.is_none()));
        if !ok.is_empty() {
            for (q, points) in &mut latency {
                points.push(json!([second, quantile(&ok, *q)]));
            }
        }
        failed.push(json!([second, of().filter(|sample| sample.error.is_some()).count()]));
        over.push(json!([second, of().filter(|sample| sample.attempts > 1).count()]));
    }
    let [(_, p50), (_, p99)] = latency;
    json!([
        {
            "name": "mesh-latency", "title": "Latency of calls that were answered", "x_label": "s", "y_label": "ms",
            "x_log": false, "y_log": true,
            "series": [{ "name": "p50", "points": p50 }, { "name": "p99", "points": p99 }],
        },
        {
            "name": "mesh-failures", "title": "Calls a second that failed, or needed more than one attempt",
            "x_label": "s", "y_label": "calls", "x_log": false, "y_log": false,
            "series": [{ "name": "failed", "points": failed }, { "name": "more than one attempt", "points": over }],
        },
    ])
}

pub(super) fn document(nodes: usize, seed: u64, outcome: &Outcome) -> Value {
    let at = starts();
    let phases_at: Vec<_> = PHASES
        .iter()
        .zip(&at)
        .map(|((name, _), at)| format!("{} s: {name}", at.as_secs()))
        .collect();
    json!({
        "title": format!("The mesh: {nodes} nodes over real QUIC on a network in memory"),
        "seed": seed,
        "tables": [phases(outcome), failures(outcome), mesh(outcome)],
        "plots": plots(outcome),
        "trace_hash": format!("{:016x}", outcome.trace),
        "notes": [
            "Links of 10 ms one way and up to 5 ms more, 0.1 % of datagrams lost; a call takes 5 ms at its provider on average.",
            phases_at.join("; "),
        ],
    })
}
