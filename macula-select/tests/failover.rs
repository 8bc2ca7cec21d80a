//! F1 to F10: what a call does over time, step by step.

mod common;

use std::time::Duration;

use common::{at, balancer, balancer_with, start};
use macula_select::{
    AttemptId, Backoff, Balancer, BalancerConfig, Call, CallError, CallOptions, Code, Event, Fate, Hedge, Link, Loss,
    MAX_FREE_ATTEMPTS, Output, PickContext, Pushback, Refusal, RetryPolicy, StopReason, Strategy,
};

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

#[track_caller]
fn dispatched(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64) -> (u32, AttemptId) {
    match call.poll(at(now), balancer) {
        Output::Dispatch { to, attempt, .. } => (to, attempt),
        other => panic!("it should dispatch, not {other:?}"),
    }
}

#[track_caller]
fn waits(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64, until: u64) {
    match call.poll(at(now), balancer) {
        Output::Wait(instant) => assert_eq!(instant, at(until)),
        other => panic!("it should wait, not {other:?}"),
    }
}

#[track_caller]
fn aborts(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64, expected: AttemptId) {
    match call.poll(at(now), balancer) {
        Output::Abort { attempt } => assert_eq!(attempt, expected),
        other => panic!("it should abort, not {other:?}"),
    }
}

#[track_caller]
fn fails(call: &mut Call<u32>, balancer: &mut Balancer<u32>, now: u64) -> CallError<u32> {
    match call.poll(at(now), balancer) {
        Output::Done(Err(error)) => error,
        other => panic!("it should fail, not {other:?}"),
    }
}

#[test]
fn f1_a_timeout_is_retried_at_another_provider_at_once() {
    let mut balancer = balancer(3);
    let mut call = Call::new(start(), first());
    let (to, hung) = dispatched(&mut call, &mut balancer, 0);
    assert_eq!(to, 0);
    waits(&mut call, &mut balancer, 0, 3_000);
    waits(&mut call, &mut balancer, 2_999, 3_000);
    aborts(&mut call, &mut balancer, 3_000, hung);
    let (to, attempt) = dispatched(&mut call, &mut balancer, 3_000);
    assert_eq!(to, 1);
    call.on_result(at(3_010), &mut balancer, attempt, Fate::Ok);
    assert!(matches!(call.poll(at(3_010), &mut balancer), Output::Done(Ok(_))));
    let log: Vec<_> = call
        .attempts()
        .iter()
        .map(|attempt| (*attempt.provider(), attempt.fate(), attempt.elapsed()))
        .collect();
    assert_eq!(
        log,
        [
            (0, Fate::Unknown(Loss::TimedOut), Duration::from_secs(3)),
            (1, Fate::Ok, Duration::from_millis(10)),
        ]
    );
    assert!(matches!(call.poll(at(3_010), &mut balancer), Output::Over));
}

#[test]
fn f2_a_provider_that_left_and_came_back_is_not_tried_again() {
    let mut balancer = balancer(2);
    let mut call = Call::new(start(), first());
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    balancer.update(at(1), [macula_select::Provider::new(1)]);
    balancer.update(at(2), [0, 1].map(macula_select::Provider::new));
    call.on_result(at(3), &mut balancer, attempt, FAILED);
    let (to, attempt) = dispatched(&mut call, &mut balancer, 3);
    assert_eq!(to, 1);
    call.on_result(at(3), &mut balancer, attempt, FAILED);
    assert!(matches!(
        fails(&mut call, &mut balancer, 3),
        CallError::AllProvidersFailed { .. }
    ));
}

#[test]
fn f4_providers_that_appear_meanwhile_are_tried() {
    let mut balancer = balancer(1);
    let mut call = Call::new(start(), first());
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    balancer.update(at(1), [0, 1].map(macula_select::Provider::new));
    call.on_result(at(1), &mut balancer, attempt, FAILED);
    assert_eq!(dispatched(&mut call, &mut balancer, 1).0, 1);
    call.cancel(at(1), &mut balancer);
}

