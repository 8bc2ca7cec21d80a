//! L2, L5, F5, F9: what a call does when a provider falls silent, is found dead, or is still being dialed.

mod common;

use std::time::Duration;

use common::{at, balancer, balancer_with, start};
use macula_select::{
    AttemptId, Backoff, Balancer, BalancerConfig, BudgetConfig, Call, CallError, CallOptions, Code, Fate, FirstAttempt,
    Hedge, Link, Loss, Output, Pushback, RetryPolicy, StopReason, Strategy,
};

const LOST: Fate = Fate::Unknown(Loss::ConnectionLost);
const FAILED: Fate = Fate::Answered {
    code: Code::Unavailable,
    pushback: None,
};

/// In order, so that the tests can name providers.
fn first() -> CallOptions {
    CallOptions {
        strategy: Some(Strategy::First),
        ..CallOptions::default()
    }
}

/// All of them connected.
fn connected(count: u32) -> Balancer<u32> {
    connected_with(BalancerConfig::default(), count)
}

fn connected_with(config: BalancerConfig, count: u32) -> Balancer<u32> {
    let mut balancer = balancer_with(config, count);
    for key in 0..count {
        balancer.link(start(), &key, Link::Up);
    }
    balancer
}

fn without_budget() -> BalancerConfig {
    BalancerConfig {
        budget: BudgetConfig {
            ratio: 0.0,
            per_second: 0.0,
            hedge_ratio: 0.0,
        },
        ..BalancerConfig::default()
    }
}

#[track_caller]
fn dispatched(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64) -> (u32, AttemptId, bool) {
    match call.poll(at(now), balancer) {
        Output::Dispatch { to, attempt, hedge, .. } => (to, attempt, hedge),
        other => panic!("it should dispatch, not {other:?}"),
    }
}

#[track_caller]
fn waits(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64) {
    let output = call.poll(at(now), balancer);
    assert!(matches!(output, Output::Wait(_)), "it should wait, not {output:?}");
}

#[track_caller]
fn aborts(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64, expected: AttemptId) {
    match call.poll(at(now), balancer) {
        Output::Abort { attempt } => assert_eq!(attempt, expected),
        other => panic!("it should abort, not {other:?}"),
    }
}

#[track_caller]
fn ends(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64) -> Result<AttemptId, CallError<u32>> {
    match call.poll(at(now), balancer) {
        Output::Done(result) => result.map(|success| success.attempt),
        other => panic!("it should be over, not {other:?}"),
    }
}

#[test]
fn l2_a_suspected_provider_makes_the_call_go_on_beside_it_and_the_first_answer_wins() {
    for late in [false, true] {
        let mut balancer = connected_with(without_budget(), 3);
        let mut call = Call::new(start(), first());
        let (_, silent, _) = dispatched(&mut call, &mut balancer, 0);
        waits(&mut call, &mut balancer, 0);
        balancer.link(at(100), &0, Link::Suspected);
        let (to, beside, hedge) = dispatched(&mut call, &mut balancer, 100);
        assert_eq!((to, hedge), (1, true));
        waits(&mut call, &mut balancer, 100);
        let (winner, loser) = if late { (silent, beside) } else { (beside, silent) };
        call.on_result(at(105), &mut balancer, winner, Fate::Ok);
        aborts(&mut call, &mut balancer, 105, loser);
        assert_eq!(ends(&mut call, &mut balancer, 105), Ok(winner));
        let spending = balancer.stats().spending;
        assert_eq!((spending.retries, spending.hedges), (0, 0));
        assert!(balancer.providers().all(|provider| provider.counts.failed == 0), "L3");
        assert_eq!(balancer.stats().in_flight(), 0);
    }
}

