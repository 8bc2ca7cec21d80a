//! Helpers of the integration tests: a fixed beginning of time, sets of numbered providers, and a shell that answers at
//! once.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use macula_select::{Balancer, BalancerConfig, Call, CallError, CallOptions, Fate, Output, Provider, Success};

/// The beginning of time.
pub(crate) fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// So many milliseconds later.
pub(crate) fn at(milliseconds: u64) -> Instant {
    start() + Duration::from_millis(milliseconds)
}

/// A balancer of the providers `0..count`.
pub(crate) fn balancer(count: u32) -> Balancer<u32> {
    balancer_with(BalancerConfig::default(), count)
}

/// The same with a configuration.
pub(crate) fn balancer_with(config: BalancerConfig, count: u32) -> Balancer<u32> {
    let mut balancer = Balancer::new(config, 1);
    balancer.update(start(), (0..count).map(Provider::new));
    balancer
}

/// Runs a call to its end, the n-th attempt meeting its fate at once.
pub(crate) fn run(
    balancer: &mut Balancer<u32>,
    options: CallOptions,
    mut fate: impl FnMut(usize) -> Fate,
) -> Result<Success, CallError<u32>> {
    let mut call = Call::new(start(), options);
    let mut now = start();
    loop {
        match call.poll(now, balancer) {
            Output::Dispatch { attempt, .. } => call.on_result(now, balancer, attempt, fate(attempt.index())),
            Output::Abort { .. } | Output::Recall { .. } => {}
            Output::Wait(until) => now = until,
            Output::Done(result) => {
                assert_eq!(balancer.stats().in_flight(), 0);
                return result;
            }
            Output::Over => panic!("it was polled after it was done"),
        }
    }
}
