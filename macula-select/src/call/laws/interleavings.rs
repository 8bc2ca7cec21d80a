//! Everything that can happen to two calls among three providers, in every order.
//!
//! At each step either call's attempts may meet any fate, either call may be cancelled, and time may pass until the
//! next moment at which something is due. The world checks the laws after each; stragglers are tried at every step,
//! since they may not change anything. All fates are explored to a depth at which each call has failed over; three of
//! them, one for each way on, until both calls have ended.

use super::super::{AttemptId, CallOptions, Hedge};
use super::world::{World, touchy};
use crate::fate::{Code, Fate, Loss, Pushback, Refusal};
use crate::policy::RetryPolicy;
use crate::strategy::Strategy;
use std::time::Duration;

const FATES: [Fate; 11] = [
    Fate::Ok,
    Fate::NotSent,
    Fate::refused(Refusal::Overloaded),
    Fate::refused(Refusal::Draining),
    Fate::refused(Refusal::NoSuchService),
    Fate::Refused {
        reason: Refusal::Overloaded,
        pushback: Some(Pushback::After(Duration::from_millis(50))),
    },
    Fate::Unknown(Loss::ConnectionLost),
    Fate::answered(Code::Unavailable),
    Fate::Answered {
        code: Code::Unavailable,
        pushback: Some(Pushback::Stop),
    },
    Fate::answered(Code::NotFound),
    Fate::Cancelled,
];

/// It ends well, it failed for certain, it was not even sent.
const WAYS_ON: [Fate; 3] = [Fate::Ok, Fate::answered(Code::Unavailable), Fate::NotSent];

/// Explores all stories of at most `depth` events, and returns how many there are.
fn explore(world: &World, fates: &[Fate], depth: u32) -> u64 {
    if depth == 0 || world.calls.iter().all(|watched| watched.done) {
        let mut end = world.clone();
        for index in 0..end.calls.len() {
            end.cancel(index);
            assert!(end.calls[index].done, "law 13: a cancelled call goes on");
        }
        assert_eq!(
            end.balancer.stats().in_flight(),
            0,
            "law 2: at rest nothing is in flight"
        );
        return 1;
    }
    let mut stories = 0;
    for index in 0..world.calls.len() {
        if world.calls[index].done {
            continue;
        }
        for attempt in &world.calls[index].live {
            for fate in fates {
                let mut next = world.clone();
                next.result(index, *attempt, *fate);
                straggle(&mut next, index, *attempt);
                stories += explore(&next, fates, depth - 1);
            }
        }
        let mut next = world.clone();
        next.cancel(index);
        stories += explore(&next, fates, depth - 1);
    }
    if let Some(due) = world.next_due() {
        let mut next = world.clone();
        next.set_clock(due);
        stories += explore(&next, fates, depth - 1);
    }
    stories
}

/// The same attempt is answered once more.
fn straggle(world: &mut World, index: usize, attempt: AttemptId) {
    for fate in [Fate::Ok, Fate::answered(Code::Internal)] {
        world.result(index, attempt, fate);
    }
}

fn two_calls(options: &CallOptions, fates: &[Fate], depth: u32) -> u64 {
    let mut world = World::new(touchy(), 3, 1);
    world.call(options.clone());
    world.call(options.clone());
    explore(&world, fates, depth)
}

fn options() -> CallOptions {
    CallOptions {
        timeout: Duration::from_secs(2),
        attempt_timeout: Duration::from_millis(900),
        ..CallOptions::default()
    }
}

#[test]
fn every_story_of_two_calls_keeps_the_laws() {
    for (strategy, depth) in [(Strategy::First, 4), (Strategy::RoundRobin, 3), (Strategy::PeakEwma, 3)] {
        let stories = two_calls(
            &CallOptions {
                strategy: Some(strategy),
                ..options()
            },
            &FATES,
            depth,
        );
        assert!(stories > 7_000, "{strategy}: {stories}");
    }
}

#[test]
fn every_story_of_two_calls_keeps_the_laws_to_the_end() {
    let stories = two_calls(&options(), &WAYS_ON, 8);
    assert!(stories > 60_000, "{stories}");
}

#[test]
fn every_story_of_two_calls_that_must_not_run_twice_keeps_the_laws() {
    let options = CallOptions {
        policy: RetryPolicy::NeverProcessed,
        hedge: Some(Hedge::After(Duration::ZERO)),
        ..options()
    };
    let stories = two_calls(
        &CallOptions {
            idempotent: true,
            ..options
        },
        &FATES,
        4,
    );
    assert!(stories > 40_000, "{stories}");
}

#[test]
fn every_story_of_two_hedged_calls_keeps_the_laws() {
    let hedge = Some(Hedge::After(Duration::from_millis(100)));
    let stories = two_calls(
        &CallOptions {
            hedge,
            idempotent: true,
            max_attempts: Some(2),
            ..options()
        },
        &FATES,
        3,
    );
    assert!(stories > 8_000, "{stories}");
}

#[test]
fn every_story_with_one_provider_on_probation_keeps_the_laws() {
    let mut world = World::new(touchy(), 3, 5);
    world.call(CallOptions {
        strategy: Some(Strategy::First),
        ..options()
    });
    let first = world.calls[0].live[0];
    world.result(0, first, Fate::answered(Code::Unavailable));
    world.cancel(0);
    let due = world.balancer.poll_timeout().expect("a provider is ejected");
    world.set_clock(due);
    world.balancer.handle_timeout(due);
    world.calls.clear();
    for _ in 0..2 {
        world.call(options());
    }
    assert_eq!(world.balancer.stats().probes, 1);
    assert!(explore(&world, &FATES, 3) > 7_000);
}