/// Also by the first attempt alone.
#[test]
fn l2_a_first_attempt_becomes_the_call_that_goes_on_beside_it() {
    let mut balancer = connected(2);
    let options = first();
    let attempt = FirstAttempt::start(start(), start(), &mut balancer, &options).expect("there are providers");
    assert!(!attempt.is_stalled(&balancer));
    balancer.link(at(100), &1, Link::Suspected);
    assert!(!attempt.is_stalled(&balancer), "another provider is no matter");
    balancer.link(at(100), &1, Link::Up);
    balancer.link(at(100), &0, Link::Suspected);
    assert!(attempt.is_stalled(&balancer));
    let mut call = attempt.into_call(options);
    let (to, beside, _) = dispatched(&mut call, &mut balancer, 100);
    assert_eq!(to, 1);
    call.on_result(at(101), &mut balancer, beside, Fate::Ok);
    aborts(&mut call, &mut balancer, 101, AttemptId::FIRST);
    assert_eq!(ends(&mut call, &mut balancer, 101), Ok(beside));
}

#[test]
fn l2_a_call_that_must_not_run_twice_waits_for_the_suspected_provider() {
    let only_refusals = RetryPolicy::custom(|fate| matches!(fate, Fate::Refused { .. }));
    for policy in [RetryPolicy::NeverProcessed, only_refusals] {
        let mut balancer = connected(3);
        let mut call = Call::new(start(), CallOptions { policy, ..first() });
        let (_, silent, _) = dispatched(&mut call, &mut balancer, 0);
        balancer.link(at(100), &0, Link::Suspected);
        waits(&mut call, &mut balancer, 100);
        call.on_result(at(900), &mut balancer, silent, Fate::Ok);
        assert_eq!(ends(&mut call, &mut balancer, 900), Ok(silent));
    }
}

#[test]
fn l2_a_call_that_has_begun_waits_for_the_suspected_provider() {
    let mut balancer = connected(3);
    let mut call = Call::new(start(), first());
    let (_, silent, _) = dispatched(&mut call, &mut balancer, 0);
    call.begun();
    balancer.link(at(100), &0, Link::Suspected);
    waits(&mut call, &mut balancer, 100);
    call.on_result(at(900), &mut balancer, silent, Fate::Ok);
    assert_eq!(ends(&mut call, &mut balancer, 900), Ok(silent));
}

/// One attempt at a provider that is heard is enough: a hedge in flight is one.
#[test]
fn l2_nothing_is_sent_beside_an_attempt_whose_provider_is_heard() {
    let mut config = BalancerConfig::default();
    config.budget.hedge_ratio = 1.0;
    let mut balancer = connected_with(config, 4);
    let options = CallOptions {
        idempotent: true,
        hedge: Some(Hedge::After(Duration::from_millis(5))),
        ..first()
    };
    let mut call = Call::new(start(), options);
    dispatched(&mut call, &mut balancer, 0);
    dispatched(&mut call, &mut balancer, 5);
    balancer.link(at(100), &0, Link::Suspected);
    waits(&mut call, &mut balancer, 100);
    balancer.link(at(101), &1, Link::Suspected);
    assert_eq!(dispatched(&mut call, &mut balancer, 101).0, 2);
    waits(&mut call, &mut balancer, 101);
    call.cancel(at(102), &mut balancer);
}

