//! Every provider fails: how much load do the retries add?

use macula_select::Strategy;
use serde_json::json;

use crate::Arguments;
use crate::bad_provider::setup;
use crate::cluster::Mode;
use crate::report::{Report, rounded};
use crate::world;

pub(crate) fn all_failing(arguments: Arguments, report: &mut Report) {
    eprintln!("every provider fails");
    let mut rows = Vec::new();
    for (name, ratio, target) in [
        ("three attempts, no budget", 1e9, 3.0),
        ("three attempts, 20 % budget", 0.2, 1.2),
    ] {
        let mut setup = setup(arguments, Strategy::Random, Mode::Failing);
        setup.faults = (0..setup.providers)
            .map(|provider| (0, provider, Mode::Failing))
            .collect();
        setup.balancer.budget.ratio = ratio;
        let outcome = world::run(setup);
        report.trace(outcome.trace);
        rows.push(vec![json!(name), rounded(outcome.amplification(), 3), json!(target)]);
    }
    report.table("all providers fail", &["policy", "attempts per call", "to reach"], rows);
}
