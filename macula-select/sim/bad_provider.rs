//! Ten providers of eight workers, 400 calls a second of 10 ms: and provider 0 is slow, fails, or is silent.

use std::time::Duration;

use macula_select::{BalancerConfig, CallOptions, Hedge, RetryPolicy, Strategy};
use serde_json::json;

use crate::Arguments;
use crate::cluster::{MILLISECOND, Mode};
use crate::report::{Report, rounded};
use crate::world::{self, Outcome, Setup};

/// The cluster that all of these share.
pub(crate) fn setup(arguments: Arguments, strategy: Strategy, mode: Mode) -> Setup {
    Setup {
        seed: arguments.seed,
        seconds: arguments.seconds(300),
        providers: 10,
        workers: 8,
        service: 10 * MILLISECOND,
        queue_limit: usize::MAX,
        clients: 1,
        load: vec![(0, 400.0)],
        faults: vec![(0, 0, mode)],
        balancer: BalancerConfig {
            strategy,
            ..BalancerConfig::default()
        },
        call: CallOptions::default(),
        aborts_arrive: true,
        network: None,
    }
}

fn without_breaker(mut setup: Setup) -> Setup {
    setup.balancer.health.consecutive_failures = 0;
    setup.balancer.health.min_success_rate = 0.0;
    setup
}

fn without_retry(mut setup: Setup) -> Setup {
    setup.call.max_attempts = Some(1);
    setup
}

fn run(name: &str, setup: Setup, report: &mut Report) -> Outcome {
    eprintln!("  {name}");
    let outcome = world::run(setup);
    report.trace(outcome.trace);
    outcome
}

pub(crate) fn slow(arguments: Arguments, report: &mut Report) {
    eprintln!("a provider that is 10× slow");
    let plain = |strategy| setup(arguments, strategy, Mode::Serving { slowness: 10.0 });
    let hedged = |strategy| {
        let mut setup = plain(strategy);
        setup.call = CallOptions {
            idempotent: true,
            hedge: Some(Hedge::AtP95),
            ..setup.call
        };
        setup
    };
    // p99, p99.9 and share to reach, where there are figures.
    let runs = [
        ("random", plain(Strategy::Random), Some((232.0, 456.0, 10.0))),
        ("round robin", plain(Strategy::RoundRobin), Some((241.0, 462.0, 10.0))),
        (
            "p2c least loaded",
            plain(Strategy::LeastLoaded),
            Some((127.0, 346.0, 3.5)),
        ),
        ("p2c peak-EWMA", plain(Strategy::PeakEwma), Some((48.0, 92.0, 0.25))),
        (
            "p2c peak-EWMA, hedged at p95",
            hedged(Strategy::PeakEwma),
            Some((40.0, 52.0, 0.16)),
        ),
        ("random, hedged at p95", hedged(Strategy::Random), None),
    ];
    let mut rows = Vec::new();
    for (name, setup, target) in runs {
        let outcome = run(name, setup, report);
        if let Some((p99, p999, _)) = target {
            for (which, measured, target) in [
                ("p99", outcome.quantile(0.99), p99),
                ("p99.9", outcome.quantile(0.999), p999),
            ] {
                if measured > target {
                    report.note(format!(
                        "{name}, one slow: {which} is {measured:.1} ms where {target} ms was the figure to reach; between seeds \
                         it varies by about 2 ms at p99 and 5 ms at p99.9."
                    ));
                }
            }
        }
        let show = |value: Option<f64>| value.map_or(json!("–"), |value| json!(value));
        rows.push(vec![
            json!(name),
            rounded(outcome.quantile(0.5), 1),
            rounded(outcome.quantile(0.99), 1),
            show(target.map(|(p99, _, _)| p99)),
            rounded(outcome.quantile(0.999), 1),
            show(target.map(|(_, p999, _)| p999)),
            rounded(outcome.share_of_first() * 100.0, 2),
            show(target.map(|(_, _, share)| share)),
            rounded(outcome.amplification(), 3),
        ]);
    }
    report.table(
        "provider 0 is 10× slow",
        &[
            "strategy",
            "p50 ms",
            "p99 ms",
            "to reach",
            "p99.9 ms",
            "to reach",
            "share of provider 0 %",
            "to reach",
            "attempts per call",
        ],
        rows,
    );
}

