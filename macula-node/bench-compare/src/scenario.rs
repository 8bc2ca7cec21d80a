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
    /// SIGKILL, and a provider with a new key starts at new ports.
    Crash(usize),
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
    /// The clients that make Macula's calls in turn.
    clients: usize,
    /// Whether every processor has other work all the time.
    busy: bool,
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
    clients: 1,
    busy: false,
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
        name: "the only provider restarts in 0.1 s, same key and ports, 20 clients",
        reach: "0 failed",
        providers: 1,
        clients: 20,
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
        name: "one of two killed and back on its ports after 90 s",
        reach: "first traffic within 2 s, 0 failed",
        providers: 2,
        rate: 20.0,
        lasts: 97.0,
        steps: &[(2.0, Step::Kill(0)), (92.0, Step::Again(0))],
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
        name: "2 of 3 killed at 300 calls/s",
        reach: "0 failed",
        rate: 300.0,
        steps: &[(2.0, Step::Kill(0)), (2.0, Step::Kill(1))],
        ..PLAIN
    },
    Scenario {
        name: "a crash loop beside one steady provider",
        reach: "0 failed",
        lasts: 20.0,
        steps: &[
            (2.0, Step::Crash(0)),
            (3.0, Step::Crash(1)),
            (4.0, Step::Crash(0)),
            (5.0, Step::Crash(1)),
            (6.0, Step::Crash(0)),
            (7.0, Step::Crash(1)),
            (8.0, Step::Crash(0)),
            (9.0, Step::Crash(1)),
            (10.0, Step::Crash(0)),
            (11.0, Step::Crash(1)),
            (12.0, Step::Crash(0)),
            (13.0, Step::Crash(1)),
            (14.0, Step::Crash(0)),
            (15.0, Step::Crash(1)),
        ],
        ..PLAIN
    },
    Scenario {
        name: "each call by a newcomer, 1 live of 9 listed",
        reach: "p50 < 50 ms, p99 < 500 ms, 0 failed",
        providers: 9,
        before: EIGHT_KILLED,
        clients: 100,
        rate: 10.0,
        ..PLAIN
    },
    Scenario {
        name: "1 live of 9 listed",
        reach: "0 failed",
        providers: 9,
        before: EIGHT_KILLED,
        ..PLAIN
    },
    Scenario {
        name: "each call by a newcomer, 3 live of 9 listed",
        reach: "p99 < 300 ms, none over 1 s, 0 failed",
        providers: 9,
        before: SIX_KILLED,
        clients: 100,
        rate: 10.0,
        ..PLAIN
    },
    Scenario {
        name: "3 live of 9 listed",
        reach: "p99 < 300 ms, none over 1 s, 0 failed",
        providers: 9,
        before: SIX_KILLED,
        ..PLAIN
    },
    Scenario {
        name: "nothing fails on a busy machine",
        reach: "suspicions in fewer than 1 of 1 000 calls",
        busy: true,
        rate: 200.0,
        lasts: 30.0,
        ..PLAIN
    },
];

const EIGHT_KILLED: &[Step] = &[
    Step::Kill(0),
    Step::Kill(1),
    Step::Kill(2),
    Step::Kill(3),
    Step::Kill(4),
    Step::Kill(5),
    Step::Kill(6),
    Step::Kill(7),
];

const SIX_KILLED: &[Step] = &[
    Step::Kill(0),
    Step::Kill(1),
    Step::Kill(2),
    Step::Kill(3),
    Step::Kill(4),
    Step::Kill(5),
];

impl Scenario {
    /// Whether a provider comes back with its key.
    pub(crate) fn returns(&self) -> bool {
        let steps = self.steps.iter();
        let is_return = |step: &Step| matches!(step, Step::Again(_) | Step::Elsewhere(_));
        steps.map(|(_, step)| step).any(is_return)
    }
}

/// Plays a scenario and says what each caller saw.
pub(crate) async fn play(scenario: &Scenario) -> Result<Vec<Seen>> {
    let mut fleet = Fleet::start(scenario.providers, scenario.bad).await?;
    // Those that answer badly and those that are killed stay in every list.
    let addresses = fleet.addresses();
    for &step in scenario.before {
        fleet.take(step).await?;
    }
    let mut callers = Callers::start(fleet.bootstrap()?, scenario.clients, &addresses, scenario.rate).await?;
    let _load = if scenario.busy { load()? } else { Vec::new() };
    let begun = Instant::now();
    let mut first_fault = scenario.steps.is_empty().then_some(begun);
    for &(at, step) in scenario.steps {
        tokio::time::sleep(Duration::from_secs_f64(at).saturating_sub(begun.elapsed())).await;
        first_fault.get_or_insert_with(Instant::now);
        fleet.take(step).await?;
        callers.set_addresses(&fleet.addresses()).await;
    }
    tokio::time::sleep(Duration::from_secs_f64(scenario.lasts).saturating_sub(begun.elapsed())).await;
    callers.end(first_fault.unwrap_or(begun), &fleet).await
}

/// Two processes for each processor that compute until they are dropped.
fn load() -> Result<Vec<tokio::process::Child>> {
    let processors = std::thread::available_parallelism()?.get();
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", "while :; do :; done"]).kill_on_drop(true);
    let load = (0..2 * processors).map(|_| shell.spawn());
    Ok(load.collect::<Result<_, _>>()?)
}
