//! The scenarios: what is done to the providers while calls are made.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    callers::{Callers, Seen},
    fleet::Fleet,
};

/// What is done to a provider.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// SIGKILL.
    Kill(usize),
    /// SIGSTOP.
    Stop(usize),
    /// SIGCONT.
    Go(usize),
    /// It starts again with its key at its ports.
    Again(usize),
    /// It starts again with its key at new ports.
    Elsewhere(usize),
    /// A provider with a new key starts at new ports, and the old one leaves on SIGTERM.
    Replace(usize),
}

/// A scenario, and what the specification wants of it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What Macula's caller is to reach.
    pub(crate) reach: &'static str,
    providers: usize,
    /// Providers that answer each call with an error.
    bad: usize,
    /// Steps before the callers start.
    before: &'static [Step],
    /// Calls a second of each caller.
    rate: f64,
    /// Seconds of calls.
    lasts: f64,
    steps: &'static [(f64, Step)],
}

const PLAIN: Scenario = Scenario {
    name: "",
    reach: "",
    providers: 3,
    bad: 0,
    before: &[],
    rate: 100.0,
    lasts: 8.0,
    steps: &[],
};

pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "kill -9 of one of three",
        reach: "longest < 100 ms, 0 failed",
        steps: &[(2.0, Step::Kill(0))],
        ..PLAIN
    },
    Scenario {
        name: "SIGSTOP of one of three",
        reach: "longest < 5 PTO + 100 ms, 0 failed",
        steps: &[(2.0, Step::Stop(0)), (7.0, Step::Go(0))],
        ..PLAIN
    },
    Scenario {
        name: "the only provider restarts in 0.1 s, same key and ports",
        reach: "0 failed",
        providers: 1,
        steps: &[(2.0, Step::Kill(0)), (2.1, Step::Again(0))],
        ..PLAIN
    },
    Scenario {
        name: "the only provider starts again after 1 s, same key, new ports",
        reach: "only calls without a provider",
        providers: 1,
        steps: &[(2.0, Step::Kill(0)), (3.0, Step::Elsewhere(0))],
        ..PLAIN
    },
    Scenario {
        name: "3 providers replaced one by one",
        reach: "0 failed",
        rate: 20.0,
        lasts: 16.0,
        steps: &[
            (2.0, Step::Replace(0)),
            (6.0, Step::Replace(1)),
            (10.0, Step::Replace(2)),
        ],
        ..PLAIN
    },
    Scenario {
        name: "2 of 3 answer every call with an error",
        reach: "0 failed",
        bad: 2,
        rate: 50.0,
        ..PLAIN
    },
    Scenario {
        name: "one live, one killed, a call each 1.5 s",
        reach: "at most the first over 1 s",
        providers: 2,
        before: &[Step::Kill(0)],
        rate: 1.0 / 1.5,
        lasts: 12.0,
        ..PLAIN
    },
    Scenario {
        name: "one of two killed and back on its ports after 15 s",
        reach: "first traffic within 2 s",
        providers: 2,
        rate: 20.0,
        lasts: 22.0,
        steps: &[(2.0, Step::Kill(0)), (17.0, Step::Again(0))],
        ..PLAIN
    },
    Scenario {
        name: "4 of 10 killed at 300 calls/s",
        reach: "0 failed",
        providers: 10,
        rate: 300.0,
        steps: &[
            (2.0, Step::Kill(0)),
            (2.0, Step::Kill(1)),
            (2.0, Step::Kill(2)),
            (2.0, Step::Kill(3)),
        ],
        ..PLAIN
    },
    Scenario {
        name: "newcomer, 1 live of 9 listed",
        reach: "p50 < 50 ms, p99 < 500 ms, 0 failed",
        providers: 9,
        before: &[
            Step::Kill(0),
            Step::Kill(1),
            Step::Kill(2),
            Step::Kill(3),
            Step::Kill(4),
            Step::Kill(5),
            Step::Kill(6),
            Step::Kill(7),
        ],
        rate: 20.0,
        ..PLAIN
    },
];

/// Plays a scenario and says what each caller saw.
pub(crate) async fn play(scenario: &Scenario) -> Result<Vec<Seen>> {
    let mut fleet = Fleet::start(scenario.providers, scenario.bad).await?;
    // Those that answer badly and those that are killed stay in every list.
    let addresses = fleet.addresses();
    for &step in scenario.before {
        fleet.take(step).await?;
    }
    let mut callers = Callers::start(fleet.bootstrap()?, &addresses, scenario.rate).await?;
    let begun = Instant::now();
    let mut first_fault = scenario.steps.is_empty().then_some(begun);
    for &(at, step) in scenario.steps {
        tokio::time::sleep(Duration::from_secs_f64(at).saturating_sub(begun.elapsed())).await;
        first_fault.get_or_insert_with(Instant::now);
        fleet.take(step).await?;
        callers.set_addresses(&fleet.addresses()).await;
    }
    tokio::time::sleep(Duration::from_secs_f64(scenario.lasts).saturating_sub(begun.elapsed())).await;
    callers.end(first_fault.unwrap_or(begun), &fleet.gaps).await
}