#[test]
fn f7_an_attempt_has_what_is_left_of_the_deadline_and_none_starts_after_it() {
    let mut balancer = balancer(3);
    let options = CallOptions {
        timeout: Duration::from_secs(4),
        ..first()
    };
    let mut call = Call::new(start(), options);
    assert_eq!(call.deadline(), at(4_000));
    let (_, one) = dispatched(&mut call, &mut balancer, 0);
    aborts(&mut call, &mut balancer, 3_000, one);
    let Output::Dispatch {
        until, attempt: two, ..
    } = call.poll(at(3_000), &mut balancer)
    else {
        panic!("there is time left")
    };
    assert_eq!(until, at(4_000));
    aborts(&mut call, &mut balancer, 4_000, two);
    let error = fails(&mut call, &mut balancer, 4_000);
    assert!(
        matches!(&error, CallError::DeadlineExceeded { attempts } if attempts.len() == 2),
        "{error:?}"
    );
}

/// Also when it was the last provider, or the call must not run twice: the deadline is why it ended.
#[test]
fn f7_past_its_deadline_a_call_says_so() {
    for options in [
        first(),
        CallOptions {
            policy: RetryPolicy::NeverProcessed,
            ..first()
        },
    ] {
        let mut balancer = balancer(1);
        let mut call = Call::new(
            start(),
            CallOptions {
                timeout: Duration::from_secs(2),
                ..options
            },
        );
        let (_, hung) = dispatched(&mut call, &mut balancer, 0);
        aborts(&mut call, &mut balancer, 2_500, hung);
        let error = fails(&mut call, &mut balancer, 2_500);
        let CallError::DeadlineExceeded { attempts } = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            attempts.last().map(|attempt| attempt.fate()),
            Some(Fate::Unknown(Loss::TimedOut))
        );
        assert_eq!(
            balancer.providers().next().map(|provider| provider.counts.failed),
            Some(1)
        );
    }
}

#[test]
fn f8_a_cancelled_call_aborts_its_attempts_and_counts_nowhere() {
    let mut config = BalancerConfig::default();
    config.budget.hedge_ratio = 1.0;
    let mut balancer = balancer_with(config, 2);
    let options = CallOptions {
        idempotent: true,
        hedge: Some(Hedge::After(Duration::from_millis(5))),
        ..first()
    };
    let mut call = Call::new(start(), options);
    let (_, one) = dispatched(&mut call, &mut balancer, 0);
    let (_, two) = dispatched(&mut call, &mut balancer, 5);
    call.cancel(at(6), &mut balancer);
    assert_eq!(
        balancer.stats().in_flight(),
        0,
        "the leases are back before anything is polled"
    );
    aborts(&mut call, &mut balancer, 6, one);
    aborts(&mut call, &mut balancer, 6, two);
    assert!(matches!(
        fails(&mut call, &mut balancer, 6),
        CallError::Cancelled { .. }
    ));
    assert!(
        balancer
            .providers()
            .all(|provider| provider.counts == macula_select::Counts::default())
    );
}

