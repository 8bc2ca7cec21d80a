//! A thousand clients, each with a balancer of its own, and one provider that was down and returns.
//!
//! Ejections that end together, or a newcomer that looks idle to everyone, would send it all the traffic at once.

use std::time::Duration;

use macula_select::{BalancerConfig, Strategy};
use serde_json::json;

use crate::Arguments;
use crate::bad_provider;
use crate::cluster::{Mode, SECOND};
use crate::report::{Plot, Report, rounded};
use crate::world::{self, Setup};

const CLIENTS: usize = 1_000;
const RATE: f64 = 4_000.0;
const DOWN_AT: u64 = 10;

pub(crate) fn returning_provider(arguments: Arguments, report: &mut Report) {
    eprintln!("1 000 clients and one returning provider");
    let back_at = DOWN_AT + if arguments.quick { 20 } else { 60 };
    let seconds = back_at + if arguments.quick { 30 } else { 120 };
    let fair = RATE / 10.0;
    let mut rows = Vec::new();
    let mut series = vec![("fair share".to_owned(), vec![(0.0, fair), (seconds as f64, fair)])];
    for (name, strategy, slow_start) in [
        ("random", Strategy::Random, 10),
        ("p2c least loaded", Strategy::LeastLoaded, 10),
        ("p2c peak-EWMA", Strategy::PeakEwma, 10),
        ("p2c least loaded, no slow start", Strategy::LeastLoaded, 0),
    ] {
        eprintln!("  {name}");
        let base = bad_provider::setup(arguments, strategy, Mode::Serving { slowness: 1.0 });
        let mut balancer = BalancerConfig {
            strategy,
            ..BalancerConfig::default()
        };
        balancer.health.slow_start = Duration::from_secs(slow_start);
        let setup = Setup {
            seconds,
            clients: CLIENTS,
            load: vec![(0, RATE)],
            faults: vec![
                (DOWN_AT * SECOND, 0, Mode::Down),
                (back_at * SECOND, 0, Mode::Serving { slowness: 1.0 }),
            ],
            balancer,
            ..base
        };
        let outcome = world::run(setup);
        report.trace(outcome.trace);
        let rate = |second: usize| outcome.timeline[second].to_first as f64;
        let after = back_at as usize..seconds as usize;
        let peak = after.clone().map(rate).fold(0.0, f64::max);
        let settled = after.clone().find(|second| rate(*second) >= fair * 0.8);
        rows.push(vec![
            json!(name),
            rounded(outcome.success() * 100.0, 3),
            rounded(rate(back_at as usize), 0),
            rounded(peak, 0),
            rounded(peak / fair, 2),
            settled.map_or(json!("later"), |second| json!(second as u64 - back_at)),
            rounded(outcome.quantile(0.99), 1),
        ]);
        let points = outcome
            .timeline
            .iter()
            .enumerate()
            .map(|(at, second)| (at as f64, second.to_first as f64));
        series.push((name.to_owned(), points.collect()));
    }
    report.table(
        "1 000 clients × 4 calls/s, ten providers, one down and back",
        &[
            "strategy",
            "success %",
            "attempts in its first second",
            "peak attempts/s after its return",
            "peak ÷ fair share",
            "seconds to 80 % of its share",
            "p99 ms",
        ],
        rows,
    );
    report.plot(
        &Plot {
            name: "returning-provider",
            title: "Attempts at a provider that is down for a while, 1 000 clients",
            x_label: "s",
            y_label: "attempts/s",
            y_log: false,
        },
        series,
    );
}
