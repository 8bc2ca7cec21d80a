//! Silence: providers that die, vanish, flap or have no time to acknowledge, and what that costs the calls (L2, L5, H5).
//!
//! Default options throughout. Each case runs twice: with a transport that tells the balancer of links, and with one that
//! does not, so that calls learn by timeouts and lost connections alone.

use macula_select::{BalancerConfig, CallOptions, Strategy};
use serde_json::json;

use crate::Arguments;
use crate::cluster::{MILLISECOND, Mode, SECOND};
use crate::report::{Report, rounded};
use crate::world::{self, Nanos, Network, Setup};

const FAULT_AT: Nanos = 5 * SECOND;
const WELL: Mode = Mode::Serving { slowness: 1.0 };

struct Case {
    name: &'static str,
    providers: u16,
    rate: f64,
    faults: Vec<(Nanos, u16, Mode)>,
    silent_above: usize,
    pulse: Option<f64>,
}

impl Case {
    fn new(name: &'static str, providers: u16, rate: f64) -> Self {
        Self {
            name,
            providers,
            rate,
            faults: Vec::new(),
            silent_above: usize::MAX,
            pulse: None,
        }
    }

    /// The first so many providers change their mode then.
    fn from(mut self, at: Nanos, providers: u16, mode: Mode) -> Self {
        self.faults.extend((0..providers).map(|provider| (at, provider, mode)));
        self
    }

    fn setup(&self, arguments: Arguments, told: bool) -> Setup {
        let mut load = vec![(0, self.rate)];
        load.extend(
            self.pulse
                .into_iter()
                .flat_map(|times| [(FAULT_AT, self.rate * times), (FAULT_AT + 3 * SECOND, self.rate)]),
        );
        Setup {
            seed: arguments.seed,
            seconds: arguments.seconds(60).max(20),
            providers: self.providers,
            workers: 8,
            service: 10 * MILLISECOND,
            queue_limit: usize::MAX,
            clients: 4,
            load,
            faults: self.faults.clone(),
            balancer: BalancerConfig {
                strategy: Strategy::Random,
                ..BalancerConfig::default()
            },
            call: CallOptions::default(),
            aborts_arrive: true,
            network: Some(Network {
                told,
                silent_above: self.silent_above,
            }),
        }
    }
}

fn cases() -> Vec<Case> {
    let mut flapping = Case::new("3 of 10 silent for 0.3 s every 2 s", 10, 400.0);
    let mut all_flapping = Case::new("all 10 silent for 0.3 s every 2 s", 10, 400.0);
    for n in 0..20 {
        let at = FAULT_AT + n * 2 * SECOND;
        flapping = flapping.from(at, 3, Mode::Silent).from(at + 300 * MILLISECOND, 3, WELL);
        all_flapping = all_flapping
            .from(at, 10, Mode::Silent)
            .from(at + 300 * MILLISECOND, 10, WELL);
    }
    let mut overload = Case::new("1.6× capacity for 3 s, silent above 40 waiting", 10, 6_000.0);
    overload.silent_above = 40;
    overload.pulse = Some(12_800.0 / 6_000.0);
    vec![
        Case::new("4 of 12 killed", 12, 640.0).from(FAULT_AT, 4, Mode::Killed),
        Case::new("4 of 10 killed", 10, 300.0).from(FAULT_AT, 4, Mode::Killed),
        Case::new("5 of 10 killed", 10, 400.0).from(FAULT_AT, 5, Mode::Killed),
        Case::new("2 of 3 killed", 3, 300.0).from(FAULT_AT, 2, Mode::Killed),
        Case::new("8 of 9 dead from the start", 9, 20.0).from(0, 8, Mode::Killed),
        Case::new("3 of 10 killed, back after 8 s", 10, 400.0)
            .from(FAULT_AT, 3, Mode::Killed)
            .from(FAULT_AT + 8 * SECOND, 3, WELL),
        Case::new("one of 3 stopped for 5 s", 3, 100.0)
            .from(FAULT_AT, 1, Mode::Silent)
            .from(FAULT_AT + 5 * SECOND, 1, WELL),
        flapping,
        all_flapping,
        overload,
        Case::new("all 10 killed", 10, 2_000.0).from(FAULT_AT, 10, Mode::Killed),
        Case::new("all 10 answer with errors", 10, 2_000.0).from(FAULT_AT, 10, Mode::Failing),
        Case::new("2 of 3 answer with errors", 3, 50.0).from(0, 2, Mode::Failing),
    ]
}

pub(crate) fn silence(arguments: Arguments, report: &mut Report) {
    eprintln!("providers that fall silent");
    let mut rows = Vec::new();
    for case in cases() {
        eprintln!("  {}", case.name);
        for told in [false, true] {
            let outcome = world::run(case.setup(arguments, told));
            report.trace(outcome.trace);
            let longest = outcome.quantile(1.0);
            rows.push(vec![
                json!(case.name),
                json!(if told { "yes" } else { "no" }),
                json!(outcome.calls - outcome.latencies.len() as u64),
                json!(outcome.calls),
                rounded(outcome.quantile(0.99), 1),
                rounded(longest, 0),
                rounded(outcome.amplification(), 3),
            ]);
        }
    }
    report.table(
        "providers that fall silent, default options",
        &[
            "case",
            "links told",
            "failed",
            "calls",
            "p99 ms",
            "longest ms",
            "attempts per call",
        ],
        rows,
    );
}