/// Law 26: the first failover is immediate, the later ones wait within their bounds.
#[test]
fn f9_backoff_begins_with_the_second_failover() {
    for seed in 0..50 {
        let mut balancer = Balancer::new(BalancerConfig::default(), seed);
        balancer.update(start(), (0..5).map(macula_select::Provider::new));
        let backoff = Backoff {
            base: Duration::from_millis(100),
            max: Duration::from_millis(150),
        };
        let options = CallOptions {
            backoff: Some(backoff),
            max_attempts: Some(4),
            ..first()
        };
        let mut call = Call::new(start(), options);
        let mut now = start();
        let mut waited = Vec::new();
        loop {
            match call.poll(now, &mut balancer) {
                Output::Dispatch { attempt, .. } => call.on_result(now, &mut balancer, attempt, FAILED),
                Output::Wait(until) => {
                    waited.push(until - now);
                    now = until;
                }
                Output::Done(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(waited.len() <= 2, "the first failover waited: {waited:?}");
        assert!(
            waited
                .iter()
                .zip([100, 150])
                .all(|(wait, most)| *wait <= Duration::from_millis(most)),
            "{waited:?}"
        );
    }
}

fn after(milliseconds: u64) -> Fate {
    Fate::Refused {
        reason: Refusal::Overloaded,
        pushback: Some(Pushback::After(Duration::from_millis(milliseconds))),
    }
}

/// Law 26: a pushback replaces the next wait, and only that. The call waits when all others are put aside.
#[test]
fn f9_a_pushback_is_honoured_once() {
    let mut balancer = balancer(4);
    for other in [1, 2, 3] {
        balancer.link(start(), &other, Link::Down);
    }
    let mut call = Call::new(start(), first());
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    call.on_result(at(1), &mut balancer, attempt, after(300));
    waits(&mut call, &mut balancer, 1, 301);
    let (to, attempt) = dispatched(&mut call, &mut balancer, 301);
    assert_eq!(to, 1);
    call.on_result(at(302), &mut balancer, attempt, FAILED);
    assert_eq!(dispatched(&mut call, &mut balancer, 302).0, 2);
    call.cancel(at(302), &mut balancer);
}

#[test]
fn f9_a_pushback_beyond_the_deadline_ends_the_call_at_once_if_no_other_is_ready() {
    let mut balancer = balancer(2);
    balancer.link(start(), &1, Link::Down);
    let mut call = Call::new(start(), first());
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    call.on_result(at(1), &mut balancer, attempt, after(10_000));
    assert!(matches!(
        fails(&mut call, &mut balancer, 1),
        CallError::DeadlineExceeded { .. }
    ));
}

/// F1, F5: the provider is held for as long as it asked; that is no concern of the others.
#[test]
fn f1_one_providers_pushback_delays_no_call_while_another_is_ready() {
    for wait in [300, 60_000] {
        let mut balancer = balancer(2);
        let mut call = Call::new(start(), first());
        let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
        call.on_result(at(1), &mut balancer, attempt, after(wait));
        assert_eq!(dispatched(&mut call, &mut balancer, 1).0, 1);
        call.cancel(at(1), &mut balancer);
    }
}

/// A call to three providers with a hedge in flight, and its two attempts.
fn hedged_call(balancer: &mut Balancer<u32>) -> (Call<u32>, AttemptId, AttemptId) {
    let options = CallOptions {
        idempotent: true,
        hedge: Some(Hedge::After(Duration::from_millis(5))),
        ..first()
    };
    let mut call = Call::new(start(), options);
    let (_, one) = dispatched(&mut call, balancer, 0);
    let (_, two) = dispatched(&mut call, balancer, 5);
    (call, one, two)
}

/// Law 26.
#[test]
fn f9_a_pushback_is_remembered_while_a_hedge_is_in_flight() {
    for last in [FAILED, Fate::NotSent] {
        let mut config = BalancerConfig::default();
        config.budget.hedge_ratio = 1.0;
        let mut balancer = balancer_with(config, 3);
        let (mut call, one, two) = hedged_call(&mut balancer);
        let stop = Fate::Refused {
            reason: Refusal::Overloaded,
            pushback: Some(Pushback::Stop),
        };
        call.on_result(at(6), &mut balancer, one, stop);
        call.on_result(at(7), &mut balancer, two, last);
        let error = fails(&mut call, &mut balancer, 7);
        assert!(
            matches!(error, CallError::NotRetried { attempt, reason: StopReason::Pushback, .. } if attempt == one),
            "{error:?}"
        );

        let mut balancer = balancer_with(balancer.config().clone(), 3);
        balancer.link(start(), &2, Link::Down);
        let (mut call, one, two) = hedged_call(&mut balancer);
        call.on_result(at(6), &mut balancer, one, after(300));
        call.on_result(at(7), &mut balancer, two, last);
        waits(&mut call, &mut balancer, 7, 306);
        assert_eq!(dispatched(&mut call, &mut balancer, 306).0, 2);
        call.cancel(at(306), &mut balancer);
    }
}

/// Law 24.
#[test]
fn f9_a_failure_is_paid_for_though_the_hedge_beside_it_was_not_sent() {
    let mut config = BalancerConfig::default();
    config.budget.hedge_ratio = 1.0;
    let mut balancer = balancer_with(config, 3);
    let (mut call, one, two) = hedged_call(&mut balancer);
    call.on_result(at(6), &mut balancer, one, FAILED);
    call.on_result(at(7), &mut balancer, two, Fate::NotSent);
    assert_eq!(dispatched(&mut call, &mut balancer, 7).0, 2);
    assert_eq!(balancer.stats().spending.retries, 1);
    call.cancel(at(7), &mut balancer);
}

#[test]
fn f9_a_negative_pushback_stops_the_retries() {
    let mut balancer = balancer(2);
    let mut call = Call::new(start(), first());
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    let fate = Fate::Refused {
        reason: Refusal::Overloaded,
        pushback: Some(Pushback::Stop),
    };
    call.on_result(at(1), &mut balancer, attempt, fate);
    let error = fails(&mut call, &mut balancer, 1);
    assert!(
        matches!(
            error,
            CallError::NotRetried {
                reason: StopReason::Pushback,
                ..
            }
        ),
        "{error:?}"
    );
}

/// What was sent cannot be sent again: neither after a failure nor beside the attempt.
#[test]
fn nothing_is_tried_elsewhere_once_a_call_has_begun() {
    let mut balancer = balancer(3);
    let options = CallOptions {
        idempotent: true,
        hedge: Some(Hedge::After(Duration::from_millis(5))),
        ..first()
    };
    let mut call = Call::new(start(), options);
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    call.begun();
    waits(&mut call, &mut balancer, 6, 3_000);
    call.on_result(at(7), &mut balancer, attempt, FAILED);
    let error = fails(&mut call, &mut balancer, 7);
    let begun = StopReason::Begun;
    assert!(
        matches!(&error, CallError::NotRetried { reason, attempts, .. } if *reason == begun && attempts.len() == 1),
        "{error:?}"
    );
    assert_eq!(balancer.stats().spending.retries, 0);
}

/// Also when that is said between two attempts.
#[test]
fn a_call_that_has_begun_does_not_go_on_after_its_pause() {
    let mut balancer = balancer(3);
    let mut call = Call::new(start(), first());
    let (_, attempt) = dispatched(&mut call, &mut balancer, 0);
    call.on_result(at(7), &mut balancer, attempt, FAILED);
    call.begun();
    let error = fails(&mut call, &mut balancer, 8);
    assert!(
        matches!(&error, CallError::NotRetried { reason: StopReason::Begun, attempts, .. } if attempts.len() == 1),
        "{error:?}"
    );
}

/// Law 24, across calls: they share the budget of their service. What was not sent is free.
#[test]
fn f9_calls_share_the_retry_budget_of_their_service() {
    let run = |balancer: &mut Balancer<u32>, fate| common::run(balancer, CallOptions::default(), |_| fate);
    let mut config = BalancerConfig::default();
    config.health.consecutive_failures = 0;
    config.health.min_success_rate = 0.0;
    let mut balancer = balancer_with(config, 10);
    for _ in 0..200 {
        let error = run(&mut balancer, FAILED).expect_err("all fail");
        let budget = matches!(
            error,
            CallError::NotRetried {
                reason: StopReason::BudgetExhausted,
                ..
            }
        );
        assert!(
            budget || matches!(error, CallError::MaxAttemptsExceeded { .. }),
            "{error:?}"
        );
        let spending = balancer.stats().spending;
        assert!(
            spending.retries as f64 <= 0.2 * spending.calls as f64 + 100.0,
            "{spending:?}"
        );
    }
    assert_eq!(balancer.stats().spending.retries, 140);
    let told = std::iter::from_fn(|| balancer.poll_event())
        .filter(|event| *event == Event::BudgetExhausted)
        .count();
    assert!((1..200).contains(&told), "told {told} times");
    let error = run(&mut balancer, Fate::NotSent).expect_err("none is reachable");
    assert!(
        matches!(&error, CallError::AllProvidersFailed { attempts } if attempts.len() == 10),
        "{error:?}"
    );
}

/// Warm enough for a percentile and a budget: 100 calls of 10 ms.
fn warmed_up() -> Balancer<u32> {
    let mut balancer = balancer(3);
    for n in 0..100 {
        let mut call = Call::new(at(n * 10), CallOptions::default());
        let (_, attempt) = dispatched(&mut call, &mut balancer, n * 10);
        call.on_result(at(n * 10 + 10), &mut balancer, attempt, Fate::Ok);
        assert!(matches!(call.poll(at(n * 10 + 10), &mut balancer), Output::Done(Ok(_))));
    }
    balancer
}

#[test]
fn f10_a_slow_call_is_hedged_at_the_95th_percentile_and_the_first_answer_wins() {
    let mut balancer = warmed_up();
    let p95 = balancer.stats().p95.expect("a hundred samples are in");
    assert!(
        p95 >= Duration::from_millis(10) && p95 <= Duration::from_micros(10_700),
        "{p95:?}"
    );
    let mut call = Call::new(
        at(2_000),
        CallOptions {
            idempotent: true,
            hedge: Some(Hedge::AtP95),
            ..CallOptions::default()
        },
    );
    let (to, slow) = dispatched(&mut call, &mut balancer, 2_000);
    let Output::Wait(until) = call.poll(at(2_000), &mut balancer) else {
        panic!("it waits for the percentile")
    };
    assert_eq!(until, at(2_000) + p95);
    let Output::Dispatch {
        to: other,
        attempt,
        hedge: true,
        ..
    } = call.poll(until, &mut balancer)
    else {
        panic!("it hedges")
    };
    assert_ne!(to, other);
    call.on_result(until + Duration::from_millis(1), &mut balancer, attempt, Fate::Ok);
    aborts(&mut call, &mut balancer, 2_013, slow);
    let Output::Done(Ok(success)) = call.poll(at(2_013), &mut balancer) else {
        panic!("it succeeded")
    };
    assert_eq!(success.attempt, attempt);
    let fates: Vec<_> = call
        .attempts()
        .iter()
        .map(|attempt| (attempt.is_hedge(), attempt.fate()))
        .collect();
    assert_eq!(fates, [(false, Fate::Cancelled), (true, Fate::Ok)]);
    assert_eq!(balancer.stats().in_flight(), 0);
}

#[test]
fn f10_a_failed_hedge_leaves_the_first_attempt_its_chance() {
    let mut balancer = warmed_up();
    let hedge = Some(Hedge::After(Duration::from_millis(5)));
    let mut call = Call::new(
        at(2_000),
        CallOptions {
            idempotent: true,
            hedge,
            ..CallOptions::default()
        },
    );
    let (_, slow) = dispatched(&mut call, &mut balancer, 2_000);
    let (_, failed) = dispatched(&mut call, &mut balancer, 2_005);
    call.on_result(at(2_006), &mut balancer, failed, FAILED);
    waits(&mut call, &mut balancer, 2_006, 5_000);
    call.on_result(at(2_007), &mut balancer, slow, Fate::Ok);
    assert!(matches!(call.poll(at(2_007), &mut balancer), Output::Done(Ok(success)) if success.attempt == slow));
}

/// Law 27.
#[test]
fn f10_hedges_need_consent_a_percentile_and_a_budget() {
    let hedge = Some(Hedge::After(Duration::from_millis(5)));
    let hedged = |balancer: &mut Balancer<u32>, options: CallOptions| {
        let mut call = Call::new(at(2_000), options);
        dispatched(&mut call, balancer, 2_000);
        let hedged = matches!(call.poll(at(2_050), balancer), Output::Dispatch { .. });
        call.cancel(at(2_050), balancer);
        hedged
    };
    let willing = CallOptions {
        idempotent: true,
        hedge,
        ..CallOptions::default()
    };
    assert!(hedged(&mut warmed_up(), willing.clone()));
    assert!(!hedged(
        &mut warmed_up(),
        CallOptions {
            idempotent: false,
            ..willing.clone()
        }
    ));
    assert!(!hedged(
        &mut warmed_up(),
        CallOptions {
            policy: RetryPolicy::NeverProcessed,
            ..willing.clone()
        }
    ));
    assert!(!hedged(
        &mut warmed_up(),
        CallOptions {
            max_attempts: Some(1),
            ..willing.clone()
        }
    ));
    assert!(!hedged(&mut balancer(3), willing.clone()), "one call is no budget");
    assert!(
        !hedged(
            &mut balancer(3),
            CallOptions {
                hedge: Some(Hedge::AtP95),
                ..willing.clone()
            }
        ),
        "no percentile yet"
    );
    let mut spent = warmed_up();
    let count = (0..20).filter(|_| hedged(&mut spent, willing.clone())).count();
    assert_eq!(count, 6, "5 % of 120 calls");
}

#[test]
fn a_failing_probe_costs_the_call_nothing_but_a_failover() {
    let mut balancer = balancer(4);
    for _ in 0..5 {
        let lease = balancer.pick(
            start(),
            &PickContext {
                exclude: &[1, 2, 3],
                ..PickContext::default()
            },
        );
        balancer
            .report(start(), lease.expect("it is usable"), FAILED)
            .expect("this balancer issued it");
    }
    for unsuited in [
        CallOptions {
            max_attempts: Some(1),
            ..CallOptions::default()
        },
        CallOptions {
            policy: RetryPolicy::NeverProcessed,
            ..CallOptions::default()
        },
    ] {
        let mut call = Call::new(at(6_000), unsuited);
        assert_ne!(
            dispatched(&mut call, &mut balancer, 6_000).0,
            0,
            "it cannot go on elsewhere"
        );
        call.cancel(at(6_000), &mut balancer);
    }
    let mut call = Call::new(at(6_000), CallOptions::default());
    let (to, probe) = dispatched(&mut call, &mut balancer, 6_000);
    assert_eq!((to, balancer.stats().probes), (0, 1));
    call.on_result(at(6_001), &mut balancer, probe, FAILED);
    let (to, attempt) = dispatched(&mut call, &mut balancer, 6_001);
    assert_ne!(to, 0);
    call.on_result(at(6_002), &mut balancer, attempt, Fate::Ok);
    assert!(matches!(call.poll(at(6_002), &mut balancer), Output::Done(Ok(_))));
}

/// H3, F1: two providers wait for a probe; the call carries one, and its last attempt none.
#[test]
fn h3_a_call_carries_one_probe_and_not_with_its_last_attempt() {
    for limit in [2, 3] {
        let mut balancer = balancer(6);
        for ejected in [0, 1] {
            for _ in 0..5 {
                let exclude: Vec<u32> = (0..6).filter(|key| *key != ejected).collect();
                let context = PickContext {
                    exclude: &exclude,
                    ..PickContext::default()
                };
                let lease = balancer.pick(start(), &context).expect("it is usable");
                balancer
                    .report(start(), lease, FAILED)
                    .expect("this balancer issued it");
            }
        }
        // Beyond the patience of both, so that reluctant calls would do.
        let now = 60_000;
        let mut call = Call::new(
            at(now),
            CallOptions {
                max_attempts: Some(limit),
                ..CallOptions::default()
            },
        );
        let mut probes = 0;
        for n in 0..limit {
            let (to, attempt) = dispatched(&mut call, &mut balancer, now);
            probes += u32::from(to < 2);
            assert!(to >= 2 || n == 0, "attempt {n} is a probe");
            call.on_result(at(now), &mut balancer, attempt, FAILED);
        }
        assert_eq!((probes, balancer.stats().probes), (1, 1));
        fails(&mut call, &mut balancer, now);
    }
}

/// Law 25: *not sent* is free but finite.
#[test]
fn f4_a_call_gives_up_after_sixteen_that_were_not_sent() {
    let mut balancer = balancer(100);
    let error = common::run(&mut balancer, CallOptions::default(), |_| Fate::NotSent).expect_err("none is reachable");
    assert!(
        matches!(&error, CallError::AllProvidersFailed { attempts } if attempts.len() == MAX_FREE_ATTEMPTS as usize),
        "{error:?}"
    );
}