/// F5, L5, Y14: four of ten die one after another under one call; it has three attempts for living ones.
#[test]
fn f5_attempts_at_dead_providers_cost_none_while_living_ones_are_untried() {
    for found in [Link::Suspected, Link::Down] {
        let mut balancer = connected_with(without_budget(), 10);
        let mut call = Call::new(start(), first());
        for dead in 0..4 {
            let (to, attempt, _) = dispatched(&mut call, &mut balancer, u64::from(dead));
            assert_eq!(to, dead);
            balancer.link(at(u64::from(dead)), &dead, found);
            if found == Link::Down {
                call.on_result(at(u64::from(dead)), &mut balancer, attempt, LOST);
            }
        }
        let (to, attempt, _) = dispatched(&mut call, &mut balancer, 5);
        assert_eq!(to, 4);
        call.on_result(at(6), &mut balancer, attempt, Fate::Ok);
        let result = loop {
            match call.poll(at(6), &mut balancer) {
                Output::Abort { .. } => {}
                Output::Done(result) => break result,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(result.map(|success| success.attempt), Ok(attempt));
        assert_eq!(balancer.stats().spending.retries, 0);
    }
}

/// Refusals, errors and timeouts of living ones count as ever.
#[test]
fn f5_attempts_at_living_providers_count_beside_those_at_dead_ones() {
    let mut balancer = connected(10);
    let mut call = Call::new(start(), first());
    for n in 0..5 {
        let (to, attempt, _) = dispatched(&mut call, &mut balancer, 0);
        let fate = if n % 2 == 0 {
            FAILED
        } else {
            balancer.link(start(), &to, Link::Down);
            LOST
        };
        call.on_result(start(), &mut balancer, attempt, fate);
    }
    let error = ends(&mut call, &mut balancer, 0).expect_err("three living ones failed");
    assert!(
        matches!(&error, CallError::MaxAttemptsExceeded { limit: 3, attempts } if attempts.len() == 5),
        "{error:?}"
    );
    assert_eq!(balancer.stats().spending.retries, 2);
}

/// With only the dead left, they are tried, and count.
#[test]
fn f5_attempts_at_dead_providers_count_when_no_living_one_is_untried() {
    let mut balancer = connected(6);
    for key in 0..6 {
        balancer.link(start(), &key, Link::Down);
    }
    let mut call = Call::new(start(), CallOptions::default());
    for _ in 0..3 {
        let (_, attempt, _) = dispatched(&mut call, &mut balancer, 0);
        call.on_result(start(), &mut balancer, attempt, LOST);
    }
    let error = ends(&mut call, &mut balancer, 0).expect_err("all are dead");
    assert!(
        matches!(error, CallError::MaxAttemptsExceeded { limit: 3, .. }),
        "{error:?}"
    );
}

/// L5: beyond half, silence may be overload, so the budget holds.
#[test]
fn l5_a_retry_is_charged_once_more_than_half_are_silent() {
    for (silent, charged) in [(1, false), (2, false), (3, true)] {
        for beside in [false, true] {
            let mut balancer = connected_with(without_budget(), 4);
            for key in (4 - silent + 1)..4 {
                balancer.link(start(), &key, Link::Suspected);
            }
            let mut call = Call::new(start(), first());
            let (_, attempt, _) = dispatched(&mut call, &mut balancer, 0);
            balancer.link(at(1), &0, if beside { Link::Suspected } else { Link::Down });
            if !beside {
                call.on_result(at(1), &mut balancer, attempt, LOST);
            }
            match call.poll(at(1), &mut balancer) {
                Output::Dispatch { to: 1, .. } => assert!(!charged, "{silent} silent"),
                Output::Wait(_) => assert!(charged && beside, "{silent} silent"),
                Output::Done(Err(CallError::NotRetried {
                    reason: StopReason::BudgetExhausted,
                    ..
                })) => assert!(charged && !beside, "{silent} silent"),
                other => panic!("{other:?}"),
            }
            call.cancel(at(2), &mut balancer);
        }
    }
}

/// A timeout at a provider that is suspected is one of the dead; at one that is heard it is charged.
#[test]
fn l5_a_timeout_is_free_only_if_its_provider_was_silent() {
    for silent in [false, true] {
        let mut balancer = connected_with(without_budget(), 3);
        let options = CallOptions {
            policy: RetryPolicy::custom(|fate| *fate == Fate::Unknown(Loss::TimedOut)),
            ..first()
        };
        let mut call = Call::new(start(), options);
        let (_, attempt, _) = dispatched(&mut call, &mut balancer, 0);
        if silent {
            balancer.link(at(100), &0, Link::Suspected);
        }
        waits(&mut call, &mut balancer, 100);
        aborts(&mut call, &mut balancer, 3_000, attempt);
        match call.poll(at(3_000), &mut balancer) {
            Output::Dispatch { to: 1, .. } => assert!(silent),
            Output::Done(Err(CallError::NotRetried { .. })) => assert!(!silent),
            other => panic!("{other:?}"),
        }
        call.cancel(at(3_000), &mut balancer);
    }
}

/// The attempt beside fails and no other may follow: the silent one still has its chance.
#[test]
fn l2_a_late_answer_of_the_suspected_provider_saves_the_call() {
    let mut balancer = connected_with(without_budget(), 3);
    let mut call = Call::new(start(), first());
    let (_, silent, _) = dispatched(&mut call, &mut balancer, 0);
    balancer.link(at(100), &0, Link::Suspected);
    let (_, beside, _) = dispatched(&mut call, &mut balancer, 100);
    call.on_result(at(101), &mut balancer, beside, FAILED);
    waits(&mut call, &mut balancer, 101);
    balancer.link(at(400), &0, Link::Up);
    call.on_result(at(400), &mut balancer, silent, Fate::Ok);
    assert_eq!(ends(&mut call, &mut balancer, 400), Ok(silent));
}

#[test]
fn l2_when_the_silent_one_fails_too_the_call_says_why_it_went_no_further() {
    let mut balancer = connected_with(without_budget(), 3);
    let mut call = Call::new(start(), first());
    let (_, silent, _) = dispatched(&mut call, &mut balancer, 0);
    balancer.link(at(100), &0, Link::Suspected);
    let (_, beside, _) = dispatched(&mut call, &mut balancer, 100);
    call.on_result(at(101), &mut balancer, beside, FAILED);
    waits(&mut call, &mut balancer, 101);
    balancer.link(at(400), &0, Link::Down);
    call.on_result(at(400), &mut balancer, silent, LOST);
    let error = ends(&mut call, &mut balancer, 400).expect_err("the budget is empty");
    assert!(
        matches!(&error, CallError::NotRetried { attempt, reason: StopReason::BudgetExhausted, .. } if *attempt == beside),
        "{error:?}"
    );
}

#[test]
fn l2_a_provider_that_leaves_the_list_is_not_silent() {
    let mut balancer = connected(3);
    let mut call = Call::new(start(), first());
    dispatched(&mut call, &mut balancer, 0);
    balancer.link(at(1), &2, Link::Suspected);
    balancer.update(at(1), [1, 2].map(macula_select::Provider::new));
    waits(&mut call, &mut balancer, 1);
    call.cancel(at(1), &mut balancer);
}

/// H5: the dial goes on behind, and nothing was sent, so this is safe for every call.
#[test]
fn h5_an_attempt_that_waits_for_a_dial_gives_way_to_a_connected_provider() {
    for policy in [RetryPolicy::NeverProcessed, RetryPolicy::custom(|_| false)] {
        let mut balancer = balancer_with(without_budget(), 3);
        let mut call = Call::new(start(), CallOptions { policy, ..first() });
        let (_, dialing, _) = dispatched(&mut call, &mut balancer, 0);
        waits(&mut call, &mut balancer, 0);
        balancer.link(at(5), &2, Link::Up);
        let Output::Recall { attempt } = call.poll(at(5), &mut balancer) else {
            panic!("another one is connected");
        };
        assert_eq!(attempt, dialing);
        waits(&mut call, &mut balancer, 5);
        call.on_result(at(5), &mut balancer, dialing, Fate::NotSent);
        let (to, attempt, _) = dispatched(&mut call, &mut balancer, 5);
        assert_eq!(to, 2);
        call.on_result(at(6), &mut balancer, attempt, Fate::Ok);
        assert_eq!(ends(&mut call, &mut balancer, 6), Ok(attempt));
        let recalled = balancer.providers().next().expect("it is first");
        assert_eq!(recalled.counts.failed, 0, "that it gave way is no fault");
    }
}

#[test]
fn h5_an_attempt_that_was_sent_is_not_recalled() {
    let mut balancer = balancer(3);
    let options = first();
    let attempt = FirstAttempt::start(start(), start(), &mut balancer, &options).expect("there are providers");
    assert!(!attempt.is_stalled(&balancer));
    balancer.link(at(4), &0, Link::Up);
    balancer.link(at(5), &2, Link::Up);
    assert!(!attempt.is_stalled(&balancer), "its own dial has succeeded");
    let mut call = attempt.into_call(options);
    waits(&mut call, &mut balancer, 5);
    // Its connection may close in order later: it was sent all the same, which the shell knows, and says by its silence.
    balancer.link(at(6), &0, Link::Idle);
    assert!(matches!(call.poll(at(6), &mut balancer), Output::Recall { .. }));
    waits(&mut call, &mut balancer, 6);
    call.on_result(at(7), &mut balancer, AttemptId::FIRST, Fate::Ok);
    assert_eq!(ends(&mut call, &mut balancer, 7), Ok(AttemptId::FIRST));
}

/// Y20: two of three answer every call with an error, 50 calls a second.
#[test]
fn y20_a_small_service_whose_majority_fails_loses_no_call() {
    for strategy in Strategy::ALL {
        let mut balancer = balancer(3);
        for n in 0..6_000 {
            let now = n * 20;
            let options = CallOptions {
                strategy: Some(strategy),
                affinity: Some(n),
                ..CallOptions::default()
            };
            let mut call = Call::new(at(now), options);
            loop {
                match call.poll(at(now), &mut balancer) {
                    Output::Dispatch { to, attempt, .. } => {
                        let fate = if to == 2 { Fate::Ok } else { FAILED };
                        call.on_result(at(now), &mut balancer, attempt, fate);
                    }
                    Output::Done(result) => {
                        assert!(result.is_ok(), "{strategy}, call {n}: {result:?}");
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// A retry that waits for its time is not made once the silent provider is heard again.
#[test]
fn l2_a_provider_that_is_heard_again_makes_the_next_attempt_superfluous() {
    let mut balancer = connected(6);
    let options = CallOptions {
        backoff: Some(Backoff {
            base: Duration::from_secs(1),
            max: Duration::from_secs(1),
        }),
        max_attempts: Some(5),
        ..first()
    };
    let mut call = Call::new(start(), options);
    let (_, silent, _) = dispatched(&mut call, &mut balancer, 0);
    balancer.link(at(100), &0, Link::Suspected);
    for _ in 0..2 {
        let (_, failed, _) = dispatched(&mut call, &mut balancer, 100);
        call.on_result(at(100), &mut balancer, failed, FAILED);
    }
    waits(&mut call, &mut balancer, 100);
    balancer.link(at(101), &0, Link::Up);
    waits(&mut call, &mut balancer, 2_000);
    call.on_result(at(2_001), &mut balancer, silent, Fate::Ok);
    assert_eq!(ends(&mut call, &mut balancer, 2_001), Ok(silent));
}

/// A provider that asks for no retry is obeyed, also when another attempt's provider falls silent.
#[test]
fn f9_a_negative_pushback_stops_the_attempts_beside_a_silent_provider() {
    let mut config = BalancerConfig::default();
    config.budget.hedge_ratio = 1.0;
    let mut balancer = connected_with(config, 4);
    let options = CallOptions {
        idempotent: true,
        hedge: Some(Hedge::After(Duration::from_millis(5))),
        ..first()
    };
    let mut call = Call::new(start(), options);
    let (_, one, _) = dispatched(&mut call, &mut balancer, 0);
    let (_, hedge, _) = dispatched(&mut call, &mut balancer, 5);
    balancer.link(at(6), &1, Link::Suspected);
    let stop = Fate::Answered {
        code: Code::Unavailable,
        pushback: Some(Pushback::Stop),
    };
    call.on_result(at(6), &mut balancer, one, stop);
    waits(&mut call, &mut balancer, 6);
    balancer.link(at(7), &1, Link::Down);
    call.on_result(at(7), &mut balancer, hedge, LOST);
    let error = ends(&mut call, &mut balancer, 7).expect_err("a provider asked for it");
    assert!(
        matches!(&error, CallError::NotRetried { attempt, reason: StopReason::Pushback, .. } if *attempt == one),
        "{error:?}"
    );
}