pub(crate) fn failing_fast(arguments: Arguments, report: &mut Report) {
    eprintln!("a provider that fails in 1 ms");
    let plain = |strategy| setup(arguments, strategy, Mode::Failing);
    let runs = [
        (
            "random, no breaker, no retry",
            without_retry(without_breaker(plain(Strategy::Random))),
            "89.9",
        ),
        (
            "least loaded, no breaker, no retry",
            without_retry(without_breaker(plain(Strategy::LeastLoaded))),
            "86.9",
        ),
        (
            "peak-EWMA, no breaker, no retry",
            without_retry(without_breaker(plain(Strategy::PeakEwma))),
            "99.99",
        ),
        (
            "random, breaker, no retry",
            without_retry(plain(Strategy::Random)),
            "99.99",
        ),
        (
            "peak-EWMA, breaker, no retry",
            without_retry(plain(Strategy::PeakEwma)),
            "–",
        ),
        (
            "random, no breaker, retry",
            without_breaker(plain(Strategy::Random)),
            "100 at 1.10×",
        ),
        ("random, breaker, retry", plain(Strategy::Random), "–"),
        ("peak-EWMA, breaker, retry", plain(Strategy::PeakEwma), "–"),
    ];
    let mut rows = Vec::new();
    for (name, setup, target) in runs {
        let outcome = run(name, setup, report);
        rows.push(vec![
            json!(name),
            rounded(outcome.success() * 100.0, 3),
            json!(target),
            rounded(outcome.amplification(), 3),
            rounded(outcome.share_of_first() * 100.0, 3),
        ]);
    }
    report.table(
        "provider 0 fails in 1 ms",
        &[
            "strategy",
            "success %",
            "to reach",
            "attempts per call",
            "share of provider 0 %",
        ],
        rows,
    );
}

pub(crate) fn black_hole(arguments: Arguments, report: &mut Report) {
    eprintln!("a provider that never answers");
    let plain = |strategy| {
        let mut setup = setup(arguments, strategy, Mode::BlackHole);
        setup.call.attempt_timeout = Duration::from_secs(1);
        setup.call.policy = RetryPolicy::Transient;
        setup
    };
    let runs = [
        (
            "random, no breaker",
            without_breaker(plain(Strategy::Random)),
            Some(1024.0),
        ),
        ("random, breaker", plain(Strategy::Random), None),
        ("round robin, breaker", plain(Strategy::RoundRobin), None),
        (
            "peak-EWMA, no breaker",
            without_breaker(plain(Strategy::PeakEwma)),
            Some(47.0),
        ),
        ("peak-EWMA, breaker", plain(Strategy::PeakEwma), None),
    ];
    let mut rows = Vec::new();
    for (name, setup, target) in runs {
        let outcome = run(name, setup, report);
        rows.push(vec![
            json!(name),
            rounded(outcome.success() * 100.0, 3),
            rounded(outcome.quantile(0.99), 1),
            target.map_or(json!("–"), |target| json!(target)),
            rounded(outcome.quantile(0.999), 1),
            rounded(outcome.share_of_first() * 100.0, 3),
        ]);
    }
    report.table(
        "provider 0 never answers; 1 s timeout, with retry",
        &[
            "strategy",
            "success %",
            "p99 ms",
            "to reach",
            "p99.9 ms",
            "share of provider 0 %",
        ],
        rows,
    );
}

/// The share of errors that every provider makes in [`rare_errors`].
const ERRORS: f64 = 0.0001;

/// Not one bad provider, but the rare errors that every real one has: a strategy must not chase them.
pub(crate) fn rare_errors(arguments: Arguments, report: &mut Report) {
    eprintln!("every provider fails one call in ten thousand");
    let mut rows = Vec::new();
    for strategy in [
        Strategy::Random,
        Strategy::RoundRobin,
        Strategy::LeastLoaded,
        Strategy::PeakEwma,
    ] {
        let mut setup = setup(arguments, strategy, Mode::Flaky { errors: ERRORS });
        setup.seconds = arguments.seconds(100);
        setup.faults = (0..setup.providers)
            .map(|provider| (0, provider, Mode::Flaky { errors: ERRORS }))
            .collect();
        setup.load = vec![(0, 4_000.0)];
        let outcome = run(strategy.name(), setup, report);
        let most = outcome.sent.iter().max().copied().unwrap_or(0) as f64;
        rows.push(vec![
            json!(strategy.name()),
            rounded(outcome.success() * 100.0, 3),
            rounded(outcome.quantile(0.5), 1),
            rounded(outcome.quantile(0.99), 1),
            rounded(most * outcome.sent.len() as f64 / outcome.attempts as f64, 3),
        ]);
    }
    report.table(
        "every provider fails 0.01 % of its calls, at half its capacity",
        &["strategy", "success %", "p50 ms", "p99 ms", "busiest provider ÷ mean"],
        rows,
    );
}
