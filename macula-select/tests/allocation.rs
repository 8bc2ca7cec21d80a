//! Nothing is allocated on a pick, a report, or a successful call, and a provider takes at most 192 bytes.
//!
//! A process of its own without a test harness: the counter counts the allocations of all threads.

#![allow(clippy::print_stdout, reason = "it reports what it measured, as a test runner would")]

mod common;

use std::alloc::System;
use std::time::Duration;

use common::{at, start};
use macula_select::{
    Balancer, BalancerConfig, Call, CallOptions, Code, Fate, FirstAttempt, Hedge, Link, Output, PickContext, Provider,
    Pushback, Refusal, Strategy, Zone,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Runs it and returns how often it allocated.
fn allocations(run: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    run();
    let change = region.change();
    change.allocations + change.reallocations
}

fn busy_balancer(strategy: Strategy) -> Balancer<u64> {
    let mut config = BalancerConfig {
        strategy,
        ..BalancerConfig::default()
    };
    config.locality.zone = Some(Zone::new(0));
    let mut balancer = Balancer::new(config, 3);
    balancer.update(
        start(),
        (0..50u64).map(|key| Provider::new(key).weight(1 + key as u32 % 5).zone(Zone::new(key % 2))),
    );
    balancer
}

fn picks_and_reports(strategy: Strategy) {
    let mut balancer = busy_balancer(strategy);
    let fate = |n: u64| match n % 40 {
        0 => Fate::Ok,
        1 => Fate::Cancelled,
        2 => Fate::NotSent,
        3 => Fate::Refused {
            reason: Refusal::Overloaded,
            pushback: Some(Pushback::After(Duration::from_secs(1))),
        },
        _ => Fate::answered(Code::Internal),
    };
    for key in 0..50 {
        balancer.link(start(), &key, Link::Up);
    }
    let context = PickContext {
        exclude: &[1, 2, 3],
        ..PickContext::default()
    };
    // Ejections, probes, restorations, panic, holds, slow start and events are all in here.
    let count = allocations(|| {
        for n in 0..20_000u64 {
            let context = PickContext {
                affinity: Some(n / 7),
                ..context
            };
            let Ok(lease) = balancer.pick(at(n * 7), &context) else {
                continue;
            };
            let bad = balancer.provider(&lease).is_some_and(|key| key % 3 == 0) && n % 9_000 < 5_000;
            let fate = if bad { fate(n) } else { Fate::Ok };
            balancer
                .report(at(n * 7 + 3), lease, fate)
                .expect("this balancer issued it");
            if n % 1_000 == 0 {
                let link = [Link::Down, Link::Suspected, Link::Idle][n as usize / 1_000 % 3];
                balancer.link(at(n * 7), &(n / 1_000), link);
                balancer.report_load(at(n * 7), &(n / 1_000), 0.5);
            }
            if let Some(dialed) = balancer.poll_dial(at(n * 7)) {
                balancer.link(at(n * 7), &dialed, if n % 3 == 0 { Link::Up } else { Link::Down });
            }
        }
    });
    assert_eq!(count, 0, "{strategy}");
    let stats = balancer.stats();
    assert!(
        stats.ejections > 3 && stats.probes > 3,
        "{strategy} saw little: {stats:?}"
    );
}

fn successful_calls() {
    let mut balancer = busy_balancer(Strategy::PeakEwma);
    for failures in 0..3 {
        let options = CallOptions {
            idempotent: true,
            hedge: Some(Hedge::After(Duration::from_secs(1))),
            ..CallOptions::default()
        };
        let count = allocations(|| {
            let mut call = Call::new(start(), options);
            let mut results = 0;
            loop {
                match call.poll(start(), &mut balancer) {
                    Output::Dispatch { attempt, .. } => {
                        let fate = if results < failures {
                            Fate::Unknown(macula_select::Loss::TimedOut)
                        } else {
                            Fate::Ok
                        };
                        results += 1;
                        call.on_result(start(), &mut balancer, attempt, fate);
                    }
                    Output::Wait(_) | Output::Recall { .. } | Output::Abort { .. } | Output::Over => {
                        panic!("every attempt was answered")
                    }
                    Output::Done(result) => {
                        assert!(result.is_ok() && call.attempts().len() == failures + 1);
                        break;
                    }
                }
            }
        });
        assert_eq!(count, 0, "a call that succeeded after {failures} failures");
    }
}

fn first_attempts() {
    let mut balancer = busy_balancer(Strategy::PeakEwma);
    let options = CallOptions::default();
    let count = allocations(|| {
        for _ in 0..100 {
            let first = FirstAttempt::start(start(), start(), &mut balancer, &options).expect("there are providers");
            first.succeed(at(5), &mut balancer);
        }
    });
    assert_eq!(count, 0, "a call of one attempt");
}

fn bytes_per_provider<K: Clone + Eq + std::hash::Hash>(key: impl Fn(u32) -> K) -> usize {
    let mut balancer = Balancer::new(BalancerConfig::default(), 1);
    let region = Region::new(ALLOCATOR);
    balancer.update(start(), (0..10_000).map(|number| Provider::new(key(number))));
    let change = region.change();
    assert_eq!(balancer.len(), 10_000);
    // A reallocation that grew is in the balance of bytes already.
    (change.bytes_allocated - change.bytes_deallocated).div_ceil(10_000)
}

fn main() {
    for strategy in Strategy::ALL {
        picks_and_reports(strategy);
        println!("test no_allocation_on_pick_and_report::{strategy} ... ok");
    }
    successful_calls();
    println!("test no_allocation_on_a_successful_call ... ok");
    first_attempts();
    println!("test no_allocation_on_a_first_attempt ... ok");
    let small = bytes_per_provider(u64::from);
    let large = bytes_per_provider(|number| {
        let mut id = [0u8; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        id
    });
    assert!(small <= 192, "{small} bytes per provider with an 8-byte key");
    assert!(large <= 192 + 24, "{large} bytes per provider with a 32-byte key");
    println!("test memory_per_provider ... ok: {small} bytes with an 8-byte key, {large} with a 32-byte key");
}
