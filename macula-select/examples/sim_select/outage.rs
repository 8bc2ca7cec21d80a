//! Every provider fails: how much load do the retries add?

use macula_select::Strategy;
use serde_json::json;

use crate::Arguments;
use crate::bad_provider::setup;
use crate::cluster::Mode;
use crate::report::{Plot, Report, rounded};
use crate::world;

pub(crate) fn all_failing(arguments: Arguments, report: &mut Report) {
    eprintln!("every provider fails");
    let mut rows = Vec::new();
    let mut bars = Vec::new();
    for (at, (name, ratio, target)) in [
        ("three attempts, no budget", 1e9, 3.0),
        ("three attempts, 20 % budget", 0.2, 1.2),
    ]
    .into_iter()
    .enumerate()
    {
        let mut setup = setup(arguments, Strategy::Random, Mode::Failing);
        setup.faults = (0..setup.providers)
            .map(|provider| (0, provider, Mode::Failing))
            .collect();
        setup.balancer.budget.ratio = ratio;
        let outcome = world::run(setup);
        report.trace(outcome.trace);
        bars.push((name.to_owned(), vec![(at as f64, outcome.amplification())]));
        rows.push(vec![json!(name), rounded(outcome.amplification(), 3), json!(target)]);
    }
    report.table("all providers fail", &["policy", "attempts per call", "to reach"], rows);
    report.plot(
        &Plot {
            name: "all-failing-amplification",
            title: "All providers fail: load per call",
            x_label: "policy",
            y_label: "attempts per call",
            y_log: false,
            kind: "bar",
        },
        bars,
    );
}
