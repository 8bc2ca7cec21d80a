//! A pulse of load beyond capacity, and whether the system recovers from it.
//!
//! The servers here are the bad kind: unbounded queues, and they finish abandoned work. Retries without
//! a budget then keep the overload alive after the pulse is gone (a metastable failure; Bronson et al., HotOS 2021).

use std::time::Duration;

use macula_select::{BalancerConfig, CallOptions, Strategy};
use serde_json::json;

use crate::Arguments;
use crate::cluster::{MILLISECOND, SECOND};
use crate::report::{Plot, Report, rounded};
use crate::world::{self, Setup};

const CAPACITY: f64 = 2_000.0;
const PULSE: std::ops::Range<u64> = 10..15;

pub(crate) fn pulse(arguments: Arguments, report: &mut Report) {
    eprintln!("a pulse of overload");
    let seconds = if arguments.quick { 40 } else { 120 };
    let mut rows = Vec::new();
    let mut series = Vec::new();
    let offered = [
        (0.0, 0.75),
        (10.0, 0.75),
        (10.0, 1.6),
        (15.0, 1.6),
        (15.0, 0.75),
        (seconds as f64, 0.75),
    ];
    series.push((
        "offered".to_owned(),
        offered.map(|(at, load)| (at, load * CAPACITY)).to_vec(),
    ));
    for (name, ratio, aborts_arrive, queue_limit) in [
        ("no budget", 1e9, false, usize::MAX),
        ("20 % budget", 0.2, false, usize::MAX),
        ("no budget, aborts reach the queue", 1e9, true, usize::MAX),
        ("20 % budget, aborts reach the queue", 0.2, true, usize::MAX),
        ("20 % budget, servers shed at 40 waiting", 0.2, true, 40),
    ] {
        eprintln!("  {name}");
        let mut balancer = BalancerConfig {
            strategy: Strategy::LeastLoaded,
            ..BalancerConfig::default()
        };
        balancer.budget.ratio = ratio;
        let setup = Setup {
            seed: arguments.seed,
            seconds,
            providers: 10,
            workers: 2,
            service: 10 * MILLISECOND,
            queue_limit,
            clients: 20,
            load: vec![
                (0, CAPACITY * 0.75),
                (PULSE.start * SECOND, CAPACITY * 1.6),
                (PULSE.end * SECOND, CAPACITY * 0.75),
            ],
            faults: Vec::new(),
            balancer,
            call: CallOptions {
                timeout: Duration::from_secs(2),
                attempt_timeout: Duration::from_millis(500),
                ..CallOptions::default()
            },
            aborts_arrive,
            network: None,
        };
        let outcome = world::run(setup);
        report.trace(outcome.trace);
        let healthy = |second: usize| {
            let second = &outcome.timeline[second];
            second.succeeded as f64 >= 0.95 * CAPACITY * 0.75
        };
        let end = PULSE.end as usize;
        let recovered =
            (end..seconds as usize - 1).find(|from| (*from..(*from + 3).min(seconds as usize - 1)).all(healthy));
        let during = &outcome.timeline[PULSE.start as usize..end];
        let succeeded: u64 = during.iter().map(|second| second.succeeded).sum();
        rows.push(vec![
            json!(name),
            rounded(outcome.success() * 100.0, 2),
            rounded(succeeded as f64 / during.len() as f64, 0),
            recovered.map_or(json!("never"), |second| json!(second - end)),
            rounded(outcome.amplification(), 3),
        ]);
        let points = outcome
            .timeline
            .iter()
            .enumerate()
            .map(|(at, second)| (at as f64, second.succeeded as f64));
        series.push((name.to_owned(), points.collect()));
    }
    report.table(
        "1.6× capacity for 5 s, 75 % before and after",
        &[
            "policy",
            "success %",
            "successes/s during the pulse",
            "seconds to recover",
            "attempts per call",
        ],
        rows,
    );
    report.plot(
        &Plot {
            name: "overload-pulse",
            title: "Overload pulse (10 to 15 s) and recovery",
            x_label: "s",
            y_label: "successful calls/s",
            y_log: false,
        },
        series,
    );
    report.note(
        "Capacity is 2 000 calls/s. Without a budget or cancellation, retries keep the overload alive by themselves.",
    );
}
